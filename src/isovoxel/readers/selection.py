"""Selection of a part of an input: an image, a level, channels, time points, and a box of voxels.

Whatever is not named stays as the input has it. A selection is a part of an input's identity: another part of the same
file is another input.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from isovoxel.errors import InputError, OptionError, shown_value
from isovoxel.geometry.grid import AXES, Box, Index3, triple
from isovoxel.metadata.series import WORDS, Channel, SeriesAxis, chosen_channels

# ---- crops ---------------------------------------------------------------------------------------------------------


Crop = tuple[tuple[int | None, int | None], ...]
"""Start and stop for z, y and x, as Python's slices have them: None is the end, and a number below 0 counts from it."""


def parse_crop(value: Any) -> Crop | None:
    """Return a crop from text, or from three slices or pairs; None stays None.

    Parameters
    ----------
    value
        "z0:z1,y0:y1,x0:x1", or such as ``(slice(0, 5), (2, None), (None, -3))``.

    Raises
    ------
    OptionError
        If it is none of these.

    Examples
    --------
    >>> parse_crop("5:, :-1, 2:4")
    ((5, None), (None, -1), (2, 4))
    """
    if value is None:
        return None
    parts = value.split(",") if isinstance(value, str) else value
    try:
        return triple(map(_ends, parts))
    except (TypeError, ValueError):
        raise OptionError(
            f"a crop is z0:z1,y0:y1,x0:x1 in whole voxels, such as 0:50,:,100:-20, not {shown_value(value)}"
        ) from None


def _ends(part: Any) -> tuple[int | None, int | None]:
    if isinstance(part, str):
        part = [int(end) if end.strip() else None for end in part.split(":")]
    if isinstance(part, slice):
        if part.step not in (None, 1):
            raise ValueError(part)
        part = (part.start, part.stop)
    first, last = part
    if any(isinstance(end, bool | float) for end in (first, last)):
        raise ValueError(part)
    return (None if first is None else int(first), None if last is None else int(last))


def box_of(crop: Sequence[Sequence[int | None]], shape: Index3, name: str) -> Box:
    """Return the box that a crop cuts out of a volume.

    Unlike Python's slices, which are clipped, what reaches beyond the volume is refused: it is a mistake.

    Raises
    ------
    OptionError
        If it holds nothing, or does not lie inside.
    """
    start, stop = [], []
    for axis, (first, last), n in zip(AXES, crop, shape, strict=True):
        a = 0 if first is None else first + n * (first < 0)
        b = n if last is None else last + n * (last < 0)
        shown = f"{axis} {'' if first is None else first}:{'' if last is None else last}"
        if not (0 <= a <= n and 0 <= b <= n):
            raise OptionError(f"the crop {shown} reaches beyond {name}, which has {n} voxels along {axis}")
        if a >= b:
            raise OptionError(f"the crop {shown} of {name}, which has {n} voxels along {axis}, holds none of them")
        start.append(a)
        stop.append(b)
    return Box(triple(start), triple(stop))


# ---- what is selected ----------------------------------------------------------------------------------------------


