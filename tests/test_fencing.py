"""Who has lost the lock writes nothing more: neither into the output that goes on, nor into the next one."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import isovoxel
from isovoxel.errors import JobError, OutputBusyError
from isovoxel.execution import threads
from isovoxel.execution.blocks import BlockMaker
from isovoxel.execution.executor import LevelProgress, Task
from isovoxel.execution.subprocess import SubprocessExecutor
from isovoxel.object_store import clients, files
from isovoxel.object_store.objects import ObjectPlace, Place, place_of
from isovoxel.output import attempt, lock
from isovoxel.output.attempt import Attempt
from isovoxel.output.files import LOCK, FileLines, ObjectLines
from isovoxel.output.ledger import Ledger, ledger_of
from isovoxel.output.lock import ObjectLock
from isovoxel.output.shard import ShardWriter
from isovoxel.planning.plan import Plan
from store_server import Server, contents

FIRST, SECOND = (np.random.default_rng(n).integers(0, 65536, (8, 16, 12)).astype(np.uint16) for n in range(2))
OPTIONS: dict[str, Any] = {
    "factor": (2.0, 1.0, 1.0),
    "chunk": (8, 8, 8),
    "shard": (8, 8, 8),
    "threads": 2,
    "input_voxel_size": (1.0, 0.5, 0.5),
    "device_memory": "20kB",
    "engine": "exact",
    "levels": 1,
}


class Gate:
    """Holds the first thread that comes to a stage of writing, until it is opened; others pass."""

    def __init__(self) -> None:
        self.arrived, self.open = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self.held: threading.Thread | None = None

    def pass_(self) -> None:
        """Be held, or pass."""
        with self._lock:
            mine = self.held is None
            if mine:
                self.held = threading.current_thread()
        if mine:
            self.arrived.set()
            assert self.open.wait(60)


def watch(
    patch: pytest.MonkeyPatch, owner: Any, name: str, gate: Gate, *, after: bool = False, only: Any = None
) -> None:
    """Let calls of a function go through a gate, before they do anything or after they did."""
    call = getattr(owner, name)

    def gated(*arguments: Any, **options: Any) -> Any:
        here = only is None or only(*arguments)
        if here and not after:
            gate.pass_()
        result = call(*arguments, **options)
        if here and after:
            gate.pass_()
        return result

    patch.setattr(owner, name, gated)


def in_flusher(*_: Any) -> bool:
    """Tell whether this is a thread that waits for the disk."""
    return threading.current_thread().name.startswith("flush")


def renames_metadata(partial: Path, target: Path) -> bool:
    """Tell whether the output's own metadata are renamed to their place, to mark it complete."""
    return target.name == "zarr.json" and target.parent.name == "out.zarr" and partial.parent == target.parent


def puts_metadata(_store: Any, key: str, data: Any, **_options: Any) -> bool:
    """Tell whether the output's own metadata are put, to mark it complete."""
    return key.endswith("out.zarr/zarr.json") and b'"complete": true' in bytes(data)


def puts_shard(_store: Any, key: str, *_: Any, **_options: Any) -> bool:
    """Tell whether a shard is put."""
    return "/c/" in key


Stage = Callable[[pytest.MonkeyPatch, Gate], None]

