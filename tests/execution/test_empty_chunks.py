"""Empty chunks are not stored: the voxels are the same, and a shard that was lost is told from one that is empty."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import isovoxel
from codecs_on_cpu import EncoderOnCpu
from isovoxel.codecs.blosc import ContainerLayout
from isovoxel.engines.pipeline import StagedEngine
from isovoxel.errors import JobError, OutputExistsError
from isovoxel.execution.events import BlockDone, Event
from isovoxel.geometry.grid import Box, Index3
from isovoxel.output.ledger import EMPTY_SHARDS, flags_from_text, flags_to_text
from isovoxel.output.provenance import read_provenance
from isovoxel.planning.plan import Plan
from isovoxel.readers.zarr_array import ChunkReader
from isovoxel.reporting.text import volume_lines
from outputs import by_tensorstore, levels_of
from small_jobs import interrupt, stop_after
from small_store import ROOTS, small_store
from strategies import examples

OPTIONS: dict[str, Any] = {
    "factor": (2.0, 1.0, 1.0),
    "input_voxel_size": (2.0, 1.0, 1.0),
    "chunk": (8, 8, 8),
    "shard": (16, 16, 16),
    "threads": 2,
    "device_memory": "80kB",
    "levels": 2,
}
WAYS: dict[str, dict[str, Any]] = {
    "labels": {"labels": True},
    "linear": {"engine": "exact"},
    "cle": {"engine": "cle", "boundary": "constant"},
    "cubic, constant": {"engine": "exact", "interpolation": "cubic", "boundary": "constant"},
    "0.4": {"engine": "exact", "interpolation": "nearest", "ome_zarr": "0.4", "shard": None},
    "none": {"engine": "exact", "codec": "none"},
    "gzip": {"engine": "exact", "codec": "gzip"},
}


def sparse(dtype: str = "uint16", shape: tuple[int, int, int] = (20, 40, 36)) -> NDArray[Any]:
    """Return voxels most of which are zeros; of floats, some are minus zero, and some no number."""
    voxels = np.zeros(shape, dtype)
    voxels[3:5, 5:7, 17:30] = np.random.default_rng(0).integers(1, 99, (2, 2, 13))
    if voxels.dtype.kind == "f":
        voxels[12:20, 16:40, :] = -0.0
        voxels[15, 30, 30] = np.nan
    voxels[17:19, 30:38, 2:6] = 5
    return voxels


def shards(output: Path) -> list[Path]:
    """Return the files of an output that hold voxels."""
    return sorted(file for file in output.rglob("*") if file.is_file() and file.name.isdecimal())


def same(one: Path, other: Path) -> bool:
    """Tell whether two outputs hold the same bits; two readers agree on those of the first."""
    both = ((voxels, by_tensorstore(other, level)) for level, voxels in enumerate(levels_of(one)))
    return all(a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in both)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("way", WAYS)
def test_skip_gives_what_write_gives(way: str, tmp_path: Path) -> None:
    """Bit for bit, of all levels, in fewer files; `verify` counts no empty shard, and finds one that was deleted."""
    voxels = sparse("uint32" if way == "labels" else "float32")
    np.save(tmp_path / "in.npy", voxels)
    skip, write = tmp_path / "skip.zarr", tmp_path / "write.zarr"
    isovoxel.scale(tmp_path / "in.npy", skip, **OPTIONS | WAYS[way])  # the default of a new output
    isovoxel.scale(tmp_path / "in.npy", write, empty="write", **OPTIONS | WAYS[way])
    assert same(skip, write)
    assert 0 < len(shards(skip)) < len(shards(write))
    assert EMPTY_SHARDS not in read_provenance(write)
    assert set(read_provenance(skip)[EMPTY_SHARDS]) >= {"0"}
    state = isovoxel.output_state(skip)
    assert state is not None
    assert state.empty == len(shards(write)) - len(shards(skip))
    assert (
        f"{state.empty} shards of nothing but zeros" in dict(volume_lines(isovoxel.open_volume(skip), state))["written"]
    )
    found = isovoxel.verify(skip, samples=9, every_chunk=True)
    assert (found.holds, found.missing_shards) == (True, 0)
    shards(skip)[-1].unlink()
    shards(skip)[0].unlink()
    shards(write)[0].unlink()
    assert [isovoxel.verify(path, samples=1).missing_shards for path in (skip, write)] == [2, 1]


@settings(max_examples=examples(20))
@given(
    st.sampled_from(["uint8", "int16", "float32", "uint64"]),
    st.lists(st.tuples(*[st.integers(0, n - 1) for n in (9, 21, 17)]), max_size=5),
    st.integers(0, 1),
)
def test_any_voxel_that_is_set_is_stored(dtype: str, places: list[tuple[int, int, int]], levels: int) -> None:
    """Whichever few voxels are set, minus zero among them."""
    voxels = np.zeros((9, 21, 17), dtype)
    for number, place in enumerate(places):
        voxels[place] = number if dtype != "float32" else [-0.0, np.nan, -1e-45, 7, np.inf][number]
    options = {**OPTIONS, "factor": (1, 1, 1), "engine": "exact", "interpolation": "nearest", "levels": levels}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        np.save(folder / "in.npy", voxels)
        isovoxel.scale(folder / "in.npy", folder / "out.zarr", **options)
        read = levels_of(folder / "out.zarr", 1 + levels)
        assert read[0].tobytes() == voxels.tobytes()
        assert len(list((folder / "out.zarr" / "0").rglob("*/c/*/*/*"))) <= len(places)


def test_a_job_that_goes_on_knows_its_empty_shards(tmp_path: Path) -> None:
    """They are not done again; a stored one that is gone is, and one that should be empty and is not; then it holds."""
    np.save(tmp_path / "in.npy", sparse())
    out, whole = tmp_path / "out.zarr", tmp_path / "whole.zarr"
    options = OPTIONS | {"engine": "exact", "threads": 1}
    isovoxel.scale(tmp_path / "in.npy", whole, **options)
    done: list[tuple[int, int]] = []

    def note(event: Event) -> None:
        if isinstance(event, BlockDone):
            done.append((event.level, event.index))

    def stop(event: Event) -> None:
        note(event)
        if isinstance(event, BlockDone) and len(done) == 4:
            raise RuntimeError("stopped")

    with pytest.raises(JobError):
        isovoxel.scale(tmp_path / "in.npy", out, listeners=[stop], **options)
    first, before = len(done), set(done)
    isovoxel.scale(tmp_path / "in.npy", out, listeners=[note], **options)
    assert not before & set(done[first:])
    assert same(out, whole)
    assert read_provenance(out)[EMPTY_SHARDS] == read_provenance(whole)[EMPTY_SHARDS]
    assert isovoxel.verify(out, samples=3).holds


def test_what_lies_where_a_shard_is_empty_is_removed(tmp_path: Path) -> None:
    """A file of an earlier attempt; its block, which was noted without it, is done again."""
    np.save(tmp_path / "in.npy", np.zeros((8, 24, 16), np.uint16))
    out = tmp_path / "out.zarr"
    interrupt(tmp_path / "in.npy", out, input_voxel_size=(2.0, 1.0, 1.0))
    stray = out / "0" / "c" / "0" / "0" / "0"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"of another input")
    interrupt(tmp_path / "in.npy", out, input_voxel_size=(2.0, 1.0, 1.0))
    assert not stray.exists()


def test_a_shard_that_vanishes_is_missed_beside_empty_ones(tmp_path: Path) -> None:
    """By its name: those that are empty are not counted."""
    np.save(tmp_path / "in.npy", sparse())

    def remove(event: Event) -> None:
        if isinstance(event, BlockDone) and event.level == 2:
            for file in shards(tmp_path / "out.zarr" / "0"):
                file.unlink()

    with pytest.raises(JobError, match=r"3 shards that were written are not there any more, .* at .*/0/c/0/0/1:"):
        isovoxel.scale(tmp_path / "in.npy", tmp_path / "out.zarr", listeners=[remove], **OPTIONS, engine="exact")


def test_an_output_keeps_what_it_was_begun_with(tmp_path: Path) -> None:
    """One that says nothing of it has all its shards; to ask for something else is refused."""
    np.save(tmp_path / "in.npy", sparse())
    source, old, new = tmp_path / "in.npy", tmp_path / "old.zarr", tmp_path / "new.zarr"
    options = OPTIONS | {"engine": "exact"}
    isovoxel.scale(source, old, empty="write", **options)
    metadata = json.loads((old / "zarr.json").read_text())
    del metadata["attributes"]["isovoxel"]["storage"]["empty"]  # as it was before there was the option
    (old / "zarr.json").write_text(json.dumps(metadata))
    isovoxel.scale(source, new, **options)
    for output, other, said in ((old, "skip", "write, now skip"), (new, "write", "skip, now write")):
        files = shards(output)
        assert isovoxel.scale(source, output, **options).tally.done_before
        assert shards(output) == files
        with pytest.raises(OutputExistsError, match=f"empty chunks {said}"):
            isovoxel.scale(source, output, empty=other, **options)


def test_receipts_that_are_kept_tell_of_empty_shards(tmp_path: Path) -> None:
    """All shards are compared; a file where one is empty is not as it was written."""
    np.save(tmp_path / "in.npy", sparse())
    out = tmp_path / "out.zarr"
    isovoxel.scale(tmp_path / "in.npy", out, **OPTIONS, engine="exact", keep_receipts=True)
    found = isovoxel.verify(out, samples=1)
    assert (found.holds, found.damaged) == (True, 0)
    assert found.receipts is not None
    assert found.receipts > len(shards(out))
    stray = out / "0" / "c" / "2" / "2" / "2"
    assert not stray.exists()
    stray.parent.mkdir(parents=True, exist_ok=True)
    stray.write_bytes(shards(out)[0].read_bytes())
    assert isovoxel.verify(out, samples=1).damaged == 1


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_in_a_store_an_empty_shard_is_no_object(kind: str, tmp_path: Path) -> None:
    """A job that was interrupted goes on; one that is deleted is found."""
    np.save(tmp_path / "in.npy", sparse())
    with small_store(kind) as store:
        out = f"{ROOTS[kind]}/out.zarr"
        options = OPTIONS | {"engine": "exact", "levels": 1, "device_memory": "80kB"}
        with pytest.raises(JobError):
            isovoxel.scale(tmp_path / "in.npy", out, listeners=[stop_after(5)], **options)
        isovoxel.scale(tmp_path / "in.npy", out, **options)
        stored = [key for key in store.objects if "out.zarr/" in key and key.rpartition("/")[2].isdecimal()]
        isovoxel.scale(tmp_path / "in.npy", tmp_path / "out.zarr", **options)
        assert len(stored) == len(shards(tmp_path / "out.zarr"))
        assert isovoxel.verify(out, samples=3).holds
        del store.objects[stored[0]]
        assert isovoxel.verify(out, samples=1).missing_shards == 1


def test_chunks_of_a_gpu_are_left_out_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a batch that are empty; the voxels are those of the processor."""

    def encoder(_: StagedEngine, plan: Plan) -> EncoderOnCpu:
        layout = ContainerLayout(plan.chunk_bytes, plan.source.itemsize, plan.storage.codec)
        return EncoderOnCpu(layout, plan.storage.chunk)

    np.save(tmp_path / "in.npy", sparse("float32"))
    options = OPTIONS | {"engine": "exact", "codec": "blosc-zstd"}
    isovoxel.scale(tmp_path / "in.npy", tmp_path / "cpu.zarr", **options)
    monkeypatch.setattr(StagedEngine, "encoder", encoder)
    isovoxel.scale(tmp_path / "in.npy", tmp_path / "gpu.zarr", **options)
    assert same(tmp_path / "cpu.zarr", tmp_path / "gpu.zarr")
    outputs = tmp_path / "cpu.zarr", tmp_path / "gpu.zarr"
    names = [[str(file.relative_to(out)) for file in shards(out)] for out in outputs]
    assert names[0] == names[1]
    indices = [(out / "0/c/0/0/1").read_bytes()[-8 * 16 - 4 :] for out in outputs]
    empty = [np.frombuffer(index[:-4], "<u8") == 2**64 - 1 for index in indices]
    assert empty[0].any()
    assert not empty[0].all()
    np.testing.assert_array_equal(*empty)


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_flags_are_what_their_text_says(flags: list[bool]) -> None:
    """And text of another grid, or that is damaged, says nothing."""
    made = np.array(flags)
    text = flags_to_text(made)
    np.testing.assert_array_equal(flags_from_text(text, made.shape), made)
    for wrong in (text[:-4], "%", flags_to_text(np.zeros(len(flags) + 8, np.bool_))):
        with pytest.raises(ValueError, match=r"flags|base64|padding|Invalid|discouraged|Only"):
            flags_from_text(wrong, made.shape)


