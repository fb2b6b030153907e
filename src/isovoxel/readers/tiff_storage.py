"""How a page of a TIFF is stored, what of that must be the same for all planes of a volume, and its decoder."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from isovoxel.errors import InputError
from isovoxel.geometry.axis import ceil_div
from isovoxel.geometry.box import Index3
from isovoxel.readers.tiff_directories import LERC, ORIENTATION, Tags

if TYPE_CHECKING:
    import tifffile

JPEG = (6, 7, 33007, 34892)
"""TIFF's numbers of the compressions that keep tables beside the segments."""
LERC_COMPRESSION = 34887
JPEG_2000 = (33003, 33004, 33005, 34712)
JPEG_XL = (50002, 52546)
IMAGES = (*JPEG, *JPEG_2000, *JPEG_XL, 22610, 34934, LERC_COMPRESSION, 34933, 50001, 34927)
"""TIFF's numbers of those whose segments are images in formats of their own: JPEG XR, PNG and WebP beside these."""

DECODER_BYTES: Mapping[int, int] = {
    **dict.fromkeys(JPEG, 3),
    **dict.fromkeys(JPEG_2000, 8),
    **dict.fromkeys(JPEG_XL, 8),
    LERC_COMPRESSION: 8,
}
"""What a codec holds for every sample that it decodes, beside input and output: 5.3 bytes by OpenJPEG, and up to 3.3 by
libjxl, were measured; a progressive JPEG keeps all its coefficients, of 2 bytes; LERC may be compressed once more."""

_PHOTOMETRIC = {0: "white as 0", 1: "black as 0", 2: "RGB", 3: "colours of a palette", 4: "a mask", 6: "YCbCr"}


