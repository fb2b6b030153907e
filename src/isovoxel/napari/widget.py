"""The plug-in of napari: the widget "Make isotropic", and the demo's stack as sample data.

What takes longer than a moment (to open a file, to plan, to scale) is done on threads. A timer of Qt asks ten times a
second how far they are, so only napari's own thread touches widgets and layers.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magicgui.widgets import CheckBox, ComboBox, Container, FileEdit, Label, LineEdit, PushButton, TextEdit
from napari.layers import Image, Labels
from napari.utils import cancelable_progress
from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QTextOption
from qtpy.QtWidgets import QApplication, QComboBox, QLabel, QScrollArea, QSizePolicy

from isovoxel import devices
from isovoxel.demo import VOXEL_SIZE, blastocyst
from isovoxel.engines.devices import Device
from isovoxel.errors import IsovoxelError, clause
from isovoxel.execution.result import ScaleResult
from isovoxel.geometry.grid import AXES
from isovoxel.napari.layers import (
    WRITTEN,
    Follower,
    LayerInput,
    Request,
    command,
    default_output,
    find_input,
    keywords,
    new_scale,
    parse_numbers,
    plan_layer,
    result_layer,
    scale_layer,
)
from isovoxel.object_store.objects import is_address
from isovoxel.planning.model import ENGINES
from isovoxel.reporting.text import duration

AUTO = "auto"
FINEST, SIZE, ZOOM = "finest side", "voxel size", "zoom"
OPTIONS = {SIZE: "voxel_size", ZOOM: "zoom"}
"""Options of the ways to scale that need a number."""
PAUSE = 100
"""Milliseconds between two looks at what threads do."""
LEAST_WIDTH = 300
"""Pixels, for all fields and a scroll bar."""
QUIET = 3
"""Looks after the last change of a field until a plan is made."""


def sample_blastocyst() -> list[tuple[Any, dict[str, Any], str]]:
    """Return the demo's stack as a layer of napari: nuclei in thick planes."""
    arguments = {"name": "blastocyst", "scale": VOXEL_SIZE, "units": ["micrometer"] * len(AXES)}
    return [(blastocyst(), arguments, "image")]


@dataclass(frozen=True)
class LayerJob:
    """A job that runs."""

    layer: Any
    """What is scaled."""
    request: Request
    """How."""
    output: str
    """Where the result is written."""
    follower: Follower
    """Knows what of the layer is scaled, and how far it is."""
    future: Future[ScaleResult]
    """Returns the result."""
    bar: Any
    """What napari's activity shows of it."""


