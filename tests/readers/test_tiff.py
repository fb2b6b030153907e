"""TIFF as a volume: metadata, axes, and files that are not whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inputs import check_sentence
from isovoxel.errors import InputError, IsovoxelError
from isovoxel.geometry.grid import Box
from isovoxel.readers.open import open_volume
from strategies import examples

STACK = np.arange(5 * 6 * 7, dtype="uint16").reshape(5, 6, 7)


def write(path: Path, array: np.ndarray = STACK, **options: Any) -> Path:
    """Write a grey TIFF."""
    tifffile.imwrite(path, array, **{"photometric": "minisblack"} | options)
    return path


def test_an_imagej_stack_has_its_voxel_size(tmp_path: Path) -> None:
    """An ImageJ stack tells voxel size and unit, and where they were read."""
    path = write(
        tmp_path / "a.tif",
        imagej=True,
        photometric=None,
        resolution=(1 / 0.202, 1 / 0.202),
        metadata={"axes": "ZYX", "spacing": 1.0, "unit": r"\u00B5m"},
    )
    volume = open_volume(path)
    assert volume.kind == "ImageJ TIFF"
    assert volume.voxel_size == pytest.approx((1.0, 0.202, 0.202), rel=1e-6)
    assert volume.unit == "micrometer"
    assert volume.sources == {
        "shape": "TIFF pages",
        "axes": "ImageJ description",
        "voxel size": "ImageJ spacing and resolution tags",
        "unit": "ImageJ unit",
    }


def test_x_and_y_are_not_confused(tmp_path: Path) -> None:
    """XResolution is x and YResolution is y, in every kind of TIFF."""
    resolution = (10, 5)
    for options in ({"imagej": True, "photometric": None}, {}):
        path = write(
            tmp_path / "a.tif",
            resolution=resolution,
            resolutionunit="NONE",
            metadata={"axes": "ZYX", "spacing": 2.0, "unit": "um"},
            **options,
        )
        assert open_volume(path).voxel_size == pytest.approx((2.0, 0.2, 0.1))


def test_an_ome_tiff_has_its_voxel_size(tmp_path: Path) -> None:
    """An OME-TIFF tells its physical sizes with their units."""
    metadata = {
        "axes": "ZYX",
        "PhysicalSizeZ": 300.0,
        "PhysicalSizeZUnit": "nm",
        "PhysicalSizeY": 0.2,
        "PhysicalSizeX": 0.1,
    }
    volume = open_volume(write(tmp_path / "a.tif", ome=True, metadata=metadata))
    assert volume.kind == "OME-TIFF"
    assert volume.voxel_size == pytest.approx((0.3, 0.2, 0.1))
    assert volume.unit == "micrometer"


@pytest.mark.parametrize(
    ("options", "clause"),
    [
        (
            {"imagej": True, "photometric": None, "resolution": (5, 5), "metadata": {"axes": "ZYX", "unit": "um"}},
            "y and x are 0.2 micrometer, but the ImageJ description has no spacing",
        ),
        ({"imagej": True, "photometric": None, "metadata": {"axes": "ZYX"}}, "has no unit"),
        ({"ome": True, "metadata": {"axes": "ZYX"}}, "the OME-XML has no PhysicalSize for z, y and x"),
        ({"metadata": {"axes": "ZYX"}}, "the TIFF has no spacing for z"),
        ({"metadata": None}, "the TIFF has no spacing for z"),
    ],
)
def test_an_unknown_voxel_size_has_a_reason(options: dict[str, Any], clause: str, tmp_path: Path) -> None:
    """Where a voxel size is not stated it is None, and using it is an error that says why and what to do."""
    volume = open_volume(write(tmp_path / "a.tif", **options))
    assert volume.voxel_size is None
    assert clause in volume.missing
    with pytest.raises(InputError, match="--input-voxel-size"):
        _ = volume.grid


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 5, 1, 6, 7), {"imagej": True, "photometric": None, "metadata": {"axes": "TZCYX"}}),
        ((1, 1, 5, 6, 7), {"ome": True, "metadata": {"axes": "TCZYX"}}),
        ((1, 5, 6, 7), {"metadata": {"axes": "CZYX"}}),
        ((1, 1, 5, 6, 7), {}),
        ((5, 6, 7), {"metadata": None}),
    ],
)
def test_axes_of_length_one_are_dropped(shape: tuple[int, ...], options: dict[str, Any], tmp_path: Path) -> None:
    """Time and channel axes of length 1 do not make a stack less 3-D, and unnamed pages are z."""
    volume = open_volume(write(tmp_path / "a.tif", STACK.reshape(shape), **options))
    assert volume.shape == STACK.shape
    np.testing.assert_array_equal(volume.read(Box.whole(STACK.shape)), STACK)


def test_a_stack_of_one_plane_is_a_volume_where_it_says_so(tmp_path: Path) -> None:
    """One plane that is written as z, y, x is a volume of one plane."""
    assert open_volume(write(tmp_path / "a.tif", STACK[:1], metadata={"axes": "ZYX"})).shape == (1, 6, 7)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((5, 6, 7, 3), {"photometric": "rgb", "metadata": {"axes": "ZYXS"}}, "has 3 colour samples per voxel"),
        (
            (2, 3, 6, 7),
            {"imagej": True, "photometric": None, "metadata": {"axes": "TCYX"}},
            "has 2 time points; give --time 0 to 1 and --channel 0 to 2 for one of them; found are",
        ),
        ((3, 6, 7), {"ome": True, "metadata": {"axes": "CYX"}}, "has 3 channels"),
        (
            (5, 6, 7),
            {"metadata": {"axes": "TYX"}},
            "found are the axes t 5, y 6, x 7; if they are slices, name that axis z",
        ),
        ((2, 5, 6, 7), {"metadata": None}, ""),
        ((5, 2, 6, 7), {"metadata": {"axes": "ZQYX"}}, "is 4-D"),
        ((5, 6, 7), {"metadata": {"axes": "YXZ"}}, "are in the order y 5, x 6, z 7; transpose them to z, y, x"),
    ],
)
def test_other_axes_are_refused(shape: tuple[int, ...], options: dict[str, Any], message: str, tmp_path: Path) -> None:
    """What is not 3-D z, y, x is refused with what was found, and how to split it."""
    path = write(tmp_path / "a.tif", np.zeros(shape, "uint8"), **options)
    if not message:
        # Without any metadata the first two axes cannot be told apart: all pages are z.
        assert open_volume(path).shape == (10, 6, 7)
        return
    with pytest.raises(InputError) as error:
        open_volume(path)
    assert message in str(error.value)


def test_the_only_volume_of_several_images_is_taken(tmp_path: Path) -> None:
    """An image of one plane beside the volume does not disturb, and the sources say which was taken."""
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(STACK[0, :3], photometric="minisblack")
        writer.write(STACK, photometric="minisblack")
    volume = open_volume(tmp_path / "a.tif")
    assert volume.shape == STACK.shape
    assert volume.sources["shape"] == "TIFF pages (image 1 of 2, the only 3-D one)"
    np.testing.assert_array_equal(volume.read(Box.whole(STACK.shape)), STACK)


def test_a_tile_larger_than_the_image(tmp_path: Path) -> None:
    """A tile that reaches beyond the image is cut to it, in what is read and in the chunks."""
    volume = open_volume(write(tmp_path / "a.tif", tile=(16, 16), compression="zlib"))
    assert volume.chunks == (1, 6, 7)
    np.testing.assert_array_equal(volume.read(Box((1, 2, 3), (5, 6, 7))), STACK[1:, 2:, 3:])


def test_several_volumes_are_refused(tmp_path: Path) -> None:
    """No volume is chosen silently where a file holds several."""
    with tifffile.TiffWriter(tmp_path / "a.tif", ome=True) as writer:
        for name, size in (("a", 1.0), ("b", 2.0)):
            writer.write(STACK, metadata={"axes": "ZYX", "Name": name, "PhysicalSizeX": size})
    with pytest.raises(InputError, match=r"holds 2 volumes \(0: 5 x 6 x 7, 1: 5 x 6 x 7\)"):
        open_volume(tmp_path / "a.tif")


def test_the_finest_level_of_a_pyramid_is_read(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif", ome=True) as writer:
        writer.write(STACK, subifds=1, metadata={"axes": "ZYX"}, photometric="minisblack")
        writer.write(STACK[:, ::2, ::2], subfiletype=1, photometric="minisblack")
    volume = open_volume(tmp_path / "a.tif")
    np.testing.assert_array_equal(volume.read(Box.whole(STACK.shape)), STACK)


def test_an_imagej_stack_beyond_4_gb(tmp_path: Path) -> None:
    """ImageJ's large stacks, one directory and all planes behind it, are read to their end."""
    n, plane = 1100, np.full((2048, 2048), 7, "u1")
    path = tmp_path / "a.tif"
    description = f"ImageJ=1.53t\nimages={n}\nslices={n}\nunit=nm\nspacing=30\n"
    write(path, plane, byteorder=">", description=description, metadata=None, resolution=(1, 10))
    with tifffile.TiffFile(path) as tif:
        start = tif.pages.first.dataoffsets[0]
    last = start + (n - 1) * plane.size
    with path.open("r+b") as file:
        file.truncate(start + n * plane.size)
        file.seek(last + 5 * 2048 + 3)
        file.write(b"\x2a")
    volume = open_volume(path)
    assert volume.shape == (n, 2048, 2048)
    assert volume.voxel_size == pytest.approx((30, 0.1, 1))
    assert volume.unit == "nanometer"
    box = volume.read(Box((n - 2, 4, 0), (n, 7, 9)))
    assert box[1, 1, 3] == 42
    assert np.count_nonzero(box) == 1
    with path.open("r+b") as file:
        file.truncate(last)
    missing = f"its voxels take {last + plane.size} bytes, but the file has {last}, so {plane.size} bytes are missing"
    with pytest.raises(InputError, match=missing):
        open_volume(path)


