"""Layers of napari as inputs and results of jobs: what of a layer is scaled, and where its result lies.

1. A layer that shows a file is scaled from the file, so that the command line can resume its job, and memory does not
   have to hold it. Whether a file, or which level and channel of it, is what the layer shows is decided by voxels: some
   are compared before a plan is made, and all before a job begins, unless the layer's array does nothing but read.
   Where none is, the layer's array is scaled, block by block as the file is.
2. The voxel size is that of the layer, where it says one, else that of the file.
3. The result lies in the layer's world: at its scale divided by the factors, moved so that the outer faces of the
   volume stay where they are.

Nothing here needs napari or Qt: a layer is what has the attributes of one.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from isovoxel.api import ScaleResult, open_volume, plan, scale
from isovoxel.errors import InputError, IsovoxelError, OptionError
from isovoxel.execution.events import BlockDone, Event, JobStarted, JobStopped, LevelBegun, Retried
from isovoxel.execution.result import Forecast, forecast
from isovoxel.geometry.grid import AXES, Float3
from isovoxel.object_store.objects import is_address, place_of
from isovoxel.options import SURFACES, Opening
from isovoxel.planning.memory import human_bytes
from isovoxel.planning.plan import Plan
from isovoxel.readers.arrays import as_dask
from isovoxel.readers.base import Volume
from isovoxel.readers.open import images_of
from isovoxel.readers.selection import LONG_NAMES, NAMES
from isovoxel.reporting.progress import Notes, ProgressView
from isovoxel.reporting.text import count, grid_text, plan_lines

UNNAMED = {2: "yx", 3: "zyx", 4: "tzyx", 5: "tczyx"}
"""What the axes of an array are taken for that nothing names, by their number."""
SAMPLED = 256
"""Voxels along y and x of a part that is compared."""
PLACES = (0.5, 0.25, 0.75)
"""Where in the volume parts are compared, as shares of what lies before them along each axis."""
MOST_IMAGES = 100
"""Images of a file of several that are looked at."""
READING = (
    "from-zarr",
    "array",
    "original",
    "getitem",
    "stack",
    "concatenate",
    "transpose",
    "rechunk",
    "squeeze",
    "imread",
)
"""How the names of dask's steps begin that read voxels, or only arrange them."""
WRITTEN = "isovoxel"
"""The key of a result layer's metadata that has the path of its OME-Zarr."""
LOOK = {
    "image": ("colormap", "contrast_limits", "gamma", "blending", "opacity", "rendering"),
    "labels": ("colormap", "blending", "opacity"),
}
"""What a result layer takes over from its input, by its kind."""


@dataclass(frozen=True)
class LayerInput:
    """What of a layer is scaled."""

    source: Any
    """A path or an address, or the layer's array."""
    opening: Opening
    """Which part of the source it is."""
    volume: Volume
    """The part, opened."""
    axes: str
    """The name of each axis of the layer."""
    voxel_size: Float3
    """Voxel size, z, y, x, as far as layer and file say it."""
    unit: str | None
    """Its unit, where one of them says it."""
    sized: bool
    """Whether one of them says the voxel size."""
    labels: bool
    """Whether voxels are labels."""
    why: str = ""
    """Why the layer's file is not what is scaled, as a clause, where it has one."""

    @property
    def is_file(self) -> bool:
        """Whether it is read from a file, which the command line opens too."""
        return isinstance(self.source, str)


# ---- from a layer to a volume ----------------------------------------------------------------------------------------


