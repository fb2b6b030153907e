"""What does shrinking without a filter do? A zone plate shrunk by 5, with and without anti-aliasing, in numbers.

1. The input is ``cos(k r^2)`` in y and x, the same in each of a few planes: its frequency grows from 0 in the middle
   to half a cycle per voxel, the highest that voxels can hold, at the middle of each side.
2. isovoxel's exact engine shrinks y and x by 5, with and without ``--antialias``. The result can hold frequencies up to
   0.1 cycles per input voxel. What has more must vanish: whatever is seen there instead is aliased.
3. Aliased energy is the mean square deviation from grey where the input's frequency is above 0.1 along y or x,
   divided by that in the input. Kept energy is the same where both are below 0.05.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

import isovoxel

SHRINK = 5
GREY, AMPLITUDE = 32768, 30000
MARGIN, TITLE = 12, 40


def main(arguments: list[str]) -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(prog="python -m benchmarks aliasing", description=__doc__)
    options.add_argument("--side", type=int, default=1600, help="of the zone plate, in voxels")
    options.add_argument("--png", type=Path, help="picture of both results to write")
    options.add_argument("--device", default="auto")
    chosen = options.parse_args(arguments)

    plate = zone_plate(chosen.side)
    results = {}
    print("| shrunk by 5 | aliased energy | kept energy |")
    print("| --- | --- | --- |")
    for interpolation, antialias in (("linear", False), ("linear", True), ("cubic", False), ("cubic", True)):
        result = shrink(plate, interpolation, chosen.device, antialias=antialias)
        aliased, kept = energies(result, chosen.side)
        name = f"{interpolation}{' --antialias' if antialias else ''}"
        results[name] = (result, aliased)
        print(f"| {name} | {100 * aliased:.3g} % | {100 * kept:.3g} % |", flush=True)
    if chosen.png:
        draw([(name, *results[name]) for name in ("linear", "linear --antialias")], chosen.png)
        print(f"\npicture: {chosen.png}, {chosen.png.stat().st_size / 1000:.0f} kB")


def zone_plate(side: int) -> NDArray[np.uint16]:
    """Return the volume, of four planes: the phase's slope is half a cycle per voxel at the middle of each side."""
    at = (np.arange(side) - (side - 1) / 2) / side
    phase = np.pi * side * (at[:, None] ** 2 + at**2)
    plane = np.rint(GREY + AMPLITUDE * np.cos(phase)).astype(np.uint16)
    return np.broadcast_to(plane, (4, side, side)).copy()


def shrink(plate: NDArray[np.uint16], interpolation: str, device: str, *, antialias: bool) -> NDArray[np.uint16]:
    """Return one plane of the volume that isovoxel makes of it."""
    with tempfile.TemporaryDirectory() as folder:
        done = isovoxel.scale(
            plate,
            Path(folder) / "out.zarr",
            factor=(1, 1 / SHRINK, 1 / SHRINK),
            engine="exact",
            interpolation=interpolation,
            antialias=antialias,
            device=device,
            levels=0,
        )
        return np.asarray(zarr.open_array(done.path / "0", mode="r")[1], np.uint16)


def energies(result: NDArray[np.uint16], side: int) -> tuple[float, float]:
    """Return the share of energy that is left where none may be, and where all should be."""
    m = len(result)
    # The input's frequency along an axis at an output voxel's place, in cycles per input voxel.
    frequency = np.abs((np.arange(m) + 0.5) * SHRINK - side / 2) / side
    highest = np.maximum(frequency[:, None], frequency)
    energy = (result.astype(np.float64) - GREY) ** 2 / (AMPLITUDE**2 / 2)
    return float(energy[highest > 0.5 / SHRINK].mean()), float(energy[highest < 0.25 / SHRINK].mean())


def draw(results: list[tuple[str, NDArray[np.uint16], float]], path: Path) -> None:
    """Write a picture of the results side by side."""
    side = len(results[0][1])
    picture = Image.new("L", (len(results) * (side + MARGIN) + MARGIN, side + TITLE + MARGIN), 24)
    pen = ImageDraw.Draw(picture)
    for i, (name, result, aliased) in enumerate(results):
        left = MARGIN + i * (side + MARGIN)
        pen.text((left, MARGIN), f"{name}: {100 * aliased:.3g} % aliased", 230, ImageFont.load_default(16))
        picture.paste(Image.fromarray((result >> 8).astype(np.uint8)), (left, TITLE))
    picture.save(path, optimize=True)
