"""Read boxes from TIFF pages: encoded strips and tiles, and planes that are stored in several ways.

tifffile decodes segments one by one. One encoded segment and its decoded copies are all that is held beside the
returned array.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from isovoxel.geometry.grid import Box, Index3, ceil_div
from isovoxel.readers.image_headers import header_of
from isovoxel.readers.raw import in_file, open_file, read_bytes
from isovoxel.readers.tiff_pages import DECODER_BYTES, IMAGES, LERC_COMPRESSION, PageStorage
from isovoxel.readers.tiled import MixedReader, Stored, TiledReader


class PlaneReader(Protocol):
    """Reads boxes of planes that lie in files; safe to call from many threads."""

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of the files."""

    @property
    def shape(self) -> Index3:
        """Number of planes, rows and columns."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the voxels."""

    @property
    def overhead(self) -> int:
        """Largest number of bytes held beside the returned array."""

    @property
    def segment_shape(self) -> Index3:
        """Number of voxels that are decoded in one go."""

    def taking(self, planes: NDArray[np.int64]) -> PlaneReader:
        """Return a reader of some of the planes, in their order."""

    def __call__(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a box as a new array, or in `out`."""


def mixed(
    name: str,
    readers: Sequence[PlaneReader],
    which: NDArray[np.int64],
    place: NDArray[np.int64],
    files: tuple[str, ...],
) -> MixedReader:
    """Return what reads boxes of planes of which each is stored in one of several ways; see `MixedReader`."""
    z, y, x = (max(lengths) for lengths in zip(*(reader.segment_shape for reader in readers), strict=True))
    overhead = max(reader.overhead for reader in readers)
    return MixedReader(
        name, tuple(readers), which, place, readers[0].shape[1:], readers[0].dtype, files, (z, y, x), overhead
    )


MOST_SURPLUS = 2
"""Some writers encode a few rows or columns more than a segment has; none encodes so many times its bytes,"""
SURPLUS_BYTES = 1 << 16
"""or so many bytes more, as segments of a row or two may have."""

FIXED_BYTES = 1 << 18
"""What a codec holds whatever the segment's size."""


def unwrapped(data: bytes, limit: int) -> bytes:
    """Return LERC that may have been compressed once more, by zlib or Zstandard.

    Decoders look at the data for that, not at tags.

    Raises
    ------
    zlib.error, RuntimeError, ValueError
        If it cannot be decompressed, or becomes more bytes than `limit`.
    """
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        return bytes(imagecodecs.zstd_decode(data, out=limit))
    if data[:1] != b"\x78":
        return data
    decompressor = zlib.decompressobj()
    found = decompressor.decompress(data, limit)
    if decompressor.unconsumed_tail:
        raise ValueError(f"it decodes to more than {limit} bytes")
    return found


@dataclass(frozen=True)
class SegmentReader(TiledReader):
    """Reads boxes of encoded or tiled TIFF pages; safe to call from many threads."""

    name: str
    """What the user called the input, for messages."""
    files: tuple[str, ...]
    """Paths of the files."""
    file_of_page: NDArray[np.int64]
    """Which file every page lies in; here each sample of a page counts as a page."""
    offsets: NDArray[np.int64]
    """Byte at which every segment begins, by page and segment; 0 where it is left out as empty."""
    counts: NDArray[np.int64]
    """Bytes of every encoded segment, likewise."""
    storage: PageStorage
    """How all of them are stored."""
    decode: Callable[..., Any]
    """tifffile's decoder of the pages."""
    jpeg_tables: tuple[bytes | None, ...]
    """Tables that every page's JPEG segments share; empty for other codecs."""
    jpeg_header: bytes | None
    """Header that JPEG segments of some formats share."""
    numbers: NDArray[np.int64]
    """Number of every page in its file, for messages."""
    sample: NDArray[np.int64]
    """Which of the samples that lie side by side every page is."""

    @property
    def segment_shape(self) -> Index3:
        """Shape of a strip or tile."""
        return self.storage.segment_shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the voxels, in native byte order."""
        return self.storage.dtype.newbyteorder("=")

    @property
    def decoded_bytes(self) -> int:
        """Bytes of a decoded segment."""
        return math.prod(self.segment_shape) * self.storage.mixed * self.dtype.itemsize

    @property
    def overhead(self) -> int:
        """Largest number of bytes held beside the returned array."""
        # Decompressed; unpacked, where bytes hold several samples; in native byte order.
        copies = 2 + ceil_div(8 * self.dtype.itemsize, max(1, self.storage.bits))
        decoder = DECODER_BYTES.get(self.storage.compression, 0) * self.decoded_bytes // self.dtype.itemsize
        return int(self.counts.max()) + copies * self.decoded_bytes + MOST_SURPLUS * decoder + FIXED_BYTES

    @property
    def shape(self) -> Index3:
        """Number of voxels of all pages, one behind the other."""
        depth, rows, columns = self.storage.shape
        return (depth * len(self.offsets), rows, columns)

    def taking(self, planes: NDArray[np.int64]) -> PlaneReader:
        """Return a reader of some of the planes, in their order."""
        if self.storage.shape[0] > 1:
            return mixed(self.name, (self,), np.zeros(len(planes), np.int64), planes, self.files)
        return replace(
            self,
            file_of_page=self.file_of_page[planes],
            offsets=self.offsets[planes],
            counts=self.counts[planes],
            jpeg_tables=tuple(self.jpeg_tables[page] for page in planes) if self.jpeg_tables else (),
            numbers=self.numbers[planes],
            sample=self.sample[planes],
        )

    def tiles(self, box: Box) -> Iterator[Box]:
        """Cut a box along the pages, and each page along its strips or tiles."""
        depth = self.storage.shape[0]
        for page in range(box.start[0] // depth, ceil_div(box.stop[0], depth)):
            corner = (page * depth, 0, 0)
            # As the page sees them, whose own first plane is 0.
            inside = box.relative_to(corner) & Box.whole(self.storage.shape)
            yield from (tile.shifted(corner) for tile in inside.tiles(self.segment_shape))

    def read_tile(self, tile: Box, out: NDArray[Any], _source: Any) -> None:
        """Decode the segment that a part lies in, and copy the part."""
        page, segment, _ = self._place(tile)
        offset, count = int(self.offsets[page, segment]), int(self.counts[page, segment])
        if not offset or not count:
            out[...] = self.storage.fill
            return
        options = {"jpegtables": self.jpeg_tables[page], "jpegheader": self.jpeg_header} if self.jpeg_tables else {}
        with open_file(self.name, self.files[self.file_of_page[page]]) as file:
            encoded = read_bytes(file, offset, count, self.name)
        if self.storage.compression == LERC_COMPRESSION:
            encoded = unwrapped(encoded, MOST_SURPLUS * self.decoded_bytes + SURPLUS_BYTES)
        if self.storage.compression in IMAGES and not (self.jpeg_tables and self.jpeg_header):
            self._check_image(encoded)
        decoded, (_, *start, _), shape = self.decode(encoded, segment, **options)
        there = tile.relative_to((page * self.storage.shape[0] + start[0], start[1], start[2]))
        if decoded is None or not Box.whole((shape[0], shape[1], shape[2])).contains(there):
            raise ValueError("it is too short")
        out[...] = decoded[..., self.sample[page]][there.slices]

    def _place(self, tile: Box) -> tuple[int, int, Box]:
        """Return the page that a part lies in, the segment's number there, and its voxels as the page sees them."""
        depth = self.storage.shape[0]
        page = tile.start[0] // depth
        _, rows, columns = (ceil_div(n, s) for n, s in zip(self.storage.shape, self.segment_shape, strict=True))
        inside = (tile.start[0] - page * depth, *tile.start[1:])
        z, y, x = (a // n for a, n in zip(inside, self.segment_shape, strict=True))
        first, top, left = (at * n for at, n in zip((z, y, x), self.segment_shape, strict=True))
        deep, high, wide = self.segment_shape
        box = Box((first, top, left), (first + deep, top + high, left + wide)) & Box.whole(self.storage.shape)
        return page, (z * rows + y) * columns + x, box

    def stored(self, tile: Box) -> Stored:
        """Return the strip or the tile that a part lies in."""
        page, segment, box = self._place(tile)
        kind = "tile" if self.storage.tiled else "strip"
        where = in_file(self.files, int(self.file_of_page[page]))
        what = f"{kind} {segment} of page {self.numbers[page]}{where}"
        return Stored(what, box.shifted((page * self.storage.shape[0], 0, 0)))

    def _check_image(self, encoded: bytes) -> None:
        """Check that an image becomes as large as its segment, before it is decoded."""
        header = header_of(encoded)
        if header is None:
            raise ValueError("it does not begin as an image in its format does")
        if header.nbytes > MOST_SURPLUS * self.decoded_bytes + SURPLUS_BYTES:
            raise ValueError(
                f"it says that it has {header.pixels} pixels, and decodes to {header.nbytes} bytes, "
                f"where {math.prod(self.segment_shape)} pixels of {self.decoded_bytes} bytes belong"
            )
