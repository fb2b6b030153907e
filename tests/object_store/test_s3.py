"""Jobs from and to S3, as the command line runs them: killed, gone on with, refused, and never telling a secret."""

from __future__ import annotations

import itertools
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ome_zarr_models.v05
import pytest
import yaozarrs
import zarr

import isovoxel as package
from command_line import Isovoxel, check_refused
from isovoxel.errors import JobError
from isovoxel.execution.executor import Executor
from isovoxel.execution.job import Job
from isovoxel.execution.output import OutputState, output_state
from isovoxel.geometry.grid import VoxelGrid
from isovoxel.metadata.ome import image_attributes
from isovoxel.object_store import clients
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.output.ledger import ledger_of
from polling import wait_until
from small_jobs import stop_after
from store_server import KEY, SECRET, Server, contents, serving, shards_noted, upload

VOXELS = np.random.default_rng(0).integers(0, 65536, (32, 50, 64)).astype("uint16")
SOURCE = "s3://bucket/in.ome.zarr"
OUT = ObjectPlace("s3://bucket", "results/out.zarr")
WORDS = ("--factor", "2,1.3,1", "--chunk", "8,8,8", "--shard", "16,16,16", "--threads", "3")
SMALL = {"cle": "80kB", "exact": "30kB"}
"""Room on the device, for a shard."""
KILLS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local")
    attributes = image_attributes(VoxelGrid(VOXELS.shape, (2.0, 1.3, 1.0), unit="micrometer"), name="in")
    group = zarr.create_group(folder / "in.ome.zarr", attributes=attributes)
    names = {"dimension_names": ("z", "y", "x")}
    group.create_array("0", data=VOXELS, chunks=(16, 16, 16), shards=(32, 32, 32), **names)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """Return a server with the input."""
    with serving() as server:
        upload(folder / "in.ome.zarr", ObjectPlace("s3://bucket", "in.ome.zarr"))
        yield server


@pytest.fixture(autouse=True)
def _tidy(server: Server) -> Iterator[None]:
    """Leave the input alone in the store after each test."""
    yield
    server.let_be()
    clients._clients.clear()
    ObjectPlace("s3://bucket", "results").delete_tree()


def options(engine: str) -> dict[str, Any]:
    """Return the options of a job of many small blocks, for Python."""
    return {
        "factor": (2.0, 1.3, 1.0),
        "chunk": (8, 8, 8),
        "shard": (16, 16, 16),
        "threads": 3,
        "engine": engine,
        "device_memory": SMALL[engine],
    }


def words(engine: str) -> list[str]:
    """Return the same for the command line."""
    return [*WORDS, "--engine", engine, "--device-memory", SMALL[engine]]


def check_bits(folder: Path, engine: str, place: ObjectPlace = OUT) -> None:
    """Check that the objects are the files of the local job, but for the attributes, which name the input."""
    local = folder / f"{engine}.zarr"
    if not local.exists():
        package.scale(folder / "in.ome.zarr", local, **options(engine))
    expected = {p.relative_to(local).as_posix(): p.read_bytes() for p in local.rglob("*") if p.is_file()}
    found = contents(place)
    assert found.keys() == expected.keys()
    assert [path for path in expected if expected[path] != found[path]] == ["zarr.json"]


