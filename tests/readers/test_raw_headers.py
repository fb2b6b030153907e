"""NRRD, MetaImage and MRC files, as other programs write them, and what is said of those that are not read."""

from __future__ import annotations

import contextlib
import gzip
import pickle
import struct
import warnings
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mrcfile
import nrrd
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isovoxel.errors import CorruptInputError, InputError, InputMissingError, OptionError
from isovoxel.geometry.grid import Box
from isovoxel.readers.base import Volume
from isovoxel.readers.files import EndOfFileError, InputWatch
from isovoxel.readers.open import open_volume
from isovoxel.readers.raw import MOST_MARKS, GzipMarks, GzipStream
from isovoxel.readers.selection import Selection
from strategies import examples

STACK = np.random.default_rng(5).integers(0, 999, (13, 47, 61)).astype("uint16")
SERIES = np.random.default_rng(6).integers(0, 999, (3, 5, 7, 9)).astype("uint16")
SIZE = (2.0, 0.3, 0.2)
DIRECTIONS = {"space dimension": 3, "space directions": np.diag(SIZE[::-1]), "space units": ["um"] * 3}


def by_pynrrd(path: Path, data: np.ndarray, header: dict[str, Any] | None = None, **options: Any) -> Path:
    """Write an array of z, y, x, which the file has as x, y, z."""
    header = {**DIRECTIONS, "space origin": [10, -20, 30.5]} if header is None else header
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of how pynrrd asks for the time
        nrrd.write(str(path), data.T, {"encoding": "raw", **header}, index_order="F", **options)
    return path


def by_mrcfile(path: Path, data: np.ndarray, compression: str | None = None) -> Path:
    """Write an array as a volume."""
    with mrcfile.new(path, compression=compression) as file:
        file.set_data(data)
        file.voxel_size = SIZE[::-1]
        file.header.origin = (10, -20, 30.5)
    return path


def patched_mrc(path: Path, at: int, number: int) -> Path:
    """Write an array as a volume whose header has another number at a byte."""
    header = bytearray(by_mrcfile(path, STACK).read_bytes())
    struct.pack_into("<i", header, at, number)
    path.write_bytes(header)
    return path


def metaimage(path: Path, *lines: str, data: bytes = STACK.tobytes(), file: str = "LOCAL") -> Path:
    """Write a header of these lines, and the voxels behind it or in a file beside it."""
    kept = {line.partition(" = ")[0] for line in lines}
    usual = (
        "ObjectType = Image",
        "NDims = 3",
        "DimSize = 61 47 13",
        "ElementSpacing = 0.2 0.3 2",
        "ElementType = MET_USHORT",
    )
    text = "\n".join([*(line for line in usual if line.partition(" = ")[0] not in kept), *lines])
    header = f"{text}\nElementDataFile = {file}\n".encode()
    path.write_bytes(header + data if file == "LOCAL" else header)
    if file != "LOCAL":
        (path.parent / file).write_bytes(data)
    return path


def nrrd_of(path: Path, *lines: str, data: bytes = STACK.tobytes()) -> Path:
    """Write an NRRD of these lines beside the usual ones."""
    kept = {line.partition(":")[0] for line in lines}
    usual = ("type: uint16", "dimension: 3", "sizes: 61 47 13", "endian: little", "encoding: raw", "spacings: 1 1 2")
    text = "\n".join(["NRRD0004", *(line for line in usual if line.partition(":")[0] not in kept), *lines])
    path.write_bytes(f"{text}\n\n".encode() + data)
    return path


def by_windows(path: Path) -> Path:
    """Let a header begin with a byte order mark, as Windows' editors write it, and MetaImage's with NDims."""
    path.write_bytes(BOM_UTF8 + path.read_bytes().removeprefix(b"ObjectType = Image\n"))
    return path


def whole(volume: Volume) -> np.ndarray:
    return volume.read(Box.whole(volume.shape))


