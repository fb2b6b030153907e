"""One tree of errors: each is an `IsovoxelError` and also the built-in error a Python user would expect.

Every message is one sentence or two: what is wrong, with the numbers, and what to do about it. A name that is not
known, such as a keyword, is answered with the one that is most like it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class IsovoxelError(Exception):
    """Base of all errors that isovoxel raises on purpose."""

    exit_code = 2
    """What the command line returns: 2 when nothing was begun, 1 when a job failed half-way."""


class OptionError(IsovoxelError, ValueError):
    """An option, a factor or a size that makes no sense, alone or together with another."""


class AddressError(OptionError):
    """An address, such as "s3://bucket/a.zarr", that isovoxel cannot use."""


class InputError(IsovoxelError, ValueError):
    """An input that cannot be read as a 3-D volume."""


class InputMissingError(InputError, FileNotFoundError):
    """An input that is not there."""

    def __str__(self) -> str:
        return str(self.args[0])


class InputUnavailableError(InputError, OSError):
    """An input that the system did not give: its disk or network failed, or it may not be read.

    Parameters
    ----------
    errno
        The system's number of what went wrong, or None where it has none.
    message
        What a user reads.
    """

    def __init__(self, errno: int | None, message: str) -> None:
        OSError.__init__(self, errno, message)  # by name: next in the order is ValueError, which keeps no number

    def __reduce__(self) -> tuple[type[InputUnavailableError], tuple[int | None, str], dict[str, Any]]:
        # Where distributed is loaded, errors without this are made anew in a way that two built-in bases do not bear.
        return (type(self), (self.errno, str(self)), self.__dict__)

    def __str__(self) -> str:
        return str(self.strerror)


class CorruptInputError(InputError):
    """A part of an input whose stored bytes are damaged: reading it again will not help.

    Parameters
    ----------
    name
        What the user called the input.
    chunk
        Which part of it, as its kind counts them: "chunk (1, 2, 3)", "strip 4 of page 3".
    start, stop
        First voxel of the part, and first one beyond it, z, y, x, inside the volume.
    reason
        What is wrong with it, as a clause.
    """

    def __init__(
        self, name: str, chunk: str, start: tuple[int, int, int], stop: tuple[int, int, int], reason: str
    ) -> None:
        # All of them are arguments of the exception too, so that it reaches another process whole.
        super().__init__(name, chunk, start, stop, reason)
        self.name, self.chunk, self.start, self.stop, self.reason = name, chunk, start, stop, reason

    def __str__(self) -> str:
        return f"{self.chunk} of {self.name} is corrupt: {self.reason}; copy or write it again"


class OutputError(IsovoxelError, OSError):
    """An output that cannot or must not be written."""

    def __str__(self) -> str:
        return str(self.args[0])


class OutputExistsError(OutputError, FileExistsError):
    """An output that is there already."""


class OutputBusyError(OutputError):
    """An output that another process is writing."""


class DoesNotFitError(IsovoxelError, MemoryError):
    """A job for which no block fits the limits of host or device."""


class DeviceError(IsovoxelError, RuntimeError):
    """No OpenCL device, or none of that name, or one that cannot do what it is asked."""


class DeviceFullError(DeviceError):
    """A device without room for the smallest piece of a block; when others let go of its memory, it may have some."""


class DeviceLostError(DeviceError):
    """A device that no longer answers this process; another process may go on."""


class ClusterError(IsovoxelError, ConnectionError):
    """Workers, or a scheduler of workers, that are not there or cannot be used."""

    def __str__(self) -> str:
        return str(self.args[0])


class JobError(IsovoxelError, RuntimeError):
    """A job that failed half-way; the message says what is kept and how to go on."""

    exit_code = 1


class InputChangedError(JobError):
    """A job whose input is another one than when it began: nothing of what was done is kept."""


class InterruptedJobError(KeyboardInterrupt):
    """A job that the user or the system stopped by a signal; the message says what is kept and how to go on.

    By default that is the signal which Ctrl-C sends. It is a KeyboardInterrupt, and so neither a `JobError` nor an
    Exception: ``except Exception`` around each job of a batch does not go on with the next one. The exit code is 128
    and the signal's number, as shells have it.
    """

    goes_on = True
    """Whether the same command goes on where it ended."""

    def __init__(self, message: str, signal: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = 128 + (signal or 2)


def clause(error: BaseException) -> str:
    """Return what went wrong as a clause: the first line of what it says."""
    said = str(error).strip()
    return f"{type(error).__name__}: {said.splitlines()[0]}" if said else type(error).__name__


def shown_value(value: object, longest: int = 100) -> str:
    """Return a value as a message shows it: on one line, and cut where it is long.

    Examples
    --------
    >>> shown_value("2"), shown_value([0] * 99, 9)
    ("'2'", '[0, 0,...')
    """
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an int of more digits than Python shows
        text = f"a {type(value).__name__} of too many digits"
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


# ---- names that are not known --------------------------------------------------------------------------------------


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return a clause that names what is most like an unknown name, or nothing; a prefix of all names does not count.

    Examples
    --------
    >>> did_you_mean("zom", ["zoom", "unit"]), did_you_mean("x", ["zoom"])
    ('; did you mean zoom?', '')
    """
    from difflib import get_close_matches

    names = {each.removeprefix(prefix).lower(): each for each in known}
    nearest = get_close_matches(name.removeprefix(prefix).lower(), names, n=1)
    return f"; did you mean {names[nearest[0]]}?" if nearest else ""
