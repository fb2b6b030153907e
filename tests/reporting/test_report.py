"""The report tells what was done, is one file that needs no other, gives away no secret, and keeps to the budget."""

from __future__ import annotations

import base64
import io
import math
import re
import threading
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

import isovoxel as package
from command_line import Isovoxel, check_refused, listing
from isovoxel.execution.events import BlockDone, JobFinished, JobStarted, Retried, Slowed
from isovoxel.planning.memory import human_bytes
from isovoxel.readers.base import Volume
from isovoxel.reporting.figures import NAMESPACE
from isovoxel.reporting.files import MARK, redacted_command, without_secrets
from isovoxel.reporting.plan_picture import plan_svg
from isovoxel.reporting.report import MOST_NOTES, Recorder, Report
from isovoxel.reporting.show import default_name

VOID = {"meta", "img", "rect", "path", "br"}


class Outline(HTMLParser):
    """Checks that tags are closed in order, and keeps text and attributes."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a stack of thick planes."""
    monkeypatch.chdir(tmp_path)
    stack = np.random.default_rng(0).integers(0, 200, (20, 60, 70), dtype=np.uint8)
    metadata = {"axes": "ZYX", "spacing": 2.0, "unit": "micron"}
    tifffile.imwrite(tmp_path / "stack.tif", stack, imagej=True, resolution=(2, 2), metadata=metadata)
    return tmp_path


SMALL_BLOCKS = ["--engine", "exact", "--chunk", "32,32,32", "--shard", "32,32,32", "--device-memory", "150kB"]


def read(path: str) -> tuple[str, Outline]:
    """Return a report, checked to stand by itself."""
    page = Path(path).read_text(encoding="utf-8")
    outline = Outline(page)
    assert MARK in page[:300]
    assert "script" not in outline.tags
    assert all(link.startswith("data:image/png;base64,") for link in outline.links)
    assert set(re.findall(r"\w+://[^\s\"'<]*", page)) <= {NAMESPACE}
    assert not re.search(r"@import|url\(", page)
    return page, outline


@pytest.mark.usefixtures("folder")
def test_it_tells_what_was_done(isovoxel: Isovoxel) -> None:
    """Input, output, how, how fast, both pictures, the plan, and the command."""
    said = isovoxel("scale", "stack.tif", "out.zarr", *SMALL_BLOCKS, "--report", "report.html")
    assert said.code == 0
    assert said.out.splitlines()[-1].split() == ["report", "report.html"]
    page, outline = read("report.html")
    for words in (
        "stack.tif → out.zarr",
        "Done: all blocks are written",
        "nothing was tried again",
        "isovoxel scale stack.tif out.zarr --engine exact",
        "isovoxel verify out.zarr",
        "micrometer (ImageJ unit)",
        "Seconds of",
        "Plan for stack.tif",
    ):
        assert words in outline.text, words
    blocks = re.search(r"(\d+) of \1 blocks", outline.text)
    assert blocks
    assert int(blocks[1]) > 3
    before, after = outline.links
    for link in (before, after):
        with Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))) as image:
            assert image.format == "PNG"
            assert image.width > 300
    shares = [float(seconds) for seconds in re.findall(r"flex-grow:([\d.]+)", page)]
    percents = [float(percent) for percent in re.findall(r" (\d+) %</span>", page)]
    assert len(shares) == len(percents) == 6
    assert sum(shares) == pytest.approx(100, abs=0.1)
    assert shares == pytest.approx(percents, abs=1)
    assert page.count('class="iv-line"') == 2


def pictures(outline: Outline) -> list[Image.Image]:
    """Return the pictures of a report, input before output."""
    return [Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))) for link in outline.links]


