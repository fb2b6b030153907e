"""What the metadata of a zarr array say, read without zarr-python where they are of the usual kind.

Loading zarr-python takes longer than many jobs compute: 0.3 s on two cores, and 0.9 s where it finds cupy. So metadata
of which every key and value is known here are read here. All others, damaged ones too, are left to zarr-python, which
reads them or says what is wrong with them.

Source: https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html and ``v2/v2.0.html``.
"""

from __future__ import annotations

import math
import os
import re
import site
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isovoxel.object_store.files import ATTRIBUTES, parse_json, read_array
from isovoxel.object_store.objects import ObjectPlace, Place

if TYPE_CHECKING:
    import zarr

    from isovoxel.readers.packed import ZipPlace

DTYPES = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32", "float64")
"""Data types that are read here."""
DIMENSIONS = "_ARRAY_DIMENSIONS"
"""Attribute in which xarray names the axes of an array that has no names by itself."""


@dataclass(frozen=True)
class ArrayNode:
    """What the metadata of a zarr array say."""

    zarr_format: int
    """2 or 3."""
    shape: tuple[int, ...]
    """Of the array."""
    dtype: np.dtype[Any]
    """Of its elements; of the encoded ones, the metadata tell the byte order."""
    chunks: tuple[int, ...]
    """Shape of what is decoded in one go; with shards, of the inner chunks."""
    shards: tuple[int, ...] | None
    """Shape of the shards, if there are any."""
    fill: Any
    """Value of what is not stored; None where v2 leaves it open."""
    names: Any
    """What is said of the axes' names: a list, if it is sound."""
    metadata: Mapping[str, Any]
    """The metadata as the format has them."""
    folder: str | ObjectPlace | ZipPlace | None
    """Absolute path of the array, or its place in an object store or a zip; None for another store."""
    fills: bool
    """Whether chunks that are not stored may be read as the fill value."""
    opened: Callable[[], zarr.Array[Any]]
    """Returns the array as zarr-python opens it."""

    @property
    def axis_names(self) -> list[str]:
        """The names of its axes, in lower case, each empty where it has none."""
        if not isinstance(self.names, list | tuple) or len(self.names) != len(self.shape):
            return [""] * len(self.shape)
        return [name.lower() if isinstance(name, str) else "" for name in self.names]


def node_of(array: zarr.Array[Any]) -> ArrayNode:
    """Return the node of an array that zarr-python has opened."""
    metadata = array.metadata
    names = getattr(metadata, "dimension_names", None)
    return ArrayNode(
        zarr_format=metadata.zarr_format,
        shape=array.shape,
        dtype=np.dtype(array.dtype),
        chunks=array.chunks,
        shards=array.shards,
        fill=metadata.fill_value,
        names=array.attrs.get(DIMENSIONS) if names is None else names,
        metadata=metadata.to_dict(),
        folder=_folder_of(array.store_path),
        # zarr-python from 3.2 on can be told to refuse missing chunks.
        fills=bool(getattr(getattr(array, "config", None), "read_missing_chunks", True)),
        opened=lambda: array,
    )


def _folder_of(where: Any) -> str | ObjectPlace | ZipPlace | None:
    """Return where an array lies by its `zarr.storage.StorePath`, or None where we do not read."""
    from zarr.storage import LocalStore, ZipStore

    # A subclass may do anything.
    if type(where.store) is LocalStore:
        return str((Path(where.store.root) / where.path).resolve())
    if type(where.store) is ZipStore and where.store.read_only:
        from isovoxel.readers.packed import zip_place

        place = zip_place(where.store.path, where.path)
        return place if place.is_stored() else None
    # One of ours, or zarr-python would not have been told to load the module.
    ours = sys.modules.get("isovoxel.readers.zarr_python")
    if ours is not None and type(where.store) is ours.RootStore:
        return ObjectPlace(where.store.root, where.path)
    return None


