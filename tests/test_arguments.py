"""Whatever Python callers give in place of what a function takes, they get isovoxel's own error, or a result."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import isovoxel
from isovoxel.errors import IsovoxelError, OptionError
from isovoxel.geometry.grid import VoxelGrid
from isovoxel.options import Opening, ScalingOptions

VOLUME = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)
FACTOR: dict[str, Any] = {"factor": (1, 1, 1), "input_voxel_size": (1, 1, 1)}

VALUES: dict[str, Any] = {
    "None": None,
    "True": True,
    "a number": 2,
    "a number as text": "2",
    "a fraction": 2.5,
    "0": 0,
    "-1": -1,
    "beyond float64": 10**400,
    "nan": float("nan"),
    "inf": float("inf"),
    "complex": 1 + 1j,
    "decimal": Decimal(2),
    "bytes": b"2",
    "no text": "",
    "a NUL": "\0",
    "a tuple of nothing": (),
    "four": (1, 1, 1, 1),
    "nans": (float("nan"),) * 3,
    "vast": (10**400,) * 3,
    "Nones": (None, None, None),
    "texts": ("1", "1", "1"),
    "booleans": (True, True, True),
    "a set": {1, 2, 3},
    "a dict": {1: 1, 2: 2, 3: 3},
    "an array": np.ones((2, 3)),
    "a vector": np.ones(3),
    "NumPy's number": np.int64(2),
    "an array of no axes": np.array(2.0),
    "NumPy's boolean": np.bool_(True),
    "a path": Path("x"),
    "an object": object(),
    "a type": int,
}


def of_plan(name: str) -> dict[str, Any]:
    return {"input_voxel_size": (1, 1, 1)} if name in ("zoom", "voxel_size", "like") else FACTOR


def of_scale_array(name: str) -> dict[str, Any]:
    like = {"like": VoxelGrid((4, 5, 6))} if name in ("voxel_size", "unit") else {}
    return like or ({"voxel_size": (1, 1, 1)} if name == "like" else {"factor": 1})


GIVEN: dict[str, Callable[[str], dict[str, Any]]] = {
    "open_volume": lambda _: {"source": VOLUME},
    "images": lambda _: {"source": "in.npy"},
    "plan": lambda name: {"source": "in.npy", **of_plan(name)},
    "scale": lambda _: {"source": VOLUME, "output": "out.zarr", **FACTOR},
    "convert": lambda _: {"source": VOLUME, "output": "out.zarr"},
    "limits": lambda _: {"source": VOLUME, "input_voxel_size": (1, 1, 1)},
    "verify": lambda _: {"output": "done.zarr", "samples": 2},
    "show": lambda _: {"source": VOLUME},
    "workers": lambda _: {},
    "output_state": lambda _: {},
    "scale_array": lambda name: {"array": VOLUME, **of_scale_array(name)},
    "VoxelGrid": lambda _: {"shape": (1, 1, 1)},
}
"""What is right, for each parameter that is not."""

OTHERS = {"plan": ScalingOptions, "show": Opening}


def function(name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = VoxelGrid if name == "VoxelGrid" else getattr(isovoxel, name)
    return found


def parameters() -> list[tuple[str, str]]:
    found = []
    for name in GIVEN:
        known = inspect.signature(function(name)).parameters.values()
        named = [each.name for each in known if each.kind != each.VAR_KEYWORD]
        found += [(name, each) for each in [*named, *getattr(OTHERS.get(name), "__annotations__", ())]]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arguments")
    np.save(folder / "in.npy", VOLUME)
    isovoxel.scale(folder / "in.npy", folder / "done.zarr", **FACTOR)
    return folder


@pytest.mark.parametrize(("called", "name"), parameters())
def test_each_value_works_or_is_refused(called: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an error of isovoxel's, of one short line."""
    monkeypatch.chdir(folder)
    for value in VALUES.values():
        try:
            function(called)(**{**GIVEN[called](name), name: value})
        except IsovoxelError as error:
            said = str(error)
            assert "\n" not in said
            assert len(said) < 700 or "File name too long" in said


