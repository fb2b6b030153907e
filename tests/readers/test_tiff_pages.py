"""TIFF pages that are stored unlike the first one: each is read as its own tags say, or named."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from inputs import read_all
from isovoxel.errors import CorruptInputError, InputError
from isovoxel.geometry.grid import Box
from isovoxel.readers.open import open_volume
from isovoxel.readers.tiff_pages import read_directories
from strategies import examples

N, ROWS, COLUMNS = 20, 24, 32
STACK = (np.arange(N * ROWS * COLUMNS).reshape(N, ROWS, COLUMNS) * 7 % 4000).astype("uint16")


# ---- ways to store a page ----------------------------------------------------------------------------------------

Plane = np.ndarray
Way = Callable[[Plane], tuple[Plane, dict[str, Any]]]
"""Returns what is written as a page in place of a plane, and with which options."""


def options(**given: Any) -> Way:
    """Write the plane itself with these options."""
    return lambda plane: (plane, given)


READ: dict[str, Way] = {
    "like the others": options(),
    "zlib": options(compression="zlib"),
    "lzw": options(compression="lzw"),
    "zstd": options(compression="zstd"),
    "packbits": options(compression="packbits"),
    "lzma": options(compression="lzma"),
    "lerc": options(compression="lerc"),
    "png": options(compression="png"),
    "jpeg 2000": options(compression="jpeg2000"),
    "jpeg xl": options(compression="jpegxl", compressionargs={"lossless": True}),
    "jpeg without loss": options(compression="jpeg", compressionargs={"lossless": True}),
    "zlib and predictor": options(compression="zlib", predictor=True),
    "strips": options(rowsperstrip=5),
    "strips of whole parts": options(rowsperstrip=8),
    "strips and zlib": options(rowsperstrip=5, compression="zlib"),
    "tiles": options(tile=(16, 16)),
    "large tiles": options(tile=(32, 48)),
    "tiles and zlib": options(tile=(16, 16), compression="zlib", predictor=True),
    "volumetric tiles": options(tile=(1, 16, 16), volumetric=True),
}
"""Ways that give the same voxels."""
IMAGES = {"lerc", "png", "jpeg 2000", "jpeg xl", "jpeg without loss"}
"""Those of them that are images in other formats."""

REFUSED: dict[str, tuple[Way, str]] = {
    "uint8": (lambda plane: (plane.astype("u1"), {}), "it has the dtype uint8, not uint16"),
    "int16": (lambda plane: (plane.astype("i2"), {}), "it has the dtype int16, not uint16"),
    "float32": (lambda plane: (plane.astype("f4"), {}), "it has the dtype float32, not uint16"),
    "another width": (lambda plane: (plane[:, 1:], {}), "it has the shape 24 x 31, not 24 x 32"),
    "another length": (lambda plane: (plane[2:], {}), "it has the shape 22 x 32, not 24 x 32"),
    "transposed": (lambda plane: (np.ascontiguousarray(plane.T), {}), "it has the shape 32 x 24, not 24 x 32"),
    "white as 0": (options(photometric="miniswhite"), r"photometric interpretation 0 \(white as 0\), not 1"),
    "upside down": (options(extratags=[(274, 3, 1, 4, True)]), "it has the orientation 4, not 1"),
    "two samples": (
        lambda plane: (np.stack([plane, plane]), {"planarconfig": "separate"}),
        "it has the number of samples per pixel 2, not 1",
    ),
    "two samples side by side": (
        lambda plane: (np.stack([plane, plane], -1), {"planarconfig": "contig"}),
        "it has the number of samples per pixel 2, not 1",
    ),
    "a codec that is not known": (options(compression="zlib", extratags=[]), "TIFF compression 32900"),
}
"""Ways that do not, and what is said of them."""


# ---- files that tell of their pages ------------------------------------------------------------------------------


def imagej(**sizes: int) -> str:
    """Return ImageJ's description."""
    lines = "".join(f"{key}={n}\n" for key, n in sizes.items())
    return f"ImageJ=1.53t\nimages={N}\n{lines}hyperstack=true\nunit=um\nspacing=2.0\n"


def ome(z: int, c: int, t: int, data: str = "<TiffData/>") -> str:
    """Return OME-XML."""
    return (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        f'<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="{COLUMNS}" SizeY="{ROWS}" SizeZ="{z}" '
        f'SizeC="{c}" SizeT="{t}" PhysicalSizeX="1" PhysicalSizeY="1" PhysicalSizeZ="2">{data}</Pixels></Image></OME>'
    )


