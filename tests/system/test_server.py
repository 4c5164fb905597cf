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


@pytest.mark.process_only("nothing in it depends on the sandbox")
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


def files_with(directory, text):
    """Regular files below a directory, links not followed, that hold a text."""
    found = []
    for path in pathlib.Path(directory).rglob("*"):
        if path.is_file() and not path.is_symlink() and text.encode() in path.read_bytes():
            found.append(str(path))
    return found


@pytest.mark.process_only("nothing in it depends on the sandbox")
def test_environment_variables_are_encrypted_at_rest():
    """Neither the metadata nor the log nor anything else that a server leaves behind has them, and without their key it does
    not start."""
    secret, code = "hunter2-of-the-customer", "import os\ndef handler(e, c):\n    return os.environ['PASSWORD']\n"
    with tempfile.TemporaryDirectory() as directory:
        server = Emberbox(data_dir=directory, env={"EMBERBOX_LOG": "trace"}).start()
        try:
            client = server.client()
            create(client, "f", code, Environment={"Variables": {"PASSWORD": secret}})
            client.publish_version(FunctionName="f")
            assert invoke(client, "f:1", None).json == secret
            assert files_with(directory, "000000000000/us-east-1/f"), "the records are in one of these files"
            assert files_with(directory, secret) == []
        finally:
            server.stop(signal.SIGKILL)
        assert files_with(directory, secret) == []

        key = pathlib.Path(directory) / "secrets.key"
        assert key.stat().st_mode & 0o777 == 0o600
        content = key.read_bytes()
        key.unlink()
        with pytest.raises(AssertionError, match=r"secrets\.key is not there, .* encrypted with the key"):
            Emberbox(data_dir=directory).start()
        assert not key.exists(), "no new key stands in its place"
        key.write_bytes(content)
        server = Emberbox(data_dir=directory).start()
        try:
            assert invoke(server.client(), "f:1", None).json == secret
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


@pytest.mark.process_only("nothing in it depends on the sandbox")
def test_two_servers_do_not_share_a_data_directory():
    with running() as server:
        second = subprocess.run(
            [BINARY, "serve", "--listen", "127.0.0.1:0", "--data-dir", server.data_dir], capture_output=True, text=True, timeout=20
        )
        assert second.returncode != 0 and str(server.data_dir) in second.stderr


@pytest.mark.process_only("nothing in it depends on the sandbox")
def test_without_credentials_only_loopback():
    out = subprocess.run([BINARY, "serve", "--listen", "0.0.0.0:0"], capture_output=True, text=True, timeout=20)
    assert out.returncode != 0 and "credentials" in out.stderr


@pytest.mark.process_only("nothing in it depends on the sandbox")
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


@pytest.mark.process_only("nothing in it depends on the sandbox")
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
@pytest.mark.process_only("nothing in it depends on the sandbox")
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


@pytest.mark.process_only("nothing in it depends on the sandbox")
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


@pytest.mark.process_only("nothing in it depends on the sandbox")
def test_package_from_s3():
    """S3Bucket, S3Key and S3ObjectVersion from a third party's S3 (moto), which checks signatures and policies."""
    from third_party import Moto

    moto = Moto()
    try:
        s3, iam = moto.client("s3"), moto.client("iam")
        for bucket in ("code", "private"):
            s3.create_bucket(Bucket=bucket)
        s3.put_bucket_versioning(Bucket="code", VersioningConfiguration={"Status": "Enabled"})
        code = [zip_bytes({"index.py": f"def handler(e, c):\n    return {n}\n"}) for n in range(2)]
        key = "dir/my code+ü.zip"
        old, new = (s3.put_object(Bucket="code", Key=key, Body=body)["VersionId"] for body in code)
        s3.put_object(Bucket="private", Key="code.zip", Body=code[0])
        iam.create_user(UserName="emberbox")
        keys = iam.create_access_key(UserName="emberbox")["AccessKey"]
        allow = {"Effect": "Allow", "Action": "s3:*", "Resource": ["arn:aws:s3:::code", "arn:aws:s3:::code/*", "arn:aws:s3:::other*"]}
        iam.put_user_policy(
            UserName="emberbox", PolicyName="p", PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [allow]})
        )
        # From here on moto checks every request.
        urllib.request.urlopen(urllib.request.Request(f"{moto.endpoint}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"}))
        settings = f'[s3]\nendpoint = "{moto.endpoint}"\naccess_key_id = "{keys["AccessKeyId"]}"\nsecret_access_key = '
        with running(config=settings + json.dumps(keys["SecretAccessKey"])) as server:
            client = server.client()
            kwargs = {"FunctionName": "f", "Runtime": PYTHON, "Handler": "index.handler", "Role": ROLE}
            client.create_function(Code={"S3Bucket": "code", "S3Key": key, "S3ObjectVersion": old}, **kwargs)
            wait_active(client, "f")
            assert invoke(client, "f").json == 0
            for version, answer in (({}, 1), ({"S3ObjectVersion": old}, 0), ({"S3ObjectVersion": new}, 1)):
                client.update_function_code(FunctionName="f", S3Bucket="code", S3Key=key, **version)
                wait_active(client, "f")
                assert invoke(client, "f").json == answer, version
            before = client.get_function_configuration(FunctionName="f")["RevisionId"]
            for place, code, message in (
                ({"S3Bucket": "code", "S3Key": "nope"}, "InvalidParameterValueException",
                 "Error occurred while GetObject. S3 Error Code: NoSuchKey. S3 Error Message: The specified key does not exist."),
                ({"S3Bucket": "other-bucket", "S3Key": "x"}, "InvalidParameterValueException",
                 "Error occurred while GetObject. S3 Error Code: NoSuchBucket. S3 Error Message: The specified bucket does not exist"),
                ({"S3Bucket": "private", "S3Key": "code.zip"}, "AccessDeniedException", None),
                ({"S3Bucket": "code", "S3Key": key, "S3ObjectVersion": "none"}, "InvalidParameterValueException", None),
            ):
                with pytest.raises(botocore.exceptions.ClientError) as caught:
                    client.update_function_code(FunctionName="f", **place)
                error = caught.value.response["Error"]
                assert error["Code"] == code and message in (None, error["Message"]), (place, error)
            assert client.get_function_configuration(FunctionName="f")["RevisionId"] == before
            assert invoke(client, "f").json == 1
        with running(config=settings + '"wrong"\n') as server:
            with pytest.raises(botocore.exceptions.ClientError) as caught:
                server.client().create_function(Code={"S3Bucket": "code", "S3Key": key}, **kwargs)
            assert "SignatureDoesNotMatch" in caught.value.response["Error"]["Message"], caught.value.response
    finally:
        moto.stop()


