"""The table of formats, what is said of it elsewhere, and formats that other distributions bring."""

from __future__ import annotations

import inspect
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import zarr

import bad_inputs as bad
import isovoxel as package
from command_line import Isovoxel, check_refused
from isovoxel.errors import InputError, OptionError
from isovoxel.geometry.grid import Box
from isovoxel.readers.open import open_volume
from isovoxel.readers.registry import FORMATS, Format, known_formats
from isovoxel.readers.selection import Selection

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


# ---- formats that other distributions bring --------------------------------------------------------------------------


VOXELS = np.arange(4 * 5 * 6, dtype="uint16").reshape(4, 5, 6)

FORMAT = """
import numpy as np
from isovoxel.readers.base import Volume
from isovoxel.readers.registry import Format

def sniff(at):
    return at.first.startswith(b"PHOTONS")

def read(path, box, out):
    voxels = np.fromfile(path, "uint16", offset=8).reshape(4, 5, 6)[box.slices]
    if out is None:
        return voxels.copy()
    out[...] = voxels
    return out

def open(at, selection):
    return Volume("?", "Photons 1", (4, 5, 6), np.dtype("uint16"), lambda box, out=None: read(at.path, box, out),
                  voxel_size=(2.0, 0.5, 0.5), unit="micrometer")

FORMAT = Format("photons", sniff, open)
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return what makes a distribution: its name, its module's source, and what its entry point leads to."""
    site = tmp_path / "site"

    def make(name: str, source: str, value: str = "FORMAT", group: str = "isovoxel.readers", point: str = "") -> None:
        about = site / f"{name}-1.2.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        leads = f"{name}_module:{value}" if value else f"{name}_module"
        (about / "entry_points.txt").write_text(f"[{group}]\n{point or name} = {leads}\n")
        (site / f"{name}_module.py").write_text(source)
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, f"{name}_module", raising=False)

    return make


@pytest.fixture
def photons(tmp_path: Path) -> Path:
    """Return a file of the made-up format."""
    path = tmp_path / "a.photons"
    path.write_bytes(b"PHOTONS1" + VOXELS.tobytes())
    return path


def test_a_plug_in_opens_its_files(install: Install, photons: Path, tmp_path: Path, isovoxel: Isovoxel) -> None:
    """From Python and the command line, with crop, overrides and a whole job, whose output is that of the array."""
    install("photons", FORMAT)
    volume = package.open_volume(photons)
    assert (volume.kind, volume.shape, volume.voxel_size) == ("Photons 1", (4, 5, 6), (2.0, 0.5, 0.5))
    assert volume.name == str(photons)
    np.testing.assert_array_equal(volume.read(Box((1, 0, 2), (3, 4, 6))), VOXELS[1:3, 0:4, 2:6])
    assert "Photons 1" in isovoxel("info", photons).out
    said = isovoxel("scale", photons, tmp_path / "a.zarr", "--engine", "exact", "--crop", "1:,:,:")
    assert said.code == 0, said.err
    made = package.scale(
        VOXELS[1:], tmp_path / "b.zarr", voxel_size=0.5, input_voxel_size=(2, 0.5, 0.5), engine="exact"
    )
    ours, other = (zarr.open_array(f"{path}/0", mode="r")[:] for path in (tmp_path / "a.zarr", made.path))
    np.testing.assert_array_equal(ours, other)
    assert isovoxel("verify", tmp_path / "a.zarr", "--json", "--samples", 50).json["holds"] is True


def test_a_file_that_changes_is_another_input(install: Install, photons: Path) -> None:
    """Path, size and time of a file are noted for a plug-in that does not."""
    install("photons", FORMAT)
    before = open_volume(photons).identity
    photons.write_bytes(photons.read_bytes() + b"more")
    assert before["path"] == str(photons.resolve())
    assert open_volume(photons).identity != before


