"""May the output be written there? Asked before anything is written, answered with nothing or one sentence.

What must not happen is that `--overwrite` deletes something else than an old output: it removes a folder only
if that is a zarr by its own metadata, never through a link, and never one that holds the input or lies in it.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from isovoxel.errors import OutputError, OutputExistsError
from isovoxel.places.address import is_address
from isovoxel.places.objects import ObjectPlace
from isovoxel.places.place import Place, place_of
from isovoxel.planning.cost import human_bytes
from isovoxel.store.ledger import ledger_for
from isovoxel.store.ledger_folder import NEW, check_folder
from isovoxel.store.membership import Membership, membership_of
from isovoxel.store.object_output import TOP, check_object_destination, check_writable, remove_objects
from isovoxel.store.object_shelf import spool_folder


def check_destination(
    path: str | os.PathLike[str] | ObjectPlace,
    *,
    overwrite: bool,
    source_identity_path: str | None,
    nbytes: int,
    waiting: int = 0,
    goes_on: bool = False,
    ome_zarr: str = "0.5",
    labels: bool = False,
) -> None:
    """Raise unless an output may be written to `path`; nothing is changed.

    Parameters
    ----------
    path
        Where the output shall be: a new folder in one that exists, or in a zarr group, or a place in an object store.
    overwrite
        Whether an old output there may be replaced.
    source_identity_path
        Path or address of the input, or None where it has none.
    nbytes
        Bytes of all voxels that are to be written. The disk must have them free before compression, for nobody
        knows how well a volume compresses before it is made.
    waiting
        Bytes of all voxels that are on their way to an object store at a time; the disk where they wait must have
        them free. What a store has is not known.
    goes_on
        Whether what is there is the output itself, whose job goes on.
    ome_zarr
        Version of OME-Zarr that shall be written.
    labels
        Whether it is an image of labels.

    Raises
    ------
    OutputExistsError
        If something is there and `overwrite` is not given.
    OutputError
        If something is there that must not be deleted, or nothing can be written there, or not enough.
    """
    target = output_place(path)
    if isinstance(target, ObjectPlace):
        store = membership_of(target)
        objects = ledger_for(target, store)
        assert isinstance(objects, ObjectPlace)  # noqa: S101 - for type checkers
        check_object_destination(
            target,
            overwrite=overwrite,
            source=source_identity_path,
            nbytes=min(nbytes, waiting),
            free=shutil.disk_usage(spool_folder()).free,
            goes_on=goes_on,
            note=objects / NEW,
        )
        if store is not None:
            store.check(ome_zarr, labels=labels)
        return
    try:
        if source_identity_path is not None and not is_address(source_identity_path):
            _check_apart(target, Path(source_identity_path))
        if (store := membership_of(target)) is not None:
            store.check(ome_zarr, labels=labels)
        home = _home(target, store)
        ledger = ledger_for(target, store)
        check_folder(ledger)
        beside = Path(str(ledger.parent))
        reusable = _check_place(target, [home, beside], overwrite=overwrite, goes_on=goes_on)
        free = shutil.disk_usage(home).free + reusable
    except OutputError:
        raise
    except OSError as error:
        # such as a name that is too long, or a folder that must not be looked into
        raise OutputError(f"{target} cannot be written: {error.strerror}") from error
    if nbytes > free:
        raise OutputError(
            f"the output takes up to {human_bytes(nbytes)}, before compression, but the disk of {target} has "
            f"{human_bytes(free)} free; make room, or choose another disk or a smaller factor"
        )


def check_replaceable(target: Path) -> None:
    """Raise an `OutputError` unless what is at `target` is a zarr itself, and no link to one."""
    if target.is_symlink():
        raise OutputError(
            f"{target} is a link to {target.readlink()}, which --overwrite does not follow; "
            f"give the path it leads to, or another output"
        )
    if not target.is_dir():
        raise OutputError(f"{target} is a file and no zarr, so --overwrite does not delete it; give another output")
    if not any(_names_format(target / name, formats) for name, formats in TOP.items()):
        raise OutputError(f"{target} is a folder but no zarr, so --overwrite does not delete it; give another output")


def remove(target: Place, by_way_of: Place) -> None:
    """Delete an old output, if there is one: moved out of its place at once, so that it is never there in part.

    What groups above say of it in one piece goes first.

    Parameters
    ----------
    target
        The output.
    by_way_of
        A path on the same file system, where it is deleted. In an object store, where that is noted meanwhile.

    Raises
    ------
    OutputError
        If it is no zarr.
    OSError
        If the file system refuses.
    """
    if isinstance(target, ObjectPlace) or isinstance(by_way_of, ObjectPlace):
        if isinstance(target, ObjectPlace) and isinstance(by_way_of, ObjectPlace):
            _forget(target)
            remove_objects(target, by_way_of)
        return
    if not os.path.lexists(target):
        return
    check_replaceable(target)
    _forget(target)
    shutil.rmtree(by_way_of, ignore_errors=True)
    target.rename(by_way_of)
    shutil.rmtree(by_way_of)


def _forget(target: Place) -> None:
    if (store := membership_of(target)) is not None:
        store.forget()


def output_place(path: str | os.PathLike[str] | ObjectPlace) -> Place:
    """Return the place of an output that could be made.

    Raises
    ------
    OutputError
        If it has no name, or lies where nothing can be written.
    AddressError
        If it is an address that isovoxel cannot use.
    """
    target = place_of(path)
    if isinstance(target, ObjectPlace):
        check_writable(target)
    elif not str(path) or "\0" in str(path) or target.name in ("", ".."):
        raise OutputError(f"{os.fspath(target)!r} is no name for an output; give the path of a new folder")
    return target


def _check_apart(target: Path, source: Path) -> None:
    """Refuse an output that is the input, holds it, or lies inside it, whatever they are called."""
    # unlike Path.resolve, this survives links that go round in circles
    there, here = Path(os.path.realpath(target)), Path(os.path.realpath(source))
    if there == here or (target.exists() and source.exists() and target.samefile(source)):
        raise OutputError(f"{target} is the input itself; give another output")
    if here.is_relative_to(there):
        raise OutputError(f"the input {source} lies inside the output {target}; give another output")
    if there.is_relative_to(here):
        raise OutputError(f"the output {target} lies inside the input {source}; give another output")


def _home(target: Path, store: Membership | None) -> Path:
    """Return the folder in which the output, or the first group on the way to it, is made."""
    home = target.parent if store is None else Path(str(store.groups[0]))
    if not home.exists():
        raise OutputError(f"the folder {home} for the output {target.name} does not exist; create it first")
    if not home.is_dir():
        raise OutputError(f"{target} cannot be written, because {home} is no folder")
    return home


def _check_place(target: Path, folders: list[Path], *, overwrite: bool, goes_on: bool) -> int:
    """Refuse a place where nothing can be made or replaced; return the bytes that replacing gives back.

    Parameters
    ----------
    target, overwrite, goes_on
        As in `check_destination`.
    folders
        Those in which something must be made.
    """
    reusable = 0
    try:
        target.lstat()
    except FileNotFoundError:
        pass
    else:
        if not overwrite and not goes_on:
            raise OutputExistsError(f"{target} exists; give --overwrite or another output")
        check_replaceable(target)
        reusable = 0 if goes_on else _bytes_on_disk(target)
        folders = [*folders, target]
    for folder in folders:
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"{target} cannot be written, because writing to {folder} is not permitted")
    return reusable


def _names_format(path: Path, formats: tuple[int, ...]) -> bool:
    """Tell whether a file is zarr metadata of one of these formats."""
    try:
        metadata = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(metadata, dict) and metadata.get("zarr_format") in formats


def _bytes_on_disk(folder: Path) -> int:
    """Return the bytes that deleting a folder gives back."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            info = Path(root, name).lstat()
            # Where the system tells, what is allocated counts: files may have holes.
            total += info.st_blocks * 512 if hasattr(info, "st_blocks") else info.st_size
    return total
