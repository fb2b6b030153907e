"""Which colour has a label? One that is always the same for it, and far from those of the labels beside it.

Labels are numbered in the order in which they were found, so neighbours have numbers that are near to each other.
Multiplied by the golden ratio, of which only the fraction is kept, consecutive numbers are spread around the circle
of hues as evenly as can be (Knuth, The Art of Computer Programming 3, 6.4); three tones tell apart those that come
close again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio: in arithmetic modulo 2^64, the fraction is what is left."""
_TONES = np.array([(0.62, 1.0), (0.9, 0.78), (0.32, 0.94)])
"""Saturation and value of labels whose number leaves 0, 1 and 2 when divided by three."""


def label_colours(labels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the colour of each label.

    Parameters
    ----------
    labels
        Integers of any dtype and shape; 0 is the background, and black.

    Returns
    -------
    numpy.ndarray
        uint8, of the labels' shape and one more axis of length 3: red, green, blue.
    """
    numbers = labels.astype(np.int64).view(np.uint64) if labels.dtype.kind == "i" else labels.astype(np.uint64)
    hue = 6 * (numbers * _GOLDEN >> np.uint64(40)).astype(np.float64) / 2**24
    saturation, value = np.moveaxis(_TONES[(numbers % np.uint64(3)).astype(np.intp)], -1, 0)
    # Red, green and blue rise and fall along the circle of hues, a third of it apart (the HSV model).
    distance = np.abs((hue[..., None] + np.array([3.0, 1.0, 5.0])) % 6 - 3) - 1
    share = 1 - saturation[..., None] * (1 - np.clip(distance, 0, 1))
    colours: NDArray[np.uint8] = np.around(255 * value[..., None] * share).astype(np.uint8)
    colours[numbers == 0] = 0
    return colours
