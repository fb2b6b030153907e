"""A folder of TIFF slices, or what a pattern matches, as one volume."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import isovoxel
from command_line import Isovoxel, check_refused
from isovoxel.errors import CorruptInputError, InputError, InputMissingError
from isovoxel.geometry.grid import Box
from isovoxel.readers.open import open_volume
from isovoxel.readers.slices import in_order

STACK = np.random.default_rng(3).integers(0, 2**16, (4, 30, 40)).astype("uint16")
NAMES = ("img1.tif", "img2.tif", "img10.tif", "img11.tif")


def write(folder: Path, names: tuple[str, ...] = NAMES, stack: np.ndarray = STACK, **options: Any) -> Path:
    """Write every plane as a file of its own, the last one first."""
    folder.mkdir(exist_ok=True)
    for name, plane in reversed(list(zip(names, stack, strict=True))):
        tifffile.imwrite(folder / name, plane, **{"photometric": "minisblack", "metadata": None} | options)
    return folder


@pytest.mark.parametrize("what", ["", "*.tif", "img?*.tif", "img[0-9]*.tif"])
def test_slices_are_in_natural_order(what: str, tmp_path: Path) -> None:
    """img10 comes behind img2, in a folder and by a pattern, which are told as the user named them."""
    source = str(write(tmp_path / "slices") / what) if what else write(tmp_path / "slices")
    volume = open_volume(source)
    assert volume.kind == "TIFF slices"
    assert volume.name == str(source)
    assert volume.identity["path"] == str(source)
    assert volume.sources["shape"] == "4 TIFF files, img1.tif to img11.tif"
    np.testing.assert_array_equal(volume.read(Box.whole(STACK.shape)), STACK)


def test_slices_of_other_writers(tmp_path: Path) -> None:
    """Pillow writes strips, compressed, and its slices are those of the array."""
    for index, plane in enumerate(STACK):
        Image.fromarray(plane).save(tmp_path / f"{index:03}.tiff", compression="tiff_adobe_deflate")
    volume = open_volume(tmp_path)
    assert volume.chunks[0] == 1
    assert volume.chunks[2] == 40
    box = Box((1, 7, 3), (4, 29, 38))
    np.testing.assert_array_equal(volume.read(box), STACK[box.slices])


def test_slices_in_jpeg(tmp_path: Path) -> None:
    """Tables that a file keeps beside its strips are its own."""
    small = (STACK >> 8).astype("uint8")
    for index, plane in enumerate(small):
        Image.fromarray(plane).save(tmp_path / f"{index}.tif", compression="jpeg", quality=50 + 10 * index)
    with tifffile.TiffFile(tmp_path / "0.tif") as tif:
        assert tif.pages.first.jpegtables
    expected = np.stack([tifffile.imread(tmp_path / f"{index}.tif") for index in range(len(small))])
    np.testing.assert_array_equal(open_volume(tmp_path).read(Box.whole(small.shape)), expected)


def test_relative_patterns_are_found_again_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern is kept with its folder, whose own name may have brackets."""
    home = tmp_path / "[2026]"
    write(home)
    monkeypatch.chdir(home)
    volume = open_volume("img*.tif")
    assert volume.name == "img*.tif"
    monkeypatch.chdir("/")
    again = open_volume(volume.identity["path"])
    assert again.identity == volume.identity
    np.testing.assert_array_equal(again.read(Box.whole(STACK.shape)), STACK)


def test_a_name_with_brackets_that_is_there_is_no_pattern(tmp_path: Path) -> None:
    """What exists under a name is opened, whatever the name would match."""
    np.save(tmp_path / "a[1].npy", STACK)
    assert open_volume(tmp_path / "a[1].npy").kind == "NumPy file"


def test_other_files_of_the_folder_are_passed_over(tmp_path: Path) -> None:
    """Notes, thumbnails and the hidden files of a Mac are no slices."""
    write(tmp_path)
    for name in ("notes.txt", "._img1.tif", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"not an image")
    (tmp_path / "more.tif").mkdir()
    assert open_volume(tmp_path).shape == STACK.shape


