"""What do a user's options mean for a volume? How far it is scaled, and by which engine and kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, TypedDict

from isovoxel.errors import DeviceError, InputError, OptionError
from isovoxel.geometry.box import Index3
from isovoxel.geometry.grid import (
    Float3,
    VoxelGrid,
    check_positive,
    factor_for_voxel_size,
    factor_for_zoom,
    finest,
)
from isovoxel.object_store.place import Place
from isovoxel.planning.limits import DeviceLimits, HostLimits
from isovoxel.planning.model import Source
from isovoxel.planning.options import ENGINES, MOVES
from isovoxel.planning.plan import Plan
from isovoxel.readers.base import Volume
from isovoxel.readers.crop import moved, parse_crop
from isovoxel.readers.selection import Selection


class Opening(TypedDict, total=False):
    """How an input is opened: the keywords of `open_volume`, for whoever hands them on. None has to be given."""

    voxel_size: Float3 | None
    """Voxel size z, y, x, in place of what its metadata say."""
    unit: str | None
    """Unit of its lengths, in place of what its metadata say."""
    level: int | None
    """As in `ScalingOptions`, and so are those that follow."""
    channel: int | None
    time: int | None
    axes: str | None
    crop: str | Sequence[slice | Sequence[int | None]] | None


class ScalingOptions(TypedDict, total=False):
    """How a volume is scaled: the keywords of `plan` and `scale`. None has to be given, and None is not given.

    Defaults are for new outputs. For a job that was begun, or an output that is finished, what is not given is taken
    from there; what is given and differs is refused.

    At most one of `zoom`, `voxel_size` and `factor` says how far; without them the finest of the three voxel sizes
    becomes the size of all. A single plane stays one, unless `factor` says otherwise.
    """

    zoom: float | None
    """Factor per axis = voxel size x zoom, so that the result has 1 / zoom per voxel, as in cle's tutorials."""
    voxel_size: float | None
    """Side of the output's cubic voxels, in the volume's unit."""
    factor: Float3 | None
    """Output samples per input sample, z, y, x."""
    input_voxel_size: Float3 | None
    """Voxel size of the input, z, y, x, in place of what its metadata say."""
    unit: str | None
    """Unit of the input's lengths, in place of what its metadata say."""
    level: int | None
    """Resolution level of an OME-Zarr image, 0 (default) the finest."""
    channel: int | None
    """Which of several channels, counted from 0; default: all, each scaled by itself."""
    time: int | None
    """Which of several time points, counted from 0; default: all, likewise."""
    axes: str | None
    """Names of the input's axes in their order, such as "tczyx", where it does not name them itself: of a zarr array, a
    TIFF, HDF5, ``.npy`` and arrays."""
    crop: str | Sequence[slice | Sequence[int | None]] | None
    """Which voxels of the input: "z0:z1,y0:y1,x0:x1", or three slices or pairs. As in Python's slices an open end is
    the volume's, and a number below 0 counts from its end; beyond the volume nothing may lie."""
    labels: bool | None
    """Whether voxels are labels, which are moved and never mixed; by default what the input's metadata say."""
    interpolation: str | None
    """"linear" (default), "nearest" (default for labels), and with engine exact "cubic", "area" (the mean) and "mode"
    (the most frequent label)."""
    antialias: bool | None
    """Whether linear and cubic kernels widen on axes that shrink, so that nothing is skipped; engine exact."""
    engine: str | None
    """"cle" or "exact"; default of new outputs: cle on GPUs where clEsperanto is there, else exact, as for what only
    exact has (labels among it)."""
    boundary: str | None
    """"nearest" (default): the rim repeats. "constant": 0 lies around the volume, as ``cle.scale`` has it."""
    device: str | None
    """"auto" (default), "gpu", "cpu", a number, or a name or whole words of it."""
    halo: str | None
    """"auto" (default), "map_overlap" or "direct"."""
    memory: int | str | None
    """Bytes that this process may hold, or text with a unit such as "8GiB"; default: half of what is free."""
    device_memory: int | str | None
    """Bytes that may be held on the device, or text; default: nine tenths of what is free on a GPU."""
    threads: int | None
    """Blocks in flight; default: one per core, at least three."""
    chunk: Index3 | None
    """Voxels per chunk of the output, z, y, x."""
    shard: Index3 | None
    """Voxels per shard (file) of the output, z, y, x: whole chunks. OME-Zarr 0.4 has none."""
    codec: str | None
    """"lz4" (default), "zstd" or "none"."""
    ome_zarr: str | None
    """Version of OME-Zarr: "0.5" (default), or "0.4", which makes a file of each chunk."""
    keep_receipts: bool | None
    """Whether size and CRC-32 of each shard are kept beside the output, in ``OUTPUT.isovoxel``, when it is complete, so
    that `verify` compares every one of them. Chunks of OME-Zarr 0.5 have checksums anyway, those of 0.4 have none."""
    levels: int | str | None
    """How many levels follow the full one, each of half the size: a number, or "auto" (default) for as many as it takes
    until no side is longer than 256. They are means; of labels, "mode" and integers of 64 bits the most frequent."""


