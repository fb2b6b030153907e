"""Volumes like those of a microscope: smooth bright structures, Poisson noise, about 12 bits used of 16.

The structure is random at knots some voxels apart, and linear between them. Photons are counted, so the noise grows
with the square root of the brightness. No plane and no tile is a copy of another.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isovoxel.geometry.grid import Box, Float3, Index3, VoxelGrid
from isovoxel.output.ome_zarr import create_output, mark_complete
from isovoxel.output.writer import OmeZarrWriter
from isovoxel.planning.chunking import Storage

GRAIN = (6, 24, 24)
"""Voxels between the knots of the random structure."""
BRIGHTEST = 4095
STORAGE = Storage((64, 128, 128), (128, 512, 512), "lz4")
"""Chunks and shards of the inputs."""


def write_volume(path: Path, shape: Index3, voxel_size: Float3, *, threads: int, seed: int = 0) -> None:
    """Write a uint16 volume as OME-Zarr in chunks of (32, 128, 128), shard by shard on several threads."""
    grid, dtype = VoxelGrid(shape, voxel_size, unit="micrometer"), np.dtype("uint16")
    made = {"made by": "benchmarks.data", "seed": seed}
    create_output(path, levels=[(grid, STORAGE)], dtype=dtype, provenance=made)
    writer = OmeZarrWriter(path, grid=grid, dtype=dtype, storage=STORAGE)
    knots = _knots(shape, seed)

    def make(box: Box) -> None:
        writer.write(box, _voxels(knots, box, seed))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(make, Box.whole(shape).tiles(STORAGE.shard)))
    writer.close()
    mark_complete(path)


def voxels_of(shape: Index3, seed: int = 0) -> NDArray[np.uint16]:
    """Return a small volume in memory."""
    return _voxels(_knots(shape, seed), Box.whole(shape), seed)


def _knots(shape: Index3, seed: int) -> NDArray[np.float32]:
    """Return the structure's brightness at its knots: mostly background, some bright."""
    rng = np.random.default_rng(seed)
    size = tuple(n // g + 2 for n, g in zip(shape, GRAIN, strict=True))
    return (100 + 2500 * rng.beta(0.4, 2.0, size)).astype(np.float32)


def _voxels(knots: NDArray[np.float32], box: Box, seed: int) -> NDArray[np.uint16]:
    """Return the voxels of a box: the structure between its knots, and its photons' noise."""
    rng = np.random.Generator(np.random.SFC64([seed, *box.start]))
    (below, share), *in_plane = (
        _between(start, stop, grain) for start, stop, grain in zip(box.start, box.stop, GRAIN, strict=True)
    )
    # Between two planes of knots only the share of either changes.
    planes = {int(k): _plane(knots[k], *in_plane) for k in np.union1d(below, below + 1)}
    result = np.empty(box.shape, np.uint16)
    plane, noise, sigma = (np.empty(box.shape[1:], np.float32) for _ in range(3))
    for z, (k, f) in enumerate(zip(below.tolist(), share, strict=True)):
        np.multiply(planes[k], 1 - f, out=plane)
        plane += np.multiply(planes[k + 1], f, out=noise)
        rng.standard_normal(dtype=np.float32, out=noise)
        noise *= np.sqrt(plane, out=sigma)
        plane += noise
        np.clip(plane, 0, BRIGHTEST, out=result[z], casting="unsafe")
    return result


_Weights = tuple[NDArray[np.int64], NDArray[np.float32]]
"""The knot below each voxel of an axis, and the share of the one above."""


def _between(start: int, stop: int, grain: int) -> _Weights:
    below, rest = np.divmod(np.arange(start, stop), grain)
    return below, (rest / grain).astype(np.float32)


def _plane(knots: NDArray[np.float32], y: _Weights, x: _Weights) -> NDArray[np.float32]:
    """Return one plane of knots, linear between them along y and x."""
    for below, share in (y, x):  # each turn takes the first axis, and hands it on as the last
        weight = share[:, None]
        knots = (knots[below] * (1 - weight) + knots[below + 1] * weight).T
    return np.ascontiguousarray(knots)
