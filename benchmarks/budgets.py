"""Peak memory of whole runs against what was projected: no peak may be above its projection.

For each engine, with and without further levels, with and without labels, in one process and on workers, with the
default budget and with smaller ones, a job runs in processes of its own. Their peaks are the system's (VmHWM), read
until each process ends, so that start, end and whatever libraries hold count. The largest process of a run is compared
with the projection, which is one process'. "labels" are those of `--with-labels`, a job of their own after the image's,
in the same process. Then `verify` and `show` of the last result run within a budget. Ends with exit code 1 if a peak is
above its projection or a projection above its budget.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zarr

from benchmarks.cases import add_machine_options, case_of, scratch, three
from benchmarks.machine import describe, print_header, print_row, sentence, write_json
from isovoxel.planning.memory import human_bytes

POLL_SECONDS = 0.02
"""How often peaks are read; they only grow, so what is missed is what a process adds just before its end."""


def main(arguments: list[str]) -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks budgets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_machine_options(options)
    options.add_argument("--factor", default="5,2,2")
    options.add_argument("--voxels", type=float, default=0.4e9)
    options.add_argument("--engines", default="exact cle")
    options.add_argument("--levels", default="0 auto")
    options.add_argument("--labels", default="no yes", help="without labels, with labels, or both")
    options.add_argument("--workers", default="none cpu:2", help="as isovoxel scale --workers has it; none: no workers")
    options.add_argument("--budgets", default="default 1400MiB", help="as isovoxel scale --memory has it; or default")
    options.add_argument("--options", default="", help="more options for every job, such as '--threads 16'")
    chosen = options.parse_args(arguments)
    case = case_of(three(chosen.factor), chosen.voxels)
    with scratch(chosen.folder) as folder:
        source, labels, output = folder / "input.zarr", folder / "labels.zarr", folder / "output.zarr"
        case.make_input(source)
        _make_labels(source, labels)
        record: dict[str, Any] = {"machine": describe(folder, chosen.device), "rows": []}
        print(f"{sentence(record['machine'])}; {case.shape} uint16 becomes {case.output_shape}\n")
        print_header(["run", "engine", "levels", "labels", "workers", "peak", "projected", "allowed", "of projected"])
        rows = product(
            *(getattr(chosen, name).split() for name in ("engines", "levels", "labels", "workers", "budgets"))
        )
        for engine, levels, labelled, workers, budget in rows:
            words = [*case.words, "--engine", engine, "--levels", levels, "--overwrite", *chosen.options.split()]
            words += ["--with-labels", str(labels)] if labelled == "yes" else []
            words += ["--device", chosen.device] if workers == "none" else ["--workers", workers]
            words += [] if budget == "default" else ["--memory", budget]
            found = _run(["scale", str(source), str(output), *words])
            record["rows"].append(found | {"run": "scale", "budget": budget})
            _print(record["rows"][-1], engine, levels, labelled, workers)
        for command in ("verify", "show"):
            words = ["-o", str(folder / "picture.png")] if command == "show" else []
            for budget in chosen.budgets.split():
                limit = [] if budget == "default" else ["--memory", budget]
                found = _run([command, str(output), *words, *limit])
                (folder / "picture.png").unlink(missing_ok=True)
                record["rows"].append(found | {"run": command, "budget": budget})
                _print(record["rows"][-1], "", "", "", "")
    write_json(chosen.json, record)
    above = [row for row in record["rows"] if not row["peak"] <= row["projected"] <= row["allowed"]]
    print(f"\n{len(record['rows'])} runs, {len(above)} above their projection or budget")
    if above:
        sys.exit(1)


def _make_labels(source: Path, labels: Path) -> None:
    """Write labels of the input's voxels, plane by plane."""
    grid = zarr.open_group(source, mode="r")
    voxels: Any = grid["0"]
    made = zarr.create_array(
        labels, shape=voxels.shape, chunks=voxels.chunks, dtype="uint32", dimension_names=["z", "y", "x"]
    )
    for z in range(0, voxels.shape[0], voxels.chunks[0]):
        made[z : z + voxels.chunks[0]] = np.asarray(voxels[z : z + voxels.chunks[0]], np.uint32) // 512


def _run(words: list[str]) -> dict[str, Any]:
    """Run a command with --json; return the largest peak of its processes, and what was projected and allowed."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = psutil.Popen([sys.executable, "-m", "isovoxel", *words, "--json"], stdout=out, stderr=err)
        peaks: dict[int, int] = {}
        while process.poll() is None:
            for pid in _tree(process):
                peaks[pid] = max(peaks.get(pid, 0), _peak(pid))
            time.sleep(POLL_SECONDS)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            sys.exit(err.read())
        said = json.loads(out.read())
    jobs = [said, *filter(None, [said.get("labels")])]
    return {
        "peak": max(*peaks.values(), *(job.get("peak_host_bytes") or 0 for job in jobs)),
        "processes": len(peaks),
        "projected": max(job["projected"]["host_bytes"] for job in jobs),
        "allowed": said["allowed"]["host_bytes"],
    }


def _tree(process: psutil.Process) -> Iterator[int]:
    """Yield a process and those that it has started, as far as they live."""
    yield process.pid
    try:
        yield from (child.pid for child in process.children(recursive=True))
    except psutil.Error:
        return


def _peak(pid: int) -> int:
    """Return the most memory that a process has held, or 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def _print(row: dict[str, Any], *how: str) -> None:
    sizes = [human_bytes(row[name]) for name in ("peak", "projected", "allowed")]
    verdict = "" if row["peak"] <= row["projected"] <= row["allowed"] else " ABOVE"
    print_row([row["run"], *how, *sizes, f"{row['peak'] / row['projected']:.2f}{verdict}"])
