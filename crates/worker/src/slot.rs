//! One sandbox of this worker: the state machine with the IO that it decides on.
//!
//! All that is quick happens under the slot's own lock, in the task that brought the event: the connection of the
//! runtime, or the caller of `invoke`. So the event of a warm invocation goes from the caller straight to the task that
//! waits in `next`. What takes time (starting, killing) is queued for the slot's driver task, which runs one operation
//! after the other and keeps the timer; a warm invocation does not wake it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use domain::{
    Clock, FunctionVersion, InvokeOutcome, InvokeRequest, LogType, SandboxId, SlotEvents, SlotPhase, Step, Timeline,
    WorkerError,
};
use parking_lot::Mutex;
use sandbox::{Command, ProcessId, Sandbox, Signal};
use tokio::sync::{Notify, oneshot, watch};
use uuid::Uuid;

use crate::config::Config;
use crate::lines::Lines;
use crate::logs::LogStore;
use crate::machine::{Abort, Action, Answer, ApiError, InitFailure, Machine, Refused, Registration, Ticket};
use crate::metrics::Metrics;
use crate::output::Output;
use crate::slot_log::{LogQueue, QUEUE, SlotLog};

mod driver;
mod journal;
mod restore;

/// What all slots of a worker share.
pub(crate) struct Host {
    pub config: Config,
    pub clock: Arc<dyn Clock>,
    pub events: OnceLock<Arc<dyn SlotEvents>>,
    pub metrics: Metrics,
    pub logs: LogStore,
}

/// How the processes of a sandbox are started.
pub(crate) struct Programs {
    /// Or the words of `Runtime.InvalidEntrypoint`.
    pub runtime: Result<Command, String>,
    /// Environment of extensions.
    pub extension_env: Vec<(String, String)>,
}

/// An invocation as the runtime's `next` gets it.
#[derive(Debug)]
pub(crate) struct NextEvent {
    pub request: InvokeRequest,
    pub attempt: Uuid,
    pub deadline_ms: u64,
}

/// Takes events for one sandbox and carries out what the state machine decides.
pub(crate) struct Slot {
    id: SandboxId,
    version: Arc<FunctionVersion>,
    host: Arc<Host>,
    sandbox: Arc<dyn Sandbox>,
    programs: Programs,
    lines: Lines,
    core: Mutex<Core>,
    /// Taken while `core` is held, or alone; never the other way round.
    log: Mutex<SlotLog>,
    wake: Notify,
    /// Whether an invocation is accepted and not over; outside of the lock, as the manager asks under locks of its own.
    invoking: AtomicBool,
    gone: watch::Sender<bool>,
}

struct Core {
    machine: Machine,
    /// Room for the machine's actions, empty between two events.
    actions: Vec<Action>,
    operations: VecDeque<Operation>,
    /// Until when the driver sleeps at most; zero while it is awake or was woken.
    armed: Duration,
    state: &'static str,
    runtime: Option<oneshot::Sender<NextEvent>>,
    /// Waits in `restore/next`.
    restore: Option<oneshot::Sender<()>>,
    extensions: HashMap<Uuid, Seat>,
    current: Option<Current>,
    init: Option<oneshot::Sender<Result<(), InitFailure>>>,
    restored: Option<oneshot::Sender<Result<(), InitFailure>>>,
    outputs: Vec<Arc<Output>>,
    queue: LogQueue,
    /// Set when the runtime process runs for the first time.
    runtime_started: Option<Duration>,
}

/// Work for the driver.
enum Operation {
    StartExtension { epoch: u32, name: String },
    StartRuntime { epoch: u32 },
    Signal(ProcessId, Signal),
    KillAll { epoch: u32 },
    Destroy,
}

/// Where an extension waits, or finds its events when it comes.
#[derive(Default)]
struct Seat {
    waiter: Option<oneshot::Sender<Bytes>>,
    queued: VecDeque<Bytes>,
}

struct Current {
    request: InvokeRequest,
    attempt: Uuid,
    reply: Option<oneshot::Sender<Result<InvokeOutcome, WorkerError>>>,
    timeline: Timeline,
    ended: bool,
}

