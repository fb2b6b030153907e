"""Scaling as a step of a dask pipeline: a lazy array, whose chunks are scaled where dask computes them.

Each chunk of the result is one block, and one task of the graph. It gets those chunks of the array that hold what the
block reads, copies that out of them, and scales it on the device of the process that it runs in. So the array may be
cut anyhow, nothing is computed but what a slice of the result needs, and a chunk of it costs one task more.

An array may have further axes, such as t and c: a block lies at one index of each of them.

An ``xarray.DataArray`` keeps its name, attributes, dimensions and coordinates. Along an axis the coordinate of an
output sample is that of the position in the input which it takes its value from: between two input samples in
proportion, and beyond the outer ones by the last step. This needs numbers; coordinates of other kinds, and of more than
one dimension, are kept only where none of their axes changes.
"""

from __future__ import annotations

import contextlib
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isovoxel.arguments import checked_arguments, number
from isovoxel.engines.registry import open_engine
from isovoxel.errors import InputError, OptionError, clause, shown_value
from isovoxel.geometry.grid import AXES, Axis, Float3, Index3, triple
from isovoxel.options import Options, parse_factor
from isovoxel.planner import Target, choose_engine, choose_sampling, find_target, source_of
from isovoxel.planning.plan import Plan
from isovoxel.readers.arrays import from_dask, unmasked
from isovoxel.readers.base import Volume
from isovoxel.readers.selection import LONG_NAMES, NAMES, ZYX, Selection


@checked_arguments()
def scale_array(
    array: Any,
    factor: Float3 | float | None = None,
    *,
    like: Any = None,
    voxel_size: Float3 | None = None,
    unit: str | None = None,
    axes: str | None = None,
    interpolation: str | None = None,
    antialias: bool = False,
    labels: bool = False,
    engine: str | None = None,
    boundary: str = "nearest",
    device: str | int = "auto",
    chunks: Index3 | None = None,
) -> Any:
    """Return a dask array scaled, lazily: each chunk of it from its own voxels of the array and their halo.

    Parameters
    ----------
    array
        A dask array (or what `dask.array.asarray` takes) of the axes z, y, x, or y, x of one plane, in chunks of any
        shape; or an ``xarray.DataArray`` of one. It may have further axes, each index of which is scaled by itself.
    factor
        Output samples per input sample, for z, y, x, or a number for all of them that the array has.
    like
        In place of a factor: another volume, whose shape, voxel size and origin each volume of the result has; whatever
        `open_volume` takes, a level of an OME-Zarr ("IMAGE/N"), or a `VoxelGrid`. What lies outside of the array is
        the boundary's.
    voxel_size, unit
        Voxel size z, y, x of the array and its unit, where there is `like`: by default what the coordinates of a
        DataArray say. Voxel 0 of an array that is none lies at 0.
    axes
        Names of the array's axes in their order, such as "tczyx": of t, c, z, y, x. By default those of a DataArray's
        dimensions, or z, y, x, or y, x.
    interpolation, antialias, labels, engine, boundary, device
        As in `ScalingOptions`. The device is looked for in the process that computes a block.
    chunks
        Shape of the result's chunks along z, y and x, each scaled in one piece; by default as dask's
        ``array.chunk-size`` has it, smaller where the device takes less. Along further axes each is of length 1.

    Returns
    -------
    dask.array.Array
        Of the array's axes and dtype (float32 of other floats, uint8 of bool), ``np.around(n * factor)`` samples (at
        least 1) along z, y and x, or as many as `like` has. Of a DataArray a DataArray, with the same dimensions, name
        and attributes, and coordinates where the new samples are.

    Raises
    ------
    OptionError, InputError
        If a factor or an option makes no sense, or the array has other axes or another dtype; if the array and `like`
        share no voxel, or the voxel size of one is not known.
    DoesNotFitError
        If a chunk fits the device no more.

    Notes
    -----
    A chunk of the result adds one task to the graph, and no other. It depends on the array's chunks that hold what it
    reads; a slice of the result computes these and no others. `python -m benchmarks pipelines` says what a task takes
    to build: tenths of a millisecond, and 150 bytes where it needs 27 chunks.

    Examples
    --------
    >>> import dask.array as da
    >>> stack = da.ones((10, 20, 30), chunks=10, dtype="uint8")
    >>> scale_array(stack, (4, 1, 1), chunks=(16, 16, 16))
    dask.array<..., shape=(40, 20, 30), dtype=uint8, chunksize=(16, 16, 16), chunktype=numpy.ndarray>
    >>> series = da.ones((5, 2, 10, 20, 30), chunks=10, dtype="uint8")
    >>> scale_array(series, (4, 1, 1), axes="tczyx").shape
    (5, 2, 40, 20, 30)
    >>> scale_array(stack, like=da.ones((40, 40, 60)), voxel_size=(4, 2, 2)).shape
    (40, 40, 60)
    """
    import dask.array as da

    from isovoxel.engines.clesperanto import scales_with
    from isovoxel.engines.devices import find_device
    from isovoxel.execution.resources import host_limits
    from isovoxel.planning.optimizer import plan_chunks
    from isovoxel.readers.arrays import converted_chunks

    xarray = sys.modules.get("xarray")  # whoever holds an array of its has imported it
    named = array if xarray is not None and isinstance(array, xarray.DataArray) else None
    what = "the dask array" if isinstance(array, da.Array) else "the array"
    try:
        array = da.asarray(array if named is None else named.data)
    except (TypeError, ValueError, NotImplementedError, AttributeError) as error:
        raise InputError(f"an input of type {type(array).__name__} is no array of dask ({clause(error)})") from error
    names = _axes_of(array, () if named is None else named.dims, axes)
    volume, target = _placed(array, what, named, names, factor, like, voxel_size, unit)
    shape = target.output.shape
    fixed = chunks is not None
    if chunks is None:
        largest = da.core.normalize_chunks("auto", shape=shape, dtype=volume.dtype)
        chunks = triple(axis[0] for axis in largest)
    given = Options(
        like=like,
        interpolation=interpolation,
        antialias=antialias,
        labels=labels,
        engine=engine,
        boundary=boundary,
        device=device,
    )
    sampling, called = choose_sampling(volume, given), given.or_new("device")
    limits = find_device(called).limits()
    planned = plan_chunks(
        source_of(volume, target.source),
        target.factor,
        output=target.output,
        shift=target.shift,
        chunks=_checked_chunks(chunks),
        fixed=fixed,
        device=limits,
        host=host_limits(),
        engine=choose_engine(sampling, engine, limits.kind, scales_with).engine,
        interpolation=sampling.interpolation,
        antialias=sampling.antialias,
        boundary=given.or_new("boundary"),
    )
    scaled = _scaled(converted_chunks("the array", array), names, planned, called)
    return scaled if named is None else _labelled(named, scaled, names, planned)


