"""Jobs whose input a GPU decodes: the voxels are those of the processor's, whatever becomes of the GPU or the input."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

import isovoxel
from codecs_on_cpu import DecoderOnCpu
from isovoxel.codecs.cuda import GpuCodecError
from isovoxel.codecs.streams import ChunkCoding
from isovoxel.engines.devices import Device
from isovoxel.engines.pipeline import StagedEngine
from isovoxel.errors import CorruptInputError, OptionError
from isovoxel.execution.events import DecodedByProcessor, Event, JobStarted
from isovoxel.geometry.grid import Box
from isovoxel.planning import codecs
from isovoxel.planning.model import DeviceLimits
from isovoxel.planning.plan import Plan
from isovoxel.readers.base import ReadBox
from isovoxel.readers.zarr_array import LEFT
from strategies import examples

OPTIONS: dict[str, Any] = {"factor": (1.0, 0.5, 0.4), "threads": 2, "engine": "exact", "levels": 1, "decode": "gpu"}
SHAPE = (24, 90, 130)
STORED: dict[str, dict[str, Any]] = {
    "v3, zstd": {"compressors": [zarr.codecs.BloscCodec(cname="zstd", clevel=5), zarr.codecs.Crc32cCodec()]},
    "v3, lz4": {"compressors": [zarr.codecs.BloscCodec(cname="lz4", shuffle="bitshuffle")], "fill_value": 9},
    "v3, shards": {
        "compressors": [zarr.codecs.BloscCodec(cname="zstd"), zarr.codecs.Crc32cCodec()],
        "shards": (16, 64, 192),
    },
    "v2, blosc": {"compressors": numcodecs.Blosc("lz4", 5, 1), "zarr_format": 2},
    "v2, bytes": {"compressors": numcodecs.Blosc("lz4", 1, 0), "zarr_format": 2, "dtype": "uint8"},
    "v3, float": {"compressors": [zarr.codecs.BloscCodec(cname="lz4")], "dtype": "float32"},
    "v3, converted": {"compressors": [zarr.codecs.BloscCodec(cname="lz4")], "dtype": "float16"},
}
"""How inputs are stored."""


def stored(path: Path, **how: Any) -> NDArray[Any]:
    """Write an array of which some chunks do not compress and some are not stored, and return its voxels."""
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 250, SHAPE).astype(how.setdefault("dtype", "uint16"))
    voxels[:, 20:60] = 100 + rng.integers(0, 9, (SHAPE[0], 40, SHAPE[2]))
    voxels[:16, :32, :48] = how.get("fill_value", 0)
    zarr.create_array(path, shape=SHAPE, chunks=(8, 32, 48), **how)[...] = voxels
    return voxels


@pytest.fixture
def decoders(monkeypatch: pytest.MonkeyPatch) -> list[DecoderOnCpu]:
    """Let jobs decode by what stands for a GPU; what they have made."""
    made: list[DecoderOnCpu] = []

    def decoder(_: StagedEngine, plan: Plan, coding: ChunkCoding) -> DecoderOnCpu | None:
        if not plan.device.decoding or plan.source.encoded is None:
            return None
        made.append(DecoderOnCpu(coding, batch=4))
        return made[-1]

    limits = Device.limits

    def with_decoders(device: Device, budget: int | None = None) -> DeviceLimits:
        found = limits(device, budget)
        object.__setattr__(found, "encoders", 132)
        object.__setattr__(found, "allowed", 100 * 2**30)
        return found

    monkeypatch.setattr(Device, "limits", with_decoders)
    monkeypatch.setattr(StagedEngine, "decoder", decoder)
    monkeypatch.setattr(StagedEngine, "_registers", lambda *_: (None, None))
    return made


def scaled(source: Path, output: Path, **options: Any) -> tuple[list[NDArray[Any]], list[Event]]:
    """Scale an input; return the voxels of both levels, and the events."""
    events: list[Event] = []
    isovoxel.scale(source, output, listeners=[events.append], **OPTIONS | options | {"encode": "cpu"})
    return [np.asarray(zarr.open_array(output / level)[...]) for level in "01"], events


@pytest.mark.sampled(4)
@pytest.mark.parametrize("how", STORED)
def test_the_voxels_are_those_of_the_processor(tmp_path: Path, decoders: list[DecoderOnCpu], how: str) -> None:
    """Also of chunks that are not stored, and of parts of a volume and of another type."""
    stored(tmp_path / "in.zarr", **STORED[how])
    crop = {"crop": "1:23,3:88,5:130"}
    for part in ({}, crop):
        gpu, events = scaled(tmp_path / "in.zarr", tmp_path / f"gpu{len(part)}.zarr", **part)
        cpu, _ = scaled(tmp_path / "in.zarr", tmp_path / f"cpu{len(part)}.zarr", decode="cpu", **part)
        for one, other in zip(gpu, cpu, strict=True):
            np.testing.assert_array_equal(one, other)
        (plan,) = (event.plan for event in events if isinstance(event, JobStarted))
        assert plan.device.decoding
        assert not any(isinstance(event, DecodedByProcessor) for event in events)
    assert sum(decoder.decoded for decoder in decoders) >= 2 * 3 * 3 * 3
    read_back = plan.source.dtype == "float32"  # whose level 1 is not made in memory
    assert len(decoders) == 2 * (1 + read_back)


@pytest.mark.parametrize("decode", ["gpu", "auto"])
def test_levels_that_are_read_back_are_decoded_too(
    tmp_path: Path, decoders: list[DecoderOnCpu], monkeypatch: pytest.MonkeyPatch, decode: str
) -> None:
    """Of floats, whose means are not made in memory; those of integers are, and are not read."""
    monkeypatch.setitem(codecs.DECODED_BY_CORE, "zstd", 1.0)
    stored(tmp_path / "in.zarr", **STORED["v3, float"])
    options: dict[str, Any] = {"levels": 2, "codec": "blosc-zstd", "decode": decode}
    gpu, events = scaled(tmp_path / "in.zarr", tmp_path / "gpu.zarr", **options)
    cpu, _ = scaled(tmp_path / "in.zarr", tmp_path / "cpu.zarr", **options | {"decode": "cpu"})
    for one, other in zip(gpu, cpu, strict=True):
        np.testing.assert_array_equal(one, other)
    (plan,) = (event.plan for event in events if isinstance(event, JobStarted))
    assert [level.device.decoding > 0 for level in plan.further] == [True, True]
    assert all(level.projected_host <= level.host.allowed for level in plan.further)
    assert [decoder.coding.codec for decoder in decoders] == ["lz4"] * (decode == "gpu") + ["zstd", "zstd"]
    assert all(decoder.decoded for decoder in decoders)
    assert not any(isinstance(event, DecodedByProcessor) for event in events)
    assert (
        isovoxel.plan(tmp_path / "in.zarr", **OPTIONS | options | {"codec": "zstd"}).further[0].source.encoded is None
    )


@pytest.mark.parametrize("how", ["v3, zstd", "v3, shards", "v2, bytes"])
def test_any_box(tmp_path: Path, how: str) -> None:
    """Of one voxel, of some chunks, of all of them, in batches of one chunk and of several."""
    stored(tmp_path / "in.zarr", **STORED[how])
    volume, told = isovoxel.open_volume(tmp_path / "in.zarr"), list[str]()
    assert volume.by_gpu is not None
    voxels, rng = volume.read(Box.whole(volume.shape)), np.random.default_rng(0)
    for batch in (1, 2, 5, 100):
        read = volume.by_gpu.reader(DecoderOnCpu(volume.by_gpu.coding, batch=batch), told.append)
        for _ in range(12):
            edges = [sorted(rng.choice(n + 1, 2, replace=False).tolist()) for n in SHAPE]
            (z, zz), (y, yy), (x, xx) = edges
            np.testing.assert_array_equal(read(Box((z, y, x), (zz, yy, xx))), voxels[z:zz, y:yy, x:xx])
    assert not told


def test_series_are_decoded_too(tmp_path: Path, decoders: list[DecoderOnCpu]) -> None:
    """Of several channels, each by itself."""
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 200, (2, 8, 40, 50)).astype(np.uint8)
    codecs = [zarr.codecs.BloscCodec(cname="lz4")]
    names = ["c", "z", "y", "x"]
    array = zarr.create_array(
        tmp_path / "in.zarr",
        shape=voxels.shape,
        chunks=(1, 8, 16, 16),
        dtype="uint8",
        compressors=codecs,
        dimension_names=names,
    )
    array[...] = voxels
    gpu, _ = scaled(tmp_path / "in.zarr", tmp_path / "gpu.zarr")
    cpu, _ = scaled(tmp_path / "in.zarr", tmp_path / "cpu.zarr", decode="cpu")
    assert sum(decoder.decoded for decoder in decoders) >= 2 * 3 * 4
    np.testing.assert_array_equal(gpu[0], cpu[0])


@pytest.mark.parametrize("failure", [MemoryError("too little memory"), GpuCodecError("illegal address")])
def test_the_processor_decodes_what_the_gpu_does_not(
    tmp_path: Path, decoders: list[DecoderOnCpu], failure: Exception
) -> None:
    """From one batch on, or for one; it is told, and the voxels are the same."""
    stored(tmp_path / "in.zarr", **STORED["v3, lz4"])
    expected, _ = scaled(tmp_path / "in.zarr", tmp_path / "cpu.zarr", decode="cpu")
    asked: list[int] = []
    decode = DecoderOnCpu.decode

    def fail(decoder: DecoderOnCpu, *parts: Any) -> NDArray[np.bool_]:
        asked.append(1)
        decoder.failure = failure if len(asked) == 2 else None
        return decode(decoder, *parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecoderOnCpu, "decode", fail)
        made, events = scaled(tmp_path / "in.zarr", tmp_path / "gpu.zarr", threads=1)
    assert decoders
    told = [event.reason for event in events if isinstance(event, DecodedByProcessor)]
    assert told == [str(failure)]
    assert (len(asked) == 2) == isinstance(failure, GpuCodecError)
    for one, other in zip(made, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_not_installed_is_told(
    tmp_path: Path, decoders: list[DecoderOnCpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that was planned where the GPU's decoder is goes on where it is not."""
    stored(tmp_path / "in.zarr", **STORED["v3, lz4"])

    def decoder(*_: Any) -> None:
        raise ImportError("NVRTC is not installed")

    monkeypatch.setattr(StagedEngine, "decoder", decoder)
    _, events = scaled(tmp_path / "in.zarr", tmp_path / "gpu.zarr")
    assert not decoders
    assert {event.reason for event in events if isinstance(event, DecodedByProcessor)} == {"NVRTC is not installed"}


