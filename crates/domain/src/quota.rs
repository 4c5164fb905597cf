//! How several Worker Managers share an account's concurrency: what one asks of the account's home, and what that answers. The rules
//! are in `worker_manager::quota`.

use crate::ids::AccountId;

/// What a manager wants to know of an account's home.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ask {
    /// Of the manager's view.
    pub epoch: u64,
    /// Of this question among all that the manager has asked this home; see [`QuotaHome`].
    pub number: u64,
    /// Whose concurrency.
    pub account: AccountId,
    /// The account's limit, as requests carry it.
    pub limit: u32,
    /// What the manager keeps to from now on, whatever the answer.
    pub hold: u32,
    /// What it would like to have; not below `hold`.
    pub want: u32,
}

/// The answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grant {
    /// What the manager may use; not below what it holds.
    pub grant: u32,
    /// Somebody wants more than there is: hold no more than is in use.
    pub scarce: bool,
}

/// A manager as the home of some accounts.
///
/// A question that its asker has given up may still arrive, after later ones. So each has a number that is higher than those of all before it
/// in its view, and one that comes too late changes nothing. 0 has no order: an Emberbox from before there were numbers.
pub trait QuotaHome: Send + Sync + 'static {
    /// What the manager `from` holds of the accounts whose home this one is, all of it; `false` if the views differ, or if it comes too late.
    fn hello(&self, from: &str, epoch: u64, number: u64, holds: &[(AccountId, u32)]) -> bool;
    /// Answers the manager `from`; `None` if the views differ, or if it comes too late.
    fn answer(&self, from: &str, ask: &Ask) -> Option<Grant>;
}