def usual_node(place: Place, opened: Callable[[], zarr.Array[Any]]) -> ArrayNode | None:
    """Return the node of the array in a folder or an object store, or None where zarr-python has to open it.

    Raises
    ------
    OSError
        If a file is there and cannot be read.
    """
    if not isinstance(place, Path | ObjectPlace) or _zarr_is_configured():
        return None
    try:
        metadata, zarr_format = read_array(place)
        described = _described_v3(metadata) if zarr_format == 3 else _described_v2(place, metadata)
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError):
        return None
    folder = place if isinstance(place, ObjectPlace) else str(place.resolve())
    return ArrayNode(**described, zarr_format=zarr_format, folder=folder, fills=True, opened=opened)


def _zarr_is_configured() -> bool:
    """Return whether zarr-python may have been told to read in another way than by itself: to refuse missing chunks."""
    if (zarr := sys.modules.get("zarr")) is not None:
        config = getattr(zarr, "config", None)  # there is none while another thread loads it
        return config is None or not config.get("array.read_missing_chunks", True)
    folders = ["/etc", *(f"{prefix}/etc" for prefix in (sys.prefix, *site.PREFIXES)), os.path.expanduser("~/.config")]  # noqa: PTH111 - a user may have no home
    return any(name.startswith("ZARR_") for name in os.environ) or any(
        os.path.exists(f"{folder}/zarr")  # noqa: PTH110 - it may not be seen
        for folder in folders
    )


# ---- metadata of the usual kind --------------------------------------------------------------------------------------

# What is not of it raises a ValueError, or whatever else a value of another kind leads to.


def _require(usual: object) -> None:
    if not usual:
        raise ValueError("no metadata of the usual kind")


