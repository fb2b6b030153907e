"""Options of a job: one field for each, of which the command line, variables, job files and keywords are made.

A field says what the option is in Python (its name, type and docstring), and with `_option` what it is elsewhere: the
commands that have it, its help, and whether a variable and a job file have it. A new option is a field here, a line in
`ScalingOptions` for type checkers, what uses it, and its test.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

from isovoxel.arguments import checked_value
from isovoxel.errors import OptionError, shown_value
from isovoxel.geometry.grid import Float3, Index3, check_positive, triple
from isovoxel.planning.chunking import CODECS, EMPTY, OME_ZARR
from isovoxel.planning.codecs import DECODERS, ENCODERS
from isovoxel.planning.model import BOUNDARIES, ENGINES, HALO_MODES, MOVES
from isovoxel.readers.selection import Selection, parse_crop

CropLike = str | Sequence[slice | Sequence[int | None]]
"""A box of voxels: "z0:z1,y0:y1,x0:x1", or three slices or pairs."""


class Opening(TypedDict, total=False):
    """How an input is opened: the keywords of `open_volume`. None has to be given."""

    voxel_size: Float3 | None
    """`Options.input_voxel_size`; the others have the names of their fields."""
    unit: str | None
    level: int | None
    channel: int | None
    time: int | None
    axes: str | None
    crop: CropLike | None
    image: str | int | None


class ScalingOptions(TypedDict, total=False):
    """How a volume is scaled: the keywords of `plan`, `scale` and `convert`, which `isovoxel.options.Options` explains.

    None has to be given, and None is not given. Defaults are for new outputs. For a job that was begun, or an output
    that is finished, what is not given is taken from there; what is given and differs is refused.

    At most one of `zoom`, `voxel_size`, `factor` and `like` says how far; without them the finest of the three voxel
    sizes becomes the size of all. A single plane stays one, unless `factor` says otherwise.
    """

    zoom: float | None
    voxel_size: float | None
    factor: Float3 | None
    like: Any
    input_voxel_size: Float3 | None
    unit: str | None
    level: int | None
    channel: int | None
    time: int | None
    axes: str | None
    crop: CropLike | None
    image: str | int | None
    interpolation: str | None
    antialias: bool | None
    labels: bool | None
    engine: str | None
    boundary: str | None
    device: str | int | None
    halo: str | None
    memory: int | str | None
    device_memory: int | str | None
    threads: int | None
    chunk: Index3 | None
    shard: Index3 | None
    codec: str | None
    encode: str | None
    decode: str | None
    ome_zarr: str | None
    empty: str | None
    keep_receipts: bool | None
    levels: int | str | None


SCALING = ("plan", "scale")
"""Commands that scale; likewise the commands of jobs, those that do one, and those that open an input."""
JOBS = (*SCALING, "convert")
DOING = ("scale", "convert")
OPENING = ("info", *JOBS, "limits", "show")

MOST_NUMBERED = 10**6
"""More threads or levels than any machine or volume has."""

HOW_FAR = ("zoom", "voxel_size", "factor", "like")
"""Options of which one says how far to scale."""


@dataclass(frozen=True, slots=True)
class Surface:
    """What an option is outside Python."""

    help: str
    """What the command line's help says of it."""
    metavar: str | None = None
    """What the help shows for its value; None of one that is on or off."""
    commands: tuple[str, ...] = JOBS
    """Commands that have it, and the public functions of their names."""
    choices: tuple[str, ...] = ()
    """The only values that it may have, where it is one of a few names."""
    example: str = ""
    """Three numbers, where its value is three."""
    flags: str = ""
    """Its spelling on the command line, where that is not ``--`` and its name."""
    new: Any = None
    """Its value for new outputs where it is not given, unless that depends on the input."""
    kept: bool = True
    """Whether a variable and a job file have it."""
    variable: bool = True
    """Whether a variable has it that is `kept`."""


def _option(text: str, metavar: str | None = None, *, default: Any = None, **more: Any) -> Any:
    """Return a field; `text` is its help, and the others are as in `Surface`."""
    choices = more.get("choices", ())
    return field(default=default, metadata={"surface": Surface(text, metavar or "|".join(choices) or None, **more)})


