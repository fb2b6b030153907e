"""How is a box of a volume a volume itself? Boxes of it are read from the whole, at the place where it begins.

Nothing is copied: what the whole decodes in one go, the part decodes too, also where that reaches beyond the part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from numpy.typing import NDArray

from isovoxel.errors import OptionError
from isovoxel.geometry.box import Box, Index3
from isovoxel.geometry.grid import AXES, Float3
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.readers.base import Files, ReadBox, Volume
from isovoxel.readers.tiled import damage_moved

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
