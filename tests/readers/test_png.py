"""PNG slices in a folder, by a pattern, or a single one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from isovoxel.errors import CorruptInputError, InputError, InputMissingError
from isovoxel.geometry.grid import Box
from isovoxel.readers.files import InputWatch
from isovoxel.readers.open import open_volume

STACK = np.random.default_rng(0).integers(0, 60_000, (12, 24, 32)).astype("uint16")


def write(folder: Path, voxels: np.ndarray = STACK) -> Path:
    """Write slices by Pillow, numbered without zeros before."""
    folder.mkdir(exist_ok=True)
    for z, plane in enumerate(voxels):
        PIL.Image.fromarray(plane).save(folder / f"s{z}.png")
    return folder


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_slices_are_read_in_the_order_of_their_numbers(dtype: str, tmp_path: Path) -> None:
    """All of a folder, beside other files, or those of a pattern; a single one is a plane."""
    voxels = STACK.astype(dtype)
    folder = write(tmp_path / "a", voxels)
    (folder / "notes.txt").write_text("b")
    volume = open_volume(folder)
    assert (volume.kind, volume.shape, volume.dtype, volume.chunks) == ("PNG slices", voxels.shape, dtype, (1, 24, 32))
    assert (volume.voxel_size, volume.missing) == (None, "PNG has none for z")
    for box in (Box.whole(STACK.shape), Box((1, 7, 3), (11, 23, 32))):
        np.testing.assert_array_equal(volume.read(box), voxels[box.slices])
    some = open_volume(f"{folder}/s1*.png")
    np.testing.assert_array_equal(some.read(Box.whole(some.shape)), voxels[[1, 10, 11]])
    one = open_volume(folder / "s3.png")
    np.testing.assert_array_equal(one.read(Box.whole(one.shape)), voxels[3:4])


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_transparent_grey_value_is_one_like_others(dtype: str, tmp_path: Path) -> None:
    """Decoders add a channel of transparency, where a PNG says that a grey value stands for none."""
    voxels = STACK.astype(dtype)
    for z, plane in enumerate(voxels):
        PIL.Image.fromarray(plane).save(tmp_path / f"s{z}.png", transparency=5)
    assert b"tRNS" in (tmp_path / "s0.png").read_bytes()
    for box in (Box.whole(STACK.shape), Box((1, 7, 3), (11, 23, 32))):
        np.testing.assert_array_equal(open_volume(tmp_path).read(box), voxels[box.slices])


def test_what_is_written_again_is_noticed(tmp_path: Path) -> None:
    """Any of them."""
    folder = write(tmp_path / "a")
    watch = InputWatch(open_volume(folder))
    (folder / "s7.png").write_bytes((folder / "s7.png").read_bytes())
    assert watch.is_changed()


def test_damage_names_the_file(tmp_path: Path) -> None:
    """Wherever it is cut, or a byte of its voxels is another, or it has grown; other slices are read."""
    folder = write(tmp_path / "a")
    volume = open_volume(folder)
    data = (folder / "s7.png").read_bytes()
    broken = bytearray(data)
    broken[len(data) // 2] ^= 1
    other = (write(tmp_path / "b", STACK[:, :20]) / "s7.png").read_bytes()
    for bad in (data[:-100], data[:20], bytes(broken), b"", other, data + bytes(len(data))):
        (folder / "s7.png").write_bytes(bad)
        with pytest.raises(CorruptInputError, match=r"the file s7.png of .* is corrupt"):
            volume.read(Box.whole(volume.shape))
        np.testing.assert_array_equal(volume.read(Box((0, 0, 0), (7, 24, 32))), STACK[:7])
    (folder / "s7.png").unlink()
    with pytest.raises(InputError, match=r"s7.png"):
        volume.read(Box.whole(volume.shape))


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("RGB", "has RGB colours; isovoxel takes grey values: save each channel as grey slices of its own"),
        ("P", "has colours of a palette"),
        ("LA", "has grey values with transparency"),
        ("1", "has 1 bits per pixel; save it with 8 or 16"),
    ],
)
def test_colours_and_single_bits_are_refused(mode: str, message: str, tmp_path: Path) -> None:
    """By the name of what they are."""
    PIL.Image.new(mode, (32, 24)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=message):
        open_volume(tmp_path / "a.png")


def test_slices_that_are_unlike_are_named(tmp_path: Path) -> None:
    """With what they have, and the first has not; and what is no PNG."""
    folder = write(tmp_path / "a")
    PIL.Image.fromarray(STACK[0, :20]).save(folder / "s12.png")
    with pytest.raises(
        InputError, match=r"s12.png is not like the first slice: it has 20 x 32 pixels of 16 bits, not 24"
    ):
        open_volume(folder)
    (folder / "s12.png").write_text("nothing")
    with pytest.raises(InputError, match=r"s12.png is no PNG, as all slices must be; leave it out"):
        open_volume(folder)
    with pytest.raises(InputMissingError, match="no file's name matches"):
        open_volume(f"{folder}/t*.png")
    (tmp_path / "jpeg").mkdir()
    PIL.Image.new("L", (32, 24)).save(tmp_path / "jpeg" / "a.jpg")
    with pytest.raises(InputError, match="no TIFF or PNG slices; save its JPEG or BMP slices as TIFF or PNG"):
        open_volume(tmp_path / "jpeg")
