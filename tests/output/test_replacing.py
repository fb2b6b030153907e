"""An old output is there whole, at its place or kept, until the new one is complete, whatever happens in between."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zarr

import isovoxel as package
from command_line import Isovoxel, check_refused
from isovoxel.errors import InterruptedJobError, JobError, OptionError, OutputError, OutputExistsError
from isovoxel.execution.events import BlockDone, Event, JobStarted
from isovoxel.execution.executor import LevelProgress, kept
from isovoxel.output.files import DISCARDED, LOCK, REPLACED
from isovoxel.output.provenance import membership_of
from small_jobs import OPTIONS, VOXELS, interrupt, stop_after
from snapshots import Snapshot, snapshot

NEW = OPTIONS | {"factor": (1.0, 1.0, 2.0)}
"""Another result than that of `OPTIONS`."""


ENDED = (JobError, InterruptedJobError)
"""How a job ends before its time."""


class Layout:
    """Where an output lies, and its ledger."""

    def __init__(self, output: Path, **options: Any) -> None:
        self.output = output
        self.options = OPTIONS | options
        self.new = NEW | options
        store = membership_of(output)
        self.folder = output.with_name(f"{output.name}.isovoxel") if store is None else Path(str(store.ledger))

    def make(self, source: Any) -> Snapshot:
        """Make the old output, complete."""
        package.scale(source, self.output, **self.options)
        return snapshot(self.output)

    def is_new(self) -> bool:
        """Tell whether the output is the new one, complete."""
        state = package.output_state(self.output)
        array: Any = zarr.open_group(self.output, mode="r")["0"]
        return state is not None and state.complete and array.shape[-3:] == (8, 24, 32)


@pytest.fixture(params=["0.5", "0.4", "member", "labels"])
def layout(request: pytest.FixtureRequest, tmp_path: Path, source: Path) -> Layout:
    """An output by itself, a member of a zarr with consolidated metadata, and labels of an image."""
    if request.param in ("0.5", "0.4"):
        return Layout(tmp_path / "out.zarr", ome_zarr=request.param, shard=None)
    if request.param == "member":
        zarr.create_group(tmp_path / "store.zarr").create_array("other", data=VOXELS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zarr-python's own of what it writes
            zarr.consolidate_metadata(tmp_path / "store.zarr")
        return Layout(tmp_path / "store.zarr" / "x")
    package.scale(source, tmp_path / "image.zarr", **OPTIONS)
    return Layout(tmp_path / "image.zarr" / "labels" / "x", labels=True)


class Killed(BaseException):
    """Ends a process at once, as far as a test in it can."""


def test_the_old_output_is_kept_until_the_new_one_is_complete(layout: Layout, source: Path) -> None:
    """Through an interruption, and going on; then it goes, with all else that was made for a while."""
    old = layout.make(source)
    whole: list[bool] = []

    def look(event: Event) -> None:
        if isinstance(event, BlockDone):
            whole.append(snapshot(layout.folder / REPLACED) == old)

    with pytest.raises(JobError, match="are done and kept"):
        package.scale(source, layout.output, overwrite=True, listeners=[look, stop_after()], **layout.new)
    assert snapshot(layout.folder / REPLACED) == old
    result = package.scale(source, layout.output, listeners=[look], **layout.new)
    assert result.tally.done_before > 0
    assert whole
    assert all(whole)
    assert layout.is_new()
    assert not layout.folder.exists()


def test_attempts_to_replace_it_do_not_lose_it(layout: Layout, source: Path) -> None:
    """The first --overwrite keeps it; what further ones replace was never complete."""
    old = layout.make(source)
    for factor in ((1.0, 2.0, 1.0), (2.0, 1.0, 2.0), (1.0, 1.0, 2.0)):
        with pytest.raises(JobError, match="are done and kept"):
            package.scale(
                source, layout.output, overwrite=True, listeners=[stop_after()], **layout.new | {"factor": factor}
            )
        assert snapshot(layout.folder / REPLACED) == old
        assert not (layout.folder / DISCARDED).exists()
    with pytest.raises(OutputExistsError, match="was begun with factor"):
        package.scale(source, layout.output, **layout.options)
    package.scale(source, layout.output, **layout.new)
    assert layout.is_new()
    assert not layout.folder.exists()


@pytest.mark.parametrize("how", ["started", "interrupted"])
def test_it_comes_back_where_the_job_ends_before_its_first_block(
    how: str, layout: Layout, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte by byte, groups above included; the message says so, and nothing else is left."""
    layout.make(source)
    before = snapshot(tmp_path)

    def stop(event: Event) -> None:
        if isinstance(event, JobStarted) and how == "started":
            raise JobError("reading failed; 0 of 3 blocks are done and kept; run the same command again, to go on")

    if how == "interrupted":
        monkeypatch.setattr("isovoxel.execution.threads.ThreadExecutor.run", interrupted)
    with pytest.raises(ENDED, match=r"nothing of the new output was done, so the old one is back at"):
        package.scale(source, layout.output, overwrite=True, listeners=[stop], **layout.new)
    after = snapshot(tmp_path)
    rewritten = {path for path in before if path.endswith("zarr.json") and before[path][2] != after[path][2]}
    assert {path: (kind, held) for path, (kind, held, _) in after.items()} == {
        path: (kind, held) for path, (kind, held, _) in before.items()
    }
    assert all(not path.startswith(str(layout.output.relative_to(tmp_path))) for path in rewritten)


def interrupted(_: Any, progress: LevelProgress, **__: Any) -> Any:
    """Stand in for a job that the user ends before a block is done."""
    raise InterruptedJobError(f"interrupted; {kept(progress.plan, ())}")


def test_the_command_line_does_not_say_how_to_go_on_with_nothing(
    source: Path, tmp_path: Path, isovoxel: Isovoxel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the old output is back, the command without --overwrite would be another one."""
    layout = Layout(tmp_path / "out.zarr")
    old = layout.make(source)
    monkeypatch.setattr("isovoxel.execution.threads.ThreadExecutor.run", interrupted)
    said = isovoxel("scale", source, layout.output, "--factor", "1,1,2", "--engine", "exact", "--overwrite", "--quiet")
    assert said.code == 130
    assert said.err == (
        f"error: interrupted; nothing of the new output was done, so the old one is back at {layout.output}\n"
    )
    assert snapshot(layout.output) == old


def test_a_job_that_is_replaced_half_done_comes_back_to_go_on(
    layout: Layout, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the blocks that are done, where the job that would replace it does not get to its first one."""
    interrupt(source, layout.output, **layout.options)
    state = package.output_state(layout.output)
    old = snapshot(layout.output)
    with monkeypatch.context() as patch:
        patch.setattr("isovoxel.execution.threads.ThreadExecutor.run", interrupted)
        with pytest.raises(ENDED, match="is back at"):
            package.scale(source, layout.output, overwrite=True, **layout.new)
    assert snapshot(layout.output) == old
    assert package.output_state(layout.output) == state
    assert state is not None
    assert package.scale(source, layout.output, **layout.options).tally.done_before == state.done > 0


STEPS = ("rename", "replace", "touch", "mkdir", "unlink", "open")
"""What of pathlib changes the disk, or begins to."""


def _dying(monkeypatch: pytest.MonkeyPatch, at: int, error: Callable[[], BaseException]) -> list[int]:
    """Let the process end, or the disk be full, at a certain step that changes the disk; return how many there were."""
    steps = [0]

    def once(do: Any) -> Any:
        def step(self: Path, *args: Any, **keywords: Any) -> Any:
            mode = args[0] if args else keywords.get("mode", "r")
            main = threading.current_thread() is threading.main_thread()  # whose end is the process'
            if main and (do.__name__ != "open" or (isinstance(mode, str) and set(mode) & set("wxa+"))):
                steps[0] += 1
                if steps[0] == at:
                    raise error()
            return do(self, *args, **keywords)

        return step

    for name in STEPS:
        monkeypatch.setattr(Path, name, once(getattr(Path, name)))
    return steps


@pytest.mark.slow
@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("kind", ["killed", "full"])
def test_whatever_ends_it_at_any_step_nothing_is_lost(
    kind: str, complete: bool, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies, or a full disk: the old output is whole, or the new one is, and the next run gets there."""
    for at in range(1, 200):
        layout = Layout(tmp_path / f"{at}.zarr")
        if complete:
            layout.make(source)
        else:
            interrupt(source, layout.output, **layout.options)
        old, done = snapshot(layout.output), package.output_state(layout.output)
        with monkeypatch.context() as patch:
            full = lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: E731 - two kinds of one thing
            steps = _dying(patch, at, Killed if kind == "killed" else full)
            with contextlib.suppress(Killed, OutputError, JobError, OSError):
                package.scale(source, layout.output, overwrite=True, **layout.new)
            if steps[0] < at:
                assert layout.is_new()
                return
        where = [path for path in (layout.output, layout.folder / REPLACED) if path.exists()]
        assert any(snapshot(path) == old for path in where) or layout.is_new(), at
        if kind == "full" and (layout.folder / REPLACED).exists():
            state = package.output_state(layout.output)
            assert state is not None
            assert state.done or state.complete, at  # it is back unless something of the new one is done
        try:
            package.scale(source, layout.output, **layout.new)
        except OutputExistsError:  # the old one is there, which the same command does not replace
            assert snapshot(layout.output) == old
            assert package.output_state(layout.output) == done, at
            package.scale(source, layout.output, overwrite=True, **layout.new)
        assert layout.is_new(), at
        assert not layout.folder.exists(), at
        shutil.rmtree(layout.output)
    raise AssertionError("it never ended")


def test_now_deletes_the_old_output_first(layout: Layout, source: Path) -> None:
    """And what is kept of an earlier attempt."""
    layout.make(source)
    seen: list[list[str]] = []

    def look(event: Event) -> None:
        if isinstance(event, BlockDone):
            seen.append(sorted(path.name for path in layout.folder.iterdir()))

    with pytest.raises(JobError):
        package.scale(source, layout.output, overwrite=True, listeners=[stop_after()], **layout.options)
    package.scale(source, layout.output, overwrite="now", listeners=[look], **layout.new)
    assert seen
    assert not any(REPLACED in names or DISCARDED in names for names in seen)
    assert layout.is_new()


@pytest.mark.parametrize("whose", ["isovoxel's", "another program's"])
def test_another_image_at_its_place_is_not_lost_either(whose: str, source: Path, tmp_path: Path) -> None:
    """Where a user has put one there meanwhile, both are named, and neither is touched."""
    layout = Layout(tmp_path / "out.zarr")
    layout.make(source)
    with pytest.raises(JobError):
        package.scale(source, layout.output, overwrite=True, listeners=[stop_after()], **layout.new)
    shutil.rmtree(layout.output)
    package.scale(source, tmp_path / "other.zarr", **OPTIONS)
    (tmp_path / "other.zarr").rename(layout.output)
    if whose == "another program's":
        metadata = json.loads((layout.output / "zarr.json").read_text())
        del metadata["attributes"]["isovoxel"]
        (layout.output / "zarr.json").write_text(json.dumps(metadata))
    lock = layout.folder / LOCK  # which is isovoxel's, and touched
    before = snapshot(tmp_path, lock)
    with pytest.raises(OutputError, match=r"holds an old output that was never replaced, and another one is at"):
        package.scale(source, layout.output, overwrite=True, **layout.new)
    with contextlib.suppress(OutputExistsError):
        package.scale(source, layout.output, **OPTIONS)
    assert snapshot(tmp_path, lock) == before


def test_a_disk_without_room_for_both_is_refused_with_the_numbers(
    source: Path, tmp_path: Path, isovoxel: Isovoxel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is touched then; with the explicit word, what the old one takes is counted as free."""
    layout = Layout(tmp_path / "out.zarr")
    layout.make(source)
    before = snapshot(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda *_: usage)
    words = ("scale", source, layout.output, "--factor", "1,1,2", "--engine", "exact", "--levels", 0, "--quiet")
    check_refused(
        isovoxel(*words, "--overwrite"), "which is kept until the new one is complete; make room, or say --over"
    )
    assert snapshot(tmp_path) == before
    assert isovoxel(*words, "--overwrite", "now").code == 0
    assert layout.is_new()


def test_what_overwrite_may_be(source: Path, tmp_path: Path) -> None:
    """In Python, True, False and "now"."""
    for wrong in ("later", "yes", None, 2):
        with pytest.raises(OptionError, match="overwrite must be True, False or 'now', not"):
            package.scale(source, tmp_path / "out.zarr", overwrite=wrong, **OPTIONS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (["--overwrite", "IN", "OUT"], True),
        (["IN", "--overwrite", "OUT"], True),
        (["IN", "OUT", "--overwrite"], True),
        (["--overwrite", "now", "IN", "OUT"], "now"),
        (["IN", "OUT", "--overwrite", "now", "--quiet"], "now"),
        (["--overwrite=now", "IN", "OUT"], "now"),
        (["--overwrite", "--", "IN", "OUT"], True),
        (["IN", "OUT"], False),
    ],
)
@pytest.mark.parametrize("command", ["scale", "convert"])
def test_the_option_has_a_value_or_none(
    command: str, words: list[str], given: Any, isovoxel: Isovoxel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one it takes no word that is meant for another."""
    told: dict[str, Any] = {}

    def listen(source: str, output: str, **options: Any) -> Any:
        told.update(options, source=source, output=output)
        raise OptionError("enough")

    monkeypatch.setattr(f"isovoxel.api.{command}", listen)
    assert isovoxel(command, *words).err == "error: enough\n"
    assert (told["source"], told["output"], told["overwrite"]) == ("IN", "OUT", given)


def test_another_value_is_refused(isovoxel: Isovoxel) -> None:
    """And it stands in no job file."""
    check_refused(isovoxel("scale", "IN", "OUT", "--overwrite=later"), "'later' is not now, the one word that it takes")
