"""Storage of the output: shards (one file each) of chunks (what a reader decodes at once).

A shard is the unit of work as well: one task owns whole shards, so a shard must fit the memory, and there
must be enough of them to keep every worker busy; but files should be few. Small ones cost a file system more
than their bytes, hence 4 MiB at least where the volume has them. Chunks of about 128 voxels per axis read
best in viewers. OME-Zarr 0.4 has no shards: there a shard is one chunk, and a chunk a file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from isovoxel.errors import OptionError
from isovoxel.geometry.grid import AXES, Index3, ceil_div, triple

EMPTY = ("skip", "write")
"""What becomes of chunks that hold nothing but zeros, the fill value: they are not stored, or stored as any other."""

CODECS = {
    "blosc-lz4": ("lz4", False),
    "blosc-zstd": ("zstd", False),
    "zstd": ("zstd", True),
    "gzip": ("gzip", True),
    "none": ("none", False),
}
"""Names of the codecs, and what `Storage` holds for each: its codec, and whether it is a Zarr codec by itself.

Blosc transposes the bits of voxels first, which makes smaller files and takes less time. Zarr's own codecs are those
that a GPU decodes too (nvCOMP, kvikio). No plain lz4: tensorstore does not read it in Zarr 3.
"""

OME_ZARR = {"0.4": 2, "0.5": 3, "0.6": 3}
"""Versions of OME-Zarr that are written, and the format of zarr that each of them is."""

BLOSC_MARGIN = 16
"""Bytes by which blosc's result may be longer than what it was given (BLOSC_MAX_OVERHEAD)."""

CHECKSUM_BYTES = 4
"""Bytes of the CRC-32C behind a chunk, and behind the index of a shard."""

INDEX_BYTES = 16
"""Bytes that the index of a shard has for each chunk."""

BATCH_BYTES = 2**25
"""Bytes of voxels that a GPU encodes or decodes in a batch, where a chunk is not longer."""

SEAL_BYTES = 2**10
"""What is held of a file until its block is noted as done: its receipt, and that in the ledger's words."""

