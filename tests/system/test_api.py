"""Every operation of the management API through boto3, with the shapes and messages recorded from AWS."""

import hashlib
import base64
import json
import urllib.request
import uuid

import botocore
import botocore.exceptions
import pytest

from conftest import ECHO, PYTHON, ROLE, invoke, wait_active, wait_until, zip_bytes

pytestmark = pytest.mark.process_only("the control plane does not touch the sandbox")

ACCOUNT = "000000000000"


def arn(name, qualifier=None):
    return f"arn:aws:lambda:us-east-1:{ACCOUNT}:function:{name}" + (f":{qualifier}" if qualifier else "")


def fails(code, call, message=None, status=None, **kwargs):
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        call(**kwargs)
    response = caught.value.response
    assert response["Error"]["Code"] == code, response
    if message is not None:
        assert response["Error"]["Message"] == message
    if status is not None:
        assert response["ResponseMetadata"]["HTTPStatusCode"] == status
    return response


def members(response):
    return {k for k in response if k != "ResponseMetadata"}


CREATED = {
    "Architectures", "CodeSha256", "CodeSize", "Description", "EphemeralStorage", "FunctionArn", "FunctionName",
    "Handler", "LastModified", "LoggingConfig", "MemorySize", "PackageType", "RevisionId", "Role", "Runtime",
    "RuntimeVersionConfig", "SnapStart", "State", "StateReason", "StateReasonCode", "Timeout", "TracingConfig", "Version",
}  # recorded: test_function_state
ACTIVE = CREATED - {"StateReason", "StateReasonCode"} | {"LastUpdateStatus"}
LISTED = ACTIVE - {"State", "LastUpdateStatus", "RuntimeVersionConfig"}


def test_create_has_the_recorded_shape_and_defaults(client):
    name = "f-" + uuid.uuid4().hex[:8]
    code = zip_bytes({"index.py": ECHO})
    created = client.create_function(
        FunctionName=name, Runtime=PYTHON, Handler="index.handler", Role=ROLE, Code={"ZipFile": code}
    )
    try:
        assert created["ResponseMetadata"]["HTTPStatusCode"] == 201
        assert members(created) == CREATED
        assert created["State"] == "Pending"
        assert created["StateReason"] == "The function is being created."
        assert created["StateReasonCode"] == "Creating"
        assert created["CodeSha256"] == base64.b64encode(hashlib.sha256(code).digest()).decode()
        assert created["CodeSize"] == len(code)
        assert created["Timeout"] == 3 and created["MemorySize"] == 128 and created["Version"] == "$LATEST"
        assert created["LoggingConfig"] == {"LogFormat": "Text", "LogGroup": f"/aws/lambda/{name}"}
        assert created["FunctionArn"] == arn(name)
        client.get_waiter("function_active_v2").wait(FunctionName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 180})
        got = client.get_function(FunctionName=name)
        assert members(got) == {"Code", "Configuration"}
        assert set(got["Configuration"]) == ACTIVE
        assert got["Code"]["RepositoryType"] == "S3"
        assert urllib.request.urlopen(got["Code"]["Location"]).read() == code
        assert got["Configuration"]["RevisionId"] != created["RevisionId"]
        configuration = client.get_function_configuration(FunctionName=name)
        assert members(configuration) == ACTIVE
        assert configuration["State"] == "Active" and configuration["LastUpdateStatus"] == "Successful"
        fails(
            "ResourceConflictException", client.create_function, f"Function already exist: {name}", 409,
            FunctionName=name, Runtime=PYTHON, Handler="index.handler", Role=ROLE, Code={"ZipFile": code},
        )
    finally:
        deleted = client.delete_function(FunctionName=name)
        assert deleted["ResponseMetadata"]["HTTPStatusCode"] == 204
    fails("ResourceNotFoundException", client.get_function, f"Function not found: {arn(name)}", 404, FunctionName=name)


def test_names_and_arns_in_every_form(client, function):
    name = function(ECHO)
    for form in (name, f"{ACCOUNT}:{name}", f"{ACCOUNT}:function:{name}", f"function:{name}", arn(name), arn(name, "$LATEST")):
        assert client.get_function_configuration(FunctionName=form)["FunctionName"] == name, form
        assert invoke(client, form, 1).json == 1, form
    fails(
        "InvalidParameterValueException", client.get_function,
        "The derived qualifier from the function name does not match the specified qualifier.", 400,
        FunctionName=arn(name, "1"), Qualifier="2",
    )
    other = arn(name).replace("us-east-1", "eu-west-1")
    fails(
        "ResourceNotFoundException", client.get_function,
        "Functions from 'eu-west-1' are not reachable in this region ('us-east-1')", 404, FunctionName=other,
    )


