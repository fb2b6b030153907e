"""Progress is a bar on a terminal or in a notebook, a few lines in a log, and nothing when quiet."""

import inspect
import io
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from rich.console import Console

import isovoxel
from isovoxel.execution.events import (
    BlockDone,
    ImageBegun,
    ImageFailed,
    ImagesFinished,
    ImagesStarted,
    JobFinished,
    JobStarted,
    JobStopped,
    LevelBegun,
    WorkerJoined,
    WorkerLeft,
)
from isovoxel.options import Options
from isovoxel.planning.plan import Plan
from isovoxel.reporting import progress
from isovoxel.reporting.bars import CellBars
from isovoxel.reporting.progress import MOST_LINES, ProgressView
from small_jobs import OPTIONS, save_input

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


class Clock:
    """Tells the time that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def started(blocks: int = 4, shape: tuple[int, int, int] = (40, 100, 1000)) -> JobStarted:
    """Return the start of a job; of its plan a view needs few things only."""
    output, device = SimpleNamespace(shape=shape), SimpleNamespace(kind="gpu")
    sizes = {"all_blocks": blocks, "all_voxels": shape[0] * shape[1] * shape[2]}
    stored = {"levels": (), "storage": SimpleNamespace(ome_zarr="0.5")}
    source = SimpleNamespace(name="a", notes=())
    plan = SimpleNamespace(**sizes, **stored, output=output, device=device, aliases=(), coarse=False, source=source)
    return JobStarted(cast(Plan, plan))


def done(index: int, voxels: int = 1_000_000) -> BlockDone:
    return BlockDone(index, voxels, 0.0, 0.0, 0.0, 0.0, 0.0)


def terminal(width: int = 100) -> tuple[Console, io.StringIO]:
    """Return a terminal, and what is written to it."""
    file = io.StringIO()
    return Console(file=file, force_terminal=True, width=width, color_system=None, _environ={}), file


def log_file() -> tuple[Console, io.StringIO]:
    """Return a console that is no terminal, and what is written to it."""
    file = io.StringIO()
    return Console(file=file, force_terminal=False, width=40, _environ={}), file


def last_line(file: io.StringIO) -> str:
    """Return what stays on the last line of the screen, without control sequences."""
    text = file.getvalue().replace(SHOW_CURSOR, "").replace(HIDE_CURSOR, "").rstrip("\n")
    return text[max(text.rfind("\r"), text.rfind("\x1b[2K"), text.rfind("\n")) :].removeprefix("\x1b[2K")


@pytest.mark.parametrize("width", [80, 120])
def test_the_final_bar_stays_on_the_screen(width: int) -> None:
    """A finished job leaves one full line: all blocks, the speed over all voxels, the time it took."""
    console, file = terminal(width)
    clock = Clock()
    with ProgressView(console, clock=clock) as view:
        view(started())
        for index in range(4):
            clock.now += 20
            view(done(index))
        view(JobFinished(80.0))
    assert file.getvalue().endswith("\n" + SHOW_CURSOR)
    line = last_line(file)
    assert line.startswith("done ━")
    assert line.endswith(" 4/4 blocks, 0.1 Mvoxel/s, in 1:20")
    assert len(line) <= width


def test_one_bar_goes_through_all_levels() -> None:
    """It says which one is being made, counts the voxels of all, and a log says the same."""
    for console, file in (terminal(100), log_file()):
        clock = Clock()
        with ProgressView(console, clock=clock) as view:
            view(started(blocks=5))
            for index in range(4):
                clock.now += 20
                view(done(index, voxels=900_000))
            view(LevelBegun(1, 1))
            clock.now += 40
            view(done(0, voxels=400_000))
            assert str(view) == "5/5 blocks, 0.0 Mvoxel/s, 0:00 left"
            drawn = [task.description for task in view._bar.tasks] if view._bar else []
            view(JobFinished(120.0))
        assert drawn == ["level 1 of 1"] or "level 1 of 1: 5/5 blocks" in file.getvalue()
        assert "5/5 blocks, 0.0 Mvoxel/s, in 2:00" in last_line(file)


def test_time_left_counts_voxels_and_runs_down() -> None:
    """Half the blocks may be a quarter of the voxels: the time left follows voxels, also between blocks."""
    clock = Clock()
    view = ProgressView(log_file()[0], clock=clock)
    view(started(blocks=2))
    assert str(view) == "0/2 blocks"
    clock.now += 100
    view(done(0, voxels=1_000_000))
    assert str(view) == "1/2 blocks, 0.0 Mvoxel/s, 5:00 left"
    clock.now += 70
    assert str(view) == "1/2 blocks, 0.0 Mvoxel/s, 3:50 left"
    clock.now += 10_000
    assert str(view) == "1/2 blocks, 0.0 Mvoxel/s, 0:00 left"


def test_long_times_have_hours() -> None:
    """Ten hours are not six hundred minutes."""
    clock = Clock()
    view = ProgressView(log_file()[0], clock=clock)
    view(started(blocks=11, shape=(11, 1000, 1000)))
    clock.now += 3605
    view(done(0))
    assert str(view).endswith("10:00:50 left")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_job_that_stops_half_way_frees_the_terminal(error: type[BaseException]) -> None:
    """Without an end event the bar closes with the context: last state kept, cursor shown, error raised."""
    console, file = terminal()
    clock = Clock()
    view = ProgressView(console, clock=clock)

    def fail() -> None:
        with view:
            view(started())
            clock.now += 2
            view(done(0))
            raise error

    with pytest.raises(error):
        fail()
    assert HIDE_CURSOR in file.getvalue()
    assert file.getvalue().endswith("\n" + SHOW_CURSOR)
    assert last_line(file).startswith("stopped ━")
    assert last_line(file).endswith(" 1/4 blocks, 0.5 Mvoxel/s, in 0:02")


def test_a_log_file_gets_whole_lines_now_and_then() -> None:
    """A log has a line at the start, one each 30 seconds at most, one at the end, and never a bar."""
    console, file = log_file()
    clock = Clock()
    with ProgressView(console, clock=clock) as view:
        view(started(blocks=40, shape=(40, 1000, 1000)))
        for index in range(40):
            clock.now += 4
            view(done(index))
        view(JobFinished(160.0))
    assert file.getvalue().splitlines() == [
        "scaling 40 blocks, 40.0 Mvoxel",
        "scaling: 8/40 blocks, 0.2 Mvoxel/s, 2:08 left",
        "scaling: 16/40 blocks, 0.2 Mvoxel/s, 1:36 left",
        "scaling: 24/40 blocks, 0.2 Mvoxel/s, 1:04 left",
        "scaling: 32/40 blocks, 0.2 Mvoxel/s, 0:32 left",
        "scaling: 40/40 blocks, 0.2 Mvoxel/s, 0:00 left",
        "done: 40/40 blocks, 0.2 Mvoxel/s, in 2:40",
    ]


def test_a_log_file_says_where_a_job_stopped() -> None:
    """A log's last line tells a stopped job from a finished one."""
    console, file = log_file()
    with ProgressView(console, clock=Clock()) as view:
        view(started(blocks=1))
    assert file.getvalue().splitlines() == ["scaling 1 block, 4.0 Mvoxel", "stopped: 0/1 block, in 0:00"]


