"""Forecast what a job costs: files, bytes, and seconds, by those that jobs like it took before on this machine.

1. A job that was made from beginning to end, without a hindrance, leaves a line in a file of the user: what it was
   like, its work, and its seconds. Jobs are alike if device, engine, interpolation, codec, encoder, cores, workers and
   the kind of storage are the same.
2. Of the latest jobs that were alike, seconds = fixed + rate * work is fitted, with the least squares of relative
   errors. Where all had the same work, or the fit is not possible, seconds = rate * work.
3. The file holds lines that are appended in one write, so jobs that end together leave one each. Once it is longer than
   `MOST_BYTES`, the later half of it takes its place. A line that is not whole is passed over, and where nothing can be
   read or written, nothing is known.

Work is the bytes of the voxels that are written, of all levels, and those that are read, as they weigh in
`isovoxel.planning.optimizer`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from isovoxel.geometry.grid import ceil_div
from isovoxel.object_store.addresses import Place
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.planning.optimizer import DECODE
from isovoxel.planning.plan import Plan

RATES = "ISOVOXEL_RATES"
"""The variable that names another file, or, if it is empty, none."""
MOST_BYTES = 2**16
"""Length of the file from which on its first half is dropped; some 300 jobs."""
LATEST = 16
"""Jobs of one kind that a forecast is made of."""
DISTINCT = 1e-3
"""Least spread of the work of jobs, as a share of it, with which a fixed time can be told from a rate."""


@dataclass(frozen=True)
class Forecast:
    """What a job will cost."""

    seconds: float | None
    """Wall time from the first block until the output is complete; None where no job like it is known."""
    nbytes: int
    """Bytes that the output takes at most: its voxels are compressed."""
    files: int
    """Files or objects that the output has at most: what is nothing but zeros has none."""


def forecast(plan: Plan, output: Place | None = None) -> Forecast:
    """Return what a job would cost.

    Parameters
    ----------
    plan
        The job, of which nothing is done.
    output
        Where it writes; by default a local disk.
    """
    jobs = _jobs_like(_kind(plan, output))
    return Forecast(_fitted(jobs, _work(plan)) if jobs else None, plan.disk_bytes, _files(plan))


def keep_rate(plan: Plan, output: Place, seconds: float) -> None:
    """Keep how long a job took that was made in one go, as it was planned.

    Parameters
    ----------
    plan, output
        The job.
    seconds
        Wall time of all blocks and of marking the output complete.
    """
    if (path := _rates_file()) is None:
        return
    line = json.dumps({"kind": _kind(plan, output), "work": _work(plan), "seconds": round(seconds, 3)}) + "\n"
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            file.write(line.encode())
            length = file.tell()
        if length > MOST_BYTES:
            _drop_first_half(path)


def _files(plan: Plan) -> int:
    """Return the number of files of an output: those of the group, and of each level its shards and its metadata."""
    beside = 2 if plan.storage.ome_zarr == "0.4" else 1
    levels = (
        plan.source.n_volumes * math.prod(map(ceil_div, level.output.shape, level.storage.shard)) + beside
        for level in plan.levels
    )
    return sum(levels) + beside


def _kind(plan: Plan, output: Place | None) -> list[str | int]:
    """Return what jobs have in common whose seconds say something of each other."""
    return [
        plan.device.name,
        plan.engine,
        plan.interpolation,
        plan.storage.codec_name,
        "gpu" if plan.device.encoding else "cpu",
        plan.host.helpers + 1,
        plan.host.workers,
        "store" if isinstance(output, ObjectPlace) else "disk",
        *(["decoded by the GPU"] if plan.device.decoding else []),
    ]


def _work(plan: Plan) -> int:
    read = plan.source.n_volumes * math.prod(plan.source.grid.shape)
    return plan.source.itemsize * int(plan.all_voxels + DECODE * read)


def _rates_file() -> Path | None:
    """Return the file of this user, or None where there is to be none, or no place for it is known."""
    if (given := os.environ.get(RATES)) is not None:
        return Path(given) if given else None
    import platformdirs

    path = platformdirs.user_cache_path("isovoxel", appauthor=False) / "rates.jsonl"
    return path if path.is_absolute() else None  # of a user without a home


def _jobs_like(kind: list[str | int]) -> list[tuple[float, float]]:
    """Return work and seconds of the latest jobs of a kind."""
    if (path := _rates_file()) is None:
        return []
    try:
        with path.open("rb") as file:
            lines = file.read(2 * MOST_BYTES).splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(
            ValueError, TypeError, KeyError, RecursionError
        ):  # of a line that is not whole, or not ours
            job = json.loads(line)
            work, seconds = float(job["work"]), float(job["seconds"])
            if job["kind"] == kind and 0 < work < math.inf and 0 < seconds < math.inf:
                found.append((work, seconds))
    return found[-LATEST:]


def _fitted(jobs: Sequence[tuple[float, float]], work: float) -> float:
    """Return the seconds of some work: of a and b from 0 on that minimise Σ ((a + b w) / s - 1)² those of a + b w."""
    pairs = [(1 / seconds, done / seconds) for done, seconds in jobs]
    ones, both, squares = (sum(p[i] * p[j] for p in pairs) for i, j in ((0, 0), (0, 1), (1, 1)))
    one, other = (sum(p[i] for p in pairs) for i in (0, 1))
    determinant = ones * squares - both**2
    if determinant > DISTINCT * ones * squares:
        fixed = (one * squares - other * both) / determinant
        rate = (other * ones - one * both) / determinant
        if fixed >= 0 and rate >= 0:
            return fixed + rate * work
    return work * other / squares


def _drop_first_half(path: Path) -> None:
    """Put the later half of a file in its place, whole lines."""
    kept = path.read_bytes()[-MOST_BYTES // 2 :].partition(b"\n")[2]
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(kept)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
