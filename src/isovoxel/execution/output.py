"""Start, resume or refuse a job, by what is at the output path.

========================  =================================================================================
nothing                   it is begun
an output, complete       nothing is left to do, if it was made the same way; else it is refused
an output with a ledger   the job goes on, if it was begun the same way; else it is refused
anything else             refused; `overwrite` replaces an output, see `isovoxel.output.replacing`
========================  =================================================================================

One process at a time may write an output: it holds the lock in the ledger's folder from before the first change to
after the last.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from isovoxel.errors import (
    InputError,
    InputUnavailableError,
    InterruptedJobError,
    IsovoxelError,
    JobError,
    OutputBusyError,
    OutputError,
    OutputExistsError,
)
from isovoxel.execution.events import started
from isovoxel.execution.executor import kept
from isovoxel.execution.flushing import FLUSHING
from isovoxel.execution.recipe import as_called_then, asked_otherwise, differences, made_with
from isovoxel.object_store.objects import Place, absolute, place_of
from isovoxel.options import HOW_FAR, Options
from isovoxel.output.attempt import Attempt, end_attempt, end_attempts
from isovoxel.output.destination import check_destination
from isovoxel.output.files import BLOCKS, JOB, LOCK, REPLACED, SAVED, check_folder, read_own
from isovoxel.output.ledger import Ledger, count_empty, ledger_of, remove_ledger
from isovoxel.output.lock import lock_output, read_holder
from isovoxel.output.provenance import LABELS, RECEIPTS, made_by
from isovoxel.output.replacing import labels_of, needs_settling, put_back, settle
from isovoxel.planning.plan import Plan
from isovoxel.planning.resume import continued, makes_the_same


@dataclass(frozen=True)
class OutputState:
    """How far an output is."""

    complete: bool
    """Whether it is there as a whole."""
    done: int = 0
    """Blocks that are done, of all levels."""
    blocks: int = 0
    """Blocks of the job; 0 where nobody knows any more."""
    holder: str = ""
    """Who is writing it: a process, its host, and since when."""
    empty: int = 0
    """Shards of a complete one that are empty, and so no files."""


@dataclass(frozen=True)
class Whole:
    """The image that a job makes, alone or with labels beside it: what --overwrite replaces as a whole."""

    image: Place
    """Where."""
    labels: str = ""
    """What the labels are called that are made with it, if any."""

    @property
    def lost(self) -> str:
        """The paths in it of labels that go with an old output and are not made again; nothing where there are none."""
        with contextlib.suppress(OSError):  # whose reason is told by what writes
            return ", ".join(path for path in labels_of(self.image) if path != f"{LABELS}/{self.labels}")
        return ""

    def called(self, path: Place) -> Mapping[str, str]:
        """Return what people call options that an output was made with, where labels have others than their image."""
        return {} if path == self.image else {"interpolation": "--labels-by"}


@dataclass(frozen=True)
class OutputRequest:
    """The output that a user asks for."""

    path: Place
    """Where."""
    whole: Whole
    """Which is the output itself, or the image that has it for its labels."""
    made: Mapping[str, Any]
    """What makes it, for its attributes."""
    labels: bool
    """Whether its voxels are labels."""
    overwrite: bool | str
    """Whether an output that is there is replaced; "now" if it goes before the new one is begun."""
    cut: tuple[str, ...] = ()
    """"chunk", "shard" or both, where the user asks for certain ones."""
    said: str = "factor"
    """The option that says how far: "zoom", "voxel_size" or "factor"."""
    folder: Place = field(init=False)
    """The ledger's."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", ledger_of(self.path))


@dataclass
class OutputClaim:
    """An output whose lock this process holds."""

    plan: Plan
    """How it is made: where the job goes on, with the blocks that it was begun with."""
    ledger: Ledger | None
    """What of it is done, where the job goes on."""
    attempt: Attempt
    """The hold of the lock."""


