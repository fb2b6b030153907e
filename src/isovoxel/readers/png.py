"""Open grey PNG slices, the files of a folder or a pattern, as one volume; a single PNG is a plane.

Each file is decoded as a whole, by imagecodecs, in the thread that reads it. Its header is compared before that with
what the file had when it was opened, because decoders believe it.

Source: https://www.w3.org/TR/png/, 11.2.1 "IHDR".
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import InputError
from isovoxel.geometry.grid import Box, Index3
from isovoxel.readers.base import Volume, check_voxels
from isovoxel.readers.files import PNG_MAGIC, FileList, unreadable
from isovoxel.readers.raw import open_file, read_bytes
from isovoxel.readers.registry import Location
from isovoxel.readers.selection import Selection
from isovoxel.readers.slices import in_order, slices_identity, slices_in
from isovoxel.readers.tiled import Stored, TiledReader

ENDINGS = (".png",)
"""Names of slices end in one of these; other files of their folder are passed over."""

HEADER_BYTES = 26
"""So many bytes of a file have all that is looked at."""

FIXED_BYTES = 1 << 20
"""What libpng and zlib hold for one file."""

_COLORS = {2: "RGB colours", 3: "colours of a palette", 4: "grey values with transparency", 6: "RGB colours"}


class _Header(NamedTuple):
    """What a PNG says of itself."""

    width: int
    height: int
    bits: int
    color: int


@dataclass(frozen=True)
class PngReader(TiledReader):
    """Reads boxes of PNG slices; safe to call from many threads."""

    name: str
    """What the user called the input, for messages."""
    files: tuple[str, ...]
    """Paths of the files, along z."""
    shape: Index3
    """Number of voxels, z, y, x."""
    dtype: np.dtype[Any]
    """Of the voxels, in native byte order."""
    largest: int
    """Bytes of the largest file."""

    @property
    def overhead(self) -> int:
        """Largest number of bytes held beside the returned array."""
        return self.largest + 2 * self.shape[1] * self.shape[2] * self.dtype.itemsize + FIXED_BYTES

    def tiles(self, box: Box) -> Iterable[Box]:
        """Cut a box along the files."""
        return box.tiles((1, self.shape[1], self.shape[2]))

    def read_tile(self, tile: Box, out: NDArray[Any], _source: Any) -> None:
        """Decode a file, and copy a part of it."""
        import imagecodecs

        path = self.files[tile.start[0]]
        size = Path(path).stat().st_size
        if size > self.largest:
            raise ValueError(f"it has {size} bytes, more than any had when it was opened")
        with open_file(self.name, path) as file:
            data = read_bytes(file, 0, size, self.name)
        header = _header_of(data)
        if header is None or (header.height, header.width, header.bits) != (*self.shape[1:], 8 * self.dtype.itemsize):
            raise ValueError("its header is another than when it was opened")
        plane = imagecodecs.png_decode(data)
        out[0] = plane[tile.slices[1:]]

    def stored(self, tile: Box) -> Stored:
        """Return the file that a part lies in."""
        z = tile.start[0]
        return Stored(f"the file {Path(self.files[z]).name}", Box((z, 0, 0), (z + 1, *self.shape[1:])))


def has_pngs(at: Location) -> bool:
    """Return whether a folder holds PNGs."""
    return any(slices_in(at.path, ENDINGS))


def open_png(at: Location, _selection: Selection) -> Volume:
    """Open a PNG, or those in a folder.

    Raises
    ------
    InputError
        If they are not the grey slices of one volume.
    """
    where = str(at.path.resolve())
    return open_pngs([where] if at.kind == "file" else list(slices_in(at.path, ENDINGS)), where, at.name)


def open_pngs(files: Sequence[str], where: str, name: str) -> Volume:
    """Open PNG files as one volume.

    Parameters
    ----------
    files
        Their absolute paths, in any order.
    where
        The path, absolute, by which they are found again.
    name
        What the user called them.

    Raises
    ------
    InputError
        If one is no grey PNG, or is not like the others; it is named.
    """
    ordered, note = in_order(name, files)
    first = _checked(ordered[0])
    for file in ordered[1:]:
        if (header := _checked(file)) != first:
            raise InputError(
                f"{file} is not like the first slice: it has {header.height} x {header.width} pixels of {header.bits} "
                f"bits, not {first.height} x {first.width} of {first.bits}; leave it out by a pattern, such as '*.png'"
            )
    shape = (len(ordered), first.height, first.width)
    dtype = np.dtype(np.uint8 if first.bits == 8 else np.uint16)
    check_voxels(name, shape, dtype)
    largest = max(Path(file).stat().st_size for file in ordered)
    reader = PngReader(name, tuple(ordered), shape, dtype, largest)
    last = f" to {Path(ordered[-1]).name}" if len(ordered) > 1 else ""
    return Volume(
        name,
        "PNG slices" if len(ordered) > 1 else "PNG",
        shape,
        dtype,
        reader,
        chunks=(1, shape[1], shape[2]),
        read_overhead=reader.overhead,
        sources={
            "shape": f"{len(ordered)} PNG file{'s' * (len(ordered) > 1)}, {Path(ordered[0]).name}{last}",
            "axes": "one file after another, taken as z",
        },
        identity=slices_identity(ordered, where),
        current_identity=partial(slices_identity, tuple(ordered), where),
        files=FileList(tuple(ordered)),
        missing="PNG has none for z",
        notes=(note,) if note else (),
    )


def _checked(file: str) -> _Header:
    """Return the header of a file of grey values."""
    try:
        with Path(file).open("rb") as opened:
            data = opened.read(HEADER_BYTES)
    except OSError as error:
        raise unreadable(file, "PNG", error) from error
    header = _header_of(data)
    if header is None and data.startswith(PNG_MAGIC):
        raise InputError(f"{file} is damaged: its PNG header cannot be read; write it again")
    if header is None:
        raise InputError(f"{file} is no PNG, as all slices must be; leave it out by a pattern, such as '*.png'")
    if header.color != 0:
        what = _COLORS.get(header.color, f"colours of the unknown kind {header.color}")
        raise InputError(f"{file} has {what}; isovoxel takes grey values: save each channel as grey slices of its own")
    if header.bits not in (8, 16):
        raise InputError(f"{file} has {header.bits} bits per pixel; save it with 8 or 16")
    return header


def _header_of(data: bytes) -> _Header | None:
    if len(data) < HEADER_BYTES or not data.startswith(PNG_MAGIC) or data[12:16] != b"IHDR":
        return None
    return _Header(*struct.unpack_from(">IIBB", data, 16))
