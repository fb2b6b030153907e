"""Blosc 1 containers: how a chunk is cut into blocks, and what a container says of itself.

Source: https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

from isovoxel.geometry.grid import ceil_div

HEADER_BYTES = 16
"""Bytes of a container's header; a container is at most so much longer than its chunk."""

BLOCK_BYTES = 2**16
"""Bytes of a block: the size at which GPUs compress fastest (nvCOMP's documentation, and benchmarks/RESULTS.md)."""

FORMATS = {"lz4": 1, "zstd": 4}
"""Numbers of the formats of streams."""

BITS_SHUFFLED, STORED, NOT_SPLIT = 0x04, 0x02, 0x10
"""Flags: bits are transposed; voxels follow the header as they are; a block is one stream."""


@dataclass(frozen=True)
class ContainerLayout:
    """How the chunks of an array are cut.

    Parameters
    ----------
    chunk_bytes
        Bytes of a chunk's voxels.
    itemsize
        Bytes of a voxel.
    codec
        "lz4" or "zstd".
    """

    chunk_bytes: int
    itemsize: int
    codec: str

    @property
    def block_bytes(self) -> int:
        """Bytes of a block, but of the last one, which may be shorter."""
        return min(BLOCK_BYTES, self.chunk_bytes)

    @property
    def blocks(self) -> int:
        """How many blocks a chunk has."""
        return ceil_div(self.chunk_bytes, self.block_bytes)

    @property
    def longest(self) -> int:
        """Bytes of the longest container."""
        return self.chunk_bytes + HEADER_BYTES

    def block_lengths(self) -> list[int]:
        """Return the bytes of each block of a chunk."""
        whole = [self.block_bytes] * (self.blocks - 1)
        return [*whole, self.chunk_bytes - sum(whole)]

    @property
    def flags(self) -> int:
        """The flags of a container of streams."""
        return BITS_SHUFFLED | NOT_SPLIT | FORMATS[self.codec] << 5

    def shuffling_items(self, chunks: int) -> int:
        """Return how many work items transpose the bits of so many chunks."""
        return chunks * self.blocks * ceil_div(self.block_bytes // self.itemsize, 8)


def kernels() -> str:
    """Return the source of the kernels that make containers, in OpenCL's C and in CUDA's."""
    return files("isovoxel.codecs").joinpath("blosc.cl").read_text("utf-8")
