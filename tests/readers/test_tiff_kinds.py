"""TIFFs of microscopes and programs that are whole: read as what they are, or refused with what is so and a way on."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from inputs import read_all
from isovoxel.errors import CorruptInputError, InputError
from isovoxel.geometry.grid import Box
from isovoxel.metadata.tiff import read_micromanager
from isovoxel.readers.files import unreadable
from isovoxel.readers.open import open_volume
from isovoxel.readers.selection import Selection
from isovoxel.readers.tiff_reader import SegmentReader

STACK = (np.arange(6 * 24 * 32).reshape(6, 24, 32) % 4000).astype("uint16")
TWO = np.stack([STACK, STACK[::-1] + 1], 1)
"""z, c, y, x."""


# ---- samples of a pixel as channels ------------------------------------------------------------------------------


@pytest.mark.parametrize("side_by_side", [True, False])
@pytest.mark.parametrize(
    "given",
    [
        *({}, {"compression": "zlib"}, {"compression": "zlib", "rowsperstrip": 5, "predictor": True}),
        *({"tile": (16, 16)}, {"tile": (16, 16), "compression": "zlib"}, {"rowsperstrip": 7}),
        *({"bigtiff": True}, {"byteorder": ">"}),
    ],
    ids=str,
)
def test_samples_that_are_channels_are_read(side_by_side: bool, given: dict[str, Any], tmp_path: Path) -> None:
    """Channels are samples of each pixel, side by side or as planes of their own, however they are stored."""
    data, axes, planar = (np.moveaxis(TWO, 1, -1), "ZYXC", "contig") if side_by_side else (TWO, "ZCYX", "separate")
    path = tmp_path / "a.tif"
    metadata = {"axes": axes, "unit": "um", "spacing": 2.0}
    resolution = {"resolution": (2, 2), "resolutionunit": "none"}
    tifffile.imwrite(
        path, data, metadata=metadata, photometric="minisblack", planarconfig=planar, **resolution, **given
    )
    volume = open_volume(path)
    assert (volume.shape, volume.n_volumes, volume.voxel_size) == ((6, 24, 32), 2, (2, 0.5, 0.5))
    np.testing.assert_array_equal(read_all(path), TWO.swapaxes(0, 1))
    one = open_volume(path, selection=Selection(channel=1))
    box = Box((1, 3, 5), (4, 20, 31))
    np.testing.assert_array_equal(one.read(box), TWO[(slice(1, 4), 1, *box.slices[1:])])


@pytest.mark.parametrize("axes", ["czyx", "tzyx", "zcyx", "zyx"])
def test_colours_of_a_pixel_are_no_voxels_along_x(axes: str, tmp_path: Path) -> None:
    """Whatever the user calls the axes: pages are read as planes of their own width."""
    shape = (3, 8, 9, 3)[-len(axes) :]
    tifffile.imwrite(tmp_path / "a.tif", np.arange(np.prod(shape)).reshape(shape).astype("uint8"), photometric="rgb")
    with pytest.raises(InputError, match=r"hold more than y and x: its axes are Q?YXS"):
        open_volume(tmp_path / "a.tif", selection=Selection(axes=axes, time=0 if "t" in axes else None))


def test_samples_of_a_stack_without_directories_are_read(tmp_path: Path) -> None:
    """All pages may lie behind one directory, with their samples side by side."""
    path = tmp_path / "a.tif"
    data = np.ascontiguousarray(np.moveaxis(TWO, 1, -1))
    given = {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(path, data, metadata={"axes": "ZYXC"}, truncate=True, **given)
    with tifffile.TiffFile(path) as tif:
        assert len(tif.pages) == 1
    np.testing.assert_array_equal(read_all(path), TWO.swapaxes(0, 1))


# ---- Zeiss LSM ---------------------------------------------------------------------------------------------------


def lsm(
    path: Path, data: np.ndarray, *, thumbnails: bool = True, sizes: tuple[float, ...] = (1e-6, 2e-7, 2e-7)
) -> Path:
    """Write an LSM of z, c, y, x, its channels as planes of each page."""
    z, c, y, x = data.shape
    info = np.zeros(1, tifffile.TIFF.CZ_LSMINFO)[0]
    info["MagicNumber"], info["StructureSize"] = 0x0400494C, info.dtype.itemsize
    for name, n in (("X", x), ("Y", y), ("Z", z), ("Channels", c), ("Time", 1)):
        info[f"Dimension{name}"] = n
    info["DataType"] = 1 if data.dtype == "u1" else 2
    info["VoxelSizeZ"], info["VoxelSizeY"], info["VoxelSizeX"] = sizes
    given = {"metadata": None, "contiguous": False, "software": ""}
    with tifffile.TiffWriter(path, byteorder="<") as tif:
        for index, page in enumerate(data):
            tags = [(34412, 1, None, info.tobytes(), True)] if not index else []
            planes = {"planarconfig": "separate"} if c > 1 else {}
            tif.write(page if c > 1 else page[0], extratags=tags, photometric="minisblack", **planes, **given)
            if thumbnails:
                small = np.zeros((3, y // 2, x // 2), "uint8")
                tif.write(small, photometric="rgb", planarconfig="separate", subfiletype=1, **given)
    if c > 1:
        _bits_elsewhere(path, c, 8 * data.itemsize)
    return path


def _bits_elsewhere(path: Path, count: int, bits: int) -> None:
    """Keep the numbers of BitsPerSample outside their tag, each page's by itself, as LSM does where they would fit."""
    raw = bytearray(path.read_bytes())
    at = struct.unpack_from("<I", raw, 4)[0]
    while at:
        entries = struct.unpack_from("<H", raw, at)[0]
        for where in range(at + 2, at + 2 + 12 * entries, 12):
            if struct.unpack_from("<HHI", raw, where) == (258, 3, count):
                struct.pack_into("<I", raw, where + 8, len(raw))
                raw += struct.pack(f"<{count}H", *[bits] * count)
        at = struct.unpack_from("<I", raw, at + 2 + 12 * entries)[0]
    path.write_bytes(raw)


