"""The attribute "omero" of OME-Zarr: name, colour and window of each channel.

Source: https://ngff.openmicroscopy.org/0.5/, "omero".
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any, NamedTuple

from isovoxel.metadata.series import Channel
from isovoxel.metadata.texts import encodable

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
    from yaozarrs import v05  # 0.4 has the same attribute

    colors = cycle(COLORS if len(windows) > 1 else (WHITE,))
    known = channels if len(channels) == len(windows) else [Channel()] * len(windows)
    listed = [
        v05.OmeroChannel(
            label=encodable(channel.label or f"channel {index}"),
            color=channel.color or color,
            window=v05.OmeroWindow(min=window.low, start=window.start, end=window.end, max=window.high),
            active=True,
            family="linear",
            coefficient=1.0,
            inverted=False,
        )
        for index, (channel, window, color) in enumerate(zip(known, windows, colors, strict=False))
    ]
    shown = v05.OmeroRenderingDefs(defaultT=0, defaultZ=depth // 2, model="color" if len(windows) > 1 else "greyscale")
    attribute: dict[str, Any] = v05.Omero(channels=listed, rdefs=shown).model_dump(mode="json", exclude_none=True)
    return attribute
