"""Headers of NRRD, MetaImage and MRC files, behind or beside which voxels lie as they are, or compressed as a whole.

All three have x fastest; shapes and axes are given here in the other order, as NumPy has them. NRRD and MetaImage are
text; MRC is 1,024 bytes.

Sources: https://teem.sourceforge.net/nrrd/format.html, https://itk.org/Wiki/ITK/MetaIO/Documentation,
https://www.ccpem.ac.uk/mrc-format/mrc2014/ and, for what IMOD adds, https://bio3d.colorado.edu/imod/doc/mrc_format.txt.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isovoxel.geometry.grid import Float3, triple
from isovoxel.metadata.units import ORIGIN, TURNED, Calibration, Length, calibrate, is_upright

MOST_AXES = 16
"""Axes that NRRD allows, and more than any other has."""

Vector = Sequence[float]


@dataclass(frozen=True, slots=True)
class RawHeader:
    """What a header says."""

    shape: tuple[int, ...]
    """Of the array, its slowest axis first."""
    dtype: np.dtype[Any]
    """Of its numbers, with their byte order."""
    axes: tuple[str, ...]
    """Name of each axis, in lower case, empty where it has none."""
    skip: int
    """Bytes from `begin` on, decompressed if need be, before the first voxel; -1: voxels are the end of them."""
    begin: int
    """Byte of the file at which a compressed stream begins, or behind the header."""
    compressed: bool
    """Whether the voxels are compressed by gzip or zlib."""
    file: str | None
    """The file beside the header that holds the voxels; None where they are behind it."""
    calibration: Calibration
    """Voxel size, unit and position of voxel 0."""
    notes: tuple[str, ...]
    """What is not carried over, each a clause."""

    def __post_init__(self) -> None:
        if self.skip < -1:
            raise ValueError(f"it skips {self.skip} bytes before its voxels")

    @property
    def skipped(self) -> int:
        """Bytes before the first voxel, in the file, or in what it is decompressed to; below 0: voxels are its end."""
        return self.skip if self.compressed or self.skip < 0 else self.begin + self.skip


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split()]


def _positive(numbers: Sequence[float], what: str) -> list[int]:
    whole = [int(number) for number in numbers if number == number // 1 and number > 0]
    if not 2 <= len(whole) == len(numbers) <= MOST_AXES:
        raise ValueError(f"its {what} are not two or more whole numbers above 0")
    return whole


def _calibrated(what: str, source: str, sizes: Sequence[float | None], units: Sequence[str | None]) -> Calibration:
    """Return the voxel size of x, y and z; of a plane, which has no z, it is as thick as its pixels are high."""
    x, y, *z = (Length(size, unit) for size, unit in zip(sizes, units, strict=True))
    return calibrate(what, source, (z[0] if z else Length(None), y, x), flat=not z)


# ---- NRRD ----------------------------------------------------------------------------------------------------------

_NRRD_TYPES = {
    **dict.fromkeys(("signedchar", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsignedchar", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "shortint", "signedshort", "signedshortint", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsignedshort", "unsignedshortint", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signedint", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsignedint", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(
        ("longlong", "longlongint", "signedlonglong", "signedlonglongint", "int64", "int64_t"),
        "i8",
    ),
    **dict.fromkeys(("ulonglong", "unsignedlonglong", "unsignedlonglongint", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
_NRRD_ORDER = {"little": "<", "big": ">"}
_NRRD_KINDS = {
    "time": "t",
    "list": "c",
    "vector": "c",
    "point": "c",
    "normal": "c",
    "rgb-color": "c",
    "rgba-color": "c",
}


def read_nrrd(data: bytes) -> RawHeader:
    r"""Return what an NRRD header says.

    Parameters
    ----------
    data
        The file from its first byte on, at least to the blank line that ends the header.

    Raises
    ------
    ValueError
        If it makes no sense, or voxels are stored as isovoxel does not read them; the message is a clause.

    Examples
    --------
    >>> header = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 4 3 2\nspacings: 1 1 5\nencoding: raw\nendian: big\n\n"
    >>> read_nrrd(header).shape, read_nrrd(header).dtype, read_nrrd(header).calibration.voxel_size
    ((2, 3, 4), dtype('>i2'), (5.0, 1.0, 1.0))
    """
    end = re.search(rb"\r?\n\r?\n", data)
    fields = _nrrd_fields(data[: end.start() if end else len(data)])
    sizes = _positive(_numbers(fields.get("sizes", "")), "sizes")
    directions = _nrrd_vectors(fields.get("spacedirections", "none " * len(sizes)))
    axes = _nrrd_axes(fields, len(sizes), directions)
    kind = _NRRD_TYPES.get(fields.get("type", "").replace(" ", "").lower())
    if kind is None:
        raise ValueError(f"its type is {fields.get('type', 'missing')[:40]!r}, which has no voxels of numbers")
    encoding = fields.get("encoding", "").lower()
    if encoding not in ("raw", "gz", "gzip"):
        raise ValueError(f"its voxels are encoded as {encoding[:40]!r}; save it with the encoding raw or gzip")
    order = _NRRD_ORDER.get(fields.get("endian", "").lower(), "" if kind.endswith("1") else None)
    if order is None:
        raise ValueError("it does not say in which byte order its voxels are (endian)")
    file = fields.get("datafile")
    if file is not None and (file.upper().startswith("LIST") or re.search(r"%\d*d", file)):
        raise ValueError("its voxels lie in several files; save it as one .nrrd file")
    if int(fields.get("lineskip", "0")):
        raise ValueError("it skips lines before its voxels (line skip); save it as one .nrrd file")
    if file is None and end is None:
        raise ValueError("its header does not end with a blank line")
    begin = end.end() if end is not None and file is None else 0
    skip = int(fields.get("byteskip", "0"))
    dtype, place = np.dtype(order + kind), _nrrd_place(fields, axes, directions)
    return RawHeader(tuple(sizes[::-1]), dtype, tuple(axes[::-1]), skip, begin, encoding != "raw", file, *place)


def _nrrd_fields(header: bytes) -> dict[str, str]:
    """Return the fields of a header by their names, in lower case and without spaces."""
    fields = {}
    for line in header.decode("utf-8", "replace").splitlines()[1:]:
        name, colon, value = line.partition(":")
        if colon and not line.startswith("#") and not value.startswith("="):
            fields[name.strip().lower().replace(" ", "")] = value.strip()
    return fields


def _nrrd_vectors(text: str) -> list[list[float] | None]:
    """Return vectors such as ``(1,0,0)``, and None for each ``none``."""
    found = re.findall(r"none|\(([^()]*)\)", text)
    return [[float(number) for number in numbers.split(",")] if numbers else None for numbers in found]


def _nrrd_axes(fields: Mapping[str, str], n: int, directions: Sequence[Vector | None]) -> list[str]:
    """Return the name of each axis, x first."""
    kinds = fields.get("kinds", "").lower().split()
    names = [_NRRD_KINDS.get(kind, "") for kind in kinds] if len(kinds) == n else [""] * n
    if len(directions) == n and any(directions):
        names = [name or ("" if direction else "c") for name, direction in zip(names, directions, strict=True)]
    space = [axis for axis, name in enumerate(names) if not name]
    if len(space) not in (2, 3):
        return [""] * n
    for axis, name in zip(space, "xyz", strict=False):
        names[axis] = name
    return names


def _nrrd_place(
    fields: Mapping[str, str], axes: Sequence[str], directions: Sequence[Vector | None]
) -> tuple[Calibration, tuple[str, ...]]:
    """Return voxel size and position, and what of them is not carried over."""
    space = [axis for axis, name in enumerate(axes) if name in ("x", "y", "z")] or list(range(min(3, len(axes))))
    chosen = [directions[axis] if axis < len(directions) else None for axis in space]
    units = re.findall(r'"([^"]*)"', fields.get("spaceunits" if any(chosen) else "units", ""))
    if any(chosen):
        sizes: list[float | None] = [None if vector is None else math.hypot(*vector) for vector in chosen]
        unit = units[0] if len(set(units)) == 1 else None
        if len(set(units)) > 1:
            raise ValueError("its axes have several units (space units); save it with one")
        named: list[str | None] = [unit or None] * len(space)
        source = "space directions"
    else:
        spacings = fields.get("spacings", "").split()
        sizes = [abs(float(spacings[axis])) if axis < len(spacings) else None for axis in space]
        named = [units[axis] or None if axis < len(units) else None for axis in space]
        source = "spacings"
    calibration = _calibrated("the NRRD header", f"NRRD {source}", sizes, named)
    origin = _nrrd_vectors(fields.get("spaceorigin", ""))
    if not any(chosen) or not calibration.placed:
        return calibration, ()
    if len(chosen) != 3 or not all(vector is not None and len(vector) == 3 for vector in chosen):
        return calibration, (TURNED,)
    matrix = np.array(chosen, np.float64).T
    if not is_upright(matrix):
        return calibration, (TURNED,)
    if not origin or origin[0] is None or len(origin[0]) != 3 or not np.isfinite(origin[0]).all():
        return calibration, ()
    return calibration.at(triple(origin[0][::-1])), ()


# ---- MetaImage -----------------------------------------------------------------------------------------------------

_META_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",  # whatever the machine has
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_META_LAST = re.compile(rb"^[ \t]*ElementDataFile[ \t]*=[^\n]*(\n|\Z)", re.MULTILINE)


def read_metaimage(data: bytes) -> RawHeader:
    r"""Return what a MetaImage header says.

    Parameters
    ----------
    data
        The file from its first byte on, at least to the line ElementDataFile, which ends the header.

    Raises
    ------
    ValueError
        If it makes no sense, or voxels are stored as isovoxel does not read them; the message is a clause.

    Examples
    --------
    >>> text = b"NDims = 3\nDimSize = 4 3 2\nElementSpacing = 1 1 5\nElementType = MET_UCHAR\nElementDataFile = a.raw\n"
    >>> read_metaimage(text).shape, read_metaimage(text).file, read_metaimage(text).calibration.voxel_size
    ((2, 3, 4), 'a.raw', (5.0, 1.0, 1.0))
    """
    last = _META_LAST.search(data)
    if last is None:
        raise ValueError("its header does not end with a line ElementDataFile")
    pairs = (line.partition("=") for line in data[: last.end()].decode("utf-8-sig", "replace").splitlines())
    fields = {name.strip(): value.strip() for name, equals, value in pairs if equals}
    sizes = _positive(_numbers(fields.get("DimSize", "")), "DimSize")
    n = len(sizes)
    if fields.get("NDims", str(n)) != str(n):
        raise ValueError(f"its NDims is {fields['NDims'][:20]}, and DimSize has {n} numbers")
    samples = int(fields.get("ElementNumberOfChannels", "1"))
    if samples > 1:
        sizes, n = [samples, *sizes], n + 1
    kind = _META_TYPES.get(fields.get("ElementType", ""))
    if kind is None:
        raise ValueError(
            f"its ElementType is {fields.get('ElementType', 'missing')[:40]!r}, which isovoxel cannot read"
        )
    if not _is_true(fields.get("BinaryData", "True")):
        raise ValueError("its voxels are written as text (BinaryData = False); save it with binary voxels")
    big = _is_true(fields.get("ElementByteOrderMSB", fields.get("BinaryDataByteOrderMSB", "False")))
    file = fields["ElementDataFile"]
    if file.upper().startswith("LIST") or "%" in file:
        raise ValueError("its voxels lie in several files; save it as one .mha file")
    compressed = _is_true(fields.get("CompressedData", "False"))
    skip = int(fields.get("HeaderSize", "0"))
    local = file.upper() == "LOCAL"
    begin = last.end() if local else 0
    dtype, axes = np.dtype((">" if big else "<") + kind), _meta_axes(n, interleaved=samples > 1)
    place = _meta_place(fields, min(3, n - (samples > 1)))
    return RawHeader(tuple(sizes[::-1]), dtype, axes, skip, begin, compressed, None if local else file, *place)


def _is_true(text: str) -> bool:
    """Return whether a text means yes to MetaIO, which looks at its first letter."""
    return text.startswith(("T", "t", "1"))


def _meta_axes(n: int, *, interleaved: bool) -> tuple[str, ...]:
    """Return the names of the axes, slowest first; the fourth of an image may be anything."""
    space = n - interleaved
    names = ["z", "y", "x"][-space:] if space in (2, 3) else [""] * space
    return (*names, "c") if interleaved else tuple(names)


def _meta_place(fields: Mapping[str, str], n: int) -> tuple[Calibration, tuple[str, ...]]:
    """Return voxel size and position of so many axes, and what of them is not carried over."""
    spacing = _numbers(fields.get("ElementSpacing", fields.get("ElementSize", "")))
    sizes = [*spacing[:n], *[None] * (n - len(spacing))]
    unit = fields.get("DistanceUnits") or None
    unit = None if unit in ("?", "unknown") else unit
    calibration = _calibrated("the MetaImage header", "MetaImage ElementSpacing", sizes, [unit] * n)
    offset = _numbers(next((fields[key] for key in ("Offset", "Position", "Origin") if key in fields), ""))
    turns = _numbers(next((fields[key] for key in ("TransformMatrix", "Rotation", "Orientation") if key in fields), ""))
    if not calibration.placed or len(offset) < n or not np.isfinite(offset).all():
        return calibration, ()
    size = math.isqrt(len(turns))
    matrix = np.eye(3)
    if size * size == len(turns) and size >= n:
        matrix[:n, :n] = np.reshape(turns, (size, size))[:n, :n]
    if not is_upright(matrix):
        return calibration, (TURNED,)
    return calibration.at(triple([*offset[:3], 0.0][2::-1])), ()


# ---- MRC -----------------------------------------------------------------------------------------------------------

MRC_BYTES = 1024
"""Length of MRC's header, without what may follow it."""
_MRC_MODES = {0: "i1", 1: "i2", 2: "f4", 4: "c8", 6: "u2", 12: "f2"}
_MRC_OTHERS = {3: "complex numbers", 16: "RGB", 101: "4 bits each"}
_IMOD_STAMP = 1146047817
_IMOD_SIGNED_BYTES, _IMOD_PLAIN_ORIGIN = 1, 4
_IMOD_ORIGIN = "its origin has IMOD's sign, and is not carried over"


