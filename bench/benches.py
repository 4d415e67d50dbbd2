"""The benches themselves. `bench/run` starts this under an interpreter that has the packages."""

import argparse
import json
import os
import subprocess
import sys

import cpu
import flood
import gpu
import jobs
import report
import tenants
from broker import Broker
from places import CACHE, MODEL, ROOT, WORK
from report import median, table
from runs import JOBS_PARTITIONS, left_alone, run_bare, run_embedded, run_recovery, run_reference, run_script, run_services, run_start, warm
from transport import run_transport


def main():
    args = arguments()
    if args.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    if not args.no_build:
        build(["--features", "tributary/cuda"] if args.bench == "gpu" else [])
    if args.bench in ("cpu", "embedded", "kafka-model", "flood", "gpu", "all"):
        subprocess.run([sys.executable, ROOT / "models/fetch"], check=True)
    about = report.machine()
    print("\n".join(f"- {what}: {value}" for what, value in about.items()), flush=True)
    # A GPU is not everywhere.
    chosen = {name: bench for name, bench in BENCHES.items() if (name == args.bench if args.bench != "all" else name != "gpu")}
    for bench in chosen.values():
        bench(args)


def arguments():
    parser = argparse.ArgumentParser(prog="bench/run", description="Tributary beside what it could be replaced with.")
    parser.add_argument("bench", nargs="?", default="all", choices=[*BENCHES, "all"])
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 5, and fewer jobs")
    parser.add_argument("--cores", type=int, help="use only so many cores, for everything, the broker too")
    parser.add_argument("--no-build", action="store_true", help="take the binaries as they are")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of Tributary")
    return parser.parse_args()


def build(features):
    # In one go, so that the bare loop runs the very same candle.
    targets = ["-p", "tributary", "--bin", "tributary", "-p", "processor", "--example", "bare", "--example", "peaks", "--example", "quality"]
    subprocess.run(["cargo", "build", "--release", *targets, *features], check=True, cwd=ROOT)


def embedded(args):
    """`tributary up` with the real model, beside the model's own loop on the same texts."""
    rounds = 3 if args.quick else 5
    # Many, so that the second of the last flush weighs little.
    count = 5_000 if args.quick else 10_000
    file = jobs.write(WORK / "embedded.jsonl", jobs.texts(), count)
    ours, bare, starts = [], [], []
    for number in range(rounds):
        starts.append(run_start(file, args.set))
        ours.append(run_embedded(number, file, count, args.set))
        bare.append(run_bare(file))
        print(f"round {number + 1}: {ours[-1]['whole_tokens_per_s']:.0f} and bare {bare[-1]['tokens_per_s']:.0f} tokens/s", flush=True)
    pairs = list(zip(ours, bare))

    def row(what, speed):
        ratio = median(speed(one) / other["tokens_per_s"] for one, other in pairs)
        return [what, f"{median(map(speed, ours)):.0f}", f"{ratio:.2f}", per_cpu_s(ours)]

    rows = [
        row("`tributary up`, from the first POST to the last row in the lake", lambda run: run["whole_tokens_per_s"]),
        row("`tributary up`, from the first outcome to the last", lambda run: run["steady_tokens_per_s"]),
        ["bare loop", f"{median(b['tokens_per_s'] for b in bare):.0f}", "1", per_cpu_s(bare)],
    ]
    text = f"{count} jobs, {ours[0]['tokens']} tokens, medians of {rounds} pairs; from the start of the process to its first outcome "
    text += f"{median(start['seconds'] for start in starts):.2f} s, and {mib(median(start['resident_bytes'] for start in starts))} MiB resident then at most\n\n"
    heads = ["", "tokens/s", "of bare", "tokens a CPU second, start and loading included"]
    report.finish("embedded", {"jobs": count, "starts": starts, "ours": ours, "bare": bare}, text + table(heads, rows))


def per_cpu_s(runs):
    return f"{median(run['tokens'] / run['cpu_s'] for run in runs):.0f}"


