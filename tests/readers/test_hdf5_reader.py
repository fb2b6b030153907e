"""Every type, layout and filter of HDF5 is read as h5py reads it, or refused by name."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import isovoxel
from isovoxel.errors import InputError
from isovoxel.geometry.grid import Box
from isovoxel.readers.base import CONVERTED
from isovoxel.readers.open import open_volume

SHAPE = (5, 20, 30)
CHUNKS = (3, 8, 16)
VOXELS = np.random.default_rng(5).integers(0, 2**10, SHAPE)

Change = Callable[[h5py.h5t.TypeID], Any]
Lay = Callable[[h5py.h5p.PropDCID], Any]


def typed(path: Path, kind: Any, voxels: np.ndarray | None = VOXELS, lay: Lay | None = None, inner: str = "d") -> Path:
    """Write voxels by a type and a layout that h5py's own interface does not offer."""
    with h5py.File(path, "w", libver="latest") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        if lay is not None:
            lay(properties)
        link = h5py.h5p.create(h5py.h5p.LINK_CREATE)
        link.set_create_intermediate_group(True)
        space = h5py.h5s.create_simple(SHAPE)
        dataset = h5py.Dataset(h5py.h5d.create(file.id, inner.encode(), kind, space, properties, lcpl=link))
        if voxels is not None:
            dataset[...] = voxels
    return path


def integer(name: str, precision: int | None = None, offset: int = 0, order: int | None = None) -> Any:
    """Return an integer type of so many bits, which begin at this one."""
    kind = h5py.h5t.py_create(np.dtype(name)).copy()
    if precision is not None:
        kind.set_precision(precision)
        kind.set_offset(offset)
    if order is not None:
        kind.set_order(order)
    return kind


def enum(base: Any) -> Any:
    """Return a type of numbers with names."""
    kind = h5py.h5t.enum_create(base)
    kind.enum_insert(b"none", 0)
    kind.enum_insert(b"one", 1)
    return kind


def small_float() -> Any:
    """Return a float of 16 bits whose exponent is a float32's."""
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_offset(0)
    kind.set_precision(16)
    kind.set_size(2)
    kind.set_ebias(127)
    return kind


BIG, LITTLE = h5py.h5t.ORDER_BE, h5py.h5t.ORDER_LE
KINDS: dict[str, Callable[[], Any]] = {
    "uint16": lambda: integer("<u2"),
    "big endian": lambda: integer(">u2"),
    "12 of 16 bits": lambda: integer("<u2", 12),
    "12 bits from bit 4 on": lambda: integer("<u2", 12, 4),
    "12 signed bits": lambda: integer("<i2", 12),
    "12 signed bits, bit 4, big endian": lambda: integer("<i2", 12, 4, BIG),
    "24 of 32 bits": lambda: integer("<u4", 24, 8),
    "7 of 8 bits": lambda: integer("<u1", 7),
    "33 of 64 bits": lambda: integer("<u8", 33, 3),
    "enum": lambda: enum(integer("<u1")),
    "big endian enum": lambda: enum(integer(">i2")),
    "enum of 12 bits": lambda: enum(integer("<u2", 12, 4)),
    "float32": lambda: h5py.h5t.IEEE_F32LE,
    "big endian float32": lambda: h5py.h5t.IEEE_F32BE,
    "float16 with a float32's exponent": small_float,
    "bits": lambda: h5py.h5t.STD_B16LE,
    "big endian bits": lambda: h5py.h5t.STD_B16BE,
    "float16": lambda: h5py.h5t.IEEE_F16LE,
    "float64": lambda: h5py.h5t.IEEE_F64LE,
    "long double": lambda: h5py.h5t.py_create(np.dtype(np.longdouble)),
    "bool": lambda: h5py.h5t.py_create(np.dtype(bool), logical=True),
    "complex": lambda: h5py.h5t.py_create(np.dtype("c8")),
    "compound": lambda: h5py.h5t.py_create(np.dtype([("a", "u2"), ("b", "u2")])),
    "array": lambda: h5py.h5t.py_create(np.dtype(("u2", (3,)))),
    "text": lambda: h5py.h5t.py_create(np.dtype("S4")),
    "opaque": lambda: h5py.h5t.py_create(np.dtype("V4")),
}


