"""Read boxes of a zarr whose chunks a GPU decodes, in batches of chunks that lie beside each other.

The calling thread reads the encoded chunks of a batch and checks what checksums they have; the GPU puts their voxels
to where they belong. What it leaves is read and decoded by the thread, as everywhere else, which says what is damaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.codecs.cuda import GpuCodecError
from isovoxel.codecs.decoder import Batch, GpuDecoder
from isovoxel.geometry.grid import Box, Index3, ceil_div
from isovoxel.readers.base import output_array
from isovoxel.readers.zarr_chunks import ChunkReader, Reading, chunk_place
from isovoxel.readers.zarr_layout import ChunkLayout

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
        for part in self._parts(box):
            chunks = list(part.tiles(self.layout.chunk))
            left = self._decode_part(part, chunks, out[part.slices_from(box.start)])
            rest = chunks if left is None else [chunks[number] for number in np.flatnonzero(left)]
            if rest:
                self.read_tiles(rest, box.start, out)
            if rest and left is not None and not self._told_left:  # and nothing of it is damaged
                self._told_left = True
                self._tell(LEFT)
        return out

    def _parts(self, box: Box) -> Iterator[Box]:
        """Cut a box into what batches of chunks hold of it: whole rows along x where they are not too long."""
        if self._decoder is None or not box.size:
            yield box
            return
        chunk, left = self.layout.chunk, self._decoder.batch
        spans = [(a // n, ceil_div(b, n)) for a, b, n in zip(box.start, box.stop, chunk, strict=True)]
        steps = [1, 1, 1]
        for axis in (2, 1, 0):
            steps[axis] = min(left, spans[axis][1] - spans[axis][0])
            left //= steps[axis]
        for z in range(*spans[0], steps[0]):
            for y in range(*spans[1], steps[1]):
                for x in range(*spans[2], steps[2]):
                    start = tuple(at * n for at, n in zip((z, y, x), chunk, strict=True))
                    stop = tuple((at + step) * n for at, step, n in zip((z, y, x), steps, chunk, strict=True))
                    yield Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]), box.volume) & box

    def _decode_part(self, part: Box, chunks: list[Box], out: NDArray[Any]) -> NDArray[np.bool_] | None:
        """Let the GPU decode what a part holds of its chunks, and return which of them it has left; None of all."""
        layout, decoder = self.layout, self._decoder
        if decoder is None:
            return None
        first: Index3 = chunk_place(part, layout.chunk)
        z, y, x = (ceil_div(b, n) - a for a, b, n in zip(first, part.stop, layout.chunk, strict=True))
        sz, sy, sx = (a - n * at for a, n, at in zip(part.start, layout.chunk, first, strict=True))
        batch = Batch((z, y, x), (sz, sy, sx), np.array(layout.fill, layout.dtype).tobytes())
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
