"""Says how long ago something happened, in words. The words come from a dependency (see requirements.txt)."""

import datetime
import json
import os

import humanize


def lambda_handler(event, context):
    moment = datetime.datetime.fromisoformat(event.get("since", "2014-11-13T00:00:00+00:00"))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.timezone.utc)
    age = datetime.datetime.now(datetime.timezone.utc) - moment
    print(json.dumps({"since": moment.isoformat(), "remaining_ms": context.get_remaining_time_in_millis()}))
    return {
        "since": moment.isoformat(),
        "ago": humanize.naturaltime(age),
        "runtime": os.environ["AWS_EXECUTION_ENV"],
        "function": context.invoked_function_arn,
    }
