"""What a user would write instead of Tributary: the simplest script that turns jobs on Kafka into vectors in Parquet.

One process, a file for each tenant and poll, offsets committed afterwards: at least once, no bill, no fairness, and it
dies at the first broken line. It prints one line of JSON: when it was ready to read, when it ended, and what CPU it took.
"""

import argparse
import collections
import json
import pathlib
import time

import numpy
import pyarrow
import pyarrow.parquet
from confluent_kafka import Consumer

DIMENSION = 384


def main():
    args = arguments()
    embed = random_floats() if args.model is None else sentence_transformer(args.model)
    consumer = Consumer(
        {
            "bootstrap.servers": args.brokers,
            "group.id": args.group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            # The default of 64 MB a partition fetches far ahead of a slow model, which costs nothing here.
            "fetch.message.max.bytes": 4 << 20,
        }
    )
    consumer.subscribe([args.topic])
    ready, cpu_before_s, done, polls = time.time(), time.process_time(), 0, 0
    while done < args.jobs:
        messages = consumer.consume(num_messages=args.poll, timeout=0.2)
        if not messages:
            continue
        write(pathlib.Path(args.out), polls, [json.loads(message.value()) for message in messages], embed)
        consumer.commit(asynchronous=False)
        done, polls = done + len(messages), polls + 1
    cpu_s = time.process_time() - cpu_before_s
    print(json.dumps({"ready": ready, "ended": time.time(), "cpu_s": cpu_s, "jobs": done, "polls": polls}))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--brokers", required=True)
    parser.add_argument("--topic", default="jobs")
    parser.add_argument("--group", default="user-script")
    parser.add_argument("--out", required=True, help="the folder to write to")
    parser.add_argument("--jobs", type=int, required=True, help="end after this many")
    parser.add_argument("--poll", type=int, default=10_000, help="at most this many jobs a poll, and so a file")
    parser.add_argument("--model", help="a sentence-transformers folder or name; left out: random floats")
    return parser.parse_args()


def write(out, poll, jobs, embed):
    vectors = embed([job["input"] for job in jobs])
    rows = collections.defaultdict(list)
    for row, job in enumerate(jobs):
        rows[job["tenant"]].append(row)
    for tenant, of_tenant in rows.items():
        flat = pyarrow.array(vectors[of_tenant].reshape(-1))
        table = pyarrow.table(
            {
                "job_id": [jobs[row]["id"] for row in of_tenant],
                "model": [jobs[row]["model"] for row in of_tenant],
                "embedding": pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
            }
        )
        folder = out / f"tenant={tenant}"
        folder.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(table, folder / f"{poll:06}.parquet", compression="zstd")


def random_floats():
    generator = numpy.random.default_rng(7)
    return lambda texts: generator.random((len(texts), DIMENSION), dtype=numpy.float32)


def sentence_transformer(model):
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(model, device="cpu")
    encoder.encode(["warm"])
    return lambda texts: encoder.encode(texts, batch_size=32, show_progress_bar=False)


if __name__ == "__main__":
    main()
