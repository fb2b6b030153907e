"""Clusters that tests share: schedulers and workers of this machine, and volumes small enough for them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from isovoxel.engines.devices import Device
from polling import wait_until

VOXELS = np.random.default_rng(0).integers(0, 65536, (32, 32, 32)).astype(np.uint16)
OPTIONS: dict[str, Any] = {  # 64 blocks, each of which takes some milliseconds
    "factor": (8.0, 8.0, 8.0),
    "chunk": (64, 64, 64),
    "shard": (64, 64, 64),
    "threads": 2,
    "input_voxel_size": (1.0, 0.5, 0.5),
    "device_memory": "2MB",
}


def stack(folder: Path) -> Path:
    path = folder / "in.npy"
    np.save(path, VOXELS)
    return path


def gpus(count: int) -> list[Device]:
    """Return the devices of a machine with GPUs and a processor."""
    gpu = {"name": "Test GPU", "platform": "t", "driver": "1", "compute_units": 1, "memory": 1, "free": 1}
    gpu |= {"largest_allocation": 1, "image_shape": (1, 1, 1), "shares_host_memory": False}
    found = [Device(index=i, kind="gpu", uuid=f"GPU-{i}", pci=f"0000:0{i}:00.0", **gpu) for i in range(count)]
    return [*found, Device(index=count, kind="cpu", **gpu | {"name": "Processor"})]


class Foreign:
    """A scheduler and workers as a cluster's users start them: by distributed's own commands.

    Parameters
    ----------
    folder
        Where they run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "scheduler.json"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.scheduler = self._start("scheduler", "--scheduler-file", self.file, "--host", "127.0.0.1", "--port", 0)

    def worker(self, name: str, *, folder: Path | None = None, **environment: str) -> subprocess.Popen[bytes]:
        """Start a worker of two threads, with more in its environment if need be."""
        words = ["--scheduler-file", self.file, "--name", name, "--nthreads", 2, "--host", "127.0.0.1"]
        words += ["--no-nanny", "--preload", "isovoxel.worker", "--no-dashboard"]
        words += ["--death-timeout", 300]  # it ends even where the test that started it is killed
        return self._start("worker", *words, folder=folder, **environment)

    @property
    def address(self) -> str:
        """The scheduler's address, once it has one."""
        wait_until(self._written)
        return str(json.loads(self.file.read_text())["address"])

    def _written(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return "address" in json.loads(self.file.read_text())
        return False

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    @property
    def logs(self) -> str:
        """What all of them have said."""
        return "".join(path.read_text() for path in self.folder.glob("*.log"))

    def _start(
        self, kind: str, *words: object, folder: Path | None = None, **environment: str
    ) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{kind}{len(self.processes)}.log").open("wb")
        with log:
            command = [sys.executable, "-m", "distributed.cli.dask_" + kind, *map(str, words)]
            environment = os.environ | {"DASK_DISTRIBUTED__DASHBOARD__LINK": ""} | environment
            process = subprocess.Popen(command, cwd=folder or self.folder, stdout=log, stderr=log, env=environment)
        self.processes.append(process)
        return process
