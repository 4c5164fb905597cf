//! Aliases: a name for a version, or for two of them by weight.

use std::collections::BTreeMap;

use lambda_api::types::{AliasConfiguration, AliasRoutingConfiguration, CreateAliasRequest, UpdateAliasRequest};
use lambda_api::{ApiError, ErrorCode};

use crate::function::{Function, Stamp, check_revision};
use crate::name::{not_found, version_number};
use crate::record::{Alias, LATEST, Unknown};
use crate::rules::invalid;

pub(crate) fn create(
    function: &mut Function,
    request: &CreateAliasRequest,
    stamp: &mut Stamp<'_>,
) -> Result<AliasConfiguration, ApiError> {
    check_version(function, &request.function_version)?;
    if function.record.aliases.contains_key(&request.name) {
        return Err(ApiError::new(
            ErrorCode::ResourceConflictException,
            format!("Alias already exists: {}", function.arn.qualified(&request.name)),
        ));
    }
    let alias = Alias {
        version: request.function_version.clone(),
        additional: routing(function, &request.function_version, request.routing_config.as_ref())?,
        description: request.description.clone().unwrap_or_default(),
        revision_id: stamp.id(),
        unknown: Unknown::new(),
    };
    let view = configuration(function, &request.name, &alias);
    function.record.aliases.insert(request.name.clone(), alias);
    Ok(view)
}

pub(crate) fn update(
    function: &mut Function,
    request: &UpdateAliasRequest,
    stamp: &mut Stamp<'_>,
) -> Result<AliasConfiguration, ApiError> {
    let Some(mut alias) = function.record.aliases.get(&request.name).cloned() else {
        return Err(ApiError::new(
            ErrorCode::ResourceNotFoundException,
            format!("Alias not found: {}", function.arn.qualified(&request.name)),
        ));
    };
    check_revision(&alias.revision_id, request.revision_id.as_deref())?;
    if let Some(version) = &request.function_version {
        check_version(function, version)?;
        alias.version.clone_from(version);
    }
    alias.additional = match &request.routing_config {
        Some(config) => routing(function, &alias.version, Some(config))?,
        // What stays must fit the new version.
        None => match alias.additional {
            Some(additional) => check_additional(function, &alias.version, additional).map(Some)?,
            None => None,
        },
    };
    if let Some(description) = &request.description {
        alias.description.clone_from(description);
    }
    alias.revision_id = stamp.id();
    let view = configuration(function, &request.name, &alias);
    function.record.aliases.insert(request.name.clone(), alias);
    Ok(view)
}

/// Deleting an alias that is not there is no error.
pub(crate) fn delete(function: &mut Function, name: &str) {
    function.record.aliases.remove(name);
    function.record.policies.remove(name);
    function.record.event_invoke.remove(name);
}

pub(crate) fn get(function: &Function, name: &str) -> Result<AliasConfiguration, ApiError> {
    let alias = function.record.aliases.get(name).ok_or_else(|| {
        ApiError::new(
            ErrorCode::ResourceNotFoundException,
            format!("Cannot find alias arn: {}", function.arn.qualified(name)),
        )
    })?;
    Ok(configuration(function, name, alias))
}

pub(crate) fn configuration(function: &Function, name: &str, alias: &Alias) -> AliasConfiguration {
    AliasConfiguration {
        alias_arn: Some(function.arn.qualified(name)),
        name: Some(name.to_owned()),
        function_version: Some(alias.version.clone()),
        description: Some(alias.description.clone()),
        routing_config: alias.additional.map(|(version, weight)| AliasRoutingConfiguration {
            additional_version_weights: Some(BTreeMap::from([(version.to_string(), weight)])),
        }),
        revision_id: Some(alias.revision_id.clone()),
    }
}

/// The version that an invocation runs: the additional one for as large a part of `random` (in `[0, 1)`) as it weighs.
pub(crate) fn pick(alias: &Alias, random: f64) -> String {
    match alias.additional {
        Some((version, weight)) if random < weight => version.to_string(),
        _ => alias.version.clone(),
    }
}

fn check_version(function: &Function, name: &str) -> Result<(), ApiError> {
    let exists = name == LATEST || version_number(name).is_some_and(|n| function.versions.contains_key(&n));
    if exists { Ok(()) } else { Err(not_found(function.arn.qualified(name))) }
}

fn routing(
    function: &Function,
    version: &str,
    config: Option<&AliasRoutingConfiguration>,
) -> Result<Option<(u64, f64)>, ApiError> {
    let weights = config.and_then(|config| config.additional_version_weights.as_ref());
    let Some(weights) = weights.filter(|weights| !weights.is_empty()) else { return Ok(None) };
    if weights.len() > 1 {
        return Err(invalid("Number of items in AdditionalVersionWeights cannot be greater than 1"));
    }
    let (additional, weight) = weights.first_key_value().expect("it is not empty");
    let number = version_number(additional).ok_or_else(|| not_found(function.arn.qualified(additional)))?;
    check_additional(function, version, (number, *weight)).map(Some)
}

fn check_additional(function: &Function, version: &str, additional: (u64, f64)) -> Result<(u64, f64), ApiError> {
    let name = additional.0.to_string();
    if name == version {
        return Err(invalid(format!(
            "Invalid function version {name}. Function version {name} is already included in routing configuration."
        )));
    }
    if version == LATEST {
        return Err(invalid("$LATEST is not supported for an alias pointing to more than 1 version").without_type());
    }
    check_version(function, &name)?;
    Ok(additional)
}