INPUTS: dict[str, dict[str, Any]] = {
    "v3": {"zarr_format": 3},
    "sharded": {"zarr_format": 3, "shards": (8, 16, 16)},
    "v2": {"zarr_format": 2},
}


def input_with_missing_chunks(path: Path, voxels: NDArray[Any], how: str, fill: float = 0) -> Path:
    """Write an array whose chunks are not stored where they hold the fill value alone."""
    made: Any = zarr.create_array(
        path, shape=voxels.shape, chunks=(4, 8, 8), dtype=voxels.dtype, fill_value=fill, **INPUTS[how]
    )
    made[...] = voxels
    return path


@pytest.fixture
def read_boxes(monkeypatch: pytest.MonkeyPatch) -> list[Box]:
    """The boxes that are read of chunks in files."""
    found: list[Box] = []
    read = ChunkReader.__call__

    def noted(reader: ChunkReader, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        found.append(box)
        return read(reader, box, out)

    monkeypatch.setattr(ChunkReader, "__call__", noted)
    return found


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("how", "interpolation", "factor", "boundary"),
    [
        ("v3", "linear", (2, 1, 1), "constant"),
        ("v2", "nearest", (2, 1, 1), "constant"),
        ("sharded", "linear", (1.7, 1.3, 1), "nearest"),
        ("sharded", "area", (1, 0.5, 0.5), "nearest"),
        ("v3", "mode", (1, 0.5, 0.5), "constant"),
    ],
)
def test_blocks_of_missing_chunks_are_not_read(
    how: str,
    interpolation: str,
    factor: tuple[float, float, float],
    boundary: str,
    tmp_path: Path,
    read_boxes: list[Box],
) -> None:
    """The voxels are those of a job that reads all, to the bit, and so are the files."""
    shape = (20, 64, 60) if factor[1] < 1 else (20, 40, 36)
    voxels = sparse("int32" if interpolation == "mode" else "float32", shape)
    source = input_with_missing_chunks(tmp_path / "in.zarr", voxels, how)
    options = OPTIONS | {"engine": "exact", "interpolation": interpolation, "factor": factor, "boundary": boundary}
    options |= {"shard": (16, 8, 8)} if factor[1] < 1 else {}
    skip, write = tmp_path / "skip.zarr", tmp_path / "write.zarr"
    isovoxel.scale(source, write, **options, empty="write")
    every = sum(box.size for box in read_boxes)
    read_boxes.clear()
    isovoxel.scale(source, skip, **options)
    assert 0 < sum(box.size for box in read_boxes) < every
    assert same(skip, write)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ChunkReader, "is_empty", lambda *_: False)
        isovoxel.scale(source, tmp_path / "read.zarr", **options)
    assert [file.relative_to(skip) for file in shards(skip)] == [
        file.relative_to(tmp_path / "read.zarr") for file in shards(tmp_path / "read.zarr")
    ]
    assert isovoxel.verify(skip, samples=5).holds


