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
