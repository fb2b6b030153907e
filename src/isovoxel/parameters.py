"""Arguments and options of the commands: those of jobs are made of the fields of `Options`, the others are here.

Options come from the environment and from a job file, too. The command line wins over the environment, and that over
the file. What the command line alone has is `NOT_KEPT`. A job file is TOML. It has the options' names as keys, with
``_`` for ``-``, and the arguments as ``input`` and ``output``::

    input = "stack.tif"
    output = "isotropic.zarr"
    zoom = 2.0
    crop = ":,100:300,100:300"
    input_voxel_size = [1.0, 0.202, 0.202]
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import Parameter
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer
from typer.core import TyperCommand

from isovoxel.errors import OptionError, OutputError, OutputExistsError, did_you_mean
from isovoxel.geometry.grid import Index3, triple
from isovoxel.object_store.files import read_small
from isovoxel.options import HOW_FAR, SURFACES, Options
from isovoxel.terminal import DEBUG

PREFIX = "ISOVOXEL_"
"""How the names of variables begin that hold options."""

NOT_KEPT = frozenset(
    {"picture", "config", "save", "help", "version", "debug", "install_completion", "show_completion"}
    | {name for name, surface in SURFACES.items() if not surface.kept}
)
"""Options that neither a file nor the environment has."""

NEEDED = {"decode": "every_chunk"}
"""What a command that has it must have been given, or the variable of an option does not count: it is for jobs."""

NO_VARIABLE = frozenset(name for name, surface in SURFACES.items() if not surface.variable)
"""Options that the environment does not have."""

NO_OPTION = frozenset({DEBUG, f"{PREFIX}CLE", f"{PREFIX}RATES"})
"""Variables that are no options: tracebacks, which clEsperanto scales (`isovoxel.engines.clesperanto.CHOICE`), and the
file of how long jobs took (`isovoxel.execution.result.RATES`)."""


def variable(option: str) -> str | None:
    """Return the environment variable of an option, or None where it has none.

    Examples
    --------
    >>> variable("input_voxel_size")
    'ISOVOXEL_INPUT_VOXEL_SIZE'
    """
    return None if option in NOT_KEPT | NO_VARIABLE else f"{PREFIX}{option.upper()}"


def _check_variables(environment: Iterable[str], options: Iterable[str]) -> None:
    """Refuse names of variables that begin with `PREFIX` and are none of an option, or of one that has no variable."""
    known = {*filter(None, map(variable, options)), *(f"{PREFIX}{name.upper()}" for name in NO_VARIABLE), *NO_OPTION}
    for name in environment:
        if name.startswith(PREFIX) and name not in known:
            if name.removeprefix(PREFIX).lower() in NOT_KEPT:
                raise OptionError(f"the environment has {name}, which is for the command line only; unset it")
            hint = did_you_mean(name, known, PREFIX) or ";"
            raise OptionError(f"the environment has {name}, which is no option{hint} rename or unset it")


def _read_job(path: str | Path, known: Mapping[str, bool]) -> dict[str, Any]:
    """Return the options that a file has, as the command line would give them; `known` says which are on or off."""
    import tomllib

    try:
        found = tomllib.loads(read_small(path))
    except OSError as error:
        raise OptionError(f"the job file {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, no TOML, or a path that no file can have
        raise OptionError(f"the job file {path} is no TOML: {str(error).splitlines()[0]}") from error
    options, keys = {}, ", ".join(known)
    for key, value in found.items():
        name = key.replace("-", "_")
        if name in NOT_KEPT:
            raise OptionError(f"the job file {path} has {key!r}, which is for the command line only; take it out")
        if name not in known:
            hint = did_you_mean(name, known)
            raise OptionError(f"the job file {path} has the unknown key {key!r}{hint or f'; the keys are {keys}'}")
        if name in options:
            raise OptionError(f"the job file {path} has {key!r} twice, with - and with _; take one of them out")
        options[name] = _as_typed(value, f"{key!r} in the job file {path}", flag=known[name])
    return options


def _as_typed(value: object, what: str, *, flag: bool) -> Any:
    """Return a value as the command line has it: three numbers are text there."""
    if flag or isinstance(value, bool):
        if flag and isinstance(value, bool):
            return value
        raise OptionError(f"{what} must {'be true or false' if flag else 'not be true or false'}")
    if isinstance(value, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
        return ",".join(map(str, value))
    if isinstance(value, int | float | str):
        return value
    raise OptionError(f"{what} must be a number, a text, or a list of numbers")


def _write_job(path: str | Path, options: Mapping[str, Any]) -> None:
    """Write options, by their names, into a new file, from which `_read_job` returns them."""
    try:
        text = "".join(f"{name} = {_toml(value)}\n" for name, value in options.items()).encode()
    except UnicodeEncodeError:
        raise OutputError(f"the job cannot be saved as {path}: a path in it is no text; give it as a link") from None
    target, made = Path(path), False
    try:
        with target.open("xb") as file:
            made = True
            file.write(text)
    except FileExistsError:
        raise OutputExistsError(f"{path} exists; give another name to save the job as") from None
    except OSError as error:
        if made:  # a part of it
            with contextlib.suppress(OSError):
                target.unlink()
        raise OutputError(f"the job cannot be saved as {path}: {error.strerror}") from error


def _toml(value: Any) -> str:
    """Return a value as TOML writes it."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)  # inf and nan are TOML's words too
        case str():
            # JSON's texts are TOML's, but for the one control character that only TOML wants escaped.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case Iterable():
            return f"[{', '.join(_toml(v) for v in value)}]"
    return _toml(str(value))


