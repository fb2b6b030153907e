"""The table of formats, and what is said of it elsewhere."""

from __future__ import annotations

import inspect
import sys
import tomllib
from pathlib import Path

import pytest

import bad_inputs as bad
import isovoxel as package
from command_line import Isovoxel
from isovoxel.errors import InputError
from isovoxel.readers.registry import FORMATS, Format, known_formats

ROOT = Path(__file__).parents[2]
SHORT = {
    "folders of TIFF slices": "slices",
    "zarr arrays": "zarr",
    "PNG slices": "PNG",
    "BigDataViewer N5": "BigDataViewer",
}
"""What inputs of a format are called where its name is a plural, or part of another's."""
NAMES = [(SHORT.get(name, name), one.extra) for one in FORMATS for name in (one.name, *one.also)]


def test_every_format_is_told_of(isovoxel: Isovoxel) -> None:
    """In the message of what can be read, in the help of the command line, and in Python's."""
    told = {
        "message": known_formats(),
        "command line": " ".join(isovoxel("scale", "--help").out.split()),
        "Python": inspect.getdoc(package.open_volume) or "",
    }
    assert not [(where, name) for where, text in told.items() for name, _ in NAMES if name not in text]


@pytest.mark.parametrize(("name", "extra"), NAMES)
def test_the_readme_lists_every_format_and_what_brings_it(name: str, extra: str | None) -> None:
    """In one row of its table."""
    rows = [
        line
        for line in (ROOT / "examples" / "formats.md").read_text().splitlines()
        if line.startswith("| ") and name in line
    ]
    brought = "isovoxel" if extra is None else f"`isovoxel[{extra}]`"
    assert any(row.rstrip(" |").endswith(f"| {brought}") for row in rows)


def test_every_extra_is_one_of_the_project() -> None:
    """Or pip would not find what a message names."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {one.extra for one in FORMATS if one.extra is not None} <= {*extras}


@pytest.mark.parametrize(
    ("library", "extra", "make"),
    [("h5py", "hdf5", bad.hdf5()), ("nibabel", "nifti", bad.nifti()), ("tensorstore", "n5", bad.n5())],
)
def test_without_a_library_one_sentence_says_what_brings_it(
    library: str, extra: str, make: bad.Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an extra, for few microscopists have such files."""
    path = make(tmp_path)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"takes {library} to read; pip install 'isovoxel\[{extra}\]' brings it"):
        package.open_volume(path)


def test_a_format_is_checked() -> None:
    """Whoever writes one learns at once what it must be."""
    with pytest.raises(TypeError, match="has a name, and sniff and open"):
        Format("a", b"magic", lambda *_: None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="other kinds or selects"):
        Format("a", lambda _: True, lambda *_: None, selects=("colour",))  # type: ignore[arg-type, return-value]
