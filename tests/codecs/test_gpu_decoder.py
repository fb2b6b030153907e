"""The decoder on a real GPU: chunks that blosc encodes are their voxels, and damaged ones are never taken for any."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numcodecs
import numpy as np
import pytest
from numpy.typing import NDArray

from codecs_on_cpu import image, reading
from isovoxel.codecs.decoder import Batch, GpuDecoder
from isovoxel.codecs.streams import ChunkCoding

pytestmark = pytest.mark.gpu
CHUNK = (16, 32, 64)
SHUFFLES = [numcodecs.Blosc.NOSHUFFLE, numcodecs.Blosc.SHUFFLE, numcodecs.Blosc.BITSHUFFLE]


def check(
    decoder: GpuDecoder,
    voxels: NDArray[Any],
    encode: Callable[[NDArray[Any]], bytes],
    start: tuple[int, int, int],
    out: NDArray[Any],
) -> None:
    """Encode all chunks of some voxels but one, and check what the GPU makes of the part from `start` on."""
    chunk = decoder.coding.chunk
    grid = tuple(n // c for n, c in zip(voxels.shape, chunk, strict=True))
    expected, encoded = voxels.copy(), list[bytes | None]()
    for place in np.ndindex(*grid):
        part = expected[tuple(slice(at * c, (at + 1) * c) for at, c in zip(place, chunk, strict=True))]
        if sum(place) == 1:
            part[...] = 9
        encoded.append(None if sum(place) == 1 else encode(np.ascontiguousarray(part)))
    batch = Batch((grid[0], grid[1], grid[2]), start, np.array(9, voxels.dtype).tobytes())
    out[...] = 77
    left = decoder.decode(reading(encoded), batch, out)
    assert not left.any()
    wanted = tuple(slice(a, a + n) for a, n in zip(start, out.shape, strict=True))
    assert out.tobytes() == expected[wanted].tobytes()


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float32", "uint64"])
def test_the_gpu_decodes_what_blosc_encodes(pci: str, dtype: str, codec: str) -> None:
    """Into memory that the GPU reaches and other memory, whole or a part of it."""
    voxels = image(dtype, (32, 96, 128))
    decoder = GpuDecoder(pci, ChunkCoding(codec, CHUNK, voxels.itemsize), batch=12, lanes=2, hosts=3)
    for made in [numcodecs.Blosc(codec, level, how, 2**14) for level in (1, 9) for how in SHUFFLES]:
        array = np.empty((33, 99, 130), dtype)
        for registered in (False, True):
            kept = decoder.gpu.register(array) if registered else None
            assert (kept is not None) == registered
            check(decoder, voxels, made.encode, (0, 0, 0), array[:32, :96, :128])
            check(decoder, voxels, made.encode, (3, 5, 7), array[1:29, :91, 2:102])
            check(decoder, voxels, made.encode, (3, 5, 7), array.reshape(-1)[: 20 * 80 * 121].reshape(20, 80, 121))
            del kept
            gc.collect()
    decoder.close()


def test_threads_share_it(pci: str) -> None:
    """More of them than batches have room: each gets its own voxels."""
    coding = ChunkCoding("lz4", CHUNK, 2)
    decoder = GpuDecoder(pci, coding, batch=12, lanes=2, hosts=3)
    voxels, encode = image("uint16", (32, 96, 128)), numcodecs.Blosc("lz4", 5, 2).encode

    def one(turn: int) -> bool:
        check(decoder, np.roll(voxels, turn), encode, (0, 0, 0), np.empty(voxels.shape, np.uint16))
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(24)))
    decoder.close()


def test_damage_is_left_to_the_processor_or_does_no_harm(pci: str) -> None:
    """Of 1,000 damaged chunks each is left, or what blosc decodes it to, and those around it are whole."""
    coding = ChunkCoding("lz4", CHUNK, 2)
    decoder = GpuDecoder(pci, coding, batch=8, lanes=1, hosts=1)
    voxels = image("uint16", CHUNK)
    healthy = [numcodecs.Blosc("lz4", 5, how, 2**13).encode(voxels) for how in SHUFFLES]
    rng, found = np.random.default_rng(0), {True: 0, False: 0}
    for turn in range(125):
        encoded: list[bytes | None] = []
        for number in range(8):
            damaged = bytearray(healthy[number % 3])
            for _ in range(int(rng.integers(1, 4))):
                damaged[int(rng.integers(48 if number % 2 else len(damaged)))] = int(rng.integers(256))
            if turn % 7 == 0:
                del damaged[int(rng.integers(len(damaged))) :]
            encoded.append(healthy[0] if number == turn % 8 else bytes(damaged))
        out = np.empty((CHUNK[0] * 8, *CHUNK[1:]), np.uint16)
        left = decoder.decode(reading(encoded), Batch((8, 1, 1), (0, 0, 0), b"\0\0"), out)
        assert not left[turn % 8]
        for number, one in enumerate(encoded):
            found[bool(left[number])] += 1
            if not left[number]:
                made = out[number * CHUNK[0] : (number + 1) * CHUNK[0]]
                assert one is not None
                assert made.tobytes() == numcodecs.blosc.decompress(one)
    assert min(found.values()) > 50
    decoder.close()


def test_too_little_memory_is_said(pci: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device's memory is asked for when a batch needs it; where there is none, a later batch has it again."""
    decoder = GpuDecoder(pci, ChunkCoding("lz4", CHUNK, 2), batch=12, lanes=2, hosts=3)
    voxels, encode = image("uint16", (32, 96, 128)), numcodecs.Blosc("lz4").encode
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "room", 2**50)
        with pytest.raises(MemoryError, match="too little memory"):
            check(decoder, voxels, encode, (0, 0, 0), np.empty(voxels.shape, np.uint16))
    check(decoder, voxels, encode, (0, 0, 0), np.empty(voxels.shape, np.uint16))
    decoder.close()
