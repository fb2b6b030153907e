"""What `examples/stability.md` promises: today's names are those that it lists, and none of version 0.1 is missing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import isovoxel as api
from command_line import Isovoxel, check_refused
from isovoxel import cli, errors
from isovoxel.execution import events
from isovoxel.output import files
from public_names import public_names
from small_jobs import Stopped, stop_after

PAGE = (Path(__file__).parents[1] / "examples" / "stability.md").read_text(encoding="utf-8")
CHANGELOG = (Path(__file__).parents[1] / "CHANGELOG.md").read_text(encoding="utf-8")
OF_0_1: dict[str, dict[str, list[str]]] = json.loads(
    (Path(__file__).parent / "golden" / "0.1" / "names.json").read_text(encoding="utf-8")
)
CHANGED_BASES = {"InterruptedJobError"}
"""Errors that are something else than in 0.1; the page says so."""
VOXELS = np.random.default_rng(0).integers(0, 999, (4, 8, 8)).astype(np.uint16)


def table(heading: str) -> dict[str, list[str]]:
    """Return the rows of a table of the page, by their first cell."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if line[:1] == "|"]
    return {row[0].strip("` "): row[1:] for row in rows[2:]}


def quoted(text: str) -> list[str]:
    """Return what stands in a text as code."""
    return re.findall(r"`([^`]+)`", text)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[str]]]:
    """Return today's names, with the keys of small jobs."""
    return public_names(tmp_path_factory.mktemp("names"))


@pytest.mark.parametrize("part", ["python", "options", "json", "errors"])
def test_nothing_of_version_0_1_is_missing(part: str, names: dict[str, dict[str, list[str]]]) -> None:
    """Neither a function nor a keyword, attribute, command, option, key, attribute of an output, error or its base."""
    assert OF_0_1[part]
    for name, before in OF_0_1[part].items():
        assert name in names[part]
        if name not in CHANGED_BASES:
            assert set(before) - set(names[part][name]) == set(), name


def test_the_page_lists_what_is_exported() -> None:
    """Each name and command, and no other."""
    rows = table("What is stable")
    assert {name.removeprefix("isovoxel.") for name in quoted(rows["Python names"][0])} == set(api.__all__)
    assert set(quoted(rows["commands"][0])) - {"--help"} == cli.command().commands.keys()


def test_the_page_lists_the_keys(names: dict[str, dict[str, list[str]]]) -> None:
    """Those at the top of what each command prints, and no other."""
    rows = {command: quoted(row[0]) for command, row in table("JSON keys").items()}
    tops = {command: [key for key in keys if not set(".[") & set(key)] for command, keys in names["json"].items()}
    tops.pop("attributes")
    assert rows == tops


def test_the_page_lists_the_ledgers_files() -> None:
    """By the names that a job of another version looks for."""
    listed = quoted(table("What is stable")["jobs"][0])
    assert {files.JOB, files.BLOCKS, files.LOCK, files.MARK} == set(listed[1:])


def test_what_is_deprecated_is_said_on_both_pages() -> None:
    """The changelog has such a section where the page does not say that there is none."""
    assert ("### Deprecated" in CHANGELOG) is ("Nothing is deprecated now" not in PAGE)


def refused_by_python() -> None:
    """Give a keyword that no function knows, and a size without a unit."""
    for call in (api.plan, api.scale):
        with pytest.raises(TypeError, match="did you mean memory"):
            call(VOXELS, "out.zarr", memori=4)  # type: ignore[operator]
    with pytest.raises(errors.OptionError, match="needs a unit"):
        api.plan(VOXELS, factor=(1, 1, 1), memory="4")


