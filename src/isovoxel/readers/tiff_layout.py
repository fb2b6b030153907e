"""Pages of a TIFF as planes: each is read as its own tags say, and all of them are there.

1. A `Stack` names the pages that make an image: the directory of each, in one file or several. Images that lie in one
   piece behind a single directory have one page, and the number of those behind it.
2. Pages are grouped by how they are stored; a page that cannot be a plane of the volume is named.
3. Of each group, pages whose voxels lie as they are become planes of a `RawReader`, all others of a `SegmentReader`;
   a `MixedReader` reads from several of them. Samples of a pixel are planes, too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import InputError
from isovoxel.readers.base import ReadBox, SeriesReader
from isovoxel.readers.files import check_complete
from isovoxel.readers.raw import RawReader
from isovoxel.readers.selection import Picked
from isovoxel.readers.tiff_pages import (
    COUNTS,
    JPEG,
    OFFSETS,
    Directories,
    PageStorage,
    Tags,
    check_alike,
    check_codec,
    storage_of,
)
from isovoxel.readers.tiff_reader import PlaneReader, SegmentReader, mixed

if TYPE_CHECKING:
    import tifffile

Planes = NDArray[np.int64]
"""Numbers of planes, in the order of a series."""


@dataclass(frozen=True)
class Stack:
    """Pages that make one image, or several planes of it each."""

    kind: str
    """What wrote it, as tifffile has it; "plain" where pages alone tell of it."""
    axes: str
    """Its axes, as tifffile has them; samples of a pixel before the axes of a page."""
    shape: tuple[int, ...]
    """Length of every axis."""
    page: tifffile.TiffPage
    """One of its pages, with its tags."""
    files: tuple[Directories, ...]
    """The files in which its pages are, in the order of the pages."""
    file_of_page: NDArray[np.int64]
    """Which of them each page lies in."""
    index: NDArray[np.int64]
    """Number of each page's directory in its file; -1 where a page has none."""
    behind: int = 0
    """How many pages without directories follow the only one in one piece."""
    members: Sequence[Any] = field(default=(), repr=False)
    """tifffile's pages, in this order, where it knows better than the tags where their voxels lie."""

    def say(self, page: int, name: str) -> str:
        """Return which page of an input one of its pages is, for messages."""
        directories = self.files[self.file_of_page[page]]
        file = name if len(self.files) == 1 else str(directories.path)
        if len(self.files) > 1 and len(directories) == 1:
            return file
        return f"page {self.number(page)} (counted from 0) of {file}"

    def number(self, page: int) -> int:
        """Return the number of a page in its file."""
        return page if self.index[page] < 0 else int(self.index[page])


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
    lengths = [1 if axis in picked.zyx[1:] else n for axis, n in enumerate(shape)]
    first: tuple[Any, Any, Any] = (slice(None), 0, 0)
    planes: Planes = np.arange(count, dtype=np.int64).reshape(lengths)[picked.index(first)].reshape(-1)
    return planes


def reader_of(stack: Stack, name: str, picked: Picked) -> tuple[PlaneReader, ReadBox]:
    """Return what reads boxes of the volume in a stack of pages, or of the volumes.

    Parameters
    ----------
    stack
        The stack, with its file open.
    name
        What the user called the input, for messages.
    picked
        What of the stack is the volume.

    Returns
    -------
    tuple of (PlaneReader, ReadBox)
        What reads the planes of the volume, or of all volumes; and what reads boxes.

    Raises
    ------
    InputError
        If pages are unlike each other, lie outside their file, or are encoded in a way that cannot be read.
    """
    _, y, x = picked.shape(stack.shape)
    mixed_samples = stack.axes.endswith("S") and stack.shape[-1] > 1  # which the user's axes may call x
    if mixed_samples or math.prod(stack.shape[picked.zyx[1] :]) != y * x:
        raise InputError(f"the planes of {name} hold more than y and x: its axes are {stack.axes}")
    every = planes_reader(stack, name)
    planes = planes_of(stack.shape, picked)
    if len(planes) == every.shape[0]:
        return every, every
    if not picked.series:
        one = every.taking(planes)
        return one, one
    return every, SeriesReader(picked, partial(_member, every, stack.shape))


