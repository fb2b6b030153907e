"""Parts of volumes and axes that the user names: which voxels they hold, where they lie, and what reading costs."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array as da
import h5py
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import isovoxel
from command_line import Isovoxel, check_refused
from isovoxel import api
from isovoxel.errors import CorruptInputError, InputError, InterruptedJobError, OptionError
from isovoxel.execution.events import BlockDone, Event
from isovoxel.geometry.grid import Axis, Box
from isovoxel.geometry.resampling import Table
from isovoxel.planning.optimizer import _candidates
from isovoxel.readers.base import Volume, cropped
from isovoxel.readers.open import open_volume
from isovoxel.readers.selection import Crop, Selection, box_of, parse_crop

DATA = np.random.default_rng(0).integers(0, 60_000, (11, 23, 29)).astype(np.uint16)
SIZE = (2.0, 0.5, 0.25)
CROP = "2:9,-20:,5:-3"
SLICES = (slice(2, 9), slice(-20, None), slice(5, -3))


@st.composite
def crops(draw: st.DrawFn, shape: tuple[int, ...] = DATA.shape) -> Crop:
    """Crops inside a shape that hold something, in every way to say them."""
    parts = []
    for n in shape:
        a = draw(st.integers(0, n - 1))
        b = draw(st.integers(a + 1, n))
        first = draw(st.sampled_from([a, a - n] if a else [0, None, -n]))
        parts.append((first, draw(st.sampled_from([b, b - n] if b < n else [n, None]))))
    return tuple(parts)


@st.composite
def boxes(draw: st.DrawFn, shape: tuple[int, ...]) -> Box:
    starts = [draw(st.integers(0, n - 1)) for n in shape]
    stops = [draw(st.integers(a + 1, n)) for a, n in zip(starts, shape, strict=True)]
    return Box((starts[0], starts[1], starts[2]), (stops[0], stops[1], stops[2]))


def slices(crop: Crop) -> tuple[slice, ...]:
    """Return what NumPy takes for a crop."""
    return tuple(slice(*ends) for ends in crop)


@given(crop=crops(), data=st.data())
def test_a_part_holds_what_numpy_cuts_out(crop: Crop, data: st.DataObject) -> None:
    """Any box of it, of a part of a part as well, is that box of the slices."""
    part, expected = cropped(open_volume(DATA), crop), DATA[slices(crop)]
    assert part.shape == expected.shape
    inner = data.draw(crops(part.shape))
    for volume, wanted in ((part, expected), (cropped(part, inner), expected[slices(inner)])):
        box = data.draw(boxes(volume.shape))
        np.testing.assert_array_equal(volume.read(box), wanted[box.slices])
    assert cropped(part, inner).start == Box((0, 0, 0), box_of(inner, part.shape, "").start).shifted(part.start).stop


@given(crop=crops(), factor=st.sampled_from([(1.0, 1.0, 1.0), (2.0, 0.5, 3.0), (1.3, 0.7, 4.1)]))
def test_a_part_stays_where_it_was(crop: Crop, factor: tuple[float, float, float]) -> None:
    """Voxel i of it lies where voxel i + start of the whole does, and so do the outer faces of what is made of it."""
    whole = replace(open_volume(DATA, voxel_size=SIZE), origin=(-3.0, 7.0, 0.5))
    part = cropped(whole, crop)
    start = box_of(crop, whole.shape, "").start
    for axis in range(3):
        here = whole.origin[axis] + start[axis] * SIZE[axis]
        assert part.grid.origin[axis] == pytest.approx(here)
        made = part.grid.scaled(factor)
        assert made.origin[axis] - made.voxel_size[axis] / 2 == pytest.approx(here - SIZE[axis] / 2)


@given(crop=crops())
def test_another_voxel_size_leaves_the_whole_where_it_is(crop: Crop) -> None:
    """Whether it is given for the whole or for the part."""
    volume = replace(open_volume(DATA, voxel_size=SIZE, unit="um"), origin=(-3.0, 7.0, 0.5))
    before = open_volume(volume, voxel_size=(3000.0, 1.0, 1.0), unit="nm", selection=Selection(crop=crop))
    after = open_volume(cropped(volume, crop), voxel_size=(3000.0, 1.0, 1.0), unit="nm")
    assert after.origin == pytest.approx(before.origin)
    bare = cropped(open_volume(DATA), crop)
    assert open_volume(bare, voxel_size=SIZE).origin == cropped(open_volume(DATA, voxel_size=SIZE), crop).origin


def test_without_a_voxel_size_its_place_is_counted_in_voxels() -> None:
    """As all lengths are then."""
    planned = isovoxel.plan(DATA, crop=CROP, factor=(1, 1, 1))
    assert planned.source.grid.origin == (2.0, 3.0, 5.0)


@given(crop=crops(), other=crops())
def test_an_identity_knows_its_part(crop: Crop, other: Crop) -> None:
    """Two crops are the same input if they hold the same voxels, however they are said, and no other."""
    one, two = (cropped(open_volume(DATA), c) for c in (crop, other))
    same = box_of(crop, DATA.shape, "") == box_of(other, DATA.shape, "")
    assert (one.identity == two.identity) == same
    again = open_volume(DATA, selection=Selection.of_identity(one.identity))
    assert (again.shape, again.start, again.identity) == (one.shape, one.start, one.identity)


@given(
    n=st.integers(1, 200), first=st.integers(0, 60), last=st.integers(0, 60), chunk=st.integers(1, 64), data=st.data()
)
def test_the_planner_counts_every_chunk_that_a_part_decodes(
    n: int, first: int, last: int, chunk: int, data: st.DataObject
) -> None:
    """Along an axis, each block decodes the chunks of the whole that it reads of, to their ends."""
    axis = Axis(n, max(1, round(n * 1.7)), 1.7)
    whole = first + n + last
    volume = replace(open_volume(np.zeros((1, 1, whole), "u1")), chunks=(1, 1, chunk))
    (_, _, before), (_, _, after) = cropped(volume, ((None, None), (None, None), (first, first + n))).beside
    shard = data.draw(st.integers(1, 64))
    found = _candidates(Table(axis, "linear"), chunk, shard, before, after)
    for length, decoded, most in zip(found.lengths, found.decoded, found.chunked, strict=True):
        span = Table(axis, "linear").spans(*axis.intervals(length))
        counts = []
        for a, b in zip(span.first, span.last, strict=True):
            chunks = {i // chunk for i in range(first + a, first + b)}
            counts.append(sum(min(whole, (i + 1) * chunk) - i * chunk for i in chunks))
        assert (decoded, most) == (sum(counts), max(counts))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0:12,:,:", "the crop z 0:12 reaches beyond the NumPy array, which has 11 voxels along z"),
        (":,-24:,:", "the crop y -24: reaches beyond"),
        (":,:,5:5", "the crop x 5:5 of the NumPy array, which has 29 voxels along x, holds none of them"),
        (":,:,5:-25", "holds none of them"),
        ("0:5", "a crop is z0:z1,y0:y1,x0:x1 in whole voxels"),
        ("0:5,:,:,:", "a crop is"),
        ("0:5:2,:,:", "a crop is"),
        ("5,:,:", "a crop is"),
        ("0:1.5,:,:", "a crop is"),
        ("", "a crop is"),
        ((slice(0, 5, 2), slice(None), slice(None)), "a crop is"),
        (((0, 1.5), (0, 1), (0, 1)), "a crop is"),
        (7, "a crop is"),
    ],
)
def test_a_crop_that_makes_no_sense_is_refused(text: object, why: str) -> None:
    with pytest.raises(OptionError, match=why):
        isovoxel.open_volume(DATA, crop=text)


def test_slices_pairs_and_text_say_the_same() -> None:
    """In Python any of them will do."""
    pairs = ((2, 9), (-20, None), (5, -3))
    assert parse_crop(CROP) == parse_crop(SLICES) == parse_crop(pairs) == pairs
    assert parse_crop(" 2 : 9, -20:, 5:-3 ") == pairs


def written(folder: Path, kind: str) -> object:
    """Return the voxels as an input of a kind."""
    if kind == "dask":
        return da.from_array(DATA, chunks=(4, 8, 8))
    if kind == "NumPy":
        return DATA
    path = folder / f"in.{kind}"
    if kind == "tif":
        tifffile.imwrite(path, DATA, photometric="minisblack", rowsperstrip=4, compression="zlib")
    elif kind == "npy":
        np.save(path, DATA)
    else:
        array = zarr.create_array(path, shape=DATA.shape, chunks=(4, 8, 8), dtype=DATA.dtype)
        array[...] = DATA
    return path


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", ["zarr", "tif", "npy", "NumPy", "dask"])
def test_a_part_is_scaled_as_if_it_were_all(kind: str, tmp_path: Path) -> None:
    """The same bits come of it as of an array that was cut, at its place; and it can be verified."""
    options = {"factor": (2.0, 1.5, 0.5), "engine": "exact", "input_voxel_size": SIZE}
    options |= {"chunk": (4, 8, 8), "shard": (8, 16, 8), "device_memory": "12kB"}
    source = written(tmp_path, kind)
    result = isovoxel.scale(source, tmp_path / "a.zarr", crop=CROP, **options)
    alone = isovoxel.scale(DATA[SLICES], tmp_path / "b.zarr", **options)
    assert result.plan.n_blocks > 1
    for_both = [zarr.open_array(r.path / "0", mode="r")[:] for r in (result, alone)]
    np.testing.assert_array_equal(*for_both)
    made = isovoxel.open_volume(result.path)
    assert made.origin == pytest.approx(
        [o + (v / f - v) / 2 for o, v, f in zip((4, 1.5, 1.25), SIZE, options["factor"], strict=True)]
    )
    against = None if kind in ("zarr", "tif", "npy") else DATA
    assert isovoxel.verify(result.path, against=against, samples=50).holds
    assert isovoxel.verify(result.path, against=cropped(open_volume(DATA), parse_crop(CROP) or ())).holds


def test_a_job_on_a_part_goes_on_in_any_process(tmp_path: Path) -> None:
    """After an interruption and in a process of its own; another part is another input."""
    source, out = written(tmp_path, "zarr"), tmp_path / "out.zarr"
    options = {"factor": (2.0, 2.0, 2.0), "crop": CROP, "chunk": (8, 8, 8), "shard": (8, 8, 8), "device_memory": "20kB"}

    def interrupt(event: Event) -> None:
        if isinstance(event, BlockDone):
            raise KeyboardInterrupt

    with pytest.raises(InterruptedJobError):
        isovoxel.scale(source, out, listeners=[interrupt], **options)
    with pytest.raises(OptionError.__mro__[1], match=r"crop 2:9,3:23,5:26, now 2:9,3:23,5:27"):
        isovoxel.scale(source, out, **options | {"crop": "2:9,3:,5:27"})
    result = isovoxel.scale(source, out, isolate=True, **options)
    assert 0 < result.tally.done_before < result.plan.n_blocks
    assert isovoxel.verify(out, samples=50).holds
    assert isovoxel.scale(source, out, **options | {"crop": "2:9,3:23,5:26"}).seconds == 0


def test_damaged_voxels_are_told_as_the_part_counts(tmp_path: Path) -> None:
    """And those of them that lie outside are no concern of its reader."""
    source = Path(str(written(tmp_path, "zarr")))
    (source / "c/0/1/1").write_bytes(b"damaged")
    part = pickle.loads(pickle.dumps(open_volume(source, selection=Selection(crop=parse_crop("2:,10:,9:")))))  # noqa: S301
    assert isinstance(part, Volume)
    assert part.cached is not None
    for read in (part.read, part.cached(10**6)):
        with pytest.raises(CorruptInputError) as refused:
            read(Box.whole(part.shape))
        assert (refused.value.start, refused.value.stop) == ((0, 0, 0), (2, 6, 7))
        np.testing.assert_array_equal(read(Box((2, 0, 0), part.shape)), DATA[4:, 10:, 9:])


def test_every_command_takes_a_crop(isovoxel: Isovoxel, tmp_path: Path) -> None:
    """And says which part it is about."""
    source, out = written(tmp_path, "npy"), tmp_path / "out.zarr"
    words = ("--crop", CROP, "--input-voxel-size", "2,0.5,0.25")
    info = isovoxel("info", source, *words, "--json").json
    assert (info["shape"], info["origin"]) == ([7, 20, 21], [4.0, 1.5, 1.25])
    assert "2:9,3:23,5:26 of 11 x 23 x 29" in isovoxel("info", source, *words).out
    assert isovoxel("plan", source, *words, "--json").json["input"]["shape"] == [7, 20, 21]
    assert "(7, 20, 21) voxels" in isovoxel("limits", source, *words).out
    assert isovoxel("convert", source, out, *words, "--quiet").code == 0
    np.testing.assert_array_equal(zarr.open_array(out / "0", mode="r")[:], DATA[SLICES])
    check_refused(isovoxel("info", source, "--crop", "0:99,:,:"), "reaches beyond")


# ---- axes that the user names ----------------------------------------------------------------------------------------


VOXELS = np.random.default_rng(0).integers(0, 250, (2, 3, 4, 6, 7)).astype("uint8")
"""Time points, channels, z, y, x."""


def _zarr(folder: Path, array: NDArray[Any], zarr_format: Any = 3) -> Any:
    zarr.create_array(folder / "a.zarr", data=array, chunks=(2,) * array.ndim, zarr_format=zarr_format)
    return folder / "a.zarr"


def _npy(folder: Path, array: NDArray[Any]) -> Any:
    np.save(folder / "a.npy", array)
    return folder / "a.npy"


def _tiff(folder: Path, array: NDArray[Any]) -> Any:
    tifffile.imwrite(folder / "a.tif", array, photometric="minisblack")
    return folder / "a.tif"


def _hdf5(folder: Path, array: NDArray[Any]) -> Any:
    with h5py.File(folder / "a.h5", "w") as file:
        file["a"] = array
    return folder / "a.h5"


KINDS: dict[str, Callable[[Path, NDArray[Any]], Any]] = {
    "zarr v3": _zarr,
    "zarr v2": lambda folder, array: _zarr(folder, array, 2),
    "a zarr array": lambda folder, array: zarr.open_array(_zarr(folder, array), mode="r"),
    "npy": _npy,
    "TIFF": _tiff,
    "HDF5": _hdf5,
    "NumPy": lambda _folder, array: array,
    "dask": lambda _folder, array: da.from_array(array, chunks=2),
}
SEVERAL = [kind for kind in KINDS if kind != "HDF5"]
"""Kinds of which several volumes are read."""


def read(volume: Any) -> NDArray[Any]:
    """Return all voxels, of all volumes one after the other."""
    n = volume.n_volumes
    return np.stack([volume.read(Box.whole(volume.shape).of(i)) for i in range(n)])


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", SEVERAL)
def test_five_axes_are_what_the_user_says(tmp_path: Path, kind: str) -> None:
    """Time points and channels make a series, or one of them is selected; whichever comes first."""
    source = KINDS[kind](tmp_path, VOXELS)
    volume = api.open_volume(source, axes="TCZYX")
    assert [(axis.name, axis.length) for axis in volume.series] == [("t", 2), ("c", 3)]
    np.testing.assert_array_equal(read(volume), VOXELS.reshape(6, 4, 6, 7))
    assert volume.sources["axes"].startswith("given by the caller")
    other = api.open_volume(source, axes="ctzyx")
    assert [(axis.name, axis.length) for axis in other.series] == [("t", 3), ("c", 2)]
    np.testing.assert_array_equal(read(other), VOXELS.swapaxes(0, 1).reshape(6, 4, 6, 7))
    one = api.open_volume(source, axes="tczyx", time=1, channel=2)
    np.testing.assert_array_equal(read(one)[0], VOXELS[1, 2])
    assert len({str(v.identity) for v in (volume, other, one)}) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_axes_of_one_entry_are_dropped(tmp_path: Path, kind: str) -> None:
    """Of HDF5 too, of which several volumes are refused."""
    volume = api.open_volume(KINDS[kind](tmp_path, VOXELS[:1, :1]), axes="tczyx")
    np.testing.assert_array_equal(read(volume)[0], VOXELS[0, 0])


@pytest.mark.parametrize("kind", SEVERAL)
def test_three_axes_may_be_other_ones(tmp_path: Path, kind: str) -> None:
    """Pages that are channels, of one plane each, one of which is selected."""
    source = KINDS[kind](tmp_path, VOXELS[0, 0])
    np.testing.assert_array_equal(read(api.open_volume(source))[0], VOXELS[0, 0])
    plane = api.open_volume(source, axes="cyx", channel=1)
    np.testing.assert_array_equal(read(plane)[0], VOXELS[0, 0, 1:2])


def test_planes_of_other_axes_between(tmp_path: Path) -> None:
    """Channels may lie between z and y in a .npy, in Fortran's order too; within the planes they are refused."""
    between = VOXELS[0].swapaxes(0, 1)
    np.testing.assert_array_equal(read(api.open_volume(_npy(tmp_path, between), axes="zcyx")), VOXELS[0])
    last = np.moveaxis(VOXELS[0], 0, -1)
    np.testing.assert_array_equal(
        read(api.open_volume(_npy(tmp_path, np.asfortranarray(last)), axes="zyxc")), VOXELS[0]
    )
    for array, axes in ((np.ascontiguousarray(last), "zyxc"), (np.asfortranarray(VOXELS[0]), "czyx")):
        with pytest.raises(
            InputError, match=r"has other voxels between those of a plane .*; save its channels one after"
        ):
            api.open_volume(_npy(tmp_path, array), axes=axes)


