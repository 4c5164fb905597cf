"""Destinations and dead letter queues of asynchronous invocations, at a third party's SQS, SNS, EventBridge and S3."""

import json
import re
import signal
import tempfile
import time
import urllib.request
import uuid

import pytest

from conftest import Emberbox, invoke, running, wait_active, wait_until
from third_party import ACCOUNT, REGION, SERVER, Gate, Moto, bodies
from test_invoke import UUID

pytestmark = [pytest.mark.needs("root", "cgroups", str(SERVER)), pytest.mark.process_only("deliveries do not touch the sandbox")]

# succeeds, or fails as the event says
CODE = """
def handler(event, context):
    if "fail" in event:
        raise ValueError(event["fail"])
    return {"got": event}
"""
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def config(endpoint):
    keys = ("sqs_endpoint", "sns_endpoint", "eventbridge_endpoint", "s3_endpoint")
    return "[events]\n" + "".join(f'{key} = "{endpoint}"\n' for key in keys)


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
def queue(moto):
    return moto.queue("q-" + uuid.uuid4().hex[:8])


@pytest.fixture
def gate(moto):
    gate = Gate(moto.endpoint)
    yield gate
    gate.stop()


def destinations(client, name, success=None, failure=None, retries=0, **where):
    """Sets them; no retries, so that a failure is final at once."""
    given = {"OnSuccess": success, "OnFailure": failure}
    client.put_function_event_invoke_config(
        FunctionName=name, MaximumRetryAttempts=retries,
        DestinationConfig={key: {"Destination": arn} for key, arn in given.items() if arn}, **where,
    )


def send(client, name, payload, **where):
    """Invokes asynchronously and returns the request id."""
    result = invoke(client, name, payload, InvocationType="Event", **where)
    assert (result.status, result.body) == (202, b"")
    return result.request_id


def received(queue, count=1, timeout=30.0):
    """`count` messages, and no more than that."""
    messages = []

    def enough():
        messages.extend(queue.take())
        return len(messages) >= count

    wait_until(enough, timeout, f"{count} messages in {queue.name}")
    assert len(messages) == count, messages
    return messages


def check_record(record, name, request_id, payload, failed, qualifier="$LATEST", version="$LATEST"):
    """Every field of a record, and their order."""
    assert list(record) == [
        "version", "timestamp", "requestContext", "requestPayload", "responseContext", "responsePayload"
    ]
    assert record["version"] == "1.0" and TIMESTAMP.fullmatch(record["timestamp"])
    assert record["requestContext"] == {
        "requestId": request_id,
        "functionArn": f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{name}:{qualifier}",
        "condition": "RetriesExhausted" if failed else "Success",
        "approximateInvokeCount": 1,
    }
    assert record["requestPayload"] == payload
    if failed:
        assert record["responseContext"] == {
            "statusCode": 200, "executedVersion": version, "functionError": "Unhandled"
        }
        error = record["responsePayload"]
        assert (error["errorType"], error["errorMessage"]) == ("ValueError", payload["fail"])
        assert error["stackTrace"]
    else:
        assert record["responseContext"] == {"statusCode": 200, "executedVersion": version}
        assert record["responsePayload"] == {"got": payload}


def metric(server, name):
    """Sum of a counter over its labels."""
    text = urllib.request.urlopen(server.endpoint + "/metrics").read().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"emberbox_{name}_total"))


@pytest.fixture(params=["success", "failure"])
def outcome(request):
    """(payload, whether it fails)"""
    failed = request.param == "failure"
    return ({"fail": "no: ü\u2028", "n": 1.0} if failed else {"a": [1, None, "ü\u2028"]}), failed


def test_queue(client, function, queue, outcome):
    payload, failed = outcome
    name = function(CODE)
    destinations(client, name, queue.arn, queue.arn)
    request_id = send(client, name, payload)
    [message] = received(queue)
    check_record(json.loads(message["Body"]), name, request_id, payload, failed)
    assert "MessageAttributes" not in message


def test_topic(client, function, moto, queue, outcome):
    payload, failed = outcome
    name = function(CODE)
    sns = moto.client("sns")
    topic = sns.create_topic(Name=name)["TopicArn"]
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=queue.arn)
    destinations(client, name, topic, topic)
    request_id = send(client, name, payload)
    [note] = bodies(received(queue))
    assert (note["Type"], note["TopicArn"]) == ("Notification", topic)
    assert "MessageAttributes" not in note
    check_record(json.loads(note["Message"]), name, request_id, payload, failed)


