"""How shards are encoded here, against zarr-python: bytes of voxels per second, and the most that a shard holds.

CPU seconds are those of all cores together, for a GB of voxels. The same voxels (see `benchmarks.data`), chunks,
shards and codec; one process for each, so that each has a peak of its own; the best of three rounds of writing all
shards.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import zarr

from benchmarks.data import voxels_of
from isovoxel.execution.resources import peak_bytes
from isovoxel.geometry.grid import Box, VoxelGrid
from isovoxel.output.ome_zarr import create_output
from isovoxel.output.writer import OmeZarrWriter
from isovoxel.planning.chunking import CODECS, Storage

WRITERS = ("isovoxel", "zarr-python")


def main(arguments: list[str]) -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(prog="python -m benchmarks writers", description=__doc__)
    options.add_argument("--side", type=int, default=256, help="voxels per side of a shard")
    options.add_argument("--shards", type=int, default=12)
    options.add_argument("--threads", type=int, default=3, help="shards written at the same time")
    options.add_argument("--helpers", type=int, help="threads of ours that help them; all cores but one by default")
    options.add_argument("--folder", type=Path, help="where the files go; a temporary folder by default")
    options.add_argument("--codecs", default=" ".join(CODECS), help="some of these, with spaces between")
    options.add_argument("--writer", choices=WRITERS, help="run this one in this process")
    chosen = options.parse_args(arguments)
    if chosen.writer:
        print(json.dumps(measure(chosen)))
        return
    print(f"{chosen.shards} shards of {chosen.side}^3 uint16, chunks of half a side, {chosen.threads} threads")
    print("| writer | codec | GB/s | ratio | CPU s/GB | memory held, in shards | size |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    found = {}
    for writer, codec in product(WRITERS, chosen.codecs.split()):
        command = [sys.executable, "-m", "benchmarks", "writers", *arguments, "--writer", writer, "--codecs", codec]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[writer, codec] = json.loads(done.stdout)
    slowest = min(f["rate"] for f in found.values())
    for (writer, codec), f in found.items():
        print(
            f"| {writer} | {codec} | {f['rate'] / 1e9:.2f} | {f['rate'] / slowest:.1f} | {f['cpu']:.2f} "
            f"| {f['held']:.1f} | {100 * f['size']:.0f} % |"
        )


def measure(chosen: argparse.Namespace) -> dict[str, float]:
    """Write all shards three times with one writer."""
    side, shards = chosen.side, chosen.shards
    data = voxels_of((side, side, side))
    grid = VoxelGrid((side * shards, side, side))
    codec, plain = CODECS[chosen.codecs]
    storage = Storage((side // 2,) * 3, (side,) * 3, codec, plain=plain)
    durations, processor = [], []
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder, ThreadPoolExecutor(chosen.threads) as pool:
        path = Path(folder) / "a"
        create_output(path, levels=[(grid, storage)], dtype=data.dtype, provenance={})
        writer = OmeZarrWriter(path, grid=grid, dtype=data.dtype, storage=storage, helpers=chosen.helpers)
        array = zarr.open_array(path / "0", mode="r+")

        def ours(i: int) -> None:
            writer.write(Box((i * side, 0, 0), ((i + 1) * side, side, side)), data)

        def theirs(i: int) -> None:
            array[i * side : (i + 1) * side] = data

        write: Callable[[int], None] = ours if chosen.writer == WRITERS[0] else theirs
        before = peak_bytes()
        for _ in range(3):
            began, worked = time.perf_counter(), time.process_time()
            list(pool.map(write, range(shards)))
            durations.append(time.perf_counter() - began)
            processor.append(time.process_time() - worked)
        held = (peak_bytes() - before) / data.nbytes
        if not np.array_equal(array[:side], data):
            raise RuntimeError("what was written is not what is read")
        writer.close()
        encoded = sum(file.stat().st_size for file in (path / "0" / "c").rglob("*") if file.is_file())
    nbytes = data.nbytes * shards
    return {
        "rate": nbytes / min(durations),
        "cpu": min(processor) / nbytes * 1e9,
        "held": held,
        "size": encoded / nbytes,
    }
