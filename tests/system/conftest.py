"""Whole-system tests: the real binary, real clients, real runtimes, real isolation.

Each test process starts one Emberbox of its own on port 0 with its own data directory; the installed runtimes are
shared through one runtime directory because installing them takes a minute. Nothing here sleeps for a fixed time:
`wait_until` polls a condition.
"""

import base64
import contextlib
import ctypes
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
import zipfile

import boto3
import botocore.config
import pytest

from aws_cli import Cli

REPO = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("EMBERBOX_BINARY", REPO / "target/debug/emberbox"))
RUNTIMES = pathlib.Path(os.environ.get("EMBERBOX_TEST_RUNTIMES", REPO / "target/system"))
# Of the suite's own packages, which may not be on the PATH.
AWS_CLI = pathlib.Path(sys.executable).parent / "aws"
ROLE = "arn:aws:iam::000000000000:role/lambda"
# The version under test, among those of this host.
PYTHON = os.environ.get("EMBERBOX_TEST_PYTHON", "python3.%d" % sys.version_info[1])
# "microvm" runs the suite's functions in virtual machines, by software emulation, so that any host can.
ISOLATION = os.environ.get("EMBERBOX_TEST_ISOLATION", "process")
KERNEL = pathlib.Path(os.environ.get("EMBERBOX_TEST_KERNEL", REPO / "target/guest-kernel/vmlinux"))
VSOCK_DEVICE = REPO / "target/tools/bin/vhost-device-vsock"
# Options of setpriv: a user who is not root, and whom the host lends no further ids.
NOBODY = ["--reuid=65534", "--regid=65534", "--clear-groups"]


def with_isolation(config):
    """The configuration of a test, with microVMs if the suite is to use them."""
    if ISOLATION != "microvm":
        return config
    if "[sandbox]" not in config:
        config += "\n[sandbox]\n"
    config = config.replace("[sandbox]\n", '[sandbox]\nisolation = "microvm"\n', 1)
    if "[microvm]" not in config:
        # Emulated boots in advance would take the processors from the tests that run. Those of test_pool.py want them.
        config += "\n[microvm]\npool = 0\n"
    settings = f'accel = "tcg"\nkernel = "{KERNEL}"\n'
    if VSOCK_DEVICE.exists():
        settings += f'vsock_device = "{VSOCK_DEVICE}"\n'
    return config.replace("[microvm]\n", "[microvm]\n" + settings, 1)


def have(what):
    """Whether the host has `what`; the names are those of the `needs` marker."""
    if what == "root":
        return os.geteuid() == 0
    if what == "cgroups":
        return os.path.isdir("/sys/fs/cgroup/memory") or os.path.exists("/sys/fs/cgroup/cgroup.controllers")
    if what == "egress":
        return os.geteuid() == 0 and shutil.which("nft") and shutil.which("ip")
    if what == "landlock":
        # landlock_create_ruleset(NULL, 0, LANDLOCK_CREATE_RULESET_VERSION)
        return ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1) > 0
    if what == "rootless":  # the kernel lets everybody make user namespaces
        command = ["setpriv", *NOBODY, "--", "unshare", "--user", "--map-root-user", "--mount", "true"]
        return subprocess.run(command, capture_output=True).returncode == 0
    if what == "postgresql":
        return any(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return shutil.which(what) is not None


# Software emulation takes so many times longer; what is waited for is the same.
PATIENCE = 4 if ISOLATION == "microvm" else 1


def other_isolation(item):
    """Why a test is none for this kind of sandbox; None if it is one. The reasons stand where the tests are."""
    marker = item.get_closest_marker("process_only" if ISOLATION == "microvm" else "microvm_only")
    return marker and marker.args[0]


# Takes longest, and mostly of one processor: begins first, so that nobody waits for it alone at the end.
FIRST = "test_terraform.py"


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.path.name != FIRST)
    left_out = {item.nodeid: why for item in items if (why := other_isolation(item))}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in left_out])
    items[:] = [item for item in items if item.nodeid not in left_out]
    config.left_out = left_out
    if hasattr(config, "workeroutput"):
        config.workeroutput["left_out"] = left_out


def pytest_terminal_summary(terminalreporter, config):
    """By name what was not run, and why; a whole file that has one reason, once."""
    by_file = {}
    for nodeid, why in getattr(config, "left_out", {}).items():
        by_file.setdefault((nodeid.partition("::")[0], why), []).append(nodeid.partition("::")[2])
    if by_file:
        terminalreporter.section("not run in microVMs" if ISOLATION == "microvm" else "for microVMs only")
    for (file, why), names in by_file.items():
        whole = f"{len(names)} tests" if len(names) > 5 else ", ".join(names)
        terminalreporter.line(f"{file}: {whole}: {why}")


def pytest_runtest_setup(item):
    for marker in item.iter_markers("needs"):
        for what in marker.args:
            if not have(what):
                message = f"SKIPPED {item.name}: needs {what}"
                if os.environ.get("EMBERBOX_REQUIRE_ALL"):
                    pytest.fail(message + ", and EMBERBOX_REQUIRE_ALL is set")
                pytest.skip(message)


class LeftOut:
    """Of pytest-xdist: what the processes that run the tests have left out."""

    def __init__(self, config):
        self.config = config

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        self.config.left_out = getattr(node, "workeroutput", {}).get("left_out", {})


def pytest_configure(config):
    config.pluginmanager.register(LeftOut(config))


def wait_until(condition, timeout=30.0, what="condition"):
    """Polls until `condition()` is true and returns its value."""
    timeout *= PATIENCE
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(0.02)


