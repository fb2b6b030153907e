"""NIfTI files, plain and in gzip."""

from __future__ import annotations

import gzip
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from command_line import Isovoxel
from isovoxel.errors import CorruptInputError, InputError, InputMissingError
from isovoxel.geometry.grid import Box
from isovoxel.readers.files import InputWatch
from isovoxel.readers.open import open_volume

STACK = np.random.default_rng(3).integers(0, 999, (13, 47, 61)).astype("uint16")
AFFINE = np.diag([0.2, 0.3, 2.0, 1.0])
AFFINE[:3, 3] = (10, -20, 30.5)


def write(
    path: Path,
    data: np.ndarray = STACK,
    affine: np.ndarray | None = AFFINE,
    unit: str = "micron",
    kind: Any = nibabel.Nifti1Image,
    **options: Any,
) -> Path:
    """Write an image whose array is z, y, x here, and x, y, z in the file."""
    image = kind(data.T, affine, **options)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_header_states_size_unit_and_place(ending: str, kind: Any, tmp_path: Path) -> None:
    """Fields that count x, y, z become z, y, x, and float32 the numbers that were meant."""
    volume = open_volume(write(tmp_path / f"a.{ending}", kind=kind))
    assert volume.kind == ("NIfTI (gzip)" if "gz" in ending else "NIfTI")
    assert (volume.shape, volume.dtype) == (STACK.shape, STACK.dtype)
    assert (volume.voxel_size, volume.unit, volume.origin) == ((2.0, 0.3, 0.2), "micrometer", (30.5, -20.0, 10.0))
    assert volume.sources["voxel size"] == "NIfTI pixdim"
    box = Box((1, 7, 3), (12, 46, 61))
    np.testing.assert_array_equal(volume.read(box), STACK[box.slices])


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_voxels_of_the_other_byte_order(ending: str, tmp_path: Path) -> None:
    """The header says which."""
    header = nibabel.Nifti1Header(endianness=">")
    volume = open_volume(write(tmp_path / f"a.{ending}", STACK.astype(">u2"), header=header, dtype=">u2"))
    assert volume.dtype.isnative
    np.testing.assert_array_equal(volume.read(Box.whole(STACK.shape)), STACK)


def test_what_the_affine_turns_is_told(tmp_path: Path, isovoxel: Isovoxel) -> None:
    """Flipped or turned axes keep the file's order, and info says so; without an affine nothing is claimed."""
    flipped = AFFINE * [[-1], [1], [1], [1]]
    turned = AFFINE[[1, 0, 2, 3]]
    for name, affine in (("a.nii", flipped), ("b.nii", turned)):
        volume = open_volume(write(tmp_path / name, affine=affine))
        assert volume.origin == (0, 0, 0)
        assert volume.voxel_size == (2.0, 0.3, 0.2)
        assert "turns or flips the axes" in volume.notes[0]
    assert "its affine turns or flips the axes" in isovoxel("info", tmp_path / "a.nii").out
    volume = open_volume(write(tmp_path / "c.nii", affine=None))
    assert (volume.origin, volume.notes) == ((0, 0, 0), ())


@pytest.mark.parametrize(("unit", "expected"), [("mm", "millimeter"), ("meter", "meter"), ("unknown", None)])
def test_units_are_what_the_header_says(unit: str, expected: str | None, tmp_path: Path) -> None:
    """None is none."""
    assert open_volume(write(tmp_path / "a.nii", unit=unit)).unit == expected


@pytest.mark.parametrize(("code", "expected"), [(2 | 64, "millimeter"), (5, None), (255, None)])
def test_units_that_nifti_does_not_have_are_none(code: int, expected: str | None, tmp_path: Path) -> None:
    """Of lengths and of times, which stand in one byte."""
    path = write(tmp_path / "a.nii")
    header = bytearray(path.read_bytes())
    header[123] = code
    path.write_bytes(header)
    assert open_volume(path).unit == expected


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32"])
def test_scaled_numbers_are_what_they_mean(dtype: str, ending: str, tmp_path: Path) -> None:
    """A slope and an intercept are applied, in float32, whatever box is read."""
    path = tmp_path / f"a.{ending}"
    image = nibabel.Nifti1Image((STACK % 200).astype(dtype).T, AFFINE)
    image.header.set_slope_inter(0.25, -7)
    # nibabel would scale back what it saves; the numbers are stored as they are.
    raw = image.header.copy()
    raw.set_data_offset(352)
    data = raw.binaryblock + bytes(4) + (STACK % 200).astype(dtype).tobytes()
    path.write_bytes(gzip.compress(data) if "gz" in ending else data)
    expected = nibabel.load(path).get_fdata(dtype=np.float32).T
    volume = open_volume(path)
    assert volume.dtype == np.float32
    assert "0.25 times what is stored, and -7" in volume.sources["shape"]
    for box in (Box.whole(STACK.shape), Box((1, 7, 3), (12, 46, 61)), Box((3, 3, 3), (3, 4, 5))):
        np.testing.assert_array_equal(volume.read(box), expected[box.slices])
    out = np.empty(STACK.shape, np.float32)
    assert volume.read(Box.whole(STACK.shape), out) is out


def test_a_slope_of_one_changes_nothing(tmp_path: Path) -> None:
    """Nor does one of 0, which means that there is none."""
    for slope in (1.0, 0.0):
        path = changed(tmp_path / "a.nii", 112, "<f", slope)
        assert open_volume(path).dtype == np.uint16