@pytest.mark.parametrize("thumbnails", [True, False])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_an_lsm_has_its_planes_and_its_voxel_size(thumbnails: bool, channels: int, dtype: str, tmp_path: Path) -> None:
    """The planes are those that are not marked as thumbnails; lengths are metres in CZ_LSMINFO."""
    data = (TWO[:, :channels] % 251).astype(dtype)
    path = lsm(tmp_path / "a.lsm", data, thumbnails=thumbnails)
    volume = open_volume(path)
    assert (volume.voxel_size, volume.unit) == ((1.0, 0.2, 0.2), "micrometer")
    np.testing.assert_array_equal(read_all(path), data.swapaxes(0, 1))


def test_an_lsm_of_one_plane_is_a_plane(tmp_path: Path) -> None:
    """Its thumbnail is not meant, and a distance to no other plane is none."""
    volume = open_volume(lsm(tmp_path / "a.lsm", TWO[:1, :1], sizes=(1e-19, 2e-7, 2e-7)))
    assert (volume.shape, volume.voxel_size) == ((1, 24, 32), (0.2, 0.2, 0.2))
    np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), STACK[:1])


def test_what_tifffile_cannot_open_is_not_the_files_fault(tmp_path: Path) -> None:
    """The library seeks a thumbnail behind each plane of an LSM; one without is not damaged."""
    with pytest.raises(InputError) as error:
        open_volume(lsm(tmp_path / "a.lsm", TWO[:1, :1], thumbnails=False))
    assert "(IndexError in tifffile); the file may be whole: save it anew" in str(error.value)


# ---- MetaMorph STK -----------------------------------------------------------------------------------------------


