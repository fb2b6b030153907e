"""What may be written to, and above all what may be deleted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import zarr

from isovoxel.errors import AddressError, OutputError, OutputExistsError
from isovoxel.geometry.grid import VoxelGrid
from isovoxel.metadata.ome import image_attributes
from isovoxel.output.destination import check_destination
from isovoxel.output.files import REPLACED, claim
from isovoxel.output.replacing import set_aside


def check(path: str | Path, *, overwrite: bool | str = False, nbytes: int = 1) -> None:
    """Ask for a destination with little to say about it."""
    check_destination(path, overwrite=overwrite, nbytes=nbytes)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "out.zarr"
    attributes = image_attributes(VoxelGrid((4, 4, 4)), name="old", path="0")
    zarr.create_group(path, attributes=attributes).create_array("0", shape=(4, 4, 4), dtype="uint8")[...] = 1
    return path


def listing(folder: Path) -> list[tuple[str, int]]:
    """Return everything in a folder, and when it changed."""
    return sorted((str(p), p.lstat().st_mtime_ns) for p in folder.rglob("*"))


def test_a_new_folder_in_one_that_exists_may_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any name will do, a bare one in the working directory too, and nothing is made by asking."""
    monkeypatch.chdir(tmp_path)
    for name in ("out.zarr", f"{tmp_path}/out.zarr", f"{tmp_path}/result", f"{tmp_path}/a b.ome.zarr/"):
        check(name)
    assert listing(tmp_path) == []


def test_an_old_output_needs_overwrite(old: Path) -> None:
    """Without the option the message names it; with the option nothing is said."""
    with pytest.raises(OutputExistsError, match=r"out.zarr exists; give --overwrite or another output"):
        check(old)
    check(old, overwrite=True)


@pytest.mark.parametrize("content", [None, "no json", "[1]", '{"zarr_format": 7}', '{"name": "x"}'])
def test_a_folder_that_is_no_zarr_is_never_deleted(tmp_path: Path, content: str | None) -> None:
    """A folder counts as zarr by the content of its metadata, not by its name."""
    folder = tmp_path / "photos.zarr"
    folder.mkdir()
    if content is not None:
        (folder / "zarr.json").write_text(content)
    with pytest.raises(OutputError, match="is a folder but no zarr"):
        check(folder, overwrite=True)
    with pytest.raises(OutputError, match="is a folder but no zarr"):
        set_aside(folder, tmp_path / "bin", now=False)
    assert folder.is_dir()


def test_a_file_is_never_deleted(tmp_path: Path) -> None:
    """Overwriting does not replace a file, whatever it is called."""
    path = tmp_path / "out.zarr"
    path.write_text("thesis")
    with pytest.raises(OutputError, match="is a file and no zarr"):
        check(path, overwrite=True)


def test_a_link_is_neither_followed_nor_deleted(old: Path) -> None:
    """Neither a link to a zarr, with or without a slash after it, nor one to nothing is replaced."""
    for name, to in (("link", old), ("dangling", old / "nothing"), ("circle", old.parent / "circle")):
        link = old.parent / name
        link.symlink_to(to)
        with pytest.raises(OutputExistsError):
            check(link)
        for path in (link, f"{link}/"):
            with pytest.raises(OutputError, match="is a link to"):
                check(path, overwrite=True)
        with pytest.raises(OutputError, match="is a link to"):
            set_aside(link, old.parent / "bin", now=False)
    assert (old / "0").is_dir()


def test_parents_are_not_made(tmp_path: Path) -> None:
    """A folder that is missing, or that is a file, is said to be so."""
    with pytest.raises(OutputError, match=r"new for the output out.zarr does not exist; create it first"):
        check(tmp_path / "new" / "out.zarr")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file is no folder"):
        check(tmp_path / "file" / "out.zarr")


@pytest.mark.parametrize("path", ["", ".", "..", "/", "a/..", "a\0b"])
def test_a_path_without_a_name_is_refused(path: str) -> None:
    with pytest.raises(OutputError, match="is no name for an output"):
        check(path, overwrite=True)


def test_an_address_of_a_file_is_its_path(old: Path) -> None:
    check(f"{old.parent.as_uri()}/new.zarr")
    with pytest.raises(OutputExistsError):
        check(old.as_uri())


@pytest.mark.parametrize(
    ("address", "error", "why"),
    [
        ("https://host/out.zarr", OutputError, "can only be read"),
        ("s3://bucket", OutputError, "is a whole bucket"),
        ("ftp://host/out.zarr", AddressError, "scheme that isovoxel does not know"),
        ("s3://me:secret@bucket/out.zarr", AddressError, "credentials by the environment"),
    ],
)
def test_an_address_that_cannot_be_written_is_refused(address: str, error: type[Exception], why: str) -> None:
    """Before any server is asked."""
    with pytest.raises(error, match=why):
        check(address)


def test_what_the_system_refuses_is_one_sentence(tmp_path: Path) -> None:
    """A name too long for the file system is an `OutputError`, not an error number."""
    with pytest.raises(OutputError, match="cannot be written: File name too long"):
        check(tmp_path / ("x" * 300))


def test_a_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not being allowed to write is found out before the work."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match=r"writing to .* is not permitted"):
        check(tmp_path / "out.zarr")


def test_an_output_beyond_the_disk_is_refused_with_both_numbers(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has what is needed and what is free. An old output is kept, unless the user says that it goes now."""
    usage = shutil.disk_usage(old)._replace(free=3 * 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda *_: usage)
    with pytest.raises(OutputError, match=r"takes up to 12.0 GiB, before compression, but .* 3.0 GiB free"):
        check(old.parent / "new", nbytes=12 * 2**30)
    check(old.parent / "new", nbytes=3 * 2**30)
    (old / "0" / "c" / "1").write_bytes(b"x" * 2**20)
    more = 3 * 2**30 + 2**20
    with pytest.raises(OutputError, match=r"3.0 GiB free beside the 1.0 MiB of the old one, .* --overwrite now"):
        check(old, nbytes=more, overwrite=True)
    check(old, nbytes=3 * 2**30, overwrite=True)
    check(old, nbytes=more, overwrite="now")
    for path, overwrite in ((old, True), (old, "now"), (old.parent / "new", False)):
        with pytest.raises(OutputError, match=r"12.0 GiB, before compression, but .* 3.0 GiB free; make room"):
            check(path, nbytes=12 * 2**30, overwrite=overwrite)


def test_an_old_output_is_there_whole_or_not_at_all(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that goes at once: half deleted it is never where it was, and the rest goes the next time."""
    folder = old.with_name("out.zarr.isovoxel")
    claim(folder)

    def fail(_: Path, *, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError("disk")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", fail)
        with pytest.raises(OSError, match="disk"):
            set_aside(old, folder, now=True)
    assert not old.exists()
    assert not (folder / REPLACED).exists()
    set_aside(old, folder, now=True)
    assert [path.name for path in folder.iterdir()] == ["made-by-isovoxel"]
