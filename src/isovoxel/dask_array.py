"""Scaling as a step of a dask pipeline: a lazy array, whose chunks are scaled where dask computes them.

An ``xarray.DataArray`` keeps its name, attributes, dimensions and coordinates. Along an axis the coordinate of an
output sample is that of the position in the input which it takes its value from: between two input samples in
proportion, and beyond the outer ones by the last step. This needs numbers; coordinates of other kinds, and of more than
one dimension, are kept only where none of their axes changes.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import InputError
from isovoxel.geometry.axis import Axis
from isovoxel.geometry.box import Index3
from isovoxel.geometry.grid import AXES, Float3
from isovoxel.options import Options, checked_keywords, parse_factor
from isovoxel.planner import choose_engine, choose_sampling, source_of


@checked_keywords()
def scale_array(
    array: Any,
    factor: Float3 | float,
    *,
    interpolation: str | None = None,
    antialias: bool = False,
    labels: bool = False,
    engine: str | None = None,
    boundary: str = "nearest",
    device: str = "auto",
    chunks: Index3 | None = None,
) -> Any:
    """Return a 3-D dask array scaled, lazily: each chunk of it from its own voxels of the array and their halo.

    Parameters
    ----------
    array
        A 3-D dask array (or what `dask.array.asarray` takes), z, y, x; or an ``xarray.DataArray`` of one.
    factor
        Output samples per input sample, for all axes or for z, y, x.
    interpolation, antialias, labels, engine, boundary, device
        As in `ScalingOptions`. The device is looked for in the process that computes a block.
    chunks
        Shape of the result's chunks, each scaled in one piece; by default as dask's ``array.chunk-size`` has it,
        smaller where the device takes less.

    Returns
    -------
    dask.array.Array
        Of shape ``np.around(n * factor)`` (at least 1) and of the same dtype. Of a DataArray a DataArray, with the same
        dimensions, name and attributes, and coordinates where the new samples are.

    Raises
    ------
    OptionError, InputError
        If a factor or an option makes no sense, or the array is not 3-D or of another dtype.
    DoesNotFitError
        If a chunk fits the device no more.

    Examples
    --------
    >>> import dask.array as da
    >>> stack = da.ones((10, 20, 30), chunks=10, dtype="uint8")
    >>> scale_array(stack, (4, 1, 1), chunks=(16, 16, 16))
    dask.array<..., shape=(40, 20, 30), dtype=uint8, chunksize=(16, 16, 16), chunktype=numpy.ndarray>
    """
    import dask.array as da

    from isovoxel.engines.clesperanto import scales_with
    from isovoxel.engines.devices import find_device
    from isovoxel.execution.host import host_limits
    from isovoxel.execution.map_overlap import scale_lazily
    from isovoxel.planning.optimizer import plan_chunks
    from isovoxel.readers.open import open_volume

    xarray = sys.modules.get("xarray")  # whoever holds an array of its has imported it
    named = array if xarray is not None and isinstance(array, xarray.DataArray) else None
    if named is not None:
        _check_dims(named)
    array = da.asarray(array if named is None else named.data)
    if array.ndim != 3:
        raise InputError(f"the array is {array.ndim}-D; isovoxel scales arrays of z, y and x, such as array[None]")
    volume = open_volume(array, voxel_size=(1.0, 1.0, 1.0))
    factors = parse_factor((factor,) * 3 if isinstance(factor, int | float) else factor)
    shape = volume.grid.scaled(factors).shape
    if chunks is None:
        largest = da.core.normalize_chunks("auto", shape=shape, dtype=volume.dtype)
        chunks = (largest[0][0], largest[1][0], largest[2][0])
        fixed = False
    else:
        fixed = True
    sampling = choose_sampling(
        volume, Options(interpolation=interpolation, antialias=antialias, labels=labels, engine=engine)
    )
    limits = find_device(device).limits()
    planned = plan_chunks(
        source_of(volume, volume.grid),
        factors,
        chunks=chunks,
        fixed=fixed,
        device=limits,
        host=host_limits(),
        engine=choose_engine(sampling, engine, limits.kind, scales_with).engine,
        interpolation=sampling.interpolation,
        antialias=sampling.antialias,
        boundary=boundary,
    )
    scaled = scale_lazily(volume.array, planned, device)
    return scaled if named is None else _like(named, scaled, factors)


def _check_dims(array: Any) -> None:
    """Refuse a DataArray whose dimensions are called z, y and x, but in another order.

    Raises
    ------
    InputError
        With what to write.
    """
    dims = tuple(str(dim).lower() for dim in array.dims)
    if sorted(dims) == sorted(AXES) and dims != AXES:
        raise InputError(
            f"the DataArray has the dimensions {', '.join(dims)}; give it transposed: array.transpose('z', 'y', 'x')"
        )


def _like(array: Any, scaled: Any, factor: Float3) -> Any:
    """Return scaled voxels as a DataArray like the one that they were made of.

    Parameters
    ----------
    array
        The ``xarray.DataArray`` of three dimensions that was scaled.
    scaled
        What became of its voxels: a dask array.
    factor
        Output samples per input sample, z, y, x.
    """
    axes = {d: Axis(n, m, f) for d, n, m, f in zip(array.dims, array.shape, scaled.shape, factor, strict=True)}
    changed = {dim for dim, axis in axes.items() if axis.factor != 1}
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
