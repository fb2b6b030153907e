"""Plan a job: a volume, options and limits in, a `Plan` out.

1. The options say onto which voxels the volume is scaled (`find_target`) and with which kernel (`choose_sampling`).
2. The kernel, the device and what is installed decide the engine (`choose_engine`).
3. `plan_volume` makes the plan of the full level, and of the levels that follow it, within the limits of what scales.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from isovoxel.errors import DeviceError, DoesNotFitError, InputError, OptionError
from isovoxel.geometry.grid import (
    AXES,
    Float3,
    Index3,
    VoxelGrid,
    factor_for_voxel_size,
    factor_for_zoom,
    finest,
    number_text,
    triple,
)
from isovoxel.object_store.objects import Place
from isovoxel.options import Opening, Options
from isovoxel.planning.model import ENGINES, MOVES, DeviceLimits, Encoded, HostLimits, Source
from isovoxel.planning.plan import Plan
from isovoxel.readers.base import Volume, moved

if TYPE_CHECKING:
    from isovoxel.planning.chunking import Storage
    from isovoxel.planning.pyramid import Decoded
    from isovoxel.readers.zarr_layout import ChunkLayout


@dataclass(frozen=True, slots=True)
class Sampling:
    """How voxels are made."""

    interpolation: str
    """One of `isovoxel.planning.model`."""
    antialias: bool
    """Whether kernels widen on axes that shrink."""
    labels: bool
    """Whether voxels are labels."""
    needs_exact: bool
    """Whether only engine exact does it."""


@dataclass(frozen=True, slots=True)
class Target:
    """Which voxels an output gets, and how they lie on those of its input."""

    source: VoxelGrid
    """Where the input's voxels lie."""
    output: VoxelGrid
    """Where the output's lie."""
    factor: Float3
    """Output samples per input sample, z, y, x."""
    shift: Float3 = (0.0, 0.0, 0.0)
    """Output samples from where the input begins to where the output does, z, y, x."""
    notes: tuple[str, ...] = ()
    """What a user should know of it."""


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """Which engine scales."""

    engine: str
    """"cle" or "exact"."""
    library: str = ""
    """Package and version of the clEsperanto that engine cle uses."""
    notes: tuple[str, ...] = ()
    """What a user should know who has not chosen it."""


ROOM_FOR_LEVELS = (1, 0.8, 0.65)
"""Shares of the host's memory for blocks that those of the full level try to do with, until those of level 1 fit."""
OUTSIDE = 1e-6
"""Output voxels that a sample may lie beyond the edge of the input, and count as inside: positions are rounded."""

Limits = tuple[DeviceLimits, HostLimits]
"""What a device has, and what its host lets a process use."""


class Resources(Protocol):
    """What scales: this process, or the workers of a cluster."""

    def limits(self, engine: str) -> Limits:
        """Return the limits within which an engine works, on each of them."""
        ...

    def clesperanto(self) -> tuple[str, str]:
        """Return package and version of the clEsperanto that they have, or nothing and why they have none."""
        ...


@dataclass
class ThisProcess:
    """The process itself, on the device and within the budgets that the options say."""

    options: Options
    _limits: Limits | None = field(default=None, init=False)

    def limits(self, engine: str) -> Limits:
        """Return the limits of the device and of its host, which are asked once."""
        del engine
        if self._limits is None:
            from isovoxel.engines.devices import find_device
            from isovoxel.execution.resources import host_limits

            options = self.options
            device = find_device(options.or_new("device"))
            host = host_limits(options.memory_bytes, options.threads, device_kind=device.kind)
            self._limits = device.limits(options.device_memory_bytes), host
        return self._limits

    def clesperanto(self) -> tuple[str, str]:
        """Return package and version of clEsperanto, or nothing and why there is none."""
        from isovoxel.engines.clesperanto import scales_with

        return scales_with()


def open_input(source: Any, options: Options) -> Volume:
    """Open the part of an input that the options ask for.

    Raises
    ------
    IsovoxelError
        As `isovoxel.open_volume`.
    """
    from isovoxel.readers.open import open_volume

    return open_volume(source, **options.how_opened)


