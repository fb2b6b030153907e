"""Records of volumes, plans, results, devices and findings: what ``--json`` prints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from isovoxel.errors import InputError
from isovoxel.geometry.grid import AXES
from isovoxel.planning.one_piece import WholeLimits
from isovoxel.planning.plan import Plan
from isovoxel.readers.base import Volume

if TYPE_CHECKING:
    from isovoxel.execution.distributed.worker_info import WorkerInfo
    from isovoxel.execution.output import OutputState
    from isovoxel.execution.result import Forecast, ScaleResult, Share
    from isovoxel.execution.verify import Verdict

Record = dict[str, Any]


def _fields(value: object, *names: str) -> Record:
    """Return fields of a value, by their names."""
    found = {name: getattr(value, name) for name in names}
    return {name: list(field) if isinstance(field, tuple) else field for name, field in found.items()}


def volume_record(volume: Volume, state: OutputState | None = None) -> Record:
    """Return what is known of a volume, and how far it is where isovoxel writes it."""
    known = {
        **_fields(volume, "name", "kind", "shape"),
        "dtype": volume.dtype.name,
        "axes": list(AXES),
        "series": {axis.name: axis.length for axis in volume.series},
        "channels": [asdict(channel) for channel in volume.channels],
        "bytes": volume.nbytes,
        **_fields(volume, "chunks", "voxel_size", "origin", "unit", "notes"),
        "sources": dict(volume.sources),
    }
    return known if state is None else known | {"output": asdict(state)}


def plan_record(plan: Plan, cost: Forecast | None = None) -> Record:
    """Return what a plan would do, and what it takes and costs."""
    return {
        "input": asdict(plan.source.grid)
        | {
            "name": plan.source.name,
            "dtype": plan.source.dtype,
            "series": dict(plan.source.series),
            "decoder": "gpu" if plan.device.decoding else "cpu",
        },
        "output": asdict(plan.output)
        | {
            "dtype": plan.source.dtype,
            "bytes": plan.output_bytes,
            **_fields(plan.storage, "chunk", "shard", "codec", "plain", "ome_zarr"),
            "encoder": "gpu" if plan.device.encoding else "cpu",
        },
        "factors": list(plan.factor),
        **_fields(plan, "interpolation", "antialias", "boundary", "engine"),
        "clesperanto": plan.library or None,
        "device": _fields(plan.device, "name", "kind"),
        "blocks": {
            "count": plan.n_blocks,
            "shape": list(plan.block_shape),
            "halo": [list(h) for h in plan.halo],
            **_fields(plan, "halo_mode", "in_flight"),
        },
        "levels": [_level_record(level) for level in plan.further],
        "projected": {
            "host_bytes": max(level.projected_host for level in plan.levels),
            "device_bytes": max(level.projected_device for level in plan.levels),
        },
        "allowed": {"host_bytes": plan.host.allowed, "device_bytes": plan.device.allowed},
        "expected": None if cost is None else {"seconds": cost.seconds, "bytes": cost.nbytes, "files": cost.files},
        "fingerprint": plan.fingerprint,
    }


def _level_record(plan: Plan) -> Record:
    """Return what a further level would be."""
    return asdict(plan.output) | {
        "factors": list(plan.factor),
        "interpolation": plan.interpolation,
        **_fields(plan.storage, "chunk", "shard"),
        "blocks": plan.n_blocks,
    }


def result_record(result: ScaleResult) -> Record:
    """Return what a job did."""
    return plan_record(result.plan, result.expected) | {
        "path": str(result.path),
        **_fields(result, "seconds", "voxels_per_second", "peak_host_bytes"),
        "stage_seconds": result.stages,
        "happened": {name: value for name, value in asdict(result.tally).items() if name not in ("stages", "workers")},
    }


def member_record(member: WorkerInfo) -> Record:
    """Return what a worker has."""
    return {
        **_fields(member, "name", "address", "host", "pid"),
        "device": _fields(member.device, "name", "kind", "memory", "allowed") | _fields(member, "pci", "uuid"),
        "threads": member.limits.threads,
        "versions": dict(member.versions),
    }


def share_record(share: Share, seconds: float) -> Record:
    """Return what a worker did of a job that took so many seconds."""
    return asdict(share) | {"busy_share": share.scale_seconds / seconds if seconds else 0.0}


def job_record(result: ScaleResult) -> Record:
    """Return what a job did, and what each of its workers did, where there were several."""
    record = result_record(result)
    if result.workers:
        record["workers"] = {name: share_record(share, result.seconds) for name, share in result.workers.items()}
    if result.labels is not None:
        record["labels"] = job_record(result.labels)
    if result.images:
        record["images"] = {path: job_record(image) for path, image in result.images.items()}
    return record


def verdict_record(found: Verdict) -> Record:
    """Return what verifying a result found."""
    from isovoxel.execution.resources import peak_bytes

    memory = {"projected": {"host_bytes": found.projected}, "allowed": {"host_bytes": found.allowed}}
    record = asdict(replace(found, images={})) | memory | {"peak_host_bytes": peak_bytes(), "holds": found.holds}
    record["images"] = {path: verdict_record(image) for path, image in found.images.items()}
    if not found.images:
        del record["images"]
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in record.items()}


def limits_record(found: WholeLimits) -> Record:
    """Return where scaling in one piece stops."""
    return {
        "input": asdict(found.grid),
        "interpolation": found.interpolation,
        "device": _fields(found.device, "name", "kind", "memory", "largest_allocation", "image_shape", "buffer_voxels"),
        "stops_at_zoom": _finite(found.first.zoom),
        "limit": found.first.limit,
        "crossings": [asdict(crossing) | {"zoom": _finite(crossing.zoom)} for crossing in found.crossings],
    }


def _finite(zoom: float) -> float | None:
    return None if math.isinf(zoom) else zoom


# ---- several images -------------------------------------------------------------------------------------------------


Opened = Mapping[str, Volume | InputError]
"""The images of an input by their paths: each opened, or why it cannot be."""


def images_record(name: str, images: Opened) -> Record:
    """Return which images an input has, as JSON values."""
    return {
        "name": name,
        "images": {
            path: {"error": str(image)} if isinstance(image, InputError) else volume_record(image)
            for path, image in images.items()
        },
    }


def plans_record(name: str, plans: Mapping[str, Plan]) -> Record:
    """Return what plans of several images would do, as JSON values."""
    every = list(plans.values())
    return {
        "name": name,
        "grids": by_grid(plans),
        "blocks": sum(plan.all_blocks for plan in every),
        "voxels": sum(plan.all_voxels for plan in every),
        "bytes": sum(plan.disk_bytes for plan in every),
        "images": {path: plan_record(plan) for path, plan in plans.items()},
    }


def by_grid(plans: Mapping[str, Plan]) -> list[list[str]]:
    """Return the paths of images that lie alike, wherever: of the same shapes, voxel sizes and blocks."""
    found: dict[str, list[str]] = {}
    for path, plan in plans.items():
        grids = [replace(grid, origin=(0.0, 0.0, 0.0)) for grid in (plan.source.grid, plan.output)]
        key = repr((grids, plan.source.dtype, plan.source.series, plan.shift, plan.block_shape, len(plan.further)))
        found.setdefault(key, []).append(path)
    return list(found.values())
