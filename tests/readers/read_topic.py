"""Counts the records of a topic that a committed reader sees, and how many have the headers of a dead letter.

    read_topic.py BOOTSTRAP TOPIC
"""

import json
import sys

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

DEAD_LETTER = {"__connect.errors.topic", "__connect.errors.partition", "__connect.errors.offset", "__connect.errors.exception.message"}


def main():
    bootstrap, topic = sys.argv[1], sys.argv[2]
    settings = {"bootstrap.servers": bootstrap, "group.id": "story", "isolation.level": "read_committed", "enable.partition.eof": True}
    consumer = Consumer({**settings, "enable.auto.commit": False})
    partitions = list(consumer.list_topics(topic, timeout=20).topics[topic].partitions)
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions])
    records = positioned = ended = 0
    while ended < len(partitions):
        message = consumer.poll(20)
        if message is None:
            sys.exit(f"{topic}: no answer from {bootstrap}")
        if message.error():
            ended += 1
            continue
        records += 1
        positioned += DEAD_LETTER <= {name for name, _ in message.headers() or []}
    print(json.dumps({"records": records, "with_position": positioned}))


main()