@pytest.mark.parametrize(
    ("interpolation", "read"),
    [("nearest", [(4, 8, 16)] * 2), ("linear", [(6, 8, 16)] * 2 + [(10, 8, 16)] * 2)],
)
def test_of_a_block_only_the_chunks_are_made_that_are_not_empty(
    interpolation: str, read: list[Index3], tmp_path: Path, read_boxes: list[Box]
) -> None:
    """Of each shard the least box of whole chunks; the files are those of a job that makes all of the block."""
    voxels = np.zeros((24, 64, 96), np.uint16)
    voxels[9, 20, 40], voxels[10, 40, 70] = 3, 4
    source = input_with_missing_chunks(tmp_path / "in.zarr", voxels, "v3")
    options: dict[str, Any] = {"factor": (2, 1, 1), "interpolation": interpolation, "engine": "exact", "levels": 0}
    options |= {"chunk": (8, 8, 16), "shard": (16, 16, 32), "input_voxel_size": (2, 1, 1)}
    made = isovoxel.scale(source, tmp_path / "skip.zarr", **options)
    assert made.plan.n_blocks == 1
    assert [box.shape for box in read_boxes[: len(read)]] == read  # the others are of the display window
    isovoxel.scale(voxels, tmp_path / "whole.zarr", **options)
    files = [
        {str(file.relative_to(tmp_path / name)): file.read_bytes() for file in shards(tmp_path / name)}
        for name in ("skip.zarr", "whole.zarr")
    ]
    assert files[0] == files[1]
    assert len(files[0]) > 1
    assert isovoxel.verify(tmp_path / "skip.zarr", samples=20).holds


