"""Output of several images: claim the groups around them, and verify each image, with its labels.

1. Each image is an output of its own, with its own ledger and lock, and is verified as it would be by itself. The
   groups around them have a lock, too, in the folder `OUT.zarr.isovoxel` beside them, and a note in the topmost one's
   attributes: whether all images are complete, which these are, and by which options they are made.
2. They are there, marked incomplete, before the first image is begun. A job that goes on with others of the same input
   adds these to the list; those that are neither asked for any more nor there leave it.
3. An old output is replaced as a whole, as `isovoxel.output.replacing` has it: it is kept until all images are
   complete, and comes back where the job ends before the first of them is begun.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isovoxel.errors import InputError, InputUnavailableError, OptionError, OutputError, OutputExistsError
from isovoxel.execution.output import clear_ledger, end_hold, settle_output
from isovoxel.execution.verify import NOTHING, Verdict, together, verify_output
from isovoxel.object_store.files import kind_of_node, refusal
from isovoxel.object_store.objects import Place, absolute, place_of, write_small
from isovoxel.output.attempt import Attempt
from isovoxel.output.destination import check_destination
from isovoxel.output.files import JOB, LOCK, NEW, NOW, claim, discard
from isovoxel.output.ledger import ledger_of
from isovoxel.output.lock import lock_output
from isovoxel.output.ome_zarr import create_several, write_groups
from isovoxel.output.provenance import COLLECTION, images_of_output, made_by, read_provenance
from isovoxel.output.replacing import labels_of, put_back, remove_objects, set_aside
from isovoxel.planning.chunking import OME_ZARR
from isovoxel.readers.files import unavailable
from isovoxel.readers.open import images_of
from isovoxel.readers.selection import ALL, ImageEntry, find_image, matching_images, means_several
from isovoxel.version import __version__


@dataclass(frozen=True)
class CollectionRequest:
    """An output of several images that a user asks for."""

    path: Place
    """Where."""
    source: str
    """Path or address of the input."""
    images: Sequence[str]
    """Paths of the images."""
    groups: Callable[[Sequence[str]], Mapping[str, Mapping[str, Any]]]
    """Returns the attributes of the groups around so many images."""
    options: Mapping[str, Any]
    """By which they are made, as JSON values."""
    overwrite: bool | str
    """Whether an output that is there is replaced; "now" if it goes before the new one is begun."""
    ome_zarr: str
    """Version of OME-Zarr."""
    nbytes: int
    """Bytes of all voxels."""
    waiting: int
    """Bytes of all voxels that are on their way to an object store at a time."""


def begun_with(path: Place, source: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that images of an output that is there were begun with; none where nothing is there.

    Parameters
    ----------
    path
        The output.
    source
        Path or address of the input.
    given
        Options that are given now, as JSON values.

    Raises
    ------
    OutputExistsError
        If it holds something else than images of this input, or something is given that differs.
    """
    made = made_by(path)
    if made is None:
        return {}
    said = made.get(COLLECTION)
    if not isinstance(said, Mapping):
        raise OutputExistsError(f"{path} exists, and is one image; give --overwrite or another output")
    then = said.get("options")
    if said.get("source") != source or not isinstance(then, Mapping):
        raise OutputExistsError(
            f"{path} exists, and was made of {said.get('source')}, now {source}: give --overwrite or another output"
        )
    changed = [
        f"{name.replace('_', ' ')} {then.get(name, 'its default')}, now {value}"
        for name, value in given.items()
        if then.get(name) != value
    ]
    if changed:
        raise OutputExistsError(
            f"{path} was begun with {'; '.join(changed)}: give what it was begun with to go on, --overwrite to begin "
            "anew, or another output"
        )
    return dict(then)


def check_collection(request: CollectionRequest) -> bool:
    """Return whether the groups are there already, and are gone on with; raise unless they may be written.

    Raises
    ------
    OutputError
        As `isovoxel.output.destination.check_destination`.
    """
    there = not request.overwrite and made_by(request.path) is not None
    check_destination(
        request.path,
        overwrite=request.overwrite,
        nbytes=0 if there else request.nbytes,  # of what is left, the job of each image knows
        waiting=request.waiting,
        goes_on=there,
        ome_zarr=request.ome_zarr,
    )
    return there


