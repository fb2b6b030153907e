"""Tell what of isovoxel others rely on, as JSON: names, keywords, options, errors, keys. For `tests/test_stability.py`.

Run as a program by version 0.1 it wrote `golden/0.1/names.json`.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import isovoxel
from isovoxel import cli, errors

SMALL = ["--chunk", "8,8,8", "--shard", "8,8,8", "--threads", "1"]
COMMANDS = {
    "info": ["in.npy"],
    "plan": ["in.npy", "--factor", "2,1,1", "--levels", "1", *SMALL],
    "scale": ["in.npy", "out.zarr", "--factor", "2,1,1", "--levels", "1", "--with-labels", "cells.npy", *SMALL],
    "convert": ["in.npy", "converted.zarr", *SMALL],
    "verify": ["out.zarr"],
    "limits": ["in.npy"],
    "devices": [],
    "show": ["in.npy", "--output", "picture.png"],
}
"""Commands that have --json, in an order in which each finds its input."""
SIZE = ["--input-voxel-size", "2,1,1", "--unit", "micrometer"]


def keys(value: Any, before: str = "") -> set[str]:
    """Return the keys of a JSON value, each after those that it lies below; entries of a list are one."""
    if isinstance(value, list):
        return {key for entry in value for key in keys(entry, f"{before}[]")}
    if not isinstance(value, dict):
        return set()
    here = {f"{before}.{key}" if before else key: entry for key, entry in value.items()}
    return here.keys() | {below for key, entry in here.items() for below in keys(entry, key)}


def printed(*words: str) -> str:
    out = io.StringIO()
    with mock.patch.object(sys, "argv", ["isovoxel", *words]), contextlib.redirect_stdout(out):
        try:
            cli.main()
        except SystemExit as done:
            assert done.code in (0, None), words  # noqa: PT017 - the exit code of a command
    return out.getvalue()


def json_keys(folder: Path) -> dict[str, list[str]]:
    """Return the keys of what each command prints with --json, and of an output's attributes."""
    rng = np.random.default_rng(0)
    np.save(folder / "in.npy", rng.integers(0, 999, (12, 16, 20)).astype(np.uint16))
    np.save(folder / "cells.npy", rng.integers(0, 9, (12, 16, 20)).astype(np.uint16))
    found = {}
    with contextlib.chdir(folder):
        for command, words in COMMANDS.items():
            size = SIZE if command in ("info", "plan", "scale", "convert", "limits", "show") else []
            found[command] = sorted(keys(json.loads(printed(command, *words, *size, "--json"))))
        attributes = json.loads(Path("out.zarr/zarr.json").read_text())["attributes"]
    return found | {"attributes": sorted(keys(attributes["isovoxel"]))}


def python_names() -> dict[str, list[str]]:
    """Return the names that the package exports, with the keywords of those that are functions."""
    found: dict[str, list[str]] = {}
    for name in isovoxel.__all__:
        value = getattr(isovoxel, name)
        if inspect.isfunction(value):
            found[name] = sorted(inspect.signature(value).parameters.keys() - {"options"})
        elif name == "ScalingOptions":
            found[name] = sorted(value.__annotations__)
        else:
            found[name] = sorted(n for n in dir(value) if not n.startswith("_")) if inspect.isclass(value) else []
    return found


def error_names() -> dict[str, list[str]]:
    """Return the errors, with what each of them is."""
    found = {n: c for n, c in vars(errors).items() if inspect.isclass(c) and issubclass(c, BaseException)}
    return {name: [base.__name__ for base in each.__mro__[1:-1]] for name, each in found.items()}


def options() -> dict[str, list[str]]:
    commands = cli.command().commands
    return {name: sorted(word for p in each.params for word in p.opts) for name, each in commands.items()}


def public_names(folder: Path) -> dict[str, Any]:
    """Return all of it; files are written into a folder."""
    return {"python": python_names(), "errors": error_names(), "options": options(), "json": json_keys(folder)}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(public_names(Path(temporary)), indent=1))
