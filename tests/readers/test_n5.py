"""N5 datasets, and groups of their levels."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inputs import write_n5
from isovoxel.errors import CorruptInputError, InputError, InputUnavailableError
from isovoxel.geometry.grid import Box
from isovoxel.metadata.hdf5 import read_n5
from isovoxel.object_store.retries import is_transient
from isovoxel.readers import n5
from isovoxel.readers.open import open_volume

STACK = np.random.default_rng(3).integers(0, 999, (13, 47, 61)).astype("uint16")
BLOCK = (5, 16, 32)


def write(path: Path, data: np.ndarray = STACK, block: tuple[int, ...] = BLOCK, **options: Any) -> Path:
    """Write a dataset of these axes, the last one first, with attributes beside N5's own."""
    attributes = options.pop("attributes", {})
    write_n5(path, data, block, **options)
    tell(path, **attributes)
    return path


def tell(path: Path, **attributes: Any) -> None:
    """Add attributes to a dataset or a group."""
    path.mkdir(exist_ok=True, parents=True)
    file = path / "attributes.json"
    file.write_text(json.dumps((json.loads(file.read_text()) if file.is_file() else {}) | attributes))


@pytest.mark.parametrize("codec", ["raw", "gzip", "bzip2", "xz", "zstd", "blosc"])
def test_every_compression_is_read(codec: str, tmp_path: Path) -> None:
    """N5 has x first, and the volume z."""
    more = {"cname": "lz4", "clevel": 5, "shuffle": 1} if codec == "blosc" else {}
    volume = open_volume(write(tmp_path / "a.n5", compression={"type": codec, **more}))
    assert (volume.kind, volume.shape, volume.chunks, volume.dtype) == ("N5", STACK.shape, BLOCK, STACK.dtype)
    box = Box((1, 7, 3), (12, 46, 61))
    np.testing.assert_array_equal(volume.read(box), STACK[box.slices])


@pytest.mark.parametrize("codec", ["raw", "gzip", "bzip2", "xz"])
def test_the_first_version_names_the_codec_alone(codec: str, tmp_path: Path) -> None:
    """In another attribute; without either of them, nothing tells how to decode the blocks."""
    path = write(tmp_path / "a.n5", compression={"type": codec})
    file = path / "attributes.json"
    attributes = json.loads(file.read_text())
    del attributes["compression"]
    file.write_text(json.dumps({**attributes, "compressionType": codec}))
    np.testing.assert_array_equal(open_volume(path).read(Box.whole(STACK.shape)), STACK)
    file.write_text(json.dumps(attributes))
    with pytest.raises(InputError, match="has no compression"):
        open_volume(path)


def test_axes_that_cannot_be_named_are_not_asked_for(tmp_path: Path) -> None:
    """``--axes`` is not for N5."""
    with pytest.raises(InputError, match="4-D") as raised:
        open_volume(write(tmp_path / "a.n5", STACK[None].repeat(2, 0), (1, *BLOCK)))
    assert "--axes" not in str(raised.value)