WRITERS: dict[str, Callable[[Path], Path]] = {
    "a.nrrd": lambda path: by_pynrrd(path, STACK),
    "gzip.nrrd": lambda path: by_pynrrd(
        path, STACK, {**DIRECTIONS, "space origin": [10, -20, 30.5], "encoding": "gzip"}
    ),
    "a.nhdr": lambda path: by_pynrrd(path, STACK, detached_header=True),
    "gzip.nhdr": lambda path: by_pynrrd(
        path, STACK, {**DIRECTIONS, "space origin": [10, -20, 30.5], "encoding": "gzip"}, detached_header=True
    ),
    "a.mrc": lambda path: by_mrcfile(path, STACK),
    "a.map.gz": lambda path: by_mrcfile(path, STACK, "gzip"),
    "a.mha": lambda path: metaimage(path, "Offset = 10 -20 30.5", "DistanceUnits = um"),
    "a.mhd": lambda path: metaimage(path, "Offset = 10 -20 30.5", "DistanceUnits = um", file="a.raw"),
    "w.nhdr": lambda path: by_windows(by_pynrrd(path, STACK, detached_header=True)),
    "w.mhd": lambda path: by_windows(metaimage(path, "Offset = 10 -20 30.5", "DistanceUnits = um", file="a.raw")),
    "big.mha": lambda path: metaimage(
        path,
        "Offset = 10 -20 30.5",
        "DistanceUnits = um",
        "ElementByteOrderMSB = True",
        data=STACK.astype(">u2").tobytes(),
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_header_states_size_unit_and_place(name: str, tmp_path: Path) -> None:
    """Fields that count x, y, z become z, y, x; any box of the voxels is read."""
    volume = open_volume(WRITERS[name](tmp_path / name))
    unit = "angstrom" if "m" in name[2:4] and "mh" not in name else "micrometer"
    assert (volume.shape, volume.dtype, volume.unit) == (STACK.shape, STACK.dtype, unit)
    assert (volume.voxel_size, volume.origin) == (pytest.approx(SIZE), (30.5, -20.0, 10.0))
    assert ("gzip" in volume.kind) == ("gz" in name)
    for box in (Box.whole(STACK.shape), Box((1, 7, 3), (12, 46, 61)), Box((12, 46, 60), (13, 47, 61))):
        np.testing.assert_array_equal(volume.read(box), STACK[box.slices])


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_again_is_noticed(name: str, tmp_path: Path) -> None:
    """In the header, and in the file beside it."""
    path = WRITERS[name](tmp_path / name)
    for file in sorted(tmp_path.iterdir()):
        watch = InputWatch(open_volume(path))
        file.write_bytes(file.read_bytes())
        assert watch.is_changed()


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_cut_off_is_told(name: str, tmp_path: Path) -> None:
    """When it is opened, or where the stream ends."""
    path = WRITERS[name](tmp_path / name)
    last = max(tmp_path.iterdir(), key=lambda file: file.stat().st_size)
    last.write_bytes(last.read_bytes()[:-5000])
    if "gz" not in name:
        with pytest.raises(InputError, match=r"is truncated: its voxels take .* 5000 bytes are missing"):
            open_volume(path)
        return
    volume = open_volume(path)
    with pytest.raises(CorruptInputError, match="its compressed stream is cut short"):
        whole(volume)


@pytest.mark.parametrize("name", ["gzip.nrrd", "a.map.gz", "zlib.mha"])
def test_a_wrong_checksum_is_told(name: str, tmp_path: Path) -> None:
    """Whichever of the two formats the stream has, behind a header or not."""
    path = {**WRITERS, "zlib.mha": compressed}[name](tmp_path / name)
    np.testing.assert_array_equal(whole(open_volume(path)), STACK)
    data = bytearray(path.read_bytes())
    data[-5 if "gz" in name else -1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="the checksum that was stored with it"):
        whole(open_volume(path))


def compressed(path: Path) -> Path:
    """Write a MetaImage as ITK compresses it."""
    return metaimage(path, "CompressedData = True", data=zlib.compress(STACK.tobytes()))


def test_simpleitk_writes_what_is_read(tmp_path: Path) -> None:
    """NRRD, MetaImage and MRC, compressed or not, with the size and the place that it was given."""
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is in the extra test-all only")
    image = sitk.GetImageFromArray(STACK)
    image.SetSpacing(SIZE[::-1])
    image.SetOrigin((10, -20, 30.5))
    for name in ("a.nrrd", "a.nhdr", "a.mha", "a.mhd", "a.mrc"):
        for packed in (False, True):
            sitk.WriteImage(image, str(tmp_path / name), useCompression=packed)
            volume = open_volume(tmp_path / name)
            assert volume.voxel_size == pytest.approx(SIZE)
            assert volume.origin == ((30.5, -20.0, 10.0) if name != "a.mrc" else volume.origin)
            np.testing.assert_array_equal(whole(volume), sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name))))


