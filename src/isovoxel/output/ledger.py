"""Ledger of finished blocks: the folder `OUT.zarr.isovoxel`, until the job completes.

Of an output that is a member of a zarr, it lies beside that one.

- `job.json` says by which plan the output is made; what makes it stands in its attributes.
- `blocks` gets a line for each block when all its shards are files that were flushed to the disk: its level, where that
  is a further one, its number, and the receipt of each shard: of 0 bytes where it is empty, and so no file. Lines are
  only ever appended, and copied when another process goes on, which cuts one off that was torn when the process died.
- `lock` is held by the process that writes, see `isovoxel.output.lock`; `made-by-isovoxel` is the folder's mark, see
  `isovoxel.output.files`.
- `new` is an output for a moment: it is made here and moved to its place. `replaced` is an old output until the new one
  is complete, and `discarded` one that is being deleted, see `isovoxel.output.replacing`.

A line may be lost with the power, for lines are not flushed one by one: then its block is done again, and the same. A
receipt that does not match its file (torn, missing, from elsewhere) makes the block count as not done. When the output
is marked complete, the folder goes; where its receipts are to be kept, `job.json` and `blocks` stay.

The ledger knows by their receipts which shards are empty, and so no files: that tells them from shards that were lost.
When the output is complete, it stands in the group's attribute, a bit for each shard of a level, compressed. It is a
byte for each shard in memory, as what is done is for each block.

In an object store the same lies beside the output under the same names; `blocks` are several objects
(`isovoxel.output.files`), and `new` and `replaced` notes only (`isovoxel.output.destination`).
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from isovoxel.errors import OutputError
from isovoxel.geometry.grid import ceil_div
from isovoxel.metadata.series import place_of_volume
from isovoxel.object_store.files import parse_json, write_whole
from isovoxel.object_store.objects import Place
from isovoxel.object_store.retries import gave_up, retry
from isovoxel.output.files import (
    BLOCKS,
    JOB,
    LOCK,
    MARK,
    NEW,
    REPLACED,
    SAVED,
    FileLines,
    ObjectLines,
    check_folder,
    claim,
    discard,
    read_own,
)
from isovoxel.output.provenance import Membership, membership_of
from isovoxel.output.shard import PARTIAL, ShardReceipt
from isovoxel.output.shard_store import Flags
from isovoxel.planning.plan import Plan
from isovoxel.planning.resume import plan_from_json

EMPTY_SHARDS = "empty_shards"
"""Says there, by the levels that have any, which shards are empty, and so no files: how many, and bits, as
`flags_to_text` makes them."""


def ledger_of(output: Place) -> Place:
    """Return the folder that knows what of an output is done.

    Raises
    ------
    OutputError
        If nothing can be written there.
    """
    return ledger_for(output, membership_of(output))


def ledger_for(output: Place, store: Membership | None) -> Place:
    """Return the same, where it is known of which zarr the output is a member."""
    return output.with_name(f"{output.name}.isovoxel") if store is None else store.ledger


class Ledger:
    """What of one output is done; `begin` makes one, `read` finds one.

    Only the process that holds the output's lock may call what writes.
    """

    def __init__(self, folder: Place, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan
        """The plan that the output was begun by."""
        self.filled: list[str] = []
        """Damaged parts of the input that were filled."""
        self.empty = EmptyShards(plan)
        """Which shards of what is done are no files."""
        self._check: Callable[[], None] = lambda: None
        self._blocks = [level.n_blocks for level in plan.levels]
        blocks = folder / BLOCKS
        self._lines = FileLines(blocks) if isinstance(blocks, Path) else ObjectLines(blocks)
        self.close = self._lines.close
        """Keeps what was noted, and lets go of the rest; an OSError where a store refuses what is still to be kept."""

    @classmethod
    def begin(cls, folder: Place, plan: Plan, check: Callable[[], None] = lambda: None) -> Ledger:
        """Make a new ledger of nothing done, in place of any other.

        Parameters
        ----------
        folder, plan
            Where it lies, and what is done.
        check
            As `hold` has it.

        Raises
        ------
        OSError
            If the file system refuses; an `OutputError` if the folder is not isovoxel's.
        """
        job, text = folder / JOB, plan.to_json().encode()
        check()
        claim(folder)
        ledger = cls(folder, plan)
        ledger.hold(check, anew=True)  # before the plan is another, by which lines would be read
        if isinstance(job, Path):
            write_whole(job, text, check)
        else:
            job.write(text)
        return ledger

    @classmethod
    def read(cls, folder: Place) -> Ledger | None:
        """Return the ledger in a folder, or None where there is none.

        Raises
        ------
        OutputError
            If a store does not say.
        """
        try:
            check_folder(folder)
            return cls(folder, plan_from_json(read_own(folder / JOB).decode()))
        except (OSError, ValueError) as error:
            if gave_up(error):
                raise OutputError(f"{folder} cannot be read: {getattr(error, 'strerror', None) or error}") from error
            return None

    def hold(self, check: Callable[[], None], *, anew: bool = False) -> None:
        """Take the ledger over from whoever noted blocks before, who notes none any more.

        Parameters
        ----------
        check
            Raises where this process holds the output no more; asked before anything is noted.
        anew
            Whether what was noted is forgotten.

        Raises
        ------
        OSError
            If the file system refuses; then it is as it was.
        """
        self._check = check
        if isinstance(self.folder, Path):
            _sweep(self.folder)
        self._lines.hold(check, anew=anew)

    def add(self, block: int, receipts: Iterable[ShardReceipt], level: int = 0) -> None:
        """Note that a block of a level is done, whose shards are on the disk; any thread may.

        Raises
        ------
        OSError
            If the file system refuses; then nothing is noted.
        """
        receipts = list(receipts)
        line = {"block": block, "shards": [list(receipt) for receipt in receipts]}
        self._append({"level": level} | line if level else line)
        self.empty.note(level, block, receipts)

    def add_filled(self, part: str) -> None:
        """Note that a damaged part of the input was filled; once for each."""
        if part not in self.filled:
            self.filled.append(part)
            self._append({"filled": part})

    def done(self, holds: Callable[[int, int, list[ShardReceipt]], bool], each: Each = map) -> bytearray:
        """Return a 1 for each block that is done, in the plan's order, level after level, and a 0 for each other.

        Parameters
        ----------
        holds
            Tells whether the shards of a block, by its level and its number there, are files with these receipts.
        each
            Calls a function with each line, several at a time if it likes, and yields the results in the lines' order.
        """
        done = bytearray(self.plan.all_blocks)

        def looked(line: Noted | str) -> tuple[Noted | str, bool]:
            return line, isinstance(line, Noted) and holds(*line)

        for line, held in each(looked, self._read()):
            match line:
                case Noted(level, block, receipts):
                    # A block that was done again has a later line, which is the one that counts.
                    done[self._place(line)] = held
                    if held:
                        self.empty.note(level, block, receipts)
                case str() if line not in self.filled:
                    self.filled.append(line)
        return done

    def noted(self) -> bytearray:
        """Return a 1 for each block that is noted as done, as `done` has it, whatever became of its shards."""
        noted = bytearray(self.plan.all_blocks)
        for line in self._read():
            if isinstance(line, Noted):
                noted[self._place(line)] = 1
        return noted

    def count(self) -> int:
        """Return how many blocks are noted as done."""
        return sum(self.noted())

    def forget(self) -> None:
        """Take all blocks for not done, what was filled too.

        Raises
        ------
        OSError
            If the file system refuses.
        """
        self._check()
        self.filled.clear()
        self._lines.clear()

    def _place(self, line: Noted) -> int:
        """Return which block a line is about, counted from level to level."""
        return sum(self._blocks[: line.level]) + line.block

    def _append(self, line: Mapping[str, Any]) -> None:
        self._check()
        text = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        retry(lambda: self._lines.add(text))

    def _read(self) -> Iterator[Noted | str]:
        """Yield what the lines say, one at a time: blocks that the plan has, and parts that were filled."""
        for text in self._lines:
            with contextlib.suppress(ValueError):
                line = parse_json(text)
                match line:
                    case {"filled": str(part)} if len(line) == 1:
                        yield part
                    case {"block": _, "shards": [*_]}:
                        noted = _noted(line)
                        if noted.level < len(self._blocks) and noted.block < self._blocks[noted.level]:
                            yield noted


class Noted(NamedTuple):
    """What a line says of a block that is done."""

    level: int
    """Its level."""
    block: int
    """Its number there."""
    receipts: list[ShardReceipt]
    """Those of its shards."""


Looked = tuple[Noted | str, bool]
"""A line, and whether it is of a block that is done."""
Each = Callable[[Callable[[Noted | str], Looked], Iterator[Noted | str]], Iterator[Looked]]
"""As `map`."""


def _noted(line: Mapping[str, Any]) -> Noted:
    """Return what a line says of a block; a `ValueError` where a value of it is not of its type."""
    receipts = []
    for receipt in line["shards"]:
        if not (isinstance(receipt, list) and len(receipt) == 3):
            raise ValueError(f"no receipt: {receipt!r:.80}")
        size, crc, stamp = receipt
        receipts.append(ShardReceipt(_whole(size), _whole(crc), stamp if isinstance(stamp, str) else _whole(stamp)))
    return Noted(_whole(line.get("level", 0)), _whole(line["block"]), receipts)


def _whole(value: Any) -> int:
    """Return a whole number from 0 on, as we write them: true is none, nor is 1.0."""
    if type(value) is not int or value < 0:
        raise ValueError(f"no whole number: {value!r:.80}")
    return value


def _sweep(folder: Path) -> None:
    """Remove files that were not written whole by processes that are dead, or are taken for dead."""
    for name in (JOB, BLOCKS):
        for partial in folder.glob(f"{name}.*{PARTIAL}"):
            partial.unlink(missing_ok=True)


def remove_ledger(folder: Place, *, receipts: bool = False) -> None:
    """Remove what is the ledger's in its folder, the lock's file and the mark last, and the folder if it is empty then.

    Nobody else may hold the lock. In a store, it is left to who holds it. Of a folder that is not isovoxel's, nothing
    is removed.

    Parameters
    ----------
    folder
        The ledger's.
    receipts
        Whether the plan and the blocks with the receipts of their shards stay there.
    """
    kept = (BLOCKS, JOB, MARK) if receipts else ()
    with contextlib.suppress(OSError):  # a complete output needs no ledger, and does not mind one
        check_folder(folder)
        if not isinstance(folder, Path):
            if not receipts:
                (folder / BLOCKS).delete_tree()
            for name in (REPLACED, NEW, JOB):
                if name not in kept:
                    (folder / name).unlink()
            return
        for name in (REPLACED, NEW):
            discard(folder / name, folder)
        for name in SAVED.values():
            (folder / name).unlink(missing_ok=True)
        _sweep(folder)
        for name in (BLOCKS, JOB, LOCK, MARK):
            if name not in kept:
                (folder / name).unlink(missing_ok=True)
        if not receipts:
            folder.rmdir()


def shard_counts(plan: Plan) -> tuple[int, ...]:
    """Return how many shards a level has along each axis, those of its series first."""
    series = (length for _, length in plan.source.series)
    return (*series, *(ceil_div(n, s) for n, s in zip(plan.output.shape, plan.storage.shard, strict=True)))


@dataclass(frozen=True)
class EmptyShards:
    """The empty shards of all levels that a plan makes; one thread notes at a time."""

    plan: Plan
    """That of the full level."""
    flags: dict[int, Flags] = field(default_factory=dict)
    """Which shards of a level are empty, by the levels that have any; a plan that is read may be nonsense."""

    def note(self, level: int, block: int, receipts: Sequence[ShardReceipt]) -> None:
        """Note what the shards of a block are, by their receipts in the order of `Box.tiles`."""
        plan = self.plan.levels[level]
        empty = [receipt.is_empty for receipt in receipts]
        if not plan.storage.skip_empty or (level not in self.flags and not any(empty)):
            return
        if level not in self.flags:
            self.flags[level] = np.zeros(shard_counts(plan), np.bool_)
        box = plan.block(block).write_box
        ends = list(zip(box.start, box.stop, plan.storage.shard, strict=True))
        inside = tuple(slice(a // s, ceil_div(b, s)) for a, b, s in ends)
        place = place_of_volume([length for _, length in plan.source.series], box.volume)
        counts = [along.stop - along.start for along in inside]
        self.flags[level][(*place, *inside)] = np.reshape(empty, counts)

    def to_json(self) -> dict[str, Any]:
        """Return what the attributes of a complete output say of it; nothing where no shard is empty."""
        found = {
            str(level): {"count": int(flags.sum()), "bits": flags_to_text(flags)}
            for level, flags in sorted(self.flags.items())
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
