"""Which workers does a user ask for? At most one option says so, and not all others go with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from isovoxel.errors import OptionError


def check_choice(given: Mapping[str, Any], *, source: Any = None, device: str = "auto", isolate: bool = False) -> bool:
    """Tell whether workers are asked for.

    Parameters
    ----------
    given
        What the options ``workers``, ``scheduler`` and ``client`` say, None where they say nothing.
    source, device, isolate
        What the user says beside them, as in `isovoxel.scale`.

    Raises
    ------
    OptionError
        If more than one of the options is given, or something that does not go with workers.
    """
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise OptionError(f"{' and '.join(names)} each say which workers there are; give only one of them")
    if not names:
        return False
    if isolate:
        raise OptionError(
            f"isolate and {names[0]} do not go together: workers are processes of their own; leave it out"
        )
    if device != "auto":
        raise OptionError(
            f"device says where this process computes, and with {names[0]} each worker holds a device of its own; "
            "leave it out, and choose with ISOVOXEL_DEVICE in the worker's environment"
        )
    check_reachable(source)
    return True


def check_reachable(source: Any) -> None:
    """Refuse an input that no worker can open.

    Raises
    ------
    OptionError
        If it is an array in this process' memory.
    """
    if isinstance(source, np.ndarray) or isinstance(getattr(source, "data", None), np.ndarray):  # a DataArray of one
        raise OptionError(
            "an array in this process' memory is not there for workers; write it to a file that they see, such as .npy "
            "or zarr, and give its path"
        )
