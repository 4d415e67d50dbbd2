"""The flood: nine tenants that send a little, and one that sends a hundred times as much as each of them."""

import contextlib
import itertools
import json
import os
import random
import time

import jobs
import lake
import plots
import report
from broker import Broker
from confluent_kafka import Producer
from places import MODEL
from report import median, table
from runs import left_alone, warm
from services import Setup

LIGHT = [f"light-{number}" for number in range(1, 10)]
FLOOD = "flood"
LIGHT_PER_S = 5
TIMES = 100
PARTITIONS = 4
WARM_S = 12
"""What is sent before is not counted: a processor finds out how fast its device is."""
WINDOW_MS = 300
"""As by default."""
STOCK = 1_500
"""Jobs that each light tenant has waiting where all have a backlog."""
CORE = min(os.sched_getaffinity(0))
STAGES = ("ingest", "processor", "sink", "broker")


def flood(args):
    """What the light tenants wait with the flood and without, beside one queue for all; and how a backlog of all is shared.
    The processor has a core alone, or what was compared would be what the broker leaves it of that core."""
    rounds, seconds = (2 if args.quick else 4), 45
    settings = [
        # A processor alone decides the waits: the sink shall not take its cores for the many small files of ten tenants.
        "sink.flush_interval_ms=10000",
        f"processor.window_ms={WINDOW_MS}",
        # A micro-batch runs to its end: on these cores 256 tokens take some 30 ms.
        "processor.batch_tokens_max=256",
        *args.set,
    ]
    calm, fair, fifo, stocks = [], [], [], []
    with Broker() as broker, left_alone(broker, CORE):
        warm(broker)
        for number in range(rounds):
            calm.append(run(broker, f"calm{number}", sent(seconds, LIGHT), seconds, settings))
            # Each is first as often as the other, since what comes later finds a broker with more behind it.
            for name, tenant, runs in [("fair", None, fair), ("fifo", "all", fifo)][:: 1 if number % 2 == 0 else -1]:
                runs.append(run(broker, f"{name}{number}", sent(seconds, [FLOOD, *LIGHT]), seconds, settings, tenant))
            stocks.append(run_stock(broker, f"stock{number}", settings))
            print(f"round {number + 1}: " + " ".join(f"{one[-1]['p99_s']:.2f}" for one in (calm, fair, fifo)) + f" s, Jain {stocks[-1]['jain']:.4f}, work of one queue {fair[-1]['units_per_s'] / fifo[-1]['units_per_s']:.3f}", flush=True)
    allowed_s = 1.5 * median(one["p99_s"] for one in calm) + WINDOW_MS / 1e3
    speed = sum(one["units_per_s"] for one in fair) / sum(one["units_per_s"] for one in fifo)
    named = {"without the flood": calm, "with it, a lane a tenant": fair, "with it, one queue": fifo}
    rows = [[what, *(f"{median(one[key] for one in runs):.2f}" for key in ("p50_s", "p99_s")), f"{median(one['units_per_s'] for one in runs):.0f}", *(f"{median(one['cores'][stage] for one in runs):.2f}" for stage in STAGES)] for what, runs in named.items()]
    text = (
        f"nine tenants with {LIGHT_PER_S} jobs/s each, one with {LIGHT_PER_S * TIMES:.0f}; windows of {WINDOW_MS} ms; {rounds} rounds of {seconds} s\n\n"
        + table(["", "the light tenants' median wait, s", "99th percentile of the worst of them, s", "work units/s", *(f"cores of {stage}" for stage in STAGES)], rows)
        + f"\n\nThe 99th percentile may be {allowed_s:.2f} s: 1.5 times that without the flood, and a window."
        + f" Work of one queue: {speed:.3f}, at least 0.98."
        + f" Jain's index over ten tenants that all have a backlog: {median(one['jain'] for one in stocks):.4f}, at least 0.99."
    )
    waits = {what: [wait for one in runs for wait in one["waits_s"]] for what, runs in named.items()}
    plots.shares("flood", waits, "seconds that a light tenant's job waited at most")
    numbers = {"light_per_s": LIGHT_PER_S, "allowed_p99_s": allowed_s, "work_of_one_queue": speed, "calm": calm, "fair": fair, "fifo": fifo, "stock": stocks}
    report.finish("flood", numbers, text)


def sent(seconds, tenants):
    """When who sends what: steadily, each from a moment of its own."""
    rng, events = random.Random(7), []
    for tenant in tenants:
        every_s = 1 / (LIGHT_PER_S * (TIMES if tenant == FLOOD else 1))
        start_s = rng.random() * every_s
        events += [(start_s + number * every_s, tenant, number) for number in range(int(seconds / every_s))]
    return sorted(events)


