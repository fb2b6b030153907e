"""Jobs whose chunks the processor or the GPU compresses and decompresses, one after the other, each in its own process.

    python -m benchmarks encoding --shape 400,1400,1400 --factor 5,2,2 --folder /dev/shm
    python -m benchmarks encoding --shape 64,8000,8000 --factor 1,0.202,0.202 --input-codec blosc-zstd
        --decoders "cpu gpu" --encoders "processor, lz4" --folder /dev/shm

Prints, of the fastest run of each, seconds of blocks and of the whole process, output voxels per second, CPU seconds,
and bytes written. The first and the last plane of all outputs are compared.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import zarr

import isovoxel
from benchmarks.cases import scratch, three
from benchmarks.data import write_volume
from benchmarks.machine import cores

ENCODERS = {
    "processor, lz4": ("cpu", "blosc-lz4"),
    "processor, zstd": ("cpu", "blosc-zstd"),
    "GPU, lz4": ("gpu", "blosc-lz4"),
    "GPU, zstd": ("gpu", "blosc-zstd"),
}
ONE = """
import json, sys, time
import isovoxel
source, output, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
done = isovoxel.scale(source, output, **options)
print(json.dumps({"seconds": done.seconds, "cpu": time.process_time(), "shape": done.plan.output.shape}))
"""


def main(arguments: list[str]) -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks encoding", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--shape", default="96,512,512", help="of the input, z,y,x")
    options.add_argument("--factor", default="4,1,1")
    options.add_argument("--engine", default="exact")
    options.add_argument("--levels", default="0")
    options.add_argument("--encoders", default=";".join(ENCODERS), help=f"some of {'; '.join(ENCODERS)}")
    options.add_argument("--decoders", default="cpu", help="as isovoxel scale --decode has it, several")
    options.add_argument("--input-codec", default="blosc-lz4", help="as isovoxel scale --codec has it")
    options.add_argument("--repeat", type=int, default=3, help="runs of each")
    options.add_argument("--folder", type=Path, default=Path("/tmp"), help="where the files go")  # noqa: S108
    chosen = options.parse_args(arguments)
    job = {"factor": three(chosen.factor), "engine": chosen.engine, "levels": chosen.levels}
    print("| encoder | decoder | blocks, s | process, s | Gvoxel/s written | CPU s | GB written |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with scratch(chosen.folder) as folder:
        z, y, x = (int(n) for n in chosen.shape.split(","))
        write_volume(folder / "in.zarr", (z, y, x), (4.0, 1.0, 1.0), threads=cores())
        if chosen.input_codec != "blosc-lz4":
            plain = (folder / "in.zarr").rename(folder / "plain.zarr")
            isovoxel.scale(plain, folder / "in.zarr", factor=(1, 1, 1), levels=0, codec=chosen.input_codec)
        for name, decode in product(chosen.encoders.split(";"), chosen.decoders.split()):
            encode, codec = ENCODERS[name.strip()]
            with_codecs = job | {"encode": encode, "codec": codec, "decode": decode}
            runs = [_run(folder, with_codecs) for _ in range(chosen.repeat)]
            best = min(runs, key=lambda run: run["seconds"])
            rate = math.prod(best["shape"]) / 1e9 / best["seconds"]
            took = f"{best['seconds']:.2f} | {best['process']:.1f} | {rate:.2f} | {best['cpu']:.1f}"
            print(f"| {name.strip()} | {decode} | {took} | {best['bytes'] / 1e9:.2f} |", flush=True)


def _run(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Do one job, and compare its first and last voxels with those of the runs before."""
    output = folder / "out.zarr"
    words = [sys.executable, "-c", ONE, str(folder / "in.zarr"), str(output), json.dumps(job | {"overwrite": "now"})]
    began = time.perf_counter()
    said = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    said["process"] = time.perf_counter() - began
    said["bytes"] = sum(file.stat().st_size for file in (output / "0").rglob("*") if file.is_file())
    array = zarr.open_array(output / "0")
    ends = [array[at].tobytes() for at in (slice(0, 1), slice(-1, None))]  # type: ignore[union-attr]
    for number, voxels in enumerate(ends):
        before = folder / f"{number}.voxels"
        if before.exists() and before.read_bytes() != voxels:
            sys.exit(f"{job} gives other voxels")
        before.write_bytes(voxels)
    return said  # type: ignore[no-any-return]
