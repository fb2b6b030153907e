"""Public functions: open a volume, plan its scaling, do it, verify and draw it, and ask where one piece would stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from isovoxel.arguments import checked_arguments
from isovoxel.dask_array import scale_array
from isovoxel.errors import OptionError
from isovoxel.execution.events import Listener
from isovoxel.execution.result import ScaleResult
from isovoxel.geometry.grid import Float3
from isovoxel.options import CONVERTING, CropLike, Opening, Options, ScalingOptions
from isovoxel.planner import open_input
from isovoxel.planning.one_piece import WholeLimits
from isovoxel.planning.plan import Plan
from isovoxel.readers.base import Volume
from isovoxel.readers.selection import means_several

if TYPE_CHECKING:  # pyopencl, dask, zarr and matplotlib are loaded by what needs them
    from matplotlib.figure import Figure

    from isovoxel.engines.devices import Device
    from isovoxel.execution.distributed.worker_info import WorkerInfo
    from isovoxel.execution.output import OutputState
    from isovoxel.execution.verify import Verdict

__all__ = [
    "ScaleResult",
    "ScalingOptions",
    "convert",
    "devices",
    "images",
    "limits",
    "open_volume",
    "output_state",
    "plan",
    "scale",
    "scale_array",
    "show",
    "verify",
    "workers",
]


@checked_arguments()
def open_volume(
    source: Any,
    *,
    voxel_size: Float3 | None = None,
    unit: str | None = None,
    level: int | None = None,
    channel: int | None = None,
    time: int | None = None,
    axes: str | None = None,
    crop: CropLike | None = None,
    image: str | int | None = None,
) -> Volume:
    """Open a volume lazily; a single plane is a volume too.

    Parameters
    ----------
    source
        Path of a TIFF, BigTIFF, ImageJ stack, OME-TIFF, NDTiff, ``companion.ome``, TIFF in gzip, a folder or a pattern
        (``*.tif``) of TIFF or PNG slices, zarr array (v2, v3), OME-Zarr (0.4, 0.5, 0.6), zipped zarr (``.ozx``), N5,
        Neuroglancer precomputed, HDF5 (``file.h5:/path/to/dataset``), Imaris, BigDataViewer (``.xml``), NIfTI, NRRD,
        MetaImage, MRC, CZI, LIF, ND2, DV or ``.npy``; or the address of a zarr in an object store; or a NumPy, dask or
        zarr array; or an ``xarray.DataArray``, whose coordinates are lengths; or a `Volume`.
    voxel_size, unit
        Voxel size z, y, x and its unit, in place of what the metadata say.
    level, channel, time, axes, crop, image
        Which part of it, as in `ScalingOptions`.

    Raises
    ------
    InputError, OptionError
        If it is missing, unreadable, or no 3-D volume of a supported dtype; if it has no such part, or a size or unit
        makes no sense.
    """
    given = Options(
        input_voxel_size=voxel_size,
        unit=unit,
        level=level,
        channel=channel,
        time=time,
        axes=axes,
        crop=crop,
        image=image,
    )
    return open_input(source, given)


@checked_arguments()
def images(source: str | Path, image: str = "all") -> tuple[str, ...]:
    """Return the images of a plate, a collection or a file of several, each as `open_volume` takes it for `image`.

    Parameters
    ----------
    source
        A path or an address, as in `open_volume`.
    image
        Which: "all", or a pattern of `fnmatch`, such as "A/*/0".

    Raises
    ------
    InputError, OptionError
        If there is nothing, it cannot be read, its kind holds one image, or no image matches.
    """
    from isovoxel.readers.open import images_of
    from isovoxel.readers.selection import matching_images

    return tuple(one.path for one in matching_images(images_of(source).images, image, str(source)))


@checked_arguments(ScalingOptions)
def plan(
    source: Any,
    output: str | Path | None = None,
    *,
    overwrite: bool | str = False,
    workers: str | int | None = None,
    scheduler: str | Path | None = None,
    client: Any = None,
    **options: Unpack[ScalingOptions],
) -> Plan:
    """Return how a volume would be scaled. Nothing is read but metadata, and nothing is written.

    Parameters
    ----------
    source, workers, scheduler, client
        As in `scale`; the limits of the workers are kept in place of those of this process.
    output, overwrite
        What `scale` would be given: it is checked, and what is there of it is part of the plan and its notes.
    **options
        As in `ScalingOptions`.

    Raises
    ------
    IsovoxelError
        If the input, an option or the device cannot serve, or no block fits; with an output, where `scale` would raise.
    """
    from isovoxel.jobs import plan_job

    given = Options(overwrite=overwrite, workers=workers, scheduler=scheduler, **options)
    return plan_job(source, output, given, client=client)


@checked_arguments(ScalingOptions)
def scale(
    source: Any,
    output: str | Path,
    *,
    overwrite: bool | str = False,
    on_corrupt: str = "stop",
    isolate: bool = False,
    with_labels: Any = None,
    labels_by: str = "auto",
    workers: str | int | None = None,
    scheduler: str | Path | None = None,
    client: Any = None,
    listeners: Sequence[Listener] = (),
    progress: bool = False,
    **options: Unpack[ScalingOptions],
) -> ScaleResult:
    """Scale a volume and write the result as OME-Zarr, block by block.

    Called again for an output that is not complete, it resumes where the job ended; for one that is complete, it does
    nothing. Options that are not given are taken from there. Until then ``OUTPUT.isovoxel`` knows what is done.

    Parameters
    ----------
    source
        As in `open_volume`.
    output
        Path or address of the OME-Zarr to write, such as "s3://bucket/out.zarr"; in a zarr group it becomes a member.
    overwrite
        Whether an OME-Zarr that is there is replaced. It is kept, in ``OUTPUT.isovoxel/replaced``, until the new one is
        complete, and is back where the job fails before its first block; "now" deletes it first, where the disk has no
        room for both, and in an object store.
    on_corrupt
        "stop" ends the job at a damaged part of the input; "fill" fills it with 0, and result and output name it.
    isolate
        Whether blocks are scaled in a process of their own, so that a driver's crash costs the blocks in flight only.
        Where a device does not serve this process any more, that is done anyway.
    with_labels
        Labels of the same voxels, as in `open_volume`: scaled alike, and written as ``OUTPUT/labels/NAME``.
    labels_by
        "nearest", "mode" for the most frequent label, "smooth" for the one with the largest interpolated share, where
        no axis shrinks, or "auto" (default): mode where an axis shrinks.
    workers
        Worker processes of this machine that do the blocks: "auto" for one on each GPU, a number for as many GPUs, or
        "cpu:4" for four that share the processor's cores. A script that asks for them needs
        ``if __name__ == "__main__":``, because they are spawned.
    scheduler, client
        Address of a dask scheduler whose workers do them, or path of its scheduler file; or a ``distributed.Client``.
        They must see input and output under the same paths. Of the three at most one is given.
    listeners
        Called with each `isovoxel.execution.events.Event`.
    progress
        Whether a bar and notes show how the job goes, on standard error where that is a terminal, or in a notebook.
    **options
        As in `ScalingOptions`.

    Raises
    ------
    IsovoxelError
        As `plan`; before anything is written also if the output cannot be written, was begun in another way, or is
        being written by another process. A `JobError` if the job fails or is interrupted half-way.
    """
    given = Options(
        overwrite=overwrite,
        on_corrupt=on_corrupt,
        isolate=isolate,
        with_labels=with_labels,
        labels_by=labels_by,
        workers=workers,
        scheduler=scheduler,
        **options,
    )
    opened, shown = _job(given, progress)
    with shown as views, opened(source, output, given, client=client, listeners=[*listeners, *views]) as run:
        return run()


@checked_arguments(ScalingOptions)
def convert(
    source: Any,
    output: str | Path,
    *,
    overwrite: bool | str = False,
    on_corrupt: str = "stop",
    workers: str | int | None = None,
    scheduler: str | Path | None = None,
    client: Any = None,
    listeners: Sequence[Listener] = (),
    progress: bool = False,
    **options: Unpack[ScalingOptions],
) -> ScaleResult:
    """Write a volume as OME-Zarr, bit by bit as it is: `scale` by the factors (1, 1, 1).

    Parameters
    ----------
    source, output, overwrite, on_corrupt, workers, scheduler, client, listeners, progress
        As in `scale`.
    **options
        As in `ScalingOptions`, but for those that say how far and how a volume is scaled.

    Raises
    ------
    IsovoxelError
        As `scale` does, and where an option is for scaling.
    """
    given = Options(overwrite=overwrite, on_corrupt=on_corrupt, workers=workers, scheduler=scheduler, **options)
    opened, shown = _job(given, progress)
    how: dict[str, Any] = {"client": client, "defaults": CONVERTING}
    with shown as views, opened(source, output, given.converting(), listeners=[*listeners, *views], **how) as run:
        return run()


def _job(
    given: Options, progress: bool
) -> tuple[Callable[..., AbstractContextManager[Callable[[], ScaleResult]]], AbstractContextManager[Any]]:
    """Return what opens a job, over one image or over several, and a context in which it is shown if that is asked."""
    if means_several(given.image):
        from isovoxel.image_jobs import scale_images

        def opened(*job: Any, **how: Any) -> AbstractContextManager[Callable[[], ScaleResult]]:
            return nullcontext(partial(scale_images, *job, **how))  # each image is opened by itself
    else:
        from isovoxel.jobs import scaling_into as opened
    if not progress:
        return opened, nullcontext(())
    from isovoxel.reporting.progress import job_progress

    return opened, job_progress()


@checked_arguments()
def limits(
    source: Any,
    *,
    input_voxel_size: Float3 | None = None,
    unit: str | None = None,
    level: int | None = None,
    channel: int | None = None,
    time: int | None = None,
    axes: str | None = None,
    crop: CropLike | None = None,
    image: str | int | None = None,
    interpolation: str = "linear",
    device: str | int = "auto",
) -> WholeLimits:
    """Return at which zoom ``cle.scale`` of the whole volume in one piece would stop, and on which limit.

    Parameters
    ----------
    source
        As in `open_volume`.
    input_voxel_size, unit, level, channel, time, axes, crop, image, interpolation, device
        As in `ScalingOptions`.
    """
    from isovoxel.engines.devices import find_device
    from isovoxel.planning.one_piece import whole_limits

    given = Options(
        input_voxel_size=input_voxel_size,
        unit=unit,
        level=level,
        channel=channel,
        time=time,
        axes=axes,
        crop=crop,
        image=image,
        device=device,
    )
    return whole_limits(open_input(source, given).grid, find_device(given.or_new("device")).limits(), interpolation)


@checked_arguments()
def verify(
    output: str | Path,
    *,
    image: str | int | None = None,
    against: Any = None,
    samples: int = 400,
    seed: int = 0,
    every_chunk: bool = False,
    decode: str | None = None,
    device: str | int | None = None,
    device_memory: int | str | None = None,
    memory: int | str | None = None,
    progress: bool = False,
) -> Verdict:
    """Compute sampled boxes of a result again from its source, in float64, and compare.

    Where the receipts of its shards were kept (`keep_receipts`), all shards are compared with them. Labels in the image
    that isovoxel has written are verified too; where their source cannot be read, all but their voxels, and
    `Verdict.uncompared` says why.

    Parameters
    ----------
    output
        An OME-Zarr that isovoxel has written; its attributes say from what and how.
    image
        Which of several, as in `ScalingOptions`; by default all.
    against
        The source of the image, where it is no longer where the attributes say, as in `open_volume`.
    samples, seed
        How many boxes, those around block corners, faces and edges first; and what chooses them.
    every_chunk
        Whether every chunk is read as well, and so its checksum compared where it has one.
    decode, device, device_memory
        What decompresses them: "auto" (default) for the GPU where it can and is faster, "gpu" or "cpu"; which GPU, and
        how much of its memory may be held. As in `ScalingOptions`.
    memory, progress
        Host memory to stay within, as in `show`; whether a bar shows how much is compared, as in `scale`.

    Raises
    ------
    InputError
        If the output was not written by isovoxel, or is not complete, or the source is another.
    OptionError, DoesNotFitError
        If there is nothing to sample, the GPU is to decompress what it cannot, or nothing, or a single voxel takes more
        than `memory`.
    """
    from isovoxel.execution.collection import verify_images
    from isovoxel.reporting.progress import reading_progress

    with reading_progress(progress) as view:
        return verify_images(
            output,
            against,
            image,
            samples=samples,
            seed=seed,
            every_chunk=every_chunk,
            options=Options(decode=decode, device=device, device_memory=device_memory, memory=memory),
            reading=view,
        )


@checked_arguments(Opening)
def show(
    source: Any,
    other: Any = None,
    *,
    labels: bool | None = None,
    memory: int | str | None = None,
    progress: bool = False,
    **opening: Unpack[Opening],
) -> Figure:
    """Draw maximum projections along z, y and x of a volume, or of two side by side, at one scale and one contrast.

    Of an image with levels the coarsest is read that still has a voxel for each pixel.

    Parameters
    ----------
    source, other
        What to draw, each as in `open_volume`; `other` is opened as it is.
    labels
        Whether voxels are labels, each of its own colour; by default what each input says.
    memory
        Host memory to stay within, in bytes or as text such as "2GiB"; by default half of what is free.
    progress
        Whether a bar shows how far the inputs are read, where that takes longer than a moment; as in `scale`.
    **opening
        How `source` is opened: voxel_size, unit, level, channel, time, axes, crop and image, as in `open_volume`.

    Returns
    -------
    matplotlib.figure.Figure
        In true proportions, with scale bars. Notebooks show it; ``savefig`` writes it. pyplot does not know it.

    Raises
    ------
    InputError
        If one cannot be opened or read.
    OptionError, DoesNotFitError
        If they cannot be drawn at one scale, or as labels, or drawing takes more than `memory`.
    """
    from isovoxel.reporting.progress import reading_progress
    from isovoxel.reporting.show import drawing_of

    with reading_progress(progress) as view:
        sources = [source] if other is None else [source, other]
        drawn, _, _ = drawing_of(sources, opening, labels=labels, memory=memory, reading=view)
    return drawn.figure


@checked_arguments()
def workers(
    *, workers: str | int | None = None, scheduler: str | Path | None = None, client: Any = None
) -> tuple[WorkerInfo, ...]:
    """Return the workers that a job would have, and the device that each holds.

    Parameters
    ----------
    workers, scheduler, client
        Which, as in `scale`; one of them. An `OptionError` is raised where none is given.
    """
    from isovoxel.execution.distributed.connect import open_cluster

    with open_cluster(Options(workers=workers, scheduler=scheduler), client) as cluster:
        if cluster is None:
            raise OptionError("no workers are named; give one of workers, scheduler and client")
        return cluster.pool.members


@checked_arguments()
def output_state(path: str | Path) -> OutputState | None:
    """Return how far an OME-Zarr of isovoxel's is, or None where there is none."""
    from isovoxel.execution.output import output_state as find_state

    return find_state(path)


def devices() -> list[Device]:
    """Return all OpenCL devices, GPUs first."""
    from isovoxel.engines.devices import list_devices

    return list_devices()