def stk(
    path: Path, distances: tuple[tuple[int, int], ...], unit: bytes = b"um", pixel: tuple[int, int] = (1, 2)
) -> Path:
    """Write an STK: all planes behind one directory, with UIC tags."""
    body = bytearray(struct.pack("<2sHI", b"II", 42, 0) + STACK.tobytes())
    spots = {}
    for name, data in (
        ("uic2", b"".join(struct.pack("<6I", *d, 2459000, 0, 2459000, 0) for d in distances)),
        ("uic3", struct.pack("<2I", 500, 1) * 6),
        ("uic4", bytes(4)),
        ("calibration", struct.pack("<2I", *pixel)),
        ("unit", struct.pack("<I", len(unit) + 1) + unit + bytes(3)),
    ):
        spots[name] = len(body)
        body += data
    spots["uic1"] = len(body)
    body += struct.pack("<8I", 3, 1, 4, spots["calibration"], 5, spots["calibration"], 6, spots["unit"])
    struct.pack_into("<I", body, 4, len(body))
    tags = [(256, 3, 1, 32), (257, 3, 1, 24), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    tags += [(277, 3, 1, 1), (278, 3, 1, 24), (279, 4, 1, 1536), (33628, 4, 4, spots["uic1"])]
    tags += [(33629, 5, 6, spots["uic2"]), (33630, 5, 6, spots["uic3"]), (33631, 4, 6, spots["uic4"])]
    body += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    path.write_bytes(body)
    return path


def test_a_metamorph_stack_has_its_planes_and_its_voxel_size(tmp_path: Path) -> None:
    """All planes lie behind one directory; the UIC tags have distances and calibration."""
    volume = open_volume(stk(tmp_path / "a.stk", ((2, 1),) * 6))
    assert (volume.voxel_size, volume.unit) == ((2, 0.5, 0.5), "micrometer")
    np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), STACK)


@pytest.mark.parametrize(
    ("distances", "unit", "why"),
    [
        (((2, 1), (2, 1), (2, 1), (3, 1), (2, 1), (2, 1)), b"um", "distances between planes from 2 to 3, not one,"),
        (((2, 1),) * 6, b"pixel", "whose unit is no known length"),
        (((0, 1),) * 6, b"um", "the size 0 'um', not a finite number above 0, for z"),
    ],
)
def test_a_metamorph_stack_without_a_size_says_why(
    distances: tuple[tuple[int, int], ...], unit: bytes, why: str, tmp_path: Path
) -> None:
    """Where the tags tell no size, the reason is told."""
    path = stk(tmp_path / "a.stk", distances, unit)
    volume = open_volume(path)
    assert volume.voxel_size is None
    assert why in volume.missing


def test_a_metamorph_stack_that_counts_in_voxels_gets_a_size_by_a_unit_alone(tmp_path: Path) -> None:
    """As of the other kinds: voxels of 1 without a unit are no size, and with one that the user gives they are."""
    path = stk(tmp_path / "a.stk", ((1, 1),) * 6, b"", (1, 1))
    assert open_volume(path).voxel_size is None
    volume = open_volume(path, unit="um")
    assert (volume.voxel_size, volume.unit) == ((1, 1, 1), "micrometer")


# ---- OME-XML as instruments write it -----------------------------------------------------------------------------

HEAD = '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'


def ome(path: Path, sizes: str, n: int = 6, planes: str = "") -> Path:
    """Write an OME-TIFF with these attributes."""
    xml = (
        f'{HEAD}<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="32" SizeY="24" '
        f'SizeZ="{n}" SizeC="1" SizeT="1" {sizes}><TiffData/>{planes}</Pixels></Image></OME>'
    )
    tifffile.imwrite(path, STACK[:n], description=xml.encode(), metadata=None, photometric="minisblack")
    return path


def sizes(z: str | None, yx: str, z_unit: str = "", yx_unit: str = "") -> str:
    """Return the attributes of these sizes; without a unit where none is given."""
    parts = [("Z", z, z_unit), ("Y", yx, yx_unit), ("X", yx, yx_unit)]
    found = [f'PhysicalSize{axis}="{size}"' for axis, size, _ in parts if size is not None]
    return " ".join(found + [f'PhysicalSize{axis}Unit="{unit}"' for axis, size, unit in parts if size and unit])


