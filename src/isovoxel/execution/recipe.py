"""Recipe of an output, written into its attributes, and read back to compute parts of it again."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from isovoxel.engines.registry import GENERATIONS
from isovoxel.errors import InputError
from isovoxel.geometry.grid import MAX_SAMPLES, Float3, Index3, VoxelGrid, number_text, triple
from isovoxel.metadata.series import SeriesAxis
from isovoxel.output.provenance import RECEIPTS
from isovoxel.planning.chunking import CODECS, EMPTY, Storage
from isovoxel.planning.model import CHOICES, check_options
from isovoxel.planning.plan import Plan
from isovoxel.planning.pyramid import level_grids
from isovoxel.readers.base import Volume
from isovoxel.readers.files import CHUNKS
from isovoxel.readers.selection import Selection
from isovoxel.version import __version__


def provenance(planned: Plan, volume: Volume, *, labels: bool, receipts: bool = False) -> dict[str, Any]:
    """Return what makes an output, for its attributes."""
    grid = planned.source.grid
    return {
        "version": __version__,
        "revision": [level.revision for level in planned.levels],
        "engine": planned.engine,
        **({"clesperanto": planned.library} if planned.library else {}),
        "device": {"name": planned.device.name, "kind": planned.device.kind},
        "encoder": "gpu" if planned.device.encoding else "cpu",
        "decoder": "gpu" if planned.device.decoding else "cpu",
        "interpolation": planned.interpolation,
        "antialias": planned.antialias,
        "boundary": planned.boundary,
        "factor": list(planned.factor),
        **({"like": asdict(planned.output) | {"shift": list(planned.shift)}} if planned.regrids else {}),
        "labels": labels,
        "block": list(planned.block_shape),
        "storage": {
            "chunk": list(planned.storage.chunk),
            "shard": list(planned.storage.shard),
            "codec": planned.storage.codec,
            # Outputs of before there was more than blosc do not say it; lz4 is blosc's in all.
            **({"plain": planned.storage.plain} if planned.storage.codec not in ("lz4", "none") else {}),
            "ome_zarr": planned.storage.ome_zarr,
            "empty": "skip" if planned.storage.skip_empty else "write",
        },
        "levels": {
            "further": len(planned.further),
            "interpolation": [level.interpolation for level in planned.further],
            "factor": [list(level.factor) for level in planned.further],
            "block": [list(level.block_shape) for level in planned.further],
        },
        "input": {
            "name": volume.name,
            "kind": volume.kind,
            "identity": dict(volume.identity),
            "shape": list(grid.shape),
            "series": [list(axis) for axis in planned.source.series],
            "steps": [[axis.step, axis.unit, axis.start] for axis in volume.series],
            "dtype": volume.dtype.name,
            "voxel_size": list(grid.voxel_size),
            "origin": list(grid.origin),
            "unit": grid.unit,
        },
        "fingerprint": planned.fingerprint,
        **({RECEIPTS: True} if receipts else {}),
    }


TIE = 1e-6
"""How near to the middle between two voxels a sample counts as there, relative to its position."""
FIRST_LIBRARY = "pyclesperanto-prototype"
"""The clEsperanto of 0.1, which does not name it."""
_NAMES = {
    "engine": "engine",
    "interpolation": "interpolation",
    "antialias": "antialias",
    "boundary": "boundary",
    "factor": "factor",
    "like": "voxels of another volume",
    "labels": "labels",
    "codec": "codec",
    "storage.ome_zarr": "OME-Zarr version",
    "storage.empty": "empty chunks",
    "levels.further": "further levels",
    "input.identity.path": "input",
    "input.identity.image": "image",
    "input.identity.level": "level",
    "input.identity.channel": "channel",
    "input.identity.time": "time point",
    "input.identity.axes": "axes",
    "input.identity.crop": "crop",
    "input.shape": "input shape",
    "input.series": "time points and channels",
    "input.dtype": "input dtype",
    "input.voxel_size": "input voxel size",
    "input.origin": "input origin",
    "input.unit": "input unit",
}
"""What changes a result, by its place in what `provenance` returns, and what people call it."""
_SIGNS = {
    "mtime_ns": "another time of last change",
    "tag": "other voxels",
    "files": "other files",
    CHUNKS: "another state of the chunks",
}
"""What people call signs that an input is another, where they do not call it as we do."""


def differences(
    then: Mapping[str, Any],
    now: Mapping[str, Any],
    cut: Sequence[str],
    said: str = "factor",
    called: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
    """Return what makes another result now than what made an output then: "factor (4, 1, 1), now factor (2, 1, 1)".

    How the volume is cut into blocks is none of it: a job goes on with the blocks that it was begun with.

    Parameters
    ----------
    then, now
        As `provenance` returns it; `then` may come from a file, and lack anything.
    cut
        "chunk", "shard" or both, where the user asks for certain ones now; otherwise those from then are as good.
    said
        The option that says how far now: "zoom", "voxel_size" or "factor".
    called
        Other names of what changes a result than people usually call it.
    """
    now = json.loads(json.dumps(now))  # tuples are lists there
    then, now = ({**made, "codec": _codec_name(made)} for made in (then, now))
    names = {**_NAMES, **called, **{f"storage.{name}": name for name in cut}}
    if now["engine"] == "cle":  # its bits depend on the device
        names["device.name"] = "device"
    found = [
        f"{_how_far(then, said)}, now {_how_far(now, said)}"
        if place == "factor"
        else f"{name} {_text(before)}, now {_text(after)}"
        for place, name in names.items()
        if (before := _at(then, place)) != (after := _at(now, place))
    ]
    found += _library_changed(then, now)
    if then.get("complete") and now.get(RECEIPTS) and not then.get(RECEIPTS):  # of a job that goes on all are known
        found.append("no receipts that are kept, now with them")
    revisions = _at(then, "revision") or [1] * len(now["revision"])  # 0.1 does not say, and has made the first ones
    if not found and revisions != now["revision"]:  # of another algorithm they say nothing
        found.append(
            f"revisions {_text(revisions)} of the algorithms (isovoxel {_at(then, 'version')}), "
            f"now {_text(now['revision'])} (isovoxel {now['version']})"
        )
    before, after = (_identity(made) for made in (then, now))
    told = {place.rpartition(".")[2] for place in names if place.startswith("input.identity.")}
    told |= {CHUNKS} - (set(before) & set(after))  # of which version 0.1 knew nothing
    signs = [key for key in {**before, **after} if key not in told and before.get(key) != after.get(key)]
    return found + [f"{_SIGNS.get(key, f'another {key}')} of the input" for key in signs]


def _library_changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what to say where a job of `cle` would go on with another clEsperanto, whose bits differ.

    Nearest gives the same ones with both generations but where a sample lies between two voxels; of linear a block
    shifted against the volume's grid differs, for the successor inverts the matrix in float32. What is complete is what
    was asked for, by whichever.
    """
    if now["engine"] != "cle" or then.get("complete"):
        return []
    if now["interpolation"] == "nearest" and not _undecided(now["input"]["shape"], now["factor"]):
        return []
    before, after = str(then.get("clesperanto") or FIRST_LIBRARY), str(now.get("clesperanto") or FIRST_LIBRARY)
    package, other = (name.partition(" ")[0] for name in (before, after))
    if package == other or now["factor"] == [1.0, 1.0, 1.0]:
        return []
    name = {of: name for name, of in GENERATIONS.items()}.get(package, package)
    how = f"ISOVOXEL_CLE={name} chooses the first, pip install {package} brings it"
    return [f"{before}, now {after}, which interpolates otherwise ({how})"]


