"""What a job will cost: seconds by those of earlier jobs, from a file that each test brings; bytes and files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import isovoxel as api
from command_line import Isovoxel
from isovoxel.execution import result as module
from isovoxel.execution.events import JobStarted
from isovoxel.execution.result import LATEST, MOST_BYTES, RATES, ScaleResult, Tally, forecast, keep_rate
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.planning.plan import Plan
from isovoxel.reporting.progress import Notes, hints
from isovoxel.reporting.text import job_lines, plan_lines
from small_jobs import stop_after

VOXELS = np.random.default_rng(0).integers(1, 65536, (10, 12, 14)).astype("uint16")
OUTPUT = Path("out.zarr")
SMALL: dict[str, Any] = {"chunk": (8, 8, 8), "shard": (8, 8, 8), "engine": "exact", "threads": 2}


def planned(factor: float = 1.0, **options: Any) -> Plan:
    return api.plan(VOXELS, factor=(factor, 1.0, 1.0), input_voxel_size=(1.0, 1.0, 1.0), **(SMALL | options))


@pytest.fixture
def rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of the file of rates, which is not there."""
    path = tmp_path / "cache" / "rates.jsonl"
    monkeypatch.setenv(RATES, str(path))
    return path


def test_seconds_are_unknown_where_no_job_was_done(rates: Path) -> None:
    """Nothing is made up, and nothing is written to find out."""
    assert forecast(planned(), OUTPUT).seconds is None
    assert not rates.parent.exists()


@pytest.mark.usefixtures("rates")
def test_one_job_gives_a_rate() -> None:
    """Twice the work takes twice the time."""
    one, two = planned(2.0, levels=0), planned(4.0, levels=0)
    keep_rate(one, OUTPUT, 3.0)
    assert forecast(one).seconds == pytest.approx(3.0)
    read, written = 0.5 * VOXELS.size, 2 * VOXELS.size
    assert forecast(two).seconds == pytest.approx(3.0 * (read + 2 * written) / (read + written))


@pytest.mark.usefixtures("rates")
def test_jobs_of_several_sizes_tell_the_fixed_time_from_the_rate() -> None:
    """So small jobs, which take little but the fixed time, do not make large ones look slow."""
    small, middle, large = (planned(factor, levels=0) for factor in (1.0, 3.0, 50.0))
    for plan in (small, middle):
        keep_rate(plan, OUTPUT, 0.5 + plan.output_bytes * 1e-4 + VOXELS.nbytes * 0.5e-4)
    assert forecast(large).seconds == pytest.approx(0.5 + large.output_bytes * 1e-4 + VOXELS.nbytes * 0.5e-4, rel=1e-3)


@pytest.mark.usefixtures("rates")
def test_a_small_job_that_was_slow_makes_no_larger_one_faster() -> None:
    """A rate below 0 is none: what is forecast grows with the work."""
    for factor, seconds in ((1.0, 9.0), (4.0, 1.0)):
        keep_rate(planned(factor), OUTPUT, seconds)
    costs = [forecast(planned(factor)).seconds for factor in (1.0, 4.0, 50.0)]
    assert all(cost is not None and cost > 0 for cost in costs)
    assert costs == sorted(costs, key=lambda cost: cost or 0)


OTHERS: dict[str, Callable[[Plan], Plan]] = {
    "device": lambda plan: replace(plan, device=replace(plan.device, name="another")),
    "engine": lambda plan: replace(plan, engine="cle"),
    "kernel": lambda plan: replace(plan, interpolation="cubic"),
    "codec": lambda plan: replace(plan, storage=replace(plan.storage, codec="zstd")),
    "codec without blosc": lambda plan: replace(plan, storage=replace(plan.storage, codec="zstd", plain=True)),
    "encoder": lambda plan: replace(plan, device=replace(plan.device, encoding=1)),
    "decoder": lambda plan: replace(plan, device=replace(plan.device, decoding=1)),
    "cores": lambda plan: replace(plan, host=replace(plan.host, helpers=7)),
    "workers": lambda plan: replace(plan, host=replace(plan.host, workers=2)),
    "place": lambda plan: plan,
}


@pytest.mark.usefixtures("rates")
@pytest.mark.parametrize("other", OTHERS)
def test_jobs_that_are_not_alike_say_nothing_of_each_other(other: str) -> None:
    """Of another device, engine, kernel, codec, encoder, decoder, number of cores or of workers, or in a store."""
    place = ObjectPlace("s3://bucket", "out.zarr") if other == "place" else OUTPUT
    keep_rate(OTHERS[other](planned()), place, 3.0)
    assert forecast(planned(), OUTPUT).seconds is None
    assert forecast(OTHERS[other](planned()), place).seconds == pytest.approx(3.0)


