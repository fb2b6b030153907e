"""One process writes an output: the second is told who the first is, and who died holds nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from isovoxel.errors import OutputBusyError, OutputError
from isovoxel.output import lock as module
from isovoxel.output.attempt import DEAD_SECONDS, Holder
from isovoxel.output.files import claim
from isovoxel.output.lock import FileLock, read_holder
from polling import wait_until

HOLD = """
import sys
from pathlib import Path
from isovoxel.output.lock import FileLock
with FileLock(Path(sys.argv[1]), Path("out.zarr")):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "out.zarr.isovoxel" / "lock"


def take(file: Path) -> None:
    """Take the lock and give it back."""
    with FileLock(file, Path("out.zarr")):
        pass


def write_holder(file: Path, **changes: object) -> None:
    """Leave a lock file as another process would."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(asdict(replace(Holder.own(), **changes))))


def test_a_second_process_is_told_who_holds_it_and_since_when(file: Path) -> None:
    """Host, process and time are in the message; killed without mercy, the first holds nothing any more."""
    command = [sys.executable, "-c", HOLD, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        who = rf"process {other.pid} on {re.escape(os.uname().nodename)} since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d"
        with pytest.raises(OutputBusyError, match=f"out.zarr is being written by {who}.*; wait for it, end it, or"):
            take(file)
        assert read_holder(file) is not None
        other.kill()
    assert read_holder(file) is None
    take(file)


def test_one_process_does_not_hold_it_twice(file: Path) -> None:
    """Two jobs in two threads are two jobs."""
    with FileLock(file, Path("out.zarr")):
        with pytest.raises(OutputBusyError, match=f"process {os.getpid()}"):
            take(file)
        holder = read_holder(file)
        assert holder is not None
        assert holder.pid == os.getpid()
    assert read_holder(file) is None


def test_a_process_with_the_same_number_is_another(file: Path) -> None:
    """Numbers come again: who began at another time did not leave the lock."""
    write_holder(file, began=1.0)
    assert read_holder(file) is None
    take(file)


def test_a_holder_on_another_host_lives_while_it_touches_the_file(file: Path) -> None:
    """Its lock may not be seen here, but its beat is; a file that nobody touches was left by the dead."""
    write_holder(file, host="elsewhere")
    with pytest.raises(OutputBusyError, match="on elsewhere since"):
        take(file)
    assert read_holder(file) is not None
    long_ago = time.time() - DEAD_SECONDS - 1
    os.utime(file, (long_ago, long_ago))
    assert read_holder(file) is None
    take(file)


def test_the_holder_touches_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it lives, at its beat."""
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.01)
    with FileLock(file, Path("out.zarr")):
        os.utime(file, (1, 1))
        wait_until(lambda: file.stat().st_mtime >= 2)


@pytest.mark.parametrize("without", ["flock that works", "fcntl"])
def test_where_there_are_no_locks_the_file_decides(file: Path, monkeypatch: pytest.MonkeyPatch, without: str) -> None:
    """On file systems and systems without locks the process of this host that is named must be alive."""

    class Useless:
        LOCK_EX = LOCK_NB = LOCK_UN = 0

        def flock(self, *_: object) -> None:
            raise OSError(95, "Operation not supported")

    monkeypatch.setattr(module, "fcntl", None if without == "fcntl" else Useless())
    with FileLock(file, Path("out.zarr")), pytest.raises(OutputBusyError):
        take(file)
    write_holder(file, pid=2**22 + 1)
    take(file)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"host": "x"}', '{"host": "x", "pid": "y", "began": 0, "since": ""}']
)
def test_half_a_name_is_none(file: Path, content: str) -> None:
    """What a process left that died while it wrote its name holds nobody up."""
    claim(file.parent)
    file.write_text(content)
    assert read_holder(file) is None
    take(file)


def test_a_lock_whose_folder_goes_is_taken_anew(file: Path) -> None:
    """Who waited for a job that finished, and took its folder along, holds the new file and not the old one."""
    with FileLock(file, Path("out.zarr")):
        shutil.rmtree(file.parent)
        with FileLock(file, Path("out.zarr")):
            assert read_holder(file) is not None


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file; move what is there away"):
        take(tmp_path / "file" / "lock")