@pytest.mark.parametrize(
    ("given", "n", "expected"),
    [
        (sizes("0", "0.5", "µm", "µm"), 1, ((0.5, 0.5, 0.5), "micrometer")),
        (sizes("NaN", "0.5"), 1, ((0.5, 0.5, 0.5), "micrometer")),
        (sizes("-1", "0.5"), 1, ((0.5, 0.5, 0.5), "micrometer")),
        (sizes("9.999999999999994E-6", "0.5", "dm", "µm"), 6, ((1, 0.5, 0.5), "micrometer")),
        (sizes("2", "0.5"), 6, ((2, 0.5, 0.5), "micrometer")),
        (sizes("0.3", "108.333", "µm", "nm"), 6, ((300, 108.333, 108.333), "nanometer")),
        (sizes("0", "0.5", "µm", "µm"), 6, "the size 0 'µm', not a finite number above 0, for z"),
        (sizes("1", "1", "reference frame", "reference frame"), 6, "'reference frame', whose unit is no known length"),
        (sizes("1", "1", "pixel", "pixel"), 6, "'pixel', whose unit is no known length"),
        (sizes("1", "1", "pixel", "pixel"), 1, "'pixel', whose unit is no known length"),
        (sizes(None, "0.5", "", "µm"), 6, "no PhysicalSize for z"),
    ],
)
def test_sizes_of_instruments(given: str, n: int, expected: Any, tmp_path: Path) -> None:
    """Units are converted, a plane is as thick as its pixels are high, and what is unknown has a reason."""
    volume = open_volume(ome(tmp_path / "a.ome.tif", given, n))
    if isinstance(expected, str):
        assert volume.voxel_size is None
        assert expected in volume.missing
    else:
        assert volume.voxel_size == pytest.approx(expected[0], rel=1e-12)
        assert volume.unit == expected[1]


# ---- Micro-Manager -----------------------------------------------------------------------------------------------


def ndtiff(folder: Path, summary: dict[str, Any], pages: list[dict[str, Any]]) -> Path:
    """Write an NDTiff of two channels by Micro-Manager's own library, with what it says of each plane."""
    pytest.importorskip("ndstorage", reason="ndstorage is in the extra test-all only")
    from ndstorage import NDTiffDataset

    if np.lib.NumpyVersion(np.__version__) < "2.0.0":
        pytest.skip("tifffile reads an NDTiff by NumPy 2 only")
    data = NDTiffDataset(str(folder), name="a", writable=True, summary_metadata=summary)
    for z, said in enumerate(pages):
        for c, channel in enumerate(("DAPI", "GFP")):
            data.put_image({"z": z, "channel": channel}, TWO[z, c], said)
    data.finish()
    data.close()
    return next(folder.rglob("*NDTiffStack.tif"))


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # ndstorage's
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("summary", [{"z-step_um": -2.0}, {}])
def test_an_ndtiff_has_its_voxel_size(summary: dict[str, Any], whole: bool, tmp_path: Path) -> None:
    """By the step between planes, or where they lie; by its file or its folder."""
    pages = [{"PixelSizeUm": 0.5, "ZPositionUm": 8.0 - 2 * z} for z in range(6)]
    path = ndtiff(tmp_path, summary, pages)
    volume = open_volume(path.parent if whole else path)
    assert (volume.voxel_size, volume.unit) == ((2, 0.5, 0.5), "micrometer")
    assert volume.kind == "NDTiff"
    np.testing.assert_array_equal(read_all(path.parent if whole else path), TWO.swapaxes(0, 1))


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # ndstorage's
def test_an_ndtiff_of_several_files_is_one_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its folder or any of them; where planes lie, pages of other files say too."""
    pytest.importorskip("ndstorage", reason="ndstorage is in the extra test-all only")
    monkeypatch.setattr("ndstorage.ndtiff_file.MAX_FILE_SIZE", 40_000)
    path = ndtiff(tmp_path, {}, [{"PixelSizeUm": 0.5, "ZPositionUm": 2.0 * z} for z in range(6)])
    files = sorted(path.parent.glob("*.tif"))
    assert len(files) > 2
    for each in (path.parent, *files[:3]):
        volume = open_volume(each)
        assert (volume.shape, volume.voxel_size) == ((6, 24, 32), (2, 0.5, 0.5))
        np.testing.assert_array_equal(read_all(each), TWO.swapaxes(0, 1))
    assert open_volume(path.parent, selection=Selection(channel=1)).series == ()


def test_an_index_without_its_tiff_is_refused(tmp_path: Path) -> None:
    """The folder is Micro-Manager's, and not whole."""
    (tmp_path / "NDTiff.index").touch()
    with pytest.raises(InputError, match=r"no file NDTiffStack\.tif"):
        open_volume(tmp_path)


