"""An input that changes while a job reads it: the output is never complete, of whichever kind the input is."""

from __future__ import annotations

import errno
import json
import mmap
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
import tifffile
import zarr

import isovoxel
from inputs import write_n5
from isovoxel.errors import InputError, InterruptedJobError, JobError, OutputExistsError
from isovoxel.execution.events import BlockDone, Event
from isovoxel.geometry.grid import Box
from isovoxel.planning import optimizer
from isovoxel.readers import tiff as tiff_module
from isovoxel.readers.base import is_known_empty
from isovoxel.readers.files import InputWatch, MissingFolders
from isovoxel.readers.open import open_volume

VOXELS = np.random.default_rng(8).integers(1, 999, (24, 32, 32)).astype("uint16")
OTHERS = VOXELS + np.uint16(1000)
HOW: dict[str, Any] = {
    "engine": "exact",
    "factor": (2, 1, 1),
    "shard": (16, 32, 32),
    "chunk": (16, 32, 32),
    "threads": 1,
    "levels": 1,
}

Write = Callable[[Path, np.ndarray], Path]


def npy(path: Path, voxels: np.ndarray) -> Path:
    np.save(path.with_suffix(".npy"), voxels)
    return path.with_suffix(".npy")


def tiff(path: Path, voxels: np.ndarray) -> Path:
    tifffile.imwrite(path.with_suffix(".tif"), voxels)
    return path.with_suffix(".tif")


def slices(path: Path, voxels: np.ndarray) -> Path:
    path.mkdir(exist_ok=True)
    for z, plane in enumerate(voxels):
        tifffile.imwrite(path / f"{z:03}.tif", plane)
    return path


def hdf5(path: Path, voxels: np.ndarray) -> Path:
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file.create_dataset("d", data=voxels, chunks=(4, 16, 16), compression="gzip")
    return path.with_suffix(".h5")


def nifti(path: Path, voxels: np.ndarray) -> Path:
    nibabel.save(nibabel.Nifti1Image(voxels.T, np.eye(4)), path.with_suffix(".nii"))
    return path.with_suffix(".nii")


def n5(path: Path, voxels: np.ndarray) -> Path:
    return write_n5(path, voxels, (4, 16, 16))


def array(path: Path, voxels: np.ndarray, **more: Any) -> Path:
    zarr.create_array(path, data=voxels, overwrite=True, **{"chunks": (4, 16, 16), **more})
    return path


def sharded(path: Path, voxels: np.ndarray) -> Path:
    return array(path, voxels, shards=(8, 32, 32))


def backwards(path: Path, voxels: np.ndarray) -> Path:
    """Write a zarr array that zarr-python reads."""
    return array(path, voxels, zarr_format=2, order="F")


def ome_zarr(path: Path, voxels: np.ndarray) -> Path:
    """Write an OME-Zarr image of two channels."""
    group = zarr.open_group(path, mode="a", zarr_format=2)
    group.create_array("0", data=np.stack([voxels, voxels]), chunks=(1, 4, 16, 16), overwrite=True)
    axes = [{"name": "c", "type": "channel"}, *({"name": a, "type": "space"} for a in "zyx")]
    scale = [{"type": "scale", "scale": [1, 2, 1, 1]}]
    levels = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": levels}]
    return path


KINDS: dict[str, Write] = {
    write.__name__: write for write in (npy, tiff, slices, hdf5, nifti, n5, array, sharded, backwards, ome_zarr)
}


class Once:
    """Does something when the first block is done."""

    def __init__(self, do: Callable[[], Any]) -> None:
        self.do: Callable[[], Any] | None = do

    def __call__(self, event: Event) -> None:
        if isinstance(event, BlockDone) and self.do is not None:
            do, self.do = self.do, None
            do()


def scale(source: Any, output: Path, do: Callable[[], Any] = lambda: None, **more: Any) -> Any:
    """Scale, and do something half-way."""
    return isovoxel.scale(source, output, listeners=[Once(do)], **{**HOW, **more})