def test_validation_messages_are_awss(client):
    response = fails(
        "ValidationException", client.create_function, status=400, FunctionName="x", Runtime=PYTHON,
        Handler="index.handler", Role="r1", Code={"ZipFile": b"x"},
    )
    assert response["Error"]["Message"] == (
        "1 validation error detected: Value 'r1' at 'role' failed to satisfy constraint: Member must satisfy regular "
        r"expression pattern: arn:(aws[a-zA-Z-]*)?:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+"
    )
    response = fails(
        "InvalidParameterValueException", client.create_function, status=400, FunctionName="x",
        Runtime="non-existent-runtime", Handler="index.handler", Role=ROLE, Code={"ZipFile": zip_bytes({"a": "b"})},
    )
    assert response["Error"]["Message"].startswith(
        "Value non-existent-runtime at 'runtime' failed to satisfy constraint: Member must satisfy enum value set: ["
    )


def test_update_code_and_configuration(client, function):
    name = function("def handler(e, c):\n    return 1\n")
    assert invoke(client, name).json == 1
    before = client.get_function_configuration(FunctionName=name)
    code = zip_bytes({"index.py": "def handler(e, c):\n    return 2\n"})
    dry = client.update_function_code(FunctionName=name, ZipFile=code, DryRun=True)
    assert dry["CodeSha256"] == base64.b64encode(hashlib.sha256(code).digest()).decode()
    assert client.get_function_configuration(FunctionName=name)["CodeSha256"] == before["CodeSha256"]
    updated = client.update_function_code(FunctionName=name, ZipFile=code)
    assert updated["LastUpdateStatus"] == "InProgress"
    assert updated["LastUpdateStatusReason"] == "The function is being created."
    assert updated["LastUpdateStatusReasonCode"] == "Creating"
    client.get_waiter("function_updated_v2").wait(FunctionName=name, WaiterConfig={"Delay": 1})
    assert invoke(client, name).json == 2
    client.update_function_configuration(
        FunctionName=name, Timeout=7, MemorySize=256, Description="d", Environment={"Variables": {"KEY": "b"}}
    )
    wait_active(client, name)
    after = client.get_function_configuration(FunctionName=name)
    assert (after["Timeout"], after["MemorySize"], after["Description"]) == (7, 256, "d")
    assert after["Environment"] == {"Variables": {"KEY": "b"}}
    assert after["RevisionId"] != before["RevisionId"]
    fails(
        "PreconditionFailedException", client.update_function_configuration,
        "The Revision Id provided does not match the latest Revision Id. Call the GetFunction/GetAlias API to retrieve "
        "the latest Revision Id", 412, FunctionName=name, Timeout=8, RevisionId="wrong",
    )


