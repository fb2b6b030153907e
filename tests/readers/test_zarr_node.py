"""Metadata of zarr arrays are read here as zarr-python reads them, or left to it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numcodecs import Blosc as BloscV2
from numcodecs import GZip, Zlib, Zstd
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, ZstdCodec

from isovoxel.readers.zarr_node import ArrayNode, node_of, usual_node

V3: dict[str, dict[str, Any]] = {
    "plain": {"compressors": None},
    "zstd": {"compressors": ZstdCodec(level=-3, checksum=True)},
    "gzip": {"compressors": GzipCodec(level=1)},
    "blosc": {"compressors": BloscCodec(cname="lz4", shuffle="bitshuffle", typesize=2)},
    "checksums": {"compressors": [ZstdCodec(), Crc32cCodec()]},
    "shards": {"shards": (4, 8, 8), "compressors": BloscCodec(cname="zstd", typesize=2)},
    "index at the start": {
        "serializer": ShardingCodec(chunk_shape=(2, 4, 4), codecs=[BytesCodec(), ZstdCodec()], index_location="start"),
        "chunks": (4, 8, 8),
        "compressors": None,
    },
    "dots": {"chunk_key_encoding": {"name": "v2", "separator": "."}},
    "slashes": {"chunk_key_encoding": {"name": "default", "separator": "/"}, "dimension_names": ["t", "y", None]},
    "big endian": {"serializer": BytesCodec(endian="big"), "compressors": None},
    "bytes": {"dtype": "uint8", "fill_value": 7, "attributes": {"_ARRAY_DIMENSIONS": ["z", "Y", "x"]}},
    "floats": {"dtype": "float32", "fill_value": 0.1},
    "doubles": {"dtype": "float64", "fill_value": 3},
}
V2: dict[str, dict[str, Any]] = {
    "plain": {"compressors": None},
    "blosc": {"compressors": BloscV2("lz4", shuffle=BloscV2.BITSHUFFLE)},
    "zstd": {"compressors": Zstd(level=1)},
    "gzip": {"compressors": GZip(1)},
    "zlib": {"compressors": Zlib(1)},
    "big endian": {"dtype": ">i2", "fill_value": -3},
    "slashes": {"chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "names": {"dtype": "|u1", "attributes": {"_ARRAY_DIMENSIONS": ["z", "Y", "x"]}},
    "no fill value": {"fill_value": None},
    "floats": {"dtype": "<f4", "fill_value": 0.1},
}
USUAL = {
    f"v{version}, {name}": (version, made) for version, kinds in ((3, V3), (2, V2)) for name, made in kinds.items()
}
UNUSUAL: dict[str, dict[str, Any]] = {
    "half floats": {"dtype": "float16"},
    "booleans": {"dtype": "bool"},
    "no number": {"dtype": "float32", "fill_value": float("nan")},
    "filters": {"zarr_format": 2, "filters": [Zlib(1)]},
    "column order": {"zarr_format": 2, "order": "F"},
    "two compressors": {"compressors": [GzipCodec(), ZstdCodec()]},
    "chunks of shards compressed twice": {
        "serializer": ShardingCodec(chunk_shape=(2, 4, 4)),
        "chunks": (4, 8, 8),
        "compressors": ZstdCodec(),
    },
}


def make(folder: Path, **options: Any) -> Path:
    """Make an array without chunks."""
    options = {"shape": (5, 9, 10), "chunks": (2, 4, 4), "dtype": "uint16"} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of orders of v2, which zarr-python wants elsewhere
        zarr.create_array(folder, **options)
    return folder


def by_zarr(folder: Path) -> ArrayNode:
    """Return the node as zarr-python reads it."""
    return node_of(zarr.open_array(folder, mode="r"))


def said(node: ArrayNode) -> dict[str, Any]:
    """Return what readers take of a node: a fill value with its type, of the metadata what says where voxels are."""
    codecs = node.metadata.get("codecs", ())
    inner = codecs[0].get("configuration", {}) if codecs else {}
    return {
        "plain": (node.zarr_format, node.shape, node.dtype.newbyteorder("="), node.chunks, node.shards, node.folder),
        "fill": None if node.fill is None else (float(node.fill), np.dtype(type(node.fill)).name),
        "names": node.axis_names,
        "fills": node.fills,
        "codecs": [codec["name"] for codec in (*codecs, *inner.get("codecs", ()))],
        "endian": [codec.get("configuration", {}).get("endian") for codec in (*codecs, *inner.get("codecs", ()))],
        "index": inner.get("index_location"),
        "keys": node.metadata.get("chunk_key_encoding"),
        "v2": [node.metadata.get(key) for key in ("dtype", "compressor", "order", "dimension_separator")],
    }


def refused() -> Any:
    """Stand for zarr-python where it must not be asked."""
    raise AssertionError("zarr-python was asked")


@pytest.mark.parametrize("kind", USUAL)
def test_usual_metadata_are_read_as_zarr_python_reads_them(tmp_path: Path, kind: str) -> None:
    """Of every kind that is read here, shape, type, chunks, fill value, names and codecs are the same."""
    version, options = USUAL[kind]
    folder = make(tmp_path / "a", zarr_format=version, **options)
    node = usual_node(folder, refused)
    assert node is not None
    assert said(node) == said(by_zarr(folder))


@pytest.mark.parametrize("kind", UNUSUAL)
def test_other_metadata_are_left_to_zarr_python(tmp_path: Path, kind: str) -> None:
    """What is not read here is none of this module's."""
    assert usual_node(make(tmp_path / "a", **UNUSUAL[kind]), refused) is None


