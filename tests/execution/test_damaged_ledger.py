"""Whatever becomes of a ledger or of an output's attributes: no traceback, and no block is believed done that is not.

Bytes are changed anywhere, and values inside valid JSON, their types and magnitudes too. `MUTATIONS=10000` in the
environment makes 10,000 of them in each test, which takes 2 minutes of a core.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import isovoxel
from isovoxel.errors import InputError, IsovoxelError, JobError, OutputError
from isovoxel.execution import job as running
from isovoxel.execution.output import OutputRequest, _find, is_made_already, output_state
from isovoxel.execution.recipe import Recipe
from isovoxel.output.attempt import Holder
from isovoxel.output.files import BLOCKS, JOB
from isovoxel.output.ledger import Ledger, ledger_of
from isovoxel.output.provenance import read_provenance
from isovoxel.output.writer import OmeZarrWriter
from isovoxel.planning.plan import Plan
from isovoxel.planning.resume import makes_the_same
from small_jobs import OPTIONS as SMALL
from small_jobs import stop_after

MUTATIONS = int(os.environ.get("MUTATIONS", "120"))
BATCHES = 4
VALUES = [
    *(0, 1, -1, 2, 7, 2**31, 2**63, 2**70, 10**400, 0.5, 1.0, 1e308, True, False, None, "", "x", "é\ud800"),
    *([], {}, [1], [[1, 2, 3]], {"block": 1}, "level", "exact", "cle", "mode"),
]
TEXTS = [
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "[" * 100_000,
    '{"a":' * 100_000,
    "1" * 5000,
    "\\",
    '"',
    "\x00",
    "\ufeff",
]
OPTIONS: dict[str, Any] = SMALL | {"input_voxel_size": (1.0, 0.5, 0.5), "levels": 1}
SHAPE = (16, 20, 18)


def one_sentence(error: IsovoxelError, *, ends: bool = True) -> None:
    """Check that an error is one, where a job may end with one."""
    assert ends, error
    assert "\n" not in str(error)


class Job:
    """A job that stopped half-way, of which some shards are gone or torn since, and what it should have made."""

    def __init__(self, folder: Path) -> None:
        self.source, self.out, self.whole = folder / "in.npy", folder / "out.zarr", folder / "whole.zarr"
        # Many shards are alike, to the byte, and some are empty.
        np.save(self.source, np.where(np.indices(SHAPE)[2] < 8, 0, 37 + np.indices(SHAPE)[1]).astype(np.uint16))
        isovoxel.scale(self.source, self.whole, **OPTIONS)
        with pytest.raises(JobError):
            isovoxel.scale(self.source, self.out, listeners=[stop_after(8)], **OPTIONS)
        self.folder = Path(str(ledger_of(self.out)))
        shards = sorted(path for path in (self.out / "0/c").rglob("*") if path.is_file())
        shards[0].unlink()
        shards[-1].write_bytes(shards[-1].read_bytes()[:-1])
        self.job, self.blocks = (self.folder / JOB).read_bytes(), (self.folder / BLOCKS).read_bytes()
        self.metadata = (self.out / "zarr.json").read_bytes()
        self.finished = (self.whole / "zarr.json").read_bytes()
        self.plan, self.wanted = self._asked()

    def _asked(self) -> tuple[Plan, OutputRequest]:
        """Return what the same command asks for."""
        found: list[tuple[Plan, OutputRequest]] = []

        def take(self: running.Job, _: Any) -> Any:
            found.append((self.plan, self.output))
            raise KeyError(self.output.path)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(running.Job, "run", take)
            with pytest.raises(KeyError):
                isovoxel.scale(self.source, self.out, **OPTIONS)
        return found[0]

    def restore(self) -> None:
        """Let all files be as they were."""
        (self.folder / JOB).write_bytes(self.job)
        (self.folder / BLOCKS).write_bytes(self.blocks)
        (self.out / "zarr.json").write_bytes(self.metadata)
        (self.whole / "zarr.json").write_bytes(self.finished)

    def check(self, ledger: Ledger, plan: Plan) -> bytearray:
        """Check that what a ledger says is done is there, byte for byte."""
        levels = plan.levels
        writers = [OmeZarrWriter.of_plan(self.out, level, helpers=0) for level in levels]
        done = ledger.done(
            lambda level, index, seals: writers[level].holds(levels[level].block(index).write_box, seals)
        )
        for level, part in zip(levels, plan.split(done), strict=True):
            for index in (i for i, is_done in enumerate(part) if is_done):
                for shard in level.block(index).write_box.tiles(level.storage.shard):
                    place = "/".join(str(a // n) for a, n in zip(shard.start, level.storage.shard, strict=True))
                    there, right = (home / str(level.level) / "c" / place for home in (self.out, self.whole))
                    assert there.exists() == right.exists()  # a shard that is empty is no file
                    assert not right.exists() or there.read_bytes() == right.read_bytes()
        return done

    def found(self) -> tuple[Plan | None, Ledger | None]:
        """Return how the same command would go on; nothing where it says in a sentence why it does not."""
        output_state(self.out)
        try:
            return _find(self.plan, self.wanted)
        except IsovoxelError as error:
            one_sentence(error)
            return None, None

    def goes_on(self) -> tuple[Plan, Ledger]:
        """Return how the same command goes on, which it has to."""
        plan, ledger = self.found()
        assert plan is not None
        assert ledger is not None
        return plan, ledger


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job for all tests, which do not change what it has written."""
    return Job(tmp_path_factory.mktemp("job"))


@pytest.fixture(autouse=True)
def _restored(job: Job) -> Iterator[None]:
    yield
    job.restore()


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place in JSON: what holds it, and its key there."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from places(item)


def with_another_value(rng: random.Random, text: bytes) -> bytes:
    """Return JSON in which a value is another, or another one's, gone, or of a text that no value has."""
    value = json.loads(text)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if not (all_places := list(places(value))):
            return b"0"
        holder, key = rng.choice(all_places)
        held = holder[key]
        match rng.randrange(7):
            case 0:
                del holder[key]
            case 1:
                holder[key] = copy.deepcopy(rng.choice([other[name] for other, name in all_places]))
            case 2 if isinstance(held, int | float) and abs(held) < 1e300:
                holder[key] = rng.choice([-held, held + 1, held - 1, held * 2, held * 2**40, held / 2, float(held)])
            case 3:
                return json.dumps(_marked(value, holder, key)).encode().replace(b'"MARK"', rng.choice(TEXTS).encode())
            case 4 if isinstance(holder, dict):
                holder[str(rng.choice(VALUES))] = holder.pop(key)
            case _:
                holder[key] = copy.deepcopy(rng.choice(VALUES))
    return json.dumps(value).encode()


def _marked(value: Any, holder: Any, key: Any) -> Any:
    holder[key] = "MARK"
    return value


def with_other_bytes(rng: random.Random, text: bytes) -> bytes:
    """Return bytes of which some are others, gone, new, or there twice."""
    at, n = rng.randrange(len(text) + 1), rng.choice([1, 1, 2, 8, 100])
    match rng.randrange(4):
        case 0:
            return text[:at] + rng.randbytes(n) + text[at + n :]
        case 1:
            return text[:at] + text[at + n :]
        case 2:
            return text[:at] + rng.choice([rng.randbytes(n), rng.choice(TEXTS).encode(), b"\n", b"0"]) + text[at:]
    return text[:at] + text[at - n : at + n] + text[at:]


def mutated(rng: random.Random, text: bytes) -> bytes:
    """Return JSON that is changed in one way or the other."""
    return rng.choice([with_another_value, with_other_bytes])(rng, text)


def mutated_lines(rng: random.Random, text: bytes) -> bytes:
    """Return lines of which some are changed, gone, in another order, or there twice."""
    whole = text.splitlines(keepends=True)
    lines = list(whole)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(len(lines))
        match rng.randrange(6):
            case 0:
                lines.insert(rng.randrange(len(lines)), lines[at])
            case 1:
                rng.shuffle(lines)
            case 2:
                lines[at] = with_other_bytes(rng, lines[at])
            case _ if lines[at] in whole:
                lines[at] = with_another_value(rng, lines[at]) + b"\n"
    return b"".join(lines)


