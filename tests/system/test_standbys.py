"""Standbys: what a function can see of having been started in an interpreter that waited for it. Everything that
seen.py can find out is compared with an ordinary start, and every difference that may be is named here."""

import glob
import itertools
import os
import pathlib
import signal

import pytest

from conftest import PYTHON, ROLE, invoke, running, wait_active, wait_until, zip_bytes

pytestmark = pytest.mark.process_only("microVMs have no standbys")

SEEN = pathlib.Path(__file__).with_name("seen.py").read_text()

# Where the two may differ, and why that does not matter.
NAMED = {
    "process / pid": "the mounter, gone by then, was number 2",
    "descriptors / 1": "the pipe belongs to PID 1 instead of the worker: to neither may the function do more",
    "descriptors / 2": "the same pipe",
    "interpreter / importers": "the layers' directories, which are not there, were not looked into yet",
}


ROUNDS = itertools.count()


def cold(client, name, number, **variables):
    """What the function says after a cold start."""
    variables["ROUND"] = number
    client.update_function_configuration(FunctionName=name, Environment={"Variables": variables})
    wait_active(client, name)
    result = invoke(client, name, {}, LogType="Tail")
    assert result.error is None, result.body
    assert result.json["round"] == number
    return {**result.json, "log": result.log}


def cold_until_standby(client, name, **variables):
    """Cold starts until one was served by a standby."""

    def late():
        said = cold(client, name, str(next(ROUNDS)), **variables)
        return said if said["standby"] else None

    return wait_until(late, what="a cold start by a standby")


def flat(value, path=()):
    """Leaves by their path."""
    if isinstance(value, dict):
        return {place: leaf for key, inner in value.items() for place, leaf in flat(inner, (*path, key)).items()}
    return {" / ".join(path): value}


def different(one, other):
    one, other = flat(one), flat(other)
    return {path: (one.get(path), other.get(path)) for path in sorted(one | other) if one.get(path) != other.get(path)}


def limits(stream):
    """What the host has set for the sandbox of this log stream."""
    pids = []
    for path in glob.glob("/proc/[0-9]*/environ"):
        try:
            if stream.encode() in pathlib.Path(path).read_bytes():
                pids.append(path.split("/")[2])
        except OSError:
            continue
    assert pids, "its process is there"
    found = {}
    wanted = ("memory.limit_in_bytes", "memory.swappiness", "cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.shares", "pids.max")
    wanted += ("memory.max", "memory.high", "memory.swap.max", "memory.oom.group", "cpu.max", "cpu.weight", "cpuset.cpus")
    for line in pathlib.Path(f"/proc/{pids[0]}/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        for name in wanted:
            for file in glob.glob(f"/sys/fs/cgroup/{controllers or '.'}{group}/{name}"):
                found[name] = pathlib.Path(file).read_text()
    return found


@pytest.fixture(scope="module")
def plain():
    with running(config="[sandbox]\nstandby_pool = 0\n") as server:
        yield server.client()


def test_a_function_sees_no_other_difference(client, plain, function):
    library = next(iter(glob.glob("/usr/lib/*/libz.so.1") + glob.glob("/usr/lib64/libz.so.1")))
    content = pathlib.Path(library).read_bytes()
    package = {"index.py": SEEN, "libown.so": (content, 0o755), "lib/libother.so": (content, 0o755)}
    name = "alike"
    function(None, files=package, name=name)
    function(None, files=package, name=name, on=plain)
    late = cold_until_standby(client, name)
    usual = cold(plain, name, late["round"])
    assert not usual["standby"]
    found = different(late["seen"], usual["seen"])
    for path, values in found.items():
        print(path, *values, sep="\n    ")
    assert set(found) <= set(NAMED), sorted(found)
    assert usual["seen"]["attempts"]["own library of the directory lib"] == "'libother.so'"
    assert 0 <= late["since"] < 5, "times in log records count from the start of the function"
    assert limits(late["stream"]) == limits(usual["stream"]) != {}


def test_no_two_share_what_is_secret(client, function):
    name = function(SEEN)
    one, other = cold_until_standby(client, name), cold_until_standby(client, name)
    assert one["stream"] != other["stream"]
    for path, secret in flat(one["secrets"]).items():
        assert secret != flat(other["secrets"])[path], path


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"AWS_LAMBDA_LOG_FORMAT": "JSON", "AWS_LAMBDA_LOG_LEVEL": "DEBUG"}, '"message": "a word of debugging"'),
        ({"AWS_LAMBDA_LOG_LEVEL": "DEBUG"}, "[DEBUG]"),
    ],
)
def test_what_the_client_reads_as_it_starts_is_heeded(client, function, variables, words):
    name = function(SEEN)
    cold_until_standby(client, name)
    for number in range(3):
        assert words in cold(client, name, f"with {number}", **variables)["log"]


def test_modules_of_the_package_come_first(client, function):
    cold_until_standby(client, function(SEEN))
    own = "def indent(text, *_):\n    return text\ndef dedent(text):\n    return text\n"
    name = function(None, files={"index.py": SEEN, "textwrap.py": own})
    for number in range(3):
        assert cold(client, name, f"own {number}")["textwrap"] == "/var/task/textwrap.py"


def test_init_counts_from_the_function_on(client, function):
    name = function("import time\ntime.sleep(1)\n" + SEEN)
    log = cold_until_standby(client, name)["log"]
    assert 1000 <= float(log.split("Init Duration: ")[1].split()[0]) < 9000, log


def test_none_is_left_after_a_kill():
    with running() as server:
        client = server.client()
        code = zip_bytes({"index.py": SEEN})
        client.create_function(FunctionName="f", Runtime=PYTHON, Handler="index.handler", Role=ROLE, Code={"ZipFile": code})
        wait_active(client, "f")
        cold_until_standby(client, "f")

        before = wait_until(lambda: waiting(server.process.pid), what="some wait")
        server.stop(signal.SIGKILL)
        wait_until(lambda: not before & waiting(None), 10, "they are gone")


def waiting(ancestor):
    """The standbys below a process, or all of this host."""
    found = set()
    for path in glob.glob("/proc/[0-9]*/environ"):
        try:
            # Only those that wait still have it in their memory.
            if b"_EMBERBOX_STANDBY=" not in pathlib.Path(path).read_bytes():
                continue
            process = int(path.split("/")[2])
            while ancestor and process not in (0, ancestor):
                process = int(pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
            if process:
                found.add(os.readlink(path.replace("environ", "ns/pid")))
        except OSError:
            continue
    return found
