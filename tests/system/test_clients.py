"""Other clients and other runtimes: the AWS CLI, the Node SDK, a Rust function, a Node function, a shell bootstrap, Python with
dependencies, several Python versions, and an external extension."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import uuid

import pytest

from conftest import AWS_CLI, ECHO, PYTHON, REPO, ROLE, invoke, running, wait_active, wait_until, zip_bytes

RUST_ECHO = pathlib.Path(os.environ.get("EMBERBOX_RUST_ECHO", REPO / "target/examples/release/rust-echo"))

NODE_PACKAGES = REPO / "target/node/node_modules"


@pytest.fixture
def aws(emberbox, tmp_path, aws_cli):
    def run(*args, check=True, program=False):
        env = {
            **os.environ, "AWS_ENDPOINT_URL_LAMBDA": emberbox.endpoint, "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS": emberbox.endpoint,
            "AWS_ACCESS_KEY_ID": "000000000000", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_PAGER": "", "AWS_MAX_ATTEMPTS": "1",
        }
        if program:
            out = subprocess.run([AWS_CLI, *args], capture_output=True, text=True, env=env, cwd=tmp_path)
        else:
            out = aws_cli.run(args, env, tmp_path)
        assert not check or out.returncode == 0, out.stderr
        return json.loads(out.stdout) if check and out.stdout.strip().startswith("{") else out.stdout + out.stderr

    return run


def test_aws_cli_through_every_operation(emberbox, aws, tmp_path):
    name = "cli-" + uuid.uuid4().hex[:8]
    (tmp_path / "f.zip").write_bytes(zip_bytes({"index.py": ECHO}))
    (tmp_path / "g.zip").write_bytes(zip_bytes({"index.py": ECHO + "\n# changed\n"}))
    created = aws("lambda", "create-function", "--function-name", name, "--runtime", PYTHON, "--handler", "index.handler",
                  "--role", ROLE, "--zip-file", "fileb://f.zip", "--tags", "team=a", program=True)
    arn = created["FunctionArn"]
    aws("lambda", "wait", "function-active-v2", "--function-name", name)
    assert aws("lambda", "get-function", "--function-name", name)["Configuration"]["State"] == "Active"
    assert aws("lambda", "get-function-configuration", "--function-name", name)["FunctionName"] == name
    assert name in json.dumps(aws("lambda", "list-functions"))
    meta = aws("lambda", "invoke", "--function-name", name, "--payload", '{"a": 1}', "--log-type", "Tail", "out.json")
    assert meta["StatusCode"] == 200 and meta["LogResult"] and json.loads((tmp_path / "out.json").read_text()) == {"a": 1}
    assert "204" in json.dumps(aws("lambda", "invoke", "--function-name", name, "--invocation-type", "DryRun", "dry.json"))
    aws("lambda", "update-function-code", "--function-name", name, "--zip-file", "fileb://g.zip")
    aws("lambda", "wait", "function-updated-v2", "--function-name", name)
    aws("lambda", "update-function-configuration", "--function-name", name, "--timeout", "9")
    aws("lambda", "wait", "function-updated-v2", "--function-name", name)
    assert aws("lambda", "publish-version", "--function-name", name)["Version"] == "1"
    aws("lambda", "wait", "published-version-active", "--function-name", name, "--qualifier", "1")
    assert len(aws("lambda", "list-versions-by-function", "--function-name", name)["Versions"]) == 2
    aws("lambda", "create-alias", "--function-name", name, "--name", "live", "--function-version", "1")
    aws("lambda", "update-alias", "--function-name", name, "--name", "live", "--description", "d")
    assert aws("lambda", "get-alias", "--function-name", name, "--name", "live")["Description"] == "d"
    assert len(aws("lambda", "list-aliases", "--function-name", name)["Aliases"]) == 1
    aws("lambda", "delete-alias", "--function-name", name, "--name", "live")
    aws("lambda", "put-function-concurrency", "--function-name", name, "--reserved-concurrent-executions", "2")
    assert aws("lambda", "get-function-concurrency", "--function-name", name)["ReservedConcurrentExecutions"] == 2
    aws("lambda", "delete-function-concurrency", "--function-name", name)
    assert aws("lambda", "get-account-settings")["AccountUsage"]["FunctionCount"] >= 1
    aws("lambda", "add-permission", "--function-name", name, "--statement-id", "s", "--action", "lambda:InvokeFunction",
        "--principal", "events.amazonaws.com")
    assert "events.amazonaws.com" in aws("lambda", "get-policy", "--function-name", name)["Policy"]
    aws("lambda", "remove-permission", "--function-name", name, "--statement-id", "s")
    aws("lambda", "tag-resource", "--resource", arn, "--tags", "b=2")
    aws("lambda", "untag-resource", "--resource", arn, "--tag-keys", "team")
    assert aws("lambda", "list-tags", "--resource", arn)["Tags"] == {"b": "2"}
    assert aws("lambda", "get-function-code-signing-config", "--function-name", name)["FunctionName"] == name
    config = ("lambda", "put-function-event-invoke-config"), ("lambda", "update-function-event-invoke-config")
    assert aws(*config[0], "--function-name", name, "--maximum-retry-attempts", "1")["MaximumRetryAttempts"] == 1
    updated = aws(*config[1], "--function-name", name, "--maximum-event-age-in-seconds", "90")
    assert (updated["MaximumRetryAttempts"], updated["MaximumEventAgeInSeconds"]) == (1, 90)
    got = aws("lambda", "get-function-event-invoke-config", "--function-name", name)
    assert got["MaximumEventAgeInSeconds"] == 90 and got["FunctionArn"] == arn + ":$LATEST"
    listed = aws("lambda", "list-function-event-invoke-configs", "--function-name", name)
    assert [config["MaximumEventAgeInSeconds"] for config in listed["FunctionEventInvokeConfigs"]] == [90]
    aws("lambda", "delete-function-event-invoke-config", "--function-name", name)
    gone = aws("lambda", "get-function-event-invoke-config", "--function-name", name, check=False)
    assert "ResourceNotFoundException" in gone and "doesn't have an EventInvokeConfig" in gone
    assert aws("lambda", "get-function-recursion-config", "--function-name", name) == {"RecursiveLoop": "Terminate"}
    aws("lambda", "put-function-recursion-config", "--function-name", name, "--recursive-loop", "Allow")
    assert aws("lambda", "get-function-recursion-config", "--function-name", name) == {"RecursiveLoop": "Allow"}
    emberbox.client("sqs").create_queue(QueueName=name)
    source = "arn:aws:sqs:us-east-1:000000000000:" + name
    mapping = aws("lambda", "create-event-source-mapping", "--function-name", name, "--event-source-arn", source,
                  "--batch-size", "5", "--scaling-config", "MaximumConcurrency=2", "--filter-criteria",
                  '{"Filters": [{"Pattern": "{\\"body\\": [{\\"prefix\\": \\"a\\"}]}"}]}')
    assert (mapping["State"], mapping["BatchSize"]) == ("Creating", 5)
    assert aws("lambda", "get-event-source-mapping", "--uuid", mapping["UUID"])["EventSourceArn"] == source
    state = lambda: emberbox.client().get_event_source_mapping(UUID=mapping["UUID"])["State"]
    wait_until(lambda: state() == "Enabled", 30, "the mapping to be enabled")
    assert aws("lambda", "update-event-source-mapping", "--uuid", mapping["UUID"], "--batch-size", "7")["BatchSize"] == 7
    listed = aws("lambda", "list-event-source-mappings", "--function-name", name, "--event-source-arn", source)
    assert [mapping["BatchSize"] for mapping in listed["EventSourceMappings"]] == [7]
    wait_until(lambda: state() == "Enabled", 30, "the mapping to be enabled again")
    assert aws("lambda", "delete-event-source-mapping", "--uuid", mapping["UUID"])["State"] == "Deleting"
    wait_until(lambda: "REPORT RequestId" in str(aws("logs", "filter-log-events", "--log-group-name", f"/aws/lambda/{name}", check=False)), 15, "log")
    assert "NotImplemented" in aws("lambda", "list-layers", check=False)
    aws("lambda", "delete-function", "--function-name", name)
    assert "ResourceNotFoundException" in aws("lambda", "get-function", "--function-name", name, check=False)


@pytest.mark.needs("node")
def test_node_sdk(emberbox, tmp_path):
    assert NODE_PACKAGES.exists(), f"{NODE_PACKAGES} is installed by `cargo xtask test`"
    name = "sdk-" + uuid.uuid4().hex[:8]
    source = "def handler(event, context):\n    if event == 'fail':\n        raise ValueError('no')\n    return event\n"
    (tmp_path / "f.zip").write_bytes(zip_bytes({"index.py": source}))
    env = {
        **os.environ, "NODE_PATH": str(NODE_PACKAGES), "AWS_ENDPOINT_URL_LAMBDA": emberbox.endpoint, "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "000000000000", "AWS_SECRET_ACCESS_KEY": "test",
    }
    command = ["node", str(REPO / "tests/system/sdk.cjs"), name, PYTHON, ROLE, str(tmp_path / "f.zip")]
    out = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert out.returncode == 0, out.stderr
    seen = json.loads(out.stdout)
    assert seen["created"] == {"status": 201, "state": "Pending"}
    assert (seen["active"], seen["updated"], seen["deleted"]) == ("SUCCESS", "SUCCESS", 204)
    log = seen["invoked"].pop("log")
    assert "START RequestId: " in log and "\nREPORT RequestId: " in log, log
    assert seen["invoked"] == {"status": 200, "version": "$LATEST", "error": None, "payload": {"say": "grüße"}}
    assert (seen["failed"]["status"], seen["failed"]["error"]) == (200, "Unhandled")
    assert (seen["failed"]["payload"]["errorType"], seen["failed"]["payload"]["errorMessage"]) == ("ValueError", "no")
    assert seen["conflict"] == {
        "name": "ResourceConflictException", "message": f"Function already exist: {name}", "status": 409, "modelled": False,
        "type": "User",
    }
    assert seen["gone"] == {
        "name": "ResourceNotFoundException", "status": 404, "modelled": True, "type": "User",
        "message": f"Function not found: arn:aws:lambda:us-east-1:000000000000:function:{name}",
    }


def test_rust_function(client, function):
    assert RUST_ECHO.exists(), f"{RUST_ECHO} is built by `cargo xtask test`"
    name = function(None, runtime="provided.al2023", handler="bootstrap", files={"bootstrap": (RUST_ECHO.read_bytes(), 0o755)})
    for n in range(50):
        assert invoke(client, name, {"n": n}).json == {"n": n}


@pytest.mark.needs("node")
def test_node_functions(client, function):
    version = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout.strip().lstrip("v").split(".")[0]
    runtime = f"nodejs{version}.x"
    common = function(
        None, runtime=runtime, files={"index.js": "exports.handler = async (event, context) => ({event, id: context.awsRequestId});"}, Timeout=30, MemorySize=512
    )
    result = invoke(client, common, {"a": 1})
    assert result.json == {"event": {"a": 1}, "id": result.request_id}
    module = function(None, runtime=runtime, files={"index.mjs": "export const handler = async () => { throw new TypeError('bad') };"}, Timeout=30, MemorySize=512)
    result = invoke(client, module, {})
    assert result.error == "Unhandled" and result.json["errorType"] == "TypeError" and result.json["errorMessage"] == "bad"


def test_shell_bootstrap(client, function):
    bootstrap = (REPO / "examples/shell/bootstrap").read_bytes()
    name = function(None, runtime="provided.al2023", files={"bootstrap": (bootstrap, 0o755)}, Timeout=10)
    for n in range(3):
        assert invoke(client, name, {"n": n}).error is None


def test_missing_and_broken_bootstrap(client, function):
    name = function(None, runtime="provided.al2023", files={"other": "x"})
    result = invoke(client, name)
    assert result.json["errorType"] == "Runtime.InvalidEntrypoint", result.json
    name = function(None, runtime="provided.al2023", files={"bootstrap": ("no program", 0o755)})
    result = invoke(client, name)
    assert result.error == "Unhandled" and result.json["errorType"] in ("Runtime.InvalidEntrypoint", "Runtime.ExitError"), result.json


def test_python_with_dependencies(client, function, tmp_path):
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--target", tmp_path, "python-dateutil==2.9.0.post0"], check=True)
    files = {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*.py")}
    files["index.py"] = "from dateutil.parser import parse\ndef handler(e, c):\n    return parse(e).isoformat()\n"
    assert invoke(client, function(None, files=files, Timeout=20), "24 Nov 2026").json == "2026-11-24T00:00:00"


def test_several_python_versions_side_by_side(emberbox, client, function):
    from test_emberbox_cli import cli

    listed = json.loads(cli("runtime", "list", "--json", "--data-dir", str(emberbox.data_dir)).stdout)
    pythons = [r for r in listed if r["name"].startswith("python")]
    versions = [r["name"] for r in pythons if r["state"] == "ready"] + [r["name"] for r in pythons if r["state"] == "installable"]
    if len(versions) < 2:
        message = f"SKIPPED test_several_python_versions_side_by_side: needs two versions of Python, and has {versions}"
        (pytest.fail if os.environ.get("EMBERBOX_REQUIRE_ALL") else pytest.skip)(message)
    # Those that are installed; each other one would take a minute.
    ready = max(2, sum(r["state"] == "ready" for r in pythons))
    versions = versions if os.environ.get("EMBERBOX_ALL_PYTHONS") else versions[:ready]
    code = """