@pytest.mark.parametrize(("missing", "parts"), [(8, 1), (24, 2)])
def test_a_block_of_which_little_is_missing_is_made_whole(
    missing: int, parts: int, tmp_path: Path, read_boxes: list[Box]
) -> None:
    """Its two shards one by one would read halos of their own."""
    voxels = np.ones((8, 32, 64), np.uint16)
    voxels[:, :, 64 - missing :] = 0
    source = input_with_missing_chunks(tmp_path / "in.zarr", voxels, "v3")
    options: dict[str, Any] = {"factor": (2, 1, 1), "engine": "exact", "interpolation": "linear", "levels": 0}
    options |= {"chunk": (8, 8, 8), "shard": (16, 32, 32), "input_voxel_size": (2, 1, 1)}
    made = isovoxel.scale(source, tmp_path / "out.zarr", **options)
    assert made.plan.n_blocks == 1
    assert sum(box.shape[1:] != (8, 8) for box in read_boxes) == parts
    isovoxel.scale(voxels, tmp_path / "whole.zarr", **options)
    both = [levels_of(tmp_path / name, 1)[0].tobytes() for name in ("out.zarr", "whole.zarr")]
    assert both[0] == both[1]


@settings(max_examples=examples(12))
@given(
    st.sets(st.tuples(*[st.integers(0, n - 1) for n in (5, 5, 4)]), min_size=1, max_size=6),
    st.sampled_from(
        [
            *(("nearest", factor) for factor in ((2.0, 1.0, 1.0), (1.7, 1.3, 1.0))),
            *(("linear", factor) for factor in ((2.0, 1.0, 1.0), (1.7, 1.3, 1.0), (1.0, 0.8, 0.7))),
            *((kind, (1.0, 0.5, 0.7)) for kind in ("nearest", "area", "mode")),
        ]
    ),
    st.sampled_from(["nearest", "constant"]),
    st.integers(0, 1),
)
def test_whichever_chunks_are_missing_the_files_are_the_same(
    stored: set[Index3], how: tuple[str, tuple[float, float, float]], boundary: str, levels: int
) -> None:
    """As those of a job that makes every block whole, of voxels in memory."""
    voxels = np.zeros((20, 40, 31), np.int16)
    for z, y, x in stored:
        voxels[4 * z : 4 * z + 4, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8] = 1 + z + y + x
    options: dict[str, Any] = {"factor": how[1], "interpolation": how[0], "boundary": boundary}
    options |= {"engine": "exact", "levels": levels, "chunk": (8, 8, 8), "shard": (16, 16, 16)}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        source = input_with_missing_chunks(folder / "in.zarr", voxels, "v3")
        isovoxel.scale(source, folder / "skip.zarr", **options)
        isovoxel.scale(voxels, folder / "whole.zarr", **options, input_voxel_size=(1, 1, 1))
        files = [
            {str(file.relative_to(folder / name)): file.read_bytes() for file in shards(folder / name)}
            for name in ("skip.zarr", "whole.zarr")
        ]
        assert files[0] == files[1]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("fill", "options"),
    [
        (7, {}),
        (-0.0, {}),
        (np.nan, {}),
        (0, {"interpolation": "cubic"}),
        (0, {"interpolation": "lanczos3"}),
        (0, {"engine": "cle"}),
        (0, {"empty": "write"}),
    ],
)
def test_what_is_not_proven_to_be_zeros_is_made(
    fill: float, options: dict[str, Any], tmp_path: Path, read_boxes: list[Box]
) -> None:
    """Other fills, kernels with weights below 0, cle, and outputs of which all is stored; the bits are the same."""
    voxels = np.full((16, 32, 32), fill, np.float32)
    voxels[9, 20, 20] = 3
    source = input_with_missing_chunks(tmp_path / "in.zarr", voxels, "v3", fill)
    options = OPTIONS | {"engine": "exact", "levels": 0} | options
    made = isovoxel.scale(source, tmp_path / "out.zarr", **options)
    assert len(read_boxes) >= made.plan.n_blocks
    isovoxel.scale(voxels, tmp_path / "whole.zarr", **options | {"empty": "write"})
    both = [levels_of(tmp_path / name, 1)[0].tobytes() for name in ("out.zarr", "whole.zarr")]
    assert both[0] == both[1]


