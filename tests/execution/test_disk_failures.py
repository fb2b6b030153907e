"""Disks that refuse at any step of a job: what cannot be written is named, and why, and what is kept."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

from command_line import Isovoxel, Outcome, check_refused, listing
from isovoxel.execution.output import OutputState, output_state
from isovoxel.object_store import retries
from refusing import Refusal, refusing

NUMBERS = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO]
LACKS = {
    errno.ENOSPC: "because the disk takes no more, although it has room: about ",
    errno.EDQUOT: "because this user's disk quota is used up: about ",
}
WORDS = (
    *("--factor", "2,2,2", "--input-voxel-size", "1,1,1", "--engine", "exact", "--chunk", "8,8,8", "--shard", "8,8,8"),
    *("--device-memory", "20kB", "--threads", "1", "--levels", "1", "--quiet"),
)


class Step(NamedTuple):
    files: str
    """Pattern of the files that it writes, below the folder of the output."""
    calls: set[str]
    """How it does."""
    named: str
    """Which of them the error names; empty where a block is named."""
    spared: int = 0
    """How many calls succeed first."""
    done: int | None = None
    """How many blocks are done; None where the job has not begun."""


LEDGER = r"out\.zarr\.isovoxel"
STEPS = {
    "ledger's folder": Step(LEDGER, {"mkdir"}, "out.zarr.isovoxel"),
    "mark": Step(rf"{LEDGER}/made-by-isovoxel", {"open"}, "out.zarr.isovoxel/made-by-isovoxel"),
    "mark's text": Step(rf"{LEDGER}/made-by-isovoxel", {"write"}, "out.zarr.isovoxel/made-by-isovoxel"),
    "lock": Step(rf"{LEDGER}/lock", {"open"}, "out.zarr.isovoxel/lock"),
    "lock's text": Step(rf"{LEDGER}/lock", {"write"}, "out.zarr.isovoxel/lock"),
    "plan": Step(rf"{LEDGER}/job\.json.*", {"open"}, "out.zarr.isovoxel/job.json"),
    "plan, flushed": Step(rf"{LEDGER}/job\.json.*", {"fsync"}, "out.zarr.isovoxel/job.json"),
    "lines": Step(rf"{LEDGER}/blocks\..*", {"open"}, "out.zarr.isovoxel/blocks"),
    "lines, moved": Step(rf"{LEDGER}/blocks", {"move"}, "out.zarr.isovoxel/blocks"),
    "metadata": Step(rf"{LEDGER}/new.*", {"open", "mkdir"}, "out.zarr.isovoxel/new"),
    "output": Step(r"out\.zarr", {"move"}, "out.zarr"),
    "first line": Step(rf"{LEDGER}/blocks", {"write"}, "out.zarr.isovoxel/blocks", done=0),
    "fifth line": Step(rf"{LEDGER}/blocks", {"write"}, "out.zarr.isovoxel/blocks", spared=4, done=4),
    "shard's folder": Step(r"out\.zarr/0/c/.*", {"mkdir"}, "out.zarr/0/c/0/0", done=0),
    "shard, moved": Step(r"out\.zarr/0/c/.*", {"move"}, "out.zarr/0/c/0/", done=0),
    "complete": Step(r"out\.zarr/zarr\.json\..*", {"open"}, "out.zarr/zarr.json", done=16),
    "complete, flushed": Step(r"out\.zarr/zarr\.json\..*", {"fsync"}, "out.zarr/zarr.json", done=16),
    "complete, moved": Step(r"out\.zarr/zarr\.json", {"move"}, "out.zarr/zarr.json", done=16),
}


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PAUSES", (0.001, 0.001))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    np.save(tmp_path / "in.npy", np.random.default_rng(0).integers(0, 65536, (16, 16, 16)).astype("uint16"))
    return tmp_path / "in.npy"


def refusal(folder: Path, number: int, step: Step) -> Refusal:
    """Return which calls are refused."""
    pattern = re.compile(re.escape(f"{folder}/") + step.files)
    return Refusal(number, lambda path: bool(pattern.fullmatch(path)), step.calls, step.spared)


def check_said(said: Outcome, folder: Path, number: int, step: Step) -> None:
    """Check what a job that was refused a step says."""
    reason = os.strerror(number)
    if step.done is None:
        check_refused(said, f"error: {folder}/{step.named} cannot be written: {reason}\n")
        return
    why = f"because {folder}/{step.named}"
    if step.done == 16:
        why = f"error: marking the output complete failed: {folder}/{step.named} cannot be written: {reason}; 16 of"
    elif number in LACKS:
        why = LACKS[number]
    check_refused(said, why, 1)
    assert (
        f"{step.done} of 16 blocks are done and kept; to resume, run the same command without --overwrite" in said.err
    )
    assert number in LACKS or f"cannot be written: {reason}; " in said.err


@pytest.mark.sampled(4)
@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_is_refused_is_named_and_nothing_is_lost(
    name: str, number: int, source: Path, isovoxel: Isovoxel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing lies about where the job has not begun; else the same command goes on."""
    folder, step = source.parent, STEPS[name]
    out, before = folder / "out.zarr", listing(folder)
    with refusing(monkeypatch, refusal(folder, number, step)) as refused:
        said = isovoxel("scale", source, out, *WORDS)
    assert refused.refused
    check_said(said, folder, number, step)
    if step.done is None:
        assert listing(folder) == before
    else:
        assert output_state(out) == OutputState(complete=False, done=step.done, blocks=16)
    assert isovoxel("scale", source, out, *WORDS).code == 0
    assert output_state(out) == OutputState(complete=True)
    assert sorted(path.name for path in folder.iterdir()) == ["in.npy", "out.zarr"]
    assert isovoxel("verify", out, "--samples", "20").code == 0


