"""What may stand on the command line, what is it called, and what does it mean? Each option and argument, once.

A command names those that it has: their types here say how they are parsed and what the help says of them. The options
of a job file come in here too, since they are the same ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand

from isovoxel.job_file import NOT_KEPT, read_job, variable, write_job
from isovoxel.options import Opening, ScalingOptions
from isovoxel.terminal import DEBUG

# ---- from a job file and the environment, and to a job file ----------------------------------------------------

ARGUMENTS = {"source": "input", "output": "output"}
"""What arguments are called in a job file."""

HOW_FAR = frozenset({"zoom", "voxel_size", "factor"})
"""Options of which one says how far to scale: any of them wins over any in a job file."""


def _key(parameter: Any) -> str:
    """Return what an option or an argument is called in a job file."""
    long = next((name for name in parameter.opts if name.startswith("--")), None)
    return ARGUMENTS[parameter.name] if long is None else str(long[2:].replace("-", "_"))


def _keys(command: Any) -> dict[str, Any]:
    """Return what of a command a job file may have, by its keys."""
    return {key: parameter for parameter in command.params if (key := _key(parameter)) not in NOT_KEPT}


def _load(context: typer.Context, path: str | None) -> str | None:
    """Take options from a job file, where neither the command line nor the environment has them."""
    if path is not None:
        keys = _keys(context.command)
        # A plan is made for a job: what the file says of running it is no mistake.
        group: Any = context.parent.command if context.parent else None
        running = _keys(group.commands["scale"]) if group is not None and context.command.name == "plan" else {}
        known = {key: bool(getattr(p, "is_flag", False)) for key, p in (running | keys).items()}
        found = read_job(path, known)
        context.default_map = {keys[key].name: value for key, value in found.items() if key in keys}
        for name in HOW_FAR & context.default_map.keys():
            context.default_map[name] = partial(_unless_said, context, context.default_map[name])
    return path


def _unless_said(context: typer.Context, value: Any) -> Any:
    """Return how far a job file says, or None where the command line or the environment says it in another way.

    Options of the command line have been taken when typer asks for this.
    """
    said = any(context.params.get(name) is not None for name in HOW_FAR)
    return None if said or any(os.environ.get(variable(name) or "") for name in HOW_FAR) else value


def _debug(value: bool) -> None:
    """Ask for tracebacks, of this process and of those that it starts."""
    if value:
        os.environ[DEBUG] = "1"


def save_job(context: typer.Context, path: str) -> None:
    """Write a job file of what was given, from wherever it came."""
    given = {
        key: context.params[parameter.name]
        for key, parameter in _keys(context.command).items()
        if (source := context.get_parameter_source(parameter.name)) is not None and source.name != "DEFAULT"
    }
    write_job(path, {key: value for key, value in given.items() if value is not None and key != "json"})


def options_of(group: Any) -> set[str]:
    """Return the names of the options of all commands."""
    return {_key(each) for one in group.commands.values() for each in one.params if each.param_type_name == "option"}


def take_variables(group: Any) -> None:
    """Make each option of a group's commands an environment variable's too; all commands have ``--debug``."""
    debug = next(each for each in group.params if each.name == "debug")
    for each in group.commands.values():
        for parameter in each.params:
            if parameter.param_type_name == "option":
                parameter.envvar, parameter.show_envvar = variable(_key(parameter)), False
        each.params.append(debug)


# ---- of several commands ---------------------------------------------------------------------------------------


def _three(kind: Callable[[str], Any], example: str) -> Callable[[str], tuple[Any, Any, Any]]:
    def parse(text: str) -> tuple[Any, Any, Any]:
        try:
            z, y, x = (kind(part) for part in text.split(","))
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not three numbers z,y,x such as {example}") from None
        return (z, y, x)

    return parse


OVERWRITE, KEPT, NOW = "--overwrite", "kept", "now"
"""The one option that has a value or none; what it is where it has none; and the only one that it takes."""


class WithOverwrite(TyperCommand):
    """A command whose option ``--overwrite`` may be followed by the word ``now``, and by whatever else."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give the option a value where it has none, which click cannot: it would take the next word, a path say."""
        said: list[str] = []
        ended = False
        for word, after in pairwise([*args, ""]):
            ended |= word == "--"
            said.append(f"{word}={KEPT}" if word == OVERWRITE and after != NOW and not ended else word)
        return super().parse_args(ctx, said)


def without_overwrite(words: Sequence[str]) -> list[str]:
    """Return the words of a command without the option.

    Examples
    --------
    >>> without_overwrite(["scale", "--overwrite", "now", "a.tif", "--overwrite=now", "b.zarr", "--overwrite"])
    ['scale', 'a.tif', 'b.zarr']
    """
    pairs = pairwise(["", *words])
    kept = [word for before, word in pairs if not (word == NOW and before == OVERWRITE)]
    return [word for word in kept if word.partition("=")[0] != OVERWRITE]


