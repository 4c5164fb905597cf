"""OpenTelemetry traces: what a collector gets, decoded by OpenTelemetry's own messages for Python."""

import http.server
import re
import socket
import threading
import time
import urllib.request
import uuid

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from conftest import invoke, running, wait_active, wait_until, zip_bytes, PYTHON, ROLE
from test_fleet import Fleet

pytestmark = [
    pytest.mark.needs("root", "cgroups"),
    pytest.mark.process_only("spans are made of the timeline, which test_server looks at in both kinds of sandbox"),
]

CODE = """
import os, time

def handler(event, context):
    time.sleep(event.get("sleep", 0))
    if event.get("fail") == "once" and not os.path.exists("/tmp/again"):
        open("/tmp/again", "w").close()
        raise ValueError("once")
    if event.get("fail") == "always":
        raise ValueError("always")
    return os.environ["_X_AMZN_TRACE_ID"]
"""
COLD = ["1 assign", ["placement", "2 init", ["download", "sandbox", "runtime", "init"]], "3 invoke", "answer"]
WARM = ["1 assign", "3 invoke", "answer"]
KINDS = {1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}


class Span:
    def __init__(self, span, resource):
        self.trace, self.id, self.parent = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
        self.name, self.kind, self.error = span.name, KINDS[span.kind], span.status.message if span.status.code == 2 else None
        self.start, self.end = span.start_time_unix_nano, span.end_time_unix_nano
        self.attributes, self.resource = values(span.attributes), resource
        self.events = [event.name for event in span.events]


def values(attributes):
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in attributes}


class Collector:
    """Takes OTLP over HTTP, and keeps the spans."""

    def __init__(self):
        collector = self
        self.spans = []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces" and self.headers["Content-Type"] == "application/x-protobuf", self.path
                for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    resource = values(of_resource.resource.attributes)
                    for of_scope in of_resource.scope_spans:
                        collector.spans += [Span(span, resource) for span in of_scope.spans]
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = "http://127.0.0.1:%d" % self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def of(self, trace):
        return [span for span in list(self.spans) if span.trace == trace]

    def wait(self, trace, condition, what, timeout=60):
        """The spans of a trace once `condition` is true of them."""
        met = lambda: (spans := self.of(trace)) and condition(spans) and spans
        try:
            return wait_until(met, timeout, what)
        except AssertionError:
            raise AssertionError(f"no {what}: {[(span.name, span.error) for span in self.of(trace)]}")

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def collector():
    collector = Collector()
    yield collector
    collector.stop()


@pytest.fixture(scope="module")
def server(collector):
    with running(config=f'[otlp]\nendpoint = "{collector.endpoint}"\n', env={"OTEL_SERVICE_NAME": "orders"}) as server:
        yield server


def create(client, **settings):
    name = "traced-" + uuid.uuid4().hex[:8]
    client.create_function(
        FunctionName=name, Runtime=PYTHON, Handler="index.handler", Role=ROLE, Timeout=30,
        Code={"ZipFile": zip_bytes({"index.py": CODE})}, **settings,
    )
    wait_active(client, name)
    return name


def with_headers(client, **headers):
    """The client, whose invocations have these headers besides."""
    client.meta.events.register("before-call.lambda.Invoke", lambda params, **_: params["headers"].update(headers))
    return client


def new_root():
    """A root for X-Amzn-Trace-Id, and the id of its trace."""
    root = f"1-{int(time.time()):08x}-{uuid.uuid4().hex[:24]}"
    return root, root.replace("-", "")[1:]


def fields(header):
    return dict(part.split("=", 1) for part in header.split(";"))


def names_of(spans, parent):
    """Names of all that is under a span, by their order in time: [name, [what is under it], name, …]."""
    under = []
    for span in sorted((span for span in spans if span.parent == parent), key=lambda span: (span.start, span.end)):
        inner = names_of(spans, span.id)
        under += [span.name, inner] if inner else [span.name]
    return under


def named(spans, name):
    found = [span for span in spans if span.name == name]
    assert len(found) == 1, (name, [span.name for span in spans])
    return found[0]


