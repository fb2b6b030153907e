"""What reaches a terminal: one line for each that is meant, and nothing that the terminal would obey; its signals."""

from __future__ import annotations

import logging
import os
import signal
import threading
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isovoxel.execution.events import Connected, Filled, Restarted, Retried, WorkerJoined, WorkerLeft, log_event
from isovoxel.reporting.progress import ProgressView
from isovoxel.terminal import Stopped, plain, put, say, signals
from polling import PATIENCE

ODD = "a\x1b[2J\x9b31m\x07\u202e\u2066\r\nb\tc\u2028d\udcff\ud800\x00\x7f"
"""Controls, escape sequences, turned writing, breaks of lines, and what is no character."""

characters = st.text(st.characters(exclude_categories=[])) | st.text(st.sampled_from(ODD + " \u00a0\u200d\u3000"))


def harmless(text: str) -> bool:
    """Return whether a terminal shows a text as it is."""
    return all(unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") for c in text) and not any(
        unicodedata.bidirectional(c) in ("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI") for c in text
    )


@given(characters)
def test_any_text_is_one_harmless_line(text: str) -> None:
    """That can be written as UTF-8, twice the same, and what is printable stays."""
    line = plain(text)
    assert harmless(line)
    assert line.encode().decode() == line == plain(line)
    assert plain("".join(c for c in text if c.isprintable())) == "".join(c for c in text if c.isprintable())


@given(st.lists(characters, min_size=1, max_size=3))
def test_lines_that_are_put_are_as_many(lines: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        import io

        out, err = io.StringIO(), io.StringIO()
        patch.setattr("sys.stdout", out)
        patch.setattr("sys.stderr", err)
        put(lines)
        for line in lines:
            say(line)
    assert out.getvalue() == err.getvalue()
    assert out.getvalue().count("\n") == len(lines)


EVENTS = [
    Connected(ODD, (ODD,)),
    WorkerJoined(ODD, ODD, ODD, ODD),
    WorkerLeft(ODD, ODD, (ODD, ODD)),
    Retried(0, "reading", ODD, 1.0),
    Filled(ODD),
    Restarted(ODD),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_what_others_say_is_harmless(
    event: object, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Of workers, libraries and damaged files: as a note, and in a log."""
    with ProgressView(bar=False) as view, caplog.at_level(logging.DEBUG, "isovoxel"):
        view(event)  # type: ignore[arg-type]
        log_event(event)  # type: ignore[arg-type]
    told = capsys.readouterr().err
    assert all(map(harmless, told.splitlines()))
    assert caplog.messages
    assert all(harmless(message) for message in caplog.messages)


def test_a_bar_is_harmless(tmp_path: Path) -> None:
    """Rich's escape sequences are its own; those of a worker's name are none."""
    from rich.console import Console

    from isovoxel.reporting.progress import ReadingView

    with (tmp_path / "terminal").open("w+", encoding="utf-8") as file:
        now = iter(range(100))
        console = Console(file=file, force_terminal=True, width=200, legacy_windows=False)
        with ReadingView(console, clock=lambda: float(next(now))) as view:
            view(f"reading {ODD}", 1, 2)
        file.seek(0)
        shown = file.read()
    assert "\\x1b[2J" in shown
    assert "\x1b[2J" not in shown


# ---- signals ---------------------------------------------------------------------------------------------------------


class Finalized:
    """Its finalizer gets a signal; what that raises there, Python would only print."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)  # which runs the handler before it returns


def finalize_and_wait(number: int) -> None:
    """Drop what has such a finalizer, and then wait for what never comes."""
    thing = Finalized(number)
    del thing
    threading.Event().wait(PATIENCE)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_in_a_finalizer_is_not_lost(name: str) -> None:
    """It comes again, until something is interrupted that can be."""
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)  # under nohup it is ignored, and stays so
    try:
        with signals(), pytest.raises(Stopped) as stop:
            finalize_and_wait(number)
    finally:
        signal.signal(number, before)
    assert stop.value.signal == number


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    """Whoever starts a job by nohup wants it to go on."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_given_back() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with signals():
        assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in before} == before
