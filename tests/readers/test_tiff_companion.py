"""TIFFs whose OME-XML stands in a companion file: read by either name, or refused with what is missing."""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path

import numpy as np
import pytest
import tifffile

import isovoxel
from command_line import Isovoxel
from inputs import read_all
from isovoxel.errors import InputError
from isovoxel.geometry.grid import Box
from isovoxel.readers.open import images_of, open_volume
from isovoxel.readers.selection import Selection

STACK = np.random.default_rng(2).integers(0, 60_000, (2, 6, 24, 32)).astype("uint16")
"""c, z, y, x."""
HEAD = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{}">'
SIZES = " ".join(f'PhysicalSize{axis}="{size}"' for axis, size in zip("ZYX", (2, 0.5, 0.25), strict=True))


def written(folder: Path, images: int = 1) -> Path:
    """Write images of two channels, each a file that names the companion; return the companion."""
    companion = folder / "a.companion.ome"
    parts = []
    for image in range(images):
        planes = []
        for c in range(2):
            own, name = uuid.uuid4(), f"i{image}c{c}.ome.tif"
            said = f'{HEAD.format(own)}<BinaryOnly MetadataFile="{companion.name}" UUID="urn:uuid:1"/></OME>'
            tifffile.imwrite(
                folder / name, STACK[c] + image, description=said.encode(), metadata=None, photometric="minisblack"
            )
            planes += [
                f'<TiffData FirstC="{c}" FirstZ="{z}" IFD="{z}" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{own}'
                "</UUID></TiffData>"
                for z in range(6)
            ]
        parts.append(
            f'<Image ID="Image:{image}"><Pixels ID="Pixels:{image}" DimensionOrder="XYZCT" Type="uint16" SizeX="32" '
            f'SizeY="24" SizeZ="6" SizeC="2" SizeT="1" {SIZES}><Channel ID="Channel:0:0" Name="DAPI"/>'
            f'<Channel ID="Channel:0:1" Name="GFP"/>{"".join(planes)}</Pixels></Image>'
        )
    companion.write_text(f'<?xml version="1.0" encoding="UTF-8"?>{HEAD.format(1)}{"".join(parts)}</OME>')
    return companion


@pytest.mark.parametrize("named", ["a.companion.ome", "i0c0.ome.tif", "i0c1.ome.tif"])
def test_planes_lie_where_the_companion_says(named: str, tmp_path: Path) -> None:
    """By whichever file of them it is opened; what tells it from others is of all of them."""
    companion = written(tmp_path)
    volume = open_volume(tmp_path / named)
    np.testing.assert_array_equal(read_all(volume), STACK)
    assert (volume.kind, volume.voxel_size, volume.unit) == ("OME-TIFF", (2, 0.5, 0.25), "micrometer")
    assert [channel.label for channel in volume.channels] == ["DAPI", "GFP"]
    others = {Path(each["path"]).name for each in volume.identity["files"]}
    assert {Path(volume.identity["path"]).name, *others} == {"a.companion.ome", "i0c0.ome.tif", "i0c1.ome.tif"}
    assert volume.files is not None
    assert {str(companion), str(tmp_path / "i0c0.ome.tif")} < set(map(str, volume.files(Box.whole(volume.shape))))
    companion.write_text(companion.read_text().replace('"0.5"', '"0.7"'))
    assert volume.current_identity is not None
    assert volume.current_identity() != {key: volume.identity[key] for key in volume.current_identity()}


