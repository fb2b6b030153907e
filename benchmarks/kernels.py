"""Precision and speed of the engines' kernels, on one device.

For each engine, dtype, factor and kernel: the largest and mean error against float64 over sampled boxes, in the
dtype's own grey levels (0.5 is rounding), on random data of its whole range; and output voxels per second, best of
three, of the whole call (upload, kernels, download) and of the kernels alone, with the data on the device.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyopencl as cl
from numpy.typing import NDArray

from isovoxel.engines.cle import placement, select
from isovoxel.engines.devices import find_device, opencl_device
from isovoxel.engines.open import open_engine
from isovoxel.engines.reference import reference
from isovoxel.geometry.box import Box
from isovoxel.geometry.grid import Float3, VoxelGrid
from isovoxel.planning.limits import HostLimits
from isovoxel.planning.plan import Plan, Source
from isovoxel.planning.planner import make_plan
from isovoxel.planning.storage import Storage

FACTORS: tuple[Float3, ...] = ((4.0, 1.0, 1.0), (3.7, 1.3, 1.3), (1.0, 0.202, 0.202))
CASES = [
    ("cle", "uint16", "linear", False),
    ("exact", "uint16", "linear", False),
    ("exact", "uint16", "linear", True),
    ("exact", "uint16", "cubic", False),
    ("exact", "uint8", "linear", False),
    ("exact", "float32", "linear", False),
]
BOXES, SIDE = 24, 24


def main(arguments: list[str]) -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(prog="python -m benchmarks kernels", description=__doc__)
    options.add_argument("--voxels", type=float, default=64e6, help="output voxels, about")
    options.add_argument("--device", default="auto")
    chosen = options.parse_args(arguments)
    device = find_device(chosen.device)
    print(f"device: {device.name}, about {chosen.voxels / 1e6:.0f} Mvoxel out (in, where it shrinks)")
    print(
        "| engine | dtype | kernel | factors | largest error | mean error | whole call, Gvoxel/s | kernels, Gvoxel/s |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for factor in FACTORS:
        for engine, dtype, interpolation, antialias in CASES:
            if antialias and min(factor) >= 1:
                continue
            plan = plan_of(engine, dtype, interpolation, factor, chosen, antialias=antialias)
            print(row(plan, chosen.device), flush=True)


def plan_of(
    engine: str, dtype: str, interpolation: str, factor: Float3, chosen: argparse.Namespace, *, antialias: bool
) -> Plan:
    """Plan a single block of about as many output voxels as asked for, or input voxels where it shrinks."""
    side = round((chosen.voxels / max(1.0, math.prod(factor))) ** (1 / 3))
    whole = (2**14,) * 3
    plan = make_plan(
        Source("random", VoxelGrid((side, side, side)), dtype, (1, 1, 1), 0, {}),
        factor,
        storage=Storage((128,) * 3, (128,) * 3),
        device=find_device(chosen.device).limits(),
        host=HostLimits(allowed=2**50, baseline=0, threads=1),
        engine=engine,
        interpolation=interpolation,
        antialias=antialias,
        halo_mode="direct",
    )
    return replace(plan, block_shape=whole)


def row(plan: Plan, device: str) -> str:
    """Return the measurements of one plan as a row of the table."""
    rng = np.random.default_rng(0)
    kind = np.dtype(plan.source.dtype)
    shape = plan.source.grid.shape
    data: NDArray[Any] = (
        rng.random(shape, np.float32) if kind.kind == "f" else rng.integers(0, np.iinfo(kind).max, shape, kind)
    )
    block = plan.block(0)
    read = np.ascontiguousarray(data[block.read_box.slices])
    engine: Any = open_engine(plan.engine, device)
    result = engine.scale(read, block, plan).data
    whole = best(lambda: engine.scale(read, block, plan))
    alone = best(resident(engine, read, plan))
    errors = []
    for _ in range(BOXES):
        start = [int(rng.integers(0, max(1, n - SIDE))) for n in result.shape]
        stop = [min(n, a + SIDE) for a, n in zip(start, result.shape, strict=True)]
        box = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
        expected = reference(
            lambda b: data[b.slices], shape, plan.factor, box, plan.interpolation, antialias=plan.antialias
        )
        if kind.kind != "f":  # what lies beyond the dtype saturates
            expected = np.clip(expected, 0, np.iinfo(kind).max)
        errors.append(np.abs(result[box.slices].astype(np.float64) - expected))
    largest, mean = max(e.max() for e in errors), np.mean([e.mean() for e in errors])
    form = "{:.3g}" if kind.kind == "f" else "{:.2f}"
    kernel = plan.interpolation + (", anti-aliased" if plan.antialias else "")
    speeds = " | ".join(f"{result.size / seconds / 1e9:.3g}" for seconds in (whole, alone))
    return (
        f"| {plan.engine} | {kind.name} | {kernel} | {plan.factor} | {form.format(largest)} | {form.format(mean)} "
        f"| {speeds} |"
    )


def best(run: Callable[[], Any]) -> float:
    """Return the least of three durations."""
    durations = []
    for _ in range(3):
        began = time.perf_counter()
        run()
        durations.append(time.perf_counter() - began)
    return min(durations)


def resident(engine: Any, read: NDArray[Any], plan: Plan) -> Callable[[], None]:
    """Return what runs a block's kernels on data that lie on the device, and waits for them."""
    cle = select(opencl_device(engine.device))
    queue = cle.get_device().queue
    block = plan.block(0)
    if plan.engine == "cle":
        source = cle.create(block.padded_shape)
        source.set(np.zeros(block.padded_shape, np.float32))
        output = cle.create(block.write_box.shape)
        (fz, fy, fx), _ = placement(block, plan)

        def run_cle() -> None:
            cle.scale(source, output, factor_x=fx, factor_y=fy, factor_z=fz, centered=False, linear_interpolation=True)
            queue.finish()

        return run_cle

    source = cl.Buffer(queue.context, cl.mem_flags.READ_ONLY | cl.mem_flags.COPY_HOST_PTR, hostbuf=read)

    def run_exact() -> None:
        engine.passes(source, read.dtype, block, plan)
        queue.finish()

    return run_exact
