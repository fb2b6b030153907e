"""What does the graph of `scale_array` cost? Tasks and bytes for each block, and milliseconds to build and optimise it.

An array of zeros is scaled by 1.01 along each axis into blocks of 16 voxels a side. A block reads from up to 27 chunks
of the array where these are as small, and from few where they are larger. Nothing is computed.
"""

from __future__ import annotations

import argparse
import pickle
import time
from pathlib import Path

import dask
import dask.array as da

import isovoxel
from benchmarks.machine import describe, print_header, print_row, sentence, write_json

SIDE = 16
"""Side of the blocks."""


def main(arguments: list[str]) -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks pipelines", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--blocks", type=int, default=27, help="blocks along each axis, about")
    options.add_argument("--json", type=Path, help="write the numbers here")
    chosen = options.parse_args(arguments)
    record = {"machine": describe(Path(), "auto"), "graphs": []}
    print(f"{sentence(record['machine'])}\n")
    print_header(["chunks", "blocks", "tasks a block", "bytes a block", "build, ms a block", "optimise, ms a block"])
    for chunk in (SIDE, 4 * SIDE):
        array = da.zeros((chosen.blocks * SIDE,) * 3, chunks=chunk, dtype="uint16")
        isovoxel.scale_array(array[:1], 1.01, engine="exact")  # looks for the device
        begin = time.perf_counter()
        scaled = isovoxel.scale_array(array, 1.01, chunks=(SIDE,) * 3, engine="exact")
        built = time.perf_counter()
        dask.optimize(scaled)
        optimised = time.perf_counter()
        n, layer = scaled.npartitions, dict(scaled.dask.layers[scaled.name])
        found = {
            "chunk": chunk,
            "blocks": n,
            "tasks": len(layer) / n,
            "bytes": len(pickle.dumps(layer)) / n,
            "build_ms": 1e3 * (built - begin) / n,
            "optimise_ms": 1e3 * (optimised - built) / n,
        }
        record["graphs"].append(found)
        print_row([f"{value:.3g}" if isinstance(value, float) else value for value in found.values()])
    write_json(chosen.json, record)
