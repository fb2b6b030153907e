"""The same command again goes on; another is told what is other; what is finished is left alone."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr

import isovoxel
from isovoxel.errors import (
    DoesNotFitError,
    InputError,
    JobError,
    OptionError,
    OutputBusyError,
    OutputError,
    OutputExistsError,
)
from isovoxel.execution import threads
from isovoxel.execution.events import BlockDone, Event
from isovoxel.execution.output import OutputState, output_state
from isovoxel.output.files import LOCK
from isovoxel.output.ledger import ledger_of
from isovoxel.output.lock import FileLock
from isovoxel.output.provenance import read_provenance
from isovoxel.reporting.show import draw
from outputs import shards_of
from small_jobs import stop_after

VOXELS = np.random.default_rng(0).integers(0, 65536, (16, 24, 20)).astype(np.uint16)
OPTIONS: dict[str, Any] = {
    "factor": (2.0, 1.0, 1.0),
    "chunk": (8, 8, 8),
    "shard": (8, 8, 8),
    "threads": 2,
    "input_voxel_size": (1.0, 0.5, 0.5),
    "device_memory": "4kB",
}


@pytest.fixture(params=["exact", "cle"])
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Small blocks of either engine."""
    return OPTIONS | {"engine": request.param} | ({"device_memory": "16kB"} if request.param == "cle" else {})


def begin(source: Any, out: Path, options: dict[str, Any], blocks: int = 5) -> None:
    """Leave a job half-way."""
    with pytest.raises(JobError, match="blocks are done and kept; to resume, run the same command"):
        isovoxel.scale(source, out, listeners=[stop_after(blocks)], **options)
    assert ledger_of(out).is_dir()


def made(source: Any, out: Path, options: dict[str, Any]) -> tuple[isovoxel.ScaleResult, set[int]]:
    """Run a job to its end, and return what it says and which blocks it made."""
    blocks: set[int] = set()

    def listen(event: Event) -> None:
        if isinstance(event, BlockDone):
            blocks.add(event.index)

    return isovoxel.scale(source, out, listeners=[listen], **options), blocks


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", ["file", "numpy", "dask"])
def test_the_same_command_goes_on(source: Path, out: Path, options: dict[str, Any], kind: str) -> None:
    """It does what is left, says so, makes the same files, and leaves nothing else behind."""
    given: Any = {"file": source, "numpy": VOXELS, "dask": da.from_array(VOXELS, chunks=7)}[kind]
    isovoxel.scale(given, out.with_name("whole.zarr"), **options)
    begin(given, out, options)
    state = output_state(out)
    assert state is not None
    assert not state.complete
    assert 5 <= state.done < state.blocks
    result, blocks = made(given, out, options)
    assert result.tally.done_before == state.done
    assert len(blocks) == result.plan.n_blocks - state.done
    assert shards_of(out) == shards_of(out.with_name("whole.zarr"))
    assert output_state(out) == OutputState(complete=True)
    assert not ledger_of(out).exists()
    assert isovoxel.verify(out, against=VOXELS if kind != "file" else None, samples=50).holds


def test_what_is_finished_is_left_alone(source: Path, out: Path, options: dict[str, Any]) -> None:
    isovoxel.scale(source, out, **options)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    result, blocks = made(source, out, options)
    assert blocks == set()
    assert (result.seconds, result.voxels_per_second) == (0.0, 0.0)
    assert result.tally.done_before == result.plan.n_blocks
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert not ledger_of(out).exists()


def test_a_ledger_that_is_left_beside_a_finished_output_goes(source: Path, out: Path) -> None:
    """A process may die between its last two steps; the next one tidies up, if nobody is at it."""
    options = OPTIONS | {"engine": "exact"}
    begin(source, out, options)
    shutil.copytree(ledger_of(out), out.with_name("kept"))
    isovoxel.scale(source, out, **options)
    out.with_name("kept").rename(ledger_of(out))
    with FileLock(ledger_of(out) / LOCK, out):
        assert made(source, out, options)[1] == set()
        assert ledger_of(out).exists()
    assert made(source, out, options)[1] == set()
    assert not ledger_of(out).exists()


