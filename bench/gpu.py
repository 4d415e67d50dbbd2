"""The model on a GPU: the encoder alone, from texts to vectors beside sentence-transformers, and behind the pipeline."""

import csv
import json
import pathlib
import shutil
import subprocess
import sys

import jobs
import report
from places import MODEL, TARGET, WORK
from report import median, table
from runs import HERE, run_embedded, said

DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
BATCHES = {"f32": [512], "f16": [512, 1_024, 2_048], "bf16": [512, 1_024]}
"""Texts in a batch of sentence-transformers; the best counts."""


def gpu(args):
    rounds, count = (3, 50_000) if args.quick else (5, 100_000)
    file = jobs.write(WORK / "gpu.jsonl", jobs.short_texts(), count)
    few = jobs.write(WORK / "gpu-few.jsonl", jobs.short_texts(), count // 5)
    peak = said("peak", [sys.executable, HERE / "gpu_peak.py"])
    ours = {dtype: bare(file, rounds, "--dtype", dtype) for dtype in DTYPES}
    sizes = {tokens: bare(file, rounds, "--dtype", "bf16", "--batch-tokens", tokens) for tokens in (2_048, 8_192, 32_768)}
    at_once = {number: bare(file, rounds, "--dtype", "bf16", "--at-once", number) for number in (1, 2, 6)}
    theirs = {dtype: reference(few, rounds, name, BATCHES[dtype]) for dtype, name in DTYPES.items()}
    settings = ["processor.device=cuda", "models.minilm.dtype=bf16", *args.set]
    ups = [run_embedded(number, file, count, settings, lines_a_post=5_000, posts_at_once=4) for number in range(rounds)]
    numbers = {"peak": peak, "ours": ours, "theirs": theirs, "sizes": sizes, "at_once": at_once, "ups": ups}
    report.finish("gpu", numbers, text(**numbers, kernels=profile(few)))


def text(peak, ours, theirs, sizes, at_once, ups, kernels):
    best = max(run["tokens_per_s"] for run in theirs.values())
    share = flops_per_token() / peak["flops_per_s"]

    def row(what, speed, of_peak=""):
        return [what, f"{speed:,.0f}", f"{speed / best:.1f}", of_peak]

    rows = [
        *(row(f"sentence-transformers, {dtype}, {run['batch']} texts", run["tokens_per_s"]) for dtype, run in theirs.items()),
        *(row(f"bare, {dtype}, from texts to vectors", run["whole_tokens_per_s"]) for dtype, run in ours.items()),
        *(
            row(f"bare, {dtype}, tokenized before", run["tokens_per_s"], "" if dtype == "f32" else f"{run['tokens_per_s'] * share:.0%}")
            for dtype, run in ours.items()
        ),
        row("bare, tokenizing alone, all cores", ours["bf16"]["tokens"] / ours["bf16"]["tokenize_seconds"]),
        row("`tributary up`, bf16, from the first POST to the last row", median(up["whole_tokens_per_s"] for up in ups)),
        row("`tributary up`, bf16, from the first outcome to the last", median(up["steady_tokens_per_s"] for up in ups)),
    ]
    heads = ["", "tokens/s", "of sentence-transformers' best", "of the peak"]
    jobs_per_s = median(up["jobs_per_s"] for up in ups)
    parts = [
        f"{peak['name']}, {peak['flops_per_s'] / 1e12:.0f} TFLOP/s in bf16 (8,192 cubed), {ours['bf16']['texts']:,} texts, "
        f"{ours['bf16']['tokens']:,} tokens; `up` at {jobs_per_s:,.0f} jobs/s\n",
        table(heads, rows),
        "",
        table(["tokens in a micro-batch, bf16", "tokens/s, tokenized before", "from texts"], [two(n, run) for n, run in sizes.items()]),
        "",
        table(["micro-batches at once, bf16", "tokens/s, tokenized before", "from texts"], [two(n, run) for n, run in at_once.items()]),
        "",
        table(["kernels, bf16", "of the time", "µs a launch"], kernels) if kernels else "no profile: ncu is not on the path",
    ]
    return "\n".join(parts)


def two(what, run):
    return [f"{what:,}", f"{run['tokens_per_s']:,.0f}", f"{run['whole_tokens_per_s']:,.0f}"]


def bare(file, rounds, *options):
    command = [TARGET / "examples/bare", "--folder", MODEL, "--jobs", file, "--device", "cuda"]
    run = said("bare", [*command, "--repeat", rounds, "--whole", rounds, *options])
    print(f"bare {' '.join(map(str, options))}: {run['whole_tokens_per_s']:,.0f} tokens/s from texts, {run['tokens_per_s']:,.0f} tokenized before", flush=True)
    return run


def reference(file, rounds, dtype, batches):
    command = [sys.executable, HERE / "bare_reference.py", MODEL, file, "--device", "cuda", "--dtype", dtype]
    run = said("bare reference", [*command, "--rounds", rounds, "--batch", *batches])
    print(f"sentence-transformers {dtype}: {run['tokens_per_s']:,.0f} tokens/s in batches of {run['batch']}", flush=True)
    return run


def flops_per_token():
    """Of the matrix products, which are nearly all of them for short texts."""
    config = json.loads(pathlib.Path(MODEL / "config.json").read_text())
    width, inner = config["hidden_size"], config["intermediate_size"]
    return 2 * config["num_hidden_layers"] * (4 * width * width + 2 * width * inner)


def profile(file):
    """What share of the device's time each kernel takes, one run at a time, where NVIDIA's profiler is at hand."""
    if not shutil.which("ncu"):
        return None
    command = [TARGET / "examples/bare", "--folder", MODEL, "--jobs", file, "--device", "cuda", "--dtype", "bf16", "--at-once", "1"]
    ncu = ["ncu", "--clock-control", "none", "--cache-control", "none", "--metrics", "gpu__time_duration.sum", "--csv"]
    ran = subprocess.run([*ncu, *command], capture_output=True, text=True, check=True).stdout.splitlines()
    took_us = {}
    for launch in csv.DictReader(line for line in ran if line.startswith('"')):
        name = launch["Kernel Name"]
        if name == "narrow_weights":
            continue  # only when a model is loaded
        name = "matrix products (cuBLASLt)" if name.startswith(("nvjet", "cutlass", "sm", "ampere", "void")) else f"`{name}`"
        unit = {"ns": 1e-3, "us": 1, "ms": 1e3}[launch["Metric Unit"].replace("second", "s")]
        took_us.setdefault(name, []).append(float(launch["Metric Value"].replace(",", "")) * unit)
    total = sum(map(sum, took_us.values()))
    by_share = sorted(took_us.items(), key=lambda kernel: -sum(kernel[1]))
    return [[name, f"{sum(us) / total:.0%}", f"{sum(us) / len(us):.1f}"] for name, us in by_share]
