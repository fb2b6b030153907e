"""Formats of input that other distributions bring: plug-ins of isovoxel, and readers of bioio.

1. A distribution adds a format by an entry point that leads to a `Format`::

       [project.entry-points."isovoxel.readers"]
       photons = "photons.isovoxel:FORMAT"

2. Plug-ins are asked only for what no format of isovoxel's own recognises, so that none takes one of these over. An
   input that two of them recognise is refused.
3. What no plug-in recognises is shown to the readers that register at bioio, by the ending of its name.
4. A plug-in that fails is named in a note, or in the error where nothing opens the input; it stops no other format.
"""

from __future__ import annotations

import math
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import InputError, IsovoxelError
from isovoxel.geometry.grid import Box, Index3, triple
from isovoxel.metadata.series import Channel, time_step
from isovoxel.metadata.units import Length, calibrate
from isovoxel.readers.base import ReadBox, Volume, check_voxels, series_reader
from isovoxel.readers.files import (
    FileList,
    FolderFiles,
    file_identity,
    named_failures,
    needs_extra,
    of_file,
    reason_of,
    unreadable,
)
from isovoxel.readers.registry import FORMATS, Format, Location, open_with
from isovoxel.readers.selection import Collection, ImageEntry, Picked, Selection, one_image, pick
from isovoxel.readers.tiled import Stored, TiledReader

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
    for point in reader_points():
        try:
            reader = reader_for(point, at.path)
        except Exception as error:  # noqa: BLE001 - as above
            faults.append(_fault(point.name, _distribution(point), error))
            continue
        if reader is not None:
            opened = partial(_open_bioio, reader, point.name)
            images = partial(_images_of_bioio, reader)
            selects = ("image", "channel", "time")
            found = Format(point.name, lambda _: True, opened, selects=selects, images=images)
            return ForeignFormat(found, _distribution(point))
    return None


def _images_of_bioio(reader: Any, at: Location) -> Collection:
    return images_of_reader(reader(str(at.path.resolve())))


