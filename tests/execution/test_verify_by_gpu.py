"""Every chunk read by a GPU, or what stands for one: the same is counted and found damaged as by the processor."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from benchmarks import views
from numpy.typing import NDArray

import isovoxel as package
from codecs_on_cpu import DecoderOnCpu
from command_line import Isovoxel, check_refused
from isovoxel import cli
from isovoxel.codecs.cuda import GpuCodecError
from isovoxel.codecs.decoder import Batch, Read
from isovoxel.codecs.streams import ChunkCoding
from isovoxel.engines import devices, pipeline
from isovoxel.engines.devices import Device
from isovoxel.errors import DoesNotFitError, OptionError
from isovoxel.execution import every_chunk
from isovoxel.execution.collection import _of_images
from isovoxel.execution.resources import reading_limits
from isovoxel.execution.verify import Verdict
from isovoxel.options import Options
from isovoxel.planning import chunking, codecs
from isovoxel.planning.model import DeviceLimits, HostLimits

VOXELS = np.random.default_rng(0).integers(0, 250, (20, 50, 70)).astype(np.uint16)
OPTIONS: dict[str, Any] = {"factor": (2.0, 1.0, 1.0), "engine": "exact", "codec": "blosc-zstd", "encode": "cpu"}
OPTIONS |= {"chunk": (8, 16, 16), "shard": (16, 32, 32), "levels": 3}
CHUNKS = 5 * 4 * 5 + 3 * 4 * 5 + 2 * 2 * 3 + 1 * 1 * 2
BATCH = 4
BOTH = ("cpu", "gpu")


class Decoders(list[DecoderOnCpu]):
    """What stands for a GPU's decoders, in the order in which they were made."""

    fails: Exception | None = None
    """What making one raises."""
    fails_at: tuple[int, Exception] | None = None
    """Which batch fails, and with what."""
    closed = 0
    """How many were closed."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        """How many chunks each batch has had."""
        self.rooms: list[int] = []
        """Bytes of the memory that threads were given for voxels."""


@pytest.fixture
def decoders(monkeypatch: pytest.MonkeyPatch) -> Decoders:
    """Let the device be a GPU that decodes, which a stand-in does."""
    made = Decoders()

    class Decoder(DecoderOnCpu):
        def decode(self, read: Read, batch: Batch, out: NDArray[Any]) -> NDArray[np.bool_]:
            made.batches.append(math.prod(batch.grid))
            if made.fails_at is not None and len(made.batches) == made.fails_at[0]:
                raise made.fails_at[1]
            return super().decode(read, batch, out)

        @staticmethod
        def register(memory: NDArray[Any]) -> None:
            made.rooms.append(memory.nbytes)

        def close(self) -> None:
            made.closed += 1

    def new_decoder(_pci: str, coding: ChunkCoding, limits: DeviceLimits) -> DecoderOnCpu:
        assert limits.decoding
        if made.fails is not None:
            raise made.fails
        made.append(Decoder(coding, batch=BATCH))
        return made[-1]

    limits = Device.limits
    monkeypatch.setattr(Device, "limits", lambda *how: replace(limits(*how), encoders=132, allowed=100 * 2**30))
    monkeypatch.setattr(devices, "has_coding_gpu", lambda: True)
    monkeypatch.setattr(pipeline, "new_decoder", new_decoder)
    return made


@pytest.fixture
def output(source: Path, tmp_path: Path) -> Path:
    """An output of three levels, in shards, with checksums."""
    package.scale(source, tmp_path / "out.zarr", **OPTIONS)
    return tmp_path / "out.zarr"


def verified(output: Path, **how: Any) -> Verdict:
    return package.verify(output, samples=1, every_chunk=True, **how)


def same(one: Verdict, other: Verdict) -> bool:
    """Return whether two verdicts tell the same of an output."""
    apart: dict[str, Any] = {"decoder": None, "decoded_by_processor": "", "projected": 0, "allowed": 0}
    return replace(one, **apart) == replace(other, **apart)


def damage(output: Path, count: int) -> None:
    """Flip a byte in the middle of so many files, which lies in a chunk, or in the index at the end of one."""
    files = sorted(file for file in output.rglob("*") if file.is_file() and file.name.isdecimal())
    rng = np.random.default_rng(1)
    for turn, file in enumerate(rng.choice(np.array(files, object), count, replace=False)):
        content = bytearray(file.read_bytes())
        content[-9 if turn % 4 == 3 else int(rng.integers(len(content) // 2))] ^= 1
        file.write_bytes(content)


def test_the_same_chunks_are_read(output: Path, decoders: Decoders, isovoxel: Isovoxel) -> None:
    """Of all levels, by one decoder for those whose chunks are alike, into memory that each thread uses again."""
    cpu = verified(output, decode="cpu")
    assert (cpu.holds, cpu.chunks, cpu.decoder, list(decoders)) == (True, CHUNKS, "cpu", [])
    gpu = verified(output, decode="gpu")
    assert same(gpu, cpu)
    assert (gpu.decoder, gpu.decoded_by_processor) == ("gpu", "")
    assert sum(one.decoded for one in decoders) == CHUNKS
    assert len(decoders) == decoders.closed == len({one.coding for one in decoders})
    assert len(decoders.rooms) <= len(decoders) * every_chunk.THREADS * codecs.LANES
    # Rows of 5 chunks in two batches, and of 3; the last level has 2 in one row.
    assert sorted(decoders.batches) == sorted((5 * 4 + 3 * 4) * [4, 1] + 2 * 2 * [3] + [2])
    assert set(decoders.rooms) == {BATCH * one.coding.chunk_bytes for one in decoders}
    said = isovoxel("verify", output, "--samples", 1, "--every-chunk", "--decode", "gpu")
    assert f"chunks    {CHUNKS} chunks read, decompressed by the GPU\n" in said.out
    said = isovoxel("verify", output, "--samples", 1, "--every-chunk", "--decode", "gpu", "--json")
    assert (said.json["decoder"], said.json["decoded_by_processor"]) == ("gpu", "")


@pytest.mark.parametrize("count", [1, 3, 9])
def test_damage_is_found_as_the_processor_finds_it(output: Path, decoders: Decoders, count: int) -> None:
    """The same number of chunks, and the same words of the first: of chunks and of shards' indices."""
    damage(output, count)
    cpu, gpu = (verified(output, decode=by) for by in ("cpu", "gpu"))
    assert cpu.damaged >= count
    assert same(gpu, cpu)
    assert gpu.decoded_by_processor == ""
    assert 0 < sum(one.decoded for one in decoders) <= CHUNKS - cpu.damaged + BATCH * cpu.damaged


