//! Asynchronous invocation: what the Frontend needs from the pollers, and what the pollers need from everyone else.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use control_plane::ControlPlane;
use delivery::Failure;
use domain::trace::{Accepted, Traced, Traces};
use domain::{AccountId, AssignRequest, Clock, FunctionArn, InvokeRequest, LogType, RequestId, Step, Timeline};
use event_queue::QueueError;
use frontend::ports;
use frontend::sync_path::{Invocation, timeline_json};
use lambda_api::{ApiError, ErrorCode};
use parking_lot::Mutex;
use pollers::target::Service;
use pollers::{AsyncEvent, Attempt, EventConfig, Outcome, Settings, Target};
use uuid::Uuid;

use super::Direct;
use super::traces::{self, moment};

/// Timelines that are kept; the oldest go first.
const TIMELINES: usize = 1000;
/// Largest record that a function gets as its event, in bytes; as any other asynchronous invocation.
const RECORD_LIMIT: usize = 1 << 20;

/// The pollers, for the Frontend.
pub struct Events {
    /// In this process.
    pub pollers: pollers::Service,
    /// Those that were asked for.
    pub timelines: Arc<Timelines>,
    /// That of the timelines.
    pub clock: Arc<dyn Clock>,
    /// What takes traces, if anything does.
    pub traces: Option<Arc<dyn Traces>>,
}

#[async_trait]
impl ports::Events for Events {
    async fn accept(&self, event: ports::Event) -> Result<(), ports::NotAccepted> {
        let ports::Event { function, qualifier, request_id, payload, trace_id, received, timeline, origin } = event;
        let key = (function.clone(), request_id);
        let begun = self.clock.monotonic();
        let traced = self.traces.as_ref().zip(origin).map(|(traces, origin)| (traces, origin, qualifier.clone()));
        if timeline {
            // Before anybody can take it from the queue.
            self.timelines.begin(key.clone(), received);
        }
        let trace_header = Some(trace_id);
        let event = AsyncEvent::new(function, request_id, payload, self.clock.wall());
        let accepted = self.pollers.accept(AsyncEvent { qualifier, trace_header, ..event }).await;
        if timeline {
            self.timelines.queued(&key, self.clock.monotonic());
        }
        if let Some((traces, origin, qualifier)) = traced {
            let now = moment(&*self.clock);
            traces.take(Traced::Accepted(Box::new(Accepted {
                origin: *origin,
                function: key.0,
                qualifier,
                request_id,
                received,
                enqueued: begun,
                ended: now.monotonic,
                error: accepted.as_ref().err().map(ToString::to_string),
                now,
            })));
        }
        accepted.map_err(|error| match error {
            QueueError::TooLarge { limit, .. } => ports::NotAccepted::TooLarge(limit),
            error => ports::NotAccepted::Failed(error.to_string()),
        })
    }

    async fn stats(&self, function: &FunctionArn) -> Result<ports::EventStats, String> {
        let stats = self.pollers.stats(function).await.map_err(|error| error.to_string())?;
        let millis = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        Ok(ports::EventStats {
            depth: stats.depth,
            waiting: stats.waiting,
            in_flight: stats.in_flight,
            retrying: stats.retrying,
            oldest_age_ms: stats.oldest_age.map(millis),
            received: stats.received,
            succeeded: stats.succeeded,
            dropped: stats.dropped,
            dead_lettered: stats.dead_lettered,
            delivery_errors: stats.delivery_errors,
            undelivered: stats.undelivered,
        })
    }

    fn timeline(&self, function: &FunctionArn, request_id: RequestId) -> Option<ports::EventTimeline> {
        self.timelines.show(&(function.clone(), request_id))
    }
}

/// Attempts of events: through the same synchronous path as any invocation.
pub struct Attempts {
    /// Finds the version, anew for every attempt, and runs it.
    pub direct: Direct,
    /// Those that were asked for.
    pub timelines: Arc<Timelines>,
}

#[async_trait]
impl pollers::Invoker for Attempts {
    async fn invoke(&self, event: &AsyncEvent) -> Attempt {
        let begun = self.direct.clock.monotonic();
        let key = (event.function.clone(), event.request_id);
        let (before, show_timeline) = self.before(event, &key, begun);
        let target = match self.direct.resolve(&event.function, event.qualifier.as_deref()) {
            Ok(target) => target,
            Err(error) => return refused(&error),
        };
        let version = Arc::clone(&target.version);
        let traced = self.direct.sync_path.traces().is_some();
        let origin = traced.then(|| traces::attempt(event, self.direct.clock.wall())).flatten().map(Box::new);
        let invocation = Invocation {
            request: InvokeRequest {
                request_id: event.request_id,
                payload: event.payload.clone(),
                invoked_arn: target.invoked_arn,
                client_context: None,
                trace_id: event.trace_header.clone().unwrap_or_default(),
                log_type: LogType::None,
            },
            assign: AssignRequest { version: target.version, limits: target.limits },
            begun,
            before: before.clone(),
            show_timeline,
            origin,
        };
        match self.direct.sync_path.run(invocation).await {
            Ok(done) => {
                if show_timeline {
                    self.timelines.attempted(&key, done.timeline.unwrap_or(before));
                }
                Attempt {
                    outcome: done.outcome.function_error.map_or(Outcome::Success, |_| Outcome::FunctionError),
                    status: 200,
                    executed_version: Some(version.version.clone()),
                    function_error: done.outcome.function_error.map(str::to_owned),
                    payload: done.outcome.payload,
                }
            }
            Err(failure) => {
                let error = failure.to_api_error();
                if show_timeline {
                    let mut timeline = before;
                    timeline.note(Step::Answered, self.direct.clock.monotonic(), error.code.name());
                    self.timelines.attempted(&key, timeline);
                }
                refused(&error)
            }
        }
    }

