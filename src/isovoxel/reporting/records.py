"""What do a volume, a plan, a result and devices say, to a machine and to a person?

Each has one record (what ``--json`` prints) and one list of lines (what a person reads), made from the same values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from isovoxel.geometry.grid import AXES, VoxelGrid, number_text, numbers_text
from isovoxel.metadata.series import WORDS
from isovoxel.planning.memory import human_bytes
from isovoxel.planning.plan import Plan
from isovoxel.readers.base import Volume

if TYPE_CHECKING:
    from isovoxel.engines.devices import Device
    from isovoxel.execution.output import OutputState
    from isovoxel.execution.result import ScaleResult
    from isovoxel.execution.tally import Tally

Record = dict[str, Any]
Line = tuple[str, str]
"""A label and what it labels."""


# ---- info ------------------------------------------------------------------------------------------------------


def volume_record(volume: Volume, state: OutputState | None = None) -> Record:
    """Return what is known of a volume, and how far it is where isovoxel writes it."""
    known = {
        "name": volume.name,
        "kind": volume.kind,
        "shape": list(volume.shape),
        "dtype": volume.dtype.name,
        "axes": list(AXES),
        "series": {axis.name: axis.length for axis in volume.series},
        "channels": [asdict(channel) for channel in volume.channels],
        "bytes": volume.nbytes,
        "chunks": list(volume.chunks),
        "voxel_size": None if volume.voxel_size is None else list(volume.voxel_size),
        "origin": list(volume.origin),
        "unit": volume.unit,
        "sources": dict(volume.sources),
        "notes": list(volume.notes),
    }
    return known if state is None else known | {"output": asdict(state)}


def volume_lines(volume: Volume, state: OutputState | None = None) -> list[Line]:
    """Return what is known of a volume, where it was read from, and how far it is where isovoxel writes it."""

    def with_source(text: str, key: str) -> str:
        return f"{text}   ({volume.sources[key]})" if key in volume.sources else text

    size = f"unknown: {volume.missing or 'the input does not say'}"
    if volume.voxel_size is not None:
        size = with_source(_numbers(volume.voxel_size), "voxel size")
    return [
        ("input", f"{volume.name}   ({volume.kind})"),
        ("shape", with_source(f"{shape_text(volume.shape)} voxels", "shape")),
        ("axes", with_source(", ".join([*(axis.name for axis in volume.series), *AXES]), "axes")),
        *_series_lines([(axis.name, axis.length) for axis in volume.series]),
        *_channel_lines(volume),
        ("dtype", f"{volume.dtype.name}, {human_bytes(volume.nbytes)} in all"),
        ("voxel size", size),
        *_origin_line(volume),
        ("unit", with_source(volume.unit or "none", "unit")),
        ("chunks", _chunks(volume.chunks)),
        *(("note", note) for note in volume.notes),
        *_state_lines(state),
    ]


def _origin_line(volume: Volume) -> list[Line]:
    """Return where the centre of voxel 0 lies, where lengths are known."""
    if volume.voxel_size is None:
        return []
    unit = f" {volume.unit}" if volume.unit else ""
    return [("origin", f"{numbers_text(volume.origin)}{unit}, the centre of voxel 0")]


def _series_lines(series: Sequence[tuple[str, int]]) -> list[Line]:
    """Return how many volumes there are, where there are several."""
    several = " x ".join(count(length, WORDS[name]) for name, length in series)
    return [("volumes", f"{several}, each scaled by itself")] if series else []


def _channel_lines(volume: Volume) -> list[Line]:
    names = [channel.label for channel in volume.channels if channel.label]
    return [("channels", ", ".join(names))] if names else []


def _state_lines(state: OutputState | None) -> list[Line]:
    """Return how far an output is."""
    if state is None:
        return []
    if state.complete:
        return [("written", "by isovoxel, complete")]
    known = (
        f"{state.done:,} of {count(state.blocks, 'block')} done" if state.blocks else "how much is done is not known"
    )
    return [("written", f"by isovoxel, NOT complete: {known}; {state.holder or 'nobody'} is at it")]


# ---- plan and scale --------------------------------------------------------------------------------------------


def plan_record(plan: Plan) -> Record:
    """Return what a plan would do, and what it takes."""
    return {
        "input": grid_record(plan.source.grid)
        | {"name": plan.source.name, "dtype": plan.source.dtype, "series": dict(plan.source.series)},
        "output": grid_record(plan.output)
        | {
            "dtype": plan.source.dtype,
            "bytes": plan.output_bytes,
            "chunk": list(plan.storage.chunk),
            "shard": list(plan.storage.shard),
            "codec": plan.storage.codec,
            "ome_zarr": plan.storage.ome_zarr,
        },
        "factors": list(plan.factor),
        "interpolation": plan.interpolation,
        "antialias": plan.antialias,
        "boundary": plan.boundary,
        "engine": plan.engine,
        "clesperanto": plan.library or None,
        "device": {"name": plan.device.name, "kind": plan.device.kind},
        "blocks": {
            "count": plan.n_blocks,
            "shape": list(plan.block_shape),
            "halo": [list(h) for h in plan.halo],
            "halo_mode": plan.halo_mode,
            "in_flight": plan.in_flight,
        },
        "levels": [_level_record(level) for level in plan.further],
        "projected": {
            "host_bytes": max(level.projected_host for level in plan.levels),
            "device_bytes": max(level.projected_device for level in plan.levels),
        },
        "allowed": {"host_bytes": plan.host.allowed, "device_bytes": plan.device.allowed},
        "fingerprint": plan.fingerprint,
    }


def _level_record(plan: Plan) -> Record:
    """Return what a further level would be."""
    return grid_record(plan.output) | {
        "factors": list(plan.factor),
        "interpolation": plan.interpolation,
        "chunk": list(plan.storage.chunk),
        "shard": list(plan.storage.shard),
        "blocks": plan.n_blocks,
    }


def _engine(plan: Plan) -> str:
    """Return which engine scales, and of cle whose."""
    return f"{plan.engine} of {plan.library}" if plan.library else plan.engine


def plan_lines(plan: Plan) -> list[Line]:
    """Return what a plan would do, and what it takes."""
    projected = plan_record(plan)["projected"]
    source, output = plan.source.grid, plan.output
    halo = ", ".join(f"{axis} {before}+{after}" for axis, (before, after) in zip(AXES, plan.halo, strict=True))
    grid = " x ".join(str(n) for n in plan.block_grid)
    blocks = f"{plan.n_blocks:,} of {shape_text(plan.block_shape)} voxels"
    volumes = f"{plan.source.n_volumes:,} x " if plan.source.series else ""
    return [
        ("input", f"{plan.source.name}   {grid_text(source)}, {plan.source.dtype}"),
        ("output", f"{grid_text(output)}, {plan.source.dtype}, {human_bytes(plan.output_bytes)}"),
        *_series_lines(plan.source.series),
        ("factors", f"{_numbers(plan.factor)}   ({_kernel(plan)}, boundary {plan.boundary})"),
        ("engine", f"{_engine(plan)} on {plan.device.name} ({plan.device.kind.upper()})"),
        ("blocks", f"{blocks}   ({volumes}{grid} along z, y, x; {plan.in_flight} in flight)"),
        ("halo", f"{halo} input voxels, by {_HALO[plan.halo_mode]}"),
        ("files", f"{_files(plan)}, {plan.storage.codec}"),
        *_level_lines(plan),
        ("host", _memory(projected["host_bytes"], plan.host.allowed, "--memory")),
        ("device", _memory(projected["device_bytes"], plan.device.allowed, "--device-memory")),
    ]


def _memory(projected: int, allowed: int, option: str) -> str:
    return f"uses at most {human_bytes(projected)}; limit {human_bytes(allowed)} ({option})"


def _files(plan: Plan) -> str:
    """Return how the output is cut into files."""
    if not plan.storage.sharded:
        return f"chunks of {shape_text(plan.storage.chunk)}, a file each (OME-Zarr {plan.storage.ome_zarr})"
    return f"shards of {shape_text(plan.storage.shard)}, chunks of {shape_text(plan.storage.chunk)}"


def _level_lines(plan: Plan) -> list[Line]:
    """Return which further levels there are."""
    if not plan.further:
        return []
    last, n = plan.further[-1], len(plan.further)
    return [("levels", f"{n} further, down to {shape_text(last.output.shape)}, by {last.interpolation}")]


_HALO = {
    "map_overlap": "map_overlap (blocks exchange it)",
    "direct": "direct reads (each block reads its own)",
}


def result_record(result: ScaleResult) -> Record:
    """Return what a job did."""
    return plan_record(result.plan) | {
        "path": str(result.path),
        "seconds": result.seconds,
        "voxels_per_second": result.voxels_per_second,
        "peak_host_bytes": result.peak_host_bytes,
        "stage_seconds": result.stages,
        "happened": {name: value for name, value in asdict(result.tally).items() if name not in ("stages", "workers")},
    }


def result_lines(result: ScaleResult) -> list[Line]:
    """Return what a job did."""
    plan = result.plan
    if not result.seconds:
        what = f"{grid_text(plan.output)}, {plan.source.dtype}"
        return [("complete", f"{result.path}   {what}; it was there already, made in this way: nothing was done")]
    stages = ", ".join(f"{STAGES[name]} {seconds:.1f} s" for name, seconds in result.stages.items())
    speed = f"{result.voxels_per_second / 1e6:,.1f} Mvoxel/s"
    return [
        ("written", f"{result.path}   {grid_text(plan.output)}, {plan.source.dtype}"),
        *_level_lines(plan),
        ("time", f"{result.seconds:.1f} s, {speed}, {count(plan.all_blocks, 'block')} on {plan.device.name}"),
        ("threads", f"{_threads(plan)}, which spent together: {stages}"),
        ("host peak", f"{human_bytes(result.peak_host_bytes)}; limit {human_bytes(plan.host.allowed)} (--memory)"),
        *_happened(result.tally),
    ]


def _threads(plan: Plan) -> str:
    return f"{plan.host.workers} x {plan.in_flight}" if plan.host.workers > 1 else str(plan.in_flight)


def _happened(tally: Tally) -> list[Line]:
    """Return what did not go as planned, and went well."""
    said = []
    if tally.done_before:
        said.append(f"{count(tally.done_before, 'block')} done before")
    if tally.split:
        said.append(f"{count(tally.split, 'block')} in up to {tally.pieces} pieces, for the device's memory")
    if tally.slowed_to:
        said.append(f"{count(tally.slowed_to, 'block')} in flight in the end, for the host's memory")
    if tally.retries:
        said.append(f"{count(tally.retries, 'attempt')} that failed, and then did not")
    if tally.restarts:
        said.append(f"{count(tally.restarts, 'fresh process', 'fresh processes')}")
    lines = [("went on", ", ".join(said))] if said else []
    shown = tally.filled[:_MOST_PARTS]
    more = [f"and {len(tally.filled) - len(shown)} more"] if len(tally.filled) > len(shown) else []
    return lines + ([("filled", "; ".join([*shown, *more]) + ": they are 0")] if shown else [])


_MOST_PARTS = 8
"""How many damaged parts are named; the output's attributes have all."""

