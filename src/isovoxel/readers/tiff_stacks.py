"""Find the images of a TIFF and the pages of each, and check that no page is left over.

Of files whose metadata tell, tifffile finds the images; it takes the tags of one page for those of the others, so each
page is found again among the directories, and what tifffile cannot take together is given to it page by page. Of plain
files, pages are one image that have the same size, dtype and meaning; smaller pictures of it, and what is marked as
such or as a mask, are none of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from isovoxel.errors import InputError
from isovoxel.metadata.series import stays_inside
from isovoxel.metadata.tiff import read_ome
from isovoxel.readers.files import TIFF_MAGIC, check_complete
from isovoxel.readers.registry import Location
from isovoxel.readers.tiff_layout import Stack
from isovoxel.readers.tiff_pages import (
    OFFSETS,
    Directories,
    PageStorage,
    difference,
    read_directories,
    storage_of,
)

_TOLD = (
    *("shaped", "lsm", "mmstack", "ome", "imagej", "ndtiff", "fluoview", "stk", "sis", "svs", "scn", "qpi", "ndpi"),
    *("bif", "avs", "eer", "philips", "scanimage", "nih", "mdgel"),
)
"""Kinds of files whose metadata tell what their pages are, as tifffile names them."""

_IN_ORDER = ("shaped", "imagej")
"""Kinds whose pages follow one another, so that tifffile need not list them."""

_REDUCED_OR_MASK = 0b101
"""Bits of a page that is a smaller picture of another one, or says which of its pixels count."""

AS_ONE = "write them as one OME-TIFF or OME-Zarr, as bfconvert and bioformats2raw do"

_MOST_ODD_PAGES = 2000
"""tifffile is given so many pages one by one, each of which takes it a tenth of a millisecond and ten kilobytes."""


def is_plain(tif: tifffile.TiffFile) -> bool:
    """Return whether a file's pages alone tell what it is."""
    return not any(getattr(tif, f"is_{kind}", False) for kind in _TOLD)


@dataclass(frozen=True)
class Image:
    """An image of a file, and its coarser levels."""

    stack: Stack
    """Its pages."""
    levels: tuple[Stack, ...] = ()
    """Those of its levels."""


# ---- files whose metadata tell -----------------------------------------------------------------------------------


def described_images(tif: tifffile.TiffFile, own: Directories, name: str) -> list[Image]:
    """Return the images that a file's metadata tell of; none where tifffile finds that they do not fit.

    Raises
    ------
    InputError
        If pages are missing.
    """
    _give_odd_pages(tif, own, name)
    if tif.is_ome:
        _check_files(tif, own, name)
    every = tif.series
    if every and every[0].kind in ("uniform", "generic"):
        return _imagej_images(tif, own) if tif.is_imagej and not tif.is_ome else []
    finder = _Finder(own, name)
    return [Image(finder.stack(s), tuple(finder.stack(one) for one in s.levels[1:])) for s in every]


def _check_files(tif: tifffile.TiffFile, own: Directories, name: str) -> None:
    """Check that the files in which an OME-XML says that planes lie are there, and are those that it means.

    tifffile takes them by their UUID, and each by its name where it meets that UUID first.

    Raises
    ------
    InputError
        If one is missing, or cannot be told from another, or says that it is another one.
    """
    said = read_ome(tif.ome_metadata or "", name)
    itself = said.uuid
    here, mine = own.path.parent, own.path.name.lower()
    names: dict[str, str] = {} if itself else {"": own.path.name}
    for file, uuid in said.files:
        if not file:
            continue
        if names.setdefault(uuid, file).lower() != file.lower():
            raise InputError(
                f"the OME-XML of {name} does not tell the files {names[uuid]!r} and {file!r} apart, for both have "
                f"{f'the UUID {uuid!r}' if uuid else 'no UUID'} there; {AS_ONE}"
            )
        if file.lower() == mine or uuid == itself:
            continue
        if not (here / file).is_file():
            raise InputError(
                f"the OME-XML of {name} says that planes lie in the file {file!r}, which is not in its folder; put it "
                f"there, or, if {name} is that file, give it that name again"
            )
        if (says := _uuid_of(here / file)) and says != uuid:
            raise InputError(
                f"{here / file} is not the file of that name of which the OME-XML of {name} tells: its UUID is "
                f"{says!r}, not {uuid!r}; put the right one there, or {AS_ONE}"
            )


