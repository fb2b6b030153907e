"""What is wrong with an input or an option is said in one line, before anything is written."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import bad_inputs as bad
from command_line import Isovoxel, Outcome, check_refused, listing

MOST_SECONDS = 20.0
"""Of processor time: a hundred times what any case takes, so that a busy machine does not matter."""

LONGEST_SECONDS = 60
"""After so long, a command hangs."""


class Case(NamedTuple):
    """What is given to ``isovoxel scale``, and what it must say."""

    make: bad.Make
    why: str
    options: str = ""
    output: str = "out/b.zarr"
    code: int = 2


CASES: dict[str, Case] = {
    # ---- no file at all
    "nothing there": Case(bad.named("{folder}/a.tif"), "is not there; check the path"),
    "nothing in a file": Case(lambda folder: bad.good(folder) / "inside", "is not there; check the path"),
    "no name": Case(bad.named(""), "path of the input is empty"),
    "a name too long": Case(bad.named("x" * 5000), "File name too long"),
    "an address of another kind": Case(bad.named("ftp://host/a.zarr"), "has a scheme that isovoxel does not know"),
    "an address with a password": Case(bad.named("s3://me:secret@bucket/a.zarr"), "credentials by the environment"),
    "an address with a signature": Case(bad.named("https://host/a.zarr?sig=1"), "credentials by the environment"),
    "a file that is not there, by address": Case(bad.named("file:///no/a.tif"), "is not there"),
    "a folder": Case(bad.special(Path.mkdir), "is a folder but no zarr"),
    "a ring of links": Case(bad.special(bad.link_ring), "symbolic links"),
    "a link to nothing": Case(bad.special(lambda path: path.symlink_to("b")), "is not there"),
    "a pipe": Case(bad.special(os.mkfifo), "is neither a file nor a folder"),
    "a socket": Case(bad.special(bad.listen), "is neither a file nor a folder"),
    "a device": Case(bad.named("/dev/zero"), "is neither a file nor a folder"),
    "no device's file": Case(bad.named("/dev/null"), "is neither a file nor a folder"),
    "no rights": Case(bad.special(lambda path: (path.write_bytes(b"II*\0"), path.chmod(0))), "Permission denied"),
    # ---- TIFF
    "an empty file": Case(bad.file(b""), "is empty (0 bytes)"),
    "text": Case(
        bad.file(b"no image at all"),
        "is of no kind that isovoxel knows; isovoxel reads TIFF, companion.ome, TIFF in gzip, OME-Zarr,",
    ),
    "PNG: its first bytes": Case(
        bad.file(b"\x89PNG\r\n\x1a\n" + bytes(40)), "is damaged: its PNG header cannot be read; write it again"
    ),
    "TIFF: four bytes": Case(bad.file(b"II*\0"), "truncated"),
    "TIFF: header alone": Case(bad.cut(8), "is truncated or no TIFF"),
    "TIFF: cut in the first directory": Case(bad.cut(40), "truncated"),
    "TIFF: half of it": Case(bad.cut(0.5), "bytes are missing"),
    "TIFF: compressed, cut": Case(bad.cut(0.7, bad.stack(photometric="minisblack", compression="zlib")), "truncated"),
    "BigTIFF: cut in its header": Case(bad.cut(10, bad.stack(bigtiff=True)), "truncated"),
    "BigTIFF: cut in a directory": Case(bad.cut(60, bad.stack(bigtiff=True)), "truncated"),
    "BigTIFF: cut in the voxels": Case(bad.cut(0.5, bad.stack(bigtiff=True)), "missing"),
    "TIFF: pages in a ring": Case(bad.looping, "is damaged: after 3 pages"),
    "TIFF: first page nowhere": Case(bad.file(b"II*\0" + b"\xf0" * 40), "is truncated or no TIFF"),
    "TIFF: no width": Case(bad.tagged("ImageWidth", 0), "is empty: its shape is (6, 20, 0)"),
    "TIFF: 4 billion rows": Case(bad.tagged("ImageLength", 2**32 - 1), "bytes are missing"),
    "TIFF: no bits": Case(
        bad.tagged("BitsPerSample", 0),
        "an unsupported 0-bit sample format; convert it to uint16 or float32",
    ),
    "TIFF: 128 bits": Case(
        bad.tagged("BitsPerSample", 128),
        "an unsupported 128-bit sample format; convert it to uint16 or float32",
    ),
    "TIFF: complex numbers": Case(
        bad.tagged("SampleFormat", 6, data=np.ones((6, 20, 24), "f4")), "has an unsupported 32-bit sample format"
    ),
    "TIFF: complex numbers of 128 bits": Case(
        bad.stack(bad.VOXELS * 1j, photometric="minisblack"),
        "holds complex128, which isovoxel does not scale; convert it to uint8",
    ),
    "TIFF: compression unknown": Case(bad.tagged("Compression", 32900), "compression 32900, which cannot be decoded"),
    "TIFF: predictor unknown": Case(bad.tagged("Predictor", 99, compression="zlib", predictor=True), "predictor 99"),
    "TIFF: strips beyond the end": Case(bad.tagged("StripOffsets", 2**31), "missing"),
    "TIFF: strips of 2 GB": Case(bad.tagged("StripByteCounts", 2**31, compression="zlib"), "missing"),
    "TIFF: strips of no rows": Case(
        bad.tagged("RowsPerStrip", 0, compression="zlib"), "its strips or tiles have the shape (1, 0, 24)"
    ),
    "TIFF: strips of a few rows": Case(bad.tagged("RowsPerStrip", 3, compression="zlib"), "segments"),
    "TIFF: three samples": Case(bad.tagged("SamplesPerPixel", 3), "3 colour samples"),
    "TIFF: tiles of no width": Case(
        bad.tagged("TileWidth", 0, tile=(16, 16)), "its strips or tiles have the shape (1, 0, 24)"
    ),
    "TIFF: colour": Case(bad.stack(np.zeros((20, 24, 3), "u1"), photometric="rgb"), "3 colour samples"),
    "ImageJ: a billion images": Case(
        bad.described("ImageJ=1.53\nimages=1000000000\nslices=1000000000\n"), "bytes are missing"
    ),
    "ImageJ: minus one image": Case(
        bad.described("ImageJ=1.53\nimages=-1\nslices=-1\n"), "is not what its 6 pages hold"
    ),
    "ImageJ: no slices": Case(bad.described("ImageJ=1.53\nimages=6\nslices=0\n"), "is not what its 6 pages hold"),
    "ImageJ: nine images": Case(
        bad.stack(
            photometric="minisblack",
            metadata=None,
            compression="zlib",
            description="ImageJ=1.53\nimages=9\nslices=9\n",
        ),
        "its metadata say 9 planes of 20 x 24, but it has 6",
    ),
    "OME: in another file": Case(
        bad.described("<OME><BinaryOnly MetadataFile='a.ome' UUID='urn:uuid:1'/></OME>"), "one file of several"
    ),
    "OME: a billion laughs": Case(bad.ome_xml(before=bad.LAUGHS), "document type definition"),
    "OME: an entity from a file": Case(
        bad.ome_xml(before='<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>'), "document type definition"
    ),
    "OME: torn": Case(
        bad.described('<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image>'), "is cut short"
    ),
    "OME: no XML": Case(bad.described("<OME><Image></OME>"), "is not well-formed"),
    "OME: a trillion planes": Case(bad.ome_xml('SizeZ="1000000000000"'), "more than any file has"),
    "OME: a trillion planes in a file": Case(
        bad.ome_xml(inside='<TiffData IFD="0" PlaneCount="1000000000000"/>'), "more than any file has"
    ),
    "OME: planes in a file on the network": Case(
        bad.ome_xml(inside='<TiffData><UUID FileName="\\\\host\\b.tif">urn:uuid:1</UUID></TiffData>'),
        "is not in the folder",
    ),
    "tifffile: a trillion planes": Case(bad.described('{"shape": [1000000000000, 20, 24]}'), "bytes are missing"),
    "tifffile: planes below 0": Case(bad.described('{"shape": [-6, 20, 24]}'), "is not what its 6 pages hold"),
    "OME: more planes than pages": Case(bad.ome_xml('SizeZ="9"'), "is not what its 6 pages hold"),
    "OME: no number of planes": Case(bad.ome_xml('SizeZ="many"'), "'many'"),
    "OME: planes in a file outside": Case(
        bad.ome_xml(inside='<TiffData IFD="0" PlaneCount="6"><UUID FileName="../b.tif">urn:uuid:1</UUID></TiffData>'),
        "is not in the folder",
    ),
    # ---- slices
    "a pattern without a file": Case(bad.named("{folder}/*.tif"), "no file's name matches"),
    "slices: one empty": Case(bad.slices("1.tif", "2.tif", odd=lambda path: os.truncate(path, 0)), "is no TIFF"),
    "slices: one a pipe": Case(
        bad.slices("1.tif", odd=lambda path: (path.unlink(), os.mkfifo(path))), "no TIFF or PNG slices"
    ),
    # ---- .npy
    "npy: objects": Case(bad.npy(np.array([[[{}]]])), "holds object"),
    "npy: a pickle": Case(bad.file(bad.PICKLE, "a.npy"), "is of no kind that isovoxel knows"),
    "npy: cut": Case(
        bad.cut(-100, bad.npy(bad.VOXELS)),
        "take 5888 bytes, but the file has 5788, so 100 bytes are missing",
    ),
    "npy: cut, Fortran order": Case(
        bad.cut(-3, bad.npy(np.asfortranarray(bad.VOXELS))), "take 5888 bytes, but the file has 5885, so 3 bytes"
    ),
    "npy: cut in its header": Case(bad.cut(30, bad.npy(bad.VOXELS)), "broken .npy header"),
    "npy: more than is there": Case(bad.npy_header(bad.says("(1000000, 1000000, 1000000)")), "bytes are missing"),
    "npy: less than nothing": Case(bad.npy_header(bad.says("(6, -20, 24)")), "is empty"),
    "npy: a header of code": Case(bad.npy_header("__import__('os').abort()"), "broken .npy header"),
    "npy: a header of 4 GB": Case(bad.npy_header(bad.says("(6, 20, 24)"), b"\2\0", 2**32 - 1), "broken .npy header"),
    "npy: version 9": Case(bad.npy_header(bad.says("(6, 20, 24)"), b"\x09\0"), "which has no plain numbers"),
    "npy: complex numbers": Case(bad.npy(np.zeros((6, 20, 24), "c8")), "holds complex64"),
    "npy: records": Case(bad.npy_header(bad.says("(6, 20, 24)", "[('a', '<u2')]")), "holds"),
    # ---- HDF5
    "HDF5: not there": Case(bad.named("{folder}/a.h5:/data"), "is not there"),
    "HDF5: its first bytes": Case(bad.file(b"\x89HDF\r\n\x1a\n", "a.h5"), "cannot be read as HDF5"),
    "HDF5: cut": Case(bad.cut(0.5, bad.hdf5()), "cannot be read as HDF5"),
    "HDF5: no such dataset": Case(bad.within("/b", bad.hdf5()), "is not there: the file has /a"),
    "HDF5: complex numbers": Case(bad.hdf5(bad.VOXELS * 1j), "holds complex128"),
    "HDF5: text": Case(bad.hdf5(np.full((2, 2, 2), b"voxel")), "holds |S5"),
    "HDF5: no voxels": Case(bad.within("/a", bad.hdf5(bad.VOXELS[:, :0])), "is empty"),
    "HDF5: flat": Case(bad.hdf5(bad.VOXELS[0]), "no 3-D dataset"),
    "HDF5: five axes": Case(bad.hdf5(bad.VOXELS.reshape(2, 3, 4, 5, 24)), "is 5-D"),
    "a path in a TIFF": Case(bad.within("/a", bad.good), "which only files of HDF5, Imaris and zipped zarr have"),
    # ---- N5
    "N5: block size 0": Case(bad.n5(blockSize=[0, 16, 16]), "cannot be read as N5"),
    "N5: vast blocks": Case(bad.n5(blockSize=[2**20, 2**20, 2**20]), "cannot be read as N5"),
    "N5: compression unknown": Case(bad.n5(compression={"type": "gif"}), "gif"),
    "N5: a shape of words": Case(bad.n5(dimensions=["many", 2, 3]), "cannot be read as N5"),
    "N5: its metadata": Case(
        lambda folder: bad.n5()(folder) / "attributes.json", "is a part of an N5; give the folder"
    ),
    # ---- NIfTI
    "NIfTI: cut": Case(bad.cut(0.5, bad.nifti()), "bytes are missing"),
    "NIfTI: complex numbers": Case(bad.nifti(data=bad.VOXELS * 1j), "holds complex128"),
    "NIfTI: vast": Case(bad.nifti(42, "<3h", 32767, 32767, 32767), "bytes are missing"),
    "NIfTI: vast, gzip": Case(bad.nifti(42, "<3h", 32767, 32767, 32767, ending="nii.gz"), "bytes are missing"),
    "NIfTI: a dtype unknown": Case(bad.nifti(70, "<h", 9999), "cannot be read as NIfTI"),
    "NIfTI: time": Case(bad.nifti(data=np.stack([bad.VOXELS] * 2)), "2 time points"),
    "gzip of an empty file": Case(bad.file(gzip.compress(b""), "a.nii.gz"), "is of no kind that isovoxel knows"),
    "gzip of nothing": Case(bad.file(bad.GZIP_BOMB, "a.nii.gz"), "is of no kind that isovoxel knows, packed by gzip"),
    # ---- zarr
    "zarr: torn": Case(bad.metadata("{"), "cannot be read as zarr metadata"),
    "zarr: empty": Case(bad.metadata(""), "cannot be read as zarr metadata"),
    "zarr: no text": Case(bad.metadata(b"\xff\xfe\0"), "cannot be read as zarr metadata"),
    "zarr: a list": Case(bad.metadata("[]"), "its zarr.json does not say that zarr_format is 3"),
    "zarr: nothing": Case(bad.metadata("null"), "its zarr.json does not say that zarr_format is 3"),
    "zarr: deep": Case(bad.metadata("[" * 100_000), "its brackets are nested too deeply"),
    "zarr: metadata in a folder": Case(bad.in_place(Path.mkdir), "is a folder but no zarr"),
    "zarr: metadata from a pipe": Case(bad.in_place(os.mkfifo), "is a folder but no zarr"),
    "zarr: its metadata": Case(lambda folder: bad.image(folder) / "zarr.json", "give the folder that it lies in"),
    "zarr: array torn": Case(bad.metadata("{", "0/zarr.json"), "is incomplete"),
    "zarr: array gone": Case(bad.without("0/zarr.json"), "is incomplete"),
    "zarr: neither array nor group": Case(bad.metadata('{"zarr_format": 3, "node_type": "tree"}'), "neither"),
    "zarr: format 99": Case(bad.array(zarr_format=99), "Invalid zarr_format: 99"),
    "zarr: negative shape": Case(bad.array(shape=[-6, 20, 24]), "cannot be read as a zarr array"),
    "zarr: no voxels": Case(bad.array(shape=[6, 0, 24]), "is empty"),
    "zarr: a shape beyond all numbers": Case(bad.array(shape=[10**30, 10**30, 10**30]), "more than can be counted"),
    "zarr: a shape of words": Case(bad.array(shape=["6", "20", "many"]), "cannot be read as a zarr array"),
    "zarr: a shape of fractions": Case(bad.array(shape=[6.5, 20, 24]), "cannot be read as a zarr array"),
    "zarr: chunks of nothing": Case(
        bad.array(chunk_grid__configuration__chunk_shape=[0, 16, 16]), "chunks of shape (0, 16, 16)"
    ),
    "zarr: negative chunks": Case(
        bad.array(chunk_grid__configuration__chunk_shape=[-4, 16, 16]), "cannot be read as a zarr array"
    ),
    "zarr: flat chunks": Case(
        bad.array(chunk_grid__configuration__chunk_shape=[16, 16]), "cannot be read as a zarr array"
    ),
    "zarr: vast chunks": Case(
        bad.array(chunk_grid__configuration__chunk_shape=[2**40, 2**40, 2**40]), "of host memory"
    ),
    "zarr: chunks in no grid": Case(bad.array(chunk_grid={"name": "hexagonal"}), "cannot be read as a zarr array"),
    "zarr: codec unknown": Case(bad.array(codecs__1={"name": "gif"}), "Unknown codec: 'gif'"),
    "zarr: codec nonsense": Case(
        bad.array(codecs__1={"name": "blosc", "configuration": {"cname": 3, "clevel": "best"}}),
        "cannot be read as a zarr array",
    ),
    "zarr: no codecs": Case(bad.array(codecs=[]), "cannot be read as a zarr array"),
    "zarr: fill value of words": Case(bad.array(fill_value="red"), "cannot be read as a zarr array"),
    "zarr: fill value below 0": Case(bad.array(fill_value=-1), "its data type does not hold its fill value"),
    "zarr: fill value too large": Case(bad.array(fill_value=70_000), "its data type does not hold its fill value"),
    "zarr: objects": Case(bad.array(data_type="object"), "cannot be read as a zarr array"),
    "zarr: text": Case(bad.array(data_type="string", fill_value=""), "cannot be read as a zarr array"),
    "zarr: complex numbers": Case(bad.array(data_type="complex64", fill_value=[0, 0]), "holds complex64"),
    "zarr: names of two axes": Case(bad.array(dimension_names=["z", "y"]), "cannot be read as a zarr array"),
    "zarr: other axes than the image": Case(
        bad.array(dimension_names=["x", "y", "z"]),
        "contradicts itself: its OME-Zarr metadata have the axes z, y, x",
    ),
    "zarr v2: objects": Case(bad.array_v2(dtype="|O"), "cannot be read as a zarr array"),
    "zarr v2: negative shape": Case(bad.array_v2(shape=[-6, 20, 24]), "cannot be read as a zarr array"),
    "zarr v2: chunks of nothing": Case(bad.array_v2(chunks=[0, 0, 0]), "chunks of shape (0, 0, 0)"),
    "zarr v2: codec unknown": Case(bad.array_v2(compressor={"id": "gif"}), "gif"),
    "zarr v2: order unknown": Case(bad.array_v2(order="K"), "cannot be read as a zarr array"),
    "zarr v2: filter unknown": Case(bad.array_v2(filters=[{"id": "sepia"}]), "sepia"),
    "zarr v2: fill value of words": Case(bad.array_v2(fill_value="red"), "cannot be read as a zarr array"),
    # ---- OME-Zarr
    "OME-Zarr: path outside": Case(bad.level(path="../../etc"), "does not lead to an array inside it"),
    "OME-Zarr: absolute path": Case(bad.level(path="/etc"), "does not lead to an array inside it"),
    "OME-Zarr: path on another system": Case(bad.level(path="C:\\data"), "does not lead to an array inside it"),
    "OME-Zarr: path to nothing": Case(
        bad.level(path="7"), "is incomplete: its OME-Zarr metadata name the array '7', which is not there"
    ),
    "OME-Zarr: path back to itself": Case(bad.elsewhere, "is incomplete"),
    "OME-Zarr: no scale": Case(bad.level(coordinateTransformations=[]), "has no scale"),
    "OME-Zarr: scale 0": Case(bad.scaled(1, 0, 1), "must be a finite number above 0, not 0"),
    "OME-Zarr: scale below 0": Case(bad.scaled(1, -1, 1), "must be a finite number above 0, not -1"),
    "OME-Zarr: scale nan": Case(bad.scaled(1, float("nan"), 1), "must hold finite numbers"),
    "OME-Zarr: scale of two": Case(bad.scaled(1, 1), "a list of 3 numbers"),
    "OME-Zarr: scale of words": Case(bad.scaled("a", "b", "c"), "must hold finite numbers"),
    "OME-Zarr: scale no voxel has": Case(bad.scaled(1e-30, 1e-30, 1e-30), "which no voxel has"),
    "OME-Zarr: z twice": Case(bad.axes("z", "z", "x"), "two axes are called 'z'"),
    "OME-Zarr: time": Case(bad.axes("t", "y", "x"), "6 time points"),
    "OME-Zarr: unit unknown": Case(bad.axes("z", "y", "x", units=("parsnip",) * 3), "is no known length"),
    "OME-Zarr: no levels": Case(bad.image_with(lambda image: image.update(datasets=[])), "must be a list of levels"),
    # ---- what is only found out half-way
    "a gzip bomb": Case(bad.chunk(bad.GZIP_BOMB, "gzip"), "is corrupt", code=1),
    "a blosc bomb": Case(bad.chunk(bad.BLOSC_BOMB), "is corrupt", code=1),
    "a zstd bomb": Case(bad.chunk(bad.ZSTD_BOMB, "zstd"), "is corrupt", code=1),
    "a gzip bomb in HDF5": Case(
        bad.hdf5_chunk(zlib.compress(bytes(20_000_000)), compression="gzip"),
        "is corrupt",
        "--factor 2,1,1",
        code=1,
    ),
    "a gzip bomb in N5": Case(bad.n5_block(bad.GZIP_BOMB), "is corrupt", "--factor 2,1,1", code=1),
    "a NIfTI in gzip, cut short": Case(
        bad.cut(0.7, bad.nifti(ending="nii.gz")), "is corrupt", "--factor 2,1,1", code=1
    ),
    "a chunk cut short": Case(bad.chunk(b"\2\1\x31\2"), "is corrupt", code=1),
    "a chunk of another size": Case(bad.chunk(bytes(77), "none"), "is corrupt", code=1),
    "a damaged shard": Case(bad.chunk(bytes(300), shards=(4, 32, 32)), "is corrupt", code=1),
    "a damaged strip": Case(bad.broken_strip(b"\xff" * 99), "is corrupt", "--factor 2,1,1", code=1),
    "a strip that is a bomb": Case(
        bad.broken_strip(zlib.compress(bytes(900_000))), "is corrupt", "--factor 2,1,1", code=1
    ),
    # ---- values and options (`test_cli.py` has those that are wrong for any input)
    "voxel size unknown": Case(bad.npy(bad.VOXELS), "give --input-voxel-size"),
    "labels of fractions": Case(bad.npy(np.zeros((6, 20, 24), "f4")), "labels are integers", "--labels --factor 1,1,1"),
    # ---- outputs
    "output in the input": Case(bad.image, "lies inside the input", "--zoom 1", "in/a.zarr/b.zarr"),
    "output is a file": Case(bad.good, "exists", "", "out/thesis.txt"),
    "output on a web server": Case(bad.good, "can only be read", "", "https://host/b.zarr"),
    "output is a bucket": Case(bad.good, "is a whole bucket", "", "s3://bucket"),
    "output with a password": Case(bad.good, "credentials by the environment", "", "s3://me:secret@bucket/b.zarr"),
}


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Let a command that hangs fail."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def hangs(*_: object) -> None:
        raise AssertionError(f"it hangs: nothing was said in {LONGEST_SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(LONGEST_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Load what is loaded once, and find the device, so that no case is charged for it."""
    from isovoxel import api

    folder = tmp_path_factory.mktemp("warm")
    for make in (bad.good, bad.image):
        source = make(folder)
        api.scale(source, folder / "out.zarr", overwrite=True)


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """Return a folder with one for inputs, and one for outputs where something worth keeping lies."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("a thesis")
    return tmp_path


def words(case: Case, house: Path) -> list[str]:
    """Return what the user types behind ``isovoxel``."""
    source = str(case.make(house / "in"))
    output = case.output if "://" in case.output else str(house / case.output)
    return ["scale", source, output, *case.options.split()]


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("name", CASES)
def test_it_is_said_in_one_line(name: str, house: Path, isovoxel: Isovoxel) -> None:
    """What is wrong is one sentence and an exit code, found at once, with nothing changed on the disk."""
    if name == "no rights" and os.geteuid() == 0:
        pytest.skip("root may read everything")
    case = CASES[name]
    typed = words(case, house)
    before = listing(house)
    began = time.process_time()
    said = isovoxel(*typed, "--quiet")
    assert time.process_time() - began < MOST_SECONDS
    check_refused(said, case.why, case.code)
    if case.code == 2:
        assert listing(house) == before
    else:
        assert "blocks are done and kept" in said.err


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("name", ["nothing there", "text", "TIFF: half of it", "zarr: torn", "npy: complex numbers"])
def test_every_command_says_it(name: str, house: Path, isovoxel: Isovoxel) -> None:
    """Also those that write nothing."""
    (_, source, *_) = words(CASES[name], house)
    before = listing(house)
    for command in ("info", "plan", "limits"):
        check_refused(isovoxel(command, source), CASES[name].why)
    assert listing(house) == before


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "name",
    [
        "nothing there",
        "a pipe",
        "TIFF: half of it",
        "OME: a billion laughs",
        "zarr: torn",
        "zarr: fill value too large",
        "voxel size unknown",
    ],
)
def test_a_process_of_its_own_says_the_same(name: str, house: Path) -> None:
    """Nothing that libraries print or log adds to the one line."""
    typed = words(CASES[name], house)
    before = listing(house)
    done = subprocess.run(
        [sys.executable, "-m", "isovoxel", *typed],
        capture_output=True,
        text=True,
        check=False,
        timeout=LONGEST_SECONDS,
    )
    check_refused(Outcome(done.returncode, done.stdout, done.stderr), CASES[name].why)
    assert listing(house) == before
