//! Why a sandbox has no place.

use std::fmt;

/// Why no worker admits the sandbox; displays as a sentence for the caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoCapacity {
    /// What was asked for.
    pub memory_mb: u32,
    /// Workers looked at.
    pub workers: usize,
    /// Of these, take no new sandboxes: draining or cordoned.
    pub draining: usize,
    /// Of these, have no free slot.
    pub without_slot: usize,
    /// The most memory that a worker with a free slot has left, in MB.
    pub largest_free_mb: u64,
    /// The most memory that a worker which takes sandboxes has in all, in MB.
    pub largest_worker_mb: u64,
}

impl NoCapacity {
    /// Whether the sandbox would fit on some worker were all others gone from it: making room can help.
    pub fn could_ever_fit(&self) -> bool {
        self.draining < self.workers && u64::from(self.memory_mb) <= self.largest_worker_mb
    }
}

impl fmt::Display for NoCapacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory_mb, workers, draining, without_slot, largest_free_mb, largest_worker_mb } = self;
        let open = workers - draining;
        if *workers == 0 {
            f.write_str("there is no worker")
        } else if open == 0 {
            write!(f, "all {workers} workers are draining or cordoned")
        } else if !self.could_ever_fit() {
            write!(
                f,
                "the function needs {memory_mb} MB and the largest worker has {largest_worker_mb} MB for sandboxes; \
                 lower MemorySize or give the worker more memory"
            )
        } else if *without_slot == open {
            write!(
                f,
                "every slot is taken ({open} of {workers} workers take sandboxes); raise the slots or add a worker"
            )
        } else {
            write!(
                f,
                "the function needs {memory_mb} MB and at most {largest_free_mb} MB are free on one worker \
                 ({workers} workers, {draining} draining or cordoned, {without_slot} without a free slot)"
            )
        }
    }
}
