"""Commands that install something: they are those of the system, and of the Python that runs."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

from isovoxel.doctor import machine as module
from isovoxel.doctor.machine import Machine


@pytest.fixture
def python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Return the path of a Python in an environment, with pip but none on the PATH."""
    executable = str(tmp_path / "my env" / "bin" / "python")
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr(sys, "prefix", "/env")
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(module, "find_spec", lambda _: object())
    return executable


def test_pip_is_that_of_the_python_that_runs(monkeypatch: pytest.MonkeyPatch, python: str) -> None:
    """By its short name only where that means it; paths with spaces and versions are quoted."""
    linux = Machine(system="linux")
    assert linux.pip("numpy>=1.26") == f"'{python}' -m pip install \"numpy>=1.26\""
    assert Machine(system="win32").pip("zarr") == f'"{python}" -m pip install zarr'
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/pip")
    assert linux.pip("zarr") == f"'{python}' -m pip install zarr"
    monkeypatch.setattr(shutil, "which", lambda _: str(Path(python).parent / "pip"))
    assert linux.pip("pyopencl[pocl]") == 'pip install "pyopencl[pocl]"'


def test_without_pip_another_program_or_pip_itself_is_got(monkeypatch: pytest.MonkeyPatch, python: str) -> None:
    """Environments that uv has made have none."""
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    assert Machine(system="linux").pip("zarr") == f"'{python}' -m ensurepip && '{python}' -m pip install zarr"
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/uv" if name == "uv" else None)
    assert Machine(system="linux").pip("zarr") == f"uv pip install --python '{python}' zarr"


def test_into_the_systems_python_nothing_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, python: str
) -> None:
    """Distributions forbid it; an environment is made."""
    monkeypatch.setattr(sys, "prefix", "/usr")
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    (tmp_path / "EXTERNALLY-MANAGED").touch()
    made = f"'{python}' -m venv isovoxel-env && isovoxel-env/bin/pip install isovoxel"
    assert Machine(system="linux").pip("isovoxel") == made
    assert Machine(system="linux").pip("zarr>=3") == f'{made} "zarr>=3"'


@pytest.mark.parametrize(
    ("release", "command"),
    [
        ("ID=debian", "sudo apt install pocl-opencl-icd"),
        ('ID="linuxmint"\nID_LIKE="ubuntu debian"', "sudo apt install pocl-opencl-icd"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"', "sudo dnf install pocl"),
        ("ID=arch", "sudo pacman -S pocl"),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"', "sudo zypper install pocl"),
        ("ID=nixos", ""),
        ("", ""),
    ],
)
def test_each_distribution_has_its_command(tmp_path: Path, release: str, command: str) -> None:
    """Those that are made of it too; root needs no sudo."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "os-release").write_text(release)
    names = {"apt": "pocl-opencl-icd", "dnf": "pocl", "pacman": "pocl", "zypper": "pocl"}
    assert Machine(root=tmp_path, is_root=False).install(**names) == command
    assert Machine(root=tmp_path, is_root=True).install(**names) == command.removeprefix("sudo ")
    assert Machine(root=tmp_path).install() == ""


def test_variables_are_set_as_the_system_does() -> None:
    """In a shell, or in Windows' command line."""
    linux, windows = Machine(system="linux"), Machine(system="win32")
    assert (linux.export("A", "b"), windows.export("A", "b")) == ("export A=b", "set A=b")
    assert (linux.unset("A"), windows.unset("A")) == ("unset A", "set A=")
