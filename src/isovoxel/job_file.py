"""Job files and environment variables: options from them, and options written into a file.

A job file is TOML. It has the options' names as keys, with ``_`` for ``-``, and the arguments as ``input`` and
``output``::

    input = "stack.tif"
    output = "isotropic.zarr"
    zoom = 2.0
    crop = ":,100:300,100:300"
    input_voxel_size = [1.0, 0.202, 0.202]

What the command line alone has is `NOT_KEPT`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from isovoxel.errors import OptionError, OutputError, OutputExistsError, did_you_mean
from isovoxel.object_store.files import read_small
from isovoxel.options import SURFACES
from isovoxel.terminal import DEBUG

PREFIX = "ISOVOXEL_"
"""How the names of variables begin that hold options."""

NOT_KEPT = frozenset(
    {"picture", "config", "save", "help", "version", "debug", "install_completion", "show_completion"}
    | {name for name, surface in SURFACES.items() if not surface.kept}
)
"""Options that neither a file nor the environment has."""

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


def check_variables(environment: Iterable[str], options: Iterable[str]) -> None:
    """Refuse variables that look like options and are none.

    Parameters
    ----------
    environment
        Names of variables.
    options
        Names of all options, of any command.

    Raises
    ------
    OptionError
        If a name that begins with `PREFIX` is unknown, or that of an option that has no variable.
    """
    known = {*filter(None, map(variable, options)), *(f"{PREFIX}{name.upper()}" for name in NO_VARIABLE), *NO_OPTION}
    for name in environment:
        if name.startswith(PREFIX) and name not in known:
            if name.removeprefix(PREFIX).lower() in NOT_KEPT:
                raise OptionError(f"the environment has {name}, which is for the command line only; unset it")
            hint = did_you_mean(name, known, PREFIX) or ";"
            raise OptionError(f"the environment has {name}, which is no option{hint} rename or unset it")


def read_job(path: str | Path, known: Mapping[str, bool]) -> dict[str, Any]:
    """Return the options that a file has, as the command line would give them.

    Parameters
    ----------
    path
        The file.
    known
        The options that it may have; for each whether it is one that is on or off.

    Raises
    ------
    OptionError
        If it cannot be read, is no TOML, or has an unknown key or a value of a kind that no option has.
    """
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


def write_job(path: str | Path, options: Mapping[str, Any]) -> None:
    """Write options into a new file, from which `read_job` returns them.

    Parameters
    ----------
    path
        The file, which must not be there.
    options
        Numbers, texts, true, false, and sequences of numbers, by the options' names.

    Raises
    ------
    OutputExistsError
        If the file is there.
    OutputError
        If it cannot be written.
    """
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
        case int():
            return str(value)
        case float():
            return repr(value)  # inf and nan are TOML's words too
        case str():
            # JSON's texts are TOML's, but for the one control character that only TOML wants escaped.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case Iterable():
            return f"[{', '.join(_toml(v) for v in value)}]"
    return _toml(str(value))
