"""Nothing is lost: whatever ends a job, the same command goes on, does nothing twice, and makes the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Most where a job takes least: what is lost or done twice is lost by the ledger, whatever makes the blocks.
KILLS = {("exact", "direct"): 25, ("exact", "map_overlap"): 8, ("cle", "direct"): 8, ("cle", "map_overlap"): 8}
"""How often a job is killed, by its engine and its way to the halo."""


def killed(*words: object) -> dict[str, Any]:
    """Run the program that kills a job, and return what came of it."""
    command = [sys.executable, str(Path(__file__).with_name("killed.py")), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    print(said)
    return said


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "halo"), KILLS)
def test_a_job_that_is_killed_again_and_again(engine: str, halo: str, tmp_path: Path) -> None:
    """After SIGKILLs at random moments the files are those of an undisturbed run, and no block was done twice."""
    kills = KILLS[engine, halo]
    said = killed(engine, halo, tmp_path, kills)
    assert said["blocks"] >= 60
    assert said["killed"] == kills
    assert said["went_on"] >= kills // 5  # kills come in the middle of jobs, whatever they were begun with
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
