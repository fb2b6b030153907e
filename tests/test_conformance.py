"""Engine exact and its oracle against what others define, as ``python -m benchmarks conformance`` compares them."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import conformance
from benchmarks.conformance import CHECKS, EXACT, LIBRARIES, ORACLE, Check

PAGE = Path(__file__).parents[1] / "examples/precision.md"
WHY = {
    "onnx": "onnx is not installed; it comes with the extra test-all",
    "jax": "jax is not installed; it comes with the extra test-all",
    "SimpleITK": "SimpleITK is not installed; it comes with the extra test-all",
    "ome_zarr": "ome-zarr-py is not installed; its s3fs and CI's moto want other botocores",
}
"""Why a library may not be there."""


def needs(name: str) -> Any:
    """Import a library, or skip the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=WHY.get(name))


@pytest.mark.parametrize("check", CHECKS, ids=[f"{check.library} {check.theirs}" for check in CHECKS])
def test_each_kernel_is_what_others_define(check: Check) -> None:
    """The engine differs from them by the precision of float32, and the oracle by that of float64."""
    needs(check.library)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        found = list(check.run())
    assert len(found) == len(check.factors)
    for exact, oracle, theirs in found:
        assert theirs.dtype == np.float64
        assert theirs.size > 1000
        np.testing.assert_allclose(exact, theirs, rtol=0, atol=EXACT)
        np.testing.assert_allclose(oracle, theirs, rtol=0, atol=ORACLE)


def test_published_cases_agree_unless_they_are_defined_otherwise() -> None:
    """Whatever differs does so for a reason that is named, and what has a reason differs."""
    needs("onnx")
    found = {case.name: case for case in conformance.published()}
    assert {"upsample_scales_linear", "downsample_sizes_linear_antialias", "upsample_scales_cubic"} <= found.keys()
    for case in found.values():
        assert (case.difference > EXACT) == bool(case.why), case


def test_chunks_leave_no_seams_where_those_of_others_do() -> None:
    """Engine exact makes the same bits in one piece and in chunks; ome-zarr-py, where it is installed, does not."""
    found = {seam.by.partition(",")[0]: seam for seam in conformance.seams()}
    assert found["isovoxel"].largest == 0
    assert found["isovoxel"].brightest > 1000
    needs("ome_zarr")
    assert found["ome-zarr-py"].largest > 100


def test_integers_are_rounded_where_others_truncate() -> None:
    """The mean error is 0, and none is beyond half a grey level, where SimpleITK's are up to a whole one too low."""
    needs("SimpleITK")
    (_, mean, largest), (_, their_mean, their_largest) = conformance.integers()
    assert abs(mean) < 0.01
    assert largest <= 0.501
    assert their_mean < -0.3
    assert 0.8 < their_largest < 1


def test_the_page_has_every_row() -> None:
    """What the page shows is the table of today, and no difference in it is larger than precision explains."""
    page = PAGE.read_text("utf-8")
    for check in CHECKS:
        row = re.search(rf"^\| {re.escape(f'{check.library} {check.theirs}')} \|.*$", page, re.MULTILINE)
        assert row, f"{PAGE.name} has no row of {check.library} {check.theirs}"
        exact, oracle = (float(cell) for cell in row[0].strip("| ").split(" | ")[-2:])
        assert exact <= EXACT
        assert oracle <= ORACLE
    assert all(name in page for name in LIBRARIES)
