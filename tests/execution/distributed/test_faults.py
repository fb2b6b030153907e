"""Whatever ends, of a cluster: nothing that is done is lost or done again, and the bits are the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dask
import numpy as np
import psutil
import pytest
from distributed import Client, WorkerPlugin

import isovoxel
from execution.distributed.clusters import OPTIONS, Foreign, stack
from isovoxel.engines.pipeline import StagedEngine
from isovoxel.engines.staged_block import StagedBlock
from isovoxel.errors import ClusterError, DeviceLostError, JobError
from isovoxel.execution.blocks import BlockMaker
from isovoxel.execution.distributed import executor, local_workers, rpc, submission
from isovoxel.execution.distributed.worker_session import WorkerSession
from isovoxel.execution.events import BlockDone, Event, JobFinished, JobStarted, LevelBegun, Waiting, WorkerLeft
from isovoxel.execution.executor import BlockFailed
from isovoxel.execution.output import OutputState, output_state
from isovoxel.planning.model import Block
from outputs import shards_of
from polling import wait_until

EXACT = OPTIONS | {"engine": "exact"}


def check(events: list[Event], out: Path) -> None:
    """Check that every block that was left was made once, and that the bits are right."""
    (begun,) = (event for event in events if isinstance(event, JobStarted))
    blocks = [(event.level, event.index) for event in events if isinstance(event, BlockDone)]
    assert len(set(blocks)) == len(blocks) == begun.plan.all_blocks - begun.done
    assert output_state(out) == OutputState(complete=True)
    isovoxel.scale(out.with_name("in.npy"), out.with_name("whole.zarr"), **EXACT)
    assert shards_of(out) == shards_of(out.with_name("whole.zarr"))


@pytest.mark.slow
def test_a_worker_that_is_killed_while_halos_are_exchanged_loses_nothing(tmp_path: Path, out: Path, own: Any) -> None:
    """Dask goes on without it, so that it is not missed."""
    pids, events = own.run(os.getpid), list[Event]()

    def kill(event: Event) -> None:
        events.append(event)
        if isinstance(event, BlockDone) and pids:
            os.kill(pids.popitem()[1], signal.SIGKILL)
            pids.clear()

    isovoxel.scale(stack(tmp_path), out, client=own, listeners=[kill], halo="map_overlap", **EXACT)
    check(events, out)
    assert not any(isinstance(event, WorkerLeft) for event in events)


@pytest.mark.slow
def test_a_worker_that_is_killed_at_the_last_level_holds_nobody_up(
    tmp_path: Path, out: Path, own: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named, nothing else is said of it, and the times of the job are those that passed."""
    monkeypatch.setattr(rpc, "SILENT_SECONDS", 60.0)  # sooner than a connection to it is given up
    pids, events, times = own.run(os.getpid), list[Event](), list[float]()

    def kill(event: Event) -> None:
        events.append(event)
        times.append(time.perf_counter())
        if isinstance(event, BlockDone) and event.level == 2 and pids:
            os.kill(pids.popitem()[1], signal.SIGKILL)
            pids.clear()

    options = EXACT | {"chunk": (32, 32, 32), "shard": (32, 32, 32), "levels": 2}
    with dask.config.set({"distributed.comm.timeouts.connect": "600s"}):
        result = isovoxel.scale(stack(tmp_path), out, client=own, listeners=[kill], **options)
    assert not pids
    blocks = {(event.level, event.index) for event in events if isinstance(event, BlockDone)}
    assert len(blocks) == result.plan.all_blocks
    assert output_state(out) == OutputState(complete=True)
    assert isovoxel.verify(out).holds
    (begun,) = (at for event, at in zip(events, times, strict=True) if isinstance(event, JobStarted))
    done = [at for event, at in zip(events, times, strict=True) if isinstance(event, BlockDone)]
    (finished,) = (event for event in events if isinstance(event, JobFinished))
    assert done[-1] - done[0] <= finished.seconds == result.seconds <= times[-1] - begun
    assert {e.reason for e in events if isinstance(e, WorkerLeft)} <= {"the scheduler has lost it"}
    assert not any(isinstance(event, Waiting) for event in events)
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert "never retrieved" not in said


class Waits(WorkerPlugin):
    """Lets the worker 0 hold its blocks until a file is there."""

    def __init__(self, go: Path) -> None:
        self.go = go

    def setup(self, worker: Any) -> None:
        """Hold them before they are scaled."""
        if str(worker.name) == "0":
            scale, go = StagedBlock.scale, self.go

            def wait(*arguments: Any) -> Any:
                wait_until(go.exists)
                return scale(*arguments)

            StagedBlock.scale = wait  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize("again", [True, False])