# ---- axes ----------------------------------------------------------------------------------------------------------


def _axes_of(array: Any, dims: Sequence[Any], axes: str | None) -> list[str]:
    """Return the name of each axis of an array: as the user or its dimensions say, or else z, y, x, or y, x.

    Parameters
    ----------
    array
        The dask array.
    dims
        Its dimensions, where it is one of a DataArray.
    axes
        What the user calls them.

    Raises
    ------
    OptionError, InputError
        If the names are others, or not known, or not in this order; if the array is empty, or the sizes of its chunks
        are not known.
    """
    what = "the DataArray" if dims else "the array"
    if any(np.isnan(n) for n in array.shape):
        raise InputError(f"{what} has chunks of unknown size; call its compute_chunk_sizes() first")
    if 0 in array.shape:
        raise InputError(f"{what} is empty: its shape is {array.shape}")
    names = [LONG_NAMES.get(str(dim).lower(), str(dim).lower()) for dim in dims]
    if axes is None and names and set(names) <= set(NAMES):
        axes = "".join(names)
    if axes is not None:
        names = Selection(axes=axes).named(what, names, array.shape)
    elif array.ndim in (2, 3):
        names = list(AXES[-array.ndim :])
    elif not set(AXES) <= set(names):
        raise InputError(f"{what} is {array.ndim}-D; name its axes, such as axes='tczyx'")
    spatial = [names.index(axis) for axis in AXES if axis in names]
    if spatial != sorted(spatial):
        called = list(dims or range(array.ndim))
        order = [axis for axis in range(array.ndim) if axis not in spatial] + spatial
        raise InputError(
            f"{what} has the dimensions {', '.join(map(str, dims or names))}; give it transposed: "
            f"array.transpose({', '.join(repr(called[axis]) for axis in order)})"
        )
    return names


