//! One function's sandboxes and the requests that wait for one: a state machine without IO or clock.
//!
//! ```text
//!               start                    grant                 answered
//!  (none) ───────────────► Starting ───────────────► Busy ───────────────────► Finishing
//!                             │                     ▲  │                           │
//!                             │ nobody waits  grant │  │ idle, release             │ idle
//!                             ▼                     │  ▼                           │
//!                             └──────────────────► Idle ◄──────────────────────────┘
//!                                   (or straight to the request that waits longest)
//!
//!  (none) ──► any state, and any state ──► (none): taken over from another manager, or by one.
//!  Idle ──► gone: expired, too old, version retired, room needed.   Any ──► gone: dead.
//! ```
//!
//! Concurrency belongs to *requests*, not to sandboxes: a [`Permit`] is taken when a request gets a sandbox or has one
//! started for it, travels into the busy sandbox, and is released once, when the sandbox can take the next request
//! or is gone. A request whose sandbox still starts is served by any other one of its version that becomes free; the
//! one started for it is then *spare*, and the next request that needs one waits for that instead of starting another.
//!
//! Methods are events. What the shell must do about them is appended to `actions`.

mod events;
mod takeover;
mod upkeep;
mod waiting;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use domain::{AssignRequest, ConcurrencyLimits, FunctionVersion, SandboxId, ThrottleReason, VersionKey};
// Several lookups in each invocation, by keys that are Emberbox's own: the hash need not withstand an attacker.
use foldhash::HashMap;

use crate::concurrency::{AccountUse, ScalingRate};
use crate::config::Config;

pub use takeover::Seen;

/// How long a request waits while the home of its account has not answered: until a dead one is replaced, and has learnt.
const HOME_GRACE: Duration = Duration::from_secs(5);

/// `C` is how the shell reaches a waiting caller, `W` how it reaches a worker.
pub struct FunctionPool<C, W> {
    config: Config,
    account: Arc<AccountUse>,
    new_sandbox_id: fn() -> SandboxId,
    sandboxes: HashMap<SandboxId, Sandbox<W>>,
    versions: HashMap<VersionKey, Version>,
    /// In order of arrival.
    waiters: VecDeque<Waiter<C>>,
    /// Permits that are out, of either kind.
    in_use: u32,
    /// Sandboxes in `Finishing`, over all versions.
    finishing: usize,
    /// What the account's use was when the waiting requests were last looked at, and what this pool has changed since:
    /// with less in use than that, another function has made room.
    account_seen: u32,
    scaling: ScalingRate,
    last_ticket: u64,
    last_assign: Duration,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// No new leases; a sandbox that becomes free goes.
    Stopping,
    /// Forgotten by the shell: requests must look the function up again.
    Closed,
}

struct Sandbox<W> {
    version: VersionKey,
    born: Duration,
    /// Known from the end of `Init` on.
    worker: Option<W>,
    /// Its worker is to have none: it serves what it has, and goes.
    doomed: bool,
    state: State,
}

enum State {
    Starting {
        /// The request that it was started for, while that still waits.
        waiter: Option<Ticket>,
        /// It died before `Init` was reported.
        dead: bool,
    },
    Idle {
        since: Duration,
    },
    Busy {
        /// When the lease was given, or last looked at by [`FunctionPool::overdue_leases`].
        since: Duration,
        permit: Permit,
    },
    Finishing {
        permit: Permit,
    },
}

#[derive(Default)]
struct Version {
    /// Most recently used last.
    idle: Vec<SandboxId>,
    /// Starting, and nobody waits for them.
    spare: Vec<SandboxId>,
    finishing: usize,
    /// Sandboxes in any state.
    live: usize,
    /// Since when its sandboxes are not used again.
    retired: Option<Duration>,
}

struct Waiter<C> {
    ticket: Ticket,
    caller: C,
    version: Arc<FunctionVersion>,
    limits: ConcurrencyLimits,
    arrived: Duration,
    /// With a permit, a sandbox starts for it; without, it waits for one that is finishing.
    start: Option<(Permit, SandboxId)>,
}

/// Names a waiting request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket(u64);

/// One running invocation, and where it was counted besides in its function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Permit {
    Reserved,
    Account,
}

/// A sandbox for a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant<W> {
    pub sandbox: SandboxId,
    pub worker: W,
    /// Its `Init` ended just now.
    pub cold: bool,
}

/// What a request gets at once.
#[derive(PartialEq, Eq, Debug)]
pub enum Answer<W> {
    Lease(Grant<W>),
    /// An action will name the caller.
    Wait(Ticket),
    Throttled(ThrottleReason),
    Stopping,
    Closed,
}

