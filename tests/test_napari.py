"""Layers of napari: what of them is scaled, what is said of it, and where the result lies."""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import tifffile

import isovoxel
from command_line import Isovoxel
from isovoxel.errors import InputError, OptionError
from isovoxel.execution.result import Forecast
from ome_zarrs import halved, pyramid

os.environ["NAPARI_CONFIG"] = ""  # neither reads nor keeps settings
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of napari's libraries
    pytest.importorskip("napari", reason="napari is not installed (extra napari)")
    from napari.layers import Image, Labels
    from napari.layers._source import layer_source

from isovoxel.napari.layers import (
    Follower,
    LayerInput,
    Request,
    arranged,
    command,
    default_output,
    find_input,
    is_unchanged,
    keywords,
    new_scale,
    parse_numbers,
    plan_words,
    result_layer,
    scale_layer,
)
from small_jobs import stop_after

pytestmark = pytest.mark.filterwarnings("ignore")  # napari's libraries raise some

SIZE = (2.0, 0.5, 0.5)
rng = np.random.default_rng(3)


def stack(shape: tuple[int, ...] = (6, 20, 24), dtype: str = "uint8") -> Any:
    """Return voxels of which no two are alike for long."""
    return rng.integers(1, 200, shape).astype(dtype)


def shown(kind: type, data: Any, path: Path | str | None = None, **arguments: Any) -> Any:
    """Return a layer as a reader makes it of a file."""
    with layer_source(path=None if path is None else str(path)):
        return kind(data, **arguments)


def write_tiff(path: Path, voxels: Any, axes: str = "ZYX", spacing: float | None = 2.0) -> Path:
    """Write an ImageJ TIFF of voxels of 2 x 0.5 x 0.5 micrometer."""
    metadata = {"axes": axes, "unit": "micron"} | ({} if spacing is None else {"spacing": spacing})
    tifffile.imwrite(path, voxels, imagej=True, resolution=(2, 2), metadata=metadata)
    return path


def asked(found: LayerInput, **changes: Any) -> Request:
    """Return what the widget asks for of a layer whose fields nobody has touched."""
    return replace(Request(found.voxel_size, found.unit), **changes)


# ---- what is scaled --------------------------------------------------------------------------------------------------


def test_a_stack_is_scaled_from_its_file_with_the_voxel_size_of_its_metadata(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "cells.tif", stack())
    layer = shown(Image, tifffile.imread(path), path, name="cells")
    found = find_input(layer)
    assert (found.source, found.opening, found.axes) == (str(path), {}, "zyx")
    assert (found.voxel_size, found.unit, found.sized) == (SIZE, "micrometer", True)
    assert keywords(found, asked(found)) == {}
    assert default_output(layer) == str(tmp_path / "cells_isotropic.zarr")


def test_the_layers_scale_and_units_go_before_those_of_the_file(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "cells.tif", voxels := stack())
    found = find_input(shown(Image, voxels, path, scale=(3, 1, 1), units=["nanometer"] * 3))
    assert (found.voxel_size, found.unit) == ((3.0, 1.0, 1.0), "nanometer")
    assert keywords(found, asked(found)) == {"input_voxel_size": (3.0, 1.0, 1.0), "unit": "nanometer"}


def test_one_of_several_layers_of_a_file_has_an_output_named_by_both(tmp_path: Path) -> None:
    layer = shown(Image, stack(), tmp_path / "two.ome.zarr", name="image [1]")
    assert default_output(layer) == str(tmp_path / "two_image_1_isotropic.zarr")
    assert default_output(Image(stack(), name="a/b")) == str(Path.home() / "a_b_isotropic.zarr")


def test_where_nothing_says_a_voxel_size_the_plan_asks_for_it() -> None:
    found = find_input(Image(stack()))
    assert (found.voxel_size, found.unit, found.sized) == ((1.0, 1.0, 1.0), None, False)
    plan = isovoxel.plan(found.source, **keywords(found, asked(found)))
    assert any("says the voxel size" in sentence for sentence in plan_words(plan, found, Forecast(None, 1, 1)))


