"""What a member of a fleet may and may not: by the database, by its keys, and once it was denied."""

import pathlib
import re
import subprocess
import tomllib

import pytest

from conftest import BINARY, wait_until
from test_fleet import Fleet, create, invoke

pytestmark = [
    pytest.mark.needs("root", "cgroups", "postgresql"),
    pytest.mark.process_only("who may what does not differ with the kind of sandbox"),
]


@pytest.fixture
def fleet(request):
    fleet = Fleet("--frontends", "1", "--managers", "1", "--workers", "2")
    yield fleet
    if request.session.testsfailed:
        print(fleet.log())
    fleet.remove()


def psql(url, sql):
    program = next(pathlib.Path("/usr/lib/postgresql").glob("*/bin/psql"))
    return subprocess.run([program, "-XAtq", "-v", "ON_ERROR_STOP=1", url, "-c", sql], capture_output=True, text=True, timeout=60)


def database(fleet, name):
    return tomllib.loads((fleet.dir / name / "emberbox.toml").read_text())["cluster"]["database"]


def test_workers_have_no_right_to_the_metadata(fleet):
    client = fleet.client()
    create(client, "f", Environment={"Variables": {"STAGE": "secret"}})
    assert invoke(client, "f", n=1) == {"stage": "secret", "sandbox": invoke(client, "f")["sandbox"], "n": 1}, "such a worker serves"
    worker = database(fleet, "worker-1")
    assert worker != database(fleet, "frontend-1") and "emberbox_worker" in worker
    tables = psql(fleet.url, "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')")
    tables = tables.stdout.split()
    members = [table for table in tables if table.startswith("emberbox_members.")]
    others = [table for table in tables if table not in members]
    assert len(members) >= 2 and any(table.startswith("emberbox_metadata.") for table in others) and any(table.startswith("public.") for table in others), tables
    for table in members:
        assert psql(worker, f"SELECT * FROM {table}").returncode == 0, table
    for table in others:
        for sql in (f"SELECT * FROM {table}", f"DELETE FROM {table}", f"INSERT INTO {table} DEFAULT VALUES", f"DROP TABLE {table}"):
            refused = psql(worker, sql)
            assert refused.returncode != 0 and re.search("permission denied|must be owner", refused.stderr), f"{sql}: {refused.stderr}"
    # One that comes anew, with the tables that are there.
    fleet.replace("worker-1")
    assert invoke(client, "f", n=2)["n"] == 2


def test_a_member_with_other_keys_does_not_start(fleet):
    client = fleet.client()
    create(client, "f", Environment={"Variables": {"STAGE": "1"}})
    path = fleet.dir / "pollers-1" / "emberbox.toml"
    config = path.read_text()
    keys = tomllib.loads(config)["secrets_file"]
    other = fleet.dir / "other.key"
    other.write_text(subprocess.run(["openssl", "rand", "-base64", "32"], capture_output=True, text=True, check=True).stdout)
    other.chmod(0o600)
    fleet.kill("pollers-1", 15)
    wait_until(lambda: "pollers-1 has ended" in fleet.log_path.read_text(errors="replace"), what="pollers-1 has stopped")
    path.write_text(config.replace(keys, str(other)))
    out = subprocess.run([str(BINARY), "serve", "--config", str(path)], capture_output=True, text=True, timeout=120)
    assert out.returncode != 0, out.stdout
    ids = re.search(r"with the key ([0-9a-f]{12}), and (\S+), which .* has ([0-9a-f]{12})", " ".join(out.stderr.split()))
    assert ids and ids[1] != ids[3] and ids[2] == str(other), out.stderr
    # With the right ones it does; and nothing was changed.
    path.write_text(config)
    with open(fleet.log_path, "ab") as log:
        process = subprocess.Popen([str(BINARY), "serve", "--config", str(path)], stdout=subprocess.PIPE, stderr=log)
    fleet.replaced.append(process)
    assert b"is ready" in process.stdout.readline(), fleet.log()
    assert invoke(client, "f")["stage"] == "1"


def test_a_member_that_is_denied_is_shut_out(fleet):
    client = fleet.client()
    create(client, "f")
    invoke(client, "f")
    out = subprocess.run([str(BINARY), "fleet", "deny", "worker-1", "--dir", str(fleet.dir / "ca")], capture_output=True, text=True, timeout=60)
    assert out.returncode == 0, out.stderr
    log = lambda: fleet.log_path.read_text(errors="replace")
    # It is in the views still, as it beats; nobody calls it.
    wait_until(lambda: len(re.findall(r"worker-manager-1.*the members that were denied are others", log())) == 1, what="the manager knows", timeout=120)
    wait_until(lambda: len(re.findall(r"frontend-1.*the members that were denied are others", log())) == 1, what="the frontend knows", timeout=120)
    # Not only its new ones: the connections that there were are ended, by whoever has them.
    wait_until(lambda: re.search(r"cut off a connection: this member was denied.*worker-1\b", log()), what="it is cut off", timeout=30)
    for n in range(5):
        assert invoke(client, "f", n=n)["n"] == n, "the other worker serves"
