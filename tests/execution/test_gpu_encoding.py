"""Jobs whose chunks a GPU encodes: the voxels are those of the processor's, whatever becomes of the GPU."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import isovoxel
from codecs_on_cpu import EncoderOnCpu, on_device
from isovoxel.codecs.blosc import ContainerLayout
from isovoxel.codecs.cuda import GpuCodecError
from isovoxel.engines.base import Scaled
from isovoxel.engines.pipeline import StagedEngine
from isovoxel.engines.staged_block import StagedBlock
from isovoxel.errors import CorruptInputError, JobError
from isovoxel.execution.events import EncodedByProcessor, Event
from isovoxel.execution.flushing import Flushing
from isovoxel.geometry.grid import Box, VoxelGrid
from isovoxel.output.ome_zarr import create_output
from isovoxel.output.shard import PendingShard, ShardWriter
from isovoxel.output.writer import OmeZarrWriter
from isovoxel.planning.chunking import Storage
from isovoxel.planning.plan import Plan
from outputs import levels_of

OPTIONS: dict[str, Any] = {
    "factor": (2.0, 1.5, 1.0),
    "chunk": (16, 16, 32),
    "shard": (32, 32, 64),
    "levels": 2,
    "codec": "blosc-zstd",
    "threads": 2,
    "engine": "exact",
    "input_voxel_size": (2.0, 1.5, 1.0),
}
SMALL: dict[str, Any] = {"chunk": (8, 8, 16), "shard": (16, 16, 32)}
"""With these, shards of level 1 are encoded together."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Voxels of which some chunks do not compress, some are one value, and the last are cut off by the volume's end."""
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 65536, (24, 40, 70)).astype(np.uint16)
    voxels[:, 20:] = 300 + rng.integers(0, 9, (24, 20, 70))
    voxels[:12, :10] = 0
    np.save(tmp_path / "in.npy", voxels)
    return tmp_path / "in.npy"


@pytest.fixture(params=[False, True], ids=["host", "device"])
def encoders(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[EncoderOnCpu]:
    """Let jobs encode by what stands for a GPU, voxels on the host or on the device; what they have made."""
    made: list[EncoderOnCpu] = []
    scale = StagedBlock.scale

    def kept(stage: StagedBlock, *cancelled: Any) -> Scaled:
        scaled = scale(stage, *cancelled)
        assert isinstance(scaled.data, np.ndarray)
        return scaled._replace(data=on_device(scaled.data))

    if request.param:
        monkeypatch.setattr(StagedBlock, "scale", kept)

    def encoder(_: StagedEngine, plan: Plan) -> EncoderOnCpu:
        layout = ContainerLayout(plan.chunk_bytes, plan.source.itemsize, plan.storage.codec)
        made.append(EncoderOnCpu(layout, plan.storage.chunk))
        return made[-1]

    monkeypatch.setattr(StagedEngine, "encoder", encoder)
    return made


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "more", [{"codec": "blosc-lz4"}, {"codec": "blosc-zstd"}, SMALL], ids=["lz4", "zstd", "shards together"]
)
def test_the_voxels_are_those_of_the_processor(
    tmp_path: Path, source: Path, encoders: list[EncoderOnCpu], more: dict[str, Any]
) -> None:
    """Levels too; every reader reads them, and `verify` finds what it expects, chunk by chunk."""
    isovoxel.scale(source, tmp_path / "gpu.zarr", **OPTIONS | more)
    assert sum(encoder.batches for encoder in encoders) > 9
    isovoxel.verify(tmp_path / "gpu.zarr", every_chunk=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StagedEngine, "encoder", lambda *_: None)
        isovoxel.scale(source, tmp_path / "cpu.zarr", **OPTIONS | more)
    for gpu, cpu in zip(levels_of(tmp_path / "gpu.zarr"), levels_of(tmp_path / "cpu.zarr"), strict=True):
        np.testing.assert_array_equal(gpu, cpu)


@pytest.mark.usefixtures("encoders")
def test_zarrs_reads_them(tmp_path: Path, source: Path) -> None:
    """The Rust library, in the place of zarr-python's codecs."""
    zarrs = pytest.importorskip("zarrs", reason="zarrs is not installed")
    isovoxel.scale(source, tmp_path / "out.zarr", **OPTIONS)
    expected = levels_of(tmp_path / "out.zarr")
    assert zarrs.__version__
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        for level, voxels in zip("012", expected, strict=True):
            np.testing.assert_array_equal(np.asarray(zarr.open_array(tmp_path / "out.zarr" / level)[...]), voxels)


