"""The command ``isovoxel``, and ``python -m isovoxel``: the command line, in a process of its own.

What it loads takes a while, so that Ctrl-C and the standard streams are seen to before.
"""

import atexit
import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130


def main() -> NoReturn:
    """Run the command line, and end this process."""
    code = INTERRUPTED

    def leave(_number: int, _frame: FrameType | None) -> NoReturn:
        """End at once, for nothing is begun, or all is done."""
        try:
            os.write(2, b"interrupted\n" if code == INTERRUPTED else b"")
        finally:
            os._exit(code)

    # Shells have what runs in the background ignore it.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)
    from isovoxel import doctor
    from isovoxel.terminal import Abandoned, exit_code, open_streams, say, show_cursor, trace

    open_streams()
    if doctor.is_asked(sys.argv[1:]):  # before anything is loaded that may be what is broken
        from isovoxel.doctor import diagnosis

        sys.exit(exit_code(diagnosis.run(sys.argv[1:])))
    try:
        from isovoxel.cli import run
    except Exception as error:  # noqa: BLE001 - a package that is broken may raise anything
        trace(error)
        say(f"error: isovoxel cannot be loaded ({type(error).__name__}: {error}); isovoxel doctor says what mends it")
        sys.exit(2)
    try:
        code = run()
    except Abandoned as end:  # threads may still run, for which nobody wants to wait
        show_cursor()
        os._exit(end.exit_code)
    end_process(code)


def end_process(code: int) -> NoReturn:
    """End the process once its threads are done, its exit handlers have run, and its streams are flushed.

    The system frees its memory: for Python to take every module apart takes 0.15 s more, when all is on the disk.
    """
    others = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
    if any(not thread.daemon for thread in others):  # Python knows how to end those of a pool
        sys.exit(code)
    atexit._run_exitfuncs()  # noqa: SLF001 - no public name runs them
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
