"""TIFFs in gzip, which are read from a temporary file: it is shared, is never more than there is room for, and goes."""

from __future__ import annotations

import gc
import gzip
import io
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile

import isovoxel as package
from command_line import Isovoxel, check_refused
from isovoxel.errors import InputError
from isovoxel.execution.events import Event, JobStarted
from isovoxel.geometry.grid import Box
from isovoxel.readers import packed
from isovoxel.readers.files import file_identity
from isovoxel.readers.open import images_of, open_volume
from isovoxel.readers.packed import LEAST_FREE, PREFIX, Unpacked
from isovoxel.readers.selection import Selection
from small_jobs import OPTIONS, stop_after

pytestmark = pytest.mark.skipif(packed.fcntl is None, reason="this system has no locks that can be shared")
STACK = np.random.default_rng(5).integers(0, 60_000, (8, 48, 32)).astype("uint16")


@pytest.fixture(autouse=True)
def spare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give tests and the commands that they run a folder for temporary files."""
    folder = tmp_path / "spare"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


def gzip_of(path: Path, **options: Any) -> Path:
    """Write a stack as a TIFF of ImageJ in gzip."""
    plain = io.BytesIO()
    given = {"imagej": True, "resolution": (2, 2), "metadata": {"spacing": 2.0, "unit": "um", "axes": "ZYX"}}
    tifffile.imwrite(plain, STACK, **(options or given))
    path.write_bytes(gzip.compress(plain.getvalue()))
    return path


def left(spare: Path) -> list[str]:
    """Return what is left of unpacked files once no volume needs them."""
    gc.collect()
    return sorted(path.name for path in spare.iterdir() if path.name.startswith(PREFIX))


@pytest.mark.parametrize("name", ["a.tif.gz", "a.ome.tif.gz", "a"])
def test_a_tiff_in_gzip_is_the_tiff(name: str, tmp_path: Path, spare: Path) -> None:
    """Its voxels, voxel size and channels; but its identity is the gzip's, so that a job of it resumes."""
    ome = {"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeZ": 2, "PhysicalSizeY": 0.5, "PhysicalSizeX": 0.5}}
    path = gzip_of(tmp_path / name, **(ome if ".ome" in name else {}))
    volume = open_volume(path)
    np.testing.assert_array_equal(volume.read(Box.whole(STACK.shape)), STACK)
    assert (volume.voxel_size, volume.kind) == (
        (2, 0.5, 0.5),
        "OME-TIFF in gzip" if ome and ".ome" in name else "ImageJ TIFF in gzip",
    )
    assert {**volume.identity, **file_identity(path)} == volume.identity
    assert volume.current_identity is not None
    assert volume.current_identity() == file_identity(path)
    (file,) = volume.files(Box.whole(STACK.shape)) if volume.files else ()
    assert file == str(path)
    assert len(left(spare)) == 1
    del volume
    assert left(spare) == []