    fn settled(&self, event: &AsyncEvent, how: &str) {
        let key = (event.function.clone(), event.request_id);
        self.timelines.settled(&key, || self.direct.clock.monotonic(), how);
    }
}

impl Attempts {
    /// The timeline until now, and whether somebody will ask for it. Where earlier attempts were made by another process,
    /// it begins with the acceptance.
    fn before(&self, event: &AsyncEvent, key: &Key, now: Duration) -> (Timeline, bool) {
        let ago =
            |time: SystemTime| now.saturating_sub(self.direct.clock.wall().duration_since(time).unwrap_or_default());
        let kept = self.timelines.get(key);
        let show = kept.is_some();
        let mut timeline = kept.unwrap_or_else(|| {
            let mut timeline = Timeline::default();
            timeline.mark(Step::Received, ago(event.accepted_at));
            timeline
        });
        timeline.note(Step::Dequeued, event.leased_at.map_or(now, ago), format!("attempt {}", event.attempt()));
        (timeline, show)
    }
}

/// The function did not run. That it is not Active yet, or has just been deleted, is a matter of time as well: the settings
/// say at the next attempt whether it is gone.
fn refused(error: &ApiError) -> Attempt {
    let status = error.code.status();
    Attempt {
        outcome: if status == 429 { Outcome::Throttled } else { Outcome::SystemError },
        status,
        executed_version: None,
        function_error: None,
        payload: Bytes::new(),
    }
}

/// Settings of asynchronous invocation, for the pollers.
pub struct EventSettings(pub ControlPlane);

#[async_trait]
impl pollers::SettingsSource for EventSettings {
    async fn event_config(&self, event: &AsyncEvent) -> Option<EventConfig> {
        let settings = self.0.event_settings(&event.function, event.qualifier.as_deref()).ok()?;
        let target = |arn: Option<String>| {
            let parsed = Target::parse(&arn?);
            parsed.inspect_err(|error| tracing::error!(function = %event.function, %error, "no target")).ok()
        };
        Some(EventConfig {
            settings: Settings {
                maximum_retry_attempts: settings.maximum_retry_attempts,
                maximum_event_age: settings.maximum_event_age,
                reserved_concurrency: settings.reserved_concurrency,
            },
            on_success: target(settings.on_success),
            on_failure: target(settings.on_failure),
            dead_letter: target(settings.dead_letter),
            recursion_allowed: settings.recursion_allowed,
            unreserved_concurrency: Some(settings.unreserved_concurrency),
        })
    }
}

/// Records for functions: they become events of this process.
pub struct Records {
    direct: Direct,
    pollers: OnceLock<pollers::Service>,
}

impl Records {
    /// Usable after [`Records::connect`].
    pub fn new(direct: Direct) -> Self {
        Self { direct, pollers: OnceLock::new() }
    }

    /// The pollers send records, and take them.
    pub fn connect(&self, pollers: pollers::Service) {
        assert!(self.pollers.set(pollers).is_ok(), "connected once");
    }
}

