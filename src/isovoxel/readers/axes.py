"""Find which axes of an input are z, y and x, and which of its channels and time points are meant.

Axes of length 1 beside z, y and x say nothing and are dropped; three axes without names are z, y and x, and two are
y and x of a single plane. Several channels or time points make a series of volumes, of which the user may select one,
where the kind of input can. Planes are no series: what was saved as one of planes are often the slices of a volume.
Everything else (colour, planes of other kinds, other orders) is refused in one sentence that says what was found and
how to split it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from isovoxel.errors import InputError
from isovoxel.geometry.box import Index3
from isovoxel.geometry.grid import AXES
from isovoxel.metadata.series import WORDS, SeriesAxis
from isovoxel.readers.selection import Selection

_WORDS = {
    "t": "time points",
    "c": "channels",
    "s": "colour samples per voxel, as RGB has (save one of them as a grey volume)",
}
_SELECTED = {"t": "time", "c": "channel"}
"""What is selected along an axis, as `Selection` and its options have it."""
_LONG_NAMES = {"time": "t", "channel": "c"}

UNNAMED = {2: "two unnamed axes, taken as y, x of one plane", 3: "three unnamed axes, taken as z, y, x"}
"""How the axes of an array are found that have no names, for people, by their number."""

NAME_THEM = "; name them with --axes, such as --axes tczyx"

ZYX = tuple[int | None, int, int]
"""Which axes of an array are z, y and x; z is None where it has none."""


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

    def index(self, zyx: tuple[slice, slice, slice]) -> tuple[int | slice, ...]:
        """Return a box of the volume as an index into the array."""
        index: dict[int, int | slice] = {**self.others}
        index |= {axis: part for axis, part in zip(self.zyx, zyx, strict=True) if axis is not None}
        return tuple(index[axis] for axis in range(len(index)))

    def told(self, source: str) -> str:
        """Return where the axes were read from, and what was chosen along them, for people."""
        return ", ".join([source, *(f"{what} {index}" for what, index in self.chosen.items())])

    def shape(self, lengths: Sequence[int]) -> Index3:
        """Return what an array that has something for every axis has for z, y and x: 1 for z where it has none."""
        z, y, x = (1 if axis is None else int(lengths[axis]) for axis in self.zyx)
        return (z, y, x)


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
    names = [_LONG_NAMES.get(axis, axis) for axis in axes]
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
    return Picked((kept[0], kept[1], kept[2]), others, chosen, series)


def zyx_positions(name: str, axes: Sequence[str], shape: Sequence[int], selection: Selection | None = None) -> Index3:
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
    >>> zyx_positions("stack", "tczyx", (1, 1, 21, 150, 150))
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
    _check_order(name, [axes[i] for i in kept], found)
    return (kept[0], kept[1], kept[2])


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


def _check_order(name: str, axes: Sequence[str], found: str) -> None:
    """Check that what is left is z, y and x."""
    if len(axes) != 3:
        raise InputError(
            f"{name} is {len(axes)}-D; isovoxel takes z, y, x, and found the axes {found or 'none'}"
            f"{NAME_THEM if 'unnamed' in found else ''}"
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
    z, y, x = (1, *shape)[-3:]
    return (int(z), int(y), int(x))
