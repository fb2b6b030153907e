"""What all benchmarks share: the machine's name, the best of several durations, tables and JSON files."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from isovoxel.engines.devices import find_device


def describe(folder: Path, device: str) -> dict[str, Any]:
    """Return what a measurement depends on, as JSON values."""
    return {
        "date": datetime.now().astimezone().date().isoformat(),
        "processor": _processor(),
        "cores": cores(),
        "device": find_device(device).name,
        "files": "in memory" if in_memory(folder) else "on disk",
    }


def sentence(machine: dict[str, Any]) -> str:
    """Return the machine in a line of text."""
    files = f"files {machine['files']}"
    return f"{machine['date']}, {machine['processor']}, {machine['cores']} cores, {machine['device']}, {files}"


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_memory(folder: Path) -> bool:
    """Tell whether files in a folder lie in memory."""
    around = {folder.resolve(), *folder.resolve().parents}
    mounts = [p for p in psutil.disk_partitions(all=True) if Path(p.mountpoint) in around]
    return bool(mounts) and max(mounts, key=lambda p: len(p.mountpoint)).fstype in ("tmpfs", "ramfs")


def best(run: Callable[[], Any], repeat: int = 3, reset: Callable[[], Any] = lambda: None) -> float:
    """Return the least of several durations in seconds; `reset` undoes each run, and is not timed."""
    durations = []
    for _ in range(repeat):
        began = time.perf_counter()
        run()
        durations.append(time.perf_counter() - began)
        reset()
    return min(durations)


def print_header(columns: Sequence[str]) -> None:
    """Begin a table in Markdown."""
    print_row(columns)
    print(f"|{' --- |' * len(columns)}", flush=True)


def print_row(cells: Sequence[object]) -> None:
    """Print a row of a table in Markdown."""
    print(f"| {' | '.join(str(cell) for cell in cells)} |", flush=True)


def write_json(path: Path | None, record: dict[str, Any]) -> None:
    """Write all numbers to a file, if one is asked for."""
    if path is not None:
        path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        print(f"\nnumbers: {path}")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