def open_by(source: Any, opening: Opening) -> Volume:
    """Open an input by the keywords of `isovoxel.open_volume`.

    Raises
    ------
    IsovoxelError
        As `isovoxel.open_volume`.
    """
    part: dict[str, Any] = {name: value for name, value in opening.items() if name != "voxel_size"}
    return open_input(source, Options(input_voxel_size=opening.get("voxel_size"), **part))


def choose_sampling(volume: Volume, options: Options) -> Sampling:
    """Return kernel and kind of voxels: what the options say, and for the rest what suits the volume.

    Raises
    ------
    OptionError
        If labels would be mixed, or what is no label counted.
    InputError
        If the dtype is one for labels only.
    """
    given = options.labels
    labels = volume.labels if given is None else given
    interpolation = options.interpolation or ("nearest" if labels else "linear")
    antialias = options.or_new("antialias")
    integers = volume.dtype.kind in "iu"
    if labels and interpolation not in MOVES:
        says = "labels" if given else f"{volume.name} says that its voxels are labels (--no-labels if not): they"
        raise OptionError(
            f"{says} must not be mixed; use interpolation {', '.join(MOVES[:-1])} or {MOVES[-1]}, not {interpolation}"
        )
    if not integers and (labels or interpolation in ("mode", "smooth")):
        raise OptionError(
            f"labels are integers, but {volume.name} holds {volume.dtype}; leave out labels, mode and smooth"
        )
    if volume.dtype.itemsize == 8 and interpolation not in MOVES:
        raise InputError(
            f"{volume.name} holds {volume.dtype}, which is scaled as labels only; give --labels, or convert it"
        )
    onto = options.like is not None
    needs_exact = labels or antialias or onto or interpolation not in ENGINES["cle"] or volume.dtype.itemsize == 8
    if options.engine == "cle" and volume.dtype.itemsize == 8:
        raise OptionError(f"engine cle computes in float32, which does not hold {volume.dtype}; use engine exact")
    if options.engine == "cle" and onto:
        raise OptionError("engine cle cannot scale onto the voxels of another volume (like); use engine exact")
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
        As in `Resources`; called where it matters, for an import takes its time.

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
    volume: Volume,
    options: Options,
    sampling: Sampling,
    resources: Resources | None = None,
    output: Place | None = None,
) -> Plan:
    """Return how a volume would be scaled by an engine that suits it, within the limits of device and host.

    Parameters
    ----------
    volume
        The input.
    options
        What the user says.
    sampling
        As `choose_sampling` returns it for both.
    resources
        What scales; by default this process.
    output
        Where it is written, if that is known; by default a local disk.

    Raises
    ------
    IsovoxelError
        If an option does not suit the volume or what scales, or no block fits the limits.
    """
    resources = resources or ThisProcess(options)
    try:
        return _plan_within(volume, options, sampling, resources, output)
    except DoesNotFitError:
        left: dict[str, Any] = {name: "cpu" for name in ("encode", "decode") if options.or_new(name) == "auto"}
        if not left or not resources.limits(options.engine or "exact")[0].encoders:
            raise
        # Blocks may have room where the GPU neither encodes nor decodes.
        return _plan_within(volume, replace(options, **left), sampling, resources, output)


