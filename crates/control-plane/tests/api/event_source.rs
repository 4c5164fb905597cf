//! Event source mappings.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use control_plane::EventSourceCheck;
use domain::{AccountId, EventSource, QueueArn};
use lambda_api::ErrorCode::*;
use lambda_api::types::*;
use serde_json::json as j;

use crate::support::*;

const QUEUE: &str = "arn:aws:sqs:us-east-1:111111111111:q";

fn create(function: &str, source: &str) -> CreateEventSourceMappingRequest {
    CreateEventSourceMappingRequest {
        function_name: function.into(),
        event_source_arn: Some(source.into()),
        ..Default::default()
    }
}

fn update(uuid: &str) -> UpdateEventSourceMappingRequest {
    UpdateEventSourceMappingRequest { uuid: uuid.into(), ..Default::default() }
}

fn filters(patterns: &[&str]) -> Option<FilterCriteria> {
    let filters = patterns.iter().map(|p| Filter { pattern: Some((*p).to_owned()) }).collect();
    Some(FilterCriteria { filters: Some(filters) })
}

type Answer = Result<EventSourceMappingConfiguration, lambda_api::ApiError>;

impl World {
    async fn map(&self, request: CreateEventSourceMappingRequest) -> Answer {
        self.plane.create_event_source_mapping(&me(), request).await
    }

    /// Creates a mapping and waits until it is enabled.
    async fn mapped(&self, request: CreateEventSourceMappingRequest) -> String {
        let created = self.map(request).await.unwrap();
        self.plane.wait_idle().await;
        created.uuid.unwrap()
    }

    async fn mapping(&self, uuid: &str) -> Answer {
        let request = GetEventSourceMappingRequest { uuid: uuid.into() };
        self.plane.get_event_source_mapping(&me(), request).await
    }

    async fn remap(&self, request: UpdateEventSourceMappingRequest) -> Answer {
        self.plane.update_event_source_mapping(&me(), request).await
    }

    async fn unmap(&self, uuid: &str) -> Answer {
        let request = DeleteEventSourceMappingRequest { uuid: uuid.into() };
        self.plane.delete_event_source_mapping(&me(), request).await
    }

    async fn state(&self, uuid: &str) -> String {
        self.plane.wait_idle().await;
        self.mapping(uuid).await.unwrap().state.unwrap()
    }

    fn served(&self) -> Vec<String> {
        self.plane.served_event_sources().into_iter().map(|mapping| mapping.uuid).collect()
    }
}

