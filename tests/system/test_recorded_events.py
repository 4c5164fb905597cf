"""Responses recorded from AWS about asynchronous invocation and event source mappings, replayed as in test_recorded.py."""

import uuid

import pytest

from conftest import wait_active, wait_until
from recorded import ACCOUNT, Replay, arn, client, created, load, name, changed_code

pytestmark = pytest.mark.process_only("the control plane does not touch the sandbox")

EVENTS = load("events")
# Where Emberbox answers otherwise than AWS did, by test and by the path within it; each with the reason.
DEVIATIONS = {}


def events(test, left_out=(), **names):
    return Replay(test, EVENTS[test], DEVIATIONS, left_out, **names)


@pytest.fixture
def queue(emberbox):
    """ARN of a queue of the recording's account."""
    sqs = emberbox.client("sqs", account=ACCOUNT)
    name = "q-" + uuid.uuid4().hex[:12]
    url = sqs.create_queue(QueueName=name)["QueueUrl"]
    yield f"arn:aws:sqs:us-east-1:{ACCOUNT}:{name}"
    sqs.delete_queue(QueueUrl=url)


@pytest.fixture
def map(client):
    """Creates mappings as `step` does, which are gone after the test."""
    ids = []

    def create(step, key, **arguments):
        response = step(key, client.create_event_source_mapping, **arguments)
        ids.extend([response["UUID"]] * (response is not None and "UUID" in response))
        return response

    yield create
    for id in ids:
        client.delete_event_source_mapping(UUID=id)


def enabled(client, id):
    wait_until(lambda: client.get_event_source_mapping(UUID=id)["State"] == "Enabled", what="the mapping to be enabled")


# Settings of asynchronous invocation


def test_event_invoke_config_lifecycle(client, created):
    with events("test_lambda_eventinvokeconfig_lifecycle", **{"<function-name:1>": created}) as recorded:
        step, put, update = recorded.step, client.put_function_event_invoke_config, client.update_function_event_invoke_config
        get, list_ = client.get_function_event_invoke_config, client.list_function_event_invoke_configs
        step("put_invokeconfig_retries_0", put, FunctionName=created, MaximumRetryAttempts=0)
        step("put_invokeconfig_eventage_60", put, FunctionName=created, MaximumEventAgeInSeconds=60)
        step("update_invokeconfig_eventage_nochange", update, FunctionName=created, MaximumEventAgeInSeconds=60)
        step("update_invokeconfig_retries", update, FunctionName=created, MaximumRetryAttempts=2)
        step("get_invokeconfig", get, FunctionName=created)
        step("get_invokeconfig_latest", get, FunctionName=created, Qualifier="$LATEST")
        step("list_single_invokeconfig", list_, FunctionName=created)
        step("publish_version_result", client.publish_version, FunctionName=created)
        step("get_invokeconfig_postpublish", get, FunctionName=created, Qualifier="1")
        step("put_published_invokeconfig", put, FunctionName=created, Qualifier="1", MaximumEventAgeInSeconds=120)
        step("get_published_invokeconfig", get, FunctionName=created, Qualifier="1")
        client.delete_function_event_invoke_config(FunctionName=created)
        step("list_paging_nolimit_postdelete", list_, FunctionName=created)


def test_event_invoke_config_of_what_is_not_there(client, created):
    get = client.get_function_event_invoke_config
    with events("test_ops_on_nonexisting_version[get_function_event_invoke_config]", **{"<fn-name>": created}) as recorded:
        recorded.step("version_not_found_exception", get, FunctionName=created, Qualifier="1221")
    test = "test_get_function_wrong_region[get_function_event_invoke_config]"
    with events(test, **{"<wrong-region>": "eu-west-1"}) as recorded:
        elsewhere = arn(created).replace("us-east-1", "eu-west-1")
        recorded.step("wrong_region_exception", get, FunctionName=elsewhere)


def test_recursion_config(client, created):
    with events("test_put_function_recursion_config_invalid_value") as recorded:
        put = client.put_function_recursion_config
        recorded.step("put_recursion_invalid_value_error", put, FunctionName=created, RecursiveLoop="InvalidValue")


# Event source mappings of queues


def test_duplicate_mappings(client, created, queue, map):
    with events("test_duplicate_event_source_mappings") as recorded:
        first = map(recorded.step, "create", FunctionName=created, EventSourceArn=queue)
        recorded.step("error", client.create_event_source_mapping, FunctionName=created, EventSourceArn=queue)
        assert recorded.names.known["<uuid:1>"] == first["UUID"]


def test_default_batch_size(client, created, queue, map):
    with events("test_event_source_mapping_default_batch_size") as recorded:
        first = map(recorded.step, "create-event-source-mapping", FunctionName=created, EventSourceArn=queue)
        assert first["BatchSize"] == 10
        enabled(client, first["UUID"])
        update = client.update_event_source_mapping
        recorded.step("invalid-update-event-source-mapping", update, UUID=first["UUID"], BatchSize=11)
        key, call = "invalid-create-event-source-mapping", client.create_event_source_mapping
        recorded.step(key, call, FunctionName=created, EventSourceArn=queue, BatchSize=11)


def test_update_a_mapping(client, created, queue, map):
    client.publish_version(FunctionName=created)
    client.update_function_code(**changed_code(created))
    wait_active(client, created)
    client.publish_version(FunctionName=created)
    with events("test_sqs_event_source_mapping_update") as recorded:
        key = "create-event-source-mapping-response"
        id = map(recorded.step, key, FunctionName=arn(created, "1"), EventSourceArn=queue)["UUID"]
        enabled(client, id)
        recorded.step("updated_esm", client.update_event_source_mapping, UUID=id, FunctionName=arn(created, "2"))
        enabled(client, id)
        got = recorded.step("updated_event_source_mapping", client.get_event_source_mapping, UUID=id)
        assert got["FunctionArn"] == arn(created, "2")


@pytest.mark.parametrize(
    "test, pattern",
    [("None", "null"), ("invalid_filter2", '[{"eventName": ["INSERT"=123}]'), ("invalid_filter3", '{"a": "b"}'), ("simple string", '"x"')],
)
def test_invalid_filters(client, created, queue, test, pattern):
    with events(f"test_sqs_invalid_event_filter[{test}]") as recorded:
        filters = {"Filters": [{"Pattern": pattern}]}
        key, call = "create_event_source_mapping_exception", client.create_event_source_mapping
        recorded.step(key, call, FunctionName=created, EventSourceArn=queue, FilterCriteria=filters)


def test_a_queue_that_is_not_there(client, created):
    with events("test_esm_with_not_existing_sqs_queue") as recorded:
        missing = f"arn:aws:sqs:us-east-1:{ACCOUNT}:nope"
        recorded.step("error", client.create_event_source_mapping, FunctionName=created, EventSourceArn=missing)