/// What the shell must do.
#[derive(Debug)]
pub enum Action<C, W> {
    Grant {
        caller: C,
        grant: Grant<W>,
    },
    Throttle {
        caller: C,
        reason: ThrottleReason,
    },
    /// The sandbox that was started for the caller died.
    Gone {
        caller: C,
        sandbox: SandboxId,
    },
    /// The caller waited for a sandbox that is finishing when the manager stopped.
    Stopping {
        caller: C,
    },
    /// Place it and call `Init`, then report to [`FunctionPool::init_done`] or [`FunctionPool::init_failed`].
    Start {
        sandbox: SandboxId,
        version: Arc<FunctionVersion>,
    },
    /// The pool has dropped it.
    Shutdown {
        sandbox: SandboxId,
    },
    /// The pool has dropped it, and another manager has it.
    Disown {
        sandbox: SandboxId,
    },
    /// Another manager is to be asked.
    NotOwner {
        caller: C,
    },
    /// Nothing is known of this version any more.
    Forget {
        version: VersionKey,
    },
}

/// What a request can get now.
enum Choice {
    Lease(SandboxId, Permit),
    /// A sandbox that starts already.
    Join(SandboxId, Permit),
    Start(Permit),
    /// For one that is finishing.
    Wait,
    Throttle(ThrottleReason),
}

/// Earlier requests that wait for a finishing sandbox: each has a claim on one.
#[derive(Clone, Copy, Default)]
struct Ahead {
    of_function: usize,
    of_version: usize,
}

impl<C, W: Clone> FunctionPool<C, W> {
    /// Without sandboxes. `new_sandbox_id` never returns an id twice.
    pub fn new(config: Config, account: Arc<AccountUse>, new_sandbox_id: fn() -> SandboxId, now: Duration) -> Self {
        Self {
            config,
            account,
            new_sandbox_id,
            sandboxes: HashMap::default(),
            versions: HashMap::default(),
            waiters: VecDeque::new(),
            in_use: 0,
            finishing: 0,
            account_seen: 0,
            scaling: ScalingRate::new(config.scaling_burst, config.scaling_per_10s, now),
            last_ticket: 0,
            last_assign: now,
            phase: Phase::Open,
        }
    }

    /// A request wants a sandbox. `caller` is called only if it has to wait.
    pub fn assign(
        &mut self,
        now: Duration,
        request: &AssignRequest,
        caller: impl FnOnce() -> C,
        actions: &mut Vec<Action<C, W>>,
    ) -> Answer<W> {
        match self.phase {
            Phase::Open => {}
            Phase::Stopping => return Answer::Stopping,
            Phase::Closed => return Answer::Closed,
        }
        self.last_assign = now;
        // Another function may have made room in the account: those that came before take it first.
        if self.account.in_use() < self.account_seen {
            self.settle(now, actions);
        }
        let key = &request.version.key;
        let ahead = self.ahead_of_newcomer(key);
        let start = match self.choose(now, key, &request.limits, now, ahead) {
            Choice::Lease(sandbox, permit) => return Answer::Lease(self.lease(now, sandbox, permit, false)),
            Choice::Throttle(reason) => return Answer::Throttled(reason),
            Choice::Wait => None,
            Choice::Join(sandbox, permit) => Some((permit, sandbox)),
            Choice::Start(permit) => Some((permit, self.start(now, &request.version, actions))),
        };
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        if let Some((_, sandbox)) = start {
            self.attach(sandbox, ticket);
        }
        let (version, limits) = (Arc::clone(&request.version), request.limits);
        self.waiters.push_back(Waiter { ticket, caller: caller(), version, limits, arrived: now, start });
        Answer::Wait(ticket)
    }

    /// What a request that arrived at `arrived` can get at `now`. Takes the permit and the scaling token that it needs.
    fn choose(
        &mut self,
        now: Duration,
        key: &VersionKey,
        limits: &ConcurrencyLimits,
        arrived: Duration,
        ahead: Ahead,
    ) -> Choice {
        let version = self.versions.get(key).filter(|v| v.retired.is_none());
        let idle = version.and_then(|v| v.idle.last().copied());
        let spare = version.and_then(|v| v.spare.first().copied());
        let finishing = version.map_or(0, |v| v.finishing);

        let waited = now.saturating_sub(arrived);
        let any_unclaimed = self.finishing > ahead.of_function;
        let has_claim = any_unclaimed && finishing > ahead.of_version;
        let must_start = idle.is_none() && spare.is_none();
        let obstacle = match self.limit_reached(limits) {
            Some(reason) => Some(reason),
            None if must_start && !self.scaling.available(now) => Some(ThrottleReason::ScalingRate),
            None if must_start && has_claim && waited < self.config.finishing_grace => return Choice::Wait,
            // Another function can have taken the account's last permit since it was looked at.
            None => match self.acquire(limits) {
                Err(reason) => Some(reason),
                Ok(permit) => {
                    return match (idle, spare) {
                        (Some(sandbox), _) => Choice::Lease(sandbox, permit),
                        (None, Some(sandbox)) => Choice::Join(sandbox, permit),
                        (None, None) => Choice::Start(permit),
                    };
                }
            },
        };
        let reason = obstacle.expect("every way without an obstacle has returned");
        // At a concurrency limit any finishing sandbox of the function helps, since its permit becomes free.
        let hope = match reason {
            ThrottleReason::ScalingRate => has_claim,
            ThrottleReason::Account => any_unclaimed || self.account.may_grow(limits.unreserved),
            ThrottleReason::Reserved => any_unclaimed,
        };
        let never = limits.reserved == Some(0);
        // Whether the account has room is not known until its home has said so, which may be slow, or being replaced.
        let unknown = reason == ThrottleReason::Account && self.account.is_unanswered(limits.unreserved);
        let grace = if unknown { HOME_GRACE } else { self.config.limit_grace };
        if hope && !never && waited < grace { Choice::Wait } else { Choice::Throttle(reason) }
    }

