"""Further levels of an output, and how each is made of the one before.

1. Level k lies where the input would lie if it were scaled by 1 / 2^k of the factor (where the output has the voxels of
   another volume, that by 1 / 2^k): its shape is rounded once, half to
   even, so that its extent is the input's to within half a voxel of its own. Rounding at each level, as others do, down
   or up, adds up to a whole one.
2. So where an axis has an odd number of samples, the next level either leaves the last one out, or has a last voxel
   with only that one in it, which is then all it averages.
3. An axis is halved unless it has one voxel, or its voxels are coarser than the finest by more than the square root of
   2: so voxels become cubes, to within a factor of 2, and stay so.
4. A level is a job like any other: read from the level before, scaled by the engine `exact`, area for images, mode for
   labels. Blocks meet between two samples, so there is no halo.
5. Where shards allow it, level 1 has the blocks of the full level, halved, and each is made while that is in memory: so
   the full level, which may be larger than the disk's cache, is not read back. What was not made then, for memory was
   short or the job was interrupted in between, is made as in 4.
6. Blocks of the levels after that one are put together in memory of what blocks of the level before become, halved, as
   long as this is a whole number of voxels and memory suffices for the blocks that are open at a time.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np

from isovoxel.errors import DoesNotFitError, OptionError
from isovoxel.geometry.grid import Float3, Index3, VoxelGrid, ceil_div, triple
from isovoxel.planning.chunking import CHUNK, Storage, default_storage
from isovoxel.planning.memory import open_blocks
from isovoxel.planning.model import DeviceLimits, Encoded, HostLimits, Source
from isovoxel.planning.optimizer import make_plan
from isovoxel.planning.plan import Plan

LARGEST_SIDE = 256
"""Side in voxels that needs no further level: viewers show it at once."""
HALVED = ("uint8", "int8", "uint16", "int16")
"""Of what a block becomes one of the next level while it is in memory: integers whose sums have no rounding."""
LEAST_CHUNK = 32
"""Side below which chunks are not made smaller."""


class Decoded(NamedTuple):
    """How a GPU decodes a level that is read back."""

    encoded: Encoded
    """Its chunks."""
    device: DeviceLimits
    """The device's limits, with what is held to decode them."""
    host: HostLimits
    """The host's, likewise."""


def with_levels(
    plan: Plan,
    *,
    count: int | None,
    interpolation: str,
    device: DeviceLimits,
    host: HostLimits,
    chunk: Index3 | None,
    shard: Index3 | None,
    read_overhead: Callable[[Index3, Storage], int],
    decoded: Callable[[Plan, Plan], Decoded | None] = lambda _before, _level: None,
) -> Plan:
    """Return a plan with those of its further levels.

    Parameters
    ----------
    plan
        Of the full level.
    count
        How many further levels; None for as many as it takes until no side is longer than `LARGEST_SIDE`.
    interpolation
        "area" or "mode".
    device, host
        What may be used, in bytes.
    chunk, shard
        What the user wants, or None, as in `isovoxel.planning.chunking.default_storage`. A block reads eight times what
        it writes, so where they do not fit, a level has smaller shards, and then smaller chunks.
    read_overhead
        Returns the bytes that reading a box holds beside its voxels, of a level by its shape and storage.
    decoded
        Returns how a GPU decodes a level that is read back for the next one, by both plans, or None where none does.

    Raises
    ------
    OptionError
        If so many levels cannot be made.
    DoesNotFitError
        If not even one shard of a level fits.
    """
    further: list[Plan] = []
    base, by = (plan.output, (1.0, 1.0, 1.0)) if plan.regrids else (plan.source.grid, plan.factor)
    for level, (output, factor) in enumerate(level_grids(base, by, count), start=1):
        before = (further or [plan])[-1]
        source = Source(
            name=f"level {level - 1}",
            grid=before.output,
            dtype=plan.source.dtype,
            chunks=before.storage.chunk,
            read_overhead=read_overhead(before.output.shape, before.storage),
            identity={"level": level - 1},
            caches=True,
            series=plan.source.series,
        )
        for storage in _storages(output.shape, plan, chunk, shard):
            make = partial(
                make_plan,
                factor=factor,
                storage=storage,
                engine="exact",
                interpolation=interpolation,
                halo_mode="direct",
                output=output,
            )
            try:
                made = replace(make(source, device=device, host=host), level=level)
            except DoesNotFitError as error:
                refused = error
                continue
            if level == 1:
                made = _along(plan, made, fixed=shard is not None)
            else:
                made = _gathered(replace(plan, further=tuple(further)), made)
            if not (made.along or made.gathered) and (by_gpu := decoded(before, made)) is not None:
                with contextlib.suppress(DoesNotFitError):
                    encoded = replace(source, encoded=by_gpu.encoded, caches=False)
                    made = replace(make(encoded, device=by_gpu.device, host=by_gpu.host), level=level)
            further.append(made)
            break
        else:
            raise DoesNotFitError(f"of level {level}, {refused}; or leave it out with --levels {level - 1}")
    return replace(plan, further=tuple(further))


