"""Opening whatever a user names."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import isovoxel
from inputs import check_sentence
from isovoxel.errors import InputError, InputMissingError, IsovoxelError, OptionError
from isovoxel.geometry.grid import Box
from isovoxel.readers.base import SUPPORTED_DTYPES
from isovoxel.readers.open import open_volume
from strategies import examples

STACK = np.arange(5 * 6 * 7, dtype="uint16").reshape(5, 6, 7)


def test_content_decides_not_the_ending(tmp_path: Path) -> None:
    """A file or folder is opened by what it holds, whatever its name."""
    np.save(tmp_path / "a.npy", STACK)
    (tmp_path / "a.npy").rename(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", STACK, photometric="minisblack")
    (tmp_path / "b.tif").rename(tmp_path / "b.npy")
    zarr.create_array(tmp_path / "c.tif", data=STACK)
    kinds = [open_volume(tmp_path / name).kind for name in ("a.tif", "b.npy", "c.tif")]
    assert kinds == ["NumPy file", "TIFF", "zarr v3 array"]


def test_paths_come_as_text_or_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path works, and is read from still when the working directory has changed."""
    for name, write in (
        ("a.npy", lambda path: np.save(path, STACK)),
        ("a.tif", lambda path: tifffile.imwrite(path, STACK, photometric="minisblack")),
        ("b.tif", lambda path: tifffile.imwrite(path, STACK, photometric="minisblack", compression="zlib")),
        ("a.zarr", lambda path: zarr.create_array(path, data=STACK)),
    ):
        write(tmp_path / name)
        monkeypatch.chdir(tmp_path)
        volumes = [open_volume(name), open_volume(Path(name)), open_volume(os.fsencode(name).decode())]
        monkeypatch.chdir("/")
        for volume in volumes:
            assert volume.name == name
            assert volume.identity["path"] == str(tmp_path / name)
            np.testing.assert_array_equal(volume.read(Box.whole(STACK.shape)), STACK)


@pytest.mark.parametrize("path", ["", "nothing.tif", "no/folder/a.zarr", "a\0b", "\ud800"])
def test_what_is_not_there_is_missing(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path to nothing is an InputMissingError, which is a FileNotFoundError too."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputMissingError):
        open_volume(path)
    with pytest.raises(FileNotFoundError):
        open_volume(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\x03\x04 and so on", "is of no kind that isovoxel knows, packed by zip; unpack it first, as unzip does"),
        (b"BZh91AY&SY", "packed by bzip2; unpack it first, as bunzip2 does"),
        (b"\xfd7zXZ\0\0", "packed by xz; unpack it first, as unxz does"),
        (b"\xff\xd8\xff\xe0", "is of a kind that isovoxel does not read, JPEG; save it as TIFF, NIfTI or"),
        (bytes(128) + b"DICM", "does not read, DICOM; save it as"),
        (b"\x5c\x01\0\0" + bytes(400), "does not read, Analyze 7.5; save it as"),
        (gzip.compress(b"II*\0 and so on"), "is truncated or no TIFF"),
        (
            gzip.compress(b"something"),
            "is of no kind that isovoxel knows, packed by gzip; unpack it first",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_kinds_that_are_not_read_are_named(data: bytes, message: str, tmp_path: Path) -> None:
    """What an input is tells how it becomes one that is read."""
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(InputError, match=message):
        open_volume(tmp_path / "a")


@pytest.mark.parametrize("code", ["q", "Q", "l", "L"])
def test_equal_types_of_numpy_are_one(code: str, tmp_path: Path) -> None:
    """NumPy calls integers of 64 bits by two names, of which readers give one or the other, and zarr knows one."""
    array = np.zeros((2, 3, 4), code)
    tifffile.imwrite(tmp_path / "a.tif", array, bigtiff=True, photometric="minisblack")
    for source in (array, tmp_path / "a.tif"):
        dtype = open_volume(source, voxel_size=(1, 1, 1)).dtype
        assert dtype.num == np.dtype(dtype.name).num


def test_integers_of_64_bits_in_a_tiff_are_scaled(tmp_path: Path) -> None:
    """They become the zarr type of the same numbers."""
    array = np.arange(-12, 12).reshape(2, 3, 4)
    tifffile.imwrite(tmp_path / "a.tif", array, bigtiff=True, compression="zlib", photometric="minisblack")
    isovoxel.scale(tmp_path / "a.tif", tmp_path / "a.zarr", factor=(2, 1, 1), interpolation="nearest")
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a.zarr" / "0", mode="r")[::2], array)


@pytest.mark.parametrize("source", [3, None, [[[1]]], {"a": 1}, np.float32(1)])
def test_other_objects_are_refused(source: Any) -> None:
    """What is neither path nor array is refused with what could be given."""
    with pytest.raises(InputError, match="is no volume; give a path as text, a NumPy, dask, zarr or xarray array"):
        open_volume(source)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(7), "is 1-D"),
        (np.zeros((1, 5, 6, 7), "uint8"), "is 4-D"),
        (np.array(1), "is 0-D"),
        (np.zeros((0, 6, 7), "uint8"), "is empty"),
        (np.zeros((5, 6, 7), "c8"), "holds complex64"),
        (np.zeros((5, 6, 7), object), "holds object"),
        (np.zeros((5, 6, 7), "S3"), "holds"),
        (np.zeros((5, 6, 7), [("a", "u1")]), "holds"),
    ],
)
def test_arrays_that_are_no_volumes(array: np.ndarray, message: str, tmp_path: Path) -> None:
    """Arrays of other shapes and dtypes are refused alike, in memory, as dask array and in a .npy file."""
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    for source in (array, dask.array.from_array(array, chunks=-1), tmp_path / "a.npy"):
        with pytest.raises(InputError, match=message):
            open_volume(source)