def start(folder: Path, *typed: object) -> subprocess.Popen[str]:
    """Start the command line in a process of its own, which leaves shards in a folder when it is killed."""
    command = [sys.executable, "-m", "isovoxel", *map(str, typed)]
    environment = os.environ | {"TMPDIR": str(folder)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("engine", SMALL)
def test_the_same_bits_as_on_the_disk(engine: str, server: Server, folder: Path, tmp_path: Path) -> None:
    """From S3 to S3, from S3 to the disk and back; valid for those who check OME-Zarr; verified where it lies."""
    result = package.scale(SOURCE, str(OUT), **options(engine))
    assert result.path == str(OUT)
    check_bits(folder, engine)
    assert not ledger_of(OUT).is_dir()
    assert output_state(str(OUT)) == OutputState(complete=True)
    assert package.verify(str(OUT), samples=30).holds
    here = package.scale(SOURCE, tmp_path / "out.zarr", **options(engine)).path
    assert here == tmp_path / "out.zarr"
    assert package.verify(here, against=SOURCE, samples=30).holds
    there = OUT.with_name("from disk.zarr")
    package.scale(folder / "in.ome.zarr", str(there), halo="map_overlap", **options(engine))
    check_bits(folder, engine, there)

    group = zarr.open_group(
        zarr.storage.ObjectStore(clients.client("s3://bucket"), read_only=True), path=OUT.key, mode="r"
    )
    ome_zarr_models.v05.Image.from_zarr(group)
    yaozarrs.validate_ome_object(dict(group.attrs)["ome"])
    np.testing.assert_array_equal(group["0"][...], zarr.open_array(here / "0", mode="r")[...])

    server.asked.clear()
    assert package.scale(SOURCE, str(OUT), **options(engine)).tally.done_before == result.plan.n_blocks
    assert not [asked for asked in server.asked if not asked.startswith(("GET", "HEAD"))]


@pytest.mark.slow
def test_a_job_that_is_killed_goes_on(server: Server, folder: Path) -> None:
    """Again and again, without mercy; no shard of a block that was noted is put again, and the objects are right."""
    noted: set[str] = set()
    went_on = 0
    for kill in range(KILLS + 1):
        puts, killed = itertools.count(), threading.Event()

        def instead(method: str, path: str, puts: Iterator[int] = puts, killed: threading.Event = killed) -> int:
            """Put some shards, and keep the others waiting until the process is killed."""
            if method == "PUT" and "/c/" in path and next(puts) >= 12:
                killed.wait()
                return 503
            return 0

        server.asked.clear()
        server.instead = instead if kill < KILLS else (lambda *_: 0)
        with start(folder, "scale", SOURCE, OUT, *words("exact")) as process:
            if kill < KILLS:
                await_shards(process, len(noted) + 8)
                process.kill()
            out, err = process.communicate()
            killed.set()
        again = {path for asked in server.asked if asked.startswith("PUT") and (path := shard_of(asked))}
        assert not again & noted
        went_on += bool(noted) and bool(again)
        if kill == KILLS:
            break
        assert process.returncode == -signal.SIGKILL, err
        state = output_state(str(OUT))
        assert state is not None
        assert not state.complete
        noted = shards_noted(OUT)
        assert state.done == len(noted) > 0
    assert process.returncode == 0, err
    assert went_on == KILLS
    assert "blocks already done" in err
    assert str(OUT) in out
    check_bits(folder, "exact")
    assert not ledger_of(OUT).is_dir()


@pytest.mark.slow
def test_further_levels_are_made_in_the_store(server: Server, folder: Path) -> None:
    """Read from it, written to it, gone on with there; counted when they are missing, and verified."""
    wanted = options("exact") | {"device_memory": "100kB", "levels": 2}
    local = package.scale(folder / "in.ome.zarr", folder / "levels.zarr", **wanted)

    with pytest.raises(JobError, match=r"stopped from within; \d+ of \d+ blocks are done and kept"):
        package.scale(SOURCE, str(OUT), listeners=[stop_after(level=1)], **wanted)
    state = output_state(str(OUT))
    assert state is not None
    assert local.plan.n_blocks < state.done < state.blocks == local.plan.all_blocks
    server.asked.clear()
    assert package.scale(SOURCE, str(OUT), **wanted).tally.done_before == state.done
    assert not [asked for asked in server.asked if asked.startswith("PUT") and shard_of(asked)]
    check_bits(folder, "levels")
    assert package.verify(str(OUT), samples=16).levels == 3
    (OUT / "2" / "c" / "0" / "0" / "0").unlink()
    found = package.verify(str(OUT), samples=8)
    assert (found.holds, found.missing_shards) == (False, 1)


def await_shards(process: subprocess.Popen[str], enough: int) -> None:
    """Wait until so many shards are noted, or the process has ended."""
    wait_until(lambda: process.poll() is not None or len(shards_noted(OUT)) >= enough)


def shard_of(asked: str) -> str:
    """Return which shard a request is about."""
    found = re.search(r"/0/c/(\d+/\d+/\d+)$", asked)
    return found[1] if found else ""


@pytest.mark.slow
def test_a_second_process_is_refused(server: Server, folder: Path, isovoxel: Isovoxel) -> None:
    """While the first writes; and told who it is, and how long its lock lasts if it died."""
    writes, go_on = threading.Event(), threading.Event()

    def hold(method: str, path: str) -> int:
        if method == "PUT" and "/c/" in path:
            writes.set()
            go_on.wait(60)
        return 0

    server.instead = hold
    with start(folder, "scale", SOURCE, OUT, *words("exact")) as process:
        try:
            while process.poll() is None and not writes.wait(0.1):
                pass
            said = isovoxel("scale", SOURCE, OUT, *words("exact"))
            check_refused(said, f"is being written by process {process.pid} on ")
            assert "its lock ends 60 seconds after its last sign of life" in said.err
            assert f"process {process.pid}" in isovoxel("info", OUT).out
        finally:
            go_on.set()
            process.communicate()
    assert process.returncode == 0


REFUSALS = {
    "no such bucket for the input": ("s3://nothing/in.zarr", str(OUT), {}, 0, "AWS_ACCESS_KEY_ID is set"),
    "no such bucket for the output": (SOURCE, "s3://nothing/out.zarr", {}, 0, "there is no bucket s3://nothing"),
    "nothing at the input": (f"{SOURCE}/nothing", str(OUT), {}, 0, "is not there, or may not be read with"),
    "a wrong key": (SOURCE, str(OUT), {}, 403, "may not be read with the credentials of the environment"),
    "no credentials": (SOURCE, str(OUT), {"AWS_ACCESS_KEY_ID": ""}, 0, "there are no credentials for S3"),
    "the input itself": (SOURCE, SOURCE, {}, 0, "is the input itself"),
    "a bucket": (SOURCE, "s3://bucket", {}, 0, "is a whole bucket"),
    "what is no zarr": (SOURCE, "s3://bucket/results/photos", {}, 0, "holds objects but is no zarr"),
    "nobody there": (SOURCE, str(OUT), {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, 0, "does not answer"),
    "TIFF": (
        "s3://bucket/results/photos/a.jpg",
        str(OUT),
        {},
        0,
        "by address isovoxel reads OME-Zarr and zarr arrays only",
    ),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("case", REFUSALS)
def test_it_is_said_in_one_line(case: str, server: Server, isovoxel: Isovoxel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 2, and nothing is changed in the store, with --overwrite and without a secret in what is said."""
    source, out, environment, status, why = REFUSALS[case]
    (OUT.with_name("photos") / "a.jpg").write(b"precious")
    before = contents(ObjectPlace("s3://bucket", ""))
    with monkeypatch.context() as patch:
        patch.setattr(clients, "RETRIES", 1)
        for name, value in environment.items():
            patch.setenv(name, value)
        server.instead = lambda *_: status
        said = isovoxel("scale", source, out, *words("exact"), "--overwrite", "--quiet")
    server.let_be()
    clients._clients.clear()
    check_refused(said, why)
    assert SECRET not in said.err
    assert KEY not in said.err
    assert contents(ObjectPlace("s3://bucket", "")) == before


@pytest.mark.slow
def test_secrets_are_nowhere(server: Server, isovoxel: Isovoxel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in an output, nor its ledger, what is printed, a plan, or what is sent to another process."""
    tasks: list[object] = []
    run = Job.run

    def note(job: Job, executor: Executor) -> object:
        tasks.append((job.plan, job.source, job.output, job.watch.volume.read, job.watch.volume.identity))
        return run(job, executor)

    monkeypatch.setattr(Job, "run", note)
    turn = itertools.count()
    server.instead = lambda method, path: 403 * (method == "PUT" and "/c/" in path and next(turn) > 20)
    texts = []
    for typed in (["scale", SOURCE, OUT], ["info", OUT]):  # half-way, with a ledger
        said = isovoxel(*typed, *(words("exact") if typed[0] == "scale" else []))
        texts += [said.out, said.err]
    half = contents(ObjectPlace("s3://bucket", ""))
    assert any("job.json" in path for path in half)
    assert any("blocks" in path for path in half)
    server.let_be()
    for typed in (
        ["plan", SOURCE, "--json", *words("exact")],
        ["scale", SOURCE, OUT, *words("exact"), "--isolate"],
        ["info", OUT, "--json"],
        ["verify", OUT, "--json", "--samples", "9"],
    ):
        said = isovoxel(*typed)
        assert said.code == 0, said.err
        texts += [said.out, said.err]
    everything = [*half.values(), *contents(ObjectPlace("s3://bucket", "")).values(), pickle.dumps(tasks)]
    everything += [text.encode() for text in texts]
    assert len(tasks) == 2
    for secret in (KEY, SECRET):
        assert not [found for found in everything if secret.encode() in found]
