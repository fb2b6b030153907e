"""Display windows of channels: from their darkest to their brightest voxels, except for a few of either.

Some chunks of the full level are read back when it is complete, all where there are few, else at random, always the
same ones, on as many threads as have made blocks. So this takes a moment, however large the volume, and a job that is
interrupted meanwhile does it again when it goes on. Looking at every block while it is in memory would take every
thread more time, and the ledger more room, for what few chunks tell as well; the coarsest level is at hand, but its
means hide what is small and bright.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from isovoxel.geometry.grid import Box, ceil_div
from isovoxel.metadata.series import DisplayWindow
from isovoxel.object_store.addresses import Place
from isovoxel.object_store.retries import map_in_order, retry
from isovoxel.output.shard_store import level_path
from isovoxel.planning.plan import Plan
from isovoxel.readers.base import Volume
from isovoxel.readers.zarr_array import open_written

MOST_CHUNKS = 16
"""How many chunks are read for a channel."""
MOST_VOXELS = 2**13
"""How many voxels of a chunk count for the percentiles."""
COPIES = 3
"""How often a chunk is held for each thread: what is read, which of it are numbers, and these."""
PERCENTILES = (0.1, 99.9)
"""How many of a hundred voxels may be shown as black, and from which one on they may be shown as the brightest."""


def display_windows(output: Place, plan: Plan) -> list[DisplayWindow]:
    """Return the window of each channel, or of the only one.

    Parameters
    ----------
    output
        The OME-Zarr, all shards of which are written.
    plan
        That of its full level.

    Raises
    ------
    InputError
        If a chunk cannot be read back.
    """
    place, source = output / level_path(plan.level), plan.source
    volume = open_written(place, plan.output.shape, np.dtype(source.dtype), plan.storage, source.series)
    channels = dict(plan.source.series).get("c", 1)
    takes = volume.read_overhead + COPIES * math.prod(volume.chunks) * volume.dtype.itemsize
    threads = max(1, min(plan.in_flight, plan.in_flight * plan.cost.host // takes))
    windows = []
    for channel in range(channels):
        kept: list[NDArray[np.float64]] = []
        with map_in_order(partial(_some_voxels, volume), _some_chunks(plan, channel, channels), threads) as results:
            low, high = math.inf, -math.inf
            for voxels, least, most in results:
                kept.append(voxels)
                low, high = min(low, least), max(high, most)
        windows.append(_window(kept, low, high))
    return windows


def _some_voxels(volume: Volume, chunk: Box) -> tuple[NDArray[np.float64], float, float]:
    """Return some of the numbers in a chunk, and the least and the largest of all."""
    voxels = retry(partial(volume.read, chunk)).reshape(-1)
    if voxels.dtype.kind == "f":
        voxels = voxels[np.isfinite(voxels)]
    if not voxels.size:
        return np.empty(0), math.inf, -math.inf
    some = voxels[:: ceil_div(voxels.size, MOST_VOXELS)].astype(np.float64)
    return some, float(voxels.min()), float(voxels.max())


def _some_chunks(plan: Plan, channel: int, channels: int) -> Iterator[Box]:
    """Yield chunks of a channel, at random where there are many."""
    counts = [ceil_div(n, c) for n, c in zip(plan.output.shape, plan.storage.chunk, strict=True)]
    of_one = math.prod(counts)
    every = of_one * plan.source.n_volumes // channels
    chosen: Sequence[int] = range(every)
    if every > MOST_CHUNKS:
        chosen = sorted(set(np.random.default_rng(0).integers(0, every, MOST_CHUNKS).tolist()))
    for index in chosen:
        time, inside = divmod(index, of_one)
        places = np.unravel_index(inside, counts)
        z, y, x = (int(i) * c for i, c in zip(places, plan.storage.chunk, strict=True))
        dz, dy, dx = plan.storage.chunk
        # Channels are counted fastest.
        box = Box((z, y, x), (z + dz, y + dy, x + dx), time * channels + channel)
        yield box & Box.whole(plan.output.shape)


def _window(kept: list[NDArray[np.float64]], low: float, high: float) -> DisplayWindow:
    """Return what of some voxels between two values is shown; of no numbers at all, from 0 to 1."""
    if low > high:
        return DisplayWindow(0.0, 0.0, 1.0, 1.0)
    start, end = (float(value) for value in np.percentile(np.concatenate(kept), PERCENTILES))
    if start == end:  # one value nearly everywhere: what is brighter must show
        end = high if high > start else start + 1.0
    return DisplayWindow(low, start, end, max(high, end))
