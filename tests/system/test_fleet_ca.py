"""A fleet's certificates, by the command line: made, joined, renewed and denied, and what OpenSSL says of them."""

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess

import pytest

from conftest import BINARY

pytestmark = pytest.mark.process_only("certificates have nothing to do with sandboxes")


def fleet(*args, check=True, input=None):
    out = subprocess.run([str(BINARY), "fleet", *map(str, args)], capture_output=True, text=True, input=input, timeout=60)
    assert not check or out.returncode == 0, out.stdout + out.stderr
    return out


def refused(*args, **kwargs):
    out = fleet(*args, check=False, **kwargs)
    assert out.returncode != 0, out.stdout + out.stderr
    return out.stderr


def openssl(*args):
    if not shutil.which("openssl"):
        assert os.environ.get("EMBERBOX_REQUIRE_ALL") != "1", "openssl is not installed"
        pytest.skip("openssl is not installed")
    return subprocess.run(["openssl", *map(str, args)], capture_output=True, text=True, timeout=60)


def mode(path):
    return path.stat().st_mode & 0o777


class Authority:
    """A CA in a directory, and its join server."""

    def __init__(self, directory, *options):
        self.directory = directory
        self.made = json.loads(fleet("init", "--dir", directory, "--name", "test", "--json").stdout)
        self.process = subprocess.Popen(
            [str(BINARY), "fleet", "serve-join", "--dir", str(directory), "--listen", "127.0.0.1:0", *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        line = self.process.stdout.readline()
        self.address = re.search(r"127\.0\.0\.1:\d+", line)[0]
        assert self.made["fingerprint"] in line

    def token(self, *options):
        return fleet("token", "--dir", self.directory, "--address", self.address, *options).stdout.strip()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        _, log = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, log
        return log


@pytest.fixture
def authority(tmp_path):
    authority = Authority(tmp_path / "ca")
    yield authority
    if authority.process.poll() is None:
        authority.process.kill()
        authority.process.communicate()


def test_a_machine_joins(authority, tmp_path):
    ca = authority.directory
    assert mode(ca / "ca.key") == 0o600 and mode(ca) == 0o700
    assert "never overwritten" in refused("init", "--dir", ca)
    token = authority.token("--roles", "worker,pollers")
    assert re.fullmatch(r"emberbox-join-1\.[A-Za-z0-9_-]+", token)
    member = tmp_path / "member"
    # By stdin, where no other user's `ps` sees it.
    joined = json.loads(fleet("join", "-", "--id", "w-1", "--host", "10.0.0.7", "--host", "w-1.example.org", "--dir", member,
                              "--json", input=token + "\n").stdout)
    assert joined["id"] == "w-1" and joined["roles"] == ["pollers", "worker"] and joined["joinServer"] == authority.address
    assert {f.name: mode(f) for f in member.iterdir()} == {
        "ca.pem": 0o644, "fleet.json": 0o644, "member.key": 0o600, "member.pem": 0o644}
    assert (member / "ca.pem").read_text() == (ca / "ca.pem").read_text()
    ledger = (ca / "ledger.json").read_text()
    key = (member / "member.key").read_text()
    assert mode(ca / "ledger.json") == 0o600 and "BEGIN PRIVATE KEY" in key
    log = authority.stop()
    assert "w-1" in log and "joined the fleet" in log
    # Neither the token's secret nor the key is anywhere but where it belongs.
    body = token.split(".", 1)[1]
    secret = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))["s"]
    for text in (log, ledger):
        assert secret not in text and token not in text and key.splitlines()[1] not in text
    assert key.splitlines()[1] not in "".join(f.read_text() for f in ca.iterdir())


def test_openssl_agrees(authority, tmp_path):
    member = tmp_path / "member"
    fleet("join", authority.token("--roles", "frontend,worker"), "--id", "f-1", "--host", "10.0.0.7", "--dir", member)
    strict = "verify", "-x509_strict", "-CAfile", member / "ca.pem"
    for purpose in ("sslclient", "sslserver"):
        out = openssl(*strict, "-purpose", purpose, member / "member.pem")
        assert out.returncode == 0 and out.stdout.strip().endswith(": OK"), out.stdout + out.stderr
    text = openssl("x509", "-noout", "-text", "-in", member / "member.pem").stdout
    assert "URI:emberbox://fleet/frontend/f-1, URI:emberbox://fleet/worker/f-1, IP Address:10.0.0.7" in text
    assert "TLS Web Server Authentication, TLS Web Client Authentication" in text and "CA:FALSE" in text
    assert "CA:TRUE, pathlen:0" in openssl("x509", "-noout", "-text", "-in", member / "ca.pem").stdout
    fingerprint = openssl("x509", "-noout", "-fingerprint", "-sha256", "-in", member / "ca.pem").stdout
    assert fingerprint.split("=")[1].strip().replace(":", "").lower() == authority.made["fingerprint"]
    # The join server speaks TLS 1.3 with a chain that OpenSSL accepts, and nothing older.
    client = "s_client", "-connect", authority.address, "-CAfile", member / "ca.pem", "-verify_return_error"
    out = subprocess.run(["openssl", *map(str, client)], input="", capture_output=True, text=True, timeout=60)
    assert "Verify return code: 0 (ok)" in out.stdout and "TLSv1.3" in out.stdout, out.stdout + out.stderr
    out = subprocess.run(["openssl", *map(str, client), "-tls1_2"], input="", capture_output=True, text=True, timeout=60)
    assert out.returncode != 0
    # Renewed by a member's own tools: curl's TLS, or whichever, needs no more than these files.
    out = subprocess.run(
        ["openssl", *map(str, client), "-cert", member / "member.pem", "-key", member / "member.key", "-quiet"],
        input="POST /v1/renew HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}", capture_output=True, text=True, timeout=60)
    assert "400 Bad Request" in out.stdout and "InvalidRequest" in out.stdout, out.stdout + out.stderr


