"""In which order do the files of a folder make a volume, and is one of them missing?

By the numbers in their names, as people count: img2 comes before img10. All names must be alike but for their
numbers, and one of these must count the slices. Where two vary without order (channels and planes, say), nobody can
know what z is, and a wrong guess would look like an image all the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from isovoxel.errors import InputError

MOST_GAPS = 3
"""How many gaps a note lists."""

_NUMBER = re.compile(r"([0-9]+)")


def in_order(name: str, files: Sequence[str]) -> tuple[list[str], str]:
    """Put the paths of slices into their natural order.

    Parameters
    ----------
    name
        What the user called them together, for messages.
    files
        Their paths, at least one.

    Returns
    -------
    files : list of str
        The paths along z.
    note : str
        Which numbers are left out, as a clause; empty where none is.

    Raises
    ------
    InputError
        If the names differ in more than one number that counts.

    Examples
    --------
    >>> in_order("stack", ["a/img10.tif", "a/img1.tif", "a/img2.tif"])[0]
    ['a/img1.tif', 'a/img2.tif', 'a/img10.tif']
    """
    split = {file: _NUMBER.split(file) for file in files}
    ordered = sorted(files, key=lambda file: ([int(part) for part in split[file][1::2]], file))
    words = {tuple(part.casefold() for part in split[file][::2]): file for file in reversed(ordered)}
    if len(words) > 1:
        first, second, *_ = (Path(file).name for file in words.values())
        raise InputError(
            f"{name} has files whose names differ in more than numbers, such as {second} and {first}; "
            f"name those that belong together by a pattern in quotes, such as '{_pattern(second)}'"
        )
    for column in zip(*(split[file][1::2] for file in ordered), strict=True):
        counts = [int(number) for number in column]
        if all(a < b for a, b in pairwise(counts)):
            return ordered, _gaps(ordered, counts)
    if len(ordered) == 1:
        return ordered, ""
    raise InputError(
        f"{name} has files in whose names no single number counts the slices, such as {Path(ordered[0]).name} and "
        f"{Path(ordered[1]).name}; name those of one volume by a pattern in quotes, with * for one number"
    )


def _gaps(files: Sequence[str], counts: Sequence[int]) -> str:
    """Say where numbers are left out, which are otherwise all equally far apart."""
    steps = [b - a for a, b in pairwise(counts)]
    places = [i for i, step in enumerate(steps) if step > min(steps)]
    if not places:
        return ""
    listed = [f"{Path(files[i + 1]).name} follows {Path(files[i]).name}" for i in places[:MOST_GAPS]]
    more = [f"{len(places) - MOST_GAPS} more"] if len(places) > MOST_GAPS else []
    return f"the slices' numbers have gaps ({', '.join(listed + more)}); if slices are missing, z is too short there"


def _pattern(name: str) -> str:
    """Return a pattern for the names that are like this one but for their last number."""
    *head, _, tail = _NUMBER.split(name) if _NUMBER.search(name) else ("", "", name)
    return "".join(head) + "*" + tail
