"""BigDataViewer's XML with its HDF5 or N5, and what is said of those that are not read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from command_line import Isovoxel, check_refused
from inputs import write_n5
from isovoxel.errors import CorruptInputError, InputError, InputMissingError, OptionError
from isovoxel.geometry.grid import Box
from isovoxel.readers.base import Volume
from isovoxel.readers.bdv import read_bdv, read_place
from isovoxel.readers.files import InputWatch
from isovoxel.readers.open import images_of, open_volume
from isovoxel.readers.selection import Selection

SHAPE = (6, 24, 32)
VOXELS = np.random.default_rng(0).integers(0, 60_000, (2, 4, *SHAPE)).astype("uint16")
"""Of time points and setups."""
CALIBRATION = "1 0 0 0 0 1 0 0 0 0 4 0"
ATTRIBUTES = [{"channel": channel, "tile": tile} for tile in (0, 1) for channel in (0, 1)]


def document(
    loader: str,
    file: str,
    *,
    attributes: list[dict[str, int]] = ATTRIBUTES,
    times: str = '<Timepoints type="range"><first>0</first><last>1</last></Timepoints>',
    affines: Mapping[tuple[int, int], str] | None = None,
    size: str = "0.5 0.5 2",
    more: str = "",
) -> str:
    """Return an XML as Fiji and BigStitcher write it."""
    setups = "".join(
        f"<ViewSetup><id>{n}</id><name>s{n}</name><size>32 24 6</size><voxelSize><unit>µm</unit><size>{size}</size>"
        f"</voxelSize><attributes>{''.join(f'<{key}>{value}</{key}>' for key, value in told.items())}</attributes>"
        "</ViewSetup>"
        for n, told in enumerate(attributes)
    )
    names = "".join(f"<Channel><id>{n}</id><name>{name}</name></Channel>" for n, name in enumerate(("DAPI", "GFP")))
    views = [(t, s) for t in (0, 1) for s in range(len(attributes))]
    registrations = "".join(
        f'<ViewRegistration timepoint="{t}" setup="{s}"><ViewTransform type="affine"><affine>'
        f"{(affines or {}).get((t, s), '1 0 0 0 0 1 0 0 0 0 1 0')}</affine></ViewTransform>"
        f'<ViewTransform type="affine">'
        f"<Name>calibration</Name><affine>{CALIBRATION}</affine></ViewTransform></ViewRegistration>"
        for t, s in views
    )
    tag = loader.rpartition(".")[2]
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<SpimData version="0.2"><BasePath type="relative">.</BasePath>'
        f'<SequenceDescription><ImageLoader format="{loader}"><{tag} type="relative">{file}</{tag}></ImageLoader>'
        f'<ViewSetups>{setups}<Attributes name="channel">{names}</Attributes></ViewSetups>{times}{more}'
        f"</SequenceDescription><ViewRegistrations>{registrations}</ViewRegistrations></SpimData>"
    )


def hdf5(folder: Path, voxels: np.ndarray = VOXELS, **options: Any) -> Path:
    """Write an XML and an HDF5, whose uint16 is stored as int16."""
    with h5py.File(folder / "a.h5", "w") as file:
        for t, s in np.ndindex(voxels.shape[:2]):
            file.create_dataset(
                f"t{t:05}/s{s:02}/0/cells", data=voxels[t, s].view("int16"), chunks=(4, 16, 16), compression="gzip"
            )
    (folder / "a.xml").write_text(document("bdv.hdf5", "a.h5", **options), "utf-8")
    return folder / "a.xml"


def n5(folder: Path, voxels: np.ndarray = VOXELS, **options: Any) -> Path:
    """Write an XML and an N5."""
    for t, s in np.ndindex(voxels.shape[:2]):
        where = write_n5(folder / "a.n5" / f"setup{s}" / f"timepoint{t}" / "s0", voxels[t, s], (4, 16, 16))
        (where.parent.parent / "attributes.json").write_text(json.dumps({"dataType": "uint16"}))
    (folder / "a.xml").write_text(document("bdv.n5", "a.n5", **options), "utf-8")
    return folder / "a.xml"


KINDS = {"hdf5": hdf5, "n5": n5}


def whole(volume: Volume, which: int = 0) -> np.ndarray:
    """Return all voxels of one of its volumes."""
    return volume.read(Box.whole(volume.shape).of(which))


@pytest.mark.parametrize("kind", KINDS)
def test_channels_and_time_points_of_a_tile_are_one_image(kind: str, tmp_path: Path) -> None:
    """Tiles are images of their own, of which one is chosen by its number or by what it is called."""
    path = KINDS[kind](tmp_path)
    with pytest.raises(InputError, match=r"holds 2 images \(0 \(tile 0\), 1 \(tile 1\)\); give --image 0 to 1, or all"):
        open_volume(path)
    assert [str(image) for image in images_of(path).images] == ["0 (tile 0)", "1 (tile 1)"]
    for image, setups in (("1", (2, 3)), ("tile 0", (0, 1))):
        volume = open_volume(path, selection=Selection(image=image))
        assert (volume.shape, volume.dtype) == (SHAPE, np.dtype("uint16"))
        assert (volume.voxel_size, volume.unit, volume.origin) == ((2, 0.5, 0.5), "micrometer", (0, 0, 0))
        assert [(axis.name, axis.length) for axis in volume.series] == [("t", 2), ("c", 2)]
        assert [channel.label for channel in volume.channels] == ["DAPI", "GFP"]
        for which, (t, s) in enumerate((t, s) for t in (0, 1) for s in setups):
            np.testing.assert_array_equal(whole(volume, which), VOXELS[t, s])
    one = open_volume(path, selection=Selection(image="1", time=1, channel=1))
    assert (one.identity["image"], one.identity["time"], one.identity["channel"]) == ("1", 1, 1)
    np.testing.assert_array_equal(whole(one), VOXELS[1, 3])
    with pytest.raises(OptionError, match="has 2 channels, counted from 0: give --channel 0 to 1, not 2"):
        open_volume(path, selection=Selection(image="0", channel=2))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_again_is_noticed(kind: str, tmp_path: Path) -> None:
    """The XML, the metadata of a view, and its voxels, whichever view they belong to."""
    path = KINDS[kind](tmp_path, VOXELS[:, :2], attributes=ATTRIBUTES[:2])
    files = [file for file in sorted(tmp_path.rglob("*")) if file.is_file()]
    last = [file for file in files if file.name == "1" or file.suffix in (".h5", ".xml")]
    for file in last:
        watch = InputWatch(open_volume(path))
        file.write_bytes(file.read_bytes())
        assert watch.is_changed()


@pytest.mark.parametrize("kind", KINDS)
def test_damage_names_the_view(kind: str, tmp_path: Path) -> None:
    """And what cannot be decoded of it."""
    path = KINDS[kind](tmp_path, VOXELS[:, :2], attributes=ATTRIBUTES[:2])
    if kind == "hdf5":
        with h5py.File(tmp_path / "a.h5", "r+") as file:
            file["t00001/s01/0/cells"].id.write_direct_chunk((0, 0, 0), b"damaged")
    else:
        (tmp_path / "a.n5/setup1/timepoint1/s0/0/0/0").write_bytes(b"damaged")
    volume = open_volume(path)
    np.testing.assert_array_equal(whole(volume, 2), VOXELS[1, 0])
    with pytest.raises(
        CorruptInputError, match=r"time point 1, channel 1, (chunk|block) \(0, 0, 0\) of .*a.xml is corrupt"
    ):
        whole(volume, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_views_that_are_not_there_are_named(kind: str, tmp_path: Path) -> None:
    """Those that the XML says are missing, and those that it describes; the file that holds them, too."""
    missing = '<MissingViews><MissingView timepoint="1" setup="0"/></MissingViews>'
    path = KINDS[kind](tmp_path, VOXELS[:1], more=missing)
    with pytest.raises(InputError, match=r"no voxels of setup 0 at time point 1, as it says .*; select others with"):
        open_volume(path, selection=Selection(image="0"))
    np.testing.assert_array_equal(whole(open_volume(path, selection=Selection(image="0", time=0))), VOXELS[0, 0])
    with pytest.raises(InputMissingError, match=r"a.xml describes"):
        open_volume(path, selection=Selection(image="1"))
    where = tmp_path / ("a.h5" if kind == "hdf5" else "a.n5")
    where.rename(tmp_path / "elsewhere")
    with pytest.raises(InputMissingError, match=r"which holds the voxels of .*a.xml, is not there"):
        open_volume(path, selection=Selection(image="0", time=0))


def test_views_that_are_unlike_are_told(tmp_path: Path) -> None:
    """With the first of them."""
    path = hdf5(tmp_path, VOXELS[:, :2], attributes=ATTRIBUTES[:2])
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["t00001/s00"]
        file.create_dataset("t00001/s00/0/cells", data=VOXELS[0, 0, 1:].view("int16"))
    with pytest.raises(InputError, match=r"setup 0 at time point 1 \(5 x 24 x 32 uint16, not 6 x 24 x 32 uint16\)"):
        open_volume(path)
    assert open_volume(path, selection=Selection(time=1, channel=0)).shape == (5, 24, 32)


def test_partitions_lie_in_files_of_their_own(tmp_path: Path) -> None:
    """Which the HDF5 leads to; they are watched like it, and none is read outside the folder."""
    path = hdf5(tmp_path, VOXELS[:, :1], attributes=ATTRIBUTES[:1])
    with h5py.File(tmp_path / "a.h5", "r+") as file, h5py.File(tmp_path / "a-01.h5", "w") as other:
        file.copy("t00001/s00/0/cells", other, "t00001/s00/0/cells")
        del file["t00001/s00/0/cells"]
        file["t00001/s00/0/cells"] = h5py.ExternalLink("a-01.h5", "t00001/s00/0/cells")
    volume = open_volume(path)
    for t in (0, 1):
        np.testing.assert_array_equal(whole(volume, t), VOXELS[t, 0])
    watch = InputWatch(volume)
    (tmp_path / "a-01.h5").write_bytes((tmp_path / "a-01.h5").read_bytes())
    assert watch.is_changed()
    (tmp_path / "a-01.h5").unlink()
    with pytest.raises(InputMissingError, match=r"a-01.h5, which holds voxels of .*a.xml, is not there"):
        open_volume(path)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["t00001/s00/0/cells"]
        file["t00001/s00/0/cells"] = h5py.ExternalLink("../a-01.h5", "t00001/s00/0/cells")
    with pytest.raises(InputError, match=r"leads to another file, '../a-01.h5', outside its folder"):
        open_volume(path)


# ---- where a view lies -------------------------------------------------------------------------------------------


def test_a_registration_that_only_moves_a_view_is_its_origin(tmp_path: Path) -> None:
    """In the voxel size's unit, though BigStitcher counts in the smallest voxel; of others a note tells."""
    one = {"attributes": ATTRIBUTES[:1], "times": "<Timepoints/>"}
    cases: list[tuple[str, Any, str]] = [
        ("1 0 0 10 0 1 0 -4 0 0 1 6", (3.0, -2.0, 5.0), ""),
        ("0.5 0 0 10 0 0.5 0 -4 0 0 0.5 6", (6.0, -4.0, 10.0), ""),  # in micrometres
        (
            "0 1 0 10 1 0 0 0 0 0 1 0",
            (0, 0, 0),
            "its registration turns, shears or flips it, which is not carried over",
        ),
        ("2 0 0 10 0 1 0 0 0 0 1 0", (0, 0, 0), "scales z, y, x by 4 x 1 x 2, not by its voxel size, and is not"),
    ]
    for affine, origin, note in cases:
        times = '<Timepoints type="pattern"><integerpattern>0</integerpattern></Timepoints>'
        path = hdf5(tmp_path, VOXELS[:1, :1], **{**one, "times": times}, affines={(0, 0): affine})
        volume = open_volume(path)
        assert volume.origin == pytest.approx(origin)
        assert note in " ".join(volume.notes) if note else not volume.notes
        assert volume.voxel_size == (2, 0.5, 0.5)
    moved = {(1, 0): "1 0 0 10 0 1 0 0 0 0 1 0"}
    volume = open_volume(hdf5(tmp_path, VOXELS[:, :1], attributes=ATTRIBUTES[:1], affines=moved))
    assert (volume.origin, "its views are registered differently" in volume.notes[0]) == ((0, 0, 0), True)
    assert open_volume(tmp_path / "a.xml", selection=Selection(time=1)).origin == (0, 0, 5)


