"""An S3 server on this machine, of which a test may change the answers, and what tests do with it."""

from __future__ import annotations

import contextlib
import os
import threading
import urllib.request
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from isovoxel.object_store import clients, retries
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.output.ledger import Ledger, ledger_of

KEY, SECRET = "AKIAISOVOXELTEST", "not-to-be-seen-not+even=once"
BUCKET = "bucket"


class Server:
    """The server, in threads of this process.

    Attributes
    ----------
    endpoint : str
        Its address.
    asked : list of str
        Method and path of every request, in turn.
    """

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # moto's own
            from moto.moto_server.werkzeug_app import MotoRequestHandler, create_backend_app
            from werkzeug.serving import make_server

        class Silent(MotoRequestHandler):  # type: ignore[misc, valid-type]
            def log(self, *_: Any) -> None:
                pass

        self.asked: list[str] = []
        self._inner: Any = create_backend_app("s3")  # to look for the service in each request takes half as long again
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=Silent)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.port}"
        self.let_be()

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def let_be(self) -> None:
        """Answer as a store does."""
        self.instead: Callable[[str, str], int] = lambda _method, _path: 0

    def put(self, path: str, data: bytes | None = None) -> None:
        """Make a bucket, or an object that everybody may read."""
        headers = {"x-amz-acl": "public-read", "Content-Type": "application/octet-stream"}
        request = urllib.request.Request(f"{self.endpoint}/{path}", data, headers, method="PUT")  # noqa: S310 - http
        urllib.request.urlopen(request).close()  # noqa: S310

    def close(self) -> None:
        """End it, and forget what it holds, which moto keeps for all servers of a process."""
        self.let_be()
        from moto.moto_api._internal import moto_api_backend

        moto_api_backend.reset()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, request: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = request["REQUEST_METHOD"], request["PATH_INFO"]
        self.asked.append(f"{method} {path}")
        status = self.instead(method, path)
        if not status:
            answer: Iterable[bytes] = self._inner(request, start)
            return answer
        request["wsgi.input"].read(int(request.get("CONTENT_LENGTH") or 0))
        said = f"<Error><Code>Said</Code><AWSAccessKeyId>{KEY}</AWSAccessKeyId></Error>".encode()
        start(f"{status} Said", [("Content-Length", str(len(said)))])
        return [b"" if method == "HEAD" else said]


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Run a server with an empty bucket, which this process reaches, whatever it was set up for before."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_") and name != "AWS_CA_BUNDLE"]:
            patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setattr(retries, "PAUSES", (0.01,) * 8)
        server = Server()
        for name, value in server.environment.items():
            patch.setenv(name, value)
        try:
            server.put(BUCKET)
            yield server
        finally:
            server.close()
            clients._clients.clear()


def upload(folder: Path, place: ObjectPlace) -> ObjectPlace:
    """Put all files of a folder into a store."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            (place / path.relative_to(folder).as_posix()).upload(path)
    return place


def contents(place: ObjectPlace) -> dict[str, bytes]:
    """Return all objects in a place."""
    return {path: (place / path).read_bytes() for path, _ in place.walk()}


def shards_noted(output: ObjectPlace) -> set[str]:
    """Return the shards of all blocks in an output's ledger, of which each is one, of 16 voxels a side."""
    if (ledger := Ledger.read(ledger_of(output))) is None:
        return set()
    done = ledger.done(lambda *_: True)
    boxes = (ledger.plan.block(index).write_box for index, is_done in enumerate(done) if is_done)
    return {"/".join(str(a // 16) for a in box.start) for box in boxes}
