"""Onto the voxels of another volume: ``like`` and ``--like``, from files to files."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import isovoxel as api
from command_line import Isovoxel, check_refused
from isovoxel.demo import VOXEL_SIZE, blastocyst
from isovoxel.engines.reference import reference, reference_labels
from isovoxel.errors import IsovoxelError, JobError, OptionError, OutputExistsError
from isovoxel.geometry.grid import Box, VoxelGrid
from outputs import voxels_of
from small_jobs import stop_after
from strategies import as_dtype, examples, read_from

RNG = np.random.default_rng(8)
LABELS = RNG.integers(0, 2**62, (9, 20, 22)).astype(np.uint64)
SIZE = (2.0, 0.404, 0.404)
CUT: dict[str, Any] = {"chunk": (8, 8, 8), "shard": (8, 8, 8), "device_memory": "150kB", "levels": 1}


def datasets(path: Path) -> Any:
    """Return what the metadata of an image say of its levels."""
    return json.loads((path / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]["datasets"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Labels with a voxel size, and the same grown to cubes, by nearest."""
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {"input_voxel_size": SIZE, "unit": "um", "labels": True, "levels": 1}
    api.scale(LABELS, "labels.zarr", factor=(1, 1, 1), **given)
    api.scale("labels.zarr", "grown.zarr", factor=(5, 2, 1), levels=0)
    return tmp_path


def test_labels_come_back_to_the_voxels_that_they_had(isovoxel: Isovoxel, home: Path) -> None:
    """All of them, on the grid of the first file, and verified; a job file and Python say the same."""
    said = isovoxel("scale", "grown.zarr", "back.zarr", "--like", "labels.zarr", "--levels", 1, "--json")
    assert said.json["output"]["shape"] == list(LABELS.shape)
    np.testing.assert_array_equal(voxels_of(home / "back.zarr"), LABELS)
    np.testing.assert_array_equal(voxels_of(home / "back.zarr", 1), voxels_of(home / "labels.zarr", 1))
    assert datasets(home / "back.zarr")[0] == datasets(home / "labels.zarr")[0]
    assert isovoxel("verify", "back.zarr", "--samples", 50).code == 0
    assert isovoxel("plan", "grown.zarr", "--like", "labels.zarr", "--save", "job.toml").code == 0
    assert 'like = "labels.zarr"' in (home / "job.toml").read_text()
    assert isovoxel("scale", "grown.zarr", "again.zarr", "--config", "job.toml").code == 0
    np.testing.assert_array_equal(voxels_of(home / "again.zarr"), LABELS)


STACK = next(
    (
        file
        for above in Path(__file__).resolve().parents
        if (file := above / "shared" / "data" / "vertical_grid_zyx_uint8.tif").exists()
    ),
    None,
)
"""A confocal stack of thick planes, beside a checkout or above it."""

sizes = st.floats(0.01, 100)
lengths = st.integers(1, 12)
places = st.floats(-1e4, 1e4)
whole_factors = st.integers(1, 6)


@given(*[st.tuples(*[one] * 3) for one in (lengths, sizes, places, whole_factors)])
def test_positions_come_back_on_any_grid(
    shape: tuple[int, int, int],
    size: tuple[float, float, float],
    origin: tuple[float, float, float],
    factor: tuple[int, int, int],
) -> None:
    """Each voxel's centre within 1e-9 of a voxel, and the voxel that is nearest to it is one of those it became."""
    grid = VoxelGrid(shape, size, origin)
    grown = grid.scaled((float(factor[0]), float(factor[1]), float(factor[2])))
    back, shift = grid.placed_on(grown)
    for n, f, b, s in zip(shape, factor, back, shift, strict=True):
        samples = np.arange(n)
        position = (samples + s + 0.5) / b - 0.5  # of the voxels that came back, in those that grew
        np.testing.assert_allclose(position, (samples + 0.5) * f - 0.5, rtol=0, atol=1e-9)
        np.testing.assert_array_equal(np.floor((np.floor(position + 0.5) + 0.5) / f), samples)


