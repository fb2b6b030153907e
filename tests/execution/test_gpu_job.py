"""Whole jobs on a real GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import zarr

import isovoxel
from hog import hog
from isovoxel.engines.devices import list_devices
from isovoxel.execution.events import Event, JobStarted
from peaks import device_rise

pytestmark = pytest.mark.gpu


def test_a_job_goes_on_while_another_program_takes_the_memory(tmp_path: Path) -> None:
    """Planned for the whole GPU, of which 2 GB are left when it starts: the same files, and it says that it split."""
    gpu = next((d for d in list_devices() if d.kind == "gpu"), None)
    if gpu is None:
        pytest.skip("no GPU is here")
    plane = np.random.default_rng(0).normal(2000, 60, (256, 1024, 1024)).astype(np.uint16)
    volume = np.concatenate([plane, plane[::-1]], axis=2)
    options = {"factor": (4, 1, 1), "engine": "exact", "shard": (1024, 1024, 1024), "threads": 2, "encode": "cpu"}
    options |= {"device": str(gpu.index)}
    alone = isovoxel.scale(volume, tmp_path / "alone.zarr", **options)
    assert (alone.plan.n_blocks, alone.tally.split) == (2, 0)
    assert alone.plan.projected_device > 4 * 10**9
    with ExitStack() as stack:

        def crowd(event: Event) -> None:
            if isinstance(event, JobStarted):
                print(f"{stack.enter_context(hog(gpu, leave=2 * 10**9)):,} bytes left")

        crowded = isovoxel.scale(volume, tmp_path / "crowded.zarr", listeners=[crowd], **options)
    print(f"projected {crowded.plan.projected_device:,} bytes; {crowded.tally}")
    assert crowded.tally.split == 2
    assert crowded.tally.pieces >= 2
    files = [path for path in (tmp_path / "alone.zarr" / "0" / "c").rglob("*") if path.is_file()]
    assert len(files) == 2
    for path in files:
        other = tmp_path / "crowded.zarr" / path.relative_to(tmp_path / "alone.zarr")
        assert path.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("encode", ["auto", "cpu", "gpu"])
@pytest.mark.parametrize("engine", ["exact", "cle"])
def test_a_process_holds_no_more_of_the_device_than_projected(engine: str, encode: str, tmp_path: Path) -> None:
    """What the drivers hold by themselves included."""
    if not any(device.kind == "gpu" and device.pci for device in list_devices()):
        pytest.skip("no NVIDIA GPU is here")
    np.save(tmp_path / "in.npy", np.random.default_rng(0).integers(0, 4096, (120, 500, 500)).astype(np.uint16))
    command = [sys.executable, "-m", "isovoxel", "scale", "in.npy", "out.zarr", "--input-voxel-size", "5,2,2", "--json"]
    command += ["--factor", "5,2,2", "--engine", engine, "--encode", encode, "--device", "gpu"]
    ended: list[str] = []

    def run() -> None:
        ended.append(subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout)

    risen = device_rise(run)
    projected = json.loads(ended[0].splitlines()[-1])["projected"]["device_bytes"]
    print(f"{engine}, encoded by {encode}: projected {projected:,}, risen by {risen:,}")
    assert risen <= projected


def test_a_gpu_decodes_levels_that_are_read_back(tmp_path: Path) -> None:
    """Of floats; the levels are those that the processor's decoding gives."""
    if not any(device.kind == "gpu" and device.limits().encoders for device in list_devices()):
        pytest.skip("no GPU is here that decodes")
    voxels = np.random.default_rng(0).normal(2000, 60, (40, 300, 300)).astype(np.float32)
    isovoxel.convert(voxels, tmp_path / "in.zarr", codec="blosc-zstd", input_voxel_size=(4, 1, 1))
    options = {"factor": (4, 1, 1), "engine": "exact", "codec": "blosc-zstd", "levels": 2, "device": "gpu"}
    for decode in ("gpu", "cpu"):
        done = isovoxel.scale(tmp_path / "in.zarr", tmp_path / f"{decode}.zarr", decode=decode, **options)
        assert [level.device.decoding > 0 for level in done.plan.further] == [decode == "gpu"] * 2
        assert not done.tally.decoded_by_processor
    for level in "012":
        gpu, cpu = (zarr.open_array(tmp_path / f"{name}.zarr" / level)[...] for name in ("gpu", "cpu"))
        np.testing.assert_array_equal(gpu, cpu)
