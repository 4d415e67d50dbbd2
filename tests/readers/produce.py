"""Produces the records of a confluent.json that make_jobs.py wrote.

    produce.py BOOTSTRAP FILE
"""

import base64
import json
import sys

from confluent_kafka import Producer


def main():
    producer = Producer({"bootstrap.servers": sys.argv[1], "enable.idempotence": True, "linger.ms": 20})
    failed = []
    for record in json.load(open(sys.argv[2])):
        value = None if record["value"] is None else base64.b64decode(record["value"])
        headers = list(record.get("headers", {}).items())
        while True:
            try:
                producer.produce(
                    record["topic"],
                    value=value,
                    key=record.get("key"),
                    headers=headers,
                    on_delivery=lambda error, _: failed.append(str(error)) if error else None,
                )
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush()
    if failed:
        sys.exit(f"{len(failed)} records were not delivered: {failed[0]}")


main()