PLACES = "".join(f'<TiffData FirstZ="{z}" IFD="{z}" PlaneCount="1"/>' for z in range(N))

FILES: dict[str, tuple[str, dict[str, Any], Mapping[str, int]]] = {
    "plain": ("", {}, {}),
    "plain, big-endian": ("", {"byteorder": ">"}, {}),
    "plain, BigTIFF": ("", {"bigtiff": True}, {}),
    "ImageJ": (imagej(slices=N), {}, {}),
    "ImageJ, big-endian": (imagej(slices=N), {"byteorder": ">"}, {}),
    "ImageJ, channels": (imagej(channels=2, slices=5, frames=2), {}, {"t": 2, "z": 5, "c": 2}),
    "OME": (ome(N, 1, 1), {}, {}),
    "OME, BigTIFF": (ome(N, 1, 1), {"bigtiff": True}, {}),
    "OME, each plane": (ome(N, 1, 1, PLACES), {}, {}),
    "OME, channels": (ome(5, 2, 2), {}, {"t": 2, "c": 2, "z": 5}),
    "shaped": (json.dumps({"shape": STACK.shape, "axes": "ZYX"}), {}, {}),
    "shaped, time": (json.dumps({"shape": (4, 5, ROWS, COLUMNS), "axes": "TZYX"}), {}, {"t": 4, "z": 5}),
}
"""Description, options of the file, and lengths of the axes of its pages where these are not z alone."""


def write(path: Path, kind: str, ways: Mapping[int, Way], common: Way = READ["like the others"]) -> Path:
    """Write a stack of one of these kinds, some of its pages in ways of their own."""
    description, given, _ = FILES[kind]
    with tifffile.TiffWriter(path, **given) as tif:
        for index, plane in enumerate(STACK):
            page, more = ways.get(index, common)(plane)
            told = {"description": description} if description and not index else {}
            fixed = {"metadata": None, "contiguous": False, "software": ""}
            tif.write(page, **({"photometric": "minisblack"} | more | fixed | told))
    return path


def check_writer(kind: str, *ways: str) -> None:
    """Skip what tifffile does not write: images of other formats from numbers in another byte order."""
    if "big" in kind and IMAGES & set(ways):
        pytest.skip("tifffile gives encoders the bytes as they lie")


def expected(kind: str) -> np.ndarray:
    """Return the volumes that a file of this kind has, time before channels."""
    lengths = FILES[kind][2]
    if not lengths:
        return STACK[None]
    names = [*lengths, "y", "x"]
    array = STACK.reshape(*lengths.values(), ROWS, COLUMNS)
    order = [names.index(name) for name in "tczyx" if name in names]
    return array.transpose(order).reshape(-1, lengths["z"], ROWS, COLUMNS)


# ---- what must hold ----------------------------------------------------------------------------------------------


@pytest.mark.sampled(36)
@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("way", READ)
def test_each_page_is_read_by_its_own_tags(kind: str, way: str, tmp_path: Path) -> None:
    """Whichever page is stored in another way, the first and the last too, all voxels are those that were written."""
    check_writer(kind, way)
    for odd in ({3}, {0}, {N - 1}, {1, 7, 8}):
        path = write(tmp_path / "a.tif", kind, dict.fromkeys(odd, READ[way]))
        np.testing.assert_array_equal(read_all(path), expected(kind))


@pytest.mark.sampled(33)
@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("way", [way for way in READ if way != "like the others"])
def test_a_raw_page_among_encoded_ones_is_read(kind: str, way: str, tmp_path: Path) -> None:
    """A file whose first page is compressed or tiled and another is not is as good as any."""
    check_writer(kind, way)
    path = write(tmp_path / "a.tif", kind, dict.fromkeys({3, 4, N - 1}, READ["like the others"]), READ[way])
    np.testing.assert_array_equal(read_all(path), expected(kind))
    volume = open_volume(path)
    box = Box((1, 3, 5), (4, 17, 29), volume.n_volumes - 1)
    np.testing.assert_array_equal(volume.read(box), expected(kind)[(-1, *box.slices)])


NO_PLANES = [(k, w, (3, 7, 0, N - 1)[(i + j) % 4]) for i, k in enumerate(FILES) for j, w in enumerate(REFUSED)]
"""Each kind of file with each way, and each of both at every place."""


