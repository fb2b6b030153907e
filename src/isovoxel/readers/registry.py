"""Formats of input: how each is recognised, what opens it, and which package brings its library.

1. Content decides, not a name's ending: the first format of `FORMATS` whose `sniff` recognises an input opens it.
2. What none of these recognises is shown to the formats of other distributions.

What a format needs (tifffile, zarr, h5py) is imported only once an input is of that format. A new format is a module
with a function that opens it, and a line of `FORMATS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import InputError, IsovoxelError
from isovoxel.geometry.box import Box
from isovoxel.object_store.addresses import Place
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.object_store.zarr_nodes import kind_of_node
from isovoxel.readers.base import ReadBox, Volume, cached_through
from isovoxel.readers.files import TIFF_MAGIC, FileList, FolderFiles, file_identity, needs_extra, reason_of, unreadable
from isovoxel.readers.images import Collection
from isovoxel.readers.selection import Selection

SELECTABLE = frozenset({"image", "level", "channel", "time", "axes"})
"""Fields of a `Selection` that an opener may regard."""

FIRST_BYTES = 256
"""So many bytes of a file are read to recognise it."""

Kind = Literal["file", "folder", "address"]
"""What an input can be."""


@dataclass(frozen=True)
class Location:
    """A file, a folder or a place in an object store that a user names."""

    place: Place
    """Where it is."""
    name: str
    """What the user called it, for messages."""
    kind: Kind
    """What it is; of an address nothing is known yet."""
    inner: str | None = None
    """Path of what is meant in the file (``file.h5:/path/to/dataset``); None where none is given."""

    @property
    def path(self) -> Path:
        """The path of a file or a folder."""
        if isinstance(self.place, ObjectPlace):
            raise TypeError(f"{self.name} is an address and has no path")
        return self.place

    @cached_property
    def first(self) -> bytes:
        """The first `FIRST_BYTES` bytes of a file, or fewer where it has no more; none of anything else."""
        if self.kind != "file":
            return b""
        with self.path.open("rb") as file:
            return file.read(FIRST_BYTES)

    @cached_property
    def zarr_node(self) -> str | None:
        """Whether a folder or an address is a zarr "array" or "group"; None where it is neither."""
        return kind_of_node(self.place)


@dataclass(frozen=True)
class Format:
    """A format of input."""

    name: str
    """What people call it, in a list of what can be read."""
    sniff: Callable[[Location], bool]
    """Returns whether an input is of this format, by as few of its bytes as that takes."""
    open: Callable[[Location, Selection], Volume]
    """Opens an input of this format; whatever it raises becomes one sentence."""
    extra: str | None = None
    """The extra of isovoxel's that brings `libraries`."""
    libraries: tuple[str, ...] = ()
    """Modules that are imported before the input is opened."""
    kinds: tuple[Kind, ...] = ("file",)
    """What an input of this format can be; addresses are not shown to plug-ins."""
    selects: tuple[str, ...] = ()
    """Those of `SELECTABLE` that `open` regards. A crop is cut out of what it returns."""
    inner: bool = False
    """Whether a file of it holds several inputs, of which the user names one by its path in the file."""
    also: tuple[str, ...] = ()
    """Other formats that are recognised as this one first, for lists."""
    images: Callable[[Location], Collection] | None = None
    """Returns the images of an input that may hold several; None of a format whose inputs hold one."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not callable(self.sniff) or not callable(self.open):
            raise TypeError("a Format has a name, and sniff and open, which are called")
        if not {*self.kinds} <= {"file", "folder", "address"} or not {*self.selects} <= SELECTABLE:
            raise ValueError(f"a Format has other kinds or selects than {self.kinds} and {self.selects}")


# ---- formats of isovoxel's own -------------------------------------------------------------------------------------


def _late(module: str, function: str, *first: str) -> Callable[..., Any]:
    """Return a function of a module of this package, which is imported when that is called.

    Parameters
    ----------
    module, function
        Their names.
    first
        What the function is given before what it is called with.
    """

    def call(*given: Any) -> Any:
        return getattr(importlib.import_module(f"isovoxel.readers.{module}"), function)(*first, *given)

    return call


_PLANES = ("channel", "time")
_ARRAYS = ("channel", "time", "axes")
_ZARR: tuple[Kind, ...] = ("folder", "address")

FORMATS = (
    Format(
        "TIFF",
        lambda at: at.first[:4] in TIFF_MAGIC,
        _late("tiff", "open_tiff"),
        selects=("image", *_ARRAYS),
        images=_late("tiff", "images_of_tiff"),
    ),
    Format(
        "OME-Zarr",
        lambda at: at.zarr_node == "group",
        _late("ome_zarr", "open_ome_zarr"),
        kinds=_ZARR,
        selects=("image", "level", *_PLANES),
        images=_late("ome_zarr", "images_of_group"),
    ),
    Format(
        "zarr arrays",
        lambda at: at.zarr_node == "array",
        _late("zarr_array", "open_zarr_array"),
        kinds=_ZARR,
        selects=_ARRAYS,
    ),
    Format("N5", _late("n5", "is_n5"), _late("n5", "open_n5"), "n5", ("tensorstore",), kinds=("folder",)),
    Format(
        "Neuroglancer precomputed",
        _late("precomputed", "is_precomputed"),
        _late("precomputed", "open_precomputed"),
        "n5",
        ("tensorstore",),
        kinds=("folder",),
        selects=("level", "channel"),
    ),
    Format("folders of TIFF slices", _late("slices", "has_slices"), _late("slices", "open_folder"), kinds=("folder",)),
    *(
        Format(
            name,
            _late("bdv", "is_bdv", f"bdv.{extra}"),
            _late("bdv", "open_bdv"),
            extra,
            (library,),
            selects=("image", *_PLANES),
            images=_late("bdv", "images_of_bdv"),
        )
        for name, extra, library in (("BigDataViewer", "hdf5", "h5py"), ("BigDataViewer N5", "n5", "tensorstore"))
    ),
    Format(
        "HDF5",
        _late("hdf5", "is_hdf5"),
        _late("hdf5", "open_hdf5"),
        "hdf5",
        ("h5py",),
        selects=_ARRAYS,
        inner=True,
        also=("Imaris",),
    ),
    Format(
        "zipped zarr",
        _late("zipped", "is_zip"),
        _late("zipped", "open_zip"),
        selects=("image", "level", *_ARRAYS),
        inner=True,
        images=_late("zipped", "images_of_zip"),
    ),
    Format(".npy", lambda at: at.first.startswith(b"\x93NUMPY"), _late("raw_headers", "open_npy"), selects=_ARRAYS),
    Format("NIfTI", _late("nifti", "is_nifti"), _late("nifti", "open_nifti"), "nifti", ("nibabel",)),
    *(
        Format(
            kind,
            _late("raw_headers", "is_raw_header", kind),
            _late("raw_headers", "open_raw_header", kind),
            selects=_ARRAYS,
        )
        for kind in ("NRRD", "MetaImage", "MRC")
    ),
    *(
        Format(
            kind,
            _late("bioio", "is_microscope", kind),
            _late("bioio", "open_bioio", kind),
            "bioio",
            selects=("image", *_PLANES),
            images=_late("bioio", "images_of_bioio", kind),
        )
        for kind in ("CZI", "LIF", "ND2", "DV")
    ),
)
"""Formats of isovoxel's own, in the order in which they are tried and listed."""


