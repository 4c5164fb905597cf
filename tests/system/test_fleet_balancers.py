"""Load balancers in front of a fleet's frontends: the real ones, with the very configuration in `deploy/`."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

import boto3
import botocore.config
import botocore.exceptions
import pytest

from conftest import PYTHON, REPO, ROLE, wait_until, zip_bytes
from test_fleet import Fleet

pytestmark = [
    pytest.mark.needs("root", "cgroups", "postgresql"),
    pytest.mark.process_only("what stands before the frontends does not see the kind of sandbox"),
]

KEY, SECRET, ACCOUNT = "AKIDBALANCED00000000", "a secret of this test", "123456789012"
FRONTENDS = 3
# Longer than nginx keeps an idle connection, and than HAProxy takes to see /readyz.
CONFIG = f"""
drain = "6s"
[[credentials]]
access_key_id = "{KEY}"
secret_access_key = "{SECRET}"
account = "{ACCOUNT}"
"""
CODE = "import time\ndef handler(event, context):\n    time.sleep(event.get('sleep', 0))\n    return event\n"
CALLERS = 6


class Balancer:
    """HAProxy or nginx, as Debian has it."""

    def __init__(self, program, backends):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix=f"emberbox-{program}-"))
        self.dir.chmod(0o711)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command = {"haproxy": self.haproxy, "nginx": self.nginx}[program](backends)
        self.log_path = self.dir / "log"
        self.start()

    def start(self):
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, start_new_session=True)
        wait_until(self.listens, what=f"{self.command[0]} listens")

    def listens(self):
        assert self.process.poll() is None, self.log_path.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def haproxy(self, backends):
        path = self.dir / "haproxy.cfg"
        text = (REPO / "deploy/haproxy/haproxy.cfg").read_text()
        path.write_text(self.addressed(text, r"^    server frontend-\d (\S+)(.*)$", "    server frontend-{n} {address}{rest}", backends))
        subprocess.run(["haproxy", "-c", "-f", path], check=True)
        return ["haproxy", "-db", "-f", path]

    def nginx(self, backends):
        text = (REPO / "deploy/nginx/emberbox.conf").read_text()
        (self.dir / "emberbox.conf").write_text(self.addressed(text, r"^    server (\d\S+)(.*)$", "    server {address}{rest}", backends))
        path = self.dir / "nginx.conf"
        temporary = "".join(f"{kind}_temp_path {self.dir}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "scgi", "uwsgi"))
        path.write_text(
            f"daemon off; pid {self.dir}/pid; error_log stderr;\nevents {{ }}\n"
            f"http {{\naccess_log off;\n{temporary}include {self.dir}/emberbox.conf;\n}}\n"
        )
        subprocess.run(["nginx", "-t", "-c", path, "-e", "stderr"], check=True)
        return ["nginx", "-c", path, "-e", "stderr"]

    def addressed(self, text, server, line, backends):
        """Only addresses and ports are others than in the file."""
        found = list(re.finditer(server, text, re.MULTILINE))
        assert len(found) == 2, "the file has two frontends"
        lines = [line.format(n=n, address=address, rest=found[0].group(2)) for n, address in enumerate(backends, 1)]
        text = text[: found[0].start()] + "\n".join(lines) + text[found[-1].end() :]
        assert text.count("127.0.0.1:4566") == 1
        return text.replace("127.0.0.1:4566", f"127.0.0.1:{self.port}")

    def client(self, secret=SECRET):
        # No attempt hides another one's failure.
        config = botocore.config.Config(retries={"total_max_attempts": 1}, read_timeout=60, connect_timeout=5)
        return boto3.client(
            "lambda", endpoint_url=f"http://127.0.0.1:{self.port}", region_name="us-east-1", config=config,
            aws_access_key_id=KEY, aws_secret_access_key=secret,
        )

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        shutil.rmtree(self.dir, ignore_errors=True)


class Load:
    """Callers that invoke one after the other, until told to stop."""

    def __init__(self, balancer, function):
        self.done, self.lost = [], []
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self.call, args=(balancer.client(), function, n)) for n in range(CALLERS)]
        [thread.start() for thread in self.threads]

    def call(self, client, function, caller):
        n = 0
        while not self.stopping.is_set():
            n += 1
            event = {"caller": caller, "n": n, "sleep": 0.05 * (n % 3)}
            began = time.monotonic()
            try:
                answer = client.invoke(FunctionName=function, Payload=json.dumps(event))
                assert json.loads(answer["Payload"].read()) == event
                self.done.append(began)
            except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
                self.lost.append((began, str(error)))

    def more(self, count):
        """Waits for this many more answers to requests that begin from now on."""
        now = time.monotonic()
        wait_until(lambda: sum(began >= now for began in list(self.done)) >= count, 60, f"{count} more answers")

    def stop(self):
        self.stopping.set()
        [thread.join(60) for thread in self.threads]


def gone(pid):
    """Ended with all its threads, and so with its sockets, whether or not its parent has noticed."""
    try:
        status = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return status[0] == "Z" and int(status[17]) <= 1
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize(
    "program", [pytest.param(program, marks=pytest.mark.needs(program)) for program in ("haproxy", "nginx")]
)
def test_a_frontend_stops_without_loss_and_dies_with_no_more_than_it_had(program):
    fleet = Fleet("--frontends", str(FRONTENDS), config=CONFIG)
    balancer = load = None
    try:
        balancer = Balancer(program, [endpoint.removeprefix("http://") for endpoint in fleet.endpoints])
        client = balancer.client()

        # Signatures, the Host header among what they cover, and paths with characters that proxies like to rewrite.
        client.create_function(
            FunctionName="f", Runtime=PYTHON, Role=ROLE, Handler="index.handler", MemorySize=128, Timeout=30,
            Code={"ZipFile": zip_bytes({"index.py": CODE})},
        )
        client.get_waiter("function_active_v2").wait(FunctionName="f", WaiterConfig={"Delay": 1})
        assert client.get_function(FunctionName=f"arn:aws:lambda:us-east-1:{ACCOUNT}:function:f")["Configuration"]["State"] == "Active"
        assert client.list_tags(Resource=f"arn:aws:lambda:us-east-1:{ACCOUNT}:function:f")["Tags"] == {}
        with pytest.raises(botocore.exceptions.ClientError, match="InvalidSignature|signature"):
            balancer.client(secret="another").get_function(FunctionName="f")
        # Where the caller sees the fleet, not which frontend it was.
        location = client.get_function(FunctionName="f")["Code"]["Location"]
        assert location.startswith(f"http://127.0.0.1:{balancer.port}/")
        assert subprocess.run(["curl", "-sf", location], capture_output=True, check=True).stdout[:2] == b"PK"
        big = {"text": "x" * 5_000_000}
        assert json.loads(client.invoke(FunctionName="f", Payload=json.dumps(big))["Payload"].read()) == big
        page = subprocess.run(
            ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"http://127.0.0.1:{balancer.port}/metrics"], capture_output=True, check=True
        )
        assert page.stdout == b"404", "the operator's pages are not for callers"

        load = Load(balancer, "f")
        load.more(60)
        fleet.kill("frontend-1", signal.SIGTERM)
        wait_until(lambda: gone(fleet.pids["frontend-1"]), 60, "the frontend has stopped")
        load.more(60)
        assert load.lost == [], f"of {len(load.done)} requests"
        stopped = len(load.done)

        fleet.kill("frontend-2", signal.SIGKILL)
        wait_until(lambda: gone(fleet.pids["frontend-2"]), what="the frontend is dead")
        dead = time.monotonic()
        load.more(120)
        load.stop()
        assert len(load.lost) <= CALLERS, load.lost
        assert all(began <= dead for began, _ in load.lost), f"lost after the death at {dead}: {load.lost}"
        print(f"{program}: {stopped} requests over a stop, none lost; over a death {len(load.done) - stopped}, lost {len(load.lost)}")
    except BaseException:
        print(fleet.log())
        if balancer:
            print(balancer.log_path.read_text()[-4000:])
        raise
    finally:
        if load:
            load.stop()
        if balancer:
            balancer.stop()
        fleet.remove()
