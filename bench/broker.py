"""A real Apache Kafka of one node, for one bench."""

import os
import pathlib
import shutil
import socket
import subprocess
import time

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from places import ROOT, WORK, Process

HEAP = "1g"


def libraries():
    """The folder of Kafka's jars, which are got first where they are missing."""
    subprocess.run([ROOT / "tests/kafka/fetch"], check=True)
    return pathlib.Path(os.environ.get("TRIBUTARY_KAFKA_LIBS", ROOT / ".cache/kafka/libs"))


class Broker:
    """Starts Kafka with its data in a fresh folder; a context manager that stops it and removes the data."""

    def __init__(self):
        self.folder = WORK / "kafka"
        self.classpath = f"{libraries()}/*"

    def __enter__(self):
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        port, controller_port = free_ports(2)
        self.address = f"127.0.0.1:{port}"
        properties = self.folder / "server.properties"
        properties.write_text(
            f"""process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://{self.address},CONTROLLER://127.0.0.1:{controller_port}
controller.listener.names=CONTROLLER
log.dirs={self.folder}/logs
offsets.topic.replication.factor=1
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=8
group.initial.rebalance.delay.ms=0
log.segment.delete.delay.ms=1000
"""
        )
        java = ["java", "-cp", self.classpath]
        format_storage = [*java, "kafka.tools.StorageTool", "format", "-t", "AAAAAAAAAAAAAAAAAAAAAA", "-c", properties]
        subprocess.run(format_storage, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.process = Process("broker", ["java", f"-Xmx{HEAP}", "-cp", self.classpath, "kafka.Kafka", str(properties)])
        self.admin = AdminClient({"bootstrap.servers": self.address, "log_level": 0})
        self.process.wait_for(self.answers, "Kafka answers")
        return self

    def __exit__(self, *_):
        self.process.end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def answers(self):
        try:
            return bool(self.admin.list_topics(timeout=1).brokers)
        except KafkaException:
            return False

    def create(self, topic, partitions):
        self.admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result()

    def assigned(self, group):
        """How many partitions the members of a group have between them; none while its coordinator is being found."""
        try:
            members = self.admin.describe_consumer_groups([group])[group].result().members
        except KafkaException:
            return 0
        return sum(len(member.assignment.topic_partitions) for member in members if member.assignment)

    def delete_under(self, prefix):
        """Deletes the topics whose names begin so, and waits until they are gone, their files too."""
        topics = [topic for topic in self.admin.list_topics(timeout=10).topics if topic.startswith(prefix)]
        for future in self.admin.delete_topics(topics).values() if topics else []:
            future.result()
        while any(self.folder.glob(f"logs/{prefix}*")):
            self.process.must_run()
            time.sleep(0.2)


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports
