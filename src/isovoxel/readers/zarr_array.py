"""Read a zarr array box by box: one at a path, of a caller, or of an OME-Zarr group.

Most arrays in local folders and in object stores are read by `ChunkReader`, which is several times faster, and all
others through zarr-python; see `isovoxel.readers.zarr_python`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import InputError
from isovoxel.geometry.grid import AXES, Box, Index3, ceil_div, triple
from isovoxel.object_store.files import ARRAY_FILES, NODE, V2_ARRAY, files_of_node, read_group
from isovoxel.object_store.objects import ObjectPlace, Place
from isovoxel.object_store.retries import carried
from isovoxel.planning.chunking import Storage
from isovoxel.readers.base import (
    ByGpu,
    Files,
    ReadBox,
    Volume,
    check_voxels,
    output_array,
    series_reader,
    stored_order,
    transposed,
    with_zyx_named,
)
from isovoxel.readers.chunks import CHUNK_COST, CachedChunk, ChunkCache
from isovoxel.readers.files import MissingFolders, metadata_identity, unreadable
from isovoxel.readers.registry import Location
from isovoxel.readers.selection import GIVEN, UNNAMED, Picked, Selection, pick
from isovoxel.readers.tiled import TiledReader, chunk_of, chunk_place, chunk_start, failure_in
from isovoxel.readers.zarr_files import ChunkFile, IndexCache, ShardIndexError
from isovoxel.readers.zarr_layout import (
    AT_ONCE,
    ChunkLayout,
    ZarrFiles,
    array_files,
    chunk_layout,
    written_layout,
)
from isovoxel.readers.zarr_node import ArrayNode, node_of, usual_node

if TYPE_CHECKING:
    import zarr

    from isovoxel.codecs.decoder import GpuDecoder


def open_path(path: Place, name: str) -> ArrayNode:
    """Open the zarr array in a folder.

    Raises
    ------
    InputError
        If it is none that zarr can read.
    """
    opened = partial(_opened, path, name)
    try:
        node = usual_node(path, opened)
    except OSError as error:
        raise unreadable(name, "a zarr array", error) from error
    return node_of(opened()) if node is None else node


def _opened(path: Place, name: str) -> zarr.Array[Any]:
    """Open the array in a folder with zarr-python."""
    import zarr

    zarr_format: Literal[2, 3] = 3 if (path / NODE).is_file() else 2
    if zarr_format == 2 and not (path / V2_ARRAY).is_file():
        raise InputError(f"{name} holds no zarr array: there is neither {NODE} nor {V2_ARRAY} in {path}")
    try:
        with warnings.catch_warnings():
            # Or another fill value would be taken than is written.
            warnings.filterwarnings("error", "NumPy will stop allowing conversion of out-of-bound")
            # Absolute: from another working directory, every chunk would be absent, and read as zeros.
            where: dict[str, Any] = {"store": str(path.resolve())}
            if isinstance(path, ObjectPlace):
                from isovoxel.readers.zarr_python import RootStore

                where = {"store": RootStore(path.root), "path": path.key}
            elif (in_zip := getattr(path, "in_store", None)) is not None:  # of `isovoxel.readers.packed`
                where = in_zip()
            return zarr.open_array(**where, mode="r", zarr_format=zarr_format)
    except (DeprecationWarning, OverflowError) as error:  # NumPy 1 and 2
        raise InputError(
            f"{name} cannot be read as a zarr array: its data type does not hold its fill value"
        ) from error
    except Exception as error:
        raise unreadable(name, "a zarr array", error) from error


def zarr_voxels(array: ArrayNode, name: str, axes: list[str], selection: Selection) -> tuple[Volume, Picked]:
    """Return a zarr array as a volume, and what of it was picked; who knows its metadata adds the rest.

    Parameters
    ----------
    array
        What the metadata of a zarr array say, v2 or v3.
    name
        What the user called the input, for messages.
    axes
        Name of every axis of the array, in lower case, or empty.
    selection
        Which channel and which time point are meant.

    Raises
    ------
    InputError
        If the array has other axes than z, y and x, is empty, or has a dtype that isovoxel does not scale.
    OptionError
        If it has no such channel or time point.
    """
    named = selection.named(name, axes, array.shape)
    if (order := stored_order(named)) is not None:
        return _transposed(array, name, named, selection, order)
    picked = pick(name, axes, array.shape, selection)
    shape = picked.shape(array.shape)
    dtype = array.dtype.newbyteorder("=")
    check_voxels(name, shape, dtype)
    # Of a sharded array these are the inner chunks, unless further codecs lie around the shard.
    whole = array.chunks
    if min(*whole, *(array.shards or whole)) < 1:
        raise InputError(f"{name} cannot be read as a zarr array: its metadata have chunks of shape {whole}")
    chunks = triple(map(min, picked.shape(whole), shape))
    layout = chunk_layout(array, picked)
    files = array_files(array, layout)
    if layout is not None:
        return _volume_of(name, shape, dtype, layout, files), picked
    from isovoxel.readers.zarr_python import slow_voxels

    read, overhead = slow_voxels(array, name, picked, chunks)
    beside = math.prod(whole[axis] for axis in picked.others)
    notes = (f"each of its chunks holds {beside} volumes, which are all decoded for one",) if beside > 1 else ()
    series = picked.axes()
    return Volume(name, "", shape, dtype, read, chunks, overhead, notes=notes, files=files, series=series), picked


def _volume_of(name: str, shape: Index3, dtype: np.dtype[Any], layout: ChunkLayout, files: Files | None) -> Volume:
    """Return a volume whose chunks are decoded here."""
    reader, picked = ChunkReader(name, layout), layout.picked
    return Volume(
        name,
        "",
        shape,
        dtype,
        series_reader(picked, reader.at),
        triple(map(min, layout.chunk, shape)),
        layout.read_overhead,
        cached=partial(_cached, reader),
        by_gpu=None if layout.coding is None else ByGpu(layout.coding, partial(_decoded_by, reader)),
        files=files,
        series=picked.axes(),
    )


def _transposed(
    array: ArrayNode, name: str, axes: Sequence[str], selection: Selection, order: Index3
) -> tuple[Volume, Picked]:
    """Return an array as a volume whose space axes are in another order than z, y, x."""
    renamed, selection = with_zyx_named(axes), replace(selection, axes=None)
    try:
        pick(name, renamed, array.shape, selection)
    except InputError:
        pick(name, axes, array.shape, selection)  # which says the same of the names that the axes have
        raise
    stored, picked = zarr_voxels(array, name, renamed, selection)
    zyx = (axes.index("z") if "z" in axes else None, axes.index("y"), axes.index("x"))
    return transposed(stored, order, [axis for axis in axes if axis in AXES]), replace(picked, zyx=zyx)


def _cached(reader: ChunkReader, capacity: int) -> ReadBox:
    """Return what reads all volumes of an array, which keep decoded chunks together."""
    return series_reader(reader.layout.picked, reader.cached(capacity).at)


def _decoded_by(reader: ChunkReader, decoder: GpuDecoder, tell: Callable[[str], None]) -> ReadBox:
    batches = BatchReader(reader.name, reader.layout, decoder, tell)
    return series_reader(reader.layout.picked, batches.at)


def from_array(array: zarr.Array[Any], selection: Selection) -> Volume:
    """Return a volume of a zarr array that the caller opened, on whatever store.

    Raises
    ------
    InputError
        If it has other axes than z, y and x, is empty, or has a dtype that isovoxel does not scale.
    """
    name = f"the zarr array {array.store_path}"
    metadata = json.dumps(array.metadata.to_dict(), sort_keys=True, default=str)
    identity = {"path": str(array.store_path), "metadata": hashlib.sha256(metadata.encode()).hexdigest()}
    return _volume(node_of(array), name, identity, selection)


def open_zarr_array(at: Location, selection: Selection) -> Volume:
    """Open a folder, on a disk or in an object store, that is a zarr array, v2 or v3.

    Raises
    ------
    InputError
        If zarr cannot read it, or it has other axes than z, y and x, is empty, or has an unsupported dtype.
    """
    array = open_path(at.place, at.name)
    now = partial(metadata_identity, at.place, files_of_node(at.place, ARRAY_FILES))
    return replace(_volume(array, at.name, now(), selection), current_identity=now)


def open_written(
    place: Place, shape: Index3, dtype: np.dtype[Any], storage: Storage, series: Sequence[tuple[str, int]] = ()
) -> Volume:
    """Open an array that isovoxel has written, of which it knows all that its metadata say; nothing is read.

    Parameters
    ----------
    place
        Where the array lies.
    shape, dtype, storage
        Of one volume, and how it is stored.
    series
        Name and length of each axis along which there are several volumes.
    """
    n = len(series)
    picked = Picked(
        zyx=(n, n + 1, n + 2),
        others=dict.fromkeys(range(n), 0),
        chosen={},
        series=tuple((axis, name, length) for axis, (name, length) in enumerate(series)),
    )
    layout = written_layout(place, shape, dtype, storage, picked)
    volume = _volume_of(str(place), shape, np.dtype(dtype), layout, ZarrFiles(layout))
    return replace(volume, kind=f"zarr v{storage.zarr_format} array")


def _volume(array: ArrayNode, name: str, identity: Mapping[str, Any], selection: Selection) -> Volume:
    axes = array.axis_names
    volume, picked = zarr_voxels(array, name, axes, selection)
    named = "zarr dimension names" if any(axes) else UNNAMED[3 - (picked.zyx[0] is None)]
    named = named if selection.axes is None else GIVEN
    unfinished = _is_unfinished(array)
    return replace(
        volume,
        kind=f"zarr v{array.zarr_format} array{' (incomplete)' if unfinished else ''}",
        incomplete=unfinished,
        sources={"shape": "zarr metadata", "axes": picked.told(named)},
        identity={**identity, **picked.chosen, **selection.identity("axes")},
        missing="a zarr array by itself has none; for a level of an OME-Zarr image, name the image's group",
    )


def _is_unfinished(array: ArrayNode) -> bool:
    """Return whether an array is a level of an output of ours whose job has not ended."""
    attributes: Any = None
    with suppress(OSError, ValueError, KeyError):
        if isinstance(array.folder, str | ObjectPlace):
            folder = array.folder if isinstance(array.folder, ObjectPlace) else Path(array.folder)
            attributes = read_group(folder.parent).get("attributes")
        else:  # in a zip, or a store of the caller's
            import zarr

            level = array.opened().store_path
            if level.path:
                attributes = zarr.open_group(level.store, path=level.path.rpartition("/")[0], mode="r").attrs.asdict()
    made = attributes.get("isovoxel") if isinstance(attributes, dict) else None
    return isinstance(made, dict) and made.get("complete") is False


# ---- chunks ------------------------------------------------------------------------------------------------------

# Read boxes from the chunks of a zarr, decoded straight into the result or a shared cache.
#
# Shard by shard and chunk by chunk in the thread that reads; any number of threads read at once. From an object store,
# which takes its time for every answer, a few chunks of a box are read at once.
#
# 1. The box is cut along the shards, and each of them along its chunks.
# 2. A chunk that lies in one piece in the returned array is decoded straight into it; every other into a buffer
#    that all chunks of the read share, or into the cache, and the part that is wanted is copied.
# 3. A chunk that another thread is decoding into the cache is put off until the next ones are done.


MOST_PUT_OFF = 4
"""How many chunks a read leaves to other threads before it waits for the first; they keep their buffers."""


class Wanted(NamedTuple):
    """A part of a chunk in the cache, and where its voxels go."""

    chunk: CachedChunk
    there: tuple[slice, slice, slice]
    out: NDArray[Any]


class Reading:
    """What one read holds: the file that is open, buffers, each made when it is first needed, and chunks put off."""

    def __init__(self, layout: ChunkLayout, indices: IndexCache) -> None:
        self._layout, self._indices = layout, indices
        self._file: ChunkFile | None = None
        self._missing = MissingFolders()
        self.put_off: deque[Wanted] = deque()
        self.count = 0
        """Chunks that were decoded."""

    @cached_property
    def encoded(self) -> NDArray[np.uint8]:
        """Memory for the bytes of an encoded chunk; only as much of it as is used is touched."""
        return np.empty(self._layout.encoded_limit, np.uint8)

    @cached_property
    def decoded(self) -> NDArray[Any]:
        """Memory for the voxels of a chunk."""
        return chunk_buffer(self._layout)

    def file_of(self, chunk: Index3) -> ChunkFile:
        """Return the file of a chunk, which stays open until one of another file is wanted."""
        place = self._place(chunk)
        if self._file is None or self._file.place != place:
            self.close()
            self._file = ChunkFile(self._layout, self._indices, place)
        return self._file

    def stores(self, chunk: Index3) -> bool:
        """Return whether there is such a chunk; see `ChunkFile.stores`."""
        path = self._layout.path(self._place(chunk))
        if not isinstance(path, str):
            return self.file_of(chunk).stores(chunk)
        if self._missing.hold(path):
            return False
        if self._layout.index is None:
            try:
                os.lstat(path)  # links, too, that lead nowhere: reading it tells of them
            except FileNotFoundError:
                self._missing.search(path)
                return False
            return True
        file = self.file_of(chunk)
        if not file.is_there:
            self._missing.search(path)
        return file.stores(chunk)

    def _place(self, chunk: Index3) -> Index3:
        """Return the place of a chunk's file in the grid of files."""
        (z, y, x), (deep, high, wide) = chunk, self._layout.per_shard
        return (z // deep, y // high, x // wide)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class ChunkReader(TiledReader):
    """Reads boxes of a zarr array in a local folder or an object store; safe to call from many threads.

    Parameters
    ----------
    name
        What the user called the input, for messages.
    layout
        Where the chunks lie.
    capacity
        Most bytes of decoded chunks to keep. The files must not change while chunks of them are kept.

    Attributes
    ----------
    decoded : int
        Number of chunks that were decoded so far.
    """

    def __init__(self, name: str, layout: ChunkLayout, capacity: int = 0) -> None:
        self.name = name
        self.layout = layout
        self.capacity = capacity
        self.decoded = 0
        self._lock = threading.Lock()
        self._indices = IndexCache()
        self._cache = ChunkCache(capacity // (layout.chunk_bytes + CHUNK_COST), lambda: chunk_buffer(layout))

    def __reduce__(self) -> tuple[type[ChunkReader], tuple[str, ChunkLayout, int]]:
        # Another process has buffers of its own.
        return (ChunkReader, (self.name, self.layout, self.capacity))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the encoded voxels, with their byte order."""
        return self.layout.dtype

    @property
    def shape(self) -> Index3:
        """Number of voxels, z, y, x."""
        return self.layout.shape

    @property
    def chunk(self) -> Index3:
        """Shape of a chunk."""
        return self.layout.chunk

    def cached(self, capacity: int) -> ChunkReader:
        """Return a reader of the same array that keeps at most so many bytes of decoded chunks."""
        return ChunkReader(self.name, self.layout, capacity)

    def at(self, picked: Picked) -> ChunkReader:
        """Return a reader of a volume of the array, which shares with this one what is kept."""
        reader = object.__new__(type(self))  # for `copy` makes what another process gets, which shares nothing
        vars(reader).update(vars(self), layout=replace(self.layout, picked=picked))
        return reader

    def __call__(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a box as a new array, or in `out`.

        Raises
        ------
        CorruptInputError
            If a chunk is damaged, or the index of a shard.
        InputUnavailableError
            If the system cannot read a file.
        """
        out = output_array(box, self.dtype.newbyteorder("="), out)
        if not isinstance(self.layout.folder, ObjectPlace):
            if out.size:
                self.read_tiles(self.tiles(box), box.start, out)
            return out
        # A few chunks at a time, each in a thread of its own: from a store they are mostly waited for.
        read_tiles = carried(self.read_tiles)
        with ThreadPoolExecutor(AT_ONCE, "isovoxel-read") as pool:
            running: set[Future[None]] = set()
            for file in box.tiles(self.layout.file):
                rest = file.tiles(self.layout.chunk)
                if self.layout.index is not None:  # which the first one gets for all of them
                    self.read_tiles(islice(rest, 1), box.start, out)
                for tile in rest:
                    if len(running) == AT_ONCE:
                        done, running = wait(running, return_when=FIRST_COMPLETED)
                        for future in done:
                            future.result()
                    running.add(pool.submit(read_tiles, [tile], box.start, out))
            for future in running:
                future.result()
        return out

    def is_empty(self, box: Box) -> bool:
        """Return whether no chunk of a box is stored, and what is not has no bit set; no voxel is read.

        False where a file is damaged or out of reach, and where each chunk is an object of its own: a store would be
        asked for one after the other.
        """
        layout = self.layout
        in_objects = isinstance(layout.folder, ObjectPlace) and layout.index is None
        if in_objects or any(np.array(layout.fill, layout.dtype).tobytes()):
            return False
        try:
            with closing(Reading(layout, self._indices)) as reading:
                return not any(reading.stores(chunk_place(tile, layout.chunk)) for tile in self.tiles(box))
        except Exception:  # noqa: BLE001 - reading the box raises it
            return False

    def tiles(self, box: Box) -> Iterator[Box]:
        """Cut a box along the shards, and each along its chunks."""
        layout = self.layout
        if layout.index is None:
            return box.tiles(layout.chunk)
        return (chunk for shard in box.tiles(layout.file) for chunk in shard.tiles(layout.chunk))

    @contextmanager
    def opened(self) -> Iterator[Reading]:
        """Hold what the chunks of a box share, and at the end read those that were put off."""
        reading = Reading(self.layout, self._indices)
        try:
            with closing(reading):
                yield reading
            while reading.put_off:
                self._take(*reading.put_off.popleft())
        finally:
            for chunk, _, _ in reading.put_off:
                self._cache.release(chunk)
            with self._lock:
                self.decoded += reading.count

    def read_tile(self, tile: Box, out: NDArray[Any], source: Reading) -> None:
        """Read what a chunk holds of the box, or put it off where another thread is decoding the chunk."""
        layout, put_off = self.layout, source.put_off
        place = chunk_place(tile, layout.chunk)
        there = tile.slices_from(chunk_start(place, layout.chunk))
        chunk, ours = self._cache.claim(layout.key(place))
        if chunk is None:
            straight = out.shape == layout.chunk and out.flags.c_contiguous
            voxels = out if straight else source.decoded
            stored = source.file_of(place).read(place, source.encoded, voxels)
            source.count += stored
            if not stored:
                out[...] = layout.fill
            elif not straight:
                out[...] = voxels[there]
            return
        if ours:

            def decode(voxels: NDArray[Any]) -> bool:
                with self.failures_of(tile):  # for other threads, too, that wait for the chunk
                    stored = source.file_of(place).read(place, source.encoded, voxels)
                source.count += stored
                return stored

            try:
                self._cache.fill(layout.key(place), chunk, decode)
            except BaseException:
                self._cache.release(chunk)
                raise
        if chunk.ready.is_set():
            self._take(chunk, there, out)
        else:
            put_off.append(Wanted(chunk, there, out))
        while put_off and (len(put_off) > MOST_PUT_OFF or put_off[0].chunk.ready.is_set()):
            self._take(*put_off.popleft())

    def _take(self, chunk: CachedChunk, there: tuple[slice, slice, slice], out: NDArray[Any]) -> None:
        """Copy a part of a chunk of the cache, waiting for it if need be, and release it."""
        try:
            chunk.ready.wait()
            if chunk.failure is not None:
                raise copy.copy(chunk.failure)
            out[...] = chunk.buffer[there] if chunk.stored else self.layout.fill
        finally:
            self._cache.release(chunk)

    def is_damage(self, error: Exception) -> bool:
        """Return whether an error is not the system's."""
        return not isinstance(error, OSError)

    def failure(self, tile: Box, error: Exception) -> InputError:
        """Return what is raised where a chunk cannot be read, or the whole shard."""
        if isinstance(error, ShardIndexError):
            shard = chunk_of("shard", tile, self.layout.file, self.layout.shape)
            return failure_in(shard, self.name, error, self.is_damage)
        return super().failure(tile, error)


def chunk_buffer(layout: ChunkLayout) -> NDArray[Any]:
    """Return memory for the voxels of a chunk, in native byte order."""
    return np.empty(layout.chunk, layout.dtype.newbyteorder("="))


# ---- chunks that a GPU decodes -----------------------------------------------------------------------------------

# Read boxes of a zarr whose chunks a GPU decodes, in batches of chunks that lie beside each other.
#
# The calling thread reads the encoded chunks of a batch and checks what checksums they have; the GPU puts their voxels
# to where they belong. What it leaves is read and decoded by the thread, as everywhere else, which says what is
# damaged.


LEFT = "the GPU does not decode chunks of this form"
"""Why the processor decodes what it finds to be damaged, or else of a form of which a GPU decodes nothing."""


class BatchReader(ChunkReader):
    """Reads boxes of a zarr array in a local folder; safe to call from many threads.

    Parameters
    ----------
    name
        What the user called the input, for messages.
    layout
        Where the chunks lie.
    decoder
        What decodes them.
    tell
        Told why the processor decodes where the GPU should.
    """

    def __init__(self, name: str, layout: ChunkLayout, decoder: GpuDecoder, tell: Callable[[str], None]) -> None:
        super().__init__(name, layout)
        self._tell, self._told_left = tell, False
        self._decoder: GpuDecoder | None = decoder

    def __call__(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a box as a new array, or in `out`; raises as `ChunkReader` does."""
        out = output_array(box, self.dtype.newbyteorder("="), out)
        for part in [box] if self._decoder is None else box.batches(self.layout.chunk, self._decoder.batch):
            chunks = list(part.tiles(self.layout.chunk))
            left = self._decode_part(part, chunks, out[part.slices_from(box.start)])
            rest = chunks if left is None else [chunks[number] for number in np.flatnonzero(left)]
            if rest:
                self.read_tiles(rest, box.start, out)
            if rest and left is not None and not self._told_left:  # and nothing of it is damaged
                self._told_left = True
                self._tell(LEFT)
        return out

    def _decode_part(self, part: Box, chunks: list[Box], out: NDArray[Any]) -> NDArray[np.bool_] | None:
        """Let the GPU decode what a part holds of its chunks, and return which of them it has left; None of all."""
        layout, decoder = self.layout, self._decoder
        if decoder is None:
            return None
        from isovoxel.codecs.cuda import GpuCodecError
        from isovoxel.codecs.decoder import Batch

        first = chunk_place(part, layout.chunk)
        grid = triple(ceil_div(b, n) - a for a, b, n in zip(first, part.stop, layout.chunk, strict=True))
        start = part.relative_to(chunk_start(first, layout.chunk)).start
        batch = Batch(grid, start, np.array(layout.fill, layout.dtype).tobytes())
        try:
            left = decoder.decode(partial(self._read_encoded, chunks), batch, out)
        except (MemoryError, GpuCodecError) as error:
            if isinstance(error, GpuCodecError):
                self._decoder = None  # it would fail again
            self._tell(str(error))
            return None
        with self._lock:
            self.decoded += len(chunks) - int(left.sum())
        return left

    def _read_encoded(self, chunks: list[Box], memory: NDArray[np.uint8]) -> list[NDArray[np.uint8] | None]:
        """Read encoded chunks into memory, one after the other; None of those that the processor shall read."""
        read: list[NDArray[np.uint8] | None] = []
        used = 0
        with closing(Reading(self.layout, self._indices)) as reading:
            for chunk in chunks:
                place = chunk_place(chunk, self.layout.chunk)
                try:
                    content = reading.file_of(place).read_encoded(place, memory[used:])
                except Exception:  # noqa: BLE001 - the processor meets it again, and says what it is
                    read.append(None)
                    continue
                if content is None:
                    read.append(memory[:0])
                else:
                    read.append(content if content.size else None)
                    used += content.size
        return read
