"""Every field of `Options` is a keyword, an option of the command line, a variable and a key of a job file."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

import isovoxel
from command_line import Isovoxel, check_refused
from isovoxel import api, cli
from isovoxel.errors import OptionError
from isovoxel.options import CONVERTING, HOW_FAR, SURFACES, Opening, Options, ScalingOptions
from isovoxel.parameters import _toml
from isovoxel.reporting.report import Report

FIELDS = {field.name: field for field in dataclasses.fields(Options)}
TYPES = get_type_hints(Options)
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "plan": api.plan,
    "scale": api.scale,
    "convert": api.convert,
    "limits": api.limits,
    "verify": api.verify,
    "devices": api.workers,
}
"""Public functions, by the commands that call them and have their options."""
PYTHON_ONLY = {
    "source",
    "output",
    "client",
    "listeners",
    "progress",
    "against",
    "samples",
    "seed",
    "every_chunk",
    "return",
}

WORDS: dict[str, tuple[str, Any]] = {
    "zoom": ("2", 2.0),
    "voxel_size": ("0.5", 0.5),
    "factor": ("2,1,1", (2.0, 1.0, 1.0)),
    "like": ("other.npy", "other.npy"),
    "input_voxel_size": ("3,1,1", (3.0, 1.0, 1.0)),
    "unit": ("nm", "nm"),
    "level": ("0", 0),
    "channel": ("0", 0),
    "time": ("0", 0),
    "axes": ("zyx", "zyx"),
    "crop": ("1:,:,:", "1:,:,:"),
    "image": ("A/1/0", "A/1/0"),
    "interpolation": ("mode", "mode"),
    "antialias": ("", True),
    "labels": ("", True),
    "engine": ("exact", "exact"),
    "boundary": ("constant", "constant"),
    "device": ("0", "0"),
    "halo": ("direct", "direct"),
    "memory": ("8GiB", "8GiB"),
    "device_memory": ("100MB", "100MB"),
    "threads": ("1", 1),
    "chunk": ("8,8,8", (8, 8, 8)),
    "shard": ("16,8,8", (16, 8, 8)),
    "codec": ("zstd", "zstd"),
    "encode": ("cpu", "cpu"),
    "decode": ("cpu", "cpu"),
    "ome_zarr": ("0.5", "0.5"),
    "empty": ("write", "write"),
    "keep_receipts": ("", True),
    "levels": ("1", "1"),
    "workers": ("cpu:1", "cpu:1"),
    "scheduler": ("tcp://nowhere:8786", "tcp://nowhere:8786"),
    "overwrite": ("", True),
    "on_corrupt": ("fill", "fill"),
    "isolate": ("", True),
    "with_labels": ("nuclei.npy", "nuclei.npy"),
    "labels_by": ("mode", "mode"),
}
"""Of each field words of the command line, and what they are in Python."""
OTHERS_OWN = {("limits", "interpolation"), ("limits", "device"), ("demo", "device"), ("show", "labels")}
"""Commands that have an option of a field's name with a meaning of its own."""