def test_axes_of_length_one_go(tmp_path: Path) -> None:
    """Time points are refused."""
    volume = open_volume(write(tmp_path / "a.nii", STACK[None, None]))
    np.testing.assert_array_equal(volume.read(Box.whole(STACK.shape)), STACK)
    with pytest.raises(InputError, match="2 time points"):
        open_volume(write(tmp_path / "b.nii", np.stack([STACK, STACK])))


def test_gzip_says_what_a_box_costs(tmp_path: Path, isovoxel: Isovoxel) -> None:
    """Info and plan tell; planes are decoded whole."""
    path = write(tmp_path / "a.nii.gz")
    assert open_volume(path).chunks == (1, 47, 61)
    assert "gzip can only be read from its front" in isovoxel("info", path).out
    assert "note: gzip can only be read from its front" in isovoxel("plan", path).err


# ---- what is not to be trusted -----------------------------------------------------------------------------------


def changed(path: Path, offset: int, code: str, *values: Any) -> Path:
    """Write an image with other numbers in its header."""
    write(path)
    data = bytearray(path.read_bytes())
    struct.pack_into(code, data, offset, *values)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("offset", "code", "values", "why"),
    [
        (40, "<h", (9,), "tells of 9 axes"),
        (42, "<h", (-5,), "is empty"),
        (42, "<h", (0,), "is empty"),
        (70, "<h", (32,), "holds complex64"),
        (70, "<h", (128,), "holds"),
        (108, "<f", (12.0,), "inside its header"),
        (108, "<f", (float("nan"),), "NIfTI"),
        (108, "<f", (1e30,), "bytes are missing"),
        (112, "<2f", (2.0, float("inf")), "NIfTI"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(
    offset: int, code: str, values: Any, why: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In one sentence, and no library adds to it."""
    with pytest.raises(InputError, match=why) as raised:
        open_volume(changed(tmp_path / "a.nii", offset, code, *values))
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("value", [0.0, float("nan"), -1.0])
def test_sizes_that_no_voxel_has_are_unknown(value: float, tmp_path: Path) -> None:
    volume = open_volume(changed(tmp_path / "a.nii", 88, "<f", value))
    assert volume.voxel_size is None


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Pair, nibabel.Nifti2Pair])
def test_a_pair_is_named_by_its_header(ending: str, kind: Any, tmp_path: Path) -> None:
    """The voxels lie in the other file, which is watched too."""
    header, image = tmp_path / f"a.hdr{ending}", tmp_path / f"a.img{ending}"
    write(header, kind=kind)
    volume = open_volume(header)
    np.testing.assert_array_equal(volume.read(Box.whole(STACK.shape)), STACK)
    assert (volume.voxel_size, volume.origin) == ((2.0, 0.3, 0.2), (30.5, -20.0, 10.0))
    watch = InputWatch(volume)
    image.write_bytes(image.read_bytes())
    assert watch.is_changed()
    with pytest.raises(InputError, match=r"holds voxels only; give a.hdr"):
        open_volume(image)
    image.unlink()
    with pytest.raises(InputMissingError, match=r"a.img, which holds the voxels of .*a.hdr.*, is not there; it must"):
        open_volume(header)


def test_a_file_cut_short_is_refused_or_named(tmp_path: Path) -> None:
    """What its size tells is told at once; of gzip only reading tells, and what lies before the end is read."""
    path = write(tmp_path / "a.nii")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="10 bytes are missing"):
        open_volume(path)
    path = write(tmp_path / "a.nii.gz")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    volume = open_volume(path)
    np.testing.assert_array_equal(volume.read(Box((0, 0, 0), (3, 47, 61))), STACK[:3])
    with pytest.raises(CorruptInputError, match="cut short") as raised:
        volume.read(Box.whole(STACK.shape))
    z = raised.value.start[0]
    assert (raised.value.start, raised.value.stop) == ((z, 0, 0), (z + 1, 47, 61))


def test_gzip_that_is_damaged_is_found_out(tmp_path: Path) -> None:
    """Where it cannot be decompressed, that plane is named; where it can, the checksum tells, whatever was read."""
    path = write(tmp_path / "a.nii.gz")
    whole = path.read_bytes()
    path.write_bytes(whole[:9000] + b"\xff" * 3000 + whole[12_000:])
    with pytest.raises(CorruptInputError, match="damaged behind byte"):
        open_volume(path).read(Box.whole(STACK.shape))
    for torn in (whole[:-8] + bytes(4) + whole[-4:], whole[:-6]):
        path.write_bytes(torn)
        volume = open_volume(path)
        np.testing.assert_array_equal(volume.read(Box((0, 0, 0), (12, 47, 61))), STACK[:12])
        for box in (Box((0, 0, 0), STACK.shape), Box((12, 46, 60), STACK.shape)):
            with pytest.raises(InputError, match="the checksum that was stored") as raised:
                volume.read(box)
            assert not isinstance(raised.value, CorruptInputError)


def test_threads_read_gzip_side_by_side(tmp_path: Path) -> None:
    """Each has a stream of its own."""
    volume = open_volume(write(tmp_path / "a.nii.gz"))
    tiles = list(Box.whole(STACK.shape).tiles((4, 20, 25))) * 2
    with ThreadPoolExecutor(8) as pool:
        for box, read in zip(tiles, pool.map(volume.read, tiles), strict=True):
            np.testing.assert_array_equal(read, STACK[box.slices])