@pytest.mark.sampled(69)
@pytest.mark.parametrize(("kind", "way", "where"), NO_PLANES)
def test_a_page_that_is_no_plane_is_named(kind: str, way: str, where: int, tmp_path: Path) -> None:
    """A page of other voxels is named with what it has, and never left out or read as something else."""
    odd, why = REFUSED[way]
    path = write(tmp_path / "a.tif", kind, {where: odd})
    if "codec" in way:
        with tifffile.TiffFile(path, mode="r+b") as tif:
            tif.pages.get(where).tags["Compression"].overwrite(32900)
    with pytest.raises(InputError, match=rf"^page {where} \(counted from 0\) of .*{why}") as error:
        read_all(path)
    assert not isinstance(error.value, CorruptInputError)


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(FILES)),
    st.sampled_from(sorted(READ)),
    st.dictionaries(st.integers(0, N - 1), st.sampled_from(sorted(READ)), max_size=N),
)
def test_any_mixture_is_read(tmp_path: Path, kind: str, common: str, ways: dict[int, str]) -> None:
    """However its pages are stored, a file has the voxels that were written."""
    assume("big" not in kind or not {common, *ways.values()} & IMAGES)
    path = write(tmp_path / "a.tif", kind, {page: READ[way] for page, way in ways.items()}, READ[common])
    np.testing.assert_array_equal(read_all(path), expected(kind))


@pytest.mark.parametrize("way", READ)
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_a_slice_is_read_by_its_own_tags(way: str, byteorder: str, tmp_path: Path) -> None:
    """A file of a folder of slices may be stored in another way than the first, and in another byte order."""
    check_writer("big" if byteorder == ">" else "", way)
    for index, plane in enumerate(STACK[:4]):
        page, more = READ[way](plane) if index == 2 else (plane, {})
        with tifffile.TiffWriter(tmp_path / f"{index}.tif", byteorder=byteorder if index == 2 else None) as tif:
            tif.write(page, **({"photometric": "minisblack", "metadata": None} | more))
    np.testing.assert_array_equal(read_all(tmp_path)[0], STACK[:4])


@pytest.mark.parametrize("way", [way for way in REFUSED if "sample" not in way and "codec" not in way])
def test_a_slice_that_is_no_plane_is_named(way: str, tmp_path: Path) -> None:
    """A file of a folder of slices that holds other voxels is named."""
    odd, why = REFUSED[way]
    for index, plane in enumerate(STACK[:4]):
        page, more = odd(plane) if index == 2 else (plane, {})
        tifffile.imwrite(tmp_path / f"{index}.tif", page, **({"photometric": "minisblack", "metadata": None} | more))
    with pytest.raises(InputError, match=rf"2\.tif is not like the others: .*{why}"):
        open_volume(tmp_path)


# ---- ways that no option of a writer gives -----------------------------------------------------------------------


def patch_tag(path: Path, page: int, tag: int, value: bytes, other: int | None = None) -> None:
    """Write other bytes into the value of a tag of a page of a little-endian TIFF, or make another tag of it."""
    at = int(read_directories(path).offsets[page])
    data = bytearray(path.read_bytes())
    for entry in range(struct.unpack_from("<H", data, at)[0]):
        where = at + 2 + 12 * entry
        if struct.unpack_from("<H", data, where)[0] == tag:
            data[where + 8 : where + 8 + len(value)] = value
            struct.pack_into("<H", data, where, other or tag)
    path.write_bytes(data)


def test_numbers_of_fewer_bits_are_unpacked(tmp_path: Path) -> None:
    """A page of 12 bits per voxel lies among those of 16."""
    bits = (STACK[3][..., None] >> np.arange(11, -1, -1) & 1).astype("u1").reshape(ROWS, -1)
    packed = np.packbits(bits, axis=1)
    path = write(tmp_path / "a.tif", "plain", {3: lambda _: (packed, {})})
    for tag, value in ((256, COLUMNS), (258, 12)):
        patch_tag(path, 3, tag, struct.pack("<I", value))
    np.testing.assert_array_equal(read_all(path)[0], STACK)


