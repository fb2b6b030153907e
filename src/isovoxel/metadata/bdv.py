"""The XML of BigDataViewer and BigStitcher: which file has the voxels, which views there are, and where they lie.

A view is a setup (a channel, a tile, an angle) at a time point. Setups that differ by their channel only are the
channels of one image. Each view has transforms from voxel indices to the world, of which the last is done first; their
scale is the voxel size or, as BigStitcher writes it, that by a common factor.

Source: https://imagej.net/plugins/bdv/, and the readers of https://github.com/bigdataviewer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element, TreeBuilder

import numpy as np
from numpy.typing import NDArray

from isovoxel.geometry.grid import Float3
from isovoxel.metadata.affine import ORIGIN, is_upright
from isovoxel.metadata.ome_xml import parse_xml
from isovoxel.metadata.units import Calibration, Length, calibrate

KIND = "BigDataViewer XML"
"""What a document is called in messages."""

MOST_TIME_POINTS = 1_000_000
"""More time points than any file has."""

CHANNEL = "channel"
"""The attribute by which the setups of one image differ."""

_ROUNDING = 1e-4
"""By how much scales may differ, relatively, that were written as one."""


@dataclass(frozen=True, slots=True)
class Setup:
    """A setup: a volume at each time point."""

    number: int
    """By which its voxels are found."""
    name: str
    """What it is called."""
    calibration: Calibration
    """Its voxel size."""
    attributes: Mapping[str, str]
    """Number of its channel, tile, angle and illumination, and of whatever else sets it apart."""


@dataclass(frozen=True, slots=True)
class BdvImage:
    """Setups that are the channels of one image."""

    setups: tuple[Setup, ...]
    """In the order of their channels."""
    label: str
    """What tells it from other images."""


@dataclass(frozen=True)
class BdvDataset:
    """What a document says."""

    loader: str
    """How voxels are stored: "bdv.hdf5", "bdv.n5"."""
    file: str
    """The file or folder that holds them, relative to the document's folder, unless it is absolute."""
    images: tuple[BdvImage, ...]
    """In the order of their first setups."""
    times: tuple[int, ...]
    """Numbers of the time points."""
    channels: Mapping[str, str] = field(default_factory=dict)
    """Names of channels, by their numbers."""
    missing: frozenset[tuple[int, int]] = frozenset()
    """Views that there are not, each by time point and setup."""
    transforms: Mapping[tuple[int, int], NDArray[np.float64]] = field(default_factory=dict)
    """Of each view that from voxel x, y, z to the world, 4 x 4."""


def read_bdv(xml: str, name: str) -> BdvDataset:
    """Return what a document says.

    Parameters
    ----------
    xml
        The document.
    name
        What the user called the file, for messages.

    Raises
    ------
    InputError
        If it is not well-formed.
    ValueError
        If it makes no sense; the message is a clause.
    """
    builder = TreeBuilder()
    parse_xml(xml, KIND, name, builder.start, builder.data, builder.end)
    root = builder.close()
    sequence = root.find("SequenceDescription")
    loader = None if sequence is None else sequence.find("ImageLoader")
    if sequence is None or loader is None:
        raise ValueError("it has no ImageLoader, which says where the voxels are")
    setups = tuple(_setup(element) for element in sequence.iterfind("ViewSetups/ViewSetup"))
    if not setups or len({setup.number for setup in setups}) < len(setups):
        raise ValueError("it has no ViewSetups, or two of one id")
    base = (root.findtext("BasePath") or ".").strip()
    file = next((child for child in loader if child.tag in ("hdf5", "n5", "zarr")), None)
    where = "" if file is None or file.text is None else file.text.strip()
    channels = sequence.iterfind("ViewSetups/Attributes[@name='channel']/Channel")
    return BdvDataset(
        loader.get("format", "of no name"),
        where if base == "." else f"{base}/{where}",
        _images(setups),
        _time_points(sequence.find("Timepoints")),
        {_text(one, "id"): _text(one, "name") for one in channels},
        frozenset(
            (int(one.get("timepoint", "-1")), int(one.get("setup", "-1")))
            for one in sequence.iterfind("MissingViews/MissingView")
        ),
        {
            (int(one.get("timepoint", "-1")), int(one.get("setup", "-1"))): _transform(one)
            for one in root.iterfind("ViewRegistrations/ViewRegistration")
        },
    )


