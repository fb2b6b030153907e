"""Volume: a lazy 3-D array, read box by box, and what is known of its voxels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from isovoxel.codecs.streams import ChunkCoding
from isovoxel.errors import CorruptInputError, InputError
from isovoxel.geometry.grid import AXES, Box, Float3, Index3, VoxelGrid, ceil_div, triple
from isovoxel.metadata.series import Channel, SeriesAxis, place_of_volume, told_place
from isovoxel.metadata.units import ORIGIN, Calibration
from isovoxel.notebook import InNotebooks
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.readers.selection import Crop, Picked, box_of

if TYPE_CHECKING:
    from isovoxel.codecs.decoder import GpuDecoder


SUPPORTED_DTYPES = tuple(
    np.dtype(name) for name in ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32")
)

CONVERTED: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype("float64"): np.dtype("float32"),
    np.dtype("float16"): np.dtype("float32"),
    np.dtype("bool"): np.dtype("uint8"),
}
"""What voxels of other types are read as, by `converted`."""


class ReadBox(Protocol):
    """Reads one box inside the volume.

    It may be called from several threads at once, and never reads the volume whole to answer for a part.
    """

    def __call__(self, box: Box, /, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return the voxels of a box as a C-contiguous array in native byte order, of the volume's dtype.

        Parameters
        ----------
        box
            Which voxels.
        out
            Such an array, of the box' shape, to read into and return; without it, a new one is made.
        """
        ...


def is_known_empty(read: ReadBox, box: Box) -> bool:
    """Return whether a box is known to hold nothing but zeros, without a bit set, before a voxel of it is read.

    Readers that can tell have a method ``is_empty``. It returns False where it cannot know, and raises nothing:
    reading the box does.
    """
    knows: Callable[[Box], bool] | None = getattr(read, "is_empty", None)
    return knows is not None and knows(box)


ReaderByGpu: TypeAlias = "Callable[[GpuDecoder, Callable[[str], None]], ReadBox]"
"""Makes a reader of which a GPU decodes the chunks, and that tells why the processor decodes in the GPU's place."""


@dataclass(frozen=True)
class ByGpu:
    """How a GPU can decode the chunks of a volume."""

    coding: ChunkCoding
    """How they are encoded."""
    reader: ReaderByGpu
    """Makes a reader that lets a decoder do it."""


def _around(around: Callable[[ReadBox], ReadBox], make: Callable[..., ReadBox], *given: Any) -> ReadBox:
    return around(make(*given))


Files = Callable[[Box], Iterable[str | ObjectPlace]]
"""Returns the paths of files that hold what a box needs."""


