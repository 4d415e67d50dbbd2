"""The encoder alone on one core and on two, by each path and with each kind of number, beside what runs such models
elsewhere; the share of what a core multiplies at most; and what fewer bits cost."""

import json
import os
import subprocess
import sys

import jobs
import plots
import report
from places import MODEL, WORK, pinned
from report import median, table
from runs import HERE, run_bare, run_peaks, run_quality, run_reference, said

OWN = [("avx2", "f32"), ("avx512", "f32"), ("avx512", "bf16"), ("avx512", "int8"), ("amx", "bf16"), ("amx", "int8")]
WIDE = WORK / "wide"
ONNX = WORK / "onnx"
BEST_OF_TORCH = "sentence-transformers bf16"


def cpu(args):
    # With few texts the others' batches are of unlike lengths, and padded.
    rounds, count, few = (3, 150, 24) if args.quick else (5, 500, 48)
    file, short, long = (jobs.write(WORK / f"cpu-{number}.jsonl", jobs.texts(), number) for number in (count, few, 2 * count))
    if not (WIDE / "model.safetensors").exists():
        subprocess.run([sys.executable, HERE / "wide_model.py", MODEL, WIDE], check=True)
    cpus = sorted(os.sched_getaffinity(0))
    one, two = cpus[-1:], cpus[-2:]
    there = [name for name in OWN if " ".join(name) in run_peaks(one)]
    ways = {}
    for path, dtype in there:
        how = ("--path", path, "--dtype", dtype)
        name = f"{path} {dtype}"
        ways[name] = lambda how=how: run_bare(file, *how, "--at-once", 1, cpus=one)
        if path == "avx2":
            continue
        if len(two) == 2:
            ways[f"{name}, two cores"] = lambda how=how: on_two_cores(long, how, one, two)
        ways[f"{name}, 768 wide"] = lambda how=how: run_bare(short, *how, "--at-once", 1, cpus=one, model=WIDE)
    ways["candle f32"] = lambda: run_bare(file, "--path", "candle", "--at-once", 1, cpus=one)
    # What is slower than the same with fewer bits takes a fifth of the time.
    if not args.quick:
        ways["sentence-transformers f32"] = lambda: run_reference(file, "float32", cpus=one)
    ways[BEST_OF_TORCH] = lambda: run_reference(file, "bfloat16", cpus=one)
    for dtype in ("int8",) if args.quick else ("f32", "int8"):
        command = [sys.executable, HERE / "onnx_reference.py", MODEL, file, "--out", ONNX, "--dtype", dtype]
        ways[f"ONNX Runtime {dtype}"] = lambda command=command, dtype=dtype: said(f"ONNX Runtime {dtype}", pinned(command, one))
    runs, peaks = {way: [] for way in ways}, []
    for number in range(rounds):
        peaks.append(run_peaks(one))
        for way, run in ways.items():
            runs[way].append(run())
        print(f"round {number + 1}: " + ", ".join(f"{way} {taken[-1]['tokens_per_s']:.0f}" for way, taken in runs.items()), flush=True)
    finish(runs, peaks, run_quality(), count, rounds)


def on_two_cores(file, how, one, two):
    """In many small micro-batches, so that both cores end at about the same time; and as one core does the same."""
    small = (*how, "--batch-tokens", 512, "--at-once")
    alone = run_bare(file, *small, 1, cpus=one)
    return {**run_bare(file, *small, 2, cpus=two), "alone_tokens_per_s": alone["tokens_per_s"]}


def finish(runs, peaks, quality, count, rounds):
    def ratio(way, other):
        return f"{median(a['tokens_per_s'] / b['tokens_per_s'] for a, b in zip(runs[way], runs[other])):.2f}"

    def share(way, model):
        """Of what the core multiplied in the same round."""
        name = way.removesuffix(", 768 wide")
        each = (run["tokens_per_s"] * operations(run, model) / run["tokens"] / 1e9 / peak[name] for run, peak in zip(runs[way], peaks))
        return f"{median(each):.2f}"

    def row(way):
        alone = way.partition(",")[0]
        own = alone in peaks[0]
        wide, both = way.endswith("wide"), way.endswith("cores")
        comparable = not wide and not both
        return [
            way,
            f"{median(run['tokens_per_s'] for run in runs[way]):,.0f}",
            ratio(way, "candle f32") if comparable else "",
            ratio(way, BEST_OF_TORCH) if comparable else "",
            share(way, WIDE if wide else MODEL) if own and not both else "",
            f"{median(run['tokens_per_s'] / run['alone_tokens_per_s'] for run in runs[way]):.2f}" if both else "",
        ]

    first = runs["candle f32"][0]
    highest = {name: median(peak[name] for peak in peaks) for name in peaks[0] if name != "cpu_s"}
    heads = ["", "tokens/s", "of candle f32", f"of {BEST_OF_TORCH}", "of the core's peak", "of one core"]
    bits = [[q["dtype"], f"{q['cosine_mean']:.6f}", f"{q['cosine_worst']:.5f}", f"{q['overlap_at_10']:.3f}"] for q in quality]
    parts = [
        f"{count} jobs, {first['tokens']} tokens of {operations(first, MODEL) / first['tokens'] / 1e6:.1f} million operations each, medians of {rounds} rounds; "
        "peaks of a core in G/s: " + ", ".join(f"{name} {peak:,.0f}" for name, peak in highest.items()),
        table(heads, map(row, runs)),
        table(["the demo's texts", "cosine to f32, mean", "worst", "overlap at 10"], bits),
    ]
    one_core = {way: median(run["tokens_per_s"] for run in taken) for way, taken in runs.items() if not way.endswith(("cores", "wide"))}
    plots.bars("cpu", one_core, "tokens/s of all-MiniLM-L6-v2 on one core", ours=lambda way: way in peaks[0])
    report.finish("cpu", {"jobs": count, "peaks": peaks, "runs": runs, "quality": quality}, "\n\n".join(parts))


def operations(run, model):
    """Additions and multiplications of a model's products over the texts of a run."""
    config = json.loads((model / "config.json").read_text())
    width, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    dense = 2 * (4 * width * width + 2 * width * inner)
    return layers * (dense * run["tokens"] + 4 * width * run["tokens_squared"])
