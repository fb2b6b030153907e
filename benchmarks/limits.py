"""What can no job beat on this machine? The time to decode its input and to encode and write its output.

1. Decoding: the whole input, into memory that is there already, by tensorstore and by isovoxel's own reader, on as
   many threads as there are cores and on twice as many. The fastest counts.
2. Encoding and writing: the output that a real job made, from memory, in the same chunks, shards and codec, by
   tensorstore and by isovoxel's own writer, likewise. The files are flushed to the disk, if there is one.
3. The limit of a job is the sum of both, one after the other. The input has been read before: it comes from memory.

For orientation: bytes per second between host and device, on the device, and to one large file.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tifffile import imread

import isovoxel
from benchmarks.cases import add_options, cases_of, run_job, scratch
from benchmarks.copies import device_bandwidth, disk_write, host_device_copies
from benchmarks.machine import best, cores, describe, in_memory, print_header, print_row, sentence, write_json
from isovoxel.geometry.grid import Box, VoxelGrid
from isovoxel.output.ome_zarr import create_output
from isovoxel.output.writer import OmeZarrWriter
from isovoxel.planning.chunking import Storage

TILE = (32, 256, 256)
"""Voxels that isovoxel's reader is asked for at a time: whole chunks of the input."""
HAS_TENSORSTORE = importlib.util.find_spec("tensorstore") is not None

Seconds = dict[str, float]
"""Seconds of each reader or writer that was tried."""


