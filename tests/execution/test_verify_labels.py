"""Verify an image, and with it the labels in it that isovoxel has written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import isovoxel as api
from command_line import Isovoxel

IMAGE = np.random.default_rng(0).integers(0, 999, (8, 20, 20)).astype(np.uint16)
LABELS = np.random.default_rng(1).integers(1, 9, (8, 20, 20)).astype(np.uint16)
HOW: dict[str, Any] = {"factor": (2, 1, 1), "input_voxel_size": (2, 1, 1), "engine": "exact", "levels": 1}
NUCLEI = "labels/nuclei"


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image with labels, made of files."""
    monkeypatch.chdir(tmp_path)
    np.save("image.npy", IMAGE)
    np.save("nuclei.npy", LABELS)
    api.scale("image.npy", "out.zarr", with_labels="nuclei.npy", **HOW)
    return tmp_path / "out.zarr"


def verdicts(said: str) -> dict[str, str]:
    """Return what is printed of each image, by its path."""
    lines = [line.split(maxsplit=2) for line in said.splitlines() if line.startswith("image ")]
    return {path: text for _, path, text in lines}


def test_labels_are_verified_with_their_image(out: Path, isovoxel: Isovoxel) -> None:
    """Each has its verdict; those of others are left alone, and an image without any is verified as ever."""
    zarr.create_array(out / "labels" / "other", shape=(3, 3, 3), dtype="u1", overwrite=True)
    assert "images" not in isovoxel("verify", out / NUCLEI, "--samples", 20, "--json").json
    said = isovoxel("verify", out, "--samples", 20)
    assert (said.code, verdicts(said.out)) == (0, {".": "holds", NUCLEI: "holds"})
    zarr.open_array(out / NUCLEI / "0", mode="r+")[...] = 7
    said = isovoxel("verify", out, "--samples", 20)
    assert (said.code, verdicts(said.out)) == (1, {".": "holds", NUCLEI: "does not hold"})
    record = json.loads(isovoxel("verify", out, "--samples", 20, "--json").out)
    assert [record["holds"], *(image["holds"] for image in record["images"].values())] == [False, True, False]
    assert record["wrong"] == record["images"][NUCLEI]["wrong"] > 0


def test_labels_whose_source_is_gone_are_verified_without_it(out: Path, isovoxel: Isovoxel) -> None:
    """That is no fault of theirs, and is said with what helps; missing shards are found all the same."""
    moved = Path("nuclei.npy").rename("moved.npy")
    said = isovoxel("verify", out, "--samples", 20)
    assert (said.code, verdicts(said.out)["."]) == (0, "holds")
    told = verdicts(said.out)[NUCLEI]
    assert told.startswith("holds as far as it was compared; no voxel was compared: the source ")
    assert told.endswith(f"nuclei.npy is not found; give its new path with --against when verifying {out / NUCLEI}")
    assert "verdict              holds as far as it was compared" in said.out
    assert isovoxel("verify", out / NUCLEI, "--against", moved, "--samples", 20).code == 0
    (out / NUCLEI / "0" / "c" / "0" / "0" / "0").unlink()
    said = isovoxel("verify", out, "--samples", 20)
    assert (said.code, verdicts(said.out)[NUCLEI].split(";")[0]) == (1, "does not hold")


def test_labels_of_an_array_in_memory_are_verified_without_it(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", IMAGE)
    api.scale(tmp_path / "image.npy", tmp_path / "out.zarr", with_labels=LABELS, **HOW)
    found = api.verify(tmp_path / "out.zarr", samples=20, every_chunk=True)
    assert found.holds
    assert "labels was made from an array in memory" in found.uncompared == found.images["labels/labels"].uncompared
    assert found.samples == found.images["."].samples > found.images["labels/labels"].samples == 0
    chunks = [image.chunks for image in found.images.values()]
    assert chunks[0] == chunks[1]
    assert found.chunks == sum(filter(None, chunks)) > 0


def test_labels_that_are_incomplete_do_not_hold(out: Path, isovoxel: Isovoxel) -> None:
    """And the image has its verdict."""
    metadata = out / NUCLEI / "zarr.json"
    node = json.loads(metadata.read_text())
    node["attributes"]["isovoxel"]["complete"] = False
    metadata.write_text(json.dumps(node))
    said = isovoxel("verify", out, "--samples", 20)
    assert (said.code, verdicts(said.out)) == (1, {".": "holds", NUCLEI: "does not hold"})
    assert f"does not hold: image {NUCLEI}: {out / NUCLEI} is incomplete" in said.out
    found = api.verify(out, samples=20)
    assert 0 < found.projected <= found.allowed
