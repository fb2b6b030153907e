"""The device's part of a job alone: upload, kernels and download of successive blocks, overlapped.

Blocks as a job would cut a volume of 4 Gvoxel on 16 cores, their voxels in the host memory that engines lend. Several
threads bring one after the other to the device and back, and neither read nor write files. The bound is what the same
bytes take as copies between pinned memory and the device, both ways at once.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from benchmarks.cases import case_of, three
from benchmarks.copies import host_device_copies
from benchmarks.data import STORAGE, voxels_of
from benchmarks.machine import describe, print_header, print_row, sentence, write_json
from isovoxel.engines.base import Engine
from isovoxel.engines.devices import find_device
from isovoxel.engines.registry import open_engine
from isovoxel.execution.resources import host_limits
from isovoxel.geometry.grid import Float3, VoxelGrid, ceil_div
from isovoxel.planning.chunking import default_storage
from isovoxel.planning.model import Source
from isovoxel.planning.optimizer import make_plan
from isovoxel.planning.plan import Plan


def main(arguments: list[str]) -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(prog="python -m benchmarks stage", description=__doc__)
    options.add_argument("--factors", default="4,1,1 5,2,2 3.7,1.3,1.3 1,0.202,0.202")
    options.add_argument("--engines", default="exact cle")
    options.add_argument("--voxels", type=float, default=4e9, help="of the volume that is cut into blocks")
    options.add_argument("--blocks", type=int, default=100, help="how many are brought there and back")
    options.add_argument("--threads", type=int, default=4)
    options.add_argument("--device", default="auto")
    options.add_argument("--json", type=Path)
    chosen = options.parse_args(arguments)
    machine = describe(Path(), chosen.device)
    rate = host_device_copies(chosen.device, 2**28)["both ways at once, pinned"]
    print(f"{sentence(machine)}; pinned copies both ways at once: {rate / 1e9:.1f} GB/s")
    print_header(["engine", "factors", "block", "Gvoxel/s", "GB/s", "ratio to pinned copies"])
    rows = []
    for engine in chosen.engines.split():
        for factor in map(three, chosen.factors.split()):
            plan = plan_of(engine, factor, chosen)
            block = plan.block(0)
            voxels = voxels_of(block.read_box.shape)
            seconds = min(carry(open_engine(engine, chosen.device), plan, voxels, chosen.blocks) for _ in range(3))
            nbytes = (block.read_box.size + block.write_box.size) * plan.source.itemsize
            row = {
                "engine": engine,
                "factor": factor,
                "voxels_per_second": block.write_box.size / seconds,
                "bytes_per_second": nbytes / seconds,
                "ratio": nbytes / seconds / rate,
            }
            rows.append(row)
            speeds = (f"{row['voxels_per_second'] / 1e9:.3g}", f"{row['bytes_per_second'] / 1e9:.3g}")
            print_row([engine, factor, block.write_box.shape, *speeds, f"{row['ratio']:.2f}"])
    write_json(chosen.json, {"machine": machine, "pinned": rate, "rows": rows})


def plan_of(engine: str, factor: Float3, chosen: argparse.Namespace, interpolation: str = "linear") -> Plan:
    """Plan the blocks."""
    case = case_of(factor, chosen.voxels)
    plan = make_plan(
        Source("random", VoxelGrid(case.shape), "uint16", STORAGE.chunk, 0, {}, caches=True),
        factor,
        storage=default_storage(case.output_shape, 2),
        device=find_device(chosen.device).limits(),
        host=host_limits(2**50, 16),
        engine=engine,
        interpolation=interpolation,
        halo_mode="direct",
    )
    return replace(plan, in_flight=chosen.threads)


def carry(engine: Engine, plan: Plan, voxels: NDArray[Any], blocks: int) -> float:
    """Return the seconds that a block takes where a thread for each block in flight brings it there and back."""
    engine.prepare(plan)
    block = plan.block(0)
    with ExitStack() as lent, ThreadPoolExecutor(plan.in_flight) as pool:
        stages = [lent.enter_context(engine.staged(block, plan)) for _ in range(plan.in_flight)]
        for stage in stages:
            stage.input[...] = voxels
            stage.scale()
        each = ceil_div(blocks, plan.in_flight)
        began = time.perf_counter()
        list(pool.map(lambda stage: [stage.scale() for _ in range(each)], stages))
        return (time.perf_counter() - began) / (each * plan.in_flight)
