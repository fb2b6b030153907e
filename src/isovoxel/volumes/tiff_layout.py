"""Where in its files does every strip, tile or plane of a TIFF lie, and are they all there?"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import InputError
from isovoxel.geometry.axis import ceil_div
from isovoxel.geometry.box import Index3
from isovoxel.volumes.axes import Picked
from isovoxel.volumes.base import ReadBox
from isovoxel.volumes.files import check_complete
from isovoxel.volumes.raw import RawReader, contiguous_offsets
from isovoxel.volumes.segments import SegmentReader
from isovoxel.volumes.series import SeriesReader

if TYPE_CHECKING:
    import tifffile

_JPEG = (6, 7, 33007, 34892)
"""TIFF's numbers of the compressions that keep tables beside the segments."""

_IMAGES = (*_JPEG, 33003, 33004, 33005, 34712, 34887, 34933, 50001)
"""TIFF's numbers of those that are JPEG, JPEG 2000 (four), LERC, PNG and WebP."""

Planes = NDArray[np.int64]
"""Numbers of planes, in the order of a series."""


@dataclass(frozen=True)
class Chain:
    """What following a TIFF's directories from one to the next gives."""

    pages: int
    """Number of directories that are there."""
    broken_at: int | None
    """Where the next one should be, but is not; None where the chain ends as it should."""


def follow_directories(path: Path) -> Chain:
    """Count a TIFF's directories, which tifffile does not miss when a file ends early."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(16)
        order = "<" if header[:2] == b"II" else ">"
        big = header[2:4] in (b"+\0", b"\0+")
        start, number, entry, pointer = (8, "Q", 20, "Q") if big else (4, "H", 12, "I")
        offset = _number(file, start, order + pointer)
        seen: set[int] = set()
        while offset:
            entries = None if offset in seen else _number(file, offset, order + number)
            if entries is None:
                return Chain(len(seen), offset)
            following = offset + struct.calcsize(number) + entries * entry
            after = _number(file, following, order + pointer) if following < size else None
            if after is None:
                return Chain(len(seen), offset)
            seen.add(offset)
            offset = after
    return Chain(len(seen), None if offset == 0 else size)


def _number(file: BinaryIO, offset: int, code: str) -> int | None:
    """Read one number of a TIFF's structure; None where the file has ended."""
    if offset >= 1 << 63:
        return None
    file.seek(offset)
    data = file.read(struct.calcsize(code))
    return int(struct.unpack(code, data)[0]) if len(data) == struct.calcsize(code) else None


def planes_of(shape: Sequence[int], picked: Picked) -> Planes:
    """Return which planes of an array make a volume, in its order: they are counted with the last axis fastest.

    Parameters
    ----------
    shape
        Length of every axis.
    picked
        What of it is the volume; y and x are the last axes but for those of length 1.
    """
    count = math.prod(shape) // math.prod(picked.shape(shape)[1:])
    _, y, x = picked.zyx
    index: list[Any] = [picked.others.get(axis, slice(None)) for axis in range(len(shape))]
    index[y] = index[x] = 0
    lengths = [1 if axis in (y, x) else n for axis, n in enumerate(shape)]
    planes: Planes = np.arange(count, dtype=np.int64).reshape(lengths)[tuple(index)].reshape(-1)
    return planes


def reader_of(
    series: tifffile.TiffPageSeries, name: str, path: Path, picked: Picked
) -> tuple[RawReader | SegmentReader, ReadBox]:
    """Return what reads boxes of the volume in a series of pages, or of the volumes.

    Parameters
    ----------
    series
        The series, with its file open.
    name
        What the user called the input, for messages.
    path
        The file that was opened; a series may go on in others.
    picked
        What of the series is the volume.

    Returns
    -------
    tuple of (RawReader or SegmentReader, ReadBox)
        What reads the planes of the volume, or of all volumes; and what reads boxes.

    Raises
    ------
    InputError
        If pages are missing or differ, lie outside their file, or are encoded in a way that cannot be read.
    """
    every = _reader_of_planes(series, name, path, picked)
    shape = tuple(series.shape)
    planes = planes_of(shape, picked)
    if len(planes) == every.shape[0]:
        return every, every
    if not isinstance(every, RawReader) and every.page_shape[0] != 1:
        raise InputError(f"the pages of {name} are volumes, of which none can be selected; save one by itself")
    if not picked.series:
        one = every.taking(planes)
        return one, one
    return every, SeriesReader(picked.lengths, partial(_member, every, shape, picked))


