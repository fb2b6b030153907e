"""Plans: the laws of their blocks, and that they are values."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from isovoxel.geometry.grid import VoxelGrid
from isovoxel.planning.chunking import BLOSC_MARGIN
from isovoxel.planning.plan import Plan
from isovoxel.planning.resume import plan_from_json
from strategies import cut, places, plans


@pytest.mark.slow
@given(plans())
def test_write_boxes_tile_the_output_with_whole_shards(plan: Plan) -> None:
    """Law 1: every output voxel is written once, and no shard has two writers."""
    assume(plan.n_blocks <= 4000)  # more take seconds to count
    writers = np.zeros(plan.output.shape, dtype=int)
    for block in plan.blocks():
        writers[block.write_box.slices] += 1
        for start, stop, shard, m in zip(
            block.write_box.start, block.write_box.stop, plan.storage.shard, plan.output.shape, strict=True
        ):
            assert start % shard == 0
            assert stop % shard == 0 or stop == m
    assert (writers == 1).all()


@given(plans(), st.data())
def test_a_read_box_and_its_pads_hold_the_support_of_its_write_box(plan: Plan, data: st.DataObject) -> None:
    """Law 2: what the kernel reads lies in the read box, and what lies beyond the rim in its pads."""
    block = plan.block(data.draw(places(plan)))
    for axis, n in enumerate(plan.source.grid.shape):
        output = np.array([block.write_box.start[axis], block.write_box.stop[axis] - 1])
        position = (output + 0.5) / plan.factor[axis] - 0.5
        if plan.interpolation == "nearest":
            low, high = np.floor(position + 0.5)
        else:
            low, high = np.floor(position[0]), np.ceil(position[1])
        first, last = block.read_box.start[axis], block.read_box.stop[axis] - 1
        assert 0 <= first <= last < n
        assert first <= np.clip(low, 0, n - 1)
        assert last >= np.clip(high, 0, n - 1)
        if plan.boundary == "nearest" and position[1] <= n:
            assert first - block.pad_before[axis] <= low
            assert last + block.pad_after[axis] >= high
        if plan.boundary == "constant":
            # Only where what comes next has no weight does a block's rim stand for it.
            within = plan.factor[axis] == 1 and plan.interpolation == "linear"
            assert block.pad_before[axis] == (within and first > 0)
            assert block.pad_after[axis] == (within and last < n - 1)


@given(plans())
def test_no_block_costs_more_than_the_plan_projects(plan: Plan) -> None:
    """Law 4, on paper: projected bytes are an upper bound over all blocks and are within what is allowed."""
    item = plan.source.itemsize
    for block in plan.blocks():
        padded, written = (int(np.prod(s)) for s in (block.padded_shape, block.write_box.shape))
        images = 2 if plan.interpolation == "linear" else 1
        voxels = item * (block.read_box.size + written)
        assert 4 * images * padded + 4 * written + 64 + 2 * voxels <= plan.projected_device
        assert voxels <= min(plan.cost.host, sum(plan.staging))
    assert plan.projected_device <= plan.device.allowed
    assert plan.projected_host <= plan.host.allowed


@given(plans())
def test_a_plan_survives_json(plan: Plan) -> None:
    """A plan read back from JSON is equal, and has the same fingerprint."""
    again = plan_from_json(json.dumps(json.loads(plan.to_json())))
    assert again == plan
    assert again.fingerprint == plan.fingerprint


@given(plans(), st.data())
def test_a_block_knows_its_own_index(plan: Plan, data: st.DataObject) -> None:
    """Blocks are found by index, z slowest."""
    index = data.draw(places(plan))
    block = plan.block(index)
    assert block.index == index
    if index:
        assert plan.block(index - 1).write_box.start < block.write_box.start


@given(plans(), st.data())
def test_the_voxels_of_blocks_that_are_done_are_counted(plan: Plan, data: st.DataObject) -> None:
    """Those of any blocks, clipped ones too, without asking one after the other."""
    done = bytearray(data.draw(st.lists(st.sampled_from([0, 1]), min_size=plan.n_blocks, max_size=plan.n_blocks)))
    assert plan.voxels_of(done) == sum(
        b.write_box.size for b, is_done in zip(plan.blocks(), done, strict=True) if is_done
    )


@given(plans())
def test_there_is_no_block_beyond_the_last(plan: Plan) -> None:
    for index in (-1, plan.n_blocks):
        with pytest.raises(IndexError):
            plan.block(index)


CHANGES_A_RESULT = {
    "another factor": lambda p: replace(p, factor=(p.factor[0] * 1.001, *p.factor[1:])),
    "another interpolation": lambda p: replace(
        p, interpolation={"linear": "nearest", "nearest": "linear"}[p.interpolation]
    ),
    "another boundary": lambda p: replace(p, boundary={"nearest": "constant", "constant": "nearest"}[p.boundary]),
    "another revision": lambda p: replace(p, revision=2),
    "another engine": lambda p: replace(p, engine="other"),
    "another codec": lambda p: replace(p, storage=replace(p.storage, codec="zstd")),
    "a codec without blosc": lambda p: replace(p, storage=replace(p.storage, codec="zstd", plain=True)),
    "checksums": lambda p: replace(p, storage=replace(p.storage, checksum=not p.storage.checksum)),
    "another version": lambda p: replace(
        p,
        storage=replace(
            p.storage, shard=p.storage.chunk, ome_zarr="0.4" if p.storage.sharded else "0.5", checksum=False
        ),
    ),
    "another input": lambda p: replace(p, source=replace(p.source, identity={"path": "other"})),
    "another input grid": lambda p: replace(
        p, source=replace(p.source, grid=VoxelGrid(p.source.grid.shape, (2, 1, 1)))
    ),
    "another device": lambda p: replace(p, device=replace(p.device, name="other")),
    "other blocks": lambda p: replace(p, block_shape=(p.block_shape[0] + p.storage.shard[0], *p.block_shape[1:])),
}
CHANGES_NO_RESULT = {
    "more memory": lambda p: replace(p, host=replace(p.host, allowed=2 * p.host.allowed)),
    "more threads": lambda p: replace(p, in_flight=p.in_flight + 1),
    "another way to the halo": lambda p: replace(p, halo_mode="map_overlap"),
    "another window": lambda p: replace(p, window=(7, 7, 7)),
    "more device memory": lambda p: replace(p, device=replace(p.device, allowed=2 * p.device.allowed)),
    "another name for the input": lambda p: replace(p, source=replace(p.source, name="other")),
    "a note on the input": lambda p: replace(p, source=replace(p.source, notes=("a slice is missing",))),
    "other chunks of the input": lambda p: replace(p, source=replace(p.source, chunks=(7, 7, 7))),
}


@given(plans())
def test_the_fingerprint_changes_with_what_can_change_a_result_alone(plan: Plan) -> None:
    """Law 5."""
    for name, change in CHANGES_A_RESULT.items():
        assert change(plan).fingerprint != plan.fingerprint, name
    changed = {name: change(plan) for name, change in CHANGES_NO_RESULT.items()}
    assert sum(other != plan for other in changed.values()) >= len(changed) - 2  # who has such chunks or windows
    for name, other in changed.items():
        assert other.fingerprint == plan.fingerprint, name


def test_what_an_output_takes_on_the_disk() -> None:
    """Uncompressed, chunks at the end of the volume are as long as all others; a shard has an index of its chunks."""
    plan = cut((10, 10, 10), (1.0, 1.0, 1.0), (8, 8, 8))
    index = 8 * (16 * plan.storage.chunks_per_shard + 4)
    assert plan.disk_bytes == 2 * 16**3 + 8 * BLOSC_MARGIN + index  # for chunks are short
    larger = cut((20, 20, 20), (1.0, 1.0, 1.0), (16, 16, 16))
    assert larger.disk_bytes == larger.output_bytes + 8 * BLOSC_MARGIN + index
    storage = replace(plan.storage, codec="none")
    assert replace(plan, storage=storage).disk_bytes == 2 * 16**3 + index
    assert replace(plan, storage=replace(storage, checksum=True)).disk_bytes == 2 * 16**3 + index + 8 * 4