STAGES = {
    "read": "reading",
    "wait": "waiting for the device",
    "scale": "scaling",
    "write": "encoding",
    "flush": "waiting for the disk",
    "idle": "without a block",
}
"""What people call the stages of a block."""


# ---- devices ---------------------------------------------------------------------------------------------------


def device_record(device: Device) -> Record:
    """Return what an OpenCL device has."""
    return {
        "index": device.index,
        "name": device.name,
        "kind": device.kind,
        "platform": device.platform,
        "driver": device.driver,
        "compute_units": device.compute_units,
        "memory": device.memory,
        "free": device.free,
        "largest_allocation": device.largest_allocation,
        "image_shape": list(device.image_shape),
        "shares_host_memory": device.shares_host_memory,
        "pci": device.pci,
        "uuid": device.uuid,
    }


def device_lines(devices: Sequence[Device]) -> list[Line]:
    """Return what all OpenCL devices have, one line each."""
    lines = []
    for d in devices:
        free = "" if d.free is None else f", {human_bytes(d.free)} free"
        has = [
            f"{human_bytes(d.memory)}{free}",
            f"at most {human_bytes(d.largest_allocation)} at once",
            f"images up to {shape_text(d.image_shape)}",
            count(d.compute_units, "compute unit"),
        ]
        lines.append((f"device {d.index}", f"{d.name} ({d.kind.upper()}, {d.platform} {d.driver}): {'; '.join(has)}"))
    return lines


