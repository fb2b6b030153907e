"""Clients of object stores, their credentials, and what their answers mean.

Clients are obstore's, configured as its users know it from elsewhere: the environment (``AWS_ENDPOINT_URL``,
``AWS_REGION``, ``AWS_ACCESS_KEY_ID`` and so on, ``GOOGLE_...``, ``AZURE_...``), and for S3 also what the AWS command
line uses: profiles, single sign-on, the role of a machine. Each process looks for itself; a client is never sent to
another.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
from collections.abc import Iterator
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from isovoxel.errors import AddressError
from isovoxel.object_store.retries import is_passing

if TYPE_CHECKING:
    from obstore import ObjectMeta, PutResult
    from obstore.store import ObjectStore

READ_ONLY = ("http", "https")
"""Servers of which nothing is known but how to read them."""

REQUEST_SECONDS = 60
"""How long one request may take, its body included: a part of 8 MiB at 150 kB/s."""
CONNECT_SECONDS = 10
RETRIES = 2
"""How often a request is made again at once, before the retry policy comes: a page of a list, a part of an upload."""
FIRST_PAUSE = 0.1
"""Seconds; each pause is about twice as long as the one before."""

_ENVIRONMENT = ("AWS_", "GOOGLE_", "AZURE_")
"""What the names of variables begin with that say how to reach a store."""
_SERVERS = ("ENDPOINT", "ENDPOINT_URL", "ENDPOINT_URL_S3", "BASE_URL", "SERVICE_ACCOUNT_KEY")
"""What the names of variables end with that may name a server."""
_S3_SIGNS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
"""With one of them set, obstore finds S3's credentials itself."""

_lock = threading.Lock()
_clients: dict[tuple[str, tuple[tuple[str, str], ...]], ObjectStore] = {}
_used_by: set[int] = set()
"""The process that has asked stores, which forks of it inherit without obstore's threads."""


def client(root: str) -> ObjectStore:
    """Return the client of a store: one for each store in a process, as its environment is now.

    Raises
    ------
    AddressError
        If obstore is not installed, or this process is a fork of one that had asked a store.
    PermissionError
        If there are no credentials.
    """
    try:
        import obstore.store
    except ImportError:
        raise AddressError(
            f'{root} is an address, and reading and writing there takes obstore; pip install "isovoxel[cloud]"'
        ) from None
    if _used_by and os.getpid() not in _used_by:
        raise AddressError(
            f"{root}: object stores were asked before this process was forked, and obstore does not work in a fork; "
            'start processes by spawn: multiprocessing.get_context("spawn"), or mp_context= of a ProcessPoolExecutor'
        )
    _used_by.add(os.getpid())
    settings = tuple(sorted((k, v) for k, v in os.environ.items() if k.upper().startswith(_ENVIRONMENT)))
    with _lock:
        if (root, settings) not in _clients:
            options: dict[str, Any] = {"timeout": f"{REQUEST_SECONDS}s", "connect_timeout": f"{CONNECT_SECONDS}s"}
            if root.startswith("http:") or any("http://" in v for k, v in settings if k.upper().endswith(_SERVERS)):
                options["allow_http"] = True  # a user who names such a server wants it
            provided: dict[str, Any] = {}
            if root.startswith("s3:") and (provider := _profile()) is not None:
                provided["credential_provider"] = provider
            make: Any = obstore.store.from_url  # whose types want to know which store it will be
            with told(root):
                _clients[root, settings] = make(
                    root,
                    client_options=options,
                    retry_config={
                        "max_retries": RETRIES,
                        "retry_timeout": timedelta(seconds=CONNECT_SECONDS),
                        "backoff": {
                            "init_backoff": timedelta(seconds=FIRST_PAUSE),
                            "max_backoff": timedelta(seconds=1),
                            "base": 2,
                        },
                    },
                    **provided,
                )
        return _clients[root, settings]


