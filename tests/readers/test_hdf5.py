"""Datasets of HDF5 files, and Imaris images, which are HDF5 too."""

from __future__ import annotations

import json
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import isovoxel
from isovoxel.errors import CorruptInputError, InputError, InputMissingError
from isovoxel.geometry.grid import Box
from isovoxel.metadata.series import Channel, SeriesAxis
from isovoxel.readers.hdf5_reader import Hdf5Reader
from isovoxel.readers.open import open_volume
from isovoxel.readers.selection import Selection

STACK = np.random.default_rng(3).integers(0, 999, (13, 47, 61)).astype("uint16")
CHUNKS = (5, 16, 32)


def write(path: Path, data: np.ndarray = STACK, inner: str = "data", **options: Any) -> Path:
    """Write a dataset, and whatever attributes are given."""
    attributes = options.pop("attributes", {})
    with h5py.File(path, "a") as file:
        file.create_dataset(inner, data=data, **options).attrs.update(attributes)
    return path


def imaris(path: Path, channels: int = 1, points: int = 1, **changes: Any) -> Path:
    """Write an Imaris file as its description has it: padded, text as arrays of letters, several levels."""

    def letters(text: str) -> np.ndarray:
        return np.array([c.encode() for c in text], "S1")

    info = {"Unit": "um", "X": "61", "Y": "47", "Z": "13"}
    info |= {"ExtMin0": "100", "ExtMin1": "-10", "ExtMin2": "5", "ExtMax0": "130.5", "ExtMax1": "13.5", "ExtMax2": "31"}
    with h5py.File(path, "w") as file:
        file.attrs["ImarisDataSet"] = letters("ImarisDataSet")
        file.create_group("DataSetInfo/Image").attrs.update({k: letters(v) for k, v in (info | changes).items()})
        for level, step in enumerate((1, 2)):
            image = STACK[::step, ::step, ::step]
            padded = np.zeros([-(-n // 16) * 16 for n in image.shape], "uint16")
            padded[: image.shape[0], : image.shape[1], : image.shape[2]] = image
            for point in range(points):
                for channel in range(channels):
                    group = file.create_group(f"DataSet/ResolutionLevel {level}/TimePoint {point}/Channel {channel}")
                    sizes = zip("ZYX", image.shape, strict=True)
                    group.attrs.update({f"ImageSize{axis}": letters(str(n)) for axis, n in sizes})
                    group.create_dataset("Data", data=padded + channel, chunks=(8, 16, 16), compression="gzip")
                    group.create_dataset("Histogram", data=np.zeros(256, "uint64"))
    return path


def test_the_only_volume_of_a_file_is_found(tmp_path: Path) -> None:
    """Without a path, the one dataset of three axes is taken, whatever lies beside it; with a path, that one."""
    path = write(tmp_path / "a.h5", inner="deep/er/image", attributes={"element_size_um": (2.0, 0.5, 0.25)})
    write(path, np.arange(5), "deep/numbers")
    for name in (str(path), f"{path}:/deep/er/image", f"{path}:/deep", f"{path}:/"):
        volume = open_volume(name)
        assert volume.name == name
        assert volume.kind == "HDF5 dataset"
        assert (volume.voxel_size, volume.unit) == ((2.0, 0.5, 0.25), "micrometer")
        assert volume.sources["voxel size"] == "attribute element_size_um"
        assert volume.identity["path"] == f"{path}:/deep/er/image"
        np.testing.assert_array_equal(volume.read(Box.whole(STACK.shape)), STACK)


def test_several_datasets_are_listed(tmp_path: Path) -> None:
    """Which one is meant is the user's to say."""
    path = write(tmp_path / "a.h5", inner="raw")
    write(path, inner="labels")
    with pytest.raises(InputError, match=r"2 datasets.*/labels \(13 x 47 x 61\), /raw.*as in a.h5:/labels"):
        open_volume(path)
    with pytest.raises(InputMissingError, match="the file has /labels, /raw"):
        open_volume(f"{path}:/rwa")
    with pytest.raises(InputMissingError, match="the file has /labels, /raw"):
        open_volume(f"{path}:/raw/deeper")
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file["flat"] = STACK[0]
    with pytest.raises(InputError, match=r"no 3-D dataset: /flat \(47 x 61\)"):
        open_volume(tmp_path / "none.h5")
    h5py.File(tmp_path / "empty.h5", "w").close()
    with pytest.raises(InputError, match="without a dataset"):
        open_volume(tmp_path / "empty.h5")


@pytest.mark.parametrize(
    ("attributes", "size", "origin", "unit"),
    [
        ({"resolution": (40, 4, 4), "offset": (80, 8, 4), "units": "nm"}, (40, 4, 4), (80, 8, 4), "nanometer"),
        ({"voxel_size": (40, 4, 4), "units": ["nm", "nm", "um"]}, (0.04, 0.004, 4), (0, 0, 0), "micrometer"),
        ({"resolution": (40, 4, 4)}, (40, 4, 4), (0, 0, 0), None),
        ({"element_size_um": "fine"}, None, (0, 0, 0), None),
        ({"element_size_um": (1, 2)}, None, (0, 0, 0), None),
        ({"element_size_um": (1, 0, np.nan)}, None, (0, 0, 0), None),
        ({}, None, (0, 0, 0), None),
    ],
)
def test_attributes_state_the_voxel_size(attributes: Any, size: Any, origin: Any, unit: Any, tmp_path: Path) -> None:
    """What programs write is understood, and what makes no sense leaves the size unknown."""
    volume = open_volume(write(tmp_path / "a.h5", attributes=attributes))
    assert volume.voxel_size == (None if size is None else pytest.approx(size))
    assert (volume.origin, volume.unit) == (origin, unit)
    assert bool(volume.missing) == (size is None)


@pytest.mark.parametrize(
    ("root", "group", "level", "size"),
    [
        ({}, {"resolution": (2, 0.5, 0.5)}, {}, None),
        ({}, {"resolution": (2, 0.5, 0.5)}, {"downsamplingFactors": (2, 2, 1)}, None),
        ({}, {}, {"resolution": (2, 0.5, 0.5), "downsamplingFactors": (2, 2, 1)}, None),
        ({}, {"element_size_um": (2, 0.5, 0.5)}, {}, None),
        ({}, {}, {"element_size_um": (2, 1, 1), "downsamplingFactors": (2, 2, 1)}, (2, 1, 1)),
        ({"n5": "2.5.1"}, {"resolution": (0.5, 0.5, 2)}, {"downsamplingFactors": (2, 2, 1)}, (2, 1, 1)),
        (
            {"n5": "2.5.1"},
            {"pixelResolution": '{"unit": "um", "dimensions": [0.5, 0.5, 2]}', "scales": "[[1, 1, 1], [2, 2, 1]]"},
            {},
            (2, 1, 1),
        ),
        ({"n5": "2.5.1"}, {"resolution": (0.5, 0.5, 2)}, {}, None),
    ],
)
def test_a_coarser_level_has_its_own_voxel_size(root: Any, group: Any, level: Any, size: Any, tmp_path: Path) -> None:
    """What its group says is the finest level's, and N5's libraries write x first into HDF5 too."""
    path = write(tmp_path / "a.h5", inner="raw/s0")
    write(path, STACK[:, ::2, ::2], "raw/s1", attributes=level)
    with h5py.File(path, "r+") as file:
        file.attrs.update(root)
        file["raw"].attrs.update(group)
    volume = open_volume(f"{path}:/raw/s1")
    assert volume.voxel_size == size
    assert bool(volume.missing) == (size is None)
    assert open_volume(f"{path}:/raw/s0").voxel_size == ((2, 0.5, 0.5) if group else None)


def test_axes_have_the_names_that_the_file_gives(tmp_path: Path) -> None:
    """Axes of length 1 go, by ilastik's tags, by HDF5's labels or without a name; channels are refused."""
    tags = json.dumps({"axes": [{"key": key} for key in "tzyxc"]})
    path = write(tmp_path / "a.h5", STACK[None, ..., None], attributes={"axistags": tags}, chunks=(1, *CHUNKS, 1))
    np.testing.assert_array_equal(open_volume(path).read(Box.whole(STACK.shape)), STACK)
    assert open_volume(path).sources["axes"] == "axistags"
    path = write(tmp_path / "b.h5", STACK[None])
    np.testing.assert_array_equal(open_volume(path).read(Box.whole(STACK.shape)), STACK)
    path = write(tmp_path / "c.h5", np.stack([STACK, STACK]))
    with h5py.File(path, "a") as file:
        for dimension, label in zip(file["data"].dims, "czyx", strict=True):
            dimension.label = label
    with pytest.raises(InputError, match="2 channels"):
        open_volume(path)


def test_a_user_block_is_passed_over(tmp_path: Path) -> None:
    """HDF5 may begin behind bytes of the user's, and is then read through HDF5."""
    for name, options in (("a.h5", {}), ("b.h5", {"chunks": CHUNKS, "compression": "gzip"})):
        with h5py.File(tmp_path / name, "w", userblock_size=1024) as file:
            file.create_dataset("a", data=STACK, **options)
        np.testing.assert_array_equal(open_volume(tmp_path / name).read(Box.whole(STACK.shape)), STACK)


# ---- Imaris ------------------------------------------------------------------------------------------------------


def test_an_imaris_image_is_cut_and_placed(tmp_path: Path) -> None:
    """The padding goes, the extents are the outer faces of the voxels, and the finest level is read."""
    volume = open_volume(imaris(tmp_path / "a.ims"))
    assert volume.kind == "Imaris"
    assert volume.shape == STACK.shape
    assert volume.voxel_size == pytest.approx((2.0, 0.5, 0.5))
    assert volume.origin == pytest.approx((6.0, -9.75, 100.25))
    assert volume.unit == "micrometer"
    np.testing.assert_array_equal(volume.read(Box.whole(STACK.shape)), STACK)


@pytest.mark.parametrize("said", [None, b"x"])
def test_an_imaris_channel_without_a_size_has_that_of_the_image(said: bytes | None, tmp_path: Path) -> None:
    """Or its padding would be voxels, and each of them smaller than it is."""
    path = imaris(tmp_path / "a.ims")
    with h5py.File(path, "r+") as file:
        attributes = file["DataSet/ResolutionLevel 0/TimePoint 0/Channel 0"].attrs
        for axis in "XYZ":
            del attributes[f"ImageSize{axis}"]
            if said is not None:
                attributes[f"ImageSize{axis}"] = np.array([said])
    volume = open_volume(path)
    assert volume.shape == STACK.shape
    assert volume.voxel_size == pytest.approx((2.0, 0.5, 0.5))


def test_a_channel_of_imaris_is_named_by_its_path(tmp_path: Path) -> None:
    """Which reads it at its own level."""
    path = imaris(tmp_path / "a.ims", channels=2)
    volume = open_volume(f"{path}:/DataSet/ResolutionLevel 1/TimePoint 0/Channel 1/Data")
    assert volume.voxel_size == pytest.approx((26 / 7, 23.5 / 24, 30.5 / 31))
    np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), STACK[::2, ::2, ::2] + 1)
    with pytest.raises(InputMissingError, match="has no DataSet/ResolutionLevel 0/TimePoint 0/Channel 9/Data"):
        open_volume(f"{path}:/DataSet/ResolutionLevel 0/TimePoint 0/Channel 9")


def test_all_of_imaris_are_a_series(tmp_path: Path) -> None:
    """Time points and channels, which keep names and colours; one of them can be chosen, and is verified."""
    path = imaris(tmp_path / "a.ims", channels=2, points=3)
    with h5py.File(path, "a") as file:
        for channel, (name, color) in enumerate((("DAPI", "0.000 0.000 1.000"), ("GFP", "0.0 1.0 0.0"))):
            attributes = {"Name": name, "Color": color}
            letters = {key: np.array([c.encode() for c in text], "S1") for key, text in attributes.items()}
            file.create_group(f"DataSetInfo/Channel {channel}").attrs.update(letters)
        for point in range(3):
            for channel in range(2):
                data = file[f"DataSet/ResolutionLevel 0/TimePoint {point}/Channel {channel}/Data"]
                data[...] = data[...] + 10 * point
    volume = open_volume(path)
    assert volume.series == (SeriesAxis("t", 3), SeriesAxis("c", 2))
    assert volume.channels == (Channel("DAPI", "0000FF"), Channel("GFP", "00FF00"))
    whole = Box.whole(STACK.shape)
    for index in range(6):
        expected = STACK + 10 * (index // 2) + index % 2
        np.testing.assert_array_equal(volume.read(whole.of(index)), expected)
    isovoxel.scale(path, tmp_path / "out.zarr", factor=(2, 1, 1), engine="exact", time=2)
    assert isovoxel.verify(tmp_path / "out.zarr", samples=20).holds
    chosen = open_volume(path, selection=Selection(channel=1, time=2))
    assert (chosen.series, chosen.channels) == ((), (Channel("GFP", "00FF00"),))
    np.testing.assert_array_equal(chosen.read(whole), STACK + 21)
    with h5py.File(path, "a") as file:
        del file["DataSet/ResolutionLevel 0/TimePoint 1"]
    with pytest.raises(InputError, match="TimePoint groups are not numbered from 0 on"):
        open_volume(path)


def test_an_imaris_file_that_contradicts_itself(tmp_path: Path) -> None:
    """Extents that make no sense leave the size unknown; an image larger than its array is refused."""
    volume = open_volume(imaris(tmp_path / "a.ims", ExtMax2="wide"))
    assert volume.voxel_size is None
    assert "Imaris' DataSetInfo has no extent for z" in volume.missing
    path = imaris(tmp_path / "b.ims")
    with h5py.File(path, "a") as file:
        file["DataSet/ResolutionLevel 0/TimePoint 0/Channel 0"].attrs["ImageSizeX"] = np.array([b"9", b"9"], "S1")
    with pytest.raises(InputError, match="contradicts itself"):
        open_volume(path)


# ---- what is not to be trusted -----------------------------------------------------------------------------------


def damaged(path: Path, data: bytes, **options: Any) -> Path:
    """Write a dataset, and other bytes in place of its chunk (1, 1, 1); the rest of the file stays."""
    write(path, chunks=CHUNKS, **options)
    with h5py.File(path, "a") as file:
        file["data"].id.write_direct_chunk((5, 16, 32), data)
    return path


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (b"nothing encoded", {"compression": "gzip"}),
        (zlib.compress(bytes(20_000_000)), {"compression": "gzip"}),
        (zlib.compress(bytes(100)), {"compression": "gzip"}),
        (bytes(50), {"compression": "lzf"}),
        (bytes(5120) + b"torn", {"fletcher32": True}),
        (b"ab", {"fletcher32": True}),
        (bytes(9), {"shuffle": True}),
        (b"nothing encoded", {"scaleoffset": 0}),
    ],
)
def test_a_damaged_chunk_is_named_and_takes_no_memory(data: bytes, options: dict[str, Any], tmp_path: Path) -> None:
    """Whatever a chunk's bytes claim, it is named, and never decoded beyond its size."""
    volume = open_volume(damaged(tmp_path / "a.h5", data, **options))
    box = Box((0, 0, 32), (13, 47, 61))
    tracemalloc.start()
    try:
        with pytest.raises(CorruptInputError, match=r"chunk \(1, 1, 1\)") as raised:
            volume.read(box)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
    assert (raised.value.start, raised.value.stop) == ((5, 16, 32), (10, 32, 61))
    np.testing.assert_array_equal(volume.read(Box((0, 0, 0), (13, 16, 61))), STACK[:, :16])


