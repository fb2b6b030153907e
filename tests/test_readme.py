"""README, pages and examples keep their word: code runs, sessions are what commands print, links lead somewhere."""

from __future__ import annotations

import doctest
import re
import runpy
import shlex
import sys
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isovoxel import cli
from isovoxel.demo import write_blastocyst

CHECKOUT = Path(__file__).parents[1]
README = CHECKOUT / "README.md"
CONTRIBUTING = CHECKOUT / ".github" / "CONTRIBUTING.md"
PAGES = [README, CONTRIBUTING, *sorted((CHECKOUT / "examples").glob("*.md"))]

ELSEWHERE = (
    "in one piece",
    "at that zoom",
    "device",
    "next limit",
    "engine",
    "blocks",
    "halo",
    "files",
    "host",
    "disk",
    "time",
)
"""How lines begin that tell of the machine or of time."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _made_before: None) -> Path:
    """Work in a folder that holds the demo's stack."""
    monkeypatch.chdir(tmp_path)
    write_blastocyst(tmp_path / "blastocyst.tif")
    return tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_python_examples_run() -> None:
    """Each example gives what stands below it."""
    failed, tried = doctest.testfile(str(README), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert tried > 10
    assert failed == 0


def session(page: Path) -> list[tuple[str, list[str]]]:
    """Return the commands of a page's session, each with the lines that it printed."""
    blocks = re.findall(r"```console\n\$ isovoxel (.*)\n([^`]*)```", page.read_text(encoding="utf-8"))
    return [(command, output.splitlines()) for command, output in blocks]


def lasting(lines: list[str]) -> list[str]:
    """Return the lines that are the same on any machine."""
    return [line for line in lines if not line.startswith((" ", "threads", "note:", "done:", *ELSEWHERE))]


@pytest.mark.parametrize(
    ("page", "commands"),
    [(README, ["info", "scale", "verify", "limits"]), (CHECKOUT / "examples" / "jobs.md", ["plan"])],
    ids=lambda value: value.stem if isinstance(value, Path) else "",
)
def test_session_is_real(
    page: Path,
    commands: list[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Run again, the commands print the same lines, except those about the machine and about time."""
    assert [command.split()[0] for command, _ in session(page)] == commands
    for command, lines in session(page):
        monkeypatch.setattr(sys, "argv", ["isovoxel", *shlex.split(command)])
        with pytest.raises(SystemExit, match="0"):
            cli.main()
        out, err = capsys.readouterr()
        printed = (err + out).splitlines()
        assert lasting(lines) == lasting(printed)
        assert {line.split("  ")[0] for line in lines if line[0] != " "} >= {
            line.split("  ")[0] for line in out.splitlines() if line[0] != " "
        }
    assert folder == Path.cwd()


def test_the_result_opens_as_the_readme_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With each library that it names, without a warning."""
    import dask.array
    import xarray
    import zarr

    monkeypatch.setattr(
        sys, "argv", ["isovoxel", "scale", "blastocyst.tif", "isotropic.zarr", "--zoom", "2", "--quiet"]
    )
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    (block,) = re.findall(r"```python\n([^`]*)```", README.read_text(encoding="utf-8"))
    lines = block.splitlines()
    assert len(lines) == 3
    for line in lines:
        opened = eval(line, {"dask": dask, "xarray": xarray, "zarr": zarr})  # noqa: S307 - the README's own lines
        assert opened.shape == (172, 160, 159), line
    assert folder == Path.cwd()


SLOW = "pytest -n 2 -m slow --durations 0 --durations-min 5"


def test_ci_runs_the_second_command() -> None:
    """What README and CONTRIBUTING tell people to run is what `.ci/run` runs, and then what is slow."""
    first, second = re.findall(r"```sh\n(.*)\n```", README.read_text(encoding="utf-8"))
    assert first.endswith("""pip install ".[prototype]" && isovoxel demo""")
    assert (CHECKOUT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-2:] == [second, SLOW]
    told = CONTRIBUTING.read_text(encoding="utf-8")
    assert second.replace(" && ", "\n") in told
    assert SLOW in told
    workflow = (CHECKOUT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert "run: bash .ci/run" in workflow


def test_every_package_is_in_the_table() -> None:
    """The table of the code's structure names each package and module of isovoxel."""
    package = CHECKOUT / "src" / "isovoxel"
    there = {p.stem for p in package.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    rows = [line for line in CONTRIBUTING.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == there - {"__init__", "__main__"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_it_points_to_are_there(page: Path) -> None:
    """Pictures and links inside of the checkout lead somewhere."""
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_readme_is_short_and_reaches_every_page() -> None:
    """A stranger reads it in five minutes; each page is reached from it or from a page that it names."""
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 200
    named = set(re.findall(r"\]\(((?!https?:)[^)]+\.md)\)", text))
    assert {str(page.relative_to(CHECKOUT)) for page in PAGES} - {"README.md"} <= named


# ---- examples --------------------------------------------------------------------------------------------------------


EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def test_there_are_examples() -> None:
    """The folder has been found."""
    assert len(EXAMPLES) >= 4


@pytest.mark.sampled(1)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It ends well, prints something, and warns of nothing."""
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example), run_name="__main__")
    said = capfd.readouterr()
    assert said.out
    assert said.err == ""


# ---- the notebook ----------------------------------------------------------------------------------------------------


NOTEBOOK = Path(__file__).parents[1] / "examples" / "crash_to_isotropic.ipynb"


def test_it_is_stored_without_outputs() -> None:
    """And so it is small, and says nothing of a machine."""
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) > 8
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_it_runs(tmp_path: Path) -> None:
    """The call crashes where it is foretold; the stack is scaled under a bar that ends full; pictures are drawn."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    pytest.importorskip("pyclesperanto_prototype", reason="it is that cle.scale which crashes here")
    notebook = nbformat.read(NOTEBOOK, 4)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=200, kernel_name="python3", resources=where).execute()
    outputs: list[Any] = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "INVALID_BUFFER_SIZE" in said
    assert "voxels compared; error in grey levels: largest 0.50" in said

    shown = [output.data for output in outputs if "data" in output]
    (bar,) = [
        data["text/html"] for data in shown if "Mvoxel/s" in data.get("text/html", "") and "<pre" in data["text/html"]
    ]
    assert "done" in bar
    assert "16/16 blocks" in bar
    pictures = [b64decode(data["image/png"]) for data in shown if "image/png" in data]
    assert len(pictures) == 2
    for png in pictures:
        with Image.open(BytesIO(png)) as image:
            assert np.asarray(image.convert("L")).std() > 20