def test_a_worker_that_falls_silent_is_done_without(
    tmp_path: Path, out: Path, own: Any, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """It is connected still: its blocks go elsewhere, and the end does not wait for it. Nothing counts twice."""
    monkeypatch.setattr(submission, "QUIET_SECONDS", 3.0)
    monkeypatch.setattr(submission, "ANSWER_SECONDS", 1.0)  # a result that it has is asked for in vain
    monkeypatch.setattr(executor, "LEAVE_SECONDS", 1.0)
    monkeypatch.setattr(rpc, "SILENT_SECONDS", 60.0)  # sooner than those who are waited for are given up
    own.register_plugin(Waits(tmp_path / "go"), name="waits")  # there are blocks left when the silence is noticed
    silent = next(address for address, known in own.scheduler_info()["workers"].items() if known["name"] == 1)
    pid = own.run(os.getpid, workers=[silent])[silent]
    events: list[Event] = []

    def stop(event: Event) -> None:
        events.append(event)
        if isinstance(event, BlockDone) and not (tmp_path / "go").exists():
            os.kill(pid, signal.SIGSTOP)
        elif isinstance(event, WorkerLeft):
            (tmp_path / "go").touch()
            if again:
                os.kill(pid, signal.SIGCONT)

    try:
        isovoxel.scale(stack(tmp_path), out, client=own, listeners=[stop], **EXACT)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert not [event for event in events if isinstance(event, Waiting) and event.what == "blocks in flight to end"]
    check(events, out)
    (left,) = (event for event in events if isinstance(event, WorkerLeft))
    assert (left.name, left.reason) == ("1", "it has not been heard of for 3 s")


@pytest.mark.slow
def test_a_worker_that_hangs_between_levels_is_replaced(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be told of the next level: the scheduler of own workers kills it, and its nanny starts another."""
    monkeypatch.setattr(local_workers, "HUNG_SECONDS", 10.0)  # longer than a loaded machine keeps a heartbeat back
    pids, events = dict[str, int](), list[Event]()

    def stop(event: Event) -> None:
        events.append(event)
        if isinstance(event, LevelBegun) and pids:
            os.kill(pids.popitem()[1], signal.SIGSTOP)
            pids.clear()

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "2s"}),  # sooner than it counts as lost
        local_workers.start("cpu:2", 2) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        pids |= client.run(os.getpid)
        result = isovoxel.scale(stack(tmp_path), out, client=client, listeners=[stop], **EXACT | {"levels": 2})
    blocks = [(event.level, event.index) for event in events if isinstance(event, BlockDone)]
    assert sorted(blocks) == [(plan.level, i) for plan in result.plan.levels for i in range(plan.n_blocks)]
    assert isovoxel.verify(out, samples=16).holds


class Breaks(WorkerPlugin):
    """Lets the device of one worker be lost at its first block, in every process that it gets."""

    def setup(self, worker: Any) -> None:
        if str(worker.name) == "1":
            StagedBlock.scale = _lose  # type: ignore[method-assign]


def _lose(*_: object) -> None:
    raise DeviceLostError("the card no longer answers this process")


@pytest.mark.slow
def test_a_worker_with_a_broken_device_is_set_aside(tmp_path: Path, out: Path, own: Any) -> None:
    """It is started again once; when that does not help it is named, and the other one does all."""
    own.register_plugin(Breaks(), name="breaks")
    own.register_plugin(Waits(tmp_path / "go"), name="waits")  # there are blocks left when the new process is noticed
    events: list[Event] = []

    def note(event: Event) -> None:
        events.append(event)
        if sum(isinstance(e, WorkerLeft) for e in events) == 2:
            (tmp_path / "go").touch()

    result = isovoxel.scale(stack(tmp_path), out, client=own, listeners=[note], **EXACT)
    check(events, out)
    first, second = (event for event in events if isinstance(event, WorkerLeft))
    assert (first.name, second.name) == ("1", "1")
    assert first.reason == "the card no longer answers this process; it is started again"
    assert second.reason == "the card no longer answers this process, and again in a fresh process"
    assert result.workers["1"].blocks == 0
    assert result.workers["1"].left == second.reason


class Refuses(WorkerPlugin):
    """Lets the engine fail to build, on all workers or one."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def setup(self, worker: Any) -> None:
        if str(worker.name) in self.names:
            StagedEngine.prepare = _refuse  # type: ignore[method-assign]


def _refuse(*_: object) -> None:
    raise OSError(5, "no compiler here")


@pytest.mark.slow
@pytest.mark.parametrize("names", [("0",), ("0", "1")])
def test_a_worker_that_cannot_begin_is_set_aside(tmp_path: Path, out: Path, own: Any, names: tuple[str, ...]) -> None:
    """As long as another one does blocks; where none can, nothing is written."""
    own.register_plugin(Refuses(*names), name="refuses")
    events: list[Event] = []
    if len(names) == 2:
        with pytest.raises(ClusterError, match=r"no worker can begin: .*no compiler here"):
            isovoxel.scale(stack(tmp_path), out, client=own, listeners=[events.append], **EXACT)
        assert not out.exists()
        return
    isovoxel.scale(stack(tmp_path), out, client=own, listeners=[events.append], **EXACT)
    check(events, out)
    (left,) = (event for event in events if isinstance(event, WorkerLeft))
    assert left.name == "0"
    assert left.reason == "OSError: [Errno 5] no compiler here"
    assert any("the job cannot begin here" in line for line in left.log)


class Deadly(WorkerPlugin):
    """Lets a block end the process that it is read in."""

    def setup(self, worker: Any) -> None:
        del worker
        make = WorkerSession.make
        WorkerSession.make = lambda self, index, *words: os._exit(1) if index == 3 else make(self, index, *words)  # type: ignore[method-assign]


@pytest.mark.slow
def test_a_block_that_ends_processes_ends_the_job(tmp_path: Path, out: Path, own: Any) -> None:
    """After the third; it, or one that was in flight beside it, is named, and the rest is kept."""
    own.register_plugin(Deadly(), name="deadly")
    with pytest.raises(
        JobError, match=r"^3 workers were lost while they had block \d+, [01] last; \d+ of \d+ blocks are"
    ):
        isovoxel.scale(stack(tmp_path), out, client=own, **EXACT)


class Short(WorkerPlugin):
    """Lets the host have memory for one shard at a time."""

    def setup(self, worker: Any) -> None:
        del worker
        encode = BlockMaker.encode

        def short(self: BlockMaker, block: Block, *words: Any) -> Any:
            if block.write_box.shape != (64, 64, 64):
                raise BlockFailed("writing", block, MemoryError())
            return encode(self, block, *words)

        BlockMaker.encode = short  # type: ignore[method-assign]


@pytest.mark.slow
def test_a_worker_with_too_little_memory_makes_do(tmp_path: Path, out: Path, own: Any) -> None:
    """With fewer blocks in flight, and at last shard by shard."""
    own.register_plugin(Short(), name="short")
    events: list[Event] = []
    result = isovoxel.scale(stack(tmp_path), out, client=own, listeners=[events.append], **EXACT)
    assert result.plan.block_shape != (64, 64, 64)
    assert result.tally.slowed_to == 1
    check(events, out)


@pytest.mark.slow
def test_a_scheduler_that_goes_ends_the_job_and_another_run_finishes_it(
    tmp_path: Path, out: Path, foreign: Foreign
) -> None:
    """What is done is kept; without the cluster the same command goes on, and nothing is done twice."""
    foreign.worker("a")
    source, done = stack(tmp_path), set[int]()

    def stop(event: Event) -> None:
        if isinstance(event, BlockDone):
            done.add(event.index)
            foreign.scheduler.kill()

    with pytest.raises(JobError, match=r"the scheduler .*; \d+ of \d+ blocks are done and kept; to resume, run"):
        isovoxel.scale(source, out, scheduler=foreign.address, listeners=[stop], **EXACT)
    foreign.end()
    events: list[Event] = []
    isovoxel.scale(source, out, listeners=[events.append], **EXACT)
    check(events, out)
    assert done
    assert not done & {event.index for event in events if isinstance(event, BlockDone)}


WORDS = ["--engine", "exact", "--factor", "8,8,8", "--shard", "64,64,64", "--chunk", "64,64,64", "--threads", "2"]
WORDS += ["--input-voxel-size", "1,0.5,0.5", "--device-memory", "2MB"]


def command(out: Path, *words: object) -> list[str]:
    paths = [str(out.with_name("in.npy")), str(out)]
    return [sys.executable, "-m", "isovoxel", "scale", *paths, *WORDS, *map(str, words)]


def await_block(out: Path) -> None:
    """Wait until a block is done."""
    wait_until(lambda: (state := output_state(out)) and state.done)


def big_stack(folder: Path) -> None:
    """Write a stack that takes some seconds."""
    voxels = np.random.default_rng(1).integers(0, 65536, (64, 48, 48)).astype(np.uint16)
    np.save(folder / "in.npy", voxels)


@pytest.mark.slow
def test_a_client_that_is_killed_leaves_nothing_running_and_goes_on(tmp_path: Path, out: Path) -> None:
    """Own workers end with it; started again, it does what is left."""
    big_stack(tmp_path)
    with subprocess.Popen(command(out, "--workers", "cpu:2"), stderr=subprocess.DEVNULL) as job:
        await_block(out)
        started = psutil.Process(job.pid).children(recursive=True)
        job.kill()
    assert psutil.wait_procs(started, timeout=120)[1] == []
    events: list[Event] = []
    isovoxel.scale(tmp_path / "in.npy", out, workers="cpu:2", listeners=[events.append], **EXACT)
    (begun,) = (event for event in events if isinstance(event, JobStarted))
    assert begun.done >= 1
    check(events, out)


@pytest.mark.slow
def test_ctrl_c_stops_client_and_workers(tmp_path: Path, out: Path) -> None:
    """A terminal sends it to all processes: blocks in flight are finished, and it says how to go on."""
    big_stack(tmp_path)
    words = command(out, "--workers", "cpu:2")
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True) as job:
        await_block(out)
        started = psutil.Process(job.pid).children(recursive=True)
        os.killpg(job.pid, signal.SIGINT)
        _, said = job.communicate(timeout=300)
    assert job.returncode == 130, said
    assert "Traceback" not in said
    assert "blocks are done and kept" in said
    assert "to resume: isovoxel scale" in said
    assert psutil.wait_procs(started, timeout=120)[1] == []
    state = output_state(out)
    assert state is not None
    assert 0 < state.done < state.blocks


@pytest.mark.slow
def test_workers_of_a_cluster_serve_the_command_line(tmp_path: Path, out: Path, foreign: Foreign) -> None:
    """A client that is killed leaves them at work: the next ends that first, and does what is left."""
    big_stack(tmp_path)
    for name in ("a", "b"):
        foreign.worker(name)
    address = foreign.address
    with subprocess.Popen(command(out, "--scheduler", address), stderr=subprocess.DEVNULL) as job:
        await_block(out)
        job.kill()
    words = command(out, "--scheduler", foreign.file, "--json")
    said = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert said.returncode == 0, said.stderr
    assert "Traceback" not in said.stderr
    assert '"done_before": 0' not in said.stdout
    isovoxel.scale(tmp_path / "in.npy", tmp_path / "whole.zarr", **EXACT)
    assert shards_of(out) == shards_of(tmp_path / "whole.zarr")


@pytest.mark.slow
def test_a_worker_that_outlives_the_lock_of_its_job_writes_nothing_more(
    tmp_path: Path, out: Path, foreign: Foreign
) -> None:
    """Its client is killed, another job completes the output, and only then it comes to put its shard in place."""
    stack(tmp_path)
    held, go = tmp_path / "held", tmp_path / "go"
    os.mkfifo(go)

    class Holds(WorkerPlugin):  # defined here, it travels with its code: the worker does not see this module
        def setup(self, worker: Any) -> None:
            del worker
            from isovoxel.output.shard import FileShardWriter

            seal = FileShardWriter.seal

            def wait(shard: FileShardWriter) -> Any:
                try:
                    held.touch(exist_ok=False)
                except FileExistsError:
                    return seal(shard)
                go.read_bytes()  # until somebody has written there
                return seal(shard)

            FileShardWriter.seal = wait  # type: ignore[method-assign]

    foreign.worker("a")
    with Client(foreign.address, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=600)
        client.register_plugin(Holds(), name="holds")
    with subprocess.Popen(command(out, "--scheduler", foreign.address), stderr=subprocess.DEVNULL) as job:
        wait_until(held.exists)
        job.kill()
    isovoxel.scale(tmp_path / "in.npy", out, **EXACT)
    assert output_state(out) == OutputState(complete=True)

    def found() -> dict[str, tuple[int, int, bytes]]:
        paths = [path for path in out.parent.glob(f"{out.name}*/**/*") if path.is_file()]
        return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in paths}

    before = found()
    go.write_bytes(b"")
    wait_until(lambda: "is not locked by this job any more" in foreign.logs)
    assert found() == before
    assert not [path for path in out.rglob("*") if "isovoxel-" in path.name]


@pytest.mark.slow
def test_a_worker_that_sees_something_else_is_named(tmp_path: Path, foreign: Foreign) -> None:
    """Before anything is written; here every process sees its own folder under the same path."""
    stack(tmp_path)
    foreign.worker("blind")
    words = command(Path("/proc/self/cwd/out.zarr"), "--scheduler", foreign.address)
    said = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=120)
    assert said.returncode == 2, said.stderr
    assert "error: the worker blind on" in said.stderr
    assert "cannot open the input" in said.stderr
    assert not list(tmp_path.glob("out*"))
    words = command(Path("/proc/self/cwd/out.zarr"), "--scheduler", foreign.address)
    words[4] = str(tmp_path / "in.npy")
    said = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=120)
    assert said.returncode == 2, said.stderr
    assert "does not see the output's folder /proc/self/cwd" in said.stderr
    assert not list(tmp_path.glob("out*"))
