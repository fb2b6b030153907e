"""What isovoxel asks of an environment: nobody's NumPy is held back, and nothing that is there is changed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from isovoxel.version import __version__

CHECKOUT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RECIPE = CHECKOUT / ".github" / "conda" / "recipe.yaml"
CONTAINERFILE = CHECKOUT / ".github" / "Containerfile"
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


PLATFORMS = {
    "linux-64": ("linux", "x86_64"),
    "linux-aarch64": ("linux", "aarch64"),
    "osx-64": ("darwin", "x86_64"),
    "osx-arm64": ("darwin", "arm64"),
    "win-64": ("win32", "AMD64"),
    "win-arm64": ("win32", "ARM64"),
}
"""Those of conda, as Python calls system and processor."""
ON_CONDA = {"dask": "dask-core", "matplotlib": "matplotlib-base"}
"""Packages that conda-forge splits: the part that a library needs."""


def for_conda(platform: str) -> set[str]:
    """Return what pyproject.toml asks for on a platform, as a recipe of conda says it."""
    system, machine = PLATFORMS[platform]
    where = {"python_version": "3.13", "sys_platform": system, "platform_machine": machine}
    asked = set()
    for requirement in map(Requirement, CORE):
        if requirement.marker is not None and not requirement.marker.evaluate(where):
            continue
        if "pocl" in requirement.extras:
            asked.add("pocl")
        versions = sorted(str(requirement.specifier).split(","), key=lambda clause: not clause.startswith(">"))
        asked.add(f"{ON_CONDA.get(requirement.name, requirement.name)} {','.join(versions)}")
    return asked


def in_recipe(platform: str) -> set[str]:
    """Return what the recipe asks for on a platform."""
    system, machine = PLATFORMS[platform]
    chosen = {"linux": system == "linux", "osx": system == "darwin", "win": system == "win32"}
    chosen |= {name: name == machine.lower() for name in ("aarch64", "arm64")}
    chosen["x86_64"] = machine.lower() in ("x86_64", "amd64")
    found = set()
    for entry in yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["requirements"]["run"]:
        if isinstance(entry, str):
            found.add(entry)
        elif eval(entry["if"], {}, chosen):  # noqa: S307 - the recipe's own conditions
            found.add(entry["then"])
    return found


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_recipe_of_conda_asks_for_the_same(platform: str) -> None:
    """None lacks and none is more, in the same versions, on each platform."""
    assert in_recipe(platform) == for_conda(platform) | {"python"}


def test_the_recipe_of_conda_tells_of_this_version() -> None:
    """Version, Pythons, summary and licence are those of pyproject.toml."""
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    assert recipe["context"]["version"] == __version__
    assert recipe["build"]["skip"][0] == f'match(python, "{PROJECT["requires-python"].replace(">=", "<")}")'
    assert recipe["about"]["summary"] == PROJECT["description"]
    assert (recipe["about"]["license"], recipe["about"]["license_file"]) == (PROJECT["license"], "LICENSE")


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_recipe_of_conda_renders(platform: str) -> None:
    """rattler-build, where it is there, reads it, and gets the same requirements."""
    rattler = pytest.importorskip("rattler_build", reason="py-rattler-build is not installed")
    render = rattler.RenderConfig(rattler.PlatformConfig(target_platform=platform))
    variants = rattler.VariantConfig({"python": ["3.13.*"]})
    (rendered,) = rattler.Stage0Recipe.from_file(RECIPE).render(variants, render)
    assert set(rendered.recipe.to_dict()["requirements"]["run"]) == in_recipe(platform)


def test_the_image_is_built_of_what_is_there() -> None:
    """Extras that exist, and every file that a build needs."""
    text = CONTAINERFILE.read_text(encoding="utf-8")
    (extras,) = re.findall(r'pip install .*"/build\[(.*)\]"', text)
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for word in line.split()}
    assert copied == {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], "src"}


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
