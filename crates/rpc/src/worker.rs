//! `domain::Worker` over the network: [`server`] has the sandboxes, [`client`] is for those who want them.

pub(crate) mod client;
mod hub;
mod observe;
pub(crate) mod server;
mod stream;
mod watch;

use std::sync::Arc;

use domain::rendezvous;

/// "These functions are mine": the ones that [`rendezvous::owner`] gives to `manager`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim {
    /// Who claims.
    pub manager: Arc<str>,
    /// Of the manager's view of the fleet.
    pub epoch: u64,
    /// The managers of that view that functions belong to. One that leaves is not among them: it claims nothing, and hears reports only.
    pub managers: Vec<Arc<str>>,
}

impl Claim {
    /// Whether the function, by its ARN without qualifier, is among them.
    pub fn covers(&self, function: &str) -> bool {
        rendezvous::owner(self.managers.iter().map(AsRef::as_ref), function) == Some(&*self.manager)
    }
}
