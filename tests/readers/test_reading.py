"""Reading boxes: the same law for every kind of input."""

from __future__ import annotations

import errno
import gzip
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Any

import dask.array
import h5py
import mrcfile
import nibabel
import numcodecs
import numpy as np
import PIL.Image
import pytest
import tensorstore
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import isovoxel
from inputs import write_n5
from isovoxel.errors import CorruptInputError, InputError, InputUnavailableError
from isovoxel.geometry.grid import Box
from isovoxel.object_store.retries import is_transient
from isovoxel.readers.base import Volume
from isovoxel.readers.open import open_volume
from isovoxel.readers.selection import Selection
from peaks import least_peak
from strategies import boxes, examples

SHAPE = (13, 47, 61)
Make = Callable[[Path, np.ndarray], Any]


def smooth(shape: tuple[int, int, int], dtype: str = "uint16") -> np.ndarray:
    """Return voxels that compress a little, as images do, and differ everywhere."""
    rng = np.random.default_rng(7)
    z, y, x = np.indices(shape, sparse=True)
    return (z * 37 + y * 5 + x * 3 + rng.integers(0, 4, shape)).astype(dtype)


def tiff(**options: Any) -> Make:
    """Return a maker of TIFF files that tifffile writes with these options."""

    def make(folder: Path, array: np.ndarray) -> Path:
        tifffile.imwrite(folder / "a.tif", array, **options)
        return folder / "a.tif"

    return make


def pages(**options: Any) -> Make:
    """Return a maker of TIFF files whose pages are written one by one, as most programs do."""

    def make(folder: Path, array: np.ndarray) -> Path:
        with tifffile.TiffWriter(folder / "a.tif", byteorder=options.get("byteorder")) as writer:
            for plane in array:
                writer.write(plane, contiguous=False, metadata=None, compression=options.get("compression"))
        return folder / "a.tif"

    return make


def slices(planes: int = 1, **options: Any) -> Make:
    """Return a maker of folders of TIFF files of so many planes each."""

    def make(folder: Path, array: np.ndarray) -> Path:
        for z in range(0, len(array), planes):
            tifffile.imwrite(folder / f"z{z}.tif", array[z : z + planes], photometric="minisblack", **options)
        return folder

    return make


def png_slices(folder: Path, array: np.ndarray) -> Path:
    for z, plane in enumerate(array):
        PIL.Image.fromarray(plane).save(folder / f"z{z}.png", compress_level=1)
    return folder


def hdf5(**options: Any) -> Make:
    def make(folder: Path, array: np.ndarray) -> Path:
        with h5py.File(folder / "a.h5", "w") as file:
            file.create_dataset("a", data=array, **options)
        return folder / "a.h5"

    return make


def n5(block: tuple[int, int, int], codec: str = "gzip") -> Make:
    """Return a maker of N5 datasets, which have x first."""
    return lambda folder, array: write_n5(folder / "a.n5", array, block, codec)


def nifti(ending: str = "nii") -> Make:
    """Return a maker of NIfTI files, which have x first."""

    def make(folder: Path, array: np.ndarray) -> Path:
        nibabel.save(nibabel.Nifti1Image(array.T, np.eye(4)), folder / f"a.{ending}")
        return folder / f"a.{ending}"

    return make


def precomputed(folder: Path, array: np.ndarray) -> Path:
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": {"driver": "file", "path": f"{folder}/a"},
        "multiscale_metadata": {"type": "image", "data_type": array.dtype.name, "num_channels": 1},
        "scale_metadata": {
            "size": array.shape[::-1],
            "encoding": "raw",
            "chunk_size": [32, 16, 5],
            "resolution": [1, 1, 2],
        },
    }
    tensorstore.open(spec, create=True).result().write(array.T[..., None]).result()
    return folder / "a"