def test_what_a_plug_in_does_not_select_is_refused(install: Install, photons: Path) -> None:
    """A channel that nothing chose would be another one."""
    install("photons", FORMAT)
    with pytest.raises(OptionError, match="selects no channels; leave out --channel"):
        open_volume(photons, selection=Selection(channel=1))
    selecting = FORMAT.replace("sniff, open)", 'sniff, open, selects=("channel",))')
    install("more", selecting.replace("PHOTONS", "MORE"))
    photons.write_bytes(photons.read_bytes().replace(b"PHOTONS1", b"MORE1234"))
    assert open_volume(photons, selection=Selection(channel=1)).identity["channel"] == 1


BROKEN = {
    "no module": ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
    "no name": ("", "AttributeError: module 'broken_module' has no attribute 'FORMAT'"),
    "another type": ("FORMAT = {}", "its entry point leads to a dict and no Format"),
    "no function": (FORMAT.replace("sniff, open)", "b'MAGIC', open)"), "TypeError: a Format has a name, and sniff"),
    "sniff raises": (
        FORMAT.replace("at.first.s", "at.nothing.s"),
        "AttributeError: 'Location' object has no attribute",
    ),
    "our name": (FORMAT.replace('"photons"', '"tiff"'), "isovoxel itself has a format of the name tiff"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plug_in_is_named_and_stops_nothing(
    case: str, install: Install, photons: Path, tmp_path: Path, isovoxel: Isovoxel
) -> None:
    """In the error where nothing reads a file, in a note where another plug-in does, and nowhere for other files."""
    source, why = BROKEN[case]
    install("broken", source)
    named = "the reader plug-in "
    said = isovoxel("info", photons)
    check_refused(said, "is of no kind that isovoxel knows")
    assert f"of broken 1.2 cannot be used ({why}" in said.err
    np.save(tmp_path / "a.npy", VOXELS)
    assert named not in "".join(open_volume(tmp_path / "a.npy").notes)
    install("working", FORMAT.replace('"photons"', '"working"'))
    volume = open_volume(photons)
    np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), VOXELS)
    (note,) = volume.notes
    assert note.startswith(named)
    assert why in note


def test_no_plug_in_takes_a_format_of_ours(install: Install, tmp_path: Path) -> None:
    """One that says yes to everything is not even imported for a file that isovoxel recognises."""
    install("greedy", FORMAT.replace('return at.first.startswith(b"PHOTONS")', "return True"))
    np.save(tmp_path / "a.npy", VOXELS)
    zarr.create_array(tmp_path / "a.zarr", data=VOXELS)
    assert [open_volume(tmp_path / name).kind for name in ("a.npy", "a.zarr")] == ["NumPy file", "zarr v3 array"]
    assert "greedy_module" not in sys.modules


def test_a_file_of_two_plug_ins_is_refused(install: Install, photons: Path) -> None:
    """Which of them is right, nobody can know."""
    install("one", FORMAT)
    install("two", FORMAT.replace('"photons"', '"others"'))
    with pytest.raises(
        InputError, match=r"several reader plug-ins, photons by one 1\.2 and others by two 1\.2; uninst"
    ):
        open_volume(photons)


