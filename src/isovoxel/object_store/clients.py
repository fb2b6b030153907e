"""Clients of object stores, and the credentials that they use.

By obstore, configured as its users know it from elsewhere: the environment (``AWS_ENDPOINT_URL``, ``AWS_REGION``,
``AWS_ACCESS_KEY_ID`` and so on, ``GOOGLE_...``, ``AZURE_...``), and for S3 also what the AWS command line uses:
profiles, single sign-on, the role of a machine. Every process looks for itself; a client is never sent to another.
"""

from __future__ import annotations

import errno
import os
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from isovoxel.errors import AddressError
from isovoxel.object_store.address import READ_ONLY

if TYPE_CHECKING:
    from obstore.store import ObjectStore

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
            from isovoxel.object_store.failures import told

            options: dict[str, Any] = {"timeout": f"{REQUEST_SECONDS}s", "connect_timeout": f"{CONNECT_SECONDS}s"}
            if root.startswith("http:") or any("http://" in v for k, v in settings if k.upper().endswith(_SERVERS)):
                options["allow_http"] = True  # whoever names such a server wants it
            provided: dict[str, Any] = {}
            if root.startswith("s3:") and (provider := _profile()) is not None:
                provided["credential_provider"] = provider
            make: Any = obstore.store.from_url  # whose types want to know which store it will be
            with told(root, sought(root)):
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
    """Tell whether a store is only ever read."""
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
