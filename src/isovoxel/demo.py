"""Demo: a synthetic blastocyst, fluorescent nuclei in thick planes.

1. Nuclei are ellipsoids: flat ones on a hollow sphere (trophectoderm), round ones in a cluster at one pole
   inside (inner cell mass), two of them dividing. Each is made in a box of its own, with a texture.
2. Each box is blurred as a microscope blurs, much more along z than within a plane.
3. Plane by plane the boxes are added to background and haze, dimmed with depth, and counted as photons.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import InputError, OutputError, OutputExistsError
from isovoxel.geometry.grid import Float3, Index3
from isovoxel.object_store.files import refusal_reason, write_whole
from isovoxel.output.provenance import read_provenance

SHAPE = (86, 396, 393)
VOXEL_SIZE = (1.0, 0.202, 0.202)

SHELL_NUCLEI = 40
INNER_NUCLEI = 15
BLUR = np.array([1.7, 0.32, 0.32])
"""Standard deviation of the microscope's blur, z, y, x, in micrometers."""
PHOTONS = 150.0
"""Photons that a bright nucleus at the surface sends per voxel."""
BACKGROUND_PHOTONS = 5.0
HAZE_PHOTONS = 9.0
"""Light from out of focus at the embryo's centre."""
ATTENUATION = 110.0
"""Depth, in micrometers, at which 1/e of the light is left."""

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class _Nucleus:
    """An ellipsoid of revolution."""

    centre: Vector
    """In micrometers."""
    axis: Vector
    """Unit vector along its short axis."""
    radii: tuple[float, float]
    """Along and across that axis, in micrometers."""
    brightness: float


def blastocyst(shape: Index3 = SHAPE, voxel_size: Float3 = VOXEL_SIZE, seed: int = 20) -> NDArray[np.uint8]:
    """Return a synthetic stack that resembles the nuclei of a mouse blastocyst under a confocal microscope.

    Parameters
    ----------
    shape
        Number of voxels, z, y, x. The embryo fills the smallest side.
    voxel_size
        Micrometers, z, y, x.
    seed
        The same seed gives the same voxels on the same machine.

    Returns
    -------
    numpy.ndarray
        Photon counts, uint8, z, y, x; counts above 255 are saturated.
    """
    rng = np.random.default_rng(seed)
    voxel = np.array(voxel_size)
    extent = np.array(shape) * voxel
    radius = 0.43 * extent.min()
    boxes = [_render(n, shape, voxel, rng) for n in _embryo(extent / 2, radius, rng)]

    # Haze is a Gaussian, so each of its planes is one outer product.
    from_centre = [(np.arange(n) + 0.5) * v - e / 2 for n, v, e in zip(shape, voxel, extent, strict=True)]
    haze = [np.exp(-((position / radius) ** 2)) for position in from_centre]
    stack = np.empty(shape, np.uint8)
    for z in range(shape[0]):
        light = BACKGROUND_PHOTONS + HAZE_PHOTONS * haze[0][z] * np.multiply.outer(haze[1], haze[2])
        dimmed = np.exp(-z * voxel[0] / ATTENUATION)
        for (z0, y0, x0), box in boxes:
            if z0 <= z < z0 + box.shape[0]:
                light[y0 : y0 + box.shape[1], x0 : x0 + box.shape[2]] += dimmed * box[z - z0]
        stack[z] = np.minimum(rng.poisson(light), 255)
    return stack


def write_blastocyst(path: str | os.PathLike[str]) -> None:
    """Write the blastocyst as an ImageJ TIFF as Fiji does: spacing, unit and resolution say the voxel size.

    Parameters
    ----------
    path
        Where the file goes. One that is there and holds these voxels is kept.

    Raises
    ------
    OutputError
        If another file is there, or the file cannot be written.
    """
    import tifffile

    path, voxels, file = Path(path), blastocyst(), BytesIO()
    if os.path.lexists(path):
        if not _holds(path, voxels):
            raise OutputExistsError(f"{path} exists and is not what the demo makes here; give another folder")
        return
    z, y, x = VOXEL_SIZE
    tifffile.imwrite(
        file,
        voxels,
        imagej=True,
        byteorder=">",  # Java's, and so Fiji's
        resolution=(1 / x, 1 / y),
        metadata={"axes": "ZYX", "spacing": z, "unit": "micron"},
    )
    try:
        write_whole(path, file.getvalue())
    except OSError as error:
        raise OutputError(f"the demo stack {path} cannot be written: {refusal_reason(error)}") from error


def begin_demo(folder: Path) -> tuple[Path, Path, Path]:
    """Make the demo's folder and its stack.

    Returns
    -------
    stack, result, picture
        Where the stack is, and where result and picture may be written.

    Raises
    ------
    OutputError
        If the folder cannot be made, or something else lies where the demo would write.
    """
    from isovoxel.reporting.files import check_own

    stack, result, picture = folder / "blastocyst.tif", folder / "isotropic.zarr", folder / "before_after.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} cannot be made: {error.strerror}; give another one") from None
    if not _is_of_demo(result, stack):
        raise OutputExistsError(f"{result} exists and is not the demo's result; give another folder")
    check_own(picture, "picture")
    write_blastocyst(stack)
    return stack, result, picture


def _is_of_demo(result: Path, stack: Path) -> bool:
    """Tell whether a result may be replaced by the demo: none is there, or it was made of the demo's stack."""
    if not os.path.lexists(result):
        return True
    try:
        return bool(read_provenance(result)["input"]["identity"]["path"] == str(stack.resolve()))
    except (InputError, KeyError, TypeError):
        return False


