"""The memory model: plain sums, tested with primes so that every term shows."""

import pytest

from isovoxel.geometry.grid import Index3
from isovoxel.planning.memory import cle_cost, exact_cost, human_bytes
from isovoxel.planning.model import DeviceLimits
from strategies import GIB, device_limits

PRIMES = {"read": (2, 3, 5), "padded": (3, 5, 7), "written": (7, 11, 13), "half": 0, "decode": 1009, "encode": 2003}
READ, PADDED, WRITTEN = 30, 105, 1001
GPU, CPU = device_limits(), device_limits(kind="cpu")


def test_a_block_of_level_1_counts_wherever_the_output_does() -> None:
    """It lies behind the output: on the host, in both lanes of a GPU, and in what a driver keeps for pinned memory."""
    exact = EXACT | {"passes": (), "itemsize": 2, "sum_bytes": 4, "moves": False}
    for cost, options in (
        (cle_cost, PRIMES | {"itemsize": 2, "interpolation": "linear"}),
        (exact_cost, exact),
    ):
        without, with_it = (cost(**options | {"half": half}, device=GPU, overlap=False) for half in (0, 101))
        assert with_it.device - without.device == 2 * 101
        assert with_it.host - without.host == with_it.pinned - without.pinned == 101


@pytest.mark.parametrize(("device", "lanes"), [(GPU, 2), (CPU, 1)])
@pytest.mark.parametrize("itemsize", [1, 2, 4])
def test_a_linear_block_counts_voxels_twice_buffer_image_output_and_matrix(
    itemsize: int, device: DeviceLimits, lanes: int
) -> None:
    """Linear holds 8 bytes per input voxel, 4 per output voxel, a matrix, and the voxels of a block or two."""
    cost = cle_cost(**PRIMES, itemsize=itemsize, interpolation="linear", device=device, overlap=False)
    assert cost.device == 8 * PADDED + 4 * WRITTEN + 64 + lanes * itemsize * (READ + WRITTEN)
    assert cost.largest.nbytes == 4 * WRITTEN
    assert cost.image == (3, 5, 7)
    assert cost.host == itemsize * READ + itemsize * WRITTEN + 1009 + 2003


def test_a_nearest_block_has_no_image() -> None:
    """Nearest reads the buffer itself."""
    cost = cle_cost(**PRIMES, itemsize=2, interpolation="nearest", device=CPU, overlap=False)
    assert cost.device == 4 * PADDED + 4 * WRITTEN + 64 + 2 * (READ + WRITTEN)
    assert cost.in_place == 2 * (READ + WRITTEN)
    assert cost.image is None


EXACT = {"read": (2, 3, 5), "written": (7, 11, 13), "half": 0, "widths": (17, 19, 23), "decode": 1009, "encode": 2003}


@pytest.mark.parametrize(("device", "lanes"), [(GPU, 2), (CPU, 1)])
@pytest.mark.parametrize("itemsize", [1, 2, 4])
@pytest.mark.parametrize("sum_bytes", [4, 8])
@pytest.mark.parametrize(
    ("passes", "between", "rows"),
    [
        # y first: (2, 11, 5) voxels; then x: (2, 11, 13).
        (((1,), (2,), (0,)), [2 * 11 * 5, 2 * 11 * 13], [(11, 19), (13, 23), (7, 17)]),
        # y and x at once: nothing lies between them.
        (((1, 2), (0,)), [2 * 11 * 13], [(11, 19), (13, 23), (7, 17)]),
        (((0,), (1,)), [7 * 3 * 5], [(7, 17), (11, 19)]),
        (((2,),), [], [(13, 23)]),
        (((0,),), [], [(7, 17)]),
        # What stays as it is is only copied.
        ((), [], []),
    ],
)
def test_an_exact_block_counts_what_each_pass_leaves(
    passes: tuple[tuple[int, ...], ...],
    between: list[int],
    rows: list,
    sum_bytes: int,
    itemsize: int,
    device: DeviceLimits,
    lanes: int,
) -> None:
    """Sums after each pass but the last, the tables, and the voxels of a block in their dtype, of two on a GPU."""
    cost = exact_cost(
        **EXACT, passes=passes, itemsize=itemsize, sum_bytes=sum_bytes, moves=False, device=device, overlap=False
    )
    tables = lanes * sum(m * (4 + width * sum_bytes) for m, width in rows)
    assert cost.device == lanes * itemsize * (READ + WRITTEN) + sum_bytes * sum(between) + tables
    assert [a.nbytes for a in cost.allocations if a.name.startswith("sums")] == [sum_bytes * n for n in between]
    assert cost.host == itemsize * READ + itemsize * WRITTEN + 1009 + 2003
    assert cost.image is None
    assert cost.excess(device_limits(image_shape=(1, 1, 1), buffer_voxels=1)) == ""


