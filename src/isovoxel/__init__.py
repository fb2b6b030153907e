"""Scale volumes that fit neither the graphics card nor the memory to isotropic voxels."""

from isovoxel.api import (
    ScaleResult,
    ScalingOptions,
    devices,
    limits,
    open_volume,
    plan,
    scale,
    scale_array,
)

__version__ = "0.1.0"

__all__ = [
    "ScaleResult",
    "ScalingOptions",
    "__version__",
    "devices",
    "limits",
    "open_volume",
    "plan",
    "scale",
    "scale_array",
]
