"""Open a NIfTI file as a volume, compressed or not.

nibabel understands the header. The file has x fastest, which is z, y, x in C order, so its planes are read as they lie;
out of gzip through `GzipStream`. Where the header scales what is stored (`scl_slope`), the volume is what it means, in
float32.
"""

from __future__ import annotations

import math
import struct
import threading
import zlib
from dataclasses import dataclass, replace
from functools import partial
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import InputError, IsovoxelError
from isovoxel.geometry.box import Box, Index3
from isovoxel.metadata.hdf5 import ORIGIN
from isovoxel.metadata.nifti import read_affine, read_zooms
from isovoxel.planning.memory import human_bytes
from isovoxel.readers.base import Volume, check_voxels, output_array
from isovoxel.readers.files import FileList, check_complete, file_identity, unreadable
from isovoxel.readers.raw import EndOfFileError, RawReader, contiguous_offsets, open_file
from isovoxel.readers.registry import Location
from isovoxel.readers.selection import Selection, zyx_positions

GZIP_MAGIC = b"\x1f\x8b"
"""What gzip begins with."""

HEADER_BYTES = 540
"""Length of the longer of the two headers."""

SLAB_VOXELS = 1 << 17
"""So many voxels are scaled in one go."""

_SINGLE, _PAIR = (b"n+1\0", b"n+2\0"), (b"ni1\0", b"ni2\0")