def _member(
    every: RawReader | SegmentReader, shape: tuple[int, ...], picked: Picked, place: Sequence[int]
) -> RawReader | SegmentReader:
    return every.taking(planes_of(shape, picked.at(place)))


def _reader_of_planes(
    series: tifffile.TiffPageSeries, name: str, path: Path, picked: Picked
) -> RawReader | SegmentReader:
    """Return what reads boxes of all planes of a series, one behind the other."""
    keyframe = series.keyframe
    if keyframe.dtype is None:
        raise InputError(f"{name} holds numbers of {keyframe.bitspersample} bits, of a kind that is not known")
    if series.transform is not None:
        raise InputError(f"{name} is of a kind of TIFF whose voxels must be transformed, which isovoxel does not do")
    stored = np.dtype(keyframe.parent.byteorder + keyframe.dtype.char)
    _, y, x = picked.shape(series.shape)
    if math.prod(series.shape[picked.zyx[1] :]) != y * x:
        raise InputError(f"the planes of a TIFF with the axes {series.axes} hold more than y and x")
    shape = (math.prod(series.shape) // (y * x), y, x)
    if series.dataoffset is not None and not series.is_multifile:
        offsets = _contiguous(series.dataoffset, shape, stored, name, path)
        return RawReader(name, (str(path.resolve()),), np.zeros(shape[0], np.int64), offsets, shape, stored)
    return page_reader(_pages_of(series, name, path, shape), stored)


def _contiguous(start: int, shape: Index3, stored: np.dtype[Any], name: str, path: Path) -> Any:
    check_complete(name, start + shape[0] * shape[1] * shape[2] * stored.itemsize, path.stat().st_size)
    return contiguous_offsets(start, shape, stored)


def _pages_of(series: tifffile.TiffPageSeries, name: str, path: Path, shape: Index3) -> Pages:
    """Return the pages of a series that is not all in one piece, checked to be all there."""
    _, depth, length, width, _ = series.keyframe.shaped
    try:
        pages = [page for page in series if page is not None]
    except IndexError as error:
        raise InputError(f"{name} is incomplete: its metadata say {len(series)} pages, but it has fewer") from error
    if (length, width) != shape[1:] or depth * len(series) != shape[0] or len(pages) != len(series):
        raise InputError(
            f"{name} is incomplete: its metadata say {shape[0]} planes of {shape[1]} x {shape[2]}, "
            f"but it has {len(pages) * depth} of {length} x {width}"
        )
    paths = [_path_of(page, path) for page in pages]
    places = {file: index for index, file in enumerate(dict.fromkeys(paths))}
    return Pages(name, tuple(places), np.array([places[file] for file in paths], np.int64), series.keyframe, pages)


class Pages:
    """Pages of one kind that make a volume together, in one file or several.

    Parameters
    ----------
    name
        What the user called the input, for messages.
    files
        Absolute paths of the files.
    file_of_page
        Which file every page lies in.
    keyframe
        The page that all the others are like.
    pages
        What has the `dataoffsets`, `databytecounts` and `jpegtables` of every page.

    Raises
    ------
    InputError
        If their strips or tiles have no voxels.
    """

    def __init__(
        self,
        name: str,
        files: tuple[str, ...],
        file_of_page: NDArray[np.int64],
        keyframe: tifffile.TiffPage,
        pages: Sequence[Any],
    ) -> None:
        self.name, self.files, self.file_of_page, self.keyframe, self.pages = name, files, file_of_page, keyframe, pages
        _, depth, length, width, _ = keyframe.shaped
        self.page_shape: Index3 = (depth, length, width)
        self.shape: Index3 = (depth * len(pages), length, width)
        segment = (max(1, keyframe.tiledepth), keyframe.tilelength, keyframe.tilewidth)
        if not keyframe.is_tiled:
            segment = (1, min(keyframe.rowsperstrip, length), width)
        if min(segment) < 1:
            raise InputError(f"{name} cannot be read as TIFF: its strips or tiles have the shape {segment}")
        self.segment_shape = segment

    def table(self, of: str) -> Any:
        """Return the offsets, or the byte counts, of every page's segments."""
        expected = 1
        for n, s in zip(self.page_shape, self.segment_shape, strict=True):
            expected *= ceil_div(n, s)
        rows = [getattr(page, of) for page in self.pages]
        for index, row in enumerate(rows):
            if len(row) != expected:
                raise InputError(
                    f"{self.name} cannot be read as TIFF: page {index} lists {len(row)} segments instead of {expected}"
                )
        return np.array(rows, np.int64)

    def check_files(self, ends: Any) -> None:
        """Check that no page reaches beyond its file's end; `ends` has the last byte of every page."""
        last = np.zeros(len(self.files), np.int64)
        np.maximum.at(last, self.file_of_page, ends)
        for file, end in zip(self.files, last.tolist(), strict=True):
            check_complete(self.name if len(self.files) == 1 else file, end, Path(file).stat().st_size)


def page_reader(pages: Pages, stored: np.dtype[Any]) -> RawReader | SegmentReader:
    """Return what reads boxes of pages that are not all in one piece.

    Parameters
    ----------
    pages
        The pages.
    stored
        Data type in the files, with its byte order.

    Raises
    ------
    InputError
        If they lie outside their file, or are encoded in a way that cannot be read.
    """
    keyframe = pages.keyframe
    if keyframe.is_final:
        # Planes as they are, only not one behind the other.
        depth, length, width = pages.page_shape
        plane_bytes = length * width * stored.itemsize
        first = np.array([page.dataoffsets[0] for page in pages.pages], np.int64)
        pages.check_files(first + depth * plane_bytes)
        offsets = (first[:, None] + np.arange(depth, dtype=np.int64) * plane_bytes).reshape(-1)
        files = np.repeat(pages.file_of_page, depth)
        return RawReader(pages.name, pages.files, files, offsets, pages.shape, stored)
    _check_codec(keyframe, pages.name)
    offsets, counts = pages.table("dataoffsets"), pages.table("databytecounts")
    pages.check_files((offsets + counts).max(axis=1))
    return SegmentReader(
        pages.name,
        pages.files,
        pages.file_of_page,
        offsets,
        counts,
        pages.page_shape,
        pages.segment_shape,
        stored.newbyteorder("="),
        keyframe.decode,
        tuple(page.jpegtables for page in pages.pages) if keyframe.compression in _JPEG else (),
        keyframe.jpegheader,
        float(keyframe.nodata),
        "tile" if keyframe.is_tiled else "strip",
        keyframe.compression in _IMAGES,
    )


def _check_codec(keyframe: tifffile.TiffPage, name: str) -> None:
    """Check that the segments can be decoded before a job relies on it."""
    import tifffile

    for what, number, codecs in (
        ("compression", keyframe.compression, tifffile.TIFF.DECOMPRESSORS),
        ("predictor", keyframe.predictor, tifffile.TIFF.UNPREDICTORS),
    ):
        if number != 1 and number not in codecs:
            raise InputError(f"{name} is stored with the TIFF {what} {number}, which cannot be decoded here")


def _path_of(page: Any, opened: Path) -> str:
    """Return the file a page lies in, absolute, so that it is found from any working directory."""
    path = Path(page.parent.filehandle.path)
    return str(path if path.is_absolute() else opened.resolve().parent / path)
