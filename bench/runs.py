"""Single runs of what is compared, each measured the same way."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import time

import jobs
import lake
from places import MODEL, ROOT, TARGET, WORK, Process, pinned
from services import TENANTS, Setup

BATCH_TOKENS = 2_048
STAGES = ("ingest", "processor", "sink")
HERE = ROOT / "bench"
ROWS = "tributary_sink_rows_total"
LOOK_EVERY_S = 1
"""Each look takes the cores some milliseconds, which are the services'. When the last row came its file tells."""
JOBS_PARTITIONS = 4
WARM_JOBS = 200_000
WARM_RUNS_MAX = 8
WARM_SHARE = 0.95


def run_embedded(number, file, count, settings, lines_a_post=200, posts_at_once=1):
    setup = Setup(f"embedded{number}", MODEL, settings=["sink.flush_interval_ms=1000", *settings])
    service = setup.start("up")
    try:
        service.wait_for(service.is_well, "`tributary up` is well")
        lines = file.read_bytes().splitlines(keepends=True)
        began = time.time()
        posts = [lines[start : start + lines_a_post] for start in range(0, len(lines), lines_a_post)]
        with concurrent.futures.ThreadPoolExecutor(posts_at_once) as pool:
            list(pool.map(service.submit, posts))
        service.wait_for(lambda: service.metric(ROWS) >= count, "every row is in the lake", 900, LOOK_EVERY_S)
        return {**measured(setup, count, began), "cpu_s": service.cpu_s()}
    finally:
        service.end()
        setup.remove()


def run_start(file, settings):
    """From the start of `tributary up`, which gets a job as soon as it is well, to that job's outcome."""
    setup = Setup("start", MODEL, settings=settings)
    began = time.time()
    service = setup.start("up")
    try:
        service.wait_for(service.is_well, "`tributary up` is well", every_s=0.005)
        service.submit(file.read_bytes().splitlines(keepends=True)[:1])
        service.wait_for(lambda: service.metric("tributary_processor_outcomes_total") > 0, "the job has its outcome", every_s=0.005)
        return {"seconds": time.time() - began, "resident_bytes": service.memory_bytes()[1]}
    finally:
        service.end()
        setup.remove()


def run_bare(file, *options, cpus=None, model=MODEL):
    command = [TARGET / "examples/bare", "--folder", model, "--jobs", file, "--batch-tokens", BATCH_TOKENS, *options]
    return said(" ".join(["bare", model.name, *map(str, options)]), pinned(command, cpus))


def run_reference(file, dtype="float32", cpus=None):
    return said(f"bare reference {dtype}", pinned([sys.executable, HERE / "bare_reference.py", MODEL, file, "--dtype", dtype], cpus))


def run_peaks(cpus):
    return said("peaks", pinned([TARGET / "examples/peaks"], cpus))


def run_quality():
    process = Process("quality", [TARGET / "examples/quality", MODEL])
    process.must_succeed()
    return [json.loads(line) for line in process.log.read_text().splitlines() if line.startswith("{")]


