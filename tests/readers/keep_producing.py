"""Puts jobs on a topic until its input ends, each once and in order, whatever happens to the broker meanwhile.

    keep_producing.py BROKERS TOPIC TENANTS JOBS_PER_SECOND [TEXT_BYTES]

After each burst a line says how many jobs there are so far; after the last line all of them are acknowledged.
"""

import json
import select
import sys

from confluent_kafka import Producer

BURSTS_PER_SECOND = 5
BROKERS, TOPIC, TENANTS, RATE = sys.argv[1], sys.argv[2], sys.argv[3].split(","), int(sys.argv[4])
TEXT_BYTES = int(sys.argv[5]) if len(sys.argv) > 5 else 0


def main():
    failed = []
    producer = Producer(
        {
            "bootstrap.servers": BROKERS,
            "enable.idempotence": True,
            "message.timeout.ms": 900_000,
            "linger.ms": 20,
            "log_level": 0,
        }
    )
    produced = 0
    while not ended():
        for number in range(produced, produced + RATE // BURSTS_PER_SECOND):
            job = {"id": str(number), "tenant": TENANTS[number % len(TENANTS)], "model": "minilm", "input": f"Text number {number}".ljust(TEXT_BYTES, ".")}
            producer.produce(TOPIC, json.dumps(job), on_delivery=lambda error, _: error and failed.append(error))
        produced += RATE // BURSTS_PER_SECOND
        producer.poll(0)
        print(produced, flush=True)
    left = producer.flush(900)
    if left or failed:
        sys.exit(f"{left} jobs are not acknowledged, and {len(failed)} failed: {failed[:1]}")


def ended():
    readable, _, _ = select.select([sys.stdin], [], [], 1 / BURSTS_PER_SECOND)
    return bool(readable) and not sys.stdin.read(1)


main()
