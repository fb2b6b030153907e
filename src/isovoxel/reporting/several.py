"""Text and records about several images: a line for each, or for each grid, and the sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from isovoxel.errors import InputError
from isovoxel.execution.result import ScaleResult
from isovoxel.planning.memory import human_bytes
from isovoxel.planning.plan import Plan
from isovoxel.readers.base import Volume
from isovoxel.reporting.records import Record, plan_record, volume_record
from isovoxel.reporting.text import (
    Line,
    count,
    grid_text,
    happened_lines,
    job_lines,
    share_lines,
    verdict_lines,
)

if TYPE_CHECKING:
    from isovoxel.execution.verify import Verdict

MOST_NAMED = 3
"""How many images of a grid are named."""


def done_lines(result: ScaleResult) -> list[Line]:
    """Return what a job did, of one image or of several."""
    if not result.images:
        return job_lines(result)
    images, made = result.images, [image for image in result.images.values() if image.seconds]
    if not made:
        said = f"{count(len(images), 'image')}; all were there already, made in this way: nothing was done"
        return [("complete", f"{result.path}   {said}")]
    speed = f"{result.voxels_per_second / 1e6:,.1f} Mvoxel/s"
    blocks = count(sum(image.plan.all_blocks for image in images.values()), "block")
    peak = f"{human_bytes(result.peak_host_bytes)}; limit {human_bytes(result.plan.host.allowed)} (--memory)"
    return [
        ("written", f"{result.path}   {count(len(images), 'image')}"),
        *((f"image {path}", _image_line(image)) for path, image in images.items()),
        ("time", f"{result.seconds:.1f} s, {speed}, {blocks} on {result.plan.device.name}"),
        ("host peak", peak),
        *happened_lines(result.tally),
        *(share_lines(result) if result.workers else []),
    ]


def _image_line(image: ScaleResult) -> str:
    took = f"{image.seconds:.1f} s" if image.seconds else "complete before"
    return f"{grid_text(image.plan.output)}, {image.plan.source.dtype}; {took}"


# ---- info ------------------------------------------------------------------------------------------------------------

Opened = Mapping[str, Volume | InputError]
"""The images of an input by their paths: each opened, or why it cannot be."""


def images_lines(name: str, images: Opened) -> list[Line]:
    """Return which images an input has."""
    return [
        ("input", f"{name}   {count(len(images), 'image')}; --image selects"),
        *((f"image {path}", _volume_text(image)) for path, image in images.items()),
    ]


def _volume_text(image: Volume | InputError) -> str:
    if isinstance(image, InputError):
        return f"cannot be opened: {image}"
    several = "".join(f"{axis.name} {axis.length}, " for axis in image.series)
    size = "voxel size unknown" if image.voxel_size is None else grid_text(image.grid)
    voxels = f"{image.shape} voxels, {size}" if image.voxel_size is None else size
    return f"{several}{voxels}, {image.dtype.name}   ({image.kind})"


def images_record(name: str, images: Opened) -> Record:
    """Return which images an input has, as JSON values."""
    return {
        "name": name,
        "images": {
            path: {"error": str(image)} if isinstance(image, InputError) else volume_record(image)
            for path, image in images.items()
        },
    }


# ---- plan ------------------------------------------------------------------------------------------------------------


def plans_lines(name: str, plans: Mapping[str, Plan]) -> list[Line]:
    """Return what plans of several images would do: a line for each distinct grid, and the sums."""
    grids = _by_grid(plans)
    every = list(plans.values())
    first = every[0]
    host = max(level.projected_host for plan in every for level in plan.levels)
    device = max(level.projected_device for plan in every for level in plan.levels)
    voxels, nbytes = sum(plan.all_voxels for plan in every), sum(plan.disk_bytes for plan in every)
    return [
        ("input", f"{name}   {count(len(plans), 'image')} on {count(len(grids), 'grid')}"),
        *(("grid", _grid_line(plans, paths)) for paths in grids),
        ("sums", f"{count(sum(plan.all_blocks for plan in every), 'block')}, {voxels / 1e6:,.1f} Mvoxel"),
        ("disk", f"at most {human_bytes(nbytes)}, before compression"),
        ("engine", f"{first.engine} on {first.device.name} ({first.device.kind.upper()}), {first.interpolation}"),
        ("host", f"uses at most {human_bytes(host)}; limit {human_bytes(first.host.allowed)} (--memory)"),
        ("device", f"uses at most {human_bytes(device)}; limit {human_bytes(first.device.allowed)} (--device-memory)"),
    ]


def plans_record(name: str, plans: Mapping[str, Plan]) -> Record:
    """Return what plans of several images would do, as JSON values."""
    every = list(plans.values())
    return {
        "name": name,
        "grids": _by_grid(plans),
        "blocks": sum(plan.all_blocks for plan in every),
        "voxels": sum(plan.all_voxels for plan in every),
        "bytes": sum(plan.disk_bytes for plan in every),
        "images": {path: plan_record(plan) for path, plan in plans.items()},
    }


def _by_grid(plans: Mapping[str, Plan]) -> list[list[str]]:
    """Return the paths of images that lie alike, wherever: of the same shapes, voxel sizes and blocks."""
    found: dict[str, list[str]] = {}
    for path, plan in plans.items():
        grids = [replace(grid, origin=(0.0, 0.0, 0.0)) for grid in (plan.source.grid, plan.output)]
        key = repr((grids, plan.source.dtype, plan.source.series, plan.shift, plan.block_shape, len(plan.further)))
        found.setdefault(key, []).append(path)
    return list(found.values())


def _grid_line(plans: Mapping[str, Plan], paths: list[str]) -> str:
    plan = plans[paths[0]]
    named = ", ".join(paths[:MOST_NAMED]) + (", ..." if len(paths) > MOST_NAMED else "")
    volumes = f" of {plan.source.n_volumes} volumes" if plan.source.series else ""
    grids = f"{grid_text(plan.source.grid)} to {grid_text(plan.output)}, {plan.source.dtype}"
    each = " each" if len(paths) > 1 else ""
    return f"{count(len(paths), 'image')}{volumes} ({named}): {grids}; {count(plan.all_blocks, 'block')}{each}"


# ---- verify ----------------------------------------------------------------------------------------------------------


def verified_lines(found: Verdict) -> list[Line]:
    """Return what verifying a result found, of each of its images where it has several."""
    each = [(f"image {path}", "holds" if image.holds else "does not hold") for path, image in found.images.items()]
    return [*each, *verdict_lines(found)]
