"""Hypothesis strategies that the tests share: grids, factors, storage, limits and plans."""

from __future__ import annotations

from hypothesis import strategies as st

from isovoxel.geometry.box import Box
from isovoxel.geometry.grid import VoxelGrid
from isovoxel.planning.limits import DeviceLimits, HostLimits
from isovoxel.planning.plan import Plan, Source
from isovoxel.planning.planner import make_plan
from isovoxel.planning.storage import Storage

GIB = 2**30

interpolations = st.sampled_from(["linear", "nearest"])
boundaries = st.sampled_from(["nearest", "constant"])
dtypes = st.sampled_from(["uint8", "uint16", "uint32", "int8", "int16", "int32", "float32"])


def triples(values: st.SearchStrategy) -> st.SearchStrategy:
    """Three of something, z, y, x."""
    return st.tuples(values, values, values)


def shapes(most: int = 60) -> st.SearchStrategy[tuple[int, int, int]]:
    """Shapes of small volumes."""
    return triples(st.integers(1, most))


# Whole factors and their inverses, where ties lie, and arbitrary ones between 0.05 and 20.
factor = st.one_of(
    st.sampled_from([1.0, 2.0, 3.0, 4.0, 5.0, 0.5, 0.25, 0.2, 1.5, 2.5, 1 / 3]),
    st.floats(0.05, 20, allow_nan=False),
)
factors = triples(factor)


@st.composite
def storages(draw: st.DrawFn) -> Storage:
    """Small chunks and shards."""
    chunk = draw(triples(st.integers(1, 12)))
    counts = draw(triples(st.integers(1, 4)))
    return Storage(chunk, tuple(c * n for c, n in zip(chunk, counts, strict=True)))


def device_limits(**changes: object) -> DeviceLimits:
    """A device with 4 GiB, changed as asked."""
    limits = {
        "name": "test device",
        "kind": "gpu",
        "memory": 4 * GIB,
        "allowed": 4 * GIB,
        "largest_allocation": GIB,
        "image_shape": (2048, 2048, 2048),
        "shares_host_memory": False,
    }
    return DeviceLimits(**limits | changes)


def host_limits(**changes: int) -> HostLimits:
    """A host that allows 8 GiB, changed as asked."""
    return HostLimits(**{"allowed": 8 * GIB, "baseline": GIB // 2, "threads": 3} | changes)


def source(shape: tuple[int, int, int], dtype: str = "uint16", **changes: object) -> Source:
    """A source of this shape, changed as asked."""
    fields = {
        "name": "test",
        "grid": VoxelGrid(shape),
        "dtype": dtype,
        "chunks": (1, 1, 1),
        "read_overhead": 0,
        "identity": {"path": "test"},
    }
    return Source(**fields | changes)


@st.composite
def plans(draw: st.DrawFn, most: int = 60) -> Plan:
    """Plans of small volumes with many blocks, small enough to check voxel by voxel."""
    shape, by, storage = draw(shapes(most)), draw(factors), draw(storages())
    chunks = draw(triples(st.integers(1, 40)))
    output = VoxelGrid(shape).scaled(by).shape
    # Room for anything from a single shard to the whole volume in one block.
    room = draw(st.integers(0, 400_000))
    least = 12 * sum(s * t for s, t in zip(storage.shard, output, strict=True))
    return make_plan(
        source(shape, draw(dtypes), chunks=chunks),
        by,
        storage=storage,
        device=device_limits(allowed=GIB + least + room),
        host=host_limits(),
        interpolation=draw(interpolations),
        boundary=draw(boundaries),
        halo_mode="direct",
        fixed_storage=True,
    )


def places(plan: Plan) -> st.SearchStrategy[int]:
    """Indices of a plan's blocks."""
    return st.integers(0, plan.n_blocks - 1)


@st.composite
def boxes(draw: st.DrawFn, shape: tuple[int, int, int]) -> Box:
    """Boxes, none empty, inside a volume."""
    ends = [sorted(draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in shape]
    return Box(tuple(e[0] for e in ends), tuple(e[1] for e in ends))
