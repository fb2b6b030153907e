"""Is a report wanted of a job on the command line? What draws is loaded only if it is."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from isovoxel.geometry.grid import Float3

if TYPE_CHECKING:
    from isovoxel.views.report import Report


@contextlib.contextmanager
def reporting(
    path: str | None, source: str, output: str, voxel_size: Float3 | None, unit: str | None, *, quiet: bool
) -> Iterator[Report | None]:
    """Write a report of this process' command when its job ends; without a path, none.

    Parameters
    ----------
    path, source, output, voxel_size, unit
        As in `isovoxel.views.report.Report`.
    quiet
        Whether nothing is shown of how far volumes are read.

    Raises
    ------
    IsovoxelError
        As `Report`.
    """
    if path is None:
        yield None
        return
    from isovoxel.views.reading import ReadingView
    from isovoxel.views.report import Report

    words = ["isovoxel", *sys.argv[1:]]
    with (
        ReadingView(quiet=quiet) as reading,
        Report(path, source, output, voxel_size=voxel_size, unit=unit, words=words, reading=reading) as report,
    ):
        yield report
