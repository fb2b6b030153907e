"""Log a job's events by Python's ``logging``, under the name "isovoxel".

Nothing is printed unless the user configures logging: ``logging.basicConfig(level="INFO")`` is enough. What a user
should look at is a warning, how a job proceeds is info, and every block is for debugging.
"""

from __future__ import annotations

import logging

from isovoxel.execution.events import (
    BlockDone,
    Connected,
    Event,
    Filled,
    JobFinished,
    JobStarted,
    JobStopped,
    LevelBegun,
    Restarted,
    Retried,
    Slowed,
    Waiting,
    WorkerJoined,
    WorkerLeft,
)
from isovoxel.terminal import plain


def _harmless(record: logging.LogRecord) -> bool:
    """Leave no control character in a message: most handlers write to a terminal."""
    record.msg, record.args = plain(record.getMessage()), None
    return True


logger = logging.getLogger("isovoxel")
logger.addFilter(_harmless)
logger.addHandler(logging.NullHandler())  # without it, warnings would land on standard error


def log_event(event: Event) -> None:
    """Log an event; a listener."""
    match event:
        case JobStarted(plan=plan, done=done):
            logger.info("job begins: %d of %d blocks are done, output %s", done, plan.all_blocks, plan.output.shape)
        case LevelBegun(level=level, levels=levels):
            logger.info("level %d of %d begins", level, levels)
        case BlockDone():
            logger.debug("%s is done%s", _block(event), f" by {event.worker}" if event.worker else "")
        case Retried():
            again = f"tried again in {event.pause:g} s"
            what = event.doing if event.index is None else f"{event.doing} {_block(event)}"
            logger.warning("%s failed (%s); %s", what, event.reason, again)
        case Filled(part=part):
            logger.warning("filled, because it is damaged: %s", part)
        case Slowed(in_flight=in_flight):
            logger.warning("the host has too little memory; from now on %d blocks are in flight", in_flight)
        case Restarted(reason=reason):
            logger.warning("%s; the job goes on in a fresh process", reason)
        case Connected() | WorkerJoined() | WorkerLeft() | Waiting():
            _log_worker(event)
        case JobStopped() | JobFinished():
            _log_end(event)


def _log_end(event: JobStopped | JobFinished) -> None:
    if isinstance(event, JobStopped):
        logger.info("job ends before its time: %d blocks are done", event.done)
    else:
        logger.info("job is done, in %.1f s", event.seconds)


def _block(event: BlockDone | Retried) -> str:
    return f"block {event.index}" + (f" of level {event.level}" if event.level else "")


def _log_worker(event: Connected | WorkerJoined | WorkerLeft | Waiting) -> None:
    match event:
        case Connected(dashboard=dashboard, notes=notes):
            logger.info("connected to workers%s", f", dashboard {dashboard}" if dashboard else "")
            for note in notes:
                logger.warning("%s", note)
        case WorkerJoined():
            logger.info("worker %s on %s takes part, with %s %s", event.name, event.host, event.device, event.pci)
        case WorkerLeft(name=name, reason=reason, log=log):
            logger.warning("worker %s does no more blocks: %s", name, reason)
            for line in log:
                logger.warning("%s: %s", name, line)
        case Waiting(seconds=seconds, what=what) if what:
            logger.warning("the job waits for %s, for up to %g s", what, seconds)
        case Waiting(seconds=seconds):
            logger.warning("no worker is there; the job waits for one, for up to %g s", seconds)
