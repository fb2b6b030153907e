"""Whole runs, from the start of the process to its exit, beside the limit of this machine.

For each input and folder:

1. Makes the input: "stack" is one of a tutorial's shape and voxel size as TIFF, or the TIFF that is given, scaled at
   zoom 2; a number is a volume like a microscope's (see `benchmarks.data`) of which so many Gvoxel are made,
   cubic ones.
2. Runs ``isovoxel scale`` as a user does, with default options but for those of the row. The input is in the system's
   cache. The fastest of several runs counts, by the clock of the process that starts it. Of the same run it is told
   when its modules were loaded, when its first block was done, the full level, the others, and the output: so start
   and end are in the picture.
3. Measures the limit, in three parts: ``python -c "import numpy"``, decoding the input, and encoding and writing each
   level that the run made, each by the fastest reader and writer known (see `benchmarks.limits`), from memory that was
   touched before.

"cold" runs find no kernel that was built before. "over" is the seconds above the limit. Ratios are limit / run: 1 is
as fast as the limit, and more is possible, for a run reads and writes at the same time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import isovoxel
from benchmarks.cases import add_machine_options, case_of, scratch, three
from benchmarks.limits import read_seconds, write_seconds
from benchmarks.machine import best, describe, in_memory, print_header, print_row, sentence, write_json
from benchmarks.startup import ZOOM, write_stack
from isovoxel.geometry.grid import Box

STACK = (86, 396, 393)
"""Shape of the stack of clEsperanto's scaling tutorial."""
PHASES = ("interpreter", "imports", "preparing", "first block", "full level", "levels", "finishing", "end")
"""What a run does, one after the other."""
TRACED = """
import time
began = time.time()
import logging, os, re, sys
file = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
def mark(what, moment):
    os.write(file, f"{moment} {what}\\n".encode())
class Marks(logging.Handler):
    def emit(self, record):
        mark(record.getMessage(), record.created)
mark("interpreter", began)
import isovoxel.cli
mark("imports", time.time())
logger = logging.getLogger("isovoxel")
logger.addHandler(Marks())
logger.setLevel("DEBUG")
from isovoxel.__main__ import main
main()
"""
"""The command line, which notes when what happened. The handler is the only thing that a user's run has not."""


@dataclass(frozen=True)
class Row:
    """How one run is made."""

    size: str
    """"stack", or Gvoxel of the output."""
    folder: str
    """Where input and output lie."""
    device: str
    """Where it computes."""
    engine: str
    """"default", or as ``--engine`` has it."""
    workers: str
    """"none" for one process, or as ``--workers`` has it."""
    memory: str
    """"default", or as ``--memory`` has it."""
    levels: str
    """As ``--levels`` has it."""
    kernels: str
    """"warm", or "cold" where none was built before."""

    @property
    def words(self) -> list[str]:
        """The options of the command line."""
        given = {"engine": self.engine, "memory": self.memory, "levels": self.levels}
        words = [
            word for name, value in given.items() if value not in ("default", "auto") for word in (f"--{name}", value)
        ]
        if self.workers != "none":
            return [*words, "--workers", self.workers]
        return [*words, *([] if self.device == "auto" else ["--device", self.device])]


