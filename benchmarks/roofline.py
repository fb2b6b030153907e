"""Draws how fast programs scale a volume from file to file, beside what bounds them: `job` and `peers` in one picture.

One row a program; the axis is output voxels per second, in powers of ten. Lines show the limit (decoding the input and
encoding and writing the output, see `benchmarks.limits`), isovoxel's kernels alone, with data on the device, and what
the device's memory allows them at best (see `benchmarks.kernels`). All is for the factor that `peers` was run with,
and should come from one machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.figures import FAINT, INK, LIMIT, STYLE, plt, write_title

OURS, THEIRS, GRID = "#2f6db3", "#6f7889", "#e3e5ea"
BLANK = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.85}
ROW, ABOVE, BELOW = 0.34, 1.5, 0.85
"""Height of a bar, of what stands above all of them and below, in inches."""


def main(arguments: list[str]) -> None:
    """Draw the picture."""
    options = argparse.ArgumentParser(prog="python -m benchmarks roofline", description=__doc__)
    options.add_argument("--job", type=Path, required=True, help="what `job --json` wrote")
    options.add_argument("--peers", type=Path, required=True, help="what `peers --json` wrote")
    options.add_argument("--output", type=Path, default=Path("examples/roofline.png"))
    chosen = options.parse_args(arguments)
    job, peers = (json.loads(path.read_text("utf-8")) for path in (chosen.job, chosen.peers))
    cases = [case for case in job["cases"] if case["factor"] == peers["factor"]]
    if not cases:
        sys.exit(f"{chosen.job} has no case of the factor {peers['factor']} of {chosen.peers}")
    kernels = [kernel for kernel in job["kernels"] if kernel["factor"] == peers["factor"]]
    draw(bars(cases[0], peers), bounds(cases[0], kernels), job["machine"], peers["factor"], chosen.output)
    print(f"figure: {chosen.output}, {chosen.output.stat().st_size / 1000:.0f} kB")


def bars(case: dict[str, Any], peers: dict[str, Any]) -> dict[str, float]:
    """Return the speed of every program, Mvoxel/s, fastest first."""
    found = {row["name"]: row["voxels_per_second"] for row in peers["rows"] if row.get("voxels_per_second")}
    for job in case["jobs"]:
        # Where the peers' benchmark has isovoxel too, its figure counts: measured as theirs are.
        found.setdefault(f"isovoxel {job['engine']}", job["voxels_per_second"])
    return {name: speed / 1e6 for name, speed in sorted(found.items(), key=lambda item: -item[1])}


def bounds(case: dict[str, Any], kernels: list[dict[str, Any]]) -> dict[str, float]:
    """Return what bounds a job, Mvoxel/s."""
    found = {"limit: decode + write": case["voxels"] / case["limit"]["seconds"] / 1e6}
    for kernel in kernels:
        found[f"kernel {kernel['engine']} alone"] = kernel["voxels_per_second"] / 1e6
        found["memory of the device"] = kernel["bound_voxels_per_second"] / 1e6
    return found


def draw(
    speeds: dict[str, float], limits: dict[str, float], machine: dict[str, Any], factor: list[float], path: Path
) -> None:
    """Write the picture."""
    with plt.rc_context(STYLE):
        height = ROW * len(speeds) + ABOVE + BELOW
        figure = plt.figure(figsize=(9.2, height), dpi=110)
        axes = figure.add_axes((0.2, BELOW / height, 0.76, ROW * len(speeds) / height))
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda speed, _: f"{speed:,g}")
        axes.set_xlim(0.5 * min([*speeds.values(), *limits.values()]), 2 * max([*speeds.values(), *limits.values()]))
        for i, (name, speed) in enumerate(speeds.items()):
            axes.axhline(i, color=GRID, linewidth=0.8, zorder=0)
            axes.plot(speed, i, "o", color=OURS if name.startswith("isovoxel") else THEIRS, markersize=8)
            axes.text(speed * 1.12, i, _number(speed), va="center", fontsize=8, bbox=BLANK)
        across = axes.get_xaxis_transform()
        # Words stand left of their line, and longer lines further right: so none crosses another's.
        for step, (name, speed) in enumerate(sorted(limits.items(), key=lambda item: item[1])):
            colour = LIMIT if name.startswith("limit") else FAINT
            top = 1 + (0.2 + 0.2 * step) / (ROW * len(speeds))
            axes.plot([speed, speed], [0, top], transform=across, color=colour, linewidth=1.3, zorder=1, clip_on=False)
            ink = LIMIT if name.startswith("limit") else INK
            label = f"{name}, {_number(speed)}"
            axes.text(speed * 0.95, top, label, transform=across, color=ink, fontsize=8, va="top", ha="right")
        axes.set_yticks(range(len(speeds)), list(speeds))
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(speeds) - 0.5, -0.5)
        axes.set_xlabel("Mvoxel/s of output, from file to file")
        factors = " x ".join(f"{f:g}" for f in factor)
        write_title(figure, f"Scaling by {factors}, zarr to zarr, and what bounds it", machine)
        figure.savefig(path)
        plt.close(figure)


def _number(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"
