"""What does it mean that something came back from a worker, or that nothing does?"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from isovoxel.errors import JobError


class Answer(enum.Enum):
    """What a result means."""

    DONE = enum.auto()
    """The block is done."""
    AGAIN = enum.auto()
    """It is not, and anybody may try."""
    ELSEWHERE = enum.auto()
    """It is not, and another worker may try, if there is one."""
    BROKEN = enum.auto()
    """It is not, and this worker will do no other either."""
    RESTART = enum.auto()
    """It is not, and this worker may do so in a fresh process."""


@dataclass(frozen=True, slots=True)
class BlockOutcome:
    """What a result means, and why."""

    answer: Answer
    """What it means."""
    reason: str = ""
    """Why, in a clause, where the block is not done."""
    failure: Exception | None = None
    """What ends the job where nobody else may try."""


class NoWorkersLeftError(JobError):
    """No worker can continue; says why, in a clause."""


class SchedulerGoneError(NoWorkersLeftError):
    """The scheduler does not answer any more."""