@settings(max_examples=examples(12))  # each is two jobs
@given(st.integers(0, 2**32))
def test_labels_come_back_on_random_grids(seed: int) -> None:
    """All of them, by whole factors, whatever the shape, the size of the voxels, and the cut."""
    rng = np.random.default_rng(seed)
    shape, factor = rng.integers(1, 14, 3).tolist(), rng.integers(1, 5, 3).tolist()
    labels = rng.integers(0, 2**62, shape).astype(np.uint64)
    check_round_trip(labels, tuple(rng.uniform(0.05, 5, 3).tolist()), tuple(map(float, factor)))


@pytest.mark.slow
def test_labels_of_the_blastocyst_come_back() -> None:
    """Those of its bright nuclei, by whole factors near to cubes, and the positions with them."""
    image = blastocyst((24, 100, 90))
    check_round_trip((image // 32).astype(np.uint16), VOXEL_SIZE, (5.0, 1.0, 1.0))


@pytest.mark.slow
@pytest.mark.skipif(STACK is None, reason="the confocal stack is not in shared/data beside this checkout")
def test_labels_of_a_real_stack_come_back() -> None:
    """Of a file as Fiji writes it, whose voxel size its metadata say."""
    source = api.open_volume(STACK)
    assert source.voxel_size is not None
    voxels = source.read(Box.whole(source.shape))
    check_round_trip((voxels // 16).astype(np.uint16), source.voxel_size, (6.0, 1.0, 1.0))


def check_round_trip(labels: NDArray[Any], size: Any, factor: Any) -> None:
    """Let labels grow by nearest and come back; compare them and where they lie."""
    with tempfile.TemporaryDirectory() as name:
        folder, how = Path(name), CUT | {"labels": True, "levels": 0, "device_memory": "600kB"}
        said: dict[str, Any] = {"input_voxel_size": size, "unit": "um"}
        api.scale(labels, folder / "grown.zarr", factor=factor, interpolation="nearest", **said, **how)
        grid = VoxelGrid(labels.shape, size, unit="micrometer")
        api.scale(folder / "grown.zarr", folder / "back.zarr", like=grid, interpolation="nearest", **how)
        np.testing.assert_array_equal(voxels_of(folder / "back.zarr"), labels)
        found = api.open_volume(folder / "back.zarr").grid
        assert found.shape == grid.shape
        for ours, theirs, length in zip(found.origin, grid.origin, size, strict=True):
            assert abs(ours - theirs) <= 1e-9 * length
        for ours, theirs, n in zip(found.voxel_size, grid.voxel_size, grid.shape, strict=True):
            assert n * abs(ours - theirs) <= 1e-9 * theirs


def test_a_level_of_an_image_is_a_grid_too(home: Path) -> None:
    """IMAGE/N names it, as an address of its array does."""
    result = api.scale("grown.zarr", "back.zarr", like="labels.zarr/1", interpolation="nearest", **CUT)
    level = api.open_volume("labels.zarr", level=1)
    assert api.open_volume("back.zarr").grid == level.grid == result.plan.output
    whole = Box.whole(level.shape)
    grown = voxels_of(home / "grown.zarr")
    where = (read_from(grown), grown.shape, result.plan.factor, whole, "nearest")
    np.testing.assert_array_equal(voxels_of(home / "back.zarr"), reference_labels(*where, shift=result.plan.shift))


def test_a_level_whose_axes_its_image_alone_names_is_a_grid(tmp_path: Path) -> None:
    """Arrays of OME-Zarr 0.4 have no names of axes, and this one has channels."""
    made = np.random.default_rng(0).integers(0, 9, (2, 4, 6, 8), np.uint8)
    how: dict[str, Any] = {"input_voxel_size": (1, 1, 1), "engine": "exact", "axes": "czyx", "levels": 1}
    api.scale(made, tmp_path / "other.zarr", factor=(1, 1, 1), ome_zarr="0.4", **how)
    (tmp_path / "other.zarr" / "1" / ".zattrs").unlink(missing_ok=True)
    volume = api.open_volume(made, axes="czyx", voxel_size=(1, 1, 1), channel=0)
    planned = api.plan(volume, like=tmp_path / "other.zarr" / "1")
    assert planned.output.shape == (2, 3, 4)


@pytest.mark.parametrize("boundary", ["nearest", "constant"])
def test_a_second_camera_is_put_onto_the_first(tmp_path: Path, boundary: str) -> None:
    """Other voxels, another unit, from before the volume to beyond it: what lies outside is the boundary's."""
    first = VoxelGrid((11, 60, 50), (900.0, 210.0, 180.0), (-2000.0, -500.0, 300.0), "nanometer")
    second = RNG.integers(0, 60_000, (6, 24, 20)).astype(np.uint16)
    given: dict[str, Any] = {
        "input_voxel_size": (1.6, 0.5, 0.45),
        "unit": "um",
        "engine": "exact",
        "boundary": boundary,
    }
    result = api.scale(
        second, tmp_path / "out.zarr", like=first, interpolation="cubic", **given, **CUT | {"device_memory": "60kB"}
    )
    plan = result.plan
    assert plan.n_blocks > 1
    assert (plan.output, plan.halo_mode) == (first, "direct")
    assert api.open_volume(tmp_path / "out.zarr").grid == first
    position = (np.arange(11) * 0.9 - 2.0) / 1.6
    np.testing.assert_allclose(plan.axes[0].position(np.arange(11)), position, rtol=0, atol=1e-9)
    outside = int(((position < -0.5) | (position > 5.5)).sum())
    what = "0" if boundary == "constant" else "what the edge of the input is"
    assert f"{outside} of 11 output voxels along z lie outside of the input, and become {what}" in plan.source.notes
    where = (read_from(second), second.shape, plan.factor, Box.whole(first.shape), "cubic", boundary)
    wanted = as_dtype(reference(*where, shift=plan.shift), second.dtype)
    assert np.abs(voxels_of(tmp_path / "out.zarr").astype(int) - wanted).max() <= 1
    assert api.verify(tmp_path / "out.zarr", against=second, samples=50).holds


def test_a_crop_of_a_result_is_what_that_has_there(tmp_path: Path) -> None:
    """To the bit: positions count from where the whole begins."""
    image = RNG.random((8, 18, 16), np.float32)
    whole = api.scale(image, tmp_path / "whole.zarr", factor=(3, 1.3, 2), input_voxel_size=SIZE, engine="exact")
    grid = whole.plan.output
    origin = tuple(o + k * s for o, k, s in zip(grid.origin, (5, 4, 7), grid.voxel_size, strict=True))
    crop = VoxelGrid((11, 9, 13), grid.voxel_size, (origin[0], origin[1], origin[2]))
    api.scale(image, tmp_path / "crop.zarr", like=crop, input_voxel_size=SIZE, **CUT)
    np.testing.assert_array_equal(
        voxels_of(tmp_path / "crop.zarr"), voxels_of(tmp_path / "whole.zarr")[5:16, 4:13, 7:20]
    )


def test_a_job_resumes_onto_the_same_voxels(home: Path) -> None:
    """Without being told again, nor by a volume that may have gone; another one is refused."""
    api.scale("labels.zarr", "part.zarr", factor=(1, 1, 1), crop="1:,:,2:", levels=0)
    with pytest.raises(JobError):
        api.scale("grown.zarr", "back.zarr", like="part.zarr", listeners=[stop_after()], threads=1, **CUT)
    (home / "part.zarr").rename(home / "moved.zarr")
    for other, now in (({"factor": (0.2, 0.5, 1)}, "none"), ({"like": "labels.zarr"}, "none")):
        with pytest.raises(OutputExistsError, match=rf"voxels of another volume \(8, 20, 20\) of .*, now {now}"):
            api.scale("grown.zarr", "back.zarr", **other)
    assert api.scale("grown.zarr", "back.zarr").seconds > 0
    np.testing.assert_array_equal(voxels_of(home / "back.zarr"), LABELS[1:, :, 2:])
    assert api.scale("grown.zarr", "back.zarr", like="moved.zarr").seconds == 0


@pytest.mark.usefixtures("home")
def test_an_image_takes_its_labels_along() -> None:
    image = RNG.integers(0, 999, (45, 40, 22)).astype(np.uint16)
    api.scale(image, "image.zarr", factor=(1, 1, 1), input_voxel_size=(0.4, 0.202, 0.404), unit="um", levels=0)
    result = api.scale("image.zarr", "both.zarr", like="labels.zarr", with_labels="grown.zarr", labels_by="nearest")
    assert result.labels is not None
    assert result.labels.plan.output.shape == result.plan.output.shape == LABELS.shape
    # The image begins where its first voxel does, by which the labels lie on it.
    placed = api.open_volume("both.zarr/labels/grown")
    assert placed.grid == api.open_volume("both.zarr").grid == api.open_volume("labels.zarr").grid


def test_both_without_a_voxel_size_count_voxels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a job by factors does; a note says so."""
    monkeypatch.chdir(tmp_path)
    small = RNG.integers(0, 255, (4, 5, 6)).astype(np.uint8)
    np.save("small.npy", small)
    api.scale("small.npy", "large.zarr", factor=(4, 3, 1), labels=True)
    result = api.scale("large.zarr", "back.zarr", like="small.npy")
    np.testing.assert_array_equal(voxels_of(tmp_path / "back.zarr"), small)
    assert any("its voxels are taken for 1 x 1 x 1" in note for note in result.plan.source.notes)


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"isolate": True}, {"workers": "cpu:2"}], ids=str)
def test_other_processes_make_the_same(home: Path, how: dict[str, Any]) -> None:
    api.scale("grown.zarr", "back.zarr", like="labels.zarr", **{**CUT, "device_memory": None}, **how)
    np.testing.assert_array_equal(voxels_of(home / "back.zarr"), LABELS)


REFUSED = {
    "--engine cle": "which does not hold uint64; use engine exact",
    "--halo map_overlap": "halo map_overlap cannot scale onto the voxels of another volume",
    "--zoom 2": "zoom and like each say how far to scale; give only one of them",
    "--antialias": "anti-aliasing widens",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_is_refused(isovoxel: Isovoxel, home: Path, words: str) -> None:
    check_refused(isovoxel("scale", "grown.zarr", "out.zarr", "--like", "labels.zarr", *words.split()), REFUSED[words])
    assert not (home / "out.zarr").exists()


@pytest.mark.parametrize(
    ("like", "why"),
    [
        ("missing.tif", "missing.tif is not there"),
        ("plain.npy", "the voxel size of plain.npy is not known, and like needs it"),
        ("unit.tif", "unit.tif has lengths without a unit, so where they lie is not known; give --unit micrometer if"),
        ("out.zarr", "out.zarr"),
    ],
)
def test_a_volume_that_is_no_grid_for_it_is_refused(isovoxel: Isovoxel, home: Path, like: str, why: str) -> None:
    """It is not there, says nothing of its size, lies elsewhere, or is the output."""
    np.save(home / "plain.npy", np.zeros((3, 3, 3), np.uint8))
    tifffile.imwrite(
        home / "unit.tif",
        np.zeros((3, 3, 3), np.uint8),
        imagej=True,
        resolution=(2, 2),
        metadata={"spacing": 2.0, "axes": "ZYX"},
    )
    if like == "out.zarr":
        zarr.open_group(home / "out.zarr", mode="w")
    check_refused(isovoxel("scale", "grown.zarr", "out.zarr", "--like", like), why)


@pytest.mark.parametrize(
    ("shapes", "axes", "option"),
    [([(3, 20, 22)], "CYX", "--channel 0 to 2"), ([(3, 20, 22), (3, 10, 12)], "ZYX", "--image and its number")],
)
def test_a_part_of_a_file_is_converted_before_others_are_like_it(
    isovoxel: Isovoxel, home: Path, shapes: list[tuple[int, ...]], axes: str, option: str
) -> None:
    """Options that select a part are of the input, and what the error advises works."""
    with tifffile.TiffWriter(home / "parts.ome.tif") as file:
        for shape in shapes:
            file.write(np.zeros(shape, np.uint8), photometric="minisblack", metadata={"axes": axes})
    refused = isovoxel("plan", "grown.zarr", "--like", "parts.ome.tif")
    check_refused(refused, option)
    check_refused(refused, "--like has no such option: convert it with that, and give --like what it writes")
    words = [option.split(maxsplit=1)[0], 0, "--input-voxel-size", "2,0.404,0.404", "--unit", "um"]
    assert isovoxel("convert", "parts.ome.tif", "part.zarr", *words).code == 0
    assert isovoxel("plan", "grown.zarr", "--like", "part.zarr").code == 0


def test_a_grid_has_its_unit_by_any_name() -> None:
    """As `unit` has; what is none is refused."""
    image, how = np.zeros((4, 4, 4), np.uint8), {"input_voxel_size": (1000, 1000, 1000), "unit": "nm"}
    assert api.plan(image, like=VoxelGrid((4, 4, 4), unit="um"), **how).output.unit == "micrometer"  # type: ignore[arg-type]
    for unit in ("parsnip", ""):
        with pytest.raises(OptionError, match="is no unit of length"):
            api.plan(image, like=VoxelGrid((4, 4, 4), unit=unit), **how)  # type: ignore[arg-type]


def test_advice_about_a_unit_that_is_missing_helps(isovoxel: Isovoxel, home: Path) -> None:
    """Whichever of the two has none: the options that the error names lead to the same output."""
    image, how = np.zeros((4, 4, 4), np.uint8), {"imagej": True, "resolution": (2, 2)}
    spaced: dict[str, Any] = {"spacing": 1.0, "axes": "ZYX"}
    tifffile.imwrite(home / "bare.tif", image, metadata=spaced, **how)
    tifffile.imwrite(home / "micron.tif", image[:3], metadata=spaced | {"unit": "um"}, **how)
    np.save(home / "plain.npy", image)
    said = isovoxel("plan", "bare.tif", "--like", "micron.tif")
    check_refused(said, "give the unit of bare.tif (--unit)")
    bare = isovoxel("plan", "bare.tif", "--like", "micron.tif", "--unit", "um", "--json").json
    said = isovoxel("plan", "micron.tif", "--like", "bare.tif")
    check_refused(said, "give --unit micrometer if those of bare.tif are in it too")
    other = isovoxel("plan", "micron.tif", "--like", "bare.tif", "--unit", "micrometer", "--json").json
    assert [plan["output"]["unit"] for plan in (bare, other)] == ["micrometer"] * 2
    assert [plan["output"]["shape"] for plan in (bare, other)] == [[3, 4, 4], [4, 4, 4]]
    told = isovoxel("plan", "micron.tif", "--like", "bare.tif", "--unit", "um")
    assert "bare.tif has lengths without a unit, which are taken for micrometer, as --unit says" in told.err
    said = isovoxel("plan", "micron.tif", "--like", "plain.npy", "--unit", "um")
    check_refused(said, "convert it with --input-voxel-size Z,Y,X and --unit, and give --like what that writes")
    isovoxel("convert", "plain.npy", "sized.zarr", "--input-voxel-size", "1,0.5,0.5", "--unit", "um")
    assert isovoxel("plan", "micron.tif", "--like", "sized.zarr", "--json").json["output"]["shape"] == [4, 4, 4]


@pytest.mark.usefixtures("home")
def test_what_an_engine_cannot_or_nothing_can_is_refused() -> None:
    """No engine takes another's place in silence, nor are volumes taken that share no voxel."""
    image, given = RNG.random((4, 5, 6), np.float32), {"input_voxel_size": (1, 1, 1), "unit": "um"}
    grid = VoxelGrid((3, 3, 3), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), "micrometer")
    with pytest.raises(OptionError, match="engine cle cannot scale onto the voxels of another volume"):
        api.plan(image, like=grid, engine="cle", **given)
    with pytest.raises(OptionError, match="share no voxel: along x the first lies from 6 to 8 in voxels of the second"):
        api.plan(image, like=replace(grid, origin=(0.0, 0.0, 6.0)), **given)
    assert api.plan(image, like=replace(grid, origin=(0.0, 0.0, 5.5)), **given).engine == "exact"


def test_voxels_that_are_changed_do_not_verify(home: Path) -> None:
    """Positions of the second grid are those that are computed again."""
    api.scale("grown.zarr", "back.zarr", like="labels.zarr", codec="none")
    array: Any = zarr.open_array(home / "back.zarr" / "0", mode="r+")
    array[4, 7:] = 5
    assert api.verify("grown.zarr", samples=40).holds
    assert not api.verify("back.zarr", samples=40).holds


@pytest.mark.usefixtures("home")
def test_like_is_not_for_converting() -> None:
    with pytest.raises(IsovoxelError, match="like are for scaling"):
        api.convert("grown.zarr", "out.zarr", like="labels.zarr")
