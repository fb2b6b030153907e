"""Compare boxes of a result with the reference, and bound the error that an engine's precision explains."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isovoxel.engines.reference import Expected, expected, reference_labels
from isovoxel.execution.recipe import Recipe
from isovoxel.geometry.grid import Box, Index3, triple
from isovoxel.geometry.resampling import accumulator
from isovoxel.planning.model import MOVES
from isovoxel.readers.base import Volume

Floats = NDArray[np.float64]

SIDE = 8
"""Voxels per side of a sampled box."""
FLOAT_ERROR = 2e-6
"""Error that sums in float32 may leave, as a share of what they are made of: also how near to a tie is one."""
DOUBLE_ERROR = 2.0**-14
"""Error that sums in float64 may leave, in grey levels of an integer of 32 bits."""
ROUNDINGS = 6
"""How often a voxel is rounded beside once for each sample that it weighs: its weights, and between three passes."""
LEAST_FLOAT = {"cpu": 2.0**-149, "gpu": 2.0**-126}
"""The smallest float32 that a kind of device tells from 0: a GPU need not know those of fewer digits."""
POSITION_ERROR = 2.0**-22
"""Relative error that float32 arithmetic may leave of a position."""
_FLOAT32 = (float(np.finfo(np.float32).min), float(np.finfo(np.float32).max))
VOXEL_BYTES = 48
"""Bytes that computing a box holds of each input voxel beside the voxel itself: float64 values, magnitudes, sums."""
TEXTURE_BITS = 8
"""Fractional bits of a GPU texture unit's weights."""
MOST_DRAWN = 2**16
"""Of how many places at most a random order is kept; of more, each is drawn by itself."""
TURNS = (*("corner", "face", "face") * 5, "anywhere")
"""From which stream the next boxes come."""


def _compare(source: Volume, got: NDArray[Any], recipe: Recipe, box: Box) -> tuple[Floats, Floats, Floats | float]:
    """Return the error of each voxel, what rounding explains of it, and what the engine's precision does beyond that.

    All of it by what the voxel itself is made of: beside one of 3e38 a wrong one of 3 still shows.
    """
    if recipe.interpolation in MOVES:
        labels = reference_labels(
            source.read, source.shape, recipe.factor, box, recipe.interpolation, recipe.boundary, shift=recipe.shift
        )
        # Labels are right or wrong; how far two of them are apart means nothing, but that they differ must show.
        same = _same(got, labels) | _tied(source, got, recipe, box)
        with np.errstate(invalid="ignore"):
            apart = np.maximum(1.0, np.abs(np.nan_to_num(got.astype(np.float64) - labels.astype(np.float64))))
        return np.where(same, 0.0, apart), np.zeros(box.shape), 0.0
    wanted = expected(
        source.read,
        source.shape,
        recipe.factor,
        box,
        recipe.interpolation,
        recipe.boundary,
        antialias=recipe.antialias,
        shift=recipe.shift,
    )
    # Finite values end where the range of the dtype does.
    low, high = (np.iinfo(got.dtype).min, np.iinfo(got.dtype).max) if got.dtype.kind in "iu" else _FLOAT32
    real = np.where(np.isfinite(wanted.values), np.clip(wanted.values, low, high), wanted.values)
    with np.errstate(invalid="ignore"):  # of NaN that signal
        error = _difference(got.astype(np.float64), real)
    rounding = _rounding(got.dtype, real)
    # cle computes in float32 whatever the dtype.
    if recipe.engine == "exact" and accumulator(got.dtype) == np.float64:
        return error, rounding + np.maximum(DOUBLE_ERROR, _of_sums(wanted, 2.0**-53)), 0.0
    rounding += np.maximum(FLOAT_ERROR * wanted.magnitude, _of_sums(wanted, 2.0**-24))
    if got.dtype.kind == "f":
        rounding += (ROUNDINGS + wanted.terms) * LEAST_FLOAT[recipe.device_kind]
    if recipe.engine == "exact":
        return error, rounding, 0.0
    around = _around_samples(source, recipe, box)
    # Its texture unit takes samples without weight as well, and 0 times NaN is NaN.
    error = np.where(~around.finite & ~np.isfinite(got), 0.0, error)
    # Each axis rounds its position, in float32 within the block's input, and on a GPU its weight.
    step = _position_error(recipe) + (2.0**-TEXTURE_BITS if recipe.device_kind == "gpu" else 0.0)
    return error, rounding + FLOAT_ERROR * around.largest, 3 * step * around.range


class Compared(NamedTuple):
    """What was found of a box."""

    voxels: int
    """Voxels compared."""
    wrong: int
    """Those that differ by more than the engine's stated precision."""
    first_wrong: Index3 | None
    """The first of them."""
    off: int
    """Those that differ by more than rounding explains."""
    largest: float
    """Largest error."""
    total: float
    """Sum of all errors."""
    across: float | None
    """Largest change of the error across a block face, None where the box lies on none."""
    within: float
    """The same inside blocks."""
    jump_allowed: float
    """What two neighbours may differ in error at most."""


