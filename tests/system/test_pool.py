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


class Server:
    """Two functions of one kind on a server of their own."""

    def __init__(self, server):
        self.server, self.client = server, server.client()
        for name in ("one", "two"):
            code = {"index.py": f"MINE = {name!r}\n{CODE}", f"only-{name}.txt": name}
            self.client.create_function(
                FunctionName=name, Runtime=PYTHON, Handler="index.handler", Role=ROLE, Code={"ZipFile": zip_bytes(code)}, Timeout=30
            )
            wait_active(self.client, name)

    def cold(self, name):
        """What the function says after a cold start, whether in a VM that waited, and how long its sandbox took, in us."""
        variables = {"ROUND": str(next(ROUNDS)), **({"SECRET": "of one"} if name == "one" else {})}
        self.client.update_function_configuration(FunctionName=name, Environment={"Variables": variables})
        wait_active(self.client, name)
        result = invoke(self.client, name, {})
        assert result.error is None, result.body
        said = result.json
        assert (said["mine"], said["name"], said["round"]) == (name, name, variables["ROUND"])
        assert said["secret"] == variables.get("SECRET")
        assert said["tmp"] == [] and said["task"] == ["index.py", f"only-{name}.txt"], said

        def logged():
            for line in self.server.log_path.read_text().splitlines():
                if f"request_id={result.request_id}" in line and " emberbox::invoke: " in line:
                    return json.loads(line.split("timeline=", 1)[1])

        marks = {mark["step"]: mark for mark in wait_until(logged, 10, "the timeline in the log")}
        created = marks["sandbox_created"]
        return said, created.get("note") == "pool", created["us"] - marks["package_fetched"]["us"]

    def from_pool(self):
        """How many sandboxes were made of VMs that waited, by the metric."""
        page = urllib.request.urlopen(self.server.endpoint + "/metrics").read().decode()
        return int(next(line.split()[1] for line in page.splitlines() if "worker_sandboxes_from_pool_total " in line))


def server(pool):
    return running(config=f"[microvm]\npool = {pool}\n", env={"EMBERBOX_LOG": "info", "NO_COLOR": "1"})


def test_a_cold_start_takes_a_vm_that_waited():
    boots, took, said = [], [], []
    with server(pool=0) as none:
        plain = Server(none)
        for name in ("one", "two", "one", "two"):
            _, pooled, us = plain.cold(name)
            assert not pooled
            boots.append(us)
        assert plain.from_pool() == 0
    # The first ones have made the images.
    boots = boots[2:]
    with server(pool=1) as some:
        pool = Server(some)
        assert not pool.cold("one")[1], "nobody had asked"

        def both():
            for name in ("two", "one"):
                answer, pooled, us = pool.cold(name)
                said.append(answer)
                if pooled:
                    took.append(us)
            return len(took) >= 3

        wait_until(both, 60, "cold starts in VMs that waited")
        assert len({answer["random"] for answer in said}) == len(said), "entropy of its own"
        assert pool.from_pool() == len(took)
    print(f"booted in {boots} us, taken from those that waited in {took} us")
    assert sorted(took)[len(took) // 2] < min(boots), (took, boots)
