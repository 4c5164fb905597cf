"""examples/, deployed and invoked as their READMEs say."""

import json
import os
import re
import subprocess
import uuid

import pytest

from conftest import PYTHON, REPO
from test_clients import RUST_ECHO
from test_emberbox_cli import ember  # noqa: F401 (a fixture)

EXAMPLES = REPO / "examples"


@pytest.fixture
def deployed(ember):  # noqa: F811
    """`deployed(path, *options)` deploys; gives what says its answer to a payload, and its log."""
    names = []

    def deploy(path, *options):
        name = "example-" + uuid.uuid4().hex[:8]
        names.append(name)
        ember("deploy", path, "--name", name, *options)

        def call(payload):
            out = ember("invoke", name, json.dumps(payload), "--tail")
            return json.loads(out.stdout), out.stderr

        return call

    yield deploy
    for name in names:
        ember("delete", name, check=False)


def test_hello(deployed):
    hello = deployed(EXAMPLES / "hello", "--runtime", PYTHON)
    answer, log = hello({"name": "Ada"})
    assert answer["message"].startswith(f"Hello Ada, from Python {PYTHON.removeprefix('python')}.") and "hello, Ada\n" in log
    later, _ = hello({"name": "Ada"})
    assert later["sandbox_age_ms"] > answer["sandbox_age_ms"], "it is used again"


def test_python_with_a_dependency(deployed):
    before = sorted(os.listdir(EXAMPLES / "python"))
    answer, log = deployed(EXAMPLES / "python", "--runtime", PYTHON)({"since": "2014-11-13T00:00:00"})
    assert re.fullmatch(r"\d+ years ago", answer["ago"]) and answer["runtime"] == f"AWS_Lambda_{PYTHON}"
    assert '"remaining_ms": ' in log
    assert sorted(os.listdir(EXAMPLES / "python")) == before, "the folder stays as it is"


@pytest.mark.needs("node")
def test_node(deployed):
    major = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout.strip().lstrip("v").split(".")[0]
    words = deployed(EXAMPLES / "node", "--runtime", f"nodejs{major}.x", "--memory", "512", "--timeout", "20")
    answer, log = words({"text": "a small step for a function"})
    assert answer == {"words": 6, "longest": "function"} and "has 6 words" in log


def test_shell(deployed):
    shell = deployed(EXAMPLES / "shell")
    for _ in range(2):
        answer, log = shell({"n": "ü"})
        assert answer["message"].startswith("Hello from bash ") and answer["event"] == {"n": "ü"} and "bytes" in log


def test_rust(deployed):
    if not RUST_ECHO.exists():
        message = f"SKIPPED test_rust: {RUST_ECHO} is built by `cargo xtask test`"
        (pytest.fail if os.environ.get("EMBERBOX_REQUIRE_ALL") else pytest.skip)(message)
    assert deployed(RUST_ECHO)({"n": [1, None]})[0] == {"n": [1, None]}


def test_orders(deployed):
    orders = deployed(EXAMPLES / "events", "--runtime", PYTHON)
    assert orders({"id": 1, "total": 9.5})[0] == {"id": 1, "total": 9.5}
    records = [{"messageId": f"m{n}", "body": body} for n, body in enumerate(('{"id": 1, "total": 2}', '{"id": 2}', "no JSON"))]
    assert orders({"Records": records})[0] == {"batchItemFailures": [{"itemIdentifier": "m1"}, {"itemIdentifier": "m2"}]}
