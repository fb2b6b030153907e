"""Label images: nearest interpolation, which invents no label between two others.

Labels may be large. float32, in which a device computes, holds integers to 2^24 = 16,777,216 and rounds those beyond;
isovoxel brings each label through unchanged.
"""

import numpy as np
import zarr

import isovoxel


def main() -> None:
    """Scale labels just above 2^24, neighbours of which float32 cannot tell apart."""
    labels = np.zeros((8, 40, 40), np.uint32)
    labels[2:6, 5:20, 5:20] = 2**24 + 1
    labels[2:6, 20:35, 5:20] = 2**24 + 3
    labels[2:6, 5:35, 20:35] = 2**32 - 1

    result = isovoxel.scale(labels, "labels.zarr", factor=(4, 1, 1), interpolation="nearest", overwrite=True)
    scaled = np.asarray(zarr.open_array(result.path / "0", mode="r")[:])

    before, after = np.unique(labels, return_counts=True), np.unique(scaled, return_counts=True)
    for label, few, many in zip(after[0], before[1], after[1], strict=True):
        print(f"label {label:>10}: {few:>6} voxels before, {many:>6} after")
    assert (before[0] == after[0]).all()
    assert (after[1] == 4 * before[1]).all()
    assert (scaled == labels.repeat(4, axis=0)).all()


if __name__ == "__main__":
    main()
