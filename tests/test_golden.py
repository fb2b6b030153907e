"""What version 0.1 has begun or written is opened, verified and finished by this version, to the same voxels.

The archives in `golden/0.1` are made by `golden/make.py`. They name the path that their inputs had, and the device of
that machine: `placed` puts both right, once it has seen that the ledger is the output's by the fingerprint that 0.1
wrote.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import isovoxel as api
from command_line import Isovoxel, check_refused, listing
from golden.make import CASES, PLACE, STORE, STORED, stored_array
from isovoxel import api as api_module
from isovoxel import options
from isovoxel.engines.devices import find_device
from isovoxel.execution import recipe
from isovoxel.execution.output import OutputState, output_state
from isovoxel.object_store import clients
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.output.attempt import DEAD_SECONDS
from isovoxel.output.files import JOB
from isovoxel.output.ledger import ledger_of
from isovoxel.output.lock import ObjectLock
from isovoxel.planning import chunking, optimizer, pyramid
from isovoxel.planning.optimizer import Change
from isovoxel.planning.plan import Plan
from isovoxel.planning.resume import plan_from_json
from store_server import contents, serving, upload

ARCHIVES = Path(__file__).with_name("golden") / "0.1"
DONE = {
    "cle": (5, 13),
    "cle-plain": (0, 1),
    "exact": (5, 18),
    "exact-cubic": (2, 5),
    "levels": (3, 12),
    "labels": (1, 3),
    "series": (6, 8),
    "member": (5, 18),
    "with-labels": (2, 11),
    "convert": (5, 10),
}
"""How many blocks of the half-done jobs are done, and how many they have; of an image with labels, of the labels."""


def unpacked(name: str, folder: Path) -> Path:
    """Return a folder with what is in an archive, as it is."""
    with tarfile.open(ARCHIVES / f"{name}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def images(folder: Path) -> list[Path]:
    """Return the outputs in a folder, an image before its labels."""
    files = [*folder.rglob(".zattrs"), *folder.rglob("zarr.json")]
    return sorted(file.parent for file in files if made(file))


def made(file: Path) -> dict[str, Any] | None:
    """Return what made an output, by a file of its metadata; None where it is none."""
    node = json.loads(file.read_text())
    attributes: dict[str, Any] = node.get("attributes", {}) if file.name == "zarr.json" else node
    found: dict[str, Any] | None = attributes.get("isovoxel")
    return found


def placed(name: str, folder: Path) -> Path:
    """Return a folder with what is in an archive, whose outputs know where it is, and the device that is here."""
    unpacked(name, folder)
    device = json.dumps(find_device().name)

    def put_right(file: Path) -> None:
        text = file.read_text().replace(str(PLACE), str(folder.resolve()))
        was = (
            (made(file) or {}).get("device", {}).get("name") if file.name != JOB else json.loads(text)["device"]["name"]
        )
        if was is not None:
            text = text.replace(json.dumps(was), device)
        file.write_text(text)

    for output in images(folder):
        file = next(output / name for name in ("zarr.json", ".zattrs") if (output / name).exists())
        job = ledger_of(output) / JOB
        assert isinstance(job, Path)
        if job.exists():
            assert plan_from_json(job.read_text()).fingerprint == (made(file) or {})["fingerprint"]
            put_right(job)
        was = (made(file) or {})["fingerprint"]
        put_right(file)
        if job.exists():
            file.write_text(file.read_text().replace(was, plan_from_json(job.read_text()).fingerprint))
    return folder


@pytest.fixture(autouse=True)
def _another_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this be a later version, whose algorithms make the same bits."""
    monkeypatch.setattr(recipe, "__version__", "9.9.9")


def words_of(name: str, at: str) -> list[str]:
    """Return the command whose output lies in a folder."""
    command, source, output, *words = CASES[name].words.split()
    return [command, source, f"{at}/{output}", *words]


