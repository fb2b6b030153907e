"""The checkout as a whole: lint, format, types, the direction of imports, and what a wheel holds."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
LINT_IMPORTS = "from importlinter.cli import lint_imports_command; lint_imports_command()"

CHECKS = {
    "ruff finds nothing": ["-m", "ruff", "check", "--no-cache"],
    "ruff would format nothing": ["-m", "ruff", "format", "--check", "--no-cache"],
    "mypy finds nothing": ["-m", "mypy"],
    "imports point one way": ["-c", LINT_IMPORTS, "--no-logo", "--no-cache"],
}


def run_python(*words: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the checkout."""
    return subprocess.run([sys.executable, *words], cwd=CHECKOUT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "command",
    [pytest.param(c, id=name, marks=[pytest.mark.slow] * name.startswith("mypy")) for name, c in CHECKS.items()],
)
def test_checkout_is_clean(command: list[str]) -> None:
    """Each tool, as pyproject.toml sets it up, has nothing to say."""
    done = run_python(*command)
    assert done.returncode == 0, done.stdout + done.stderr


def test_wheel_holds_the_package_and_its_types(tmp_path: Path) -> None:
    """Every module, kernels, template, marker for type checkers, licence and command; no test, no cache."""
    pytest.importorskip("hatchling", reason="the build backend is not installed")
    done = run_python("-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("isovoxel-*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        (commands,) = (wheel.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    source = CHECKOUT / "src"
    modules = {str(p.relative_to(source).as_posix()) for p in source.rglob("*.py")}
    packaged = {name for name in names if ".dist-info/" not in name}
    kernels = {f"engines/{name}" for name in ("exact.cl", "convert.cl", "halve.cl", "opencl_as_cuda.h")}
    others = {"py.typed", "codecs/blosc.cl"} | kernels
    others |= {"napari.yaml", "reporting/report.html"}
    assert packaged == modules | {f"isovoxel/{name}" for name in others}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "isovoxel = isovoxel.__main__:main" in commands


@pytest.mark.slow
def test_the_sdist_builds_the_same_wheel(tmp_path: Path) -> None:
    """Unpacked elsewhere, with its tests; what the index reads of both is in order."""
    pytest.importorskip("hatchling", reason="the build backend is not installed")
    done = run_python("-m", "hatchling", "build", "-d", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,), (wheel,) = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    again = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "again")]
    subprocess.run(again, cwd=unpacked, check=True, capture_output=True)
    assert (tmp_path / "again" / wheel.name).read_bytes() == wheel.read_bytes()
    tracked = subprocess.run(["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    there = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert set(tracked.stdout.split()) - there == set()
    pytest.importorskip("twine", reason="twine is not installed")
    checked = run_python("-m", "twine", "check", "--strict", str(sdist), str(wheel))
    assert checked.returncode == 0, checked.stdout