def by_nrrd(encoding: str = "raw", endian: str = "little") -> Make:
    """Return a maker of NRRD files, which have x first."""

    def make(folder: Path, array: np.ndarray) -> Path:
        fields = {
            "type": {"float32": "float"}.get(array.dtype.name, array.dtype.name),
            "dimension": 3,
            "sizes": " ".join(map(str, array.shape[::-1])),
        }
        fields |= {"encoding": encoding, "endian": endian}
        data = array.astype(array.dtype.newbyteorder("<" if endian == "little" else ">")).tobytes()
        header = "".join(f"{key}: {value}\n" for key, value in fields.items())
        data = gzip.compress(data, 1) if encoding == "gzip" else data
        (folder / "a.nrrd").write_bytes(f"NRRD0004\n{header}\n".encode() + data)
        return folder / "a.nrrd"

    return make


def mrc(folder: Path, array: np.ndarray) -> Path:
    """Make an MRC whose columns are along z and whose sections are along x."""
    with mrcfile.new(folder / "a.mrc") as file:
        file.set_data(np.ascontiguousarray(array.T))
        file.header.mapc, file.header.maps = 3, 1
    return folder / "a.mrc"


def npy(order: str = "C", byteorder: str = "=") -> Make:
    def make(folder: Path, array: np.ndarray) -> Path:
        stored = array.astype(array.dtype.newbyteorder(byteorder))
        np.save(folder / "a.npy", np.asarray(stored, order=order))
        return folder / "a.npy"

    return make


def zarr_array(**options: Any) -> Make:
    def make(folder: Path, array: np.ndarray) -> Path:
        zarr.create_array(folder / "a.zarr", data=array, **options)
        return folder / "a.zarr"

    return make


