"""Nothing is lost: whatever ends a job, the same command goes on, does nothing twice, and makes the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

KILLS = 25


def killed(*words: object) -> dict[str, Any]:
    """Run the program that kills a job, and return what came of it."""
    command = [sys.executable, str(Path(__file__).with_name("killed.py")), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    print(said)
    return said


@pytest.mark.slow
@pytest.mark.parametrize("halo", ["direct", "map_overlap"])
@pytest.mark.parametrize("engine", ["cle", "exact"])
def test_a_job_that_is_killed_again_and_again(engine: str, halo: str, tmp_path: Path) -> None:
    """After 25 SIGKILLs at random moments the files are those of an undisturbed run, and no block was done twice."""
    said = killed(engine, halo, tmp_path, KILLS)
    assert said["blocks"] >= 60
    assert said["killed"] == KILLS
    assert said["went_on"] >= 5  # kills come in the middle of jobs, whatever they were begun with
    assert said["complete"] >= 1
    assert (said["wrong"], said["redone"], said["lost"]) == (0, 0, 0)
    assert halo in said["modes"]
    assert "direct" in said["modes"]  # a job that goes on reads no neighbours of what is done


@pytest.mark.parametrize("kills", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_labels_of_an_image_that_are_killed_again_and_again(kills: int, tmp_path: Path) -> None:
    """In OME-Zarr 0.4, in a group that is made with them: the same, and they are listed once."""
    said = killed("exact", "direct", tmp_path, kills, "labels")
    assert (said["killed"], said["wrong"], said["redone"], said["lost"]) == (kills, 0, 0, 0)
    assert json.loads((tmp_path / "image.zarr/labels/.zattrs").read_text()) == {"labels": ["out"]}
