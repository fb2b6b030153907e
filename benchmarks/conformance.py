"""Compare isovoxel with others: ONNX's reference operator, JAX, SciPy, SimpleITK, and the seams of ome-zarr-py.

1. Random voxels from 0 to 1 are scaled by engine `exact` in float32, by isovoxel's own oracle in float64, and by each
   library in float64, by factors that grow and shrink.
2. The differences are taken where both define the same, which is told in the table: everywhere, or where the kernel's
   support is inside the volume, because JAX leaves out what lies beyond it and isovoxel repeats the rim.
3. ONNX publishes cases of its operator Resize. Those that are edge-aligned ("half_pixel"), by a kernel that isovoxel
   has, apply; where one differs by definition, the table says by which.
4. Seams: a 16-bit image is scaled by (4, 1, 1) in one piece and in chunks, and the two results are compared. What
   cuts differently is no matter of precision.
5. Integers: 16-bit voxels are scaled by (4, 1, 1), and the error of each is its distance to the oracle in float64.

Differences are shares of the largest voxel. Those that the precision of float32 or float64 does not explain end it with
exit code 1.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from numpy.typing import NDArray

import isovoxel
from benchmarks.data import voxels_of
from benchmarks.machine import print_header, print_row, write_json
from isovoxel.engines.reference import reference
from isovoxel.geometry.grid import Axis, Box, Float3, VoxelGrid
from isovoxel.geometry.resampling import Table

SHAPE = (16, 48, 40)
WHOLE: tuple[Float3, ...] = ((2.0, 0.5, 1.0), (1.5, 0.25, 2.5), (3.0, 1.25, 0.2))
"""Factors by which `SHAPE` becomes whole numbers of voxels, so that those who only know sizes scale alike."""
ANY: tuple[Float3, ...] = (*WHOLE, (3.7, 1.3, 0.9), (5.0, 0.202, 0.404))
"""Factors for those who know factors."""

EXACT, ORACLE = 2e-6, 1e-12
"""Largest difference that the precision of float32, and of float64, explains."""

LIBRARIES = ("onnx", "jax", "scipy", "SimpleITK")
"""Those whose definitions isovoxel is compared with, as they are imported."""
OME_ZARR = "ome_zarr.dask_utils"
"""The module of ome-zarr-py that scales."""


class Scaled(NamedTuple):
    """The same voxels as each makes them."""

    exact: NDArray[np.float32]
    """By engine `exact`."""
    oracle: NDArray[np.float64]
    """By the oracle."""
    theirs: NDArray[np.float64]
    """By the library."""


@dataclass(frozen=True)
class Check:
    """A kernel of a library that isovoxel has as well."""

    library: str
    """As it is imported."""
    theirs: str
    """What the library calls it."""
    interpolation: str
    antialias: bool
    inside: bool
    """Whether both agree only where the kernel's support is inside the volume."""
    factors: tuple[Float3, ...]
    scale: Callable[[NDArray[Any], Float3], NDArray[Any]]
    """Returns what the library makes of voxels by a factor."""

    def run(self) -> Iterator[Scaled]:
        """Scale by each factor, and yield the voxels that are to be the same."""
        voxels = np.random.default_rng(19).random(SHAPE, np.float32)
        for factor in self.factors:
            theirs = self.scale(voxels.astype(np.float64), factor)
            exact, oracle = by_isovoxel(voxels, factor, self.interpolation, antialias=self.antialias)
            # Sizes are rounded in different ways: what both have is compared.
            common = tuple(slice(min(n, m)) for n, m in zip(exact.shape, theirs.shape, strict=True))
            where = tuple(map(self._along, exact[common].shape, factor, SHAPE)) if self.inside else common
            yield Scaled(exact[where], oracle[where], theirs[where])

    def _along(self, m: int, factor: float, n: int) -> slice:
        """Return the output samples along an axis whose support is inside the volume."""
        table = Table(Axis(n, m, factor), self.interpolation, self.antialias)
        position = table.axis.position(np.arange(m))
        whole = (position - table.radius >= -1) & (position + table.radius <= n) | table.identity
        first, last = np.flatnonzero(whole)[[0, -1]]
        return slice(int(first), int(last) + 1)


