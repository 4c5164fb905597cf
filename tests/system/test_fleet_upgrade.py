"""A fleet is upgraded, and taken back, one member after the other under load.

The version before is this very program, on what a later one has made of the database, unless EMBERBOX_OLD_BINARY names a program of
another version (built with the feature `cluster`).
"""

import os
import pathlib
import random
import subprocess
import threading
import time

import pytest

from conftest import BINARY, wait_until
from test_fleet import Fleet, create, invoke, status

pytestmark = [
    pytest.mark.needs("root", "cgroups", "postgresql"),
    pytest.mark.process_only("the roles do not differ with the kind of sandbox"),
]

OLD = pathlib.Path(os.environ.get("EMBERBOX_OLD_BINARY", BINARY))
# Those that understand something come before those that ask for it, as docs/operations.md says.
ORDER = [
    "worker-1", "worker-2", "worker-3", "placement-1", "worker-manager-1", "worker-manager-2", "pollers-1", "frontend-1", "frontend-2",
]
CALLERS = 6

# What a later version may do while this one runs: add tables and columns, and fields to what it writes.
LATER = """
    INSERT INTO emberbox_members.migrations SELECT max(number) + 1, max(oldest) FROM emberbox_members.migrations;
    ALTER TABLE emberbox_members.members ADD COLUMN later TEXT;
    ALTER TABLE emberbox_members.fleet ADD COLUMN later TEXT;
    INSERT INTO emberbox_migrations SELECT max(number) + 1, max(oldest) FROM emberbox_migrations;
    ALTER TABLE emberbox_events ADD COLUMN later TEXT;
    SET search_path = emberbox_metadata;
    INSERT INTO migrations SELECT max(number) + 1 FROM migrations;
    CREATE TABLE later (x INTEGER);
    ALTER TABLE head ADD COLUMN later TEXT;
    ALTER TABLE records ADD COLUMN later TEXT;
    BEGIN;
    UPDATE head SET revision = revision + 1;
    UPDATE records SET version = (SELECT revision FROM head),
        value = convert_to(jsonb_set(convert_from(value, 'UTF8')::JSONB, '{latest,settings,later}', '{"of": [1, "new"]}')::TEXT, 'UTF8')
        WHERE kind = 'function';
    INSERT INTO commits (revision, attempt) SELECT revision, 'later' FROM head;
    INSERT INTO changes (revision, number, kind, key, value)
        SELECT version, row_number() OVER () - 1, kind, key, value FROM records WHERE kind = 'function';
    COMMIT;
"""


def version(binary):
    return subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]


def psql(fleet, sql):
    # From a file, since several statements of -c would be one transaction.
    command = ["psql", fleet.url, "-XqAt", "-v", "ON_ERROR_STOP=1", "-f", "-"]
    out = subprocess.run(command, input=sql, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    return out.stdout.strip()


class Load:
    """Callers of all frontends but the one that is being replaced, as a balancer has it that was told before."""

    def __init__(self, fleet):
        self.fleet, self.lock, self.over = fleet, threading.Lock(), threading.Event()
        # How many calls each frontend has, and which takes none.
        self.calls, self.away = {0: 0, 1: 0}, None
        self.failures, self.done = [], {}
        work = [self.invoke] * CALLERS + [self.change]
        self.threads = [threading.Thread(target=self.run, args=(n, of), daemon=True) for n, of in enumerate(work)]
        [thread.start() for thread in self.threads]

    def run(self, n, work):
        clients = {}
        while not self.over.is_set():
            with self.lock:
                frontend = random.choice([frontend for frontend in self.calls if frontend != self.away])
                self.calls[frontend] += 1
                url = self.fleet.endpoints[frontend]
            try:
                if url not in clients:
                    clients[url] = self.fleet.client(frontend)
                work(clients[url], n)
                self.done[n] = self.done.get(n, 0) + 1
            except Exception as error:
                self.failures.append((time.time(), n, url, str(error)))
            finally:
                with self.lock:
                    self.calls[frontend] -= 1

    def invoke(self, client, n):
        assert invoke(client, "fg"[n % 2], n=n, sleep=0.02 * (n % 3))["n"] == n

    def change(self, client, n):
        """A change, which is seen at once, and an event."""
        arn = client.get_function_configuration(FunctionName="f")["FunctionArn"]
        count = f"{n}-{time.time()}"
        client.tag_resource(Resource=arn, Tags={"count": count})
        assert client.list_tags(Resource=arn)["Tags"]["count"] == count
        assert client.invoke(FunctionName="e", InvocationType="Event", Payload=b"{}")["StatusCode"] == 202
        time.sleep(0.2)

    def goes_on(self, what):
        self.done = {}
        ready = lambda: self.failures or len(self.done) > CALLERS and min(list(self.done.values())) > 2
        wait_until(ready, timeout=60, what=f"the load goes on {what}")
        assert not self.failures, (what, self.failures[:3], self.fleet.log())

    def replace(self, name, binary):
        frontend = int(name.rsplit("-", 1)[1]) - 1 if name.startswith("frontend-") else None
        if frontend is not None:
            with self.lock:
                self.away = frontend
            wait_until(lambda: self.calls[frontend] == 0, what=f"nobody calls {name}")
        self.fleet.replace(name, binary)
        self.goes_on(f"with {name} stopped and started again")
        if frontend is not None:
            with self.lock:
                self.away = None
            self.goes_on(f"by {name}")

    def end(self):
        self.over.set()
        [thread.join(60) for thread in self.threads]
        assert not self.failures, self.failures[:3]


@pytest.fixture
def fleet(request):
    # The second one with pollers stays as it is: without a process of its own `dev-fleet` ends, with its database.
    fleet = Fleet("--frontends", "2", "--managers", "2", "--workers", "3", "--pollers", "2", binary=OLD)
    yield fleet
    if request.session.testsfailed:
        print(fleet.log())
    fleet.remove()


def test_a_fleet_is_upgraded_under_load_and_taken_back_without_a_failed_invocation(fleet):
    for frontend, name in enumerate("fge"):
        create(fleet.client(frontend % 2), name)
    load = Load(fleet)
    load.goes_on("before the upgrade")
    if OLD == BINARY:
        # Nobody who runs has to know.
        psql(fleet, LATER)
        load.goes_on("on what a later version made of the database")
    for name in ORDER:
        load.replace(name, BINARY)
        if name == ORDER[0]:
            shown = {member["id"]: member["version"] for member in status(fleet)["members"]}
            assert shown[name] == version(BINARY) and shown["frontend-2"] == version(OLD), shown
    # The way back, in the other order; half of it is enough to see.
    for name in reversed(ORDER[::2]):
        load.replace(name, OLD)
    load.end()
    for frontend in range(2):
        client = fleet.client(frontend)
        for name in "fg":
            assert invoke(client, name, n=frontend)["n"] == frontend

    def nothing_waits():
        events = status(fleet)["events"]
        return events and events.get("error") is None and events["ready"] + events["inFlight"] + events["delayed"] == 0

    wait_until(nothing_waits, timeout=60, what="all events have run")
    if OLD == BINARY:
        kept = "SELECT convert_from(value, 'UTF8')::JSONB #>> '{latest,settings,later,of,1}' FROM emberbox_metadata.records WHERE kind = 'function'"
        assert psql(fleet, kept).split() == ["new"] * 3, "what a later version has written outlives a change by this one"
    assert fleet.stop() == 0, fleet.log()