def _plan_within(
    volume: Volume, options: Options, sampling: Sampling, resources: Resources, output: Place | None
) -> Plan:
    """Return how a volume would be scaled; see `plan_volume`."""
    from isovoxel.planning.chunking import default_storage
    from isovoxel.planning.codecs import with_decoder, with_encoder
    from isovoxel.planning.optimizer import make_plan
    from isovoxel.planning.pyramid import with_levels

    kind = resources.limits(options.engine or "exact")[0].kind
    choice = choose_engine(sampling, options.engine, kind, resources.clesperanto)
    target = find_target(volume, options)
    shape, itemsize = target.output.shape, volume.dtype.itemsize
    storage_of = partial(
        default_storage,
        shape,
        itemsize,
        chunk=options.chunk,
        shard=options.shard,
        ome_zarr=options.or_new("ome_zarr"),
        skip_empty=options.or_new("empty") == "skip",
    )
    source, halo = source_of(volume, target.source), options.or_new("halo")
    device, host = resources.limits(choice.engine)
    if device.encoders or "gpu" in (options.encode, options.decode):
        voxels = volume.n_volumes * math.prod(shape)
        storage, (device, host) = with_encoder(
            options.or_new("encode"),
            options.codec,
            lambda codec: storage_of(codec=codec),
            (voxels, itemsize),
            (device, host),
            choice.engine,
        )
    else:
        storage = storage_of(codec=options.codec) if options.codec else storage_of()
    if options.threads is not None:
        host = replace(host, threads=options.threads)
    without = device, host
    if device.encoders or options.decode == "gpu":
        sizes = volume.nbytes, volume.n_volumes * math.prod(shape) * itemsize
        device, host = with_decoder(options.or_new("decode"), source.encoded, sizes, without, choice.engine)
    if device.decoding:
        source = replace(source, caches=False)  # decoded chunks are no longer chunks when the host gets them
    if options.like is not None and halo == "map_overlap":
        raise OptionError("halo map_overlap cannot scale onto the voxels of another volume (like); use halo direct")

    notes = (*source.notes, *target.notes)
    between = sum(f != 1 or not s.is_integer() for f, s in zip(target.factor, target.shift, strict=True))
    if sampling.interpolation == "smooth" and between < 2:
        same = "the label with the largest share is the nearest: smooth gives what nearest does"
        notes += (f"where only one axis grows, {same}",)
    make_full = partial(
        make_plan,
        replace(source, notes=(*notes, *choice.notes)),
        target.factor,
        output=target.output,
        shift=target.shift,
        storage=storage,
        device=device,
        engine=choice.engine,
        library=choice.library,
        interpolation=sampling.interpolation,
        antialias=sampling.antialias,
        boundary=options.or_new("boundary"),
        # Only a dask array brings chunks that its graph has made already; a file's are read where they are needed.
        halo_mode="direct" if halo == "auto" and (volume.array is None or options.like is not None) else halo,
        fixed_storage=options.shard is not None,
    )
    full = make_full(host=host)
    if options.further_levels == 0:
        return full

    reading = _ReadBack(output, volume.dtype, options.or_new("decode"), without)
    # Integers of 64 bits are labels, or nothing is to be computed with them.
    moves = sampling.labels or sampling.interpolation in ("mode", "smooth") or volume.dtype.itemsize == 8
    add_levels = partial(
        with_levels,
        count=options.further_levels,
        interpolation="mode" if moves else "area",
        device=device,
        host=host,
        chunk=options.chunk,
        shard=options.shard,
        read_overhead=reading.overhead,
        decoded=reading.decoded,
    )
    return _with_room_for_level_1(add_levels(full), make_full, add_levels)


@dataclass(frozen=True)
class _ReadBack:
    """How levels are read back. Decoders are loaded for that: only where there are levels."""

    output: Place | None
    """Where the levels are."""
    dtype: np.dtype[Any]
    """Of their voxels."""
    decode: str
    """What shall decode them, if it can, as `isovoxel.planning.codecs.DECODERS` has it."""
    limits: tuple[DeviceLimits, HostLimits]
    """Without what decodes the input."""

    def overhead(self, shape: Index3, storage: Storage) -> int:
        """Return the bytes that reading a box of a level holds beside its voxels."""
        return self._layout(shape, storage).read_overhead

    def decoded(self, before: Plan, level: Plan) -> Decoded | None:
        """Return how a GPU decodes a level for the next one, if it does."""
        from isovoxel.planning.codecs import with_decoder
        from isovoxel.planning.pyramid import Decoded

        coding = self._layout(before.output.shape, before.storage).coding if self.limits[0].encoders else None
        if coding is None:
            return None
        encoded, sizes = Encoded(coding.codec, coding.chunk_bytes), (before.output_bytes, level.output_bytes)
        with contextlib.suppress(OptionError):  # the input has memory to be decoded there, the level has not
            device, host = with_decoder(self.decode, encoded, sizes, self.limits, "exact")
            return Decoded(encoded, device, host) if device.decoding else None
        return None

    def _layout(self, shape: Index3, storage: Storage) -> ChunkLayout:
        from isovoxel.readers.zarr_layout import written_layout

        return written_layout(self.output, shape, self.dtype, storage)


