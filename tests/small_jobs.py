"""A job of several blocks that takes a moment, and one that ends half-way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import isovoxel as package
from isovoxel.errors import JobError
from isovoxel.execution.events import BlockDone, Event

OPTIONS: dict[str, Any] = {
    "factor": (2.0, 1.0, 1.0),
    "engine": "exact",
    "chunk": (8, 8, 8),
    "shard": (8, 8, 8),
    "levels": 0,
    "threads": 1,
    "device_memory": "18kB",
}
"""Of a job of several blocks."""
VOXELS = np.arange(8 * 24 * 16, dtype=np.uint16).reshape(8, 24, 16)


def save_input(path: Path) -> Path:
    """Write an input of several blocks."""
    np.save(path, VOXELS)
    return path


class Stopped(Exception):  # noqa: N818 - nothing is wrong
    """Ends a job from within."""


def stop_after(
    count: int = 1, kind: type[Event] = BlockDone, *, level: int | None = None, how: type[BaseException] = Stopped
) -> Callable[[Event], None]:
    """Return a listener that ends the job at so many events of a kind, those of a level where one is given."""
    left = [count]

    def listen(event: Event) -> None:
        if isinstance(event, kind) and level in (None, getattr(event, "level", None)):
            left[0] -= 1
            if left[0] <= 0:
                raise how("stopped from within")

    return listen


def interrupt(source: Path, output: Path | str, **options: Any) -> None:
    """Begin a job, and end it after a block."""
    with pytest.raises(JobError):
        package.scale(source, output, listeners=[stop_after()], **OPTIONS | options)
