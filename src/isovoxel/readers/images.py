"""Images of an input that holds several (a plate, a collection, a file of several positions), and which are meant.

An image is named by its path in the input ("A/1/0" in a plate, "0" in a file), by its number in the input's order, or
by the name that the input gives it: the first of these that there is. "all" and patterns of `fnmatch` mean several.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from isovoxel.errors import OptionError

ALL = "all"
"""Means each image of an input."""

MOST_LISTED = 8
"""How many images a message lists."""


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One of an input's images."""

    path: str
    """Its path in the input, or its number in a file; its path in an output of several images, too."""
    label: str = ""
    """What the input calls it, where it does."""

    def __str__(self) -> str:
        return f"{self.path} ({self.label})" if self.label else self.path


@dataclass(frozen=True)
class Collection:
    """The images of an input, and how they belong together."""

    images: tuple[ImageEntry, ...]
    """In the input's order. A well that is listed and not there is one that cannot be opened."""
    plate: Mapping[str, Any] | None = None
    """Of a plate, what OME-Zarr's attribute says of it."""
    wells: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of each well its attribute, by its path; an empty path means that the input is that well."""


def means_several(image: str | int | None) -> bool:
    """Return whether an option means several images: all, or those of a pattern.

    Examples
    --------
    >>> [means_several(image) for image in ("all", "A/*/0", "A/1/0", 2, None)]
    [True, True, False, False, False]
    """
    return isinstance(image, str) and (image == ALL or re.search(r"[*?\[]", image) is not None)


def find_image(images: Sequence[ImageEntry], wanted: str, name: str) -> ImageEntry:
    """Return the image that is meant.

    Parameters
    ----------
    images
        Those that there are.
    wanted
        A path, a number or a name.
    name
        What the user called the input.

    Raises
    ------
    OptionError
        If there is none, or several have this name.
    """
    for image in images:
        if image.path == wanted:
            return image
    if wanted.isdecimal() and int(wanted) < len(images) and not all(image.path.isdecimal() for image in images):
        return images[int(wanted)]
    found = [image for image in images if image.label == wanted]
    if len(found) > 1:
        raise OptionError(f"{name} has {len(found)} images called {wanted}: give --image {listed(found)}")
    if not found:
        raise OptionError(f"{name} has no image {wanted}; it has {listed(images)}")
    return found[0]


def matching_images(images: Sequence[ImageEntry], pattern: str, name: str) -> tuple[ImageEntry, ...]:
    """Return the images whose path or name a pattern matches; all of them for "all".

    Raises
    ------
    OptionError
        If there is none.
    """
    found = tuple(one for one in images if pattern == ALL or _matches(one, pattern))
    if not found:
        raise OptionError(f"no image of {name} matches {pattern}; it has {listed(images)}")
    return found


def _matches(image: ImageEntry, pattern: str) -> bool:
    return any(fnmatchcase(text, pattern) for text in (image.path, image.label) if text)


def listed(images: Iterable[ImageEntry]) -> str:
    """Return the first images, for messages."""
    found = list(map(str, images))
    more = f" and {len(found) - MOST_LISTED} more" if len(found) > MOST_LISTED else ""
    return (", ".join(found[:MOST_LISTED]) or "none") + more
