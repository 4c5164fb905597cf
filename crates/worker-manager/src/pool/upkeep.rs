//! What time and the operator do to a pool.

use domain::ports::LEASE_LIMIT;

use super::*;
use crate::status::FunctionStatus;

/// For how long a retired version is remembered without sandboxes: requests that were resolved before the change.
const RETIRED_MEMORY: Duration = Duration::from_secs(60);

/// A lease that may have been lost by its holder.
#[derive(Debug)]
pub struct OverdueLease<W> {
    pub sandbox: SandboxId,
    pub worker: W,
    /// Identifies this lease to [`FunctionPool::take_back`].
    pub since: Duration,
}

/// A sandbox that could be given up.
#[derive(Debug)]
pub struct IdleEntry {
    pub sandbox: SandboxId,
    pub since: Duration,
}

impl<C, W: Clone> FunctionPool<C, W> {
    /// The version was replaced or deleted.
    pub fn retire(&mut self, now: Duration, key: &VersionKey, actions: &mut Vec<Action<C, W>>) {
        let Some(version) = self.versions.get_mut(key) else { return };
        version.retired.get_or_insert(now);
        let idle = version.idle.clone();
        self.evict_all(idle, actions);
        // A request that waited for one of its sandboxes has no claim any more.
        self.settle(now, actions);
    }

    /// Gives up a sandbox if it is idle; the shell then shuts it down. Returns whether it was.
    pub fn evict(&mut self, id: SandboxId) -> bool {
        let idle = matches!(self.sandboxes.get(&id).map(|s| &s.state), Some(State::Idle { .. }));
        if idle {
            self.remove(id);
        }
        idle
    }

    fn evict_all(&mut self, ids: Vec<SandboxId>, actions: &mut Vec<Action<C, W>>) {
        for sandbox in ids {
            if self.evict(sandbox) {
                actions.push(Action::Shutdown { sandbox });
            }
        }
    }

    /// Sandboxes that were idle for too long or are too old go; versions without sandboxes are forgotten.
    pub fn expire(&mut self, now: Duration, actions: &mut Vec<Action<C, W>>) {
        let Config { idle_timeout, max_age, .. } = self.config;
        let over = |s: &Sandbox<W>| match s.state {
            State::Idle { since } => now.saturating_sub(since) >= idle_timeout || now.saturating_sub(s.born) >= max_age,
            _ => false,
        };
        let mut gone: Vec<_> = self.sandboxes.iter().filter(|(_, s)| over(s)).map(|(id, _)| *id).collect();
        // Maps have no order of their own, and what is told to others has one that simulations can repeat.
        gone.sort_unstable();
        self.evict_all(gone, actions);
        self.versions.retain(|key, version| {
            let remembered = version.retired.is_some_and(|at| now.saturating_sub(at) < RETIRED_MEMORY);
            let keep = version.live > 0 || remembered;
            if !keep {
                actions.push(Action::Forget { version: key.clone() });
            }
            keep
        });
    }

    /// Leases that are [`LEASE_LIMIT`] old, or were when last asked about and are that much older now.
    pub fn overdue_leases(&mut self, now: Duration) -> Vec<OverdueLease<W>> {
        let mut overdue = Vec::new();
        for (id, sandbox) in &mut self.sandboxes {
            if let State::Busy { since, .. } = &mut sandbox.state
                && now.saturating_sub(*since) >= LEASE_LIMIT
            {
                *since = now;
                let worker = sandbox.worker.clone().expect("a sandbox that is ready has a worker");
                overdue.push(OverdueLease { sandbox: *id, worker, since: now });
            }
        }
        overdue.sort_unstable_by_key(|lease| lease.sandbox);
        overdue
    }

    /// The lease was lost: its sandbox goes, so that a holder that turns up after all meets no other invocation there.
    pub fn take_back(&mut self, now: Duration, id: SandboxId, lease: Duration, actions: &mut Vec<Action<C, W>>) {
        if let Some(State::Busy { since, permit }) = self.sandboxes.get(&id).map(|s| &s.state)
            && *since == lease
        {
            let permit = *permit;
            self.remove(id);
            self.release_permit(permit);
            actions.push(Action::Shutdown { sandbox: id });
            self.settle(now, actions);
        }
    }

    /// No new leases. Idle sandboxes go now, the others when they become free; requests whose sandbox starts still get it.
    pub fn stop(&mut self, actions: &mut Vec<Action<C, W>>) {
        self.phase = Phase::Stopping;
        let mut idle: Vec<_> = self.versions.values().flat_map(|v| v.idle.iter().copied()).collect();
        idle.sort_unstable();
        self.evict_all(idle, actions);
        let (waiting, starting) = self.waiters.drain(..).partition::<Vec<_>, _>(|w| w.start.is_none());
        self.waiters.extend(starting);
        actions.extend(waiting.into_iter().map(|w| Action::Stopping { caller: w.caller }));
    }

    /// The time for [`Self::stop`] is up: every sandbox goes, whatever it does.
    pub fn abandon(&mut self, actions: &mut Vec<Action<C, W>>) {
        let mut all: Vec<_> = self.sandboxes.keys().copied().collect();
        all.sort_unstable();
        for id in all {
            let sandbox = self.remove(id).expect("listed just now");
            if let State::Busy { permit, .. } | State::Finishing { permit } = sandbox.state {
                self.release_permit(permit);
            }
            actions.push(Action::Shutdown { sandbox: id });
        }
        while let Some(waiter) = self.waiters.pop_front() {
            if let Some((permit, _)) = waiter.start {
                self.release_permit(permit);
            }
            actions.push(Action::Stopping { caller: waiter.caller });
        }
    }

    /// Closes a pool whose loss changes nothing: no sandboxes, requests or memories. Returns whether it is closed.
    pub fn close_if_unused(&mut self, now: Duration) -> bool {
        let unused = self.sandboxes.is_empty() && self.waiters.is_empty() && self.versions.is_empty();
        if unused && self.phase == Phase::Open && self.scaling.is_full(now) && now > self.last_assign {
            self.phase = Phase::Closed;
        }
        self.phase == Phase::Closed
    }

    /// Sandboxes that could be given up.
    pub fn idle_entries(&self) -> impl Iterator<Item = (IdleEntry, &W)> {
        self.sandboxes.iter().filter_map(|(id, s)| match s.state {
            State::Idle { since } => {
                let entry = IdleEntry { sandbox: *id, since };
                Some((entry, s.worker.as_ref().expect("a sandbox that is ready has a worker")))
            }
            _ => None,
        })
    }

    /// Numbers for the operator.
    pub fn status(&self, function: domain::FunctionArn) -> FunctionStatus {
        let mut status = FunctionStatus {
            function,
            starting: 0,
            idle: 0,
            busy: 0,
            waiting: u32::try_from(self.waiters.len()).unwrap_or(u32::MAX),
            in_use: self.in_use,
        };
        for sandbox in self.sandboxes.values() {
            match sandbox.state {
                State::Starting { .. } => status.starting += 1,
                State::Idle { .. } => status.idle += 1,
                State::Busy { .. } | State::Finishing { .. } => status.busy += 1,
            }
        }
        status
    }
}