def _uuid_of(path: Path) -> str:
    """Return the UUID that an OME-TIFF says that it has; empty where it says none, or is no such file."""
    try:
        with tifffile.TiffFile(path) as tif:
            return read_ome(tif.ome_metadata, str(path)).uuid if tif.ome_metadata else ""
    except (InputError, tifffile.TiffFileError):
        return ""  # which reading its pages tells better


def _imagej_images(tif: tifffile.TiffFile, own: Directories) -> list[Image]:
    """Return the image that ImageJ's description tells of, if it has as many pages as the file has.

    tifffile takes all of it for raw where the first page is, and then finds that voxels are missing.
    """
    told = tif.imagej_metadata or {}
    order = f"{told.get('order', 'czt')}".lower()[::-1]
    lengths = {"t": told.get("frames", 1), "z": told.get("slices", 1), "c": told.get("channels", 1)}
    page = tif.pages.first
    shape = [lengths[axis] for axis in order if axis in lengths]
    if sorted(order) != ["c", "t", "z"] or not all(isinstance(n, int) and n > 0 for n in shape):
        return []
    if math.prod(shape) != len(own) or len(own) < 2:
        return []
    index = np.arange(len(own))
    axes = f"{order.upper()}{page.axes}"
    return [Image(Stack("imagej", axes, (*shape, *page.shape), page, (own,), np.zeros(len(own), np.int64), index))]


def _give_odd_pages(tif: tifffile.TiffFile, own: Directories, name: str) -> None:
    """Let tifffile read pages by themselves that it would not take for the first one's likes."""
    if len(own.tags) < 2:
        return
    # Of other widths, or with other numbers of strips or tiles.
    looks = [
        tuple((tag, count, value) for tag, _, count, value in tags if tag in (256, 273, 279, 324, 325))
        for tags in own.tags
    ]
    odd = np.flatnonzero(np.array([look != looks[own.stored[0]] for look in looks])[own.stored])
    if len(odd) > _MOST_ODD_PAGES:
        raise InputError(
            f"{len(odd)} pages of {name}, of which page {odd[0]} (counted from 0) is the first, have other widths or "
            f"strips than its first page, which its kind of TIFF does not foresee; save all pages alike"
        )
    cached, frames = tif.pages.cache, tif.pages.useframes
    tif.pages.cache, tif.pages.useframes = True, False
    for index in odd.tolist():
        _ = tif.pages[index]
    tif.pages.useframes = frames
    if not len(odd):
        tif.pages.cache = cached


