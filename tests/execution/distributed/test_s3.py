"""Many workers from and to S3: each with credentials of its own, which nobody else is told."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import zarr

import isovoxel as package
from command_line import Isovoxel
from execution.distributed.clusters import Foreign
from isovoxel.errors import JobError
from isovoxel.execution.distributed import executor
from isovoxel.execution.output import OutputState, output_state
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.output.ledger import ledger_of
from polling import wait_until
from store_server import KEY, SECRET, Server, contents, serving, shards_noted, upload

VOXELS = np.random.default_rng(0).integers(0, 65536, (32, 32, 32)).astype(np.uint16)
SOURCE = "s3://bucket/in.zarr"
OUT = ObjectPlace("s3://bucket", "results/out.zarr")
OPTIONS: dict[str, Any] = {
    "factor": (2.0, 2.0, 2.0),
    "chunk": (16, 16, 16),
    "shard": (16, 16, 16),
    "threads": 2,
    "engine": "exact",
    "device_memory": "30kB",
}
WORDS = ["--factor", "2,2,2", "--chunk", "16,16,16", "--shard", "16,16,16", "--threads", "2", "--engine", "exact"]
WORDS += ["--device-memory", "30kB"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Return a server with the input, which takes its time with shards."""
    zarr.create_array(tmp_path / "in.zarr", data=VOXELS, chunks=(16, 16, 16))
    with serving() as server:
        upload(tmp_path / "in.zarr", ObjectPlace("s3://bucket", "in.zarr"))
        server.instead = lambda method, path: time.sleep(0.05 * (method == "PUT" and "/c/" in path)) or 0
        yield server
        server.let_be()
        ObjectPlace("s3://bucket", "results").delete_tree()  # what moto keeps outlives the server


@pytest.fixture
def cluster(server: Server, foreign: Foreign) -> Foreign:
    """Return a cluster whose two workers reach the server."""
    for name in ("a", "b"):
        foreign.worker(name, **server.environment)
    return foreign


def run(*words: object, kill: bool) -> tuple[int, str]:
    """Run a job from and to the store, if asked for until some blocks are noted; return its code and what it said."""
    command = [sys.executable, "-m", "isovoxel", "scale", SOURCE, str(OUT), *WORDS, *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
        if kill:
            wait_until(lambda: job.poll() is not None or len(shards_noted(OUT)) >= 6)
            job.kill()
        said, _ = job.communicate(timeout=120)
    return job.returncode, said


@pytest.mark.slow
@pytest.mark.parametrize("hired", ["own", "foreign"])
def test_a_client_that_is_killed_goes_on(hired: str, server: Server, tmp_path: Path, request: Any) -> None:
    """No shard that was noted is put again, and the objects are the files of a local job in one process."""
    address = request.getfixturevalue("cluster").address if hired == "foreign" else ""
    workers = ["--scheduler", address] if address else ["--workers", "cpu:2"]
    code, said = run(*workers, kill=True)
    assert code == -signal.SIGKILL, said
    noted, state = shards_noted(OUT), output_state(str(OUT))
    assert state is not None
    assert not state.complete
    assert state.done == len(noted) >= 6
    server.asked.clear()
    code, said = run(*workers, kill=False)
    assert code == 0, said
    put = {path.partition("/out.zarr/0/c/")[2] for path in server.asked if path.startswith("PUT")} - {""}
    assert not put & noted
    assert len(put | noted) == state.blocks == 64
    assert output_state(str(OUT)) == OutputState(complete=True)
    assert not ledger_of(OUT).is_dir()
    package.scale(tmp_path / "in.zarr", tmp_path / "whole.zarr", **OPTIONS)
    local = {
        path.relative_to(tmp_path / "whole.zarr").as_posix(): path.read_bytes()
        for path in (tmp_path / "whole.zarr").rglob("*")
        if path.is_file()
    }
    found = contents(OUT)
    assert found.keys() == local.keys()
    assert [path for path in local if local[path] != found[path]] == ["zarr.json"]  # which names the input


@pytest.mark.slow
def test_a_worker_without_credentials_is_named(server: Server, foreign: Foreign, isovoxel: Isovoxel) -> None:
    """Before anything is written, though the client and another worker have some."""
    foreign.worker("rich", **server.environment)
    foreign.worker("poor", AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
    wait_until(
        lambda: isovoxel("devices", "--scheduler", foreign.address).out.count("worker ") == 2, lambda: foreign.logs
    )
    before = contents(ObjectPlace("s3://bucket", ""))
    said = isovoxel("scale", SOURCE, OUT, *WORDS, "--scheduler", foreign.address, "--quiet")
    assert said.code == 2
    assert said.err.count("\n") == 1
    assert "error: the worker poor on " in said.err
    assert "cannot open the input" in said.err
    assert "there are no credentials for S3" in said.err
    assert contents(ObjectPlace("s3://bucket", "")) == before
    assert not [text for text in (said.out, said.err, foreign.logs) if KEY in text or SECRET in text]


@pytest.mark.slow
def test_secrets_are_nowhere(
    server: Server, cluster: Foreign, isovoxel: Isovoxel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in what workers are sent, nor in what they log when the store refuses them, in a plan, or in the store."""
    sent: list[bytes] = []
    add_plugin = executor.add_plugin

    def note(client: Any, plugin: Any, *words: Any, **options: Any) -> None:
        sent.append(cloudpickle.dumps(plugin))
        add_plugin(client, plugin, *words, **options)

    monkeypatch.setattr(executor, "add_plugin", note)
    turn = itertools.count()
    server.instead = lambda method, path: 403 * (method == "PUT" and "/c/" in path and next(turn) > 10)
    with pytest.raises(JobError, match=r"does not permit it, .* blocks are done and kept") as failure:
        package.scale(SOURCE, str(OUT), scheduler=cluster.address, **OPTIONS)
    server.let_be()
    planned = isovoxel("plan", SOURCE, "--scheduler", cluster.address, "--json", *WORDS)
    assert planned.code == 0, planned.err
    half = contents(ObjectPlace("s3://bucket", ""))
    assert any("job.json" in path for path in half)
    assert "does not permit it" in cluster.logs
    texts = [str(failure.value), planned.out, planned.err, cluster.logs]
    everything = [*sent, *half.values(), *(text.encode() for text in texts)]
    assert len(sent) == 1
    for secret in (KEY, SECRET):
        assert not [found for found in everything if secret.encode() in found]
