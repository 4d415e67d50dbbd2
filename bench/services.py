"""Tributary's services as processes of their own, each with its configuration, health and metrics."""

import json
import re
import shutil
import urllib.error
import urllib.request

from broker import free_ports
from places import TARGET, WORK, Process, pinned

BINARY = TARGET / "tributary"
TENANTS = ["acme", "globex", "hooli", "initech", "stark"]
PARTITIONS = 2
SAMPLE = re.compile(r"^(\w+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


class Setup:
    """One configuration of the pipeline: a fresh lake, fresh groups and, by `name`, fresh internal topics."""

    def __init__(self, name, model, *, brokers=None, settings=(), tenants=TENANTS, policy=f"partitions = {PARTITIONS}\n"):
        self.name, self.folder, self.tenants = name, WORK / name, tenants
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.lake, self.settings = self.folder / "lake", settings
        topics = f'path = "{self.folder}/topics.redb"'
        if brokers:
            topics = f'kind = "kafka"\nprefix = "{name}."\nkafka = {{ "bootstrap.servers" = "{brokers}" }}'
        tenants = "".join(f"[tenants.{tenant}]\n{policy}" for tenant in tenants)
        self.config = self.folder / "tributary.toml"
        self.config.write_text(
            f"""[topics]
{topics}
[models.minilm]
source = "{model}"
price_per_device_second = "0.000125"
{tenants}[ingest]
group = "{name}-ingest"
[processor]
group = "{name}-processor"
attempts_path = "{self.folder}/attempts"
[sink]
group = "{name}-sink"
url = "{self.lake}"
[log]
filter = "warn"
"""
        )

    def start(self, stage, cpus=None):
        return Service(stage, self, cpus)

    def groups(self):
        """The consumer groups, and how many partitions each has to read, those of jobs and of the audit aside."""
        outcomes = len(self.tenants) * PARTITIONS
        return {f"{self.name}-processor-shared": len(self.tenants) * PARTITIONS, f"{self.name}-sink": outcomes}

    def remove(self):
        shutil.rmtree(self.folder, ignore_errors=True)


class Service(Process):
    """A running `tributary <stage>`."""

    def __init__(self, stage, setup, cpus=None):
        self.url = f"http://127.0.0.1:{free_ports(1)[0]}"
        listen = ["--set", f"http.listen={self.url.removeprefix('http://')}"]
        changes = [word for setting in setup.settings for word in ("--set", setting)]
        super().__init__(stage, pinned([BINARY, stage, "--config", setup.config, *listen, *changes], cpus))

    def is_well(self):
        return self.get("/health") is not None

    def metric(self, name):
        """The sum of a metric over its labels."""
        text = self.get("/metrics") or ""
        return sum(float(value) for found, value in SAMPLE.findall(text) if found == name)

    def get(self, path):
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as response:
                return response.read().decode()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return None

    def submit(self, lines):
        """Posts jobs, a line each, and makes sure that all were taken."""
        request = urllib.request.Request(f"{self.url}/v1/jobs", data=b"".join(lines))
        with urllib.request.urlopen(request, timeout=60) as response:
            answers = [json.loads(line) for line in response.read().splitlines()]
        refused = [answer for answer in answers if answer["answer"] != "accepted"]
        assert not refused and len(answers) == len(lines), refused[:3]