def test_no_link_leads_to_another_file(tmp_path: Path) -> None:
    """External links, virtual datasets and external storage are refused, for they read what nobody named."""
    write(tmp_path / "secret.h5")
    STACK.tofile(tmp_path / "secret.raw")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["link"] = h5py.ExternalLink("secret.h5", "/data")
        file["soft"] = h5py.SoftLink("/link")
        layout = h5py.VirtualLayout(STACK.shape, "uint16")
        layout[...] = h5py.VirtualSource("secret.h5", "data", STACK.shape)
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("external", STACK.shape, "uint16", external=[("secret.raw", 0, STACK.nbytes)])
    for inner, why in (
        ("link", "leads to another file, 'secret.h5'"),
        ("soft", "has its voxels in other files"),
        ("virtual", "has its voxels in other files"),
        ("external", "has its voxels in other files"),
    ):
        with pytest.raises(InputError, match=why):
            open_volume(f"{tmp_path}/a.h5:/{inner}")


def test_a_filter_that_is_not_installed_is_named(tmp_path: Path) -> None:
    """Before a job relies on it."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk(CHUNKS)
        properties.set_filter(32_001, h5py.h5z.FLAG_OPTIONAL, (1,))
        space = h5py.h5s.create_simple(STACK.shape)
        h5py.h5d.create(file.id, b"a", h5py.h5t.NATIVE_UINT16, space, properties)
    with pytest.raises(InputError, match="filter 32001, which is not installed here"):
        open_volume(tmp_path / "a.h5")


# ---- chunks that are kept ----------------------------------------------------------------------------------------


def test_kept_chunks_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for all of them, threads that need the same chunks decode each once; without, the bits are the same."""
    volume = open_volume(write(tmp_path / "a.h5", chunks=CHUNKS, compression="gzip", shuffle=True))
    assert volume.cached is not None
    decoded = []
    original = Hdf5Reader._decode_chunk

    def counted(self: Hdf5Reader, dataset: Any, place: tuple[int, int, int], out: np.ndarray) -> bool:
        decoded.append(place)
        return original(self, dataset, place, out)

    monkeypatch.setattr(Hdf5Reader, "_decode_chunk", counted)
    tiles = list(Box.whole(STACK.shape).tiles((3, 20, 25))) * 3
    for capacity in (10**7, 12_000, 0):
        read = volume.cached(capacity)
        with ThreadPoolExecutor(8) as pool:
            for box, found in zip(tiles, pool.map(read, tiles), strict=True):
                np.testing.assert_array_equal(found, STACK[box.slices])
        if capacity == 10**7:
            assert len(decoded) == len(set(decoded)) == 3 * 3 * 2
    assert len(decoded) > 100


def test_a_damaged_chunk_is_not_kept(tmp_path: Path) -> None:
    """Every thread that waits for it hears of it, and so does the next."""
    volume = open_volume(damaged(tmp_path / "a.h5", b"nothing encoded", compression="gzip"))
    assert volume.cached is not None
    read = volume.cached(10**7)
    box = Box((5, 16, 32), (10, 32, 61))
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(read, box) for _ in range(16)]:
            with pytest.raises(CorruptInputError, match=r"chunk \(1, 1, 1\)"):
                future.result()
    np.testing.assert_array_equal(read(Box((0, 0, 0), (13, 16, 61))), STACK[:, :16])


def test_a_file_that_is_another_by_now_is_told(tmp_path: Path) -> None:
    """Not as damage, which could be filled."""
    volume = open_volume(write(tmp_path / "a.h5", chunks=CHUNKS))
    (tmp_path / "a.h5").unlink()
    with pytest.raises(InputError, match=r"can no longer be read: .*No such file"):
        volume.read(Box.whole(STACK.shape))
    write(tmp_path / "a.h5", inner="other")
    with pytest.raises(InputError, match="can no longer be read") as raised:
        volume.read(Box.whole(STACK.shape))
    assert not isinstance(raised.value, CorruptInputError)
