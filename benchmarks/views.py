"""What looking at an output takes: `show` and `verify`, whole processes, beside decoding the output and nothing else.

1. A job makes the output, without further levels, and keeps receipts unless that is left out.
2. It is decoded on all cores, a slab of shards at a time into memory that was touched before: by tensorstore, and by
   isovoxel's own reader.
3. `show`, `verify` and `verify --every-chunk` run, each in a process of its own, and so does `info`, which opens the
   output and reads no voxel: so long does a process take to start. The fastest of several runs counts. Where the device
   can decode, every chunk is read once more with `--decode cpu` and with `--decode gpu`.

Prints seconds, processor seconds and peaks, and seconds for one second of decoding by tensorstore.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import isovoxel
from benchmarks.cases import Case, add_machine_options, case_of, run_job, scratch, three
from benchmarks.limits import open_tensorstore
from benchmarks.machine import best, cores, describe, print_header, print_row, sentence, write_json
from isovoxel.engines.devices import find_device
from isovoxel.geometry.grid import Box
from isovoxel.planning.memory import human_bytes

COMMANDS = ("info", "show", "verify", "verify --every-chunk")


def main(arguments: list[str]) -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks views", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_machine_options(options)
    options.add_argument("--factor", default="4,1,1", help="z,y,x")
    options.add_argument("--voxels", type=float, default=0.8e9, help="output voxels, about")
    options.add_argument("--repeat", type=int, default=2, help="runs, of which the fastest counts")
    options.add_argument("--options", default="--keep-receipts", help="more options for the job")
    chosen = options.parse_args(arguments)
    with scratch(chosen.folder) as folder:
        case = case_of(three(chosen.factor), chosen.voxels)
        record: dict[str, Any] = {"machine": describe(folder, chosen.device), "output_shape": case.output_shape}
        print(f"{sentence(record['machine'])}; {case.output_shape} uint16\n")
        record["rows"] = _measure(case, folder, chosen)
    write_json(chosen.json, record)


def _measure(case: Case, folder: Path, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Print and return the rows of the table."""
    source, output = folder / "input.zarr", folder / "output.zarr"
    case.make_input(source)
    run_job(source, output, [*case.words, "--device", chosen.device, *chosen.options.split()])
    print_header(["what", "seconds", "cpu s", "of decoding", "peak", "projected"])
    rows = [{"what": f"decoding, {by}", **_timed(run, chosen.repeat)} for by, run in _decoders(output).items()]
    for command in (*COMMANDS, *_by_each_decoder(output, chosen.device)):
        name, *words = command.split()
        words += ["-o", str(folder / "picture.png")] if name == "show" else []
        rows.append({"what": command, **_run([name, str(output), *words], chosen.repeat)})
    for row in rows:
        sizes = [human_bytes(row[name]) if row.get(name) else "" for name in ("peak", "projected")]
        share = f"{row['seconds'] / rows[0]['seconds']:.2f}"
        print_row([row["what"], f"{row['seconds']:.2f}", f"{row['cpu']:.2f}", share, *sizes])
    return rows


def _by_each_decoder(output: Path, device: str) -> tuple[str, ...]:
    """Return the commands that read every chunk by the cores and by the GPU, where it can decode the output."""
    found = find_device(device)
    if isovoxel.open_volume(output).by_gpu is None or not found.limits().encoders:
        return ()
    return tuple(f"{COMMANDS[-1]} {how}" for how in ("--decode cpu", f"--decode gpu --device {found.index}"))


def _decoders(output: Path) -> dict[str, Callable[[], None]]:
    """Return what decodes an output, by tensorstore and by isovoxel, slab by slab into the same memory."""
    volume = isovoxel.open_volume(output)
    layout = json.loads((output / "0" / "zarr.json").read_text("utf-8"))
    depth = layout["chunk_grid"]["configuration"]["chunk_shape"][-3]
    voxels = np.ones((min(depth, volume.shape[0]), *volume.shape[1:]), volume.dtype)
    own = threading.local()

    def by_tensorstore() -> None:
        import tensorstore as ts

        store = open_tensorstore(output / "0", cores())
        for z in range(0, volume.shape[0], depth):
            slab = store[z : min(z + depth, volume.shape[0])]
            ts.array(voxels[: slab.shape[0]], copy=False, write=True).write(slab).result()

    def read(chunk: Box) -> None:
        if not hasattr(own, "room"):
            own.room = np.empty(volume.chunks, volume.dtype)
        volume.read(chunk, own.room.reshape(-1)[: chunk.size].reshape(chunk.shape))

    def by_isovoxel() -> None:
        with ThreadPoolExecutor(cores()) as pool:
            list(pool.map(read, Box.whole(volume.shape).tiles(volume.chunks)))

    return {"tensorstore": by_tensorstore, "isovoxel": by_isovoxel}


def _timed(run: Callable[[], None], repeat: int, whose: int = resource.RUSAGE_SELF) -> dict[str, Any]:
    """Return the least seconds of several runs, and the processor seconds of one on average."""
    before = resource.getrusage(whose)
    seconds = best(run, repeat)
    after = resource.getrusage(whose)
    return {"seconds": seconds, "cpu": (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / repeat}


def _run(words: list[str], repeat: int) -> dict[str, Any]:
    """Return what running a command takes, and what it says of its memory."""
    said: dict[str, Any] = {}

    def once() -> None:
        command = [sys.executable, "-m", "isovoxel", *words, "--json"]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            sys.exit(ran.stderr or ran.stdout)
        said.update(json.loads(ran.stdout))

    found = _timed(once, repeat, resource.RUSAGE_CHILDREN)
    return found | {"peak": said.get("peak_host_bytes"), "projected": said.get("projected", {}).get("host_bytes")}
