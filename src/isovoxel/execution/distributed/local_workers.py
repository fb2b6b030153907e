"""Start and end workers of this machine: a process for each device, which ends with this one.

A worker's environment names the device that it holds before OpenCL is loaded: processes are spawned, not forked.
distributed's nannies, in this process, watch them and start another one where one dies.

A scheduler runs whatever it receives, and other users of the machine reach its port. So connections need a key (TLS),
which is made for this cluster and kept in the memory of its processes.

They leave Ctrl-C to this process, which a terminal sends to all of its processes, and so do those that a nanny starts
in place of one that died. What they log is kept for the client to ask for. They end with this process, even where that
is killed: each waits for the end of a pipe that it holds.
"""

from __future__ import annotations

import logging
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context, resource_tracker
from pathlib import Path
from typing import Any

import dask
from distributed import Nanny, Scheduler, SpecCluster, Status, Worker
from distributed.security import Security

from isovoxel.engines.devices import SHOWN, list_devices, nvidia_gpus
from isovoxel.engines.opencl import prepare_caches
from isovoxel.errors import ClusterError, OptionError, clause, shown_value
from isovoxel.execution.distributed.worker_info import DEVICE, ENGINE
from isovoxel.execution.flushing import FLUSHING
from isovoxel.execution.resources import FEWEST_THREADS, MOST_THREADS, cores

log = logging.getLogger("distributed.nanny.isovoxel")

LOOPBACK = "127.0.0.1"
MOST_ON_A_CORE = 16
"""Most workers for each core: more is a mistake, and would fill memory and process table before anything is done."""
KEPT_MESSAGES = 20
"""How many messages to a worker a scheduler keeps for debugging."""
HUNG_SECONDS = 30.0
"""After how long without a sign of life the scheduler lets a worker's nanny start another process in its place."""
_TERMINAL = [getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)]
"""Signals that a terminal sends to all of its processes."""


def environments(workers: str) -> list[dict[str, str]]:
    """Return the environment of each worker that ``--workers`` means: it shows it one GPU, by its UUID if it has one.

    Parameters
    ----------
    workers
        "auto" for all GPUs, a number for as many of them, or "cpu:4" for four that share the processor's cores.

    Raises
    ------
    OptionError
        If it is none of these, there are not so many GPUs, or far more workers than cores.
    """
    kind, _, count = workers.rpartition(":")
    if workers != "auto" and not (kind in ("", "cpu") and count.isdecimal() and _number(count) > 0):
        raise OptionError(
            f"workers must be auto, a number of GPUs, or cpu: and a number such as cpu:4, not {shown_value(workers)}"
        )
    if kind == "cpu" and _number(count) > (most := MOST_ON_A_CORE * cores()):
        raise OptionError(
            f"workers {_short(workers)} are more processes than the {most} that {cores()} cores can serve; "
            f"use --workers cpu:{cores()}"
        )
    if kind == "cpu":
        return [_cpu_environment(int(count))] * int(count)
    gpus = [{DEVICE: uuid, SHOWN: uuid} for uuid in nvidia_gpus()] or [
        {DEVICE: gpu.uuid, SHOWN: gpu.uuid} if gpu.uuid else {DEVICE: str(gpu.index)}
        for gpu in list_devices()
        if gpu.kind == "gpu"
    ]
    if not gpus:
        raise OptionError(f"workers {_short(workers)} means GPUs, and none is here; use --workers cpu:{cores()}")
    if count.isdecimal() and _number(count) > len(gpus):
        raise OptionError(
            f"workers {_short(workers)} means as many GPUs, and only {len(gpus)} are here; use --workers auto"
        )
    return gpus if workers == "auto" else gpus[: int(count)]