@contextlib.contextmanager
def claim_collection(request: CollectionRequest) -> Iterator[Callable[[], None]]:
    """Hold the groups around the images for this process; yield what marks them complete.

    Raises
    ------
    OutputError
        If they must not or cannot be written, or another process is at it.
    """
    path = request.path
    folder = ledger_of(path)
    check_collection(request)  # before anything is written, the lock's file too
    with lock_output(folder / LOCK, path) as lock:
        attempt = Attempt(absolute(folder / LOCK), lock.word, path)
        new = False
        try:
            settle_output(path, folder, locked=True)
            new = not check_collection(request)
            try:
                if new:
                    _begin(request, folder, attempt)
                listed = _listed(request)
                said = {COLLECTION: {"source": request.source, "images": listed, "options": dict(request.options)}}
                write_groups(path, request.groups(listed), said | {"complete": False}, attempt.check)
            except OSError as error:
                if isinstance(error, OutputError):
                    raise
                raise OutputError(refusal(error, path)) from error
            yield lambda: _complete(request, listed, attempt)
        finally:
            ours = end_hold(path, attempt)
            with contextlib.suppress(InputUnavailableError, OutputError):
                if ours and new and not any(kind_of_node(path / image) for image in request.images):
                    _take_back(path, folder)
                if ours:
                    settle_output(path, folder, locked=True)
                    clear_ledger(path, folder)


def _begin(request: CollectionRequest, folder: Place, attempt: Attempt) -> None:
    """Take an old output away, and make the topmost group."""
    path, check = request.path, attempt.check
    token = uuid.uuid4().hex  # tells this output from the one that it replaces
    claim(folder)
    check()
    write_small(folder / JOB, json.dumps({"fingerprint": token}).encode())
    if request.overwrite:
        set_aside(path, folder, now=request.overwrite == NOW, check=check)
    made = {"version": __version__, "fingerprint": token, COLLECTION: {"images": []}}
    create_several(path, made, OME_ZARR[request.ome_zarr], folder / NEW)


def _listed(request: CollectionRequest) -> list[str]:
    """Return all images that are asked for, or there, in the order in which they came."""
    made = made_by(request.path) or {}
    before = [image for image in made[COLLECTION]["images"] if kind_of_node(request.path / image) == "group"]
    return list(dict.fromkeys([*before, *request.images]))


def _complete(request: CollectionRequest, images: Sequence[str], attempt: Attempt) -> None:
    """Mark the groups complete, if each image is: one of an earlier job may not be."""
    made = [made_by(request.path / image) for image in images]
    if all(one is not None and one.get("complete") for one in made):
        write_groups(request.path, request.groups(images), {"complete": True}, attempt.check)


def _take_back(path: Place, folder: Place) -> None:
    """Remove groups around nothing, and put the old output back that they would have replaced."""
    if isinstance(path, Path) and isinstance(folder, Path):
        if not put_back(path, folder) and path.is_dir():
            discard(path, folder)
    elif not isinstance(path, Path) and not isinstance(folder, Path):
        remove_objects(path, folder / NEW)


def verify_images(output: str | Path, against: Any, image: str | int | None, **how: Any) -> Verdict:
    """Compare an output and its labels with their sources; of several images those that are meant, one after the other.

    Parameters
    ----------
    output, against
        As in `isovoxel.verify`.
    image
        Which images, as in `isovoxel.verify`.
    **how
        As in `isovoxel.execution.verify.verify_output`.

    Raises
    ------
    IsovoxelError
        As `isovoxel.verify`; also if an image is not there, or incomplete.
    """
    place = place_of(output)
    paths = images_of_output(place)
    if paths is None:
        if image is not None:
            raise OptionError(f"{output} is no output of several images; leave out image")
        found = _verified(".", output, against, how)
        return _of_images(found) if len(found) > 1 else found["."]
    entries, top = [ImageEntry(path) for path in paths], str(read_provenance(place)[COLLECTION].get("source"))
    wanted = ALL if image is None else str(image).strip("/")
    several = means_several(wanted)
    meant = matching_images(entries, wanted, str(output)) if several else [find_image(entries, wanted, str(output))]
    found = {}
    for entry in meant:
        part = place / entry.path
        found |= _verified(entry.path, str(part), _source_of(against, part, top), how)
    if not several:
        return _of_images(found) if len(found) > 1 else found[meant[0].path]
    verdict = _of_images(found)
    return replace(verdict, metadata_changes=(*_group_changes(str(place), paths), *verdict.metadata_changes))