def ome_zarr(folder: Path, array: np.ndarray) -> Path:
    """Make an OME-Zarr 0.5 image with a time and a channel axis of length 1."""
    group = zarr.create_group(folder / "o.zarr", zarr_format=3)
    axes = [{"name": n, "type": {"t": "time", "c": "channel"}.get(n, "space")} for n in "tczyx"]
    scale = [{"type": "scale", "scale": [1, 1, 2, 1, 1]}]
    datasets = [{"path": "s0", "coordinateTransformations": scale}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    group.create_array("s0", data=array[None, None], chunks=(1, 1, 4, 16, 32))
    return folder / "o.zarr"


def part(make: Make) -> Make:
    """Make a part of a volume of a kind, with other voxels all around it."""

    def made(folder: Path, array: np.ndarray) -> Volume:
        whole = make(folder, np.pad(array, 3, constant_values=7))
        return open_volume(whole, selection=Selection(crop=((3, -3), (3, -3), (3, -3))))

    return made


def channel(*chunks: int) -> Make:
    """Make the second channel of a zarr array, whose chunks have this shape, channel first."""

    def made(folder: Path, array: np.ndarray) -> Volume:
        both = zarr.create_array(
            folder / "c.zarr",
            shape=(2, *array.shape),
            chunks=chunks,
            dtype=array.dtype,
            dimension_names=("c", "z", "y", "x"),
        )
        both[1] = array
        return open_volume(folder / "c.zarr", selection=Selection(channel=1))

    return made


def imagej_in_one_piece(folder: Path, array: np.ndarray) -> Path:
    """Make an ImageJ stack with one directory and all planes behind it, as ImageJ writes beyond 4 GB."""
    big = array.astype(array.dtype.newbyteorder(">"))
    description = f"ImageJ=1.53f\nimages={len(array)}\nslices={len(array)}\nunit=micron\nspacing=2\n"
    tifffile.imwrite(folder / "a.tif", big[0], byteorder=">", description=description, metadata=None, resolution=(5, 5))
    with (folder / "a.tif").open("ab") as file, tifffile.TiffFile(folder / "a.tif") as tif:
        assert tif.pages.first.dataoffsets[0] + big[0].nbytes == (folder / "a.tif").stat().st_size
        file.write(big[1:].tobytes())
    return folder / "a.tif"


def fortran_memory(_: Path, array: np.ndarray) -> np.ndarray:
    """Return the array in Fortran order and the other byte order, in memory."""
    return np.asfortranarray(array.astype(array.dtype.newbyteorder(">")))


MAKERS: dict[str, Make] = {
    "npy": npy(),
    "npy, Fortran order": npy("F"),
    "npy, big-endian": npy(byteorder=">"),
    "npy, Fortran order, big-endian": npy("F", ">"),
    "NumPy array": lambda _, array: array,
    "NumPy array, Fortran order, big-endian": fortran_memory,
    "dask array of unequal chunks": lambda _, a: dask.array.from_array(a, chunks=((2, 11), (40, 7), 61)),
    "open volume": lambda _, array: open_volume(array),
    "part of a zarr": part(zarr_array(chunks=(5, 16, 32))),
    "part of a TIFF": part(tiff(photometric="minisblack", rowsperstrip=7, compression="zstd")),
    "part of a dask array": part(lambda _, a: dask.array.from_array(a, chunks=(8, 20, 30))),
    "channel": channel(1, 5, 16, 32),
    "channel, both in a chunk": channel(2, 5, 16, 32),
    "TIFF in one piece": tiff(photometric="minisblack"),
    "TIFF, big-endian": tiff(photometric="minisblack", byteorder=">"),
    "BigTIFF": tiff(photometric="minisblack", bigtiff=True),
    "ImageJ": tiff(imagej=True, metadata={"axes": "ZYX"}),
    "ImageJ in one piece": imagej_in_one_piece,
    "OME-TIFF": tiff(ome=True, metadata={"axes": "ZYX"}, photometric="minisblack"),
    "OME-TIFF, tiled, deflate": tiff(
        ome=True, metadata={"axes": "ZYX"}, photometric="minisblack", tile=(16, 32), compression="zlib"
    ),
    "TIFF, pages one by one": pages(),
    "TIFF, pages one by one, big-endian": pages(byteorder=">"),
    "TIFF, pages one by one, LZW": pages(compression="lzw"),
    "TIFF, strips": tiff(photometric="minisblack", rowsperstrip=7, compression="zstd"),
    "TIFF, strips, big-endian, predictor": tiff(
        photometric="minisblack", rowsperstrip=7, compression="lzw", predictor=True, byteorder=">"
    ),
    "TIFF, tiles": tiff(photometric="minisblack", tile=(16, 16)),
    "TIFF, volumetric tiles": tiff(photometric="minisblack", tile=(4, 16, 32), compression="zlib", volumetric=True),
    "TIFF slices": slices(metadata=None),
    "TIFF slices, big-endian, LZW": slices(byteorder=">", compression="lzw", metadata=None),
    "TIFF slices of several planes": slices(4),
    "PNG slices": png_slices,
    "zarr v3": zarr_array(chunks=(5, 16, 32)),
    "zarr v3, uncompressed, big-endian": zarr_array(
        chunks=(5, 16, 32), compressors=None, serializer=zarr.codecs.BytesCodec(endian="big")
    ),
    "zarr v3, shards": zarr_array(chunks=(2, 8, 16), shards=(4, 32, 32)),
    "zarr v2": zarr_array(chunks=(5, 16, 32), zarr_format=2),
    "zarr v2, Fortran order": zarr_array(chunks=(5, 16, 32), zarr_format=2, order="F"),
    "zarr array": lambda folder, a: zarr.open_array(zarr_array(chunks=(5, 16, 32))(folder, a), mode="r"),
    "OME-Zarr": ome_zarr,
    "NIfTI": nifti(),
    "NIfTI, gzip": nifti("nii.gz"),
    "NRRD": by_nrrd(),
    "NRRD, gzip, big-endian": by_nrrd("gzip", "big"),
    "MRC, turned": mrc,
    "precomputed": precomputed,
    "N5": n5((5, 16, 32)),
    "N5, raw": n5((5, 16, 32), "raw"),
    "HDF5": hdf5(),
    "HDF5, chunks": hdf5(chunks=(5, 16, 32)),
    "HDF5, shuffle, gzip": hdf5(chunks=(5, 16, 32), compression="gzip", shuffle=True),
    "HDF5, decoded by HDF5": hdf5(chunks=(5, 16, 32), scaleoffset=0),
}


@pytest.fixture(scope="module", params=MAKERS)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Volume, np.ndarray]:
    """Return a volume of every kind, and its voxels."""
    array = smooth(SHAPE)
    return open_volume(MAKERS[request.param](tmp_path_factory.mktemp("in"), array)), array


