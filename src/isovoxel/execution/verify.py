"""Verify an output: samples of its voxels, shards with the receipts that were kept, chunks with their checksums.

1. Every shard must be there.
2. Boxes at the blocks' corners, edges and faces, and anywhere, are computed again by the `reference` engine from the
   source, in float64, and compared: how far off, how many voxels by more than rounding, and how much the error jumps
   from voxel to voxel across block faces, against inside blocks.
3. So is each further level, in fewer boxes, from the level before it: what it was made from.
4. What the metadata say of each level must be what the recipe makes, see `isovoxel.execution.placement`.
5. Where receipts were kept, each shard is compared with its own; where that is asked, every chunk is read, see
   `isovoxel.execution.every_chunk`.

Only the sampled boxes and the input they come from are read, so a terabyte is verified as fast as a thumbnail. Boxes,
shards and chunks are read on all cores, as many at a time as the memory allows, and what is found of them is put
together in their order. Shards are read piece by piece, so this takes little memory.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from isovoxel.errors import InputError, InputMissingError, InputUnavailableError, OptionError, shown_value
from isovoxel.execution.comparison import SIDE, Compared, bytes_of, compare_box, sample_boxes
from isovoxel.execution.events import Reading
from isovoxel.execution.every_chunk import Levels, check_asked, choose_decoders, damages
from isovoxel.execution.placement import metadata_changes
from isovoxel.execution.recipe import Recipe
from isovoxel.execution.resources import check_fits, reading_limits, reading_threads
from isovoxel.geometry.grid import Box, Index3, ceil_div
from isovoxel.object_store.objects import Place, has_place, place_of
from isovoxel.object_store.retries import map_in_order
from isovoxel.options import Options
from isovoxel.output.ledger import Ledger, Looked, Noted, ledger_of
from isovoxel.output.ome_zarr import missing_shards
from isovoxel.output.provenance import RECEIPTS, made_by, read_provenance
from isovoxel.output.shard import ShardReceipt
from isovoxel.output.writer import OmeZarrWriter
from isovoxel.planning.model import HostLimits
from isovoxel.planning.plan import Plan
from isovoxel.readers.base import Volume
from isovoxel.readers.files import unavailable
from isovoxel.readers.open import open_part, open_volume

SHARD_BYTES = 6 * 2**20
"""Bytes that comparing a shard with its receipt holds: the pieces in which it is read, or comes from a store."""
MOST_SAMPLES = 10**9
"""More boxes take years."""
FURTHER_SHARE = 8
"""A further level is compared in one box for so many of the full one, as it has an eighth of its voxels."""


@dataclass(frozen=True)
class Verdict:
    """What was found."""

    samples: int
    """Boxes drawn."""
    voxels: int
    """Voxels compared."""
    largest_error: float
    """Largest difference from the reference, in grey levels (or in the dtype's unit)."""
    mean_error: float
    """Mean difference."""
    off_share: float
    """Share of voxels that differ by more than rounding explains: in the sums, and to the output's dtype."""
    off_allowed: bool
    """Whether the engine states a precision coarser than rounding, so that such voxels are to be expected."""
    wrong: int
    """Voxels that differ by more than the engine's stated precision: 0 in a right result."""
    first_wrong: Index3 | None
    """The first of them."""
    faces: int
    """Boxes that lie on a face between two blocks."""
    face_jump: float
    """Largest change of the error from one voxel to the next across a block face."""
    inner_jump: float
    """The same inside blocks."""
    jump_allowed: float
    """What two neighbours may differ in error at most, by the engine's stated precision."""
    missing_shards: int
    """Shards of the result that are not there."""
    unreadable: int
    """Boxes of the result that cannot be read, for a file in their way is damaged."""
    source_changes: tuple[str, ...]
    """What of the source is not as it was when the result was made, such as "size"."""
    levels: int = 1
    """How many levels were compared."""
    first_wrong_level: int = 0
    """On which of them `first_wrong` lies."""
    projected: int = 0
    """Projected bytes of host memory, with what the process held before, where that was limited."""
    allowed: int = 0
    """Bytes that the process was allowed, or 0 where that was not limited."""
    first_unreadable: str = ""
    """Why the first of the boxes that cannot be read cannot."""
    receipts: int | None = None
    """Shards that were compared with their receipts; 0 where these are gone, None where none were kept."""
    chunks: int | None = None
    """Chunks that were read, of all levels; None where not every one was to be."""
    decoder: str | None = None
    """What was to decode them: "gpu", for some levels at least, or "cpu"; None where not every one was to be read."""
    decoded_by_processor: str = ""
    """Why the processor decompressed where the GPU should have, if it did."""
    damaged: int = 0
    """Blocks of which a shard is not as its receipt says, and chunks that cannot be read."""
    first_damaged: str = ""
    """What is known of the first of them."""
    metadata_changes: tuple[str, ...] = ()
    """What the metadata say of levels that the recipe does not make, such as another scale, a sentence each."""
    uncompared: str = ""
    """Why no voxels were compared, where the source of labels beside an image cannot be read."""
    images: Mapping[str, Verdict] = field(default_factory=dict)
    """What was found of each image, by its path, where the output has several, or labels; "." is then the image."""

    @property
    def holds(self) -> bool:
        """Whether the result is what the recipe makes of the source."""
        there = self.missing_shards == 0 and self.unreadable == 0 and self.damaged == 0 and not self.metadata_changes
        return there and self.wrong == 0 and self.face_jump <= self.jump_allowed

    def with_level(self, further: Verdict) -> Verdict:
        """Return what was found of these levels and of one more."""
        wrong_here = self.first_wrong is not None or further.first_wrong is None
        return replace(
            self,
            **together((self, further)),
            first_wrong=self.first_wrong if wrong_here else further.first_wrong,
            levels=self.levels + 1,
            first_wrong_level=self.first_wrong_level if wrong_here else self.levels,
            first_unreadable=self.first_unreadable or further.first_unreadable,
        )


NOTHING = Verdict(0, 0, 0.0, 0.0, 0.0, False, 0, None, 0, 0.0, 0.0, 0.0, 0, 0, (), levels=0)
"""Before anything is compared."""
_SUMS = ("samples", "voxels", "wrong", "faces", "missing_shards", "unreadable", "damaged")
"""What of several verdicts is added up."""


def together(found: Sequence[Verdict]) -> dict[str, Any]:
    """Return what several levels or images have together, by the names of fields: sums, means, the largest error."""
    voxels = max(1, sum(one.voxels for one in found))
    # Each jumps by what it is allowed to, so the one that comes nearest to it, or exceeds it, is told of.
    nearest = max(found, key=lambda one: one.face_jump - one.jump_allowed)
    return {
        **{name: sum(getattr(one, name) for one in found) for name in _SUMS},
        **{name: getattr(nearest, name) for name in ("face_jump", "inner_jump", "jump_allowed")},
        "largest_error": max(one.largest_error for one in found),
        "mean_error": sum(one.mean_error * one.voxels for one in found) / voxels,
        "off_share": sum(one.off_share * one.voxels for one in found) / voxels,
    }


def verify_output(
    output: str | Path,
    against: Any,
    *,
    samples: int,
    seed: int,
    every_chunk: bool,
    options: Options,
    compared: bool = True,
    reading: Reading = lambda _what, _done, _total: None,
) -> Verdict:
    """Compare an output with its source, in samples, and with the checksums that were kept.

    Parameters
    ----------
    output, against, samples, seed, every_chunk
        As in `isovoxel.verify`.
    options
        What decodes every chunk, and the memory of host and device to stay within.
    compared
        Whether voxels are, for which the source is opened.
    reading
        Told how many boxes, blocks and chunks are looked at.

    Raises
    ------
    IsovoxelError
        As `isovoxel.verify`.
    """
    for name, value, least in (("samples", samples, 1), ("seed", seed, 0)):
        if value < least:
            raise OptionError(f"{name} must be at least {least}, not {shown_value(value)}")
    if samples > MOST_SAMPLES:
        raise OptionError(f"samples must be at most {MOST_SAMPLES:,}; every_chunk reads all of a result")
    check_asked(options, every_chunk=every_chunk)
    host = reading_limits(options.memory_bytes)
    place = place_of(output)
    if made_by(place) is None:
        open_volume(output)  # which says what else it is
    made = read_provenance(output)
    recipe = Recipe.from_provenance(made, str(output))
    if not recipe.complete:
        raise InputError(f"{output} is incomplete: its job is running, failed or was interrupted; finish it first")
    source = _source_of(output, recipe, against) if compared else None
    changes, sound = metadata_changes(place, recipe)
    homes = [place / "0" if changes else output, *(place / str(n) for n in range(1, sound))]
    levels = [open_volume(home) for home in homes[:sound]]
    runs = choose_decoders(levels if every_chunk else [], options, host)
    try:
        missing = missing_shards(output, sound)
    except OSError as error:
        raise unavailable(f"the shards of {output} cannot be counted", error) from error
    found = NOTHING
    if source is not None:
        if levels:
            found = verify_levels(source, levels, recipe, samples=samples, seed=seed, host=host, reading=reading)
        found = replace(found, source_changes=recipe.changes(source, elsewhere=against is not None))
    found = replace(found, missing_shards=missing, metadata_changes=changes)
    if sound == 1 + len(recipe.further):
        found = _with_receipts(found, place, made, host, reading)
    return _with_every_chunk(found, runs, reading)


def _source_of(output: str | Path, recipe: Recipe, against: Any) -> Volume:
    """Open the source of an output: the one that its attributes name, or the one that the caller gives."""
    where = recipe.identity.get("path") if against is None else against
    if against is None and (where is None or not has_place(where)):
        raise InputError(f"{output} was made from an array in memory; give its voxels as a file with --against")
    try:
        source = open_part(where, recipe.identity)
    except InputMissingError:
        if against is not None:
            raise
        raise InputMissingError(f"the source {where} is not found; give its new path with --against") from None
    series = tuple((axis.name, axis.length) for axis in source.series)
    if (source.shape, source.dtype.name, series) != (recipe.shape, recipe.dtype, recipe.series):
        raise InputError(
            f"{source.name} holds {source.shape} voxels of {source.dtype}, but {output} was made from "
            f"{recipe.shape} of {recipe.dtype}; give its source with --against"
        )
    return source


def verify_levels(
    source: Volume,
    results: Sequence[Volume],
    recipe: Recipe,
    *,
    samples: int,
    seed: int = 0,
    host: HostLimits | None = None,
    reading: Reading = lambda _what, _done, _total: None,
) -> Verdict:
    """Compare sampled boxes of all levels of a result with the reference.

    Parameters
    ----------
    source
        The input.
    results
        The levels of the output, finest first.
    recipe, seed
        As in `verify_level`.
    samples
        How many boxes of the full level.
    host
        Memory that the process may hold and holds, and how many threads it may have; by default one, and any memory.
    reading
        Told how many boxes are compared.

    Raises
    ------
    DoesNotFitError
        If computing a single voxel takes more memory than is allowed.
    """
    recipes = (recipe, *recipe.further)
    pairs = list(zip((source, *results), results, recipes, strict=False))
    beside = max(before.read_overhead + made.read_overhead for before, made, _ in pairs)
    takes, least = (max(bytes_of(before, how, n) for before, _, how in pairs) for n in (SIDE, 1))
    room, threads = takes, 1
    if host is not None:
        threads = min(samples, reading_threads(host, beside + takes))
        room = min(takes, host.allowed - host.baseline - beside)
        check_fits("computing a voxel again", host.baseline + beside + least, host)
    how: dict[str, Any] = {"seed": seed, "room": room, "threads": threads, "reading": reading}
    found = verify_level(source, results[0], recipe, samples=samples, **how)
    for before, level, made in pairs[1:]:
        further = verify_level(before, level, made, samples=ceil_div(samples, FURTHER_SHARE), is_level=True, **how)
        found = found.with_level(further)
    projected = (host.baseline if host else 0) + threads * (beside + room)
    return replace(found, projected=projected, allowed=host.allowed if host else 0)


def verify_level(
    source: Volume,
    result: Volume,
    recipe: Recipe,
    *,
    samples: int,
    seed: int = 0,
    room: int | None = None,
    threads: int = 1,
    is_level: bool = False,
    reading: Reading = lambda _what, _done, _total: None,
) -> Verdict:
    """Compare sampled boxes of a level with the reference.

    Parameters
    ----------
    source, result
        What it was made of, and the level.
    recipe
        What made it.
    samples
        How many boxes.
    seed
        Chooses the boxes; the same seed chooses the same.
    room
        Bytes that computing a box may hold; boxes that take more are computed in pieces. None for as many as it takes.
    threads
        How many boxes may be compared at a time.
    is_level
        Whether the input is a level of the same output, whose damage is the result's too.
    reading
        Told how many boxes are compared.
    """
    rng = np.random.default_rng(seed)
    worst = total = face = inner = allowed_jump = 0.0
    voxels = off = wrong = count = unreadable = faces = 0
    first_wrong: Index3 | None = None
    first_unreadable = ""
    doing = f"comparing boxes of {result.name}"

    def compared(box: Box) -> Compared | InputError:
        try:
            got = result.read(box)
            if is_level:
                return compare_box(source, got, recipe, box, room)
        except InputUnavailableError:
            raise  # the disk's doing, not the result's
        except InputError as damage:
            return damage
        return compare_box(source, got, recipe, box, room)

    sampled = itertools.islice(sample_boxes(result.shape, recipe.block, rng), samples)
    boxes = (place.of(int(rng.integers(result.n_volumes))) if result.n_volumes > 1 else place for place in sampled)
    with map_in_order(compared, boxes, 1 if source.sequential else threads) as results:
        reading(doing, 0, samples)
        for count, found in enumerate(results, 1):
            reading(doing, count, samples)
            if isinstance(found, InputError):
                unreadable += 1
                first_unreadable = first_unreadable or str(found)
                continue
            voxels, off, wrong = voxels + found.voxels, off + found.off, wrong + found.wrong
            first_wrong = first_wrong or found.first_wrong
            worst, total = max(worst, found.largest), total + found.total
            faces += found.across is not None
            face, inner = max(face, found.across or 0.0), max(inner, found.within)
            allowed_jump = max(allowed_jump, found.jump_allowed)
    return Verdict(
        samples=count,
        voxels=voxels,
        largest_error=worst,
        mean_error=total / max(1, voxels),
        off_share=off / max(1, voxels),
        off_allowed=recipe.engine == "cle" and recipe.interpolation == "linear",
        wrong=wrong,
        first_wrong=first_wrong,
        faces=faces,
        face_jump=face,
        inner_jump=inner,
        jump_allowed=allowed_jump,
        missing_shards=0,
        unreadable=unreadable,
        source_changes=(),
        first_unreadable=first_unreadable,
    )


def _with_receipts(
    found: Verdict, output: Place, made: Mapping[str, Any], host: HostLimits, reading: Reading
) -> Verdict:
    """Return a verdict that knows whether all shards are as their receipts say, where these were kept."""
    if made.get(RECEIPTS) is not True:
        return found
    ledger = Ledger.read(ledger_of(output))
    if ledger is None or ledger.plan.fingerprint != made.get("fingerprint"):
        return replace(found, receipts=0)
    levels, total = ledger.plan.levels, ledger.plan.all_blocks
    threads = reading_threads(host, SHARD_BYTES)
    compared = blocks = 0
    doing = f"comparing shards of {output} with their receipts"
    with contextlib.ExitStack() as stack:
        writers = [OmeZarrWriter.of_plan(output, plan, 0) for plan in levels]
        for writer in writers:
            stack.callback(writer.close)

        def holds(level: int, index: int, receipts: list[ShardReceipt]) -> bool:
            return writers[level].holds(levels[level].block(index).write_box, receipts, read=True)

        def each(look: Callable[[Noted | str], Looked], lines: Iterator[Noted | str]) -> Iterator[Looked]:
            nonlocal compared, blocks
            with map_in_order(look, lines, threads) as results:
                for line, held in results:
                    if isinstance(line, Noted):
                        reading(doing, blocks, total)
                        compared, blocks = compared + len(line.receipts), blocks + 1
                    yield line, held

        try:
            parts = ledger.plan.split(ledger.done(holds, each))
        except OSError as error:
            raise unavailable(f"the shards of {output} cannot be compared with their receipts", error) from error
    reading(doing, total, total)
    projected = min(host.allowed, host.baseline + threads * SHARD_BYTES)
    found = replace(found, receipts=compared, projected=max(found.projected, projected))
    return _damaged(found, sum(part.count(0) for part in parts), _first_damaged(levels, parts))


def _first_damaged(levels: Sequence[Plan], parts: Sequence[bytearray]) -> str:
    """Say which block is the first that is not done, level after level; nothing where all are."""
    for plan, part in zip(levels, parts, strict=True):
        if 0 in part:
            block = plan.block(part.index(0))
            at = f"z, y, x from {block.write_box.start} to {block.write_box.stop}"
            return f"a shard of {block} ({at}) is not as it was written"
    return ""


def _with_every_chunk(found: Verdict, runs: Sequence[Levels], reading: Reading) -> Verdict:
    """Return a verdict that knows whether every chunk of all levels can be read."""
    if not runs:
        return found
    levels = [level for run in runs for level in run.volumes]
    total = sum(level.n_volumes * math.prod(map(ceil_div, level.shape, level.chunks)) for level in levels)
    doing = f"reading every chunk of {levels[0].name}"
    chunks = damaged = 0
    first = ""
    told: list[str] = []
    with contextlib.closing(damages(runs, told)) as results:
        for damage in results:
            reading(doing, chunks, total)
            chunks += 1
            if damage is not None:
                damaged, first = damaged + 1, first or damage
    reading(doing, chunks, total)
    found = replace(
        found,
        chunks=chunks,
        decoder="gpu" if any(run.device for run in runs) else "cpu",
        decoded_by_processor=told[0] if told else "",
        projected=max(found.projected, *(run.projected for run in runs)),
    )
    return _damaged(found, damaged, first)


def _damaged(found: Verdict, count: int, first: str) -> Verdict:
    return replace(found, damaged=found.damaged + count, first_damaged=found.first_damaged or first)
