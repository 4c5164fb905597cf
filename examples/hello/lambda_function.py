"""The smallest function: what `emberbox demo` deploys."""

import platform
import time

started = time.time()  # once for each sandbox: code out here runs during Init


def lambda_handler(event, context):
    print("hello,", event["name"])
    return {
        "message": f"Hello {event['name']}, from Python {platform.python_version()} on Lambda",
        "sandbox_age_ms": round((time.time() - started) * 1000),
    }
