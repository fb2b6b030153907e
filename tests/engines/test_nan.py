"""NaN and infinities: they stay where they are, reach as far as the kernel does, and no cut changes that.

Engine cle's linear kernel is the device's texture unit: that takes the voxels on both sides of a position, also where
one of them has no weight, and 0 x NaN is NaN. So there, and there only, a result may be none next to where it must be,
on an axis of factor 1 too (unless all are), and how a position is rounded decides; ``cle.scale`` has it so, and engine
exact has not.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from isovoxel.engines.base import Engine
from isovoxel.engines.reference import reference
from isovoxel.engines.registry import open_engine
from isovoxel.geometry.grid import Box, Float3
from isovoxel.planning.model import ENGINES
from isovoxel.planning.plan import Plan
from repeat import carry_out
from strategies import cut, one_kernel_for_all_shapes, read_from

SHAPE = (7, 9, 11)
CUTS = [(99, 99, 99), (4, 3, 5), (1, 99, 2)]
PLACES = {(3, 4, 5): np.nan, (0, 0, 1): np.inf, (6, 8, 10): -np.inf, (6, 0, 10): np.nan}
FACTORS = {
    "as it is": (1.0, 1.0, 1.0),
    "larger": (2.3, 1.7, 3.0),
    "smaller": (0.4, 0.7, 0.3),
    "each": (1.0, 2.0, 0.5),
    "twice": (2.0, 2.0, 2.0),
}
KINDS = [
    (engine, kernel) for engine, kernels in ENGINES.items() for kernel in kernels if kernel not in ("mode", "smooth")
]


@pytest.fixture(autouse=True, scope="module")
def _one_kernel() -> Iterator[None]:
    with one_kernel_for_all_shapes():
        yield


@pytest.fixture(scope="module", params=KINDS, ids=" ".join)
def kind(request: pytest.FixtureRequest, _one_kernel: None) -> tuple[Engine, str, str]:
    """Return an engine, its name and a kernel."""
    name, kernel = request.param
    engine = open_engine(name)
    engine.prepare(plan(name, kernel, (2.0, 2.0, 2.0), "nearest", CUTS[0]))
    return engine, name, kernel


def plan(name: str, kernel: str, factor: Float3, boundary: str, block: tuple[int, int, int]) -> Plan:
    return cut(SHAPE, factor, block, "float32", engine=name, interpolation=kernel, boundary=boundary)


def volumes() -> tuple[np.ndarray, np.ndarray]:
    """Return a volume of numbers, and one with a few that are none."""
    clean = np.random.default_rng(6).normal(size=SHAPE).astype("float32")
    volume = clean.copy()
    for place, value in PLACES.items():
        volume[place] = value
    return clean, volume


def textured(plan: Plan) -> bool:
    """Tell whether voxels without weight are taken as well."""
    return (plan.engine, plan.interpolation) == ("cle", "linear")


def within_reach(plan: Plan, mask: np.ndarray) -> np.ndarray:
    """Return which output voxels a kernel's radius lets the marked input voxels reach, axis by axis."""
    reached = mask.astype(int)
    for axis, (along, factor) in enumerate(zip(plan.axes, plan.factor, strict=True)):
        if factor == 1 and (not textured(plan) or plan.identity):
            continue
        radii = {"nearest": 0.5, "linear": 1, "cubic": 2, "lanczos3": 3, "area": 0.5 + 0.5 / factor}
        at = (np.arange(along.m) + 0.5) / factor - 0.5
        near = np.abs(at[:, None] - np.arange(SHAPE[axis])) <= radii[plan.interpolation] + 2**-10
        reached = np.moveaxis(np.tensordot(near.astype(int), reached, (1, axis)), 0, axis)
    return reached > 0


@pytest.mark.sampled(1)
@pytest.mark.parametrize("boundary", ["nearest", "constant"])
@pytest.mark.parametrize("factor", FACTORS)
def test_what_is_no_number_reaches_as_far_as_the_kernel(
    kind: tuple[Engine, str, str], factor: str, boundary: str
) -> None:
    """However the volume is cut, the same voxels are none: all in which it has weight, and none beyond the kernel."""
    engine, name, kernel = kind
    clean, volume = volumes()
    whole = plan(name, kernel, FACTORS[factor], boundary, CUTS[0])
    with np.errstate(invalid="ignore"):
        real = reference(read_from(volume), SHAPE, whole.factor, Box.whole(whole.output.shape), kernel, boundary)
    reach = within_reach(whole, ~np.isfinite(volume))
    masks = []
    for block in CUTS:
        cut_up = plan(name, kernel, FACTORS[factor], boundary, block)
        with np.errstate(invalid="ignore"):
            found, untouched = carry_out(engine, cut_up, volume), carry_out(engine, cut_up, clean)
        assert np.isfinite(untouched).all()
        masks.append(~np.isfinite(found))
        assert not (masks[-1] & ~reach).any()
        assert masks[-1][~np.isfinite(real)].all()
        np.testing.assert_array_equal(found[~reach], untouched[~reach])
    decided = ~(reach & np.isfinite(real)) if name == "cle" else np.ones(real.shape, bool)
    for mask in masks:
        np.testing.assert_array_equal(mask[decided], masks[0][decided])


@pytest.mark.sampled(17)
@pytest.mark.parametrize("boundary", ["nearest", "constant"])
@pytest.mark.parametrize("block", CUTS)
def test_nothing_moves_where_nothing_is_scaled(
    kind: tuple[Engine, str, str], block: tuple[int, int, int], boundary: str
) -> None:
    """At factor 1 every voxel stays what it is: NaN is NaN, and infinities keep their sign."""
    engine, name, kernel = kind
    _, volume = volumes()
    np.testing.assert_array_equal(
        carry_out(engine, plan(name, kernel, (1.0, 1.0, 1.0), boundary, block), volume), volume
    )
