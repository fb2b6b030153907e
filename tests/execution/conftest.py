"""Workers that tests of this folder share: starting some takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from isovoxel.execution.distributed.local_workers import start


@pytest.fixture(scope="session")
def client() -> Iterator[Any]:
    """Return a client of two PoCL workers, for tests that leave them as they are."""
    from distributed import Client

    with start("cpu:2", 2) as cluster, Client(cluster, set_as_default=False) as connected:
        yield connected


@pytest.fixture
def own() -> Iterator[Any]:
    """Return a client of two PoCL workers, for a test that does them harm."""
    from distributed import Client

    with start("cpu:2", 2) as cluster, Client(cluster, set_as_default=False) as connected:
        yield connected
