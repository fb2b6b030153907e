"""Each kind of input from a file that another program wrote, compared with what a reader of others sees in it.

`pytest -s` prints the table; `examples/formats.md` has it.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import h5py
import mrcfile
import nibabel
import nrrd
import numpy as np
import PIL.Image
import pytest
import tensorstore
import tifffile
import zarr

from independent_readers import library
from inputs import read_all
from isovoxel.geometry.grid import Box
from isovoxel.readers.open import open_volume
from isovoxel.readers.selection import Selection

STACK = np.random.default_rng(11).integers(0, 60_000, (6, 24, 32)).astype("uint16")
SIZE = (2.0, 0.5, 0.25)
UNITS = dict.fromkeys("zyx", "micrometer")
Seen = tuple[Any, tuple[float, ...] | None]
"""Voxels, z, y, x, and the voxel size, or None where the kind has none."""


def pillow_pages(path: Path) -> np.ndarray:
    """Return the pages of a TIFF as Pillow reads them."""
    with PIL.Image.open(path) as image:
        planes = []
        for page in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(page)
            planes.append(np.array(image))
    return np.stack(planes)


def by_pillow(path: Path) -> Path:
    """Write a TIFF of several pages."""
    first, *rest = (PIL.Image.fromarray(plane) for plane in STACK)
    first.save(path, save_all=True, append_images=rest)
    return path


def slices_by_pillow(path: Path) -> Path:
    """Write a folder of slices, whose ending is its name."""
    path.mkdir()
    for z, plane in enumerate(STACK):
        PIL.Image.fromarray(plane).save(path / f"z{z}.{path.name}")
    return path


def slices_seen(path: Path) -> Seen:
    return np.stack([np.array(PIL.Image.open(file)) for file in sorted(path.iterdir())]), None


def by_tifffile(path: Path, **options: Any) -> Path:
    tifffile.imwrite(path, STACK, **options)
    return path


def by_gzip(path: Path) -> Path:
    """Write a TIFF, and pack it."""
    path.write_bytes(gzip.compress(by_tifffile(path.with_suffix("")).read_bytes()))
    return path


def gzip_seen(path: Path) -> Seen:
    """Unpack it, and read the TIFF."""
    return tifffile.imread(io.BytesIO(gzip.decompress(path.read_bytes()))), None


def imagej_seen(path: Path) -> Seen:
    """Read an ImageJ TIFF, whose spacing stands in its description."""
    with PIL.Image.open(path) as image:
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        spacing = float(dict(line.split("=") for line in tags[270].split() if "=" in line)["spacing"])
        return pillow_pages(path), (spacing, float(1 / tags[283]), float(1 / tags[282]))


def ome_seen(path: Path) -> Seen:
    """Read an OME-TIFF, whose sizes stand in its XML."""
    with PIL.Image.open(path) as image:
        pixels = ET.fromstring(image.tag_v2[270])[0].find("{*}Pixels")  # type: ignore[attr-defined]  # noqa: S314
    assert pixels is not None
    return pillow_pages(path), tuple(float(pixels.attrib[f"PhysicalSize{axis}"]) for axis in "ZYX")


def by_ngff_zarr(version: str) -> Callable[[Path], Path]:
    """Return what writes an OME-Zarr of a version."""

    def make(path: Path) -> Path:
        ngff_zarr = library("ngff_zarr")
        scale, translation = dict(zip("zyx", SIZE, strict=True)), dict.fromkeys("zyx", 0.0)
        image = ngff_zarr.to_ngff_image(STACK, dims="zyx", scale=scale, translation=translation, axes_units=UNITS)
        ngff_zarr.to_ngff_zarr(str(path), ngff_zarr.to_multiscales(image, scale_factors=[], chunks=16), version=version)
        return path

    return make


def ngff_seen(path: Path) -> Seen:
    """Read an OME-Zarr's voxels with tensorstore, and its scale from the JSON."""
    old = path / ".zattrs"
    attributes = json.loads(old.read_text()) if old.is_file() else json.loads((path / "zarr.json").read_text())
    home = attributes if old.is_file() else attributes["attributes"]["ome"]
    level = home["multiscales"][0]["datasets"][0]
    (first, *_) = level["coordinateTransformations"]
    scale = first["transformations"][0]["scale"] if first["type"] == "sequence" else first["scale"]
    return by_tensorstore(path / level["path"], "zarr" if old.is_file() else "zarr3"), tuple(scale)


