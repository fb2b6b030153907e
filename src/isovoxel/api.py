"""What a Python user calls: open a volume, plan its scaling, do it, or ask where one piece would stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from isovoxel.errors import IsovoxelError, OptionError, OutputError
from isovoxel.geometry.box import Index3
from isovoxel.geometry.grid import (
    Float3,
    VoxelGrid,
    check_positive,
    factor_for_voxel_size,
    factor_for_zoom,
)
from isovoxel.planning.plan import Plan, Source
from isovoxel.planning.whole import WholeLimits
from isovoxel.run.events import BlockDone, Event, Listener
from isovoxel.volumes.base import Volume

if TYPE_CHECKING:  # pyopencl, dask and zarr are loaded by what needs them
    from isovoxel.engines.devices import Device

__all__ = [
    "ScaleResult",
    "ScalingOptions",
    "devices",
    "limits",
    "open_volume",
    "plan",
    "scale",
    "scale_array",
]


class ScalingOptions(TypedDict, total=False):
    """How a volume is scaled: the keywords of `plan` and `scale`. None has to be given.

    At most one of `zoom`, `voxel_size` and `factor` says how far; without them the finest of the three voxel sizes
    becomes the size of all.
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
    interpolation: str
    """"linear" (default) or "nearest", the one for labels."""
    boundary: str
    """"nearest" (default): the rim repeats. "constant": 0 lies around the volume, as ``cle.scale`` has it."""
    device: str
    """"auto" (default), a number or a part of a name."""
    halo: str
    """"auto" (default), "map_overlap" or "direct"."""
    memory: int | str | None
    """Bytes that this process may hold, or text such as "8GiB"; default: half of what is free."""
    device_memory: int | str | None
    """Bytes that may be held on the device, or text; default: nine tenths of what is free on a GPU."""
    threads: int | None
    """Blocks in flight; default: one per core, at least three."""
    chunk: Index3 | None
    """Voxels per chunk of the output, z, y, x."""
    shard: Index3 | None
    """Voxels per shard (file) of the output, z, y, x: whole chunks."""
    codec: str
    """"lz4" (default), "zstd" or "none"."""


@dataclass(frozen=True)
class ScaleResult:
    """What a finished job did."""

    path: Path
    """The OME-Zarr that was written."""
    plan: Plan
    """How."""
    seconds: float
    """Wall time of the job: reading, scaling and writing."""
    stages: dict[str, float]
    """Seconds spent reading, waiting for the device, scaling and writing, summed over all threads."""
    peak_host_bytes: int
    """Most memory that this process has held since it began."""

    @property
    def voxels_per_second(self) -> float:
        """Output voxels per second of wall time."""
        return self.plan.output_bytes / self.plan.source.itemsize / self.seconds


def open_volume(source: Any, *, voxel_size: Float3 | None = None, unit: str | None = None) -> Volume:
    """Open a 3-D volume lazily.

    Parameters
    ----------
    source
        Path of a TIFF, BigTIFF, ImageJ stack, OME-TIFF, zarr array (v2, v3), OME-Zarr (0.4, 0.5) or ``.npy``; or a
        NumPy, dask or zarr array; or a `Volume`.
    voxel_size, unit
        Voxel size z, y, x and its unit, in place of what the metadata say.

    Raises
    ------
    InputError
        If it is missing, unreadable, or no 3-D volume of a supported dtype.
    """
    from isovoxel.volumes.open import open_volume as open_any

    return open_any(source, voxel_size=voxel_size, unit=unit)


def plan(source: Any, **options: Unpack[ScalingOptions]) -> Plan:
    """Return how a volume would be scaled. Nothing is read but metadata, and nothing is written.

    Parameters
    ----------
    source
        As in `open_volume`.
    **options
        As in `ScalingOptions`.

    Raises
    ------
    IsovoxelError
        If the input, an option or the device cannot serve, or no block fits; see `isovoxel.errors`.
    """
    volume = open_volume(source, voxel_size=options.get("input_voxel_size"), unit=options.get("unit"))
    return _plan_volume(volume, options)