def test_each_slice_may_have_several_planes(tmp_path: Path) -> None:
    """Files of several pages follow one another along z, however many each has."""
    for name, part in (("a1.tif", STACK[:1].repeat(2, 0)), ("a2.tif", STACK[:3]), ("a10.tif", STACK[1:])):
        tifffile.imwrite(tmp_path / name, part, imagej=True, metadata={"axes": "ZYX", "spacing": 2.0, "unit": "um"})
    whole = np.concatenate([STACK[:1], STACK[:1], STACK[:3], STACK[1:]])
    volume = open_volume(tmp_path)
    assert volume.shape == (8, 30, 40)
    for box in (Box.whole(volume.shape), Box((1, 3, 5), (6, 20, 21)), Box((5, 0, 0), (8, 1, 1))):
        np.testing.assert_array_equal(volume.read(box), whole[box.slices])


def test_the_last_file_may_have_one_plane(tmp_path: Path) -> None:
    """What is left over is a file of its own; and ImageJ's images may lie behind a single page."""
    tifffile.imwrite(tmp_path / "a1.tif", STACK[:3], photometric="minisblack")
    tifffile.imwrite(tmp_path / "a2.tif", STACK[3], photometric="minisblack")
    np.testing.assert_array_equal(open_volume(tmp_path).read(Box.whole(STACK.shape)), STACK)
    for name in ("a1.tif", "a2.tif"):
        tifffile.imwrite(
            tmp_path / name,
            STACK[0],
            photometric="minisblack",
            metadata=None,
            description="ImageJ=1.53f\nimages=4\nslices=4\n",
        )
        with (tmp_path / name).open("ab") as file:
            file.write(STACK[1:].tobytes())
    volume = open_volume(tmp_path)
    np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), np.concatenate([STACK, STACK]))


def test_the_voxel_size_is_the_first_slices(tmp_path: Path, isovoxel: Isovoxel) -> None:
    """Resolution tags give y and x, and what lacks z says so; an ImageJ or OME slice may have all three."""
    write(tmp_path / "tags", resolution=(20_000, 40_000), resolutionunit="CENTIMETER")
    volume = open_volume(tmp_path / "tags")
    assert volume.voxel_size is None
    assert volume.missing == "y is 2.5e-05 cm and x is 5e-05 cm, but the TIFF has no spacing for z".replace(
        "cm", "centimeter"
    )
    size = isovoxel("info", tmp_path / "tags", "--input-voxel-size", "2,0.25,0.5", "--unit", "um", "--json").json
    assert size["voxel_size"] == [2.0, 0.25, 0.5]

    options = {"imagej": True, "photometric": None, "resolution": (4, 4)}
    write(tmp_path / "imagej", **options, metadata={"spacing": 2.0, "unit": "um"})
    found = open_volume(tmp_path / "imagej")
    assert (found.voxel_size, found.unit) == ((2.0, 0.25, 0.25), "micrometer")
    assert found.sources["voxel size"] == "ImageJ spacing and resolution tags, of the first file"

    sizes = {"PhysicalSizeZ": 3.0, "PhysicalSizeY": 0.5, "PhysicalSizeX": 0.5}
    write(tmp_path / "ome", ome=True, metadata={"axes": "YX"} | sizes)
    assert open_volume(tmp_path / "ome").voxel_size == (3.0, 0.5, 0.5)


def test_a_gap_in_the_numbers_is_told(tmp_path: Path, isovoxel: Isovoxel) -> None:
    """Whoever lost a slice on the way hears of it from info, plan and scale, and whoever did not can go on."""
    write(tmp_path / "in")
    note = "the slices' numbers have gaps (img10.tif follows img2.tif); if slices are missing, z is too short there"
    assert isovoxel("info", tmp_path / "in", "--json").json["notes"] == [note]
    assert f"note         {note}"[-60:] in isovoxel("info", tmp_path / "in").out
    assert f"note: {note}" in isovoxel("plan", tmp_path / "in", "--factor", "2,1,1").err
    assert f"note: {note}" in isovoxel("scale", tmp_path / "in", tmp_path / "o.zarr", "--factor", "2,1,1").err


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30, unique=True), st.sampled_from(["{}", "{:09}"]))
def test_any_numbers_are_counted(numbers: list[int], form: str) -> None:
    """Slices come in the order of their numbers, whether these have leading zeros or not."""
    files = [f"/a 7/z{form.format(n)}_c1.tif" for n in numbers]
    ordered, note = in_order("a", files)
    assert [int(file[6:].partition("_")[0]) for file in ordered] == sorted(numbers)
    steps = np.diff(sorted(numbers))
    assert bool(note) == (len(set(steps)) > 1)