@pytest.mark.parametrize(
    ("summary", "page", "positions", "expected"),
    [
        ({"z-step_um": 2.0}, {"PixelSizeUm": 0.5}, (), (2, 0.5, 0.5)),
        ({"z-step_um": -2, "PixelSize_um": 0.5}, {"PixelSizeUm": 0}, (), (2, 0.5, 0.5)),
        ({}, {"PixelSizeUm": 0.5}, (7.0, 5.0, -3.0, 6), (2, 0.5, 0.5)),
        ({"z-step_um": 0}, {"PixelSizeUm": 0.5}, (), "no distance between planes (z-step_um) for z"),
        ({}, {"PixelSizeUm": 0.5}, (7.0, None, -3.0, 6), "no distance between planes (z-step_um) for z"),
        ({}, {"PixelSizeUm": 0.5}, (7.0, 5.0, -3.5, 6), "planes at uneven distances (ZPositionUm) for z"),
        ({}, {"PixelSizeUm": 0.5}, (5.0, 5.0, 5.0, 6), "the size 0 'micrometer'"),
        ({"z-step_um": 2.0}, {}, (), "no pixel size (PixelSizeUm) for y and x"),
        ({"z-step_um": 2.0, "PixelSize_um": "wide"}, {"PixelSizeUm": 0.0}, (), "no pixel size (PixelSizeUm) for y"),
    ],
)
def test_micro_managers_sizes(
    summary: dict[str, Any], page: dict[str, Any], positions: tuple[Any, ...], expected: Any
) -> None:
    """What it does not say, or says of a stage that did not move evenly, has a reason."""
    found = read_micromanager(summary, page, positions)
    if isinstance(expected, str):
        assert expected in found.missing
    else:
        assert (found.voxel_size, found.unit) == (expected, "micrometer")


def test_one_plane_of_micro_manager_is_as_thick_as_its_pixels() -> None:
    """As any plane is."""
    assert read_micromanager({}, {"PixelSizeUm": 0.5}, (), flat=True).voxel_size == (0.5, 0.5, 0.5)


