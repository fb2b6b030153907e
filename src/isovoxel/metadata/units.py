"""Units of length and time, and voxel sizes in them.

Units are spelled as OME-Zarr and UDUNITS spell them ("micrometer"); everything that microscopes write for the
same length ("um", "µm", "micron", "\u00b5m") is read as that name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isovoxel.errors import OptionError
from isovoxel.geometry.grid import AXES, Float3, triple

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


# ---- voxel sizes ---------------------------------------------------------------------------------------------------

# A file may state each axis by itself, in units of its own, or not at all. Every reader of metadata states per axis
# what it found as a `Length`; `calibrate` makes one voxel size of the three, or says why there is none. Nothing is
# filled in: an axis of which the file says nothing sensible leaves the size unknown. A size of 1 x 1 x 1 without a
# unit is none, either: programs write it where nothing was calibrated.


SMALLEST, LARGEST = 1e-12, 1e6
"""A voxel is real between a picometre and a thousand kilometres; without a unit, the same numbers."""


ORIGIN: Float3 = (0.0, 0.0, 0.0)
"""Where voxel 0 lies if nothing else is said."""


@dataclass(frozen=True, slots=True)
class Length:
    """What a file says of the voxel's length along one axis."""

    value: float | None
    """The number, or None where there is none."""
    unit: str | None = None
    """The unit's text as the file has it, or None where it has none."""
    absent: str = "no voxel size"
    """What is absent where `value` is None, as it fits behind "has" ("no spacing")."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The voxel size that a file's metadata state, or why they state none; and where they say that voxel 0 lies."""

    voxel_size: Float3 | None = None
    """Physical voxel size, z, y, x, in `unit`."""
    unit: str | None = None
    """The unit as OME-Zarr spells it, or None where the file has none."""
    source: str = ""
    """Where it was read from, for people."""
    missing: str = ""
    """Why `voxel_size` is None, as a clause."""
    counted: bool = False
    """Whether lengths are counted in voxels, of which each is 1 long, without a unit; then `voxel_size` is None."""
    origin: Float3 = field(default=ORIGIN, compare=False)
    """Position of voxel 0's centre, z, y, x, in `unit`."""

    def sources(self, unit: str | None = None) -> dict[str, str]:
        """Return where voxel size and unit were read from, for people; of each only where it is known.

        Parameters
        ----------
        unit
            Where the unit was read from, if not from where the voxel size was.
        """
        found = {} if self.voxel_size is None else {"voxel size": self.source}
        return found if self.unit is None else {**found, "unit": unit or self.source}

    @property
    def placed(self) -> bool:
        """Whether a position beside the size means anything."""
        return self.counted or self.voxel_size is not None

    def at(self, origin: Float3 | None) -> Calibration:
        """Return the same with a position of voxel 0, where there is one, and it means anything."""
        return replace(self, origin=origin) if origin is not None and self.placed else self


def calibrate(what: str, source: str, lengths: tuple[Length, Length, Length], *, flat: bool = False) -> Calibration:
    """Make one voxel size in one unit of what a file says of z, y and x.

    Parameters
    ----------
    what
        The part of the file that speaks, as messages name it ("the ImageJ description").
    source
        Where a voxel size was read from, for people.
    lengths
        What it says of z, y and x.
    flat
        Whether there is one plane only: where nothing is said of z, or nothing that can be so, as 0, it counts as thick
        as its pixels are high.

    Returns
    -------
    Calibration
        In the unit of x; without a unit where none of the axes has one.
    """
    if flat and _problem(lengths[0]):
        lengths = (lengths[1], *lengths[1:])
    problems = [_problem(length) for length in lengths]
    if any(problems):
        return Calibration(missing=_missing(what, lengths, problems))
    values = [length.value for length in lengths if length.value is not None]
    units = [None if length.unit is None else canonical_unit(length.unit) for length in lengths]
    target = units[2]
    if target is None or None in units:
        if any(unit is not None for unit in units):
            axes = _names([axis for axis, unit in zip(AXES, units, strict=True) if unit is None])
            return Calibration(missing=f"{what} has no unit for {axes}, but one for the rest")
        if all(value == 1 for value in values):
            why = "has the size 1 for z, y and x and no unit, which is what programs write where nothing was calibrated"
            return Calibration(missing=f"{what} {why}", counted=True)
        return Calibration(triple(values), None, source)
    sizes = (convert_length(value, unit, target) for value, unit in zip(values, units, strict=True) if unit is not None)
    return Calibration(triple(sizes), target, source)