CHUNK = 128
"""Side of a chunk, where the volume has it and the user wants no other."""
_SHORTEST_CHUNK = 32
_SIDES = ((512, 256), (256, 32), (128, 0))
"""Sides of a shard, and from how many such shards on: the last few of a job leave cores idle, so few must be small."""
_FILE_BYTES = 2**22
_CHUNKS_PER_SHARD = 4096
"""Beyond it, zarr spends longer on its lists of chunks than on their voxels."""
_SHARD_VOXELS = 512**3
_LONGEST = 2**31 - 17
"""The longest buffer that blosc compresses (BLOSC_MAX_BUFFERSIZE), and about what numcodecs takes of other codecs."""
_STATE = {"lz4": 2**18, "zstd": 2**21, "gzip": 2**20}
"""What a compressor holds while it works, however small the chunk."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Chunks, shards and codec of an output.

    Raises
    ------
    OptionError
        If a length is below 1, a shard is no whole number of chunks, the codec or the version does not exist, or this
        version has no shards.

    Examples
    --------
    >>> Storage((64, 128, 128), (512, 512, 512)).chunks_per_shard
    128
    """

    chunk: Index3
    """Voxels that are compressed together, z, y, x."""
    shard: Index3
    """Voxels in one file, z, y, x: a multiple of `chunk`."""
    codec: str = "lz4"
    """"lz4", "zstd", "gzip" or "none"."""
    ome_zarr: str = "0.5"
    """Version of OME-Zarr, one of `OME_ZARR`."""
    checksum: bool = False
    """Whether a CRC-32C follows each chunk, as Zarr 3's codec ``crc32c`` has it. New outputs have it where the version
    does; plans that say nothing of it are those of outputs that were begun without."""
    skip_empty: bool = False
    """Whether chunks of nothing but zeros are not stored, and shards of nothing but them are no files. Plans that say
    nothing of it are those of outputs that were begun when all were stored."""
    plain: bool = False
    """Whether the codec is a Zarr codec by itself, not the compressor of a blosc container. Plans that say nothing of
    it are those of outputs that were begun when blosc alone compressed."""

    def __post_init__(self) -> None:
        for name, lengths in (("chunk", self.chunk), ("shard", self.shard)):
            if any(n < 1 for n in lengths):
                raise OptionError(f"every side of a {name} needs at least one voxel, but it is {lengths}")
        for axis, chunk, shard in zip(AXES, self.chunk, self.shard, strict=True):
            if shard % chunk:
                raise OptionError(
                    f"a shard must be a whole number of chunks, but along {axis} the shard has {shard} "
                    f"voxels and the chunk {chunk}"
                )
        if (self.codec, self.plain) not in CODECS.values():
            raise _no_codec(f"plain {self.codec}" if self.plain else self.codec)
        if self.ome_zarr not in OME_ZARR:
            raise OptionError(
                f"OME-Zarr of version {self.ome_zarr!r} is not written; choose one of {', '.join(OME_ZARR)}"
            )
        if not self.sharded and self.shard != self.chunk:
            raise _no_shards(self.ome_zarr)
        if not self.sharded and self.checksum:
            raise OptionError(f"OME-Zarr {self.ome_zarr} has no checksums of chunks")

    @property
    def zarr_format(self) -> int:
        """Format of zarr, 2 or 3."""
        return OME_ZARR[self.ome_zarr]

    @property
    def codec_name(self) -> str:
        """Name of the codec, one of `CODECS`."""
        return next(name for name, how in CODECS.items() if how == (self.codec, self.plain))

    @property
    def sharded(self) -> bool:
        """Whether files are shards, with an index of their chunks, and not the chunks themselves."""
        return self.zarr_format == 3

    @property
    def chunks_per_shard(self) -> int:
        """Number of chunks in a full shard."""
        return math.prod(s // c for s, c in zip(self.shard, self.chunk, strict=True))


def default_storage(
    shape: Index3,
    itemsize: int,
    *,
    codec: str = "blosc-lz4",
    chunk: Index3 | None = None,
    shard: Index3 | None = None,
    ome_zarr: str = "0.5",
    skip_empty: bool = False,
) -> Storage:
    """Choose chunks and shards for an output; what the user gives is kept.

    Parameters
    ----------
    shape
        Shape of the output, z, y, x.
    itemsize
        Bytes of a voxel.
    codec
        One of `CODECS`.
    chunk, shard
        What the user wants, or None. Neither gets longer than the axis needs.
    ome_zarr
        One of `OME_ZARR`. Where it has no shards, a shard is a chunk.
    skip_empty
        As `Storage` has it.

    Returns
    -------
    Storage
        Chunks of 128 voxels per axis. Shards of 512 where that makes at least 256 of them, of 256 where that makes
        at least 32, else of 128; longer along the long axes of a flat volume, until a file has 4 MiB. Checksums of
        chunks where the version has them.

    Raises
    ------
    OptionError
        If what the user gives makes no sense, or a chunk is longer than a codec can compress.
    """
    if codec not in CODECS:
        raise _no_codec(codec)
    name, plain = CODECS[codec]
    one = Storage((1, 1, 1), (1, 1, 1), name, ome_zarr, skip_empty=skip_empty, plain=plain)
    if shard is not None and not one.sharded:
        raise _no_shards(ome_zarr)
    if chunk is not None:
        replace(one, chunk=chunk, shard=shard or chunk)
    if shard is not None:
        replace(one, shard=shard)
        chunk = chunk or triple(_chunk_of(axis, n, s) for axis, n, s in zip(AXES, shape, shard, strict=True))
    chunk = triple(min(n, c) for n, c in zip(shape, chunk or (CHUNK, CHUNK, CHUNK), strict=True))
    nbytes = math.prod(chunk) * itemsize
    if codec != "none" and nbytes > _LONGEST:
        raise OptionError(
            f"a chunk of {chunk} voxels has {nbytes} bytes, more than the {_LONGEST} that {codec} "
            f"can compress; choose smaller chunks, or --codec none"
        )
    if not one.sharded:
        return replace(one, chunk=chunk, shard=chunk)
    if shard is not None:
        return replace(one, chunk=chunk, shard=_fitted(shape, chunk, shard), checksum=True)
    for side, fewest in _SIDES:
        grown = _grown(shape, chunk, itemsize, side)
        if math.prod(map(ceil_div, shape, grown)) >= fewest:
            break
    return replace(one, chunk=chunk, shard=grown, checksum=True)


def smaller(storage: Storage) -> Storage | None:
    """Return shards with the longest side halved in whole chunks, or None where one chunk is left."""
    counts = [s // c for s, c in zip(storage.shard, storage.chunk, strict=True)]
    sides = [axis for axis in range(3) if counts[axis] > 1]
    if not sides:
        return None
    longest = max(sides, key=lambda axis: storage.shard[axis])
    counts[longest] = ceil_div(counts[longest], 2)
    return replace(storage, shard=triple(n * c for n, c in zip(counts, storage.chunk, strict=True)))


def result_margin(storage: Storage, nbytes: int) -> int:
    """Return the bytes by which a codec's result may be longer than a chunk of so many bytes.

    What does not compress is stored in pieces with a header each: of zstd in 128 KiB (ZSTD_COMPRESSBOUND), of gzip in
    5,000 bytes at least (libdeflate).
    """
    if storage.codec == "none":
        return 0
    return nbytes // 256 + 2**9 if storage.plain else BLOSC_MARGIN


def batch_chunks(chunk_bytes: int) -> int:
    """Return how many chunks of so many bytes a GPU encodes or decodes in a batch."""
    return max(1, BATCH_BYTES // chunk_bytes)


def write_overhead(storage: Storage, itemsize: int) -> int:
    """Return an upper bound of the bytes that a thread which writes shards holds beside its data.

    A contiguous copy of a chunk, the codec's result, and what the codec works in stay with the writer from one shard
    to the next, once for each thread that has written at the same time as others; the index comes and goes.
    """
    return _encoding(storage, itemsize, results=1) + 512 * storage.chunks_per_shard + 2**21


def seal_overhead(storage: Storage, written: Index3) -> int:
    """Return an upper bound of the bytes that are held of the files of a block which is being written.

    Next to nothing, but where chunks are small and each is a file.

    Parameters
    ----------
    storage
        Of the output.
    written
        Shape of the block.
    """
    return SEAL_BYTES * math.prod(ceil_div(n, s) for n, s in zip(written, storage.shard, strict=True))


def helper_overhead(storage: Storage, itemsize: int, helpers: int) -> int:
    """Return an upper bound of the bytes that all helpers of a writer hold together, however many threads write.

    Each holds what a thread that writes does, one more result, which waits to be appended, and its stack.
    """
    if storage.chunks_per_shard == 1:  # the thread that writes takes it
        return 0
    return helpers * (_encoding(storage, itemsize, results=2) + 2**18)


def _encoding(storage: Storage, itemsize: int, *, results: int) -> int:
    """Return the bytes that a thread needs to encode chunks, of which it holds some results."""
    chunk = math.prod(storage.chunk) * itemsize
    if storage.codec == "none":  # the copy is the result
        return results * (chunk + CHECKSUM_BYTES)
    held = chunk + results * (chunk + result_margin(storage, chunk) + CHECKSUM_BYTES)
    if storage.plain:
        return held + _STATE[storage.codec]
    # Four blocks, of at most 128 KiB for each byte of a voxel; the system's allocator keeps up to four times that
    # for the thread, where small pieces lie between. Measured: 4 to 7 MB for 4 bytes, now and then 8.4.
    return held + min(20 * chunk, 2**21 * itemsize) + _STATE[storage.codec]


def _grown(shape: Index3, chunk: Index3, itemsize: int, side: int) -> Index3:
    """Return shards of about `side` voxels per axis, longer where that makes too small a file."""
    sides = [max(1, min(side // c, 16)) * c for c in chunk]
    while True:
        shard = _fitted(shape, chunk, triple(sides))
        longer = [axis for axis in range(3) if shard[axis] < shape[axis]]
        chunks = math.prod(s // c for s, c in zip(shard, chunk, strict=True))
        full = math.prod(shard) * itemsize >= _FILE_BYTES or 2 * math.prod(shard) > _SHARD_VOXELS
        if not longer or full or 2 * chunks > _CHUNKS_PER_SHARD:
            return shard
        shortest = min(longer, key=lambda axis: shard[axis])
        sides[shortest] *= 2


def _fitted(shape: Index3, chunk: Index3, shard: Index3) -> Index3:
    """Return the shard, no longer than the chunks that the volume needs."""
    return triple([ceil_div(n, c) * c if s >= n else max(c, s) for n, c, s in zip(shape, chunk, shard, strict=True)])


def _chunk_of(axis: str, n: int, shard: int) -> int:
    """Return the length of a chunk that divides a shard of the user's, along one axis."""
    if shard >= n:
        return CHUNK  # one shard along this axis, as long as its chunks
    chunk = max(c for c in range(1, CHUNK + 1) if shard % c == 0)
    if chunk < min(shard, _SHORTEST_CHUNK):
        raise OptionError(
            f"a shard of {shard} voxels along {axis} cannot be cut into chunks of {_SHORTEST_CHUNK} to "
            f"{CHUNK} voxels; give --chunk as well, or a multiple of {CHUNK}"
        )
    return chunk


def _no_codec(name: str) -> OptionError:
    return OptionError(f"there is no codec {name!r}; choose one of {', '.join(CODECS)}")


def _no_shards(ome_zarr: str) -> OptionError:
    return OptionError(
        f"OME-Zarr {ome_zarr} has no shards, for each of its chunks is a file; leave out --shard, or choose "
        "--ome-zarr 0.5"
    )
