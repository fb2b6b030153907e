"""Choose the blocks of a plan: of those that fit, the ones that finish first.

They are large, so that little is read twice, and not so few that some threads have nothing left to do.

1. Along each axis, a block is a whole number of shards: candidates are the counts that cut the axis evenly. Where a
   block of the next level is to be made of it, half of it is a whole number of chunks, too.
2. For every candidate and axis, count what its blocks read: the longest span (for memory) and the sum of all spans
   rounded out to the source's chunks (for what is decoded). Both are products over the axes.
3. Where the source keeps decoded chunks, memory saves decoding. Blocks go z slowest, so what neighbours along x
   share is kept while some blocks pass, along y while a row of blocks passes, along z while a layer does. An axis
   whose shared chunks are kept is decoded once, whatever its blocks.
4. Of all combinations that fit device and host, take the one with the least::

       (DECODE * voxels decoded + KEEP * voxels kept + voxels written + blocks * BLOCK_OVERHEAD)
       * (blocks + (threads - 1) / 2) / blocks

   The last factor is that of threads which take block after block: they do not end together, and wait half a block
   for the last, on average. Under cle a block costs CLE_OVERHEAD more for each thread, and PoCL compiles cle's kernels
   anew for blocks of another shape: COMPILE for each. Where memory is short, half as many blocks in flight are tried,
   and so on: what only their threads do counts for more then, while all cores encode.
5. Where nothing fits, try smaller shards (unless the user chose them), then fewer blocks in flight; where still
   nothing fits, refuse with the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import DoesNotFitError, OptionError
from isovoxel.geometry.grid import AXES, Float3, Index3, Sampler, VoxelGrid, ceil_div, triple
from isovoxel.planning.chunking import Storage, smaller
from isovoxel.planning.memory import human_bytes
from isovoxel.planning.model import LANES, DeviceLimits, HostLimits, Source, check_options
from isovoxel.planning.plan import Plan

MIB = 2**20
DECODE = 0.5
"""What decoding a voxel costs, where scaling, encoding and writing one cost 1 (measured, lz4)."""
KEEP = 0.5
"""What room for a decoded voxel costs: memory that is touched for the first time is as slow as decoding (measured)."""
BLOCK_OVERHEAD = 2**20
"""What a block costs beside its voxels, in voxels: scheduling, allocations and transfers take a few milliseconds."""
CLE_OVERHEAD = 2**18
"""What a block under cle costs each thread, in voxels: 2 ms of Python, in which no other thread runs any (measured)."""
COMPILE = 2**27
"""What compiling cle's kernel once more costs on a CPU, in voxels: a quarter of a second (measured, PoCL)."""
MAX_GRAPH_BLOCKS = 5_000
"""Most blocks for which `auto` builds a dask graph: at 25 tasks a block (measured) it then takes seconds to make."""
MAX_SHARDS = 1_000_000
"""Most shards along one axis; more is a mistake in the zoom or the shard, and would take minutes to plan."""
KEPT_CHUNK = 2**12
"""Bytes allowed for keeping a decoded chunk beside its voxels."""
CANDIDATES = 48
"""Most block lengths tried along one axis."""


@dataclass(frozen=True)
class _Candidates:
    """Block lengths along one axis, and what each reads."""

    lengths: list[int]
    read: NDArray[np.float64]
    """Most voxels that a block reads."""
    padded: NDArray[np.float64]
    """The same with its pads."""
    chunked: NDArray[np.float64]
    """The same with the rest of its chunks."""
    decoded: NDArray[np.float64]
    """Voxels of the chunks of all blocks."""
    blocks: NDArray[np.float64]
    """How many blocks there are."""
    sizes: NDArray[np.float64]
    """How many different lengths the blocks have: the last may be shorter."""


