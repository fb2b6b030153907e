"""Files of microscopes, through bioio's readers; ND2, which nothing here can write, only as far as refusals.

What all readers share is shown with the reader of OME-TIFF, which has the same interface.
"""

from __future__ import annotations

import itertools
import re
import struct
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

import isovoxel
from command_line import Isovoxel, check_refused
from isovoxel.errors import InputError
from isovoxel.geometry.grid import Box
from isovoxel.metadata.series import SeriesAxis
from isovoxel.readers import plugins
from isovoxel.readers.base import Volume
from isovoxel.readers.open import open_volume
from isovoxel.readers.plugins import PLANES, volume_of_reader
from isovoxel.readers.selection import EVERYTHING, Selection

WHY = "bioio's readers are an extra of over a hundred megabytes, which CI does not install"
STACK = np.random.default_rng(3).integers(0, 999, (6, 40, 50)).astype("uint16")

pytestmark = [
    # Of what these libraries use, and leave open until they are collected.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def library(name: str) -> Any:
    """Import what only the extra brings, or skip the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=WHY)


def czi(path: Path, data: np.ndarray = STACK, scale: bool = True) -> Path:
    """Write a CZI of c, z, y, x or z, y, x, as Zeiss' own library does."""
    library("bioio_czi")
    with library("pylibCZIrw.czi").create_czi(str(path)) as file:
        for c, stack in enumerate(data if data.ndim == 4 else data[None]):
            for z, plane in enumerate(stack):
                file.write(data=plane[..., None], plane={"C": c, "Z": z, "T": 0})
        sizes = {"scale_x": 0.2e-6, "scale_y": 0.3e-6, "scale_z": 2e-6} if scale else {}
        file.write_metadata("a", **sizes)
    return path


def dv(path: Path) -> Path:
    """Write a DV, as the library does that reads it."""
    library("bioio_dv")
    library("mrc").imsave(str(path), STACK, resolution=(0.2, 0.3, 2.0))
    return path


def lif(path: Path) -> Path:
    """Write a LIF: XML that describes the image, and its memory, each behind a header."""
    library("bioio_lif")
    z, y, x = STACK.shape
    # The length of an axis is from the first voxel's centre to the last one's.
    axes = ((1, x, 0.2e-6, 2), (2, y, 0.3e-6, 2 * x), (3, z, 2e-6, 2 * x * y))
    dimensions = "".join(
        f'<DimensionDescription DimID="{i}" NumberOfElements="{n}" Origin="0" Length="{(n - 1) * size}" Unit="m" '
        f'BitInc="0" BytesInc="{step}"/>'
        for i, n, size, step in axes
    )
    xml = (
        '<LMSDataContainerHeader Version="2"><Element Name="a" UniqueID="0"><Memory Size="0" MemoryBlockID="M0"/>'
        '<Children><Element Name="Series" UniqueID="1"><Data><Image><ImageDescription><Channels><ChannelDescription '
        'DataType="0" ChannelTag="0" Resolution="16" LUTName="Gray" NameOfMeasuredQuantity="" Min="0" Max="1" Unit="" '
        'IsLUTInverted="0" BytesInc="0" BitInc="0"/></Channels>'
        f"<Dimensions>{dimensions}</Dimensions></ImageDescription></Image></Data>"
        f'<Memory Size="{STACK.nbytes}" MemoryBlockID="M1"/><Children/></Element></Children></Element>'
        "</LMSDataContainerHeader>"
    )

    def text(words: str) -> bytes:
        return struct.pack("<i", len(words)) + words.encode("utf-16-le")

    def block(header: bytes, data: bytes = b"") -> bytes:
        return struct.pack("<ii", 0x70, len(header)) + header + data

    memory = b"".join(
        block(b"\x2a" + struct.pack("<q", len(data)) + b"\x2a" + text(name), data)
        for name, data in (("M0", b""), ("M1", STACK.tobytes()))
    )
    path.write_bytes(block(b"\x2a" + text(xml)) + memory)
    return path


def ome_tiff(path: Path, data: np.ndarray = STACK, **metadata: Any) -> Volume:
    """Write an OME-TIFF, and open it by bioio's reader."""
    reader = library("bioio_ome_tiff").Reader
    sizes = {"PhysicalSizeZ": 2.0, "PhysicalSizeY": 0.3, "PhysicalSizeX": 0.2}
    tifffile.imwrite(path, data, ome=True, photometric="minisblack", metadata={"axes": "ZYX"} | sizes | metadata)
    return volume_of_reader(reader(str(path), **PLANES), path, "a.tif", "OME-TIFF", EVERYTHING)


@pytest.fixture(params=["CZI", "LIF", "DV", "OME-TIFF"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Volume:
    """Return a volume of every format that can be written here."""
    if request.param == "OME-TIFF":
        return ome_tiff(tmp_path / "a.ome.tif")
    return open_volume({"CZI": czi, "LIF": lif, "DV": dv}[request.param](tmp_path / "a"))


def test_a_file_is_read_plane_by_plane(opened: Volume) -> None:
    """Shape, size and unit are the file's, and any box holds its voxels."""
    assert (opened.shape, opened.dtype) == (STACK.shape, STACK.dtype)
    assert opened.voxel_size == pytest.approx((2.0, 0.3, 0.2))
    assert opened.unit == "micrometer"
    assert opened.chunks == (1, 40, 50)
    assert "one thread at a time" in opened.notes[0]
    for box in (Box.whole(STACK.shape), Box((1, 7, 3), (5, 39, 50)), Box((2, 3, 4), (2, 5, 6))):
        read = opened.read(box)
        np.testing.assert_array_equal(read, STACK[box.slices])
        assert read.flags.c_contiguous
        assert read.flags.owndata


@pytest.mark.slow
def test_threads_take_turns(opened: Volume) -> None:
    tiles = list(Box.whole(STACK.shape).tiles((2, 20, 25)))
    with ThreadPoolExecutor(4) as pool:
        for box, read in zip(tiles, pool.map(opened.read, tiles), strict=True):
            np.testing.assert_array_equal(read, STACK[box.slices])


def test_a_czi_is_scaled_and_verified(tmp_path: Path, isovoxel: Isovoxel) -> None:
    """From the command line, with the voxel size that the file states."""
    path, out = czi(tmp_path / "a.czi"), tmp_path / "out.zarr"
    assert "CZI metadata, by bioio" in isovoxel("info", path).out
    said = isovoxel("scale", path, out, "--factor", "2,1,1", "--engine", "exact")
    assert "note: bioio reads CZI files" in said.err
    assert isovoxel("verify", out, "--json", "--samples", 50).json["holds"] is True


def test_an_image_without_a_size_says_so(tmp_path: Path) -> None:
    volume = open_volume(czi(tmp_path / "a.czi", scale=False))
    assert volume.voxel_size is None
    assert "the CZI file has the size 0" in volume.missing


def test_several_channels_are_a_series(tmp_path: Path) -> None:
    """As of other files: all of them in one job, or the one that is chosen."""
    other = STACK[::-1].copy()
    path = czi(tmp_path / "a.czi", np.stack([STACK, other]))
    volume = open_volume(path)
    assert volume.series == (SeriesAxis("c", 2),)
    assert len(volume.channels) == 2
    box = Box((1, 3, 5), (5, 33, 40))
    np.testing.assert_array_equal(volume.read(box), STACK[box.slices])
    np.testing.assert_array_equal(volume.read(box.of(1)), other[box.slices])
    chosen = open_volume(path, selection=Selection(channel=1))
    assert chosen.series == ()
    np.testing.assert_array_equal(chosen.read(box), other[box.slices])
    isovoxel.scale(path, tmp_path / "out.zarr", factor=(2, 1, 1), engine="exact")
    out: Any = zarr.open_array(tmp_path / "out.zarr" / "0", mode="r")
    for c, stack in enumerate((STACK, other)):
        scaled = isovoxel.scale_array(stack, (2, 1, 1), engine="exact").compute()
        np.testing.assert_array_equal(out[c], scaled)


def test_an_image_whose_voxels_the_reader_cannot_give_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is opened: bioio-lif tells the shape of an xz scan, and fails over its planes."""
    path = lif(tmp_path / "a.lif")
    reader = library("bioio_lif.reader").Reader

    def fail(*_: Any, **__: Any) -> Any:
        raise ValueError("frame dimensions ('Z', 'X') are fixed")

    monkeypatch.setattr(reader, "_get_image_data", staticmethod(fail))
    with pytest.raises(
        InputError, match=r"by bioio-lif: frame dimensions .* are fixed; it reads planes of y and x only"
    ):
        open_volume(path)


def scenes(path: Path, *, described: bool) -> Path:
    """Write a CZI of three scenes, whose metadata may describe them; Zeiss' library leaves that to its callers."""
    library("bioio_czi")
    with library("pylibCZIrw.czi").create_czi(str(path)) as file:
        for scene, z in itertools.product(range(3), range(len(STACK))):
            plane = STACK[z] + np.uint16(1000 * scene)
            file.write(data=plane[..., None], plane={"C": 0, "Z": z}, scene=scene, location=(100 * scene, 0))
        file.write_metadata("a", scale_x=0.2e-6, scale_y=0.2e-6, scale_z=0.8e-6)
    if described:
        content = path.read_bytes()
        found = re.search(rb"<ImageDocument.*</ImageDocument>", content, re.DOTALL)
        assert found is not None
        each = b"".join(b'<Scene Index="%d" Name="S%d"/>' % (n, n) for n in range(3))
        plain = re.sub(rb">\s+<", b"><", found[0])
        plain = re.sub(rb"<(Document|Application)>.*?</\1>", b"", plain)  # for the file keeps its size
        made = plain.replace(b"<Channels>", b"<S><Scenes>" + each + b"</Scenes></S><Channels>", 1)
        assert len(made) <= len(found[0])
        path.write_bytes(content.replace(found[0], made.ljust(len(found[0])), 1))
    return path


def test_each_scene_of_a_czi_is_an_image(tmp_path: Path, isovoxel: Isovoxel) -> None:
    """By its number, its name or a pattern; all become a collection."""
    source, out = scenes(tmp_path / "a.czi", described=True), tmp_path / "out.zarr"
    for image in ("1", "S1"):
        volume = open_volume(source, selection=Selection(image=image))
        np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), STACK + 1000)
    isovoxel("scale", source, out, "--image", "all", "--factor", "2,1,1", "--interpolation", "nearest")
    for scene in range(3):
        made: Any = zarr.open_array(out / str(scene) / "0", mode="r")
        np.testing.assert_array_equal(made[...], (STACK + np.uint16(1000 * scene)).repeat(2, 0))


def test_scenes_that_the_metadata_do_not_describe_are_not_lost(tmp_path: Path, isovoxel: Isovoxel) -> None:
    """The reader has the first one alone, so that the file is refused, as one image or several."""
    source = scenes(tmp_path / "a.czi", described=False)
    for words in (("info",), ("plan", "--image", "all"), ("plan", "--image", "0")):
        said = isovoxel(words[0], source, *words[1:])
        check_refused(said, "a.czi holds 3 scenes, but its metadata describe 1")


@pytest.mark.parametrize("first", [b"ZISRAWFILE", b"another"])
def test_scenes_are_counted_by_what_the_reader_loads(first: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which has them of the parts of the file; of no other format."""
    held = SimpleNamespace(get_dims_shape=lambda: [{"S": (0, 2), "Z": (0, 5)}, {"S": (2, 3), "Z": (0, 6)}])
    monkeypatch.setitem(sys.modules, "aicspylibczi", SimpleNamespace(CziFile=lambda _: held))
    at: Any = SimpleNamespace(first=first, path=Path("a.czi"), name="a.czi")
    plugins.check_scenes(SimpleNamespace(scenes=("a", "b", "c")), at)
    with pytest.raises(InputError, match="3 scenes") if first == b"ZISRAWFILE" else nullcontext():
        plugins.check_scenes(SimpleNamespace(scenes=("a",)), at)


def test_what_cannot_be_read_later_is_one_sentence(tmp_path: Path) -> None:
    """Whatever the reader raises."""
    volume = ome_tiff(tmp_path / "a.ome.tif")
    (tmp_path / "a.ome.tif").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a.tif cannot be read, in the part from voxel \(0, 0, 0\) on") as raised:
        volume.read(Box.whole(STACK.shape))
    assert "\n" not in str(raised.value)


FIRST = {
    "CZI": b"ZISRAWFILE" + bytes(200),
    "LIF": b"\x70\0\0\0\x10\0\0\0\x2a" + bytes(200),
    "ND2": b"\xda\xce\xbe\x0a" + bytes(200),
    "DV": bytes(96) + b"\xa0\xc0" + bytes(200),
}


@pytest.mark.parametrize("kind", FIRST)
def test_a_broken_file_is_one_sentence(kind: str, tmp_path: Path) -> None:
    """Its kind is known by its first bytes, whatever its name."""
    library(f"bioio_{kind.lower()}")
    (tmp_path / "a").write_bytes(FIRST[kind])
    with pytest.raises(InputError, match=f"cannot be read as {kind}") as raised:
        open_volume(tmp_path / "a")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", FIRST)
def test_without_a_reader_one_sentence_says_what_brings_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an extra, for it brings much along."""
    (tmp_path / "a").write_bytes(FIRST[kind])
    monkeypatch.setattr(plugins, "entry_points", lambda **_: [])
    with pytest.raises(
        InputError, match=rf"a is {kind}, which takes bioio-.* to read; pip install 'isovoxel\[bioio\]' brings it"
    ):
        open_volume(tmp_path / "a")
