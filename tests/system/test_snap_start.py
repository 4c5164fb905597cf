"""SnapStart through boto3: accepted, kept, shown, and what becomes of versions on a host that cannot keep sandboxes.

What a snapshot and a restore are for a runtime is tried in `crates/worker/tests`, with AWS's client and hooks.
"""

import uuid

import botocore.exceptions
import pytest

from conftest import ISOLATION, PATIENCE, PYTHON, ROLE, invoke, running, wait_active, wait_until, zip_bytes

CODE = """
import os
from snapshot_restore_py import register_after_restore
restored = []
register_after_restore(restored.append, "restored")
def handler(event, context):
    return {"type": os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"], "restored": restored, "version": context.function_version}
"""
ON = {"ApplyOn": "PublishedVersions"}
# recorded: test_snapstart_lifecycle, test_snapstart_update_function_configuration
CREATED = {
    "Architectures", "CodeSha256", "CodeSize", "Description", "EphemeralStorage", "FunctionArn", "FunctionName", "Handler",
    "LastModified", "LoggingConfig", "MemorySize", "PackageType", "RevisionId", "Role", "Runtime", "RuntimeVersionConfig",
    "SnapStart", "State", "StateReason", "StateReasonCode", "Timeout", "TracingConfig", "Version",
}
UPDATED = CREATED - {"StateReason", "StateReasonCode"} | {
    "LastUpdateStatus", "LastUpdateStatusReason", "LastUpdateStatusReasonCode",
}
REASON = {
    "process": "Process sandboxes cannot be kept in snapshots; microVMs on Firecracker can.",
    "microvm": "QEMU cannot keep a microVM in a snapshot, since its vhost-user-vsock device cannot be migrated; Firecracker can.",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """With this host's Python under the name of a runtime that SnapStart goes with, which this host need not have."""
    runtimes = tmp_path_factory.mktemp("runtimes.d")
    (runtimes / "snap.toml").write_text(f'name = "java21"\nextends = "{PYTHON}"\n')
    with running(config=f'[runtimes]\ndirs = ["{runtimes}"]\n') as server:
        yield server


@pytest.fixture
def name(server):
    name = "f-" + uuid.uuid4().hex[:8]
    yield name
    try:
        server.client().delete_function(FunctionName=name)
    except botocore.exceptions.ClientError:
        pass


def create(client, name, code=CODE, **settings):
    return client.create_function(
        FunctionName=name, Runtime="java21", Handler="index.handler", Role=ROLE, Timeout=3 * PATIENCE,
        Code={"ZipFile": zip_bytes({"index.py": code})}, **settings
    )


def members(response):
    return set(response) - {"ResponseMetadata"}


def test_life_of_a_version(server, name):
    client = server.client()
    created = create(client, name, SnapStart=ON)
    assert members(created) == CREATED
    assert created["SnapStart"] == {"ApplyOn": "PublishedVersions", "OptimizationStatus": "Off"}
    wait_active(client, name)

    published = client.publish_version(FunctionName=name)
    assert published["State"] in ("Pending", "Active") and published["Version"] == "1"
    waiter = client.get_waiter("published_version_active")
    waiter.wait(FunctionName=name, Qualifier="1", WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    version = client.get_function_configuration(FunctionName=name, Qualifier="1")
    assert (version["State"], version["LastUpdateStatus"]) == ("Active", "Successful")
    assert version["SnapStart"] == {"ApplyOn": "PublishedVersions", "OptimizationStatus": "Off"}
    said = "SnapStart: no snapshot was taken, the version starts as any other does. " + REASON[ISOLATION]
    assert version["StateReason"] == said
    assert client.get_function(FunctionName=name, Qualifier="1")["Configuration"]["StateReason"] == said
    wait_until(lambda: "starts without a snapshot" in server.log_path.read_text(), what="the server's log says it as well")

    # It is as any other version: no hook runs, as on AWS where there is no snapshot.
    answer = invoke(client, name, {}, Qualifier="1").json
    assert answer == {"type": "on-demand", "restored": [], "version": "1"}
    assert invoke(client, name, {}).json == {"type": "on-demand", "restored": [], "version": "$LATEST"}
    assert client.publish_version(FunctionName=name)["Version"] == "1", "nothing has changed since"

    updated = client.update_function_configuration(FunctionName=name, SnapStart={"ApplyOn": "None"})
    assert members(updated) == UPDATED
    assert updated["SnapStart"] == {"ApplyOn": "None", "OptimizationStatus": "Off"}
    client.get_waiter("function_updated_v2").wait(FunctionName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    second = client.publish_version(FunctionName=name)
    assert (second["Version"], second["State"]) == ("2", "Active")
    listed = client.list_versions_by_function(FunctionName=name)["Versions"]
    assert [v["SnapStart"]["ApplyOn"] for v in listed] == ["None", "PublishedVersions", "None"]


def test_what_does_not_go_with_it_is_refused(server, name):
    client = server.client()

    def refused(call, message, **request):
        with pytest.raises(botocore.exceptions.ClientError) as caught:
            call(**request)
        assert caught.value.response["Error"] == {"Code": "InvalidParameterValueException", "Message": message}

    code = {"ZipFile": zip_bytes({"index.py": CODE})}
    base = dict(FunctionName=name, Handler="index.handler", Role=ROLE, Code=code, SnapStart=ON)
    refused(client.create_function, f"{PYTHON} is not supported for SnapStart enabled functions.", Runtime=PYTHON, **base)
    large = "SnapStart does not support an EphemeralStorage of more than 512 MB, and this function's is 513 MB."
    refused(client.create_function, large, Runtime="java21", EphemeralStorage={"Size": 513}, **base)
    create(client, name, SnapStart=ON)
    wait_active(client, name)
    refused(client.update_function_configuration, large, FunctionName=name, EphemeralStorage={"Size": 513})


def test_versions_survive_a_restart(tmp_path):
    runtimes = tmp_path / "runtimes.d"
    runtimes.mkdir()
    (runtimes / "snap.toml").write_text(f'name = "java21"\nextends = "{PYTHON}"\n')
    data = tmp_path / "data"
    data.mkdir()
    config = f'[runtimes]\ndirs = ["{runtimes}"]\n'
    with running(data_dir=data, config=config) as server:
        client = server.client()
        create(client, "f", SnapStart=ON, Publish=True)
        wait_active(client, "f")
        client.get_waiter("published_version_active").wait(
            FunctionName="f", Qualifier="1", WaiterConfig={"Delay": 1, "MaxAttempts": 60}
        )
    with running(data_dir=data, config=config) as server:
        client = server.client()
        version = client.get_function_configuration(FunctionName="f", Qualifier="1")
        assert (version["State"], version["SnapStart"]["ApplyOn"]) == ("Active", "PublishedVersions")
        assert invoke(client, "f", {}, Qualifier="1").json["version"] == "1"
