"""Invocations recorded from AWS, replayed: responses, errors, and what a function sees of its surroundings (recorded.py)."""

import base64
import concurrent.futures
import json
import subprocess

import pytest

from conftest import ECHO, ISOLATION, PATIENCE, PYTHON, wait_active, wait_until
from recorded import ACCOUNT, Replay, arn, changed_code, client, compare_whole, load, name, request

INVOKE, BODIES = load("invoke"), load("bodies")

# Where Emberbox does otherwise than AWS did, by test and by the path within it; each with the reason.
SHELL = "set by the shell script that starts AWS's runtimes; Emberbox starts them without a shell"
ENTRYPOINT = "a script of AWS's images, which Emberbox does not run"
SEGFAULT = "a runtime that died is reported as such, and at once"
CORE = "no core files; 1 and not 0, with which a core_pattern that is a program would still be run, on the host"
DEVIATIONS = {
    ("test_lambda_runtime_exit_segfault", "invocation_error/payload/errorMessage"): SEGFAULT,
    ("test_lambda_runtime_exit_segfault", "invocation_error/payload/errorType"): SEGFAULT,
    ("environment", "environment/AWS_SESSION_TOKEN"): "a function has the credentials of the configuration, here without a token",
    ("environment", "environment/LC_CTYPE"): "set by Python itself where it finds no en_US.UTF-8",
    ("environment", "environment/PWD"): SHELL,
    ("environment", "environment/SHLVL"): SHELL,
    ("folders", "seen/paths/_lambda-entrypoint.sh_mode"): ENTRYPOINT,
    ("folders", "seen/paths/_lambda-entrypoint.sh_uid"): ENTRYPOINT,
    ("folders", "seen/paths/_lambda-entrypoint.sh_owner"): ENTRYPOINT,
    ("folders", "seen/paths/_lambda-entrypoint.sh_gid"): ENTRYPOINT,
    ("limits", "seen/RLIMIT_CORE/0"): CORE,
    ("limits", "seen/RLIMIT_CORE/1"): CORE,
    ("limits", "seen/RLIMIT_NPROC/0"): "the 1,024 of AWS's documentation",
    ("limits", "seen/RLIMIT_NPROC/1"): "the 1,024 of AWS's documentation",
    ("limits", "seen/RLIMIT_STACK/1"): "the hard limit is the soft one",
}


def invoked(test, left_out=(), **names):
    return Replay(test, INVOKE[test], DEVIATIONS, left_out, **names)


def whole(key, seen, **names):
    """Compares what an invocation returned with a whole recorded body."""
    compare_whole(key, seen, DEVIATIONS, **names)


def payload(response):
    """The response with its payload as JSON, as the recorder keeps it."""
    text = response["Payload"] if isinstance(response["Payload"], bytes) else response["Payload"].read()
    return {**response, "Payload": json.loads(text) if text else ""}


def created(client, name, arguments, recorded):
    """Creates a function, compared with what was recorded if there is something, and waits for it."""
    if recorded:
        recorded.step("create_function_result", client.create_function, **arguments)
    else:
        client.create_function(**arguments)
    wait_active(client, name)
    return name


@pytest.fixture
def function(client, name):
    """Creates the function of a test, and waits for it."""

    def create(source, file="index", recorded=None, **changes):
        if ISOLATION == "microvm" and recorded is None:
            # As in conftest: what crashed is initialised again within it.
            changes.setdefault("Timeout", 3 * PATIENCE)
        arguments = request(name, {f"{file}.py": source}, Handler=f"{file}.handler", **changes)
        return created(client, name, arguments, recorded)

    return create


@pytest.fixture
def node_function(client, name):
    """The same with Node."""

    def create(source, recorded=None, files=(), **changes):
        major = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout.lstrip("v").split(".")[0]
        arguments = request(name, {"index.js": source, **dict(files)}, Runtime=f"nodejs{major}.x", Timeout=20, **changes)
        return created(client, name, arguments, recorded)

    return create