# ---- from a job file and the environment, and to a job file ----------------------------------------------------

ARGUMENTS = {"source": "input", "output": "output"}
"""What arguments are called in a job file."""


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
        found = _read_job(path, known)
        context.default_map = {keys[key].name: value for key, value in found.items() if key in keys}
        for name in context.default_map.keys() & HOW_FAR:
            context.default_map[name] = functools.partial(_unless_said, context, context.default_map[name])
    return path


def _unless_said(context: typer.Context, value: Any) -> Any:
    """Return how far a job file says, or None where the command line or the environment says it in another way.

    Options of the command line have been taken when typer asks for this.
    """
    said = any(context.params.get(name) is not None for name in HOW_FAR)
    return None if said or any(os.environ.get(variable(name) or "") for name in HOW_FAR) else value


def _unless_typed(resolve: Callable[[Any], str | None], context: Any) -> str | None:
    """Return how far a variable says, or None where the command line says it, in whichever way."""
    sources = (context.get_parameter_source(name) for name in HOW_FAR)
    return None if any(source is not None and source.name == "COMMANDLINE" for source in sources) else resolve(context)


def _where_given(needed: str, resolve: Callable[[Any], str | None], context: Any) -> str | None:
    """Return what a variable says, where a parameter that comes before was given."""
    return resolve(context) if context.params.get(needed) else None


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
    _write_job(path, {key: value for key, value in given.items() if value is not None and key != "json"})


def take_variables(group: Any) -> None:
    """Make each option of a group's commands an environment variable's too; all commands have ``--debug``."""
    debug = next(each for each in group.params if each.name == "debug")
    _convert_lightly(group)
    for each in group.commands.values():
        _convert_lightly(each)
        for parameter in each.params:
            if parameter.param_type_name == "option":
                parameter.envvar, parameter.show_envvar = variable(_key(parameter)), False
                resolve = parameter.resolve_envvar_value
                if parameter.name in HOW_FAR:
                    parameter.resolve_envvar_value = functools.partial(_unless_typed, resolve)
                elif (needed := NEEDED.get(parameter.name, "")) in {one.name for one in each.params}:
                    parameter.resolve_envvar_value = functools.partial(_where_given, needed, resolve)
        each.params.append(debug)


def _convert_lightly(command: Any) -> None:
    """Convert values of a command's parameters as typer does, which for most of them loads pydantic without need."""
    hints = inspect.signature(command.callback, eval_str=True).parameters
    for parameter in command.params:
        hint, taken = get_args(hints[parameter.name].annotation) if parameter.name in hints else (None, None)
        parameter.process_value = _converter(parameter, get_args(hint) or (hint,), getattr(taken, "parser", None))


