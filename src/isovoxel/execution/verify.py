"""Verify a result: boxes of it are computed again from the source, in float64.

1. Every shard must be there.
2. Boxes come from three streams in turn, each at random and none twice: around the corners of blocks (where a box
   meets eight blocks and twelve faces at once) and then their edges, around their faces, and anywhere. 400 boxes
   meet every corner and every face of 64 blocks, those at the volume's rim among them.
3. Each is computed by the `reference` engine from the source, and compared: how far off, how many voxels by more than
   rounding, and how much the error jumps from voxel to voxel across block faces, against inside blocks.

4. So is each further level, in fewer boxes, from the level before it: what it was made from.

Only the sampled boxes and the input they come from are read, so a terabyte is verified as fast as a thumbnail.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from isovoxel.errors import DoesNotFitError, InputError, InputUnavailableError
from isovoxel.execution.comparison import SIDE, bytes_of, compare_in_pieces, error_jumps
from isovoxel.execution.events import Reading
from isovoxel.execution.recipe import Recipe
from isovoxel.geometry.axis import ceil_div
from isovoxel.geometry.box import Box, Index3
from isovoxel.planning.memory import human_bytes
from isovoxel.planning.model import HostLimits
from isovoxel.readers.base import Volume

Floats = NDArray[np.float64]

FURTHER_SHARE = 8
"""A further level is compared in one box for so many of the full one, as it has an eighth of its voxels."""
MOST_DRAWN = 2**16
"""Of how many places at most a random order is kept; of more, each is drawn by itself."""
TURNS = (*("corner", "face", "face") * 5, "anywhere")
"""From which stream the next boxes come."""


@dataclass(frozen=True)
class Verdict:
    """What was found."""

    samples: int
    """Boxes drawn."""
    voxels: int
    """Voxels compared."""
    largest_error: float
    """Largest difference from the reference, in grey levels (or in the dtype's unit)."""
    mean_error: float
    """Mean difference."""
    off_share: float
    """Share of voxels that differ by more than rounding explains: in the sums, and to the output's dtype."""
    off_allowed: bool
    """Whether the engine states a precision coarser than rounding, so that such voxels are to be expected."""
    wrong: int
    """Voxels that differ by more than the engine's stated precision: 0 in a right result."""
    first_wrong: Index3 | None
    """The first of them."""
    faces: int
    """Boxes that lie on a face between two blocks."""
    face_jump: float
    """Largest change of the error from one voxel to the next across a block face."""
    inner_jump: float
    """The same inside blocks."""
    jump_allowed: float
    """What two neighbours may differ in error at most, by the engine's stated precision."""
    missing_shards: int
    """Shards of the result that are not there."""
    unreadable: int
    """Boxes of the result that cannot be read, for a file in their way is damaged."""
    source_changes: tuple[str, ...]
    """What of the source is not as it was when the result was made, such as "size"."""
    levels: int = 1
    """How many levels were compared."""
    first_wrong_level: int = 0
    """On which of them `first_wrong` lies."""
    projected: int = 0
    """Projected bytes of host memory, with what the process held before, where that was limited."""
    allowed: int = 0
    """Bytes that the process was allowed, or 0 where that was not limited."""
    first_unreadable: str = ""
    """Why the first of the boxes that cannot be read cannot."""
    receipts: int | None = None
    """Shards that were compared with their receipts; 0 where these are gone, None where none were kept."""
    chunks: int | None = None
    """Chunks that were read, of all levels; None where not every one was to be."""
    damaged: int = 0
    """Blocks of which a shard is not as its receipt says, and chunks that cannot be read."""
    first_damaged: str = ""
    """What is known of the first of them."""

    @property
    def holds(self) -> bool:
        """Whether the result is what the recipe makes of the source."""
        there = self.missing_shards == 0 and self.unreadable == 0 and self.damaged == 0
        return there and self.wrong == 0 and self.face_jump <= self.jump_allowed

    def with_level(self, further: Verdict) -> Verdict:
        """Return what was found of these levels and of one more."""
        voxels = max(1, self.voxels + further.voxels)
        wrong_here = self.first_wrong is not None or further.first_wrong is None
        # Each level jumps by what it is allowed to, so the one that comes nearest to it, or exceeds it, is told of.
        nearest = max(self, further, key=lambda level: level.face_jump - level.jump_allowed)
        return Verdict(
            samples=self.samples + further.samples,
            voxels=self.voxels + further.voxels,
            largest_error=max(self.largest_error, further.largest_error),
            mean_error=(self.mean_error * self.voxels + further.mean_error * further.voxels) / voxels,
            off_share=(self.off_share * self.voxels + further.off_share * further.voxels) / voxels,
            off_allowed=self.off_allowed,
            wrong=self.wrong + further.wrong,
            first_wrong=self.first_wrong if wrong_here else further.first_wrong,
            faces=self.faces + further.faces,
            face_jump=nearest.face_jump,
            inner_jump=nearest.inner_jump,
            jump_allowed=nearest.jump_allowed,
            missing_shards=self.missing_shards + further.missing_shards,
            unreadable=self.unreadable + further.unreadable,
            source_changes=self.source_changes,
            levels=self.levels + 1,
            first_wrong_level=self.first_wrong_level if wrong_here else self.levels,
            first_unreadable=self.first_unreadable or further.first_unreadable,
        )


def verify_levels(
    source: Volume,
    results: Sequence[Volume],
    recipe: Recipe,
    *,
    samples: int,
    seed: int = 0,
    missing_shards: int = 0,
    source_changes: tuple[str, ...] = (),
    host: HostLimits | None = None,
    reading: Reading = lambda _what, _done, _total: None,
) -> Verdict:
    """Compare sampled boxes of all levels of a result with the reference.

    Parameters
    ----------
    source
        The input.
    results
        The levels of the output, finest first.
    recipe, seed, missing_shards, source_changes
        As in `verify`.
    samples
        How many boxes of the full level.
    host
        Memory that the process may hold and holds, where it is limited.
    reading
        Told how many boxes are compared.

    Raises
    ------
    DoesNotFitError
        If computing a single voxel takes more memory than is allowed.
    """
    recipes = (recipe, *recipe.further)
    pairs = list(zip((source, *results), results, recipes, strict=False))
    beside = max(before.read_overhead + made.read_overhead for before, made, _ in pairs)
    takes, least = (max(bytes_of(before, how, n) for before, _, how in pairs) for n in (SIDE, 1))
    room = takes
    if host is not None:
        room = min(takes, host.allowed - host.baseline - beside)
        if least > room:
            raise DoesNotFitError(
                f"computing a voxel again takes {human_bytes(host.baseline + beside + least)} of host memory, of which "
                f"{human_bytes(host.allowed)} are allowed; choose more --memory"
            )
    found = verify(
        source,
        results[0],
        recipe,
        samples=samples,
        seed=seed,
        missing_shards=missing_shards,
        source_changes=source_changes,
        room=room,
        reading=reading,
    )
    for before, level, made in pairs[1:]:
        fewer = ceil_div(samples, FURTHER_SHARE)
        further = verify(before, level, made, samples=fewer, seed=seed, room=room, is_level=True, reading=reading)
        found = found.with_level(further)
    return replace(found, projected=(host.baseline if host else 0) + beside + room, allowed=host.allowed if host else 0)


def verify(
    source: Volume,
    result: Volume,
    recipe: Recipe,
    *,
    samples: int,
    seed: int = 0,
    missing_shards: int = 0,
    source_changes: tuple[str, ...] = (),
    room: int | None = None,
    is_level: bool = False,
    reading: Reading = lambda _what, _done, _total: None,
) -> Verdict:
    """Compare sampled boxes of a result with the reference.

    Parameters
    ----------
    source, result
        The input and the output.
    recipe
        What made it.
    samples
        How many boxes.
    seed
        Chooses the boxes; the same seed chooses the same.
    missing_shards, source_changes
        What the caller found; part of the verdict.
    room
        Bytes that computing a box may hold; boxes that take more are computed in pieces. None for as many as it takes.
    is_level
        Whether the input is a level of the same output, whose damage is the result's too.
    reading
        Told how many boxes are compared.
    """
    rng = np.random.default_rng(seed)
    worst = total = face = inner = allowed_jump = 0.0
    voxels = off = wrong = count = unreadable = faces = 0
    first_wrong: Index3 | None = None
    first_unreadable = ""
    doing = f"comparing boxes of {result.name}"
    for place in itertools.islice(_boxes(result.shape, recipe.block, rng), samples):
        reading(doing, count, samples)
        box = place.of(int(rng.integers(result.n_volumes))) if result.n_volumes > 1 else place
        count += 1
        try:
            got = result.read(box)
            compared = compare_in_pieces(source, got, recipe, box, room) if is_level else None
        except InputUnavailableError:
            raise  # the disk's doing, not the result's
        except InputError as damage:
            unreadable += 1
            first_unreadable = first_unreadable or str(damage)
            continue
        error, rounding, precise = compared or compare_in_pieces(source, got, recipe, box, room)
        bad = np.abs(error) > rounding + precise
        if bad.any() and first_wrong is None:
            z, y, x = (int(a + i) for a, i in zip(box.start, np.argwhere(bad)[0], strict=True))
            first_wrong = (z, y, x)
        wrong += int(bad.sum())
        off += int((np.abs(error) > rounding).sum())
        worst, total = max(worst, float(np.abs(error).max())), total + float(np.abs(error).sum())
        across, within = error_jumps(error, box, recipe.block)
        faces += across is not None
        face, inner = max(face, across or 0.0), max(inner, within)
        allowed_jump = max(allowed_jump, 2 * float((rounding + precise).max()))
        voxels += box.size
    reading(doing, count, samples)
    return Verdict(
        samples=count,
        voxels=voxels,
        largest_error=worst,
        mean_error=total / max(1, voxels),
        off_share=off / max(1, voxels),
        off_allowed=recipe.engine == "cle" and recipe.interpolation == "linear",
        wrong=wrong,
        first_wrong=first_wrong,
        faces=faces,
        face_jump=face,
        inner_jump=inner,
        jump_allowed=allowed_jump,
        missing_shards=missing_shards,
        unreadable=unreadable,
        source_changes=source_changes,
        first_unreadable=first_unreadable,
    )


def _boxes(shape: Index3, block: Index3, rng: np.random.Generator) -> Iterator[Box]:
    """Yield boxes of a volume without end, in the order that the module tells."""
    corners = _lattice(shape, block, rng, (3, 2))
    faces = _lattice(shape, block, rng, (1,))
    anywhere: Iterator[list[int]] = ([int(rng.integers(0, n)) for n in shape] for _ in itertools.count())
    streams = {"corner": corners, "face": faces, "anywhere": anywhere}
    for turn in itertools.cycle(TURNS):
        centre = next(streams[turn], None)
        yield _around(next(anywhere) if centre is None else centre, shape)


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


def _around(centre: list[int], shape: Index3) -> Box:
    start = [min(max(0, c - SIDE // 2), max(0, n - SIDE)) for c, n in zip(centre, shape, strict=True)]
    stop = [min(n, a + SIDE) for a, n in zip(start, shape, strict=True)]
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
