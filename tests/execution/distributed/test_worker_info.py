"""A plan is made from what all workers have: the least of each binds, and what would give other bits is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from isovoxel.errors import ClusterError, DeviceError
from isovoxel.execution.distributed import worker_info
from isovoxel.execution.distributed.worker_info import WorkerInfo, WorkerPool, pool_of, versions
from isovoxel.planning.model import DeviceLimits, HostLimits

GIB = 2**30
GPU = DeviceLimits("H100", "gpu", 80 * GIB, 70 * GIB, 20 * GIB, (16384, 16384, 16384), shares_host_memory=False)
CPU = DeviceLimits("Processor", "cpu", 8 * GIB, 8 * GIB, 2 * GIB, (2048, 2048, 2048), shares_host_memory=True)
HOST = HostLimits(allowed=64 * GIB, baseline=GIB, threads=8, helpers=7)


def member(number: int, **changes: Any) -> WorkerInfo:
    """Return a worker on a GPU of its own, changed as asked."""
    one = WorkerInfo(
        address=f"tcp://{number}",
        name=str(number),
        host="a",
        pid=number,
        cores=16,
        index=0,
        pci=f"0000:0{number}:00.0",
        uuid=f"GPU-{number}",
        device=GPU,
        limits=HOST,
        memory_limit=None,
        versions=versions(),
    )
    return replace(one, **changes)


def test_workers_of_a_host_share_its_memory_and_cores() -> None:
    """Three of four on one host: each has a third of that, and the one that is alone elsewhere does not count."""
    pool = WorkerPool((member(1), member(2), member(3), member(4, host="b")))
    assert pool.host == HostLimits(allowed=64 * GIB // 3, baseline=GIB, threads=8, helpers=4, workers=4)
    assert pool.share(pool.members[3]).allowed == 64 * GIB
    assert pool.notes == ()


def test_what_distributed_allows_a_worker_binds() -> None:
    """Beyond 60 % of it, it would write blocks to the disk."""
    assert WorkerPool((member(1, memory_limit=10 * GIB),)).host.allowed == 6 * GIB


def test_the_least_of_each_limit_binds() -> None:
    """Different GPUs are named; none of their limits is passed by any block."""
    small = replace(GPU, name="A100", memory=40 * GIB, allowed=36 * GIB, image_shape=(2048, 16384, 16384))
    pool = WorkerPool((member(1), member(2, device=small), member(3)))
    assert pool.device("cle") == replace(small, name="A100 and H100")
    assert pool.notes == ("devices differ (1 x A100, 2 x H100); the least binds",)


def test_gpus_and_cpus_go_together_under_exact_only() -> None:
    """Cle gives other bits on each."""
    pool = WorkerPool((member(1), member(2, device=CPU)))
    assert (pool.device("exact").kind, pool.device("exact").shares_host_memory) == ("cpu", True)
    with pytest.raises(DeviceError, match=r"some on CPUs \(2\), and engine cle gives other bits .* use --engine exact"):
        pool.device("cle")


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        (
            [member(1), member(2, uuid="GPU-1")],
            r"1 and 2 on a hold the same GPU, H100 \(0000:02:00.0\); set ISO",
        ),
        ([member(1, uuid="", pci=""), member(2, uuid="", pci="")], r"1 and 2 on a hold the same GPU, H100 \(0\)"),
        ([member(1, versions=(("isovoxel", "9"), *versions()[1:]))], r"1 on a runs isovoxel 9, and this process \d"),
        ([ModuleNotFoundError("no", name="isovoxel")], r"at tcp://0 has no module isovoxel; install isovoxel \d"),
        (["no OpenCL device found"], r"at tcp://0 cannot serve: no OpenCL device found"),
        ([OSError("cut off")], r"at tcp://0 does not say what it has: OSError: cut off"),
    ],
)
def test_workers_that_cannot_be_used_are_named(answers: list[Any], why: str) -> None:
    """With what to do about it."""
    with pytest.raises((ClusterError, DeviceError), match=why):
        pool_of({f"tcp://{i}": answer for i, answer in enumerate(answers)})


def test_workers_share_what_no_two_can_hold() -> None:
    """Several may compute on one processor, and each host has a GPU with number 0."""
    cpus = [member(i, device=CPU, uuid="", pci="") for i in (1, 2)]
    gpus = [member(3, uuid="", pci="", host="b"), member(10, uuid="", pci="", host="c")]
    found = pool_of({m.address: m for m in (*gpus, *cpus)})
    assert [m.name for m in found.members] == ["1", "2", "3", "10"]


OLD, NEW = ("pyclesperanto-prototype 0.24.6", ""), ("pyclesperanto 0.25.1", "")
NONE = ("", "clEsperanto cannot be imported: it is not there")


@pytest.mark.parametrize(
    ("answers", "library", "why"),
    [
        ([OLD, OLD], OLD[0], ""),
        ([OLD, NEW], "", f"whose bits differ: {OLD[0]} at 1 on a and {NEW[0]} at 2 on a; install the same for all"),
        ([NEW, NONE], "", f"on a, at the worker 2, {NONE[1]}"),
    ],
)
def test_all_workers_have_the_same_clesperanto(
    monkeypatch: pytest.MonkeyPatch, answers: list[Any], library: str, why: str
) -> None:
    """Or none that engine cle can use."""
    pool = WorkerPool((member(1), member(2)))
    given = {one.address: answer for one, answer in zip(pool.members, answers, strict=True)}
    monkeypatch.setattr(worker_info, "ask_workers", lambda *_, **__: given)
    found, why_not = worker_info.same_clesperanto(None, pool)
    assert found == library
    assert why in why_not
    assert bool(why_not) == bool(why)


@pytest.mark.parametrize("answer", [None, OSError("no route")])
def test_a_worker_that_does_not_say_which_is_named(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    """One that has gone meanwhile, or fails."""
    monkeypatch.setattr(worker_info, "ask_workers", lambda *_, **__: {"tcp://1": answer} if answer else {})
    with pytest.raises(ClusterError, match="the worker 1 on a does not say which clEsperanto it has"):
        worker_info.same_clesperanto(None, WorkerPool((member(1),)))
