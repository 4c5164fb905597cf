"""A fleet of processes on this machine: `emberbox dev-fleet`, and what its members do when others come, go and die."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time

import boto3
import botocore.config
import botocore.exceptions
import pytest

from conftest import BINARY, PYTHON, ROLE, RUNTIMES, wait_until, zip_bytes

pytestmark = [
    pytest.mark.needs("root", "cgroups", "postgresql"),
    pytest.mark.process_only("the roles do not differ with the kind of sandbox"),
]

CODE = """
import os, time

def handler(event, context):
    time.sleep(event.get("sleep", 0))
    return {"stage": os.environ.get("STAGE"), "sandbox": open("/proc/sys/kernel/random/uuid").read() and BORN, "n": event.get("n")}

BORN = open("/proc/sys/kernel/random/uuid").read().strip()
"""


class Fleet:
    """`emberbox dev-fleet` in a directory of its own."""

    def __init__(self, *args, config="", binary=BINARY):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="emberbox-fleet-"))
        self.dir.chmod(0o711)
        for shared in ("runtimes", "roots"):
            (RUNTIMES / shared).mkdir(parents=True, exist_ok=True)
            (self.dir / shared).symlink_to(RUNTIMES / shared)
        self.log_path = self.dir / "fleet.log"
        (self.dir / "base.toml").write_text(config)
        command = [binary, "dev-fleet", "--json", "--listen", "127.0.0.1:0", "--data-dir", self.dir, "--config", self.dir / "base.toml"]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command] + list(args), stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError("the fleet did not start:\n" + self.log())
        shown = json.loads(line)
        self.endpoints, self.url = shown["endpoints"], shown["database"]
        self.replaced = []
        self.pids = {process["name"]: process["pid"] for process in shown["processes"]}
        self.admin = {process["name"]: "http://" + process["admin"] for process in shown["processes"] if process["admin"]}

    def log(self):
        return self.log_path.read_text(errors="replace")[-6000:]

    def client(self, frontend=0, retries=0, service="lambda"):
        config = botocore.config.Config(retries={"max_attempts": retries}, read_timeout=60, connect_timeout=5)
        return boto3.client(
            service, endpoint_url=self.endpoints[frontend], region_name="us-east-1", config=config,
            aws_access_key_id="000000000000", aws_secret_access_key="x",
        )

    def kill(self, name, sig=signal.SIGKILL):
        os.kill(self.pids[name], sig)

    @property
    def database_options(self):
        port = self.url.rsplit(":", 1)[1].split("/")[0]
        return f"-p {port} -k {self.dir}/postgres -h 127.0.0.1 -N 200"

    def database(self, *args):
        """pg_ctl, on the fleet's own server."""
        pg_ctl = next(pathlib.Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
        command = ["runuser", "-u", "postgres", "--", pg_ctl, "-D", self.dir / "postgres/data", "-w", *args]
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL)

    def replace(self, name, binary=BINARY):
        """Stops a member as an upgrade does, and starts another process in its place."""
        self.kill(name, signal.SIGTERM)
        gone = lambda: not alive(self.pids[name])
        wait_until(gone, what=f"{name} has stopped")
        with open(self.log_path, "ab") as log:
            process = subprocess.Popen(
                [str(binary), "serve", "--config", str(self.dir / name / "emberbox.toml")],
                stdout=subprocess.PIPE, stderr=log, start_new_session=True,
            )
        self.replaced.append(process)
        line = process.stdout.readline().decode()
        assert "is ready" in line, self.log()
        if name.startswith("frontend-"):
            self.endpoints[int(name.removeprefix("frontend-")) - 1] = re.search(r"is ready at (http\S+):", line)[1]
        self.pids[name] = process.pid

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self.process.stdout.close()
        return code

    def remove(self):
        for process in self.replaced:
            process.kill()
            process.wait()
            process.stdout.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


