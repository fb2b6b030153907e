"""Keep apart what a command reads and what it writes, before anything is touched.

All that a command reads (its input, labels, job file, ...) is compared with all that it writes: folders that it makes
or replaces (an output, its labels, their ledgers), and files (a report, a picture, a saved job). Two paths are the same
where they lead to the same file or folder, however they are spelt; one lies in another where that holds for a folder on
the way to it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

from isovoxel.errors import OptionError, OutputError
from isovoxel.execution.inputs import places_of
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.object_store.place import Place
from isovoxel.object_store.zarr_nodes import TOP
from isovoxel.output.destination import output_place
from isovoxel.output.ledger import ledger_for
from isovoxel.output.membership import LABELS, Membership, membership_of
from isovoxel.readers.base import Volume
from isovoxel.readers.n5 import METADATA as N5_ATTRIBUTES


@dataclass(frozen=True)
class Named:
    """A file or folder that a command reads or writes, and what it is to the command."""

    what: str
    """"input", "labels", "output", "report", ..."""
    place: Place
    """Where it is."""


def read_as(what: str, source: Any, volume: Volume | None = None) -> list[Named]:
    """Return where an input lies, as `isovoxel.execution.inputs.places_of` does."""
    return [Named(what, place) for place in places_of(source, volume)]


def folders_of(output: str | os.PathLike[str], labels: str | None = None) -> list[Named]:
    """Return the folders that a job makes or replaces: an output and its ledger, and those of its labels.

    Parameters
    ----------
    output
        The output.
    labels
        What its labels are called, if there are any.

    Raises
    ------
    OutputError, AddressError
        If there can be no such output.
    """
    place = output_place(output)
    store = membership_of(place)
    found = [Named("output", place), Named(_LEDGER, ledger_for(place, store))]
    if labels is not None:
        groups = (place, *(store.groups if store is not None else ()))
        of_labels = Membership(place / LABELS / labels, groups, (), store.zarr_format if store is not None else 3)
        found.append(Named(_LEDGER, of_labels.ledger))  # the labels themselves lie in the output
    return found


def check_apart(read: Sequence[Named], folders: Sequence[Named] = (), files: Sequence[Named] = ()) -> None:
    """Raise where a command would write over what it reads, or one thing that it writes over another.

    Parameters
    ----------
    read
        What it reads.
    folders, files
        What it writes.

    Raises
    ------
    OutputError
        If something that is written is something that is read, or one lies in the other.
    OptionError
        If a file that is written lies in an output, or two are the same.
    """
    inputs = [(each, _Where(each.place)) for each in read]
    outputs = [(each, _Where(each.place)) for each in folders]
    written = [(each, _Where(each.place)) for each in files]
    for (folder, there), (source, here) in product(outputs, inputs):
        _check_folder(folder, there, source, here)
    for (file, there), (source, here) in product(written, inputs):
        _check_file(file, there, source, here)
    for (file, there), (folder, here) in product(written, outputs):
        if there.is_same(here) or there.is_in(here):
            raise OptionError(
                f"the {file.what} {file.place} must not lie inside of the output {folder.place}; give another place"
            )
    for (one, here), (other, there) in combinations(written, 2):
        if here.is_same(there):
            raise OptionError(
                f"{one.place} would be the {one.what} and the {other.what}; give one of them another name"
            )


def _check_file(file: Named, there: _Where, source: Named, here: _Where) -> None:
    """Refuse a file to be written that is an input, or would lie in a zarr that is one."""
    if there.is_same(here):
        raise OutputError(
            f"the {file.what} {file.place} is the {source.what} itself; give the {file.what} another name"
        )
    if there.is_in(here) and _is_zarr(source.place):
        raise OutputError(
            f"the {file.what} {file.place} lies inside the {source.what} {source.place}; give another place"
        )


_LEDGER = "ledger"


def _check_folder(folder: Named, there: _Where, source: Named, here: _Where) -> None:
    """Refuse an output, or its ledger, that is an input, holds one, or lies in one."""
    if folder.what == _LEDGER:
        if here.is_same(there) or here.is_in(there):
            raise OutputError(
                f"the {source.what} {source.place} lies in {folder.place}, where isovoxel keeps what is done of the "
                "output; move it, or give another output"
            )
        return
    if there.is_same(here):
        raise OutputError(f"{folder.place} is the {source.what} itself; give another output")
    if here.is_in(there):
        raise OutputError(
            f"the {source.what} {source.place} lies inside the output {folder.place}; give another output"
        )
    if there.is_in(here):
        raise OutputError(
            f"the output {folder.place} lies inside the {source.what} {source.place}; give another output"
        )


class _Where:
    """Where a file or folder is, by whatever path; it need not be there."""

    def __init__(self, place: Place) -> None:
        self._object = place if isinstance(place, ObjectPlace) else None
        # unlike Path.resolve, this survives links that go round in circles
        self._path = None if self._object is not None else Path(os.path.realpath(str(place)))
        self._identity = _identity(self._path)
        self._above = dict.fromkeys(filter(None, map(_identity, self._parents())))

    def is_same(self, other: _Where) -> bool:
        """Tell whether this is the other."""
        if self._object is not None or other._object is not None:
            return self._object == other._object
        return self._path == other._path or (self._identity is not None and self._identity == other._identity)

    def is_in(self, other: _Where) -> bool:
        """Tell whether this lies in the other."""
        if self._object is not None or other._object is not None:
            if self._object is None or other._object is None:
                return False
            return self._object != other._object and self._object.is_relative_to(other._object)
        return other._path in self._parents() or other._identity in self._above

    def _parents(self) -> Sequence[Path]:
        return [] if self._path is None else list(self._path.parents)


def _identity(path: Path | None) -> tuple[int, int] | None:
    """Return what tells a file or folder from all others of this machine, or None where there is none."""
    if path is None:
        return None
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return (found.st_dev, found.st_ino) if found.st_ino else None


def _is_zarr(place: Place) -> bool:
    """Tell whether an input is a zarr, in which nothing else should lie."""
    return isinstance(place, Path) and any((place / name).is_file() for name in (*TOP, N5_ATTRIBUTES))
