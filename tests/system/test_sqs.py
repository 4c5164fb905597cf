"""The embedded SQS endpoint, as boto3 and the AWS CLI see it, and against what a third party's server answers."""

import json
import os
import signal
import tempfile
import threading
import time
import uuid

import pytest
from botocore.exceptions import ClientError

from conftest import Emberbox
from third_party import SERVER, Moto

pytestmark = pytest.mark.process_only("queues do not touch the sandbox")

ACCOUNT = "000000000000"


@pytest.fixture(scope="module")
def sqs(emberbox):
    return emberbox.client("sqs")


@pytest.fixture
def queue(sqs):
    """Makes queues that are deleted after the test: `queue(**attributes)` returns the URL."""
    urls = []

    def create(name=None, **attributes):
        name = name or "q-" + uuid.uuid4().hex[:12] + (".fifo" if "FifoQueue" in attributes else "")
        urls.append(sqs.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"])
        return urls[-1]

    yield create
    for url in urls:
        sqs.delete_queue(QueueUrl=url)


def arn(url):
    return f"arn:aws:sqs:us-east-1:{ACCOUNT}:{url.rsplit('/', 1)[1]}"


def receive(sqs, url, **kwargs):
    return sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, **kwargs).get("Messages", [])


def bodies(messages):
    return [message["Body"] for message in messages]


def counts(sqs, url):
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed"]
    got = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
    return tuple(int(got[name]) for name in names)


def test_a_queue_is_made_found_changed_and_deleted(sqs, emberbox):
    name = "q-" + uuid.uuid4().hex[:12]
    url = sqs.create_queue(QueueName=name, Attributes={"DelaySeconds": "1"}, tags={"team": "a"})["QueueUrl"]
    assert url == f"{emberbox.endpoint.rstrip('/')}/{ACCOUNT}/{name}"
    assert sqs.create_queue(QueueName=name)["QueueUrl"] == url
    assert sqs.get_queue_url(QueueName=name)["QueueUrl"] == url
    assert url in sqs.list_queues(QueueNamePrefix=name)["QueueUrls"]
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": "7"})
    attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    assert attributes["QueueArn"] == arn(url)
    assert (attributes["DelaySeconds"], attributes["VisibilityTimeout"]) == ("1", "7")
    sqs.tag_queue(QueueUrl=url, Tags={"stage": "test"})
    sqs.untag_queue(QueueUrl=url, TagKeys=["team"])
    assert sqs.list_queue_tags(QueueUrl=url)["Tags"] == {"stage": "test"}
    sqs.delete_queue(QueueUrl=url)
    with pytest.raises(sqs.exceptions.QueueDoesNotExist) as raised:
        sqs.get_queue_url(QueueName=name)
    assert raised.value.response["Error"]["Code"] == "AWS.SimpleQueueService.NonExistentQueue"


def test_pages_of_queues(sqs, queue):
    prefix = "p-" + uuid.uuid4().hex[:8]
    made = [queue(f"{prefix}-{i}") for i in range(5)]
    pages = sqs.get_paginator("list_queues").paginate(QueueNamePrefix=prefix, PaginationConfig={"PageSize": 2})
    assert [url for page in pages for url in page.get("QueueUrls", [])] == made


def test_a_message_with_everything(sqs, queue):
    url = queue(VisibilityTimeout="30")
    attributes = {
        "text": {"DataType": "String", "StringValue": "ü"},
        "number": {"DataType": "Number.float", "StringValue": "-1.5"},
        "bytes": {"DataType": "Binary.gif", "BinaryValue": b"\x00\xff"},
    }
    trace = {"AWSTraceHeader": {"DataType": "String", "StringValue": "Root=1-5759e988-bd862e3fe1be46a994272793"}}
    # botocore checks the digests
    sent = sqs.send_message(
        QueueUrl=url, MessageBody="hällo", MessageAttributes=attributes, MessageSystemAttributes=trace
    )
    (message,) = receive(sqs, url, MessageAttributeNames=["All"], MessageSystemAttributeNames=["All"])
    assert message["MessageId"] == sent["MessageId"]
    assert message["MessageAttributes"] == attributes
    assert message["MD5OfMessageAttributes"] == sent["MD5OfMessageAttributes"]
    assert message["Attributes"]["AWSTraceHeader"] == trace["AWSTraceHeader"]["StringValue"]
    assert message["Attributes"]["ApproximateReceiveCount"] == "1"
    assert abs(int(message["Attributes"]["SentTimestamp"]) / 1000 - time.time()) < 60
    assert counts(sqs, url) == (0, 1, 0)
    sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0)
    (message,) = receive(sqs, url, MessageAttributeNames=["tex.*"])
    assert list(message["MessageAttributes"]) == ["text"] and "Attributes" not in message
    sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    assert counts(sqs, url) == (0, 0, 0)


