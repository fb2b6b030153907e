"""The benchmarks run, on tiny sizes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_job_benchmark_runs_and_finds_its_results_right(tmp_path: Path) -> None:
    """It prints one row for each way to the halo, with an error of rounding alone for whole factors."""
    command = [sys.executable, "-m", "benchmarks", "job", "--shape", "16,64,64", "--folder", str(tmp_path / "files")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = [
        line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith(("| direct", "| map_overlap"))
    ]
    assert [row[0].strip() for row in rows] == ["direct", "map_overlap"]
    assert all(float(row[-1]) <= 0.5 + 1e-3 for row in rows)
    assert "one piece   zoom 4: finished with shape (64, 64, 64)" in done.stdout
    assert not (tmp_path / "files").exists()