@settings(max_examples=examples(12), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(box=boxes(SHAPE))
def test_any_box_holds_the_voxels_it_names(opened: tuple[Volume, np.ndarray], box: Box) -> None:
    """Reading a box gives these voxels of the whole, as a new C-contiguous array in native byte order."""
    volume, whole = opened
    read = volume.read(box)
    np.testing.assert_array_equal(read, whole[box.slices])
    assert read.dtype == volume.dtype == np.dtype("uint16")
    assert read.dtype.isnative
    assert read.flags.c_contiguous
    assert read.flags.owndata
    assert read.flags.writeable


def test_a_box_is_read_into_the_array_that_is_given(opened: tuple[Volume, np.ndarray]) -> None:
    """With `out`, reading fills and returns that array; one of another shape, dtype or order is refused."""
    volume, whole = opened
    box = Box((1, 5, 0), (12, 31, 61))
    room = np.full((12, 26, 61), 7, "uint16")
    out = room[:11]
    assert volume.read(box, out) is out
    np.testing.assert_array_equal(out, whole[box.slices])
    assert (room[11] == 7).all()
    assert volume.read(box, out=out) is out
    for wrong in (room, out.view("int16"), out.astype(">u2"), np.asfortranarray(out), room[:, :, ::-1][:11]):
        with pytest.raises(ValueError, match="read into a C-contiguous array"):
            volume.read(box, wrong)


@pytest.mark.sampled(2)
def test_threads_do_not_disturb_each_other(opened: tuple[Volume, np.ndarray]) -> None:
    """Many threads that read at once all get their own voxels."""
    volume, whole = opened
    tiles = list(Box.whole(SHAPE).tiles((4, 20, 25))) * 3
    with ThreadPoolExecutor(8) as pool:
        for box, read in zip(tiles, pool.map(volume.read, tiles), strict=True):
            np.testing.assert_array_equal(read, whole[box.slices])


def test_what_is_read_belongs_to_the_reader(opened: tuple[Volume, np.ndarray]) -> None:
    """Writing into a box that was read changes neither the source nor the next read."""
    volume, whole = opened
    box = Box((1, 2, 3), (5, 9, 40))
    volume.read(box)[...] = 0
    np.testing.assert_array_equal(volume.read(box), whole[box.slices])


def test_chunks_fit_the_volume(opened: tuple[Volume, np.ndarray]) -> None:
    """What is decoded in one go is at least a voxel and at most the whole input; an empty box reads nothing."""
    volume, _ = opened
    assert all(1 <= c <= n for c, n in zip(volume.chunks, volume.whole or SHAPE, strict=True))
    assert volume.read(Box((3, 3, 3), (3, 5, 5))).shape == (0, 2, 2)


@pytest.mark.parametrize(
    "kind", ["PNG slices", "NIfTI", "NIfTI, gzip", "NRRD, gzip, big-endian", "MRC, turned", "N5", "HDF5, shuffle, gzip"]
)
def test_an_input_is_scaled_verified_and_known_again(kind: str, tmp_path: Path) -> None:
    """The job finds nothing to do the second time, and verify finds the input by what the output says of it."""
    array, how = smooth((6, 18, 34)), {"factor": (2, 1, 1), "engine": "exact"}
    (tmp_path / "in").mkdir()
    result = isovoxel.scale(MAKERS[kind](tmp_path / "in", array), tmp_path / "out.zarr", **how)
    assert isovoxel.verify(result.path, samples=50).holds
    assert isovoxel.scale(result.plan.source.identity["path"], result.path, **how).seconds == 0


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int8", "int16", "int32", "float32"])
@pytest.mark.parametrize(
    "kind",
    [
        "npy, big-endian",
        "TIFF, strips",
        "TIFF, big-endian",
        "TIFF slices",
        "zarr v3, shards",
        "HDF5",
        "N5",
        "NIfTI",
        "NRRD",
    ],
)
def test_every_supported_dtype_is_read_exactly(kind: str, dtype: str, tmp_path: Path) -> None:
    """Voxels of every supported dtype come back bit by bit."""
    rng = np.random.default_rng(1)
    array = rng.integers(0, 256, (3, 17, 19 * np.dtype(dtype).itemsize), np.uint8).view(dtype)
    volume = open_volume(MAKERS[kind](tmp_path, array))
    assert volume.dtype == np.dtype(dtype)
    box = Box((1, 2, 3), (3, 17, 18))
    assert volume.read(box).tobytes() == array[box.slices].tobytes()


PRIMES = (29, 251, 383)
LARGE: dict[str, Make] = {
    "npy": npy(),
    "npy, Fortran order, big-endian": npy("F", ">"),
    "dask array": lambda _, a: dask.array.from_array(a, chunks=(17, 157, 211)),
    "part of a zarr": part(zarr_array(chunks=(17, 157, 211))),
    "channel": channel(1, 17, 157, 211),
    "channel, both in a chunk": channel(2, 17, 157, 211),
    "ImageJ": tiff(imagej=True, metadata={"axes": "ZYX"}),
    "TIFF, pages one by one, big-endian": pages(byteorder=">"),
    "TIFF, pages one by one, LZW": pages(compression="lzw"),
    "TIFF, big-endian, predictor": tiff(
        photometric="minisblack", compression="lzw", predictor=True, byteorder=">", rowsperstrip=251
    ),
    "TIFF, tiles": tiff(photometric="minisblack", tile=(128, 256), compression="zlib"),
    "TIFF slices": slices(metadata=None),
    "TIFF slices, big-endian, predictor": slices(metadata=None, byteorder=">", compression="lzw", predictor=True),
    "TIFF slices of several planes": slices(8, compression="zlib"),
    "PNG slices": png_slices,
    "NRRD, gzip, big-endian": by_nrrd("gzip", "big"),
    "MRC, turned": mrc,
    "N5": n5((17, 157, 211)),
    "NIfTI": nifti(),
    "NIfTI, gzip": nifti("nii.gz"),
    "HDF5": hdf5(),
    "HDF5, chunks": hdf5(chunks=(17, 157, 211)),
    "HDF5, shuffle, gzip": hdf5(chunks=(17, 157, 211), compression="gzip", shuffle=True),
    "HDF5, lzf, checksum": hdf5(chunks=(17, 157, 211), compression="lzf", fletcher32=True),
    "HDF5, decoded by HDF5": hdf5(chunks=(17, 157, 211), scaleoffset=0),
    "zarr v3": zarr_array(chunks=(17, 157, 211)),
    "zarr v3, uncompressed, big-endian": zarr_array(
        chunks=(17, 157, 211), compressors=None, serializer=zarr.codecs.BytesCodec(endian="big")
    ),
    "zarr v3, blosc": zarr_array(chunks=(17, 157, 211), compressors=zarr.codecs.BloscCodec()),
    "zarr v3, shards": zarr_array(chunks=(11, 101, 211), shards=(22, 202, 422)),
    "zarr v3, shards, uncompressed": zarr_array(chunks=(11, 101, 211), shards=(22, 202, 422), compressors=None),
    "zarr v3, shards of one chunk": zarr_array(chunks=(17, 157, 211), shards=(17, 157, 211)),
    "zarr v3, many chunks in a shard": zarr_array(chunks=(5, 31, 61), shards=(30, 279, 427)),
    "zarr v3, transposed": zarr_array(chunks=(17, 157, 211), filters=zarr.codecs.TransposeCodec(order=(2, 1, 0))),
    "zarr v3, three codecs": zarr_array(
        chunks=(17, 157, 211),
        serializer=zarr.codecs.BytesCodec(endian="big"),
        compressors=[zarr.codecs.GzipCodec(level=1), zarr.codecs.Crc32cCodec()],
    ),
    "zarr v3, gzip, transposed": zarr_array(
        chunks=(17, 157, 211),
        filters=zarr.codecs.TransposeCodec(order=(2, 1, 0)),
        compressors=zarr.codecs.GzipCodec(level=1),
    ),
    "zarr v3, gzip": zarr_array(chunks=(17, 157, 211), compressors=zarr.codecs.GzipCodec(level=1)),
    "zarr v3, checksum": zarr_array(chunks=(17, 157, 211), compressors=zarr.codecs.Crc32cCodec()),
    "zarr v3, small chunks in shards": zarr_array(chunks=(5, 12, 48), shards=(30, 252, 384)),
    "zarr v3, shards, transposed": zarr_array(
        chunks=(11, 101, 211), shards=(22, 202, 422), filters=zarr.codecs.TransposeCodec(order=(2, 1, 0))
    ),
    "zarr v3, many chunks in a shard, transposed": zarr_array(
        chunks=(5, 31, 61), shards=(30, 279, 427), filters=zarr.codecs.TransposeCodec(order=(2, 1, 0))
    ),
    "zarr v2": zarr_array(chunks=(17, 157, 211), zarr_format=2),
    "zarr v2, filtered": zarr_array(
        chunks=(17, 157, 211), zarr_format=2, filters=[numcodecs.Delta("u2")], compressors=numcodecs.Zlib(1)
    ),
    "zarr v2, Fortran order": zarr_array(chunks=(17, 157, 211), zarr_format=2, order="F"),
    **{
        f"zarr v2, {codec.codec_id}, {order}": zarr_array(
            chunks=(17, 157, 211), zarr_format=2, order=order, compressors=codec
        )
        for codec in (numcodecs.LZ4(), numcodecs.LZMA(preset=6), numcodecs.BZ2(), numcodecs.Blosc(), numcodecs.Zlib(1))
        for order in "CF"
    },
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", LARGE)
def test_reading_holds_no_more_than_it_says(kind: str, tmp_path: Path) -> None:
    """Beside the returned array, no read holds more bytes for a moment than `read_overhead`."""
    source = LARGE[kind](tmp_path, smooth(PRIMES))
    volume = open_volume(source)
    for box in (Box.whole(PRIMES), Box((3, 5, 7), (19, 241, 379)), Box((26, 0, 374), (29, 251, 383))):
        fresh = [volume]  # a reader that has not kept any buffers yet

        def reopen(fresh: list[Volume] = fresh) -> None:
            fresh[0] = open_volume(source)

        most = volume.read_overhead
        read, peak = least_peak(
            lambda box=box, fresh=fresh: fresh[0].read(box), lambda r, most=most: most + r.nbytes, reopen
        )
        assert peak - read.nbytes <= volume.read_overhead
        # And an array that is there already.
        again = lambda box=box, fresh=fresh, read=read: fresh[0].read(box, read)  # noqa: E731
        _, peak = least_peak(again, lambda _, most=most: most, reopen)
        assert peak <= volume.read_overhead


@settings(max_examples=examples(25))
@given(data=st.data())
def test_dask_computes_only_what_a_box_needs(data: st.DataObject) -> None:
    """A box of a dask array computes the chunks that it touches, each once, and no other."""
    computed: list[tuple[int, ...]] = []

    def make(block_info: Any = None) -> np.ndarray:
        computed.append(tuple(block_info[None]["chunk-location"]))
        return np.zeros(block_info[None]["chunk-shape"], "uint8")

    chunks = ((3, 1, 6), (5, 5), (10,))
    array = dask.array.map_blocks(make, chunks=chunks, dtype="uint8", meta=np.empty((0, 0, 0), "uint8"))
    box = data.draw(boxes((10, 10, 10)))
    assert open_volume(array).read(box).shape == box.shape
    edges = [np.cumsum((0, *sizes)) for sizes in chunks]
    touched = [
        {i for i in range(len(e) - 1) if e[i] < stop and e[i + 1] > start}
        for e, start, stop in zip(edges, box.start, box.stop, strict=True)
    ]
    assert len(computed) == len(set(computed)) == np.prod([len(t) for t in touched])
    assert all(i in t for place in computed for i, t in zip(place, touched, strict=True))


# ---- what the system does not give -------------------------------------------------------------------------------


class FailingStore(zarr.storage.LocalStore):
    """A store whose chunks cannot be had, as over a network."""

    error: Exception

    async def get(self, key: str, *args: Any, **options: Any) -> Any:
        """Return metadata, and raise for chunks."""
        if not key.startswith("c/"):
            return await super().get(key, *args, **options)
        raise self.error


class ClientPayloadError(Exception):
    """As aiohttp has it: no `OSError`."""


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (OSError(errno.EIO, "Input/output error"), True),
        (TimeoutError("no answer in 30 s"), True),
        (ClientPayloadError("not all of it came"), True),
        (PermissionError(errno.EACCES, "Permission denied"), False),
    ],
)
def test_what_a_store_does_not_give_is_not_corrupt(error: Exception, tmp_path: Path, *, transient: bool) -> None:
    """What the network does, or the store refuses, is never taken for damage, which could be filled."""
    zarr.create_array(tmp_path / "a", data=np.ones((4, 4, 4), "uint8"))
    store = FailingStore(tmp_path / "a", read_only=True)
    store.error = error
    with pytest.raises(InputError, match=str(error).rpartition("] ")[2]) as raised:
        open_volume(zarr.open_array(store, mode="r")).read(Box.whole((4, 4, 4)))
    assert not isinstance(raised.value, CorruptInputError)
    assert isinstance(raised.value, OSError) == isinstance(error, OSError)
    assert is_transient(raised.value) == transient


@pytest.mark.parametrize("kind", ["zarr", "zarr, cached", "TIFF", "TIFF, strips", "npy"])
def test_what_a_disk_does_not_give_is_not_corrupt(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails once is told as such, and read again it gives what it has."""
    voxels = np.arange(64, dtype="uint8").reshape(4, 4, 4)
    if kind.startswith("zarr"):
        zarr.create_array(tmp_path / "a", data=voxels)
    elif kind == "npy":
        np.save(tmp_path / "a.npy", voxels)
    else:
        compression = "zlib" if "strips" in kind else None
        tifffile.imwrite(tmp_path / "a.tif", voxels, photometric="minisblack", compression=compression)
    volume = open_volume(next(tmp_path.iterdir()))
    read = volume.cached(10**6) if "cached" in kind else volume.read

    def fail(*_: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("os.preadv", fail, raising=False)
        patch.setattr("isovoxel.readers.raw.FileIO", type("Failing", (FileIO,), {"read": fail}))
        with pytest.raises(InputUnavailableError, match="Input/output error") as raised:
            read(Box.whole(voxels.shape))
    assert raised.value.errno == errno.EIO
    assert is_transient(raised.value)
    np.testing.assert_array_equal(read(Box.whole(voxels.shape)), voxels)
