"""Zarrs in zip files, as RFC-9 has them and as people pack them."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import isovoxel
from isovoxel.errors import CorruptInputError, InputError, InputUnavailableError, OptionError
from isovoxel.geometry.grid import Box
from isovoxel.readers import packed
from isovoxel.readers.open import open_volume
from isovoxel.readers.selection import Selection

DATA = np.random.default_rng(8).integers(0, 60_000, (6, 24, 32), "u2")
WHOLE = Box.whole(DATA.shape)


def ome(path: Path, version: str = "0.5", **options: Any) -> Path:
    """Write an image of two levels, as zarr-python does."""
    group = zarr.open_group(path, mode="w", zarr_format=3 if version == "0.5" else 2)
    sets = []
    for level, data in enumerate((DATA, DATA[:, ::2, ::2])):
        group.create_array(str(level), data=data, **{"chunks": (4, 12, 16), **options})
        step = 0.5 * 2**level
        sets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": [2, step, step]}]})
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    image = {"axes": axes, "datasets": sets}
    if version == "0.5":
        group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    else:
        group.attrs["multiscales"] = [{**image, "version": "0.4"}]
    return path


COMMENT = {"ome": {"version": "0.5", "zipFile": {"centralDirectory": {"jsonFirst": True}}}}


def zip_of(folder: Path, path: Path, root: Path, method: int = zipfile.ZIP_STORED) -> Path:
    """Pack a folder, metadata first, with the comment of RFC-9."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.comment = json.dumps(COMMENT).encode()
        for file in sorted(folder.rglob("*"), key=lambda file: (file.name != "zarr.json", len(file.parts))):
            if file.is_file():
                archive.write(file, file.relative_to(root))
    return path


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_an_image_in_a_zip_is_read(version: str, method: int, nested: bool, tmp_path: Path) -> None:
    """As the folder is: voxels, size, levels; stored or deflated, at the top or in a folder."""
    folder = ome(tmp_path / "image.zarr", version)
    path = zip_of(
        folder, tmp_path / ("image.zarr.zip" if nested else "image.ozx"), tmp_path if nested else folder, method
    )
    volume, plain = open_volume(path), open_volume(folder)
    assert volume.kind == f"OME-Zarr {version} (zip)"
    assert (volume.shape, volume.voxel_size, volume.unit) == (plain.shape, plain.voxel_size, plain.unit)
    for box in (WHOLE, Box((1, 5, 3), (5, 23, 31))):
        np.testing.assert_array_equal(volume.read(box), DATA[box.slices])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume.read))(WHOLE), DATA)  # noqa: S301
    coarse = volume.coarser[0]()
    np.testing.assert_array_equal(coarse.read(Box.whole(coarse.shape)), DATA[:, ::2, ::2])
    chosen = open_volume(path, selection=Selection(level=1))
    assert chosen.voxel_size == (2, 1, 1)
    assert chosen.files is not None
    assert list(chosen.files(WHOLE)) == [str(path)]


def test_shards_in_a_zip_are_read(tmp_path: Path) -> None:
    """As RFC-9 recommends them."""
    folder = ome(tmp_path / "a.zarr", chunks=(2, 12, 16), shards=(4, 24, 32))
    np.testing.assert_array_equal(open_volume(zip_of(folder, tmp_path / "a.ozx", folder)).read(WHOLE), DATA)


def test_what_zarr_python_packs_is_read(tmp_path: Path) -> None:
    """Its own ZipStore wrote the file: an array, and a group with several, of which one is named."""
    with zarr.storage.ZipStore(tmp_path / "a.zip", mode="w") as store:
        zarr.create_array(store, data=DATA, chunks=(4, 12, 16), dimension_names=["z", "y", "x"])
    np.testing.assert_array_equal(open_volume(tmp_path / "a.zip").read(WHOLE), DATA)
    with zarr.storage.ZipStore(tmp_path / "b.zip", mode="w") as store:
        group = zarr.create_group(store)
        group.create_array("one", data=DATA)
        group.create_array("two", data=DATA[::-1])
    with pytest.raises(InputError, match=r"name one of its arrays: \S*b\.zip:/one, \S*b\.zip:/two"):
        open_volume(tmp_path / "b.zip")
    np.testing.assert_array_equal(open_volume(f"{tmp_path}/b.zip:/two").read(WHOLE), DATA[::-1])


def test_a_zip_is_scaled_as_its_folder(tmp_path: Path) -> None:
    folder = ome(tmp_path / "a.zarr")
    isovoxel.scale(zip_of(folder, tmp_path / "a.ozx", folder), tmp_path / "one.zarr")
    isovoxel.scale(folder, tmp_path / "two.zarr")
    one, two = (zarr.open_array(tmp_path / f"{name}.zarr" / "0", mode="r")[...] for name in ("one", "two"))
    np.testing.assert_array_equal(one, two)
    assert isovoxel.verify(tmp_path / "one.zarr", samples=50).holds


def test_many_threads_read_one_zip(tmp_path: Path) -> None:
    folder = ome(tmp_path / "a.zarr")
    volume = open_volume(zip_of(folder, tmp_path / "a.ozx", folder))
    boxes = [Box((z, y, 0), (z + 1, y + 6, 32)) for z in range(6) for y in range(0, 24, 6)] * 4
    with ThreadPoolExecutor(8) as pool:
        for box, found in zip(boxes, pool.map(volume.read, boxes), strict=True):
            np.testing.assert_array_equal(found, DATA[box.slices])


