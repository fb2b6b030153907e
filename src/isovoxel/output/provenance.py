"""Provenance of an output: an attribute of its group says what made it, read without loading zarr.

It also says which shards of a complete output are empty, and so no files: that tells them from shards that were lost.
While the job runs, the ledger knows it by their receipts. When the output is complete, it stands in the attribute, a
bit for each shard of a level, compressed. It is a byte for each shard in memory, as what is done is for each block.
"""

from __future__ import annotations

import base64
import contextlib
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isovoxel.errors import InputError, InputUnavailableError
from isovoxel.geometry.grid import Box, ceil_div
from isovoxel.metadata.series import place_of_volume, stays_inside
from isovoxel.object_store.objects import ObjectPlace, Place, place_of
from isovoxel.object_store.zarr_nodes import read_attributes
from isovoxel.output.shard import ShardReceipt
from isovoxel.output.shard_store import Flags
from isovoxel.planning.plan import Plan

PROVENANCE = "isovoxel"
"""The group's attribute that says what made it, and whether it is complete."""
RECEIPTS = "receipts"
"""Says there that the receipts of all shards are kept, in the ledger's folder, when the output is complete."""

COLLECTION = "collection"
"""Says there, of the topmost group of several images, which: their paths, what they are made of, by which options."""

EMPTY_SHARDS = "empty_shards"
"""Says there, by the levels that have any, which shards are empty, and so no files: how many, and bits, as
`flags_to_text` makes them."""


def read_provenance(path: str | os.PathLike[str] | ObjectPlace) -> dict[str, Any]:
    """Return what an output's attributes say of what made it, and whether it is complete.

    Raises
    ------
    InputError
        If it is no output of isovoxel.
    InputUnavailableError
        If a store does not say.
    """
    path = place_of(path)
    try:
        provenance = read_attributes(path)[PROVENANCE]
    except OSError as error:
        # A store that is out of reach may hold it none the less; what it hides, it would not let us write either.
        if isinstance(path, ObjectPlace) and not isinstance(error, FileNotFoundError | PermissionError):
            raise InputUnavailableError(error.errno, f"{path} cannot be read: {error.strerror}") from error
        provenance = None
    except (ValueError, KeyError):
        provenance = None
    if not isinstance(provenance, dict):
        raise InputError(f"{path} was not written by isovoxel: its attributes do not say what made it")
    return provenance | {"complete": provenance.get("complete") is True}


def made_by(path: Place) -> dict[str, Any] | None:
    """Return what an output's attributes say of what made it, or None where it is none of isovoxel's.

    Raises
    ------
    InputUnavailableError
        If a store does not say.
    """
    try:
        return read_provenance(path)
    except InputUnavailableError:
        raise
    except InputError:
        return None


def images_of_output(path: Place) -> list[str] | None:
    """Return the paths of the images of an output of several; None of any other.

    Raises
    ------
    InputUnavailableError
        If a store does not say.
    """
    said = (made_by(path) or {}).get(COLLECTION)
    images = said.get("images") if isinstance(said, dict) else None
    if not isinstance(images, list):
        return None
    return [image for image in images if isinstance(image, str) and stays_inside(image)]


def is_complete(path: Place) -> bool:
    """Return whether an output is isovoxel's and complete."""
    made = made_by(path)
    return made is not None and made["complete"]


def is_unfinished(path: Place) -> bool:
    """Return whether an output is isovoxel's and not complete."""
    made = made_by(path)
    return made is not None and not made["complete"]


def has_receipts(path: Place) -> bool:
    """Return whether an output is complete and the receipts of its shards were kept."""
    made = made_by(path)
    return made is not None and made["complete"] and made.get(RECEIPTS) is True


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