/// Recorded: test_sqs_event_source_mapping_update, test_fifo_message_group_parallelism, test_function_name_variations.
#[tokio::test]
async fn the_life_of_a_mapping() {
    let world = World::new().await;
    world.create("f").await;
    let mut changes = world.plane.event_source_changes();
    changes.borrow_and_update();

    let created = world.map(create("f", QUEUE)).await.unwrap();
    let uuid = created.uuid.clone().unwrap();
    let mut shown = json(&created);
    assert!(shown.as_object_mut().unwrap().remove("LastModified").unwrap().as_f64().unwrap() > 1.7e9);
    let expected = j!({
        "BatchSize": 10, "EventSourceArn": QUEUE, "FunctionArn": format!("{ARN}:f"), "FunctionResponseTypes": [],
        "EventSourceMappingArn": format!("arn:aws:lambda:us-east-1:111111111111:event-source-mapping:{uuid}"),
        "MaximumBatchingWindowInSeconds": 0, "State": "Creating", "StateTransitionReason": "USER_INITIATED", "UUID": uuid,
    });
    assert_eq!(shown, expected);
    changes.changed().await.unwrap();
    assert_eq!(world.state(&uuid).await, "Enabled");
    assert_eq!(members(&world.mapping(&uuid).await.unwrap()), members(&created));
    assert_eq!(world.served(), [uuid.as_str()]);

    let request = UpdateEventSourceMappingRequest {
        batch_size: Some(500),
        maximum_batching_window_in_seconds: Some(3),
        filter_criteria: filters(&[r#"{"body": {"a": [1]}}"#]),
        function_response_types: Some(vec![FunctionResponseType::ReportBatchItemFailures]),
        scaling_config: Some(ScalingConfig { maximum_concurrency: Some(2) }),
        ..update(&uuid)
    };
    assert_eq!(world.remap(request).await.unwrap().state.as_deref(), Some("Updating"));
    assert_eq!(world.state(&uuid).await, "Enabled");
    let [served] = &world.plane.served_event_sources()[..] else { panic!("one is served") };
    assert_eq!((served.batch_size, served.batching_window), (500, Duration::from_secs(3)));
    assert_eq!(served.filters, [r#"{"body": {"a": [1]}}"#]);
    assert!(served.report_batch_item_failures);
    let queue = QueueArn::parse(QUEUE).unwrap();
    assert_eq!(served.source, EventSource::Sqs { queue, maximum_concurrency: Some(2) });
    let updated = json(&world.mapping(&uuid).await.unwrap());
    assert_eq!(updated["FilterCriteria"], j!({"Filters": [{"Pattern": r#"{"body": {"a": [1]}}"#}]}));
    assert_eq!(updated["ScalingConfig"], j!({"MaximumConcurrency": 2}));
    assert_eq!(updated["FunctionResponseTypes"], j!(["ReportBatchItemFailures"]));

    // Empty ones take settings back.
    let request = UpdateEventSourceMappingRequest {
        enabled: Some(false),
        filter_criteria: filters(&[]),
        scaling_config: Some(ScalingConfig::default()),
        function_response_types: Some(vec![]),
        ..update(&uuid)
    };
    let updated = json(&world.remap(request).await.unwrap());
    assert_eq!(updated["State"], "Disabling");
    assert_eq!((updated.get("FilterCriteria"), updated.get("ScalingConfig")), (None, None));
    assert_eq!(world.state(&uuid).await, "Disabled");
    assert!(world.served().is_empty());
    let request = UpdateEventSourceMappingRequest { enabled: Some(true), ..update(&uuid) };
    assert_eq!(world.remap(request).await.unwrap().state.as_deref(), Some("Enabling"));
    assert_eq!(world.state(&uuid).await, "Enabled");

    assert_eq!(world.unmap(&uuid).await.unwrap().state.as_deref(), Some("Deleting"));
    world.plane.wait_idle().await;
    assert!(world.served().is_empty());
    const GONE: &str = "The resource you requested does not exist.";
    refused(world.mapping(&uuid).await, ResourceNotFoundException, GONE);
    refused(world.remap(update(&uuid)).await, ResourceNotFoundException, GONE);
    refused(world.unmap(&uuid).await, ResourceNotFoundException, GONE);
}

/// Recorded: test_duplicate_event_source_mappings, test_event_source_mapping_default_batch_size,
/// test_sqs_invalid_event_filter, and the messages of what a queue does not have.
#[tokio::test]
async fn what_is_refused() {
    let world = World::new().await;
    world.create("f").await;
    let uuid = world.mapped(create("f", QUEUE)).await;
    let message = format!(
        "An event source mapping with SQS arn (\" {QUEUE} \") and function (\" f \") already exists. Please update or \
         delete the existing mapping with UUID {uuid}"
    );
    refused(world.map(create("f", QUEUE)).await, ResourceConflictException, &message);
    let other = format!("{QUEUE}2");
    let second = world.mapped(create("f", &other)).await;
    world.create("g").await;
    let third = world.mapped(create("g", QUEUE)).await;
    let request = UpdateEventSourceMappingRequest { function_name: Some("f".into()), ..update(&third) };
    refused(world.remap(request).await, ResourceConflictException, &message);

    let invalid =
        async |request, message: &str| refused(world.map(request).await, InvalidParameterValueException, message);
    invalid(create("missing", QUEUE), "Function does not exist").await;
    invalid(create("f:live", QUEUE), "Function does not exist").await;
    const WINDOW: &str =
        "Maximum batch window in seconds must be greater than 0 if maximum batch size is greater than 10";
    let new = || create("f", "arn:aws:sqs:us-east-1:111111111111:new");
    invalid(CreateEventSourceMappingRequest { batch_size: Some(11), ..new() }, WINDOW).await;
    let request = UpdateEventSourceMappingRequest { batch_size: Some(15), ..update(&second) };
    refused(world.remap(request).await, InvalidParameterValueException, WINDOW);
    let fifo = || create("f", "arn:aws:sqs:us-east-1:111111111111:new.fifo");
    let request = CreateEventSourceMappingRequest { maximum_batching_window_in_seconds: Some(1), ..fifo() };
    invalid(request, "Batching window is not supported for FIFO queues.").await;
    let request = CreateEventSourceMappingRequest { batch_size: Some(11), ..fifo() };
    invalid(request, "Maximum batch size for FIFO queues is 10.").await;
    for pattern in ["null", r#""simple string""#, r#"{"eventSource": "aws:sqs"}"#, r#"{"eventSource": []}"#] {
        let request = CreateEventSourceMappingRequest { filter_criteria: filters(&[pattern]), ..new() };
        invalid(request, "Invalid filter pattern definition.").await;
    }
    let destination =
        DestinationConfig { on_failure: Some(OnFailure { destination: Some(QUEUE.into()) }), ..Default::default() };
    let request = CreateEventSourceMappingRequest { destination_config: Some(destination), ..new() };
    invalid(request, "Unsupported DestinationConfig parameter for given event source mapping type.").await;
    let request = CreateEventSourceMappingRequest { starting_position: Some(EventSourcePosition::Latest), ..new() };
    invalid(request, "Unsupported starting position for arn type: arn:aws:sqs:us-east-1:111111111111:new").await;
    let request = CreateEventSourceMappingRequest { provisioned_poller_config: Some(Default::default()), ..new() };
    invalid(request, "Emberbox does not support ProvisionedPollerConfig yet. Leave it out.").await;

    invalid(CreateEventSourceMappingRequest { event_source_arn: None, ..new() }, "Unrecognized event source.").await;
    invalid(create("f", "arn:aws:sns:us-east-1:111111111111:t"), "Unrecognized event source.").await;
    invalid(create("f", "arn:aws:sqs:us-east-1:q"), "Invalid event source ARN: arn:aws:sqs:us-east-1:q").await;
    for (service, name) in [("kinesis", "Amazon Kinesis"), ("dynamodb", "DynamoDB Streams"), ("kafka", "Amazon MSK")] {
        let message = format!("Emberbox does not support {name} as an event source yet. Use an Amazon SQS queue.");
        invalid(create("f", &format!("arn:aws:{service}:us-east-1:111111111111:x")), &message).await;
    }
    assert_eq!(world.served().len(), 3, "nothing of this was made");
}

struct Check;

#[async_trait]
impl EventSourceCheck for Check {
    async fn visibility_timeout(&self, _: &AccountId, queue: &QueueArn) -> Result<Duration, String> {
        match queue.name.as_str() {
            "gone" => Err(NO_QUEUE.into()),
            "short" => Ok(Duration::from_secs(2)),
            _ => Ok(Duration::from_secs(30)),
        }
    }
}

const NO_QUEUE: &str = "Error occurred while ReceiveMessage. SQS Error Code: AWS.SimpleQueueService.NonExistentQueue. \
                        SQS Error Message: The specified queue does not exist.";

/// Recorded: test_esm_with_not_existing_sqs_queue.
#[tokio::test]
async fn the_queue_itself_is_asked() {
    let world = World::new().await;
    world.create("f").await;
    world.plane.check_event_sources_with(Arc::new(Check));
    let arn = |name: &str| QUEUE.replace(":q", &format!(":{name}"));
    refused(world.map(create("f", &arn("gone"))).await, InvalidParameterValueException, NO_QUEUE);
    refused(
        world.map(create("f", &arn("short"))).await,
        InvalidParameterValueException,
        "Queue visibility timeout: 2 seconds is less than Function timeout: 3 seconds",
    );
    let uuid = world.mapped(create("f", QUEUE)).await;
    world.plane.create_function(&me(), CreateFunctionRequest { timeout: Some(60), ..function("slow") }).await.unwrap();
    let request = UpdateEventSourceMappingRequest { function_name: Some("slow".into()), ..update(&uuid) };
    refused(
        world.remap(request).await,
        InvalidParameterValueException,
        "Queue visibility timeout: 30 seconds is less than Function timeout: 60 seconds",
    );
}

#[tokio::test]
async fn lists_by_function_and_source() {
    let world = World::new().await;
    world.create("f").await;
    world.create("g").await;
    world.publish("f").await;
    world.alias("f", "live", "1").await;
    for function in ["f", "f:live", "g"] {
        world.mapped(create(function, QUEUE)).await;
        world.mapped(create(function, &format!("{QUEUE}2"))).await;
    }
    let list = async |function: Option<&str>, source: Option<&str>, max_items| {
        let mut all = Vec::new();
        let mut marker = None;
        loop {
            let request = ListEventSourceMappingsRequest {
                function_name: function.map(str::to_owned),
                event_source_arn: source.map(str::to_owned),
                marker,
                max_items,
            };
            let page = world.plane.list_event_source_mappings(&me(), request).await.unwrap();
            all.extend(page.event_source_mappings.unwrap());
            marker = page.next_marker;
            if marker.is_none() {
                return all;
            }
        }
    };
    assert_eq!(list(None, None, None).await.len(), 6);
    assert_eq!(list(None, None, Some(1)).await, list(None, None, None).await);
    assert_eq!(list(None, Some(QUEUE), Some(2)).await.len(), 3);
    assert_eq!(list(Some("f"), None, None).await.len(), 2);
    let live = list(Some("f:live"), Some(QUEUE), None).await;
    assert_eq!(live.len(), 1);
    assert_eq!(live[0].function_arn, Some(format!("{ARN}:f:live")));
    let request = ListEventSourceMappingsRequest::default();
    let others = world.plane.list_event_source_mappings(&caller("222222222222"), request).await.unwrap();
    assert_eq!(others.event_source_mappings, Some(vec![]));
}

/// AWS keeps the mappings of a deleted function; they do not work until it is there again.
#[tokio::test]
async fn the_function_goes_and_comes_back() {
    let world = World::new().await;
    world.create("f").await;
    let uuid = world.mapped(create("f", QUEUE)).await;
    let mut changes = world.plane.event_source_changes();
    changes.borrow_and_update();
    world.delete("f", None).await.unwrap();
    changes.changed().await.unwrap();
    assert!(world.served().is_empty());
    let mapping = world.mapping(&uuid).await.unwrap();
    let problem = format!("PROBLEM: Function not found: {ARN}:f");
    assert_eq!((mapping.state.as_deref(), mapping.last_processing_result), (Some("Enabled"), Some(problem)));
    changes.borrow_and_update();
    world.create("f").await;
    assert!(changes.has_changed().unwrap());
    assert_eq!(world.served(), [uuid.as_str()]);
    assert_eq!(world.mapping(&uuid).await.unwrap().last_processing_result, None);

    world.plane.report_event_source(&uuid, Some("the queue is gone".into()));
    let mapping = world.mapping(&uuid).await.unwrap();
    assert_eq!(mapping.last_processing_result.as_deref(), Some("PROBLEM: the queue is gone"));
    assert_eq!(world.served(), [uuid.as_str()], "it may come back");
    world.plane.report_event_source(&uuid, None);
    assert_eq!(world.mapping(&uuid).await.unwrap().last_processing_result, None);
}

#[tokio::test]
async fn mappings_outlive_the_process() {
    let world = World::new().await;
    world.create("f").await;
    let kept = world.mapped(create("f", QUEUE)).await;
    // The process ends in the middle of transitions.
    let unfinished = world.map(create("f", &format!("{QUEUE}2"))).await.unwrap().uuid.unwrap();
    let gone = world.mapped(create("f", &format!("{QUEUE}3"))).await;
    world.unmap(&gone).await.unwrap();
    let before = world.mapping(&kept).await.unwrap();
    let world = world.restart().await;
    assert_eq!(world.state(&unfinished).await, "Enabled");
    assert_eq!(world.mapping(&kept).await.unwrap(), before);
    assert!(world.mapping(&gone).await.is_err());
    assert_eq!(world.served().len(), 2);
}

/// Recorded: test_create_tag_on_esm_create, test_tag_exceptions[event_source_mapping].
#[tokio::test]
async fn mappings_have_tags() {
    let world = World::new().await;
    world.create("f").await;
    let tags = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    let request = CreateEventSourceMappingRequest { tags: Some(tags(&[("a", "1")])), ..create("f", QUEUE) };
    let arn = world.map(request).await.unwrap().event_source_mapping_arn.unwrap();
    let list = async |resource: &str| {
        let request = ListTagsRequest { resource: resource.into() };
        world.plane.list_tags(&me(), request).await.map(|response| response.tags.unwrap())
    };
    assert_eq!(list(&arn).await.unwrap(), tags(&[("a", "1")]));
    let request = TagResourceRequest { resource: arn.clone(), tags: tags(&[("b", "2")]) };
    world.plane.tag_resource(&me(), request).await.unwrap();
    let request = UntagResourceRequest { resource: arn.clone(), tag_keys: vec!["a".into()] };
    world.plane.untag_resource(&me(), request).await.unwrap();
    assert_eq!(list(&arn).await.unwrap(), tags(&[("b", "2")]));
    let other = arn.replace(":111111111111:", ":222222222222:");
    for missing in [&other, &format!("{}0", &arn[..arn.len() - 1])] {
        if *missing != arn {
            refused(
                list(missing).await,
                ResourceNotFoundException,
                &format!("Event source mapping not found: {missing}"),
            );
        }
    }
}
