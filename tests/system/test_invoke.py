"""Synchronous invocation: what callers and functions see."""

import concurrent.futures
import json
import re
import statistics
import time
import uuid

import botocore.exceptions
import pytest

from conftest import ECHO, ISOLATION, PATIENCE, PYTHON, invoke, wait_active, wait_until

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"


def test_payloads_come_back(client, function):
    name = function(ECHO)
    for payload in ({"a": [1, 2.5, None, True, "ü\u2028"]}, [], "text", 0, None, {"big": "x" * 1_000_000}):
        result = invoke(client, name, json.dumps(payload).encode())
        assert (result.status, result.error, result.version) == (200, None, "$LATEST")
        assert result.json == payload
    assert invoke(client, name).json == {}, "an empty body is {}"
    assert invoke(client, name, b"{}", InvocationType="DryRun").status == 204


def test_void_return_is_null(client, function):
    assert invoke(client, function("def handler(e, c):\n    pass\n"), {}).body == b"null"


def test_context_and_environment(client, function):
    name = function(
        """
import os
def handler(event, context):
    return {
        "env": dict(os.environ), "id": context.aws_request_id, "arn": context.invoked_function_arn,
        "name": context.function_name, "version": context.function_version, "memory": context.memory_limit_in_mb,
        "left": context.get_remaining_time_in_millis(), "client": context.client_context and context.client_context.custom,
        "group": context.log_group_name, "stream": context.log_stream_name, "cwd": os.getcwd(),
    }
""",
        Environment={"Variables": {"MINE": "yes"}},
        Timeout=10,
    )
    context = "eyJjdXN0b20iOnsiZm9vIjoiYmFyIn19"
    result = invoke(client, name, {}, ClientContext=context)
    seen = result.json
    env = seen["env"]
    assert seen["id"] == result.request_id
    assert seen["arn"] == f"arn:aws:lambda:us-east-1:000000000000:function:{name}"
    assert (seen["name"], seen["version"], seen["memory"], seen["cwd"]) == (name, "$LATEST", "128", "/var/task")
    assert 8000 < seen["left"] <= 10000
    assert seen["client"] == {"foo": "bar"}
    assert env["MINE"] == "yes"
    assert env["AWS_LAMBDA_RUNTIME_API"] == "169.254.100.1:9001"
    assert env["AWS_EXECUTION_ENV"] == f"AWS_Lambda_{PYTHON}"
    assert env["AWS_LAMBDA_INITIALIZATION_TYPE"] == "on-demand"
    assert env["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"] == "128"
    assert env["LAMBDA_TASK_ROOT"] == "/var/task" and env["LAMBDA_RUNTIME_DIR"] == "/var/runtime"
    assert env["_HANDLER"] == "index.handler" and env["TZ"] == ":UTC"
    assert env["PATH"] == "/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin"
    assert env["AWS_REGION"] == "us-east-1" and env["AWS_ACCESS_KEY_ID"]
    assert env["AWS_LAMBDA_LOG_GROUP_NAME"] == f"/aws/lambda/{name}" == seen["group"]
    assert re.fullmatch(r"\d{4}/\d\d/\d\d/\[\$LATEST\][0-9a-f]{32}", env["AWS_LAMBDA_LOG_STREAM_NAME"])
    assert "HOME" not in env or not env["HOME"].startswith("/root")


def test_request_id_of_the_caller(emberbox, client, function):
    import urllib.request

    name = function("def handler(e, c):\n    return c.aws_request_id\n")
    wanted = str(uuid.uuid4())
    request = urllib.request.Request(
        f"{emberbox.endpoint}/2015-03-31/functions/{name}/invocations", b"{}", {"x-amzn-RequestId": wanted}, method="POST"
    )
    with urllib.request.urlopen(request) as answer:
        assert json.load(answer) == wanted
        assert answer.headers["x-amzn-RequestId"] == wanted
        assert re.match(r"Root=1-[0-9a-f]{8}-[0-9a-f]{24}", answer.headers["X-Amzn-Trace-Id"])


def test_tail_log(client, function):
    name = function('def handler(e, c):\n    print("hello from the function")\n    return 1\n')
    cold = invoke(client, name, {}, LogType="Tail")
    assert f"START RequestId: {cold.request_id} Version: $LATEST\n" in cold.log
    assert "hello from the function\n" in cold.log
    assert f"END RequestId: {cold.request_id}\n" in cold.log
    report = re.search(
        rf"REPORT RequestId: {cold.request_id}\tDuration: (\d+\.\d\d) ms\tBilled Duration: (\d+) ms\tMemory Size: 128 MB\t"
        r"Max Memory Used: (\d+) MB\tInit Duration: (\d+\.\d\d) ms\t",
        cold.log,
    )
    assert report, cold.log
    assert 5 < int(report[3]) <= 128 and float(report[4]) > 1
    warm = invoke(client, name, {}, LogType="Tail")
    assert "Init Duration" not in warm.log and "REPORT" in warm.log


