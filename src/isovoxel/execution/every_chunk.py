"""Read every chunk of all levels of an output, and tell which are damaged.

1. Levels one after the other whose chunks are encoded alike are read together, by the processor's cores, or by a GPU
   where that is asked for, or is there and faster; `choose_decoders` says so before anything is read.
2. The cores read chunk by chunk. For a GPU threads read boxes of as many chunks as it decodes at a time.
3. Chunks of a box that cannot be read are read one by one, so that damage is told as the cores find it.
4. Where the GPU does not decode, the cores go on with what is left.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.codecs.cuda import GpuCodecError, Lent, new_memory
from isovoxel.codecs.streams import ChunkCoding
from isovoxel.errors import DeviceError, InputError, InputUnavailableError, OptionError
from isovoxel.execution.resources import LIBRARIES, check_fits, reading_threads
from isovoxel.geometry.grid import Box, ceil_div
from isovoxel.object_store.retries import map_in_order
from isovoxel.options import Options
from isovoxel.planning.codecs import DecodedBatches, is_faster, with_decoder
from isovoxel.planning.model import DeviceLimits, Encoded, HostLimits
from isovoxel.readers.base import Volume

if TYPE_CHECKING:
    from isovoxel.codecs.decoder import GpuDecoder
    from isovoxel.engines.devices import Device

THREADS = 2
"""Threads for each batch on a GPU: while it decodes that of one, another reads."""

Part = tuple[Volume, Box]
"""A box of a level: a chunk, or some that lie beside each other."""


@dataclass(frozen=True)
class Levels:
    """Levels one after the other whose chunks are decoded in the same way."""

    volumes: Sequence[Volume]
    """The levels."""
    host: HostLimits
    """What reads them may hold; its baseline has the buffers of what decodes on a GPU."""
    pci: str = ""
    """Place on the PCI bus of the GPU that decodes them."""
    device: DeviceLimits | None = None
    """Its limits, with what is held to decode; None where the cores do."""

    @property
    def batches(self) -> DecodedBatches | None:
        """In which a GPU decodes them, if one does."""
        coding = _coding(self.volumes[0])
        return None if self.device is None or coding is None else DecodedBatches(coding.chunk_bytes, coding.codec)

    def threads(self, batches: DecodedBatches | None) -> tuple[int, int]:
        """Return how many threads read them for a GPU or for the cores, and the bytes that each holds."""
        host = self.host
        takes = max(one.read_overhead + math.prod(one.chunks) * one.dtype.itemsize for one in self.volumes)
        if batches is not None and self.device is not None:
            host = replace(host, threads=THREADS * batches.lanes_within(self.device))
            takes += batches.host_bytes
        return reading_threads(host, takes), takes

    @property
    def projected(self) -> int:
        """Projected bytes of host memory: the cores read where the GPU fails."""
        return self.host.baseline + max(math.prod(self.threads(how)) for how in (None, self.batches))


def check_asked(options: Options, *, every_chunk: bool) -> None:
    """Raise an `OptionError` where options say what decodes, and nothing is decoded, or not by what they say."""
    if (options.decode == "gpu" or options.device is not None) and not every_chunk:
        raise OptionError("decode gpu and device are for reading every chunk; give --every-chunk, or leave them out")
    if options.device is not None and options.decode == "cpu":
        raise OptionError("device says which GPU decompresses every chunk; leave it out, or --decode cpu")


def choose_decoders(levels: Sequence[Volume], options: Options, host: HostLimits) -> list[Levels]:
    """Return what decodes every chunk of levels; `auto` looks for a GPU only where one may be there, and faster.

    Parameters
    ----------
    levels
        The levels, finest first.
    options
        What decodes, on which device, and how much of its memory may be held.
    host
        What the process may hold.

    Raises
    ------
    OptionError
        If the GPU is asked for, and cannot decode a level.
    DeviceError
        If the device that is asked for is not there.
    DoesNotFitError
        If reading a chunk takes more than is allowed.
    """
    if not levels:
        return []
    alike = [list(run) for _, run in groupby(levels, _coding)]
    with_gpu = replace(host, baseline=max(host.baseline, LIBRARIES["gpu"]), helpers=host.threads - 1)
    device, found = _find_device(alike, options, with_gpu), [Levels(levels, host)]
    if device is not None:
        limits = device.limits(options.device_memory_bytes)
        runs = [_decided(run, options.or_new("decode"), device.pci, (limits, with_gpu)) for run in alike]
        found = runs if any(run.device for run in runs) else found
    check_fits("reading a chunk", max(run.projected for run in found), host)
    return found


def _find_device(alike: Sequence[Sequence[Volume]], options: Options, host: HostLimits) -> Device | None:
    """Return the device that may decode, or None where the cores do."""
    asked = options.decode == "gpu" or options.device is not None
    codings = [(coding.codec, _nbytes(run)) for run in alike if (coding := _coding(run[0])) is not None]
    helps = any(is_faster(codec, nbytes, host) for codec, nbytes in codings)
    if options.decode == "cpu" or not (asked or helps):
        return None
    from isovoxel.engines.devices import find_device, has_coding_gpu

    if not (asked or has_coding_gpu()):
        return None
    try:
        return find_device(options.or_new("device"))
    except (DeviceError, ImportError):
        if asked:
            raise
        return None


def _decided(run: Sequence[Volume], given: str, pci: str, limits: tuple[DeviceLimits, HostLimits]) -> Levels:
    """Return what decodes levels whose chunks are encoded alike."""
    coding = _coding(run[0])
    encoded = None if coding is None else Encoded(coding.codec, coding.chunk_bytes)
    device, host = with_decoder(given, encoded, (_nbytes(run), 0), limits, "exact")
    found = Levels(run, host, pci, device if device.decoding else None)
    return found if given == "gpu" or found.projected <= host.allowed else Levels(run, limits[1])


def _coding(level: Volume) -> ChunkCoding | None:
    return None if level.by_gpu is None else level.by_gpu.coding


def _nbytes(run: Sequence[Volume]) -> int:
    return sum(level.nbytes for level in run)


def damages(runs: Sequence[Levels], told: list[str]) -> Generator[str | None, None, None]:
    """Read every chunk of levels, and yield in their order why each cannot be read, or None where it can.

    Parameters
    ----------
    runs
        The levels, as `choose_decoders` returns them.
    told
        Gets the reasons why the processor decodes where the GPU should; with the first, the cores go on.

    Raises
    ------
    InputUnavailableError
        If the system cannot read a file.
    """
    kept = []  # with the last of what uses it, CUDA goes, and takes half a second to come up again
    for run in runs:
        decoder = None if told else _decoder(run, told)
        parts = _parts(run.volumes, 1 if decoder is None else decoder.batch)
        if decoder is not None:
            kept.append(decoder.gpu)
            yield from _by_gpu(run, decoder, parts, told)
        chunks = ((level, chunk) for level, part in parts for chunk in part.tiles(level.chunks))
        with map_in_order(_damage, chunks, run.threads(None)[0]) as results:
            yield from results


def _parts(levels: Sequence[Volume], most: int) -> Iterator[Part]:
    """Cut levels into boxes of at most so many chunks."""
    for level in levels:
        for volume in range(level.n_volumes):
            yield from ((level, box) for box in Box.whole(level.shape).of(volume).batches(level.chunks, most))


def _damage(of: Part) -> str | None:
    """Return why a chunk of a level cannot be read, or None where it can."""
    level, chunk = of
    try:
        level.read(chunk)
    except InputUnavailableError:
        raise  # the disk's doing, not the result's
    except InputError as error:
        return str(error)
    return None


def _decoder(run: Levels, told: list[str]) -> GpuDecoder | None:
    """Return what decodes chunks of levels on a GPU; None where the cores do, which is told where the GPU should."""
    coding = _coding(run.volumes[0])
    if run.device is None or coding is None:
        return None
    from isovoxel.engines.pipeline import new_decoder

    try:
        return new_decoder(run.pci, coding, run.device)
    except (ImportError, MemoryError, GpuCodecError) as error:
        told.append(str(error))
        return None


def _by_gpu(run: Levels, decoder: GpuDecoder, parts: Iterator[Part], told: list[str]) -> Iterator[str | None]:
    """Read parts of levels until something is told, and yield of each chunk why it cannot be read, or None."""
    threads, _ = run.threads(run.batches)
    nbytes = decoder.batch * decoder.coding.chunk_bytes
    rooms = Lent(threads, lambda: _reached(decoder, nbytes))
    reads = {id(level): level.by_gpu.reader(decoder, told.append) for level in run.volumes if level.by_gpu is not None}

    def read(part: Part) -> list[str | None]:
        level, box = part
        try:
            with rooms.one() as (memory, _):
                voxels = memory[: box.size * level.dtype.itemsize].view(level.dtype)
                reads[id(level)](box, voxels.reshape(box.shape))
            return [None] * math.prod(map(ceil_div, box.shape, level.chunks))
        except MemoryError as error:
            told.append(str(error))
        except InputError:
            pass
        return [_damage((level, chunk)) for chunk in box.tiles(level.chunks)]

    taken = iter(lambda: None if told else next(parts, None), None)
    with closing(decoder), map_in_order(read, taken, threads) as results:
        for each in results:
            yield from each


def _reached(decoder: GpuDecoder, nbytes: int) -> tuple[NDArray[np.uint8], Any]:
    """Return memory of the host, and what has the GPU reach it."""
    memory = new_memory(nbytes)
    return memory, decoder.gpu.register(memory)
