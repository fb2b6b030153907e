"""What the machine has and the process holds, container limits included."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import psutil
import pytest

import isovoxel
from isovoxel.execution import resources
from isovoxel.execution.resources import MIB, available_bytes, host_limits, peak_bytes

V1 = {"limit": "memory.limit_in_bytes", "used": "memory.usage_in_bytes", "stat": "total_inactive_file"}
V2 = {"limit": "memory.max", "used": "memory.current", "stat": "inactive_file"}


class Groups:
    """A made-up tree of control groups."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "cgroup"
        self.own = folder / "own"
        self.root.mkdir()

    def add(self, path: str, names: Mapping[str, str], limit: str, used: int, cache: int = 0) -> None:
        """Add a group with a limit, what it uses, and how much of that is page cache."""
        group = self.root / path
        group.mkdir(parents=True, exist_ok=True)
        (group / names["limit"]).write_text(f"{limit}\n")
        (group / names["used"]).write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"active_file 7\n{names['stat']} {cache}\nunevictable 0\n")

    def limits(self, *lines: str) -> list[tuple[int, int]]:
        """Return what is found for a process that says it is in these groups."""
        self.own.write_text("".join(f"{line}\n" for line in lines))
        return sorted(resources._cgroup_limits(self.root, self.own))


@pytest.fixture
def groups(tmp_path: Path) -> Groups:
    return Groups(tmp_path)


def test_all_groups_around_the_process_count(groups: Groups) -> None:
    """In version 2 the process' own group and every one around it may have a limit, others do not matter."""
    groups.add("", V2, "900", 500)
    groups.add("user", V2, "max", 300)
    groups.add("user/job", V2, "200", 100, cache=30)
    groups.add("user/job/step", V2, "max", 100)
    groups.add("user/other", V2, "1", 1)
    assert groups.limits("0::/user/job/step") == [(200, 70), (900, 500)]


def test_version_1_has_a_folder_of_its_own_for_memory(groups: Groups) -> None:
    """Of the controllers only memory counts, also where it shares its line with others."""
    groups.add("memory", V1, "9223372036854771712", 900)
    groups.add("memory/batch/job", V1, "500", 400, cache=150)
    groups.add("cpu/batch/job", V1, "1", 1)
    lines = ("5:cpu:/batch/job", "4:memory,hugetlb:/batch/job", "1:name=systemd:/batch", "0::/")
    assert groups.limits(*lines) == [(500, 250), (9223372036854771712, 900)]


@pytest.mark.parametrize(
    ("version", "base", "line"),
    [
        (V1, "memory", "3:memory:/docker/4f2a"),
        (V2, "", "0::/docker/4f2a"),
        *((V2, "", f"0::{path}") for path in ("/../..", "/../other", "/")),
    ],
)
def test_a_path_that_is_not_there_ends_at_the_root(
    groups: Groups, version: Mapping[str, str], base: str, line: str
) -> None:
    """In a container it is the host's, of files that are the container's; outside of a name space it leads out."""
    groups.add(base, version, "600", 200)
    assert groups.limits(line) == [(600, 200)]


def test_groups_without_files_limit_nothing(groups: Groups) -> None:
    """A controller that is off, a system without groups: neither is an error."""
    assert groups.limits("0::/user", "4:memory:/user", "2:cpu:/") == []
    assert groups.limits() == []
    groups.own.unlink()
    assert resources._cgroup_limits(groups.root, groups.own) == []


def test_a_group_without_statistics_still_limits(groups: Groups) -> None:
    """Where nobody tells how much is page cache, all that is used counts."""
    groups.add("", V2, "600", 200)
    (groups.root / "memory.stat").unlink()
    assert groups.limits("0::/") == [(600, 200)]