def main(arguments: list[str]) -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks whole", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_machine_options(options)
    options.add_argument("--sizes", default="stack 0.25", help="'stack', and Gvoxel of the output")
    options.add_argument("--factor", default="4,1,1", help="of all but the stack, z,y,x")
    options.add_argument("--stack", type=Path, help="a TIFF, in place of one like the tutorial's")
    options.add_argument("--folders", default="", help="several, in place of --folder: such as '/tmp /dev/shm'")
    options.add_argument("--devices", default="", help="several, in place of --device: such as 'pthread NVIDIA'")
    options.add_argument(
        "--engines", default="default", help="as isovoxel scale --engine has it; default: none is given"
    )
    options.add_argument("--workers", default="none", help="as isovoxel scale --workers has it; none: one process")
    options.add_argument(
        "--memory", default="default", help="as isovoxel scale --memory has it; default: none is given"
    )
    options.add_argument("--levels", default="auto 0", help="as isovoxel scale --levels has it")
    options.add_argument("--kernels", default="warm", help="warm, cold, or both")
    options.add_argument("--options", default="", help="more options for every run, such as '--encode cpu'")
    options.add_argument("--repeat", type=int, default=3, help="runs of each row, of which the fastest counts")
    options.add_argument("--limit-repeat", type=int, default=3, help="times that each part of the limit is measured")
    options.add_argument("--figure", type=Path, help="PNG of where the time goes")
    options.add_argument("--read", type=Path, help="draw what --json wrote, on whichever machine, and run nothing")
    chosen = options.parse_args(arguments)
    record = json.loads(chosen.read.read_text("utf-8")) if chosen.read else _measure(chosen)
    write_json(chosen.json, record)
    if chosen.figure:
        from benchmarks.figures import draw_whole

        draw_whole(record, PHASES, chosen.figure)
        print(f"figure: {chosen.figure}, {chosen.figure.stat().st_size / 1000:.0f} kB")


def _measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Run all rows, print them, and return the numbers."""
    folders = chosen.folders.split() or [str(chosen.folder)]
    record: dict[str, Any] = {"machine": describe(Path(folders[0]), chosen.device), "rows": []}
    print(f"{sentence(record['machine'])}; factor {chosen.factor}\n")
    columns = [
        "output",
        "files",
        "device",
        "engine",
        "workers",
        "memory",
        "levels",
        "kernels",
        "seconds",
        "limit",
        "over",
    ]
    print_header([*columns, "of the limit", "python", "decode", "encode", *PHASES, "cpu s", "peak of projected"])
    for size, place in product(chosen.sizes.split(), folders):
        with scratch(Path(place)) as folder:
            source, words = _make_input(size, folder, chosen)
            words += chosen.options.split()
            limits: dict[str, dict[str, float]] = {}
            for row in _rows(size, place, chosen):
                output = folder / "output.zarr"
                found = _fastest([str(source), str(output), *words, *row.words], row, folder, chosen.repeat)
                if row.levels not in limits:
                    limits[row.levels] = _limit(source, output, found.pop("output"), folder, chosen.limit_repeat)
                shutil.rmtree(output)
                found |= {"limit": limits[row.levels], "files": "memory" if in_memory(folder) else "disk"}
                record["rows"].append(asdict(row) | found)
                _print(record["rows"][-1])
    return record


def _rows(size: str, folder: str, chosen: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of an input."""
    devices = chosen.devices.split() or [chosen.device]
    names = ("engines", "workers", "memory", "levels", "kernels")
    for device, *how in product(devices, *(getattr(chosen, name).split() for name in names)):
        yield Row(size, folder, device, *how)


def _make_input(size: str, folder: Path, chosen: argparse.Namespace) -> tuple[Path, list[str]]:
    """Write an input, and return it with the options that say how far it is scaled."""
    if size == "stack":
        if chosen.stack:
            shutil.copy(chosen.stack, folder / "stack.tif")
        else:
            write_stack(folder / "stack.tif", STACK)
        return folder / "stack.tif", ["--zoom", str(ZOOM)]
    case = case_of(three(chosen.factor), float(size) * 1e9)
    case = replace(case, voxel_size=case.factor)  # cubic when it is scaled, so that each level has an eighth
    case.make_input(folder / "input.zarr")
    return folder / "input.zarr", case.words


def _fastest(words: list[str], row: Row, folder: Path, repeat: int) -> dict[str, Any]:
    """Return the numbers of the fastest of several runs; the output of the last is left."""
    output = Path(words[1])
    runs = []
    _run(words, folder)  # files, modules and kernels are in caches then
    for _ in range(repeat):
        shutil.rmtree(output, ignore_errors=True)
        cold = folder / "kernels"
        shutil.rmtree(cold, ignore_errors=True)
        runs.append(_run(words, folder, cold if row.kernels == "cold" else None))
    return min(runs, key=lambda run: float(run["seconds"])) | {"all_seconds": [run["seconds"] for run in runs]}


