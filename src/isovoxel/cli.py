"""The command line: it parses, calls the API once, and prints.

Results go to standard output, everything else (progress, notes, errors) to standard error. Exit codes: 0 done,
1 failed half-way, 2 nothing was begun, 130 interrupted, 143 ended by the system.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from isovoxel.errors import InterruptedJobError, IsovoxelError, OptionError
from isovoxel.job_file import NOT_KEPT, read_job, variable, write_job
from isovoxel.run.result import ScaleResult
from isovoxel.views.records import Line, Record

# typer brings its own copy of click, and of click's errors only some names are typer's: this is UsageError.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="isovoxel",
    help="Scale volumes that fit neither the graphics card nor the memory to isotropic voxels.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


def _save(context: typer.Context, path: str) -> None:
    """Write a job file of what was given, from wherever it came."""
    given = {
        key: context.params[parameter.name]
        for key, parameter in _keys(context.command).items()
        if (source := context.get_parameter_source(parameter.name)) is not None and source.name != "DEFAULT"
    }
    write_job(path, {key: value for key, value in given.items() if value is not None and key != "json"})


def _three(kind: Callable[[str], Any], example: str) -> Callable[[str], tuple[Any, Any, Any]]:
    def parse(text: str) -> tuple[Any, Any, Any]:
        try:
            z, y, x = (kind(part) for part in text.split(","))
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not three numbers z,y,x such as {example}") from None
        return (z, y, x)

    return parse


Input = Annotated[
    str,
    typer.Argument(
        metavar="INPUT",
        help="TIFF, folder or 'pattern*.tif' of slices, OME-Zarr, zarr array, N5, HDF5 (file.h5:/dataset), Imaris, "
        "NIfTI, CZI, LIF, ND2, DV or .npy.",
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
Channel = Annotated[int | None, typer.Option(metavar="N", help="Which of several channels, counted from 0.")]
Time = Annotated[int | None, typer.Option(metavar="N", help="Which of several time points, counted from 0.")]
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
    bool, typer.Option("--antialias", help="Average where an axis shrinks, in place of skipping voxels.")
]
Labels = Annotated[
    bool | None,
    typer.Option("--labels/--no-labels", help="Voxels are labels: moved, never mixed. Default: what the input says."),
]
EngineName = Annotated[str | None, typer.Option("--engine", metavar="cle|exact", help="Default: cle where it can.")]
Boundary = Annotated[
    str,
    typer.Option(metavar="nearest|constant", help="nearest repeats the rim; constant is cle.scale's dark rim."),
]
DeviceName = Annotated[str, typer.Option("--device", metavar="NAME|INDEX|auto", help="OpenCL device.")]
Halo = Annotated[str, typer.Option(metavar="auto|map_overlap|direct", help="How blocks get their neighbours' voxels.")]
Memory = Annotated[str | None, typer.Option(metavar="SIZE", help="Host memory to stay within, such as 8GiB.")]
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
Codec = Annotated[str, typer.Option(metavar="lz4|zstd|none", help="Compression of the output.")]
Levels = Annotated[
    str, typer.Option(metavar="auto|N", help="Further levels, each of half the size; auto: until 256 voxels a side.")
]
Workers = Annotated[
    str | None,
    typer.Option(metavar="auto|N|cpu:N", help="Worker processes here: one on each GPU, or on the processor."),
]
Scheduler = Annotated[str | None, typer.Option(metavar="ADDRESS|FILE", help="dask scheduler, whose workers do it.")]
Output = Annotated[str, typer.Argument(metavar="OUTPUT", help="OME-Zarr to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an OME-Zarr that is there.")]
OnCorrupt = Annotated[
    str, typer.Option(metavar="stop|fill", help="What to do with damaged parts of the input: fill makes them 0.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Config = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", is_eager=True, callback=_load, help="TOML file of options, such as plan --save writes."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def _show(record: Record, lines: Sequence[Line], *, as_json: bool) -> None:
    """Print the record for a machine, or the lines for a person."""
    from isovoxel.views.records import text

    print(json.dumps(record, allow_nan=False) if as_json else text(lines))  # noqa: T201 - this is what it is for


def _show_result(result: ScaleResult, *, as_json: bool, report: str | None = None) -> None:
    """Print what a job did, and who of its workers did what."""
    from isovoxel.views.records import result_lines, result_record

    record, lines = result_record(result), result_lines(result)
    if result.workers:
        from isovoxel.views.workers import share_lines, share_record

        record |= {"workers": {name: share_record(s, result.seconds) for name, s in result.workers.items()}}
        lines += share_lines(result)
    if report is not None:
        record, lines = record | {"report": report}, [*lines, ("report", report)]
    _show(record, lines, as_json=as_json)


def _note(text: str) -> None:
    """Say something that is not a result."""
    print(text, file=sys.stderr)  # noqa: T201


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from isovoxel.version import __version__

        print(f"isovoxel {__version__}")  # noqa: T201
    elif context.invoked_subcommand is None:
        print(context.get_help())  # noqa: T201


@app.command()
def info(
    source: Input,
    input_voxel_size: InputVoxelSize = None,
    unit: Unit = None,
    level: Level = None,
    channel: Channel = None,
    time: Time = None,
    crop: Crop = None,
    as_json: Json = False,
) -> None:
    """Show shape, dtype, axes, voxel size and unit, and where each was read from."""
    from isovoxel.api import open_volume, output_state
    from isovoxel.views.records import volume_lines, volume_record

    volume = open_volume(
        source, voxel_size=input_voxel_size, unit=unit, level=level, channel=channel, time=time, crop=crop
    )
    state = output_state(source)
    _show(volume_record(volume, state), volume_lines(volume, state), as_json=as_json)


@app.command()
def plan(
    context: typer.Context,
    source: Input,
    output: Annotated[
        str | None, typer.Argument(metavar="[OUTPUT]", help="OME-Zarr that scale shall write, for --save.")
    ] = None,
    zoom: Zoom = None,
    voxel_size: VoxelSize = None,
    factor: Factor = None,
    input_voxel_size: InputVoxelSize = None,
    unit: Unit = None,
    level: Level = None,
    channel: Channel = None,
    time: Time = None,
    crop: Crop = None,
    interpolation: Interpolation = None,
    antialias: Antialias = False,
    labels: Labels = None,
    engine: EngineName = None,
    boundary: Boundary = "nearest",
    device: DeviceName = "auto",
    halo: Halo = "auto",
    memory: Memory = None,
    device_memory: DeviceMemory = None,
    threads: Threads = None,
    chunk: Chunk = None,
    shard: Shard = None,
    codec: Codec = "lz4",
    levels: Levels = "auto",
    workers: Workers = None,
    scheduler: Scheduler = None,
    picture: Annotated[
        str | None, typer.Option(metavar="SVG", help="Draw blocks, shards and halo on the output's three faces.")
    ] = None,
    config: Config = None,
    save: Annotated[
        str | None, typer.Option(metavar="FILE", help="Save all this as a job file, for scale --config FILE.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what would happen: output, blocks, halo, projected and allowed bytes. Nothing is written but a picture."""
    from isovoxel import api
    from isovoxel.views.notes import hints
    from isovoxel.views.records import plan_lines, plan_record

    if output is not None and save is None and config is None:
        raise OptionError(f"a plan writes no output; leave out {output}, or save the job with --save FILE")
    if picture is not None:
        from isovoxel.views.plan_picture import check_plan_picture, save_plan_svg

        check_plan_picture(picture)

    planned = api.plan(
        source,
        workers=workers,
        scheduler=scheduler,
        zoom=zoom,
        voxel_size=voxel_size,
        factor=factor,
        input_voxel_size=input_voxel_size,
        unit=unit,
        level=level,
        channel=channel,
        time=time,
        crop=crop,
        interpolation=interpolation,
        antialias=antialias,
        labels=labels,
        engine=engine,
        boundary=boundary,
        device=device,
        halo=halo,
        memory=memory,
        device_memory=device_memory,
        threads=threads,
        chunk=chunk,
        shard=shard,
        codec=codec,
        levels=levels,
    )
    if save is not None:
        _save(context, save)
    record, lines = plan_record(planned), plan_lines(planned)
    if picture is not None:
        save_plan_svg(planned, picture)
        record, lines = record | {"picture": picture}, [*lines, ("picture", picture)]
    _show(record, lines, as_json=as_json)
    for hint in hints(planned):
        _note(hint)


