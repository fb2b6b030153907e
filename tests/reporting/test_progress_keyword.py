"""`progress=True` of public functions: a bar on a terminal, one in a notebook's cell, and nothing anywhere else."""

from __future__ import annotations

import inspect
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import isovoxel
from isovoxel.reporting import progress
from isovoxel.reporting.bars import CellBars
from small_jobs import OPTIONS, save_input


def call_all(source: str, output: str) -> None:
    """Ask for progress wherever it can be asked for."""
    isovoxel.scale(source, output, input_voxel_size=(2.0, 1.0, 1.0), engine="exact", progress=True)
    isovoxel.convert(source, output + "2", input_voxel_size=(2.0, 1.0, 1.0), progress=True)
    isovoxel.verify(output, samples=5, every_chunk=True, progress=True)
    isovoxel.show(source, progress=True)


SCRIPT = f"""
import sys
import isovoxel
from isovoxel.reporting import progress
{inspect.getsource(call_all)}
progress.MOMENT = 0.0
call_all(*sys.argv[1:])
"""


def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    """On standard error; standard output stays what the script prints."""
    words = [sys.executable, "-c", SCRIPT, str(save_input(tmp_path / "in.npy")), str(tmp_path / "out.zarr")]
    leader, follower = pty.openpty()
    environment = os.environ | {"COLUMNS": "100", "TERM": "xterm"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=follower, env=environment) as process:
        os.close(follower)
        screen = b"".join(read_all(leader)).decode()
        drawn = re.sub(r"\x1b\[[0-9;]*m", "", screen)
        assert process.stdout is not None
        assert process.stdout.read() == b""
    os.close(leader)
    assert process.returncode == 0, drawn
    assert drawn.count("note: the CPU scales") in (0, 2)
    assert "1/1 block, " in drawn
    assert "done ━" in drawn
    assert "reading every chunk of" in drawn
    assert re.search(r"reading /\S+/in.npy ━+ 100% ", drawn)
    assert drawn.endswith("\x1b[?25h")


def read_all(leader: int) -> Iterator[bytes]:
    """Yield what is written to a terminal until nobody has it open any more."""
    while True:
        try:
            data = os.read(leader, 4096)
        except OSError:
            return
        if not data:
            return
        yield data


def test_a_log_file_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither a bar nor lines, as long as it takes: the script writes its own log."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(progress, "MOMENT", 0.0)
    call_all(str(save_input(tmp_path / "in.npy")), str(tmp_path / "out.zarr"))
    assert capfd.readouterr() == ("", "")


class Handle:
    """A display that is replaced; keeps what it shows, as text."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def update(self, bars: CellBars) -> None:
        bundle: dict[str, str] = bars._repr_mimebundle_([], [])
        assert "<pre" in bundle["text/html"]
        self.shown.append(bundle["text/plain"])


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> list[Handle]:
    """Make this process look like a notebook's kernel, and return the displays of its cell."""
    displays: list[Handle] = []

    def display(bars: CellBars, *, display_id: bool) -> Handle:
        assert display_id
        displays.append(Handle())
        displays[-1].update(bars)
        return displays[-1]

    ipython: Any = ModuleType("IPython")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())
    shown: Any = ModuleType("IPython.display")
    shown.display = display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    return displays


def test_a_notebook_gets_one_bar_that_is_replaced(
    cell: list[Handle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its last state stays; notes are printed, for notebooks show standard error as a failure."""
    result = isovoxel.scale(save_input(tmp_path / "in.npy"), tmp_path / "out.zarr", **OPTIONS, progress=True)
    (handle,) = cell
    count = result.plan.all_blocks
    assert "scaling" in handle.shown[0]
    assert "done" in handle.shown[-1]
    assert f"{count}/{count} blocks" in handle.shown[-1]
    said = capsys.readouterr()
    assert said.err == ""
    assert ("note: the CPU scales" in said.out) == (result.plan.device.kind == "cpu")


def test_a_notebook_shows_what_is_verified(
    cell: list[Handle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once it takes longer than a moment: boxes, receipts and chunks, each up to its end."""
    monkeypatch.setattr(progress, "MOMENT", 0.0)
    output = tmp_path / "out.zarr"
    isovoxel.scale(save_input(tmp_path / "in.npy"), output, **OPTIONS, keep_receipts=True)
    assert isovoxel.verify(output, samples=5, every_chunk=True, progress=True).holds
    (handle,) = cell
    assert "reading every chunk of" in handle.shown[-1]
    assert "100%" in handle.shown[-1]
    assert capsys.readouterr().err == ""


def test_what_is_verified_is_counted_to_its_end(tmp_path: Path) -> None:
    """Each part from its first to its last, of as many as there are."""
    from isovoxel.execution.verify import verify_output

    output = tmp_path / "out.zarr"
    isovoxel.scale(save_input(tmp_path / "in.npy"), output, **OPTIONS | {"levels": 1}, keep_receipts=True)
    told: dict[str, list[tuple[int, int]]] = {}
    found = verify_output(
        output,
        None,
        samples=9,
        seed=0,
        every_chunk=True,
        memory=None,
        reading=lambda what, done, total: told.setdefault(what, []).append((done, total)),
    )
    assert len(told) == 4
    for steps in told.values():
        assert [done for done, _ in steps] == list(range(len(steps)))
        assert {total for _, total in steps} == {len(steps) - 1}
    assert max(total for steps in told.values() for _, total in steps) == found.chunks


def test_a_failing_job_closes_its_bar(cell: list[Handle], tmp_path: Path) -> None:
    """And leaves no thread that draws."""
    import threading

    def fail(_event: object) -> None:
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        isovoxel.scale(
            np.ones((4, 5, 6), np.uint8), tmp_path / "out.zarr", factor=(2, 1, 1), progress=True, listeners=[fail]
        )
    assert not [thread for thread in threading.enumerate() if thread.name == "isovoxel-bars"]
    assert len(cell) <= 1