def compare_box(source: Volume, got: NDArray[Any], recipe: Recipe, box: Box, room: int | None) -> Compared:
    """Compare a box of a level with the reference.

    Parameters
    ----------
    source
        What the level was made of.
    got
        The box's voxels.
    recipe
        What made the level.
    box
        Which of its voxels.
    room
        Bytes that computing it may hold; a box that takes more is computed in pieces. None for as many as it takes.
    """
    error, rounding, precise = _compare_in_pieces(source, got, recipe, box, room)
    size = np.abs(error)
    bad = size > rounding + precise
    first_wrong = None
    if bad.any():
        z, y, x = (int(a + i) for a, i in zip(box.start, np.argwhere(bad)[0], strict=True))
        first_wrong = (z, y, x)
    across, within = error_jumps(error, box, recipe.block)
    return Compared(
        voxels=box.size,
        wrong=int(bad.sum()),
        first_wrong=first_wrong,
        off=int((size > rounding).sum()),
        largest=float(size.max()),
        total=float(size.sum()),
        across=across,
        within=within,
        jump_allowed=2 * float((rounding + precise).max()),
    )


def _compare_in_pieces(
    source: Volume, got: NDArray[Any], recipe: Recipe, box: Box, room: int | None
) -> tuple[Floats, Floats, Floats]:
    """Return what `_compare` does, of pieces that are small enough."""
    error, rounding, precise = (np.empty(box.shape) for _ in range(3))
    for piece in _pieces(source, recipe, box, room):
        part = piece.slices_from(box.start)
        error[part], rounding[part], precise[part] = _compare(source, got[part], recipe, piece)
    return error, rounding, precise


def _pieces(source: Volume, recipe: Recipe, box: Box, room: int | None) -> Iterator[Box]:
    """Yield a box, or cubes of it of which each takes no more than there is room for."""
    side = SIDE
    while room is not None and side > 1 and bytes_of(source, recipe, side) > room:
        side //= 2
    return iter([box]) if side == SIDE else box.tiles((side, side, side))


def bytes_of(source: Volume, recipe: Recipe, side: int) -> int:
    """Return the most bytes that computing a cube of so many output voxels holds, all kernels' support included."""
    voxels = 1
    for n, f in zip(source.shape, recipe.factor, strict=True):
        support = math.ceil(3 / min(1.0, f)) + 1
        voxels *= min(n, math.ceil(side / f) + 2 * support)
    return voxels * (VOXEL_BYTES + source.dtype.itemsize)


def _of_sums(wanted: Expected, rounding: float) -> Floats:
    """Return the most by which sums may be off where each step rounds by such a share of what is summed."""
    error: Floats = (ROUNDINGS + wanted.terms) * rounding * wanted.magnitude
    return error


class _Around(NamedTuple):
    """The samples around the position of each output voxel, two on either side along each axis."""

    range: Floats
    """Largest difference between two of them that are finite."""
    largest: Floats
    """Largest magnitude of a finite one."""
    finite: NDArray[np.bool_]
    """Whether all are finite."""


def _around_samples(source: Volume, recipe: Recipe, box: Box) -> _Around:
    sides = []
    for start, stop, n, f in zip(box.start, box.stop, source.shape, recipe.factor, strict=True):
        below = np.floor((np.arange(start, stop) + 0.5) / f - 0.5).astype(np.int64)
        sides.append([np.clip(below + k, 0, n - 1) for k in (-1, 0, 1, 2)])
    first, last = ([int(end(np.array(axis))) for axis in sides] for end in (np.min, np.max))
    beyond = [n + 1 for n in last]
    with np.errstate(invalid="ignore"):
        data = source.read(Box(triple(first), triple(beyond), box.volume)).astype(np.float64)
    finite = np.isfinite(data)
    low, high, whole = np.where(finite, data, np.inf), np.where(finite, data, -np.inf), finite
    for axis, (indices, base) in enumerate(zip(sides, first, strict=True)):
        low, high, whole = (
            end.reduce([np.take(values, index - base, axis) for index in indices])
            for end, values in ((np.minimum, low), (np.maximum, high), (np.logical_and, whole))
        )
    if recipe.boundary == "constant":  # 0 around the volume is a neighbour like any other
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    some = low <= high
    low, high = np.where(some, low, 0.0), np.where(some, high, 0.0)
    return _Around(high - low, np.maximum(-low, high), whole)


def _position_error(recipe: Recipe) -> float:
    """Return by how much float32 may misplace a sample in the input of a block, in input voxels."""
    return POSITION_ERROR * max(b / min(1.0, f) for b, f in zip(recipe.block, recipe.factor, strict=True))