def test_event_bus(client, function, moto, queue, outcome):
    payload, failed = outcome
    name = function(CODE)
    events = moto.client("events")
    bus = events.create_event_bus(Name=name)["EventBusArn"]
    events.put_rule(Name=name, EventBusName=name, EventPattern=json.dumps({"source": ["lambda"]}))
    events.put_targets(Rule=name, EventBusName=name, Targets=[{"Id": "1", "Arn": queue.arn}])
    destinations(client, name, bus, bus)
    request_id = send(client, name, payload)
    [event] = bodies(received(queue))
    assert event["source"] == "lambda"
    assert event["detail-type"] == "Lambda Function Invocation Result - " + ("Failure" if failed else "Success")
    assert event["resources"] == [bus, f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{name}:$LATEST"]
    check_record(event["detail"], name, request_id, payload, failed)


def test_bucket(client, function, moto):
    """For failures only, as on AWS."""
    name = function(CODE)
    s3 = moto.client("s3")
    s3.create_bucket(Bucket=name)
    with pytest.raises(client.exceptions.InvalidParameterValueException):
        destinations(client, name, success=f"arn:aws:s3:::{name}")
    destinations(client, name, failure=f"arn:aws:s3:::{name}")
    payload = {"fail": "no"}
    request_id = send(client, name, payload)
    [found] = wait_until(lambda: s3.list_objects_v2(Bucket=name).get("Contents"), what="an object")
    key = found["Key"]
    date = r"(\d{4})/(\d\d)/(\d\d)/\1-\2-\3T\d\d\.\d\d\.\d\d"
    assert re.fullmatch(f"aws/lambda/async/{name}/{date}-{UUID}", key), key
    record = json.loads(s3.get_object(Bucket=name, Key=key)["Body"].read())
    check_record(record, name, request_id, payload, True)


def test_function(client, function, queue, outcome):
    """The second function gets the first one's record as its event; its own record shows it."""
    payload, failed = outcome
    second = function("def handler(event, context):\n    return context.aws_request_id\n")
    first = function(CODE)
    arn = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{second}"
    destinations(client, first, arn, arn)
    destinations(client, second, queue.arn)
    request_id = send(client, first, payload)
    [record] = bodies(received(queue))
    check_record(record["requestPayload"], first, request_id, payload, failed)
    assert record["requestContext"]["functionArn"] == arn + ":$LATEST"
    assert record["responsePayload"] == record["requestContext"]["requestId"] != request_id


def test_an_alias_has_destinations_of_its_own(client, function, moto, queue):
    name = function(CODE)
    client.publish_version(FunctionName=name)
    wait_active(client, f"{name}:1")
    client.create_alias(FunctionName=name, Name="live", FunctionVersion="1")
    other = moto.queue(queue.name + "-latest")
    destinations(client, name, queue.arn, Qualifier="live")
    destinations(client, name, other.arn)
    request_id = send(client, name, {"a": 1}, Qualifier="live")
    [record] = bodies(received(queue))
    check_record(record, name, request_id, {"a": 1}, False, "live", "1")
    assert other.take() == []


def attributes(message):
    """Name to (type, value)."""
    return {name: (a["DataType"], a["StringValue"]) for name, a in message["MessageAttributes"].items()}


def test_dead_letter_queue(client, function, moto, queue):
    """The event as it came, byte by byte, and a record beside it if one is wanted."""
    failures = moto.queue(queue.name + "-failures")
    name = function(CODE, DeadLetterConfig={"TargetArn": queue.arn})
    destinations(client, name, failure=failures.arn)
    payload = b'{"fail":  "boom \\u00fc",\n "n": 1.0}'
    request_id = send(client, name, payload)
    [message] = received(queue)
    assert message["Body"].encode() == payload
    assert attributes(message) == {
        "RequestID": ("String", request_id), "ErrorCode": ("Number", "200"), "ErrorMessage": ("String", "boom ü"),
    }
    check_record(bodies(received(failures))[0], name, request_id, json.loads(payload), True)
    send(client, name, {"a": 1})
    send(client, name, {"fail": "again"})
    assert bodies(received(queue)) == [{"fail": "again"}], "a success is no dead letter"


def test_dead_letter_topic(client, function, moto, queue):
    sns = moto.client("sns")
    topic = sns.create_topic(Name=queue.name)["TopicArn"]
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=queue.arn)
    name = function(CODE, DeadLetterConfig={"TargetArn": topic})
    destinations(client, name)
    request_id = send(client, name, {"fail": "boom"})
    [note] = bodies(received(queue))
    assert json.loads(note["Message"]) == {"fail": "boom"}
    assert note["MessageAttributes"] == {
        "RequestID": {"Type": "String", "Value": request_id},
        "ErrorCode": {"Type": "Number", "Value": "200"},
        "ErrorMessage": {"Type": "String", "Value": "boom"},
    }


def test_zero_reserved_concurrency_goes_straight_to_the_targets(client, function, moto, queue):
    letters = moto.queue(queue.name + "-letters")
    name = function(CODE, DeadLetterConfig={"TargetArn": letters.arn})
    destinations(client, name, failure=queue.arn, retries=2)
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=0)
    request_id = send(client, name, {"a": 1})
    [record] = bodies(received(queue))
    assert list(record) == ["version", "timestamp", "requestContext", "requestPayload"]
    context = record["requestContext"]
    assert (context["condition"], context["approximateInvokeCount"]) == ("ZeroReservedConcurrency", 0)
    [letter] = received(letters)
    assert (letter["Body"], attributes(letter)["RequestID"]) == ('{"a": 1}', ("String", request_id))


