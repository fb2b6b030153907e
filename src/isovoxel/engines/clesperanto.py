"""The two generations of clEsperanto behind one seam: the prototype where it can be imported, else its successor.

Which of them can be imported is tried, for pins and versions say less than the import. ``ISOVOXEL_CLE=prototype`` or
``ISOVOXEL_CLE=pyclesperanto`` chooses.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from isovoxel.engines.kernel_caches import prepare_caches
from isovoxel.errors import DeviceError, OptionError
from isovoxel.geometry.box import Index3
from isovoxel.geometry.grid import Float3

NEWEST = (3, 15)
"""First Python without wheels of either."""
WITHOUT = "without --engine cle exact scales"
"""What to do where none is there."""
CHOICE = "ISOVOXEL_CLE"
"""Variable that chooses between the two."""


class Clesperanto(Protocol):
    """What engine `cle` needs of either generation. Whoever calls it has the turn."""

    package: str
    """Its name on PyPI."""
    version: str
    """Its version."""
    fixed_shapes: bool
    """Whether its kernels are compiled for each shape of an array, so that all blocks of a job should have one."""

    def queue(self, handle: Any) -> Any:
        """Return a queue on a ``pyopencl.Device``, of the context in which this generation's arrays lie."""
        ...

    def scale(
        self,
        queue: Any,
        source: tuple[Any, Index3],
        result: tuple[Any, Index3],
        factor: Float3,
        matrix: NDArray[np.float64] | None,
        *,
        linear: bool,
    ) -> None:
        """Scale a float32 array in device memory, behind what the queue has to do and before what it gets next.

        Parameters
        ----------
        queue
            One that `queue` has returned.
        source, result
            Buffer and shape, z, y, x, of the array that is read and of the one that is written.
        factor
            Output samples per input sample, z, y, x, for ``cle.scale``.
        matrix
            In place of it, the 4 x 4 matrix, x, y, z, from input to output coordinates, for ``cle.affine_transform``.
        linear
            Whether to interpolate; otherwise the nearest sample is taken.
        """
        ...


def _prototype() -> Clesperanto:
    from isovoxel.engines.prototype import Prototype

    return Prototype()


def _successor() -> Clesperanto:
    from isovoxel.engines.successor import Successor

    return Successor()


_GENERATIONS: dict[str, Callable[[], Clesperanto]] = {"prototype": _prototype, "pyclesperanto": _successor}
"""What opens each generation, in the order in which they are tried."""


@lru_cache
def clesperanto() -> Clesperanto:
    """Return the generation of clEsperanto that this process uses.

    Raises
    ------
    OptionError
        If `CHOICE` names none.
    DeviceError
        If none can be imported; the message says why, and what helps.
    """
    found = _tried()
    if isinstance(found, str):
        raise DeviceError(f"engine cle needs clEsperanto, which cannot be imported: {found}; {remedy()}; {WITHOUT}")
    return found


def scales_with() -> tuple[str, str]:
    """Return package and version of the clEsperanto that this process uses, or nothing and why there is none.

    Raises
    ------
    OptionError
        If `CHOICE` names none.
    """
    try:
        found = clesperanto()
    except DeviceError:
        return "", f"clEsperanto cannot be imported: {why_missing()}; {remedy()}"
    return f"{found.package} {found.version}", ""


def why_missing() -> str:
    """Return why no clEsperanto can be imported, or nothing where one can."""
    try:
        found = _tried()
    except OptionError as error:
        return str(error)
    return found if isinstance(found, str) else ""


@lru_cache
def _tried() -> Clesperanto | str:
    """Return the first generation that can be imported, or why none can."""
    chosen = os.environ.get(CHOICE, "")
    if chosen and chosen not in _GENERATIONS:
        raise OptionError(f"{CHOICE} must be {' or '.join(_GENERATIONS)}, not {chosen!r}")
    prepare_caches()  # either loads OpenCL
    reasons = []
    for name in [chosen] if chosen else list(_GENERATIONS):
        try:
            return _GENERATIONS[name]()
        except Exception as error:  # noqa: BLE001 - an import that fails may raise anything
            reasons.append(f"{name}: {' '.join(str(error).split()) or type(error).__name__}")
    return "; ".join(reasons)


def remedy() -> str:
    """Say how clEsperanto is had here, or that it is not."""
    machine = platform.machine().lower()
    if sys.version_info >= NEWEST:
        return f"there is no wheel of it for Python {platform.python_version()}, use one before 3.{NEWEST[1]} for it"
    if sys.platform != "darwin" and machine not in ("x86_64", "amd64"):
        return f"there is no wheel of it for {platform.system()} on {machine}"
    return "pip install pyclesperanto brings it"
