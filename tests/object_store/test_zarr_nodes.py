"""Metadata of zarr nodes, as zarr-python writes them and as they may be damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import zarr

from isovoxel.errors import InputError
from isovoxel.geometry.grid import VoxelGrid
from isovoxel.metadata.ome import image_attributes
from isovoxel.object_store.files import (
    change_attributes,
    kind_of_node,
    read_array,
    read_attributes,
    read_group,
    sound_node,
)
from isovoxel.readers.open import open_volume


@pytest.fixture(params=[2, 3])
def group(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a group with attributes and an array, of either format."""
    made = zarr.create_group(tmp_path / "a.zarr", zarr_format=request.param, attributes={"a": [1]})
    made.create_array("0", shape=(4, 5, 6), chunks=(2, 5, 6), dtype="uint8")
    return tmp_path / "a.zarr"


def test_nodes_are_what_zarr_says(group: Path) -> None:
    """Kind, format and metadata are those of zarr-python, for groups and arrays."""
    made = zarr.open_group(group, mode="r")
    zarr_format = made.metadata.zarr_format
    assert (kind_of_node(group), kind_of_node(group / "0"), kind_of_node(group.parent)) == ("group", "array", None)
    assert sound_node(group) == ("group", zarr_format)
    assert sound_node(group / "0") == ("array", zarr_format)
    assert read_group(group)["node_type"] == "group"
    assert read_attributes(group) == {"a": [1]}
    metadata, found = read_array(group / "0")
    assert (metadata["shape"], found) == ([4, 5, 6], zarr_format)


def test_attributes_that_are_changed_are_zarrs(group: Path) -> None:
    """Nothing else of the group is, and without attributes there are none."""
    before = read_group(group)
    change_attributes(group, lambda found: found | {"b": "é"})
    assert dict(zarr.open_group(group, mode="r").attrs) == {"a": [1], "b": "é"} == read_attributes(group)
    assert {**read_group(group), "attributes": None} == {**before, "attributes": None}
    bare = zarr.create_group(group.parent / "bare", zarr_format=before["zarr_format"])
    assert read_attributes(group.parent / "bare") == dict(bare.attrs) == {}


@pytest.mark.parametrize(
    ("text", "why"), [("{", "property name"), ("[" * 100_000, "nested too deeply"), ("\udcff", "codec can't decode")]
)
def test_damaged_metadata_are_of_a_group_that_cannot_be_read(text: str, why: str, tmp_path: Path) -> None:
    """Whoever opens it says what is wrong; whoever looks for a sound node finds none."""
    (tmp_path / "zarr.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert kind_of_node(tmp_path) == "group"
    assert sound_node(tmp_path) == (None, 0)
    with pytest.raises(ValueError, match=why):
        read_group(tmp_path)


@pytest.mark.parametrize("said", ["9", '{"node_type": "group"}', "[]", "3", "{"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_group_names_its_format(zarr_format: Any, said: str, tmp_path: Path) -> None:
    """Its attributes are read of no other, and its image is refused."""
    attributes = image_attributes(VoxelGrid((4, 5, 6)), name="x", version="0.4" if zarr_format == 2 else "0.5")
    made = zarr.create_group(tmp_path / "a.zarr", zarr_format=zarr_format, attributes=attributes)
    made.create_array("0", shape=(4, 5, 6), dtype="uint8")
    file = tmp_path / "a.zarr" / ("zarr.json" if zarr_format == 3 else ".zgroup")
    node = json.loads(file.read_text())
    file.write_text(json.dumps(node | {"zarr_format": 9}) if "9" in said else said)
    assert sound_node(tmp_path / "a.zarr") == (None, 0)
    with pytest.raises(ValueError, match=r"zarr_format|property name"):
        read_attributes(tmp_path / "a.zarr")
    with pytest.raises(InputError, match="cannot be read as zarr"):
        open_volume(tmp_path / "a.zarr")


def test_attributes_without_a_group_are_a_remainder(tmp_path: Path) -> None:
    """Of zarr v2, a file of its own makes a group, and not its attributes."""
    (tmp_path / ".zattrs").write_text("{}")
    with pytest.raises(FileNotFoundError):
        read_attributes(tmp_path)