def _tied(source: Volume, got: NDArray[Any], recipe: Recipe, box: Box) -> NDArray[np.bool_]:
    """Tell which voxels are the other neighbour at a tie, which cle may take where it is asked for cle.scale's rim."""
    tied = np.zeros(box.shape, np.bool_)
    if recipe.engine != "cle" or recipe.boundary != "constant":
        return tied
    shift = _position_error(recipe)
    sides = []
    for start, stop, n, f in zip(box.start, box.stop, source.shape, recipe.factor, strict=True):
        position = (np.arange(start, stop) + 0.5) / f
        sides.append([np.clip(np.floor(position + s).astype(int), 0, n - 1) for s in (-shift, shift)])
    low = [int(below.min()) for below, _ in sides]
    high = [int(above.max()) + 1 for _, above in sides]
    data = source.read(Box(triple(low), triple(high), box.volume))
    for chosen in itertools.product(*sides):
        tied |= _same(got, data[np.ix_(*(index - first for index, first in zip(chosen, low, strict=True)))])
    return tied


def _same(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell where two arrays hold the same; no number is the same as no number."""
    same: NDArray[np.bool_] = (one == other) | (np.isnan(one) & np.isnan(other))
    return same


def _difference(got: Floats, expected: Floats) -> Floats:
    """Return got - expected; 0 where both are the same infinity or both no number, infinite where only one is."""
    with np.errstate(invalid="ignore"):
        error = np.where(_same(got, expected), 0.0, got - expected)
    return np.where(np.isnan(error), np.inf, error)


def _rounding(dtype: np.dtype[Any], expected: Floats) -> Floats:
    """Return by how much each value changes at most when it is rounded to a dtype."""
    if dtype.kind == "f":
        rounding: Floats = np.abs(np.where(np.isfinite(expected), expected, 0.0)) * 2.0**-24
        return rounding
    return np.full(expected.shape, 0.5)


def error_jumps(error: Floats, box: Box, block: Index3) -> tuple[float | None, float]:
    """Return the largest change of the error between neighbours across block faces, if there are any, and inside."""
    across, within = None, 0.0
    for axis in range(3):
        with np.errstate(invalid="ignore"):  # between two infinite errors
            change = np.abs(np.diff(error, axis=axis))
        if not change.size:
            continue
        change = np.where(np.isnan(change), np.inf, change)
        at_face = (np.arange(box.start[axis] + 1, box.stop[axis]) % block[axis]) == 0
        per_plane = np.moveaxis(change, axis, 0).reshape(len(at_face), -1).max(axis=1)
        if at_face.any():
            across = max(across or 0.0, float(per_plane[at_face].max()))
        within = max(within, float(per_plane[~at_face].max(initial=0.0)))
    return across, within


def sample_boxes(shape: Index3, block: Index3, rng: np.random.Generator) -> Iterator[Box]:
    """Yield boxes of a volume without end, from three streams in turn, each at random and none twice.

    They lie around the corners of blocks (where a box meets eight blocks and twelve faces at once) and then their
    edges, around their faces, and anywhere. 400 boxes meet every corner and every face of 64 blocks, those at the
    volume's rim among them.
    """
    corners = _lattice(shape, block, rng, (3, 2))
    faces = _lattice(shape, block, rng, (1,))
    anywhere: Iterator[list[int]] = ([int(rng.integers(0, n)) for n in shape] for _ in itertools.count())
    streams = {"corner": corners, "face": faces, "anywhere": anywhere}
    for turn in itertools.cycle(TURNS):
        centre = next(streams[turn], None)
        at = list(zip(next(anywhere) if centre is None else centre, shape, strict=True))
        start = [min(max(0, c - SIDE // 2), max(0, n - SIDE)) for c, n in at]
        yield Box(triple(start), triple(min(n, a + SIDE) for a, n in zip(start, shape, strict=True)))


def _lattice(shape: Index3, block: Index3, rng: np.random.Generator, kinds: Sequence[int]) -> Iterator[list[int]]:
    """Yield a place on each corner (3), edge (2) or face (1) of the blocks: the number says along how many axes."""
    cuts = [[*range(0, n, b), n] for n, b in zip(shape, block, strict=True)]
    for kind in kinds:
        # Along the axes where a place is not at a cut it lies somewhere between two.
        choices = [
            [len(c) if axis in at else len(c) - 1 for axis, c in enumerate(cuts)]
            for at in itertools.combinations(range(3), kind)
        ]
        ways = list(itertools.combinations(range(3), kind))
        ends = np.cumsum([math.prod(counts) for counts in choices])
        total = int(ends[-1])
        order = rng.permutation(total) if total <= MOST_DRAWN else rng.integers(0, total, MOST_DRAWN)
        for index in order:
            way = int(np.searchsorted(ends, index, side="right"))
            place = np.unravel_index(int(index) - (int(ends[way - 1]) if way else 0), choices[way])
            centre = []
            for axis, i in enumerate(place):
                cut = cuts[axis]
                centre.append(cut[i] if axis in ways[way] else int(rng.integers(cut[i], cut[i + 1])))
            yield centre
