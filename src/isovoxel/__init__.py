"""Scale volumes that fit neither the graphics card nor the memory to isotropic voxels."""

from isovoxel.api import (
    ScaleResult,
    ScalingOptions,
    convert,
    devices,
    limits,
    open_volume,
    output_state,
    plan,
    scale,
    scale_array,
    verify,
    workers,
)
from isovoxel.notebook import draw_with
from isovoxel.version import __version__

__all__ = [
    "ScaleResult",
    "ScalingOptions",
    "__version__",
    "convert",
    "devices",
    "limits",
    "open_volume",
    "output_state",
    "plan",
    "scale",
    "scale_array",
    "verify",
    "workers",
]


def _html(value: object) -> str:
    from isovoxel.views.notebook import html

    return html(value)


draw_with(_html)
