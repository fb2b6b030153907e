"""Other programs that scale volumes, each as kindly set up as its documentation allows.

All sample edge-aligned, as isovoxel does: ``source = (output + 0.5) / factor - 0.5``. torch, volresample and SciPy take
for the factor the ratio of the shapes, which is another one where the output's size had to be rounded. The rim repeats;
cle.scale alone blends with 0 there.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import isovoxel
from benchmarks.limits import open_tensorstore
from benchmarks.machine import cores, in_memory
from isovoxel.geometry.grid import Float3, Index3, VoxelGrid

Run = Callable[[Path, Path, Float3, str], None]
"""Scales INPUT to OUTPUT by a factor on a device."""


@dataclass(frozen=True)
class Program:
    """One program."""

    package: str
    """Its name on the package index."""
    modules: tuple[str, ...]
    """What is imported before the clock begins."""
    run: Run
    """Scales a file."""
    writes_into_array: bool = True
    """Whether it writes into an array that is there, in place of making an OME-Zarr."""

    @property
    def version(self) -> str:
        """Its version."""
        return isovoxel.__version__ if self.package == "isovoxel" else version(self.package)

    def prepare(self, reference: Path, output: Path) -> None:
        """Make an empty array like that of another result, where the program needs one."""
        if self.writes_into_array:
            (output / "0").mkdir(parents=True)
            shutil.copy(reference / "0" / "zarr.json", output / "0")


def _isovoxel(engine: str) -> Run:
    def run(source: Path, output: Path, factor: Float3, device: str) -> None:
        isovoxel.scale(source, output, factor=factor, engine=engine, device=device, levels=0)

    return run


def _in_one_piece(scale: Callable[[NDArray[np.uint16], Float3, Index3], NDArray[Any]]) -> Run:
    """Return what reads a whole volume, scales it, and writes it."""

    def run(source: Path, output: Path, factor: Float3, device: str) -> None:
        if scale is _cle:
            import pyclesperanto_prototype as cle

            from isovoxel.engines.devices import find_device

            cle.select_device(find_device(device).name)
        voxels = open_tensorstore(source / "0", cores()).read().result()
        scaled = scale(voxels, factor, VoxelGrid(voxels.shape).scaled(factor).shape)
        if scaled.dtype != voxels.dtype:
            np.rint(scaled, out=scaled)
            scaled = scaled.astype(voxels.dtype)
        _writable(output).write(scaled, can_reference_source_data_indefinitely=True).result()

    return run


def _writable(output: Path) -> Any:
    return open_tensorstore(output / "0", cores(), flush=not in_memory(output.parent))


def _cle(voxels: NDArray[np.uint16], factor: Float3, shape: Index3) -> NDArray[Any]:
    import pyclesperanto_prototype as cle

    fz, fy, fx = factor
    scaled = cle.scale(voxels, factor_x=fx, factor_y=fy, factor_z=fz, auto_size=True, linear_interpolation=True)
    return np.asarray(cle.pull(scaled)).reshape(shape)


def _scipy(voxels: NDArray[np.uint16], factor: Float3, shape: Index3) -> NDArray[Any]:
    from scipy.ndimage import zoom

    scaled: NDArray[Any] = zoom(voxels, factor, np.empty(shape, voxels.dtype), 1, mode="nearest", grid_mode=True)
    return scaled


def _simpleitk(voxels: NDArray[np.uint16], factor: Float3, shape: Index3) -> NDArray[Any]:
    import SimpleITK as sitk  # noqa: N813 - as its documentation has it

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(cores())
    image = sitk.GetImageFromArray(voxels)
    resample = sitk.ResampleImageFilter()
    resample.SetInterpolator(sitk.sitkLinear)
    resample.UseNearestNeighborExtrapolatorOn()
    resample.SetSize(shape[::-1])
    resample.SetOutputSpacing([1 / f for f in factor[::-1]])
    resample.SetOutputOrigin([(1 / f - 1) / 2 for f in factor[::-1]])
    _KEPT.append(resample.Execute(image))
    scaled: NDArray[Any] = sitk.GetArrayViewFromImage(_KEPT[-1])
    return scaled


_KEPT: list[Any] = []
"""Images that arrays are views of, which SimpleITK would let go."""


def _torch(voxels: NDArray[np.uint16], factor: Float3, shape: Index3) -> NDArray[Any]:  # noqa: ARG001 - by shape
    import torch

    torch.set_num_threads(cores())
    # It interpolates floats only.
    whole = torch.from_numpy(voxels.astype(np.float32))[None, None]
    scaled = torch.nn.functional.interpolate(whole, shape, mode="trilinear", align_corners=False)
    return np.asarray(scaled[0, 0].numpy())


def _volresample(voxels: NDArray[np.uint16], factor: Float3, shape: Index3) -> NDArray[Any]:  # noqa: ARG001 - by shape
    import volresample

    volresample.set_num_threads(cores())
    # It knows no uint16, and the data fit int16.
    scaled: NDArray[Any] = volresample.resample(voxels.view(np.int16), shape, mode="linear")
    return scaled


def _dask_image(source: Path, output: Path, factor: Float3, device: str) -> None:  # noqa: ARG001 - on the CPU
    import dask
    import dask.array as da
    from dask_image.ndinterp import affine_transform

    store, target = open_tensorstore(source / "0", cores()), _writable(output)
    shape = VoxelGrid(store.shape).scaled(factor).shape
    shard = tuple(target.chunk_layout.write_chunk.shape)
    # Whole shards: two tasks must not meet in one.
    chunks = [max(1, math.ceil(n / f)) for n, f in zip(shard, factor, strict=True)]
    voxels = da.from_array(_Readable(store), chunks=chunks, asarray=False, meta=np.empty((0, 0, 0), np.uint16))
    offset = [0.5 / f - 0.5 for f in factor]
    matrix = np.diag([1 / f for f in factor])
    scaled = affine_transform(voxels, matrix, offset, shape, order=1, output_chunks=shard, mode="nearest")
    with dask.config.set(scheduler="threads", num_workers=cores()):
        da.store(scaled, target, lock=False)


class _Readable:
    """A tensorstore as dask takes arrays: indexing reads."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.shape, self.dtype, self.ndim = store.shape, np.dtype("uint16"), 3

    def __getitem__(self, index: Any) -> NDArray[Any]:
        return np.asarray(self._store[index].read().result())


_OURS = (
    "isovoxel.execution.threads",
    "isovoxel.execution.map_overlap",
    "isovoxel.output.writer",
    "pyclesperanto_prototype",
)
_FILES = "tensorstore"
PROGRAMS = {
    "isovoxel exact": Program("isovoxel", _OURS, _isovoxel("exact"), writes_into_array=False),
    "isovoxel cle": Program("isovoxel", _OURS, _isovoxel("cle"), writes_into_array=False),
    "cle.scale in one piece": Program(
        "pyclesperanto-prototype", ("pyclesperanto_prototype", _FILES), _in_one_piece(_cle)
    ),
    "torch": Program("torch", ("torch", _FILES), _in_one_piece(_torch)),
    "volresample": Program("volresample", ("volresample", _FILES), _in_one_piece(_volresample)),
    "SimpleITK": Program("SimpleITK", ("SimpleITK", _FILES), _in_one_piece(_simpleitk)),
    "scipy.ndimage.zoom": Program("scipy", ("scipy.ndimage", _FILES), _in_one_piece(_scipy)),
    "dask-image": Program("dask-image", ("dask_image", "dask.array", _FILES), _dask_image),
}
"""All of them, by the name that tables give them. ngff-zarr is missing: it only shrinks, by whole factors."""
