"""Do signals end a job, whenever they come?"""

import os
import signal
import time

import pytest

from isovoxel.terminal import Stopped, signals


class Finalized:
    """Its finalizer gets a signal; what that raises there, Python would only print."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)  # which runs the handler before it returns


def finalize_and_wait(number: int) -> None:
    """Drop what has such a finalizer, and then do something that takes long."""
    thing = Finalized(number)
    del thing
    time.sleep(20)


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
    """What was there before is there again."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with signals():
        assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in before} == before
