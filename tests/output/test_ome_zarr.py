"""The metadata of an output's group and arrays are those that zarr-python writes, document by document."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec
from zarr.storage import MemoryStore

from isovoxel.geometry.grid import AXES, VoxelGrid
from isovoxel.metadata.series import SeriesAxis
from isovoxel.output.ome_zarr import array_documents, group_documents
from isovoxel.planning.chunking import CODECS, Storage
from stored_as import codec_fields

ATTRIBUTES = {"ome": {"version": "0.5", "name": "Zürich"}, "isovoxel": {"complete": False, "factor": [2.0, 0.404]}}
TIME = (SeriesAxis("t", 3, 1.5, "second"), SeriesAxis("c", 2))


Levels = list[tuple[VoxelGrid, Storage]]


def written(levels: Levels, dtype: np.dtype[Any], series: tuple[SeriesAxis, ...]) -> dict[str, Any]:
    """Return what zarr-python writes for the same group and arrays."""
    made: dict[str, Any] = {}
    level, storage = levels[0]
    group = zarr.create_group(
        MemoryStore(made), zarr_format=3 if storage.zarr_format == 3 else 2, attributes=ATTRIBUTES
    )
    names = (*(axis.name for axis in series), *AXES)
    ones = (1,) * len(series)
    for number, (level, storage) in enumerate(levels):
        how: dict[str, Any]
        codecs: list[Any] = []
        if storage.zarr_format == 2:
            how = {
                "chunk_key_encoding": {"name": "v2", "separator": "/"},
                "attributes": {"_ARRAY_DIMENSIONS": names},
                "compressors": None,
            }
            if storage.plain:
                how["compressors"] = {
                    "zstd": {"id": "zstd", "level": 1},
                    "gzip": {"id": "gzip", "level": 1},
                }[storage.codec]
            elif storage.codec != "none":
                clevel = {"lz4": 5, "zstd": 1}[storage.codec]
                how["compressors"] = {
                    "id": "blosc",
                    "cname": storage.codec,
                    "clevel": clevel,
                    "shuffle": 2,
                    "blocksize": 0,
                }
        else:
            if storage.plain:
                codecs.append({"zstd": ZstdCodec(level=1), "gzip": GzipCodec(level=1)}[storage.codec])
            elif storage.codec != "none":
                cname: Any = storage.codec
                clevel = {"lz4": 5, "zstd": 1}[storage.codec]
                codecs.append(BloscCodec(cname=cname, clevel=clevel, shuffle="bitshuffle", typesize=dtype.itemsize))
            codecs += [Crc32cCodec()] if storage.checksum else []
            how = {"shards": (*ones, *storage.shard), "dimension_names": names, "compressors": codecs or None}
        group.create_array(
            str(number),
            shape=(*(axis.length for axis in series), *level.shape),
            dtype=dtype,
            chunks=(*ones, *storage.chunk),
            filters=None,
            fill_value=0,
            **how,
        )
    return {key: json.loads(value.to_bytes()) for key, value in made.items()}


@pytest.mark.parametrize("series", [(), TIME], ids=["a volume", "a series"])
@pytest.mark.parametrize(
    ("version", "checksum", "codec"),
    [("0.5", True, "blosc-lz4"), ("0.5", False, "blosc-zstd"), ("0.5", True, "none"), ("0.5", False, "none")]
    + [("0.5", True, "zstd"), ("0.5", False, "gzip")]
    + [("0.4", False, codec) for codec in CODECS],
)
def test_the_metadata_are_those_of_zarr_python(
    version: str, checksum: bool, codec: str, series: tuple[SeriesAxis, ...]
) -> None:
    """Of each dtype, codec and version; every document and no other, with the same values."""
    shard = (8, 8, 16) if version == "0.5" else (4, 8, 8)
    storage = Storage((4, 8, 8), shard, ome_zarr=version, checksum=checksum, **codec_fields(codec))
    levels = [(VoxelGrid((9, 20, 30)), storage), (VoxelGrid((9, 10, 15)), storage)]
    for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"):
        made = group_documents(storage.zarr_format, ATTRIBUTES)
        for number, (grid, how) in enumerate(levels):
            described = array_documents(grid, how, np.dtype(name), series)
            made |= {f"{number}/{key}": text for key, text in described.items()}
        assert {key: json.loads(text) for key, text in made.items()} == written(levels, np.dtype(name), series)


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_a_group_alone_is_that_of_zarr_python(version: str) -> None:
    """As those above an output that is a member of a zarr are."""
    zarr_format = 3 if version == "0.5" else 2
    made: dict[str, Any] = {}
    zarr.create_group(MemoryStore(made), zarr_format=zarr_format)
    assert {key: json.loads(text) for key, text in group_documents(zarr_format).items()} == {
        key: json.loads(value.to_bytes()) for key, value in made.items()
    }
