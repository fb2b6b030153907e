"""HTML: the report of a job, one page that tells how it went, and what notebooks show of volumes, plans and results.

Nothing in a report is fetched, nothing runs; light or dark is what the reader's system says. It is written when a job
ends, however that ends, once anything was begun. What is drawn in it, input and output, is read when the job's own
memory is free again, tile by tile; of a job that has failed only the plan is drawn.
"""

from __future__ import annotations

import contextlib
import html
import platform
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, Self, Unpack

import psutil

from isovoxel.arguments import checked_arguments
from isovoxel.errors import InterruptedJobError, IsovoxelError, JobError, OptionError, OutputError
from isovoxel.execution.events import BlockDone, Event, JobFinished, JobStarted, JobStopped, Reading
from isovoxel.execution.inputs import Named, check_apart, folders_of, read_as
from isovoxel.execution.resources import process_bytes, reading_limits
from isovoxel.execution.result import ScaleResult, Tally
from isovoxel.object_store.objects import is_address
from isovoxel.options import Opening
from isovoxel.planner import open_by
from isovoxel.planning.memory import human_bytes
from isovoxel.planning.plan import Plan
from isovoxel.readers.base import Volume
from isovoxel.reporting.files import MARK, check_own, printable, redacted_command, without_secrets, write_own
from isovoxel.reporting.progress import Notes
from isovoxel.reporting.text import (
    STAGES,
    Line,
    clock,
    count,
    happened,
    job_lines,
    plan_lines,
    result_lines,
    volume_lines,
)
from isovoxel.version import __version__

ENDINGS = (".html", ".htm")
MOST_READ = 64 * 2**30
"""Bytes of voxels that are read at most for pictures that nobody has asked for: minutes, not hours."""
MOST_PARTS = 100
"""How many damaged parts are named; the output's attributes have all."""


