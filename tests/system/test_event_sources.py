"""SQS event source mappings: boto3 for the API, a third party's queues, real functions."""

import hashlib
import json
import re
import signal
import tempfile
import time
import uuid

import botocore.exceptions
import pytest

from conftest import Emberbox, running, wait_until
from third_party import ACCOUNT, REGION, SERVER, Gate, Moto

pytestmark = [pytest.mark.needs("root", "cgroups", str(SERVER)), pytest.mark.process_only("event sources invoke as any client does")]

# Tells its log what it got, and fails as the bodies say.
CODE = """
import json
def handler(event, context):
    print("GOT " + json.dumps(event))
    records = event["Records"]
    if any(r["body"] == "crash" for r in records):
        raise ValueError("crash")
    failed = [r for r in records if r["body"].startswith("once") and r["attributes"]["ApproximateReceiveCount"] == "1"]
    return {"batchItemFailures": [{"itemIdentifier": r["messageId"]} for r in failed]}
"""


def config(endpoint):
    return f'[events]\nsqs_endpoint = "{endpoint}"\n'


@pytest.fixture(scope="module")
def moto():
    server = Moto()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def emberbox(moto):
    with running(config=config(moto.endpoint)) as server:
        yield server


@pytest.fixture(scope="module")
def client(emberbox):
    return emberbox.client()


@pytest.fixture
def sqs(moto):
    return moto.client("sqs")


class Source:
    """A queue of a third party, and what a function got from it."""

    def __init__(self, sqs, fifo=False, visibility=4):
        self.sqs = sqs
        self.name = "q-" + uuid.uuid4().hex[:8] + (".fifo" if fifo else "")
        attributes = {"VisibilityTimeout": str(visibility), **({"FifoQueue": "true"} if fifo else {})}
        self.url = sqs.create_queue(QueueName=self.name, Attributes=attributes)["QueueUrl"]
        self.arn = f"arn:aws:sqs:{REGION}:{ACCOUNT}:{self.name}"

    def send(self, *bodies, **more):
        for body in bodies:
            self.sqs.send_message(QueueUrl=self.url, MessageBody=body, **more)

    def left(self):
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        attributes = self.sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=names)["Attributes"]
        return sum(int(n) for n in attributes.values())

    def wait_empty(self, timeout=60):
        wait_until(lambda: self.left() == 0, timeout, f"{self.name} empty")


@pytest.fixture
def source(sqs):
    return lambda **kwargs: Source(sqs, **kwargs)


@pytest.fixture
def mapped(client):
    """`mapped(function, source, **settings)` creates a mapping, waits until it is Enabled, and returns its UUID."""
    uuids = []

    def create(name, source, on=None, **settings):
        api = on or client
        created = api.create_event_source_mapping(FunctionName=name, EventSourceArn=source.arn, **settings)
        assert created["State"] == "Creating"
        uuids.append(created["UUID"])
        return enabled(api, created["UUID"])

    yield create
    for one in uuids:
        try:
            client.delete_event_source_mapping(UUID=one)
        except botocore.exceptions.ClientError:
            pass


def enabled(client, mapping, state="Enabled"):
    wait_until(lambda: client.get_event_source_mapping(UUID=mapping)["State"] == state, what=state)
    return mapping


def said(emberbox, name):
    """What a function printed after "GOT", in order."""
    logs = emberbox.client("logs")
    try:
        pages = logs.get_paginator("filter_log_events").paginate(logGroupName=f"/aws/lambda/{name}")
        lines = [event for page in pages for event in page["events"]]
    except logs.exceptions.ResourceNotFoundException:
        return []
    lines.sort(key=lambda event: event["timestamp"])
    return [json.loads(e["message"].removeprefix("GOT ")) for e in lines if e["message"].startswith("GOT ")]


def bodies(emberbox, name):
    return [[record["body"] for record in event["Records"]] for event in said(emberbox, name)]


def refused(call, code, message, **kwargs):
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        call(**kwargs)
    error = caught.value.response["Error"]
    assert (error["Code"], error["Message"]) == (code, message)


