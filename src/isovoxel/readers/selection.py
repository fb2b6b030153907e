"""Selection of a part of an input: a level, channels, time points, and a box of voxels.

What is not said is as the input has it. A selection is a part of an input's identity: another part of the same file is
another input. A crop copies nothing: what the whole decodes in one go, the part decodes too, also where that reaches
beyond the part. The volumes of a series are read each by a reader of its own, which is made when a box needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

from numpy.typing import NDArray

from isovoxel.errors import CorruptInputError, OptionError
from isovoxel.geometry.box import Box, Index3
from isovoxel.geometry.grid import AXES, Float3
from isovoxel.metadata.series import place_of_volume, told_place
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.readers.base import Files, ReadBox, Volume
from isovoxel.readers.tiled import damage_moved

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
        z, y, x = (_ends(part) for part in parts)
    except (TypeError, ValueError):
        raise OptionError(
            f"a crop is z0:z1,y0:y1,x0:x1 in whole voxels, such as 0:50,:,100:-20, not {value!r}"
        ) from None
    return (z, y, x)


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
        shown = f"{axis} {_text(first)}:{_text(last)}"
        if not (0 <= a <= n and 0 <= b <= n):
            raise OptionError(f"the crop {shown} reaches beyond {name}, which has {n} voxels along {axis}")
        if a >= b:
            raise OptionError(f"the crop {shown} of {name}, which has {n} voxels along {axis}, holds none of them")
        start.append(a)
        stop.append(b)
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def _text(end: int | None) -> str:
    return "" if end is None else str(end)


@dataclass(frozen=True)
class CroppedReader:
    """Reads boxes of a part of a volume; safe to call from many threads where the whole's reader is."""

    read: ReadBox
    """Reads boxes of the whole."""
    part: Box
    """Which part of the whole."""

    def __call__(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a box as a new array, or in `out`.

        Raises
        ------
        CorruptInputError
            If voxels of it are damaged: those of them that lie in the part are told, as the part counts.
        """
        z, y, x = self.part.start
        with damage_moved((-z, -y, -x), self.part):
            return self.read(box.shifted(self.part.start), out)


def moved(origin: Float3, start: Index3, voxel_size: Float3, sign: int = 1) -> Float3:
    """Return the position of the voxel `start`, seen from the voxel that lies at `origin`; back with a sign of -1."""
    z, y, x = (o + sign * i * size for o, i, size in zip(origin, start, voxel_size, strict=True))
    return (z, y, x)


def _cached(cached: Callable[[int], ReadBox], part: Box, capacity: int) -> CroppedReader:
    return CroppedReader(cached(capacity), part)


def _files(files: Files, part: Box, box: Box) -> Iterable[str | ObjectPlace]:
    return files(box.shifted(part.start))


def cropped(volume: Volume, crop: Crop) -> Volume:
    """Return a part of a volume as a volume: a view, which lies where it did.

    Parameters
    ----------
    volume
        The whole, or a part of it already.
    crop
        Which of its voxels.

    Raises
    ------
    OptionError
        If the crop holds nothing, or reaches beyond the volume.
    """
    part = box_of(crop, volume.shape, volume.name)
    if part == Box.whole(volume.shape):
        return volume
    origin = volume.origin
    if volume.voxel_size is not None:
        origin = moved(origin, part.start, volume.voxel_size)
    of_all = part.shifted(volume.start)
    text = ",".join(f"{a}:{b}" for a, b in zip(of_all.start, of_all.stop, strict=True))
    whole = volume.whole or volume.shape
    return replace(
        volume,
        shape=part.shape,
        read=CroppedReader(volume.read, part),
        cached=None if volume.cached is None else partial(_cached, volume.cached, part),
        files=None if volume.files is None else partial(_files, volume.files, part),
        array=None if volume.array is None else volume.array[part.slices],
        origin=origin,
        start=of_all.start,
        whole=whole,
        coarser=(),  # which are the whole's
        identity={**volume.identity, "crop": text},
        sources={**volume.sources, "shape": f"{text} of {' x '.join(map(str, whole))}"},
    )


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


# ---- volumes of a series -------------------------------------------------------------------------------------------


KEPT = 64
"""How many readers are kept: more than volumes are at work at a time."""


class SeriesReader:
    """Reads boxes of the volumes of a series; safe to call from many threads.

    Parameters
    ----------
    axes
        Name and length of each axis along which the volumes are counted.
    member
        Returns the reader of a volume by its place along these axes.
    """

    def __init__(self, axes: Sequence[tuple[str, int]], member: Callable[[tuple[int, ...]], ReadBox]) -> None:
        self._axes, self._member = tuple(axes), member
        self._reader = lru_cache(KEPT)(member)

    def __reduce__(self) -> tuple[type[SeriesReader], tuple[Any, ...]]:
        return (SeriesReader, (self._axes, self._member))

    def __call__(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a box as a new array, or in `out`.

        Raises
        ------
        CorruptInputError
            If voxels of it are damaged: the volume's place is told.
        """
        place = place_of_volume([length for _, length in self._axes], box.volume)
        try:
            return self._reader(place)(box.of(0), out)
        except CorruptInputError as error:
            where = told_place([name for name, _ in self._axes], place)
            raise CorruptInputError(
                error.name, f"{where}, {error.chunk}", error.start, error.stop, error.reason
            ) from error
