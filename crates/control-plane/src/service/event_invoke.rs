//! Settings of asynchronous invocation, and what the pollers make of them.

use std::time::{Duration, SystemTime};

use domain::FunctionArn;
use lambda_api::ApiError;
use lambda_api::types::{
    DeleteFunctionEventInvokeConfigRequest, FunctionEventInvokeConfig, GetFunctionEventInvokeConfigRequest,
    GetFunctionRecursionConfigRequest, GetFunctionRecursionConfigResponse, ListFunctionEventInvokeConfigsRequest,
    ListFunctionEventInvokeConfigsResponse, PutFunctionEventInvokeConfigRequest, PutFunctionRecursionConfigRequest,
    PutFunctionRecursionConfigResponse, RecursiveLoop, UpdateFunctionEventInvokeConfigRequest,
};

use super::{ControlPlane, Inner};
use crate::function::Function;
use crate::name::{Caller, Target, not_found};
use crate::page::page;
use crate::record::{EventInvoke, LATEST, function_key};
use crate::rules::event_invoke::{Given, change, missing, no_function, view};

/// Retries after function errors, unless configured.
const DEFAULT_RETRIES: u32 = 2;
/// How long an event is tried, unless configured.
const DEFAULT_MAX_AGE: Duration = Duration::from_secs(6 * 3600);

/// How an event is to be treated, by the settings of the moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventSettings {
    /// Retries after function errors: 0 to 2.
    pub maximum_retry_attempts: u32,
    /// How long it is tried.
    pub maximum_event_age: Duration,
    /// ARN of where a success goes.
    pub on_success: Option<String>,
    /// ARN of where the final failure goes.
    pub on_failure: Option<String>,
    /// ARN of the dead-letter queue or topic.
    pub dead_letter: Option<String>,
    /// The function's reserved concurrency, if any; with 0 it cannot run.
    pub reserved_concurrency: Option<u32>,
    /// `RecursiveLoop` is `Allow`.
    pub recursion_allowed: bool,
    /// Concurrency of the account for its functions without reserved concurrency.
    pub unreserved_concurrency: u32,
}

impl ControlPlane {
    /// What holds for an event of a function at this moment. `qualifier` is as invoked: an alias has settings of its
    /// own.
    ///
    /// # Errors
    /// The function, version or alias is not there any more.
    pub fn event_settings(&self, arn: &FunctionArn, qualifier: Option<&str>) -> Result<EventSettings, ApiError> {
        let entry = self.inner.function_of(arn)?;
        let function = &entry.function;
        let version = function.version(qualifier)?;
        let config = function.record.event_invoke.get(qualifier.unwrap_or(LATEST)).cloned().unwrap_or_default();
        Ok(EventSettings {
            maximum_retry_attempts: config.retries.unwrap_or(DEFAULT_RETRIES),
            maximum_event_age: config.max_age.map_or(DEFAULT_MAX_AGE, |s| Duration::from_secs(s.into())),
            on_success: config.on_success,
            on_failure: config.on_failure,
            dead_letter: version.settings.dead_letter.clone(),
            reserved_concurrency: self.inner.reserved(arn),
            recursion_allowed: function.record.recursion_allowed,
            unreserved_concurrency: self.inner.unreserved(arn),
        })
    }

    /// PutFunctionEventInvokeConfig: replaces what there is.
    pub async fn put_function_event_invoke_config(
        &self,
        caller: &Caller,
        request: PutFunctionEventInvokeConfigRequest,
    ) -> Result<FunctionEventInvokeConfig, ApiError> {
        let qualifier = request.qualifier.as_deref();
        let target = Target::own(caller, "PutFunctionEventInvokeConfig", &request.function_name, qualifier)?;
        let given = Given {
            retries: request.maximum_retry_attempts,
            max_age: request.maximum_event_age_in_seconds,
            destinations: request.destination_config.as_ref(),
        };
        self.inner.change_event_invoke(&target, &given, |_, _| Ok(EventInvoke::default())).await
    }

    /// UpdateFunctionEventInvokeConfig: what the request leaves out stays.
    pub async fn update_function_event_invoke_config(
        &self,
        caller: &Caller,
        request: UpdateFunctionEventInvokeConfigRequest,
    ) -> Result<FunctionEventInvokeConfig, ApiError> {
        let qualifier = request.qualifier.as_deref();
        let target = Target::own(caller, "UpdateFunctionEventInvokeConfig", &request.function_name, qualifier)?;
        let given = Given {
            retries: request.maximum_retry_attempts,
            max_age: request.maximum_event_age_in_seconds,
            destinations: request.destination_config.as_ref(),
        };
        let old = |function: &Function, name: &str| {
            let config = function.record.event_invoke.get(name).cloned();
            config.ok_or_else(|| missing(&function.arn.qualified(name)))
        };
        self.inner.change_event_invoke(&target, &given, old).await
    }

