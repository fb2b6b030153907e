"""Make the blocks of a level in a process apart, which this one watches, and in a fresh one where that dies.

A device that failed may serve no more than the process in which it failed, and a driver that crashes takes the process
with it. So a worker process is started, reads its `Task` from standard input, and writes on standard output what
happens. If it dies, what it has done is known, and the next one does the rest. This process keeps ledger and lock.

- The worker is in a group of its own, and leaves Ctrl-C to this process, which asks it to stop (SIGTERM), so that
  blocks in flight are finished.
- Its standard input stays open as long as this process lives: when that ends, however, the worker ends at once.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

from isovoxel.errors import DeviceLostError, InputError, JobError, clause
from isovoxel.execution.events import BlockDone, Event, Listener, Restarted
from isovoxel.execution.executor import Elapsed, LevelProgress, Task, is_of_input
from isovoxel.readers.base import Volume
from isovoxel.terminal import carry_trace

FRUITLESS = 3
"""How many workers may end one after the other without having done a block."""


class _Died(Exception):  # noqa: N818 - never seen by a user
    """A worker has ended before its job; says why, in a clause."""


class SubprocessExecutor(AbstractContextManager["SubprocessExecutor"]):
    """Makes blocks in a process apart; an `Executor`.

    Parameters
    ----------
    device
        Where to compute, as ``--device`` takes it.
    lost
        Why the device does not serve this process any more, in a clause, where that is why.
    """

    def __init__(self, device: str, lost: str = "") -> None:
        self._device, self._lost = device, lost

    def __exit__(self, *_: object) -> None:
        """Free nothing: a process apart ends with its level."""

    def prepare(self, task: Task, volume: Volume, listener: Listener) -> None:  # noqa: ARG002 - opened there
        """Take the task: what the worker needs it opens itself; see `Executor`."""
        self._task = task

    def run(self, progress: LevelProgress, *, last: bool) -> Elapsed:  # noqa: ARG002 - no process makes two levels
        """Make blocks in a process apart, and in another if that dies; see `Executor`."""
        if self._lost:
            progress.tell(Restarted(self._lost))
            self._lost = ""
        fruitless = 0
        while True:
            before = sum(progress.done)
            try:
                return self._watch(progress)
            except _Died as death:
                fruitless = 0 if sum(progress.done) > before else fruitless + 1
                if fruitless == FRUITLESS:
                    raise JobError(f"{death}, {FRUITLESS} times without having done a block") from None
                progress.tell(Restarted(str(death)))
            except Exception as failure:  # noqa: BLE001 - raised again
                progress.fail(failure)

    def _watch(self, progress: LevelProgress) -> Elapsed:
        """Start a worker, and take what it makes until it ends."""
        package = Path(__file__).parents[2]
        paths = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
        worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "isovoxel.execution.subprocess"],  # -P: no module of the working folder
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": paths},
            # Ctrl-C in a terminal reaches all of a group, and would this one while it is being loaded.
            process_group=0 if os.name == "posix" else None,
        )
        with worker:
            assert worker.stdin is not None  # noqa: S101 - for type checkers
            assert worker.stdout is not None  # noqa: S101
            try:
                _send((self._task, self._device, bytes(progress.done)), worker.stdin)
                try:
                    return _listen(worker.stdout, progress)
                except KeyboardInterrupt:
                    worker.terminate()
                    with contextlib.suppress(_Died, JobError):
                        _listen(worker.stdout, progress)
                    raise
            except _Died as death:
                code = worker.wait()
                how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                raise _Died(str(death) or f"the process that scales {how}") from None
            except BaseException:
                worker.kill()
                raise
            finally:
                with contextlib.suppress(BrokenPipeError):  # of what it did not take
                    worker.stdin.close()


def _send(work: tuple[Task, str, bytes], worker: IO[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError):  # it died; what it says or does not say is looked at later
        try:
            pickle.dump(work, worker, pickle.HIGHEST_PROTOCOL)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise JobError(f"the input cannot be sent to another process: {clause(error)}") from error
        worker.flush()


def _listen(told: IO[bytes], progress: LevelProgress) -> Elapsed:
    """Take what a worker tells until it ends; return what the job took."""
    while True:
        try:
            kind, what = pickle.load(told)  # noqa: S301 - from a process of our own
        except (EOFError, pickle.UnpicklingError, ConnectionError):
            raise _Died from None
        match kind:
            case "done":
                progress.finish(*what)
            case "event":
                progress.tell(what)
            case "lost":
                raise _Died(what)
            case "failed":
                message, trace, of_input = what
                failure = JobError(message)
                carry_trace(failure, trace)
                raise failure from (InputError(message) if of_input else None)
            case "end":
                elapsed: Elapsed = what
                return elapsed


def serve() -> None:
    """Be a worker: do the task that comes from standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What libraries print must not come between what this process tells.
    told = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    task, device, done = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the process that started this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    lock = threading.Lock()

    def tell(kind: str, what: Any) -> None:
        with lock, contextlib.suppress(BrokenPipeError):
            pickle.dump((kind, what), told)
            told.flush()

    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # until now nothing is begun that has to end in order
        tell("end", _make(task, device, bytearray(done), tell))
    except DeviceLostError as error:
        tell("lost", str(error))
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the other process raises it, or one of its own
        message = str(error) if isinstance(error, JobError) else clause(error)
        tell("failed", (message, traceback.format_exc(), is_of_input(error)))


def _make(task: Task, device: str, done: bytearray, tell: Callable[[str, Any], None]) -> Elapsed:
    from isovoxel.engines.registry import engine_for
    from isovoxel.execution.blocks import BlockMaker
    from isovoxel.execution.threads import ThreadRun

    volume = task.open()
    engine = engine_for(task.plan, device)
    engine.prepare(task.plan)

    def told(event: Event) -> None:
        if not isinstance(event, BlockDone):  # which came with what was noted
            tell("event", event)

    progress = LevelProgress(task.plan, done, lambda *noted: tell("done", noted), told, task.free_bytes)
    return ThreadRun(progress, BlockMaker.of_task(task, volume, engine, progress.tell), volume.array).run()


def _end_with_parent() -> None:
    """End this process when the one that started it has gone, and with it the other end of the pipe."""
    # Not through sys.stdin, whose lock this thread would hold when the interpreter closes it.
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    serve()
