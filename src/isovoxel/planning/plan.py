"""`Plan`: which output box every block writes, which input box it reads, and how many bytes that takes.

A `Plan` is a frozen value made of numbers and names: it can be printed, compared, stored as JSON and sent to a worker.
Blocks are computed on demand from their index, so a plan of a petabyte is as small as that of a thumbnail.

A fingerprint holds the revision of what makes a plan's voxels, not the version of isovoxel. So a release resumes the
jobs of those before, and recognises their outputs, unless it would make other bits. A change of the bits of an
algorithm appends a `Change` to `CHANGES`, which says of which plans. The revision of a plan is 1, that of version 0.1,
and one more for each change that concerns it. `tests/engines/test_revisions.py` pins the bits of every algorithm.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, cycle, takewhile
from typing import Any

import numpy as np

from isovoxel.geometry.grid import AXES, Axis, Box, Float3, Index3, Sampler, VoxelGrid, ceil_div, halo, triple
from isovoxel.geometry.resampling import Table, Texture, accumulator, passes_at_once
from isovoxel.notebook import InNotebooks
from isovoxel.planning.chunking import (
    CHECKSUM_BYTES,
    INDEX_BYTES,
    Storage,
    batch_chunks,
    helper_overhead,
    result_margin,
    seal_overhead,
    write_overhead,
)
from isovoxel.planning.memory import BlockCost, bytes_along, cle_cost, exact_cost
from isovoxel.planning.model import FILTERS, MOVES, Block, DeviceLimits, HostLimits, Largest, Source

MADE_BY_DEVICE = 2
"""Further levels that a device makes of a block while it has it: the third has a hundredth of the full one's voxels, or
less, as a rule."""
SHORT = 4096
"""Bytes of a chunk below which a codec may store it as it is, although it ends with zeros."""
_HOW_IT_IS_READ = {"name": "", "read_overhead": 0, "chunks": [], "caches": False, "notes": [], "beside": []}
"""What a plan knows of its source that changes no result, as it was hashed ever since."""


@dataclass(frozen=True)
class Plan(InNotebooks):
    """How a volume is scaled: the grids, the blocks, and the bytes they take."""

    source: Source
    """The input."""
    output: VoxelGrid
    """Where the output's voxels lie."""
    factor: Float3
    """Output samples per input sample, z, y, x."""
    interpolation: str
    """One that the engine has, see `isovoxel.planning.model`."""
    boundary: str
    """"nearest": the rim repeats. "constant": 0 lies around the volume, as ``cle.scale`` has it."""
    engine: str
    """Name of the engine that scales."""
    storage: Storage
    """Chunks, shards and codec of the output."""
    block_shape: Index3
    """Output voxels of a full block, whole shards; blocks at the volume's end are clipped."""
    in_flight: int
    """How many blocks are read, scaled and written at the same time."""
    halo_mode: str
    """"map_overlap" or "direct"."""
    window: Index3
    """How many blocks per axis are in one dask graph (map_overlap); a job goes window by window."""
    device: DeviceLimits
    """The device it was made for."""
    host: HostLimits
    """The host it was made for."""
    antialias: bool = False
    """Whether kernels are widened by 1 / factor on axes that shrink."""
    shift: Float3 = (0.0, 0.0, 0.0)
    """Output samples from where the input begins to where the output does, z, y, x: 0 for a scaling."""
    cache: int = 0
    """Bytes of decoded chunks that the source's reader keeps for blocks to come."""
    helpers: int = 0
    """How many threads may help those of the blocks to encode while cores are idle."""
    level: int = 0
    """Which level of the output it makes; 0 is the full one."""
    along: bool = False
    """Whether its blocks are those of the level before, halved, and are made while these are in memory."""
    gathered: int = 0
    """How many of its blocks may be open at a time, which are put together in memory of what blocks of the level before
    become; 0 where that level is read back."""
    revision: int = 1
    """Revision of the algorithm that makes its voxels, see `CHANGES`."""
    library: str = ""
    """Package and version of the clEsperanto that scales, where engine cle does."""
    further: tuple[Plan, ...] = ()
    """How the further levels are made, each from the one before; see `isovoxel.planning.pyramid`."""

    # ---- axes and blocks -------------------------------------------------------------------------------------

    @cached_property
    def axes(self) -> tuple[Axis, Axis, Axis]:
        """The map between input and output samples of each axis, z, y, x."""
        shapes = self.source.grid.shape, self.output.shape
        return triple([Axis(n, m, f, s) for n, m, f, s in zip(*shapes, self.factor, self.shift, strict=True)])

    @property
    def identity(self) -> bool:
        """Whether no axis is scaled, so that voxels are copied."""
        return self.factor == (1.0, 1.0, 1.0)

    @property
    def regrids(self) -> bool:
        """Whether the output has the voxels of another volume, which a scaling by its factors would not give."""
        return self.level == 0 and self.source.grid.scaled(self.factor) != self.output

    @cached_property
    def samplers(self) -> tuple[Sampler, Sampler, Sampler]:
        """What the engine reads along each axis, z, y, x."""
        if self.engine == "exact":
            return self.tables
        finite = self.identity or np.dtype(self.source.dtype).kind in "iu"
        return triple([Texture(axis, self.interpolation, self.boundary, finite) for axis in self.axes])

    @cached_property
    def tables(self) -> tuple[Table, Table, Table]:
        """The resampling tables of the axes, z, y, x."""
        return triple([Table(axis, self.interpolation, self.antialias, self.boundary) for axis in self.axes])

    @cached_property
    def passes(self) -> tuple[tuple[int, ...], ...]:
        """The passes of engine exact, in their order, each with the axes that it scales at once."""
        return passes_at_once(self.tables)

    @property
    def aliases(self) -> tuple[str, ...]:
        """Axes that shrink by more than 2 while samples between are skipped, unfiltered."""
        if self.antialias or self.interpolation not in FILTERS:
            return ()
        return tuple(name for name, f in zip(AXES, self.factor, strict=True) if f < 0.5)

    @property
    def coarse(self) -> bool:
        """Whether a GPU's textures, which interpolate in 256 steps, are coarser than the voxels' dtype."""
        mixes = self.engine == "cle" and self.interpolation == "linear" and not self.identity
        return mixes and self.device.kind == "gpu" and self.source.itemsize > 1

    @cached_property
    def block_grid(self) -> Index3:
        """Number of blocks per axis."""
        return triple(ceil_div(m, b) for m, b in zip(self.output.shape, self.block_shape, strict=True))

    @property
    def n_blocks(self) -> int:
        """Number of blocks, of all volumes."""
        return self.source.n_volumes * math.prod(self.block_grid)

    def block(self, index: int) -> Block:
        """Return one block by its index: volume by volume, z slowest.

        Raises
        ------
        IndexError
            If there is no such block.
        """
        if not 0 <= index < self.n_blocks:
            raise IndexError(f"block {index} of {self.n_blocks}")
        _, ny, nx = self.block_grid
        volume, inside = divmod(index, math.prod(self.block_grid))
        start, stop = [], []
        place = inside // (ny * nx), inside // nx % ny, inside % nx
        for i, length, m in zip(place, self.block_shape, self.output.shape, strict=True):
            start.append(i * length)
            stop.append(min((i + 1) * length, m))
        return self.block_of(index, Box(triple(start), triple(stop), volume))

    def block_at(self, place: Index3, volume: int = 0) -> Block:
        """Return one block by its place in the grid of blocks, of one volume."""
        (z, y, x), (_, ny, nx) = place, self.block_grid
        return self.block(volume * math.prod(self.block_grid) + (z * ny + y) * nx + x)

    def block_of(self, index: int, write_box: Box) -> Block:
        """Return what it takes to write a box of the output, be it a block's or only a piece of one."""
        ends = zip(self.samplers, write_box.start, write_box.stop, strict=True)
        spans = [_span(sampler, start, stop) for sampler, start, stop in ends]
        first, last, before, after = (triple([span[part] for span in spans]) for part in range(4))
        return Block(
            index=index,
            write_box=write_box,
            read_box=Box(first, last, write_box.volume),
            pad_before=before,
            pad_after=after,
            level=self.level,
        )

    def shards_of(self, index: int) -> int:
        """Return the number of a block's shards."""
        sides = zip(self.block(index).write_box.shape, self.storage.shard, strict=True)
        return math.prod(ceil_div(n, s) for n, s in sides)

    def voxels_of(self, done: bytes | bytearray) -> int:
        """Return how many output voxels some of the blocks have: those with a 1, in the plan's order."""
        z, y, x = (
            np.diff(np.minimum(np.arange(n + 1) * b, m))
            for n, b, m in zip(self.block_grid, self.block_shape, self.output.shape, strict=True)
        )
        layers = np.frombuffer(done, np.uint8).reshape(-1, len(y), len(x))
        # Layer by layer, for there may be millions of blocks.
        return sum(int(length * (y @ (layer @ x))) for length, layer in zip(cycle(z), layers, strict=False))

    def blocks(self) -> Iterator[Block]:
        """Yield all blocks in order."""
        return (self.block(i) for i in range(self.n_blocks))

    def windows(self) -> Iterator[Box]:
        """Yield the places of the blocks that are in one dask graph (map_overlap), graph by graph."""
        for volume in range(self.source.n_volumes):
            yield from Box.whole(self.block_grid).of(volume).tiles(self.window)

    # ---- levels ----------------------------------------------------------------------------------------------

    @property
    def levels(self) -> tuple[Plan, ...]:
        """The plans of all levels, this one first."""
        return (self, *self.further)

    @property
    def all_blocks(self) -> int:
        """Number of blocks of all levels."""
        return sum(plan.n_blocks for plan in self.levels)

    @property
    def all_voxels(self) -> int:
        """Number of output voxels of all volumes and levels."""
        return self.source.n_volumes * sum(math.prod(plan.output.shape) for plan in self.levels)

    def split(self, done: bytearray) -> list[bytearray]:
        """Cut what is known of the blocks of all levels, one byte each, level after level."""
        ends = list(accumulate(plan.n_blocks for plan in self.levels))
        return [done[end - plan.n_blocks : end] for plan, end in zip(self.levels, ends, strict=True)]

    # ---- what it takes ---------------------------------------------------------------------------------------

    @cached_property
    def halo(self) -> tuple[tuple[int, int], ...]:
        """Most input voxels that a block reads (before, after) the input interval it maps back to, per axis.

        This is the `depth` that map_overlap needs.
        """
        return tuple(halo(sampler, b) for sampler, b in zip(self.samplers, self.block_shape, strict=True))

    @cached_property
    def cost(self) -> BlockCost:
        """Projected bytes of the largest block."""
        read, padded, written = self.largest
        return self.cost_of(read=read, padded=padded, written=written)

    @cached_property
    def staging(self) -> tuple[int, int]:
        """Bytes of the largest block's input and output voxels, with what it becomes on further levels behind."""
        read, _, written = self.largest
        half = sum(self._halves_bytes(written)) if self.halves_blocks else 0
        return math.prod(read) * self.source.itemsize, math.prod(written) * self.source.itemsize + half

    @property
    def staging_on_host(self) -> tuple[int, int]:
        """Of these, the bytes that are projected on the host."""
        read, written = self.staging
        return read, written - self._kept_bytes(self.largest.written, halved=self.halves_blocks)

    @cached_property
    def largest(self) -> Largest:
        """The shapes that hold each block's."""
        lengths = zip(self.samplers, self.block_shape, strict=True)
        shapes = [sampler.spans(*sampler.axis.intervals(b)).longest() for sampler, b in lengths]
        return Largest(
            triple([s[0] for s in shapes]),
            triple([s[1] for s in shapes]),
            triple([min(b, m) for b, m in zip(self.block_shape, self.output.shape, strict=True)]),
        )

    def cost_of(self, *, read: Index3, padded: Index3, written: Index3, half: int | None = None) -> BlockCost:
        """Return what a block of these shapes costs.

        Of it `half` bytes of further levels are made on the device; by default as many as the plan has.
        """
        if half is None:
            half = sum(self._halves_bytes(written)) if self.halves_blocks else 0
        itemsize = self.source.itemsize
        encode = write_overhead(self.storage, itemsize) + seal_overhead(self.storage, written)
        overlap = self.halo_mode == "map_overlap"
        if self.engine == "exact":
            return exact_cost(
                read=read,
                written=written,
                half=half,
                passes=self.passes,
                widths=triple(table.width for table in self.tables),
                itemsize=itemsize,
                sum_bytes=8 if self.interpolation == "smooth" else accumulator(np.dtype(self.source.dtype)).itemsize,
                moves=self.interpolation in MOVES,
                device=self.device,
                decode=self.source.read_overhead,
                encode=encode,
                overlap=overlap,
                kept=self._kept_bytes(written, halved=half > 0),
            )
        return cle_cost(
            read=read,
            padded=padded,
            written=written,
            half=half,
            itemsize=itemsize,
            interpolation=self.interpolation,
            device=self.device,
            decode=self.source.read_overhead,
            encode=encode,
            overlap=overlap,
        )

    def _halves_bytes(self, written: Index3) -> list[int]:
        """Return the bytes of what a device makes of a block on each further level."""
        found = []
        for level in self.made_along[:MADE_BY_DEVICE]:
            written = triple(math.ceil(n * f) for n, f in zip(written, level.factor, strict=True))
            found.append(math.prod(written) * self.source.itemsize)
        return found

    def _kept_bytes(self, written: Index3, *, halved: bool) -> int:
        """Return the bytes of a block that stay on the device until they are encoded there.

        A processor that makes level 1 of blocks needs their voxels. What the device makes of them stays there as well
        where the GPU encodes it.
        """
        if not self.device.encoding or self.engine != "exact" or (self.made_along and not halved):
            return 0
        voxels = math.prod(written) * self.source.itemsize
        return voxels + (self._halves_bytes(written)[0] if halved and self.fills_batches(self.further[0]) else 0)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of the voxels of a chunk of the output."""
        return math.prod(self.storage.chunk) * self.source.itemsize

    @property
    def projected_device(self) -> int:
        """Projected bytes on the device at any one time."""
        return self.device.taken + self.cost.on_device(self.in_flight)

    @property
    def held(self) -> int:
        """Projected bytes of the input blocks that dask may keep for their neighbours' halo: those of a full window."""
        if self.halo_mode != "map_overlap":
            return 0
        lengths = []
        for axis, b, w, depth in zip(self.axes, self.block_shape, self.window, self.halo, strict=True):
            _, stops = axis.intervals(b)
            cuts = np.concatenate([[0], axis.cuts(stops)])
            ends = np.minimum(np.arange(len(stops)) + w, len(stops))
            spans = cuts[ends] - cuts[:-1] + depth[0] + depth[1]
            lengths.append(min(axis.n, int(spans.max())))
        return math.prod(lengths) * self.source.itemsize

    @property
    def made_along(self) -> tuple[Plan, ...]:
        """The plans of those further levels whose blocks are made of these while they are in memory, level 1 first."""
        return tuple(takewhile(lambda level: level.along or level.gathered, self.further))

    @cached_property
    def halves_blocks(self) -> bool:
        """Whether each block, halved, is one of level 1, and device and host have room to make it on the device."""
        if not self.further or not self.further[0].along:
            return False
        read, padded, written = self.largest
        cost = self.cost_of(read=read, padded=padded, written=written, half=sum(self._halves_bytes(written)))
        projected = self.projected_for(cost, self.in_flight, self.held + self.cache)
        return not cost.excess(self.device, self.in_flight) and projected <= self.host.allowed

    @property
    def keeps_blocks(self) -> bool:
        """Whether blocks stay on the device until they are encoded there."""
        return self._kept_bytes(self.largest.written, halved=self.halves_blocks) > 0

    @cached_property
    def keeps_halves(self) -> bool:
        """Whether their blocks of level 1 do so, too."""
        return self.keeps_blocks and bool(self.halved_along) and self.fills_batches(self.further[0])

    def fills_batches(self, level: Plan) -> bool:
        """Return whether a GPU that encodes these blocks does so for a further level: in batches that are worth it.

        A batch takes nearly as long for one chunk as for eight, and a block of a level that is made in memory, whose
        shards are encoded together, may have but one: the processor's cores, which wait for the GPU otherwise, are
        faster then. Levels with chunks of their own are smaller than a chunk of the full one.
        """
        storage = self.storage
        chunks = math.prod(ceil_div(n, c) for n, c in zip(level.block_shape, storage.chunk, strict=True))
        batch = min(batch_chunks(self.chunk_bytes), storage.chunks_per_shard)
        return level.storage.chunk == storage.chunk and 2 * chunks > batch

    @property
    def halved_along(self) -> tuple[Plan, ...]:
        """The plans of those further levels of which the device makes blocks, or parts of blocks, of these blocks."""
        return self.made_along[:MADE_BY_DEVICE] if self.halves_blocks else ()

    def halves_of(self, block: Block) -> tuple[Index3, ...]:
        """Return the shapes of what the device makes of a block on further levels; of what is no whole block, none."""
        shapes, box = [], block.write_box
        if box == self.block(block.index).write_box:
            for level in self.halved_along:
                box = level.halved(box)
                if not box.size:
                    break
                shapes.append(box.shape)
        return tuple(shapes)

    def halved(self, box: Box) -> Box:
        """Return a box of the level before as voxels of this one, to whose end it goes where that one is at its end."""
        start, stop = [], []
        lengths = zip(self.source.grid.shape, self.output.shape, self.factor, strict=True)
        for a, b, (n, m, f) in zip(box.start, box.stop, lengths, strict=True):
            start.append(a // 2 if f == 0.5 else a)
            stop.append(m if b == n else b // 2 if f == 0.5 else b)
        return Box(triple(start), triple(stop), box.volume)

    @property
    def leaves_out_empty(self) -> bool:
        """Whether a block that reads nothing but zeros needs no work: it is zeros to the bit, and they are not stored.

        Sums of zeros with weights from 0 on are zeros, whatever the boundary. A weight below 0 makes minus zero of one,
        and of cle's arithmetic nothing is proven here.
        """
        proven = self.engine == "exact" and self.interpolation in ("nearest", "linear", "area", "mode")
        return proven and self.storage.skip_empty

    @property
    def projected_host(self) -> int:
        """Projected bytes of the whole process, device memory included where the host provides it."""
        return self.projected_for(self.cost, self.in_flight, self.held + self.cache)

    def projected_for(self, cost: BlockCost, in_flight: int, kept: int) -> int:
        """Return the same for so many blocks in flight, of which the largest costs so much, and what is kept of input.

        Parameters
        ----------
        cost
            Of the largest block.
        in_flight
            How many are made at the same time.
        kept
            Bytes of decoded chunks, and of what dask keeps for neighbours.
        """
        shared = cost.device - cost.in_place if self.device.shares_host_memory else 0
        helping = helper_overhead(self.storage, self.source.itemsize, self.helpers)
        blocks = in_flight * cost.host + cost.spilled
        return self.host.baseline + shared + kept + helping + blocks + bytes_along(self)

    @property
    def output_bytes(self) -> int:
        """Bytes of the output's voxels, uncompressed, without further levels."""
        return self.source.n_volumes * math.prod(self.output.shape) * self.source.itemsize

    @property
    def disk_bytes(self) -> int:
        """Bytes that the chunks of all levels take on the disk at most, with the indices of their shards.

        Where the volume ends, chunks are filled up with zeros, of which a codec makes little, but in short ones.
        """
        storage, shape = self.storage, self.output.shape
        chunks = math.prod(map(ceil_div, shape, storage.chunk))
        stays = storage.codec == "none" or self.chunk_bytes < SHORT
        filled = chunks * self.chunk_bytes if stays else math.prod(shape) * self.source.itemsize
        filled += chunks * (result_margin(storage, self.chunk_bytes) + CHECKSUM_BYTES * storage.checksum)
        if storage.sharded:
            index = INDEX_BYTES * storage.chunks_per_shard + CHECKSUM_BYTES
            filled += math.prod(map(ceil_div, shape, storage.shard)) * index
        return self.source.n_volumes * filled + sum(plan.disk_bytes for plan in self.further)

    # ---- what it is ------------------------------------------------------------------------------------------

    @property
    def makes(self) -> dict[str, Any]:
        """Everything that can change what this level's voxels are, and nothing else, as JSON values."""
        storage = asdict(self.storage)
        for name in ("checksum", "skip_empty", "plain"):
            if not storage[name]:  # as outputs were hashed before storage had these
                del storage[name]
        source = asdict(self.source) | _HOW_IT_IS_READ
        del source["encoded"]
        what = {
            "source": source,
            **({"shift": self.shift} if any(self.shift) else {}),
            "output": asdict(self.output),
            "factor": self.factor,
            "interpolation": self.interpolation,
            "antialias": self.antialias,
            "boundary": self.boundary,
            # Revision 1 is what 0.1 made, which hashed its version.
            "engine": [self.engine, "0.1.0" if self.revision == 1 else self.revision],
            # cle's texture coordinates are rounded relative to the block, and by the device; exact is exact.
            "cut": [self.block_shape, self.device.name] if self.engine == "cle" else [],
            "storage": storage,
        }
        found: dict[str, Any] = json.loads(json.dumps(what))
        return found

    def to_json(self) -> str:
        """Return it as JSON, of which `isovoxel.planning.resume.plan_from_json` makes an equal plan."""
        return json.dumps(asdict(self))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that can change a result, and of nothing else: not of budgets, threads or releases."""
        further = {"further": [plan.fingerprint for plan in self.further]} if self.further else {}
        return hashlib.sha256(json.dumps(self.makes | further, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=2**12)
def _span(sampler: Sampler, start: int, stop: int) -> tuple[int, int, int, int]:
    """Return what an interval of an axis reads: first and last sample, and the pads; blocks side by side share it."""
    span = sampler.spans(np.array([start]), np.array([stop]))
    return int(span.first[0]), int(span.last[0]), int(span.before[0]), int(span.after[0])