# ---- words -----------------------------------------------------------------------------------------------------


def count(n: int, what: str, many: str = "") -> str:
    """Return a number of things, in singular or plural."""
    return f"{n:,} {what if n == 1 else many or what + 's'}"


def clock(seconds: float) -> str:
    """Return a time since the start for people.

    Examples
    --------
    >>> clock(0), clock(0.25), clock(75), clock(3 * 3600 + 60)
    ('0 s', '0.25 s', '1:15', '3:01:00')
    """
    if seconds < 60:
        return f"{seconds:g} s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _kernel(plan: Plan) -> str:
    """Return the kernel's name, and where it is widened."""
    shrinking = [axis for axis, f in zip(AXES, plan.factor, strict=True) if f < 1]
    if plan.antialias and shrinking:
        return f"{plan.interpolation}, anti-aliased along {', '.join(shrinking)}"
    return plan.interpolation


def _chunks(chunks: Sequence[int]) -> str:
    if math.prod(chunks) == 1:
        return "none: any voxel can be read by itself"
    return f"{shape_text(chunks)} voxels are decoded in one go"


def grid_record(grid: VoxelGrid) -> Record:
    """Return a grid as JSON values."""
    return {
        "shape": list(grid.shape),
        "voxel_size": list(grid.voxel_size),
        "origin": list(grid.origin),
        "unit": grid.unit,
    }


def grid_text(grid: VoxelGrid) -> str:
    """Return how many voxels a grid has, and of which size."""
    unit = f" {grid.unit}" if grid.unit else ""
    return f"{shape_text(grid.shape)} voxels of {_numbers(grid.voxel_size)}{unit}"


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as Python writes it, whatever kind of numbers it has."""
    return f"({', '.join(str(n) for n in shape)})"


def _numbers(values: Sequence[float]) -> str:
    return " x ".join(map(number_text, values))
