"""What empty chunks cost: a mask most of whose chunks hold nothing, scaled with `--empty skip` and `write`, in turn.

    python -m benchmarks empty --shape 512,2048,2048 --folder /dev/shm

The mask is a ball in the middle, of which at most a tenth of the chunks hold a part. The input is written twice: once
without its empty chunks, once with all of them. Each run is a process of its own, and is not counted until the job
begins. Prints the medians of seconds and of CPU seconds, files and bytes of the output, and how many times faster
`skip` is in the median of pairs. The voxels of all outputs are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from benchmarks.cases import scratch, three
from isovoxel.geometry.grid import Box, Index3

CHUNK = (16, 64, 64)
"""Of the input."""
RADIUS = 0.4
"""Of the ball, for a cube of side 2: its bounding box holds 1 of 16 voxels."""
ONE = """
import json, sys, time
import isovoxel, isovoxel.output.writer
source, output, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
began = time.process_time()
done = isovoxel.scale(source, output, **options)
print(json.dumps({"seconds": done.seconds, "cpu": time.process_time() - began}))
"""


def main(arguments: list[str]) -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks empty", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--shape", default="128,1024,1024", help="of the input, z,y,x")
    options.add_argument("--factor", default="4,1,1")
    options.add_argument("--interpolation", default="nearest")
    options.add_argument("--levels", default="0")
    options.add_argument("--repeat", type=int, default=3, help="pairs of runs")
    options.add_argument("--folder", type=Path, default=Path("/tmp"), help="where the files go")  # noqa: S108
    chosen = options.parse_args(arguments)
    z, y, x = (int(n) for n in chosen.shape.split(","))
    job = {
        "factor": three(chosen.factor),
        "engine": "exact",
        "interpolation": chosen.interpolation,
        "levels": chosen.levels,
    }
    with scratch(chosen.folder) as folder:
        print("| empty chunks of the input | --empty | seconds | CPU s | files | MB | times faster |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for stored in (False, True):
            source = folder / f"{'stored' if stored else 'missing'}.zarr"
            share = make_mask(source, (z, y, x), stored=stored)
            runs: dict[str, list[dict[str, float]]] = {"skip": [], "write": []}
            for turn in range(chosen.repeat):
                for empty in sorted(runs, reverse=turn % 2 == 1):
                    found = _run(source, folder / f"{source.stem}.{empty}.zarr", job | {"empty": empty})
                    runs[empty].append(found)
            _print(f"{source.stem}, {100 * share:.1f} % hold a part", runs)
            assert_same(*(folder / f"{source.stem}.{empty}.zarr" / "0" for empty in runs))


def make_mask(path: Path, shape: Index3, *, stored: bool) -> float:
    """Write the mask, and return which share of its chunks holds a part of the ball."""
    array: Any = zarr.create_array(
        path, shape=shape, chunks=CHUNK, dtype="uint8", fill_value=0, config={"write_empty_chunks": stored}
    )
    boxes = list(Box.whole(shape).tiles(CHUNK))
    full = 0
    for box in boxes:
        along = np.ogrid[box.slices]
        ball = sum(((2 * at + 1) / n - 1) ** 2 for at, n in zip(along, shape, strict=True)) < RADIUS**2
        full += bool(np.any(ball))
        array[box.slices] = ball
    return full / len(boxes)


def assert_same(one: Path, other: Path) -> None:
    """Compare the voxels of two arrays, a few planes at a time."""
    arrays: list[Any] = [zarr.open_array(path, mode="r") for path in (one, other)]
    step = arrays[0].chunks[0]
    for z in range(0, arrays[0].shape[0], step):
        np.testing.assert_array_equal(*(array[z : z + step] for array in arrays))


def _run(source: Path, output: Path, job: dict[str, Any]) -> dict[str, float]:
    words = [sys.executable, "-c", ONE, str(source), str(output), json.dumps(job | {"overwrite": "now"})]
    out = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    files = [file for file in output.rglob("*") if file.is_file() and file.name.isdecimal()]
    return json.loads(out.splitlines()[-1]) | {
        "files": len(files),
        "MB": sum(file.stat().st_size for file in files) / 1e6,
    }


def _print(name: str, runs: dict[str, list[dict[str, float]]]) -> None:
    pairs = zip(runs["write"], runs["skip"], strict=True)
    faster = statistics.median(write["seconds"] / skip["seconds"] for write, skip in pairs)
    for empty, found in runs.items():
        seconds, cpu = (statistics.median(run[what] for run in found) for what in ("seconds", "cpu"))
        last = f"{faster:.1f}" if empty == "skip" else ""
        print(f"| {name} | {empty} | {seconds:.2f} | {cpu:.2f} | {found[0]['files']} | {found[0]['MB']:.2f} | {last} |")