def alive(pid):
    """Whether it runs; one that only waits to be waited for does not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def fleet(request):
    args, config = getattr(request, "param", ((), ""))
    fleet = Fleet(*args, config=config)
    yield fleet
    if request.session.testsfailed:
        print(fleet.log())
    fleet.remove()


def create(client, name, code=CODE, **settings):
    client.create_function(
        FunctionName=name, Runtime=PYTHON, Role=ROLE, Handler="index.handler", Timeout=30, MemorySize=128,
        Code={"ZipFile": zip_bytes({"index.py": code})}, **settings,
    )
    client.get_waiter("function_active_v2").wait(FunctionName=name, WaiterConfig={"Delay": 1})


def invoke(client, name, **event):
    answer = client.invoke(FunctionName=name, Payload=json.dumps(event))
    body = json.loads(answer["Payload"].read())
    assert "FunctionError" not in answer, body
    return body


def test_every_frontend_sees_what_another_one_changed(fleet):
    one, other = fleet.client(0), fleet.client(1)
    create(one, "f", Environment={"Variables": {"STAGE": "0"}})
    assert invoke(other, "f", n=1)["n"] == 1
    for stage in range(1, 6):
        here, there = (one, other) if stage % 2 else (other, one)
        here.update_function_configuration(FunctionName="f", Environment={"Variables": {"STAGE": str(stage)}})
        # No wait in between: a change that was answered is known to all.
        assert there.get_function_configuration(FunctionName="f")["Environment"]["Variables"]["STAGE"] == str(stage)
        here.get_waiter("function_updated_v2").wait(FunctionName="f", WaiterConfig={"Delay": 1})
        assert invoke(there, "f")["stage"] == str(stage)
    location = one.get_function(FunctionName="f")["Code"]["Location"]
    assert subprocess.run(["curl", "-sf", location.replace(fleet.endpoints[0], fleet.endpoints[1])], capture_output=True).stdout[:2] == b"PK"
    other.delete_function(FunctionName="f")
    with pytest.raises(one.exceptions.ResourceNotFoundException):
        one.invoke(FunctionName="f")


def test_warm_sandboxes_are_shared_and_outlive_their_managers(fleet):
    clients = [fleet.client(0), fleet.client(1)]
    for n in range(6):
        create(clients[0], f"f{n}")
    before = {n: invoke(clients[n % 2], f"f{n}")["sandbox"] for n in range(6)}
    assert {n: invoke(clients[1 - n % 2], f"f{n}")["sandbox"] for n in range(6)} == before, "one manager for each function"
    fleet.kill("worker-manager-1")
    began = time.monotonic()
    after = {n: invoke(clients[n % 2], f"f{n}")["sandbox"] for n in range(6)}
    print(f"all functions answered {time.monotonic() - began:.2f} s after their manager was killed")
    assert after == before, "warm sandboxes stay warm"
    assert time.monotonic() - began < 6


def test_a_worker_that_dies_takes_nothing_but_what_ran_there(fleet):
    client = fleet.client(retries=0)
    create(client, "f")
    # Sandboxes on more than one worker.
    answers = in_parallel(12, lambda n: invoke(client, "f", n=n, sleep=0.5))
    assert sorted(answer["n"] for answer in answers) == list(range(12))
    running = [threading.Thread(target=lambda: errors.append(attempt(client)), daemon=True) for _ in range(6)]
    errors = []
    [thread.start() for thread in running]
    time.sleep(0.5)
    fleet.kill("worker-1")
    began = time.monotonic()
    [thread.join(30) for thread in running]
    assert len(errors) == 6, "an invocation hangs"
    assert all(error is None or "ServiceException" in error or "unable to run" in error for error in errors), errors
    for n in range(10):
        assert invoke(client, "f", n=n)["n"] == n
    print(f"{sum(error is not None for error in errors)} of 6 invocations were lost; all well {time.monotonic() - began:.2f} s later")


def attempt(client):
    try:
        invoke(client, "f", sleep=2)
    except Exception as error:
        return str(error)


def in_parallel(count, work):
    answers = [None] * count

    def run(n):
        answers[n] = work(n)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    [thread.start() for thread in threads]
    [thread.join(60) for thread in threads]
    return answers


LIMITED = """
import os, time

def handler(event, context):
    with open("/proc/uptime") as f:
        began = float(f.read().split()[0])
    time.sleep(event["sleep"])
    with open("/proc/uptime") as f:
        return [began, float(f.read().split()[0])]
