"""Settings and fixtures that all tests share."""

from __future__ import annotations

import signal
import sys
import threading

import pytest
from hypothesis import settings

from command_line import Isovoxel, Outcome

# Tests never depend on time; a slow machine is not a failure.
settings.register_profile("isovoxel", deadline=None, max_examples=60)
settings.load_profile("isovoxel")


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c() -> None:
    """Let Ctrl-C interrupt this process and those that it starts; shells switch it off for jobs in the background."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def isovoxel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Isovoxel:
    """Run the command line in this process."""
    from isovoxel import cli

    def run(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["isovoxel", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert isinstance(exit_.value.code, int)
        return Outcome(exit_.value.code, *capsys.readouterr())

    return run
