"""How far is which volume scaled? The cases that several benchmarks run, and how a job is run for one of them."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from benchmarks.data import write_volume
from benchmarks.machine import cores
from isovoxel.geometry.grid import Float3, Index3, VoxelGrid

FACTORS = "4,1,1 3.7,1.3,1.3 1,0.202,0.202"


@dataclass(frozen=True)
class Case:
    """One volume, and how far it is scaled."""

    shape: Index3
    """Of the input."""
    voxel_size: Float3
    """Of the input."""
    factor: Float3
    """Output voxels per input voxel."""

    @property
    def output_shape(self) -> Index3:
        """Shape of the output."""
        return VoxelGrid(self.shape).scaled(self.factor).shape

    @property
    def voxels(self) -> int:
        """Voxels of the output."""
        return math.prod(self.output_shape)

    @property
    def name(self) -> str:
        """The factor, as tables and figures have it."""
        return f"({', '.join(f'{f:.4g}' for f in self.factor)})"

    def make_input(self, path: Path) -> None:
        """Write the input as OME-Zarr."""
        write_volume(path, self.shape, self.voxel_size, threads=cores())

    @property
    def words(self) -> list[str]:
        """The options of the command line that say how far."""
        return ["--factor", ",".join(repr(f) for f in self.factor)]


def three(text: str) -> Float3:
    """Read three numbers, z,y,x."""
    z, y, x = (float(part) for part in text.split(","))
    return (z, y, x)


def case_of(factor: Float3, voxels: float) -> Case:
    """Return a case of about so many output voxels, or input voxels where that is more; the larger one is a cube."""
    side = voxels ** (1 / 3)
    grows = math.prod(factor) >= 1
    shape = cast(Index3, tuple(max(1, round(side / f if grows else side)) for f in factor))
    return Case(shape, (1.0, 1.0, 1.0), factor)


def cases_of(options: argparse.Namespace) -> list[Case]:
    """Return the cases that a command line asks for."""
    return [case_of(three(text), options.voxels) for text in options.factors.split()]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which cases are run, and where."""
    parser.add_argument("--factors", default=FACTORS, help=f"z,y,x of each case, by default {FACTORS!r}")
    parser.add_argument("--voxels", type=float, default=0.8e9, help="output voxels, about (input, where it shrinks)")
    add_machine_options(parser)


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say on what a benchmark runs, and where its numbers go."""
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="where files are put meanwhile"
    )
    parser.add_argument("--device", default="auto", help="OpenCL device, by number or name")
    parser.add_argument("--json", type=Path, help="file to write all numbers to")


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Make a folder for files that are deleted at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="isovoxel-benchmark-") as name:
        yield Path(name)


def run_job(
    source: Path, output: Path, words: list[str], python: Sequence[str] = ("-m", "isovoxel")
) -> tuple[dict[str, Any], float]:
    """Run ``isovoxel scale`` in a process of its own; return what it says, and the whole process' seconds.

    It makes the full level only, unless the words say otherwise: that is what it is compared in.
    """
    command = [sys.executable, *python, "scale", str(source), str(output), "--json", "--levels", "0", *words]
    began = time.perf_counter()
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if ran.returncode:
        sys.exit(ran.stderr)
    return json.loads(ran.stdout), seconds
