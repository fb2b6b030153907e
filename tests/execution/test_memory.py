"""Nothing in memory grows with the volume: peaks of real runs, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

MIB = 2**20
BUDGET = 800 * MIB
SMALL, LARGE = (32, 256, 256), (64, 512, 512)
FACTOR = "8,2,2"
"""Makes 128 MiB of the small volume and 1 GiB of the large one, which is more than the budget."""


def write_noise(path: Path, shape: tuple[int, int, int]) -> Path:
    array = zarr.create_array(path, shape=shape, chunks=(32, 64, 64), dtype="uint16")
    rng = np.random.default_rng(0)
    for z in range(0, shape[0], 32):
        array[z : z + 32] = rng.integers(0, 4096, (32, *shape[1:]), dtype=np.uint16)
    return path


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_noise(tmp_path_factory.mktemp("memory") / "large.zarr", LARGE)


@pytest.fixture(scope="module")
def volumes(large: Path) -> Path:
    """The folder of the large volume, with a small one and a series."""
    folder, rng = large.parent, np.random.default_rng(0)
    write_noise(folder / "small.zarr", SMALL)
    array = zarr.create_array(
        folder / "series.zarr",
        shape=(2, 4, *SMALL),
        chunks=(1, 1, 32, 64, 64),
        dtype="u2",
        dimension_names=list("tczyx"),
    )
    for t, c in np.ndindex(2, 4):
        array[t, c] = rng.integers(0, 4096, SMALL, dtype=np.uint16)
    return folder


def run(source: Path, output: Path, *options: str) -> dict:
    """Scale in a fresh process and return what it says of itself."""
    command = [sys.executable, "-m", "isovoxel", "scale", str(source), str(output), "--factor", FACTOR]
    done = subprocess.run(
        [*command, "--memory", f"{BUDGET}B", "--json", *options], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("halo", ["direct", "map_overlap"])
@pytest.mark.parametrize(
    ("name", "engine", "interpolation"),
    [
        ("small", "cle", "linear"),
        ("small", "cle", "nearest"),
        ("large", "cle", "nearest"),
        ("small", "exact", "linear"),
        ("large", "exact", "linear"),
    ],
)
def test_peak_memory_stays_within_projection_and_budget(
    name: str, engine: str, interpolation: str, halo: str, volumes: Path, tmp_path: Path
) -> None:
    """Law 4: measured peak <= projected <= allowed, for a volume and one 8 times larger, with the same budget."""
    levels = (
        "auto" if engine == "exact" and halo == "direct" else "0"
    )  # further ones are made alike whoever made the full
    how = ["--halo", halo, "--interpolation", interpolation, "--engine", engine, "--levels", levels]
    did = run(volumes / f"{name}.zarr", tmp_path / "out.zarr", *how)
    print(f"{name} {engine} {interpolation} {halo}: peak {did['peak_host_bytes'] / MIB:.0f} MiB,", end=" ")
    print(f"projected {did['projected']['host_bytes'] / MIB:.0f}, allowed {BUDGET / MIB:.0f}")
    assert did["blocks"]["halo_mode"] == halo
    assert did["peak_host_bytes"] <= did["projected"]["host_bytes"] <= did["allowed"]["host_bytes"] == BUDGET
    if name == "large":
        assert did["output"]["bytes"] > BUDGET
        assert did["blocks"]["count"] > 10


WITH_PEAK = """
import re, sys
from pathlib import Path
from isovoxel.cli import main
try:
    main()
finally:
    print("peak", re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1], file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process its peak")
def test_channels_levels_and_report_stay_within_the_budget(volumes: Path, tmp_path: Path) -> None:
    """All volumes of a series, each with its levels, and pictures before and after: the whole process, to its end."""
    words = ["scale", "series.zarr", str(tmp_path / "out.zarr"), "--factor", FACTOR, "--engine", "exact", "--json"]
    words += ["--memory", f"{BUDGET}B", "--report", str(tmp_path / "report.html")]
    done = subprocess.run(
        [sys.executable, "-c", WITH_PEAK, *words], capture_output=True, text=True, check=False, cwd=volumes
    )
    assert done.returncode == 0, done.stderr
    did, peak = json.loads(done.stdout), 1024 * int(done.stderr.split()[-1])
    print(f"series: peak {peak / MIB:.0f} MiB, projected {did['projected']['host_bytes'] / MIB:.0f}")
    assert did["levels"]
    assert did["output"]["bytes"] > BUDGET
    assert did["blocks"]["count"] >= 8
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert peak <= BUDGET
    assert did["peak_host_bytes"] <= did["projected"]["host_bytes"] <= BUDGET


@pytest.mark.slow
@pytest.mark.parametrize(("name", "chunk"), [("small", "16,32,32"), ("large", "128,128,128")])
def test_a_file_for_each_chunk_stays_within_projection_and_budget(
    name: str, chunk: str, volumes: Path, tmp_path: Path
) -> None:
    """OME-Zarr 0.4, with many small files or few large ones: the same law."""
    how = ["--engine", "exact", "--ome-zarr", "0.4", "--chunk", chunk, "--levels", "1"]
    did = run(volumes / f"{name}.zarr", tmp_path / "out.zarr", *how)
    print(f"{name} {chunk}: peak {did['peak_host_bytes'] / MIB:.0f} MiB,", end=" ")
    print(f"projected {did['projected']['host_bytes'] / MIB:.0f}, allowed {BUDGET / MIB:.0f}")
    assert did["peak_host_bytes"] <= did["projected"]["host_bytes"] <= did["allowed"]["host_bytes"] == BUDGET


@pytest.mark.slow
def test_more_budget_is_used(volumes: Path, tmp_path: Path) -> None:
    """The projection is no mere constant: with more memory, blocks are larger and so is the peak."""
    little, much = (
        run(
            volumes / "small.zarr",
            tmp_path / f"{n}.zarr",
            "--memory",
            f"{n}MiB",
            "--threads",
            "2",
            "--shard",
            "64,64,64",
        )
        for n in (570, 2000)
    )
    assert np.prod(much["blocks"]["shape"]) > np.prod(little["blocks"]["shape"])
    assert much["peak_host_bytes"] > little["peak_host_bytes"]


@pytest.mark.slow
def test_show_stays_within_its_budget(large: Path, tmp_path: Path) -> None:
    """Of a volume larger than the budget, with chunks as large as tiles: law 4 for pictures; too little is refused."""
    show = [sys.executable, "-m", "isovoxel", "show", str(large), "--json"]
    done = {
        memory: subprocess.run(
            [*show, "--memory", memory, "-o", str(tmp_path / f"{memory}.png")],
            capture_output=True,
            text=True,
            check=False,
        )
        for memory in ("600MiB", "200MiB")
    }
    assert done["600MiB"].returncode == 0, done["600MiB"].stderr
    did = json.loads(done["600MiB"].stdout)
    assert did["peak_host_bytes"] <= did["projected"]["host_bytes"] <= did["allowed"]["host_bytes"] == 600 * MIB
    assert done["200MiB"].returncode == 2
    assert "of which 200.0 MiB are allowed; choose more --memory" in done["200MiB"].stderr
    assert not (tmp_path / "200MiB.png").exists()