def _placed(
    array: Any,
    what: str,
    named: Any,
    names: Sequence[str],
    factor: Float3 | float | None,
    like: Any,
    voxel_size: Float3 | None,
    unit: str | None,
) -> tuple[Volume, Target]:
    """Return one of the volumes of an array, and which voxels each of them gets.

    Parameters
    ----------
    array
        The dask array.
    what
        What people call it.
    named
        The DataArray that it is of, or None.
    names
        Names of its axes.
    factor, like, voxel_size, unit
        As in `scale_array`.

    Raises
    ------
    OptionError, InputError
        If these make no sense, or the dtype is none that is scaled.
    """
    from isovoxel.readers.open import open_volume

    if (factor is None) == (like is None):
        raise OptionError("give either a factor, or like, the volume whose voxels the array gets")
    one = tuple(slice(None) if name in AXES else 0 for name in names)  # all volumes are alike
    if factor is not None:
        if voxel_size is not None or unit is not None:
            raise OptionError("voxel_size and unit say where an array lies, for like; with a factor leave them out")
        volume = open_volume(from_dask(array[one], name=what), voxel_size=(1.0, 1.0, 1.0))
        factors = _factors(factor, names)
        return volume, Target(volume.grid, volume.grid.scaled(factors), factors)
    first: Any = array[one]
    if named is not None:
        called = {dim: name for dim, name in zip(named.dims, names, strict=True) if name in AXES and dim != name}
        first = named[one].copy(data=first).rename(called)
    else:
        first = from_dask(first, name=what)
    volume = open_volume(first, voxel_size=voxel_size, unit=unit)
    target = find_target(volume, Options(like=like, unit=unit))
    planes = target.output.shape[0]
    if "z" not in names and planes > 1:
        raise OptionError(f"the array has no axis z, but the volume that like names has {planes} planes along z")
    return volume, target


def _factors(factor: Float3 | float, names: Sequence[str]) -> Float3:
    """Return the factors along z, y, x of an array with these axes.

    Raises
    ------
    OptionError
        If one makes no sense, or is of an axis z that the array does not have.
    """
    given: Any = factor
    with contextlib.suppress(TypeError, OverflowError):  # several, or none
        every = number(factor)
        given = (every if "z" in names else 1.0, every, every)
    factors = parse_factor(given)
    if "z" not in names and factors[0] != 1:
        raise OptionError(
            f"the array has no axis z, so its factor along z must be 1, not {factors[0]:g}; "
            "if it has planes along an axis, name that axis z"
        )
    return factors


def _checked_chunks(chunks: Index3) -> Index3:
    if min(chunks) < 1:
        raise OptionError(f"chunks must be three whole numbers above 0, z, y, x, not {shown_value(chunks)}")
    return chunks


# ---- the graph -----------------------------------------------------------------------------------------------------


class _Reads(NamedTuple):
    """What the blocks at one place along an axis read."""

    chunks: range
    """Numbers of the array's chunks that hold it."""
    parts: tuple[tuple[slice, slice], ...]
    """For each of them, where its part lies in what is read, and where in the chunk."""


@dataclass(frozen=True)
class ScaledBlock:
    """Makes a chunk of a scaled array of those chunks of the array that hold what it reads."""

    plan: Plan
    """How."""
    device: str
    """On which device of the process that it runs in, as ``--device`` takes it."""
    zyx: ZYX
    """Which axes of the array are z, y and x."""

    def __call__(
        self, place: tuple[int, ...], parts: tuple[tuple[tuple[slice, slice], ...], ...], *chunks: NDArray[Any]
    ) -> NDArray[Any]:
        """Return the chunk of the result at this place in the grid of its chunks.

        Parameters
        ----------
        place
            The place.
        parts
            For each axis, the parts that it reads along it; see `_Reads`.
        chunks
            The array's chunks that hold them, the last axis fastest.
        """
        z, y, x = (0 if axis is None else place[axis] for axis in self.zyx)
        block = self.plan.block_at((z, y, x))
        whole = [unmasked(chunk) for chunk in chunks]
        voxels = _joined(parts, whole, self.plan.source.dtype).reshape(block.read_box.shape)
        scaled = open_engine(self.plan.engine, self.device).scale(voxels, block, self.plan).data
        assert isinstance(scaled, np.ndarray)  # noqa: S101 - for type checkers: nothing is encoded
        lengths = dict(zip(self.zyx, block.write_box.shape, strict=True))
        return scaled.reshape([lengths.get(axis, 1) for axis in range(len(place))])

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        """Return what tells one result from another, which the memory free at this moment does not."""
        return (self.plan.fingerprint, self.device, self.zyx)


def _joined(
    parts: tuple[tuple[tuple[slice, slice], ...], ...], chunks: Sequence[NDArray[Any]], dtype: str
) -> NDArray[Any]:
    """Return what a block reads, of the chunks that hold it; a view where one chunk does."""
    if len(chunks) == 1:
        return np.asarray(chunks[0][tuple(part for ((_, part),) in parts)], dtype)
    joined = np.empty([along[-1][0].stop for along in parts], dtype)
    for part, chunk in zip(product(*parts), chunks, strict=True):
        joined[tuple(to for to, _ in part)] = chunk[tuple(of for _, of in part)]
    return joined


