"""Compare what is stored with its checksums: shards with the receipts that were kept, chunks with their own.

Shards are read one after another, piece by piece, and chunks one at a time, so this takes next to no memory.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from isovoxel.errors import DoesNotFitError, InputError, InputUnavailableError
from isovoxel.execution.verify import Verdict
from isovoxel.geometry.box import Box
from isovoxel.object_store.place import Place
from isovoxel.output.ledger import Ledger, ledger_of
from isovoxel.output.provenance import RECEIPTS
from isovoxel.output.shard import ShardReceipt
from isovoxel.output.writer import OmeZarrWriter
from isovoxel.planning.limits import HostLimits
from isovoxel.planning.memory import human_bytes
from isovoxel.readers.base import Volume
from isovoxel.readers.files import unavailable


def with_receipts(found: Verdict, output: Place, made: Mapping[str, Any]) -> Verdict:
    """Return a verdict that knows whether all shards are as their receipts say, where these were kept.

    Parameters
    ----------
    found
        What was found so far.
    output
        The output.
    made
        What its attributes say of what made it.

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
    compared = 0
    with contextlib.ExitStack() as stack:
        writers = [OmeZarrWriter.of_plan(output, plan, 0) for plan in levels]
        for writer in writers:
            stack.callback(writer.close)

        def holds(level: int, index: int, receipts: list[ShardReceipt]) -> bool:
            nonlocal compared
            compared += len(receipts)
            return writers[level].holds(levels[level].block(index).write_box, receipts, read=True)

        try:
            parts = ledger.plan.split(ledger.done(holds))
        except OSError as error:
            raise unavailable(f"the shards of {output} cannot be compared with their receipts", error) from error
    first = ""
    for plan, part in zip(levels, parts, strict=True):
        if not first and 0 in part:
            block = plan.block(part.index(0))
            at = f"z, y, x from {block.write_box.start} to {block.write_box.stop}"
            first = f"a shard of {block} ({at}) is not as it was written"
    return _damaged(replace(found, receipts=compared), sum(part.count(0) for part in parts), first)


def with_every_chunk(found: Verdict, levels: Sequence[Volume], host: HostLimits) -> Verdict:
    """Return a verdict that knows whether every chunk of all levels can be read.

    Parameters
    ----------
    found
        What was found so far.
    levels
        The levels of the output.
    host
        Memory that the process may hold and holds.

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
    chunks = damaged = 0
    first = ""
    for level in levels:
        for volume in range(level.n_volumes):
            for chunk in Box.whole(level.shape).of(volume).tiles(level.chunks):
                chunks += 1
                try:
                    level.read(chunk)
                except InputUnavailableError:
                    raise  # the disk's doing, not the result's
                except InputError as error:
                    damaged, first = damaged + 1, first or str(error)
    return _damaged(replace(found, chunks=chunks, projected=max(found.projected, takes)), damaged, first)


def _damaged(found: Verdict, count: int, first: str) -> Verdict:
    return replace(found, damaged=found.damaged + count, first_damaged=found.first_damaged or first)
