"""Verifying outputs whose shards are garbage, are something else, or cannot be read: one true answer of each."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import tensorstore
import zarr

import isovoxel
from command_line import Isovoxel
from isovoxel.errors import CorruptInputError
from isovoxel.geometry.grid import Box
from isovoxel.readers import zarr_files
from isovoxel.readers.open import open_volume

OPTIONS: dict[str, Any] = {
    "factor": (2, 2, 2),
    "chunk": (8, 8, 8),
    "levels": 1,
    "input_voxel_size": (1, 1, 1),
    "engine": "exact",
}
BYTES = np.random.default_rng(1)


def garbage(shard: Path, _: Path) -> None:
    shard.write_bytes(BYTES.bytes(shard.stat().st_size))


def cut(shard: Path, _: Path) -> None:
    os.truncate(shard, shard.stat().st_size // 2)


def empty(shard: Path, _: Path) -> None:
    os.truncate(shard, 0)


def folder(shard: Path, _: Path) -> None:
    shard.unlink()
    shard.mkdir()


def foreign(shard: Path, other: Path) -> None:
    """Put a shard of another array in its place."""
    shutil.copy(other, shard)


def dangling(shard: Path, _: Path) -> None:
    shard.unlink()
    shard.symlink_to("nowhere")


def ring(shard: Path, _: Path) -> None:
    shard.unlink()
    shard.symlink_to(shard.name)


def pipe(shard: Path, _: Path) -> None:
    shard.unlink()
    os.mkfifo(shard)


def file_above(shard: Path, _: Path) -> None:
    """Put a file in the place of the folder above it."""
    shutil.rmtree(shard.parent)
    shard.parent.touch()


DAMAGES = [garbage, cut, empty, folder, foreign, dangling, ring, pipe, file_above]
MISSING = (folder, dangling, ring, pipe, file_above)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of outputs of both versions."""
    folder = tmp_path_factory.mktemp("made")
    np.save(folder / "in.npy", BYTES.integers(0, 65536, (16, 16, 16)).astype("uint16"))
    isovoxel.scale(folder / "in.npy", folder / "0.5.zarr", shard=(16, 16, 16), **OPTIONS)
    isovoxel.scale(folder / "in.npy", folder / "0.4.zarr", ome_zarr="0.4", **OPTIONS)
    other = {"factor": (3, 3, 3), "chunk": (12, 12, 12), "shard": (24, 24, 24), "levels": 0}
    isovoxel.scale(folder / "in.npy", folder / "other.zarr", **OPTIONS | other)
    return folder


def shards(out: Path, level: int) -> list[Path]:
    """Return the files of a level's voxels."""
    return sorted(p for p in (out / str(level)).rglob("*") if p.is_file() and p.name.isdecimal())


@pytest.mark.sampled(4)
@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_an_output_with_a_damaged_shard_does_not_hold(
    made: Path, tmp_path: Path, isovoxel: Isovoxel, damage: Callable[[Path, Path], None], version: str, level: int
) -> None:
    """Whatever is in the shard's place, whichever levels are compared with it: exit code 1, and why."""
    out = tmp_path / "out.zarr"
    shutil.copytree(made / f"{version}.zarr", out)
    shard = shards(out, level)[0]
    gone = len(list(shard.parent.iterdir())) if damage is file_above else int(damage in MISSING)
    damage(shard, shards(made / "other.zarr", 0)[0])
    ran = isovoxel("verify", str(out), "--samples", "120")
    assert (ran.code, ran.err) == (1, "")
    lines = dict(line.split(maxsplit=1) for line in ran.out.splitlines())
    assert "cannot be read, the first because" in lines["damage"]
    assert "is corrupt: it" in lines["damage"]
    missing = "" if not gone else f"{gone} shard{'s' * (gone > 1)} missing"
    assert lines["shards"] == (missing or "all are there")
    assert lines["verdict"] == f"does not hold: {f'{missing}, ' if missing else ''}damaged files"


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE], ids=errno.errorcode.get)
def test_shards_that_the_system_does_not_give_are_no_verdict(
    made: Path, monkeypatch: pytest.MonkeyPatch, isovoxel: Isovoxel, number: int, level: int
) -> None:
    """Nobody knows whether such an output holds, so nothing is said of that."""
    at_once, unreadable = zarr_files._open_at_once, {str(path) for path in shards(made / "0.5.zarr", level)}

    def refuse(path: str, flags: int) -> int:
        if str(path) in unreadable:
            raise OSError(number, os.strerror(number), path)
        return at_once(path, flags)

    monkeypatch.setattr(zarr_files, "_open_at_once", refuse)
    ran = isovoxel("verify", str(made / "0.5.zarr"), "--samples", "60")
    assert (ran.code, ran.out) == (2, "")
    where = made / "0.5.zarr" / "1" if level else made / "0.5.zarr"
    assert ran.err.startswith(f"error: {where} cannot be read, in chunk (")
    assert ran.err.endswith(f"): {os.strerror(number)}\n")


def test_folders_that_cannot_be_listed_are_no_verdict(
    made: Path, monkeypatch: pytest.MonkeyPatch, isovoxel: Isovoxel
) -> None:
    """The shards in it cannot be counted."""
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if f"{os.sep}0{os.sep}c{os.sep}" in str(path):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    out = made / "0.5.zarr"
    ran = isovoxel("verify", str(out))
    assert (ran.code, ran.out, ran.err) == (2, "", f"error: the shards of {out} cannot be counted: Permission denied\n")


def zarr_array(path: Path, **options: Any) -> Path:
    """Write the first two planes of four, and return the file of the first chunk."""
    array = zarr.create_array(path, shape=(4, 4, 4), chunks=(2, 4, 4), dtype="u2", **options)
    array[:2] = 7
    (file,) = (file for file in path.rglob("*") if file.is_file() and file.name[-1].isdecimal())
    return file


def n5_dataset(path: Path) -> Path:
    """Write the same as N5."""
    metadata = {"dimensions": [4, 4, 4], "blockSize": [4, 4, 2], "dataType": "uint16", "compression": {"type": "raw"}}
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": str(path)}, "metadata": metadata}
    tensorstore.open(spec, create=True).result()[:, :, :2] = np.full((4, 4, 2), 7, "u2")
    return path / "0" / "0" / "0"


KINDS: dict[str, Callable[[Path], Path]] = {
    "zarr v2": lambda path: zarr_array(path, zarr_format=2),
    "zarr v3": zarr_array,
    "zarr v3, shards": lambda path: zarr_array(path, shards=(2, 4, 4)),
    "zarr v2 of zarr-python": lambda path: zarr_array(path, zarr_format=2, compressors=numcodecs.BZ2()),
    "zarr v3 of zarr-python": lambda path: zarr_array(path, filters=[zarr.codecs.TransposeCodec(order=(2, 1, 0))]),
    "N5": n5_dataset,
}


@pytest.mark.parametrize("damage", [folder, dangling, ring, pipe], ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_not_read_as_a_chunk_that_is_not_stored(
    tmp_path: Path, kind: str, damage: Callable[[Path, Path], None]
) -> None:
    """A chunk that is not stored is the fill value; one that is stored elsewhere, or was, is not."""
    file = KINDS[kind](tmp_path / "a")
    volume = open_volume(tmp_path / "a")
    assert volume.read(Box.whole(volume.shape)).sum() == 7 * 32
    damage(file, file)
    with pytest.raises(
        CorruptInputError, match=r"\(0, 0, 0\) .* is corrupt: it is (no file|a link that leads nowhere)"
    ):
        open_volume(tmp_path / "a").read(Box.whole(volume.shape))
