"""Counts of a job of many workers: what the table of workers says adds up to the job's blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from test_counts import VOXELS, check_counts, interrupt


@pytest.mark.parametrize("k", [2, 9, 17])
def test_counts_agree_with_workers(tmp_path: Path, client: Any, k: int, capsys: Any) -> None:
    """Blocks of the next level that were made along with others count for whoever made those."""
    np.save(tmp_path / "in.npy", VOXELS)
    check_counts(tmp_path / "in.npy", k, interrupt, capsys, client=client)
