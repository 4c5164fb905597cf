"""Functions of container images: a real registry, images that are made on the spot, real clients."""

import json
import os
import pathlib
import subprocess
import tarfile
import tempfile
import uuid

import botocore.exceptions
import pytest
from conftest import AWS_CLI, BINARY, ROLE, invoke, running, wait_active, wait_until
from registry import CLIENT, Registry, layer, python_layer

pytestmark = pytest.mark.needs("docker-registry")
ENTRY = {"Entrypoint": ["python3", "-I", "/app/main.py"], "Cmd": ["app.handler"]}
ENV = ["PATH=/usr/local/bin:/usr/bin", "FROM_IMAGE=image", "CUSTOM=image", "AWS_REGION=image", "LAMBDA_TASK_ROOT=/image"]


@pytest.fixture(scope="module")
def registry():
    registry = Registry()
    yield registry
    registry.stop()


@pytest.fixture(scope="module")
def python():
    return python_layer()


@pytest.fixture
def image(registry, python):
    """Pushes an image of Python and `CLIENT`: `image(tag, ...)` gives its URI and digest."""
    repository = "team/" + uuid.uuid4().hex[:8]

    def push(tag, more=(), below=(), version=None, **config):
        app = layer([("app/main.py", CLIENT), ("app/version", version or tag), ("srv/", None), *more])
        return registry.push(f"{repository}:{tag}", [*below, python, app], {**ENTRY, "Env": ENV, **config})

    return push


@pytest.fixture
def create(client):
    names = []

    def make(uri, wait=True, **settings):
        name = "i-" + uuid.uuid4().hex[:12]
        settings.setdefault("Timeout", 20)
        # A CPU: the interpreter has no caches of its library, and compiles it.
        settings.setdefault("MemorySize", 1769)
        client.create_function(
            FunctionName=name, PackageType="Image", Role=ROLE, Code={"ImageUri": uri}, **settings
        )
        names.append(name)
        if wait:
            wait_active(client, name)
        return name

    yield make
    for name in names:
        client.delete_function(FunctionName=name)


def failed(client, name):
    """The configuration of a function that has become Failed."""
    def state():
        configuration = client.get_function_configuration(FunctionName=name)
        assert configuration["State"] != "Active", configuration
        return configuration if configuration["State"] == "Failed" else None
    return wait_until(state, 60, f"{name} failed")


def test_life_of_a_function(client, image, create):
    uri, digest = image("1", WorkingDir="/app")
    name = create(uri, Environment={"Variables": {"CUSTOM": "function"}})
    cold, warm = invoke(client, name, {}), invoke(client, name, {}, LogType="Tail")
    assert cold.error is None, cold.body
    first = cold.json
    assert (first["version"], first["cwd"], first["argv"], first["count"]) == ("1", "/app", ["app.handler"], 0)
    assert warm.json["count"] == 1 and "INIT_START" not in warm.log
    env = first["env"]
    assert (env["FROM_IMAGE"], env["CUSTOM"], env["PATH"]) == ("image", "function", "/usr/local/bin:/usr/bin")
    assert (env["AWS_REGION"], env["LAMBDA_TASK_ROOT"], env["_HANDLER"]) == ("us-east-1", "/var/task", "app.handler")
    assert env["AWS_LAMBDA_FUNCTION_NAME"] == name
    assert not {"AWS_EXECUTION_ENV", "LD_LIBRARY_PATH"} & set(env)

    shown = client.get_function(FunctionName=name)
    configuration, code = shown["Configuration"], shown["Code"]
    assert configuration["PackageType"] == "Image" and configuration["CodeSize"] == 0
    assert configuration["CodeSha256"] == digest.removeprefix("sha256:")
    assert not {"Runtime", "Handler", "RuntimeVersionConfig"} & set(configuration)
    assert code == {
        "RepositoryType": "ECR", "ImageUri": uri, "ResolvedImageUri": f"{uri.rsplit(':', 1)[0]}@{digest}",
    }

    # The tag moves; the function does not until it is told to.
    _, second = image("1", version="2")
    assert invoke(client, name, {}).json["version"] == "1"
    version = client.publish_version(FunctionName=name)["Version"]
    updated = client.update_function_code(FunctionName=name, ImageUri=uri)
    assert updated["CodeSha256"] == second.removeprefix("sha256:")
    wait_active(client, name)
    answer = invoke(client, name, {}).json
    assert (answer["version"], answer["cwd"]) == ("2", "/")
    assert invoke(client, name, {}, Qualifier=version).json["version"] == "1"

    override = {"Command": ["other.handler", "more"], "WorkingDirectory": "/srv"}
    changed = client.update_function_configuration(FunctionName=name, ImageConfig=override)
    assert changed["ImageConfigResponse"]["ImageConfig"] == override
    wait_active(client, name)
    answer = invoke(client, name, {}).json
    assert (answer["argv"], answer["cwd"], answer["env"]["_HANDLER"]) == (["other.handler", "more"], "/srv", "other.handler")
    client.update_function_configuration(FunctionName=name, ImageConfig={})
    wait_active(client, name)
    assert invoke(client, name, {}).json["argv"] == ["app.handler"]
    listed = client.list_versions_by_function(FunctionName=name)["Versions"]
    assert [v["PackageType"] for v in listed] == ["Image", "Image"]


