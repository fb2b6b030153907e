"""How is a drawing written as SVG? Elements as text, each word escaped and without secrets, and no library.

Colours are classes of the one style sheet here, in two schemes, light and dark; a program that knows only one shows
the light one. Nothing refers to anything outside of the drawing.
"""

from __future__ import annotations

import math
from html import escape

from isovoxel.reporting.redaction import without_secrets

NAMESPACE = "http://www.w3.org/2000/svg"

FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif"
LETTER = 0.56
"""Width of a letter, at most on average, as a share of the font's size."""

_COLOURS = {
    # class: (property, light, dark)
    "iv-paper": ("fill", "#ffffff", "#10121b"),
    "iv-ink": ("fill", "#1c2230", "#e2e6f0"),
    "iv-soft": ("fill", "#5b6579", "#a3acc0"),
    "iv-on": ("fill", "#3a2a00", "#1c1400"),
    "iv-rule": ("stroke", "#8d97ab", "#6c768c"),
    "iv-grid": ("stroke", "#dfe4ee", "#272c3c"),
    "iv-face": ("fill", "#f3f6fb", "#191d2b"),
    "iv-edge": ("stroke", "#3d4a63", "#c3cbdc"),
    "iv-block": ("stroke", "#2c66cf", "#6fa3f5"),
    "iv-shard": ("stroke", "#b4c4e2", "#4a5f92"),
    "iv-write": ("fill", "#f2b632", "#c98f12"),
    "iv-read": ("stroke", "#b4420b", "#ff9d5c"),
    "iv-line": ("stroke", "#2c66cf", "#6fa3f5"),
    "iv-area": ("fill", "#dbe7fb", "#1b2b4c"),
    "iv-limit": ("stroke", "#b4420b", "#ff9d5c"),
    # The stages of a block: told apart without colour by their order and their labels too.
    "iv-stage0": ("fill", "#3b6fc4", "#5b8fe0"),
    "iv-stage1": ("fill", "#c9ced9", "#4a5266"),
    "iv-stage2": ("fill", "#e08a1e", "#f0a341"),
    "iv-stage3": ("fill", "#2f8f6b", "#48b38c"),
    "iv-stage4": ("fill", "#8d6cc2", "#a98be0"),
    "iv-stage5": ("fill", "#e6e9f0", "#2b3142"),
}


def style() -> str:
    """Return the style sheet of all drawings, as CSS."""
    light = "".join(f".{name}{{{what}:{colour}}}" for name, (what, colour, _) in _COLOURS.items())
    dark = "".join(f".{name}{{{what}:{colour}}}" for name, (what, _, colour) in _COLOURS.items())
    text = f".iv text{{font-family:{FONT};stroke:none}}"
    return f"{text}{light}@media (prefers-color-scheme:dark){{{dark}}}"


def drawing(width: float, height: float, title: str, *parts: str, stretched: bool = False) -> str:
    """Return a whole SVG element, which shrinks with what it lies in, in proportion.

    Parameters
    ----------
    width, height
        Its size in pixels.
    title
        What it shows, for who cannot see it.
    *parts
        Its elements, from the back to the front.
    stretched
        Whether it is as wide as what it lies in, and always as high; for what has no text.
    """
    box = f'viewBox="0 0 {number(width)} {number(height)}"'
    size, shrinks = f'width="{number(width)}" height="{number(height)}"', "max-width:100%;height:auto"
    if stretched:
        size, shrinks = (
            f'width="100%" height="{number(height)}" preserveAspectRatio="none"',
            f"display:block;height:{number(height)}px",
        )
    named = f'role="img" aria-label="{escaped(title)}" style="{shrinks}"'
    return f'<svg xmlns="{NAMESPACE}" class="iv" {size} {box} {named}>{"".join(parts)}</svg>'


def rect(x: float, y: float, width: float, height: float, kind: str, extra: str = "") -> str:
    """Return a rectangle of some classes, with more attributes."""
    box = f'x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}"'
    return f'<rect {box} class="{kind}"{" " if extra else ""}{extra}/>'


def lines(points: list[tuple[float, float, float, float]], kind: str, width: float = 1) -> str:
    """Return straight lines as one path."""
    path = "".join(f"M{number(a)} {number(b)}L{number(c)} {number(d)}" for a, b, c, d in points)
    return f'<path d="{path}" class="{kind}" fill="none" stroke-width="{number(width)}"/>' if points else ""


def text(
    x: float,
    y: float,
    words: str,
    *,
    kind: str = "iv-ink",
    size: float = 14,
    anchor: str = "start",
    turned: bool = False,
) -> str:
    """Return a line of text; `turned` reads upwards."""
    turn = f' transform="rotate(-90 {number(x)} {number(y)})"' if turned else ""
    place = f'x="{number(x)}" y="{number(y)}" font-size="{number(size)}" text-anchor="{anchor}"'
    return f'<text {place} class="{kind}"{turn}>{escaped(words)}</text>'


def escaped(words: str) -> str:
    r"""Return text as XML and HTML take it: escaped, without secrets, and without characters that no page may hold.

    Examples
    --------
    >>> escaped("a <b> & \x01\udcff")
    'a &lt;b&gt; &amp; ??'
    """
    return escape("".join(c if c.isprintable() or c in "\n\t" else "?" for c in without_secrets(words)))


def text_width(words: str, size: float = 14) -> float:
    """Return how many pixels a line of text takes at most, about."""
    return LETTER * size * len(words)


def length(value: float) -> str:
    """Return a length with four digits at least, and never as a power of ten.

    Examples
    --------
    >>> length(79.3333), length(31622.8), length(80.0), length(2.5e-5)
    ('79.33', '31,623', '80', '0.000025')
    """
    digits = max(0, 3 - math.floor(math.log10(value)))
    short = f"{value:,.{digits}f}"
    return short.rstrip("0").rstrip(".") if digits else short


def number(value: float) -> str:
    """Return a number as short as a hundredth of a pixel allows.

    Examples
    --------
    >>> number(2.0), number(1 / 3), number(-0.0001)
    ('2', '0.33', '0')
    """
    short = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if short == "-0" else short
