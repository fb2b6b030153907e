"""Formats of input: how each is recognised, what opens it, and which package brings its library.

1. Content decides, not a name's ending: the first format of `FORMATS` whose `sniff` recognises an input opens it.
2. What none of these recognises is shown to the formats of other distributions; see `isovoxel.readers.plugins`.

What a format needs (tifffile, zarr, h5py) is imported only once an input is of that format.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

from isovoxel.errors import InputError
from isovoxel.object_store.addresses import Place
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.object_store.zarr_nodes import kind_of_node
from isovoxel.readers.base import Volume
from isovoxel.readers.files import TIFF_MAGIC, needs_extra
from isovoxel.readers.selection import Selection

SELECTABLE = frozenset({"level", "channel", "time", "axes"})
"""Fields of a `Selection` that an opener may regard."""

FIRST_BYTES = 256
"""So many bytes of a file are read to recognise it."""


@dataclass(frozen=True)
class Location:
    """A file, a folder or a place in an object store that a user names."""

    place: Place
    """Where it is."""
    name: str
    """What the user called it, for messages."""
    kind: Literal["file", "folder", "address"]
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
    kinds: tuple[Literal["file", "folder", "address"], ...] = ("file",)
    """What an input of this format can be; addresses are not shown to plug-ins."""
    selects: tuple[str, ...] = ()
    """Those of `SELECTABLE` that `open` regards. A crop is cut out of what it returns."""
    inner: bool = False
    """Whether a file of it holds several inputs, of which the user names one by its path in the file."""
    also: tuple[str, ...] = ()
    """Other formats that are recognised as this one first, for lists."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not callable(self.sniff) or not callable(self.open):
            raise TypeError("a Format has a name, and sniff and open, which are called")
        if not {*self.kinds} <= {"file", "folder", "address"} or not {*self.selects} <= SELECTABLE:
            raise ValueError(f"a Format has other kinds or selects than {self.kinds} and {self.selects}")


# ---- formats of isovoxel's own -------------------------------------------------------------------------------------


def _open_ome_zarr(at: Location, selection: Selection) -> Volume:
    from isovoxel.readers.ome_zarr import open_ome_zarr

    return open_ome_zarr(at.place, at.name, selection)


def _open_zarr_array(at: Location, selection: Selection) -> Volume:
    from isovoxel.readers.zarr_array import open_zarr_array

    return open_zarr_array(at.place, at.name, selection)


def _is_n5(at: Location) -> bool:
    from isovoxel.readers.n5 import is_n5

    return is_n5(at.path)


def _open_n5(at: Location, _selection: Selection) -> Volume:
    from isovoxel.readers.n5 import open_n5

    return open_n5(at.path, at.name)


def _is_slices(at: Location) -> bool:
    from isovoxel.readers.slices import slices_in

    return any(slices_in(at.path))


def _open_slices(at: Location, _selection: Selection) -> Volume:
    from isovoxel.readers.slices import open_slices, slices_in

    return open_slices(list(slices_in(at.path)), str(at.path.resolve()), at.name)


def _open_tiff(at: Location, selection: Selection) -> Volume:
    from isovoxel.readers.tiff import open_tiff

    return open_tiff(at.path, at.name, selection)


def _is_hdf5(at: Location) -> bool:
    from isovoxel.readers.hdf5 import is_hdf5

    return is_hdf5(at.path)


def _open_hdf5(at: Location, selection: Selection) -> Volume:
    from isovoxel.readers.hdf5 import open_hdf5

    return open_hdf5(at.path, at.inner, at.name, selection)


def _open_npy(at: Location, selection: Selection) -> Volume:
    from isovoxel.readers.npy import open_npy

    return open_npy(at.path, at.name, selection)


def _is_nifti(at: Location) -> bool:
    from isovoxel.readers.nifti import is_nifti

    return is_nifti(at.path)


def _open_nifti(at: Location, _selection: Selection) -> Volume:
    from isovoxel.readers.nifti import open_nifti

    return open_nifti(at.path, at.name)


def _is_microscope(kind: str, at: Location) -> bool:
    from isovoxel.readers.bioio import SIGNATURES

    return SIGNATURES[kind](at.first)


def _open_microscope(kind: str, at: Location, selection: Selection) -> Volume:
    from isovoxel.readers.bioio import open_bioio

    return open_bioio(at.path, at.name, kind, selection)


_PLANES = ("channel", "time")
_ARRAYS = ("channel", "time", "axes")

FORMATS = (
    Format("TIFF", lambda at: at.first[:4] in TIFF_MAGIC, _open_tiff, selects=_ARRAYS),
    Format(
        "OME-Zarr",
        lambda at: at.zarr_node == "group",
        _open_ome_zarr,
        kinds=("folder", "address"),
        selects=("level", *_PLANES),
    ),
    Format(
        "zarr arrays",
        lambda at: at.zarr_node == "array",
        _open_zarr_array,
        kinds=("folder", "address"),
        selects=_ARRAYS,
    ),
    Format("N5", _is_n5, _open_n5, "n5", ("tensorstore",), kinds=("folder",)),
    Format("folders of TIFF slices", _is_slices, _open_slices, kinds=("folder",)),
    Format("HDF5", _is_hdf5, _open_hdf5, "hdf5", ("h5py",), selects=_ARRAYS, inner=True, also=("Imaris",)),
    Format(".npy", lambda at: at.first.startswith(b"\x93NUMPY"), _open_npy, selects=_ARRAYS),
    Format("NIfTI", _is_nifti, _open_nifti, "nifti", ("nibabel",)),
    *(
        Format(kind, partial(_is_microscope, kind), partial(_open_microscope, kind), "bioio", selects=_PLANES)
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


def open_by(one: Format, at: Location, selection: Selection) -> Volume:
    """Open an input by a format that recognises it.

    Raises
    ------
    InputError
        If a library of the format is missing, or a path in a file is given that has none.
    OptionError
        If the format does not know what is selected.
    """
    selection.check_kind(at.name, *one.selects)
    if at.inner is not None and not one.inner:
        raise no_inner(at)
    for library in one.libraries:
        try:
            importlib.import_module(library)
        except ImportError as error:
            raise needs_extra(at.name, one.name, one.extra, error) from error
    return one.open(at, selection)
