"""Takes orders, as events and as messages of a queue. An order without a total fails."""

import json


def take(order):
    print("order", order["id"], "of", order["total"])
    return {"id": order["id"], "total": order["total"]}


def lambda_handler(event, context):
    if "Records" not in event:  # invoked with one order
        return take(event)

    # Invoked by an event source mapping with a batch. Only the messages that are named here come again.
    failed = []
    for record in event["Records"]:
        try:
            take(json.loads(record["body"]))
        except (KeyError, ValueError):
            failed.append({"itemIdentifier": record["messageId"]})
    return {"batchItemFailures": failed}