def test_strips_that_are_not_in_order_are_found(tmp_path: Path) -> None:
    """A page whose strips lie in another order than its rows is read strip by strip, though the first page is whole."""
    path = write(tmp_path / "a.tif", "plain", {}, READ["strips of whole parts"])
    with tifffile.TiffFile(path, mode="r+b") as tif:
        page = tif.pages.get(5)
        begin = page.dataoffsets[0]
        page.tags["StripOffsets"].overwrite(page.dataoffsets[::-1])
    data = bytearray(path.read_bytes())
    rows = STACK[5].reshape(3, 8, COLUMNS)[::-1].tobytes()
    data[begin : begin + len(rows)] = rows
    path.write_bytes(data)
    np.testing.assert_array_equal(read_all(path)[0], STACK)


def test_bits_in_reverse_are_turned(tmp_path: Path) -> None:
    """A page whose bytes have their bits in reverse is read as such."""

    def reverse(plane: Plane) -> tuple[Plane, dict[str, Any]]:
        return np.frombuffer(imagecodecs.bitorder_decode(plane.tobytes()), "u2").reshape(plane.shape), {}

    path = write(tmp_path / "a.tif", "plain", {3: reverse})
    patch_tag(path, 3, 296, struct.pack("<I", 2), 266)  # in place of the unit of resolutions
    np.testing.assert_array_equal(read_all(path)[0], STACK)


def test_a_page_that_is_left_out_of_a_sparse_file_is_empty(tmp_path: Path) -> None:
    """A page whose strip has neither a place nor a length holds zeros, not what lies at the start of the file."""
    path = write(tmp_path / "a.tif", "plain", {})
    for tag in (273, 279):
        patch_tag(path, 3, tag, bytes(4))
    found = read_all(path)[0]
    assert not found[3].any()
    np.testing.assert_array_equal(np.delete(found, 3, 0), np.delete(STACK, 3, 0))


def test_a_strip_that_is_too_short_is_named(tmp_path: Path) -> None:
    """A page whose strip has fewer bytes than its voxels take is not filled with its neighbour's."""
    path = write(tmp_path / "a.tif", "plain", {})
    patch_tag(path, 3, 279, struct.pack("<I", 100))
    with pytest.raises(InputError, match=r"page 3 \(counted from 0\) .* its strip has 100 bytes, but .* take 1536"):
        open_volume(path)


def test_equal_but_wrong_lengths_of_single_strips_do_not_count(tmp_path: Path) -> None:
    """Some programs write a wrong length for each page's only strip, which nobody needs."""
    path = write(tmp_path / "a.tif", "plain", {})
    for page in range(N):
        patch_tag(path, page, 279, struct.pack("<I", 64))
    np.testing.assert_array_equal(read_all(path)[0], STACK)


def test_tables_of_jpeg_are_each_pages_own(tmp_path: Path) -> None:
    """Pages of other qualities are decoded by their own tables, which may be in the page's tags or in its strips."""
    planes = (STACK >> 4).astype("u1")
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tif:
        for index, plane in enumerate(planes[:6]):
            tables = np.array(bytearray(imagecodecs.jpeg8_encode(plane, level=40 + 10 * index)))
            tif.write(
                iter([tables.tobytes()]),
                shape=plane.shape,
                dtype="uint8",
                compression="jpeg" if index % 2 else 7,
                photometric="minisblack",
                metadata=None,
                contiguous=False,
            )
    expected = np.stack(
        [imagecodecs.jpeg8_decode(imagecodecs.jpeg8_encode(p, level=40 + 10 * i)) for i, p in enumerate(planes[:6])]
    )
    np.testing.assert_array_equal(read_all(path)[0], expected)


# ---- pages that are left over ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("description", "n"),
    [
        (imagej(slices=N).replace(f"images={N}", "images=19").replace(f"slices={N}", "slices=19"), 19),
        (ome(19, 1, 1), 19),
        (ome(N, 1, 1, '<TiffData IFD="0" PlaneCount="19"/>').replace(f'SizeZ="{N}"', 'SizeZ="19"'), 19),
        (json.dumps({"shape": (19, ROWS, COLUMNS)}), 19),
    ],
    ids=["ImageJ", "OME", "OME, each plane", "shaped"],
)
@pytest.mark.parametrize("way", ["like the others", "zlib"])
def test_a_page_of_which_the_metadata_do_not_tell_is_named(description: str, n: int, way: str, tmp_path: Path) -> None:
    """A plane that no image takes is an error, not a note."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tif:
        for index, plane in enumerate(STACK):
            page, more = READ[way](plane)
            told = {"description": description} if not index else {}
            tif.write(page, photometric="minisblack", metadata=None, contiguous=False, **more, **told)
    with pytest.raises(
        InputError,
        match=rf"page {n} \(counted from 0\) of .*no part of an image.* of its 20 pages|is not what its 20 pages hold",
    ):
        open_volume(path)


def test_smaller_pictures_and_masks_are_no_planes(tmp_path: Path) -> None:
    """Thumbnails and masks that are marked as such stay out of the volume, wherever they lie."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tif:
        for plane in STACK:
            given = {"photometric": "minisblack", "metadata": None, "contiguous": False}
            tif.write(plane[::4, ::4].astype("u1"), subfiletype=1, **given)
            tif.write(plane, **given)
            tif.write(plane > 9, subfiletype=4, **given)
    np.testing.assert_array_equal(read_all(path)[0], STACK)