def test_what_cannot_be_started(client, image, create):
    uri, _ = image("1", [("app/text", "no program"), ("app/closed", {"data": b"x", "mode": 0o644})])
    name = create(uri)
    for entry, words in [
        (["/app/missing"], "fork/exec /app/missing: no such file or directory"),
        (["missing"], 'exec: "missing": executable file not found in $PATH'),
        (["/app/closed"], "fork/exec /app/closed: permission denied"),
        (["/app/text"], "fork/exec /app/text: exec format error"),
    ]:
        client.update_function_configuration(FunctionName=name, ImageConfig={"EntryPoint": entry})
        wait_active(client, name)
        answer = invoke(client, name, {})
        assert (answer.error, answer.json["errorType"]) == ("Unhandled", "Runtime.InvalidEntrypoint")
        assert answer.json["errorMessage"].endswith(words), answer.json
    for directory, words in [
        ("/nowhere", "the working directory doesn't exist: /nowhere"),
        ("/app/text", "chdir /app/text: not a directory"),
    ]:
        client.update_function_configuration(FunctionName=name, ImageConfig={"WorkingDirectory": directory})
        wait_active(client, name)
        answer = invoke(client, name, {})
        assert answer.json["errorType"] == "Runtime.InvalidWorkingDir", answer.json
        assert answer.json["errorMessage"].endswith(words), answer.json


@pytest.mark.process_only("nothing in it depends on the sandbox")
def test_images_that_are_none(client, registry, create):
    def refused(uri):
        with pytest.raises(botocore.exceptions.ClientError) as caught:
            create(uri)
        return caught.value.response["Error"]

    missing = f"{registry.address}/team/none:1"
    error = refused(missing)
    assert error["Code"] == "InvalidParameterValueException"
    assert error["Message"].startswith(f"Source image {missing} does not exist. Provide a valid source image.")
    assert refused("not an image")["Message"].startswith("Source image not an image is not valid.")
    text = [("hello", "world")]
    uri, digest = registry.push("team/other:1", [layer(text)], architecture="s390x")
    configuration = failed(client, create(uri, wait=False))
    assert configuration["StateReasonCode"] == "InvalidImage" and "linux/s390x" in configuration["StateReason"]
    uri, _ = registry.push("team/climber:1", [layer([("../../../escaped", "x")])])
    assert failed(client, create(uri, wait=False))["StateReasonCode"] == "InvalidImage"

    # A layer that goes between the answer and the pull.
    uri, digest = registry.push("team/gone:1", [layer([("unique", uuid.uuid4().hex)])])
    blobs = pathlib.Path(registry.dir.name, "data/docker/registry/v2/blobs/sha256")
    data = (blobs / digest[7:9] / digest[7:] / "data").read_text()
    gone = json.loads(data)["layers"][0]["digest"]
    (blobs / gone[7:9] / gone[7:] / "data").unlink()
    name = create(uri, wait=False)
    assert failed(client, name)["StateReasonCode"] == "ImageDeleted"
    with pytest.raises(client.exceptions.ResourceConflictException):
        client.invoke(FunctionName=name)
    good, _ = registry.push("team/gone:2", [layer(text)])
    client.update_function_code(FunctionName=name, ImageUri=good)
    wait_active(client, name)
    # An image with no word of what to start.
    answer = invoke(client, name, {})
    assert answer.json["errorType"] == "Runtime.InvalidEntrypoint" and "neither ENTRYPOINT nor CMD" in answer.json["errorMessage"]