def make_plan(
    source: Source,
    factor: Float3,
    *,
    storage: Storage,
    device: DeviceLimits,
    host: HostLimits,
    engine: str = "cle",
    interpolation: str = "linear",
    antialias: bool = False,
    boundary: str = "nearest",
    halo_mode: str = "auto",
    fixed_storage: bool = False,
    output: VoxelGrid | None = None,
    shift: Float3 = (0.0, 0.0, 0.0),
    halved: tuple[bool, bool, bool] = (False, False, False),
    library: str = "",
) -> Plan:
    """Plan how `source` is scaled by `factor` within the limits.

    Parameters
    ----------
    source
        The input's grid, dtype and chunks.
    factor
        Output samples per input sample, z, y, x.
    storage
        Chunks, shards and codec of the output.
    device, host
        What may be used, in bytes.
    engine, interpolation, antialias, boundary, halo_mode
        As in `Plan`; halo mode "auto" takes map_overlap where one graph can hold the job.
    fixed_storage
        Whether the user chose the shards, so that smaller ones must not be tried.
    output
        Where the output's voxels lie; by default `source.grid.scaled(factor)`.
    shift
        As in `Plan`; only engine exact has one, and reads directly.
    halved
        Along which axes half a block must be whole chunks too, so that a block of the next level is made of it.
    library
        As in `Plan`.

    Raises
    ------
    OptionError
        If an option is none of those that exist, or the output has too many shards.
    DoesNotFitError
        If not even one shard fits; the message says what it takes, what is allowed, and what would help.
    """
    chosen = {"engine": engine, "interpolation": interpolation, "boundary": boundary, "halo": halo_mode}
    check_options(**chosen, antialias=antialias, factor=factor)
    draft = Plan(
        source=source,
        output=output or source.grid.scaled(factor),
        factor=factor,
        interpolation=interpolation,
        boundary=boundary,
        engine=engine,
        antialias=antialias,
        shift=shift,
        storage=storage,
        block_shape=storage.shard,
        in_flight=host.threads,
        halo_mode="direct" if halo_mode == "auto" else halo_mode,
        window=(1, 1, 1),
        device=device,
        host=host,
        helpers=host.helpers,
        library=library,
    )
    draft = replace(draft, revision=1 + sum(change.concerns(draft) for change in CHANGES))
    for name, m, s in zip(AXES, draft.output.shape, storage.shard, strict=True):
        if ceil_div(m, s) > MAX_SHARDS:
            files = "shards" if storage.sharded else "chunks"
            raise OptionError(
                f"the output would have {ceil_div(m, s):,} {files} along {name}, more than {MAX_SHARDS:,}; "
                f"choose a smaller zoom or larger {files}"
            )
    fitted = _fit(draft, halved, fixed_storage=fixed_storage)
    if halo_mode == "direct":
        return fitted
    if halo_mode == "auto":
        overlapped = replace(fitted, halo_mode="map_overlap", window=fitted.block_grid)
        fits = overlapped.projected_host <= host.allowed and fitted.n_blocks <= MAX_GRAPH_BLOCKS
        return overlapped if fits and not too_thin(overlapped) else fitted
    if reason := too_thin(fitted):
        raise DoesNotFitError(f"{reason}; use --halo direct, or larger {'--shard' if storage.sharded else '--chunk'}")
    return replace(fitted, window=_window(fitted))


