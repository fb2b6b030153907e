"""Plan of a job that was begun: stored as JSON, read back strictly, compared with today's, and resumed.

A plan that is read back may come from a file that is damaged. So each value must be of its field's type, and numbers
that no fingerprint protects must make sense by themselves; any text gives an equal plan or a `ValueError`.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from isovoxel.errors import DoesNotFitError
from isovoxel.geometry.grid import MAX_SAMPLES
from isovoxel.planning.memory import human_bytes
from isovoxel.planning.model import CHOICES, HALO_MODES, check_options
from isovoxel.planning.plan import Plan

LARGEST = 2**63
"""Numbers of a plan are smaller; infinity and what is no number are not."""


def plan_from_json(text: str) -> Plan:
    """Return the plan whose `Plan.to_json` wrote this.

    Raises
    ------
    ValueError
        If it is none.
    """
    try:
        plan: Plan = _decoded(Plan, json.loads(text))
    except (RecursionError, TypeError) as error:  # brackets without end; fields that are not there
        raise ValueError(f"no plan: {error}") from error
    for number, level in enumerate(plan.levels):
        _check(level, number, plan)
    return plan


def _decoded(hint: Any, value: Any) -> Any:
    """Return a value of JSON as a field of this type holds it."""
    if is_dataclass(hint):
        kind: Any = hint
        hints = _hints(kind)
        if not isinstance(value, dict) or not value.keys() <= hints.keys():
            raise ValueError(f"no {getattr(hint, '__name__', hint)}: {value!r:.80}")
        return kind(**{name: _decoded(hints[name], item) for name, item in value.items()})
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return None if value is None else _decoded(inner[0], value)
    if origin is tuple and isinstance(value, list):
        each = (inner[0],) * len(value) if inner[1:] == (...,) else inner
        return tuple(_decoded(kind, item) for kind, item in zip(each, value, strict=True))
    if origin is Mapping and isinstance(value, dict):
        return _tuples(value)
    if hint is float and type(value) in (int, float) and abs(value) < LARGEST:
        return value
    if hint in (int, str, bool) and type(value) is hint and (hint is not int or abs(value) < LARGEST):
        return value
    raise ValueError(f"no {hint}: {value!r:.80}")


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """Return the types of a dataclass's fields."""
    hints = get_type_hints(kind)
    return {name: hints[name] for name in kind.__dataclass_fields__}


def _tuples(value: Any) -> Any:
    """Return JSON with its arrays as tuples, as dataclasses hold them."""
    if isinstance(value, list):
        return tuple(_tuples(v) for v in value)
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return value


def _check(plan: Plan, number: int, full: Plan) -> None:
    """Raise a `ValueError` where a level's numbers make no sense."""
    check_options(halo=plan.halo_mode, **{name: getattr(plan, name) for name in CHOICES})
    lengths = zip(plan.block_shape, plan.storage.shard, plan.output.shape, strict=True)
    sound = (
        (plan.level, plan.along) in ((number, False), (1, number == 1))
        and (plan.gathered == 0 or (number > 1 and plan.gathered > 0))
        and (number == 0 or not plan.further)
        and plan.halo_mode in HALO_MODES[1:]
        and all(0 < f < math.inf for f in plan.factor)
        and all(abs(shift) < MAX_SAMPLES for shift in plan.shift)
        and not (any(plan.shift) and (plan.engine != "exact" or plan.halo_mode != "direct"))
        and all(b > 0 and (b % s == 0 or b >= n) for b, s, n in lengths)
        and min(*plan.source.chunks, *plan.window, plan.in_flight, plan.revision) > 0
        and min(*plan.source.beside[0], *plan.source.beside[1], plan.source.read_overhead, plan.cache, plan.helpers)
        >= 0
        and all(length > 0 for _, length in plan.source.series)
    )
    if not sound or (plan.along and plan.block_grid != full.block_grid):
        raise ValueError(f"the plan of level {number} makes no sense")


# ---- compared with the plan of today -------------------------------------------------------------------------------


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
        gathered=0,  # blocks that are done become no parts
        block_shape=begun.block_shape,
        halo_mode="direct",
        window=(1, 1, 1),
        in_flight=min(planned.host.threads, begun.n_blocks),
        helpers=planned.host.helpers,
    )
    while True:
        for kept in (begun.cache, 0):
            plan = replace(draft, cache=kept)
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
