"""The command line in a process of its own, whatever has become of its streams, its locale and its names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from command_line import Isovoxel, check_refused
from isovoxel import api
from isovoxel.errors import InterruptedJobError
from isovoxel.output.provenance import read_provenance
from small_jobs import stop_after

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/dev/full, and what a shell can close")

ISOVOXEL = f"{sys.executable} -m isovoxel"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a small stack whose unit is no ASCII."""
    path = tmp_path_factory.mktemp("in") / "stäck.tif"
    metadata = {"axes": "ZYX", "spacing": 2.0, "unit": "micron"}
    voxels = np.random.default_rng(0).integers(0, 250, (4, 24, 24)).astype("uint8")
    tifffile.imwrite(path, voxels, imagej=True, resolution=(2, 2), metadata=metadata)
    return path


def shell(command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command line as a shell does, and return what is left of its streams."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHONIO"))} | variables
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, capture_output=True, check=False, env=environment, timeout=120
    )


SCALE = "{isovoxel} scale {stack} out.zarr --levels 0 --engine exact"


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("streams", "code", "said"),
    [
        ("2>&-", 0, b""),
        ("<&- >&- 2>&-", 0, b""),
        (">/dev/full", 0, b"note: out.zarr is complete, but what was done cannot be printed: No space left on device"),
        ("2>/dev/full", 0, b""),
        ("--report r.html 2>&1 | true", 0, b""),
    ],
)
def test_a_job_comes_to_its_end_whatever_its_streams_are(
    stack: Path, tmp_path: Path, streams: str, code: int, said: bytes
) -> None:
    """The output is complete, the exit code is that of the job, and nothing of Python is seen."""
    command = SCALE.format(isovoxel=ISOVOXEL, stack=stack) + f" {streams}"
    done = shell(f"set -o pipefail; {command}", tmp_path)
    assert (done.returncode, b"Traceback" in done.stderr, b"ignored" in done.stderr) == (code, False, False)
    assert said in done.stderr
    assert read_provenance(tmp_path / "out.zarr")["complete"] is True
    assert not (tmp_path / "out.zarr.isovoxel").exists()


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("words", "streams", "code", "said"),
    [
        ("info {stack}", ">/dev/full", 1, b"error: the result cannot be printed: No space left on device\n"),
        ("--help", ">/dev/full", 1, b"error: the result cannot be printed: No space left on device\n"),
        ("info {stack} --json", ">&-", 0, b""),
        ("info nothing.tif", "2>/dev/full", 2, b""),
        ("scale {stack} out.zarr --zom 2", "2>/dev/full", 2, b""),
    ],
)
def test_what_is_only_printed_fails_where_it_cannot_be(
    stack: Path, tmp_path: Path, words: str, streams: str, code: int, said: bytes
) -> None:
    """A full disk is an error in one sentence, a closed stream is not, and errors keep their code."""
    done = shell(f"{ISOVOXEL} {words.format(stack=stack)} {streams}", tmp_path)
    assert (done.returncode, done.stderr, list(tmp_path.iterdir())) == (code, said, [])


def test_a_closed_stream_gives_its_number_to_no_file(tmp_path: Path) -> None:
    """What a driver prints to it would be written into the output."""
    program = "from isovoxel.terminal import open_streams; open_streams(); import os; print(os.open('/', 0))"
    done = shell(f'{sys.executable} -c "{program}" 2>&- <&-', tmp_path)
    assert int(done.stdout) > 2


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "variables",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1:strict"},
    ],
    ids=str,
)
def test_text_is_printed_in_any_encoding(stack: Path, tmp_path: Path, variables: dict[str, str]) -> None:
    """What an encoding lacks is escaped; JSON is the same in all."""
    odd = tmp_path / "ż→.tif"
    odd.write_bytes(stack.read_bytes())
    done = shell(f"{ISOVOXEL} info {odd}", tmp_path, **variables)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"(4, 24, 24)" in done.stdout


