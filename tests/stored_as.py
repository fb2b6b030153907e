"""How chunks of each codec are stored, and decoded by numcodecs."""

from __future__ import annotations

from typing import Any

import numcodecs

from isovoxel.planning.chunking import CODECS


def codec_fields(name: str) -> dict[str, Any]:
    """Return what `Storage` has for a codec of this name."""
    return dict(zip(("codec", "plain"), CODECS[name], strict=True))


def decode_chunk(encoded: bytes, name: str) -> bytes:
    """Return the chunk that numcodecs finds in the bytes."""
    if name == "none":
        return encoded
    codec = {"zstd": numcodecs.Zstd, "gzip": numcodecs.GZip}.get(name, numcodecs.Blosc)()
    return bytes(codec.decode(encoded))
