//! Where members are registered: one contract, several engines, held by one suite of tests (`tests/conformance`).

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use uuid::Uuid;

use crate::member::{Member, MemberId, MemberState};
use crate::view::View;

/// The shortest time to live of a lease: shorter ones end by the hosts' own hiccups.
pub(crate) const SHORTEST_TTL: Duration = Duration::from_millis(100);

/// What a member holds while it is in the fleet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    /// Whose.
    pub member: MemberId,
    /// Which process joined under that name: another one that does takes its place, and has another value here.
    pub instance: Uuid,
    /// The epoch of its joining, see [`Member::epoch`].
    pub epoch: u64,
}

/// What a sign of life finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hold {
    /// The lease runs anew.
    Held {
        /// The member's own epoch.
        joined: u64,
        /// The registry's epoch.
        epoch: u64,
    },
    /// The member was found dead, or has left: it must join again.
    Expired,
    /// Another process has joined under the same name since: this one is not the member any more.
    Replaced,
}

/// Who is in the fleet. Time is the engine's own, and no call says what time it is for the caller.
#[async_trait]
pub trait Registry: Send + Sync + fmt::Debug + 'static {
    /// Adds the member, in the place of one of the same name. Its lease ends when it does not beat for `ttl`, or for the longest
    /// time to live of any member, if that is longer. May be repeated when it is not known whether it was done.
    async fn join(&self, member: &Member, instance: Uuid, ttl: Duration) -> Result<Lease, RegistryError>;

    /// A sign of life, at least every quarter of the time to live. Whoever comes first also looks who gave none in time: they go,
    /// and the epoch grows, in one transaction.
    async fn beat(&self, lease: &Lease) -> Result<Hold, RegistryError>;

    /// Changes the member's state; a sign of life as well.
    async fn set_state(&self, lease: &Lease, state: MemberState) -> Result<Hold, RegistryError>;

    /// The member goes. Nothing to do if it has gone, or another has its name.
    async fn leave(&self, lease: &Lease) -> Result<(), RegistryError>;

    /// Everybody now.
    async fn view(&self) -> Result<View, RegistryError>;

    /// The newest epoch that the engine has heard of, as soon as it hears. It need not hear of each: readers ask besides.
    fn heard(&self) -> watch::Receiver<u64>;

    /// Which registry this is, for messages; without secrets.
    fn place(&self) -> String;

    /// Ends its connections; nothing is asked of it afterwards.
    async fn close(&self);
}

/// Why a call of the registry failed. No message has a password.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RegistryError {
    /// It did not answer, or could not do it now. Whether it was done is not known.
    #[error("{operation}: the fleet's registry ({place}): {cause}; {advice}")]
    Unavailable {
        /// What was tried.
        operation: String,
        /// Which registry.
        place: String,
        /// Why it failed.
        cause: String,
        /// What to do.
        advice: &'static str,
    },
    /// What was asked for cannot be.
    #[error("{operation}: {reason}")]
    Invalid {
        /// What was tried.
        operation: String,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// A newer Emberbox has changed the tables so that this one cannot use them.
    #[error(
        "open the fleet's registry ({place}): its schema takes an Emberbox that knows {found}, this one knows {known}; \
         use the newer Emberbox"
    )]
    Newer {
        /// Which registry.
        place: String,
        /// What its schema takes.
        found: i64,
        /// The newest that this program can use.
        known: i64,
    },
    /// [`Registry::close`] was called.
    #[error("the fleet's registry is closed")]
    Closed,
}

impl RegistryError {
    /// Whether the same call may succeed later.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

pub(crate) fn check(member: &Member, ttl: Duration) -> Result<(), RegistryError> {
    let invalid = |reason| {
        let operation = format!("join the fleet as member {:?}", member.id);
        Err(RegistryError::Invalid { operation, reason })
    };
    match member.check() {
        Err(reason) => invalid(reason),
        Ok(()) if ttl < SHORTEST_TTL => {
            invalid(format!("a lease of {ttl:?} is too short; take {SHORTEST_TTL:?} or more"))
        }
        Ok(()) => Ok(()),
    }
}
