"""Asynchronous invocation: from a 202 to the function's run, its retries, and its end. Where the outcome goes is tested in
test_destinations."""

import json
import os
import random
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
import uuid

import boto3
import botocore.exceptions
import pytest

from conftest import BINARY, ECHO, PYTHON, ROLE, Emberbox, invoke, running, wait_active, wait_until, zip_bytes
from test_api import arn, fails
from test_emberbox_cli import cli
from third_party import ACCOUNT, SERVER, Moto, bodies

pytestmark = [pytest.mark.needs("root", "cgroups"), pytest.mark.process_only("events are invoked as any client does")]

# A hundred for the record, a few in every run.
KILL_ROUNDS = int(os.environ.get("EMBERBOX_KILL_ROUNDS", "3"))

NOTE = "def handler(event, context):\n    print('got', context.aws_request_id, event)\n"
FAILS_ONCE = """
import os

def handler(event, context):
    print("attempt", context.aws_request_id)
    if not os.path.exists("/tmp/again"):
        open("/tmp/again", "w").close()
        raise ValueError("once")
"""


def lines(server, name, pattern=""):
    """What the function wrote so far, as far as it has `pattern` in it."""
    logs = server.client("logs")
    try:
        pages = logs.get_paginator("filter_log_events").paginate(logGroupName=f"/aws/lambda/{name}")
        found = [event["message"] for page in pages for event in page["events"]]
    except logs.exceptions.ResourceNotFoundException:
        return []
    return [line for line in found if pattern in line]


def send(client, name, payload=None, **kwargs):
    """Invokes asynchronously; the request id."""
    sent = invoke(client, name, payload, InvocationType="Event", **kwargs)
    assert sent.status == 202 and sent.body == b"", sent.response
    return sent.request_id


def stats(server, name):
    """The queue of a function, as the command line sees it."""
    return json.loads(cli("events", name, "--json", endpoint=server.endpoint).stdout)


def ran(server, name, request_id, timeout=30):
    wait_until(lambda: lines(server, name, request_id), timeout, f"{name} to run {request_id}")


@pytest.fixture(scope="module", autouse=True)
def retried(emberbox, client):
    """An event that fails once. Its retry comes after a minute, which the other tests fill."""
    name = "retried-" + uuid.uuid4().hex[:8]
    client.create_function(
        FunctionName=name, Runtime=PYTHON, Handler="index.handler", Role=ROLE,
        Code={"ZipFile": zip_bytes({"index.py": FAILS_ONCE})},
    )
    wait_active(client, name)
    yield name, send(client, name), time.monotonic()
    client.delete_function(FunctionName=name)


def test_an_event_runs(emberbox, client, function):
    name = function(NOTE)
    sent = invoke(client, name, {"k": 1}, InvocationType="Event")
    # recorded: test_invocation_type_event
    assert set(sent.response) == {"ResponseMetadata", "Payload", "StatusCode"}
    assert (sent.status, sent.body) == (202, b"")
    headers = sent.response["ResponseMetadata"]["HTTPHeaders"]
    assert headers["x-amzn-requestid"] == sent.request_id and headers["content-length"] == "0"
    assert headers["x-amzn-trace-id"].startswith("Root=1-") and "content-type" not in headers
    ran(emberbox, name, f"got {sent.request_id} {{'k': 1}}")
    assert lines(emberbox, name, f"START RequestId: {sent.request_id}")


def test_invoke_async_is_the_older_way(emberbox, client, function):
    name = function(NOTE)
    answer = client.invoke_async(FunctionName=name, InvokeArgs=b'{"old": true}')
    assert answer["Status"] == 202 == answer["ResponseMetadata"]["HTTPStatusCode"]
    ran(emberbox, name, "'old': True")


def test_versions_and_aliases_run_by_their_own_name(emberbox, client, function):
    code = "def handler(event, context):\n    print('as', context.invoked_function_arn, context.function_version)\n"
    name = function(code)
    client.publish_version(FunctionName=name)
    client.create_alias(FunctionName=name, Name="live", FunctionVersion="1")
    send(client, name, Qualifier="live")
    send(client, f"{name}:1")
    send(client, name)
    for qualifier, version in (("live", "1"), ("1", "1"), (None, "$LATEST")):
        ran(emberbox, name, f"as {arn(name, qualifier)} {version}")