def halved_axes(plan: Plan) -> tuple[bool, bool, bool] | None:
    """Return along which axes blocks are to be halved, so that level 1 can be made of them, or None.

    None where it is made of them already, or cannot be, however the full level is cut.
    """
    if not plan.further or plan.further[0].along or not _adds(plan, plan.further[0]):
        return None
    return triple(f == 0.5 for f in plan.further[0].factor)


def _adds(before: Plan, made: Plan) -> bool:
    """Return whether a level is made of sums that `isovoxel.geometry.resampling` adds."""
    return made.interpolation == "area" and before.source.dtype in HALVED


def _along(before: Plan, made: Plan, *, fixed: bool) -> Plan:
    """Return the plan of the first further level with the blocks of the full one, halved, where it can have them.

    It can where means are made of integers that `isovoxel.geometry.resampling` adds, each block covers whole shards
    of it, in smaller shards than it would have unless the user has `fixed` them, and the host's memory suffices.
    """
    if not _adds(before, made):
        return made
    blocks, shards = [], []
    for f, b, n, m, s, c in zip(
        made.factor,
        before.block_shape,
        before.output.shape,
        made.output.shape,
        made.storage.shard,
        made.storage.chunk,
        strict=True,
    ):
        block, shard = m, s
        if b < n:
            block = b // 2 if f == 0.5 else b
            shard = s if fixed else next((k for k in range(s, 0, -c) if block % k == 0), s)
            if block % shard or (f == 0.5 and b % 2) or ceil_div(m, block) != ceil_div(n, b):
                return made
        blocks.append(block)
        shards.append(shard)
    storage = replace(made.storage, shard=triple(shards))
    along = replace(made, storage=storage, block_shape=triple(blocks), cache=0, along=True)
    with_it = replace(before, further=(along,))
    fits = all(plan.projected_host <= plan.host.allowed for plan in (along, with_it))
    return along if fits and not along.cost.excess(along.device, along.in_flight) else made


def _gathered(plan: Plan, made: Plan) -> Plan:
    """Return the plan of a further level after the first, whose blocks are put together in memory where they can be.

    They can where all levels before it are made in memory, each of their blocks becomes whole voxels, and the host's
    memory suffices.

    Parameters
    ----------
    plan
        Of the full level, with those of the levels before this one.
    made
        Of the level, as it is read back.
    """
    before = plan.further[-1]
    if plan.made_along != plan.further or not _adds(before, made):
        return made
    lengths = zip(made.factor, before.block_shape, before.output.shape, strict=True)
    if any(f == 0.5 and b < n and b % 2 for f, b, n in lengths):
        return made
    gathered = replace(made, gathered=open_blocks((*plan.further, made), plan.in_flight))
    with_it = replace(plan, further=(*plan.further, gathered))
    return gathered if with_it.projected_host <= with_it.host.allowed else made