@pytest.mark.parametrize(
    ("attributes", "size", "origin", "unit"),
    [
        ({"pixelResolution": {"unit": "um", "dimensions": [0.2, 0.3, 2]}}, (2, 0.3, 0.2), (0, 0, 0), "micrometer"),
        ({"pixelResolution": [0.2, 0.3, 2], "unit": "um"}, (2, 0.3, 0.2), (0, 0, 0), "micrometer"),
        (
            {"pixelResolution": {"unit": "um", "dimensions": [1, 1, 2]}, "downsamplingFactors": [2, 2, 1]},
            (2, 2, 2),
            (0, 0.5, 0.5),
            "micrometer",
        ),
        (
            {"resolution": [4, 5, 40], "units": ["nm"] * 3, "offset": [1, 2, 3]},
            (40, 5, 4),
            (3, 2, 1),
            "nanometer",
        ),
        ({"resolution": [4, 5, 40], "units": "nm"}, (40, 5, 4), (0, 0, 0), "nanometer"),
        ({"resolution": [4, 5, 40]}, (40, 5, 4), (0, 0, 0), None),
        (
            {"pixelWidth": 0.2, "pixelHeight": 0.3, "pixelDepth": 2, "pixelUnit": "micron"},
            (2, 0.3, 0.2),
            (0, 0, 0),
            "micrometer",
        ),
        (
            {"transform": {"axes": ["z", "y", "x"], "scale": [5, 4, 3], "translate": [7, 8, 9], "units": ["nm"] * 3}},
            (5, 4, 3),
            (7, 8, 9),
            "nanometer",
        ),
        (
            {"transform": {"axes": ["x", "y", "z"], "scale": [3, 4, 5], "units": ["nm"] * 3}},
            (5, 4, 3),
            (0, 0, 0),
            "nanometer",
        ),
        ({"transform": {"axes": ["x", "y", "t"], "scale": [3, 4, 5]}}, None, (0, 0, 0), None),
        ({"transform": "none"}, None, (0, 0, 0), None),
        ({"resolution": "fine"}, None, (0, 0, 0), None),
        ({"resolution": [1, 2, 0], "offset": [1, 1, 1]}, None, (0, 0, 0), None),
        ({"pixelResolution": {"dimensions": 7}}, None, (0, 0, 0), None),
        ({"pixelWidth": 1}, None, (0, 0, 0), None),
        ({}, None, (0, 0, 0), None),
    ],
)
def test_attributes_state_the_voxel_size(attributes: Any, size: Any, origin: Any, unit: Any, tmp_path: Path) -> None:
    """Every writer's way is understood, with x first, and what makes no sense leaves the size unknown."""
    calibration = read_n5(attributes)
    assert (calibration.voxel_size, calibration.origin, calibration.unit) == (size, origin, unit)
    assert bool(calibration.missing) == (size is None)
    # And whatever tensorstore thinks of them, the dataset opens.
    assert open_volume(write(tmp_path / "a", attributes=attributes)).voxel_size == size


UM = {"unit": "um", "dimensions": [0.5, 0.5, 2]}
COARSE_UM = {"unit": "um", "dimensions": [1, 1, 2]}
TRANSFORM = {"axes": ["z", "y", "x"], "units": ["um"] * 3, "scale": [2, 1, 1], "translate": [0, 0.25, 0.25]}
FINE = {**TRANSFORM, "scale": [2, 0.5, 0.5], "translate": [0, 0, 0]}
HALF = {"downsamplingFactors": [2, 2, 1]}
BOTH = [[1, 1, 1], [2, 2, 1]]
COARSE, PLACED = (2, 1, 1), (0, 0.25, 0.25)


