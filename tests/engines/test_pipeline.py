"""What both engines share: a device that fails is told of, and what it lent is given back."""

from __future__ import annotations

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyopencl as cl
import pytest

from isovoxel.engines import staged_block
from isovoxel.engines.base import Cancelled
from isovoxel.engines.exact import ExactEngine
from isovoxel.engines.opencl import TURN
from isovoxel.engines.registry import open_engine
from isovoxel.errors import DeviceError
from strategies import Live, cut


class FailedEvent:
    """An event that runs for a while, and then has failed."""

    def __init__(self) -> None:
        self.looks = 0

    @property
    def command_execution_status(self) -> int:
        """Return what OpenCL tells of it."""
        self.looks += 1
        return 1 if self.looks < 3 else -5

    def wait(self) -> None:
        raise cl.RuntimeError("clWaitForEvents failed: EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST")


@pytest.fixture
def engine() -> ExactEngine:
    found = open_engine("exact")
    assert isinstance(found, ExactEngine)
    return found


def test_a_transfer_that_fails_raises(engine: ExactEngine) -> None:
    """Whoever sleeps until the device is done hears that it is not."""
    lane, event = engine.new_lane(), FailedEvent()
    with pytest.raises(cl.RuntimeError, match="EXEC_STATUS_ERROR"):
        lane.wait_for(event)
    assert event.looks == 3


def test_an_upload_goes_on_while_python_does(engine: ExactEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of transfers are kept until the lane is done: dropped, they hold up all threads until then."""

    class Transfer:
        """An event of a transfer."""

    transfers: list[weakref.ref[Transfer]] = []

    def copy(*_: Any, **__: Any) -> Transfer:
        event = Transfer()
        transfers.append(weakref.ref(event))
        return event

    lane = engine.new_lane()
    monkeypatch.setattr(cl, "enqueue_copy", copy)
    lane.upload("input", np.ones(3, np.uint8))
    assert transfers[0]() is not None
    lane.finish()
    assert transfers[0]() is None


def test_kernels_that_fail_raise(engine: ExactEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """No block gets voxels that the device did not make, and the engine goes on with the next."""
    plan = cut((4, 4, 4), (2.0, 2.0, 2.0), (8, 8, 8), engine="exact")
    volume = np.ones((4, 4, 4), np.uint16)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "enqueue_after", lambda *_: FailedEvent())
        with pytest.raises(cl.RuntimeError, match="EXEC_STATUS_ERROR"):
            engine.scale(volume, plan.block(0), plan)
    assert (engine.scale(volume, plan.block(0), plan).data == 1).all()


@pytest.mark.parametrize(("given", "blocks"), [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3)])
def test_as_many_blocks_are_in_flight_as_the_host_has_memory_for(
    engine: ExactEngine, given: int, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks wait for the memory of others; where there is none for one block, nothing is written."""
    engine.release()
    live, buffer = Live(), cl.Buffer
    counted, lock = live.counting(buffer), threading.Lock()

    def some(context: Any, flags: int, size: int, **options: Any) -> Any:
        if not flags & cl.mem_flags.ALLOC_HOST_PTR:
            return buffer(context, flags, size, **options)
        with lock:
            if live.now + size > given * largest:
                raise cl.MemoryError("create_buffer failed: MEM_OBJECT_ALLOCATION_FAILURE")
            return counted(context, flags, size, **options)

    monkeypatch.setattr(cl, "Buffer", some)
    volume = np.arange(512, dtype=np.uint16).reshape(8, 8, 8)
    plan = replace(cut((8, 8, 8), (1.0, 1.0, 1.0), (4, 4, 4), engine="exact"), in_flight=3)
    largest, least = max(plan.staging), min(plan.staging)
    assert largest == least  # so that `given` of them are given
    if not blocks:
        with pytest.raises(DeviceError, match=r"of host memory for a block in flight: create_buffer failed.*--memory"):
            engine.prepare(plan)
        assert live.now == 0
        return
    engine.prepare(plan)
    assert live.now == sum(plan.staging)
    with ThreadPoolExecutor(plan.in_flight) as pool:
        made = [pool.submit(engine.scale, volume[b.read_box.slices], b, plan) for b in plan.blocks()]
        for job, block in zip(made, plan.blocks(), strict=True):
            assert (job.result().data == volume[block.write_box.slices]).all()
    assert live.now <= blocks * sum(plan.staging)
    engine.release()
    assert live.now == 0


# ---- one at a time -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["exact", "cle"])
def test_a_cancelled_block_gives_up_its_turn(name: str) -> None:
    """A block that still waits for the device when the job is cancelled computes nothing."""
    engine, volume = open_engine(name), np.ones((4, 4, 4), np.uint16)
    plan = cut(volume.shape, (2.0, 2.0, 2.0), (99, 99, 99), engine=name)
    cancelled = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        with TURN:
            waiting = pool.submit(engine.scale, volume, plan.block(0), plan, cancelled)
            cancelled.set()
        with pytest.raises(Cancelled):
            waiting.result()
    assert (engine.scale(volume, plan.block(0), plan, threading.Event()).data == 1).all()


@pytest.mark.parametrize("name", ["exact", "cle"])
def test_waiting_for_the_device_is_told_from_scaling(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seconds that a block waits for its turn are reported, and no others."""
    engine, plan, now = open_engine(name), cut((4, 4, 4), (2.0, 2.0, 2.0), (99, 99, 99), engine=name), [0.0]

    class Turn:
        def __enter__(self) -> None:
            now[0] += 7

        def __exit__(self, *_: object) -> None:
            now[0] += 3

    engine.prepare(plan)
    monkeypatch.setattr(staged_block, "TURN", Turn())
    monkeypatch.setattr(staged_block, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    assert engine.scale(np.ones((4, 4, 4), np.uint16), plan.block(0), plan).waited == 7


def test_the_codecs_of_an_engine_end_with_its_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine of the next level has its own: both would hold twice what is projected."""
    closed: list[str] = []
    before, after = open_engine("cle"), open_engine("exact")
    for name in ("_encoder", "_decoder"):
        monkeypatch.setattr(before, name, SimpleNamespace(close=partial(closed.append, name)))
    after.take_over(before)
    assert closed == ["_encoder", "_decoder"]
    assert (before._encoder, before._decoder) == (None, None)
