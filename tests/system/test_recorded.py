"""Responses recorded from AWS, replayed: the same calls with boto3, compared member by member (recorded.py)."""

import concurrent.futures
import io
import json
import uuid
import zipfile

import pytest

from conftest import ECHO, wait_active, zip_bytes
from recorded import ACCOUNT, Replay, arn, changed_code, client, compare_whole, created, in_recorded_form, load, name, request

pytestmark = pytest.mark.process_only("the control plane does not touch the sandbox")

CONTROL = load("control")

# Where Emberbox answers otherwise than AWS did, by test and by the path within it; each with the reason.
RUNTIMES = "Emberbox lists the runtimes that this installation has or can install"
NEWER = "the service model that Emberbox is generated from is newer than the recording"
DEVIATIONS = {
    ("test_create_lambda_exceptions", "invalid_runtime_exc/body/message"): RUNTIMES,
    ("test_create_lambda_exceptions", "uppercase_runtime_exc/body/message"): RUNTIMES,
    ("test_update_lambda_exceptions", "invalid_runtime_exc/body/message"): RUNTIMES,
    ("test_update_lambda_exceptions", "uppercase_runtime_exc/body/message"): RUNTIMES,
    ("test_tag_exceptions[lambda_function]", "invalid_arn_exception/message"): NEWER,
    ("test_tag_exceptions", "tag_lambda_invalidarn/message"): NEWER,
    ("test_large_environment_fails_multiple_keys", "failured_create_fn_result_multi_key/body/message"):
        "Emberbox measures the variables in the order of their names",
}


def control(test, left_out=(), **names):
    return Replay(test, CONTROL[test], DEVIATIONS, left_out, **names)


def update(client, name, step, key, **changes):
    """A step that updates the configuration, which has then to be waited for."""
    response = step(key, client.update_function_configuration, FunctionName=name, **changes)
    wait_active(client, name)
    return response


def whole(key, response, **names):
    compare_whole(key, response, DEVIATIONS, **names)


# Functions


def test_create_exceptions(client, name):
    with control("test_create_lambda_exceptions") as recorded:
        step = recorded.step
        step("invalid_role_arn_exc", client.create_function, **request(name, Role="r1"))
        step("invalid_runtime_exc", client.create_function, **request(name, Runtime="non-existent-runtime"))
        step("uppercase_runtime_exc", client.create_function, **request(name, Runtime="PYTHON3.9"))
        step("empty_architectures", client.create_function, **request(name, Architectures=[]))
        step("multiple_architectures", client.create_function, **request(name, Architectures=["x86_64", "arm64"]))
        step("uppercase_architecture", client.create_function, **request(name, Architectures=["X86_64"]))
        step("invalid_zip_exc", client.create_function, **request(name, Code={"ZipFile": b"this is not a zip file"}))


def test_update_exceptions(client, created):
    with control("test_update_lambda_exceptions") as recorded:
        call = client.update_function_configuration
        recorded.step("invalid_role_arn_exc", call, FunctionName=created, Role="r1")
        recorded.step("invalid_runtime_exc", call, FunctionName=created, Runtime="non-existent-runtime")
        recorded.step("uppercase_runtime_exc", call, FunctionName=created, Runtime="PYTHON3.9")


@pytest.mark.parametrize("test", [t for t in CONTROL if t.startswith("test_create_deprecated_function_runtime")])
def test_deprecated_runtimes(client, name, test):
    runtime = test.split("[")[1].rstrip("]")
    with control(test) as recorded:
        recorded.step("deprecation_error", client.create_function, **request(name, Runtime=runtime))


def test_delete_what_is_not_there(client, name):
    with control("test_delete_on_nonexisting_version", **{"<fn-name>": name}) as recorded:
        recorded.step("delete_function_response_non_existent", client.delete_function, FunctionName=name)
        recorded.step(
            "delete_function_response_non_existent_with_qualifier", client.delete_function, FunctionName=name, Qualifier="1"
        )


WRONG_REGION = "test_get_function_wrong_region["


