"""What checksums of chunks cost: shards written with CRC-32C behind each chunk and without, in turn.

The same voxels (see `benchmarks.data`), chunks, shards and codec, in one process; CPU seconds are those of all its
threads, for a GB of voxels. Encoding and writing are most of a job, so a job's share is less than the one printed.
Then one thread makes a checksum, while another counts: where the library held the interpreter's lock, it would count
next to nothing.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from crc32c import crc32c

from benchmarks.cases import add_machine_options, scratch
from benchmarks.data import voxels_of
from benchmarks.machine import describe, print_header, print_row, sentence, write_json
from isovoxel.geometry.grid import Box, VoxelGrid
from isovoxel.output.ome_zarr import create_output
from isovoxel.output.writer import OmeZarrWriter
from isovoxel.planning.chunking import CODECS, Storage

LOCK_BYTES = 2**28
"""Bytes of which one checksum is made while another thread counts."""


def main(arguments: list[str]) -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks checksums", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_machine_options(options)
    options.add_argument("--side", type=int, default=256, help="voxels per side of a shard")
    options.add_argument("--shards", type=int, default=4)
    options.add_argument("--codecs", default="blosc-lz4", help="some of isovoxel scale's, with spaces between")
    options.add_argument("--repeat", type=int, default=15, help="rounds, of each of which both are written")
    chosen = options.parse_args(arguments)
    with scratch(chosen.folder) as folder:
        record = {"machine": describe(folder, chosen.device), "codecs": {}, "counted": counted_meanwhile()}
        print(f"{sentence(record['machine'])}; shards of {chosen.side}^3 uint16, chunks of half a side\n")
        print_header(["codec", "rounds", "CPU s/GB without", "CPU s/GB with", "ratio, middle of rounds", "quarters"])
        for codec in chosen.codecs.split():
            without, with_them = measure(folder, codec, chosen)
            ratios = [b / a for a, b in zip(without, with_them, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
            record["codecs"][codec] = {"without": without, "with": with_them}
            cells = [f"{statistics.median(times):.3f}" for times in (without, with_them)]
            print_row([codec, str(len(ratios)), *cells, f"{middle:.3f}", f"{low:.3f} to {high:.3f}"])
    print(f"\ncounted by another thread during a checksum of {LOCK_BYTES >> 20} MiB: {record['counted']:,}")
    write_json(chosen.json, record)


def measure(folder: Path, name: str, chosen: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Return CPU seconds for a GB, of each round, without checksums and with them."""
    side = chosen.side
    data = voxels_of((side, side, side))
    codec, plain = CODECS[name]
    storage = Storage((side // 2,) * 3, (side,) * 3, codec, plain=plain)
    grid = VoxelGrid((side * chosen.shards, side, side))
    writers = []
    for checksum in (False, True):
        stored, path = replace(storage, checksum=checksum), folder / f"{name}{checksum}"
        create_output(path, levels=[(grid, stored)], dtype=data.dtype, provenance={})
        writers.append((OmeZarrWriter(path, grid=grid, dtype=data.dtype, storage=stored, helpers=0), []))
    for turn in range(chosen.repeat + 1):
        for writer, found in writers[:: 1 if turn % 2 == 0 else -1]:
            began = time.process_time()
            for i in range(chosen.shards):
                writer.write(Box((i * side, 0, 0), ((i + 1) * side, side, side)), data)
            if turn:  # the first touches memory for the first time
                found.append((time.process_time() - began) / (data.nbytes * chosen.shards) * 1e9)
    for writer, _ in writers:
        writer.close()
    (_, without), (_, with_them) = writers
    return without, with_them


def counted_meanwhile() -> int:
    """Return how far this thread counts while another one makes a checksum."""
    data = np.zeros(LOCK_BYTES, np.uint8)
    begins, ended = threading.Event(), threading.Event()

    def check() -> None:
        begins.set()
        crc32c(data)
        ended.set()

    thread = threading.Thread(target=check)
    thread.start()
    begins.wait()
    count = 0
    while not ended.is_set():
        count += 1
    thread.join()
    return count