class MakeIsotropic(Container):
    """Widget that scales a layer to isotropic voxels.

    Parameters
    ----------
    napari_viewer
        The viewer whose layers it offers.
    """

    def __init__(self, napari_viewer: Any) -> None:
        self._viewer = napari_viewer
        self._layer = ComboBox(label="layer", choices=self._layers)
        self._axes = LineEdit(label="axes", tooltip="Names of the layer's axes: t, c, z, y, x")
        self._voxel_size = LineEdit(label="voxel size", tooltip="Of the layer, along z, y, x")
        self._unit = LineEdit(label="unit", tooltip="Of the voxel size, such as micrometer")
        self._adopt = CheckBox(text="show the layer with this voxel size", value=True)
        self._how_far = ComboBox(label="scale to", choices=[FINEST, SIZE, ZOOM])
        self._amount = LineEdit(label="value", value="1", tooltip="Side of the new voxels, or zoom: sides of 1 / zoom")
        self._antialias = CheckBox(text="average where an axis shrinks", value=False)
        self._engine = ComboBox(label="engine", choices=[AUTO, *ENGINES])
        self._device = ComboBox(label="device", choices=[AUTO])
        self._output = FileEdit(label="output", mode="w", tooltip="OME-Zarr to write: a path, or an address")
        self._overwrite = CheckBox(text="overwrite an output that is there", value=False)
        fields = [self._voxel_size, self._unit, self._adopt, self._how_far, self._amount, self._antialias]
        fields += [self._engine, self._device, self._output, self._overwrite]
        self._form = Container(widgets=[self._layer, self._axes, *fields])
        self._run, self._cancel = PushButton(text="Run"), PushButton(text="Cancel")
        buttons = Container(widgets=[self._run, self._cancel], layout="horizontal", labels=False)
        self._plan, self._status, self._command = _text(), _text(), _command_line()
        parts = [self._form, self._plan, buttons, self._status, self._command]
        self._parts = Container(widgets=parts, labels=False)
        super().__init__(labels=False)
        self.native.layout().addWidget(_scrolled(self._parts.native))
        self._output.choose_btn.text = "..."
        for label in self._form.native.findChildren(QLabel):
            label.setMinimumWidth(label.fontMetrics().horizontalAdvance("voxel size, z"))  # all alike
        for box in (self._layer, self._device):
            box.native.setSizeAdjustPolicy(QComboBox.AdjustToMinimumContentsLengthWithIcon)

        self._planner, self._worker = ThreadPoolExecutor(1, "isovoxel-plan"), ThreadPoolExecutor(1, "isovoxel-job")
        self._asked: dict[str, tuple[Future[Any], Callable[[Any], None]]] = {}
        self._watched: Any = None
        self._found: LayerInput | None = None
        self._planned: tuple[Request, str] | None = None
        self._job: LayerJob | None = None
        self._quiet = 0

        for name in ("inserted", "removed", "reordered"):
            getattr(napari_viewer.layers.events, name).connect(self._offer_layers)
        self._layer.changed.connect(self._open_layer)
        self._axes.changed.connect(self._open_layer)
        for field in fields:
            field.changed.connect(self._change)
        self._run.changed.connect(self.start)
        self._cancel.changed.connect(self.stop)
        QApplication.instance().aboutToQuit.connect(self.stop)
        self._ask("devices", self._offer_devices, devices)
        if napari_viewer.layers.selection.active in self._layers():
            self._layer.value = napari_viewer.layers.selection.active
        self._open_layer()
        self._timer = QTimer(self.native)
        self._timer.timeout.connect(self._tick)
        self._timer.start(PAUSE)

    # ---- on threads --------------------------------------------------------------------------------------------------

    def _ask(
        self, what: str, then: Callable[[Any], None], function: Callable[..., Any], *args: Any, **more: Any
    ) -> None:
        """Call a function on a thread, and `then` with what it returns; an older answer to the same is dropped."""
        if what in self._asked:
            self._asked[what][0].cancel()
        self._asked[what] = self._planner.submit(function, *args, **more), then

    def _tick(self) -> None:
        """Take what threads have found, plan what has changed, and show how far the job is."""
        for what, (future, then) in list(self._asked.items()):
            if future.done():
                del self._asked[what]
                try:
                    answer = future.result()
                except Exception as error:  # noqa: BLE001 - told
                    self._say_plan(_sentence(error), failed=True)
                else:
                    then(answer)
        if self._quiet:
            self._quiet -= 1
            if not self._quiet:
                self._make_plan()
        if self._job is not None:
            self._show_progress(self._job)

    # ---- the layer ---------------------------------------------------------------------------------------------------

    def _layers(self, _box: Any = None) -> list[Any]:
        """Return the layers that have voxels."""
        return [layer for layer in self._viewer.layers if isinstance(layer, Image | Labels)]

    def _offer_layers(self, _event: Any) -> None:
        """Offer the layers that are there; of the last one that goes, the box does not tell."""
        self._layer.reset_choices()
        if self._layer.value is not self._watched:
            self._open_layer()

    def _offer_devices(self, found: list[Device]) -> None:
        """Offer the devices by name, or by number where several have one name."""
        names = [device.name for device in found]
        values = [d.name if names.count(d.name) == 1 else str(d.index) for d in found]
        labels = [f"{d.name} ({d.kind.upper()})" for d in found]
        with self._device.changed.blocked():
            self._device.choices = [(AUTO, AUTO), *zip(labels, values, strict=True)]

    def _open_layer(self, axes: Any = "") -> None:
        """Look at the layer that is chosen, or has changed, or whose axes the user has named."""
        layer, self._found = self._layer.value, None
        self._change()
        if layer is None:
            self._watched = None
            self._say_plan("Open an image or labels layer, or a sample: menu File, Open Sample, isovoxel.")
            return
        if layer is not self._watched:
            self._watched = layer
            for name in ("data", "scale", "units", "axis_labels"):
                getattr(layer.events, name).connect(self._open_layer)
            with self._output.line_edit.changed.blocked():
                self._output.line_edit.value = default_output(layer)
        self._say_plan("Looking at the layer ...")
        self._ask("layer", self._take_input, find_input, layer, axes if isinstance(axes, str) else "")

    def _take_input(self, found: LayerInput) -> None:
        """Fill the fields with what is known of a layer."""
        self._found = found
        for field, text in (
            (self._axes, found.axes),
            (self._voxel_size, ", ".join(repr(size).removesuffix(".0") for size in found.voxel_size)),
            (self._unit, found.unit or ""),
        ):
            with field.changed.blocked():
                field.value = text
        self._change()

    # ---- the plan ----------------------------------------------------------------------------------------------------

    def _change(self, _value: Any = None) -> None:
        """Plan anew, once the user has paused."""
        self._planned = None
        self._asked.pop("plan", None)
        self._quiet = QUIET if self._found is not None else 0
        self._show_buttons()

    def _ordered(self) -> tuple[Request, str]:
        """Return what the fields say.

        Raises
        ------
        OptionError
            If one makes no sense.
        """
        z, y, x = parse_numbers("voxel size", self._voxel_size.value, len(AXES))
        how = None
        if (way := self._how_far.value) in OPTIONS:
            (value,) = parse_numbers(f"new {way}" if way == SIZE else way, self._amount.value, 1)
            how = OPTIONS[way], value
        unit, antialias = self._unit.value.strip() or None, self._antialias.value
        request = Request((z, y, x), unit, how, antialias, self._engine.value, self._device.value)
        output = self._output.line_edit.value.strip()
        return request, output if not output or is_address(output) else str(Path(output).expanduser().absolute())

    def _make_plan(self) -> None:
        """Plan the job that the fields describe, on a thread."""
        if (found := self._found) is None or self._job is not None:
            return
        try:
            request, output = self._ordered()
        except IsovoxelError as error:
            self._say_plan(_sentence(error), failed=True)
            return
        if not output:
            self._say_plan("Give the path of the OME-Zarr to write.", failed=True)
            return
        self._say_plan("Planning ...")

        def take(sentences: list[str]) -> None:
            self._planned = request, output
            self._adopt.visible = bool(new_scale(self._layer.value, found.axes, request.voxel_size, request.unit))
            self._say_plan(*sentences)

        self._ask("plan", take, plan_layer, found, request, output, overwrite=self._overwrite.value)

    # ---- the job -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin the job that was planned, or resume it."""
        if self._planned is None or self._found is None or self._job is not None:
            return
        (request, output), found, layer, overwrite = (
            self._planned,
            self._found,
            self._layer.value,
            self._overwrite.value,
        )
        if overwrite:
            self._remove_layers(output)  # whose voxels go
        follower = Follower(found)
        future = self._worker.submit(scale_layer, layer, follower, request, output, overwrite=overwrite)
        bar = cancelable_progress(total=0, desc="isovoxel", bar_format="{desc}|{unit}", unit="")
        self._job = LayerJob(layer, request, output, follower, future, bar)
        with self._overwrite.changed.blocked():
            self._overwrite.value = False  # so that the next run resumes
        self._show_command(self._job)
        self._say("Preparing ...")
        self._show_buttons()

    def stop(self) -> None:
        """Cancel the job: blocks in flight are finished, and what is done is kept."""
        if self._job is not None:
            self._job.follower.cancelled = True

    def _show_progress(self, job: LayerJob) -> None:
        """Show how far the job is, or what became of it.

        The bar's number comes last: setting it lets Qt work, which may come here again, or close the window.
        """
        follower, bar = job.follower, job.bar
        if job.future.done():
            self._job = None
            self._show_command(job)
            self._end(job)
            self._change()
            bar.close()
            return
        if bar.is_canceled:
            self.stop()
        if not follower.total:
            return
        self._show_command(job)
        text = str(follower.view)
        stopping = ["Cancelling: blocks in flight are finished first."] if follower.cancelled else []
        self._say(f"Scaling: {text}", *stopping, *follower.notes[-1:])
        if bar.total != follower.total:
            bar.total = follower.total
        bar.unit = ", ".join(part for part in text.split(", ") if "voxel/s" not in part)  # as much as has room there
        bar.refresh()
        bar.update(follower.done - bar.n)

    def _end(self, job: LayerJob) -> None:
        """Show the result, or say why there is none and how to go on."""
        follower, found = job.follower, job.follower.found
        if self._found is not None and self._layer.value is job.layer:
            self._found = found
        go_on = "Run goes on with it" + (", as does this command without napari:" if found.is_file else ".")
        array = [f"The layer's array was scaled, because {found.why}."] if found.why else []
        try:
            result = job.future.result()
        except KeyboardInterrupt:
            done = f"{follower.done} of {follower.total} blocks are done and kept"
            kept = f"Cancelled: {done if follower.total else 'nothing was begun'}."
            self._say(f"{kept} {go_on}", *array)
        except Exception as error:  # noqa: BLE001 - told
            self._say(_sentence(error), *([go_on] if follower.done else []), failed=True)
        else:
            self._command.visible = False
            self._remove_layers(job.output)
            scale = new_scale(job.layer, found.axes, job.request.voxel_size, job.request.unit)
            if scale and self._adopt.value:
                for name, value in scale.items():
                    setattr(job.layer, name, value)
                self._viewer.reset_view()
            data, arguments, kind = result_layer(job.layer, found, result)
            getattr(self._viewer, f"add_{kind}")(data, **arguments)
            took = f"in {duration(result.seconds)}" if result.seconds else "before"
            self._say(f"Written {took}: {job.output}", *array, *follower.notes)

    def _show_command(self, job: LayerJob) -> None:
        """Show the command that does the job without napari, where it reads a file."""
        found = job.follower.found
        self._command.visible = found.is_file
        if found.is_file:
            self._command.value = command(found.source, job.output, keywords(found, job.request))

    def _remove_layers(self, output: str) -> None:
        """Remove layers that show an output."""
        for layer in [layer for layer in self._layers() if layer.metadata.get(WRITTEN) == output]:
            self._viewer.layers.remove(layer)

    # ---- what is shown -----------------------------------------------------------------------------------------------

    def _show_buttons(self) -> None:
        """Enable what can be done, and show the fields that mean something."""
        running = self._job is not None
        self._form.enabled = not running
        self._run.enabled = self._planned is not None and not running
        self._cancel.enabled = running
        self._axes.visible = self._found is not None and len(self._found.axes) > len(AXES)
        self._amount.visible = self._how_far.value in OPTIONS

    def _say_plan(self, *sentences: str, failed: bool = False) -> None:
        self._plan.value = _rich(sentences, failed=failed)
        self._show_buttons()

    def _say(self, *sentences: str, failed: bool = False) -> None:
        self._status.value = _rich(sentences, failed=failed)