@pytest.mark.parametrize("factor", [2, 3, 8])
def test_levels_that_are_not_marked_are_no_planes(factor: int, tmp_path: Path) -> None:
    """As many smaller pages as there are planes, all smaller by one factor, are a level of a pyramid."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tif:
        for plane in STACK:
            for page in (plane, plane[::factor, ::factor]):
                tif.write(page, photometric="minisblack", metadata=None, contiguous=False)
    np.testing.assert_array_equal(read_all(path)[0], STACK)


def test_a_page_that_is_marked_but_like_the_others_is_a_plane(tmp_path: Path) -> None:
    """What says that it is smaller, and is not, is not dropped."""
    path = write(tmp_path / "a.tif", "plain", {3: options(subfiletype=1)})
    np.testing.assert_array_equal(read_all(path)[0], STACK)


def test_damage_is_told_with_the_pages_number(tmp_path: Path) -> None:
    """Of one time point, a strip that cannot be decoded is that of its page in the file, at its plane in the volume."""
    path = write(tmp_path / "a.tif", "OME, channels", {12: READ["zlib"]})
    with tifffile.TiffFile(path) as tif:
        begin = tif.pages.get(12).dataoffsets[0]
    with path.open("r+b") as file:
        file.seek(begin)
        file.write(b"\xff" * 8)
    volume = open_volume(path)
    with pytest.raises(CorruptInputError, match=r"strip 0 of page 12 of") as error:
        volume.read(Box((0, 0, 0), volume.shape, 2))
    assert (error.value.start, error.value.stop) == ((2, 0, 0), (3, ROWS, COLUMNS))


def test_directories_of_many_pages_are_one_pass(tmp_path: Path) -> None:
    """Opening compares every page by its tags, of which equal ones are kept once."""
    path = tmp_path / "a.tif"
    plane = np.zeros((2, 2), "u1")
    with tifffile.TiffWriter(path) as tif:
        for index in range(3000):
            tif.write(plane + index % 200, photometric="minisblack", metadata=None, contiguous=False)
    directories = read_directories(path)
    assert len(directories) == 3000
    assert len(directories.tags) <= 2  # tifffile writes its name into the first one
    np.testing.assert_array_equal(read_all(path)[0][:, 0, 0], np.arange(3000) % 200)


@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize(
    "given",
    [
        *({"byteorder": ">"}, {"compression": "zlib"}, {"bigtiff": True}, {"rowsperstrip": 5}),
        {"byteorder": ">", "compression": "zlib", "predictor": True},
    ],
    ids=str,
)
def test_each_file_of_an_ome_tiff_is_read_by_its_own_tags(where: int, given: dict[str, Any], tmp_path: Path) -> None:
    """Files of one image may have other byte orders and codecs, whichever of them is opened."""
    uuids = [f"urn:uuid:{n}{n}{n}{n}" for n in (1111, 2222)]
    data = "".join(
        f'<TiffData FirstZ="{z}" IFD="{z % 2}" PlaneCount="1">'
        f'<UUID FileName="{z // 2}.ome.tif">{uuids[z // 2]}</UUID></TiffData>'
        for z in range(4)
    )
    for part, uuid in enumerate(uuids):
        told = ome(4, 1, 1, data).replace("<OME ", f'<OME UUID="{uuid}" ')
        planes = STACK[2 * part : 2 * part + 2]
        fixed = {"photometric": "minisblack", "metadata": None, "description": told}
        tifffile.imwrite(tmp_path / f"{part}.ome.tif", planes, **fixed, **(given if part else {}))
    volume = open_volume(tmp_path / f"{where}.ome.tif")
    assert volume.voxel_size == (2, 1, 1)
    if where == 0:
        assert [file["path"] for file in volume.identity["files"]] == [str(tmp_path / "1.ome.tif")]
    np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), STACK[:4])


def write_parts(folder: Path, named: list[tuple[str, str]], own: list[str]) -> None:
    """Write an OME-TIFF of two planes in each file; what the document says of each file, and which UUID it has."""
    data = "".join(
        f'<TiffData FirstZ="{z}" IFD="{z % 2}" PlaneCount="1"><UUID FileName="{file}">{uuid}</UUID></TiffData>'
        for z, (file, uuid) in ((2 * at + half, part) for at, part in enumerate(named) for half in (0, 1))
    )
    for part, uuid in enumerate(own):
        told = ome(2 * len(named), 1, 1, data).replace("<OME ", f'<OME UUID="{uuid}" ' if uuid else "<OME ")
        planes = STACK[2 * part : 2 * part + 2]
        fixed = {"photometric": "minisblack", "metadata": None, "description": told}
        tifffile.imwrite(folder / f"{part}.ome.tif", planes, **fixed)


PARTS = [("0.ome.tif", "urn:uuid:00"), ("1.ome.tif", "urn:uuid:11"), ("2.ome.tif", "urn:uuid:22")]
UUIDS = [uuid for _, uuid in PARTS]


def nothing(_: Path) -> None:
    """Leave the files as they are."""


def swap(folder: Path) -> None:
    """Give two files each other's name."""
    (folder / "1.ome.tif").rename(folder / "x")
    (folder / "2.ome.tif").rename(folder / "1.ome.tif")
    (folder / "x").rename(folder / "2.ome.tif")


