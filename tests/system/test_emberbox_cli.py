"""The command line, as a newcomer uses it."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import uuid

import pytest

from conftest import BINARY, PYTHON, REPO, invoke, wait_until

pytestmark = pytest.mark.process_only("the command line is a client as any other, with nothing of its own to do with sandboxes")


def cli(*args, endpoint=None, check=True, input=None, keys=None):
    env = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    if keys:
        env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"] = keys
    if endpoint:
        env["AWS_ENDPOINT_URL_LAMBDA"] = endpoint
    out = subprocess.run([str(BINARY), *map(str, args)], capture_output=True, text=True, env=env, input=input, timeout=300)
    assert not check or out.returncode == 0, out.stdout + out.stderr
    return out


@pytest.fixture
def ember(emberbox):
    return lambda *args, **kwargs: cli(*args, endpoint=emberbox.endpoint, **kwargs)


def test_deploy_invoke_logs_delete(ember, tmp_path):
    name = "cli-" + uuid.uuid4().hex[:8]
    (tmp_path / "app.py").write_text('def handler(event, context):\n    print("said", event)\n    return {"got": event}\n')
    out = ember("deploy", tmp_path, "--name", name, "--memory", "256", "--timeout", "5", "--env", "KEY=V")
    assert "python3" in out.stdout + out.stderr and "app.handler" in out.stdout + out.stderr, "says what it guessed"
    out = ember("invoke", name, '{"a":1}', "--tail")
    assert json.loads(out.stdout) == {"got": {"a": 1}}
    assert "REPORT RequestId" in out.stderr and "said" in out.stderr
    (tmp_path / "event.json").write_text("[1]")
    assert json.loads(ember("invoke", name, f"@{tmp_path}/event.json").stdout) == {"got": [1]}
    assert json.loads(ember("invoke", name, "-", input='"x"').stdout) == {"got": "x"}
    timeline = ember("invoke", name, "1", "--timeline").stderr
    assert "received" in timeline.lower() and "answered" in timeline.lower()
    wait_until(lambda: "said" in ember("logs", name).stdout, 10, "logs")
    (tmp_path / "app.py").write_text('def handler(event, context):\n    raise ValueError("broken")\n')
    ember("deploy", tmp_path, "--name", name)
    out = ember("invoke", name, "{}", check=False)
    assert out.returncode == 1 and "broken" in out.stdout
    listed = json.loads(ember("functions", "--json").stdout)
    assert name in json.dumps(listed)
    ember("delete", name)
    assert name not in ember("functions").stdout


def test_json_for_scripts(ember, emberbox, tmp_path):
    name = "cli-" + uuid.uuid4().hex[:8]
    (tmp_path / "app.py").write_text('def handler(event, context):\n    print("said", event)\n')
    assert json.loads(ember("deploy", tmp_path, "--name", name, "--json").stdout)["FunctionName"] == name
    ember("invoke", name, "5")

    def lines():
        return [json.loads(line) for line in ember("logs", name, "--json").stdout.splitlines()]

    (said,) = wait_until(lambda: [line for line in lines() if line["message"].startswith("said 5")], 10, "logs")
    assert set(said) == {"eventId", "logStreamName", "timestamp", "ingestionTime", "message"}
    assert said["timestamp"] > 1_600_000_000_000
    assert json.loads(ember("delete", name, "--json").stdout) == {"deleted": name}
    local = "--data-dir", emberbox.data_dir, "--json"
    runtimes = {runtime["name"]: runtime for runtime in json.loads(cli("runtime", "list", *local).stdout)}
    assert runtimes[PYTHON]["state"] == "ready" and runtimes["provided.al2023"]["state"] == "ready"
    assert json.loads(cli("runtime", "install", PYTHON, *local).stdout) == runtimes[PYTHON]


def test_deploys_flags_are_the_functions_configuration(ember, client, tmp_path):
    name = "cli-" + uuid.uuid4().hex[:8]
    (tmp_path / "code.py").write_text("def run(event, context):\n    return event\ndef handler(event, context):\n    return 'guessed'\n")

    def configuration():
        c = client.get_function_configuration(FunctionName=name)
        return c["MemorySize"], c["Timeout"], c["Runtime"], c["Handler"], c.get("Environment", {}).get("Variables"), c["Role"]

    role = "arn:aws:iam::000000000000:role/mine"
    ember("deploy", tmp_path, "--name", name, "--memory", "640", "--timeout", "77", "--runtime", PYTHON, "--handler", "code.run",
          "--env", "AA=1", "--env", "BB=x=y", "--env", "CC=", "--role", role)
    assert configuration() == (640, 77, PYTHON, "code.run", {"AA": "1", "BB": "x=y", "CC": ""}, role)
    assert json.loads(ember("invoke", name, "[5]").stdout) == [5]
    # An update changes what it says, and leaves the rest.
    ember("deploy", tmp_path, "--name", name, "--memory", "256", "--env", "DD=4")
    assert configuration() == (256, 77, PYTHON, "code.run", {"DD": "4"}, role)
    ember("deploy", tmp_path, "--name", name, "--handler", "code.handler", "--timeout", "9")
    assert configuration() == (256, 9, PYTHON, "code.handler", {"DD": "4"}, role)
    assert json.loads(ember("invoke", name, "[5]").stdout) == "guessed"
    for flag, value, word in (("--memory", "64", "128"), ("--timeout", "5401", "5400"), ("--runtime", "python3.99", "python3.99")):
        out = ember("deploy", tmp_path, "--name", name, flag, value, check=False)
        assert out.returncode != 0 and word in out.stderr, out.stderr
    assert configuration() == (256, 9, PYTHON, "code.handler", {"DD": "4"}, role)
    ember("delete", name)


def test_logs_follow(ember, emberbox, client, function):
    name = function('def handler(event, context):\n    print("line", event)\n')
    command = [str(BINARY), "logs", name, "--follow", "--endpoint", emberbox.endpoint]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert "Waiting for" in process.stderr.readline(), "there is no log yet"
        seen = []
        for n in range(3):  # each only after the one before was shown
            invoke(client, name, n)
            for line in process.stdout:
                seen.append(line)
                if line.startswith("REPORT"):
                    break
        assert process.poll() is None, "it goes on"
        process.send_signal(signal.SIGINT)
        seen += process.communicate(timeout=10)[0].splitlines(keepends=True)
    finally:
        process.kill()
        process.wait()
    assert [line for line in seen if line.startswith("line")] == [f"line {n}\n" for n in range(3)], "each once, in order"
    assert sum(line.startswith("START") for line in seen) == 3


def test_logs_of_a_function_that_is_not_there(ember, client, function):
    out = ember("logs", "nosuch", check=False)
    assert out.returncode == 1 and "Function not found" in out.stderr and not out.stdout, out.stderr
    name = function('def handler(event, context):\n    print("said", event)\n')
    assert "Nothing in" in ember("logs", name).stderr, "it is there, and has written nothing"
    invoke(client, name, 5)
    wait_until(lambda: "said 5" in ember("logs", name).stdout, 10, "logs")
    client.delete_function(FunctionName=name)
    assert "said 5" in ember("logs", name).stdout, "its log outlives it"


def test_deploy_a_bootstrap(ember, tmp_path):
    name = "cli-" + uuid.uuid4().hex[:8]
    target = tmp_path / "bootstrap"
    target.write_bytes((REPO / "examples/shell/bootstrap").read_bytes())
    target.chmod(0o755)
    ember("deploy", target, "--name", name)
    assert ember("invoke", name, "{}").returncode == 0
    ember("delete", name)


def test_help_completions_doctor():
    text = cli("--help").stdout
    for command in ("serve", "deploy", "invoke", "logs", "functions", "delete", "doctor", "runtime", "demo"):
        assert command in text
    assert "emberbox" in cli("completions", "bash").stdout
    report = json.loads(cli("doctor", "--json", check=False).stdout)
    assert report


def findings(tmp_path, *before, config="", path=None):
    """What `doctor` says with this configuration, by name, and its exit code."""
    (tmp_path / "emberbox.toml").write_text(config)
    out = subprocess.run(
        [*before, str(BINARY), "doctor", "--json", "--config", tmp_path / "emberbox.toml", "--data-dir", tmp_path / "data"],
        capture_output=True, text=True, timeout=60, env={**os.environ, **({"PATH": path} if path else {})},
    )
    return {found["name"]: found for found in json.loads(out.stdout)}, out.returncode


@pytest.mark.needs("root", "nft", "unshare")
def test_doctor_asks_for_nft_only_where_functions_have_a_network(tmp_path):
    # A host without nft: something that cannot be run is in its place, in a mount namespace of the test's own.
    without = "unshare", "--mount", "sh", "-c", f'mount --bind /dev/null "{shutil.which("nft")}" && exec "$@"', "sh"
    found, code = findings(tmp_path, *without)
    assert (found["nft"]["status"], code) == ("missing", 1), found["nft"]
    found, code = findings(tmp_path, *without, config='[sandbox]\nnetwork = "none"\n')
    assert (found["nft"]["status"], code) == ("optional", 0), found["nft"]


def test_doctor_looks_for_firecracker(tmp_path):
    found, _ = findings(tmp_path)
    for program in ("firecracker", "jailer"):
        if shutil.which(program) is None:
            assert found[program]["status"] == "optional" and "releases" in found[program]["remedy"], found[program]
    real = pathlib.Path(os.environ.get("EMBERBOX_TEST_FIRECRACKER", REPO / "target/tools/firecracker-1.12.1"))
    if not (real / "jailer").exists():
        pytest.skip("SKIPPED the second half: needs Firecracker, which `cargo xtask test` installs for x86_64")
    found, _ = findings(tmp_path, path=f"{real}:{os.environ['PATH']}")
    for program in ("firecracker", "jailer"):
        assert found[program]["detail"] == f"1.12.1 ({real / program})" and found[program]["status"] == "ok", found[program]


def test_server_that_is_not_there():
    out = cli("functions", endpoint="http://127.0.0.1:9", check=False)
    assert out.returncode != 0 and "emberbox serve" in out.stderr


def test_demo():
    out = cli("demo")
    text = out.stdout + out.stderr
    assert "cold" in text.lower() and "warm" in text.lower()