NAMES = "tczyx"
"""What axes may be called, in the order that isovoxel keeps."""
GIVEN = "given by the caller"
"""Where names of axes come from that the user gives, for people."""
_WHICH = {"level": "resolution levels", "channel": "channels", "time": "time points"}
"""What is chosen by number, and what people call many of them."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which part of an input is meant.

    Raises
    ------
    OptionError
        If a number is none, or below 0.
    """

    level: int | None = None
    """Which resolution level, 0 the finest; None where nothing is said, which is 0."""
    channel: int | None = None
    """Which channel, counted from 0; None where nothing is said: all of them."""
    time: int | None = None
    """Which time point; likewise."""
    axes: str | None = None
    """Names of the input's axes in their order, such as "tczyx", in place of what it says; None where nothing is."""
    crop: Crop | None = None
    """Which voxels of that level, as `isovoxel.readers.selection.parse_crop` returns it; None for all of them."""
    image: str | None = None
    """Which of several images, by its path, its number or its name; None where nothing is said."""

    def __post_init__(self) -> None:
        for name in _WHICH:
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise OptionError(f"{name} must be a whole number from 0 on, not {shown_value(value)}")
        if self.image is not None:
            wanted = self.image.strip("/") if isinstance(self.image, str) else ""
            if not wanted or re.fullmatch(r"-\d+", wanted):
                raise OptionError(
                    f"image must be a path, a number from 0 on, a name or a pattern, not {shown_value(self.image)}"
                )
            object.__setattr__(self, "image", wanted)
        if self.axes is not None:
            axes = self.axes.lower() if isinstance(self.axes, str) else ""
            if not {"y", "x"} <= set(axes) <= set(NAMES) or len(set(axes)) < len(axes):
                raise OptionError(
                    f"axes must name each axis of the input once, by the letters t, c, z, y, x, such as tczyx, "
                    f"not {shown_value(self.axes)}"
                )
            object.__setattr__(self, "axes", axes)

    def check_kind(self, name: str, *known: str) -> None:
        """Refuse what is selected of an input whose kind does not have it.

        Parameters
        ----------
        name
            What the user called the input.
        known
            What can be selected of its kind, by the names of the fields.

        Raises
        ------
        OptionError
            If anything else is.
        """
        for what, many in {**_WHICH, "image": "images"}.items():
            if getattr(self, what) is not None and what not in known:
                raise OptionError(f"{name} is of a kind of which isovoxel selects no {many}; leave out --{what}")
        if self.axes is not None and "axes" not in known:
            raise OptionError(f"{name} is of a kind that names its axes itself; leave out --axes")

    def named(self, name: str, axes: Sequence[str], shape: Sequence[int]) -> list[str]:
        """Return the names of an array's axes: those that the user gives, or else those that it has.

        Raises
        ------
        OptionError
            If the user gives more or fewer than it has axes.
        """
        if self.axes is None:
            return list(axes)
        if len(self.axes) != len(shape):
            lengths = " x ".join(map(str, shape)) or "none"
            raise OptionError(
                f"{name} has {len(shape)} axes ({lengths}), but --axes {self.axes} names {len(self.axes)}"
            )
        return list(self.axes)

    def among(self, what: str, count: int, name: str) -> int:
        """Return which of so many levels, channels or time points is meant; the first where nothing is said.

        Raises
        ------
        OptionError
            If it has fewer.
        """
        value = getattr(self, what) or 0
        if value >= count:
            many = _WHICH[what] if count > 1 else _WHICH[what].removesuffix("s")
            there = f"0 to {count - 1}" if count > 1 else "0"
            raise OptionError(f"{name} has {count} {many}, counted from 0: give --{what} {there}, not {value}")
        return int(value)

    def identity(self, *names: str) -> dict[str, Any]:
        """Return what of it tells an input from another part of the same file, as JSON; what is not said is absent."""
        return {name: getattr(self, name) for name in names if getattr(self, name)}

    @classmethod
    def of_identity(cls, identity: Mapping[str, Any]) -> Selection:
        """Return the selection that an input's identity has."""
        numbers = {name: identity[name] for name in _WHICH if name in identity}
        texts = {name: identity.get(name) for name in ("image", "axes")}
        return cls(**numbers, **texts, crop=parse_crop(identity.get("crop")))


EVERYTHING = Selection()
"""Nothing is selected: the input as it is."""


# ---- axes ----------------------------------------------------------------------------------------------------------

# Find which axes of an input are z, y and x, and which of its channels and time points are meant.
#
# Axes of length 1 beside z, y and x say nothing and are dropped; three axes without names are z, y and x, and two are
# y and x of a single plane. Several channels or time points make a series of volumes, of which the user may select one,
# where the kind of input can. Planes are no series: what was saved as one of planes are often the slices of a volume.
# Everything else (colour, planes of other kinds, other orders) is refused in one sentence that says what was found and
# how to split it.