def test_the_tightest_limit_is_what_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is free on the machine matters only where no group allows less."""
    free = int(psutil.virtual_memory().available)
    monkeypatch.setattr(resources, "_cgroup_limits", lambda: [(1000 * MIB, 900 * MIB), (2000 * MIB, 1000 * MIB)])
    assert available_bytes() == 100 * MIB
    monkeypatch.setattr(resources, "_cgroup_limits", lambda: [(4 * free, 0)])
    assert available_bytes() == pytest.approx(free, rel=0.2)


def test_a_job_takes_half_of_what_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside what the process holds; unless it is given a budget, which is taken as it is."""
    monkeypatch.setattr(resources, "available_bytes", lambda: 10_000 * MIB)
    held = psutil.Process().memory_info().rss
    assert host_limits().allowed == pytest.approx(held + 5_000 * MIB, abs=50 * MIB)
    assert host_limits(budget=123, threads=7).allowed == 123
    assert host_limits(threads=7).threads == 7
    assert host_limits().threads >= 3


def test_many_cores_help_to_encode_what_a_few_blocks_in_flight_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a GPU reaches takes long to get: fewer blocks have some, and the other cores help them."""
    monkeypatch.setattr(resources, "cores", lambda: 64)
    for kind, threads in (("cpu", 64), ("gpu", 32)):
        limits = host_limits(device_kind=kind)
        assert (limits.threads, limits.helpers) == (threads, 63)
    assert host_limits(threads=50, device_kind="gpu").threads == 50


def test_the_baseline_covers_what_the_process_holds() -> None:
    """It is above what is held now, and rounded, so that the same job is planned the same way twice."""
    baseline = host_limits().baseline
    assert baseline > psutil.Process().memory_info().rss
    assert baseline % (256 * MIB) == 0


def test_an_array_that_the_caller_holds_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is planned with as much room for blocks as without it, be it larger than half of what is left free."""
    monkeypatch.setattr(resources, "available_bytes", lambda: 1_400 * MIB)

    def room() -> int:
        limits = host_limits(threads=1)
        return limits.allowed - limits.baseline

    before = room()
    held = np.ones(800 * MIB, np.uint8)
    assert room() > before - 300 * MIB  # the baseline is rounded
    planned = isovoxel.plan(held.reshape(800, 1024, 1024), factor=(2, 1, 1), input_voxel_size=(1, 1, 1))
    assert planned.projected_host <= planned.host.allowed


PEAK = """
from isovoxel.execution.resources import peak_bytes
before = peak_bytes()
held = bytearray(b"x") * 200_000_000
full = peak_bytes()
del held
print(before, full, peak_bytes())
"""


def test_peak_grows_by_what_is_allocated_and_stays() -> None:
    """200 MB more held make the peak 200 MB higher, and giving them back does not lower it."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    before, full, after = (int(word) for word in done.stdout.split())
    assert full - before == pytest.approx(200e6, rel=0.05)
    assert after == pytest.approx(full, rel=0.01)  # the kernel counts pages in batches


def test_peak_is_of_this_process_alone() -> None:
    """A child of a process that holds much begins with a peak of its own."""
    held = bytearray(b"x") * 300_000_000
    code = "from isovoxel.execution.resources import peak_bytes; print(peak_bytes())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(child.stdout) < len(held) < peak_bytes()


FREED = """
import gc, threading
import numpy as np, psutil
gc.disable()
from isovoxel.execution.resources import return_freed_memory

def work():
    held = [np.ones(1000, np.uint8) for _ in range(20_000)]  # small enough for the thread's own heap
    del held[:-1]
    kept.append(held)
    ring = [np.ones(1000, np.uint8) for _ in range(20_000)]
    ring.append(ring)  # only the garbage collector frees it

kept = []
for thread in [threading.Thread(target=work) for _ in range(4)]:
    thread.start()
    thread.join()
before = psutil.Process().memory_info().rss
for counted in (2 * before, before // 2):
    return_freed_memory(counted)
    print(before - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other C libraries return it by themselves")
def test_freed_memory_goes_back_to_the_system() -> None:
    """What threads have freed in the middle of their heaps, where the process holds more than is counted."""
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    kept, returned = (int(word) for word in done.stdout.split())
    assert kept < MIB
    assert returned > 8 * MIB