def plan_chunks(
    source: Source,
    factor: Float3,
    *,
    chunks: Index3,
    fixed: bool,
    device: DeviceLimits,
    host: HostLimits,
    engine: str = "cle",
    interpolation: str = "linear",
    antialias: bool = False,
    boundary: str = "nearest",
    output: VoxelGrid | None = None,
    shift: Float3 = (0.0, 0.0, 0.0),
) -> Plan:
    """Plan one dask graph whose blocks are `chunks`, or the largest halves of them that fit the device.

    The host's memory is planned by the caller, who computes the graph; the other parameters are as in `make_plan`.

    Raises
    ------
    OptionError
        If an option is none of those that exist.
    DoesNotFitError
        If `chunks` are `fixed` and do not fit the device.
    """
    check_options(engine=engine, interpolation=interpolation, antialias=antialias, boundary=boundary, factor=factor)
    output = output or source.grid.scaled(factor)
    # A chunk of its own length is one storage chunk and one shard: nothing is stored here.
    chunks = triple(map(min, chunks, output.shape))
    plan = Plan(
        source=source,
        output=output,
        factor=factor,
        interpolation=interpolation,
        boundary=boundary,
        engine=engine,
        antialias=antialias,
        shift=shift,
        storage=Storage(chunks, chunks),
        block_shape=chunks,
        in_flight=host.threads,
        halo_mode="direct",
        window=(1, 1, 1),
        device=device,
        host=host,
    )
    while excess := plan.cost.excess(device):
        longest_side = max(plan.block_shape)
        if fixed or longest_side == 1:
            raise DoesNotFitError(f"a chunk of {plan.block_shape} output voxels takes {excess}; choose smaller chunks")
        halves = triple(ceil_div(n, 2) if n == longest_side else n for n in plan.block_shape)
        plan = replace(plan, storage=Storage(halves, halves), block_shape=halves)
    return plan


def _fit(draft: Plan, halved: tuple[bool, bool, bool], *, fixed_storage: bool) -> Plan:
    """Return the draft with the best storage, number of blocks in flight and block shape that fit."""
    while True:
        storage: Storage | None = draft.storage
        while storage is not None:
            if found := _best(replace(draft, storage=storage), halved):
                return found.plan
            storage = None if fixed_storage else smaller(storage)
        if draft.in_flight == 1:
            raise DoesNotFitError(_refusal(draft, fixed_storage=fixed_storage))
        in_flight = draft.in_flight // 2
        draft = replace(draft, in_flight=in_flight, helpers=min(draft.helpers, in_flight - 1))


class _Found(NamedTuple):
    """A plan that fits."""

    plan: Plan
    score: float
    """What it costs; see the module."""
    first: bool
    """Whether none is better that does not fit."""


def _best(draft: Plan, halved: tuple[bool, bool, bool]) -> _Found | None:
    """Return the draft with the number of blocks in flight, block shape and cache of the least score that fits.

    With fewer blocks in flight these are larger; then fewer threads read, and more help to encode, as many at a time as
    shards have chunks. A GPU that encodes needs no help, but large shards, and many blocks in flight, most of which
    wait for it.
    """
    best = _best_of(draft, halved, draft.in_flight)
    in_flight, by_gpu = draft.in_flight // 2, bool(draft.device.encoding)
    encoding = draft.storage.chunks_per_shard if draft.helpers else 1
    while in_flight > 1 and (best is None if by_gpu else best and not best.first):
        if not by_gpu and in_flight * encoding < draft.in_flight:
            break
        helpers = min(draft.helpers, in_flight - 1) if by_gpu else draft.helpers
        fewer = _best_of(replace(draft, in_flight=in_flight, helpers=helpers), halved, draft.in_flight)
        if fewer and (best is None or fewer.score < best.score):
            best = fewer
        in_flight //= 2
    return best


