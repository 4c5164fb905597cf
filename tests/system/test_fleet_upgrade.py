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
ORDER = ["worker-1", "worker-2", "worker-3", "worker-manager-1", "worker-manager-2", "pollers-1", "frontend-1", "frontend-2"]
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
    command = ["psql", fleet.url, "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", sql]
    # -c with several statements would be one transaction.
    command[-2:] = ["-f", "-"]
    return subprocess.run(command, input=sql, capture_output=True, text=True, check=True).stdout.strip()


class Load:
    """Callers of all frontends but those that are being replaced, as a balancer has it that was told before."""

    def __init__(self, fleet):
        self.fleet, self.lock, self.over = fleet, threading.Lock(), threading.Event()
        self.busy = {0: 0, 1: 0}
        self.failures, self.done = [], {}
        work = [lambda client, n: self.call(client, n)] * CALLERS + [self.change]
        self.threads = [threading.Thread(target=self.run, args=(n, of), daemon=True) for n, of in enumerate(work)]
        [thread.start() for thread in self.threads]

    def run(self, n, work):
        clients = {}
        while not self.over.is_set():
            with self.lock:
                frontend = random.choice(list(self.busy))
                self.busy[frontend] += 1
                url = self.fleet.endpoints[frontend]
            try:
                if url not in clients:
                    clients[url] = self.fleet.client(frontend)
                work(clients[url], n)
                self.done[n] = self.done.get(n, 0) + 1
            except Exception as error:
                self.failures.append((time.time(), n, str(error)))
            finally:
                with self.lock:
                    self.busy[frontend] -= 1

    def call(self, client, n):
        assert invoke(client, "fg"[n % 2], n=n, sleep=0.02 * (n % 3))["n"] == n

    def change(self, client, n):
        """A change and an event: what the frontends have in common."""
        arn = client.get_function_configuration(FunctionName="f")["FunctionArn"]
        count = str(self.done.get(n, 0))
        client.tag_resource(Resource=arn, Tags={"count": count})
        assert client.list_tags(Resource=arn)["Tags"]["count"] == count
        assert client.invoke(FunctionName="e", InvocationType="Event", Payload=b"{}")["StatusCode"] == 202
        time.sleep(0.2)

    def goes_on(self, what):
        self.done = {}
        ready = lambda: self.failures or len(self.done) > CALLERS and min(self.done.values()) > 2
        wait_until(ready, timeout=60, what=f"the load goes on {what}")
        assert not self.failures, (what, self.failures[:3], self.fleet.log())

    def replace(self, name, binary):
        frontend = int(name.rsplit("-", 1)[1]) - 1 if name.startswith("frontend-") else None
        with self.lock:
            count = self.busy.pop(frontend, 0)
            self.busy_out = count
        self.fleet.replace(name, binary)
        self.goes_on(f"without the old {name}")
        if frontend is not None:
            with self.lock:
                self.busy[frontend] = 0
            self.goes_on(f"with the new {name}")

    def end(self):
        self.over.set()
        [thread.join(60) for thread in self.threads]
        assert not self.failures, self.failures[:3]