def _problem(length: Length) -> str:
    """Return what is wrong with one axis' length, as it fits behind "has"; empty where nothing is."""
    if length.value is None:
        return length.absent
    shown = f"{length.value:g}" + (f" {length.unit!r}" if length.unit is not None else "")
    if not (math.isfinite(length.value) and length.value > 0):
        return f"the size {shown}, not a finite number above 0,"
    scale = 1.0
    if length.unit is not None:
        unit = canonical_unit(length.unit)
        if unit is None:
            return f"the size {shown}, whose unit is no known length,"
        scale = convert_length(1.0, unit, "meter")
    if not SMALLEST <= length.value * scale <= LARGEST:
        return f"the size {shown}, which no voxel has,"
    return ""


def _missing(what: str, lengths: tuple[Length, Length, Length], problems: list[str]) -> str:
    """Return what is known and what is not: "y and x are 0.2 micrometer, but the TIFF has no spacing for z"."""
    known: dict[str, list[str]] = {}
    unknown: dict[str, list[str]] = {}
    for axis, length, problem in zip(AXES, lengths, problems, strict=True):
        if problem:
            unknown.setdefault(problem, []).append(axis)
        else:
            unit = "" if length.unit is None else f" {canonical_unit(length.unit)}"
            known.setdefault(f"{length.value:.4g}{unit}", []).append(axis)
    facts = " and ".join(f"{_names(axes)} {'is' if len(axes) == 1 else 'are'} {size}" for size, axes in known.items())
    gaps = " and ".join(f"{problem} for {_names(axes)}" for problem, axes in unknown.items())
    return f"{facts}, but {what} has {gaps}" if facts else f"{what} has {gaps}"


def _names(axes: list[str]) -> str:
    """List axes as people do: "z", "y and x", "z, y and x"."""
    return axes[0] if len(axes) == 1 else f"{', '.join(axes[:-1])} and {axes[-1]}"


# ---- transforms --------------------------------------------------------------------------------------------------

# Where an affine transform of voxel indices puts a volume whose axes stay as they are in the file.
#
# What is carried over is the position of voxel 0 where x, y and z point along the axes of the world, each in its
# direction; turned or flipped axes are not, because the output has none.


TURNED = "its affine turns or flips the axes, which is not carried over: voxels keep the order of the file"
"""What is said where that is so."""

_SLANT = 1e-4
"""What float32 and rounding leave beside the diagonal, relative to it."""


def is_upright(matrix: ArrayLike) -> bool:
    """Return whether a matrix keeps the direction of each axis.

    Parameters
    ----------
    matrix
        3 x 3, from voxel x, y, z to world x, y, z.

    Examples
    --------
    >>> is_upright([[0.5, 0, 0], [0, 0.5, 0], [0, 0, 2]]), is_upright([[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    (True, False)
    """
    values = np.asarray(matrix, np.float64)
    sizes = np.diagonal(values)
    slant = np.abs(values - np.diag(sizes))
    return bool(np.isfinite(values).all() and (sizes > 0).all() and (slant <= _SLANT * sizes.min()).all())


# ---- NIfTI headers -------------------------------------------------------------------------------------------------

# Its fields count x, y, z, and its lengths are float32.


def read_zooms(zooms: Sequence[float], unit: str) -> Calibration:
    """Return the voxel size of a header.

    Parameters
    ----------
    zooms
        Its `pixdim`, x, y, z first, as float32.
    unit
        The unit that its `xyzt_units` mean, or "unknown".

    Examples
    --------
    >>> read_zooms(np.float32([0.2, 0.2, 1]), "mm").voxel_size
    (1.0, 0.2, 0.2)
    """
    text = None if unit == "unknown" else unit
    # The shortest number that is this float32 is the one that was meant.
    lengths = triple(Length(float(str(np.float32(zoom))), text) for zoom in zooms[2::-1])
    return calibrate("the NIfTI header", "NIfTI pixdim", lengths)


def read_affine(affine: NDArray[np.float64]) -> tuple[Float3, str]:
    """Return the position of voxel 0, z, y, x, and what of the affine is not carried over, or nothing.

    Parameters
    ----------
    affine
        4 x 4, from voxel x, y, z to world x, y, z.
    """
    if not np.isfinite(affine).all() or not is_upright(affine[:3, :3]):
        return ORIGIN, TURNED
    return triple(float(str(np.float32(value))) for value in affine[2::-1, 3]), ""
