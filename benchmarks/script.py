"""A large volume, the start of the process included, beside the script that a user would write for one graphics card.

The script reads with tensorstore, calls ``zoom`` of cupyx.scipy.ndimage, and writes with tensorstore, in the chunks,
shards and codec of isovoxel's output; input and output have to fit the card and the memory. Beside it: ``isovoxel
scale`` with each engine, without further levels. All take turns, and the best of several counts, from the start of the
process to its exit. Results are compared in grey levels.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
from typing import Any

from benchmarks.cases import add_machine_options, case_of, scratch, three
from benchmarks.machine import describe, in_memory, print_header, print_row, sentence, write_json
from benchmarks.peers import largest_difference
from benchmarks.startup import timed

SCRIPT = """
import sys

import cupy
import tensorstore as ts
from cupyx.scipy.ndimage import zoom

source, output, synced, *factor = sys.argv[1:]
kvstore = {"driver": "file", "file_io_sync": synced == "synced"}
volume = ts.open({"driver": "zarr3", "kvstore": kvstore | {"path": source}}).result()
result = ts.open({"driver": "zarr3", "kvstore": kvstore | {"path": output}}).result()
voxels = cupy.asarray(volume.read().result())
scaled = zoom(voxels, [float(f) for f in factor], order=1, mode="nearest", grid_mode=True)
result.write(cupy.asnumpy(scaled), can_reference_source_data_indefinitely=True).result()
"""
"""It writes into an empty array, whose metadata are there."""


def main(arguments: list[str]) -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(prog="python -m benchmarks script", description=__doc__)
    add_machine_options(options)
    options.add_argument("--factor", default="5,2,2", help="z,y,x")
    options.add_argument("--voxels", type=float, default=4e9, help="output voxels, about")
    options.add_argument("--engines", default="exact cle", help="as isovoxel scale --engine has it")
    options.add_argument("--repeat", type=int, default=3, help="runs of each, of which the best counts")
    chosen = options.parse_args(arguments)
    for module in ("cupy", "tensorstore"):
        if importlib.util.find_spec(module) is None:
            sys.exit(f"{module} is not installed, and the script needs it")
    case = case_of(three(chosen.factor), chosen.voxels)
    with scratch(chosen.folder) as folder:
        source = folder / "input.zarr"
        case.make_input(source)
        outputs = {engine: folder / f"{engine}.zarr" for engine in chosen.engines.split()}
        first = next(iter(outputs.values()))
        isovoxel = [sys.executable, "-m", "isovoxel", "scale", str(source)]
        rest = [*case.words, "--levels", "0", "--device", chosen.device, "--quiet"]
        commands = {
            f"isovoxel scale --engine {engine}": [*isovoxel, str(output), "--engine", engine, *rest]
            for engine, output in outputs.items()
        }
        synced = "unsynced" if in_memory(folder) else "synced"
        script, written = "a script with cupy", folder / "script.zarr"
        factors = [str(f) for f in case.factor]
        commands[script] = [sys.executable, "-c", SCRIPT, str(source / "0"), str(written / "0"), synced, *factors]
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(chosen.repeat):
            for output in (*outputs.values(), written):
                shutil.rmtree(output, ignore_errors=True)
            for name, command in commands.items():
                if name == script:
                    (written / "0").mkdir(parents=True)
                    shutil.copy(first / "0" / "zarr.json", written / "0")
                runs[name].append(timed(command))
        record: dict[str, Any] = {"machine": describe(folder, chosen.device), "output_shape": case.output_shape}
        difference = largest_difference(first, written)
    best = {name: [min(kind) for kind in zip(*found, strict=True)] for name, found in runs.items()}
    record["commands"] = {name: {"seconds": wall, "cpu_seconds": cpu} for name, (wall, cpu) in best.items()}
    record["largest_difference"] = difference
    print(f"{sentence(record['machine'])}\n{case.shape} becomes {case.output_shape} uint16, best of {chosen.repeat}\n")
    print_header(["command", "seconds", "cores", "times as fast as the script"])
    for name, (wall, cpu) in best.items():
        print_row([name, f"{wall:.2f}", f"{cpu:.2f}", f"{best[script][0] / wall:.2f}"])
    print(f"\nlargest difference of the script's result from {first.stem}'s: {difference} grey levels")
    write_json(chosen.json, record)
