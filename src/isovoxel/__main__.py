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
    from isovoxel.terminal import open_streams, show_cursor

    open_streams()
    from isovoxel.cli import Abandoned, run

    try:
        code = run()
    except Abandoned as end:  # threads may still run, for which nobody wants to wait
        show_cursor()
        os._exit(end.exit_code)
    sys.exit(code)


if __name__ == "__main__":
    main()