@pytest.fixture
def _other_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every default be another one than in 0.1."""
    for name, value in {"boundary": "constant", "codec": "zstd", "ome_zarr": "0.4"}.items():
        monkeypatch.setitem(options.NEW, name, value)
    monkeypatch.setattr(api_module, "CONVERTING", {"interpolation": "linear", "engine": "cle"})
    monkeypatch.setattr(pyramid, "LARGEST_SIDE", 10)
    monkeypatch.setattr(chunking, "CHUNK", 32)


def bare(name: str, at: str) -> list[str]:
    """Return a case's command with the options of other outputs only."""
    words = words_of(name, at)
    return words[:3] + (words[words.index("--with-labels") :][:2] if "--with-labels" in words else [])


def levels(output: Path) -> list[Any]:
    """Return the voxels of all levels."""
    group = zarr.open_group(output, mode="r")
    return [np.asarray(group[key][...]) for key in sorted(group.array_keys())]  # type: ignore[index]


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("_other_defaults")
def test_options_that_are_not_given_are_those_of_a_finished_output(
    name: str, isovoxel: Isovoxel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever the defaults of today: the command does nothing, with its options and without them."""
    monkeypatch.chdir(placed(name, tmp_path))
    before = listing(tmp_path)
    for words in (words_of(name, "done"), bare(name, "done")):
        assert isovoxel(*words, "--json").json["seconds"] == 0
    assert listing(tmp_path) == before


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", CASES)
def test_a_finished_output_is_verified_and_left_alone(
    name: str, isovoxel: Isovoxel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It opens, says that it is complete, holds, and the command that made it does nothing."""
    monkeypatch.chdir(placed(name, tmp_path))
    outputs = images(tmp_path / "done")
    assert len(outputs) == 1 + (name == "with-labels")
    for output in outputs:
        assert isovoxel("info", output, "--json").json["output"]["complete"] is True
        assert isovoxel("verify", output, "--samples", 30, "--json").json["holds"] is True
    before = listing(tmp_path)
    said = isovoxel(*words_of(name, "done"), "--json").json
    assert said["seconds"] == 0
    assert listing(tmp_path) == before


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", CASES)
def test_a_job_that_was_begun_is_finished(
    name: str, isovoxel: Isovoxel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It says how far it is, does what is left and nothing else, and ends with the voxels of the finished one."""
    output = images(placed(name, tmp_path) / "half")[-1]
    state = output_state(output)
    assert state is not None
    assert (state.done, state.blocks, state.complete) == (*DONE[name], False)
    monkeypatch.chdir(tmp_path)
    finish(name, words_of(name, "half"), tmp_path, isovoxel)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("_other_defaults")
def test_options_that_are_not_given_are_those_of_the_job_that_was_begun(
    name: str, isovoxel: Isovoxel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever the defaults of today: it ends as it was begun."""
    monkeypatch.chdir(placed(name, tmp_path))
    finish(name, bare(name, "half"), tmp_path, isovoxel)


def finish(name: str, words: list[str], tmp_path: Path, isovoxel: Isovoxel) -> None:
    """Finish a half-done job by a command, and compare it with the finished one."""
    output = images(tmp_path / "half")[-1]
    said = isovoxel(*words, "--json").json
    said = said.get("labels") or said
    assert said["happened"]["done_before"] == DONE[name][0]
    assert output_state(output) == OutputState(complete=True)
    assert not list(tmp_path.rglob("*.isovoxel"))
    # Another processor's device may round cle's float32 another way.
    apart = 1 if CASES[name].engine == "cle" else 0
    for expected, found in zip(images(tmp_path / "done"), images(tmp_path / "half"), strict=True):
        for those, these in zip(levels(expected), levels(found), strict=True):
            assert these.dtype == those.dtype
            np.testing.assert_allclose(these.astype(np.float64), those.astype(np.float64), rtol=0, atol=apart)
        check_without_checksums(found)


def check_without_checksums(output: Path) -> None:
    """Check that every chunk of a shard is as long as blosc says: the metadata of 0.1 know of nothing behind it."""
    for metadata in output.glob("[0-9]*/zarr.json"):
        (sharding,) = json.loads(metadata.read_text())["codecs"]
        names = [codec["name"] for codec in sharding["configuration"]["codecs"]]
        assert "crc32c" not in names
        for shard in metadata.parent.glob("c/**/*"):
            if shard.is_file() and "blosc" in names:
                content = shard.read_bytes()
                per_shard = np.divide(
                    json.loads(metadata.read_text())["chunk_grid"]["configuration"]["chunk_shape"],
                    sharding["configuration"]["chunk_shape"],
                )
                index = np.frombuffer(content[-16 * int(per_shard.prod()) - 4 : -4], "<u8").reshape(-1, 2)
                for offset, length in index[index[:, 1] < 2**63].tolist():
                    assert int.from_bytes(content[offset + 12 : offset + 16], "little") == length


def raised(monkeypatch: pytest.MonkeyPatch, concerns: Callable[[Plan], bool]) -> None:
    """Let the bits of some plans be others than those of 0.1."""
    monkeypatch.setattr(optimizer, "CHANGES", (Change("they are others", concerns),))


@pytest.mark.sampled(5)
@pytest.mark.parametrize("at", ["done", "half"])
@pytest.mark.parametrize(
    ("name", "concerns", "says"),
    [
        ("cle", lambda plan: plan.engine == "cle", "revisions (1, 1)"),
        ("cle", lambda plan: plan.interpolation == "area", "revisions (1, 1)"),
        ("exact", lambda plan: plan.engine == "cle", ""),
        ("exact", lambda plan: plan.interpolation == "linear" and plan.source.dtype == "uint16", "revisions (1)"),
        ("labels", lambda plan: plan.interpolation != "mode", ""),
    ],
)
def test_other_bits_are_refused_and_no_others(
    name: str,
    concerns: Callable[[Plan], bool],
    says: str,
    at: str,
    isovoxel: Isovoxel,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """What an algorithm's change does not concern goes on; what it does would be a mix of two results."""
    monkeypatch.chdir(placed(name, tmp_path))
    raised(monkeypatch, concerns)
    before = listing(tmp_path)
    said = isovoxel(*words_of(name, at), "--json")
    if says:
        check_refused(said, says)
        assert "(isovoxel 0.1.0), now" in said.err
        assert "--overwrite" in said.err
        assert listing(tmp_path) == before
        assert isovoxel("info", images(tmp_path / at)[0], "--json").json["output"]["done"] == (
            DONE[name][0] if at == "half" else 0
        )
    else:
        assert said.code == 0


@pytest.mark.slow
def test_a_job_in_an_object_store_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an array in memory: nothing of what 0.1 has written is changed for the test.

    Its lock, of a process of another machine, was put a moment ago, so the store's clock is a minute ahead.
    """
    unpacked(STORE, tmp_path)
    now_ns = ObjectLock._now_ns
    monkeypatch.setattr(ObjectLock, "_now_ns", lambda lock: now_ns(lock) + int(DEAD_SECONDS * 1e9))
    with serving():
        bucket = upload(tmp_path, ObjectPlace("s3://bucket", ""))
        try:
            array, half = stored_array(), "s3://bucket/half/out.zarr"
            state = output_state(half)
            assert state is not None
            assert 2 <= state.done < state.blocks
            assert api.scale(array, "s3://bucket/done/out.zarr", **STORED).seconds == 0
            result = api.scale(array, half, **STORED)
            assert result.tally.done_before == state.done
            assert api.verify(half, against=array, samples=20).holds
            done, found = (contents(bucket / at / "out.zarr") for at in ("done", "half"))
            assert found.keys() == done.keys()
            assert {key for key in done if done[key] != found[key]} <= {"zarr.json"}
        finally:
            clients._clients.clear()


def test_golden_archives_are_small() -> None:
    """A test suite is no place for data."""
    sizes = [path.stat().st_size for path in ARCHIVES.glob("*.tar.gz")]
    assert len(sizes) == len(CASES) + 1
    assert sum(sizes) < 300_000