_WORDS = {
    "t": "time points",
    "c": "channels",
    "s": "colour samples per voxel, as RGB has (save one of them as a grey volume)",
}
_SELECTED = {"t": "time", "c": "channel"}
"""What is selected along an axis, as `Selection` and its options have it."""
LONG_NAMES = {"time": "t", "channel": "c"}
"""Axes that some programs name by a word."""

UNNAMED = {2: "two unnamed axes, taken as y, x of one plane", 3: "three unnamed axes, taken as z, y, x"}
"""How the axes of an array are found that have no names, for people, by their number."""

NAME_THEM = "; name them with --axes, such as --axes tczyx"


ZYX = tuple[int | None, int, int]
"""Which axes of an array are z, y and x; z is None where it has none."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Picked:
    """What of an array is the volume."""

    zyx: ZYX
    """Which of its axes are z, y and x."""
    others: Mapping[int, int]
    """For every other axis the index that is meant."""
    chosen: Mapping[str, int]
    """What was chosen of several, by the name of the option: a part of the input's identity."""
    series: tuple[tuple[int, str, int], ...] = ()
    """Along which other axes volumes are counted, "t" before "c": which axis, its name and its length. `others` has
    the first volume."""

    @property
    def lengths(self) -> tuple[tuple[str, int], ...]:
        """Name and length of each axis along which volumes are counted."""
        return tuple((name, length) for _, name, length in self.series)

    def axes(self, step: tuple[float, str | None] = (1.0, None)) -> tuple[SeriesAxis, ...]:
        """Return the axes along which volumes are counted, with the time between two time points and its unit."""
        return tuple(SeriesAxis(name, n, *(step if name == "t" else ())) for name, n in self.lengths)

    def at(self, place: Sequence[int]) -> Picked:
        """Return one volume of the series, by its place along these axes."""
        indices = {axis: index for (axis, _, _), index in zip(self.series, place, strict=True)}
        return replace(self, others={**self.others, **indices}, series=())

    def index(self, zyx: tuple[T, T, T]) -> tuple[int | T, ...]:
        """Return a place in the volume, or a box of it, as an index into the array."""
        index: dict[int, int | T] = {**self.others}
        index |= {axis: part for axis, part in zip(self.zyx, zyx, strict=True) if axis is not None}
        return tuple([index[axis] for axis in range(len(index))])

    def channels(self, told: Sequence[Channel], axes: Sequence[str], shape: Sequence[int]) -> tuple[Channel, ...]:
        """Return what is told of the channels of an array, or of the one that was chosen."""
        return chosen_channels(told, dict(zip(axes, shape, strict=True)).get("c", 1), self.chosen.get("channel"))

    def told(self, source: str) -> str:
        """Return where the axes were read from, and what was chosen along them, for people."""
        return ", ".join([source, *(f"{what} {index}" for what, index in self.chosen.items())])

    def shape(self, lengths: Sequence[int]) -> Index3:
        """Return what an array that has something for every axis has for z, y and x: 1 for z where it has none."""
        z, y, x = [1 if axis is None else int(lengths[axis]) for axis in self.zyx]
        return (z, y, x)


PLAIN = Picked((0, 1, 2), {}, {})
"""All of an array of z, y and x."""


