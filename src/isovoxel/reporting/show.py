"""Draw one or two volumes, as a figure or a PNG file, and say what was drawn and where."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from isovoxel.errors import OptionError
from isovoxel.execution.events import Reading
from isovoxel.execution.inputs import Named, check_apart, read_as
from isovoxel.execution.resources import peak_bytes, reading_limits
from isovoxel.options import Opening, parse_size
from isovoxel.planner import open_by
from isovoxel.planning.model import HostLimits
from isovoxel.readers.base import Volume
from isovoxel.readers.open import images_of
from isovoxel.readers.selection import matching_images, means_several
from isovoxel.reporting.files import HIDDEN, check_own, without_secrets
from isovoxel.reporting.pictures import Picture, draw, save
from isovoxel.reporting.records import Record
from isovoxel.reporting.text import Line, shortened

LONGEST_NAME = 40
"""Most characters of a name that stand above a picture."""


@dataclass(frozen=True)
class Shown:
    """A picture of one or two files."""

    path: Path
    """The PNG file."""
    size: tuple[int, int]
    """Its width and height in pixels."""
    drawn: tuple[tuple[str, str], ...]
    """Each input's name, and what is drawn of it."""
    projected: int
    """Bytes of host memory that the process takes at most, as projected."""
    allowed: int
    """Bytes that it may take."""


def save_drawing(
    sources: Sequence[str],
    output: str | None,
    opening: Opening,
    *,
    labels: bool | None,
    memory: int | str | None,
    reading: Reading,
) -> Shown:
    """Draw one file, or two side by side at one scale, as a PNG file.

    Parameters
    ----------
    sources
        As in `isovoxel.open_volume`: what to draw.
    output
        The PNG file; by default one in the working folder, named after what is drawn.
    opening, labels, memory, reading
        As in `drawing_of`.

    Raises
    ------
    IsovoxelError
        As `drawing_of`.
    OutputError
        If the picture must not or cannot be written.
    """
    path = check_own(default_name(sources) if output is None else output, "picture")
    check_apart([where for source in sources for where in read_as("input", source)], files=[Named("picture", path)])
    drawn, volumes, host = drawing_of(sources, opening, labels=labels, memory=memory, reading=reading)
    save(drawn, path)
    return Shown(
        path,
        drawn.size,
        tuple(zip((v.name for v in volumes), drawn.captions, strict=True)),
        drawn.projected,
        host.allowed,
    )


def save_drawings(sources: Sequence[str], output: str | None, opening: Opening, **how: Any) -> Sequence[Shown]:
    """Draw what `save_drawing` does, or each of several images as a file of its own, named after it too.

    Raises
    ------
    IsovoxelError
        As `save_drawing`; also if several images are to be drawn into one file.
    """
    image = opening.get("image")
    if not means_several(image):
        return [save_drawing(sources, output, opening, **how)]
    if len(sources) > 1 or output is not None:
        raise OptionError(
            f"image {image} means several images, of which each gets a file: leave out FILE2 and --output"
        )
    source, stem = sources[0], default_name(sources).removesuffix(".png")
    found = matching_images(images_of(source).images, str(image), source)
    names = [f"{stem}_" + re.sub(r"[^\w.+-]+", "_", each.path) + ".png" for each in found]
    return [
        save_drawing([source], name, {**opening, "image": each.path}, **how)
        for each, name in zip(found, names, strict=True)
    ]


def drawing_of(
    sources: Sequence[Any], opening: Opening, *, labels: bool | None, memory: int | str | None, reading: Reading
) -> tuple[Picture, list[Volume], HostLimits]:
    """Draw one volume, or two side by side at one scale; return that, the volumes, and the memory that was allowed.

    Parameters
    ----------
    sources
        As in `isovoxel.open_volume`: what to draw.
    opening
        How the first is opened: voxel_size, unit, level, channel, time and crop, as in `isovoxel.open_volume`.
    labels
        Whether voxels are labels; by default what each file says.
    memory
        Host memory to stay within, in bytes or as text such as "2GiB"; by default half of what is free.
    reading
        Told how far files are read.

    Raises
    ------
    InputError
        If one cannot be opened or read.
    OptionError
        If the files cannot be drawn at one scale, or as labels.
    DoesNotFitError
        If drawing takes more than `memory`.
    """
    host = reading_limits(parse_size("memory", memory))
    volumes = [open_by(sources[0], opening), *(open_by(source, {}) for source in sources[1:])]
    names = [f"{shortened(PurePath(without_secrets(v.name)).name, LONGEST_NAME)}: " for v in volumes]
    return draw(volumes, names, labels=labels, reading=reading, host=host), volumes, host


def default_name(sources: Sequence[str]) -> str:
    """Return the name of a picture of files.

    Examples
    --------
    >>> default_name(["data/stack.tif"]), default_name(["stack.tif", "s3://bucket/out.ome.zarr/"])
    ('stack.png', 'stack_out.ome.png')
    """
    addresses = (without_secrets(source).removesuffix(f"?{HIDDEN}") for source in sources)
    stems = [re.sub(r"[^\w.+-]+", "_", PurePath(address).stem) for address in addresses]
    return "_".join(stem or "volume" for stem in stems) + ".png"


def shown_record(found: Sequence[Shown]) -> Record:
    """Return what was drawn, one picture or several."""
    if len(found) > 1:
        return {"pictures": [shown_record([one]) for one in found]}
    return _record(found[0])


def _record(found: Shown) -> Record:
    drawn = [{"name": name, "drawn": what} for name, what in found.drawn]
    return {
        "path": str(found.path),
        "size": list(found.size),
        "volumes": drawn,
        "projected": {"host_bytes": found.projected},
        "allowed": {"host_bytes": found.allowed},
        "peak_host_bytes": peak_bytes(),
    }


def shown_lines(found: Sequence[Shown]) -> list[Line]:
    """Return what was drawn, one picture or several."""
    return [line for one in found for line in _lines(one)]


def _lines(found: Shown) -> list[Line]:
    width, height = found.size
    return [
        *(("drawn", f"{name}   {what}") for name, what in found.drawn),
        ("picture", f"{found.path}   {width} x {height} pixels"),
    ]