FILES: dict[str, Stage] = {
    "encoded": lambda patch, gate: watch(patch, ShardWriter, "finish", gate, after=True),
    "flushed": lambda patch, gate: watch(patch, os, "fsync", gate, after=True, only=in_flusher),
    "before rename": lambda patch, gate: watch(patch, Path, "replace", gate, only=in_flusher),
    "renamed": lambda patch, gate: watch(patch, Path, "replace", gate, after=True, only=in_flusher),
    "before ledger": lambda patch, gate: watch(patch, Ledger, "add", gate),
    "before line": lambda patch, gate: watch(patch, FileLines, "add", gate),
}
OBJECTS: dict[str, Stage] = {
    "encoded": lambda patch, gate: watch(patch, ShardWriter, "finish", gate, after=True),
    "before upload": lambda patch, gate: watch(patch, ObjectPlace, "upload", gate),
    "before put": lambda patch, gate: watch(patch, __import__("obstore"), "put", gate, only=puts_shard),
    "before ledger": lambda patch, gate: watch(patch, Ledger, "add", gate),
    "before line": lambda patch, gate: watch(patch, ObjectLines, "add", gate),
}
TAKEN_FILES: dict[str, Stage] = FILES | {
    "before begin": lambda patch, gate: watch(patch, Plan, "to_json", gate),
    "before complete": lambda patch, gate: watch(patch, files, "write_whole", gate),
    "completing": lambda patch, gate: watch(patch, Path, "replace", gate, only=renames_metadata),
}
TAKEN_OBJECTS: dict[str, Stage] = OBJECTS | {
    "before begin": lambda patch, gate: watch(patch, Plan, "to_json", gate),
    "completing": lambda patch, gate: watch(patch, __import__("obstore"), "put", gate, only=puts_metadata),
}
KINDS = [("file", stage) for stage in FILES] + [("object", stage) for stage in OBJECTS]
TAKEN = [("file", stage) for stage in TAKEN_FILES] + [("object", stage) for stage in TAKEN_OBJECTS]


@pytest.fixture
def outputs(server: Server, tmp_path: Path) -> Iterator[dict[str, Place]]:
    """Return where outputs shall be, by their kind."""
    yield {"file": tmp_path / "out.zarr", "object": place_of("s3://bucket/lab/out.zarr")}
    server.let_be()
    ObjectPlace("s3://bucket", "").delete_tree()
    clients._clients.clear()


def everything(out: Place) -> dict[str, bytes]:
    """Return all files or objects of an output, but the metadata that name what made it."""
    if isinstance(out, ObjectPlace):
        found = contents(out)
    else:
        found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    del found["zarr.json"]
    return found


def check(out: Place, voxels: np.ndarray, tmp_path: Path) -> None:
    """Check that an output is that of some voxels, complete, and nothing else is there."""
    isovoxel.scale(voxels, tmp_path / "whole.zarr", **OPTIONS)
    assert everything(out) == everything(tmp_path / "whole.zarr")
    state = isovoxel.output_state(str(out))
    assert state is not None
    assert state.complete
    folder = ledger_of(out)
    assert not (folder.is_dir() if isinstance(folder, ObjectPlace) else folder.exists())
    if isinstance(out, Path):
        assert {path.name for path in out.rglob("*") if path.is_dir()} <= {"c", *map(str, range(9))}


def interrupt_twice(patch: pytest.MonkeyPatch, gate: Gate) -> None:
    """Interrupt a job when a thread is at the gate, and again while it waits for blocks in flight."""

    class Impatient(ThreadPoolExecutor):
        def shutdown(self, *arguments: Any, cancel_futures: bool = False, **options: Any) -> None:
            if cancel_futures:
                super().shutdown(wait=False, cancel_futures=True)
                raise KeyboardInterrupt
            super().shutdown(*arguments, **options)

    class Ended(SimpleQueue[Any]):
        def get(self, *_: Any, **_options: Any) -> Any:
            assert gate.arrived.wait(60)
            raise KeyboardInterrupt

    patch.setattr(threads, "ThreadPoolExecutor", Impatient)
    patch.setattr(threads, "queue", SimpleNamespace(SimpleQueue=Ended))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("then", ["overwrite", "go on"])
@pytest.mark.parametrize(("kind", "stage"), KINDS)
def test_threads_of_a_job_that_was_interrupted_twice_write_nothing_more(
    outputs: dict[str, Place], tmp_path: Path, kind: str, stage: str, then: str
) -> None:
    """`scale` has returned, the lock is free, and another job is done before they go on."""
    out, gate = outputs[kind], Gate()
    with pytest.MonkeyPatch.context() as patch:
        (FILES if kind == "file" else OBJECTS)[stage](patch, gate)
        interrupt_twice(patch, gate)
        with pytest.raises(KeyboardInterrupt):
            isovoxel.scale(FIRST, str(out), **OPTIONS)
    assert gate.held is not None
    try:
        voxels = SECOND if then == "overwrite" else FIRST
        isovoxel.scale(voxels, str(out), overwrite=then == "overwrite", **OPTIONS)
    finally:
        gate.open.set()
        gate.held.join(60)
    assert not gate.held.is_alive()
    check(out, voxels, tmp_path)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("then", ["overwrite", "go on"])