def by_tensorstore(path: Path, driver: str) -> np.ndarray:
    """Return what tensorstore reads."""
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": f"{path}/"}}
    return np.asarray(tensorstore.open(spec, read=True, open=True).result().read().result())


def with_tensorstore(driver: str, **spec: Any) -> Callable[[Path], Path]:
    """Return what writes an array with x first by tensorstore, N5 with what Paintera says of its size."""

    def make(path: Path) -> Path:
        whole = {"driver": driver, "kvstore": {"driver": "file", "path": f"{path}/"}, **spec}
        data = STACK.T if driver == "n5" else STACK.T[..., None]
        tensorstore.open(whole, create=True).result().write(data).result()
        if driver == "n5":
            told = json.loads((path / "attributes.json").read_text())
            told |= {"resolution": SIZE[::-1], "units": ["um"] * 3}
            (path / "attributes.json").write_text(json.dumps(told))
        return path

    return make


def by_h5py(path: Path) -> Path:
    """Write a dataset as ilastik and Fiji do."""
    with h5py.File(path, "w") as file:
        made = file.create_dataset("data", data=STACK, chunks=(2, 8, 16), compression="gzip", shuffle=True)
        made.attrs["element_size_um"] = SIZE
    return path


def hdf5_seen(path: Path) -> Seen:
    with h5py.File(path) as file:
        return file["data"][...], tuple(file["data"].attrs["element_size_um"].tolist())


def by_npy2bdv(path: Path) -> Path:
    """Write a BigDataViewer HDF5 and its XML."""
    writer = library("npy2bdv").BdvWriter(str(path.with_suffix(".h5")))
    writer.append_view(STACK, voxel_size_xyz=SIZE[::-1], voxel_units="um", calibration=SIZE[::-1])
    writer.write_xml()
    writer.close()
    return path


def bdv_seen(path: Path) -> Seen:
    editor = library("npy2bdv").BdvEditor(str(path.with_suffix(".h5")))
    voxels, size = editor.read_view(), editor.get_view_property("voxel_size")
    editor.finalize()
    return voxels, tuple(float(one) for one in size)[::-1]


def zipped_by_zarr(path: Path) -> Path:
    """Write a zarr array in a zip."""
    with zarr.storage.ZipStore(path, mode="w") as store:
        zarr.create_array(store, data=STACK, chunks=(2, 8, 16))
    return path


def by_nibabel(path: Path) -> Path:
    image = nibabel.Nifti1Image(STACK.T, np.diag([*SIZE[::-1], 1.0]))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, path)
    return path


def nibabel_seen(path: Path) -> Seen:
    image: Any = nibabel.load(path)
    return np.asarray(image.dataobj).T, tuple(float(size) for size in image.header.get_zooms())[::-1]


