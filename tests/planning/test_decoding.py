"""Whether a plan lets the GPU decode, and what it holds then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from isovoxel.codecs.decoder import TABLE, room_for
from isovoxel.codecs.streams import ChunkCoding, most_streams
from isovoxel.errors import OptionError
from isovoxel.planning.codecs import CONTEXT, HOST_CONTEXT, LANES, LONGEST_CHUNK, DecodedBatches, with_decoder
from isovoxel.planning.model import DeviceLimits, Encoded, HostLimits

GIB = 2**30
H100 = DeviceLimits("H100", "gpu", 80 * GIB, 70 * GIB, 20 * GIB, (16384,) * 3, False, encoders=132)
HOST = HostLimits(64 * GIB, GIB, threads=4, helpers=3)
ZSTD = Encoded("zstd", 2**23)
SIZES = 8 * 10**9, 10**9


def chosen(
    given: str = "auto",
    encoded: Encoded | None = ZSTD,
    sizes: tuple[int, int] = SIZES,
    device: DeviceLimits = H100,
    host: HostLimits = HOST,
) -> bool:
    """Return whether the GPU decodes."""
    limits, process = with_decoder(given, encoded, sizes, (device, host), "cle")
    assert (limits.decoding > 0) == (process.baseline > host.baseline)
    assert replace(limits, decoding=0) == replace(device, decoding=0)
    return limits.decoding > 0


def test_auto_is_what_is_faster() -> None:
    """A GPU beats few cores where much is read and little written, and has the codec's rate."""
    assert chosen()
    assert chosen("gpu")
    assert not chosen("cpu")
    assert not chosen(host=replace(HOST, helpers=15))
    assert not chosen(sizes=(10**8, 10**7))
    assert not chosen(sizes=(8 * 10**9, 9 * 10**9))
    assert not chosen(device=replace(H100, encoders=8))
    assert not chosen(device=replace(H100, encoders=0))
    assert not chosen(encoded=None)
    assert not chosen(encoded=Encoded("lz4", 2**23))
    assert chosen("gpu", encoded=Encoded("lz4", 2**23))
    assert not chosen(device=replace(H100, allowed=GIB))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"device": replace(H100, encoders=0)}, r"H100 has no decoder; .*nvidia-cu13"),
        ({"encoded": None}, r"local zarr arrays alone.* checksum"),
        ({"encoded": Encoded("zstd", LONGEST_CHUNK + 1)}, r"a chunk has 536,870,913 bytes, more than"),
        ({"device": replace(H100, allowed=GIB)}, r"more --device-memory"),
        ({"host": replace(HOST, allowed=3 * GIB)}, r"or --memory"),
    ],
)
def test_what_cannot_be_decoded_is_refused(change: dict[str, Any], says: str) -> None:
    """Where the GPU is asked for."""
    assert not chosen(**change)
    with pytest.raises(OptionError, match=says):
        chosen("gpu", **change)


def test_what_cuda_holds_is_counted_once() -> None:
    """Where the GPU encodes as well, it is counted as what encodes."""
    alone, host = with_decoder("gpu", ZSTD, SIZES, (H100, HOST), "cle")
    beside, beside_host = with_decoder("gpu", ZSTD, SIZES, (replace(H100, encoding=GIB), HOST), "cle")
    assert alone.decoding - beside.decoding == CONTEXT
    assert host.baseline - beside_host.baseline == HOST_CONTEXT["cle"]
    batches = DecodedBatches(ZSTD.chunk_bytes, ZSTD.codec)
    assert batches.lanes_within(alone) == batches.lanes_within(beside) == LANES


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
@pytest.mark.parametrize("chunk_bytes", [2**12, 2**16, 2**20, 2**23, 2**25 + 8, 2**28])
def test_a_batch_holds_no_more_than_is_projected(codec: str, chunk_bytes: int) -> None:
    """Its arrays, and what nvCOMP 6.0 asks for to decompress zstd: for each byte, and for each stream."""
    batches = DecodedBatches(chunk_bytes, codec)
    coding = ChunkCoding(codec, (1, 1, chunk_bytes), 1)
    voxels, streams = batches.chunks * chunk_bytes, batches.chunks * most_streams(coding)
    arrays = batches.chunks * room_for(chunk_bytes) + 2 * voxels + streams * (8 * TABLE + 12) + 16 * batches.chunks
    scratch = int(3.06 * voxels + 6.9 * 2**10 * streams) if codec == "zstd" else 1
    assert arrays + scratch <= batches.device_bytes(H100)
    assert batches.host_bytes == batches.chunks * room_for(chunk_bytes)