class _Finder:
    """Finds the directories of tifffile's pages.

    Parameters
    ----------
    own
        Those of the file that was opened.
    name
        What the user called it.
    """

    def __init__(self, own: Directories, name: str) -> None:
        self._own, self._name = own, name
        self._files: dict[str, Directories] = {str(own.path.resolve()): own}
        self._index: dict[str, dict[int, int]] = {}
        self._first: dict[str, dict[int, int]] = {}

    def stack(self, series: tifffile.TiffPageSeries) -> Stack:
        """Return the stack of a series' pages."""
        page = series.keyframe
        axes, shape = _plane_axes(series)
        size = math.prod(page.shape)
        n = math.prod(shape) // size if size else 1
        if series.kind in _IN_ORDER or series.is_truncated:
            return self._in_order(series, axes, shape, n)
        if series.kind == "lsm" and not page.is_reduced:
            flags = np.array([_subfile(tags, self._own.order) for tags in self._own.tags])[self._own.stored]
            full = np.flatnonzero((flags & _REDUCED_OR_MASK) == 0).tolist()
            members = [page if index == page.index else page.parent.pages[index] for index in full]
        else:
            members = list(series)
        there = [member for member in members if member is not None and any(member.dataoffsets)]
        if len(there) < n or len(there) < len(members):
            raise self._incomplete(page, n, len(there), len({id(member.parent) for member in there}))
        parents = {id(member.parent): member for member in members}
        paths = {key: _path_of(member, self._own.path) for key, member in parents.items()}
        names = [paths[id(member.parent)] for member in members]
        files = {file: at for at, file in enumerate(dict.fromkeys(names))}
        index = np.array([self._place(member, file) for member, file in zip(members, names, strict=True)], np.int64)
        return Stack(
            series.kind,
            axes,
            shape,
            page,
            tuple(self._directories(file) for file in files),
            np.array([files[file] for file in names], np.int64),
            index,
            members=members if series.kind == "lsm" or (index < 0).any() else (),
        )

    def _in_order(self, series: tifffile.TiffPageSeries, axes: str, shape: tuple[int, ...], n: int) -> Stack:
        """Return the stack of pages that follow the first, with directories of their own or without."""
        page, own = series.keyframe, self._own
        first = self._place(page, str(own.path.resolve()))
        if page.is_subifd:  # a level of what is not read, with its pages wherever they are
            return Stack(series.kind, axes, shape, page, (own,), np.zeros(1, np.int64), np.array([-1]))
        if series.is_truncated or len(own) == 1 or n < 1:
            if page.is_final:
                check_complete(self._name, page.dataoffsets[0] + n * page.nbytes, own.path.stat().st_size)
            return Stack(series.kind, axes, shape, page, (own,), np.zeros(1, np.int64), np.array([first]), n - 1)
        if first + n > len(own):
            raise self._incomplete(page, n, len(own) - first)
        return Stack(series.kind, axes, shape, page, (own,), np.zeros(n, np.int64), np.arange(first, first + n))

    def _incomplete(self, page: tifffile.TiffPage, n: int, there: int, files: int = 1) -> InputError:
        planar, depth, length, width, mixed = page.shaped
        planes = planar * depth * mixed
        size = f"{length} x {width}"
        check_chain(self._own, self._name)
        have = "it has" if files == 1 else f"its {files} files have"
        return InputError(
            f"{self._name} is incomplete: its metadata say {n * planes} planes of {size}, but {have} {there * planes}"
        )

    def _directories(self, file: str) -> Directories:
        if file not in self._files:
            self._files[file] = read_directories(Path(file))
        return self._files[file]

    def _place(self, page: Any, file: str) -> int:
        """Return the number of a page's directory in its file, by where it begins, or its voxels; -1 if it has none."""
        directories = self._directories(file)
        if file not in self._index:
            self._index[file] = {offset: at for at, offset in enumerate(directories.offsets.tolist())}
        if page.offset > 0:
            return self._index[file].get(page.offset, -1)
        if file not in self._first:
            self._first[file] = {offset: at for at, offset in enumerate(_begins(directories).tolist()) if offset >= 0}
        return self._first[file].get(page.dataoffsets[0], -1)


def _begins(directories: Directories) -> NDArray[np.int64]:
    """Return where the voxels of every page begin; -1 where it does not tell."""
    begins = np.full(len(directories), -1, np.int64)
    for number in range(len(directories.tags)):
        pages = np.flatnonzero(directories.stored == number)
        table = directories.table(pages, OFFSETS)
        begins[pages] = table[:, 0] if table.shape[1] else -1
    return begins


def _plane_axes(series: tifffile.TiffPageSeries) -> tuple[str, tuple[int, ...]]:
    """Return the axes of a series with samples that lie side by side before the other axes of a page, and lengths."""
    axes, shape, samples = series.axes, tuple(series.shape), series.keyframe.shaped[4]
    if samples == 1 or not axes or shape[-1] != samples or axes[-1] == "S":
        return axes, shape
    at = len(axes) - (4 if series.keyframe.shaped[1] > 1 else 3)
    return f"{axes[:at]}{axes[-1]}{axes[at:-1]}", (*shape[:at], shape[-1], *shape[at:-1])


def _path_of(page: Any, opened: Path) -> str:
    """Return the file a page lies in, absolute, so that it is found from any working directory."""
    path = Path(page.parent.filehandle.path)
    return str((path if path.is_absolute() else opened.resolve().parent / path).resolve())


# ---- plain files -------------------------------------------------------------------------------------------------