def scale(
    source: Any,
    output: str | Path,
    *,
    overwrite: bool = False,
    listeners: Sequence[Listener] = (),
    **options: Unpack[ScalingOptions],
) -> ScaleResult:
    """Scale a volume and write the result as OME-Zarr 0.5, block by block.

    Parameters
    ----------
    source
        As in `open_volume`.
    output
        Path of the OME-Zarr to write.
    overwrite
        Whether an OME-Zarr that is there already is replaced.
    listeners
        Called with each `isovoxel.run.events.Event`.
    **options
        As in `ScalingOptions`.

    Raises
    ------
    IsovoxelError
        As `plan`; before anything is written also if the output must not or cannot be written.
    JobError
        If the job fails or is interrupted half-way.
    """
    from isovoxel.engines.open import open_engine
    from isovoxel.run.host import peak_bytes
    from isovoxel.run.job import Job
    from isovoxel.store.destination import check_destination
    from isovoxel.store.writer import OmeZarrWriter

    volume = open_volume(source, voxel_size=options.get("input_voxel_size"), unit=options.get("unit"))
    planned = _plan_volume(volume, options)
    path = Path(output)
    check_destination(
        path,
        overwrite=overwrite,
        source_identity_path=volume.identity.get("path"),
        nbytes=planned.output_bytes,
    )
    engine = open_engine(options.get("device", "auto"))
    try:
        writer = OmeZarrWriter.create(
            path,
            grid=planned.output,
            dtype=volume.dtype,
            storage=planned.storage,
            provenance=_provenance(planned, volume),
            overwrite=overwrite,
        )
    except IsovoxelError:
        raise
    except OSError as error:  # such as a disk that has just become full
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    stages = {"read": 0.0, "wait": 0.0, "scale": 0.0, "write": 0.0}

    def add_up(event: Event) -> None:
        if isinstance(event, BlockDone):
            for stage in stages:
                stages[stage] += getattr(event, f"{stage}_seconds")

    job = Job(planned, volume.read, engine, writer, (add_up, *listeners), volume.array)
    seconds = job.run()
    return ScaleResult(path, planned, seconds, stages, peak_bytes())


def scale_array(
    array: Any,
    factor: Float3 | float,
    *,
    interpolation: str = "linear",
    boundary: str = "nearest",
    device: str = "auto",
    chunks: Index3 | None = None,
) -> Any:
    """Return a 3-D dask array scaled, lazily: the array that `dask.array.map_overlap` builds.

    Parameters
    ----------
    array
        A 3-D dask array (or what `dask.array.asarray` takes), z, y, x.
    factor
        Output samples per input sample, for all axes or for z, y, x.
    interpolation, boundary, device
        As in `ScalingOptions`. The device is looked for in the process that computes a block.
    chunks
        Shape of the result's chunks, each scaled in one piece; by default as dask's ``array.chunk-size`` has it,
        smaller where the device takes less.

    Returns
    -------
    dask.array.Array
        Of shape ``np.around(n * factor)`` (at least 1) and of the same dtype.

    Raises
    ------
    OptionError, InputError
        If a factor or an option makes no sense, or the array is not 3-D or of another dtype.
    DoesNotFitError
        If a chunk fits the device no more, or dask cannot exchange its halo.

    Examples
    --------
    >>> import dask.array as da
    >>> stack = da.ones((10, 20, 30), chunks=10, dtype="uint8")
    >>> scale_array(stack, (4, 1, 1), chunks=(16, 16, 16))
    dask.array<..., shape=(40, 20, 30), dtype=uint8, chunksize=(16, 16, 16), chunktype=numpy.ndarray>
    """
    import dask.array as da

    from isovoxel.engines.devices import find_device
    from isovoxel.planning.planner import plan_chunks
    from isovoxel.run.host import host_limits
    from isovoxel.run.overlap import scale_lazily

    volume = open_volume(da.asarray(array), voxel_size=(1.0, 1.0, 1.0))
    factors = _factor((factor,) * 3 if isinstance(factor, int | float) else factor)
    shape = volume.grid.scaled(factors).shape
    if chunks is None:
        largest = da.core.normalize_chunks("auto", shape=shape, dtype=volume.dtype)
        chunks = (largest[0][0], largest[1][0], largest[2][0])
        fixed = False
    else:
        fixed = True
    planned = plan_chunks(
        _source(volume, volume.grid),
        factors,
        chunks=chunks,
        fixed=fixed,
        device=find_device(device).limits(),
        host=host_limits(),
        interpolation=interpolation,
        boundary=boundary,
    )
    return scale_lazily(volume.array, planned, device)


def limits(
    source: Any,
    *,
    input_voxel_size: Float3 | None = None,
    unit: str | None = None,
    interpolation: str = "linear",
    device: str = "auto",
) -> WholeLimits:
    """Return at which zoom ``cle.scale`` of the whole volume in one piece would stop, and on which limit.

    Parameters
    ----------
    source
        As in `open_volume`.
    input_voxel_size, unit, interpolation, device
        As in `ScalingOptions`.
    """
    from isovoxel.engines.devices import find_device
    from isovoxel.planning.whole import whole_limits

    volume = open_volume(source, voxel_size=input_voxel_size, unit=unit)
    return whole_limits(volume.grid, find_device(device).limits(), interpolation)


