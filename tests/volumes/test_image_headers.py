"""Strips and tiles that are images of their own: their size is known before they are decoded."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from isovoxel.errors import CorruptInputError
from isovoxel.geometry.box import Box
from isovoxel.volumes.image_headers import pixels_of
from isovoxel.volumes.open import open_volume

ENCODERS: dict[str, Callable[[np.ndarray], bytes]] = {
    "jpeg": imagecodecs.jpeg8_encode,
    "jpeg of 12 bits": lambda image: imagecodecs.jpeg8_encode(image.astype("uint16"), bitspersample=12),
    "png": imagecodecs.png_encode,
    "jpeg2000": imagecodecs.jpeg2k_encode,
    "jpeg2000 without boxes": lambda image: imagecodecs.jpeg2k_encode(image, codecformat="j2k"),
    "lerc": imagecodecs.lerc_encode,
    "webp": lambda image: imagecodecs.webp_encode(np.stack([image] * 3, -1), lossless=False),
    "webp without loss": lambda image: imagecodecs.webp_encode(np.stack([image] * 3, -1), lossless=True),
    "webp with transparency": lambda image: imagecodecs.webp_encode(np.stack([image] * 4, -1), lossless=False),
}


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("shape", [(16, 24), (300, 520), (1, 4000)])
def test_the_size_is_read_from_the_header(kind: str, shape: tuple[int, int]) -> None:
    """What an encoder was given is what its header says; a header cut short is none."""
    image = np.random.default_rng(0).integers(0, 255, shape).astype("uint8")
    encoded = bytes(ENCODERS[kind](image))
    assert pixels_of(encoded) == image.size
    for length in range(0, min(len(encoded), 700), 3):
        assert pixels_of(encoded[:length]) in (0, image.size)


@given(
    st.binary(max_size=60), st.sampled_from([b"", b"\xff\xd8", b"Lerc2 ", b"RIFF\0\0\0\0WEBPVP8 ", b"\xff\x4f\xff\x51"])
)
def test_any_bytes_have_a_size_or_none(data: bytes, begin: bytes) -> None:
    """Whatever the bytes are, the answer is a number of pixels."""
    assert pixels_of(begin + data) >= 0


@pytest.mark.parametrize(
    ("compression", "kind"), [("jpeg", "jpeg"), ("png", "png"), ("jpeg2000", "jpeg2000"), ("lerc", "lerc")]
)
def test_an_image_larger_than_its_tile_takes_no_memory(compression: str, kind: str, tmp_path: Path) -> None:
    """A tile of 256 pixels that is an image of 36 million is refused before it is decoded."""
    shape = (2, 16, 16)
    bomb = bytes(ENCODERS[kind](np.zeros((6000, 6000), "uint8")))
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
    tracemalloc.start()
    try:
        with pytest.raises(CorruptInputError, match="36000000 pixels, where 256 belong") as error:
            read(Box.whole(shape))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert error.value.start == (1, 0, 0)
    assert peak < len(bomb) * 4 + 10**5
