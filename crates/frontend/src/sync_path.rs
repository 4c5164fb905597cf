//! The synchronous path behind the API: assign → invoke. Invoke takes it for its caller, the pollers for an event.

use std::sync::Arc;
use std::time::Duration;

use domain::trace::{Origin, Traces};
use domain::{
    AssignError, AssignRequest, Clock, InvokeOutcome, InvokeRequest, Step, Timeline, WorkerError, WorkerManager,
};
use lambda_api::{ApiError, ErrorCode};

use crate::metrics::Metrics;
use journal::{Entry, Journal};
use recording::Recording;

mod journal;
mod recording;

/// When one sandbox after the other dies, or its worker stops, before the payload reached the function: how long to wait before the
/// next is tried. Those of a fleet in which managers take over from each other are refused until the new view is with all.
const PAUSES_MS: [u64; 5] = [0, 0, 30, 100, 300];

/// How many may be started in vain for one invocation.
const COLDS: usize = 3;

/// Runs functions, and counts and logs how that went. Cheap to clone.
#[derive(Clone)]
pub struct SyncPath(Arc<Parts>);

struct Parts {
    manager: Arc<dyn WorkerManager>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    journal: Arc<Journal>,
    traces: Option<Arc<dyn Traces>>,
}

/// A valid request to run a function.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// For the worker.
    pub request: InvokeRequest,
    /// For the manager.
    pub assign: AssignRequest,
    /// When the work on it began, by the clock of this process; for the metrics.
    pub begun: Duration,
    /// What happened before; its first mark is the beginning of the timeline.
    pub before: Timeline,
    /// Whether [`Done::timeline`] is wanted.
    pub show_timeline: bool,
    /// Where it belongs in a trace that is sampled.
    pub origin: Option<Box<Origin>>,
}

/// What became of it.
#[derive(Clone, Debug)]
pub struct Done {
    /// The function's answer; its marks are in the timeline.
    pub outcome: InvokeOutcome,
    /// All marks, if wanted.
    pub timeline: Option<Timeline>,
}

/// An answer, the lease's marks, and whether it was a cold start.
type Ran = (InvokeOutcome, Timeline, bool);

/// Why a function did not run.
#[derive(Debug)]
pub enum Failure {
    /// There was no sandbox for it.
    Assign(AssignError),
    /// There was one, but it came to nothing.
    Worker(WorkerError),
}

impl SyncPath {
    /// `clock` is that of the other parts' timelines; `metrics` are the Frontend's.
    pub fn new(manager: Arc<dyn WorkerManager>, clock: Arc<dyn Clock>, metrics: Metrics) -> Self {
        Self::with_traces(manager, clock, metrics, None)
    }

    /// The same; `traces` take those that are sampled.
    pub fn with_traces(
        manager: Arc<dyn WorkerManager>,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
        traces: Option<Arc<dyn Traces>>,
    ) -> Self {
        Self(Arc::new(Parts { manager, clock, metrics, journal: Arc::default(), traces }))
    }

    /// What takes traces, if anything does.
    pub fn traces(&self) -> Option<&Arc<dyn Traces>> {
        self.0.traces.as_ref()
    }

    /// Runs an invocation to its end, counts and logs it. A warm one touches no disk, no database and no lock that it
    /// shares with other functions.
    ///
    /// # Errors
    /// The function did not run. One that failed is an outcome.
    pub async fn run(&self, mut invocation: Invocation) -> Result<Done, Failure> {
        let metrics = &self.0.metrics;
        metrics.in_flight.inc();
        let clock = &*self.0.clock;
        let mut recording = invocation.origin.take().map(|origin| Box::new(Recording::new(*origin)));
        let ran = self.attempts(&invocation, recording.as_deref_mut()).await;
        metrics.in_flight.dec();
        if let (Some(traces), Some(recording)) = (self.traces(), recording) {
            traces.take(recording.end(&invocation, &ran, clock));
        }
        let (mut outcome, lease_timeline, cold) = ran.inspect_err(|failure| self.log_failure(&invocation, failure))?;
        let latency = self.0.clock.monotonic().saturating_sub(invocation.begun);
        if cold { &metrics.cold } else { &metrics.warm }.observe(latency);
        let failed = outcome.function_error.is_some();
        if failed {
            metrics.function_errors.inc();
        }
        let logged = Journal::wanted();
        let timeline = (invocation.show_timeline || logged).then(|| {
            let mut timeline = invocation.before;
            timeline.append(lease_timeline);
            timeline.append(std::mem::take(&mut outcome.timeline));
            timeline
        });
        let shown = timeline.as_ref().filter(|_| invocation.show_timeline).cloned();
        if let Some(timeline) = timeline.filter(|_| logged) {
            let (version, request_id) = (invocation.assign.version, invocation.request.request_id);
            self.0.journal.add(Entry { request_id, version, cold, failed, latency, timeline });
        }
        Ok(Done { outcome, timeline: shown })
    }