def sought(root: str) -> str:
    """Return where a store's credentials are looked for, and what is there, as a clause; never a value."""
    if root.startswith("s3:"):
        named = ", ".join(f"{name} {_is_set(name)}" for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"))
        if _anonymous():
            return "no credentials, as AWS_SKIP_SIGNATURE has it"
        return f"the credentials of the environment ({named}), a profile or a role"
    if root.startswith("gs:"):
        return f"the credentials of GOOGLE_APPLICATION_CREDENTIALS ({_is_set('GOOGLE_APPLICATION_CREDENTIALS')})"
    if root.startswith("az:"):
        return f"the credentials of AZURE_STORAGE_ACCOUNT_NAME ({_is_set('AZURE_STORAGE_ACCOUNT_NAME')}) and its key"
    return "no credentials, which are not sent to such servers"


def is_read_only(root: str) -> bool:
    """Return whether a store is only ever read."""
    return root.partition(":")[0] in READ_ONLY


def _is_set(name: str) -> str:
    return "is set" if os.environ.get(name) else "is not set"


def _anonymous() -> bool:
    return os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true", "on", "yes")


def _profile() -> Any:
    """Return what provides S3's credentials where the environment has none; None where obstore finds them itself."""
    if _anonymous() or any(os.environ.get(name) for name in _S3_SIGNS):
        return None
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider

        return Boto3CredentialProvider()
    except Exception as error:  # noqa: BLE001 - botocore has many, and boto3 may be missing
        why = "" if isinstance(error, ValueError) else f" ({type(error).__name__})"
        raise PermissionError(
            errno.EACCES,
            f"there are no credentials for S3: AWS_ACCESS_KEY_ID {_is_set('AWS_ACCESS_KEY_ID')}, AWS_PROFILE "
            f"{_is_set('AWS_PROFILE')}, and no profile or role has any{why}; "
            "set AWS_SKIP_SIGNATURE=true for what is public",
        ) from None


# ---- what a store says of an object --------------------------------------------------------------------------------


class Found(NamedTuple):
    """What a store knows of an object."""

    size: int
    """Its bytes."""
    tag: str
    """What tells it from another one of this name: its ETag, or where the store has none, when it was written."""
    etag: str | None
    """The ETag, to ask for this very object."""
    written_ns: int
    """When it was written, by the store's clock, in nanoseconds since 1970."""
    generation: str | None = None
    """What Google Cloud Storage numbers it by, where it is that; obstore calls it ``version``."""

    @property
    def version(self) -> Version:
        """What a conditional write names it by."""
        return Version(self.etag, self.generation)


class Version(NamedTuple):
    """What a store tells an object from a later one of its name by: conditional writes name all that there is."""

    etag: str | None
    """The ETag."""
    generation: str | None = None
    """As `Found` has it."""


def version_of(put: PutResult) -> Version:
    """Return the version of an object that was put."""
    return Version(put["e_tag"], put["version"])


def found_of(meta: ObjectMeta) -> Found:
    """Return what the metadata of an object tell."""
    modified, etag = meta["last_modified"], meta["e_tag"]
    return Found(
        meta["size"], etag or modified.isoformat(), etag, int(modified.timestamp() * 1e6) * 1000, meta["version"]
    )


# ---- failures ------------------------------------------------------------------------------------------------------

# Turn failures of an object store into what Python raises for a disk: `OSError` with the system's number.
#
# So code that reads or writes need not know where: what may pass is told from what stays by the same numbers. The
# libraries' own messages are not passed on, for they hold what a server sent, keys and signatures among it.
#
# =======================  ===================================================================================
# 404                      FileNotFoundError
# 401, 403, expired        PermissionError, which says where credentials were looked for, never their values
# 412                      FileExistsError for what must be new, `ChangedError` for what must be as it was
# 429, 5xx, no answer      OSError with a number that `isovoxel.object_store.retries.is_transient` knows
# all else                 OSError with another one
# =======================  ===================================================================================


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
def told(root: str, *, new: bool = False) -> Iterator[None]:
    """Raise the `OSError` for what fails inside.

    Parameters
    ----------
    root
        The store: "s3://bucket".
    new
        Whether an object is asked for on the condition that there is none.
    """
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        # Not even as its cause: a traceback would show it.
        raise _translated(error, root, new=new) from None


def _translated(error: Exception, root: str, *, new: bool) -> OSError:
    from obstore import exceptions as theirs

    text = str(error)
    found = _STATUS.search(text)
    denied = isinstance(error, theirs.PermissionDeniedError | theirs.UnauthenticatedError)
    if _EXPIRED.search(text):
        expired = f"{root} does not permit it: {sought(root)} have expired; get new ones"
        said: OSError = PermissionError(errno.EACCES, expired)
    elif isinstance(error, theirs.AlreadyExistsError):
        said = FileExistsError(errno.EEXIST, "it is there already")
        if not new:  # two requests at a time
            said = _answered(HTTPStatus.CONFLICT, root)
    elif isinstance(error, theirs.PreconditionError):
        said = ChangedError(errno.ESTALE, "it has been changed meanwhile")
    elif "NoSuchBucket" in text or "ContainerNotFound" in text:
        said = BucketMissingError(errno.ENOENT, f"there is no bucket {root}")
    elif isinstance(error, FileNotFoundError):
        said = FileNotFoundError(errno.ENOENT, "it is not there")
    elif denied or _INSTANCE in text:
        said = _answered(HTTPStatus.FORBIDDEN, root)
    elif found:
        said = _answered(int(found[1]), root)
    else:
        said = _unanswered(text, root)
    return said


def _answered(status: int, root: str) -> OSError:
    """Return the error for a status that the library has no class for."""
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return PermissionError(errno.EACCES, f"{root} does not permit it, with {sought(root)}")
    if status == HTTPStatus.NOT_FOUND:  # not of an object, for which the library has a class
        return BucketMissingError(errno.ENOENT, f"there is no bucket {root}")
    phrase = HTTPStatus(status).phrase if status in list(HTTPStatus) else ""
    return OSError(errno.EIO if is_passing(status) else errno.EINVAL, f"{root} answers {status} {phrase}".rstrip())


def _unanswered(text: str, name: str) -> OSError:
    """Return the error for a request to which there was no answer, or none that is understood."""
    if "redirect" in text:
        return OSError(errno.EINVAL, f"{name} lies in another region; name that in AWS_REGION")
    if "HTTP error" in text or "error sending request" in text or "error decoding" in text:
        return OSError(errno.ETIMEDOUT, f"{name} does not answer, or not to the end")
    return OSError(errno.EINVAL, f"{name} cannot be used as it is set up, or does not do what isovoxel needs")
