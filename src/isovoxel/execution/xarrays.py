"""Name, attributes, dimensions and coordinates of a scaled ``xarray.DataArray``.

Along an axis the coordinate of an output sample is that of the position in the input which it takes its value from:
between two input samples in proportion, and beyond the outer ones by the last step. This needs numbers; coordinates of
other kinds, and of more than one dimension, are kept only where none of their axes changes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import InputError
from isovoxel.geometry.axis import Axis
from isovoxel.geometry.grid import AXES, Float3


def check_dims(array: Any) -> None:
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


def like(array: Any, scaled: Any, factor: Float3) -> Any:
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