@pytest.mark.parametrize(
    ("times", "numbers"),
    [
        ('<Timepoints type="range"><first>3</first><last>5</last></Timepoints>', (3, 4, 5)),
        ('<Timepoints type="pattern"><integerpattern>0-4:2, 9</integerpattern></Timepoints>', (0, 2, 4, 9)),
        ('<Timepoints type="list"><Timepoint><id>7</id></Timepoint></Timepoints>', (7,)),
        ("", (0,)),
    ],
)
def test_time_points_are_told_in_three_ways(times: str, numbers: tuple[int, ...]) -> None:
    """Or not at all, where there is one."""
    assert read_bdv(document("bdv.hdf5", "a.h5", times=times), "a.xml").times == numbers


def test_setups_without_channels_are_images() -> None:
    """As are two of the same channel; a voxel size that is none leaves the place unknown."""
    found = read_bdv(document("bdv.n5", "a.n5", attributes=[{}, {}, {"channel": 1}, {"channel": 1}]), "a.xml")
    assert [image.label for image in found.images] == ["s0", "s1", "s2", "s3"]
    assert read_place(np.full((4, 4), np.nan), (1, 1, 1)) == (
        (0, 0, 0),
        "its registration turns, shears or flips it, which is not carried over",
    )


# ---- what is not read --------------------------------------------------------------------------------------------

