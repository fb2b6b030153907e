"""Faults, each with what mends it, and the sections of a diagnosis in which they are found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Fault(NamedTuple):
    """Something that is missing or broken."""

    what: str
    """A sentence, without its full stop."""
    mend: str
    """The command that mends it, or what to do where no command does."""
    fatal: bool = False
    """Whether no job can run before it is mended."""


@dataclass
class Section:
    """What was found about one thing."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    """Labels, and what they label."""
    record: dict[str, Any] = field(default_factory=dict)
    """The same as JSON values."""
    faults: list[Fault] = field(default_factory=list)
    """What is wrong."""

    @property
    def is_fatal(self) -> bool:
        """Whether no job can run."""
        return any(fault.fatal for fault in self.faults)
