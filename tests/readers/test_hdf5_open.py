"""HDF5 files that somebody has open: they are read, or one sentence says what to close."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import isovoxel
from isovoxel.errors import InputError
from isovoxel.geometry.grid import Box
from isovoxel.readers.open import open_volume

VOXELS = np.random.default_rng(2).integers(0, 999, (6, 20, 24)).astype("uint16")
LOCKS: list[dict[str, Any]] = [{}, {"locking": False}, {"locking": True}, {"locking": "best-effort"}]


def written(folder: Path) -> Path:
    """Write a file of chunks."""
    with h5py.File(folder / "a.h5", "w", libver="latest") as file:
        file.create_dataset("d", data=VOXELS, chunks=(2, 8, 8), compression="gzip")
    return folder / "a.h5"


@pytest.mark.parametrize("locks", [*LOCKS, {"driver": "core"}, {"swmr": True}])
def test_a_file_that_is_open_for_reading_is_read(locks: dict[str, Any], tmp_path: Path) -> None:
    """By this process, with or without locks: HDF5 wants the same of all who have it open."""
    path = written(tmp_path)
    with h5py.File(path, "r", **locks) as file:
        volume = open_volume(path)
        np.testing.assert_array_equal(volume.read(Box.whole(VOXELS.shape)), VOXELS)
        result = isovoxel.scale(path, tmp_path / "out.zarr", factor=(2, 1, 1), engine="exact")
        assert isovoxel.verify(result.path, samples=10).holds
        assert file["d"][0, 0, 0] == VOXELS[0, 0, 0]


@pytest.mark.parametrize("locks", [{}, {"locking": False}, {"libver": "latest"}])
def test_a_file_that_is_open_for_writing_is_refused(locks: dict[str, Any], tmp_path: Path) -> None:
    """What its writer keeps in memory is not in the file yet."""
    path = written(tmp_path)
    volume = open_volume(path)
    with h5py.File(path, "r+", **locks) as file:
        file["d"][0] = 7
        for read in (lambda: open_volume(path), lambda: volume.read(Box.whole(VOXELS.shape))):
            with pytest.raises(InputError, match="is open for writing; close it") as raised:
                read()
            assert "copy" not in str(raised.value)
    assert (open_volume(path).read(Box.whole(VOXELS.shape))[0] == 7).all()


def test_a_writer_that_lets_others_read_is_refused(tmp_path: Path) -> None:
    """SWMR leaves no lock, only a mark in the file, which stays where the writer dies."""
    path = written(tmp_path)
    with h5py.File(path, "r+", libver="latest") as file:
        file.swmr_mode = True
        with pytest.raises(InputError, match="is open for writing"):
            open_volume(path)
    code = f"import h5py, os; f = h5py.File({str(path)!r}, 'r+', libver='latest'); f.swmr_mode = True; os._exit(0)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(InputError, match=r"where its writer has died, h5clear -s .*a\.h5 takes the mark") as raised:
        open_volume(path)
    assert "copy" not in str(raised.value)


def test_a_file_that_another_process_writes_is_refused(tmp_path: Path) -> None:
    """It has locked it."""
    path = written(tmp_path)
    code = f"import h5py; f = h5py.File({str(path)!r}, 'r+'); print('open', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(InputError, match="is open for writing"):
            open_volume(path)
        other.communicate(b"\n")
    assert open_volume(path).shape == VOXELS.shape


def test_what_h5py_has_open_is_named_by_its_path(tmp_path: Path) -> None:
    """Neither threads nor other processes can share it."""
    path = written(tmp_path)
    with h5py.File(path) as file:
        for source, inner in ((file["d"], "/d"), (file, "/")):
            with pytest.raises(InputError, match=f"close it, and give its path, {path}:{inner}"):
                open_volume(source)
