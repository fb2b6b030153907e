"""Makers of inputs that cannot be scaled, each in a folder of its own, and one of an input that can."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import tifffile
import zarr
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from inputs import write_n5
from isovoxel.geometry.grid import VoxelGrid
from isovoxel.metadata.ome import image_attributes

VOXELS = np.random.default_rng(0).integers(0, 250, (6, 20, 24)).astype("uint16")
VOXEL_SIZE = (2.0, 0.5, 0.5)
CHUNK = (4, 16, 16)

Make = Callable[[Path], Path | str]
"""Makes an input in an empty folder, and returns what the user calls it."""

Json = Any
Change = Callable[[Json], Any]
"""Changes JSON metadata where they are, or returns others in their place."""


# ---- files -------------------------------------------------------------------------------------------------------


def good(folder: Path) -> Path:
    """Write a stack that can be scaled."""
    return stack()(folder)


def named(name: str) -> Make:
    """Make nothing, and name this."""
    return lambda folder: name.format(folder=folder)


def file(data: bytes, name: str = "a.tif") -> Make:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def special(make: Callable[[Path], Any], name: str = "a.tif") -> Make:
    """Make something that is neither a file nor a folder."""

    def made(folder: Path) -> Path:
        make(folder / name)
        return folder / name

    return made


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        # Its path must be short.
        here = Path.cwd()
        os.chdir(path.parent)
        try:
            made.bind(path.name)
        finally:
            os.chdir(here)


def link_ring(path: Path) -> None:
    path.symlink_to("b")
    path.with_name("b").symlink_to(path.name)


# ---- TIFF --------------------------------------------------------------------------------------------------------


def stack(data: np.ndarray = VOXELS, **options: Any) -> Make:
    """Write a stack as Fiji does, or with these options."""

    def make(folder: Path) -> Path:
        given = options or {
            "imagej": True,
            "resolution": (2, 2),
            "metadata": {"axes": "ZYX", "spacing": 2.0, "unit": "micron"},
        }
        tifffile.imwrite(folder / "a.tif", data, **given)
        return folder / "a.tif"

    return make


def cut(keep: float, make: Make = good) -> Make:
    """Keep so many bytes of a file, a share of them, or all but so many."""

    def made(folder: Path) -> Path:
        path = Path(make(folder))
        size = path.stat().st_size
        os.truncate(path, int(keep * size if 0 < keep < 1 else keep if keep > 0 else size + keep))
        return path

    return made


def tagged(tag: str, value: Any, **options: Any) -> Make:
    """Write a TIFF in which a tag of every page says something else."""

    def make(folder: Path) -> Path:
        path = Path(stack(**{"photometric": "minisblack", "metadata": None} | options)(folder))
        with tifffile.TiffFile(path, mode="r+b") as tif:
            for page in tif.pages:
                page.tags[tag].overwrite(value)
        return path

    return make


def slices(*names: str, odd: Callable[[Path], Any] = lambda _: None) -> Make:
    """Write a folder of slices, of which something is done to the last."""

    def make(folder: Path) -> Path:
        path = folder / "slices"
        path.mkdir()
        for name, plane in zip(names, VOXELS, strict=False):
            tifffile.imwrite(path / name, plane, photometric="minisblack", metadata=None)
        odd(path / names[-1])
        return path

    return make


def looping(folder: Path) -> Path:
    """Write a TIFF whose third page says that it comes next."""
    path = Path(stack(photometric="minisblack", metadata=None)(folder))
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[2]
        pointer = page.offset + 2 + 12 * len(page.tags)
    with path.open("r+b") as out:
        out.seek(pointer)
        out.write(struct.pack("<I", page.offset))
    return path


def described(text: str) -> Make:
    return stack(photometric="minisblack", metadata=None, description=text)


def ome_xml(pixels: str = "", inside: str = "", before: str = "") -> Make:
    """Write an OME-TIFF whose Pixels have these attributes and contents."""
    sizes = {"SizeX": 24, "SizeY": 20, "SizeZ": 6, "SizeC": 1, "SizeT": 1}
    said = " ".join(f'{key}="{value}"' for key, value in sizes.items() if f"{key}=" not in pixels)
    return described(
        f'{before}<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        f'<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" {said} {pixels}>{inside}</Pixels></Image></OME>'
    )


LAUGHS = (
    "<!DOCTYPE a [<!ENTITY a0 'ha'>" + "".join(f"<!ENTITY a{i} '{f'&a{i - 1};' * 10}'>" for i in range(1, 10)) + "]>"
)
"""Entities that would be a billion words."""


def broken_strip(data: bytes) -> Make:
    """Write a deflated TIFF with other bytes in its first strip."""

    def make(folder: Path) -> Path:
        noise = np.random.default_rng(1).integers(0, 2**16, VOXELS.shape).astype("uint16")
        path = Path(stack(noise, photometric="minisblack", metadata=None, compression="zlib")(folder))
        with tifffile.TiffFile(path) as tif:
            offset, count = tif.pages[0].dataoffsets[0], tif.pages[0].databytecounts[0]
        with path.open("r+b") as out:
            out.seek(offset)
            out.write(data[:count])
        return path

    return make


# ---- .npy --------------------------------------------------------------------------------------------------------


def npy(data: Any) -> Make:
    def make(folder: Path) -> Path:
        np.save(folder / "a.npy", data)
        return folder / "a.npy"

    return make


def npy_header(text: str, version: bytes = b"\1\0", length: int | None = None) -> Make:
    """Write a header, and voxels behind it."""
    size = struct.pack("<H" if version == b"\1\0" else "<I", len(text) if length is None else length)
    return file(b"\x93NUMPY" + version + size + text.encode("latin-1") + VOXELS.tobytes(), "a.npy")


def says(shape: str, descr: str = "'<u2'") -> str:
    """Return a header that says this of the array."""
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n"


# ---- HDF5 ------------------------------------------------------------------------------------------------------


def hdf5(data: Any = VOXELS, **options: Any) -> Make:
    def make(folder: Path) -> Path:
        with h5py.File(folder / "a.h5", "w") as file:
            file.create_dataset("a", data=data, **options)
        return folder / "a.h5"

    return make


def within(inner: str, make: Make) -> Make:
    """Name something in a file."""
    return lambda folder: f"{make(folder)}:{inner}"


def hdf5_chunk(data: bytes, **options: Any) -> Make:
    """Write a dataset with these bytes for one of its chunks."""

    def make(folder: Path) -> Path:
        path = Path(hdf5(chunks=CHUNK, **options)(folder))
        with h5py.File(path, "a") as file:
            file["a"].id.write_direct_chunk((4, 16, 16), data)
        return path

    return make


# ---- N5 --------------------------------------------------------------------------------------------------------


def n5(data: np.ndarray = VOXELS, **changes: Any) -> Make:
    """Write an N5 dataset whose attributes have other values."""

    def make(folder: Path) -> Path:
        path = write_n5(folder / "a.n5", data, CHUNK)
        rewrite(path / "attributes.json", lambda attributes: attributes.update(changes))
        return path

    return make


def n5_block(data: bytes) -> Make:
    """Write an N5 dataset with these bytes behind the header of one of its blocks."""

    def make(folder: Path) -> Path:
        path = Path(n5()(folder))
        block = path / "1/1/1"
        block.write_bytes(block.read_bytes()[:16] + data)
        return path

    return make


# ---- NIfTI -----------------------------------------------------------------------------------------------------


def nifti(offset: int = 0, code: str = "", *values: Any, ending: str = "nii", data: np.ndarray = VOXELS) -> Make:
    """Write an image with other numbers in its header, compressed or not."""

    def make(folder: Path) -> Path:
        image = bytearray(nibabel.Nifti1Image(data.T, np.diag([0.5, 0.5, 2, 1])).to_bytes())
        struct.pack_into(code, image, offset, *values)
        path = folder / f"a.{ending}"
        path.write_bytes(gzip.compress(image) if ending.endswith("gz") else image)
        return path

    return make


# ---- zarr --------------------------------------------------------------------------------------------------------


def image(folder: Path, **options: Any) -> Path:
    """Write an OME-Zarr 0.5 that can be scaled."""
    path = folder / "a.zarr"
    attributes = image_attributes(VoxelGrid(VOXELS.shape, VOXEL_SIZE, unit="micrometer"), name="a")
    group = zarr.create_group(path, attributes=attributes)
    made = group.create_array(
        "0",
        shape=VOXELS.shape,
        dtype=VOXELS.dtype,
        **{"chunks": CHUNK, "dimension_names": ("z", "y", "x")} | options,
    )
    made[...] = VOXELS
    return path


def rewrite(path: Path, change: Change) -> None:
    metadata = json.loads(path.read_text())
    path.write_text(json.dumps(metadata if (other := change(metadata)) is None else other))


def array(**changes: Any) -> Make:
    """Write an OME-Zarr whose array's metadata have other values; dots lead inside."""

    def change(metadata: Json) -> None:
        for key, value in changes.items():
            *outer, last = [int(part) if part.isdigit() else part for part in key.split("__")]
            inner = metadata
            for part in outer:
                inner = inner[part]
            inner[last] = value

    def make(folder: Path) -> Path:
        path = image(folder)
        rewrite(path / "0/zarr.json", change)
        return path

    return make