FAILING = {
    "opening raises": ("    return Volume(", "    1 / 0\n    return Volume(", "division by zero"),
    "no volume": ("    return Volume(", "    return dict(a=1) or Volume(", "it gave a dict and no Volume"),
    "a library is missing": (
        "sniff, open)",
        "sniff, open, libraries=('nowhere',))",
        "takes nowhere to read; install it",
    ),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_plug_in_that_cannot_open_a_file_is_one_sentence(
    case: str, install: Install, photons: Path, isovoxel: Isovoxel
) -> None:
    """It names the format, and nothing is written."""
    old, new, why = FAILING[case]
    install("photons", FORMAT.replace(old, new))
    said = isovoxel("info", photons)
    check_refused(said, why)
    assert "photons" in said.err


READS = {
    "reading raises": ("box, out)", "1 / 0, out)", "division by zero"),
    "another shape": ("return voxels.copy()", "return voxels[:1].copy()", "did not return a box as a C-contiguous"),
    "another dtype": ("return voxels.copy()", "return voxels.astype('uint8')", "dtype uint16"),
    "no array": ("return voxels.copy()", "return voxels.tolist()", "did not return a box"),
    "not ours": ("    out[...] = voxels\n    return out", "    return voxels.copy()", "in the array that it was given"),
}


@pytest.mark.parametrize("case", READS)
def test_what_a_plug_in_reads_is_checked(case: str, install: Install, photons: Path) -> None:
    """A wrong array would be scaled as if it were the volume."""
    old, new, why = READS[case]
    source = FORMAT.replace("read(at.path, box, out)", f"read(at.path, {new}") if case == "reading raises" else FORMAT
    install("photons", source.replace(old, new) if case != "reading raises" else source)
    volume = open_volume(photons)
    box = Box.whole(volume.shape)
    out = np.empty(box.shape, "uint16") if case == "not ours" else None
    with pytest.raises(InputError, match=why) as raised:
        volume.read(box, out)
    assert "photons, by photons 1.2" in str(raised.value)


def test_a_folder_can_be_of_a_plug_in(install: Install, tmp_path: Path) -> None:
    """Its files tell whether it has changed."""
    source = FORMAT.replace('at.first.startswith(b"PHOTONS")', '(at.path / "photons").is_file()')
    source = source.replace("read(at.path, box", 'read(at.path / "photons", box').replace(
        "open)", 'open, kinds=("folder",))'
    )
    install("photons", source)
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="is a folder but no zarr"):
        open_volume(tmp_path / "in")
    (tmp_path / "in" / "photons").write_bytes(b"PHOTONS1" + VOXELS.tobytes())
    volume = open_volume(tmp_path / "in")
    np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), VOXELS)
    assert volume.files is not None
    assert list(volume.files(Box.whole(volume.shape))) == [str(tmp_path / "in" / "photons")]


BIOIO = """
import dask.array
import numpy as np
from types import SimpleNamespace

class Reader:
    scenes = ("one",)
    dims = SimpleNamespace(order="ZYX")
    physical_pixel_sizes = SimpleNamespace(Z=2.0, Y=0.5, X=0.5)

    def __init__(self, path):
        self.dask_data = dask.array.from_array(np.fromfile(path, "uint16", offset=8).reshape(4, 5, 6), (1, 5, 6))

    @staticmethod
    def is_supported_image(path):
        return True

class ReaderMetadata:
    get_supported_extensions = staticmethod(lambda: [".photons"])
    get_reader = staticmethod(lambda: Reader)
"""


def test_readers_of_bioio_are_found_by_its_entry_points(install: Install, photons: Path) -> None:
    """Any that is installed opens what no format recognises, where a name ends as it says."""
    install("bioio_photons", BIOIO, value="", group="bioio.readers", point="bioio-photons")
    volume = open_volume(photons)
    assert (volume.kind, volume.voxel_size, volume.unit) == ("bioio-photons", (2.0, 0.5, 0.5), "micrometer")
    np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), VOXELS)
    (photons.parent / "a.other").write_bytes(photons.read_bytes())
    with pytest.raises(InputError, match="is of no kind that isovoxel knows"):
        open_volume(photons.parent / "a.other")


@pytest.mark.parametrize("source", ["import nowhere", "", BIOIO.replace("return True", "raise ValueError('not so')")])
def test_a_broken_reader_of_bioio_is_named(source: str, install: Install, photons: Path) -> None:
    """It stops nothing else."""
    install("bioio_photons", source, value="", group="bioio.readers", point="bioio-photons")
    with pytest.raises(InputError, match=r"the reader plug-in bioio-photons of bioio_photons 1\.2 cannot be used \("):
        open_volume(photons)


def test_plug_ins_are_left_alone_where_ours_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a format of isovoxel's own costs no look at what is installed."""
    np.save(tmp_path / "a.npy", VOXELS)

    def refused(**_: str) -> NoReturn:
        raise AssertionError

    monkeypatch.setattr("isovoxel.readers.plugins.entry_points", refused)
    assert open_volume(tmp_path / "a.npy").kind == "NumPy file"
    (tmp_path / "b").write_bytes(b"nothing known")
    with pytest.raises(InputError, match="AssertionError"):
        open_volume(tmp_path / "b")
