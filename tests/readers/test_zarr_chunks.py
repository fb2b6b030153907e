"""Reading boxes from the chunks of a local zarr, with and without a cache; zarr-python is the oracle."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, ZstdCodec

from isovoxel.errors import CorruptInputError, InputUnavailableError
from isovoxel.geometry.grid import Box, Index3
from isovoxel.readers.chunks import CHUNK_COST
from isovoxel.readers.open import open_volume
from isovoxel.readers.selection import Picked, Selection
from isovoxel.readers.zarr_array import ChunkReader
from isovoxel.readers.zarr_files import ChunkFile
from strategies import boxes, examples

SHAPE = (13, 22, 31)
CHUNKS, SHARDS = (3, 8, 10), (6, 16, 20)
V3 = {"none": None, "blosc": BloscCodec(shuffle="bitshuffle"), "zstd": ZstdCodec(), "gzip": GzipCodec(level=1)}
V2 = {"none": None, "blosc": numcodecs.Blosc(), "zstd": numcodecs.Zstd(), "zlib": numcodecs.Zlib(1)} | {
    codec.codec_id: codec for codec in (numcodecs.LZ4(), numcodecs.LZMA(preset=0), numcodecs.BZ2())
}


def layouts() -> dict[str, dict[str, Any]]:
    """Return options of `zarr.create_array` for every combination that matters."""
    made: dict[str, dict[str, Any]] = {}
    for (name, codec), endian, checksum in product(V3.items(), ("little", "big"), (False, True)):
        compressors = [c for c in (codec, Crc32cCodec() if checksum else None) if c is not None]
        about = f"{name}, {endian}" + (", checksum" if checksum else "")
        made[f"v3, {about}"] = {
            "chunks": CHUNKS,
            "compressors": compressors,
            "serializer": BytesCodec(endian=endian),
            "chunk_key_encoding": {"name": "default", "separator": "." if checksum else "/"},
        }
        sharding = ShardingCodec(
            chunk_shape=CHUNKS,
            codecs=[BytesCodec(endian=endian), *compressors],
            index_location="start" if endian == "big" else "end",
        )
        made[f"v3, shards, {about}"] = {"chunks": SHARDS, "compressors": None, "serializer": sharding}
    for (name, codec), separator, order in product(V2.items(), "./", "<>"):
        made[f"v2, {name}, {separator}, {order}"] = {
            "chunks": CHUNKS,
            "compressors": codec,
            "zarr_format": 2,
            "dtype": f"{order}u2",
            "chunk_key_encoding": {"name": "v2", "separator": separator},
        }
    made["v3, planes"] = {"chunks": (1, *SHAPE[1:])}
    made["v3, one chunk"] = {"chunks": SHAPE}
    made["v3, chunks beyond the volume"] = {"chunks": (20, 30, 40)}
    made["v3, tczyx"] = {"chunks": (1, 1, *CHUNKS), "shape": (1, 1, *SHAPE)}
    made["v2, zcyx"] = {"chunks": (3, 1, 8, 10), "shape": (13, 1, 22, 31), "zarr_format": 2}
    return made


LAYOUTS = layouts()


def write(path: Path, dtype: str = "uint16", **options: Any) -> zarr.Array:
    """Write voxels with this layout, leaving out a shard and some chunks, which hold the fill value 9."""
    options = {"shape": SHAPE, "dtype": dtype, "fill_value": 9} | options
    array = zarr.create_array(path, overwrite=True, **options)
    voxels = np.random.default_rng(5).integers(0, 50, SHAPE).astype(options["dtype"])
    voxels[:6, 16:, 20:] = 9
    voxels[6:9, :8, 10:20] = 9
    array[...] = voxels.reshape(options["shape"])
    return array


@pytest.fixture(scope="module", params=LAYOUTS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ChunkReader, np.ndarray]:
    """Return a reader of every layout, and what zarr-python reads."""
    path = tmp_path_factory.mktemp("in") / "a"
    array = write(path, **LAYOUTS[request.param])
    if len(array.shape) > 3:
        array.attrs["_ARRAY_DIMENSIONS"] = ["t", "c", "z", "y", "x"] if array.ndim == 5 else ["z", "c", "y", "x"]
        if array.metadata.zarr_format == 3:
            array = write(path, **LAYOUTS[request.param], dimension_names=("t", "c", "z", "y", "x"))
    return open_volume(path).read, zarr.open_array(path, mode="r")[...].reshape(SHAPE)


@pytest.mark.sampled(24)
@settings(max_examples=examples(10), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(box=boxes(SHAPE))
def test_boxes_are_what_zarr_python_reads(written: tuple[ChunkReader, np.ndarray], box: Box) -> None:
    """Whatever the layout, any box holds the voxels that zarr-python reads, with and without a cache."""
    direct, whole = written
    assert isinstance(direct, ChunkReader)
    for reader in (direct, direct.cached(3 * (direct.layout.chunk_bytes + CHUNK_COST)), direct.cached(10**7)):
        for _ in range(2):
            np.testing.assert_array_equal(reader(box), whole[box.slices])
            out = np.full(box.shape, 77, direct.layout.dtype.newbyteorder("="))
            np.testing.assert_array_equal(reader(box, out), whole[box.slices])


@pytest.mark.sampled(2)
def test_threads_read_what_zarr_python_reads(written: tuple[ChunkReader, np.ndarray]) -> None:
    """Many threads that share a reader, and its cache, all get their own voxels."""
    direct, whole = written
    tiles = [Box((max(0, b.start[0] - 1), *b.start[1:]), b.stop) for b in Box.whole(SHAPE).tiles((4, 9, 11))] * 3
    for capacity in (0, 2 * (direct.layout.chunk_bytes + CHUNK_COST), 10**7):
        with ThreadPoolExecutor(8) as pool:
            for box, read in zip(tiles, pool.map(direct.cached(capacity), tiles), strict=True):
                np.testing.assert_array_equal(read, whole[box.slices])


@pytest.mark.sampled(11)
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint32", "int64", "uint64", "float32"])
@pytest.mark.parametrize("kind", ["v3, blosc, big", "v3, shards, zstd, little", "v2, blosc, ., <"])
def test_every_dtype(kind: str, dtype: str, tmp_path: Path) -> None:
    """Voxels of every supported dtype are read as zarr-python reads them."""
    array = write(tmp_path / "a", **LAYOUTS[kind] | {"dtype": dtype})
    read = open_volume(tmp_path / "a").read
    assert isinstance(read, ChunkReader)
    assert read(Box.whole(SHAPE)).tobytes() == array[...].tobytes()


@pytest.mark.parametrize(
    ("dtype", "fill"), [("float32", "NaN"), ("float32", -np.inf), ("float32", 0.1), ("uint64", 2**64 - 1), ("int8", -3)]
)
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_every_fill_value(dtype: str, fill: Any, zarr_format: int, tmp_path: Path) -> None:
    """Voxels that are not stored have the fill value, bit by bit."""
    value = np.nan if fill == "NaN" else fill
    array = zarr.create_array(
        tmp_path / "a", shape=SHAPE, chunks=CHUNKS, dtype=dtype, fill_value=value, zarr_format=zarr_format
    )
    read = open_volume(tmp_path / "a").read
    assert isinstance(read, ChunkReader)
    box = Box((1, 2, 3), (4, 5, 6))
    for reader in (read, read.cached(10**6)):
        assert reader(box).tobytes() == array[box.slices].tobytes() == np.full((3, 3, 3), value, dtype).tobytes()
        assert reader.decoded == 0


def test_a_reader_can_be_sent_to_another_process(tmp_path: Path) -> None:
    """A pickled reader reads the same array, with a cache of the same size."""
    whole = write(tmp_path / "a", **LAYOUTS["v3, shards, blosc, little"])[...]
    read = open_volume(tmp_path / "a").read.cached(10**6)
    read(Box.whole(SHAPE))
    again = pickle.loads(pickle.dumps(read))  # noqa: S301 - it was made here
    assert again.decoded == 0
    for _ in range(2):
        np.testing.assert_array_equal(again(Box.whole(SHAPE)), whole)
    assert again.decoded == read.decoded


def count_stored(box: Box) -> int:
    """Return how many of the chunks that `write` makes a box touches."""
    left_out = {(z, 2, x) for z in range(2) for x in (2, 3)} | {(2, 0, 1)}
    touched = {tuple(a // n for a, n in zip(tile.start, CHUNKS, strict=True)) for tile in box.tiles(CHUNKS)}
    return len(touched - left_out)


@given(box=boxes(SHAPE))
@settings(max_examples=examples(15), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_only_the_chunks_of_a_box_are_decoded(tmp_path: Path, box: Box) -> None:
    """A box decodes the stored chunks that it touches, each once, and counts them."""
    if not (tmp_path / "a").exists():
        write(tmp_path / "a", **LAYOUTS["v3, shards, blosc, little"])
    direct = open_volume(tmp_path / "a").read
    direct(box)
    assert direct.decoded == count_stored(box)
    cached = direct.cached(10**6)
    for _ in range(3):
        cached(box)
    assert cached.decoded == count_stored(box)


def test_each_chunk_is_decoded_once(tmp_path: Path) -> None:
    """However many threads read boxes that overlap, a cache with room for all decodes each chunk once."""
    whole = write(tmp_path / "a", **LAYOUTS["v3, shards, blosc, little"])[...]
    wide = [
        Box(
            tuple(max(0, a - 2) for a in tile.start),
            tuple(min(n, b + 2) for b, n in zip(tile.stop, SHAPE, strict=True)),
        )
        for tile in Box.whole(SHAPE).tiles((5, 7, 9))
    ]
    for _ in range(10):
        cached = open_volume(tmp_path / "a").cached(10**6)
        with ThreadPoolExecutor(6) as pool:
            for box, read in zip(wide, pool.map(cached, wide), strict=True):
                np.testing.assert_array_equal(read, whole[box.slices])
        assert cached.decoded == count_stored(Box.whole(SHAPE))


def test_boxes_in_turn_decode_each_chunk_once_with_little_room(tmp_path: Path) -> None:
    """Neighbours along x share the chunks between them through a cache of one row of chunks."""
    write(tmp_path / "a", **LAYOUTS["v3, blosc, little"])
    read = open_volume(tmp_path / "a").read
    row = [Box((0, 0, x), (3, 8, min(x + 7, 31))) for x in range(0, 31, 5)]
    cached = read.cached(2 * (read.layout.chunk_bytes + CHUNK_COST))
    for box in row:
        cached(box)
    assert cached.decoded == 4


@pytest.mark.parametrize("room", [0, 0.99, -5])
def test_a_cache_too_small_for_a_chunk_is_none(room: float, tmp_path: Path) -> None:
    """With less room than a chunk takes, nothing is kept, and reading goes on as without a cache."""
    whole = write(tmp_path / "a", **LAYOUTS["v3, blosc, little"])[...]
    read = open_volume(tmp_path / "a").read
    cached = read.cached(int(room * read.layout.chunk_bytes))
    box = Box((0, 0, 0), (3, 8, 10))
    for _ in range(3):
        np.testing.assert_array_equal(cached(box), whole[box.slices])
    assert cached.decoded == 3


class Gate:
    """Holds the decoding of one chunk until it is opened, and can make it fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, place: Index3, error: BaseException | None = None) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self.calls: list[Index3] = []
        read = ChunkFile.read

        def gated(file: ChunkFile, chunk: Index3, *buffers: np.ndarray) -> bool:
            self.calls.append(chunk)
            if chunk == place:
                self.reached.set()
                assert self.opened.wait(60)
                if error is not None:
                    raise error
            return read(file, chunk, *buffers)

        monkeypatch.setattr(ChunkFile, "read", gated)