@pytest.mark.usefixtures("folder")
def test_it_shows_the_part_that_was_scaled(isovoxel: Isovoxel) -> None:
    """Of a cropped input that box: input and output have one extent, so their pictures have one size."""
    words = ("--crop", "5:15,:,:30", "--input-voxel-size", "4,1,1", "--unit", "nm")
    assert isovoxel("scale", "stack.tif", "out.zarr", *words, "-q", "--report", "report.html").code == 0
    _, outline = read("report.html")
    assert "input shape (10, 60, 30) voxels (5:15,0:60,0:30 of 20 x 60 x 70)" in outline.text
    size = "input voxel size 4 x 1 x 1 (given by the caller)"
    origin = "input origin (20, 0, 0) nanometer, the centre of voxel 0"
    assert f"{size} {origin} input unit nanometer" in outline.text
    before, after = pictures(outline)
    assert before.size == after.size


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_it_shows_the_channel_and_time_that_were_scaled(isovoxel: Isovoxel) -> None:
    """The picture is that of a file which holds nothing else."""
    shown = []
    stack = np.random.default_rng(1).integers(0, 60_000, (2, 6, 3, 20, 30)).astype(np.uint16)
    for name, axes, data in (("many.tif", "TZCYX", stack), ("one.tif", "ZYX", stack[1, :, 2])):
        metadata = {"axes": axes, "spacing": 2.0, "unit": "micron"}
        tifffile.imwrite(name, data, imagej=True, resolution=(2, 2), metadata=metadata)
        words = ("--time", 1, "--channel", 2) if data.ndim > 3 else ()
        assert isovoxel("scale", name, f"{name}.zarr", *words, "-q", "--report", "report.html").code == 0
        shown.append(read("report.html")[1])
    assert "channel 2" in shown[0].text
    assert len(shown[0].links) == 2
    assert shown[0].links == shown[1].links


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_further_levels_count(isovoxel: Isovoxel) -> None:
    """Blocks, voxels and bytes are those of all levels, which the job makes; memory is the most that one takes."""
    words = ["scale", "stack.tif", "out.zarr", *SMALL_BLOCKS, "--device-memory", "1MB", "--levels", 2]
    words += ["--report", "report.html", "--json"]
    said = isovoxel(*words).json
    blocks = said["blocks"]["count"] + sum(level["blocks"] for level in said["levels"])
    voxels = sum(math.prod(level["shape"]) for level in (said["output"], *said["levels"]))
    assert len(said["levels"]) == 2
    assert said["voxels_per_second"] * said["seconds"] == pytest.approx(voxels)
    projected = said["projected"]["host_bytes"]
    for done_already in (False, True):
        _, outline = read("report.html")
        assert f" {blocks:,} of {blocks:,} blocks" in outline.text
        assert f"{human_bytes(voxels)} output and its levels, uncompressed" in outline.text
        if not done_already:
            assert f"{said['voxels_per_second'] / 1e6:,.1f} M output voxels per second" in outline.text
            shown = {f"uses at most {projected / 2**20:.4g} MiB", f"uses at most {projected / 2**30:.4g} GiB"}
            assert any(text in outline.text for text in shown)
        assert isovoxel(*words).code == 0


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_a_conversion_has_a_report_too(isovoxel: Isovoxel) -> None:
    """Of the part that is converted, and as of any job; where it must not be written nothing is begun."""
    words = ("convert", "stack.tif", "out.zarr", "--crop", "5:15,:,:30")
    check_refused(isovoxel(*words, "--report", "report.pdf"), "must end in .html")
    assert not Path("out.zarr").exists()
    said = isovoxel(*words, "--report", "report.html")
    assert said.code == 0
    assert said.out.splitlines()[-1].split() == ["report", "report.html"]
    _, outline = read("report.html")
    assert "isovoxel convert stack.tif out.zarr --crop" in outline.text
    assert "input shape (10, 60, 30) voxels" in outline.text
    before, after = pictures(outline)
    assert before.size == after.size


@pytest.mark.usefixtures("folder")
def test_a_job_that_is_done_already_has_a_report_too(isovoxel: Isovoxel) -> None:
    """It says that nothing was done, in place of the report before, and draws the same."""
    for expected in ("Done: all blocks", "nothing was done"):
        assert isovoxel("scale", "stack.tif", "out.zarr", "--report", "report.html", "-q").code == 0
        _, outline = read("report.html")
        assert expected in outline.text
        assert len(outline.links) == 2