def _member(every: PlaneReader, shape: tuple[int, ...], picked: Picked) -> PlaneReader:
    return every.taking(planes_of(shape, picked))


# ---- how pages are stored ----------------------------------------------------------------------------------------


class _Way(NamedTuple):
    """How pages of equal tags are stored."""

    storage: PageStorage
    page: tifffile.TiffPage
    """One of them, with its tags."""
    listed: bool
    """Whether their voxels lie where the tags say; else tifffile knows better, as it does of some programs' files."""


class _Group(NamedTuple):
    """Pages of one file whose tags say the same of how they are stored."""

    file: int
    pages: NDArray[np.int64]
    """Their places in the stack."""
    way: _Way


def _groups_of(stack: Stack, name: str) -> list[_Group]:
    """Group the pages of a stack, and check that all of them can be planes of one volume."""
    groups = []
    ways: dict[tuple[str, Tags], _Way] = {}
    by_file = np.argsort(stack.file_of_page, kind="stable")
    borders = np.searchsorted(stack.file_of_page[by_file], np.arange(len(stack.files) + 1))
    for file, directories in enumerate(stack.files):
        inside = by_file[borders[file] : borders[file + 1]]
        index = stack.index[inside]
        stored = np.where(index < 0, -1, directories.stored[index])
        for number in dict.fromkeys(stored.tolist()):
            pages = inside[stored == number]
            key = (directories.order, directories.tags[number] if number >= 0 else ())
            if key not in ways:
                ways[key] = _way_of(stack, directories, int(pages[0]), name)
            groups.append(_Group(file, pages, ways[key]))
    groups.sort(key=lambda group: int(group.pages[0]))
    places: dict[PageStorage, int] = {}
    counts: Counter[PageStorage] = Counter()
    for group in groups:
        places.setdefault(group.way.storage, int(group.pages[0]))
        counts[group.way.storage] += len(group.pages)
    check_alike({storage: partial(stack.say, page, name) for storage, page in places.items()}, counts)
    for storage, page in places.items():
        check_codec(storage, name if len(places) == 1 else stack.say(page, name))
    return groups


def _way_of(stack: Stack, directories: Directories, place: int, name: str) -> _Way:
    """Return how a page is stored, of which the place in the stack is given."""
    index = int(stack.index[place])
    if index < 0:
        return _Way(storage_of(stack.page, (), name), stack.page, False)
    page = _page(stack, directories, index)
    seen = stack.members[place] if stack.members else page
    listed = tuple(directories.table(stack.index[[place]], OFFSETS)[0, : len(seen.dataoffsets)].tolist())
    counts = tuple(directories.table(stack.index[[place]], COUNTS)[0, : len(seen.databytecounts)].tolist())
    known = not stack.members or counts == tuple(seen.databytecounts)
    return _Way(
        storage_of(page, directories.tags[directories.stored[index]], name),
        page,
        listed == tuple(seen.dataoffsets) and (not counts or (len(counts) == len(listed) and known)),
    )


def _page(stack: Stack, directories: Directories, index: int) -> tifffile.TiffPage:
    """Return a page with its tags, from a file that may not be open."""
    import tifffile

    known, where = stack.page, stack.page.parent.filehandle
    if known.offset == directories.offsets[index] and Path(where.path) == directories.path and not where.closed:
        return known
    with tifffile.TiffFile(directories.path) as tif:
        page = tif.pages.get(index)
        if not isinstance(page, tifffile.TiffPage) or page.offset != directories.offsets[index]:
            raise InputError(f"page {index} (counted from 0) of {directories.path} cannot be found again")
        _ = page.decode  # which reads tags, and is kept
    return page


# ---- where their voxels lie --------------------------------------------------------------------------------------