    /// Gets a sandbox and sends it the payload; with another one if the first was lost before the function saw it.
    /// Also says whether it was a cold start.
    async fn attempts(&self, invocation: &Invocation, mut recording: Option<&mut Recording>) -> Result<Ran, Failure> {
        let clock = &*self.0.clock;
        let mut colds = 0;
        let mut pauses = PAUSES_MS.into_iter().map(Duration::from_millis);
        loop {
            if let Some(recording) = &mut recording {
                recording.asks(clock);
            }
            let failed = match self.0.manager.assign(invocation.assign.clone()).await {
                Err(AssignError::Worker(error)) => error,
                Err(error) => return Err(Failure::Assign(error)),
                // From here on the worker ends the lease. Nothing is awaited in between, so none is left unused.
                Ok(lease) => {
                    let mut request = invocation.request.clone();
                    if let Some(recording) = &mut recording {
                        request.trace_id = recording.assigned(&lease, &request.trace_id, clock);
                    }
                    match lease.worker.invoke(lease.sandbox, request).await {
                        Ok(outcome) => return Ok((outcome, lease.timeline, lease.cold)),
                        Err(error) => {
                            colds += usize::from(lease.cold);
                            if let WorkerError::Unreachable { worker, .. } = &error {
                                self.0.manager.unreachable(worker);
                            }
                            error
                        }
                    }
                }
            };
            if let Some(recording) = &mut recording {
                recording.lost(&failed, clock);
            }
            let again = failed.retryable() && colds < COLDS;
            let Some(pause) = pauses.next().filter(|_| again) else { return Err(Failure::Worker(failed)) };
            tracing::debug!(request_id = %invocation.request.request_id, error = %failed, "trying another sandbox");
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
    }

    fn log_failure(&self, invocation: &Invocation, failure: &Failure) {
        let (request_id, function) = (invocation.request.request_id, &invocation.assign.version.name);
        match failure {
            Failure::Assign(AssignError::Throttled(reason)) => self.0.metrics.throttled(reason.as_str()),
            Failure::Assign(AssignError::NoCapacity(cause)) => {
                tracing::warn!(%request_id, function, cause, "no worker has room");
            }
            Failure::Assign(AssignError::NotOwner(cause)) => {
                tracing::error!(%request_id, function, cause, "no worker manager was found");
            }
            Failure::Worker(error) | Failure::Assign(AssignError::Worker(error)) => {
                tracing::error!(%request_id, function, %error, "invocation failed");
            }
        }
    }
}

impl Failure {
    /// What the caller of the invocation gets.
    pub fn to_api_error(&self) -> ApiError {
        match self {
            Self::Assign(AssignError::Throttled(reason)) => {
                ApiError::new(ErrorCode::TooManyRequestsException, "Rate Exceeded.").with_reason(reason.as_str())
            }
            Self::Assign(AssignError::NoCapacity(cause)) => {
                // Not a throttle: no limit that the caller set or could raise was reached, and a 429 would look as if
                // one was. As a 503 with Retry-After, SDKs and proxies try again.
                let message = format!("No worker has room for another sandbox: {cause}");
                ApiError::new(ErrorCode::ServiceUnavailableException, message).with_retry_after(1)
            }
            Self::Assign(AssignError::NotOwner(cause)) => {
                let message = format!("No worker manager answers: {cause}");
                ApiError::new(ErrorCode::ServiceUnavailableException, message).with_retry_after(1)
            }
            Self::Worker(error) | Self::Assign(AssignError::Worker(error)) => {
                let code = match error {
                    WorkerError::Package(_) => ErrorCode::InvalidZipFileException,
                    WorkerError::Runtime(_) => ErrorCode::InvalidRuntimeException,
                    WorkerError::Restore(_) => ErrorCode::SnapStartException,
                    WorkerError::RestoreTimeout(_) => ErrorCode::SnapStartTimeoutException,
                    WorkerError::Image(_)
                    | WorkerError::Sandbox(_)
                    | WorkerError::Gone(_)
                    | WorkerError::Busy(_)
                    | WorkerError::Full(_)
                    | WorkerError::Unreachable { .. }
                    | WorkerError::Stopping => ErrorCode::ServiceException,
                };
                ApiError::new(code, format!("Lambda was unable to run the function: {error}"))
            }
        }
    }
}

/// `[{"step":"received","us":0},…]`: microseconds since the first mark, in the order of the marks.
pub fn timeline_json(timeline: &Timeline) -> String {
    #[derive(serde::Serialize)]
    struct Entry<'a> {
        step: Step,
        us: u64,
        #[serde(skip_serializing_if = "str::is_empty")]
        note: &'a str,
    }
    let start = timeline.marks.first().map_or(Duration::ZERO, |mark| mark.at);
    let entries: Vec<_> = timeline
        .marks
        .iter()
        .map(|mark| Entry { step: mark.step, us: mark.at.saturating_sub(start).as_micros() as u64, note: &mark.note })
        .collect();
    serde_json::to_string(&entries).expect("marks always become JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeline_is_compact_json_of_offsets() {
        let mut timeline = Timeline::default();
        timeline.mark(Step::Received, Duration::from_micros(1000));
        timeline.note(Step::Assigned, Duration::from_micros(1012), "warm");
        timeline.mark(Step::Answered, Duration::from_micros(1500));
        assert_eq!(
            timeline_json(&timeline),
            r#"[{"step":"received","us":0},{"step":"assigned","us":12,"note":"warm"},{"step":"answered","us":500}]"#
        );
    }
}
