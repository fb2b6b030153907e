"""The command line: it parses, calls the API once, and prints.

Results go to standard output, everything else (progress, notes, errors) to standard error. Exit codes: 0 done,
1 failed half-way, 2 nothing was begun, 130 interrupted, 143 ended by the system. A job that is done is done where
nobody can be told, too; a result that is nothing but what is printed fails.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from errno import EPIPE
from pathlib import Path
from signal import SIGINT
from typing import Any

import typer

from isovoxel import parameters
from isovoxel.errors import InterruptedJobError, IsovoxelError, OptionError, clause
from isovoxel.object_store.retries import patience
from isovoxel.options import SURFACES, Options
from isovoxel.parameters import (
    WithOverwrite,
    invoke,
    save_job,
    take_variables,
    with_options,
    without_overwrite,
)
from isovoxel.readers.selection import means_several
from isovoxel.reporting import records, text
from isovoxel.terminal import Abandoned, columns, debugging, exit_code, lost, put, say, signals, trace

# typer brings its own copy of click, and of click's errors only some names are typer's: this is UsageError.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="isovoxel",
    help="Scale volumes that fit neither the graphics card nor the memory to isotropic voxels.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show(record: records.Record, lines: Sequence[text.Line], *, as_json: bool) -> None:
    """Print the record for a machine, or the lines for a person."""
    put([json.dumps(record, allow_nan=False)] if as_json else columns(lines))


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a function a command, which has the options that fields of `Options` give it."""
    cls = WithOverwrite if function.__name__ in SURFACES["overwrite"].commands else None
    return app.command(cls=cls)(with_options(function))


def _job_command(command: str, told: str) -> Callable[..., None]:
    """Make a command that does a job by the function of its name, tells how far it is, and prints what it did."""

    def do(
        source: parameters.Input,
        output: parameters.Output,
        *,
        options: Options,
        report: parameters.ReportPath = None,
        quiet: parameters.Quiet = False,
        config: parameters.Config = None,
        as_json: parameters.Json = False,
    ) -> None:
        if options.workers is None and options.scheduler is None and not options.isolate:
            from isovoxel.engines.devices import start_drivers

            start_drivers(options.or_new("device"), options.engine)
        from isovoxel import api
        from isovoxel.reporting.progress import ProgressView

        with _notes(quiet=quiet):
            _check_apart(source, output, options, config, {"report": report})
        with (
            _notes(quiet=quiet),
            _reporting(report, source, output, quiet=quiet or as_json, **options.opening) as reported,
            ProgressView(bar=not quiet and not as_json, notes=not quiet) as progress,
        ):
            listeners = (progress, *([reported.recorder] if reported else []))
            result = getattr(api, command)(source, output, listeners=listeners, **options.keywords(command))
            if reported:
                reported.result = result
        if quiet and not as_json:
            return
        record, lines = records.job_record(result), text.done_lines(result)
        if report is not None:
            record, lines = record | {"report": report}, [*lines, ("report", report)]
        _show(record, lines, as_json=as_json)
        if (error := lost()) is not None and error.errno != EPIPE:
            say(f"note: {output} is complete, but what was done cannot be printed: {error.strerror}")

    do.__name__, do.__doc__ = command, told
    return _command(do)


def _reporting(path: str | None, source: str, output: str, **how: Any) -> AbstractContextManager[Any]:
    """Return a context in which a report is written; it takes a while to load, and most jobs have none."""
    if path is None:
        return nullcontext()
    if means_several(how.get("image")):
        raise OptionError("a report is of one image: leave out --report, or name one image")
    from isovoxel.reporting.report import reporting

    return reporting(path, source, output, **how)


def _note_attempt(error: Exception, pause: float) -> None:
    """Say that a store failed, and is asked again."""
    say(f"note: asking a store failed ({clause(error)}); it is asked again in {pause:g} s")


def _notes(*, quiet: bool) -> AbstractContextManager[None]:
    """Return a context in which stores that fail are asked again without a word, if a command is quiet."""
    return patience((lambda _error, _pause: None) if quiet else None)


def _check_apart(
    source: str, output: str | None, options: Options, config: str | None, files: Mapping[str, str | None]
) -> None:
    """Raise where a command would write one of its files over one that it reads, or over another that it writes."""
    from isovoxel.execution.inputs import Named, check_apart, folders_of, read_as
    from isovoxel.jobs import name_of

    labels = options.with_labels
    read = {"input": source, "labels": labels, "other volume": options.like}
    read |= {"job file": config, "scheduler's file": options.scheduler}
    check_apart(
        [place for what, where in read.items() if where for place in read_as(what, where)],
        folders_of(output, labels and name_of(labels)) if output else (),
        [Named(what, Path(where)) for what, where in files.items() if where],
    )


