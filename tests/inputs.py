"""Inputs that take several lines to write, for tests of several rooms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from isovoxel.geometry.grid import Box
from isovoxel.readers.base import Volume
from isovoxel.readers.open import open_volume


def write_n5(path: Path, voxels: np.ndarray, block: tuple[int, ...], codec: str = "gzip", **more: Any) -> Path:
    """Write an N5 dataset in place of what is there; axes and blocks are given z first, which N5 has last."""
    metadata = {"dimensions": voxels.shape[::-1], "blockSize": block[::-1], "dataType": voxels.dtype.name}
    metadata |= {"compression": {"type": codec}} | more
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": f"{path}/"}, "metadata": metadata}
    tensorstore.open(spec, create=True, delete_existing=True).result().write(voxels.T).result()
    return path


def read_all(source: Path | Volume) -> np.ndarray:
    """Return all volumes of an input, one behind the other."""
    volume = source if isinstance(source, Volume) else open_volume(source)
    return np.stack([volume.read(Box((0, 0, 0), volume.shape, at)) for at in range(volume.n_volumes)])


def check_sentence(error: Exception) -> None:
    """Check that a refusal is one line, whatever library's message it repeats."""
    assert "\n" not in str(error)
