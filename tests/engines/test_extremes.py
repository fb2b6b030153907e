"""Numbers at the edges: the largest, the smallest, infinities and mixes, in every engine, against the float64 oracle.

Finite samples never make anything else than finite voxels, whatever a sum comes to on its way, and `verify` takes what
the engines make of them, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from isovoxel import open_volume
from isovoxel.engines.base import Engine
from isovoxel.engines.reference import expected
from isovoxel.engines.registry import open_engine
from isovoxel.execution.comparison import LEAST_FLOAT, TEXTURE_BITS
from isovoxel.execution.recipe import Recipe
from isovoxel.execution.verify import Verdict, verify_level
from isovoxel.geometry.grid import Box, Float3
from isovoxel.geometry.resampling import accumulator
from isovoxel.planning.plan import Plan
from strategies import as_dtype, cle_precision, cut, one_kernel_for_all_shapes, padded_lengths, read_from

SHAPE = (5, 7, 9)
WHOLE, CUT = (99, 99, 99), (6, 5, 9)
MOST = float(np.finfo(np.float32).max)
FACTORS = [(1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (2.3, 1.0, 0.4)]
KINDS = [
    ("exact", "linear", False),
    ("exact", "linear", True),
    ("exact", "cubic", False),
    ("exact", "cubic", True),
    ("exact", "lanczos3", False),
    ("exact", "lanczos3", True),
    ("exact", "area", False),
    ("exact", "nearest", False),
    ("cle", "linear", False),
    ("cle", "nearest", False),
]
INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32")
ROUNDINGS = 50
"""How often a number without all its digits is rounded at most."""


@pytest.fixture(autouse=True, scope="module")
def _one_kernel() -> Iterator[None]:
    with one_kernel_for_all_shapes():
        yield


def floats() -> dict[str, np.ndarray]:
    """Return volumes of float32 at the edges, by what they are."""
    rng = np.random.default_rng(3)
    constants = (MOST, -MOST, 3.4e38, 1e-38, 1e-40, 2.0**-149, 0.0, -0.0, np.inf, -np.inf, np.nan)
    found = {f"all {value:g}": np.full(SHAPE, value, np.float32) for value in constants}
    odd = np.indices(SHAPE).sum(0) % 2 == 1
    right = np.indices(SHAPE)[2] > 4
    usual = rng.normal(size=SHAPE).astype(np.float32)
    found["largest beside least"] = np.where(odd, MOST, -MOST).astype(np.float32)
    found["edge"] = np.where(right, MOST, -MOST).astype(np.float32)
    found["infinite edge"] = np.where(right, np.inf, -np.inf).astype(np.float32)
    found["background"] = np.where(right, np.float32(-MOST), usual)
    found["no numbers beside the largest"] = np.where(right, np.float32(np.nan), np.float32(MOST))
    found["infinity beside the largest"] = np.where(odd, np.float32(np.inf), np.float32(-MOST))
    found["tiny"] = usual * np.float32(1e-40)
    for name, value in (("largest", MOST), ("infinity", np.inf), ("no number", np.nan)):
        found[f"one {name}"] = usual.copy()
        found[f"one {name}"][2, 3, 4] = value
    return found


def integers(dtype: str) -> dict[str, np.ndarray]:
    """Return volumes of a dtype at its ends."""
    info, rng = np.iinfo(dtype), np.random.default_rng(4)
    odd = np.indices(SHAPE).sum(0) % 2 == 1
    near = rng.integers(0, 3, SHAPE).astype(dtype)
    return {
        "all most": np.full(SHAPE, info.max, dtype),
        "all least": np.full(SHAPE, info.min, dtype),
        "both": np.where(odd, info.max, info.min).astype(dtype),
        "near the most": info.max - near,
        "near the least": info.min + near,
    }


FLOATS = [("float32", name) for name in floats()]
VOLUMES = FLOATS + [(d, name) for d in INTEGERS for name in integers(d)]


def volume_of(dtype: str, name: str) -> np.ndarray:
    return (floats() if dtype == "float32" else integers(dtype))[name]


def run(engine: Engine, plan: Plan, volume: np.ndarray) -> np.ndarray:
    result = np.empty(plan.output.shape, volume.dtype)
    for block in plan.blocks():
        result[block.write_box.slices] = engine.scale(volume[block.read_box.slices], block, plan).data
    return result


def check(found: np.ndarray, plan: Plan, volume: np.ndarray) -> None:
    """Compare with the oracle, voxel by voxel, in what each is made of."""
    whole, gpu = Box.whole(plan.output.shape), open_engine(plan.engine).device.kind == "gpu"
    wanted = expected(
        read_from(volume), SHAPE, plan.factor, whole, plan.interpolation, plan.boundary, antialias=plan.antialias
    )
    real = as_dtype(wanted.values, np.dtype("float32")).astype(float) if volume.dtype.kind == "f" else wanted.values
    if plan.engine == "cle" and plan.interpolation == "linear":  # 0 times infinity is no number in a texture unit
        assert not np.isfinite(found[~np.isfinite(real)]).any()
        assert np.isfinite(found).all() or not np.isfinite(volume).all()
        known = np.isfinite(found)
        found, real = np.where(known, found, 0.0), np.where(known, real, 0.0)
        some = volume[np.isfinite(volume)].astype(float)
        allowed = cle_precision(padded_lengths(plan), some) if some.size else 0.0
        if gpu and some.size:  # a texture unit's weights have 8 bits
            allowed += 3 * 2.0**-TEXTURE_BITS * (max(0.0, some.max()) - min(0.0, some.min()))
    else:
        np.testing.assert_array_equal(np.where(np.isfinite(found), 0, found), np.where(np.isfinite(real), 0, real))
        wide = plan.engine == "exact" and accumulator(volume.dtype) == np.float64
        allowed = (2.0**-46 if wide else 2e-6) * wanted.magnitude
    if volume.dtype.kind in "iu":
        info = np.iinfo(volume.dtype)
        real = np.clip(real, info.min, info.max)
        allowed = allowed + 0.5
    else:
        allowed = allowed + 2.0**-24 * np.abs(np.where(np.isfinite(real), real, 0.0))
        allowed = allowed + ROUNDINGS * LEAST_FLOAT["gpu" if gpu else "cpu"]
    with np.errstate(invalid="ignore"):
        off = np.where(np.isfinite(real), np.abs(found.astype(float) - real), 0.0)
    assert (off <= allowed).all()


def plan_of(kind: tuple[str, str, bool], dtype: str, factor: Float3, boundary: str, block: Any) -> Plan:
    engine, interpolation, antialias = kind
    return cut(
        SHAPE, factor, block, dtype, engine=engine, interpolation=interpolation, antialias=antialias, boundary=boundary
    )


@pytest.mark.sampled(1)
@pytest.mark.parametrize("boundary", ["nearest", "constant"])
@pytest.mark.parametrize("factor", FACTORS, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_all_engines_are_right_at_the_edges(kind: tuple[str, str, bool], factor: Float3, boundary: str) -> None:
    """Every volume is what the oracle says, saturated, in one block and in many; the same bits in `exact`."""
    engine = open_engine(kind[0])
    for dtype, name in VOLUMES if factor == FACTORS[-1] else FLOATS:
        volume = volume_of(dtype, name)
        whole = plan_of(kind, dtype, factor, boundary, WHOLE)
        found = run(engine, whole, volume)
        check(found, whole, volume)
        if factor == (1.0, 1.0, 1.0):
            np.testing.assert_array_equal(found.view(np.uint8), volume.view(np.uint8))
        if dtype == "float32":
            parts = run(engine, plan_of(kind, dtype, factor, boundary, CUT), volume)
            check(parts, whole, volume)
            if kind[0] == "exact":
                np.testing.assert_array_equal(parts.view(np.uint32), found.view(np.uint32))


# ---- verify --------------------------------------------------------------------------------------------------------


def verified(plan: Plan, volume: np.ndarray, found: np.ndarray, samples: int) -> Verdict:
    """Return what `verify` says of so many boxes."""
    recipe = Recipe(
        factor=plan.factor,
        interpolation=plan.interpolation,
        antialias=plan.antialias,
        boundary=plan.boundary,
        engine=plan.engine,
        device_kind=open_engine(plan.engine).device.kind,
        block=CUT,
        shape=SHAPE,
        dtype=volume.dtype.name,
        identity={},
        complete=True,
    )
    source, result = (open_volume(array, voxel_size=(1.0, 1.0, 1.0)) for array in (volume, found))
    return verify_level(source, result, recipe, samples=samples)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("boundary", ["nearest", "constant"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_verify_holds_at_the_edges(kind: tuple[str, str, bool], boundary: str) -> None:
    """What the engines make of any of the volumes holds, and NumPy warns of nothing on the way."""
    for dtype, name in VOLUMES[:: 1 if boundary == "nearest" else 2]:
        volume = volume_of(dtype, name)
        plan = plan_of(kind, dtype, (2.3, 1.0, 0.4), boundary, CUT)
        assert verified(plan, volume, run(open_engine(kind[0]), plan, volume), 6).holds, (dtype, name)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", ["one largest", "one infinity", "one no number", "background", "tiny", "edge"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_verify_finds_a_wrong_voxel_beside_the_edges(kind: tuple[str, str, bool], name: str) -> None:
    """A voxel that is off by more than what it is made of explains is found, though one of 3e38 is in the same box."""
    if name == "tiny" and open_engine(kind[0]).device.kind == "gpu":
        pytest.skip("a GPU need not tell such numbers from 0")
    volume = volume_of("float32", name)
    plan = plan_of(kind, "float32", (2.0, 1.0, 1.0), "nearest", CUT)
    right = run(open_engine(kind[0]), plan, volume)
    for place in ((0, 0, 0), (4, 3, 4)):
        for wrong in (np.nan, np.inf, -np.inf, right[place] + 0.1 * np.abs(volume[0, 0, 0]), -1e30):
            if wrong == right[place] or (np.isnan(wrong) and np.isnan(right[place])):
                continue
            if place == (4, 3, 4) and kind[:2] == ("cle", "linear"):
                continue  # a texture unit sees the samples around as well, which allows for more
            if place == (4, 3, 4) and name in ("one largest", "edge") and np.isfinite(wrong) and kind[1] != "nearest":
                continue  # made of the largest, of which this is no share
            found = right.copy()
            found[place] = wrong
            verdict = verified(plan, volume, found, 24)
            assert verdict.wrong > 0, (place, wrong)
            assert not verdict.holds