# Answers


def test_nothing_returned(client, function):
    name = function("def handler(event, context):\n    print(event)\n")
    with invoked("test_invocation_type_no_return_payload[python-RequestResponse]") as recorded:
        assert recorded.step("invoke-result", client.invoke, FunctionName=name, Payload="{}")["Payload"] == b"null"
    whole("test_invocation_type_dry_run[python3.9]/invoke-result", payload(client.invoke(FunctionName=name, InvocationType="DryRun")))


@pytest.mark.needs("node")
def test_nothing_returned_by_node(client, node_function):
    name = node_function("exports.handler = async (event) => { console.log(event); };")
    with invoked("test_invocation_type_no_return_payload[nodejs-RequestResponse]") as recorded:
        assert recorded.step("invoke-result", client.invoke, FunctionName=name, Payload="{}")["Payload"] == b"null"
    with invoked("test_invocation_with_logs[nodejs16.x]", left_out=["logs"]) as recorded:
        response = recorded.step("invoke", client.invoke, FunctionName=name, Payload="{}", LogType="Tail")
    check_tail(response)


def check_tail(response):
    """The recorder kept of the log that it is there; its lines are in AWS's documentation."""
    log = base64.b64decode(response["LogResult"]).decode()
    request_id = response["ResponseMetadata"]["RequestId"]
    assert f"START RequestId: {request_id} Version: $LATEST\n" in log, log
    assert f"END RequestId: {request_id}\n" in log, log
    assert f"REPORT RequestId: {request_id}\tDuration: " in log, log


def test_logs(client, function):
    name = function(ECHO)
    with invoked("test_invocation_with_logs[python3.10]", left_out=["logs"]) as recorded:
        check_tail(recorded.step("invoke", client.invoke, FunctionName=name, Payload="{}", LogType="Tail"))


def test_aliases_move(client, name):
    version = "import os\ndef handler(event, context):\n    return {'version': os.environ['AWS_LAMBDA_FUNCTION_VERSION']}\n"
    with invoked("test_lambda_alias_moving", **{"<function-name:1>": name}) as recorded:
        step = recorded.step

        def invoke(key, function=name, **qualifier):
            response = step(key, client.invoke, FunctionName=function, Payload="{}", **qualifier)
            return json.loads(response["Payload"])["version"], response["ExecutedVersion"]

        step("create_response", client.create_function, **request(name, {"index.py": version}, Publish=True))
        wait_active(client, name)
        step("create_alias_response", client.create_alias, FunctionName=name, Name="live", FunctionVersion="1")
        assert invoke("invocation_result_qualifier_v1", Qualifier="live") == ("1", "1")
        assert invoke("invocation_result_qualifier_v1_arn", arn(name, "live")) == ("1", "1")
        changed = {**changed_code(name), "ZipFile": request(name, {"index.py": version + "# changed\n"})["Code"]["ZipFile"]}
        step("update_lambda_response", client.update_function_code, **changed)
        wait_active(client, name)
        assert invoke("invocation_result_qualifier_v1_after_update", Qualifier="live") == ("1", "1")
        step("second_publish_response", client.publish_version, FunctionName=name)
        assert invoke("invocation_result_qualifier_v1_after_publish", Qualifier="live") == ("1", "1")
        step("update_alias_response", client.update_alias, FunctionName=name, Name="live", FunctionVersion="2")
        assert invoke("invocation_result_qualifier_v2", Qualifier="live") == ("2", "2")
        step("invocation_exc_not_existent", client.invoke, FunctionName=name, Payload="{}", Qualifier="non-existent-alias")


