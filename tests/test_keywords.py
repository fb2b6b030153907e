"""Keywords that a function does not have are refused, and not left out of account."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import isovoxel
from isovoxel.options import Opening, ScalingOptions
from isovoxel.reporting.report import Report

ARRAY = np.zeros((4, 5, 6), np.uint8)

CALLS: dict[str, Callable[..., Any]] = {
    "open_volume": lambda **given: isovoxel.open_volume(ARRAY, **given),
    "plan": lambda **given: isovoxel.plan(ARRAY, **given),
    "scale": lambda **given: isovoxel.scale(ARRAY, "out.zarr", **given),
    "convert": lambda **given: isovoxel.convert(ARRAY, "out.zarr", **given),
    "limits": lambda **given: isovoxel.limits(ARRAY, **given),
    "verify": lambda **given: isovoxel.verify("out.zarr", **given),
    "workers": isovoxel.workers,
    "images": lambda **given: isovoxel.images("plate.zarr", **given),
    "scale_array": lambda **given: isovoxel.scale_array(ARRAY, 2, **given),
    "show": lambda **given: isovoxel.show(ARRAY, **given),
    "Report": lambda **given: Report("r.html", "a.npy", "out.zarr", **given),
}

MISSPELT = [
    ("plan", "zom", "zoom"),
    ("scale", "zom", "zoom"),
    ("scale", "Zoom", "zoom"),
    ("scale", "overwrites", "overwrite"),
    ("scale", "memroy", "memory"),
    ("scale", "withlabels", "with_labels"),
    ("convert", "inputvoxelsize", "input_voxel_size"),
    ("convert", "leves", "levels"),
    ("open_volume", "voxelsize", "voxel_size"),
    ("limits", "chanel", "channel"),
    ("scale", "progres", "progress"),
    ("convert", "progres", "progress"),
    ("verify", "progres", "progress"),
    ("verify", "sample", "samples"),
    ("workers", "schedular", "scheduler"),
    ("scale_array", "interpolaton", "interpolation"),
    ("show", "croped", "crop"),
    ("images", "imgae", "image"),
    ("Report", "croped", "crop"),
]


@pytest.mark.parametrize(("name", "given", "meant"), MISSPELT)
def test_an_unknown_keyword_is_refused_with_the_nearest(
    name: str, given: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a TypeError, as Python's own, before anything is read or written."""
    monkeypatch.chdir(tmp_path)
    text = rf"^{name}\(\) got an unexpected keyword argument '{given}'; did you mean {meant}\?$"
    with pytest.raises(TypeError, match=text):
        CALLS[name](**{given: 4})
    with pytest.raises(TypeError, match=rf"^{name}\(\) got an unexpected keyword argument 'q'$"):
        CALLS[name](q=4)
    assert list(tmp_path.iterdir()) == []


def test_everything_exported_is_looked_at() -> None:
    """What takes options takes no others; a signature stays what it was."""
    functions = {name for name in isovoxel.__all__ if inspect.isfunction(getattr(isovoxel, name))}
    takes_keywords = {n for n in functions if any(p.default is not p.empty for p in parameters(n))}
    assert takes_keywords <= CALLS.keys()
    assert [p.name for p in parameters("open_volume")][1:] == list(Opening.__annotations__)
    assert parameters("scale")[-1].kind is inspect.Parameter.VAR_KEYWORD


def parameters(name: str) -> list[inspect.Parameter]:
    """Return the parameters of a function that is exported."""
    return list(inspect.signature(getattr(isovoxel, name)).parameters.values())


def test_known_keywords_pass() -> None:
    """Each option of `ScalingOptions` is taken, None too."""
    nothing: Any = dict.fromkeys(ScalingOptions.__annotations__)
    given = nothing | {"factor": (1, 1, 1), "boundary": "nearest", "device": "auto", "halo": "auto", "antialias": False}
    assert isovoxel.plan(ARRAY, **given | {"codec": "lz4", "ome_zarr": "0.5"}).factor == (1, 1, 1)