def by_isovoxel(
    voxels: NDArray[Any], factor: Float3, interpolation: str, *, antialias: bool = False
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return the voxels that engine exact makes, and those of the oracle."""
    lazy = da.from_array(voxels, chunks=-1)
    options: dict[str, Any] = {"engine": "exact", "interpolation": interpolation, "antialias": antialias}
    exact: NDArray[Any] = isovoxel.scale_array(lazy, factor, **options).compute()
    oracle = reference(
        lambda box: voxels[box.slices], voxels.shape, factor, Box.whole(exact.shape), interpolation, antialias=antialias
    )
    return exact, oracle


# ---- the others ------------------------------------------------------------------------------------------------------


def library(name: str) -> Any:
    """Import a library, some of which warn of their own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_module(name)


def _onnx(coefficients: str, **more: Any) -> Callable[[NDArray[Any], Float3], NDArray[Any]]:
    def scale(voxels: NDArray[Any], factor: Float3) -> NDArray[Any]:
        operator = library("onnx.reference.ops.op_resize")
        weigh = getattr(operator, coefficients)
        found: NDArray[Any] = operator._interpolate_nd(  # noqa: SLF001 - it has no public name
            voxels,
            lambda ratio, by: weigh(ratio, **{"scale": by} | more if "nearest" not in coefficients else more),
            scale_factors=list(factor),
            coordinate_transformation_mode="half_pixel",
        )
        return found

    return scale


def _jax(method: str, *, antialias: bool) -> Callable[[NDArray[Any], Float3], NDArray[Any]]:
    def scale(voxels: NDArray[Any], factor: Float3) -> NDArray[Any]:
        jax = library("jax")
        jax.config.update("jax_enable_x64", True)
        shape = VoxelGrid(SHAPE).scaled(factor).shape
        return np.asarray(jax.image.resize(jax.numpy.asarray(voxels), shape, method, antialias=antialias))

    return scale


def _scipy(order: int) -> Callable[[NDArray[Any], Float3], NDArray[Any]]:
    def scale(voxels: NDArray[Any], factor: Float3) -> NDArray[Any]:
        ndimage = library("scipy.ndimage")
        found: NDArray[Any] = ndimage.zoom(voxels, factor, order=order, grid_mode=True, mode="nearest")
        return found

    return scale


def by_simpleitk(voxels: NDArray[Any], factor: Float3) -> NDArray[Any]:
    """Return what SimpleITK's linear interpolator makes at the positions of an edge-aligned grid, in the same dtype."""
    sitk = library("SimpleITK")
    size = VoxelGrid(voxels.shape).scaled(factor)
    resample = sitk.ResampleImageFilter()
    resample.SetSize(size.shape[::-1])
    resample.SetOutputSpacing(size.voxel_size[::-1])
    resample.SetOutputOrigin(size.origin[::-1])
    resample.SetInterpolator(sitk.sitkLinear)
    found: NDArray[Any] = sitk.GetArrayFromImage(resample.Execute(sitk.GetImageFromArray(voxels)))
    return found


A = -0.5
"""The parameter of Keys' kernel."""
CHECKS = (
    Check("onnx", "Resize linear", "linear", False, False, ANY, _onnx("_linear_coeffs")),
    Check("onnx", "Resize linear, antialias", "linear", True, False, ANY, _onnx("_linear_coeffs_antialias")),
    Check("onnx", "Resize cubic, a = -1/2", "cubic", False, False, ANY, _onnx("_cubic_coeffs", A=A)),
    Check(
        "onnx", "Resize cubic, antialias, a = -1/2", "cubic", True, False, ANY, _onnx("_cubic_coeffs_antialias", A=A)
    ),
    Check("jax", "image.resize linear", "linear", False, True, WHOLE, _jax("linear", antialias=False)),
    Check("jax", "image.resize linear, antialias", "linear", True, True, WHOLE, _jax("linear", antialias=True)),
    Check("jax", "image.resize cubic", "cubic", False, True, WHOLE, _jax("cubic", antialias=False)),
    Check("jax", "image.resize cubic, antialias", "cubic", True, True, WHOLE, _jax("cubic", antialias=True)),
    Check("jax", "image.resize lanczos3", "lanczos3", False, True, WHOLE, _jax("lanczos3", antialias=False)),
    Check("jax", "image.resize lanczos3, antialias", "lanczos3", True, True, WHOLE, _jax("lanczos3", antialias=True)),
    Check("scipy", "ndimage.zoom(order=1, grid_mode=True)", "linear", False, False, WHOLE, _scipy(1)),
    Check("SimpleITK", "sitkLinear", "linear", False, False, WHOLE, by_simpleitk),
)


# ---- ONNX's published cases ------------------------------------------------------------------------------------------


class Published(NamedTuple):
    """A case of ONNX's operator that applies."""

    name: str
    difference: float
    """Largest, relative to the largest voxel; infinite where the shapes differ."""
    why: str
    """By which definition it differs, or nothing."""


def published() -> Iterator[Published]:
    """Yield the cases of Resize that are edge-aligned, linear or cubic, and how engine exact does in them."""
    onnx, node = library("onnx"), library("onnx.backend.test.case.node")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = node.collect_testcases("Resize")
    for case in cases:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in case.model.graph.node[0].attribute}
        mode = attributes.get("mode", b"nearest").decode()
        aligned = attributes.get("coordinate_transformation_mode", b"half_pixel") == b"half_pixel"
        if not case.name.startswith("test_resize_") or mode not in ("linear", "cubic") or not aligned:
            continue
        (voxels, *_, by), (theirs,) = case.data_sets[0]
        sizes = by.dtype == np.int64
        factor = [float(f) for f in (theirs.shape / np.array(voxels.shape) if sizes else by)][1:]
        antialias = bool(attributes.get("antialias", 0))
        exact, _ = by_isovoxel(voxels[0], (factor[0], factor[1], factor[2]), mode, antialias=antialias)
        same = exact.shape == theirs[0].shape
        difference = np.abs(exact - theirs[0]).max() / np.abs(voxels).max() if same else np.inf
        yield Published(case.name.removeprefix("test_resize_"), float(difference), _differs(mode, attributes))


