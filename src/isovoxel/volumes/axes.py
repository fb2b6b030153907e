"""Which axes of an input are z, y and x?

Axes of length 1 beside z, y and x say nothing and are dropped; three axes without names are z, y and x.
Everything else (time, channels, colour, planes, other orders) is refused in one sentence that says what
was found and how to split it.
"""

from __future__ import annotations

from collections.abc import Sequence

from isovoxel.errors import InputError
from isovoxel.geometry.box import Index3
from isovoxel.geometry.grid import AXES

_WORDS = {
    "t": "time points (save one of them as a volume of its own)",
    "c": "channels (save one of them as a volume of its own)",
    "s": "colour samples per voxel, as RGB has (save one of them as a grey volume)",
}


def zyx_positions(name: str, axes: Sequence[str], shape: Sequence[int]) -> Index3:
    """Return which of the axes are z, y and x; all the others have length 1.

    Parameters
    ----------
    name
        What the user called the input, for messages.
    axes
        Name of every axis, in lower case; empty for an axis without a name.
    shape
        Length of every axis.

    Raises
    ------
    InputError
        If they are not z, y and x in this order, and nothing else longer than 1.

    Examples
    --------
    >>> zyx_positions("stack", "tczyx", (1, 1, 21, 150, 150))
    (2, 3, 4)
    """
    found = ", ".join(f"{axis or 'unnamed'} {n}" for axis, n in zip(axes, shape, strict=True))
    kept = [i for i, (axis, n) in enumerate(zip(axes, shape, strict=True)) if axis in (*AXES, "") or n != 1]
    for i in list(kept):
        if len(kept) > 3 and axes[i] == "" and shape[i] == 1:
            kept.remove(i)
    for i in kept:
        if axes[i] not in (*AXES, ""):
            what = _WORDS.get(axes[i], f"entries along its axis {axes[i]!r}")
            # Programs often save slices as time points or channels.
            hint = "; if they are slices, name that axis z" if len(kept) == 3 and i == kept[0] else ""
            raise InputError(
                f"{name} has {shape[i]} {what}; isovoxel takes 3-D z, y, x for now, and found the axes {found}{hint}"
            )
    if len(kept) != 3:
        raise InputError(
            f"{name} is {len(kept)}-D; isovoxel takes 3-D z, y, x for now, and found the axes {found or 'none'}"
        )
    if any(axes[i] not in ("", axis) for i, axis in zip(kept, AXES, strict=True)):
        raise InputError(f"the axes of {name} are in the order {found}; transpose them to z, y, x")
    return (kept[0], kept[1], kept[2])


def plain_zyx(name: str, shape: Sequence[int]) -> Index3:
    """Return the shape of an array whose axes have no names.

    Raises
    ------
    InputError
        If it does not have three axes.
    """
    if len(shape) != 3:
        found = " x ".join(str(n) for n in shape) or "a single value"
        raise InputError(f"{name} is {len(shape)}-D ({found}); isovoxel takes 3-D z, y, x for now")
    return (int(shape[0]), int(shape[1]), int(shape[2]))
