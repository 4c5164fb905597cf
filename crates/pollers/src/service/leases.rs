//! The leases that this process has: kept until they are settled, settled in groups.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use domain::Clock;
use event_queue::{EventQueue, Lease, LeaseId, QueueError, QueueName};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{RETRY_MAX, RETRY_MIN};

/// Most leases of one call.
const GROUP: usize = 1000;

pub(super) struct Leases {
    queue: Arc<dyn EventQueue>,
    clock: Arc<dyn Clock>,
    lease: Duration,
    state: Mutex<State>,
    acks: Notify,
    /// Held while a group of acks is on its way.
    flushing: tokio::sync::Mutex<()>,
}

struct State {
    /// Events that are prefetched or run.
    held: HashMap<LeaseId, Held>,
    /// Events that are done with.
    acks: Vec<LeaseId>,
    prolonged_at: SystemTime,
}

struct Held {
    queue: QueueName,
    /// When the lease ends, unless it is prolonged.
    until: SystemTime,
}

impl Leases {
    pub(super) fn new(queue: Arc<dyn EventQueue>, clock: Arc<dyn Clock>, lease: Duration) -> Self {
        let state = State { held: HashMap::new(), acks: Vec::new(), prolonged_at: clock.wall() };
        Self {
            queue,
            clock,
            lease,
            state: Mutex::new(state),
            acks: Notify::new(),
            flushing: tokio::sync::Mutex::new(()),
        }
    }

    pub(super) fn add(&self, leases: &[Lease]) {
        let until = self.clock.wall() + self.lease;
        let held = |lease: &Lease| (lease.id, Held { queue: lease.queue.clone(), until });
        self.state.lock().held.extend(leases.iter().map(held));
    }

    pub(super) fn idle(&self) -> bool {
        let state = self.state.lock();
        state.held.is_empty() && state.acks.is_empty()
    }

    /// Whether the event is still this process's, as far as is known.
    pub(super) fn holds(&self, lease: LeaseId) -> bool {
        self.state.lock().held.get(&lease).is_some_and(|held| self.clock.wall() < held.until)
    }

    /// Lets the lease end by itself, if it is not settled.
    pub(super) fn forget(&self, lease: LeaseId) {
        self.state.lock().held.remove(&lease);
    }

    /// The event is done with; it is acknowledged soon.
    pub(super) fn ack(&self, lease: LeaseId) {
        let mut state = self.state.lock();
        if state.held.remove(&lease).is_some() {
            state.acks.push(lease);
            self.acks.notify_one();
        }
    }

    /// Gives the event back, however often that must be tried: it is prolonged meanwhile.
    pub(super) async fn release(&self, lease: LeaseId, delay: Duration, body: Option<Bytes>) {
        let mut pause = RETRY_MIN;
        while self.holds(lease) {
            match self.queue.release(lease, delay, body.clone()).await {
                Ok(()) => break,
                Err(error) if error.retryable() => {
                    tracing::warn!(%error, "give an event back to the queue; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
                Err(error) => {
                    tracing::warn!(%error, "give an event back to the queue; it comes back when its lease ends");
                    break;
                }
            }
        }
        self.forget(lease);
    }

    /// Acknowledges in groups, until stopped.
    pub(super) async fn settle(&self, stopped: &CancellationToken) {
        let mut pause = RETRY_MIN;
        loop {
            tokio::select! {
                () = stopped.cancelled() => return,
                () = self.acks.notified() => {}
            }
            while let Err(error) = self.flush().await {
                // Whatever it is: without this, all would run again.
                if error.retryable() {
                    tracing::warn!(%error, "acknowledge events; trying again");
                } else {
                    tracing::error!(%error, "acknowledge events; trying again, and they run again if that stays so");
                }
                tokio::select! {
                    () = stopped.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(RETRY_MAX);
            }
            pause = RETRY_MIN;
        }
    }

    /// Acknowledges all that is done with.
    pub(super) async fn flush(&self) -> Result<(), QueueError> {
        let _flushing = self.flushing.lock().await;
        loop {
            let group: Vec<LeaseId> = {
                let acks = &mut self.state.lock().acks;
                let rest = acks.len().saturating_sub(GROUP);
                acks.drain(rest..).collect()
            };
            if group.is_empty() {
                return Ok(());
            }
            if let Err(error) = self.queue.ack(&group).await {
                // Behind the others: it may be this group that fails.
                self.state.lock().acks.splice(..0, group);
                return Err(error);
            }
        }
    }

    /// Prolongs all leases if a third of their time has passed. Those that were over, with their queues; they are no
    /// longer held.
    pub(super) async fn prolong(&self) -> Vec<(LeaseId, QueueName)> {
        let now = self.clock.wall();
        let leases: Vec<LeaseId> = {
            let mut state = self.state.lock();
            // A clock that was set back says nothing: prolong.
            if now.duration_since(state.prolonged_at).is_ok_and(|passed| passed < self.lease / 3) {
                return Vec::new();
            }
            state.prolonged_at = now;
            state.held.keys().chain(&state.acks).copied().collect()
        };
        let mut over = Vec::new();
        for group in leases.chunks(GROUP) {
            match self.queue.extend(group, self.lease).await {
                Ok(extended) => {
                    let extended: HashSet<LeaseId> = extended.into_iter().collect();
                    let mut state = self.state.lock();
                    for lease in group {
                        match (extended.contains(lease), state.held.get_mut(lease)) {
                            (true, Some(held)) => held.until = now + self.lease,
                            (false, Some(_)) => {
                                over.extend(state.held.remove(lease).map(|held| (*lease, held.queue)));
                            }
                            (_, None) => {}
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "prolong leases; trying again");
                    // Well before the leases end, and not at once.
                    self.state.lock().prolonged_at = now - self.lease / 3 + self.lease / 30;
                }
            }
        }
        over
    }
}