def test_versions_and_aliases(client, function):
    name = function("def handler(e, c):\n    return c.function_version\n")
    one = client.publish_version(FunctionName=name, Description="first")
    assert one["ResponseMetadata"]["HTTPStatusCode"] == 201
    assert one["Version"] == "1" and one["FunctionArn"] == arn(name, "1") and one["Description"] == "first"
    assert client.publish_version(FunctionName=name)["Version"] == "1", "unchanged: the same version again"
    client.get_waiter("published_version_active").wait(FunctionName=name, Qualifier="1")
    client.update_function_configuration(FunctionName=name, Description="changed")
    wait_active(client, name)
    two = client.publish_version(FunctionName=name)
    assert two["Version"] == "2"
    listed = client.list_versions_by_function(FunctionName=name)["Versions"]
    assert [v["Version"] for v in listed] == ["$LATEST", "1", "2"]
    assert all(set(v) == LISTED for v in listed), [set(v) ^ LISTED for v in listed]
    fails(
        "InvalidParameterValueException", client.publish_version, None, 400, FunctionName=name, CodeSha256="somenonexistentsha256"
    )

    alias = client.create_alias(FunctionName=name, Name="live", FunctionVersion="1")
    assert alias["ResponseMetadata"]["HTTPStatusCode"] == 201
    assert members(alias) == {"AliasArn", "Description", "FunctionVersion", "Name", "RevisionId"}
    assert invoke(client, f"{name}:live").json == "1"
    assert invoke(client, name, Qualifier="live").version == "1"
    fails(
        "ResourceConflictException", client.create_alias, f"Alias already exists: {arn(name, 'live')}", 409,
        FunctionName=name, Name="live", FunctionVersion="1",
    )
    weighted = client.update_alias(
        FunctionName=name, Name="live", RoutingConfig={"AdditionalVersionWeights": {"2": 0.5}}
    )
    assert weighted["RoutingConfig"] == {"AdditionalVersionWeights": {"2": 0.5}}
    seen = {invoke(client, f"{name}:live").version for _ in range(60)}
    assert seen == {"1", "2"}, "weights are honoured"
    moved = client.update_alias(FunctionName=name, Name="live", FunctionVersion="2", RoutingConfig={})
    assert "RoutingConfig" not in moved
    assert {invoke(client, f"{name}:live").version for _ in range(5)} == {"2"}
    assert [a["Name"] for a in client.list_aliases(FunctionName=name)["Aliases"]] == ["live"]
    assert client.list_aliases(FunctionName=name, FunctionVersion="1")["Aliases"] == []
    assert client.get_alias(FunctionName=name, Name="live")["FunctionVersion"] == "2"
    assert client.delete_alias(FunctionName=name, Name="live")["ResponseMetadata"]["HTTPStatusCode"] == 204
    fails("ResourceNotFoundException", client.get_alias, f"Cannot find alias arn: {arn(name, 'live')}", 404, FunctionName=name, Name="live")
    fails(
        "ResourceNotFoundException", client.invoke, f"Function not found: {arn(name, 'live')}", 404,
        FunctionName=name, Qualifier="live",
    )


def test_list_functions_pages(client, function):
    names = {function(ECHO, wait=False) for _ in range(5)}
    found, marker, pages = set(), None, 0
    while True:
        page = client.list_functions(MaxItems=2, **({"Marker": marker} if marker else {}))
        assert len(page["Functions"]) <= 2
        found |= {f["FunctionName"] for f in page["Functions"]}
        pages += 1
        marker = page.get("NextMarker")
        if not marker:
            break
    assert names <= found and pages >= 3
    assert names <= {f["FunctionName"] for p in client.get_paginator("list_functions").paginate() for f in p["Functions"]}
    for name in names:
        wait_active(client, name)


