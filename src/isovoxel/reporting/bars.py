"""Bars by rich, on a terminal or in the output of a notebook's cell."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column

TICK = 0.25
"""Seconds between two drawings of the bars in a cell."""


class CellBars(Progress):
    """Bars in the output of a notebook's cell: they are displayed once, and then replaced at their place.

    Replacing needs no widgets, works from any thread, and leaves the last state in a notebook that is saved.
    """

    _handle: Any = None

    def start(self) -> None:
        """Display the bars, and draw them again every moment: the time left runs down between two blocks too."""
        from IPython.display import display

        self._handle = display(self, display_id=True)
        self._stopped = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="isovoxel-bars", daemon=True)
        self._ticker.start()

    def refresh(self) -> None:
        """Draw the bars as they are."""
        if self._handle is not None:
            self._handle.update(self)

    def stop(self) -> None:
        """Draw the bars for the last time."""
        self._stopped.set()
        self._ticker.join()
        self.refresh()

    def _tick(self) -> None:
        while not self._stopped.wait(TICK):
            self.refresh()


def job_bars(console: Console | None, clock: Callable[[], float]) -> Progress:
    """Return bars whose tasks have a field ``view``, the text beside the bar.

    Parameters
    ----------
    console
        The terminal, or None in a notebook's cell.
    clock
        Returns seconds.
    """
    return _bars(
        console,
        clock,
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        # Asks `__str__` whenever the bar is redrawn: the time left runs down during long blocks too.
        TextColumn("{task.fields[view]}", table_column=Column(no_wrap=True)),
    )


def reading_bars(console: Console | None, clock: Callable[[], float]) -> Progress:
    """Return bars with the share that is done and the time left; parameters as of `job_bars`."""
    return _bars(
        console,
        clock,
        # A name may hold what rich would take for markup.
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )


def _bars(console: Console | None, clock: Callable[[], float], *columns: Any) -> Progress:
    kind = CellBars if console is None else Progress
    # What others print to standard output belongs there, not where the bars are.
    return kind(*columns, console=console, expand=True, get_time=clock, redirect_stdout=False)
