"""What isovoxel's metadata ask for against what is installed: packages of the tests lie first in the path."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import pytest

from isovoxel.doctor import machine as module
from isovoxel.doctor.machine import Fault, Machine, Package, Packages, broken_packages, look_at_packages
from isovoxel.doctor.trials import Asker
from isovoxel.version import __version__

LINUX = Machine(system="linux", processor="x86_64")
Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Install:
    """Return what installs a package in front of all others: its metadata, and the text of its module."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(Machine, "pip", lambda _, *words: f"pip install {' '.join(words)}")

    def put(name: str, version: str = "1.0", *lines: str, module: str | None = None) -> None:
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        text = [f"Name: {name}", f"Version: {version}", *lines]
        (folder / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *text]) + "\n")
        if module is not None:
            (folder / "top_level.txt").write_text(f"{name}\ntests\n")
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text(module)

    return put


def needing(install: Install, *lines: str, version: str = __version__) -> Packages:
    """Return what is found where isovoxel needs this."""
    install("isovoxel", version, *lines)
    return look_at_packages(LINUX, Path("/no/checkout"))


NEEDS: dict[str, tuple[Sequence[str], Sequence[Fault]]] = {
    "all there": (["Requires-Dist: there>=1"], []),
    "missing": (
        ["Requires-Dist: nowhere-at-all>=2,<3"],
        [
            Fault(
                "nowhere-at-all is not installed, which isovoxel needs", "pip install nowhere-at-all<3,>=2", fatal=True
            )
        ],
    ),
    "missing elsewhere only": (["Requires-Dist: nowhere-at-all>=2; sys_platform == 'plan9'"], []),
    "too old": (
        ["Requires-Dist: there>=2"],
        [Fault("there 1.5 is installed, but isovoxel needs there>=2", "pip install there>=2")],
    ),
    "too new": (
        ["Requires-Dist: there<1.5"],
        [Fault("there 1.5 is installed, but isovoxel needs there<1.5", "pip install there<1.5")],
    ),
    "an extra of a package": (
        ["Requires-Dist: there[more]"],
        [Fault("gone is not installed, which isovoxel needs", "pip install gone", fatal=True)],
    ),
    "no clEsperanto": (["Requires-Dist: pyclesperanto-of-tests"], []),
    "Python": (
        ["Requires-Python: >=3.99"],
        [
            Fault(
                f"Python 3.{sys.version_info.minor} is not among those that isovoxel is made for (>=3.99)",
                "python3.12 -m venv isovoxel-env, and install isovoxel into that",
            )
        ],
    ),
    "an extra that is not there": (["Provides-Extra: hdf5", "Requires-Dist: gone; extra == 'hdf5'"], []),
    "an extra that is too old": (
        ["Provides-Extra: hdf5", "Requires-Dist: there>=3; extra == 'hdf5'"],
        [Fault("there 1.5 is installed, but isovoxel[hdf5] needs there>=3", "pip install there>=3")],
    ),
    "an extra that holds a package of the core back": (
        ["Provides-Extra: old", "Requires-Dist: there", "Requires-Dist: there<1; extra == 'old'"],
        [],
    ),
    "an extra of developers": (["Provides-Extra: test", "Requires-Dist: there>=3; extra == 'test'"], []),
}


@pytest.mark.parametrize("case", NEEDS)
def test_what_is_needed_is_compared_with_what_is_installed(install: Install, case: str) -> None:
    """Each fault is one sentence with the command."""
    lines, faults = NEEDS[case]
    install("there", "1.5", "Provides-Extra: more", "Requires-Dist: gone; extra == 'more'")
    assert needing(install, *lines).faults == list(faults)


def test_without_metadata_that_is_said(monkeypatch: pytest.MonkeyPatch, install: Install) -> None:
    """Nothing is known then of what is needed."""
    del install

    def gone(_: str) -> None:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "metadata", gone)
    [fault] = look_at_packages(LINUX, Path("/no/checkout")).faults
    what = "isovoxel is run from /no/checkout and is not installed, so that what it needs is not known"
    assert fault == Fault(what, "pip install isovoxel")


CHECKOUT = """
[project]
requires-python = ">=3.11"
dependencies = ["there>=1", {more}]
[project.optional-dependencies]
hdf5 = ["gone>=3"]
old = ["there<1; python_version < '3'"]
"""


