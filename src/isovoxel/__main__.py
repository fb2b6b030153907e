"""The command ``isovoxel``, and ``python -m isovoxel``: the command line, in a process of its own.

What it loads takes a while, so that Ctrl-C and the standard streams are seen to before.
"""

import os
import signal
import sys
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
    from isovoxel.doctor import diagnosis as doctor
    from isovoxel.terminal import exit_code, open_streams, say, show_cursor, trace

    open_streams()
    if doctor.is_asked(sys.argv[1:]):  # before anything is loaded that may be what is broken
        sys.exit(exit_code(doctor.run(sys.argv[1:])))
    try:
        from isovoxel.cli import Abandoned, run
    except Exception as error:  # noqa: BLE001 - a package that is broken may raise anything
        trace(error)
        say(f"error: isovoxel cannot be loaded ({type(error).__name__}: {error}); isovoxel doctor says what mends it")
        sys.exit(2)
    try:
        code = run()
    except Abandoned as end:  # threads may still run, for which nobody wants to wait
        show_cursor()
        os._exit(end.exit_code)
    sys.exit(code)


if __name__ == "__main__":
    main()