def known_formats(kind: str | None = None, *, inner: bool = False) -> str:
    """Return the names of isovoxel's own formats, as a clause of a sentence.

    Parameters
    ----------
    kind
        What an input must be able to be, "file", "folder" or "address"; None for any.
    inner
        Whether only formats count whose files hold several inputs.

    Examples
    --------
    >>> known_formats("address")
    'OME-Zarr and zarr arrays'
    """
    chosen = (one for one in FORMATS if (kind is None or kind in one.kinds) and (one.inner or not inner))
    names = [name for one in chosen for name in (one.name, *one.also)]
    return " and ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]


def no_inner(at: Location) -> InputError:
    """Return the error for a path in a file of a format that has none."""
    return InputError(
        f"{at.name} names something in the file {at.path}, which only files of {known_formats(inner=True)} have; "
        f"give {at.path} alone"
    )


def find_format(at: Location) -> Format | None:
    """Return the first of isovoxel's own formats that recognises an input; None where none does."""
    return next((one for one in FORMATS if at.kind in one.kinds and one.sniff(at)), None)


def open_with(one: Format, at: Location, selection: Selection) -> Volume:
    """Open an input by a format that recognises it.

    Raises
    ------
    InputError
        If a library of the format is missing, or a path in a file is given that has none.
    OptionError
        If the format does not know what is selected.
    """
    selection.check_kind(at.name, *one.selects)
    _check_inner(one, at)
    return one.open(at, selection)


