"""Whole jobs, measured and checked, beside the limit that no job can beat.

For each factor:

1. Makes an input like a microscope's (see `benchmarks.data`).
2. Lets cle.scale try it in one piece, in a process of its own, and shows what stops it and what was foretold.
3. Scales it with isovoxel, by both engines and both ways to the halo, several times, each in a process of its own. The
   least time counts: from the first block to the last, that is without the start of the process, which is told too.
4. Verifies each result against the float64 reference, block corners, edges and faces first.
5. Measures the limit: decoding this input and then encoding and writing this output (see `benchmarks.limits`).

Stages are summed over the blocks in flight; "explained" is the share of their time that stages make, but for "flush",
in which a block waits for the disk and is in flight no more. "idle" is the time in which a block could have been in
flight and was none, yet or any more, by the clock: it is no remainder.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import isovoxel
from benchmarks.cases import Case, add_options, cases_of, run_job, scratch, three
from benchmarks.limits import job_limit
from benchmarks.machine import describe, print_header, print_row, sentence, write_json
from isovoxel.planning.memory import human_bytes

IN_ONE_PIECE = """
import sys, numpy as np, pyclesperanto_prototype as cle
import isovoxel
from isovoxel.geometry.grid import Box
cle.select_device(sys.argv[2])
volume = isovoxel.open_volume(sys.argv[1])
data = volume.read(Box.whole(volume.shape))
fz, fy, fx = (float(f) for f in sys.argv[3].split(","))
result = cle.scale(data, factor_x=fx, factor_y=fy, factor_z=fz, auto_size=True, linear_interpolation=True)
print("finished with shape", np.asarray(result).shape)
"""


def main(arguments: list[str]) -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks job", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(options)
    options.add_argument("--shape", help="of the input, z,y,x: one case, in place of --factors and --voxels")
    options.add_argument("--voxel-size", default="1,0.25,0.25", help="of that input")
    options.add_argument("--zoom", type=float, default=4.0, help="of that input")
    options.add_argument("--repeat", type=int, default=3, help="runs of each job, of which the fastest counts")
    options.add_argument("--samples", type=int, default=600, help="how many boxes to verify")
    options.add_argument("--no-one-piece", action="store_true", help="leave out cle.scale in one piece")
    options.add_argument("--engine", default="cle,exact")
    options.add_argument("--halo", default="direct,map_overlap")
    options.add_argument("--kernel-voxels", type=float, default=64e6, help="for the kernels alone, at most")
    options.add_argument("--figure", type=Path, help="PNG of where the time goes")
    chosen = options.parse_args(arguments)
    with scratch(chosen.folder) as folder:
        record: dict[str, Any] = {"machine": describe(folder, chosen.device), "cases": []}
        print(sentence(record["machine"]))
        for case in [_large_case(chosen)] if chosen.shape else cases_of(chosen):
            record["cases"].append(_run_case(case, folder, chosen))
    factors = " ".join(",".join(map(str, found["factor"])) for found in record["cases"])
    record |= _kernels(factors, chosen)
    write_json(chosen.json, record)
    if chosen.figure:
        from benchmarks.figures import draw_time

        draw_time(record, chosen.figure)
        print(f"figure: {chosen.figure}, {chosen.figure.stat().st_size / 1000:.0f} kB")


def _large_case(chosen: argparse.Namespace) -> Case:
    z, y, x = (round(n) for n in three(chosen.shape))
    sz, sy, sx = three(chosen.voxel_size)
    return Case((z, y, x), (sz, sy, sx), (sz * chosen.zoom, sy * chosen.zoom, sx * chosen.zoom))


def _run_case(case: Case, folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    source = folder / "input.zarr"
    case.make_input(source)
    found: dict[str, Any] = {
        "factor": case.factor,
        "input_shape": case.shape,
        "output_shape": case.output_shape,
        "voxels": case.voxels,
    }
    print(f"\nfactors {case.name}: {case.shape} uint16 becomes {case.output_shape}, {case.voxels / 1e6:.0f} Mvoxel\n")
    if not chosen.no_one_piece:
        found |= _one_piece(source, case, chosen.device)
        print(f"- foretold: {found['foretold']}\n- one piece: {found['one_piece']}\n")
    found["jobs"] = []
    for engine, halo in product(chosen.engine.split(","), chosen.halo.split(",")):
        output = folder / f"{engine}-{halo}.zarr"
        words = [*case.words, "--engine", engine, "--halo", halo, "--device", chosen.device, "--overwrite"]
        runs = [run_job(source, output, words) for _ in range(chosen.repeat)]
        said = min((said for said, _ in runs), key=lambda said: float(said["seconds"]))
        found["jobs"].append(_summary(said, min(wall for _, wall in runs)) | _verdict(output, chosen.samples))
        if len(found["jobs"]) == 1:
            found["limit"] = job_limit(source, output, said, folder)
        shutil.rmtree(output)
    for job in found["jobs"]:
        job["ratio"] = found["limit"]["seconds"] / job["seconds"]
    _print_case(found)
    shutil.rmtree(source)
    return found


def _one_piece(source: Path, case: Case, device: str) -> dict[str, str]:
    """Let cle.scale try, and return what came of it and what was foretold."""
    plan = isovoxel.plan(source, factor=case.factor, device=device)
    first = isovoxel.limits(source, device=device).first
    factors = ",".join(str(f) for f in case.factor)
    tried = subprocess.run(
        [sys.executable, "-c", IN_ONE_PIECE, source, plan.device.name, factors],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "foretold": f"one piece stops at zoom {first.zoom:.4g} on {first.limit}: {first.needed}",
        "one_piece": (tried.stdout or tried.stderr).strip().splitlines()[-1],
    }


def _summary(said: dict[str, Any], process_seconds: float) -> dict[str, Any]:
    """Return what is told of a job, from what it says of itself."""
    threads, stages = said["blocks"]["in_flight"], said["stage_seconds"]
    return {
        "engine": said["engine"],
        "halo": said["blocks"]["halo_mode"],
        "seconds": said["seconds"],
        "process_seconds": process_seconds,
        "voxels_per_second": said["voxels_per_second"],
        "blocks": said["blocks"]["count"],
        "block": said["blocks"]["shape"],
        "threads": threads,
        "stages": stages,
        # Who waits for the disk has left his place to another block.
        "explained": sum(stages[name] for name in stages if name != "flush") / (threads * said["seconds"]),
        "peak_bytes": said["peak_host_bytes"],
        "projected_bytes": said["projected"]["host_bytes"],
        "allowed_bytes": said["allowed"]["host_bytes"],
    }


def _verdict(output: Path, samples: int) -> dict[str, Any]:
    if not samples:
        return {}
    verdict = isovoxel.verify(output, samples=samples)
    error = verdict.largest_error if math.isfinite(verdict.largest_error) else None
    return {"largest_error": error, "holds": verdict.holds}


def _print_case(found: dict[str, Any]) -> None:
    limit = found["limit"]
    decode, encode = limit["decode"], limit["encode"]
    print(f"the limit is {limit['seconds']:.3g} s, {found['voxels'] / limit['seconds'] / 1e6:.0f} Mvoxel/s:", end=" ")
    print(
        f"{decode['seconds']:.3g} s to decode ({decode['by']}), {encode['seconds']:.3g} s to write ({encode['by']})\n"
    )
    stages = list(found["jobs"][0]["stages"])
    columns = ["engine", "halo", "blocks", "block", "seconds", "Mvoxel/s", "of the limit"]
    print_header([*columns, *stages, "threads", "explained", "whole process"])
    for job in found["jobs"]:
        speed = f"{job['voxels_per_second'] / 1e6:.3g}"
        cells = [job["engine"], job["halo"], job["blocks"], tuple(job["block"]), f"{job['seconds']:.3g}", speed]
        spent = [f"{job['stages'].get(stage, 0):.2f} s" for stage in stages]
        explained, process = f"{100 * job['explained']:.0f} %", f"{job['process_seconds']:.3g} s"
        print_row([*cells, f"{job['ratio']:.2f}", *spent, job["threads"], explained, process])
    print()
    print_header(["engine", "halo", "host peak", "projected", "allowed", "largest error", "verify"])
    for job in found["jobs"]:
        memory = [human_bytes(job[f"{name}_bytes"]) for name in ("peak", "projected", "allowed")]
        error = "" if job.get("largest_error") is None else f"{job['largest_error']:.2f}"
        verdict = {True: "holds", False: "does not hold", None: ""}[job.get("holds")]
        print_row([job["engine"], job["halo"], *memory, error, verdict])


def _kernels(factors: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """Return what the kernels alone do at these factors, measured in a process of its own."""
    with scratch(chosen.folder) as folder:
        numbers = folder / "kernels.json"
        command = [sys.executable, "-m", "benchmarks", "kernels", "--dtype", "uint16", "--kernel", "linear"]
        command += [
            "--factors",
            factors,
            "--voxels",
            str(min(chosen.voxels, chosen.kernel_voxels)),
            "--json",
            str(numbers),
        ]
        subprocess.run(
            [*command, "--engine", chosen.engine, "--device", chosen.device], check=True, capture_output=True
        )
        found = json.loads(numbers.read_text())
    return {name: found[name] for name in ("kernels", "device_bytes_per_second")}
