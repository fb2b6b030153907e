"""Make golden jobs with the isovoxel that is installed: each command's output, finished and half-done.

    python tests/golden/make.py FOLDER

FOLDER gets an archive for each of `CASES`, of some kB: its inputs, `done` with the finished output, and `half` with
the output and the ledger of a process that died in the middle. `tests/test_golden.py` opens, verifies and finishes
them. They are made once for a release, by that release, and never again.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray

PLACE = Path("/tmp/golden")  # noqa: S108 - the path that golden outputs name
WRITTEN = 1_700_000_000
"""When inputs were written, in seconds, which an archive keeps exactly."""

_Z, _Y, _X = np.ogrid[:12, :20, :18]
WAVES: NDArray[np.float64] = np.sin(_Z / 2.0) + np.sin(_Y / 3.0) + np.sin(_X / 4.0) + 3.0
SIZES = "--input-voxel-size 1,0.5,0.5"
SMALL = "--chunk 8,8,8 --threads 2"
SHARDS = f"{SMALL} --shard 8,8,8"


@dataclass(frozen=True)
class Case:
    """A command, and when the process that runs it dies."""

    words: str
    """What stands behind "isovoxel", run in the folder of its inputs."""
    inputs: Callable[[], object]
    """Writes the inputs into the working folder."""
    dies: str = "BlockDone"
    """At which event it dies."""
    after: int = 5
    """At how many of them."""
    job: int = 1
    """In which job of the command: the first, or that of its labels."""

    @property
    def output(self) -> str:
        return self.words.split()[2]

    @property
    def engine(self) -> str:
        return "exact" if any(word in self.words for word in ("exact", "--labels", "convert", "antialias")) else "cle"


def _npy(dtype: str) -> Callable[[], None]:
    return lambda: np.save("in.npy", np.floor(WAVES * 20).astype(dtype))


def _tif() -> None:
    series = np.stack([(WAVES * (10 + n)).astype(np.uint8) for n in range(4)]).reshape(2, 2, *WAVES.shape)
    tifffile.imwrite(
        "in.ome.tif",
        series.swapaxes(1, 2),
        ome=True,
        photometric="minisblack",
        compression="zlib",
        metadata={
            "axes": "TZCYX",
            "PhysicalSizeZ": 1.0,
            "PhysicalSizeY": 0.5,
            "PhysicalSizeX": 0.5,
            "TimeIncrement": 3.0,
            "Channel": {"Name": ["nuclei", "actin"]},
        },
    )


def _pair() -> None:
    _npy("uint16")()
    np.save("cells.npy", (WAVES * 2).astype(np.uint32) << 20)


def _store() -> None:
    _npy("int16")()
    for at in ("done", "half"):
        zarr.create_group(f"{at}/store.zarr", attributes={"kept": "yes"})


CASES = {
    "cle": Case(f"scale in.npy out.zarr {SIZES} --levels 1 {SHARDS} --device-memory 20kB", _npy("uint16")),
    "cle-plain": Case("scale in.npy out.zarr --factor 2,1,1 --boundary constant", _npy("uint8"), "JobStarted", 1),
    "exact": Case(
        f"scale in.npy out.zarr {SIZES} --engine exact --levels 0 {SHARDS} --device-memory 4kB", _npy("uint16")
    ),
    "exact-cubic": Case(
        f"scale in.npy out.zarr --factor 1.5,0.7,1.3 --interpolation cubic --antialias --codec zstd {SHARDS} "
        "--levels 2 --device-memory 30kB",
        _npy("int16"),
        after=1,
    ),
    "levels": Case(
        f"scale in.npy out.zarr {SIZES} --engine exact --ome-zarr 0.4 --levels 2 {SMALL} --device-memory 30kB",
        _npy("float32"),
        "LevelBegun",
        1,
    ),
    "labels": Case(
        f"scale in.npy out.zarr --labels --interpolation mode --factor 1,0.5,0.7 --levels 1 {SHARDS} "
        "--device-memory 20kB",
        _npy("uint32"),
        after=1,
    ),
    "series": Case(
        "scale in.ome.tif out.zarr --engine exact --levels 1 --threads 2 --chunk 8,20,18 --device-memory 60kB", _tif
    ),
    "member": Case(
        f"scale in.npy store.zarr/a/b {SIZES} --engine exact --levels 0 {SHARDS} --device-memory 4kB", _store
    ),
    "with-labels": Case(
        f"scale in.npy out.zarr {SIZES} --with-labels cells.npy --engine exact --levels 1 {SHARDS} "
        "--device-memory 20kB",
        _pair,
        after=2,
        job=2,
    ),
    "convert": Case(f"convert in.npy out.zarr {SIZES} --levels 1 {SHARDS} --device-memory 6kB", _npy("uint16")),
}


STORE = "store"
"""Name of the archive of a job that wrote an array in memory into an object store."""
STORED: dict[str, Any] = {
    "factor": (2.0, 1.0, 1.0),
    "engine": "exact",
    "chunk": (8, 8, 8),
    "shard": (8, 8, 8),
    "levels": 1,
    "threads": 2,
    "device_memory": "16kB",
}
"""How that job scaled it."""


def stored_array() -> NDArray[np.uint16]:
    """Return the array of that job."""
    return np.floor(WAVES * 20).astype(np.uint16)


def run(name: str, at: str) -> None:
    """Run a case's command in this process, which dies at its time if it is the half-done one."""
    import isovoxel
    from isovoxel import cli
    from isovoxel.reporting import progress

    socket.gethostname = lambda: "microscope"
    if name == STORE:
        left = [2]

        def count(event: object) -> None:
            left[0] -= type(event).__name__ == "BlockDone"
            if at == "half" and left[0] == 0:
                time.sleep(1)  # lines go to a store a moment later
                os._exit(9)

        isovoxel.scale(stored_array(), f"s3://bucket/{at}/out.zarr", listeners=[count], **STORED)
        return
    case = CASES[name]
    command, source, output, *words = case.words.split()
    sys.argv = ["isovoxel", command, source, f"{at}/{output}", *words, "--quiet"]
    seen: list[str] = []
    tell = progress.ProgressView.__call__

    def listen(view: progress.ProgressView, event: object) -> None:
        tell(view, event)  # type: ignore[arg-type]
        seen.append(type(event).__name__)
        if at == "half" and seen.count("JobStarted") == case.job and seen[-1] == case.dies:
            seen.append("counted")
            if seen.count("counted") == case.after:
                os._exit(9)

    progress.ProgressView.__call__ = listen  # type: ignore[method-assign, assignment]
    cli.main()


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, case in CASES.items():
        begin()
        case.inputs()
        for path in PLACE.glob("*.*"):
            os.utime(path, (WRITTEN, WRITTEN))
        finish(folder, name)
    begin()
    from isovoxel.object_store.objects import ObjectPlace
    from store_server import contents, serving

    with serving():

        def fetch() -> None:
            for path, data in contents(ObjectPlace("s3://bucket", "")).items():
                (PLACE / path).parent.mkdir(parents=True, exist_ok=True)
                (PLACE / path).write_bytes(data)

        finish(folder, STORE, fetch)


def begin() -> None:
    """Go to an empty folder."""
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir(parents=True)
    os.chdir(PLACE)
    for at in ("done", "half"):
        Path(at).mkdir()


def finish(folder: Path, name: str, fetch: Callable[[], None] = lambda: None) -> None:
    """Run a job, once to its end and once not, and put all of it into an archive."""
    for at, code in (("done", 0), ("half", 9)):
        child = subprocess.run([sys.executable, __file__, name, at], check=False).returncode
        if child != code:
            raise SystemExit(f"{name} {at} ended with {child}")
    fetch()
    with tarfile.open(folder / f"{name}.tar.gz", "w:gz") as archive:
        for path in sorted(PLACE.rglob("*")):
            archive.add(path, path.relative_to(PLACE), recursive=False, filter=_alike)


def _alike(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = WRITTEN
    return member


if __name__ == "__main__":
    if len(sys.argv) == 3:
        run(sys.argv[1], sys.argv[2])
    else:
        main(Path(sys.argv[1]).absolute())
