"""The benchmarks run, on tiny sizes, and what they print and write has the shape that its readers expect."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isovoxel.planning.chunking import CODECS

ROOT = Path(__file__).parents[1]
NAMES = (
    *("kernels", "limits", "job", "stage", "scaling", "peers", "startup", "roofline", "aliasing", "writers"),
    "checksums",
    *("workers", "simulate", "budgets", "generations", "pairs", "conformance", "smooth", "whole", "pipelines"),
    "encoding",
    "empty",
    "views",
    "script",
    "pinned",
    "gpus",
)


def run(*words: object) -> str:
    """Run a benchmark and return what it prints."""
    command = [sys.executable, "-m", "benchmarks", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def numbers(path: Path) -> Any:
    """Return what a benchmark wrote, having looked that it names the machine."""
    record = json.loads(path.read_text("utf-8"))
    assert set(record["machine"]) == {"date", "processor", "cores", "device", "files"}
    return record


def assert_limit(limit: Any) -> None:
    """The limit is the fastest way in and the fastest way out, one after the other."""
    steps = [limit["decode"], limit["encode"]]
    for step in steps:
        assert step["seconds"] == min(step["tried"].values()) == step["tried"][step["by"]] > 0
    assert limit["seconds"] == pytest.approx(sum(step["seconds"] for step in steps))


@pytest.fixture
def in_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process import the benchmarks."""
    monkeypatch.syspath_prepend(ROOT)


