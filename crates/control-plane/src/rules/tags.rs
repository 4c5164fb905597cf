//! Tags of functions.

use std::collections::BTreeMap;

use lambda_api::{ApiError, ErrorCode};

use crate::name::{Caller, Target};
use crate::rules::invalid;

/// Tags of one function.
const LIMIT: usize = 50;

/// The function that a tag operation is about.
pub(crate) fn function(caller: &Caller, operation: &str, resource: &str) -> Result<domain::FunctionArn, ApiError> {
    // arn:aws:lambda:<region>:<account>:<kind>:<name>
    match resource.split(':').nth(5) {
        Some("function") => {}
        Some("event-source-mapping") => return Err(no_event_source(resource)),
        Some("capacity-provider") => return Err(missing(format!("Capacity provider not found: {resource}"))),
        _ => return Err(missing("The resource you requested does not exist.".to_owned())),
    }
    let target = Target::own(caller, operation, resource, None)?;
    if target.qualifier.is_some() {
        return Err(invalid("Tags on function aliases and versions are not supported. Please specify a function ARN."));
    }
    Ok(target.arn)
}

/// UUID of the event source mapping that a tag operation is about, if it is about one.
pub(crate) fn event_source(resource: &str) -> Option<&str> {
    let mut parts = resource.split(':').skip(5);
    (parts.next()? == "event-source-mapping").then(|| parts.next()).flatten()
}

/// There is no such mapping.
pub(crate) fn no_event_source(resource: &str) -> ApiError {
    missing(format!("Event source mapping not found: {resource}"))
}

pub(crate) fn check(tags: &BTreeMap<String, String>) -> Result<(), ApiError> {
    if tags.len() > LIMIT {
        return Err(invalid("Number of tags exceeds resource tag limit."));
    }
    Ok(())
}

/// TagResource.
pub(crate) fn add(tags: &mut BTreeMap<String, String>, more: &BTreeMap<String, String>) -> Result<(), ApiError> {
    if more.is_empty() {
        return Err(invalid("An error occurred and the request cannot be processed."));
    }
    let mut all = tags.clone();
    all.extend(more.clone());
    check(&all)?;
    *tags = all;
    Ok(())
}

fn missing(message: String) -> ApiError {
    ApiError::new(ErrorCode::ResourceNotFoundException, message)
}