OTHERS: tuple[Any, ...] = (None, True, 0, -1, 1.5, 10**30, "", "none", "NaN", [], [0], [2, "3"], {}, {"name": "x"})
"""What may stand in damaged metadata in place of a sound value."""


def changed(document: Any) -> Iterator[Any]:
    """Yield a document once for each value in it and each other value in its place, or without it, or with one more."""
    if isinstance(document, dict):
        for key, value in document.items():
            yield {name: kept for name, kept in document.items() if name != key}
            for other in (*OTHERS, *changed(value)):
                yield document | {key: other}
        yield document | {"more": 1}
    elif isinstance(document, list):
        for at, value in enumerate(document):
            for other in (*OTHERS, *changed(value)):
                yield [*document[:at], other, *document[at + 1 :]]
        yield document[:-1]
        yield [*document, *document[-1:]]


@pytest.mark.parametrize(
    "kind", ["v3, shards", "v3, checksums", "v3, floats", "v3, slashes", "v2, blosc", "v2, names", "v2, floats"]
)
def test_damaged_metadata_are_left_to_zarr_python_or_read_alike(tmp_path: Path, kind: str) -> None:
    """Whatever is exchanged, left out or added: nothing is read here that zarr-python refuses or reads otherwise."""
    version, options = USUAL[kind]
    folder = make(tmp_path / "a", zarr_format=version, **options)
    file = folder / ("zarr.json" if version == 3 else ".zarray")
    sound = json.loads(file.read_text())
    taken = left = 0
    for document in changed(copy.deepcopy(sound)):
        file.write_text(json.dumps(document))
        node = usual_node(folder, refused)
        if node is None:
            left += 1
            continue
        taken += 1
        assert said(node) == said(by_zarr(folder)), document
    assert left > 100
    assert taken > 5  # other sizes, fill values and levels are sound as well


def test_what_is_no_json_is_left_to_zarr_python(tmp_path: Path) -> None:
    """Neither cut metadata nor cut attributes are read here."""
    folder = make(tmp_path / "a", zarr_format=2)
    (folder / ".zattrs").write_text("{")
    assert usual_node(folder, refused) is None
    (folder / ".zattrs").write_text("[]")
    assert usual_node(folder, refused) is None
    (folder / ".zarray").write_text("{")
    assert usual_node(folder, refused) is None


def test_where_zarr_python_is_told_to_refuse_missing_chunks_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings of zarr-python are respected: those of this process, of the environment, and of its files."""
    folder = make(tmp_path / "a")
    with zarr.config.set({"array.read_missing_chunks": False}):
        assert usual_node(folder, refused) is None
    assert usual_node(folder, refused) is not None
    monkeypatch.delitem(sys.modules, "zarr")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert usual_node(folder, refused) is not None
    monkeypatch.setenv("ZARR_ARRAY__READ_MISSING_CHUNKS", "False")
    assert usual_node(folder, refused) is None
    monkeypatch.delenv("ZARR_ARRAY__READ_MISSING_CHUNKS")
    (tmp_path / ".config" / "zarr").mkdir(parents=True)
    assert usual_node(folder, refused) is None


def test_a_user_without_a_home_opens_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user is a number, and while another thread loads zarr-python."""
    folder = make(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "zarr", types.ModuleType("zarr"))
    assert usual_node(folder, refused) is None
    monkeypatch.delitem(sys.modules, "zarr")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _: (_ for _ in ()).throw(KeyError("no such user")))
    assert usual_node(folder, refused) is not None


def test_opening_a_usual_array_does_not_load_zarr_python(tmp_path: Path) -> None:
    """A process that opens and reads one does not wait until zarr-python is loaded."""
    folder = make(tmp_path / "a", shards=(4, 8, 8))
    code = (
        "import sys, isovoxel; from isovoxel.geometry.grid import Box; volume = isovoxel.open_volume(sys.argv[1]); "
        "print(volume.shape, volume.read(Box((0, 0, 0), (2, 4, 4))).max(), 'zarr' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert ran.stdout.split(") ") == ["(5, 9, 10", "0 False\n"]
