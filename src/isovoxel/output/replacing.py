"""Replace an old output on a disk: keep it in the ledger's folder until its successor is complete.

1. `set_aside` renames the old output to `replaced` in that folder. One that was not complete takes along what was done
   of it: `job.json` and `blocks`, as `replaced.job.json` and `replaced.blocks`.
2. The new output is made at its place. When it is complete, the ledger goes, and with it what was replaced.
3. `settle` puts the old one back where the process died before the new one was there. `put_back` does so where the job
   fails before its first block.

Each step is a rename, so the old output is whole at every moment, at one place or the other. Of several attempts to
replace it, the first one's `replaced` stays: those that came between were never complete. What must go at once, since
the user said so or since it is such an attempt, is renamed to `discarded` first, and deleted there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from isovoxel.errors import OutputError
from isovoxel.object_store.addresses import Place
from isovoxel.object_store.files import sync_folder
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.object_store.zarr_nodes import read_attributes
from isovoxel.output.image_contents import check_image
from isovoxel.output.ledger_folder import BLOCKS, DISCARDED, JOB, REPLACED, SAVED, discard, read_own
from isovoxel.output.membership import membership_of
from isovoxel.output.object_output import remove_objects
from isovoxel.output.provenance import has_receipts, is_complete, is_unfinished, read_provenance
from isovoxel.planning.serialization import plan_from_json


def check_kept(target: Path, folder: Path) -> None:
    """Raise an `OutputError` where an output would have to be set aside and another one is kept already."""
    if os.path.lexists(folder / REPLACED) and os.path.lexists(target) and not is_unfinished(target):
        raise OutputError(
            f"{folder / REPLACED} holds an old output that was never replaced, and another one is at {target}; "
            "move one of them away"
        )


def set_aside(target: Place, folder: Place, *, now: bool, check: Callable[[], None] = lambda: None) -> None:
    """Take an old output, if there is one, out of its place, and forget what groups above say of it in one piece.

    Parameters
    ----------
    target
        Its place.
    folder
        The ledger's, which has no plan of the old output any more, see `save_ledger`.
    now
        Whether it is deleted, and so is what was kept before; in an object store it always is.
    check
        Raises where another process has taken the output over; asked before each step.

    Raises
    ------
    OutputError
        If it is no image, or something else lies in it.
    OSError
        If the file system refuses; then it is at its place, or in `replaced`.
    """
    if isinstance(target, ObjectPlace) or isinstance(folder, ObjectPlace):
        if isinstance(target, ObjectPlace) and isinstance(folder, ObjectPlace):
            check()
            if (store := membership_of(target)) is not None:
                store.forget(check)
            check()
            remove_objects(target, folder / REPLACED)
        return
    shutil.rmtree(folder / DISCARDED, ignore_errors=True)
    if os.path.lexists(target):
        check_image(target)
        check_kept(target, folder)
        check()
        if (store := membership_of(target)) is not None:
            store.forget(check)
        check()
        if now or os.path.lexists(folder / REPLACED):
            discard(target, folder)
        else:
            target.rename(folder / REPLACED)
            sync_folder(folder)
    if now:
        for name in (REPLACED, *SAVED.values()):
            discard(folder / name, folder)


def save_ledger(target: Place, folder: Place) -> None:
    """Keep what is done of an output that will be set aside, or its receipts, unless an older one is kept."""
    if not isinstance(target, Path) or not isinstance(folder, Path):
        return
    if os.path.lexists(folder / REPLACED) or not os.path.lexists(folder / JOB):
        return
    if is_unfinished(target) or has_receipts(target):
        (folder / BLOCKS).touch()
        for name in (JOB, BLOCKS):
            (folder / name).replace(folder / SAVED[name])


def settle(target: Path, folder: Path) -> bool:
    """Put an old output back whose replacement has not begun, or remove it where its successor is complete.

    The process must hold the output's lock.

    Parameters
    ----------
    target, folder
        As in `set_aside`.

    Returns
    -------
    bool
        Whether an output is back at its place.
    """
    shutil.rmtree(folder / DISCARDED, ignore_errors=True)
    kept = os.path.lexists(folder / REPLACED)
    if not kept:
        return _restore_ledger(folder)  # of an output that was never moved
    if not os.path.lexists(target):
        return target.parent.is_dir() and _restore(target, folder)
    if _is_successor(target, folder):
        for name in (REPLACED, *SAVED.values()):
            discard(folder / name, folder)
    return False


def needs_settling(target: Path, folder: Path) -> bool:
    """Tell whether `settle` has something to do."""
    if not os.path.lexists(folder / REPLACED):
        return any(os.path.lexists(folder / name) for name in SAVED.values())
    return not os.path.lexists(target) or _is_successor(target, folder)


def _is_successor(target: Path, folder: Path) -> bool:
    """Tell whether an output is complete, and is the one by whose plan what is kept was replaced."""
    if not is_complete(target):
        return False
    try:
        plan = plan_from_json(read_own(folder / JOB).decode())
        return bool(plan.fingerprint == read_provenance(target).get("fingerprint"))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def put_back(target: Path, folder: Path) -> bool:
    """Put an old output back in place of a new one of which nothing is done; return False where none is kept.

    No thread and no other process may be writing the new one.
    """
    if os.path.lexists(folder / REPLACED) and is_unfinished(target):
        discard(target, folder)
    return settle(target, folder)


def _restore(target: Path, folder: Path) -> bool:
    """Move what is kept to its place, with what was done of it, and let groups above know of it again."""
    (folder / REPLACED).rename(target)
    sync_folder(target.parent)
    if not _restore_ledger(folder):
        for name in (JOB, BLOCKS):  # of the replacement
            (folder / name).unlink(missing_ok=True)
    if (store := membership_of(target)) is not None and not is_unfinished(target):
        store.announce(read_attributes(target))
    return True


def _restore_ledger(folder: Path) -> bool:
    if not os.path.lexists(folder / SAVED[JOB]):
        return False
    for name in (BLOCKS, JOB):  # the plan last: it says that this is still to be done
        if os.path.lexists(folder / SAVED[name]):
            (folder / SAVED[name]).replace(folder / name)
    return True
