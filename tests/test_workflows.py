"""The recipes for workflow managers: run where the manager is there, and as far as goes where it is not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zarr

import isovoxel
from command_line import listing
from isovoxel.errors import JobError
from small_jobs import stop_after

EXAMPLES = Path(__file__).parents[1] / "examples"
SNAKEFILE = EXAMPLES / "snakemake" / "Snakefile"
MODULE = EXAMPLES / "nextflow" / "modules" / "isovoxel" / "scale"
NEXTFLOW = EXAMPLES / "nextflow" / "main.nf"
VOXELS = np.random.default_rng(0).integers(0, 60_000, (6, 30, 40)).astype(np.uint16)
OPTIONS = "--factor 2,1.5,1 --engine exact --chunk 8,8,8 --shard 8,8,8 --device-memory 20kB"
SCALED: dict[str, Any] = {"factor": (2, 1.5, 1), "engine": "exact", "chunk": (8, 8, 8), "shard": (8, 8, 8)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a stack, whose name a shell would cut in two."""
    np.save(tmp_path / "a stack.npy", VOXELS)
    return tmp_path


def environment(folder: Path) -> dict[str, str]:
    """Return an environment where the commands of this Python come first, and caches lie in the folder."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PATH": path, "XDG_CACHE_HOME": str(folder / "cache")}


def run(*words: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)


def check(out: Path) -> None:
    """Check that a result is what isovoxel makes with these options."""
    other = isovoxel.scale(VOXELS, out.with_name("other.zarr"), **SCALED)
    np.testing.assert_array_equal(*(zarr.open_array(path / "0", mode="r")[...] for path in (out, other.path)))
    assert isovoxel.verify(out, samples=50).holds


def snakemake(folder: Path, options: str = OPTIONS) -> subprocess.CompletedProcess[str]:
    """Run the Snakefile."""
    values = ("input=a stack.npy", "output=out.zarr", f"options={options}")
    words = ("-m", "snakemake", "-s", SNAKEFILE, "--cores", "2", "--config", *values)
    return run(sys.executable, *words, folder=folder)


@pytest.mark.slow
def test_snakemake_plans_and_scales(folder: Path) -> None:
    """The job is a file; what is there of its output is gone on with; run again, nothing is done."""
    with pytest.raises(JobError):
        isovoxel.scale(
            folder / "a stack.npy", folder / "out.zarr", listeners=[stop_after()], device_memory="20kB", **SCALED
        )
    done = snakemake(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"note: resuming: [1-9]\d* of \d+ blocks already done", done.stderr)
    assert 'input = "a stack.npy"' in (folder / "out.zarr.toml").read_text()
    check(folder / "out.zarr")
    before = listing(folder / "out.zarr")
    again = snakemake(folder)
    assert (again.returncode, "Nothing to be done" in again.stderr) == (0, True)
    assert listing(folder / "out.zarr") == before


@pytest.mark.slow
def test_snakemake_stops_at_a_plan_that_is_refused(folder: Path) -> None:
    """With isovoxel's sentence, before anything is written."""
    done = snakemake(folder, "--factor 2,1")
    assert done.returncode == 1
    assert "is not three numbers z,y,x" in done.stderr
    assert not (folder / "out.zarr").exists()


def scripts(values: dict[str, object]) -> list[str]:
    """Return what the processes of the Nextflow recipe run, in their order, with these values."""
    found = re.findall(r'^process \w+ \{.*?"""\n(.*?)"""', NEXTFLOW.read_text(), re.DOTALL | re.MULTILINE)
    return [re.sub(r"\$\{([\w.]+)\}", lambda match: str(values[match[1]]), script) for script in found]


@pytest.mark.slow
def test_what_nextflow_runs_plans_and_scales(folder: Path) -> None:
    """Each process' script in a folder of its own, as Nextflow has it, with the files that it is given."""
    values = {"stack": folder / "a stack.npy", "result": folder / "out.zarr", "options": OPTIONS}
    plan, scale = scripts(values | {"job": "job.toml", "task.cpus": 2})
    for name, script in (("plan", plan), ("scale", scale)):
        (folder / name).mkdir()
        if name == "scale":
            (folder / name / "job.toml").symlink_to(folder / "plan" / "job.toml")
        done = run("bash", "-ue", "-c", script, folder=folder / name)
        assert done.returncode == 0, done.stderr
    check(folder / "out.zarr")


def test_nextflow_plans_and_scales(folder: Path) -> None:
    """The whole recipe, where Nextflow is there."""
    if shutil.which("nextflow") is None:
        pytest.skip("Nextflow is not installed; what PyPI has only downloads it")
    values = ("--input", "a stack.npy", "--output", "out.zarr", "--options", OPTIONS)
    done = run("nextflow", "run", NEXTFLOW, *values, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    check(folder / "out.zarr")


def module_scripts(values: dict[str, object]) -> list[str]:
    """Return what the module runs, and what its stub runs, as Nextflow makes them with these values."""
    text = (MODULE / "main.nf").read_text()
    scripts = []
    for found in re.findall(r'"""\n(.*?)"""', text, re.DOTALL):
        lines = [line.removeprefix("    ") for line in found.splitlines()]  # which Nextflow takes off
        filled = re.sub(r"(?<!\\)\$\{?([\w.]+)\}?", lambda match: str(values[match[1]]), "\n".join(lines))
        scripts.append(filled.replace("\\$", "$").replace("\\\\", "\\"))
    return scripts


@pytest.mark.sampled(1)
@pytest.mark.parametrize("which", [0, 1], ids=["script", "stub"])
def test_what_the_nextflow_module_runs_makes_its_outputs(folder: Path, which: int) -> None:
    """Those that its metadata list, in the process' folder, with the version in the form that pipelines collect."""
    values = {"args": OPTIONS, "task.cpus": 2, "image": "stack.npy", "prefix": "sample"}
    (folder / "a stack.npy").rename(folder / "stack.npy")
    done = run("bash", "-ue", "-c", module_scripts(values | {"task.process": "A:B"})[which], folder=folder)
    assert done.returncode == 0, done.stderr
    listed = yaml.safe_load((MODULE / "meta.yml").read_text())["output"]
    assert list(listed["zarr"][0][1]) == ["${prefix}.ome.zarr"]
    assert (folder / "sample.ome.zarr" / "zarr.json").exists()
    (versions,) = listed["versions"][0]
    assert yaml.safe_load((folder / versions).read_text()) == {"A:B": {"isovoxel": isovoxel.__version__}}
    if which == 0:
        check(folder / "sample.ome.zarr")


def test_the_nextflow_module_is_of_this_version() -> None:
    """Its environment installs what this checkout is, and its metadata name the inputs that it takes."""
    *_, pip = yaml.safe_load((MODULE / "environment.yml").read_text())["dependencies"]
    assert pip == {"pip": [f"isovoxel=={isovoxel.__version__}"]}
    meta = yaml.safe_load((MODULE / "meta.yml").read_text())
    assert [name for entry in meta["input"][0] for name in entry] == ["meta", "image"]
    assert meta["name"].upper() in (MODULE / "main.nf").read_text()
