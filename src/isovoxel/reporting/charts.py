"""How do numbers of a job look? Lines over time and a bar of stages, as SVG elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from isovoxel.reporting.layout import round_length
from isovoxel.reporting.svg import drawing, lines, number, rect, text

WIDTH, HEIGHT = 580, 240
LEFT, RIGHT, TOP, BOTTOM = 74, 18, 16, 44
"""Pixels between the lines of a chart and its edges."""
HIGHEST_LIMIT = 4
"""How many times higher than all values a limit may be to be drawn."""
BAR_WIDTH, BAR_HEIGHT = 1000, 30
_STEPS_OF_TIME = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200)
_DAY = 86400


@dataclass(frozen=True)
class Limit:
    """A line across a chart."""

    value: float
    """How high."""
    name: str
    """What it is."""


def over_time(
    title: str,
    points: Sequence[tuple[float, float]],
    seconds: float,
    say: Callable[[float], str],
    limits: Sequence[Limit] = (),
    *,
    binary: bool = False,
) -> str:
    """Return a chart of values over time.

    Parameters
    ----------
    title
        What it shows, for who cannot see it.
    points
        (seconds, value), in their order.
    seconds
        How long the axis is.
    say
        Returns a value's words.
    limits
        Lines across; one far above all values is only named.
    binary
        Whether round values are those of bytes: multiples of powers of 1024.
    """
    highest = max([value for _, value in points], default=0.0) or 1.0
    shown = [limit for limit in limits if limit.value <= HIGHEST_LIMIT * highest]
    top = 1.08 * max([highest, *(limit.value for limit in shown)])
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    bottom, seconds = TOP + height, max(seconds, 1e-3)

    def place(at: float, value: float) -> tuple[float, float]:
        return LEFT + width * min(1.0, at / seconds), bottom - height * value / top

    parts = [rect(0, 0, WIDTH, HEIGHT, "iv-paper")]
    for value in _steps(top, binary=binary):
        _, y = place(0, value)
        parts.append(lines([(LEFT, y, LEFT + width, y)], "iv-grid"))
        parts.append(text(LEFT - 8, y + 4, say(value), size=12, anchor="end", kind="iv-soft"))
    for at in _times(seconds):
        x, _ = place(at, 0)
        parts.append(lines([(x, bottom, x, bottom + 5)], "iv-rule"))
        parts.append(text(x, bottom + 20, clock(at), size=12, anchor="middle", kind="iv-soft"))
    parts.append(lines([(LEFT, bottom, LEFT + width, bottom)], "iv-rule"))
    where = [place(at, value) for at, value in points]
    if len(where) == 1:  # a line needs two ends
        where = [(float(LEFT), where[0][1]), (float(LEFT + width), where[0][1])]
    if where:
        path = "L".join(f"{number(x)} {number(y)}" for x, y in where)
        area = f"M{number(where[0][0])} {number(bottom)}L{path}L{number(where[-1][0])} {number(bottom)}Z"
        parts.append(f'<path d="{area}" class="iv-area"/>')
        parts.append(f'<path d="M{path}" class="iv-line" fill="none" stroke-width="1.75" stroke-linejoin="round"/>')
    for limit in shown:
        _, y = place(0, limit.value)
        parts.append(f'<g stroke-dasharray="6 4">{lines([(LEFT, y, LEFT + width, y)], "iv-limit", 1.25)}</g>')
        parts.append(text(LEFT + width, y - 5, f"{limit.name} {say(limit.value)}", size=12, anchor="end"))
    far = [f"{limit.name} {say(limit.value)}" for limit in limits if limit not in shown]
    if far:
        parts.append(text(LEFT, HEIGHT - 4, f"above: {', '.join(far)}", size=12, kind="iv-soft"))
    return drawing(WIDTH, HEIGHT, title, *parts)


def stage_bar(title: str, shares: Sequence[float]) -> str:
    """Return a bar whose parts are as long as the seconds of each stage; it is as wide as what it lies in."""
    total = sum(shares) or 1.0
    parts, x = [], 0.0
    for i, seconds in enumerate(shares):
        width = BAR_WIDTH * seconds / total
        parts.append(rect(x, 0, width, BAR_HEIGHT, f"iv-stage{i}", f'data-stage="{i}"'))
        x += width
    return drawing(BAR_WIDTH, BAR_HEIGHT, title, *parts, stretched=True)


def key(stage: int) -> str:
    """Return a small square in the colour of a stage."""
    return drawing(12, 12, f"stage {stage}", rect(0, 0, 12, 12, f"iv-stage{stage}"))


def clock(seconds: float) -> str:
    """Return a time since the start for people.

    Examples
    --------
    >>> clock(0), clock(0.25), clock(75), clock(3 * 3600 + 60)
    ('0 s', '0.25 s', '1:15', '3:01:00')
    """
    if seconds < 60:
        return f"{seconds:g} s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _steps(top: float, *, binary: bool) -> list[float]:
    """Return three to seven round values from 0 to the top of a chart."""
    if binary:
        power = 1024 ** math.floor(math.log(top, 1024))
        step = power * round_length(top / power / 3)
    else:
        step = round_length(top / 3)
    return [i * step for i in range(math.floor(top / step) + 1)]


def _times(seconds: float) -> list[float]:
    """Return round times from 0 to the end of a chart."""
    if seconds < 4:
        step = round_length(seconds / 3)
    else:
        step = next((s for s in _STEPS_OF_TIME if seconds / s <= 6), _DAY * math.ceil(seconds / _DAY / 6))
    return [round(i * step, 9) for i in range(math.floor(seconds / step) + 1)]
