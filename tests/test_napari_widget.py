"""The widget "Make isotropic" in napari itself, on a display."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import isovoxel
from command_line import Isovoxel
from isovoxel.demo import write_blastocyst

os.environ["NAPARI_CONFIG"] = ""  # neither reads nor keeps settings
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of napari's libraries
    napari = pytest.importorskip("napari", reason="napari is not installed (extra napari)")

pytestmark = [
    pytest.mark.display,
    pytest.mark.filterwarnings("ignore"),  # napari's libraries raise some
    pytest.mark.skipif(
        not any(map(find_spec, ("PyQt6", "PySide6"))),
        reason="neither PyQt6 nor PySide6 is installed, which napari needs",
    ),
    pytest.mark.skipif(
        sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ),
        reason="no display; xvfb-run has one",
    ),
]

PATIENCE = 120
"""Seconds after which a test gives up."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("napari") / "blastocyst.tif"
    write_blastocyst(path)
    return path


@pytest.fixture
def viewer() -> Iterator[Any]:
    found = napari.Viewer(show=False)
    yield found
    found.close()


def opened(viewer: Any, path: Path, output: Path) -> Any:
    """Return the widget, which has planned a job."""
    viewer.open(str(path), plugin="napari")
    _, widget = viewer.window.add_plugin_dock_widget("isovoxel", "Make isotropic")
    wait(widget, lambda: widget._planned is not None)
    widget._output.value = output
    planned(widget)
    return widget


def wait(widget: Any, until: Callable[[], bool]) -> None:
    """Let napari work until something is so."""
    from qtpy.QtWidgets import QApplication

    end = time.monotonic() + PATIENCE
    while not until():
        QApplication.processEvents()
        assert time.monotonic() < end, (widget._plan.value, widget._status.value)


def planned(widget: Any) -> str:
    """Return what the widget says of what its fields ask for."""
    wait(widget, lambda: not widget._quiet and not widget._asked and widget._job is None)
    return said(widget._plan)


def run(widget: Any) -> str:
    """Press Run, and return what the widget says in the end."""
    widget._run.changed.emit(True)
    wait(widget, lambda: widget._job is None)
    return said(widget._status)


def said(label: Any) -> str:
    """Return a text as it is seen."""
    from qtpy.QtGui import QTextDocumentFragment

    return str(QTextDocumentFragment.fromHtml(label.value).toPlainText()).replace("\u200b", "")


def stopping(blocks: int, stop: Callable[[], Any]) -> Any:
    """Return a class of listeners that do something once so many blocks are done."""
    from isovoxel.execution.events import BlockDone, Event
    from isovoxel.napari.layers import Follower

    class Stopping(Follower):
        def __call__(self, event: Event) -> None:
            if isinstance(event, BlockDone) and self.done + 1 == blocks:
                stop()
            super().__call__(event)

    return Stopping


def test_run_adds_all_levels_where_the_stack_lies(viewer: Any, stack: Path, tmp_path: Path) -> None:
    widget = opened(viewer, stack, tmp_path / "out.zarr")
    assert "(426, 396, 393) voxels of 0.202 x 0.202 x 0.202 micrometer" in planned(widget)
    assert run(widget).startswith("Written in ")
    layer, result = viewer.layers
    assert [level.shape for level in result.data] == [(426, 396, 393), (213, 198, 196)]
    assert np.allclose(layer.data_to_world([-0.5] * 3), result.data_to_world([-0.5] * 3))
    assert np.array_equal(result.data[0][200], zarr.open_group(tmp_path / "out.zarr")["0"][200])
    assert list(layer.scale) == [1, 0.202, 0.202]  # which it had not, before
    assert "nothing is left to do" in planned(widget)


def test_cancel_keeps_what_is_done_and_run_goes_on(
    viewer: Any, stack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import isovoxel.napari.widget as module

    out = tmp_path / "out.zarr"
    widget = opened(viewer, stack, out)
    follower = module.Follower
    monkeypatch.setattr(module, "Follower", stopping(2, lambda: widget._cancel.changed.emit(True)))
    text = run(widget)
    state = isovoxel.output_state(out)
    assert state is not None
    assert 2 <= state.done < state.blocks
    assert text.startswith(f"Cancelled: {state.done} of {state.blocks} blocks are done and kept. Run goes on with it")
    assert shlex.split(widget._command.value) == ["isovoxel", "scale", str(stack), str(out)]
    assert f"{state.done} of {state.blocks} blocks of {out} are done: the job would go on" in planned(widget)
    assert len(viewer.layers) == 1
    monkeypatch.setattr(module, "Follower", follower)
    assert run(widget).startswith("Written in ")
    assert isovoxel.verify(out, samples=20).holds


KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}]
import napari, test_napari_widget as these
import isovoxel.napari.widget as module
viewer = napari.Viewer(show=False)
module.Follower = these.stopping(3, lambda: os.kill(os.getpid(), signal.SIGKILL))
widget = these.opened(viewer, {stack!r}, these.Path({out!r}))
widget._run.changed.emit(True)
print(widget._command.value, flush=True)
these.wait(widget, lambda: False)
"""


def test_a_job_of_a_napari_that_was_killed_is_finished_by_the_command_that_it_showed(
    isovoxel: Isovoxel, stack: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.zarr"
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(tests=str(Path(__file__).parent), stack=str(stack), out=str(out)))
    killed = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    outcome = isovoxel(*shlex.split(killed.stdout)[1:])
    assert outcome.code == 0, outcome.err
    (done,) = re.findall(r"note: resuming: (\d+) of 16 blocks", outcome.err)
    assert int(done) >= 3
    assert isovoxel("verify", out, "--samples", 20).code == 0


def test_what_makes_no_sense_is_said_in_a_sentence(viewer: Any, stack: Path, tmp_path: Path) -> None:
    widget = opened(viewer, stack, tmp_path / "out.zarr")
    for field, value, sentence in [
        (widget._voxel_size, "1, 0.2", "⚠ The voxel size is three numbers, z, y, x, such as 1, 0.2, 0.2, not 1, 0.2."),
        (widget._voxel_size, "1, 0, 0.2", "⚠ Voxel size must be a finite number above 0, not 0."),
        (widget._unit, "parsnip", "⚠ 'parsnip' is no unit of length"),
        (widget._output.line_edit, "", "⚠ Give the path of the OME-Zarr to write."),
        (widget._output.line_edit, str(stack), f"⚠ {stack} "),
    ]:
        before = field.value
        field.value = value
        assert planned(widget).startswith(sentence)
        assert not widget._run.enabled
        field.value = before
    assert planned(widget).startswith("File: ")
    assert widget._run.enabled


def test_a_job_that_fails_says_why_and_how_to_go_on(
    viewer: Any, stack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import isovoxel.napari.widget as module

    def fail() -> None:
        raise OSError(5, "the disk is gone")

    widget = opened(viewer, stack, tmp_path / "out.zarr")
    monkeypatch.setattr(module, "Follower", stopping(2, fail))
    text = run(widget)
    assert text.startswith("⚠ ")
    assert "Run goes on with it, as does this command without napari:" in text
    assert "Traceback" not in text


def test_labels_that_were_painted_are_scaled_as_they_are_seen(
    viewer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tifffile

    import isovoxel.napari.widget as module

    path = tmp_path / "nuclei.tif"
    metadata = {"axes": "ZYX", "spacing": 4, "unit": "micron"}
    tifffile.imwrite(path, np.full((40, 160, 160), 3, np.uint16), imagej=True, resolution=(1, 1), metadata=metadata)
    viewer.open(str(path), plugin="napari", layer_type="labels")
    _, widget = viewer.window.add_plugin_dock_widget("isovoxel", "Make isotropic")
    assert planned(widget).startswith("File: ")
    viewer.layers[0].paint((1, 5, 6), 9)
    follower = module.Follower
    monkeypatch.setattr(module, "Follower", stopping(1, widget.stop))
    text = run(widget)
    assert "Run goes on with it." in text  # and no command, which would read the file
    assert "The layer's array was scaled, because its voxels are no longer those of" in text
    assert planned(widget).startswith("Array: ")
    assert "the job would go on" in planned(widget)
    monkeypatch.setattr(module, "Follower", follower)
    assert run(widget).startswith("Written in ")
    result = viewer.layers[-1]
    assert isinstance(result, napari.layers.Labels)
    assert np.asarray(result.data)[4 * 1 + 1, 5, 6] == 9


def test_an_output_that_is_replaced_has_one_layer(viewer: Any, stack: Path, tmp_path: Path) -> None:
    widget = opened(viewer, stack, tmp_path / "out.zarr")
    widget._how_far.value, widget._amount.value = "zoom", "2"
    assert "(172, 160, 159) voxels" in planned(widget)
    run(widget)
    widget._amount.value = "1"
    assert "give overwrite or another output" in planned(widget)
    widget._overwrite.value = True
    assert "would be replaced" in planned(widget)
    run(widget)
    assert not widget._overwrite.value
    assert [layer.name for layer in viewer.layers] == ["blastocyst", "blastocyst isotropic"]
    assert viewer.layers[1].data.shape == (86, 80, 79)


def test_the_sample_is_the_demos_stack(viewer: Any) -> None:
    (layer,) = viewer.open_sample("isovoxel", "blastocyst")
    assert (layer.data.shape, list(layer.scale)) == ((86, 396, 393), [1, 0.202, 0.202])
    _, widget = viewer.window.add_plugin_dock_widget("isovoxel", "Make isotropic")
    assert planned(widget).startswith("Array: ")


def test_a_layer_is_asked_for_where_there_is_none(viewer: Any) -> None:
    _, widget = viewer.window.add_plugin_dock_widget("isovoxel", "Make isotropic")
    assert planned(widget).startswith("Open an image or labels layer")
    for _ in range(2):
        viewer.add_image(np.ones((3, 4, 5), np.uint8))
        assert planned(widget).startswith("Array: ")
        widget._change()  # a plan is on its way
        viewer.layers.clear()
        assert planned(widget).startswith("Open an image or labels layer")
