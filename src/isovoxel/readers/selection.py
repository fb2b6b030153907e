"""Which part of an input is meant? One of its levels, channels or time points, and a box of voxels.

What is not said is as the input has it. A selection is a part of an input's identity: another part of the same file is
another input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isovoxel.errors import OptionError
from isovoxel.readers.crop import Crop, parse_crop

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
    """Which voxels of that level, as `isovoxel.readers.crop.parse_crop` returns it; None for all of them."""

    def __post_init__(self) -> None:
        for name in _WHICH:
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise OptionError(f"{name} must be a whole number from 0 on, not {value!r}")
        if self.axes is not None:
            axes = self.axes.lower() if isinstance(self.axes, str) else ""
            if not {"y", "x"} <= set(axes) <= set(NAMES) or len(set(axes)) < len(axes):
                raise OptionError(
                    f"axes must name each axis of the input once, by the letters t, c, z, y, x, such as tczyx, "
                    f"not {self.axes!r}"
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
        for what, many in _WHICH.items():
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
        return cls(**numbers, axes=identity.get("axes"), crop=parse_crop(identity.get("crop")))


EVERYTHING = Selection()
"""Nothing is selected: the input as it is."""
