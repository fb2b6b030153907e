"""A petabyte, on hundreds of workers that only sleep: what does it cost to submit a million blocks, and who bears it?

The real loop that gives blocks to workers runs against a real scheduler and real workers of dask's distributed, each
with its connection, heartbeats and threads; only their blocks do nothing but take the time that the model says.
Scheduler, client and workers are processes of their own, so what the first two hold and compute is theirs. The plan
is a real one, of 10^15 bytes of uint16 for GPUs of 80 GB, cut after as many blocks as are asked for.

The model: the seconds that a thread spent reading, scaling and writing a voxel, from a job on a real GPU
(RESULTS.md), on workers that share nothing. `--faster` divides them, to find what the scheduler bears where blocks
are short.

The last table says how long the petabyte takes on N GPUs: by what the workers do, or by what the scheduler does,
whichever is more; it does not know what the storage bears.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import cores, print_header, print_row, write_json
from isovoxel.execution.distributed.submission import BlockOutcome, OutcomeKind, Submission
from isovoxel.geometry.grid import VoxelGrid
from isovoxel.planning.chunking import default_storage
from isovoxel.planning.model import DeviceLimits, HostLimits, Source
from isovoxel.planning.optimizer import make_plan
from isovoxel.planning.plan import Plan

SHAPE, FACTOR = (20_000, 158_114, 158_114), (5.0, 2.0, 2.0)
"""10^15 bytes of uint16, and how far they are scaled."""
THREADS = 16
"""Blocks in flight on a worker."""
READ, SCALE, WRITE = 0.47e-9, 0.29e-9, 5.6e-9
"""Seconds that a thread of 16 takes for a voxel of the output (cle, (5, 2, 2), in memory, one H100): 1.87 s, 0.34 s +
0.79 s and 22.25 s for 4.0 Gvoxel."""
GIB = 2**30
GPUS = (1, 4, 16, 64, 256, 1024)
SAMPLES = 10
"""How often memory and processor time are looked at."""


def main(arguments: list[str]) -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(prog="python -m benchmarks simulate", description=__doc__)
    options.add_argument("--blocks", type=float, default=1e6, help="of the petabyte's, that are done")
    options.add_argument("--workers", type=int, default=300)
    options.add_argument("--processes", type=int, default=2, help="in which the workers live")
    options.add_argument("--faster", type=float, default=1.0, help="by how much blocks are done faster than modelled")
    options.add_argument("--json", type=Path)
    options.add_argument("--be-workers", nargs=3, help=argparse.SUPPRESS)
    chosen = options.parse_args(arguments)
    if chosen.be_workers:
        address, first, number = chosen.be_workers
        asyncio.run(_be_workers(address, int(first), int(number)))
        return
    plan = petabyte()
    seconds = plan.block(0).write_box.size * (READ + SCALE + WRITE) / chosen.faster
    blocks = min(int(chosen.blocks), plan.n_blocks)
    print(
        f"10^15 bytes become {plan.output_bytes:.2g} in {plan.n_blocks:,} blocks of {plan.block_shape}; "
        f"{blocks:,} of them, {seconds:.3g} s each, on {chosen.workers} workers of {THREADS} threads; "
        f"all on {cores()} cores here\n"
    )
    record = run(blocks, seconds, chosen.workers, chosen.processes)
    print()
    foretell(plan, record["scheduler_seconds_a_block"])
    write_json(chosen.json, record)


def petabyte() -> Plan:
    """Plan a petabyte for GPUs of 80 GB."""
    device = DeviceLimits("GPU", "gpu", 80 * GIB, 72 * GIB, 20 * GIB, (16384,) * 3, shares_host_memory=False)
    grid = VoxelGrid(SHAPE)
    return make_plan(
        Source("petabyte", grid, "uint16", (128,) * 3, 0, {}, caches=True),
        FACTOR,
        storage=default_storage(grid.scaled(FACTOR).shape, 2),
        device=device,
        host=HostLimits(allowed=100 * GIB, baseline=GIB, threads=THREADS, helpers=THREADS - 1),
        engine="cle",
        halo_mode="direct",
    )


def run(blocks: int, seconds: float, workers: int, processes: int) -> dict[str, Any]:
    """Do blocks that only sleep, and print and return what scheduler and client held and computed meanwhile."""
    with _cluster(workers, processes) as (client, scheduler):
        watch = _Watch({"scheduler": scheduler, "client": psutil.Process()}, blocks)
        done = bytearray(blocks)

        def judge(block: int, _worker: str, _result: object) -> BlockOutcome:
            done[block] = 1
            watch.one_more()
            return BlockOutcome(OutcomeKind.DONE)

        print_header(["blocks", "blocks a second", *(f"{who}: {what}" for who in watch.who for what in _Watch.WHAT)])
        watch.begin()
        Submission(client, partial(_sleep, seconds=seconds), done, judge).run()
        watch.look()
    last = watch.rows[-1]
    return {
        "cores": cores(),
        "blocks": blocks,
        "workers": workers,
        "seconds_of_a_block": seconds,
        "scheduler_seconds_a_block": last["scheduler"]["seconds"] / blocks,
        "rows": watch.rows,
    }


def foretell(plan: Plan, scheduler_seconds: float) -> None:
    """Print how long the whole takes on N GPUs."""
    voxels = plan.output_bytes / plan.source.itemsize
    print(f"The scheduler computes {1e3 * scheduler_seconds:.2f} ms a block. So the petabyte takes:\n")
    print_header(["GPUs", "by the workers", "by the scheduler", "so", "bound by"])
    for gpus in GPUS:
        by_workers = voxels * (READ + SCALE + WRITE) / THREADS / gpus
        by_scheduler = plan.n_blocks * scheduler_seconds
        bound = "workers" if by_workers > by_scheduler else "scheduler"
        hours = [f"{s / 3600:,.3g} h" for s in (by_workers, by_scheduler, max(by_workers, by_scheduler))]
        print_row([gpus, *hours, bound])


async def _sleep(_block: int, seconds: float) -> int:
    """Do what a worker does with a block, but for the block."""
    await asyncio.sleep(seconds)
    return 0


@dataclass
class _Watch:
    """Looks at processes as blocks come to their end."""

    who: dict[str, psutil.Process]
    blocks: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    done: int = 0

    WHAT = ("MiB", "share of a core")

    def begin(self) -> None:
        self._began = self._last = time.perf_counter()
        self._before = {name: self._used(process) for name, process in self.who.items()}
        self._first, self._counted = dict(self._before), 0

    def one_more(self) -> None:
        self.done += 1
        if self.done % max(1, self.blocks // SAMPLES) == 0 and self.done < self.blocks:
            self.look()

    def look(self) -> None:
        now = time.perf_counter()
        row: dict[str, Any] = {"blocks": self.done, "seconds": now - self._began}
        rate = (self.done - self._counted) / (now - self._last)
        cells = []
        for name, process in self.who.items():
            used, held = self._used(process), process.memory_info().rss
            row[name] = {"bytes": held, "seconds": used - self._first[name]}
            cells += [f"{held / 2**20:.0f}", f"{(used - self._before[name]) / (now - self._last):.2f}"]
            self._before[name] = used
        self._last, self._counted = now, self.done
        self.rows.append(row)
        print_row([f"{self.done:,}", f"{rate:.0f}", *cells])

    @staticmethod
    def _used(process: psutil.Process) -> float:
        times = process.cpu_times()
        return float(times.user + times.system)


@contextlib.contextmanager
def _cluster(workers: int, processes: int) -> Iterator[tuple[Any, psutil.Process]]:
    """Start a scheduler and processes of workers, and lend a client and the scheduler's process."""
    import distributed

    env = os.environ | {
        # Hundreds of workers on a few cores: what they tell of themselves comes less often.
        "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
        "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "60s",
        # By default the scheduler keeps the last thousand messages to each worker, all tasks in them included.
        "DASK_DISTRIBUTED__ADMIN__LOW_LEVEL_LOG_LENGTH": "20",
    }
    with contextlib.ExitStack() as stack:

        def start(*words: str, **streams: Any) -> subprocess.Popen[str]:
            process = subprocess.Popen([sys.executable, "-m", *words], env=env, text=True, **streams)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return process

        where = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "scheduler.json"
        scheduler = start(
            "distributed.cli.dask_scheduler",
            *("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(where)),
            stderr=subprocess.DEVNULL,
        )
        address = _address(where)
        for i in range(processes):
            first, last = workers * i // processes, workers * (i + 1) // processes
            words = ("--be-workers", address, str(first), str(last - first))
            start("benchmarks", "simulate", *words, stderr=subprocess.DEVNULL)
        client = stack.enter_context(distributed.Client(address, set_as_default=False))
        client.wait_for_workers(workers, timeout=300)
        yield client, psutil.Process(scheduler.pid)


def _address(file: Path, patience: float = 60.0) -> str:
    """Return the scheduler's address, once it has written it down."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError, KeyError):
            return str(json.loads(file.read_text())["address"])
        time.sleep(0.1)
    sys.exit("the scheduler does not start")


async def _be_workers(address: str, first: int, number: int) -> None:
    """Be so many workers until the scheduler goes."""
    from distributed import Worker

    workers = [
        Worker(
            address, nthreads=THREADS, name=f"simulated-{first + i}", memory_limit=0, dashboard=False, validate=False
        )
        for i in range(number)
    ]
    await asyncio.gather(*workers)
    await asyncio.gather(*(worker.finished() for worker in workers))