@pytest.mark.parametrize(
    ("more", "ending", "fatal"),
    [
        ("", "so that pip does not know what it needs", False),
        ("'gone'", "and it lacks gone", True),
        ("'gone', 'lost>2'", "and it lacks gone and lost", True),
        ("'gone', 'lost>2', 'away', 'off'", "and it lacks 4 packages that it needs", True),
    ],
)
def test_a_checkout_says_what_it_needs_itself(
    monkeypatch: pytest.MonkeyPatch, install: Install, tmp_path: Path, more: str, ending: str, *, fatal: bool
) -> None:
    """Whatever metadata there are; without any, one fault is all of it."""
    install("there", "1.5")
    (tmp_path / "pyproject.toml").write_text(CHECKOUT.format(more=more))
    monkeypatch.setattr(module, "installed", lambda name: "1.5" if name == "there" else None)
    found = look_at_packages(LINUX, tmp_path)
    what = f"isovoxel is run from {tmp_path} and is not installed, {ending}"
    assert found.faults == [Fault(what, f"pip install -e {tmp_path}", fatal)]
    assert {name: [p.name for p in extra] for name, extra in found.extras.items()} == {
        "hdf5": ["gone"],
        "old": [],
    } or more


def test_the_checkout_of_these_tests_is_read() -> None:
    """All that it needs is known."""
    found = look_at_packages(LINUX)
    assert {"numpy", "zarr", "pyopencl"} <= {package.name for package in found.core}
    assert "hdf5" in found.extras


def test_metadata_of_another_version_are_named(install: Install) -> None:
    """Such as those of an editable installation that is old."""
    [fault] = needing(install, version="0.0.1").faults
    assert fault.what == f"pip has installed isovoxel 0.0.1, but version {__version__} is run"


def test_damaged_metadata_of_a_package_are_a_package_that_is_not_there(install: Install, tmp_path: Path) -> None:
    """As after an installation that was interrupted."""
    (tmp_path / "torn-1.0.dist-info").mkdir()
    (tmp_path / "torn-1.0.dist-info" / "METADATA").write_bytes(b"")
    found = needing(install, "Requires-Dist: torn")
    assert [(p.name, p.fits) for p in found.core] in ([("torn", True)], [("torn", False)])


def test_without_packaging_names_are_compared(monkeypatch: pytest.MonkeyPatch, install: Install) -> None:
    """Versions and markers are not, which is said."""
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    found = needing(install, "Requires-Dist: nowhere-at-all>=2", "Requires-Dist: gone; extra == 'x'")
    assert [p.name for p in found.core] == ["nowhere-at-all"]
    assert [f.what.partition(",")[0] for f in found.faults] == [
        "versions cannot be compared",
        "nowhere-at-all is not installed",
    ]


BROKEN = {
    "raises": ("raise RuntimeError('built for\\nanother processor')", "RuntimeError: built for another processor"),
    "exits": ("raise SystemExit(1)", "SystemExit: 1"),
    "crashes": ("import os; os.abort()", "its process was ended by SIGABRT"),
    "lacks a part": ("import own_part_that_is_gone", "ModuleNotFoundError: No module named 'own_part_that_is_gone'"),
}


@pytest.mark.sampled(1)
@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals")
@pytest.mark.parametrize("case", BROKEN)
def test_packages_that_cannot_be_imported_are_named(install: Install, case: str) -> None:
    """Each of them, whatever it does; those that fail for one of them, or for one that is missing, are not."""
    module, reason = BROKEN[case]
    install("iv_first", module="")
    install("iv_bad", module=module)
    install("iv_user", module="" if "crash" in case or "exit" in case else "import iv_bad")
    install("iv_other", module="import iv_missing")
    install("iv_last", module="raise OSError('also')")
    names = ["iv_first", "iv_bad", "iv_user", "iv_other", "iv_last"]
    needed = [Package(name, name, "1.0", fits=True) for name in names]
    needed.append(Package("iv-missing", "iv-missing", None, fits=False))
    found = broken_packages(needed, Asker(), LINUX)
    assert found == [
        Fault(
            f"iv_bad is installed, but cannot be imported: {reason}", "pip install --force-reinstall iv_bad", fatal=True
        ),
        Fault(
            "iv_last is installed, but cannot be imported: OSError: also", "pip install --force-reinstall iv_last", True
        ),
    ]
