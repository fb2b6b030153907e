"""The encoder on a real GPU: blosc decodes what it makes, of voxels that the GPU reaches and of others."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import imagecodecs
import numpy as np
import pytest
from crc32c import crc32c
from numpy.typing import NDArray

from codecs_on_cpu import image
from isovoxel.codecs.blosc import ContainerLayout
from isovoxel.codecs.gpu import EncodedChunks, GpuEncoder

pytestmark = pytest.mark.gpu
GAP = 4


def encoder(pci: str, dtype: str, codec: str, chunk: tuple[int, int, int], **more: int) -> GpuEncoder:
    itemsize = np.dtype(dtype).itemsize
    layout = ContainerLayout(int(np.prod(chunk)) * itemsize, itemsize, codec)
    return GpuEncoder(pci, layout, chunk, **{"batch": 3, "lanes": 2, "hosts": 3, "gap": GAP} | more)


def expected(voxels: NDArray[Any], chunk: tuple[int, int, int]) -> Iterator[bytes]:
    """Yield the voxels of each chunk."""
    grid = [range(0, n, c) for n, c in zip(voxels.shape, chunk, strict=True)]
    for start in itertools.product(*grid):
        part = voxels[tuple(slice(a, a + c) for a, c in zip(start, chunk, strict=True))]
        whole = np.zeros(chunk, voxels.dtype)
        whole[tuple(slice(n) for n in part.shape)] = part
        yield whole.tobytes()


def check(made: GpuEncoder, voxels: NDArray[Any]) -> int:
    """Encode some voxels, check each chunk and its checksum, and return the bytes."""
    chunks = list(expected(voxels, made.chunk))
    decoded: list[bytes] = []
    total = [0]

    def take(batch: EncodedChunks) -> None:
        begin = 0
        for size in batch.sizes.tolist():
            container = batch.body[begin : begin + size - made.gap].tobytes()
            if made.gap:
                sealed = batch.body[begin + size - made.gap : begin + size].tobytes()
                assert int.from_bytes(sealed, "little") == crc32c(container)
            decoded.append(imagecodecs.blosc_decode(container))
            begin += size
        assert begin == len(batch.body)
        total[0] += begin

    while len(decoded) < len(chunks):
        made.encode(voxels, len(decoded), take)
    assert decoded == chunks
    return total[0]


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float32", "uint64"])
def test_blosc_decodes_what_the_gpu_encodes(pci: str, dtype: str, codec: str) -> None:
    """Of whole arrays and of parts, whether the GPU reaches them or not."""
    array = image(dtype, (70, 130, 200))
    for chunk in ((32, 64, 64), (16, 33, 70), (128, 128, 128)):
        made = encoder(pci, dtype, codec, chunk)
        for part in (np.s_[:], np.s_[5:60], np.s_[3:50, 7:100, 20:150], np.s_[:, :, 64:]):
            check(made, array[part])
        registration = made.gpu.register(array)
        assert registration is not None
        for part in (np.s_[:], np.s_[5:60], np.s_[3:50, 7:100, 20:150], np.s_[:, :, 64:]):
            check(made, array[part])
        del registration
        gc.collect()
        check(made, array)
        made.close()


def test_threads_share_it(pci: str) -> None:
    """More of them than batches have room: each gets its own chunks."""
    made = encoder(pci, "uint16", "zstd", (32, 64, 64), lanes=2, hosts=3)
    arrays = [np.roll(image("uint16", (64, 128, 128)), k) for k in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert len(list(pool.map(lambda array: check(made, array), arrays))) == 8
    made.close()


def test_without_checksums(pci: str) -> None:
    """Outputs of versions that had none go on without."""
    made = encoder(pci, "uint16", "lz4", (32, 64, 64), gap=0)
    check(made, image("uint16", (64, 100, 100)))
    made.close()


def test_too_little_memory_is_said(pci: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device's memory is asked for when a batch needs it; where there is none, a later batch has it again."""
    made = encoder(pci, "uint16", "zstd", (32, 64, 64))
    with monkeypatch.context() as patch:
        patch.setattr(made.compressor, "scratch_bytes", lambda _: 2**50)
        with pytest.raises(MemoryError, match="too little memory"):
            check(made, image("uint16", (64, 100, 100)))
    check(made, image("uint16", (64, 100, 100)))
    made.close()
