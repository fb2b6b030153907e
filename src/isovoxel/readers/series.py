"""How are the volumes of a series read as one volume? Each by a reader of its own, which is made when a box needs it.

A box says in which volume it lies. Few readers are kept, for blocks go volume by volume: memory does not grow with the
number of time points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from numpy.typing import NDArray

from isovoxel.errors import CorruptInputError
from isovoxel.geometry.box import Box
from isovoxel.metadata.series import place_of_volume, told_place
from isovoxel.readers.base import ReadBox

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