def _text(element: Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _setup(element: Element) -> Setup:
    sizes: list[Length] = [Length(None)] * 3
    if (voxel := element.find("voxelSize")) is not None:
        unit = _text(voxel, "unit") or None
        sizes = [Length(float(size), unit) for size in _text(voxel, "size").split()]
    if len(sizes) != 3:
        raise ValueError("it has a voxelSize that is not three numbers")
    found = calibrate("the BigDataViewer XML", "BigDataViewer voxelSize", (sizes[2], sizes[1], sizes[0]))
    attributes = element.find("attributes")
    told = {} if attributes is None else {one.tag: (one.text or "").strip() for one in attributes}
    return Setup(int(_text(element, "id")), _text(element, "name"), found, told)


def _images(setups: tuple[Setup, ...]) -> tuple[BdvImage, ...]:
    """Put the setups together that differ by their channel only."""
    groups: dict[tuple[object, ...], dict[str, Setup]] = {}
    for setup in setups:
        apart = tuple(sorted((key, value) for key, value in setup.attributes.items() if key != CHANNEL))
        channel = setup.attributes.get(CHANNEL)
        key: tuple[object, ...] = (apart, setup.calibration)
        if channel is None or channel in groups.get(key, ()):
            key = (*key, setup.number)  # no other channel
        groups.setdefault(key, {})[channel or ""] = setup
    return tuple(_image(tuple(group.values())) for group in groups.values())


def _image(setups: tuple[Setup, ...]) -> BdvImage:
    first = setups[0]
    apart = ", ".join(f"{key} {value}" for key, value in first.attributes.items() if key != CHANNEL)
    return BdvImage(tuple(sorted(setups, key=_channel_number)), apart or first.name or f"setup {first.number}")


def _channel_number(setup: Setup) -> tuple[int, int]:
    channel = setup.attributes.get(CHANNEL, "")
    return (int(channel) if channel.isdecimal() else 0, setup.number)


def _time_points(element: Element | None) -> tuple[int, ...]:
    """Return the numbers of the time points: a range, a pattern such as ``0-8:2, 12``, or a list."""
    if element is None:
        return (0,)
    if element.get("type") == "range":
        found = _span(int(_text(element, "first")), int(_text(element, "last")), 1)
    elif element.get("type") == "pattern":
        found = tuple(number for part in _text(element, "integerpattern").split(",") for number in _part(part))
    else:
        found = tuple(int(_text(one, "id")) for one in element.iterfind("Timepoint"))
    if not found or len(set(found)) < len(found):
        raise ValueError("it has no time points, or one of them twice")
    return found


def _part(text: str) -> Iterator[int]:
    numbers = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", text.strip())
    if numbers is None:
        raise ValueError(f"its pattern of time points has {text[:40]!r}")
    first, last, step = numbers.groups()
    yield from _span(int(first), int(last or first), int(step or 1))


def _span(first: int, last: int, step: int) -> tuple[int, ...]:
    span = range(first, last + 1, step)
    if len(span) > MOST_TIME_POINTS:
        raise ValueError(f"it has {len(span)} time points, more than any file has")
    return tuple(span)


def _transform(registration: Element) -> NDArray[np.float64]:
    """Return the product of a view's transforms, of which the last is done first."""
    product = np.eye(4)
    for element in registration.iterfind("ViewTransform"):
        numbers = [float(number) for number in _text(element, "affine").split()]
        if element.get("type") != "affine" or len(numbers) != 12:
            raise ValueError("it has a ViewTransform that is no affine of 12 numbers")
        product = product @ np.vstack([np.reshape(numbers, (3, 4)), [0, 0, 0, 1]])
    return product


def read_place(transform: NDArray[np.float64], voxel_size: Float3) -> tuple[Float3, str]:
    """Return the position of voxel 0, z, y, x, and what of a transform is not carried over, or nothing.

    Parameters
    ----------
    transform
        4 x 4, from voxel x, y, z to the world.
    voxel_size
        z, y, x, in the unit of the position.

    Examples
    --------
    >>> read_place(np.diag([0.5, 0.5, 2.0, 1.0]), (2.0, 0.5, 0.5))
    ((0.0, 0.0, 0.0), '')
    """
    if not np.isfinite(transform).all() or not is_upright(transform[:3, :3]):
        return ORIGIN, "its registration turns, shears or flips it, which is not carried over"
    factors = np.diagonal(transform)[:3] / voxel_size[::-1]
    if factors.max() > factors.min() * (1 + _ROUNDING):
        x, y, z = np.diagonal(transform)[:3]
        shown = f"{z:g} x {y:g} x {x:g}"
        return ORIGIN, f"its registration scales z, y, x by {shown}, not by its voxel size, and is not carried over"
    x, y, z = (float(value) for value in transform[:3, 3] / factors)
    return (z, y, x), ""