def plain_images(tif: tifffile.TiffFile, own: Directories, name: str) -> list[Image]:
    """Return the images that the pages of a plain file make: pages that are alike, whichever lies between them."""
    storages = [_storage(tif, own, number, name) for number in range(len(own.tags))]
    marked = [bool(_subfile(tags, own.order) & _REDUCED_OR_MASK) for tags in own.tags]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for reduced in (False, True):
        for number, (_, storage) in enumerate(storages):
            key = tuple(storage.alike.items())
            # One that is marked, and like the others all the same, is a plane.
            if marked[number] == reduced and (not reduced or key in groups or all(marked)):
                groups.setdefault(key, []).append(number)
    stacks = []
    for numbers in groups.values():
        index = np.flatnonzero(np.isin(own.stored, numbers))
        page = storages[int(own.stored[index[0]])][0]
        axes, shape = page.axes, tuple(page.shape)
        if len(index) > 1:
            axes, shape = f"I{axes}", (len(index), *shape)
        stacks.append(Stack("plain", axes, shape, page, (own,), np.zeros(len(index), np.int64), index))
    images: list[Image] = []
    for stack in sorted(stacks, key=lambda stack: -math.prod(stack.shape)):
        above = next((at for at, image in enumerate(images) if _is_level(stack, image.stack)), None)
        if above is None:
            images.append(Image(stack))
        else:
            images[above] = Image(images[above].stack, (*images[above].levels, stack))
    return sorted(images, key=lambda image: int(image.stack.index[0]))


def _storage(tif: tifffile.TiffFile, own: Directories, number: int, name: str) -> tuple[tifffile.TiffPage, PageStorage]:
    """Return the first page that has tags, and how it is stored."""
    index = int(np.flatnonzero(own.stored == number)[0])
    page = tif.pages.first if index == 0 else tif.pages.get(index)
    assert isinstance(page, tifffile.TiffPage)  # noqa: S101 -- which `get` returns
    return page, storage_of(page, own.tags[number], name)