@pytest.mark.parametrize(
    "message, sent",
    [
        ("\x1b[31mred\x00", "\ufffd[31mred\ufffd"),
        ("x" * 5000, "x" * 1024),
        ("ü" * 2000, "ü" * 512),
        ("", None),
    ],
    ids=["control characters", "long", "long and wide", "empty"],
)
def test_no_error_message_costs_a_dead_letter(client, function, queue, message, sent):
    name = function(CODE, DeadLetterConfig={"TargetArn": queue.arn})
    destinations(client, name)
    send(client, name, {"fail": message})
    [letter] = received(queue)
    assert attributes(letter).get("ErrorMessage") == (sent and ("String", sent))


def test_what_a_target_never_takes_is_given_up(emberbox, client, function, moto, queue):
    """Too large or absent: counted, logged with what to do, and the next event is not held up. FIFO: refused at once."""
    name = function(CODE)
    with pytest.raises(client.exceptions.InvalidParameterValueException, match="destination ARN .* is invalid"):
        destinations(client, name, success=f"{queue.arn}.fifo")
    before = metric(emberbox, "destination_delivery_failures")
    given_up = metric(emberbox, "async_messages_undelivered")
    large = {"x": "x" * 1_000_000}
    for target, payload, advice in [
        (queue.arn + "-absent", {}, "create it"),
        (queue.arn, large, "sqs:SendMessage answered"),
    ]:
        destinations(client, name, success=target)
        request_id = send(client, name, payload)
        wait_until(
            lambda: any(request_id in line and advice in line for line in emberbox.log_path.open()),
            what=f"{advice!r} in the log",
        )
    assert metric(emberbox, "destination_delivery_failures") == before + 2
    assert metric(emberbox, "async_messages_undelivered") == given_up + 2
    destinations(client, name, success=queue.arn)
    request_id = send(client, name, {})
    assert bodies(received(queue))[0]["requestContext"]["requestId"] == request_id


@pytest.mark.parametrize("mode", ["closed", "error", "hang"])
def test_an_endpoint_that_is_out_of_order_gets_the_records_later(function, moto, queue, gate, mode):
    """And holds nothing up: other services' records go out meanwhile."""
    settings = config(moto.endpoint).replace(f'sqs_endpoint = "{moto.endpoint}"', f'sqs_endpoint = "{gate.endpoint}"')
    sns = moto.client("sns")
    topic = sns.create_topic(Name=queue.name)["TopicArn"]
    through_topic = moto.queue(queue.name + "-topic")
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=through_topic.arn)
    with running(config=settings) as server:
        client = server.client()
        name = function(CODE, on=client)
        destinations(client, name, success=queue.arn, failure=topic)
        gate.set(mode)
        stuck = {send(client, name, {"n": n}) for n in range(20)}
        if mode == "closed":
            wait_until(lambda: metric(server, "destination_delivery_failures") >= 20, what="failed tries")
        else:
            wait_until(lambda: gate.refused >= 1, what="a try")
        request_id = send(client, name, {"fail": "no"})
        [note] = bodies(received(through_topic, timeout=15))
        check_record(json.loads(note["Message"]), name, request_id, {"fail": "no"}, True)
        assert invoke(client, name, {"a": 1}).json == {"got": {"a": 1}}
        assert queue.take() == []
        gate.set("forward")
        messages = received(queue, 20, timeout=60)
        assert {record["requestContext"]["requestId"] for record in bodies(messages)} == stuck


def test_records_survive_kill_9(function, moto, queue, gate):
    """What the function answered is not asked for again: the record of before the kill is delivered after it."""
    once = 'import time\ndef handler(event, context):\n    return time.time_ns()\n'
    with tempfile.TemporaryDirectory(prefix="emberbox-test-") as directory:
        server = Emberbox(data_dir=directory, config=config(gate.endpoint)).start()
        try:
            client = server.client()
            name = function(once, on=client)
            destinations(client, name, success=queue.arn)
            gate.set("error")
            sent = {send(client, name, {"n": n}) for n in range(10)}

            def all_tried_twice():
                """The second try shows that the first one's end is in the queue, with what the function answered."""
                log = server.log_path.read_text()
                return all(len(re.findall(f"request={i}.*will be retried|will be retried.*{i}", log)) > 1 for i in sent)

            wait_until(all_tried_twice, what="two tries for each")
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
            killed = time.time_ns()
            after = Emberbox(data_dir=directory, config=config(gate.endpoint)).start()
            server.process.stdout.close()
            server = after
            gate.set("forward")
            records = {}

            def all_there():
                for record in bodies(queue.take()):
                    records.setdefault(record["requestContext"]["requestId"], record)
                return set(records) >= sent

            wait_until(all_there, 90, "the records of before the kill")
            assert set(records) == sent
            again = [record for record in records.values() if record["responsePayload"] > killed]
            assert not again, f"{len(again)} ran again"
        finally:
            server.stop()
