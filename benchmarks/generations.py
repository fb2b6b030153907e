"""The two generations of clEsperanto side by side: pyclesperanto-prototype, and pyclesperanto, its successor.

1. Their voxels, of noise over the dtype's whole range: each against the other and against float64, in grey levels (0.5
   is rounding). "Whole" is one call of ``cle.scale``, with 0 around the volume. "Blocks" are a job's, with the rim
   repeated; a block is shifted where its first voxel does not begin on an input voxel's face.
2. A block: its first run, with what that compiles; then, by turns, the least time of a block alone from host memory to
   host memory, of its kernels alone, and of a block among several in flight.
3. Whole jobs, each in a process of its own, by turns. A first run finds no kernel cache of any kind, a second one that
   of the first. Programs are counted in the first: those that the prototype gives to the driver, and those that the
   successor puts into its cache. Both have those of the few voxels by which a job tries the device. The kernels that
   convert voxels are isovoxel's own, and not counted.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cases import add_machine_options, case_of, run_job, scratch, three
from benchmarks.kernels import resident
from benchmarks.machine import best, describe, print_header, print_row, sentence, write_json
from benchmarks.stage import carry, plan_of
from isovoxel.engines.cle import CleEngine
from isovoxel.engines.clesperanto import CHOICE, Prototype, Successor
from isovoxel.engines.devices import find_device
from isovoxel.engines.reference import reference
from isovoxel.geometry.grid import Box, Float3, VoxelGrid, ceil_div
from isovoxel.planning.chunking import Storage
from isovoxel.planning.model import Block, HostLimits, Source
from isovoxel.planning.optimizer import make_plan
from isovoxel.planning.plan import Plan

FACTORS = "4,1,1 3.7,1.3,1.3 1,0.202,0.202 2,0.404,0.404"
KERNELS = ("linear", "nearest")
DTYPES = ("uint16", "uint8")
CUTS = 3
"""Blocks per axis."""
NAMES = ("prototype", "successor")
CHOICES = ("prototype", "pyclesperanto")
"""What `CHOICE` calls them."""
CACHES = ("POCL_CACHE_DIR", "CUDA_CACHE_PATH", "CLESPERANTO_NO_CACHE", "PYOPENCL_NO_CACHE")
"""Variables that would name or switch off a cache outside the home folder."""
COUNTED = "programs"
COUNTING = f"""
import os, pathlib, sys
import pyopencl
built, build = [], pyopencl.Program.build
def counted(program, *args, **options):
    if type(program) is not pyopencl.Program:  # the prototype has a class of its own
        built.append(program)
    return build(program, *args, **options)
