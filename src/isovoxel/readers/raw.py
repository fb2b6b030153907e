"""Read boxes from voxels that lie in a file as they are, plane after plane; open ``.npy`` files.

Straight into the returned array where rows are whole, otherwise through a buffer of bounded size. Nothing is
mapped: mapped pages count as memory of the process for as long as the mapping lives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import CorruptInputError, InputError
from isovoxel.geometry.box import Box, Index3
from isovoxel.readers.base import ReadBox, SeriesReader, Volume, check_voxels, output_array
from isovoxel.readers.files import FileList, check_complete, file_identity, reason_of, unavailable, unreadable
from isovoxel.readers.registry import Location
from isovoxel.readers.selection import GIVEN, UNNAMED, Picked, Selection, pick, plain_zyx

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

    def __call__(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a box as a new array, or in `out`.

        Raises
        ------
        CorruptInputError
            If a file is shorter than it was: the first plane that is not whole is named.
        InputUnavailableError
            If the system cannot read it.
        """
        planes = out = output_array(box, self.dtype.newbyteorder("="), out)
        if self.reverse:
            box = Box(box.start[::-1], box.stop[::-1])
            planes = out.transpose(2, 1, 0)
        if not out.size:
            return out
        z = box.start[0]
        while z < box.stop[0]:
            which = int(self.file_of_plane[z])
            with (self.opener or open_file)(self.name, self.files[which]) as file:
                while z < box.stop[0] and self.file_of_plane[z] == which:
                    try:
                        self._read_plane(file, int(self.offsets[z]), box, planes[z - box.start[0]])
                    except EndOfFileError as error:
                        raise self._corrupt(z, error) from error
                    z += 1
        if not self.dtype.isnative:
            out.byteswap(inplace=True)
        return out

    def _corrupt(self, plane: int, error: EndOfFileError) -> CorruptInputError:
        start, stop = (plane, 0, 0), (plane + 1, *self.shape[1:])
        if self.reverse:
            start, stop = start[::-1], stop[::-1]
        what = f"plane {plane}" if self.pages is None else f"page {self.pages[plane]}"
        what += f"{' along x' * self.reverse}{in_file(self.files, int(self.file_of_plane[plane]))}"
        return CorruptInputError(self.name, what, start, stop, str(error))

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


# ---- .npy files ----------------------------------------------------------------------------------------------------

# NumPy does not type these functions.
_FORMAT: Any = np.lib.format


def open_npy(at: Location, selection: Selection) -> Volume:
    """Open a 3-D or 2-D array in a ``.npy`` file, in C or Fortran order and any byte order.

    Or one of more axes in C order, where the selection names them.

    Raises
    ------
    InputError
        If the header is broken or of another kind, or voxels are missing.
    """
    path, name = at.path, at.name
    with path.open("rb") as file:
        shape, fortran, dtype = _header(file, name)
        start = file.tell()
    if selection.axes is not None:
        return _open_named(path, name, selection, (shape, fortran, dtype, start))
    selection.check_kind(name)
    zyx = plain_zyx(name, shape)
    check_voxels(name, zyx, dtype)
    check_complete(name, start + math.prod(zyx) * dtype.itemsize, path.stat().st_size)
    order = (zyx[2], zyx[1], zyx[0]) if fortran else zyx
    reader = RawReader(
        name,
        (str(path.resolve()),),
        np.zeros(order[0], np.int64),
        contiguous_offsets(start, order, dtype),
        order,
        dtype,
        reverse=fortran,
    )
    return Volume(
        name,
        "NumPy file",
        zyx,
        dtype.newbyteorder("="),
        reader,
        read_overhead=reader.overhead,
        sources={"shape": ".npy header", "axes": UNNAMED[len(shape)]},
        identity=file_identity(path),
        current_identity=partial(file_identity, path),
        files=FileList((str(path.resolve()),)),
        missing="a .npy file has none",
    )


def _open_named(
    path: Path, name: str, selection: Selection, header: tuple[tuple[int, ...], bool, np.dtype[Any], int]
) -> Volume:
    """Open an array whose axes the user names: planes of y and x, whichever axes come before."""
    shape, fortran, dtype, start = header
    picked = pick(name, [""] * len(shape), shape, selection)
    zyx = picked.shape(shape)
    check_voxels(name, zyx, dtype)
    if fortran or picked.zyx[1:] != (len(shape) - 2, len(shape) - 1):
        order = "Fortran" if fortran else "C"
        raise InputError(
            f"{name} is in {order} order with the axes {selection.axes}, so that its planes are not whole; save it in "
            "C order with y and x as its last axes"
        )
    check_complete(name, start + math.prod(shape) * dtype.itemsize, path.stat().st_size)
    planes = _Planes(name, str(path.resolve()), start, shape, dtype, picked)
    read: ReadBox = planes(()) if not picked.series else SeriesReader(picked.lengths, planes)
    return Volume(
        name,
        "NumPy file",
        zyx,
        dtype.newbyteorder("="),
        read,
        read_overhead=planes(tuple(0 for _ in picked.series)).overhead,
        sources={"shape": ".npy header", "axes": picked.told(GIVEN)},
        identity={**file_identity(path), **picked.chosen, **selection.identity("axes")},
        current_identity=partial(file_identity, path),
        missing="a .npy file has none",
        series=picked.axes(),
    )


@dataclass(frozen=True)
class _Planes:
    """Returns the reader of one volume of an array of more axes, by its place."""

    name: str
    path: str
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    picked: Picked

    def __call__(self, place: tuple[int, ...]) -> RawReader:
        strides = [self.dtype.itemsize * math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        first = self.start + sum(strides[axis] * at for axis, at in self.picked.at(place).others.items())
        zyx = self.picked.shape(self.shape)
        step = 0 if self.picked.zyx[0] is None else strides[self.picked.zyx[0]]
        offsets = first + step * np.arange(zyx[0], dtype=np.int64)
        return RawReader(self.name, (self.path,), np.zeros(zyx[0], np.int64), offsets, zyx, self.dtype)


def _header(file: BinaryIO, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether the order is Fortran's, and dtype; the file is left where its voxels begin."""
    try:
        version = _FORMAT.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = _FORMAT.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = _FORMAT.read_array_header_2_0(file)
        else:
            # version 3 is for records whose fields have names in other scripts
            raise ValueError(f"its version is {version}, which has no plain numbers")  # noqa: TRY301
    except Exception as error:
        # NumPy evaluates the header as Python's literals, so that anything may be raised.
        if isinstance(error, MemoryError | OSError):
            raise unreadable(name, "NumPy's", error) from error
        raise InputError(f"{name} has a broken .npy header ({reason_of(error)}); copy or write it again") from error
    return shape, fortran, dtype