def test_handler_error(client, function):
    result = invoke(client, function('def handler(e, c):\n    raise Exception("Handler fails")\n'), {})
    assert (result.status, result.error) == (200, "Unhandled")
    error = result.json
    assert error["errorMessage"] == "Handler fails" and error["errorType"] == "Exception"
    assert error["requestId"] == result.request_id and "index.py" in error["stackTrace"][0]


def test_init_error_is_what_the_caller_sees(client, function):
    name = function('raise Exception("Runtime startup fails")\n')
    for _ in range(2):
        result = invoke(client, name, {})
        assert result.error == "Unhandled"
        assert result.json["errorMessage"] == "Runtime startup fails" and result.json["errorType"] == "Exception"


def test_wrong_handler(client, function):
    result = invoke(client, function(ECHO, handler="nope.handler"), {})
    assert result.error == "Unhandled" and result.json["errorType"] == "Runtime.ImportModuleError"
    result = invoke(client, function(ECHO, handler="index.nope"), {})
    assert result.error == "Unhandled" and result.json["errorType"] == "Runtime.HandlerNotFound"


def test_exit_and_signal(client, function):
    result = invoke(client, function("import os\ndef handler(e, c):\n    os._exit(0)\n"), {})
    assert result.json == {
        "errorType": "Runtime.ExitError",
        "errorMessage": f"RequestId: {result.request_id} Error: Runtime exited without providing a reason",
    }
    name = function("import os\ndef handler(e, c):\n    os._exit(e)\n")
    result = invoke(client, name, 127)
    assert result.json["errorMessage"] == f"RequestId: {result.request_id} Error: Runtime exited with error: exit status 127"
    result = invoke(client, name, 3)
    assert "exit status 3" in result.json["errorMessage"], "the sandbox serves again after a crash"


def test_timeout_then_tmp_survives(client, function):
    # What runs again after a timeout is initialised within the timeout, which a busy or emulated processor has to keep too.
    limit = 1 + PATIENCE
    name = function(
        """
import os, time
def handler(event, context):
    if event == "hang":
        open("/tmp/kept", "w").write("yes")
        time.sleep(30)
    return {"kept": os.path.exists("/tmp/kept"), "pid": os.getpid()}
""",
        Timeout=limit,
    )
    assert invoke(client, name, "x").json["kept"] is False
    started = time.monotonic()
    result = invoke(client, name, "hang", LogType="Tail")
    assert limit - 0.1 < time.monotonic() - started < limit + 3
    assert result.json == {
        "errorType": "Sandbox.Timedout",
        "errorMessage": f"RequestId: {result.request_id} Error: Task timed out after {limit}.00 seconds",
    }
    assert f"{result.request_id} Task timed out after {limit}.00 seconds" in result.log
    assert "Status: timeout" in result.log
    assert invoke(client, name, "x").json["kept"] is True


def test_response_too_large(client, function):
    name = function("def handler(e, c):\n    return 'x' * e\n")
    assert len(invoke(client, name, 6 * 1024 * 1024 - 2).body) == 6 * 1024 * 1024
    result = invoke(client, name, 7_000_000)
    assert result.json == {
        "errorType": "Function.ResponseSizeTooLarge",
        "errorMessage": "Response payload size exceeded maximum allowed payload size (6291556 bytes).",
    }
    assert invoke(client, name, 1).json == "x"


def test_request_too_large(client, function):
    name = function(ECHO)
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        client.invoke(FunctionName=name, Payload=b'"' + b"x" * 6_300_000 + b'"')
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 413
    assert caught.value.response["Error"]["Code"] == "RequestTooLargeException"
    assert invoke(client, name, 1).json == 1


def test_payload_that_is_no_json(client, function):
    name = function(ECHO)
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        client.invoke(FunctionName=name, Payload=b"{nope")
    error = caught.value.response["Error"]
    assert error["Code"] == "InvalidRequestContentException"
    assert error["Message"].startswith("Could not parse request body into json: Could not parse payload into json: ")


def test_warm_reuse_and_parallel_sandboxes(client, function):
    name = function(
        """
import os, time, uuid
ME = str(uuid.uuid4())
count = 0
def handler(event, context):
    global count
    count += 1
    time.sleep(event)
    return [ME, count]
""",
        MemorySize=256,
        Timeout=60,
    )
    ids = [invoke(client, name, 0).json for _ in range(20)]
    assert len({i for i, _ in ids}) == 1, "a sequential caller stays on one sandbox"
    assert [n for _, n in ids] == list(range(1, 21))
    # Longer than the others need to start, or one that is done would serve a second.
    many, lasts = (8, 1.0) if ISOLATION == "process" else (4, 25.0)
    with concurrent.futures.ThreadPoolExecutor(many) as pool:
        busy = [f.result().json[0] for f in [pool.submit(invoke, client, name, lasts) for _ in range(many)]]
    assert len(set(busy)) == many, "one sandbox serves one invocation at a time"