GOOD = document("bdv.hdf5", "a.h5", attributes=ATTRIBUTES[:1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            GOOD.replace("bdv.hdf5", "bdv.multimg.zarr"),
            r"stored as 'bdv.multimg.zarr' \(a.h5\), which isovoxel does not",
        ),
        (GOOD.replace("a.h5<", "../a.h5<"), "'../a.h5', which is not in its folder; move them beside it"),
        (GOOD.replace("a.h5<", "/data/a.h5<"), "'/data/a.h5', which is not in its folder"),
        (GOOD.replace('<BasePath type="relative">.', '<BasePath type="relative">/data'), "'/data/a.h5', which is not"),
        (GOOD[:-30], "the BigDataViewer XML of .* is not well-formed"),
        (GOOD.replace("<SpimData", "<!DOCTYPE a [<!ENTITY b 'c'>]><SpimData"), "has a document type definition"),
        (GOOD.replace("ImageLoader", "Loader"), "it has no ImageLoader, which says where"),
        (GOOD.replace("ViewSetup>", "View>"), "it has no ViewSetups, or two of one id"),
        (GOOD.replace("0.5 0.5 2", "0.5"), "has a voxelSize that is not three numbers"),
        (GOOD.replace("<id>0</id><name>s", "<id>zero</id><name>s"), "invalid literal"),
        (GOOD.replace(CALIBRATION, "1 2 3"), "a ViewTransform that is no affine of 12 numbers"),
        (GOOD.replace("<last>1", "<last>9999999"), "it has 10000000 time points, more than any file has"),
        (GOOD.replace("<last>1", "<last>-1"), "it has no time points"),
    ],
)
def test_what_is_not_read_is_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    """It names what stands in the way, and a way on."""
    path = hdf5(tmp_path, VOXELS[:, :1])
    path.write_text(text, "utf-8")
    with pytest.raises(InputError, match=message) as raised:
        open_volume(path)
    assert "\n" not in str(raised.value)