@pytest.mark.parametrize("test", [t for t in CONTROL if t.startswith(WRONG_REGION)])
def test_wrong_region(client, name, test):
    call = getattr(client, test.removeprefix(WRONG_REGION).rstrip("]"))
    with control(test, **{"<wrong-region>": "eu-west-1"}) as recorded:
        recorded.step("wrong_region_exception", call, FunctionName=arn(name).replace("us-east-1", "eu-west-1"))


@pytest.mark.parametrize("method", ["get_function", "get_function_configuration"])
def test_version_that_is_not_there(client, created, method):
    with control(f"test_ops_on_nonexisting_version[{method}]", **{"<fn-name>": created}) as recorded:
        recorded.step("version_not_found_exception", getattr(client, method), FunctionName=created, Qualifier="1221")


@pytest.mark.parametrize("method", ["delete_function", "get_function", "get_function_configuration"])
def test_qualifier_in_arn_and_beside_it(client, method):
    call = getattr(client, method)
    with control(f"test_ops_with_arn_qualifier_mismatch[{method}]") as recorded:
        recorded.step("not_match_exception", call, FunctionName=arn("some-function", "1"), Qualifier="$LATEST")
        recorded.step("match_exception", call, FunctionName=arn("some-function", "$LATEST"), Qualifier="$LATEST")


def test_invalid_function_name_of_invoke(client):
    with control("test_invalid_invoke") as recorded:
        recorded.step(
            "invoke_function_name_pattern_exc", client.invoke,
            FunctionName="arn:aws:lambda:us-east-1:123400000000@function:myfn",
        )


# Name and qualifier of the recorded cases, after the cases' names.
INVALID_REGION = f"arn:aws:lambda:invalid-region:{ACCOUNT}:function:"
NAMES = {
    "invalid_characters_in_function_name": ("my-function!", None),
    "function_name_is_single_invalid": ("!", None),
    "invalid_characters_in_qualifier": ("my-function", "invalid!"),
    "qualifier_too_long": ("my-function", "a" * 129),
    "invalid_account_id_in_partial_arn": ("12345:function:my-function", None),
    "invalid_region_in_arn": (INVALID_REGION + "my-function", None),
    "non_lambda_arn": (f"arn:aws:ec2:us-east-1:{ACCOUNT}:instance:i-1234", None),
    "function_name_too_long": ("a" * 65, None),
    "function_name_too_long_and_invalid_region": (INVALID_REGION + "a" * 65, None),
    "full_arn_and_qualifier_too_long_and_invalid_region": (INVALID_REGION + "a" * 65, "a" * 129),
    "full_arn_with_multiple_qualifiers": (arn("my-function", "1:2"), None),
    "incomplete_arn": (f"arn:aws:lambda:us-east-1:{ACCOUNT}:function", None),
    "partial_arn_with_extra_qualifier": (f"{ACCOUNT}:function:my-function:$LATEST:extra", None),
    "latest_version_with_additional_qualifier": ("my-function:$LATEST", "extra"),
    "lowercase_latest_qualifier": ("my-function", "$latest"),
    "missing_account_id_in_arn": ("arn:aws:lambda:us-east-1::function:my-function", None),
    "missing_region_in_arn": (f"arn:aws:lambda::{ACCOUNT}:function:my-function", None),
    "misspelled_latest_in_arn": (arn("my-function", "$LATES"), None),
}
VALIDATION = "test_function_name_and_qualifier_validation["


@pytest.mark.parametrize("test", [t for t in CONTROL if t.startswith(VALIDATION)])
def test_names_and_qualifiers(client, test):
    case, method = test.removeprefix(VALIDATION).rstrip("]").split("-")
    name, qualifier = NAMES[case]
    if method == "create_function":
        arguments = request(f"{name}:{qualifier}" if qualifier else name)
    else:
        arguments = {"FunctionName": name} | ({"Qualifier": qualifier} if qualifier else {})
    seen, response = in_recorded_form(getattr(client, method), **arguments)
    assert "error" in seen, f"{method} accepted it: {response}"
    # The recorder took the message of a validation error apart.
    is_validation = "validation error" in response["Error"]["Message"]
    seen = {"fields": ["Code", "Count", "Errors"] if is_validation else ["Code", "Message"]}
    with control(test) as recorded:
        recorded.compare(f"{method}_exception", seen)