def find_input(layer: Any, axes: str = "", *, file: bool = True) -> LayerInput:
    """Return what of a layer is scaled.

    Parameters
    ----------
    layer
        An image or labels layer.
    axes
        Names of its axes, such as "tzyx", where the user gives them.
    file
        Whether its file may be taken.

    Raises
    ------
    InputError
        If it is RGB, or neither its file nor its array is a volume.
    """
    if getattr(layer, "rgb", False):
        raise InputError(
            f"{layer.name} is an RGB image; split it into one layer for each colour (right click, Split RGB)"
        )
    array = finest_array(layer)
    named = axes or _named(layer)
    why = failure = ""
    if file and (path := _path(layer)):
        for source, opening in _openings(path, layer, named, len(array.shape)):
            try:
                found = list(_matching(source, opening, array, named))
            except IsovoxelError as error:
                failure = failure or str(error)
                continue
            if len(found) == 1:
                return _input(layer, source, *found[0])
            why = f"several parts of {source} hold its voxels" if found else f"{source} holds other voxels"
    names = named or UNNAMED.get(len(array.shape), "")
    given: Opening = {"axes": names} if len(array.shape) > len(AXES) else {}
    return _input(layer, array, given, open_volume(array, **given), names, why or failure)


@dataclass(frozen=True)
class _Parts:
    """An array of another library as dask reads one: part by part, with a dtype of NumPy's."""

    array: Any
    """What has a shape and a dtype with NumPy's name, and gives a part for an index."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of every axis."""
        return tuple(map(int, self.array.shape))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the voxels."""
        return np.dtype(getattr(self.array.dtype, "name", self.array.dtype))

    def __getitem__(self, part: Any) -> np.ndarray[Any, Any]:
        return np.asarray(self.array[part])


def finest_array(layer: Any) -> Any:
    """Return the array of a layer: of one with several resolution levels, that of the finest.

    What napari shows, and isovoxel does not read as an array, is one of dask's that reads it part by part.
    """
    array = layer.data[0] if getattr(layer, "multiscale", False) else layer.data
    kinds = {kind.__module__.partition(".")[0] for kind in type(array).__mro__}
    if "xarray" in kinds:
        array, kinds = array.data, {type(array.data).__module__.partition(".")[0]}
    if kinds & {"numpy", "dask", "zarr"}:
        return array
    from dask.array import from_array

    return from_array(_Parts(array), chunks="auto")


def _path(layer: Any) -> str:
    """Return the path or the address of what a layer shows, or nothing."""
    path = layer.metadata.get(WRITTEN) or layer.source.path
    if not path:
        return ""
    return str(path) if is_address(str(path)) else str(Path(path).absolute())


def _named(layer: Any) -> str:
    """Return the names of a layer's axes, or nothing where some have none that is known."""
    names = "".join(LONG_NAMES.get(name.lower(), name.lower()) for name in map(str, layer.axis_labels))
    known = {"y", "x"} <= set(names) <= set(NAMES) and len(set(names)) == len(names)
    return names if known and len(names) == len(layer.axis_labels) else ""


def _openings(path: str, layer: Any, named: str, ndim: int) -> Iterator[tuple[str, Opening]]:
    """Yield what a layer may show of a path, as the keywords that open it."""
    place = Path(path)
    if _kind(layer) == "labels" and not is_address(path):
        for labels in sorted((place / "labels").glob("*/")):
            yield str(labels), {}
    if place.name.isdecimal():  # a level of an OME-Zarr, which by itself has no voxel size
        yield str(place.parent), {"level": int(place.name)}
    yield path, {}
    if ndim > len(AXES):
        yield path, {"axes": named or UNNAMED[ndim]}
    with contextlib.suppress(IsovoxelError):  # of a kind that holds one image
        for image in images_of(path).images[:MOST_IMAGES]:
            yield path, {"image": image.path}


def _matching(source: str, opening: Opening, array: Any, named: str) -> Iterator[tuple[Opening, Volume, str]]:
    """Yield the parts of a source that hold an array's voxels, with the names of the array's axes."""
    volume = open_volume(source, **opening)
    parts: list[Opening] = [opening]
    if "level" not in opening:
        parts += [{**opening, "level": level} for level in range(1, 1 + len(volume.coarser))]
    channels = next((axis.length for axis in volume.series if axis.name == "c"), 0)
    parts += [{**part, "channel": channel} for part in parts for channel in range(channels)]
    for part in parts:
        one = volume if part is opening else open_volume(source, **part)
        for axes in [named] if named else _possible_axes(array.shape, one):
            if _lengths(one, axes) == tuple(array.shape) and _holds(one, axes, array):
                yield part, one, axes
                break


