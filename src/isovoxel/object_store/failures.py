"""Turn failures of an object store into what Python raises for a disk: `OSError` with the system's number.

So whoever reads or writes need not ask where: what may pass is told from what stays by the same numbers. The
libraries' own messages are not passed on, for they hold what a server sent, keys and signatures among it.

=======================  ===================================================================================
404                      FileNotFoundError
401, 403, expired        PermissionError, which says where credentials were looked for, never their values
412                      FileExistsError for what must be new, `ChangedError` for what must be as it was
429, 5xx, no answer      OSError with a number that `isovoxel.object_store.retries.is_transient` knows
all else                 OSError with another one
=======================  ===================================================================================
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from http import HTTPStatus

from isovoxel.object_store.retries import is_passing

_STATUS = re.compile(r"status code: (\d{3})\b")
_EXPIRED = re.compile(r"<Code>(ExpiredToken|ExpiredTokenException|TokenRefreshRequired|RequestExpired)</Code>")
"""What S3 and what speaks like it say of credentials that were good for a while only."""
_INSTANCE = "//169.254.169.254/"
"""Where a virtual machine of a cloud would be told its credentials."""


class BucketMissingError(FileNotFoundError):
    """A whole bucket that is not there: of an object in it, that says nothing."""


class ChangedError(OSError):
    """An object that is not as it was, or not there any more."""


@contextlib.contextmanager
def told(name: str, sought: str, *, new: bool = False) -> Iterator[None]:
    """Raise the `OSError` for what fails inside.

    Parameters
    ----------
    name
        Of the store, for people: "s3://bucket".
    sought
        Where credentials were looked for, as a clause.
    new
        Whether an object is asked for on the condition that there is none.
    """
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        # Not even as its cause: a traceback would show it.
        raise _translated(error, name, sought, new=new) from None


def _translated(error: Exception, name: str, sought: str, *, new: bool) -> OSError:
    from obstore import exceptions as theirs

    text = str(error)
    found = _STATUS.search(text)
    denied = isinstance(error, theirs.PermissionDeniedError | theirs.UnauthenticatedError)
    if _EXPIRED.search(text):
        said: OSError = PermissionError(errno.EACCES, f"{name} does not permit it: {sought} have expired; get new ones")
    elif isinstance(error, theirs.AlreadyExistsError):
        said = FileExistsError(errno.EEXIST, "it is there already")
        if not new:  # two requests at a time
            said = _answered(HTTPStatus.CONFLICT, name, sought)
    elif isinstance(error, theirs.PreconditionError):
        said = ChangedError(errno.ESTALE, "it has been changed meanwhile")
    elif "NoSuchBucket" in text or "ContainerNotFound" in text:
        said = BucketMissingError(errno.ENOENT, f"there is no bucket {name}")
    elif isinstance(error, FileNotFoundError):
        said = FileNotFoundError(errno.ENOENT, "it is not there")
    elif denied or _INSTANCE in text:
        said = PermissionError(errno.EACCES, f"{name} does not permit it, with {sought}")
    elif found:
        said = _answered(int(found[1]), name, sought)
    else:
        said = _unanswered(text, name)
    return said


def _answered(status: int, name: str, sought: str) -> OSError:
    """Return the error for a status that the library has no class for."""
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return PermissionError(errno.EACCES, f"{name} does not permit it, with {sought}")
    if status == HTTPStatus.NOT_FOUND:  # not of an object, for which the library has a class
        return BucketMissingError(errno.ENOENT, f"there is no bucket {name}")
    phrase = HTTPStatus(status).phrase if status in list(HTTPStatus) else ""
    return OSError(errno.EIO if is_passing(status) else errno.EINVAL, f"{name} answers {status} {phrase}".rstrip())


def _unanswered(text: str, name: str) -> OSError:
    """Return the error for a request to which there was no answer, or none that is understood."""
    if "redirect" in text:
        return OSError(errno.EINVAL, f"{name} lies in another region; name that in AWS_REGION")
    if "HTTP error" in text or "error sending request" in text or "error decoding" in text:
        return OSError(errno.ETIMEDOUT, f"{name} does not answer, or not to the end")
    return OSError(errno.EINVAL, f"{name} cannot be used as it is set up, or does not do what isovoxel needs")