def test_the_largest_message(sqs, queue):
    url = queue()
    sqs.send_message(QueueUrl=url, MessageBody="x" * 1_048_576)
    assert len(receive(sqs, url)[0]["Body"]) == 1_048_576
    with pytest.raises(ClientError, match="must be shorter than 1048576 bytes"):
        sqs.send_message(QueueUrl=url, MessageBody="x" * 1_048_577)


def test_batches(sqs, queue):
    url = queue()
    entries = [{"Id": str(i), "MessageBody": f"m{i}"} for i in range(10)]
    assert len(sqs.send_message_batch(QueueUrl=url, Entries=entries)["Successful"]) == 10
    messages = receive(sqs, url)
    assert sorted(bodies(messages)) == [f"m{i}" for i in range(10)]
    handles = [{"Id": str(i), "ReceiptHandle": m["ReceiptHandle"]} for i, m in enumerate(messages)]
    back = [{**handle, "VisibilityTimeout": 0} for handle in handles[:5]] + [{"Id": "bad", "ReceiptHandle": "x", "VisibilityTimeout": 0}]
    changed = sqs.change_message_visibility_batch(QueueUrl=url, Entries=back)
    assert len(changed["Successful"]) == 5
    assert [failed["Code"] for failed in changed["Failed"]] == ["ReceiptHandleIsInvalid"]
    assert len(sqs.delete_message_batch(QueueUrl=url, Entries=handles[5:])["Successful"]) == 5
    assert counts(sqs, url) == (5, 0, 0)
    sqs.purge_queue(QueueUrl=url)
    assert counts(sqs, url) == (0, 0, 0)


def test_long_polls_end_when_a_message_comes(sqs, queue):
    url = queue()
    waits = []

    def poll():
        start = time.monotonic()
        (message,) = receive(sqs, url, WaitTimeSeconds=20)
        waits.append((message["Body"], time.monotonic() - start))

    pollers = [threading.Thread(target=poll) for _ in range(8)]
    for poller in pollers:
        poller.start()
    for i in range(8):
        sqs.send_message(QueueUrl=url, MessageBody=str(i))
    for poller in pollers:
        poller.join()
    assert sorted(body for body, _ in waits) == [str(i) for i in range(8)]
    assert max(wait for _, wait in waits) < 10
    start = time.monotonic()
    assert receive(sqs, url, WaitTimeSeconds=1) == []
    assert 0.9 < time.monotonic() - start < 5


def test_delays_and_timeouts_end_by_themselves(sqs, queue):
    url = queue(VisibilityTimeout="1")
    sqs.send_message(QueueUrl=url, MessageBody="x", DelaySeconds=1)
    assert counts(sqs, url) == (0, 0, 1)
    start = time.monotonic()
    assert bodies(receive(sqs, url, WaitTimeSeconds=20)) == ["x"]
    assert bodies(receive(sqs, url, WaitTimeSeconds=20)) == ["x"]
    assert 1.9 < time.monotonic() - start < 10


def test_fifo_order_and_duplicates(sqs, queue):
    url = queue(FifoQueue="true", ContentBasedDeduplication="true")
    entries = [{"Id": f"{g}{i}", "MessageBody": f"{g}{i}", "MessageGroupId": g} for i in range(4) for g in "ab"]
    sent = sqs.send_message_batch(QueueUrl=url, Entries=entries)["Successful"]
    numbers = [entry["SequenceNumber"] for entry in sent]
    assert numbers == sorted(numbers)
    again = sqs.send_message(QueueUrl=url, MessageBody="a0", MessageGroupId="a")
    assert again["MessageId"] == sent[0]["MessageId"]
    seen = {"a": [], "b": []}
    while messages := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=3, AttributeNames=["All"]).get("Messages"):
        for message in messages:
            seen[message["Attributes"]["MessageGroupId"]].append(message["Body"])
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    assert seen == {g: [f"{g}{i}" for i in range(4)] for g in "ab"}