@pytest.mark.parametrize(
    ("setup", "group", "finest", "level", "size", "origin"),
    [
        # BigDataViewer, Paintera
        ({"downsamplingFactors": BOTH}, {"resolution": [0.5, 0.5, 2]}, {}, HALF, COARSE, PLACED),
        ({"downsamplingFactors": BOTH}, {"resolution": [0.5, 0.5, 2]}, {}, {}, COARSE, PLACED),
        ({}, {"resolution": [0.5, 0.5, 2], "offset": [1, 2, 3]}, {}, HALF, COARSE, (3, 2.25, 1.25)),
        ({}, {"resolution": [0.5, 0.5, 2]}, {}, {}, None, None),
        ({}, {"resolution": [0.5, 0.5, 2]}, {"resolution": [0.5, 0.5, 2]}, {}, None, None),
        ({}, {}, {"resolution": [0.5, 0.5, 2]}, HALF, COARSE, PLACED),
        ({}, {}, {"resolution": [0.5, 0.5, 2]}, {"resolution": [0.5, 0.5, 2], **HALF}, COARSE, PLACED),
        ({}, {}, {"resolution": [0.5, 0.5, 2]}, {"resolution": [1, 1, 2], **HALF}, COARSE, (0, 0, 0)),
        (
            {},
            {},
            {"resolution": [0.5, 0.5, 2]},
            {"resolution": [1, 1, 2], "offset": [0.25, 0.25, 0], **HALF},
            COARSE,
            PLACED,
        ),
        ({}, {"resolution": [0.5, 0.5, 2]}, {}, {"resolution": [1, 1, 2], **HALF}, COARSE, (0, 0, 0)),
        ({}, {}, {}, {"resolution": [1, 1, 2], **HALF}, None, None),
        ({}, {}, {"resolution": [0.5, 0.5, 2]}, {"resolution": [3, 3, 2], **HALF}, None, None),
        ({}, {}, {"resolution": [0.5, 0.5, 2]}, {"resolution": [1, 1, 2]}, COARSE, (0, 0, 0)),
        ({}, {}, {"resolution": [0.5, 0.5, 2]}, {"resolution": [0.5, 0.5, 2]}, None, None),
        # N5 Viewer, n5-spark
        ({}, {"pixelResolution": UM, "scales": BOTH}, {}, {}, COARSE, PLACED),
        ({}, {"pixelResolution": UM, "downsamplingFactors": BOTH}, {}, {}, COARSE, PLACED),
        ({}, {"pixelResolution": UM, "scales": BOTH}, {}, HALF, COARSE, PLACED),
        ({}, {}, {"pixelResolution": UM}, {"pixelResolution": UM, **HALF}, COARSE, PLACED),
        ({}, {}, {}, {"pixelResolution": UM, **HALF}, COARSE, PLACED),
        ({}, {}, {"pixelResolution": UM}, {"pixelResolution": COARSE_UM, **HALF}, COARSE, (0, 0, 0)),
        ({}, {}, {"pixelResolution": UM}, {"pixelResolution": COARSE_UM}, COARSE, (0, 0, 0)),
        ({}, {}, {"pixelResolution": UM}, {"pixelResolution": UM}, None, None),
        ({}, {"pixelResolution": UM}, {}, {"downsamplingFactors": "two"}, None, None),
        # COSEM
        ({}, {}, {"transform": FINE}, {"transform": TRANSFORM, "pixelResolution": COARSE_UM, **HALF}, COARSE, PLACED),
        (
            {},
            {
                "multiscales": [
                    {"datasets": [{"path": "s0", "transform": FINE}, {"path": "s1", "transform": TRANSFORM}]}
                ]
            },
            {"pixelResolution": UM},
            {"pixelResolution": COARSE_UM},
            COARSE,
            PLACED,
        ),
        ({}, {"transform": FINE}, {}, HALF, COARSE, PLACED),
        ({}, {"transform": FINE}, {}, {}, None, None),
        # n5-ij
        (
            {},
            {"pixelWidth": 0.5, "pixelHeight": 0.5, "pixelDepth": 2, "pixelUnit": "um"},
            {},
            HALF,
            COARSE,
            PLACED,
        ),
        ({}, {}, {}, HALF, None, None),
    ],
)
def test_a_coarser_level_has_its_own_voxel_size(
    setup: Any, group: Any, finest: Any, level: Any, size: Any, origin: Any, tmp_path: Path
) -> None:
    """Whether its factors are in what the file says, or are to be multiplied; where that is not clear, it has none."""
    home = tmp_path / "a.n5/setup0/timepoint0"
    tell(home.parent, **setup)
    tell(home, **group)
    small = STACK[:5, :16, :16]
    write(home / "s0", small, attributes=finest)
    write(home / "s1", small[:, ::2, ::2], attributes=level)
    volume = open_volume(home / "s1")
    assert volume.voxel_size == size
    if size is None:
        assert volume.missing
    else:
        assert volume.origin == pytest.approx(origin)
    if size is not None or not finest:
        fine = open_volume(home / "s0")
        assert fine.voxel_size in (None, (2, 0.5, 0.5))


def test_a_dataset_under_a_group_has_the_size_that_the_group_says(tmp_path: Path) -> None:
    """Where it is no level of it."""
    tell(tmp_path / "a.n5", resolution=[0.5, 0.5, 2])
    assert open_volume(write(tmp_path / "a.n5/raw")).voxel_size == (2, 0.5, 0.5)


def test_what_bigdataviewer_says_and_stores_must_agree(tmp_path: Path) -> None:
    """It would take the bits of the one as the other."""
    home = tmp_path / "a.n5/setup0"
    tell(home, dataType="uint16")
    assert open_volume(write(home / "timepoint0/s0")).dtype == np.uint16
    tell(home, dataType="int16")
    with pytest.raises(InputError, match="dataType of setup0 is 'int16', but the dataset holds uint16"):
        open_volume(home / "timepoint0/s0")


