//! `domain::AssignError`.

use domain::AssignError;

use super::fault::{fault, worker_error};
use super::words::{throttle, throttle_word};
use crate::pb;

pub(crate) fn refusal(error: &AssignError) -> pb::AssignAnswer {
    let none = pb::AssignAnswer::default();
    match error {
        AssignError::Throttled(reason) => {
            pb::AssignAnswer { refusal: "throttled".to_owned(), throttle: throttle_word(*reason).to_owned(), ..none }
        }
        AssignError::NoCapacity(text) => {
            pb::AssignAnswer { refusal: "no_capacity".to_owned(), text: text.clone(), ..none }
        }
        AssignError::NotOwner(text) => pb::AssignAnswer { refusal: "not_owner".to_owned(), text: text.clone(), ..none },
        AssignError::Worker(error) => {
            pb::AssignAnswer { refusal: "worker".to_owned(), fault: Some(fault(error)), ..none }
        }
    }
}

/// Of an answer without a lease.
pub(crate) fn assign_error(answer: pb::AssignAnswer) -> AssignError {
    match (&*answer.refusal, answer.fault) {
        ("throttled", _) => AssignError::Throttled(throttle(&answer.throttle)),
        ("not_owner", _) => AssignError::NotOwner(answer.text),
        ("worker", Some(fault)) => AssignError::Worker(worker_error(fault)),
        ("no_capacity", _) => AssignError::NoCapacity(answer.text),
        (other, _) => AssignError::NoCapacity(format!("{other}: {}", answer.text)),
    }
}