def test_reserved_concurrency_and_account_settings(client, function):
    name = function(ECHO)
    before = client.get_account_settings()["AccountLimit"]
    assert before["CodeSizeZipped"] == 52428800 and before["CodeSizeUnzipped"] == 262144000
    assert client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=5)["ReservedConcurrentExecutions"] == 5
    after = client.get_account_settings()["AccountLimit"]
    assert after["UnreservedConcurrentExecutions"] == before["UnreservedConcurrentExecutions"] - 5
    assert client.get_function(FunctionName=name)["Concurrency"] == {"ReservedConcurrentExecutions": 5}
    assert client.get_function_concurrency(FunctionName=name)["ReservedConcurrentExecutions"] == 5
    response = fails(
        "InvalidParameterValueException", client.put_function_concurrency, None, 400, FunctionName=name,
        ReservedConcurrentExecutions=before["ConcurrentExecutions"],
    )
    assert "below its minimum value of [100]" in response["Error"]["Message"]
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=0)
    response = fails("TooManyRequestsException", client.invoke, "Rate Exceeded.", 429, FunctionName=name)
    assert response["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded" and response["Type"] == "User"
    assert client.delete_function_concurrency(FunctionName=name)["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert "ReservedConcurrentExecutions" not in client.get_function_concurrency(FunctionName=name)
    assert invoke(client, name, 3).json == 3


def test_permissions(client, function):
    name = function(ECHO)
    fails("ResourceNotFoundException", client.get_policy, "The resource you requested does not exist.", 404, FunctionName=name)
    added = client.add_permission(
        FunctionName=name, StatementId="s3", Action="lambda:InvokeFunction", Principal="s3.amazonaws.com",
        SourceArn="arn:aws:s3:::bucket",
    )
    assert added["ResponseMetadata"]["HTTPStatusCode"] == 201
    statement = {
        "Sid": "s3", "Effect": "Allow", "Principal": {"Service": "s3.amazonaws.com"}, "Action": "lambda:InvokeFunction",
        "Resource": arn(name), "Condition": {"ArnLike": {"AWS:SourceArn": "arn:aws:s3:::bucket"}},
    }
    assert json.loads(added["Statement"]) == statement
    policy = client.get_policy(FunctionName=name)
    assert json.loads(policy["Policy"]) == {"Version": "2012-10-17", "Id": "default", "Statement": [statement]}
    fails(
        "ResourceConflictException", client.add_permission,
        "The statement id (s3) provided already exists. Please provide a new statement id, or remove the existing statement.",
        409, FunctionName=name, StatementId="s3", Action="lambda:InvokeFunction", Principal="s3.amazonaws.com",
    )
    fails(
        "ResourceNotFoundException", client.remove_permission, "Statement nope is not found in resource policy.", 404,
        FunctionName=name, StatementId="nope",
    )
    assert client.remove_permission(FunctionName=name, StatementId="s3")["ResponseMetadata"]["HTTPStatusCode"] == 204


def test_tags(client, function):
    name = function(ECHO, Tags={"a": "1"})
    assert client.get_function(FunctionName=name)["Tags"] == {"a": "1"}
    client.tag_resource(Resource=arn(name), Tags={"b": "2"})
    assert client.list_tags(Resource=arn(name))["Tags"] == {"a": "1", "b": "2"}
    client.untag_resource(Resource=arn(name), TagKeys=["a"])
    assert client.list_tags(Resource=arn(name))["Tags"] == {"b": "2"}
    fails(
        "InvalidParameterValueException", client.tag_resource,
        "Tags on function aliases and versions are not supported. Please specify a function ARN.", 400,
        Resource=arn(name, "1"), Tags={"c": "3"},
    )
    fails(
        "ResourceNotFoundException", client.list_tags, f"Function not found: {arn('doesnotexist')}", 404,
        Resource=arn("doesnotexist"),
    )


def test_code_signing_config_of_a_function_without_one(client, function):
    name = function(ECHO)
    got = client.get_function_code_signing_config(FunctionName=name)
    assert members(got) == {"FunctionName"} and got["FunctionName"] == name


# What is built, of all operations in AWS's model.
BUILT = {
    "AddPermission", "CreateAlias", "CreateEventSourceMapping", "CreateFunction", "DeleteAlias", "DeleteEventSourceMapping",
    "DeleteFunction", "DeleteFunctionConcurrency", "DeleteFunctionEventInvokeConfig", "GetAccountSettings", "GetAlias",
    "GetEventSourceMapping", "GetFunction", "GetFunctionCodeSigningConfig", "GetFunctionConcurrency", "GetFunctionConfiguration",
    "GetFunctionEventInvokeConfig", "GetFunctionRecursionConfig", "GetPolicy", "Invoke", "InvokeAsync", "ListAliases",
    "ListEventSourceMappings", "ListFunctionEventInvokeConfigs", "ListFunctions", "ListTags", "ListVersionsByFunction",
    "PublishVersion", "PutFunctionConcurrency", "PutFunctionEventInvokeConfig", "PutFunctionRecursionConfig", "RemovePermission",
    "TagResource", "UntagResource", "UpdateAlias", "UpdateEventSourceMapping", "UpdateFunctionCode", "UpdateFunctionConfiguration",
    "UpdateFunctionEventInvokeConfig",
}


def example(shape):
    """Some value of a shape of AWS's model, with what it requires."""
    if shape.type_name == "structure":
        return {name: example(shape.members[name]) for name in shape.required_members}
    if shape.type_name == "list":
        return [example(shape.member)]
    if shape.type_name == "map":
        return {}
    if shape.type_name == "string":
        return shape.enum[0] if shape.enum else "x" * max(1, shape.metadata.get("min", 1))
    return {"blob": b"x", "boolean": True, "timestamp": 0}.get(shape.type_name, shape.metadata.get("min", 1))


def test_what_is_not_built_says_so(client):
    """All of AWS's operations: 501 with the operation's name, or one that is built."""
    model = client.meta.service_model
    built = set()
    for operation in model.operation_names:
        call = getattr(client, botocore.xform_name(operation))
        shape = model.operation_model(operation).input_shape
        try:
            call(**(example(shape) if shape else {}))
        except botocore.exceptions.ClientError as error:
            response = error.response
            if response["ResponseMetadata"]["HTTPStatusCode"] == 501:
                assert response["Error"]["Code"] == "NotImplemented", response
                assert response["Error"]["Message"] == f"Emberbox does not implement {operation} yet.", response
                continue
        built.add(operation)
    assert len(model.operation_names) >= 88
    assert built == BUILT


def test_list_versions_pages(client, function):
    name = function(ECHO)
    for n in range(1, 8):
        client.update_function_configuration(FunctionName=name, Description=f"v{n}")
        wait_active(client, name)
        assert client.publish_version(FunctionName=name)["Version"] == str(n)
    every = ["$LATEST", *map(str, range(1, 8))]
    first = client.list_versions_by_function(FunctionName=name, MaxItems=3)
    assert [v["Version"] for v in first["Versions"]] == every[:3] and first["NextMarker"]
    second = client.list_versions_by_function(FunctionName=name, MaxItems=3, Marker=first["NextMarker"])
    assert [v["Version"] for v in second["Versions"]] == every[3:6]
    for size in (1, 3, 8, 50):
        pages = client.get_paginator("list_versions_by_function").paginate(FunctionName=name, PaginationConfig={"PageSize": size})
        seen = [[(v["Version"], v["Description"]) for v in page["Versions"]] for page in pages]
        assert all(len(page) <= size for page in seen), size
        assert [v for page in seen for v in page] == [("$LATEST", "v7"), *((str(n), f"v{n}") for n in range(1, 8))], size
    fails("InvalidParameterValueException", client.list_versions_by_function, FunctionName=name, Marker="no marker of ours")
    fails("ResourceNotFoundException", client.list_versions_by_function, FunctionName=name + "-none")


def test_event_invoke_config_has_the_recorded_shape(client, function):
    """recorded: test_lambda_eventinvokeconfig_lifecycle, test_ops_on_nonexisting_version"""
    name = function(ECHO)
    base = {"DestinationConfig", "FunctionArn", "LastModified"}
    put = client.put_function_event_invoke_config(FunctionName=name, MaximumRetryAttempts=0)
    assert members(put) == base | {"MaximumRetryAttempts"} and put["FunctionArn"] == arn(name, "$LATEST")
    assert put["DestinationConfig"] == {"OnSuccess": {}, "OnFailure": {}}
    put = client.put_function_event_invoke_config(FunctionName=name, MaximumEventAgeInSeconds=60)
    assert members(put) == base | {"MaximumEventAgeInSeconds"}, "it replaces"
    updated = client.update_function_event_invoke_config(FunctionName=name, MaximumRetryAttempts=1)
    assert members(updated) == base | {"MaximumEventAgeInSeconds", "MaximumRetryAttempts"}, "it merges"
    for kwargs in ({}, {"Qualifier": "$LATEST"}):
        got = client.get_function_event_invoke_config(FunctionName=name, **kwargs)
        assert got["MaximumEventAgeInSeconds"] == 60 and got["LastModified"] == updated["LastModified"]
    assert len(client.list_function_event_invoke_configs(FunctionName=name)["FunctionEventInvokeConfigs"]) == 1
    for missing in ("1221", "nope"):
        fails(
            "ResourceNotFoundException", client.get_function_event_invoke_config,
            f"The function {arn(name, missing)} doesn't have an EventInvokeConfig", 404,
            FunctionName=name, Qualifier=missing,
        )
    fails(
        "InvalidParameterValueException", client.put_function_event_invoke_config,
        "You must specify at least one of error handling or destination setting.", 400, FunctionName=name,
    )
    deleted = client.delete_function_event_invoke_config(FunctionName=name)
    assert deleted["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert client.list_function_event_invoke_configs(FunctionName=name)["FunctionEventInvokeConfigs"] == []


def test_recursion_config(client, function):
    name = function(ECHO)
    assert client.get_function_recursion_config(FunctionName=name)["RecursiveLoop"] == "Terminate"
    assert client.put_function_recursion_config(FunctionName=name, RecursiveLoop="Allow")["RecursiveLoop"] == "Allow"
    assert client.get_function_recursion_config(FunctionName=name)["RecursiveLoop"] == "Allow"
    # recorded: test_put_function_recursion_config_invalid_value
    fails(
        "ValidationException", client.put_function_recursion_config,
        "1 validation error detected: Value 'InvalidValue' at 'recursiveLoop' failed to satisfy constraint: Member must "
        "satisfy enum value set: [Terminate, Allow]", 400, FunctionName=name, RecursiveLoop="InvalidValue",
    )


def test_dead_letter_config(client, function):
    queue = f"arn:aws:sqs:us-east-1:{ACCOUNT}:dead"
    name = function(ECHO, DeadLetterConfig={"TargetArn": queue})
    assert client.get_function_configuration(FunctionName=name)["DeadLetterConfig"] == {"TargetArn": queue}
    client.update_function_configuration(FunctionName=name, DeadLetterConfig={"TargetArn": ""})
    wait_active(client, name)
    assert "DeadLetterConfig" not in client.get_function_configuration(FunctionName=name)


def test_delete_version(client, function):
    name = function(ECHO)
    client.publish_version(FunctionName=name)
    fails(
        "InvalidParameterValueException", client.delete_function,
        "$LATEST version cannot be deleted without deleting the function.", 400, FunctionName=name, Qualifier="$LATEST",
    )
    client.create_alias(FunctionName=name, Name="a", FunctionVersion="1")
    fails("ResourceConflictException", client.delete_function, None, 409, FunctionName=name, Qualifier="1")
    client.delete_alias(FunctionName=name, Name="a")
    client.delete_function(FunctionName=name, Qualifier="1")
    assert [v["Version"] for v in client.list_versions_by_function(FunctionName=name)["Versions"]] == ["$LATEST"]
    client.update_function_configuration(FunctionName=name, Description="x")
    wait_active(client, name)
    assert client.publish_version(FunctionName=name)["Version"] == "2", "numbers are never used again"


@pytest.mark.parametrize(
    "code,message",
    [
        (b"no zip", "Could not unzip uploaded file. Please check your file, then try to upload again."),
        (zip_bytes({"../../escape": "x"}), None),
        (zip_bytes({"/etc/passwd": "x"}), None),
    ],
)
def test_bad_packages(client, code, message):
    name = "f-" + uuid.uuid4().hex[:8]
    fails(
        "InvalidParameterValueException", client.create_function, message, 400, FunctionName=name, Runtime=PYTHON,
        Handler="index.handler", Role=ROLE, Code={"ZipFile": code},
    )
    fails("ResourceNotFoundException", client.get_function, None, 404, FunctionName=name)


def test_a_package_from_s3_without_one(client):
    """No error that a client would try again: the operator has to do something, or the caller."""
    response = fails(
        "InvalidParameterValueException", client.create_function, None, 400, FunctionName="f", Runtime=PYTHON,
        Handler="index.handler", Role=ROLE, Code={"S3Bucket": "bucket", "S3Key": "key"},
    )
    assert "s3://bucket/key" in response["Error"]["Message"] and "[s3]" in response["Error"]["Message"], response


def test_zip_bomb(client):
    bomb = zip_bytes({"zeros": b"\0" * 263_000_000})
    fails(
        "InvalidParameterValueException", client.create_function, "Unzipped size must be smaller than 262144000 bytes", 400,
        FunctionName="bomb", Runtime=PYTHON, Handler="index.handler", Role=ROLE, Code={"ZipFile": bomb},
    )


def test_environment_limits(client):
    response = fails(
        "InvalidParameterValueException", client.create_function, None, 400, FunctionName="env", Runtime=PYTHON,
        Handler="index.handler", Role=ROLE, Code={"ZipFile": zip_bytes({"index.py": ECHO})},
        Environment={"Variables": {"LARGE": "x" * 4096}},
    )
    assert "exceeded the 4KB limit" in response["Error"]["Message"]
    response = fails(
        "InvalidParameterValueException", client.create_function, None, 400, FunctionName="env", Runtime=PYTHON,
        Handler="index.handler", Role=ROLE, Code={"ZipFile": zip_bytes({"index.py": ECHO})},
        Environment={"Variables": {"AWS_REGION": "x"}},
    )
    assert "reserved keys" in response["Error"]["Message"]


def test_accounts_are_apart(emberbox, client, function):
    name = function(ECHO)
    other = emberbox.client(account="111111111111")
    assert name not in {f["FunctionName"] for f in other.list_functions()["Functions"]}
    fails("ResourceNotFoundException", other.get_function, None, 404, FunctionName=name)
    mine = function(ECHO, on=other, name=name)
    assert other.get_function_configuration(FunctionName=mine)["FunctionArn"] == arn(name).replace(ACCOUNT, "111111111111")
    with pytest.raises(botocore.exceptions.ClientError):
        other.invoke(FunctionName=arn(name))