def test_nothing_is_drawn_when_quiet_or_never_started() -> None:
    """Quiet is quiet even on a terminal, and a job that never starts leaves no trace."""
    console, file = terminal()
    with ProgressView(console, bar=False, notes=False) as view:
        view(started())
        view(done(0))
        view(JobFinished(1.0))
    with ProgressView(console):
        pass
    assert file.getvalue() == ""


def test_standard_error_that_is_no_terminal_gets_no_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default it writes to standard error, and FORCE_COLOR does not make a log file a terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    with ProgressView(clock=Clock()) as view:
        view(started())
        view(JobFinished(1.0))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "scaling 4 blocks, 4.0 Mvoxel\ndone: 0/4 blocks, in 0:01\n"  # as the job says


def test_what_others_print_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    """A bar on standard error does not swallow or move what is printed meanwhile."""
    console, file = terminal()
    with ProgressView(console, clock=Clock()) as view:
        view(started())
        print("a result")
    assert capsys.readouterr().out == "a result\n"
    assert "a result" not in file.getvalue()


def test_each_worker_has_a_line_below_the_bar() -> None:
    """Its device, its blocks, its speed; and that it does no more when it is gone. Later ones do without."""
    console, file = terminal(120)
    clock = Clock()
    with ProgressView(console, notes=False, clock=clock) as view:
        view(started())
        for number in range(MOST_LINES + 5):
            view(WorkerJoined(str(number), "a", f"GPU {number}", ""))
        clock.now += 10
        for index in range(4):
            view(replace(done(index), worker=str(index % 2)))
        view(WorkerLeft("1", "lost"))
        view(JobFinished(10.0))
    screen = file.getvalue()
    assert "GPU 0, 2 blocks, 0.2 Mvoxel/s" in screen
    assert "GPU 1, 2 blocks, does no more" in screen
    assert f"GPU {MOST_LINES - 1}," in screen
    assert f"GPU {MOST_LINES}," not in screen


def test_several_images_are_one_progress() -> None:
    """Blocks, speed and time left are those of all; what is the same for each is said once."""
    console, file = log_file()
    clock = Clock()
    with ProgressView(console, clock=clock) as view:
        view(ImagesStarted(images=3, complete=1, blocks=12, voxels=12_000_000, blocks_done=4, voxels_done=4_000_000))
        for number in (2, 3):
            view(ImageBegun(f"A/1/{number}", number, 3))
            view(replace(started(), done=1, voxels_done=1_000_000))
            for index in range(3):
                clock.now += 2
                view(done(index))
                view(LevelBegun(1, 1))
            assert (
                str(view)
                == {2: "8/12 blocks, 0.5 Mvoxel/s, 0:08 left", 3: "12/12 blocks, 0.5 Mvoxel/s, 0:00 left"}[number]
            )
            view(JobFinished(6.0) if number == 2 else JobStopped(4, 4_000_000))
        view(ImageFailed("A/1/4", "it is damaged"))
        view(ImagesFinished(12.0))
    assert file.getvalue().splitlines() == [
        "note: resuming: 1 of 3 images already complete",
        "scaling 12 blocks, 12.0 Mvoxel",
        "note: resuming: 1 of 4 blocks of a already done",
        "note: image A/1/4 is left out: it is damaged",
        "done: 12/12 blocks, 0.5 Mvoxel/s, in 0:12",
    ]


# ---- progress=True ---------------------------------------------------------------------------------------------------


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
        options=Options(),
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
