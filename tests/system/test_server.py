"""The server as an operator meets it: start, stop, crash, credentials, TLS, configuration mistakes."""

import concurrent.futures
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time
import urllib.request

import botocore.exceptions
import pytest

from conftest import BINARY, ECHO, PYTHON, ROLE, Emberbox, invoke, running, wait_active, wait_until, zip_bytes

CREDENTIALS = """
[[credentials]]
access_key_id = "AKIDALICE00000000000"
secret_access_key = "alice-secret"
account = "111111111111"

[[credentials]]
access_key_id = "AKIDBOB0000000000000"
secret_access_key = "bob-secret"
account = "222222222222"
"""


def create(client, name="f", code=ECHO, **settings):
    client.create_function(
        FunctionName=name, Runtime=PYTHON, Handler="index.handler", Role=ROLE,
        Code={"ZipFile": zip_bytes({"index.py": code})}, **settings,
    )
    wait_active(client, name)


def test_ready_in_under_a_second_and_prints_the_line_to_paste():
    with running() as first:  # installs what is missing
        pass
    server = Emberbox()
    started = time.monotonic()
    server.start()
    took = time.monotonic() - started
    try:
        assert server.endpoint.startswith("http://127.0.0.1:")
        assert json.loads(json.dumps(urllib.request.urlopen(server.endpoint + "/healthz").status)) == 200
        assert took < 1.0, f"{took:.2f} s"
    finally:
        assert server.stop() == 0
        server.remove()


def test_functions_survive_kill_9_and_restart():
    with tempfile.TemporaryDirectory() as directory:
        server = Emberbox(data_dir=directory).start()
        client = server.client()
        create(client, "kept")
        client.publish_version(FunctionName="kept")
        client.create_alias(FunctionName="kept", Name="live", FunctionVersion="1")
        server.stop(signal.SIGKILL)
        server = Emberbox(data_dir=directory).start()
        try:
            assert invoke(server.client(), "kept:live", 5).json == 5
        finally:
            server.stop()


def test_graceful_stop_finishes_running_invocations():
    with running() as server:
        client = server.client()
        create(client, code="import time\ndef handler(e, c):\n    time.sleep(e)\n    return 'done'\n", Timeout=20)
        invoke(client, "f", 0)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pending = pool.submit(invoke, client, "f", 2)
            time.sleep(0.5)
            server.process.send_signal(signal.SIGTERM)
            assert pending.result().json == "done"
        assert server.process.wait(20) == 0


def test_a_stop_ends_at_its_limit():
    """What runs longer than `stop_limit` is cut off; the server does not wait for it a second time, part by part."""
    with running(config='stop_limit = "1s"\n') as server:
        client = server.client()
        create(client, code="import time\ndef handler(e, c):\n    print('begun', flush=True)\n    time.sleep(e)\n", Timeout=60)
        invoke(client, "f", 0)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            pending = pool.submit(invoke, client, "f", 50)
            client.invoke(FunctionName="f", InvocationType="Event", Payload="50")
            logs = server.client("logs")

            def begun():
                events = logs.filter_log_events(logGroupName="/aws/lambda/f")["events"]
                return sum(event["message"] == "begun\n" or event["message"] == "begun" for event in events) == 3

            wait_until(begun, what="both run")
            started = time.monotonic()
            assert server.stop() == 0
            took = time.monotonic() - started
            with pytest.raises(botocore.exceptions.HTTPClientError):
                pending.result()
        assert 1 <= took < 8, f"{took:.1f} s"
        assert "for 1 s at most" in server.log_path.read_text()


def test_two_servers_do_not_share_a_data_directory():
    with running() as server:
        second = subprocess.run(
            [BINARY, "serve", "--listen", "127.0.0.1:0", "--data-dir", server.data_dir], capture_output=True, text=True, timeout=20
        )
        assert second.returncode != 0 and str(server.data_dir) in second.stderr


def test_without_credentials_only_loopback():
    out = subprocess.run([BINARY, "serve", "--listen", "0.0.0.0:0"], capture_output=True, text=True, timeout=20)
    assert out.returncode != 0 and "credentials" in out.stderr


def test_signatures_are_verified_and_accounts_apart():
    with running(config=CREDENTIALS) as server:
        alice = server.client(account="AKIDALICE00000000000", secret="alice-secret")
        bob = server.client(account="AKIDBOB0000000000000", secret="bob-secret")
        create(alice)
        assert alice.get_function(FunctionName="f")["Configuration"]["FunctionArn"].split(":")[4] == "111111111111"
        assert bob.list_functions()["Functions"] == []
        for account, secret, code in (
            ("AKIDALICE00000000000", "wrong", "InvalidSignatureException"),
            ("AKIDNOBODY0000000000", "x", "UnrecognizedClientException"),
        ):
            with pytest.raises(botocore.exceptions.ClientError) as caught:
                server.client(account=account, secret=secret).list_functions()
            assert caught.value.response["Error"]["Code"] == code
            assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(server.endpoint + "/2015-03-31/functions")
        assert caught.value.code == 403
        presigned = alice.generate_presigned_url("list_functions", ExpiresIn=60)
        assert len(json.load(urllib.request.urlopen(presigned))["Functions"]) == 1
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(presigned.replace("X-Amz-Expires=60", "X-Amz-Expires=600"))
        location = alice.get_function(FunctionName="f")["Code"]["Location"]
        assert urllib.request.urlopen(location).read()[:2] == b"PK"
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(location[:-4] + "0000")