@dataclass(frozen=True)
class Options:
    """What a user asks of a job; None is not given.

    Raises
    ------
    OptionError
        If a value makes no sense, or some do not go together.
    """

    zoom: float | None = _option("Factor per axis = voxel size x Z.", "Z", commands=SCALING)
    """Factor per axis = voxel size x zoom, so that the result has 1 / zoom per voxel, as in cle's tutorials."""
    voxel_size: float | None = _option("Side of the cubic output voxels, in the input's unit.", "S", commands=SCALING)
    """Side of the output's cubic voxels, in the volume's unit."""
    factor: Float3 | None = _option("Output voxels per input voxel.", "FZ,FY,FX", commands=SCALING, example="5,1,1")
    """Output samples per input sample, z, y, x."""
    like: Any = _option(
        "Volume whose shape, voxel size and origin the output gets; IMAGE/N is level N of an OME-Zarr.",
        "OTHER",
        commands=SCALING,
    )
    """Another volume, as in `isovoxel.open_volume`, or a `VoxelGrid`: the output gets its shape, voxel size and origin.
    Engine exact samples at its voxels, and the boundary's rule holds where they lie outside. "IMAGE/N" is level N of an
    OME-Zarr image."""
    input_voxel_size: Float3 | None = _option(
        "Voxel size of the input; overrides its metadata.", "Z,Y,X", commands=OPENING, example="1,0.2,0.2"
    )
    """Voxel size of the input, z, y, x, in place of what its metadata say."""
    unit: str | None = _option("Unit of the input's lengths, such as micrometer.", "NAME", commands=OPENING)
    """Unit of the input's lengths, in place of what its metadata say; and of those of `like`, where they have none."""
    level: int | None = _option("Resolution level of an OME-Zarr image; default: 0, the finest.", "N", commands=OPENING)
    """Resolution level of an OME-Zarr image, 0 (default) the finest."""
    channel: int | None = _option("Which of several channels, counted from 0; default: all.", "N", commands=OPENING)
    """Which of several channels, counted from 0; default: all, each scaled by itself."""
    time: int | None = _option("Which of several time points, counted from 0; default: all.", "N", commands=OPENING)
    """Which of several time points, counted from 0; default: all, likewise."""
    axes: str | None = _option(
        "Names of the input's axes, such as tczyx, where it does not name them itself.", "NAMES", commands=OPENING
    )
    """Names of the input's axes in their order, such as "tczyx", where it does not name them itself: of a zarr array, a
    TIFF, HDF5, ``.npy`` and arrays."""
    crop: CropLike | None = _option(
        "Input voxels to take; ends may be open, and numbers below 0 count from the end.",
        "Z0:Z1,Y0:Y1,X0:X1",
        commands=OPENING,
    )
    """Which voxels of the input: "z0:z1,y0:y1,x0:x1", or three slices or pairs. As in Python's slices an open end is
    the volume's, and a number below 0 counts from its end; beyond the volume nothing may lie."""
    image: str | int | None = _option(
        "Which of several images: a path in a plate, a number, a name, a pattern such as 'A/*/0', or all.",
        "PATH|N|PATTERN|all",
        commands=(*OPENING, "verify"),
    )
    """Which image of a plate, a collection or a file of several: its path, such as "A/1/0", its number in their order,
    or its name. "all" and patterns of `fnmatch`, such as "A/*/0", are for jobs."""
    interpolation: str | None = _option(
        "Default: linear, and nearest for labels; mode is a majority vote, smooth rounds labels that grow.",
        commands=SCALING,
        choices=ENGINES["exact"],
    )
    """"linear" (default), "nearest" (default for labels), and with engine exact "cubic", "lanczos3",
    "area" (the mean), "mode" (the most frequent label) and "smooth", for labels that grow: the label whose linearly
    interpolated share is the largest, and of equal ones the smallest. Where only one axis grows that is the nearest."""
    antialias: bool | None = _option(
        "Average where an axis shrinks, in place of skipping voxels.", commands=SCALING, new=False
    )
    """Whether linear, cubic and lanczos3 kernels widen on axes that shrink, so that nothing is skipped; engine exact.
    """
    labels: bool | None = _option(
        "Voxels are labels: moved, never mixed. Default: what the input says.", flags="--labels/--no-labels"
    )
    """Whether voxels are labels, which are moved and never mixed; by default what the input's metadata say."""
    engine: str | None = _option("Default: cle on GPUs, exact on CPUs.", commands=SCALING, choices=tuple(ENGINES))
    """"cle" or "exact"; default of new outputs: cle on GPUs where clEsperanto is there, else exact, as for what only
    exact has (labels among it)."""
    boundary: str | None = _option(
        "Default: nearest repeats the rim; constant is cle.scale's dark rim.",
        commands=SCALING,
        choices=BOUNDARIES,
        new="nearest",
    )
    """"nearest" (default): the rim repeats. "constant": 0 lies around the volume, as ``cle.scale`` has it."""
    device: str | int | None = _option(
        "OpenCL device; default: auto.",
        "NAME|INDEX|gpu|cpu|auto",
        commands=(*JOBS, "verify"),
        new="auto",
        variable=False,
    )
    """"auto" (default), "gpu", "cpu", a number, or a name or whole words of it. ``ISOVOXEL_DEVICE`` says which device a
    worker holds, in words of its own."""
    halo: str | None = _option(
        "How blocks get their neighbours' voxels; default: auto.", commands=SCALING, choices=HALO_MODES, new="auto"
    )
    """"auto" (default), "map_overlap" or "direct"."""
    memory: int | str | None = _option(
        "Host memory to stay within, such as 8GiB; a job takes 0.6GB at least, 0.9GB with a GPU.",
        "SIZE",
        commands=(*JOBS, "verify", "show"),
    )
    """Bytes that this process may hold, or text with a unit such as "8GiB"; default: half of what is free."""
    device_memory: int | str | None = _option("Device memory to stay within.", "SIZE", commands=(*JOBS, "verify"))
    """Bytes that may be held on the device, or text; default: nine tenths of what is free on a GPU."""
    threads: int | None = _option("Blocks in flight at the same time.", "N")
    """Blocks in flight; default: one per core, at least three."""
    chunk: Index3 | None = _option("Voxels per chunk of the output.", "Z,Y,X", example="128,128,128")
    """Voxels per chunk of the output, z, y, x."""
    shard: Index3 | None = _option("Voxels per file of the output.", "Z,Y,X", example="256,256,256")
    """Voxels per shard (file) of the output, z, y, x: whole chunks. OME-Zarr 0.4 has none."""
    codec: str | None = _option(
        "Compression of the output; default: blosc-lz4 (also: lz4), and blosc-zstd where the GPU encodes.",
        choices=tuple(CODECS),
    )
    """"blosc-lz4" (default; also "lz4"), "blosc-zstd" (default where the GPU encodes), "none", or one of Zarr's own
    codecs, "zstd" and "gzip": larger files than blosc's, which GPUs decode too."""
    encode: str | None = _option(
        "What compresses; default: auto, the GPU where it can and is faster.", choices=ENCODERS, new="auto"
    )
    """"auto" (default), "cpu", or "gpu", which takes an NVIDIA GPU and the extra ``nvidia-cu13`` or ``nvidia-cu12``.
    The voxels are the same; the files differ in length."""
    decode: str | None = _option(
        "What decompresses what is read; default: auto, the GPU where it can and is faster.",
        commands=(*JOBS, "verify"),
        choices=DECODERS,
        new="auto",
    )
    """"auto" (default), "cpu", or "gpu", as in `encode`: chunks of local zarr arrays by blosc's lz4, or by its zstd
    where each has a checksum (crc32c). The voxels are the same."""
    ome_zarr: str | None = _option(
        "Version of the output; default: 0.5. 0.4 has no shards: it is one file a chunk. 0.6 is experimental.",
        choices=tuple(OME_ZARR),
        new="0.5",
    )
    """Version of OME-Zarr: "0.5" (default); "0.4", which makes a file of each chunk; or "0.6", which is experimental
    as long as the specification (RFC-5) is not final: outputs may have to be written again."""
    empty: str | None = _option(
        "Chunks of nothing but zeros; default: skip, which does not store them.", choices=EMPTY, new="skip"
    )
    """"skip" (default): chunks that hold nothing but zeros, the fill value, are not stored, and shards of nothing but
    them are no files. "write" stores them as any other. The voxels are the same."""
    keep_receipts: bool | None = _option(
        "Keep size and checksum of each file beside the output, in OUTPUT.isovoxel, for verify."
    )
    """Whether size and CRC-32 of each shard are kept beside the output, in ``OUTPUT.isovoxel``, when it is complete, so
    that `verify` compares every one of them. Chunks of OME-Zarr 0.5 have checksums anyway, those of 0.4 have none."""
    levels: int | str | None = _option(
        "Further levels, each of half the size; default: auto, until 256 voxels a side.", "auto|N"
    )
    """How many levels follow the full one, each of half the size: a number, or "auto" (default) for as many as it takes
    until no side is longer than 256. They are means; of labels, "mode" and integers of 64 bits the most frequent."""
    workers: str | int | None = _option(
        "Worker processes here: one on each GPU, or on the processor.", "auto|N|cpu:N", commands=(*JOBS, "devices")
    )
    """Worker processes of this machine that do the blocks, as in `isovoxel.scale`."""
    scheduler: str | Path | None = _option(
        "dask scheduler, whose workers do it.", "ADDRESS|FILE", commands=(*JOBS, "devices")
    )
    """Address of a dask scheduler whose workers do them, or path of its scheduler file."""
    overwrite: bool | str = _option(
        "Replace an OME-Zarr that is there, and keep it until the new one is complete; now: delete it first.",
        "[now]",
        default=False,
        kept=False,  # one that is kept would begin a job anew that should resume
    )
    """Whether an OME-Zarr that is there already is replaced; "now" deletes it before the new one is begun."""
    on_corrupt: str = _option(
        "What to do with damaged parts of the input: fill makes them 0.",
        default="stop",
        commands=DOING,
        choices=("stop", "fill"),
    )
    """"stop" or "fill"."""
    isolate: bool = _option(
        "Scale in a process of its own, in case the device's driver crashes.", default=False, commands=("scale",)
    )
    """Whether blocks are scaled in a process of their own."""
    with_labels: Any = _option(
        "Labels of the same voxels, scaled too and written into the image's labels.", "FILE", commands=("scale",)
    )
    """Labels of the same voxels, as in `isovoxel.open_volume`."""
    labels_by: str = _option(
        "How those are scaled; auto: mode where an axis shrinks.",
        default="auto",
        commands=("scale",),
        choices=("auto", *MOVES),
    )
    """How those are scaled."""

    def __post_init__(self) -> None:
        for field_ in dataclasses.fields(self):
            object.__setattr__(self, field_.name, _checked(field_, getattr(self, field_.name)))
        ways = [name.replace("_", " ") for name in HOW_FAR if getattr(self, name) is not None]
        if len(ways) > 1:
            raise OptionError(f"{' and '.join(ways)} each say how far to scale; give only one of them")
        if self.threads is not None:
            if self.threads < 1:
                raise OptionError(f"threads must be at least 1, not {shown_value(self.threads)}")
            object.__setattr__(self, "threads", min(self.threads, MOST_NUMBERED))
        if self.with_labels is None and self.labels_by != "auto":
            raise OptionError("labels_by says how the labels of an image are scaled; give them with --with-labels")
        for check in ("selection", "memory_bytes", "device_memory_bytes", "further_levels"):
            getattr(self, check)

    @property
    def given(self) -> dict[str, Any]:
        """Those that are given, by their names; of the options that are never None, none."""
        return {name: value for name in GIVEN if (value := getattr(self, name)) is not None}

    def filled(self, values: Mapping[str, Any]) -> Options:
        """Return the options with values for those that are not given."""
        return replace(self, **{name: value for name, value in values.items() if getattr(self, name) is None})

    def or_new(self, name: str) -> Any:
        """Return the value of an option, or what it is for new outputs where it is not given."""
        value = getattr(self, name)
        return NEW[name] if value is None else value

    def keywords(self, command: str) -> dict[str, Any]:
        """Return the options that a command and its public function have, as keywords."""
        return {name: getattr(self, name) for name, surface in SURFACES.items() if command in surface.commands}

    @property
    def opening(self) -> Opening:
        """How the input is opened, as keywords of `isovoxel.open_volume`."""
        names = (name for name in Opening.__annotations__ if name != "voxel_size")
        found: Any = {"voxel_size": self.input_voxel_size, **{name: getattr(self, name) for name in names}}
        opening: Opening = found
        return opening

    @property
    def selection(self) -> Selection:
        """Which part of the input is meant."""
        image: Any = str(self.image) if type(self.image) is int else self.image
        return Selection(self.level, self.channel, self.time, self.axes, parse_crop(self.crop), image)

    @property
    def how_opened(self) -> dict[str, Any]:
        """The same, as keywords of `isovoxel.readers.open.open_volume`."""
        return {"voxel_size": self.input_voxel_size, "unit": self.unit, "selection": self.selection}

    @property
    def memory_bytes(self) -> int | None:
        """Bytes that this process may hold, or None where nothing is said."""
        return parse_size("memory", self.memory)

    @property
    def device_memory_bytes(self) -> int | None:
        """Bytes that may be held on the device, or None where nothing is said."""
        return parse_size("device memory", self.device_memory)

    @property
    def further_levels(self) -> int | None:
        """How many levels follow the full one, or None for as many as it takes."""
        if self.levels is None or (isinstance(self.levels, str) and self.levels == "auto"):
            return None
        try:
            count = int(self.levels) if type(self.levels) in (int, str) else -1
        except ValueError:
            count = -1
        if count < 0:
            raise OptionError(f"levels must be auto or a number from 0 on, not {shown_value(self.levels)}")
        return min(count, MOST_NUMBERED)

    def converting(self) -> Options:
        """Return the options of a job that keeps every voxel as it is, whatever its integer or float type.

        Raises
        ------
        OptionError
            If an option is for scaling.
        """
        made = ("zoom", "voxel_size", "antialias", "boundary", "factor", "like", *CONVERTING)
        given = [name.replace("_", " ") for name in made if getattr(self, name) not in (None, False)]
        if given:
            raise OptionError(f"converting keeps every voxel as it is; {' and '.join(given)} are for scaling")
        return replace(self, factor=(1.0, 1.0, 1.0))