def shorten(folder: Path) -> None:
    """Leave out the last page of a file."""
    with tifffile.TiffFile(folder / "2.ome.tif") as tif:
        told = tif.pages.first.description
    tifffile.imwrite(folder / "2.ome.tif", STACK[4], photometric="minisblack", metadata=None, description=told)


@pytest.mark.parametrize(
    ("named", "own", "change", "message"),
    [
        (
            PARTS,
            UUIDS,
            lambda f: (f / "1.ome.tif").unlink(),
            r"planes lie in the file '1\.ome\.tif', which is not in its",
        ),
        (
            PARTS,
            UUIDS,
            swap,
            r"1\.ome\.tif is not the file .* its UUID is 'urn:uuid:22', not 'urn:uuid:11'; put the right",
        ),
        (PARTS, UUIDS, shorten, r"0\.ome\.tif is incomplete: its metadata say 6 planes .*, but its 3 files have 5"),
        ([(file, "") for file, _ in PARTS], ["", "", ""], nothing, r"does not tell the files '0\.ome\.tif' and '1\."),
        ([(file, "") for file, _ in PARTS], UUIDS, nothing, r"'0\.ome\.tif' and '1\.ome\.tif' apart, for both have no"),
        ([(file, UUIDS[1]) for file, _ in PARTS], UUIDS, nothing, r"apart, for both have the UUID 'urn:uuid:11' there"),
    ],
    ids=["missing", "swapped", "short", "no UUIDs at all", "no UUIDs of others", "one UUID for all"],
)
def test_files_of_an_ome_tiff_are_those_that_it_means(
    named: list[tuple[str, str]], own: list[str], change: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    """No plane is taken from another file, and no file that is whole is called incomplete for one that is missing."""
    write_parts(tmp_path, named, own)
    change(tmp_path)
    with pytest.raises(InputError, match=message):
        open_volume(tmp_path / "0.ome.tif")


@pytest.mark.parametrize("own", [UUIDS, [UUIDS[0], "", ""], ["", *UUIDS[1:]]], ids=str)
def test_files_of_an_ome_tiff_need_not_say_who_they_are(own: list[str], tmp_path: Path) -> None:
    """Where a file has no UUID of its own, its name tells."""
    write_parts(tmp_path, PARTS, own)
    np.testing.assert_array_equal(read_all(tmp_path / "0.ome.tif")[0], STACK[:6])


def test_an_ome_tiff_of_one_file_may_be_renamed(tmp_path: Path) -> None:
    """Its own UUID tells that the file of the old name is meant."""
    write_parts(tmp_path, PARTS[:1], UUIDS[:1])
    (tmp_path / "0.ome.tif").rename(tmp_path / "new.ome.tif")
    np.testing.assert_array_equal(read_all(tmp_path / "new.ome.tif")[0], STACK[:2])