def run(broker, name, events, seconds, settings, tenant=None):
    """Sends jobs as `events` say, all as those of `tenant` if there is one, and looks at what became of them meanwhile."""
    tenants = [tenant] if tenant else [FLOOD, *LIGHT]
    with pipeline(broker, name, settings, tenants) as (setup, start):
        services = {stage: start(stage) for stage in ("processor", "sink", "ingest")}
        processes = {"broker": broker.process, **services}
        cpu_before = {stage: process.cpu_s() for stage, process in processes.items()}
        began = send(broker, f"{name}-jobs", events, tenant)
        took_s = time.time() - began
        cores = {stage: (process.cpu_s() - cpu_before[stage]) / took_s for stage, process in processes.items()}
        light = sum(who != FLOOD for _, who, _ in events)
        if tenant is None:
            services["sink"].wait_for(lambda: done(setup, LIGHT) >= light, "the light tenants' jobs are in the lake", every_s=1)
        for service in services.values():
            service.end()
        rows = [row for row in outcomes(setup.lake) if row["completed_s"] < began + seconds]
    units = [row for row in rows if row["completed_s"] > began + WARM_S]
    stamps = [row["completed_s"] for row in units] or [0]
    later = sum(row["units"] for row in units if row["completed_s"] > min(stamps))
    waits = {who: sorted(row["wait_s"] for row in rows if row["who"] == who and row["submitted_s"] > began + WARM_S) for who in LIGHT}
    by_tenant = {who: {"p50_s": at(waits, 0.5), "p99_s": at(waits, 0.99), "jobs": len(waits)} for who, waits in waits.items()}
    return {
        "p50_s": median(one["p50_s"] for one in by_tenant.values()),
        "p99_s": max(one["p99_s"] for one in by_tenant.values()),
        "units_per_s": later / ((max(stamps) - min(stamps)) or 1),
        "cores": cores,
        "tenants": by_tenant,
        "waits_s": sorted(wait for one in waits.values() for wait in one),
    }


def run_stock(broker, name, settings):
    """Gives every tenant a backlog before the processor starts, and sees how the device is shared while each has one: from
    when all have been read for a while until the first has nothing left."""
    flood_jobs = STOCK * TIMES // 5
    counts = {FLOOD: flood_jobs, **{who: STOCK for who in LIGHT}}
    events = [(0, who, number) for who, count in counts.items() for number in range(count)]
    with pipeline(broker, name, settings, [FLOOD, *LIGHT]) as (setup, start):
        send(broker, f"{name}-jobs", events)
        ingest, sink = start("ingest"), start("sink")
        ingest.wait_for(lambda: ingest.metric("tributary_ingest_decided_total") >= len(events), "every job is admitted")
        processor = start("processor")
        sink.wait_for(lambda: any(done(setup, [who]) >= STOCK for who in LIGHT), "a light tenant has nothing left", timeout_s=300, every_s=1)
        for service in (processor, sink, ingest):
            service.end()
        rows = outcomes(setup.lake)
    stamps = {who: sorted(row["completed_s"] for row in rows if row["who"] == who) for who in counts}
    first_s = max(min(of) for of in stamps.values())
    last_s = min(max(of) for who, of in stamps.items() if len(of) == counts[who])
    units = {who: sum(row["units"] for row in rows if row["who"] == who and first_s < row["completed_s"] < last_s) for who in counts}
    jain = sum(units.values()) ** 2 / (len(units) * sum(one**2 for one in units.values()))
    return {"jain": jain, "work_units": units, "stock": counts}


@contextlib.contextmanager
def pipeline(broker, name, settings, tenants):
    """A fresh pipeline that reads a topic of jobs of its own, and how to start its services."""
    # A tenant has one partition, as by default.
    setup = Setup(name, MODEL, brokers=broker.address, settings=[f"topics.jobs={name}-jobs", *settings], tenants=tenants, policy="")
    broker.create(f"{name}-jobs", PARTITIONS)
    with contextlib.ExitStack() as stack:
        stack.callback(broker.delete_under, f"{name}-jobs")
        stack.callback(broker.delete_under, f"{name}.")
        stack.callback(setup.remove)

        def start(stage):
            service = setup.start(stage, [CORE] if stage == "processor" else None)
            stack.callback(service.end)
            service.wait_for(service.is_well, f"{stage} is well", every_s=0.02)
            return service

        yield setup, start


def send(broker, topic, events, tenant=None):
    """Sends a job for each event at its time. Returns when the first of them was due."""
    producer = Producer({"bootstrap.servers": broker.address, "linger.ms": 2, "queue.buffering.max.messages": 200_000})
    texts = {FLOOD: itertools.cycle(jobs.texts()), **{who: itertools.cycle(jobs.short_texts()) for who in LIGHT}}
    began = time.time()
    for sequence, (at_s, who, number) in enumerate(events):
        time.sleep(max(0, began + at_s - time.time()))
        job = {"id": f"{who}/{number}", "tenant": tenant or who, "model": "minilm", "input": next(texts[who])}
        producer.produce(topic, json.dumps(job, ensure_ascii=False).encode(), partition=sequence % PARTITIONS)
        producer.poll(0)
    assert producer.flush(30) == 0
    return began


def done(setup, tenants):
    return sum(lake.rows_under(setup.lake / "results" / f"tenant={tenant}") for tenant in tenants)


def outcomes(folder):
    """Every outcome: whose job it was, when it was submitted and completed, how long it waited, and its work."""
    results = lake.table(folder / "results", ["job_id", "submitted_at", "completed_at", "queue_time_ns"])
    costs = lake.table(folder / "costs", ["x_job_id", "x_work_units"])
    units = dict(zip(costs["x_job_id"].to_pylist(), costs["x_work_units"].to_pylist()))
    columns = [results["job_id"].to_pylist(), *(results[name].cast("int64").to_pylist() for name in ("submitted_at", "completed_at")), results["queue_time_ns"].to_pylist()]
    return [
        {"who": job.partition("/")[0], "submitted_s": submitted / 1e6, "completed_s": completed / 1e6, "wait_s": (wait or 0) / 1e9, "units": units[job] or 0}
        for job, submitted, completed, wait in zip(*columns)
    ]


def at(waits, share):
    """The smallest wait that is at least as long as this share of them."""
    return waits[max(0, -(-int(len(waits) * share * 1000) // 1000) - 1)] if waits else float("nan")