def test_a_masked_array_is_refused() -> None:
    with pytest.raises(InputError, match="masked"):
        open_volume(np.ma.masked_equal(STACK, 3))


def test_a_dask_array_keeps_itself() -> None:
    """A dask array stays available as such, and its largest chunks are the volume's."""
    array = dask.array.from_array(STACK, chunks=((2, 3), 6, (3, 4)))
    volume = open_volume(array)
    assert volume.array is array
    assert volume.chunks == (3, 6, 4)
    assert json.loads(json.dumps(volume.identity)) == volume.identity
    with pytest.raises(InputError, match="unknown size"):
        open_volume(array[array[:, 0, 0] > 3])


def test_a_failing_dask_array_is_an_input_error() -> None:
    """What goes wrong while computing a chunk is said in one sentence."""

    def fail(_: np.ndarray) -> np.ndarray:
        raise OSError("disk on fire\nreally")

    array = dask.array.zeros((5, 6, 7), dtype="uint8").map_blocks(fail, meta=np.empty((0, 0, 0), "uint8"))
    with pytest.raises(InputError, match=r"disk on fire$"):
        open_volume(array).read(Box.whole((5, 6, 7)))


def test_a_given_voxel_size_overrides(tmp_path: Path) -> None:
    """The caller's voxel size and unit win over the file's, and the sources say so."""
    metadata = {"axes": "ZYX", "PhysicalSizeZ": 3.0, "PhysicalSizeY": 1.0, "PhysicalSizeX": 1.0}
    tifffile.imwrite(tmp_path / "a.tif", STACK, ome=True, metadata=metadata, photometric="minisblack")
    volume = open_volume(tmp_path / "a.tif", voxel_size=(4, 2, 2))
    assert (volume.voxel_size, volume.unit) == ((4.0, 2.0, 2.0), "micrometer")
    assert (volume.sources["voxel size"], volume.sources["unit"]) == ("given by the caller", "OME-XML")
    volume = open_volume(tmp_path / "a.tif", unit="nm")
    assert (volume.voxel_size, volume.unit) == ((3.0, 1.0, 1.0), "nanometer")
    assert volume.sources["unit"] == "given by the caller"
    volume = open_volume(STACK, voxel_size=(4, 2, 2))
    assert (volume.voxel_size, volume.unit, volume.missing) == ((4.0, 2.0, 2.0), None, "")
    volume = open_volume(STACK, unit="mm")
    assert (volume.voxel_size, volume.unit, volume.missing) == (None, "millimeter", "a NumPy array has none")