def _possible_axes(shape: Sequence[int], volume: Volume) -> Iterator[str]:
    """Yield the names that the axes of an array may have if it holds a volume, those in the usual order first."""
    for axes in permutations(NAMES, min(len(shape), len(NAMES))):
        if {"y", "x"} <= set(axes) and _lengths(volume, "".join(axes)) == tuple(shape):
            yield "".join(axes)


def _lengths(volume: Volume, axes: str) -> tuple[int, ...]:
    """Return a volume's shape, its axes in an order; nothing where one is missing that has several entries."""
    lengths = dict.fromkeys(NAMES, 1) | {axis.name: axis.length for axis in volume.series}
    lengths |= dict(zip(AXES, volume.shape, strict=True))
    found = tuple(lengths[name] for name in axes)
    return found if math.prod(found) == math.prod(lengths.values()) else ()


def _holds(volume: Volume, axes: str, array: Any) -> bool:
    """Return whether some parts of a volume are the same as those of an array."""
    voxels = _in_order(volume, axes)
    wide = [SAMPLED if name in "yx" else 1 for name in axes]
    for place in PLACES:
        starts = [max(0, int(place * (n - w))) for n, w in zip(array.shape, wide, strict=True)]
        if not _equal(voxels, array, tuple(slice(a, a + w) for a, w in zip(starts, wide, strict=True))):
            return False
    return True


def _in_order(volume: Volume, axes: str) -> Any:
    """Return a volume as a dask array whose axes are in an order."""
    return arranged(as_dask(volume), [*(axis.name for axis in volume.series), *AXES], axes)


def _equal(voxels: Any, array: Any, part: tuple[slice, ...]) -> bool:
    """Return whether a part of two arrays is the same, once one has the type that the other was converted to."""
    theirs = np.asarray(array[part])
    return np.array_equal(np.asarray(voxels[part]), theirs.astype(voxels.dtype), equal_nan=voxels.dtype.kind == "f")


def arranged(array: Any, names: Sequence[str], axes: str) -> Any:
    """Return an array with its axes in an order.

    Parameters
    ----------
    array
        What can be transposed and indexed.
    names
        The name of each of its axes.
    axes
        Names of the axes that are wanted: what is not there has length 1, and of what is not wanted the first is taken.

    Examples
    --------
    >>> arranged(np.ones((2, 3, 4, 5)), "czyx", "tzcyx").shape
    (1, 3, 2, 4, 5)
    """
    array = array[tuple(slice(None) if name in axes else 0 for name in names)]
    kept = [name for name in names if name in axes]
    array = array.transpose([kept.index(name) for name in axes if name in kept])
    return array[tuple(slice(None) if name in kept else None for name in axes)]


def is_unchanged(found: LayerInput, layer: Any, check: Callable[[], None] = lambda: None) -> bool:
    """Return whether a file holds all voxels of a layer, which may have been edited, or computed from the file.

    Parameters
    ----------
    found, layer
        What of the layer is scaled, and the layer.
    check
        Called before each part is compared; raises where that should end.
    """
    from dask.array.core import slices_from_chunks

    array = finest_array(layer)
    if not found.is_file or _only_reads(array):
        return True
    voxels = _in_order(found.volume, found.axes)
    for part in slices_from_chunks(voxels.chunks):
        check()
        if not _equal(voxels, array, part):
            return False
    return True


def _only_reads(array: Any) -> bool:
    """Return whether a lazy array is what was read, by the steps that it is made of; others may compute voxels."""
    steps = getattr(getattr(array, "dask", None), "layers", None)
    return steps is not None and all(name.startswith(READING) for name in steps)