def test_what_cannot_run_is_refused_at_once(client, function):
    name = function(ECHO)
    event = {"InvocationType": "Event"}
    fails(
        "ResourceNotFoundException", client.invoke, f"Function not found: {arn('nope', '$LATEST')}", 404,
        FunctionName="nope", **event,
    )
    fails("ResourceNotFoundException", client.invoke, None, 404, FunctionName=name, Qualifier="7", **event)
    fails("InvalidRequestContentException", client.invoke, None, 400, FunctionName=name, Payload=b"{", **event)
    fails(
        "RequestEntityTooLargeException", client.invoke,
        "1048577 byte payload is too large for the Event invocation type (limit 1048576 bytes)", 413,
        FunctionName=name, Payload=b'"' + b"x" * (2**20 - 1) + b'"', **event,
    )
    fails("InvalidRequestContentException", client.invoke_async, None, 400, FunctionName=name, InvokeArgs=b"x")
    fails("ResourceNotFoundException", client.invoke_async, None, 404, FunctionName="nope", InvokeArgs=b"{}")


def test_a_megabyte_fits(emberbox, client, function):
    name = function("def handler(event, context):\n    print('got', len(event))\n")
    send(client, name, b'"' + b"x" * (2**20 - 2) + b'"')
    ran(emberbox, name, f"got {2**20 - 2}")


def test_a_failure_without_retries_is_final(emberbox, client, function):
    name = function("def handler(event, context):\n    print('once')\n    raise ValueError\n")
    client.put_function_event_invoke_config(FunctionName=name, MaximumRetryAttempts=0)
    send(client, name)
    wait_until(lambda: stats(emberbox, name)["dropped"] == 1, what="the event to be given up")
    assert stats(emberbox, name)["depth"] == 0
    assert len(wait_until(lambda: lines(emberbox, name, "once"))) == 1


def test_a_retry_that_would_be_too_old_is_not_made(emberbox, client, function):
    name = function("def handler(event, context):\n    raise ValueError\n")
    client.put_function_event_invoke_config(FunctionName=name, MaximumEventAgeInSeconds=60)
    send(client, name)
    wait_until(lambda: stats(emberbox, name)["dropped"] == 1, what="the event to be given up")


def test_reserved_concurrency_zero_runs_nothing(emberbox, client, function):
    name = function(NOTE)
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=0)
    send(client, name)
    wait_until(lambda: stats(emberbox, name)["dropped"] == 1, what="the event to be given up")
    assert not lines(emberbox, name)


def test_throttled_events_run_when_there_is_room(emberbox, client, function):
    name = function(
        "import time\ndef handler(event, context):\n    print('got', context.aws_request_id)\n    time.sleep(0.3)\n",
        Timeout=10,
    )
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=1)
    sent = [send(client, name) for _ in range(4)]
    wait_until(lambda: stats(emberbox, name)["succeeded"] == 4, 60, "all four to run")
    for request_id in sent:
        ran(emberbox, name, f"got {request_id}")
    assert stats(emberbox, name)["depth"] == 0


def test_what_waits_runs_on_new_code(emberbox, client, function):
    """recorded: test_async_invoke_queue_upon_function_update"""
    name = function("import time\ndef handler(event, context):\n    time.sleep(event)\n    print('old', event)\n", Timeout=20)
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=1)
    busy = threading.Thread(target=invoke, args=(client, name, 3))
    busy.start()
    time.sleep(0.5)
    request_id = send(client, name, 0)
    new = zip_bytes({"index.py": "def handler(event, context):\n    print('new', context.aws_request_id)\n"})
    client.update_function_code(FunctionName=name, ZipFile=new)
    wait_active(client, name)
    busy.join()
    ran(emberbox, name, f"new {request_id}")


def test_events_of_a_deleted_function_are_dropped(emberbox, client, function):
    name = function("import time\ndef handler(event, context):\n    time.sleep(2)\n", Timeout=10)
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=1)
    busy = threading.Thread(target=invoke, args=(client, name))
    busy.start()
    time.sleep(0.5)
    for _ in range(3):
        send(client, name)
    client.delete_function(FunctionName=name)
    busy.join()
    metric = f'emberbox_async_events_dropped_total{{function="{arn(name)}"}} 3'
    page = lambda: urllib.request.urlopen(emberbox.endpoint + "/metrics").read().decode()
    wait_until(lambda: metric in page(), 30, "three events to be dropped")


def figures(server, name):
    """What /metrics says of a function, by the figure's name."""
    page = urllib.request.urlopen(server.endpoint + "/metrics").read().decode()
    lines = (line.rsplit(" ", 1) for line in page.splitlines() if f'{{function="{arn(name)}"}}' in line)
    return {line.split("{")[0].removeprefix("emberbox_"): float(value) for line, value in lines}


