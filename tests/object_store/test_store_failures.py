"""A store that fails at any request of a job: what may pass passes unnoticed but for a note, what stays is said."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import isovoxel
from isovoxel.errors import InterruptedJobError, IsovoxelError, JobError, OutputBusyError, OutputError
from isovoxel.execution.events import BlockDone, Event, Retried
from isovoxel.execution.output import OutputState, output_state
from isovoxel.object_store import retries
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.output import lock, shard_store
from isovoxel.output.attempt import Holder
from isovoxel.output.lock import ObjectLock
from small_store import ROOTS, Fault, SmallStore, small_store

TURNS = 5
"""Jobs in which all requests fail, each in one of them."""
PASSING: list[Fault] = [500, 503, 429, 408, "reset", "torn", "late"]
VOXELS = np.random.default_rng(0).integers(0, 65536, (16, 16, 16)).astype("uint16")
OPTIONS: dict[str, Any] = {
    "factor": (2.0, 1.0, 1.0),
    "chunk": (8, 8, 8),
    "shard": (8, 16, 16),
    "levels": 2,
    "threads": 2,
    "engine": "exact",
    "input_voxel_size": (2.0, 1.0, 1.0),
    "device_memory": "20kB",
}


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PAUSES", (0.001,) * 12)
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.02)  # signs of life are among what fails


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with input, labels, and what a local job makes of them."""
    folder = tmp_path_factory.mktemp("local")
    zarr.create_array(folder / "in.zarr", data=VOXELS, chunks=(8, 8, 8))
    zarr.create_array(
        folder / "cells.zarr",
        data=VOXELS // 9000,
        chunks=(8, 16, 16),
        filters=[zarr.codecs.TransposeCodec(order=(2, 1, 0))],
    )
    zarr.create_group(folder / "lab.zarr")
    isovoxel.scale(folder / "in.zarr", folder / "lab.zarr" / "out", with_labels=folder / "cells.zarr", **OPTIONS)
    return folder


@pytest.fixture
def store(request: pytest.FixtureRequest, made: Path) -> Iterator[SmallStore]:
    """Return a store of one kind with input and labels, and a group for the output."""
    with small_store(getattr(request, "param", "s3")) as store:
        for name in ("in.zarr", "cells.zarr"):
            for path in filter(Path.is_file, (made / name).rglob("*")):
                store.put(path.relative_to(made).as_posix(), path.read_bytes())
        store.put("lab.zarr/zarr.json", b'{"zarr_format": 3, "node_type": "group", "attributes": {}}')
        yield store


def scale(store: SmallStore, *listeners: Callable[[Event], None]) -> isovoxel.ScaleResult:
    root = ROOTS[store.kind]
    labels = f"{root}/cells.zarr"
    return isovoxel.scale(f"{root}/in.zarr", f"{root}/lab.zarr/out", with_labels=labels, listeners=listeners, **OPTIONS)


def check_bits(store: SmallStore, made: Path) -> None:
    """Check that the objects are the files of the local job, but for attributes, which name the input; and no more."""
    files = {p.relative_to(made).as_posix(): p.read_bytes() for p in (made / "lab.zarr").rglob("*") if p.is_file()}
    found = {key: data for key, (data, *_) in store.objects.items() if key.startswith("lab.zarr")}
    assert found.keys() == files.keys()
    named = {"lab.zarr/zarr.json", "lab.zarr/out/zarr.json", "lab.zarr/out/labels/cells/zarr.json"}
    assert {key for key in files if files[key] != found[key]} <= named
    assert output_state(f"{ROOTS[store.kind]}/lab.zarr/out/labels/cells") == OutputState(complete=True)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("store", ROOTS, indirect=True)