@app.command()
def scale(
    source: Input,
    output: Output,
    zoom: Zoom = None,
    voxel_size: VoxelSize = None,
    factor: Factor = None,
    input_voxel_size: InputVoxelSize = None,
    unit: Unit = None,
    level: Level = None,
    channel: Channel = None,
    time: Time = None,
    crop: Crop = None,
    interpolation: Interpolation = None,
    antialias: Antialias = False,
    labels: Labels = None,
    engine: EngineName = None,
    boundary: Boundary = "nearest",
    device: DeviceName = "auto",
    halo: Halo = "auto",
    memory: Memory = None,
    device_memory: DeviceMemory = None,
    threads: Threads = None,
    chunk: Chunk = None,
    shard: Shard = None,
    codec: Codec = "lz4",
    levels: Levels = "auto",
    workers: Workers = None,
    scheduler: Scheduler = None,
    overwrite: Overwrite = False,
    on_corrupt: OnCorrupt = "stop",
    isolate: Annotated[
        bool, typer.Option("--isolate", help="Scale in a process of its own, in case the device's driver crashes.")
    ] = False,
    report: Annotated[
        str | None, typer.Option(metavar="HTML", help="Write a page that tells and shows what was done.")
    ] = None,
    quiet: Quiet = False,
    config: Config = None,  # noqa: ARG001 - its callback takes it
    as_json: Json = False,
) -> None:
    """Scale a volume to isotropic voxels, or by the factors given, and write it as OME-Zarr 0.5.

    A job that ended before its time goes on when it is started again in the same way.
    """
    from isovoxel import api
    from isovoxel.run.signals import signals
    from isovoxel.views.progress import ProgressView
    from isovoxel.views.reporting import reporting

    with (
        reporting(report, source, output, input_voxel_size, unit, quiet=quiet or as_json) as told,
        ProgressView(bar=not quiet and not as_json, notes=not quiet) as progress,
        signals(),
    ):
        result = api.scale(
            source,
            output,
            overwrite=overwrite,
            on_corrupt=on_corrupt,
            isolate=isolate,
            workers=workers,
            scheduler=scheduler,
            listeners=(progress, *([told.recorder] if told else [])),
            zoom=zoom,
            voxel_size=voxel_size,
            factor=factor,
            input_voxel_size=input_voxel_size,
            unit=unit,
            level=level,
            channel=channel,
            time=time,
            crop=crop,
            interpolation=interpolation,
            antialias=antialias,
            labels=labels,
            engine=engine,
            boundary=boundary,
            device=device,
            halo=halo,
            memory=memory,
            device_memory=device_memory,
            threads=threads,
            chunk=chunk,
            shard=shard,
            codec=codec,
            levels=levels,
        )
        if told:
            told.result = result
    if as_json or not quiet:
        _show_result(result, as_json=as_json, report=report)