def _differs(mode: str, attributes: dict[str, Any]) -> str:
    """Return by which definition a published case differs from isovoxel's, or nothing."""
    if mode == "cubic" and attributes.get("cubic_coeff_a", -0.75) != A:
        return "its cubic kernel has a = -3/4, isovoxel's a = -1/2"
    if attributes.get("exclude_outside", 0):
        return "it leaves out what lies beyond the rim, isovoxel repeats the rim"
    return ""


# ---- seams -----------------------------------------------------------------------------------------------------------

PIECES = (6, 32, 32)
"""Chunks in which the image is scaled."""


class Seams(NamedTuple):
    """How far the result in chunks is from that in one piece."""

    by: str
    largest: int
    """Largest difference, in grey levels."""
    share: float
    """Share of the voxels that differ."""
    brightest: int
    """Brightest voxel of the image."""


def seams() -> Iterator[Seams]:
    """Yield who scales an image in one piece and in chunks, and by how much the results differ."""
    voxels = voxels_of((24, 128, 128))
    for by, scale in {"isovoxel, engine exact": _lazily, "ome-zarr-py, dask_utils.resize": _by_ome_zarr}.items():
        try:
            whole, cut = (
                np.asarray(scale(da.from_array(voxels, chunks=chunks))).astype(int) for chunks in (-1, PIECES)
            )
        except ImportError:
            continue
        apart = np.abs(whole - cut)
        yield Seams(by, int(apart.max()), float((apart > 0).mean()), int(voxels.max()))


