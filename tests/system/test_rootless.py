"""`emberbox serve` by a user who is not root: functions run, what holds without root holds, what does not is said, and nothing
is left. The attacks are those of test_attacks.py, on this server."""

import contextlib
import functools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess

import pytest

import test_attacks
from conftest import BINARY, ECHO, NOBODY, PYTHON, ROLE, RUNTIMES, Emberbox, invoke, running, wait_active, wait_until, zip_bytes
from test_clients import RUST_ECHO
from test_emberbox_cli import cli

pytestmark = [
    pytest.mark.process_only("microVMs without root are those of crates/sandbox"),
    pytest.mark.needs("root", "setpriv", "unshare", "rootless"),
]

# Whoever runs this may keep /dev/net/tun for root: this user gets one of its own to open, or none, in a mount namespace.
LAUNCHER = """cp -a /dev/net/tun "$0/tun" && chmod $1 "$0/tun" && mount --bind "$0/tun" /dev/net/tun; shift
exec setpriv %s -- "$@" """ % " ".join(NOBODY)


class Rootless(Emberbox):
    """A server of the user nobody's, with files that all are his."""

    def __init__(self, tun=0o666, offline=False, **kwargs):
        super().__init__(**kwargs)
        self.binary = self.data_dir / "emberbox"
        shutil.copy(BINARY, self.binary)
        for installed, which in (("runtimes", PYTHON + "-*"), ("roots", "*")):
            (self.data_dir / installed).mkdir()
            command = ["cp", "-a", "--reflink=auto", *(RUNTIMES / installed).glob(which), self.data_dir / installed]
            if len(command) > 4:  # else it installs what it needs itself
                subprocess.run(command, check=True)
        subprocess.run(["chown", "-R", "65534:65534", self.data_dir], check=True)
        if offline:
            # This user may find another interpreter than the one for which the copied runtime is, and cannot install one later.
            install = [self.binary, "runtime", "install", PYTHON, "--data-dir", self.data_dir]
            subprocess.run(["setpriv", *NOBODY, "--", *install], check=True, cwd="/", env={"PATH": os.environ["PATH"], "HOME": str(self.data_dir)})
        launcher = ["unshare", "--mount", "--net"] if offline else ["unshare", "--mount"]
        script = "ip link set lo up; " + LAUNCHER if offline else LAUNCHER
        self.prefix = [*launcher, "sh", "-c", script, str(self.data_dir), oct(tun)[2:]]

    def doctor(self):
        command = [*self.prefix, self.binary, "doctor", "--json", "--data-dir", self.data_dir]
        out = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return {found["name"]: found for found in json.loads(out.stdout)}, out.returncode

    def processes(self):
        """Of the server and all that it has started: number and time of start."""
        parents, started = {}, {}
        for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                head, _, tail = path.read_text().rpartition(")")
                pid, fields = int(head.split(" ")[0]), tail.split()
                parents[pid], started[pid] = int(fields[1]), fields[19]

        def descends(pid):
            while pid in parents and pid != self.process.pid:
                pid = parents[pid]
            return pid == self.process.pid

        return {(pid, started[pid]) for pid in filter(descends, parents)}


def alive(processes):
    def start(pid):
        with contextlib.suppress(OSError):
            return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]

    return {(pid, started) for pid, started in processes if start(pid) == started}


rootless = functools.partial(running, Rootless)


@pytest.fixture(scope="module")
def emberbox():
    with rootless() as server:
        yield server


@pytest.fixture(scope="module")
def client(emberbox):
    return emberbox.client()


# Walls that take no root: user ids, capabilities, seccomp, file systems, namespaces, limits of processes and of /tmp.
test_identity = test_attacks.test_identity_has_no_powers
test_host_files = test_attacks.test_host_files_are_not_there
test_writing = test_attacks.test_nothing_but_tmp_can_be_written
test_host_and_neighbours = test_attacks.test_host_and_neighbours_cannot_be_reached
test_namespaces = test_attacks.test_namespaces_are_the_functions_own
test_neighbours_files = test_attacks.test_neighbours_tmp_and_code_are_apart
test_fork_bomb = test_attacks.test_fork_bomb_is_bounded
test_disk_filler = test_attacks.test_disk_filler_stops_at_ephemeral_storage
test_lies = test_attacks.test_a_runtime_that_lies


def test_kernel_doors_are_shut(client, function):
    """PID 1 has the function's user id here, so that a signal may be sent to it; the kernel lets none of them end it."""
    assert test_attacks.open_doors(client, function) == ["kill_init"]
    name = function("import os\ndef handler(e, c):\n    os.kill(1, 9)\n    return os.getpid()\n")
    assert invoke(client, name).json == invoke(client, name).json, "the same process, so the same sandbox"


def test_functions_are_deployed_and_run(emberbox, tmp_path):
    def ember(*args):
        return cli(*args, endpoint=emberbox.endpoint)

    (tmp_path / "app.py").write_text('import os\ndef handler(event, context):\n    print("said", event)\n    return [event, os.getuid()]\n')
    ember("deploy", tmp_path, "--name", "python", "--runtime", PYTHON)
    for n in range(3):
        out = ember("invoke", "python", str(n), "--tail")
        assert json.loads(out.stdout) == [n, 993] and f"said {n}" in out.stderr, "the user that functions know themselves as"
        assert 5 < int(re.search(r"Max Memory Used: (\d+) MB", out.stderr)[1]) <= 128, out.stderr
    assert RUST_ECHO.exists(), f"{RUST_ECHO} is built by `cargo xtask test`"
    ember("deploy", RUST_ECHO, "--name", "rust")
    for n in range(3):
        assert json.loads(ember("invoke", "rust", f'{{"n": {n}}}').stdout) == {"n": n}