def replaced(write: Write, path: Path) -> None:
    """Put another input in an input's place, as old as it was."""
    other = write(path.with_name("other"), OTHERS)
    for old in [path] if path.is_file() else sorted(path.rglob("*")):
        new = other if path.is_file() else other / old.relative_to(path)
        if old.is_file():
            times = old.stat().st_atime_ns, old.stat().st_mtime_ns
            os.utime(new, ns=times)
            new.replace(old)


def overwritten(path: Path) -> None:
    """Write into the largest file of an input, and give it back its time."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    file = max(files, key=lambda file: (file.stat().st_size, file.name))
    status = file.stat()
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        mapped[-40:-36] = b"\1\2\3\4"
        mapped.flush()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


def made(output: Path) -> dict[str, Any]:
    """Return what an output says of what made it."""
    attributes: dict[str, Any] = json.loads((output / "zarr.json").read_text())["attributes"]["isovoxel"]
    return attributes


@pytest.mark.sampled(2)
@pytest.mark.parametrize("how", ["replaced", "overwritten"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_output_of_two_inputs_is_never_complete(kind: str, how: str, tmp_path: Path) -> None:
    """Whether files are replaced or written in place, and keep their size and time; and nothing counts as done."""
    path, output = KINDS[kind](tmp_path / "in", VOXELS), tmp_path / "out.zarr"

    def change() -> None:
        if how == "replaced":
            replaced(KINDS[kind], path)
        else:
            overwritten(path)

    with pytest.raises(JobError, match=r"has changed since the job began.*--overwrite") as raised:
        scale(path, output, change)
    assert raised.value.exit_code == 1
    assert not made(output)["complete"]
    state = isovoxel.output_state(output)
    assert state is not None
    assert state.done == 0
    # Another one that stays can be scaled.
    path = KINDS[kind](tmp_path / "in", OTHERS)
    result = scale(path, output, overwrite=True)
    assert made(output)["complete"]
    assert isovoxel.verify(result.path, samples=20).holds


@pytest.mark.parametrize("kind", KINDS)
def test_an_input_that_stays_is_no_other(kind: str, tmp_path: Path) -> None:
    """Also where its mode or its links are changed, or it is read, and where files that are not wanted change."""
    path, output = KINDS[kind](tmp_path / "in", VOXELS), tmp_path / "out.zarr"

    def touch() -> None:
        for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
            file.chmod(0o600)
            os.utime(file, ns=(0, file.stat().st_mtime_ns))
        shutil.copytree(path, tmp_path / "copy") if path.is_dir() else shutil.copy2(path, tmp_path / "copy")

    scale(path, output, touch)
    assert made(output)["complete"]
    assert scale(path, output).seconds == 0


@pytest.mark.parametrize("kind", ["array", "sharded", "n5", "backwards", "slices", "npy"])
def test_a_job_is_not_resumed_with_another_input(kind: str, tmp_path: Path) -> None:
    """Chunks are a part of what an input is, and so are their times."""
    path, output = KINDS[kind](tmp_path / "in", VOXELS), tmp_path / "out.zarr"

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, InterruptedJobError)):
        scale(path, output, stop)
    KINDS[kind](path.with_suffix(""), OTHERS)
    with pytest.raises(OutputExistsError, match=r"was begun with another .* of the input: .*--overwrite"):
        scale(path, output)
    assert not made(output)["complete"]


def test_chunks_that_are_not_wanted_may_change(tmp_path: Path) -> None:
    """A time series grows while one part of it is scaled."""
    path = array(tmp_path / "in", VOXELS)
    written = zarr.open_array(path, mode="r+")

    def grow() -> None:
        written[16:] = 7

    scale(path, tmp_path / "out.zarr", grow, crop="0:16,:,:")
    assert made(tmp_path / "out.zarr")["complete"]


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"isolate": True}, {"workers": "cpu:1"}])
def test_other_processes_read_no_other_input(how: dict[str, Any], tmp_path: Path) -> None:
    """They open it themselves, and it is compared by the process that marks the output complete."""
    path = array(tmp_path / "in", VOXELS)
    with pytest.raises(JobError, match="has changed since the job began"):
        scale(path, tmp_path / "out.zarr", lambda: overwritten(path), **({"threads": None} | how))
    assert not made(tmp_path / "out.zarr")["complete"]


def test_a_process_that_opens_another_input_does_nothing_with_it(tmp_path: Path) -> None:
    """The plan says which one it is of."""
    from isovoxel.execution.executor import Task, VolumeSource

    path = npy(tmp_path / "in", VOXELS)
    task = Task(isovoxel.plan(path, **HOW), VolumeSource(path), tmp_path / "out.zarr")
    assert task.open().shape == VOXELS.shape
    npy(tmp_path / "in", VOXELS[:20])
    with pytest.raises(JobError, match="has changed since the job began"):
        task.open()


def test_an_array_in_memory_is_compared_too(tmp_path: Path) -> None:
    """Another thread of the caller may write into it."""
    voxels = VOXELS.copy()

    def write() -> None:
        voxels[-1, -1, -1] += 1

    with pytest.raises(JobError, match="the NumPy array has changed since the job began"):
        scale(voxels, tmp_path / "out.zarr", write)
    assert scale(voxels, tmp_path / "out.zarr", overwrite=True).plan.factor == (2, 1, 1)


def test_changes_in_memory_of_a_mapped_file_are_a_part_of_it(tmp_path: Path) -> None:
    """A copy on write is not what its file holds."""
    path = npy(tmp_path / "in", VOXELS)
    mapped = np.load(path, mmap_mode="c")
    before = InputWatch(open_volume(mapped)).volume.identity
    mapped[0, 0, 0] += 1
    assert InputWatch(open_volume(mapped)).volume.identity != before


def test_labels_that_change_while_their_image_is_made_are_told(tmp_path: Path) -> None:
    """They were opened before the image was begun, which stays complete."""
    path, labels = npy(tmp_path / "in", VOXELS), tifffile_labels(tmp_path / "labels.tif")
    with pytest.raises(JobError, match=r"its labels are not begun: .*labels.tif has changed since"):
        scale(path, tmp_path / "out.zarr", lambda: tifffile_labels(labels, 3), with_labels=labels)
    assert made(tmp_path / "out.zarr")["complete"]
    scale(path, tmp_path / "out.zarr", with_labels=labels)
    assert (tmp_path / "out.zarr/labels/labels/zarr.json").is_file()


def tifffile_labels(path: Path, value: int = 1) -> Path:
    tifffile.imwrite(path, np.full(VOXELS.shape, value, "uint16"))
    return path


def test_an_input_that_is_put_back_is_not_resumed(tmp_path: Path) -> None:
    """What was made while another lay in its place is forgotten."""
    path, output = npy(tmp_path / "in", VOXELS), tmp_path / "out.zarr"
    kept = path.rename(tmp_path / "kept.npy")
    shutil.copy2(kept, path)

    def swap() -> None:
        path.unlink()
        npy(tmp_path / "in", OTHERS)

    with pytest.raises(JobError, match="has changed"):
        scale(path, output, swap)
    shutil.copy2(kept, path)
    result = scale(path, output)  # as it was begun with
    assert made(output)["complete"]
    assert isovoxel.verify(result.path, samples=40).holds


def test_looking_takes_no_memory_that_grows(tmp_path: Path) -> None:
    """Sums are all that is kept: of files in any order, each counted as often as it is named."""
    path = array(tmp_path / "in", VOXELS)
    watch = InputWatch(open_volume(path))
    assert watch.volume.identity["chunks"] == InputWatch(open_volume(path)).volume.identity["chunks"]
    assert not watch.is_changed()
    chunk = path / "c/5/1/1"
    chunk.unlink()
    assert watch.is_changed()


def sparse_zarr(path: Path) -> Path:
    """Write a zarr of 64 folders of 16 chunks, all but two of which are not stored."""
    made: Any = zarr.create_array(path, shape=(32, 32, 64), chunks=(4, 4, 4), dtype="uint16", fill_value=0)
    made[8:12, 4:8, :4] = made[8:12, 4:8, 60:] = 3
    return path


def test_in_folders_that_are_not_there_no_file_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1,024 chunks, while the state is that of all of them; nor where it is asked which chunks are stored."""
    volume = open_volume(sparse_zarr(tmp_path / "in.zarr"))
    with monkeypatch.context() as patch:
        patch.setattr(MissingFolders, "hold", lambda *_: False)
        every = InputWatch(volume).volume.identity
    asked: list[str] = []
    stat, open_file = os.stat, os.open
    monkeypatch.setattr(os, "stat", lambda path, **more: (asked.append(path), stat(path, **more))[1])
    monkeypatch.setattr(os, "open", lambda path, *more: (asked.append(path), open_file(path, *more))[1])
    assert InputWatch(volume).volume.identity == every
    looked = len(asked)
    assert looked < 16 + 64 + 60
    assert not is_known_empty(volume.read, Box.whole(volume.shape))
    assert is_known_empty(volume.read, Box((12, 0, 0), (32, 32, 64)))
    assert len(asked) < looked + 8 + 16 + 10


