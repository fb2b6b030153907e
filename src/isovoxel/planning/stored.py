"""How is a plan kept, and sent elsewhere? As JSON, of which an equal one is made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from isovoxel.geometry.grid import VoxelGrid
from isovoxel.planning.limits import DeviceLimits, HostLimits
from isovoxel.planning.parts import Source
from isovoxel.planning.plan import Plan
from isovoxel.planning.storage import Storage


def plan_to_json(plan: Plan) -> str:
    """Return a plan as JSON, from which `plan_from_json` makes an equal plan."""
    return json.dumps(asdict(plan))


def plan_from_json(text: str) -> Plan:
    """Return the plan that `plan_to_json` wrote.

    Raises
    ------
    ValueError, KeyError, TypeError
        If it is none.
    """
    return _plan(_tuples(json.loads(text)))


def _plan(d: Mapping[str, Any]) -> Plan:
    source = d["source"]
    return Plan(
        **{
            **d,
            "source": Source(**source | {"grid": VoxelGrid(**source["grid"])}),
            "output": VoxelGrid(**d["output"]),
            "storage": Storage(**d["storage"]),
            "device": DeviceLimits(**d["device"]),
            "host": HostLimits(**d["host"]),
            "further": tuple(_plan(level) for level in d.get("further", ())),
        }
    )


def _tuples(value: Any) -> Any:
    """Return JSON with its arrays as tuples, as dataclasses hold them."""
    if isinstance(value, list):
        return tuple(_tuples(v) for v in value)
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return value
