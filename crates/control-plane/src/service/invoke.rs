//! From what an invocation names to what runs. On the warm path: memory only, no locks.

use std::sync::Arc;

use domain::{ConcurrencyLimits, FunctionVersion};
use lambda_api::{ApiError, ErrorCode};

use super::ControlPlane;
use crate::function::in_state;
use crate::name::{Caller, Target, denied, not_found, version_number};
use crate::record::{LATEST, Snapshot, State, account_key, function_key};
use crate::rules::{alias, concurrency, policy};

/// What an invocation runs.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The version, in its present state.
    pub version: Arc<FunctionVersion>,
    /// The ARN as invoked: with the qualifier only if the caller gave one.
    pub invoked_arn: String,
    /// How many may run at once.
    pub limits: ConcurrencyLimits,
    /// `RecursiveLoop` is `Allow`.
    pub recursion_allowed: bool,
}

impl ControlPlane {
    /// Finds the version that an invocation runs. `random`, in `[0, 1)`, decides between the two versions of an alias
    /// with weights.
    ///
    /// # Errors
    /// As Invoke: no such function, version or alias; not Active; another account's function whose policy does not
    /// allow the call.
    pub fn resolve(
        &self,
        caller: &Caller,
        function_name: &str,
        qualifier: Option<&str>,
        random: f64,
    ) -> Result<Resolved, ApiError> {
        let target = Target::any(caller, function_name, qualifier)?;
        let catalog = &self.inner.catalog;
        let entry = catalog.function(&function_key(&target.arn));
        let qualifier = target.qualifier.as_deref();
        if target.arn.account != caller.account {
            // Whether there is such a function is nobody else's business either.
            let allowed = entry.as_ref().is_some_and(|e| policy::allows_invoke(&e.function, qualifier, caller));
            if !allowed {
                return Err(denied(caller, "InvokeFunction", &target));
            }
        }
        let entry = entry.ok_or_else(|| not_found(target.arn.qualified(qualifier.unwrap_or(LATEST))))?;
        let function = &entry.function;
        let picked = qualifier.and_then(|name| function.record.aliases.get(name)).map(|a| alias::pick(a, random));
        let (state, snapshot, version) = match picked.as_deref().or(qualifier).unwrap_or(LATEST) {
            LATEST => (&function.serving().state, &Snapshot::None, &entry.serving),
            name => {
                let published = version_number(name).and_then(|number| function.versions.get(&number));
                let published = published.ok_or_else(|| not_found(target.full_arn()))?;
                (&published.version.state, &published.version.snapshot, &published.runnable)
            }
        };
        match state {
            State::Active => {}
            State::Pending if *snapshot == Snapshot::Due => return Err(not_ready()),
            State::Pending => return Err(in_state("Pending")),
            State::Failed { .. } => return Err(in_state("Failed")),
        }
        let account = catalog.account(&account_key(target.arn.account.as_str(), &target.arn.region));
        let total = self.inner.config.account_concurrency;
        Ok(Resolved {
            version: Arc::clone(version),
            invoked_arn: target.full_arn(),
            limits: concurrency::limits(&account.record, &target.arn.name, total),
            recursion_allowed: function.record.recursion_allowed,
        })
    }
}

/// A version with SnapStart whose snapshot is being taken.
fn not_ready() -> ApiError {
    ApiError::new(
        ErrorCode::SnapStartNotReadyException,
        "Lambda is initializing your function. It will be ready to invoke once your function state becomes ACTIVE.",
    )
}