DEFAULTS = {"boundary": "nearest", "codec": "lz4", "ome_zarr": "0.5"}
"""Options of new outputs, where they are not given; others depend on the input."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How voxels are made."""

    interpolation: str
    """One of `isovoxel.planning.options`."""
    antialias: bool
    """Whether kernels widen on axes that shrink."""
    labels: bool
    """Whether voxels are labels."""
    needs_exact: bool
    """Whether only engine exact does it."""


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """Which engine scales."""

    engine: str
    """"cle" or "exact"."""
    library: str = ""
    """Package and version of the clEsperanto that engine cle uses."""
    notes: tuple[str, ...] = ()
    """What a user should know who has not chosen it."""


Limits = tuple[DeviceLimits, HostLimits]
"""What a device has, and what its host lets a process use."""


class Scalers(Protocol):
    """Those who will scale: this process, or the workers of a cluster."""

    def limits(self, engine: str) -> Limits:
        """Return the limits that all of them keep, with an engine."""
        ...

    def clesperanto(self) -> tuple[str, str]:
        """Return package and version of the clEsperanto that they have, or nothing and why they have none."""
        ...


@dataclass(frozen=True)
class ThisProcess:
    """The process itself, on the device and within the budgets that the options say."""

    options: ScalingOptions

    @cached_property
    def _limits(self) -> Limits:
        from isovoxel.engines.devices import find_device
        from isovoxel.execution.host import host_limits

        threads = parse_threads(self.options)
        device = find_device(self.options.get("device") or "auto")
        return (
            device.limits(parse_size("device memory", self.options.get("device_memory"))),
            host_limits(parse_size("memory", self.options.get("memory")), threads, device_kind=device.kind),
        )

    def limits(self, engine: str) -> Limits:
        """Return the limits of the device and of its host."""
        del engine
        return self._limits

    def clesperanto(self) -> tuple[str, str]:
        """Return package and version of clEsperanto, or nothing and why there is none."""
        from isovoxel.engines.clesperanto import scales_with

        return scales_with()


def choose_sampling(volume: Volume, options: ScalingOptions) -> Sampling:
    """Return kernel and kind of voxels: what the options say, and for the rest what suits the volume.

    Raises
    ------
    OptionError
        If labels would be mixed, or what is no label counted.
    InputError
        If the dtype is one for labels only.
    """
    given = options.get("labels")
    labels = volume.labels if given is None else given
    interpolation = options.get("interpolation") or ("nearest" if labels else "linear")
    antialias = options.get("antialias") or False
    integers = volume.dtype.kind in "iu"
    if labels and interpolation not in MOVES:
        says = "labels" if given else f"{volume.name} says that its voxels are labels (--no-labels if not): they"
        raise OptionError(f"{says} must not be mixed; use interpolation {' or '.join(MOVES)}, not {interpolation}")
    if not integers and (labels or interpolation == "mode"):
        raise OptionError(f"labels are integers, but {volume.name} holds {volume.dtype}; leave out labels and mode")
    if volume.dtype.itemsize == 8 and interpolation not in MOVES:
        raise InputError(
            f"{volume.name} holds {volume.dtype}, which is scaled as labels only; give --labels, or convert it"
        )
    needs_exact = labels or antialias or interpolation not in ENGINES["cle"] or volume.dtype.itemsize == 8
    if options.get("engine") == "cle" and volume.dtype.itemsize == 8:
        raise OptionError(f"engine cle computes in float32, which does not hold {volume.dtype}; use engine exact")
    return Sampling(interpolation, antialias, labels, needs_exact)


