"""The jobs that the benches run: the demo's texts, over and over, each time under another id."""

import itertools
import json

from confluent_kafka import Producer

from places import ROOT
from services import TENANTS

DEMO = ROOT / "tributary/demo/jobs.jsonl"
SHORT_CHARS = 400
"""Cut to this many characters, the demo's texts have 42 tokens on average."""


def texts():
    """The inputs of the demo's good jobs."""
    return [job["input"] for job in map(parsed, DEMO.read_bytes().splitlines()) if is_good(job)]


def short_texts():
    return [text if len(text) <= SHORT_CHARS else text[:SHORT_CHARS].rpartition(" ")[0] for text in texts()]


def lines(texts, count):
    """`count` jobs as lines of JSON, over all tenants evenly."""
    owners = itertools.cycle(TENANTS)
    for number, text, tenant in zip(range(count), itertools.cycle(texts), owners):
        job = {"id": f"{tenant}-{number}", "tenant": tenant, "model": "minilm", "input": text}
        yield json.dumps(job, ensure_ascii=False).encode() + b"\n"


def write(path, texts, count):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.writelines(lines(texts, count))
    return path


def produce(broker, topic, partitions, texts, count):
    """Puts `count` jobs on a new topic, over its partitions evenly."""
    broker.create(topic, partitions)
    producer = Producer({"bootstrap.servers": broker.address, "linger.ms": 20, "queue.buffering.max.messages": 200_000})
    failed = []
    for number, line in enumerate(lines(texts, count)):
        while True:
            try:
                producer.produce(topic, line.rstrip(), partition=number % partitions, on_delivery=lambda e, _: e and failed.append(e))
                break
            except BufferError:
                producer.poll(0.1)
        if number % 1_000 == 0:
            producer.poll(0)
    producer.flush()
    assert not failed, failed[0]


def parsed(line):
    try:
        return json.loads(line)
    except ValueError:
        return None


def is_good(job):
    return isinstance(job, dict) and job.get("model") == "minilm" and isinstance(job.get("input"), str) and job["input"].strip()
