"""Pictures of what was measured. matplotlib draws them; cle brings it along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.machine import sentence

INK, FAINT = "#1f2430", "#8a90a0"
LIMIT = "#c2273d"
COLOURS = {"read": "#3b76b5", "wait": "#e8c268", "scale": "#e07b39", "write": "#4f9d69", "idle": "#c9ccd3"}
OTHERS = ("#8c6bb1", "#56a3a6", "#b5651d", "#7a7a7a")
"""Colours of stages that have none of their own."""
REST = "#e3e5ea"
ROW, HEAD, FOOT = 0.36, 0.62, 0.5
"""Height of a bar, of what stands above some of them and below them, in inches."""
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}


def draw_time(record: dict[str, Any], path: Path) -> None:
    """Draw where the threads of each job spend its time, and the limit: what ``job --json`` has, as a PNG."""
    cases = record["cases"]
    rows = [len(case["jobs"]) for case in cases]
    jobs = [job for case in cases for job in case["jobs"]]
    # Who waits for the disk is in flight no more.
    stages = list(dict.fromkeys(stage for job in jobs for stage in job["stages"] if stage != "flush"))
    spare = iter(OTHERS * len(stages))
    colours = {stage: COLOURS.get(stage) or next(spare) for stage in stages}
    with plt.rc_context(STYLE):
        heights = [HEAD + FOOT + ROW * n for n in rows]
        figure = plt.figure(figsize=(9.2, sum(heights) + 1.0), dpi=110)
        total = figure.get_figheight()
        top = total - 0.75
        for case, n in zip(cases, rows, strict=True):
            top -= HEAD
            axes = figure.add_axes((0.16, (top - ROW * n) / total, 0.8, ROW * n / total))
            _draw_case(axes, case, colours)
            top -= ROW * n + FOOT
        handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in [*colours.values(), REST]]
        place = {"loc": "upper left", "bbox_to_anchor": (0.155, 1 - 0.34 / total)}
        figure.legend(handles, [*stages, "rest"], ncols=len(handles), frameon=False, handlelength=1, **place)
        write_title(figure, "Where the time of a job goes", record["machine"])
        figure.savefig(path)
        plt.close(figure)


def write_title(figure: Figure, title: str, machine: dict[str, Any]) -> None:
    """Write a title, and the machine below the figure."""
    height = figure.get_figheight()
    figure.text(0.02, 1 - 0.14 / height, title, fontsize=12, fontweight="bold", va="top")
    figure.text(0.02, 0.1 / height, sentence(machine), fontsize=7.5, color=FAINT, va="bottom")


def _draw_case(axes: Axes, case: dict[str, Any], colours: dict[str, str]) -> None:
    limit, jobs = case["limit"]["seconds"], case["jobs"]
    longest = max([limit, *(job["seconds"] for job in jobs)])
    for i, job in enumerate(jobs):
        left = 0.0
        for stage, colour in colours.items():
            share = job["stages"].get(stage, 0.0) / job["threads"]
            axes.barh(i, share, left=left, color=colour, height=0.66)
            left += share
        axes.barh(i, max(0.0, job["seconds"] - left), left=left, color=REST, height=0.66)
        speed = f"{job['voxels_per_second'] / 1e6:.3g} Mvoxel/s"
        label = f"  {job['seconds']:.3g} s, {speed}, {job['ratio']:.2f} of the limit"
        axes.text(max(left, job["seconds"]), i, label, va="center", fontsize=8)
    axes.axvline(limit, color=LIMIT, linewidth=1.4)
    axes.text(limit, -0.72, f" limit {limit:.3g} s", color=LIMIT, fontsize=8, va="bottom")
    shapes = [" x ".join(map(str, case[name])) for name in ("input_shape", "output_shape")]
    factors = " x ".join(f"{f:.4g}" for f in case["factor"])
    axes.set_title(f"{factors}: {shapes[0]} → {shapes[1]} voxels", loc="left", fontsize=9, x=0, pad=17)
    axes.set_yticks(range(len(jobs)), [f"{job['engine']}, {job['halo']}" for job in jobs])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(jobs) - 0.45, -0.7)
    axes.set_xlim(0, longest * 1.55)
    axes.set_xlabel("seconds (time of all threads / threads)", fontsize=8)
