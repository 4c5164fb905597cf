//! Event source mappings: what a request may ask for, and what becomes of the stored mapping.
//!
//! ```text
//!  create ─► Creating ─► Enabled ◄─► Disabling ─► Disabled ◄─► Enabling      update ─► Updating ─► (as before)
//!  delete (at any time) ─► Deleting ─► gone
//! ```
//!
//! The states that end in "ing" are stored and end by a background step, so that each change is seen to be under way.

use std::collections::BTreeMap;
use std::time::Duration;

use domain::{EventSource, EventSourceMapping, FunctionArn, QueueArn};
use event_pattern::Pattern;
use lambda_api::types::{
    CreateEventSourceMappingRequest, DestinationConfig, EventSourceMappingConfiguration,
    EventSourceMappingMetricsConfig, Filter, FilterCriteria, FunctionResponseType, ScalingConfig, Timestamp,
    UpdateEventSourceMappingRequest,
};
use lambda_api::{ApiError, ErrorCode};
use serde::{Deserialize, Serialize};

use crate::record::Unknown;
use crate::rules::unsupported::refuse;
use crate::rules::{invalid, tags};

/// `BatchSize` of an SQS mapping, unless configured; also its maximum without a batching window, and for FIFO queues.
const SQS_BATCH: u32 = 10;
/// What AWS allows on request (5 by default).
const FILTERS: usize = 10;

/// A stored mapping.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct EventSourceRecord {
    pub uuid: String,
    pub function: FunctionArn,
    /// Version or alias.
    pub qualifier: Option<String>,
    pub source: Source,
    /// What the user wants: the state is this once `transition` is over.
    pub enabled: bool,
    pub transition: Option<Transition>,
    /// Seconds since 1970.
    pub last_modified: f64,
    pub batch_size: u32,
    /// Seconds.
    pub batching_window: u32,
    pub filters: Vec<String>,
    pub report_batch_item_failures: bool,
    pub tags: BTreeMap<String, String>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A kind of source, with the settings that only it has.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Source {
    Sqs { queue: QueueArn, maximum_concurrency: Option<u32> },
}

/// The names are the API's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Transition {
    Creating,
    Enabling,
    Disabling,
    Updating,
    Deleting,
}

/// What create and update have in common.
struct Given<'a> {
    batch_size: Option<i32>,
    batching_window: Option<i32>,
    filters: Option<&'a FilterCriteria>,
    response_types: Option<&'a [FunctionResponseType]>,
    scaling: Option<&'a ScalingConfig>,
}

impl EventSourceRecord {
    /// A new mapping; whether its function is there was checked.
    pub fn create(
        request: &CreateEventSourceMappingRequest,
        (function, qualifier): (FunctionArn, Option<String>),
        uuid: String,
        now: f64,
    ) -> Result<Self, ApiError> {
        let queue = source(request)?;
        refuse_in_create(request)?;
        let tags = request.tags.clone().unwrap_or_default();
        tags::check(&tags)?;
        let mut record = Self {
            uuid,
            function,
            qualifier,
            source: Source::Sqs { queue, maximum_concurrency: None },
            enabled: request.enabled != Some(false),
            transition: Some(Transition::Creating),
            last_modified: now,
            batch_size: SQS_BATCH,
            batching_window: 0,
            filters: Vec::new(),
            report_batch_item_failures: false,
            tags,
            unknown: Unknown::new(),
        };
        record.set(&Given {
            batch_size: request.batch_size,
            batching_window: request.maximum_batching_window_in_seconds,
            filters: request.filter_criteria.as_ref(),
            response_types: request.function_response_types.as_deref(),
            scaling: request.scaling_config.as_ref(),
        })?;
        Ok(record)
    }

