"""OME-Zarr images, plates and collections of both versions, as tests write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr

KINDS = {"t": "time", "c": "channel"}


def put_attributes(group: Path, version: str, attributes: dict[str, Any]) -> None:
    """Make a group with OME-Zarr's attributes where this version has them."""
    made = zarr.open_group(group, mode="a", zarr_format=3 if version == "0.5" else 2)
    made.attrs.update({"ome": {"version": "0.5"} | attributes} if version == "0.5" else attributes)


def pyramid(
    group: Path, levels: list[np.ndarray], version: str = "0.5", axes: str = "zyx", chunks: tuple[int, ...] = ()
) -> Path:
    """Write an image of levels, each of half the length of the one before along z, y and x where it has that."""
    named = [{"name": n, "type": KINDS.get(n, "space")} | ({"unit": "micrometer"} if n in "zyx" else {}) for n in axes]
    datasets = []
    for index, level in enumerate(levels):
        ratio = [a / b for a, b in zip(levels[0].shape, level.shape, strict=True)]
        size = [{"z": 2.0, "y": 0.5, "x": 0.5}.get(axis, 1.0) for axis in axes]
        scale = [s * r for s, r in zip(size, ratio, strict=True)]
        transforms = [
            {"type": "scale", "scale": scale},
            {"type": "translation", "translation": [(new - old) / 2 for new, old in zip(scale, size, strict=True)]},
        ]
        datasets.append({"path": f"level{index}", "coordinateTransformations": transforms})
        array = zarr.create_array(
            group / f"level{index}",
            shape=level.shape,
            chunks=chunks or tuple(min(n, 1 if a in "tc" else 4) for n, a in zip(level.shape, axes, strict=True)),
            dtype=level.dtype,
            zarr_format=3 if version == "0.5" else 2,
        )
        array[...] = level
    image = {"version": version} if version == "0.4" else {}
    put_attributes(group, version, {"multiscales": [image | {"axes": named, "datasets": datasets}]})
    return group


def halved(data: np.ndarray, count: int) -> list[np.ndarray]:
    """Return levels: the data, and every second voxel of the level before."""
    levels = [data]
    while len(levels) < count:
        levels.append(levels[-1][..., ::2, ::2, ::2])
    return levels


RNG = np.random.default_rng(7)
FIELDS = {path: RNG.integers(0, 999, (4, 8, 8)).astype(np.uint16) for path in ("A/1/0", "A/1/1", "B/2/0", "B/2/1")}


def plate(path: Path, version: str = "0.5") -> Path:
    """Write a plate of two wells with two fields each."""
    wells = [{"path": "A/1", "rowIndex": 0, "columnIndex": 0}, {"path": "B/2", "rowIndex": 1, "columnIndex": 1}]
    names: dict[str, Any] = {"rows": [{"name": "A"}, {"name": "B"}], "columns": [{"name": "1"}, {"name": "2"}]}
    put_attributes(path, version, {"plate": names | {"wells": wells}})
    for well in wells:
        put_attributes(path / str(well["path"]), version, {"well": {"images": [{"path": "0"}, {"path": "1"}]}})
    for field, voxels in FIELDS.items():
        pyramid(path / field, [voxels], version)
    return path


def collection(path: Path, version: str = "0.5", listed: bool = True) -> Path:
    """Write what bioformats2raw makes of a file of two images."""
    put_attributes(path, version, {"bioformats2raw.layout": 3})
    if listed:
        put_attributes(path / "OME", version, {"series": ["0", "1"]})
    for n, voxels in enumerate(list(FIELDS.values())[:2]):
        pyramid(path / str(n), [voxels], version)
    return path


def positions(path: Path, shapes: int = 2) -> Path:
    """Write an OME-TIFF of several positions."""
    with tifffile.TiffWriter(path, ome=True) as tif:
        for voxels in list(FIELDS.values())[:shapes]:
            tif.write(
                voxels, metadata={"axes": "ZYX", "PhysicalSizeZ": 2.0, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
            )
    return path
