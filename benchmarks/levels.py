"""What further levels cost: seconds of a job with them, for one second of the job without.

For each factor and engine, the same job with no further level, with all of which the first is made of blocks in memory,
and with all of which each is read back from the one before. In one process, in turn, so that all three meet the same
cache and the same compiled kernels; the least seconds of several rounds count, those of the whole call, for windows of
channels and the marking of the output are part of it.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import isovoxel
from benchmarks.cases import Case, add_options, cases_of, scratch
from benchmarks.machine import describe, print_header, print_row, sentence, write_json
from isovoxel.planning import pyramid

HOW = {"none": 0, "in memory": None, "read back": None}
"""What `levels` is."""


def main(arguments: list[str]) -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks levels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(options)
    options.add_argument("--repeat", type=int, default=3, help="rounds, of which the fastest counts")
    options.add_argument("--engine", default="cle,exact")
    chosen = options.parse_args(arguments)
    with scratch(chosen.folder) as folder:
        record: dict[str, Any] = {"machine": describe(folder, chosen.device), "cases": []}
        print(sentence(record["machine"]))
        columns = ["factor", "engine", "levels", "no further level, s", "level 1 in memory", "each read back"]
        print_header(columns)
        for case in cases_of(chosen):
            shutil.rmtree(folder / "in.zarr", ignore_errors=True)
            case.make_input(folder / "in.zarr")
            for engine in chosen.engine.split(","):
                found = _measure(case, engine, folder, chosen)
                record["cases"].append({"factor": case.factor, "engine": engine, **found})
                alone = found["none"]
                shares = [f"{found[how] / alone:.2f}" for how in ("in memory", "read back")]
                print_row([case.name, engine, str(found["levels"]), f"{alone:.2f}", *shares])
    write_json(chosen.json, record)


def _measure(case: Case, engine: str, folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Return the least seconds of each way, and how many further levels there are."""
    least: dict[str, Any] = {}
    possible = pyramid.HALVED
    for _ in range(chosen.repeat):
        for how, levels in HOW.items():
            pyramid.HALVED = () if how == "read back" else possible  # type: ignore[assignment]
            began = time.perf_counter()
            made = isovoxel.scale(
                folder / "in.zarr",
                folder / "out.zarr",
                factor=case.factor,
                engine=engine,
                device=chosen.device,
                levels=levels,
                overwrite=True,
            )
            least[how] = min(least.get(how, float("inf")), time.perf_counter() - began)
            if bool(made.plan.made_along) != (how == "in memory"):
                raise RuntimeError(f"level 1 is made otherwise than meant: {how}")
            least["levels"] = len(made.plan.further) or least.get("levels", 0)
    pyramid.HALVED = possible
    return least
