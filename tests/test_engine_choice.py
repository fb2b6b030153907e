"""Which engine scales where none is given: by the device, what is installed, and what an output was begun with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import isovoxel as package
from command_line import Isovoxel, check_refused
from isovoxel.engines import clesperanto as generations
from isovoxel.engines.devices import find_device
from isovoxel.errors import DeviceError, JobError, OptionError, OutputExistsError
from isovoxel.geometry.grid import Box
from isovoxel.options import Options
from isovoxel.output.provenance import read_provenance
from isovoxel.planner import Limits, Sampling, ThisProcess, choose_engine, choose_sampling, plan_volume
from isovoxel.reporting.progress import hints
from small_jobs import stop_after

VOXELS = np.random.default_rng(3).integers(0, 65536, (12, 20, 18)).astype("uint16")
PLAIN = Sampling("linear", antialias=False, labels=False, needs_exact=False)
HARD = replace(PLAIN, antialias=True, needs_exact=True)
HAS = ("pyclesperanto 0.25.1", "")
HAS_NOT = ("", "clEsperanto cannot be imported: it is not there; pip install pyclesperanto brings it")


@pytest.mark.parametrize(
    ("given", "kind", "sampling", "has", "engine", "note"),
    [
        (None, "cpu", PLAIN, HAS, "exact", "--engine cle"),
        (None, "cpu", PLAIN, HAS_NOT, "exact", "--engine cle"),
        (None, "gpu", PLAIN, HAS, "cle", ""),
        (None, "gpu", PLAIN, HAS_NOT, "exact", "pip install pyclesperanto brings it"),
        (None, "gpu", HARD, HAS, "exact", ""),
        (None, "cpu", HARD, HAS, "exact", ""),
        ("exact", "gpu", PLAIN, HAS, "exact", ""),
        ("cle", "cpu", PLAIN, HAS, "cle", ""),
        ("cle", "gpu", PLAIN, HAS, "cle", ""),
        ("clij", "gpu", PLAIN, HAS, "clij", ""),  # the planner says which there are
    ],
)
def test_it_is_chosen(given: str | None, kind: str, sampling: Sampling, has: Any, engine: str, note: str) -> None:
    """A note says so where the choice is not the one that the device would have."""
    choice = choose_engine(sampling, given, kind, lambda: has)
    assert choice.engine == engine
    assert choice.library == (has[0] if engine == "cle" else "")
    assert bool(choice.notes) == bool(note)
    assert all(note in told and told.startswith("engine exact scales") for told in choice.notes)


def test_what_is_asked_for_and_is_not_there_is_refused() -> None:
    """With the command that brings it, and the way on without it."""
    with pytest.raises(DeviceError) as refused:
        choose_engine(PLAIN, "cle", "gpu", lambda: HAS_NOT)
    assert str(refused.value) == f"engine cle cannot be used, for {HAS_NOT[1]}; without --engine cle exact scales"


def test_clesperanto_is_imported_only_where_it_may_scale() -> None:
    """Its import takes its time."""

    def never() -> tuple[str, str]:
        raise AssertionError

    for given, kind, sampling in ((None, "cpu", PLAIN), ("exact", "gpu", PLAIN), (None, "gpu", HARD)):
        assert choose_engine(sampling, given, kind, never).engine == "exact"


class Gpu(ThisProcess):
    """The process with a device that is called a GPU."""

    def limits(self, engine: str) -> Limits:
        """Return those of the device that is there."""
        device, host = super().limits(engine)
        return replace(device, kind="gpu"), host


@pytest.mark.parametrize(("dtype", "told"), [("uint8", False), ("uint16", True), ("float32", True)])
def test_steps_of_a_gpu_are_told(dtype: str, told: bool) -> None:
    """Where they are coarser than the data, and interpolation is linear."""
    volume = package.open_volume(VOXELS.astype(dtype), voxel_size=(2, 1, 1))
    for options, steps in (
        (Options(), told),
        (Options(engine="exact"), False),
        (Options(interpolation="nearest"), False),
    ):
        plan = plan_volume(volume, options, choose_sampling(volume, options), Gpu(options))
        assert plan.engine == (options.engine or "cle")
        assert any("256 steps" in line and "--engine exact" in line for line in hints(plan)) == steps


@pytest.mark.skipif(find_device().kind == "gpu", reason="a GPU scales, and with cle")
def test_plan_and_scale_say_so(isovoxel: Isovoxel, tmp_path: Path) -> None:
    """On the CPU; whoever asks for an engine is told nothing."""
    np.save(tmp_path / "in.npy", VOXELS)
    for words in (("plan", tmp_path / "in.npy"), ("scale", tmp_path / "in.npy", tmp_path / "out.zarr")):
        said = isovoxel(*words, "--factor", "2,1,1")
        assert said.code == 0
        assert "note: engine exact scales, which on a CPU is faster than cle.scale; --engine cle" in said.err
        for engine in ("cle", "exact"):
            more = ("--overwrite",) if words[0] == "scale" else ()
            assert "note: engine" not in isovoxel(*words, "--factor", "2,1,1", "--engine", engine, *more).err


def other(package_name: str) -> Callable[[], tuple[str, str]]:
    """Return what says that another clEsperanto is there."""
    return lambda: (f"{package_name} 9.9", "")


def begun(tmp_path: Path, **options: Any) -> Path:
    """Begin a job of `cle` that ends half-way."""
    out = tmp_path / "out.zarr"
    with pytest.raises(JobError):
        package.scale(VOXELS, out, listeners=[stop_after(2)], engine="cle", **options)
    return out


CUT: dict[str, Any] = {"chunk": (8, 8, 8), "shard": (8, 8, 8), "device_memory": "30kB", "threads": 1, "levels": 0}


def test_a_job_goes_on_with_the_clesperanto_that_it_was_begun_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linear interpolation of the two differs in bits: the other one is refused, with what helps."""
    out = begun(tmp_path, factor=(2, 1, 1), **CUT)
    made = read_provenance(out)
    here = f"{generations.clesperanto().package} {generations.clesperanto().version}"
    assert made["clesperanto"] == here
    there = ({"pyclesperanto", "pyclesperanto-prototype"} - {here.split(" ", maxsplit=1)[0]}).pop()
    with monkeypatch.context() as patch:
        patch.setattr(generations, "scales_with", other(there))
        with pytest.raises(OutputExistsError) as refused:
            package.scale(VOXELS, out, factor=(2, 1, 1), **CUT)
    assert f"was begun with {here}, now {there} 9.9, which interpolates otherwise (ISOVOXEL_CLE=" in str(refused.value)
    assert f"pip install {here.split(' ', maxsplit=1)[0]} brings it)" in str(refused.value)
    with monkeypatch.context() as patch:  # a release of the same
        patch.setattr(generations, "scales_with", other(here.split(" ", maxsplit=1)[0]))
        assert package.scale(VOXELS, out, factor=(2, 1, 1), **CUT).tally.done_before >= 1
    with monkeypatch.context() as patch:  # what is complete is what was asked for
        patch.setattr(generations, "scales_with", other(there))
        assert package.scale(VOXELS, out, factor=(2, 1, 1), **CUT).tally.done_before > 1