@pytest.mark.parametrize("skip_empty", [False, True])
@pytest.mark.parametrize("failure", [None, MemoryError("too little memory"), GpuCodecError("illegal address")])
def test_shards_encoded_together_are_those_encoded_alone(
    tmp_path: Path, skip_empty: bool, failure: Exception | None
) -> None:
    """Byte for byte, in batches that end within a shard, up to the volume's end; a GPU that fails leaves no file."""
    storage = Storage((4, 4, 8), (8, 4, 16), "zstd", skip_empty=skip_empty, checksum=True)
    voxels = np.random.default_rng(0).integers(0, 9, (14, 11, 40)).astype(np.uint16)
    voxels[:8, :4, 16:32] = voxels[8:12, 4:8, :8] = 0
    box, reasons = Box.whole((14, 11, 40)), list[str]()
    layout = ContainerLayout(256, 2, "zstd")
    for name in ("alone", "together"):
        create_output(tmp_path / name, levels=[(VoxelGrid(box.shape), storage)], dtype=voxels.dtype, provenance={})
        gpu: Any = EncoderOnCpu(layout, storage.chunk, batch=5)
        writer = OmeZarrWriter(
            tmp_path / name,
            grid=VoxelGrid(box.shape),
            dtype=voxels.dtype,
            storage=storage,
            gpu=gpu,
            on_processor=reasons.append,
        )
        if name == "alone":
            writer.write(box, voxels)
        else:
            gpu.failure = failure
            shards = writer.encode_together(box, voxels)
            assert (shards is None) == (failure is not None)
            for shard in shards or ():
                shard.seal()
            assert reasons == ([] if failure is None else [str(failure)])
        writer.close()
    alone, together = (
        {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name / "0").rglob("*") if p.is_file()}
        for name in ("alone", "together")
    )
    if failure is None:
        assert together == alone
        assert len(alone) == (18 if skip_empty else 19)
    else:
        assert len(together) == 1


