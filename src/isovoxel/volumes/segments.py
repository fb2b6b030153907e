"""How is a box read from encoded TIFF strips and tiles?

One segment after another in the thread that reads: its bytes are read, decoded by tifffile, and the
wanted part is copied into the returned array. So one encoded segment and its decoded copies are all that
is held beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import CorruptInputError
from isovoxel.geometry.axis import ceil_div
from isovoxel.geometry.box import Box, Index3
from isovoxel.volumes.base import room_for
from isovoxel.volumes.files import reason_of
from isovoxel.volumes.image_headers import pixels_of
from isovoxel.volumes.raw import EndOfFileError, in_file, open_file, read_into

DECODED_COPIES = 3
"""How many copies of a decoded segment exist at most: decompressed, in native byte order, unpredicted."""

MOST_SURPLUS = 4
"""Some writers encode a few rows or columns more than a segment has; nobody encodes so many times its pixels."""

FIXED_BYTES = 1 << 16
"""What a codec holds whatever the segment's size."""


@dataclass(frozen=True)
class SegmentReader:
    """Reads boxes of encoded or tiled TIFF pages; safe to call from many threads."""

    name: str
    """What the user called the input, for messages."""
    files: tuple[str, ...]
    """Paths of the files."""
    file_of_page: NDArray[np.int64]
    """Which file every page lies in."""
    offsets: NDArray[np.int64]
    """Byte at which every segment begins, by page and segment; 0 where it is left out as empty."""
    counts: NDArray[np.int64]
    """Bytes of every encoded segment, likewise."""
    page_shape: Index3
    """Shape of a page; more than one plane deep in volumetric TIFF."""
    segment_shape: Index3
    """Shape of a strip or tile."""
    dtype: np.dtype[Any]
    """Data type of the voxels, in native byte order."""
    decode: Callable[..., Any]
    """tifffile's decoder of the pages."""
    jpeg_tables: tuple[bytes | None, ...]
    """Tables that every page's JPEG segments share; empty for other codecs."""
    jpeg_header: bytes | None
    """Header that JPEG segments of some formats share."""
    fill: float
    """Value of the voxels of segments that are left out."""
    kind: str
    """What a segment is called: "strip" or "tile"."""
    images: bool
    """Whether every segment is an image in a format of its own, such as JPEG."""

    @property
    def overhead(self) -> int:
        """Largest number of bytes held beside the returned array."""
        z, y, x = self.segment_shape
        return int(self.counts.max()) + DECODED_COPIES * z * y * x * self.dtype.itemsize + FIXED_BYTES

    @property
    def shape(self) -> Index3:
        """Number of voxels of all pages, one behind the other."""
        depth, rows, columns = self.page_shape
        return (depth * len(self.offsets), rows, columns)

    def taking(self, pages: NDArray[np.int64]) -> SegmentReader:
        """Return a reader of some of the pages, in their order."""
        return replace(
            self,
            file_of_page=self.file_of_page[pages],
            offsets=self.offsets[pages],
            counts=self.counts[pages],
            jpeg_tables=tuple(self.jpeg_tables[page] for page in pages) if self.jpeg_tables else (),
        )

    def __call__(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a box as a new array, or in `out`.

        Raises
        ------
        CorruptInputError
            If a segment cannot be decoded, or is cut short.
        InputUnavailableError
            If the system cannot read it.
        """
        out = room_for(box, self.dtype, out)
        depth = self.page_shape[0]
        if not out.size:
            return out
        for page in range(box.start[0] // depth, ceil_div(box.stop[0], depth)):
            # The box and the array as the page sees them, whose own first plane is 0.
            corner = (page * depth, 0, 0)
            inside = box.relative_to(corner) & Box.whole(self.page_shape)
            part = out[inside.relative_to(box.relative_to(corner).start).slices]
            for tile in inside.tiles(self.segment_shape):
                self._read_segment(page, tile, part[tile.relative_to(inside.start).slices])
        return out

    def _read_segment(self, page: int, tile: Box, out: NDArray[Any]) -> None:
        """Decode the segment that a tile of a page lies in, and copy the tile."""
        _, rows, columns = (ceil_div(n, s) for n, s in zip(self.page_shape, self.segment_shape, strict=True))
        z, y, x = (a // n for a, n in zip(tile.start, self.segment_shape, strict=True))
        segment = (z * rows + y) * columns + x
        offset, count = int(self.offsets[page, segment]), int(self.counts[page, segment])
        if not offset or not count:
            out[...] = self.fill
            return
        data = np.empty(count, np.uint8)
        options = {"jpegtables": self.jpeg_tables[page], "jpegheader": self.jpeg_header} if self.jpeg_tables else {}
        corner = (z * self.segment_shape[0], y * self.segment_shape[1], x * self.segment_shape[2])
        with open_file(self.name, self.files[self.file_of_page[page]]) as file:
            try:
                read_into(file, offset, data, self.name)
            except EndOfFileError as error:
                raise self._corrupt(page, segment, corner, str(error)) from error
        encoded = data.tobytes()
        pixels, wanted = pixels_of(encoded) if self.images else 0, math.prod(self.segment_shape)
        if pixels > MOST_SURPLUS * wanted:
            why = f"it says that it has {pixels} pixels, where {wanted} belong"
            raise self._corrupt(page, segment, corner, why)
        try:
            decoded, (_, *start, _), shape = self.decode(encoded, segment, **options)
        except MemoryError:
            raise
        except Exception as error:
            raise self._corrupt(page, segment, corner, reason_of(error)) from error
        there = tile.relative_to((start[0], start[1], start[2]))
        if decoded is None or not Box.whole((shape[0], shape[1], shape[2])).contains(there):
            raise self._corrupt(page, segment, corner, "it is too short")
        out[...] = decoded[..., 0][there.slices]

    def _corrupt(self, page: int, segment: int, corner: Index3, reason: str) -> CorruptInputError:
        """Return the error for a segment that begins at a corner of its page."""
        z, y, x = (a + n for a, n in zip(corner, self.segment_shape, strict=True))
        box = (Box(corner, (z, y, x)) & Box.whole(self.page_shape)).relative_to((-page * self.page_shape[0], 0, 0))
        what = f"{self.kind} {segment} of page {page}{in_file(self.files, int(self.file_of_page[page]))}"
        return CorruptInputError(self.name, what, box.start, box.stop, reason)
