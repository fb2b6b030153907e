"""What engine exact on CUDA is made of, as far as a machine without a GPU can tell; the rest is in `test_gpu.py`."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codecs_on_cpu import on_device
from isovoxel.codecs.cuda import GpuCodecError, Lent
from isovoxel.engines import cuda, registry
from isovoxel.engines.base import Scaled
from isovoxel.engines.exact import ExactEngine
from isovoxel.engines.staged_block import StagedBlock
from isovoxel.errors import DeviceFullError
from isovoxel.planning.chunking import Storage
from isovoxel.planning.optimizer import make_plan
from isovoxel.planning.plan import Plan
from strategies import device_limits, host_limits, source

BOXES = st.tuples(*[st.tuples(st.integers(0, 5), st.integers(1, 5))] * 3)


@given(outer=BOXES, inner=BOXES)
def test_a_box_of_voxels_on_a_device_is_where_it_is_in_an_array(outer: Any, inner: Any) -> None:
    """Also a box of a box, as shards are of blocks and chunks of shards."""
    voxels = np.arange(12 * 13 * 14, dtype=np.uint16).reshape(12, 13, 14)
    there = on_device(voxels)
    for box in (outer, inner):
        slices = tuple(slice(start, start + n) for start, n in box)
        voxels, there = voxels[slices], there[slices]  # type: ignore[index]
        if 0 in voxels.shape:
            return
        assert (there.shape, there.strides) == (voxels.shape, voxels.strides)
        np.testing.assert_array_equal(there.download(there), voxels)


def test_what_is_made_is_lent_before_more_is_made() -> None:
    """No more than there are, all of them at a time, and again once they were let go of."""
    made: list[int] = []
    lent = Lent(2, lambda: made.append(len(made)) or len(made))  # type: ignore[func-returns-value]
    for _ in range(3):
        with lent.one():
            pass
    assert made == [0]
    with lent.one(), lent.one():
        assert len(made) == 2
        waits = threading.Thread(target=lambda: lent.one().__enter__(), daemon=True)
        waits.start()
    waits.join()
    assert len(made) == 2
    lent.clear()


def test_what_cannot_be_made_ahead_fails_where_it_is_needed() -> None:
    """Not before, and not for ever."""
    fails = [True]

    def make() -> int:
        if fails[0]:
            raise MemoryError("too little")
        return 1

    lent = Lent(1, make)
    lent.make_ahead(1)
    with pytest.raises(MemoryError, match="too little"), lent.one():
        pass
    fails[0] = False
    with lent.one() as one:
        assert one == 1


def plan_with(engine: str = "exact", shape: tuple[int, int, int] = (20, 30, 40), **limits: int) -> Plan:
    """Plan for a device that encodes, or decodes, in so many bytes."""
    storage, given = Storage((8, 8, 8), (16, 16, 16)), {"device": device_limits(), "host": host_limits()}
    plan = make_plan(source(shape), (2.0, 1.0, 1.0), engine=engine, storage=storage, **given)
    return replace(plan, block_shape=plan.output.shape, device=replace(plan.device, **limits))


def test_cuda_serves_plans_whose_chunks_a_gpu_codes() -> None:
    """Of engine exact, and of blocks whose axes are no longer than CUDA counts groups."""
    assert cuda.serves(plan_with(encoding=1))
    assert cuda.serves(plan_with(decoding=1))
    assert not cuda.serves(plan_with())
    assert not cuda.serves(plan_with("cle", encoding=1))
    assert not cuda.serves(plan_with(shape=(2, 70_000, 2), encoding=1))


def test_a_block_on_the_host_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives back its turn on the host, and keeps it once it is scaled, until it is written."""
    plan, turns, spilling = plan_with(encoding=1), iter((True, False)), threading.Lock()
    result = Scaled(np.zeros(1), 0.0)

    def scale(*_: Any) -> Scaled:
        assert spilling.locked()
        if next(turns):
            raise DeviceFullError("no room")
        return result

    monkeypatch.setattr(StagedBlock, "scale", scale)
    engine: Any = SimpleNamespace(fit=SimpleNamespace(depth=lambda _: 1), spilling=spilling)
    target: Any = object()
    with ExitStack() as held:
        block = cuda._KeptBlock(engine, plan.block(0), plan, (target, target), held)
        with pytest.raises(DeviceFullError):
            block.scale()
        assert not spilling.locked()
        assert block._target is target
        assert block.scale() is result
        assert spilling.locked()
    assert not spilling.locked()


@pytest.mark.parametrize("why", [ImportError("no driver"), MemoryError("full"), GpuCodecError("no device")])
def test_where_cuda_cannot_be_had_opencl_serves(why: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for the encoder learns why."""

    def fail(*_: Any) -> None:
        raise why

    monkeypatch.setattr(cuda.CudaEngine, "__init__", fail)
    engine = registry.engine_for(plan_with(encoding=1), "cpu")
    assert type(engine) is ExactEngine
    assert engine is registry.open_engine("exact", "cpu")
