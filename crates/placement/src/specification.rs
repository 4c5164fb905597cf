//! The decision, as it is meant.

use std::cmp::Reverse;
use std::collections::HashMap;

use domain::WorkerReport;

use crate::cost::{Candidate, LOOKED_AT, admits, free_mb, level, size};
use crate::{Decision, NoCapacity, PlaceRequest, WorkerView};

/// Which worker takes a new sandbox, and why. Deterministic; the order of `workers` does not matter.
pub fn place(workers: &[WorkerView], request: &PlaceRequest) -> Decision {
    let memory_mb = request.memory_mb;
    let mut admitting: Vec<_> = workers.iter().enumerate().filter(|(_, w)| admits(&w.report, memory_mb)).collect();
    // As many as are looked at in any case need no order.
    if admitting.len() > LOOKED_AT {
        admitting.sort_by_cached_key(|(_, w)| (level(&w.report), Reverse(free_mb(&w.report)), w.report.worker.clone()));
    }
    let mut of_size: HashMap<u32, usize> = HashMap::new();
    let candidates: Vec<_> = admitting
        .into_iter()
        .filter(|(_, w)| {
            let looked_at = of_size.entry(size(&w.report)).or_default();
            *looked_at += 1;
            *looked_at <= LOOKED_AT || w.has_package
        })
        .map(|(at, w)| Candidate::new(at, &w.report, memory_mb, w.has_package, w.same_function))
        .collect();
    match Candidate::choose(&candidates, workers.len()) {
        Some((worker, reason)) => Decision::Place { worker, reason },
        None => Decision::NoCapacity(explain(workers.iter().map(|w| &w.report), memory_mb)),
    }
}

/// Why none of them takes a sandbox of `memory_mb`.
pub fn explain<'a>(workers: impl Iterator<Item = &'a WorkerReport> + Clone, memory_mb: u32) -> NoCapacity {
    let open = || workers.clone().filter(|r| !r.draining);
    let with_slot = || open().filter(|r| r.slots_used < r.slots);
    let all = workers.clone().count();
    NoCapacity {
        memory_mb,
        workers: all,
        draining: all - open().count(),
        without_slot: open().count() - with_slot().count(),
        largest_free_mb: with_slot().map(free_mb).max().unwrap_or(0),
        largest_worker_mb: open().filter(|r| r.slots > 0).map(|r| r.memory_mb).max().unwrap_or(0),
    }
}