    fn limit_reached(&self, limits: &ConcurrencyLimits) -> Option<ThrottleReason> {
        match limits.reserved {
            Some(reserved) => (self.in_use >= reserved).then_some(ThrottleReason::Reserved),
            None => self.account.is_full(limits.unreserved).then_some(ThrottleReason::Account),
        }
    }

    fn acquire(&mut self, limits: &ConcurrencyLimits) -> Result<Permit, ThrottleReason> {
        let permit = match limits.reserved {
            Some(reserved) if self.in_use < reserved => Permit::Reserved,
            Some(_) => return Err(ThrottleReason::Reserved),
            None if self.account.acquire(limits.unreserved) => {
                self.account_seen += 1;
                Permit::Account
            }
            None => return Err(ThrottleReason::Account),
        };
        self.in_use += 1;
        Ok(permit)
    }

    fn release_permit(&mut self, permit: Permit) {
        self.in_use -= 1;
        if permit == Permit::Account {
            self.account.release();
            // What this pool frees, it hands out itself.
            self.account_seen = self.account_seen.saturating_sub(1);
        }
    }

    /// Makes a free sandbox busy.
    fn lease(&mut self, now: Duration, id: SandboxId, permit: Permit, cold: bool) -> Grant<W> {
        let sandbox = self.sandboxes.get_mut(&id).expect("a sandbox that was chosen exists");
        if let State::Idle { .. } = sandbox.state {
            let idle = &mut self.versions.get_mut(&sandbox.version).expect("a live sandbox's version is known").idle;
            // The most recently used one is taken, so this looks at the last entry only.
            let at = idle.iter().rposition(|i| *i == id).expect("an idle sandbox is listed");
            idle.remove(at);
        }
        sandbox.state = State::Busy { since: now, permit };
        let worker = sandbox.worker.clone().expect("a sandbox that is ready has a worker");
        Grant { sandbox: id, worker, cold }
    }

    /// A new sandbox starts, for nobody yet.
    fn start(&mut self, now: Duration, version: &Arc<FunctionVersion>, actions: &mut Vec<Action<C, W>>) -> SandboxId {
        self.scaling.take();
        let id = (self.new_sandbox_id)();
        let known = self.versions.entry(version.key.clone()).or_default();
        known.live += 1;
        known.spare.push(id);
        self.sandboxes.insert(
            id,
            Sandbox {
                version: version.key.clone(),
                born: now,
                worker: None,
                doomed: false,
                state: State::Starting { waiter: None, dead: false },
            },
        );
        actions.push(Action::Start { sandbox: id, version: Arc::clone(version) });
        id
    }

    /// The starting sandbox is for this request now.
    fn attach(&mut self, id: SandboxId, ticket: Ticket) {
        let sandbox = self.sandboxes.get_mut(&id).expect("a sandbox that was chosen exists");
        let State::Starting { waiter, .. } = &mut sandbox.state else { unreachable!("only a starting one is spare") };
        *waiter = Some(ticket);
        let version = self.versions.get_mut(&sandbox.version).expect("a live sandbox's version is known");
        version.spare.retain(|s| *s != id);
    }

    /// The starting sandbox is for nobody in particular now.
    fn detach(&mut self, id: SandboxId) {
        // It may have failed to start already.
        let Some(sandbox) = self.sandboxes.get_mut(&id) else { return };
        let State::Starting { waiter, .. } = &mut sandbox.state else { return };
        *waiter = None;
        self.versions.get_mut(&sandbox.version).expect("a live sandbox's version is known").spare.push(id);
    }

    /// Takes a sandbox out of the books; its permit, if it had one, is the caller's to release.
    fn remove(&mut self, id: SandboxId) -> Option<Sandbox<W>> {
        let sandbox = self.sandboxes.remove(&id)?;
        let version = self.versions.get_mut(&sandbox.version).expect("a live sandbox's version is known");
        version.live -= 1;
        match sandbox.state {
            State::Starting { waiter: None, .. } => version.spare.retain(|s| *s != id),
            State::Starting { .. } | State::Busy { .. } => {}
            State::Idle { .. } => version.idle.retain(|s| *s != id),
            State::Finishing { .. } => {
                version.finishing -= 1;
                self.finishing -= 1;
            }
        }
        Some(sandbox)
    }
}

#[cfg(test)]
mod tests;
