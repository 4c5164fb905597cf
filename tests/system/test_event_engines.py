"""Events that wait in PostgreSQL or in SQS instead of a file: the whole path, and the service broken under load."""

import json
import pathlib
import shutil
import socket
import subprocess
import tempfile
import threading
import time

import botocore.exceptions
import pytest

from conftest import Emberbox, running, wait_until
from test_events import NOTE, lines, ran, send, stats
from third_party import ACCOUNT, SERVER, Gate, Moto

pytestmark = [pytest.mark.needs("root", "cgroups"), pytest.mark.process_only("events are invoked as any client does")]


class Postgres:
    """Debian's PostgreSQL in a directory of its own."""

    def __init__(self, address="127.0.0.1"):
        self.address = address
        self.programs = next(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb")).parent
        self.directory = tempfile.mkdtemp(prefix="emberbox-postgres-")
        shutil.chown(self.directory, "postgres")
        with socket.socket() as probe:
            probe.bind((address, 0))
            self.port = probe.getsockname()[1]
        self.url = f"postgres://emberbox:secret@{address}:{self.port}/postgres"
        self.run("initdb", "-A", "trust", "-U", "emberbox")
        with open(self.directory + "/data/pg_hba.conf", "a") as access:
            access.write("host all all samenet trust\n")
        self.start()

    def run(self, program, *args):
        subprocess.run(
            ["runuser", "-u", "postgres", "--", self.programs / program, "-D", self.directory + "/data", *args],
            check=True, cwd="/", stdout=subprocess.DEVNULL,
        )

    def start(self):
        options = f"-p {self.port} -k {self.directory} -h {self.address}"
        self.run("pg_ctl", "-w", "-o", options, "-l", self.directory + "/log", "start")

    def stop(self):
        """As a crash: without a checkpoint."""
        self.run("pg_ctl", "-w", "-m", "immediate", "stop")

    def remove(self):
        self.stop()
        shutil.rmtree(self.directory)


@pytest.fixture(scope="module")
def postgres():
    server = Postgres()
    yield server
    server.remove()


@pytest.fixture
def moto():
    server = Moto()
    yield server
    server.stop()


class Load:
    """Clients that send events until they are told to stop."""

    def __init__(self, server, name, clients=4):
        self.accepted, self.refused, self.stopped = [], 0, threading.Event()
        self.threads = [threading.Thread(target=self.send, args=(server.client(), name)) for _ in range(clients)]
        for thread in self.threads:
            thread.start()

    def send(self, client, name):
        while not self.stopped.is_set():
            try:
                self.accepted.append(send(client, name, {"n": len(self.accepted)}))
            except botocore.exceptions.ClientError as error:
                assert error.response["Error"]["Code"] == "ServiceException", error.response
                self.refused += 1
            time.sleep(0.02)

    def stop(self):
        self.stopped.set()
        for thread in self.threads:
            thread.join()


def all_ran(server, name, accepted, timeout):
    def missing():
        seen = "".join(lines(server, name, "got"))
        return [request_id for request_id in accepted if request_id not in seen]

    wait_until(lambda: not missing(), timeout, f"{len(accepted)} events to run")


@pytest.mark.needs("postgresql")
def test_postgres_restarted_under_load_loses_nothing(function, postgres):
    with running(config=f'[events]\nengine = "postgres"\npostgres_url = "{postgres.url}"\n') as server:
        name = function(NOTE, on=server.client())
        ran(server, name, send(server.client(), name))
        load = Load(server, name)
        for _ in range(2):
            time.sleep(1)
            postgres.stop()
            refused = load.refused
            wait_until(lambda: load.refused > refused, what="an event that cannot be stored to be refused")
            postgres.start()
            accepted = len(load.accepted)
            wait_until(lambda: len(load.accepted) > accepted + 20, what="events to be taken again")
        load.stop()
        all_ran(server, name, load.accepted, 120)
        wait_until(lambda: stats(server, name)["depth"] == 0, what="the queue to be empty")
        assert server.stop() == 0


@pytest.mark.needs("postgresql")
def test_events_in_postgres_outlive_the_server(function, postgres):
    config = f'[events]\nengine = "postgres"\npostgres_url = "{postgres.url}"\n'
    with tempfile.TemporaryDirectory(prefix="emberbox-test-") as directory:
        server = Emberbox(data_dir=directory, config=config).start()
        try:
            client = server.client()
            name = function("import time\n" + NOTE + "    time.sleep(0.5)\n", on=client)
            client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=1)
            accepted = [send(client, name, n) for n in range(6)]
            server.stop(sig=9)
            server = Emberbox(data_dir=directory, config=config).start()
            # what was leased when the server died comes back when its lease is over
            all_ran(server, name, accepted, 120)
        finally:
            server.stop()


