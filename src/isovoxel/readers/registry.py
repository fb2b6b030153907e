"""Formats of input: how each is recognised, what opens it, and which package brings its library.

1. Content decides, not a name's ending: the first format of `FORMATS` whose `sniff` recognises an input opens it.
2. What none of these recognises is shown to the formats of other distributions; see `plugins`.

What a format needs (tifffile, zarr, h5py) is imported only once an input is of that format. A new format is a module
with a function that opens it, and a line of `FORMATS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from isovoxel.errors import InputError
from isovoxel.object_store.files import kind_of_node
from isovoxel.object_store.objects import ObjectPlace, Place
from isovoxel.readers.base import Volume
from isovoxel.readers.files import GZIP_MAGIC, PNG_MAGIC, TIFF_MAGIC, ZIP_MAGIC, needs_extra
from isovoxel.readers.selection import Collection, Selection

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


def _begins(*signs: bytes, then: Callable[[Location], bool] = lambda _at: True) -> Callable[[Location], bool]:
    """Return what recognises a file by its first bytes; where others begin so, too, a function decides."""

    def sniff(at: Location) -> bool:
        return at.first.startswith(signs) and then(at)

    return sniff


def _contains(sign: bytes, then: Callable[[Location], bool]) -> Callable[[Location], bool]:
    """Return what recognises a file that has some bytes near its beginning, and of which a function says yes."""

    def sniff(at: Location) -> bool:
        return sign in at.first and then(at)

    return sniff


def _is_companion(at: Location) -> bool:
    """Return whether a file is OME-XML beside TIFFs."""
    return b"<OME" in at.first or (at.path.name.endswith(".companion.ome") and at.first.lstrip().startswith(b"<"))


def _is_packed_tiff(at: Location) -> bool:
    """Return whether a gzip holds a TIFF."""
    return _late("raw", "first_bytes")(at.path, 4) in TIFF_MAGIC


def _png(at: Location) -> bool:
    """Return whether a file is a PNG, or a folder holds some."""
    return at.first.startswith(PNG_MAGIC) if at.kind == "file" else _late("slices", "has_slices")(at, (".png",))


_PLANES = ("channel", "time")
_ARRAYS = ("channel", "time", "axes")
_ZARR: tuple[Kind, ...] = ("folder", "address")

FORMATS = (
    *(
        Format(
            name,
            sniff,
            _late("tiff", "open_tiff"),
            selects=("image", *_ARRAYS),
            images=_late("tiff", "images_of_tiff"),
        )
        for name, sniff in (("TIFF", _begins(*TIFF_MAGIC)), ("companion.ome", _is_companion))
    ),
    Format(
        "TIFF in gzip",
        _begins(GZIP_MAGIC, then=_is_packed_tiff),
        _late("packed", "open_packed_tiff"),
        selects=("image", *_ARRAYS),
        images=_late("packed", "images_of_packed_tiff"),
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
        _late("n5", "is_precomputed"),
        _late("n5", "open_precomputed"),
        "n5",
        ("tensorstore",),
        kinds=("folder",),
        selects=("level", "channel"),
    ),
    Format(
        "NDTiff",
        lambda at: (at.path / "NDTiff.index").is_file(),
        _late("tiff", "open_ndtiff"),
        kinds=("folder",),
        selects=_ARRAYS,
    ),
    Format("folders of TIFF slices", _late("slices", "has_slices"), _late("slices", "open_folder"), kinds=("folder",)),
    Format("PNG slices", _png, _late("slices", "open_png"), kinds=("file", "folder")),
    Format(".npy", _begins(b"\x93NUMPY"), _late("raw_headers", "open_npy"), selects=_ARRAYS),
    *(
        Format(
            name,
            _contains(b"<SpimData", then=_late("bdv", "is_bdv", f"bdv.{extra}")),
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
        _begins(ZIP_MAGIC, then=_late("packed", "is_zip")),
        _late("packed", "open_zip"),
        selects=("image", "level", *_ARRAYS),
        inner=True,
        images=_late("packed", "images_of_zip"),
    ),
    Format("NIfTI", _late("raw_headers", "is_nifti"), _late("raw_headers", "open_nifti"), "nifti", ("nibabel",)),
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
            _late("plugins", "is_microscope", kind),
            _late("plugins", "open_bioio", kind),
            "bioio",
            selects=("image", *_PLANES),
            images=_late("plugins", "images_of_bioio", kind),
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