def output_state(path: str | os.PathLike[str]) -> OutputState | None:
    """Return how far an output is, or None where it is none of isovoxel's."""
    place = place_of(path)
    made = made_by(place)
    if made is None:
        return None
    if made.get("complete"):
        return OutputState(complete=True, empty=count_empty(made))
    folder = ledger_of(place)
    holder = str(read_holder(folder / LOCK) or "")
    if (ledger := _ledger(folder, made)) is None:
        return OutputState(complete=False, holder=holder)
    return OutputState(complete=False, done=ledger.count(), blocks=ledger.plan.all_blocks, holder=holder)


def is_made_already(request: OutputRequest) -> bool:
    """Return whether the output is there already, made the same way; then its ledger goes, should one be left.

    Raises
    ------
    OutputExistsError
        If it is there, made another way.
    """
    if request.overwrite:
        return False
    with contextlib.suppress(OutputError):  # of a process that is at it, or a folder that is not ours
        settle_output(request.path, request.folder)
    if not _is_made(request):
        return False
    folder = request.folder
    # Of a process that died between its last two steps.
    left = folder.exists() if isinstance(folder, Path) else folder.is_dir()
    if left and not getattr(folder, "read_only", False):
        with contextlib.suppress(OutputError), lock_output(folder / LOCK, request.path):
            clear_ledger(request.path, folder)
    return True


def _is_made(request: OutputRequest) -> bool:
    """Tell whether what is at its place is complete and made as is wanted; raise where it was made another way."""
    made = made_by(request.path)
    if made is None or not made["complete"]:
        return False
    _check_made(request, made)
    return True


def _check_made(request: OutputRequest, made: Mapping[str, Any]) -> None:
    """Raise where an output was made, or begun, in another way than is wanted."""
    called = request.whole.called(request.path)
    if changed := differences(made, request.made, request.cut, said=request.said, called=called):
        raise made_otherwise(request.path, made, changed, request.whole)


def made_otherwise(path: Place, made: Mapping[str, Any], changed: Sequence[str], whole: Whole) -> OutputExistsError:
    """Return the error that says what made an output, what the user asks for now, and what replacing it removes."""
    effects = [f"makes {whole.image} anew"] if path != whole.image else []
    if lost := whole.lost:
        effects.append(f"removes {lost}")
    which = f", which {' and '.join(effects)}," if effects else ""
    if made.get("complete"):
        return OutputExistsError(
            f"{path} exists, and was made with {'; '.join(changed)}: give --overwrite{which} or another output"
        )
    return OutputExistsError(
        f"{path} was begun with {'; '.join(changed)}: give what it was begun with to go on, "
        f"--overwrite{which} to begin anew, or another output"
    )


def foresee(plan: Plan, request: OutputRequest) -> tuple[Plan, str]:
    """Return how an output would be made, or gone on with, and what is there of it; nothing is changed or written.

    Returns
    -------
    plan, note
        The plan, with the blocks that a job was begun with which would go on; and what would be done, as a clause,
        empty where the output would be new.

    Raises
    ------
    OutputError, DoesNotFitError
        As `claim_output` does, and `is_made_already`.
    """
    path, folder = request.path, request.folder
    if not request.overwrite and _is_made(request):
        return plan, f"{path} is complete, and was made in this way: nothing is left to do"
    if holder := read_holder(folder / LOCK):
        raise OutputBusyError(f"{path} is being written by {holder}; wait for it, end it, or give another output")
    gone = isinstance(path, Path) and isinstance(folder, Path) and not os.path.lexists(path)
    if gone and os.path.lexists(str(folder / REPLACED)) and not request.overwrite:
        raise OutputExistsError(
            f"{folder / REPLACED} is an old output of {path}, and comes back; give --overwrite or another output"
        )
    plan, ledger = _find(plan, request)
    if ledger is not None:
        noted, total = ledger.count(), plan.all_blocks
        return plan, f"{noted} of {total} blocks of {path} are done: the job would go on"
    there = os.path.lexists(path) if isinstance(path, Path) else path.is_dir()
    lost = f", and with it {request.whole.lost}" if request.whole.lost else ""
    return plan, f"{path} would be replaced{lost}" if there else ""


