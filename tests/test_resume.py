"""Nothing is lost: whatever ends a job, the same command goes on, does nothing twice, and makes the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = 25


@pytest.mark.parametrize("halo", ["direct", "map_overlap"])
@pytest.mark.parametrize("engine", ["cle", "exact"])
def test_a_job_that_is_killed_again_and_again(engine: str, halo: str, tmp_path: Path) -> None:
    """After 25 SIGKILLs at random moments the files are those of an undisturbed run, and no block was done twice."""
    program = Path(__file__).with_name("killed.py")
    done = subprocess.run(
        [sys.executable, str(program), engine, halo, str(tmp_path), str(KILLS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    print(said)
    assert said["blocks"] >= 60
    assert said["killed"] == KILLS
    assert said["went_on"] >= 5  # kills come in the middle of jobs, whatever they were begun with
    assert said["complete"] >= 1
    assert (said["wrong"], said["redone"], said["lost"]) == (0, 0, 0)
    assert halo in said["modes"]
    assert "direct" in said["modes"]  # a job that goes on reads no neighbours of what is done
