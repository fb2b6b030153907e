"""Names that options take, and which engine has what."""

from __future__ import annotations

from isovoxel.errors import OptionError

ENGINES = {"cle": ("linear", "nearest"), "exact": ("linear", "nearest", "cubic", "area", "mode")}
"""Engines, and the interpolations that each has."""
GENERATIONS = {"prototype": "pyclesperanto-prototype", "pyclesperanto": "pyclesperanto"}
"""Generations of clEsperanto, as ``ISOVOXEL_CLE`` calls them, and their packages, in the order of trying them."""
MOVES = ("nearest", "mode")
"""Interpolations that move voxels and make no new values: those for labels."""
FILTERS = ("linear", "cubic")
"""Interpolations that anti-aliasing widens."""
BOUNDARIES = ("nearest", "constant")
HALO_MODES = ("auto", "map_overlap", "direct")


def check_options(
    *,
    interpolation: str,
    engine: str = "cle",
    antialias: bool = False,
    boundary: str = "nearest",
    halo: str = "auto",
) -> None:
    """Raise an `OptionError` for a choice that does not exist, or that the engine does not have."""
    everything = tuple(dict.fromkeys(name for names in ENGINES.values() for name in names))
    for name, value, choices in (
        ("engine", engine, tuple(ENGINES)),
        ("interpolation", interpolation, everything),
        ("boundary", boundary, BOUNDARIES),
        ("halo", halo, HALO_MODES),
    ):
        if value not in choices:
            raise OptionError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
    if interpolation not in ENGINES[engine]:
        raise OptionError(
            f"interpolation with engine {engine} must be one of {', '.join(ENGINES[engine])}, not {interpolation!r}; "
            "engine exact has it"
        )
    if antialias and engine != "exact":
        raise OptionError(f"engine {engine} has no anti-aliasing; use engine exact")
    if antialias and interpolation not in FILTERS:
        raise OptionError(f"anti-aliasing widens {' and '.join(FILTERS)} interpolation, not {interpolation}")