def _with_room_for_level_1(plan: Plan, make_full: Callable[..., Plan], add_levels: Callable[[Plan], Plan]) -> Plan:
    """Return a plan, or, where level 1 is not made of its blocks, one with blocks of which it can be made."""
    from isovoxel.planning.pyramid import halved_axes

    if (halved := halved_axes(plan)) is None:
        return plan
    # Where memory is short, blocks leave room for those of level 1.
    baseline = plan.host.baseline
    for share in ROOM_FOR_LEVELS:
        smaller = replace(plan.host, allowed=baseline + int(share * (plan.host.allowed - baseline)))
        with contextlib.suppress(DoesNotFitError):
            other = add_levels(replace(make_full(host=smaller, halved=halved), host=plan.host))
            # Reading the full level back takes longer than its blocks, which are fewer, take to come to an end.
            if other.made_along and _is_as_busy(other, plan):
                return other
    return plan


def _is_as_busy(other: Plan, plan: Plan) -> bool:
    """Return whether another plan of a job leaves cores and GPU about as much to do at a time, in shards as large."""
    if plan.device.encoding:
        busy = 2 * other.in_flight >= plan.in_flight
    else:
        busy = 3 * _encoding(other) >= 2 * _encoding(plan)
    return busy and other.storage.chunks_per_shard >= plan.storage.chunks_per_shard


def _encoding(plan: Plan) -> int:
    """Return how many threads encode at a time: of each block as many as a shard has chunks, where so many help."""
    return min(plan.host.threads, plan.in_flight * plan.storage.chunks_per_shard, plan.in_flight + plan.helpers)


def find_target(volume: Volume, options: Options) -> Target:
    """Return onto which voxels the options ask a volume to be scaled.

    Raises
    ------
    IsovoxelError
        If the voxel size of the volume, or of the one that it is scaled onto, is not known; if the two share no voxel.
    """
    if options.like is not None:
        return _like(volume, options)
    if options.factor is not None:
        grid, factor = _counted(volume) if volume.voxel_size is None else volume.grid, options.factor
        return Target(grid, grid.scaled(factor), factor)
    try:
        grid = volume.grid
    except InputError as error:  # which a factor does without
        raise InputError(f"{error}, or --factor FZ,FY,FX") from error
    if options.zoom is not None:
        factor = factor_for_zoom(grid, options.zoom)
    else:
        factor = factor_for_voxel_size(grid, finest(grid) if options.voxel_size is None else options.voxel_size)
    return Target(grid, grid.scaled(factor), factor)


def _counted(volume: Volume) -> VoxelGrid:
    """Return the grid of a volume without a voxel size, whose lengths are counted in voxels and have no unit."""
    before = volume.origin if volume.counted else (0.0, 0.0, 0.0)
    return VoxelGrid(volume.shape, origin=moved(before, volume.start, (1.0, 1.0, 1.0)))


