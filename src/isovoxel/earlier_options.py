"""Options that are not given again: those of the job that was begun, or of the output that is finished.

Defaults may be others in a later version, on another machine, or for another command. They are for new outputs only.
What an output was made with stands in its attributes, and is taken from there. What is given is compared with it, and
refused where it differs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from isovoxel.errors import InputError, IsovoxelError, OutputExistsError
from isovoxel.object_store.place import place_of
from isovoxel.options import ScalingOptions, selection_of
from isovoxel.readers.base import Volume

_HOW_FAR = ("zoom", "voxel_size", "factor")
_SIZES = ("input_voxel_size", "unit")
_PART = ("level", "channel", "time", "crop", "axes")


def as_begun(
    output: str | Path,
    given: Mapping[str, Any],
    *,
    overwrite: bool | str,
    defaults: Mapping[str, Any] | None = None,
    here: bool = True,
) -> ScalingOptions:
    """Return the options of a job: what is given, and else what its output was made with, if it is there.

    Parameters
    ----------
    output
        Path or address of the output.
    given
        Options that the user gives; None is not given.
    overwrite
        Whether the output is made anew.
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

    said = {name: value for name, value in given.items() if value is not None}
    place = place_of(output)
    made = None if overwrite else made_by(place)
    if made is None:
        return cast(ScalingOptions, {**(defaults or {}), **said})
    try:
        was = made_with(made, str(output))
    except InputError as error:
        raise OutputExistsError(f"{error}; give --overwrite or another output") from error
    if changed := asked_otherwise(was, said):
        raise made_otherwise(place, made, changed)
    if any(name in said for name in _HOW_FAR):
        del was["factor"]
    options = {**(defaults or {}), **was, **said}
    if here and options["engine"] == "cle" and options.get("device", "auto") == "auto":
        with contextlib.suppress(StopIteration):  # its bits depend on the device
            options["device"] = _device_called(made["device"]["name"])
    return cast(ScalingOptions, options)


def _device_called(name: Any) -> str:
    from isovoxel.engines.devices import list_devices

    return next(str(device.index) for device in list_devices() if device.name == name)


def open_as_begun(source: Any, options: ScalingOptions, given: Mapping[str, Any]) -> tuple[Volume, ScalingOptions]:
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
    said = {name: given[name] for name in (*_SIZES, *_PART) if given.get(name) is not None}
    taken = {name: options.get(name) for name in (*_SIZES, *_PART) if name not in said}
    others = {name: value for name, value in options.items() if name not in taken}
    part = {name: value for name, value in taken.items() if name in _PART and value is not None}
    try:
        volume = _opened(source, said | part)
    except IsovoxelError:
        if not part:
            raise
        volume, part = _opened(source, said), {}
    # An input that says its sizes, and is as it was, says the same ones.
    size, unit = taken.get("input_voxel_size"), taken.get("unit")
    sizes: dict[str, Any] = {}
    if size is not None and size != (volume.voxel_size or (1.0, 1.0, 1.0)):
        sizes["input_voxel_size"] = size
    if unit is not None and unit != volume.unit:
        sizes["unit"] = unit
    if sizes:
        volume = _opened(source, said | part | sizes)
    return volume, cast(ScalingOptions, others | part | sizes)


def _opened(source: Any, options: Mapping[str, Any]) -> Volume:
    from isovoxel.readers.open import open_volume

    return open_volume(
        source,
        voxel_size=options.get("input_voxel_size"),
        unit=options.get("unit"),
        selection=selection_of(cast(ScalingOptions, options)),
    )