def test_a_database_that_is_not_there_is_named():
    with pytest.raises(AssertionError) as caught:
        url = "postgres://emberbox:hidden@127.0.0.1:1/postgres"
        Emberbox(config=f'[events]\nengine = "postgres"\npostgres_url = "{url}"\n').start()
    text = str(caught.value).lower()
    assert "127.0.0.1:1:" in text and "connection refused" in text and "postgres_url" in text and "hidden" not in text, text


@pytest.mark.needs(str(SERVER))
def test_sqs_with_errors_and_silence_loses_nothing(function, moto):
    gate = Gate(moto.endpoint)
    try:
        config = f'[events]\nengine = "sqs"\nsqs_endpoint = "{gate.endpoint}"\n'
        with running(config=config) as server:
            name = function(NOTE, on=server.client())
            ran(server, name, send(server.client(), name))
            load = Load(server, name)
            for mode in ("error", "closed", "hang"):
                time.sleep(1)
                gate.set(mode)
                refused = load.refused
                wait_until(lambda: load.refused > refused, 60, f"an event to be refused ({mode})")
                gate.set("forward")
                accepted = len(load.accepted)
                wait_until(lambda: len(load.accepted) > accepted + 5, 60, "events to be taken again")
            load.stop()
            all_ran(server, name, load.accepted, 240)
            assert server.stop() == 0
    finally:
        gate.stop()


@pytest.mark.needs(str(SERVER))
def test_sqs_takes_a_megabyte(function, moto):
    with running(config=f'[events]\nengine = "sqs"\nsqs_endpoint = "{moto.endpoint}"\n') as server:
        client = server.client()
        name = function(
            "def handler(event, context):\n    print('got', context.aws_request_id, len(event), event[-1])", on=client
        )

        def invoke(payload):
            return client.invoke(FunctionName=name, InvocationType="Event", Payload=payload)["ResponseMetadata"]["RequestId"]

        # A megabyte as JSON has it, some of it in several bytes each; and what is Base64 on its way.
        text = json.dumps("ä" * 499_998 + "zz", ensure_ascii=False).encode()
        binary = b"\r\n" + json.dumps("y" * 700_000).encode()
        assert len(text) == 1_000_000
        for payload, seen in ((text, "500000 z"), (binary, "700000 y")):
            request_id = invoke(payload)
            wait_until(
                lambda: any(f"got {request_id} {seen}" in line for line in lines(server, name, "got")), 30, "the event to run"
            )
        # The limit of Lambda is beyond that of the queue here.
        for payload, limit in ((json.dumps("x" * (1 << 20))[:-3].encode() + b'"', 1_031_168), (b"\r" + json.dumps("y" * 800_000).encode(), None)):
            with pytest.raises(botocore.exceptions.ClientError) as refused:
                invoke(payload)
            error = refused.value.response
            assert error["ResponseMetadata"]["HTTPStatusCode"] == 413, error
            assert error["Error"]["Code"] == "RequestEntityTooLargeException", error
            assert f"{len(payload)} byte payload is too large" in error["Error"]["Message"], error
            assert limit is None or f"limit {limit} bytes" in error["Error"]["Message"], error
        assert stats(server, name)["depth"] == 0
