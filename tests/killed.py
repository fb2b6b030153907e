"""Kill a job at random moments, let it go on each time, and tell what came of it: for `tests/test_resume.py`.

Run as a program, for it forks: a child that has all libraries loaded, and no device yet, starts in no time.

Arguments: engine, halo mode, folder, how many kills, and "labels" to write OME-Zarr 0.4 as labels of an image.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import dask.array  # noqa: F401 - loaded here once, not in every child
import numpy as np
import zarr

import isovoxel
from isovoxel.execution.events import BlockDone, Event, JobStarted
from isovoxel.execution.output import output_state
from isovoxel.output.ledger import Ledger, ledger_of

if sys.argv[1:2] == ["cle"]:
    import pyclesperanto_prototype  # noqa: F401

EARLY = 0.2
"""How many of the kills come before the first block is begun."""

OPTIONS: dict[str, Any] = {
    "factor": (2.0, 1.3, 1.0),
    "chunk": (8, 8, 8),
    "shard": (16, 16, 16),
    "threads": 3,
}
LABELS: dict[str, Any] = {"ome_zarr": "0.4", "labels": True, "chunk": (16, 16, 16), "shard": None}


def attempt(source: Path, out: Path, log: Path, options: dict[str, Any]) -> int:
    """Run the job in a child, and return its process number; it appends to a log which blocks it has done."""
    child = os.fork()
    if child:
        return child
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(event: Event) -> None:
        if isinstance(event, JobStarted):
            os.write(descriptor, f"began {event.plan.n_blocks} {event.plan.halo_mode} {time.monotonic()}\n".encode())
        if isinstance(event, BlockDone):
            os.write(descriptor, f"done {event.index}\n".encode())

    try:
        isovoxel.scale(source, out, listeners=[note], **options)
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 - the parent tells
        os.write(descriptor, f"failed {error!r}\n".encode())
        os._exit(1)


def digest(out: Path) -> dict[str, str]:
    """Return a hash of every file of an output but its metadata, which name the job's end."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ("zarr.json", ".zgroup", ".zarray", ".zattrs")
    }


def noted(out: Path) -> set[int]:
    """Return the blocks that the ledger has."""
    ledger = Ledger.read(ledger_of(out))
    if ledger is None:
        return set()
    return {index for index, done in enumerate(ledger.done(lambda *_: True)) if done}


def main(engine: str, halo: str, folder: Path, kills: int, kind: str = "") -> dict[str, Any]:
    """Kill the job so many times, whenever it is complete begin it anew, and return what happened."""
    rng = np.random.default_rng(len(engine) * len(halo))
    source, out, log = folder / "in.npy", folder / "out.zarr", folder / "log"
    voxels = np.random.default_rng(0).integers(0, 65536, (32, 50, 64)).astype(np.uint16)
    voxels[:, 20:40] = 0  # of which some shards hold nothing else, and are no files
    np.save(source, voxels)
    room = {"cle": "80kB", "exact": "30kB"}[engine]  # on the device, for a shard
    options = OPTIONS | {"engine": engine, "halo": halo, "input_voxel_size": (1.0, 1.0, 1.0), "device_memory": room}
    if kind == "labels":
        zarr.create_group(folder / "image.zarr", zarr_format=2, attributes={"multiscales": [{}]})
        out, options = folder / "image.zarr" / "labels" / "out", options | LABELS
    for whole in ("first.zarr", "whole.zarr"):  # the first one compiles kernels, which PoCL keeps
        began = time.monotonic()
        _, status = os.waitpid(attempt(source, folder / whole, log, options), 0)
        assert status == 0, log.read_text()
        undisturbed = time.monotonic() - began
        at_work = time.monotonic() - float(log.read_text().split()[3])
        log.unlink()
    expected = digest(folder / "whole.zarr")
    said = {"blocks": 0, "killed": 0, "went_on": 0, "complete": 0, "wrong": 0, "redone": 0, "lost": 0}
    modes = set()
    while said["killed"] < kills or out.exists() or not said["complete"]:
        done = noted(out)
        log.write_text("")
        child = attempt(source, out, log, options)
        if said["killed"] < kills:
            if rng.random() < EARLY:
                time.sleep(rng.uniform(0, undisturbed - at_work))
            else:
                while not log.read_text() and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                    time.sleep(0.001)
                time.sleep(rng.uniform(0, at_work))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        lines = [line.split() for line in log.read_text().splitlines()]
        assert not any(line[0] == "failed" for line in lines), lines
        said["redone"] += len(done & {int(line[1]) for line in lines if line[0] == "done"})
        for _, blocks, mode, _ in (line for line in lines if line[0] == "began"):
            said["blocks"] = int(blocks)
            said["went_on"] += bool(done)
            modes.add(mode)
        if status == 0:
            said["complete"] += 1
            said["wrong"] += digest(out) != expected or ledger_of(out).exists()
            shutil.rmtree(out)
        else:
            said["killed"] += 1
            state = output_state(out)
            said["lost"] += not (done <= noted(out) or (state is not None and state.complete))
    return said | {"modes": sorted(modes), "seconds": [undisturbed, at_work]}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:])))
