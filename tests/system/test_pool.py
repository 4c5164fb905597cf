"""MicroVMs that wait for a function: the next cold start takes one, and finds nothing of another function in it."""

import itertools
import json
import urllib.request

import pytest

from conftest import PYTHON, ROLE, invoke, running, wait_active, wait_until, zip_bytes

pytestmark = pytest.mark.microvm_only("process sandboxes have blank ones and standbys; see test_standbys.py")

CODE = """
import os, time
def handler(event, context):
    seen = dict(mine=MINE, name=os.environ["AWS_LAMBDA_FUNCTION_NAME"], secret=os.environ.get("SECRET"), tmp=os.listdir("/tmp"),
        task=sorted(name for name in os.listdir("/var/task") if not name.startswith("__")),
        random=os.urandom(8).hex(), time=time.time(), round=os.environ["ROUND"])
    open("/tmp/left-by-" + seen["name"], "w").write("secret")
    return seen
"""
ROUNDS = itertools.count()


def test_a_cold_start_takes_a_vm_that_waited():
    with running(config="[microvm]\npool = 1\n", env={"EMBERBOX_LOG": "info", "NO_COLOR": "1"}) as server:
        client = server.client()
        for name in ("one", "two"):
            code = {"index.py": f"MINE = {name!r}\n{CODE}", f"only-{name}.txt": name}
            client.create_function(
                FunctionName=name, Runtime=PYTHON, Handler="index.handler", Role=ROLE, Code={"ZipFile": zip_bytes(code)}, Timeout=30
            )

        def cold(name):
            """What the function says after a cold start, whether in a VM that waited, and how long its sandbox took."""
            variables = {"ROUND": str(next(ROUNDS)), **({"SECRET": "of one"} if name == "one" else {})}
            wait_active(client, name)
            client.update_function_configuration(FunctionName=name, Environment={"Variables": variables})
            wait_active(client, name)
            result = invoke(client, name, {})
            assert result.error is None, result.body
            said = result.json
            assert (said["mine"], said["name"], said["round"]) == (name, name, variables["ROUND"])
            assert said["secret"] == variables.get("SECRET")
            assert said["tmp"] == [] and said["task"] == ["index.py", f"only-{name}.txt"], said

            def logged():
                for line in server.log_path.read_text().splitlines():
                    if f"request_id={result.request_id}" in line and " emberbox::invoke: " in line:
                        return json.loads(line.split("timeline=", 1)[1])

            marks = {mark["step"]: mark for mark in wait_until(logged, 10, "the timeline in the log")}
            created = marks["sandbox_created"]
            return said, created.get("note") == "pool", created["us"] - marks["package_fetched"]["us"]

        # The first makes the images.
        said, pooled, _ = cold("one")
        assert not pooled, "nobody had asked"
        found = [said]
        took = {True: [], False: []}

        def both():
            for name in ("two", "one"):
                said, pooled, us = cold(name)
                found.append(said)
                took[pooled].append(us)
            return len(took[True]) >= 3

        wait_until(both, 60, "cold starts in VMs that waited")
        print(took)
        assert len({said["random"] for said in found}) == len(found), "entropy of its own"
        if took[False]:
            # A boot's time is more than what a VM that waited takes, whatever else the machine does.
            assert sorted(took[True])[len(took[True]) // 2] < max(took[False]), took
        metrics = urllib.request.urlopen(server.endpoint + "/metrics").read().decode()
        assert f"worker_sandboxes_from_pool_total {len(took[True])}\n" in metrics, metrics


def test_none_wait_where_the_configuration_wants_none():
    with running(config="[microvm]\npool = 0\n") as server:
        client = server.client()
        client.create_function(
            FunctionName="f", Runtime=PYTHON, Handler="index.handler", Role=ROLE, Timeout=30,
            Code={"ZipFile": zip_bytes({"index.py": "def handler(event, context):\n    return event\n"})},
        )
        wait_active(client, "f")
        for n in range(2):
            client.update_function_configuration(FunctionName="f", Environment={"Variables": {"ROUND": str(n)}})
            wait_active(client, "f")
            assert invoke(client, "f", n).json == n
        metrics = urllib.request.urlopen(server.endpoint + "/metrics").read().decode()
        assert "worker_sandboxes_from_pool_total 0\n" in metrics