def _is_level(small: Stack, large: Stack) -> bool:
    """Return whether pages are those of an image, each smaller by the same factor."""
    if small.axes != large.axes or len(small.index) != len(large.index) or small.page.dtype != large.page.dtype:
        return False
    pairs = [(a, b) for a, b in zip(large.shape, small.shape, strict=True) if a != b]
    return bool(pairs) and any(all(b in (a // f, -(-a // f)) for a, b in pairs) for f in range(2, 65))


def _subfile(tags: Iterable[tuple[int, int, int, bytes]], order: str) -> int:
    """Return what a page says of its kind, as the bits of NewSubfileType."""
    for tag, kind, _, value in tags:
        if tag == 254:
            number = int.from_bytes(value[: 2 if kind == 3 else 4], "little" if order == "<" else "big")
        elif tag == 255:  # the older one: 2 for a smaller picture, 3 for one page of several
            number = {2: 1, 3: 2}.get(int.from_bytes(value[:2], "little" if order == "<" else "big"), 0)
        else:
            continue
        return number
    return 0


# ---- what is left over -------------------------------------------------------------------------------------------


def check_odd(chosen: Image, images: Sequence[Image], name: str) -> None:
    """Check that no page of a plain file is left out of its only volume; one that is is named.

    Raises
    ------
    InputError
        If pages are no part of it.
    """
    others = [image.stack for image in images if image is not chosen]
    if others:
        odd = min(others, key=lambda stack: int(stack.index[0]))
        wanted = chosen.stack
        storages = [storage_of(stack.page, (), name) for stack in (odd, wanted)]
        left = sum(len(stack.index) for stack in others)
        raise InputError(
            f"{odd.say(0, name)} is not like {'the' if left == 1 else 'most'} others: {difference(*storages)}, as "
            f"page {wanted.number(0)} has, so {left} of {left + len(wanted.index)} pages would be left out; "
            f"save all planes alike, or those that you mean as a file of their own"
        )


def check_covered(images: Sequence[Image], own: Directories, name: str) -> None:
    """Check that each page of the files is a part of an image, or marked as a smaller picture or a mask.

    Raises
    ------
    InputError
        If one is left out.
    """
    stacks = [stack for image in images for stack in (image.stack, *image.levels)]
    if any(stack.kind == "mdgel" for stack in stacks):
        return  # its second page has numbers, not voxels
    files = {id(directories): directories for stack in stacks for directories in stack.files} | {id(own): own}
    used = {key: np.zeros(len(directories), bool) for key, directories in files.items()}
    for stack in stacks:
        for at, directories in enumerate(stack.files):
            index = stack.index[stack.file_of_page == at]
            used[id(directories)][index[index >= 0]] = True
    for key, directories in files.items():
        marked = np.array([bool(_subfile(tags, directories.order) & _REDUCED_OR_MASK) for tags in directories.tags])
        left = np.flatnonzero(~used[key] & ~marked[directories.stored])
        if len(left):
            check_chain(directories, name)
            where = name if directories is own else str(directories.path)
            raise InputError(
                f"page {left[0]} (counted from 0) of {where} is no part of an image that its metadata tell of: they "
                f"take {len(directories) - len(left)} of its {len(directories)} pages; save the planes that you mean "
                f"as a file of their own"
            )


def check_chain(own: Directories, name: str) -> None:
    """Check that no directory of a file is missing."""
    if own.broken_at is not None:
        pages = "1 page" if len(own) == 1 else f"{len(own)} pages"
        if own.broken_at in own.offsets:
            raise InputError(
                f"{name} is damaged: after {pages} comes the one at byte {own.broken_at} again; copy or write it again"
            )
        raise InputError(
            f"{name} is truncated: after {pages} the next should be at byte {own.broken_at}, "
            f"but the {own.path.stat().st_size} bytes of the file do not hold all of it; copy or write it again"
        )


# ---- a companion with the OME-XML --------------------------------------------------------------------------------

# Find the file with the OME-XML of TIFFs that hold planes only: such a TIFF names it, or the user does.
#
# Source: https://docs.openmicroscopy.org/ome-model/latest/ome-tiff/specification.html#binaryonly


MOST_COMPANION_BYTES = 1 << 28
"""A larger companion is refused, because its XML is held in memory."""


@dataclass(frozen=True)
class TiffInput:
    """A TIFF, and where its OME-XML stands."""

    path: Path
    """The TIFF, or the first of several."""
    directories: Directories
    """Those of this TIFF."""
    companion: Path | None = None
    """The file with the OME-XML; None where the TIFF has it, or there is none."""
    xml: str | None = None
    """What stands in the companion."""

    def open(self) -> tifffile.TiffFile:
        """Open the TIFF by tifffile."""
        return tifffile.TiffFile(self.path, omexml=self.xml)


def find_tiff(at: Location) -> TiffInput:
    """Return the TIFF of an input, which is one or the companion of some.

    Raises
    ------
    InputError
        If the TIFF is truncated, or of the two one is not there.
    """
    name = at.name
    if at.first[:4] not in TIFF_MAGIC:
        xml = _text(at.path, name)
        first = next((file for file, _ in read_ome(xml, name).checked().files if file), None)
        if first is None:
            raise InputError(f"{name} is OME-XML that names no TIFF with its planes")
        if not at.path.with_name(first).is_file():
            raise InputError(
                f"the OME-XML of {name} says that planes lie in the file {first!r}, which is not in its folder; put it "
                "there"
            )
        return _checked(TiffInput(path := at.path.with_name(first), _directories(path, name), at.path, xml), name)
    directories = _directories(at.path, name)
    with tifffile.TiffFile(at.path) as tif:
        said = tif.ome_metadata or ""
    named = read_ome(said, name).companion if "BinaryOnly" in said else None
    if named is None:
        return TiffInput(at.path, directories)
    companion = at.path.with_name(named) if stays_inside(named) else None
    if companion is None or not companion.is_file():
        raise InputError(
            f"{name} is one file of several, and what its pages are stands in another, {named[:100]!r}, which is not "
            f"in its folder; put it there, or {AS_ONE}"
        )
    return _checked(TiffInput(at.path, directories, companion, _text(companion, name)), name)


def _checked(found: TiffInput, name: str) -> TiffInput:
    """Check that tifffile takes the XML for that of the TIFF, and the XML does not lead to another companion."""
    refers = read_ome(found.xml or "", name).companion is not None  # first, because it says what is wrong with the XML
    with found.open() as tif:
        if refers or not tif.is_ome:
            raise InputError(f"{found.companion} is not the OME-XML of {found.path}; {AS_ONE}")
    return found


def _directories(path: Path, name: str) -> Directories:
    directories = read_directories(path)
    if not len(directories):
        raise InputError(f"{name} is truncated or no TIFF: the file does not hold all of its first directory")
    return directories


def _text(companion: Path, name: str) -> str:
    if companion.stat().st_size > MOST_COMPANION_BYTES:
        raise InputError(f"the OME-XML of {name} is larger than {MOST_COMPANION_BYTES >> 20} MiB")
    return companion.read_text("utf-8-sig", "replace").strip()
