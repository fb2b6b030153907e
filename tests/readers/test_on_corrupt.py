"""Reading volumes of which parts are damaged: every voxel that can be read is read."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

from isovoxel.errors import CorruptInputError, InputError, InputUnavailableError
from isovoxel.geometry.grid import Box, Index3
from isovoxel.readers.base import Volume
from isovoxel.readers.open import open_volume
from isovoxel.readers.tiled import FilledReader, around
from isovoxel.readers.zarr_python import ZarrReader
from strategies import boxes, examples

SHAPE, CHUNK = (9, 22, 31), (4, 8, 10)
VOXELS = np.random.default_rng(7).integers(1, 60_000, SHAPE).astype("uint16")
WHOLE = Box.whole(SHAPE)
DAMAGED: list[Index3] = [(0, 0, 0), (1, 1, 1), (1, 1, 2), (2, 2, 3)]

ZARRS: dict[str, dict[str, Any]] = {
    "v3, no codec": {"compressors": None},
    "v3, checksum": {"compressors": Crc32cCodec()},
    "v3, blosc": {"compressors": BloscCodec()},
    "v3, zstd": {"compressors": ZstdCodec()},
    "v3, zstd with checksum": {"compressors": [ZstdCodec(), Crc32cCodec()]},
    "v3, gzip": {"compressors": GzipCodec()},
    "v3, by zarr-python": {"compressors": ZstdCodec(), "filters": [TransposeCodec(order=(2, 1, 0))]},
    "v2, no codec": {"compressors": None, "zarr_format": 2},
    **{
        f"v2, {codec.codec_id}": {"compressors": codec, "zarr_format": 2}
        for codec in (
            numcodecs.Blosc(),
            numcodecs.Zstd(),
            numcodecs.GZip(),
            numcodecs.Zlib(),
            numcodecs.LZ4(),
            numcodecs.LZMA(),
            numcodecs.BZ2(),
        )
    },
    **{
        f"v2, {codec.codec_id}, by zarr-python": {"compressors": codec, "zarr_format": 2, "order": "F"}
        for codec in (numcodecs.Blosc(), numcodecs.Zstd(), numcodecs.GZip(), numcodecs.LZ4(), numcodecs.LZMA())
    },
}


def fill_chunks(places: list[Index3], shape: Index3 = CHUNK) -> tuple[NDArray[Any], set[tuple[Index3, Index3]]]:
    """Return the voxels with these chunks filled with 0, and the chunks' corners."""
    filled, corners = VOXELS.copy(), set()
    for place in places:
        start = tuple(p * n for p, n in zip(place, shape, strict=True))
        stop = tuple(min(a + n, end) for a, n, end in zip(start, shape, SHAPE, strict=True))
        filled[Box(start, stop).slices] = 0
        corners.add((start, stop))
    return filled, corners


def reader(volume: Volume, told: list[CorruptInputError]) -> FilledReader:
    """Return what fills with 0, and keeps what it is told."""
    return FilledReader(volume.read, volume.dtype, 0, told.append)


def check(volume: Volume, filled: NDArray[Any], corners: set[tuple[Index3, Index3]]) -> None:
    """Check that boxes hold what can be read, and that every damaged part is told once, by its place."""
    told: list[CorruptInputError] = []
    read = reader(volume, told)
    np.testing.assert_array_equal(read(WHOLE), filled)
    out = np.empty(WHOLE.shape, volume.dtype)
    assert read(WHOLE, out) is out
    np.testing.assert_array_equal(out, filled)
    assert {(error.start, error.stop) for error in told} == corners
    assert len(told) == len(corners)
    for error in told:
        assert "\n" not in str(error)
        assert volume.name in str(error)
        with pytest.raises(CorruptInputError):
            volume.read(Box(error.start, error.stop))


