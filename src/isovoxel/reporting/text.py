"""Text for people about volumes, plans, results, devices and findings: lines of a label and what it labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from isovoxel.errors import InputError
from isovoxel.geometry.grid import AXES, VoxelGrid, number_text, numbers_text
from isovoxel.metadata.series import WORDS
from isovoxel.planning.memory import human_bytes
from isovoxel.planning.one_piece import WholeLimits
from isovoxel.planning.plan import Plan
from isovoxel.readers.base import Volume
from isovoxel.reporting.records import Opened, by_grid
from isovoxel.terminal import columns

if TYPE_CHECKING:
    from isovoxel.engines.devices import Device
    from isovoxel.execution.distributed.worker_info import WorkerInfo
    from isovoxel.execution.output import OutputState
    from isovoxel.execution.result import Forecast, ScaleResult, Tally
    from isovoxel.execution.verify import Verdict

Line = tuple[str, str]
"""A label and what it labels."""
STAGES = {
    "read": "reading",
    "wait": "waiting for the device",
    "scale": "scaling",
    "write": "encoding",
    "flush": "waiting for the disk",
    "idle": "idle",
}
"""What people call the stages of a block."""
_HALO = {
    "map_overlap": "map_overlap (blocks exchange it)",
    "direct": "direct reads (each block reads its own)",
}
_MOST_PARTS = 8
"""How many damaged parts are named; the output's attributes have all."""


# ---- info ------------------------------------------------------------------------------------------------------------


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
        empty = f"; {count(state.empty, 'shard')} of nothing but zeros, stored as no files" if state.empty else ""
        return [("written", f"by isovoxel, complete{empty}")]
    known = (
        f"{state.done:,} of {count(state.blocks, 'block')} done" if state.blocks else "how much is done is not known"
    )
    return [("written", f"by isovoxel, NOT complete: {known}; {state.holder or 'nobody'} is at it")]


def _chunks(chunks: Sequence[int]) -> str:
    if math.prod(chunks) == 1:
        return "none: any voxel can be read by itself"
    return f"{shape_text(chunks)} voxels are decoded in one go"


# ---- plan ------------------------------------------------------------------------------------------------------------


def plan_lines(plan: Plan, cost: Forecast | None = None) -> list[Line]:
    """Return what a plan would do, and what it takes and costs."""
    host = max(level.projected_host for level in plan.levels)
    device = max(level.projected_device for level in plan.levels)
    source, output = plan.source.grid, plan.output
    halo = ", ".join(f"{axis} {before}+{after}" for axis, (before, after) in zip(AXES, plan.halo, strict=True))
    grid = " x ".join(str(n) for n in plan.block_grid)
    blocks = f"{plan.n_blocks:,} of {shape_text(plan.block_shape)} voxels"
    volumes = f"{plan.source.n_volumes:,} x " if plan.source.series else ""
    decoded = ", decompressed by the GPU" if plan.device.decoding else ""
    return [
        ("input", f"{plan.source.name}   {grid_text(source)}, {plan.source.dtype}{decoded}"),
        ("output", f"{grid_text(output)}, {plan.source.dtype}, {human_bytes(plan.output_bytes)}"),
        *_series_lines(plan.source.series),
        ("factors", f"{_numbers(plan.factor)}   ({_kernel(plan)}, boundary {plan.boundary})"),
        ("engine", f"{_engine(plan)} on {plan.device.name} ({plan.device.kind.upper()})"),
        ("blocks", f"{blocks}   ({volumes}{grid} along z, y, x; {plan.in_flight} in flight)"),
        ("halo", f"{halo} input voxels, by {_HALO[plan.halo_mode]}"),
        ("files", f"{_files(plan)}, {plan.storage.codec_name}" + (" by the GPU" if plan.device.encoding else "")),
        *_level_lines(plan),
        ("host", _memory(host, plan.host.allowed, "--memory")),
        ("device", _memory(device, plan.device.allowed, "--device-memory")),
        *_cost_lines(cost),
    ]


def _cost_lines(cost: Forecast | None) -> list[Line]:
    """Return what a job costs beside memory."""
    if cost is None:
        return []
    known = "unknown, for no job like it was done here before"
    if cost.seconds is not None:
        known = f"about {_seconds(cost.seconds)}, as earlier jobs here took"
    return [("disk", f"at most {human_bytes(cost.nbytes)} in {count(cost.files, 'file')}"), ("time", known)]


