"""Options from a job file and from the environment, and completion: a run is a file that can be kept and shared."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from command_line import Isovoxel, check_refused, listing
from isovoxel import cli
from isovoxel.parameters import NO_VARIABLE, NOT_KEPT, _read_job, _toml, _write_job

VOXELS = np.random.default_rng(0).integers(0, 60_000, (6, 10, 12)).astype(np.uint16)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a stack."""
    monkeypatch.chdir(tmp_path)
    np.save("in.npy", VOXELS)
    return tmp_path


def factors(isovoxel: Isovoxel, *words: object) -> list[float]:
    return list(isovoxel("plan", *words, "--json").json["factors"])


@pytest.mark.usefixtures("folder")
def test_a_run_is_a_file(isovoxel: Isovoxel) -> None:
    """What a plan saved is carried out by the file alone, and again it finds that nothing is left to do.

    The plan's picture is no part of it.
    """
    words = (
        "--factor",
        "2,1.5,1",
        "--crop",
        "1:,:,-5:",
        "--codec",
        "zstd",
        "--antialias",
        "--no-labels",
        "--threads",
        2,
    )
    said = isovoxel("plan", "in.npy", "out.zarr", *words, "--save", "job.toml", "--picture", "a.svg", "--json").json
    assert tomllib.loads(Path("job.toml").read_text()) == {
        "input": "in.npy",
        "output": "out.zarr",
        "factor": [2.0, 1.5, 1.0],
        "crop": "1:,:,-5:",
        "antialias": True,
        "labels": False,
        "threads": 2,
        "codec": "zstd",
    }
    assert isovoxel("plan", "--config", "job.toml", "--json").json["fingerprint"] == said["fingerprint"]
    assert isovoxel("scale", "--config", "job.toml", "--quiet").code == 0
    assert zarr.open_array("out.zarr/0", mode="r").shape == (10, 15, 5)
    assert "nothing was done" in isovoxel("scale", "--config", "job.toml").out
    assert isovoxel("verify", "out.zarr", "--samples", 50).code == 0


