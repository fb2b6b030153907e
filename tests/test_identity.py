"""Factor 1 leaves voxels as they are, bit for bit, by every way to scale; planes do not mix along such an axis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr

import isovoxel

INTEGERS = [f"{sign}int{bits}" for sign in ("u", "") for bits in (8, 16, 32)]
IMAGES: dict[str, list[dict[str, Any]]] = {
    "exact": [
        {"interpolation": "nearest"},
        {"interpolation": "linear"},
        {"interpolation": "cubic"},
        {"interpolation": "area"},
        {"interpolation": "linear", "antialias": True},
        {"interpolation": "cubic", "antialias": True},
        {"interpolation": "lanczos3"},
    ],
    "cle": [{"interpolation": "nearest"}, {"interpolation": "linear"}],
}
LABELS: dict[str, list[dict[str, Any]]] = {
    "exact": [{"labels": True}, {"labels": True, "interpolation": "mode"}],
    "cle": [{"labels": True}],
}
CASES = [
    (engine, dtype, how)
    for engine in IMAGES
    for dtype, ways in (
        ("float32", IMAGES[engine]),
        *((dtype, IMAGES[engine] + LABELS[engine]) for dtype in INTEGERS),
        *((dtype, LABELS["exact"] if engine == "exact" else []) for dtype in ("uint64", "int64")),
    )
    for how in ways
]
BITS = [0x7FC00001, 0xFFC12345, 0x7F800001, 0x80000000, 1, 0x807FFFFF, 0x7F800000, 0xFF800000, 0x7F7FFFFF]
"""NaN with a payload, a signalling one, -0, numbers near 0, infinities, the largest."""


def volume(dtype: str) -> np.ndarray:
    """Return voxels of any bits, and those that a computation would change."""
    voxels = (
        np.random.default_rng(0).integers(0, 256, (7, 9, 10, np.dtype(dtype).itemsize), np.uint8).view(dtype)[..., 0]
    )
    if dtype == "float32":
        voxels.view(np.uint32).reshape(-1)[::2] = np.resize(np.array(BITS, np.uint32), voxels.size // 2)
    else:
        voxels.reshape(-1)[::5], voxels.reshape(-1)[1::5] = np.iinfo(dtype).max, np.iinfo(dtype).min
    return np.ascontiguousarray(voxels)


def check_bits(found: Any, wanted: np.ndarray) -> None:
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(np.ascontiguousarray(found).view(np.uint8), wanted.view(np.uint8))


@pytest.mark.sampled(28)
@pytest.mark.parametrize(("engine", "dtype", "how"), CASES, ids=str)
def test_factor_1_changes_no_bit(engine: str, dtype: str, how: dict[str, Any]) -> None:
    """In `scale_array`, of many chunks."""
    voxels = volume(dtype)
    lazy = isovoxel.scale_array(da.from_array(voxels, chunks=(4, 5, 6)), (1.0, 1.0, 1.0), engine=engine, **how)
    check_bits(lazy.compute(), voxels)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("halo", ["direct", "map_overlap"])
@pytest.mark.parametrize("ome_zarr", ["0.5", "0.4"])
@pytest.mark.parametrize(("engine", "dtype"), [(e, d) for e in IMAGES for d in ("float32", "int32", "uint8")])
def test_factor_1_writes_the_same_bits(engine: str, dtype: str, ome_zarr: str, halo: str, tmp_path: Path) -> None:
    """In `scale`, in many blocks, with a further level made along, and verified."""
    voxels, small = np.tile(volume(dtype), (2, 2, 2)), (4, 4, 4)
    shard = {} if ome_zarr == "0.4" else {"shard": small}
    out = isovoxel.scale(
        voxels,
        tmp_path / "out.zarr",
        factor=(1.0, 1.0, 1.0),
        input_voxel_size=(1.0, 1.0, 1.0),
        engine=engine,
        chunk=small,
        device_memory=f"{2 * voxels.itemsize + 2}kB",
        levels=1,
        ome_zarr=ome_zarr,
        halo=halo,
        **shard,
    )
    assert out.plan.n_blocks > 1
    check_bits(zarr.open_array(tmp_path / "out.zarr" / "0", mode="r")[...], voxels)
    assert isovoxel.verify(tmp_path / "out.zarr", against=voxels, samples=50).holds


@pytest.mark.sampled(1)
@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("dtype", ["float32", "uint32", "int8"])
def test_an_axis_of_factor_1_mixes_no_planes(dtype: str, axis: int) -> None:
    """In `exact`, and nearest with `cle`: each plane along such an axis is what it is alone."""
    voxels = volume(dtype)
    factor = tuple(2.0 if other == axis else 1.0 for other in range(3))
    chunks = da.from_array(voxels, chunks=(4, 5, 6))
    nearest = np.repeat(voxels, 2, axis=axis)
    for engine in IMAGES:
        check_bits(isovoxel.scale_array(chunks, factor, engine=engine, interpolation="nearest").compute(), nearest)
    still = (axis + 1) % 3
    for how in IMAGES["exact"][1:]:
        whole = isovoxel.scale_array(chunks, factor, engine="exact", **how).compute()
        for place in range(voxels.shape[still]):
            plane = np.ascontiguousarray(voxels.take([place], axis=still))
            alone = isovoxel.scale_array(plane, factor, engine="exact", **how).compute()
            check_bits(whole.take([place], axis=still), alone)


@pytest.mark.slow
def test_no_warning_comes_of_nan_that_signals(tmp_path: Path) -> None:
    """NumPy warns where it converts them: not in a job, its levels, `verify`, or what is drawn."""
    voxels = np.tile(volume("float32"), (2, 2, 2))
    for factor in ((1.0, 1.0, 1.0), (2.0, 1.0, 0.7)):
        for engine in IMAGES:
            out = tmp_path / f"{engine} {factor[0]}.zarr"
            isovoxel.scale(voxels, out, factor=factor, input_voxel_size=(1.0, 1.0, 1.0), engine=engine, levels=1)
            assert isovoxel.verify(out, against=voxels, samples=50).holds
            isovoxel.show(out)
