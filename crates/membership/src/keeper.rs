//! What a member does when: a state machine without IO, clock and randomness.
//!
//! ```text
//!            Joined                    beat every ttl/4; the view when its epoch is not the last one's;
//!   Out ───────────────► In ◄──────┐   the wanted state when the registry has another
//!    ▲ ▲                 │  │      │
//!    │ └─────Expired─────┘  ├──────┘  Held, Read, Failed: nothing that fails takes the member out
//!    │                      │
//!  Failed: again            └──Replaced──► Replaced    another process has the name: this one is to end
//!
//!   leave, from each: one try to tell the registry ──► Left
//! ```
//!
//! One call is in flight at a time. The driver hands in what happened with the time since some start, does the [`Action`]s, and
//! steps again at [`Keeper::due`].

use std::time::Duration;

use crate::member::MemberState;
use crate::registry::Hold;
use crate::view::View;

/// Where the member stands, as far as it knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Not in the fleet: it has not joined yet, or was found dead and will join again.
    Out,
    /// In, since the view of this epoch. It stays so while the registry cannot be reached.
    In {
        /// See [`crate::Member::epoch`].
        epoch: u64,
    },
    /// Another process joined under the same name. The end: this process has no business any more.
    Replaced,
    /// It left. The end.
    Left,
}

impl Standing {
    /// Whether nothing follows.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Replaced | Self::Left)
    }
}

/// What the registry is to be asked. Each must be answered by an event, within [`Keeper::limit`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// To be answered by [`Event::Joined`].
    Join(MemberState),
    /// By [`Event::Told`].
    Beat,
    /// By [`Event::Told`].
    SetState(MemberState),
    /// By [`Event::Read`].
    Read,
    /// By [`Event::Gone`].
    Leave,
}

/// What happened.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// It is time, see [`Keeper::due`].
    Time,
    /// The registry has the member, since this epoch.
    Joined(u64),
    /// What the beat, or the change of state, found.
    Told(Hold),
    /// The registry's view.
    Read(View),
    /// The registry has the member no more.
    Gone,
    /// The call failed, or was not answered in time.
    Failed,
    /// There is a view of this epoch.
    Heard(u64),
    /// The member is to be in this state.
    Want(MemberState),
    /// The member is to leave.
    Leave,
}

/// What is to be done.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// Ask the registry.
    Call(Call),
    /// This view is in force from now on.
    Publish(View),
    /// The member stands so from now on.
    Stand(Standing),
}

/// One member's side of its lease.
#[derive(Clone, Debug)]
pub struct Keeper {
    id: crate::MemberId,
    ttl: Duration,
    standing: Standing,
    /// The state that the member is to have, and the one that the registry has.
    wanted: MemberState,
    told: MemberState,
    leaving: bool,
    calling: Option<Call>,
    /// When the last call began.
    called: Duration,
    /// Nothing is asked before: the last call failed.
    calm: Duration,
    /// When the next beat is due.
    beat: Duration,
    /// When the view may be read next.
    read: Duration,
    /// The epoch of the view in force, and the newest that was heard of.
    view: u64,
    heard: u64,
    /// What was heard of when the view was last asked for.
    asked: u64,
}

impl Keeper {
    /// Of a member that has not joined yet.
    pub fn new(id: crate::MemberId, state: MemberState, ttl: Duration) -> Self {
        Self {
            id,
            ttl,
            standing: Standing::Out,
            wanted: state,
            told: state,
            leaving: false,
            calling: None,
            called: Duration::ZERO,
            calm: Duration::ZERO,
            beat: Duration::ZERO,
            read: Duration::ZERO,
            view: 0,
            heard: 0,
            asked: 0,
        }
    }

    /// Where the member stands.
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// How long a call may take. A beat must be tried again soon enough (`ledger.rs` counts on a quarter of the time to live);
    /// who joins or leaves loses nothing by waiting, and many who do at once wait for each other.
    pub fn limit(&self, call: Call) -> Duration {
        match call {
            Call::Join(_) | Call::Leave => self.ttl,
            Call::Beat | Call::SetState(_) | Call::Read => self.ttl / 4,
        }
    }