def test_bare_name_of_65_characters(client):
    message = (
        f"1 validation error detected: Value '{'a' * 65}' at 'functionName' failed to satisfy constraint: "
        "Member must have length less than or equal to 64"
    )
    seen, _ = in_recorded_form(client.create_function, **request("a" * 65))
    assert seen == {
        "error": "InvalidParameterValueException", "status": 400, "body": {"Type": "User", "message": message}
    }
    longest = request("a" * 64)
    try:
        assert client.create_function(**longest)["FunctionName"] == "a" * 64
    finally:
        client.delete_function(FunctionName="a" * 64)


def test_whole_configurations(client, name):
    names = {"<function-name:1>": name}
    settings = {"Handler": "handler.handler", "files": {"handler.py": ECHO}}
    response = client.create_function(**request(name, **settings))
    whole("CreateFunction with only the required members (test_function_state)", response, **names)
    client.delete_function(FunctionName=name)
    more = {"MemorySize": 256, "Timeout": 5, "Environment": {"Variables": {}}}
    whole("CreateFunction (zip)", client.create_function(**request(name, **settings, **more)), **names)
    wait_active(client, name)
    client.update_function_configuration(FunctionName=name, MemorySize=128, Timeout=30)
    wait_active(client, name)
    whole("GetFunctionConfiguration", client.get_function_configuration(FunctionName=name), **names)


def test_redundant_updates(client, created):
    # Left out: the recorder's helper returned a form of its own.
    with control("test_redundant_updates", left_out=["create_response"]) as recorded:
        step = recorded.step
        first = update(client, created, step, "first_update_result", Description="1st update description")
        step("get_fn_config_result", client.get_function_configuration, FunctionName=created)
        step("get_fn_result", client.get_function, FunctionName=created)
        second = update(client, created, step, "redundant_update_result", Description="1st update description")
        assert first["RevisionId"] != second["RevisionId"]
        step("get_fn_result_after_redundant_update", client.get_function, FunctionName=created)


def test_concurrent_updates(client, name):
    with control("test_lambda_concurrent_code_updates", **{"<function-name:1>": name}) as recorded:
        recorded.step("create-function-response", client.create_function, **request(name))
        wait_active(client, name)

        def until_refused(**arguments):
            # An update takes a millisecond here, so it needs several at once for one to meet another.
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                for _ in range(50):
                    for update in [pool.submit(client.update_function_code, **arguments) for _ in range(8)]:
                        update.result()

        recorded.step("update-during-in-progress-update-exc", until_refused, **changed_code(name))
        wait_active(client, name)


def test_sizes(client, name):
    with control("test_oversized_request_create_lambda") as recorded:
        recorded.step("invalid_param_exc", client.create_function, **request(name, Code={"ZipFile": bytes(52_650_000)}))
    with control("test_oversized_zipped_create_lambda") as recorded:
        recorded.step("invalid_param_exc", client.create_function, **request(name, Code={"ZipFile": bytes(52_428_801)}))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("index.py", ECHO)
        archive.writestr("zeros", bytes(262_144_000))
    with control("test_oversized_unzipped_lambda") as recorded:
        recorded.step("invalid_param_exc", client.create_function, **request(name, Code={"ZipFile": out.getvalue()}))
    with control("test_large_environment_fails_multiple_keys") as recorded:
        message = recorded.steps["failured_create_fn_result_multi_key"]["body"]["message"]
        variables = json.loads(message.split("String measured: ")[1])
        recorded.step(
            "failured_create_fn_result_multi_key", client.create_function, **request(name, Environment={"Variables": variables})
        )


# Versions and aliases


