"""Provenance of an output: an attribute of its group, read without loading zarr."""

from __future__ import annotations

import os
from typing import Any

from isovoxel.errors import InputError, InputUnavailableError
from isovoxel.object_store.addresses import Place, place_of
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.object_store.zarr_nodes import read_attributes

PROVENANCE = "isovoxel"
"""The group's attribute that says what made it, and whether it is complete."""
RECEIPTS = "receipts"
"""Says there that the receipts of all shards are kept, in the ledger's folder, when the output is complete."""

EMPTY_SHARDS = "empty_shards"
"""Says there, by the levels that have any, which shards are empty, and so no files: how many, and bits, as
`isovoxel.output.empty_shards` makes them."""


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
    except (ValueError, AttributeError, KeyError, TypeError):
        provenance = None
    if not isinstance(provenance, dict):
        raise InputError(f"{path} was not written by isovoxel: its attributes do not say what made it")
    return provenance | {"complete": provenance.get("complete") is True}


def is_complete(path: Place) -> bool:
    """Tell whether an output is isovoxel's and complete."""
    return _said_complete(path) is True


def has_receipts(path: Place) -> bool:
    """Tell whether an output is complete and the receipts of its shards were kept."""
    return is_complete(path) and read_provenance(path).get(RECEIPTS) is True


def is_unfinished(path: Place) -> bool:
    """Tell whether an output is isovoxel's and not complete.

    Raises
    ------
    InputUnavailableError
        If a store does not say.
    """
    return _said_complete(path) is False


def _said_complete(path: Place) -> bool | None:
    """Return whether an output says that it is complete; None where it is none of isovoxel's."""
    try:
        return bool(read_provenance(path).get("complete"))
    except InputUnavailableError:
        raise
    except InputError:
        return None