def check_times(spans):
    """Nothing ends before it began, or is outside of the synchronous step that it is part of."""
    by_id = {span.id: span for span in spans}
    assert len(by_id) == len(spans)
    for span in spans:
        assert 0 < span.start <= span.end, span.name
        parent = by_id.get(span.parent)
        # What an event leads to is later than the request that brought it.
        if parent and parent.name.split()[0] not in ("invoke",):
            assert parent.start <= span.start and span.end <= parent.end, (span.name, parent.name)


def has(*names):
    return lambda spans: set(names) <= {span.name for span in spans}


def test_a_synchronous_invocation_cold_and_warm(server, collector):
    client = server.client()
    name = create(client)
    root, trace = new_root()
    caller = with_headers(server.client(), **{"X-Amzn-Trace-Id": f"Root={root};Parent=53995c3f42cd8ad8;Sampled=1"})
    answer = invoke(caller, name, {})
    spans = collector.wait(trace, has("answer"), "cold start")
    assert names_of(spans, "53995c3f42cd8ad8") == [f"invoke {name}", COLD]
    check_times(spans)
    whole, step = named(spans, f"invoke {name}"), named(spans, "3 invoke")
    # What the function does with its trace is under its own invocation.
    seen = fields(answer.json)
    assert (seen["Root"], seen["Parent"], seen["Sampled"]) == (root, step.id, "1") and "Lineage" in seen
    # The caller's answer names the invocation.
    assert fields(answer.response["ResponseMetadata"]["HTTPHeaders"]["x-amzn-trace-id"])["Parent"] == whole.id
    assert (whole.kind, whole.error, step.events) == ("server", None, ["invoked"])
    arn = client.get_function_configuration(FunctionName=name)["FunctionArn"]
    expected = {
        "faas.name": name, "faas.version": "$LATEST", "faas.coldstart": True, "faas.trigger": "http",
        "faas.invocation_id": answer.request_id, "faas.max_memory": 128 << 20, "cloud.resource_id": arn + ":$LATEST",
        "cloud.account.id": "000000000000", "cloud.region": "us-east-1", "aws.lambda.invoked_arn": arn,
    }
    assert whole.attributes == expected
    assert named(spans, "1 assign").attributes["emberbox.start"] == "cold"
    assert named(spans, "download").attributes["emberbox.package.source"] in ("cache", "storage")
    assert named(spans, "placement").attributes["emberbox.placement.reason"]
    for span in spans:
        assert span.resource["service.name"] == "orders" and span.resource["service.instance.id"] == socket.gethostname()
        assert "worker" in span.resource["emberbox.roles"] and span.resource["service.version"]

    again, trace = new_root()
    caller = with_headers(server.client(), **{"X-Amzn-Trace-Id": f"Root={again};Sampled=1"})
    invoke(caller, name, {})
    spans = collector.wait(trace, has("answer"), "warm invocation")
    assert names_of(spans, "") == [f"invoke {name}", WARM], "it has no parent"
    assert named(spans, "1 assign").attributes["emberbox.start"] in ("warm", "waited")
    assert named(spans, f"invoke {name}").attributes["faas.coldstart"] is False

    failed, trace = new_root()
    caller = with_headers(server.client(), **{"X-Amzn-Trace-Id": f"Root={failed};Sampled=1"})
    assert invoke(caller, name, {"fail": "always"}).error == "Unhandled"
    spans = collector.wait(trace, has("answer"), "failed invocation")
    assert named(spans, f"invoke {name}").error and named(spans, "3 invoke").error
    assert named(spans, "1 assign").error is None