def test_life_of_a_mapping(client, function, source, mapped):
    name, queue = function(CODE), source()
    mapping = mapped(name, queue, BatchSize=5, Tags={"a": "1"})
    shown = client.get_event_source_mapping(UUID=mapping)
    shown.pop("ResponseMetadata")
    assert shown.pop("LastModified").year >= 2026
    arn = f"arn:aws:lambda:{REGION}:{ACCOUNT}:event-source-mapping:{mapping}"
    assert shown == {
        "UUID": mapping, "BatchSize": 5, "MaximumBatchingWindowInSeconds": 0, "EventSourceArn": queue.arn,
        "FunctionArn": f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{name}", "State": "Enabled",
        "StateTransitionReason": "USER_INITIATED", "FunctionResponseTypes": [], "EventSourceMappingArn": arn,
    }
    assert client.list_tags(Resource=arn)["Tags"] == {"a": "1"}
    listed = client.list_event_source_mappings(FunctionName=name)["EventSourceMappings"]
    assert [one["UUID"] for one in listed] == [mapping]
    assert client.list_event_source_mappings(EventSourceArn=queue.arn + "x")["EventSourceMappings"] == []
    updated = client.update_event_source_mapping(UUID=mapping, Enabled=False, ScalingConfig={"MaximumConcurrency": 2})
    assert (updated["State"], updated["ScalingConfig"]) == ("Disabling", {"MaximumConcurrency": 2})
    enabled(client, mapping, "Disabled")
    assert client.delete_event_source_mapping(UUID=mapping)["State"] == "Deleting"
    gone = client.exceptions.ResourceNotFoundException

    def is_gone():
        try:
            client.get_event_source_mapping(UUID=mapping)
        except gone:
            return True

    wait_until(is_gone, what="the mapping to be gone")


def test_refusals(client, function, source, mapped):
    name, queue = function(CODE), source()
    create = client.create_event_source_mapping
    refused(
        create, "InvalidParameterValueException",
        "Error occurred while ReceiveMessage. SQS Error Code: AWS.SimpleQueueService.NonExistentQueue. "
        "SQS Error Message: The specified queue does not exist.",
        FunctionName=name, EventSourceArn=queue.arn + "-not",
    )
    refused(
        create, "InvalidParameterValueException",
        "Queue visibility timeout: 1 seconds is less than Function timeout: 3 seconds",
        FunctionName=name, EventSourceArn=source(visibility=1).arn,
    )
    refused(
        create, "InvalidParameterValueException", "Function does not exist",
        FunctionName=name + "-not", EventSourceArn=queue.arn,
    )
    refused(
        create, "InvalidParameterValueException", "Invalid filter pattern definition.",
        FunctionName=name, EventSourceArn=queue.arn, FilterCriteria={"Filters": [{"Pattern": '{"body": "x"}'}]},
    )
    refused(
        create, "InvalidParameterValueException",
        "Emberbox does not support Amazon Kinesis as an event source yet. Use an Amazon SQS queue.",
        FunctionName=name, EventSourceArn=f"arn:aws:kinesis:{REGION}:{ACCOUNT}:stream/s", StartingPosition="LATEST",
    )
    mapping = mapped(name, queue)
    refused(
        create, "ResourceConflictException",
        f'An event source mapping with SQS arn (" {queue.arn} ") and function (" {name} ") already exists. Please '
        f"update or delete the existing mapping with UUID {mapping}",
        FunctionName=name, EventSourceArn=queue.arn,
    )


def test_event_and_filter(emberbox, function, source, mapped):
    name, queue = function(CODE), source()
    queue.send('{"n": 1}', MessageAttributes={"a": {"DataType": "String", "StringValue": "v"}})
    queue.send('{"n": 2}', "plain text")
    mapped(name, queue, FilterCriteria={"Filters": [{"Pattern": '{"body": {"n": [{"numeric": ["<", 2]}]}}'}]})
    queue.wait_empty()
    [event] = wait_until(lambda: said(emberbox, name), what="the event in the log")
    [record] = event["Records"]
    assert re.fullmatch(r"[0-9a-f-]{36}", record.pop("messageId"))
    assert record.pop("receiptHandle")
    assert record.pop("md5OfMessageAttributes")
    attributes = record.pop("attributes")
    assert attributes["ApproximateReceiveCount"] == "1"
    assert {"SenderId", "SentTimestamp", "ApproximateFirstReceiveTimestamp"} <= attributes.keys()
    assert record == {
        "body": '{"n": 1}', "md5OfBody": hashlib.md5(b'{"n": 1}').hexdigest(),
        "messageAttributes": {
            "a": {"stringValue": "v", "stringListValues": [], "binaryListValues": [], "dataType": "String"}
        },
        "eventSource": "aws:sqs", "eventSourceARN": queue.arn, "awsRegion": REGION,
    }