@app.callback(invoke_without_command=True)
def _main(context: typer.Context, version: parameters.Version = False, debug: parameters.Debug = False) -> None:
    del debug  # has been seen to
    if version:
        from isovoxel.version import __version__

        put([f"isovoxel {__version__}"])
    elif context.invoked_subcommand is None:
        put(context.get_help().splitlines())


@_command
def info(
    source: parameters.Input,
    *,
    options: Options,
    as_json: parameters.Json = False,
) -> None:
    """Show shape, dtype, axes, voxel size and unit, and where each was read from."""
    from isovoxel.api import output_state
    from isovoxel.image_jobs import open_chosen

    volume = open_chosen(source, options)
    if isinstance(volume, dict):
        _show(records.images_record(source, volume), text.images_lines(source, volume), as_json=as_json)
        return
    state = output_state(source)
    _show(records.volume_record(volume, state), text.volume_lines(volume, state), as_json=as_json)


@_command
def plan(
    context: typer.Context,
    source: parameters.Input,
    output: parameters.PlannedOutput = None,
    *,
    options: Options,
    picture: parameters.Picture = None,
    config: parameters.Config = None,
    save: parameters.Save = None,
    as_json: parameters.Json = False,
) -> None:
    """Show what would happen: output, blocks, halo, projected and allowed bytes.

    With OUTPUT, its place is checked as scale does. Nothing is written but what --picture and --save name.
    """
    from isovoxel import api
    from isovoxel.execution.result import forecast
    from isovoxel.object_store.objects import place_of
    from isovoxel.reporting.progress import hints

    _check_apart(source, output, options, config, {"picture": picture, "saved job": save})
    if picture is not None:
        from isovoxel.reporting.plan_picture import check_plan_picture, save_plan_svg

        check_plan_picture(picture)

    # A job that is saved may be meant for elsewhere.
    wanted = output if save is None else None
    if means_several(options.image):
        from isovoxel.image_jobs import plan_images

        if picture is not None:
            raise OptionError("a picture is of one image: leave out --picture, or name one image")
        plans = plan_images(source, wanted, options, client=None)
        if save is not None:
            save_job(context, save)
        _show(records.plans_record(source, plans), text.plans_lines(source, plans), as_json=as_json)
        return
    planned = api.plan(source, wanted, **options.keywords("plan"))
    if save is not None:
        save_job(context, save)
    cost = forecast(planned, None if output is None else place_of(output))
    record, lines = records.plan_record(planned, cost), text.plan_lines(planned, cost)
    if picture is not None:
        save_plan_svg(planned, picture)
        record, lines = record | {"picture": picture}, [*lines, ("picture", picture)]
    _show(record, lines, as_json=as_json)
    for hint in hints(planned):
        say(hint)


scale = _job_command(
    "scale",
    """Scale a volume to isotropic voxels, or by the factors given, and write it as OME-Zarr.

    A job that ended before its time goes on when it is started again in the same way.
    """,
)
convert = _job_command(
    "convert", "Write a volume as OME-Zarr, every voxel as it is: the same job as scale, at factor 1."
)


@_command
def verify(
    output: parameters.Written,
    against: parameters.Against = None,
    samples: parameters.Samples = 400,
    every_chunk: parameters.EveryChunk = False,
    *,
    options: Options,
    as_json: parameters.Json = False,
) -> None:
    """Compute samples of a result again in float64, at block faces first; exit code 1 where it does not hold.

    So are labels in it that isovoxel wrote. If their source is gone, all but their voxels is verified, and it says so.
    """
    from isovoxel import api

    found = api.verify(
        output,
        against=against,
        samples=samples,
        every_chunk=every_chunk,
        progress=not as_json,
        **options.keywords("verify"),
    )
    _show(records.verdict_record(found), text.verified_lines(found), as_json=as_json)
    if not found.holds:
        raise typer.Exit(1)


@_command
def limits(
    source: parameters.Input,
    *,
    options: Options,
    interpolation: parameters.ClesInterpolation = "linear",
    device: parameters.Device = "auto",
    config: parameters.Config = None,
    as_json: parameters.Json = False,
) -> None:
    """Show at which zoom cle.scale in one piece stops, on which limit, and how large the image would be."""
    from isovoxel import api

    del config  # its options are among these
    found = api.limits(source, interpolation=interpolation, device=device, **options.keywords("limits"))
    _show(records.limits_record(found), text.limits_lines(found), as_json=as_json)


