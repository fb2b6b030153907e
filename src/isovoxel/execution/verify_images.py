"""Verify an output of one image, or of several: each as it would be by itself, and what was found of all together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from isovoxel.errors import InputError, OptionError
from isovoxel.execution.verify import Verdict, verify_output
from isovoxel.object_store.addresses import Place, place_of
from isovoxel.output.provenance import COLLECTION, images_of_output, read_provenance
from isovoxel.readers.selection import ALL, ImageEntry, find_image, matching_images, means_several


def verify_images(output: str | Path, against: Any, image: str | int | None, **how: Any) -> Verdict:
    """Compare an output with its source; of several images those that are meant, one after the other.

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
        return verify_output(output, against, **how)
    entries, top = [ImageEntry(path) for path in paths], str(read_provenance(place)[COLLECTION].get("source"))
    wanted = ALL if image is None else str(image).strip("/")
    if not means_several(wanted):
        path = find_image(entries, wanted, str(output)).path
        return verify_output(str(place / path), _source_of(against, place / path, top), **how)
    found: dict[str, Verdict] = {}
    for entry in matching_images(entries, wanted, str(output)):
        part = place / entry.path
        found[entry.path] = verify_output(str(part), _source_of(against, part, top), **how)
    return together(found)


def _source_of(against: Any, image: Place, top: str) -> Any:
    """Return where the source of an image is, where the caller says where that of all is, which lay at `top`."""
    if against is None:
        return None
    try:
        path = read_provenance(image)["input"]["identity"]["path"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{image} does not say in its attributes how isovoxel made it") from error
    return f"{against}{str(path).removeprefix(top)}"


def together(found: Mapping[str, Verdict]) -> Verdict:
    """Return what was found of several images: sums, the largest errors, and the first fault."""
    every = list(found.values())
    voxels = max(1, sum(one.voxels for one in every))
    first = next((one for one in every if not one.holds), every[0])
    jump = max(every, key=lambda one: one.face_jump - one.jump_allowed)

    def known(name: str) -> int | None:
        counts = [value for one in every if (value := getattr(one, name)) is not None]
        return sum(counts) if counts else None

    return replace(
        first,
        samples=sum(one.samples for one in every),
        voxels=sum(one.voxels for one in every),
        largest_error=max(one.largest_error for one in every),
        mean_error=sum(one.mean_error * one.voxels for one in every) / voxels,
        off_share=sum(one.off_share * one.voxels for one in every) / voxels,
        off_allowed=any(one.off_allowed for one in every),
        wrong=sum(one.wrong for one in every),
        faces=sum(one.faces for one in every),
        face_jump=jump.face_jump,
        inner_jump=jump.inner_jump,
        jump_allowed=jump.jump_allowed,
        missing_shards=sum(one.missing_shards for one in every),
        unreadable=sum(one.unreadable for one in every),
        source_changes=tuple(dict.fromkeys(change for one in every for change in one.source_changes)),
        projected=max(one.projected for one in every),
        receipts=known("receipts"),
        chunks=known("chunks"),
        damaged=sum(one.damaged for one in every),
        images=dict(found),
    )