def test_a_chunk_that_comes_to_a_folder_that_was_not_there_is_a_change(tmp_path: Path) -> None:
    """And one in a folder that was."""
    for place in ((20, 4, 4), (8, 4, 20)):
        source = sparse_zarr(tmp_path / f"{place}.zarr")
        watch = InputWatch(open_volume(source))
        assert not watch.is_changed()
        zarr.open_array(source)[place] = 1
        assert watch.is_changed()


def test_a_folder_that_cannot_be_looked_at_is_not_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its chunks are looked for each by itself, and the first one raises."""
    source = sparse_zarr(tmp_path / "in.zarr")
    volume, stat = open_volume(source), os.stat

    def refuse(path: str, **more: Any) -> os.stat_result:
        if "/c/5" in str(path) and not str(path).endswith("/0"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return stat(path, **more)

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(InputError, match="Permission denied"):
        InputWatch(volume)


def test_a_file_that_cannot_be_looked_at_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = array(tmp_path / "in", VOXELS)
    volume = open_volume(path)

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("isovoxel.readers.files.os.stat", refuse)
    with pytest.raises(InputError, match="cannot be looked at: Permission denied"):
        InputWatch(volume)


@pytest.mark.sampled(9)
@pytest.mark.parametrize("when", ["before", "planning"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_input_that_changed_since_it_was_opened_begins_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, when: str
) -> None:
    """Where its voxels lie was read then: they would be read from another file, of another layout."""
    write = KINDS[kind]
    path = write(tmp_path / "in", VOXELS)
    source: Any = open_volume(path) if when == "before" else path
    if when == "before":
        write(tmp_path / "in", OTHERS[:-1])
    else:
        plan = optimizer.make_plan

        def plan_slowly(*words: Any, **options: Any) -> Any:
            planned = plan(*words, **options)
            write(tmp_path / "in", OTHERS[:-1])
            return planned

        monkeypatch.setattr(optimizer, "make_plan", plan_slowly)
    with pytest.raises(InputError, match="has changed since it was opened; open it again"):
        isovoxel.scale(source, tmp_path / "out.zarr", **HOW, input_voxel_size=(2, 1, 1))
    assert not list(tmp_path.glob("out*"))


def test_a_file_that_is_written_while_it_is_opened_is_no_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its directory may be of the old file, and its voxels of the new one."""
    path, read = tiff(tmp_path / "in", VOXELS), tiff_module.reader_of

    def read_slowly(*words: Any, **options: Any) -> Any:
        found = read(*words, **options)
        tiff(tmp_path / "in", OTHERS[:-1])
        return found

    monkeypatch.setattr(tiff_module, "reader_of", read_slowly)
    with pytest.raises(InputError, match="was written while it was opened; open it again once it is whole"):
        open_volume(path)