@pytest.mark.parametrize("itemsize", [1, 8])
@pytest.mark.parametrize(("widths", "row"), [((1, 1, 1), 3 * 4), ((2, 2, 2), 4 + 2 * 8)])
def test_an_exact_block_that_moves_voxels_has_one_pass(itemsize: int, widths: Index3, row: int) -> None:
    """Input, output, and for each row of an axis three indices (mode) or an index and the weights (smooth)."""
    own = EXACT | {"passes": ((1, 2), (0,)), "widths": widths, "itemsize": itemsize}
    cost = exact_cost(**own, sum_bytes=8, moves=True, device=GPU, overlap=False)
    assert cost.device == 2 * (itemsize * READ + itemsize * WRITTEN + row * (7 + 11 + 13))


def test_an_overlapped_block_holds_its_input_twice_more() -> None:
    """With map_overlap dask's block and the block joined with its halo lie beside what the device reaches."""
    exact = {"passes": ((0,), (1,), (2,)), "sum_bytes": 4, "moves": False}
    for cost, options in ((cle_cost, PRIMES | {"interpolation": "linear"}), (exact_cost, EXACT | exact)):
        plain, joined = (cost(**options, itemsize=2, device=GPU, overlap=overlap) for overlap in (False, True))
        assert joined.host - plain.host == 2 * 2 * READ


def test_a_gpu_keeps_room_for_what_the_host_has_pinned() -> None:
    """Each block in flight takes its voxels on the device once more; on a CPU they are the host's already."""
    for cost, options in (
        (cle_cost, PRIMES | {"interpolation": "linear"}),
        (exact_cost, EXACT | {"passes": ((0,),), "sum_bytes": 4, "moves": False}),
    ):
        on_gpu, on_cpu = (cost(**options, itemsize=2, device=device, overlap=False) for device in (GPU, CPU))
        assert on_gpu.on_device(5) == on_gpu.device + 5 * 2 * (READ + WRITTEN)
        assert on_cpu.on_device(5) == on_cpu.device
        assert on_gpu.excess(device_limits(allowed=on_gpu.on_device(5)), 5) == ""
        assert "are allowed" in on_gpu.excess(device_limits(allowed=on_gpu.on_device(5) - 1), 5)


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        (
            {"image_shape": (2, 9, 9)},
            r"a 3-D image of \(3, 5, 7\) voxels, but test device takes at most \(2, 9, 9\)",
        ),
        ({"buffer_voxels": 1000}, "1,001 voxels in one buffer"),
        ({"largest_allocation": 4003}, "3.9 KiB for its output buffer"),
        ({"allowed": 6900}, "6.8 KiB on test device, of which 6.7 KiB are allowed"),
    ],
)
def test_each_limit_of_a_device_is_named_with_both_numbers(limit: dict, says: str) -> None:
    """What does not fit says which limit, what it takes, and what there is."""
    cost = cle_cost(**PRIMES, itemsize=2, interpolation="linear", device=CPU, overlap=False)
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