@app.command()
def convert(
    source: Input,
    output: Output,
    input_voxel_size: InputVoxelSize = None,
    unit: Unit = None,
    level: Level = None,
    channel: Channel = None,
    time: Time = None,
    crop: Crop = None,
    labels: Labels = None,
    device: DeviceName = "auto",
    memory: Memory = None,
    device_memory: DeviceMemory = None,
    threads: Threads = None,
    chunk: Chunk = None,
    shard: Shard = None,
    codec: Codec = "lz4",
    levels: Levels = "auto",
    workers: Workers = None,
    scheduler: Scheduler = None,
    overwrite: Overwrite = False,
    on_corrupt: OnCorrupt = "stop",
    quiet: Quiet = False,
    config: Config = None,  # noqa: ARG001 - its callback takes it
    as_json: Json = False,
) -> None:
    """Write a volume as OME-Zarr 0.5, every voxel as it is: the same job as scale, at factor 1."""
    from isovoxel import api
    from isovoxel.run.signals import signals
    from isovoxel.views.progress import ProgressView

    with ProgressView(bar=not quiet and not as_json, notes=not quiet) as progress, signals():
        result = api.convert(
            source,
            output,
            overwrite=overwrite,
            on_corrupt=on_corrupt,
            workers=workers,
            scheduler=scheduler,
            listeners=(progress,),
            input_voxel_size=input_voxel_size,
            unit=unit,
            level=level,
            channel=channel,
            time=time,
            crop=crop,
            labels=labels,
            device=device,
            memory=memory,
            device_memory=device_memory,
            threads=threads,
            chunk=chunk,
            shard=shard,
            codec=codec,
            levels=levels,
        )
    if as_json or not quiet:
        _show_result(result, as_json=as_json)


@app.command()
def verify(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="OME-Zarr that isovoxel has written.")],
    against: Annotated[
        str | None, typer.Option(metavar="INPUT", help="Its source, where that is no longer where it was.")
    ] = None,
    samples: Annotated[int, typer.Option(metavar="N", help="Boxes to compute again.")] = 400,
    as_json: Json = False,
) -> None:
    """Compute samples of a result again in float64, at block faces first; exit code 1 where it does not hold."""
    from isovoxel import api
    from isovoxel.views.records import verdict_lines, verdict_record

    found = api.verify(output, against=against, samples=samples)
    _show(verdict_record(found), verdict_lines(found), as_json=as_json)
    if not found.holds:
        raise typer.Exit(1)


@app.command()
def limits(
    source: Input,
    input_voxel_size: InputVoxelSize = None,
    unit: Unit = None,
    level: Level = None,
    channel: Channel = None,
    time: Time = None,
    crop: Crop = None,
    interpolation: Annotated[str, typer.Option(metavar="linear|nearest", help="As cle.scale has it.")] = "linear",
    device: DeviceName = "auto",
    config: Config = None,  # noqa: ARG001 - its callback takes it
    as_json: Json = False,
) -> None:
    """Show at which zoom cle.scale in one piece stops, on which limit, and how large the image would be."""
    from isovoxel import api
    from isovoxel.views.records import limits_lines, limits_record

    found = api.limits(
        source,
        input_voxel_size=input_voxel_size,
        unit=unit,
        level=level,
        channel=channel,
        time=time,
        crop=crop,
        interpolation=interpolation,
        device=device,
    )
    _show(limits_record(found), limits_lines(found), as_json=as_json)


