"""What did a job do? What its caller is told when it is done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from isovoxel.execution.tally import Share, Tally
from isovoxel.notebook import InNotebooks
from isovoxel.planning.plan import Plan


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
    labels: ScaleResult | None = None
    """What the job of its labels did, where they were scaled with it."""

    @property
    def workers(self) -> dict[str, Share]:
        """What each worker did, by its name; empty where this process did it all."""
        return self.tally.workers

    @property
    def voxels_per_second(self) -> float:
        """Output voxels per second of wall time, of those that were made; 0 where none had to be."""
        return self.tally.voxels / self.seconds if self.seconds else 0.0