@pytest.mark.usefixtures("folder")
def test_the_command_line_wins_over_the_environment_over_the_file(
    isovoxel: Isovoxel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each by itself is enough, and however the first says how far, the file's way counts no more."""
    Path("job.toml").write_text('input = "in.npy"\nfactor = [2, 1, 1]\n')
    assert factors(isovoxel, "--config", "job.toml") == [2, 1, 1]
    Path("windows.toml").write_text('input = "in.npy"\r\nfactor = [2, 1, 1]\r\n', "utf-8-sig")
    assert factors(isovoxel, "--config", "windows.toml") == [2, 1, 1]
    monkeypatch.setenv("ISOVOXEL_FACTOR", "3,1,1")
    assert factors(isovoxel, "in.npy") == [3, 1, 1]
    assert factors(isovoxel, "--config", "job.toml") == [3, 1, 1]
    assert factors(isovoxel, "--config", "job.toml", "--factor", "4,1,1") == [4, 1, 1]
    assert factors(isovoxel, "--factor", "4,1,1", "--config", "job.toml") == [4, 1, 1]
    monkeypatch.delenv("ISOVOXEL_FACTOR")
    words = ("--config", "job.toml", "--input-voxel-size", "3,1,1")
    assert factors(isovoxel, *words, "--zoom", "1") == [3, 1, 1]
    assert factors(isovoxel, "--voxel-size", "0.5", *words) == [6, 2, 2]
    monkeypatch.setenv("ISOVOXEL_VOXEL_SIZE", "1")
    assert factors(isovoxel, *words) == [3, 1, 1]
    assert factors(isovoxel, *words, "--zoom", "2") == [6, 2, 2]
    assert factors(isovoxel, "--factor", "4,1,1", *words) == [4, 1, 1]
    check_refused(isovoxel("plan", *words, "--zoom", "1", "--factor", "4,1,1"), "zoom and factor each say how far")
    monkeypatch.setenv("ISOVOXEL_ZOOM", "1")
    check_refused(isovoxel("plan", *words), "zoom and voxel size each say how far to scale")
    monkeypatch.delenv("ISOVOXEL_ZOOM")
    monkeypatch.setenv("ISOVOXEL_FACTOR", "many")
    check_refused(isovoxel("plan", "in.npy"), "'many' is not three numbers z,y,x")


def test_every_option_has_a_variable() -> None:
    """But for those that must be said anew each time, and a device, which is a worker's."""
    for each in cli.command().commands.values():
        for option in (p for p in each.params if p.param_type_name == "option"):
            name = next(opt for opt in option.opts if opt.startswith("--"))[2:].replace("-", "_")
            expected = None if name in (NOT_KEPT | NO_VARIABLE) - {"debug"} else f"ISOVOXEL_{name.upper()}"
            assert option.envvar == expected


VARIABLES = {
    "ISOVOXEL_MEMROY": "ISOVOXEL_MEMROY, which is no option; did you mean ISOVOXEL_MEMORY? rename or unset it",
    "ISOVOXEL_ZOM": "did you mean ISOVOXEL_ZOOM? rename",
    "ISOVOXEL_INPUT-VOXEL-SIZE": "did you mean ISOVOXEL_INPUT_VOXEL_SIZE? rename",
    "ISOVOXEL_Q": "the environment has ISOVOXEL_Q, which is no option; rename or unset it",
    "ISOVOXEL_OVERWRITE": "the environment has ISOVOXEL_OVERWRITE, which is for the command line only; unset it",
    "ISOVOXEL_CONFIG": "which is for the command line only",
}


@pytest.mark.parametrize("name", VARIABLES)
def test_a_variable_that_is_no_option_is_refused(
    isovoxel: Isovoxel, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whichever the command, in one sentence with the nearest name; help is there to look it up."""
    monkeypatch.setenv(name, "1")
    for words in (["info", "in.npy"], ["scale", "in.npy", "out.zarr"], ["devices"]):
        check_refused(isovoxel(*words), VARIABLES[name])
    assert isovoxel("scale", "--help").code == 0
    assert [path.name for path in folder.iterdir()] == ["in.npy"]


@pytest.mark.usefixtures("folder")
def test_variables_of_isovoxel_and_of_others_pass(isovoxel: Isovoxel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of options of any command, of a worker's device, of tracebacks, and what is named in another way."""
    for command in cli.command().commands.values():
        for option in command.params:
            if option.param_type_name == "option" and option.envvar:
                monkeypatch.setenv(option.envvar, "")
    monkeypatch.setenv("ISOVOXEL_DEVICE", "gpu")
    monkeypatch.setenv("ISOVOXELX", "1")
    monkeypatch.setenv("_ISOVOXEL_X", "1")
    assert isovoxel("info", "in.npy").code == 0


@pytest.mark.usefixtures("folder")
def test_flags_come_from_everywhere(isovoxel: Isovoxel, monkeypatch: pytest.MonkeyPatch) -> None:
    """True and false in a file, 1 and 0 in the environment; what a workers' variable says is no option."""
    Path("job.toml").write_text(
        'input = "in.npy"\nfactor = [1, 1, 1]\njson = true\nantialias = true\non-corrupt = "fill"\n'
    )
    assert '"antialias": true' in isovoxel("plan", "--config", "job.toml").out
    monkeypatch.setenv("ISOVOXEL_ANTIALIAS", "0")
    monkeypatch.setenv("ISOVOXEL_DEVICE", "no such device")
    assert '"antialias": false' in isovoxel("plan", "--config", "job.toml").out


BAD = {
    "zooom = 2": "job.toml has the unknown key 'zooom'; did you mean zoom?",
    "[scale]\nzoom = 2": "job.toml has the unknown key 'scale'",
    "overwrite = true": "job.toml has 'overwrite', which is for the command line only; take it out",
    "config = 'b.toml'": "job.toml has 'config', which is for the command line only",
    "xyzzy = 2": "has the unknown key 'xyzzy'; the keys are input, output, zoom, ",
    "zoom = ": "job.toml is no TOML: ",
    "zoom = true": "'zoom' in the job file job.toml must not be true or false",
    "antialias = 1": "'antialias' in the job file job.toml must be true or false",
    "zoom = {a = 1}": "'zoom' in the job file job.toml must be a number, a text, or a list of numbers",
    "factor = ['2', '1', '1']": "must be a number, a text, or a list of numbers",
    "factor = [2, 1]": "is not three numbers z,y,x",
    "factor = 2": "2 is not three numbers z,y,x such as 5,1,1",
    "zoom = 'much'": "'--zoom'",
    "on_corrupt = 'fill'\non-corrupt = 'stop'": "has 'on-corrupt' twice, with - and with _",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_job_file_is_refused(text: str, isovoxel: Isovoxel, folder: Path) -> None:
    """In one sentence that names the key, before anything is written."""
    Path("job.toml").write_text(text)
    check_refused(isovoxel("scale", "in.npy", "out.zarr", "--config", "job.toml"), BAD[text])
    assert not (folder / "out.zarr").exists()


def test_a_job_file_that_cannot_be_used_is_said(isovoxel: Isovoxel, folder: Path) -> None:
    """Whether it is not there, no text, of another command, there already, or nowhere to be written."""
    check_refused(isovoxel("scale", "--config", "no.toml"), "the job file no.toml cannot be read: No such file")
    Path("job.toml").write_bytes(b"zoom = '\xff'")
    check_refused(isovoxel("scale", "--config", "job.toml"), "job.toml is no TOML")
    Path("job.toml").write_text("zoom = 2\n")
    check_refused(isovoxel("convert", "in.npy", "a.zarr", "--config", "job.toml"), "the unknown key 'zoom'")
    words = ("plan", "in.npy", "--factor", "1,1,1")
    check_refused(isovoxel(*words, "--save", "job.toml"), "job.toml exists; give another name to save the job as")
    check_refused(isovoxel(*words, "--save", "no/job.toml"), "the job cannot be saved as no/job.toml: No such file")
    assert sorted(path.name for path in folder.iterdir()) == ["in.npy", "job.toml"]


def hole(path: str) -> None:
    """Make a file whose text does not fit into memory."""
    with Path(path).open("wb") as file:
        file.truncate(2**40)


SPECIAL: dict[str, Callable[[str], object]] = {
    "a folder": os.mkdir,
    "a pipe": os.mkfifo,
    "a device": lambda path: Path(path).symlink_to("/dev/zero"),
    "a terabyte": hole,
    "a circle of links": lambda path: Path(path).symlink_to(path),
    "deep brackets": lambda path: Path(path).write_text("a = " + "[" * 10**5),
}
NAMED: dict[str, list[str]] = {
    "--config": ["scale", "in.npy", "out.zarr", "--config"],
    "--scheduler": ["scale", "in.npy", "out.zarr", "--factor", "1,1,1", "--scheduler"],
    "--report": ["scale", "in.npy", "out.zarr", "--factor", "1,1,1", "--report"],
    "--picture": ["plan", "in.npy", "--factor", "1,1,1", "--picture"],
    "--save": ["plan", "in.npy", "--factor", "1,1,1", "--save"],
    "--output": ["show", "in.npy", "--input-voxel-size", "1,1,1", "--output"],
    "--with-labels": ["scale", "in.npy", "out.zarr", "--factor", "1,1,1", "--with-labels"],
    "--against": ["verify", "in.npy", "--against"],
}


@pytest.mark.skipif(sys.platform == "win32", reason="there are neither pipes nor devices in folders")
@pytest.mark.parametrize("option", NAMED)
@pytest.mark.parametrize("kind", SPECIAL)
def test_a_file_that_an_option_names_is_no_other_thing(
    isovoxel: Isovoxel, folder: Path, kind: str, option: str
) -> None:
    """A folder, a pipe, a device or what has no end is refused at once in one sentence, and nothing is begun."""
    path = {"--report": "odd.html", "--picture": "odd.svg", "--output": "odd.png"}.get(option, "odd")
    SPECIAL[kind](path)
    before = listing(folder)
    check_refused(isovoxel(*NAMED[option], path), "")
    assert listing(folder) == before


numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    st.dictionaries(st.sampled_from(["zoom", "crop", "memory", "flag"]), st.booleans() | numbers | texts, max_size=4)
)
def test_what_is_written_is_read_again(options: dict[str, object]) -> None:
    """Any number and any text, and three numbers as the text that the command line has."""
    text = "".join(f"{name} = {_toml(value)}\n" for name, value in options.items())
    assert tomllib.loads(text) == options
    assert tomllib.loads(f"a = {_toml((1, 2.5))}") == {"a": [1, 2.5]}


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    """Sequences come as the command line has them."""
    _write_job(tmp_path / "job.toml", {"shard": (1, 2, 3), "antialias": True, "memory": "8GiB"})
    known = {"shard": False, "antialias": True, "memory": False}
    assert _read_job(tmp_path / "job.toml", known) == {"shard": "1,2,3", "antialias": True, "memory": "8GiB"}


def test_the_shell_completes_options() -> None:
    """As typer has it: the script that a shell loads asks the command for words."""
    program = f"{Path(sys.executable).parent}/isovoxel"
    asked = {"_ISOVOXEL_COMPLETE": "complete_bash", "COMP_WORDS": "isovoxel scale --cr", "COMP_CWORD": "2"}
    done = subprocess.run([program], env=os.environ | asked, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["--crop"]