def _like(volume: Volume, options: Options) -> Target:
    """Return the voxels of the volume that `Options.like` names, and how they lie on those of the input."""
    name, output, notes = grid_of(options.like)
    _check_placed(volume)
    if volume.voxel_size is None and output.unit is not None:
        volume.grid  # noqa: B018 - says that the voxel size is not known
    source = _counted(volume) if volume.voxel_size is None else volume.grid
    if output.unit is None and source.unit is not None and notes:
        raise InputError(
            f"the voxel size of {name} is not known, and like needs it, for {volume.name} is in {source.unit}; "
            "convert it with --input-voxel-size Z,Y,X and --unit, and give --like what that writes"
        )
    if output.unit is None and options.unit is not None:
        output = replace(output, unit=source.unit)
        notes = (f"{name} has lengths without a unit, which are taken for {source.unit}, as --unit says",)
    factor, shift = output.placed_on(_in_unit_of(output, source, name, volume.name))
    for axis, n, m, f, s in zip(AXES, source.shape, output.shape, factor, shift, strict=True):
        first, last = (s + 0.5) / f - 0.5, (s + m - 0.5) / f - 0.5  # where the outermost samples lie
        if last + 0.5 / f <= -0.5 or first - 0.5 / f >= n - 0.5:
            raise OptionError(
                f"{name} and {volume.name} share no voxel: along {axis} the first lies from {number_text(first)} to "
                f"{number_text(last)} in voxels of the second, which has {n}; isovoxel info shows their origins"
            )
        sides = (-s - 0.5, s + m - 0.5 - f * n)
        beyond = sum(min(m, max(0, math.ceil(side - OUTSIDE))) for side in sides)
        if beyond:
            what = "0" if options.or_new("boundary") == "constant" else "what the edge of the input is"
            notes += (f"{beyond:,} of {m:,} output voxels along {axis} lie outside of the input, and become {what}",)
    return Target(source, output, factor, shift, notes)


def grid_of(like: Any) -> tuple[str, VoxelGrid, tuple[str, ...]]:
    """Return the name of a volume that an output shall be like, its grid, and what is assumed of it."""
    from isovoxel.metadata.units import checked_unit
    from isovoxel.readers.open import open_like

    if isinstance(like, VoxelGrid):
        return "the given grid", replace(like, unit=None if like.unit is None else checked_unit(like.unit)), ()
    other = open_like(like)
    _check_placed(other)
    if other.voxel_size is not None:
        return other.name, other.grid, ()
    if other.unit is not None:
        raise InputError(f"the voxel size of {other.name} is not known: {other.missing}; like needs it")
    note = f"the voxel size of {other.name} is not known; its voxels are taken for 1 x 1 x 1 without a unit"
    return other.name, _counted(other), (note,)


def _check_placed(volume: Volume) -> None:
    if volume.unplaced:
        raise InputError(
            f"where {volume.name} lies is not known: {volume.unplaced}; like needs it: give them so, such as by "
            "DataArray.sortby, or leave all of them out by DataArray.drop_vars"
        )


def _in_unit_of(output: VoxelGrid, source: VoxelGrid, name: str, source_name: str) -> VoxelGrid:
    """Return the grid of an input with its lengths in the unit of an output's."""
    from isovoxel.metadata.units import convert_length

    if source.unit == output.unit:
        return source
    if source.unit is None or output.unit is None:
        lengths = [
            f"{who} has lengths {'without a unit' if grid.unit is None else f'in {grid.unit}'}"
            for who, grid in ((source_name, source), (name, output))
        ]
        way_on = (
            f"give the unit of {source_name} (--unit)"
            if source.unit is None
            else f"give --unit {source.unit} if those of {name} are in it too"
        )
        raise OptionError(f"{' and '.join(lengths)}, so where they lie is not known; {way_on}")
    unit, target = source.unit, output.unit
    size, origin = (
        triple(convert_length(value, unit, target) for value in values) for values in (source.voxel_size, source.origin)
    )
    return VoxelGrid(source.shape, size, origin, target)


def source_of(volume: Volume, grid: VoxelGrid) -> Source:
    """Return what a plan knows of a volume; an output whose job has not ended is an `InputError`."""
    if volume.incomplete:
        raise InputError(f"{volume.name} is incomplete: its job is running, failed or was interrupted; finish it first")
    notes = volume.notes
    if volume.voxel_size is None and grid.unit is None:
        why = f": {volume.missing}" if volume.missing else ""
        counts = "lengths of the output count input voxels, without a unit, unless --input-voxel-size says more"
        notes += (f"the voxel size is not known{why}; {counts}",)
    coding = None if volume.by_gpu is None else volume.by_gpu.coding
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
        encoded=None if coding is None else Encoded(coding.codec, coding.chunk_bytes),
    )
