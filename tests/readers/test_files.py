"""Whose fault is a failed read? Damaged data stay damaged, and what a network says once may pass."""

from __future__ import annotations

import errno
import pickle
from types import SimpleNamespace

import pytest

from isovoxel.errors import CorruptInputError, InputError, InputUnavailableError
from isovoxel.object_store.retries import is_transient
from isovoxel.readers.files import unavailable

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
