//! Invocations that do not come through the API: of events, of batches from event sources, of records.

use std::sync::Arc;

use domain::{Clock, FunctionArn};
use frontend::Identity;
use frontend::ports::{Functions as _, Target};
use frontend::sync_path::SyncPath;
use lambda_api::ApiError;

use super::Functions;

/// What such an invocation takes. Cheap to clone.
#[derive(Clone)]
pub struct Direct {
    /// Finds the version.
    pub functions: Functions,
    /// Runs it, as it runs those of the API.
    pub sync_path: SyncPath,
    /// Of the timelines.
    pub clock: Arc<dyn Clock>,
}

impl Direct {
    /// The version that serves an invocation now, as for the function's owner.
    pub fn resolve(&self, function: &FunctionArn, qualifier: Option<&str>) -> Result<Target, ApiError> {
        let owner = Identity { account: function.account.clone(), region: function.region.clone() };
        self.functions.resolve(&owner, &function.name, qualifier, frontend::draw_fraction())
    }
}
