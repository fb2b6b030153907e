"""The folder of a ledger is isovoxel's, or nobody touches it; and nothing in it is reached through a link."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

import isovoxel as package
from command_line import Isovoxel, check_refused
from isovoxel.errors import OutputError
from isovoxel.object_store.files import write_whole
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.output.files import BLOCKS, FILES, FOLDERS, JOB, LOCK, MARK, check_folder, claim
from small_jobs import OPTIONS, interrupt
from snapshots import snapshot
from store_server import contents


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A folder of the user's, with a file in it."""
    (tmp_path / "precious" / "deep").mkdir(parents=True)
    (tmp_path / "precious" / "deep" / "thesis.txt").write_text("three years")
    return tmp_path / "precious"


Maker = Callable[[Path, Path], None]


def _files(folder: Path, _: Path) -> None:
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")


def _same_names(folder: Path, _: Path) -> None:
    folder.mkdir()
    for name in (LOCK, BLOCKS, JOB):
        (folder / name).write_text('{"mine": true}\n')
    (folder / "new").mkdir()
    (folder / "replaced").mkdir()
    (folder / "replaced" / "a.tif").write_text("mine")


def _socket(path: Path, _: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        here = Path.cwd()
        os.chdir(path.parent)  # the system takes no long names
        bound.bind(path.name)
        os.chdir(here)


FOREIGN: dict[str, Maker] = {
    "a folder with a file": _files,
    "a folder with files of the ledger's names": _same_names,
    "a link to a folder": lambda folder, precious: folder.symlink_to(precious),
    "a link to an empty folder": lambda folder, precious: folder.symlink_to(precious / "deep"),
    "a link to nothing": lambda folder, precious: folder.symlink_to(precious / "nothing"),
    "a file": lambda folder, _: folder.write_text("mine") and None,
    "a named pipe": lambda folder, _: os.mkfifo(folder),
}
"""What may lie where a ledger's folder would be made, and is not isovoxel's."""

OTHER: dict[str, Maker] = {
    "a link to a file": lambda path, precious: path.symlink_to(precious / "deep" / "thesis.txt"),
    "a link to a folder": lambda path, precious: path.symlink_to(precious),
    "a link to nothing": lambda path, precious: path.symlink_to(precious / "nothing"),
    "a hard link": lambda path, precious: path.hardlink_to(precious / "deep" / "thesis.txt"),
    "a named pipe": lambda path, _: os.mkfifo(path),
    "a socket": _socket,
    "a device": lambda path, _: os.mknod(path, 0o020666, os.makedev(1, 3)),
}
"""What may lie in such a folder in place of a file or a folder of isovoxel's."""


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_not_isovoxels_is_refused_and_kept(
    kind: str, overwrite: bool, tmp_path: Path, source: Path, precious: Path, isovoxel: Isovoxel
) -> None:
    """One sentence that names it; every byte of it stays, and so does what it leads to; nothing is made."""
    FOREIGN[kind](tmp_path / "out.zarr.isovoxel", precious)
    before = snapshot(tmp_path)
    words = ["--factor", "2,1,1", *(["--overwrite"] if overwrite else [])]
    check_refused(isovoxel("scale", source, tmp_path / "out.zarr", *words), "where isovoxel keeps what is done of the")
    assert snapshot(tmp_path) == before


@pytest.mark.sampled(21)
@pytest.mark.parametrize("kind", OTHER)
@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_links_and_the_like_in_a_folder_of_isovoxels_are_refused(
    name: str, kind: str, tmp_path: Path, source: Path, precious: Path
) -> None:
    """They are neither followed, nor removed, nor waited for."""
    if kind == "a device" and os.geteuid() != 0:
        pytest.skip("only root makes devices")
    if kind == "a hard link" and name in FOLDERS:
        pytest.skip("folders have none")
    folder = tmp_path / "out.zarr.isovoxel"
    claim(folder)
    (folder / name).unlink(missing_ok=True)
    try:
        OTHER[kind](folder / name, precious)
    except PermissionError:
        pytest.skip("this machine makes no devices")
    before = snapshot(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"where isovoxel keeps what is done of the output, is"):
            package.scale(source, tmp_path / "out.zarr", overwrite=overwrite, **OPTIONS)
    package.output_state(tmp_path / "out.zarr")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", [LOCK, BLOCKS, JOB])
def test_a_job_does_not_go_on_through_a_link(name: str, tmp_path: Path, source: Path, precious: Path) -> None:
    """Also where what the link leads to is what was there: it may be somebody's copy."""
    interrupt(source, tmp_path / "out.zarr")
    folder = tmp_path / "out.zarr.isovoxel"
    (folder / name).rename(precious / name)
    (folder / name).symlink_to(precious / name)
    before = snapshot(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"is a link to|is not known"):
            package.scale(source, tmp_path / "out.zarr", overwrite=overwrite, **OPTIONS)
    assert snapshot(tmp_path) == before


def test_a_folder_of_0_1_is_isovoxels_by_its_plan(tmp_path: Path, source: Path) -> None:
    """It has no mark, and its job goes on; by its lock likewise, where the process died before it had a plan."""
    output, folder = tmp_path / "out.zarr", tmp_path / "out.zarr.isovoxel"
    interrupt(source, output)
    (folder / MARK).unlink()
    (folder / LOCK).write_text("")
    assert package.scale(source, output, **OPTIONS).tally.done_before > 0
    assert not folder.exists()
    folder.mkdir()
    (folder / LOCK).write_text(json.dumps({"host": "h", "pid": 1, "began": 1.0, "since": "then"}))
    check_folder(folder)
    (folder / LOCK).write_text(json.dumps({"host": "h"}))
    with pytest.raises(OutputError, match="has not made"):
        check_folder(folder)


def test_beside_a_complete_output_a_folder_of_the_users_stays(tmp_path: Path, source: Path) -> None:
    """The command that finds nothing to do does not tidy it up."""
    package.scale(source, tmp_path / "out.zarr", **OPTIONS)
    _same_names(tmp_path / "out.zarr.isovoxel", tmp_path)
    before = snapshot(tmp_path)
    package.scale(source, tmp_path / "out.zarr", **OPTIONS)
    assert snapshot(tmp_path) == before


def test_files_that_a_user_put_there_outlast_the_job(tmp_path: Path, source: Path) -> None:
    """Of isovoxel's own folder, too, nothing but its own goes."""
    interrupt(source, tmp_path / "out.zarr")
    (tmp_path / "out.zarr.isovoxel" / "notes.txt").write_text("mine")
    package.scale(source, tmp_path / "out.zarr", **OPTIONS)
    assert [path.name for path in (tmp_path / "out.zarr.isovoxel").iterdir()] == ["notes.txt"]


def test_a_file_called_like_one_that_is_half_written_stays(tmp_path: Path, precious: Path) -> None:
    """What is written for a moment has a name that no other file has: of metadata, pictures, reports and plans."""
    (tmp_path / "report.html.partial").write_text("mine")
    (tmp_path / "zarr.json.partial").symlink_to(precious / "deep" / "thesis.txt")
    before = snapshot(tmp_path)
    for name in ("report.html", "zarr.json"):
        write_whole(tmp_path / name, b"ours")
        assert (tmp_path / name).read_bytes() == b"ours"
        (tmp_path / name).unlink()
    assert snapshot(tmp_path) == before


def test_a_name_as_long_as_names_may_be_is_written(tmp_path: Path) -> None:
    """The name that the file has for a moment is not longer than those that a file system takes."""
    path = tmp_path / ("ä" * 125 + ".html")
    write_whole(path, b"ours")
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [(path.name, b"ours")]


def test_objects_that_are_not_isovoxels_are_refused_and_kept(bucket: ObjectPlace, source: Path) -> None:
    """Where a ledger's objects would be, whatever they are called."""
    for name in ("notes.txt", "blocks/0", "job.json", "replaced"):
        (bucket / "out.zarr.isovoxel" / name).write(b"{}")
    before = contents(bucket)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="isovoxel has not put them there"):
            package.scale(source, "s3://bucket/out.zarr", overwrite=overwrite, **OPTIONS)
    assert contents(bucket) == before