# ---- axes --------------------------------------------------------------------------------------------------------


def test_channels_and_time_points_are_volumes(tmp_path: Path) -> None:
    """By the kinds of NRRD's axes; of a MetaImage's fourth axis nothing is known until it is named."""
    kinds = {"kinds": ["domain", "domain", "domain", "time"], "spacings": [0.2, 0.3, 2, np.nan]}
    volume = open_volume(by_pynrrd(tmp_path / "a.nrrd", SERIES, kinds))
    assert ([axis.name for axis in volume.series], volume.voxel_size) == (["t"], SIZE)
    for t, expected in enumerate(SERIES):
        np.testing.assert_array_equal(volume.read(Box.whole(volume.shape).of(t)), expected)
    one = open_volume(tmp_path / "a.nrrd", selection=Selection(time=2))
    np.testing.assert_array_equal(whole(one), SERIES[2])
    assert one.identity["time"] == 2
    lists = {**kinds, "kinds": ["domain", "domain", "domain", "list"], "encoding": "gzip"}
    channel = open_volume(by_pynrrd(tmp_path / "b.nrrd", SERIES, lists), selection=Selection(channel=1))
    np.testing.assert_array_equal(whole(channel), SERIES[1])
    path = metaimage(tmp_path / "a.mha", "NDims = 4", "DimSize = 9 7 5 3", data=SERIES.tobytes())
    with pytest.raises(InputError, match="name them with --axes"):
        open_volume(path)
    np.testing.assert_array_equal(whole(open_volume(path, selection=Selection(axes="czyx", channel=2))), SERIES[2])
    with pytest.raises(OptionError, match="has 3 channels"):
        open_volume(path, selection=Selection(axes="czyx", channel=3))


def test_a_stack_of_volumes_has_an_axis_without_a_name(tmp_path: Path) -> None:
    """As mrcfile writes one."""
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(SERIES)
    with pytest.raises(InputError, match=r"unnamed 3, z 5, y 7, x 9; name them with --axes"):
        open_volume(tmp_path / "a.mrc")
    np.testing.assert_array_equal(
        whole(open_volume(tmp_path / "a.mrc", selection=Selection(axes="tzyx", time=1))), SERIES[1]
    )


def test_samples_among_each_other_are_refused(tmp_path: Path) -> None:
    """With the axes that were found."""
    mixed = np.ascontiguousarray(np.moveaxis(SERIES, 0, -1))
    kinds = {"kinds": ["vector", "domain", "domain", "domain"], "spacings": [np.nan, 1, 1, 2]}
    for path in (
        by_pynrrd(tmp_path / "a.nrrd", mixed, kinds),
        metaimage(tmp_path / "a.mha", "DimSize = 9 7 5", "ElementNumberOfChannels = 3", data=mixed.tobytes()),
    ):
        with pytest.raises(InputError, match=r"other voxels between those of a plane .* are z, y, x, c\); save its"):
            open_volume(path)


@pytest.mark.parametrize("mapped", [(3, 2, 1), (2, 1, 3), (3, 1, 2)])
def test_mrc_sections_may_be_along_another_axis(mapped: tuple[int, int, int], tmp_path: Path) -> None:
    """Columns, rows and sections are turned into z, y, x, and the cell's sizes belong to x, y, z."""
    order = ["xyz"[axis - 1] for axis in mapped]
    path = by_mrcfile(tmp_path / "a.mrc", STACK.transpose(*("zyx".index(axis) for axis in order[::-1])).copy())
    with mrcfile.open(path, "r+") as file:
        file.header.mapc, file.header.mapr, file.header.maps = mapped
        file.header.mx, file.header.my, file.header.mz = STACK.shape[::-1]
        file.header.cella = tuple(n * size for n, size in zip(STACK.shape[::-1], SIZE[::-1], strict=True))
    volume = open_volume(path)
    assert (volume.shape, volume.voxel_size) == (STACK.shape, pytest.approx(SIZE))
    assert f"its axes {', '.join(order[::-1])} are turned into z, y, x" in " ".join(volume.notes)
    for box in (Box.whole(STACK.shape), Box((1, 7, 3), (12, 46, 61))):
        np.testing.assert_array_equal(volume.read(box), STACK[box.slices])