def kafka_model(args):
    """Three services on Kafka with the real model, on the cores that they share with the broker, and with a core for the
    processor alone; the user's script with sentence-transformers; each beside its model bare on the same cores."""
    rounds = 3 if args.quick else 5
    # The script is slow, and soon as fast as it gets; ours has a second of the last flush.
    count, few = (2_000, 500) if args.quick else (6_000, 1_500)
    counts = {"jobs": count, "half": count // 2, "few": few}
    files = {topic: jobs.write(WORK / f"kafka-model-{topic}.jsonl", jobs.texts(), number) for topic, number in counts.items()}
    core = min(os.sched_getaffinity(0))
    ours, bare, apart, bare_apart, script, reference = [], [], [], [], [], []
    with Broker() as broker:
        settings = ["sink.flush_interval_ms=1000", *args.set]
        for topic, number in counts.items():
            jobs.produce(broker, topic, JOBS_PARTITIONS, jobs.texts(), number)
        warm(broker)
        for number in range(rounds):
            ours.append(run_services(broker, f"model{number}", MODEL, count, settings))
            bare.append(run_bare(files["jobs"]))
            with left_alone(broker, core):
                apart.append(run_services(broker, f"apart{number}", MODEL, counts["half"], [*settings, "topics.jobs=half"], processor_cpus=[core]))
            bare_apart.append(run_bare(files["half"], cpus=[core]))
            reference.append(run_reference(files["few"]))
            took = run_script(broker, f"script{number}", few, poll=500, model=MODEL, topic="few")
            script.append({**took, "tokens_per_s": reference[-1]["tokens"] / took["seconds"]})
            loops = [(ours, bare, "steady_tokens_per_s"), (apart, bare_apart, "steady_tokens_per_s"), (script, reference, "tokens_per_s")]
            print(f"round {number + 1}: " + ", ".join(f"{one[-1][speed]:.0f} tokens/s and its model bare {other[-1]['tokens_per_s']:.0f}" for one, other, speed in loops), flush=True)

    def row(what, runs, speed, loops):
        ratio = median(run[speed] / loop["tokens_per_s"] for run, loop in zip(runs, loops))
        return [what, *per_s(runs, speed), f"{ratio:.3f}"]

    rows = [
        row("Tributary, three services", ours, "whole_tokens_per_s", bare),
        row("Tributary, from the first outcome to the last", ours, "steady_tokens_per_s", bare),
        ["bare loop", *per_s(bare, "tokens_per_s"), "1"],
        row("Tributary, one core for the processor alone", apart, "whole_tokens_per_s", bare_apart),
        row("Tributary, the same, from the first outcome to the last", apart, "steady_tokens_per_s", bare_apart),
        ["bare loop on that core", *per_s(bare_apart, "tokens_per_s"), "1"],
        row("user's script, sentence-transformers f32", script, "tokens_per_s", reference),
        ["sentence-transformers f32, bare", *per_s(reference, "tokens_per_s"), "1"],
    ]
    text = f"{count} jobs, {bare[0]['tokens']} tokens, for one core half of that, for the script and its model {few}, medians of {rounds} rounds; "
    text += f"the processor had {mib(median(run['resident_peak_bytes']['processor'] for run in ours))} MiB resident at most, and CPU in microseconds a job: "
    text += ", ".join(f"{name} {median(run['cpu_us_per_job'][name] for run in ours):.0f}" for name in ("ingest", "processor", "sink", "broker")) + "\n\n"
    numbers = {"jobs": count, "ours": ours, "bare": bare, "apart": apart, "bare_apart": bare_apart, "script": script, "reference": reference}
    report.finish("kafka-model", numbers, text + table(["", "tokens/s", "of its model bare"], rows))


def per_s(runs, what):
    return [f"{median(run[what] for run in runs):.0f}"]


def passthrough(args):
    """Three services on Kafka with a model that costs nothing, beside the user's script with random floats."""
    # Many, so that neither the start nor the last flush weighs much, and the broker is done with compiling itself.
    rounds, count = (3, 200_000) if args.quick else (5, 2_000_000)
    ours, script, transport = [], [], []
    settings = ["sink.flush_interval_ms=1000", *args.set]
    with Broker() as broker:
        jobs.produce(broker, "jobs", JOBS_PARTITIONS, jobs.short_texts(), count)
        poll = best_poll(broker, count)
        warm(broker)
        for number in range(rounds):
            ours.append(run_services(broker, f"through{number}", "passthrough:384", count, settings))
            script.append(run_script(broker, f"floats{number}", count, poll=poll))
            transport.append(run_transport(broker, f"transport{number}"))
            print(f"round {number + 1}: {ours[-1]['jobs_per_s']:.0f} and the script {script[-1]['jobs_per_s']:.0f} jobs/s", flush=True)
    speeds = [median(run["jobs_per_s"] for run in runs) for runs in (ours, script)]
    ratio = median(one["jobs_per_s"] / other["jobs_per_s"] for one, other in zip(ours, script))
    rows = [
        ["Tributary, three services", f"{speeds[0]:.0f}", f"{ratio:.2f}", *cpu_cells(ours, ["ingest", "processor", "sink", "broker"])],
        [f"user's script, polls of {poll}", f"{speeds[1]:.0f}", "1", "", "", "", *cpu_cells(script, ["broker", "script"])],
        ["the vectors alone, through a topic", "", "", "", "", "", *cpu_cells(transport, ["broker", "clients"])],
    ]
    heads = ["", "jobs/s", "of the script", "ingest", "processor", "sink", "broker", "other clients"]
    rows[0].append("")
    text = f"{count} jobs, {JOBS_PARTITIONS} partitions of `jobs`, medians of {rounds} pairs; CPU in microseconds a job\n\n"
    report.finish("passthrough", {"jobs": count, "poll": poll, "ours": ours, "script": script, "transport": transport}, text + table(heads, rows))


def best_poll(broker, count):
    """The poll size at which the script is fastest here: a small choice, one run each."""
    speeds = {poll: run_script(broker, f"poll{poll}", count, poll=poll)["jobs_per_s"] for poll in (5_000, 10_000, 20_000, 50_000)}
    print("the script by poll size: " + ", ".join(f"{poll}: {speed:.0f} jobs/s" for poll, speed in speeds.items()), flush=True)
    return max(speeds, key=speeds.get)


def cpu_cells(runs, names):
    return [f"{median(run['cpu_us_per_job'][name] for run in runs):.1f}" for name in names]


def memory(args):
    """A backlog, and how much memory the services take on their way through it, as they are configured by default."""
    count = 200_000 if args.quick else 1_000_000
    with Broker() as broker:
        jobs.produce(broker, "jobs", JOBS_PARTITIONS, jobs.short_texts(), count)
        run = run_services(broker, "memory", "passthrough:384", count, args.set, sample=True)
    rows = [[name, mib(run["resident_peak_bytes"][name])] for name in ("ingest", "processor", "sink")]
    text = f"{count} jobs queued, default settings, {run['jobs_per_s']:.0f} jobs/s\n\n"
    report.finish("memory", {"jobs": count, **run}, text + table(["", "most resident, MiB"], rows))


def guarantee(args):
    """What transactions cost: the same pipeline with them and without, where a repetition is left to the sink to drop."""
    compare(args, "guarantee", "processor.delivery", ("transactional", "idempotent"))


def audit(args):
    """What the audit costs: the same pipeline with it and without."""
    compare(args, "audit", "audit.enabled", ("true", "false"))


def compare(args, name, key, values):
    """The pass-through pipeline with two values of a setting, the second of which is what the first is held against."""
    # Many, since rows land once a second.
    rounds, count = (3, 200_000) if args.quick else (7, 1_000_000)
    settings = ["sink.flush_interval_ms=1000", *args.set]
    runs = {value: [] for value in values}
    with Broker() as broker:
        jobs.produce(broker, "jobs", JOBS_PARTITIONS, jobs.short_texts(), count)
        warm(broker)
        for number in range(rounds):
            # Each is first as often as the other, since what comes later finds a broker with more behind it.
            for value in values if number % 2 == 0 else reversed(values):
                runs[value].append(run_services(broker, f"{name}-{value}{number}", "passthrough:384", count, [*settings, f"{key}={value}"]))
            print(f"round {number + 1}: " + ", ".join(f"{value} {of[-1]['jobs_per_s']:.0f} jobs/s" for value, of in runs.items()), flush=True)
    one, other = (runs[value] for value in values)

    def ratio(of):
        return f"{median(of(a) / of(b) for a, b in zip(one, other)):.3f}"

    def cpu_us(run):
        return sum(run["cpu_us_per_job"].values())

    rows = [
        [value, *per_s(of, "jobs_per_s"), jobs_ratio, f"{median(map(cpu_us, of)):.2f}", cpu_ratio]
        for (value, of), jobs_ratio, cpu_ratio in zip(runs.items(), (ratio(lambda run: run["jobs_per_s"]), "1"), (ratio(cpu_us), "1"))
    ]
    text = f"{count} jobs, medians of {rounds} pairs; CPU in microseconds a job, broker included\n\n"
    report.finish(name, {"jobs": count, **runs}, text + table([key, "jobs/s", f"of {values[1]}", "CPU", f"of {values[1]}"], rows))


def recovery(args):
    """How long after kill -9 the first new outcome comes, where the service is started again at once."""
    rounds = 3 if args.quick else 5
    with Broker() as broker:
        broker.create("jobs", JOBS_PARTITIONS)
        took = run_recovery(broker, rounds, args.set)
    rows = [[stage, f"{median(seconds):.1f}", f"{max(seconds):.1f}"] for stage, seconds in took.items()]
    text = f"medians of {rounds} kills each, one instance of each service\n\n"
    report.finish("recovery", took, text + table(["kill -9 of", "seconds to the first new outcome", "at most"], rows))


def measured(package, test):
    """What an ignored test of `package` prints, a line a case."""
    command = ["cargo", "test", "--release", "-p", package, "--lib", "--", "--ignored", "--nocapture", test]
    said = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


def scheduler(_):
    """What turns cost with few tenants and with many, nearly all of which have nothing waiting."""
    runs = measured("processor", "what_a_turn_costs")
    job_ns = {}
    for run in runs:
        job_ns.setdefault((run["tenants"], run["active"]), []).append(run["job_ns"])
    medians = {case: median(took) for case, took in job_ns.items()}
    few = medians[10, 10]
    rows = [[f"{tenants} tenants, {active} with work", f"{took:.0f}", f"{took / few:.2f}"] for (tenants, active), took in medians.items()]
    idle_bytes = max(run["idle_bytes"] for run in runs if run["tenants"] == 10_000)
    text = f"records of one job; a tenant with nothing waiting has at most {idle_bytes} bytes resident, those of its last record too\n\n"
    report.finish("scheduler", {"runs": runs, "ratio": medians[10_000, 100] / few}, text + table(["", "ns a job", "of few tenants"], rows))


def access(_):
    """What the access policies cost a job in ingest."""
    [took] = measured("ingest", "what_access_policies_cost")
    rows = [[what, f"{took[case]:,}"] for what, case in [
        ("to decide on a job, where they were asked before", "remembered_ns"),
        ("of that, to look the answer up", "looked_up_ns"),
        ("to decide on a job, where they are asked about each", "asked_each_ns"),
    ]]
    report.finish("access", took, "one tenant, the built-in policies\n\n" + table(["", "ns a job"], rows))


def mib(size_bytes):
    return f"{size_bytes / 2**20:.0f}"


BENCHES = {"cpu": cpu.cpu, "embedded": embedded, "kafka-model": kafka_model, "passthrough": passthrough, "memory": memory, "guarantee": guarantee, "audit": audit, "recovery": recovery, "scheduler": scheduler, "access": access, "flood": flood.flood, "tenants": tenants.tenants, "gpu": gpu.gpu}

if __name__ == "__main__":
    CACHE.mkdir(parents=True, exist_ok=True)
    main()
