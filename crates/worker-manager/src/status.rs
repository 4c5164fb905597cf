//! What there is now, for metrics and the command line.

use domain::{AccountId, FunctionArn};

/// A snapshot; its parts are read one after the other while work goes on.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Status {
    /// Functions that have sandboxes or had some lately.
    pub functions: Vec<FunctionStatus>,
    /// Accounts that invoked anything since the start.
    pub accounts: Vec<AccountStatus>,
}

/// One function, over all its versions.
#[derive(Clone, PartialEq, Debug)]
pub struct FunctionStatus {
    /// Which.
    pub function: FunctionArn,
    /// Sandboxes in `Init`.
    pub starting: u32,
    /// Sandboxes that wait for a request.
    pub idle: u32,
    /// Sandboxes that serve one, those that finish included.
    pub busy: u32,
    /// Requests that wait for a sandbox.
    pub waiting: u32,
    /// Concurrency in use: running invocations and those whose sandbox starts.
    pub in_use: u32,
}

/// One account.
#[derive(Clone, PartialEq, Debug)]
pub struct AccountStatus {
    /// Which.
    pub account: AccountId,
    /// Concurrency in use by functions without a reservation.
    pub unreserved_in_use: u32,
}