def test_a_job_that_fails_half_way_says_so(isovoxel: Isovoxel, folder: Path) -> None:
    """What went wrong and what is done stands in it, the rest of the page too, and no picture of half a result."""
    array = zarr.create_array("torn.zarr", shape=(40, 64, 64), chunks=(8, 64, 64), dtype="uint8", fill_value=0)
    array[:] = 7
    (folder / "torn.zarr/c/4/0/0").write_bytes(b"torn")
    words = ["scale", "torn.zarr", "out.zarr", "--factor", "2,1,1", *SMALL_BLOCKS, "--report", "report.html"]
    said = isovoxel(*words, "--threads", 1)
    assert said.code == 1
    _, outline = read("report.html")
    assert "Stopped half-way: " in outline.text
    assert "chunk (4, 0, 0)" in outline.text
    assert "The result is not complete: not drawn." in outline.text
    assert "goes on where it ended" in outline.text
    assert outline.links == []
    assert isovoxel(*words, "--on-corrupt", "fill").code == 0
    _, outline = read("report.html")
    assert "1 damaged part filled with 0" in outline.text
    assert "filled with 0 chunk (4, 0, 0)" in outline.text
    assert "They cannot be drawn: chunk (4, 0, 0) of torn.zarr is corrupt" in outline.text


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("notes.html", "is no report of isovoxel's"),
        ("report.pdf", "must end in .html"),
        ("no/report.html", "its folder does not exist"),
        ("out.zarr/report.html", "must not lie inside of the output"),
    ],
)
def test_where_it_must_not_be_nothing_is_begun(isovoxel: Isovoxel, folder: Path, path: str, why: str) -> None:
    """No file of anybody else's is replaced, whether the output is or not."""
    Path("notes.html").write_text("<p>mine</p>")
    before = listing(folder)
    check_refused(isovoxel("scale", "stack.tif", "out.zarr", "--overwrite", "--report", path), why)
    assert listing(folder) == before


def test_a_job_that_is_refused_has_no_report(isovoxel: Isovoxel, folder: Path) -> None:
    before = listing(folder)
    check_refused(isovoxel("scale", "stack.tif", "out.zarr", "--threads", 0, "--report", "report.html"), "threads")
    assert listing(folder) == before


@pytest.mark.parametrize(
    ("name", "shown"),
    [("<img src=x onerror=alert(1)>&amp;.tif", "<img src=x onerror=alert(1)>&amp;.tif"), ("a\udcffb.tif", "a?b.tif")],
)
def test_names_are_text(isovoxel: Isovoxel, folder: Path, name: str, shown: str) -> None:
    """A file's name with tags in it is shown as it is, and one whose bytes are no text all the same."""
    (folder / "stack.tif").rename(folder / name)
    assert isovoxel("scale", name, "out.zarr", "-q", "--report", "report.html").code == 0
    page, outline = read("report.html")
    assert f"{shown} → out.zarr" in outline.text
    assert "<img src=x" not in page


@pytest.mark.parametrize(
    "words",
    [
        "s3://me:hunter2@host/a.zarr",
        "https://host/a.zarr?X-Amz-Signature=hunter2&x=1",
        "--secret-key=hunter2",
        "aws_secret_access_key=hunter2",
        "{'token': 'hunter2'}",
        "OPTIONS_PASSWORD='hunter2'",
        "key=a,secret=hunter2",
    ],
)
def test_secrets_are_left_out(words: str) -> None:
    """In names, messages and commands."""
    assert "hunter2" not in without_secrets(f"before {words} after")
    assert without_secrets(f"before {words} after").startswith("before ")
    assert without_secrets(f"before {words} after").endswith(" after")
    assert "hunter2" not in redacted_command(["isovoxel", words, "a.tif"])