def by_pynrrd(path: Path) -> Path:
    """Write an NRRD in gzip."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        nrrd.write(str(path), STACK.T, {"spacings": SIZE[::-1], "units": ["um"] * 3}, index_order="F")
    return path


def pynrrd_seen(path: Path) -> Seen:
    voxels, header = nrrd.read(str(path), index_order="F")
    return voxels.T, tuple(header["spacings"].tolist())[::-1]


def by_mrcfile(path: Path) -> Path:
    with mrcfile.new(path) as file:
        file.set_data(STACK)
        file.voxel_size = SIZE[::-1]
    return path


def mrcfile_seen(path: Path) -> Seen:
    with mrcfile.open(path) as file:
        return file.data.copy(), tuple(float(file.voxel_size[axis]) for axis in "zyx")


def by_simpleitk(path: Path) -> Path:
    """Write what its ending says, compressed."""
    sitk = library("SimpleITK")
    image = sitk.GetImageFromArray(STACK)
    image.SetSpacing(SIZE[::-1])
    sitk.WriteImage(image, str(path), useCompression=True)
    return path


def simpleitk_seen(path: Path) -> Seen:
    sitk = library("SimpleITK")
    image = sitk.ReadImage(str(path))
    return sitk.GetArrayFromImage(image), image.GetSpacing()[::-1]


def nifti_seen(path: Path) -> Seen:
    """Read a NIfTI with SimpleITK, which counts in millimetres."""
    voxels, size = simpleitk_seen(path)
    return voxels, tuple(1000 * one for one in size or ())


def by_ndstorage(path: Path) -> Path:
    data = library("ndstorage").NDTiffDataset(
        str(path.parent), name="a", writable=True, summary_metadata={"z-step_um": SIZE[0]}
    )
    if np.lib.NumpyVersion(np.__version__) < "2.0.0":
        pytest.skip("tifffile reads an NDTiff by NumPy 2 only")
    for z, plane in enumerate(STACK):
        data.put_image({"z": z}, plane, {"PixelSizeUm": SIZE[1]})
    data.finish()
    data.close()
    (folder,) = path.parent.glob("a_*")
    return folder / "a_NDTiffStack.tif"


def ndtiff_seen(path: Path) -> Seen:
    data = library("ndstorage").NDTiffDataset(str(path.parent))
    pixel = float(data.read_metadata(z=0)["PixelSizeUm"])
    voxels, size = np.asarray(data.as_array()), (float(data.summary_metadata["z-step_um"]), pixel, pixel)
    data.close()
    return voxels, size


def by_zeiss(path: Path) -> Path:
    with library("pylibCZIrw.czi").create_czi(str(path)) as file:
        for z, plane in enumerate(STACK):
            file.write(data=plane[..., None], plane={"C": 0, "Z": z, "T": 0})
        file.write_metadata("a", **{f"scale_{axis}": 1e-6 * one for axis, one in zip("zyx", SIZE, strict=True)})
    return path


def czi_seen(path: Path) -> Seen:
    """Read it with czifile, its sizes in the XML."""
    with library("czifile").CziFile(path) as file:
        sizes = dict(re.findall(r'<Distance Id="(.)">\s*<Value>(.*?)</Value>', file.metadata()))
        return file.asarray().squeeze(), tuple(1e6 * float(sizes[axis]) for axis in "ZYX")


def by_mrc(path: Path) -> Path:
    library("mrc").imsave(str(path), STACK, resolution=SIZE[::-1])
    return path


def dv_seen(path: Path) -> Seen:
    """Read it with mrcfile, for which its sizes are those of a cell."""
    warnings.simplefilter("ignore", RuntimeWarning)  # of a DV's other magic number
    with mrcfile.open(path, permissive=True) as file:
        return file.data.copy(), tuple(float(file.header.cella[axis]) for axis in "zyx")


def saved(path: Path) -> Path:
    np.save(path, STACK)
    return path


def as_zarr(zarr_format: Any) -> Callable[[Path], Path]:
    """Return what writes a zarr array."""

    def make(path: Path) -> Path:
        zarr.create_array(path, data=STACK, chunks=(2, 8, 16), zarr_format=zarr_format)
        return path

    return make


@dataclass(frozen=True)
class Foreign:
    kind: str
    """What the table calls it."""
    writer: str
    """Who writes it."""
    reader: str
    """Whom isovoxel is compared with."""
    name: str
    """Of the file or folder."""
    make: Callable[[Path], Path]
    """Writes it."""
    seen: Callable[[Path], Seen]
    """Reads it."""


MICRONS = {"unit": "um", "spacing": SIZE[0], "axes": "ZYX"}
OME = {f"PhysicalSize{axis}": size for axis, size in zip("ZYX", SIZE, strict=True)} | {"axes": "ZYX"}
N5 = {"dimensions": STACK.shape[::-1], "blockSize": [16, 8, 2], "dataType": "uint16", "compression": {"type": "gzip"}}
SCALE = {"size": STACK.shape[::-1], "encoding": "raw", "chunk_size": [16, 8, 2], "resolution": [250, 500, 2000]}
IMAGE = {"type": "image", "data_type": "uint16", "num_channels": 1}

FOREIGN = (
    Foreign("TIFF", "Pillow", "tifffile", "a.tif", by_pillow, lambda path: (tifffile.imread(path), None)),
    Foreign(
        "ImageJ TIFF",
        "tifffile",
        "Pillow",
        "a.tif",
        lambda path: by_tifffile(path, imagej=True, resolution=(1 / SIZE[2], 1 / SIZE[1]), metadata=MICRONS),
        imagej_seen,
    ),
    Foreign(
        "OME-TIFF, tiled, zlib",
        "tifffile",
        "Pillow",
        "a.ome.tif",
        lambda path: by_tifffile(path, ome=True, metadata=OME, tile=(16, 16), compression="zlib"),
        ome_seen,
    ),
    Foreign("TIFF, gzip", "tifffile, gzip", "tifffile", "a.tif.gz", by_gzip, gzip_seen),
    Foreign(
        "TIFF slices",
        "Pillow",
        "tifffile",
        "tif",
        slices_by_pillow,
        lambda path: (tifffile.imread(sorted(path.iterdir())), None),
    ),
    Foreign("PNG slices", "Pillow", "Pillow", "png", slices_by_pillow, slices_seen),
    *(
        Foreign(f"OME-Zarr {version}", "ngff-zarr", "tensorstore", "a.ome.zarr", by_ngff_zarr(version), ngff_seen)
        for version in ("0.4", "0.5", "0.6")
    ),
    Foreign("zarr v2", "zarr-python", "tensorstore", "a.zarr", as_zarr(2), lambda p: (by_tensorstore(p, "zarr"), None)),
    Foreign(
        "zarr v3", "zarr-python", "tensorstore", "a.zarr", as_zarr(3), lambda p: (by_tensorstore(p, "zarr3"), None)
    ),
    Foreign(
        "zipped zarr",
        "zarr-python",
        "zarr-python",
        "a.zarr.zip",
        zipped_by_zarr,
        lambda path: (zarr.open_array(zarr.storage.ZipStore(path, mode="r"), mode="r")[...], None),
    ),
    Foreign(
        "N5",
        "tensorstore",
        "tensorstore",
        "a.n5",
        with_tensorstore("n5", metadata=N5),
        lambda path: (by_tensorstore(path, "n5").T, SIZE),
    ),
    Foreign(
        "Neuroglancer precomputed",
        "tensorstore",
        "tensorstore",
        "a",
        with_tensorstore("neuroglancer_precomputed", multiscale_metadata=IMAGE, scale_metadata=SCALE),
        lambda path: (by_tensorstore(path, "neuroglancer_precomputed")[..., 0].T, (2000, 500, 250)),
    ),
    Foreign("HDF5", "h5py, as ilastik", "h5py", "a.h5", by_h5py, hdf5_seen),
    Foreign("BigDataViewer", "npy2bdv", "npy2bdv", "a.xml", by_npy2bdv, bdv_seen),
    Foreign("NIfTI", "nibabel", "nibabel", "a.nii", by_nibabel, nibabel_seen),
    Foreign("NIfTI, gzip", "nibabel", "SimpleITK", "a.nii.gz", by_nibabel, nifti_seen),
    Foreign("NRRD, gzip", "pynrrd", "pynrrd", "a.nrrd", by_pynrrd, pynrrd_seen),
    Foreign("NRRD, gzip", "SimpleITK", "SimpleITK", "b.nrrd", by_simpleitk, simpleitk_seen),
    Foreign("MetaImage, zlib", "SimpleITK", "SimpleITK", "a.mha", by_simpleitk, simpleitk_seen),
    Foreign("MRC", "mrcfile", "mrcfile", "a.mrc", by_mrcfile, mrcfile_seen),
    Foreign("NDTiff", "ndstorage", "ndstorage", "a.tif", by_ndstorage, ndtiff_seen),
    Foreign("CZI", "pylibCZIrw", "czifile", "a.czi", by_zeiss, czi_seen),
    Foreign("DV", "mrc", "mrcfile", "a.dv", by_mrc, dv_seen),
    Foreign(".npy", "NumPy", "NumPy", "a.npy", saved, lambda path: (np.load(path), None)),
)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # of others
@pytest.mark.parametrize("foreign", FOREIGN, ids=lambda one: f"{one.kind} by {one.writer}")
def test_a_file_of_another_program_is_what_its_readers_see(foreign: Foreign, tmp_path: Path) -> None:
    """Voxel by voxel, with the same voxel size; and a part of it is that part."""
    path = foreign.make(tmp_path / foreign.name)
    voxels, size = foreign.seen(path)
    np.testing.assert_array_equal(voxels, STACK)
    volume = open_volume(path)
    np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), voxels)
    assert volume.voxel_size == (None if size is None else pytest.approx(size))
    part = open_volume(path, selection=Selection(crop=((1, 5), (3, -2), (4, 30))))
    np.testing.assert_array_equal(part.read(Box.whole(part.shape)), voxels[1:5, 3:-2, 4:30])
    shown = "none" if volume.voxel_size is None else " x ".join(f"{one:g}" for one in volume.voxel_size)
    unit = f" {volume.unit}" if volume.unit else ""
    shape = " x ".join(map(str, volume.shape))
    print(f"| {foreign.kind} | {foreign.writer} | {shape} | {shown}{unit} | {foreign.reader} |")


# ---- files of the makers' own programs -------------------------------------------------------------------------------

FOLDER = "ISOVOXEL_FOREIGN_FILES"
"""The variable that names a folder with the files of `MADE`, which are too large, or not ours, to be kept here."""


def nd2_seen(path: Path) -> np.ndarray:
    with library("nd2reader").ND2Reader(str(path)) as file:
        file.bundle_axes = "".join(axis for axis in "tczyx" if axis in file.sizes)
        return np.asarray(file[0])


def ims_seen(path: Path) -> np.ndarray:
    return np.asarray(library("imaris_ims_file_reader.ims").ims(str(path), squeeze_output=False)[:])


def mrc_seen(path: Path) -> np.ndarray:
    """Read a DV with mrcfile: its sections, one behind the other."""
    with mrcfile.open(path, permissive=True) as file:
        return file.data.copy()


@dataclass(frozen=True)
class Made:
    """A file that a microscope's program has made."""

    kind: str
    """What the table calls it."""
    writer: str
    """The program."""
    reader: str
    """Whom isovoxel is compared with."""
    name: str
    """Of the file."""
    source: str
    """Where it is from."""
    shape: tuple[int, ...]
    """Volumes, z, y, x."""
    voxel_size: tuple[float, float, float]
    """In micrometres, as the other reader says it."""
    seen: Callable[[Path], np.ndarray]
    """Reads its voxels."""


