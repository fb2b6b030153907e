"""What the command line loads before it says anything: no more than the command needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

ALWAYS_LATE = {"dask", "distributed", "numcodecs", "zarr"}
"""What reads chunks and writes OME-Zarr."""
DRAWS = {"matplotlib", "PIL", "rich"}
SCALES = {"pyclesperanto_prototype", "scipy", "skimage"}
"""cle, and the largest of what it loads."""

RUN = """
import contextlib, io, json, sys
from isovoxel.cli import main
loaded = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["isovoxel", *words]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            main()
    except SystemExit as done:
        assert done.code == 0, words
    loaded.append(sorted(sys.modules))
print(json.dumps(loaded))
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Return the modules that a process has loaded after each of some commands, the later of which need more."""
    folder = tmp_path_factory.mktemp("startup")
    stack, metadata = str(folder / "stack.tif"), {"axes": "ZYX", "spacing": 2.0, "unit": "micron"}
    tifffile.imwrite(stack, np.ones((4, 9, 9), np.uint8), imagej=True, resolution=(2, 2), metadata=metadata)
    commands = {
        "version": ["--version"],
        "help": ["--help"],
        "help of scale": ["scale", "--help"],
        "plan": ["plan", stack],
        "scale": ["scale", stack, str(folder / "out.zarr"), "--engine", "exact", "--levels", "1"],
        "scale a zarr": ["scale", str(folder / "out.zarr"), str(folder / "2.zarr"), "--zoom", "1", "--engine", "exact"],
        "info": ["info", str(folder / "out.zarr")],
        "picture of a plan": ["plan", stack, "--engine", "exact", "--picture", str(folder / "plan.svg")],
        "show": ["show", stack, "-o", str(folder / "stack.png")],
    }
    words = [sys.executable, "-c", RUN, json.dumps([*commands.values()])]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert all((folder / made).exists() for made in ("out.zarr", "plan.svg", "stack.png"))
    return dict(zip(commands, map(set, json.loads(done.stdout)), strict=True))


@pytest.mark.parametrize("command", ["version", "help", "help of scale"])
def test_help_loads_nothing_that_reads_scales_writes_or_draws(loaded: dict[str, set[str]], command: str) -> None:
    """Help comes at once, for it needs neither files nor a device."""
    assert loaded[command] & (ALWAYS_LATE | DRAWS | SCALES | {"psutil", "pyopencl", "tifffile"}) == set()


def test_planning_asks_the_device_without_loading_cle(loaded: dict[str, set[str]]) -> None:
    """A plan takes the TIFF's tags and the device's limits, and nothing that decodes, scales, writes or draws."""
    assert {"pyopencl", "tifffile"} <= loaded["plan"]
    assert loaded["plan"] & (ALWAYS_LATE | DRAWS | SCALES) == set()


def test_scaling_without_a_terminal_loads_nothing_that_draws(loaded: dict[str, set[str]]) -> None:
    """Where nobody watches, progress is plain lines; what draws pictures is for who wants some."""
    assert loaded["scale"] & DRAWS == set()


@pytest.mark.parametrize("command", ["scale", "scale a zarr", "info"])
def test_usual_files_are_read_and_written_without_zarr_python(loaded: dict[str, set[str]], command: str) -> None:
    """What it writes, it describes and reads back itself, further levels and display windows included."""
    assert loaded[command] & {"asyncio", "dask", "fsspec", "numcodecs", "pydantic", "zarr"} == set()


def test_workers_do_without_dask_arrays() -> None:
    """Where blocks read their halo themselves, neither the process that gives them out nor those that make them do."""
    code = """import sys, isovoxel.execution.distributed.executor, isovoxel.worker
sys.exit("dask.array" in sys.modules)"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("command", ["picture of a plan", "show"])
def test_figures_open_no_window(loaded: dict[str, set[str]], command: str) -> None:
    """A picture takes matplotlib, and not the part of it that chooses a backend and keeps figures."""
    assert "matplotlib.figure" in loaded[command]
    assert "matplotlib.pyplot" not in loaded[command]


def test_a_petabyte_is_planned_in_little_memory(tmp_path: Path) -> None:
    """Blocks are numbers until they are wanted: a plan of millions is a thousand bytes of JSON for each level."""
    array = tmp_path / "large.zarr"
    zarr.create_array(array, shape=(20_000, 158_114, 158_114), chunks=(128,) * 3, shards=(512,) * 3, dtype="uint16")
    plan = f"""
from isovoxel import plan
from isovoxel.execution.resources import peak_bytes
planned = plan({str(array)!r}, factor=(5, 2, 2), engine="exact")
block = planned.block(planned.n_blocks - 1)
ends = block.write_box.stop == planned.output.shape
print(planned.n_blocks, len(planned.levels), len(planned.to_json()), peak_bytes(), ends)
"""
    done = subprocess.run([sys.executable, "-c", plan], capture_output=True, text=True, check=True)
    blocks, levels, size, peak, ends = done.stdout.split()
    assert int(blocks) > 10**6
    assert int(size) < 2000 * int(levels)
    assert int(peak) < 200 * 10**6
    assert ends == "True"