def main(arguments: list[str]) -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks limits", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(options)
    options.add_argument("--copied", type=float, default=1e9, help="bytes copied between host and device")
    chosen = options.parse_args(arguments)
    with scratch(chosen.folder) as folder:
        record: dict[str, Any] = {"machine": describe(folder, chosen.device), "cases": []}
        print(f"{sentence(record['machine'])}\n")
        print_header(["factors", "what", "by", "seconds", "GB/s", ""])
        for case in cases_of(chosen):
            source, output = folder / "input.zarr", folder / "output.zarr"
            case.make_input(source)
            said, _ = run_job(source, output, [*case.words, "--engine", "exact", "--device", chosen.device])
            limit = job_limit(source, output, said, folder)
            record["cases"].append({"factor": case.factor, "input_shape": case.shape, **limit})
            _print_limit(case.name, limit)
            shutil.rmtree(source)
            shutil.rmtree(output)
        data = np.arange(int(chosen.copied) // 4, dtype=np.uint32)
        record["bytes_per_second"] = {
            **host_device_copies(chosen.device, int(chosen.copied)),
            "on the device, read and written": device_bandwidth(chosen.device, int(chosen.copied)),
            "to one file, flushed": disk_write(folder, data, cores()),
        }
    print()
    print_header(["bytes", "GB/s"])
    for what, rate in record["bytes_per_second"].items():
        print_row([what, f"{rate / 1e9:.3g}"])
    write_json(chosen.json, record)


def job_limit(source: Path, output: Path, said: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the limit of a job, as JSON values.

    Parameters
    ----------
    source, output
        The job's input, and the result that it left.
    said
        What the job said of itself.
    folder
        Where to write.
    """
    if not HAS_TENSORSTORE:
        print("tensorstore is not installed, and may be faster: pip install '.[bench]'", file=sys.stderr)
    result = isovoxel.open_volume(output)
    voxels = result.read(Box.whole(result.shape))
    decode = read_seconds(source)
    encode = write_seconds(output / "0", voxels, said["output"], folder)
    reader, writer = min(decode, key=decode.__getitem__), min(encode, key=encode.__getitem__)
    volume = isovoxel.open_volume(source)
    return {
        "seconds": decode[reader] + encode[writer],
        "decode": {"by": reader, "seconds": decode[reader], "bytes": volume.nbytes, "tried": decode},
        "encode": {"by": writer, "seconds": encode[writer], "bytes": voxels.nbytes, "tried": encode},
    }


def read_seconds(source: Path, repeat: int = 3) -> Seconds:
    """Return how long decoding a whole OME-Zarr, or a TIFF, takes, by each reader; the best of so many times."""
    volume = isovoxel.open_volume(source)
    voxels = np.empty(volume.shape, volume.dtype)
    voxels.fill(1)  # so that no page is touched for the first time later
    found = {}
    for threads in (cores(), 2 * cores()):
        if source.is_file():
            found[f"tifffile, {threads} threads"] = best(
                lambda n=threads: imread(source, maxworkers=n, out=voxels), repeat
            )
        elif HAS_TENSORSTORE:
            found[f"tensorstore, {threads} threads"] = best(_tensorstore_reading(source / "0", voxels, threads), repeat)
        found[f"isovoxel, {threads} threads"] = best(lambda n=threads: _decode(source, n), repeat)
    return found


def write_seconds(array: Path, voxels: NDArray[Any], said: dict[str, Any], folder: Path, repeat: int = 3) -> Seconds:
    """Return how long encoding and writing voxels takes, stored as an array that a job has made, by each writer."""
    target = folder / "written.zarr"
    found = {}

    def clear() -> None:
        last = Box(tuple(max(0, n - 64) for n in voxels.shape), voxels.shape)
        written = target / "0" if (target / "0").exists() else target
        if not np.array_equal(isovoxel.open_volume(written).read(last), voxels[last.slices]):
            raise RuntimeError("what was written is not what is read")
        shutil.rmtree(target)

    storage = Storage(tuple(said["chunk"]), tuple(said["shard"]), said["codec"], plain=said["plain"])
    for threads in (cores(), 2 * cores()):
        if HAS_TENSORSTORE:
            write = _tensorstore_writing(array / "zarr.json", target, voxels, threads)
            found[f"tensorstore, {threads} threads"] = best(write, repeat, clear)
        found[f"isovoxel, {threads} threads"] = best(
            lambda n=threads: _write_shards(target, voxels, storage, n), repeat, clear
        )
    return found


def open_tensorstore(path: Path, threads: int, *, flush: bool = False) -> Any:
    """Open a zarr array with tensorstore, without a cache, on so many threads; to write, files may be flushed."""
    import tensorstore as ts

    context = {
        "cache_pool": {"total_bytes_limit": 0},
        "data_copy_concurrency": {"limit": threads},
        "file_io_concurrency": {"limit": threads},
        "file_io_sync": flush,
    }
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path.resolve())}}
    return ts.open(spec, open=True, context=ts.Context(context)).result()


def _tensorstore_reading(path: Path, voxels: NDArray[Any], threads: int) -> Callable[[], None]:
    import tensorstore as ts

    def read() -> None:
        store = open_tensorstore(path, threads)
        ts.array(voxels, copy=False, write=True).write(store).result()

    return read


def _tensorstore_writing(metadata: Path, target: Path, voxels: NDArray[Any], threads: int) -> Callable[[], None]:
    """Return what writes an array whose chunks, shards and codec are those that a ``zarr.json`` tells."""
    flush = not in_memory(target.parent)

    def write() -> None:
        target.mkdir()
        shutil.copy(metadata, target)
        store = open_tensorstore(target, threads, flush=flush)
        store.write(voxels, can_reference_source_data_indefinitely=True).result()

    return write


def _decode(path: Path, threads: int) -> None:
    """Decode an OME-Zarr with isovoxel, tile by tile, each thread into memory of its own."""
    volume = isovoxel.open_volume(path)
    own = threading.local()

    def read(tile: Box) -> None:
        if not hasattr(own, "room"):
            own.room = np.empty(math.prod(TILE), volume.dtype)
        volume.read(tile, own.room[: tile.size].reshape(tile.shape))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, Box.whole(volume.shape).tiles(TILE)))


def _write_shards(target: Path, voxels: NDArray[Any], storage: Storage, threads: int) -> None:
    """Write an OME-Zarr with isovoxel, shard by shard."""
    z, y, x = voxels.shape
    grid = VoxelGrid((z, y, x))
    create_output(target, levels=[(grid, storage)], dtype=voxels.dtype, provenance={})
    writer = OmeZarrWriter(target, grid=grid, dtype=voxels.dtype, storage=storage)
    with ThreadPoolExecutor(threads) as pool:
        boxes = Box.whole(grid.shape).tiles(storage.shard)
        list(pool.map(lambda box: writer.write(box, voxels[box.slices]), boxes))
    writer.close()


def _print_limit(name: str, limit: dict[str, Any]) -> None:
    for what, step in (("decode the input", limit["decode"]), ("encode and write the output", limit["encode"])):
        for by, seconds in step["tried"].items():
            fastest = "fastest" if by == step["by"] else ""
            print_row([name, what, by, f"{seconds:.3f}", f"{step['bytes'] / seconds / 1e9:.2f}", fastest])
    print_row([name, "the limit: both, fastest", "", f"{limit['seconds']:.3f}", "", ""])
