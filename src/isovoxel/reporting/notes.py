"""Notes: the lines that a job's events make for people, beside its progress."""

from __future__ import annotations

from collections.abc import Iterator

from isovoxel.engines.opencl import prepare_caches
from isovoxel.execution.events import (
    BlockDone,
    Connected,
    DecodedByProcessor,
    EncodedByProcessor,
    Event,
    Filled,
    ImageFailed,
    ImagesStarted,
    JobStarted,
    Restarted,
    Retried,
    Slowed,
    Waiting,
    WorkerJoined,
    WorkerLeft,
    hindrance,
)
from isovoxel.planning.plan import Plan


class Notes:
    """Makes lines of events; what happens to many blocks is said once."""

    def __init__(self) -> None:
        self._blocks = 0
        self._pieces = 1
        self._said: set[str] = set()
        self._gone: set[str] = set()
        self._several = False

    def of(self, event: Event) -> Iterator[str]:
        """Yield what there is to say of an event; of several images what is the same for them is said once."""
        for line in self._of(event):
            if not (self._several and isinstance(event, JobStarted) and line in self._said):
                yield line
            if self._several:
                self._said.add(line)

    def _of(self, event: Event) -> Iterator[str]:
        match event:
            case ImagesStarted() | ImageFailed():
                yield from self._of_images(event)
            case JobStarted():
                yield from self._of_start(event)
            case BlockDone(pieces=pieces) if pieces > self._pieces:
                self._pieces = pieces
                yield f"note: the device has too little memory for a block; {pieces} pieces of one fit"
            case Retried(level=level):
                block = "" if event.index is None else f" block {event.index}" + (f" of level {level}" if level else "")
                yield (f"note: {event.doing}{block} failed ({event.reason}); it is tried again in {event.pause:g} s")
            case Filled(part=part):
                yield f"note: filled with 0, because it is damaged: {part}"
            case Slowed() | EncodedByProcessor() | DecodedByProcessor() | Restarted():
                yield from self._of_hindrance(event)
            case Connected() | WorkerJoined() | WorkerLeft() | Waiting():
                yield from self._of_workers(event)

    def _of_start(self, event: JobStarted) -> Iterator[str]:
        plan, done = event.plan, event.done
        self._blocks = plan.all_blocks
        if plan.device.kind == "cpu":
            yield f"note: the CPU scales, not a GPU ({plan.device.name})"
        if done:
            of = f" of {plan.source.name}" if self._several else ""
            yield f"note: resuming: {done} of {plan.all_blocks} blocks{of} already done"
        yield from hints(plan)

    def _of_images(self, event: ImagesStarted | ImageFailed) -> Iterator[str]:
        if isinstance(event, ImageFailed):
            yield f"note: image {event.path} is left out: {event.reason}"
            return
        self._several = True
        if event.complete:
            yield f"note: resuming: {event.complete} of {event.images} images already complete"

    def _of_hindrance(self, event: Slowed | EncodedByProcessor | DecodedByProcessor | Restarted) -> Iterator[str]:
        """Yield what there is to say of an event after which the job goes on in another way."""
        said, repeated = hindrance(event), isinstance(event, EncodedByProcessor | DecodedByProcessor)
        if not repeated or said not in self._said:  # by another worker
            yield f"note: {said}"
        if repeated:
            self._said.add(said)

    def _of_workers(self, event: Event) -> Iterator[str]:
        """Yield what there is to say of workers; of those that are there from the beginning the summary tells."""
        match event:
            case Connected(dashboard=dashboard, notes=notes):
                if dashboard:
                    yield f"dashboard: {dashboard}"
                for note in notes:
                    yield f"note: {note}"
            case WorkerJoined(name=name, host=host, device=device) if name in self._gone:
                self._gone.remove(name)
                yield f"note: worker {name} on {host} is there again, with {device}"
            case WorkerLeft(name=name, reason=reason, log=log):
                self._gone.add(name)
                yield f"note: worker {name} does no more blocks: {reason}"
                for line in log:
                    yield f"  {name}: {line}"
            case Waiting(seconds=seconds, what=what) if what:
                yield f"note: the job waits for {what}, for up to {seconds:g} s"
            case Waiting(seconds=seconds):
                yield f"note: no worker is there; the job waits for one, for up to {seconds:g} s"


def hints(plan: Plan) -> Iterator[str]:
    """Yield what a user may not know of a plan."""
    yield from (f"note: {note}" for note in (*plan.source.notes, prepare_caches().note) if note)
    if plan.coarse:
        yield (
            f"hint: between two voxels cle.scale takes 256 steps on a GPU, coarser than {plan.source.dtype}; "
            "--engine exact has no steps"
        )
    if plan.aliases:
        axes = " and ".join(plan.aliases)
        yield f"hint: shrinking along {axes} skips voxels, which aliases; --antialias averages them"
