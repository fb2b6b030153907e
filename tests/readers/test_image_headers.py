"""Strips and tiles that are images of their own: their size is known before they are decoded."""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from isovoxel.errors import CorruptInputError
from isovoxel.geometry.grid import Box
from isovoxel.readers.open import open_volume
from isovoxel.readers.tiff_reader import header_of


def zstd_of_unknown_size() -> bytes:
    """Return 36 million zeros whose frame does not say how many there are: blocks of one repeated byte."""
    block = (1 << 17) << 3 | 0b010  # the length, and that it is a repetition
    last = block | 1
    blocks = [block.to_bytes(3, "little") + b"\0"] * 274 + [last.to_bytes(3, "little") + b"\0"]
    return b"\x28\xb5\x2f\xfd\0\x88" + b"".join(blocks)


@contextmanager
def peak_of_memory() -> Iterator[Callable[[], int]]:
    """Measure by how many bytes the memory of this process grew at most."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("only Linux tells a process' peak")

    def of(key: str) -> int:
        return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(key))

    Path("/proc/self/clear_refs").write_text("5")
    before = of("VmRSS")
    yield lambda: of("VmHWM") - before


ENCODERS: dict[str, Callable[[np.ndarray], bytes]] = {
    "jpeg": imagecodecs.jpeg8_encode,
    "jpeg of 12 bits": lambda image: imagecodecs.jpeg8_encode(image.astype("uint16"), bitspersample=12),
    "png": imagecodecs.png_encode,
    "jpeg2000": imagecodecs.jpeg2k_encode,
    "jpeg2000 without boxes": lambda image: imagecodecs.jpeg2k_encode(image, codecformat="j2k"),
    "lerc": imagecodecs.lerc_encode,
    "jpeg without loss": imagecodecs.ljpeg_encode,
    "jpeg xl": lambda image: imagecodecs.jpegxl_encode(image, lossless=True),
    "jpeg xl with loss": lambda image: imagecodecs.jpegxl_encode(image, level=80),
    "jpeg xl of 16 bits": lambda image: imagecodecs.jpegxl_encode(image.astype("uint16"), lossless=True),
    "jpeg xl of floats": lambda image: imagecodecs.jpegxl_encode(image.astype("float32"), lossless=True),
    "jpeg xl in colour": lambda image: imagecodecs.jpegxl_encode(np.stack([image] * 3, -1)),
    "jpeg xl in boxes": lambda image: imagecodecs.jpegxl_encode(image, lossless=True, usecontainer=True),
    "jpeg xr": imagecodecs.jpegxr_encode,
    "jpeg xr of 16 bits": lambda image: imagecodecs.jpegxr_encode(image.astype("uint16")),
    "jpeg xr in colour": lambda image: imagecodecs.jpegxr_encode(np.stack([image] * 3, -1)),
    "png of 16 bits": lambda image: imagecodecs.png_encode(image.astype("uint16")),
    "webp": lambda image: imagecodecs.webp_encode(np.stack([image] * 3, -1), lossless=False),
    "webp without loss": lambda image: imagecodecs.webp_encode(np.stack([image] * 3, -1), lossless=True),
    "webp with transparency": lambda image: imagecodecs.webp_encode(np.stack([image] * 4, -1), lossless=False),
}


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("shape", [(16, 24), (300, 520), (1, 4000), (64, 64)])
def test_the_size_is_read_from_the_header(kind: str, shape: tuple[int, int]) -> None:
    """What an encoder was given is what its header says; a header cut short is none."""
    image = np.random.default_rng(0).integers(0, 255, shape).astype("uint8")
    encoded = bytes(ENCODERS[kind](image))
    header = header_of(encoded)
    assert header is not None
    assert header.pixels == image.size
    decoded = imagecodecs.imread(encoded)
    assert header.nbytes >= decoded.nbytes
    for length in range(0, min(len(encoded), 700), 3):
        cut = header_of(encoded[:length])
        assert cut is None or cut.pixels == image.size


@given(
    st.binary(max_size=60),
    st.sampled_from(
        [
            *(b"", b"\xff\xd8", b"Lerc2 ", b"RIFF\0\0\0\0WEBPVP8 ", b"\xff\x4f\xff\x51", b"\xff\x0a"),
            *(b"\x89PNG\r\n\x1a\n", b"II\xbc\x01\x08\0\0\0", b"\0\0\0\x0cjP  \r\n\x87\n"),
            b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\0jxlc\xff\x0a",
        ]
    ),
)
def test_any_bytes_have_a_size_or_none(data: bytes, begin: bytes) -> None:
    """Whatever the bytes are, the answer is a size or that there is none."""
    header = header_of(begin + data)
    assert header is None or header.nbytes >= 0


SIDE = 3000


def blank(encoder: str) -> bytes:
    """Return an image of millions of pixels in few bytes."""
    return bytes(ENCODERS[encoder](np.zeros((SIDE, SIDE), "uint8")))


def jpeg_with(before: bytes) -> bytes:
    """Return a JPEG of millions of pixels with something before its frame."""
    whole = blank("jpeg")
    return whole[:2] + before + whole[2:]


def jp2_with(box: bytes) -> bytes:
    """Return a JPEG 2000 of millions of pixels with a box before its own."""
    whole = blank("jpeg2000")
    return whole[:12] + struct.pack(">I4s", 8 + len(box), b"free") + box + whole[12:]


SMALL_JPEG_FRAME = struct.pack(">BBHBHHB", 0xFF, 0xC0, 11, 8, 16, 16, 1) + b"\1\x11\0"
SMALL_SIZE = b"\xff\x4f\xff\x51" + struct.pack(">HH8IHBBB", 41, 0, 16, 16, 0, 0, 16, 16, 0, 0, 1, 7, 1, 1)

BOMBS: dict[str, tuple[int, Callable[[], bytes]]] = {
    kind: (number, partial(blank, encoder))
    for kind, number, encoder in (
        ("jpeg", 7, "jpeg"),
        ("png", 34933, "png"),
        ("jpeg2000", 34712, "jpeg2000"),
        ("jpeg2000 without boxes", 34712, "jpeg2000 without boxes"),
        ("lerc", 34887, "lerc"),
        ("jpeg xl", 50002, "jpeg xl"),
        ("jpeg xl of Adobe", 52546, "jpeg xl in boxes"),
        ("jpeg xr", 22610, "jpeg xr"),
        ("jpeg xr of NDPI", 34934, "jpeg xr"),
    )
} | {
    "jpeg, its frame behind a false one": (
        7,
        lambda: jpeg_with(b"\xff\xe0" + struct.pack(">H", 17) + SMALL_JPEG_FRAME + b"\0\0"),
    ),
    "jpeg, filled": (7, lambda: jpeg_with(b"\xff" * 5 + b"\xe0\0\2" + b"filling")),
    "jpeg2000, a false codestream before": (34712, lambda: jp2_with(SMALL_SIZE)),
    "jpeg2000 of many tiles": (
        34712,
        lambda: (
            b"\xff\x4f\xff\x51" + struct.pack(">HH8IHBBB", 41, 0, 250, 250, 0, 0, 1, 1, 0, 0, 1, 7, 1, 1) + bytes(90)
        ),
    ),
    "jpeg xl of many frames": (50002, lambda: bytes(imagecodecs.jpegxl_encode(np.zeros((400, 16, 16, 3), "uint8")))),
    "lerc of many bands": (34887, lambda: bytes(imagecodecs.lerc_encode(np.zeros((16, 16), "float64"))) * 4000),
    "lerc in deflate": (
        34887,
        lambda: bytes(imagecodecs.lerc_encode(np.zeros((SIDE, SIDE), "u1"), compression="deflate")),
    ),
    "lerc in zstd": (34887, lambda: bytes(imagecodecs.lerc_encode(np.zeros((SIDE, SIDE), "u1"), compression="zstd"))),
    "deflate in lerc's place": (34887, lambda: zlib.compress(bytes(SIDE * SIDE))),
    "zstd in lerc's place": (34887, zstd_of_unknown_size),
    "png of colours": (34933, lambda: bytes(imagecodecs.png_encode(np.zeros((2000, 2000, 4), "uint16")))),
    "deflate": (8, lambda: zlib.compress(bytes(SIDE * SIDE))),
    "zlib, the old number": (32946, lambda: zlib.compress(bytes(SIDE * SIDE))),
    "zstd": (50000, lambda: bytes(imagecodecs.zstd_encode(bytes(SIDE * SIDE)))),
    "zstd of unknown size": (50000, zstd_of_unknown_size),
    "lzw": (5, lambda: bytes(imagecodecs.lzw_encode(bytes(SIDE * SIDE)))),
    "packbits": (32773, lambda: b"\x81\0" * 300_000),
    "lzma": (34925, lambda: lzma.compress(bytes(SIDE * SIDE))),
}
"""Tiles that decode to millions of bytes, each with TIFF's number of its codec."""