@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
def test_a_job_that_cannot_go_on_keeps_what_is_done(
    number: int, source: Path, isovoxel: Isovoxel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is refused before its first block."""
    folder, out = source.parent, source.parent / "out.zarr"
    with refusing(monkeypatch, refusal(folder, number, STEPS["fifth line"])):
        isovoxel("scale", source, out, *WORDS)
    with refusing(monkeypatch, refusal(folder, number, STEPS["lines"])):
        said = isovoxel("scale", source, out, *WORDS)
    blocks = f"{folder}/out.zarr.isovoxel/blocks cannot be written: {os.strerror(number)}"
    check_refused(said, f"error: {out} cannot be gone on with: {blocks}; what is done of it is kept\n")
    assert output_state(out) == OutputState(complete=False, done=4, blocks=16)
    assert isovoxel("scale", source, out, *WORDS).code == 0


@pytest.mark.parametrize("name", [name for name, step in STEPS.items() if step.calls & {"open", "mkdir"}])
def test_a_disk_without_inodes_is_called_that(
    name: str, source: Path, isovoxel: Isovoxel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system says that no space is left, whatever is free."""
    step, statvfs = STEPS[name], os.statvfs

    def without_inodes(path: object) -> SimpleNamespace:
        found = statvfs(path)  # type: ignore[arg-type]
        return SimpleNamespace(**{key: getattr(found, key) for key in dir(found) if key[:2] == "f_"} | {"f_favail": 0})

    monkeypatch.setattr(os, "statvfs", without_inodes)
    with refusing(monkeypatch, refusal(source.parent, errno.ENOSPC, step)):
        said = isovoxel("scale", source, source.parent / "out.zarr", *WORDS)
    check_refused(said, "the disk has no inodes left for another file; remove files", 2 if step.done is None else 1)
    assert "No space left" not in said.err


def test_a_lock_of_which_a_part_is_written_is_none(
    source: Path, isovoxel: Isovoxel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that becomes full takes a part of it without an error, and then no more."""
    write = os.write

    def half(descriptor: int, data: bytes) -> int:
        if data[:7] == b'{"host"':
            return write(descriptor, data[:20])
        if b'"word"' in bytes(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    before = listing(source.parent)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        said = isovoxel("scale", source, source.parent / "out.zarr", *WORDS)
    lock = source.parent / "out.zarr.isovoxel" / "lock"
    check_refused(said, f"error: {lock} cannot be written: No space left on device\n")
    assert listing(source.parent) == before


PLAN = ("plan", "{source}", "--factor", "2,2,2", "--input-voxel-size", "1,1,1", "--engine", "exact")
FILES = {
    "report": (("scale", "{source}", "{out}", *WORDS, "--report", "{file}.html"), "the report {file}.html", 1),
    "picture of a plan": ((*PLAN, "--picture", "{file}.svg"), "the picture {file}.svg", 2),
    "picture": (("show", "{source}", "--input-voxel-size", "1,1,1", "-o", "{file}.png"), "the picture {file}.png", 2),
    "job": ((*PLAN, "--save", "{file}.toml"), "the job cannot be saved as {file}.toml", 2),
    "demo": (("demo", "{file}"), "the demo stack {file}/blastocyst.tif", 2),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("call", ["open", "write"])
@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_refused_is_named(
    name: str, number: int, call: str, source: Path, isovoxel: Isovoxel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No part of it stays, and a job is complete without it."""
    words, what, code = FILES[name]
    places = {"source": source, "out": source.parent / "out.zarr", "file": source.parent / "drawn"}
    matches = re.compile(re.escape(str(places["file"])) + ".*").fullmatch
    with refusing(monkeypatch, Refusal(number, lambda path: bool(matches(path)), {call})) as refused:
        said = isovoxel(*(word.format(**places) for word in words))
    assert refused.refused
    assert said.code == code
    (line,) = said.err.splitlines()
    assert what.format(**places) in line
    assert f": {os.strerror(number)}" in line
    assert not [path for path in source.parent.rglob("drawn*") if path.is_file()]
    if code == 1:
        assert line.startswith(f"error: {places['out']} is complete, but ")
        assert output_state(places["out"]) == OutputState(complete=True)