@contextlib.contextmanager
def claim_output(plan: Plan, request: OutputRequest) -> Iterator[OutputClaim]:
    """Hold the output for this process, and say how to go on with it; nothing of it is changed here.

    Raises
    ------
    OutputError
        If it must not or cannot be written, was begun in another way, or is being written by another process.
    DoesNotFitError
        If the blocks that it was begun with do not fit any more.
    """
    folder = request.folder
    _find(plan, request)  # before anything is written, the lock's file too
    with lock_output(folder / LOCK, request.path) as lock:
        attempt = Attempt(absolute(folder / LOCK), lock.word, request.path)
        claim: OutputClaim | None = None
        ours = False
        try:
            settle_output(request.path, folder, locked=True)
            try:
                plan, ledger = _find(plan, request)
                claim = OutputClaim(plan, ledger, attempt)
                yield claim
            finally:
                ours = end_hold(request.path, attempt)
        except (IsovoxelError, InterruptedJobError) as error:
            if ours and claim is not None and _put_back(request.path, folder):
                _tell_that_it_is_back(error, claim.plan, request.path)
            raise
        finally:
            with contextlib.suppress(InputUnavailableError, OutputError):  # the next process knows what is left to do
                if ours:
                    settle_output(request.path, folder, locked=True)
                    clear_ledger(request.path, folder)


def end_hold(path: Place, attempt: Attempt) -> bool:
    """Let no thread or worker that may still be at work write anything, before the lock is given back.

    Returns
    -------
    bool
        Whether the lock is held: False where another process has taken it over, or nobody can tell.
    """
    held = False
    with contextlib.suppress(OSError):
        attempt.check()
        held = True
    end_attempt(attempt.word)
    if isinstance(path, Path):
        with contextlib.suppress(OSError):  # who takes the lock next does so as well
            end_attempts(path, attempt)
    return held


def clear_ledger(path: Place, folder: Place) -> None:
    """Remove the ledger where nothing was begun, or nothing is left to do; not one that keeps an old output."""
    kept_here = isinstance(folder, Path) and os.path.lexists(folder / REPLACED)
    if not kept_here and ((made := made_by(path)) is None or made.get("complete")):
        remove_ledger(folder, receipts=made is not None and made.get(RECEIPTS) is True)


def settle_output(path: Place, folder: Place, *, locked: bool = False) -> None:
    """Put an old output back whose replacement a process had begun that died before the new one was there."""
    if not isinstance(path, Path) or not isinstance(folder, Path):
        return
    if any(os.path.lexists(folder / name) for name in (REPLACED, *SAVED.values())) and needs_settling(path, folder):
        check_folder(folder)
        with contextlib.nullcontext() if locked else lock_output(folder / LOCK, path):
            try:
                settle(path, folder)
            except OSError as error:
                raise OutputError(f"{folder / REPLACED} cannot be put back: {error.strerror or error}") from error


def _put_back(path: Place, folder: Place) -> bool:
    """Put an old output back where nothing is done of the one that replaces it; return whether one is back."""
    if not isinstance(path, Path) or not isinstance(folder, Path):
        return False
    with contextlib.suppress(OSError):  # the next process tries it again
        ledger = Ledger.read(folder)
        nothing = not (folder / BLOCKS).exists() if ledger is None else not any(ledger.noted())
        return nothing and put_back(path, folder)
    return False


def _tell_that_it_is_back(error: IsovoxelError | InterruptedJobError, plan: Plan, path: Place) -> None:
    """Say in an error, in place of how the new output is gone on with, that the old one is back."""
    if not isinstance(error, JobError | InterruptedJobError):
        return
    nothing = f"; {kept(plan, ())}"
    text = str(error).removesuffix(nothing)
    error.args = (f"{text}; nothing of the new output was done, so the old one is back at {path}", *error.args[1:])
    if isinstance(error, InterruptedJobError):
        error.goes_on = False


