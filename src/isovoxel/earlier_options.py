"""Options of a job that resumes: those that are given, and else those that its output was made with.

Defaults may be others in a later version, on another machine, or for another command. They are for new outputs only.
What an output was made with stands in its attributes, and is taken from there. What is given is compared with it, and
refused where it differs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from isovoxel.errors import InputError, IsovoxelError, OutputExistsError
from isovoxel.object_store.addresses import place_of
from isovoxel.options import HOW_FAR, Options
from isovoxel.planner import open_input
from isovoxel.readers.base import Volume

_SIZES = ("input_voxel_size", "unit")
_PART = ("level", "channel", "time", "crop", "axes")


def as_begun(
    output: str | Path, given: Options, *, defaults: Mapping[str, Any] | None = None, here: bool = True
) -> Options:
    """Return the options of a job: what is given, and else what its output was made with, if it is there.

    Parameters
    ----------
    output
        Path or address of the output.
    given
        Options that the user gives.
    defaults
        What the command does where nothing is given, and nothing is there.
    here
        Whether a device of this process does it.

    Raises
    ------
    OutputExistsError
        If something is given that differs.
    """
    from isovoxel.execution.output import made_by, made_otherwise
    from isovoxel.execution.recipe import asked_otherwise, made_with

    place = place_of(output)
    made = None if given.overwrite else made_by(place)
    if made is None:
        return given.filled(defaults or {})
    try:
        was = made_with(made, str(output))
    except InputError as error:
        raise OutputExistsError(f"{error}; give --overwrite or another output") from error
    if changed := asked_otherwise(was, given.given):
        raise made_otherwise(place, made, changed)
    if not given.given.keys().isdisjoint(HOW_FAR):
        del was["factor"]
    options = given.filled({**(defaults or {}), **was})
    if here and options.engine == "cle" and options.or_new("device") == "auto":
        with contextlib.suppress(StopIteration):  # its bits depend on the device
            options = replace(options, device=_device_called(made["device"]["name"]))
    return options


def _device_called(name: Any) -> str:
    from isovoxel.engines.devices import list_devices

    return next(str(device.index) for device in list_devices() if device.name == name)


def open_as_begun(source: Any, options: Options, given: Options) -> tuple[Volume, Options]:
    """Open an input as the output was made of it, and return it and the options that do so.

    Parameters
    ----------
    source
        The input, as in `isovoxel.open_volume`.
    options
        As `as_begun` returns them.
    given
        What the user gives of them. If the input cannot be opened as the one was that the output was made of, it is
        another one, and is opened as the user says.
    """
    taken: dict[str, Any] = {name: getattr(options, name) for name in (*_SIZES, *_PART) if name not in given.given}
    nothing: dict[str, Any] = dict.fromkeys(taken)
    options = replace(options, **nothing)
    part = {name: taken[name] for name in _PART if taken.get(name) is not None}
    try:
        volume = open_input(source, replace(options, **part))
    except IsovoxelError:
        if not part:
            raise
        volume = open_input(source, options)
    else:
        options = replace(options, **part)
    # An input that says its sizes, and is as it was, says the same ones.
    size, unit = taken.get("input_voxel_size"), taken.get("unit")
    sizes: dict[str, Any] = {}
    if size is not None and size != (volume.voxel_size or (1.0, 1.0, 1.0)):
        sizes["input_voxel_size"] = size
    if unit is not None and unit != volume.unit:
        sizes["unit"] = unit
    if sizes:
        options = replace(options, **sizes)
        volume = open_input(source, options)
    return volume, options