pyopencl.Program.build = counted
from isovoxel.cli import run
code = run()
pathlib.Path(os.environ["HOME"], {COUNTED!r}).write_text(str(len(built)))
sys.exit(code)
"""


def main(arguments: list[str]) -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks generations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--factors", default=FACTORS, help=f"z,y,x of each case, by default {FACTORS!r}")
    options.add_argument("--compared", type=float, default=1e6, help="voxels of the volumes that are compared, about")
    options.add_argument("--voxels", type=float, default=1e9, help="of the volume whose blocks are timed; 0: none")
    options.add_argument("--blocks", type=int, default=24, help="how many are brought there and back each time")
    options.add_argument("--threads", type=int, default=3, help="blocks in flight")
    options.add_argument("--job-factors", default="3.7,1.3,1.3", help="z,y,x of each whole job")
    options.add_argument("--job-voxels", type=float, default=0.4e9, help="output voxels of each whole job; 0: none")
    options.add_argument("--device-memory", default="", help="for whole jobs: the less, the more blocks")
    add_machine_options(options)
    chosen = options.parse_args(arguments)
    began = time.perf_counter()
    with scratch(chosen.folder) as folder:
        with no_caches(folder / "home"):
            libraries = Prototype(), Successor()
            device = find_device(chosen.device)
            machine = describe(folder, chosen.device)
            packages = [f"{library.package} {library.version}" for library in libraries]
            packages += [f"{name} {version(name)}" for name in ("pyopencl", "numpy")]
            print(f"{sentence(machine)}; {device.platform}, driver {device.driver}; {', '.join(packages)}\n")
            engines = [CleEngine(device, library) for library in libraries]
            record = {"machine": machine, "packages": packages}
            record |= {"voxels": _voxels(engines, chosen), "blocks": _blocks(engines, chosen)}
            for engine in engines:
                engine.release()
        record["jobs"] = _jobs(folder, chosen)
    print(f"\n{time.perf_counter() - began:.0f} s in all")
    write_json(chosen.json, record)


@contextmanager
def no_caches(home: Path) -> Iterator[None]:
    """Let this process find a home without kernel caches, before it loads what looks for them."""
    before = dict(os.environ)
    os.environ.update(_homely(home))
    for name in CACHES:
        os.environ.pop(name, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _homely(home: Path) -> dict[str, str]:
    """Return the variables by which caches are put into a folder, which is made."""
    home.mkdir(exist_ok=True)
    return {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}


# ---- voxels ----------------------------------------------------------------------------------------------------------


def _voxels(engines: Sequence[CleEngine], chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Print and return how far the voxels of both are from each other and from float64."""
    pairs = ("between them", "prototype, float64", "successor, float64")
    print_header(["kernel", "factors", "cut", *(f"{dtype}: {pair}" for dtype in DTYPES for pair in pairs)])
    rows = []
    for interpolation in KERNELS:
        for factor in map(three, chosen.factors.split()):
            for whole in (True, False):
                row: dict[str, Any] = {"kernel": interpolation, "factor": factor}
                for dtype in DTYPES:
                    plan = _cut(dtype, factor, interpolation, chosen, whole=whole)
                    shifted = sum(map(lambda block: _is_shifted(block, plan), plan.blocks()))  # noqa: C417
                    row |= {"blocks": plan.n_blocks, "shifted": shifted, dtype: _apart(engines, plan, pairs)}
                rows.append(row)
                cut = "whole" if whole else f"{row['blocks']} blocks, {row['shifted']} shifted"
                cells = [f"{row[dtype][pair][0]:.3g} / {row[dtype][pair][1]:.2g}" for dtype in DTYPES for pair in pairs]
                print_row([interpolation, _named(factor), cut, *cells])
    print("\nGrey levels, largest / mean. In one call, nearest takes either voxel where a position lies on a face.\n")
    return rows


def _cut(dtype: str, factor: Float3, interpolation: str, chosen: argparse.Namespace, *, whole: bool) -> Plan:
    """Plan a volume in one call of ``cle.scale``, or in blocks, whatever they would be in a job."""
    case = case_of(factor, chosen.compared)
    z, y, x = (m if whole else ceil_div(m, CUTS) for m in case.output_shape)
    block = (z, y, x)
    plan = make_plan(
        Source("noise", VoxelGrid(case.shape), dtype, (1, 1, 1), 0, {}),
        factor,
        storage=Storage(block, block, "none"),
        device=find_device(chosen.device).limits(),
        host=HostLimits(allowed=2**50, baseline=0, threads=1),
        engine="cle",
        interpolation=interpolation,
        boundary="constant" if whole else "nearest",
        halo_mode="direct",
        fixed_storage=True,
    )
    return replace(plan, block_shape=block)


def _is_shifted(block: Block, plan: Plan) -> bool:
    """Tell whether a block begins within an input voxel, along any axis."""
    starts = [start / factor for start, factor in zip(block.write_box.start, plan.factor, strict=True)]
    return any(abs(start - round(start)) > 1e-6 for start in starts)