LOOK = """
def seen(work):
    try:
        return work()
    except OSError as error:
        return errno.errorcode[error.errno]
result = {
    "uid": os.getuid(), "null": stat.S_ISCHR(os.stat("/dev/null").st_mode), "dev": sorted(os.listdir("/dev")),
    "proc": os.path.exists("/proc/self/status"), "pids": len([p for p in os.listdir("/proc") if p.isdigit()]),
    "tmp": os.path.islink("/tmp"), "written": open("/tmp/mine", "w").write("x"),
    "hosts": open("/etc/hosts").read(), "resolv": seen(lambda: open("/etc/resolv.conf").read() is not None),
    "outside": seen(lambda: open("/outside/canary").read()),
    "planted": seen(lambda: open("/planted/file").read()),
    "through": seen(lambda: sorted(os.listdir("/up"))),
    "setuid": os.stat("/bin/setuid").st_mode & 0o6000, "device": os.path.exists("/disk"),
    "write": seen(lambda: open("/app/new", "w")), "kept": os.path.exists("/etc/kept"), "gone": os.path.exists("/etc/gone"),
}
"""


@pytest.fixture
def outside():
    """A directory of the host that a sandbox has no mount on."""
    with tempfile.TemporaryDirectory(prefix="emberbox-outside-", dir="/var/tmp") as path:
        os.chmod(path, 0o755)
        yield pathlib.Path(path)


def test_a_hostile_image_reaches_nothing(client, image, create, outside):
    """Links in the places of mounts, links out of the image that are written through, devices, setuid, whiteouts."""
    (outside / "canary").write_text("the host's")
    planted = outside / "planted"
    planted.mkdir(mode=0o777)
    link = lambda target: {"type": tarfile.SYMTYPE, "linkname": str(target)}
    below = layer([
        ("dev", link("/etc")), ("proc", link("../../../..")), ("tmp", link("/")), ("opt", link("/etc")),
        ("etc/", None), ("etc/gone", "x"), ("etc/kept", "x"),
        ("etc/hosts", link(outside / "canary")), ("etc/resolv.conf", link("/proc/self/environ")),
        ("outside", link(outside)), ("planted", link(planted)), ("up", link("../../../../..")),
        ("bin/setuid", {"data": b"x", "mode": 0o6755}),
        ("disk", {"type": tarfile.BLKTYPE, "devmajor": 7, "devminor": 0}),
        ("fifo", {"type": tarfile.FIFOTYPE}),
    ])
    # Written through the link of the layer below, and deleted through it.
    above = layer([("planted/file", "planted"), ("etc/.wh.gone", ""), ("outside/.wh.canary", "")])
    uri, _ = image("1", below=[below, above])
    name = create(uri)
    answer = invoke(client, name, {"run": LOOK})
    assert answer.error is None, answer.body
    look = answer.json["result"]
    assert (outside / "canary").read_text() == "the host's" and not list(planted.iterdir())
    assert look["uid"] == 993 and look["null"] and look["proc"] and look["pids"] < 10 and not look["tmp"]
    assert look["dev"] == ["fd", "full", "null", "random", "stderr", "stdin", "stdout", "tty", "urandom", "zero"]
    assert "sandbox.localdomain" in look["hosts"] and look["outside"] == "ENOENT"
    assert look["planted"] == "planted", "inside the link leads inside"
    assert "app" in look["through"] and "work" not in look["through"]
    assert (look["setuid"], look["device"], look["write"]) == (0, False, "EROFS")
    assert (look["kept"], look["gone"]) == (True, False)


