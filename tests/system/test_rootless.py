"""`emberbox serve` by a user who is not root: it works, and says what is not enforced then."""

import os
import re
import socket
import threading

import pytest

from conftest import PYTHON, ROLE, Emberbox, invoke, wait_active, zip_bytes

pytestmark = [
    pytest.mark.needs("root", "setpriv", "unshare", "pasta", "nft"),
    pytest.mark.process_only("microVMs get their network from root"),
]

# Nobody, to whom no groups lend anything.
USER = 65534
# Where /dev/net/tun is only for root, this user gets a device of its own, as an administrator would open it.
BY = ["unshare", "--mount", "sh", "-c", """
    cp -a /dev/net/tun "$0/tun" && chmod 666 "$0/tun" && mount --bind "$0/tun" /dev/net/tun &&
    exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@" """]

CODE = """
import os, socket
def handler(event, context):
    out = {"uid": os.getuid(), "reached": []}
    for host, port in event["try"]:
        try:
            with socket.create_connection((host, port), 3) as s:
                out["reached"].append([host, port, s.recv(16).decode()])
        except OSError:
            pass
    open("/tmp/mine", "w").write("x")
    return out
"""


def own_address():
    """The address by which this host reaches others."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect(("1.1.1.1", 53))
        return s.getsockname()[0]


class Greeter:
    """Says its name to everybody who connects."""

    def __init__(self, name):
        self.name = name
        self.socket = socket.create_server(("0.0.0.0", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                peer, _ = self.socket.accept()
            except OSError:
                return
            with peer:
                peer.sendall(self.name)


@pytest.fixture
def rootless(tmp_path_factory):
    allowed, forbidden = Greeter(b"allowed"), Greeter(b"forbidden")
    config = f'[sandbox]\nnetwork = "egress"\nallow = ["{own_address()}:{allowed.port}"]\n'
    server = Emberbox(config=config, env={"HOME": "/nonexistent", "XDG_RUNTIME_DIR": ""})
    server.by = BY + [str(server.data_dir)]
    os.chown(server.data_dir, USER, USER)
    server.start()
    yield server, allowed, forbidden
    server.stop()
    server.remove()
    allowed.socket.close()
    forbidden.socket.close()


def test_a_user_who_is_not_root_can_serve(rootless):
    server, allowed, forbidden = rootless
    status = open(f"/proc/{server.process.pid}/status").read()
    assert re.search(rf"^Uid:\t{USER}\t{USER}\t{USER}\t{USER}$", status, re.M), status

    client = server.client()
    client.create_function(
        FunctionName="mine", Runtime=PYTHON, Handler="index.handler", Role=ROLE, Timeout=30,
        Code={"ZipFile": zip_bytes({"index.py": CODE})},
    )
    wait_active(client, "mine")
    own = own_address()
    # Of these the first alone is allowed; and the loopback of the host is not the sandbox's.
    targets = [(own, allowed.port), (own, forbidden.port), ("127.0.0.1", allowed.port), ("127.0.0.1", forbidden.port)]
    result = invoke(client, "mine", {"try": targets})
    assert result.error is None, result.body
    assert result.json == {"uid": 993, "reached": [[own, allowed.port, "allowed"]]}

    # What is so is said when it starts.
    log = server.log_path.read_text()
    assert "not root: functions run as the user of this process" in log, log
    assert re.search(r"memory, CPU and processes are not limited, sandboxes are not frozen", log), log
    assert "network: egress by one pasta process" in log, log