@pytest.mark.process_only("its parallel calls are over before an emulated cold start is")
def test_new_sandboxes_are_bounded_in_time():
    """AWS's +1,000 sandboxes per 10 s of one function, here with 4 in the place of 1,000."""
    with running(config="[limits]\nnew_sandboxes_per_10s = 4\n") as server:
        client = server.client()
        for name in ("f", "other"):
            create(client, name, "import time\ndef handler(e, c):\n    time.sleep(e)\n    return 1\n", Timeout=30)
        started = time.monotonic()

        def attempt(name, seconds):
            try:
                return invoke(client, name, seconds).json
            except client.exceptions.TooManyRequestsException as error:
                return error.response["Reason"]

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = [f.result() for f in [pool.submit(attempt, "f", 2) for _ in range(8)]]
        refilled = (time.monotonic() - started) * 0.4
        assert set(answers) == {1, "FunctionInvocationRateLimitExceeded"}, answers
        assert 4 <= answers.count(1) <= 4 + refilled, answers
        assert invoke(client, "f", 0).json == 1, "a warm one is no new one"
        assert attempt("other", 0) == 1, "another function has a rate of its own"


@pytest.mark.process_only("the worker manager decides when, and crates/sandbox/tests/microvm has a network of its own")
def test_idle_sandboxes_go_and_no_network_is_loopback_alone():
    """`[sandbox] idle_timeout` and `network = "none"`."""
    with running(config='[sandbox]\nidle_timeout = "1s"\nnetwork = "none"\n') as server:
        client = server.client()
        create(
            client, "f",
            "import socket, uuid\nME = str(uuid.uuid4())\n"
            "def handler(e, c):\n    return [ME, [name for _, name in socket.if_nameindex()]]\n",
        )

        def sandboxes():
            metrics = urllib.request.urlopen(server.endpoint + "/metrics").read().decode().splitlines()
            return sum(float(line.split()[-1]) for line in metrics if line.startswith("emberbox_worker_sandboxes{"))

        (first, devices), again = invoke(client, "f").json, invoke(client, "f").json
        assert devices == ["lo"] and again == [first, devices], "warm, it serves again"
        wait_until(lambda: sandboxes() == 0, 20, "the idle sandbox is gone")
        assert invoke(client, "f").json[0] != first


@pytest.mark.process_only("nothing in it depends on the sandbox")
def test_the_timeline_is_in_the_log():
    with running(env={"EMBERBOX_LOG": "info", "NO_COLOR": "1"}) as server:
        client = server.client()
        create(client)
        ids = [invoke(client, "f", n).request_id for n in range(2)]

        def lines(target):
            log = server.log_path.read_text().splitlines()
            found = [line for request in ids for line in log if f"request_id={request}" in line and f" {target}: " in line]
            return len(found) == 2 and found

        cold, warm = wait_until(lambda: lines("emberbox::invoke"), 10, "a line of each invocation in the log")
        steps = [[mark["step"] for mark in json.loads(line.split("timeline=", 1)[1])] for line in (cold, warm)]
        assert steps[0] == [
            "received", "assigned", "placed", "package_fetched", "sandbox_created", "runtime_started", "init_done", "invoked", "answered",
        ], cold
        assert steps[1] == ["received", "assigned", "invoked", "answered"], warm
        for line, start in ((cold, "cold"), (warm, "warm")):
            assert f"start={start} " in line and "function=f " in line and "failed=false" in line, line
        # What comes after the answer: how long until the sandbox could be frozen.
        for line in wait_until(lambda: lines("timeline"), 10, "a line of the worker of each"):
            answered, duration = (int(line.split(f"{name}=")[1].split()[0]) for name in ("answered_us", "duration_us"))
            assert 0 < answered <= duration, line