"""


@pytest.mark.parametrize("fleet", [((), "[limits]\naccount_concurrency = 10\n")], indirect=True)
def test_an_accounts_concurrency_is_one_over_all_managers(fleet):
    clients = [fleet.client(0), fleet.client(1)]
    names = [f"f{n}" for n in range(6)]
    for name in names:
        create(clients[0], name, LIMITED)
    spans, reasons = [], []

    def run(n):
        for _ in range(3):
            try:
                spans.append(invoke(clients[n % 2], names[n % 6], sleep=1))
            except botocore.exceptions.ClientError as error:
                reasons.append(error.response.get("Reason"))
                time.sleep(0.3)

    in_parallel(24, run)
    at_once = max(sum(began <= moment < ended for began, ended in spans) for moment, _ in spans)
    print(f"{len(spans)} ran, at most {at_once} at once; {len(reasons)} were throttled")
    assert 8 <= at_once <= 10
    assert set(reasons) == {"ConcurrentInvocationLimitExceeded"}


def test_without_its_database_a_fleet_goes_on_running_functions(fleet):
    one, other = fleet.client(0), fleet.client(1)
    create(one, "warm")
    create(one, "cold")
    before = invoke(one, "warm")["sandbox"]
    fleet.database("-m", "immediate", "stop")
    began, seen = time.monotonic(), set()
    while time.monotonic() - began < 6:
        # Longer than any lease lasts: nobody is found dead.
        seen |= {invoke(one, "warm")["sandbox"], invoke(other, "warm")["sandbox"]}
    assert before in seen
    assert invoke(other, "cold", n=1)["n"] == 1, "new sandboxes are made as well"
    with pytest.raises(botocore.exceptions.ClientError):
        one.update_function_configuration(FunctionName="warm", Description="no")
    fleet.database("-o", fleet.database_options, "-l", str(fleet.dir / "postgres/log"), "start")
    wait_until(lambda: attempt_change(one), what="changes are possible again")
    assert other.get_function_configuration(FunctionName="warm")["Description"] == "again"
    # And the members find each other dead again.
    fleet.kill("worker-manager-1")
    for name in ("warm", "cold"):
        assert invoke(one, name, n=2)["n"] == 2


def attempt_change(client):
    try:
        client.update_function_configuration(FunctionName="warm", Description="again")
        return True
    except botocore.exceptions.ClientError:
        return False


def test_events_run_whichever_frontend_took_them(fleet):
    create(fleet.client(0), "f")
    for n in range(4):
        answer = fleet.client(n % 2).invoke(FunctionName="f", InvocationType="Event", Payload=json.dumps({"n": n}))
        assert answer["StatusCode"] == 202
    wait_until(lambda: succeeded(fleet, "f") == 4, what="four events ran")


def succeeded(fleet, name):
    """From the metrics of the process with the pollers, or what the queue still has."""
    out = subprocess.run(
        [str(BINARY), "events", name, "--json", "--endpoint", fleet.endpoints[0]], capture_output=True, check=True, text=True,
        env={**os.environ, "AWS_ACCESS_KEY_ID": "000000000000", "AWS_SECRET_ACCESS_KEY": "x"},
    )
    return 4 - json.loads(out.stdout)["depth"]


def test_two_processes_cannot_have_one_name(fleet):
    name = "worker-manager-1"
    config = (fleet.dir / name / "emberbox.toml").read_text().replace(f"{name}/data", f"{name}/other-data")
    (fleet.dir / "second.toml").write_text(config)
    second = subprocess.Popen(
        [str(BINARY), "serve", "--config", str(fleet.dir / "second.toml")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    fleet.replaced.append(second)
    assert b"is ready" in second.stdout.readline()
    wait_until(lambda: not alive(fleet.pids[name]), what="the first one stops")
    assert f"another process has joined the fleet as {name}" in fleet.log_path.read_text()


def test_the_fleet_stops_and_leaves_nothing(fleet):
    create(fleet.client(), "f")
    invoke(fleet.client(), "f")
    assert fleet.stop() == 0, fleet.log()
    for name, pid in fleet.pids.items():
        assert not alive(pid), f"{name} is left"
    left = [cgroup for cgroup in pathlib.Path("/sys/fs/cgroup").rglob("*emberbox*") if any(str(pid) in cgroup.name for pid in fleet.pids.values())]
    assert not left


def test_the_fleet_ends_with_who_started_it(fleet):
    fleet.process.kill()
    fleet.process.wait()
    gone = lambda: not any(alive(pid) for pid in fleet.pids.values())
    wait_until(gone, what="the processes are gone")


LOGGING = """
import time

def handler(event, context):
    for line in range(3):
        print(f"n={event['n']} line={line}")
    time.sleep(event.get("sleep", 0))