def devices() -> list[Device]:
    """Return all OpenCL devices, GPUs first."""
    from isovoxel.engines.devices import list_devices

    return list_devices()


def _plan_volume(volume: Volume, options: ScalingOptions) -> Plan:
    from isovoxel.engines.devices import find_device
    from isovoxel.planning.planner import make_plan
    from isovoxel.planning.storage import default_storage
    from isovoxel.run.host import host_limits

    grid, factor = _how_far(volume, options)
    threads = options.get("threads")
    if threads is not None and threads < 1:
        raise OptionError(f"threads must be at least 1, not {threads}")
    chunk, shard = options.get("chunk"), options.get("shard")
    storage = default_storage(
        grid.scaled(factor).shape,
        volume.dtype.itemsize,
        codec=options.get("codec", "lz4"),
        chunk=chunk,
        shard=shard,
    )
    device = find_device(options.get("device", "auto"))
    return make_plan(
        _source(volume, grid),
        factor,
        storage=storage,
        device=device.limits(_bytes("device memory", options.get("device_memory"))),
        host=host_limits(_bytes("memory", options.get("memory")), threads, device_kind=device.kind),
        interpolation=options.get("interpolation", "linear"),
        boundary=options.get("boundary", "nearest"),
        halo_mode=options.get("halo", "auto"),
        fixed_storage=shard is not None,
    )


def _how_far(volume: Volume, options: ScalingOptions) -> tuple[VoxelGrid, Float3]:
    """Return the input's grid and the factor that the options ask for."""
    zoom, voxel_size, factor = options.get("zoom"), options.get("voxel_size"), options.get("factor")
    given = {"zoom": zoom, "voxel size": voxel_size, "factor": factor}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise OptionError(f"{' and '.join(names)} each say how far to scale; give only one of them")
    if factor is not None:
        factor = _factor(factor)
        # Without a voxel size lengths are counted in input voxels, and have no unit.
        return VoxelGrid(volume.shape) if volume.voxel_size is None else volume.grid, factor
    grid = volume.grid
    if zoom is not None:
        return grid, factor_for_zoom(grid, zoom)
    return grid, factor_for_voxel_size(grid, min(grid.voxel_size) if voxel_size is None else voxel_size)


def _factor(values: Sequence[float]) -> Float3:
    try:
        z, y, x = (float(value) for value in values)
    except (TypeError, ValueError):
        raise OptionError(f"a factor is three numbers, z, y, x, not {values!r}") from None
    check_positive("factor", (z, y, x))
    return (z, y, x)


def _source(volume: Volume, grid: VoxelGrid) -> Source:
    return Source(
        name=volume.name,
        grid=grid,
        dtype=volume.dtype.name,
        chunks=volume.chunks,
        read_overhead=volume.read_overhead,
        identity=dict(volume.identity),
    )


def _provenance(planned: Plan, volume: Volume) -> dict[str, Any]:
    """Return what made an output, for its attributes."""
    from isovoxel.version import __version__

    grid = planned.source.grid
    return {
        "version": __version__,
        "engine": planned.engine,
        "device": planned.device.name,
        "interpolation": planned.interpolation,
        "boundary": planned.boundary,
        "factor": list(planned.factor),
        "block": list(planned.block_shape),
        "input": {
            "name": volume.name,
            "kind": volume.kind,
            "identity": dict(volume.identity),
            "shape": list(grid.shape),
            "dtype": volume.dtype.name,
            "voxel_size": list(grid.voxel_size),
            "origin": list(grid.origin),
            "unit": grid.unit,
        },
        "fingerprint": planned.fingerprint,
    }


def _bytes(name: str, value: int | str | None) -> int | None:
    """Return a size in bytes from a number or from text such as "8GiB"."""
    if value is None:
        return None
    from dask.utils import parse_bytes

    unclear = OptionError(f"{name} must be a size such as 8GiB or 500MB, not {value!r}")
    if isinstance(value, str) and not any(letter.isdigit() for letter in value):
        raise unclear  # dask takes "GiB" for one of them, and nothing for a byte
    try:
        size = int(parse_bytes(value))
    except (ValueError, OverflowError):
        raise unclear from None
    if size <= 0:
        raise OptionError(f"{name} must be a size above 0, not {value!r}")
    return size