@pytest.mark.usefixtures("decoders")
def test_chunks_of_another_form_are_told(tmp_path: Path) -> None:
    """One that another writer has put there, of a compressor that the metadata do not name."""
    voxels = stored(tmp_path / "in.zarr", **STORED["v3, lz4"])
    chunk = np.ascontiguousarray(voxels[8:16, 32:64, 48:96])
    (tmp_path / "in.zarr/c/1/1/1").write_bytes(numcodecs.Blosc("zlib").encode(chunk))
    gpu, events = scaled(tmp_path / "in.zarr", tmp_path / "gpu.zarr")
    cpu, _ = scaled(tmp_path / "in.zarr", tmp_path / "cpu.zarr", decode="cpu")
    np.testing.assert_array_equal(gpu[0], cpu[0])
    assert [event.reason for event in events if isinstance(event, DecodedByProcessor)] == [LEFT]


def read_or_said(read: ReadBox) -> bytes | str:
    """Return the voxels of a volume, or how its reader says that it is damaged."""
    try:
        return read(Box.whole(SHAPE)).tobytes()
    except CorruptInputError as error:
        return str(error)


@pytest.mark.parametrize("how", ["v3, zstd", "v3, shards", "v2, blosc"])
def test_damage_is_said_as_the_processor_says_it(tmp_path: Path, how: str) -> None:
    """Each damaged file gives one sentence that names chunk or shard, or what the processor makes of it."""
    stored(tmp_path / "in.zarr", **STORED[how])
    files = sorted(path for path in (tmp_path / "in.zarr").rglob("*") if path.is_file() and path.name[0] not in ".z")
    rng, said, told = np.random.default_rng(0), list[bytes | str](), list[str]()
    turns = examples(120)
    for turn in range(turns):
        path = files[turn % len(files)]
        healthy = path.read_bytes()
        content = bytearray(healthy)
        for _ in range(int(rng.integers(1, 4))):
            content[int(rng.integers(len(content)))] = int(rng.integers(256))
        path.write_bytes(content[: int(rng.integers(len(content)))] if turn % 5 == 0 else content)
        volume = isovoxel.open_volume(tmp_path / "in.zarr")
        assert volume.by_gpu is not None
        read = volume.by_gpu.reader(DecoderOnCpu(volume.by_gpu.coding, batch=4), told.append)
        said.append(read_or_said(read))
        assert said[-1] == read_or_said(volume.read)
        path.write_bytes(healthy)
    sentences = [one for one in said if isinstance(one, str)]
    assert len(sentences) > turns // (4 if "zarr_format" in STORED[how] else 2)
    assert all(re.match(r"(chunk|shard) \(\d+, \d+, \d+\) of .* is corrupt: ", one) for one in sentences)


