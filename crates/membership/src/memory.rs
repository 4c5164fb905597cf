//! The registry of one process, and of simulations.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use domain::Clock;
use parking_lot::Mutex;
use tokio::sync::watch;
use uuid::Uuid;

use crate::ledger::{Ledger, millis};
use crate::member::{Member, MemberState};
use crate::registry::{Hold, Lease, Registry, RegistryError, check};
use crate::view::View;

/// Members in memory, gone with the process; share it by [`Arc`].
pub struct MemoryRegistry {
    clock: Arc<dyn Clock>,
    ledger: Mutex<Ledger>,
    heard: watch::Sender<u64>,
}

impl std::fmt::Debug for MemoryRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryRegistry").field("epoch", &*self.heard.borrow()).finish_non_exhaustive()
    }
}

impl MemoryRegistry {
    /// Without members. The clock's time of day is the time of all leases.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, ledger: Mutex::default(), heard: watch::Sender::new(0) }
    }

    fn with<T>(&self, call: impl FnOnce(&mut Ledger, u64) -> T) -> T {
        let now = millis(self.clock.wall().duration_since(UNIX_EPOCH).unwrap_or_default());
        let mut ledger = self.ledger.lock();
        let answer = call(&mut ledger, now);
        let epoch = ledger.epoch();
        self.heard.send_if_modified(|heard| std::mem::replace(heard, epoch) != epoch);
        answer
    }
}

#[async_trait]
impl Registry for MemoryRegistry {
    async fn join(&self, member: &Member, instance: Uuid, ttl: Duration) -> Result<Lease, RegistryError> {
        check(member, ttl)?;
        Ok(self.with(|ledger, now| ledger.join(now, member, instance, ttl)))
    }

    async fn beat(&self, lease: &Lease) -> Result<Hold, RegistryError> {
        Ok(self.with(|ledger, now| ledger.beat(now, lease)))
    }

    async fn set_state(&self, lease: &Lease, state: MemberState) -> Result<Hold, RegistryError> {
        Ok(self.with(|ledger, now| ledger.set_state(now, lease, state)))
    }

    async fn leave(&self, lease: &Lease) -> Result<(), RegistryError> {
        self.with(|ledger, now| ledger.leave(now, lease));
        Ok(())
    }

    async fn view(&self) -> Result<View, RegistryError> {
        Ok(self.with(|ledger, _| ledger.view()))
    }

    fn heard(&self) -> watch::Receiver<u64> {
        self.heard.subscribe()
    }

    fn place(&self) -> String {
        "in memory".to_owned()
    }

    async fn close(&self) {}
}
