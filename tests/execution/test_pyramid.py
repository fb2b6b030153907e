"""Further levels: right to the last voxel, whoever makes them, however often they are begun; verified and counted."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import ome_zarr_models.v05
import pytest
import yaozarrs
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import isovoxel
from command_line import Isovoxel, check_refused
from isovoxel.errors import InputError, JobError, OptionError, OutputError
from isovoxel.execution.events import BlockDone, Event, JobFinished, JobStarted, LevelBegun
from isovoxel.execution.output import OutputState, output_state
from isovoxel.metadata.ome import read_levels
from isovoxel.output.ledger import Ledger, ledger_of
from isovoxel.output.ome_zarr import missing_shards
from isovoxel.planning.chunking import CODECS
from outputs import shards_of
from polling import wait_until
from strategies import examples, factors_up_to, shapes, triples

VOXELS = np.random.default_rng(0).integers(0, 65536, (20, 50, 64)).astype(np.uint16)
OPTIONS: dict[str, Any] = {
    "factor": (2.0, 1.0, 1.0),
    "chunk": (8, 8, 8),
    "shard": (16, 16, 16),
    "threads": 2,
    "engine": "exact",
    "input_voxel_size": (1.0, 0.5, 0.5),
    "device_memory": "100kB",
    "levels": 2,
}


def levels_of(out: Path) -> list[np.ndarray]:
    """Return the voxels of all levels, as zarr-python reads them."""
    group = zarr.open_group(out, mode="r")
    return [group[level.path][...] for level in read_levels(dict(group.attrs), "out")]


def bins(before: np.ndarray, shape: tuple[int, ...], factor: tuple[float, ...]) -> list[list[np.ndarray]]:
    """Return what each voxel of a level is made of, by its place: slow, and written from the definition alone."""
    steps = [round(1 / f) for f in factor]
    return [
        [before[tuple(slice(s * i, s * (i + 1)) for i, s in zip(place, steps, strict=True))].ravel()]
        for place in np.ndindex(*shape)
    ]


def check_levels(levels: list[np.ndarray], plan: isovoxel.plan, kind: str) -> None:
    """Check every voxel of every level against those of the level before."""
    assert [level.shape for level in levels] == [level.output.shape for level in plan.levels]
    for before, level, made in zip(levels, levels[1:], plan.further, strict=False):
        for value, (voxels,) in zip(level.ravel(), bins(before, level.shape, made.factor), strict=True):
            if kind == "mode":
                counts = Counter(voxels.tolist())
                assert counts[int(value)] == max(counts.values())
            elif level.dtype.kind == "f":
                assert value == pytest.approx(voxels.astype(np.float64).mean(), rel=1e-6)
            else:
                assert value == np.rint(voxels.astype(np.float64).mean())


@pytest.mark.slow
@settings(max_examples=examples(16))
@given(
    shapes(14),
    triples(factors_up_to(2)),
    st.sampled_from(["uint8", "int16", "uint32", "float32", "labels", "mode", "uint64"]),
    st.sampled_from(["direct", "map_overlap"]),
    st.sampled_from([4, 8]),
    st.integers(1, 3),
)
def test_each_level_is_the_mean_or_the_mode_of_the_one_before(
    shape: tuple[int, int, int], by: tuple[float, float, float], kind: str, halo: str, side: int, count: int
) -> None:
    """In float64, rounded half to even, whatever shape and type, in blocks of any size; the rim is of what is there."""
    dtype = np.dtype({"labels": "uint16", "mode": "uint8"}.get(kind, kind))
    high = 3 if kind in ("labels", "mode") else 200
    voxels = np.random.default_rng(sum(shape)).integers(0, high, shape).astype(dtype)
    options: dict[str, Any] = {"labels": True} if kind in ("labels", "uint64") else {}
    options |= {"interpolation": "mode"} if kind == "mode" else {}
    scaled = {"factor": by, "engine": "exact", "chunk": (side,) * 3, "shard": (side,) * 3, "threads": 2} | options
    grid = isovoxel.plan(voxels, **scaled).output
    while count and max(grid.shape) < 2**count:
        count -= 1
    with TemporaryOutput() as out:
        done = isovoxel.scale(voxels, out, halo=halo if min(grid.shape) > side else "direct", levels=count, **scaled)
        assert len(done.plan.further) == count
        check_levels(levels_of(out), done.plan, "mode" if options else "area")
        assert missing_shards(out) == 0
        assert isovoxel.verify(out, against=voxels, samples=8).holds


class TemporaryOutput:
    """A place for an output, gone at the end; for tests that begin anew many times."""

    def __enter__(self) -> Path:
        import tempfile

        self._folder = Path(tempfile.mkdtemp())
        return self._folder / "out.zarr"

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder)


@pytest.mark.slow
def test_blocks_and_devices_change_no_bit(source: Path, tmp_path: Path) -> None:
    """Law 3, for levels: cut in many blocks or one, by an overlapped or a direct full level, in a process apart."""
    made = []
    for name, changes in {
        "blocks": {},
        "one": {"device_memory": None},
        "overlap": {"halo": "map_overlap"},
        "apart": {"isolate": True},
    }.items():
        done = isovoxel.scale(source, tmp_path / f"{name}.zarr", **OPTIONS | changes)
        made.append(levels_of(done.path))
        assert isovoxel.verify(done.path, samples=20).holds
    for other in made[1:]:
        for one, two in zip(made[0], other, strict=True):
            np.testing.assert_array_equal(one, two)
    check_levels(made[0], done.plan, "area")


def test_metadata_of_levels_are_valid(source: Path, out: Path) -> None:
    """For who validates; `test_landmarks.py` shows that they say where each level lies."""
    done = isovoxel.scale(source, out, antialias=True, **OPTIONS | {"factor": (1.7, 0.9, 1.0), "levels": 4})
    group = zarr.open_group(out, mode="r")
    ome_zarr_models.v05.Image.from_zarr(group)
    yaozarrs.validate_ome_object(dict(group.attrs)["ome"])
    assert group.attrs["ome"]["multiscales"][0]["type"] == "mean"
    for level, plan in zip(read_levels(dict(group.attrs), "out"), done.plan.levels, strict=True):
        assert (level.scale, level.translation) == (plan.output.voxel_size, plan.output.origin)


def test_the_bar_and_the_summary_count_all_levels(source: Path, out: Path, isovoxel: Isovoxel) -> None:
    """What is planned is what is done, and what is told; verify and info know them."""
    words = ["--factor", "8,4,5", "--input-voxel-size", "1,.5,.5", "--engine", "exact"]
    planned = isovoxel("plan", source, *words, "--json").json
    assert [level["shape"] for level in planned["levels"]] == [[80, 100, 160]]
    assert "levels   1 further, down to (80, 100, 160), by area" in isovoxel("plan", source, *words).out
    ran = isovoxel("scale", source, out, *words)
    assert "levels     1 further, down to (80, 100, 160), by area" in ran.out
    blocks = isovoxel("scale", source, out, *words, "--json").json["happened"]["done_before"]
    assert f"scaling {blocks} blocks, 11.5 Mvoxel" in ran.err
    assert f"done: {blocks}/{blocks} blocks" in ran.err
    assert "boxes of 2 levels, block corners" in isovoxel("verify", out, "--samples", 40).out
    assert isovoxel("scale", source, out, *words, "--levels", 0, "--overwrite", "--json").json["levels"] == []
    assert sorted(p.name for p in out.iterdir()) == ["0", "zarr.json"]


def test_events_tell_of_each_level(source: Path, out: Path) -> None:
    """One start and one end for all, the levels in their order, each block once."""
    events: list[Event] = []
    done = isovoxel.scale(source, out, listeners=[events.append], **OPTIONS)
    assert [type(e) for e in events if not isinstance(e, BlockDone)] == [
        JobStarted,
        LevelBegun,
        LevelBegun,
        JobFinished,
    ]
    blocks = [(event.level, event.index) for event in events if isinstance(event, BlockDone)]
    assert [level for level, _ in blocks] == sorted(level for level, _ in blocks)
    assert sorted(blocks) == [(plan.level, i) for plan in done.plan.levels for i in range(plan.n_blocks)]
    assert done.tally.voxels == done.plan.all_voxels == sum(e.voxels for e in events if isinstance(e, BlockDone))


def test_options_that_make_no_sense_are_refused(source: Path, out: Path, isovoxel: Isovoxel) -> None:
    """Before anything is written."""
    for value in ("-1", "many", "1.5"):
        check_refused(
            isovoxel("scale", source, out, "--factor", "1,1,1", "--levels", value),
            "levels must be auto or a number from 0 on",
        )
    check_refused(isovoxel("plan", source, "--factor", "1,1,1", "--levels", "9"), "level 6 is a single voxel")
    from isovoxel import convert

    with pytest.raises(OptionError, match="levels"):
        convert(VOXELS, out, levels=-1)
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_damaged_level_is_found(level: int, source: Path, out: Path) -> None:
    """By verify: a shard that is not there, and one that holds something else."""
    isovoxel.scale(source, out, **OPTIONS)
    shards = sorted(path for path in (out / str(level) / "c").rglob("*") if path.is_file())
    shards[0].rename(out.parent / "kept")
    assert missing_shards(out) == 1
    found = isovoxel.verify(out, samples=400)
    assert (found.holds, found.missing_shards, found.levels) == (False, 1, 3)
    (out.parent / "kept").rename(shards[0])
    array = zarr.open_array(out / str(level))
    array[:16, :16, :16] += 1000
    found = isovoxel.verify(out, samples=400)
    assert not found.holds
    # Of a full level that is another, the next one is not the mean any more.
    assert found.first_wrong_level == level
    assert f"of level {level}" in str(_verdict(found)) or level == 0


@pytest.mark.parametrize("said", [[], 3, {"factor": [[0.5]]}, {"interpolation": ["area"], "factor": [], "block": []}])
def test_attributes_that_say_nonsense_of_levels_are_an_error(said: object, source: Path, out: Path) -> None:
    """One sentence, as for the rest of them."""
    isovoxel.scale(source, out, **OPTIONS | {"levels": 0})
    metadata = json.loads((out / "zarr.json").read_text())
    metadata["attributes"]["isovoxel"]["levels"] = said
    (out / "zarr.json").write_text(json.dumps(metadata))
    if said == []:  # which says of no level that there is one
        assert isovoxel.verify(out, samples=8).levels == 1
    else:
        with pytest.raises(InputError, match="does not say in its attributes how isovoxel made it"):
            isovoxel.verify(out, samples=8)


def test_a_level_that_is_gone_is_named(source: Path, out: Path) -> None:
    isovoxel.scale(source, out, **OPTIONS)
    shutil.rmtree(out / "2")
    found = isovoxel.verify(out, samples=8)
    assert (found.holds, found.levels) == (False, 2)
    assert found.metadata_changes == ("the array of level 2 is not there",)


def _verdict(found: Any) -> list[tuple[str, str]]:
    from isovoxel.reporting.text import verdict_lines

    return verdict_lines(found)


def _place(event: Event) -> list[tuple[int, int]]:
    return [(event.level, event.index)] if isinstance(event, BlockDone) else []


@pytest.mark.slow
def test_a_process_that_is_killed_on_any_level_loses_nothing(source: Path, out: Path) -> None:
    """By SIGKILL, each time a little later; what the ledger had is not done again."""
    options = [f"--{name.replace('_', '-')}={_text(value)}" for name, value in OPTIONS.items()]
    command = [sys.executable, "-m", "isovoxel", "scale", str(source), str(out), *options, "--quiet"]
    isovoxel.scale(source, out.with_name("whole.zarr"), **OPTIONS)
    noted: set[int] = set()
    levels = set()
    for kill in (5, 40, 20, 3):
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        try:
            await_blocks(process, out, len(noted) + kill)
            process.send_signal(signal.SIGKILL)
        finally:
            process.kill()
            process.communicate()
        if output_state(out) == OutputState(complete=True):
            break
        assert noted <= _noted(out)
        noted = _noted(out)
        levels.add(next((level for level, part in enumerate(_split(out)) if not all(part)), -1))
    seen: list[tuple[int, int]] = []
    done = isovoxel.scale(source, out, listeners=[lambda e: seen.extend(_place(e))], **OPTIONS)
    firsts = list(itertools.accumulate((plan.n_blocks for plan in done.plan.levels), initial=0))
    assert not noted & {firsts[level] + index for level, index in seen}
    assert shards_of(out) == shards_of(out.with_name("whole.zarr"))
    assert levels


def await_blocks(process: subprocess.Popen[bytes], out: Path, enough: int) -> None:
    """Wait until so many blocks are noted, or the process has ended."""
    wait_until(lambda: process.poll() is not None or len(_noted(out)) >= enough)


def _noted(out: Path) -> set[int]:
    ledger = Ledger.read(ledger_of(out))
    return set() if ledger is None else {index for index, done in enumerate(ledger.noted()) if done}


def _split(out: Path) -> list[bytearray]:
    ledger = Ledger.read(ledger_of(out))
    assert ledger is not None
    return ledger.plan.split(ledger.noted())


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def test_all_levels_must_have_room(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the disk, before anything is written."""
    whole = isovoxel.plan(source, **OPTIONS | {"codec": "none"})
    assert whole.disk_bytes > 2 * whole.all_voxels > 2 * math.prod(whole.output.shape)
    usage = shutil.disk_usage(out.parent)._replace(free=whole.disk_bytes - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match=r"the output takes up to .* make room"):
        isovoxel.scale(source, out, **OPTIONS | {"codec": "none"})
    assert not out.exists()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("side", [1, 3, 6, 7, 16])