    /// What the request leaves out stays. `function` is the new one, if the request names one.
    pub fn update(
        &mut self,
        request: &UpdateEventSourceMappingRequest,
        function: Option<(FunctionArn, Option<String>)>,
        now: f64,
    ) -> Result<(), ApiError> {
        if self.transition.is_some() {
            return Err(in_use("update"));
        }
        refuse_in_update(request)?;
        self.set(&Given {
            batch_size: request.batch_size,
            batching_window: request.maximum_batching_window_in_seconds,
            filters: request.filter_criteria.as_ref(),
            response_types: request.function_response_types.as_deref(),
            scaling: request.scaling_config.as_ref(),
        })?;
        if let Some((function, qualifier)) = function {
            (self.function, self.qualifier) = (function, qualifier);
        }
        let enabled = request.enabled.unwrap_or(self.enabled);
        self.transition = Some(match (self.enabled, enabled) {
            (false, true) => Transition::Enabling,
            (true, false) => Transition::Disabling,
            _ => Transition::Updating,
        });
        (self.enabled, self.last_modified) = (enabled, now);
        Ok(())
    }

    /// It is gone once the transition is over.
    pub fn delete(&mut self, now: f64) -> Result<(), ApiError> {
        if self.transition == Some(Transition::Deleting) {
            return Err(in_use("delete"));
        }
        self.transition = Some(Transition::Deleting);
        self.last_modified = now;
        Ok(())
    }

    fn set(&mut self, given: &Given<'_>) -> Result<(), ApiError> {
        // Ranges were checked before; none allows a negative number.
        let unsigned = |value: Option<i32>| value.and_then(|n| u32::try_from(n).ok());
        self.batch_size = unsigned(given.batch_size).unwrap_or(self.batch_size);
        self.batching_window = unsigned(given.batching_window).unwrap_or(self.batching_window);
        if let Some(criteria) = given.filters {
            self.filters = filters(criteria)?;
        }
        if let Some(types) = given.response_types {
            self.report_batch_item_failures = types.contains(&FunctionResponseType::ReportBatchItemFailures);
        }
        let Source::Sqs { queue, maximum_concurrency } = &mut self.source;
        if let Some(scaling) = given.scaling {
            *maximum_concurrency = unsigned(scaling.maximum_concurrency);
        }
        check_batching(queue, self.batch_size, self.batching_window)
    }

    /// The last word of the mapping's ARN is its UUID.
    pub fn arn(&self) -> String {
        let FunctionArn { region, account, .. } = &self.function;
        format!("arn:aws:lambda:{region}:{account}:event-source-mapping:{}", self.uuid)
    }

    pub fn source_arn(&self) -> String {
        let Source::Sqs { queue, .. } = &self.source;
        queue.to_string()
    }

    pub fn function_arn(&self) -> String {
        self.qualifier.as_ref().map_or_else(|| self.function.to_string(), |name| self.function.qualified(name))
    }

    /// Whether both would send the records of one source to one function.
    pub fn same_pair(&self, other: &Self) -> bool {
        self.function_arn() == other.function_arn() && self.source_arn() == other.source_arn()
    }

    fn state(&self) -> &'static str {
        match self.transition {
            Some(Transition::Creating) => "Creating",
            Some(Transition::Enabling) => "Enabling",
            Some(Transition::Disabling) => "Disabling",
            Some(Transition::Updating) => "Updating",
            Some(Transition::Deleting) => "Deleting",
            None if self.enabled => "Enabled",
            None => "Disabled",
        }
    }

    /// For the pollers; `None` if nothing is to be polled. It goes on during an update.
    pub fn served(&self) -> Option<EventSourceMapping> {
        let settling = matches!(self.transition, Some(Transition::Creating | Transition::Deleting));
        if settling || !self.enabled {
            return None;
        }
        let Source::Sqs { queue, maximum_concurrency } = &self.source;
        Some(EventSourceMapping {
            uuid: self.uuid.clone(),
            function: self.function.clone(),
            qualifier: self.qualifier.clone(),
            source: EventSource::Sqs { queue: queue.clone(), maximum_concurrency: *maximum_concurrency },
            batch_size: self.batch_size,
            batching_window: Duration::from_secs(self.batching_window.into()),
            filters: self.filters.clone(),
            report_batch_item_failures: self.report_batch_item_failures,
        })
    }

    /// As the API shows it. As recorded, a queue's mapping has no `LastProcessingResult`; here it has one while there is
    /// a problem, since nothing else would tell its owner.
    pub fn view(&self, problem: Option<&str>) -> EventSourceMappingConfiguration {
        let Source::Sqs { maximum_concurrency, .. } = &self.source;
        let filters = || self.filters.iter().map(|pattern| Filter { pattern: Some(pattern.clone()) }).collect();
        let types = self.report_batch_item_failures.then_some(FunctionResponseType::ReportBatchItemFailures);
        EventSourceMappingConfiguration {
            uuid: Some(self.uuid.clone()),
            batch_size: i32::try_from(self.batch_size).ok(),
            maximum_batching_window_in_seconds: i32::try_from(self.batching_window).ok(),
            event_source_arn: Some(self.source_arn()),
            filter_criteria: (!self.filters.is_empty()).then(|| FilterCriteria { filters: Some(filters()) }),
            scaling_config: maximum_concurrency.map(|n| ScalingConfig { maximum_concurrency: i32::try_from(n).ok() }),
            function_arn: Some(self.function_arn()),
            last_modified: Some(Timestamp(self.last_modified)),
            last_processing_result: problem.map(|problem| format!("PROBLEM: {problem}")),
            state: Some(self.state().to_owned()),
            state_transition_reason: Some("USER_INITIATED".to_owned()),
            function_response_types: Some(types.into_iter().collect()),
            event_source_mapping_arn: Some(self.arn()),
            ..EventSourceMappingConfiguration::default()
        }
    }
}