def _engine(plan: Plan) -> str:
    """Return which engine scales, and of cle whose."""
    return f"{plan.engine} of {plan.library}" if plan.library else plan.engine


def _kernel(plan: Plan) -> str:
    """Return the kernel's name, and where it is widened."""
    shrinking = [axis for axis, f in zip(AXES, plan.factor, strict=True) if f < 1]
    if plan.antialias and shrinking:
        return f"{plan.interpolation}, anti-aliased along {', '.join(shrinking)}"
    return plan.interpolation


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


# ---- scale -----------------------------------------------------------------------------------------------------------


def result_lines(result: ScaleResult) -> list[Line]:
    """Return what a job did."""
    plan = result.plan
    if not result.seconds:
        what = f"{grid_text(plan.output)}, {plan.source.dtype}"
        return [("complete", f"{result.path}   {what}; it was there already, made in this way: nothing was done")]
    stages = ", ".join(f"{STAGES[name]} {seconds:.1f} s" for name, seconds in result.stages.items())
    speed = f"{result.voxels_per_second / 1e6:,.1f} Mvoxel/s"
    seconds = None if result.expected is None else result.expected.seconds
    took = f"{result.seconds:.1f} s" + ("" if seconds is None else f" (expected: {_seconds(seconds)})")
    return [
        ("written", f"{result.path}   {grid_text(plan.output)}, {plan.source.dtype}"),
        *_level_lines(plan),
        ("time", f"{took}, {speed}, {count(plan.all_blocks, 'block')} on {plan.device.name}"),
        ("threads", f"{_threads(plan)}; summed time: {stages}"),
        ("host peak", f"{human_bytes(result.peak_host_bytes)}; limit {human_bytes(plan.host.allowed)} (--memory)"),
        *happened_lines(result.tally),
    ]


def _threads(plan: Plan) -> str:
    return f"{plan.host.workers} x {plan.in_flight}" if plan.host.workers > 1 else str(plan.in_flight)


def happened(tally: Tally) -> list[str]:
    """Return what did not go as planned, and went well, as clauses."""
    said = []
    if tally.done_before:
        said.append(f"{count(tally.done_before, 'block')} done before")
    if tally.split:
        said.append(f"{count(tally.split, 'block')} in up to {tally.pieces} pieces, for the device's memory")
    if tally.slowed_to:
        said.append(f"{count(tally.slowed_to, 'block')} in flight in the end, for the host's memory")
    if tally.encoded_by_processor:
        said.append(f"the processor compressed in the GPU's place ({tally.encoded_by_processor})")
    if tally.retries:
        said.append(f"{count(tally.retries, 'attempt')} that failed, and then did not")
    if tally.restarts:
        said.append(f"{count(tally.restarts, 'fresh process', 'fresh processes')}")
    return said


def happened_lines(tally: Tally) -> list[Line]:
    """Return what did not go as planned, and went well; of damaged parts a few."""
    said = happened(tally)
    lines = [("went on", ", ".join(said))] if said else []
    shown = tally.filled[:_MOST_PARTS]
    more = [f"and {len(tally.filled) - len(shown)} more"] if len(tally.filled) > len(shown) else []
    return lines + ([("filled", "; ".join([*shown, *more]) + ": they are 0")] if shown else [])


def job_lines(result: ScaleResult) -> list[Line]:
    """Return what a job did, and what each of its workers did, where there were several."""
    lines = result_lines(result) + (share_lines(result) if result.workers else [])
    return lines if result.labels is None else [*lines, ("labels", "of the image:"), *job_lines(result.labels)]


def share_lines(result: ScaleResult) -> list[Line]:
    """Return what each worker did of a job, one line each, in columns."""
    seconds, shares = result.seconds or 1.0, result.workers
    rows = [
        (
            f"{share.device} {share.pci}".strip() + (f" on {share.host}" if share.host else ""),
            count(share.blocks, "block"),
            f"{share.voxels / max(1, result.tally.voxels):.0%}",
            f"{share.voxels / seconds / 1e6:,.1f} Mvoxel/s",
            f"busy {share.scale_seconds / seconds:.0%}",
            f"read {human_bytes(share.read_bytes)}, wrote {human_bytes(share.stored_bytes)}",
            f"left: {share.left}" if share.left else "",
        )
        for share in shares.values()
    ]
    return [(f"worker {name}", line) for name, line in zip(shares, columns(rows), strict=True)]


