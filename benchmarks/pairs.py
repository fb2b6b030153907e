"""Whole jobs of two source trees, alternating, so that what else runs on the machine meets both alike.

    python -m benchmarks pairs BEFORE AFTER --factor 5,2,2 --memory 2GiB

BEFORE and AFTER are checkouts. Each run is a process of its own, which imports isovoxel from one of them, scales an
input like a microscope's (see `benchmarks.data`), and is not counted until the job begins. Prints seconds of blocks,
CPU seconds of the process, its peak, and the ratio of the medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.cases import scratch, three
from benchmarks.data import write_volume
from benchmarks.machine import cores

ONE = """
import json, sys, time, shutil
import isovoxel, isovoxel.output.writer
from isovoxel.execution.resources import peak_bytes
source, output, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
began = time.process_time()
done = isovoxel.scale(source, output, **options)
cpu = time.process_time() - began
print(json.dumps({"seconds": done.seconds, "cpu": cpu, "peak MiB": peak_bytes() / 2**20, **done.stages}))
shutil.rmtree(output)
"""


def main(arguments: list[str]) -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks pairs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("before", type=Path, help="a checkout")
    options.add_argument("after", type=Path, help="another one")
    options.add_argument("--shape", default="96,512,512", help="of the input, z,y,x")
    options.add_argument("--factor", default="4,1,1")
    options.add_argument("--engine", default="exact")
    options.add_argument("--levels", default="0")
    options.add_argument("--memory", help="as scale has it")
    options.add_argument("--repeat", type=int, default=5, help="runs of each")
    options.add_argument("--folder", type=Path, default=None, help="where the files go, such as /dev/shm")
    chosen = options.parse_args(arguments)
    job = {"factor": three(chosen.factor), "engine": chosen.engine, "levels": chosen.levels, "memory": chosen.memory}
    before: list[dict[str, float]] = []
    after: list[dict[str, float]] = []
    both = [(chosen.before, before), (chosen.after, after)]
    with scratch(chosen.folder or Path("/tmp")) as folder:  # noqa: S108 - `scratch` makes one of its own in it
        z, y, x = (int(n) for n in chosen.shape.split(","))
        write_volume(folder / "in.zarr", (z, y, x), (4.0, 1.0, 1.0), threads=cores())
        for turn in range(chosen.repeat):
            for tree, runs in both[:: 1 if turn % 2 == 0 else -1]:
                words = [sys.executable, "-c", ONE, str(folder / "in.zarr"), str(folder / "out.zarr"), json.dumps(job)]
                paths = [str(tree / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
                environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
                out = subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout
                runs.append(json.loads(out.splitlines()[-1]))
    print("| | least before | least after | median before | median after | ratio of medians |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in before[0]:
        old, new = ([run.get(name, 0.0) for run in found] for found in (before, after))
        middle, other = statistics.median(old), statistics.median(new)
        ratio = f"{other / middle:.2f}" if middle else "-"
        print(f"| {name} | {min(old):.3f} | {min(new):.3f} | {middle:.3f} | {other:.3f} | {ratio} |")