@pytest.mark.parametrize("kind", ["NumPy", "dask", "zarr", "xarray", "tensorstore"])
def test_the_array_of_a_layer_without_a_file_is_scaled(kind: str, tmp_path: Path) -> None:
    import zarr

    voxels: Any = stack()
    data = voxels
    if kind == "dask":
        data = da.from_array(voxels, chunks=8)
    if kind == "zarr":
        data = zarr.create_array(tmp_path / "a.zarr", shape=voxels.shape, chunks=(4, 8, 8), dtype=voxels.dtype)
        data[...] = voxels
    if kind == "xarray":
        data = pytest.importorskip("xarray").DataArray(da.from_array(voxels, chunks=8), dims=tuple("zyx"))
    if kind == "tensorstore":
        data = pytest.importorskip("tensorstore").array(voxels)
    found = find_input(layer := shown(Image, data, scale=SIZE, units=["micrometer"] * 3))
    assert not found.is_file
    result = isovoxel.scale(found.source, tmp_path / "out.zarr", **keywords(found, asked(found, how_far=("zoom", 2.0))))
    assert np.array_equal(result.open(), isovoxel.scale_array(da.from_array(voxels), (4, 1, 1)))
    assert result_layer(layer, found, result)[1]["units"] == layer.units


def test_a_layer_that_shows_something_else_than_its_file_is_scaled_from_its_array(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "cells.tif", voxels := stack())
    found = find_input(shown(Image, da.from_array(voxels // 2), path))
    assert not found.is_file
    assert found.why == f"{path} holds other voxels"


@pytest.mark.parametrize("channel", [0, 2])
@pytest.mark.parametrize("dims", ["tczyx", "czyx"])
def test_one_channel_of_an_ome_zarr_is_found_by_its_voxels(channel: int, dims: str, tmp_path: Path) -> None:
    voxels = stack((2, 3, 6, 20, 24)) if dims == "tczyx" else stack((3, 6, 20, 24))
    levels = halved(voxels, 2)
    path = pyramid(tmp_path / "cells.zarr", levels, axes=dims)
    axes = dims.replace("c", "")
    data = [da.take(da.from_array(level), channel, axis=dims.index("c")) for level in levels]
    found = find_input(shown(Image, data, path, multiscale=True, axis_labels=tuple(axes)))
    assert (found.source, found.opening, found.axes) == (str(path), {"channel": channel}, axes)
    assert found.voxel_size == SIZE


def test_one_level_of_an_ome_zarr_has_its_voxel_size(tmp_path: Path) -> None:
    levels = halved(stack((8, 16, 24)), 2)
    path = pyramid(tmp_path / "cells.zarr", levels)
    (path / "level1").rename(path / "1")
    attributes = path / "zarr.json"
    attributes.write_text(attributes.read_text().replace('"level1"', '"1"'))
    assert find_input(shown(Image, levels[1], path)).opening == {"level": 1}
    found = find_input(shown(Image, levels[1], path / "1"))
    assert (found.source, found.opening, found.voxel_size) == (str(path), {"level": 1}, (4.0, 1.0, 1.0))


def test_labels_of_an_ome_zarr_are_found_in_its_group(tmp_path: Path) -> None:
    path = pyramid(tmp_path / "cells.zarr", [stack()])
    nuclei = stack(dtype="uint16")
    pyramid(path / "labels" / "nuclei", [nuclei])
    found = find_input(shown(Labels, nuclei, path))
    assert (found.source, found.labels) == (str(path / "labels" / "nuclei"), True)


def test_channels_between_planes_as_imagej_has_them_are_named_by_the_file(tmp_path: Path) -> None:
    voxels = stack((6, 2, 20, 24))
    path = write_tiff(tmp_path / "cells.tif", voxels, "ZCYX")
    layer = shown(Image, voxels, path)
    found = find_input(layer)
    assert (found.is_file, found.axes) == (True, "zcyx")
    result = isovoxel.scale(found.source, tmp_path / "out.zarr", levels=0, **keywords(found, asked(found)))
    data, arguments, _ = result_layer(layer, found, result)
    assert data.shape == (24, 2, 20, 24)
    assert np.array_equal(data[:, 1], isovoxel.scale_array(da.from_array(voxels[:, 1]), (4, 1, 1)))
    assert list(arguments["scale"]) == [0.25, 1, 1, 1]  # the layer has no scale, and so lies in its own voxels


def test_axes_that_a_user_names_are_taken() -> None:
    found = find_input(Image(stack((6, 2, 20, 24))), "zcyx")
    assert (found.opening, [axis.name for axis in found.volume.series]) == ({"axes": "zcyx"}, ["c"])
    assert find_input(Image(stack((6, 2, 20, 24)))).axes == "tzyx"


def test_rgb_is_refused_in_a_sentence() -> None:
    with pytest.raises(InputError, match="RGB"):
        find_input(Image(stack((6, 20, 24, 3)), rgb=True))


def test_labels_that_were_edited_are_not_those_of_the_file(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "nuclei.tif", voxels := stack())
    layer = shown(Labels, voxels.copy(), path)
    found = find_input(layer)
    assert found.is_file
    assert is_unchanged(found, layer)
    layer.data[5, 19, 0] += 1
    assert find_input(layer).is_file  # for not all voxels are looked at
    assert not is_unchanged(found, layer)


@pytest.mark.parametrize("how", ["computed", "zarr", "cut from a zarr"])
def test_all_voxels_of_a_lazy_layer_are_compared_before_a_job(how: str, tmp_path: Path) -> None:
    """Unless it does nothing but read: where a few voxels differ that were not looked at, the array is scaled."""
    import zarr

    path = write_tiff(tmp_path / "cells.tif", voxels := stack())
    other = voxels.copy()
    other[5, 19, 0] += 1
    stored = zarr.create_array(tmp_path / "other.zarr", data=other, chunks=(4, 8, 8))
    lazy = {
        "computed": da.from_array(voxels, chunks=5).map_blocks(np.add, da.from_array(other - voxels, chunks=5)),
        "zarr": stored,
        "cut from a zarr": da.from_zarr(stored).map_blocks(np.positive),
    }
    layer = shown(Image, lazy[how], path, scale=SIZE)
    found = find_input(layer)
    assert found.is_file
    assert not is_unchanged(found, layer)
    same = shown(Image, da.from_array(voxels, chunks=5).map_blocks(np.positive), path, scale=SIZE)
    assert is_unchanged(find_input(same), same)
    follower = Follower(found)
    result = scale_layer(layer, follower, asked(found), str(tmp_path / "out.zarr"), overwrite=False)
    assert not follower.found.is_file
    assert "its voxels are no longer those of" in follower.found.why
    expected = isovoxel.scale_array(other, (4, 1, 1))
    np.testing.assert_array_equal(np.asarray(result.open()), np.asarray(expected))


def test_what_a_layer_does_nothing_but_read_is_not_read_twice(tmp_path: Path) -> None:
    """A channel, cut out of what napari's readers give."""
    voxels = stack((2, 6, 20, 24))
    path = pyramid(tmp_path / "cells.zarr", [voxels], axes="czyx")
    layer = shown(Image, da.from_zarr(path / "level0")[1], path)
    found = find_input(layer)
    assert found.is_file

    def fail() -> None:
        raise AssertionError("it is compared")

    assert is_unchanged(found, layer, fail)


def test_a_comparison_can_be_cancelled(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "nuclei.tif", voxels := stack())
    layer = shown(Labels, voxels.copy(), path)
    follower = Follower(find_input(layer))
    follower.cancelled = True
    with pytest.raises(KeyboardInterrupt):
        scale_layer(layer, follower, asked(follower.found), str(tmp_path / "out.zarr"), overwrite=False)
    assert not (tmp_path / "out.zarr").exists()


def test_floating_point_voxels_that_are_no_numbers_are_the_same_as_themselves(tmp_path: Path) -> None:
    voxels = stack().astype("float64") / 3
    voxels[2:4] = np.nan
    np.save(tmp_path / "cells.npy", voxels)
    layer = shown(Image, voxels, tmp_path / "cells.npy")
    found = find_input(layer)
    assert found.is_file
    assert is_unchanged(found, layer)


# ---- what is asked for and said --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "1, 2", "1, 2, x", "1 2 3 4"])
def test_a_voxel_size_that_is_none_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(OptionError, match="voxel size is three numbers, z, y, x"):
        parse_numbers("voxel size", text, 3)


def test_numbers_come_back_to_the_bit() -> None:
    sizes = (0.1 + 0.2, 1 / 3, 2e-07)
    assert parse_numbers("voxel size", ", ".join(map(repr, sizes)), 3) == sizes


def test_a_plan_is_told_in_words(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "cells.tif", voxels := stack())
    found = find_input(shown(Image, voxels, path))
    plan = isovoxel.plan(path, tmp_path / "out.zarr", **keywords(found, asked(found)), engine="exact", device="cpu")
    file, result, work, memory, time = plan_words(plan, found, Forecast(12.0, 1, 1))
    assert file == "File: (6, 20, 24) voxels of 2 x 0.5 x 0.5 micrometer, uint8."
    assert result == "Result: (24, 20, 24) voxels of 0.5 x 0.5 x 0.5 micrometer, 11.2 KiB."
    assert work == f"Work: 1 block, 1 at a time, by engine exact on {plan.device.name} (CPU)."
    assert memory.startswith("Memory: at most ")
    assert time == "Time: about 12 s, as earlier jobs here took."


def test_the_command_that_is_shown_resumes_the_job(isovoxel: Isovoxel, tmp_path: Path) -> None:
    import isovoxel as package

    voxels = stack((2, 100, 200, 200))
    path = pyramid(tmp_path / "two cells.zarr", [voxels], axes="czyx", chunks=(1, 100, 200, 200))
    found = find_input(shown(Image, voxels[1], path, scale=(3, 0.25, 0.25), units=["micrometer"] * 3))
    out = str(tmp_path / "out.zarr")
    options = keywords(found, asked(found, how_far=("voxel_size", 0.2), engine="exact", device="cpu"))
    with pytest.raises(KeyboardInterrupt):
        package.scale(found.source, out, listeners=[stop_after(how=KeyboardInterrupt)], **options)
    state = package.output_state(out)
    assert state is not None
    assert 0 < state.done < state.blocks
    said = isovoxel(*shlex.split(command(found.source, out, options))[1:])
    assert said.code == 0
    assert f"resuming: {state.done} of {state.blocks} blocks already done" in said.err


# ---- the result ------------------------------------------------------------------------------------------------------

PLACED = {
    "as it is": {"scale": SIZE},
    "moved": {"scale": SIZE, "translate": (7, -3, 40)},
    "turned": {"scale": SIZE, "translate": (7, -3, 40), "rotate": (20, 30, 40)},
    "sheared": {"scale": SIZE, "shear": (0.2, 0, 0.1)},
    "by an affine map": {"scale": SIZE, "translate": (1, 2, 3), "affine": np.diag([2, 1, 0.5, 1]) + np.eye(4, k=3) * 9},
    "without a scale": {},
    "mirrored": {"scale": (2.0, -0.5, 0.5)},
}


@pytest.mark.sampled(8)
@pytest.mark.parametrize("how_far", [None, ("voxel_size", 0.3), ("voxel_size", 1.5), ("zoom", 1.0)])
@pytest.mark.parametrize("placed", PLACED)
def test_a_landmark_lies_in_the_result_where_it_lies_in_the_layer(placed: str, how_far: Any, tmp_path: Path) -> None:
    places = np.meshgrid(*map(np.arange, (12, 40, 44)), indexing="ij", sparse=True)
    at = np.array([5, 22, 17])
    blob = sum(((p - c) / width) ** 2 for p, c, width in zip(places, at, (1, 4, 4), strict=True))
    voxels = (250 * np.exp(-blob / 2)).astype("float32")
    layer = Image(voxels, **PLACED[placed])
    found = find_input(layer)
    request = asked(found, voxel_size=SIZE, how_far=how_far, antialias=how_far is not None)
    result = isovoxel.scale(found.source, tmp_path / "out.zarr", levels=1, **keywords(found, request))
    data, arguments, kind = result_layer(layer, found, result)
    shows = {"image": Image, "labels": Labels}[kind](data, **arguments)
    finest = np.asarray(data[0])
    centre = [(finest * p).sum() / finest.sum() for p in np.meshgrid(*map(np.arange, finest.shape), indexing="ij")]
    there = np.subtract(layer.world_to_data(shows.data_to_world(centre)), at)
    assert np.abs(there).max() < 0.1, there  # half a voxel would do
    # The outer faces stay where they are, but for sizes that are rounded to whole voxels.
    face = layer.world_to_data(shows.data_to_world([-0.5] * 3))
    assert np.allclose(face, -0.5)


def test_a_layer_without_a_scale_gets_the_voxel_size_and_stays_at_its_place() -> None:
    layer = Image(stack(), translate=(1, 2, 3))
    given = new_scale(layer, "zyx", SIZE, "micrometer")
    for name, value in given.items():
        setattr(layer, name, value)
    assert list(layer.scale) == list(SIZE)
    assert list(layer.translate) == [2, 1, 1.5]
    assert [str(unit) for unit in layer.units] == ["micrometer"] * 3
    assert new_scale(layer, "zyx", SIZE, "micrometer") == {}


def test_time_points_and_planes_keep_their_axes() -> None:
    array = np.zeros((2, 3, 5, 7))
    assert arranged(array, "tzyx", "tzyx").shape == (2, 3, 5, 7)
    assert arranged(array[:, :1], "tzyx", "tyx").shape == (2, 5, 7)
    assert arranged(array[0], "zyx", "czyx").shape == (1, 3, 5, 7)


def test_a_plane_is_scaled_to_a_plane(tmp_path: Path) -> None:
    layer = Image(stack((20, 24)), scale=(0.5, 0.25))
    found = find_input(layer)
    result = isovoxel.scale(found.source, tmp_path / "out.zarr", **keywords(found, asked(found)))
    data, arguments, _ = result_layer(layer, found, result)
    assert (data.shape, list(arguments["scale"])) == ((40, 24), [0.25, 0.25])


def test_labels_become_labels_and_are_not_mixed(tmp_path: Path) -> None:
    layer = Labels(np.where(stack() > 100, 7, 900), scale=SIZE)
    found = find_input(layer)
    options = keywords(found, asked(found))
    assert options["labels"] is True
    result = isovoxel.scale(found.source, tmp_path / "out.zarr", **options)
    data, arguments, kind = result_layer(layer, found, result)
    assert kind == "labels"
    assert set(np.unique(np.asarray(data))) == {7, 900}
    assert isinstance(Labels(data, **arguments), Labels)


def test_a_result_is_scaled_again_from_what_was_written(tmp_path: Path) -> None:
    layer = Image(stack(), scale=SIZE)
    found = find_input(layer)
    result = isovoxel.scale(found.source, tmp_path / "out.zarr", levels=1, **keywords(found, asked(found)))
    data, arguments, _ = result_layer(layer, found, result)
    assert find_input(Image(data, **arguments)).source == str(tmp_path / "out.zarr")


# ---- the manifest ----------------------------------------------------------------------------------------------------


def test_napari_finds_the_plug_in() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from npe2 import PluginManifest

    package = Path(isovoxel.__file__).parent
    manifest = PluginManifest.from_file(package / "napari.yaml")
    (widget,), (sample,) = manifest.contributions.widgets, manifest.contributions.sample_data
    assert (widget.display_name, sample.key) == ("Make isotropic", "blastocyst")
    assert {widget.command, sample.command} == {each.id for each in manifest.contributions.commands}
    for each in manifest.contributions.commands:
        module, name = each.python_name.split(":")
        assert (
            f"\n{'class' if name[0].isupper() else 'def'} {name}("
            in (package / f"{module[9:].replace('.', '/')}.py").read_text()
        )
    entry = (Path(isovoxel.__file__).parents[2] / "pyproject.toml").read_text()
    assert '[project.entry-points."napari.manifest"]\nisovoxel = "isovoxel:napari.yaml"' in entry
    if find_spec("qtpy") and {"PyQt6", "PySide6"} & set(sys.modules):
        manifest.validate_imports()