def test_nearest_goes_on_with_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives the same bits."""
    out = begun(tmp_path, factor=(2, 1, 1), interpolation="nearest", **CUT)
    monkeypatch.setattr(generations, "scales_with", other("pyclij"))
    assert package.scale(VOXELS, out, **CUT).tally.done_before >= 1
    made = package.open_volume(out)
    np.testing.assert_array_equal(made.read(Box.whole(made.shape)), VOXELS.repeat(2, axis=0))


def test_nearest_goes_on_with_neither_where_it_is_undecided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By 1.7 a sample lies as near to one voxel as to the next, and each generation takes the one that it rounds to."""
    out = begun(tmp_path, factor=(1.7, 1, 1), interpolation="nearest", **CUT)
    monkeypatch.setattr(generations, "scales_with", other("pyclij"))
    with pytest.raises(OutputExistsError, match=r"now pyclij 9\.9, which interpolates otherwise"):
        package.scale(VOXELS, out, **CUT)


def test_one_of_0_1_was_begun_with_the_prototype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not say so; no other was there."""
    out = begun(tmp_path, factor=(2, 1, 1), **CUT)
    metadata = json.loads((out / "zarr.json").read_text())
    del metadata["attributes"]["isovoxel"]["clesperanto"]
    (out / "zarr.json").write_text(json.dumps(metadata))
    with monkeypatch.context() as patch:
        patch.setattr(generations, "scales_with", other("pyclesperanto"))
        with pytest.raises(OutputExistsError, match=r"was begun with pyclesperanto-prototype, now pyclesperanto 9\.9"):
            package.scale(VOXELS, out, **CUT)
    monkeypatch.setattr(generations, "scales_with", other("pyclesperanto-prototype"))
    assert package.scale(VOXELS, out, **CUT).tally.done_before >= 1


def test_a_wrong_choice_is_refused(isovoxel: Isovoxel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written."""
    np.save(tmp_path / "in.npy", VOXELS)
    for remembered in (generations.clesperanto, generations._first_that_loads):
        remembered.cache_clear()
    monkeypatch.setenv(generations.CHOICE, "clij")
    try:
        said = isovoxel("scale", tmp_path / "in.npy", tmp_path / "out.zarr", "--factor", "2,1,1", "--engine", "cle")
        check_refused(said, "ISOVOXEL_CLE must be prototype or pyclesperanto, not 'clij'")
        with pytest.raises(OptionError):
            plan_volume(package.open_volume(VOXELS, voxel_size=(2, 1, 1)), Options(), PLAIN, Gpu(Options()))
    finally:
        for remembered in (generations.clesperanto, generations._first_that_loads):
            remembered.cache_clear()
    assert not (tmp_path / "out.zarr").exists()
