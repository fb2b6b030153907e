"""Engine exact onto the voxels of another volume: what the oracle says, however the output is cut."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from isovoxel.engines.reference import reference, reference_labels
from isovoxel.engines.registry import open_engine
from isovoxel.errors import OptionError
from isovoxel.geometry.grid import Box, Index3, VoxelGrid
from isovoxel.planning.chunking import Storage
from isovoxel.planning.model import ENGINES, FILTERS, MOVES
from isovoxel.planning.optimizer import make_plan
from isovoxel.planning.plan import Plan
from isovoxel.planning.resume import plan_from_json
from repeat import carry_out
from strategies import as_dtype, device_limits, host_limits, read_from, source

SHAPE = (9, 14, 17)
INPUT = VoxelGrid(SHAPE, (2.0, 0.5, 0.5), (-3.0, 7.0, 0.1))
GRIDS = {
    "finer, from before the input to beyond it": VoxelGrid((25, 21, 30), (0.9, 0.41, 0.3), (-5.3, 6.1, -0.9)),
    "coarser, inside": VoxelGrid((3, 4, 4), (4.1, 1.3, 1.7), (-1.0, 7.9, 1.3)),
    "a crop": VoxelGrid((4, 6, 9), (2.0, 0.5, 0.5), (1.0, 8.5, 1.6)),
    "the same voxels, and some around them": VoxelGrid((12, 16, 20), (2.0, 0.5, 0.5), (-7.0, 6.5, -0.4)),
    "half of it moved by a third of a voxel": VoxelGrid(
        (9, 7, 17), (2.0, 0.5, 0.5), (-3.0 + 2 / 3, 7.0, 0.1 + 0.5 / 3)
    ),
}
KERNELS = [
    (name, antialias) for name in ENGINES["exact"] for antialias in ([False, True] if name in FILTERS else [False])
]


def planned(output: VoxelGrid, block: Index3, dtype: str, **options: Any) -> Plan:
    """Return the plan of a scaling onto a grid, in blocks of a shape."""
    factor, shift = output.placed_on(INPUT)
    whole = tuple(min(b, m) for b, m in zip(block, output.shape, strict=True))
    plan = make_plan(
        source(SHAPE, dtype, grid=INPUT),
        factor,
        storage=Storage(whole, whole),
        device=device_limits(),
        host=host_limits(),
        engine="exact",
        halo_mode="direct",
        fixed_storage=True,
        output=output,
        shift=shift,
        **options,
    )
    return replace(plan, block_shape=whole)


@pytest.mark.sampled(17)  # all kernels, and all grids, are among them
@pytest.mark.parametrize(
    ("name", "interpolation", "antialias", "boundary"),
    [
        # Each kernel with each grid, and either of them with both boundaries.
        (name, *kernel, ["nearest", "constant"][(at + number) % 2])
        for (at, name), (number, kernel) in product(enumerate(GRIDS), enumerate(KERNELS))
    ],
)
def test_voxels_are_those_of_the_oracle_however_cut(
    name: str, interpolation: str, boundary: str, *, antialias: bool
) -> None:
    """In one block or in many: to the bit the same, and as far from the oracle as float32 explains."""
    if interpolation == "smooth" and name.startswith("coarser"):
        with pytest.raises(OptionError, match="smooth is for labels that grow"):
            planned(GRIDS[name], (99, 99, 99), "uint8", interpolation=interpolation)
        return
    output, moves = GRIDS[name], interpolation in MOVES
    dtype = "uint64" if moves else "float32"
    rng = np.random.default_rng(3)
    volume = rng.integers(2**63, 2**64 - 1, SHAPE, np.uint64) // (2**62 + 1) if moves else rng.random(SHAPE, np.float32)
    options = {"interpolation": interpolation, "boundary": boundary, "antialias": antialias}
    plans = [planned(output, block, dtype, **options) for block in ((99, 99, 99), (5, 3, 7))]
    assert plans[1].n_blocks > plans[0].n_blocks == 1
    whole, cut = (carry_out(open_engine("exact"), plan, volume) for plan in plans)
    np.testing.assert_array_equal(cut, whole)
    where = (read_from(volume), SHAPE, plans[0].factor, Box.whole(output.shape), interpolation, boundary)
    if moves:
        np.testing.assert_array_equal(whole, reference_labels(*where, shift=plans[0].shift))
    else:
        real = reference(*where, antialias=antialias, shift=plans[0].shift)
        np.testing.assert_allclose(whole, as_dtype(real, np.dtype("float32")), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("interpolation", "antialias"), KERNELS)
def test_a_crop_of_the_same_voxels_is_that_crop_to_the_bit(interpolation: str, *, antialias: bool) -> None:
    """Whatever the kernel: no axis is scaled."""
    volume = np.random.default_rng(4).integers(0, 2**32 - 1, SHAPE, np.uint32)
    found = carry_out(
        open_engine("exact"),
        planned(GRIDS["a crop"], (3, 4, 4), "uint32", interpolation=interpolation, antialias=antialias),
        volume,
    )
    np.testing.assert_array_equal(found, volume[2:6, 3:9, 3:12])


def test_a_plan_onto_a_grid_survives_json_and_has_a_fingerprint_of_its_own() -> None:
    """The shift counts, and only where there is one; a plan that no engine could carry out is none."""
    plan = planned(GRIDS["coarser, inside"], (9, 9, 9), "uint8")
    text = plan.to_json()
    assert plan_from_json(text) == plan
    later = VoxelGrid(plan.output.shape, plan.output.voxel_size, (-1.1, 7.9, 1.3))
    assert planned(later, (9, 9, 9), "uint8").fingerprint != plan.fingerprint
    assert "shift" in plan.makes
    assert "shift" not in planned(INPUT.scaled((2.0, 1.0, 1.0)), (9, 9, 9), "uint8").makes
    for wrong in (
        text.replace('"engine": "exact"', '"engine": "cle"'),
        text.replace('"halo_mode": "direct"', '"halo_mode": "map_overlap"'),
        text.replace(str(plan.shift[0]), "1e17"),
    ):
        assert wrong != text
        with pytest.raises(ValueError, match=r"makes no sense|no "):
            plan_from_json(wrong)


def test_a_kernel_that_would_weigh_millions_is_refused() -> None:
    """A grid of gigantic voxels averages no more than one of any other scaling may."""
    with pytest.raises(OptionError, match="would average"):
        planned(VoxelGrid((1, 1, 1), (2.0, 0.5, 1e9), INPUT.origin), (9, 9, 9), "uint8", interpolation="area")
