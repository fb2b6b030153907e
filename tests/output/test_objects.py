"""Outputs in an object store: shards, the ledger's lines, the lock, and above all what may be deleted."""

from __future__ import annotations

import json
import os
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from isovoxel.errors import OutputBusyError, OutputError, OutputExistsError
from isovoxel.geometry.grid import Box, VoxelGrid
from isovoxel.object_store import clients
from isovoxel.object_store.objects import PART_BYTES, ObjectPlace
from isovoxel.output import files, lock, shard_store
from isovoxel.output.attempt import Attempt, Holder, forget
from isovoxel.output.destination import check_destination
from isovoxel.output.files import BLOCKS, JOB, NEW
from isovoxel.output.ledger import Ledger, ledger_of, remove_ledger
from isovoxel.output.lock import ObjectLock, read_holder
from isovoxel.output.ome_zarr import mark_complete, missing_shards
from isovoxel.output.provenance import read_provenance
from isovoxel.output.replacing import set_aside
from isovoxel.output.shard import ShardReceipt
from isovoxel.output.shard_store import store_of
from isovoxel.output.writer import OmeZarrWriter
from isovoxel.planning.chunking import Storage
from isovoxel.planning.plan import Plan
from polling import PATIENCE, wait_until
from store_server import Server, contents, upload
from strategies import cut, new_output

SEALS = [ShardReceipt(100, 2**32 - 1, '"tag"'), ShardReceipt(0, 0, '""')]
BUCKET = ObjectPlace("s3://bucket", "")
SHAPE = (20, 30, 40)
STORAGE = Storage((8, 8, 8), (16, 16, 16), "lz4")
VOXELS = np.random.default_rng(0).integers(0, 9, SHAPE).astype("uint16")


@pytest.fixture
def out(server: Server) -> Iterator[ObjectPlace]:
    """Return a place in an empty bucket."""
    yield ObjectPlace("s3://bucket", "lab/out.zarr")
    server.let_be()
    BUCKET.delete_tree()
    clients._clients.clear()


@pytest.fixture(scope="module")
def plan() -> Plan:
    """27 blocks."""
    return cut((30, 30, 30), (1.0, 1.0, 1.0), (10, 10, 10))


def create(out: ObjectPlace, by_way_of: ObjectPlace | None = None) -> OmeZarrWriter:
    return new_output(
        out,
        grid=VoxelGrid(SHAPE, (1.0, 1.0, 1.0)),
        dtype=np.dtype("uint16"),
        storage=STORAGE,
        provenance={"factor": [1, 1, 1]},
        by_way_of=by_way_of,
    )


def check(out: ObjectPlace | str, *, overwrite: bool = False, waiting: int = 1) -> None:
    """Ask for a destination with little to say about it."""
    check_destination(out, overwrite=overwrite, nbytes=2**50, waiting=waiting)


# ---- shards ------------------------------------------------------------------------------------------------------