@pytest.mark.needs("openssl")
def test_tls():
    with tempfile.TemporaryDirectory() as directory:
        cert, key = pathlib.Path(directory, "cert.pem"), pathlib.Path(directory, "key.pem")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2",
             "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"],
            check=True, capture_output=True,
        )
        with running(config=f'[tls]\ncert = "{cert}"\nkey = "{key}"\n') as server:
            assert server.endpoint.startswith("https://127.0.0.1:")
            import boto3

            client = boto3.client(
                "lambda", endpoint_url=server.endpoint, verify=str(cert), region_name="us-east-1",
                aws_access_key_id="000000000000", aws_secret_access_key="x",
            )
            assert client.list_functions()["Functions"] == []


@pytest.mark.parametrize(
    "config,words",
    [("listn = 1\n", ["listn"]), ("[limits]\nsandboxes = 'many'\n", ["sandboxes"]), ("=", ["line 1"])],
)
def test_configuration_mistakes_are_explained(config, words):
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, "bad.toml")
        path.write_text(config)
        out = subprocess.run(
            [BINARY, "serve", "--listen", "127.0.0.1:0", "--data-dir", directory, "--config", path], capture_output=True, text=True, timeout=20
        )
        assert out.returncode != 0
        for word in words + ["bad.toml"]:
            assert word in out.stderr, out.stderr


def test_metrics_and_health(emberbox, client, function):
    name = function(ECHO)
    invoke(client, name)
    text = urllib.request.urlopen(emberbox.endpoint + "/metrics").read().decode()
    assert "emberbox_" in text and 'operation="Invoke"' in text
    assert urllib.request.urlopen(emberbox.endpoint + "/readyz").status == 200


def test_browser_requests_are_refused(emberbox):
    request = urllib.request.Request(emberbox.endpoint + "/2015-03-31/functions", headers={"Origin": "https://evil.example"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert caught.value.code == 403
    request = urllib.request.Request(emberbox.endpoint + "/2015-03-31/functions", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert caught.value.code in (403, 421)


def test_function_reaches_the_configured_endpoint():
    """`[functions] endpoint_url`: a function's own SDK calls land on a local endpoint, here on Emberbox itself."""
    with running() as target:
        create(target.client(), "inner", "def handler(e, c):\n    return 'inner ' + e\n")
        with running(config=f'[functions]\nendpoint_url = "{target.endpoint}"\n') as server:
            client = server.client()
            create(
                client, "outer",
                "import boto3, json\ndef handler(e, c):\n"
                "    r = boto3.client('lambda').invoke(FunctionName='inner', Payload=json.dumps(e))\n"
                "    return json.load(r['Payload'])\n",
                Timeout=30, MemorySize=512,
            )
            result = invoke(client, "outer", "x")
            assert result.json == "inner x", result.body


def test_package_from_s3():
    """S3Bucket/S3Key from an S3-compatible endpoint; a small one is served by the test."""
    import http.server
    import threading

    code = zip_bytes({"index.py": "def handler(e, c):\n    return 'from s3'\n"})

    class Bucket(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path, _, query = self.path.partition("?")
            if path == "/bucket/dir/code.zip" and "versionId=old" not in query:
                status, body = 200, code
            elif path.startswith("/bucket/"):
                status, body = 404, b"<Error><Code>NoSuchKey</Code><Message>The specified key does not exist.</Message></Error>"
            else:
                status, body = 404, b"<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist</Message></Error>"
            assert self.headers["Authorization"].startswith("AWS4-HMAC-SHA256 Credential=s3key/")
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"e"')
            self.send_header("Last-Modified", "Tue, 24 Nov 2026 00:00:00 GMT")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    bucket = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    threading.Thread(target=bucket.serve_forever, daemon=True).start()
    config = f'[s3]\nendpoint = "http://127.0.0.1:{bucket.server_port}"\naccess_key_id = "s3key"\nsecret_access_key = "s"\n'
    with running(config=config) as server:
        client = server.client()
        kwargs = {"FunctionName": "f", "Runtime": PYTHON, "Handler": "index.handler", "Role": ROLE}
        client.create_function(Code={"S3Bucket": "bucket", "S3Key": "dir/code.zip"}, **kwargs)
        wait_active(client, "f")
        assert invoke(client, "f").json == "from s3"
        for key, words in (
            ({"S3Bucket": "bucket", "S3Key": "nope"}, "Error occurred while GetObject. S3 Error Code: NoSuchKey. S3 Error Message: The specified key does not exist."),
            ({"S3Bucket": "other-bucket", "S3Key": "x"}, "Error occurred while GetObject. S3 Error Code: NoSuchBucket. S3 Error Message: The specified bucket does not exist"),
        ):
            with pytest.raises(botocore.exceptions.ClientError) as caught:
                client.update_function_code(FunctionName="f", **key)
            assert caught.value.response["Error"]["Message"] == words
    bucket.shutdown()
