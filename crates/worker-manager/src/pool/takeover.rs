//! Sandboxes that another manager started, and those that another one takes.

use domain::SlotPhase;

use super::*;

/// A lease that is younger may have its invocation still on the way to a sandbox that its worker calls idle.
const ON_THE_WAY: Duration = Duration::from_secs(1);

/// What a worker says of one of its sandboxes.
pub struct Seen<W> {
    pub sandbox: SandboxId,
    pub worker: W,
    pub version: VersionKey,
    pub phase: SlotPhase,
    /// Since before the worker was asked it has refused all leases of before.
    pub fenced: bool,
}

impl<C, W: Clone> FunctionPool<C, W> {
    /// Takes over a sandbox that it does not know, and holds what it knows of another one against what its worker says. What runs
    /// is counted, even beyond the limits, and against the account: whether the function had concurrency reserved when it began
    /// is not known any more.
    pub fn seen(&mut self, now: Duration, seen: Seen<W>, actions: &mut Vec<Action<C, W>>) {
        let Seen { sandbox: id, worker, version, phase, fenced } = seen;
        if self.phase == Phase::Closed {
            return;
        }
        let is_idle = matches!(self.sandboxes.get(&id).map(|known| &known.state), Some(State::Idle { .. }));
        if is_idle && matches!(phase, SlotPhase::Invoking | SlotPhase::Finishing) {
            // Another manager has used it, while this one was out of the fleet and did not know: it is no more what it was.
            self.remove(id);
        }
        if let Some(sandbox) = self.sandboxes.get_mut(&id) {
            // `None`: its Init is under way by this manager, which then hears of its end.
            let Some(known) = &mut sandbox.worker else { return };
            *known = worker;
            let missed = match sandbox.state {
                State::Finishing { .. } | State::Starting { .. } => true,
                State::Busy { since, .. } => fenced || now.saturating_sub(since) >= ON_THE_WAY,
                State::Idle { .. } => false,
            };
            if phase == SlotPhase::Idle && missed {
                self.idle(now, id, actions);
            }
            return;
        }
        self.versions.entry(version.clone()).or_default().live += 1;
        let state = match phase {
            SlotPhase::Starting | SlotPhase::Idle => State::Starting { waiter: None, dead: false },
            SlotPhase::Invoking | SlotPhase::Finishing => {
                self.in_use += 1;
                self.account.count();
                self.account_seen += 1;
                State::Busy { since: now, permit: Permit::Account }
            }
        };
        if matches!(state, State::Starting { .. }) {
            self.versions.get_mut(&version).expect("just made").spare.push(id);
        }
        // Its true age is not known: it is as old as this manager's knowledge of it.
        let sandbox = Sandbox { version, born: now, worker: Some(worker), doomed: false, state };
        self.sandboxes.insert(id, sandbox);
        match phase {
            SlotPhase::Starting | SlotPhase::Invoking => {}
            SlotPhase::Idle => self.idle(now, id, actions),
            SlotPhase::Finishing => self.answered(id),
        }
    }

    /// Its worker drains: it goes, at once or after what it has.
    pub fn doom(&mut self, id: SandboxId, actions: &mut Vec<Action<C, W>>) {
        if let Some(sandbox) = self.sandboxes.get_mut(&id) {
            sandbox.doomed = true;
        }
        if self.evict(id) {
            actions.push(Action::Shutdown { sandbox: id });
        }
    }

    /// Another manager is responsible now, and takes the sandboxes as they are. Requests that wait are to ask that one.
    pub fn disown(&mut self, actions: &mut Vec<Action<C, W>>) {
        self.phase = Phase::Closed;
        let mut all: Vec<_> = self.sandboxes.keys().copied().collect();
        all.sort_unstable();
        for id in all {
            let sandbox = self.remove(id).expect("listed just now");
            if let State::Busy { permit, .. } | State::Finishing { permit } = sandbox.state {
                self.release_permit(permit);
            }
            actions.push(Action::Disown { sandbox: id });
        }
        while let Some(waiter) = self.waiters.pop_front() {
            if let Some((permit, _)) = waiter.start {
                self.release_permit(permit);
            }
            actions.push(Action::NotOwner { caller: waiter.caller });
        }
        actions.extend(self.versions.drain().map(|(version, _)| Action::Forget { version }));
    }

    /// Whether another manager has it, or nobody.
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }
}