def _find(plan: Plan, request: OutputRequest) -> tuple[Plan, Ledger | None]:
    """Return how to begin, or to go on with what ledger; raise where neither may be."""
    path, folder = request.path, request.folder
    made = None if request.overwrite else made_by(path)
    check = partial(check_destination, path, ome_zarr=plan.storage.ome_zarr, labels=request.labels)
    if made is None or made.get("complete"):
        check(overwrite=request.overwrite, nbytes=plan.disk_bytes, waiting=waiting_bytes(plan))
        return plan, None
    _check_made(request, made)
    if (ledger := _ledger(folder, made)) is None:
        why = f"{folder / JOB} is damaged, or of another output" if has_ledger(folder) else f"{folder} is not there"
        raise OutputExistsError(
            f"{path} is not complete, and what of it is done is not known, for {why}; "
            "give --overwrite to begin anew, or another output"
        )
    if not makes_the_same(ledger.plan, plan):
        raise OutputExistsError(
            f"{path} is not complete, and its attributes are not those that its job was begun with; give --overwrite "
            "to begin anew, or another output"
        )
    left = 1 - started(ledger.plan, ledger.noted()).voxels_done / ledger.plan.all_voxels
    waiting = waiting_bytes(ledger.plan)
    check(overwrite=False, nbytes=int(left * plan.disk_bytes), waiting=waiting, goes_on=True)
    return continued(ledger.plan, plan), ledger


def has_ledger(folder: Place) -> bool:
    """Return whether a ledger's plan is there.

    Raises
    ------
    OutputError
        If that is not known, which is no reason to begin anew.
    """
    try:
        check_folder(folder)
        read_own(folder / JOB)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{folder} cannot be read: {error.strerror or error}") from error
    return True


def waiting_bytes(plan: Plan) -> int:
    """Return the bytes of all voxels that are encoded and wait until they are where they belong, at a time."""
    return max(
        (1 + FLUSHING) * level.in_flight * math.prod(level.block_shape) * level.source.itemsize for level in plan.levels
    )


def _ledger(folder: Place, made: Mapping[str, Any]) -> Ledger | None:
    """Return the ledger of an output, or None where it is gone or another's."""
    ledger = Ledger.read(folder)
    return ledger if ledger is not None and ledger.plan.fingerprint == made.get("fingerprint") else None


def as_begun(
    output: str | Path,
    given: Options,
    *,
    defaults: Mapping[str, Any] | None = None,
    here: bool = True,
    whole: Whole | None = None,
) -> Options:
    """Return the options of a job: what is given, and else what its output was made with, if it is there.

    Defaults may be others in a later version, on another machine, or for another command; they are for new outputs
    only. What an output was made with stands in its attributes. What is given is compared with it, and refused where
    it differs.

    Parameters
    ----------
    output
        Path or address of the output.
    given
        Options that the user gives.
    defaults
        What the command does where nothing is given, and nothing is there.
    here
        Whether a device of this process does it.
    whole
        What --overwrite would replace; by default the output.

    Raises
    ------
    OutputExistsError
        If something is given that differs.
    """
    place = place_of(output)
    made = None if given.overwrite else made_by(place)
    if made is None:
        return given.filled(defaults) if defaults else given
    try:
        was = made_with(made, str(output))
    except InputError as error:
        raise OutputExistsError(f"{error}; give --overwrite or another output") from error
    given = replace(given, codec=as_called_then(made, given.codec))
    whole = whole or Whole(place)
    if changed := asked_otherwise(was, given.given, whole.called(place)):
        raise made_otherwise(place, made, changed, whole)
    if not given.given.keys().isdisjoint(HOW_FAR):
        for name in ("factor", "like"):
            was.pop(name, None)
    options = given.filled({**(defaults or {}), **was})
    if here and options.engine == "cle" and options.or_new("device") == "auto":
        from isovoxel.engines.devices import list_devices

        # Its bits depend on the device.
        same = [str(device.index) for device in list_devices() if device.name == made["device"]["name"]]
        return replace(options, device=same[0]) if same else options
    return options
