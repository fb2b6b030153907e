"""Damaged files are named so, with the advice to copy them again; any other fault, and what may pass, is not."""

from __future__ import annotations

import errno
import json
import pickle
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import zarr

from isovoxel.errors import CorruptInputError, InputError, InputUnavailableError
from isovoxel.geometry.grid import Box
from isovoxel.object_store.retries import is_transient
from isovoxel.readers.files import unavailable, unreadable
from isovoxel.readers.open import open_volume

CORRUPT = CorruptInputError("a.zarr", "chunk (1, 2, 3)", (8, 16, 24), (16, 20, 30), "it is cut short")


def caused(error: BaseException, cause: BaseException) -> BaseException:
    """Return an error with a cause."""
    error.__cause__ = cause
    return error


def answered(*, where: str = "status", code: int) -> Exception:
    """Return an error as a library for http raises it."""
    error = Exception("the server said no")
    match where:
        case "response.status_code":
            error.response = SimpleNamespace(status_code=code)
        case "botocore":
            error.response = {"ResponseMetadata": {"HTTPStatusCode": code}, "Error": {"Code": "SlowDown"}}
        case _:
            setattr(error, where, code)
    return error


class ClientPayloadError(Exception):
    """As aiohttp has it: no `OSError`, and without a number."""


PASSING_NUMBERS = "EIO ESTALE EAGAIN EINTR ETIMEDOUT ECONNRESET ENETUNREACH EHOSTUNREACH EBUSY EREMOTEIO"
LASTING_NUMBERS = "ENOENT EACCES EPERM ENOSPC EDQUOT EROFS EISDIR"
PASSING = {
    **{name: OSError(getattr(errno, name), "") for name in PASSING_NUMBERS.split()},
    "reset": ConnectionResetError(),
    "timeout": TimeoutError(),
    "payload": ClientPayloadError("not all of it came"),
    "429": answered(code=429),
    "503 in a response": answered(where="response.status_code", code=503),
    "500 as botocore has it": answered(where="botocore", code=500),
    "a cause": caused(InputError("cannot be read"), OSError(errno.EIO, "")),
    "a cause of a cause": caused(ValueError(), caused(RuntimeError(), TimeoutError())),
    "unavailable": unavailable("a.tif cannot be read", OSError(errno.ESTALE, "Stale file handle")),
}
LASTING = {
    **{name: OSError(getattr(errno, name), "") for name in LASTING_NUMBERS.split()},
    "memory": MemoryError(),
    "404": answered(code=404),
    "403 as botocore has it": answered(where="botocore", code=403),
    "corrupt": CORRUPT,
    "corrupt, whatever came before": caused(CORRUPT, TimeoutError()),
    "no file, on the way to another failure": caused(OSError(errno.ENOENT, ""), TimeoutError()),
    "a bug": TypeError("no such thing"),
    "no http": SystemExit(2),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_a_disk_or_a_network_says_may_pass(name: str) -> None:
    """Trying again may help."""
    assert is_transient(PASSING[name])


@pytest.mark.parametrize("name", LASTING)
def test_what_is_wrong_for_good_stays(name: str) -> None:
    """Trying again does not help where data, rights, room or the program are at fault."""
    assert not is_transient(LASTING[name])


def test_a_context_counts_unless_it_was_dropped() -> None:
    """What an error was raised during is asked as a traceback shows it."""
    for dropped in (False, True):
        error = ValueError("cannot be decoded")
        error.__context__ = TimeoutError()
        error.__suppress_context__ = dropped
        assert is_transient(error) is not dropped


def test_causes_in_a_ring_end() -> None:
    """Errors that cause each other are asked once."""
    first, second = ValueError(), ValueError()
    first.__cause__, second.__cause__ = second, first
    assert not is_transient(first)


def test_errors_reach_another_process_whole() -> None:
    """Message, place and number survive pickling."""
    again = pickle.loads(pickle.dumps(CORRUPT))  # noqa: S301 - it was made here
    assert str(again) == "chunk (1, 2, 3) of a.zarr is corrupt: it is cut short; copy or write it again"
    assert (again.name, again.chunk, again.start, again.stop) == (
        "a.zarr", "chunk (1, 2, 3)", (8, 16, 24), (16, 20, 30),
    )  # fmt: skip
    error = unavailable("a.tif cannot be read", OSError(errno.EIO, "Input/output error"))
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert isinstance(again, InputUnavailableError)
    assert (str(again), again.errno) == ("a.tif cannot be read: Input/output error", errno.EIO)


# ---- advice ------------------------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("error", [ZeroDivisionError("integer modulo by zero"), IndexError("list index")])
def test_what_a_library_stumbles_over_says_which_error_it_was(error: Exception) -> None:
    """By itself such a message says nothing of a file."""
    said = str(unreadable("a.x", "a volume", error))
    assert said.startswith("a.x cannot be read as a volume here: ")
    assert f"{error} ({type(error).__name__}); the file may be whole" in said


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