def _input(layer: Any, source: Any, opening: Opening, volume: Volume, axes: str, why: str = "") -> LayerInput:
    """Return what of a layer is scaled, with the voxel size that it has."""
    scale = {name: abs(float(size)) for name, size in zip(axes, layer.scale, strict=True)}
    units = {name: str(unit) for name, unit in zip(axes, layer.units, strict=True)}
    unit = units["x"]
    known = [unit != "pixel", *(scale[name] != 1 for name in AXES if name in scale)]
    size, sized = volume.voxel_size or (1.0, 1.0, 1.0), volume.voxel_size is not None
    if any(known) and len({units[name] for name in AXES if name in units}) == 1:
        z, y, x = (scale.get(name, own) for name, own in zip(AXES, size, strict=True))
        size, sized = (z, y, x), True
    told = unit if unit != "pixel" else volume.unit
    labels = _kind(layer) == "labels" or volume.labels
    return LayerInput(source, opening, volume, axes, size, told, sized, labels, why)


def _kind(layer: Any) -> str:
    """Return "image" or "labels"."""
    return "labels" if "Labels" in {each.__name__ for each in type(layer).__mro__} else "image"


def default_output(layer: Any) -> str:
    """Return the path of a new OME-Zarr beside a layer's file, or in the user's folder."""
    path = _path(layer)
    folder = Path.home() if not path or is_address(path) else Path(path).parent
    stem = Path(path).name.split(".")[0]
    name = layer.name if stem in layer.name else f"{stem} {layer.name}"
    name = re.sub(r"[^\w.-]+", "_", name).strip("_.") or "layer"
    return str(folder / f"{name}_isotropic.zarr")


# ---- from a result to a layer ----------------------------------------------------------------------------------------


def new_scale(layer: Any, axes: str, voxel_size: Float3, unit: str | None) -> dict[str, Any]:
    """Return scale, translation and units that a layer has with a voxel size; nothing where it has that one."""
    sizes = dict(zip(AXES, voxel_size, strict=True))
    scale = [sizes.get(name, own) for name, own in zip(axes, layer.scale, strict=True)]
    had = [str(unit) for unit in layer.units]
    units = [unit or own if name in AXES else own for name, own in zip(axes, had, strict=True)]
    if np.allclose(scale, layer.scale, rtol=1e-9, atol=0) and units == had:
        return {}
    # Without a unit the layer lies in its own voxels, and so does its translation.
    counted = set(had) == {"pixel"}
    moved = np.asarray(layer.translate) * (np.asarray(scale) / layer.scale if counted else 1)
    return {"scale": scale, "translate": list(moved), "units": units}


def result_layer(layer: Any, found: LayerInput, result: ScaleResult) -> tuple[Any, dict[str, Any], str]:
    """Return the layer that shows a result, as napari takes it: its levels, lazy; its arguments; its kind.

    Parameters
    ----------
    layer
        The layer that was scaled, in whose world the result lies.
    found
        What of it was.
    result
        What was made of that.
    """
    plan = result.plan
    names = [*(name for name, _ in plan.source.series), *AXES]
    levels = [arranged(result.open(level), names, found.axes) for level in range(1 + len(plan.further))]
    factors = dict(zip(AXES, plan.factor, strict=True))
    factor = np.array([factors.get(name, 1.0) for name in found.axes])
    # Voxel 0 of the result in voxels of the layer; what lies behind it in the world, but for the layer's own affine.
    first = (1 / factor - 1) / 2
    kind = "labels" if found.labels else "image"
    arguments = {name: getattr(layer, name) for name in LOOK[kind] if kind == _kind(layer)}
    arguments |= {name: getattr(layer, name) for name in ("rotate", "shear", "affine", "units", "axis_labels")}
    arguments |= {
        "name": f"{layer.name} isotropic",
        "scale": np.asarray(layer.scale) / factor,
        "translate": layer.affine.inverse(layer.data_to_world(first)),
        "multiscale": len(levels) > 1,
        "metadata": {WRITTEN: str(result.path)},
    }
    return levels if len(levels) > 1 else levels[0], arguments, kind


