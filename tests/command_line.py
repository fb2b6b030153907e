"""The command line as tests call it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object that it printed, on one line."""
        assert (self.code, self.out.count("\n")) == (0, 1), self.err
        return json.loads(self.out)


Isovoxel = Callable[..., Outcome]
"""What the fixture `isovoxel` gives: it takes the command's words."""


def check_refused(said: Outcome, why: str, code: int = 2) -> None:
    """Check that a command said one sentence on standard error and nothing else."""
    assert (said.code, said.out) == (code, "")
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert why in said.err


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and modification time of everything in a folder, however deep."""
    entries = {str(p.relative_to(folder)): p.lstat() for p in folder.rglob("*")}
    return {name: (entry.st_size, entry.st_mtime_ns) for name, entry in entries.items()}
