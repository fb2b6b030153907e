"""How is a box read from voxels that lie in a file as they are, plane after plane?

Straight into the returned array where rows are whole, otherwise through a buffer of bounded size. Nothing is
mapped: mapped pages count as memory of the process for as long as the mapping lives.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import FileIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import InputError
from isovoxel.geometry.box import Box, Index3
from isovoxel.volumes.base import room_for

BUFFER_BYTES = 1 << 20
"""Rows of which only a part is wanted are read through a buffer of this size."""

LARGEST_GAP = 1 << 15
"""Where more bytes than these lie between the wanted parts of two rows, each part is read by itself."""


@dataclass(frozen=True)
class RawReader:
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

    @property
    def overhead(self) -> int:
        """Largest number of bytes held beside the returned array."""
        return max(BUFFER_BYTES, self.shape[2] * self.dtype.itemsize)

    def __call__(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a box as a new array, or in `out`."""
        planes = out = room_for(box, self.dtype.newbyteorder("="), out)
        if self.reverse:
            box = Box(box.start[::-1], box.stop[::-1])
            planes = out.transpose(2, 1, 0)
        if not out.size:
            return out
        z = box.start[0]
        while z < box.stop[0]:
            which = int(self.file_of_plane[z])
            with open_file(self.name, self.files[which]) as file:
                while z < box.stop[0] and self.file_of_plane[z] == which:
                    self._read_plane(file, int(self.offsets[z]), box, planes[z - box.start[0]])
                    z += 1
        if not self.dtype.isnative:
            out.byteswap(inplace=True)
        return out

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


def open_file(name: str, path: str) -> FileIO:
    """Open a file for unbuffered reading.

    Raises
    ------
    InputError
        If it cannot be opened.
    """
    try:
        return FileIO(path)
    except OSError as error:
        raise InputError(f"{name} can no longer be read: {path}: {error.strerror}") from error


def read_into(file: FileIO, offset: int, array: NDArray[Any], name: str) -> None:
    """Fill a C-contiguous array with the bytes from `offset` on.

    Raises
    ------
    InputError
        If the file ends before, or cannot be read.
    """
    buffer = array.reshape(-1).view(np.uint8).data
    done = 0
    try:
        file.seek(offset)
        while done < len(buffer):
            count = file.readinto(buffer[done:])
            if not count:
                raise InputError(
                    f"{name} ends {len(buffer) - done} bytes too early at byte {offset + done}; "
                    f"it has been changed since it was opened"
                )
            done += count
    except OSError as error:
        raise InputError(f"{name} cannot be read at byte {offset}: {error.strerror}") from error


def contiguous_offsets(start: int, shape: Index3, dtype: np.dtype[Any]) -> NDArray[np.int64]:
    """Return where every plane begins when they all follow one another from byte `start` on."""
    return start + np.arange(shape[0], dtype=np.int64) * (shape[1] * shape[2] * dtype.itemsize)