def test_dead_letters(sqs, queue):
    dead = queue()
    policy = json.dumps({"deadLetterTargetArn": arn(dead), "maxReceiveCount": "2"})
    url = queue(RedrivePolicy=policy, VisibilityTimeout="0")
    sqs.send_message(QueueUrl=url, MessageBody="poison")
    assert [bodies(receive(sqs, url)) for _ in range(3)] == [["poison"], ["poison"], []]
    (message,) = receive(sqs, dead, AttributeNames=["All"])
    assert message["Attributes"]["DeadLetterQueueSourceArn"] == arn(url)
    assert sqs.list_dead_letter_source_queues(QueueUrl=dead)["queueUrls"] == [url]


def refused(call):
    with pytest.raises(ClientError) as raised:
        call()
    response = raised.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


def test_errors(sqs, queue, emberbox):
    url = queue()
    name = url.rsplit("/", 1)[1]
    prefix = "AWS.SimpleQueueService."
    assert refused(lambda: receive(sqs, url + "x")) == (prefix + "NonExistentQueue", 400)
    assert refused(lambda: sqs.create_queue(QueueName=name, Attributes={"DelaySeconds": "1"})) == ("QueueAlreadyExists", 400)
    assert refused(lambda: sqs.delete_message(QueueUrl=url, ReceiptHandle="x")) == ("ReceiptHandleIsInvalid", 400)
    assert refused(lambda: sqs.send_message_batch(QueueUrl=url, Entries=[])) == (prefix + "EmptyBatchRequest", 400)
    assert refused(lambda: sqs.list_message_move_tasks(SourceArn=arn(url))) == ("NotImplemented", 501)
    other = emberbox.client("sqs", account="111111111111")
    assert refused(lambda: receive(other, url)) == ("AccessDenied", 403)


