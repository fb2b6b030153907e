"""Provenance of an output: an attribute of its group says what made it, read without loading zarr."""

from __future__ import annotations

import os
from typing import Any

from isovoxel.errors import InputError, InputUnavailableError
from isovoxel.metadata.series import stays_inside
from isovoxel.object_store.objects import ObjectPlace, Place, place_of
from isovoxel.object_store.zarr_nodes import read_attributes

PROVENANCE = "isovoxel"
"""The group's attribute that says what made it, and whether it is complete."""
RECEIPTS = "receipts"
"""Says there that the receipts of all shards are kept, in the ledger's folder, when the output is complete."""

COLLECTION = "collection"
"""Says there, of the topmost group of several images, which: their paths, what they are made of, by which options."""


def read_provenance(path: str | os.PathLike[str] | ObjectPlace) -> dict[str, Any]:
    """Return what an output's attributes say of what made it, and whether it is complete.

    Raises
    ------
    InputError
        If it is no output of isovoxel.
    InputUnavailableError
        If a store does not say.
    """
    path = place_of(path)
    try:
        provenance = read_attributes(path)[PROVENANCE]
    except OSError as error:
        # A store that is out of reach may hold it none the less; what it hides, it would not let us write either.
        if isinstance(path, ObjectPlace) and not isinstance(error, FileNotFoundError | PermissionError):
            raise InputUnavailableError(error.errno, f"{path} cannot be read: {error.strerror}") from error
        provenance = None
    except (ValueError, KeyError):
        provenance = None
    if not isinstance(provenance, dict):
        raise InputError(f"{path} was not written by isovoxel: its attributes do not say what made it")
    return provenance | {"complete": provenance.get("complete") is True}


def made_by(path: Place) -> dict[str, Any] | None:
    """Return what an output's attributes say of what made it, or None where it is none of isovoxel's.

    Raises
    ------
    InputUnavailableError
        If a store does not say.
    """
    try:
        return read_provenance(path)
    except InputUnavailableError:
        raise
    except InputError:
        return None


def images_of_output(path: Place) -> list[str] | None:
    """Return the paths of the images of an output of several; None of any other.

    Raises
    ------
    InputUnavailableError
        If a store does not say.
    """
    said = (made_by(path) or {}).get(COLLECTION)
    images = said.get("images") if isinstance(said, dict) else None
    if not isinstance(images, list):
        return None
    return [image for image in images if isinstance(image, str) and stays_inside(image)]


def is_complete(path: Place) -> bool:
    """Return whether an output is isovoxel's and complete."""
    made = made_by(path)
    return made is not None and made["complete"]


def is_unfinished(path: Place) -> bool:
    """Return whether an output is isovoxel's and not complete."""
    made = made_by(path)
    return made is not None and not made["complete"]


def has_receipts(path: Place) -> bool:
    """Return whether an output is complete and the receipts of its shards were kept."""
    made = made_by(path)
    return made is not None and made["complete"] and made.get(RECEIPTS) is True
