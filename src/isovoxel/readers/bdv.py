"""Open what an XML of BigDataViewer or BigStitcher describes: views in an HDF5 file, or in an N5 folder, beside it.

Setups that differ by their channel only are the channels of an image; other setups (tiles, angles) are images, of which
the user names one. The XML has voxel size and place; the voxels are read as those of HDF5 and N5 are.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element, TreeBuilder

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import InputError, InputMissingError
from isovoxel.geometry.grid import Box, Float3, triple
from isovoxel.metadata.series import Channel, chosen_channels, stays_inside
from isovoxel.metadata.tiff import parse_xml
from isovoxel.metadata.units import ORIGIN, Calibration, Length, calibrate, is_upright
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.readers.base import Files, ReadBox, SeriesReader, Volume
from isovoxel.readers.files import FileList, metadata_identity, named_failures
from isovoxel.readers.registry import Location
from isovoxel.readers.selection import (
    EVERYTHING,
    Collection,
    ImageEntry,
    Picked,
    Selection,
    one_image,
    pick,
    plain_zyx,
)

if TYPE_CHECKING:
    import h5py


HDF5, N5 = "bdv.hdf5", "bdv.n5"
"""The loaders whose voxels are read."""

_LOADER = re.compile(rb"<ImageLoader[^>]*\bformat\s*=\s*[\"']([^\"']*)")
_LOOKED_AT = 1 << 16
"""So many bytes of a document are looked through for its loader, which stands near its beginning."""


def is_bdv(loader: str, at: Location) -> bool:
    """Return whether an XML is of this loader; one of another loader counts as one of HDF5."""
    with at.path.open("rb") as file:
        found = _LOADER.search(file.read(_LOOKED_AT))
    named = N5 if found is not None and found[1].decode("utf-8", "replace") == N5 else HDF5
    return named == loader


def images_of_bdv(at: Location) -> Collection:
    """Return the images of an XML.

    Raises
    ------
    InputError
        If it is none that can be read.
    """
    return Collection(_entries(_dataset(at)))


def open_bdv(at: Location, selection: Selection) -> Volume:
    """Open an image of an XML, all its channels and time points.

    Raises
    ------
    InputError
        If it is none that can be read, its voxels are stored in another way, or views are missing or unlike.
    OptionError
        If there is no such image, channel or time point.
    """
    dataset = _dataset(at)
    number, named = one_image(_entries(dataset), selection, at.name)
    if dataset.loader not in (HDF5, N5):
        raise InputError(
            f"the voxels of {at.name} are stored as {dataset.loader[:60]!r} ({dataset.file[:100]}), which isovoxel "
            "does not read by this XML; give the path of one of its images, or save it as HDF5 or N5 with BigDataViewer"
        )
    views = _Views(dataset, at.path.resolve(), at.name)
    with named_failures(at.name, KIND):
        return _open(views, dataset.images[number], named, selection)


def _dataset(at: Location) -> BdvDataset:
    with named_failures(at.name, KIND):
        return read_bdv(at.path.read_bytes().decode("utf-8", "replace"), at.name)


def _entries(dataset: BdvDataset) -> tuple[ImageEntry, ...]:
    return tuple(ImageEntry(str(number), image.label) for number, image in enumerate(dataset.images))


@dataclass(frozen=True)
class _Views:
    """Opens single views."""

    dataset: BdvDataset
    path: Path
    name: str

    @property
    def home(self) -> Path:
        """The file or folder with the voxels."""
        file = self.dataset.file
        if not file or not stays_inside(file.removeprefix("./").removesuffix("/")):
            raise InputError(
                f"{self.name} has its voxels in {file[:100]!r}, which is not in its folder; move them beside it, and "
                "write their path without a folder"
            )
        return self.path.parent / file

    def open(self, time: int, setup: int) -> Volume:
        """Open a view; where it lies in the world is not known of it."""
        if (time, setup) in self.dataset.missing:
            raise InputError(
                f"{self.name} has no voxels of setup {setup} at time point {time}, as it says (MissingViews); select "
                "others with --time, --channel or --image"
            )
        if not self.home.exists():
            raise InputMissingError(f"{self.home}, which holds the voxels of {self.name}, is not there")
        if self.dataset.loader == N5:
            from isovoxel.readers.n5 import open_n5

            folder = self.home / f"setup{setup}" / f"timepoint{time}" / "s0"
            if not folder.is_dir():
                raise InputMissingError(f"{folder}, which {self.name} describes, is not there")
            return open_n5(Location(folder, self.name, "folder"), EVERYTHING)
        return self._open_hdf5(f"t{time:05}/s{setup:02}/0/cells")

    def _open_hdf5(self, inner: str) -> Volume:
        from isovoxel.readers.hdf5 import volume_of_dataset
        from isovoxel.readers.hdf5_reader import open_unlocked

        home, place = self.home, inner
        while True:
            with open_unlocked(home, f"{home}, of {self.name},") as file:
                if (link := _link(file, place)) is not None:  # a partition of the voxels, in a file of its own
                    home, place = self._partition(link.filename), link.path
                    continue
                dataset = file.get(place)
                if dataset is None or not hasattr(dataset, "dtype"):
                    raise InputMissingError(f"{home} has no {inner}, which {self.name} describes")
                shape = plain_zyx(self.name, dataset.shape)
                told = {"shape": f"{home.name}:/{inner}", "axes": "BigDataViewer's order, z, y, x"}
                picked = Picked((0 if dataset.ndim == 3 else None, dataset.ndim - 2, dataset.ndim - 1), {}, {})
                return volume_of_dataset(dataset, home, self.name, "HDF5", picked, shape, Calibration(), told)

    def _partition(self, file: str) -> Path:
        if not stays_inside(file):
            raise InputError(f"{self.home} leads to another file, {file[:100]!r}, outside its folder; move it there")
        home = self.home.parent / file
        if home == self.home or not home.is_file():
            raise InputMissingError(f"{home}, which holds voxels of {self.name}, is not there")
        return home


def _link(file: h5py.File, place: str) -> h5py.ExternalLink | None:
    """Return the link to another file that is at a path."""
    import h5py

    try:
        link = file.get(place, getlink=True)
    except KeyError:
        return None
    return link if isinstance(link, h5py.ExternalLink) else None


def _view(dataset: BdvDataset, image: BdvImage, picked: Picked) -> tuple[int, Setup]:
    """Return time point and setup of a view."""
    return dataset.times[picked.others[0]], image.setups[picked.others[1]]


def _member(views: _Views, image: BdvImage, picked: Picked) -> ReadBox:
    time, setup = _view(views.dataset, image, picked)
    return views.open(time, setup.number).read


def _files(xml: str, views: tuple[Files, ...], box: Box) -> Iterator[str | ObjectPlace]:
    """Yield the XML, and the files of all views; of chunks those that hold voxels of a box."""
    yield xml
    for files in views:
        yield from files(box)


def _open(views: _Views, image: BdvImage, named: Mapping[str, str], selection: Selection) -> Volume:
    name, dataset = views.name, views.dataset
    time = dataset.times[selection.among("time", len(dataset.times), name)]
    setup = image.setups[selection.among("channel", len(image.setups), name)]
    first = views.open(time, setup.number)
    picked = pick(name, "tczyx", (len(dataset.times), len(image.setups), *first.shape), selection)
    chosen = [_view(dataset, image, picked.at(place)) for place in product(*(range(n) for _, n in picked.lengths))]
    lean = replace(views, dataset=replace(dataset, transforms={}))  # which no other process needs
    opened = [_checked(views, time, setup, first) for time, setup in chosen]
    found = setup.calibration
    origin, notes = _place(dataset, chosen, found)
    told = tuple(Channel(dataset.channels.get(one.attributes.get(CHANNEL, "")) or None) for one in image.setups)
    own = {file for one in opened if isinstance(one.files, FileList) for file in one.files.paths}
    others = tuple(one.files for one in opened if one.files is not None and not isinstance(one.files, FileList))
    now = partial(_identity, views.path, tuple(one.current_identity for one in opened if one.current_identity))
    volume = replace(
        first,
        kind=f"BigDataViewer, {first.kind}",
        read=SeriesReader(picked, partial(_member, lean, image)) if picked.series else first.read,
        cached=None if picked.series else first.cached,  # readers of many views' worth of chunks would each keep some
        read_overhead=max(one.read_overhead for one in opened),
        sources={"shape": first.sources["shape"], "axes": picked.told(first.sources["axes"])},
        notes=(*first.notes, *notes),
        series=picked.axes(),
        channels=chosen_channels(told, len(told), picked.chosen.get("channel")),
    )
    files = partial(_files, str(views.path), (*others, FileList(tuple(sorted(own)))))
    return volume.measured(found.at(origin)).stored_in(files, now, **picked.chosen, **named)


def _checked(views: _Views, time: int, setup: Setup, first: Volume) -> Volume:
    """Open a view, and check that it is like the first one."""
    one = views.open(time, setup.number)
    if (one.shape, one.dtype) != (first.shape, first.dtype):
        raise InputError(
            f"{views.name} has voxels of another size or type in setup {setup.number} at time point {time} ("
            f"{' x '.join(map(str, one.shape))} {one.dtype}, not {' x '.join(map(str, first.shape))} {first.dtype}); "
            "select views that are alike with --time and --channel"
        )
    return one


def _place(
    dataset: BdvDataset, views: Sequence[tuple[int, Setup]], found: Calibration
) -> tuple[Float3, tuple[str, ...]]:
    """Return where the views lie, and a note of what of their registrations is not carried over."""
    transforms = [dataset.transforms.get((time, setup.number)) for time, setup in views]
    first = transforms[0]
    if found.voxel_size is None or first is None:
        return ORIGIN, ()
    if any(one is None or not np.array_equal(one, first) for one in transforms):
        return ORIGIN, ("its views are registered differently, which is not carried over: all keep their voxels",)
    origin, note = read_place(first, found.voxel_size)
    return origin, (note,) if note else ()


def _identity(path: Path, views: tuple[Callable[[], Mapping[str, Any]], ...]) -> dict[str, Any]:
    """Return what tells the XML, and the metadata of the views, from later ones."""
    told = json.dumps([view() for view in views], sort_keys=True)
    return {**metadata_identity(path, [path]), "view": hashlib.sha256(told.encode()).hexdigest()}


# ---- the XML -----------------------------------------------------------------------------------------------------

# The XML of BigDataViewer and BigStitcher: which file has the voxels, which views there are, and where they lie.
#
# A view is a setup (a channel, a tile, an angle) at a time point. Setups that differ by their channel only are the
# channels of one image. Each view has transforms from voxel indices to the world, of which the last is done first;
# their scale is the voxel size or, as BigStitcher writes it, that by a common factor.
#
# Source: https://imagej.net/plugins/bdv/, and the readers of https://github.com/bigdataviewer.


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
    found = calibrate("the BigDataViewer XML", "BigDataViewer voxelSize", triple(sizes[::-1]))
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
    return triple(float(value) for value in (transform[:3, 3] / factors)[::-1]), ""
