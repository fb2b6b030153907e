"""The jobs of one output: begun or resumed, the image first, then its labels.

1. What the user does not give is taken from the output, where there is one (`isovoxel.execution.output.as_begun`).
2. An image is one job, its labels are another: of the same voxels, by the same factor, into the image's group. So they
   resume as any job does, and nothing of the image is made again for them. What can be wrong with the labels is checked
   before the image is begun.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from isovoxel.errors import InputError, IsovoxelError, JobError, OptionError
from isovoxel.execution.events import Event, Listener, Retried
from isovoxel.execution.result import ScaleResult
from isovoxel.object_store.objects import Place, place_of, shown
from isovoxel.options import Options
from isovoxel.output.provenance import LABELS
from isovoxel.planner import Sampling, choose_sampling, find_target, open_input, plan_volume
from isovoxel.planning.plan import Plan
from isovoxel.readers.base import Volume
from isovoxel.readers.files import InputWatch

if TYPE_CHECKING:
    from isovoxel.execution.distributed.connect import Cluster
    from isovoxel.execution.executor import Executor
    from isovoxel.execution.output import OutputRequest, Whole


_SIZES = ("input_voxel_size", "unit")
_PART = ("image", "level", "channel", "time", "crop", "axes")


def open_as_begun(source: Any, options: Options, given: Options) -> tuple[Volume, Options]:
    """Open an input as the output was made of it, and return it and the options that do so.

    Parameters
    ----------
    source
        The input, as in `isovoxel.open_volume`.
    options
        As `as_begun` returns them.
    given
        What the user gives of them. If the input cannot be opened as the one was that the output was made of, it is
        another one, and is opened as the user says.
    """
    from isovoxel.readers.open import open_volume

    said, own = options.given, given.given
    taken = {name: said[name] for name in (*_SIZES, *_PART) if name in said and name not in own}
    if not taken:
        return open_volume(source, **options.how_opened), options
    nothing: dict[str, Any] = dict.fromkeys(taken)
    part = {name: value for name, value in taken.items() if name in _PART}
    plain, options = replace(options, **nothing), replace(options, **nothing | part)
    try:
        volume = open_volume(source, **options.how_opened)
    except IsovoxelError:
        if not part:
            raise
        options = plain
        volume = open_volume(source, **options.how_opened)
    # An input that says its sizes, and is as it was, says the same ones.
    size, unit = taken.get("input_voxel_size"), taken.get("unit")
    sizes: dict[str, Any] = {}
    if size is not None and size != (volume.voxel_size or (1.0, 1.0, 1.0)):
        sizes["input_voxel_size"] = size
    if unit is not None and unit != volume.unit:
        sizes["unit"] = unit
    if sizes:
        options = replace(options, **sizes)
        volume = open_volume(source, **options.how_opened)
    return volume, options


@dataclass(frozen=True)
class Order:
    """How a job is run, whatever it makes."""

    listeners: Sequence[Listener]
    """Told what happens."""
    cluster: Cluster | None
    """The workers that do it, where it is not this process."""
    missed: list[Event] = field(default_factory=list)
    """What was tried again before a job begins, for its tally."""
    plan: Callable[..., Plan] = plan_volume
    """Plans, as `isovoxel.planner.plan_volume` does."""
    executor: Callable[[Options, Cluster | None, str], AbstractContextManager[Executor]] | None = None
    """Returns a context of what makes blocks; by default another for each job."""


def run_job(
    opened: Volume | InputWatch,
    source: Any,
    output: str | Path,
    options: Options,
    sampling: Sampling,
    order: Order,
    whole: Whole | None = None,
) -> ScaleResult:
    """Scale a volume and write the result, or what is left of it.

    Parameters
    ----------
    opened
        The input, which was just opened.
    source
        What the user gave for it, which workers open by the options.
    output
        Path or address of the OME-Zarr.
    options, sampling, order
        How it is scaled, and how the job is run.
    whole
        The image that has the output for its labels; by default the output is an image itself.

    Raises
    ------
    IsovoxelError, JobError
        As `isovoxel.scale` does.
    """
    from isovoxel.engines.devices import find_device
    from isovoxel.execution.events import log_event
    from isovoxel.execution.executor import VolumeSource
    from isovoxel.execution.job import Job
    from isovoxel.execution.output import is_made_already
    from isovoxel.execution.resources import peak_bytes
    from isovoxel.execution.result import Tally, forecast, keep_rate
    from isovoxel.output.destination import output_place

    volume = opened.volume if isinstance(opened, InputWatch) else opened
    place = output_place(output)
    tally = Tally()
    device, cluster = options.or_new("device"), order.cluster
    if cluster is None:
        # "auto" is decided once: by the time the engine opens, another device may have more memory free.
        device = str(find_device(device).index)
    planned = order.plan(volume, replace(options, device=device), sampling, cluster, place)
    # Its files are looked at only now: a volume that nothing can plan may have any number of them.
    watch = opened if isinstance(opened, InputWatch) else InputWatch(volume)
    volume = watch.volume
    planned = replace(planned, source=replace(planned.source, identity=dict(volume.identity)))
    request = output_request(volume, planned, place, options, sampling, whole)
    made_already = is_made_already(request)
    for event in order.missed:
        tally(event)
    order.missed.clear()
    if made_already:
        tally.done_before = planned.all_blocks
        return ScaleResult(shown(place), planned, 0.0, tally.stages | {"idle": 0.0}, peak_bytes(), tally)
    fill = options.on_corrupt == "fill"
    given = VolumeSource(source, **options.how_opened, fill=fill)
    told: tuple[Listener, ...] = (tally, log_event, *order.listeners)
    plan, elapsed = Job(planned, given, request, watch, told).run(
        (order.executor or executor_for)(options, cluster, device)
    )
    stages = tally.stages | {"idle": elapsed.idle}
    expected = None if tally.done_before else forecast(plan, place)
    if tally.as_planned:
        keep_rate(plan, place, elapsed.seconds)
    return ScaleResult(shown(place), plan, elapsed.seconds, stages, peak_bytes(), tally, expected)


def executor_for(options: Options, cluster: Cluster | None, device: str, whole: Place | None = None) -> Executor:
    """Return what makes a job's blocks, or those of jobs of parts of a whole; distributed is loaded only if needed."""
    if cluster is not None:
        from isovoxel.execution.distributed.executor import DistributedExecutor

        return DistributedExecutor(cluster, whole)
    from isovoxel.execution.subprocess import SubprocessExecutor
    from isovoxel.execution.threads import ThreadExecutor

    return SubprocessExecutor(device) if options.isolate else ThreadExecutor(device)