def test_who_decides(server, collector):
    client = server.client()
    name = create(client)
    # Sampled=0 is respected, of both headers; AWS's header is the one that counts.
    root, not_sampled = new_root()
    answer = invoke(with_headers(server.client(), **{"X-Amzn-Trace-Id": f"Root={root};Parent=53995c3f42cd8ad8;Sampled=0"}), name, {})
    assert fields(answer.json)["Parent"] == "53995c3f42cd8ad8", "as the caller said it"
    w3c = uuid.uuid4().hex
    answer = invoke(with_headers(server.client(), traceparent=f"00-{w3c}-53995c3f42cd8ad8-00"), name, {})
    assert answer.json.startswith(f"Root=1-{w3c[:8]}-{w3c[8:]};Parent=53995c3f42cd8ad8;Sampled=0")
    sampled = uuid.uuid4().hex
    answer = invoke(with_headers(server.client(), traceparent=f"00-{sampled}-53995c3f42cd8ad8-01"), name, {})
    spans = collector.wait(sampled, has("answer"), "trace of a traceparent")
    assert named(spans, f"invoke {name}").parent == "53995c3f42cd8ad8"
    assert fields(answer.json)["Root"].replace("-", "")[1:] == sampled
    # Nobody said anything: all are taken, by default.
    answer = invoke(client, name, {})
    spans = collector.wait(fields(answer.json)["Root"].replace("-", "")[1:], has("answer"), "new trace")
    assert named(spans, f"invoke {name}").parent == ""
    assert collector.of(not_sampled) == collector.of(w3c) == [], "they would have come before"


def test_an_asynchronous_invocation_with_a_retry(server, collector):
    client = server.client()
    name = create(client)
    queue = server.client("sqs").create_queue(QueueName="told")["QueueUrl"]
    target = "arn:aws:sqs:us-east-1:000000000000:told"
    client.put_function_event_invoke_config(FunctionName=name, DestinationConfig={"OnSuccess": {"Destination": target}})
    root, trace = new_root()
    caller = with_headers(server.client(), **{"X-Amzn-Trace-Id": f"Root={root};Parent=53995c3f42cd8ad8;Sampled=1"})
    sent = invoke(caller, name, {"fail": "once"}, InvocationType="Event")
    # A function error is tried again after a minute.
    spans = collector.wait(trace, has("deliver", "attempt 2"), "second attempt", 150)
    check_times(spans)
    assert names_of(spans, "53995c3f42cd8ad8") == [
        f"invoke {name}",
        ["enqueue", "queue", "attempt 1", COLD, "queue", "attempt 2", WARM, "deliver"],
    ] or names_of(spans, "53995c3f42cd8ad8") == [
        # The poller takes it while it is being enqueued.
        f"invoke {name}",
        ["queue", "enqueue", "attempt 1", COLD, "queue", "attempt 2", WARM, "deliver"],
    ]
    request, first, second = (named(spans, of) for of in (f"invoke {name}", "attempt 1", "attempt 2"))
    assert (request.kind, named(spans, "enqueue").kind, first.kind) == ("server", "producer", "consumer")
    assert first.error and not second.error
    waits = sorted((span for span in spans if span.name == "queue"), key=lambda span: span.start)
    assert [span.attributes["emberbox.attempt"] for span in waits] == [1, 2]
    # It waited since the first attempt: a minute and not two.
    assert waits[1].end - waits[1].start >= 55e9 and waits[1].start >= first.start
    for span in (request, first, second):
        assert span.attributes["faas.invocation_id"] == sent.request_id and span.attributes["faas.trigger"] == "pubsub"
    deliver = named(spans, "deliver")
    assert (deliver.attributes["messaging.destination.name"], deliver.error) == (target, None)
    # What comes of the message is under its delivery.
    message = server.client("sqs").receive_message(QueueUrl=queue, AttributeNames=["AWSTraceHeader"])["Messages"][0]
    header = fields(message["Attributes"]["AWSTraceHeader"])
    assert (header["Root"], header["Parent"]) == (root, deliver.id)


def metric(endpoint, name):
    page = urllib.request.urlopen(endpoint + "/metrics").read().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name))


