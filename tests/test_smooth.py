"""Labels that grow smoothly: ``interpolation="smooth"``, the label with the largest linearly interpolated share."""

from __future__ import annotations

import itertools
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

import isovoxel as api
from command_line import Isovoxel, check_refused
from isovoxel.geometry.grid import Float3, Index3, VoxelGrid
from outputs import voxels_of

FACTORS: list[Float3] = [(2, 3, 2), (5, 2, 2), (1.7, 2.3, 1), (1, 4, 4), (3, 3, 3), (1, 1, 6)]
DTYPES = ["uint8", "int16", "uint32", "uint64", "int64"]
SHAPE = (3, 4, 5)


def blobs(dtype: str, seed: int = 0, shape: Index3 = SHAPE) -> NDArray[Any]:
    """Return few labels, so that they have neighbours, and large ones where a dtype has them."""
    info = np.iinfo(dtype)
    few = np.array([0, 1, 2, info.max, info.max - 1, info.min], dtype)
    return few[np.random.default_rng(seed).integers(0, len(few), shape)]


def grown(labels: NDArray[Any], factor: Float3, **options: Any) -> NDArray[Any]:
    """Return labels that engine exact has scaled."""
    lazy = da.from_array(labels, chunks=-1)
    found: NDArray[Any] = api.scale_array(lazy, factor, interpolation="smooth", labels=True, **options).compute()
    return found


def by_fractions(labels: NDArray[Any], factor: Float3, shape: Index3, boundary: str) -> NDArray[Any]:
    """Return what the definition says, in exact arithmetic: slow, and without rounding."""
    half, result = Fraction(1, 2), np.empty(shape, labels.dtype)
    by = [Fraction(f).limit_denominator(1000) for f in factor]
    for place in np.ndindex(*shape):
        position = [(o + half) / f - half for o, f in zip(place, by, strict=True)]
        shares: dict[int, Fraction] = {}
        for corner in itertools.product((0, 1), repeat=3):
            at = [p.__floor__() + c for p, c in zip(position, corner, strict=True)]
            share = Fraction(1)
            for p, i in zip(position, at, strict=True):
                share *= 1 - abs(p - i)
            inside = all(0 <= i < n for i, n in zip(at, labels.shape, strict=True))
            clipped = tuple(min(max(i, 0), n - 1) for i, n in zip(at, labels.shape, strict=True))
            label = int(labels[clipped]) if inside or boundary == "nearest" else 0
            shares[label] = shares.get(label, Fraction(0)) + share
        most = max(shares.values())
        result[place] = min(label for label, share in shares.items() if share == most)
    return result


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    ("factor", "boundary", "dtype"),
    [
        (factor, boundary, DTYPES[number % len(DTYPES)])  # for dtypes differ in how labels are compared alone
        for number, (factor, boundary) in enumerate(itertools.product(FACTORS, ["nearest", "constant"]))
    ],
    ids=str,
)
def test_each_voxel_takes_the_label_with_the_largest_share(dtype: str, factor: Float3, boundary: str) -> None:
    """To the last of 64 bits, the smallest of those that have as much, as exact arithmetic has it."""
    labels = blobs(dtype, seed=len(dtype))
    found = grown(labels, factor, boundary=boundary)
    np.testing.assert_array_equal(found, by_fractions(labels, factor, found.shape, boundary))


def test_it_rounds_what_nearest_leaves_as_cubes() -> None:
    """A single voxel becomes a ball, where it grows along all axes."""
    one = np.zeros((5, 5, 5), np.uint8)
    one[2, 2, 2] = 7
    found = grown(one, (8, 8, 8)) == 7
    assert found[20, 20, 20]
    assert 0 < found.sum() < 8**3
    assert not found[16, 16, 16]  # the corner of its cube


@pytest.mark.parametrize("chunks", [(3, 4, 5), (7, 7, 7)])
def test_it_has_no_seams(chunks: Index3) -> None:
    labels = blobs("uint16", shape=(6, 7, 8))
    lazy, options = da.from_array(labels, chunks=(3, 4, 5)), {"interpolation": "smooth", "labels": True}
    cut = api.scale_array(lazy, (3, 2.4, 2), chunks=chunks, **options).compute()
    np.testing.assert_array_equal(cut, grown(labels, (3, 2.4, 2)))


@pytest.mark.parametrize("factor", [(2, 3, 2), (5, 2, 2), (3, 3, 3)], ids=str)
def test_it_is_the_method_of_simpleitk_label_by_label(factor: Float3) -> None:
    """Which interpolates the indicator of each label, and takes the largest."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("SimpleITK", reason="SimpleITK is not installed; it comes with the extra test-all")
    from benchmarks.smooth import by_simpleitk

    labels = np.random.default_rng(5).integers(0, 5, (6, 9, 8)).astype(np.uint8)
    np.testing.assert_array_equal(grown(labels, factor), by_simpleitk(labels, factor))


CUT: dict[str, Any] = {"chunk": (8, 8, 8), "shard": (8, 8, 8), "device_memory": "60kB"}


def test_a_job_makes_and_verifies_it(isovoxel: Isovoxel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks, from the command line; changed voxels are found, and levels are by mode."""
    monkeypatch.chdir(tmp_path)
    labels = blobs("uint32", shape=(9, 10, 11))
    np.save("labels.npy", labels)
    words = ["--labels", "--interpolation", "smooth", "--factor", "3,2,2", "--chunk", "8,8,8", "--shard", "8,8,8"]
    said = isovoxel("scale", "labels.npy", "out.zarr", *words, "--device-memory", "60kB", "--levels", 1)
    assert said.code == 0
    np.testing.assert_array_equal(voxels_of(tmp_path / "out.zarr"), grown(labels, (3, 2, 2)))
    assert isovoxel("verify", "out.zarr", "--samples", 60).code == 0
    array = zarr.open_array(tmp_path / "out.zarr" / "0", mode="r+")
    array[4] = 77
    assert isovoxel("verify", "out.zarr", "--samples", 60).code == 1


