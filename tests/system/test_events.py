"""Asynchronous invocation: from a 202 to the function's run, its retries, and where its outcome goes."""

import json

import pytest

from conftest import ECHO, invoke, wait_until


def log_lines(logs, name, pattern=""):
    """What the function wrote so far."""
    try:
        pages = logs.get_paginator("filter_log_events").paginate(logGroupName=f"/aws/lambda/{name}")
        lines = [event["message"] for page in pages for event in page["events"]]
    except logs.exceptions.ResourceNotFoundException:
        return []
    return [line for line in lines if pattern in line]


@pytest.fixture(scope="session")
def logs(emberbox):
    return emberbox.client("logs")


def send(client, name, payload=None, **kwargs):
    """Invokes asynchronously; the request id."""
    sent = invoke(client, name, payload, InvocationType="Event", **kwargs)
    assert sent.status == 202, sent.response
    return sent.request_id


NOTE = "def handler(event, context):\n    print('got', context.aws_request_id, event)\n"


def test_an_event_runs(client, logs, function):
    name = function(NOTE)
    sent = invoke(client, name, {"k": 1}, InvocationType="Event")
    # recorded: test_invocation_type_event
    assert sent.status == 202 and sent.body == b"" and set(sent.response) == {"ResponseMetadata", "Payload", "StatusCode"}
    assert sent.error is None and sent.version is None
    headers = sent.response["ResponseMetadata"]["HTTPHeaders"]
    assert headers["x-amzn-requestid"] == sent.request_id and headers["content-length"] == "0"
    assert "content-type" not in headers
    wait_until(lambda: log_lines(logs, name, f"got {sent.request_id} {{'k': 1}}"), what="the function's line")
