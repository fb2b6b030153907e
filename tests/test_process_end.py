"""How the process of a command ends: at once, and with all that was asked for its end."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, threading
from concurrent.futures import ThreadPoolExecutor
from isovoxel.__main__ import end_process

class Kept:
    def __del__(self):
        print("taken apart")

kept = Kept()
atexit.register(print, "handler")
{thread}
print("no newline, ", end="")
end_process(3)
"""


@pytest.mark.parametrize(
    ("thread", "said"),
    [
        ("", "no newline, handler\n"),
        ("threading.Thread(target=threading.Event().wait, daemon=True).start()", "no newline, handler\n"),
        ("pool = ThreadPoolExecutor(1); pool.submit(int).result()", "no newline, handler\ntaken apart\n"),
    ],
    ids=["alone", "with a daemon", "with a pool"],
)
def test_a_process_ends_with_its_handlers_and_streams(thread: str, said: str) -> None:
    """A pool's threads, which wait for more, are ended as Python does it."""
    program = [sys.executable, "-c", PROGRAM.format(thread=thread)]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (3, said, "")
