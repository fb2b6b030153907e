"""Label images: voxels are moved, never mixed, and keep every bit.

With `labels=True` (or where an OME-Zarr says that it is an image of labels) isovoxel takes the nearest voxel. That is
right where labels grow. Where they shrink it takes one voxel of many, and thin structures fall apart; there
`interpolation="mode"` takes the label that most of them have.
"""

import numpy as np
import zarr

import isovoxel


def main() -> None:
    """Grow labels that no float holds, and shrink them again."""
    labels = np.zeros((8, 40, 40), np.uint64)
    labels[2:6, 5:20, 5:20] = 2**53 + 1
    labels[2:6, 20:35, 5:20] = 2**53 + 2
    labels[2:6, 5:35, 20:35] = 2**64 - 1

    result = isovoxel.scale(labels, "labels.zarr", factor=(4, 1, 1), labels=True, overwrite=True)
    scaled = np.asarray(zarr.open_array(result.path / "0", mode="r")[:])

    before, after = np.unique(labels, return_counts=True), np.unique(scaled, return_counts=True)
    for label, few, many in zip(after[0], before[1], after[1], strict=True):
        print(f"label {label:>20}: {few:>6} voxels before, {many:>6} after")
    assert (before[0] == after[0]).all()
    assert (scaled == labels.repeat(4, axis=0)).all()
    assert isovoxel.open_volume(result.path).labels

    # A speck in the middle of each 5 x 5 voxels: nearest sees nothing else, the majority does not see it.
    labels[:, 2::5, 2::5] = 9
    for kernel in ("nearest", "mode"):
        small = isovoxel.scale(
            labels, "small.zarr", factor=(1, 0.2, 0.2), labels=True, interpolation=kernel, overwrite=True
        )
        found = np.unique(np.asarray(zarr.open_array(small.path / "0", mode="r")[:]))
        print(f"shrunk by {kernel}: {len(found)} labels, {', '.join(str(label) for label in found)}")


if __name__ == "__main__":
    main()