def test_failures_come_again(emberbox, client, function, source, mapped):
    """Partial failures come again alone; a crash brings all of its batch back, and the queue's redrive policy ends it."""
    name, queue = function(CODE), source()
    queue.send("a", "once", "b")
    mapping = mapped(name, queue, FunctionResponseTypes=["ReportBatchItemFailures"])
    queue.wait_empty()
    got = wait_until(lambda: (b := bodies(emberbox, name)) and sum(map(len, b)) == 4 and b, what="four receipts")
    assert got[-1] == ["once"]

    dead = source()
    policy = json.dumps({"deadLetterTargetArn": dead.arn, "maxReceiveCount": 2})
    queue.sqs.set_queue_attributes(QueueUrl=queue.url, Attributes={"RedrivePolicy": policy})
    queue.send("crash")
    wait_until(lambda: dead.left() == 1, 60, "the dead letter")
    crashes = [batch for batch in bodies(emberbox, name) if "crash" in batch]
    assert len(crashes) == 2
    result = client.get_event_source_mapping(UUID=mapping)["LastProcessingResult"]
    assert result == "PROBLEM: Function call failed"
    queue.send("fine")
    queue.wait_empty()
    wait_until(
        lambda: "LastProcessingResult" not in client.get_event_source_mapping(UUID=mapping), what="no problem any more"
    )


def test_fifo_groups_keep_their_order(function, mapped):
    """On a queue of Emberbox's own: the third party's, asked by two at once, may give the second of a group to one of them
    before the other has marked the first as taken."""
    with running() as server:
        client = server.client()
        name, queue = function(CODE, on=client), Source(server.client("sqs"), fifo=True)
        for n in range(30):
            queue.send(f"{n % 3} {n}", MessageGroupId=str(n % 3), MessageDeduplicationId=str(n))
        mapped(name, queue, on=client, BatchSize=3)
        queue.wait_empty()
        got = wait_until(lambda: (b := sum(bodies(server, name), [])) and len(b) == 30 and b, what="all messages")
        for group in "012":
            own = [int(body.split()[1]) for body in got if body.startswith(group)]
            assert own == sorted(own)
        assert said(server, name)[0]["Records"][0]["attributes"]["MessageGroupId"] in "012"


def test_a_window_gathers(emberbox, function, source, mapped):
    code = 'import json\ndef handler(e, c):\n    print("GOT", json.dumps([r["body"] for r in e["Records"]]))\n'
    name, queue = function(code), source(visibility=30)
    for tens in range(12):
        entries = [{"Id": str(n), "MessageBody": str(tens * 10 + n)} for n in range(10)]
        queue.sqs.send_message_batch(QueueUrl=queue.url, Entries=entries)
    mapped(name, queue, BatchSize=50, MaximumBatchingWindowInSeconds=2)
    queue.wait_empty()
    # This server gives a message to two at once now and then, as SQS may.
    everything = {str(n) for n in range(120)}
    got = wait_until(lambda: (b := said(emberbox, name)) and set(sum(b, [])) == everything and b, what="all messages")
    assert max(map(len, got)) > 10 and max(map(len, got)) <= 50


def test_maximum_concurrency(emberbox, client, function, source, mapped):
    code = """
import json, time
def handler(event, context):
    began = time.time()
    time.sleep(0.3)
    print("GOT", json.dumps([began, time.time()]))
"""
    # This server gives messages also to polls whose connection is gone, as those of before an update are.
    name, queue = function(code), source(visibility=4)
    queue.send(*map(str, range(10)))
    mapping = mapped(name, queue, BatchSize=1, ScalingConfig={"MaximumConcurrency": 2})
    times = wait_until(lambda: len(seen := said(emberbox, name)) >= 10 and seen, 30, "all ten")
    at_once = lambda times: max(sum(began <= at < ended for began, ended in times) for at, _ in times)
    assert at_once(times) == 2
    # It is the setting that holds them back.
    client.update_event_source_mapping(UUID=mapping, ScalingConfig={})
    enabled(client, mapping)
    queue.send(*map(str, range(10)))
    later = wait_until(lambda: len(seen := said(emberbox, name)) >= 20 and seen, 30, "another ten")[len(times):]
    assert at_once(later) > 2


