"""The bits of each algorithm are pinned: who changes them raises its revision, or they were changed by mistake.

On a CPU device only, and of voxels whose sums are exact in any order: so the device's arithmetic has no say.
"""

from __future__ import annotations

import hashlib
from typing import Any

import dask.array as da
import numpy as np
import pytest
from numpy.typing import NDArray

import isovoxel
from isovoxel.engines.devices import find_device
from isovoxel.planning.model import BOUNDARIES, ENGINES, FILTERS, MOVES
from isovoxel.planning.plan import Plan
from strategies import cut

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32")
CASES = [
    (engine, interpolation, antialias, boundary)
    for engine, interpolations in ENGINES.items()
    for interpolation in interpolations
    for antialias in ((False, True) if engine == "exact" and interpolation in FILTERS else (False,))
    for boundary in BOUNDARIES
]
BITS = {
    "cle linear nearest": "e967370c 5bad46eb c4ae3bc8 770461d3 f5b742d2 cfff6afe 70b24af3",
    "cle linear constant": "000a7c11 76a42827 03d1c421 12125f0e 932a6c1a 38e626cf 832656e2",
    "cle nearest nearest": "4b2f4af2 25b45207 90665198 f64393d0 cdbbfafb aebb97ae 180fd033",
    "cle nearest constant": "4b2f4af2 25b45207 90665198 f64393d0 cdbbfafb aebb97ae 180fd033",
    "exact linear nearest": "a98db204 9d0d6e2d 07e30739 7c4d3e42 a0f7d889 0b4bc14e 70b24af3",
    "exact linear constant": "3c60456e dbf382d6 614f36fb 38636571 26ac4454 1c97459c 832656e2",
    "exact linear antialias nearest": "390b209b a177a2ba b04257cc 083436cf 2766582a 0c0b9c87 e7deb65c",
    "exact linear antialias constant": "e95f6c2a 44fb8622 b4f83123 21019076 3c6e4e33 181d5f34 2ee56bcf",
    "exact nearest nearest": "8f08ed86 986a2fc2 dc5125bb 2968a020 228d0e2c ea88b14d 180fd033 20e73ea1 9c408da3",
    "exact nearest constant": "8f08ed86 986a2fc2 dc5125bb 2968a020 228d0e2c ea88b14d 180fd033 20e73ea1 9c408da3",
    "exact cubic nearest": "978bcfad fde37e62 13efd265 0262a145 670da498 266ed5d8 07e3732a",
    "exact cubic constant": "f2680114 91cc4d72 71d236e3 72e42b07 62663851 bd2007c6 c72164e7",
    "exact cubic antialias nearest": "69fc1d0b df2ccd66 97121490 7d4de990 d44d5e88 2b44ec8b 656a7553",
    "exact cubic antialias constant": "536e8f37 38bed4aa 6418766f 02a64d13 580488ea cd001c71 78d7e9fd",
    "exact lanczos3 nearest": "8e4513a0 aa0ab5cb cd2be47c f9344e87 e121c61c e87f1893 22c81572",
    "exact lanczos3 constant": "f373c62c e3e735fb 00f32449 eae197a5 1e309e11 e648c21e 840a18bc",
    "exact lanczos3 antialias nearest": "c6a83344 f0b85ae1 3d214a2e bfe3a7e2 30595c0a 71e3f2f2 4e161abb",
    "exact lanczos3 antialias constant": "1ca7d88a 5380fbda e182df40 1cc1469d 218d381c f3bfe0d0 b333634b",
    "exact area nearest": "683a8720 8c94e28b e9053502 9fcd2b06 2d4711ad 41776c9d c9fa77c7",
    "exact area constant": "850c5b1c 9a25238d 36fdec93 fe05f7dc dfa4ab5b 8fad470d c9fa77c7",
    "exact mode nearest": "b7898d45 971cc438 f91b2ea1 cdb919ea 7243f5cf aed268c6 dbb349f7 272ea407",
    "exact mode constant": "b7898d45 971cc438 f91b2ea1 cdb919ea 7243f5cf aed268c6 dbb349f7 272ea407",
    "exact smooth nearest": "3b668ba1 0a5d309c e7f88f91 a23c839b e84f481e d504a10d f57d937b 1f284a61",
    "exact smooth constant": "ddc5f3b9 1e27f8f1 cbd4ffb9 26a47fa3 6ea75900 08bfb89f 8ed18667 dec5849c",
}
"""Digests of what each algorithm makes of its dtypes, in order: of several revisions, "one/another", today's last."""