def output_request(
    volume: Volume, planned: Plan, place: Place, options: Options, sampling: Sampling, whole: Whole | None = None
) -> OutputRequest:
    """Return the output that a user asks for, of a volume that is identified."""
    from isovoxel.execution.output import OutputRequest
    from isovoxel.execution.recipe import provenance

    return OutputRequest(
        path=place,
        whole=whole or whole_of(place, options),
        made=provenance(planned, volume, labels=sampling.labels, receipts=options.keep_receipts is True),
        labels=sampling.labels,
        overwrite=options.overwrite,
        cut=tuple(name for name in ("chunk", "shard") if name in options.given),
        said=next((name for name in ("zoom", "factor") if name in options.given), "voxel_size"),
    )


def whole_of(image: Place, options: Options) -> Whole:
    """Return an image with what its labels are called, where some are scaled with it."""
    from isovoxel.execution.output import Whole

    return Whole(image, "" if options.with_labels is None else name_of(options.with_labels))


def plan_job(source: Any, output: str | Path | None, given: Options, *, client: Any) -> Plan:
    """Return how a volume would be scaled; with an output, whose place is checked as the job does. Nothing is written.

    Parameters
    ----------
    source, output, client
        As in `isovoxel.plan`.
    given
        Options that the user gives.

    Raises
    ------
    IsovoxelError
        As `isovoxel.scale` does before anything is written.
    """
    from isovoxel.execution.distributed.connect import open_cluster

    if output is None:
        volume = open_input(source, given)
        with open_cluster(given, client, source=source) as cluster:
            return plan_volume(volume, given, choose_sampling(volume, given), cluster)
    from isovoxel.execution.inputs import check_apart, folders_of, read_as
    from isovoxel.execution.output import as_begun, foresee
    from isovoxel.output.destination import output_place

    options = as_begun(output, given, here=_is_here(given, client), whole=whole_of(place_of(output), given))
    volume, options = open_as_begun(source, options, given)
    with open_cluster(given, client, source=source) as cluster:
        check_apart([*read_as("input", source, volume), *read_as("other volume", options.like)], folders_of(output))
        place, volume = output_place(output), InputWatch(volume).volume
        sampling = choose_sampling(volume, options)
        planned = plan_volume(volume, options, sampling, cluster, place)
        plan, note = foresee(planned, output_request(volume, planned, place, options, sampling))
    if not note:
        return plan
    return replace(plan, source=replace(plan.source, notes=(*plan.source.notes, note)))


