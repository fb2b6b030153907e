"""How fast do other programs scale the same volume, from zarr to zarr? Each in a process of its own.

Each opens the input, scales it linearly, and writes a zarr of the same chunks, shards and codec as isovoxel's. All but
dask-image, which goes block by block, hold the whole volume; they are read and written by tensorstore, on all cores,
which is the fastest. Time counts from opening the input to the last byte written, without the imports; of several runs
the fastest counts. Results are compared with that of isovoxel's exact engine, in grey levels, where both sample the
same places. What is not installed is left out: ``pip install '.[bench]'`` installs what others need.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import isovoxel
from benchmarks.cases import add_options, case_of, scratch, three
from benchmarks.machine import describe, print_header, print_row, sentence, write_json
from benchmarks.peer_programs import PROGRAMS
from isovoxel.execution.resources import peak_bytes
from isovoxel.geometry.grid import Box
from isovoxel.planning.memory import human_bytes

COMPARED, SIDE = 64, 48
"""How many boxes of a result are compared, and how large they are."""


def main(arguments: list[str]) -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(prog="python -m benchmarks peers", description=__doc__)
    add_options(options)
    options.set_defaults(factors="4,1,1")
    options.add_argument("--repeat", type=int, default=3, help="runs of each program, of which the fastest counts")
    options.add_argument("--program", default=",".join(PROGRAMS), help="which are run; isovoxel exact is in any case")
    options.add_argument("--run", nargs=3, metavar=("PROGRAM", "INPUT", "OUTPUT"), help="run one in this process")
    chosen = options.parse_args(arguments)
    factor = three(chosen.factors)
    if chosen.run:
        name, source, output = chosen.run
        for module in PROGRAMS[name].modules:
            import_module(module)
        began = time.perf_counter()
        PROGRAMS[name].run(Path(source), Path(output), factor, chosen.device)
        print(json.dumps({"seconds": time.perf_counter() - began, "peak_bytes": peak_bytes()}))
        return

    case = case_of(factor, chosen.voxels)
    with scratch(chosen.folder) as folder:
        record: dict[str, Any] = {"machine": describe(folder, chosen.device), "factor": factor, "voxels": case.voxels}
        record["rows"] = []
        print(f"{sentence(record['machine'])}\nfactors {case.name}: {case.shape} becomes {case.output_shape}\n")
        print_header(["program", "version", "seconds", "Mvoxel/s", "peak memory", "largest difference"])
        source, reference = folder / "input.zarr", folder / "reference.zarr"
        case.make_input(source)
        isovoxel.scale(source, reference, factor=factor, engine="exact", device=chosen.device, levels=0)
        for name in PROGRAMS:
            if name in chosen.program.split(",") or name == "isovoxel exact":
                row = {"name": name, **measure(name, source, reference, folder / "output.zarr", chosen)}
                if "seconds" in row:
                    row["voxels_per_second"] = case.voxels / row["seconds"]
                record["rows"].append(row)
                _print(row)
    write_json(chosen.json, record)


def measure(name: str, source: Path, reference: Path, output: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Return the least time of one program and what its result is like, or why there is none."""
    program = PROGRAMS[name]
    for module in program.modules:
        if find_spec(module.split(".")[0]) is None:
            return {"skipped": f"{module} is not installed"}
    command = [sys.executable, "-m", "benchmarks", "peers", "--factors", chosen.factors, "--device", chosen.device]
    runs = []
    for _ in range(chosen.repeat):
        shutil.rmtree(output, ignore_errors=True)
        # What a program must write into is there before its clock begins, and belongs to no one.
        program.prepare(reference, output)
        words = [*command, "--run", name, str(source), str(output)]
        ran = subprocess.run(words, capture_output=True, text=True, check=False)
        if ran.returncode:
            return {"skipped": (ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"])[-1]}
        runs.append(json.loads(ran.stdout.splitlines()[-1]))
    fastest = min(runs, key=lambda run: float(run["seconds"]))
    return {
        "version": program.version,
        "seconds": fastest["seconds"],
        "peak_bytes": max(run["peak_bytes"] for run in runs),
        "largest_difference": largest_difference(reference, output),
    }


def largest_difference(reference: Path, output: Path) -> float | None:
    """Return the largest difference over random boxes and the last corner; None if the shapes differ."""
    ours, theirs = (isovoxel.open_volume(path / "0") for path in (reference, output))
    if ours.shape != theirs.shape:
        return None
    rng = np.random.default_rng(0)
    worst = 0.0
    for i in range(COMPARED):
        low = [max(0, n - SIDE) if i == 0 else int(rng.integers(0, max(1, n - SIDE + 1))) for n in ours.shape]
        z, y, x = zip(low, (min(n, a + SIDE) for a, n in zip(low, ours.shape, strict=True)), strict=True)
        box = Box((z[0], y[0], x[0]), (z[1], y[1], x[1]))
        worst = max(worst, float(np.abs(ours.read(box).astype(np.float64) - theirs.read(box)).max()))
    return worst


def _print(row: dict[str, Any]) -> None:
    if "skipped" in row:
        print_row([row["name"], "", f"left out: {row['skipped']}", "", "", ""])
        return
    difference = row["largest_difference"]
    shown = "another shape" if difference is None else f"{difference:.4g}"
    speed = f"{row['voxels_per_second'] / 1e6:.3g}"
    print_row([row["name"], row["version"], f"{row['seconds']:.3g}", speed, human_bytes(row["peak_bytes"]), shown])