def images_by(one: Format, at: Location) -> Collection:
    """Return the images of an input by a format that recognises it.

    Raises
    ------
    InputError
        As `open_by`; or if inputs of the format hold one image.
    """
    _check_inner(one, at)
    if one.images is None:
        raise InputError(f"{at.name} is of a kind that holds one image; leave out --image")
    return one.images(at)


def _check_inner(one: Format, at: Location) -> None:
    """Check that a format has its libraries, and that its files have paths in them where one is given."""
    if at.inner is not None and not one.inner:
        raise no_inner(at)
    for library in one.libraries:
        try:
            importlib.import_module(library)
        except ImportError as error:
            raise needs_extra(at.name, one.name, one.extra, error) from error


# ---- formats of other distributions --------------------------------------------------------------------------------

# Formats of input that other distributions bring: plug-ins of isovoxel, and readers of bioio.
#
# 1. A distribution adds a format by an entry point that leads to a `Format`::
#
#        [project.entry-points."isovoxel.readers"]
#        photons = "photons.isovoxel:FORMAT"
#
# 2. Plug-ins are asked only for what no format of isovoxel's own recognises, so that none takes one of these over. An
#    input that two of them recognise is refused.
# 3. What no plug-in recognises is shown to the readers that register at bioio, by the ending of its name.
# 4. A plug-in that fails is named in a note, or in the error where nothing opens the input; it stops no other format.


GROUP = "isovoxel.readers"
"""The entry points of plug-ins."""


class ForeignFormat(NamedTuple):
    """A format that another distribution brings."""

    format: Format
    """The format."""
    by: str
    """The distribution, for messages."""

    @property
    def what(self) -> str:
        """The format, and what brings it, for messages."""
        return f"{self.format.name}, by {self.by}"


def recognised(at: Location, faults: list[str]) -> ForeignFormat | None:
    """Return the format of another distribution that recognises a file or a folder; None where none does.

    Parameters
    ----------
    at
        The file or folder.
    faults
        Gets a clause for each plug-in that cannot be used.

    Raises
    ------
    InputError
        If several plug-ins recognise it.
    """
    found = [one for one in _plugins(faults) if _recognises(one, at, faults)]
    if len(found) > 1:
        names = " and ".join(f"{one.format.name} by {one.by}" for one in found)
        raise InputError(f"{at.name} is recognised by several reader plug-ins, {names}; uninstall all but one of them")
    if found:
        return found[0]
    return _bioio_reader(at, faults) if at.kind == "file" else None


def _plugins(faults: list[str]) -> list[ForeignFormat]:
    """Return the formats that plug-ins of isovoxel register."""
    from importlib.metadata import entry_points

    own = {name.casefold() for one in FORMATS for name in (one.name, *one.also)}
    found = []
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        by = _distribution(point)
        try:
            loaded = point.load()
        except Exception as error:  # noqa: BLE001 - an import may raise anything
            faults.append(_fault(point.name, by, error))
            continue
        if not isinstance(loaded, Format):
            faults.append(_fault(point.name, by, f"its entry point leads to a {type(loaded).__name__} and no Format"))
        elif loaded.name.casefold() in own:
            faults.append(_fault(point.name, by, f"isovoxel itself has a format of the name {loaded.name}"))
        else:
            found.append(ForeignFormat(loaded, by))
    return found


