"""The memory model: plain sums, tested with primes so that every term shows."""

import pytest

from isovoxel.planning.cost import cle_cost, human_bytes
from strategies import GIB, device_limits

PRIMES = {"read": (2, 3, 5), "padded": (3, 5, 7), "written": (7, 11, 13), "decode": 1009, "encode": 2003}
READ, PADDED, WRITTEN = 30, 105, 1001


@pytest.mark.parametrize("itemsize", [1, 2, 4])
def test_a_linear_block_counts_buffer_image_output_and_matrix(itemsize: int) -> None:
    """Linear holds 8 bytes per input voxel and 4 per output voxel on the device, and a matrix."""
    cost = cle_cost(**PRIMES, itemsize=itemsize, interpolation="linear", overlap=False)
    assert cost.device == 8 * PADDED + 4 * WRITTEN + 64
    assert cost.largest.name == "output buffer"
    assert cost.image == (3, 5, 7)
    assert cost.host == 4 * PADDED + 4 * WRITTEN + itemsize * READ + itemsize * WRITTEN + 2003


def test_a_nearest_block_has_no_image() -> None:
    """Nearest reads the buffer itself."""
    cost = cle_cost(**PRIMES, itemsize=2, interpolation="nearest", overlap=False)
    assert cost.device == 4 * PADDED + 4 * WRITTEN + 64
    assert cost.image is None


def test_an_overlapped_block_holds_its_input_once_more() -> None:
    """With map_overlap the block joined with its halo lies beside what dask joined it from."""
    plain = cle_cost(**PRIMES, itemsize=2, interpolation="linear", overlap=False)
    joined = cle_cost(**PRIMES, itemsize=2, interpolation="linear", overlap=True)
    assert joined.host - plain.host == 2 * READ


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        (
            {"image_shape": (2, 9, 9)},
            r"a 3-D image of \(3, 5, 7\) voxels, but test device takes at most \(2, 9, 9\)",
        ),
        ({"buffer_voxels": 1000}, "1,001 voxels in one buffer"),
        ({"largest_allocation": 4003}, "3.9 KiB for its output buffer"),
        ({"allowed": 4900}, "4.8 KiB on test device, of which 4.8 KiB are allowed"),
    ],
)
def test_each_limit_of_a_device_is_named_with_both_numbers(limit: dict, says: str) -> None:
    """What does not fit says which limit, what it takes, and what there is."""
    cost = cle_cost(**PRIMES, itemsize=2, interpolation="linear", overlap=False)
    assert cost.excess(device_limits()) == ""
    assert __import__("re").search(says, cost.excess(device_limits(**limit)))


def test_sizes_are_shown_in_binary_units() -> None:
    """Sizes for people have one decimal and a unit of their order."""
    assert [human_bytes(n) for n in (0, 1023, 1024, 5 * GIB, 2**60)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "5.0 GiB",
        "1.0 EiB",
    ]