class Emberbox:
    """One `emberbox serve` process."""

    def __init__(self, data_dir=None, config="", args=(), env=None, listen="127.0.0.1:0"):
        self.own_dir = data_dir is None
        self.data_dir = pathlib.Path(data_dir or tempfile.mkdtemp(prefix="emberbox-test-"))
        self.config = config
        self.args = list(args)
        self.listen = listen
        self.env = env or {}
        self.endpoint = None
        self.process = None
        self.log_path = self.data_dir / "serve.log"
        self.binary, self.prefix = BINARY, []

    def start(self):
        RUNTIMES.mkdir(parents=True, exist_ok=True)
        for shared in ("runtimes", "roots"):
            link = self.data_dir / shared
            (RUNTIMES / shared).mkdir(exist_ok=True)
            if not link.exists():
                link.symlink_to(RUNTIMES / shared)
        config = self.data_dir / "emberbox.toml"
        config.write_text(with_isolation(self.config))
        command = [*self.prefix, str(self.binary), "serve", "--listen", self.listen, "--data-dir", str(self.data_dir), "--config", str(config)]
        log = open(self.log_path, "ab")
        self.process = subprocess.Popen(
            command + self.args, stdout=subprocess.PIPE, stderr=log, env={**os.environ, **self.env}, start_new_session=True
        )
        for line in self.process.stdout:
            text = line.decode()
            log.write(line)
            log.flush()
            if "AWS_ENDPOINT_URL_LAMBDA=" in text:
                self.endpoint = text.split("AWS_ENDPOINT_URL_LAMBDA=")[1].split()[0].strip().strip('"')
                return self
        raise AssertionError(f"emberbox serve did not start:\n{self.log_path.read_text()[-3000:]}")

    def stop(self, sig=signal.SIGTERM, timeout=30):
        """Stops it and returns its exit code."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError("emberbox did not stop on SIGTERM:\n" + self.log_path.read_text()[-3000:])
        self.process.stdout.close()
        return code

    def remove(self):
        if self.own_dir:
            shutil.rmtree(self.data_dir, ignore_errors=True)

    def client(self, service="lambda", account="000000000000", secret="test", region="us-east-1", **config):
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name=region,
            aws_access_key_id=account,
            aws_secret_access_key=secret,
            config=botocore.config.Config(
                retries={"total_max_attempts": 1}, read_timeout=120, max_pool_connections=64, **config
            ),
        )


@contextlib.contextmanager
def running(kind=Emberbox, **kwargs):
    """An Emberbox of a test's own."""
    server = kind(**kwargs)
    try:
        yield server.start()
    finally:
        if server.process and server.process.poll() is None:
            server.stop()
        server.remove()


@pytest.fixture(scope="session")
def emberbox():
    with running() as server:
        yield server


@pytest.fixture(scope="session")
def aws_cli():
    """Commands of the AWS CLI without its start: see aws_cli.py."""
    cli = Cli()
    yield cli
    cli.stop()


@pytest.fixture(scope="session")
def client(emberbox):
    return emberbox.client()


def zip_bytes(files):
    """A zip of {name: text, bytes or (bytes, mode)}."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            mode = 0o644
            if isinstance(content, tuple):
                content, mode = content
            info = zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0))
            info.external_attr = (0o100000 | mode) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return out.getvalue()


class Invoked:
    """The interesting parts of an Invoke response."""

    def __init__(self, response):
        self.response = response
        self.status = response["StatusCode"]
        self.error = response.get("FunctionError")
        self.version = response.get("ExecutedVersion")
        self.body = response["Payload"].read()
        self.log = base64.b64decode(response.get("LogResult", "")).decode(errors="replace")
        self.request_id = response["ResponseMetadata"]["RequestId"]

    @property
    def json(self):
        return json.loads(self.body)


def invoke(client, name, payload=None, **kwargs):
    if payload is not None:
        kwargs["Payload"] = payload if isinstance(payload, bytes) else json.dumps(payload)
    return Invoked(client.invoke(FunctionName=name, **kwargs))


def wait_active(client, name, timeout=180):
    """As the SDKs' waiters do, but polling faster: the state is Active and no update is in progress."""

    def ready():
        c = client.get_function_configuration(FunctionName=name)
        assert c.get("State") != "Failed" and c.get("LastUpdateStatus") != "Failed", c
        return c.get("State") == "Active" and c.get("LastUpdateStatus") == "Successful"

    wait_until(ready, timeout, f"{name} active")


@pytest.fixture
def function(client):
    """Creates functions that are deleted after the test: `function(code, **settings)` returns the name."""
    names = []

    def create(code, runtime=PYTHON, handler="index.handler", files=None, on=None, name=None, wait=True, **settings):
        target = on or client
        name = name or "f-" + uuid.uuid4().hex[:12]
        if files is None:
            files = {"index.py": code}
        if ISOLATION == "microvm":
            # AWS's three seconds, of a processor that is emulated: what crashed is initialised again within them.
            settings.setdefault("Timeout", 3 * PATIENCE)
        target.create_function(
            FunctionName=name, Runtime=runtime, Handler=handler, Role=ROLE, Code={"ZipFile": zip_bytes(files)}, **settings
        )
        names.append((target, name))
        if wait:
            wait_active(target, name)
        return name

    yield create
    for target, name in names:
        with contextlib.suppress(Exception):
            target.delete_function(FunctionName=name)


ECHO = "def handler(event, context):\n    return event\n"
