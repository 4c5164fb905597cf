//! What really happened, which no role can see, and what of it must never be.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use domain::{RequestId, SandboxId};
use parking_lot::Mutex;

use crate::clock;
use crate::log::Log;

/// An invocation takes so long at most when there is no trouble, besides the function's own time: the Frontend's patience with a
/// manager that is replaced, several times over if sandboxes die one after the other. Longer ones hang.
const LONGEST: Duration = Duration::from_secs(45);

/// What became of a request, for its caller.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Answer {
    /// The function's answer.
    Ok,
    /// The function failed, here always by the death of its sandbox.
    FunctionError,
    /// 429.
    Throttled,
    /// 503: no worker has room.
    NoRoom,
    /// 503: no manager answers.
    Unavailable,
    /// The platform failed: a worker died under it.
    ServiceError,
}

#[derive(Default)]
struct Request {
    function: usize,
    begun: Duration,
    runs: u32,
    answered: Option<(Duration, Answer)>,
    /// Its caller was cut off: the frontend is gone.
    lost: bool,
}

struct Running {
    request: RequestId,
    function: usize,
    worker: Arc<str>,
}

#[derive(Default)]
struct Inner {
    requests: BTreeMap<uuid::Uuid, Request>,
    running: BTreeMap<SandboxId, Running>,
    /// Sandboxes that there are, and where.
    sandboxes: BTreeMap<SandboxId, Arc<str>>,
    violations: Vec<String>,
    /// Reserved concurrency by function.
    reserved: Vec<Option<u32>>,
    /// Of all functions without one.
    unreserved: u32,
    /// There is room for everything at once.
    roomy: bool,
    /// Since when there is no trouble.
    calm: Option<Duration>,
    /// The most that ran at once beyond a limit, while there was trouble.
    excess: u32,
}

/// The simulation's own knowledge. Cheap to clone.
#[derive(Clone)]
pub struct Truth(Arc<Mutex<Inner>>, Log);

/// How long after the last trouble everything has to be as promised: a dead connection is found (6 s), its member is found dead
/// (3 s), what ran ends.
pub const CALM: Duration = Duration::from_secs(15);

impl Truth {
    pub(crate) fn new(log: Log, reserved: Vec<Option<u32>>, unreserved: u32, roomy: bool) -> Self {
        Self(Arc::new(Mutex::new(Inner { reserved, unreserved, roomy, ..Inner::default() })), log)
    }

    /// Something must never be, and is.
    pub fn violation(&self, what: impl fmt::Display) {
        self.1.line(format_args!("VIOLATION {what}"));
        self.0.lock().violations.push(format!("{:.3}: {what}", clock::now().as_secs_f64()));
    }

    /// What must never be, and was.
    pub fn violations(&self) -> Vec<String> {
        self.0.lock().violations.clone()
    }

    pub(crate) fn trouble(&self, is: bool) {
        self.0.lock().calm = (!is).then(clock::now);
    }

    pub(crate) fn made(&self, worker: &Arc<str>, sandbox: SandboxId) {
        self.0.lock().sandboxes.insert(sandbox, Arc::clone(worker));
    }

    pub(crate) fn gone(&self, sandbox: SandboxId) {
        self.0.lock().sandboxes.remove(&sandbox);
    }

    /// A worker's host is gone, with all that it had.
    pub(crate) fn worker_died(&self, worker: &str) {
        let mut inner = self.0.lock();
        inner.sandboxes.retain(|_, at| **at != *worker);
        inner.running.retain(|_, running| *running.worker != *worker);
    }

    /// Those that there are.
    pub(crate) fn sandboxes(&self) -> BTreeSet<SandboxId> {
        self.0.lock().sandboxes.keys().copied().collect()
    }

    pub(crate) fn asked(&self, request: RequestId, function: usize) {
        let begun = clock::now();
        self.0.lock().requests.insert(request.0, Request { function, begun, ..Request::default() });
        self.1.line(format_args!("client asks for f{function} ({request})"));
    }