# ---- who is to blame ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [TypeError("no such keyword"), NotImplementedError("later"), ImportError("no codec")])
def test_an_error_of_a_library_blames_no_file(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a library cannot do is neither damage nor mended by a copy, when a file is opened and when it is read."""
    assert "copy or write" not in str(unreadable("a.tif", "TIFF", error))
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, compression="zlib", photometric="minisblack")
    volume = open_volume(path)

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    assert isinstance(volume.read, SegmentReader)
    monkeypatch.setitem(volume.read.__dict__, "decode", fail)
    with pytest.raises(
        InputError, match=r"strip 0 of page 0 of .* cannot be decoded here: .*the file may be whole"
    ) as raised:
        volume.read(Box.whole(volume.shape))
    assert not isinstance(raised.value, CorruptInputError)


def test_a_numpy_that_is_too_old_is_told() -> None:
    """A library that wants another NumPy than is installed says so, as tifffile does of NDTiff."""
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        pytest.skip("this NumPy is none of them")
    try:
        np.argsort([1], stable=True)
    except TypeError as error:
        said = str(unreadable("a.tif", "TIFF", error))
    assert f"wants NumPy 2, and {np.__version__} is installed" in said
    assert "copy or write" not in said


@pytest.mark.parametrize("codec", ["deflate", "zstd"])
def test_lerc_in_another_codec_is_read(codec: str, tmp_path: Path) -> None:
    """What is compressed twice is as good as any."""
    path = tmp_path / "a.tif"
    args = {"compressionargs": {"compression": codec}}
    tifffile.imwrite(path, STACK, compression="lerc", photometric="minisblack", metadata=None, **args)
    np.testing.assert_array_equal(read_all(path)[0], STACK)


# ---- ScanImage ---------------------------------------------------------------------------------------------------

SETTINGS = {
    "SI.VERSION_MAJOR": "'2018b'",
    "SI.hChannels.channelSave": "1",
    "SI.hRoiManager.imagingFovUm": "[-8 -6;8 -6;8 6;-8 6]",
    "SI.hStackManager.actualNumSlices": "6",
    "SI.hStackManager.actualStackZStepSize": "-2",
}


def scanimage(path: Path, planes: int = 6, **changes: str) -> Path:
    """Write pages one by one, with the settings in the tag Software, as ScanImage does."""
    settings = {**SETTINGS, **{f"SI.{key.replace('_', '.')}": value for key, value in changes.items()}}
    software = "\n".join(f"{key} = {value}" for key, value in settings.items())
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for plane in np.arange(planes * 24 * 32, dtype="int16").reshape(planes, 24, 32):
            writer.write(plane, metadata=None, contiguous=False, software=software, photometric="minisblack")
    return path


def test_scanimage_states_its_field_of_view(tmp_path: Path) -> None:
    """And the step between slices, of either sign; of a plane the step does not matter."""
    volume = open_volume(scanimage(tmp_path / "a.tif"))
    assert (volume.shape, volume.voxel_size, volume.unit) == ((6, 24, 32), (2, 0.5, 0.5), "micrometer")
    plane = scanimage(tmp_path / "b.tif", 1, hStackManager_actualStackZStepSize="0", hStackManager_actualNumSlices="1")
    assert open_volume(plane).voxel_size == (0.5, 0.5, 0.5)
    unknown = open_volume(scanimage(tmp_path / "c.tif", hRoiManager_imagingFovUm="[]"))
    assert (
        unknown.missing == "z is 2 micrometer, but ScanImage's header has no field of view (imagingFovUm) for y and x"
    )
    broken = open_volume(scanimage(tmp_path / "d.tif", hRoiManager_imagingFovUm="[1 2;3"))
    assert broken.voxel_size is None


@pytest.mark.parametrize(
    ("planes", "changes", "message"),
    [
        (12, {"hChannels_channelSave": "[1;2]"}, "it has 2 channels, whose pages alternate"),
        (12, {}, "it has 6 slices, but 12 pages of each channel: volumes or frames follow one another"),
        (6, {"hStackManager_actualNumSlices": "1"}, "it has 1 slices, but 6 pages"),
    ],
)
def test_pages_of_scanimage_that_are_no_slices_are_refused(
    planes: int, changes: dict[str, str], message: str, tmp_path: Path
) -> None:
    """They would look like a volume all the same; who knows better says so."""
    path = scanimage(tmp_path / "a.tif", planes, **changes)
    with pytest.raises(InputError, match=f"is ScanImage's, and {message}.*; write it as .*, or if .* give --axes zyx"):
        open_volume(path)
    assert open_volume(path, selection=Selection(axes="zyx")).shape == (planes, 24, 32)


def test_what_tifffile_wrote_before_it_wrote_json_is_read(tmp_path: Path) -> None:
    """Its description was the shape alone."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, metadata=None, description="shape=(6,24,32)", software="tifffile.py")
    np.testing.assert_array_equal(read_all(path)[0], STACK)
    assert "no spacing" in open_volume(path).missing