fn source(request: &CreateEventSourceMappingRequest) -> Result<QueueArn, ApiError> {
    let Some(arn) = &request.event_source_arn else {
        return Err(match &request.self_managed_event_source {
            Some(_) => unsupported_source("self-managed Apache Kafka"),
            None => invalid("Unrecognized event source."),
        });
    };
    match arn.split(':').nth(2) {
        Some("sqs") => QueueArn::parse(arn).ok_or_else(|| invalid(format!("Invalid event source ARN: {arn}"))),
        Some("kinesis") => Err(unsupported_source("Amazon Kinesis")),
        Some("dynamodb") => Err(unsupported_source("DynamoDB Streams")),
        Some("kafka") => Err(unsupported_source("Amazon MSK")),
        Some("mq") => Err(unsupported_source("Amazon MQ")),
        Some("rds") => Err(unsupported_source("Amazon DocumentDB")),
        _ => Err(invalid("Unrecognized event source.")),
    }
}

fn unsupported_source(name: &str) -> ApiError {
    invalid(format!("Emberbox does not support {name} as an event source yet. Use an Amazon SQS queue."))
}

/// AWS's words for what a kind of source does not have.
fn refuse_for_queues(given: &[(&str, bool)]) -> Result<(), ApiError> {
    match given.iter().find(|(_, given)| *given) {
        Some((name, _)) => Err(invalid(format!("Unsupported {name} parameter for given event source mapping type."))),
        None => Ok(()),
    }
}

fn refuse_in_create(request: &CreateEventSourceMappingRequest) -> Result<(), ApiError> {
    if request.starting_position.is_some() || request.starting_position_timestamp.is_some() {
        let arn = request.event_source_arn.as_deref().unwrap_or_default();
        return Err(invalid(format!("Unsupported starting position for arn type: {arn}")));
    }
    refuse_for_queues(&[
        ("DestinationConfig", destination(request.destination_config.as_ref())),
        ("ParallelizationFactor", request.parallelization_factor.is_some()),
        ("MaximumRecordAgeInSeconds", request.maximum_record_age_in_seconds.is_some()),
        ("BisectBatchOnFunctionError", request.bisect_batch_on_function_error == Some(true)),
        ("MaximumRetryAttempts", request.maximum_retry_attempts.is_some()),
        ("TumblingWindowInSeconds", request.tumbling_window_in_seconds.is_some_and(|n| n > 0)),
        ("Topics", some(request.topics.as_deref())),
        ("Queues", some(request.queues.as_deref())),
        ("SourceAccessConfigurations", some(request.source_access_configurations.as_deref())),
        ("SelfManagedEventSource", request.self_managed_event_source.is_some()),
        ("AmazonManagedKafkaEventSourceConfig", request.amazon_managed_kafka_event_source_config.is_some()),
        ("SelfManagedKafkaEventSourceConfig", request.self_managed_kafka_event_source_config.is_some()),
        ("DocumentDBEventSourceConfig", request.document_db_event_source_config.is_some()),
        ("LoggingConfig", request.logging_config.is_some()),
    ])?;
    refuse(&[
        ("KMSKeyArn", request.kms_key_arn.as_ref().is_some_and(|arn| !arn.is_empty())),
        ("MetricsConfig", metrics(request.metrics_config.as_ref())),
        ("ProvisionedPollerConfig", request.provisioned_poller_config.is_some()),
    ])
}

