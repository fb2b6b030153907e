"""`isovoxel show` draws files as they are, reads one level at most, and takes no file of anybody else's."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

import isovoxel as package
from command_line import Isovoxel, check_refused, listing
from isovoxel.api import open_volume
from isovoxel.errors import DoesNotFitError, OptionError
from isovoxel.reporting.files import MARK
from isovoxel.reporting.progress import ReadingView
from isovoxel.reporting.show import draw, label_colours
from isovoxel.reporting.views import arrange


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a stack of 20 x 40 x 60 voxels, one of them bright."""
    monkeypatch.chdir(tmp_path)
    stack = np.zeros((20, 40, 60), np.uint16)
    stack[7, 30, 11] = 900
    write_tiff(tmp_path / "stack.tif", stack)
    return tmp_path


def write_tiff(path: Path, stack: NDArray[Any]) -> None:
    """Write a stack with voxels of 2 x 0.5 x 0.5 micrometers."""
    metadata = {"axes": "ZYX", "spacing": 2.0, "unit": "micron"}
    tifffile.imwrite(path, stack, imagej=True, resolution=(2, 2), metadata=metadata)


def write_pyramid(path: Path, shape: tuple[int, int, int], levels: int) -> None:
    """Write an OME-Zarr whose levels can be told apart: level 0 holds 1, each coarser one a value one higher."""
    group = zarr.open_group(path, mode="w")
    datasets = []
    for level in range(levels):
        sides = tuple(max(1, n >> level) for n in shape)
        array = group.create_array(str(level), shape=sides, chunks=(16, 512, 512), dtype="uint8")
        array[:] = level + 1
        array[0, 0, 0] = 0
        scale = [1.0 * 2**level] * 3
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}


def test_the_picture_is_named_after_the_file(isovoxel: Isovoxel, folder: Path) -> None:
    """It lies in the working folder, says who made it, and is made again in its own place."""
    said = isovoxel("show", "stack.tif")
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines()[0] == "drawn    stack.tif   maximum of all voxels, black 0, white 900"
    with Image.open(folder / "stack.png") as image:
        assert said.out.splitlines()[1] == f"picture  stack.png   {image.width} x {image.height} pixels"
        assert image.info["Software"] == MARK
    assert isovoxel("show", "stack.tif", "--json").json["path"] == "stack.png"


def test_two_files_stand_at_one_scale(isovoxel: Isovoxel, folder: Path) -> None:
    """The same extent is as many pixels in both halves, whatever the voxels are."""
    write_tiff(folder / "small.tif", np.ones((10, 20, 30), np.uint8))
    record = isovoxel("show", "stack.tif", "small.tif", "-o", "two.png", "--json").json
    assert [v["name"] for v in record["volumes"]] == ["stack.tif", "small.tif"]
    with Image.open("two.png") as image:
        assert record["size"] == list(image.size)
    volumes = [open_volume(name) for name in ("stack.tif", "small.tif")]
    left, right = arrange(volumes, ["", ""])
    for a, b in zip(left.views, right.views, strict=True):
        assert a.image[2] == pytest.approx(2 * b.image[2], abs=1)
        assert a.image[3] == pytest.approx(2 * b.image[3], abs=1)


def test_a_part_is_drawn_as_a_file_of_its_own_would_be(isovoxel: Isovoxel, folder: Path) -> None:
    """One channel of one time point, and a box of its voxels."""
    stack = np.random.default_rng(1).integers(0, 60_000, (2, 6, 3, 20, 30)).astype(np.uint16)
    metadata = {"axes": "TZCYX", "spacing": 2.0, "unit": "micron"}
    tifffile.imwrite(folder / "image.tif", stack, imagej=True, resolution=(2, 2), metadata=metadata)
    (folder / "part").mkdir()
    write_tiff(folder / "part/image.tif", stack[1, 1:5, 2, :-4])
    words = ("--time", 1, "--channel", 2, "--crop", "1:5,:-4,:")
    assert isovoxel("show", "image.tif", *words, "-o", "many.png").code == 0
    assert isovoxel("show", "part/image.tif", "-o", "one.png").code == 0
    with Image.open("many.png") as many_drawn, Image.open("one.png") as one_drawn:
        np.testing.assert_array_equal(np.asarray(many_drawn), np.asarray(one_drawn))
    said = isovoxel("show", "image.tif", "-o", "many.png").out
    assert "maximum of all voxels of time point 0, channel 0, black" in said