def image_with(change: Change, **options: Any) -> Make:
    """Write an OME-Zarr whose multiscale is changed."""

    def make(folder: Path) -> Path:
        path = image(folder, **options)
        rewrite(path / "zarr.json", lambda node: change(node["attributes"]["ome"]["multiscales"][0]) and None)
        return path

    return make


def level(**changes: Any) -> Make:
    """Write an OME-Zarr whose one level says something else."""
    return image_with(lambda multiscale: multiscale["datasets"][0].update(changes))


def scaled(*scale: Any) -> Make:
    return level(coordinateTransformations=[{"type": "scale", "scale": list(scale)}])


def axes(*names: str, units: tuple[str | None, ...] = ("micrometer",) * 5) -> Make:
    found = [
        {"name": name, "type": {"t": "time", "c": "channel"}.get(name, "space")} | ({"unit": unit} if unit else {})
        for name, unit in zip(names, units, strict=False)
    ]
    return image_with(lambda multiscale: multiscale.update(axes=found), dimension_names=None)


def metadata(text: str | bytes, where: str = "zarr.json") -> Make:
    """Write an OME-Zarr, and other bytes in place of one of its files."""

    def make(folder: Path) -> Path:
        path = image(folder)
        (path / where).write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return make


def in_place(replace: Callable[[Path], Any], where: str = "zarr.json") -> Make:
    """Write an OME-Zarr, and something else in place of one of its files."""

    def make(folder: Path) -> Path:
        path = image(folder)
        (path / where).unlink()
        replace(path / where)
        return path

    return make