fn refuse_in_update(request: &UpdateEventSourceMappingRequest) -> Result<(), ApiError> {
    refuse_for_queues(&[
        ("DestinationConfig", destination(request.destination_config.as_ref())),
        ("ParallelizationFactor", request.parallelization_factor.is_some()),
        ("MaximumRecordAgeInSeconds", request.maximum_record_age_in_seconds.is_some()),
        ("BisectBatchOnFunctionError", request.bisect_batch_on_function_error == Some(true)),
        ("MaximumRetryAttempts", request.maximum_retry_attempts.is_some()),
        ("TumblingWindowInSeconds", request.tumbling_window_in_seconds.is_some_and(|n| n > 0)),
        ("SourceAccessConfigurations", some(request.source_access_configurations.as_deref())),
        ("AmazonManagedKafkaEventSourceConfig", request.amazon_managed_kafka_event_source_config.is_some()),
        ("SelfManagedKafkaEventSourceConfig", request.self_managed_kafka_event_source_config.is_some()),
        ("DocumentDBEventSourceConfig", request.document_db_event_source_config.is_some()),
        ("LoggingConfig", request.logging_config.is_some()),
    ])?;
    refuse(&[
        ("KMSKeyArn", request.kms_key_arn.as_ref().is_some_and(|arn| !arn.is_empty())),
        ("MetricsConfig", metrics(request.metrics_config.as_ref())),
        ("ProvisionedPollerConfig", request.provisioned_poller_config.is_some()),
    ])
}

fn some<T>(list: Option<&[T]>) -> bool {
    list.is_some_and(|list| !list.is_empty())
}

fn destination(config: Option<&DestinationConfig>) -> bool {
    let failure = config.and_then(|config| config.on_failure.as_ref()).and_then(|on| on.destination.as_ref());
    let success = config.and_then(|config| config.on_success.as_ref()).and_then(|on| on.destination.as_ref());
    failure.or(success).is_some_and(|arn| !arn.is_empty())
}

fn metrics(config: Option<&EventSourceMappingMetricsConfig>) -> bool {
    config.is_some_and(|config| some(config.metrics.as_deref()))
}

fn filters(criteria: &FilterCriteria) -> Result<Vec<String>, ApiError> {
    let filters = criteria.filters.as_deref().unwrap_or_default();
    if filters.len() > FILTERS {
        return Err(invalid(format!("Number of filters exceeds the limit of {FILTERS}.")));
    }
    let check = |filter: &Filter| {
        let pattern = filter.pattern.as_deref().unwrap_or_default();
        // As recorded: AWS does not say what is wrong with it.
        match Pattern::parse(pattern) {
            Ok(_) => Ok(pattern.to_owned()),
            Err(_) => Err(invalid("Invalid filter pattern definition.")),
        }
    };
    filters.iter().map(check).collect()
}

fn check_batching(queue: &QueueArn, batch_size: u32, window: u32) -> Result<(), ApiError> {
    if queue.is_fifo() {
        if window > 0 {
            return Err(invalid("Batching window is not supported for FIFO queues."));
        }
        if batch_size > SQS_BATCH {
            return Err(invalid("Maximum batch size for FIFO queues is 10."));
        }
    }
    if batch_size > SQS_BATCH && window == 0 {
        return Err(invalid(
            "Maximum batch window in seconds must be greater than 0 if maximum batch size is greater than 10",
        ));
    }
    Ok(())
}