def _storages(shape: Index3, plan: Plan, chunk: Index3 | None, shard: Index3 | None) -> Iterator[Storage]:
    """Yield how a level may be stored: as the full one, and then, where that does not fit, in smaller chunks."""
    while True:
        yield default_storage(
            shape,
            plan.source.itemsize,
            codec=plan.storage.codec_name,
            chunk=chunk,
            shard=shard,
            ome_zarr=plan.storage.ome_zarr,
            skip_empty=plan.storage.skip_empty,
        )
        z, y, x = chunk or (CHUNK, CHUNK, CHUNK)
        if max(z, y, x) <= LEAST_CHUNK:
            return
        chunk, shard = (ceil_div(z, 2), ceil_div(y, 2), ceil_div(x, 2)), None


def level_grids(source: VoxelGrid, factor: Float3, count: int | None) -> list[tuple[VoxelGrid, Float3]]:
    """Return where the voxels of each further level lie, and its factors from the level before.

    Parameters
    ----------
    source
        The input's grid.
    factor
        Samples of the full level per input sample, z, y, x.
    count
        As in `with_levels`.

    Raises
    ------
    OptionError
        If a level before the last has one voxel only.

    Examples
    --------
    >>> grid = VoxelGrid((100, 800, 900), (4.0, 1.0, 1.0))
    >>> [(level.shape, level.voxel_size, by) for level, by in level_grids(grid, (1.0, 1.0, 1.0), None)]
    [((100, 400, 450), (4.0, 2.0, 2.0), (1.0, 0.5, 0.5)), ((100, 200, 225), (4.0, 4.0, 4.0), (1.0, 0.5, 0.5))]
    """
    if count is not None:
        found = list(islice(_halved(source, factor), count))
        if len(found) < count:
            raise OptionError(
                f"levels is {count}, but level {len(found)} is a single voxel; choose at most {len(found)}, or auto"
            )
        return found
    found, shape = [], source.scaled(factor).shape
    halved = _halved(source, factor)
    while max(shape) > LARGEST_SIDE:
        found.append(next(halved))
        shape = found[-1][0].shape
    return found


def _halved(source: VoxelGrid, factor: Float3) -> Iterator[tuple[VoxelGrid, Float3]]:
    """Yield level after level, until one is a single voxel."""
    grid = source.scaled(factor)
    while True:
        # An axis of one voxel says nothing about how fine the others are.
        sizes = [size for size, n in zip(grid.voxel_size, grid.shape, strict=True) if n > 1]
        if not sizes:
            return
        coarsest = min(sizes) * math.sqrt(2)
        z, y, x = (
            0.5 if n > 1 and size <= coarsest else 1.0 for n, size in zip(grid.shape, grid.voxel_size, strict=True)
        )
        factor = (factor[0] * z, factor[1] * y, factor[2] * x)
        grid = source.scaled(factor)
        yield grid, (z, y, x)


def reading(before: Plan, after: Plan, lost: bytearray) -> bytearray:
    """Return a 1 for each block of a level that reads any of some blocks of the level before.

    Parameters
    ----------
    before, after
        The plans of two levels.
    lost
        A 1 for each of those blocks, in the plan's order.
    """
    found = np.frombuffer(bytes(lost), np.bool_).reshape(-1, *before.block_grid)
    for axis, (sampler, block) in enumerate(zip(after.samplers, before.block_shape, strict=True), start=1):
        span = sampler.spans(*sampler.axis.intervals(after.block_shape[axis - 1]))
        ends = zip(span.first // block, (span.last - 1) // block + 1, strict=True)
        along = np.moveaxis(found, axis, 0)
        found = np.moveaxis(np.stack([along[a:b].any(axis=0) for a, b in ends]), 0, axis)
    return bytearray(found.tobytes())
