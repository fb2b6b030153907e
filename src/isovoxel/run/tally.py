"""What happened in a job, all in all? A listener that adds up."""

from __future__ import annotations

from dataclasses import dataclass, field

from isovoxel.run.events import BlockDone, Event, Filled, JobStarted, Restarted, Retried, Slowed

STAGES = ("read", "wait", "scale", "write", "flush")
"""Stages of a block, in their order."""


@dataclass
class Tally:
    """What happened; a listener."""

    stages: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    """Seconds of each stage, summed over all threads."""
    voxels: int = 0
    """Output voxels written."""
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

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        match event:
            case JobStarted(done=done):
                self.done_before = done
            case BlockDone():
                self.voxels += event.voxels
                self.split += event.pieces > 1
                self.pieces = max(self.pieces, event.pieces)
                for stage in self.stages:
                    self.stages[stage] += getattr(event, f"{stage}_seconds")
            case Retried():
                self.retries += 1
            case Filled(part=part):
                if part not in self.filled:  # a fresh process meets them again
                    self.filled.append(part)
            case Slowed(in_flight=in_flight):
                self.slowed_to = in_flight
            case Restarted():
                self.restarts += 1
