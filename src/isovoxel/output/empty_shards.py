"""Which shards of an output are empty, and so no files: what tells them from shards that were lost.

While the job runs, the ledger knows it by their receipts. When the output is complete, it stands in its attributes, a
bit for each shard of a level, compressed. It is a byte for each shard in memory, as what is done is for each block.
"""

from __future__ import annotations

import base64
import contextlib
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isovoxel.geometry.axis import ceil_div
from isovoxel.geometry.box import Box
from isovoxel.metadata.series import place_of_volume
from isovoxel.output.provenance import EMPTY_SHARDS
from isovoxel.output.shard import ShardReceipt
from isovoxel.output.shard_store import Flags
from isovoxel.planning.plan import Plan


def shard_counts(plan: Plan) -> tuple[int, ...]:
    """Return how many shards a level has along each axis, those of its series first."""
    series = (length for _, length in plan.source.series)
    return (*series, *(ceil_div(n, s) for n, s in zip(plan.output.shape, plan.storage.shard, strict=True)))


class EmptyShards:
    """The empty shards of all levels that a plan makes; one thread notes at a time."""

    def __init__(self, plan: Plan) -> None:
        self._plans = plan.levels
        self._flags: dict[int, Flags] = {}  # made when they are needed: a plan that is read may be nonsense

    def note(self, level: int, box: Box, receipts: Sequence[ShardReceipt]) -> None:
        """Note what the shards of a block are, by their receipts in the order of `Box.tiles`."""
        plan = self._plans[level]
        empty = [receipt.is_empty for receipt in receipts]
        if not plan.storage.skip_empty or (level not in self._flags and not any(empty)):
            return
        if level not in self._flags:
            self._flags[level] = np.zeros(shard_counts(plan), np.bool_)
        ends = list(zip(box.start, box.stop, plan.storage.shard, strict=True))
        inside = tuple(slice(a // s, ceil_div(b, s)) for a, b, s in ends)
        place = place_of_volume([length for _, length in plan.source.series], box.volume)
        counts = [along.stop - along.start for along in inside]
        self._flags[level][(*place, *inside)] = np.reshape(empty, counts)

    def of_level(self, level: int) -> Flags | None:
        """Return which shards of a level are empty; None where none is."""
        return self._flags.get(level)

    def to_json(self) -> dict[str, Any]:
        """Return what the attributes of a complete output say of it; nothing where no shard is empty."""
        found = {
            str(level): {"count": int(flags.sum()), "bits": flags_to_text(flags)}
            for level, flags in sorted(self._flags.items())
            if flags.any()
        }
        return {EMPTY_SHARDS: found} if found else {}


def flags_to_text(flags: Flags) -> str:
    """Return flags as text, from which `flags_from_text` makes them: packed bits, by zlib, in base64."""
    return base64.b64encode(zlib.compress(np.packbits(flags).tobytes(), 9)).decode("ascii")


def flags_from_text(text: str, counts: Sequence[int]) -> Flags:
    """Return flags of a grid of so many shards.

    Raises
    ------
    ValueError
        If the text is not of such a grid.
    """
    number = math.prod(counts)
    packed = zlib.decompressobj()
    try:
        # No more than there can be: text that says little can be much.
        bits = packed.decompress(base64.b64decode(text, validate=True), ceil_div(number, 8) + 1)
    except zlib.error as error:
        raise ValueError(f"no flags of shards: {error}") from error
    if len(bits) != ceil_div(number, 8) or not packed.eof:
        raise ValueError(f"no flags of {number} shards")
    flags: Flags = np.unpackbits(np.frombuffer(bits, np.uint8), count=number).astype(np.bool_)
    return flags.reshape(counts)


def empty_of_level(made: Mapping[str, Any], level: int, counts: Sequence[int]) -> Flags | None:
    """Return which shards of a level are empty, as what made an output says; None where that says nothing of it."""
    match made.get(EMPTY_SHARDS):
        case {**levels}:
            match levels.get(str(level)):
                case {"bits": str(text)}:
                    with contextlib.suppress(ValueError):
                        return flags_from_text(text, counts)
    return None


def count_empty(made: Mapping[str, Any]) -> int:
    """Return how many shards of all levels are empty, as what made an output says."""
    levels = made.get(EMPTY_SHARDS)
    said = levels.values() if isinstance(levels, Mapping) else ()
    counts = [level.get("count") for level in said if isinstance(level, Mapping)]
    return sum(count for count in counts if type(count) is int and count > 0)