MADE = (
    Made(
        "CZI",
        "ZEN",
        "czifile",
        "s_1_t_1_c_1_z_1.czi",
        "aicsimageio",
        (1, 1, 325, 475),
        (1.083333, 1.083333, 1.083333),
        lambda path: library("czifile").imread(path),
    ),
    Made(
        "ND2", "NIS-Elements", "nd2reader", "cluster.nd2", "pims", (6, 10, 31, 38), (0.5, 0.167809, 0.167809), nd2_seen
    ),
    Made("DV", "softWoRx", "mrcfile", "toxo.dv", "mrc", (2, 17, 128, 128), (0.3, 0.13262, 0.13262), mrc_seen),
    Made(
        "Imaris",
        "Imaris",
        "imaris-ims-file-reader",
        "brain_crop3.ims",
        "imaris-ims-file-reader",
        (2, 51, 635, 673),
        (5.33, 0.498, 0.498),
        ims_seen,
    ),
)


@pytest.mark.filterwarnings("ignore")  # of others
@pytest.mark.parametrize("made", MADE, ids=lambda one: one.kind)
def test_a_file_of_a_microscope_is_what_its_readers_see(made: Made) -> None:
    """All volumes of it, voxel by voxel."""
    path = Path(os.environ.get(FOLDER, "")) / made.name
    if FOLDER not in os.environ or not path.is_file():
        pytest.skip(f"{FOLDER} names no folder with {made.name}, which comes with {made.source}")
    if made.kind != "Imaris":
        library(f"bioio_{made.kind.lower()}")
    volume = open_volume(path)
    voxels = read_all(volume)
    assert voxels.shape == made.shape
    np.testing.assert_array_equal(voxels.reshape(-1), made.seen(path).reshape(-1))
    assert volume.voxel_size == pytest.approx(made.voxel_size, rel=1e-3)


def test_the_page_of_formats_has_the_tables() -> None:
    """Row by row: who writes each kind, and with whom isovoxel is compared."""
    page = (Path(__file__).parents[2] / "examples" / "formats.md").read_text("utf-8")
    rows = {tuple(cell.strip() for cell in line.strip("| ").split("|")) for line in page.splitlines()}
    assert {(one.kind, one.writer, one.reader) for one in FOREIGN} <= rows
    assert {(one.kind, one.writer, f"`{one.name}`, of {one.source}", one.reader) for one in MADE} <= rows
