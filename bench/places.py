"""Where things are, and processes that are watched while they run."""

import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache/bench"
WORK = CACHE / "work"
MODEL = ROOT / ".cache/models/all-MiniLM-L6-v2"
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
COMMANDS = {}
"""The commands that were run, by what they are: printed under the tables."""


def pinned(command, cpus):
    """The command on these CPUs, or on all that there are."""
    return command if cpus is None else ["taskset", "--cpu-list", ",".join(map(str, cpus)), *command]


class Process:
    """A process with its output in a file, its CPU time and its memory."""

    def __init__(self, name, command):
        command = [str(word) for word in command]
        COMMANDS.setdefault(name, shlex.join(command).replace(str(ROOT) + "/", ""))
        WORK.mkdir(parents=True, exist_ok=True)
        self.name, self.log = name, WORK / f"{name.replace(' ', '-')}.log"
        self.out = open(self.log, "wb")
        self.popen = subprocess.Popen(command, stdout=self.out, stderr=self.out, cwd=WORK)

    def must_run(self):
        if self.popen.poll() is not None:
            self.fail()

    def must_succeed(self):
        if self.popen.wait() != 0:
            self.fail()

    def fail(self):
        sys.exit(f"bench: {self.name} ended with {self.popen.returncode}; the end of {self.log}:\n{self.log.read_text()[-3000:]}")

    def wait_for(self, condition, what, timeout_s=120, every_s=0.05):
        deadline = time.time() + timeout_s
        while not condition():
            self.must_run()
            if time.time() > deadline:
                sys.exit(f"bench: after {timeout_s} s still not so: {what}; see {self.log}")
            time.sleep(every_s)

    def cpu_s(self):
        """Seconds of CPU, user and system, of all its threads since it started."""
        fields = pathlib.Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND

    def memory_bytes(self):
        """What is resident now, and the most that ever was."""
        lines = pathlib.Path(f"/proc/{self.popen.pid}/status").read_text().splitlines()
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS", "VmHWM"))}
        return kilobytes.get("VmRSS", 0) << 10, kilobytes.get("VmHWM", 0) << 10

    def end(self):
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(30)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()
        self.out.close()