@pytest.mark.usefixtures("rates")
def test_the_latest_jobs_count() -> None:
    """A machine that is faster now is not held for what it was."""
    for seconds in (*[9.0] * 30, *[2.0] * LATEST):
        keep_rate(planned(), OUTPUT, seconds)
    assert forecast(planned()).seconds == pytest.approx(2.0)


def test_the_file_stays_small_and_keeps_the_latest(rates: Path) -> None:
    """However many jobs there were, and however many kinds."""
    line = 0
    for n in range(1200):
        keep_rate(planned_once(), OUTPUT, 5.0 + n)
        line = line or rates.stat().st_size
        assert rates.stat().st_size <= MOST_BYTES + 2 * line
    jobs = [json.loads(text) for text in rates.read_text().splitlines()]
    assert len(jobs) > 100
    assert [job["seconds"] for job in jobs] == [5.0 + n for n in range(1200 - len(jobs), 1200)]
    assert [path.name for path in rates.parent.iterdir()] == [rates.name]


def planned_once(found: list[Plan] = []) -> Plan:  # noqa: B006 - kept for the tests that need a plan, whichever
    """Return a plan that is made once."""
    if not found:
        found.append(planned())
    return found[0]


BROKEN = [
    b"",
    b"\x00\xff\n",
    b"[]\n3\nnull\n",
    b'{"kind": null, "work": 1, "seconds": 1}\n',
    b'{"work": 1}\n',
    b'{"kind": KIND, "work": "much", "seconds": 1}\n',
    b'{"kind": KIND, "work": 0, "seconds": 1}\n',
    b'{"kind": KIND, "work": 1, "seconds": NaN}\n',
    b'{"kind": KIND, "work": 1, "seconds": -1}\n{"kind": KIND, "wo',
    b"[" * 50_000 + b"\n",
]


@pytest.mark.parametrize("content", BROKEN)
def test_a_line_that_is_not_whole_is_passed_over(content: bytes, rates: Path) -> None:
    """Whatever stands there, what else is there is known, and the next job is added."""
    rates.parent.mkdir()
    kind = json.dumps(module._kind_and_work(planned_once(), OUTPUT)[0]).encode()
    rates.write_bytes(content.replace(b"KIND", kind))
    assert forecast(planned_once()).seconds is None
    for _ in range(2):  # the first may follow half a line
        keep_rate(planned_once(), OUTPUT, 3.0)
    assert forecast(planned_once()).seconds == pytest.approx(3.0)