impl Slot {
    pub(crate) fn new(
        version: Arc<FunctionVersion>,
        host: Arc<Host>,
        sandbox: Arc<dyn Sandbox>,
        programs: Programs,
        lines: Lines,
        machine: Machine,
        log: SlotLog,
    ) -> Self {
        let state = machine.state();
        host.metrics.state(None, Some(state));
        let core = Core {
            machine,
            actions: Vec::new(),
            operations: VecDeque::new(),
            armed: Duration::ZERO,
            state,
            runtime: None,
            restore: None,
            extensions: HashMap::new(),
            current: None,
            init: None,
            restored: None,
            outputs: Vec::new(),
            queue: LogQueue::default(),
            runtime_started: None,
        };
        Self {
            id: sandbox.id(),
            version,
            host,
            sandbox,
            programs,
            lines,
            core: Mutex::new(core),
            log: Mutex::new(log),
            wake: Notify::new(),
            invoking: AtomicBool::new(false),
            gone: watch::Sender::new(false),
        }
    }

    pub(crate) fn id(&self) -> SandboxId {
        self.id
    }

    pub(crate) fn version(&self) -> &Arc<FunctionVersion> {
        &self.version
    }

    fn now(&self) -> Duration {
        self.host.clock.monotonic()
    }

    /// Milliseconds since 1970 of a monotonic time.
    fn epoch_ms(&self, at: Duration) -> u64 {
        let ahead = at.saturating_sub(self.now());
        let wall = self.host.clock.wall().duration_since(UNIX_EPOCH).unwrap_or_default() + ahead;
        u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)
    }

    /// Runs the initial Init. Of a sandbox that has ended already nothing comes: the receiver sees the sender gone.
    pub(crate) fn start(&self) -> oneshot::Receiver<Result<(), InitFailure>> {
        let (done, wait) = oneshot::channel();
        let mut core = self.core.lock();
        if !core.machine.is_ending() {
            core.init = Some(done);
            core.machine.start(self.now());
            self.settle(&mut core);
        }
        wait
    }

    /// When the runtime's process was started.
    pub(crate) fn runtime_started(&self) -> Option<Duration> {
        self.core.lock().runtime_started
    }

    pub(crate) fn invoke(
        &self,
        request: InvokeRequest,
    ) -> Result<oneshot::Receiver<Result<InvokeOutcome, WorkerError>>, WorkerError> {
        let (reply, wait) = oneshot::channel();
        let ticket =
            Ticket { request: request.request_id, attempt: Uuid::new_v4(), tail: request.log_type == LogType::Tail };
        let mut core = self.core.lock();
        if ticket.tail {
            // What came before is not part of it.
            self.write_log_now(&mut core);
            self.log.lock().begin_tail();
        }
        core.machine.invoke(self.now(), ticket).map_err(|refused| match refused {
            Refused::Gone => WorkerError::Gone(self.id),
            Refused::Busy => WorkerError::Busy(self.id),
        })?;
        core.current = Some(Current {
            request,
            attempt: ticket.attempt,
            reply: Some(reply),
            timeline: Timeline::default(),
            ended: false,
        });
        self.settle(&mut core);
        Ok(wait)
    }

    /// Takes the sandbox down; returns when nothing is left of it.
    pub(crate) async fn shutdown(&self, reason: domain::RetireReason) {
        {
            let mut core = self.core.lock();
            core.machine.shutdown(self.now(), reason);
            self.settle(&mut core);
        }
        self.wait_gone().await;
    }

    pub(crate) async fn wait_gone(&self) {
        // The sender lives as long as `self`.
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
    }

    /// Called by the driver's owner when it has ended and the slot can no longer be found.
    pub(crate) fn set_gone(&self) {
        self.gone.send_replace(true);
    }

    /// See [`Machine::phase`].
    pub(crate) fn phase(&self) -> Option<SlotPhase> {
        self.core.lock().machine.phase()
    }

    /// Whether it serves no more.
    pub(crate) fn is_gone_or_going(&self) -> bool {
        self.core.lock().machine.is_ending()
    }

    /// Whether an invocation runs, or an Init.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self.core.lock().machine.state(), "busy" | "init")
    }

    /// Whether an invocation was accepted and is not over. Takes no lock.
    pub(crate) fn is_invoking(&self) -> bool {
        self.invoking.load(Ordering::Relaxed)
    }

    // === the Runtime API ===

    pub(crate) fn runtime_next(&self) -> Result<oneshot::Receiver<NextEvent>, ApiError> {
        let (waiter, wait) = oneshot::channel();
        let mut core = self.core.lock();
        self.drain(&mut core);
        // Before the machine hears of it, which may hand over an event at once.
        let before = core.runtime.replace(waiter);
        if let Err(error) = core.machine.runtime_next(self.now()) {
            core.runtime = before;
            return Err(error);
        }
        self.settle(&mut core);
        Ok(wait)
    }

    pub(crate) fn may_answer(&self, request: &str, attempt: Option<&str>, to: &'static str) -> Result<(), ApiError> {
        self.core.lock().machine.may_answer(request, attempt, to)
    }

    pub(crate) fn runtime_answer(&self, request: &str, attempt: Option<&str>, answer: Answer) -> Result<(), ApiError> {
        let mut core = self.core.lock();
        let result = core.machine.runtime_answer(self.now(), request, attempt, answer);
        self.settle(&mut core);
        result
    }

    pub(crate) fn runtime_init_error(&self, kind: String, payload: Bytes) -> Result<(), ApiError> {
        let mut core = self.core.lock();
        self.drain(&mut core);
        let result = core.machine.runtime_init_error(self.now(), kind, payload);
        self.settle(&mut core);
        result
    }

    // === the Extensions API ===

    pub(crate) fn extension_register(&self, registration: Registration) -> Result<Uuid, ApiError> {
        let id = Uuid::new_v4();
        let mut core = self.core.lock();
        core.machine.extension_register(self.now(), id, registration)?;
        core.extensions.insert(id, Seat::default());
        self.settle(&mut core);
        Ok(id)
    }

    pub(crate) fn extension_next(&self, id: Uuid) -> Result<oneshot::Receiver<Bytes>, ApiError> {
        let (waiter, wait) = oneshot::channel();
        let mut core = self.core.lock();
        self.drain(&mut core);
        let seat = core.extensions.entry(id).or_default();
        let queued = seat.queued.pop_front();
        match queued {
            // It works on an event that it has not seen yet, as its earlier connection was gone.
            Some(event) => drop(waiter.send(event)),
            None => {
                seat.waiter = Some(waiter);
                let result = core.machine.extension_next(self.now(), id);
                if let Err(error) = result {
                    core.extensions.remove(&id);
                    return Err(error);
                }
                self.settle(&mut core);
            }
        }
        Ok(wait)
    }

    pub(crate) fn extension_error(&self, id: Uuid, init: bool, reported: String) -> Result<(), ApiError> {
        let mut core = self.core.lock();
        self.drain(&mut core);
        let result = core.machine.extension_error(self.now(), id, init, reported);
        self.settle(&mut core);
        result
    }

    // === carrying out decisions ===

    /// Carries out what the machine decided, and wakes the driver if it has to do something or to sleep shorter.
    fn settle(&self, core: &mut Core) {
        let mut actions = std::mem::take(&mut core.actions);
        loop {
            actions = core.machine.take_actions(actions);
            if actions.is_empty() {
                break;
            }
            for action in actions.drain(..) {
                self.perform(core, action);
            }
        }
        core.actions = actions;
        let state = core.machine.state();
        if state != core.state {
            self.host.metrics.state(Some(core.state), Some(state));
            core.state = state;
        }
        self.invoking.store(core.current.is_some(), Ordering::Relaxed);
        if core.queue.len() > QUEUE {
            self.write_log_now(core);
        }
        let sooner = core.deadline().is_some_and(|deadline| deadline < core.armed);
        if sooner || !core.operations.is_empty() {
            core.armed = Duration::ZERO;
            self.wake.notify_one();
        }
    }

    fn perform(&self, core: &mut Core, action: Action) {
        match action {
            Action::StartExtension { epoch, name } => {
                core.operations.push_back(Operation::StartExtension { epoch, name });
            }
            Action::StartRuntime { epoch } => core.operations.push_back(Operation::StartRuntime { epoch }),
            Action::Signal(process, signal) => core.operations.push_back(Operation::Signal(process, signal)),
            Action::KillAll { epoch } => core.operations.push_back(Operation::KillAll { epoch }),
            Action::Destroy => core.operations.push_back(Operation::Destroy),
            Action::HandToRuntime { deadline } => self.hand_to_runtime(core, deadline),
            Action::HandToExtension { id, deadline } => {
                if let Some(current) = &core.current {
                    let event = self.invoke_event(current, deadline);
                    core.seat(id, event);
                }
            }
            Action::ShutdownExtension { id, reason, deadline } => {
                let reason = match reason {
                    domain::RetireReason::Spindown => "spindown",
                    domain::RetireReason::Timeout => "timeout",
                    domain::RetireReason::Failure => "failure",
                };
                let event = serde_json::json!({
                    "eventType": "SHUTDOWN",
                    "shutdownReason": reason,
                    "deadlineMs": self.epoch_ms(deadline),
                });
                core.seat(id, event.to_string().into());
            }
            Action::ReleaseRuntime => {
                // One that has hung up comes again.
                if core.restore.take().is_some_and(|waiter| waiter.send(()).is_ok()) {
                    core.machine.runtime_released();
                }
            }
            Action::Thaw => self.host_call("thaw", self.sandbox.thaw()),
            Action::Freeze => self.host_call("freeze", self.sandbox.freeze()),
            Action::Log(line) => self.log(core, line),
            Action::InitDone(result) => {
                if let Some(init) = core.init.take() {
                    // A caller that went away does not want to know.
                    let _ = init.send(result);
                }
            }
            Action::RestoreDone(result) => {
                if let Some(restored) = core.restored.take() {
                    let _ = restored.send(result);
                }
            }
            Action::Answer(answer) => self.answer(core, answer),
            Action::Abort(abort) => {
                let error = match abort {
                    Abort::Unseen => WorkerError::Gone(self.id),
                    Abort::Interrupted => {
                        WorkerError::Sandbox(format!("sandbox {} was shut down during the invocation", self.id))
                    }
                };
                if let Some(reply) = core.current.take().and_then(|c| c.reply) {
                    let _ = reply.send(Err(error));
                }
            }
            Action::SlotAnswered => self.tell(|events| events.answered(self.id)),
            Action::SlotIdle => self.tell(|events| events.idle(self.id)),
            Action::SlotDead(reason) => self.tell(|events| events.dead(self.id, reason)),
        }
    }

    /// Under the slot's lock, so that the manager hears of events in their order.
    fn tell(&self, event: impl FnOnce(&dyn SlotEvents)) {
        if let Some(events) = self.host.events.get() {
            event(events.as_ref());
        }
    }

    fn host_call(&self, what: &str, result: Result<(), sandbox::SandboxError>) {
        if let Err(error) = result {
            tracing::warn!(sandbox = %self.id, %error, "cannot {what} a sandbox");
        }
    }

    fn hand_to_runtime(&self, core: &mut Core, deadline: Duration) {
        let now = self.now();
        let deadline_ms = self.epoch_ms(deadline);
        let (Some(current), Some(waiter)) = (&mut core.current, core.runtime.take()) else {
            core.machine.undelivered();
            return;
        };
        let event = NextEvent { request: current.request.clone(), attempt: current.attempt, deadline_ms };
        match waiter.send(event) {
            Ok(()) => current.timeline.mark(Step::Invoked, now),
            Err(_) => core.machine.undelivered(),
        }
    }

    fn invoke_event(&self, current: &Current, deadline: Duration) -> Bytes {
        let request = &current.request;
        serde_json::json!({
            "eventType": "INVOKE",
            "deadlineMs": self.epoch_ms(deadline),
            "requestId": request.request_id,
            "invokedFunctionArn": request.invoked_arn,
            "tracing": { "type": "X-Amzn-Trace-Id", "value": request.trace_id },
        })
        .to_string()
        .into()
    }

    fn answer(&self, core: &mut Core, answer: Answer) {
        let tail = core.current.as_ref().is_some_and(|c| c.request.log_type == LogType::Tail);
        let log_tail = if tail {
            self.write_log_now(core);
            self.log.lock().take_tail()
        } else {
            None
        };
        let Some(current) = &mut core.current else { return };
        let now = self.now();
        let (payload, function_error) = match answer {
            Answer::Success(payload) => {
                current.timeline.mark(Step::Answered, now);
                (payload, None)
            }
            Answer::Failure { payload, kind } => {
                current.timeline.note(Step::Answered, now, kind);
                (payload, Some("Unhandled"))
            }
        };
        if let Some(reply) = current.reply.take() {
            let timeline = current.timeline.clone();
            // Its caller may have gone; the invocation counts all the same.
            let _ = reply.send(Ok(InvokeOutcome { payload, function_error, log_tail, timeline }));
        }
        if current.ended {
            core.current = None;
        }
    }
}

impl Core {
    /// When the driver has something to do, if nothing happens before.
    fn deadline(&self) -> Option<Duration> {
        self.machine.deadline().into_iter().chain(self.queue.due()).min()
    }

    /// Gives an event to an extension, or keeps it until it asks.
    fn seat(&mut self, id: Uuid, event: Bytes) {
        let seat = self.extensions.entry(id).or_default();
        let unsent = match seat.waiter.take() {
            Some(waiter) => waiter.send(event).err(),
            None => Some(event),
        };
        seat.queued.extend(unsent);
    }
}
