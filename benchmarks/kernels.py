"""Precision and speed of the engines' kernels, on one device.

For each engine, dtype, factor and kernel: the largest and mean error against float64 over sampled boxes, in the
dtype's own grey levels (0.5 is rounding), on random data of its whole range; and output voxels per second, best of
three, of the whole call (upload, kernels, download) and of the kernels alone, with the data on the device.

Beside it stands what the device's memory allows at best: every voxel of the input is read once and every voxel of the
output written once, in the dtype itself, at the speed at which the device copies.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl as cl
from numpy.typing import NDArray

from benchmarks.cases import FACTORS, three
from benchmarks.copies import device_bandwidth
from benchmarks.machine import best, describe, print_header, print_row, write_json
from isovoxel.engines.devices import find_device, opencl_device
from isovoxel.engines.reference import reference
from isovoxel.engines.registry import open_engine
from isovoxel.geometry.grid import Box, Float3, VoxelGrid
from isovoxel.planning.chunking import Storage
from isovoxel.planning.model import HostLimits, Source
from isovoxel.planning.optimizer import make_plan
from isovoxel.planning.plan import Plan

CASES = [
    ("cle", "uint16", "linear", False),
    ("exact", "uint16", "linear", False),
    ("exact", "uint16", "linear", True),
    ("exact", "uint16", "cubic", False),
    ("exact", "uint8", "linear", False),
    ("exact", "float32", "linear", False),
]
BOXES, SIDE = 24, 24
COPIED = 512 * 2**20
"""Bytes that are copied on the device to see how fast its memory is."""


COLUMNS = (
    "engine",
    "dtype",
    "kernel",
    "factors",
    "largest error",
    "mean error",
    "whole call, Gvoxel/s",
    "kernels, Gvoxel/s",
    "bytes per output voxel",
    "share of the bytes bound",
)


def main(arguments: list[str]) -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(prog="python -m benchmarks kernels", description=__doc__)
    options.add_argument("--factors", default=FACTORS, help=f"z,y,x of each case, by default {FACTORS!r}")
    options.add_argument("--voxels", type=float, default=64e6, help="output voxels, about (input, where it shrinks)")
    options.add_argument("--engine", default="cle,exact")
    options.add_argument("--dtype", default="uint8,uint16,float32")
    options.add_argument("--kernel", default="linear,cubic")
    options.add_argument("--device", default="auto", help="OpenCL device, by number or name")
    options.add_argument("--json", type=Path, help="file to write all numbers to")
    chosen = options.parse_args(arguments)
    bandwidth = device_bandwidth(chosen.device, COPIED)
    record: dict[str, Any] = {
        "machine": describe(Path(), chosen.device),
        "device_bytes_per_second": bandwidth,
        "kernels": [],
    }
    machine = record["machine"]
    print(f"{machine['date']}, {machine['device']}, {machine['cores']} cores, {machine['processor']}")
    print(f"a copy on the device reads and writes {bandwidth / 1e9:.3g} GB/s\n")
    print_header(COLUMNS)
    for text in chosen.factors.split():
        factor = three(text)
        for engine, dtype, interpolation, antialias in CASES:
            asked = (
                engine in chosen.engine.split(",")
                and dtype in chosen.dtype.split(",")
                and interpolation in chosen.kernel.split(",")
            )
            if asked and (min(factor) < 1 or not antialias):
                plan = plan_of(engine, dtype, interpolation, factor, chosen, antialias=antialias)
                found = measure(plan, chosen.device, bandwidth)
                record["kernels"].append(found)
                print_row(_cells(found))
    write_json(chosen.json, record)


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


def measure(plan: Plan, device: str, bandwidth: float) -> dict[str, Any]:
    """Return speed and precision of one plan's kernels, as JSON values."""
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
    least_bytes = kind.itemsize * (data.size / result.size + 1)
    return {
        "engine": plan.engine,
        "dtype": kind.name,
        "kernel": plan.interpolation + (", anti-aliased" if plan.antialias else ""),
        "factor": plan.factor,
        "largest_error": float(max(e.max() for e in errors)),
        "mean_error": float(np.mean([e.mean() for e in errors])),
        "call_voxels_per_second": result.size / whole,
        "voxels_per_second": result.size / alone,
        "bytes_per_voxel": least_bytes,
        "bound_voxels_per_second": bandwidth / least_bytes,
    }


def _cells(found: dict[str, Any]) -> list[str]:
    """Return one row of the table."""
    form = "{:.3g}" if found["dtype"].startswith("float") else "{:.2f}"
    return [
        *(found[name] for name in ("engine", "dtype", "kernel")),
        f"({', '.join(f'{f:g}' for f in found['factor'])})",
        *(form.format(found[name]) for name in ("largest_error", "mean_error")),
        *(f"{found[name] / 1e9:.3g}" for name in ("call_voxels_per_second", "voxels_per_second")),
        f"{found['bytes_per_voxel']:.3g}",
        f"{100 * found['voxels_per_second'] / found['bound_voxels_per_second']:.2g} %",
    ]


def resident(engine: Any, read: NDArray[Any], plan: Plan) -> Callable[[], None]:
    """Return what runs a block's kernels, conversions included, on data that lie on the device, and waits for them."""
    queue = cl.CommandQueue(engine.context, opencl_device(engine.device))
    block, flags = plan.block(0), cl.mem_flags

    def on_device(array: NDArray[Any]) -> Any:
        return cl.Buffer(engine.context, flags.READ_ONLY | flags.COPY_HOST_PTR, hostbuf=array)

    source = on_device(read)
    small = {name: on_device(array) for name, array in engine.uploads(block, plan).items()}
    target = cl.Buffer(engine.context, flags.READ_WRITE, block.write_box.size * read.itemsize)

    def run() -> None:
        engine.enqueue_after(cl.enqueue_marker(queue), source, target, small, block, plan).wait()

    return run