@dataclass
class _Part:
    """Pages that one reader reads, of one file."""

    file: int
    pages: NDArray[np.int64]
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    numbers: NDArray[np.int64]
    """Their numbers in the file, for messages."""
    tables: list[bytes | None]


def planes_reader(stack: Stack, name: str) -> PlaneReader:
    """Return what reads boxes of all planes of a stack, one behind the other: by page, sample and depth.

    Raises
    ------
    InputError
        If pages are unlike each other, lie outside their file, or are encoded in a way that cannot be read.
    """
    files = tuple(str(directories.path.resolve()) for directories in stack.files)
    groups = _groups_of(stack, name)
    ends = np.zeros(len(files), np.int64)
    parts: dict[tuple[PageStorage, bool], tuple[_Way, list[_Part]]] = {}
    for group in groups:
        for raw, part in _parts_of(stack, group, name):
            storage = group.way.storage
            end = (part.offsets[:, 0] + storage.nbytes if raw else part.offsets + part.counts).max()
            ends[group.file] = max(ends[group.file], end)
            parts.setdefault((storage, raw), (group.way, []))[1].append(part)
    for file, end in zip(files, ends.tolist(), strict=True):
        check_complete(name if len(files) == 1 else file, end, Path(file).stat().st_size)
    first = groups[0].way.storage
    per_page = first.samples * first.shape[0]
    which, place = np.empty((2, stack.behind + len(stack.index), per_page), np.int64)
    readers: list[PlaneReader] = []
    for (_, raw), (way, some) in parts.items():
        pages = np.concatenate([part.pages for part in some])
        order = np.argsort(pages, kind="stable")
        which[pages[order]] = len(readers)
        place[pages[order]] = np.arange(len(pages) * per_page).reshape(-1, per_page)
        readers.append((_raw_reader if raw else _segment_reader)(way, _joined(some, order), name, files))
    if len(readers) == 1:
        return readers[0]
    return mixed(name, readers, which.reshape(-1), place.reshape(-1), files)