# ---- devices ---------------------------------------------------------------------------------------------------------


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


def member_lines(members: Sequence[WorkerInfo]) -> list[Line]:
    """Return what all workers have, one line each, in columns."""
    rows = [
        (
            f"on {m.host}",
            f"{m.device.name} ({m.device.kind.upper()})",
            f"PCI {m.pci}" if m.pci else "no PCI bus id",
            f"uses at most {human_bytes(m.device.allowed)} of {human_bytes(m.device.memory)}",
            count(m.limits.threads, "block") + " in flight",
        )
        for m in members
    ]
    return [(f"worker {m.name}", line) for m, line in zip(members, columns(rows), strict=True)]


# ---- verify and limits -----------------------------------------------------------------------------------------------


def verdict_lines(found: Verdict) -> list[Line]:
    """Return what verifying a result found."""
    off = f"{100 * found.off_share:.3g} % of voxels are off by more than rounding"
    expected = ", as this engine's precision allows" if found.off_allowed and found.wrong == 0 else ""
    wrong = "no voxel is further off than the engine states"
    if found.wrong:
        level = f" of level {found.first_wrong_level}" if found.first_wrong_level else ""
        first = f"the first at {found.first_wrong}{level}"
        wrong = f"{count(found.wrong, 'voxel')} further off than the engine states, {first}"
    faces = f"mean error step {found.face_jump:.4g} across block borders, {found.inner_jump:.4g} inside blocks"
    if found.faces == 0:
        faces = f"no box lies between two blocks; mean error step {found.inner_jump:.4g} inside blocks"
    changed = []
    if found.source_changes:
        what = ", ".join(found.source_changes)
        changed = [("source", f"has changed since the result was made ({what}), which may be why voxels differ")]
    levels = f" of {found.levels} levels" if found.levels > 1 else ""
    there = "all of the levels compared are there" if found.metadata_changes else "all are there"
    missing = there if found.missing_shards == 0 else f"{count(found.missing_shards, 'shard')} missing"
    damaged = []
    if found.unreadable:
        boxes = count(found.unreadable, "box", "boxes")
        damaged = [("damage", f"{boxes} cannot be read, the first because {found.first_unreadable}")]
    metadata = [("metadata", change) for change in found.metadata_changes[:MOST_NAMED]]
    if len(found.metadata_changes) > MOST_NAMED:
        metadata.append(("metadata", f"and {len(found.metadata_changes) - MOST_NAMED} more"))
    stored = []
    if found.receipts is not None:
        said = f"{count(found.receipts, 'shard')} read and compared" if found.receipts else "gone, so none was compared"
        stored.append(("receipts", said))
    if found.chunks is not None:
        by_gpu = found.decoder == "gpu" and not found.decoded_by_processor
        stored.append(("chunks", f"{count(found.chunks, 'chunk')} read{', decompressed by the GPU' if by_gpu else ''}"))
    if found.decoded_by_processor:
        from isovoxel.execution.events import DecodedByProcessor

        stored.append(("decoding", str(DecodedByProcessor(found.decoded_by_processor))))
    if found.damaged:
        stored.append(("damage", f"in {count(found.damaged, 'place')}, the first: {found.first_damaged}"))
    return [
        (
            "compared",
            f"{found.voxels:,} voxels in {found.samples:,} boxes{levels}, block corners, faces and edges first",
        ),
        ("error", f"largest {found.largest_error:.4g}, mean {found.mean_error:.4g} (against float64)"),
        ("rounding", off + expected),
        ("faces", faces),
        ("shards", missing),
        *damaged,
        *stored,
        *metadata,
        *changed,
        ("verdict", f"{_holds(found)}: {_reasons(found, wrong)}"),
    ]


def _reasons(found: Verdict, wrong: str) -> str:
    """Return why a result does not hold; of one that does, what was found of its voxels."""
    reasons = [
        *([f"{count(found.missing_shards, 'shard')} missing"] if found.missing_shards else []),
        *(["damaged files"] if found.unreadable or found.damaged else []),
        *([wrong] if found.wrong else []),
        *(["the error steps at block borders"] if found.face_jump > found.jump_allowed else []),
        *found.metadata_changes[:1],
    ]
    return ", ".join(reasons) or wrong