def dtypes(engine: str, interpolation: str) -> tuple[str, ...]:
    """Return the dtypes that an algorithm takes."""
    integers = DTYPES[:-1] if interpolation in ("mode", "smooth") else DTYPES
    return integers + (("uint64", "int64") if engine == "exact" and interpolation in MOVES else ())


def voxels(dtype: str, interpolation: str) -> NDArray[Any]:
    """Return voxels that are multiples of 16, or of 64: so what is made of them by halves and quarters is whole."""
    step, most = (16, 16) if np.dtype(dtype).itemsize == 1 else (64, 500)
    data = np.random.default_rng(5).integers(0, most, (6, 9, 10))
    if interpolation in ("mode", "smooth"):  # few labels, or none has a majority
        data %= 3
    return ((data - (0 if np.dtype(dtype).kind == "u" else most // 2)) * step).astype(dtype)


def by(interpolation: str) -> tuple[float, float, float]:
    """Return factors that an algorithm takes: powers of 2."""
    return (2.0, 4.0, 1.0) if interpolation == "smooth" else (2.0, 0.5, 1.0)


def bits(engine: str, interpolation: str, boundary: str, dtype: str, *, antialias: bool) -> str:
    """Return a digest of some voxels that are scaled; integers by exact also by factors that are no powers of 2."""
    factors = [by(interpolation)]
    if np.dtype(dtype).kind != "f" and engine == "exact":
        factors.append((1.7, 1.3, 1.6 if interpolation == "smooth" else 0.6))
    digest = hashlib.sha256()
    for factor in factors:
        scaled = isovoxel.scale_array(
            da.from_array(voxels(dtype, interpolation), chunks=-1),
            factor,
            engine=engine,
            interpolation=interpolation,
            boundary=boundary,
            antialias=antialias,
            labels=np.dtype(dtype).itemsize == 8,
        )
        digest.update(scaled.compute().tobytes())
    return digest.hexdigest()[:8]


def plan(engine: str, interpolation: str, boundary: str, dtype: str, *, antialias: bool) -> Plan:
    """Return a plan that this algorithm carries out."""
    return cut(
        (6, 9, 10),
        by(interpolation),
        (12, 5, 10),
        dtype,
        engine=engine,
        interpolation=interpolation,
        boundary=boundary,
        antialias=antialias,
    )


@pytest.mark.sampled(1)
@pytest.mark.skipif(find_device().kind != "cpu", reason="the bits of a GPU's texture unit are its own")
@pytest.mark.parametrize(("engine", "interpolation", "antialias", "boundary"), CASES)
def test_bits_are_those_of_their_revision(engine: str, interpolation: str, boundary: str, *, antialias: bool) -> None:
    """Whoever makes others raises the revision: by a `Change` in `isovoxel.planning.plan`."""
    key = f"{engine} {interpolation}{' antialias' * antialias} {boundary}"
    for dtype, pinned in zip(dtypes(engine, interpolation), BITS[key].split(), strict=True):
        digests = pinned.split("/")
        options = (engine, interpolation, boundary, dtype)
        found, revision = bits(*options, antialias=antialias), plan(*options, antialias=antialias).revision
        assert (found, revision) == (digests[-1], len(digests)), (
            f"{key} makes other bits of {dtype}: unless that is a mistake, append a Change to "
            f"isovoxel.planning.optimizer.CHANGES, and /{found} to what is pinned here"
        )


def test_every_algorithm_is_pinned() -> None:
    """A new one too."""
    assert BITS.keys() == {f"{e} {i}{' antialias' * a} {b}" for e, i, a, b in CASES}
