"""One job over several images of an input: those of a plate, of a collection, or of a file of several.

1. Every image is opened and planned before anything is written, so the whole is known: blocks, voxels, and which images
   cannot be opened, which are told of at once. Images on the same grid share one plan.
2. The groups around the images are claimed, see `isovoxel.execution.collection`: the plate and its wells as the input
   has them, or bioformats2raw's layout.
3. Image after image is scaled as any image is: an output with its own ledger, which resumes, or is passed over where it
   is complete. What makes blocks stays from image to image: threads, the engine with its kernels, or the workers.
4. An image whose input cannot be read is told of, and the others are made. Whatever else fails (a full disk, a lost
   device, no workers) ends the job. The groups are marked complete when all images are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isovoxel.errors import (
    InputError,
    InterruptedJobError,
    IsovoxelError,
    JobError,
    OptionError,
    OutputExistsError,
    clause,
)
from isovoxel.execution.events import (
    Event,
    ImageBegun,
    ImageFailed,
    ImagesFinished,
    ImagesStarted,
    Listener,
    Replacing,
    Retried,
    log_event,
)
from isovoxel.execution.executor import ANEW, GO_ON, InterruptedAgain, KeptExecutors, is_of_input
from isovoxel.execution.output import Whole, as_begun
from isovoxel.execution.result import ScaleResult, Tally
from isovoxel.geometry.grid import VoxelGrid
from isovoxel.jobs import Order, executor_for, open_as_begun, run_job
from isovoxel.metadata.ome import group_attributes
from isovoxel.object_store.objects import Place, absolute, place_of, shown
from isovoxel.options import Options
from isovoxel.planner import (
    Sampling,
    ThisProcess,
    choose_sampling,
    find_target,
    grid_of,
    open_input,
    plan_volume,
    source_of,
)
from isovoxel.planning.plan import Plan
from isovoxel.readers.base import Volume
from isovoxel.readers.selection import ALL, Collection, matching_images, means_several

if TYPE_CHECKING:
    from isovoxel.execution.collection import CollectionRequest
    from isovoxel.execution.distributed.connect import Cluster
    from isovoxel.planner import Resources

MOST_TOLD = 3
"""Of how many images that failed an error says why."""

_HOW_RUN = ("image", "device", "halo", "memory", "device_memory", "threads", "encode", "decode", "workers", "scheduler")
"""Options that make no other voxels, and may differ from run to run."""


def scale_images(
    source: Any,
    output: str | Path,
    given: Options,
    *,
    client: Any,
    listeners: Sequence[Listener],
    defaults: Mapping[str, Any] | None = None,
) -> ScaleResult:
    """Scale the images that `given.image` means; the parameters are those of `isovoxel.jobs.scaling_into`.

    Raises
    ------
    IsovoxelError
        As `isovoxel.scale`; before anything is written also if no image can be scaled.
    JobError
        If an image cannot be scaled, or the job ends before its time: the message says what is complete.
    """
    from isovoxel.execution.collection import claim_collection
    from isovoxel.execution.distributed.connect import open_cluster
    from isovoxel.execution.resources import peak_bytes
    from isovoxel.object_store.retries import patience

    missed: list[Event] = []
    total = Tally()
    told: tuple[Listener, ...] = (log_event, total, *listeners)

    def tell(event: Event) -> None:
        for listener in told:
            listener(event)

    def retried(error: Exception, pause: float) -> None:
        missed.append(Retried(None, "reading or writing a store", clause(error), pause))
        tell(missed[-1])

    with ExitStack() as stack:
        stack.enter_context(patience(retried))
        images = Images.found(source, output, given, defaults)
        cluster = stack.enter_context(open_cluster(given, client, source=source, listeners=told))
        planner = SharedPlans(cluster)
        plans, faults = images.planned(planner, tell)
        if given.overwrite and (lost := Whole(place_of(output)).lost):
            tell(Replacing(lost))
        complete = stack.enter_context(claim_collection(images.request(plans)))
        executors = stack.enter_context(KeptExecutors(partial(executor_for, whole=place_of(output))))
        tell(images.started(plans))
        began = time.perf_counter()
        order = Order((*listeners, total), cluster, missed, planner, executors)
        results = images.scaled(list(plans), faults, order, tell)
        if faults:
            raise JobError(_told(faults, len(images.paths)))
        complete()
        seconds = time.perf_counter() - began
        tell(ImagesFinished(seconds))
    stages = total.stages | {"idle": sum(result.stages["idle"] for result in results.values())}
    first = next(iter(results.values())).plan
    return ScaleResult(shown(place_of(output)), first, seconds, stages, peak_bytes(), total, images=results)


def plan_images(source: Any, output: str | Path | None, given: Options, *, client: Any) -> dict[str, Plan]:
    """Return how the images that `given.image` means would be scaled, by their paths; nothing is written.

    Raises
    ------
    IsovoxelError
        As `scale_images` does before anything is written; also if an image cannot be opened.
    """
    from isovoxel.execution.collection import check_collection
    from isovoxel.execution.distributed.connect import open_cluster

    images = Images.found(source, output, given, None)
    with open_cluster(given, client, source=source) as cluster:
        plans, faults = images.planned(SharedPlans(cluster), lambda _event: None)
    for path, reason in faults.items():
        raise InputError(f"image {path}: {reason}")
    if output is not None:
        check_collection(images.request(plans))
    return plans


def open_chosen(source: Any, options: Options) -> Volume | dict[str, Volume | InputError]:
    """Open one image, or several: those that are meant, or all of an input that is no image itself and holds some.

    Returns
    -------
    Volume or dict
        Of several each by its path: opened, or why it cannot be.

    Raises
    ------
    IsovoxelError
        If there is nothing that can be opened.
    """
    from isovoxel.readers.open import images_of

    if not means_several(options.image):
        try:
            return open_input(source, options)
        except InputError:
            if options.image is not None:
                raise
            with suppress(InputError, OptionError):
                several = open_chosen(source, replace(options, image=ALL))
                if isinstance(several, dict) and any(isinstance(image, Volume) for image in several.values()):
                    return several
            raise
    found: dict[str, Volume | InputError] = {}
    for image in matching_images(images_of(source).images, str(options.image), str(source)):
        try:
            found[image.path] = open_input(source, replace(options, image=image.path))
        except InputError as error:
            found[image.path] = error
    return found


@dataclass(frozen=True)
class Images:
    """Images of an input, and how they are scaled."""

    source: Any
    """What the user gave for the input."""
    output: Place | None
    """The output of all; None where they are only planned."""
    given: Options
    """What the user gives, and else what the output was begun with."""
    defaults: Mapping[str, Any] | None
    """Options of new outputs that are not given."""
    collection: Collection
    """All images of the input."""
    paths: tuple[str, ...]
    """Paths of those that are scaled."""
    options: Mapping[str, Any]
    """By which options, as JSON values."""

    @classmethod
    def found(
        cls, source: Any, output: str | Path | None, given: Options, defaults: Mapping[str, Any] | None
    ) -> Images:
        """Look for the images that `given.image` means, and check that they may be scaled into an output."""
        from isovoxel.execution.collection import begun_with
        from isovoxel.execution.inputs import check_apart, folders_of, read_as
        from isovoxel.output.destination import output_place
        from isovoxel.readers.open import images_of

        if given.with_labels is not None:
            raise OptionError("labels are scaled beside one image: leave out --with-labels, or name one image")
        collection = images_of(source)
        chosen = matching_images(collection.images, str(given.image), str(source))
        options, place = _as_json(given), None
        if output is not None:
            place = output_place(output)
            check_apart(
                [*read_as("input", source), *read_as("other volume", given.like)],
                folders_of(output),
            )
            if not given.overwrite:
                then = begun_with(place, _whole_path(source), options)
                given, options = given.filled(_from_json(then)), then or options
        return cls(source, place, given, defaults, collection, tuple(image.path for image in chosen), options)

    def opened(self, path: str, cluster: Cluster | None, *, anew: bool = False) -> tuple[Volume, Options, Sampling]:
        """Open an image, and return by which options and which kernel it is scaled; `anew` whatever is there of it."""
        own = replace(self.given, image=path, overwrite=anew)  # an old output of several is replaced as a whole
        options = own.filled(self.defaults or {})
        if self.output is not None and not self.given.overwrite and not anew:
            options = as_begun(str(self.output / path), own, defaults=self.defaults, here=cluster is None)
        volume, options = open_as_begun(self.source, options, own)
        return volume, options, choose_sampling(volume, options)

    def planned(self, planner: SharedPlans, tell: Callable[[Event], None]) -> tuple[dict[str, Plan], dict[str, str]]:
        """Open and plan every image; return the plans, and why images cannot be opened."""
        from isovoxel.execution.inputs import check_apart, folders_of, read_as

        plans: dict[str, Plan] = {}
        faults: dict[str, str] = {}
        first: InputError | None = None
        for path in self.paths:
            try:
                volume, options, sampling = self.opened(path, planner.cluster)
                if self.output is not None:
                    check_apart(read_as("input", volume), folders_of(str(self.output)))
                place = None if self.output is None else self.output / path
                plans[path] = planner(volume, planner.on_device(options), sampling, planner.cluster, place)
            except InputError as error:
                first = first or error
                faults[path] = str(error)
        if not plans and first is not None:
            raise first if len(faults) == 1 else InputError(f"none of {len(faults)} images can be opened: {first}")
        for path, reason in faults.items():
            tell(ImageFailed(path, reason))
        return plans, faults

    def request(self, plans: Mapping[str, Plan]) -> CollectionRequest:
        """Return the output that is asked for."""
        from isovoxel.execution.collection import CollectionRequest
        from isovoxel.execution.output import waiting_bytes

        assert self.output is not None  # noqa: S101 - for type checkers
        version, found = next(iter(plans.values())).storage.ome_zarr, self.collection
        return CollectionRequest(
            path=self.output,
            source=_whole_path(self.source),
            images=self.paths,
            groups=lambda paths: group_attributes(found.plate, found.wells, paths, version),
            options=self.options,
            overwrite=self.given.overwrite,
            ome_zarr=version,
            nbytes=sum(plan.disk_bytes for plan in plans.values()),
            waiting=max(waiting_bytes(plan) for plan in plans.values()),
        )

    def started(self, plans: Mapping[str, Plan]) -> ImagesStarted:
        """Return the start of the job: how much there is, and how much of it is complete."""
        from isovoxel.output.provenance import is_complete

        assert self.output is not None  # noqa: S101 - for type checkers
        done = [plan for path, plan in plans.items() if is_complete(self.output / path)]
        return ImagesStarted(
            len(self.paths),
            len(done),
            sum(plan.all_blocks for plan in plans.values()),
            sum(plan.all_voxels for plan in plans.values()),
            sum(plan.all_blocks for plan in done),
            sum(plan.all_voxels for plan in done),
        )

    def scaled(
        self, paths: Sequence[str], faults: dict[str, str], order: Order, tell: Callable[[Event], None]
    ) -> dict[str, ScaleResult]:
        """Scale images, one after the other; note why some cannot be."""
        results: dict[str, ScaleResult] = {}
        n = len(self.paths)
        for number, path in enumerate(paths, 1):
            tell(ImageBegun(path, number, len(paths)))
            try:
                results[path] = self._scaled(path, order)
            except InterruptedAgain:
                raise
            except KeyboardInterrupt as stop:  # in the job, or on the way to it
                said = _without_advice(stop) if isinstance(stop, InterruptedJobError) else "interrupted"
                raise InterruptedJobError(
                    f"image {path}: {said}; {_complete(results, n)}; {GO_ON}", getattr(stop, "signal", None)
                ) from None
            except IsovoxelError as error:
                if not is_of_input(error):
                    if isinstance(error, JobError) or results:
                        said = _without_advice(error)
                        raise JobError(f"image {path}: {said}; {_complete(results, n)}; {GO_ON}") from error
                    raise
                faults[path] = _without_advice(error)
                tell(ImageFailed(path, faults[path]))
        return results

    def _scaled(self, path: str, order: Order) -> ScaleResult:
        """Scale one image; one that was begun of an input that has changed is begun anew, unless it is complete."""
        from isovoxel.output.provenance import is_unfinished

        assert self.output is not None  # noqa: S101 - for type checkers
        place = self.output / path
        for anew in (False, True):
            try:
                volume, options, sampling = self.opened(path, order.cluster, anew=anew)
                return run_job(volume, self.source, str(place), options, sampling, order)
            except OutputExistsError:
                if anew or not is_unfinished(place):
                    raise
        raise AssertionError


def _without_advice(error: BaseException) -> str:
    """Return what an error says but how to go on: of all images the same command does that."""
    return str(error).removesuffix(f"; {GO_ON}").removesuffix(f"; {ANEW}")


def _complete(results: Mapping[str, ScaleResult], images: int) -> str:
    return f"{len(results)} of {images} images are complete"


def _told(faults: Mapping[str, str], images: int) -> str:
    """Return which images failed, and how the job goes on."""
    reasons = [f"image {path}: {reason}" for path, reason in list(faults.items())[:MOST_TOLD]]
    if len(faults) > MOST_TOLD:
        reasons.append(f"and {len(faults) - MOST_TOLD} more")
    return (
        f"{len(faults)} of {images} images cannot be scaled: {'; '.join(reasons)}; the other "
        f"{images - len(faults)} are complete and kept; {GO_ON}"
    )


def _whole_path(source: Any) -> str:
    """Return the path of an input that does not depend on the working folder."""
    place = place_of(source)
    return str(absolute(place).resolve()) if isinstance(place, Path) else str(place)


def _as_json(given: Options) -> dict[str, Any]:
    """Return the options that make voxels, as JSON has them."""
    said = {name: value for name, value in given.given.items() if name not in _HOW_RUN}
    if given.crop is not None:
        said["crop"] = given.selection.crop
    if given.like is not None:
        said["like"] = asdict(grid_of(given.like)[1])
    found: dict[str, Any] = json.loads(json.dumps(said))
    return found


def _from_json(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as `_as_json` was given them."""
    found: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
    if "like" in found:
        like = found["like"]
        shape, size, origin = (tuple(like[name]) for name in ("shape", "voxel_size", "origin"))
        found["like"] = VoxelGrid(shape, size, origin, like["unit"])
    return found


@dataclass
class SharedPlans:
    """Makes one plan for all images that lie on the same grid; called as `isovoxel.planner.plan_volume` is."""

    cluster: Cluster | None
    """The workers that scale, where it is not this process."""
    _plans: dict[str, Plan] = field(default_factory=dict)
    _here: dict[str | int | None, Resources] = field(default_factory=dict)

    def __call__(
        self, volume: Volume, options: Options, sampling: Sampling, cluster: Cluster | None, output: Place | None
    ) -> Plan:
        """Return the plan of an image."""
        own = source_of(volume, find_target(volume, options).source)
        alike = (replace(own, name="", identity={}), sampling, replace(options, image=None, like=None))
        key = repr((*alike, options.like if isinstance(options.like, VoxelGrid | str | Path) else id(options.like)))
        if key not in self._plans:
            resources = cluster or self._here.setdefault(options.device, ThisProcess(options))
            self._plans[key] = plan_volume(volume, options, sampling, resources, output)
        plan = self._plans[key]
        return replace(plan, source=replace(plan.source, name=own.name, identity=own.identity))

    def on_device(self, options: Options) -> Options:
        """Return the options with the device that a job here has; "auto" is decided once."""
        if self.cluster is not None:
            return options
        from isovoxel.engines.devices import find_device

        return replace(options, device=str(find_device(options.or_new("device")).index))
