"""What a device makes of blocks on further levels is what the processor would make, to the bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl as cl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import isovoxel
from isovoxel.engines.exact import ExactEngine
from isovoxel.engines.opencl import TURN
from isovoxel.engines.registry import open_engine
from isovoxel.execution import further_levels
from isovoxel.geometry.resampling import Halver
from isovoxel.planning.pyramid import HALVED


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40)),
    dtype=st.sampled_from(HALVED),
    halves=st.tuples(*[st.booleans()] * 3),
    ends=st.tuples(*[st.booleans()] * 3),
    first=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_device_halves_as_the_processor_does(
    shape: tuple[int, int, int], dtype: str, halves: tuple[bool, ...], ends: tuple[bool, ...], first: int, seed: int
) -> None:
    """Of whatever axes, of the full range of each dtype, where an axis is odd, and wherever voxels lie in a buffer."""
    engine = open_engine("exact")
    assert isinstance(engine, ExactEngine)
    info = np.iinfo(dtype)
    voxels = np.random.default_rng(seed).integers(info.min, info.max + 1, shape).astype(dtype)
    factor: Any = tuple(0.5 if half else 1.0 for half in halves)
    made: Any = tuple(
        max(1, n // 2 + (n % 2 and end)) if half else n for n, half, end in zip(shape, halves, ends, strict=True)
    )
    both = np.concatenate([np.ones(first, dtype), voxels.ravel(), np.zeros(math.prod(made), dtype)])
    with TURN:
        buffer = cl.Buffer(engine.context, cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR, hostbuf=both)
        engine.halve(buffer, dtype, factor, (shape, made), first)
        cl.enqueue_copy(engine._queue, both, buffer)
    before, given, found = np.split(both, [first, first + voxels.size])
    assert (before == 1).all()
    np.testing.assert_array_equal(given.reshape(shape), voxels)
    np.testing.assert_array_equal(found.reshape(made), Halver()(voxels, factor, made))


@pytest.mark.parametrize("engine", ["exact", "cle"])
def test_a_job_has_levels_1_and_2_from_the_device(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor halves no block of the levels before, and gives the same files where the device halves none."""
    voxels = np.random.default_rng(3).integers(0, 2**16, (21, 47, 75)).astype(np.uint16)
    options: dict[str, Any] = {"factor": (2.0, 1.0, 1.0), "levels": 2, "engine": engine}
    options |= {"chunk": (8, 16, 16), "shard": (16, 32, 32), "input_voxel_size": (2.0, 1.0, 1.0), "threads": 2}
    with monkeypatch.context() as patch:
        patch.delattr(further_levels, "Halver")
        done = isovoxel.scale(voxels, tmp_path / "device.zarr", **options)
    assert done.plan.halved_along == done.plan.further
    with monkeypatch.context() as patch:
        patch.setattr(type(done.plan), "halves_blocks", False)
        isovoxel.scale(voxels, tmp_path / "processor.zarr", **options)
    files = [
        {p.relative_to(folder): p.read_bytes() for p in folder.rglob("[12]/c/**/*") if p.is_file()}
        for folder in (tmp_path / "device.zarr", tmp_path / "processor.zarr")
    ]
    assert files[0] == files[1]