def test_a_number_that_counts_may_stand_beside_others() -> None:
    """Time stamps that grow with the slices do not disturb, nor do numbers that stay."""
    files = [f"2026-11-{day}_z{z}_c0.tif" for day, z in ((9, 8), (9, 9), (10, 10))]
    assert in_order("a", files[::-1]) == (files, "")


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (("a1.tif", "a2.tif", "b1.tif", "b2.tif"), "such as a1.tif and b1.tif; .* such as 'a\\*.tif'"),
        (("z1_c0.tif", "z1_c1.tif", "z2_c0.tif", "z2_c1.tif"), "no single number counts the slices"),
        (("z1.tif", "z01.tif", "z2.tif", "z3.tif"), "no single number counts the slices"),
        (("one.tif", "two.tif", "three.tif", "four.tif"), "differ in more than numbers"),
    ],
)
def test_what_cannot_be_put_in_order_is_refused(names: tuple[str, ...], why: str, tmp_path: Path) -> None:
    """Two channels in one folder are not interleaved along z."""
    with pytest.raises(InputError, match=why):
        open_volume(write(tmp_path / "s", names))


@pytest.mark.parametrize(
    "names",
    [
        ("a1.tif", "a2.tif", "b1.tif", "b2.tif"),
        ("z0.tif", "z1.tif", "z-1.tif", "z-2.tif"),
        ("s1.tif", "s2.tif", "s3.tif", "s3 (copy).tif"),
        ("a[1]_1.tif", "a[1]_2.tif", "b[1]_1.tif", "b[1]_2.tif"),
    ],
)
def test_the_pattern_that_is_named_opens_some(names: tuple[str, ...], tmp_path: Path) -> None:
    """Names may begin alike, and have brackets."""
    folder = write(tmp_path / "s", names)
    with pytest.raises(InputError, match=r"such as '.*'$") as raised:
        open_volume(folder)
    pattern = str(raised.value).split("'")[-2]
    assert open_volume(folder / pattern).shape[0] >= 1


def test_no_pattern_is_named_that_tells_nothing_apart(tmp_path: Path) -> None:
    """Such as that of files of one name in several folders."""
    for folder in ("a", "b"):
        write(tmp_path / folder, ("1.tif", "2.tif", "3.tif", "4.tif"))
    with pytest.raises(InputError, match=r"by a pattern in quotes$"):
        open_volume(f"{tmp_path}/*/*.tif")


ODD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "another shape": (STACK[0, :-1], {}, "it has the shape 29 x 40, not 30 x 40, as"),
    "another dtype": (STACK[0].astype("uint8"), {}, "it has the dtype uint8, not uint16, as"),
    "white as 0": (STACK[0], {"photometric": "miniswhite"}, r"photometric interpretation 0 \(white as 0\), not 1"),
    "several pages": (STACK[:2], {}, "has 2 pages, where the first slice has one"),
    "colour": (np.zeros((30, 40, 3), "u1"), {"photometric": "rgb"}, "3 colour samples"),
    "another depth": (STACK[0].astype("f8"), {}, "it has the dtype float64, not uint16, as"),
}


@pytest.mark.parametrize("case", ODD)
def test_the_odd_one_out_is_named(case: str, tmp_path: Path) -> None:
    """A slice that is not like the first is refused by its name."""
    data, options, why = ODD[case]
    write(tmp_path)
    tifffile.imwrite(tmp_path / "img10.tif", data, **{"photometric": "minisblack", "metadata": None} | options)
    with pytest.raises(InputError, match=why) as raised:
        open_volume(tmp_path)
    assert "img10.tif" in str(raised.value)


