"""The main job, measured and checked: a volume whose output one call of cle.scale cannot make.

1. Makes an input like a microscope's (see `benchmarks.data`).
2. Lets cle.scale try it in one piece, in a process of its own, and shows what stops it and what was foretold.
3. Scales it with isovoxel, by both engines and both ways to the halo, and prints the time of each stage.
4. Verifies each result against the float64 reference, block corners, edges and faces first.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import isovoxel
from benchmarks.data import write_volume
from isovoxel.planning.cost import human_bytes

IN_ONE_PIECE = """
import sys, numpy as np, pyclesperanto_prototype as cle
import isovoxel
from isovoxel.geometry.box import Box
cle.select_device(sys.argv[2])
volume = isovoxel.open_volume(sys.argv[1])
data = volume.read(Box.whole(volume.shape))
fz, fy, fx = (float(f) for f in sys.argv[3].split(","))
result = cle.scale(data, factor_x=fx, factor_y=fy, factor_z=fz, auto_size=True, linear_interpolation=True)
print("finished with shape", np.asarray(result).shape)
"""


def main(arguments: list[str]) -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(prog="python -m benchmarks job", description=__doc__)
    options.add_argument("--shape", default="64,256,256", help="of the input, z,y,x")
    options.add_argument("--voxel-size", default="1,0.25,0.25")
    options.add_argument("--zoom", type=float, default=4.0)
    options.add_argument("--folder", type=Path, required=True, help="for the files, which are deleted at the end")
    options.add_argument("--samples", type=int, default=600, help="how many boxes to verify")
    options.add_argument("--no-one-piece", action="store_true", help="leave out cle.scale in one piece")
    options.add_argument("--engine", default="cle,exact")
    options.add_argument("--halo", default="direct,map_overlap")
    options.add_argument("--device", default="auto")
    chosen = options.parse_args(arguments)

    z, y, x = (int(n) for n in chosen.shape.split(","))
    sz, sy, sx = (float(s) for s in chosen.voxel_size.split(","))
    chosen.folder.mkdir(parents=True, exist_ok=True)
    source = chosen.folder / "input.zarr"
    write_volume(source, (z, y, x), (sz, sy, sx), threads=os.cpu_count() or 1)
    try:
        _run(source, chosen)
    finally:
        shutil.rmtree(chosen.folder)


def _run(source: Path, chosen: argparse.Namespace) -> None:
    limits = isovoxel.limits(source, device=chosen.device)
    plan = isovoxel.plan(source, zoom=chosen.zoom, device=chosen.device)
    print(f"device      {plan.device.name}, {os.cpu_count()} cores")
    print(
        f"input       {plan.source.grid.shape} {plan.source.dtype}, {human_bytes(isovoxel.open_volume(source).nbytes)}"
    )
    print(f"output      {plan.output.shape}, {human_bytes(plan.output_bytes)}, factors {plan.factor}")
    print(f"foretold    one piece stops at zoom {limits.first.zoom:.4g} on {limits.first.limit}: {limits.first.needed}")
    if not chosen.no_one_piece:
        factors = ",".join(str(f) for f in plan.factor)
        tried = subprocess.run(
            [sys.executable, "-c", IN_ONE_PIECE, source, plan.device.name, factors],
            capture_output=True,
            text=True,
            check=False,
        )
        said = (tried.stdout or tried.stderr).strip().splitlines()[-1]
        print(f"one piece   zoom {chosen.zoom:g}: {said}")
    columns = [
        "engine",
        "halo",
        "blocks",
        "block",
        "seconds",
        "Mvoxel/s",
        "read",
        "wait",
        "scale",
        "write",
        "host peak",
    ]
    columns += ["projected", "largest error", "verify"]
    print(f"| {' | '.join(columns)} |")
    print(f"|{' --- |' * len(columns)}")
    for engine, halo in product(chosen.engine.split(","), chosen.halo.split(",")):
        output = chosen.folder / f"{engine}-{halo}.zarr"
        # Each run has a process of its own, so that each has a peak of its own.
        ran = subprocess.run(
            [
                *[sys.executable, "-m", "isovoxel", "scale", source, output, "--json", "--engine", engine],
                *["--zoom", str(chosen.zoom), "--halo", halo, "--device", chosen.device],
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode:
            sys.exit(ran.stderr)
        result = json.loads(ran.stdout)
        verdict = isovoxel.verify(output, samples=chosen.samples)
        stages = " | ".join(f"{s:.1f} s" for s in result["stage_seconds"].values())
        print(
            f"| {engine} | {halo} | {result['blocks']['count']} | {tuple(result['blocks']['shape'])} "
            f"| {result['seconds']:.1f} | {result['voxels_per_second'] / 1e6:.0f} | {stages} "
            f"| {human_bytes(result['peak_host_bytes'])} | {human_bytes(result['projected']['host_bytes'])} "
            f"| {verdict.largest_error:.2f} | {'holds' if verdict.holds else 'does not hold'} |",
            flush=True,
        )
        shutil.rmtree(output)
    print("stages are summed over the threads; the error is in grey levels, against float64, over sampled boxes")
