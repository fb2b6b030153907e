"""What isovoxel asks of an environment: nobody's NumPy is held back, and nothing that is there is changed."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

PROJECT: dict[str, Any] = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]
CORE: list[str] = PROJECT["dependencies"]
BESIDE = {"numpy": "2.5", "zarr": "3.4", "napari": "0.9"}
"""What a pipeline's environment has, with the first two parts of its version."""


def pip(*words: str) -> subprocess.CompletedProcess[str]:
    """Run pip, which is given one try."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "0", "--timeout", "10"]
    return subprocess.run([*command, *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14", "3.15"])
@pytest.mark.parametrize(
    ("system", "machine", "platform"),
    [
        ("Linux", "x86_64", "linux"),
        ("Linux", "aarch64", "linux"),
        ("Darwin", "arm64", "darwin"),
        ("Windows", "AMD64", "win32"),
        ("Windows", "ARM64", "win32"),
    ],
)
def test_clesperanto_is_asked_for_where_it_has_wheels(python: str, system: str, machine: str, platform: str) -> None:
    """The successor in the core, the prototype as an extra, each where it can be installed; PoCL likewise."""
    where = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "platform_system": system,
        "platform_machine": machine,
        "sys_platform": platform,
    }

    def asked(requirements: list[str]) -> set[str]:
        parsed = map(Requirement, requirements)
        return {
            r.name + "".join(f"[{extra}]" for extra in sorted(r.extras))
            for r in parsed
            if r.marker is None or r.marker.evaluate(where)
        }

    arm = machine in ("aarch64", "ARM64")
    assert ("pyclesperanto" in asked(CORE)) == (not arm and Version(python) < Version("3.15"))
    assert ("pyopencl[pocl]" in asked(CORE)) == ((platform, machine) == ("linux", "x86_64"))
    assert "pyopencl" in asked(CORE)
    expected = {"pyclesperanto-prototype", "numpy"} if Version(python) < Version("3.13") else set()
    assert asked(PROJECT["optional-dependencies"]["prototype"]) == expected


def test_nobody_is_held_back() -> None:
    """Of what others need too, only a next major version is left out, where one must expect that it breaks."""
    for requirement in map(Requirement, CORE):
        above = [clause for clause in requirement.specifier if clause.operator in ("<", "<=", "==", "~=")]
        assert not above or requirement.name in ("pyclesperanto", "zarr"), requirement


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 12), reason="NumPy 2.5 is for Python 3.12 and later ones")
def test_it_fits_beside_a_pipeline() -> None:
    """Pip installs it beside NumPy, zarr and napari of today, and leaves them what they are."""
    if pip("index", "versions", "numpy").returncode:
        pytest.skip("no index of packages answers")
    pinned = [f"{name}=={version}.*" for name, version in BESIDE.items()]
    words = ("install", "--dry-run", "--ignore-installed", "--quiet", "--only-binary", ":all:", "--report", "-")
    done = pip(*words, *CORE, *pinned)
    assert done.returncode == 0, done.stderr
    found = {item["metadata"]["name"]: item["metadata"]["version"] for item in json.loads(done.stdout)["install"]}
    assert {name: found[name].rpartition(".")[0] for name in BESIDE} == BESIDE
    assert "pyclesperanto_prototype" not in found