def pick(name: str, axes: Sequence[str], shape: Sequence[int], selection: Selection) -> Picked:
    """Return which axes of an array are z, y and x, and where along the others the volume lies.

    Parameters
    ----------
    name
        What the user called the input, for messages.
    axes
        Name of every axis, in lower case; empty for an axis without a name.
    shape
        Length of every axis.
    selection
        Which channel and which time point the user wants; of which nothing is said, all are meant.

    Raises
    ------
    InputError
        If they are not z, y and x, or y and x, in this order, and nothing else longer than 1 but channels and time
        points, which must be selected of planes.
    OptionError
        If there is no such channel or time point.

    Examples
    --------
    >>> pick("stack", "tczyx", (1, 2, 21, 150, 150), Selection(channel=1)).others
    {0: 0, 1: 1}
    >>> pick("stack", "ctzyx", (2, 4, 21, 150, 150), Selection()).lengths
    (('t', 4), ('c', 2))
    """
    axes = selection.named(name, axes, shape)
    names = [LONG_NAMES.get(axis, axis) for axis in axes]
    for axis, option in _SELECTED.items():
        if axis not in names:
            selection.among(option, 1, name)  # the one that it has
    others: dict[int, int] = {}
    chosen: dict[str, int] = {}
    left: list[int] = []
    for i, (axis, n) in enumerate(zip(names, shape, strict=True)):
        what = _SELECTED.get(axis)
        if what is not None and n > 0 and (n == 1 or getattr(selection, what) is not None):
            others[i] = selection.among(what, n, name)
            chosen |= {what: others[i]} if n > 1 else {}
        elif axis in (*AXES, "") or n != 1:
            left.append(i)
        else:
            others[i] = 0
    kept = _without_spare([axes[i] for i in left], [shape[i] for i in left])
    others |= {i: 0 for at, i in enumerate(left) if at not in kept}
    kept = [left[at] for at in kept]
    found = _found(axes, shape)
    several = [i for i in kept if names[i] in _SELECTED and shape[i] > 1]
    series: tuple[tuple[int, str, int], ...] = ()
    if len(kept) - len(several) == len(AXES):
        series = tuple((i, axis, shape[i]) for axis in WORDS for i in several if names[i] == axis)
        others |= dict.fromkeys(several, 0)
        kept = [i for i in kept if i not in several]
    for i in kept:
        if names[i] not in (*AXES, ""):
            options = " and ".join(f"--{_SELECTED[names[axis]]} 0 to {shape[axis] - 1}" for axis in several)
            many = _WORDS.get(names[i], f"entries along its axis {axes[i]!r}")
            remedy = f"give {options} for one of them" if i in several else "isovoxel takes z, y, x"
            raise InputError(f"{name} has {shape[i]} {many}; {remedy}; found are the axes {found}{_hint(kept, i)}")
    if len(kept) == 2 and [names[i] for i in kept] in (["y", "x"], ["", ""]):
        return Picked((None, kept[0], kept[1]), others, chosen)
    _check_order(name, [names[i] for i in kept], found)
    return Picked(triple(kept), others, chosen, series)


def pick_only(name: str, axes: Sequence[str], shape: Sequence[int], selection: Selection | None = None) -> Picked:
    """Return which of the axes are z, y and x; all the others have length 1. Of kinds that have nothing to select.

    Parameters
    ----------
    name, axes, shape, selection
        As in `pick`.

    Raises
    ------
    InputError
        If they are not z, y and x in this order, and nothing else longer than 1.

    Examples
    --------
    >>> pick_only("stack", "tczyx", (1, 1, 21, 150, 150)).zyx
    (2, 3, 4)
    """
    axes = selection.named(name, axes, shape) if selection is not None else axes
    found = _found(axes, shape)
    kept = [i for i, (axis, n) in enumerate(zip(axes, shape, strict=True)) if axis in (*AXES, "") or n != 1]
    kept = [kept[at] for at in _without_spare([axes[i] for i in kept], [shape[i] for i in kept])]
    for i in kept:
        if axes[i] not in (*AXES, ""):
            what = _WORDS.get(axes[i], f"entries along its axis {axes[i]!r}")
            what += " (save one of them as a volume of its own)" if axes[i] in _SELECTED else ""
            raise InputError(
                f"{name} has {shape[i]} {what}; isovoxel takes 3-D z, y, x of this kind of input, and found the axes "
                f"{found}{_hint(kept, i)}"
            )
    _check_order(name, [axes[i] for i in kept], found, "" if selection is None else NAME_THEM)
    return Picked(triple(kept), {axis: 0 for axis in range(len(axes)) if axis not in kept}, {})


def _found(axes: Sequence[str], shape: Sequence[int]) -> str:
    return ", ".join(f"{axis or 'unnamed'} {n}" for axis, n in zip(axes, shape, strict=True))