def _described_v3(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a node of v3 says."""
    node = {"attributes": {}, "dimension_names": None, "storage_transformers": [], **metadata}
    _require(node.keys() == _KEYS_V3 and (node["zarr_format"], node["node_type"]) == (3, "array"))
    _require(node["storage_transformers"] == [] and isinstance(node["attributes"], dict))
    shape, names, codecs, shards = node["shape"], node["dimension_names"], node["codecs"], None
    _require_shape(shape, 0)
    if names is not None:
        _require(isinstance(names, list) and len(names) == len(shape))
        _require(all(isinstance(name, str | None) for name in names))
    grid, keys = node["chunk_grid"], node["chunk_key_encoding"]
    chunk = grid["configuration"]["chunk_shape"]
    _require(grid == {"name": "regular", "configuration": {"chunk_shape": chunk}})
    _require(keys in [{"name": n, "configuration": {"separator": s}} for n in ("default", "v2") for s in ("/", ".")])
    _require_shape(chunk, 1, len(shape))
    if codecs[0]["name"] == "sharding_indexed":
        shard = codecs[0]["configuration"]
        _require(len(codecs) == 1 and codecs[0].keys() == {"name", "configuration"} and shard.keys() == _SHARDING)
        _require(shard["index_location"] in ("start", "end") and shard["index_codecs"] == INDEX_CODECS)
        shards, chunk, codecs = chunk, shard["chunk_shape"], shard["codecs"]
        _require_shape(chunk, 1, len(shape))
        _require(all(f % c == 0 for f, c in zip(shards, chunk, strict=True)))
    _require(node["data_type"] in DTYPES)
    dtype = np.dtype(node["data_type"])
    _require_codecs(codecs, dtype)
    return {
        "shape": tuple(shape),
        "dtype": dtype,
        "chunks": tuple(chunk),
        "shards": None if shards is None else tuple(shards),
        "fill": _fill(node["fill_value"], dtype),
        "names": node["attributes"].get(DIMENSIONS) if names is None else names,
        "metadata": metadata,
    }


def _described_v2(place: Place, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a node of v2 says."""
    node = {"dimension_separator": ".", **metadata}
    _require(node.keys() == _KEYS_V2 and (node["zarr_format"], node["order"], node["filters"]) == (2, "C", None))
    shape, compressor, fill = node["shape"], node["compressor"], node["fill_value"]
    _require_shape(shape, 0)
    _require_shape(node["chunks"], 1, len(shape))
    _require(node["dimension_separator"] in ("/", "."))
    _require(re.fullmatch(r"[<>][iu][248]|[<>]f[48]|\|[iu]1", node["dtype"]))
    if compressor is not None:
        _require_configuration(_COMPRESSORS_V2[compressor["id"]], compressor)
    dtype = np.dtype(node["dtype"])
    attributes = parse_json((place / ATTRIBUTES).read_bytes()) if (place / ATTRIBUTES).is_file() else {}
    _require(isinstance(attributes, dict))
    return {
        "shape": tuple(shape),
        "dtype": dtype,
        "chunks": tuple(node["chunks"]),
        "shards": None,
        "fill": None if fill is None else _fill(fill, dtype),
        "names": attributes.get(DIMENSIONS),
        "metadata": node,
    }


_KEYS_V2 = {"zarr_format", "shape", "chunks", "dtype", "compressor", "fill_value", "order", "filters"} | {
    "dimension_separator"
}
_KEYS_V3 = {"zarr_format", "node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value"} | {
    "codecs",
    "attributes",
    "dimension_names",
    "storage_transformers",
}
_LEVEL = range(-(2**17), 23)
"""Levels that compressors may have; zstd has negative ones."""
INDEX_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
"""How a shard's index must be encoded."""
_SHARDING = {"chunk_shape", "codecs", "index_codecs", "index_location"}
_STREAMS = ("lz4", "lz4hc", "blosclz", "snappy", "zlib", "zstd")

_Known = dict[str, Sequence[Any]]
"""The values that each key of a codec's configuration may have."""
_BLOSC = {"cname": _STREAMS, "clevel": range(10), "blocksize": range(2**31)}
_CODECS_V3: dict[str, _Known] = {
    "blosc": _BLOSC | {"shuffle": ("noshuffle", "shuffle", "bitshuffle"), "typesize": range(1, 256)},
    "zstd": {"level": _LEVEL, "checksum": (False, True)},
    "gzip": {"level": range(10)},
}
_COMPRESSORS_V2: dict[Any, _Known] = {
    "blosc": {"id": ("blosc",), "shuffle": (-1, 0, 1, 2), **_BLOSC},
    "zstd": {"id": ("zstd",), "level": _LEVEL},
    "gzip": {"id": ("gzip",), "level": range(10)},
    "zlib": {"id": ("zlib",), "level": range(10)},
}


def _require_codecs(codecs: Sequence[Mapping[str, Any]], dtype: np.dtype[Any]) -> None:
    """See that a chunk is encoded by bytes, at most one codec that compresses, and at most one checksum."""
    first, *rest = codecs
    _require(
        first in [{"name": "bytes", "configuration": {"endian": order}} for order in ("little", "big")]
        or (dtype.itemsize == 1 and first == {"name": "bytes"})
    )
    if rest and rest[-1] in ({"name": "crc32c"}, {"name": "crc32c", "configuration": {}}):
        rest.pop()
    for codec in rest:
        _require(len(rest) == 1 and codec.keys() == {"name", "configuration"})
        _require_configuration(_CODECS_V3[codec["name"]], codec["configuration"])


def _require_configuration(known: _Known, found: Mapping[str, Any]) -> None:
    _require(found.keys() == known.keys())
    _require(all(type(found[key]) is type(values[0]) and found[key] in values for key, values in known.items()))


def _require_shape(values: Any, least: int, ndim: int | None = None) -> None:
    """See that a value is a list of sizes, of so many axes."""
    _require(isinstance(values, list) and all(type(n) is int and least <= n < 2**63 for n in values))
    _require(values and ndim in (None, len(values)))


def _fill(value: Any, dtype: np.dtype[Any]) -> Any:
    """Return a fill value as the data type has it: a number that every reader takes alike."""
    if dtype.kind == "f":
        _require(type(value) in (int, float) and math.isfinite(value) and abs(value) <= np.finfo(dtype).max)
    else:
        _require(type(value) is int and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max)
    return dtype.newbyteorder("=").type(value)
