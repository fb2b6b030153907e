"""One job on one device after the other, and on several workers: how much faster, who did how much, and is it the same?

For each engine and each way to the halo, the job runs in one process without a cluster, and then on each number of
workers that is asked for, one per GPU (or ``cpu:N``, which share the cores). "ratio" is to the first number of
workers; "cores" is how many cores worked on average, of all programs of the machine; each worker's share of the
voxels stands in its order, as does the share of the time in which its device was at work. Every file of every result
is compared with that of the run without a cluster, byte by byte; a texture unit on another GPU of the same kind gives
the same bits.

So many blocks as are asked for at least, by more voxels or by smaller shards. With `--threads`, a worker has no more
blocks in flight than so many, and no more cores: then cores that are left bind no longer, and devices show.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import psutil

from benchmarks.cases import add_machine_options, case_of, run_job, scratch, three
from benchmarks.machine import cores, describe, print_header, print_row, sentence, write_json
from isovoxel.execution.result import STAGES

COLUMNS = ("engine", "halo", "workers", "threads", "blocks", "seconds", "whole process", "Mvoxel/s", "ratio", "shares")


def main(arguments: list[str]) -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(prog="python -m benchmarks workers", description=__doc__)
    add_machine_options(options)
    options.add_argument("--factor", default="5,2,2")
    options.add_argument("--voxels", type=float, default=4e9)
    options.add_argument("--workers", default="1 2", help="as isovoxel scale --workers has it, several")
    options.add_argument("--engines", default="exact cle")
    options.add_argument("--halos", default="direct map_overlap")
    options.add_argument("--threads", type=int, help="blocks in flight on each worker")
    options.add_argument("--repeat", type=int, default=1, help="runs of each, of which the fastest counts")
    options.add_argument("--options", default="", help="more options for every job, such as '--shard 32,32,32'")
    chosen = options.parse_args(arguments)
    case = case_of(three(chosen.factor), chosen.voxels)
    with scratch(chosen.folder) as folder:
        source, output = folder / "input.zarr", folder / "output.zarr"
        case.make_input(source)
        record: dict[str, Any] = {"machine": describe(folder, chosen.device), "rows": []}
        print(f"{sentence(record['machine'])}; {case.shape} uint16 becomes {case.output_shape}\n")
        print_header([*COLUMNS, "busy", "cores", *STAGES, "same bits"])
        for engine, halo in product(chosen.engines.split(), chosen.halos.split()):
            words = [*case.words, "--engine", engine, "--halo", halo, "--overwrite", *chosen.options.split()]
            words += ["--threads", str(chosen.threads)] if chosen.threads else []
            rows: list[dict[str, Any]] = []
            for workers in ("", *chosen.workers.split()):
                where = ["--workers", workers] if workers else ["--device", chosen.device]
                found = [_run(source, output, [*words, *where]) for _ in range(chosen.repeat)]
                best = min(found, key=lambda row: float(row["seconds"]))
                rows.append(best | {"engine": engine, "halo": halo, "workers": workers})
                _print(rows)
            record["rows"] += rows
    write_json(chosen.json, record)
    if not all(row["files"] == row["expected"] for row in record["rows"]):
        sys.exit("not all results are the same")


def _run(source: Path, output: Path, words: list[str]) -> dict[str, Any]:
    """Run a job, and return what is told of it."""
    before, began = psutil.cpu_times(), time.perf_counter()
    said, process_seconds = run_job(source, output, words)
    after, wall = psutil.cpu_times(), time.perf_counter() - began
    files = _digest(output)
    shutil.rmtree(output)
    workers = list(said.get("workers", {}).values())
    return {
        "seconds": said["seconds"],
        "process_seconds": process_seconds,
        "voxels_per_second": said["voxels_per_second"],
        "blocks": said["blocks"]["count"],
        "threads": said["blocks"]["in_flight"],
        "shares": [worker["voxels"] for worker in workers],
        "busy": [worker["busy_share"] for worker in workers],
        "pci": [worker["pci"] for worker in workers],
        # That of starting is in it: of a job that takes seconds, it is the smaller part of what its cores do.
        "cores": (after.user + after.system - before.user - before.system) / wall,
        "stages": said["stage_seconds"],
        "files": files,
    }


def _digest(output: Path) -> str:
    """Return what tells the shards of a result from all others."""
    found = hashlib.sha256()
    files = sorted(path for path in (output / "0" / "c").rglob("*") if path.is_file())
    with ThreadPoolExecutor(cores()) as pool:
        for file, digest in zip(files, pool.map(_file_digest, files), strict=True):
            found.update(str(file.relative_to(output)).encode() + digest)
    return found.hexdigest()


def _file_digest(file: Path) -> bytes:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()


def _print(rows: list[dict[str, Any]]) -> None:
    """Print the last of some rows, of which the first is the run without a cluster."""
    row = rows[-1]
    row["expected"] = rows[0]["files"]
    base = rows[min(1, len(rows) - 1)]
    cells = [row["engine"], row["halo"], row["workers"] or "none", row["threads"], row["blocks"]]
    cells += [f"{row['seconds']:.2f} s", f"{row['process_seconds']:.1f} s", f"{row['voxels_per_second'] / 1e6:.0f}"]
    cells += [f"{base['seconds'] / row['seconds']:.2f}" if row["workers"] else ""]
    total = sum(row["shares"]) or 1
    cells += [" ".join(f"{share / total:.0%}" for share in row["shares"]), " ".join(f"{b:.0%}" for b in row["busy"])]
    cells += [f"{row['cores']:.1f}", *(f"{row['stages'][stage]:.2f} s" for stage in STAGES)]
    print_row([*cells, "yes" if row["files"] == row["expected"] else "NO"])