def test_the_figures_of_a_functions_events(emberbox, client, function):
    """AsyncEventsReceived, AsyncEventAge, AsyncEventsDropped, DeadLetterErrors, DestinationDeliveryFailures."""
    sqs = emberbox.client("sqs")
    suffix = uuid.uuid4().hex[:8]
    urls = [sqs.create_queue(QueueName=f"{part}-{suffix}")["QueueUrl"] for part in ("ok", "dead")]
    ok, dead = (f"arn:aws:sqs:us-east-1:000000000000:{part}-{suffix}" for part in ("ok", "dead"))
    name = function("def handler(event, context):\n    assert event['good']\n", DeadLetterConfig={"TargetArn": dead})
    client.put_function_event_invoke_config(
        FunctionName=name, MaximumRetryAttempts=0, DestinationConfig={"OnSuccess": {"Destination": ok}}
    )
    for url in urls:
        sqs.delete_queue(QueueUrl=url)
    for good in (True, True, False, False, False):
        send(client, name, {"good": good})
    wait_until(lambda: figures(emberbox, name).get("async_messages_undelivered_total") == 5, 30, "five failed deliveries")
    seen = figures(emberbox, name)
    age = seen.pop("async_event_age_seconds_sum")
    assert 0 < age < 5 * 30
    assert {key: value for key, value in seen.items() if key.startswith(("async", "dead", "destination"))} == {
        "async_events_received_total": 5, "async_event_age_seconds_count": 5, "async_events_succeeded_total": 2,
        "async_events_dropped_total": 3, "dead_letter_errors_total": 3, "destination_delivery_failures_total": 2,
        "async_messages_undelivered_total": 5,
    }
    assert stats(emberbox, name)["deliveryErrors"] == 5


def test_what_goes_wrong_in_one_function_does_not_stop_the_others(function):
    """Three hang, and would take all of the account's concurrency; one crashes, one runs out of memory, one is throttled."""
    with running(config="[limits]\naccount_concurrency = 40\n") as server:
        client = server.client()
        sleeps = "import time\ndef handler(event, context):\n    time.sleep(600)\n"
        hanging = [function(sleeps, on=client, Timeout=300) for _ in range(3)]
        failing = [
            function("import os\ndef handler(event, context):\n    os._exit(1)\n", on=client),
            function("def handler(event, context):\n    return len('x' * (1 << 31))\n", on=client, Timeout=10),
        ]
        throttled, good = function(ECHO, on=client), function(NOTE, on=client)
        client.put_function_concurrency(FunctionName=throttled, ReservedConcurrentExecutions=0)
        for name in failing:
            client.put_function_event_invoke_config(FunctionName=name, MaximumRetryAttempts=0)
        for name in hanging + failing + [throttled]:
            for _ in range(20 if name in hanging else 5):
                send(client, name)
        hang = lambda: sum(stats(server, name)["inFlight"] for name in hanging)
        # An eighth of the concurrency is left for others: 35 hang, and not the 48 that the three may run.
        wait_until(lambda: hang() >= 35, 60, "all that may hang to hang")
        for n in range(5):
            began = time.monotonic()
            request_id = send(client, good, n)
            ran(server, good, f"got {request_id}", 15)
            print(f"another's event ran after {time.monotonic() - began:.1f} s")
        for name in failing + [throttled]:
            wait_until(lambda: stats(server, name)["dropped"] == 5, 60, f"the events of {name} to be given up")
        assert hang() >= 35
        # The other way round: a synchronous invocation finds room as well.
        assert invoke(client, good).status == 200
        server.stop(sig=9)


def test_a_loop_through_destinations_is_stopped(emberbox, client, function):
    """f tells g, and g tells f; each counts itself in the lineage."""
    names = [function("def handler(event, context):\n    return 1\n") for _ in range(2)]
    for own, other in (names, names[::-1]):
        destination = {"OnSuccess": {"Destination": arn(other)}}
        client.put_function_event_invoke_config(FunctionName=own, DestinationConfig=destination)
    assert client.get_function_recursion_config(FunctionName=names[0])["RecursiveLoop"] == "Terminate"
    send(client, names[0])
    wait_until(lambda: stats(emberbox, names[0])["dropped"] == 1, 60, "the loop to be stopped")
    assert [stats(emberbox, name)["succeeded"] for name in names] == [16, 16]

    for name in names:
        client.put_function_recursion_config(FunctionName=name, RecursiveLoop="Allow")
    send(client, names[0])
    wait_until(lambda: stats(emberbox, names[1])["succeeded"] > 16 + 20, 60, "the loop to go on")
    client.put_function_recursion_config(FunctionName=names[0], RecursiveLoop="Terminate")
    wait_until(lambda: stats(emberbox, names[0])["dropped"] == 2, 60, "the loop to be stopped")