@pytest.mark.process_only("nothing in it depends on the sandbox")
def test_aws_cli_and_emberbox_deploy(emberbox, client, image, create, tmp_path):
    uri, digest = image("1")
    name = "i-" + uuid.uuid4().hex[:12]
    env = {**os.environ, "AWS_ENDPOINT_URL": emberbox.endpoint, "AWS_ACCESS_KEY_ID": "000000000000",
           "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    aws = lambda *words: json.loads(subprocess.run(
        [AWS_CLI, "lambda", *words, "--output", "json"], env=env, check=True, capture_output=True, text=True).stdout or "null")
    created = aws("create-function", "--function-name", name, "--package-type", "Image", "--role", ROLE,
                  "--code", f"ImageUri={uri}", "--image-config", "Command=from.cli", "--timeout", "20", "--memory-size", "1769")
    assert created["State"] == "Pending" and created["CodeSha256"] == digest[7:]
    aws("wait", "function-active-v2", "--function-name", name)
    out = tmp_path / "out.json"
    aws("invoke", "--function-name", name, str(out))
    assert json.loads(out.read_text())["argv"] == ["from.cli"]
    client.delete_function(FunctionName=name)

    deploy = lambda *words: subprocess.run([BINARY, "deploy", *words, "--name", name, "--timeout", "20", "--memory", "1769"], env=env,
                                           cwd=tmp_path, capture_output=True, text=True)
    done = deploy(uri)
    assert done.returncode == 0 and f"Created {name}." in done.stderr, done.stderr
    assert invoke(client, name, {}).json["version"] == "1"
    second, _ = image("2")
    done = deploy("--image", second)
    assert done.returncode == 0 and f"Updated {name}." in done.stderr, done.stderr
    assert invoke(client, name, {}).json["version"] == "2"
    refused = deploy(second, "--runtime", "python3.12")
    assert refused.returncode != 0 and "is a container image" in refused.stderr
    client.delete_function(FunctionName=name)


@pytest.mark.process_only("nothing in it depends on the sandbox")
def test_credentials_restart_and_removal(python, tmp_path):
    """With a registry that wants a user: the configuration's is used; images outlive a restart, and go when unused."""
    registry = Registry(login=True)
    password = tmp_path / "password"
    password.write_text(registry.password + "\n")
    app = layer([("app/main.py", CLIENT), ("app/version", "1")])
    uri, digest = registry.push("team/secret:1", [python, app], {**ENTRY, "Env": ENV})
    config = f'[[registries]]\nhost = "{registry.address}"\nusername = "docker"\npassword_file = "{password}"\n'
    make = dict(FunctionName="f", PackageType="Image", Role=ROLE, Code={"ImageUri": uri}, Timeout=20, MemorySize=1769)
    try:
        with running(config=config) as server:
            client = server.client()
            client.create_function(**make)
            wait_active(client, "f")
            assert invoke(client, "f", {}).json["version"] == "1"
            server.stop()
            registry.stop()
            server.start()
            client = server.client()
            assert invoke(client, "f", {}).json["version"] == "1", "without the registry"
            kept = server.data_dir / "function-images" / digest[7:]
            assert (kept / "root/app/main.py").is_file()
            client.delete_function(FunctionName="f")
            server.stop()
            server.start()
            wait_until(lambda: not kept.exists(), what="the image is removed")
            assert not list((server.data_dir / "function-images/temp").iterdir())
    finally:
        registry.process.kill()


@pytest.mark.process_only("nothing in it depends on the sandbox")
def test_without_credentials_it_is_said(client, python):
    registry = Registry(login=True)
    try:
        uri, _ = registry.push("team/secret:1", [layer([("a", "b")])])
        with pytest.raises(botocore.exceptions.ClientError) as caught:
            client.create_function(FunctionName="never", PackageType="Image", Role=ROLE, Code={"ImageUri": uri})
        error = caught.value.response["Error"]
        assert error["Code"] == "AccessDeniedException" and "[[registries]]" in error["Message"], error
    finally:
        registry.stop()
