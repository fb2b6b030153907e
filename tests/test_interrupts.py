"""Ctrl-C while the command line is loaded, and Ctrl-C twice."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from isovoxel import api
from isovoxel.errors import InterruptedJobError
from isovoxel.execution.events import BlockDone, Event, JobFinished, JobStarted, LevelBegun

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked at each import")

AT_EACH_IMPORT = """
import atexit, os, signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)
step, points, parent = int(sys.argv.pop(1)), 0, os.getpid()
ended = {}

class Interrupting:
    \"\"\"Forks at each import, or some of them: the child is interrupted there and goes on.\"\"\"

    def find_spec(self, name, path=None, target=None):
        global points
        points += 1
        if points % step or ended is None or os.getpid() != parent:
            return None
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            os.dup2(write, 2)
            os.close(read)
            os.kill(os.getpid(), signal.SIGINT)
            return None
        os.close(write)
        said = b""
        while some := os.read(read, 10000):
            said += some
        os.close(read)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        ended.setdefault((code, said.decode()), []).append(name)
        return None

from isovoxel.__main__ import main
sys.meta_path.insert(0, Interrupting())
sys.argv[0] = "isovoxel"

def report():
    global ended
    found, ended = ended, None
    if os.getpid() == parent:
        print(points, flush=True)
    for (code, said), names in found.items() if os.getpid() == parent else ():
        print(code, repr(said), len(names), names[:5], flush=True)

atexit.register(report)  # which runs before the process ends
main()
"""


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    path = tmp_path / "stack.tif"
    metadata = {"axes": "ZYX", "spacing": 2.0, "unit": "micron"}
    tifffile.imwrite(path, np.ones((4, 9, 9), np.uint8), imagej=True, resolution=(2, 2), metadata=metadata)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("words", "step"), [(["info"], 19), (["plan"], 29)])
def test_an_interrupt_at_any_import_is_one_word(stack: Path, words: list[str], step: int) -> None:
    """The exit code is 130, whatever was being loaded, and no traceback is seen."""
    command = [sys.executable, "-c", AT_EACH_IMPORT, str(step), *words, str(stack)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    points, *lines = (line for line in done.stdout.splitlines() if line[:1].isdigit() or line[:1] == "-")
    assert int(points) > 200, done.stderr
    assert lines, done.stdout
    for line in lines:
        assert line.startswith("130 'interrupted\\n' "), line


TWICE = """
import os, signal, sys, time
from isovoxel import __main__, api
from isovoxel.execution.events import started

def scale(source, output, *, listeners, **options):
    plan = api.plan(source)
    for listener in listeners:
        listener(started(plan, bytearray(plan.all_blocks)))
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    finally:  # blocks in flight
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

api.scale = scale
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["isovoxel", "scale", sys.argv[1], sys.argv[2], "--threads", "1"]
__main__.main()
"""


def test_a_second_interrupt_leaves_the_terminal_as_it_was(stack: Path, tmp_path: Path) -> None:
    """The cursor that the bar has hidden is seen again."""
    terminal, other = pty.openpty()
    command = [sys.executable, "-c", TWICE, str(stack), str(tmp_path / "out.zarr")]
    with subprocess.Popen(command, stderr=other, stdout=subprocess.DEVNULL) as process:
        os.close(other)
        said = b""
        try:
            while some := os.read(terminal, 10_000):
                said += some
        except OSError:  # the other end is closed
            pass
        assert process.wait(60) == 130
    os.close(terminal)
    assert said.rfind(b"\x1b[?25h") > said.rfind(b"\x1b[?25l") >= 0
    assert b"interrupted" in said
    assert b"Traceback" not in said


MOMENTS: dict[str, type[Event]] = {
    "begun": JobStarted,
    "a block": BlockDone,
    "a level": LevelBegun,
    "the end": JobFinished,
}


@pytest.mark.parametrize("isolate", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_interrupt_is_one_for_the_caller(tmp_path: Path, moment: str, *, isolate: bool) -> None:
    """A KeyboardInterrupt, which no ``except Exception`` around a job of a batch holds up; the job goes on later."""
    source = np.random.default_rng(0).random((8, 300, 300), "float32")  # whose levels are read back
    options: Any = {"factor": (2.0, 1.0, 1.0), "engine": "exact", "threads": 1, "levels": 2}

    raised: list[Event] = []

    def stop(event: Event) -> None:
        if isinstance(event, MOMENTS[moment]) and not raised:
            raised.append(event)
            raise KeyboardInterrupt

    def one_of_a_batch() -> None:
        try:
            api.scale(source, tmp_path / "out.zarr", listeners=[stop], isolate=isolate, **options)
        except Exception:  # noqa: BLE001 - as a user's loop has it
            pytest.fail("the loop would go on")

    with pytest.raises(KeyboardInterrupt) as caught:
        one_of_a_batch()
    if moment in ("a block", "a level"):
        assert isinstance(caught.value, InterruptedJobError)
        assert "are done and kept; to resume, run the same command" in str(caught.value)
        assert caught.value.exit_code == 130
    api.scale(source, tmp_path / "out.zarr", **options)
    assert api.output_state(tmp_path / "out.zarr").complete  # type: ignore[union-attr]
