"""Check whether an output may be written at a place, before anything is; the answer is nothing, or one sentence.

What must not happen is that `--overwrite` replaces something else than an old output: that is an image by its own
metadata and nothing else, never reached through a link, and never holds the input or lies in it. In an object store,
which cannot keep an old output until the new one is complete, one that is complete goes only if the user says so.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path, PurePath
from typing import NamedTuple

from isovoxel.errors import OutputError, OutputExistsError
from isovoxel.object_store.files import is_zarr
from isovoxel.object_store.objects import ObjectPlace, Place, place_of
from isovoxel.output.files import NEW, NOW, REPLACED, check_folder
from isovoxel.output.ledger import ledger_for
from isovoxel.output.provenance import Membership, is_unfinished, membership_of
from isovoxel.output.replacing import bytes_on_disk, check_image, check_kept, check_zarr, is_noted
from isovoxel.output.shard_store import spool_folder
from isovoxel.planning.memory import human_bytes


def check_destination(
    path: str | os.PathLike[str] | ObjectPlace,
    *,
    overwrite: bool | str,
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
        Whether an old output there may be replaced; "now" if it need not be kept until the new one is complete.
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
    if not goes_on and (found := _OTHER.search(str(target))) and not _is_there(target):
        name = PurePath(str(target)[: found.start()]).name.removesuffix(".zarr") or "out"
        raise OutputError(
            f"{target} is called like a {found[1]} file, but an output is OME-Zarr, which is a folder; "
            f"call it {name}.zarr"
        )
    if isinstance(target, ObjectPlace):
        store = membership_of(target)
        folder = ledger_for(target, store)
        assert isinstance(folder, ObjectPlace)  # noqa: S101 - for type checkers
        try:
            check_folder(folder)
            _check_object_place(target, folder / NEW, overwrite=overwrite, goes_on=goes_on)
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"{target} cannot be written: {error.strerror}") from error
        waiting, free = min(nbytes, waiting), shutil.disk_usage(spool_folder()).free
        if waiting > free:
            raise OutputError(
                f"up to {human_bytes(waiting)} wait for their upload at a time, but the disk of {spool_folder()} has "
                f"{human_bytes(free)} free; make room, name another folder in TMPDIR, or give less --memory"
            )
        if store is not None:
            store.check(ome_zarr, labels=labels)
        return
    try:
        if (store := membership_of(target)) is not None:
            store.check(ome_zarr, labels=labels)
        home = _home(target, store)
        ledger = Path(str(ledger_for(target, store)))
        check_folder(ledger)
        beside = ledger.parent
        old = _check_place(target, [home, beside], ledger, overwrite=overwrite, goes_on=goes_on)
        free = shutil.disk_usage(home).free
    except OutputError:
        raise
    except OSError as error:
        # such as a name that is too long, or a folder that must not be looked into
        raise OutputError(f"{target} cannot be written: {error.strerror}") from error
    _check_room(target, nbytes, free, old, now=overwrite == NOW)


def _check_room(target: Path, nbytes: int, free: int, old: _Old, *, now: bool) -> None:
    """Refuse an output that its disk has no room for, beside the old one that is kept until this one is complete."""
    free += old.unfinished + (old.kept if now else 0)
    if nbytes <= free:
        return
    needed = f"the output takes up to {human_bytes(nbytes)}, before compression, but the disk of {target} has "
    if not now and nbytes <= free + old.kept:
        raise OutputError(
            f"{needed}{human_bytes(free)} free beside the {human_bytes(old.kept)} of the old one, which is kept until "
            "the new one is complete; make room, or say --overwrite now, which deletes the old one first"
        )
    raise OutputError(f"{needed}{human_bytes(free)} free; make room, or choose another disk or a smaller factor")


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
        if target.read_only:
            raise OutputError(f"{target} can only be read; give a path, or an address such as s3://bucket/out.zarr")
        if not target.key:
            raise OutputError(f"{target} is a whole bucket; give the address of a new zarr in it, {target}/out.zarr")
    elif not str(path) or "\0" in str(path) or target.name in ("", ".."):
        raise OutputError(f"{os.fspath(target)!r} is no name for an output; give the path of a new folder")
    return target


def _is_there(target: Place) -> bool:
    try:
        return target.is_dir() if isinstance(target, ObjectPlace) else os.path.lexists(target)
    except OSError:  # which is said by what looks closer
        return True


def _home(target: Path, store: Membership | None) -> Path:
    """Return the folder in which the output, or the first group on the way to it, is made."""
    home = target.parent if store is None else Path(str(store.groups[0]))
    if not home.exists():
        raise OutputError(f"the folder {home} for the output {target.name} does not exist; create it first")
    if not home.is_dir():
        raise OutputError(f"{target} cannot be written, because {home} is no folder")
    return home


_OTHER = re.compile(
    r"(\.(?:tiff?|btf|tf[28]|lsm|stk|h5|he5|hdf5?|ims|nii(?:\.gz)?|hdr|img|np[yz]|n5|czi|lif|nd2|dv|oi[bf]|vsi|mrc|map|"
    r"nrrd|nhdr|mh[ad]|vt[ik]|raw|klb|jp2|png|jpe?g|svg|gif|bmp|zip|ozx|tar|gz|html?|json|toml|xml|txt|csv|mat|pdf))"
    r"(?::.*)?/?$",
    re.IGNORECASE,
)
"""How names of files end that hold images, or what goes along with them."""


class _Old(NamedTuple):
    """Bytes of what lies at an output's place, or was replaced before."""

    kept: int = 0
    """Of what is kept until the new output is complete."""
    unfinished: int = 0
    """Of what is deleted before the new one is begun, since something older is kept."""


def _check_place(target: Path, folders: list[Path], ledger: Path, *, overwrite: bool | str, goes_on: bool) -> _Old:
    """Refuse a place where nothing can be made or replaced; return what replacing keeps, and what it deletes."""
    old = _Old()
    try:
        target.lstat()
    except FileNotFoundError:
        pass
    else:
        if not overwrite and not goes_on:
            zarr = is_zarr(target) and not target.is_symlink()  # nothing else is replaced
            raise OutputExistsError(f"{target} exists; give {'--overwrite or ' if zarr else ''}another output")
        if goes_on:
            check_zarr(target)
        else:
            there = check_image(target)
            check_kept(target, ledger)
            before = bytes_on_disk(ledger / REPLACED)
            old = _Old(before, there) if before else _Old(there)
        folders = [*folders, target]
    for folder in folders:
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"{target} cannot be written, because writing to {folder} is not permitted")
    return old


def _check_object_place(target: ObjectPlace, note: ObjectPlace, *, overwrite: bool | str, goes_on: bool) -> None:
    """Refuse a place where something is that must not be replaced."""
    if not target.is_dir():
        if target.is_file():
            raise OutputExistsError(f"{target} is an object and no zarr; give another output")
        return
    if not is_zarr(target) and is_noted(note):
        return
    if not overwrite and not goes_on:
        raise OutputExistsError(f"{target} exists; give --overwrite or another output")
    check_zarr(target)
    if goes_on:
        return
    check_image(target)
    if overwrite != NOW and not is_unfinished(target):
        raise OutputError(
            f"{target} lies in an object store, which cannot keep it elsewhere until the new one is complete; give "
            "--overwrite now to delete it first, or another output"
        )