# ---- the job of a plug-in's form ---------------------------------------------------------------------------------

# Jobs of layers: what a user asks for, what it costs in words, and how it is done and cancelled.


@dataclass(frozen=True)
class Request:
    """What a user asks for."""

    voxel_size: Float3
    """Of the layer, z, y, x."""
    unit: str | None = None
    """Of the lengths."""
    how_far: tuple[str, float] | None = None
    """"voxel_size" or "zoom" and its value; the finest side becomes that of all where it is None."""
    antialias: bool = False
    """Whether axes that shrink are averaged."""
    engine: str = "auto"
    """"auto" or a name."""
    device: str = "auto"
    """As ``--device`` takes it."""


def parse_numbers(what: str, text: str, count_of: int) -> tuple[float, ...]:
    """Return numbers that a user has written, separated by commas or spaces.

    Raises
    ------
    OptionError
        If they are not so many numbers.

    Examples
    --------
    >>> parse_numbers("voxel size", "1, 0.202 0.202", 3)
    (1.0, 0.202, 0.202)
    """
    try:
        values = tuple(float(word) for word in text.replace(",", " ").split())
    except ValueError:
        values = ()
    if len(values) != count_of:
        form = "three numbers, z, y, x, such as 1, 0.2, 0.2" if count_of == len(AXES) else "a number, such as 0.5"
        raise OptionError(f"the {what} is {form}, not {text.strip() or 'nothing'}")
    return values


def keywords(found: LayerInput, request: Request) -> dict[str, Any]:
    """Return the options of `isovoxel.scale` for a layer: what its file says itself is left out."""
    options: dict[str, Any] = dict(found.opening)
    size, unit = found.volume.voxel_size, request.unit or None
    if size is None or not np.allclose(size, request.voxel_size, rtol=1e-9, atol=0):
        options["input_voxel_size"] = request.voxel_size
    if unit is not None and unit != found.volume.unit:
        options["unit"] = unit
    if request.how_far is not None:
        options[request.how_far[0]] = request.how_far[1]
    if request.antialias:
        options["antialias"] = True
    if found.labels and not found.volume.labels:
        options["labels"] = True
    options |= {name: value for name in ("engine", "device") if (value := getattr(request, name)) != "auto"}
    return options


def command(source: str, output: str, options: Mapping[str, Any]) -> str:
    """Return the words of the command line that does a job, or what is left of it.

    Examples
    --------
    >>> command("a b.tif", "out.zarr", {"zoom": 2.0, "labels": True, "input_voxel_size": (1.0, 0.5, 0.5)})
    "isovoxel scale 'a b.tif' out.zarr --zoom 2.0 --labels --input-voxel-size 1.0,0.5,0.5"
    """
    words = ["isovoxel", "scale", source, output]
    for name, value in options.items():
        words.append((SURFACES[name].flags or f"--{name.replace('_', '-')}").partition("/")[0])
        if value is not True:
            words.append(",".join(map(repr, value)) if isinstance(value, tuple) else str(value))
    if os.name == "nt":
        from subprocess import list2cmdline

        return list2cmdline(words)
    return shlex.join(words)