def _best_of(draft: Plan, halved: tuple[bool, bool, bool], threads: int) -> _Found | None:
    """Return the draft with the block shape and cache of the least score that fits, or None where no shard fits.

    So many threads could work; as many as blocks are in flight read.
    """
    # Whole shards, and two chunks where a side is halved.
    cuts = zip(draft.storage.shard, draft.storage.chunk, halved, strict=True)
    steps = (math.lcm(shard, 2 * chunk) if half else shard for shard, chunk, half in cuts)
    sides = zip(draft.samplers, draft.source.chunks, steps, *draft.source.beside, strict=True)
    z, y, x = axes = [_candidates(*each) for each in sides]
    # As float64, which holds counts that overflow 64-bit integers; whether one fits is checked in exact integers.
    written = _product(*(np.array(c.lengths, dtype=np.float64) for c in axes))
    volumes = draft.source.n_volumes
    blocks = volumes * _product(z.blocks, y.blocks, x.blocks)
    in_flight = np.minimum(draft.in_flight, blocks)
    cached = _caches(axes, draft, in_flight) if draft.source.caches else np.zeros_like(in_flight)[None]
    # The last axes are decoded once, none or one or all.
    along = list(enumerate(zip(axes, draft.source.decoded_shape, strict=True)))
    decoded = volumes * np.stack(
        [
            _product(*(np.full_like(c.decoded, n) if axis >= len(AXES) - kept else c.decoded for axis, (c, n) in along))
            for kept in range(len(cached))
        ]
    )

    kept, slower = cached / draft.source.itemsize, threads / draft.in_flight
    overhead = BLOCK_OVERHEAD + (CLE_OVERHEAD * in_flight if draft.engine == "cle" else 0)
    reading = DECODE * decoded + KEEP * kept + blocks * overhead
    work = slower * reading + volumes * math.prod(draft.output.shape)
    score = work * (blocks + (draft.in_flight * draft.host.workers - 1) / 2) / blocks
    if draft.engine == "cle" and draft.device.kind == "cpu":
        score = score + COMPILE * _product(z.sizes, y.sizes, x.sizes)

    # A first sieve, so that few need the exact check: what all engines hold of input and output must fit.
    itemsize, device, host = draft.source.itemsize, draft.device, draft.host
    read = itemsize * _product(z.read, y.read, x.read)
    written = itemsize * written
    on_device = LANES[device.kind] * (read + written) + (device.kind == "gpu") * in_flight * (read + written)
    on_host = host.baseline + cached + in_flight * (read + draft.source.read_overhead)
    if not draft.keeps_blocks:
        on_host = on_host + in_flight * written
    small = written <= device.largest_allocation
    roomy = small & (read <= device.largest_allocation) & (on_host < host.allowed + 1)
    roomy &= device.taken + on_device <= device.allowed
    eligible = np.flatnonzero(np.broadcast_to(roomy, score.shape))
    blocks = np.broadcast_to(blocks, score.shape)
    least = np.where(small, score, np.inf).min()
    for flat in eligible[np.lexsort((blocks.flat[eligible], cached.flat[eligible], score.flat[eligible]))]:
        _, i, j, k = (int(n) for n in np.unravel_index(flat, score.shape))
        shape, cache, at_once = (z.lengths[i], y.lengths[j], x.lengths[k]), int(cached.flat[flat]), in_flight[i, j, k]
        if _fits(draft, axes, (i, j, k), shape, cache, int(at_once)):
            plan = replace(draft, block_shape=shape, cache=cache, in_flight=int(at_once))
            return _Found(plan, float(score.flat[flat]), bool(score.flat[flat] <= least))
    return None