class Report:
    """The report of one job: its `recorder` listens, and its context writes the page at the end.

    Parameters
    ----------
    path
        The HTML file; in place of a report that isovoxel has written, or where no file is.
    source, output
        What the job reads and writes, as it is told.
    words
        The command that does the job, for the page; secrets in it are left out.
    reading
        Told how far input and output are read to be drawn.
    **opening
        How the job opens its input: voxel_size, unit, level, channel, time and crop, as in `isovoxel.open_volume`.

    Raises
    ------
    OptionError
        If the path is not one of HTML, or lies in the output.
    OutputError
        If the page must not or cannot be written there.

    Examples
    --------
    >>> from isovoxel import scale
    >>> with Report("report.html", "stack.tif", "out.zarr") as report:  # doctest: +SKIP
    ...     report.result = scale("stack.tif", "out.zarr", listeners=[report.recorder])
    """

    @checked_arguments(Opening)
    def __init__(
        self,
        path: str,
        source: Any,
        output: str | Path,
        *,
        words: Sequence[str] = (),
        reading: Reading = lambda _what, _done, _total: None,
        **opening: Unpack[Opening],
    ) -> None:
        if not path.lower().endswith(ENDINGS):
            raise OptionError(f"a report is HTML, so its name must end in .html, not as {path!r} does")
        folders = [] if is_address(str(output)) else folders_of(output)
        check_apart(read_as("input", source), folders, [Named("report", Path(path))])
        self._path = check_own(path, "report")
        self._source, self._output, self._opening = source, str(output), opening
        self._words, self._reading = words, reading
        self._began = datetime.now().astimezone()
        self.recorder = Recorder()
        """The listener that the job must be given."""
        self.result: ScaleResult | None = None
        """What the job did, set where it was done."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        self.recorder.__exit__()
        if isinstance(error, KeyboardInterrupt) and not isinstance(error, InterruptedJobError):
            return  # a second one, of which nothing is waited for
        if self.result is not None:
            try:
                self._write(self.result.plan, error)
            except OutputError as failed:
                raise JobError(f"{self._output} is complete, but {failed}; verify and show work without it") from failed
        elif self.recorder.plan is not None:
            # The job's own error is the one that counts.
            with contextlib.suppress(OutputError):
                self._write(self.recorder.plan, error)

    def _write(self, plan: Plan, error: BaseException | None) -> None:
        from isovoxel.reporting.figures import FONTS
        from isovoxel.reporting.plan_picture import plan_svg

        sections = [
            _section("Before and after", self._drawn(plan)),
            _section("Where the time went", self._time()),
            _section("What happened", self._happened()),
            _section("The plan", plan_svg(plan)),
            _section("All of it in words", table(self._lines(plan))),
            _section("The command", _preformatted(redacted_command(self._words)) if self._words else ""),
            self._next_steps(),
        ]
        when = self._began.isoformat(sep=" ", timespec="seconds")
        machine = f"isovoxel {__version__}, Python {platform.python_version()}, {platform.system()}, {plan.device.name}"
        page = Template(files(__package__).joinpath("report.html").read_text(encoding="utf-8")).substitute(
            generator=f"{MARK} {html.escape(__version__)}",
            title=escaped(f"isovoxel: {self._output}"),
            fonts=FONTS,
            heading=f"{escaped(plan.source.name)} &rarr; {escaped(self._output)}",
            state=self._state(error),
            begun=escaped(f"Begun {when} with {machine}."),
            numbers="".join(
                f"<div><b>{escaped(n)}</b><span>{escaped(of)}</span></div>" for of, n in self._numbers(plan)
            ),
            sections="\n".join(section for section in sections if section),
        )
        write_own(self._path, page.encode(), "report")

    def _state(self, error: BaseException | None) -> str:
        """Return how the job ended."""
        if self.result is None:
            return _paragraph(f"Stopped half-way: {error or 'the result is not known'}", "bad")
        if self.recorder.plan is None:
            return _paragraph("It was there already, made in this way: nothing was done.")
        return _paragraph("Done: all blocks are written, and the output is complete.")

    def _numbers(self, plan: Plan) -> list[Line]:
        """Return what each of the most important numbers is, and the number."""
        recorder, result = self.recorder, self.result
        made = recorder.tally.voxels
        took = result.seconds if result else recorder.timeline.end
        held = [n for _, n in recorder.timeline.held()]
        output = "output and its levels" if plan.further else "output"
        return [
            ("time", f"{took:.1f} s" if took < 60 else clock(took)),
            ("output voxels per second", f"{made / took / 1e6:,.1f} M" if took else "none were made"),
            ("blocks", f"{plan.all_blocks if result else recorder.blocks_done:,} of {plan.all_blocks:,}"),
            (f"{output}, uncompressed", human_bytes(sum(level.output_bytes for level in plan.levels))),
            ("most memory held", human_bytes(max([*held, result.peak_host_bytes if result else 0]))),
            ("memory limit" + (" each worker" if plan.host.workers > 1 else ""), human_bytes(plan.host.allowed)),
        ]

    def _drawn(self, plan: Plan) -> str:
        """Return input and output side by side, or why they are not."""
        if self.result is None:
            return _paragraph("The result is not complete: not drawn.")
        from isovoxel.reporting.show import bytes_to_draw, draw

        try:
            before = open_by(self._source, self._opening)
            after = open_by(self._output, {})
            if (read := bytes_to_draw([before, after])) > MOST_READ:
                why = f"{human_bytes(read)} would be read for that; isovoxel show draws them"
                return _paragraph(f"They are not drawn: {why}.")
            host = replace(reading_limits(plan.host.allowed), baseline=process_bytes())
            named = ["before: ", "after: "]
            drawn = draw([before, after], named, labels=after.labels, reading=self._reading, host=host)
        except IsovoxelError as error:
            return _paragraph(f"They cannot be drawn: {error}.")
        pictures = []
        for i, (name, caption) in enumerate(zip(("before", "after"), drawn.captions, strict=True)):
            data = b64encode(drawn.png(i)).decode()
            pictures.append(f'<img alt="{escaped(f"{name}: {caption}")}" src="data:image/png;base64,{data}">')
        return _row(*pictures)

    def _time(self) -> str:
        recorder = self.recorder
        if recorder.plan is None:
            return ""
        from isovoxel.reporting.figures import Limit, over_time, say_number

        spent = self.result.stages if self.result else recorder.tally.stages
        total = sum(spent.values()) or 1.0
        bar, legend = [], []
        for stage, seconds in spent.items():
            colour = f"background:var(--{stage})"
            percent = 100 * seconds / total  # shares that are less than 1 together would not fill the bar
            bar.append(f'<i style="flex-grow:{percent:.3f};{colour}"></i>')
            words = f"{STAGES[stage]} {seconds:.1f} s, {percent:.0f} %"
            legend.append(f'<span><i style="{colour}"></i> {escaped(words)}</span>')
        timeline, plan = recorder.timeline, recorder.plan
        rates, held = timeline.rates(), timeline.held()
        projected = max(level.projected_host for level in plan.levels)
        limits = [Limit(projected, "uses at most"), Limit(plan.host.allowed, "limit")]
        n = plan.host.workers
        threads = f"Seconds of {count(n * plan.in_flight, 'thread')}, added up, by what they were spent on."
        if n > 1:  # each of them has such limits, here or elsewhere
            limits = []
        return (
            f"{_paragraph(threads, 'soft')}"
            f'<div class="stages" role="img" aria-label="time of each stage">{"".join(bar)}</div>'
            f'<div class="legend">{"".join(legend)}</div>'
            + _row(
                "<h3>Output voxels per second, over time</h3>"
                + over_time("voxels per second over time", rates, timeline.end, say_number),
                "<h3>Memory that this process and those that it started hold, over time</h3>"
                + over_time("memory over time", [*held], timeline.end, _short_bytes, limits, binary=True),
            )
        )

    def _happened(self) -> str:
        """Return what went otherwise than planned, and what a user should know."""
        recorder = self.recorder
        lines = [(f"after {clock(round(at, 1))}", note.removeprefix("note: ")) for at, note in recorder.notes]
        if recorder.more_notes:
            lines.append(("", f"and {recorder.more_notes:,} more"))
        tally = recorder.tally
        said = happened(tally)
        if tally.filled:
            said.append(f"{count(len(tally.filled), 'damaged part')} filled with 0")
        if recorder.plan is not None:
            lines.insert(
                0, ("in all", ", ".join(said) or "as planned: no block was split, nothing was tried again or filled")
            )
        filled = tally.filled[:MOST_PARTS]
        more = f" and {len(tally.filled) - len(filled):,} more" if len(tally.filled) > len(filled) else ""
        return table(lines + ([("filled with 0", "; ".join(filled) + more)] if filled else []))

    def _lines(self, plan: Plan) -> list[Line]:
        lines = job_lines(self.result) if self.result else []
        try:
            volume = open_by(self._source, self._opening)
            known = [line for line in volume_lines(volume) if line[0] != "input"]
        except IsovoxelError:  # said where it should be drawn
            known = []
        named = [(f"input {label}", what) for label, what in known]
        return [*lines, *plan_lines(plan), *named, ("fingerprint", plan.fingerprint)]

    def _next_steps(self) -> str:
        import shlex

        output = shlex.quote(without_secrets(self._output))
        if self.result is None:
            words = "What is done is kept: the same command, without --overwrite, goes on where it ended."
            return _section("To go on", _paragraph(words))
        words = "This computes sampled boxes of the result again from its source, in float64, and compares:"
        return _section("To verify it", _paragraph(words), _preformatted(f"isovoxel verify {output}"))


@contextlib.contextmanager
def reporting(path: str, source: str, output: str, *, quiet: bool, **opening: Unpack[Opening]) -> Iterator[Report]:
    """Write a report of this process' command when its job ends.

    Parameters
    ----------
    path, source, output
        As in `Report`.
    quiet
        Whether nothing is shown of how far volumes are read.
    **opening
        As in `Report`.

    Raises
    ------
    IsovoxelError
        As `Report`.
    """
    from isovoxel.reporting.progress import ReadingView

    words = ["isovoxel", *sys.argv[1:]]
    with (
        ReadingView(quiet=quiet) as reading,
        Report(path, source, output, words=words, reading=reading, **opening) as report,
    ):
        yield report


def escaped(words: str) -> str:
    r"""Return text as HTML takes it, without secrets, and without characters that no page may hold.

    Examples
    --------
    >>> escaped("a <b> & \x01\udcff")
    'a &lt;b&gt; &amp; ??'
    """
    return html.escape(printable(words))


def table(lines: Sequence[Line]) -> str:
    """Return labels and what they label, as HTML."""
    # Said of each cell, for notebooks have their own idea of how tables look.
    left = 'style="text-align:left"'
    rows = "".join(f"<tr><th {left}>{escaped(label)}</th><td {left}>{escaped(what)}</td></tr>" for label, what in lines)
    return f"<table>{rows}</table>" if rows else ""


def _section(title: str, *parts: str) -> str:
    """Return a section, or nothing where it has no parts."""
    inside = "\n".join(part for part in parts if part)
    return f"<section><h2>{escaped(title)}</h2>\n{inside}</section>" if inside else ""


def _paragraph(words: str, kind: str = "") -> str:
    kind = kind and f' class="{kind}"'
    return f"<p{kind}>{escaped(words)}</p>"


def _preformatted(words: str) -> str:
    return f"<pre><code>{escaped(words)}</code></pre>"


def _row(*figures: str) -> str:
    """Return figures beside each other, where the window is wide enough."""
    return f'<div class="row">{"".join(f"<figure>{figure}</figure>" for figure in figures)}</div>'


def _short_bytes(held: float) -> str:
    """Return bytes for an axis."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if held >= 1024**power:
            return f"{held / 1024**power:.4g} {unit}"
    return f"{held:.0f}"


