"""From one OME-Zarr to another: voxel size, unit and position come along, nothing has to be said but the paths.

Here the input is an OME-Zarr 0.5 that isovoxel itself has written. Any other of version 0.4 or 0.5 will do.
"""

import zarr

import isovoxel
from isovoxel.demo import VOXEL_SIZE, blastocyst


def main() -> None:
    """Write a stack with its own voxel size as OME-Zarr, and scale that."""
    small = blastocyst((40, 200, 180))
    isovoxel.scale(
        small, "stack.zarr", factor=(1, 1, 1), input_voxel_size=VOXEL_SIZE, unit="micrometer", overwrite=True
    )
    result = isovoxel.scale("stack.zarr", "isotropic.zarr", overwrite=True)

    grid = result.plan.output
    print(f"{grid.shape} voxels of {grid.voxel_size} {grid.unit}, the first one centred at {grid.origin}")
    assert grid.shape == (198, 200, 180)
    assert grid.voxel_size == (0.202, 0.202, 0.202)

    # Whoever reads zarr can read it.
    array = zarr.open_group("isotropic.zarr", mode="r")["0"]
    print(f"zarr-python: {array.shape}, {array.dtype}, chunks {array.chunks}, shards {array.shards}")
    assert array.shape == grid.shape


if __name__ == "__main__":
    main()
