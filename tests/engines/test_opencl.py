"""Folders for kernels that cannot be written: a temporary one takes their place, or one sentence says what to do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from isovoxel.engines import devices, opencl
from isovoxel.engines.opencl import LEAST_FREE, prepare_caches, unusable
from isovoxel.errors import DeviceError

VARIABLES = ("POCL_CACHE_DIR", "XDG_CACHE_HOME", "HOME", "PYOPENCL_NO_CACHE")


@pytest.fixture(autouse=True)
def _afresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Begin as a process does whose folders can all be written, and end as if nothing had been tried."""
    for name in VARIABLES:
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv("PYOPENCL_NO_CACHE")
    opencl.prepare_caches.cache_clear()
    yield
    opencl.prepare_caches.cache_clear()


def a_file(folder: Path) -> Path:
    """Return a file where there should be a folder."""
    folder.write_text("x")
    return folder


BAD = {
    "a file": (a_file, r"File exists|Not a directory"),
    "below a file": (lambda folder: a_file(folder) / "below", "Not a directory"),
    "where no folder can be": (lambda _: Path("/proc/nowhere"), "No such file or directory"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("variable", VARIABLES[:3])
def test_a_folder_that_cannot_be_written_gets_a_substitute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, bad: str
) -> None:
    """PoCL's is a temporary one, of which is told; pyopencl, where it looks in the same place, does without."""
    make, why = BAD[bad]
    for name in VARIABLES[: VARIABLES.index(variable)]:
        monkeypatch.delenv(name)
    folder = make(tmp_path / "bad")
    monkeypatch.setenv(variable, str(folder))
    caches = prepare_caches()
    assert caches.missing == ""
    assert str(folder) in caches.note
    assert any(part in caches.note for part in why.split("|"))
    made = Path(os.environ["POCL_CACHE_DIR"])
    assert (made.is_dir(), unusable(made)) == (True, "")
    opencl._remove(str(made), os.getpid() + 1)
    assert made.is_dir()
    opencl._remove(str(made), os.getpid())
    assert not made.exists()
    assert ("PYOPENCL_NO_CACHE" in os.environ) == (variable != "POCL_CACHE_DIR")


def test_folders_that_can_be_written_stay(tmp_path: Path) -> None:
    before = dict(os.environ)
    assert prepare_caches() == ("", "")
    assert dict(os.environ) == before
    assert list(tmp_path.glob("*/*")) == []


def test_little_space_counts_as_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """PoCL ends the process where its folder fills up."""
    for free, said in ((LEAST_FREE, ""), (LEAST_FREE - 1, "32.0 MiB are free"), (0, "0 B are free")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        assert unusable(tmp_path) == said


def test_without_any_folder_one_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """PoCL is left out, and where there is no other device it is told why."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5))
    said = (
        r"^PoCL cannot build kernels, .* neither into .* \(5 B are free\) nor .*; set POCL_CACHE_DIR to a folder with 3"
    )
    assert all("Portable" not in device.platform for device in devices.list_devices())
    if not devices.list_devices():
        with pytest.raises(DeviceError, match=said):
            devices.find_device()