def _is_here(given: Options, client: Any) -> bool:
    """Return whether a device of this process does a job."""
    return client is None and given.workers is None and given.scheduler is None


@contextmanager
def scaling_into(
    source: Any,
    output: str | Path,
    given: Options,
    *,
    client: Any,
    listeners: Sequence[Listener],
    defaults: Mapping[str, Any] | None = None,
) -> Iterator[Callable[[], ScaleResult]]:
    """Open what a job reads, and its workers; yield what scales the volume, and its labels.

    That is by the options that are given, else as begun, else by a command's defaults.

    Parameters
    ----------
    source, output, client, listeners
        As in `isovoxel.scale`.
    given
        Options that the user gives.
    defaults
        Options of a new output that are not given.

    Raises
    ------
    IsovoxelError, JobError
        As `isovoxel.scale`.
    """
    from isovoxel.errors import clause
    from isovoxel.execution.events import log_event
    from isovoxel.execution.inputs import check_apart, folders_of, read_as
    from isovoxel.execution.output import as_begun
    from isovoxel.object_store.retries import patience

    missed: list[Event] = []
    labels = given.with_labels
    told: tuple[Listener, ...] = (log_event, *listeners)

    def retried(error: Exception, pause: float) -> None:
        missed.append(Retried(None, "reading or writing a store", clause(error), pause))
        for listener in told:
            listener(missed[-1])

    with ExitStack() as stack:
        stack.enter_context(patience(retried))
        here = _is_here(given, client)
        whole = whole_of(place_of(output), given)
        options = as_begun(output, given, defaults=defaults, here=here, whole=whole)
        volume, options = open_as_begun(source, options, given)
        read = [*read_as("input", source, volume), *read_as("other volume", given.like)]
        folders = folders_of(output, None if labels is None else name_of(labels))
        check_apart(read if labels is None else [*read, *read_as("labels", labels)], folders)
        cluster: Cluster | None = None
        if not here:
            from isovoxel.execution.distributed.connect import open_cluster

            cluster = stack.enter_context(open_cluster(given, client, source=source, listeners=told))
            volume, options = open_as_begun(source, options, given)  # one may have waited long for workers
        sampling = choose_sampling(volume, options)
        order = Order(listeners, cluster, missed)
        scale = partial(run_job, volume, source, output, options, sampling, order)
        if labels is None:
            yield scale
            return
        if sampling.labels:
            raise OptionError(f"{volume.name} is to be scaled as labels itself; leave out --labels or --with-labels")
        watch, scale_labels = labels_beside(volume, output, options, given, cluster)
        check_apart(read_as("labels", labels, watch.volume), folders)

        def scale_both() -> ScaleResult:
            result = scale()
            return replace(result, labels=_scale_beside(watch, partial(scale_labels, order)))

        yield scale_both


