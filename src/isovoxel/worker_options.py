"""Which workers do a caller's options name? Those are lent for as long as a job, or a question, takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isovoxel.errors import OptionError
from isovoxel.execution.events import Event, Listener
from isovoxel.keywords import checked_keywords
from isovoxel.options import ScalingOptions, parse_size, parse_threads

if TYPE_CHECKING:  # distributed is loaded by who has workers
    from isovoxel.execution.distributed.connect import Cluster
    from isovoxel.execution.distributed.worker_info import WorkerInfo


@checked_keywords()
def workers(
    *, workers: str | int | None = None, scheduler: str | Path | None = None, client: Any = None
) -> tuple[WorkerInfo, ...]:
    """Return the workers that a job would have, and which device each of them holds.

    Parameters
    ----------
    workers, scheduler, client
        Which, as in `scale`; one of them.

    Raises
    ------
    IsovoxelError
        If none is given, or they cannot be used.
    """
    given = {"workers": workers, "scheduler": scheduler, "client": client}
    with lend_cluster(given, {}) as cluster:
        if cluster is None:
            raise OptionError("no workers are named; give one of workers, scheduler and client")
        return cluster.fleet.members


def lend_cluster(
    given: Mapping[str, Any],
    options: ScalingOptions,
    *,
    source: Any = None,
    isolate: bool = False,
    listeners: Sequence[Listener] = (),
) -> AbstractContextManager[Cluster | None]:
    """Lend the workers that options name, or nothing where they name none.

    Parameters
    ----------
    given
        What the options ``workers``, ``scheduler`` and ``client`` say, None where they say nothing.
    options
        What the caller asks of each worker.
    source, isolate
        As in `isovoxel.scale`.
    listeners
        Told which workers there are, and where the job has to wait for one.

    Raises
    ------
    IsovoxelError
        If the options do not go together, or the workers cannot be used.
    """
    from isovoxel.execution.distributed.choice import check_choice

    if not check_choice(given, source=source, device=options.get("device") or "auto", isolate=isolate):
        return nullcontext()
    from isovoxel.execution.distributed.connect import connected
    from isovoxel.execution.distributed.worker_info import WorkerOptions

    def tell(event: Event) -> None:
        for listener in listeners:
            listener(event)

    wishes = WorkerOptions(
        parse_size("memory", options.get("memory")),
        parse_size("device memory", options.get("device_memory")),
        parse_threads(options),
    )
    return connected(**given, wishes=wishes, listener=tell)
