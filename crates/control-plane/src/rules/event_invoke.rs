//! Settings of asynchronous invocation: how often and how long an event is tried, and where its outcome goes.

use domain::{FunctionArn, FunctionRef};
use lambda_api::types::{
    DeadLetterConfig, DestinationConfig, FunctionEventInvokeConfig, OnFailure, OnSuccess, Timestamp,
};
use lambda_api::{ApiError, ErrorCode};

use crate::record::EventInvoke;
use crate::rules::invalid;

/// What a request gives; what it leaves out is `None`.
pub(crate) struct Given<'a> {
    pub retries: Option<i32>,
    pub max_age: Option<i32>,
    pub destinations: Option<&'a DestinationConfig>,
}

/// PutFunctionEventInvokeConfig starts from the default, UpdateFunctionEventInvokeConfig from what there is. `exists`
/// says whether there is a function of the same account and region with this name.
pub(crate) fn change(
    old: EventInvoke,
    given: &Given<'_>,
    arn: &FunctionArn,
    now: f64,
    exists: impl Fn(&str) -> bool,
) -> Result<EventInvoke, ApiError> {
    if given.retries.is_none() && given.max_age.is_none() && given.destinations.is_none() {
        return Err(invalid("You must specify at least one of error handling or destination setting."));
    }
    let mut new = EventInvoke { last_modified: now, ..old };
    // Ranges were checked before; none allows a negative number.
    let unsigned = |value: Option<i32>| value.and_then(|n| u32::try_from(n).ok());
    new.retries = unsigned(given.retries).or(new.retries);
    new.max_age = unsigned(given.max_age).or(new.max_age);
    if let Some(config) = given.destinations {
        let success = config.on_success.as_ref().and_then(|on| on.destination.clone());
        let failure = config.on_failure.as_ref().and_then(|on| on.destination.clone());
        new.on_success = success.filter(|arn| !arn.is_empty());
        new.on_failure = failure.filter(|arn| !arn.is_empty());
        check_destinations(&new, arn, exists)?;
    }
    Ok(new)
}

fn check_destinations(
    config: &EventInvoke,
    function: &FunctionArn,
    exists: impl Fn(&str) -> bool,
) -> Result<(), ApiError> {
    let (success, failure) = (config.on_success.as_deref(), config.on_failure.as_deref());
    for (destination, of_failure) in [(failure, true), (success, false)] {
        let Some(destination) = destination else { continue };
        match service(destination) {
            Some("lambda") => check_function(destination, function, &exists)?,
            Some("sqs" | "sns" | "events") => check_named(destination)?,
            Some("s3") if of_failure => check_named(destination)?,
            _ => {
                let part = |name, arn: Option<&str>| {
                    arn.map_or_else(|| "null".to_owned(), |arn| format!("{name}(destination={arn})"))
                };
                return Err(invalid(format!(
                    "The provided destination config DestinationConfig(onSuccess={}, onFailure={}) is invalid.",
                    part("OnSuccess", success),
                    part("OnFailure", failure)
                )));
            }
        }
    }
    Ok(())
}

/// What could never be sent to is refused here, where somebody sees it. Lambda takes standard queues and topics only.
fn check_named(destination: &str) -> Result<(), ApiError> {
    let resource = destination.splitn(6, ':').nth(5).unwrap_or_default();
    let name =
        if service(destination) == Some("events") { resource.strip_prefix("event-bus/") } else { Some(resource) };
    if name.is_some_and(|name| !name.is_empty() && !name.contains(':') && !name.ends_with(".fifo")) {
        return Ok(());
    }
    Err(invalid(format!("The destination ARN {destination} is invalid.")))
}

fn check_function(destination: &str, own: &FunctionArn, exists: impl Fn(&str) -> bool) -> Result<(), ApiError> {
    let wrong = || invalid(format!("The destination ARN {destination} is invalid."));
    let named = FunctionRef::parse(destination).ok_or_else(wrong)?;
    let same_place =
        named.account.as_deref() == Some(own.account.as_str()) && named.region.as_deref() == Some(&own.region);
    if !same_place || !exists(&named.name) {
        return Err(wrong());
    }
    if *named.name == *own.name {
        return Err(invalid("You can't specify the function as a destination for itself."));
    }
    Ok(())
}

/// As the API shows it: both destinations are always there, maybe empty.
pub(crate) fn view(arn: &FunctionArn, qualifier: &str, config: &EventInvoke) -> FunctionEventInvokeConfig {
    let signed = |value: Option<u32>| value.and_then(|n| i32::try_from(n).ok());
    FunctionEventInvokeConfig {
        last_modified: Some(Timestamp(config.last_modified)),
        function_arn: Some(arn.qualified(qualifier)),
        maximum_retry_attempts: signed(config.retries),
        maximum_event_age_in_seconds: signed(config.max_age),
        destination_config: Some(DestinationConfig {
            on_success: Some(OnSuccess { destination: config.on_success.clone() }),
            on_failure: Some(OnFailure { destination: config.on_failure.clone() }),
        }),
    }
}

/// There is no configuration for what the ARN names, or not even that.
pub(crate) fn missing(arn: &str) -> ApiError {
    ApiError::new(ErrorCode::ResourceNotFoundException, format!("The function {arn} doesn't have an EventInvokeConfig"))
}

/// There is no such function, version or alias.
pub(crate) fn no_function() -> ApiError {
    ApiError::new(ErrorCode::ResourceNotFoundException, "The function doesn't exist.")
}

