"""The command: what it says of this machine, and where packages are broken so that nothing else works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import Isovoxel
from isovoxel.doctor import diagnosis, is_asked
from isovoxel.doctor.diagnosis import Diagnosis
from isovoxel.doctor.machine import Fault
from isovoxel.version import __version__

SOURCES = str(Path(diagnosis.__file__).parents[2])
PYTHON = [sys.executable, "-m", "isovoxel"]


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["doctor"], True),
        (["doctor", "--json"], True),
        (["--debug", "doctor"], True),
        ([], False),
        (["--json"], False),
        (["doctor", "--help"], False),  # for the parser
        (["doctor", "doctor"], False),
        (["scale", "doctor", "out.zarr"], False),
        (["info", "doctor"], False),
    ],
)
def test_words_that_need_no_parser_are_known(words: list[str], *, asked: bool) -> None:
    """All others are left to it."""
    assert is_asked(words) == asked


@pytest.mark.parametrize("fatal", [False, True])
def test_the_exit_code_says_whether_jobs_run(
    isovoxel: Isovoxel, monkeypatch: pytest.MonkeyPatch, *, fatal: bool
) -> None:
    """A warning is none; each fault stands with what mends it."""
    faults = [Fault("it is off", "switch it on", fatal)]
    monkeypatch.setattr(diagnosis, "diagnose", lambda: Diagnosis([("a", "b")], {"c": 1}, faults))
    said = isovoxel("doctor")
    assert said.code == (2 if fatal else 0)
    assert f"\n{'fault' if fatal else 'warning'}" in said.out
    assert "\nto mend it  switch it on\n" in said.out
    said = isovoxel("doctor", "--json")
    assert (said.code, json.loads(said.out), said.err) == (2 if fatal else 0, {"c": 1}, "")


@pytest.mark.slow
def test_on_this_machine_jobs_run(isovoxel: Isovoxel) -> None:
    """Engine exact scales, which all these tests need, and the devices are those of the other command."""
    record = isovoxel("doctor", "--json").json
    assert record["isovoxel"]["version"] == __version__
    assert record["engines"]["exact"]["scales"]
    known = isovoxel("devices", "--json").json["devices"]
    assert [d["name"] for d in record["opencl"]["devices"]] == [d["name"] for d in known]
    assert all(not folder["problem"] for folder in record["folders"])


def run(folder: Path, *words: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a command with a folder of packages before all others."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), SOURCES])}
    return subprocess.run(
        [sys.executable, *flags, "-m", "isovoxel", *words], env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Return a folder with a NumPy that ends whatever imports it."""
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text("import os; os._exit(77)")
    return tmp_path


@pytest.mark.slow
def test_a_package_that_ends_processes_does_not_end_the_doctor(broken: Path) -> None:
    """It is named as the cause."""
    done = run(broken, "doctor", "--json")
    assert done.returncode == 2, done.stderr
    fatal = [fault["what"] for fault in json.loads(done.stdout)["faults"] if fault["fatal"]]
    assert "numpy is installed, but cannot be imported: its process ended with exit code 77" in fatal


def test_where_packages_are_broken_other_commands_point_to_the_doctor(broken: Path) -> None:
    (broken / "numpy" / "__init__.py").write_text("raise RuntimeError('built for another\\nprocessor')")
    done = run(broken, "info", "a.tif")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: isovoxel cannot be loaded (RuntimeError: built for another processor); "
        "isovoxel doctor says what mends it\n"
    )


def test_without_any_package_it_says_that_isovoxel_is_to_be_installed(tmp_path: Path) -> None:
    """Python alone is enough for it."""
    done = run(tmp_path, "doctor", flags=("-S",))
    assert done.returncode == 2, done.stderr
    assert "and is not installed, and it lacks " in done.stdout
    assert done.stdout.count("\nfault") == 1


def test_the_doctor_itself_loads_nothing_that_may_be_broken() -> None:
    """Other processes do."""
    code = """
import sys
from isovoxel.doctor.trials import Answer
from isovoxel.doctor.diagnosis import diagnose
diagnose(question=lambda *_, **__: Answer(reason="no"))
print(*{name.partition(".")[0] for name in sys.modules})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & {"numpy", "pyopencl", "psutil", "zarr", "dask", "typer", "rich"} == set()