def test_a_zip_of_very_many_members_is_refused_by_their_number(tmp_path: Path) -> None:
    """Which is beyond 16 bits, so that it stands in a record of its own."""
    with zipfile.ZipFile(tmp_path / "a.ozx", "w") as archive:
        archive.writestr(zipfile.ZipInfo("0/c/0"), b"")
        archive.filelist *= 66_000
    with pytest.raises(InputError, match=r"is a zip of 66,000 members, more than the 65,536 that isovoxel reads"):
        open_volume(tmp_path / "a.ozx")


def test_a_damaged_chunk_in_a_zip_is_told(tmp_path: Path) -> None:
    """The zip's own checksum tells."""
    folder = ome(tmp_path / "a.zarr", "0.4", compressors=None)
    path = zip_of(folder, tmp_path / "a.ozx", folder)
    data = bytearray(path.read_bytes())
    at = data.index(DATA[:4, :12, :16].tobytes())
    data[at + 9] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptInputError) as raised:
        open_volume(path).read(WHOLE)
    assert (raised.value.start, raised.value.stop) == ((0, 0, 0), (4, 12, 16))


def test_zips_that_are_none_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut, of too many members, without a zarr, or with something selected that it does not have."""
    folder = ome(tmp_path / "a.zarr")
    path = zip_of(folder, tmp_path / "a.ozx", folder)
    with pytest.raises(OptionError, match="2 resolution levels"):
        open_volume(path, selection=Selection(level=2))
    (tmp_path / "cut.ozx").write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"is a damaged zip .*copy or write it again"):
        open_volume(tmp_path / "cut.ozx")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "no image")
    with pytest.raises(InputError, match="packed by zip; unpack it first"):
        open_volume(tmp_path / "other.zip")
    monkeypatch.setattr(packed, "MOST_MEMBERS", 3)
    with pytest.raises(InputError, match=r"is a zip of \d+ members, more than the 3 that isovoxel reads"):
        open_volume(path)


def test_what_ngff_zarr_packs_is_read(tmp_path: Path) -> None:
    """Another library's ``.ozx``: the voxels that it was given, their size and position."""
    given = {"z": 2.0, "y": 0.5, "x": 0.25}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ngff_zarr = pytest.importorskip("ngff_zarr")
        image = ngff_zarr.to_ngff_image(
            DATA, dims=["z", "y", "x"], scale=given, translation={"z": 1.0, "y": 2.0, "x": 3.0}
        )
        ngff_zarr.to_ngff_zarr(
            str(tmp_path / "a.ozx"), ngff_zarr.to_multiscales(image, scale_factors=[]), version="0.5"
        )
    volume = open_volume(tmp_path / "a.ozx")
    assert (volume.voxel_size, volume.origin) == ((2.0, 0.5, 0.25), (1.0, 2.0, 3.0))
    np.testing.assert_array_equal(volume.read(WHOLE), DATA)


def test_chunks_that_are_not_stored_are_the_fill_value(tmp_path: Path) -> None:
    folder = ome(tmp_path / "a.zarr")
    (folder / "0" / "c" / "1" / "1" / "1").unlink()
    path = zip_of(folder, tmp_path / "a.ozx", folder)
    volume, of_folder = open_volume(path), open_volume(folder)
    np.testing.assert_array_equal(volume.read(WHOLE), of_folder.read(WHOLE))
    assert (volume.read(WHOLE) != DATA).any()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_note_says_where_one_thread_at_a_time_reads(method: int, tmp_path: Path) -> None:
    """Of a zip that compresses its members."""
    folder = ome(tmp_path / "a.zarr")
    volume = open_volume(zip_of(folder, tmp_path / "a.ozx", folder, method))
    assert (packed.ONE_BY_ONE in volume.notes) == (method == zipfile.ZIP_DEFLATED)
    assert (volume.cached is None) == (method == zipfile.ZIP_DEFLATED)


def test_another_zip_in_its_place_is_read_as_it_is(tmp_path: Path) -> None:
    """Its members lie elsewhere; one that compresses them is an error, and one that is gone is not read as zeros."""
    folder = ome(tmp_path / "a.zarr")
    path = zip_of(folder, tmp_path / "a.ozx", folder)
    volume = open_volume(path)
    with zipfile.ZipFile(tmp_path / "next.ozx", "w") as archive:
        archive.writestr("first.txt", "moves all that follows")
    with zipfile.ZipFile(tmp_path / "next.ozx", "a") as archive, zipfile.ZipFile(path) as before:
        for name in before.namelist():
            archive.writestr(name, before.read(name))
    (tmp_path / "next.ozx").replace(path)
    np.testing.assert_array_equal(volume.read(WHOLE), DATA)
    zip_of(folder, tmp_path / "next.ozx", folder, zipfile.ZIP_DEFLATED).replace(path)
    with pytest.raises(CorruptInputError, match="it has been changed since it was opened"):
        volume.read(WHOLE)
    path.unlink()
    with pytest.raises(InputUnavailableError):
        volume.read(WHOLE)