@_command
def show(
    source: parameters.Shown,
    other: parameters.ShownBeside = None,
    output: parameters.Drawing = None,
    *,
    options: Options,
    labels: parameters.Coloured = None,
    quiet: parameters.Quiet = False,
    as_json: parameters.Json = False,
) -> None:
    """Draw maximum projections along z, y and x, in true proportions and with scale bars, as a PNG file.

    FILE2 is opened as it is: what is said of voxel size, unit, level, channel, time and crop is said of FILE.
    """
    from isovoxel.reporting import show as views
    from isovoxel.reporting.progress import ReadingView

    sources = [source] if other is None else [source, other]
    with _notes(quiet=quiet), ReadingView(quiet=quiet or as_json) as reading:
        how: Any = {"labels": labels, "memory": options.memory, "reading": reading}
        found = views.save_drawings(sources, output, options.opening, **how)
    if as_json or not quiet:
        _show(views.shown_record(found), views.shown_lines(found), as_json=as_json)


@_command
def devices(*, options: Options, as_json: parameters.Json = False) -> None:
    """List the OpenCL devices with the limits that matter, or the workers and the device that each holds."""
    if options.workers is not None or options.scheduler is not None:
        from isovoxel import api

        members = api.workers(**options.keywords("devices"))
        _show({"workers": [records.member_record(m) for m in members]}, text.member_lines(members), as_json=as_json)
        return
    from isovoxel.engines.devices import find_device, list_devices

    find_device()  # having none is an error that says what to install
    found = list_devices()
    _show({"devices": [asdict(d) for d in found]}, text.device_lines(found), as_json=as_json)


@app.command()
def doctor(as_json: parameters.Json = False) -> None:
    """Look at all that isovoxel needs here, and tell what is missing, and the command that mends it.

    Trial jobs are done with each engine. Exit code 2 where no job can run; --json is for bug reports.
    """
    from isovoxel.doctor.diagnosis import print_diagnosis

    raise typer.Exit(print_diagnosis(as_json=as_json))


@app.command()
def demo(
    context: typer.Context,
    folder: parameters.Folder = Path("isovoxel-demo"),
    device: parameters.Device = "auto",
) -> None:
    """Make a stack like a blastocyst, and run all of the above on it."""
    from isovoxel.api import open_volume
    from isovoxel.demo import begin_demo
    from isovoxel.engines.clesperanto import scales_with
    from isovoxel.reporting.show import before_after

    stack, result, picture = begin_demo(folder)

    def step(*words: object) -> None:
        put(["", f"$ isovoxel {' '.join(str(w) for w in words)}"])

    step("devices")
    devices()
    step("info", stack)
    info(str(stack))
    step("limits", stack)
    limits(str(stack), device=device)
    engine, asked = ("cle", " --engine cle") if scales_with()[0] else (None, "")
    step("plan", stack, f"--zoom 2{asked}")
    plan(context, str(stack), zoom=2, engine=engine, device=device)
    step("scale", stack, result, f"--zoom 2{asked} --overwrite")
    scale(str(stack), str(result), zoom=2, engine=engine, device=device, overwrite=True)
    before_after(open_volume(stack), open_volume(result), picture)
    put(["", f"maximum projections before and after: {picture}"])


def command() -> Any:
    """Return the command line, each of whose options is also an environment variable's."""
    group: Any = typer.main.get_command(app)
    take_variables(group)
    return group


def run() -> int:
    """Run the command line and return its exit code; every failure that isovoxel knows is one sentence.

    Raises
    ------
    Abandoned
        If it was interrupted and does not end in order.
    """
    try:
        with signals(), patience(_note_attempt):
            code = invoke(command(), sys.argv[1:])
    except (IsovoxelError, InterruptedJobError) as error:
        code = error.exit_code
        trace(error)
        say(f"error: {error}")
        if isinstance(error, InterruptedJobError) and error.goes_on:
            say(f"to resume: {shlex.join(['isovoxel', *without_overwrite(sys.argv[1:])])}")
    except _UsageError as error:
        say(f"error: {error.format_message().rstrip('.')}; see isovoxel --help")  # type: ignore[attr-defined]
        code = 2
    except (KeyboardInterrupt, typer.Abort) as stop:
        say("interrupted")
        raise Abandoned(128 + getattr(stop, "signal", SIGINT)) from None
    except Exception as error:  # noqa: BLE001 - it must not look like a fault of the user's
        trace(error)
        hint = "" if debugging() else "; --debug shows where"
        say(f"error: isovoxel failed in a way that it should not, with {clause(error)}{hint}; please report it")
        code = 1
    return exit_code(code)


def main() -> None:
    """Run the command line and end with its exit code."""
    sys.exit(run())


if __name__ == "__main__":
    main()