def test_a_loop_of_synchronous_invocations_is_stopped(emberbox, client, function):
    name = function("import os\ndef handler(event, context):\n    return os.environ['_X_AMZN_TRACE_ID']\n")
    trace = "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=0"
    caller = emberbox.client()
    caller.meta.events.register(
        "before-call.lambda.Invoke", lambda params, **_: params["headers"].update({"X-Amzn-Trace-Id": trace})
    )
    for _ in range(16):
        trace = invoke(caller, name).json
        assert "Lineage=" in trace
    fails("RecursiveInvocationException", caller.invoke, None, 400, FunctionName=name)
    client.put_function_recursion_config(FunctionName=name, RecursiveLoop="Allow")
    assert invoke(caller, name).status == 200


# As AWS's SDKs do it in a function: the trace goes along.
SENDS_TO_ITSELF = """
import json, os, urllib.parse, urllib.request

def handler(event, context):
    print("round", os.environ["_X_AMZN_TRACE_ID"])
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    trace = urllib.parse.quote(os.environ["_X_AMZN_TRACE_ID"], safe="-=;:+&[]{}\\"',")
    body = {"QueueUrl": endpoint + "/000000000000/loop", "MessageBody": "again"}
    headers = {
        "Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": "AmazonSQS.SendMessage", "X-Amzn-Trace-Id": trace,
    }
    urllib.request.urlopen(urllib.request.Request(endpoint, json.dumps(body).encode(), headers)).read()
"""


@pytest.mark.needs("egress")
def test_a_loop_through_an_own_queue_is_stopped(function):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = "127.0.0.1:%d" % probe.getsockname()[1]
    with running(listen=address, config=f'[functions]\nendpoint_url = "http://{address}"\n') as server:
        client, sqs = server.client(), server.client("sqs")
        queue, dead = (sqs.create_queue(QueueName=name)["QueueUrl"] for name in ("loop", "dead"))
        arn_of = "arn:aws:sqs:us-east-1:000000000000:"
        policy = {"deadLetterTargetArn": arn_of + "dead", "maxReceiveCount": 1}
        sqs.set_queue_attributes(
            QueueUrl=queue, Attributes={"RedrivePolicy": json.dumps(policy), "VisibilityTimeout": "5"}
        )
        name = function(SENDS_TO_ITSELF, on=client)
        client.create_event_source_mapping(FunctionName=name, EventSourceArn=arn_of + "loop")
        sqs.send_message(QueueUrl=queue, MessageBody="first")
        [message] = wait_until(
            lambda: sqs.receive_message(QueueUrl=dead, WaitTimeSeconds=5).get("Messages"), 60, "the loop to be stopped"
        )
        assert message["Body"] == "again" and len(lines(server, name, "round")) == 16


def test_the_command_line_shows_events(emberbox, function):
    name = function(NOTE)
    out = cli("invoke", name, "{}", "--event", "--timeline", endpoint=emberbox.endpoint).stderr
    steps = [line.split("  ")[0] for line in out.splitlines()]
    assert steps[0].startswith("Queued (") and steps[1] == "step" and steps[2] == "received", out
    assert {"queued", "dequeued (attempt 1)", "answered", "settled (succeeded)"} <= set(steps), out
    wait_until(lambda: stats(emberbox, name)["succeeded"] == 1, what="it is counted")
    out = cli("events", name, endpoint=emberbox.endpoint).stdout.splitlines()
    assert out[0].split()[:2] == ["QUEUED", "OLDEST"] and out[1].split()[:2] == ["0", "-"], out
    assert "Function not found" in cli("events", "nope", endpoint=emberbox.endpoint, check=False).stderr
    follow = subprocess.Popen(
        [str(BINARY), "events", name, "--follow", "--json"], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "AWS_ENDPOINT_URL_LAMBDA": emberbox.endpoint},
    )
    try:
        assert json.loads(follow.stdout.readline())["received"] == 1
        cli("invoke", name, "{}", "--event", endpoint=emberbox.endpoint)
        assert json.loads(follow.stdout.readline())["received"] == 2
    finally:
        follow.kill()
        follow.wait()
        follow.stdout.close()


