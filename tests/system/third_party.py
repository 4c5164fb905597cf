"""A third party's SQS, SNS, EventBridge and S3 (moto), and a gate before it that a test can close or break."""

import contextlib
import http.client
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading
import urllib.parse

import boto3
import botocore.config

ACCOUNT = "000000000000"
REGION = "us-east-1"
SERVER = pathlib.Path(sys.executable).parent / "moto_server"
# As that program, but that the sends and deletes of its SQS take turns: to delete makes a new list of messages without a
# lock, in which one that another request has added meanwhile is missing.
PROGRAM = """
import threading, moto.sqs.models as sqs
from moto.server import main
turn = threading.RLock()
def in_turn(change):
    def changed(*arguments):
        with turn:
            return change(*arguments)
    return changed
sqs.Queue.add_message = in_turn(sqs.Queue.add_message)
sqs.Queue.delete_message = in_turn(sqs.Queue.delete_message)
main(["-p", "0"])
"""


class Moto:
    """One `moto_server`; it forgets everything when it stops."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
            env={**os.environ, "MOTO_ACCOUNT_ID": ACCOUNT},
        )
        said = []
        for line in self.process.stderr:
            said.append(line)
            if "Running on http://" in line:
                self.endpoint = "http://" + line.split("Running on http://")[1].strip()
                break
        else:
            raise AssertionError("moto_server did not start:\n" + "".join(said))
        # it logs each request, and must not block on that
        threading.Thread(target=lambda: [None for _ in self.process.stderr], daemon=True).start()

    def client(self, service):
        return boto3.client(
            service, endpoint_url=self.endpoint, region_name=REGION,
            aws_access_key_id=ACCOUNT, aws_secret_access_key="test",
            config=botocore.config.Config(retries={"total_max_attempts": 1}),
        )

    def queue(self, name):
        """A new queue."""
        return Queue(self.client("sqs"), name)

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()


class Queue:
    """A queue whose messages a test takes."""

    def __init__(self, sqs, name):
        self.sqs = sqs
        self.name = name
        self.url = sqs.create_queue(QueueName=name)["QueueUrl"]
        self.arn = f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}"

    def take(self):
        """All messages that are there, taken out."""
        taken = []
        while True:
            messages = self.sqs.receive_message(
                QueueUrl=self.url, MaxNumberOfMessages=10, MessageAttributeNames=["All"], AttributeNames=["All"]
            ).get("Messages", [])
            for message in messages:
                self.sqs.delete_message(QueueUrl=self.url, ReceiptHandle=message["ReceiptHandle"])
            taken += messages
            if not messages:
                return taken


class Gate:
    """Before `upstream`: forwards, or does what `mode` says.

    - "forward"
    - "error": answers 500
    - "hang": reads the request and says nothing, until the mode changes
    - "closed": refuses connections
    """

    def __init__(self, upstream):
        self.upstream = urllib.parse.urlsplit(upstream)
        self.changed = threading.Condition()
        self.mode = "forward"
        self.refused = 0
        self.server = None
        self.port = 0
        self._listen()
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def set(self, mode):
        if mode == "closed" and self.server:
            self._close()
        elif mode != "closed" and not self.server:
            self._listen()
        with self.changed:
            self.mode = mode
            self.changed.notify_all()

    def stop(self):
        self.set("closed")

    def _listen(self):
        gate = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"  # a connection per request, so that "closed" closes all

            def handle_any(self):
                gate.handle(self)

            do_GET = do_POST = do_PUT = handle_any

            def log_message(self, *args):
                pass

        class Server(http.server.ThreadingHTTPServer):
            allow_reuse_address = True
            daemon_threads = True

        self.server = Server(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def _close(self):
        self.server.shutdown()
        self.server.server_close()
        self.server = None

    def handle(self, request):
        body = request.rfile.read(int(request.headers.get("content-length") or 0))
        if self.mode != "forward":
            with self.changed:
                self.refused += 1
                mode = self.mode
                self.changed.wait_for(lambda: self.mode != "hang")
            if mode == "error":
                request.send_error(500)
            return
        upstream = http.client.HTTPConnection(self.upstream.hostname, self.upstream.port, timeout=30)
        with contextlib.closing(upstream):
            upstream.request(request.command, request.path, body, dict(request.headers.items()))
            answer = upstream.getresponse()
            content = answer.read()
        request.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "server", "date"):
                request.send_header(name, value)
        request.send_header("content-length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)


def bodies(messages):
    """The JSON in them."""
    return [json.loads(message["Body"]) for message in messages]