def limits_lines(found: WholeLimits) -> list[Line]:
    """Return the answers to the tutorial's questions, and when each limit is reached."""
    first, device = found.first, found.device
    if first.zoom == 0:
        crash = f"at every zoom: {first.needed} exceeds the {first.limit} of {first.allowed}"
    else:
        crash = f"from zoom {_zoom(first.zoom)} on: {first.needed} exceeds the {first.limit} of {first.allowed}"
    size = f"{shape_text(first.shape)} voxels: {human_bytes(4 * math.prod(first.shape))} as float32"
    has = f"has {human_bytes(device.memory)}, allocates at most {human_bytes(device.largest_allocation)} at once"
    images = f"images of {shape_text(device.image_shape)} voxels"
    lines = [
        ("input", grid_text(found.grid)),
        ("in one piece", f"cle.scale ({found.interpolation}) fails {crash}"),
        ("at that zoom", f"{size}, as cle.scale returns"),
        ("device", f"{device.name} ({device.kind.upper()}) {has} and {images}"),
    ]
    for c in found.crossings[1:]:
        when = "not reached" if math.isinf(c.zoom) else f"from zoom {_zoom(c.zoom)}, {c.needed}"
        lines.append(("next limit" if c is found.crossings[1] else "", f"{c.limit} of {c.allowed}: {when}"))
    lines.append(("isovoxel", "scales beyond all of them, block by block: isovoxel scale INPUT OUT.zarr --zoom Z"))
    return lines


def _zoom(zoom: float) -> str:
    return f"{zoom:,.4g}" if zoom < 1e4 else f"{zoom:.3g}"


# ---- words -----------------------------------------------------------------------------------------------------------


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
    return f"{seconds:g} s" if seconds < 60 else duration(seconds)


def _seconds(seconds: float) -> str:
    """Return a time that is known roughly: in tenths, seconds, or minutes and seconds."""
    return f"{seconds:.1f} s" if seconds < 9.95 else clock(round(seconds))


def duration(seconds: float) -> str:
    """Return seconds as m:ss or h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def grid_text(grid: VoxelGrid) -> str:
    """Return how many voxels a grid has, and of which size."""
    unit = f" {grid.unit}" if grid.unit else ""
    return f"{shape_text(grid.shape)} voxels of {_numbers(grid.voxel_size)}{unit}"


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as Python writes it, whatever kind of numbers it has."""
    return f"({', '.join(str(n) for n in shape)})"


def _numbers(values: Sequence[float]) -> str:
    return " x ".join(map(number_text, values))


def shortened(words: str, longest: int) -> str:
    """Return text of at most so many characters: of a longer one the beginning and the end.

    Examples
    --------
    >>> shortened("comparing boxes of /a/long/path/out.zarr", 25)
    'comparing b...th/out.zarr'
    """
    half = (longest - 3) // 2
    return words if len(words) <= longest else f"{words[:half]}...{words[-half:]}"


# ---- several images -------------------------------------------------------------------------------------------------

# A line for each image, or for each grid, and the sums.


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


def plans_lines(name: str, plans: Mapping[str, Plan]) -> list[Line]:
    """Return what plans of several images would do: a line for each distinct grid, and the sums."""
    grids = by_grid(plans)
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


def _grid_line(plans: Mapping[str, Plan], paths: list[str]) -> str:
    plan = plans[paths[0]]
    named = ", ".join(paths[:MOST_NAMED]) + (", ..." if len(paths) > MOST_NAMED else "")
    volumes = f" of {plan.source.n_volumes} volumes" if plan.source.series else ""
    grids = f"{grid_text(plan.source.grid)} to {grid_text(plan.output)}, {plan.source.dtype}"
    each = " each" if len(paths) > 1 else ""
    return f"{count(len(paths), 'image')}{volumes} ({named}): {grids}; {count(plan.all_blocks, 'block')}{each}"


def verified_lines(found: Verdict) -> list[Line]:
    """Return what verifying a result found, of each of its images where it has several, or labels."""
    each = [
        (f"image {path}", _holds(image) + (f"; no voxel was compared: {image.uncompared}" if image.uncompared else ""))
        for path, image in found.images.items()
    ]
    return [*each, *verdict_lines(found)]


def _holds(found: Verdict) -> str:
    if not found.holds:
        return "does not hold"
    return "holds as far as it was compared" if found.uncompared else "holds"