def _holds(path: Path, voxels: NDArray[np.uint8]) -> bool:
    """Tell whether a file is a TIFF of these voxels."""
    import tifffile

    if not path.is_file():
        return False
    try:
        return np.array_equal(tifffile.imread(path), voxels)
    except Exception:  # noqa: BLE001 - whatever a file makes a library raise, it is not the demo's
        return False


def _embryo(centre: Vector, radius: float, rng: np.random.Generator) -> list[_Nucleus]:
    pole = np.array([-0.25, 0.62, 0.74])
    pole /= np.linalg.norm(pole)
    nuclei = []
    for direction in _spread(SHELL_NUCLEI, rng):
        radii = (rng.uniform(0.075, 0.1) * radius, rng.uniform(0.14, 0.19) * radius)
        place = centre + direction * radius * rng.uniform(0.88, 0.93)
        nuclei.append(_Nucleus(place, direction, radii, rng.uniform(0.55, 0.9)))
    for place in _cluster(centre + 0.42 * radius * pole, 0.36 * radius, INNER_NUCLEI, rng):
        round_radius = rng.uniform(0.115, 0.14) * radius
        axis = _unit(rng.normal(size=3))
        nuclei.append(_Nucleus(place, axis, (0.85 * round_radius, round_radius), rng.uniform(0.7, 1.0)))
    for i in (4, SHELL_NUCLEI + 3):  # metaphase plates: thin, small, bright
        n = nuclei[i]
        nuclei[i] = _Nucleus(n.centre, _unit(rng.normal(size=3)), (0.04 * radius, 0.12 * radius), 1.4)
    return nuclei


def _spread(count: int, rng: np.random.Generator) -> Vector:
    """Return directions all over the sphere, evenly (a Fibonacci spiral) but for some disorder."""
    i = np.arange(count)
    height = 1 - (2 * i + 1) / count
    around = i * np.pi * (3 - np.sqrt(5))
    flat = np.sqrt(1 - height**2)
    even = np.stack([height, flat * np.cos(around), flat * np.sin(around)], axis=1)
    moved = even + rng.normal(scale=0.09, size=even.shape)
    directions: Vector = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    return directions


def _cluster(centre: Vector, radius: float, count: int, rng: np.random.Generator) -> list[Vector]:
    """Return places in a ball, each the loneliest of some random ones, so that nuclei hardly overlap."""
    places = [centre]
    while len(places) < count:
        offered = rng.uniform(-radius, radius, size=(200, 3))
        offered = centre + offered[np.linalg.norm(offered, axis=1) < radius]
        distances = np.linalg.norm(offered[:, None] - np.array(places), axis=2).min(axis=1)
        places.append(offered[distances.argmax()])
    return places


def _render(
    nucleus: _Nucleus, shape: Index3, voxel: Vector, rng: np.random.Generator
) -> tuple[list[int], NDArray[np.float32]]:
    """Return the first voxel of a box inside the stack, and the nucleus in it: blurred photons."""
    reach = max(nucleus.radii) * 1.1 + 3 * BLUR
    start = np.maximum(0, np.floor((nucleus.centre - reach) / voxel)).astype(int)
    stop = np.minimum(shape, np.ceil((nucleus.centre + reach) / voxel)).astype(int)
    world = [
        ((np.arange(a, b) + 0.5) * v - c).astype(np.float32)
        for a, b, v, c in zip(start, stop, voxel, nucleus.centre, strict=True)
    ]
    z, y, x = np.ix_(*world)
    short, wide = nucleus.radii
    along = z * nucleus.axis[0] + y * nucleus.axis[1] + x * nucleus.axis[2]
    squared = (z**2 + y**2 + x**2) / wide**2 + along**2 * (1 / short**2 - 1 / wide**2)

    # Lumps of chromatin, and an outline that is not quite an ellipsoid: a few waves, each a product per axis.
    texture = np.zeros(squared.shape, np.float32)
    for _ in range(16):
        wave = _unit(rng.normal(size=3)) * 2 * np.pi / (wide * rng.uniform(0.3, 0.9))
        phase = 1j * rng.uniform(0, 2 * np.pi)
        plane = np.exp(1j * wave[1] * y) * np.exp(1j * wave[2] * x)
        texture += (np.exp(phase + 1j * wave[0] * z) * plane).real
    photons = PHOTONS * nucleus.brightness * np.clip(1 + 0.1 * texture, 0.2, None)
    photons *= squared * (1 + 0.025 * texture) < 1
    return start.tolist(), _blur(photons.astype(np.float32), BLUR / voxel)


def _blur(box: NDArray[np.float32], sigmas: Vector) -> NDArray[np.float32]:
    """Return the box convolved with a Gaussian of these standard deviations, in voxels; 0 outside."""
    for axis, sigma in enumerate(sigmas):
        n = box.shape[axis]
        distances = np.subtract.outer(np.arange(n), np.arange(n))
        kernel = np.exp(-0.5 * (np.arange(-n, n + 1) / sigma) ** 2)
        matrix = np.exp(-0.5 * (distances / sigma) ** 2) / kernel.sum()
        box = np.moveaxis(np.tensordot(matrix.astype(np.float32), box, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(box)


def _unit(vector: Vector) -> Vector:
    unit: Vector = vector / np.linalg.norm(vector)
    return unit
