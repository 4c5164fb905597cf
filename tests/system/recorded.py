"""Compares responses with those that were recorded from AWS (recorded/README.md).

A recorded step is replayed by `Replay.step(key, call, **arguments)`: the response is brought into the recording's form and
every difference is a failure, but for those that the tests' `DEVIATIONS` name by test, step and path.
"""

import contextlib
import json
import pathlib
import re
import uuid

import botocore.exceptions
import pytest

from conftest import ECHO, PYTHON, wait_active, zip_bytes

FOLDER = pathlib.Path(__file__).parent / "recorded"
ACCOUNT = "111111111111"  # the recorder's
ROLE = f"arn:aws:iam::{ACCOUNT}:role/lambda"


def load(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


def in_recorded_form(call, **arguments):
    """Calls, and returns what a step of the recording says about a response; and the response itself."""
    try:
        response = call(**arguments)
    except botocore.exceptions.ParamValidationError as error:
        return {"value": str(error)}, None
    except botocore.exceptions.ClientError as error:
        response = error.response
        body = {k: v for k, v in response.items() if k not in ("Error", "ResponseMetadata")}
        seen = {"error": response["Error"]["Code"], "status": response["ResponseMetadata"]["HTTPStatusCode"]}
        if "message" not in (k.lower() for k in body):
            seen["message"] = response["Error"]["Message"]
        if body:
            seen["body"] = body
        return seen, response
    seen = {"status": response["ResponseMetadata"]["HTTPStatusCode"]}
    seen["fields"] = sorted(k for k in response if k != "ResponseMetadata")
    if "Payload" in response:
        response["Payload"] = response["Payload"].read()
        seen["invoke_status"] = response["StatusCode"]
        if "FunctionError" in response:
            seen["function_error"] = response["FunctionError"]
            seen["payload"] = json.loads(response["Payload"])
    return seen, response


class Names:
    """What the recorder's placeholders stand for; one that is not given stands for any text, the same each time."""

    def __init__(self, **known):
        self.known = {"<partition>": "aws", "<region>": "us-east-1", **known}

    def matches(self, recorded, seen):
        if not isinstance(seen, str):
            # The recorder replaced a whole value.
            return bool(re.fullmatch(r"<[^<>]+>", recorded))
        pattern, new = "", []
        for part in re.split(r"(<[a-z0-9_-]+(?::\d+)?>)", recorded):
            if part in self.known:
                pattern += re.escape(self.known[part])
            elif re.fullmatch(r"<[a-z0-9_-]+(?::\d+)?>", part):
                pattern += "(.+)" if part not in new else rf"\{new.index(part) + 1}"
                new += [part] * (part not in new)
            elif part in ("date", "datetime", "code-sha256"):
                pattern += ".+"
            else:
                pattern += re.escape(part)
        match = re.fullmatch(pattern, seen, re.DOTALL)
        # `<uuid>` and such, without a number, are any value; numbered ones are one value.
        if match:
            self.known |= {name: match[n + 1] for n, name in enumerate(new) if ":" in name}
        return bool(match)


def differences(recorded, seen, names, path=""):
    """Yields (path, recorded, seen) for all that is not the same."""
    if isinstance(recorded, dict) and isinstance(seen, dict):
        for key in sorted(recorded.keys() | seen.keys()):
            below = f"{path}/{key}" if path else key
            if key not in seen:
                yield below, recorded[key], "(absent)"
            elif key not in recorded:
                yield below, "(absent)", seen[key]
            else:
                yield from differences(recorded[key], seen[key], names, below)
    elif isinstance(recorded, list) and isinstance(seen, list) and len(recorded) == len(seen):
        for n, (r, s) in enumerate(zip(recorded, seen)):
            yield from differences(r, s, names, f"{path}/{n}")
    elif recorded != seen and not (isinstance(recorded, str) and names.matches(recorded, seen)):
        yield path, recorded, seen


class Replay:
    """One recorded test. Used with `with`: at the end every step must have been replayed or be left out by name."""

    def __init__(self, test, steps, deviations, left_out=(), **names):
        self.test = test
        self.steps = steps
        self.deviations = {path: reason for (where, path), reason in deviations.items() if where == test}
        self.todo = set(steps) - set(left_out)
        assert set(left_out) <= set(steps), f"{test}: left out, but not recorded: {set(left_out) - set(steps)}"
        self.names = Names(**names)
        self.problems = []

    def compare(self, key, seen, recorded=None):
        self.todo.discard(key)
        for path, theirs, ours in differences(recorded or self.steps[key], seen, self.names, key):
            if self.deviations.pop(path, None) is None:
                theirs, ours = (text if len(text) < 1500 else f"{text[:700]}…{text[-700:]}" for text in (repr(theirs), repr(ours)))
                self.problems.append(f"{path}:\n    AWS  {theirs}\n    ours {ours}")

    def step(self, key, call, **arguments):
        """Returns the response, or None if the client itself refused."""
        seen, response = in_recorded_form(call, **arguments)
        self.compare(key, seen)
        return response

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is None or self.problems:
            self.problems += [f"{key}: recorded, not replayed" for key in sorted(self.todo) if error is None]
            self.problems += [f"{path}: no longer deviates ({why})" for path, why in self.deviations.items() if error is None]
            if self.problems:
                pytest.fail(f"{self.test}:\n  " + "\n  ".join(self.problems), pytrace=False)


def compare_whole(key, response, deviations, **names):
    """Compares a whole body, without what boto3 adds."""
    recorded = load("bodies")[key]
    if "Runtime" in recorded["body"]:
        # The Python that runs this suite, not the recorder's, which not every host has.
        recorded["body"]["Runtime"] = PYTHON
    with Replay(key, {key: recorded}, deviations, **names) as replay:
        body = {k: v for k, v in response.items() if k != "ResponseMetadata"}
        replay.compare(key, {"status": response["ResponseMetadata"]["HTTPStatusCode"], "body": body})


# For the tests


@pytest.fixture(scope="session")
def client(emberbox):
    """Calls as the account of the recording."""
    return emberbox.client(account=ACCOUNT)


def arn(name, qualifier=None):
    return f"arn:aws:lambda:us-east-1:{ACCOUNT}:function:{name}" + (f":{qualifier}" if qualifier else "")


def request(name, files=None, **changes):
    """What CreateFunction is called with."""
    code = {"ZipFile": zip_bytes(files or {"index.py": ECHO})}
    return {"FunctionName": name, "Runtime": PYTHON, "Handler": "index.handler", "Role": ROLE, "Code": code, **changes}


def changed_code(name):
    """What UpdateFunctionCode is called with."""
    return {"FunctionName": name, "ZipFile": zip_bytes({"index.py": ECHO + "# changed\n"})}


@pytest.fixture
def name(client):
    """A name that no function has, and that none has after the test."""
    name = "f-" + uuid.uuid4().hex[:12]
    yield name
    with contextlib.suppress(client.exceptions.ResourceNotFoundException):
        client.delete_function(FunctionName=name)


@pytest.fixture
def created(client, name):
    """A function that is active; the recorder's helper sends an empty environment and no tags."""
    client.create_function(**request(name, Environment={"Variables": {}}, Tags={}))
    wait_active(client, name)
    return name