def test_limits_of_time_and_of_files_hold(client, function):
    name = function(
        """
import os, time
def handler(event, context):
    if event == "hang":
        time.sleep(30)
    files = []
    try:
        while len(files) < 5000:
            files.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    for file in files:
        os.close(file)
    return len(files)
""",
        Timeout=3,
    )
    assert 1000 < invoke(client, name, "x").json < 1024
    assert "timed out after 3.00 seconds" in invoke(client, name, "hang").json["errorMessage"]
    assert 1000 < invoke(client, name, "x").json < 1024, "it serves again"


def test_what_is_not_enforced_is_said(emberbox):
    """By the log and by `doctor`."""
    log = emberbox.log_path.read_text()
    assert "not root: functions run as the user of this process" in log, log
    found, code = emberbox.doctor()
    assert code == 0, "functions can run here"
    assert found["user namespaces"]["status"] == "ok" and found["seccomp"]["status"] == "ok"
    assert found["root"]["status"] == "warning" and "run as root" in found["root"]["remedy"]
    if found["cgroups"]["status"] == "ok":
        assert "limits and freezing are enforced" in log, log
    else:
        assert found["cgroups"]["status"] == "warning" and "may not write" in found["cgroups"]["detail"], found["cgroups"]
        assert "cgroups cannot be used" in log and "memory and CPU are not limited, sandboxes are not frozen" in log, log
    assert "/tmp is in memory and counts as such" in log, log


CONNECT = """
import socket
def reached(address, port):
    try:
        socket.create_connection((address, port), 2).close()
        return True
    except OSError:
        return False
def handler(e, c):
    return {"reached": [reached(*target) for target in e], "devices": sorted(name for _, name in socket.if_nameindex())}
"""


@pytest.mark.needs("egress", "pasta")
def test_egress_through_pasta():
    """An address of this host's that no default route has plays the internet; pasta leads to it, the filter to one port of it."""
    address = "203.0.113.77"
    subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
    try:
        with socket.create_server((address, 0)) as allowed, socket.create_server(("0.0.0.0", 0)) as forbidden:
            ports = allowed.getsockname()[1], forbidden.getsockname()[1]
            config = f'stop_limit = "0s"\n[sandbox]\nallow = ["{address}:{ports[0]}"]\n'
            with rootless(config=config) as server:
                assert "network: egress by one pasta process for each sandbox" in server.log_path.read_text()
                found, _ = server.doctor()
                assert found["pasta"]["status"] == "ok", found["pasta"]
                client = create(server, CONNECT)
                seen = invoke(client, "f", [[address, ports[0]], [address, ports[1]], ["127.0.0.1", ports[1]], ["10.0.0.1", ports[1]]]).json
                assert seen == {"reached": [True, False, False, False], "devices": ["eth0", "lo"]}
    finally:
        subprocess.run(["ip", "address", "del", f"{address}/32", "dev", "lo"], check=True)


def test_without_a_way_out_functions_have_loopback():
    """Here for the want of /dev/net/tun; without pasta it is the same."""
    with rootless(tun=0o600) as server:
        log = server.log_path.read_text()
        assert "network: none, functions have loopback only: without root, " in log, log
        found, code = server.doctor()
        assert found["pasta"]["status"] == "warning" and "passt" in found["pasta"]["remedy"] and code == 0, found["pasta"]
        seen = invoke(create(server, CONNECT), "f", [["1.1.1.1", 53]]).json
        assert seen == {"reached": [False], "devices": ["lo"]}


@pytest.mark.needs("egress", "pasta", "nsenter")
def test_functions_run_while_the_host_is_offline(tmp_path):
    """With pasta, which then has nothing to connect them with. The server is in a network that has loopback alone."""
    (tmp_path / "index.py").write_text(CONNECT)
    with rootless(offline=True) as server:

        def ember(*args):
            inside = ["nsenter", f"--net=/proc/{server.process.pid}/ns/net", BINARY, *args, "--endpoint", server.endpoint]
            out = subprocess.run(inside, capture_output=True, text=True, timeout=120)
            assert out.returncode == 0, out.stderr
            return out.stdout

        assert "this host has no default route; until it has, new sandboxes have loopback only" in server.log_path.read_text()
        ember("deploy", tmp_path, "--name", "f", "--runtime", PYTHON)
        assert json.loads(ember("invoke", "f", '[["1.1.1.1", 53]]')) == {"reached": [False], "devices": ["lo"]}


def create(server, code):
    client = server.client()
    client.create_function(
        FunctionName="f", Runtime=PYTHON, Handler="index.handler", Role=ROLE, Timeout=20, Code={"ZipFile": zip_bytes({"index.py": code})}
    )
    wait_active(client, "f")
    return client


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stop", "kill"])
def test_nothing_outlives_the_server(how):
    with rootless() as server:
        assert invoke(create(server, ECHO), "f", 1).json == 1
        processes = server.processes()
        assert len(processes) > 3, "the server, its helper, sandboxes"
        code = server.stop(how)
        assert how == signal.SIGKILL or code == 0
        wait_until(lambda: not alive(processes), 15, f"no process is left after {how!r}")
        wait_until(lambda: not test_attacks.leftovers(server.data_dir), 10, "neither a process nor a mount names its directory")
