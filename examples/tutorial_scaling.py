"""The exercise of clEsperanto's scaling tutorial, answered, and then made to finish.

The tutorial scales a stack with ``cle.scale`` and asks: at which zoom factor does the program crash? How large would
the image be? How much memory does your graphics card have?

So that it crashes soon and on every machine, the graphics card here is a small one: the CPU through PoCL, told to
have 1 GiB. It refuses what exceeds its limits as a card does. Which limit that is may surprise: not the memory, of
which most is still free, but the largest single allocation, a quarter of it, which the output alone exceeds.
"""

import os

# PoCL reads it, in GiB, when OpenCL is first asked for devices.
os.environ["POCL_MEMORY_LIMIT"] = "1"

import pyclesperanto_prototype as cle
import zarr

import isovoxel
from isovoxel.demo import VOXEL_SIZE, blastocyst


def main() -> None:
    """Ask, crash, and finish."""
    stack = blastocyst()
    card = next(device for device in isovoxel.devices() if device.kind == "cpu")
    limits = isovoxel.limits(stack, input_voxel_size=VOXEL_SIZE, device=str(card.index))
    zoom, image = limits.first.zoom, limits.first.shape
    print(f"At which zoom factor does the program crash?      {zoom:.3f}: {limits.first.limit}")
    print(f"How large would the image be?                     {image} voxels, {limits.first.needed}")
    print(f"How much memory does your graphics card have?     {card.memory / 2**30:.1f} GiB")
    print(f"And how much of it does it give in one piece?     {card.largest_allocation / 2**30:.2f} GiB")

    # As in the tutorial. The factor of each axis is its voxel size times the zoom.
    z, y, x = (size * zoom for size in VOXEL_SIZE)
    cle.select_device(card.name)
    try:
        cle.scale(stack, factor_z=z, factor_y=y, factor_x=x, auto_size=True, linear_interpolation=True)
    except Exception as error:  # noqa: BLE001 - which one it is depends on the driver
        print(f"cle.scale in one piece:  {error}")
    else:
        raise SystemExit(f"cle.scale finished at zoom {zoom}, which isovoxel.limits had not foretold")

    # The same device, the same zoom, block by block.
    result = isovoxel.scale(
        stack,
        "isotropic.zarr",
        zoom=zoom,
        input_voxel_size=VOXEL_SIZE,
        unit="micrometer",
        device=str(card.index),
        overwrite=True,
    )
    scaled = zarr.open_group(result.path, mode="r")["0"]
    print(f"isovoxel:  {scaled.shape} voxels in {result.plan.n_blocks} blocks")
    assert scaled.shape == image


if __name__ == "__main__":
    main()