def _caches(axes: Sequence[_Candidates], draft: Plan, in_flight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the bytes to keep nothing, or what neighbours share along x, y and x, or all axes, for all candidates."""
    z, y, x = (c.chunked for c in axes)
    voxels = math.prod(draft.source.chunks)
    itemsize = draft.source.itemsize + KEPT_CHUNK / voxels
    _, ny, nx = (np.full_like(c.chunked, n) for c, n in zip(axes, draft.source.decoded_shape, strict=True))
    passing = itemsize * (in_flight + 1) * _product(z, y, x)
    row, layer = itemsize * _product(z, y, nx), itemsize * _product(z, ny, nx)
    return np.stack([np.zeros_like(in_flight), passing, passing + row, passing + row + layer])


def _fits(draft: Plan, axes: Sequence[_Candidates], at: Index3, shape: Index3, cache: int, in_flight: int) -> bool:
    """Return whether blocks of this shape fit device and host, in exact integers."""
    read, padded = (
        triple(int(getattr(c, name)[i]) for c, i in zip(axes, at, strict=True)) for name in ("read", "padded")
    )
    cost = draft.cost_of(read=read, padded=padded, written=shape)
    held = in_flight * draft.source.itemsize * math.prod(read) if draft.halo_mode == "map_overlap" else 0
    fits = draft.projected_for(cost, in_flight, held + cache) <= draft.host.allowed
    return fits and not cost.excess(draft.device, in_flight)


def _candidates(sampler: Sampler, chunk: int, step: int, before: int, after: int) -> _Candidates:
    """Return the block lengths worth trying along one axis, longest first: multiples of a step.

    The first chunk has so many voxels before the volume, and the last so many after it, which are decoded as well.
    """
    axis = sampler.axis
    steps = ceil_div(axis.m, step)
    counts = np.unique(np.geomspace(1, steps, CANDIDATES).round().astype(np.int64))
    lengths = sorted({min(axis.m, ceil_div(steps, int(n)) * step) for n in counts}, reverse=True)
    rows = []
    for length in lengths:
        span = sampler.spans(*axis.intervals(length))
        ends = np.minimum(before + axis.n + after, -(-(before + span.last) // chunk) * chunk)
        chunked = ends - (before + span.first) // chunk * chunk
        sizes = 2 if axis.m % length else 1
        rows.append((*span.longest(), int(chunked.max()), int(chunked.sum()), len(span.first), sizes))
    return _Candidates(lengths, *np.array(rows, dtype=np.float64).T)


def _product(z: NDArray[np.float64], y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    product: NDArray[np.float64] = z[:, None, None] * y[None, :, None] * x[None, None, :]
    return product


def too_thin(plan: Plan) -> str:
    """Return why map_overlap cannot serve these blocks, or nothing: dask takes a halo from the next block only."""
    for name, axis, length, depth in zip(AXES, plan.axes, plan.block_shape, plan.halo, strict=True):
        _, stops = axis.intervals(length)
        thinnest = int(np.diff(axis.cuts(stops), prepend=0).min())
        if len(stops) > 1 and thinnest < max(1, *depth):
            return f"map_overlap cannot take a halo of {max(depth)} along {name} from blocks of {thinnest} input voxels"
    return ""


def _window(plan: Plan) -> Index3:
    """Return the largest box of blocks whose input may be held at once: whole rows first, then planes.

    It grows along x, then y, then z, doubling, so that windows are long where the source is contiguous.
    """
    window = [1, 1, 1]
    for axis in (2, 1, 0):
        while window[axis] < plan.block_grid[axis]:
            wider = window.copy()
            wider[axis] = min(2 * window[axis], plan.block_grid[axis])
            candidate = replace(plan, window=triple(wider))
            if candidate.projected_host > plan.host.allowed:
                return triple(window)
            window = wider
    return triple(window)


def _refusal(draft: Plan, *, fixed_storage: bool) -> str:
    """Return why the smallest block does not fit, with both numbers and the remedy."""
    storage = draft.storage
    while not fixed_storage and (less := smaller(storage)):
        storage = less
    shape = triple(map(min, storage.shard, draft.output.shape))
    least = replace(draft, storage=storage, block_shape=shape, in_flight=1)
    file = "shard" if storage.sharded else "chunk"
    smaller_files = f"a smaller --{file}"
    what = f"no block fits: one {file} of {shape} voxels takes "
    if excess := least.cost.excess(draft.device):
        remedy = smaller_files if fixed_storage or math.prod(shape) > 1 else "a smaller zoom"
        return f"{what}{excess}; choose {remedy}, more --device-memory or another --device"
    return (
        f"{what}{human_bytes(least.projected_host)} of host memory, {human_bytes(draft.host.baseline)} of it for "
        "Python, libraries, the device's driver and what this process holds already; "
        f"{human_bytes(draft.host.allowed)} are allowed; "
        f"choose --memory {ceil_div(least.projected_host, MIB)}MiB or more, or {smaller_files}"
    )


@dataclass(frozen=True)
class Change:
    """A change of the bits that some plans make."""

    what: str
    """What is other than before, in a clause."""
    concerns: Callable[[Plan], bool]
    """Returns whether a plan makes other bits since: by engine, interpolation, boundary, dtype, factor."""


CHANGES: tuple[Change, ...] = ()
"""All changes since 0.1, in their order; one is never removed."""