def test_a_thread_does_other_chunks_while_it_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk that another thread is decoding is put off: those behind it are read meanwhile, and it once."""
    whole = write(tmp_path / "a", **LAYOUTS["v3, blosc, little"])[...]
    cached = open_volume(tmp_path / "a").cached(10**6)
    gate = Gate(monkeypatch, (0, 0, 0))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cached, Box((0, 0, 0), (3, 8, 10)))
        assert gate.reached.wait(60)
        second = pool.submit(cached, Box((0, 0, 0), (3, 8, 31)))
        while len(gate.calls) < 4:
            assert not second.done()
        gate.opened.set()
        np.testing.assert_array_equal(first.result(), whole[:3, :8, :10])
        np.testing.assert_array_equal(second.result(), whole[:3, :8])
    assert gate.calls == [(0, 0, x) for x in range(4)]


@pytest.mark.parametrize(
    "error",
    [ValueError("it is broken"), OSError(5, "Input/output error"), MemoryError("none left"), KeyboardInterrupt()],
)
def test_a_failure_reaches_every_thread_that_waits(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that wait for a chunk which cannot be decoded fail as well, and the next read tries again."""
    whole = write(tmp_path / "a", **LAYOUTS["v3, blosc, little"])[...]
    cached = open_volume(tmp_path / "a").cached(10**6)
    box = Box((0, 0, 0), (3, 8, 10))
    with monkeypatch.context() as patch, ThreadPoolExecutor(4) as pool:
        gate = Gate(patch, (0, 0, 0), error)
        first = pool.submit(cached, box)
        assert gate.reached.wait(60)
        others = [pool.submit(cached, Box((1, 1, 1), box.stop)) for _ in range(3)]
        # They have claimed the chunk once it has four users.
        while cached._cache._chunks[0, 0, 0].users < 4:
            pass
        gate.opened.set()
        told, why = {
            ValueError: (CorruptInputError, "is corrupt: it is broken"),
            OSError: (InputUnavailableError, "Input/output error"),
            MemoryError: (MemoryError, "none left"),
            KeyboardInterrupt: (InputUnavailableError, "ended by KeyboardInterrupt"),
        }[type(error)]
        assert isinstance(first.exception(), told if isinstance(error, Exception) else KeyboardInterrupt)
        for other in others:
            with pytest.raises(told, match=why):
                other.result()
    np.testing.assert_array_equal(cached(box), whole[box.slices])
    assert cached.decoded == 1


