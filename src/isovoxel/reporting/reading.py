"""How far has a volume been read that is drawn? A bar on a terminal, for what takes longer than a moment.

Where nobody watches, a line is written each 30 seconds at most, as `progress` does it for jobs.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from isovoxel.reporting.progress import LOG_SECONDS, terminal
from isovoxel.terminal import plain, say

if TYPE_CHECKING:  # rich is loaded where there is a terminal to draw on
    from rich.console import Console
    from rich.progress import Progress

MOMENT = 1.0
"""Seconds after which a bar appears."""


class ReadingView:
    """Told how much is read, it shows that, and leaves the terminal as it was.

    Parameters
    ----------
    console
        Where to draw; by default standard error, drawn on if it is a terminal and else written to.
    quiet
        Whether nothing is shown.
    clock
        Returns seconds.

    Examples
    --------
    >>> with ReadingView(quiet=True) as view:
    ...     view("reading stack.tif", 1, 2)
    """

    def __init__(
        self, console: Console | None = None, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console if console is not None or quiet else terminal()
        self._quiet, self._clock = quiet, clock
        self._began = self._last_line = clock()
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            if self._bar is not None:
                self._bar.stop()

    def __call__(self, doing: str, done: int, total: int) -> None:
        """Show that of `total` voxels `done` are read.

        Parameters
        ----------
        doing
            What is read, in a clause.
        done, total
            Numbers of voxels.
        """
        try:
            self._show(doing, done, total)
        except OSError:  # nobody reads it any more
            self._quiet, self._bar = True, None

    def _show(self, doing: str, done: int, total: int) -> None:
        now = self._clock()
        if self._quiet or now - self._began < MOMENT:
            return
        if self._console is None or not self._console.is_interactive:
            if now - self._last_line >= LOG_SECONDS:
                self._last_line = now
                say(f"{doing}: {100 * done // total} %")
            return
        if self._bar is None:
            self._bar = _bar(self._console, self._clock)
            self._bar.start()
        (task,) = self._bar.task_ids or [self._bar.add_task("")]
        self._bar.update(task, description=plain(doing), total=total, completed=done)


def _bar(console: Console, clock: Callable[[], float]) -> Progress:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    return Progress(
        # A name may hold what rich would take for markup.
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        expand=True,
        get_time=clock,
        redirect_stdout=False,
    )