def without(where: str) -> Make:
    return in_place(lambda _: None, where)


def array_v2(**changes: Any) -> Make:
    """Write a bare zarr v2 array whose metadata have other values."""

    def make(folder: Path) -> Path:
        path = folder / "a.zarr"
        zarr.create_array(path, data=VOXELS, chunks=CHUNK, zarr_format=2)
        rewrite(path / ".zarray", lambda metadata: metadata.update(changes))
        return path

    return make


def elsewhere(folder: Path) -> Path:
    """Write an OME-Zarr whose array is a link that leads back to the group."""
    path = image(folder)
    (path / "0").rename(path / "1")
    (path / "0").symlink_to(".")
    return path


def chunk(data: bytes, codec: str = "blosc", **options: Any) -> Make:
    """Write an OME-Zarr with these bytes for one of its chunks, the last."""
    codecs = {"none": None, "blosc": BloscCodec(), "zstd": ZstdCodec(), "gzip": GzipCodec()}

    def make(folder: Path) -> Path:
        path = image(folder, compressors=codecs[codec], **options)
        next(p for p in sorted(path.rglob("c/1/*/*"), reverse=True) if p.is_file()).write_bytes(data)
        return path

    return make


GZIP_BOMB = gzip.compress(bytes(20_000_000))
BLOSC_BOMB = struct.pack("<BBBBIII", 2, 1, 0x33, 2, 2**31 - 1, 2**31 - 1, 16 + 40) + bytes(40)
ZSTD_BOMB = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 2**40) + bytes(40)
PICKLE = pickle.dumps(VOXELS)