def test_the_finest_level_of_a_group_is_opened(tmp_path: Path) -> None:
    """A group of levels is its finest one, with the group's attributes, and a container its only image."""
    path = tmp_path / "a.n5"
    tell(path, n5="2.5.1")
    tell(path / "setup0/raw", pixelResolution={"unit": "um", "dimensions": [0.5, 0.5, 2]})
    write(path / "setup0/raw/s0")
    write(path / "setup0/raw/s1", STACK[:, ::2, ::2], attributes={"downsamplingFactors": [2, 2, 1]})
    for name in (path, path / "setup0/raw", path / "setup0/raw/s0"):
        volume = open_volume(name)
        assert volume.voxel_size == (2, 0.5, 0.5)
        assert volume.identity["path"] == str(path / "setup0/raw/s0")
        np.testing.assert_array_equal(volume.read(Box.whole(STACK.shape)), STACK)
    level = open_volume(path / "setup0/raw/s1")
    assert (level.voxel_size, level.origin) == ((2, 1, 1), (0, 0.25, 0.25))
    write(path / "labels")
    with pytest.raises(InputError, match=r"several datasets; name one of them: .*labels, .*raw/s0"):
        open_volume(path)


def test_axes_of_length_one_go(tmp_path: Path) -> None:
    """Other axes must have length 1, whether they have names or not."""
    data = STACK[None, :, None]
    volume = open_volume(write(tmp_path / "a", data, (1, 5, 1, 16, 32), attributes={"axes": ["x", "y", "c", "z", "t"]}))
    np.testing.assert_array_equal(volume.read(Box.whole(STACK.shape)), STACK)
    write(tmp_path / "b", np.stack([STACK] * 2), (1, *BLOCK), attributes={"axes": ["x", "y", "z", "c"]})
    with pytest.raises(InputError, match="2 channels"):
        open_volume(tmp_path / "b")


def test_a_block_that_is_not_stored_is_zero(tmp_path: Path) -> None:
    path = write(tmp_path / "a")
    shutil.rmtree(path / "1")
    expected = STACK.copy()
    expected[:, :, 32:] = 0
    np.testing.assert_array_equal(open_volume(path).read(Box.whole(STACK.shape)), expected)


BOMB = gzip.compress(bytes(20_000_000))


@pytest.mark.parametrize("data", [b"", b"\0\0\0\3", b"\xff" * 60, "cut", "vast", "bomb"])
def test_a_damaged_block_is_named(data: bytes | str, tmp_path: Path) -> None:
    """A block that is cut, damaged or claims any size is named, and the others are read."""
    path = write(tmp_path / "a")
    block = path / "1/1/1"
    stored = block.read_bytes()
    made = {"cut": stored[:99], "vast": stored[:4] + b"\x7f" * 12 + stored[16:], "bomb": stored[:16] + BOMB}
    block.write_bytes(made[data] if isinstance(data, str) else data)
    volume = open_volume(path)
    with pytest.raises(CorruptInputError, match=r"block \(1, 1, 1\)") as raised:
        volume.read(Box((0, 0, 32), STACK.shape))
    assert (raised.value.start, raised.value.stop) == ((5, 16, 32), (10, 32, 61))
    np.testing.assert_array_equal(volume.read(Box((0, 0, 0), (13, 16, 61))), STACK[:, :16])


def test_what_the_system_does_not_give_is_not_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where tensorstore cannot read a block, it is not filled."""
    monkeypatch.setattr(n5, "check_stored", lambda _: None)  # or the ring of links would be damage
    path = write(tmp_path / "a")
    (path / "0/0/0").unlink()
    (path / "0/0/0").symlink_to("0")
    with pytest.raises(InputUnavailableError, match=r"in block \(0, 0, 0\)") as raised:
        open_volume(path).read(Box.whole(STACK.shape))
    assert is_transient(raised.value)


def said(**changes: Any) -> str:
    """Return the metadata of a dataset, some of which say something else."""
    sizes = {"dimensions": [4, 4, 4], "blockSize": [4, 4, 4]}
    return json.dumps(sizes | {"dataType": "uint8", "compression": {"type": "raw"}} | changes)


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ("{", "cannot be read as N5 metadata"),
        ("[1]", "is no JSON object"),
        ("{}", "without a dataset"),
        ('{"dimensions": [4, 4, 4]}', "has no blockSize and no dataType and no compression"),
        (said(dimensions=[4, 4], blockSize=[4, 4]), "2-D"),
        (said(dataType="object"), "N5"),
        (said(dimensions=[4, 0, 4]), "empty"),
    ],
)
def test_metadata_that_make_no_sense_are_refused(attributes: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "attributes.json").write_text(attributes)
    with pytest.raises(InputError, match=why) as raised:
        open_volume(tmp_path)
    assert "\n" not in str(raised.value)
