"""Inputs that take several lines to write, for tests of several rooms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorstore


def write_n5(path: Path, voxels: np.ndarray, block: tuple[int, ...], codec: str = "gzip", **more: Any) -> Path:
    """Write an N5 dataset in place of what is there; axes and blocks are given z first, which N5 has last."""
    metadata = {"dimensions": voxels.shape[::-1], "blockSize": block[::-1], "dataType": voxels.dtype.name}
    metadata |= {"compression": {"type": codec}} | more
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": f"{path}/"}, "metadata": metadata}
    tensorstore.open(spec, create=True, delete_existing=True).result().write(voxels.T).result()
    return path


def check_sentence(error: Exception) -> None:
    """Check that a refusal is one line, whatever library's message it repeats."""
    assert "\n" not in str(error)
