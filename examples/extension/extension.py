#!/usr/bin/env python3
"""An external extension: a process beside the runtime that hears of every invocation and of the shutdown.

Lambda starts every executable in /opt/extensions; it registers under its file name and then asks for events.
https://docs.aws.amazon.com/lambda/latest/dg/runtimes-extensions-api.html
"""

import json
import os
import sys
import urllib.request

API = "http://%s/2020-01-01/extension" % os.environ["AWS_LAMBDA_RUNTIME_API"]


def call(path, headers, body=None):
    request = urllib.request.Request(API + path, data=body, headers=headers)
    with urllib.request.urlopen(request) as response:  # no time limit: `next` answers when there is an event
        return response.headers, json.load(response)


headers, registered = call(
    "/register",
    {"Lambda-Extension-Name": os.path.basename(sys.argv[0]), "Content-Type": "application/json"},
    json.dumps({"events": ["INVOKE", "SHUTDOWN"]}).encode(),
)
identifier = {"Lambda-Extension-Identifier": headers["Lambda-Extension-Identifier"]}
print("extension: registered for", registered["functionName"], flush=True)

while True:
    _, event = call("/event/next", identifier)
    if event["eventType"] == "SHUTDOWN":
        print("extension: SHUTDOWN", event["shutdownReason"], flush=True)
        break
    print("extension: INVOKE", event["requestId"], flush=True)