def test_the_same_objects_as_files(out: ObjectPlace, tmp_path: Path) -> None:
    """Byte for byte, metadata too; their seals hold until they are others, and a copy is known by its checksum."""
    local = new_output(
        tmp_path / "out.zarr",
        grid=VoxelGrid(SHAPE, (1.0, 1.0, 1.0)),
        dtype=np.dtype("uint16"),
        storage=STORAGE,
        provenance={"factor": [1, 1, 1]},
    )
    writer = create(out)
    whole = Box.whole(SHAPE)
    local.write(whole, VOXELS)
    assert missing_shards(out) == 12
    seals = writer.write(whole, VOXELS)
    assert missing_shards(out) == 0
    for path in (out, tmp_path / "out.zarr"):
        mark_complete(path, ["chunk 1"])
    files = {str(p.relative_to(tmp_path / "out.zarr")): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert contents(out) == files
    assert read_provenance(out)["complete"] is True

    def holds() -> bool:
        return OmeZarrWriter(
            out, grid=VoxelGrid(SHAPE, (1.0, 1.0, 1.0)), dtype=np.dtype("uint16"), storage=STORAGE, helpers=0
        ).holds(whole, seals)

    assert holds()
    shard = out / "0/c/1/1/2"
    data = shard.read_bytes()
    shard.write(data[:-1] + b"?")
    assert not holds()
    shard.write(data)
    assert holds()
    last = seals[-1]
    seals[-1] = last._replace(stamp='"another"')
    assert holds()  # by its checksum
    seals[-1] = last._replace(stamp='"another"', crc=1)
    assert not holds()
    seals[-1] = last
    shard.unlink()
    assert not holds()
    assert missing_shards(out) == 1
    writer.close()
    local.close()


def test_a_large_shard_goes_in_parts_and_appears_at_once(server: Server, out: ObjectPlace, tmp_path: Path) -> None:
    """Above 8 MiB; where a part is refused, there is no object, and no file is left."""
    noise = np.random.default_rng(1).integers(0, 65536, (160, 160, 180)).astype("uint16")
    writer = new_output(
        out,
        grid=VoxelGrid(noise.shape, (1.0, 1.0, 1.0)),
        dtype=noise.dtype,
        storage=Storage((64, 64, 64), (192, 192, 192), "none"),
    )
    whole = Box.whole(noise.shape)
    server.asked.clear()
    server.instead = lambda method, path: 400 if method == "PUT" and "/c/" in path else 0
    with pytest.raises(OSError, match="answers 400 Bad Request"):
        writer.write(whole, noise)
    assert missing_shards(out) == 1
    server.let_be()
    spool = writer._store._spool
    assert [path.name for path in spool.iterdir()] == ["lock"]
    (seal,) = writer.write(whole, noise)
    assert seal.size > 8 * 2**20
    assert sum(asked == f"POST /bucket/{out.key}/0/c/0/0/0" for asked in server.asked) == 3  # begun twice, ended once
    np.testing.assert_array_equal(zarr.open_array(read_all(out, tmp_path), path="0", mode="r")[...], noise)
    writer.close()
    assert not spool.exists()


@pytest.mark.parametrize("size", [100, PART_BYTES + 100])
@pytest.mark.parametrize("lost", ["before", "meanwhile"])
def test_an_upload_ends_where_the_lock_is_lost(
    server: Server, out: ObjectPlace, tmp_path: Path, size: int, lost: str
) -> None:
    """Small or in parts, the object of who has taken it over stays, and no part is left in the store."""
    file, place = tmp_path / "shard", out / "0/c/0/0/0"
    file.write_bytes(b"x" * size)
    with ObjectLock(out / "lock", out) as held:
        attempt = Attempt(out / "lock", held.word, out)
        asked: list[int] = []

        def check() -> None:
            if lost == "before" or asked:
                leave(out / "lock")
                place.write(b"theirs")
                forget(held.word)
            asked.append(1)
            attempt.check()

        if lost == "meanwhile" and size <= PART_BYTES:
            place.write(b"there before")
        with pytest.raises(OutputBusyError, match="was taken over by process"):
            place.upload(file, check)
        assert place.read_bytes() == b"theirs"
    with urllib.request.urlopen(f"{server.endpoint}/bucket?uploads") as answer:  # noqa: S310 - http
        assert b"<Upload>" not in answer.read()


def test_a_shard_that_was_put_meanwhile_is_replaced_by_who_holds_the_lock(out: ObjectPlace, tmp_path: Path) -> None:
    """A request of a job that is dead may arrive late; who does the block again puts its own in place of that."""
    file, place = tmp_path / "shard", out / "0/c/0/0/0"
    file.write_bytes(b"ours")
    place.write(b"of a dead job")
    asked: list[int] = []
    tag = place.upload(file, lambda: asked.append(1))
    assert place.read_bytes() == b"ours"
    found = place.find()
    assert found is not None
    assert found.tag == tag
    assert len(asked) == 2


def read_all(place: ObjectPlace, folder: Path) -> Path:
    for path, data in contents(place).items():
        (folder / "copy" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "copy" / path).write_bytes(data)
    return folder / "copy"


def test_what_a_killed_process_left_in_the_spool_is_swept(
    out: ObjectPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing of a process that lives."""
    monkeypatch.setattr(shard_store, "spool_folder", lambda: tmp_path)
    monkeypatch.setattr(shard_store, "YOUNG_SECONDS", -1)
    writer = create(out)
    first = next(Box.whole(SHAPE).tiles(STORAGE.shard))
    encoded = writer.encode(first, VOXELS[first.slices])
    dead = tmp_path / f"{shard_store.SPOOL}-dead"
    dead.mkdir()
    (dead / "shard").touch()
    (tmp_path / "thesis").mkdir()
    store_of(out).sweep()
    assert not dead.exists()
    assert (tmp_path / "thesis").exists()
    assert encoded.seal().size
    writer.close()


def test_a_full_disk_here_is_named(out: ObjectPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = create(out)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutputError, match=r"where shards wait for their upload, is full; .* TMPDIR"):
        writer.write(Box.whole(SHAPE), VOXELS)
    writer.close()
    with pytest.raises(OutputError, match="wait for their upload at a time, but the disk of"):
        check(ObjectPlace("s3://bucket", "new.zarr"), waiting=2**60)


# ---- what may be written, and deleted ----------------------------------------------------------------------------


def test_a_new_place_may_be_written_and_asking_writes_nothing(server: Server, out: ObjectPlace) -> None:
    """Any key will do; folders need not exist."""
    server.asked.clear()
    check(out)
    check(str(out), overwrite=True)
    assert {asked.split()[0] for asked in server.asked} <= {"GET", "HEAD"}


def test_only_a_zarr_is_ever_deleted(out: ObjectPlace) -> None:
    """By its own metadata: not a prefix with photos in it, nor one with JSON of another kind, nor an object."""
    photo = out / "photo"
    for content in (None, b"no json", b"[1]", b'{"zarr_format": 7}'):
        photo.write(b"precious")
        if content is not None:
            (out / "zarr.json").write(content)
        with pytest.raises(OutputExistsError, match=r"out.zarr exists; give --overwrite or another"):
            check(out)
        with pytest.raises(OutputError, match=r"holds objects but is no zarr, so --overwrite does not delete it"):
            check(out, overwrite=True)
        with pytest.raises(OutputError, match="is no zarr"):
            set_aside(out, ledger_of(out), now=True)
        with pytest.raises(OutputExistsError):
            create(out)
        assert photo.read_bytes() == b"precious"
    with pytest.raises(OutputError, match="is an object and no zarr"):
        check(photo, overwrite=True)


def test_an_image_is_deleted_and_what_lies_beside_it_is_not(out: ObjectPlace, plan: Plan) -> None:
    """Names that begin alike are other places."""
    Ledger.begin(ledger_of(out), plan)
    beside = [out.with_name("out.zarr2") / "a", out.with_name("out.zar"), out.with_name("in.zarr") / "zarr.json"]
    for place in beside:
        place.write(b"x")
    create(out).close()
    (out / "0" / "c" / "0" / "0" / "0").write(b"x")
    with pytest.raises(OutputExistsError):
        check(out)
    check(out, overwrite=True)
    set_aside(out, ledger_of(out), now=True)
    assert not out.is_dir()
    assert all(place.is_file() for place in beside)
    check(out)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dies_at", range(14))
def test_a_replacement_that_dies_anywhere_is_gone_on_with(
    server: Server, out: ObjectPlace, plan: Plan, dies_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any number of requests: there is the old output whole, the new one whole, or none, and then no obstacle."""
    monkeypatch.setattr(clients, "RETRIES", 0)
    writer = create(out)
    writer.write(Box.whole(SHAPE), VOXELS)
    writer.close()
    old = contents(out)
    folder = ledger_of(out)
    Ledger.begin(folder, plan)
    begun = len(server.asked)
    clients._clients.clear()

    def replace_it() -> None:
        set_aside(out, folder, now=True)
        create(out, folder / NEW).close()

    server.instead = lambda _method, _path: 400 if len(server.asked) > begun + dies_at else 0
    with pytest.raises(OSError, match="400"):
        replace_it()
    server.let_be()
    if (out / "zarr.json").is_file() and contents(out) != old:
        assert sorted(contents(out)) == ["0/zarr.json", "zarr.json"]
        return
    if not (out / "zarr.json").is_file():
        check(out)  # also without --overwrite, and whatever is left there
    replace_it()
    assert sorted(contents(out)) == ["0/zarr.json", "zarr.json"]
    assert sorted(contents(folder)) == [JOB]


# ---- the ledger --------------------------------------------------------------------------------------------------


def test_what_is_noted_is_read_by_the_next_process(out: ObjectPlace, plan: Plan) -> None:
    """Blocks, seals, filled parts and the plan itself; and nothing is left of it in the end."""
    folder = ledger_of(out)
    assert Ledger.read(folder) is None
    first = Ledger.begin(folder, plan)
    first.add(3, SEALS)
    first.add_filled("chunk (0, 0, 1): torn")
    first.add(26, SEALS)
    first.close()
    second = Ledger.read(folder)
    assert second is not None
    assert second.plan == plan
    assert done(second) == [3, 26]
    assert second.filled == ["chunk (0, 0, 1): torn"]
    assert second.count() == 2
    second.add(3, SEALS[:1])
    assert done(second) == [26]  # the later line counts
    second.close()
    assert done(Ledger.begin(folder, plan)) == []
    (folder / "thesis.txt").write(b"")
    remove_ledger(folder)
    assert sorted(contents(folder)) == ["thesis.txt"]


def done(ledger: Ledger) -> list[int]:
    """Return the blocks that are noted with these seals."""
    return [index for index, is_done in enumerate(ledger.done(lambda _level, _block, seals: seals == SEALS)) if is_done]


def test_many_lines_take_few_objects(
    server: Server, out: ObjectPlace, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that come while a put is under way go together, and objects are filled; threads do not wait for them."""
    monkeypatch.setattr(files, "SEGMENT_BYTES", 5000)
    ledger = Ledger.begin(ledger_of(out), plan)
    before, all_added = len(server.asked), threading.Event()
    monkeypatch.setattr(server, "instead", lambda method, _: 0 * (method != "PUT" or all_added.wait(PATIENCE)))
    threads = [
        threading.Thread(target=lambda: [ledger.add(block % 27, SEALS) for block in range(100)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    all_added.set()  # until then no line is in the store
    ledger.close()
    assert len(server.asked) - before < 40
    assert len(contents(ledger_of(out) / BLOCKS)) < 10
    again = Ledger.read(ledger_of(out))
    assert again is not None
    assert sum(1 for _ in again._lines) == 800
    assert done(again) == list(range(27))


def test_lines_that_cannot_be_put_are_kept_and_said(
    server: Server, out: ObjectPlace, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next line says so; when the store is back, none is missing."""
    monkeypatch.setattr(clients, "RETRIES", 0)
    monkeypatch.setattr(files, "AGAIN_SECONDS", 0.01)
    clients._clients.clear()
    ledger = Ledger.begin(ledger_of(out), plan)
    server.instead = lambda method, _: 403 * (method == "PUT")
    ledger.add(0, SEALS)
    wait_until(lambda: ledger._lines._failure is not None)
    with pytest.raises(PermissionError, match="does not permit it"):
        ledger.add(1, SEALS)
    server.let_be()
    ledger.close()
    assert done(ledger) == [0, 1]


# ---- the lock ----------------------------------------------------------------------------------------------------


def take(place: ObjectPlace) -> None:
    """Take the lock and give it back."""
    with ObjectLock(place, place):
        pass


def leave(place: ObjectPlace, **changes: object) -> None:
    """Leave a lock as a process on another machine would."""
    known = asdict(replace(Holder.own(), **{"host": "elsewhere"} | changes))
    place.write(json.dumps(known | {"machine": "another", "word": "x"}).encode())


def test_one_process_at_a_time(out: ObjectPlace) -> None:
    """The second is told who holds it, and for how long at most it would if it had died; a third comes after."""
    with ObjectLock(out, out):
        with pytest.raises(
            OutputBusyError, match=r"being written by process \d+ on .* since 20.*; if it died, its lock ends 60"
        ):
            take(out)
        assert read_holder(out) is not None
    assert read_holder(out) is None
    take(out)
    assert contents(BUCKET) == {}


def test_of_many_that_come_at_once_one_gets_it(out: ObjectPlace) -> None:
    """The store decides."""
    held, refused = [], []
    ready, end = threading.Barrier(8), threading.Event()

    def try_it() -> None:
        ready.wait()
        try:
            with ObjectLock(out, out):
                held.append(1)
                end.wait()
        except OutputBusyError:
            refused.append(1)
        if len(refused) == 7:
            end.set()

    threads = [threading.Thread(target=try_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 7)


def test_a_process_of_this_machine_that_is_gone_holds_nothing(out: ObjectPlace) -> None:
    with ObjectLock(out, out):
        text = json.loads(out.read_bytes())
    out.write(json.dumps(text | {"began": 1.0}).encode())
    assert read_holder(out) is None
    take(out)


def test_a_holder_on_another_machine_holds_it_as_long_as_it_gives_signs(
    out: ObjectPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the store's clock; also one that has this host's name, and a lock that names nobody."""
    for changes in ({}, {"host": Holder.own().host, "began": 1.0}):
        leave(out, **changes)
        with pytest.raises(OutputBusyError, match="its lock ends"):
            take(out)
        assert read_holder(out) is not None
    out.write(b"{")
    with pytest.raises(OutputBusyError, match="another process"):
        take(out)
    monkeypatch.setattr(lock, "DEAD_SECONDS", -5.0)
    assert read_holder(out) is None
    take(out)
    assert contents(BUCKET) == {}  # no probe is left either


def test_who_was_taken_over_stops(out: ObjectPlace, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds out at its next sign of life, notes no block any more, and leaves the lock to the other."""
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    with ObjectLock(out, out) as held:
        first = out.find()
        wait_until(lambda: out.find() != first)
        attempt = Attempt(out, held.word, out)
        attempt.check()
        ledger = Ledger.begin(ledger_of(out), plan)
        ledger.hold(attempt.check)
        leave(out)
        assert held._beat is not None
        held._beat.join(30)
        with pytest.raises(
            OutputBusyError, match=r"taken over by process .* on elsewhere .*, because this one gave no"
        ):
            ledger.add(0, SEALS)
        ledger.close()
    assert json.loads(out.read_bytes())["host"] == "elsewhere"


def test_answers_that_are_lost_do_not_lose_the_lock(out: ObjectPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A put that worked is asked for again by the client, and refused then: the word in the lock says whose it is."""
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    put = ObjectPlace.write

    def put_twice(place: ObjectPlace, data: bytes, *, new: bool = False, of: str | None = None) -> str:
        put(place, data, new=new, of=of)
        return put(place, data, new=new, of=of)

    monkeypatch.setattr(ObjectPlace, "write", put_twice)
    with ObjectLock(out, out) as held:
        beats = held._beats
        wait_until(lambda: held._beats >= beats + 3)
        Attempt(out, held.word, out).check()


def test_a_store_that_refuses_is_one_sentence(server: Server, out: ObjectPlace) -> None:
    """No bucket, or no permission: known before anything is written."""
    with pytest.raises(OutputError, match="cannot be written: there is no bucket s3://nothing"):
        check(ObjectPlace("s3://nothing", "out.zarr"))
    server.instead = lambda method, _: 403 * (method == "PUT")
    with pytest.raises(OutputError, match="cannot be written: s3://bucket does not permit it, with the credentials of"):
        take(out)
    server.instead = lambda *_: 403
    with pytest.raises(OutputError, match="does not permit it"):
        check(out)


def test_an_output_that_cannot_be_read_is_not_taken_for_none(
    server: Server, out: ObjectPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is out of reach may hold it none the less."""
    from isovoxel.execution.output import output_state

    upload(tmp_path, out)
    monkeypatch.setattr(clients, "RETRIES", 0)
    clients._clients.clear()
    server.instead = lambda *_: 503
    with pytest.raises(OSError, match="answers 503"):
        output_state(str(out))