def test_failures_give_all_buffers_back(tmp_path: Path) -> None:
    """After reads that failed in many threads, the cache has room for as many chunks as before."""
    whole = write(tmp_path / "a", **LAYOUTS["v3, blosc, little"])[...]
    file = tmp_path / "a/c/1/1/1"
    data = file.read_bytes()
    file.write_bytes(b"")
    # Two less than there are chunks: eviction goes on all the time.
    read = open_volume(tmp_path / "a").read
    cached = read.cached(6 * (read.layout.chunk_bytes + CHUNK_COST))
    with ThreadPoolExecutor(6) as pool:
        assert all(f.exception() for f in [pool.submit(cached, Box.whole(SHAPE)) for _ in range(30)])
    assert all(not chunk.users for chunk in cached._cache._chunks.values())
    assert len(cached._cache._free) + len(cached._cache._chunks) + cached._cache._unmade == 6
    file.write_bytes(data)
    np.testing.assert_array_equal(cached(Box.whole(SHAPE)), whole)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("chunks", [(11, 101, 211), (4, 25, 32)])
@pytest.mark.parametrize("share", [0.0, 0.3, 2.0])
def test_a_cache_holds_no_more_than_it_is_given(chunks: Index3, share: float, tmp_path: Path) -> None:
    """With many threads, all that is held is the capacity, and `read_overhead` for each thread that reads."""
    voxels = np.random.default_rng(2).integers(0, 99, (29, 251, 383)).astype("uint16")
    zarr.create_array(tmp_path / "a", data=voxels, chunks=chunks, shards=tuple(2 * n for n in chunks))
    volume = open_volume(tmp_path / "a")
    capacity = int(share * voxels.nbytes)
    tiles = list(Box.whole(voxels.shape).tiles((10, 90, 130))) * 2
    out = [np.ones(10 * 90 * 130, "uint16") for _ in range(3)]

    def one(which: int) -> None:
        for box in tiles[which::3]:
            cached(box, out[which][: box.size].reshape(box.shape))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(abs, range(3)))
        tracemalloc.start()
        try:
            cached = volume.cached(capacity)
            list(pool.map(one, range(3)))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak <= capacity + 3 * volume.read_overhead