def _hint(kept: Sequence[int], i: int) -> str:
    """Programs often save slices as time points or channels."""
    return "; if they are slices, name that axis z" if len(kept) == 3 and i == kept[0] else ""


def _without_spare(axes: Sequence[str], shape: Sequence[int]) -> list[int]:
    """Return the axes that are left when those of length 1 without a name are dropped, where there are too many."""
    kept = list(range(len(axes)))
    for i in list(kept):
        if len(kept) > 3 and axes[i] == "" and shape[i] == 1:
            kept.remove(i)
    return kept


def _check_order(name: str, axes: Sequence[str], found: str, hint: str = NAME_THEM) -> None:
    """Check that what is left is z, y and x; the hint is for axes without a name."""
    if len(axes) != 3:
        raise InputError(
            f"{name} is {len(axes)}-D; isovoxel takes z, y, x, and found the axes {found or 'none'}"
            f"{hint if 'unnamed' in found else ''}"
        )
    if any(own not in ("", axis) for own, axis in zip(axes, AXES, strict=True)):
        raise InputError(
            f"the axes of {name} are in the order {found}; transpose them to z, y, x, in Python without a copy as "
            "a dask array"
        )


def plain_zyx(name: str, shape: Sequence[int]) -> Index3:
    """Return the shape of an array whose axes have no names: z, y, x, or y, x of a single plane.

    Raises
    ------
    InputError
        If it does not have two or three axes.
    """
    if len(shape) not in (2, 3):
        found = " x ".join(str(n) for n in shape) or "a single value"
        hint = NAME_THEM if len(shape) in (4, 5) else ""
        raise InputError(f"{name} is {len(shape)}-D ({found}); isovoxel takes z, y, x, or y, x of one plane{hint}")
    return triple(map(int, (1, *shape)[-3:]))


# ---- images of an input ------------------------------------------------------------------------------------------

# Images of an input that holds several (a plate, a collection, a file of several positions), and which are meant.
#
# An image is named by its path in the input ("A/1/0" in a plate, "0" in a file), by its number in the input's order, or
# by the name that the input gives it: the first of these that there is. "all" and patterns of `fnmatch` mean several.


ALL = "all"
"""Means each image of an input."""

MOST_LISTED = 8
"""How many items a message lists."""


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
        raise OptionError(f"{name} has no image {wanted}; {_all_of(images)}")
    return found[0]


def one_image(images: Sequence[ImageEntry], selection: Selection, name: str) -> tuple[int, dict[str, str]]:
    """Return the number of the image that is meant, and what of the selection tells it from the others.

    Raises
    ------
    InputError
        If there are several, and none is selected.
    OptionError
        As `find_image`.
    """
    if selection.image is None:
        if len(images) > 1:
            raise InputError(
                f"{name} holds {len(images)} images ({listed(images)}); give --image 0 to {len(images) - 1}, or all"
            )
        return 0, {}
    found = find_image(images, selection.image, name)
    return int(found.path), {"image": found.path} if len(images) > 1 else {}


def matching_images(images: Sequence[ImageEntry], pattern: str, name: str) -> tuple[ImageEntry, ...]:
    """Return the images whose path or name a pattern matches; all of them for "all".

    Raises
    ------
    OptionError
        If there is none.
    """
    found = tuple(one for one in images if any(fnmatchcase(text, pattern) for text in (one.path, one.label) if text))
    found = tuple(images) if pattern == ALL else found
    if not found:
        raise OptionError(f"no image of {name} matches {pattern}; {_all_of(images)}")
    return found


def _all_of(images: Sequence[ImageEntry]) -> str:
    """Return which images there are, as a clause: the number of an only one must not read as how many."""
    if not images:
        return "it holds none"
    return f"its {'images are' if len(images) > 1 else 'only image is'} {listed(images)}"


def listed(items: Iterable[object]) -> str:
    """Return the first of some items, and how many more there are, for messages."""
    found = list(map(str, items))
    more = f" and {len(found) - MOST_LISTED} more" if len(found) > MOST_LISTED else ""
    return (", ".join(found[:MOST_LISTED]) or "none") + more
