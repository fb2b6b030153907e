"""An object store in this process, which fails as a test wants: the XML APIs of S3, Google Cloud Storage and Azure.

Of each API it has what obstore asks for, conditional writes above all: Google's name the generation, the others' the
ETag. What is not conditional is the same for all three.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import itertools
import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

from isovoxel.object_store import clients

Object = tuple[bytes, int, float]
"""What an object holds, its generation, and when it was written."""
Fault = int | str | None
"""An HTTP status; "reset" for a connection that ends without an answer, "torn" for a body that ends half-way,
"late" for a request that is done, and of which the answer is lost; None for an answer."""
BUCKET = "bucket"
ROOTS = {"s3": "s3://bucket", "gs": "gs://bucket", "az": "az://bucket"}


class SmallStore:
    """The store, in threads of this process.

    Parameters
    ----------
    kind
        Whose API: "s3", "gs" or "az".

    Attributes
    ----------
    objects : dict
        All objects, by their keys.
    asked : list of str
        Method, path and query of every request, in turn.
    fault : callable
        Returns what becomes of a request, by method, path and query.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.objects: dict[str, Object] = {}
        self.asked: list[str] = []
        self.fault: Callable[[str, str], Fault] = lambda _method, _path: None
        self.says = b""
        self.lock = threading.Lock()
        self._generations = itertools.count(1000)
        handler = type("Handler", (_Handler,), {"store": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach it."""
        key = {"gcs_base_url": self.endpoint, "disable_oauth": True, "client_email": "", "private_key": ""}
        key |= {"private_key_id": ""}
        return {
            "s3": {
                "AWS_ENDPOINT_URL": self.endpoint,
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_REGION": "us-east-1",
            },
            "gs": {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(key), "GOOGLE_BASE_URL": self.endpoint},
            "az": {
                "AZURE_STORAGE_ACCOUNT_NAME": "account",
                "AZURE_STORAGE_ENDPOINT": self.endpoint,
                "AZURE_SKIP_SIGNATURE": "true",
            },
        }[self.kind]

    def put(self, key: str, data: bytes) -> Object:
        self.objects[key] = data, next(self._generations), time.time()
        return self.objects[key]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextlib.contextmanager
def small_store(kind: str) -> Iterator[SmallStore]:
    """Run a store with an empty bucket, which this process reaches, and of which obstore asks nothing twice."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "AZURE_"))]:
            patch.delenv(name)
        patch.setattr(clients, "RETRIES", 0)
        store = SmallStore(kind)
        for name, value in store.environment.items():
            patch.setenv(name, value)
        clients._clients.clear()
        try:
            yield store
        finally:
            store.close()
            clients._clients.clear()


def _etag(found: Object) -> str:
    return f'"{hashlib.md5(found[0] + str(found[1]).encode()).hexdigest()}"'  # noqa: S324 - no secret


class _Handler(BaseHTTPRequestHandler):
    store: SmallStore
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def handle(self) -> None:
        """Answer until the client has gone."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        where = urlsplit(self.path)
        self.query = parse_qs(where.query, keep_blank_values=True)
        self.key = unquote(where.path).partition(f"/{BUCKET}")[2].lstrip("/")
        fault = self.store.fault(self.command, unquote(self.path))
        self.store.asked.append(f"{self.command} {self.path}")
        if fault == "reset":
            self._reset()
            return
        if isinstance(fault, int):
            self._answer(fault, self.store.says)
            return
        with self.store.lock:
            status, headers, said = self._done(body)
        if fault == "late":
            self._reset()
            return
        self._answer(status, said, headers, torn=fault == "torn")

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _any  # noqa: N815 - http.server's names

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _answer(self, status: int, said: bytes, headers: dict[str, str] | None = None, *, torn: bool = False) -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(said)), "Content-Type": "application/xml"} | (headers or {})
        if torn:
            if not said:
                headers["Content-Length"] = "7"
            said = said[: len(said) // 2]
            self.close_connection = True
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(said)

    def _done(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Do what is asked; return status, headers and body."""
        if self.command == "GET" and not self.key:
            return 200, {}, self._listed()
        if self.command in ("GET", "HEAD"):
            return self._got()
        if self.command == "DELETE":
            there = self.store.objects.pop(self.key, None)
            return (204 if there or self.store.kind == "s3" else 404), {}, b""
        if self.command == "PUT":
            return self._put(body)
        return self._deleted(body)

    def _got(self) -> tuple[int, dict[str, str], bytes]:
        found = self.store.objects.get(self.key)
        if found is None:
            return 404, {}, b"<Error><Code>NoSuchKey</Code></Error>"
        if self.headers.get("If-Match", _etag(found)) != _etag(found):
            return 412, {}, b""
        data, headers = found[0], self._headers(found)
        if part := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last = int(part[1]), min(int(part[2]), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            return 206, headers, data[first : last + 1]
        if self.command == "HEAD":
            headers["Content-Length"] = str(len(data))
        return 200, headers, data

    def _put(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Keep an object, where the condition holds."""
        found = self.store.objects.get(self.key)
        generation = self.headers.get("x-goog-if-generation-match")
        if self.store.kind == "gs":
            if generation is not None and int(generation) != (found[1] if found else 0):
                return 412, {}, b""
        elif self.headers.get("If-None-Match") == "*" and found:
            return (409 if self.store.kind == "az" else 412), {}, b"<Error><Code>BlobAlreadyExists</Code></Error>"
        elif (tag := self.headers.get("If-Match")) and (found is None or _etag(found) != tag):
            return 412, {}, b""
        return (201 if self.store.kind == "az" else 200), self._headers(self.store.put(self.key, body)), b""

    def _headers(self, found: Object) -> dict[str, str]:
        headers = {"ETag": _etag(found), "Last-Modified": email.utils.formatdate(found[2], usegmt=True)}
        return headers | ({"x-goog-generation": str(found[1])} if self.store.kind == "gs" else {})

    def _listed(self) -> bytes:
        """List objects, all in one page."""
        prefix, delimiter = self.query.get("prefix", [""])[0], self.query.get("delimiter", [""])[0]
        after = self.query.get("start-after", [""])[0]
        folders, found = set(), []
        for key in sorted(self.store.objects):
            rest = key[len(prefix) :]
            if not key.startswith(prefix) or key <= after:
                continue
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                found.append(key)
        if self.store.kind == "az":
            return self._listed_as_azure(folders, found)
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>{escape(_etag(self.store.objects[key]))}</ETag><Size>{len(self.store.objects[key][0])}</Size></Contents>"
            for key in found
        )
        common = "".join(f"<CommonPrefixes><Prefix>{escape(key)}</Prefix></CommonPrefixes>" for key in sorted(folders))
        return f"<ListBucketResult>{contents}{common}</ListBucketResult>".encode()

    def _listed_as_azure(self, folders: set[str], found: list[str]) -> bytes:
        date = email.utils.formatdate(usegmt=True)
        blobs = "".join(
            f"<Blob><Name>{escape(key)}</Name><Properties><Last-Modified>{date}</Last-Modified><Content-Length>"
            f"{len(self.store.objects[key][0])}</Content-Length><Content-Type>a/b</Content-Type>"
            f"<Etag>{escape(_etag(self.store.objects[key]))}</Etag></Properties></Blob>"
            for key in found
        )
        common = "".join(f"<BlobPrefix><Name>{escape(key)}</Name></BlobPrefix>" for key in sorted(folders))
        return f"<EnumerationResults><Blobs>{blobs}{common}</Blobs><NextMarker /></EnumerationResults>".encode()

    def _deleted(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Delete many objects: a list of S3's, or a batch of Azure's."""
        if self.store.kind == "s3":
            for key in re.findall(r"<Key>(.*?)</Key>", body.decode()):
                self.store.objects.pop(key, None)
            return (
                200,
                {},
                b"<DeleteResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'><Deleted><Key>-</Key></Deleted></DeleteResult>",
            )
        parts = []
        for number, path in enumerate(re.findall(r"DELETE (\S+) HTTP", body.decode())):
            there = self.store.objects.pop(unquote(path).partition(f"/{BUCKET}/")[2], None)
            status = HTTPStatus.ACCEPTED if there else HTTPStatus.NOT_FOUND
            parts.append(
                f"--b\r\nContent-Type: application/http\r\nContent-ID: {number}\r\n\r\n"
                f"HTTP/1.1 {status.value} {status.phrase}\r\nx-ms-error-code: BlobNotFound\r\n\r\n\r\n"
            )
        return 202, {"Content-Type": "multipart/mixed; boundary=b"}, ("".join(parts) + "--b--\r\n").encode()
