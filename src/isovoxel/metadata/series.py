"""Series: the volumes of one image beside z, y and x, and the channels that its metadata tell of.

An image of several time points and channels is a series of volumes that all lie alike. They are counted with the last
axis fastest, time before channels, whatever the order of the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import isfinite
from re import fullmatch
from typing import Any, NamedTuple

import numpy as np

from isovoxel.metadata.units import canonical_time

WORDS = {"t": "time point", "c": "channel"}
"""The axes along which volumes are counted, in their order in an output, and what people call an entry of each."""


@dataclass(frozen=True, slots=True)
class SeriesAxis:
    """An axis along which volumes are counted."""

    name: str
    """"t" or "c"."""
    length: int
    """How many entries it has; more than one."""
    step: float = 1.0
    """How far two entries are apart: the time between them; 1 where that is not known."""
    unit: str | None = None
    """Unit of the step, as OME-Zarr spells it, or None where it is not known."""
    start: float = 0.0
    """Where the first entry lies, in that unit."""


@dataclass(frozen=True, slots=True)
class Channel:
    """What an image says of one of its channels."""

    label: str | None = None
    """Its name."""
    color: str | None = None
    """Its colour, "RRGGBB"."""


def time_step(step: float, unit: str) -> tuple[float, str | None]:
    """Return a time between two time points with its unit as OME-Zarr spells it; 1 without one where it is none.

    Examples
    --------
    >>> time_step(2.5, "min")
    (2.5, 'minute')
    """
    if not (isfinite(step) and step > 0):
        return 1.0, None
    return step, canonical_time(unit)


def chosen_channels(channels: Sequence[Channel], count: int, chosen: int | None) -> tuple[Channel, ...]:
    """Return what is said of the channels that a volume has, of so many in all; nothing where that is not clear."""
    if len(channels) != count:
        return ()
    return tuple(channels) if chosen is None else tuple(channels[chosen : chosen + 1])


def checked_color(value: object) -> str | None:
    """Return a colour as "RRGGBB", or None where it is none."""
    if not isinstance(value, str) or not fullmatch("#?[0-9A-Fa-f]{6}", value):
        return None
    return value.removeprefix("#").upper()


def place_of_volume(lengths: Sequence[int], volume: int) -> tuple[int, ...]:
    """Return where along every axis a volume lies.

    Examples
    --------
    >>> place_of_volume((3, 2), 5)
    (2, 1)
    """
    return tuple(map(int, np.unravel_index(volume, lengths)))


def told_place(names: Sequence[str], place: Sequence[int]) -> str:
    """Return a volume's place for people.

    Examples
    --------
    >>> told_place(("t", "c"), (2, 1))
    'time point 2, channel 1'
    """
    return ", ".join(f"{WORDS[name]} {at}" for name, at in zip(names, place, strict=True))


# ---- texts ---------------------------------------------------------------------------------------------------------

# Metadata may hold Unicode that no file can have, and paths that lead out of their folder. They come from
# others, and must not make isovoxel read what the user did not name. Links in the folder are followed wherever they
# lead: making them is the user's own doing.


_HALVES = re.compile("[\ud800-\udfff]")


def encodable(text: str) -> str:
    r"""Return a text with U+FFFD in place of what UTF-8 cannot encode.

    Examples
    --------
    >>> ascii(encodable("a\udcff\u00b5"))
    "'a\\ufffd\\xb5'"
    """
    return _HALVES.sub("\ufffd", text)


def stays_inside(path: str) -> bool:
    r"""Return whether a path leads to something inside its folder, on every system.

    Examples
    --------
    >>> [stays_inside(path) for path in ("0", "a/b", "../b", "/etc", r"C:\b", r"\\host\b", "a//b", "")]
    [True, True, False, False, False, False, False, False]
    """
    if re.match(r"[A-Za-z]:", path) or "\0" in path:
        return False
    return all(part not in ("", ".", "..") for part in re.split(r"[/\\]", path))


# ---- channels of OME-Zarr --------------------------------------------------------------------------------------------

# The attribute "omero" of OME-Zarr: name, colour and window of each channel.
#
# Source: https://ngff.openmicroscopy.org/0.5/, "omero".


WHITE = "FFFFFF"
"""The colour of a single channel of which none is known."""
COLORS = ("FF00FF", "00FF00", "00FFFF", "FFFF00", "FF0000", "0000FF")
"""Those of several, in turn: magenta and green first, which nearly everybody can tell apart."""


class DisplayWindow(NamedTuple):
    """Which values of a channel are shown, in grey levels."""

    low: float
    """The smallest that was found."""
    start: float
    """Shown as black."""
    end: float
    """Shown as the brightest."""
    high: float
    """The largest that was found."""


_WINDOW = {"start": "start", "min": "low", "end": "end", "max": "high"}
"""What OME-Zarr calls the numbers of a `DisplayWindow`."""


def read_channels(attributes: Mapping[str, Any]) -> tuple[Channel, ...]:
    """Return what a group's attributes say of the channels of its image: nothing where that is not clear."""
    inner = attributes.get("ome")
    omero = (inner if isinstance(inner, Mapping) else attributes).get("omero")
    listed = omero.get("channels") if isinstance(omero, Mapping) else None
    if not isinstance(listed, list) or not all(isinstance(channel, Mapping) for channel in listed):
        return ()
    labels = [channel.get("label") for channel in listed]
    return tuple(
        Channel(label if isinstance(label, str) and label else None, checked_color(channel.get("color")))
        for label, channel in zip(labels, listed, strict=True)
    )


def omero_attribute(channels: Sequence[Channel], windows: Sequence[DisplayWindow], depth: int) -> dict[str, Any]:
    """Return the attribute, as plain JSON values.

    Parameters
    ----------
    channels
        What is known of the channels, or nothing.
    windows
        That of each channel.
    depth
        Number of planes along z.
    """
    colors = cycle(COLORS if len(windows) > 1 else (WHITE,))
    known = channels if len(channels) == len(windows) else [Channel()] * len(windows)
    return {
        "channels": [
            {
                "window": {name: float(getattr(window, of)) for name, of in _WINDOW.items()},
                "label": encodable(channel.label or f"channel {index}"),
                "family": "linear",
                "color": channel.color or color,
                "active": True,
                "inverted": False,
                "coefficient": 1.0,
            }
            for index, (channel, window, color) in enumerate(zip(known, windows, colors, strict=False))
        ],
        "rdefs": {"model": "color" if len(windows) > 1 else "greyscale", "defaultT": 0, "defaultZ": depth // 2},
    }