@pytest.mark.usefixtures("decoders")
@pytest.mark.parametrize(
    "how",
    [
        {"compressors": [zarr.codecs.BloscCodec(cname="zstd")]},  # which has no checksum
        {"compressors": numcodecs.Blosc("zstd"), "zarr_format": 2},
        {"compressors": numcodecs.Blosc("zlib"), "zarr_format": 2},
        {"compressors": [zarr.codecs.GzipCodec(), zarr.codecs.Crc32cCodec()]},
        {"compressors": numcodecs.LZ4(), "zarr_format": 2},
        {"compressors": numcodecs.Blosc("lz4"), "zarr_format": 2, "dtype": ">u2"},
        {"compressors": None},
    ],
)
def test_what_no_gpu_decodes_is_refused(tmp_path: Path, how: dict[str, Any]) -> None:
    """Where the GPU is asked for; `auto` takes the processor."""
    stored(tmp_path / "in.zarr", **how)
    assert isovoxel.open_volume(tmp_path / "in.zarr").by_gpu is None
    with pytest.raises(OptionError, match=r"^the GPU cannot decode: .*checksum \(crc32c\).*--decode gpu$"):
        scaled(tmp_path / "in.zarr", tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()
    _, events = scaled(tmp_path / "in.zarr", tmp_path / "out.zarr", decode="auto")
    assert not any(isinstance(event, DecodedByProcessor) for event in events)
