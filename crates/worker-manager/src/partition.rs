//! Which functions a manager of a fleet is responsible for.

use std::sync::Arc;

use domain::{FunctionArn, rendezvous};

/// The managers as one of them sees them. Functions are shared out among them by rendezvous hashing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Partition {
    /// Of the view of the fleet that this is: a later view has a higher one.
    pub epoch: u64,
    /// All that live.
    pub managers: Vec<Arc<str>>,
    /// The one whose partition this is.
    pub me: Arc<str>,
}

impl Partition {
    /// Whether the function is this manager's.
    pub fn owns(&self, function: &FunctionArn) -> bool {
        self.owner(function) == Some(&*self.me)
    }

    /// Whose it is; `None` while no manager lives.
    pub fn owner(&self, function: &FunctionArn) -> Option<&str> {
        rendezvous::owner(self.managers.iter().map(|manager| &**manager), &function.text())
    }
}
