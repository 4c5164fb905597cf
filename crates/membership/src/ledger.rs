//! The registry's rules as a value: no IO, no clock. The engine in memory is this behind a lock; the one in PostgreSQL does the
//! same in transactions, and a test compares the two.
//!
//! # Who is dead
//!
//! Whoever did not beat for a time to live *in which beating was possible*. The registry cannot see its own outages; but all
//! members beat, and the first one to come sweeps and leaves behind when it did (`seen`). So the time between two sweeps shows whether
//! the registry was there: longer than [`GAP`] of a time to live means that nobody came through, and then all leases begin anew at the
//! sweep which finds that. So nobody is found dead within a full time to live after such an outage.
//!
//! A shorter outage is borne by the time to live itself. A member beats every quarter of it, and tries again at most a quarter after it
//! has begun to try. Its last beat may be a quarter old when the outage begins, which ends within three eighths; then the next try
//! begins within another quarter: after seven eighths at most.
//!
//! A clock that jumps, forwards or backwards, looks like an outage, and does no harm either.
//!
//! Times to live may differ while a fleet's configuration changes. The longest one holds for everybody: with several, either
//! the outages that members with short ones must be forgiven would be overlooked by those with long ones, or the pauses between the beats of
//! those with long ones would be taken for outages.
//!
//! # Epochs
//!
//! Each change adds one, or goes up to the time of day in milliseconds if that is more. So epochs also grow over a
//! registry that was restored from a backup, or lost its last changes as it failed over: no two views have one number, and no fence
//! (an epoch that somebody remembers) is higher than everything to come.

use std::collections::BTreeMap;
use std::time::Duration;

use uuid::Uuid;

use crate::member::{Member, MemberId, MemberState};
use crate::registry::{Hold, Lease};
use crate::view::View;

/// Sweeps this much of the time to live (of whoever beats) apart suffice.
pub(crate) const SWEEPS: u64 = 8;
/// What part of the longest time to live without a sweep is an outage, as numerator and denominator.
pub(crate) const GAP: (u64, u64) = (3, 8);

/// Everybody who is registered. Times are milliseconds of one clock, since 1970.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    epoch: u64,
    /// When the last sweep was.
    seen: u64,
    entries: BTreeMap<MemberId, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    member: Member,
    instance: Uuid,
    ttl: u64,
    beat: u64,
}

impl Ledger {
    /// See [`crate::Registry::join`].
    pub fn join(&mut self, now: u64, member: &Member, instance: Uuid, ttl: Duration) -> Lease {
        let epoch = self.grow(now);
        let member = Member { epoch, ..member.clone() };
        let entry = Entry { member: member.clone(), instance, ttl: millis(ttl), beat: now };
        self.entries.insert(member.id.clone(), entry);
        Lease { member: member.id, instance, epoch }
    }

    /// See [`crate::Registry::beat`].
    pub fn beat(&mut self, now: u64, lease: &Lease) -> Hold {
        let ttl = match self.own(lease) {
            Ok(entry) => {
                entry.beat = now;
                entry.ttl
            }
            Err(lost) => return lost,
        };
        if now.checked_sub(self.seen).is_none_or(|unseen| unseen >= ttl / SWEEPS) {
            self.sweep(now);
        }
        self.held(lease)
    }

    /// See [`crate::Registry::set_state`].
    pub fn set_state(&mut self, now: u64, lease: &Lease, state: MemberState) -> Hold {
        match self.own(lease) {
            Ok(entry) => {
                entry.beat = now;
                if std::mem::replace(&mut entry.member.state, state) != state {
                    self.grow(now);
                }
            }
            Err(lost) => return lost,
        }
        self.held(lease)
    }

    /// See [`crate::Registry::leave`].
    pub fn leave(&mut self, now: u64, lease: &Lease) {
        if self.own(lease).is_ok() {
            self.entries.remove(&lease.member);
            self.grow(now);
        }
    }

    /// See [`crate::Registry::view`].
    pub fn view(&self) -> View {
        View::new(self.epoch, self.entries.values().map(|entry| entry.member.clone()).collect())
    }

    /// The newest view's.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    fn own(&mut self, lease: &Lease) -> Result<&mut Entry, Hold> {
        match self.entries.get_mut(&lease.member) {
            Some(entry) if entry.instance == lease.instance => Ok(entry),
            Some(_) => Err(Hold::Replaced),
            None => Err(Hold::Expired),
        }
    }

    fn held(&mut self, lease: &Lease) -> Hold {
        let epoch = self.epoch;
        self.own(lease).map_or_else(|lost| lost, |entry| Hold::Held { joined: entry.member.epoch, epoch })
    }

    fn sweep(&mut self, now: u64) {
        let ttl = self.entries.values().map(|entry| entry.ttl).max().unwrap_or(0);
        let unseen = now.checked_sub(self.seen);
        self.seen = now;
        if unseen.is_none_or(|unseen| unseen > ttl * GAP.0 / GAP.1) {
            self.entries.values_mut().for_each(|entry| entry.beat = now);
            return;
        }
        let before = self.entries.len();
        self.entries.retain(|_, entry| entry.beat + ttl >= now);
        if self.entries.len() < before {
            self.grow(now);
        }
    }

    fn grow(&mut self, now: u64) -> u64 {
        self.epoch = (self.epoch + 1).max(now);
        self.epoch
    }
}

pub(crate) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