def test_the_timeline_shows_every_attempt_and_the_end(emberbox, client, function):
    code = "import time\ndef handler(event, context):\n    print('began')\n    time.sleep(event.get('sleep', 0))\n"
    name = function(code, Timeout=10)

    def first(payload):
        out = cli("invoke", name, json.dumps(payload), "--event", "--timeline", endpoint=emberbox.endpoint).stderr
        return out[len("Queued ("):].split(")")[0], [line.split("  ")[0] for line in out.splitlines()]

    # One that no attempt is made of has an end as well, and waiting for it has.
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=0)
    request, steps = first({})
    assert "settled" in steps and "answered" not in steps, steps
    event = json.loads(cli("events", name, "--request", request, "--json", endpoint=emberbox.endpoint).stdout)
    assert (event["attempts"], event["settled"]) == (0, True)
    assert event["timeline"][-1]["note"] == "given up: ZeroReservedConcurrency"
    # One that is throttled, and runs when there is room.
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=1)
    busy = threading.Thread(target=client.invoke, kwargs={"FunctionName": name, "Payload": json.dumps({"sleep": 4})})
    busy.start()
    wait_until(lambda: lines(emberbox, name, "began"), what="another invocation to run")
    request, _ = first({})
    busy.join()
    done = lambda: json.loads(cli("events", name, "--request", request, "--json", endpoint=emberbox.endpoint).stdout)
    wait_until(lambda: done()["timeline"][-1].get("note") == "succeeded", 60, "it to run")
    settled = [mark["note"] for mark in done()["timeline"] if mark["step"] == "settled"]
    assert len(settled) >= 2 and all(note.startswith("again in") for note in settled[:-1]), settled
    shown = cli("events", name, "--request", request, endpoint=emberbox.endpoint).stdout
    assert shown.count("dequeued") == len(settled) and "settled (succeeded)" in shown, shown


@pytest.fixture
def moto():
    server = Moto()
    yield server
    server.stop()


@pytest.mark.needs(str(SERVER))
def test_redrive_runs_failed_events_again(function, moto):
    with running(config=f'[events]\nsqs_endpoint = "{moto.endpoint}"\n') as server:
        client = server.client()
        letters, records = moto.queue("letters"), moto.queue("records")
        broken = "def handler(event, context):\n    raise ValueError\n"
        name = function(broken, on=client, DeadLetterConfig={"TargetArn": letters.arn})
        client.put_function_event_invoke_config(
            FunctionName=name, MaximumRetryAttempts=0, DestinationConfig={"OnFailure": {"Destination": records.arn}}
        )
        for n in range(12):
            send(client, name, {"n": n})
        wait_until(lambda: stats(server, name)["deadLettered"] == 24, what="letters and records")
        records.sqs.send_message(QueueUrl=records.url, MessageBody="not ours")
        client.update_function_code(FunctionName=name, ZipFile=zip_bytes({"index.py": NOTE}))
        wait_active(client, name)
        redrive = lambda **more: cli(
            "events", name, "redrive", "--json", "--sqs-endpoint", moto.endpoint, endpoint=server.endpoint,
            keys=(ACCOUNT, "test"), **more,
        )
        out = redrive(check=False)
        assert out.returncode == 1 and out.stdout, out.stderr
        assert json.loads(out.stdout) == [
            {"queue": letters.arn, "redriven": 12, "left": 0}, {"queue": records.arn, "redriven": 12, "left": 1},
        ]
        wait_until(lambda: stats(server, name)["succeeded"] == 24, what="all to run")
        for n in range(12):
            wait_until(lambda: len(lines(server, name, f"{{'n': {n}}}")) == 2, what=f"event {n} from both queues")
        assert letters.take() == [] and [message["Body"] for message in records.take()] == ["not ours"]
        assert json.loads(redrive().stdout)[0]["redriven"] == 0
        other = function(NOTE, on=client)
        assert "neither" in cli("events", other, "redrive", endpoint=server.endpoint, check=False).stderr


