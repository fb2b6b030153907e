"""What of a job is done? A folder beside the output, `OUT.zarr.isovoxel`, knows while the job is not complete.

- `job.json` says by which plan the output is made; what makes it stands in its attributes.
- `blocks` gets a line for each block when all its shards are files that were flushed to the disk: the block's number
  and the seal of each shard. Lines are only ever appended. One that was torn when the process died is cut off.
- `lock` is held by the process that writes, see `isovoxel.store.lock`.
- `new` and `replaced` are outputs, for a moment: a new one is made here and moved to its place, an old one is moved
  here and deleted.

A line may be lost with the power, for lines are not flushed one by one: then its block is done again, and the same. A
seal that does not match its file (torn, missing, from elsewhere) makes the block count as not done. When the output is
marked complete, the folder goes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from isovoxel.planning.plan import Plan
from isovoxel.store.files import write_whole
from isovoxel.store.shard import Seal

JOB, BLOCKS, LOCK = "job.json", "blocks", "lock"
NEW, REPLACED = "new", "replaced"
"""An output on its way to its place or from it: there it is whole or not at all."""


def ledger_of(output: Path) -> Path:
    """Return the folder that knows what of an output is done."""
    return output.with_name(f"{output.name}.isovoxel")


class Ledger:
    """What of one output is done; `begin` makes one, `read` finds one.

    Only the process that holds the output's lock may call what writes.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan
        """The plan that the output was begun by."""
        self.filled: list[str] = []
        """Damaged parts of the input that were filled."""
        self._file = -1
        self._lock = threading.Lock()

    @classmethod
    def begin(cls, folder: Path, plan: Plan) -> Ledger:
        """Make a new ledger of nothing done, in place of any other.

        Raises
        ------
        OSError
            If the file system refuses.
        """
        folder.mkdir(exist_ok=True)
        (folder / JOB).unlink(missing_ok=True)
        (folder / BLOCKS).unlink(missing_ok=True)
        write_whole(folder / JOB, plan.to_json().encode())
        return cls(folder, plan)

    @classmethod
    def read(cls, folder: Path) -> Ledger | None:
        """Return the ledger in a folder, or None where there is none."""
        try:
            return cls(folder, Plan.from_json((folder / JOB).read_text()))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def add(self, block: int, seals: Iterable[Seal]) -> None:
        """Note that a block is done, whose shards are on the disk; any thread may.

        Raises
        ------
        OSError
            If the file system refuses; then nothing is noted.
        """
        self._append({"block": block, "shards": [list(seal) for seal in seals]})

    def add_filled(self, part: str) -> None:
        """Note that a damaged part of the input was filled; once for each."""
        if part not in self.filled:
            self.filled.append(part)
            self._append({"filled": part})

    def done(self, holds: Callable[[int, list[Seal]], bool]) -> bytearray:
        """Return a 1 for each block that is done, in the plan's order, and a 0 for each that is not.

        Parameters
        ----------
        holds
            Tells whether the shards of a block are files with these seals.
        """
        done = bytearray(self.plan.n_blocks)
        for line in self._lines():
            match line:
                case {"block": int(block), "shards": list(seals)} if 0 <= block < len(done):
                    # A block that was done again has a later line, which is the one that counts.
                    found = _seals(seals)
                    done[block] = found is not None and holds(block, found)
                case {"filled": str(part)} if part not in self.filled:
                    self.filled.append(part)
        return done

    def count(self) -> int:
        """Return how many blocks are noted as done, whatever became of their shards."""
        noted = bytearray(self.plan.n_blocks)
        for line in self._lines():
            match line:
                case {"block": int(block)} if 0 <= block < len(noted):
                    noted[block] = 1
        return sum(noted)

    def close(self) -> None:
        """Close the file of blocks."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _append(self, line: Mapping[str, Any]) -> None:
        with self._lock:
            self._append_alone(line)

    def _append_alone(self, line: Mapping[str, Any]) -> None:
        if self._file < 0:
            self._file = os.open(self.folder / BLOCKS, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            self._cut_torn_line()
        text = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        end = os.lseek(self._file, 0, os.SEEK_END)
        try:
            written = os.write(self._file, text)
            while written < len(text):
                written += os.write(self._file, text[written:])
        except OSError:
            os.ftruncate(self._file, end)
            raise

    def _cut_torn_line(self) -> None:
        end = os.lseek(self._file, 0, os.SEEK_END)
        while end:
            first = max(0, end - 4096)
            os.lseek(self._file, first, os.SEEK_SET)
            newline = os.read(self._file, end - first).rfind(b"\n")
            if newline >= 0:
                end = first + newline + 1
                break
            end = first
        os.ftruncate(self._file, end)

    def _lines(self) -> Iterator[Any]:
        """Yield what the lines say, one at a time; a torn one is left out."""
        try:
            with (self.folder / BLOCKS).open("rb") as file:
                for line in file:
                    if line.endswith(b"\n"):
                        with contextlib.suppress(ValueError):
                            yield json.loads(line)
        except FileNotFoundError:
            return


def _seals(seals: list[Any]) -> list[Seal] | None:
    """Return the seals of a line, or None where it is no line of ours."""
    try:
        return [Seal(*map(int, seal)) for seal in seals]
    except (TypeError, ValueError):
        return None


def remove_ledger(folder: Path) -> None:
    """Remove a ledger's folder, the lock's file last; nobody else may hold the lock."""
    with contextlib.suppress(OSError):  # a complete output needs no ledger, and does not mind one
        for name in (REPLACED, NEW):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in (BLOCKS, JOB, f"{JOB}.partial", LOCK):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