def _apart(engines: Sequence[CleEngine], plan: Plan, pairs: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return the largest and the mean difference of each pair."""
    kind, shape = np.dtype(plan.source.dtype), plan.source.grid.shape
    noise = np.random.default_rng(0).integers(0, np.iinfo(kind).max, shape, kind, endpoint=True)
    first, second = (_carried_out(engine, plan, noise) for engine in engines)
    box = Box.whole(plan.output.shape)
    exact = reference(lambda b: noise[b.slices], shape, plan.factor, box, plan.interpolation, plan.boundary)
    differences = [np.abs(a - b) for a, b in ((first, second), (first, exact), (second, exact))]
    return {pair: (float(d.max()), float(d.mean())) for pair, d in zip(pairs, differences, strict=True)}


def _carried_out(engine: CleEngine, plan: Plan, data: NDArray[Any]) -> NDArray[np.float64]:
    """Return what a job would write."""
    result = np.empty(plan.output.shape)
    for block in plan.blocks():
        result[block.write_box.slices] = engine.scale(data[block.read_box.slices], block, plan).data
    return result


# ---- blocks ----------------------------------------------------------------------------------------------------------


def _blocks(engines: Sequence[CleEngine], chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Print and return what a block takes."""
    rows: list[dict[str, Any]] = []
    if not chosen.voxels:
        return rows
    timed = ("first, ms", "alone, ms", "kernels, ms", f"{chosen.threads} in flight, ms")
    columns = [f"{name}: {what}" for what in timed for name in NAMES]
    print_header(["kernel", "factors", "block", *columns, "successor's rate"])
    for interpolation in KERNELS:
        for factor in map(three, chosen.factors.split()):
            plan = plan_of("cle", factor, chosen, interpolation)
            seconds = _seconds(engines, plan, chosen.blocks)
            shape = plan.block(0).write_box.shape
            row = {"kernel": interpolation, "factor": factor, "block": shape, "seconds": seconds}
            row["rate"] = seconds[-1][0] / seconds[-1][1]
            rows.append(row)
            cells = [f"{1e3 * s:.3g}" for pair in seconds for s in pair]
            print_row([interpolation, _named(factor), shape, *cells, f"{row['rate']:.2f}"])
    print("\nThe rate is that with blocks in flight, relative to the prototype's. Least of three, taken by turns.\n")
    return rows


def _seconds(engines: Sequence[CleEngine], plan: Plan, blocks: int, repeat: int = 3) -> list[tuple[float, ...]]:
    """Return what both take for a first block, for one alone, for its kernels alone, and for one of several."""
    block = plan.block(0)
    voxels = np.random.default_rng(0).integers(0, 2**16, block.read_box.shape, np.uint16)
    first, runs, kernels = [], [], []
    for engine in engines:
        engine.prepare(plan)
        with engine.staged(block, plan) as stage:
            stage.input[...] = voxels
            first.append(best(stage.scale, 1))
        kernels.append(resident(engine, voxels, plan))
    for _ in range(repeat):
        alone = []
        for engine in engines:
            with engine.staged(block, plan) as stage:
                stage.input[...] = voxels
                alone.append(best(stage.scale, 1))
        by_kernels = [best(run, 1) for run in kernels]
        runs.append((alone, by_kernels, [carry(engine, plan, voxels, blocks) for engine in engines]))
    for engine in engines:
        engine.release(keep_hosts=True)
    return [tuple(first), *(tuple(map(min, zip(*taken, strict=True))) for taken in zip(*runs, strict=True))]


# ---- jobs ------------------------------------------------------------------------------------------------------------


def _jobs(folder: Path, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Print and return what whole jobs take."""
    rows: list[dict[str, Any]] = []
    if not chosen.job_voxels:
        return rows
    columns = ("whole process, s", "blocks, s", "Mvoxel/s")
    print_header(
        ["job", "by", "blocks", "programs", *(f"{run}: {what}" for run in ("first", "second") for what in columns)]
    )
    for factor in map(three, chosen.job_factors.split()):
        case, source = case_of(factor, chosen.job_voxels), folder / "input.zarr"
        case.make_input(source)
        words = [*case.words, "--engine", "cle", "--device", chosen.device, "--halo", "direct", "--overwrite"]
        words += ["--device-memory", chosen.device_memory] if chosen.device_memory else []
        homes = [folder / name for name in NAMES]
        runs: list[list[tuple[dict[str, Any], float]]] = [[], []]
        programs = [0, 0]
        for turn in range(2):
            for which, home in enumerate(homes):
                with no_caches(home):
                    os.environ[CHOICE] = CHOICES[which]
                    output = folder / f"{NAMES[which]}.zarr"
                    runs[which].append(run_job(source, output, words, python=["-c", COUNTING]))
                if not turn:
                    programs[which] = _programs(home)
        for which, name in enumerate(NAMES):
            said = [{"seconds": s["seconds"], "process_seconds": wall} for s, wall in runs[which]]
            blocks, rates = runs[which][0][0]["blocks"], [case.voxels / s["seconds"] for s in said]
            row = {"factor": factor, "by": name, "blocks": blocks["count"], "programs": programs[which], "runs": said}
            rows.append(row)
            cells = [
                f"{number:.3g}"
                for s, rate in zip(said, rates, strict=True)
                for number in (s["process_seconds"], s["seconds"], rate / 1e6)
            ]
            print_row(
                [f"{_named(factor)}, {case.voxels / 1e6:.0f} Mvoxel", name, row["blocks"], row["programs"], *cells]
            )
    return rows


def _programs(home: Path) -> int:
    """Return how many programs a job has built whose home this is."""
    return int((home / COUNTED).read_text()) + len(list((home / ".cache" / "clesperanto").rglob("*.bin")))


def _named(factor: Float3) -> str:
    z, y, x = factor
    return f"({z:g}, {y:g}, {x:g})"