    /// When to step with [`Event::Time`]; `None` while only another event can change anything.
    pub fn due(&self) -> Option<Duration> {
        self.next().map(|(at, _)| at)
    }

    /// Takes in what happened, and says what is to be done.
    pub fn step(&mut self, now: Duration, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        let before = self.standing;
        self.take(now, event, &mut actions);
        if self.standing != before {
            actions.push(Action::Stand(self.standing));
        }
        if let Some((at, call)) = self.next()
            && at <= now
        {
            self.calling = Some(call);
            self.called = now;
            self.asked = self.heard;
            actions.push(Action::Call(call));
        }
        actions
    }

    fn take(&mut self, now: Duration, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Time => {}
            Event::Heard(epoch) => self.heard = self.heard.max(epoch),
            Event::Want(state) => self.wanted = state,
            Event::Leave => self.leaving = true,
            Event::Joined(epoch) => {
                if let Some(Call::Join(state)) = self.calling.take() {
                    self.told = state;
                    self.hold(epoch, epoch);
                }
            }
            Event::Told(hold) => {
                let call = self.calling.take();
                if let Some(Call::SetState(state)) = call {
                    self.told = state;
                }
                match hold {
                    _ if self.standing.is_over() => {}
                    Hold::Held { joined, epoch } => self.hold(joined, epoch),
                    Hold::Expired => self.standing = Standing::Out,
                    Hold::Replaced => self.standing = Standing::Replaced,
                }
            }
            Event::Read(view) => {
                self.calling = None;
                // Views are read often only where they change often, and then not for each change.
                self.read = now + self.ttl / 16;
                // A registry that lost its last changes (a fail-over, a backup) goes on from a higher epoch: until then there is
                // nothing to be read.
                if view.epoch() < self.asked {
                    self.heard = self.view;
                }
                if view.epoch() > self.view {
                    self.view = view.epoch();
                    self.heard = self.heard.max(self.view);
                    self.compare(&view);
                    actions.push(Action::Publish(view));
                }
            }
            Event::Gone => {
                self.calling = None;
                self.standing = Standing::Left;
            }
            Event::Failed => match self.calling.take() {
                // Others will find it dead.
                Some(Call::Leave) => self.standing = Standing::Left,
                // A call that took its whole limit has waited enough.
                _ => self.calm = self.called + self.ttl / 8,
            },
        }
    }

    /// The lease runs since the call began, or a little later.
    fn hold(&mut self, joined: u64, epoch: u64) {
        self.standing = Standing::In { epoch: joined };
        self.beat = self.called + self.ttl / 4;
        self.heard = self.heard.max(epoch);
    }

    /// A call that was given up may still be done later, and undo a newer one: what the registry has is what its view says.
    fn compare(&mut self, view: &View) {
        if let Standing::In { epoch } = self.standing
            && let Some(own) = view.member(&self.id).filter(|own| own.epoch == epoch)
        {
            self.told = own.state;
        }
    }

    /// The next call, and when.
    fn next(&self) -> Option<(Duration, Call)> {
        let (at, call) = match self.standing {
            _ if self.calling.is_some() || self.standing.is_over() => return None,
            _ if self.leaving => return Some((Duration::ZERO, Call::Leave)),
            // The beat first: it keeps the lease, and waits for nobody. So also if the other call failed until it was due.
            Standing::In { .. } if self.told != self.wanted && self.calm < self.beat => {
                (Duration::ZERO, Call::SetState(self.wanted))
            }
            Standing::In { .. } if self.heard > self.view && self.read < self.beat => (self.read, Call::Read),
            Standing::In { .. } => (self.beat, Call::Beat),
            Standing::Out | Standing::Replaced | Standing::Left => (Duration::ZERO, Call::Join(self.wanted)),
        };
        Some((at.max(self.calm), call))
    }
}

#[cfg(test)]
mod tests;
