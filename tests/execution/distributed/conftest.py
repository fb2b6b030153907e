"""Schedulers that tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from execution.distributed.clusters import Foreign


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Foreign]:
    """Return a scheduler in a process of its own, which has no worker yet."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    cluster = Foreign(folder)
    yield cluster
    cluster.end()
