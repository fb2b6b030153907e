"""What is asked of a cluster, by whom, and what becomes of answers that do not come."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest

import isovoxel
from execution.distributed.clusters import OPTIONS, stack
from isovoxel.execution.distributed import rpc
from isovoxel.execution.events import BlockDone, Event, Waiting
from outputs import shards_of
from polling import wait_until

EXACT = OPTIONS | {"engine": "exact"}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("halo", ["direct", "map_overlap"])
@pytest.mark.parametrize("lost", ["gather", "known_workers"])
def test_a_reply_that_is_lost_ends_no_job(
    tmp_path: Path, out: Path, client: Any, monkeypatch: pytest.MonkeyPatch, halo: str, lost: str
) -> None:
    """Of the scheduler, or of a worker's results: blocks of which nothing came are made again, each counted once."""
    ask, left, events = getattr(rpc, lost), [2], list[Event]()

    def lose(*words: Any, **options: Any) -> Any:
        if any(isinstance(event, BlockDone) for event in events) or lost == "gather":
            left[0] -= 1
            if left[0] >= 0:
                raise TimeoutError("no reply")
        return ask(*words, **options)

    monkeypatch.setattr(rpc, lost, lose)
    isovoxel.scale(stack(tmp_path), out, client=client, listeners=[events.append], halo=halo, **EXACT)
    blocks = [(event.level, event.index) for event in events if isinstance(event, BlockDone)]
    monkeypatch.undo()
    whole = isovoxel.scale(tmp_path / "in.npy", tmp_path / "whole.zarr", **EXACT)
    assert len(blocks) == len(set(blocks)) == whole.plan.all_blocks
    assert shards_of(out) == shards_of(tmp_path / "whole.zarr")


def test_a_worker_that_has_gone_is_not_asked(client: Any) -> None:
    """Nobody waits half a minute for a connection to it, as at the beginning of a level."""
    there = list(client.scheduler_info()["workers"])
    with socket.create_server(("127.0.0.1", 0)) as silent:
        gone = f"tls://127.0.0.1:{silent.getsockname()[1]}"
        assert set(rpc.ask_workers(client, lambda: 1, workers=[*there, gone], seconds=600)) == set(there)
        silent.setblocking(False)
        with pytest.raises(BlockingIOError):  # for there is no connection to take
            silent.accept()


def kill(pid: int) -> int:
    """End another process; runs on a worker."""
    with contextlib.suppress(ProcessLookupError):  # it was ended when this was asked before
        os.kill(pid, signal.SIGKILL)
    return 7


@pytest.mark.slow
def test_a_worker_that_is_lost_while_it_is_asked_is_not_waited_for(own: Any) -> None:
    """It hangs until the other one, which is asked too, ends it; then that one is asked again, without it."""
    pids = own.run(os.getpid)
    kept, lost = pids
    os.kill(pids[lost], signal.SIGSTOP)
    with dask.config.set({"distributed.comm.timeouts.connect": "600s"}):
        assert rpc.ask_workers(own, kill, pids[lost], workers=[kept, lost], seconds=120) == {kept: 7}


@pytest.mark.slow
def test_results_of_a_worker_that_is_killed_are_not_waited_for(own: Any) -> None:
    """Those of the others come, also where it dies just then: nobody would make the lost ones again."""
    there = own.scheduler_info()["workers"]
    futures = {address: own.submit(int, 7, workers=[address], pure=False) for address in there}
    pids = own.run(os.getpid)
    wait_until(lambda: all(future.status != "pending" for future in futures.values()))
    lost, kept = there
    os.kill(pids[lost], signal.SIGKILL)
    found = rpc.gather(own, [future.key for future in futures.values()], seconds=20)
    assert found in ({futures[kept].key: 7}, {future.key: 7 for future in futures.values()})
    wait_until(lambda: lost not in own.scheduler_info()["workers"])
    assert rpc.gather(own, [future.key for future in futures.values()], seconds=20) == {futures[kept].key: 7}


def test_it_is_said_what_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it takes a while, and not where it does not."""
    told: queue.SimpleQueue[Event] = queue.SimpleQueue()
    with rpc.waiting(told.put, "nothing", 3.0):
        pass
    monkeypatch.setattr(rpc, "SILENT_SECONDS", 0.0)
    with rpc.waiting(told.put, "the results of worker 1", 20.0):
        assert told.get(timeout=60) == Waiting(20.0, "the results of worker 1")
    assert told.empty()


def test_what_a_killed_worker_leaves_is_removed_without_a_word() -> None:
    """Python's own tracker would warn of it on standard error, in the middle of what a job says."""
    script = (
        "from multiprocessing import resource_tracker\n"
        "from isovoxel.execution.distributed.local_workers import start_tracker\n"
        "start_tracker()\n"
        "resource_tracker.register('/isovoxel-test-none', 'semaphore')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_own_workers_answer_nobody_else(client: Any) -> None:
    """Their scheduler wants a key, and listens to this machine alone, as all of its processes do."""
    from distributed import Client

    address = client.scheduler.address
    assert address.startswith("tls://127.0.0.1:")
    for stranger in (address, address.replace("tls", "tcp")):
        with pytest.raises((OSError, TypeError)):
            Client(stranger, timeout=2, set_as_default=False)
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip == "127.0.0.1"