def notebook_html(value: object) -> str:
    """Return a value as HTML: tables, and what a plan looks like. No voxel is read for it.

    Parameters
    ----------
    value
        A `Volume`, a `Plan` or a `ScaleResult`.

    Raises
    ------
    TypeError
        If it is none of them.
    """
    from isovoxel.execution.result import forecast
    from isovoxel.reporting.plan_picture import plan_svg

    match value:
        case Volume():
            return table(volume_lines(value))
        case Plan():
            return f"<div>{table(plan_lines(value, forecast(value)))}{plan_svg(value)}</div>"
        case ScaleResult():
            return f"<div>{table([*result_lines(value), *plan_lines(value.plan)])}{plan_svg(value.plan)}</div>"
        case _:
            raise TypeError(f"a {type(value).__name__} is not shown as HTML")


# ---- the record of a job -----------------------------------------------------------------------------------------

# Recorder of a job: a listener that keeps what a report tells of it, in bounded memory.
#
# Speed and memory are kept over time, which is cut into slots. When there are too many of them, each two become one,
# twice as long: whatever a job's length, its record is as small, and as fine as that allows. Beside it a thread looks
# now and then how much memory the process holds, and those that it has started.


MOST_NOTES = 60
"""How many lines of what happened are kept; of the others only their number is."""
LONGEST_PAUSE = 5.0
"""Most seconds between two looks at the memory."""
MOST_SLOTS = 240
FIRST_SLOT = 0.1
"""Seconds of a slot at first."""


