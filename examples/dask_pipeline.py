"""Scaling as one step of a dask pipeline: subtract the background, scale, threshold, count.

`isovoxel.scale_array` is lazy, as everything here is: voxels are read, scaled and counted block by block when the last
line computes the number, and at no time does the scaled volume lie in memory as a whole.
"""

import dask.array as da

import isovoxel
from isovoxel.demo import VOXEL_SIZE, blastocyst


def main() -> None:
    """Measure the volume of all nuclei on isotropic voxels."""
    stack = da.from_array(blastocyst(), chunks=(32, 128, 128))

    background = da.percentile(stack[:, ::16, ::16].ravel(), 50)
    signal = da.clip(stack - background, 0, None).astype("float32")

    zoom = 2
    isotropic = isovoxel.scale_array(signal, [size * zoom for size in VOXEL_SIZE], chunks=(64, 64, 64))
    nuclei = isotropic > 30
    print(isotropic)

    voxels = int(nuclei.sum().compute())
    print(f"{voxels} voxels of (1/{zoom} micrometer)³ are nuclei: {voxels / zoom**3:,.0f} cubic micrometers")
    assert isotropic.shape == (172, 160, 159)
    assert 10_000 < voxels / zoom**3 < 100_000


if __name__ == "__main__":
    main()
