"""What did `verify` and `limits` find, to a machine and to a person? One record and one list of lines of each."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from isovoxel.execution.host import peak_bytes
from isovoxel.planning.memory import human_bytes
from isovoxel.planning.one_piece import WholeLimits
from isovoxel.reporting.records import Line, Record, count, grid_record, grid_text, shape_text

if TYPE_CHECKING:
    from isovoxel.execution.verify import Verdict


def verdict_record(found: Verdict) -> Record:
    """Return what verifying a result found."""
    memory = {"projected": {"host_bytes": found.projected}, "allowed": {"host_bytes": found.allowed}}
    record = asdict(found) | memory | {"peak_host_bytes": peak_bytes(), "holds": found.holds}
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in record.items()}


def verdict_lines(found: Verdict) -> list[Line]:
    """Return what verifying a result found."""
    off = f"{100 * found.off_share:.3g} % of voxels are off by more than rounding"
    expected = ", as this engine's precision allows" if found.off_allowed and found.wrong == 0 else ""
    wrong = "no voxel is further off than the engine states"
    if found.wrong:
        level = f" of level {found.first_wrong_level}" if found.first_wrong_level else ""
        first = f"the first at {found.first_wrong}{level}"
        wrong = f"{count(found.wrong, 'voxel')} further off than the engine states, {first}"
    faces = f"error jumps by {found.face_jump:.4g} across block faces, by {found.inner_jump:.4g} inside"
    if found.faces == 0:
        faces = f"no box lies between two blocks; inside of one the error jumps by {found.inner_jump:.4g}"
    changed = []
    if found.source_changes:
        what = ", ".join(found.source_changes)
        changed = [("source", f"has changed since the result was made ({what}), which may be why voxels differ")]
    levels = f" of {found.levels} levels" if found.levels > 1 else ""
    missing = "all are there" if found.missing_shards == 0 else f"{count(found.missing_shards, 'shard')} missing"
    damaged = []
    if found.unreadable:
        boxes = count(found.unreadable, "box", "boxes")
        damaged = [("damage", f"{boxes} cannot be read, the first because {found.first_unreadable}")]
    stored = []
    if found.receipts is not None:
        said = f"{count(found.receipts, 'shard')} read and compared" if found.receipts else "gone, so none was compared"
        stored.append(("receipts", said))
    if found.chunks is not None:
        stored.append(("chunks", f"{count(found.chunks, 'chunk')} read"))
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
        *changed,
        ("verdict", f"{'holds' if found.holds else 'does not hold'}: {_reasons(found, wrong)}"),
    ]


def _reasons(found: Verdict, wrong: str) -> str:
    """Return why a result does not hold; of one that does, what was found of its voxels."""
    reasons = [
        *([f"{count(found.missing_shards, 'shard')} missing"] if found.missing_shards else []),
        *(["damaged files"] if found.unreadable or found.damaged else []),
        *([wrong] if found.wrong else []),
        *(["the error jumps across block faces"] if found.face_jump > found.jump_allowed else []),
    ]
    return ", ".join(reasons) or wrong


def limits_record(found: WholeLimits) -> Record:
    """Return where scaling in one piece stops."""
    return {
        "input": grid_record(found.grid),
        "interpolation": found.interpolation,
        "device": {
            "name": found.device.name,
            "kind": found.device.kind,
            "memory": found.device.memory,
            "largest_allocation": found.device.largest_allocation,
            "image_shape": list(found.device.image_shape),
            "buffer_voxels": found.device.buffer_voxels,
        },
        "stops_at_zoom": _finite(found.first.zoom),
        "limit": found.first.limit,
        "crossings": [
            {
                "limit": c.limit,
                "allowed": c.allowed,
                "zoom": _finite(c.zoom),
                "shape": list(c.shape),
                "needed": c.needed,
            }
            for c in found.crossings
        ],
    }


def limits_lines(found: WholeLimits) -> list[Line]:
    """Return the answers to the tutorial's questions, and when each limit is reached."""
    first, device = found.first, found.device
    if first.zoom == 0:
        crash = f"at every zoom: {first.needed} exceeds the {first.limit} of {first.allowed}"
    else:
        crash = f"at zoom {_zoom(first.zoom)}: {first.needed} exceeds the {first.limit} of {first.allowed}"
    size = f"{shape_text(first.shape)} voxels: {human_bytes(4 * math.prod(first.shape))} as float32"
    has = f"has {human_bytes(device.memory)}, allocates at most {human_bytes(device.largest_allocation)} at once"
    images = f"images of {shape_text(device.image_shape)} voxels"
    lines = [
        ("input", grid_text(found.grid)),
        ("in one piece", f"cle.scale ({found.interpolation}) stops {crash}"),
        ("image there", f"{size}, which is what cle.scale makes"),
        ("device", f"{device.name} ({device.kind.upper()}) {has} and {images}"),
    ]
    for c in found.crossings[1:]:
        when = "never" if math.isinf(c.zoom) else f"from zoom {_zoom(c.zoom)}, {c.needed}"
        lines.append(("next limit" if c is found.crossings[1] else "", f"{c.limit} of {c.allowed}: {when}"))
    lines.append(("isovoxel", "goes on beyond all of them, block by block: isovoxel scale INPUT OUT.zarr --zoom Z"))
    return lines


def _zoom(zoom: float) -> str:
    return f"{zoom:,.4g}" if zoom < 1e4 else f"{zoom:.3g}"


def _finite(zoom: float) -> float | None:
    return None if math.isinf(zoom) else zoom