@dataclass
class Timeline:
    """Output voxels and bytes held, over seconds since the start. Several threads may add to it."""

    slot: float = FIRST_SLOT
    """Seconds of a slot."""
    voxels: list[float] = field(default_factory=list)
    """Output voxels made in each slot."""
    memory: list[int] = field(default_factory=list)
    """Most bytes held in each slot; 0 where nobody has looked."""
    end: float = 0.0
    """Seconds until the last thing that was added."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def add_voxels(self, start: float, stop: float, voxels: int) -> None:
        """Add what was made from `start` to `stop`, evenly.

        Parameters
        ----------
        start, stop
            Seconds; a start before 0 is cut off.
        voxels
            How many.
        """
        with self._lock:
            self._reach(stop)
            start = min(max(0.0, start), stop)
            first, last = self._at(start), self._at(stop)
            if first == last:
                self.voxels[first] += voxels
                return
            rate = voxels / (stop - start)
            for i in range(first, last + 1):
                begin, finish = max(start, i * self.slot), min(stop, (i + 1) * self.slot)
                self.voxels[i] += rate * max(0.0, finish - begin)

    def add_memory(self, at: float, held: int) -> None:
        """Add how many bytes were held at a time in seconds."""
        with self._lock:
            self._reach(at)
            i = self._at(at)
            self.memory[i] = max(self.memory[i], held)

    def rates(self) -> list[tuple[float, float]]:
        """Return (seconds, output voxels per second) in the middle of each slot."""
        with self._lock:
            found = []
            for i, voxels in enumerate(self.voxels):
                # The last slot has just begun.
                length = min(self.slot, self.end - i * self.slot) if i else min(self.slot, self.end)
                if length > self.slot / 20:
                    found.append((i * self.slot + length / 2, voxels / length))
            return found

    def held(self) -> list[tuple[float, int]]:
        """Return (seconds, bytes) of each slot in which somebody has looked."""
        with self._lock:
            return [(min((i + 0.5) * self.slot, self.end), held) for i, held in enumerate(self.memory) if held]

    def _at(self, seconds: float) -> int:
        return min(int(seconds / self.slot), len(self.voxels) - 1)

    def _reach(self, seconds: float) -> None:
        """Have a slot for a time."""
        self.end = max(self.end, seconds)
        while seconds >= self.slot * MOST_SLOTS:
            self.slot *= 2
            self.voxels = [sum(self.voxels[i : i + 2]) for i in range(0, len(self.voxels), 2)]
            self.memory = [max(self.memory[i : i + 2]) for i in range(0, len(self.memory), 2)]
        missing = int(seconds / self.slot) + 1 - len(self.voxels)
        self.voxels += [0.0] * missing
        self.memory += [0] * missing


class Recorder:
    """A listener for the events of one job, and a context manager that ends its thread.

    Parameters
    ----------
    clock
        Returns seconds.
    held
        Returns the bytes that are held.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, held: Callable[[], int] | None = None) -> None:
        self._clock, self._held = clock, held or process_tree_bytes
        self._notes = Notes()
        self._done = threading.Event()
        self._looking: threading.Thread | None = None
        self._began, self._blocks = 0.0, 0
        self.plan: Plan | None = None
        """The plan that is carried out; None until the job has started."""
        self.timeline = Timeline()
        """Voxels and memory over time."""
        self.tally = Tally()
        """What happened, all in all."""
        self.notes: list[tuple[float, str]] = []
        """What a user should know, each with its second."""
        self.more_notes = 0
        """How many more there were."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._looking is not None:
            self._looking.join()

    @property
    def blocks_done(self) -> int:
        """Blocks that are done, those from before included."""
        return self.tally.done_before + self._blocks

    def __call__(self, event: Event) -> None:
        """Take note of an event; of those of another job, such as that of the image's labels, no more."""
        if self._done.is_set():
            return
        if isinstance(event, JobStarted) and self.plan is None:
            self._begin(event)
        # What comes before the start, such as workers that connect, takes no time of the job's.
        now = self._clock() - self._began if self.plan is not None else 0.0
        self.tally(event)
        for note in self._notes.of(event):
            if len(self.notes) < MOST_NOTES:
                self.notes.append((now, note))
            else:
                self.more_notes += 1
        if isinstance(event, BlockDone):
            self._blocks += 1
            self.timeline.add_voxels(now - _seconds(event), now, event.voxels)
        elif isinstance(event, JobFinished):
            self._done.set()  # what is held from now on is not the job's
        elif isinstance(event, JobStopped):
            self._blocks = event.done - self.tally.done_before

    def _begin(self, event: JobStarted) -> None:
        self.plan, self._began = event.plan, self._clock()
        self._looking = threading.Thread(target=self._look, name="isovoxel report", daemon=True)
        self._looking.start()

    def _look(self) -> None:
        while True:
            with contextlib.suppress(psutil.Error):  # a process may end while it is looked at
                self.timeline.add_memory(self._clock() - self._began, self._held())
            if self._done.wait(min(LONGEST_PAUSE, self.timeline.slot)):
                return


def process_tree_bytes() -> int:
    """Return the memory that this process and those that it has started hold."""
    held = process_bytes()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            held += int(child.memory_info().rss)
    return held


def _seconds(block: BlockDone) -> float:
    """Return how long a block was in flight."""
    return block.read_seconds + block.wait_seconds + block.scale_seconds + block.write_seconds + block.flush_seconds