@pytest.mark.parametrize("kind", KINDS)
def test_who_has_many_axes_is_told_to_name_them(tmp_path: Path, kind: str) -> None:
    """By the option that does it."""
    with pytest.raises(InputError, match="name them with --axes, such as --axes tczyx"):
        api.open_volume(KINDS[kind](tmp_path, VOXELS))


@pytest.mark.parametrize("axes", ["", "abc", "zzyx", "tcz", "z,y,x", "tczyxs"])
def test_names_that_are_none_are_refused(axes: Any) -> None:
    """Each axis has one letter, and y and x are there."""
    with pytest.raises(OptionError, match="axes must name each axis of the input once, by the letters t, c, z, y, x"):
        api.open_volume(VOXELS, axes=axes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_number_of_names_is_refused(tmp_path: Path, kind: str) -> None:
    """With the lengths of the axes that are there."""
    with pytest.raises(OptionError, match=r"has 5 axes \(2 x 3 x 4 x 6 x 7\), but --axes zyx names 3"):
        api.open_volume(KINDS[kind](tmp_path, VOXELS), axes="zyx")


@pytest.mark.slow
def test_a_job_is_done_and_verified(isovoxel: Isovoxel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the command line, a job file or the environment; other names are another input."""
    monkeypatch.chdir(tmp_path)
    _zarr(tmp_path, VOXELS)
    words = ["a.zarr", "out.zarr", "--factor", "2,1,1", "--levels", 0]
    assert isovoxel("plan", *words, "--axes", "tczyx", "--save", "job.toml").code == 0
    assert isovoxel("scale", "--config", "job.toml").code == 0
    assert isovoxel("verify", "out.zarr", "--samples", 50).code == 0
    assert "nothing was done" in isovoxel("scale", *words, "--axes", "tczyx").out
    check_refused(isovoxel("scale", *words, "--axes", "ctzyx"), "was made with axes tczyx, now ctzyx")
    monkeypatch.setenv("ISOVOXEL_AXES", "tczyx")
    assert isovoxel("info", "a.zarr", "--json").json["series"] == {"t": 2, "c": 3}
    check_refused(isovoxel("info", "out.zarr"), "is of a kind that names its axes itself; leave out --axes")
