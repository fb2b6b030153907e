"""Workers that tests of this folder share: starting some takes seconds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isovoxel.execution.distributed.local_workers import start

_SHARED = contextlib.ExitStack()
_CLIENTS: list[Any] = []


@contextlib.contextmanager
def _two_workers() -> Iterator[Any]:
    from distributed import Client

    with start("cpu:2", 2) as cluster, Client(cluster, set_as_default=False) as connected:
        yield connected


@pytest.fixture
def client() -> Any:
    """Return a client of two PoCL workers, which is shared by tests that leave them as they are."""
    if not _CLIENTS:
        _CLIENTS.append(_SHARED.enter_context(_two_workers()))
    return _CLIENTS[0]


def _shares(item: pytest.Item) -> bool:
    return item.path.parent.name == "distributed" or item.path.name == "test_executors.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put tests of this folder that share workers before the others."""
    ours = [at for at, item in enumerate(items) if Path(__file__).parent in item.path.parents]
    ordered = sorted((items[at] for at in ours), key=lambda item: not _shares(item))
    for at, item in zip(ours, ordered, strict=True):
        items[at] = item


def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """End the shared workers behind the tests that share them: idle ones take a tenth of a core."""
    if nextitem is None or not _shares(nextitem):
        _CLIENTS.clear()
        _SHARED.close()


@pytest.fixture
def own() -> Iterator[Any]:
    """Return a client of two PoCL workers, for a test that does them harm."""
    with _two_workers() as connected:
        yield connected