CHANGES = {
    "factor": ({"factor": (2.0, 1.0, 1.5)}, r"factor \(2, 1, 1\), now factor \(2, 1, 1.5\)"),
    "interpolation": ({"interpolation": "nearest"}, "interpolation linear, now nearest"),
    "boundary": ({"boundary": "constant"}, "boundary nearest, now constant"),
    "codec": ({"codec": "zstd"}, "codec blosc-lz4, now zstd"),
    "chunk": ({"chunk": (4, 8, 8)}, r"chunk \(8, 8, 8\), now \(4, 8, 8\)"),
    "shard": ({"shard": (16, 8, 8)}, r"shard \(8, 8, 8\), now \(16, 8, 8\)"),
    "voxel size": ({"input_voxel_size": (1.0, 0.5, 0.6)}, r"input voxel size \(1, 0.5, 0.5\), now \(1, 0.5, 0.6\)"),
    "unit": ({"unit": "nanometer"}, "input unit none, now nanometer"),
    "levels": ({"levels": 1}, "further levels 0, now 1"),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("begun", [True, False], ids=["begun", "finished"])
@pytest.mark.parametrize("name", [*CHANGES, "engine"])
def test_another_option_is_named_and_refused(
    source: Path, out: Path, options: dict[str, Any], name: str, *, begun: bool
) -> None:
    """What changes the result is said with both values, and nothing is changed."""
    if begun:
        begin(source, out, options)
    else:
        isovoxel.scale(source, out, **options)
    other = "cle" if options["engine"] == "exact" else "exact"
    change, text = CHANGES.get(name, ({"engine": other}, f"engine {options['engine']}, now {other}"))
    before = shards_of(out)
    with pytest.raises(OutputExistsError, match=f"{text}.*: give .*--overwrite") as refused:
        isovoxel.scale(source, out, **options | change | {"device_memory": "200kB"})
    assert ("was begun with" if begun else "and was made with") in str(refused.value)
    assert shards_of(out) == before


def test_what_does_not_change_the_result_may_be_another(source: Path, out: Path, options: dict[str, Any]) -> None:
    """Threads, memory and the way to the halo are no part of a result: blocks stay those it was begun with."""
    begin(source, out, options)
    change = {"threads": 1, "device_memory": "50MB", "memory": "4GiB", "halo": "map_overlap"}
    result, _ = made(source, out, options | change)
    assert result.plan.halo_mode == "direct"
    assert result.plan.in_flight == 1
    isovoxel.scale(source, out.with_name("whole.zarr"), **options)
    assert shards_of(out) == shards_of(out.with_name("whole.zarr"))


def test_blocks_that_do_not_fit_any_more_are_refused(source: Path, out: Path) -> None:
    """The blocks of a job stay as they were, so its memory must suffice."""
    options = OPTIONS | {"engine": "exact", "device_memory": "8kB"}
    begin(source, out, options, blocks=2)
    with pytest.raises(DoesNotFitError, match=r"begun with blocks of .* which one takes .* or begin anew"):
        isovoxel.scale(source, out, **options | {"device_memory": "3kB"})


@pytest.mark.parametrize("begun", [True, False], ids=["begun", "finished"])
def test_another_input_is_refused(source: Path, out: Path, *, begun: bool) -> None:
    """A file that was changed, another file, and an array of other voxels."""
    options = OPTIONS | {"engine": "exact"}
    if begun:
        begin(source, out, options)
    else:
        isovoxel.scale(source, out, **options)
    shutil.copy(source, source.with_name("other.npy"))
    with pytest.raises(OutputExistsError, match=r"input .*in.npy, now .*other.npy"):
        isovoxel.scale(source.with_name("other.npy"), out, **options)
    os.utime(source, (1, 1))
    with pytest.raises(OutputExistsError, match="another time of last change of the input"):
        isovoxel.scale(source, out, **options)


def test_arrays_are_told_apart_by_their_voxels(out: Path) -> None:
    """One voxel is enough."""
    options = OPTIONS | {"engine": "exact"}
    begin(VOXELS, out, options)
    other = VOXELS.copy()
    other[-1, -1, -1] ^= 1
    with pytest.raises(OutputExistsError, match="other voxels of the input"):
        isovoxel.scale(other, out, **options)
    assert made(VOXELS.copy(), out, options)[0].tally.done_before >= 5


def test_a_mapped_file_is_told_apart_without_reading_it(source: Path, out: Path) -> None:
    """By the file and the part of it; the same part of the same file is the same."""
    options = OPTIONS | {"engine": "exact"}
    mapped = np.load(source, mmap_mode="r")
    begin(mapped[1:], out, options)
    with pytest.raises(OutputExistsError, match="other voxels of the input"):
        isovoxel.scale(mapped[:-1], out, **options)
    assert made(np.load(source, mmap_mode="r")[1:], out, options)[0].tally.done_before >= 5


def damage(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "torn":
        os.truncate(path, path.stat().st_size // 2)
    elif how == "foreign":  # of another place
        shutil.copy(next(p for p in path.parent.parent.parent.rglob("*") if p.is_file() and p != path), path)
    elif how == "changed":
        content = bytearray(path.read_bytes())
        content[10] ^= 1
        path.write_bytes(content)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("how", ["missing", "torn", "foreign", "changed"])
def test_shards_that_are_not_what_was_written_are_done_again(source: Path, out: Path, how: str) -> None:
    """Just the block of the damaged shard, and the files are as they should be."""
    options = OPTIONS | {"engine": "exact"}
    isovoxel.scale(source, out.with_name("whole.zarr"), **options)
    begin(source, out, options, blocks=8)
    state = output_state(out)
    assert state is not None
    damage(next(p for p in sorted((out / "0" / "c").rglob("*")) if p.is_file()), how)
    result, blocks = made(source, out, options)
    assert result.tally.done_before == state.done - 1
    assert len(blocks) == result.plan.n_blocks - state.done + 1
    assert shards_of(out) == shards_of(out.with_name("whole.zarr"))


def test_a_copy_of_a_half_finished_output_goes_on(source: Path, out: Path) -> None:
    """Moved to another disk, its shards have other times and are the same all the same."""
    options = OPTIONS | {"engine": "exact"}
    begin(source, out, options)
    state = output_state(out)
    assert state is not None
    for path in (out, ledger_of(out)):
        shutil.copytree(path, path.with_name("copy" + path.name), copy_function=shutil.copyfile)
    result, _ = made(source, out.with_name("copyout.zarr"), options)
    assert result.tally.done_before == state.done


def test_without_its_ledger_an_output_is_begun_anew_only_if_asked(source: Path, out: Path) -> None:
    """What is done is not known any more."""
    options = OPTIONS | {"engine": "exact"}
    begin(source, out, options)
    shutil.rmtree(ledger_of(out))
    with pytest.raises(OutputExistsError, match="is not complete, and what of it is done is not known"):
        isovoxel.scale(source, out, **options)
    assert output_state(out) == OutputState(complete=False)
    result = isovoxel.scale(source, out, overwrite=True, **options)
    assert result.tally.done_before == 0


@pytest.mark.parametrize("name", ["job.json", "lock"])
def test_a_ledger_that_must_not_be_read_is_not_called_damaged(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What is done is there, for who may read it: nobody is told to begin anew."""
    options = OPTIONS | {"engine": "exact"}
    begin(source, out, options)

    def refuse(file: Any, *how: Any) -> int:
        if Path(file).name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return opened(file, *how)

    opened = os.open
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OutputError, match=r"out.zarr.isovoxel cannot be read: Permission denied$"):
        isovoxel.scale(source, out, **options)


def test_a_half_finished_output_is_no_input(source: Path, out: Path, tmp_path: Path) -> None:
    """What is not done reads as 0, so a result of it would be wrong and seem complete; a picture of it says so."""
    options = OPTIONS | {"engine": "exact"}
    begin(source, out, options)
    with pytest.raises(InputError, match=r"out.zarr is incomplete: its job is running, .*; finish it first"):
        isovoxel.scale(out, tmp_path / "next.zarr", factor=(1, 1, 1))
    for level in (out / "0", zarr.open_array(out / "0", mode="r")):
        assert isovoxel.open_volume(level).kind == "zarr v3 array (incomplete)"
        with pytest.raises(InputError, match=r"out.zarr/0 is incomplete: its job is running, .*; finish it first"):
            isovoxel.scale(level, tmp_path / "next.zarr", factor=(1, 1, 1))
    for how in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "out.zip", "w", how) as packed:
            for file in filter(Path.is_file, out.rglob("*")):
                packed.write(file, file.relative_to(inside := out.parent if how else out))
        level = f"{tmp_path}/out.zip:/{(out / '0').relative_to(inside)}"
        with pytest.raises(InputError, match=r"0 is incomplete: its job is running, .*; finish it first"):
            isovoxel.scale(level, tmp_path / "next.zarr", factor=(1, 1, 1))
    for complete in (False, True):
        group = zarr.create_group({}, attributes={"isovoxel": {"complete": complete}})
        in_memory = group.create_array("0", shape=(1, 1, 1), dtype="u1")
        assert isovoxel.open_volume(in_memory).incomplete is not complete
    assert draw([isovoxel.open_volume(out)], [""]).captions[0].startswith("maximum of all voxels, of an incomplete out")
    assert isovoxel.plan(source, like=out, input_voxel_size=(1, 0.5, 0.5)).output.shape == (32, 24, 20)
    isovoxel.scale(source, out, **options)
    for level in (out, out / "0"):
        assert isovoxel.plan(level, factor=(1, 1, 1)).output.shape == (32, 24, 20)


def test_an_output_that_was_deleted_is_begun_anew(source: Path, out: Path) -> None:
    options = OPTIONS | {"engine": "exact"}
    begin(source, out, options)
    shutil.rmtree(out)
    assert made(source, out, options)[0].tally.done_before == 0


def test_refusals_write_nothing(source: Path, out: Path) -> None:
    """Not even the ledger's folder."""
    options = OPTIONS | {"engine": "exact"}
    with pytest.raises(OutputError, match="is the input itself"):
        isovoxel.scale(source, source, **options)
    with pytest.raises(OptionError, match="stop, fill"):
        isovoxel.scale(source, out, on_corrupt="ignore", **options)
    assert [path.name for path in source.parent.iterdir()] == ["in.npy"]


def test_a_device_that_cannot_serve_leaves_nothing(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found out before the output is made, and the lock's folder goes."""

    def broken(*_: object) -> Any:
        raise isovoxel.errors.DeviceError("broken")

    monkeypatch.setattr(threads, "engine_for", broken)
    with pytest.raises(isovoxel.errors.DeviceError, match="broken"):
        isovoxel.scale(source, out, **OPTIONS | {"engine": "exact"})
    assert [path.name for path in source.parent.iterdir()] == ["in.npy"]


TWO = """
import sys, time, isovoxel
from isovoxel.execution.events import JobStarted
def wait(event):
    if isinstance(event, JobStarted):
        print("began", flush=True)
        sys.stdin.readline()
isovoxel.scale(sys.argv[1], sys.argv[2], factor=(2, 1, 1), input_voxel_size=(1, 1, 1), listeners=[wait])
"""


def test_two_processes_on_one_output(source: Path, out: Path) -> None:
    """One works, the other is refused at once, whatever it asks for, and told who works."""
    command = [sys.executable, "-c", TWO, str(source), str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "began\n"
        options = {"factor": (2, 1, 1), "input_voxel_size": (1, 1, 1)}
        for overwrite in (False, True):
            with pytest.raises(OutputBusyError, match=f"is being written by process {first.pid} on"):
                isovoxel.scale(source, out, overwrite=overwrite, **options)
        words = [str(source), str(out), "--factor", "2,1,1", "--input-voxel-size", "1,1,1"]
        second = subprocess.run(
            [sys.executable, "-m", "isovoxel", "scale", *words], capture_output=True, text=True, check=False
        )
        assert second.returncode == 2
        assert second.stderr.startswith(f"error: {out} is being written by process {first.pid} on ")
        state = output_state(out)
        assert state is not None
        assert f"process {first.pid}" in state.holder
        first.communicate("go on\n")
    assert first.returncode == 0
    assert output_state(out) == OutputState(complete=True)


def test_filled_parts_are_kept_with_the_output(tmp_path: Path, out: Path) -> None:
    """A job that stopped at damage goes on with --on-corrupt fill; attributes name what was filled, then and before."""
    import zarr

    array = zarr.create_array(tmp_path / "in.zarr", shape=VOXELS.shape, dtype="uint16", chunks=(4, 8, 20))
    array[...] = VOXELS
    for chunk in ("c/3/2/0", "c/2/1/0"):
        path = tmp_path / "in.zarr" / chunk
        path.write_bytes(path.read_bytes()[:-9])
    options = OPTIONS | {"engine": "exact"}
    with pytest.raises(JobError, match=r"chunk \(\d, \d, 0\) of .*in.zarr is corrupt: .*--on-corrupt fill; \d+ of"):
        isovoxel.scale(tmp_path / "in.zarr", out, **options)
    with pytest.raises(JobError):  # goes on, fills, and is stopped again
        isovoxel.scale(
            tmp_path / "in.zarr", out, on_corrupt="fill", listeners=[stop_after(14)], **options | {"threads": 1}
        )
    result = isovoxel.scale(tmp_path / "in.zarr", out, on_corrupt="fill", **options)
    filled = read_provenance(out)["filled"]
    assert sorted(part.split(":")[0] for part in filled) == ["chunk (2, 1, 0)", "chunk (3, 2, 0)"]
    assert result.tally.done_before > 0
    voxels = isovoxel.open_volume(out).read
    from isovoxel.geometry.grid import Box

    assert not voxels(Box((25, 17, 0), (31, 24, 20))).any()
    assert voxels(Box((0, 0, 0), (16, 24, 20))).any()
