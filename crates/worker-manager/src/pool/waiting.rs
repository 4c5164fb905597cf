//! Requests that wait.

use super::*;

impl<C, W: Clone> FunctionPool<C, W> {
    /// Looks again at every request that waits for a finishing sandbox: something became free, or its time is up. Call
    /// it at the end of each grace after a request began to wait.
    pub fn settle(&mut self, now: Duration, actions: &mut Vec<Action<C, W>>) {
        self.account_seen = self.account.in_use();
        if self.waiters.is_empty() {
            return;
        }
        // Few versions of a function wait at once.
        let mut of_version: Vec<(Arc<FunctionVersion>, usize)> = Vec::new();
        let mut of_function = 0;
        let mut at = 0;
        while let Some(waiter) = self.waiters.get(at) {
            if waiter.start.is_some() {
                at += 1;
                continue;
            }
            let version = Arc::clone(&waiter.version);
            let (ticket, limits, arrived) = (waiter.ticket, waiter.limits, waiter.arrived);
            let same_version = match of_version.iter().position(|(other, _)| other.key == version.key) {
                Some(at) => &mut of_version[at].1,
                None => {
                    of_version.push((Arc::clone(&version), 0));
                    &mut of_version.last_mut().expect("just pushed").1
                }
            };
            let ahead = Ahead { of_function, of_version: *same_version };
            match self.choose(now, &version.key, &limits, arrived, ahead) {
                Choice::Wait => {
                    *same_version += 1;
                    of_function += 1;
                    at += 1;
                }
                Choice::Lease(sandbox, permit) => {
                    let grant = self.lease(now, sandbox, permit, false);
                    let caller = self.leave(at).caller;
                    actions.push(Action::Grant { caller, grant });
                }
                Choice::Throttle(reason) => {
                    let caller = self.leave(at).caller;
                    actions.push(Action::Throttle { caller, reason });
                }
                Choice::Join(sandbox, permit) => {
                    self.waiters[at].start = Some((permit, sandbox));
                    self.attach(sandbox, ticket);
                    at += 1;
                }
                Choice::Start(permit) => {
                    let sandbox = self.start(now, &version, actions);
                    self.waiters[at].start = Some((permit, sandbox));
                    self.attach(sandbox, ticket);
                    at += 1;
                }
            }
        }
    }

    /// When [`Self::settle`] should be called next: the end of the next grace of a request that waits for a finishing
    /// sandbox.
    pub fn due(&self, now: Duration) -> Option<Duration> {
        let Config { finishing_grace, limit_grace, .. } = self.config;
        let due = |arrived: Duration| [finishing_grace, limit_grace, HOME_GRACE].map(|grace| arrived + grace);
        let waiting = self.waiters.iter().filter(|w| w.start.is_none());
        waiting.flat_map(|w| due(w.arrived)).filter(|due| *due > now).min()
    }

    /// The caller of a waiting request went away. `false` if the request waits no longer: an action has named its caller.
    pub fn cancel(&mut self, now: Duration, ticket: Ticket, actions: &mut Vec<Action<C, W>>) -> bool {
        let Some(at) = self.waiters.iter().position(|w| w.ticket == ticket) else { return false };
        let waiter = self.leave(at);
        if let Some((permit, sandbox)) = waiter.start {
            self.detach(sandbox);
            self.release_permit(permit);
        }
        self.settle(now, actions);
        true
    }

    pub(super) fn ahead_of_newcomer(&self, key: &VersionKey) -> Ahead {
        let mut ahead = Ahead::default();
        for waiter in self.waiters.iter().filter(|w| w.start.is_none()) {
            ahead.of_function += 1;
            ahead.of_version += usize::from(waiter.version.key == *key);
        }
        ahead
    }

    pub(super) fn leave(&mut self, at: usize) -> Waiter<C> {
        self.waiters.remove(at).expect("the position was just found")
    }

    pub(super) fn leave_with(&mut self, ticket: Ticket) -> Option<Waiter<C>> {
        let at = self.waiters.iter().position(|w| w.ticket == ticket)?;
        self.waiters.remove(at)
    }
}
