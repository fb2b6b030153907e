"""Is a report wanted of a job on the command line? What draws is loaded only if it is."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Unpack

from isovoxel.keywords import Opening

if TYPE_CHECKING:
    from isovoxel.reporting.report import Report


@contextlib.contextmanager
def reporting(
    path: str | None, source: str, output: str, *, quiet: bool, **opening: Unpack[Opening]
) -> Iterator[Report | None]:
    """Write a report of this process' command when its job ends; without a path, none.

    Parameters
    ----------
    path, source, output
        As in `isovoxel.reporting.report.Report`.
    quiet
        Whether nothing is shown of how far volumes are read.
    **opening
        As in `Report`.

    Raises
    ------
    IsovoxelError
        As `Report`.
    """
    if path is None:
        yield None
        return
    from isovoxel.reporting.reading import ReadingView
    from isovoxel.reporting.report import Report

    words = ["isovoxel", *sys.argv[1:]]
    with (
        ReadingView(quiet=quiet) as reading,
        Report(path, source, output, words=words, reading=reading, **opening) as report,
    ):
        yield report
