"""What of a job is done? A folder beside the output, `OUT.zarr.isovoxel`, knows while the job is not complete.

Of an output that is a member of a zarr, it lies beside that one.

- `job.json` says by which plan the output is made; what makes it stands in its attributes.
- `blocks` gets a line for each block when all its shards are files that were flushed to the disk: its level, where that
  is a further one, its number, and the seal of each shard. Lines are only ever appended. One that was torn when the
  process died is cut off.
- `lock` is held by the process that writes, see `isovoxel.store.lock`; `made-by-isovoxel` is the folder's mark, see
  `isovoxel.store.ledger_folder`.
- `new` is an output for a moment: it is made here and moved to its place. `replaced` is an old output until the new one
  is complete, and `discarded` one that is being deleted, see `isovoxel.store.replacing`.

A line may be lost with the power, for lines are not flushed one by one: then its block is done again, and the same. A
seal that does not match its file (torn, missing, from elsewhere) makes the block count as not done. When the output is
marked complete, the folder goes.

In an object store the same lies beside the output under the same names; `blocks` are several objects
(`isovoxel.store.lines`), and `new` and `replaced` notes only (`isovoxel.store.object_output`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from isovoxel.errors import OutputError
from isovoxel.places.place import Place
from isovoxel.places.retries import gave_up, retry
from isovoxel.planning.plan import Plan
from isovoxel.planning.stored import plan_from_json, plan_to_json
from isovoxel.store.files import write_whole
from isovoxel.store.ledger_folder import (
    BLOCKS,
    JOB,
    LOCK,
    MARK,
    NEW,
    REPLACED,
    SAVED,
    check_folder,
    claim,
    discard,
    read_own,
)
from isovoxel.store.lines import FileLines, Lines, ObjectLines
from isovoxel.store.membership import Membership, membership_of
from isovoxel.store.shard import PARTIAL, Seal

__all__ = ["BLOCKS", "JOB", "LOCK", "NEW", "REPLACED", "Ledger", "ledger_for", "ledger_of", "remove_ledger"]


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
        self.check: Callable[[], None] = lambda: None
        """Raises where this process holds the output no more; asked before anything is noted."""
        self._blocks = [level.n_blocks for level in plan.levels]
        blocks = folder / BLOCKS
        self._lines: Lines = FileLines(blocks) if isinstance(blocks, Path) else ObjectLines(blocks)

    @classmethod
    def begin(cls, folder: Place, plan: Plan) -> Ledger:
        """Make a new ledger of nothing done, in place of any other.

        Raises
        ------
        OSError
            If the file system refuses; an `OutputError` if the folder is not isovoxel's.
        """
        job, text = folder / JOB, plan_to_json(plan).encode()
        claim(folder)
        ledger = cls(folder, plan)
        ledger._lines.clear()
        if isinstance(job, Path):
            write_whole(job, text)
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
            job = folder / JOB
            text = read_own(job) if isinstance(job, Path) else job.read_bytes()
            return cls(folder, plan_from_json(text.decode()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            if gave_up(error):
                raise OutputError(f"{folder} cannot be read: {getattr(error, 'strerror', None) or error}") from error
            return None

    def add(self, block: int, seals: Iterable[Seal], level: int = 0) -> None:
        """Note that a block of a level is done, whose shards are on the disk; any thread may.

        Raises
        ------
        OSError
            If the file system refuses; then nothing is noted.
        """
        line = {"block": block, "shards": [list(seal) for seal in seals]}
        self._append({"level": level} | line if level else line)

    def add_filled(self, part: str) -> None:
        """Note that a damaged part of the input was filled; once for each."""
        if part not in self.filled:
            self.filled.append(part)
            self._append({"filled": part})

    def done(self, holds: Callable[[int, int, list[Seal]], bool]) -> bytearray:
        """Return a 1 for each block that is done, in the plan's order, level after level, and a 0 for each other.

        Parameters
        ----------
        holds
            Tells whether the shards of a block, by its level and its number there, are files with these seals.
        """
        done = bytearray(self.plan.all_blocks)
        for line in self._read():
            place = self._place(line)
            match line:
                case {"block": int(block), "shards": list(seals)} if place is not None:
                    # A block that was done again has a later line, which is the one that counts.
                    found = _seals(seals)
                    done[place] = found is not None and holds(line.get("level", 0), block, found)
                case {"filled": str(part)} if part not in self.filled:
                    self.filled.append(part)
        return done

    def noted(self) -> bytearray:
        """Return a 1 for each block that is noted as done, as `done` has it, whatever became of its shards."""
        noted = bytearray(self.plan.all_blocks)
        for line in self._read():
            if (place := self._place(line)) is not None:
                noted[place] = 1
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
        self.check()
        self.filled.clear()
        self._lines.clear()

    def close(self) -> None:
        """Keep what was noted, and let go of the rest.

        Raises
        ------
        OSError
            If a store refuses what is still to be kept.
        """
        self._lines.close()

    def _place(self, line: Any) -> int | None:
        """Return which block a line is about, counted from level to level, or None where it is about none."""
        match line:
            case {"level": int(level), "block": int(block)}:
                pass
            case {"block": int(block)}:
                level = 0
            case _:
                return None
        if not (0 <= level < len(self._blocks) and 0 <= block < self._blocks[level]):
            return None
        return sum(self._blocks[:level]) + block

    def _append(self, line: Mapping[str, Any]) -> None:
        self.check()
        text = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        retry(lambda: self._lines.add(text))

    def _read(self) -> Iterator[Any]:
        """Yield what the lines say, one at a time."""
        for line in self._lines:
            with contextlib.suppress(ValueError):
                yield json.loads(line)


def _seals(seals: list[Any]) -> list[Seal] | None:
    """Return the seals of a line, or None where it is no line of ours."""
    try:
        return [Seal(int(size), int(crc), _stamp(stamp)) for size, crc, stamp in seals]
    except (TypeError, ValueError):
        return None


def _stamp(stamp: Any) -> int | str:
    return stamp if isinstance(stamp, str) else int(stamp)


def remove_ledger(folder: Place) -> None:
    """Remove what is the ledger's in its folder, the lock's file and the mark last, and the folder if it is empty then.

    Nobody else may hold the lock. In a store, it is left to who holds it. Of a folder that is not isovoxel's, nothing
    is removed.
    """
    with contextlib.suppress(OSError):  # a complete output needs no ledger, and does not mind one
        check_folder(folder)
        if not isinstance(folder, Path):
            (folder / BLOCKS).delete_tree()
            for name in (REPLACED, NEW, JOB):
                (folder / name).unlink()
            return
        for name in (REPLACED, NEW):
            discard(folder / name, folder)
        for name in SAVED.values():
            (folder / name).unlink(missing_ok=True)
        for partial in folder.glob(f"{JOB}*{PARTIAL}"):
            partial.unlink()
        for name in (BLOCKS, JOB, LOCK, MARK):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
