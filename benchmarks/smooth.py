"""Measure how near the surfaces of labels come to spheres: ``smooth``, nearest, and SimpleITK label by label.

1. Three spheres that touch each other, of 12, 18 and 25 output voxels, are sampled at coarse voxels: each is the sphere
   in which its centre lies, or 0. They grow by each factor to cubes.
2. The surface of a label is made of the faces between its voxels and others. Its distance is the mean, over these
   faces, of how far their centres lie from the sphere. "best" is what the spheres themselves have, sampled at output
   voxels.
3. The volume error is the difference of the voxels of a label from the sphere, as a share of the sphere.
4. Memory is the peak of a process that scales as many labels as are named, in blocks of the same size.

Where only one axis grows, the label with the largest linearly interpolated share is the nearest, so `smooth` and
SimpleITK gain nothing there; they do where the voxels grow along several axes.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

import isovoxel
from benchmarks.machine import print_header, print_row, write_json
from isovoxel.geometry.grid import Float3, Index3, VoxelGrid

RADII = (12, 18, 25)
FACTORS: tuple[Float3, ...] = ((5.0, 1.0, 1.0), (5.0, 2.0, 2.0), (4.0, 4.0, 4.0), (6.0, 3.0, 3.0))
MARGIN = 6
SIDE = (64, 128, 128)
"""Shape of the labels whose memory is measured."""


def main(arguments: list[str]) -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks smooth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--labels", default="1,100000", help="how many labels memory is measured with")
    options.add_argument("--json", type=Path, help="file for all numbers")
    options.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    chosen = options.parse_args(arguments)
    if chosen.measure is not None:
        print(json.dumps(peak(chosen.measure)))
        return

    record: dict[str, Any] = {"spheres": [], "memory": []}
    print_header(("factor", "by", "mean distance of the surface, voxels", "of nearest's", "volume errors"))
    for factor in FACTORS:
        centres, shape = spheres()
        made = scaled(sampled(centres, shape, factor), factor)
        made["best"] = sampled(centres, shape, (1.0, 1.0, 1.0))
        nearest = distance(made["nearest"], centres)
        for by, labels in made.items():
            far, errors = distance(labels, centres), volume_errors(labels)
            told = ", ".join(f"{100 * error:+.1f} %" for error in errors)
            print_row((f"({', '.join(f'{f:g}' for f in factor)})", by, f"{far:.3f}", f"{far / nearest:.2f}", told))
            record["spheres"].append({"factor": factor, "by": by, "distance": far, "volume_errors": errors})
    print("\nPeak memory of a job by (4, 2, 2):\n")
    print_header(("labels", "peak, MiB"))
    for count in map(int, chosen.labels.split(",")):
        command = [sys.executable, "-m", "benchmarks", "smooth", "--measure", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print_row((f"{found['labels']:,}", f"{found['peak'] / 2**20:.0f}"))
        record["memory"].append(found)
    write_json(chosen.json, record)


def spheres() -> tuple[NDArray[np.float64], Index3]:
    """Return the centres of three spheres that touch each other, askew, and the shape that holds them."""
    a, b, c = RADII
    along, across = np.array([0.45, 0.8, 0.3]), np.array([0.7, -0.2, 0.5])
    along /= np.linalg.norm(along)
    across -= along * (across @ along)
    across /= np.linalg.norm(across)
    ahead = ((a + c) ** 2 - (b + c) ** 2 + (a + b) ** 2) / (2 * (a + b))
    beside = math.sqrt((a + c) ** 2 - ahead**2)
    centres = np.array([np.zeros(3), along * (a + b), along * ahead + across * beside])
    radii = np.array(RADII)[:, None]
    centres += MARGIN + 0.3 - (centres - radii).min(0)
    # A whole number of voxels, whatever the factor.
    z, y, x = (math.ceil(n / 60) * 60 for n in (centres + radii).max(0) + MARGIN)
    return centres, (z, y, x)


def sampled(centres: NDArray[np.float64], shape: Index3, factor: Float3) -> NDArray[np.uint8]:
    """Return the labels of the spheres, at voxels that are so many times as large as the output's."""
    z, y, x = (((np.arange(round(n / f)) + 0.5) * f) for n, f in zip(shape, factor, strict=True))
    labels = np.zeros((len(z), len(y), len(x)), np.uint8)
    for label, (centre, radius) in enumerate(zip(centres, RADII, strict=True), start=1):
        far = (z[:, None, None] - centre[0]) ** 2 + (y[:, None] - centre[1]) ** 2 + (x - centre[2]) ** 2
        labels[far <= radius**2] = label
    return labels


def scaled(labels: NDArray[np.uint8], factor: Float3) -> dict[str, NDArray[np.uint8]]:
    """Return the labels as each makes them."""
    lazy, made = da.from_array(labels, chunks=-1), {}
    for interpolation in ("nearest", "smooth"):
        options: dict[str, Any] = {"interpolation": interpolation, "labels": True}
        made[interpolation] = isovoxel.scale_array(lazy, factor, **options).compute()
    try:
        made["SimpleITK, label by label"] = by_simpleitk(labels, factor)
    except ImportError:
        print("SimpleITK is not installed", file=sys.stderr)
    return made


def by_simpleitk(labels: NDArray[Any], factor: Float3) -> NDArray[Any]:
    """Return the label whose indicator is the largest by SimpleITK's linear interpolator, of equal ones the least."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sitk = import_module("SimpleITK")
    grid = VoxelGrid(labels.shape).scaled(factor)
    resample = sitk.ResampleImageFilter()
    resample.SetSize(grid.shape[::-1])
    resample.SetOutputSpacing(grid.voxel_size[::-1])
    resample.SetOutputOrigin(grid.origin[::-1])
    resample.SetInterpolator(sitk.sitkLinear)
    result, most = np.zeros(grid.shape, labels.dtype), np.full(grid.shape, -1.0)
    for label in np.unique(labels):
        image = sitk.GetImageFromArray((labels == label).astype(np.float64))
        share = sitk.GetArrayFromImage(resample.Execute(image))
        better = share > most + 2.0**-40
        result[better], most[better] = label, share[better]
    return result


def distance(labels: NDArray[np.uint8], centres: NDArray[np.float64]) -> float:
    """Return how far the surfaces of the labels lie from the spheres: the mean over faces, and then over labels."""
    found = []
    for label, (centre, radius) in enumerate(zip(centres, RADII, strict=True), start=1):
        inside, far = labels == label, []
        for axis in range(3):
            faces = np.argwhere(np.diff(inside, axis=axis)) + 0.5
            faces[:, axis] += 0.5
            far.append(np.abs(np.linalg.norm(faces - centre, axis=1) - radius))
        found.append(float(np.concatenate(far).mean()))
    return sum(found) / len(found)


def volume_errors(labels: NDArray[np.uint8]) -> list[float]:
    """Return by which share of its sphere the volume of each label is off."""
    volumes = [4 / 3 * math.pi * radius**3 for radius in RADII]
    return [float((labels == i).sum() / volume - 1) for i, volume in enumerate(volumes, start=1)]


def peak(count: int) -> dict[str, int]:
    """Return the peak memory of this process as it scales a volume of so many labels."""
    cells = np.arange(math.prod(SIDE), dtype=np.uint32).reshape(SIDE)
    labels = cells % np.uint32(count) + 1
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"labels": True, "interpolation": "smooth", "levels": 0, "threads": 2}
        done = isovoxel.scale(labels, Path(folder) / "out.zarr", factor=(4, 2, 2), memory="2GiB", **options)
    return {"labels": len(np.unique(labels)), "peak": done.peak_host_bytes}
