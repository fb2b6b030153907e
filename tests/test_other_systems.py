"""What only POSIX systems have is not needed: every module is imported, and a job runs, without it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Other libraries have their own ways on other systems, and are imported before anything is taken away.
WITHOUT = """
import importlib, json, os, pkgutil, signal, sys
from pathlib import Path

import dask.array, distributed, h5py, imagecodecs, nibabel, numpy as np, obstore.store, platformdirs, psutil
import pyopencl, rich.console, tensorstore, tifffile, typer, zarr

for module in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[module] = None
taken = {
    os: ["preadv", "pread", "pwritev", "sched_getaffinity", "getuid", "geteuid", "fork", "register_at_fork",
         "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_DIRECTORY", "posix_fadvise", "copy_file_range", "uname", "getpgid",
         "killpg", "setsid", "fchmod", "chown", "mkfifo", "getloadavg", "sync"],
    signal: ["SIGHUP", "SIGKILL", "SIGPIPE", "pthread_sigmask", "sigwait", "setitimer"],
}
for owner, names in taken.items():
    for name in names:
        if hasattr(owner, name):
            delattr(owner, name)

import isovoxel

skipped = {"isovoxel.__main__", "isovoxel.napari.widget"}  # the latter needs napari, an extra
for found in pkgutil.walk_packages(isovoxel.__path__, "isovoxel."):
    if found.name not in skipped:
        importlib.import_module(found.name)

folder = Path(sys.argv[1])
voxels = np.random.default_rng(0).integers(0, 999, (12, 40, 36)).astype("uint16")
tifffile.imwrite(folder / "in.tif", voxels)
options = dict(
    factor=(2, 1, 1), chunk=(8, 8, 8), shard=(8, 16, 16), device_memory="30kB", levels=2, engine="exact", threads=2
)
left = [2]

def stop(event):
    if type(event).__name__ == "BlockDone":
        left[0] -= 1
        assert left[0], "stopped from within"

try:
    isovoxel.scale(folder / "in.tif", folder / "out.zarr", listeners=[stop], **options)
except isovoxel.errors.JobError as error:
    first = str(error)

held = []

def try_to_take(event):
    if type(event).__name__ == "BlockDone" and not held:
        try:
            isovoxel.scale(folder / "in.tif", folder / "out.zarr", **options)
        except isovoxel.errors.OutputError as error:
            held.append(str(error))

result = isovoxel.scale(folder / "in.tif", folder / "out.zarr", listeners=[try_to_take], **options)
isovoxel.scale(voxels, folder / "whole.zarr", **options | {"device_memory": None})
print(json.dumps({
    "first": first,
    "held": held,
    "done_before": result.tally.done_before,
    "blocks": result.plan.all_blocks,
    "peak": result.peak_host_bytes,
    "holds": isovoxel.verify(folder / "out.zarr").holds,
    "old": bool(isovoxel.scale(folder / "in.tif", folder / "out.zarr", ome_zarr="0.4", overwrite=True, **{
        k: v for k, v in options.items() if k != "shard"}).seconds),
}))
"""


@pytest.mark.slow
def test_a_system_without_what_posix_has(tmp_path: Path) -> None:
    """A job stops, is held by one process, goes on, is verified and replaced, with the same voxels as in one piece."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, tmp_path], capture_output=True, text=True, check=False, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert "stopped from within" in said["first"]
    assert "are done and kept" in said["first"]
    assert ["is being written by" in held for held in said["held"]] == [True]
    assert 0 < said["done_before"] < said["blocks"]
    assert said["peak"] > 0
    assert said["holds"]
    assert said["old"]


@pytest.mark.slow
@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_modules_are_imported_on(system: str) -> None:
    """Whatever a module asks of the system when it is imported, another answer must do."""
    program = f"""
import dask.array, distributed, numpy, psutil, pyopencl, rich.console, tifffile, typer, zarr, imagecodecs, PIL.Image
import importlib, pkgutil, sys
sys.platform = {system!r}
import isovoxel
for found in pkgutil.walk_packages(isovoxel.__path__, "isovoxel."):
    if found.name not in ("isovoxel.__main__", "isovoxel.napari.widget"):  # the latter needs napari, an extra
        importlib.import_module(found.name)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
