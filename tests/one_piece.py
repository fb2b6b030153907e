"""Scale a stack as a user of cle does, in one piece, and print what came of it as JSON.

Run as ``python one_piece.py STACK.npy Z,Y,X ZOOM linear|nearest`` (voxel size and zoom as in clEsperanto's tutorials),
in a process of its own: a crash of the device's driver must not take the tests with it.
"""

from __future__ import annotations

import json
import sys

import numpy as np


def main(path: str, voxel_size: str, zoom: str, interpolation: str) -> None:
    """Scale, fetch the result, and say how it went."""
    import pyclesperanto_prototype as cle

    fz, fy, fx = (float(size) * float(zoom) for size in voxel_size.split(","))
    try:
        scaled = cle.scale(
            np.load(path),
            factor_x=fx,
            factor_y=fy,
            factor_z=fz,
            auto_size=True,
            linear_interpolation=interpolation == "linear",
        )
        said = {"ok": True, "shape": cle.pull(scaled).shape, "error": ""}
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what a user would see
        said = {"ok": False, "shape": None, "error": str(error)}
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