def contiguous(properties: h5py.h5p.PropDCID) -> None:
    """Leave the layout as it is."""


def chunked(*filters: Callable[[h5py.h5p.PropDCID], Any]) -> Lay:
    """Return what makes chunks, encoded by these filters."""

    def lay(properties: h5py.h5p.PropDCID) -> None:
        properties.set_chunk(CHUNKS)
        for add in filters:
            add(properties)

    return lay


REFUSED = ["long double", "complex", "compound", "array", "text", "opaque"]
"""Which isovoxel does not scale, of whichever kind of file."""

LAYOUTS: dict[str, Lay] = {
    "contiguous": contiguous,
    "compact": lambda properties: properties.set_layout(h5py.h5d.COMPACT),
    "chunks": chunked(),
    "gzip": chunked(lambda p: p.set_shuffle(), lambda p: p.set_deflate(4), lambda p: p.set_fletcher32()),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", KINDS)
def test_a_type_is_read_as_h5py_reads_it_or_refused_by_name(name: str, layout: str, tmp_path: Path) -> None:
    """Whichever bits of a stored number count, and however it is laid down; else one sentence when it is opened."""
    kind = KINDS[name]()
    writable = kind.get_class() in (h5py.h5t.INTEGER, h5py.h5t.FLOAT)
    path = typed(tmp_path / "a.h5", kind, (VOXELS % 100) if writable else None, LAYOUTS[layout])
    if kind.get_class() in (h5py.h5t.ENUM, h5py.h5t.BITFIELD):  # h5py writes them as they are
        with h5py.File(path, "r+") as file:
            stored = np.ascontiguousarray((VOXELS % 2 << 4) if "12" in name else VOXELS % 2, file["d"].dtype.str)
            file["d"].id.write(h5py.h5s.ALL, h5py.h5s.ALL, stored, kind)
    if name in REFUSED:
        with pytest.raises(InputError, match="holds") as raised:
            open_volume(path)
        assert "copy" not in str(raised.value)
        return
    volume = open_volume(path)
    with h5py.File(path) as file:
        expected = file["d"][...]
    own = expected.dtype.newbyteorder("=")
    expected = expected.astype(CONVERTED.get(own, own))
    assert volume.dtype == CONVERTED.get(own, own)
    box = Box((1, 3, 5), (5, 20, 29))
    np.testing.assert_array_equal(volume.read(box), expected[box.slices])
    assert volume.read(box).any()


def test_a_fill_value_is_converted_too(tmp_path: Path) -> None:
    """Of chunks that are not stored, and of a dataset of which nothing is."""
    for number, name in enumerate(("uint16", "big endian", "12 bits from bit 4 on", "12 signed bits")):
        for layout in ("contiguous", "chunks", "gzip"):

            def lay(properties: h5py.h5p.PropDCID, layout: str = layout) -> None:
                LAYOUTS[layout](properties)
                properties.set_fill_value(np.array(77, "u2"))

            path = typed(tmp_path / f"{number}{layout}.h5", KINDS[name](), None, lay)
            if layout != "contiguous":
                with h5py.File(path, "r+") as file:
                    file["d"][:3, :8] = 5
            with h5py.File(path) as file:
                expected = file["d"][...]
            assert expected[-1, -1, -1] == 77
            np.testing.assert_array_equal(open_volume(path).read(Box.whole(SHAPE)), expected)


FILTERS: dict[str, Lay] = {
    "szip": chunked(lambda p: p.set_szip(h5py.h5z.SZIP_NN_OPTION_MASK, 8)),
    "scale-offset": chunked(lambda p: p.set_scaleoffset(h5py.h5z.SO_INT, 0)),
    "nbit": chunked(lambda p: p.set_filter(h5py.h5z.FILTER_NBIT)),
    "gzip before shuffle": chunked(lambda p: p.set_deflate(4), lambda p: p.set_shuffle()),
    "two times gzip": chunked(lambda p: p.set_deflate(1), lambda p: p.set_deflate(1)),
    "lzf": chunked(lambda p: p.set_filter(h5py.h5z.FILTER_LZF, h5py.h5z.FLAG_OPTIONAL)),
    "lzf of what is shuffled": chunked(
        lambda p: p.set_shuffle(), lambda p: p.set_filter(h5py.h5z.FILTER_LZF, h5py.h5z.FLAG_OPTIONAL)
    ),
    "shuffled as bytes": chunked(lambda p: p.set_shuffle(), lambda p: p.set_fletcher32()),
    "shuffled": chunked(lambda p: p.set_shuffle()),
    "checksums": chunked(lambda p: p.set_fletcher32()),
    "gzip": LAYOUTS["gzip"],
}
BY_HDF5 = ["szip", "scale-offset", "nbit", "gzip before shuffle", "two times gzip"]
"""What is not known here."""


@pytest.mark.parametrize("kind", ["uint16", "12 bits from bit 4 on", "big endian"])
@pytest.mark.parametrize("name", FILTERS)
def test_filters_are_undone_in_their_order(name: str, kind: str, tmp_path: Path) -> None:
    """Those that are known here, and all others by HDF5, which is told."""
    path = typed(tmp_path / "a.h5", KINDS[kind](), VOXELS % 1000, FILTERS[name])
    volume = open_volume(path)
    assert volume.chunks == CHUNKS
    assert bool(volume.notes) == (name in BY_HDF5 or kind.startswith("12"))
    np.testing.assert_array_equal(volume.read(Box.whole(SHAPE)), VOXELS % 1000)


@pytest.mark.parametrize("mask", range(8))
def test_each_chunk_says_which_filters_it_went_through(mask: int, tmp_path: Path) -> None:
    """A filter that is optional may have been left out, chunk by chunk."""
    path = typed(tmp_path / "a.h5", KINDS["uint16"](), VOXELS, LAYOUTS["gzip"])
    with h5py.File(path, "r+") as file:
        chunk = np.full(CHUNKS, 0x0102, "<u2")
        other = typed(
            tmp_path / "b.h5",
            KINDS["uint16"](),
            chunk[0, 0, 0] + np.zeros(SHAPE, int),
            chunked(
                *[
                    add
                    for bit, add in enumerate(
                        (lambda p: p.set_shuffle(), lambda p: p.set_deflate(4), lambda p: p.set_fletcher32())
                    )
                    if not mask >> bit & 1
                ]
            ),
        )
        with h5py.File(other) as encoded:
            _, data = encoded["d"].id.read_direct_chunk((0, 0, 0))
        file["d"].id.write_direct_chunk((0, 8, 16), data, mask)
    with h5py.File(path) as file:
        expected = file["d"][...]
    assert (expected[:3, 8:16, 16:30] == 0x0102).all()
    np.testing.assert_array_equal(open_volume(path).read(Box.whole(SHAPE)), expected)


def test_chunks_at_the_edge_that_no_filter_was_given_are_read(tmp_path: Path) -> None:
    """HDF5 can be told to leave them out, and then their own mask does not say so."""
    libraries = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libhdf5-" in line}
    if len(libraries) != 1:
        pytest.skip("h5py's HDF5 is not found, and h5py itself cannot write such a file")
    library = ctypes.CDLL(libraries.pop())
    library.H5Pset_chunk_opts.argtypes = [ctypes.c_int64, ctypes.c_uint]

    def lay(properties: h5py.h5p.PropDCID) -> None:
        LAYOUTS["gzip"](properties)
        assert library.H5Pset_chunk_opts(properties.id, 2) >= 0

    path = typed(tmp_path / "a.h5", KINDS["uint16"](), VOXELS, lay)
    np.testing.assert_array_equal(open_volume(path).read(Box.whole(SHAPE)), VOXELS)


def test_a_checksum_of_old_is_a_checksum(tmp_path: Path) -> None:
    """HDF5 before 1.6.3 swapped its bytes, and HDF5 still reads that."""
    path = typed(tmp_path / "a.h5", KINDS["uint16"](), VOXELS, chunked(lambda p: p.set_fletcher32()))
    with h5py.File(path, "r+") as file:
        _, data = file["d"].id.read_direct_chunk((0, 0, 0))
        a, b, c, d = data[-4:]
        file["d"].id.write_direct_chunk((0, 0, 0), data[:-4] + bytes((b, a, d, c)))
        np.testing.assert_array_equal(file["d"][...], VOXELS)
    np.testing.assert_array_equal(open_volume(path).read(Box.whole(SHAPE)), VOXELS)


def test_a_dataset_without_a_shape_is_refused(tmp_path: Path) -> None:
    """A single number, and none at all."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["one"], file["none"] = 7, h5py.Empty("u2")
    for inner in ("one", "none"):
        with pytest.raises(InputError, match="isovoxel takes z, y, x") as raised:
            open_volume(f"{tmp_path / 'a.h5'}:/{inner}")
        assert "copy" not in str(raised.value)


# ---- BigDataViewer -----------------------------------------------------------------------------------------------

BRIGHT = np.random.default_rng(6).integers(0, 2**16, SHAPE).astype("uint16")


def bdv(path: Path, stored: str, declared: str | None, layout: str = "gzip") -> str:
    """Write a file as BigDataViewer does, with this type, and perhaps what it says of it."""
    inner = "t00000/s00/0/cells"
    typed(path, h5py.h5t.py_create(np.dtype(stored)), None, LAYOUTS[layout], inner)
    with h5py.File(path, "r+") as file:
        dataset = file[inner]
        dataset[...] = BRIGHT.view("i2") if stored.endswith("i2") else BRIGHT.astype(stored)
        file["s00/resolutions"], file["s00/subdivisions"] = np.ones((1, 3)), np.array([CHUNKS[::-1]])
        if declared is not None:
            file["s00"].attrs["dataType"] = declared
    return f"{path}:/{inner}"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("stored", "declared", "read"),
    [
        ("<i2", None, "uint16"),
        (">i2", None, "uint16"),
        ("<i2", "uint16", "uint16"),
        ("<i2", "int16", "int16"),
        ("<u2", None, "uint16"),
        ("<u2", "uint16", "uint16"),
        ("|u1", "uint8", "uint8"),
        ("|u1", None, "uint8"),
        ("<f4", "float32", "float32"),
    ],
)
def test_bigdataviewer_means_unsigned(
    stored: str, declared: str | None, read: str, layout: str, tmp_path: Path
) -> None:
    """Its first format knows uint16 only, and stores it as int16; later ones say what voxels are."""
    name = bdv(tmp_path / "a.h5", stored, declared, layout)
    volume = open_volume(name)
    with h5py.File(tmp_path / "a.h5") as file:
        expected = file["t00000/s00/0/cells"][...]
    assert volume.dtype.name == read
    expected = expected.astype(expected.dtype.newbyteorder("="))
    np.testing.assert_array_equal(volume.read(Box.whole(SHAPE)), expected.view(read))


@pytest.mark.parametrize(
    ("stored", "declared"), [("<i2", "uint8"), ("<i2", "float32"), ("<i2", "speed"), ("<f4", "uint32")]
)
def test_what_bigdataviewer_says_and_stores_must_agree(stored: str, declared: str, tmp_path: Path) -> None:
    """Or it is refused, with both."""
    with pytest.raises(InputError, match=f"contradicts itself: .*{declared}.*{np.dtype(stored).name}"):
        open_volume(bdv(tmp_path / "a.h5", stored, declared))


def test_unsigned_voxels_are_scaled_as_such(tmp_path: Path) -> None:
    """Means of numbers around 2**15 lie between them, also where nothing is stored."""
    name = bdv(tmp_path / "a.h5", "<i2", None)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["d"] = BRIGHT
    results = [
        isovoxel.scale(source, tmp_path / f"{i}.zarr", factor=(2, 1, 1), engine="exact", levels=0)
        for i, source in enumerate((name, tmp_path / "b.h5"))
    ]
    first, second = (open_volume(result.path) for result in results)
    assert first.dtype == np.uint16
    np.testing.assert_array_equal(first.read(Box.whole(first.shape)), second.read(Box.whole(second.shape)))


def test_a_fill_value_of_bigdataviewer_is_unsigned_too(tmp_path: Path) -> None:
    """Chunks that are not stored hold it."""

    def lay(properties: h5py.h5p.PropDCID) -> None:
        LAYOUTS["gzip"](properties)
        properties.set_fill_value(np.array(-5, "i2"))

    path = typed(tmp_path / "a.h5", integer("<i2"), None, lay, "t00000/s00/0/cells")
    assert (open_volume(f"{path}:/t00000/s00/0/cells").read(Box.whole(SHAPE)) == 2**16 - 5).all()