def test_no_part_of_a_picture_or_page_shows_a_secret() -> None:
    """An address with a password is the name of a plan, a picture and a line alike."""
    name = "s3://me:hunter2@host/" + 80 * "x" + "/a.zarr?X-Amz-Signature=hunter2"
    volume = Volume(name, "nothing", (4, 5, 6), np.dtype("uint8"), lambda box: np.zeros(box.shape, np.uint8))
    plan = package.plan(volume, factor=(2, 1, 1))
    assert "hunter2" in plan.source.name
    assert "hunter2" not in plan_svg(plan)
    assert "hunter2" not in (plan._repr_html_() or "")
    assert default_name([name]) == "a.png"


def test_options_with_secrets_keep_their_names() -> None:
    """The word after such an option is hidden; others stay, also where they only look alike."""
    words = ["isovoxel", "--s3-token", "hunter2", "monkey.tif", "KeyError: 'a b'", "--keyring=x"]
    assert redacted_command(words) == "isovoxel --s3-token *** monkey.tif 'KeyError: '\"'\"'a b'\"'\"'' --keyring=***"


@pytest.mark.usefixtures("folder")
def test_the_recorder_is_bounded_and_ends_its_thread() -> None:
    """Of many events it keeps the first, and the number of the others."""
    plan = package.plan("stack.tif", engine="exact")
    with Recorder(held=lambda: 5) as recorder:
        recorder(Slowed(3))  # before the start, as workers that connect are
        recorder(JobStarted(plan))
        for i in range(500):
            recorder(Retried(i, "reading", "OSError: broken cable", 0.1))
            recorder(BlockDone(i, 10, 0.1, 0.0, 0.1, 0.1, 0.1))
    assert not [thread for thread in threading.enumerate() if thread.name == "isovoxel report"]
    assert len(recorder.notes) == MOST_NOTES
    assert recorder.notes[0] == (0.0, "note: the host has too little memory; from now on 3 blocks are in flight")
    assert recorder.notes[-1][1].startswith("note: reading block")
    assert recorder.more_notes > 400
    assert recorder.tally.retries == recorder.blocks_done == 500
    assert sum(recorder.timeline.voxels) == pytest.approx(5000)
    assert max(recorder.timeline.memory) == 5


@pytest.mark.usefixtures("folder")
def test_what_comes_after_the_job_is_not_its() -> None:
    """Memory is not looked at any more once all blocks are written, however long a report takes."""
    plan = package.plan("stack.tif", engine="exact")
    with Recorder(held=lambda: 5) as recorder:
        recorder(JobStarted(plan))
        recorder(JobFinished(1.0))
        assert recorder._looking is not None
        recorder._looking.join(timeout=60)
        assert not recorder._looking.is_alive()


@pytest.mark.usefixtures("folder")
def test_python_users_have_it_too() -> None:
    """The report listens to any job, and is written when its context ends."""
    with Report("report.html", "stack.tif", "out.zarr") as report:
        report.result = package.scale("stack.tif", "out.zarr", engine="exact", listeners=[report.recorder])
    _, outline = read("report.html")
    assert "Done: all blocks" in outline.text
    assert "The command" not in outline.text


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("limit", "value", "why"),
    [
        ("show.DRAWING", 2**50, "They cannot be drawn: drawing takes 2.0 PiB of host memory"),
        ("report.MOST_READ", 20 * 60 * 70, "They are not drawn: 410.2 KiB would be read"),
    ],
)
def test_nothing_is_drawn_beyond_the_budget(
    isovoxel: Isovoxel, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, why: str
) -> None:
    """Where the memory that the job was allowed, or anybody's patience, does not suffice, the report says so."""
    monkeypatch.setattr(f"isovoxel.reporting.{limit}", value)
    assert isovoxel("scale", "stack.tif", "out.zarr", "-q", "--report", "report.html").code == 0
    _, outline = read("report.html")
    assert why in outline.text
    assert "Done: all blocks" in outline.text
    assert outline.links == []
