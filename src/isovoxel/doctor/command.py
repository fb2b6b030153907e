"""The command ``isovoxel doctor``: it prints the diagnosis, and its exit code says whether jobs can run."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from isovoxel.doctor.diagnosis import Diagnosis, diagnose
from isovoxel.terminal import DEBUG, columns, put, say, switched_on

COMMAND = "doctor"
JSON = "--json"


def is_asked(words: Sequence[str]) -> bool:
    """Return whether a command line asks for the doctor, in words that need no parser."""
    return COMMAND in words and not set(words) - {COMMAND, JSON, "--debug"} and words.count(COMMAND) == 1


def run(words: Sequence[str]) -> int:
    """Run the command without the command line's parser, which may be what is broken."""
    if "--debug" in words:
        os.environ[DEBUG] = "1"
    return show(as_json=JSON in words or switched_on("ISOVOXEL_JSON"))


def show(*, as_json: bool) -> int:
    """Print a diagnosis, and return the exit code: 2 where no job can run."""
    if not as_json:
        say("trying packages, drivers and engines, which takes some seconds")
    found = diagnose()
    put([json.dumps(found.record)] if as_json else lines(found))
    return 0 if found.jobs_run else 2


def lines(found: Diagnosis) -> list[str]:
    """Return a diagnosis as lines: the table, each fault with what mends it, and what that means."""
    told: list[tuple[str, str]] = []
    for fault in found.faults:
        told += [("", ""), ("fault" if fault.fatal else "warning", fault.what), ("to mend it", fault.mend)]
    verdict = "jobs run here" if found.jobs_run else "no job can run here before the faults are mended"
    if found.jobs_run and found.faults:
        verdict += ", but see the warnings" if len(found.faults) > 1 else ", but see the warning"
    return [line.rstrip() for line in columns([*found.rows, *told, ("", ""), ("verdict", verdict)])]
