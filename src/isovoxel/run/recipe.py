"""What made an output? Written into its attributes, and read back to compute parts of it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isovoxel.errors import InputError
from isovoxel.geometry.box import Index3
from isovoxel.geometry.grid import Float3
from isovoxel.planning.plan import Plan
from isovoxel.version import __version__
from isovoxel.volumes.base import Volume


def provenance(planned: Plan, volume: Volume) -> dict[str, Any]:
    """Return what made an output, for its attributes."""
    grid = planned.source.grid
    return {
        "version": __version__,
        "engine": planned.engine,
        "device": {"name": planned.device.name, "kind": planned.device.kind},
        "interpolation": planned.interpolation,
        "antialias": planned.antialias,
        "boundary": planned.boundary,
        "factor": list(planned.factor),
        "block": list(planned.block_shape),
        "input": {
            "name": volume.name,
            "kind": volume.kind,
            "identity": dict(volume.identity),
            "shape": list(grid.shape),
            "dtype": volume.dtype.name,
            "voxel_size": list(grid.voxel_size),
            "origin": list(grid.origin),
            "unit": grid.unit,
        },
        "fingerprint": planned.fingerprint,
    }


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
    """Shape of the source."""
    dtype: str
    """NumPy name of the source's dtype."""
    identity: Mapping[str, Any]
    """What tells the source from another or a later one."""
    complete: bool
    """Whether the result was written to its end."""

    @classmethod
    def from_provenance(cls, made: Mapping[str, Any], name: str) -> Recipe:
        """Return the recipe that `provenance` wrote; `name` is what the user called the output.

        Raises
        ------
        InputError
            If something in it is missing or of another kind.
        """
        try:
            fz, fy, fx = (float(f) for f in made["factor"])
            z, y, x = (int(n) for n in made["block"])
            nz, ny, nx = (int(n) for n in made["input"]["shape"])
            return cls(
                factor=(fz, fy, fx),
                interpolation=str(made["interpolation"]),
                antialias=bool(made["antialias"]),
                boundary=str(made["boundary"]),
                engine=str(made["engine"]),
                device_kind=str(made["device"]["kind"]),
                block=(z, y, x),
                shape=(nz, ny, nx),
                dtype=str(made["input"]["dtype"]),
                identity=dict(made["input"]["identity"]),
                complete=bool(made["complete"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise InputError(f"{name} does not say in its attributes how isovoxel made it: {what}") from error

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
