r"""Units of length and time: their texts, and factors between them.

Units are spelled as OME-Zarr and UDUNITS spell them ("micrometer"); everything that microscopes write for the
same length ("um", "µm", "micron", "\u00B5m") is read as that name.
"""

from __future__ import annotations

import re
from fractions import Fraction

from isovoxel.errors import OptionError

_PREFIXES = {
    "yotta": ("Y", 24),
    "zetta": ("Z", 21),
    "exa": ("E", 18),
    "peta": ("P", 15),
    "tera": ("T", 12),
    "giga": ("G", 9),
    "mega": ("M", 6),
    "kilo": ("k", 3),
    "hecto": ("h", 2),
    "": ("", 0),
    "deci": ("d", -1),
    "centi": ("c", -2),
    "milli": ("m", -3),
    "micro": ("u", -6),
    "nano": ("n", -9),
    "pico": ("p", -12),
    "femto": ("f", -15),
    "atto": ("a", -18),
    "zepto": ("z", -21),
    "yocto": ("y", -24),
}

METERS: dict[str, Fraction] = {
    **{f"{prefix}meter": Fraction(10) ** power for prefix, (_, power) in _PREFIXES.items()},
    "angstrom": Fraction(1, 10**10),
    "inch": Fraction(254, 10_000),
    "foot": Fraction(3048, 10_000),
    "yard": Fraction(9144, 10_000),
    "mile": Fraction(1_609_344, 1000),
    "parsec": Fraction(30_856_775_814_913_673),
}
"""Every unit that isovoxel knows, as OME-Zarr spells it, and its length in metres, exactly."""

# Symbols keep their case: mm is not Mm, and pm is not Pm.
_SYMBOLS = {
    **{f"{symbol}m": f"{prefix}meter" for prefix, (symbol, _) in _PREFIXES.items()},
    "Å": "angstrom",
    "in": "inch",
    '"': "inch",
    "ft": "foot",
    "yd": "yard",
    "mi": "mile",
    "µ": "micrometer",
    # UTF-8 that some writer took for Latin-1
    "Âµm": "micrometer",
}

_WORDS = {
    **{name: name for name in METERS},
    **{name.replace("meter", "metre"): name for name in METERS},
    "micron": "micrometer",
    "inches": "inch",
    "feet": "foot",
}

_TIMES = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), "second"),
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), "millisecond"),
    **dict.fromkeys(("us", "µs", "usec", "microsecond", "microseconds"), "microsecond"),
    **dict.fromkeys(("ns", "nanosecond", "nanoseconds"), "nanosecond"),
    **dict.fromkeys(("min", "minute", "minutes"), "minute"),
    **dict.fromkeys(("h", "hr", "hour", "hours"), "hour"),
    **dict.fromkeys(("d", "day", "days"), "day"),
}
"""How OME-Zarr spells the units of time that microscopes and programs write."""

_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
_SAME_CHARACTERS = str.maketrans({"\u03bc": "µ", "\u212b": "Å"})


def unescaped(text: str) -> str:
    r"""Return the text with every ``\uXXXX``, as ImageJ writes what is not ASCII, as its character."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)


def canonical_unit(text: str) -> str | None:
    r"""Return the unit's name as OME-Zarr spells it, or None where the text names no length.

    Parameters
    ----------
    text
        A unit's name or symbol as instruments and programs write it.

    Examples
    --------
    >>> [canonical_unit(text) for text in ("micron", "µm", "um", r"\u00B5m", "Nanometres", "mm")]
    ['micrometer', 'micrometer', 'micrometer', 'micrometer', 'nanometer', 'millimeter']
    >>> print(canonical_unit("pixel"))
    None
    """
    text = unescaped(text).strip().translate(_SAME_CHARACTERS)
    for symbol in (text, text.replace("µ", "u")):
        if symbol in _SYMBOLS:
            return _SYMBOLS[symbol]
    word = text.lower()
    return _WORDS.get(word) or _WORDS.get(word.removesuffix("s"))


def canonical_time(text: str) -> str | None:
    """Return a unit of time as OME-Zarr spells it, or None where the text names none.

    Examples
    --------
    >>> [canonical_time(text) for text in ("s", "msec", "min.", "frames")]
    ['second', 'millisecond', 'minute', None]
    """
    return _TIMES.get(unescaped(text).strip().translate(_SAME_CHARACTERS).rstrip("."))


def convert_length(value: float, unit: str, target: str) -> float:
    """Return a length of `value` units in target units, rounded once.

    Parameters
    ----------
    value
        A finite length.
    unit, target
        Canonical names, keys of `METERS`.

    Examples
    --------
    >>> convert_length(250, "nanometer", "micrometer")
    0.25
    """
    return float(Fraction(value) * METERS[unit] / METERS[target])


def checked_unit(text: str) -> str:
    """Return the canonical name of a unit that a user gave.

    Raises
    ------
    OptionError
        If the text names no length.
    """
    unit = canonical_unit(text)
    if unit is None:
        raise OptionError(
            f"{text!r} is no unit of length; give one such as micrometer, nanometer, millimeter, angstrom or inch"
        )
    return unit
