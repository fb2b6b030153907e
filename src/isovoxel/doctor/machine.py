"""What isovoxel runs on: the machine, its Python, the packages that are installed, and commands that mend faults there.

What is needed is read from the metadata that pip has installed, or from the checkout that is run, so that there is no
second list of it.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import sys
import sysconfig
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from isovoxel.doctor.trials import Ask
from isovoxel.version import __version__


class Fault(NamedTuple):
    """Something that is missing or broken."""

    what: str
    """A sentence, without its full stop."""
    mend: str
    """The command that mends it, or what to do where no command does."""
    fatal: bool = False
    """Whether no job can run before it is mended."""


@dataclass
class Section:
    """What was found about one thing."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    """Labels, and what they label."""
    record: dict[str, Any] = field(default_factory=dict)
    """The same as JSON values."""
    faults: list[Fault] = field(default_factory=list)
    """What is wrong."""

    @property
    def is_fatal(self) -> bool:
        """Whether no job can run."""
        return any(fault.fatal for fault in self.faults)


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


NAME = "isovoxel"
FOLDER = Path(__file__).parents[3]
"""The checkout from which isovoxel is run, if it is."""
FOR_DEVELOPERS = frozenset({"test", "bench"})
"""Extras that users do not need."""
CLESPERANTO = "pyclesperanto"
"""How the packages of engine `cle` begin, without which `exact` scales; they are tried by themselves."""


@dataclass(frozen=True)
class Package:
    """A package that is needed."""

    name: str
    """Its name."""
    needed: str
    """Its name and the versions that will do, as pip takes it."""
    found: str | None
    """The version that is installed, or None."""
    fits: bool
    """Whether that one will do."""

    @property
    def is_optional(self) -> bool:
        """Whether jobs run without it: engine exact does where there is no clEsperanto."""
        return self.name.lower().startswith(CLESPERANTO)


@dataclass
class Packages:
    """What is needed, and what is there."""

    core: list[Package] = field(default_factory=list)
    """What isovoxel always needs."""
    extras: dict[str, list[Package]] = field(default_factory=dict)
    """What each extra brings beside it."""
    python: str = ""
    """Versions of Python that will do, or nothing where that is not known."""
    faults: list[Fault] = field(default_factory=list)
    """What is wrong with them."""


def installed(name: str) -> str | None:
    """Return the version of a package that is installed, or None."""
    try:
        return metadata.version(name) or "unknown"
    except Exception:  # noqa: BLE001 - metadata may be damaged in any way
        return None


class _Needs(NamedTuple):
    """What isovoxel needs, as metadata have it."""

    python: str
    lines: Sequence[str]
    extras: Sequence[str]


def _from_metadata() -> _Needs | None:
    """Return what the metadata say that pip has installed, or None where there are none."""
    try:
        about = metadata.metadata(NAME)
        lines = metadata.requires(NAME) or []
        return _Needs((about.get_all("Requires-Python") or [""])[0], lines, about.get_all("Provides-Extra") or [])
    except Exception:  # noqa: BLE001 - metadata may be damaged in any way
        return None


def _from_checkout(folder: Path) -> _Needs | None:
    """Return what a checkout says, which is newer than metadata that were installed from it once."""
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = project["optional-dependencies"]
        lines = list(project["dependencies"])
        for extra, needed in extras.items():
            for name, _, marker in (line.partition(";") for line in needed):
                lines.append(f"{name}; {f'({marker}) and ' if marker else ''}extra == '{extra}'")
        return _Needs(project["requires-python"], lines, list(extras))
    except (OSError, ValueError, KeyError):
        return None


def look_at_packages(machine: Machine, folder: Path = FOLDER) -> Packages:
    """Return what isovoxel needs, and what of that is installed.

    Parameters
    ----------
    machine
        The machine.
    folder
        The checkout from which isovoxel may be run.
    """
    found = Packages()
    checkout = _from_checkout(folder)
    mend = machine.pip(NAME) if checkout is None else machine.pip("-e", str(folder))
    needs = checkout or _from_metadata()
    if needs is None:
        what = f"{NAME} is run from {folder} and is not installed, so that what it needs is not known"
        found.faults.append(Fault(what, mend))
        return found
    found.python = needs.python
    try:
        from packaging.requirements import Requirement  # noqa: F401 - whether it can be
    except Exception as error:  # noqa: BLE001 - an import may raise anything
        what = f"versions cannot be compared, because packaging cannot be imported ({error})"
        found.faults.append(Fault(what, machine.pip("--force-reinstall", "packaging")))
        names = {re.split(r"[^\w.-]", line)[0]: None for line in needs.lines if ";" not in line}
        found.core = [Package(name, name, installed(name), installed(name) is not None) for name in names]
    else:
        found.faults += _python_faults(needs.python)
        found.core = _needed(needs.lines, "")
        core = {package.name for package in found.core}
        for extra in needs.extras:
            if extra not in FOR_DEVELOPERS:
                found.extras[extra] = [p for p in _needed(needs.lines, extra) if p.name not in core]
    version, missing = installed(NAME), lacking([package for package in found.core if not package.is_optional])
    if version is None and missing:
        what = f"{NAME} is run from {folder} and is not installed, and it lacks {_named(missing)}"
        found.faults = [Fault(what, mend, fatal=True)]
        return found
    if version is None:
        what = f"{NAME} is run from {folder} and is not installed, so that pip does not know what it needs"
        found.faults.append(Fault(what, mend))
    elif version != __version__:
        what = f"pip has installed {NAME} {version}, but version {__version__} is run"
        found.faults.append(Fault(what, mend))
    found.faults += _faults_of(found.core, found.extras, machine)
    return found


def _named(names: Sequence[str]) -> str:
    """Return few names, or how many there are."""
    return f"{len(names)} packages that it needs" if len(names) > 3 else " and ".join(names)


def _python_faults(wanted: str) -> list[Fault]:
    from packaging.specifiers import SpecifierSet

    if not wanted or SpecifierSet(wanted).contains(".".join(map(str, sys.version_info[:3])), prereleases=True):
        return []
    have = ".".join(map(str, sys.version_info[:2]))
    what = f"Python {have} is not among those that {NAME} is made for ({wanted})"
    return [Fault(what, "python3.12 -m venv isovoxel-env, and install isovoxel into that")]


def _needed(lines: Sequence[str], extra: str) -> list[Package]:
    """Return what requirements ask for in this environment, what they ask of their packages' extras included."""
    from packaging.requirements import InvalidRequirement, Requirement

    found: dict[str, Package] = {}
    for line in lines:
        try:
            asked = Requirement(line)
        except InvalidRequirement:
            continue
        if asked.marker is not None and not asked.marker.evaluate({"extra": extra}):
            continue
        if extra and (asked.marker is None or "extra" not in str(asked.marker)):
            continue  # what is needed without the extra too
        if asked.name.lower() == NAME:  # an extra that is made of others
            for other in asked.extras:
                found |= {package.needed: package for package in _needed(lines, other)}
            continue
        version = installed(asked.name)
        fits = version is not None and (version == "unknown" or asked.specifier.contains(version, prereleases=True))
        needed = f"{asked.name}{asked.specifier}"
        found[needed] = Package(asked.name, needed, version, fits)
        for other in asked.extras if version is not None else ():
            for package in _needed(metadata.requires(asked.name) or [], other):
                found[package.needed] = package
    return list(found.values())