@contextlib.contextmanager
def left_alone(broker, core):
    """Meanwhile the broker, this process and what it starts run on other cores, if there are any."""
    cores = os.sched_getaffinity(0)

    def keep_to(some):
        os.sched_setaffinity(0, some)
        for thread in pathlib.Path(f"/proc/{broker.process.popen.pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread.name), some)

    keep_to(cores - {core} or cores)
    try:
        yield
    finally:
        keep_to(cores)


def run_services(broker, name, model, count, settings, sample=False, processor_cpus=None):
    """Runs all of `jobs` through three services. The clock runs from the moment that ingest, the last to be started, is
    well, the others having been so and in their groups before, until the sink has every row in the lake."""
    setup = Setup(name, model, brokers=broker.address, settings=settings)
    with contextlib.ExitStack() as stack:
        stack.callback(broker.delete_under, f"{name}.")
        stack.callback(setup.remove)
        processes = {"broker": broker.process}

        def start(stage, cpus=None):
            processes[stage] = setup.start(stage, cpus)
            stack.callback(processes[stage].end)
            processes[stage].wait_for(processes[stage].is_well, f"{stage} is well", every_s=0.005)

        start("processor", processor_cpus)
        start("sink")
        for group, partitions in setup.groups().items():
            processes["sink"].wait_for(lambda: broker.assigned(group) >= partitions, f"group {group} has its partitions")
        cpu_before = {stage: process.cpu_s() for stage, process in processes.items()}
        start("ingest")
        began, samples = time.time(), []

        def done():
            if sample:
                samples.append({"s": time.time() - began, **{stage: processes[stage].memory_bytes()[0] for stage in STAGES}})
            for stage in STAGES:
                processes[stage].must_run()
            return processes["sink"].metric(ROWS) >= count

        processes["sink"].wait_for(done, "every row is in the lake", timeout_s=900, every_s=LOOK_EVERY_S)
        cpu_s = {stage: process.cpu_s() - cpu_before.get(stage, 0) for stage, process in processes.items()}
        return {
            **measured(setup, count, began),
            "cpu_us_per_job": {stage: spent / count * 1e6 for stage, spent in cpu_s.items()},
            "resident_peak_bytes": {stage: processes[stage].memory_bytes()[1] for stage in STAGES},
            "resident_bytes": samples,
        }


def warm(broker):
    """The broker compiles its own code for a while, most of it for transactions, and a broker in use has done that long ago:
    runs of many small commits that are not counted, until one costs the broker hardly less than the one before."""
    jobs.produce(broker, "warming", JOBS_PARTITIONS, jobs.short_texts(), WARM_JOBS)
    small = ["ingest.commit_records_max=300", "processor.window_jobs_max=300", "processor.commit_interval_ms=1", "sink.flush_interval_ms=1000"]
    spent_us = float("inf")
    for number in range(WARM_RUNS_MAX):
        before_us, run = spent_us, run_services(broker, f"warm{number}", "passthrough:384", WARM_JOBS, ["topics.jobs=warming", *small])
        spent_us = run["cpu_us_per_job"]["broker"]
        print(f"warming: the broker took {spent_us:.1f} us a job", flush=True)
        if spent_us > WARM_SHARE * before_us:
            break
    broker.delete_under("warming")


def run_recovery(broker, rounds, settings):
    """Kills each service in turn while jobs come in. Seconds from the kill until the service, started again at once, has
    done its part for a job, by stage."""
    progress = {"ingest": "tributary_ingest_decided_total", "processor": "tributary_processor_outcomes_total", "sink": ROWS}
    setup = Setup("recovery", "passthrough:384", brokers=broker.address, settings=["sink.flush_interval_ms=1000", *settings])
    took = {stage: [] for stage in STAGES}
    with contextlib.ExitStack() as stack:
        stack.callback(setup.remove)
        services = {stage: setup.start(stage) for stage in STAGES}
        stack.callback(lambda: [service.end() for service in services.values()])
        producing = [sys.executable, ROOT / "tests/readers/keep_producing.py", broker.address, "jobs", ",".join(TENANTS), "200"]
        producer = subprocess.Popen(producing, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        stack.callback(producer.communicate)

        def works(stage):
            services[stage].wait_for(lambda: services[stage].metric(progress[stage]) > 0, f"{stage} works", every_s=0.02)

        for _ in range(rounds):
            for stage in STAGES:
                works(stage)
                services[stage].popen.kill()
                killed = time.time()
                services[stage] = setup.start(stage)
                works(stage)
                took[stage].append(time.time() - killed)
    return took


def measured(setup, count, began):
    """Checks that the lake has every row once, and puts the numbers of a run that `began` then together."""
    rows = lake.rows(setup.lake)
    assert rows == {"results": count, "costs": count}, f"{count} jobs became {rows}"
    seconds = lake.written_s(setup.lake) - began
    found = lake.outcomes(setup.lake)
    return {**found, "seconds": seconds, "jobs_per_s": count / seconds, "whole_tokens_per_s": found["tokens"] / seconds}


def run_script(broker, name, count, *, poll, model=None, topic="jobs"):
    """Runs all of `topic` through the user's script. Its clock runs from when it is ready to read until its last commit."""
    out, before = WORK / name, broker.process.cpu_s()
    command = [sys.executable, HERE / "user_script.py", "--brokers", broker.address, "--group", name, "--topic", topic, "--out", out]
    told = said("script", [*command, "--jobs", count, "--poll", poll, *(["--model", model] if model else [])])
    broker_s = broker.process.cpu_s() - before
    rows = lake.rows_under(out)
    shutil.rmtree(out)
    assert rows == count, f"{count} jobs became {rows} rows"
    seconds = told["ended"] - told["ready"]
    cpu = {"script": told["cpu_s"] / count * 1e6, "broker": broker_s / count * 1e6}
    return {**told, "seconds": seconds, "jobs_per_s": count / seconds, "cpu_us_per_job": cpu}


def said(name, command):
    """Runs a command that says its numbers as one line of JSON, and adds the CPU that it took unless it said so itself."""
    before_s = children_cpu_s()
    process = Process(name, command)
    process.must_succeed()
    return {"cpu_s": children_cpu_s() - before_s, **json.loads(process.log.read_text().splitlines()[-1])}


def children_cpu_s():
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime
