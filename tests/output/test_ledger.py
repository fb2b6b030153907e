"""What is noted is found again, whatever became of the process that noted it."""

from __future__ import annotations

import os
import threading
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isovoxel.object_store.files import write_whole
from isovoxel.output.files import BLOCKS, JOB
from isovoxel.output.ledger import Ledger, ledger_of, remove_ledger
from isovoxel.output.shard import ShardReceipt
from isovoxel.planning.chunking import Storage, seal_overhead
from isovoxel.planning.plan import Plan
from strategies import cut

SEALS = [ShardReceipt(100, 2**32 - 1, 1_700_000_000_123_456_789), ShardReceipt(0, 0, 0)]


@pytest.fixture(scope="module")
def plan() -> Plan:
    """27 blocks."""
    return cut((30, 30, 30), (1.0, 1.0, 1.0), (10, 10, 10))


def done(ledger: Ledger) -> list[int]:
    """Return the blocks that are noted with these seals."""
    return [index for index, is_done in enumerate(ledger.done(lambda _level, _block, seals: seals == SEALS)) if is_done]


def test_what_is_noted_is_read_by_the_next_process(plan: Plan, tmp_path: Path) -> None:
    """Blocks, seals, filled parts and the plan itself."""
    first = Ledger.begin(tmp_path / "ledger", plan)
    first.add(3, SEALS)
    first.add_filled("chunk (0, 0, 1): torn")
    first.add_filled("chunk (0, 0, 1): torn")
    first.add(26, SEALS)
    first.close()
    second = Ledger.read(tmp_path / "ledger")
    assert second is not None
    assert second.plan == plan
    assert done(second) == [3, 26]
    assert second.filled == ["chunk (0, 0, 1): torn"]
    assert second.count() == 2
    second.add_filled("chunk (0, 0, 1): torn")
    second.add(0, SEALS)
    assert done(second) == [0, 3, 26]
    assert (tmp_path / "ledger" / BLOCKS).read_text().count("\n") == 4


def test_what_a_process_that_was_taken_for_dead_notes_is_read_by_nobody(plan: Plan, tmp_path: Path) -> None:
    """It looked at the lock before that was taken over, and goes on with its file, which is another one by now."""
    first = Ledger.begin(tmp_path / "ledger", plan)
    first.add(3, SEALS)
    second = Ledger.read(tmp_path / "ledger")
    assert second is not None
    second.hold(lambda: None)
    first.add(4, SEALS)
    second.add(5, SEALS)
    assert done(second) == [3, 5]
    second.close()
    with pytest.raises(OSError, match="was closed"):
        second.add(6, SEALS)


def test_a_block_whose_shards_are_others_is_not_done_until_it_is_done_again(plan: Plan, tmp_path: Path) -> None:
    """The later line counts."""
    ledger = Ledger.begin(tmp_path / "ledger", plan)
    ledger.add(5, SEALS[:1])
    assert done(ledger) == []
    ledger.add(5, SEALS)
    assert done(ledger) == [5]
    ledger.add(5, SEALS[1:])
    assert done(ledger) == []


@given(torn=st.binary(max_size=5000).filter(lambda b: b"\n" not in b))
def test_a_torn_line_is_cut_off(plan: Plan, tmp_path_factory: pytest.TempPathFactory, torn: bytes) -> None:
    """Whatever stands behind the last newline was not written to its end; what comes next is a line of its own."""
    folder = tmp_path_factory.mktemp("ledger")
    ledger = Ledger.begin(folder, plan)
    ledger.add(1, SEALS)
    ledger.close()
    with (folder / BLOCKS).open("ab") as file:
        file.write(torn)
    again = Ledger.read(folder)
    assert again is not None
    assert done(again) == [1]
    again.add(2, SEALS)
    again.close()
    assert done(again) == [1, 2]


@given(lines=st.lists(st.binary(max_size=60) | st.sampled_from([b"[]", b'{"block": 99, "shards": []}', b"{}", b"3"])))
def test_lines_of_others_are_no_blocks(
    plan: Plan, tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    """Damage in the middle costs the blocks of the damaged lines, no more."""
    folder = tmp_path_factory.mktemp("ledger")
    ledger = Ledger.begin(folder, plan)
    ledger.add(7, SEALS)
    with (folder / BLOCKS).open("ab") as file:
        file.write(b"".join(line.replace(b"\n", b"") + b"\n" for line in lines))
    ledger.add(8, SEALS)
    assert done(ledger) == [7, 8]
    assert ledger.count() == 2


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"{}", b"\xff"])
def test_a_ledger_that_says_nothing_is_none(plan: Plan, tmp_path: Path, content: bytes | None) -> None:
    Ledger.begin(tmp_path, plan)
    (tmp_path / JOB).unlink()
    if content is not None:
        (tmp_path / JOB).write_bytes(content)
    assert Ledger.read(tmp_path) is None


def test_beginning_anew_forgets(plan: Plan, tmp_path: Path) -> None:
    Ledger.begin(tmp_path, plan).add(1, SEALS)
    assert done(Ledger.begin(tmp_path, plan)) == []


def test_a_note_that_does_not_fit_leaves_no_trace(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full in the middle of a line does not spoil the next one."""
    ledger = Ledger.begin(tmp_path, plan)
    ledger.add(1, SEALS)
    write = os.write

    def half(descriptor: int, data: bytes) -> int:
        write(descriptor, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        with pytest.raises(OSError, match="No space"):
            ledger.add(2, SEALS)
    ledger.add(3, SEALS)
    assert done(ledger) == [1, 3]


def test_threads_may_note_at_the_same_time(plan: Plan, tmp_path: Path) -> None:
    ledger = Ledger.begin(tmp_path, plan)
    threads = [threading.Thread(target=ledger.add, args=(i, SEALS)) for i in range(plan.n_blocks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done(ledger) == list(range(plan.n_blocks))


def test_a_ledger_lies_beside_its_output_and_goes(plan: Plan, tmp_path: Path) -> None:
    """With all that isovoxel has put there, and nothing else."""
    folder = ledger_of(tmp_path / "a.ome.zarr")
    assert folder == tmp_path / "a.ome.zarr.isovoxel"
    Ledger.begin(folder, plan).add(1, SEALS)
    (folder / "new").mkdir()
    remove_ledger(folder)
    assert not folder.exists()
    Ledger.begin(folder, plan)
    (folder / "thesis.txt").touch()
    remove_ledger(folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_a_whole_file_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be written leaves what was there, and nothing beside it."""
    path = tmp_path / "file"
    write_whole(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk")))
        with pytest.raises(OSError, match="disk"):
            write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_noting_a_block_of_many_files_takes_no_more_than_is_planned(tmp_path: Path) -> None:
    """A chunk may be a file: then a block has as many seals as chunks."""
    n = 20_000
    (tmp_path / "ledger").mkdir()
    tracemalloc.start()
    try:
        ledger = Ledger.begin(tmp_path / "ledger", cut((30, 30, 30), (1.0, 1.0, 1.0), (10, 10, 10)))
        ledger.add(0, [ShardReceipt(10**6 + i, 2**31 + i, f'"{i:032x}"') for i in range(n)])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        ledger.close()
    assert peak <= seal_overhead(Storage((8, 8, 8), (8, 8, 8)), (8, 8, 8 * n)) <= 4 * peak
