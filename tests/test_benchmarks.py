"""The benchmarks run, on tiny sizes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]


def test_the_job_benchmark_runs_and_finds_its_results_right(tmp_path: Path) -> None:
    """It prints a row for each engine and way to the halo, which holds, with an error of rounding for whole factors."""
    command = [sys.executable, "-m", "benchmarks", "job", "--shape", "16,64,64"]
    command += ["--samples", "60", "--folder", str(tmp_path / "files")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("| cle", "| exact"))]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    halos = ["direct", "map_overlap"]
    assert [row[:2] for row in rows] == [[engine, halo] for engine in ("cle", "exact") for halo in halos]
    assert all(float(row[-2]) <= 0.5 + 1e-3 for row in rows)
    assert all(row[-1] == "holds" for row in rows)
    assert "one piece   zoom 4: finished with shape (64, 64, 64)" in done.stdout
    assert not (tmp_path / "files").exists()


def test_the_aliasing_benchmark_shows_what_antialiasing_is_for(tmp_path: Path) -> None:
    """Unfiltered, what the result cannot hold stays as something else; filtered, it goes and the rest stays."""
    command = [sys.executable, "-m", "benchmarks", "aliasing", "--side", "400", "--png", str(tmp_path / "plate.png")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith(("| linear", "| cubic"))]
    shares = {row[0].strip(): [float(cell.strip(" %")) for cell in row[1:]] for row in rows}
    for kernel in ("linear", "cubic"):
        aliased, kept = shares[kernel]
        assert aliased > 80
        assert kept > 80
        aliased, kept = shares[f"{kernel} --antialias"]
        assert aliased < 2
        assert kept > 60
    with Image.open(tmp_path / "plate.png") as picture:
        assert picture.width > 2 * 80


def test_the_kernels_benchmark_measures_both_engines() -> None:
    """On tiny sizes each engine and dtype has its rows, and integers are off by little more than rounding."""
    command = [sys.executable, "-m", "benchmarks", "kernels", "--voxels", "30000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("| cle", "| exact"))]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert {(row[0], row[1]) for row in rows} == {
        ("cle", "uint16"),
        ("exact", "uint16"),
        ("exact", "uint8"),
        ("exact", "float32"),
    }
    for row in rows:
        assert float(row[4]) < (0.52 if row[0] == "exact" else 1000)
        assert all(float(speed) > 0 for speed in row[-2:])


def test_the_writers_benchmark_compares_both() -> None:
    """It prints a row for each writer, after reading back what each wrote."""
    command = [sys.executable, "-m", "benchmarks", "writers", "--side", "32", "--shards", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines()[3:]]
    assert rows == ["isovoxel", "zarr-python"]
