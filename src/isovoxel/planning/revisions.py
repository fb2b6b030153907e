"""Revisions of the algorithms that make voxels: raised when bits change, and only then.

A fingerprint holds the revision of what makes a plan's voxels, not the version of isovoxel. So a release resumes the
jobs of those before, and recognises their outputs, unless it would make other bits.

Whoever changes the bits of an algorithm appends a `Change` to `CHANGES`, which says of which plans. The revision of a
plan is 1, that of version 0.1, and one more for each change that concerns it. `tests/engines/test_revisions.py` pins
the bits of every algorithm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isovoxel.planning.plan import Plan


@dataclass(frozen=True)
class Change:
    """A change of the bits that some plans make."""

    what: str
    """What is other than before, in a clause."""
    concerns: Callable[[Plan], bool]
    """Tells whether a plan makes other bits since: by engine, interpolation, boundary, dtype, factor."""


CHANGES: tuple[Change, ...] = ()
"""All changes since 0.1, in their order; one is never removed."""


def revision_of(plan: Plan) -> int:
    """Return the revision of what makes a plan's voxels today."""
    return 1 + sum(change.concerns(plan) for change in CHANGES)