def test_damage_is_no_missing_chunk(tmp_path: Path) -> None:
    """A shard whose index is damaged is told of, and filled where that is asked."""
    voxels = np.zeros((16, 32, 32), np.uint16)
    voxels[0, 0, 0] = 1
    source = input_with_missing_chunks(tmp_path / "in.zarr", voxels, "sharded")
    damaged = source / "c" / "1" / "1" / "1"
    damaged.parent.mkdir(parents=True, exist_ok=True)
    damaged.write_bytes(b"no shard")
    options = OPTIONS | {"engine": "exact", "levels": 0}
    with pytest.raises(JobError, match="index"):
        isovoxel.scale(source, tmp_path / "out.zarr", **options)
    result = isovoxel.scale(source, tmp_path / "out.zarr", **options, on_corrupt="fill")
    assert result.tally.filled


def test_parts_and_series_of_missing_chunks_are_not_read(tmp_path: Path, read_boxes: list[Box]) -> None:
    """Of a crop, of several time points, and of an array whose type is converted."""
    for name, dtype, shape, more in (
        ("crop", "uint16", (16, 32, 32), {"crop": "2:,:,:"}),
        ("series", "uint16", (2, 16, 32, 32), {"axes": "tzyx"}),
        ("converted", "float64", (16, 32, 32), {}),
    ):
        voxels = np.zeros(shape, dtype)
        voxels[..., 12, 30, 30] = 9
        source = tmp_path / f"{name}.zarr"
        made: Any = zarr.create_array(source, shape=shape, chunks=(1,) * (len(shape) - 3) + (4, 8, 8), dtype=dtype)
        made[...] = voxels
        read = {}
        for empty in ("skip", "write"):
            read_boxes.clear()
            isovoxel.scale(source, tmp_path / f"{name}.{empty}.zarr", **OPTIONS | more, engine="exact", empty=empty)
            read[empty] = len(read_boxes)
        assert 0 < read["skip"] < read["write"]
        assert same(tmp_path / f"{name}.skip.zarr", tmp_path / f"{name}.write.zarr")
        made = zarr.open_array(tmp_path / f"{name}.skip.zarr" / "0", mode="r")[...]
        assert made.reshape(-1, *made.shape[-3:]).any((1, 2, 3)).all()  # those of each volume are there