    /// GetFunctionEventInvokeConfig.
    pub async fn get_function_event_invoke_config(
        &self,
        caller: &Caller,
        request: GetFunctionEventInvokeConfigRequest,
    ) -> Result<FunctionEventInvokeConfig, ApiError> {
        let qualifier = request.qualifier.as_deref();
        let target = Target::own(caller, "GetFunctionEventInvokeConfig", &request.function_name, qualifier)?;
        let name = target.qualifier.as_deref().unwrap_or(LATEST);
        // As recorded: a version or function that is not there has no configuration either.
        let entry = self.inner.catalog.function(&function_key(&target.arn));
        let config = entry.as_ref().and_then(|entry| entry.function.record.event_invoke.get(name));
        config.map(|config| view(&target.arn, name, config)).ok_or_else(|| missing(&target.arn.qualified(name)))
    }

    /// ListFunctionEventInvokeConfigs: those of the function, its versions and its aliases.
    pub async fn list_function_event_invoke_configs(
        &self,
        caller: &Caller,
        request: ListFunctionEventInvokeConfigsRequest,
    ) -> Result<ListFunctionEventInvokeConfigsResponse, ApiError> {
        let arn = Target::unqualified(caller, "ListFunctionEventInvokeConfigs", &request.function_name)?;
        let entry = self.inner.catalog.function(&function_key(&arn)).ok_or_else(no_function)?;
        let all = entry.function.record.event_invoke.iter();
        let all = all.map(|(name, config)| (name.clone(), view(&arn, name, config)));
        let (configs, next_marker) = page(all, request.marker.as_deref(), request.max_items)?;
        Ok(ListFunctionEventInvokeConfigsResponse { function_event_invoke_configs: Some(configs), next_marker })
    }

    /// DeleteFunctionEventInvokeConfig.
    pub async fn delete_function_event_invoke_config(
        &self,
        caller: &Caller,
        request: DeleteFunctionEventInvokeConfigRequest,
    ) -> Result<(), ApiError> {
        let qualifier = request.qualifier.as_deref();
        let target = Target::own(caller, "DeleteFunctionEventInvokeConfig", &request.function_name, qualifier)?;
        let name = target.qualifier.as_deref().unwrap_or(LATEST);
        let rule = |function: &mut Function, _: &mut crate::function::Stamp<'_>| {
            let removed = function.record.event_invoke.remove(name);
            removed.map(drop).ok_or_else(|| missing(&target.arn.qualified(name)))
        };
        self.inner.change(&function_key(&target.arn), no_function, rule).await
    }

    /// PutFunctionRecursionConfig.
    pub async fn put_function_recursion_config(
        &self,
        caller: &Caller,
        request: PutFunctionRecursionConfigRequest,
    ) -> Result<PutFunctionRecursionConfigResponse, ApiError> {
        let arn = Target::unqualified(caller, "PutFunctionRecursionConfig", &request.function_name)?;
        let allowed = request.recursive_loop == RecursiveLoop::Allow;
        let rule = |function: &mut Function, _: &mut crate::function::Stamp<'_>| {
            function.record.recursion_allowed = allowed;
            Ok(())
        };
        self.inner.change(&function_key(&arn), || not_found(&arn), rule).await?;
        Ok(PutFunctionRecursionConfigResponse { recursive_loop: Some(request.recursive_loop) })
    }

    /// GetFunctionRecursionConfig.
    pub async fn get_function_recursion_config(
        &self,
        caller: &Caller,
        request: GetFunctionRecursionConfigRequest,
    ) -> Result<GetFunctionRecursionConfigResponse, ApiError> {
        let arn = Target::unqualified(caller, "GetFunctionRecursionConfig", &request.function_name)?;
        let allowed = self.inner.function_of(&arn)?.function.record.recursion_allowed;
        let recursive_loop = if allowed { RecursiveLoop::Allow } else { RecursiveLoop::Terminate };
        Ok(GetFunctionRecursionConfigResponse { recursive_loop: Some(recursive_loop) })
    }
}

impl Inner {
    /// `old`: what the request changes, which there may have to be.
    async fn change_event_invoke(
        &self,
        target: &Target,
        given: &Given<'_>,
        old: impl Fn(&Function, &str) -> Result<EventInvoke, ApiError>,
    ) -> Result<FunctionEventInvokeConfig, ApiError> {
        let arn = &target.arn;
        let name = target.qualifier.as_deref().unwrap_or(LATEST);
        let since = self.clock.wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = since.as_millis() as f64 / 1000.0;
        let exists = |name: &str| {
            let other = FunctionArn { name: name.into(), ..arn.clone() };
            self.catalog.function(&function_key(&other)).is_some()
        };
        let rule = |function: &mut Function, _: &mut crate::function::Stamp<'_>| {
            let config = function.version(Some(name)).map_err(|_| no_function()).and_then(|_| old(function, name))?;
            let config = change(config, given, arn, now, exists)?;
            let shown = view(arn, name, &config);
            function.record.event_invoke.insert(name.to_owned(), config);
            Ok(shown)
        };
        self.change(&function_key(arn), no_function, rule).await
    }
}