def _recognises(one: ForeignFormat, at: Location, faults: list[str]) -> bool:
    try:
        return at.kind in one.format.kinds and bool(one.format.sniff(at))
    except Exception as error:  # noqa: BLE001 - as above
        faults.append(_fault(one.format.name, one.by, error))
        return False


def _bioio_reader(at: Location, faults: list[str]) -> ForeignFormat | None:
    """Return the first reader of bioio's that takes files of this ending, and this one."""
    from isovoxel.readers import bioio

    for point in bioio.reader_points():
        try:
            reader = bioio.reader_for(point, at.path)
        except Exception as error:  # noqa: BLE001 - as above
            faults.append(_fault(point.name, _distribution(point), error))
            continue
        if reader is not None:
            opened = partial(_open_bioio, reader, point.name)
            selects = ("image", "channel", "time")
            images = partial(_images_of_bioio, reader)
            return ForeignFormat(
                Format(point.name, lambda _: True, opened, selects=selects, images=images), _distribution(point)
            )
    return None


def _images_of_bioio(reader: Any, at: Location) -> Collection:
    from isovoxel.readers.bioio import images_of_reader

    return images_of_reader(reader(str(at.path.resolve())))


def _open_bioio(reader: Any, kind: str, at: Location, selection: Selection) -> Volume:
    from isovoxel.readers.bioio import volume_of_reader

    return volume_of_reader(reader(str(at.path.resolve())), at.path, at.name, kind, selection)


def _fault(name: str, by: str, reason: str | Exception) -> str:
    if isinstance(reason, Exception):
        reason = f"{type(reason).__name__}: {reason_of(reason)}"
    return f"the reader plug-in {name} of {by} cannot be used ({reason})"


def _distribution(point: Any) -> str:
    """Return the name and the version of the distribution that registers an entry point, for messages."""
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value


def open_foreign(one: ForeignFormat, at: Location, selection: Selection) -> Volume:
    """Open a file or a folder by a plug-in.

    Its volume gets what tells it from others, where it does not say so, and a reader whose boxes are checked.

    Raises
    ------
    InputError
        If the plug-in fails, or gives no `Volume`.
    """
    try:
        volume = open_with(one.format, at, selection)
    except (IsovoxelError, MemoryError):
        raise
    except Exception as error:
        raise unreadable(at.name, one.what, error) from error
    if not isinstance(volume, Volume):
        raise InputError(f"{at.name} cannot be read as {one.what}: it gave a {type(volume).__name__} and no Volume")
    path = at.path.resolve()
    is_file = at.kind == "file"
    itself: dict[str, Any] = file_identity(path) if is_file else {"path": str(path)}
    reader = partial(CheckedReader, name=at.name, what=one.what, dtype=volume.dtype)
    return replace(
        volume,
        name=at.name,
        read=reader(volume.read),
        cached=cached_through(volume.cached, reader),
        identity={**itself, **volume.identity, **selection.identity(*one.format.selects)},
        current_identity=volume.current_identity or (partial(file_identity, path) if is_file else None),
        files=volume.files or (FileList((str(path),)) if is_file else FolderFiles(str(path))),
    )


@dataclass(frozen=True)
class CheckedReader:
    """Reads boxes by a plug-in's reader, and checks that these are what a `ReadBox` returns."""

    read: ReadBox
    """The plug-in's."""
    name: str
    """What the user called the input, for messages."""
    what: str
    """The format, and what brings it, for messages."""
    dtype: np.dtype[Any]
    """Of the voxels."""

    def __call__(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a box as a new array, or in `out`.

        Raises
        ------
        InputError
            If the reader fails, or returns anything else.
        """
        try:
            found = self.read(box, out)
        except (IsovoxelError, MemoryError):
            raise
        except Exception as error:
            raise unreadable(self.name, self.what, error) from error
        if found is not out and (
            out is not None
            or not isinstance(found, np.ndarray)
            or (found.shape, found.dtype, found.flags.c_contiguous) != (box.shape, self.dtype, True)
        ):
            where = "in the array that it was given" if out is not None else "as a C-contiguous array"
            raise InputError(
                f"{self.name} cannot be read as {self.what}: its reader did not return a box {where}, of shape "
                f"{box.shape} and dtype {self.dtype}"
            )
        return found