@pytest.mark.parametrize("place", ["/proc/nowhere/rates.jsonl", "taken/rates.jsonl", "."])
def test_a_place_that_cannot_be_written_is_no_error(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A protected home, one that is not there, or something else at the file's place: seconds are unknown."""
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv(RATES, str(tmp_path / place))
    keep_rate(planned_once(), OUTPUT, 3.0)
    assert forecast(planned_once()).seconds is None


def test_the_file_is_in_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no variable names another one; with an empty one there is none, and without a home either."""
    monkeypatch.setenv(RATES, "")
    assert module._rates_file() is None
    monkeypatch.delenv(RATES)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert module._rates_file() == tmp_path / "isovoxel" / "rates.jsonl"
    monkeypatch.setattr("platformdirs.user_cache_path", lambda *_, **__: Path("~/.cache/isovoxel"))
    assert module._rates_file() is None


APPEND = """
import sys
from isovoxel.execution import result as forecast
forecast._kind_and_work = lambda plan, output: (["x" * 200], 1)
for n in range(400):
    forecast.keep_rate(None, None, float(sys.argv[1]) * 1000 + n)
"""


def test_jobs_that_end_together_leave_whole_lines(rates: Path) -> None:
    """Also while one of them drops the first half of the file."""
    rates.parent.mkdir()
    running = [subprocess.Popen([sys.executable, "-c", APPEND, str(n)], env=os.environ) for n in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    lines = rates.read_text().splitlines()
    assert all(set(json.loads(line)) == {"kind", "work", "seconds"} for line in lines)
    assert 0 < rates.stat().st_size <= MOST_BYTES + 4 * len(lines[0])


@pytest.mark.parametrize("ome_zarr", ["0.4", "0.5"])
@pytest.mark.parametrize(("shape", "levels"), [((10, 12, 14), 0), ((10, 12, 14), 2), ((2, 1, 9, 8, 8), 1)])
def test_bytes_and_files_are_those_of_the_output(
    tmp_path: Path, ome_zarr: str, shape: tuple[int, ...], levels: int
) -> None:
    """Of all volumes and levels, shards or chunks, and metadata; bytes are those before they are compressed."""
    voxels = np.random.default_rng(0).integers(1, 65536, shape).astype("uint16")
    options = SMALL | {"levels": levels, "ome_zarr": ome_zarr, "codec": "none", "axes": "tczyx"[-len(shape) :]}
    options |= {"factor": (1.0, 1.0, 2.0), "input_voxel_size": (1.0, 1.0, 1.0)}
    if ome_zarr == "0.4":
        del options["shard"]
    cost = forecast(api.plan(voxels, **options))
    api.scale(voxels, tmp_path / "out.zarr", **options)
    written = [path for path in (tmp_path / "out.zarr").rglob("*") if path.is_file()]
    assert len(written) == cost.files
    chunks = sum(path.stat().st_size for path in written if path.name[0] not in ".z")
    assert cost.nbytes == chunks


def test_commands_say_what_a_job_costs(isovoxel: Isovoxel, rates: Path, tmp_path: Path) -> None:
    """Before it, and beside what it took, for people and programs."""
    np.save(tmp_path / "in.npy", VOXELS)
    size = ["--input-voxel-size", "1,1,1", "--factor", "2,1,1", "--engine", "exact", "--levels", "0"]
    words = [tmp_path / "in.npy", tmp_path / "out.zarr", *size]
    assert "time     unknown, for no job like it was done here before\n" in isovoxel("plan", *words).out
    assert json.loads(isovoxel("plan", *words, "--json").out)["expected"] == {
        "seconds": None,
        "bytes": 2 * VOXELS.nbytes + 40,  # of blosc, the checksum, and the shard's index
        "files": 3,
    }
    rates.parent.mkdir()
    (kept,) = (
        module._kind_and_work(api.plan(tmp_path / "in.npy", factor=(2, 1, 1), engine="exact", levels=0), None)[0],
    )
    rates.write_text(json.dumps({"kind": kept, "work": 2.5 * VOXELS.nbytes, "seconds": 75.0}) + "\n")
    assert "disk     at most 6.6 KiB in 3 files\ntime     about 1:15, as earlier jobs here took\n" in (
        isovoxel("plan", *words).out
    )
    done = isovoxel("scale", *words)
    assert " s (expected: 1:15), " in done.out
    assert len(rates.read_text().splitlines()) == 2
    again = json.loads(isovoxel("scale", *words, "--overwrite", "--json").out)
    assert again["expected"]["seconds"] < 75
    assert again["seconds"] > 0


@pytest.mark.parametrize(
    "tally",
    [
        Tally(done_before=1),
        Tally(retries=1),
        Tally(restarts=1),
        Tally(slowed_to=1),
        Tally(encoded_by_processor="why"),
        Tally(decoded_by_processor="why"),
    ],
)
def test_hindered_jobs_are_not_as_planned(tally: Tally) -> None:
    """What they take is no rate; one without any of it is."""
    assert not tally.as_planned
    assert Tally().as_planned


def test_a_job_that_goes_on_is_neither_kept_nor_compared(rates: Path, tmp_path: Path) -> None:
    """A part of it was done before."""
    options = SMALL | {"factor": (2.0, 1.0, 1.0), "input_voxel_size": (1.0, 1.0, 1.0)}
    with pytest.raises(KeyboardInterrupt):
        api.scale(VOXELS, tmp_path / "out.zarr", listeners=[stop_after(how=KeyboardInterrupt)], **options)
    result: ScaleResult = api.scale(VOXELS, tmp_path / "out.zarr", **options)
    assert result.tally.done_before
    assert result.expected is None
    assert "expected" not in dict(job_lines(result))["time"]
    assert not rates.exists()


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"shard": (2, 2, 2), "chunk": (2, 2, 2)}, ("125,002 files", "a larger --shard makes fewer")),
        ({"ome_zarr": "0.4", "chunk": (2, 2, 2)}, ("125,004 files", "a larger --chunk makes fewer")),
        ({"shard": (4, 4, 4), "chunk": (2, 2, 2)}, ("15,627 files", "")),
    ],
)
def test_a_plan_and_a_job_of_very_many_files_say_what_makes_fewer(how: dict[str, Any], told: tuple[str, str]) -> None:
    """They take a file system far longer than the voxels do."""
    planned = api.plan(
        np.zeros((50, 100, 100), np.uint8), factor=(2, 1, 1), input_voxel_size=(2, 1, 1), levels=0, **how
    )
    files, fewer = told
    assert dict(plan_lines(planned, forecast(planned)))["disk"].endswith(f" in {files}")
    said = [line for line in Notes().of(JobStarted(planned)) if "files" in line]
    assert said == [line for line in hints(planned) if "files" in line]
    assert len(said) == bool(fewer)
    assert all(line.startswith("hint: ") and files in line and line.endswith(fewer) for line in said)
