"""Result of a job: what its caller is told when it is done, and the listener that adds it up.

`forecast` says what a job costs: files, bytes, and seconds, by those that jobs like it took before on this machine.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from isovoxel.execution.events import (
    BlockDone,
    DecodedByProcessor,
    EncodedByProcessor,
    Event,
    Filled,
    JobStarted,
    Restarted,
    Retried,
    Slowed,
    WorkerJoined,
    WorkerLeft,
)
from isovoxel.geometry.grid import ceil_div
from isovoxel.notebook import InNotebooks
from isovoxel.object_store.files import write_whole
from isovoxel.object_store.objects import ObjectPlace, Place
from isovoxel.planning.optimizer import DECODE
from isovoxel.planning.plan import Plan

if TYPE_CHECKING:  # a worker loads no readers for what it tells
    from isovoxel.readers.base import Volume

STAGES = ("read", "wait", "scale", "write", "flush")
"""Stages of a block, in their order."""


@dataclass
class Share:
    """What one worker did of a job."""

    host: str = ""
    """The machine that it ran on."""
    device: str = ""
    """The name of its device."""
    pci: str = ""
    """The device's PCI bus id, or nothing where it has none."""
    blocks: int = 0
    """Blocks that it made."""
    voxels: int = 0
    """Output voxels of those."""
    scale_seconds: float = 0.0
    """Time that its device spent on them, transfers included."""
    read_bytes: int = 0
    """Bytes of the voxels that it read, as they are in memory."""
    stored_bytes: int = 0
    """Bytes of the shards that it wrote."""
    left: str = ""
    """Why it left before the end, in a clause, or nothing."""


@dataclass
class Tally:
    """What happened; a listener."""

    stages: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    """Seconds of each stage, summed over all threads."""
    voxels: int = 0
    """Output voxels written, of all levels."""
    done_before: int = 0
    """Blocks that were done before, where the job went on."""
    split: int = 0
    """Blocks that the device took in pieces only."""
    pieces: int = 1
    """Most pieces of a block."""
    retries: int = 0
    """Reads, writes and blocks to be scaled that were tried again."""
    filled: list[str] = field(default_factory=list)
    """Damaged parts of the input that were filled."""
    restarts: int = 0
    """Fresh processes that the job went on in."""
    slowed_to: int | None = None
    """Blocks in flight at the end, where the host had too little memory for more."""
    encoded_by_processor: str = ""
    """Why the processor compressed where the GPU should have, if it did."""
    decoded_by_processor: str = ""
    """Why the processor decompressed where the GPU should have, if it did."""
    workers: dict[str, Share] = field(default_factory=dict)
    """What each worker did, by its name, where there are several."""

    @property
    def as_planned(self) -> bool:
        """Whether the whole job was done in one go, and nothing was done twice or in another way than planned."""
        coded_otherwise = self.encoded_by_processor or self.decoded_by_processor
        return not (self.done_before or self.retries or self.restarts or self.slowed_to or coded_otherwise)

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        match event:
            case JobStarted(done=done):
                self.done_before += done
            case BlockDone():
                self._add(event)
            case WorkerJoined() | WorkerLeft():
                self._note_worker(event)
            case Retried():
                self.retries += 1
            case Filled(part=part):
                if part not in self.filled:  # a fresh process meets them again
                    self.filled.append(part)
            case Slowed(in_flight=in_flight):
                self.slowed_to = in_flight
            case EncodedByProcessor() | DecodedByProcessor() | Restarted():
                self._note_change(event)

    def _note_change(self, event: EncodedByProcessor | DecodedByProcessor | Restarted) -> None:
        """Take note of an event after which the job goes on in another way."""
        match event:
            case EncodedByProcessor(reason=reason):
                self.encoded_by_processor = reason
            case DecodedByProcessor(reason=reason):
                self.decoded_by_processor = reason
            case Restarted():
                self.restarts += 1

    def _add(self, block: BlockDone) -> None:
        self.voxels += block.voxels
        self.split += block.pieces > 1
        self.pieces = max(self.pieces, block.pieces)
        for stage in self.stages:
            self.stages[stage] += getattr(block, f"{stage}_seconds")
        if block.worker:
            share = self.workers.setdefault(block.worker, Share())
            share.blocks += 1
            share.voxels += block.voxels
            share.scale_seconds += block.scale_seconds
            share.read_bytes += block.read_bytes
            share.stored_bytes += block.stored_bytes

    def _note_worker(self, event: WorkerJoined | WorkerLeft) -> None:
        share = self.workers.setdefault(event.name, Share())
        if isinstance(event, WorkerLeft):
            share.left = event.reason
        else:
            share.host, share.device, share.pci, share.left = event.host, event.device, event.pci, ""