def _open_bioio(reader: Any, kind: str, at: Location, selection: Selection) -> Volume:
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
    with named_failures(at.name, one.what):
        volume = open_with(one.format, at, selection)
    if not isinstance(volume, Volume):
        raise InputError(f"{at.name} cannot be read as {one.what}: it gave a {type(volume).__name__} and no Volume")
    path = at.path.resolve()
    is_file = at.kind == "file"
    itself: dict[str, Any] = file_identity(path) if is_file else {"path": str(path)}
    reader = partial(CheckedReader, name=at.name, what=one.what, dtype=volume.dtype)
    return volume.read_through(
        reader,
        name=at.name,
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


# ---- files of microscopes ----------------------------------------------------------------------------------------

# Files of microscopes, opened by the readers that register at bioio's entry point: CZI, LIF, ND2, DV, and others.
#
# A reader gives a lazy dask array, one plane a chunk; a box is read chunk by chunk. The readers are not made for
# several threads at once, so that one thread reads at a time. Sizes are in micrometres, as bioio has them.


T = TypeVar("T")

CHUNK_COPIES = 4
"""How many times a chunk is held beside the returned array: as the file has it, decoded, arranged, and cut."""

FIXED_BYTES = 1 << 23
"""What dask and a reader hold whatever the chunk's size."""

PLANES = {"chunk_dims": ["Y", "X"]}
"""Makes a reader decode plane by plane, where it would take the whole volume."""


BIOIO_GROUP = "bioio.readers"
"""The entry points at which bioio's readers register."""

SIGNATURES: Mapping[str, Callable[[bytes], bool]] = {
    "CZI": lambda first: first.startswith(b"ZISRAWFILE"),
    "LIF": lambda first: first.startswith(b"\x70\0\0\0") and first[8:9] == b"\x2a",
    "ND2": lambda first: first.startswith((b"\xda\xce\xbe\x0a", b"\0\0\0\x0cjP  ")),
    "DV": lambda first: first[96:98] in (b"\xa0\xc0", b"\xc0\xa0"),
}
"""How files of each format begin that is known by its content."""

_OPTIONS: Mapping[str, Mapping[str, Any]] = {"CZI": PLANES, "LIF": PLANES}
"""What the readers of these formats are told."""


@dataclass(frozen=True)
class DaskReader(TiledReader):
    """Reads boxes of the array that a bioio reader gives; safe to call from many threads, which take turns."""

    name: str
    """What the user called the input, for messages."""
    array: Any
    """A dask array, whose axes z, y and x are these:"""
    picked: Picked
    """Which of them are z, y and x, and where along the others."""
    chunk: Index3
    """Shape of a chunk."""
    dtype: np.dtype[Any]
    """Of the voxels, in native byte order."""
    lock: threading.Lock
    """Held while a chunk is read."""

    def read_tile(self, tile: Box, out: NDArray[Any], _source: Any) -> None:
        """Read a part of a chunk."""
        with self.lock:
            # No name for the chunk, which would keep it while the next one is read.
            out[...] = self.array[self.picked.index(tile.slices)].compute(scheduler="synchronous")

    def stored(self, tile: Box) -> Stored:
        """Return the part itself."""
        return Stored(f"the part from voxel {tile.start} on", tile)

    def is_damage(self, _error: Exception) -> bool:
        """Return False, for the readers do not tell damage from other failures."""
        return False


def reader_points() -> list[EntryPoint]:
    """Return the entry points of the readers that are installed, but of those whose formats are known by content."""
    known = {_package(kind) for kind in SIGNATURES}
    return sorted((one for one in entry_points(group=BIOIO_GROUP) if one.name not in known), key=lambda one: one.name)


def reader_for(point: EntryPoint, path: Path) -> Any:
    """Return the reader class of an entry point if it takes files of this ending, and this one; else None.

    Raises
    ------
    Exception
        Whatever the reader raises, of which it is part that it does not take the file.
    """
    metadata = _loaded(point).ReaderMetadata
    if not path.name.lower().endswith(tuple(ending.lower() for ending in metadata.get_supported_extensions())):
        return None
    reader = metadata.get_reader()
    return reader if reader.is_supported_image(str(path.resolve())) else None


def is_microscope(kind: str, at: Location) -> bool:
    """Return whether a file begins as those of a format of `SIGNATURES`."""
    return SIGNATURES[kind](at.first)


def open_bioio(kind: str, at: Location, selection: Selection) -> Volume:
    """Open the one 3-D image of a microscope's file, of one of the formats of `SIGNATURES`.

    Raises
    ------
    InputError
        If the format's reader is not installed or cannot read the file, or it holds several images.
    """
    return _with_reader(kind, at, lambda reader: volume_of_reader(reader, at.path, at.name, kind, selection))


def _with_reader(kind: str, at: Location, call: Callable[[Any], T]) -> T:
    """Call a function with the reader of a file; whatever fails becomes one sentence."""
    path, name, package = at.path, at.name, _package(kind)
    try:
        point = next((one for one in entry_points(group=BIOIO_GROUP) if one.name == package), None)
        if point is None:
            raise ModuleNotFoundError(f"there is no {package}", name=package)
        module = _loaded(point)
    except ImportError as error:
        raise needs_extra(name, kind, "bioio", error) from error
    with named_failures(name, kind), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = module.Reader(str(path.resolve()), **_OPTIONS.get(kind, {}))
        check_scenes(reader, at)
        return call(reader)


def check_scenes(reader: Any, at: Location) -> None:
    """Refuse a CZI of more scenes than its metadata describe, by which bioio-czi counts: the others would be lost."""
    library = sys.modules.get("aicspylibczi")  # by which bioio-czi reads
    if library is None or not at.first.startswith(b"ZISRAWFILE"):
        return
    dims = library.CziFile(str(at.path.resolve())).get_dims_shape()
    held = max((one["S"][1] for one in dims if "S" in one), default=1)
    if held > len(reader.scenes):
        raise InputError(
            f"{at.name} holds {held} scenes, but its metadata describe {len(reader.scenes)}, and bioio-czi reads no "
            "others: save it anew with a program that opens it, as OME-TIFF or OME-Zarr"
        )


def images_of_bioio(kind: str, at: Location) -> Collection:
    """Return the images of a microscope's file; the parameters and errors are those of `open_bioio`."""
    return _with_reader(kind, at, images_of_reader)


def images_of_reader(reader: Any) -> Collection:
    """Return the images that a bioio reader has, which it calls scenes."""
    return Collection(tuple(ImageEntry(str(n), str(scene)) for n, scene in enumerate(reader.scenes)))


def _package(kind: str) -> str:
    """Return the name by which the reader of a format registers."""
    return f"bioio-{kind.lower()}"


def _loaded(point: EntryPoint) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what these libraries use, not of the file
        return point.load()


def volume_of_reader(reader: Any, path: Path, name: str, kind: str, selection: Selection) -> Volume:
    """Return the volume that a bioio reader gives.

    Parameters
    ----------
    reader
        A `bioio_base.reader.Reader`.
    path
        Its file.
    name
        What the user called it.
    kind
        What people call its format.
    selection
        Which image, which channel and which time point are meant.

    Raises
    ------
    InputError
        If it holds several images, or other axes than z, y and x.
    """
    number, chosen = one_image(images_of_reader(reader).images, selection, name)
    if selection.image is not None:
        reader.set_scene(number)
    array = reader.dask_data
    axes = [str(axis).lower() for axis in reader.dims.order]
    picked = pick(name, axes, array.shape, selection)
    dtype = np.dtype(array.dtype).newbyteorder("=")
    shape = picked.shape(array.shape)
    check_voxels(name, shape, dtype)
    chunk = picked.shape(array.chunksize)
    reads = partial(DaskReader, name, array, chunk=chunk, dtype=dtype, lock=threading.Lock())
    if kind == "LIF":
        _check_plane(reads(picked))
    sizes = reader.physical_pixel_sizes
    lengths = triple(Length(size, "micrometer") for size in (sizes.Z, sizes.Y, sizes.X))
    calibration = calibrate(f"the {kind} file", f"{kind} metadata, by bioio", lengths, flat=picked.zyx[0] is None)
    volume = Volume(
        name,
        kind,
        shape,
        dtype,
        series_reader(picked, reads),
        chunks=chunk,
        read_overhead=CHUNK_COPIES * math.prod(array.chunksize) * dtype.itemsize + FIXED_BYTES,
        sources={"shape": f"{kind} metadata", "axes": picked.told(f"{kind} metadata")},
        notes=(f"bioio reads {kind} files, and one thread at a time; others wait",),
        series=picked.axes(_step(reader)),
        channels=picked.channels(_channels(reader), axes, array.shape),
    )
    volume = volume.measured(calibration, unit="micrometers, as bioio has them")
    return of_file(volume, path, **chosen, **picked.chosen)


def _check_plane(reader: DaskReader) -> None:
    """Read a voxel: bioio-lif opens scans of other planes than y and x, and fails when their voxels are wanted."""
    try:
        reader(Box((0, 0, 0), (1, 1, 1)))
    except InputError as error:
        raise InputError(
            f"{reader.name} cannot be read by bioio-lif: {reason_of(error.__cause__ or error)}; it reads planes of y "
            "and x only: save an image of other planes (an xz scan), or one of wavelengths, as OME-TIFF"
        ) from error


def _channels(reader: Any) -> tuple[Channel, ...]:
    """Return the channels' names; a reader that has none, or fails over them, does not keep a file from being read."""
    try:
        return tuple(Channel(str(name)) for name in reader.channel_names or ())
    except Exception:  # noqa: BLE001 - whatever the library of a format raises
        return ()


def _step(reader: Any) -> tuple[float, str | None]:
    """Return the time between two time points, in seconds as bioio has it."""
    try:
        return time_step(float(reader.time_interval.total_seconds()), "s")
    except Exception:  # noqa: BLE001 - as above; and some have none
        return 1.0, None