def _overwrite(text: str | bool) -> bool | str:
    if isinstance(text, bool):  # the default
        return text
    if text not in (KEPT, NOW):
        raise typer.BadParameter(f"{text!r} is not now, the one word that it takes")
    return True if text == KEPT else text


Input = Annotated[
    str,
    typer.Argument(
        metavar="INPUT",
        help="TIFF, folder or 'pattern*.tif' of slices, OME-Zarr, zarr array, N5, HDF5 (file.h5:/dataset), Imaris, "
        "NIfTI, CZI, LIF, ND2, DV or .npy; or a zarr in an object store (s3://, gs://, az://, https://).",
    ),
]
Zoom = Annotated[float | None, typer.Option(metavar="Z", help="Factor per axis = voxel size x Z.")]
VoxelSize = Annotated[
    float | None, typer.Option(metavar="S", help="Side of the cubic output voxels, in the input's unit.")
]
Factor = Annotated[
    Any,
    typer.Option(metavar="FZ,FY,FX", parser=_three(float, "5,1,1"), help="Output voxels per input voxel."),
]
InputVoxelSize = Annotated[
    Any,
    typer.Option(
        metavar="Z,Y,X",
        parser=_three(float, "1,0.2,0.2"),
        help="Voxel size of the input; overrides its metadata.",
    ),
]
Unit = Annotated[str | None, typer.Option(metavar="NAME", help="Unit of the input's lengths, such as micrometer.")]
Level = Annotated[
    int | None, typer.Option(metavar="N", help="Resolution level of an OME-Zarr image; default: 0, the finest.")
]
Channel = Annotated[
    int | None, typer.Option(metavar="N", help="Which of several channels, counted from 0; default: all.")
]
Time = Annotated[
    int | None, typer.Option(metavar="N", help="Which of several time points, counted from 0; default: all.")
]
Axes = Annotated[
    str | None,
    typer.Option(metavar="NAMES", help="Names of the input's axes, such as tczyx, where it does not name them itself."),
]
Crop = Annotated[
    str | None,
    typer.Option(
        metavar="Z0:Z1,Y0:Y1,X0:X1",
        help="Input voxels to take; ends may be open, and numbers below 0 count from the end.",
    ),
]
Interpolation = Annotated[
    str | None,
    typer.Option(
        metavar="linear|nearest|cubic|area|mode",
        help="Default: linear, and nearest for labels; mode is a majority vote.",
    ),
]
Antialias = Annotated[
    bool | None, typer.Option("--antialias", help="Average where an axis shrinks, in place of skipping voxels.")
]
Labels = Annotated[
    bool | None,
    typer.Option("--labels/--no-labels", help="Voxels are labels: moved, never mixed. Default: what the input says."),
]
EngineName = Annotated[
    str | None, typer.Option("--engine", metavar="cle|exact", help="Default: cle on GPUs, exact on CPUs.")
]
Boundary = Annotated[
    str | None,
    typer.Option(
        metavar="nearest|constant", help="Default: nearest repeats the rim; constant is cle.scale's dark rim."
    ),
]
DeviceName = Annotated[str, typer.Option("--device", metavar="NAME|INDEX|gpu|cpu|auto", help="OpenCL device.")]
JobDevice = Annotated[
    str | None, typer.Option("--device", metavar="NAME|INDEX|gpu|cpu|auto", help="OpenCL device; default: auto.")
]
Halo = Annotated[
    str | None,
    typer.Option(metavar="auto|map_overlap|direct", help="How blocks get their neighbours' voxels; default: auto."),
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Host memory to stay within, such as 8GiB; a job takes 0.6GB at least, 0.9GB with a GPU."
    ),
]
DeviceMemory = Annotated[str | None, typer.Option(metavar="SIZE", help="Device memory to stay within.")]
Threads = Annotated[int | None, typer.Option(metavar="N", help="Blocks in flight at the same time.")]
Chunk = Annotated[
    Any,
    typer.Option(metavar="Z,Y,X", parser=_three(int, "128,128,128"), help="Voxels per chunk of the output."),
]
Shard = Annotated[
    Any,
    typer.Option(metavar="Z,Y,X", parser=_three(int, "256,256,256"), help="Voxels per file of the output."),
]
Codec = Annotated[str | None, typer.Option(metavar="lz4|zstd|none", help="Compression of the output; default: lz4.")]
OmeZarr = Annotated[
    str | None,
    typer.Option(
        metavar="0.4|0.5", help="Version of the output; default: 0.5. 0.4 has no shards: it is one file a chunk."
    ),
]
KeepReceipts = Annotated[
    bool | None,
    typer.Option(
        "--keep-receipts", help="Keep size and checksum of each file beside the output, in OUTPUT.isovoxel, for verify."
    ),
]
Levels = Annotated[
    str | None,
    typer.Option(
        metavar="auto|N", help="Further levels, each of half the size; default: auto, until 256 voxels a side."
    ),
]
WithLabels = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Labels of the same voxels, scaled too and written into the image's labels."),
]
LabelsBy = Annotated[
    str, typer.Option(metavar="auto|nearest|mode", help="How those are scaled; auto: mode where an axis shrinks.")
]
Workers = Annotated[
    str | None,
    typer.Option(metavar="auto|N|cpu:N", help="Worker processes here: one on each GPU, or on the processor."),
]
Scheduler = Annotated[str | None, typer.Option(metavar="ADDRESS|FILE", help="dask scheduler, whose workers do it.")]
Output = Annotated[
    str, typer.Argument(metavar="OUTPUT", help="OME-Zarr to write: a path, or an address (s3://, gs://, az://).")
]
Overwrite = Annotated[
    Any,
    typer.Option(
        "--overwrite",
        metavar="[now]",
        parser=_overwrite,
        help="Replace an OME-Zarr that is there, and keep it until the new one is complete; now: delete it first.",
    ),
]
OnCorrupt = Annotated[
    str, typer.Option(metavar="stop|fill", help="What to do with damaged parts of the input: fill makes them 0.")
]
ReportPath = Annotated[
    str | None, typer.Option("--report", metavar="HTML", help="Write a page that tells and shows what was done.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Config = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", is_eager=True, callback=_load, help="TOML file of options, such as plan --save writes."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


# ---- of one command only ---------------------------------------------------------------------------------------

PlannedOutput = Annotated[
    str | None, typer.Argument(metavar="[OUTPUT]", help="OME-Zarr that scale shall write: checked, or kept by --save.")
]
Picture = Annotated[
    str | None, typer.Option(metavar="SVG", help="Draw blocks, shards and halo on the output's three faces.")
]
Save = Annotated[str | None, typer.Option(metavar="FILE", help="Save all this as a job file, for scale --config FILE.")]
Isolate = Annotated[
    bool, typer.Option("--isolate", help="Scale in a process of its own, in case the device's driver crashes.")
]
Written = Annotated[str, typer.Argument(metavar="OUTPUT", help="OME-Zarr that isovoxel has written.")]
Against = Annotated[str | None, typer.Option(metavar="INPUT", help="Its source, where that is no longer where it was.")]
EveryChunk = Annotated[
    bool, typer.Option("--every-chunk", help="Read every chunk of it as well: damage is found wherever it is.")
]
Samples = Annotated[int, typer.Option(metavar="N", help="Boxes to compute again.")]
ClesInterpolation = Annotated[str, typer.Option(metavar="linear|nearest", help="As cle.scale has it.")]
Shown = Annotated[str, typer.Argument(metavar="FILE", help="What to draw: any input of the other commands.")]
ShownBeside = Annotated[
    str | None, typer.Argument(metavar="FILE2", help="Drawn beside it, at the same scale: its result, say.")
]
Drawing = Annotated[
    str | None, typer.Option("--output", "-o", metavar="PNG", help="Default: FILE.png in the working folder.")
]
Coloured = Annotated[
    bool | None,
    typer.Option("--labels/--no-labels", help="Voxels are labels: a colour for each. Default: what the files say."),
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the demo's files.")]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        envvar=DEBUG,
        show_envvar=False,
        expose_value=False,
        is_eager=True,
        callback=_debug,
        help="Show where a failure comes from, in workers too.",
    ),
]
Version = Annotated[bool, typer.Option("--version", help="Print the version.")]


# ---- what they mean --------------------------------------------------------------------------------------------

RUNNING = ("overwrite", "on_corrupt", "isolate", "with_labels", "labels_by", "workers", "scheduler")
"""Options that say how a job is run, and by whom: keywords of `isovoxel.api.scale`."""


def scaling_options(given: Mapping[str, Any]) -> ScalingOptions:
    """Return which of a command's parameters say how a volume is scaled.

    Parameters
    ----------
    given
        The command's ``locals()``, before it has others.
    """
    return cast(ScalingOptions, {name: given[name] for name in ScalingOptions.__annotations__ if name in given})


def opening_options(given: Mapping[str, Any]) -> Opening:
    """Return which of a command's parameters say how its input is opened; a command that opens one has them all.

    Parameters
    ----------
    given
        The command's ``locals()``, before it has others.
    """
    names = {"voxel_size": "input_voxel_size"}
    return cast(Opening, {name: given[names.get(name, name)] for name in Opening.__annotations__})


def running_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return which of a command's parameters say how a job is run.

    Parameters
    ----------
    given
        The command's ``locals()``, before it has others.
    """
    return {name: given[name] for name in RUNNING if name in given}