import ctypes, os, sqlite3, ssl, sys, uuid, boto3
ME = str(uuid.uuid4())
def handler(e, c):
    return [ME, "python%d.%d" % sys.version_info[:2], os.environ["AWS_EXECUTION_ENV"], os.path.realpath(sys.executable)]
"""
    names = [function(code, runtime=runtime, Timeout=20, MemorySize=512) for runtime in versions]
    first = [invoke(client, name).json for name in names]
    for (_, version, environment, executable), runtime in zip(first, versions):
        assert (version, environment, executable) == (runtime, f"AWS_Lambda_{runtime}", f"/var/lang/bin/{runtime}")
    assert [invoke(client, name).json for name in names] == first, "all of them at once, each in the sandbox that it had"


@pytest.mark.process_only("nothing in it depends on the sandbox")
def test_missing_runtime_says_how_to_get_it(client):
    with pytest.raises(client.exceptions.InvalidParameterValueException) as caught:
        client.create_function(
            FunctionName="ruby", Runtime="ruby3.4", Handler="a.b", Role=ROLE, Code={"ZipFile": zip_bytes({"a.rb": ""})}
        )
    assert "ruby3.4" in caught.value.response["Error"]["Message"] and "runtime" in caught.value.response["Error"]["Message"]
    with pytest.raises(client.exceptions.InvalidParameterValueException) as caught:
        client.create_function(
            FunctionName="old", Runtime="python3.7", Handler="a.b", Role=ROLE, Code={"ZipFile": zip_bytes({"a.py": ""})}
        )
    assert caught.value.response["Error"]["Message"] == (
        "The runtime parameter of python3.7 is no longer supported for creating or updating AWS Lambda functions. "
        "We recommend you use a supported runtime while creating or updating functions."
    )


def test_external_extension(tmp_path):
    """A user's own runtime file brings an /opt with an external extension; it sees INVOKE and SHUTDOWN."""
    opt = tmp_path / "opt"
    (opt / "extensions").mkdir(parents=True)
    shutil.copy(REPO / "examples/extension/extension.py", opt / "extensions" / "watcher")
    (opt / "extensions" / "watcher").chmod(0o755)
    runtimes = tmp_path / "runtimes.d"
    runtimes.mkdir()
    (runtimes / "extended.toml").write_text(
        f'name = "custom-extended"\nextends = "{PYTHON}"\n[[mounts]]\nsource = "{opt}"\ntarget = "/opt"\n'
    )
    with running(config=f'[runtimes]\ndirs = ["{runtimes}"]\n') as server:
        client = server.client()
        client.create_function(
            FunctionName="f", Runtime="custom-extended", Handler="index.handler", Role=ROLE, Timeout=20,
            Code={"ZipFile": zip_bytes({"index.py": ECHO})},
        )
        wait_active(client, "f")
        first = invoke(client, "f", 1, LogType="Tail")
        assert first.json == 1, first.body
        assert f"extension: INVOKE {first.request_id}" in first.log, first.log
        client.delete_function(FunctionName="f")
        logs = server.client("logs")
        wait_until(
            lambda: "extension: SHUTDOWN spindown" in "".join(
                e["message"] for e in logs.filter_log_events(logGroupName="/aws/lambda/f")["events"]
            ).replace("SPINDOWN", "spindown"),
            15, "the extension saw SHUTDOWN",
        )