def test_version_lifecycle(client, name):
    with control("test_version_lifecycle", **{"<function-name:1>": name}) as recorded:
        step = recorded.step
        get = client.get_function
        step("create_response", client.create_function, **request(name))
        wait_active(client, name)
        step("get_function_result", get, FunctionName=name)
        step("list_versions_result", client.list_versions_by_function, FunctionName=name)
        update(client, name, step, "first_update_response", Description="First version description :)")
        step("first_update_get_function", get, FunctionName=name)
        v1 = step("first_publish_response", client.publish_version, FunctionName=name, Description="First version description :)")
        whole("PublishVersion", v1, **{"<function-name:1>": name})
        step("first_publish_get_function", get, FunctionName=name, Qualifier="1")
        step("first_publish_get_function_config", client.get_function_configuration, FunctionName=name, Qualifier="1")
        update(client, name, step, "second_update_response", Description="Second version description :))")
        step("first_publish_get_function_after_update", get, FunctionName=name, Qualifier="1")
        v2 = step("second_publish_response", client.publish_version, FunctionName=name)
        v3 = step("third_publish_response", client.publish_version, FunctionName=name, Description="Third version description :)))")
        assert (v2["Version"], v3["Version"]) == ("2", "2") and v3["Description"] == v2["Description"]
        listed = step("list_versions_result_after_third_publish", client.list_versions_by_function, FunctionName=name)
        assert [v["Version"] for v in listed["Versions"]] == ["$LATEST", "1", "2"]
        members = load("bodies")["ListVersionsByFunction, members of each version"]["body"]
        assert [sorted(v) for v in listed["Versions"]] == [members] * 3
        functions = client.get_paginator("list_functions").paginate(FunctionVersion="ALL").build_full_result()["Functions"]
        assert [sorted(f) for f in functions if f["FunctionName"] == name] == [members] * 3
        client.delete_function(FunctionName=name, Qualifier="1")
        step("list_versions_result_after_deletion_of_first_version", client.list_versions_by_function, FunctionName=name)


def test_publish_with_wrong_hash_and_revision(client, name):
    with control("test_publish_with_wrong_sha256") as recorded:
        recorded.step("create_response", client.create_function, **request(name))
        wait_active(client, name)
        got = recorded.step("get_fn_response", client.get_function, FunctionName=name)
        sha = got["Configuration"]["CodeSha256"]
        recorded.names.known["<code-sha256:1>"] = sha
        call = client.publish_version
        recorded.step("publish_wrong_sha256_exc", call, FunctionName=name, CodeSha256="somenonexistentsha256")
        recorded.step("publish_result", call, FunctionName=name, CodeSha256=sha)
    # Recorded in 2022, when a configuration had fewer members.
    old = ["create_response", "publish_result"]
    with control("test_publish_with_wrong_revisionid", left_out=old) as recorded:
        recorded.step("get_fn_response", client.get_function, FunctionName=name)
        recorded.step("publish_wrong_revisionid_exc", call, FunctionName=name, RevisionId="doesntexist")


def test_publish_with_update(client, name):
    with control("test_publish_with_update") as recorded:
        step = recorded.step
        step("create_response", client.create_function, **request(name))
        wait_active(client, name)
        step("get_function_result", client.get_function, FunctionName=name)
        step("update_function_code_result", client.update_function_code, **changed_code(name), Publish=True)
        wait_active(client, name)
        step("get_function_version_result", client.get_function, FunctionName=name, Qualifier="1")
        step("get_function_latest_result", client.get_function, FunctionName=name, Qualifier="$LATEST")


def test_alias_errors(emberbox, client, name):
    # boto3 would refuse a negative weight itself.
    create = emberbox.client(account=ACCOUNT, parameter_validation=False).create_alias
    with control("test_notfound_and_invalid_routingconfigs", **{"<function-name:1>": name}) as recorded:

        def step(key, function=name, version="1", weights=None, alias="custom"):
            routing = {} if weights is None else {"RoutingConfig": {"AdditionalVersionWeights": weights}}
            return recorded.step(key, create, FunctionName=function, Name=alias, FunctionVersion=version, **routing)

        recorded.step("create_response", client.create_function, **request(name, Publish=True, Environment={"Variables": {}}))
        wait_active(client, name)
        recorded.step("publish_v1", client.publish_version, FunctionName=name)
        client.update_function_code(**changed_code(name))
        wait_active(client, name)
        recorded.step("publish_v2", client.publish_version, FunctionName=name)
        step("routing_config_exc_toomany", weights={"1": 0.1, "2": 0.2})
        step("routing_config_exc_toohigh", weights={"2": 2})
        step("routing_config_exc_subzero", weights={"2": -1})
        step("routing_config_exc_sameversion", weights={"1": 0.5})
        step("target_version_doesnotexist", version="10", weights={"2": 0.5})
        step("routing_config_exc_version_doesnotexist", weights={"10": 0.5})
        step("target_version_exc_version_latest", version="$LATEST", weights={"1": 0.5})
        step("routing_config_exc_version_latest", weights={"$LATEST": 0.5})
        step("create-alias-latest", version="$LATEST", alias="custom-latest")
        step("routing_config_exc_fn_doesnotexist", function=f"{name}-unknown", weights={"2": 0.5})
        step("create_alias_empty_routingconfig", weights={}, alias="custom-empty-routingconfig")
        step("create_alias_response", weights={"2": 0.5})
        step("routing_config_exc_already_exist", weights={"2": 0.5})
        recorded.step("alias_does_not_exist_esc", client.get_alias, FunctionName=name, Name="non-existent")


