"""Workers that options name: which they are, and for how long they are lent."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from isovoxel.errors import OptionError
from isovoxel.execution.events import Event, Listener
from isovoxel.options import Options

if TYPE_CHECKING:  # distributed is loaded where there are workers
    from isovoxel.execution.distributed.connect import Cluster


def open_cluster(
    options: Options, client: Any, *, source: Any = None, listeners: Sequence[Listener] = ()
) -> AbstractContextManager[Cluster | None]:
    """Lend the workers that options or a client name for a while, or None where nothing names any.

    Parameters
    ----------
    options
        Which workers, and what is asked of each.
    client
        A ``distributed.Client`` in place of the options that name workers, or None.
    source
        As in `isovoxel.scale`.
    listeners
        Told which workers there are, and where the job has to wait for one.

    Raises
    ------
    OptionError
        If the options do not go together.
    IsovoxelError
        If the workers cannot be used.
    """
    ways = {"workers": options.workers, "scheduler": options.scheduler, "client": client}
    names = [name for name, value in ways.items() if value is not None]
    if len(names) > 1:
        raise OptionError(f"{' and '.join(names)} each say which workers there are; give only one of them")
    if not names:
        return nullcontext()
    if options.isolate:
        raise OptionError(
            f"isolate and {names[0]} do not go together: workers are processes of their own; leave it out"
        )
    if options.or_new("device") != "auto":
        raise OptionError(
            f"device says where this process computes, and with {names[0]} each worker holds a device of its own; "
            "leave it out, and choose with ISOVOXEL_DEVICE in the worker's environment"
        )
    check_reachable(source)
    from isovoxel.execution.distributed.connect import connected
    from isovoxel.execution.distributed.worker_info import WorkerOptions

    def tell(event: Event) -> None:
        for listener in listeners:
            listener(event)

    wishes = WorkerOptions(options.memory_bytes, options.device_memory_bytes, options.threads)
    return connected(**ways, wishes=wishes, listener=tell)


def check_reachable(source: Any) -> None:
    """Refuse an input that no worker can open.

    Raises
    ------
    OptionError
        If it is an array in this process' memory.
    """
    if isinstance(source, np.ndarray) or isinstance(getattr(source, "data", None), np.ndarray):  # a DataArray of one
        raise OptionError(
            "an array in this process' memory is not there for workers; write it to a file that they see, such as .npy "
            "or zarr, and give its path"
        )
