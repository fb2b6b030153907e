"""What does a small job cost, the start of the process included, beside a plain script that calls cle.scale?

The stack is that of clEsperanto's scaling tutorial in shape and voxel size, of random voxels, as TIFF; zoom 2. The
script imports cle, reads the stack, calls ``cle.scale``, rounds, and writes an OME-Zarr with zarr-python. Beside it:
``isovoxel scale`` with engine cle, ``isovoxel plan``, also of a petabyte, and ``isovoxel --help``. All take turns, the
best of several counts; "cores" is the time that all cores worked for it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr

from benchmarks.cases import add_machine_options, scratch, three
from benchmarks.machine import describe, print_header, print_row, sentence, write_json

ZOOM = 2
VOXEL_SIZE = (1.0, 0.202, 0.202)
PETABYTE = (20_000, 158_114, 158_114)
"""Shape of 10^15 bytes of uint16, none of which is stored."""
SCRIPT = """
import sys

import numpy as np
import pyclesperanto_prototype as cle
import tifffile
import zarr

stack, output, fz, fy, fx = sys.argv[1], sys.argv[2], *map(float, sys.argv[3:])
scaled = cle.scale(
    tifffile.imread(stack), factor_z=fz, factor_y=fy, factor_x=fx, auto_size=True, linear_interpolation=True
)
voxels = np.rint(np.asarray(scaled)).astype(np.uint16)
axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
place = [{"type": "scale", "scale": [0.5, 0.5, 0.5]}]
multiscale = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": place}]}
attributes = {"ome": {"version": "0.5", "multiscales": [multiscale]}}
group = zarr.create_group(output, zarr_format=3, attributes=attributes)
chunks = tuple(min(128, n) for n in voxels.shape)
array = group.create_array("0", shape=voxels.shape, dtype=voxels.dtype, chunks=chunks, dimension_names=list("zyx"))
array[...] = voxels
"""


def main(arguments: list[str]) -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(prog="python -m benchmarks startup", description=__doc__)
    add_machine_options(options)
    options.add_argument("--shape", default="86,396,393", help="of the stack, z,y,x")
    options.add_argument("--repeat", type=int, default=5, help="runs of each, of which the best counts")
    chosen = options.parse_args(arguments)
    z, y, x = (round(n) for n in three(chosen.shape))
    with scratch(chosen.folder) as folder:
        stack, output = folder / "stack.tif", folder / "output.zarr"
        write_stack(stack, (z, y, x))
        large = folder / "petabyte.zarr"
        zarr.create_array(large, shape=PETABYTE, chunks=(128,) * 3, shards=(512,) * 3, dtype="uint16")
        factors = [str(ZOOM * size) for size in VOXEL_SIZE]
        isovoxel = [sys.executable, "-m", "isovoxel"]
        scale = ["scale", str(stack), str(output), "--zoom", str(ZOOM), "--engine", "cle", "--device", chosen.device]
        commands = {
            "a script with cle.scale": [sys.executable, "-c", SCRIPT, str(stack), str(output), *factors],
            "isovoxel scale": [*isovoxel, *scale],
            "isovoxel plan": [*isovoxel, "plan", str(stack), "--zoom", str(ZOOM), "--device", chosen.device],
            "isovoxel plan of a petabyte": [
                *isovoxel,
                "plan",
                str(large),
                "--factor",
                "5,2,2",
                "--device",
                chosen.device,
            ],
            "isovoxel --help": [*isovoxel, "--help"],
        }
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(chosen.repeat):
            for name, command in commands.items():
                runs[name].append(timed(command))
                shutil.rmtree(output, ignore_errors=True)
        record: dict[str, Any] = {"machine": describe(folder, chosen.device), "shape": [z, y, x]}
    best = {name: [min(kind) for kind in zip(*found, strict=True)] for name, found in runs.items()}
    record["commands"] = {name: {"seconds": wall, "cpu_seconds": cpu} for name, (wall, cpu) in best.items()}
    print(f"{sentence(record['machine'])}\nstack of {z} x {y} x {x} uint16, best of {chosen.repeat}\n")
    print_header(["command", "seconds", "cores", "ratio to the script", "of cores"])
    script = best["a script with cle.scale"]
    for name, (wall, cpu) in best.items():
        print_row([name, f"{wall:.2f}", f"{cpu:.2f}", f"{wall / script[0]:.2f}", f"{cpu / script[1]:.2f}"])
    write_json(chosen.json, record)


def write_stack(path: Path, shape: tuple[int, int, int]) -> None:
    """Write a stack of random voxels as Fiji does."""
    voxels = np.random.default_rng(0).integers(0, 2**16, shape, np.uint16)
    metadata = {"axes": "ZYX", "spacing": VOXEL_SIZE[0], "unit": "micron"}
    tifffile.imwrite(path, voxels, imagej=True, resolution=(1 / VOXEL_SIZE[2], 1 / VOXEL_SIZE[1]), metadata=metadata)


def timed(command: list[str]) -> tuple[float, float]:
    """Return the seconds that a command takes, and those of all cores."""
    before, began = os.times(), time.perf_counter()
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - began, os.times()
    if ran.returncode:
        sys.exit(ran.stderr)
    user, system = after.children_user - before.children_user, after.children_system - before.children_system
    return wall, user + system