def test_whole_aliases(client, name):
    client.create_function(**request(name, Publish=True))
    wait_active(client, name)
    client.update_function_configuration(FunctionName=name, Description="changed")
    wait_active(client, name)
    client.publish_version(FunctionName=name)
    names = {"<function-name:1>": name}
    alias = {"FunctionName": name, "FunctionVersion": "1"}
    weights = {"RoutingConfig": {"AdditionalVersionWeights": {"2": 0.2}}}
    one = client.create_alias(Name="aliasname1_1", Description="custom-alias", **alias, **weights)
    whole("CreateAlias (create_alias_1_1)", one, **names)
    two = client.create_alias(Name="aliasname1_2", Description="custom-alias", **alias)
    whole("CreateAlias (create_alias_1_2)", two, **names)
    whole("CreateAlias (create_alias_1_3)", client.create_alias(Name="aliasname1_3", **alias), **names)
    none = {"RoutingConfig": {"AdditionalVersionWeights": {}}}
    updated = client.update_alias(FunctionName=name, Name="aliasname1_1", **none)
    whole("UpdateAlias (update_alias_1_1)", updated, **names)
    deleted = client.delete_alias(FunctionName=name, Name="aliasname1_1")
    whole("DeleteAlias (delete_alias_response)", deleted, **names)


def test_delete_alias_that_is_not_there(client, name):
    with control("test_non_existent_alias_deletion") as recorded:
        recorded.step("create_response", client.create_function, **request(name, Environment={"Variables": {}}))
        recorded.step("delete_alias_response", client.delete_alias, FunctionName=name, Name="non-existent")


# Permissions


def permission(name, **changes):
    return {
        "FunctionName": name, "StatementId": "s3", "Action": "lambda:InvokeFunction", "Principal": "s3.amazonaws.com", **changes
    }


def test_permission_exceptions(client, created):
    add, remove = client.add_permission, client.remove_permission
    with control("test_permission_exceptions", **{"<function-name>": created}) as recorded:
        step = recorded.step
        step("add_permission_invalid_statement_id", add, **permission(created, StatementId="example.com"))
        step("add_permission_fn_qualifier_mismatch", add, **permission(arn(created, "42"), Qualifier="$LATEST"))
        step("add_permission_fn_qualifier_latest", add, **permission(created, Qualifier="$LATEST"))
        step("add_permission_principal_invalid", add, **permission(created, Principal="invalid.nonaws.com"))
        step("get_policy_fn_doesnotexist", client.get_policy, FunctionName="doesnotexist")
        step("get_policy_fn_version_doesnotexist", client.get_policy, FunctionName=created, Qualifier="42")
        step("add_permission_fn_doesnotexist", add, **permission("doesnotexist"))
        step("remove_permission_policy_doesnotexist", remove, FunctionName=created, StatementId="s3")
        step("add_permission_fn_alias_doesnotexist", add, **permission(created, Qualifier="alias-doesnotexist"))
        step("add_permission_fn_version_doesnotexist", add, **permission(created, Qualifier="42"))
        step("add_permission_fn_qualifier_invalid", add, **permission(created, Qualifier="invalid-qualifier-with-?-char"))
        step("add_permission_fn_qualifier_valid_doesnotexist", add, **permission(created, Qualifier="valid-with-$-but-doesnotexist"))
        add(**permission(created))
        step("add_permission_conflicting_statement_id", add, **permission(created))
        step("remove_permission_fn_doesnotexist", remove, FunctionName="doesnotexist", StatementId="s3")
        step("remove_permission_fn_alias_doesnotexist", remove, FunctionName=created, StatementId="s3", Qualifier="alias-doesnotexist")


