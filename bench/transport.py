"""What the vectors' way through Kafka costs by itself: written to one topic in transactions and read from it, by Kafka's client
in C, in records as large as they may be, with nothing done to them."""

import time

import numpy
from confluent_kafka import Consumer, Producer

PARTITIONS = 10
RECORD_JOBS = 600
"""Of 384 floats each: somewhat less than the 1 MB that a record may have."""
TRANSACTION_RECORDS = 40
RECORDS = 2_000


def run_transport(broker, name):
    """Microseconds of CPU a job, of both clients and of the broker."""
    generator = numpy.random.default_rng(7)
    values = [generator.random(RECORD_JOBS * 384, dtype=numpy.float32).tobytes() for _ in range(PARTITIONS)]
    broker.create(name, PARTITIONS)
    producer = Producer({"bootstrap.servers": broker.address, "transactional.id": name})
    consumer = Consumer({"bootstrap.servers": broker.address, "group.id": name, "auto.offset.reset": "earliest", "isolation.level": "read_committed"})
    producer.init_transactions()
    consumer.subscribe([name])
    broker_s, clients_s, read = broker.process.cpu_s(), time.process_time(), 0
    for written in range(TRANSACTION_RECORDS, RECORDS + 1, TRANSACTION_RECORDS):
        producer.begin_transaction()
        for number in range(TRANSACTION_RECORDS):
            producer.produce(name, values[number % PARTITIONS], partition=number % PARTITIONS)
        producer.commit_transaction()
        unread_max = 0 if written == RECORDS else TRANSACTION_RECORDS
        while read < written - unread_max:
            messages = consumer.consume(TRANSACTION_RECORDS, timeout=0.1)
            assert not any(message.error() for message in messages), "a record could not be read"
            read += len(messages)
    jobs = RECORDS * RECORD_JOBS
    spent = {"clients": (time.process_time() - clients_s) / jobs * 1e6, "broker": (broker.process.cpu_s() - broker_s) / jobs * 1e6}
    consumer.close()
    broker.delete_under(name)
    return {"cpu_us_per_job": spent}
