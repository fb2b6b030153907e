"""What lies at a place in the input lies there in every level of the output, whoever reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import isovoxel
from independent_readers import READERS, Seen

SHAPE = (24, 60, 64)
SIZE = (1.0, 0.3, 0.2)
BRIGHTEST = (11, 26, 37)
PLACE = np.multiply(BRIGHTEST, SIZE)
"""In micrometer, for the centre of voxel 0 is at 0."""

FACTORS = {
    "none": (1, 1, 1),
    "up": (2, 2, 2),
    "up by 3": (3, 3, 3),
    "planes": (4, 1, 1),
    "planes by 5": (5, 1, 1),
    "planes by 7.3": (7.3, 1, 1),
    "up, fractional": (3.7, 1.3, 1.3),
    "up, a little": (1.01, 1.02, 1.03),
    "up, anisotropic": (5, 2, 1.5),
    "down": (0.5, 0.5, 0.5),
    "down by 3": (1 / 3, 1 / 3, 1 / 3),
    "down, fractional": (0.77, 0.61, 0.53),
    "down, a little": (0.99, 0.98, 0.97),
    "down, anisotropic": (1, 0.202, 0.202),
    "down, planes": (0.41, 1, 1),
    "mixed": (2, 0.5, 0.5),
    "mixed, fractional": (2.3, 1, 0.7),
    "mixed, the other way": (0.6, 1.9, 2.1),
    "to cubes": (5, 1.5, 1),
    "to larger cubes": (2, 0.6, 0.4),
}


def blob() -> np.ndarray:
    """Return a blob around a voxel, of a few voxels' width, so that every level still has some of it."""
    places = np.meshgrid(*map(np.arange, SHAPE), indexing="ij", sparse=True)
    distance = sum(((p - c) / width) ** 2 for p, c, width in zip(places, BRIGHTEST, (2, 4, 4), strict=True))
    return (1000 * np.exp(-distance / 2)).astype(np.float32)


@pytest.fixture(scope="module", params=FACTORS)
def output(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the blob scaled, with further levels, by the engine that users get, or filtered where it shrinks."""
    factor = FACTORS[request.param]
    options: dict[str, Any] = {"antialias": True} if min(factor) < 1 else {}
    source = isovoxel.open_volume(blob(), voxel_size=SIZE, unit="um")
    out = tmp_path_factory.mktemp("landmark") / "out.zarr"
    return isovoxel.scale(source, out, factor=factor, levels=2, **options).path


def places(seen: Seen) -> tuple[np.ndarray, np.ndarray]:
    """Return where the brightest voxel is, and where the centre of all intensity."""
    if seen.origin is None:
        pytest.skip("napari-ome-zarr leaves out translations from version 0.9 on; 0.8 places what it reads")
    weight = seen.voxels.astype(np.float64) / seen.voxels.sum(dtype=np.float64)
    axes = [np.arange(n) * size + o for n, size, o in zip(weight.shape, seen.voxel_size, seen.origin, strict=True)]
    centre = [weight.sum(axis=tuple({0, 1, 2} - {i})) @ axis for i, axis in enumerate(axes)]
    brightest = np.unravel_index(np.argmax(weight), weight.shape)
    return np.array([axis[i] for axis, i in zip(axes, brightest, strict=True)]), np.array(centre)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("reader", READERS)
def test_a_landmark_stays_where_it_is(reader: str, output: Path) -> None:
    """The brightest voxel to half a voxel of each level, which is all that it can tell, and the centre to a tenth.

    napari draws coarser levels over all of the finest one, from whose extent theirs differ by up to half a voxel.
    """
    found = READERS[reader](output)
    assert len(found) == 3
    for level, seen in enumerate(found):
        brightest, centre = places(seen)
        size = np.array(seen.voxel_size)
        drawn = 0.5 if level and reader == "napari-ome-zarr" else 0.0
        assert (np.abs(brightest - PLACE) <= size * (0.5 + drawn) + 1e-6).all()
        assert (np.abs(centre - PLACE) <= size * (0.1 + drawn)).all()