@dataclass(frozen=True)
class PageStorage:
    """How a page is stored."""

    order: str
    """Byte order of its file, "<" or ">"."""
    dtype: np.dtype[Any]
    """Of its voxels, with the byte order of the file."""
    bits: int
    """Bits of a sample, which may be fewer than those of the dtype."""
    planar: int
    """Number of samples per pixel that are planes of their own, one behind the other."""
    mixed: int
    """Number of samples per pixel that lie side by side."""
    shape: Index3
    """Number of voxels of a sample: depth, rows, columns."""
    segment_shape: Index3
    """Number of voxels of a strip or tile."""
    tiled: bool
    """Whether it has tiles, not strips."""
    compression: int
    """TIFF's number of the codec; 1 for none."""
    predictor: int
    """TIFF's number of the predictor; 1 for none."""
    fill_order: int
    """2 where the bits of each byte are in reverse."""
    fill: float
    """Value of the voxels of segments that are left out."""
    photometric: int
    """What the numbers mean, by TIFF's number."""
    orientation: int
    """Where the first row and column are, by TIFF's number."""
    options: Tags
    """Tags that a codec asks for."""

    @property
    def samples(self) -> int:
        """Number of samples per pixel."""
        return self.planar * self.mixed

    @property
    def n_segments(self) -> int:
        """Number of strips or tiles of all samples."""
        return self.planar * math.prod(ceil_div(n, s) for n, s in zip(self.shape, self.segment_shape, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes of a page's voxels, where they lie in the file as they are."""
        return self.samples * math.prod(self.shape) * self.dtype.itemsize

    @property
    def segment_bytes(self) -> int:
        """Bytes of a segment that is not encoded, as it lies in the file."""
        depth, rows, columns = self.segment_shape
        return depth * rows * ceil_div(columns * self.mixed * self.bits, 8)

    @property
    def is_plain(self) -> bool:
        """Whether voxels lie in the file as they are and row after row, if its segments follow one another."""
        whole = (self.shape[1] % self.segment_shape[1] == 0) and self.shape[2] == self.segment_shape[2]
        flat = self.shape[0] == 1 or self.segment_shape[1:] == self.shape[1:]
        return (
            (self.compression, self.predictor, self.fill_order, self.mixed) == (1, 1, 1, 1)
            and self.bits == 8 * self.dtype.itemsize
            and (not self.tiled or (whole and flat and self.shape[0] % self.segment_shape[0] == 0))
        )

    @property
    def alike(self) -> dict[str, Any]:
        """What must be the same for all planes of a volume, by the words that messages have for it."""
        shape = self.shape if self.shape[0] > 1 else self.shape[1:]
        return {
            "shape": shape,
            "dtype": str(self.dtype.newbyteorder("=")),
            "number of samples per pixel": self.samples,
            "photometric interpretation": self.photometric,
            "orientation": self.orientation,
        }


def storage_of(page: tifffile.TiffPage, tags: Tags, name: str) -> PageStorage:
    """Return how a page is stored.

    Parameters
    ----------
    page
        The page, with its tags.
    tags
        Those that say how it is stored, as `Directories` has them.
    name
        What the user called the file, for messages.

    Raises
    ------
    InputError
        If it holds numbers of a kind that is not known.
    """
    if page.dtype is None:
        raise InputError(
            f"{name} has an unsupported {page.bitspersample}-bit sample format; convert it to uint16 or float32"
        )
    planar, depth, length, width, mixed = page.shaped
    if page.samplesperpixel != planar * mixed:
        said = f"it says {page.samplesperpixel} samples per pixel"
        raise InputError(f"{name} cannot be read as TIFF: {said}, where its planes have {planar * mixed}")
    segment = (max(1, page.tiledepth), page.tilelength, page.tilewidth)
    if not page.is_tiled:
        segment = (1, min(page.rowsperstrip, length), width)
    if min(segment) < 1 <= min(depth, length, width):
        raise InputError(f"{name} cannot be read as TIFF: its strips or tiles have the shape {segment}")
    bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
    orientation = page.tags.valueof(ORIENTATION, 1)
    return PageStorage(
        page.parent.byteorder,
        np.dtype(page.parent.byteorder + page.dtype.char),
        bits,
        planar,
        mixed,
        (depth, length, width),
        segment,
        page.is_tiled,
        int(page.compression),
        int(page.predictor),
        int(page.fillorder),
        float(page.nodata),
        int(page.photometric),
        orientation if isinstance(orientation, int) else 1,
        tuple(tag for tag in tags if tag[0] in (292, 293, 512, 515, 530, LERC) or tag[0] > 65000),
    )


def check_codec(storage: PageStorage, what: str) -> None:
    """Check that the segments of a page can be decoded, before a job relies on it.

    Parameters
    ----------
    storage
        How the page is stored.
    what
        The file or the page, for messages.
    """
    import tifffile

    for kind, number, codecs in (
        ("compression", storage.compression, tifffile.TIFF.DECOMPRESSORS),
        ("predictor", storage.predictor, tifffile.TIFF.UNPREDICTORS),
    ):
        if number != 1 and number not in codecs:
            raise InputError(f"{what} is stored with the TIFF {kind} {number}, which cannot be decoded here")


def check_alike(places: Mapping[PageStorage, Callable[[], str]], counts: Counter[PageStorage]) -> None:
    """Check that pages that are stored in several ways can be planes of one volume.

    Parameters
    ----------
    places
        Returns, for each way to store them, the first page that is stored so, for messages.
    counts
        How many pages are stored in each of these ways.

    Raises
    ------
    InputError
        If they cannot; a page that is not like most of them is named.
    """
    groups: Counter[tuple[Any, ...]] = Counter()
    for storage, n in counts.items():
        groups[tuple(storage.alike.items())] += n
    if len(groups) < 2:
        return
    most = dict(groups.most_common(1)[0][0])
    wanted = next(storage for storage in places if storage.alike == most)
    odd = next(storage for storage in places if storage.alike != most)
    raise InputError(
        f"{places[odd]()} is not like the others: {difference(odd, wanted)}, as {places[wanted]()} has; "
        f"save all planes alike, or those that you mean as a file of their own"
    )


def difference(odd: PageStorage, wanted: PageStorage) -> str:
    """Say what tells a page from one that it should be like: "it has the dtype uint8, not uint16"."""
    what = next(key for key, value in wanted.alike.items() if odd.alike[key] != value)
    return f"it has the {what} {_said(what, odd.alike[what])}, not {_said(what, wanted.alike[what])}"


def _said(what: str, value: Any) -> str:
    if isinstance(value, tuple):
        return " x ".join(map(str, value))
    if what == "photometric interpretation" and value in _PHOTOMETRIC:
        return f"{value} ({_PHOTOMETRIC[value]})"
    return str(value)
