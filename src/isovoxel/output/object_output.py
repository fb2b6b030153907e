"""Create and replace an output in an object store, whole or not at all.

A store renames nothing, so an old output cannot be kept until the new one is complete, and goes first: where it is
complete, only if the user says so. What makes a zarr of objects is the metadata at its top: they are written last and
deleted first. Whatever lies at the place in between is a remainder, of which a note in the ledger's folder tells, so
that the next process may delete it. Without such a note, nothing is ever deleted but an image.
"""

from __future__ import annotations

from collections.abc import Mapping

from isovoxel.errors import AddressError, OutputError, OutputExistsError
from isovoxel.object_store.addresses import place_of
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.object_store.zarr_nodes import TOP, is_zarr
from isovoxel.output.image_contents import check_image
from isovoxel.output.ledger_folder import NEW, NOW, REPLACED, check_folder
from isovoxel.output.object_shard_store import spool_folder
from isovoxel.output.provenance import is_unfinished
from isovoxel.planning.memory import human_bytes


def check_object_destination(
    target: ObjectPlace,
    *,
    overwrite: bool | str,
    source: str | None,
    nbytes: int,
    free: int,
    goes_on: bool,
    note: ObjectPlace,
) -> None:
    """Raise unless an output may be written to a place in a store; nothing is changed.

    Parameters
    ----------
    target
        Where the output shall be.
    overwrite, goes_on
        As `isovoxel.output.destination.check_destination` has it.
    source
        Path or address of the input, or None where it has none.
    nbytes
        Most bytes that wait for their upload on the disk of this machine at a time.
    free
        Bytes that are free there.
    note
        Where it is noted that the output is being made.
    """
    _check_apart(target, source)
    try:
        check_folder(note.parent)
        _check_place(target, note, overwrite=overwrite, goes_on=goes_on)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror}") from error
    if nbytes > free:
        raise OutputError(
            f"up to {human_bytes(nbytes)} wait for their upload at a time, but the disk of {spool_folder()} has "
            f"{human_bytes(free)} free; make room, name another folder in TMPDIR, or give less --memory"
        )


def check_writable(target: ObjectPlace) -> None:
    """Raise an `OutputError` where no output could be, whatever lies there; the store is not asked."""
    if target.read_only:
        raise OutputError(f"{target} can only be read; give a path, or an address such as s3://bucket/out.zarr")
    if not target.key:
        raise OutputError(f"{target} is a whole bucket; give the address of a new zarr in it, {target}/out.zarr")


def remove_objects(target: ObjectPlace, note: ObjectPlace) -> None:
    """Delete an old output; the metadata at its top first, so that it is never there in part.

    Parameters
    ----------
    target
        The output.
    note
        Where it is noted that it is being deleted.

    Raises
    ------
    OutputError
        If it is no image, or something else lies in it.
    OSError
        If the store refuses; what is left of it is deleted by who comes next.
    """
    if not target.is_dir():
        return
    if not (_noted(note) and not is_zarr(target)):
        _check_image(target)
    note.write(b"")
    for name in TOP:
        (target / name).unlink()
    target.delete_tree()


def place_metadata(target: ObjectPlace, metadata: Mapping[str, bytes], note: ObjectPlace | None) -> None:
    """Make an output without voxels of its metadata, those at its top last.

    Parameters
    ----------
    target
        The output.
    metadata
        What its objects hold, by their path.
    note
        Where it is noted that it is being made; a remainder of which none tells is not touched.

    Raises
    ------
    OutputExistsError
        If something is there.
    OSError
        If the store refuses.
    """
    if target.is_dir():
        if note is None or is_zarr(target) or not _noted(note):
            raise OutputExistsError(f"{target} exists; give --overwrite or another output")
        target.delete_tree()
    if note is not None:
        note.write(b"")
    for path in sorted(metadata, key=lambda path: (-path.count("/"), path in TOP)):
        (target / path).write(metadata[path])
    if note is not None:
        for name in (NEW, REPLACED):
            note.with_name(name).unlink()


def _check_apart(target: ObjectPlace, source: str | None) -> None:
    """Refuse an output that is the input, holds it, or lies inside it."""
    try:
        there = None if source is None else place_of(source)
    except AddressError:  # of an array of the caller's, which has no address
        return
    if not isinstance(there, ObjectPlace):
        return
    if there == target:
        raise OutputError(f"{target} is the input itself; give another output")
    for inner, outer in (("input", "output"), ("output", "input")):
        where = {"input": there, "output": target}
        if where[inner].is_relative_to(where[outer]):
            raise OutputError(f"the {inner} {where[inner]} lies inside the {outer} {where[outer]}; give another output")


def _check_place(target: ObjectPlace, note: ObjectPlace, *, overwrite: bool | str, goes_on: bool) -> None:
    """Refuse a place where something is that must not be replaced."""
    if not target.is_dir():
        if target.is_file():
            raise OutputExistsError(f"{target} is an object and no zarr; give another output")
        return
    if not is_zarr(target) and _noted(note):
        return
    if not overwrite and not goes_on:
        raise OutputExistsError(f"{target} exists; give --overwrite or another output")
    if goes_on:
        _check_zarr(target)
        return
    _check_image(target)
    if overwrite != NOW and not is_unfinished(target):
        raise OutputError(
            f"{target} lies in an object store, which cannot keep it elsewhere until the new one is complete; give "
            "--overwrite now to delete it first, or another output"
        )


def _check_image(target: ObjectPlace) -> None:
    _check_zarr(target)
    check_image(target)


def _check_zarr(target: ObjectPlace) -> None:
    if not is_zarr(target):
        raise OutputError(
            f"{target} holds objects but is no zarr, so --overwrite does not delete it; give another output"
        )


def _noted(note: ObjectPlace) -> bool:
    """Tell whether it is noted that an output is being made or deleted."""
    return any(note.with_name(name).find() is not None for name in (NEW, REPLACED))