def test_reserved_concurrency_throttles(client, function):
    name = function("import time\ndef handler(e, c):\n    time.sleep(e)\n    return 1\n", Timeout=20)
    invoke(client, name, 0)
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=1)
    for _ in range(10):
        assert invoke(client, name, 0).json == 1, "one after the other fits into one"
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(invoke, client, name, 3)
        time.sleep(0.5)  # else the next one may come first, and the first be throttled
        throttled = wait_until(lambda: _throttled(client, name), 3, "throttled while one runs")
        assert throttled["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded"
        assert first.result().json == 1
    assert invoke(client, name, 0).json == 1


def _throttled(client, name):
    try:
        client.invoke(FunctionName=name, Payload=b"0")
    except client.exceptions.TooManyRequestsException as error:
        return error.response


def test_update_while_running_finishes_on_old_code(client, function):
    name = function("import time\ndef handler(e, c):\n    time.sleep(e)\n    return 'old'\n", Timeout=20)
    invoke(client, name, 0)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(invoke, client, name, 2)
        time.sleep(0.3)
        from conftest import zip_bytes

        client.update_function_code(FunctionName=name, ZipFile=zip_bytes({"index.py": "def handler(e, c):\n    return 'new'\n"}))
        wait_active(client, name)
        assert invoke(client, name, 0).json == "new"
        assert running.result().json == "old"


def test_background_work_is_frozen_between_invocations(client, function):
    name = function(
        """
import threading, time
ticks = 0
def count():
    global ticks
    while True:
        ticks += 1
        time.sleep(0.01)
threading.Thread(target=count, daemon=True).start()
def handler(event, context):
    return ticks
"""
    )
    first = invoke(client, name).json
    time.sleep(2)
    second = invoke(client, name).json
    assert second - first < 30, "2 s would be 200 ticks if it were not frozen"


def test_time_goes_on_while_a_sandbox_is_frozen(client, function):
    """By both clocks: a token that ran out in the pause is seen to have, and a connection that is too old as well."""
    name = function("import time\ndef handler(e, c):\n    return [time.time(), time.monotonic()]\n")
    invoke(client, name)
    (wall, monotonic), asked = invoke(client, name).json, time.time()
    assert abs(asked - wall) < (0.1 if ISOLATION == "process" else 0.5), (asked, wall)
    time.sleep(3)  # long enough to be frozen for most of it
    (later, then), after = invoke(client, name).json, time.time()
    assert abs((later - wall) - (after - asked)) < 0.5 and abs((then - monotonic) - (after - asked)) < 0.5, (later - wall, then - monotonic)


@pytest.mark.process_only("an emulated processor is too slow for this bound")
def test_frozen_within_50_ms_of_going_idle(client, function):
    """Of what ran on after the answer, each time: until when. CPU for a whole core, so that nothing else holds it up."""
    name = function(
        """
import threading, time
ticks = []
returned = 0
def count():
    while True:
        ticks.append(time.monotonic())
        time.sleep(0.001)
threading.Thread(target=count, daemon=True).start()
def handler(event, context):
    global returned
    # The tick before the pause between two invocations, which is longer than any other.
    pauses = [(b - a, a) for a, b in zip(ticks, ticks[1:]) if a >= returned]
    ran_on = max(pauses)[1] - returned if returned and pauses else None
    ticks.clear()
    returned = time.monotonic()
    return ran_on
""",
        MemorySize=1769,
    )
    assert invoke(client, name).json is None
    ran_on = []
    for _ in range(9):
        time.sleep(0.3)  # the pause that is looked at
        ran_on.append(invoke(client, name).json)
    # On a host that has no core to spare the freezer itself may come late: half of the pauses must be right.
    assert 0 < statistics.median(ran_on) <= 0.05, ran_on
    assert max(ran_on) <= 0.3, ran_on


def test_json_logs(client, function):
    name = function(
        'import logging\ndef handler(e, c):\n    logging.getLogger().warning("careful")\n    return 1\n',
        LoggingConfig={"LogFormat": "JSON"},
    )
    log = invoke(client, name, {}, LogType="Tail").log
    lines = [json.loads(line) for line in log.splitlines()]
    types = [line.get("type") for line in lines]
    assert "platform.start" in types and "platform.report" in types
    assert any(line.get("message") == "careful" and line.get("level") == "WARNING" for line in lines)


def test_logs_api(emberbox, client, function):
    name = function('def handler(e, c):\n    print("kept line")\n')
    result = invoke(client, name)
    logs = emberbox.client("logs")
    group = f"/aws/lambda/{name}"

    def messages():
        try:
            return [e["message"] for e in logs.filter_log_events(logGroupName=group)["events"]]
        except logs.exceptions.ResourceNotFoundException:
            return []

    wait_until(lambda: any(m.startswith("REPORT") for m in messages()), 10, "REPORT line in the log")
    assert any("kept line" in m for m in messages())
    assert any(m.startswith(f"START RequestId: {result.request_id}") for m in messages())
    assert logs.describe_log_streams(logGroupName=group)["logStreams"]


def test_python_sdk_inside_the_function(client, function):
    assert invoke(client, function("import boto3\ndef handler(e, c):\n    return boto3.__version__\n", Timeout=30, MemorySize=512)).json