def test_volumes_of_one_file_share_what_is_unpacked(
    tmp_path: Path, spare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also through pickle, as processes do; and the last one that goes removes it."""
    path = gzip_of(tmp_path / "a.tif.gz")
    first = open_volume(path)
    monkeypatch.setattr(Unpacked, "_unpack", lambda _: pytest.fail("it was there"))
    second, third = open_volume(path), pickle.loads(pickle.dumps(first.read))  # noqa: S301 - of our own
    assert len(left(spare)) == 1
    del first, second
    assert len(left(spare)) == 1
    np.testing.assert_array_equal(third(Box((2, 0, 0), (3, 48, 32))), STACK[2:3])
    del third
    assert left(spare) == []


def test_a_newer_file_is_unpacked_anew(tmp_path: Path, spare: Path) -> None:
    """What was unpacked of the older one serves who has that open."""
    path = gzip_of(tmp_path / "a.tif.gz")
    older = open_volume(path)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1))
    newer = open_volume(path)
    assert len(left(spare)) == 2
    for volume in (older, newer):
        np.testing.assert_array_equal(volume.read(Box.whole(STACK.shape)), STACK)


def damaged(data: bytes, how: str) -> bytes:
    """Return a gzip that lacks its end, or whose checksum is wrong, or with something behind it."""
    return {"cut": data[:-1000], "checksum": data[:-6] + bytes([data[-6] ^ 1]) + data[-5:], "more": data + b"xy"}[how]


@pytest.mark.parametrize("how", ["cut", "checksum", "more"])
def test_a_damaged_gzip_is_refused(how: str, tmp_path: Path, spare: Path) -> None:
    """In one sentence, and nothing of it stays."""
    path = gzip_of(tmp_path / "a.tif.gz")
    path.write_bytes(damaged(path.read_bytes(), how))
    with pytest.raises(InputError, match=r"a\.tif\.gz is damaged or cut short: .*; copy or write it again"):
        open_volume(path)
    assert left(spare) == []


class Disk:
    """A disk with so much room, less what files take that are unpacked on it."""

    def __init__(self, room: int, spare: Path) -> None:
        self.room, self.spare = room, spare

    def __call__(self, _folder: Path) -> Any:
        """Return what `shutil.disk_usage` does, as far as it is looked at."""
        taken = sum(file.stat().st_size for file in self.spare.glob(f"{PREFIX}*/part/*"))
        return SimpleNamespace(free=self.room - taken)


@pytest.mark.parametrize("stated", [True, False])
def test_a_disk_without_room_is_not_filled(
    stated: bool, tmp_path: Path, spare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the gzip says its size, or its last member says less."""
    path = gzip_of(tmp_path / "a.tif.gz")
    if not stated:
        path.write_bytes(path.read_bytes() + gzip.compress(b""))
    monkeypatch.setattr(packed, "PIECE_BYTES", 512)
    monkeypatch.setattr(shutil, "disk_usage", Disk(LEAST_FREE + STACK.nbytes // 2, spare))
    if not stated:
        monkeypatch.setattr(packed, "file_identity", lambda file: {**file_identity(file), "size": 1})
    with pytest.raises(
        InputError, match=rf"temporary file of at least .* the disk of {spare} has 64.* free; make room"
    ):
        open_volume(path)
    assert left(spare) == []


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(28, "No space left on device"), OSError(5, "I/O error")]
)
def test_what_fails_half_way_leaves_nothing(
    error: BaseException, tmp_path: Path, spare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C, and a disk that fails or is filled by others."""
    path = gzip_of(tmp_path / "a.tif.gz")
    monkeypatch.setattr(packed, "PIECE_BYTES", 512)
    seen = iter([None] * 5)

    def check(*_: object) -> None:
        if next(seen, error) is error:
            raise error

    monkeypatch.setattr(Unpacked, "_check_room", check)
    with pytest.raises((KeyboardInterrupt, InputError), match=r"^$|a\.tif\.gz (is|cannot be) unpacked"):
        open_volume(path)
    assert left(spare) == []


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path, spare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was unpacked would be neither the old file nor the new one."""
    path = gzip_of(tmp_path / "a.tif.gz")
    monkeypatch.setattr(Unpacked, "_check_room", lambda *_: os.utime(path, (1, 1)))
    with pytest.raises(InputError, match="was written while it was opened"):
        open_volume(path)
    assert left(spare) == []


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path, spare: Path) -> None:
    """Files that others use stay, and so do folders that are not this user's alone."""
    used = open_volume(gzip_of(tmp_path / "used.tif.gz"))
    (kept,) = left(spare)
    for name in ("half", "whole"):
        shutil.copytree(spare / kept, spare / f"{PREFIX}{name}")
    (spare / f"{PREFIX}half" / "whole").rename(spare / f"{PREFIX}half" / "part")
    (spare / f"{PREFIX}shared").mkdir()
    (spare / f"{PREFIX}shared").chmod(0o777)
    other = open_volume(gzip_of(tmp_path / "other.tif.gz"))
    assert {kept, f"{PREFIX}shared"} < set(left(spare))
    assert len(left(spare)) == 3
    np.testing.assert_array_equal(used.read(Box.whole(STACK.shape)), other.read(Box.whole(STACK.shape)))


def test_a_half_unpacked_file_is_unpacked_again(tmp_path: Path, spare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process was killed while it unpacked this file."""
    path = gzip_of(tmp_path / "a.tif.gz")
    volume = open_volume(path)
    (name,) = left(spare)
    del volume
    assert left(spare) == []
    part = spare / name / "part"
    part.mkdir(0o700, parents=True)
    part.parent.chmod(0o700)
    (part / "a.tif").write_bytes(b"II*\0")
    monkeypatch.setattr(packed, "_sweep", lambda _: None)
    np.testing.assert_array_equal(open_volume(path).read(Box.whole(STACK.shape)), STACK)


def test_a_folder_that_others_may_write_is_not_used(tmp_path: Path, spare: Path) -> None:
    """They could put other voxels there."""
    path = gzip_of(tmp_path / "a.tif.gz")
    volume = open_volume(path)
    (name,) = left(spare)
    del volume
    gc.collect()
    (spare / name).mkdir()
    (spare / name).chmod(0o777)
    with pytest.raises(InputError, match="which others may write; remove that"):
        open_volume(path)


def test_the_images_of_a_file_keep_it(tmp_path: Path, spare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job over all of them unpacks it once."""
    plain = io.BytesIO()
    with tifffile.TiffWriter(plain, ome=True) as tif:
        tif.write(STACK, metadata={"axes": "ZYX"})
        tif.write(STACK[:4] + 1, metadata={"axes": "ZYX"})
    path = tmp_path / "a.ome.tif.gz"
    path.write_bytes(gzip.compress(plain.getvalue()))
    images = images_of(path)
    assert [image.path for image in images.images] == ["0", "1"]
    monkeypatch.setattr(Unpacked, "_unpack", lambda _: pytest.fail("it was there"))
    second = open_volume(path, selection=Selection(image="1"))
    np.testing.assert_array_equal(second.read(Box.whole(second.shape)), STACK[:4] + 1)
    del second, images
    assert left(spare) == []


def test_without_locks_each_volume_has_its_own_file(
    tmp_path: Path, spare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows."""
    monkeypatch.setattr(packed, "fcntl", None)
    path = gzip_of(tmp_path / "a.tif.gz")
    volumes = [open_volume(path), open_volume(path)]
    assert len(left(spare)) == 2
    for volume in volumes:
        np.testing.assert_array_equal(volume.read(Box.whole(STACK.shape)), STACK)
    del volumes, volume
    assert left(spare) == []


def test_it_is_unpacked_on_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``/tmp`` is memory on many systems; ``TMPDIR`` is the user's word."""
    assert packed.temporary_folder("a") == tmp_path / "spare"
    monkeypatch.delenv("TMPDIR")
    monkeypatch.setattr(os, "access", lambda path, _: path == Path("/var/tmp"))  # noqa: S108
    assert packed.temporary_folder("a") == Path("/var/tmp")  # noqa: S108


def test_a_job_is_done_and_resumed_as_of_the_tiff(isovoxel: Isovoxel, tmp_path: Path, spare: Path) -> None:
    """By every command; the voxels are those of the TIFF's job."""
    path, out = gzip_of(tmp_path / "a.tif.gz"), tmp_path / "a.zarr"
    (tmp_path / "a.tif").write_bytes(gzip.decompress(path.read_bytes()))
    with pytest.raises(KeyboardInterrupt):
        package.scale(path, out, listeners=[stop_after(how=KeyboardInterrupt)], **OPTIONS)
    assert left(spare) == []
    for words in (("info", path), ("plan", path, tmp_path / "b.zarr"), ("show", path, "-o", tmp_path / "b.png")):
        assert isovoxel(*map(str, words)).code == 0
    events: list[Event] = []
    package.scale(path, out, listeners=[events.append], **OPTIONS)
    (started,) = (event for event in events if isinstance(event, JobStarted))
    assert 0 < started.done < started.plan.n_blocks
    assert isovoxel("verify", str(out)).code == 0
    package.scale(tmp_path / "a.tif", tmp_path / "c.zarr", **OPTIONS)
    one, other = (open_volume(each).read(Box.whole((16, 48, 32))) for each in (out, tmp_path / "c.zarr"))
    np.testing.assert_array_equal(one, other)
    check_refused(isovoxel("info", str(path), "--level", "1"), "level")
    assert left(spare) == []


@pytest.mark.slow
def test_workers_share_the_file(tmp_path: Path, spare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was unpacked by this process before they began."""
    path = gzip_of(tmp_path / "a.tif.gz")
    volume = open_volume(path)
    (name,) = left(spare)
    before = (spare / name / "whole" / "a.tif").stat()
    monkeypatch.setattr(Unpacked, "_unpack", lambda _: pytest.fail("it was there"))
    result = package.scale(path, tmp_path / "a.zarr", engine="exact", workers="cpu:2")
    assert left(spare) == [name]
    assert (spare / name / "whole" / "a.tif").stat().st_ino == before.st_ino
    assert package.verify(result.path).holds
    del volume
    assert left(spare) == []
