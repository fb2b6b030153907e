"""What does an output say of what made it? One of its group's attributes, read without loading zarr."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from isovoxel.errors import InputError

PROVENANCE = "isovoxel"
"""The group's attribute that says what made it, and whether it is complete."""


def read_provenance(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what an output's attributes say of what made it, and whether it is complete.

    Raises
    ------
    InputError
        If it is no output of isovoxel.
    """
    try:
        metadata = json.loads((Path(path) / "zarr.json").read_bytes())
        provenance = metadata["attributes"][PROVENANCE]
    except (OSError, ValueError, KeyError, TypeError):
        provenance = None
    if not isinstance(provenance, dict):
        raise InputError(f"{path} was not written by isovoxel: its attributes do not say what made it")
    return provenance