def plan_words(planned: Plan, found: LayerInput, cost: Forecast) -> list[str]:
    """Return what a plan would do, and what it takes and costs, a sentence each."""
    host = max(level.projected_host for level in planned.levels)
    device = max(level.projected_device for level in planned.levels)
    volumes = f"{planned.source.n_volumes:,} volumes, each of " if planned.source.series else ""
    levels = f", and {count(len(planned.further), 'coarser level')}" if planned.further else ""
    lines = dict(plan_lines(planned, cost))
    host_bytes = f"{human_bytes(host)} of {human_bytes(planned.host.allowed)} that it may take"
    device_bytes = f"{human_bytes(device)} of {human_bytes(planned.device.allowed)}"
    words = [
        f"{'File' if found.is_file else 'Array'}: {volumes}{grid_text(planned.source.grid)}, {planned.source.dtype}.",
        f"Result: {volumes}{grid_text(planned.output)}, {human_bytes(planned.output_bytes)}{levels}.",
        f"Work: {count(planned.all_blocks, 'block')}, {planned.in_flight} at a time, by engine {lines['engine']}.",
        f"Memory: at most {host_bytes}; on the device {device_bytes}.",
        f"Time: {lines['time']}.",
    ]
    if found.why:
        words.append(f"The layer's array is scaled, because {found.why}.")
    if not found.sized:
        words.append("Neither layer nor file says the voxel size: enter it above if 1, 1, 1 is wrong.")
    if planned.identity:
        words.append("The voxels keep their size: nothing is scaled.")
    if planned.coarse:
        words.append("This engine takes 256 steps between two voxels on a GPU; engine exact has no steps.")
    if planned.aliases:
        words.append(f"Shrinking along {' and '.join(planned.aliases)} skips voxels: averaging would use them all.")
    return [*words, *(f"{note[:1].upper()}{note[1:]}." for note in planned.source.notes)]


def plan_layer(found: LayerInput, request: Request, output: str, *, overwrite: bool) -> list[str]:
    """Return what scaling a layer would do and cost, in words.

    Parameters
    ----------
    found, request
        What of the layer is scaled, and how.
    output, overwrite
        As of `isovoxel.plan`.
    """
    planned = plan(found.source, output, overwrite=overwrite, **keywords(found, request))
    return plan_words(planned, found, forecast(planned, place_of(output)))


class Follower:
    """Listens to a job: notes how far it is, and interrupts it where the user has cancelled it.

    Parameters
    ----------
    found
        What of a layer is scaled.
    """

    def __init__(self, found: LayerInput) -> None:
        self.found = found
        self.view = ProgressView(bar=False, notes=False)
        self.notes: list[str] = []
        self.done = self.total = 0
        self.cancelled = False
        self._stopped = False
        self._notes = Notes()

    def check(self) -> None:
        """Interrupt what comes before the job where the user has cancelled it."""
        if self.cancelled:
            raise KeyboardInterrupt

    def __call__(self, event: Event) -> None:
        """Take note of an event; interrupt the job once, as Ctrl-C does."""
        self.view(event)
        notes = [note.removeprefix("note: ") for note in self._notes.of(event)]
        match event:
            case JobStarted(plan=planned, done=done):
                self.total, self.done = planned.all_blocks, done
            case BlockDone():
                self.done += 1
            case JobStopped(done=done):
                self.done = done
        if not isinstance(event, JobStarted):  # of which the plan has told
            self.notes += notes
        if self.cancelled and not self._stopped and isinstance(event, JobStarted | BlockDone | LevelBegun | Retried):
            self._stopped = True
            raise KeyboardInterrupt


def scale_layer(layer: Any, follower: Follower, request: Request, output: str, *, overwrite: bool) -> ScaleResult:
    """Scale a layer: its file, or its array where that was edited since it was read from the file.

    Parameters
    ----------
    layer
        The layer.
    follower
        Knows what of it is scaled, and from here on, what really is; told what happens.
    request
        How it is scaled.
    output, overwrite
        As of `isovoxel.scale`.
    """
    found = follower.found
    if not is_unchanged(found, layer, follower.check):
        why = f"its voxels are no longer those of {found.source}"
        follower.found = found = replace(find_input(layer, found.axes, file=False), why=why)
    return scale(found.source, output, overwrite=overwrite, listeners=[follower], **keywords(found, request))
