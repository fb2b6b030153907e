"""Damage after the job: `verify` finds it wherever it is, by receipts that were kept and by reading every chunk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import isovoxel as package
from command_line import Isovoxel, check_refused, listing
from isovoxel.errors import DoesNotFitError, JobError
from isovoxel.execution.events import Event, JobStarted
from isovoxel.execution.output import OutputState, output_state
from small_jobs import OPTIONS, interrupt
from small_store import ROOTS, small_store

KEPT = {"job.json", "blocks", "made-by-isovoxel"}
WAYS: dict[str, dict[str, Any]] = {"0.5": {}, "0.4": {"ome_zarr": "0.4", "shard": None}}


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()} if folder.exists() else set()


def shards(output: Path) -> list[Path]:
    """Return the files of an output that hold voxels."""
    return sorted(file for file in output.rglob("*") if file.is_file() and file.name.isdecimal())


def flipped(file: Path, seed: int) -> Callable[[], int]:
    """Flip a bit somewhere in a file, and return what puts it back, with the time of before."""
    content, found = file.read_bytes(), file.stat()
    rng = np.random.default_rng(seed)
    at = int(rng.integers(len(content)))
    file.write_bytes(content[:at] + bytes([content[at] ^ (1 << int(rng.integers(8)))]) + content[at + 1 :])
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))  # which a disk that forgets a bit does not change
    return lambda: file.write_bytes(content)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("ome_zarr", WAYS)
def test_a_flipped_bit_in_any_file_is_found_by_its_receipt(source: Path, tmp_path: Path, ome_zarr: str) -> None:
    """Of each shard, in either version and on each level; and an output that is as it was holds."""
    output = tmp_path / "out.zarr"
    package.scale(source, output, **OPTIONS | WAYS[ome_zarr] | {"levels": 1}, keep_receipts=True)
    assert names(tmp_path / "out.zarr.isovoxel") == KEPT
    files = shards(output)
    assert len(files) > 12
    found = package.verify(output, samples=1)
    assert (found.holds, found.receipts, found.damaged) == (True, len(files), 0)
    for seed, file in enumerate(files):
        mend = flipped(file, seed)
        found = package.verify(output, samples=1)
        assert (found.holds, found.damaged) == (False, 1)
        assert "is not as it was written" in found.first_damaged
        assert ("of level 1" in found.first_damaged) == (file.relative_to(output).parts[0] == "1")
        mend()
    assert package.verify(output, samples=1).holds


def test_every_chunk_is_read_where_that_is_asked(source: Path, tmp_path: Path, isovoxel: Isovoxel) -> None:
    """A bit that flips in any shard is found by the checksum in it, without receipts, and told with exit code 1."""
    output = tmp_path / "out.zarr"
    package.scale(source, output, **OPTIONS | {"levels": 1})
    files = shards(output)
    found = package.verify(output, samples=1, every_chunk=True)
    assert (found.holds, found.receipts, found.chunks, found.damaged) == (True, None, len(files), 0)
    for seed, file in enumerate(files):
        mend = flipped(file, seed)
        found = package.verify(output, samples=1, every_chunk=True)
        assert (found.holds, found.damaged) == (False, 1)
        if seed == 0:
            said = isovoxel("verify", output, "--samples", 1, "--every-chunk")
            assert said.code == 1
            assert f"chunks    {len(files)} chunks read" in said.out
            assert "damage    in 1 place, the first: " in said.out
            assert "does not hold: damaged files" in said.out
        mend()
    with pytest.raises(DoesNotFitError):
        package.verify(output, samples=1, every_chunk=True, memory=1000)


def test_receipts_are_kept_where_that_is_asked_and_not_else(source: Path, tmp_path: Path, isovoxel: Isovoxel) -> None:
    """By Python, command, variable and job file; the same job again does nothing, and leaves all as it is."""
    output = tmp_path / "out.zarr"
    package.scale(source, output, **OPTIONS)
    assert not (tmp_path / "out.zarr.isovoxel").exists()
    assert package.verify(output, samples=1).receipts is None
    words = ("scale", source, output, "--factor", "2,1,1", "--engine", "exact", "--chunk", "8,8,8", "--levels", 0)
    said = isovoxel(*words, "--keep-receipts")
    check_refused(said, "was made with no receipts that are kept, now with them: give --overwrite")
    assert isovoxel(*words, "--keep-receipts", "--overwrite").code == 0
    before = listing(tmp_path)
    for again in (words, (*words, "--keep-receipts")):
        assert isovoxel(*again, "--json").json["seconds"] == 0
        assert listing(tmp_path).keys() == before.keys()
    assert names(tmp_path / "out.zarr.isovoxel") == KEPT
    (tmp_path / "job.toml").write_text(
        f'input = "{source}"\noutput = "{tmp_path}/b.zarr"\nkeep_receipts = true\nfactor = [2, 1, 1]\n'
    )
    assert isovoxel("scale", "--config", tmp_path / "job.toml").code == 0
    assert names(tmp_path / "b.zarr.isovoxel") == KEPT
    said = isovoxel("verify", tmp_path / "b.zarr", "--json", "--samples", 50).json
    assert (said["holds"], said["damaged"]) == (True, 0)
    assert said["receipts"] > 0


@pytest.mark.parametrize(("then", "now"), [(True, None), (None, True)])
def test_a_job_that_goes_on_keeps_all_receipts(
    source: Path, tmp_path: Path, then: bool | None, now: bool | None
) -> None:
    """Those of the blocks that were done before as well, whether they are asked for at its beginning or at its end."""
    output = tmp_path / "out.zarr"
    interrupt(source, output, keep_receipts=then)
    package.scale(source, output, keep_receipts=now, **OPTIONS)
    assert names(tmp_path / "out.zarr.isovoxel") == KEPT
    assert package.verify(output, samples=1).receipts == len(shards(output))


def test_receipts_go_with_their_output_and_come_back_with_it(source: Path, tmp_path: Path) -> None:
    """A successor without receipts leaves none; one that fails at once leaves the old output with its own."""
    output, folder = tmp_path / "out.zarr", tmp_path / "out.zarr.isovoxel"
    package.scale(source, output, **OPTIONS, keep_receipts=True)

    def stop(event: Event) -> None:
        if isinstance(event, JobStarted):
            raise JobError("reading failed")

    with pytest.raises(JobError, match="the old one is back"):
        package.scale(source, output, **OPTIONS, overwrite=True, listeners=[stop])
    assert output_state(output) == OutputState(complete=True)
    assert names(folder) == KEPT
    assert package.verify(output, samples=1).receipts == len(shards(output))
    package.scale(source, output, **OPTIONS, overwrite=True)
    assert not folder.exists()
    assert package.verify(output, samples=1).receipts is None


def test_receipts_that_are_gone_or_of_another_output_are_not_believed(
    source: Path, tmp_path: Path, isovoxel: Isovoxel
) -> None:
    """An output that was moved without them is compared with none, which is told, and is no damage."""
    output, folder = tmp_path / "out.zarr", tmp_path / "out.zarr.isovoxel"
    package.scale(source, output, **OPTIONS, keep_receipts=True)
    package.scale(source, tmp_path / "b.zarr", **OPTIONS | {"codec": "none"}, keep_receipts=True)
    folder.rename(tmp_path / "elsewhere")
    assert package.verify(output, samples=1).receipts == 0
    (tmp_path / "b.zarr.isovoxel").rename(folder)
    found = package.verify(output, samples=1)
    assert (found.holds, found.receipts) == (True, 0)
    assert "receipts  gone, so none was compared" in isovoxel("verify", output, "--samples", 1).out


def test_receipts_are_kept_in_a_store(source: Path) -> None:
    """As objects beside the output, with which all of them are compared."""
    output = f"{ROOTS['s3']}/out.zarr"
    with small_store("s3") as store:
        package.scale(source, output, **OPTIONS, keep_receipts=True)
        shards = [key for key in store.objects if key.startswith("out.zarr/0/c/")]
        kept = {key.split("/")[1] for key in store.objects if key.startswith("out.zarr.isovoxel/")}
        assert kept == {"job.json", "blocks"}
        found = package.verify(output, samples=1)
        assert (found.holds, found.receipts) == (True, len(shards))
        content, generation, when = store.objects[shards[-1]]
        store.objects[shards[-1]] = (content[:-1] + bytes([content[-1] ^ 1]), generation, when)
        found = package.verify(output, samples=1)
        assert (found.holds, found.damaged) == (False, 1)
