//! Enumerations as words: a reader can say what it makes of one that it does not know.

use domain::timeline::Step;
use domain::{RetireReason, SlotPhase, ThrottleReason};

macro_rules! words {
    ($word:ident, $read:ident, $type:ident, { $($variant:ident = $text:literal,)+ }) => {
        pub(crate) fn $word(value: $type) -> &'static str {
            match value { $($type::$variant => $text,)+ }
        }
        pub(super) fn $read(text: &str) -> Option<$type> {
            match text { $($text => Some($type::$variant),)+ _ => None }
        }
    };
}

words!(step_word, step, Step, {
    Received = "received",
    Queued = "queued",
    Dequeued = "dequeued",
    Assigned = "assigned",
    Placed = "placed",
    PackageFetched = "package_fetched",
    SandboxCreated = "sandbox_created",
    RuntimeStarted = "runtime_started",
    InitDone = "init_done",
    Invoked = "invoked",
    Answered = "answered",
    Frozen = "frozen",
    Settled = "settled",
});

words!(phase_word, known_phase, SlotPhase, {
    Starting = "starting",
    Idle = "idle",
    Invoking = "invoking",
    Finishing = "finishing",
});

words!(reason_word, known_reason, RetireReason, {
    Spindown = "spindown",
    Timeout = "timeout",
    Failure = "failure",
});

words!(throttle_word, known_throttle, ThrottleReason, {
    Account = "ConcurrentInvocationLimitExceeded",
    Reserved = "ReservedFunctionConcurrentInvocationLimitExceeded",
    ScalingRate = "FunctionInvocationRateLimitExceeded",
});

/// One that is not known is `Invoking`: not to be used, and the worker says when that changes.
pub(crate) fn phase(text: &str) -> SlotPhase {
    known_phase(text).unwrap_or(SlotPhase::Invoking)
}

/// One that is not known is `Failure`.
pub(crate) fn reason(text: &str) -> RetireReason {
    known_reason(text).unwrap_or(RetireReason::Failure)
}

/// One that is not known is `Account`: what the caller does about it is the same.
pub(super) fn throttle(text: &str) -> ThrottleReason {
    known_throttle(text).unwrap_or(ThrottleReason::Account)
}