#[async_trait]
impl delivery::EnqueueEvent for Records {
    async fn enqueue(&self, target: &Target, trace_header: Option<&str>, record: Bytes) -> Result<(), Failure> {
        let Service::Lambda { function, qualifier } = &target.service else {
            return Err(Failure::refused(format!("{target} is no function")));
        };
        if record.len() > RECORD_LIMIT {
            let size = record.len();
            return Err(Failure::refused(format!("a record of {size} bytes is more than an event may have")));
        }
        let account = AccountId::parse(&target.account)
            .ok_or_else(|| Failure::refused(format!("{target} names no account; correct the destination")))?;
        let arn = FunctionArn { region: target.region.as_str().into(), account, name: function.as_str().into() };
        let found = self.direct.resolve(&arn, qualifier.as_deref());
        let found = found.map_err(|error| Failure {
            retryable: error.code != ErrorCode::ResourceNotFoundException,
            cause: error.to_string(),
        })?;
        let now = self.direct.clock.wall();
        let traces = self.direct.sync_path.traces();
        let trace = frontend::new_trace(trace_header, now, found.version.tracing_active, traces);
        let request_id = RequestId(Uuid::new_v4());
        let event = AsyncEvent {
            qualifier: qualifier.clone(),
            trace_header: Some(trace.header),
            ..AsyncEvent::new(arn.clone(), request_id, record, now)
        };
        let pollers = self.pollers.get().ok_or_else(|| Failure::temporary("Emberbox is starting"))?;
        let begun = self.direct.clock.monotonic();
        let accepted = pollers.accept(event).await;
        if let Some((traces, origin)) = traces.zip(trace.origin) {
            let now = moment(&*self.direct.clock);
            traces.take(Traced::Accepted(Box::new(Accepted {
                origin,
                function: arn,
                qualifier: qualifier.clone(),
                request_id,
                received: begun,
                enqueued: begun,
                ended: now.monotonic,
                error: accepted.as_ref().err().map(ToString::to_string),
                now,
            })));
        }
        accepted.map_err(|error| Failure::temporary(error.to_string()))
    }
}

type Key = (FunctionArn, RequestId);

/// Timelines of the events whose callers asked for them.
#[derive(Default)]
pub struct Timelines(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    timelines: HashMap<Key, Followed>,
    /// The oldest first.
    order: VecDeque<Key>,
}

#[derive(Default)]
struct Followed {
    timeline: Timeline,
    attempts: u32,
    /// The last attempt has its outcome, or there was none and will be none.
    settled: bool,
}

impl Timelines {
    fn begin(&self, key: Key, received: Duration) {
        let mut kept = self.0.lock();
        if kept.order.len() == TIMELINES
            && let Some(oldest) = kept.order.pop_front()
        {
            kept.timelines.remove(&oldest);
        }
        let mut timeline = Timeline::default();
        timeline.mark(Step::Received, received);
        if kept.timelines.insert(key.clone(), Followed { timeline, ..Followed::default() }).is_none() {
            kept.order.push_back(key);
        }
    }

    /// A poller may have been faster: while an event is being synced to disk, it may run already.
    fn queued(&self, key: &Key, at: Duration) {
        if let Some(followed) = self.0.lock().timelines.get_mut(key) {
            followed.timeline.mark_beside(Step::Queued, at);
        }
    }

    fn get(&self, key: &Key) -> Option<Timeline> {
        self.0.lock().timelines.get(key).map(|followed| followed.timeline.clone())
    }

    /// After an attempt, with everything until then.
    fn attempted(&self, key: &Key, mut timeline: Timeline) {
        if let Some(followed) = self.0.lock().timelines.get_mut(key) {
            if let (Some(at), None) = (followed.timeline.at(Step::Queued), timeline.at(Step::Queued)) {
                timeline.mark_beside(Step::Queued, at);
            }
            let attempts = followed.attempts + 1;
            *followed = Followed { timeline, attempts, settled: false };
        }
    }

    fn settled(&self, key: &Key, now: impl FnOnce() -> Duration, how: &str) {
        if let Some(followed) = self.0.lock().timelines.get_mut(key) {
            followed.timeline.note(Step::Settled, now(), how);
            followed.settled = true;
        }
    }

    fn show(&self, key: &Key) -> Option<ports::EventTimeline> {
        let kept = self.0.lock();
        let Followed { timeline, attempts, settled } = kept.timelines.get(key)?;
        Some(ports::EventTimeline { json: timeline_json(timeline), attempts: *attempts, settled: *settled })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u128) -> Key {
        let function = FunctionArn { region: "us-east-1".into(), account: AccountId::local(), name: "f".into() };
        (function, RequestId(Uuid::from_u128(n)))
    }

    #[test]
    fn timelines_are_kept_for_the_last_events() {
        let timelines = Timelines::default();
        for n in 0..=TIMELINES as u128 {
            timelines.begin(key(n), Duration::from_secs(1));
        }
        assert!(timelines.get(&key(0)).is_none());
        timelines.queued(&key(1), Duration::from_millis(1500));
        let shown = timelines.show(&key(1)).unwrap();
        assert_eq!(shown.json, r#"[{"step":"received","us":0},{"step":"queued","us":500000}]"#);
        assert_eq!(shown.attempts, 0);
        assert!(!shown.settled);
        timelines.attempted(&key(1), Timeline::default());
        timelines.settled(&key(1), || Duration::from_secs(2), "again in 60 s");
        let shown = timelines.show(&key(1)).unwrap();
        assert_eq!((shown.attempts, shown.settled), (1, true));
        // An attempt may have begun before the event's caller was answered.
        assert_eq!(shown.json, r#"[{"step":"queued","us":0},{"step":"settled","us":500000,"note":"again in 60 s"}]"#);
        timelines.attempted(&key(0), Timeline::default());
        assert!(timelines.show(&key(0)).is_none());
    }
}