def _scale_beside(watch: InputWatch, scale: Callable[[], ScaleResult]) -> ScaleResult:
    """Scale labels, once their image is complete.

    Raises
    ------
    JobError
        If that fails, before it is begun too: the image is there by then.
    """
    try:
        if watch.is_changed():
            raise InputError(f"{watch.volume.name} has changed since it was opened")
        return scale()
    except JobError:
        raise
    except IsovoxelError as error:
        raise JobError(
            f"the image is complete, but its labels are not begun: {error}; then run the same command again, "
            "without --overwrite"
        ) from error


def labels_beside(
    image: Volume, output: str | Path, options: Options, given: Options, cluster: Cluster | None
) -> tuple[InputWatch, Callable[[Order], ScaleResult]]:
    """Return the labels of an image, where it lies, and what scales them as it is.

    They are checked as far as they can be before the image is there.

    Parameters
    ----------
    image
        The image, opened.
    output
        Where the image is written.
    options, given
        How it is scaled, and what of that the user gives; which labels, and how those are scaled.
    cluster
        The workers that do it.

    Raises
    ------
    IsovoxelError
        If they do not lie on the image's voxels, are none, or no block of them fits.
    """
    from isovoxel.execution.distributed.connect import check_reachable
    from isovoxel.execution.output import as_begun

    labels = given.with_labels
    if cluster is not None:
        check_reachable(labels)
    part: dict[str, Any] = {"time": options.time, "crop": options.crop}
    if image.voxel_size is not None:
        part |= {"input_voxel_size": image.voxel_size, "unit": image.unit}
    volume = open_input(labels, Options(**part))
    times = tuple(axis for axis in image.series if axis.name == "t")
    ours, theirs = ([(axis.name, axis.length) for axis in series] for series in (times, volume.series))
    if volume.shape != image.shape or theirs != ours:
        raise InputError(
            f"{volume.name} holds {_extent(volume)}, but {image.name} {_extent(image)}: labels must lie on the voxels "
            "of the image, at each of its time points"
        )
    target = find_target(image, options)
    by = ("mode" if min(target.factor) < 1 else "nearest") if given.labels_by == "auto" else given.labels_by
    whole = whole_of(place_of(output), given)
    where = str(whole.image / LABELS / whole.labels)
    own: dict[str, Any] = {**dict.fromkeys(_OWN), "labels_by": "auto"}
    onto = {"factor": target.factor} if options.like is None else {"like": target.output}
    said = replace(given, **own | part | onto | {"labels": True})
    chosen = as_begun(
        where,
        said if given.labels_by == "auto" else replace(said, interpolation=by),
        defaults=replace(options, **own | {"interpolation": by, "engine": "exact"}).given,
        here=cluster is None,
        whole=whole,
    )
    placed = replace(
        volume,
        voxel_size=image.voxel_size,
        origin=image.origin,
        unit=image.unit,
        missing=image.missing,
        series=times,
    )
    sampling = choose_sampling(placed, chosen)
    plan_volume(placed, chosen, sampling, cluster)
    watch = InputWatch(placed)
    return watch, partial(run_job, watch, labels, where, chosen, sampling, whole=whole)


_OWN = (
    "with_labels",
    "zoom",
    "voxel_size",
    "like",
    "interpolation",
    "antialias",
    "boundary",
    "engine",
    "channel",
    "image",
    "level",
    "axes",
)
"""Options of an image that are not its labels' too."""


def _extent(volume: Volume) -> str:
    times = next((axis.length for axis in volume.series if axis.name == "t"), 1)
    return f"{volume.shape} voxels" + (f" at {times} time points" if times > 1 else "")


def name_of(labels: Any) -> str:
    """Return what labels are called: as their file, or the dataset in it, without an ending.

    Examples
    --------
    >>> [name_of(labels) for labels in ("a/nuclei.ome.tif", "b.h5:/seg/cells", "s3://bucket/c.zarr/", "d/*.tif", None)]
    ['nuclei', 'cells', 'c', 'labels', 'labels']
    """
    if not isinstance(labels, str | Path):
        return LABELS
    return re.sub(r"[^\w+-]+", "_", PurePath(labels).name.split(".")[0]).strip("_") or LABELS