def test_tokens_that_are_not_good(authority, tmp_path):
    token = authority.token("--roles", "worker")
    member = "--dir", tmp_path / "member"
    assert "no token" in refused("join", "hello", *member)
    assert "damaged" in refused("join", token[:-3], *member)
    assert "not for frontend" in refused("join", token, "--roles", "frontend", *member)
    fleet("join", token, *member)
    assert "has joined a fleet" in refused("join", token, *member)
    assert "TokenUsedUp" in refused("join", token, "--dir", tmp_path / "other")
    short = authority.token("--roles", "worker", "--expires", "1ms")
    assert "ended" in refused("join", short, "--dir", tmp_path / "other")
    for bad in (["--expires", "31d"], ["--uses", "0"], ["--roles", "king"]):
        out = refused("token", "--dir", authority.directory, "--address", authority.address, "--roles", "worker", *bad)
        assert bad[0] in out, out
    assert "HOST:PORT" in refused("token", "--dir", authority.directory, "--address", "nowhere", "--roles", "worker")
    assert "fleet init" in refused("token", "--dir", tmp_path, "--address", authority.address, "--roles", "worker")


def test_another_authority_gets_no_secret(authority, tmp_path):
    other = Authority(tmp_path / "other-ca")
    try:
        # A token of this fleet that leads to another's server: as if somebody stood between.
        token = fleet("token", "--dir", authority.directory, "--address", other.address, "--roles", "worker").stdout
        error = refused("join", token, "--dir", tmp_path / "member")
        assert "nothing secret was sent" in error and authority.made["fingerprint"] in error, error
        assert "refused" not in other.stop(), "no request came"
    finally:
        other.process.kill()
        other.process.communicate()
    # Nobody there at all.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = "127.0.0.1:%d" % taken.getsockname()[1]
        token = fleet("token", "--dir", authority.directory, "--address", address, "--roles", "worker").stdout
        assert "Is it running" in refused("join", token, "--dir", tmp_path / "member")


def test_renewed_and_denied(tmp_path):
    # Of one minute's life and five minutes' start in the past, so that it is due at once.
    authority = Authority(tmp_path / "ca", "--life", "60s")
    try:
        member = tmp_path / "member"
        fleet("join", authority.token("--roles", "worker"), "--id", "w-1", "--dir", member)
        before, key = (member / "member.pem").read_text(), (member / "member.key").read_text()
        renewed = json.loads(fleet("renew", "--dir", member, "--json").stdout)
        assert renewed["renewed"] and renewed["id"] == "w-1"
        after = (member / "member.pem").read_text()
        assert after != before and (member / "member.key").read_text() == key
        fleet("deny", "w-1", "--dir", authority.directory)
        assert "MemberDenied" in refused("renew", "--dir", member)
        assert (member / "member.pem").read_text() == after
        (member / "member.key").chmod(0o644)
        assert "chmod 600" in refused("renew", "--dir", member)
        authority.stop()
    finally:
        authority.process.kill()
        authority.process.communicate()


def test_not_renewed_before_its_time(authority, tmp_path):
    member = tmp_path / "member"
    fleet("join", authority.token("--roles", "worker"), "--dir", member)
    before = (member / "member.pem").read_text()
    assert not json.loads(fleet("renew", "--dir", member, "--json").stdout)["renewed"]
    assert (member / "member.pem").read_text() == before
    authority.stop()
    assert "Is it running" in refused("renew", "--force", "--dir", member)
    assert (member / "member.pem").read_text() == before


def test_help_teaches():
    for command in ("init", "token", "join", "renew", "deny", "serve-join"):
        assert command in fleet("--help").stdout
    text = fleet("init", "--dir", "/proc/nowhere", check=False)
    assert text.returncode != 0 and "/proc/nowhere" in text.stderr