def test_noise_takes_no_more_of_the_disk_than_is_said(tmp_path: Path, codec: str, side: int) -> None:
    """However small chunks are: what does not compress has headers, checksums and indices beside it."""
    noise = np.random.default_rng(0).integers(0, 2**16, (9, 10, 11), dtype=np.uint16)
    how: dict[str, Any] = {"chunk": (side,) * 3, "shard": (side,) * 3, "codec": codec, "levels": 1, "engine": "exact"}
    result = isovoxel.scale(noise, tmp_path / "out.zarr", factor=(1, 1, 1), input_voxel_size=(1, 1, 1), **how)
    files = [path for path in (tmp_path / "out.zarr").rglob("c/**/*") if path.is_file()]
    assert result.plan.output_bytes < sum(path.stat().st_size for path in files) <= result.plan.disk_bytes


@pytest.mark.slow
def test_a_level_that_cannot_be_begun_says_what_is_kept(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a job that failed half-way, not one that was refused."""
    from isovoxel.engines.exact import ExactEngine
    from isovoxel.errors import DeviceError

    prepare = ExactEngine.prepare

    def fail(self: ExactEngine, plan: Any) -> int:
        if plan.level == 1:
            raise DeviceError("the device is busy")
        return prepare(self, plan)

    monkeypatch.setattr(ExactEngine, "prepare", fail)
    said = r"^level 1 cannot be begun: the device is busy; (\d+) of \d+ blocks are done and kept; "
    with pytest.raises(JobError, match=said):
        isovoxel.scale(source, out, **OPTIONS)
    monkeypatch.undo()
    assert isovoxel.scale(source, out, **OPTIONS).tally.done_before == _blocks(out)


def _blocks(out: Path) -> int:
    """Return how many blocks the full level has."""
    made = json.loads((out / "zarr.json").read_text())["attributes"]["isovoxel"]
    shape = zarr.open_array(out / "0", mode="r").shape
    return math.prod(-(-n // b) for n, b in zip(shape, made["block"], strict=True))