def _parts_of(stack: Stack, group: _Group, name: str) -> Iterator[tuple[bool, _Part]]:
    """Return which of a group's pages lie in the file as they are and in one piece, and which do not."""
    storage, pages = group.way.storage, group.pages
    offsets, counts = _places_of(stack, group, name)
    numbers = np.where(stack.index[pages] < 0, pages, stack.index[pages])
    single = counts.shape[1] == 1
    alike = counts.shape == offsets.shape and offsets.shape[1] > 0
    # The count of a single strip is often wrong, and not needed.
    whole = np.full(len(pages), alike)
    if alike:
        whole = offsets[:, 0] > 0 if single else counts.sum(axis=1) == storage.nbytes
        whole &= (offsets[:, :-1] + counts[:, :-1] == offsets[:, 1:]).all(axis=1)
    raw = whole & storage.is_plain
    if not (alike and (raw.all() or offsets.shape[1] == storage.n_segments)):
        raise InputError(
            f"{name} cannot be read as TIFF: page {numbers[0]} lists {offsets.shape[1]} segments with "
            f"{counts.shape[1]} sizes instead of {storage.n_segments}"
        )
    short = raw & (counts[:, 0] < storage.nbytes) & (counts[:, 0] != np.sort(counts[:, 0])[len(pages) // 2])
    if single and short.any():
        page = int(np.flatnonzero(short)[0])
        raise InputError(
            f"{stack.say(int(pages[page]), name)} is not whole: its strip has {counts[page, 0]} bytes, "
            f"but its voxels take {storage.nbytes}; copy or write the file again"
        )
    if stack.behind:
        if storage.compression != 1 or not whole[0]:
            raise InputError(
                f"{name} tells of {stack.behind + 1} pages, but has one directory, and its voxels are not in one "
                f"piece, so those of the other pages cannot be found; save it with a directory for every page"
            )
        pages = np.arange(stack.behind + 1, dtype=np.int64)
        offsets = offsets + pages[:, None] * storage.nbytes
        counts, raw, numbers = (np.repeat(values, len(pages), axis=0) for values in (counts, raw, numbers))
    jpeg = storage.compression in JPEG
    for is_raw in (True, False):
        chosen = raw == is_raw
        if chosen.any():
            tables = _jpeg_tables(stack, group, numbers[chosen]) if jpeg else []
            yield is_raw, _Part(group.file, pages[chosen], offsets[chosen], counts[chosen], numbers[chosen], tables)


def _jpeg_tables(stack: Stack, group: _Group, numbers: NDArray[np.int64]) -> list[bytes | None]:
    if stack.index[group.pages[0]] < 0:
        return [group.way.page.jpegtables] * len(numbers)
    return stack.files[group.file].jpeg_tables(numbers)


def _places_of(stack: Stack, group: _Group, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return offsets and byte counts of the segments of every page of a group."""
    directories, (_, pages, way) = stack.files[group.file], group
    n = len(way.page.dataoffsets)
    if way.listed:
        offsets = directories.table(stack.index[pages], OFFSETS)[:, :n]
        counts = directories.table(stack.index[pages], COUNTS)[:, :n]
        if not counts.shape[1]:
            counts = np.tile(np.array(way.page.databytecounts, np.int64), (len(pages), 1))
        return offsets, counts
    rows = []
    for index in pages.tolist():
        page = stack.members[index] if stack.members else _page(stack, directories, int(stack.index[index]))
        if len(page.dataoffsets) != n or len(page.databytecounts) != n:
            raise InputError(
                f"{stack.say(index, name)} lists {len(page.dataoffsets)} strips or tiles with "
                f"{len(page.databytecounts)} sizes, instead of {n}; copy or write it again"
            )
        rows.append((page.dataoffsets, page.databytecounts))
    table = np.array(rows, np.int64)
    return table[:, 0], table[:, 1]


def _joined(parts: Sequence[_Part], order: NDArray[np.int64]) -> _Part:
    """Return the pages of several files as one, in another order; the file of each is at the end."""
    offsets, counts, numbers = (
        np.concatenate([getattr(part, name) for part in parts])[order] for name in ("offsets", "counts", "numbers")
    )
    tables = [table for part in parts for table in part.tables]
    files = np.concatenate([np.full(len(part.pages), part.file) for part in parts])[order]
    return _Part(0, files, offsets, counts, numbers, [tables[index] for index in order] if tables else [])


def _raw_reader(way: _Way, part: _Part, name: str, files: tuple[str, ...]) -> RawReader:
    storage = way.storage
    depth, rows, columns = storage.shape
    n = storage.planar * depth
    steps = np.arange(n, dtype=np.int64) * (rows * columns * storage.dtype.itemsize)
    places = (part.offsets[:, :1] + steps).reshape(-1)
    which = np.repeat(part.pages, n)
    numbers = np.repeat(part.numbers, n)
    return RawReader(name, files, which, places, (len(places), rows, columns), storage.dtype, pages=numbers)


def _segment_reader(way: _Way, part: _Part, name: str, files: tuple[str, ...]) -> SegmentReader:
    storage, n = way.storage, way.storage.samples
    offsets, counts = part.offsets, part.counts
    if storage.compression == 1:
        counts = np.minimum(counts, storage.segment_bytes)
    sample = np.zeros(len(offsets) * n, np.int64)
    if storage.planar > 1:
        offsets, counts = (table.reshape(len(table) * n, -1) for table in (offsets, counts))
    elif n > 1:
        offsets, counts = (np.repeat(table, n, axis=0) for table in (offsets, counts))
        sample = np.tile(np.arange(n), len(part.numbers))
    return SegmentReader(
        name,
        files,
        np.repeat(part.pages, n),
        offsets,
        counts,
        storage,
        way.page.decode,
        tuple(table for table in part.tables for _ in range(n)),
        way.page.jpegheader,
        np.repeat(part.numbers, n),
        sample,
    )