def test_turned_axes_keep_the_order_of_the_file(tmp_path: Path) -> None:
    """And a note says so; the lengths of the directions are the voxel's."""
    turned = {**DIRECTIONS, "space directions": np.diag([-0.2, 0.3, 2]), "space origin": [1, 2, 3]}
    for path in (
        by_pynrrd(tmp_path / "a.nrrd", STACK, turned),
        metaimage(tmp_path / "a.mha", "TransformMatrix = 0 1 0 1 0 0 0 0 1", "Offset = 1 2 3"),
    ):
        volume = open_volume(path)
        assert (volume.voxel_size, volume.origin) == (SIZE, (0, 0, 0))
        assert "turns or flips the axes" in volume.notes[0]
    assert open_volume(by_pynrrd(tmp_path / "b.nrrd", STACK[0], {"spacings": [0.5, 0.5]})).voxel_size == (0.5, 0.5, 0.5)


# ---- bytes and types ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"]
)
def test_types_are_those_of_the_header(dtype: str, tmp_path: Path) -> None:
    """In either byte order; float64 is read as float32."""
    data = (STACK % 100).astype(dtype)
    for order in ("little", "big"):
        stored = data.astype(np.dtype(dtype).newbyteorder("<" if order == "little" else ">"))
        volume = open_volume(by_pynrrd(tmp_path / "a.nrrd", stored, {"spacings": [1, 1, 2], "endian": order}))
        assert volume.dtype == ("float32" if dtype == "float64" else dtype)
        np.testing.assert_array_equal(whole(volume), data)


@pytest.mark.parametrize("yes", ["True", "true", "T", "1"])
def test_metaimage_says_yes_as_metaio_reads_it(yes: str, tmp_path: Path) -> None:
    """By the first letter: of the byte order, whether voxels are compressed, and whether they are binary."""
    big = STACK.astype(">u2").tobytes()
    for key, data in (("ElementByteOrderMSB", big), ("BinaryDataByteOrderMSB", big)):
        volume = open_volume(metaimage(tmp_path / "a.mha", f"{key} = {yes}", f"BinaryData = {yes}", data=data))
        np.testing.assert_array_equal(whole(volume), STACK)
    packed = metaimage(tmp_path / "b.mha", f"CompressedData = {yes}", data=zlib.compress(STACK.tobytes()))
    np.testing.assert_array_equal(whole(open_volume(packed)), STACK)


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "float32", "float16"])
def test_modes_of_mrc(dtype: str, tmp_path: Path) -> None:
    """Those of numbers that are real; in big-endian files too, and behind an extended header."""
    data = (STACK % 100).astype(dtype)
    path = by_mrcfile(tmp_path / "a.mrc", data)
    np.testing.assert_array_equal(whole(open_volume(path)), data)
    with mrcfile.open(path, "r+") as file:
        file.set_extended_header(np.arange(7, dtype="u1"))
    np.testing.assert_array_equal(whole(open_volume(path)), data)
    little = by_mrcfile(tmp_path / "b.mrc", data).read_bytes()
    words = np.frombuffer(little[:1024], "<u4").byteswap().tobytes()
    big = words[:208] + b"MAP \x11\x11\0\0" + words[216:]
    (tmp_path / "c.mrc").write_bytes(big + data.astype(np.dtype(dtype).newbyteorder(">")).tobytes())
    volume = open_volume(tmp_path / "c.mrc")
    assert volume.voxel_size == pytest.approx(SIZE)
    np.testing.assert_array_equal(whole(volume), data)


