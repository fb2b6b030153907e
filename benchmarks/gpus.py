"""What is claimed of machines with GPUs, in one go: benchmarks and tests that need them, the weightiest first.

Such machines cost by the minute. Each step runs in processes of its own, writes what it prints to a file of its
name, and begins only where as many seconds are left as it has taken on H100s; one that is not done when the time is up
is ended. ``--steps`` selects some, by their names.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import print_header, print_row

BENCHMARK = "benchmarks {} --folder FOLDER --device DEVICE"
WORKERS = BENCHMARK.format("workers --factor 5,2,2 --engines exact --halos direct --workers '{}' {}")
WHOLE = BENCHMARK.format("whole --factor 5,2,2 --repeat 2 {}")
ENCODING = "benchmarks encoding --folder FOLDER {}"
TESTS = "tests/engines/test_gpu.py tests/execution/test_gpu_job.py"
SHRINKING = "--shape 64,8000,8000 --factor 1,0.202,0.202 --input-codec blosc-zstd --decoders 'cpu gpu'"


@dataclass(frozen=True)
class Step:
    """One command of ``python -m``."""

    name: str
    gpus: int
    """So many at least are needed."""
    command: str
    seconds: float
    """That it takes, about, with the making of its input."""
    cores: int | None = None
    """On how many of the machine's cores it runs; on all by default."""

    def words(self, folder: Path, device: str) -> list[str]:
        """Return the command, with the folder that its files lie in meanwhile and the name of the device."""
        given = {"FOLDER": str(folder), "DEVICE": device}
        pinned = ["taskset", "--cpu-list", f"0-{self.cores - 1}"] if self.cores else []
        return [*pinned, sys.executable, "-u", "-m", *(given.get(word, word) for word in shlex.split(self.command))]


STEPS = (
    Step("workers-4", 4, WORKERS.format("1 2 4", "--voxels 64e9 --options '--levels 0 --encode gpu'"), 200),
    Step("workers-4-cores", 4, WORKERS.format("4", "--voxels 32e9 --options '--levels 0 --encode cpu'"), 100),
    Step("workers-2", 2, WORKERS.format("1 2", "--voxels 24e9 --options '--levels 0 --encode gpu'"), 80),
    Step("workers-2-cores", 2, WORKERS.format("2", "--voxels 16e9 --options '--levels 0 --encode cpu'"), 60, 32),
    Step("tests", 1, f"pytest -p no:benchmark -q -m gpu -k 'projected or pieces or goes_on' {TESTS}", 60),
    Step(
        "memory",
        1,
        WHOLE.format("--sizes 16 --engines exact --levels '0 auto' --memory 'default 2GiB' --limit-repeat 1"),
        200,
        16,
    ),
    Step(
        "memory-cores",
        1,
        WHOLE.format("--sizes 16 --levels 0 --memory 'default 2GiB' --limit-repeat 1 --options '--encode cpu'"),
        150,
        16,
    ),
    Step("script", 1, BENCHMARK.format("script --voxels 4e9"), 60, 16),
    Step("whole", 1, WHOLE.format("--sizes 4 --engines 'exact cle' --levels '0 auto'"), 100, 16),
    Step("stack", 1, WHOLE.format("--sizes stack --engines cle"), 30, 16),
    Step(
        "budgets",
        1,
        BENCHMARK.format("budgets --voxels 4e8 --labels no --workers none --budgets 'default 2GiB'"),
        60,
        16,
    ),
    Step("encoding", 1, ENCODING.format("--shape 500,1260,1260 --factor 5,2,2"), 100, 16),
    Step("encoding-4-cores", 1, ENCODING.format("--shape 500,1260,1260 --factor 5,2,2 --repeat 1"), 100, 4),
    Step("decoding", 1, ENCODING.format(f"{SHRINKING} --encoders 'processor, lz4'"), 80, 16),
    Step("pinned", 1, "benchmarks pinned --device DEVICE", 20),
    Step("all-tests", 1, "pytest -p no:benchmark -q -m gpu tests", 240),
)
"""The weightiest first."""


def main(arguments: list[str]) -> None:
    """Run the steps for which this machine has the GPUs and time is left."""
    options = argparse.ArgumentParser(prog="python -m benchmarks gpus", description=__doc__)
    options.add_argument("--gpus", type=int, default=1, help="that the machine has")
    options.add_argument("--steps", default="", help="names of steps; by default all that the GPUs serve for")
    options.add_argument("--device", default="gpu", help="OpenCL device, by kind, number or name")
    options.add_argument("--seconds", type=float, default=570, help="that are there")
    options.add_argument("--folder", type=Path, default=Path("/dev/shm/w"), help="where files lie meanwhile")  # noqa: S108
    options.add_argument("--logs", type=Path, required=True, help="folder for what each step prints")
    options.add_argument("--list", action="store_true", help="print the commands and run nothing")
    chosen = options.parse_args(arguments)
    wanted = chosen.steps.split() or [step.name for step in STEPS if step.gpus <= chosen.gpus]
    if unknown := set(wanted) - {step.name for step in STEPS}:
        sys.exit(f"there are no steps {', '.join(sorted(unknown))}; there are {', '.join(s.name for s in STEPS)}")
    chosen.logs.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + chosen.seconds
    print_header(["step", "seconds", "ended"])
    for step in (step for step in STEPS if step.name in wanted):
        if chosen.list:
            print_row([step.name, f"{step.seconds:.0f}", shlex.join(step.words(chosen.folder, chosen.device))])
        elif (left := end - time.monotonic()) < step.seconds:
            print_row([step.name, "", f"not begun: {left:.0f} s are left"])
        else:
            print_row(
                [step.name, *_run(step.words(chosen.folder, chosen.device), chosen.logs / f"{step.name}.txt", left)]
            )


def _run(words: list[str], log: Path, left: float) -> tuple[str, str]:
    """Run a command; return its seconds and how it ended."""
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as printed:
        running = subprocess.Popen(words, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status = running.wait(left)
            ended = "well" if status == 0 else f"with status {status}"
        except subprocess.TimeoutExpired:
            ended = "not done"
            os.killpg(running.pid, signal.SIGKILL)  # what it has started as well
            running.wait()
    return f"{time.monotonic() - began:.0f}", ended
