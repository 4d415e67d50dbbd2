"""Numbers for people, as Markdown, and for programs, as JSON."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess

from places import CACHE, COMMANDS, ROOT
from services import BINARY


def machine():
    """Where and with what the numbers came about."""
    cpu = next(line for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu.partition(":")[2].strip(),
        "features": " ".join(found for found in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if found in cpu_flags()),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "load_before": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()}",
        "tributary": f"{said([BINARY, '--version'])} {said(['git', '-C', ROOT, 'rev-parse', '--short', 'HEAD'])}",
        "rust": said(["rustc", "--version"]),
        "java": said(["java", "--version"]).splitlines()[0] if said(["java", "--version"]) else "none",
        "python": platform.python_version(),
        **{package: version(package) for package in ("confluent-kafka", "pyarrow", "numpy", "sentence-transformers", "torch", "onnxruntime")},
    }


def cpu_flags():
    flags = next(line for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    return flags.split()


def said(command):
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def median(values):
    return statistics.median(list(values))


def table(heads, rows):
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def finish(name, numbers, text):
    """Prints a bench's table with its commands, and writes its numbers."""
    commands = "\n".join(f"  {what}: {command}" for what, command in COMMANDS.items())
    print(f"\n## {name}\n\n{text}\n\nCommands:\n{commands}\n", flush=True)
    COMMANDS.clear()
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE / f"{name}.json").write_text(json.dumps({"machine": machine(), **numbers}, indent=2) + "\n")