def choose_engine(
    sampling: Sampling, given: str | None, kind: str, clesperanto: Callable[[], tuple[str, str]]
) -> EngineChoice:
    """Return which engine scales: the one that is given, else `cle` on GPUs where it can, and `exact`.

    Parameters
    ----------
    sampling
        What it has to do.
    given
        What the user says.
    kind
        "gpu" or "cpu", of the device. On a CPU ``cle.scale`` takes more than ten times as long.
    clesperanto
        As in `Scalers`; called where it matters, for an import takes its time.

    Raises
    ------
    DeviceError
        If `cle` is given, and there is no clEsperanto.
    """
    if given not in (None, "cle"):  # which may be none; the planner knows
        return EngineChoice(given)
    if given is None and sampling.needs_exact:
        return EngineChoice("exact")
    if given is None and kind == "cpu":
        return EngineChoice(
            "exact", notes=("engine exact scales, which on a CPU is faster than cle.scale; --engine cle if not",)
        )
    library, why_not = clesperanto()
    if library:
        return EngineChoice("cle", library)
    if given is None:
        return EngineChoice("exact", notes=(f"engine exact scales, for {why_not}",))
    raise DeviceError(f"engine cle cannot be used, for {why_not}; without --engine cle exact scales")


def plan_volume(
    volume: Volume, options: ScalingOptions, scalers: Scalers | None = None, output: Place | None = None
) -> Plan:
    """Return how a volume would be scaled, within the limits of device and host.

    Parameters
    ----------
    volume
        The input.
    options
        What the user says.
    scalers
        Those who will do it; by default this process.
    output
        Where it is written, if that is known; by default a local disk.
    """
    from isovoxel.planning.chunking import Storage, default_storage
    from isovoxel.planning.optimizer import make_plan
    from isovoxel.planning.pyramid import with_levels

    grid, factor = how_far(volume, options)
    sampling = choose_sampling(volume, options)
    chunk, shard = options.get("chunk"), options.get("shard")
    storage = default_storage(
        grid.scaled(factor).shape,
        volume.dtype.itemsize,
        codec=options.get("codec") or DEFAULTS["codec"],
        chunk=chunk,
        shard=shard,
        ome_zarr=options.get("ome_zarr") or DEFAULTS["ome_zarr"],
    )
    levels = parse_levels(options.get("levels"))
    scalers = scalers or ThisProcess(options)
    given = options.get("engine")
    choice = choose_engine(sampling, given, scalers.limits(given or "exact")[0].kind, scalers.clesperanto)
    device, host = scalers.limits(choice.engine)
    source = source_of(volume, grid)
    halo = options.get("halo") or "auto"
    full = make_plan(
        replace(source, notes=(*source.notes, *choice.notes)),
        factor,
        storage=storage,
        device=device,
        host=host,
        engine=choice.engine,
        interpolation=sampling.interpolation,
        antialias=sampling.antialias,
        boundary=options.get("boundary") or DEFAULTS["boundary"],
        # Only a dask array brings chunks that its graph has made already; a file's are read where they are needed.
        halo_mode="direct" if halo == "auto" and volume.array is None else halo,
        fixed_storage=shard is not None,
    )
    full = replace(full, library=choice.library)

    def overhead(shape: Index3, storage: Storage) -> int:
        from isovoxel.readers.zarr_layout import written_layout  # which loads decoders: only for levels that there are

        return written_layout(output, shape, volume.dtype, storage).read_overhead

    device, host = scalers.limits("exact")
    # Integers of 64 bits are labels, or nothing is to be computed with them.
    moves = sampling.labels or sampling.interpolation == "mode" or volume.dtype.itemsize == 8
    return with_levels(
        full,
        levels,
        interpolation="mode" if moves else "area",
        device=device,
        host=host,
        chunk=chunk,
        shard=shard,
        read_overhead=overhead,
    )


def parse_levels(value: int | str | None) -> int | None:
    """Return how many further levels there shall be, or None for as many as it takes."""
    if value is None or value == "auto":
        return None
    try:
        count = int(value)
    except (TypeError, ValueError):
        count = -1
    if count < 0:
        raise OptionError(f"levels must be auto or a number from 0 on, not {value!r}")
    return count