@pytest.mark.sampled(9)
@pytest.mark.parametrize("kind", BOMBS)
def test_a_tile_decodes_to_no_more_than_a_tile(kind: str, tmp_path: Path) -> None:
    """A tile of 256 pixels that would be an image of millions takes no more memory than the reader says."""
    number, made = BOMBS[kind]
    bomb = made()
    path = tmp_path / "a.tif"
    data = iter([bytes(256), bomb])
    tifffile.imwrite(
        path,
        data,
        shape=(2, 16, 16),
        dtype="uint8",
        photometric="minisblack",
        compression=8,
        tile=(16, 16),
        metadata=None,
    )
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tif.pages[1].tags["Compression"].overwrite(number)
    volume = open_volume(path)
    with peak_of_memory() as peak, suppress(CorruptInputError):
        volume.read(Box((1, 0, 0), (2, 16, 16)))
    assert peak() < volume.read_overhead + 10**6
    assert volume.read_overhead < len(bomb) + 10**6


@pytest.mark.parametrize(
    ("compression", "kind"), [("jpeg", "jpeg"), ("png", "png"), ("jpeg2000", "jpeg2000"), ("lerc", "lerc")]
)
def test_an_image_larger_than_its_tile_is_told(compression: str, kind: str, tmp_path: Path) -> None:
    """A tile of 256 pixels that is an image of 9 million is refused before it is decoded."""
    shape = (2, 16, 16)
    bomb = blank(kind)
    whole = bytes(ENCODERS[kind](np.zeros((16, 16), "uint8")))
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        iter([whole, bomb]),
        shape=shape,
        dtype="uint8",
        photometric="minisblack",
        compression=compression,
        tile=(16, 16),
        metadata=None,
    )
    read = open_volume(path).read
    assert not read(Box((0, 0, 0), (1, 16, 16))).any()
    with pytest.raises(
        CorruptInputError, match=rf"{SIDE * SIDE} pixels, .* where 256 pixels of 256 bytes belong"
    ) as error:
        read(Box.whole(shape))
    assert error.value.start == (1, 0, 0)
