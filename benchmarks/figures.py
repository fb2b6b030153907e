"""Pictures of what was measured. matplotlib draws them; cle brings it along."""

from __future__ import annotations

from collections.abc import Sequence
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
PHASE_COLOURS = ("#7a7a7a", "#8c6bb1", "#56a3a6", "#e8c268", "#e07b39", "#b5651d", "#c9ccd3", "#1f2430")
"""Colours of what a whole run does, one after the other."""
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


def draw_whole(record: dict[str, Any], phases: Sequence[str], path: Path) -> None:
    """Draw what each whole run does when, and its limit below it: what ``whole --json`` has, as a PNG."""
    rows = record["rows"]
    parts = {"python": PHASE_COLOURS[0], "decode": COLOURS["read"], "encode": COLOURS["write"]}
    longest = max(max(row["seconds"], row["limit"]["seconds"]) for row in rows)
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(9.2, 2 * ROW * len(rows) + 1.7), dpi=110)
        height = figure.get_figheight()
        axes = figure.add_axes((0.22, 0.6 / height, 0.74, (height - 1.6) / height))
        for i, row in enumerate(rows):
            for y, spent, colours in (
                (i - 0.2, [row["phases"][phase] for phase in phases], PHASE_COLOURS),
                (i + 0.2, [row["limit"][part] for part in parts], parts.values()),
            ):
                left = 0.0
                for seconds, colour in zip(spent, colours, strict=True):
                    axes.barh(y, seconds, left=left, color=colour, height=0.36)
                    left += seconds
            label = f"  {row['seconds']:.3g} s, {row['limit']['seconds'] / row['seconds']:.2f} of the limit"
            axes.text(row["seconds"], i - 0.2, label, va="center", fontsize=8)
            axes.text(row["limit"]["seconds"], i + 0.2, "  limit", va="center", fontsize=8, color=LIMIT)
        axes.set_yticks(range(len(rows)), [_name(row) for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(rows) - 0.45, -0.55)
        axes.set_xlim(0, longest * 1.35)
        axes.set_xlabel("seconds from the start of the process", fontsize=8)
        colours = dict(zip(phases, PHASE_COLOURS, strict=True)) | {f"limit: {part}": parts[part] for part in parts}
        handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
        place = {"loc": "upper left", "bbox_to_anchor": (0.02, 1 - 0.34 / height)}
        figure.legend(handles, list(colours), ncols=6, frameon=False, handlelength=1, fontsize=8, **place)
        write_title(figure, "Where the time of a whole run goes", record["machine"])
        figure.savefig(path)
        plt.close(figure)


def _name(row: dict[str, Any]) -> str:
    """Return how a run differs from others: its size, and what is not as by default."""
    size = row["size"] if row["size"] == "stack" else f"{row['size']} Gvoxel"
    usual = {"device": "auto", "engine": "default", "workers": "none", "memory": "default", "kernels": "warm"}
    said = [f"{row[name]} {name}" for name, value in usual.items() if row[name] != value]
    levels = "levels" if row["levels"] == "auto" else f"levels {row['levels']}"
    return "\n".join([", ".join([size, row["files"], levels]), *([", ".join(said)] if said else [])])


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