def _lazily(image: Any) -> Any:
    return isovoxel.scale_array(image, (4.0, 1.0, 1.0), engine="exact").compute()


def _by_ome_zarr(image: Any) -> Any:
    """Scale by ome-zarr-py, linearly, with its sizes and dtype."""
    z, y, x = image.shape
    more = {"order": 1, "preserve_range": True, "anti_aliasing": False}
    return library(OME_ZARR).resize(image, (4 * z, y, x), **more).compute()


# ---- integers --------------------------------------------------------------------------------------------------------


def integers() -> Iterator[tuple[str, float, float]]:
    """Yield who scales 16-bit voxels by (4, 1, 1), and the mean and the largest error in grey levels."""
    voxels = np.random.default_rng(16).integers(0, 2**16, (12, 40, 40), np.uint16)
    exact, real = by_isovoxel(voxels, (4.0, 1.0, 1.0), "linear")
    for name, found in (("isovoxel, engine exact", exact), ("SimpleITK", by_simpleitk(voxels, (4.0, 1.0, 1.0)))):
        error = found.astype(np.float64) - real
        yield name, float(error.mean()), float(np.abs(error).max())


# ---- the table -------------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks conformance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--json", type=Path, help="file for all numbers")
    chosen = options.parse_args(arguments)

    missing = [name for name in (*LIBRARIES, OME_ZARR) if not _there(name)]
    record: dict[str, Any] = {"checks": [], "published": [], "seams": [], "integers": []}
    print_header(("defined by", "kernel", "where", "voxels", "engine exact, float32", "oracle, float64"))
    for check in CHECKS:
        if check.library in missing:
            continue
        found = list(check.run())
        exact, oracle = (max(float(np.abs(s[i] - s.theirs).max()) for s in found) for i in (0, 1))
        voxels = sum(s.exact.size for s in found)
        kernel = f"{check.interpolation}{' --antialias' if check.antialias else ''}"
        where = "inside" if check.inside else "everywhere"
        print_row((f"{check.library} {check.theirs}", kernel, where, f"{voxels:,}", f"{exact:.1e}", f"{oracle:.1e}"))
        row = {"library": check.library, "kernel": kernel, "voxels": voxels, "exact": exact, "oracle": oracle}
        record["checks"].append(row)
    if "onnx" not in missing:
        print("\nCases that ONNX publishes:\n")
        print_header(("case", "largest difference", "differs by definition"))
        for name, difference, why in published():
            print_row((name, f"{difference:.1e}", why or "no"))
            record["published"].append({"case": name, "difference": difference, "why": why})
    print("\nA 16-bit image by (4, 1, 1), in one piece against chunks, in grey levels:\n")
    print_header(("by", "largest difference", "voxels that differ", "brightest voxel"))
    for seam in seams():
        print_row((seam.by, f"{seam.largest:,}", f"{100 * seam.share:.1f} %", f"{seam.brightest:,}"))
        record["seams"].append(seam._asdict())
    if "SimpleITK" not in missing:
        print("\n16-bit voxels by (4, 1, 1), in grey levels:\n")
        print_header(("by", "mean error", "largest error"))
        for name, mean, largest in integers():
            print_row((name, f"{mean:+.2f}", f"{largest:.2f}"))
            record["integers"].append({"by": name, "mean": mean, "largest": largest})
    if missing:
        print(f"\nnot compared, because they are not installed: {', '.join(missing)}")
    write_json(chosen.json, record)
    wrong = [row["kernel"] for row in record["checks"] if row["exact"] > EXACT or row["oracle"] > ORACLE]
    wrong += [row["by"] for row in record["seams"] if row["largest"] and row["by"].startswith("isovoxel")]
    wrong += [row["case"] for row in record["published"] if row["difference"] > EXACT and not row["why"]]
    if wrong:
        sys.exit(f"larger than precision explains: {', '.join(wrong)}")


def _there(name: str) -> bool:
    try:
        library(name)
    except ImportError:
        return False
    return True