@pytest.mark.needs(str(SERVER))
def test_kill_9_loses_nothing(function, moto):
    """Whatever was answered 202 runs, as its record says, or fails, as its dead letter says: both are sent before the event
    is done with."""
    queue, letters = moto.queue("ran"), moto.queue("letters")
    config = f'[events]\nsqs_endpoint = "{moto.endpoint}"\n'
    accepted, succeeded, dead = {}, {}, {}

    def take():
        for record in bodies(queue.take()):
            succeeded[record["requestContext"]["requestId"]] = record["requestPayload"]
        for letter in letters.take():
            dead[letter["MessageAttributes"]["RequestID"]["StringValue"]] = json.loads(letter["Body"])

    with tempfile.TemporaryDirectory(prefix="emberbox-test-") as directory:
        server = Emberbox(data_dir=directory, config=config).start()
        try:
            code = "def handler(event, context):\n    if event['n'] % 3 == 0: raise ValueError('a third fails')\n"
            name = function(code, on=server.client(), DeadLetterConfig={"TargetArn": letters.arn})
            server.client().put_function_event_invoke_config(
                FunctionName=name, MaximumRetryAttempts=0, DestinationConfig={"OnSuccess": {"Destination": queue.arn}}
            )
            for _ in range(KILL_ROUNDS):
                client = server.client()
                killed = threading.Event()

                def load():
                    n = 0
                    while not killed.is_set():
                        n += 1
                        try:
                            accepted[send(client, name, {"n": n})] = {"n": n}
                        except botocore.exceptions.BotoCoreError:
                            return

                threads = [threading.Thread(target=load) for _ in range(4)]
                for thread in threads:
                    thread.start()
                time.sleep(random.uniform(0.05, 1.0))
                server.process.send_signal(signal.SIGKILL)
                server.process.wait()
                killed.set()
                for thread in threads:
                    thread.join()
                server.process.stdout.close()
                server = Emberbox(data_dir=directory, config=config).start()
                take()
            assert len(accepted) >= 10 * KILL_ROUNDS

            def all_ended():
                take()
                return accepted.keys() <= succeeded.keys() | dead.keys()

            with_patience = 60 + len(accepted) / 20
            wait_until(all_ended, with_patience, "all accepted events to run or to be dead-lettered")
            print(f"{KILL_ROUNDS} rounds: {len(accepted)} accepted, {len(succeeded)} ran, {len(dead)} dead-lettered, 0 lost")
            for ended, fails in ((succeeded, False), (dead, True)):
                assert all((event["n"] % 3 == 0) == fails for event in ended.values())
                mine = {request_id: event for request_id, event in ended.items() if request_id in accepted}
                assert mine == {id: event for id, event in accepted.items() if (event["n"] % 3 == 0) == fails}
            assert len(dead) >= 2 * KILL_ROUNDS
            wait_until(lambda: stats(server, name)["depth"] == 0, 60, "the queue to be empty")
        finally:
            server.stop()


@pytest.mark.needs("strace")
def test_a_202_comes_after_the_sync(emberbox, client, function, tmp_path):
    name = function(NOTE)
    ran(emberbox, name, send(client, name))
    trace = tmp_path / "trace"
    strace = subprocess.Popen(
        ["strace", "-f", "-y", "-s", "300", "-e", "trace=fsync,fdatasync,write,writev,sendto", "-o", str(trace),
         "-p", str(emberbox.process.pid)], stderr=subprocess.PIPE, text=True,
    )
    try:
        assert "attached" in strace.stderr.readline()
        for n in range(5):
            send(client, name, n)
    finally:
        strace.send_signal(signal.SIGINT)
        strace.communicate()
    syncing, synced, answers = set(), False, 0
    for line in trace.read_text().splitlines():
        thread, call = line.split(maxsplit=1)
        if call.startswith(("fsync(", "fdatasync(")) and "events.db-wal" in call:
            syncing.add(thread)
        if thread in syncing and "sync" in call and call.endswith("= 0"):
            syncing.discard(thread)
            synced = True
        # Not the Runtime API's, whose body is `{"status":"OK"}`.
        if '"HTTP/1.1 202' in call and "status" not in call:
            assert synced, "answered before the log was synced:\n" + trace.read_text()
            synced, answers = False, answers + 1
    assert answers == 5, trace.read_text()


def test_events_wait_while_the_server_is_down(function):
    with tempfile.TemporaryDirectory(prefix="emberbox-test-") as directory:
        server = Emberbox(data_dir=directory).start()
        try:
            client = server.client()
            name = function("import time\ndef handler(event, context):\n    time.sleep(1)\n    print('got', event)\n", on=client)
            client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=1)
            for n in range(4):
                send(client, name, n)
            assert server.stop() == 0
            server = Emberbox(data_dir=directory).start()
            for n in range(4):
                ran(server, name, f"got {n}", 60)
        finally:
            server.stop()


def test_a_damaged_queue_is_not_used(function):
    with tempfile.TemporaryDirectory(prefix="emberbox-test-") as directory:
        server = Emberbox(data_dir=directory).start()
        client = server.client()
        name = function(NOTE, on=client)
        send(client, name)
        assert server.stop() == 0
        path = server.data_dir / "events.db"
        whole = path.read_bytes()
        path.write_bytes(random.randbytes(len(whole)))
        with pytest.raises(AssertionError) as caught:
            Emberbox(data_dir=directory).start()
        text = str(caught.value)
        assert str(path) in text and "move" in text, text
        assert path.read_bytes() != whole and path.stat().st_size == len(whole), "left as it is"
        path.write_bytes(whole)
        server = Emberbox(data_dir=directory).start()
        assert invoke(server.client(), name).status == 200
        server.stop()


