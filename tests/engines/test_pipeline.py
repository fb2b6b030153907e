"""What both engines share: a device that fails is told of, and what it lent is given back."""

from __future__ import annotations

import itertools
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pyopencl as cl
import pytest

from isovoxel.engines.buffers import Lane
from isovoxel.engines.exact import ExactEngine
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
        """Raise, as pyopencl does."""
        raise cl.RuntimeError("clWaitForEvents failed: EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST")


@pytest.fixture
def engine() -> ExactEngine:
    """The engine of this process."""
    found = open_engine("exact")
    assert isinstance(found, ExactEngine)
    return found


def test_a_transfer_that_fails_raises(engine: ExactEngine) -> None:
    """Whoever sleeps until the device is done hears that it is not."""
    lane, event = Lane(engine._queue.context, engine._handle), FailedEvent()
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

    lane = Lane(engine._queue.context, engine._handle)
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


@pytest.mark.parametrize(("given", "blocks"), [(0, 0), (1, 0), (2, 1), (3, 1), (4, 1), (5, 1), (6, 3)])
def test_as_many_blocks_are_in_flight_as_the_host_has_memory_for(
    engine: ExactEngine, given: int, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that fails keeps some memory for itself; where it has none for one block, nothing is written."""
    engine.release()
    live = Live()
    buffer, made = live.counting(cl.Buffer), itertools.count()

    def some(*arguments: Any, **options: Any) -> Any:
        if next(made) >= given:
            raise cl.MemoryError("create_buffer failed: MEM_OBJECT_ALLOCATION_FAILURE")
        return buffer(*arguments, **options)

    monkeypatch.setattr(cl, "Buffer", some)
    plan = replace(cut((4, 4, 4), (2.0, 2.0, 2.0), (4, 4, 4), engine="exact"), in_flight=3)
    if blocks:
        assert engine.prepare(plan) == blocks
        assert live.now == blocks * sum(plan.staging)
        engine.release()
    else:
        with pytest.raises(DeviceError, match=r"of host memory for a block in flight: create_buffer failed.*--memory"):
            engine.prepare(plan)
    assert live.now == 0