def keywords(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the types of a function's keywords, those that its ``**options`` takes among them."""
    results = dict.fromkeys(("Verdict", "WorkerInfo", "Figure"), object)  # which are there for type checkers only
    hints = get_type_hints(function, vars(api) | results)
    if hints.pop("options", None) is not None:
        hints |= get_type_hints(ScalingOptions)
    return {name: hint for name, hint in hints.items() if name not in PYTHON_ONLY}


def in_job_file(name: str) -> str:
    """Return a job file that says of a field what `WORDS` says."""
    word, value = WORDS[name]
    return f"{name} = {_toml(value if not word or isinstance(value, tuple) else word)}"


@pytest.mark.parametrize("command", FUNCTIONS)
def test_keywords_of_a_function_are_fields(command: str) -> None:
    """By name and by type: those that its command has."""
    found = keywords(FUNCTIONS[command])
    named = {name for name, surface in SURFACES.items() if command in surface.commands}
    own = {name for which, name in OTHERS_OWN if which == command}
    if command == "convert":  # which refuses the others
        named |= ScalingOptions.__annotations__.keys()
    assert found.keys() == named | own
    assert {name: found[name] for name in named} == {name: TYPES[name] for name in named}


def test_an_input_is_opened_by_fields() -> None:
    """Wherever one is opened; the voxel size would be the output's, so its field has another name."""
    names = [name for name, surface in SURFACES.items() if "info" in surface.commands]
    opening = {"voxel_size" if name == "input_voxel_size" else name: TYPES[name] for name in names}
    assert keywords(api.open_volume) == get_type_hints(Opening) == opening
    assert Options().opening == dict.fromkeys(opening)


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_is_an_option_of_its_commands(name: str) -> None:
    """And of no other, with its spelling, default, help and variable."""
    surface = SURFACES[name]
    assert isinstance(surface.new, bool | None) or str(surface.new) in surface.help
    having = set()
    for command, each in cli.command().commands.items():
        option = next((one for one in each.params if one.name == name and one.param_type_name == "option"), None)
        if option is None or (command, name) in OTHERS_OWN:
            continue
        having.add(command)
        assert option.opts == [f"--{name.replace('_', '-')}"]
        assert (option.default, option.help) == (FIELDS[name].default, surface.help)
        assert option.envvar == (f"ISOVOXEL_{name.upper()}" if surface.kept and surface.variable else None)
    assert having == set(surface.commands)


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_is_said_anywhere(
    name: str, isovoxel: Isovoxel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On the command line, in the environment and in a job file, each with the same meaning in Python."""
    surface, (word, value) = SURFACES[name], WORDS[name]
    command = "scale" if "scale" in surface.commands else surface.commands[0]
    told: list[dict[str, Any]] = []

    def scale(*_: Any, **options: Any) -> None:
        told.append(options)
        raise OptionError("enough")

    monkeypatch.setattr(api, command, scale)
    monkeypatch.chdir(tmp_path)
    words = [command, "in.npy", "out.zarr"]
    if name == "labels_by":
        words += ["--with-labels", "nuclei.npy"]
    check_refused(isovoxel(*words, f"--{name.replace('_', '-')}", *([word] if word else [])), "enough")
    Path("job.toml").write_text(in_job_file(name))
    check_refused(isovoxel(*words, "--config", "job.toml"), "enough" if surface.kept else "for the command line only")
    if surface.kept and surface.variable:
        with monkeypatch.context() as patch:
            patch.setenv(f"ISOVOXEL_{name.upper()}", word or "1")
            check_refused(isovoxel(*words), "enough")
    assert len(told) == 1 + surface.kept + (surface.kept and surface.variable)
    for options in told:
        assert options[name] == value
        others = options.keys() - {name, "listeners", "with_labels"}
        assert {other: options[other] for other in others} == {other: FIELDS[other].default for other in others}


ALONE = {
    "image",
    "like",
    "zoom",
    "voxel_size",
    "level",
    "channel",
    "time",
    "antialias",
    "workers",
    "scheduler",
    "with_labels",
    "labels_by",
}
"""Fields that do not go with the others here."""


@pytest.mark.sampled(1)
@pytest.mark.parametrize("command", ["scale", "plan", "convert"])
def test_a_command_takes_all_that_go_together(command: str, isovoxel: Isovoxel, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.ones((4, 8, 8), np.uint8))
    known = [name for name, surface in SURFACES.items() if command in surface.commands and name not in ALONE]
    words = [part for name in known for part in (f"--{name.replace('_', '-')}", WORDS[name][0]) if part]
    assert isovoxel(command, tmp_path / "in.npy", tmp_path / "out.zarr", *words, "--json").code == 0


def test_what_makes_no_sense_is_refused_at_once() -> None:
    """By the options themselves, whichever way they came."""
    bad: dict[str, Any]
    for bad, says in REFUSED:
        with pytest.raises(OptionError, match=says):
            Options(**bad)


REFUSED: list[tuple[dict[str, Any], str]] = [
    *(
        ({name: "odd"}, f"{name} must be one of {', '.join(s.choices)}, not 'odd'")
        for name, s in SURFACES.items()
        if s.choices
    ),
    ({"overwrite": "later"}, "overwrite must be True, False or 'now', not 'later'"),
    ({"zoom": 2, "factor": (1, 1, 1)}, "zoom and factor each say how far to scale"),
    ({"factor": (1, 1)}, "factor must be three numbers"),
    ({"threads": 0}, "threads must be at least 1, not 0"),
    ({"levels": -1}, "levels must be auto or a number from 0 on"),
    ({"memory": "8 potatoes"}, "memory must be a size"),
    ({"device_memory": "8"}, "device memory needs a unit"),
    ({"channel": -1}, "channel must be a whole number from 0 on"),
    ({"crop": "1:2"}, "a crop is z0:z1"),
    ({"image": -1}, "image must be a path, a number from 0 on, a name or a pattern, not '-1'"),
    ({"image": "/"}, "image must be a path"),
    ({"labels_by": "mode"}, "give them with --with-labels"),
]


def test_options_are_completed_by_others() -> None:
    """Those that are given stay, None is not given; a conversion takes none that scale."""
    options = Options(codec="zstd", overwrite=True)
    assert options.given == {"codec": "zstd"}
    assert options.filled({"codec": "none", "levels": 2}) == Options(codec="zstd", overwrite=True, levels=2)
    assert (options.or_new("codec"), options.or_new("boundary")) == ("zstd", "nearest")
    assert options.converting().factor == (1, 1, 1)
    for name in (*HOW_FAR, *CONVERTING, "antialias", "boundary"):
        with pytest.raises(OptionError, match="are for scaling"):
            Options(**{name: WORDS[name][1]}).converting()


# ---- keywords that a function does not have --------------------------------------------------------------------------


ARRAY = np.zeros((4, 5, 6), np.uint8)

CALLS: dict[str, Callable[..., Any]] = {
    "open_volume": lambda **given: isovoxel.open_volume(ARRAY, **given),
    "plan": lambda **given: isovoxel.plan(ARRAY, **given),
    "scale": lambda **given: isovoxel.scale(ARRAY, "out.zarr", **given),
    "convert": lambda **given: isovoxel.convert(ARRAY, "out.zarr", **given),
    "limits": lambda **given: isovoxel.limits(ARRAY, **given),
    "verify": lambda **given: isovoxel.verify("out.zarr", **given),
    "workers": isovoxel.workers,
    "images": lambda **given: isovoxel.images("plate.zarr", **given),
    "scale_array": lambda **given: isovoxel.scale_array(ARRAY, 2, **given),
    "show": lambda **given: isovoxel.show(ARRAY, **given),
    "Report": lambda **given: Report("r.html", "a.npy", "out.zarr", **given),
}

MISSPELT = [
    ("plan", "zom", "zoom"),
    ("scale", "zom", "zoom"),
    ("scale", "Zoom", "zoom"),
    ("scale", "overwrites", "overwrite"),
    ("scale", "memroy", "memory"),
    ("scale", "withlabels", "with_labels"),
    ("convert", "inputvoxelsize", "input_voxel_size"),
    ("convert", "leves", "levels"),
    ("open_volume", "voxelsize", "voxel_size"),
    ("limits", "chanel", "channel"),
    ("scale", "progres", "progress"),
    ("convert", "progres", "progress"),
    ("verify", "progres", "progress"),
    ("verify", "sample", "samples"),
    ("workers", "schedular", "scheduler"),
    ("scale_array", "interpolaton", "interpolation"),
    ("show", "croped", "crop"),
    ("images", "imgae", "image"),
    ("Report", "croped", "crop"),
]


@pytest.mark.parametrize(("name", "given", "meant"), MISSPELT)
def test_an_unknown_keyword_is_refused_with_the_nearest(
    name: str, given: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a TypeError, as Python's own, before anything is read or written."""
    monkeypatch.chdir(tmp_path)
    text = rf"^{name}\(\) got an unexpected keyword argument '{given}'; did you mean {meant}\?$"
    with pytest.raises(TypeError, match=text):
        CALLS[name](**{given: 4})
    with pytest.raises(TypeError, match=rf"^{name}\(\) got an unexpected keyword argument 'q'$"):
        CALLS[name](q=4)
    assert list(tmp_path.iterdir()) == []


def test_everything_exported_is_looked_at() -> None:
    """What takes options takes no others; a signature stays what it was."""
    functions = {name for name in isovoxel.__all__ if inspect.isfunction(getattr(isovoxel, name))}
    takes_keywords = {n for n in functions if any(p.default is not p.empty for p in parameters(n))}
    assert takes_keywords <= CALLS.keys()
    assert [p.name for p in parameters("open_volume")][1:] == list(Opening.__annotations__)
    assert parameters("scale")[-1].kind is inspect.Parameter.VAR_KEYWORD


def parameters(name: str) -> list[inspect.Parameter]:
    """Return the parameters of a function that is exported."""
    return list(inspect.signature(getattr(isovoxel, name)).parameters.values())


def test_known_keywords_pass() -> None:
    """Each option of `ScalingOptions` is taken, None too."""
    nothing: Any = dict.fromkeys(ScalingOptions.__annotations__)
    given = nothing | {"factor": (1, 1, 1), "boundary": "nearest", "device": "auto", "halo": "auto", "antialias": False}
    assert isovoxel.plan(ARRAY, **given | {"codec": "lz4", "ome_zarr": "0.5"}).factor == (1, 1, 1)
