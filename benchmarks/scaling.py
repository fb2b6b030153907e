"""How do jobs grow? With threads, with blocks, with the volume; and what does a block cost, whatever it holds?

1. Threads: 1, 2, 4 and so on, up to twice the cores.
2. Shards, and the blocks made of them: from small ones to large ones, on the same volume.
3. Volumes: 1, 2, 4 and so on times as large. The cost per voxel must stay flat.
4. Blocks: the same small volume, of which any part can be read by itself, into the same tiny shards, cut into as many
   blocks as can be, and into few, on one thread. The difference in time, per block, is what a block costs in itself,
   by direct reads and by map_overlap.

Every job runs in a process of its own. Times are from its first block to its last, nanoseconds per output voxel: wall
time, and that of all cores. The fastest of several runs counts. The first block also compiles kernels, which small
volumes feel.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import isovoxel
from benchmarks.cases import Case, add_options, case_of, scratch, three
from benchmarks.data import voxels_of
from benchmarks.machine import cores, describe, print_header, print_row, sentence, write_json
from isovoxel.errors import DoesNotFitError
from isovoxel.execution.events import Event, JobFinished, JobStarted

TINY = 16
"""Side of the shards of many blocks."""
FEW_BLOCKS_BUDGET = 2**28
"""Device memory that takes a small volume in few blocks."""


def main(arguments: list[str]) -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(options)
    options.set_defaults(factors="3.7,1.3,1.3", voxels=64e6)
    options.add_argument("--engine", default="exact")
    options.add_argument("--repeat", type=int, default=3, help="runs of each job, of which the fastest counts")
    options.add_argument("--threads", type=int, default=2 * cores(), help="threads at most")
    options.add_argument("--largest", type=int, default=32, help="times the volume grows at most")
    options.add_argument("--shards", default="64,128,256,512", help="sides of the shards")
    options.add_argument("--blocks-side", type=int, default=160, help="side of the output of many blocks")
    options.add_argument("--run", metavar="JSON", help="run the job that this says in this process")
    chosen = options.parse_args(arguments)
    if chosen.run:
        print(json.dumps(run_here(**json.loads(chosen.run))))
        return
    base = case_of(three(chosen.factors), chosen.voxels)
    with scratch(chosen.folder) as folder:
        bench = _Bench(folder, chosen)
        record: dict[str, Any] = {"machine": describe(folder, chosen.device), "factor": base.factor}
        print(f"{sentence(record['machine'])}\nengine {chosen.engine}, factors {base.name}, {base.output_shape}\n")
        print_header(["what", "blocks", "threads", "Mvoxel", "seconds", "wall ns/voxel", "cores' ns/voxel"])
        record["threads"] = _threads(bench, base, chosen.threads)
        record["shards"] = _shards(bench, base, [int(side) for side in chosen.shards.split(",")])
        record["volumes"] = _volumes(bench, base, chosen.largest)
        print()
        print_header(["halo", "blocks", "seconds", "blocks", "seconds", "ms per block"])
        record["blocks"] = [_per_block(bench, base, chosen.blocks_side, halo) for halo in ("direct", "map_overlap")]
    write_json(chosen.json, record)


def run_here(source: str, output: str, options: dict[str, Any]) -> dict[str, Any]:
    """Run a job in this process and return what it took, without what came before its first block."""
    clock: dict[type, tuple[float, float]] = {}

    def note(event: Event) -> None:
        clock[type(event)] = (time.perf_counter(), time.process_time())

    done = isovoxel.scale(source, output, listeners=(note,), **options)
    wall, cpu = (end - begin for begin, end in zip(clock[JobStarted], clock[JobFinished], strict=True))
    return {
        "seconds": wall,
        "cpu_seconds": cpu,
        "blocks": done.plan.n_blocks,
        "threads": done.plan.in_flight,
        "peak_bytes": done.peak_host_bytes,
    }


class _Bench:
    """Runs jobs, and keeps the input that the last one had."""

    def __init__(self, folder: Path, chosen: argparse.Namespace) -> None:
        self._folder = folder
        self._chosen = chosen
        self._made: Case | None = None

    def source(self, case: Case) -> Path:
        """Return the path of an input, which is made unless it is there."""
        path = self._folder / "input.zarr"
        if case != self._made:
            shutil.rmtree(path, ignore_errors=True)
            case.make_input(path)
            self._made = case
        return path

    def any_part(self, case: Case) -> Path:
        """Return the path of an input in a file that has no chunks."""
        path = self._folder / "input.npy"
        np.save(path, voxels_of(case.shape))
        return path

    def job(self, what: str, case: Case, source: Path | None = None, **options: Any) -> dict[str, Any]:
        """Run a job several times, and return the fastest."""
        output = self._folder / "output.zarr"
        said = {"source": str(source or self.source(case)), "output": str(output), "options": self._all(case, options)}
        runs = []
        for _ in range(self._chosen.repeat):
            command = [sys.executable, "-m", "benchmarks", "scaling", "--run", json.dumps(said)]
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            if ran.returncode:
                sys.exit(ran.stderr)
            runs.append(json.loads(ran.stdout))
            shutil.rmtree(output)
        fastest = min(runs, key=lambda run: float(run["seconds"]))
        return {
            "what": what,
            "voxels": case.voxels,
            "ns_per_voxel": fastest["seconds"] / case.voxels * 1e9,
            "cpu_ns_per_voxel": fastest["cpu_seconds"] / case.voxels * 1e9,
            **fastest,
        }

    def least_budget(self, case: Case, source: Path | None = None, **options: Any) -> int:
        """Return about the least device memory at which a block fits: blocks are then as small as can be."""
        budget = 2**12
        while True:
            try:
                isovoxel.plan(source or self.source(case), **self._all(case, options | {"device_memory": budget}))
            except DoesNotFitError:
                budget = round(1.3 * budget)
            else:
                return budget

    def _all(self, case: Case, options: dict[str, Any]) -> Any:
        always = {"engine": self._chosen.engine, "device": self._chosen.device, "levels": 0}
        return {"factor": case.factor, **always, **options}


def _print(found: dict[str, Any]) -> dict[str, Any]:
    costs = [f"{found[name]:.3g}" for name in ("seconds", "ns_per_voxel", "cpu_ns_per_voxel")]
    print_row([found["what"], found["blocks"], found["threads"], f"{found['voxels'] / 1e6:.3g}", *costs])
    return found


def _threads(bench: _Bench, case: Case, most: int) -> list[dict[str, Any]]:
    """Run the same blocks, some dozens of them, on more and more threads."""
    side = 2 ** max(4, int(math.log2(min(case.output_shape) / 3)))
    cut: dict[str, Any] = {"shard": (side,) * 3, "chunk": (min(64, side),) * 3}
    cut["device_memory"] = bench.least_budget(case, **cut)
    counts = [1]
    while 2 * counts[-1] <= most:
        counts.append(2 * counts[-1])
    return [_print(bench.job(f"threads: {n}", case, threads=n, **cut)) for n in counts]


def _shards(bench: _Bench, case: Case, sides: list[int]) -> list[dict[str, Any]]:
    """Run the same volume in shards, and in blocks hardly larger than one, of these sides."""
    found = []
    for side in sides:
        cut: dict[str, Any] = {"shard": (side,) * 3, "chunk": (min(64, *sides),) * 3}
        cut["device_memory"] = bench.least_budget(case, **cut)
        found.append(_print(bench.job(f"shards of {side}", case, **cut)))
    return found


def _volumes(bench: _Bench, base: Case, largest: int) -> list[dict[str, Any]]:
    found, times, shape = [], 1, list(base.shape)
    while times <= largest:
        case = replace(base, shape=(shape[0], shape[1], shape[2]))
        found.append(_print(bench.job(f"volume {times} x", case)))
        shape[len(found) % 3] *= 2  # along y, x and z in turn
        times *= 2
    return found


def _per_block(bench: _Bench, base: Case, side: int, halo: str) -> dict[str, Any]:
    """Return what a block costs beyond its voxels: a line through a job of many blocks and one of few."""
    case = case_of(base.factor, side**3)
    source = bench.any_part(case)
    cut: dict[str, Any] = {"shard": (TINY,) * 3, "chunk": (TINY,) * 3, "halo": halo, "threads": 1}
    many = bench.job("many blocks", case, source, **cut, device_memory=bench.least_budget(case, source, **cut))
    few = bench.job("few blocks", case, source, **cut, device_memory=FEW_BLOCKS_BUDGET)
    cost = (many["seconds"] - few["seconds"]) / max(1, many["blocks"] - few["blocks"])
    cells = [cell for run in (few, many) for cell in (run["blocks"], f"{run['seconds']:.3g}")]
    print_row([halo, *cells, f"{1e3 * cost:.3g}"])
    return {"halo": halo, "many": many, "few": few, "seconds_per_block": cost}