def test_a_level_is_drawn_as_it_is(isovoxel: Isovoxel, folder: Path) -> None:
    """The one that is asked for; and the second of two files, which has none, is drawn beside it."""
    write_pyramid(folder / "image.zarr", (8, 200, 200), 3)
    said = isovoxel("show", "image.zarr", "stack.tif", "--level", 2, "-o", "two.png", "--json").json
    assert [v["drawn"] for v in said["volumes"]] == 2 * ["maximum of all voxels, black 0, white 3"]


@pytest.mark.parametrize("name", ["notes.png", "stack.tif"])
def test_a_file_of_anybody_elses_stays(isovoxel: Isovoxel, folder: Path, name: str) -> None:
    """Neither by its default name nor by a slip does a picture replace what isovoxel has not drawn."""
    (folder / "notes.png").write_bytes(b"\x89PNG of somebody's")
    before = listing(folder)
    check_refused(isovoxel("show", "stack.tif", "-o", name), f"{name} exists and is no picture of isovoxel's")
    check_refused(isovoxel("show", "stack.tif", "-o", "no/where.png"), "its folder does not exist")
    check_refused(isovoxel("show", "stack.tif", "-o", "new.svg"), "must end in .png, not as 'new.svg' does")
    check_refused(isovoxel("show", "stack.tif", "-o", "."), "is no name of a file")
    assert listing(folder) == before


def test_labels_have_their_colours(isovoxel: Isovoxel, folder: Path) -> None:
    """Asked for, a stack of labels shows the colour of each, and nothing between."""
    stack = np.zeros((6, 40, 40), np.uint16)
    stack[2:4, 5:20, 5:20], stack[2:4, 22:30, 22:30] = 1, 60000
    write_tiff(folder / "labels.tif", stack)
    said = isovoxel("show", "labels.tif", "--labels")
    assert "one colour per label" in said.out
    (layout,) = arrange([open_volume("labels.tif")], ["labels.tif: "])
    left, top, width, height = layout.views[0].image
    with Image.open("labels.png") as image:
        pixels = np.asarray(image.convert("RGB"))[top : top + height, left : left + width]
    expected = {tuple(c) for c in label_colours(np.array([0, 1, 60000])).tolist()}
    assert {tuple(c) for c in np.unique(pixels.reshape(-1, 3), axis=0).tolist()} == expected
    write_tiff(folder / "float.tif", stack.astype(np.float32))
    check_refused(isovoxel("show", "float.tif", "--labels"), "labels are integers")


def test_of_a_pyramid_one_level_is_read(folder: Path) -> None:
    """It is the coarsest with a voxel for each pixel; no chunk of another is opened."""
    write_pyramid(folder / "image.zarr", (8, 2100, 2100), 4)
    for level in (0, 2, 3):
        for chunk in (folder / "image.zarr" / str(level)).glob("c/*/*/*"):
            chunk.write_bytes(b"no chunk")  # reading it would be an error
    volume = open_volume("image.zarr")
    assert len(volume.coarser) == 3
    (layout,) = arrange([volume], [""])
    assert 525 < layout.views[0].image[2] <= 1050
    drawn = draw([volume], [""])
    assert drawn.captions == ("maximum of a coarser level, 4 x 1050 x 1050 voxels, black 2, white 2",)


def test_proportions_are_those_of_the_image_whatever_level_is_read(folder: Path) -> None:
    """Levels are rounded, and thin ones end at one voxel; what is drawn has the finest level's extent."""
    write_pyramid(folder / "image.zarr", (3, 2500, 1700), 3)
    volume = open_volume("image.zarr")
    drawn = draw([volume], [""])
    (layout,) = arrange([volume], [""], drawn.captions)
    width, height = layout.views[0].image[2:]
    assert height / width == pytest.approx(2500 / 1700, abs=1.5 / width)
    assert drawn.size[1] == layout.size[1] + 2 * 28


