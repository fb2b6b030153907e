"""What the tests share: Hypothesis strategies of grids, factors, storage, limits and plans; ways to carry plans out."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from isovoxel.geometry.grid import Box, VoxelGrid
from isovoxel.output.shard import PendingShard, ShardReceipt
from isovoxel.planning.chunking import Storage
from isovoxel.planning.model import DeviceLimits, HostLimits, Source
from isovoxel.planning.optimizer import make_plan
from isovoxel.planning.plan import Plan

GIB = 2**30
THOROUGH = 100
"""How many examples a property is tried with where no number is given, in the profile `thorough`."""

interpolations = st.sampled_from(["linear", "nearest"])
boundaries = st.sampled_from(["nearest", "constant"])
dtypes = st.sampled_from(["uint8", "uint16", "uint32", "int8", "int16", "int32", "float32"])


def examples(thorough: int) -> int:
    """Return how many examples a test tries: so many in the profile `thorough`, else three tenths of them."""
    return -(-thorough * settings.default.max_examples // THOROUGH)


def triples(values: st.SearchStrategy) -> st.SearchStrategy:
    """Three of something, z, y, x."""
    return st.tuples(values, values, values)


def shapes(most: int = 60) -> st.SearchStrategy[tuple[int, int, int]]:
    """Shapes of small volumes."""
    return triples(st.integers(1, most))


def factors_up_to(most: float) -> st.SearchStrategy[float]:
    """Whole factors and their inverses, where ties lie, and arbitrary ones from 0.05 on."""
    known = [f for f in (1.0, 2.0, 3.0, 4.0, 5.0, 0.5, 0.25, 0.2, 1.5, 2.5, 1 / 3) if f <= most]
    return st.sampled_from(known) | st.floats(0.05, most, allow_nan=False)


factor = factors_up_to(20)
factors = triples(factor)


@st.composite
def storages(draw: st.DrawFn) -> Storage:
    """Small chunks and shards."""
    chunk = draw(triples(st.integers(1, 12)))
    counts = draw(triples(st.integers(1, 4)))
    return Storage(chunk, tuple(c * n for c, n in zip(chunk, counts, strict=True)), checksum=draw(st.booleans()))


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


# ---- carrying plans out ------------------------------------------------------------------------------------------


def cut(
    shape: tuple[int, int, int],
    by: tuple[float, float, float],
    block: tuple[int, int, int],
    dtype: str = "uint16",
    **changes: object,
) -> Plan:
    """A plan whose blocks have exactly this shape; read directly unless asked otherwise."""
    fields = {"interpolation": "linear", "boundary": "nearest", "halo_mode": "direct"} | changes
    mode, device = fields.pop("halo_mode"), fields.pop("device", device_limits())
    block = tuple(min(b, m) for b, m in zip(block, VoxelGrid(shape).scaled(by).shape, strict=True))
    plan = make_plan(
        source(shape, dtype),
        by,
        storage=Storage(block, block),
        device=device,
        host=host_limits(),
        fixed_storage=True,
        halo_mode="direct",
        **fields,
    )
    plan = replace(plan, block_shape=block)
    return plan if mode == "direct" else replace(plan, halo_mode=mode, window=plan.block_grid)


def read_from(array: np.ndarray) -> Callable[..., np.ndarray]:
    """What reads boxes of an array in memory."""

    def read(box: Box, out: np.ndarray | None = None) -> np.ndarray:
        if out is None:
            return array[box.slices].copy()
        out[...] = array[box.slices]
        return out

    return read


@dataclass
class Sealed(PendingShard):
    """A shard that is on the disk already."""

    found: ShardReceipt

    def seal(self) -> ShardReceipt:
        return self.found

    def drop(self) -> None:
        """Give it up."""


class MemoryWriter:
    """Takes blocks into an array, and counts how often each voxel was written."""

    def __init__(self, plan: Plan) -> None:
        self.data = np.zeros(plan.output.shape, plan.source.dtype)
        self.times = np.zeros(plan.output.shape, np.uint8)
        self.closed = False

    def write(self, box: Box, data: np.ndarray) -> list[ShardReceipt]:
        self.data[box.slices] = data
        self.times[box.slices] += 1
        return [ShardReceipt(data.nbytes, 0, 0)]

    def encode(self, box: Box, data: np.ndarray, part: Box | None = None) -> Sealed:
        assert part in (None, box)
        return Sealed(*self.write(box, data))

    def spare(self, cores: int) -> None:
        """Do without: nobody helps."""

    def close(self) -> None:
        """Note that it was let go."""
        self.closed = True


@contextlib.contextmanager
def one_kernel_for_all_shapes() -> Iterator[None]:
    """Let cle run its kernels in work groups of one voxel.

    PoCL compiles a kernel anew (0.2 s) for every shape of work group, which it chooses by the image's shape. The
    kernels know nothing of work groups: the bits are the same (`test_cle` shows it), and tests of a thousand shapes
    take seconds in place of minutes. Its successor chooses none, and is compiled for every shape of an array.
    """
    if find_spec("pyclesperanto_prototype") is None:
        yield
        return
    from pyclesperanto_prototype._tier0._program import OCLProgram

    original = OCLProgram.run_kernel

    @functools.wraps(original)
    def run_kernel(self: Any, name: str, size: Any, _: Any, *arguments: Any, **options: Any) -> None:
        original(self, name, size, (1,) * len(size), *arguments, **options)

    OCLProgram.run_kernel = run_kernel
    try:
        yield
    finally:
        OCLProgram.run_kernel = original


def padded_lengths(plan: Plan) -> tuple[int, ...]:
    """The longest padded input of a plan's blocks, per axis."""
    lengths = zip(plan.samplers, plan.block_shape, strict=True)
    return tuple(sampler.spans(*sampler.axis.intervals(b)).longest()[1] for sampler, b in lengths)