def _sentence(error: Exception) -> str:
    """Return what went wrong, for a user."""
    text = str(error) if isinstance(error, IsovoxelError) else clause(error)
    return f"{text[:1].upper()}{text[1:]}."


def _rich(sentences: tuple[str, ...], *, failed: bool) -> str:
    """Return sentences as paragraphs, of which a first word before a colon is bold; lines may break within paths.

    Options are called as the fields are, and not as on the command line.
    """
    paragraphs = []
    for sentence in ("⚠ " + sentences[0], *sentences[1:]) if failed else sentences:
        said = re.sub(r"--([a-z]+)-?([a-z]*)-?([a-z]*)", lambda found: " ".join(filter(None, found.groups())), sentence)
        text = re.sub(r"(?<=[/\\_])(?=\S)", "&#8203;", html.escape(said))
        headed = re.sub(r"^([^ :]+:) ", r"<b>\1</b> ", text)
        paragraphs.append(f"<p style='margin: 2px'>{headed}</p>")
    return "".join(paragraphs)


def _text() -> Any:
    """Return a widget for sentences, whose text can be copied."""
    label = Label(value="")
    label.native.setWordWrap(True)
    label.native.setSizePolicy(QSizePolicy.Expanding, QSizePolicy.Minimum)
    return label


def _scrolled(content: Any) -> Any:
    """Return a widget that scrolls another one; of a container of magicgui that scrolls, napari takes what is in it."""
    content.layout().addStretch()
    scroll = QScrollArea()
    scroll.setWidgetResizable(True)
    scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarAlwaysOff)
    scroll.setMinimumWidth(LEAST_WIDTH)
    scroll.setWidget(content)
    return scroll


def _command_line() -> Any:
    """Return a widget for a command, from which it can be copied as it is."""
    text = TextEdit(value="", visible=False)
    text.read_only = True
    text.native.setWordWrapMode(QTextOption.WrapAnywhere)
    text.native.setMaximumHeight(70)
    return text