@pytest.mark.parametrize("named", ["c0.ome.tif", "c1.ome.tif"])
def test_files_without_a_companion_are_all_told_from_later_ones(named: str, tmp_path: Path) -> None:
    """By whichever of them they are opened: a change of the other one is seen, too."""
    written(tmp_path)
    text = (tmp_path / "a.companion.ome").read_text().replace("i0c", "c")
    for name, own in set(re.findall(r'FileName="(c.\.ome\.tif)">urn:uuid:([^<]*)', text)):
        said = text.replace('UUID="urn:uuid:1"', f'UUID="urn:uuid:{own}"').encode()
        tifffile.imwrite(
            tmp_path / name, STACK[int(name[1])], description=said, metadata=None, photometric="minisblack"
        )
    volume = open_volume(tmp_path / named)
    np.testing.assert_array_equal(read_all(volume), STACK)
    told = [volume.identity["path"], *(each["path"] for each in volume.identity["files"])]
    assert [Path(path).name for path in told] == [named, "c1.ome.tif" if named == "c0.ome.tif" else "c0.ome.tif"]
    other = Path(told[1])
    os.utime(other, ns=(0, 0))
    assert volume.current_identity is not None
    assert volume.current_identity() != {key: volume.identity[key] for key in volume.current_identity()}


def test_its_images_are_told_apart(tmp_path: Path) -> None:
    """By their numbers, as of any OME-TIFF."""
    companion = written(tmp_path, images=2)
    assert [image.path for image in images_of(companion).images] == ["0", "1"]
    np.testing.assert_array_equal(read_all(open_volume(companion, selection=Selection(image="1"))), STACK + 1)


def test_a_companion_is_scaled_and_verified(tmp_path: Path, isovoxel: Isovoxel) -> None:
    """From the command line, with the voxel size that it states."""
    companion, out = written(tmp_path), tmp_path / "out.zarr"
    assert isovoxel("scale", companion, out, "--engine", "exact").code == 0
    assert isovoxel("verify", out, "--json").json["holds"] is True


@pytest.mark.parametrize(
    ("named", "lost", "message"),
    [
        ("i0c0.ome.tif", "a.companion.ome", r"another, 'a\.companion\.ome', which is not in its folder; put it there"),
        ("a.companion.ome", "i0c0.ome.tif", r"planes lie in the file 'i0c0\.ome\.tif', which is not in its folder"),
        ("a.companion.ome", "i0c1.ome.tif", r"planes lie in the file 'i0c1\.ome\.tif', which is not in its folder"),
    ],
)
def test_a_file_that_is_missing_is_named(named: str, lost: str, message: str, tmp_path: Path) -> None:
    """Whether it is the companion or one with planes."""
    written(tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(InputError, match=message):
        open_volume(tmp_path / named)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD.format(1) + '<BinaryOnly MetadataFile="a.companion.ome"/></OME>', "is not the OME-XML of"),
        (HEAD.format(1) + "</OME>", "i0c0.ome.tif is incomplete or one file of several"),
        ("<OME><Image></OME>", "not well-formed"),
        ("no XML", "not well-formed"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><OME>&b;</OME>", "document type definition"),
    ],
)
def test_a_companion_that_is_none_is_refused(text: str, message: str, tmp_path: Path) -> None:
    written(tmp_path).write_text(text)
    with pytest.raises(InputError, match=message):
        open_volume(tmp_path / "i0c0.ome.tif")


def test_a_companion_elsewhere_is_not_read(tmp_path: Path) -> None:
    """A file could name any other."""
    inside = tmp_path / "a"
    inside.mkdir()
    written(inside).rename(tmp_path / "a.companion.ome")
    said = f'{HEAD.format(2)}<BinaryOnly MetadataFile="../a.companion.ome" UUID="urn:uuid:1"/></OME>'
    tifffile.imwrite(inside / "b.tif", STACK[0], description=said, metadata=None, photometric="minisblack")
    with pytest.raises(InputError, match="which is not in its folder"):
        open_volume(inside / "b.tif")


def test_a_companion_without_files_is_refused(tmp_path: Path) -> None:
    """There is nothing that it is the companion of."""
    (tmp_path / "a.companion.ome").write_text(HEAD.format(1) + "</OME>")
    with pytest.raises(InputError, match="names no TIFF with its planes"):
        isovoxel.open_volume(tmp_path / "a.companion.ome")
