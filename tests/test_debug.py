"""Tracebacks: none by default, and with --debug those of every process that took part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command_line import Isovoxel, check_refused
from isovoxel import api
from isovoxel.errors import CorruptInputError, InputUnavailableError
from isovoxel.execution.distributed.worker_session import portable


@pytest.fixture
def damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the words that scale a zarr of which a chunk cannot be decoded."""
    import zarr

    monkeypatch.setenv("ISOVOXEL_DEBUG", "")
    monkeypatch.chdir(tmp_path)
    array = zarr.create_array("in.zarr", shape=(4, 8, 8), chunks=(4, 8, 8), dtype="uint8")
    array[:] = 1
    (chunk,) = (path for path in Path("in.zarr").rglob("*") if path.is_file() and path.name != "zarr.json")
    chunk.write_bytes(b"no zstd")
    return ["scale", "in.zarr", "out.zarr", "--factor", "1,1,1", "--engine", "exact", "--quiet"]


@pytest.mark.slow
@pytest.mark.parametrize("apart", [[], ["--isolate"]], ids=["here", "isolated"])
def test_debug_shows_where_a_job_fails(isovoxel: Isovoxel, damaged: list[str], apart: list[str]) -> None:
    """The sentence is the last line; before it stands the traceback, of another process too."""
    check_refused(isovoxel(*damaged, *apart), "is corrupt", code=1)
    said = isovoxel("--debug", *damaged, *apart)
    assert (said.code, said.out) == (1, "")
    assert "Traceback (most recent call last):" in said.err
    assert "in _check_readable" in said.err or "raise CorruptInputError" in said.err or "CorruptInputError" in said.err
    assert ("in another process:" in said.err) is bool(apart)
    assert said.err.splitlines()[-1].startswith("error: reading block 0 ")


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("true", True), ("0", False), ("off", False), ("", False)])
def test_the_variable_does_it_too(
    isovoxel: Isovoxel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, *, shown: bool
) -> None:
    """As does the option behind a command's name."""
    monkeypatch.setenv("ISOVOXEL_DEBUG", value)
    said = isovoxel("info", tmp_path / "nothing.tif")
    assert ("Traceback" in said.err) is shown
    assert "Traceback" in isovoxel("info", tmp_path / "nothing.tif", "--debug").err


def test_what_should_not_happen_is_a_sentence(
    isovoxel: Isovoxel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not look like a fault of the user's, and says how to see more."""

    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("a\x1b[31m\nb")

    monkeypatch.setenv("ISOVOXEL_DEBUG", "")
    monkeypatch.setattr(api, "output_state", fail)
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 4), np.uint8))
    said = isovoxel("info", tmp_path / "a.npy")
    check_refused(said, "isovoxel failed in a way that it should not, with KeyError: ", code=1)
    assert "--debug shows where" in said.err
    assert "in fail" in isovoxel("info", tmp_path / "a.npy", "--debug").err


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a"),
        InputUnavailableError(5, "a disk"),
        CorruptInputError("a", "chunk 1", (0, 0, 0), (1, 1, 1), "it is no zstd"),
        type("Local", (Exception,), {})("of no module"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_a_worker_carries_where_it_was(error: Exception) -> None:
    """Its traceback ends where it is sent; a text of it does not."""
    import pickle

    def fail_in_a_worker() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        fail_in_a_worker()
    sent = pickle.loads(pickle.dumps(portable(caught.value)))  # noqa: S301 - of our own making
    assert any("in fail_in_a_worker" in note for note in sent.__notes__)