def test_update_during_invocation(emberbox, client, function):
    source = "import time\ndef handler(event, context):\n    print('begun')\n    time.sleep(event)\n    return 'before'\n"
    name = function(source, Timeout=20)
    logs = emberbox.client("logs", account=ACCOUNT)

    def begun():
        try:
            events = logs.filter_log_events(logGroupName=f"/aws/lambda/{name}")["events"]
        except logs.exceptions.ResourceNotFoundException:
            return False
        return any("begun" in event["message"] for event in events)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with invoked("test_function_update_during_invoke") as recorded:
            running = pool.submit(recorded.step, "invoke_response_before", client.invoke, FunctionName=name, Payload="3")
            wait_until(begun, what="the invocation runs")
            client.update_function_code(**changed_code(name))
            wait_active(client, name)
            assert not running.done()
            assert client.invoke(FunctionName=name, Payload="1")["Payload"].read() == b"1"
            assert running.result()["Payload"] == b'"before"'


def test_reserved_concurrency(client, function):
    name = function(ECHO, Environment={"Variables": {}})
    # Left out: what became of an event, for which Emberbox has other tests.
    left_out = ["put_event_invoke_conf", "invoke_result", "msg"]
    with invoked("test_reserved_concurrency", left_out) as recorded:
        recorded.step("fn", client.get_function_configuration, FunctionName=name)
        recorded.step("put_reserved", client.put_function_concurrency, FunctionName=name, ReservedConcurrentExecutions=0)
        recorded.step("exc_no_cap_requestresponse", client.invoke, FunctionName=name, Payload="{}")


@pytest.mark.parametrize(
    "test,body", [("body-n\\x87r\\x9e\\xe9\\xb5\\xd7I\\xee\\x9bmt", b"n\x87r\x9e\xe9\xb5\xd7I\xee\x9bmt"),
                  ("message-\\x99\\xeb,j\\x07\\xa1zYh", b"\x99\xeb,j\x07\xa1zYh")], ids=["body", "message"],
)
def test_payload_that_is_no_json(client, function, test, body):
    name = function(ECHO)
    with invoked(f"test_lambda_invoke_payload_encoding_error[{test}]") as recorded:
        (key,) = recorded.steps
        recorded.step(key, client.invoke, FunctionName=name, Payload=body)


# Errors


def test_handler_error(client, function):
    name = function('def handler(event, context):\n    raise Exception("Handler fails")\n', "lambda_handler_error")
    with invoked("test_lambda_handler_error") as recorded:
        recorded.step("invocation_error", client.invoke, FunctionName=name, Payload="{}")
    response = payload(client.invoke(FunctionName=name, Payload="{}"))
    whole("test_lambda_handler_error/invocation_error", response)


def test_handler_exit(client, function):
    name = function("import sys\ndef handler(event, context):\n    sys.exit(0)\n")
    with invoked("test_lambda_handler_exit") as recorded:
        recorded.step("invocation_error", client.invoke, FunctionName=name, Payload="{}")


def test_runtime_exit(client, function):
    name = function("import sys\nsys.exit(0)\ndef handler(event, context):\n    pass\n")
    with invoked("test_lambda_runtime_exit") as recorded:
        recorded.step("invocation_error", client.invoke, FunctionName=name, Payload="{}")


def test_runtime_error(client, function):
    name = function('raise Exception("Runtime startup fails")\n', "lambda_runtime_error")
    with invoked("test_lambda_runtime_error") as recorded:
        # The frames before the last are the interpreter's own, in Python 3.13.
        trace = recorded.steps["invocation_error"]["payload"]["stackTrace"]
        del trace[:-1]

        def last_frame(**arguments):
            response = client.invoke(**arguments)
            error = json.loads(response["Payload"].read())
            error["stackTrace"] = error["stackTrace"][-1:]
            return {**response, "Payload": Text(json.dumps(error))}

        recorded.step("invocation_error", last_frame, FunctionName=name, Payload="{}")


class Text(str):
    """A payload that was read."""

    def read(self):
        return str(self)


def test_segfault_of_the_runtime(client, function):
    source = "import ctypes\nctypes.string_at(0)\ndef handler(event, context):\n    pass\n"
    # Recorded with 30 seconds.
    name = function(source, Timeout=3)
    with invoked("test_lambda_runtime_exit_segfault") as recorded:
        error = recorded.steps["invocation_error"]["payload"]
        error["errorMessage"] = error["errorMessage"].replace("30.00", "3.00")
        recorded.step("invocation_error", client.invoke, FunctionName=name, Payload="{}")


