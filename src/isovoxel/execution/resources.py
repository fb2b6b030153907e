"""Resources of this machine for a job: its memory and cores, and the memory that this process holds."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from pathlib import Path

import psutil

from isovoxel.errors import DoesNotFitError
from isovoxel.geometry.grid import round_up
from isovoxel.planning.memory import human_bytes
from isovoxel.planning.model import HostLimits

MIB = 2**20

SHARE = 0.5
"""How much of the free memory a job takes unless told otherwise; the page cache that writing fills needs the rest."""
LIBRARIES = {"cpu": 512 * MIB, "gpu": 768 * MIB}
"""What the interpreter, the libraries, an OpenCL driver and its compiler hold before the first block.

Measured: 263 MiB with PoCL compiling its kernels, 546 MiB with NVIDIA's driver on an H100.
"""
RESERVE = 256 * MIB
"""What they may still come to hold in a process that has already begun to load them."""
FEWEST_THREADS = 3
"""Blocks in flight on few cores: while one waits for the device and one for the disk, a third has work."""
MOST_THREADS = 64
"""More threads than this wait for Python's lock."""
MOST_WITH_GPU = 32
"""Blocks in flight whose memory a GPU reaches, at most: its driver is given that of one block after the other, which
holds up whoever reads meanwhile (64 blocks of 32 Gvoxel waited 10 s each while the driver got it itself, H200). Other
cores help to encode.
"""


def host_limits(budget: int | None = None, threads: int | None = None, *, device_kind: str = "cpu") -> HostLimits:
    """Return what a job may use on this host.

    Parameters
    ----------
    budget
        Bytes that this process may hold; without it, what it holds already (a caller's array, say) and half of what is
        free, container limits included.
    threads
        Blocks in flight, and cores to keep busy with encoding; without it, one for each core, and at least three, as
        far as more are of use.
    device_kind
        "gpu" or "cpu": a GPU's driver holds more memory.
    """
    held, there = process_bytes(), cores()
    most = MOST_WITH_GPU if device_kind == "gpu" else MOST_THREADS
    return HostLimits(
        allowed=held + int(SHARE * available_bytes()) if budget is None else budget,
        # Rounded, so that the same job is planned the same way twice.
        baseline=max(LIBRARIES[device_kind], round_up(held + RESERVE, RESERVE)),
        threads=threads or min(most, max(FEWEST_THREADS, there)),
        helpers=(threads or there) - 1,
    )


def reading_limits(budget: int | None = None) -> HostLimits:
    """Return what a command may use that reads and compares or draws, without a device: all cores, too.

    Parameters
    ----------
    budget
        As in `host_limits`.
    """
    held = process_bytes()
    allowed = held + int(SHARE * available_bytes()) if budget is None else budget
    threads = min(MOST_THREADS, cores())
    return HostLimits(allowed=allowed, baseline=round_up(held + RESERVE, RESERVE // 4), threads=threads)


def reading_threads(host: HostLimits, takes: int) -> int:
    """Return how many threads may read that hold so many bytes each: one at least."""
    return max(1, min(host.threads, (host.allowed - host.baseline) // takes))


def check_fits(doing: str, takes: int, host: HostLimits) -> None:
    """Raise a `DoesNotFitError` where reading and comparing or drawing takes more bytes than are allowed."""
    if takes > host.allowed:
        raise DoesNotFitError(
            f"{doing} takes {human_bytes(takes)} of host memory, of which {human_bytes(host.allowed)} are allowed; "
            "choose more --memory"
        )


def available_bytes() -> int:
    """Return the memory that is free for this process, the limits of its containers and batch jobs included."""
    free = int(psutil.virtual_memory().available)
    return min([free, *(limit - used for limit, used in _cgroup_limits())])


def process_bytes() -> int:
    """Return the memory that this process holds."""
    return int(psutil.Process().memory_info().rss)


def peak_bytes() -> int:
    """Return the most memory that this process has held since it began."""
    if sys.platform == "linux":  # its getrusage also counts what the parent process held
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def return_freed_memory(counted: int) -> None:
    """Return memory that is freed to the operating system, where the C library keeps it (glibc).

    It is done where the process holds more than is `counted` before a level's first block (`HostLimits.baseline`): the
    garbage collector looks at all that the libraries hold, which takes longer than a small image.

    Threads of a level leave free memory in their heaps, of decoded chunks above all: on an H200 with 32 cores 0.9 GB,
    beside which the next level's buffers exceeded the projection. What a level held may refer to itself, and is freed
    by the garbage collector only.
    """
    if process_bytes() <= counted:
        return
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # other C libraries than glibc
            ctypes.CDLL(None).malloc_trim(0)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cgroup_limits(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[tuple[int, int]]:
    """Return (limit, used) of every control group around this process that limits its memory, versions 1 and 2."""
    try:
        lines = own.read_text().splitlines()
    except OSError:  # no Linux
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base, names = (
                root / "memory",
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            )
        else:
            continue
        folder = base / path.lstrip("/")
        # The innermost group's limit need not be the tightest. In a container, its own path is the root.
        for group in {folder, *folder.parents, base}:
            if group == base or base in group.parents:
                found += _group_limit(group, *names)
    return found


def _group_limit(group: Path, limit_name: str, used_name: str, reclaimable_name: str) -> list[tuple[int, int]]:
    try:
        limit = (group / limit_name).read_text().strip()
        used = int((group / used_name).read_text())
    except (OSError, ValueError):  # a group without this controller
        return []
    try:
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # some sandboxes do not tell
        stat = {}
    # The page cache counts as used, but gives way.
    return [(int(limit), used - int(stat.get(reclaimable_name, 0)))] if limit.isdecimal() else []