/// There is such a mapping already.
pub(crate) fn duplicate(new: &EventSourceRecord, uuid: &str) -> ApiError {
    ApiError::new(
        ErrorCode::ResourceConflictException,
        format!(
            "An event source mapping with SQS arn (\" {} \") and function (\" {} \") already exists. Please update or \
             delete the existing mapping with UUID {uuid}",
            new.source_arn(),
            new.function.name
        ),
    )
}

/// There is no mapping with this UUID.
pub(crate) fn missing() -> ApiError {
    ApiError::new(ErrorCode::ResourceNotFoundException, "The resource you requested does not exist.")
}

/// The function, version or alias that a request names is not there.
pub(crate) fn no_function() -> ApiError {
    invalid("Function does not exist")
}

fn in_use(operation: &str) -> ApiError {
    ApiError::new(
        ErrorCode::ResourceInUseException,
        format!("Cannot {operation} the event source mapping because it is in use."),
    )
}

/// A message would be given to a second invocation while the first still works on it.
pub(crate) fn check_visibility(visibility: Duration, timeout: u32) -> Result<(), ApiError> {
    if visibility.as_secs() < timeout.into() {
        return Err(invalid(format!(
            "Queue visibility timeout: {} seconds is less than Function timeout: {timeout} seconds",
            visibility.as_secs()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use domain::AccountId;
    use proptest::prelude::*;

    use super::*;

    fn new(enabled: Option<bool>) -> EventSourceRecord {
        let function = FunctionArn { region: "us-east-1".into(), account: AccountId::local(), name: "f".into() };
        let request = CreateEventSourceMappingRequest {
            event_source_arn: Some("arn:aws:sqs:us-east-1:000000000000:q".into()),
            enabled,
            ..Default::default()
        };
        EventSourceRecord::create(&request, (function, None), "u".into(), 1.0).unwrap()
    }

    fn state(record: &EventSourceRecord) -> String {
        record.view(None).state.unwrap()
    }

    #[test]
    fn nothing_is_updated_while_a_change_is_under_way() {
        let mut record = new(None);
        let error = record.update(&UpdateEventSourceMappingRequest::default(), None, 2.0).unwrap_err();
        assert_eq!(error.code, ErrorCode::ResourceInUseException);
        assert_eq!(error.message, "Cannot update the event source mapping because it is in use.");
        record.delete(2.0).unwrap();
        let error = record.delete(3.0).unwrap_err();
        assert_eq!(error.message, "Cannot delete the event source mapping because it is in use.");
    }

    proptest! {
        /// Whatever is asked for, a refused update changes nothing that is served, a mapping in transition ends where the
        /// user wants it, and only what is enabled is served.
        #[test]
        fn states_follow_what_the_user_wants(
            enabled in any::<Option<bool>>(),
            updates in prop::collection::vec((any::<Option<bool>>(), prop::option::of(1..40i32), prop::option::of(0..3i32)), 0..8),
        ) {
            let mut record = new(enabled);
            prop_assert_eq!(state(&record), "Creating");
            prop_assert!(record.served().is_none());
            for (enabled, batch_size, maximum_batching_window_in_seconds) in updates {
                record.transition = None;
                prop_assert_eq!(state(&record), if record.enabled { "Enabled" } else { "Disabled" });
                let before = record.clone();
                let request = UpdateEventSourceMappingRequest {
                    enabled, batch_size, maximum_batching_window_in_seconds, ..Default::default()
                };
                let mut after = before.clone();
                if after.update(&request, None, 2.0).is_ok() {
                    let expected = match (before.enabled, enabled.unwrap_or(before.enabled)) {
                        (true, false) => "Disabling",
                        (false, true) => "Enabling",
                        _ => "Updating",
                    };
                    prop_assert_eq!(state(&after), expected);
                    prop_assert_eq!(after.served().is_some(), after.enabled);
                    prop_assert!(after.batch_size <= 10 || after.batching_window > 0);
                    record = after;
                }
                let stored: EventSourceRecord = serde_json::from_slice(&serde_json::to_vec(&record).unwrap()).unwrap();
                prop_assert_eq!(&stored, &record);
            }
        }
    }
}
