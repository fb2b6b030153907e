"""One tree of errors: each is an `IsovoxelError` and also the built-in error a Python user would expect.

Every message is one sentence or two: what is wrong, with the numbers, and what to do about it.
"""


class IsovoxelError(Exception):
    """Base of all errors that isovoxel raises on purpose."""

    exit_code = 2
    """What the command line returns: 2 when nothing was begun, 1 when a job failed half-way."""


class OptionError(IsovoxelError, ValueError):
    """An option, a factor or a size that makes no sense, alone or together with another."""


class InputError(IsovoxelError, ValueError):
    """An input that cannot be read as a 3-D volume."""


class InputMissingError(InputError, FileNotFoundError):
    """An input that is not there."""

    def __str__(self) -> str:
        return str(self.args[0])


class OutputError(IsovoxelError, OSError):
    """An output that cannot or must not be written."""

    def __str__(self) -> str:
        return str(self.args[0])


class OutputExistsError(OutputError, FileExistsError):
    """An output that is there already."""


class DoesNotFitError(IsovoxelError, MemoryError):
    """A job for which no block fits the limits of host or device."""


class DeviceError(IsovoxelError, RuntimeError):
    """No OpenCL device, or none of that name."""


class JobError(IsovoxelError, RuntimeError):
    """A job that failed half-way; the message says what is kept and how to go on."""

    exit_code = 1


class InterruptedJobError(JobError):
    """A job that the user stopped."""

    exit_code = 130
