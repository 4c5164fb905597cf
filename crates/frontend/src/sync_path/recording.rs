//! What is written down of an invocation whose trace is sampled, while it runs.

use std::sync::Arc;

use domain::trace::{Assigned, Moment, Origin, Ran, Traced, Try, with_parent};
use domain::{Clock, Lease, Timeline, WorkerError};

use super::{Failure, Invocation};

/// One invocation, and each sandbox that was tried for it.
pub struct Recording {
    origin: Origin,
    tries: Vec<Try>,
}

impl Recording {
    pub fn new(origin: Origin) -> Self {
        Self { origin, tries: Vec::with_capacity(1) }
    }

    /// A sandbox is asked for.
    pub fn asks(&mut self, clock: &dyn Clock) {
        let number = self.tries.len() as u64;
        let now = clock.monotonic();
        self.tries.push(Try {
            began: now,
            assigned: None,
            ended: now,
            invoke: self.origin.span.child("invoke", number),
            marks: Timeline::default(),
            error: None,
        });
    }

    /// There is one. Returns the trace as the function gets it: what it does is part of this try.
    pub fn assigned(&mut self, lease: &Lease, trace: &str, clock: &dyn Clock) -> String {
        let Some(attempt) = self.tries.last_mut() else { return trace.to_owned() };
        attempt.assigned = Some(Assigned {
            at: clock.monotonic(),
            cold: lease.cold,
            waited: lease.waited,
            worker: lease.worker.id().clone(),
            manager: lease.manager.clone(),
            marks: lease.timeline.clone(),
        });
        with_parent(trace, attempt.invoke)
    }

    /// The function did not get it.
    pub fn lost(&mut self, error: &WorkerError, clock: &dyn Clock) {
        if let Some(attempt) = self.tries.last_mut() {
            attempt.ended = clock.monotonic();
            attempt.error = Some(error.to_string());
        }
    }

    /// It is over.
    pub fn end(mut self, invocation: &Invocation, ran: &Result<super::Ran, Failure>, clock: &dyn Clock) -> Traced {
        let now = Moment { monotonic: clock.monotonic(), wall: clock.wall() };
        let error = match ran {
            Ok((outcome, ..)) => outcome.function_error.map(|_| {
                // The worker's note has the function's own type of it.
                let marks = outcome.timeline.marks.iter().rev();
                let note = marks.map(|mark| &mark.note).find(|note| !note.is_empty());
                note.map_or_else(|| "Unhandled".to_owned(), Clone::clone)
            }),
            Err(failure) => Some(failure.to_api_error().code.name().to_owned()),
        };
        if let Some(attempt) = self.tries.last_mut() {
            match ran {
                Ok((outcome, ..)) => {
                    attempt.ended = now.monotonic;
                    attempt.marks = outcome.timeline.clone();
                }
                // What was lost has its own words and time.
                Err(Failure::Assign(refused)) if attempt.error.is_none() => {
                    attempt.ended = now.monotonic;
                    attempt.error = Some(refused.to_string());
                }
                Err(_) => {}
            }
        }
        Traced::Ran(Box::new(Ran {
            origin: self.origin,
            version: Arc::clone(&invocation.assign.version),
            invoked_arn: invocation.request.invoked_arn.clone(),
            request_id: invocation.request.request_id,
            began: invocation.begun,
            tries: self.tries,
            ended: now.monotonic,
            error,
            now,
        }))
    }
}
