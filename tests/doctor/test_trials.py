"""Processes that are asked: whatever ends them is told, and nothing ends the process that asks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from isovoxel.doctor import trials
from isovoxel.doctor.trials import Asker

ASK = Asker()


@pytest.fixture(autouse=True)
def _trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes find the trials of this folder."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def test_a_process_has_the_path_of_the_one_that_asks_and_the_variables_that_it_is_given() -> None:
    """What it returns is told, whatever drivers print before."""
    assert ASK("odd_trials:add", 2, 3) == trials.Answer(value=5)
    assert ASK("odd_trials:variable", ODD="yes").value == "yes"
    assert ASK("odd_trials:path").value == sys.path


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals")
def test_a_crash_names_its_signal_and_what_was_begun() -> None:
    """With the last line that the process wrote."""
    answer = ASK("odd_trials:abort")
    assert answer.reason == "its process was ended by SIGABRT (assertion failed)"
    assert (answer.value, answer.ended, answer.told) == (None, True, [["begun", "a driver"]])


@pytest.mark.slow
def test_a_process_that_hangs_is_ended() -> None:
    """After the patience of who asks, with what it had begun, if it came that far."""
    answer = Asker(patience=2)("odd_trials:hang")
    assert (answer.reason, answer.ended) == ("it did not answer within 2 s", True)
    assert list(answer.told) in ([], [["begun", "a driver"]])  # on a busy machine it may not even have begun


@pytest.mark.parametrize(
    ("trial", "reason", "ended"),
    [
        ("leave", "its process ended without an answer", True),
        ("fail", "its process ended with exit code 3 (cannot go on)", True),
        ("quit_", "SystemExit: no licence", False),
        ("odd", "_Odd", False),
        ("refuse", "it is off; switch it on", False),
        ("nowhere", "AttributeError: module 'odd_trials' has no attribute 'nowhere'", False),
    ],
)
def test_whatever_ends_a_trial_is_a_reason(trial: str, reason: str, *, ended: bool) -> None:
    """Of isovoxel's own errors it is known that they say what to do."""
    answer = ASK(f"odd_trials:{trial}")
    assert (answer.value, answer.reason, answer.ended) == (None, reason, ended)
    assert answer.known == (trial == "refuse")


@pytest.mark.parametrize(
    ("code", "how"),
    [
        (-11, "was ended by SIGSEGV"),
        (-63, "was ended by signal 63"),
        (3, "ended with exit code 3"),
        (0xC0000005, "crashed with code 0xC0000005"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="it has other signals")
def test_ends_are_told_as_each_system_has_them(code: int, how: str) -> None:
    """Signals by name, Windows' codes in hexadecimal."""
    assert trials._end_of(code) == how


def test_where_no_process_can_be_started_that_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory, or too many processes."""

    def full(*_: Any, **__: Any) -> Any:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", full)
    assert ASK("add").reason == "no process can be started ([Errno 11] Resource temporarily unavailable)"