def start(workers: str, threads: int | None, engine: str | None = None) -> Any:
    """Start workers of this machine; return their ``distributed.SpecCluster`` once all have joined.

    Parameters
    ----------
    workers
        Which, as in `environments`.
    threads
        Blocks in flight on each; by default its share of the cores, and at least three.
    engine
        The one that the user names, if any: workers load no other.

    Raises
    ------
    ClusterError
        If they do not start.
    OptionError
        As `environments`.
    """
    given = [environment | ({ENGINE: engine} if engine else {}) for environment in environments(workers)]
    start_tracker()
    _check_semaphores()
    prepare_caches()  # a temporary folder of kernels is this process', which removes it: workers are killed
    in_flight = threads or min(MOST_THREADS, max(FEWEST_THREADS, cores() // len(given)))
    security = Security.temporary()  # type: ignore[no-untyped-call]
    options: dict[str, Any] = {
        "security": security,
        "protocol": "tls://",
        "worker_class": QuietWorker,
        "nthreads": in_flight * (1 + FLUSHING),
        "memory_limit": 0,  # the plan keeps the budget, and nothing is kept between blocks that could be spilled
        "host": LOOPBACK,
        "dashboard_address": f"{LOOPBACK}:0",
        "dashboard": False,
        "preload": ["isovoxel.worker"],
        "preload_argv": [[]],
    }
    workers_of = {
        number: {"cls": QuietNanny, "options": options | {"env": environment}}
        for number, environment in enumerate(given)
    }
    scheduler = {
        "cls": Scheduler,
        "options": {
            "security": security,
            "protocol": "tls://",
            "host": LOOPBACK,
            "port": 0,
            "worker_ttl": HUNG_SECONDS,
            "dashboard": find_spec("bokeh") is not None,
            "dashboard_address": f"{LOOPBACK}:0",
        },
    }
    # A scheduler keeps the last messages to each worker, all tasks in them included: by default a thousand. And each
    # process asks NVML twice a second for numbers of a dashboard.
    fewer = dask.config.set(
        {"distributed.admin.low-level-log-length": KEPT_MESSAGES, "distributed.diagnostics.nvml": False}
    )
    # In a thread, which no Ctrl-C interrupts: what is half started cannot be ended.
    with fewer, ThreadPoolExecutor(1) as starting:
        cluster = starting.submit(
            SpecCluster, workers=workers_of, scheduler=scheduler, security=security, silence_logs=logging.CRITICAL
        )
        try:
            return cluster.result()
        except KeyboardInterrupt:
            cluster.result().close()
            raise
        except (RuntimeError, OSError, TimeoutError) as error:
            raise ClusterError(f"the workers of this machine do not start: {clause(_first_cause(error))}") from error


def _check_semaphores() -> None:
    """Raise where the system has no semaphores left: each worker's process takes some."""
    try:
        get_context("spawn").Lock()
    except OSError as error:
        raise ClusterError(
            f"workers of this machine need semaphores, which cannot be made ({error.strerror or error}): on Linux they "
            "lie in /dev/shm, where this user must be able to write; see to that, or scale without --workers"
        ) from error


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _cpu_environment(workers: int) -> dict[str, str]:
    share = str(max(1, cores() // workers))
    # PoCL 3 takes the first, later ones the second. NVIDIA's driver is shown nothing, so that it is not started.
    return {
        DEVICE: "cpu",
        SHOWN: "",
        "POCL_MAX_PTHREAD_COUNT": share,
        "POCL_CPU_MAX_CU_COUNT": share,
    }


def _number(digits: str) -> int:
    """Return a number, at most 10^18: Python refuses to convert thousands of digits."""
    return int(digits) if len(digits.lstrip("0")) <= 18 else 10**18


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:20]}...{text[-5:]}"


class QuietWorker(Worker):
    """A worker that ignores the terminal's signals and does not write there.

    distributed keeps what it logs for the client.
    """

    def __init__(self, *words: Any, **options: Any) -> None:
        for handler in logging.getLogger("distributed").handlers:
            handler.setLevel(logging.CRITICAL + 1)
        for number in _TERMINAL:
            signal.signal(number, signal.SIG_IGN)
        super().__init__(*words, **options)


class _SafePath:
    """Sets PYTHONSAFEPATH while processes are being started, any number at once, of one event loop.

    What Python spawns begins with ``python -c``, which looks for modules in the working folder first. The variable is
    not left there, where it would change what else a caller starts.
    """

    NAME = "PYTHONSAFEPATH"

    def __init__(self) -> None:
        self._starting = 0
        self._before: str | None = None

    def __enter__(self) -> None:
        if not self._starting:
            self._before = os.environ.get(self.NAME)
        self._starting += 1
        os.environ[self.NAME] = "1"

    def __exit__(self, *_: object) -> None:
        self._starting -= 1
        if not self._starting:
            os.environ.pop(self.NAME, None)
            if self._before is not None:
                os.environ[self.NAME] = self._before


_safe_path = _SafePath()


def start_tracker() -> None:
    """Start multiprocessing's resource tracker, so that it removes silently what a killed worker leaves.

    By itself it warns of that on standard error.
    """
    name, quiet = "PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker"
    before = os.environ.get(name)
    os.environ[name] = f"{before},{quiet}" if before else quiet
    try:
        with _safe_path:
            resource_tracker.ensure_running()
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


class QuietNanny(Nanny):
    """A nanny whose workers ignore the terminal while they start, and import nothing from the working folder.

    A process that ends before it has joined is started once more. distributed does so only for one that had joined.
    """

    _ended = ""

    async def instantiate(self) -> Any:
        """Start the worker's process, which inherits the signal mask of this thread, the event loop's.

        Raises
        ------
        RuntimeError
            If it ends twice before it has joined; says how it ended.
        """
        with _safe_path:
            if hasattr(signal, "pthread_sigmask"):
                start_tracker()  # started later, it would unblock SIGINT in this thread
                signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINAL)
            status = await super().instantiate()
            if status == Status.stopped:
                log.warning("the worker %s %s before it had joined; it is started once more", self.name, self._ended)
                status = await super().instantiate()
        if status == Status.stopped:
            raise RuntimeError(
                f"the process of worker {self.name} {self._ended}, twice, before it had joined; what it wrote stands "
                "above, and the system's log says whether memory was short"
            )
        return status

    async def kill(self, timeout: float = 5, reason: str = "nanny-kill") -> None:  # noqa: ASYNC109 - as distributed's
        """End the worker's process; where the cluster ends, at once: all that it made is on the disk, or given up."""
        process = self.process
        if self.status != Status.closing or process is None or process.status != Status.running:
            await super().kill(timeout, reason)
            return
        folder = process.worker_dir
        if process.process is not None:
            await process.process.kill()
        await super().kill(timeout, reason)
        if folder:  # the nanny removes it, and not what lies beside it
            Path(f"{folder}.dirlock").unlink(missing_ok=True)  # noqa: ASYNC240 - a moment

    def _on_worker_exit_sync(self, exitcode: int) -> None:
        self._ended = f"ended with status {exitcode}" if exitcode >= 0 else f"was killed by signal {-exitcode}"
        super()._on_worker_exit_sync(exitcode)  # type: ignore[no-untyped-call]
