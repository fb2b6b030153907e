"""Verify an output: samples of its voxels, shards with the receipts that were kept, chunks with their checksums.

Shards are read one after another, piece by piece, and chunks one at a time, so this takes next to no memory.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from isovoxel.errors import DoesNotFitError, InputError, InputMissingError, InputUnavailableError, OptionError
from isovoxel.execution.events import Reading
from isovoxel.execution.host import reading_limits
from isovoxel.execution.recipe import Recipe
from isovoxel.execution.verify import Verdict, verify_levels
from isovoxel.geometry.axis import ceil_div
from isovoxel.geometry.box import Box
from isovoxel.object_store.addresses import Place, has_place, place_of
from isovoxel.output.ledger import Ledger, ledger_of
from isovoxel.output.ome_zarr import missing_shards
from isovoxel.output.provenance import RECEIPTS, read_provenance
from isovoxel.output.shard import ShardReceipt
from isovoxel.output.shard_store import level_path
from isovoxel.output.writer import OmeZarrWriter
from isovoxel.planning.memory import human_bytes
from isovoxel.planning.model import HostLimits
from isovoxel.readers.base import Volume
from isovoxel.readers.files import unavailable
from isovoxel.readers.open import open_part, open_volume


def verify_output(
    output: str | Path,
    against: Any,
    *,
    samples: int,
    seed: int,
    every_chunk: bool,
    memory: int | None,
    reading: Reading = lambda _what, _done, _total: None,
) -> Verdict:
    """Compare an output with its source, in samples, and with the checksums that were kept.

    Parameters
    ----------
    output, against, samples, seed, every_chunk
        As in `isovoxel.verify`.
    memory
        Bytes of host memory to stay within, or None.
    reading
        Told how many boxes, blocks and chunks are looked at.

    Raises
    ------
    IsovoxelError
        As `isovoxel.verify`.
    """
    if samples < 1:
        raise OptionError(f"samples must be at least 1, not {samples}")
    host = reading_limits(memory)
    result = open_volume(output)
    made = read_provenance(output)
    recipe = Recipe.from_provenance(made, str(output))
    if not recipe.complete:
        raise InputError(f"{output} is incomplete: its job is running, failed or was interrupted; finish it first")
    source = _source_of(output, recipe, against)
    further = (place_of(output) / level_path(level) for level in range(1, len(recipe.further) + 1))
    levels = [result, *map(open_volume, further)]
    try:
        missing = missing_shards(output)
    except OSError as error:
        raise unavailable(f"the shards of {output} cannot be counted", error) from error
    found = verify_levels(
        source,
        levels,
        recipe,
        samples=samples,
        seed=seed,
        missing_shards=missing,
        source_changes=recipe.changes(source, elsewhere=against is not None),
        host=host,
        reading=reading,
    )
    found = with_receipts(found, place_of(output), made, reading)
    return with_every_chunk(found, levels, host, reading) if every_chunk else found


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
        raise InputMissingError(f"the source {where} not found; give its new path with --against") from None
    series = tuple((axis.name, axis.length) for axis in source.series)
    if (source.shape, source.dtype.name, series) != (recipe.shape, recipe.dtype, recipe.series):
        raise InputError(
            f"{source.name} holds {source.shape} voxels of {source.dtype}, but {output} was made from "
            f"{recipe.shape} of {recipe.dtype}; give its source with --against"
        )
    return source


def with_receipts(
    found: Verdict,
    output: Place,
    made: Mapping[str, Any],
    reading: Reading = lambda _what, _done, _total: None,
) -> Verdict:
    """Return a verdict that knows whether all shards are as their receipts say, where these were kept.

    Parameters
    ----------
    found
        What was found so far.
    output
        The output.
    made
        What its attributes say of what made it.
    reading
        Told how many blocks are compared.

    Raises
    ------
    InputUnavailableError
        If a store does not answer.
    """
    if made.get(RECEIPTS) is not True:
        return found
    ledger = Ledger.read(ledger_of(output))
    if ledger is None or ledger.plan.fingerprint != made.get("fingerprint"):
        return replace(found, receipts=0)
    levels = ledger.plan.levels
    compared = blocks = 0
    doing = f"comparing shards of {output} with their receipts"
    with contextlib.ExitStack() as stack:
        writers = [OmeZarrWriter.of_plan(output, plan, 0) for plan in levels]
        for writer in writers:
            stack.callback(writer.close)

        def holds(level: int, index: int, receipts: list[ShardReceipt]) -> bool:
            nonlocal compared, blocks
            reading(doing, blocks, ledger.plan.all_blocks)
            compared, blocks = compared + len(receipts), blocks + 1
            return writers[level].holds(levels[level].block(index).write_box, receipts, read=True)

        try:
            parts = ledger.plan.split(ledger.done(holds))
        except OSError as error:
            raise unavailable(f"the shards of {output} cannot be compared with their receipts", error) from error
    reading(doing, ledger.plan.all_blocks, ledger.plan.all_blocks)
    first = ""
    for plan, part in zip(levels, parts, strict=True):
        if not first and 0 in part:
            block = plan.block(part.index(0))
            at = f"z, y, x from {block.write_box.start} to {block.write_box.stop}"
            first = f"a shard of {block} ({at}) is not as it was written"
    return _damaged(replace(found, receipts=compared), sum(part.count(0) for part in parts), first)


def with_every_chunk(
    found: Verdict,
    levels: Sequence[Volume],
    host: HostLimits,
    reading: Reading = lambda _what, _done, _total: None,
) -> Verdict:
    """Return a verdict that knows whether every chunk of all levels can be read.

    Parameters
    ----------
    found
        What was found so far.
    levels
        The levels of the output.
    host
        Memory that the process may hold and holds.
    reading
        Told how many chunks are read.

    Raises
    ------
    DoesNotFitError
        If reading a chunk takes more memory than is allowed.
    InputUnavailableError
        If the system cannot read a file.
    """
    takes = host.baseline + max(
        level.read_overhead + math.prod(level.chunks) * level.dtype.itemsize for level in levels
    )
    if takes > host.allowed:
        raise DoesNotFitError(
            f"reading a chunk takes {human_bytes(takes)} of host memory, of which {human_bytes(host.allowed)} are "
            "allowed; choose more --memory"
        )
    total = sum(level.n_volumes * math.prod(map(ceil_div, level.shape, level.chunks)) for level in levels)
    doing = f"reading every chunk of {levels[0].name}"
    chunks = damaged = 0
    first = ""
    for level in levels:
        for volume in range(level.n_volumes):
            for chunk in Box.whole(level.shape).of(volume).tiles(level.chunks):
                reading(doing, chunks, total)
                chunks += 1
                try:
                    level.read(chunk)
                except InputUnavailableError:
                    raise  # the disk's doing, not the result's
                except InputError as error:
                    damaged, first = damaged + 1, first or str(error)
    reading(doing, chunks, total)
    return _damaged(replace(found, chunks=chunks, projected=max(found.projected, takes)), damaged, first)


def _damaged(found: Verdict, count: int, first: str) -> Verdict:
    return replace(found, damaged=found.damaged + count, first_damaged=found.first_damaged or first)