def test_permission_fields(client, created):
    with control("test_add_lambda_permission_fields") as recorded:

        def step(key, **changes):
            return recorded.step(key, client.add_permission, **permission(created, StatementId=key, **changes))

        step("add_permission_principal_wildcard", Principal="*", SourceAccount=ACCOUNT)
        step("add_permission_principal_service", Principal="lambda.amazonaws.com")
        step("add_permission_principal_account", Principal=ACCOUNT)
        step("add_permission_principal_arn", Principal=f"arn:aws:iam::{ACCOUNT}:user/me")
        step(
            "add_permission_optional_fields", Principal="*", SourceArn="arn:aws:s3:::bucket", SourceAccount=ACCOUNT,
            PrincipalOrgID="o-1234567890",
        )
        step("add_permission_alexa_skill", Principal="alexa-appkit.amazon.com", EventSourceToken="amzn1.ask.skill.xxxxxxxx")


def test_whole_policy(client, created):
    names = {"<function-name:1>": created, "<resource:3>": "bucket"}
    added = client.add_permission(**permission(created, SourceArn="arn:aws:s3:::bucket"))
    whole("AddPermission", {**added, "Statement": json.loads(added["Statement"])}, **names)
    policy = client.get_policy(FunctionName=created)
    whole("GetPolicy", {**policy, "Policy": json.loads(policy["Policy"])}, **names)


def test_permissions_of_versions_and_aliases(client, created):
    add, get = client.add_permission, client.get_policy
    with control("test_lambda_permission_fn_versioning", **{"<function-name:1>": created}) as recorded:
        step = recorded.step
        step("add_permission", add, **permission(created))
        step("get_policy", get, FunctionName=created)
        client.update_function_configuration(FunctionName=created, Description="changed")
        wait_active(client, created)
        version = step("publish_version_result", client.publish_version, FunctionName=created)["Version"]
        step("get_function_result_after_publishing", client.get_function, FunctionName=created)
        step("get_policy_after_publishing_latest", get, FunctionName=created)
        step("get_policy_after_publishing_new_version", get, FunctionName=created, Qualifier=version)
        add(**permission(created, StatementId="version", Qualifier=version))
        step("get_policy_version", get, FunctionName=created, Qualifier=version)
        step("create_alias_response", client.create_alias, FunctionName=created, Name="live", FunctionVersion=version)
        step("get_alias", client.get_alias, FunctionName=created, Name="live")
        alias = permission(created, StatementId="alias", Qualifier="live")
        step("add_permission_alias_revision_exception", add, RevisionId="wrong", **alias)
        add(**alias)
        step("get_policy_alias", get, FunctionName=created, Qualifier="live")
        add(**permission(created, StatementId="other", Qualifier=version))
        step("get_policy_after_adding_to_new_version", get, FunctionName=created, Qualifier=version)
        add(**permission(created, StatementId="second"))
        step("get_policy_after_adding_2", get, FunctionName=created)


def test_permission_revisions(client, created):
    with control("test_function_revisions_permissions") as recorded:
        client.add_permission(**permission(created))
        recorded.step(
            "add_permission_revision_exception", client.add_permission, **permission(created, StatementId="x", RevisionId="wrong")
        )


def test_remove_permissions(client, created):
    with control("test_remove_multi_permissions") as recorded:
        step = recorded.step
        remove, get = client.remove_permission, client.get_policy
        step("add_permission_1", client.add_permission, **permission(created, StatementId="one"))
        step("add_permission_2", client.add_permission, **permission(created, StatementId="two"))
        step("policy_after_2_add", get, FunctionName=created)
        step("remove_permission_exception_nonexisting_sid", remove, FunctionName=created, StatementId="non-existent")
        remove(FunctionName=created, StatementId="two")
        step("policy_after_removal", get, FunctionName=created)
        with pytest.raises(client.exceptions.ResourceNotFoundException):
            remove(FunctionName=created, StatementId="two")
        step("policy_after_removal_attempt", get, FunctionName=created)
        remove(FunctionName=created, StatementId="one")
        step("get_policy_exception_removed_all", get, FunctionName=created)


