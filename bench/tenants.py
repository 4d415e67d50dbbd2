"""Many tenants as real topics on one broker: what it takes to make them, to have them idle, and to serve some or all."""

import contextlib
import json
import time

import report
from broker import Broker
from confluent_kafka import Producer
from places import Process
from report import table
from runs import ROWS, STAGES
from services import BINARY, Setup

FEW, MANY = 10, 1_000
IDLE_S = 20
"""How long nothing is sent while CPU time is counted."""
ACTIVE_PER_S = 10
ACTIVE_JOBS = 200
"""Of the tenants that are active, together, a second and in all."""


def tenants(args):
    """The same with few tenants and with many; what differs is theirs."""
    settings = ["sink.flush_interval_ms=1000", *args.set]
    runs = []
    for count in (FEW, MANY):
        with Broker() as broker:
            runs.append(run(broker, count, settings))
    few, many = runs
    idle_kib = {stage: (many["idle_bytes"][stage] - few["idle_bytes"][stage]) / (MANY - FEW) / 1024 for stage in (*STAGES, "broker")}

    def row(what, cell):
        return [what, *(cell(one) for one in runs)]

    rows = [
        row("topics, partitions", lambda one: f"{one['topics']}, {one['partitions']}"),
        row("`tenants apply`, s", lambda one: f"{one['apply_s']:.1f}"),
        row("`tenants apply` of one more, s", lambda one: f"{one['apply_more_s']:.1f}"),
        row("first row of a new tenant after that, s", lambda one: f"{one['new_tenant_s']:.1f}"),
        *(row(f"{stage} until well, s", lambda one: f"{one['well_s'][stage]:.1f}") for stage in STAGES),
        row("until all partitions are handed over, s", lambda one: f"{one['assigned_s']:.1f}"),
        *(row(f"{stage} idle, cores", lambda one: f"{one['idle_cores'][stage]:.3f}") for stage in (*STAGES, "broker")),
        *(row(f"{stage} idle, resident MiB", lambda one: f"{one['idle_bytes'][stage] / 2**20:.0f}") for stage in (*STAGES, "broker")),
    ]
    for phase, what in PHASES.items():
        rows.append(row(f"{what}: until the last row is in the lake, s", lambda one: f"{one[phase]['rows_s']:.1f}"))
        for stage in ("ingest", "processor"):
            rows.append(row(f"commit of {stage}, mean ms", lambda one: f"{one[phase]['commit_ms'][stage]:.0f}"))
    text = f"{ACTIVE_JOBS} jobs, {ACTIVE_PER_S}/s, of one tenant in a hundred; one round\n\n" + table(["", f"{FEW} tenants", f"{MANY} tenants"], rows)
    text += "\n\nResident a tenant with nothing to do, KiB: " + ", ".join(f"{stage} {kib:.1f}" for stage, kib in idle_kib.items())
    report.finish("tenants", {"runs": runs, "idle_kib_a_tenant": idle_kib}, text)


PHASES = {"first": "the first job after the start", "next": "the first job of an idle tenant", "active": "one tenant in a hundred", "all": "a job of every tenant at once"}


def run(broker, count, settings):
    setup = Setup(f"tenants{count}", "passthrough:384", brokers=broker.address, settings=settings, tenants=[])
    names = [f"tenant-{number}" for number in range(count)]
    found = {"tenants": count, "apply_s": apply(setup, names)}
    metadata = broker.admin.list_topics(timeout=60).topics
    made = [topic for name, topic in metadata.items() if not name.startswith("__")]
    found |= {"topics": len(made), "partitions": sum(len(topic.partitions) for topic in made)}
    with contextlib.ExitStack() as stack:
        stack.callback(setup.remove)
        services, found["well_s"] = {}, {}
        began = time.time()
        for stage in STAGES:
            started = time.time()
            services[stage] = setup.start(stage)
            stack.callback(services[stage].end)
            services[stage].wait_for(services[stage].is_well, f"{stage} is well", timeout_s=300)
            found["well_s"][stage] = time.time() - started
        groups = {"ingest": count + 4, "processor-shared": count * work_topics(metadata, names[0]), "sink": count + 2}
        for group, partitions in groups.items():
            whole = f"{setup.name}-{group}"
            services["sink"].wait_for(lambda: broker.assigned(whole) >= partitions, f"group {whole} has its {partitions} partitions", timeout_s=300)
        found["assigned_s"] = time.time() - began
        processes = {**services, "broker": broker.process}
        found["first"] = phase(broker, services, names[:1], 1, per_s=1)
        before = {stage: process.cpu_s() for stage, process in processes.items()}
        time.sleep(IDLE_S)
        found["idle_cores"] = {stage: (process.cpu_s() - before[stage]) / IDLE_S for stage, process in processes.items()}
        found["idle_bytes"] = {stage: process.memory_bytes()[0] for stage, process in processes.items()}
        found["next"] = phase(broker, services, names[-1:], 1, per_s=1)
        found["active"] = phase(broker, services, names[:: min(count, 100)], ACTIVE_JOBS, per_s=ACTIVE_PER_S)
        found["all"] = phase(broker, services, names, count, per_s=None)
        more = [*names, "newcomer"]
        rows = services["sink"].metric(ROWS)
        found["apply_more_s"] = apply(setup, more)
        applied = time.time()
        produce(broker, more[-1:], 1, per_s=1)
        services["sink"].wait_for(lambda: services["sink"].metric(ROWS) > rows, "a new tenant has its row")
        found["new_tenant_s"] = time.time() - applied
    print(json.dumps(found), flush=True)
    return found


def work_topics(metadata, tenant):
    return sum(".work." in name and name.endswith(f".{tenant}") for name in metadata)


def apply(setup, names):
    """Seconds that `tributary tenants apply` takes."""
    file = setup.folder / "tenants.toml"
    file.write_text("".join(f"[tenants.{name}]\n" for name in names))
    began = time.time()
    Process("tenants apply", [BINARY, "--config", setup.config, "tenants", "apply", file]).must_succeed()
    return time.time() - began


def phase(broker, services, names, count, per_s):
    """Sends `count` jobs, over the tenants in turn, and sees what it took to have all their rows in the lake."""
    rows = services["sink"].metric(ROWS) + count
    commits = {stage: sums(services[stage], stage) for stage in ("ingest", "processor")}
    began = produce(broker, names, count, per_s)
    services["sink"].wait_for(lambda: services["sink"].metric(ROWS) >= rows, "every row is in the lake", timeout_s=300)
    took = {}
    for stage, (sum_s, number) in commits.items():
        sum_now_s, number_now = sums(services[stage], stage)
        took[stage] = (sum_now_s - sum_s) / max(1, number_now - number) * 1e3
    return {"jobs": count, "tenants": len(names), "rows_s": time.time() - began, "commit_ms": took}


def sums(service, stage):
    return [service.metric(f"tributary_{stage}_commit_seconds_{what}") for what in ("sum", "count")]


def produce(broker, names, count, per_s):
    """Sends jobs to the tenants' own topics, at once or steadily. Returns when the last one was sent."""
    producer = Producer({"bootstrap.servers": broker.address, "linger.ms": 2, "topic.metadata.refresh.interval.ms": -1})
    began = time.time()
    for number in range(count):
        if per_s:
            time.sleep(max(0, began + number / per_s - time.time()))
        name = names[number % len(names)]
        job = {"id": f"{name}/{number}", "model": "minilm", "input": f"Text number {number}"}
        producer.produce(f"jobs.{name}", json.dumps(job).encode())
        producer.poll(0)
    sent = time.time()
    assert producer.flush(60) == 0
    return sent