@pytest.mark.sampled(10)
@pytest.mark.parametrize("kind", ZARRS)
def test_damaged_chunks_are_filled(kind: str, tmp_path: Path) -> None:
    """Whatever the codec, damaged chunks are 0 and all others as they were."""
    options = ZARRS[kind]
    zarr.create_array(tmp_path / "a", data=VOXELS, chunks=CHUNK, **options)
    for place in DAMAGED:
        name = "c/" + "/".join(map(str, place)) if kind.startswith("v3") else ".".join(map(str, place))
        data = (tmp_path / "a" / name).read_bytes()
        (tmp_path / "a" / name).write_bytes(data[: len(data) // 2])
    volume = open_volume(tmp_path / "a")
    assert isinstance(volume.read, ZarrReader) == ("zarr-python" in kind)
    check(volume, *fill_chunks(DAMAGED))


@pytest.mark.parametrize("index", [False, True])
def test_damage_in_shards_is_filled(tmp_path: Path, *, index: bool) -> None:
    """A damaged chunk in a shard costs the chunk, and a damaged index the shard."""
    zarr.create_array(tmp_path / "a", data=VOXELS, chunks=CHUNK, shards=(8, 16, 20), compressors=BloscCodec())
    file = tmp_path / "a/c/0/1/1"
    data = bytearray(file.read_bytes())
    # The last bytes are the index; the first are those of some chunk.
    data[-1 if index else 4] ^= 0xFF
    file.write_bytes(data)
    volume = open_volume(tmp_path / "a")
    with pytest.raises(CorruptInputError, match=r"shard \(0, 1, 1\)" if index else r"chunk \(\d, 2, [23]\)") as error:
        volume.read(WHOLE)
    if index:
        check(volume, *fill_chunks([(0, 1, 1)], (8, 16, 20)))
    else:
        place = tuple(a // n for a, n in zip(error.value.start, CHUNK, strict=True))
        check(volume, *fill_chunks([place]))


@pytest.mark.parametrize(
    ("kind", "part", "options"),
    [
        ("strips", (1, 6, 31), {"rowsperstrip": 6, "compression": "zlib"}),
        ("tiles", (1, 16, 16), {"tile": (16, 16), "compression": "zlib"}),
        ("volumetric tiles", (4, 16, 16), {"tile": (4, 16, 16), "compression": "zlib", "volumetric": True}),
        ("lzw", (1, 22, 31), {"compression": "lzw", "predictor": True}),
    ],
)
def test_damaged_strips_and_tiles_are_filled(kind: str, part: Index3, options: dict[str, Any], tmp_path: Path) -> None:
    """Strips and tiles of a TIFF are filled as chunks are, cut where the image ends."""
    path = tmp_path / f"{kind}.tif"
    tifffile.imwrite(path, VOXELS, photometric="minisblack", **options)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[-1]
        offset, count = page.dataoffsets[-1], page.databytecounts[-1]
    data[offset : offset + count] = b"\xff" * count
    path.write_bytes(data)
    last = tuple(-(-n // p) - 1 for n, p in zip(SHAPE, part, strict=True))
    check(open_volume(path), *fill_chunks([last], part))


@pytest.mark.parametrize("order", ["C", "F"])
def test_what_has_been_cut_off_is_filled(order: str, tmp_path: Path) -> None:
    """Planes that a file has lost since it was opened are filled, and those that it has are read."""
    path = tmp_path / "a.npy"
    np.save(path, np.asarray(VOXELS, order=order))
    volume = open_volume(path)
    plane = VOXELS.nbytes // (SHAPE[0] if order == "C" else SHAPE[2])
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 2 * plane - 1)
    if order == "C":
        check(volume, *fill_chunks([(z, 0, 0) for z in (6, 7, 8)], (1, *SHAPE[1:])))
    else:
        check(volume, *fill_chunks([(0, 0, x) for x in (28, 29, 30)], (*SHAPE[:2], 1)))


@settings(max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(box=boxes(SHAPE), places=st.sets(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 3))))
def test_any_damage_in_any_box(box: Box, places: set[Index3]) -> None:
    """Wherever the damage is, a box holds all that can be read, and each damaged part in it is told once."""
    filled, corners = fill_chunks(sorted(places))

    def read(box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        for start, stop in sorted(corners):
            if (Box(start, stop) & box).size:
                raise CorruptInputError("a", "chunk", start, stop, "it is damaged")
        out = np.empty(box.shape, VOXELS.dtype) if out is None else out
        out[...] = VOXELS[box.slices]
        return out

    told: list[CorruptInputError] = []
    filling = FilledReader(read, VOXELS.dtype, 0, told.append)
    for _ in range(2):
        np.testing.assert_array_equal(filling(box), filled[box.slices])
    met = [corner for corner in corners if (Box(*corner) & box).size]
    assert sorted((error.start, error.stop) for error in told) == sorted(met)


@given(st.data())
def test_what_is_around_a_hole(data: st.DataObject) -> None:
    """At most six boxes hold every voxel beside the hole once."""
    box = data.draw(boxes(SHAPE))
    hole = data.draw(boxes(SHAPE)) & box
    if not hole.size:
        return
    count = np.zeros(SHAPE, int)
    pieces = list(around(hole, box))
    for piece in pieces:
        count[piece.slices] += 1
        assert piece.size
    expected = np.zeros(SHAPE, int)
    expected[box.slices] = 1
    expected[hole.slices] = 0
    np.testing.assert_array_equal(count, expected)
    assert len(pieces) <= 6


def test_threads_tell_of_a_part_once(tmp_path: Path) -> None:
    """However many threads meet a damaged chunk, through a cache too, it is told once, by one at a time."""
    zarr.create_array(tmp_path / "a", data=VOXELS, chunks=CHUNK)
    for place in DAMAGED:
        (tmp_path / "a/c" / "/".join(map(str, place))).write_bytes(b"nonsense")
    volume = open_volume(tmp_path / "a")
    filled, corners = fill_chunks(DAMAGED)
    told: list[CorruptInputError] = []
    alone = threading.Lock()

    def tell(error: CorruptInputError) -> None:
        assert alone.acquire(blocking=False)
        told.append(error)
        alone.release()

    read = FilledReader(volume.cached(10**6), volume.dtype, 0, tell)
    tiles = [box for box in WHOLE.tiles((5, 11, 16)) for _ in range(6)]
    with ThreadPoolExecutor(8) as pool:
        for box, voxels in zip(tiles, pool.map(read, tiles), strict=True):
            np.testing.assert_array_equal(voxels, filled[box.slices])
    assert {(error.start, error.stop) for error in told} == corners
    assert len(told) == len(corners)


@pytest.mark.parametrize(
    "make", [lambda: InputUnavailableError(5, "a disk"), lambda: InputError("no idea"), MemoryError, KeyboardInterrupt]
)
def test_other_failures_are_passed_on(make: Callable[[], BaseException]) -> None:
    """Only damage is filled: what may be there the next time is never replaced by 0."""

    def read(_box: Box, _out: NDArray[Any] | None = None) -> NDArray[Any]:
        raise make()

    with pytest.raises(type(make())):
        FilledReader(read, VOXELS.dtype, 0, print)(WHOLE)


def test_damage_elsewhere_is_passed_on() -> None:
    """A reader that names voxels outside of what it was asked for is not asked for ever."""

    def read(_box: Box, _out: NDArray[Any] | None = None) -> NDArray[Any]:
        raise CorruptInputError("a", "chunk (9, 9, 9)", (90, 90, 90), (91, 91, 91), "it is damaged")

    with pytest.raises(CorruptInputError):
        FilledReader(read, VOXELS.dtype, 0, print)(WHOLE)