def is_mrc(data: bytes) -> bool:
    """Return whether a file that begins with these bytes is MRC."""
    if len(data) < 216 or data[208:211] != b"MAP":
        return False
    modes = {*_MRC_MODES, *_MRC_OTHERS}
    return any(struct.unpack_from(f"{order}i", data, 12)[0] in modes for order in "<>")


def read_mrc(data: bytes) -> RawHeader:
    """Return what an MRC header says, whose lengths are in angstrom.

    Parameters
    ----------
    data
        The file's first 1,024 bytes.

    Raises
    ------
    ValueError
        If it makes no sense, or voxels are stored as isovoxel does not read them; the message is a clause.
    """
    if len(data) < MRC_BYTES:
        raise ValueError(f"its header has {len(data)} of {MRC_BYTES} bytes")
    order = _mrc_order(data)
    columns, rows, sections, mode, *starts = struct.unpack_from(f"{order}7i", data)
    counts = struct.unpack_from(f"{order}3i", data, 28)
    cell = struct.unpack_from(f"{order}3f", data, 40)
    stored = struct.unpack_from(f"{order}3i", data, 64)
    group, extended = struct.unpack_from(f"{order}2i", data, 88)
    stamp, flags = struct.unpack_from(f"{order}2i", data, 152)
    place = struct.unpack_from(f"{order}3f", data, 196)
    sizes = _positive((columns, rows, sections), "numbers of columns, rows and sections")
    if mode not in _MRC_MODES:
        raise ValueError(f"its mode is {mode}, {_MRC_OTHERS.get(mode, 'which is unknown')}; save it in mode 1, 2 or 6")
    if extended < 0:
        raise ValueError(f"its extended header has {extended} bytes")
    by_imod = stamp == _IMOD_STAMP
    kind = "u1" if mode == 0 and by_imod and not flags & _IMOD_SIGNED_BYTES else _MRC_MODES[mode]
    axes = ["xyz"[axis - 1] for axis in stored] if sorted(stored) == [1, 2, 3] else ["x", "y", "z"]
    shape, names = sizes[::-1], axes[::-1]
    if 401 <= group <= 630 and 0 < counts[2] < sections and sections % counts[2] == 0:  # a stack of volumes
        shape, names = [sections // counts[2], counts[2], *shape[1:]], ["", *names]
    lengths = [
        Length(float(str(np.float32(length / count))) if count > 0 and length > 0 else None, "angstrom", "no cell size")
        for length, count in zip(cell, counts, strict=True)
    ]
    calibration = calibrate("the MRC header", "MRC cell", triple(lengths[::-1]))
    inverted = by_imod and any(place) and not flags & _IMOD_PLAIN_ORIGIN
    notes = (_IMOD_ORIGIN,) if inverted else ()
    calibration = calibration.at(None if inverted else _mrc_origin(place, starts, axes, calibration))
    dtype, skip = np.dtype(order + kind), MRC_BYTES + extended
    return RawHeader(tuple(shape), dtype, tuple(names), skip, 0, False, None, calibration, notes)


def _mrc_order(data: bytes) -> str:
    """Return the byte order, by the machine's stamp, or where that is none, by the mode."""
    if data[212] in (0x11, 0x44):
        return ">" if data[212] == 0x11 else "<"
    return "<" if struct.unpack_from("<i", data, 12)[0] in (*_MRC_MODES, *_MRC_OTHERS) else ">"


def _mrc_origin(place: Vector, starts: Sequence[int], axes: Sequence[str], calibration: Calibration) -> Float3:
    """Return the position of voxel 0: the origin, or where that is zero, the first voxel's number times its size."""
    if calibration.voxel_size is None or not np.isfinite(place).all():
        return ORIGIN
    if any(place):
        return triple(float(str(np.float32(value))) for value in place[::-1])
    first = dict(zip(axes, starts, strict=True))
    return triple(first[axis] * size for axis, size in zip("zyx", calibration.voxel_size, strict=True))