def test_timeout(client, function):
    name = function("import time\ndef handler(event, context):\n    time.sleep(20)\n", Timeout=1)
    with invoked("test_lambda_invoke_with_timeout", left_out=["create-result"]) as recorded:
        recorded.step("invoke-result", client.invoke, FunctionName=name, Payload="{}")
    whole("test_lambda_invoke_with_timeout/invoke-result", payload(client.invoke(FunctionName=name, Payload="{}")))


def test_response_too_large(client, function):
    name = function("def handler(event, context):\n    return 'x' * event\n")
    with invoked("test_lambda_too_large_response") as recorded:
        recorded.step("invoke_result", client.invoke, FunctionName=name, Payload="7000000")
        recorded.step("invoke_result_2", client.invoke, FunctionName=name, Payload="7000000")
    response = payload(client.invoke(FunctionName=name, Payload="7000000"))
    whole("test_lambda_too_large_response/invoke_result", response)


def test_uncaught_exception(client, function):
    with invoked("test_uncaught_exception_invoke[python3.11]") as recorded:
        source = "def handler(event, context):\n    raise Exception(f\"Failed: {event['error_msg']}\")\n"
        name = function(source, recorded=recorded)
        event = json.dumps({"error_msg": "some_error_msg"})
        recorded.step("error_result", client.invoke, FunctionName=name, Payload=event)


@pytest.mark.needs("node")
def test_uncaught_exception_of_node(client, node_function):
    with invoked("test_uncaught_exception_invoke[nodejs20.x]") as recorded:
        source = "exports.handler = async (event) => { throw new Error(`Error: ${event.error_msg}`); };"
        name = node_function(source, recorded)
        event = json.dumps({"error_msg": "some_error_msg"})
        recorded.step("error_result", client.invoke, FunctionName=name, Payload=event)


# Surroundings

ENVIRONMENT = "import os\ndef handler(event, context):\n    return {'environment': dict(os.environ)}\n"


def test_environment(client, function):
    name = function(ENVIRONMENT, "handler")
    with invoked("test_lambda_init_environment", left_out=["create-result"]) as recorded:
        response = recorded.step("lambda-init-inspection", client.invoke, FunctionName=name, Payload="{}")
    recorded = BODIES["test_lambda_init_environment/lambda-init-inspection"]["body"]["environment"]
    # The Python of this host.
    recorded["AWS_EXECUTION_ENV"] = f"AWS_Lambda_{PYTHON}"
    with Replay("environment", {"environment": recorded}, DEVIATIONS, **{"<function-name:1>": name}) as replay:
        replay.compare("environment", json.loads(response["Payload"])["environment"])


def test_context(client, name):
    source = """
import json
def handler(event, context):
    names = ("invoked_function_arn", "function_version", "function_name", "memory_limit_in_mb", "aws_request_id",
             "log_group_name", "log_stream_name", "client_context")
    return {"event": event, "context": {name: getattr(context, name) for name in names}}
"""
    client.create_function(**request(name, {"index.py": source}, Publish=True))
    wait_active(client, name)
    event = json.dumps({"foo": "bar with 'quotes\""})
    response = client.invoke(FunctionName=name, Payload=event, Qualifier="1", LogType="Tail")
    whole("test_invocation_with_qualifier/invocation-response", payload(response), **{"<function-name:1>": name})


INTROSPECTION = """
import os
def handler(event, context):
    return {"ctx": {}, "environment": dict(os.environ), "packages": []}
"""