def _undecided(shape: Sequence[int], factor: Sequence[float]) -> bool:
    """Return whether a sample lies as near to one voxel as to the next, within what float32 resolves."""
    for n, f in zip(shape, factor, strict=True):
        at = (np.arange(max(1, round(n * f))) + 0.5) / f
        if f != 1 and (np.abs(at - np.rint(at)) < TIE * (1 + at)).any():
            return True
    return False


def made_with(made: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the options that an output was made with, by the names of the fields of `isovoxel.options.Options`.

    How the volume is cut is not among them: a job goes on as it was cut.

    Raises
    ------
    InputError
        If its attributes do not say; `name` is what the user called it.
    """
    recipe = Recipe.from_provenance(made, name)
    source: Mapping[str, Any] = made["input"]
    found: dict[str, Any] = {
        **{name: getattr(recipe, name) for name in ("interpolation", "antialias", "boundary", "engine")},
        "labels": made.get("labels") is True,
        "codec": _codec_name(made),
        "ome_zarr": _at(made, "storage.ome_zarr"),
        "empty": _at(made, "storage.empty"),
        "keep_receipts": made.get(RECEIPTS) is True,
        "levels": len(recipe.further),
        "unit": source.get("unit"),
    }
    try:
        found |= _onto(made, recipe)
        z, y, x = (float(size) for size in source["voxel_size"])
        codec, plain = CODECS[found["codec"]]
        Storage((1, 1, 1), (1, 1, 1), codec, found["ome_zarr"], plain=plain)
        if found["empty"] not in EMPTY:
            raise ValueError(f"its empty chunks are {found['empty']!r:.80}")  # noqa: TRY301 - one of several refusals
        selection = asdict(Selection.of_identity(recipe.identity))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name} does not say in its attributes how isovoxel made it: {error}") from error
    return found | selection | {"input_voxel_size": (z, y, x)}


def _onto(made: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Return the option that says onto which voxels an output was made."""
    if "like" not in made:
        return {"factor": recipe.factor}
    return {"like": _grid(made["like"])}


def _grid(said: Mapping[str, Any]) -> VoxelGrid:
    """Return a grid that attributes tell of."""
    size, origin = (triple(map(float, said[name])) for name in ("voxel_size", "origin"))
    unit = said["unit"]
    return VoxelGrid(triple(map(int, said["shape"])), size, origin, None if unit is None else str(unit))


def _axes(series: Sequence[tuple[str, int]], steps: Any) -> tuple[SeriesAxis, ...] | None:
    """Return the axes of a series with their steps, units and starts, where these are said."""
    if steps is None:
        return None
    return tuple(
        SeriesAxis(name, n, float(step), None if unit is None else str(unit), float(start))
        for (name, n), (step, unit, start) in zip(series, steps, strict=True)
    )


def asked_otherwise(was: Mapping[str, Any], given: Mapping[str, Any], called: Mapping[str, str]) -> list[str]:
    """Return which options that are given are others than an output was made with, as `differences` calls them.

    Only those that say so by themselves; what others come to depends on the input.
    """
    names = {place.rpartition(".")[2]: name for place, name in {**_NAMES, **called}.items()}
    plain = ("engine", "interpolation", "antialias", "boundary", "labels", "codec", "ome_zarr", "empty")
    return [f"{names[key]} {was[key]}, now {given[key]}" for key in plain if given.get(key, was[key]) != was[key]]


def as_called_then(made: Mapping[str, Any], codec: str | None) -> str | None:
    """Return the name of the codec that the user of an output meant: zstd was blosc's before there was another."""
    before = codec == "zstd" == _at(made, "storage.codec") and _at(made, "storage.plain") is None
    return "blosc-zstd" if before else codec


def _codec_name(made: Mapping[str, Any]) -> Any:
    """Return the name of an output's codec, or what stands there where it is none."""
    how = _at(made, "storage.codec"), _at(made, "storage.plain") is True
    return next((name for name, its in CODECS.items() if its == how), how[0])


def _identity(made: Mapping[str, Any]) -> Mapping[str, Any]:
    identity = _at(made, "input.identity")
    return identity if isinstance(identity, Mapping) else {}


_UNSAID = {"levels.further": 0, "input.series": [], "storage.ome_zarr": "0.5", "storage.empty": "write"}
"""What outputs of before there was more do not say."""


def _at(made: Any, place: str) -> Any:
    for name in place.split("."):
        made = made.get(name) if isinstance(made, Mapping) else None
    return _UNSAID.get(place) if made is None else made


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"({', '.join(map(_text, value))})"
    if value is None:
        return "none"
    if isinstance(value, Mapping):  # of `like`
        shape, size, origin = (_text(value.get(name)) for name in ("shape", "voxel_size", "origin"))
        return f"{shape} of {size} from {origin}"
    return number_text(value) if isinstance(value, float) else str(value)


def _how_far(made: Mapping[str, Any], said: str) -> str:
    """Return how far a volume is scaled in the user's own option, or as factors where that does not say it."""
    factor = _at(made, "factor")
    try:
        lengths = zip(_at(made, "input.voxel_size"), factor, _at(made, "input.shape"), strict=True)
        sides = {number_text(size / f) for axis, (size, f, n) in enumerate(lengths) if axis or n > 1}
        zooms = {number_text(1 / float(side)) for side in sides}
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        sides = zooms = set()
    if said == "zoom" and len(zooms) == 1:
        return f"zoom {zooms.pop()}"
    if said == "voxel_size" and len(sides) == 1:
        return f"voxel size {sides.pop()}"
    return f"factor {_text(factor)}"


@dataclass(frozen=True)
class Recipe:
    """What made a result, as its attributes tell."""

    factor: Float3
    """Output samples per input sample, z, y, x."""
    interpolation: str
    """Any that an engine has."""
    antialias: bool
    """Whether kernels were widened."""
    boundary: str
    """"nearest" or "constant"."""
    engine: str
    """"cle" or "exact"."""
    device_kind: str
    """"gpu" or "cpu"."""
    block: Index3
    """Shape of a full block."""
    shape: Index3
    """Shape of the source, of each of its volumes."""
    dtype: str
    """NumPy name of the source's dtype."""
    identity: Mapping[str, Any]
    """What tells the source from another or a later one."""
    complete: bool
    """Whether the result was written to its end."""
    series: tuple[tuple[str, int], ...] = ()
    """Name and length of each axis along which the source has several volumes."""
    axes: tuple[SeriesAxis, ...] | None = None
    """The same with what lies how far apart; None where that is not said, as by 0.1."""
    grid: VoxelGrid = VoxelGrid((1, 1, 1))  # noqa: RUF009 - frozen
    """Where the result's voxels lie."""
    labels: bool = False
    """Whether they are labels."""
    shift: Float3 = (0.0, 0.0, 0.0)
    """Output samples from where the source begins to where the result does, z, y, x."""
    further: tuple[Recipe, ...] = ()
    """What made the further levels, each of the one before."""

    @classmethod
    def from_provenance(cls, made: Mapping[str, Any], name: str) -> Recipe:
        """Return the recipe that `provenance` wrote; `name` is what the user called the output.

        Raises
        ------
        InputError
            If something in it is missing or of another kind.
        """
        try:
            recipe = cls(
                factor=triple(map(float, made["factor"])),
                interpolation=str(made["interpolation"]),
                antialias=bool(made["antialias"]),
                boundary=str(made["boundary"]),
                engine=str(made["engine"]),
                device_kind=str(made["device"]["kind"]),
                block=triple(map(int, made["block"])),
                shape=triple(map(int, made["input"]["shape"])),
                dtype=str(made["input"]["dtype"]),
                identity=dict(made["input"]["identity"]),
                complete=made["complete"] is True,
                series=(series := tuple((str(axis), int(n)) for axis, n in made["input"].get("series", ()))),
                axes=_axes(series, made["input"].get("steps")),
                grid=_grid(made["input"]),
                labels=made.get("labels") is True,
                shift=triple(map(float, made.get("like", {}).get("shift", (0, 0, 0)))),
            )
            like = _grid(made["like"]) if "like" in made else None
            base, factor = (recipe.grid, recipe.factor) if like is None else (like, (1.0, 1.0, 1.0))
            recipe = replace(recipe, grid=base.scaled(factor))
            recipe = replace(recipe, further=tuple(_further(recipe, base, factor, dict(made.get("levels", {})))))
            for level in (recipe, *recipe.further):
                level.check()
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise InputError(f"{name} does not say in its attributes how isovoxel made it: {what}") from error
        return recipe

    def check(self) -> None:
        """Raise a `ValueError` or a `TypeError` where a value makes no sense."""
        check_options(**{name: getattr(self, name) for name in CHOICES})
        if not all(0 < f < math.inf for f in self.factor):
            raise ValueError(f"its factor is {self.factor}")
        if not all(abs(shift) < MAX_SAMPLES for shift in self.shift):
            raise ValueError(f"its shift is {self.shift}")
        if min(*self.block, *self.shape, *(n for _, n in self.series)) < 1:
            raise ValueError(f"its blocks are {self.block} of {self.shape} voxels")
        if not isinstance(self.identity.get("path"), str | None):
            raise TypeError(f"its input is {self.identity['path']!r:.80}")

    def changes(self, source: Volume, *, elsewhere: bool) -> tuple[str, ...]:
        """Return what of a source's identity is not as it was: "size", "modification time", "metadata".

        Parameters
        ----------
        source
            The source as it is now.
        elsewhere
            Whether it may be a copy, whose modification time is another.
        """
        names = {"size": "size", "metadata": "metadata"} | ({} if elsewhere else {"mtime_ns": "modification time"})
        both = [key for key in names if key in self.identity and key in source.identity]
        return tuple(names[key] for key in both if self.identity[key] != source.identity[key])


def _further(recipe: Recipe, base: VoxelGrid, by: Float3, made: Mapping[str, Any]) -> Iterator[Recipe]:
    """Yield what made the further levels, whose sources are the result's own levels; see `level_grids`."""
    kinds, factors, blocks = (list(made.get(name, ())) for name in ("interpolation", "factor", "block"))
    grids = level_grids(base, by, len(kinds))
    for interpolation, factor, block, (grid, _) in zip(kinds, factors, blocks, grids, strict=True):
        yield replace(
            recipe,
            factor=triple(map(float, factor)),
            interpolation=str(interpolation),
            antialias=False,
            boundary="nearest",
            engine="exact",
            block=triple(map(int, block)),
            identity={},
            grid=grid,
            shift=(0.0, 0.0, 0.0),
        )
