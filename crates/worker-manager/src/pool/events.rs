//! What happens to a sandbox.

use super::*;

impl<C, W: Clone> FunctionPool<C, W> {
    /// `Init` is over: the request that it was started for gets it, or, if that went away or was served by another one,
    /// whoever waits. `false` if the pool has given the sandbox up meanwhile: it must go.
    pub fn init_done(&mut self, now: Duration, id: SandboxId, worker: W, actions: &mut Vec<Action<C, W>>) -> bool {
        let Some(sandbox) = self.sandboxes.get_mut(&id) else { return false };
        let State::Starting { dead, .. } = sandbox.state else { return false };
        sandbox.worker = Some(worker);
        if dead {
            if let Some(caller) = self.init_failed(now, id, actions) {
                actions.push(Action::Gone { caller, sandbox: id });
            }
            return true;
        }
        self.ready(now, id, actions);
        true
    }

    /// It has started, and was not found dead.
    fn ready(&mut self, now: Duration, id: SandboxId, actions: &mut Vec<Action<C, W>>) {
        let sandbox = &self.sandboxes[&id];
        let State::Starting { waiter, .. } = sandbox.state else { return };
        let key = sandbox.version.clone();
        if let Some(waiter) = waiter.and_then(|ticket| self.leave_with(ticket)) {
            let (permit, _) = waiter.start.expect("a request with a starting sandbox has a permit");
            let grant = self.lease(now, id, permit, true);
            actions.push(Action::Grant { caller: waiter.caller, grant });
        } else {
            let version = self.versions.get_mut(&key).expect("a live sandbox's version is known");
            version.spare.retain(|s| *s != id);
            self.free(now, id, None, actions);
        }
    }

    /// `Init` failed, or there was no place. Returns whom to tell.
    pub fn init_failed(&mut self, now: Duration, id: SandboxId, actions: &mut Vec<Action<C, W>>) -> Option<C> {
        let State::Starting { waiter, .. } = self.sandboxes.get(&id)?.state else { return None };
        self.remove(id);
        let waiter = waiter.and_then(|ticket| self.leave_with(ticket));
        if let Some((permit, _)) = waiter.as_ref().and_then(|w| w.start) {
            self.release_permit(permit);
        }
        self.settle(now, actions);
        waiter.map(|w| w.caller)
    }

    /// The worker that was to start it cannot be reached, and may have begun: it goes on as another one, elsewhere. What that worker has
    /// of it comes by its old name, as any sandbox does that this pool did not start. `None`: the pool has given it up.
    pub fn rename(&mut self, id: SandboxId) -> Option<SandboxId> {
        if !matches!(self.sandboxes.get(&id)?, Sandbox { state: State::Starting { .. }, worker: None, .. }) {
            return None;
        }
        let mut sandbox = self.sandboxes.remove(&id)?;
        let new = (self.new_sandbox_id)();
        if let State::Starting { waiter, dead } = &mut sandbox.state {
            // Whoever said that it died meant the old one.
            *dead = false;
            let waiter = waiter.and_then(|ticket| self.waiters.iter_mut().find(|waiter| waiter.ticket == ticket));
            match waiter {
                Some(Waiter { start: Some((_, starting)), .. }) => *starting = new,
                _ => {
                    let version = self.versions.get_mut(&sandbox.version).expect("a live sandbox's version is known");
                    version.spare.iter_mut().filter(|spare| **spare == id).for_each(|spare| *spare = new);
                }
            }
        }
        self.sandboxes.insert(new, sandbox);
        Some(new)
    }

    /// Its answer is out; runtime and extensions still work.
    pub fn answered(&mut self, id: SandboxId) {
        let Some(sandbox) = self.sandboxes.get_mut(&id) else { return };
        let State::Busy { permit, .. } = sandbox.state else { return };
        sandbox.state = State::Finishing { permit };
        self.versions.get_mut(&sandbox.version).expect("a live sandbox's version is known").finishing += 1;
        self.finishing += 1;
    }

    /// It can take the next request.
    pub fn idle(&mut self, now: Duration, id: SandboxId, actions: &mut Vec<Action<C, W>>) {
        let Some(sandbox) = self.sandboxes.get(&id) else { return };
        let permit = match sandbox.state {
            State::Busy { permit, .. } => permit,
            State::Finishing { permit } => {
                self.versions.get_mut(&sandbox.version).expect("a live sandbox's version is known").finishing -= 1;
                self.finishing -= 1;
                permit
            }
            // One that another manager began to start: this one hears of the end of its Init like this.
            State::Starting { .. } if sandbox.worker.is_some() => return self.ready(now, id, actions),
            State::Starting { .. } | State::Idle { .. } => return,
        };
        self.free(now, id, Some(permit), actions);
    }