WHOLE_FILES: dict[str, dict[str, Any]] = {
    "ImageJ": {"imagej": True, "photometric": None, "metadata": {"axes": "ZYX"}},
    "OME": {"ome": True, "metadata": {"axes": "ZYX"}},
    "shaped": {},
    "bare": {"metadata": None},
    "BigTIFF": {"bigtiff": True},
    "compressed": {"compression": "zlib", "rowsperstrip": 2},
    "bare, compressed": {"compression": "zlib", "metadata": None},
    "tiled": {"tile": (16, 16)},
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", WHOLE_FILES)
def test_a_truncated_file_is_never_taken_for_a_whole_one(kind: str, tmp_path: Path) -> None:
    """Wherever a file is cut, it is refused, or still holds every voxel."""
    data = write(tmp_path / "whole.tif", **WHOLE_FILES[kind]).read_bytes()
    path = tmp_path / "cut.tif"
    refused = 0
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        try:
            volume = open_volume(path)
        except InputError as error:
            refused += 1
            check_sentence(error)
            continue
        np.testing.assert_array_equal(volume.read(Box.whole(STACK.shape)), STACK)
    # tifffile writes the directories of further pages behind the voxels: without them nothing is lost.
    assert refused > len(data) / 7 * 0.4


def test_a_file_that_shrinks_while_open_is_an_input_error(tmp_path: Path) -> None:
    """Reading what has gone since the file was opened is an InputError, not garbage."""
    for options in ({}, {"compression": "zlib"}):
        path = write(tmp_path / "a.tif", **options)
        volume = open_volume(path)
        with path.open("r+b") as file:
            file.truncate(100)
        with pytest.raises(InputError):
            volume.read(Box.whole(STACK.shape))
        path.unlink()
        with pytest.raises(InputError, match="can no longer be read"):
            volume.read(Box.whole(STACK.shape))


def test_left_out_tiles_are_empty(tmp_path: Path) -> None:
    """A tile that the file leaves out holds zeros, as TIFF's readers agree."""
    array = np.ones((2, 32, 32), "uint8")
    path = write(tmp_path / "a.tif", array, tile=(16, 16), compression="zlib", metadata=None)
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tag = tif.pages[1].tags["TileByteCounts"]
        tag.overwrite((0, *tag.value[1:]))
    read = open_volume(path).read(Box.whole(array.shape))
    assert not read[1, :16, :16].any()
    assert read.sum() == array.size - 256


@pytest.mark.parametrize("kind", sorted(WHOLE_FILES))
def test_a_page_without_samples_is_refused(kind: str, tmp_path: Path) -> None:
    """A page without samples has the shape of one sample in tifffile, which decodes none."""
    path = write(tmp_path / "a.tif", **WHOLE_FILES[kind])
    with tifffile.TiffFile(path, mode="r+b") as tif:
        for page in tif.pages:
            tag = page.tags.get("SamplesPerPixel")
            if tag is not None:
                tag.overwrite(0)
    with pytest.raises(InputError, match=r"says 0 samples per pixel, where its planes have \d"):
        open_volume(path)


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(), st.sampled_from(["ImageJ=1\n", "<OME>", '{"shape": [5, 6, 7]', ""]), st.sampled_from(["", "}", "OME>"])
)
def test_any_description_opens_or_is_an_input_error(tmp_path: Path, text: str, begin: str, end: str) -> None:
    """Arbitrary text as a TIFF's description never gives another error, nor a voxel size out of nothing."""
    description = (begin + text + end).encode("utf-8", "replace").replace(b"\0", b"")
    path = write(tmp_path / "a.tif", description=description, metadata=None)
    try:
        volume = open_volume(path)
    except IsovoxelError as error:
        check_sentence(error)
        return
    assert volume.voxel_size is None
    assert volume.missing


@settings(max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(WHOLE_FILES)),
    st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_any_damage_to_the_file_opens_or_is_an_input_error(
    tmp_path: Path, kind: str, damage: list[tuple[int, int]]
) -> None:
    """Whatever bytes of a TIFF are changed, it opens or is refused in one sentence."""
    options = WHOLE_FILES[kind]
    whole = tmp_path / f"{kind}.tif"
    data = bytearray((whole if whole.exists() else write(whole, **options)).read_bytes())
    for place, value in damage:
        data[place % len(data)] = value
    path = tmp_path / "damaged.tif"
    path.write_bytes(data)
    try:
        volume = open_volume(path)
        if Box.whole(volume.shape).size < 10**6 and volume.read_overhead < 10**8:
            volume.read(Box.whole(volume.shape))
    except IsovoxelError as error:
        check_sentence(error)