def refused_by_the_command(isovoxel: Isovoxel) -> None:
    """Give a variable that no option has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOVOXEL_MEMORI", "4GiB")
        check_refused(isovoxel("info", "in.npy"), "ISOVOXEL_MEMORY")


def engine_on_a_cpu() -> None:
    """Scale without --engine, and with it."""
    if next(d for d in api.devices() if d.index == 0).kind == "gpu":
        pytest.skip("the first device is a GPU")
    assert api.plan(VOXELS, factor=(2, 1, 1)).engine == "exact"
    assert api.plan(VOXELS, factor=(2, 1, 1), engine="cle").engine == "cle"


def checksums_and_options_kept(folder: Path) -> None:
    """Scale, look for the codec, and scale again without options."""
    api.scale(VOXELS, folder / "out.zarr", factor=(2, 1, 1), boundary="constant", codec="zstd")
    assert '"crc32c"' in (folder / "out.zarr" / "0" / "zarr.json").read_text().split('"index_codecs"')[0]
    assert api.scale(VOXELS, folder / "out.zarr").seconds == 0


def zstd_without_blosc(folder: Path) -> None:
    """Look for blosc in what zstd and blosc-zstd make; that outputs of 0.1 go on is shown with those of 0.1."""
    for codec in ("zstd", "blosc-zstd"):
        api.scale(VOXELS, folder / codec, factor=(2, 1, 1), codec=codec)
        assert ('"blosc"' in (folder / codec / "0" / "zarr.json").read_text()) is codec.startswith("blosc")


def voxel_size_unknown() -> None:
    """Open what says 1 x 1 x 1, and no unit."""
    import tifffile

    tifffile.imwrite("one.tif", VOXELS, imagej=True, resolution=(1, 1), metadata={"axes": "ZYX", "spacing": 1.0})
    assert api.open_volume("one.tif").voxel_size is None


def overwrite_keeps(isovoxel: Isovoxel, folder: Path) -> None:
    """Replace an output by a job that stops half-way."""
    api.scale(VOXELS, folder / "old.zarr", factor=(2, 1, 1))
    before = (folder / "old.zarr" / "zarr.json").read_text()

    with pytest.raises((errors.JobError, Stopped)):
        api.scale(
            VOXELS, folder / "old.zarr", factor=(3, 1, 1), overwrite=True, listeners=[stop_after(1, events.JobStarted)]
        )
    assert (folder / "old.zarr.isovoxel" / "replaced" / "zarr.json").read_text() == before
    assert "[now]" in isovoxel("scale", "--help").out


def interrupted() -> None:
    """Look at what it is."""
    assert issubclass(errors.InterruptedJobError, KeyboardInterrupt)
    assert not issubclass(errors.InterruptedJobError, Exception)


def needs() -> list[str]:
    """Return the requirements of the core and those of the extras, as the page tells of them."""
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    core = [re.split(r"[\[<>=; ]", line)[0] for line in project["dependencies"]]
    assert "distributed" in core
    assert project["optional-dependencies"]["prototype"][0].startswith("pyclesperanto-prototype")
    return core


CHANGES: dict[str, Callable[[Isovoxel, Path], Any]] = {
    "engine on a CPU": lambda _, __: engine_on_a_cpu(),
    "clEsperanto": lambda _, __: needs().index("pyclesperanto"),
    "--codec zstd": lambda _, folder: zstd_without_blosc(folder),
    "chunks of OME-Zarr 0.5": lambda _, folder: checksums_and_options_kept(folder),
    "options not given again": lambda _, folder: checksums_and_options_kept(folder),
    "memory size without unit": lambda _, __: refused_by_python(),
    "voxel size 1 x 1 x 1 without unit": lambda _, __: voxel_size_unknown(),
    "--overwrite": overwrite_keeps,
    "unknown keyword": lambda _, __: refused_by_python(),
    "unknown variable `ISOVOXEL_*": lambda isovoxel, _: refused_by_the_command(isovoxel),
    "InterruptedJobError": lambda _, __: interrupted(),
    "workers": lambda _, __: needs().index("distributed"),
    "classes of events": lambda _, __: events.BlockDone,
}
"""What shows each row of the page's last table."""


@pytest.mark.parametrize("row", CHANGES)
def test_what_changed_is_as_the_page_says(
    row: str, isovoxel: Isovoxel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row of it is shown, and no other."""
    monkeypatch.chdir(tmp_path)
    np.save("in.npy", VOXELS)
    assert table("What changed since 0.1").keys() == CHANGES.keys()
    CHANGES[row](isovoxel, tmp_path)