    /// A lease was not used.
    pub fn release(&mut self, now: Duration, id: SandboxId, actions: &mut Vec<Action<C, W>>) {
        if let Some(State::Busy { .. }) = self.sandboxes.get(&id).map(|s| &s.state) {
            self.idle(now, id, actions);
        }
    }

    /// It is gone, or will not serve again. `false` while it starts: the end of `Init` settles that.
    pub fn dead(&mut self, now: Duration, id: SandboxId, actions: &mut Vec<Action<C, W>>) -> bool {
        if let Some(Sandbox { state: State::Starting { dead, .. }, worker, .. }) = self.sandboxes.get_mut(&id) {
            if worker.is_none() {
                *dead = true;
                return false;
            }
            // Another manager began to start it, so nobody here hears of the end of that.
            if let Some(caller) = self.init_failed(now, id, actions) {
                actions.push(Action::Gone { caller, sandbox: id });
            }
            return true;
        }
        let Some(sandbox) = self.remove(id) else { return false };
        if let State::Busy { permit, .. } | State::Finishing { permit } = sandbox.state {
            self.release_permit(permit);
        }
        self.settle(now, actions);
        true
    }

    /// A sandbox that is in no list can serve: of the requests of its version the one that waits longest and may run gets
    /// it, or it is idle, or it goes. `held` is the permit of what it served last.
    fn free(&mut self, now: Duration, id: SandboxId, held: Option<Permit>, actions: &mut Vec<Action<C, W>>) {
        let sandbox = self.sandboxes.get_mut(&id).expect("a sandbox that became free exists");
        // Neither listed nor counted from here on; what follows decides.
        sandbox.state = State::Busy { since: now, permit: Permit::Reserved };
        let retired = self.versions[&sandbox.version].retired.is_some();
        let too_old = now.saturating_sub(sandbox.born) >= self.config.max_age;
        if self.phase != Phase::Open || retired || too_old || sandbox.doomed {
            self.remove(id);
            actions.push(Action::Shutdown { sandbox: id });
            held.into_iter().for_each(|p| self.release_permit(p));
            return self.settle(now, actions);
        }
        let key = sandbox.version.clone();
        let mut held = held;
        for at in 0..self.waiters.len() {
            let Waiter { version, limits, start, .. } = &self.waiters[at];
            if version.key != key {
                continue;
            }
            let (limits, start) = (*limits, *start);
            let (permit, passed) = match start {
                Some((own, _)) => (Some(own), false),
                None => self.pass_on(held.take(), &limits),
            };
            // One that may not run, by limits that were lower when it came, keeps nobody behind it from running.
            let Some(permit) = permit else { continue };
            let caller = self.leave(at).caller;
            let grant = self.lease(now, id, permit, false);
            actions.push(Action::Grant { caller, grant });
            start.into_iter().for_each(|(_, starting)| self.detach(starting));
            held.into_iter().for_each(|p| self.release_permit(p));
            // Usual under load: the first has the sandbox and the permit, and no other lost a claim by it.
            if at > 0 || !passed {
                self.settle(now, actions);
            }
            return;
        }
        held.into_iter().for_each(|p| self.release_permit(p));
        let sandbox = self.sandboxes.get_mut(&id).expect("it was there above");
        sandbox.state = State::Idle { since: now };
        self.versions.get_mut(&key).expect("a live sandbox's version is known").idle.push(id);
        self.settle(now, actions);
    }

    /// The permit of one request becomes that of the next, without a moment in which another function could take it.
    ///
    /// Also whether it was.
    fn pass_on(&mut self, held: Option<Permit>, limits: &ConcurrencyLimits) -> (Option<Permit>, bool) {
        let Some(held) = held else { return (self.acquire(limits).ok(), false) };
        let stays = match (held, limits.reserved) {
            (Permit::Account, None) => self.account.fits(limits.unreserved),
            (Permit::Reserved, Some(reserved)) => self.in_use <= reserved,
            _ => false,
        };
        if stays {
            return (Some(held), true);
        }
        self.release_permit(held);
        (self.acquire(limits).ok(), false)
    }
}
