"""The README keeps its word: its Python runs, its session is what the commands print, its tests are those of CI."""

from __future__ import annotations

import doctest
import re
import shlex
import sys
from pathlib import Path

import pytest

from isovoxel import cli
from isovoxel.demo import write_blastocyst

CHECKOUT = Path(__file__).parents[1]
README = CHECKOUT / "README.md"

ELSEWHERE = ("in one piece", "image there", "device", "next limit", "engine", "blocks", "halo", "files", "host", "time")
"""How lines begin that tell of the machine or of time."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_python_examples_run() -> None:
    """Each example gives what stands below it."""
    failed, tried = doctest.testfile(str(README), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert tried > 10
    assert failed == 0


def session() -> list[tuple[str, list[str]]]:
    """Return the commands of the session, each with the lines that it printed."""
    blocks = re.findall(r"```console\n\$ isovoxel (.*)\n([^`]*)```", README.read_text(encoding="utf-8"))
    return [(command, output.splitlines()) for command, output in blocks]


def lasting(lines: list[str]) -> list[str]:
    """Return the lines that are the same on any machine."""
    return [line for line in lines if not line.startswith((" ", "threads", "note:", "done:", *ELSEWHERE))]


def test_session_is_real(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Run again, the commands print the same lines, but for those about the machine and about time."""
    write_blastocyst(folder / "blastocyst.tif")
    commands = session()
    assert [command.split()[0] for command, _ in commands] == ["info", "limits", "plan", "scale", "scale", "verify"]
    for command, lines in commands:
        monkeypatch.setattr(sys, "argv", ["isovoxel", *shlex.split(command)])
        with pytest.raises(SystemExit, match="0"):
            cli.main()
        out, err = capsys.readouterr()
        printed = (err + out).splitlines()
        assert lasting(lines) == lasting(printed)
        assert {line.split("  ")[0] for line in lines if line[0] != " "} >= {
            line.split("  ")[0] for line in out.splitlines() if line[0] != " "
        }


def test_ci_runs_the_second_command() -> None:
    """What the README tells users to run is what `.ci/run` runs, and then what is slow."""
    first, second = re.findall(r"```sh\n(.*)\n```", README.read_text(encoding="utf-8"))
    assert first.endswith("""pip install ".[prototype]" && isovoxel demo""")
    assert (CHECKOUT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-2:] == [second, "pytest -n 2 -m slow"]


def test_every_room_is_in_the_table() -> None:
    """The README's table names each package and module of isovoxel."""
    package = CHECKOUT / "src" / "isovoxel"
    rooms = {p.stem for p in package.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    rows = [line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == rooms - {"__init__", "__main__"}


def test_files_that_it_points_to_are_there() -> None:
    """Pictures and links inside of the checkout lead somewhere."""
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README.read_text(encoding="utf-8")):
        assert (CHECKOUT / target).exists(), target