def test_introspection(client, function):
    with invoked("test_introspection_invoke[python3.11]") as recorded:
        name = function(INTROSPECTION, recorded=recorded, Environment={"Variables": {"TEST_KEY": "TEST_VAL"}})
        client.publish_version(FunctionName=name)
        for key, qualifier in (("", "$LATEST"), ("_qualified", "1")):
            response = payload(client.invoke(FunctionName=name, Payload="{}", Qualifier=qualifier))
            assert response["Payload"]["environment"]["TEST_KEY"] == "TEST_VAL"
            assert response["Payload"]["environment"]["AWS_LAMBDA_FUNCTION_VERSION"] == qualifier
            recorded.compare(f"invocation_result_payload{key}", {"fields": sorted(response["Payload"])})


SURROUNDINGS = """
import getpass, os, platform, pwd, stat
def handler(event, context):
    paths = {}
    for path in filter(os.path.exists, ("/var/task", "/opt", "/tmp", "/lambda-entrypoint.sh")):
        s = os.stat(path)
        key = "_" + path[1:].replace("/", "_")
        paths |= {key + "_mode": stat.filemode(s.st_mode), key + "_uid": s.st_uid,
                  key + "_owner": pwd.getpwuid(s.st_uid).pw_name, key + "_gid": s.st_gid}
    return {
        "event": event, "user_login_name": getpass.getuser(), "user_whoami": pwd.getpwuid(os.getuid()).pw_name,
        "platform_system": platform.system(), "platform_machine": platform.machine(), "pwd": os.getcwd(), "paths": paths,
    }
"""


def test_users_and_folders(client, function):
    key = "test_runtime_introspection_x86/invoke_runtime_x86_introspection"
    response = payload(client.invoke(FunctionName=function(SURROUNDINGS), Payload="{}"))
    with Replay("folders", {"seen": BODIES[key]["body"]}, DEVIATIONS) as replay:
        replay.compare("seen", response["Payload"])


LIMITS = """
import resource
def handler(event, context):
    names = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    return {name: resource.getrlimit(getattr(resource, name)) for name in names if name in event}
"""


def test_resource_limits(client, function):
    recorded = BODIES["test_runtime_ulimits/invoke_runtime_ulimits"]["body"]
    response = payload(client.invoke(FunctionName=function(LIMITS), Payload=json.dumps(list(recorded))))
    with Replay("limits", {"seen": recorded}, DEVIATIONS) as replay:
        replay.compare("seen", response["Payload"])


# Wrappers

WRAPPER = ("#!/bin/bash\nexport WRAPPER_VAR=test_val\nexec \"$@\"\n", 0o755)


def test_wrapper(client, name):
    with invoked("test_runtime_wrapper_invoke[python3.11]") as recorded:
        files = {"index.py": ENVIRONMENT, "environment_wrapper": WRAPPER}
        wrapped = {"Environment": {"Variables": {"AWS_LAMBDA_EXEC_WRAPPER": "/var/task/environment_wrapper"}}}
        recorded.step("create_function_result", client.create_function, **request(name, files, **wrapped))
        wait_active(client, name)
    environment = payload(client.invoke(FunctionName=name, Payload="{}"))["Payload"]["environment"]
    assert environment["WRAPPER_VAR"] == "test_val"


@pytest.mark.needs("node")
def test_wrapper_of_node(client, node_function):
    with invoked("test_runtime_wrapper_invoke[nodejs20.x]") as recorded:
        wrapped = {"Environment": {"Variables": {"AWS_LAMBDA_EXEC_WRAPPER": "/var/task/environment_wrapper"}}}
        source = "exports.handler = async () => process.env;"
        name = node_function(source, recorded, {"environment_wrapper": WRAPPER}, **wrapped)
    assert payload(client.invoke(FunctionName=name, Payload="{}"))["Payload"]["WRAPPER_VAR"] == "test_val"


def test_wrapper_that_is_not_there(client, function):
    name = function(ECHO, Environment={"Variables": {"AWS_LAMBDA_EXEC_WRAPPER": "/idontexist.sh"}})
    response = payload(client.invoke(FunctionName=name, Payload="{}"))
    whole("test_lambda_runtime_wrapper_not_found/invocation_error", response)
