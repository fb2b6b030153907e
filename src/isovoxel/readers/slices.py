"""Slices, many TIFF or PNG files of a folder or a pattern, opened as one volume.

1. Their order is that of the numbers in their names, as people count: img2 comes before img10. All names must be alike
   but for their numbers, of which one must count the slices. Where two vary without order (channels and planes, say),
   z cannot be known, and a wrong guess would look like an image all the same.
2. The first TIFF is looked at as a TIFF by itself is. Of one page, every file must have its size and dtype; they are
   read as pages of one image, each as its own tags say.
3. Of several pages, each file is a volume, and z runs through them.

No file stays open: a read opens one after another.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray

from isovoxel.errors import InputError, InputMissingError
from isovoxel.geometry.grid import Box, Index3, triple
from isovoxel.metadata.tiff import parse_description, read_ome, read_ome_xml
from isovoxel.metadata.units import Calibration
from isovoxel.readers.base import Volume, check_voxels
from isovoxel.readers.files import PNG_MAGIC, TIFF_MAGIC, FileList, named_failures, unreadable
from isovoxel.readers.raw import open_file, read_bytes
from isovoxel.readers.registry import Location
from isovoxel.readers.selection import Selection, pick_only
from isovoxel.readers.tiff import calibration_of, open_tiff, volume_of_planes
from isovoxel.readers.tiff_layout import Stack, planes_reader
from isovoxel.readers.tiff_pages import Directories, dtype_of, read_directories
from isovoxel.readers.tiled import MixedReader, Stored, TiledReader

ENDINGS = (".tif", ".tiff")
"""Names of slices end in one of these; other files of their folder are passed over."""


def slices_in(folder: Path, endings: tuple[str, ...] = ENDINGS) -> Iterator[str]:
    """Yield the paths of the slices in a folder, absolute, in no order; those of hidden files are none."""
    with os.scandir(folder.resolve()) as entries:
        for entry in entries:
            if entry.name.lower().endswith(endings) and not entry.name.startswith(".") and entry.is_file():
                yield entry.path


def has_slices(at: Location, endings: tuple[str, ...] = ENDINGS) -> bool:
    """Return whether a folder holds slices."""
    return any(slices_in(at.path, endings))


def open_folder(at: Location, _selection: Selection) -> Volume:
    """Open the slices in a folder.

    Raises
    ------
    InputError
        If they are not the slices of one volume.
    """
    return _open_files(list(slices_in(at.path)), str(at.path.resolve()), at.name, "TIFF")


def open_pattern(pattern: str) -> Volume:
    """Open the slices whose paths a pattern matches, with ``*``, ``?`` and ``[...]`` as the shell has them.

    Raises
    ------
    InputMissingError
        If it matches nothing.
    InputError
        If what it matches are not the slices of one volume.
    """
    where = pattern if Path(pattern).is_absolute() else str(Path(glob.escape(os.getcwd())) / pattern)  # noqa: PTH109
    files = [file for file in glob.iglob(where, recursive=True) if Path(file).is_file()]  # noqa: PTH207
    if not files:
        raise InputMissingError(f"no file's name matches {pattern}; check the pattern, and the folder that it names")
    with Path(files[0]).open("rb") as first:
        kind = "PNG" if first.read(len(PNG_MAGIC)) == PNG_MAGIC else "TIFF"
    return _open_files(files, where, pattern, kind)


def _open_files(files: Sequence[str], where: str, name: str, kind: str) -> Volume:
    """Open files as one volume.

    Parameters
    ----------
    files
        Their absolute paths, in any order.
    where
        The path, absolute, by which they are found again.
    name
        What the user called them.
    kind
        "TIFF" or "PNG".

    Raises
    ------
    InputError
        If one is of another kind, is not whole, or is not like the others; it is named.
    """
    ordered, note = in_order(name, files)
    volume = (_tiff_slices if kind == "TIFF" else _png_slices)(ordered, name)
    last = f" to {Path(ordered[-1]).name}" if len(ordered) > 1 else ""
    shape = f"{len(ordered)} {kind} file{'s' * (len(ordered) > 1)}, {Path(ordered[0]).name}{last}"
    return replace(
        volume,
        name=name,
        sources={**volume.sources, "shape": shape},
        identity=slices_identity(ordered, where),
        current_identity=partial(slices_identity, tuple(ordered), where),
        files=FileList(tuple(ordered)),
        notes=(note,) if note else (),
    )


def _tiff_slices(files: Sequence[str], name: str) -> Volume:
    for file in files:
        if _first_bytes(file, 4, "TIFF") not in TIFF_MAGIC:
            raise InputError(f"{file} is no TIFF, as all slices must be; leave it out by a pattern, such as '*.tif'")
    volume = (_one_page_each if _is_plane(files[0]) else _several_pages_each)(files, name)
    return replace(volume, kind=f"{volume.kind} slices")


def _first_bytes(file: str, count: int, kind: str) -> bytes:
    try:
        with Path(file).open("rb") as opened:
            return opened.read(count)
    except OSError as error:
        raise unreadable(file, kind, error) from error


# ---- files of one page -------------------------------------------------------------------------------------------


def _one_page_each(files: Sequence[str], name: str) -> Volume:
    with _opened(files[0]) as (home, _):  # to the end, for tags are read from it when they are asked for
        keyframe = home.pages.first
        every = []
        for file in files:
            with _opened(file) as (tif, directories):
                _check_plane(tif, file)
                every.append(directories)
        length, width = keyframe.shape
        shape = (len(files), length, width)
        calibration = _calibration(home, keyframe, files[0], shape)
        index = np.zeros(len(files), np.int64)
        stack = Stack("plain", "IYX", shape, keyframe, tuple(every), np.arange(len(files)), index)
        reader = planes_reader(stack, name)
    volume = volume_of_planes(name, "TIFF", shape, reader, reader)
    volume = volume.measured(calibration)
    said = {what: f"{source}, of the first file" for what, source in volume.sources.items()}
    return replace(volume, sources={"axes": "one file after another, taken as z", **said})


@contextmanager
def _opened(file: str) -> Iterator[tuple[tifffile.TiffFile, Directories]]:
    """Open a TIFF whose directories are all there; whatever is raised while it is open names it."""
    directories = read_directories(Path(file))
    if directories.broken_at is not None or not len(directories):
        raise InputError(f"{file} is truncated or no TIFF: its directory is not in the file; copy it again")
    with named_failures(file, "TIFF"), tifffile.TiffFile(file) as tif:
        yield tif, directories


def _check_plane(tif: tifffile.TiffFile, file: str) -> None:
    """Check that a file is one grey plane."""
    page = tif.pages.first
    planes = str(len(tif.pages)) if len(tif.pages) > 1 else _images(page)
    if planes != "1":
        raise InputError(f"{file} has {planes} pages, where the first slice has one; give files of equal kinds only")
    pick_only(file, ["z", *page.axes.lower()], (1, *page.shape))
    check_voxels(file, (1, page.shape[0], page.shape[1]), dtype_of(page, file))


def _images(page: tifffile.TiffPage) -> str:
    """Return how many images ImageJ says there are, which may follow a single page in one piece."""
    return parse_description(page.imagej_description or "").get("images", "1") if page.is_imagej else "1"


def _is_plane(file: str) -> bool:
    """Return whether a file holds a single plane."""
    with _opened(file) as (tif, _):
        return len(tif.pages) == 1 and _images(tif.pages.first) == "1"


def _calibration(
    tif: tifffile.TiffFile, page: tifffile.TiffPage, file: str, shape: tuple[int, int, int]
) -> Calibration:
    if tif.is_ome:
        return read_ome_xml(read_ome(tif.ome_metadata or "", file).checked().pixels, 0, 1, shape)
    return calibration_of(page, "imagej" if page.is_imagej else "shaped" if page.is_shaped else "generic")


# ---- files of several pages --------------------------------------------------------------------------------------


def _several_pages_each(files: Sequence[str], name: str) -> Volume:
    volumes = []
    for file in files:
        # The last one may have a single plane left.
        volume = (
            _one_page_each([file], file)
            if _is_plane(file)
            else open_tiff(Location(Path(file), file, "file"), Selection())
        )
        volumes.append(volume)
        for what in ("dtype", "shape"):
            _check_alike(what, volume, volumes[0])
    first = volumes[0]
    depths = [volume.shape[0] for volume in volumes]
    reader = MixedReader(
        name,
        tuple(volume.read for volume in volumes),
        np.repeat(np.arange(len(depths)), depths),
        np.concatenate([np.arange(depth) for depth in depths]),
        first.shape[1:],
        first.dtype,
        tuple(files),
        triple(map(max, *(volume.chunks for volume in volumes), first.chunks)),
        max(volume.read_overhead for volume in volumes),
    )
    return replace(
        first,
        name=name,
        shape=reader.shape,
        read=reader,
        chunks=reader.segment_shape,
        read_overhead=reader.overhead,
        sources={**first.sources, "axes": f"{first.sources['axes']}, and one file after another along z"},
    )


def _check_alike(what: str, volume: Volume, first: Volume) -> None:
    found, wanted = getattr(volume, what), getattr(first, what)
    if found != wanted and (what != "shape" or found[1:] != wanted[1:]):
        raise InputError(
            f"{volume.name} is not like the other files: it has the {what} {_said(found)}, but "
            f"{Path(first.name).name} has {_said(wanted)}; save it alike, or leave it out by a pattern"
        )


def _said(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, tuple) else str(value)


# ---- what they are -----------------------------------------------------------------------------------------------


def slices_identity(files: Sequence[str], where: str) -> dict[str, Any]:
    """Return what tells these files from others, as JSON values."""
    digest = hashlib.sha256()
    size = times = 0
    for file in files:
        status = Path(file).stat()
        digest.update(f"{Path(file).name}:{status.st_size}:".encode("utf-8", "surrogateescape"))
        size += status.st_size
        times += status.st_mtime_ns  # the sum, so that any of them shows
    return {"path": where, "files": len(files), "size": size, "mtime_ns": times, "metadata": digest.hexdigest()}


# ---- order of the files --------------------------------------------------------------------------------------------


MOST_GAPS = 3
"""How many gaps a note lists."""

_NUMBER = re.compile(r"([0-9]+)")


def in_order(name: str, files: Sequence[str]) -> tuple[list[str], str]:
    """Put the paths of slices into their natural order.

    Parameters
    ----------
    name
        What the user called them together, for messages.
    files
        Their paths, at least one.

    Returns
    -------
    files : list of str
        The paths along z.
    note : str
        Which numbers are left out, as a clause; empty where none is.

    Raises
    ------
    InputError
        If the names differ in more than one number that counts.

    Examples
    --------
    >>> in_order("stack", ["a/img10.tif", "a/img1.tif", "a/img2.tif"])[0]
    ['a/img1.tif', 'a/img2.tif', 'a/img10.tif']
    """
    split = {file: _NUMBER.split(file) for file in files}
    ordered = sorted(files, key=lambda file: ([int(part) for part in split[file][1::2]], file))
    words = {tuple(part.casefold() for part in split[file][::2]): file for file in reversed(ordered)}
    if len(words) > 1:
        first, second, *_ = (Path(file).name for file in words.values())
        raise InputError(
            f"{name} has files whose names differ in more than numbers, such as {second} and {first}; "
            f"name those that belong together by a pattern in quotes{_pattern(second, first)}"
        )
    for column in zip(*(split[file][1::2] for file in ordered), strict=True):
        counts = [int(number) for number in column]
        if all(a < b for a, b in pairwise(counts)):
            return ordered, _gaps(ordered, counts)
    if len(ordered) == 1:
        return ordered, ""
    raise InputError(
        f"{name} has files in whose names no single number counts the slices, such as {Path(ordered[0]).name} and "
        f"{Path(ordered[1]).name}; name those of one volume by a pattern in quotes, with * for one number"
    )


def _gaps(files: Sequence[str], counts: Sequence[int]) -> str:
    """Return where numbers are left out, which are otherwise all equally far apart."""
    steps = [b - a for a, b in pairwise(counts)]
    places = [i for i, step in enumerate(steps) if step > min(steps)]
    if not places:
        return ""
    listed = [f"{Path(files[i + 1]).name} follows {Path(files[i]).name}" for i in places[:MOST_GAPS]]
    more = [f"{len(places) - MOST_GAPS} more"] if len(places) > MOST_GAPS else []
    return f"the slices' numbers have gaps ({', '.join(listed + more)}); if slices are missing, z is too short there"


def _pattern(*names: str) -> str:
    """Return, as a clause, a pattern for one of two names and those like it but for their last number.

    Nothing where none leaves the other name out.
    """
    for number in ("*", "[0-9]*"):
        for name, other in (names, names[::-1]):
            *head, _, tail = _NUMBER.split(name) if _NUMBER.search(name) else ("", "", name)
            pattern = f"{glob.escape(''.join(head))}{number}{glob.escape(tail)}"
            if fnmatchcase(name, pattern) and not fnmatchcase(other, pattern):
                return f", such as '{pattern}'"
    return ""


# ---- PNG slices --------------------------------------------------------------------------------------------------

# Open grey PNG slices, the files of a folder or a pattern, as one volume; a single PNG is a plane.
#
# Each file is decoded as a whole, by imagecodecs, in the thread that reads it. Its header is compared before that with
# what the file had when it was opened, because decoders believe it.
#
# Source: https://www.w3.org/TR/png/, 11.2.1 "IHDR".


PNG_ENDINGS = (".png",)
"""Names of slices end in one of these; other files of their folder are passed over."""

PNG_HEADER_BYTES = 26
"""So many bytes of a file have all that is looked at."""

PNG_FIXED_BYTES = 1 << 20
"""What libpng and zlib hold for one file."""

_PNG_COLORS = {2: "RGB colours", 3: "colours of a palette", 4: "grey values with transparency", 6: "RGB colours"}


class _PngHeader(NamedTuple):
    """What a PNG says of itself."""

    width: int
    height: int
    bits: int
    color: int


@dataclass(frozen=True)
class PngReader(TiledReader):
    """Reads boxes of PNG slices; safe to call from many threads."""

    name: str
    """What the user called the input, for messages."""
    files: tuple[str, ...]
    """Paths of the files, along z."""
    shape: Index3
    """Number of voxels, z, y, x."""
    dtype: np.dtype[Any]
    """Of the voxels, in native byte order."""
    largest: int
    """Bytes of the largest file."""

    @property
    def overhead(self) -> int:
        """Largest number of bytes held beside the returned array."""
        return self.largest + 3 * self.shape[1] * self.shape[2] * self.dtype.itemsize + PNG_FIXED_BYTES

    @property
    def chunk(self) -> Index3:
        """Shape of a slice."""
        return (1, *self.shape[1:])

    def read_tile(self, tile: Box, out: NDArray[Any], _source: Any) -> None:
        """Decode a file, and copy a part of it."""
        import imagecodecs

        path = self.files[tile.start[0]]
        size = Path(path).stat().st_size
        if size > self.largest:
            raise ValueError(f"it has {size} bytes, more than any had when it was opened")
        with open_file(self.name, path) as file:
            data = read_bytes(file, 0, size, self.name)
        header = _png_header(data)
        if header is None or (header.height, header.width, header.bits) != (*self.shape[1:], 8 * self.dtype.itemsize):
            raise ValueError("its header is another than when it was opened")
        plane = imagecodecs.png_decode(data)
        # Where a grey value stands for transparent, there is a second channel.
        out[0] = plane.reshape(*self.shape[1:], -1)[(*tile.slices[1:], 0)]

    def stored(self, tile: Box) -> Stored:
        """Return the file that a part lies in."""
        z = tile.start[0]
        return Stored(f"the file {Path(self.files[z]).name}", Box((z, 0, 0), (z + 1, *self.shape[1:])))


def open_png(at: Location, _selection: Selection) -> Volume:
    """Open a PNG, or those in a folder.

    Raises
    ------
    InputError
        If they are not the grey slices of one volume.
    """
    where = str(at.path.resolve())
    files = [where] if at.kind == "file" else list(slices_in(at.path, PNG_ENDINGS))
    return _open_files(files, where, at.name, "PNG")


def _png_slices(files: Sequence[str], name: str) -> Volume:
    first = _checked_png(files[0])
    for file in files[1:]:
        if (header := _checked_png(file)) != first:
            raise InputError(
                f"{file} is not like the first slice: it has {header.height} x {header.width} pixels of {header.bits} "
                f"bits, not {first.height} x {first.width} of {first.bits}; leave it out by a pattern, such as '*.png'"
            )
    shape = (len(files), first.height, first.width)
    dtype = np.dtype(np.uint8 if first.bits == 8 else np.uint16)
    check_voxels(name, shape, dtype)
    reader = PngReader(name, tuple(files), shape, dtype, max(Path(file).stat().st_size for file in files))
    return Volume(
        name,
        "PNG slices" if len(files) > 1 else "PNG",
        shape,
        dtype,
        reader,
        chunks=reader.chunk,
        read_overhead=reader.overhead,
        sources={"axes": "one file after another, taken as z"},
        missing="PNG has none for z",
    )


def _checked_png(file: str) -> _PngHeader:
    """Return the header of a file of grey values."""
    data = _first_bytes(file, PNG_HEADER_BYTES, "PNG")
    header = _png_header(data)
    if header is None and data.startswith(PNG_MAGIC):
        raise InputError(f"{file} is damaged: its PNG header cannot be read; write it again")
    if header is None:
        raise InputError(f"{file} is no PNG, as all slices must be; leave it out by a pattern, such as '*.png'")
    if header.color != 0:
        what = _PNG_COLORS.get(header.color, f"colours of the unknown kind {header.color}")
        raise InputError(f"{file} has {what}; isovoxel takes grey values: save each channel as grey slices of its own")
    if header.bits not in (8, 16):
        raise InputError(f"{file} has {header.bits} bits per pixel; save it with 8 or 16")
    return header


def _png_header(data: bytes) -> _PngHeader | None:
    if len(data) < PNG_HEADER_BYTES or not data.startswith(PNG_MAGIC) or data[12:16] != b"IHDR":
        return None
    return _PngHeader(*struct.unpack_from(">IIBB", data, 16))
