"""Jobs of layers: what a user asks for, what it costs in words, and how it is done and cancelled."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from isovoxel.api import ScaleResult, plan, scale
from isovoxel.errors import OptionError
from isovoxel.execution.events import BlockDone, Event, JobStarted, JobStopped, LevelBegun, Retried
from isovoxel.execution.result import Forecast, forecast
from isovoxel.geometry.grid import AXES, Float3
from isovoxel.napari.layers import LayerInput, find_input, is_unchanged
from isovoxel.object_store.objects import place_of
from isovoxel.options import SURFACES
from isovoxel.planning.memory import human_bytes
from isovoxel.planning.plan import Plan
from isovoxel.reporting.notes import Notes
from isovoxel.reporting.progress import ProgressView
from isovoxel.reporting.text import count, grid_text, plan_lines


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
