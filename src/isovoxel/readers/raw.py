"""Read boxes from voxels that lie in a file as they are, plane after plane.

Straight into the returned array where rows are whole, otherwise through a buffer of bounded size. Nothing is
mapped: mapped pages count as memory of the process for as long as the mapping lives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.geometry.grid import Box, Index3
from isovoxel.readers.files import unavailable
from isovoxel.readers.tiled import Stored, TiledReader, failure_in

BUFFER_BYTES = 1 << 20
"""Rows of which only a part is wanted are read through a buffer of this size."""

LARGEST_GAP = 1 << 15
"""Where more bytes than these lie between the wanted parts of two rows, each part is read by itself."""


@dataclass(frozen=True)
class RawReader(TiledReader):
    """Reads boxes of an uncompressed array in files; safe to call from many threads."""

    name: str
    """What the user called the input, for messages."""
    files: tuple[str, ...]
    """Paths of the files."""
    file_of_plane: NDArray[np.int64]
    """Which file every plane lies in."""
    offsets: NDArray[np.int64]
    """Byte at which every plane begins, in its file."""
    shape: Index3
    """Shape in the file's order, slowest axis first: z, y, x, or x, y, z where `reverse`."""
    dtype: np.dtype[Any]
    """Data type in the file, with its byte order."""
    reverse: bool = False
    """Whether the file's order is x, y, z, as in Fortran."""
    opener: Callable[[str, str], Any] | None = None
    """Opens a file by the input's name and its own path, where it is not what `open_file` gives."""
    pages: NDArray[np.int64] | None = None
    """Number of the page of its file that every plane is in, for messages; None where there are no pages."""

    @property
    def segment_shape(self) -> Index3:
        """Number of voxels that are decoded in one go."""
        return (1, 1, 1)

    @property
    def overhead(self) -> int:
        """Largest number of bytes held beside the returned array."""
        return max(BUFFER_BYTES, self.shape[2] * self.dtype.itemsize)

    def taking(self, planes: NDArray[np.int64]) -> RawReader:
        """Return a reader of some of the planes, in their order."""
        return replace(
            self,
            file_of_plane=self.file_of_plane[planes],
            offsets=self.offsets[planes],
            shape=(len(planes), *self.shape[1:]),
            pages=None if self.pages is None else self.pages[planes],
        )

    def tiles(self, box: Box) -> tuple[Box]:
        """Return the box itself: nothing is decoded, and a cut for each plane would cost half of a small one's time."""
        return (box,)

    def read_tile(self, tile: Box, out: NDArray[Any], _source: Any) -> None:
        """Read planes, file by file.

        Raises
        ------
        CorruptInputError
            If a file is shorter than it was: the first plane that is not whole is named.
        """
        planes = out
        if self.reverse:
            tile, planes = Box(tile.start[::-1], tile.stop[::-1]), out.transpose(2, 1, 0)
        z = tile.start[0]
        while z < tile.stop[0]:
            which = int(self.file_of_plane[z])
            with (self.opener or open_file)(self.name, self.files[which]) as file:
                while z < tile.stop[0] and self.file_of_plane[z] == which:
                    try:
                        self._read_plane(file, int(self.offsets[z]), tile, planes[z - tile.start[0]])
                    except EndOfFileError as error:
                        raise failure_in(self._stored(z), self.name, error, self.is_damage) from error
                    z += 1
        if not self.dtype.isnative:
            out.byteswap(inplace=True)

    def stored(self, tile: Box) -> Stored:
        """Return the first plane."""
        return self._stored(tile.start[2 if self.reverse else 0])

    def _stored(self, plane: int) -> Stored:
        what = f"plane {plane}" if self.pages is None else f"page {self.pages[plane]}"
        what += f"{' along x' * self.reverse}{in_file(self.files, int(self.file_of_plane[plane]))}"
        start, stop = (plane, 0, 0), (plane + 1, *self.shape[1:])
        return Stored(what, Box(start[::-1], stop[::-1]) if self.reverse else Box(start, stop))

    def _read_plane(self, file: FileIO, offset: int, box: Box, plane: NDArray[Any]) -> None:
        """Read the box' part of one plane, in the file's byte order."""
        width, wanted = self.shape[2], box.shape[2]
        item = self.dtype.itemsize
        first, last, left = box.start[1], box.stop[1], box.start[2]
        direct = plane.flags.c_contiguous
        if direct and wanted == width:
            read_into(file, offset + first * width * item, plane, self.name)
        elif direct and ((width - wanted) * item > LARGEST_GAP or width * item > BUFFER_BYTES):
            for y in range(first, last):
                read_into(file, offset + (y * width + left) * item, plane[y - first], self.name)
        else:
            rows = max(1, BUFFER_BYTES // (width * item))
            for y in range(first, last, rows):
                n = min(rows, last - y)
                # From the first wanted voxel of the first row to the last wanted one of the last row.
                buffer = np.empty((n - 1) * width + wanted, plane.dtype)
                read_into(file, offset + (y * width + left) * item, buffer, self.name)
                part = np.lib.stride_tricks.as_strided(buffer, (n, wanted), (width * item, item))
                plane[y - first : y - first + n] = part


class EndOfFileError(ValueError):
    """A file that ends before what it should hold."""


def in_file(files: tuple[str, ...], index: int) -> str:
    """Return which of several files something lies in, as it fits behind it; nothing where there is one."""
    return f", in the file {Path(files[index]).name}," if len(files) > 1 else ""


def open_file(name: str, path: str) -> FileIO:
    """Open a file for unbuffered reading.

    Raises
    ------
    InputUnavailableError
        If it cannot be opened.
    """
    try:
        return FileIO(path)
    except OSError as error:
        raise unavailable(f"{name} can no longer be read: {path}", error) from error


def read_into(file: FileIO, offset: int, array: NDArray[Any], name: str) -> None:
    """Fill a C-contiguous array with the bytes from `offset` on.

    Raises
    ------
    EndOfFileError
        If the file ends before.
    InputUnavailableError
        If the system cannot read it.
    """
    buffer = array.reshape(-1).view(np.uint8).data
    done = 0
    try:
        file.seek(offset)
        while done < len(buffer):
            count = file.readinto(buffer[done:])
            if not count:
                raise EndOfFileError(
                    f"its file ends {len(buffer) - done} bytes too early at byte {offset + done}, "
                    f"so it has been changed since it was opened"
                )
            done += count
    except OSError as error:
        raise unavailable(f"{name} cannot be read at byte {offset}", error) from error


def read_bytes(file: FileIO, offset: int, count: int, name: str) -> bytes:
    """Return so many bytes from `offset` on, of which no copy is made.

    Raises
    ------
    EndOfFileError, InputUnavailableError
        As `read_into` does.
    """
    try:
        file.seek(offset)
        data = file.read(count)
    except OSError as error:
        raise unavailable(f"{name} cannot be read at byte {offset}", error) from error
    if len(data) < count:  # the end of the file, or more than the system reads at a time
        rest = np.empty(count - len(data), np.uint8)
        read_into(file, offset + len(data), rest, name)
        data += rest.tobytes()
    return data


def contiguous_offsets(start: int, shape: Index3, dtype: np.dtype[Any]) -> NDArray[np.int64]:
    """Return where every plane begins when they all follow one another from byte `start` on."""
    return start + np.arange(shape[0], dtype=np.int64) * (shape[1] * shape[2] * dtype.itemsize)