"""


def create_logging(client, name):
    client.create_function(
        FunctionName=name, Runtime=PYTHON, Role=ROLE, Handler="index.handler", Timeout=30, MemorySize=128,
        Code={"ZipFile": zip_bytes({"index.py": LOGGING})},
    )
    client.get_waiter("function_active_v2").wait(FunctionName=name, WaiterConfig={"Delay": 1})


def emberbox(fleet, *args, frontend=0, check=True):
    out = subprocess.run(
        [str(BINARY), *args, "--endpoint", fleet.endpoints[frontend]], capture_output=True, text=True, timeout=60,
        env={**os.environ, "AWS_ACCESS_KEY_ID": "000000000000", "AWS_SECRET_ACCESS_KEY": "x"},
    )
    assert not check or out.returncode == 0, out.stderr
    return out.stdout


def filtered(logs, group, **query):
    """All events, page by page."""
    events = []
    while True:
        page = logs.filter_log_events(logGroupName=group, **query)
        events += page["events"]
        if "nextToken" not in page:
            return events
        query["nextToken"] = page["nextToken"]


def test_logs_are_those_of_all_workers(fleet):
    client, group, count = fleet.client(), "/aws/lambda/f", 12
    create_logging(client, "f")
    in_parallel(count, lambda n: client.invoke(FunctionName="f", Payload=json.dumps({"n": n, "sleep": 1})))
    workers = [name for name in fleet.pids if name.startswith("worker-") and "manager" not in name]
    on = [name for name in workers if list((fleet.dir / name / "data").rglob("0*.log"))]
    assert len(on) > 1, f"the function ran on {on} alone"
    logs = [fleet.client(frontend, service="logs") for frontend in range(2)]

    def written():
        try:
            return len(filtered(logs[0], group, filterPattern="REPORT")) == count
        except logs[0].exceptions.ResourceNotFoundException:
            return False

    wait_until(written, what="the log of all invocations is written")
    assert [g["logGroupName"] for g in logs[1].describe_log_groups()["logGroups"]] == [group]
    all_events = filtered(logs[1], group)
    lines = sorted(e["message"].strip() for e in all_events if "line=" in e["message"])
    assert lines == sorted(f"n={n} line={line}" for n in range(count) for line in range(3)), "each once"
    # Small pages, each from another frontend than the one before.
    paged, token = [], {}
    for number in range(1000):
        page = logs[number % 2].filter_log_events(logGroupName=group, limit=7, **token)
        paged += page["events"]
        if "nextToken" not in page:
            break
        token = {"nextToken": page["nextToken"]}
    assert [e["eventId"] for e in paged] == [e["eventId"] for e in all_events]
    with pytest.raises(logs[0].exceptions.InvalidParameterException):
        logs[0].filter_log_events(logGroupName=group, nextToken="nonsense")
    streams = logs[0].describe_log_streams(logGroupName=group)["logStreams"]
    assert len(streams) == count and streams == logs[1].describe_log_streams(logGroupName=group)["logStreams"]
    for stream in streams[:4]:
        name = stream["logStreamName"]
        its = [e["message"] for e in all_events if e["logStreamName"] == name]
        assert read_forward(logs, group, name) == its
        assert read_backward(logs, group, name) == its
    shown = emberbox(fleet, "logs", "f", frontend=1)
    assert sorted(line for line in shown.splitlines() if "line=" in line) == lines


def read_forward(logs, group, stream):
    events, token = [], {"startFromHead": True}
    for number in range(1000):
        page = logs[number % 2].get_log_events(logGroupName=group, logStreamName=stream, limit=2, **token)
        events += [e["message"] for e in page["events"]]
        if token.get("nextToken") == page["nextForwardToken"]:
            assert not page["events"]
            return events
        token = {"nextToken": page["nextForwardToken"]}


def read_backward(logs, group, stream):
    events, token = [], {}
    for number in range(1000):
        page = logs[number % 2].get_log_events(logGroupName=group, logStreamName=stream, limit=2, **token)
        if not page["events"]:
            return events
        events = [e["message"] for e in page["events"]] + events
        token = {"nextToken": page["nextBackwardToken"]}


def test_logs_are_followed_over_all_workers_and_without_one_that_is_gone(fleet):
    client = fleet.client()
    create_logging(client, "f")
    following = subprocess.Popen(
        [str(BINARY), "logs", "f", "--follow", "--endpoint", fleet.endpoints[1]], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "AWS_ACCESS_KEY_ID": "000000000000", "AWS_SECRET_ACCESS_KEY": "x"},
    )
    seen = []
    reading = threading.Thread(target=lambda: seen.extend(iter(following.stdout.readline, "")), daemon=True)
    try:
        reading.start()
        in_parallel(8, lambda n: client.invoke(FunctionName="f", Payload=json.dumps({"n": n, "sleep": 0.5})))
        # A worker that does not answer is one whose lines come later.
        fleet.kill("worker-1", signal.SIGSTOP)
        time_of_stop = time.monotonic()
        fleet.client(1, service="logs").describe_log_groups()
        assert time.monotonic() - time_of_stop < 5, "a worker that does not answer holds the others' up"
        fleet.kill("worker-1", signal.SIGCONT)
        expected = sorted(f"n={n} line={line}" for n in range(8) for line in range(3))
        mine = lambda: sorted(line.strip() for line in list(seen) if "line=" in line)
        wait_until(lambda: len(mine()) >= len(expected), what="all lines were followed")
        assert mine() == expected, "each once"
        for n in range(8):
            its = [line.strip() for line in seen if line.startswith(f"n={n} ")]
            assert its == [f"n={n} line={line}" for line in range(3)], "in order"
    finally:
        following.kill()
        following.wait()


def fleet_command(fleet, *args, of="frontend-1"):
    return subprocess.run(
        [str(BINARY), "fleet", *args, "--config", str(fleet.dir / of / "emberbox.toml")], capture_output=True, text=True, timeout=60,
    )


def status(fleet):
    out = fleet_command(fleet, "status", "--json")
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


def test_status_shows_members_sandboxes_and_who_is_silent(fleet):
    create(fleet.client(), "f")
    in_parallel(3, lambda n: invoke(fleet.client(), "f", sleep=0.5))

    def whole():
        """On a busy machine a member may be found dead, and join again."""
        shown = status(fleet)
        epochs = {member.get("report", {}).get("view", {}).get("epoch") for member in shown["members"]}
        known = {member["id"] for member in shown["members"] if member["state"] == "active"} == set(fleet.pids)
        idle = any(of["function"].endswith(":f") and of["idle"] and not of["busy"] for of in shown["functions"])
        return shown if known and epochs == {shown["epoch"]} and idle else None

    shown = wait_until(whole, timeout=60, what="all members are there, answer, know each other and show idle sandboxes")
    workers = [member["report"]["worker"] for member in shown["members"] if "worker" in member["roles"]]
    assert sum(worker["slotsUsed"] for worker in workers) == sum(of["idle"] for of in shown["functions"])
    assert shown["events"]["ready"] == 0 and shown["events"].get("error") is None
    text = fleet_command(fleet, "status").stdout
    assert "worker-manager-1" in text and "Events: 0 ready" in text and "/" in text, text
    fleet.kill("worker-2", signal.SIGSTOP)
    try:
        members = {member["id"]: member for member in status(fleet)["members"]}
        # It is shown as long as the fleet has not found it dead.
        assert "worker-2" not in members or re.search("no answer|no connection", members["worker-2"]["error"])
        assert any("report" in member for member in members.values())
    finally:
        fleet.kill("worker-2", signal.SIGCONT)
    out = fleet_command(fleet, "cordon", "nobody")
    assert out.returncode == 1 and "worker-1" in out.stderr, out.stderr
    assert fleet_command(fleet, "cordon", "frontend-1").returncode == 1


def test_a_worker_is_cordoned_drained_and_taken_back(fleet):
    client = fleet.client()
    create(client, "f")
    create(client, "g")

    def shown(name):
        found = [member.get("report", {}).get("worker") for member in status(fleet)["members"] if member["id"] == name]
        return found[0] if found else None

    def worker(name):
        return wait_until(lambda: shown(name), what=f"{name} answers")

    def order(what, name, **of):
        wait_until(lambda: fleet_command(fleet, what, name, **of).returncode == 0, what=f"{what} {name}")

    names = [name for name in fleet.pids if name.startswith("worker-") and "manager" not in name]
    busy = threading.Thread(target=lambda: answers.append(invoke(client, "f", sleep=4, n=7)))
    answers = []
    busy.start()
    on = lambda: next((name for name in names if worker(name)["functions"]), None)
    first = wait_until(on, what="the function runs somewhere")
    others = [name for name in names if name != first]
    order("drain", first, of="worker-manager-1")
    drained = worker(first)
    assert drained["draining"] and drained["cordon"] == "drain"
    busy.join(60)
    assert answers[0]["n"] == 7, "what ran has finished"
    wait_until(lambda: worker(first)["slotsUsed"] == 0, what="the drained worker is empty")
    in_parallel(6, lambda n: invoke(client, "g", sleep=0.3))
    assert worker(first)["slotsUsed"] == 0, "it takes no new sandboxes"
    assert sum(worker(name)["slotsUsed"] for name in others) > 0
    # The others keep what they have, and take no more; the first takes all.
    for name in others:
        order("cordon", name)
    order("uncordon", first)
    kept = {name: worker(name)["slotsUsed"] for name in others}
    # The managers hear of it a moment later.
    wait_until(lambda: taken(client), what="there is room again")
    assert worker(first)["slotsUsed"] == 1
    assert {name: worker(name)["slotsUsed"] for name in others} == kept


def taken(client):
    try:
        return invoke(client, "f", n=1)["n"] == 1
    except client.exceptions.ClientError:
        return False