def _scaled(array: Any, names: Sequence[str], plan: Plan, device: str) -> Any:
    """Return the scaled dask array that a plan makes of each volume of a dask array with these axes."""
    from dask.array import Array
    from dask.base import tokenize
    from dask.highlevelgraph import HighLevelGraph
    from dask.task_spec import Task, TaskRef

    axes = dict(zip(AXES, zip(plan.axes, plan.block_shape, plan.samplers, strict=True), strict=True))
    reads, lengths = [], []
    for name, n, sizes in zip(names, array.shape, array.chunks, strict=True):
        if name in axes:
            axis, length, sampler = axes[name]
            starts, stops = axis.intervals(length)
            span = sampler.spans(starts, stops)
            reads.append(_reads(sizes, span.first.tolist(), span.last.tolist()))
            lengths.append(tuple((stops - starts).tolist()))
        else:
            reads.append(_reads(sizes, range(n), range(1, n + 1)))
            lengths.append((1,) * n)
    zyx = (names.index("z") if "z" in names else None, names.index("y"), names.index("x"))
    scale = ScaledBlock(plan, device, zyx)
    name = f"isovoxel-{tokenize(array, scale)}"
    # One reference for all tasks that need a chunk: pickled, each but the first takes three bytes.
    chunks = {numbers: TaskRef((array.name, *numbers)) for numbers in np.ndindex(*array.numblocks)}
    tasks: dict[Any, Any] = {}
    for place in np.ndindex(*map(len, reads)):
        along = [axis[i] for axis, i in zip(reads, place, strict=True)]
        needed = (chunks[numbers] for numbers in product(*(one.chunks for one in along)))
        key = (name, *place)
        tasks[key] = Task(key, scale, place, tuple(one.parts for one in along), *needed)
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=[array])
    return Array(graph, name, tuple(lengths), meta=np.empty((0,) * array.ndim, plan.source.dtype))


def _reads(sizes: Iterable[int], firsts: Iterable[int], lasts: Iterable[int]) -> list[_Reads]:
    """Return what blocks read along an axis that is cut into chunks of these sizes: each the samples [first, last)."""
    edges = [0, *accumulate(sizes)]
    found = []
    for first, last in zip(firsts, lasts, strict=True):
        numbers = range(bisect_right(edges, first) - 1, bisect_left(edges, last))
        inside = [(max(first, edges[i]), min(last, edges[i + 1]), edges[i]) for i in numbers]
        parts = tuple((slice(a - first, b - first), slice(a - edge, b - edge)) for a, b, edge in inside)
        found.append(_Reads(numbers, parts))
    return found


# ---- coordinates ---------------------------------------------------------------------------------------------------


def _labelled(array: Any, scaled: Any, names: Sequence[str], plan: Plan) -> Any:
    """Return scaled voxels as a DataArray like the one that they were made of.

    Parameters
    ----------
    array
        The ``xarray.DataArray`` that was scaled.
    scaled
        What became of its voxels: a dask array.
    names
        Names of its axes.
    plan
        How each of its volumes was scaled.
    """
    found = dict(zip(AXES, plan.axes, strict=True))
    axes = {dim: found[name] for dim, name in zip(array.dims, names, strict=True) if name in found}
    changed = {dim for dim, axis in axes.items() if axis != Axis(axis.n, axis.n, 1.0)}
    coordinates = {}
    for name, coordinate in array.coords.items():
        if not changed.intersection(coordinate.dims):
            coordinates[name] = coordinate.variable
        elif len(coordinate.dims) == 1 and coordinate.dtype.kind in "iuf" and coordinate.size > 1:
            (dim,) = coordinate.dims
            values = between(np.asarray(coordinate.values, np.float64), axes[dim])
            coordinates[name] = (dim, values, coordinate.attrs)
    return type(array)(scaled, coords=coordinates, dims=array.dims, name=array.name, attrs=array.attrs)


def between(values: NDArray[np.float64], axis: Axis) -> NDArray[np.float64]:
    """Return the coordinates of an axis' output samples from those of its input samples, two of them at least."""
    position = axis.position(np.arange(axis.m, dtype=np.int64))
    first = np.clip(np.floor(position), 0, axis.n - 2).astype(np.int64)
    found: NDArray[np.float64] = values[first] + (position - first) * (values[first + 1] - values[first])
    return found