def selection_of(options: ScalingOptions) -> Selection:
    """Return which part of the input the options ask for."""
    return Selection(
        level=options.get("level"),
        channel=options.get("channel"),
        time=options.get("time"),
        axes=options.get("axes"),
        crop=parse_crop(options.get("crop")),
    )


def parse_threads(options: ScalingOptions) -> int | None:
    """Return how many blocks shall be in flight, or None where nothing is said."""
    threads = options.get("threads")
    if threads is not None and threads < 1:
        raise OptionError(f"threads must be at least 1, not {threads}")
    return threads


CONVERTING: ScalingOptions = {"interpolation": "nearest", "engine": "exact"}
"""How every voxel is kept as it is, in a new output."""


def converting(options: ScalingOptions) -> ScalingOptions:
    """Return the options of a job that keeps every voxel as it is, whatever its integer or float type.

    Raises
    ------
    OptionError
        If an option is for scaling.
    """
    made = ("zoom", "voxel_size", "antialias", "boundary", "factor", *CONVERTING)
    given = [name.replace("_", " ") for name in made if options.get(name)]
    if given:
        raise OptionError(f"converting keeps every voxel as it is; {' and '.join(given)} are for scaling")
    return options | ScalingOptions(factor=(1.0, 1.0, 1.0))


def how_far(volume: Volume, options: ScalingOptions) -> tuple[VoxelGrid, Float3]:
    """Return the input's grid and the factor that the options ask for."""
    zoom, voxel_size, factor = options.get("zoom"), options.get("voxel_size"), options.get("factor")
    given = {"zoom": zoom, "voxel size": voxel_size, "factor": factor}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise OptionError(f"{' and '.join(names)} each say how far to scale; give only one of them")
    if factor is not None:
        factor = parse_factor(factor)
        # Without a voxel size lengths are counted in input voxels, and have no unit.
        if volume.voxel_size is not None:
            return volume.grid, factor
        before = volume.origin if volume.counted else (0.0, 0.0, 0.0)
        return VoxelGrid(volume.shape, origin=moved(before, volume.start, (1.0, 1.0, 1.0))), factor
    grid = volume.grid
    if zoom is not None:
        return grid, factor_for_zoom(grid, zoom)
    return grid, factor_for_voxel_size(grid, finest(grid) if voxel_size is None else voxel_size)


def parse_factor(values: Sequence[float]) -> Float3:
    """Return three factors, z, y, x, from any sequence of numbers."""
    try:
        z, y, x = (float(value) for value in values)
    except (TypeError, ValueError):
        raise OptionError(f"a factor is three numbers, z, y, x, not {values!r}") from None
    check_positive("factor", (z, y, x))
    return (z, y, x)


def source_of(volume: Volume, grid: VoxelGrid) -> Source:
    """Return what a plan knows of a volume."""
    notes = volume.notes
    if volume.voxel_size is None and grid.unit is None:
        why = f": {volume.missing}" if volume.missing else ""
        counts = "lengths of the output count input voxels, without a unit, unless --input-voxel-size says more"
        notes += (f"the voxel size is not known{why}; {counts}",)
    return Source(
        name=volume.name,
        grid=grid,
        dtype=volume.dtype.name,
        chunks=volume.chunks,
        read_overhead=volume.read_overhead,
        identity=dict(volume.identity),
        caches=volume.cached is not None,
        notes=notes,
        beside=volume.beside,
        series=tuple((axis.name, axis.length) for axis in volume.series),
    )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def parse_size(name: str, value: int | str | None) -> int | None:
    """Return a size in bytes from a number or from text such as "8GiB"."""
    if value is None:
        return None
    from dask.utils import parse_bytes

    unclear = OptionError(f"{name} must be a size such as 8GiB or 500MB, not {value!r}")
    if isinstance(value, bool):
        raise unclear
    if isinstance(value, str) and _is_number(value) and float(value) > 0:
        raise OptionError(f"{name} needs a unit, such as {value.strip()}GiB or {value.strip()}MB; {value!r} has none")
    if isinstance(value, str) and not any(letter.isdigit() for letter in value):
        raise unclear  # dask takes "GiB" for one of them, and nothing for a byte
    try:
        size = int(parse_bytes(value))
    except (ValueError, OverflowError):
        raise unclear from None
    if size <= 0:
        raise OptionError(f"{name} must be a size above 0, not {value!r}")
    return size
