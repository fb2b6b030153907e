"""Which encoder a plan takes, and what it holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from isovoxel.errors import DoesNotFitError, OptionError
from isovoxel.geometry.grid import Index3
from isovoxel.options import Options
from isovoxel.planner import Limits, choose_sampling, plan_volume
from isovoxel.planning.chunking import default_storage
from isovoxel.planning.codecs import LANES, EncodedBatches, with_encoder
from isovoxel.planning.model import DeviceLimits, HostLimits
from isovoxel.planning.plan import Plan
from isovoxel.readers.base import Volume

GIB = 2**30
SHAPE = (2000, 2000, 2000)
H200 = DeviceLimits("H200", "gpu", 140 * GIB, 126 * GIB, 35 * GIB, (16384,) * 3, False, encoders=132)
HOST = HostLimits(64 * GIB, GIB, threads=16, helpers=15)


def chosen(
    given: str = "auto", codec: str | None = None, device: DeviceLimits = H200, host: HostLimits = HOST, **more: Any
) -> tuple[str, bool]:
    """Return codec and whether the GPU encodes."""
    storage_of = partial(default_storage, SHAPE, 2, **more)
    voxels = 16 * 10**9, 2
    storage, (limits, process) = with_encoder(
        given, codec, lambda c: storage_of(codec=c), voxels, (device, host), "cle"
    )
    assert (limits.encoding > 0) == (process.baseline > host.baseline)
    return storage.codec_name, limits.encoding > 0


def test_auto_is_what_is_faster() -> None:
    """A GPU beats cores, of which many help less; few voxels, or a small GPU and many cores, do not need it."""
    assert chosen() == ("blosc-zstd", True)
    assert chosen(codec="blosc-lz4") == ("blosc-lz4", True)
    assert chosen("cpu") == ("blosc-lz4", False)
    many = replace(HOST, helpers=63)
    assert chosen(host=many) == ("blosc-zstd", True)
    assert chosen(host=many, device=replace(H200, encoders=60)) == ("blosc-lz4", False)
    assert chosen(device=replace(H200, encoders=8)) == ("blosc-lz4", False)
    assert chosen(device=replace(H200, encoders=0)) == ("blosc-lz4", False)


@pytest.mark.parametrize(("engine", "given", "held"), [("exact", "cpu", 1), ("exact", "gpu", 0), ("cle", "gpu", 1)])
def test_what_opencl_holds_is_projected_where_it_is_used(engine: str, given: str, held: int) -> None:
    """It is a part of what is allowed; engine exact is in CUDA where a GPU encodes, which is counted already."""
    device = replace(H200, context=GIB // 2)
    read: Any = None
    volume = Volume("a", "b", SHAPE, np.dtype("uint16"), read, read_overhead=0, voxel_size=(1.0, 1.0, 1.0))
    options = Options(factor=(4, 1, 1), levels=0, engine=engine, encode=given)
    plan = plan_volume(volume, options, choose_sampling(volume, options), _Resources(device, HOST))
    blocks = plan.device.encoding + plan.cost.on_device(plan.in_flight)
    assert plan.projected_device == blocks + held * (GIB // 2)
    just = replace(plan.device, allowed=plan.projected_device)
    assert not plan.cost.excess(just, plan.in_flight)
    assert plan.cost.excess(replace(just, allowed=just.allowed - 1), plan.in_flight)


def test_few_voxels_do_not_wait_for_cuda() -> None:
    """It takes longer to load than they take."""
    storage = partial(default_storage, (100, 500, 500), 2)
    for given, encodes in (("auto", False), ("gpu", True)):
        _, (device, _) = with_encoder(given, None, lambda c: storage(codec=c), (25_000_000, 2), (H200, HOST), "cle")
        assert (device.encoding > 0) == encodes


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"device": replace(H200, encoders=0)}, r"H200 has no encoder; .*nvidia-cu13"),
        ({"codec": "none"}, r"codec none; choose --codec blosc-lz4 or blosc-zstd"),
        ({"codec": "zstd"}, r"codec zstd; choose --codec blosc-lz4 or blosc-zstd"),
        ({"codec": "gzip"}, r"codec gzip; choose --codec blosc-lz4 or blosc-zstd"),
        ({"ome_zarr": "0.4"}, r"OME-Zarr 0.4 has no shards"),
        ({"device": replace(H200, allowed=GIB)}, r"more --device-memory"),
        ({"host": replace(HOST, allowed=3 * GIB // 2)}, r"more --device-memory or --memory"),
    ],
)
def test_what_cannot_be_is_refused_where_it_is_asked_for(change: dict[str, Any], says: str) -> None:
    """By itself the processor takes its place."""
    assert chosen(**change)[1] is False
    with pytest.raises(OptionError, match=says):
        chosen("gpu", **change)


def test_batches_shrink_with_the_memory() -> None:
    """On a device with less memory fewer are in flight, and all that is held is counted."""
    batches = EncodedBatches(2 * 128**3, "zstd")
    assert batches.chunks == 8
    assert batches.lanes(H200) == LANES
    few = batches.lanes(replace(H200, allowed=8 * GIB))
    assert 0 < few < LANES
    storage = partial(default_storage, SHAPE, 2)
    for allowed in (8 * GIB, 126 * GIB):
        device = replace(H200, allowed=allowed)
        sizes, given = (10**9, 2), (device, HOST)
        _, (limits, host) = with_encoder("gpu", None, lambda c: storage(codec=c), sizes, given, "cle")
        lanes = batches.lanes_within(limits)
        assert limits.encoding >= lanes * batches.device_bytes(H200)
        assert limits.encoding <= 0.4 * allowed
        assert host.baseline - HOST.baseline >= lanes * batches.hosts * batches.host_bytes


@pytest.mark.parametrize(
    ("given", "cores", "threads"), [("gpu", 64, 2 * LANES), ("gpu", 4, 2 * LANES), ("cpu", 64, 64)]
)
def test_a_gpu_has_as_many_threads_as_it_has_use_for(given: str, cores: int, threads: int) -> None:
    """More would wait for each other, and fewer for the GPU."""
    storage_of = partial(default_storage, SHAPE, 2)
    limits, sizes = (H200, replace(HOST, threads=cores, helpers=cores - 1)), (16 * 10**9, 2)
    _, (_, host) = with_encoder(given, None, lambda c: storage_of(codec=c), sizes, limits, "cle")
    assert host.threads == threads


@pytest.mark.parametrize(
    ("block", "chunk", "worth"),
    [
        ((256, 256, 256), (128, 128, 128), True),
        ((256, 128, 384), (128, 128, 128), True),
        ((128, 128, 512), (128, 128, 128), False),
        ((256, 256, 256), (64, 64, 64), False),
    ],
)
def test_levels_whose_blocks_fill_no_batch_are_the_processors(block: Index3, chunk: Index3, worth: bool) -> None:
    """Blocks that were halved may have one chunk, which takes a GPU as long as eight."""
    storage = default_storage(SHAPE, 2, codec="blosc-zstd", chunk=(128, 128, 128), shard=(256, 256, 256))
    full = SimpleNamespace(storage=storage, chunk_bytes=2 * 128**3)
    level = SimpleNamespace(storage=replace(storage, chunk=chunk), block_shape=block)
    assert Plan.fills_batches(full, level) == worth  # type: ignore[arg-type]


@dataclass
class _Resources:
    """A GPU that encodes, in a host that has so much memory."""

    device: DeviceLimits
    host: HostLimits

    def limits(self, _engine: str) -> Limits:
        """Return the limits."""
        return self.device, self.host

    def clesperanto(self) -> tuple[str, str]:
        """Any, which is not called."""
        return "clesperanto", ""


def test_auto_leaves_blocks_their_room() -> None:
    """What would encode on the GPU takes memory without which no block is read; whoever asks for it is refused."""
    read: Any = None
    volume = Volume("a", "b", SHAPE, np.dtype("uint16"), read, read_overhead=3 * GIB // 2, voxel_size=(1.0, 1.0, 1.0))

    def planned(**chosen: Any) -> Plan:
        options = Options(factor=(4, 1, 1), levels=0, **chosen)
        return plan_volume(
            volume, options, choose_sampling(volume, options), _Resources(H200, replace(HOST, allowed=3 * GIB))
        )

    plan = planned()
    assert plan.device.encoding == 0
    assert plan.projected_host <= 3 * GIB
    with pytest.raises(DoesNotFitError):
        planned(encode="gpu")