def test_the_aws_cli(emberbox, aws_cli):
    name = "q-" + uuid.uuid4().hex[:12]
    env = {
        **os.environ, "AWS_DEFAULT_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": ACCOUNT, "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_PAGER": "", "AWS_MAX_ATTEMPTS": "1",
    }

    def aws(*args):
        # of SQS alone, version 1 of the CLI ignores AWS_ENDPOINT_URL_SQS
        done = aws_cli.run(["--endpoint-url", emberbox.endpoint, "sqs", *args], env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout.strip() else None

    url = aws("create-queue", "--queue-name", name)["QueueUrl"]
    aws("send-message", "--queue-url", url, "--message-body", "hello")
    message = aws("receive-message", "--queue-url", url, "--attribute-names", "All")["Messages"][0]
    assert message["Body"] == "hello"
    held = ["--queue-url", url, "--receipt-handle", message["ReceiptHandle"]]
    aws("change-message-visibility", *held, "--visibility-timeout", "60")
    aws("delete-message", *held)
    assert aws("receive-message", "--queue-url", url) is None
    # Queues.
    assert aws("get-queue-url", "--queue-name", name)["QueueUrl"] == url
    assert url in aws("list-queues", "--queue-name-prefix", name)["QueueUrls"]
    aws("set-queue-attributes", "--queue-url", url, "--attributes", "VisibilityTimeout=7")
    attributes = aws("get-queue-attributes", "--queue-url", url, "--attribute-names", "All")["Attributes"]
    assert attributes["VisibilityTimeout"] == "7" and attributes["QueueArn"] == arn(url)
    aws("tag-queue", "--queue-url", url, "--tags", "team=a")
    assert aws("list-queue-tags", "--queue-url", url)["Tags"] == {"team": "a"}
    aws("untag-queue", "--queue-url", url, "--tag-keys", "team")
    # Batches.
    entries = json.dumps([{"Id": str(n), "MessageBody": str(n)} for n in range(3)])
    assert len(aws("send-message-batch", "--queue-url", url, "--entries", entries)["Successful"]) == 3
    some = ["--max-number-of-messages", "10"]
    messages = aws("receive-message", "--queue-url", url, *some)["Messages"]
    assert sorted(m["Body"] for m in messages) == ["0", "1", "2"]
    again = [{"Id": m["Body"], "ReceiptHandle": m["ReceiptHandle"], "VisibilityTimeout": 0} for m in messages]
    batch = ["change-message-visibility-batch", "--queue-url", url, "--entries", json.dumps(again)]
    assert len(aws(*batch)["Successful"]) == 3
    messages = aws("receive-message", "--queue-url", url, *some)["Messages"]
    gone = json.dumps([{"Id": m["Body"], "ReceiptHandle": m["ReceiptHandle"]} for m in messages])
    assert len(aws("delete-message-batch", "--queue-url", url, "--entries", gone)["Successful"]) == 3
    aws("send-message", "--queue-url", url, "--message-body", "purged")
    aws("purge-queue", "--queue-url", url)
    assert aws("receive-message", "--queue-url", url) is None
    # A FIFO queue that sends what was received twice to this one's sibling.
    dead = aws("create-queue", "--queue-name", f"{name}-dead.fifo", "--attributes", "FifoQueue=true")["QueueUrl"]
    policy = json.dumps({"deadLetterTargetArn": arn(dead), "maxReceiveCount": 1})
    made = {"FifoQueue": "true", "ContentBasedDeduplication": "true", "RedrivePolicy": policy, "VisibilityTimeout": "0"}
    fifo = aws("create-queue", "--queue-name", f"{name}.fifo", "--attributes", json.dumps(made))["QueueUrl"]
    for body in ["a", "a", "b"]:
        aws("send-message", "--queue-url", fifo, "--message-group-id", "g", "--message-body", body)
    assert aws("list-dead-letter-source-queues", "--queue-url", dead)["queueUrls"] == [fifo]
    assert [m["Body"] for m in aws("receive-message", "--queue-url", fifo, *some)["Messages"]] == ["a", "b"]
    assert aws("receive-message", "--queue-url", fifo, *some) is None
    assert [m["Body"] for m in aws("receive-message", "--queue-url", dead, *some)["Messages"]] == ["a", "b"]
    for each in [fifo, dead, url]:
        aws("delete-queue", "--queue-url", each)
    assert aws("list-queues", "--queue-name-prefix", name) is None


@pytest.mark.needs(str(SERVER))
def test_a_third_party_agrees(sqs, queue):
    """What both answer alike: digests, shapes of answers, attributes that no host decides."""
    moto = Moto()
    try:
        theirs = moto.client("sqs")
        sides = [(sqs, queue()), (theirs, theirs.create_queue(QueueName="q")["QueueUrl"])]
        attributes = {"a": {"DataType": "String", "StringValue": "x"}, "b": {"DataType": "Binary", "BinaryValue": b"\x01"}}
        sent = [side.send_message(QueueUrl=url, MessageBody="x", MessageAttributes=attributes) for side, url in sides]
        for name in ("MD5OfMessageBody", "MD5OfMessageAttributes"):
            assert sent[0][name] == sent[1][name]
        taken = [receive(side, url, MessageAttributeNames=["All"], AttributeNames=["All"])[0] for side, url in sides]
        assert taken[0].keys() == taken[1].keys()
        assert taken[0]["MessageAttributes"] == taken[1]["MessageAttributes"]
        everything = [side.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"] for side, url in sides]
        for name in ("DelaySeconds", "MessageRetentionPeriod", "ReceiveMessageWaitTimeSeconds", "VisibilityTimeout"):
            assert everything[0][name] == everything[1][name]
        # theirs has attributes of its own invention as well
        codes = [refused(lambda: side.get_queue_url(QueueName="nope"))[0] for side, _ in sides]
        assert codes[0] == codes[1]
    finally:
        moto.stop()


def test_accepted_messages_survive_kill_9():
    with tempfile.TemporaryDirectory(prefix="emberbox-sqs-") as folder:
        accepted, server = set(), Emberbox(data_dir=folder)
        for run in range(5):
            server.start()
            url = server.client("sqs").create_queue(QueueName="q")["QueueUrl"]

            def send(sqs, thread, run=run, url=url):
                for i in range(10_000):
                    body = f"{run}-{thread}-{i}"
                    try:
                        sqs.send_message(QueueUrl=url, MessageBody=body)
                    except Exception:
                        return
                    accepted.add(body)

            threads = [threading.Thread(target=send, args=(server.client("sqs"), n)) for n in range(4)]
            before = len(accepted)
            for thread in threads:
                thread.start()
            while len(accepted) < before + 100:
                time.sleep(0.01)
            server.stop(signal.SIGKILL)
            for thread in threads:
                thread.join()
        server.start()
        sqs = server.client("sqs")
        url, found = sqs.get_queue_url(QueueName="q")["QueueUrl"], []
        while messages := receive(sqs, url, VisibilityTimeout=600):
            found += bodies(messages)
        server.stop()
    assert accepted <= set(found)
    assert len(found) == len(set(found))
