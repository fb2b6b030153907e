"""The machine and the Python that isovoxel runs on, and the commands that install something there."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

CONDA = "conda install -c conda-forge pyopencl pocl"
"""What brings OpenCL for the processor in a conda environment: on Linux, macOS and Windows, x86-64 and ARM."""


@dataclass(frozen=True)
class Machine:
    """What of a machine decides which sentences and commands are true."""

    system: str = sys.platform
    """As `sys.platform` has it."""
    processor: str = field(default_factory=lambda: platform.machine().lower())
    """Such as "x86_64", "aarch64", "arm64", "amd64"."""
    root: Path = Path("/")
    """Where ``/proc``, ``/sys``, ``/dev`` and ``/etc`` lie."""
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    """Its variables."""
    is_root: bool = field(default_factory=lambda: hasattr(os, "geteuid") and os.geteuid() == 0)
    """Whether commands need no ``sudo``."""

    @property
    def has_pocl_wheel(self) -> bool:
        """Whether pip brings PoCL."""
        return self.system == "linux" and self.processor in ("x86_64", "amd64")

    @property
    def is_windows(self) -> bool:
        """Whether commands are those of Windows."""
        return self.system == "win32"

    @cached_property
    def distribution(self) -> Mapping[str, str]:
        """What ``/etc/os-release`` says."""
        try:
            lines = (self.root / "etc/os-release").read_text(errors="replace").splitlines()
        except OSError:
            return {}
        return {name: value.strip("\"'") for name, _, value in (line.partition("=") for line in lines)}

    @property
    def container(self) -> str:
        """The kind of container that this is ("apptainer", "docker"), or nothing."""
        if {"APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"} & self.environment.keys():
            return "apptainer"
        marks = (".dockerenv", "run/.containerenv")
        return "docker" if any((self.root / mark).exists() for mark in marks) else ""

    @property
    def is_wsl(self) -> bool:
        """Whether this is Linux within Windows."""
        return (self.root / "dev/dxg").exists()

    def install(self, **names: str) -> str:
        """Return the command that installs a package of the Linux distribution, or nothing where none is known.

        Parameters
        ----------
        names
            What it is called by ``apt``, ``dnf``, ``pacman`` and ``zypper``, as far as it is there.
        """
        managers = {
            "debian": ("apt", "apt install"),
            "ubuntu": ("apt", "apt install"),
            "fedora": ("dnf", "dnf install"),
            "rhel": ("dnf", "dnf install"),
            "arch": ("pacman", "pacman -S"),
            "suse": ("zypper", "zypper install"),
            "opensuse": ("zypper", "zypper install"),
        }
        told = self.distribution
        for family in (told.get("ID", ""), *told.get("ID_LIKE", "").split()):
            manager, command = managers.get(family, ("", ""))
            if manager in names:
                return self.sudo(f"{command} {names[manager]}")
        return ""

    def sudo(self, command: str) -> str:
        """Return a command that only the system's administrator may give."""
        return command if self.is_root else f"sudo {command}"

    def unset(self, variable: str) -> str:
        """Return the command that takes a variable out of the environment."""
        return f"set {variable}=" if self.is_windows else f"unset {variable}"

    def export(self, variable: str, value: str) -> str:
        """Return the command that sets a variable."""
        return f"set {variable}={value}" if self.is_windows else f"export {variable}={value}"

    def pip(self, *words: str) -> str:
        """Return the command by which this very Python gets packages."""
        said = " ".join(f'"{word}"' if set(word) & set("<>=!~[]; ") else word for word in words)
        python = f'"{sys.executable}"' if self.is_windows else shlex.quote(sys.executable)
        if sys.prefix == sys.base_prefix and Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").exists():
            # The system's Python, into which pip installs nothing.
            both = said if "isovoxel" in words else f"isovoxel {said}"
            return f"{python} -m venv isovoxel-env && isovoxel-env/bin/pip install {both}"
        on_path = shutil.which("pip")
        if on_path is not None and Path(on_path).parent == Path(sys.executable).parent:
            return f"pip install {said}"
        if find_spec("pip") is None:
            if shutil.which("uv"):
                return f"uv pip install --python {python} {said}"
            return f"{python} -m ensurepip && {python} -m pip install {said}"
        return f"{python} -m pip install {said}"


def python_facts() -> dict[str, object]:
    """Return what is known of this Python."""
    return {
        "version": platform.python_version(),
        "implementation": platform.python_implementation(),
        "executable": sys.executable,
        "prefix": sys.prefix,
        "environment": "conda"
        if Path(sys.prefix, "conda-meta").is_dir()
        else "venv"
        if sys.prefix != sys.base_prefix
        else "",
    }


def system_facts(machine: Machine) -> dict[str, object]:
    """Return what is known of the system."""
    kernel = platform.release()
    name = {"linux": "Linux", "darwin": "macOS", "win32": "Windows"}.get(machine.system, machine.system)
    return {
        "system": name,
        "release": platform.mac_ver()[0] or kernel,
        "processor": machine.processor,
        "distribution": machine.distribution.get("PRETTY_NAME", ""),
        "container": machine.container,
        "wsl": machine.is_wsl,
        "cores": os.cpu_count(),
    }
