"""Outputs of every codec: the same voxels for every reader, resumed as they were begun."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import isovoxel
from command_line import Isovoxel, check_refused
from isovoxel.errors import JobError, OutputExistsError
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.output.provenance import read_provenance
from isovoxel.planning.chunking import CODECS
from outputs import by_tensorstore, levels_of
from small_jobs import stop_after
from store_server import contents, serving

OPTIONS: dict[str, Any] = {
    "factor": (2.0, 1.5, 1.0),
    "input_voxel_size": (2.0, 1.5, 1.0),
    "engine": "exact",
    "chunk": (8, 8, 16),
    "levels": 2,
    "device_memory": "200kB",
    "threads": 2,
}
OTHERS = [name for name in CODECS if name != "blosc-lz4"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Voxels of which some chunks do not compress, some hold few values, and some are empty."""
    voxels = np.random.default_rng(0).integers(0, 65536, (16, 24, 40)).astype(np.uint16)
    voxels[:, 12:] = 300 + voxels[:, 12:] % 9
    voxels[:8, :12, :20] = 0
    np.save(tmp_path / "in.npy", voxels)
    np.save(tmp_path / "labels.npy", voxels.astype(np.uint32) % 5)
    return tmp_path / "in.npy"


@pytest.mark.sampled(1)
@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_the_voxels_are_those_of_the_default(source: Path, tmp_path: Path, version: str) -> None:
    """Image, labels and levels of a job that was resumed without saying the codec again; `verify` reads each chunk."""
    shard = {"shard": (16, 16, 32)} if version == "0.5" else {}
    given = OPTIONS | shard | {"ome_zarr": version, "with_labels": source.with_name("labels.npy")}
    isovoxel.scale(source, tmp_path / "default.zarr", **given)
    for codec in OTHERS:
        other = tmp_path / codec
        with pytest.raises(JobError):
            isovoxel.scale(source, other, codec=codec, listeners=[stop_after()], **given)
        isovoxel.scale(source, other, with_labels=given["with_labels"])
        for below in (".", "labels/labels"):
            assert isovoxel.verify(other / below, every_chunk=True, samples=5).holds
            for level, voxels in enumerate(levels_of(other / below)):
                np.testing.assert_array_equal(voxels, by_tensorstore(tmp_path / "default.zarr" / below, level))
            storage = read_provenance(other / below)["storage"]
            assert (storage["codec"], storage.get("plain", False)) == CODECS[codec]


def test_the_codec_is_that_of_the_bytes(source: Path, tmp_path: Path) -> None:
    """Chunks begin as their codec's do, and are none of blosc's."""
    begins = {"zstd": b"\x28\xb5\x2f\xfd", "gzip": b"\x1f\x8b"}
    for codec, magic in begins.items():
        isovoxel.scale(source, tmp_path / codec, codec=codec, ome_zarr="0.4", **OPTIONS | {"levels": 0})
        chunks = [file for file in (tmp_path / codec / "0").rglob("*") if file.is_file() and file.name.isdecimal()]
        assert len(chunks) > 9
        assert {file.read_bytes()[: len(magic)] for file in chunks} == {magic}


@pytest.mark.parametrize("half", [True, False], ids=["begun", "finished"])
def test_zstd_is_that_of_blosc_where_it_was(source: Path, tmp_path: Path, *, half: bool) -> None:
    """Outputs of before there was another are resumed by the same words; those of today name both."""
    out, again = tmp_path / "out.zarr", {"codec": "zstd", "shard": (16, 16, 32)}
    with pytest.raises(JobError) if half else contextlib.nullcontext():
        isovoxel.scale(source, out, listeners=[stop_after()] * half, **OPTIONS | again | {"codec": "blosc-zstd"})
    with pytest.raises(OutputExistsError, match="codec blosc-zstd, now zstd"):
        isovoxel.scale(source, out, **OPTIONS | again)
    node = json.loads((out / "zarr.json").read_text())
    assert node["attributes"]["isovoxel"]["storage"].pop("plain") is False
    (out / "zarr.json").write_text(json.dumps(node))
    isovoxel.scale(source, out, **OPTIONS | again)
    codecs = json.loads((out / "0" / "zarr.json").read_text())["codecs"][0]["configuration"]["codecs"]
    assert [codec["name"] for codec in codecs] == ["bytes", "blosc", "crc32c"]
    assert isovoxel.verify(out, every_chunk=True, samples=60).holds


def test_a_gpu_is_not_asked_for_what_it_does_not_encode(source: Path, tmp_path: Path, isovoxel: Isovoxel) -> None:
    """It is one sentence, and nothing is written; by itself the processor encodes."""
    words = ("scale", source, tmp_path / "out.zarr", "--factor", "2,1,1", "--codec", "gzip")
    check_refused(isovoxel(*words, "--encode", "gpu"), "the GPU cannot encode: ")
    assert not (tmp_path / "out.zarr").exists()
    assert isovoxel(*words, "--json").json["output"]["encoder"] == "cpu"
    assert isovoxel(*words, "--json").json["input"]["decoder"] == "cpu"


@pytest.mark.slow
def test_in_a_store(source: Path, tmp_path: Path) -> None:
    """The same objects as files."""
    for codec in ("zstd", "gzip"):
        given = OPTIONS | {"codec": codec}
        out, local = ObjectPlace("s3://bucket", f"lab/{codec}.zarr"), tmp_path / codec
        isovoxel.scale(source, local, **given)
        with serving():
            isovoxel.scale(source, str(out), **given)
            assert isovoxel.verify(str(out), every_chunk=True, samples=50).holds
            objects = {name: content for name, content in contents(out).items() if "/c/" in name}
        files = {str(file.relative_to(local)): file for file in local.rglob("*") if file.name.isdecimal()}
        assert objects == {name: file.read_bytes() for name, file in files.items() if file.is_file()}
        assert objects
