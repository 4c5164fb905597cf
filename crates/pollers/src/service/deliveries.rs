//! How many deliveries run, by function: a target that hangs holds up neither attempts nor other functions.

use std::collections::HashMap;

use event_queue::QueueName;
use parking_lot::Mutex;

/// Deliveries of one function at once; more wait in the queue.
const PER_FUNCTION: usize = 64;

#[derive(Default)]
pub(super) struct Deliveries(Mutex<HashMap<QueueName, usize>>);

impl Deliveries {
    /// `None` if too many of this function run.
    pub(super) fn begin(&self, queue: &QueueName) -> Option<Delivery<'_>> {
        let mut running = self.0.lock();
        let count = running.entry(queue.clone()).or_default();
        if *count >= PER_FUNCTION {
            return None;
        }
        *count += 1;
        Some(Delivery { all: self, queue: queue.clone() })
    }
}

/// A running delivery; over when dropped.
pub(super) struct Delivery<'a> {
    all: &'a Deliveries,
    queue: QueueName,
}

impl Drop for Delivery<'_> {
    fn drop(&mut self) {
        let mut running = self.all.0.lock();
        if let Some(count) = running.get_mut(&self.queue) {
            *count -= 1;
            if *count == 0 {
                running.remove(&self.queue);
            }
        }
    }
}
