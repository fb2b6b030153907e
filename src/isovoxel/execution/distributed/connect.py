"""Connect to a job's workers: those of this machine, of a scheduler, or of a caller's client."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isovoxel.errors import ClusterError, InterruptedJobError, OptionError, clause
from isovoxel.execution.events import Connected, Event, Listener, Waiting
from isovoxel.execution.flushing import FLUSHING
from isovoxel.object_store.files import read_small
from isovoxel.options import Options
from isovoxel.planning.model import DeviceLimits, HostLimits

if TYPE_CHECKING:  # jobs without workers load neither this nor distributed
    from isovoxel.execution.distributed.worker_info import WorkerOptions, WorkerPool

CONNECT_SECONDS = 10
"""How long a scheduler may take to answer."""
FIRST_WORKER_SECONDS = 300.0
"""How long a scheduler may have no worker: a queue may have to start one."""
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Cluster:
    """A scheduler and its workers, for one job."""

    client: Any
    """A ``distributed.Client``."""
    pool: WorkerPool
    """The workers, as they were when the job was planned."""
    requested: WorkerOptions
    """What the user requested of each of them."""
    ends: bool = False
    """Whether the workers end with the cluster."""
    left: list[str] = field(default_factory=list)
    """Names of plugins of jobs that are done, where workers end sooner than they take them back."""

    def limits(self, engine: str) -> tuple[DeviceLimits, HostLimits]:
        """Return what every worker keeps, for an engine; see `WorkerPool.device`."""
        return self.pool.device(engine), self.pool.host

    def clesperanto(self) -> tuple[str, str]:
        """Return package and version of the clEsperanto that all workers have, or nothing and the reason."""
        from isovoxel.execution.distributed.worker_info import same_clesperanto

        return same_clesperanto(self.client, self.pool)

    @property
    def dashboard(self) -> str:
        """Address of the scheduler's dashboard, or nothing where it has none."""
        services = self.client.scheduler_info(n_workers=0)["services"]
        return str(self.client.dashboard_link) if "dashboard" in services else ""


def open_cluster(
    options: Options, client: Any, *, source: Any = None, listeners: Sequence[Listener] = ()
) -> AbstractContextManager[Cluster | None]:
    """Return a context manager of the workers that options or a client name, or of None where nothing names any.

    Parameters
    ----------
    options
        Which workers, and what is asked of each.
    client
        A ``distributed.Client`` in place of the options that name workers, or None.
    source
        As in `isovoxel.scale`.
    listeners
        Receives which workers there are, and that the job waits for one.

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
    from isovoxel.execution.distributed.worker_info import WorkerOptions

    def tell(event: Event) -> None:
        for listener in listeners:
            listener(event)

    requested = WorkerOptions(options.memory_bytes, options.device_memory_bytes, options.threads)
    return connected(**ways, engine=options.engine, requested=requested, listener=tell)


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


@contextlib.contextmanager
def connected(
    *,
    workers: str | int | None = None,
    scheduler: str | Path | None = None,
    client: Any = None,
    engine: str | None = None,
    requested: WorkerOptions | None = None,
    listener: Listener = lambda _event: None,
) -> Iterator[Cluster]:
    """Connect to the workers that exactly one of three options names, and survey them; a context manager.

    Parameters
    ----------
    workers
        Workers of this machine, which are started and end here, see `isovoxel.execution.distributed.local_workers`.
    scheduler
        Address of a scheduler, or path of its scheduler file.
    client
        A ``distributed.Client``, which stays open.
    engine
        The one that the user names, if any.
    requested
        What the user requests of each worker.
    listener
        Receives which workers there are, and that the job waits for one.

    Raises
    ------
    ClusterError
        If there is no such scheduler, or its workers cannot be used.
    OptionError
        If an option makes no sense.
    """
    from isovoxel.execution.distributed.worker_info import WorkerOptions, survey

    requested = requested or WorkerOptions()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet())
        try:
            import distributed

            if client is not None:
                if not isinstance(client, distributed.Client) or client.asynchronous:
                    raise OptionError(
                        "client must be a distributed.Client that is synchronous, as Client(address) makes it"
                    )
                if client.status != "running":
                    raise ClusterError(f"the client is {client.status}; give one that is connected")
            elif scheduler is not None:
                client = stack.enter_context(_client(_address(scheduler)))
            else:
                from isovoxel.execution.distributed.local_workers import start

                started = stack.enter_context(start(str(workers), requested.threads, engine))
                client, requested = stack.enter_context(_client(started)), replace(requested, flushing=FLUSHING)
            _await_worker(client, listener)
            cluster = Cluster(client, survey(client, requested), requested, ends=workers is not None)
        except InterruptedJobError:
            raise
        except KeyboardInterrupt as stop:  # here too processes that were started have to end
            raise InterruptedJobError("interrupted before the job began", getattr(stop, "signal", None)) from None
        listener(Connected(cluster.dashboard, cluster.pool.notes))
        yield cluster


def _address(scheduler: str | Path) -> str:
    """Return the address of a scheduler, from its scheduler file if need be."""
    text = str(scheduler)
    if "://" in text:
        return text
    try:
        return str(json.loads(read_small(text))["address"])
    except FileNotFoundError:
        raise ClusterError(
            f"scheduler must be an address such as tcp://host:8786, or a scheduler file, and there is no file {text!r}"
        ) from None
    except OSError as error:
        raise ClusterError(f"the scheduler file {text} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ClusterError(f"{text} is no scheduler file; give the one that dask scheduler writes") from None


@contextlib.contextmanager
def _client(where: Any) -> Iterator[Any]:
    """Connect a client to the scheduler at an address, or to a cluster's; a context manager."""
    import warnings

    from distributed import Client
    from distributed.versions import VersionMismatchWarning

    try:
        with warnings.catch_warnings():  # what matters of it the survey says, in a sentence
            warnings.simplefilter("ignore", VersionMismatchWarning)
            client = Client(where, timeout=CONNECT_SECONDS, set_as_default=False, name="isovoxel")  # type: ignore[no-untyped-call]
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(
            f"the scheduler at {where} does not answer ({clause(error)}); is it running, and can this host reach it?"
        ) from error
    with client:
        yield client


def _await_worker(client: Any, listener: Listener) -> None:
    deadline, told = time.monotonic() + FIRST_WORKER_SECONDS, False
    while not client.nthreads():
        if not told:
            listener(Waiting(FIRST_WORKER_SECONDS))
            told = True
        if time.monotonic() > deadline:
            raise ClusterError(
                f"the scheduler at {client.scheduler.address} has no worker after {FIRST_WORKER_SECONDS:g} s; "
                f"start one: dask worker {client.scheduler.address} --preload isovoxel.worker"
            )
        time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep distributed's log of lost connections off the terminal: the job reports them itself."""
    handlers = [(handler, handler.level) for handler in logging.getLogger("distributed").handlers]
    for handler, _ in handlers:
        handler.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for handler, level in handlers:
            handler.setLevel(level)