    pub(crate) fn answered(&self, request: RequestId, answer: Answer) {
        let now = clock::now();
        self.1.line(format_args!("client has {answer:?} ({request})"));
        let problem = {
            let mut inner = self.0.lock();
            let (calm, roomy) = (inner.calm, inner.roomy);
            // A manager makes room by its own idle sandboxes only.
            let fine = matches!(answer, Answer::Ok | Answer::Throttled) || (answer == Answer::NoRoom && !roomy);
            let Some(known) = inner.requests.get_mut(&request.0) else { return };
            known.answered = Some((now, answer));
            let took = now - known.begun;
            if matches!(answer, Answer::Ok) && known.runs == 0 {
                Some(format!("request {request} was answered, and never ran"))
            } else if took > LONGEST {
                Some(format!("request {request} had to wait for {took:?}"))
            } else if calm.is_some_and(|since| known.begun >= since + CALM) && !fine {
                Some(format!("request {request} has {answer:?} without any trouble"))
            } else {
                None
            }
        };
        problem.into_iter().for_each(|problem| self.violation(problem));
    }

    /// The client is gone with its frontend.
    pub(crate) fn lost(&self, request: RequestId) {
        let mut inner = self.0.lock();
        if let Some(request) = inner.requests.get_mut(&request.0).filter(|request| request.answered.is_none()) {
            request.lost = true;
        }
    }

    /// Who waits for an answer.
    pub(crate) fn waiting(&self) -> Vec<RequestId> {
        let inner = self.0.lock();
        let waiting = inner.requests.iter().filter(|(_, request)| request.answered.is_none() && !request.lost);
        waiting.map(|(id, _)| RequestId(*id)).collect()
    }

    /// An invocation begins in a sandbox.
    pub(crate) fn begins(&self, worker: &Arc<str>, sandbox: SandboxId, request: RequestId) {
        self.1.line(format_args!("{worker} runs {request} in {sandbox}"));
        let mut problems = Vec::new();
        {
            let mut inner = self.0.lock();
            let inner = &mut *inner;
            let Some(known) = inner.requests.get_mut(&request.0) else { return };
            let function = known.function;
            known.runs += 1;
            if known.runs > 1 {
                problems.push(format!("request {request} ran {} times", known.runs));
            }
            if let Some((at, answer)) = known.answered {
                problems.push(format!("request {request} runs, and was answered with {answer:?} at {at:?}"));
            }
            let running = Running { request, function, worker: Arc::clone(worker) };
            if let Some(other) = inner.running.insert(sandbox, running) {
                problems.push(format!("sandbox {sandbox} has {request} beside {}", other.request));
            }
            let (counted, limit) = match inner.reserved[function] {
                Some(limit) => (inner.running.values().filter(|running| running.function == function).count(), limit),
                None => {
                    let unreserved = |running: &&Running| inner.reserved[running.function].is_none();
                    (inner.running.values().filter(unreserved).count(), inner.unreserved)
                }
            };
            let over = u32::try_from(counted).unwrap_or(u32::MAX).saturating_sub(limit);
            if over > 0 {
                inner.excess = inner.excess.max(over);
                if inner.calm.is_some_and(|since| clock::now() >= since + CALM) {
                    problems.push(format!("f{function} runs {counted} times at once, its limit is {limit}"));
                }
            }
        }
        problems.into_iter().for_each(|problem| self.violation(problem));
    }

    /// The invocation in a sandbox is over.
    pub(crate) fn ends(&self, sandbox: SandboxId) {
        self.0.lock().running.remove(&sandbox);
    }

    /// Figures of a run.
    pub(crate) fn summary(&self) -> Summary {
        let inner = self.0.lock();
        let mut answers = BTreeMap::new();
        let mut longest = Duration::ZERO;
        let mut lost = 0;
        for request in inner.requests.values() {
            match request.answered {
                Some((at, answer)) => {
                    *answers.entry(answer).or_insert(0) += 1;
                    longest = longest.max(at - request.begun);
                }
                None => lost += 1,
            }
        }
        Summary { answers, lost, longest, excess: inner.excess }
    }
}

/// What a simulation saw.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// How many requests had which answer.
    pub answers: BTreeMap<Answer, u32>,
    /// Requests whose frontend died.
    pub lost: u32,
    /// The slowest answer.
    pub longest: Duration,
    /// How far beyond a limit something ran, while there was trouble.
    pub excess: u32,
}
