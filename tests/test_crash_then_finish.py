"""Where `cle.scale` in one piece crashes, as `limits` foretold, isovoxel finishes.

Real crashes on a small device: with POCL_MEMORY_LIMIT=1, PoCL has 1 GiB, a largest allocation of 0.25 GiB and images
of up to 2048 voxels a side. PoCL compares each allocation with the largest one, but never their sum with the memory;
so an output above the device's memory stops on the largest allocation, as `limits` says: memory comes further back.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from isovoxel.engines.reference import reference
from isovoxel.geometry.grid import Box, VoxelGrid, factor_for_zoom
from strategies import GIB, cle_precision, read_from

pytest.importorskip("pyclesperanto_prototype", reason="it is that cle.scale which crashes here")

LARGEST = GIB // 4
VOXEL_SIZE = (1.0, 0.5, 0.5)
ENVIRONMENT = os.environ | {"POCL_MEMORY_LIMIT": "1", "CUDA_VISIBLE_DEVICES": ""}


def python(*words: object) -> dict[str, Any]:
    """Run a fresh Python on the small device, and return the JSON object that it prints."""
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


class Stack:
    """A stack of random voxels in a file."""

    def __init__(self, folder: Path, shape: tuple[int, int, int]) -> None:
        self.voxels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
        self.path = folder / "stack.npy"
        self.out = folder / "out.zarr"
        self.grid = VoxelGrid(shape, VOXEL_SIZE)
        np.save(self.path, self.voxels)

    def in_one_piece(self, zoom: float, interpolation: str = "linear") -> dict[str, Any]:
        """Say what `cle.scale` of the whole stack comes to."""
        size = ",".join(map(str, VOXEL_SIZE))
        return python(Path(__file__).with_name("one_piece.py"), self.path, size, zoom, interpolation)

    def isovoxel(self, *words: object) -> dict[str, Any]:
        command, *options = words
        size = ",".join(map(str, VOXEL_SIZE))
        return python("-m", "isovoxel", command, self.path, *options, "--input-voxel-size", size, "--json")

    def output_shape(self, zoom: float) -> tuple[int, int, int]:
        return self.grid.scaled(factor_for_zoom(self.grid, zoom)).shape

    def finishes(self, zoom: float, *options: object) -> dict[str, Any]:
        """Scale within small budgets, and check planes of all three directions, at block faces and between them."""
        budgets = ("--memory", "2GiB", "--device-memory", "1GiB")
        done = self.isovoxel("scale", self.out, "--zoom", zoom, *budgets, *options)
        assert done["peak_host_bytes"] < 2 * GIB
        assert done["blocks"]["count"] > 1
        result = zarr.open_array(self.out / "0", mode="r")
        shape, factor = self.output_shape(zoom), factor_for_zoom(self.grid, zoom)
        assert result.shape == shape
        faces = 0
        for axis, (m, block) in enumerate(zip(shape, done["blocks"]["shape"], strict=True)):
            along = {0, m // 3, m - 1} | ({block - 1, block} if block < m else set())
            faces += block < m
            for plane in along:
                start = [plane if a == axis else 0 for a in range(3)]
                stop = [plane + 1 if a == axis else n for a, n in enumerate(shape)]
                box = Box(tuple(start), tuple(stop))
                expected = reference(read_from(self.voxels), self.voxels.shape, factor, box)
                difference = np.abs(result[box.slices] - expected).max()
                assert difference <= cle_precision([n + 4 for n in self.voxels.shape], self.voxels)
        assert faces
        shutil.rmtree(self.out)
        return done


@pytest.mark.slow
def test_an_input_wider_than_an_image(tmp_path: Path) -> None:
    """(a) One voxel beyond 2048 the call crashes at any zoom, as foretold; isovoxel scales the stack in blocks."""
    wide = Stack(tmp_path, (3, 20, 2049))
    foretold = wide.isovoxel("limits")
    assert (foretold["limit"], foretold["stops_at_zoom"]) == ("image size", 0)
    for zoom in (0.5, 2):
        crash = wide.in_one_piece(zoom)
        assert not crash["ok"]
        assert "clCreateImage failed: INVALID_OPERATION" in crash["error"]
    assert wide.in_one_piece(2, "nearest")["ok"]  # which needs no image, as limits knows:
    assert wide.isovoxel("limits", "--interpolation", "nearest")["limit"] == "largest allocation"
    wide.finishes(4, "--shard", "128,128,1024", "--chunk", "32,32,128", "--engine", "cle")

    at_most = Stack(tmp_path, (3, 20, 2048))
    assert at_most.isovoxel("limits")["stops_at_zoom"] > 2
    assert at_most.in_one_piece(2)["ok"]


@pytest.mark.slow
def test_an_output_above_the_largest_allocation(tmp_path: Path) -> None:
    """(b) Bisection with real calls ends within one voxel of the foretold zoom; isovoxel goes beyond it."""
    stack = Stack(tmp_path, (48, 80, 90))
    foretold = stack.isovoxel("limits")
    zoom = foretold["stops_at_zoom"]
    assert foretold["limit"] == "largest allocation"

    works, crashes = 9.0, 9.4
    last = None
    while max(b - a for a, b in zip(stack.output_shape(works), stack.output_shape(crashes), strict=True)) > 1:
        middle = (works + crashes) / 2
        last = stack.in_one_piece(middle)
        if last["ok"]:
            works = middle
        else:
            assert "create_buffer failed: INVALID_BUFFER_SIZE" in last["error"]
            crashes = middle
    assert last is not None
    assert works < zoom <= crashes
    assert 4 * math.prod(stack.output_shape(works)) <= LARGEST < 4 * math.prod(stack.output_shape(crashes))
    # And to the last digit:
    assert stack.in_one_piece(zoom * (1 - 1e-12))["ok"]
    assert not stack.in_one_piece(zoom)["ok"]

    stack.finishes(9.4)


@pytest.mark.slow
def test_an_output_above_the_devices_memory(tmp_path: Path) -> None:
    """(c) The image alone is larger than all memory of the device; isovoxel makes it within that memory."""
    stack = Stack(tmp_path, (48, 80, 90))
    zoom = 14.7
    assert 4 * math.prod(stack.output_shape(zoom)) > GIB
    foretold = stack.isovoxel("limits")
    crossings = {c["limit"]: c["zoom"] for c in foretold["crossings"]}
    assert crossings["largest allocation"] < crossings["device memory"] < zoom
    for at in (crossings["device memory"], zoom):
        crash = stack.in_one_piece(at, "nearest")
        assert not crash["ok"]
        assert "INVALID_BUFFER_SIZE" in crash["error"]  # the first limit on the list, as foretold

    done = stack.finishes(zoom)
    assert done["projected"]["device_bytes"] < LARGEST
