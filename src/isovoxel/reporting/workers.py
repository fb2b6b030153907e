"""What do workers have, and what did a job and each of them do? To a machine and to a person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from isovoxel.execution.tally import Share
from isovoxel.planning.memory import human_bytes
from isovoxel.reporting.records import Line, Record, count, result_lines, result_record

if TYPE_CHECKING:
    from isovoxel.execution.distributed.worker_info import WorkerInfo
    from isovoxel.execution.result import ScaleResult


def member_record(member: WorkerInfo) -> Record:
    """Return what a worker has."""
    return {
        "name": member.name,
        "address": member.address,
        "host": member.host,
        "pid": member.pid,
        "device": {
            "name": member.device.name,
            "kind": member.device.kind,
            "pci": member.pci,
            "uuid": member.uuid,
            "memory": member.device.memory,
            "allowed": member.device.allowed,
        },
        "threads": member.limits.threads,
        "versions": dict(member.versions),
    }


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
    return [(f"worker {m.name}", line) for m, line in zip(members, _columns(rows), strict=True)]


def share_record(share: Share, seconds: float) -> Record:
    """Return what a worker did of a job that took so many seconds."""
    return asdict(share) | {"busy_share": share.scale_seconds / seconds if seconds else 0.0}


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
    return [(f"worker {name}", line) for name, line in zip(shares, _columns(rows), strict=True)]


def job_record(result: ScaleResult) -> Record:
    """Return what a job did, and what each of its workers did, where there were several."""
    record = result_record(result)
    if result.workers:
        record["workers"] = {name: share_record(share, result.seconds) for name, share in result.workers.items()}
    if result.labels is not None:
        record["labels"] = job_record(result.labels)
    return record


def job_lines(result: ScaleResult) -> list[Line]:
    """Return what a job did, and what each of its workers did, where there were several."""
    lines = result_lines(result) + (share_lines(result) if result.workers else [])
    return lines if result.labels is None else [*lines, ("labels", "of the image:"), *job_lines(result.labels)]


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return rows of cells as lines whose cells stand below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