SURFACES: Mapping[str, Surface] = {f.name: f.metadata["surface"] for f in dataclasses.fields(Options)}
"""What each option is outside Python, by the names of the fields."""

GIVEN = tuple(f.name for f in dataclasses.fields(Options) if f.default is None)
"""Names of the options that may be given or not."""

NEW = {name: surface.new for name, surface in SURFACES.items() if surface.new is not None}
"""Values of options for new outputs where they are not given; others depend on the input."""

CONVERTING = {"interpolation": "nearest", "engine": "exact"}
"""Options of a new output that keeps every voxel as it is."""


def parse_factor(values: Sequence[float]) -> Float3:
    """Return three factors, z, y, x, from any sequence of numbers."""
    factor = triple(map(float, checked_value("factor", "Float3", values)))
    check_positive("factor", factor)
    return factor


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _checked(field: dataclasses.Field[Any], value: Any) -> Any:
    """Return the value of an option as Python has it, if it is of the field's type and one of its choices."""
    name, surface = field.name, SURFACES[field.name]
    if value is None and field.default is None:
        return None
    if name == "codec" and isinstance(value, str) and value == "lz4":  # its name in 0.1
        return "blosc-lz4"
    if surface.choices and not (isinstance(value, str) and value in surface.choices):
        raise OptionError(f"{name} must be one of {', '.join(surface.choices)}, not {shown_value(value)}")
    value = checked_value(name, str(field.type), value)
    if name == "overwrite" and not (isinstance(value, bool) or (isinstance(value, str) and value == "now")):
        raise OptionError(f"overwrite must be True, False or 'now', not {shown_value(value)}")
    if name == "factor":
        return parse_factor(value)
    if name == "device":
        return checked_value(name, "str", str(value) if type(value) is int else value)
    return value


def parse_size(name: str, value: int | str | None) -> int | None:
    """Return a size in bytes from a number or from text such as "8GiB"."""
    if value is None:
        return None
    from dask.utils import parse_bytes

    unclear = OptionError(f"{name} must be a size such as 8GiB or 500MB, not {shown_value(value)}")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise unclear
    if isinstance(value, str) and _is_number(value) and float(value) > 0:
        raise OptionError(f"{name} needs a unit, such as {value.strip()}GiB or {value.strip()}MB; {value!r} has none")
    if isinstance(value, str) and not any(letter.isdigit() for letter in value):
        raise unclear  # dask takes "GiB" for one of them, and nothing for a byte
    try:
        size = int(parse_bytes(value))
    except (ValueError, OverflowError):
        raise unclear from None
    if size <= 0:
        raise OptionError(f"{name} must be a size above 0, not {value!r}")
    if size >= 2**63:
        raise OptionError(f"{name} must be a size below 8EiB, not {shown_value(value)}")
    return size