@pytest.mark.parametrize(
    ("called", "given", "told"),
    [
        ("plan", {"zoom": "2"}, "zoom must be a number, not '2'"),
        ("plan", {"zoom": True}, "zoom must be a number, not True"),
        ("plan", {"voxel_size": (1, 1, 1)}, r"voxel_size must be a number, not \(1, 1, 1\)"),
        ("plan", {"factor": {1, 2, 3}}, r"factor must be three numbers z, y, x such as .*, not \{1, 2, 3\}"),
        ("plan", {"unit": 5}, "unit must be text, not 5"),
        ("plan", {"threads": 2.5}, "threads must be a whole number, not 2.5"),
        ("plan", {"memory": b"1"}, "memory must be a size such as 8GiB or 500MB, not b'1'"),
        ("plan", {"memory": 10**400}, "memory must be a size below 8EiB"),
        ("scale", {"output": None}, "output must be a path or an address, not None"),
        ("scale", {"listeners": [1]}, r"listeners must be a list of functions, not \[1\]"),
        ("scale", {"progress": "no"}, "progress must be True or False, not 'no'"),
        ("verify", {"samples": 2.5}, "samples must be a whole number, not 2.5"),
        ("verify", {"output": None}, "output must be a path or an address, not None"),
        ("verify", {"seed": -1}, "seed must be at least 0, not -1"),
        ("show", {"voxel_size": 1}, "voxel_size must be three numbers z, y, x such as .*, not 1"),
        ("limits", {"device": 1.5}, "device must be text, not 1.5"),
        ("open_volume", {"source": [[[1]]]}, "an input of type list is no volume; give a path as text, a NumPy"),
        ("VoxelGrid", {"shape": (2, 2)}, r"shape must be three whole numbers z, y, x such as .*, not \(2, 2\)"),
    ],
)
def test_the_message_says_what_it_takes(called: str, given: dict[str, Any], told: str) -> None:
    """By the name that the caller uses."""
    with pytest.raises(IsovoxelError, match=told):
        function(called)(**{**GIVEN[called](next(iter(given))), **given})


@pytest.mark.parametrize("array", [VOLUME * 1j, (VOLUME * 1j).tolist()])
def test_messages_of_scale_array_speak_of_what_was_given(array: Any) -> None:
    """Not of the dask array that is made of it."""
    with pytest.raises(IsovoxelError, match="the array holds complex128"):
        isovoxel.scale_array(array, 2)


def test_scale_array_takes_no_volume() -> None:
    """It says so, though `open_volume` takes one."""
    with pytest.raises(IsovoxelError, match="an input of type Volume is no array of dask"):
        isovoxel.scale_array(isovoxel.open_volume(VOLUME), 2)


def test_numbers_of_numpy_are_taken_everywhere() -> None:
    """And arrays of one, as arithmetic gives them."""
    by_python = isovoxel.plan(VOLUME, zoom=2, input_voxel_size=(1, 2, 1), threads=2)
    by_numpy = isovoxel.plan(
        VOLUME, zoom=np.array(2), input_voxel_size=np.float32([1, 2, 1]), threads=np.array(2, np.uint8)
    )
    assert by_numpy.fingerprint == by_python.fingerprint


def test_what_is_too_much_is_left_to_python() -> None:
    """So is a name that a function does not have, with the nearest one."""
    with pytest.raises(TypeError, match="takes 1 positional argument"):
        isovoxel.open_volume(VOLUME, 2)  # type: ignore[call-arg, misc]
    with pytest.raises(TypeError, match="did you mean zoom"):
        isovoxel.plan(VOLUME, zom=2)  # type: ignore[call-arg]
    with contextlib.suppress(OptionError):
        isovoxel.workers()
