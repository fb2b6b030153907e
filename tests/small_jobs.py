"""A job of several blocks that takes a moment, and one that ends half-way."""

from __future__ import annotations

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


def stop_at(kind: type[Event] = BlockDone) -> Any:
    """Return a listener that ends the job at the first event of a kind."""

    def listen(event: Event) -> None:
        if isinstance(event, kind):
            raise Stopped

    return listen


class Stopped(Exception):  # noqa: N818 - nothing is wrong
    """Ends a job from within."""


def interrupt(source: Path, output: Path | str, **options: Any) -> None:
    """Begin a job, and end it after a block."""
    with pytest.raises(JobError):
        package.scale(source, output, listeners=[stop_at()], **OPTIONS | options)