@pytest.mark.parametrize("failure", [MemoryError("too little memory"), GpuCodecError("illegal address")])
def test_where_the_gpu_fails_the_processor_goes_on(
    output: Path, decoders: Decoders, isovoxel: Isovoxel, failure: Exception
) -> None:
    """From a batch on: each chunk is counted once, what was damaged is found, and why is told once."""
    damage(output, 3)
    cpu = verified(output, decode="cpu")
    decoders.fails_at = 3, failure
    said = isovoxel("verify", output, "--samples", 1, "--every-chunk", "--decode", "gpu")
    assert said.code == 1
    assert said.out.count(f"decoding  the processor decompresses in the GPU's place: {failure}\n") == 1
    assert f"chunks    {CHUNKS} chunks read\n" in said.out
    assert 0 < sum(one.decoded for one in decoders) < CHUNKS / 2
    decoders.fails = failure
    gpu = verified(output, decode="gpu")
    assert same(gpu, cpu)
    assert (gpu.decoder, gpu.decoded_by_processor) == ("gpu", str(failure))
    assert decoders.closed == len(decoders) == 1


def test_the_voxels_memory_may_be_missing(output: Path, decoders: Decoders, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor, which needs less of it, reads what the GPU cannot, and it is told."""

    def fail(nbytes: int) -> None:
        raise MemoryError(f"the host has no {nbytes} bytes")

    monkeypatch.setattr(every_chunk, "new_memory", fail)
    gpu = verified(output, decode="gpu")
    assert same(gpu, verified(output, decode="cpu"))
    assert "the host has no" in gpu.decoded_by_processor
    assert sum(one.decoded for one in decoders) == 0


def test_channels_are_read_too(tmp_path: Path, decoders: Decoders) -> None:
    """Each by itself, damaged or not."""
    array = zarr.create_array(
        tmp_path / "in.zarr",
        shape=(3, *VOXELS.shape),
        chunks=(1, 10, 25, 35),
        dtype="uint16",
        dimension_names=["c", "z", "y", "x"],
    )
    array[...] = np.stack([VOXELS, VOXELS + 1, VOXELS + 2])
    package.scale(tmp_path / "in.zarr", tmp_path / "out.zarr", **OPTIONS)
    assert same(found := verified(tmp_path / "out.zarr", decode="gpu"), verified(tmp_path / "out.zarr"))
    assert (found.holds, found.chunks, sum(one.decoded for one in decoders)) == (True, 3 * CHUNKS, 3 * CHUNKS)
    damage(tmp_path / "out.zarr", 5)
    assert same(found := verified(tmp_path / "out.zarr", decode="gpu"), verified(tmp_path / "out.zarr"))
    assert found.damaged >= 5


def chosen(output: Path, options: Options, host: HostLimits) -> list[every_chunk.Levels]:
    levels = [package.open_volume(output, level=level) for level in range(4)]
    return every_chunk.choose_decoders(levels, options, host)


@pytest.mark.usefixtures("decoders")
def test_every_byte_is_in_the_projection(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Baseline, the decoder's buffers, and what each thread holds; of these fewer where memory is short."""
    monkeypatch.setattr(chunking, "BATCH_BYTES", 2**14)
    host = HostLimits(allowed=10 * 2**30, baseline=10**6, threads=4)
    run = chosen(output, Options(decode="gpu"), host)[0]
    assert run.batches is not None
    each = 4 * (4096 + 4096 // 128 + 64)
    assert run.batches.host_bytes == each
    takes = each + 4096 + max(level.read_overhead for level in run.volumes)
    lanes = codecs.LANES
    assert run.projected == 768 * 2**20 + 2 * lanes * each + every_chunk.THREADS * lanes * takes
    few = replace(run, host=replace(run.host, allowed=run.host.baseline + 3 * takes + 1))
    assert few.threads(few.batches) == (3, takes)
    assert few.projected == run.host.baseline + 3 * takes


@pytest.mark.usefixtures("decoders")
def test_too_little_memory_leaves_it_to_the_processor(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `auto` says what decodes; where the GPU is asked for it is refused."""
    monkeypatch.setattr(codecs, "is_faster", lambda *_: True)
    monkeypatch.setattr(every_chunk, "is_faster", lambda *_: True)
    assert verified(output).decoder == "gpu"
    little = reading_limits().baseline + 2**28
    found = verified(output, memory=little)
    assert (found.decoder, found.decoded_by_processor) == ("cpu", "")
    assert 0 < found.projected <= found.allowed == little
    with pytest.raises(OptionError, match=r"^the GPU cannot decode: too little memory is allowed"):
        verified(output, memory=little, decode="gpu")
    with pytest.raises(DoesNotFitError):
        verified(output, memory=1000)


def test_auto_takes_the_gpu_where_it_is_faster(
    output: Path, decoders: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the model of jobs has it; where no GPU could be faster, or none is there, no device is looked for."""
    with monkeypatch.context() as patch:
        patch.setattr(devices, "list_devices", lambda: pytest.fail("devices are listed"))
        assert verified(output).decoder == "cpu"
        patch.setitem(codecs.DECODED_BY_CORE, "zstd", 1.0)
        patch.setattr(devices, "has_coding_gpu", lambda: False)
        assert verified(output).decoder == "cpu"
    assert verified(output, device="0").decoder == "cpu"
    monkeypatch.setitem(codecs.DECODED_BY_CORE, "zstd", 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(devices, "list_devices", list)
        assert verified(output).decoder == "cpu"
    assert not decoders
    assert verified(output).decoder == "gpu"
    assert decoders


@pytest.mark.parametrize("words", [(), ("--every-chunk",), ("--every-chunk", "--decode", "cpu")])
def test_without_a_gpu_no_driver_is_loaded(output: Path, words: tuple[str, ...]) -> None:
    """Neither OpenCL's nor CUDA's, however much is read."""
    code = (
        "import sys\n"
        "from isovoxel import cli\n"
        "from isovoxel.engines import devices\n"
        "from isovoxel.planning import codecs\n"
        "codecs.DECODED_BY_CORE['zstd'] = 1.0\n"
        "devices.can_code = lambda: True\n"
        "assert cli.run() == 0\n"
        "maps = open('/proc/self/maps').read() if sys.platform == 'linux' else ''\n"
        "assert 'libOpenCL' not in maps and 'libcuda' not in maps and 'libpocl' not in maps\n"
        "assert 'pyopencl' not in sys.modules\n"
    )
    if devices.SYSTEM_GPUS.exists():
        pytest.skip("a GPU is here")
    ran = subprocess.run(
        [sys.executable, "-c", code, "verify", str(output), "--samples", "1", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_what_cannot_be_is_refused(output: Path, isovoxel: Isovoxel) -> None:
    """In one sentence, before anything is read."""
    words = ("verify", output, "--every-chunk", "--decode", "gpu", "--device", "cpu")
    said = isovoxel(*words)
    check_refused(said, "the GPU cannot decode: ")
    assert "has no decoder; an NVIDIA GPU has one with isovoxel[nvidia-cu13]" in said.err
    only = "decode gpu and device are for reading every chunk; give --every-chunk, or leave them out"
    check_refused(isovoxel("verify", output, "--decode", "gpu"), only)
    check_refused(isovoxel("verify", output, "--device", "0"), only)
    check_refused(
        isovoxel("verify", output, "--every-chunk", "--decode", "cpu", "--device", "0"),
        "device says which GPU decompresses every chunk; leave it out, or --decode cpu",
    )
    check_refused(isovoxel("verify", output, "--every-chunk", "--device", "nonsense"), "no OpenCL device is called")
    check_refused(isovoxel("verify", output, "--decode", "card"), "decode must be one of auto, gpu, cpu")
    assert verified(output, device="cpu").decoder == "cpu"


def test_a_variable_is_for_what_is_decoded(output: Path, isovoxel: Isovoxel, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is set for jobs; verifying without reading every chunk has no use for it, which is no mistake."""
    monkeypatch.setenv("ISOVOXEL_DECODE", "gpu")
    assert isovoxel("verify", output, "--samples", "1").code == 0
    check_refused(isovoxel("verify", output, "--every-chunk", "--device", "cpu"), "the GPU cannot decode: ")
    monkeypatch.setenv("ISOVOXEL_DECODE", "cpu")
    assert isovoxel("verify", output, "--samples", "1", "--every-chunk").code == 0


@pytest.mark.usefixtures("decoders")
def test_the_benchmark_of_views_reads_by_both(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the device can decode the output, by words that the command takes."""
    commands = views._by_each_decoder(output, "cpu")
    assert [command.split()[:4] for command in commands] == [["verify", "--every-chunk", "--decode", by] for by in BOTH]
    for command in commands:
        _, *words = command.split()
        monkeypatch.setattr(sys, "argv", ["isovoxel", "verify", str(output), "--samples", "1", *words])
        assert cli.run() == 0
    monkeypatch.undo()
    assert views._by_each_decoder(output, "cpu") == ()


def test_images_together_tell_what_decoded(output: Path) -> None:
    """The GPU, where it was to decode those of one; and why not, where it did not."""
    cpu = verified(output)
    gpu, failed = replace(cpu, decoder="gpu"), replace(cpu, decoder="gpu", decoded_by_processor="no room")
    assert (_of_images({"a": cpu, "b": gpu}).decoder, _of_images({"a": cpu, "b": cpu}).decoder) == ("gpu", "cpu")
    assert _of_images({"a": cpu, "b": failed}).decoded_by_processor == "no room"
    assert _of_images({"a": package.verify(output, samples=1)}).decoder is None


@pytest.mark.usefixtures("decoders")
def test_levels_that_the_gpu_cannot_decode_are_refused(source: Path, tmp_path: Path) -> None:
    """Where it is asked for; `auto` has the processor read them."""
    package.scale(source, tmp_path / "out.zarr", **OPTIONS | {"codec": "gzip"})
    with pytest.raises(OptionError, match=r"^the GPU cannot decode: it decodes local zarr.*leave out --decode gpu$"):
        verified(tmp_path / "out.zarr", decode="gpu")
    assert verified(tmp_path / "out.zarr").decoder == "cpu"


@pytest.mark.gpu
@pytest.mark.parametrize("codec", ["blosc-zstd", "blosc-lz4"])
def test_a_gpu_finds_what_the_processor_finds(tmp_path: Path, codec: str) -> None:
    """Of an output that is as it was, and of one with 20 damaged chunks in as many files, of two levels."""
    gpu = next((device for device in devices.list_devices() if device.pci), None)
    if gpu is None or not devices.can_code():
        pytest.skip("no GPU is here, or CUDA or nvCOMP is not installed")
    voxels = np.random.default_rng(0).normal(2000, 60, (160, 512, 768)).astype(np.uint16)
    options: dict[str, Any] = {"factor": (2, 1, 1), "engine": "exact", "codec": codec, "encode": "cpu", "levels": 3}
    options |= {"chunk": (32, 64, 64), "shard": (64, 128, 128), "device": str(gpu.index)}
    package.scale(voxels, tmp_path / "out.zarr", **options)
    np.save(tmp_path / "in.npy", voxels)
    how: dict[str, Any] = {"against": tmp_path / "in.npy"}
    for count in (0, 20):
        damage(tmp_path / "out.zarr", count)
        cpu = verified(tmp_path / "out.zarr", decode="cpu", **how)
        found = verified(tmp_path / "out.zarr", decode="gpu", device=gpu.index, **how)
        assert same(found, cpu)
        assert (found.decoder, found.decoded_by_processor) == ("gpu", "")
        assert (found.damaged >= count, found.holds) == (True, count == 0)