@pytest.mark.usefixtures("encoders")
def test_shards_encoded_together_are_let_go_of_where_the_job_ends(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has an open file, which would stay open in the caller's process."""
    together, add, made = OmeZarrWriter.encode_together, Flushing.add, list[PendingShard]()

    def kept(*words: Any) -> list[PendingShard] | None:
        shards = together(*words)
        made.extend(shards or ())
        return shards

    def fails(flushing: Flushing[Any], shard: PendingShard) -> None:
        if shard in made[:1]:
            shard.drop()
            raise OSError(errno.EIO, "Input/output error")
        add(flushing, shard)

    monkeypatch.setattr(OmeZarrWriter, "encode_together", kept)
    monkeypatch.setattr(Flushing, "add", fails)
    with pytest.raises(JobError):
        isovoxel.scale(source, tmp_path / "out.zarr", **OPTIONS | SMALL)
    files = [shard for shard in made if isinstance(shard, ShardWriter)]
    assert len(files) > 1
    assert not [shard for shard in files if shard.file.exists() or shard._open >= 0]


@pytest.mark.slow
@pytest.mark.usefixtures("encoders")
@pytest.mark.parametrize("codec", ["blosc-lz4", "blosc-zstd"])
def test_damage_is_never_taken_for_voxels(tmp_path: Path, source: Path, codec: str) -> None:
    """Bytes that changed, or an end that is gone: each is an error that names chunk or shard, or does no harm."""
    isovoxel.scale(source, tmp_path / "out.zarr", **OPTIONS | {"codec": codec, "levels": 0})
    expected = isovoxel.open_volume(tmp_path / "out.zarr")
    whole = Box.whole(expected.shape)
    voxels = expected.read(whole)
    shards = sorted(path for path in (tmp_path / "out.zarr" / "0" / "c").rglob("*") if path.is_file())
    rng, said = np.random.default_rng(0), list[str]()
    for turn in range(500):
        path = shards[turn % len(shards)]
        healthy = path.read_bytes()
        damaged = bytearray(healthy)
        for _ in range(int(rng.integers(1, 4))):
            damaged[int(rng.integers(len(damaged)))] = int(rng.integers(256))
        path.write_bytes(damaged[: int(rng.integers(len(damaged)))] if turn % 5 == 0 else damaged)
        try:
            np.testing.assert_array_equal(isovoxel.open_volume(tmp_path / "out.zarr").read(whole), voxels)
        except CorruptInputError as error:
            said.append(str(error))
        path.write_bytes(healthy)
    assert len(said) > 450
    assert all(re.match(r"(chunk|shard) \(\d+, \d+, \d+\) of .* is corrupt: ", one) for one in said)


@pytest.mark.usefixtures("encoders")
@pytest.mark.parametrize("failure", [MemoryError("too little memory"), GpuCodecError("illegal address")])
def test_the_processor_encodes_what_the_gpu_does_not(tmp_path: Path, source: Path, failure: Exception) -> None:
    """From the middle of a shard on; it is told, and the voxels are the same."""
    isovoxel.scale(source, tmp_path / "whole.zarr", **OPTIONS)
    events: list[Event] = []
    encode = EncoderOnCpu.encode

    def fail(encoder: EncoderOnCpu, *parts: Any) -> None:
        encoder.failure = failure if encoder.batches == 2 else None
        if encoder.failure is not None:
            encoder.batches += 1
        encode(encoder, *parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EncoderOnCpu, "encode", fail)
        isovoxel.scale(source, tmp_path / "part.zarr", listeners=[events.append], **OPTIONS)
    told = [event for event in events if isinstance(event, EncodedByProcessor)]
    assert {event.reason for event in told} == {str(failure)}
    for part, whole in zip(levels_of(tmp_path / "part.zarr"), levels_of(tmp_path / "whole.zarr"), strict=True):
        np.testing.assert_array_equal(part, whole)


@pytest.mark.usefixtures("encoders")
def test_empty_chunks_and_shards_are_left_out(tmp_path: Path) -> None:
    """Of voxels on a device it is known once they are encoded: the files are those that the processor leaves."""
    voxels = np.zeros((24, 40, 70), np.uint16)
    voxels[3, 4, 5] = voxels[20, 39, 69] = 9
    np.save(tmp_path / "in.npy", voxels)
    isovoxel.scale(tmp_path / "in.npy", tmp_path / "gpu.zarr", **OPTIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StagedEngine, "encoder", lambda *_: None)
        isovoxel.scale(tmp_path / "in.npy", tmp_path / "cpu.zarr", **OPTIONS)
    gpu, cpu = (
        sorted(p.relative_to(tmp_path / name) for p in (tmp_path / name).rglob("*") if "c" in p.parts and p.is_file())
        for name in ("gpu.zarr", "cpu.zarr")
    )
    assert gpu == cpu
    assert 0 < len(gpu) < 24
    isovoxel.verify(tmp_path / "gpu.zarr")
    for one, other in zip(levels_of(tmp_path / "gpu.zarr"), levels_of(tmp_path / "cpu.zarr"), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("encoders")
def test_a_gpu_that_fails_is_asked_no_more(tmp_path: Path, source: Path) -> None:
    """Its failure would be the same for every shard; too little memory need not be."""
    asked: dict[str, int] = {}
    for failure in (MemoryError("too little memory"), GpuCodecError("illegal address")):

        def fail(_: EncoderOnCpu, *__: Any, failure: Exception = failure) -> None:
            asked[str(failure)] = asked.get(str(failure), 0) + 1
            raise failure

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(EncoderOnCpu, "encode", fail)
            isovoxel.scale(source, tmp_path / f"{len(asked)}.zarr", **OPTIONS | {"levels": 0, "threads": 1})
    assert asked["too little memory"] > asked["illegal address"] == 1


def test_what_is_not_installed_is_told(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that was planned where the GPU's encoder is goes on where it is not."""

    def encoder(*_: Any) -> None:
        raise ImportError("NVRTC is not installed")

    monkeypatch.setattr(StagedEngine, "encoder", encoder)
    events: list[Event] = []
    isovoxel.scale(source, tmp_path / "out.zarr", listeners=[events.append], **OPTIONS)
    reasons = [event.reason for event in events if isinstance(event, EncodedByProcessor)]
    assert reasons
    assert set(reasons) == {"NVRTC is not installed"}