@pytest.mark.parametrize("turn", range(TURNS))
def test_each_request_fails_once(store: SmallStore, made: Path, turn: int) -> None:
    """Begin, blocks, levels, ledger, lock, membership, labels, complete: the same bits; each new attempt is told."""
    guard, asked, events = threading.Lock(), itertools.count(), list[Event]()

    def fail(_method: str, _path: str) -> Fault:
        with guard:
            k = next(asked)
        return PASSING[k % len(PASSING)] if k % TURNS == turn else None

    store.fault = fail
    result = scale(store, events.append)
    store.fault = lambda *_: None
    check_bits(store, made)
    told = [event for event in events if isinstance(event, Retried)]
    assert result.labels is not None
    assert result.tally.retries + result.labels.tally.retries == len(told) > 0
    assert {event.doing for event in told} >= {
        "reading",
        "reading or writing the output",
        "marking the output complete",
    }


LASTING: dict[str, tuple[int, bytes, str]] = {
    "no permission": (403, b"<Error><Code>AccessDenied</Code></Error>", "does not permit it, with "),
    "expired": (403, b"<Error><Code>ExpiredToken</Code></Error>", "have expired; get new ones"),
    "expired, as S3 says it": (400, b"<Error><Code>ExpiredToken</Code></Error>", "have expired; get new ones"),
    "not known": (401, b"", "does not permit it, with "),
    "no such bucket": (404, b"<Error><Code>NoSuchBucket</Code></Error>", "there is no bucket "),
    "not implemented": (501, b"", "answers 501 Not Implemented"),
}
MOMENTS = {
    "input": ("GET", "/in.zarr/c"),
    "shard": ("PUT", "/lab.zarr/out/0/c"),
    "level": ("PUT", "/lab.zarr/out/2/c"),
    "ledger": ("PUT", ".isovoxel/blocks"),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("case", LASTING)
@pytest.mark.parametrize(
    ("store", "moment"),
    [*(("s3", moment) for moment in MOMENTS), ("gs", "shard"), ("az", "ledger")],
    indirect=["store"],
)
def test_what_stays_ends_the_job_at_once(store: SmallStore, made: Path, case: str, moment: str) -> None:
    """With a sentence that is true, nothing of what the server sent, and a job to go on with."""
    status, store.says, why = LASTING[case]
    verb, path = MOMENTS[moment]
    events: list[Event] = []
    store.fault = lambda method, asked: status if method == verb and path in asked else None
    with pytest.raises(JobError, match=f"{ROOTS[store.kind]}|{why}") as failure:
        scale(store, events.append)
    said = str(failure.value)
    assert why in said
    assert "Token" not in said
    assert "Denied" not in said
    assert not [event for event in events if isinstance(event, Retried)]
    store.fault = lambda *_: None
    scale(store)
    check_bits(store, made)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("key", ["job.json", "lab.zarr/zarr.json", "lab.zarr/out/zarr.json", "in.zarr/zarr.json"])
def test_an_outage_is_not_taken_for_an_answer(store: SmallStore, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """What the store does not give is there none the less: nothing is advised, or done, as if it were not."""

    def stop(event: Event) -> None:
        if isinstance(event, BlockDone):
            raise InterruptedError("stopped from within")

    with pytest.raises(JobError):
        scale(store, stop)
    before = {name: data for name, (data, *_) in store.objects.items() if not name.endswith("lock")}
    monkeypatch.setattr(retries, "PAUSES", (0.001,) * 2)
    store.fault = lambda method, path: 503 if path.endswith(key) and method in ("GET", "HEAD") else None
    with pytest.raises(IsovoxelError, match="answers 503 Service Unavailable") as failure:
        scale(store)
    assert "--overwrite" not in str(failure.value)
    store.fault = lambda *_: None
    assert {name: data for name, (data, *_) in store.objects.items() if not name.endswith("lock")} == before
    assert scale(store).tally.done_before > 0


def test_a_store_that_is_gone_is_asked_for_one_time_only(store: SmallStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the last attempt nothing else is waited for, neither ledger nor lock, until something works again."""
    monkeypatch.setattr(retries, "PAUSES", (0.001, 0.002, 0.004))
    monkeypatch.setattr(lock, "BEAT_SECONDS", 60.0)
    events: list[Event] = []
    gone, again = threading.Event(), list[bool]()
    succeed = retries.Attempts.succeed

    def count(attempts: retries.Attempts) -> None:
        again.extend([True] * attempts._patience.spent.is_set())
        succeed(attempts)

    # A block that another thread scales or encodes meanwhile is something that works, and all may be tried again.
    monkeypatch.setattr(retries.Attempts, "succeed", count)

    def fail(method: str, path: str) -> Fault:
        if method == "PUT" and "/out/1/c" in path:
            gone.set()
        return 503 if gone.is_set() else None

    store.fault = fail
    with pytest.raises(JobError, match=r"answers 503 Service Unavailable; \d+ of \d+ blocks"):
        scale(store, events.append)
    told = [event for event in events if isinstance(event, Retried)]
    assert len(told) <= 3 * (OPTIONS["threads"] * 3 + 1) * (1 + len(again))
    assert {event.pause for event in told} == {0.001, 0.002, 0.004}


@pytest.mark.slow
def test_ctrl_c_ends_a_pause(store: SmallStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the shards of a level are counted, or "complete" is written: nobody waits for a minute."""
    monkeypatch.setattr(retries, "PAUSES", (600.0,))
    for doing, asked in (
        ("counting shards", "prefix=lab.zarr/out/1/"),
        ("marking the output complete", "/out/zarr.json"),
    ):
        begun = threading.Event()

        def interrupt(event: Event, begun: threading.Event = begun, doing: str = doing) -> None:
            if isinstance(event, BlockDone):
                begun.set()
            if isinstance(event, Retried):
                assert event.doing == doing
                signal.raise_signal(signal.SIGINT)

        def fail(method: str, path: str, begun: threading.Event = begun, asked: str = asked) -> Fault:
            return 503 if begun.is_set() and method == "GET" and asked in path else None

        store.fault = fail
        with pytest.raises(InterruptedJobError, match="interrupted; "):
            scale(store, interrupt)
    store.fault = lambda *_: None
    assert scale(store).tally.done_before > 0


def test_a_request_that_hangs_is_left_by_ctrl_c(store: SmallStore) -> None:
    """Where it only asks: what obstore waits for holds up no signal."""
    answers = threading.Event()

    def hang(*_: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        answers.wait(60)

    store.fault = hang
    try:
        with pytest.raises(KeyboardInterrupt):
            ObjectPlace("s3://bucket", "in.zarr/zarr.json").read_bytes()
    finally:
        answers.set()


def test_a_store_needs_a_folder_for_temporary_files(store: SmallStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one, which variable names one is said, and nothing is written."""

    class Nowhere:
        @staticmethod
        def gettempdir() -> str:
            raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(shard_store, "tempfile", Nowhere)
    before = set(store.objects)
    with pytest.raises(OutputError, match=r"waits for its upload in a folder for temporary files, .* set TMPDIR"):
        scale(store)
    assert set(store.objects) == before


@pytest.mark.parametrize("store", ROOTS, indirect=True)
def test_a_lock_without_signs_of_life_is_taken_over(store: SmallStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each store: one that a process on another machine left, once it has given no sign for long enough."""
    place = ObjectPlace(ROOTS[store.kind], "lab.zarr/lock")
    left = asdict(replace(Holder.own(), host="elsewhere")) | {"machine": "another", "word": "x"}
    place.write(json.dumps(left).encode())
    with pytest.raises(OutputBusyError, match="its lock ends"), ObjectLock(place, place):
        pass
    monkeypatch.setattr(lock, "DEAD_SECONDS", -5.0)
    with ObjectLock(place, place) as held:
        assert json.loads(place.read_bytes())["word"] == held.word != "x"
    assert not place.is_file()