@app.command()
def show(
    source: Annotated[str, typer.Argument(metavar="FILE", help="What to draw: any input of the other commands.")],
    other: Annotated[
        str | None, typer.Argument(metavar="FILE2", help="Drawn beside it, at the same scale: its result, say.")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="PNG", help="Default: FILE.png in the working folder.")
    ] = None,
    input_voxel_size: InputVoxelSize = None,
    unit: Unit = None,
    labels: Annotated[
        bool | None,
        typer.Option("--labels/--no-labels", help="Voxels are labels: a colour for each. Default: what the files say."),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Draw maximum projections along z, y and x, in true proportions and with scale bars, as a PNG file."""
    from isovoxel.views import show as views
    from isovoxel.views.reading import ReadingView

    with ReadingView(quiet=quiet or as_json) as reading:
        found = views.show(
            [source] if other is None else [source, other],
            output,
            voxel_size=input_voxel_size,
            unit=unit,
            labels=labels,
            reading=reading,
        )
    if as_json or not quiet:
        _show(views.shown_record(found), views.shown_lines(found), as_json=as_json)


@app.command()
def devices(workers: Workers = None, scheduler: Scheduler = None, as_json: Json = False) -> None:
    """List the OpenCL devices with the limits that matter, or the workers and the device that each holds."""
    if workers is not None or scheduler is not None:
        from isovoxel import api
        from isovoxel.views.workers import member_lines, member_record

        members = api.workers(workers=workers, scheduler=scheduler)
        _show({"workers": [member_record(m) for m in members]}, member_lines(members), as_json=as_json)
        return
    from isovoxel.engines.devices import find_device, list_devices
    from isovoxel.views.records import device_lines, device_record

    find_device()  # having none is an error that says what to install
    found = list_devices()
    _show({"devices": [device_record(d) for d in found]}, device_lines(found), as_json=as_json)


@app.command()
def demo(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the demo's files.")] = Path("isovoxel-demo"),
    device: DeviceName = "auto",
) -> None:
    """Make a stack like a blastocyst, and run all of the above on it."""
    from isovoxel.api import open_volume
    from isovoxel.demo import write_blastocyst
    from isovoxel.errors import OutputError
    from isovoxel.views.pictures import before_after

    stack, result, picture = folder / "blastocyst.tif", folder / "isotropic.zarr", folder / "before_after.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} cannot be made: {error.strerror}; give another one") from None
    write_blastocyst(stack)

    def step(*words: object) -> None:
        print(f"\n$ isovoxel {' '.join(str(w) for w in words)}", flush=True)  # noqa: T201

    step("devices")
    devices()
    step("info", stack)
    info(str(stack))
    step("limits", stack)
    limits(str(stack), device=device)
    step("plan", stack, "--zoom 2")
    plan(context, str(stack), zoom=2, device=device)
    step("scale", stack, result, "--zoom 2 --overwrite")
    scale(str(stack), str(result), zoom=2, device=device, overwrite=True)
    before_after(open_volume(stack), open_volume(result), picture)
    print(f"\nmaximum projections before and after: {picture}")  # noqa: T201


def command() -> Any:
    """Return the command line, each of whose options is also an environment variable's."""
    group: Any = typer.main.get_command(app)
    for each in group.commands.values():
        for parameter in each.params:
            if parameter.param_type_name == "option":
                parameter.envvar, parameter.show_envvar = variable(_key(parameter)), False
    return group


def _command_without_overwrite() -> str:
    return shlex.join(["isovoxel", *(word for word in sys.argv[1:] if word != "--overwrite")])


def main() -> None:
    """Run the command line; every failure that isovoxel knows is one sentence and an exit code."""
    try:
        code = command()(standalone_mode=False) or 0
    except IsovoxelError as error:
        code = error.exit_code
        with contextlib.suppress(OSError):  # the terminal may be closed
            _note(f"error: {error}")
            if isinstance(error, InterruptedJobError):
                _note(f"to go on: {_command_without_overwrite()}")
    except _UsageError as error:
        _note(f"error: {error.format_message().rstrip('.')}; see isovoxel --help")  # type: ignore[attr-defined]
        code = 2
    except BrokenPipeError:  # whoever read the output has gone: nothing is left to say, nor to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except (KeyboardInterrupt, typer.Abort):
        _note("interrupted")
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
