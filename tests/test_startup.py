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
import json, sys
from isovoxel.cli import main
sys.argv = ["isovoxel", *sys.argv[1:]]
try:
    main()
except SystemExit as done:
    loaded = sorted({name.partition(".")[0] for name in sys.modules})
    print(json.dumps({"code": done.code, "loaded": loaded}), file=sys.stderr)
"""


def loaded_by(*words: str) -> set[str]:
    """Return the packages that a process has loaded when its command is done."""
    done = subprocess.run([sys.executable, "-c", RUN, *words], capture_output=True, text=True, check=True)
    said = json.loads(done.stderr.splitlines()[-1])
    assert said["code"] == 0
    return set(said["loaded"])


@pytest.fixture
def stack(tmp_path: Path) -> str:
    """Return the path of a small stack with a voxel size."""
    path = tmp_path / "stack.tif"
    metadata = {"axes": "ZYX", "spacing": 2.0, "unit": "micron"}
    tifffile.imwrite(path, np.ones((4, 9, 9), np.uint8), imagej=True, resolution=(2, 2), metadata=metadata)
    return str(path)


@pytest.mark.parametrize("words", [["--help"], ["scale", "--help"], ["--version"]])
def test_help_loads_nothing_that_reads_scales_writes_or_draws(words: list[str]) -> None:
    """Help comes at once, for it needs neither files nor a device."""
    assert loaded_by(*words) & (ALWAYS_LATE | DRAWS | SCALES | {"psutil", "pyopencl", "tifffile"}) == set()


def test_planning_asks_the_device_without_loading_cle(stack: str) -> None:
    """A plan takes the TIFF's tags and the device's limits, and nothing that decodes, scales, writes or draws."""
    loaded = loaded_by("plan", stack)
    assert {"pyopencl", "tifffile"} <= loaded
    assert loaded & (ALWAYS_LATE | DRAWS | SCALES) == set()


def test_scaling_without_a_terminal_loads_nothing_that_draws(stack: str, tmp_path: Path) -> None:
    """Where nobody watches, progress is plain lines; what draws pictures is for who wants some."""
    assert "rich" not in loaded_by("scale", stack, str(tmp_path / "out.zarr"))
    words = ("scale", stack, str(tmp_path / "exact.zarr"), "--engine", "exact")  # cle loads what it needs itself
    assert loaded_by(*words) & DRAWS == set()


def test_scaling_a_stack_does_without_zarr_python(stack: str, tmp_path: Path) -> None:
    """What it writes, it describes and reads back itself, further levels and display windows included."""
    words = ("scale", stack, str(tmp_path / "out.zarr"), "--engine", "exact", "--levels", "1")
    loaded = loaded_by(*words)
    assert loaded & {"asyncio", "dask", "fsspec", "numcodecs", "pydantic", "zarr"} == set()


def test_figures_open_no_window(stack: str, tmp_path: Path) -> None:
    """A picture takes matplotlib, and not the part of it that chooses a backend and keeps figures."""
    code = RUN.replace('sorted({name.partition(".")[0] for name in sys.modules})', "sorted(sys.modules)")
    words = ("plan", stack, "--engine", "exact", "--picture", str(tmp_path / "plan.svg"))
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stderr.splitlines()[-1])["loaded"])
    assert "matplotlib.figure" in loaded
    assert "matplotlib.pyplot" not in loaded


def test_a_petabyte_is_planned_in_little_memory(tmp_path: Path) -> None:
    """Blocks are numbers until they are wanted: a plan of millions is a thousand bytes of JSON for each level."""
    array = tmp_path / "large.zarr"
    zarr.create_array(array, shape=(20_000, 158_114, 158_114), chunks=(128,) * 3, shards=(512,) * 3, dtype="uint16")
    plan = f"""
from isovoxel import plan
from isovoxel.planning.resume import plan_to_json
from isovoxel.execution.resources import peak_bytes
planned = plan({str(array)!r}, factor=(5, 2, 2), engine="exact")
block = planned.block(planned.n_blocks - 1)
ends = block.write_box.stop == planned.output.shape
print(planned.n_blocks, len(planned.levels), len(plan_to_json(planned)), peak_bytes(), ends)
"""
    done = subprocess.run([sys.executable, "-c", plan], capture_output=True, text=True, check=True)
    blocks, levels, size, peak, ends = done.stdout.split()
    assert int(blocks) > 10**6
    assert int(size) < 2000 * int(levels)
    assert int(peak) < 200 * 10**6
    assert ends == "True"