@dataclass(frozen=True)
class ScaledReader:
    """Reads boxes of numbers that mean `slope` times themselves and `inter`; safe to call from many threads."""

    read: RawReader
    """Reads the numbers, of at most 4 bytes each."""
    slope: float
    """What each is multiplied with."""
    inter: float
    """What is added then."""

    @property
    def overhead(self) -> int:
        """Largest number of bytes held beside the returned array."""
        return self.read.overhead + 4 * 8 * SLAB_VOXELS

    def __call__(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a box as a new array of float32, or in `out`.

        Raises
        ------
        CorruptInputError, InputUnavailableError
            As the reader of the numbers does.
        """
        out = output_array(box, np.dtype(np.float32), out)
        flat = out.reshape(-1)
        dtype = self.read.dtype.newbyteorder("=")
        # They are read into the end of the room for the result, and each is used before its bytes are written on.
        stored = flat.view(np.uint8)[flat.nbytes - flat.size * dtype.itemsize :].view(dtype)
        self.read(box, stored.reshape(box.shape))
        for start in range(0, flat.size, SLAB_VOXELS):
            with np.errstate(invalid="ignore"):  # of NaN that signal
                slab = stored[start : start + SLAB_VOXELS].astype(np.float64)
            slab *= self.slope
            slab += self.inter
            flat[start : start + SLAB_VOXELS] = slab
        return out


def is_nifti(at: Location) -> bool:
    """Tell whether a file begins with a NIfTI header, compressed or not."""
    return _version(_first_bytes(at.path)) > 0


def open_nifti(at: Location, _selection: Selection) -> Volume:
    """Open the one 3-D image of a NIfTI file, ``.nii`` or ``.nii.gz``.

    Raises
    ------
    InputError
        If the header makes no sense, the image has other axes than x, y and z, or voxels are missing.
    """
    import nibabel

    path, name = at.path, at.name
    data = _first_bytes(path)
    first = _version(data) == 1
    if data[slice(344, 348) if first else slice(4, 8)] in _PAIR:
        raise InputError(f"{name} is one of two files that make an image; save it as a single .nii file")
    kind: Any = nibabel.Nifti1Header if first else nibabel.Nifti2Header
    try:
        # Checked here: nibabel would log what it finds, and mend it.
        order = "<" if struct.unpack("<i", data[:4])[0] == kind.sizeof_hdr else ">"
        return _open(kind(data[: kind.sizeof_hdr], order, check=False), path, name)
    except IsovoxelError:
        raise
    except Exception as error:
        raise unreadable(name, "NIfTI", error) from error


def _open(header: Any, path: Path, name: str) -> Volume:
    if not 1 <= int(header["dim"][0]) <= 7:
        raise InputError(f"{name} cannot be read as NIfTI: its header tells of {int(header['dim'][0])} axes")
    sizes = tuple(int(n) for n in header.get_data_shape())
    z, y, x = zyx_positions(name, ["x", "y", "z", "t", *"uvw"][: len(sizes)][::-1], sizes[::-1])
    shape = (sizes[::-1][z], sizes[::-1][y], sizes[::-1][x])
    stored = np.dtype(header.get_data_dtype())
    check_voxels(name, shape, stored)
    compressed = _is_gzip(path)
    reader = _raw_reader(header, path, name, shape, stored, compressed=compressed)
    slope, inter = header.get_slope_inter()
    scaled = slope is not None and (slope, inter) != (1.0, 0.0)
    if scaled and stored.itemsize > 4:
        raise InputError(f"{name} holds {stored}, scaled by {slope:g} and {inter:g}, which float32 does not hold")
    voxels = ScaledReader(reader, float(slope), float(inter)) if scaled else reader
    calibration = read_zooms(header.get_zooms(), header.get_xyzt_units()[0])
    placed = bool(header["qform_code"] > 0 or header["sform_code"] > 0)
    origin, turned = read_affine(header.get_best_affine()) if placed else (ORIGIN, "")
    sources = {"shape": "NIfTI header", "axes": "NIfTI's order, x first"}
    if scaled:
        sources["shape"] += f"; voxels are {slope:g} times what is stored, and {inter:g}, as it says"
    sources |= calibration.sources("NIfTI xyzt_units")
    notes = [turned] if turned else []
    if compressed:
        spacing = human_bytes(GzipMarks(_end(header, shape, stored)).spacing)
        cost = f"each box costs up to {spacing} more to decompress, and the first one all that lies before it"
        notes.append(f"gzip can only be read from its front: {cost}; gunzip the file to read it directly")
    return Volume(
        name,
        "NIfTI" + " (gzip)" * compressed,
        shape,
        np.dtype(np.float32) if scaled else stored.newbyteorder("="),
        voxels,
        chunks=(1, shape[1], shape[2]) if compressed else (1, 1, 1),
        read_overhead=voxels.overhead + (STREAM_BYTES + MOST_MARKS * MARK_BYTES if compressed else 0),
        voxel_size=calibration.voxel_size,
        origin=origin if calibration.placed else ORIGIN,
        unit=calibration.unit,
        sources=sources,
        identity=file_identity(path),
        current_identity=partial(file_identity, path),
        files=FileList((str(path.resolve()),)),
        missing=calibration.missing,
        counted=calibration.counted,
        notes=tuple(notes),
    )


def _raw_reader(
    header: Any, path: Path, name: str, shape: Index3, stored: np.dtype[Any], *, compressed: bool
) -> RawReader:
    start, end, size = int(header.get_data_offset()), _end(header, shape, stored), path.stat().st_size
    if start < header.sizeof_hdr:
        raise InputError(f"{name} contradicts itself: its voxels begin at byte {start}, inside its header")
    check_complete(name, end, size * LARGEST_RATIO if compressed else size)
    offsets = contiguous_offsets(start, shape, stored)
    reader = RawReader(name, (str(path.resolve()),), np.zeros(shape[0], np.int64), offsets, shape, stored)
    return replace(reader, opener=GzipMarks(end).open) if compressed else reader


def _end(header: Any, shape: Index3, stored: np.dtype[Any]) -> int:
    """Return how many bytes the file must have, decompressed."""
    return int(header.get_data_offset()) + math.prod(shape) * stored.itemsize


def _version(data: bytes) -> int:
    """Return 1 or 2 for the header that a file begins with, in either byte order, or 0 where it is none."""
    for version, length, magic in ((1, 348, data[344:348]), (2, HEADER_BYTES, data[4:8])):
        if len(data) >= length and length in struct.unpack("<i", data[:4]) + struct.unpack(">i", data[:4]):
            return version if magic in _SINGLE + _PAIR else 0
    return 0


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == GZIP_MAGIC


def _first_bytes(path: Path) -> bytes:
    """Return the first bytes of a file, decompressed where it is gzip; fewer where it ends or is damaged."""
    with path.open("rb") as file:
        data = file.read(1 << 14)
    if data[:2] != GZIP_MAGIC:
        return data[:HEADER_BYTES]
    try:
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(data, HEADER_BYTES)
    except zlib.error:
        return b""


# ---- gzip ----------------------------------------------------------------------------------------------------------

# Read the middle of a gzip file, which can only be decompressed from its front.
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
