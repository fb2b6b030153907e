"""The command line has every option of Python's, says the same of it, and hands on what it was given."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command_line import Isovoxel
from isovoxel import api, cli
from isovoxel.options import CONVERTING, Opening, ScalingOptions, converting
from isovoxel.parameters import RUNNING, opening_options, running_options, scaling_options

INPUT = {"input_voxel_size", "unit", "level", "channel", "time", "axes", "crop"}


def taken_by(command: Any) -> set[str]:
    """Return the names of a command's parameters."""
    return set(inspect.signature(command).parameters)


def test_every_option_of_a_job_is_one_of_its_commands() -> None:
    """Of scale and plan all of them; of convert those that it does not refuse, less the halo, for it needs none."""
    scaling = set(ScalingOptions.__annotations__)
    assert scaling | set(RUNNING) <= taken_by(cli.scale)
    assert scaling | {"workers", "scheduler"} <= taken_by(cli.plan)
    kept = {*converting({}), *CONVERTING}
    for name in scaling:
        refused = name in kept | {"zoom", "voxel_size", "antialias", "boundary", "halo"}
        assert (name in taken_by(cli.convert)) is not refused
    assert set(RUNNING) - taken_by(cli.convert) == {"isolate", "with_labels", "labels_by"}


def test_whatever_opens_an_input_opens_any_part_of_it() -> None:
    """As `open_volume` does, by the same names but for the voxel size, which would be the output's."""
    assert {"input_voxel_size" if name == "voxel_size" else name for name in Opening.__annotations__} == INPUT
    assert {"source", *Opening.__annotations__} == taken_by(api.open_volume)
    for command in (cli.info, cli.plan, cli.scale, cli.convert, cli.limits, cli.show):
        assert taken_by(command) >= INPUT


def test_what_is_given_is_sorted() -> None:
    """Each to what it is for, and nothing to two."""
    given = {name: object() for name in (*taken_by(cli.scale), "something else")}
    opening = opening_options(given)
    assert opening.pop("voxel_size") is given["input_voxel_size"]
    assert opening == {name: given[name] for name in INPUT - {"input_voxel_size"}}
    assert scaling_options(given) == {name: given[name] for name in ScalingOptions.__annotations__}
    assert running_options(given) == {name: given[name] for name in RUNNING}
    assert running_options({"overwrite": True, "time": 3}) == {"overwrite": True}


WORDS: dict[str, tuple[str, Any]] = {
    "factor": ("2,1,1", (2.0, 1.0, 1.0)),
    "input_voxel_size": ("3,1,1", (3.0, 1.0, 1.0)),
    "unit": ("nm", "nm"),
    "axes": ("zyx", "zyx"),
    "crop": ("1:,:,:", "1:,:,:"),
    "labels": ("", True),
    "interpolation": ("mode", "mode"),
    "engine": ("exact", "exact"),
    "boundary": ("constant", "constant"),
    "device": ("0", "0"),
    "halo": ("direct", "direct"),
    "memory": ("8GiB", "8GiB"),
    "device_memory": ("100MB", "100MB"),
    "threads": ("1", 1),
    "chunk": ("8,8,8", (8, 8, 8)),
    "shard": ("16,8,8", (16, 8, 8)),
    "codec": ("zstd", "zstd"),
    "ome_zarr": ("0.5", "0.5"),
    "labels_by": ("auto", "auto"),
    "levels": ("1", "1"),
    "keep_receipts": ("", True),
    "overwrite": ("", True),
    "on_corrupt": ("fill", "fill"),
    "isolate": ("", True),
}


@pytest.mark.parametrize("command", ["plan", "scale", "convert"])
def test_words_of_a_command_reach_python(
    command: str, isovoxel: Isovoxel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As the keywords of the function that does it, which have no others."""
    np.save(tmp_path / "in.npy", np.ones((4, 8, 8), np.uint8))
    known = {name: value for name, value in WORDS.items() if name in taken_by(getattr(cli, command))}
    words = [word for name, (text, _) in known.items() for word in (f"--{name.replace('_', '-')}", text) if word]
    told: dict[str, Any] = {}
    do = getattr(api, command)

    def listen(*where: Any, **options: Any) -> Any:
        told.update(options)
        return do(*where, **options)

    monkeypatch.setattr(api, command, listen)
    output = [] if command == "plan" else [tmp_path / "out.zarr"]
    assert isovoxel(command, tmp_path / "in.npy", *output, *words, "--json").code == 0
    assert {name: told[name] for name in known} == {name: value for name, (_, value) in known.items()}
    assert all(told[name] in (None, False) for name in told.keys() - known.keys() - {"listeners"})