def _faults_of(core: Sequence[Package], extras: Mapping[str, Sequence[Package]], machine: Machine) -> list[Fault]:
    """Return which packages are missing, or there in a version that will not do; no extra has to be there."""
    faults = [
        Fault(f"{package.name} is not installed, which {NAME} needs", machine.pip(package.needed), fatal=True)
        for package in core
        if package.found is None and not package.is_optional
    ]
    for what, packages in {NAME: core, **{f"{NAME}[{extra}]": offered for extra, offered in extras.items()}}.items():
        faults += [
            Fault(f"{p.name} {p.found} is installed, but {what} needs {p.needed}", machine.pip(p.needed))
            for p in packages
            if p.found is not None and not p.fits
        ]
    return faults


def lacking(packages: Sequence[Package]) -> list[str]:
    """Return the names of those that are not installed."""
    return [package.name for package in packages if package.found is None]


def broken_packages(packages: Sequence[Package], ask: Ask, machine: Machine) -> list[Fault]:
    """Return which of the packages that are installed cannot be imported.

    A package that ends the process is blamed for it, and those behind it are asked of another process. One that fails
    because another one is missing or broken is not blamed.
    """
    names = [p.name for p in packages if p.found is not None and not p.is_optional]
    names = list(dict.fromkeys(names))
    missing = {_module(name) for name in lacking(packages)}
    failed: dict[str, tuple[str, list[str]]] = {}
    rest = names
    while rest:
        answer = ask("imports", rest)
        failed |= {told[1]: (told[2], told[3]) for told in answer.told if told[0] == "failed"}
        if not answer.reason:
            break
        begun = [told[1] for told in answer.told if told[0] == "begun"]
        if not begun:
            return [Fault(f"packages cannot be tried: {answer.reason}", machine.pip(NAME))]
        failed[begun[-1]] = (answer.reason, [])
        rest = rest[rest.index(begun[-1]) + 1 :]
    suspects = {_module(name) for name in failed} | missing
    return [
        Fault(f"{name} is installed, but cannot be imported: {reason}", machine.pip("--force-reinstall", name), True)
        for name, (reason, involved) in failed.items()
        if not set(map(_module, involved)) & (suspects - {_module(name)})
    ]


def _module(name: str) -> str:
    return name.lower().replace("-", "_")
