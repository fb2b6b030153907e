"""Workers that tests of this folder share: starting some takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from execution.distributed.clusters import Foreign
from isovoxel.execution.distributed.local_workers import start


@pytest.fixture(scope="session")
def client() -> Iterator[Any]:
    """Return a client of two PoCL workers, for tests that leave them as they are."""
    from distributed import Client

    with start("cpu:2", 2) as cluster, Client(cluster, set_as_default=False) as connected:
        yield connected


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where the output shall be."""
    return tmp_path / "out.zarr"


@pytest.fixture
def own() -> Iterator[Any]:
    """Return a client of two PoCL workers, for a test that does them harm."""
    from distributed import Client

    with start("cpu:2", 2) as cluster, Client(cluster, set_as_default=False) as connected:
        yield connected


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Foreign]:
    """Return a scheduler in a process of its own, which has no worker yet."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    cluster = Foreign(folder)
    yield cluster
    cluster.end()