def test_volumes_of_an_array_share_one_cache(tmp_path: Path) -> None:
    """Readers of its volumes keep no more chunks than one does, and each finds what another has decoded."""
    voxels = np.random.default_rng(0).integers(0, 99, (3, 8, 16, 16)).astype("uint16")
    zarr.create_array(tmp_path / "a", data=voxels, chunks=(1, 8, 16, 16), dimension_names=["c", "z", "y", "x"])
    reader = open_volume(tmp_path / "a", selection=Selection(channel=0)).cached(3 * (8 * 16 * 16 * 2 + CHUNK_COST))
    others = [reader.at(Picked((1, 2, 3), {0: channel}, {})) for channel in (0, 1, 2, 0, 1, 2)]
    for channel, other in zip((0, 1, 2, 0, 1, 2), others, strict=True):
        np.testing.assert_array_equal(other(Box.whole((8, 16, 16))), voxels[channel])
        assert other._cache is reader._cache
    assert [other.decoded for other in others] == [1, 1, 1, 0, 0, 0]


MANY = [(20_000, 1, 1), (1, 20_000, 1), (1, 1, 20_000), (1, 300, 300)]
PEAKS = """
import json, sys, tracemalloc
import numpy as np, zarr
from isovoxel.geometry.grid import Box
from isovoxel.readers.open import open_volume

found = []
for shape, shards in json.loads(sys.argv[2]):
    options = {} if shards is None else {"shards": shards}
    array = zarr.create_array(
        f"{sys.argv[1]}/{len(found)}", shape=shape, chunks=(2, 2, 2), dtype="uint8", fill_value=3, **options
    )
    volume, out = open_volume(array), np.empty(shape, "uint8")
    peaks = []
    for read in (volume.read, volume.cached(10**5)):
        tracemalloc.start()
        read(Box.whole(tuple(shape)), out)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    found.append({"overhead": volume.read_overhead, "peaks": peaks, "right": bool((out == 3).all())})
print(json.dumps(found))
"""


@pytest.mark.slow
def test_many_chunks_take_no_more_than_it_says(tmp_path: Path) -> None:
    """However many chunks and files a box cuts, what is held for them is counted: in a process that does no more."""
    cases = json.dumps([(shape, shards) for shape in MANY for shards in (None, (64, 64, 64))])
    done = subprocess.run(
        [sys.executable, "-c", PEAKS, str(tmp_path), cases], capture_output=True, text=True, check=True
    )
    for found in json.loads(done.stdout):
        alone, cached = found["peaks"]
        assert alone <= found["overhead"]
        assert cached <= found["overhead"] + 10**5
        assert found["right"]


def test_a_read_leaves_nothing_behind(tmp_path: Path) -> None:
    """Once a read is over, nothing of it is held but what a cache was asked to keep."""
    voxels = np.random.default_rng(2).integers(0, 99, (40, 80, 80)).astype("uint16")
    zarr.create_array(tmp_path / "a", data=voxels, chunks=(40, 40, 40))
    read = open_volume(tmp_path / "a").read
    read(Box((0, 0, 0), (1, 1, 1)))
    tracemalloc.start()
    try:
        read(Box.whole(voxels.shape))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 10_000