def _converter(
    parameter: Any, kinds: tuple[Any, ...], parser: Callable[[Any], Any] | None
) -> Callable[[Any, Any], Any]:
    """Return what converts a parameter's values: to one of these types, or by its parser."""
    typers = parameter.process_value

    def convert(context: Any, value: Any) -> Any:
        if value is None:
            if parameter.required:
                return typers(context, value)
        elif parser is not None:
            value = parser(value)
        elif type(value) not in kinds:
            number = next((kind for kind in (int, float) if kind in kinds), None)
            if number is None or not isinstance(value, str):
                return typers(context, value)
            try:
                value = number(value)
            except ValueError:  # typer says it
                return typers(context, value)
        return value if parameter.callback is None else parameter.callback(context, parameter, value)

    return convert


def invoke(group: Any, words: list[str]) -> int:
    """Run a command and return its exit code; whatever it raises is raised."""
    if "_ISOVOXEL_COMPLETE" in os.environ:  # a shell asks how a word may end
        return group(standalone_mode=False) or 0
    if not {"-h", "--help"}.intersection(words):
        parameters = (each for one in group.commands.values() for each in one.params)
        _check_variables(os.environ, {_key(each) for each in parameters if each.param_type_name == "option"})
    try:
        # Not by calling the group, which makes an exit of each KeyboardInterrupt.
        no_help = {"help": False}  # None, where it is not said, would be converted
        with group.make_context(
            "isovoxel", words, default_map=no_help | dict.fromkeys(group.commands, no_help)
        ) as context:
            group.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    return 0


# ---- of several commands ---------------------------------------------------------------------------------------


def with_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command whose parameter `options` is made of an option for each field of `Options` that it has.

    Parameters
    ----------
    function
        What the command of its name does. It has no other parameter of such a field's name.
    """
    hints = _hints()
    fields = {f.name: f.default for f in dataclasses.fields(Options) if function.__name__ in SURFACES[f.name].commands}
    found: list[Parameter] = []
    for each in inspect.signature(function, eval_str=True).parameters.values():
        if each.name != "options":
            found.append(each)
            continue
        for field, default in fields.items():
            kind = _as_option(field, hints[field])
            found.append(Parameter(field, Parameter.KEYWORD_ONLY, default=default, annotation=kind))

    @functools.wraps(function)
    def command(*args: Any, **given: Any) -> Any:
        options = Options(**{field: given.pop(field) for field in fields if field in given})
        return function(*args, **given, options=options)

    made: Any = command
    made.__signature__ = inspect.Signature(found)
    made.__annotations__ = {each.name: each.annotation for each in found}
    return command


@functools.cache
def _hints() -> dict[str, Any]:
    return get_type_hints(Options)


def _as_option(name: str, hint: Any) -> Any:
    """Return what typer makes an option of: text where the field may be one, else its other type."""
    surface, kinds = SURFACES[name], get_args(hint) or (hint,)
    kind = next((kind for kind in (str, bool, int, float) if kind in kinds), str)
    parser: Callable[..., Any] | None = _overwrite if name == "overwrite" else None
    if surface.example:
        parser = _three(int if hint == Index3 | None else float, surface.example)
    flags = surface.flags or f"--{name.replace('_', '-')}"
    taken = typer.Option(flags, metavar=surface.metavar, help=surface.help, parser=parser)
    return Annotated[Any if parser else kind | None, taken]


def _three(kind: Callable[[str], Any], example: str) -> Callable[[object], tuple[Any, Any, Any]]:
    def parse(text: object) -> tuple[Any, Any, Any]:  # a job file has numbers, too
        try:
            return triple(kind(part) for part in str(text).split(","))
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not three numbers z,y,x such as {example}") from None

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
        help="TIFF, NDTiff, companion.ome, TIFF in gzip, folder or 'pattern*.tif' of TIFF or PNG slices, OME-Zarr, "
        "zarr array, zipped zarr (.ozx), N5, Neuroglancer precomputed, HDF5 (file.h5:/dataset), Imaris, "
        "BigDataViewer (.xml), NIfTI, NRRD, MetaImage, MRC, CZI, LIF, ND2, DV or .npy; or a zarr in an object store "
        "(s3://, gs://, az://, https://).",
    ),
]
Output = Annotated[
    str, typer.Argument(metavar="OUTPUT", help="OME-Zarr to write: a path, or an address (s3://, gs://, az://).")
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
Device = Annotated[str, typer.Option(metavar="NAME|INDEX|gpu|cpu|auto", help="OpenCL device.")]
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