def test_a_retry_has_the_same_request_id(emberbox, retried):
    """recorded: test_request_id_async_invoke_with_retry"""
    name, request_id, began = retried
    wait_until(lambda: len(lines(emberbox, name, f"attempt {request_id}")) == 2, 120, "the retry, a minute later")
    assert time.monotonic() - began >= 59
    wait_until(lambda: len(lines(emberbox, name, f"END RequestId: {request_id}")) == 2, what="the end of both attempts")
    wait_until(lambda: stats(emberbox, name)["succeeded"] == 1, what="it is counted")


def test_the_embedded_queues_serve_as_source_destination_and_dead_letter_queue(emberbox, client, function):
    """Without any configuration; an account of one's own, as everywhere."""
    sqs = emberbox.client("sqs")
    suffix = uuid.uuid4().hex[:8]
    urls = {part: sqs.create_queue(QueueName=f"{part}-{suffix}")["QueueUrl"] for part in ("source", "ok", "dead")}
    queue = lambda part: f"arn:aws:sqs:us-east-1:000000000000:{part}-{suffix}"

    def received(part):
        return sqs.receive_message(
            QueueUrl=urls[part], WaitTimeSeconds=10, MessageAttributeNames=["All"]
        ).get("Messages", [])

    code = "def handler(event, context):\n    if 'fail' in event: raise ValueError('no')\n    return len(event['Records'])\n"
    name = function(code, DeadLetterConfig={"TargetArn": queue("dead")})
    client.put_function_event_invoke_config(
        FunctionName=name, MaximumRetryAttempts=0, DestinationConfig={"OnSuccess": {"Destination": queue("ok")}}
    )
    client.create_event_source_mapping(FunctionName=name, EventSourceArn=queue("source"))
    sqs.send_message(QueueUrl=urls["source"], MessageBody="hello")
    empty = lambda: sqs.get_queue_attributes(
        QueueUrl=urls["source"], AttributeNames=["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    )["Attributes"]
    wait_until(lambda: set(empty().values()) == {"0"}, 60, "the message to be taken and deleted")
    request_id = send(client, name, {"Records": [1, 2]})
    [record] = received("ok")
    record = json.loads(record["Body"])
    assert (record["requestContext"]["requestId"], record["responsePayload"]) == (request_id, 2)
    request_id = send(client, name, {"fail": 1})
    [letter] = received("dead")
    assert letter["MessageAttributes"]["RequestID"]["StringValue"] == request_id
    assert json.loads(letter["Body"]) == {"fail": 1}
    sqs.change_message_visibility(QueueUrl=urls["dead"], ReceiptHandle=letter["ReceiptHandle"], VisibilityTimeout=0)
    client.update_function_code(FunctionName=name, ZipFile=zip_bytes({"index.py": NOTE}))
    wait_active(client, name)
    assert json.loads(cli("events", name, "redrive", "--json", endpoint=emberbox.endpoint).stdout) == [
        {"queue": queue("dead"), "redriven": 1, "left": 0}
    ]
    ran(emberbox, name, "{'fail': 1}")


def test_a_client_that_polls_a_queue_does_not_hold_up_the_end():
    with running() as server:
        sqs = server.client("sqs")
        url = sqs.create_queue(QueueName="q")["QueueUrl"]

        answers = []
        poll = lambda: answers.append(sqs.receive_message(QueueUrl=url, WaitTimeSeconds=20))
        polling = threading.Thread(target=poll)
        polling.start()
        time.sleep(0.5)
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 10
        polling.join()
        assert "Messages" not in answers[0]


def test_each_account_has_queues_of_its_own(function):
    """Emberbox's own queues need no configuration, and no account gets at another's by a mapping or a destination."""
    accounts = {"A": "111111111111", "B": "222222222222"}
    config = "".join(
        f'[[credentials]]\naccess_key_id = "{key}K"\nsecret_access_key = "{key}S"\naccount = "{account}"\n'
        for key, account in accounts.items()
    )
    with running(config=config) as server:
        def of(key, service):
            return server.client(service, account=key + "K", secret=key + "S")

        urls = {
            (key, name): of(key, "sqs").create_queue(QueueName=name)["QueueUrl"]
            for key in accounts for name in ("source", "ok")
        }
        lambda_, sqs = of("B", "lambda"), of("B", "sqs")
        name = function(NOTE, on=lambda_)
        queue = lambda key, name: f"arn:aws:sqs:us-east-1:{accounts[key]}:{name}"
        fails(
            "InvalidParameterValueException", lambda_.create_event_source_mapping,
            "Error occurred while ReceiveMessage. SQS Error Code: AWS.SimpleQueueService.NonExistentQueue. SQS Error "
            "Message: The specified queue does not exist.", 400, FunctionName=name, EventSourceArn=queue("A", "source"),
        )
        lambda_.create_event_source_mapping(FunctionName=name, EventSourceArn=queue("B", "source"))
        sqs.send_message(QueueUrl=urls["B", "source"], MessageBody="mine")

        def told(text):
            groups = of("B", "logs").filter_log_events(logGroupName=f"/aws/lambda/{name}", filterPattern=f'"{text}"')
            return groups["events"]

        wait_until(lambda: sum(stats_of(sqs, urls["B", "source"])) == 0, 30, "the message to be taken")
        assert told("mine")
        for key, arrives in (("A", False), ("B", True)):
            lambda_.put_function_event_invoke_config(
                FunctionName=name, DestinationConfig={"OnSuccess": {"Destination": queue(key, "ok")}}
            )
            request_id = send(lambda_, name)
            found = of(key, "sqs").receive_message(QueueUrl=urls[key, "ok"], WaitTimeSeconds=10 if arrives else 3)
            records = bodies(found.get("Messages", []))
            assert [record["requestContext"]["requestId"] for record in records] == [request_id] * arrives
        fails("InvalidSignatureException", server.client("sqs", account="AK", secret="BS").list_queues, None, 403)
        fails("AccessDenied", sqs.receive_message, None, 403, QueueUrl=urls["A", "ok"])
        fails("AWS.SimpleQueueService.NonExistentQueue", sqs.get_queue_url, None, 400, QueueName="ok", QueueOwnerAWSAccountId=accounts["A"])
        out = cli("events", name, "--json", endpoint=server.endpoint, keys=("BK", "BS")).stdout
        assert json.loads(out)["received"] == 2
        for keys in (("AK", "AS"), ("BK", "no")):
            assert cli("events", name, endpoint=server.endpoint, keys=keys, check=False).returncode != 0


def stats_of(sqs, url):
    """Messages of a queue that are visible, and in flight."""
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    return [int(n) for n in sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"].values()]


def test_own_queues_need_no_certificate_that_anybody_trusts(function, tmp_path):
    """As with HTTPS in general, the certificate may be for another name than the address that Emberbox listens on."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )
    with running(config=f'[tls]\ncert = "{cert}"\nkey = "{key}"\n') as server:
        server.endpoint = server.endpoint.replace("127.0.0.1", "localhost")
        client, sqs = (
            boto3.client(
                service, endpoint_url=server.endpoint, region_name="us-east-1", verify=str(cert),
                aws_access_key_id="000000000000", aws_secret_access_key="test",
            )
            for service in ("lambda", "sqs")
        )
        url = sqs.create_queue(QueueName="ok")["QueueUrl"]
        name = function(NOTE, on=client)
        client.put_function_event_invoke_config(
            FunctionName=name, DestinationConfig={"OnSuccess": {"Destination": "arn:aws:sqs:us-east-1:000000000000:ok"}}
        )
        request_id = send(client, name)
        [record] = bodies(sqs.receive_message(QueueUrl=url, WaitTimeSeconds=20)["Messages"])
        assert record["requestContext"]["requestId"] == request_id


def test_a_full_disk_costs_no_event_that_was_accepted(function, tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", tmp_path], check=True)
    try:
        server = Emberbox(data_dir=tmp_path).start()
        client = server.client()
        name = function("def handler(event, context):\n    return len(event)\n", on=client)
        accepted, refused = 0, 0
        payload = b'"' + b"x" * 200_000 + b'"'
        for fill in (True, False):
            ballast = tmp_path / "ballast"
            if fill:
                with open(ballast, "wb") as file, pytest.raises(OSError):
                    while True:
                        file.write(bytes(1 << 16))
                        file.flush()
            for _ in range(20):
                try:
                    accepted += send(client, name, payload) is not None
                except botocore.exceptions.ClientError as error:
                    assert error.response["Error"]["Code"] == "ServiceException", error.response
                    assert "full" in error.response["Error"]["Message"], error.response
                    refused += 1
            if fill:
                assert refused > 0
                ballast.unlink()
                refused = 0
        assert refused == 0, "there is room again"
        wait_until(lambda: stats(server, name)["succeeded"] == accepted, 60, f"{accepted} events to run")
        assert server.stop() == 0
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)
