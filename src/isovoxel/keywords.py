"""Keywords of the public functions: their types for type checkers, and an error that names the nearest of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import ParamSpec, TypedDict, TypeVar

from isovoxel.geometry.box import Index3
from isovoxel.geometry.grid import Float3

P = ParamSpec("P")
T = TypeVar("T")

CropLike = str | Sequence[slice | Sequence[int | None]]
"""A box of voxels: "z0:z1,y0:y1,x0:x1", or three slices or pairs."""


class Opening(TypedDict, total=False):
    """How an input is opened: the keywords of `open_volume`. None has to be given."""

    voxel_size: Float3 | None
    """`Options.input_voxel_size`; the others have the names of their fields."""
    unit: str | None
    level: int | None
    channel: int | None
    time: int | None
    axes: str | None
    crop: CropLike | None


class ScalingOptions(TypedDict, total=False):
    """How a volume is scaled: the keywords of `plan`, `scale` and `convert`, which `isovoxel.options.Options` explains.

    None has to be given, and None is not given. Defaults are for new outputs. For a job that was begun, or an output
    that is finished, what is not given is taken from there; what is given and differs is refused.

    At most one of `zoom`, `voxel_size` and `factor` says how far; without them the finest of the three voxel sizes
    becomes the size of all. A single plane stays one, unless `factor` says otherwise.
    """

    zoom: float | None
    voxel_size: float | None
    factor: Float3 | None
    input_voxel_size: Float3 | None
    unit: str | None
    level: int | None
    channel: int | None
    time: int | None
    axes: str | None
    crop: CropLike | None
    interpolation: str | None
    antialias: bool | None
    labels: bool | None
    engine: str | None
    boundary: str | None
    device: str | None
    halo: str | None
    memory: int | str | None
    device_memory: int | str | None
    threads: int | None
    chunk: Index3 | None
    shard: Index3 | None
    codec: str | None
    ome_zarr: str | None
    keep_receipts: bool | None
    levels: int | str | None


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return a clause that names what is most like an unknown name, or nothing; a prefix of all names does not count.

    Examples
    --------
    >>> did_you_mean("zom", ["zoom", "unit"]), did_you_mean("x", ["zoom"])
    ('; did you mean zoom?', '')
    """
    from difflib import get_close_matches

    names = {each.removeprefix(prefix).lower(): each for each in known}
    nearest = get_close_matches(name.removeprefix(prefix).lower(), names, n=1)
    return f"; did you mean {names[nearest[0]]}?" if nearest else ""


def checked_keywords(options: type | None = None) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a function refuse keywords that it does not have, by a TypeError that names the nearest.

    Parameters
    ----------
    options
        A TypedDict of those that its ``**options`` takes, which Python does not look at.
    """

    def check(function: Callable[P, T]) -> Callable[P, T]:
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        known = [
            p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds and p.name != "self"
        ]
        known += getattr(options, "__annotations__", {})
        name = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            for given in kwargs:
                if given not in known:
                    hint = did_you_mean(given, known)
                    raise TypeError(f"{name}() got an unexpected keyword argument {given!r}{hint}")
            return function(*args, **kwargs)

        return checked

    return check
