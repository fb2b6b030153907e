"""Scale volumes that fit neither the graphics card nor the memory to isotropic voxels.

What it exports is loaded when it is first used: the command line has to take Ctrl-C before that.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from isovoxel.engines import registry as _registry  # noqa: F401 - which looks at forks from now on
from isovoxel.notebook import draw_with
from isovoxel.version import __version__

if TYPE_CHECKING:
    from isovoxel.api import (
        ScaleResult,
        ScalingOptions,
        convert,
        devices,
        images,
        limits,
        open_volume,
        output_state,
        plan,
        scale,
        scale_array,
        show,
        verify,
        workers,
    )

__all__ = [
    "ScaleResult",
    "ScalingOptions",
    "__version__",
    "convert",
    "devices",
    "images",
    "limits",
    "open_volume",
    "output_state",
    "plan",
    "scale",
    "scale_array",
    "show",
    "verify",
    "workers",
]


def __getattr__(name: str) -> Any:
    """Load what is exported, or a module of the package, when it is first asked for."""
    if name in __all__:
        found = globals()[name] = getattr(import_module("isovoxel.api"), name)
        return found
    if not name.startswith("_"):
        try:
            return import_module(f"isovoxel.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"isovoxel.{name}":
                raise
    raise AttributeError(f"module 'isovoxel' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return what is loaded and what can be."""
    return sorted({*globals(), *__all__})


def _html(value: object) -> str:
    from isovoxel.reporting.report import notebook_html

    return notebook_html(value)


draw_with(_html)
