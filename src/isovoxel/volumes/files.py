"""What tells one file, or one zarr, from another or a later one, and what made it unreadable?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from isovoxel.errors import InputError

LONGEST_REASON = 200
"""Longest part of another library's message that is repeated."""


def file_identity(path: Path) -> dict[str, Any]:
    """Return path, size and modification time of a file, as JSON values."""
    status = path.stat()
    return {"path": str(path.resolve()), "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def metadata_identity(path: Path, files: Iterable[Path]) -> dict[str, Any]:
    """Return path and a hash over the metadata files of a zarr, as JSON values."""
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.name}:{len(content)}:".encode() + content)
    return {"path": str(path.resolve()), "metadata": digest.hexdigest()}


def unreadable(name: str, what: str, error: Exception) -> InputError:
    """Return the one-sentence error for what another library could not read."""
    lines = str(error).strip().splitlines()
    reason = lines[0][:LONGEST_REASON] if lines else type(error).__name__
    return InputError(f"{name} cannot be read as {what}: {reason}")


def check_complete(name: str, needed: int, size: int) -> None:
    """Raise an `InputError` where a file is shorter than its header says."""
    if needed > size:
        raise InputError(
            f"{name} is truncated: its voxels take {needed} bytes, but the file has {size}, "
            f"so {needed - size} bytes are missing; copy or write it again"
        )