@pytest.mark.usefixtures("in_checkout")
@pytest.mark.parametrize("name", NAMES)
def test_each_benchmark_says_what_it_measures(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its help begins with its usage, and goes on with what it does."""
    with pytest.raises(SystemExit) as done:
        import_module(f"benchmarks.{name}").main(["--help"])
    assert done.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: python -m benchmarks {name}")
    assert len(said.splitlines()) > 8


@pytest.mark.usefixtures("in_checkout")
def test_the_data_are_like_a_microscopes_and_the_same_each_time() -> None:
    """About 12 of 16 bits are used, the noise is that of photons, and no plane repeats."""
    voxels_of = import_module("benchmarks.data").voxels_of
    voxels = voxels_of((24, 96, 96))
    assert np.array_equal(voxels, voxels_of((24, 96, 96)))
    assert not np.array_equal(voxels, voxels_of((24, 96, 96), seed=1))
    assert 1024 <= voxels.max() < 4096
    assert len({plane.tobytes() for plane in voxels}) == 24
    # The structure is linear between its knots: what is left in second differences is noise.
    real = voxels.astype(np.float64)
    noise = np.diff(real, 2, axis=2).var() / 6
    assert noise == pytest.approx(real.mean(), rel=0.1)


@pytest.mark.slow
def test_the_job_benchmark_measures_the_limit_and_is_drawn(tmp_path: Path) -> None:
    """Both engines have their numbers, which add up; pictures show where time goes, and what others do."""
    said = run(
        *("job", "--factors", "4,1,1", "--voxels", 3e5, "--samples", 0, "--repeat", 1, "--halo", "direct"),
        *("--folder", tmp_path / "files", "--json", tmp_path / "job.json", "--figure", tmp_path / "job.png"),
    )
    assert "one piece: finished with shape (68, 67, 67)" in said
    record = numbers(tmp_path / "job.json")
    (case,) = record["cases"]
    assert case["factor"] == [4, 1, 1]
    assert_limit(case["limit"])
    assert [job["engine"] for job in case["jobs"]] == ["cle", "exact"]
    for job in case["jobs"]:
        assert job["ratio"] == pytest.approx(case["limit"]["seconds"] / job["seconds"])
        assert 0 < job["explained"] < 1.1
        assert job["peak_bytes"] <= job["projected_bytes"] <= job["allowed_bytes"]
        assert job["process_seconds"] > job["seconds"]
    assert {(kernel["engine"], tuple(kernel["factor"])) for kernel in record["kernels"]} == {
        ("cle", (4, 1, 1)),
        ("exact", (4, 1, 1)),
    }
    assert list((tmp_path / "files").iterdir()) == []

    rows = [{"name": "another", "voxels_per_second": 1e6}, {"name": "a third", "skipped": "it is not installed"}]
    peers = {"machine": record["machine"], "factor": [4.0, 1.0, 1.0], "rows": rows}
    (tmp_path / "peers.json").write_text(json.dumps(peers), "utf-8")
    files = ["--job", tmp_path / "job.json", "--peers", tmp_path / "peers.json"]
    run("roofline", *files, "--output", tmp_path / "roofline.png")
    for name in ("job.png", "roofline.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 800
        assert (tmp_path / name).stat().st_size < 150_000


@pytest.mark.slow
def test_the_job_benchmark_takes_one_large_case_and_verifies_it(tmp_path: Path) -> None:
    """A shape, a voxel size and a zoom make a case of their own; both ways to the halo give what holds."""
    said = run(
        *("job", "--shape", "16,64,64", "--engine", "exact", "--samples", 60, "--repeat", 1, "--no-one-piece"),
        *("--folder", tmp_path, "--json", tmp_path / "job.json"),
    )
    assert "factors (4, 1, 1): (16, 64, 64) uint16 becomes (64, 64, 64)" in said
    (case,) = numbers(tmp_path / "job.json")["cases"]
    assert [(job["halo"], job["holds"]) for job in case["jobs"]] == [("direct", True), ("map_overlap", True)]
    assert all(job["largest_error"] <= 0.501 for job in case["jobs"])


@pytest.mark.slow
def test_the_aliasing_benchmark_shows_what_antialiasing_is_for(tmp_path: Path) -> None:
    """Unfiltered, what the result cannot hold stays as something else; filtered, it goes and the rest stays."""
    said = run("aliasing", "--side", 400, "--png", tmp_path / "plate.png")
    rows = [line.split("|")[1:-1] for line in said.splitlines() if line.startswith(("| linear", "| cubic"))]
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


@pytest.mark.slow
def test_the_kernels_benchmark_measures_both_engines(tmp_path: Path) -> None:
    """On tiny sizes each engine and dtype has its numbers, and integers are off by little more than rounding."""
    run("kernels", "--voxels", 30000, "--json", tmp_path / "kernels.json")
    record = numbers(tmp_path / "kernels.json")
    assert {(found["engine"], found["dtype"]) for found in record["kernels"]} == {
        ("cle", "uint16"),
        ("exact", "uint16"),
        ("exact", "uint8"),
        ("exact", "float32"),
    }
    for found in record["kernels"]:
        assert found["largest_error"] < (0.52 if found["engine"] == "exact" else 1000)
        assert found["voxels_per_second"] > 0
        assert found["bound_voxels_per_second"] == pytest.approx(
            record["device_bytes_per_second"] / found["bytes_per_voxel"]
        )
    first = record["kernels"][0]
    assert (first["factor"], first["dtype"]) == ([4, 1, 1], "uint16")
    assert first["bytes_per_voxel"] == pytest.approx(2.5)


@pytest.mark.slow
def test_the_limits_benchmark_tries_all_readers_and_writers(tmp_path: Path) -> None:
    """Each has its seconds, the fastest makes the limit, and every way that bytes go has its speed."""
    run("limits", "--factors", "2,1,1", "--voxels", 3e5, "--copied", 1e6, "--json", tmp_path / "limits.json")
    record = numbers(tmp_path / "limits.json")
    (case,) = record["cases"]
    assert_limit(case)
    for step in (case["decode"], case["encode"]):
        assert any(name.startswith("isovoxel") for name in step["tried"])
    assert len(record["bytes_per_second"]) == 8
    assert all(rate > 0 for rate in record["bytes_per_second"].values())


@pytest.mark.slow
def test_the_stage_benchmark_brings_blocks_to_the_device_and_back(tmp_path: Path) -> None:
    """Both engines have a rate beside that of copies."""
    run(
        "stage", "--voxels", 3e5, "--factors", "2,1,1", "--blocks", 3, "--threads", 2, "--json", tmp_path / "stage.json"
    )
    record = numbers(tmp_path / "stage.json")
    assert [row["engine"] for row in record["rows"]] == ["exact", "cle"]
    for row in record["rows"]:
        assert row["ratio"] == pytest.approx(row["bytes_per_second"] / record["pinned"])
        assert row["voxels_per_second"] > 0


@pytest.mark.slow
def test_the_scaling_benchmark_measures_growth_and_the_cost_of_a_block(tmp_path: Path) -> None:
    """Volumes double, many tiny blocks stand against few, and both ways to the halo have a cost."""
    run(
        *("scaling", "--voxels", 1e5, "--repeat", 1, "--threads", 1, "--largest", 2, "--shards", 16),
        *("--blocks-side", 48, "--folder", tmp_path, "--json", tmp_path / "scaling.json"),
    )
    record = numbers(tmp_path / "scaling.json")
    assert [found["threads"] for found in record["threads"]] == [1]
    assert [found["what"] for found in record["shards"]] == ["shards of 16"]
    small, large = (found["voxels"] for found in record["volumes"])
    assert large == pytest.approx(2 * small, rel=0.05)
    for group in ("threads", "shards", "volumes"):
        for found in record[group]:
            assert found["ns_per_voxel"] == pytest.approx(1e9 * found["seconds"] / found["voxels"])
    assert [found["halo"] for found in record["blocks"]] == ["direct", "map_overlap"]
    for found in record["blocks"]:
        assert found["many"]["blocks"] >= 27 > found["few"]["blocks"]


@pytest.mark.slow
def test_the_peers_benchmark_compares_results_too(tmp_path: Path) -> None:
    """Others give isovoxel's voxels but for rounding."""
    run(
        *("peers", "--voxels", 2e5, "--repeat", 1, "--program", "scipy.ndimage.zoom"),
        *("--folder", tmp_path, "--json", tmp_path / "peers.json"),
    )
    ours, theirs = numbers(tmp_path / "peers.json")["rows"]
    assert (ours["name"], theirs["name"]) == ("isovoxel exact", "scipy.ndimage.zoom")
    assert ours["largest_difference"] == 0
    if "skipped" not in theirs:  # it takes tensorstore to be read and written
        assert theirs["largest_difference"] <= 1
        assert theirs["voxels_per_second"] > 0
        assert theirs["peak_bytes"] > 0


@pytest.mark.slow
def test_the_pairs_benchmark_compares_two_trees(tmp_path: Path) -> None:
    """Here one with itself; a ratio for seconds, CPU seconds and peak."""
    tree = Path(__file__).parents[1]
    said = run("pairs", tree, tree, "--shape", "4,16,16", "--repeat", 1, "--folder", tmp_path)
    rows = {row.split("|")[1].strip(): row.split("|")[6].strip() for row in said.splitlines()[2:]}
    assert {"seconds", "cpu", "peak MiB"} <= rows.keys()
    assert float(rows["seconds"]) > 0


@pytest.mark.slow
def test_the_startup_benchmark_compares_a_small_job_with_a_script(tmp_path: Path) -> None:
    """Each command has its seconds, on the clock and of all cores."""
    run("startup", "--shape", "8,40,40", "--repeat", 1, "--json", tmp_path / "startup.json")
    commands = numbers(tmp_path / "startup.json")["commands"]
    names = ["a script with cle.scale", "scale", "plan", "plan of a petabyte", "--help"]
    assert [name.removeprefix("isovoxel ") for name in commands] == names
    assert all(found["seconds"] > 0 and found["cpu_seconds"] > 0 for found in commands.values())


@pytest.mark.slow
def test_steps_of_gpu_machines_have_logs_and_an_end(tmp_path: Path) -> None:
    """One that has no time is not begun, and one that fails is told."""
    words = ["gpus", "--logs", tmp_path / "logs", "--folder", tmp_path / "files"]
    rows = run(*words, "--device", "none such", "--steps", "stack pinned").splitlines()[2:]
    assert [row.split(" | ")[-1] for row in rows] == ["with status 1 |", "with status 1 |"]
    assert all("none such" in (tmp_path / "logs" / f"{name}.txt").read_text("utf-8") for name in ("stack", "pinned"))
    assert "not begun: " in run(*words, "--seconds", 10)
    listed = run(*words, "--gpus", 4, "--list")
    assert all(f"-m benchmarks {name} " in listed for name in ("workers", "whole", "script", "budgets", "encoding"))


@pytest.mark.slow
def test_the_whole_benchmark_measures_runs_from_start_to_exit(tmp_path: Path) -> None:
    """Phases add up to a run, parts to its limit; a stack and a volume each have a row, and are drawn."""
    run(
        *("whole", "--sizes", "stack 0.0003", "--levels", "1", "--repeat", 1, "--folder", tmp_path / "files"),
        *("--json", tmp_path / "whole.json", "--figure", tmp_path / "whole.png"),
    )
    rows = numbers(tmp_path / "whole.json")["rows"]
    assert [row["size"] for row in rows] == ["stack", "0.0003"]
    for row in rows:
        phases, limit = row["phases"], row["limit"]
        assert sum(phases.values()) == pytest.approx(row["seconds"])
        assert all(phases[name] > 0 for name in ("imports", "preparing", "first block", "end"))
        assert limit["python"] + limit["decode"] + limit["encode"] == pytest.approx(limit["seconds"])
        assert row["peak_bytes"] <= row["projected_bytes"]
    assert list((tmp_path / "files").iterdir()) == []
    with Image.open(tmp_path / "whole.png") as picture:
        assert picture.width > 800


@pytest.mark.slow
def test_the_pipelines_benchmark_counts_a_task_for_each_block() -> None:
    """Of small chunks and of larger ones."""
    rows = [line.split("|") for line in run("pipelines", "--blocks", 4).splitlines()[-2:]]
    assert [row[3].strip() for row in rows] == ["1", "1"]


@pytest.mark.slow
def test_the_writers_benchmark_compares_both() -> None:
    """It prints a row for each writer and codec, after reading back what each wrote."""
    said = run("writers", "--side", 32, "--shards", 2)
    rows = [tuple(cell.strip() for cell in line.split("|")[1:3]) for line in said.splitlines()[3:]]
    assert rows == list(itertools.product(["isovoxel", "zarr-python"], CODECS))


@pytest.mark.slow
def test_the_checksums_benchmark_compares_both_ways_of_writing(tmp_path: Path) -> None:
    """With checksums and without, as often as it is said; and another thread counts meanwhile, for no lock is held."""
    run("checksums", "--side", 32, "--shards", 1, "--repeat", 2, "--json", tmp_path / "checksums.json")
    record = numbers(tmp_path / "checksums.json")
    assert {name: len(rounds) for name, rounds in record["codecs"]["blosc-lz4"].items()} == {"without": 2, "with": 2}
    assert record["counted"] > 100


@pytest.mark.slow
def test_the_workers_benchmark_compares_every_file(tmp_path: Path) -> None:
    """A row without a cluster, and one with a worker, of the same bits."""
    words = ["--workers", "cpu:1", "--engines", "exact", "--halos", "direct", "--voxels", 1e5]
    run("workers", *words, "--folder", tmp_path, "--json", tmp_path / "workers.json")
    alone, one = numbers(tmp_path / "workers.json")["rows"]
    assert (alone["workers"], one["workers"]) == ("", "cpu:1")
    assert one["files"] == one["expected"] == alone["files"]
    assert sum(one["shares"]) > 0


@pytest.mark.slow
def test_the_simulation_does_all_blocks(tmp_path: Path) -> None:
    """Workers that only sleep, a real scheduler, and what both ends hold and compute."""
    said = run("simulate", "--blocks", 60, "--workers", 2, "--faster", 1e4, "--json", tmp_path / "simulate.json")
    record = json.loads((tmp_path / "simulate.json").read_text("utf-8"))
    assert record["rows"][-1]["blocks"] == record["blocks"] == 60
    assert record["scheduler_seconds_a_block"] > 0
    assert "| 256 |" in said


@pytest.mark.slow
def test_the_generations_benchmark_compares_both(tmp_path: Path) -> None:
    """Both have their voxels, which are nearly the same, their time for a block, and their whole jobs."""
    for package in ("pyclesperanto_prototype", "pyclesperanto"):
        pytest.importorskip(package)
    run(
        *("generations", "--factors", "3.7,1.3,1.3", "--compared", 3e4, "--voxels", 1e5, "--blocks", 2, "--threads", 2),
        *("--job-voxels", 2e5, "--folder", tmp_path / "files", "--json", tmp_path / "generations.json"),
    )
    record = numbers(tmp_path / "generations.json")
    cuts = [(row["kernel"], row["blocks"], row["shifted"] > 0) for row in record["voxels"]]
    assert cuts == [(kernel, n, n > 1) for kernel in ("linear", "nearest") for n in (1, 27)]
    for row in record["voxels"]:
        largest, mean = row["uint16"]["between them"]
        assert largest <= (600 if row["kernel"] == "linear" else 0)
        assert mean <= largest
        if row["kernel"] == "nearest" and row["shifted"]:
            assert row["uint16"]["successor, float64"] == [0, 0]
    for row in record["blocks"]:
        assert all(seconds > 0 for pair in row["seconds"] for seconds in pair)
        assert row["rate"] == pytest.approx(row["seconds"][-1][0] / row["seconds"][-1][1])
    assert [job["by"] for job in record["jobs"]] == ["prototype", "successor"]
    for job in record["jobs"]:
        assert 1 <= job["programs"] <= 2
        assert len(job["runs"]) == 2
        assert all(run["process_seconds"] > run["seconds"] > 0 for run in job["runs"])
    assert list((tmp_path / "files").iterdir()) == []


@pytest.mark.slow
def test_the_views_benchmark_runs_each_command_beside_decoding(tmp_path: Path) -> None:
    """Both decoders, then each command, with what it holds where it says that."""
    pytest.importorskip("tensorstore")
    run("views", "--voxels", 1e5, "--repeat", 1, "--folder", tmp_path / "files", "--json", tmp_path / "views.json")
    rows = {row["what"]: row for row in numbers(tmp_path / "views.json")["rows"]}
    assert list(rows) == [
        *("decoding, tensorstore", "decoding, isovoxel", "info", "show", "verify", "verify --every-chunk")
    ]
    assert all(row["seconds"] > 0 for row in rows.values())
    for command in ("show", "verify", "verify --every-chunk"):
        assert 0 < rows[command]["peak"] <= rows[command]["projected"]