def test_a_file_of_another_plane_size_is_named(tmp_path: Path) -> None:
    """So is a file of several pages that is not like the first."""
    tifffile.imwrite(tmp_path / "a1.tif", STACK, photometric="minisblack")
    tifffile.imwrite(tmp_path / "a2.tif", STACK[:, 1:], photometric="minisblack")
    with pytest.raises(InputError, match=r"a2.tif is not like the other files: it has the shape 4 x 29 x 40"):
        open_volume(tmp_path)


def test_a_slice_cut_short_is_named(tmp_path: Path) -> None:
    """Where a slice's voxels are not all there, nothing is begun; a slice that is none is named too."""
    write(tmp_path)
    os.truncate(tmp_path / "img10.tif", 900)
    with pytest.raises(InputError, match=r"img10.tif is truncated"):
        open_volume(tmp_path)
    (tmp_path / "img10.tif").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"img10.tif is no TIFF"):
        open_volume(tmp_path)
    with pytest.raises(InputMissingError, match="no file's name matches"):
        open_volume(tmp_path / "b*.tif")


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_damaged_slice_is_named_and_placed(compression: str | None, tmp_path: Path) -> None:
    """What cannot be read later is told with its file and its voxels."""
    write(tmp_path, compression=compression)
    volume = open_volume(tmp_path)
    with tifffile.TiffFile(tmp_path / "img10.tif") as tif:
        offset = tif.pages.first.dataoffsets[0]
    os.truncate(tmp_path / "img10.tif", offset + 100)
    with pytest.raises(CorruptInputError, match=r"in the file img10.tif, of") as raised:
        volume.read(Box.whole(STACK.shape))
    assert (raised.value.start, raised.value.stop) == ((2, 0, 0), (3, 30, 40))


def test_a_damaged_plane_of_several_is_placed(tmp_path: Path) -> None:
    """Damage in the second file is where that file lies along z."""
    for name in ("a1.tif", "a2.tif"):
        tifffile.imwrite(tmp_path / name, STACK, photometric="minisblack")
    volume = open_volume(tmp_path)
    with tifffile.TiffFile(tmp_path / "a2.tif") as tif:
        end = tif.pages.first.dataoffsets[0] + STACK.nbytes
    os.truncate(tmp_path / "a2.tif", end - 10)
    with pytest.raises(CorruptInputError, match=r"a2.tif is corrupt") as raised:
        volume.read(Box.whole(volume.shape))
    assert (raised.value.start, raised.value.stop) == ((7, 0, 0), (8, 30, 40))


def test_a_thousand_slices_hold_no_files_open(tmp_path: Path) -> None:
    """However many slices there are, one file is open at a time."""
    resource = pytest.importorskip("resource")
    small = np.arange(1000 * 4, dtype="uint8").reshape(1000, 2, 2)
    write(tmp_path, tuple(f"{i}.tif" for i in range(1000)), small)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(200, hard), hard))
    try:
        volume = open_volume(tmp_path)
        np.testing.assert_array_equal(volume.read(Box.whole(small.shape)), small)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_slices_are_scaled_and_verified(tmp_path: Path) -> None:
    """A folder becomes an OME-Zarr, which knows where its slices are; another slice is noticed."""
    write(tmp_path / "in")
    out = tmp_path / "out.zarr"
    isovoxel.scale(str(tmp_path / "in" / "img*.tif"), out, factor=(2, 1, 1), input_voxel_size=(2, 1, 1), engine="exact")
    found = isovoxel.verify(out, samples=50)
    assert found.holds
    assert found.source_changes == ()
    os.utime(tmp_path / "in" / "img2.tif", ns=(1, 1))
    assert isovoxel.verify(out, samples=50).source_changes == ("modification time",)


def test_an_output_among_the_slices_is_refused(tmp_path: Path, isovoxel: Isovoxel) -> None:
    write(tmp_path / "in")
    said = isovoxel("scale", tmp_path / "in", tmp_path / "in" / "out.zarr", "--factor", "2,1,1", "--quiet")
    check_refused(said, "lies inside the input")