def _run(words: list[str], folder: Path, caches: Path | None = None) -> dict[str, Any]:
    """Run the command line once, and return its seconds, those of each phase, and what it says of itself."""
    marks = folder / "marks"
    environment = dict(os.environ)
    if caches is not None:
        caches.mkdir()
        environment |= {"XDG_CACHE_HOME": str(caches), "CUDA_CACHE_PATH": str(caches), "HOME": str(caches)}
        environment.pop("POCL_CACHE_DIR", None)
    command = [sys.executable, "-c", TRACED, str(marks), "scale", *words, "--json"]
    before, began = os.times(), time.time()
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    ended, after = time.time(), os.times()
    if ran.returncode:
        sys.exit(ran.stderr)
    said = json.loads(ran.stdout)
    used = after.children_user - before.children_user + after.children_system - before.children_system
    return {
        "seconds": ended - began,
        "cpu_seconds": used,
        "phases": _phases(marks.read_text("utf-8"), began, ended),
        "voxels_per_second": said["voxels_per_second"],
        "peak_bytes": said["peak_host_bytes"],
        "projected_bytes": said["projected"]["host_bytes"],
        "output": said["output"],
    }


def _phases(marks: str, began: float, ended: float) -> dict[str, float]:
    """Return the seconds of each phase, from what a run has noted."""
    noted = [(what, float(moment)) for moment, what in (line.split(" ", 1) for line in marks.splitlines())]
    blocks = [(what, moment) for what, moment in noted if what.startswith("block ") and " is done" in what]
    full = [moment for what, moment in blocks if " of level " not in what]
    ends = [began]
    for moments in (
        [moment for what, moment in noted if what == "interpreter"],
        [moment for what, moment in noted if what == "imports"],
        [moment for what, moment in noted if what.startswith("job begins")],
        full[:1],
        full[-1:],
        [moment for _, moment in blocks[-1:]],
        [moment for what, moment in noted if what.startswith("job is done")],
        [ended],
    ):
        ends.append(max([*moments, ends[-1]]))
    return {phase: after - before for phase, (before, after) in zip(PHASES, pairwise(ends), strict=True)}


def _limit(source: Path, output: Path, said: dict[str, Any], folder: Path, repeat: int) -> dict[str, float]:
    """Return the three parts of the limit of a run, and their sum."""
    python = best(lambda: subprocess.run([sys.executable, "-c", "import numpy"], check=True))
    decode, encode = min(read_seconds(source, repeat).values()), 0.0
    levels = sorted((path for path in output.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
    for level in levels:
        volume = isovoxel.open_volume(level)
        stored = _stored(level, said)
        voxels = volume.read(Box.whole(volume.shape))
        encode += min(write_seconds(level, voxels, stored, folder, repeat).values())
    return {"python": python, "decode": decode, "encode": encode, "seconds": python + decode + encode}


def _stored(level: Path, said: dict[str, Any]) -> dict[str, Any]:
    """Return chunk, shard and codec of a level, as its own metadata have them."""
    array = json.loads((level / "zarr.json").read_text("utf-8"))
    sharding = next(codec for codec in array["codecs"] if codec["name"] == "sharding_indexed")
    return {
        "chunk": sharding["configuration"]["chunk_shape"],
        "shard": array["chunk_grid"]["configuration"]["chunk_shape"],
        "codec": said["codec"],
        "plain": said["plain"],
    }


def _print(row: dict[str, Any]) -> None:
    limit, seconds = row["limit"], row["seconds"]
    names = ("size", "files", "device", "engine", "workers", "memory", "levels", "kernels")
    numbers = [seconds, limit["seconds"], seconds - limit["seconds"]]
    parts = [limit[part] for part in ("python", "decode", "encode")]
    share = f"{limit['seconds'] / seconds:.2f}"
    rest = [f"{row['cpu_seconds']:.2f}", f"{row['peak_bytes'] / row['projected_bytes']:.2f}"]
    cells = [*(row[name] for name in names), *(f"{n:.2f}" for n in numbers), share]
    print_row([*cells, *(f"{n:.2f}" for n in parts), *(f"{row['phases'][p]:.2f}" for p in PHASES), *rest])