NAMES = {"no UTF-8": b"a\xff\xe9", "controls": b"a\x1b[31m\x07\nb", "turned": "a\u202eb".encode()}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_names_are_what_the_system_says(isovoxel: Isovoxel, stack: Path, tmp_path: Path, name: bytes) -> None:
    """Input, output, labels and report of any name: begun, gone on with, verified; a terminal sees none of it."""
    folder = tmp_path / os.fsdecode(name)
    folder.mkdir()
    source, output, labels = folder / f"{folder.name}.tif", folder / f"{folder.name}.zarr", folder / "labels.tif"
    for file in (source, labels):
        file.write_bytes(stack.read_bytes())

    options: Any = {"levels": 0, "chunk": (8, 8, 8), "shard": (8, 8, 8), "threads": 1, "device_memory": 10_000}
    with pytest.raises(InterruptedJobError):
        api.scale(source, output, listeners=[stop_after(how=KeyboardInterrupt)], **options)
    words = ["--levels", 0, "--chunk", "8,8,8", "--shard", "8,8,8", "--threads", 1, "--device-memory", "10kB"]
    words += ["--with-labels", labels, "--report", folder / "r.html"]
    went_on = isovoxel("scale", source, output, *words, "--json")
    assert (went_on.json["path"], went_on.json["happened"]["done_before"] > 0) == (str(output), True)
    assert read_provenance(output)["input"]["identity"]["path"] == str(source)
    said = [
        went_on,
        isovoxel("scale", source, output, *words),
        isovoxel("verify", output, "--samples", 50),
        isovoxel("info", output),
        isovoxel("info", source),
        isovoxel("plan", source),
        isovoxel("limits", source),
        isovoxel("show", source, output, "-o", folder / "p.png"),
        isovoxel("convert", source, folder / "c.zarr"),
    ]
    assert [one.code for one in said] == [0] * len(said), [one.err for one in said]
    assert "nothing was done" in said[1].out
    refused = [
        isovoxel("info", folder / "nothing.tif"),
        isovoxel("scale", source, folder, "--overwrite"),
        isovoxel("plan", source, "--config", folder),
        isovoxel("verify", source),
        isovoxel("scale", source, output, f"--{folder.name}"),
        isovoxel("scale", source, folder / "d.zarr", "--codec", folder.name),
        isovoxel("scale", source, folder / "d.zarr", "--report", folder.name),
    ]
    for one in refused:
        check_refused(one, "")
    for one in [*said, *refused]:
        assert (one.out + one.err).replace("\n", "").isprintable()


def test_texts_of_metadata_need_be_no_unicode(isovoxel: Isovoxel, tmp_path: Path) -> None:
    """Half a character or an escape sequence, of a unit or a channel, is written on; none reaches a screen."""
    odd = "a\ud800\x1b[31m\udcff"
    group = zarr.create_group(tmp_path / "in.zarr", zarr_format=3)
    group.create_array("0", shape=(2, 4, 8, 8), dtype="uint8", fill_value=7)
    axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}]
    axes += [{"name": axis, "type": "space", "unit": odd} for axis in "zyx"]
    scale = {"type": "scale", "scale": [1, 2.0, 0.5, 0.5]}
    multiscale = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}
    window = {"min": 0, "start": 0, "end": 9, "max": 9}
    channels = [{"label": odd, "color": "FF0000", "window": window}] * 2
    metadata = json.loads((tmp_path / "in.zarr/zarr.json").read_text())
    metadata["attributes"] = {"ome": {"version": "0.5", "multiscales": [multiscale], "omero": {"channels": channels}}}
    (tmp_path / "in.zarr/zarr.json").write_text(json.dumps(metadata))
    said = [
        isovoxel("info", tmp_path / "in.zarr"),
        isovoxel(
            "scale", tmp_path / "in.zarr", tmp_path / "out.zarr", "--factor", "2,1,1", "--report", tmp_path / "r.html"
        ),
        isovoxel("info", tmp_path / "out.zarr"),
        isovoxel("plan", tmp_path / "in.zarr", "--factor", "2,1,1"),
        isovoxel("show", tmp_path / "out.zarr", "--channel", 0, "-o", tmp_path / "p.png"),
    ]
    assert [one.code for one in said] == [0] * len(said), [one.err for one in said]
    for one in said:
        assert (one.out + one.err).replace("\n", "").isprintable()
    assert "\x1b" not in (tmp_path / "r.html").read_text()
