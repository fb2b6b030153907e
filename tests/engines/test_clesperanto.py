"""Which clEsperanto scales for engine `cle`, and what holds of both of them."""

from __future__ import annotations

import platform
import sys
import traceback
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pyopencl as cl
import pytest

import isovoxel
from isovoxel.engines import clesperanto as module
from isovoxel.engines.cle import CleEngine
from isovoxel.engines.clesperanto import Scaling, clesperanto, why_missing
from isovoxel.engines.devices import find_device
from isovoxel.engines.opencl import DriverError
from isovoxel.engines.reference import reference
from isovoxel.engines.registry import _opened
from isovoxel.errors import DeviceError, OptionError
from isovoxel.parameters import NO_OPTION
from strategies import as_dtype, cut

GENERATIONS = [
    pytest.param(name, marks=pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed"))
    for name, package in (("prototype", "pyclesperanto_prototype"), ("pyclesperanto", "pyclesperanto"))
]


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let each test choose anew, whatever the run chose, and the next one too."""
    monkeypatch.delenv(module.CHOICE, raising=False)
    for remembered in (clesperanto, module._first_that_loads):
        remembered.cache_clear()
    yield
    for remembered in (clesperanto, module._first_that_loads):
        remembered.cache_clear()


def broken(reason: Exception) -> Any:
    """Return what opens a generation whose import fails."""

    def fail() -> Any:
        raise reason

    return fail


class Other:
    """A generation that opens."""


def test_the_prototype_is_tried_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it can be imported it is what cle means; where it cannot, whatever the reason, its successor is."""
    first, second = Other(), Other()
    monkeypatch.setattr(module, "_GENERATIONS", {"prototype": lambda: first, "pyclesperanto": lambda: second})
    assert clesperanto() is first
    for remembered in (clesperanto, module._first_that_loads):
        remembered.cache_clear()
    failure = broken(AttributeError("module 'numpy' has no attribute 'asscalar'"))
    monkeypatch.setattr(module, "_GENERATIONS", {"prototype": failure, "pyclesperanto": lambda: second})
    assert clesperanto() is second
    assert why_missing() == ""


def test_caches_are_prepared_before_either_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both load OpenCL, which looks for its folders once, then."""
    order = []
    monkeypatch.setattr(module, "prepare_caches", lambda: order.append("caches"))
    monkeypatch.setattr(module, "_GENERATIONS", {"prototype": lambda: order.append("import") or Other()})
    clesperanto()
    assert order == ["caches", "import"]


def test_a_variable_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that is named is taken or refused; what is no name of either is refused."""
    first, second = Other(), Other()
    monkeypatch.setattr(module, "_GENERATIONS", {"prototype": lambda: first, "pyclesperanto": lambda: second})
    monkeypatch.setenv(module.CHOICE, "pyclesperanto")
    assert clesperanto() is second
    for remembered in (clesperanto, module._first_that_loads):
        remembered.cache_clear()
    monkeypatch.setenv(module.CHOICE, "clij2")
    with pytest.raises(OptionError, match="ISOVOXEL_CLE must be prototype or pyclesperanto, not 'clij2'"):
        clesperanto()
    assert "not 'clij2'" in why_missing()


@pytest.mark.parametrize(
    ("system", "machine", "remedy"),
    [
        ("linux", "x86_64", "pip install pyclesperanto brings it"),
        ("linux", "aarch64", "there is no wheel of it for Linux on aarch64"),
        ("darwin", "arm64", "pip install pyclesperanto brings it"),
    ],
)
def test_without_any_the_reasons_and_a_way_on_are_told(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str, remedy: str
) -> None:
    """One sentence, true on each platform."""
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    gone = {name: broken(ModuleNotFoundError(f"No module named {name!r}")) for name in ("prototype", "pyclesperanto")}
    monkeypatch.setattr(module, "_GENERATIONS", gone)
    with pytest.raises(DeviceError) as caught:
        clesperanto()
    assert str(caught.value) == (
        "engine cle needs clEsperanto, which cannot be imported: prototype: No module named 'prototype'; "
        f"pyclesperanto: No module named 'pyclesperanto'; {remedy}; without --engine cle exact scales"
    )


@pytest.mark.sampled(10)
@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("boundary", ["nearest", "constant"])
@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
@pytest.mark.parametrize("fixed", [False, True])
def test_blocks_of_either_are_what_they_should_be(
    monkeypatch: pytest.MonkeyPatch, generation: str, boundary: str, interpolation: str, fixed: bool
) -> None:
    """Also where all blocks have the largest one's shapes, at the volume's rim too: padding changes no voxel."""
    if generation == "pyclesperanto" and not fixed:
        pytest.skip("it would compile its kernels for each block")
    monkeypatch.setenv(module.CHOICE, generation)
    engine = CleEngine(find_device())
    monkeypatch.setattr(engine.library, "fixed_shapes", fixed)
    plan = cut((7, 12, 11), (3.7, 1.3, 0.7), (8, 8, 8), interpolation=interpolation, boundary=boundary)
    voxels = np.random.default_rng(3).integers(0, 65536, (7, 12, 11)).astype(np.uint16)
    result = np.empty(plan.output.shape, np.uint16)
    engine.prepare(plan)
    shapes = set()
    for block in plan.blocks():
        result[block.write_box.slices] = engine.scale(voxels[block.read_box.slices], block, plan).data
        shapes.add(engine._shapes(block, plan))
    engine.release()
    whole = cut((7, 12, 11), (3.7, 1.3, 0.7), plan.output.shape, interpolation=interpolation, boundary=boundary).block(
        0
    )
    wanted = reference(
        lambda box: voxels[box.slices], voxels.shape, plan.factor, whole.write_box, interpolation, boundary
    )
    apart = np.abs(result.astype(float) - as_dtype(wanted, result.dtype))
    # Two steps of a texture's weights, on each of three axes.
    assert apart.max() <= (1.0 if engine.device.kind == "cpu" else 6 * 65536 / 256) * (interpolation == "linear")
    assert (len(shapes) == 1) == fixed


@pytest.mark.skipif(find_spec("pyclesperanto") is None, reason="pyclesperanto is not installed")
@pytest.mark.parametrize("failure", [RuntimeError("CL_OUT_OF_RESOURCES (-5)"), MemoryError("std::bad_alloc")])
def test_a_failed_call_leaves_no_array_of_a_buffer(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    """An array gives its buffer back as it ends; one that ends after what passed the buffer on ends the process."""
    monkeypatch.setenv(module.CHOICE, "pyclesperanto")
    engine = CleEngine(find_device())

    def full(source: Any, target: Any, **_: Any) -> None:
        assert source is not target  # both are arrays of ours, and stay in this frame
        raise failure

    monkeypatch.setattr(engine.library._cle, "scale", full)
    buffers = [cl.Buffer(engine.context, cl.mem_flags.READ_WRITE, 32) for _ in range(2)]
    arrays = [(buffer, (2, 2, 2)) for buffer in buffers]
    with pytest.raises((DriverError, MemoryError)) as raised:
        engine.library.scale(engine._queue, Scaling(arrays[0], arrays[1], (1.0, 1.0, 1.0), None, linear=True))
    left, error = [], raised.value
    while error is not None:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        left += [
            name
            for frame in frames
            for name in ("source", "target")
            if frame.f_code is full.__code__ and name in frame.f_locals
        ]
        error = error.__context__
    assert left == []


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("axis", range(3))
def test_an_image_that_is_too_long_is_an_error(monkeypatch: pytest.MonkeyPatch, generation: str, axis: int) -> None:
    """Either would go on with nearest where linear is asked for, and would not say so."""
    monkeypatch.setenv(module.CHOICE, generation)
    engine = CleEngine(find_device())
    z, y, x = (engine.device.image_shape[axis] + 1 if a == axis else 2 for a in range(3))
    shape = (z, y, x)
    queue = engine._queue
    buffers = [cl.Buffer(engine.context, cl.mem_flags.READ_WRITE, 4 * z * y * x) for _ in range(2)]
    scaling = Scaling((buffers[0], shape), (buffers[1], shape), (1.5, 1.5, 1.5), None, linear=True)
    with pytest.raises((cl.Error, DriverError), match=r"INVALID_OPERATION|INVALID_IMAGE_SIZE"):
        engine.library.scale(queue, scaling)
    queue.finish()


def test_the_variable_is_no_unknown_one() -> None:
    """The command line, which refuses variables that it does not know, knows this one."""
    assert module.CHOICE in NO_OPTION


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", GENERATIONS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 6), (5, 1, 6), (5, 6, 1), (1, 7, 1), (7, 1, 1), (1, 1, 7)])
def test_volumes_of_one_voxel_across_are_volumes(
    name: str, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The successor takes them for images of fewer axes, around which there is nothing."""
    monkeypatch.setenv(module.CHOICE, name)
    _opened.cache_clear()
    voxels = np.random.default_rng(1).integers(1, 256, shape).astype("uint8")
    for factor in ((2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 3, 1.5), (1, 1.5, 0.5)):
        for boundary in ("nearest", "constant"):
            for interpolation in ("linear", "nearest"):
                how: Any = {"boundary": boundary, "interpolation": interpolation}
                got, wanted = (
                    isovoxel.scale_array(voxels, factor, engine=engine, **how).compute().astype(int)
                    for engine in ("cle", "exact")
                )
                assert np.abs(got - wanted).max() <= 1, (factor, how)
    _opened.cache_clear()
