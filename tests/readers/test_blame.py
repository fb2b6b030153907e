"""To copy or write a file again is advised where the file is damaged, and never for the fault of anything else."""

from __future__ import annotations

import errno
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr

from isovoxel.errors import CorruptInputError, InputError
from isovoxel.geometry.box import Box
from isovoxel.readers.files import unreadable
from isovoxel.readers.open import open_volume

VOXELS = np.random.default_rng(2).integers(0, 999, (6, 20, 24)).astype("uint16")
ADVICE = "copy or write it again"

BLAMELESS: dict[str, BaseException] = {
    "memory": MemoryError(),
    "permission": PermissionError(errno.EACCES, "Permission denied"),
    "too many files": OSError(errno.EMFILE, "Too many open files"),
    "too many files, as HDF5 says it": OSError("Unable to open file (errno = 24, error message = 'Too many')"),
    "network": ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    "a library that is not there": ImportError("No module named 'blosc2'"),
    "a codec that is not known": ValueError("codec not available: 'zfpy'"),
    "a filter that is not there": OSError("Can't read data (required filter 'x' is not registered)"),
    "a bug of a library": AttributeError("'NoneType' object has no attribute 'shape'"),
    "an API that has changed": TypeError("unexpected keyword argument"),
}
DAMAGE: dict[str, BaseException] = {
    "cut": EOFError("end of file"),
    "compressed": zlib.error("invalid stored block lengths"),
    "header": struct.error("unpack requires a buffer of 8 bytes"),
    "JSON": json.JSONDecodeError("Expecting value", "", 0),
}


@pytest.mark.parametrize("what", BLAMELESS)
def test_what_is_not_the_files_fault_is_not_said_to_be(what: str) -> None:
    """Whichever library's error it is, when an input is opened."""
    error = BLAMELESS[what]
    assert isinstance(error, Exception)
    said = str(unreadable("a.x", "a volume", error))
    assert ADVICE not in said
    assert said.startswith("a.x cannot be read")


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_advised_on(what: str) -> None:
    """Bytes that are not whole, or not what they should be."""
    error = DAMAGE[what]
    assert isinstance(error, Exception)
    assert ADVICE in str(unreadable("a.x", "a volume", error))


@pytest.mark.parametrize("what", BLAMELESS)
@pytest.mark.parametrize("kind", ["zarr", "HDF5"])
def test_nor_while_it_is_read(what: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk is corrupt where its bytes are, and not where nothing can decode them."""
    if what in ("a codec that is not known", "an API that has changed"):
        return  # codecs are looked at when it is opened; a decoder may say so of bytes
    if kind == "zarr":
        zarr.create_array(tmp_path / "a", data=VOXELS, chunks=(2, 8, 8))
        place = "isovoxel.readers.zarr_files.ChunkFile.read"
    else:
        with h5py.File(tmp_path / "a", "w") as file:
            file.create_dataset("d", data=VOXELS, chunks=(2, 8, 8))
        place = "isovoxel.readers.hdf5_reader.Hdf5Reader._decode"

    def fail(*_: Any) -> None:
        raise BLAMELESS[what]

    volume = open_volume(tmp_path / "a")
    monkeypatch.setattr(place, fail)
    with pytest.raises((InputError, MemoryError)) as raised:
        volume.read(Box.whole(VOXELS.shape))
    assert not isinstance(raised.value, CorruptInputError)
    assert ADVICE not in str(raised.value)


@pytest.mark.parametrize("keep", [100, 0.5])
def test_a_truncated_hdf5_file_is_damaged(keep: float, tmp_path: Path) -> None:
    """HDF5 itself says so."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["d"] = VOXELS
    data = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    with pytest.raises(InputError, match=ADVICE):
        open_volume(tmp_path / "a.h5")
