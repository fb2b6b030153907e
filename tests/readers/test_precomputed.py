"""Neuroglancer precomputed volumes, as tensorstore writes them, and what is said of those that are not read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore

from command_line import Isovoxel, check_refused
from isovoxel.errors import CorruptInputError, InputError, InputMissingError, OptionError
from isovoxel.geometry.grid import Box
from isovoxel.readers.base import Volume
from isovoxel.readers.files import InputWatch
from isovoxel.readers.open import open_volume
from isovoxel.readers.selection import Selection

VOXELS = np.random.default_rng(0).integers(1, 60_000, (2, 13, 47, 61)).astype("uint16")
"""Of channels, z, y and x."""
SHARDING = {
    "@type": "neuroglancer_uint64_sharded_v1",
    "preshift_bits": 1,
    "minishard_bits": 1,
    "shard_bits": 1,
    "hash": "identity",
}


def write(folder: Path, voxels: np.ndarray = VOXELS, kind: str = "image", **scale: Any) -> Path:
    """Write a volume of one scale, and a coarser one."""
    for level in (0, 1):
        data = voxels[:, :, :: 2**level, :: 2**level]
        spec = {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": f"{folder}/"},
            "multiscale_metadata": {"type": kind, "data_type": voxels.dtype.name, "num_channels": len(voxels)},
            "scale_metadata": {
                "size": data.shape[:0:-1],
                "encoding": "raw",
                "chunk_size": [16, 16, 5],
                "resolution": [200 * 2**level, 300 * 2**level, 2000],
                "voxel_offset": [8 // 2**level, 4 // 2**level, -3],
                **scale,
            },
        }
        tensorstore.open(spec, create=True).result().write(data.T).result()
    return folder


def whole(volume: Volume, which: int = 0) -> np.ndarray:
    """Return all voxels of one of its volumes."""
    return volume.read(Box.whole(volume.shape).of(which))


@pytest.mark.parametrize("scale", [{}, {"sharding": SHARDING}, {"encoding": "png"}], ids=["plain", "sharded", "png"])
def test_scales_and_channels_are_read(scale: dict[str, Any], tmp_path: Path) -> None:
    """With the size that each states, and at the same place in the world."""
    path = write(tmp_path / "a", VOXELS[:1] if "encoding" in scale else VOXELS, **scale)
    volume = open_volume(path)
    assert ("sharded" in volume.kind) == ("sharding" in scale)
    assert (volume.voxel_size, volume.unit, volume.origin) == ((2000, 300, 200), "nanometer", (-6000, 1200, 1600))
    for channel in range(volume.n_volumes):
        for box in (Box.whole(volume.shape), Box((1, 7, 3), (12, 46, 61))):
            np.testing.assert_array_equal(volume.read(box.of(channel)), VOXELS[channel][box.slices])
    coarse = open_volume(path, selection=Selection(level=1))
    assert (coarse.voxel_size, coarse.origin) == ((2000, 600, 400), (-6000, 1350, 1700))
    np.testing.assert_array_equal(whole(coarse), VOXELS[0, :, ::2, ::2])
    (other,) = volume.coarser
    assert other().shape == coarse.shape
    if volume.series:
        np.testing.assert_array_equal(whole(open_volume(path, selection=Selection(channel=1))), VOXELS[1])
    with pytest.raises(OptionError, match="has 2 resolution levels"):
        open_volume(path, selection=Selection(level=2))


def test_a_segmentation_is_labels(tmp_path: Path) -> None:
    """Of 64 bits, as Neuroglancer has them."""
    path = write(tmp_path / "a", VOXELS[:1].astype("uint64"), "segmentation")
    assert open_volume(path).labels
    np.testing.assert_array_equal(whole(open_volume(path)), VOXELS[0])


@pytest.mark.parametrize("scale", [{}, {"sharding": SHARDING}], ids=["plain", "sharded"])
def test_what_is_written_again_is_noticed(scale: dict[str, Any], tmp_path: Path) -> None:
    """Its description, and each of its chunks or shards."""
    path = write(tmp_path / "a", **scale)
    chunks = sorted(next(folder for folder in path.iterdir() if folder.name.startswith("200_")).iterdir())
    for file in (path / "info", chunks[0], chunks[-1]):
        watch = InputWatch(open_volume(path))
        file.write_bytes(file.read_bytes())
        assert watch.is_changed()


def test_damage_is_told_and_what_is_not_stored_is_zero(tmp_path: Path) -> None:
    path = write(tmp_path / "a")
    first = path / "200_300_2000" / "8-24_4-20_-3-2"
    first.write_bytes(first.read_bytes()[:-7])
    with pytest.raises(CorruptInputError, match=r"chunk \(0, 0, 0\)"):
        whole(open_volume(path))
    first.unlink()
    assert not whole(open_volume(path))[:5, :16, :16].any()
    first.mkdir()
    with pytest.raises(CorruptInputError, match="it is no file"):
        whole(open_volume(path))


def test_what_is_not_read_is_one_sentence(tmp_path: Path) -> None:
    """Chunks of other names would be taken for zeros."""
    path = write(tmp_path / "a")
    first = path / "200_300_2000" / "8-24_4-20_-3-2"
    (first.parent / f"{first.name}.gz").write_bytes(gzip.compress(first.read_bytes()))
    with pytest.raises(InputError, match=r"such as 8-24_4-20_-3-2.gz; unpack them first, as gunzip does"):
        open_volume(path)
    info = json.loads((path / "info").read_bytes())
    for change, error, message in (
        ({"scales": [{**info["scales"][0], "key": "../b"}]}, InputError, r"whose key '../b' is no folder in it"),
        (
            {"scales": [{**info["scales"][0], "key": "b"}]},
            InputMissingError,
            "which holds the chunks of .*, is not there",
        ),
        ({"scales": [7]}, InputError, "whose key 'None' is no folder"),
        ({"data_type": "text", "scales": info["scales"][1:]}, InputError, "cannot be read as Neuroglancer precomputed"),
        ({"scales": []}, OptionError, "has 0 resolution level"),
    ):
        (path / "info").write_text(json.dumps({**info, **change}))
        with pytest.raises(error, match=message):
            open_volume(path)


def test_a_volume_is_scaled_and_verified(tmp_path: Path, isovoxel: Isovoxel) -> None:
    """All its channels; a chunk that is another is another input."""
    path, out = write(tmp_path / "a"), tmp_path / "out.zarr"
    words = [path, out, "--engine", "exact", "--factor", "2,1,1", "--levels", "0"]
    assert isovoxel("scale", *words).code == 0
    assert isovoxel("verify", out, "--samples", 50).code == 0
    assert "nothing was done" in isovoxel("scale", *words).out
    assert isovoxel("show", path, "--channel", 1, "--output", tmp_path / "a.png").code == 0
    write(tmp_path / "b", VOXELS + 1)
    (tmp_path / "a").rename(tmp_path / "c")
    (tmp_path / "b").rename(tmp_path / "a")
    check_refused(isovoxel("scale", *words), "was made with another state of the chunks of the input")