@pytest.mark.parametrize(("kind", "stage"), TAKEN)
def test_a_process_that_was_taken_for_dead_writes_nothing_more(
    outputs: dict[str, Place], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, stage: str, then: str
) -> None:
    """It was stopped anywhere between two steps, another has taken the lock over and is done, and it goes on."""
    out, gate = outputs[kind], Gate()
    failures: list[BaseException] = []

    def stopped() -> None:
        try:
            isovoxel.scale(FIRST, str(out), **OPTIONS)
        except Exception as error:  # noqa: BLE001 - looked at below
            failures.append(error)

    thread = threading.Thread(target=stopped)
    voxels = SECOND if then == "overwrite" else FIRST
    try:
        with pytest.MonkeyPatch.context() as patch:
            (TAKEN_FILES if kind == "file" else TAKEN_OBJECTS)[stage](patch, gate)
            thread.start()
            assert gate.arrived.wait(60)
            later = partial(lambda clock: clock() + attempt.DEAD_SECONDS, attempt.now)
            for module in (attempt, lock):
                monkeypatch.setattr(module, "now", later)
            patch.setattr(lock, "_lock", lambda _file: False)
            patch.setattr(lock, "_lives", lambda *_: False)
            patch.setattr(ObjectLock, "_lives", lambda *_: False)
            isovoxel.scale(voxels, str(out), overwrite=then == "overwrite", **OPTIONS)
    finally:
        gate.open.set()
        thread.join(60)
    assert not thread.is_alive()
    # Where all was done but the last step, and the other took that, it finds its output complete.
    assert [type(error) for error in failures] in ([JobError], [OutputBusyError], [] if stage == "completing" else None)
    check(out, voxels, tmp_path)


def test_a_process_apart_whose_lock_is_lost_writes_nothing(tmp_path: Path) -> None:
    """It knows the word of the hold that it writes for, and says why it ends."""
    out, gate, tasks = tmp_path / "out.zarr", Gate(), list[Task]()
    with pytest.MonkeyPatch.context() as patch:
        make = BlockMaker.of_task
        patch.setattr(BlockMaker, "of_task", lambda task, *rest: tasks.append(task) or make(task, *rest))
        FILES["encoded"](patch, gate)
        interrupt_twice(patch, gate)
        with pytest.raises(KeyboardInterrupt):
            isovoxel.scale(FIRST, str(out), **OPTIONS)
    gate.open.set()
    assert gate.held is not None
    gate.held.join(60)
    before, (task,) = {path for path in out.rglob("*") if path.is_file()}, tasks
    executor, done = SubprocessExecutor("auto"), bytearray(task.plan.n_blocks)
    executor.prepare(task, task.open(), lambda _: None)
    with pytest.raises(JobError, match=r"out.zarr is not locked by this job any more: .*lock is gone, or empty"):
        executor.run(LevelProgress(task.plan, done, lambda *_: None, lambda _: None, task.free_bytes), last=True)
    assert {path for path in out.rglob("*") if path.is_file()} == before


def test_a_second_interrupt_gives_the_lock_back(tmp_path: Path) -> None:
    """No thread holds it for ever: while one is still at work the same process goes on with the job."""
    out, gate = tmp_path / "out.zarr", Gate()
    with pytest.MonkeyPatch.context() as patch:
        FILES["flushed"](patch, gate)
        interrupt_twice(patch, gate)
        with pytest.raises(KeyboardInterrupt):
            isovoxel.scale(FIRST, str(out), **OPTIONS)
    assert lock.read_holder(tmp_path / "out.zarr.isovoxel" / LOCK) is None
    with lock.FileLock(tmp_path / "out.zarr.isovoxel" / LOCK, out) as held:
        Attempt(tmp_path / "out.zarr.isovoxel" / LOCK, held.word, out).check()
    gate.open.set()
