"""Plan of a job that resumes: the blocks that it was begun with, within the limits of today."""

from __future__ import annotations

from dataclasses import replace

from isovoxel.errors import DoesNotFitError
from isovoxel.planning.memory import human_bytes
from isovoxel.planning.plan import Plan


def makes_the_same(begun: Plan, planned: Plan) -> bool:
    """Return whether a plan makes the same voxels as one that a job was begun by, cut into the blocks of that one."""
    if len(begun.levels) != len(planned.levels):
        return False
    # Not by their hashes: 1 and 1.0 are the same.
    both = zip(begun.levels, _cut_alike(begun, planned).levels, strict=True)
    return all(then.makes == now.makes for then, now in both)


def _cut_alike(begun: Plan, planned: Plan) -> Plan:
    """Return a plan with the blocks and shards of another one, at all levels."""
    further = tuple(
        replace(_cut_alike(then, now), source=then.source)
        for then, now in zip(begun.further, planned.further, strict=True)
    )
    return replace(planned, further=further, storage=begun.storage, block_shape=begun.block_shape, along=begun.along)


def continued(begun: Plan, planned: Plan) -> Plan:
    """Return the plan of a job that was begun earlier: its blocks and shards, within the limits of today.

    Blocks are read directly, for neighbours of those that are done need not be read. So it is for each level; a
    further one reads the level before as that was begun.

    Parameters
    ----------
    begun
        The plan that the job was begun by.
    planned
        The plan that would be made now; what it makes is the same.

    Raises
    ------
    DoesNotFitError
        If a block does not fit the limits of today.
    """
    further = tuple(
        continued(then, replace(now, source=then.source))
        for then, now in zip(begun.further, planned.further, strict=True)
    )
    draft = replace(
        planned,
        further=further,
        storage=begun.storage,
        along=begun.along,
        block_shape=begun.block_shape,
        halo_mode="direct",
        window=(1, 1, 1),
        in_flight=min(planned.host.threads, begun.n_blocks),
        helpers=planned.host.helpers,
    )
    while True:
        for cache in (begun.cache, 0):
            plan = replace(draft, cache=cache)
            excess = plan.cost.excess(plan.device, plan.in_flight)
            if not excess and plan.projected_host <= plan.host.allowed:
                return plan
        if draft.in_flight == 1:
            break
        in_flight = draft.in_flight // 2
        draft = replace(draft, in_flight=in_flight, helpers=min(draft.helpers, in_flight - 1))
    much = f"{human_bytes(plan.projected_host)} of host memory, of which {human_bytes(plan.host.allowed)} are allowed"
    raise DoesNotFitError(
        f"the job was begun with blocks of {begun.block_shape} voxels, of which one takes {excess or much}; "
        "choose more memory, or begin anew with --overwrite"
    )
