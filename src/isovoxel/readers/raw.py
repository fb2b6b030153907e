"""Read boxes from voxels that lie in a file as they are, plane after plane.

Straight into the returned array where rows are whole, otherwise through a buffer of bounded size. Nothing is
mapped: mapped pages count as memory of the process for as long as the mapping lives.
"""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import InputError
from isovoxel.geometry.grid import Box, Index3
from isovoxel.planning.memory import human_bytes
from isovoxel.readers.base import Volume, check_voxels, series_reader, stored_order, transposed, with_zyx_named
from isovoxel.readers.files import GZIP_MAGIC, EndOfFileError, check_complete, fill_buffer, unavailable
from isovoxel.readers.selection import Picked, Selection, pick
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
    """Number of voxels, z, y, x."""
    dtype: np.dtype[Any]
    """Data type in the file, with its byte order."""
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
        z = tile.start[0]
        while z < tile.stop[0]:
            which = int(self.file_of_plane[z])
            with (self.opener or open_file)(self.name, self.files[which]) as file:
                while z < tile.stop[0] and self.file_of_plane[z] == which:
                    try:
                        self._read_plane(file, int(self.offsets[z]), tile, out[z - tile.start[0]])
                    except EndOfFileError as error:
                        raise failure_in(self._stored(z), self.name, error, self.is_damage) from error
                    z += 1
        if not self.dtype.isnative:
            out.byteswap(inplace=True)

    def stored(self, tile: Box) -> Stored:
        """Return the first plane."""
        return self._stored(tile.start[0])

    def _stored(self, plane: int) -> Stored:
        what = f"plane {plane}" if self.pages is None else f"page {self.pages[plane]}"
        what += in_file(self.files, int(self.file_of_plane[plane]))
        return Stored(what, Box((plane, 0, 0), (plane + 1, *self.shape[1:])))

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
    try:
        fill_buffer(file, offset, array.reshape(-1).view(np.uint8).data)
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


# ---- volumes of raw voxels ---------------------------------------------------------------------------------------

# Volumes of an array that lies in a file as it is, in C order, or compressed as a whole by gzip or zlib.
#
# This is what NRRD, MetaImage, MRC and `.npy` files share. Planes of y and x are read as they lie, whichever axes come
# before; an array whose space axes are in another order is turned as it is read.