def batch(number: int, test: str) -> Iterator[random.Random]:
    """Yield a generator for each mutation of a batch, the same ones each time."""
    for index in range(number, MUTATIONS, BATCHES):
        yield random.Random(f"{test} {index}")  # noqa: S311 - not a secret


@pytest.mark.sampled(2)
@pytest.mark.parametrize("number", range(BATCHES))
def test_damaged_lines_are_blocks_to_do_again(job: Job, number: int) -> None:
    """And those of other lines count."""
    plan, ledger = job.goes_on()
    full = job.check(ledger, plan)
    assert 0 < sum(full) < sum(ledger.noted()) < len(full)
    for rng in batch(number, "lines"):
        (job.folder / BLOCKS).write_bytes(mutated_lines(rng, job.blocks))
        plan, ledger = job.goes_on()
        done = job.check(ledger, plan)
        assert all(a <= b for a, b in zip(done, full, strict=True))


@pytest.mark.parametrize("number", range(BATCHES))
def test_a_damaged_plan_is_none_or_the_same(job: Job, number: int) -> None:
    """A job goes on by the plan that it was begun by, or is refused in one sentence."""
    for rng in batch(number, "plan"):
        (job.folder / JOB).write_bytes(mutated(rng, job.job))
        plan, ledger = job.found()
        if plan is not None and ledger is not None:
            assert makes_the_same(plan, job.plan)
            assert sum(level.write_box.size for level in plan.blocks()) == np.prod(plan.output.shape)
            job.check(ledger, plan)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("number", range(BATCHES))
def test_damaged_attributes_of_a_job_are_refused(job: Job, number: int) -> None:
    """Or are not those that say how it is made."""
    for rng in batch(number, "attributes"):
        (job.out / "zarr.json").write_bytes(mutated(rng, job.metadata))
        plan, ledger = job.found()
        if plan is not None and ledger is not None:
            assert makes_the_same(plan, job.plan)
            job.check(ledger, plan)


@pytest.mark.parametrize("number", range(BATCHES))
def test_damaged_attributes_of_an_output_are_one_sentence(job: Job, number: int) -> None:
    """For whoever asks how it was made, and for the same command."""
    wanted = replace(job.wanted, path=job.whole)
    for rng in batch(number, "finished"):
        (job.whole / "zarr.json").write_bytes(mutated(rng, job.finished))
        output_state(job.whole)
        try:
            Recipe.from_provenance(read_provenance(job.whole), "whole.zarr")
        except InputError as error:
            one_sentence(error)
        try:
            is_made_already(wanted)
        except OutputError as error:
            one_sentence(error)


def test_a_holder_is_named_or_not() -> None:
    """Whatever a lock's file holds."""
    text = json.dumps({"host": "here", "pid": 3, "began": 1.5, "since": "now"}).encode()
    for index in range(MUTATIONS):
        Holder.from_json(mutated(random.Random(index), text))  # noqa: S311


@pytest.mark.sampled(2)
@pytest.mark.parametrize("index", range(12))
def test_a_damaged_job_ends_with_the_right_voxels_or_one_sentence(job: Job, tmp_path: Path, index: int) -> None:
    """From its beginning to its end, whichever file was damaged."""
    rng = random.Random(index)  # noqa: S311
    for name in ("out.zarr", "out.zarr.isovoxel"):
        shutil.copytree(job.out.with_name(name), tmp_path / name)
    file, change = [
        (f"out.zarr.isovoxel/{BLOCKS}", mutated_lines),
        (f"out.zarr.isovoxel/{JOB}", with_another_value),
        ("out.zarr/zarr.json", with_another_value),
    ][index % 3]
    (tmp_path / file).write_bytes(change(rng, (tmp_path / file).read_bytes()))
    try:
        isovoxel.scale(job.source, tmp_path / "out.zarr", **OPTIONS)
    except IsovoxelError as error:
        one_sentence(error, ends=index % 3 != 0)
    else:
        for shard in (job.whole / "0/c").rglob("*"):
            if shard.is_file():
                assert (tmp_path / "out.zarr" / shard.relative_to(job.whole)).read_bytes() == shard.read_bytes()
