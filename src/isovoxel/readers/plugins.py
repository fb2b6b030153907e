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

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import InputError, IsovoxelError
from isovoxel.geometry.grid import Box
from isovoxel.readers.base import ReadBox, Volume, cached_through
from isovoxel.readers.files import FileList, FolderFiles, file_identity, reason_of, unreadable
from isovoxel.readers.registry import FORMATS, Format, Location, open_with
from isovoxel.readers.selection import Collection, Selection

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
        by_gpu=volume.by_gpu and volume.by_gpu.through(reader),
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