@dataclass(frozen=True)
class RawArray:
    """An array in a file, in C order."""

    name: str
    """What the user called the input, for messages."""
    path: str
    """The file, absolute."""
    start: int
    """Byte at which it begins, in the file, or in what that is decompressed to."""
    shape: tuple[int, ...]
    """Its slowest axis first."""
    dtype: np.dtype[Any]
    """In the file, with its byte order."""
    marks: GzipMarks | None = None
    """Where the file can be decompressed from; None where it is not compressed."""

    @property
    def end(self) -> int:
        """Byte behind its last one."""
        return self.start + math.prod(self.shape) * self.dtype.itemsize

    def reader(self, picked: Picked) -> RawReader:
        """Return what reads the volume picked of it, whose y and x are the last axes."""
        strides = [self.dtype.itemsize * math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        first = self.start + sum(strides[axis] * at for axis, at in picked.others.items())
        zyx = picked.shape(self.shape)
        step = 0 if picked.zyx[0] is None else strides[picked.zyx[0]]
        offsets = first + step * np.arange(zyx[0], dtype=np.int64)
        reader = RawReader(self.name, (self.path,), np.zeros(zyx[0], np.int64), offsets, zyx, self.dtype)
        return reader if self.marks is None else replace(reader, opener=self.marks.open)


def open_raw(array: RawArray, axes: Sequence[str], selection: Selection) -> tuple[Volume, Picked]:
    """Return an array as a volume of its shape, and what of it was picked; who knows its header adds the rest.

    Parameters
    ----------
    array
        Where it lies.
    axes
        Name of each axis, empty where it has none.
    selection
        What the user wants of it.

    Raises
    ------
    InputError
        If it is no volume, voxels of several channels lie among each other, or voxels are missing.
    """
    name = array.name
    axes = selection.named(name, axes, array.shape)
    selection = replace(selection, axes=None)
    order = stored_order(axes)
    picked = pick(name, axes if order is None else with_zyx_named(axes), array.shape, selection)
    stored = picked.shape(array.shape)
    check_voxels(name, stored, array.dtype)
    kept = [axis for axis, n in enumerate(array.shape) if n > 1 or axis in picked.zyx]
    if (*picked.zyx[1:],) != (*kept[-2:],):
        found = ", ".join(axis or "unnamed" for axis in axes)
        raise InputError(
            f"{name} has other voxels between those of a plane (its axes, slowest first, are {found}); save its "
            "channels one after another, or each as a file of its own"
        )
    size = Path(array.path).stat().st_size
    check_complete(name, array.end, size if array.marks is None else size * LARGEST_RATIO)
    volume = Volume(
        name,
        "",
        stored,
        array.dtype.newbyteorder("="),
        series_reader(picked, array.reader),
        (1, 1, 1) if array.marks is None else (1, *stored[1:]),
        read_overhead=array.reader(picked).overhead + (GZIP_BYTES if array.marks else 0),
        notes=() if array.marks is None else (gzip_note(array.marks),),
        series=picked.axes(),
        sequential=array.marks is not None,
    )
    return volume if order is None else transposed(volume, order, axes), picked


# ---- gzip ----------------------------------------------------------------------------------------------------------

# Read the middle of a gzip or zlib stream, which can only be decompressed from its front. It may begin behind a header.
#
# 1. A read that decompresses past a mark leaves a copy of the decompressor there: its window of 32 KiB, its position.
# 2. A read begins at the last copy before what it wants, and throws away what lies between.
#
# Marks are a fixed share of the whole apart, so that there are never more than `MOST_MARKS`, and reads of many threads
# run side by side. The first read of the end decompresses everything before it, once. A read of the last byte that
# matters continues to gzip's checksum, which covers all before it, for every copy of the decompressor knows of it.


MOST_MARKS = 256
"""Most copies of the decompressor."""

MARK_BYTES = 48 << 10
"""What a copy takes: zlib's window and tables."""

LEAST_SPACING = 1 << 22
"""Bytes between marks, at least."""

PIECE_BYTES = 1 << 18
"""So much is decompressed in one go."""

ENCODED_BYTES = 1 << 16
"""So much of the file is read in one go."""

STREAM_BYTES = 4 * PIECE_BYTES + 2 * ENCODED_BYTES
"""What a stream holds beside the marks."""

GZIP_BYTES = STREAM_BYTES + MOST_MARKS * MARK_BYTES
"""What reading a compressed array takes beside the rest."""

MOST_SURPLUS = 1 << 26
"""So much behind the last byte that matters is decompressed for the checksum's sake."""

LARGEST_RATIO = 1032
"""Deflate makes at most so many bytes of one."""

_EITHER = 32 + zlib.MAX_WBITS
"""Gzip or zlib, as the stream's first bytes say."""


class _Mark(NamedTuple):
    """A place to begin."""

    position: int
    """Byte of the decompressed file."""
    offset: int
    """Byte of the gzip file."""
    state: Any
    """The decompressor there, to be copied; None for a member that begins."""


class GzipMarks:
    """Where one gzip file can be begun; safe to use from many threads.

    Parameters
    ----------
    total
        Bytes that the decompressed file has.
    spacing
        Bytes between marks; by default what `MOST_MARKS` allow.
    begin
        Byte of the file at which the compressed stream begins.
    """

    def __init__(self, total: int, spacing: int | None = None, begin: int = 0) -> None:
        self.spacing = spacing or max(LEAST_SPACING, -(-total // MOST_MARKS))
        self.total = total
        self._lock = threading.Lock()
        self.begin = begin
        self._marks = {0: _Mark(0, begin, None)}

    def __reduce__(self) -> tuple[type[GzipMarks], tuple[int, int, int]]:
        # Another process makes its own.
        return (GzipMarks, (self.total, self.spacing, self.begin))

    def open(self, name: str, path: str) -> GzipStream:
        """Open the file for reading it decompressed, as `open_file` does for others."""
        return GzipStream(open_file(name, path), self, name)

    def before(self, position: int) -> _Mark:
        """Return the last mark that is not behind a position."""
        with self._lock:
            return self._marks[max(place for place in self._marks if place * self.spacing <= position)]

    def leave(self, mark: _Mark) -> None:
        """Keep a place to begin, unless there is one already."""
        with self._lock:
            self._marks.setdefault(mark.position // self.spacing, mark)

    def wants(self, position: int) -> bool:
        """Return whether a mark should be left exactly here."""
        return position % self.spacing == 0 and position // self.spacing not in self._marks


class GzipStream:
    """A gzip file as if it were decompressed; used by one thread, in a ``with`` statement.

    Parameters
    ----------
    file
        The file, which is closed at the end.
    marks
        Where it can be begun.
    name
        What the user called the input, for messages.
    """

    def __init__(self, file: FileIO, marks: GzipMarks, name: str) -> None:
        self._file = file
        self._name = name
        self._marks = marks
        self._data = b""
        self._at(marks.before(0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def seek(self, position: int) -> int:
        """Go to a byte of the decompressed file: forward from here, or from the last mark before it."""
        mark = self._marks.before(position)
        if position < self._position or mark.position > self._position:
            self._at(mark)
        while self._position < position:
            self._next(position - self._position)
        return position

    def readinto(self, buffer: memoryview) -> int:
        """Read some bytes, at least one unless the buffer is empty, and return how many.

        Raises
        ------
        EndOfFileError
            If the stream ends here, or is damaged.
        InputError
            If its checksum is wrong: it does not tell what is damaged.
        """
        piece = self._next(len(buffer)) if len(buffer) else b""
        buffer[: len(piece)] = piece
        return len(piece)

    def _at(self, mark: _Mark) -> None:
        self._position, self._offset, state = mark
        self._state = None if state is None else state.copy()
        self._data = b""
        self._file.seek(self._offset)

    def _next(self, most: int) -> bytes:
        """Return the next bytes, at most so many, and leave a mark where one is wanted."""
        spacing = self._marks.spacing
        most = min(most, PIECE_BYTES, spacing - self._position % spacing)
        piece = b""
        while not piece:
            try:
                piece = self._decompress(most)
            except zlib.error as error:
                if "data check" in str(error) or "length check" in str(error):  # the end of a member was at hand
                    raise self._wrong_checksum() from error
                raise EndOfFileError(f"its compressed stream is damaged behind byte {self._position}") from error
        self._position += len(piece)
        if self._marks.wants(self._position):
            state = None if self._state is None else self._state.copy()
            self._marks.leave(_Mark(self._position, self._offset - len(self._data), state))
        if self._position == self._marks.total:
            self._check()
        return piece

    def _decompress(self, most: int) -> bytes:
        """Feed the decompressor once; it may give nothing yet."""
        if not self._data:
            self._data = self._file.read(ENCODED_BYTES) or b""
            self._offset += len(self._data)
        if not self._data:
            raise EndOfFileError(f"its compressed stream is cut short behind byte {self._position}")
        if self._state is None:
            self._state = zlib.decompressobj(_EITHER)
        piece: bytes = self._state.decompress(self._data, most)
        self._data = self._state.unused_data if self._state.eof else self._state.unconsumed_tail
        if self._state.eof:
            self._state = None  # another member may follow
        return piece

    def _check(self) -> None:
        """Go on to the end of the member, where its checksum is compared."""
        surplus = 0
        try:
            while self._state is not None and surplus < MOST_SURPLUS:
                surplus += len(self._decompress(PIECE_BYTES))
        except (zlib.error, EndOfFileError) as error:
            raise self._wrong_checksum() from error

    def _wrong_checksum(self) -> InputError:
        return InputError(
            f"{self._name} is damaged at an unknown place: it does not have the checksum that was stored with it; "
            f"copy or write it again"
        )


def gzip_note(marks: GzipMarks) -> str:
    """Return what a user should know of reading a file that is compressed as a whole, as a clause."""
    cost = (
        f"each box costs up to {human_bytes(marks.spacing)} more to decompress, and the first one all that lies before"
    )
    return f"gzip can only be read from its front: {cost} it; gunzip the file to read it directly"


def is_gzip(path: Path) -> bool:
    """Return whether a file is compressed by gzip."""
    with path.open("rb") as file:
        return file.read(2) == GZIP_MAGIC


def first_bytes(path: Path, count: int) -> bytes:
    """Return the first bytes of a file, decompressed where it is gzip; fewer where it ends or is damaged."""
    with path.open("rb") as file:
        data = file.read(max(count, 1 << 14))
    if data[:2] != GZIP_MAGIC:
        return data[:count]
    try:
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(data, count)
    except zlib.error:
        return b""