# ---- whole jobs --------------------------------------------------------------------------------------------------


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_scaled_and_verified(kind: str, tmp_path: Path, isovoxel: Isovoxel) -> None:
    """All its channels and time points; a chunk that is another is another input."""
    path, out = KINDS[kind](tmp_path, VOXELS[:, :2], attributes=ATTRIBUTES[:2]), tmp_path / "out.zarr"
    words = [path, out, "--engine", "exact", "--levels", "0"]
    assert isovoxel("scale", *words).code == 0
    assert isovoxel("verify", out, "--samples", 50).code == 0
    scaled = open_volume(out)
    assert ([axis.length for axis in scaled.series], scaled.voxel_size) == ([2, 2], (0.5, 0.5, 0.5))
    assert "nothing was done" in isovoxel("scale", *words).out
    shutil.rmtree(tmp_path / "a.n5", ignore_errors=True)
    KINDS[kind](tmp_path, VOXELS[:, 2:], attributes=ATTRIBUTES[:2])
    check_refused(isovoxel("scale", *words), "was made with another" if kind == "n5" else "another view of the input")
    assert isovoxel("show", path, "--channel", 1, "--time", 0, "--output", tmp_path / "a.png").code == 0


def test_npy2bdv_writes_what_is_read(tmp_path: Path) -> None:
    """And reads the same voxels back."""
    npy2bdv = pytest.importorskip("npy2bdv", reason="npy2bdv is in the extra test-all only")
    writer = npy2bdv.BdvWriter(str(tmp_path / "a.h5"), nchannels=2, ntiles=2, subsamp=((1, 1, 1), (1, 2, 2)))
    for t, s in np.ndindex(VOXELS.shape[:2]):
        writer.append_view(
            VOXELS[t, s],
            time=t,
            channel=s // 2,
            tile=s % 2,
            voxel_size_xyz=(0.5, 0.5, 2),
            voxel_units="um",
            calibration=(1, 1, 4),
        )
    writer.write_xml()
    writer.close()
    editor = npy2bdv.BdvEditor(str(tmp_path / "a.h5"))
    seen = {(t, c, tile): editor.read_view(time=t, channel=c, tile=tile) for t, c, tile in np.ndindex(2, 2, 2)}
    editor.finalize()
    for tile in (0, 1):
        volume = open_volume(tmp_path / "a.xml", selection=Selection(image=str(tile)))
        assert volume.voxel_size == (2, 0.5, 0.5)
        for which, (t, c) in enumerate(np.ndindex(2, 2)):
            np.testing.assert_array_equal(whole(volume, which), seen[t, c, tile])