# Tags, concurrency, account


def test_tag_exceptions(client, name, created):
    tag, untag, tags = client.tag_resource, client.untag_resource, client.list_tags
    absent = arn("f-" + uuid.uuid4().hex[:12])
    with control("test_tag_exceptions[lambda_function]", **{"<resource-name>": absent.split(":")[-1]}) as recorded:
        step = recorded.step
        step("not_found_exception_tag", tag, Resource=absent, Tags={"key": "value"})
        step("not_found_exception_untag", untag, Resource=absent, TagKeys=["key"])
        step("not_found_exception_list", tags, Resource=absent)
        step("aliased_arn_exception", tag, Resource=f"{absent}:alias", Tags={"key": "value"})
        step("invalid_arn_exception", tag, Resource=absent.replace(":function:", ":foobar:"), Tags={"key": "value"})
    with control("test_tag_exceptions") as recorded:
        step = recorded.step
        step("tag_lambda_invalidarn", tag, Resource="arn:aws:something", Tags={"key": "value"})
        step("tag_lambda_doesnotexist", tag, Resource=arn("doesnotexist"), Tags={"key": "value"})
        step("tag_lambda_qualifier_doesnotexist", tag, Resource=arn(created, "v1"), Tags={"key": "value"})
        step("list_tag_lambda_empty", tags, Resource=arn(created))
        step("untag_nomatch", untag, Resource=arn(created), TagKeys=["nope"])
        step("untag_empty_keys", untag, Resource=arn(created), TagKeys=[])
        step("tag_empty_tags", tag, Resource=arn(created), Tags={})


def test_tags_of_versions(client, created):
    client.publish_version(FunctionName=created)
    with control("test_tag_versions") as recorded:
        tag = client.tag_resource
        recorded.step("tag_resource_exception", tag, Resource=arn(created, "1"), Tags={"key": "value"})
        recorded.step("tag_resource_latest_exception", tag, Resource=arn(created, "$LATEST"), Tags={"key": "value"})


def test_tags_from_the_start(client, name):
    client.create_function(**request(name, Tags={"testtag": "foo"}))
    with control("test_create_tag_on_fn_create") as recorded:
        got = recorded.step("get_function_result", client.get_function, FunctionName=name)
        listed = recorded.step("list_tags_result", client.list_tags, Resource=arn(name))
        assert got["Tags"] == listed["Tags"] == {"testtag": "foo"}


def test_reserved_concurrency(client, created):
    put, get = client.put_function_concurrency, client.get_function_concurrency
    with control("test_function_concurrency") as recorded:
        step = recorded.step
        step("put_function_concurrency_with_reserved_0", put, FunctionName=created, ReservedConcurrentExecutions=0)
        one = step("put_function_concurrency_with_reserved_1", put, FunctionName=created, ReservedConcurrentExecutions=1)
        whole("put_function_concurrency_with_reserved_1", one)
        whole("get_function_concurrency", step("get_function_concurrency", get, FunctionName=created))
        whole("delete_response", step("delete_response", client.delete_function_concurrency, FunctionName=created))
        after = step("get_function_concurrency_after_delete", get, FunctionName=created)
        whole("get_function_concurrency_after_delete", after)
    with control("test_lambda_concurrency_crud") as recorded:
        step = recorded.step
        step("get_function_concurrency_default", get, FunctionName=created)
        step("put_function_concurrency", put, FunctionName=created, ReservedConcurrentExecutions=1)
        step("get_function_concurrency_updated", get, FunctionName=created)
        client.delete_function_concurrency(FunctionName=created)
        step("get_function_concurrency_deleted", get, FunctionName=created)


def test_account_settings(client):
    with control("test_account_settings") as recorded:
        settings = recorded.step("acc_settings_modded", client.get_account_settings)
    # The recorder kept the names only.
    settings = {k: sorted(v) if k.startswith("Account") else v for k, v in settings.items()}
    whole("GetAccountSettings", settings)