@pytest.mark.parametrize("kind", ["gone", "silent"])
def test_a_collector_that_does_not_answer_costs_no_invocation(kind):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        if kind == "silent":
            nobody.listen(64)
        endpoint = "http://127.0.0.1:%d" % nobody.getsockname()[1]
        with running(env={"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}) as server:
            client = server.client()
            name = create(client)
            for _ in range(50):
                assert "Sampled=1" in invoke(client, name, {}).json
            assert invoke(client, name, {}, InvocationType="Event").status == 202
            undelivered = lambda: metric(server.endpoint, 'emberbox_trace_spans_total{outcome="undelivered"}')
            if kind == "gone":
                wait_until(undelivered, 60, "spans to be given up and counted")
            assert metric(server.endpoint, 'emberbox_trace_spans_total{outcome="exported"}') == 0
            # Nor does the end wait for it: three seconds, and what the sandboxes take.
            assert server.stop(timeout=30) == 0


def test_without_a_collector_there_is_nothing_to_count(emberbox):
    page = urllib.request.urlopen(emberbox.endpoint + "/metrics").read().decode()
    assert "trace_spans" not in page


@pytest.mark.needs("postgresql")
def test_one_trace_goes_through_the_roles_of_a_fleet(collector):
    fleet = Fleet("--frontends", "2", "--managers", "1", "--workers", "2", config=f'[otlp]\nendpoint = "{collector.endpoint}"\n')
    try:
        client = fleet.client()
        name = create(client)
        root, trace = new_root()
        caller = with_headers(fleet.client(1), **{"X-Amzn-Trace-Id": f"Root={root};Parent=53995c3f42cd8ad8;Sampled=1"})
        answer = invoke(caller, name, {})
        spans = collector.wait(trace, has("answer"), "cold start")
        assert names_of(spans, "53995c3f42cd8ad8") == [f"invoke {name}", COLD]
        check_times(spans)
        assert fields(answer.json)["Parent"] == named(spans, "3 invoke").id
        by = {span.name: (span.resource["service.instance.id"], span.resource["emberbox.roles"]) for span in spans}
        assert re.fullmatch(r"frontend-\d", by[f"invoke {name}"][0]) and by["answer"] == by[f"invoke {name}"]
        assert "frontend" in by["answer"][1] and "worker-manager" in by["1 assign"][1]
        assert by["placement"] == by["1 assign"] != by["answer"]
        assert by["3 invoke"][1] == "worker" and by["3 invoke"] == by["2 init"] == by["download"] == by["init"]
        assert {span.resource["service.name"] for span in spans} == {"emberbox"}

        invoke(caller, name, {})
        spans = collector.wait(trace, lambda spans: sum(span.name == "answer" for span in spans) == 2, "warm invocation")
        assert names_of(spans, "53995c3f42cd8ad8") == [f"invoke {name}", COLD, f"invoke {name}", WARM]

        # An event that is throttled, as its function has one sandbox and that is in use; it is tried again after a second.
        client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=1)
        root, trace = new_root()
        caller = with_headers(fleet.client(), **{"X-Amzn-Trace-Id": f"Root={root};Parent=53995c3f42cd8ad8;Sampled=1"})
        holding = threading.Thread(target=lambda: invoke(fleet.client(), name, {"sleep": 4}))
        holding.start()
        wait_until(lambda: throttled(fleet.client(), name), 30, "the sandbox to be in use")
        invoke(caller, name, {}, InvocationType="Event")
        succeeded = lambda spans: any(span.name.startswith("attempt") and not span.error for span in spans)
        spans = collector.wait(trace, lambda spans: succeeded(spans) and has("enqueue")(spans), "event that ran", 120)
        holding.join()
        check_times(spans)
        attempts = sorted((span for span in spans if span.name.startswith("attempt")), key=lambda span: span.start)
        request = named(spans, f"invoke {name}")
        assert [span.name for span in attempts] == [f"attempt {n + 1}" for n in range(len(attempts))] and len(attempts) >= 2
        assert {span.parent for span in attempts} == {request.id} and request.parent == "53995c3f42cd8ad8"
        assert [bool(span.error) for span in attempts] == [True] * (len(attempts) - 1) + [False]
        assert names_of(spans, attempts[0].id) == ["1 assign"] and names_of(spans, attempts[-1].id) == WARM
        assert "frontend" in request.resource["emberbox.roles"] and "pollers" in attempts[0].resource["emberbox.roles"]
        assert request.resource["service.instance.id"] != attempts[0].resource["service.instance.id"]
        assert fleet.stop() == 0
    finally:
        fleet.remove()


def throttled(client, name):
    try:
        invoke(client, name, {})
        return False
    except client.exceptions.TooManyRequestsException:
        return True