def test_an_open_volume_can_be_opened_again() -> None:
    """An open volume is itself, or a copy with other lengths; the given one does not change."""
    volume = open_volume(STACK, voxel_size=(4, 2, 2), unit="um")
    assert open_volume(volume) is volume
    again = open_volume(volume, voxel_size=(1, 1, 1))
    assert (again.voxel_size, again.unit) == ((1.0, 1.0, 1.0), "micrometer")
    assert volume.voxel_size == (4.0, 2.0, 2.0)


def test_a_volume_stays_where_it_is_in_another_unit(tmp_path: Path) -> None:
    """With voxel size and unit given the origin is converted; with a unit alone all numbers are relabelled."""
    group = zarr.create_group(tmp_path / "a.zarr")
    transforms = [{"type": "scale", "scale": [1, 1, 1]}, {"type": "translation", "translation": [5, 0, 1]}]
    axes = [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]
    datasets = [{"path": "0", "coordinateTransformations": transforms}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    group.create_array("0", data=STACK)
    assert open_volume(tmp_path / "a.zarr", voxel_size=(900, 900, 900), unit="nm").origin == (5000, 0, 1000)
    assert open_volume(tmp_path / "a.zarr", unit="nm").origin == (5, 0, 1)
    assert open_volume(tmp_path / "a.zarr", voxel_size=(2, 2, 2)).origin == (5, 0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"voxel_size": (1, 1)}, "three numbers"),
        ({"voxel_size": 1}, "three numbers"),
        ({"voxel_size": ("a", 1, 1)}, "three numbers"),
        ({"voxel_size": (0, 1, 1)}, "above 0"),
        ({"voxel_size": (1, -1, 1)}, "above 0"),
        ({"voxel_size": (1, 1, float("nan"))}, "finite"),
        ({"voxel_size": (1, 1, float("inf"))}, "finite"),
        ({"unit": "parrot"}, "'parrot' is no unit of length"),
    ],
)
def test_lengths_that_make_no_sense_are_option_errors(options: dict[str, Any], message: str) -> None:
    """A voxel size or unit that makes no sense is an OptionError."""
    with pytest.raises(OptionError, match=message):
        open_volume(STACK, **options)


headers = st.one_of(
    st.binary(max_size=60),
    st.builds(
        lambda shape, order, dtype: repr({"descr": dtype, "fortran_order": order, "shape": shape}).encode(),
        st.lists(st.integers(-3, 2**70) | st.integers(1, 5), max_size=4).map(tuple),
        st.booleans(),
        st.sampled_from(["<u1", ">f4", "<u2", "|O", "<M8[s]", "|S0", "|V0"]),
    ),
)


@settings(max_examples=examples(200), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(headers, st.sampled_from([b"\1\0", b"\2\0", b"\3\0", b"\xff\xff"]), st.binary(max_size=80))
def test_any_npy_header_opens_or_is_an_input_error(tmp_path: Path, header: bytes, version: bytes, data: bytes) -> None:
    """Whatever a .npy header says, the file opens or is refused in one sentence."""
    length = len(header).to_bytes(2 if version == b"\1\0" else 4, "little")
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY" + version + length + header + data)
    try:
        volume = open_volume(tmp_path / "a.npy")
        assert volume.read(Box.whole(volume.shape)).nbytes <= len(data)
        assert volume.dtype in SUPPORTED_DTYPES
    except IsovoxelError as error:
        check_sentence(error)


@settings(max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([b"", b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"MM\0+\0\x08\0\0", b"\x93NUMPY"]), st.binary())
def test_any_file_opens_or_is_an_input_error(tmp_path: Path, magic: bytes, data: bytes) -> None:
    """Whatever a file holds, opening it gives a volume or one sentence."""
    (tmp_path / "a").write_bytes(magic + data)
    try:
        open_volume(tmp_path / "a")
    except InputError as error:
        check_sentence(error)


def test_importing_is_light() -> None:
    """Importing the module that opens inputs loads none of the libraries for single kinds."""
    heavy = ["zarr", "dask", "tifffile", "imagecodecs", "numcodecs"]
    script = f"import sys, isovoxel.readers.open; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