def test_an_image_takes_its_labels_along(tmp_path: Path) -> None:
    """Smoothly, where that is asked for."""
    labels = blobs("uint16", shape=(5, 6, 7))
    image = np.random.default_rng(1).integers(0, 255, (5, 6, 7)).astype(np.uint8)
    given: dict[str, Any] = {"factor": (4, 2, 2), "with_labels": labels, "labels_by": "smooth"}
    result = api.scale(image, tmp_path / "out.zarr", **given, **CUT)
    assert result.labels is not None
    assert result.labels.plan.interpolation == "smooth"
    np.testing.assert_array_equal(voxels_of(tmp_path / "out.zarr" / "labels" / "labels"), grown(labels, (4, 2, 2)))


def test_a_coarse_segmentation_goes_smoothly_onto_the_voxels_of_its_image(tmp_path: Path) -> None:
    """With ``like``: shares follow from the positions there."""
    labels = blobs("uint16", shape=(5, 6, 7))
    fine = VoxelGrid((20, 17, 14), (0.5, 0.7, 1.0), (-0.6, 0.3, 0.0), "micrometer")
    given: dict[str, Any] = {"input_voxel_size": (2, 2, 2), "unit": "um", "labels": True, "interpolation": "smooth"}
    result = api.scale(labels, tmp_path / "out.zarr", like=fine, **given, **CUT)
    assert api.open_volume(tmp_path / "out.zarr").grid == fine
    assert result.plan.n_blocks > 1 or result.plan.cost.device < 60_000
    assert api.verify(tmp_path / "out.zarr", against=labels, samples=60).holds


def test_along_one_axis_it_is_the_nearest_and_a_note_says_so() -> None:
    """The larger of two shares is that of the nearer voxel."""
    labels = blobs("uint8")
    options: dict[str, Any] = {"labels": True, "input_voxel_size": (1, 1, 1)}
    np.testing.assert_array_equal(grown(labels, (4, 1, 1)), labels.repeat(4, 0))
    planned = api.plan(labels, factor=(4, 1, 1), interpolation="smooth", **options)
    assert any("smooth gives what nearest does" in note for note in planned.source.notes)
    planned = api.plan(labels, factor=(4, 2, 1), interpolation="smooth", **options)
    assert not any("smooth" in note for note in planned.source.notes)


REFUSED = {
    "--factor 4,0.5,1": "smooth is for labels that grow, but along y the factor is 0.5; mode is for those that shrink",
    "--factor 4,2,1 --engine cle": "must be one of linear, nearest, not 'smooth'; engine exact has it",
    "--factor 4,2,1 --antialias": "anti-aliasing widens linear, cubic and lanczos3 interpolation, not smooth",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_it_is_not_for_is_refused(isovoxel: Isovoxel, tmp_path: Path, words: str) -> None:
    np.save(tmp_path / "labels.npy", blobs("uint8"))
    given = ["--labels", "--interpolation", "smooth", *words.split()]
    check_refused(isovoxel("scale", tmp_path / "labels.npy", tmp_path / "out.zarr", *given), REFUSED[words])
    assert not (tmp_path / "out.zarr").exists()


def test_images_and_floats_are_no_labels(isovoxel: Isovoxel, tmp_path: Path) -> None:
    """Of which there is no share."""
    np.save(tmp_path / "image.npy", np.zeros((3, 3, 3), np.float32))
    words = ["--interpolation", "smooth", "--factor", "2,2,2"]
    check_refused(isovoxel("scale", tmp_path / "image.npy", tmp_path / "out.zarr", *words), "labels are integers")


def test_surfaces_come_nearer_to_spheres_where_several_axes_grow() -> None:
    """As the benchmark measures it: three tenths of nearest's distance go, along one axis none."""
    from benchmarks import smooth

    centres, shape = smooth.spheres()
    for factor, share in (((5.0, 1.0, 1.0), 1.0), ((5.0, 2.0, 2.0), 0.72)):
        sampled = smooth.sampled(centres, shape, factor)
        far = {by: smooth.distance(made, centres) for by, made in smooth.scaled(sampled, factor).items()}
        assert far["smooth"] <= share * far["nearest"]
        assert smooth.distance(smooth.sampled(centres, shape, (1.0, 1.0, 1.0)), centres) < 0.2 < far["smooth"]
