//! What happens without a request: expiry, lost leases, death, the end.

use super::*;

/// Functions are looked at in this many turns, so that one turn stays short.
const TURNS: usize = 8;
/// How long the last shutdowns may take after [`Manager::stop`] has given up on busy sandboxes.
const LAST_SHUTDOWNS: Duration = Duration::from_secs(5);

impl Manager {
    /// Expires idle and old sandboxes, takes lost leases back, forgets unused functions. Runs until the manager stops.
    ///
    /// Each function is looked at within a quarter of the idle timeout, at least every 2 s.
    pub async fn run(self) {
        let round = (self.0.config.idle_timeout / 4).clamp(Duration::from_millis(80), Duration::from_secs(2));
        let mut ticks = tokio::time::interval(round / TURNS as u32);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut turn: Vec<Arc<Function>> = Vec::new();
        let mut each = 1;
        while !self.0.is_stopping() {
            ticks.tick().await;
            if turn.is_empty() {
                self.0.fleet.refresh();
                turn = self.0.functions.lock().values().cloned().collect();
                each = turn.len().div_ceil(TURNS).max(1);
            }
            for function in turn.drain(turn.len().saturating_sub(each)..) {
                self.0.look_after(&function);
            }
        }
    }

    /// Takes no more requests, waits until busy sandboxes are done, for at most `limit`, and shuts every sandbox down.
    pub async fn stop(&self, limit: Duration) {
        let inner = &self.0;
        inner.stopping.store(true, Ordering::Release);
        inner.for_each_function(Pool::stop);
        if tokio::time::timeout(limit, inner.fleet.empty()).await.is_ok() {
            return;
        }
        inner.for_each_function(Pool::abandon);
        if tokio::time::timeout(LAST_SHUTDOWNS, inner.fleet.empty()).await.is_err() {
            tracing::warn!("sandboxes were still going down {LAST_SHUTDOWNS:?} after they were told to");
        }
    }
}

impl Inner {
    fn for_each_function(self: &Arc<Self>, event: impl Fn(&mut Pool, &mut Vec<Action>)) {
        let functions: Vec<_> = self.functions.lock().values().cloned().collect();
        for function in functions {
            self.with(&function, |pool, _, actions| event(pool, actions));
        }
    }

    fn look_after(self: &Arc<Self>, function: &Arc<Function>) {
        let overdue = self.with(function, |pool, now, actions| {
            pool.expire(now, actions);
            pool.overdue_leases(now)
        });
        for lease in overdue {
            let (inner, function) = (Arc::clone(self), Arc::clone(function));
            // Beside the rest: the worker may be in another process.
            self.runtime.spawn(async move {
                if inner.has_left(lease.worker.id()) {
                    tracing::warn!(sandbox = %lease.sandbox, function = %function.arn, "a lease went with its worker");
                    inner.dead(lease.sandbox);
                } else if !lease.worker.invoking(lease.sandbox).await {
                    tracing::warn!(sandbox = %lease.sandbox, function = %function.arn, "a lease was never used; taken back");
                    inner.with(&function, |pool, now, actions| pool.take_back(now, lease.sandbox, lease.since, actions));
                }
            });
        }
        // The map first, as where functions are found: nobody finds this one once it is closed.
        let mut functions = self.functions.lock();
        if self.with(function, |pool, now, _| pool.close_if_unused(now)) {
            functions.remove(&function.arn);
        }
    }

    pub(super) fn dead(self: &Arc<Self>, sandbox: SandboxId) {
        let Some(function) = self.sandboxes.get(&sandbox) else { return };
        if self.with(&function, |pool, now, actions| pool.dead(now, sandbox, actions)) {
            self.sandboxes.remove(&sandbox);
            self.fleet.gone(sandbox);
        }
    }
}
