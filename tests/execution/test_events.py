"""Jobs tell Python's logging what happens, and print nothing by themselves."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

import isovoxel
from isovoxel.execution.events import (
    BlockDone,
    Connected,
    DecodedByProcessor,
    EncodedByProcessor,
    Event,
    Filled,
    ImageBegun,
    ImageFailed,
    ImagesFinished,
    ImagesStarted,
    JobFinished,
    JobStarted,
    JobStopped,
    LevelBegun,
    Replacing,
    Restarted,
    Retried,
    Slowed,
    Waiting,
    WorkerJoined,
    WorkerLeft,
    log_event,
)

SAID: list[tuple[Event, int, str]] = [
    (BlockDone(3, 10, 0, 0, 0, 0, 0, worker="w1"), logging.DEBUG, "block 3 is done by w1"),
    (BlockDone(3, 10, 0, 0, 0, 0, 0, level=2), logging.DEBUG, "block 3 of level 2 is done"),
    (LevelBegun(1, 3), logging.INFO, "level 1 of 3 begins"),
    (Retried(3, "writing", "?", 1, 2), logging.WARNING, "writing block 3 of level 2 failed (?); tried again in 1 s"),
    (Retried(3, "reading", "EIO", 0.2), logging.WARNING, "reading block 3 failed (EIO); tried again in 0.2 s"),
    (Filled("chunk 1"), logging.WARNING, "filled, because it is damaged: chunk 1"),
    (DecodedByProcessor("no room"), logging.WARNING, "the processor decompresses in the GPU's place: no room"),
    (EncodedByProcessor("no room"), logging.WARNING, "the processor compresses in the GPU's place: no room"),
    (Slowed(2), logging.WARNING, "the host has too little memory; from now on 2 blocks are in flight"),
    (Restarted("it died"), logging.WARNING, "it died; the job goes on in a fresh process"),
    (Waiting(60), logging.WARNING, "no worker is there; the job waits for one, for up to 60 s"),
    (Waiting(20, "workers to end"), logging.WARNING, "the job waits for workers to end, for up to 20 s"),
    (Connected("http://a", ()), logging.INFO, "connected to workers, dashboard http://a"),
    (WorkerJoined("w1", "host", "H100", "0:1"), logging.INFO, "worker w1 on host takes part, with H100 0:1"),
    (WorkerLeft("w1", "lost"), logging.WARNING, "worker w1 does no more blocks: lost"),
    (JobStopped(3, 60), logging.INFO, "job ends before its time: 3 blocks are done"),
    (JobFinished(1.25), logging.INFO, "job is done, in 1.2 s"),
    (ImagesStarted(8, 2, 40, 9000), logging.INFO, "8 images, of which 2 are complete, 40 blocks in all"),
    (ImageBegun("A/1/0", 3, 8), logging.INFO, "image 3 of 8 begins: A/1/0"),
    (ImageFailed("A/1/0", "it is damaged"), logging.WARNING, "image A/1/0 is left out: it is damaged"),
    (
        Replacing("labels/a"),
        logging.WARNING,
        "the old output is replaced, and with it labels/a, not made again by this job",
    ),
    (ImagesFinished(1.25), logging.INFO, "all images are done, in 1.2 s"),
]


@pytest.mark.parametrize(("event", "level", "text"), SAID, ids=lambda value: type(value).__name__)
def test_every_event_is_a_record(event: Event, level: int, text: str, caplog: pytest.LogCaptureFixture) -> None:
    """At the level that says who should look at it."""
    with caplog.at_level(logging.DEBUG, "isovoxel"):
        log_event(event)
    assert caplog.record_tuples == [("isovoxel", level, text)]


def test_no_event_is_left_out() -> None:
    """Of all that there are, those above and the start, which a job below logs."""
    assert {type(event) for event, _, _ in SAID} | {JobStarted} == set(get_args(Event))


def test_lines_of_a_lost_worker_and_notes_of_a_cluster_are_warnings(caplog: pytest.LogCaptureFixture) -> None:
    """Each by itself, and no formatting is tried on them."""
    with caplog.at_level(logging.WARNING, "isovoxel"):  # distributed quietens the handlers of pytest too
        log_event(WorkerLeft("w1", "lost", ("a %s line",)))
        log_event(Connected("", ("two workers share a GPU",)))
    assert [record.getMessage() for record in caplog.records] == [
        "worker w1 does no more blocks: lost",
        "w1: a %s line",
        "two workers share a GPU",
    ]


def test_a_job_logs_its_beginning_blocks_and_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """For whoever turns logging on."""
    with caplog.at_level(logging.DEBUG, "isovoxel"):
        isovoxel.scale(np.zeros((4, 5, 6), "float32"), tmp_path / "a.zarr", factor=(1, 1, 1), levels=1)
    *said, end = [record.getMessage() for record in caplog.records]
    assert said == [
        "job begins: 0 of 2 blocks are done, output (4, 5, 6)",
        "block 0 is done",
        "level 1 of 1 begins",
        "block 0 of level 1 is done",
    ]
    assert end.startswith("job is done, in ")


def test_nothing_is_printed_by_default() -> None:
    """Not even warnings, which Python prints of loggers that nobody handles."""
    program = (
        "from isovoxel.execution.events import log_event; "
        "from isovoxel.execution.events import Slowed; log_event(Slowed(1));"
        "import logging; logging.basicConfig(); log_event(Slowed(2))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "WARNING:isovoxel:the host has too little memory; from now on 2 blocks are in flight"
    ]


def test_what_reads_without_a_job_logs_no_control_character() -> None:
    """What is tried again says what a server said, and a terminal would obey that."""
    program = (
        "import logging; from isovoxel.object_store.retries import Patience; told = Patience().told;"
        "told(OSError('a'), 1); logging.basicConfig(); told(OSError('\x1b]0;b\x07'), 1)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.startswith("WARNING:isovoxel:")
    assert done.stderr.removesuffix("\n").isprintable()
