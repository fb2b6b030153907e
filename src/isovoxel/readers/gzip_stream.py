"""Read the middle of a gzip file, which can only be decompressed from its front.

1. Whoever decompresses past a mark leaves a copy of the decompressor there: its window of 32 KiB, and where it was.
2. A read begins at the last copy before what it wants, and throws away what lies between.

Marks are a fixed share of the whole apart, so that there are never more than `MOST_MARKS`, and reads of many threads
run side by side. The first read of the end decompresses everything before it, once. Whoever reads the last byte that
matters goes on to gzip's checksum, which covers all before it, for every copy of the decompressor knows of it.
"""

from __future__ import annotations

import threading
import zlib
from io import FileIO
from types import TracebackType
from typing import Any, NamedTuple, Self

from isovoxel.errors import InputError
from isovoxel.readers.raw import EndOfFileError, open_file

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

MOST_SURPLUS = 1 << 26
"""So much behind the last byte that matters is decompressed for the checksum's sake."""

LARGEST_RATIO = 1032
"""Deflate makes at most so many bytes of one."""

_GZIP = 16 + zlib.MAX_WBITS


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
    """

    def __init__(self, total: int, spacing: int | None = None) -> None:
        self.spacing = spacing or max(LEAST_SPACING, -(-total // MOST_MARKS))
        self.total = total
        self._lock = threading.Lock()
        self._marks = {0: _Mark(0, 0, None)}

    def __reduce__(self) -> tuple[type[GzipMarks], tuple[int, int]]:
        # Another process makes its own.
        return (GzipMarks, (self.total, self.spacing))

    def open(self, name: str, path: str) -> GzipStream:
        """Open the file for reading it decompressed, as `isovoxel.readers.raw.open_file` does for others."""
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
        """Tell whether a mark should be left exactly here."""
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
            If its checksum is wrong: then nobody knows what is damaged.
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
                if "check" in str(error):  # the end of a member was at hand
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
            self._state = zlib.decompressobj(_GZIP)
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
            f"{self._name} is damaged, nobody knows where: it does not have the checksum that gzip stored with it; "
            f"copy or write it again"
        )