def test_the_queue_is_out_of_reach_for_a_while(function, moto, source, mapped):
    """It says so, and goes on when the endpoint is back, whatever was wrong with it."""
    gate = Gate(moto.endpoint)
    try:
        with running(config=config(gate.endpoint)) as server:
            client = server.client()
            name, queue = function(CODE, on=client), source()
            mapping = mapped(name, queue, on=client)
            for mode in ("error", "closed"):
                gate.set(mode)
                problem = lambda: client.get_event_source_mapping(UUID=mapping).get("LastProcessingResult", "")
                wait_until(lambda: problem().startswith("PROBLEM: Error occurred while ReceiveMessage"), 60, mode)
                queue.send(mode)
                gate.set("forward")
                queue.wait_empty(90)
                wait_until(lambda: problem() == "", 60, "no problem any more")
            assert sum(bodies(server, name), []) == ["error", "closed"]
    finally:
        gate.stop()


# Says what it did in a place that no kill of the server reaches: by a queue, after the work.
TELLS = """
import json, os, time, urllib.request

def handler(event, context):
    time.sleep(0.2)
    done, url = zip(*[record["body"].split() for record in event["Records"]])
    entries = [{"Id": body, "MessageBody": body} for body in done]
    call = json.dumps({"QueueUrl": url[0], "Entries": entries}).encode()
    headers = {
        "X-Amz-Target": "AmazonSQS.SendMessageBatch",
        "Content-Type": "application/x-amz-json-1.0",
        "Authorization": "AWS4-HMAC-SHA256 Credential=000000000000/20260101/us-east-1/sqs/aws4_request",  # not checked
    }
    urllib.request.urlopen(urllib.request.Request(os.environ["AWS_ENDPOINT_URL"], call, headers)).read()
"""


def test_nothing_is_lost_by_kill_9(function, moto, source):
    """Killed in the middle of batches, again and again: every message is still done."""
    queue = source(visibility=4)
    total = 200
    tells = moto.queue("done-" + uuid.uuid4().hex[:8])
    settings = config(moto.endpoint) + f'[functions]\nendpoint_url = "{moto.endpoint}"\n'
    with tempfile.TemporaryDirectory(prefix="emberbox-test-") as directory:
        server = Emberbox(data_dir=directory, config=settings).start()
        try:
            client = server.client()
            name = function(TELLS, on=client)
            client.create_event_source_mapping(FunctionName=name, EventSourceArn=queue.arn)
            for tens in range(total // 10):
                entries = [{"Id": str(n), "MessageBody": f"{tens * 10 + n} {tells.url}"} for n in range(10)]
                queue.sqs.send_message_batch(QueueUrl=queue.url, Entries=entries)
            for _ in range(3):
                before = queue.left()
                wait_until(lambda: queue.left() < before, 60, "some progress")
                server.process.send_signal(signal.SIGKILL)
                server.process.wait()
                server.process.stdout.close()
                server = Emberbox(data_dir=directory, config=settings).start()
                if queue.left() == 0:
                    break
            queue.wait_empty(120)
            assert {message["Body"] for message in tells.take()} == {str(n) for n in range(total)}
        finally:
            server.stop()


def test_a_stop_ends_what_was_begun(function, moto, source):
    queue = source(visibility=30)
    with running(config=config(moto.endpoint)) as server:
        client = server.client()
        name = function("import time\ndef handler(e, c):\n    time.sleep(2)\n", on=client)
        client.create_event_source_mapping(FunctionName=name, EventSourceArn=queue.arn)
        queue.send("a")
        hidden = ["ApproximateNumberOfMessagesNotVisible"]

        def taken():
            return queue.sqs.get_queue_attributes(QueueUrl=queue.url, AttributeNames=hidden)["Attributes"][hidden[0]] == "1"

        wait_until(taken, what="the message to be taken")
        time.sleep(0.5)  # into the handler; either way the outcome is the same
        assert server.stop() == 0
        assert queue.left() == 0, "its invocation ended, and it was deleted"
