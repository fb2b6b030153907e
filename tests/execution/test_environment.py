"""What a job bears of its surroundings: modules of the working folder, warnings that are errors, no caches, forks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import isovoxel

LAUNCHER = "from isovoxel.cli import main\nif __name__ == '__main__':\n    main()\n"
"""What an installed command is: Python puts its folder first on the path, and not the working one."""
NAMES = ("numpy", "json", "pickle", "struct", "socket", "dask", "distributed", "isovoxel", "multiprocessing", "zarr")


def scale(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Scale a stack by the command line, in a folder that has it and nothing of ours."""
    (folder / "bin").mkdir()
    (folder / "bin" / "isovoxel-command").write_text(LAUNCHER)
    (folder / "here").mkdir(exist_ok=True)
    np.save(folder / "here" / "in.npy", np.ones((8, 8, 8), np.float32))
    given = {name: value for name, value in os.environ.items() if name not in ("PYTHONSAFEPATH", "PYTHONWARNINGS")}
    given["PYTHONPATH"] = str(Path(isovoxel.__file__).parents[1])
    command = [
        sys.executable,
        str(folder / "bin" / "isovoxel-command"),
        "scale",
        "in.npy",
        "out.zarr",
        "--factor=2,1,1",
    ]
    return subprocess.run(
        [*command, *words], cwd=folder / "here", env=given | environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("where", ["--isolate", "--workers=cpu:1"])
def test_processes_of_a_job_import_nothing_of_the_working_folder(tmp_path: Path, where: str) -> None:
    """A user's file that is called like a library is never run, neither by an isolated process nor by a worker."""
    here = tmp_path / "here"
    here.mkdir()
    for name in NAMES:
        (here / f"{name}.py").write_text(f"open({str(tmp_path / name)!r}, 'w')\nraise SystemExit('{name} is run')\n")
    done = scale(tmp_path, where, "--engine=exact")
    assert [name for name in NAMES if (tmp_path / name).exists()] == []
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["cle", "exact"])
def test_warnings_that_are_errors_are_no_failure(tmp_path: Path, engine: str) -> None:
    """Of what libraries warn of, nothing becomes a device that does not run, for PYTHONWARNINGS=error is the user's."""
    folder = tmp_path / "caches"
    # Without pyopencl's cache, so that kernels are built, of which pyopencl warns.
    done = scale(
        tmp_path, f"--engine={engine}", PYTHONWARNINGS="error", XDG_CACHE_HOME=str(folder), PYOPENCL_NO_CACHE="1"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.sampled(1)
@pytest.mark.parametrize("variable", ["POCL_CACHE_DIR", "XDG_CACHE_HOME", "HOME"])
@pytest.mark.parametrize("engine", ["exact", "cle"])
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, variable: str, engine: str) -> None:
    """The job is done, and says that kernels are not kept."""
    none = {"POCL_CACHE_DIR": "", "XDG_CACHE_HOME": "", variable: "/proc/nowhere"}
    done = scale(tmp_path, f"--engine={engine}", **none)
    assert done.returncode == 0, done.stderr
    assert "note: PoCL cannot keep its kernels in /proc/nowhere" in done.stderr
    assert "Traceback" not in done.stderr


FORK = """
import multiprocessing, sys, warnings
import numpy as np
import isovoxel
import isovoxel.errors
warnings.simplefilter("ignore")
VOXELS = np.arange(512, dtype=np.uint16).reshape(8, 8, 8)
OPTIONS = {"factor": (2, 1, 1), "input_voxel_size": (1, 1, 1), "engine": sys.argv[1]}
ATTEMPTS = {
    "scale": lambda: isovoxel.scale(VOXELS, "child.zarr", **OPTIONS),
    "plan": lambda: isovoxel.plan(VOXELS, **OPTIONS),
    "devices": isovoxel.devices,
    "lazy": lambda: isovoxel.scale_array(VOXELS, 2.0, engine=sys.argv[1]),
    "block": lambda: LAZY.compute(scheduler="synchronous"),
    "isolated": lambda: isovoxel.scale(VOXELS, "child.zarr", isolate=True, **OPTIONS),
    "converted": lambda: isovoxel.convert(VOXELS, "child.zarr", input_voxel_size=(1, 1, 1)),
}
if sys.argv[2] == "by another library":
    del ATTEMPTS["block"]
def attempt(name):
    try:
        ATTEMPTS[name]()
    except isovoxel.errors.DeviceError as error:
        return str(error)
    return "done"
if __name__ == "__main__":
    if sys.argv[2] != "by another library":
        LAZY = isovoxel.scale_array(VOXELS, 2.0, engine=sys.argv[1])
    if sys.argv[2] == "used":
        isovoxel.scale(VOXELS, "parent.zarr", **OPTIONS)
    if sys.argv[2] == "by another library":
        import pyopencl
        pyopencl.get_platforms()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        for name in ATTEMPTS:
            print(pool.apply_async(attempt, (name,)).get(60))
"""


NEEDS_MAPS = pytest.mark.skipif(
    not Path("/proc/self/maps").exists(), reason="the system has no memory maps of processes"
)


@pytest.mark.sampled(1)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("engine", ["exact", "cle"])
@pytest.mark.parametrize("before", ["used", "listed", pytest.param("by another library", marks=NEEDS_MAPS)])
def test_a_fork_of_a_process_that_used_opencl_is_told_to_spawn(tmp_path: Path, engine: str, before: str) -> None:
    """Drivers hang there for ever: every way to a device is one sentence in place of that, and writes nothing."""
    (tmp_path / "fork.py").write_text(FORK)
    done = subprocess.run(
        [sys.executable, "fork.py", engine, before],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(isovoxel.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    said = done.stdout.splitlines()
    assert len(said) == 7 - (before == "by another library"), done.stderr
    assert all(line.startswith("OpenCL was used before this process was forked") for line in said), said
    assert all("start processes by spawn" in line for line in said)
    assert not list(tmp_path.glob("child*"))


STORE_FORK = """
import multiprocessing, os, sys
from isovoxel.errors import AddressError
from isovoxel.object_store.objects import ObjectPlace
from store_server import serving
def attempt(queue):
    try:
        queue.put(ObjectPlace("s3://bucket", "a").read_bytes())
    except AddressError as error:
        queue.put(str(error))
if __name__ == "__main__":
    with serving():
        ObjectPlace("s3://bucket", "a").write(b"a")
        fork = multiprocessing.get_context("fork")
        queue = fork.Queue()
        child = fork.Process(target=attempt, args=(queue,))
        child.start()
        print(queue.get(timeout=60))
        child.join()
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_of_a_process_that_asked_a_store_is_told_to_spawn(tmp_path: Path) -> None:
    """Its client's threads are not in the fork, where a request would wait for them for ever."""
    (tmp_path / "fork.py").write_text(STORE_FORK)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "fork.py"],
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(map(str, (Path(isovoxel.__file__).parents[1], Path(__file__).parents[1])))},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.stdout.startswith("s3://bucket: object stores were asked before this process was forked"), done.stderr
    assert "start processes by spawn" in done.stdout