@dataclass(frozen=True)
class ScaleResult(InNotebooks):
    """What a finished job did."""

    path: Path | str
    """The OME-Zarr that was written; its address where it lies in an object store."""
    plan: Plan
    """How."""
    seconds: float
    """Wall time of the job: reading, scaling and writing."""
    stages: dict[str, float]
    """Seconds spent reading, waiting for the device, scaling, encoding, waiting for the disk, and idle, summed over all
    blocks in flight; those that wait for the disk are in flight no more."""
    peak_host_bytes: int
    """Most memory that this process has held since it began."""
    tally: Tally
    """What else happened: blocks that were done before or scaled in pieces, attempts, parts that were filled."""
    expected: Forecast | None = None
    """What the job was expected to cost, by earlier ones; None where a part was done before, or all."""
    labels: ScaleResult | None = None
    """What the job of its labels did, where they were scaled with it."""
    images: Mapping[str, ScaleResult] = field(default_factory=dict)
    """What was done of each image, by its path in the output, where the job was one of several. Then the plan is that
    of the first of them, and times and what happened are those of all."""

    def open(self, level: int = 0) -> Any:
        """Return the voxels that were written as a dask array.

        Parameters
        ----------
        level
            Resolution level: 0 is the finest, of `plan.output.shape`; each further one is about half as large.

        Returns
        -------
        dask.array.Array
            Axes z, y, x; before them t and c, where the image has several time points or channels. Nothing is read
            until it is computed, and of a slice no more than it needs.

        Raises
        ------
        InputError
            If the output is not there any more.
        OptionError
            If it has no such level.
        """
        from isovoxel.readers.arrays import as_dask

        return as_dask(self._volume(level))

    def to_xarray(self, level: int = 0) -> Any:
        """Return the voxels that were written as an ``xarray.DataArray`` with the positions of their centres.

        Parameters
        ----------
        level
            Resolution level, as of `open`.

        Returns
        -------
        xarray.DataArray
            As lazy as `open`. Coordinates z, y and x are in the unit of the image, which their attribute "units" names;
            positions of all levels are in the same world. Where the input's voxel size was not known they count its
            voxels, without a unit. The array is called as the output's folder without endings.

        Raises
        ------
        InputError
            If the output is not there any more.
        OptionError
            If it has no such level.
        ImportError
            If xarray is not installed.
        """
        from isovoxel.readers.arrays import as_xarray

        return as_xarray(self._volume(level), PurePath(str(self.path)).name.split(".")[0])

    def _volume(self, level: int) -> Volume:
        """Return a level of the output, by a path that is the same in processes whose working folders are others."""
        from isovoxel.object_store.objects import absolute, place_of
        from isovoxel.readers.open import open_volume
        from isovoxel.readers.selection import Selection

        place = absolute(place_of(self.path))
        return open_volume(place, selection=Selection(level=level))

    @property
    def workers(self) -> dict[str, Share]:
        """What each worker did, by its name; empty where this process did it all."""
        return self.tally.workers

    @property
    def voxels_per_second(self) -> float:
        """Output voxels per second of wall time, of those that were made; 0 where none had to be."""
        return self.tally.voxels / self.seconds if self.seconds else 0.0


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
    kind, work = _kind_and_work(plan, output)
    jobs = _jobs_like(kind)
    return Forecast(_fitted(jobs, work) if jobs else None, plan.disk_bytes, count_files(plan))


def count_files(plan: Plan) -> int:
    """Return how many files or objects the output of a plan has at most: what is nothing but zeros has none."""
    # Those of the group, and of each level its shards and its metadata.
    beside = 2 if plan.storage.ome_zarr == "0.4" else 1
    shards = (math.prod(map(ceil_div, level.output.shape, level.storage.shard)) for level in plan.levels)
    return beside + sum(plan.source.n_volumes * each + beside for each in shards)


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
    kind, work = _kind_and_work(plan, output)
    line = json.dumps({"kind": kind, "work": work, "seconds": round(seconds, 3)}) + "\n"
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            file.write(line.encode())
            length = file.tell()
        if length > MOST_BYTES:
            # Its later half, whole lines.
            write_whole(path, path.read_bytes()[-MOST_BYTES // 2 :].partition(b"\n")[2])


def _kind_and_work(plan: Plan, output: Place | None) -> tuple[list[str | int], int]:
    """Return what jobs have in common whose seconds say something of each other, and the work of this one."""
    read = plan.source.n_volumes * math.prod(plan.source.grid.shape)
    kind = [
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
    return kind, plan.source.itemsize * int(plan.all_voxels + DECODE * read)


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
