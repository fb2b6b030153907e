"""How does a job go on where a process cannot? In a fresh one, that this one watches.

A device that failed may serve no more than the process in which it failed, and a driver that crashes takes the process
with it. So a worker process is started, reads its `Task` from standard input, and tells on standard output what
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from isovoxel.errors import DeviceLostError, JobError
from isovoxel.execution.events import JobStarted, Listener, Restarted
from isovoxel.execution.retry import clause
from isovoxel.execution.task import Task
from isovoxel.output.shard import ShardReceipt
from isovoxel.terminal import carry_trace

FRUITLESS = 3
"""How many workers may end one after the other without having done a block."""


class _Died(Exception):  # noqa: N818 - never seen by a user
    """A worker has ended before its job; says why, in a clause."""


def run_apart(
    task: Task, *, done: bytearray, record: Callable[[int, Sequence[ShardReceipt]], None], listener: Listener
) -> tuple[float, float]:
    """Do what is left of a job in a process of its own, and in another if that dies; see `Task.run`.

    Raises
    ------
    JobError
        If the job fails, or workers die without having done a block.
    KeyboardInterrupt
        If the user interrupts; blocks in flight are finished or given up first.
    """
    fruitless = 0
    while True:
        before = sum(done)
        try:
            return _watch(task, done, record, listener)
        except _Died as death:
            fruitless = 0 if sum(done) > before else fruitless + 1
            if fruitless == FRUITLESS:
                raise JobError(f"{death}, {FRUITLESS} times without having done a block") from None
            listener(Restarted(str(death)))


def _watch(
    task: Task, done: bytearray, record: Callable[[int, Sequence[ShardReceipt]], None], listener: Listener
) -> tuple[float, float]:
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
            _send(task, done, worker.stdin)
            try:
                return _listen(worker.stdout, done, record, listener)
            except KeyboardInterrupt:
                worker.terminate()
                with contextlib.suppress(_Died, JobError):
                    _listen(worker.stdout, done, record, listener)
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


def _send(task: Task, done: bytearray, worker: IO[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError):  # it died; what it says or does not say is looked at later
        try:
            pickle.dump((task, bytes(done)), worker, pickle.HIGHEST_PROTOCOL)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise JobError(f"the input cannot be sent to another process: {clause(error)}") from error
        worker.flush()


def _listen(
    told: IO[bytes], done: bytearray, record: Callable[[int, Sequence[ShardReceipt]], None], listener: Listener
) -> tuple[float, float]:
    """Take what a worker tells until it ends; return what the job took."""
    while True:
        try:
            kind, what = pickle.load(told)  # noqa: S301 - from a process of our own
        except (EOFError, pickle.UnpicklingError, ConnectionError):
            raise _Died from None
        match kind:
            case "done":
                block, seals = what
                try:
                    record(block, seals)
                except OSError as error:
                    raise JobError(f"noting block {block} failed with {clause(error)}") from error
                done[block] = 1
            case "event":
                if not isinstance(what, JobStarted):  # this process has said so
                    listener(what)
            case "lost":
                raise _Died(what)
            case "failed":
                message, trace = what
                failure = JobError(message)
                carry_trace(failure, trace)
                raise failure
            case "end":
                seconds, idle = what
                return seconds, idle


def main() -> None:
    """Be a worker: do the task that comes from standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What libraries print must not come between what this process tells.
    told = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    task, done = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the process that started this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    lock = threading.Lock()

    def tell(kind: str, what: Any) -> None:
        with lock, contextlib.suppress(BrokenPipeError):
            pickle.dump((kind, what), told)
            told.flush()

    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # until now nothing is begun that has to end in order
        tell("end", _do(task, bytearray(done), tell))
    except DeviceLostError as error:
        tell("lost", str(error))
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the other process raises it, or one of its own
        message = str(error) if isinstance(error, JobError) else clause(error)
        tell("failed", (message, traceback.format_exc()))


def _do(task: Task, done: bytearray, tell: Callable[[str, Any], None]) -> tuple[float, float]:
    from isovoxel.engines.open import open_engine

    volume = task.open()
    engine = open_engine(task.plan.engine, task.device)
    return task.run(
        volume,
        engine,
        done=done,
        record=lambda block, seals: tell("done", (block, seals)),
        listener=lambda event: tell("event", event),
        in_flight=engine.prepare(task.plan),
    )


def _end_with_parent() -> None:
    """End this process when the one that started it has gone, and with it the other end of the pipe."""
    # Not through sys.stdin, whose lock this thread would hold when the interpreter closes it.
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