def cle_precision(lengths: Iterable[int], voxels: np.ndarray) -> float:
    """How far the cle engine on a CPU may be from the float64 reference, in grey values (linear).

    Positions inside a block's padded input are float32: the matrix's element, its product with the output index, the
    sum with the shift, the division by the image's length and the sampler's multiplication each round by at most
    2^-24 of the position, hence 2^-22 of the axis' length where roundings do not all conspire, and each voxel of
    position moves the value by at most the range of the data, axis by axis. The input's conversion and the sampler's
    products round by at most 2^-21 of the largest value; integers are rounded once more.

    Parameters
    ----------
    lengths
        Lengths of the input that the device gets at a time, z, y, x; those of the volume are an upper bound.
    voxels
        The input.
    """
    low, high = min(0.0, float(voxels.min())), max(0.0, float(voxels.max()))  # 0 lies around the volume
    positions = 2.0**-22 * sum(lengths) * (high - low)
    return positions + 2.0**-21 * max(high, -low) + (0.0 if voxels.dtype.kind == "f" else 0.5)


class Live:
    """Counts the bytes of OpenCL buffers and images that are alive."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def counting(self, kind: type) -> type:
        """Return a kind of OpenCL memory whose objects are counted until they are released."""
        live = self

        class Counted(kind):
            def __init__(self, *arguments: object, **options: object) -> None:
                super().__init__(*arguments, **options)
                live.now += self.size
                live.peak = max(live.peak, live.now)
                weakref.finalize(self, live.remove, self.size)

        return Counted

    def remove(self, nbytes: int) -> None:
        self.now -= nbytes


def new_output(path: Any, *, grid: VoxelGrid, dtype: Any, storage: Storage, helpers: int | None = None, **options: Any):  # noqa: ANN201
    """Make an output of one level, and return its writer."""
    from isovoxel.output.ome_zarr import create_output
    from isovoxel.output.writer import OmeZarrWriter

    create_output(path, levels=[(grid, storage)], dtype=np.dtype(dtype), **{"provenance": {}} | options)
    return OmeZarrWriter(path, grid=grid, dtype=np.dtype(dtype), storage=storage, helpers=helpers)


def as_dtype(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return real values in a dtype: finite ones are saturated, integers rounded half to even."""
    if dtype.kind == "f":
        limit = float(np.finfo(dtype).max)
        return np.where(np.isfinite(values), np.clip(values, -limit, limit), values).astype(dtype)
    info = np.iinfo(dtype)
    return np.clip(np.rint(values), info.min, info.max).astype(dtype)