/// The target of a `DeadLetterConfig`: an SQS queue or an SNS topic; an empty one is none.
pub(crate) fn dead_letter(config: Option<&DeadLetterConfig>) -> Result<Option<String>, ApiError> {
    let target = config.and_then(|config| config.target_arn.as_deref()).filter(|arn| !arn.is_empty());
    match target {
        None => Ok(None),
        Some(arn) if matches!(service(arn), Some("sqs" | "sns")) && check_named(arn).is_ok() => {
            Ok(Some(arn.to_owned()))
        }
        Some(arn) => Err(invalid(format!(
            "The provided dead letter target {arn} is invalid. Only ARNs of standard SQS queues and SNS \
             topics are supported."
        ))),
    }
}

/// `sqs` of `arn:aws:sqs:…`.
fn service(arn: &str) -> Option<&str> {
    let mut parts = arn.split(':');
    parts.next().filter(|first| *first == "arn")?;
    parts.nth(1)
}

#[cfg(test)]
mod tests {
    use domain::AccountId;
    use proptest::prelude::*;

    use super::*;

    fn arn() -> FunctionArn {
        FunctionArn { region: "us-east-1".into(), account: AccountId::local(), name: "f".into() }
    }

    fn given<'a>(retries: Option<i32>, max_age: Option<i32>, destinations: Option<&'a DestinationConfig>) -> Given<'a> {
        Given { retries, max_age, destinations }
    }

    fn to(success: Option<&str>, failure: Option<&str>) -> DestinationConfig {
        DestinationConfig {
            on_success: success.map(|arn| OnSuccess { destination: Some(arn.into()) }),
            on_failure: failure.map(|arn| OnFailure { destination: Some(arn.into()) }),
        }
    }

    #[test]
    fn destinations_are_of_the_kinds_that_there_are() {
        let change = |success: Option<&str>, failure: Option<&str>| {
            let config = to(success, failure);
            change(EventInvoke::default(), &given(None, None, Some(&config)), &arn(), 1.0, |name| name != "gone")
                .map(|new| (new.on_success, new.on_failure))
                .map_err(|error| error.message)
        };
        let lambda = |name: &str| format!("arn:aws:lambda:us-east-1:000000000000:function:{name}");
        for good in ["arn:aws:sqs:us-east-1:000000000000:q", "arn:aws:sns:us-east-1:000000000000:t", &lambda("g:live")]
        {
            assert_eq!(change(Some(good), Some(good)), Ok((Some(good.into()), Some(good.into()))));
        }
        assert_eq!(change(Some(""), None), Ok((None, None)), "an empty one removes");
        assert!(change(None, Some("arn:aws:s3:::bucket")).is_ok());
        assert_eq!(
            change(Some("arn:aws:s3:::bucket"), None).unwrap_err(),
            "The provided destination config DestinationConfig(onSuccess=OnSuccess(destination=arn:aws:s3:::bucket), \
             onFailure=null) is invalid."
        );
        assert_eq!(
            change(None, Some(&lambda("f"))).unwrap_err(),
            "You can't specify the function as a destination for itself."
        );
        for wrong in [
            lambda("gone"),
            lambda("g").replace("us-east-1", "eu-west-1"),
            "arn:aws:lambda:x".into(),
            "arn:aws:sqs:us-east-1:000000000000:".into(),
            "arn:aws:sqs:us-east-1:000000000000:q.fifo".into(),
            "arn:aws:sns:us-east-1:000000000000:t:subscription".into(),
            "arn:aws:events:us-east-1:000000000000:rule/r".into(),
            "arn:aws:s3:::".into(),
        ] {
            let error = change(None, Some(&wrong)).unwrap_err();
            assert_eq!(error, format!("The destination ARN {wrong} is invalid."));
        }
    }

    proptest! {
        /// An update changes what it gives and nothing else; one that gives nothing is refused.
        #[test]
        fn an_update_merges(
            old in prop::option::of(0..3i32), retries in prop::option::of(0..3i32), age in prop::option::of(60..21600i32),
        ) {
            let before = EventInvoke { retries: old.map(|n| n as u32), on_failure: Some("x".into()), ..Default::default() };
            match change(before.clone(), &given(retries, age, None), &arn(), 5.0, |_| true) {
                Ok(new) => {
                    prop_assert_eq!(new.retries, retries.map(|n| n as u32).or(before.retries));
                    prop_assert_eq!(new.max_age, age.map(|n| n as u32));
                    prop_assert_eq!((new.on_failure, new.last_modified), (before.on_failure, 5.0));
                }
                Err(_) => prop_assert!(retries.is_none() && age.is_none()),
            }
        }
    }

    #[test]
    fn dead_letters_go_to_queues_and_topics() {
        let of = |arn: &str| dead_letter(Some(&DeadLetterConfig { target_arn: Some(arn.into()) }));
        assert_eq!(dead_letter(None), Ok(None));
        assert_eq!(of(""), Ok(None));
        for arn in ["arn:aws:sqs:us-east-1:000000000000:q", "arn:aws:sns:us-east-1:000000000000:t"] {
            assert_eq!(of(arn), Ok(Some(arn.into())));
        }
        for arn in [
            "arn:aws:s3:::b",
            "sqs",
            "arn:aws:sqs:us-east-1:000000000000:q.fifo",
            "arn:aws:sqs:q",
            "arn:aws:lambda:us-east-1:000000000000:function:g",
        ] {
            assert!(of(arn).unwrap_err().message.contains(arn));
        }
    }
}
