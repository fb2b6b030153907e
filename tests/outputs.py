"""What lies in an output, level by level: its voxels, as independent readers see them, and its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
import zarr
from numpy.typing import NDArray


def voxels_of(output: Path, level: int = 0) -> NDArray[Any]:
    """Return the voxels of a level, read by zarr-python."""
    return np.asarray(zarr.open_array(output / str(level), mode="r")[...])


def by_tensorstore(output: Path, level: int = 0) -> NDArray[Any]:
    """Return the voxels of a level, read by tensorstore, which takes a tenth of the time."""
    driver = "zarr3" if (output / "zarr.json").exists() else "zarr"
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": str(output / str(level))}}
    return np.asarray(tensorstore.open(spec).result().read().result())


def levels_of(output: Path, levels: int = 3) -> list[NDArray[Any]]:
    """Return the voxels of all levels, read by zarr-python, once tensorstore has read the same."""
    read = [voxels_of(output, level) for level in range(levels)]
    for level, voxels in enumerate(read):
        assert by_tensorstore(output, level).tobytes() == voxels.tobytes()
    return read


def shards_of(folder: Path) -> dict[str, bytes]:
    """Return the files with voxels of an output, or of one of its levels, by their path in it."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name.isdecimal()
    }