@dataclass(frozen=True)
class Volume(InNotebooks):
    """A 3-D volume that is read box by box, axes always z, y, x.

    Raises
    ------
    InputError
        If it is empty or of a dtype that isovoxel does not scale.
    """

    name: str
    """What the user called it: a path, or the kind of array."""
    kind: str
    """What it is, for people: "ImageJ TIFF", "OME-Zarr 0.5"."""
    shape: Index3
    """Number of voxels, z, y, x."""
    dtype: np.dtype[Any]
    """One of `SUPPORTED_DTYPES`, in native byte order, or of `CONVERTED`, which `open_volume` converts. Integers of 64
    bits can be scaled as labels only."""
    read: ReadBox = field(repr=False)
    """Reads one box, as `ReadBox` says."""
    chunks: Index3 = (1, 1, 1)
    """What the storage decodes in one go: reading one voxel of it costs all of it."""
    read_overhead: int = 0
    """Largest number of bytes that one `read` holds for a moment beside the array it returns."""
    voxel_size: Float3 | None = None
    """Physical voxel size in `unit`, or None where the input does not say."""
    origin: Float3 = ORIGIN
    """World position of voxel 0's centre, in `unit`."""
    unit: str | None = None
    """Unit of the lengths, as OME-Zarr spells it, or None where the input does not say."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where each of "shape", "axes", "voxel size", "unit" was read from, for people."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """What tells this input from another or a later one: path, size, modification time, metadata. JSON."""
    missing: str = ""
    """Why `voxel_size` is None, as a clause ("the TIFF has no spacing for z")."""
    unplaced: str = ""
    """Why `origin` is not where the input says that it lies, as a clause; nothing where it is, or nothing is said."""
    labels: bool = False
    """Whether the input says that its voxels are labels."""
    incomplete: bool = False
    """Whether it is an output of isovoxel whose job has not ended: what is not done reads as 0."""
    notes: tuple[str, ...] = ()
    """What else a user should know before reading it, each a clause: what is missing, what a box costs."""
    array: Any = field(default=None, repr=False)
    """The dask array behind it where the caller gave one, else None."""
    cached: Callable[[int], ReadBox] | None = field(default=None, repr=False)
    """Returns a reader that keeps at most so many bytes of decoded chunks, which all threads share; None where
    the kind decodes nothing, or only as another library does."""
    by_gpu: ByGpu | None = field(default=None, repr=False)
    """How a GPU can decode its chunks, None where none can."""
    files: Files | None = field(default=None, repr=False)
    """Returns paths of the files that hold what a box of it needs, of all its volumes, and its metadata; some of them
    may not be there. None where it lies in none, or in unknown ones."""
    checksum: Callable[[], str] | None = field(default=None, repr=False)
    """Returns a checksum of all voxels, where nothing else tells this input from another: an array in memory."""
    current_identity: Callable[[], Mapping[str, Any]] | None = field(default=None, repr=False)
    """Returns the part of `identity` that its files have now, where it was opened from files."""
    coarser: tuple[Callable[[], Volume], ...] = field(default=(), repr=False)
    """Each opens one more resolution level of the same image, from fine to coarse, as the input lists them."""
    start: Index3 = (0, 0, 0)
    """Voxel of the whole input at which it begins, where it is a part of one."""
    whole: Index3 | None = None
    """Shape of the whole input, where it is a part of one."""
    series: tuple[SeriesAxis, ...] = ()
    """Along which axes there are several volumes that lie alike, where it stands for all of them: a box says in which
    it lies, see `Box.volume`."""
    counted: bool = False
    """Whether the input counts positions in voxels; then it has no voxel size."""
    channels: tuple[Channel, ...] = ()
    """What the input says of its channels, or of the one that this is; nothing where it says nothing."""
    sequential: bool = False
    """Whether what lies before a box is decoded with it, so that one thread reads the whole of it as fast as many."""

    def __post_init__(self) -> None:
        check_voxels(self.name, self.shape, self.dtype)
        # NumPy has two equal types of 64 bits, of which zarr knows one.
        object.__setattr__(self, "dtype", np.dtype(self.dtype.str))

    def identified(self) -> Volume:
        """Return the volume with an identity that tells it from every other, its voxels read if need be."""
        if self.checksum is None:
            return self
        return replace(self, identity={**self.identity, "tag": self.checksum()}, checksum=None)

    def measured(self, found: Calibration, unit: str | None = None) -> Volume:
        """Return the volume with the voxel size and the place that its metadata state.

        Parameters
        ----------
        found
            What they state.
        unit
            Where the unit was read from, if not from where the voxel size was.
        """
        return replace(
            self,
            voxel_size=found.voxel_size,
            origin=found.origin,
            unit=found.unit,
            sources={**self.sources, **found.sources(unit)},
            missing=found.missing,
            counted=found.counted,
        )

    def stored_in(self, files: Files | None, now: Callable[[], Mapping[str, Any]], **chosen: Any) -> Volume:
        """Return the volume with what tells its input from others, and from a later one.

        Parameters
        ----------
        files
            As the volume has them.
        now
            Returns what its files tell of themselves at that time.
        chosen
            What was chosen of several parts of the input.
        """
        return replace(self, files=files, identity={**now(), **chosen}, current_identity=now)

    def read_through(self, around: Callable[[ReadBox], ReadBox], **changes: Any) -> Volume:
        """Return the volume with other changes, read through a reader around its own."""
        return replace(
            self,
            read=around(self.read),
            cached=self.cached and partial(_around, around, self.cached),
            by_gpu=self.by_gpu and replace(self.by_gpu, reader=partial(_around, around, self.by_gpu.reader)),
            **changes,
        )

    @property
    def beside(self) -> tuple[Index3, Index3]:
        """Voxels of its chunks that lie before it, and after it, in the whole input: they are decoded as well.

        Of a dask array whose chunks are not of one size this is an estimate.
        """
        before = triple(a % chunk for a, chunk in zip(self.start, self.chunks, strict=True))
        stop = triple(a + n for a, n in zip(self.start, self.shape, strict=True))
        ends = zip(stop, self.chunks, self.whole or self.shape, strict=True)
        return before, triple(min(n, ceil_div(end, chunk) * chunk) - end for end, chunk, n in ends)

    @property
    def n_volumes(self) -> int:
        """Number of volumes that it stands for."""
        return math.prod(axis.length for axis in self.series)

    @property
    def nbytes(self) -> int:
        """Bytes of all voxels, of all volumes."""
        return self.n_volumes * Box.whole(self.shape).size * self.dtype.itemsize

    @property
    def grid(self) -> VoxelGrid:
        """Where the voxels lie in the world.

        Raises
        ------
        InputError
            If the voxel size is not known.
        """
        if self.voxel_size is None:
            why = f": {self.missing}" if self.missing else ""
            raise InputError(f"the voxel size of {self.name} is not known{why}; give --input-voxel-size Z,Y,X")
        return VoxelGrid(self.shape, self.voxel_size, self.origin, self.unit)


def output_array(box: Box, dtype: np.dtype[Any], out: NDArray[Any] | None) -> NDArray[Any]:
    """Return `out`, or a new array for a box where it is None.

    Raises
    ------
    ValueError
        If it is no C-contiguous array of the box' shape and this dtype.
    """
    if out is None:
        return np.empty(box.shape, dtype)
    if out.shape != box.shape or out.dtype != dtype or not out.flags.c_contiguous:
        raise ValueError(
            f"a box is read into a C-contiguous array of shape {box.shape} and dtype {dtype}, "
            f"not of shape {out.shape} and dtype {out.dtype}"
        )
    return out


def check_voxels(name: str, shape: Index3, dtype: np.dtype[Any]) -> None:
    """Check what an input says of its voxels, before anything is made of it.

    Raises
    ------
    InputError
        If it is empty or of a dtype that isovoxel does not scale; the byte order does not matter.
    """
    if min(shape, default=1) < 1:
        raise InputError(f"{name} is empty: its shape is {shape}")
    if dtype.newbyteorder("=") not in (*SUPPORTED_DTYPES, *CONVERTED):
        names = ", ".join(str(d) for d in SUPPORTED_DTYPES)
        raise InputError(f"{name} holds {dtype}, which isovoxel does not scale; convert it to {names}")


# ---- a part of a volume --------------------------------------------------------------------------------------------

# A crop copies nothing: what the whole volume decodes in one go is decoded for the part, too, also where that reaches
# beyond the part. Each volume of a series is read by a reader of its own, which is made when a box needs it.


@contextmanager
def damage_moved(by: Index3, within: Box) -> Iterator[None]:
    """Tell of damage where it lies in a volume that another one is a part of, or that is a part of another one.

    Parameters
    ----------
    by
        How far its voxels lie behind where the reader counts them.
    within
        Which of them are a part of the volume, as the reader counts them.
    """
    try:
        yield
    except CorruptInputError as error:
        box = (Box(error.start, error.stop) & within).shifted(by)
        raise CorruptInputError(error.name, error.chunk, box.start, box.stop, error.reason) from error


@dataclass(frozen=True)
class CroppedReader:
    """Reads boxes of a part of a volume; safe to call from many threads where the whole's reader is."""

    read: ReadBox
    """Reads boxes of the whole."""
    part: Box
    """Which part of the whole."""

    def __call__(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a box as a new array, or in `out`.

        Raises
        ------
        CorruptInputError
            If voxels of it are damaged: those of them that lie in the part are told, as the part counts.
        """
        z, y, x = self.part.start
        with damage_moved((-z, -y, -x), self.part):
            return self.read(box.shifted(self.part.start), out)

    def is_empty(self, box: Box) -> bool:
        """Return whether a box is known to hold nothing but zeros."""
        return is_known_empty(self.read, box.shifted(self.part.start))


def moved(origin: Float3, start: Index3, voxel_size: Float3, sign: int = 1) -> Float3:
    """Return the position of the voxel `start`, seen from the voxel that lies at `origin`; back with a sign of -1."""
    return triple(o + sign * i * size for o, i, size in zip(origin, start, voxel_size, strict=True))


def _files(files: Files, moved: Callable[[Box], Box], box: Box) -> Iterable[str | ObjectPlace]:
    return files(moved(box))


def _shifted(by: Index3, box: Box) -> Box:
    return box.shifted(by)


def cropped(volume: Volume, crop: Crop) -> Volume:
    """Return a part of a volume as a volume: a view, which lies where it did.

    Parameters
    ----------
    volume
        The whole, or a part of it already.
    crop
        Which of its voxels.

    Raises
    ------
    OptionError
        If the crop holds nothing, or reaches beyond the volume.
    """
    part = box_of(crop, volume.shape, volume.name)
    if part == Box.whole(volume.shape):
        return volume
    origin = volume.origin
    if volume.voxel_size is not None:
        origin = moved(origin, part.start, volume.voxel_size)
    of_all = part.shifted(volume.start)
    text = ",".join(f"{a}:{b}" for a, b in zip(of_all.start, of_all.stop, strict=True))
    whole = volume.whole or volume.shape
    reader = partial(CroppedReader, part=part)
    return volume.read_through(
        reader,
        shape=part.shape,
        files=volume.files and partial(_files, volume.files, partial(_shifted, part.start)),
        array=None if volume.array is None else volume.array[part.slices],
        origin=origin,
        start=of_all.start,
        whole=whole,
        coarser=(),  # which are the whole's
        identity={**volume.identity, "crop": text},
        sources={**volume.sources, "shape": f"{text} of {' x '.join(map(str, whole))}"},
    )


# ---- a volume of a series ------------------------------------------------------------------------------------------


KEPT = 64
"""How many readers are kept: more than volumes are at work at a time."""


class SeriesReader:
    """Reads boxes of the volumes of a series; safe to call from many threads.

    Parameters
    ----------
    picked
        Which axes of an array the volumes are counted along.
    member
        Returns the reader of one of them.
    """

    def __init__(self, picked: Picked, member: Callable[[Picked], ReadBox]) -> None:
        self._picked, self._member = picked, member
        self._reader = lru_cache(KEPT)(lambda place: member(picked.at(place)))

    def __reduce__(self) -> tuple[type[SeriesReader], tuple[Any, ...]]:
        return (SeriesReader, (self._picked, self._member))

    def _place(self, box: Box) -> tuple[int, ...]:
        return place_of_volume([length for _, length in self._picked.lengths], box.volume)

    def __call__(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a box as a new array, or in `out`.

        Raises
        ------
        CorruptInputError
            If voxels of it are damaged: the volume's place is told.
        """
        place = self._place(box)
        try:
            return self._reader(place)(box.of(0), out)
        except CorruptInputError as error:
            where = told_place([name for name, _ in self._picked.lengths], place)
            raise CorruptInputError(
                error.name, f"{where}, {error.chunk}", error.start, error.stop, error.reason
            ) from error

    def is_empty(self, box: Box) -> bool:
        """Return whether a box is known to hold nothing but zeros."""
        return is_known_empty(self._reader(self._place(box)), box.of(0))


def series_reader(picked: Picked, member: Callable[[Picked], ReadBox]) -> ReadBox:
    """Return what reads boxes of the volumes picked of an array; the parameters are those of `SeriesReader`."""
    return SeriesReader(picked, member) if picked.series else member(picked)


# ---- types and orders of axes that are converted -----------------------------------------------------------------

# Read voxels of another type, or in another order of axes, as isovoxel scales them.
#
# 1. A box is cut into parts of whole chunks, each of about `PART_BYTES`, so that no chunk is decoded twice and what is
#    held beside the result does not grow with the box.
# 2. Each part is read as it is stored, and converted or turned into its place in the result.
#
# float64 and float16 become float32, and bool uint8. A number that float32 does not hold, beyond 3.4e38, is an error:
# it would become infinite.


PART_BYTES = 1 << 20
"""A part has so many bytes in its own type, or is one chunk where that has more."""

_NOTES = {
    "float64": "its float64 is read as float32: values are rounded to 24 bits, so labels above 16,777,216 may change",
    "float16": "its float16 is read as float32, which holds every value of it",
    "bool": "its bool is read as uint8, 0 and 1; with --labels every voxel stays one of the two",
}


def convert_voxels(name: str, values: NDArray[Any], out: NDArray[Any]) -> None:
    """Convert voxels into an array of the type that `CONVERTED` has for theirs.

    Parameters
    ----------
    name
        What the user called the input, for messages.
    values
        The voxels.
    out
        Where they go, of the same shape.

    Raises
    ------
    InputError
        If a finite value becomes infinite.
    """
    if values.dtype.kind == "b":
        # Any byte but 0 is true, and NumPy copies the byte.
        np.not_equal(values.view(np.uint8), 0, out=out.view(np.bool_))
        return
    try:
        with np.errstate(over="raise", invalid="ignore"):  # NaNs that signal are NaNs
            out[...] = values
    except FloatingPointError as error:
        raise InputError(
            f"{name} holds a {values.dtype} value beyond 3.4e38, the largest that float32 holds; divide its values "
            "before"
        ) from error


def note_of(dtype: np.dtype[Any]) -> str:
    """Return what a user should know of the conversion, as a clause."""
    return _NOTES[str(dtype.newbyteorder("="))]


@dataclass(frozen=True)
class ConvertedReader:
    """Reads boxes of one type as another; safe to call from many threads where the reader of the first is."""

    name: str
    """What the user called the input, for messages."""
    read: ReadBox
    """Reads boxes of the type that is stored."""
    stored: np.dtype[Any]
    """That type, in native byte order."""
    tile: Index3
    """Shape of the parts that are read at a time."""
    first: Index3
    """Voxels between a border of these and voxel 0."""

    def __call__(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a box as a new array, or in `out`.

        Raises
        ------
        InputError
            If a value does not fit, or the voxels cannot be read.
        """
        out = output_array(box, CONVERTED[self.stored], out)
        for part in box.tiles(self.tile, self.first):
            convert_voxels(self.name, self.read(part), out[part.slices_from(box.start)])
        return out

    def is_empty(self, box: Box) -> bool:
        """Return whether a box is known to hold nothing but zeros, which are zeros of either type."""
        return is_known_empty(self.read, box)


def converted(volume: Volume) -> Volume:
    """Return a volume of a type that isovoxel scales; one that has such a type is returned itself."""
    if (dtype := CONVERTED.get(volume.dtype)) is None:
        return volume
    tile = part_shape(volume.chunks, volume.shape, volume.dtype.itemsize)
    first = triple(start % n for start, n in zip(volume.start, tile, strict=True))
    reader = partial(ConvertedReader, volume.name, stored=volume.dtype, tile=tile, first=first)
    return volume.read_through(
        reader,
        dtype=dtype,
        read_overhead=volume.read_overhead + math.prod(tile) * volume.dtype.itemsize,
        coarser=tuple(partial(_level, level) for level in volume.coarser),
        notes=(*volume.notes, note_of(volume.dtype)),
    )


def _level(level: Callable[[], Volume]) -> Volume:
    return converted(level())


def part_shape(chunks: Index3, shape: Index3, itemsize: int) -> Index3:
    """Return a shape of whole chunks that has about `PART_BYTES`, longest along x."""
    tile = list(chunks)
    for axis in (2, 1, 0):
        fit = max(1, PART_BYTES // (math.prod(tile) * itemsize))
        tile[axis] *= min(fit, ceil_div(shape[axis], tile[axis]))
    return triple(tile)


# ---- another order of axes -----------------------------------------------------------------------------------------


def stored_order(axes: Sequence[str]) -> Index3 | None:
    """Return which of an array's space axes are z, y and x; None where they are in this order, or not all named.

    Parameters
    ----------
    axes
        Name of every axis, in lower case; z may be missing, and counts as the first then.

    Examples
    --------
    >>> stored_order("tcxyz")
    (2, 1, 0)
    >>> stored_order("tczyx") is None
    True
    """
    found = [axis for axis in axes if axis in AXES]
    found = found if "z" in found else ["z", *found]
    if sorted(found, reverse=True) != list(AXES) or found == list(AXES):
        return None
    return (found.index("z"), found.index("y"), found.index("x"))


def to_zyx(order: Index3, stored: Index3) -> Index3:
    """Return for z, y and x what is given for the axes as they are stored."""
    return triple(stored[axis] for axis in order)


def to_stored(order: Index3, zyx: Index3) -> Index3:
    """Return for the axes as they are stored what is given for z, y and x."""
    return triple(zyx[order.index(axis)] for axis in range(3))


def _stored_box(order: Index3, box: Box) -> Box:
    return Box(to_stored(order, box.start), to_stored(order, box.stop), box.volume)


@dataclass(frozen=True)
class TransposedReader:
    """Reads boxes as z, y, x; safe to call from many threads where the reader of what is stored is."""

    read: ReadBox
    """Reads boxes as they are stored."""
    order: Index3
    """Which axis, as they are stored, are z, y and x."""
    part: Index3
    """Shape of what is read at a time, as stored: whole chunks."""
    dtype: np.dtype[Any]
    """Of the voxels, in native byte order."""

    def __call__(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a box as a new array, or in `out`.

        Raises
        ------
        CorruptInputError
            If voxels of it are damaged: they are told as z, y, x.
        """
        out = output_array(box, self.dtype, out)
        stored = _stored_box(self.order, box)
        turned = out.transpose(to_stored(self.order, (0, 1, 2)))
        room = np.empty(math.prod(self.part), self.dtype)  # of which each part takes what it needs
        for part in stored.tiles(self.part):
            try:
                turned[part.slices_from(stored.start)] = self.read(part, room[: part.size].reshape(part.shape))
            except CorruptInputError as error:
                start, stop = to_zyx(self.order, error.start), to_zyx(self.order, error.stop)
                raise CorruptInputError(error.name, error.chunk, start, stop, error.reason) from error
        return out


def transposed(volume: Volume, order: Index3, axes: Iterable[str]) -> Volume:
    """Return a volume as z, y, x whose axes are stored in another order.

    Parameters
    ----------
    volume
        As it is stored.
    order
        Which of its axes are z, y and x.
    axes
        What they are called in the order in which they are stored, for people.
    """
    part = part_shape(volume.chunks, volume.shape, volume.dtype.itemsize)
    reader = partial(TransposedReader, order=order, part=part, dtype=volume.dtype)
    return volume.read_through(
        reader,
        shape=to_zyx(order, volume.shape),
        chunks=to_zyx(order, volume.chunks),
        read_overhead=volume.read_overhead + math.prod(part) * volume.dtype.itemsize,
        notes=(*volume.notes, f"its axes {', '.join(axes)} are turned into z, y, x as it is read"),
        files=volume.files and partial(_files, volume.files, partial(_stored_box, order)),
    )


def with_zyx_named(axes: Sequence[str]) -> list[str]:
    """Return the names of axes with those of space called z, y and x in the order in which they are stored."""
    space = iter(AXES[-sum(axis in AXES for axis in axes) :])
    return [next(space) if axis in AXES else axis for axis in axes]