def _verified(path: str, image: str | Path, against: Any, how: Mapping[str, Any]) -> dict[str, Verdict]:
    """Verify an image, and the labels in it that isovoxel has written; return what was found by their paths."""
    found, place = {path: verify_output(image, against, **how)}, place_of(image)
    try:
        labels = labels_of(place)
    except OSError as error:
        raise unavailable(f"the labels of {image} cannot be listed", error) from error
    return found | {each if path == "." else f"{path}/{each}": _of_labels(place / each, how) for each in labels}


def _of_labels(labels: Place, how: Mapping[str, Any]) -> Verdict:
    """Verify labels beside an image; where their source cannot be read, all but their voxels."""
    try:
        return verify_output(str(labels), None, **how)
    except InputError as error:
        reason = f"{error} when verifying {labels}"
    try:
        return replace(verify_output(str(labels), None, **how, compared=False), uncompared=reason)
    except InputUnavailableError:
        raise
    except InputError as error:  # they are incomplete, say
        return replace(NOTHING, metadata_changes=(str(error),))


def _group_changes(output: str, images: Sequence[str]) -> Iterator[str]:
    """Yield what the groups around images list otherwise than these lie, a sentence each."""
    try:
        found = images_of(output)
    except InputUnavailableError:
        raise
    except InputError as error:
        yield str(error)
        return
    listed = [entry.path for entry in found.images if entry.path in images]
    yield from (f"the groups do not list the image {path}, and must" for path in images if path not in listed)
    if found.plate is None:
        if not found.wells and sorted(listed) == sorted(images) and listed != list(images):
            yield f"the groups list the images {', '.join(listed)}, and must list {', '.join(images)}"
        return
    rows, columns, wells = (_listed_in(found.plate, key) for key in ("rows", "columns", "wells"))
    names = [[entry.get("name") for entry in entries] for entries in (rows, columns)]
    for well in wells:
        path = str(well.get("path"))
        if not any(image.startswith(f"{path}/") for image in images):
            continue
        said = [well.get("rowIndex"), well.get("columnIndex")]
        parts = zip(path.split("/"), names, strict=False)
        must = [own.index(part) if part in own else None for part, own in parts]
        if said != must:
            row, column = ("none" if index is None else index for index in must)
            at = f"the plate has the well {path} in row {said[0]} and column {said[1]}"
            yield f"{at}, and must have it in row {row} and column {column}"


def _listed_in(plate: Any, key: str) -> list[Mapping[str, Any]]:
    """Return the objects that a plate lists under a key."""
    listed = plate.get(key) if isinstance(plate, Mapping) else None
    return [entry for entry in (listed if isinstance(listed, list) else ()) if isinstance(entry, Mapping)]


def _source_of(against: Any, image: Place, top: str) -> Any:
    """Return where the source of an image is, where the caller says where that of all is, which lay at `top`."""
    if against is None:
        return None
    try:
        path = read_provenance(image)["input"]["identity"]["path"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{image} does not say in its attributes how isovoxel made it") from error
    return f"{against}{str(path).removeprefix(top)}"


def _of_images(found: Mapping[str, Verdict]) -> Verdict:
    """Return what was found of several images, with the first fault."""
    every = list(found.values())
    first = next((one for one in every if not one.holds), every[0])

    def known(name: str) -> int | None:
        counts = [value for one in every if (value := getattr(one, name)) is not None]
        return sum(counts) if counts else None

    return replace(
        first,
        **together(every),
        off_allowed=any(one.off_allowed for one in every),
        metadata_changes=tuple(f"image {path}: {said}" for path, one in found.items() for said in one.metadata_changes),
        uncompared="; ".join(one.uncompared for one in every if one.uncompared),
        source_changes=tuple(dict.fromkeys(change for one in every for change in one.source_changes)),
        projected=max(one.projected for one in every),
        allowed=max(one.allowed for one in every),
        receipts=known("receipts"),
        chunks=known("chunks"),
        decoder=max((one.decoder for one in every if one.decoder), default=None),  # "gpu" before "cpu"
        decoded_by_processor=next((one.decoded_by_processor for one in every if one.decoded_by_processor), ""),
        images=dict(found),
    )