def test_names_are_written_whatever_they_hold(isovoxel: Isovoxel, folder: Path) -> None:
    """A name that is long, or has characters that the font lacks or that nothing can show, is drawn all the same."""
    name = "試料 [bold] $x_{$ \\udcff\x01\t " + 50 * "x" + ".tif"
    (folder / "stack.tif").rename(folder / name)
    said = isovoxel("show", name, "-o", "view.png")
    assert (said.code, said.err) == (0, "")
    with Image.open("view.png") as image:
        assert image.width < 1400


def test_long_reads_are_shown_on_a_terminal() -> None:
    """Nothing for a moment, then a bar; a log has a line each 30 seconds."""
    now = [0.0]
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, color_system=None, _environ={})
    with ReadingView(console, clock=lambda: now[0]) as view:
        view("reading [a].tif", 1, 100)
        assert file.getvalue() == ""
        now[0] = 2.0
        view("reading [a].tif", 50, 100)
    assert "reading [a].tif" in file.getvalue()
    assert "50%" in file.getvalue()


def test_long_reads_are_lines_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    """One each 30 seconds; none when quiet."""
    for quiet in (False, True):
        now = [0.0]
        with ReadingView(quiet=quiet, clock=lambda now=now: now[0]) as view:  # type: ignore[misc]
            for second in range(0, 100, 10):
                now[0] = float(second)
                view("reading a.tif", second, 100)
    assert capsys.readouterr().err == "".join(f"reading a.tif: {n} %\n" for n in (30, 60, 90))


def pixels_of(png: bytes) -> NDArray[np.uint8]:
    """Return the RGB voxels of a PNG file."""
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.usefixtures("folder")
def test_python_gets_a_figure_of_what_the_command_draws(isovoxel: Isovoxel) -> None:
    """Of a path, an array or a volume; no window is opened, and nothing is written."""
    assert isovoxel("show", "stack.tif", "-o", "one.png").code == 0
    figure = package.show("stack.tif")
    assert isinstance(figure, Figure)
    np.testing.assert_array_equal(pixels_of(figure._repr_png_()), pixels_of(Path("one.png").read_bytes()))

    bright = tifffile.imread("stack.tif")
    of_array = package.show(bright, voxel_size=(2.0, 0.5, 0.5), unit="um", crop="5:10,:,:")
    of_volume = package.show(package.open_volume("stack.tif", crop="5:10,:,:"))
    assert of_array.get_size_inches().tolist() == of_volume.get_size_inches().tolist()
    assert sorted(file.name for file in Path.cwd().iterdir()) == ["one.png", "stack.tif"]


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_a_figure_shows_two_volumes_at_one_scale(isovoxel: Isovoxel) -> None:
    """As the command does; and what cannot be drawn is an error."""
    write_tiff(Path("small.tif"), np.ones((10, 20, 30), np.uint8))
    assert isovoxel("show", "stack.tif", "small.tif", "-o", "two.png").code == 0
    figure = package.show("stack.tif", "small.tif")
    np.testing.assert_array_equal(pixels_of(figure._repr_png_()), pixels_of(Path("two.png").read_bytes()))
    with pytest.raises(OptionError, match="one scale cannot show both"):
        package.show("stack.tif", np.ones((4, 5, 6), np.uint8))
    with pytest.raises(OptionError, match="labels are integers"):
        package.show(np.ones((4, 5, 6), np.float32), labels=True)
    with pytest.raises(DoesNotFitError, match="drawing takes"):
        package.show("stack.tif", memory="1MB")


def test_a_figure_has_any_resolution() -> None:
    """At twice as many pixels each of a view's is a square of four: it lies where it lay, and nothing is smoothed."""
    volume = package.open_volume(np.arange(60, dtype=np.uint8).reshape(3, 4, 5), voxel_size=(1, 1, 1))
    figure = package.show(volume)
    file = io.BytesIO()
    figure.savefig(file, dpi=2 * figure.dpi)
    once, twice = pixels_of(figure._repr_png_()), pixels_of(file.getvalue())
    (layout,) = arrange([volume], ["the NumPy array: "])
    assert len(layout.views) == 3
    for place in layout.views:
        left, top, width, height = place.image
        small = once[top : top + height, left : left + width]
        large = twice[2 * top : 2 * (top + height), 2 * left : 2 * (left + width)]
        assert len(np.unique(small)) > 8
        # But for the frame around what the detail shows, which is a line.
        assert np.mean(large == small.repeat(2, axis=0).repeat(2, axis=1)) > 0.999
