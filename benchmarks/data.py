"""Volumes like those of a microscope: smooth bright structures, Poisson noise, about 12 bits used of 16."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isovoxel.geometry.box import Box, Index3
from isovoxel.geometry.grid import Float3, VoxelGrid
from isovoxel.planning.storage import Storage
from isovoxel.store.writer import OmeZarrWriter

GRAIN = (6, 24, 24)
"""Voxels between the knots of the random structure."""


def write_volume(path: Path, shape: Index3, voxel_size: Float3, *, threads: int, seed: int = 0) -> None:
    """Write a uint16 volume as OME-Zarr in chunks of (32, 128, 128), shard by shard on several threads."""
    storage = Storage((32, 128, 128), (64, 512, 512), "lz4")
    writer = OmeZarrWriter.create(
        path,
        grid=VoxelGrid(shape, voxel_size, unit="micrometer"),
        dtype=np.dtype("uint16"),
        storage=storage,
        provenance={"made by": "benchmarks.data", "seed": seed},
    )
    knots = _knots(shape, seed)

    def make(box: Box) -> None:
        writer.write(box, _voxels(knots, box, seed))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(make, Box.whole(shape).tiles(storage.shard)))
    writer.finish()


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
    rng = np.random.default_rng([seed, *box.start])
    weights = []
    for start, stop, grain, count in zip(box.start, box.stop, GRAIN, knots.shape, strict=True):
        position = np.arange(start, stop) / grain
        below = position.astype(int)
        matrix = np.zeros((stop - start, count), np.float32)
        rows = np.arange(stop - start)
        matrix[rows, below] = 1 - (position - below)
        matrix[rows, below + 1] += position - below
        weights.append(matrix)
    result = np.empty(box.shape, np.uint16)
    for z, row in enumerate(weights[0]):
        used = np.flatnonzero(row)
        plane = weights[1] @ np.tensordot(row[used], knots[used], 1) @ weights[2].T
        plane += np.sqrt(plane) * rng.standard_normal(plane.shape, np.float32)
        result[z] = np.clip(plane, 0, 4095)
    return result