def test_imod_says_what_its_bytes_and_its_origin_are(tmp_path: Path) -> None:
    """Bytes are unsigned unless a flag says otherwise, and the origin of older files has the other sign."""
    data = STACK.astype("uint8")
    path = by_mrcfile(tmp_path / "a.mrc", data.view("int8"))
    for flags, dtype, origin in ((0, "uint8", (0, 0, 0)), (5, "int8", (30.5, -20, 10)), (4, "uint8", (30.5, -20, 10))):
        header = bytearray(path.read_bytes())
        struct.pack_into("<2i", header, 152, 1146047817, flags)
        path.write_bytes(header)
        volume = open_volume(path)
        assert (volume.dtype, volume.origin) == (dtype, origin)
        assert any("IMOD's sign" in note for note in volume.notes) == (flags == 0)
        np.testing.assert_array_equal(whole(volume), data.view(dtype))


def test_voxels_at_the_end_of_their_file(tmp_path: Path) -> None:
    """NRRD's byte skip and MetaImage's HeaderSize of -1, behind whatever another program wrote before."""
    data = b"a header of others" + STACK.tobytes()
    for path in (
        metaimage(tmp_path / "a.mhd", "HeaderSize = -1", data=data, file="a.raw"),
        metaimage(tmp_path / "b.mhd", "HeaderSize = 18", data=data, file="b.raw"),
        nrrd_of(tmp_path / "a.nrrd", "byte skip: -1", data=data),
        nrrd_of(tmp_path / "b.nrrd", "byte skip: 18", data=data),
        nrrd_of(tmp_path / "c.nrrd", "byte skip: 18", "encoding: gz", data=gzip.compress(data)),
    ):
        np.testing.assert_array_equal(whole(open_volume(path)), STACK)


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a.nrrd": (
        lambda path: nrrd_of(path, "encoding: bzip2"),
        "encoded as 'bzip2'; save it with the encoding raw or gzip",
    ),
    "k.nrrd": (lambda path: nrrd_of(path, "encoding: ascii", "endian: "), "encoded as 'ascii'; save it with the"),
    "b.nrrd": (lambda path: nrrd_of(path, "type: block"), "its type is 'block', which has no voxels of numbers"),
    "c.nrrd": (lambda path: nrrd_of(path, "endian: "), "does not say in which byte order"),
    "d.nrrd": (lambda path: nrrd_of(path, "sizes: 61 -47 13"), "its sizes are not two or more whole numbers above 0"),
    "e.nrrd": (lambda path: nrrd_of(path, "data file: LIST"), "its voxels lie in several files; save it as one .nrrd"),
    "f.nrrd": (lambda path: nrrd_of(path, "data file: ../secret"), "'../secret', which is not in its folder; move it"),
    "g.nrrd": (lambda path: nrrd_of(path, "line skip: 2"), r"skips lines before its voxels \(line skip\)"),
    "h.nrrd": (lambda path: nrrd_of(path, "sizes: 61 x 13"), "could not convert string to float: 'x'"),
    "i.nrrd": (
        lambda path: nrrd_of(path, "byte skip: -1", "encoding: gz"),
        "are the end of a compressed file; save it raw",
    ),
    "j.nrrd": (lambda path: nrrd_of(path, "byte skip: -1", data=b"1"), "has fewer bytes than its voxels"),
    "l.nrrd": (lambda path: nrrd_of(path, "byte skip: -2"), "it skips -2 bytes before its voxels"),
    "a.mha": (lambda path: metaimage(path, "BinaryData = False"), "written as text"),
    "b.mha": (lambda path: metaimage(path, "ElementType = MET_STRING"), "its ElementType is 'MET_STRING', which"),
    "c.mha": (lambda path: metaimage(path, "NDims = 4"), "its NDims is 4, and DimSize has 3 numbers"),
    "d.mha": (lambda path: metaimage(path, file="LIST"), "its voxels lie in several files"),
    "e.mha": (lambda path: metaimage(path, "HeaderSize = -7"), "it skips -7 bytes before its voxels"),
    "a.mrc": (
        lambda path: by_mrcfile(path, STACK.astype("complex64")),
        "holds complex64, which isovoxel does not scale",
    ),
    "b.mrc": (lambda path: patched_mrc(path, 92, -1), "its extended header has -1 bytes"),
    "c.mrc": (lambda path: patched_mrc(path, 92, -1025), "its extended header has -1025 bytes"),
    "d.mrc": (lambda path: patched_mrc(path, 12, 16), "its mode is 16, RGB"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_one_sentence(name: str, tmp_path: Path) -> None:
    make, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        open_volume(make(tmp_path / name))


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    path = metaimage(tmp_path / "a.mhd", file="a.raw")
    (tmp_path / "a.raw").unlink()
    with pytest.raises(InputMissingError, match=r"a.raw, which holds the voxels of .*a.mhd, is not there"):
        open_volume(path)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.mrc"])
def test_a_broken_header_is_one_sentence(name: str, tmp_path: Path) -> None:
    """Wherever it ends, and whatever single byte of it is another."""
    data = WRITERS[name](tmp_path / name).read_bytes()
    rng = np.random.default_rng(1)
    for cut in (*range(16, 300, 40), 1023):
        for changed in (data[:cut], data[: cut - 1] + bytes([int(rng.integers(256))]) + data[cut:]):
            (tmp_path / name).write_bytes(changed)
            with contextlib.suppress(InputError):
                whole(open_volume(tmp_path / name))


# ---- the middle of a gzip file ---------------------------------------------------------------------------------------


DATA = np.random.default_rng(5).integers(0, 40, 3_000_000, np.uint8).tobytes()


@pytest.fixture(scope="module", params=["one member", "many members"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a gzip file in one piece, or in pieces as bgzip writes them, with an empty one at its end."""
    file = tmp_path_factory.mktemp("gz") / "a.gz"
    step = len(DATA) if request.param == "one member" else 65_280
    members = [gzip.compress(DATA[i : i + step], 1) for i in range(0, len(DATA), step)]
    file.write_bytes(b"".join(members) + gzip.compress(b""))
    return file


def read(stream: GzipStream, start: int, count: int) -> bytes:
    buffer = bytearray(count)
    done = 0
    stream.seek(start)
    while done < count:
        done += stream.readinto(memoryview(buffer)[done:])
    return bytes(buffer)


@settings(max_examples=examples(30), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    spans=st.lists(st.tuples(st.integers(0, len(DATA) - 1), st.integers(0, 300_000)), min_size=1, max_size=5),
    spacing=st.sampled_from([65_280, 100_003, 1_000_000, 5_000_000]),
)
def test_any_bytes_are_read_in_any_order(path: Path, spans: list[tuple[int, int]], spacing: int) -> None:
    """Back and forth, in one stream and in others that share its marks."""
    marks = GzipMarks(len(DATA), spacing)
    with marks.open("a", str(path)) as stream:
        for start, count in spans:
            end = min(len(DATA), start + count)
            assert read(stream, start, end - start) == DATA[start:end]
            with marks.open("a", str(path)) as other:
                assert read(other, start, end - start) == DATA[start:end]


def test_a_second_read_begins_at_a_mark(path: Path) -> None:
    """What lies before it is not read again, neither from the file nor by the decompressor."""
    marks = GzipMarks(len(DATA), 100_000)
    with marks.open("a", str(path)) as stream:
        assert read(stream, len(DATA) - 10, 10) == DATA[-10:]
    with marks.open("a", str(path)) as stream:
        stream.seek(2_950_000)
        assert marks.before(2_950_000).position == 2_900_000
        began = marks.before(2_950_000).offset
        assert began > 0.9 * path.stat().st_size


def test_marks_are_few_however_long_the_file() -> None:
    """Their memory does not grow with the volume."""
    for total in (1, 10**6, 10**10, 10**15):
        assert total / GzipMarks(total).spacing <= MOST_MARKS


def test_another_process_makes_marks_of_its_own() -> None:
    """Decompressors cannot be sent."""
    marks = pickle.loads(pickle.dumps(GzipMarks(10**10)))  # noqa: S301 - it is our own
    assert marks.spacing == GzipMarks(10**10).spacing


def test_the_end_is_an_error(path: Path) -> None:
    with GzipMarks(len(DATA)).open("a", str(path)) as stream, pytest.raises(EndOfFileError, match="cut short"):
        read(stream, len(DATA) - 5, 6)
