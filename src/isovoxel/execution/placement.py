"""Compare what the metadata of an output's levels say with what its recipe makes: where voxels lie, and what they are.

1. What the multiscales metadata must say is what a new output of the same recipe would say. Both are read as any image
   is, so a change counts only where it changes a path, an axis or the place of a voxel.
2. Of each array shape, data type, fill value and the names of axes are compared. Where one differs, the voxels of this
   level, and of those that were made of it, are not what they were, and cannot be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

from isovoxel.errors import InputError
from isovoxel.execution.recipe import Recipe
from isovoxel.geometry.grid import AXES
from isovoxel.metadata.ome import Level, image_attributes, is_label_image, read_levels
from isovoxel.metadata.series import SeriesAxis
from isovoxel.metadata.units import METERS, canonical_time, canonical_unit
from isovoxel.object_store.files import kind_of_node
from isovoxel.object_store.objects import Place
from isovoxel.readers.ome_zarr import attributes_of
from isovoxel.readers.zarr_array import open_path

SCALE_ERROR = 1e-9
"""How far a scale may be off, as a share of it, for who writes it again may round it."""
PLACE_ERROR = 1e-6
"""The same of a translation, in voxels."""
SECONDS = {
    "nanosecond": Fraction(1, 10**9),
    "microsecond": Fraction(1, 10**6),
    "millisecond": Fraction(1, 1000),
    "second": Fraction(1),
    "minute": Fraction(60),
    "hour": Fraction(3600),
    "day": Fraction(86400),
}
"""Units of time, as OME-Zarr spells them."""


def metadata_changes(output: Place, recipe: Recipe) -> tuple[tuple[str, ...], int]:
    """Return what the metadata of an output say that its recipe does not make, a sentence each.

    Returns
    -------
    changes, sound
        The sentences, and how many levels have arrays as they were made, the full one first.

    Raises
    ------
    InputError
        If the metadata of the group, or of an array, cannot be read.
    """
    recipes = (recipe, *recipe.further)
    name = str(output)
    attributes = attributes_of(output, name)
    series = recipe.axes or tuple(SeriesAxis(axis, n) for axis, n in recipe.series)
    full, *further = (level.grid for level in recipes)
    made = image_attributes(full, name="", further=further, series=series)
    try:
        changes = list(_of_levels(read_levels(attributes, name), read_levels(made, name), recipe))
    except InputError as error:
        changes = [str(error)]
    if recipe.labels and not is_label_image(attributes):
        changes.append("the metadata do not say that it is an image of labels (image-label), and must")
    of_arrays = [list(_of_array(output, level, how)) for level, how in enumerate(recipes)]
    sound = next((level for level, found in enumerate(of_arrays) if found), len(recipes))
    return (*changes, *(change for found in of_arrays for change in found)), sound


def _of_levels(found: Sequence[Level], made: Sequence[Level], recipe: Recipe) -> Iterator[str]:
    """Yield what the multiscales metadata say otherwise."""
    paths = [[level.path for level in levels] for levels in (found, made)]
    if paths[0] != paths[1]:
        yield f"the metadata list the levels {', '.join(paths[0])}, and must list {', '.join(paths[1])}"
    if found[0].axes != made[0].axes:
        yield f"the metadata have the axes {', '.join(found[0].axes)}, and must have {', '.join(made[0].axes)}"
        return
    for axis, is_, must in zip(made[0].axes, found[0].types, made[0].types, strict=True):
        if is_ not in (None, must):
            yield f"the metadata give the axis {axis} the type {is_}, and must give it {must}"
    listed = {level.path: level for level in found}
    # The recipes of 0.1 do not say where time points and channels lie.
    known = range(len(recipe.series) if recipe.axes is None else 0, len(made[0].axes))
    for level in made:
        if level.path in listed:
            yield from (change for i in known if (change := _of_axis(listed[level.path], level, i)))


def _of_axis(found: Level, made: Level, axis: int) -> str:
    """Return what a level says otherwise of one of its axes; nothing where voxels lie at the same places."""
    units = [_unit(level.axes[axis], level.units[axis]) for level in (found, made)]
    size, start = made.scale[axis], made.translation[axis]
    for what, is_, must, allowed in (
        ("scale", found.scale[axis], size, SCALE_ERROR * abs(size)),
        ("translation", found.translation[axis], start, PLACE_ERROR * abs(size) + SCALE_ERROR * abs(start)),
    ):
        same = _converted(is_, *units)
        if same is None or abs(same - must) > allowed:
            said = [f"{value:.12g} {unit or ''}".rstrip() for value, unit in zip((is_, must), units, strict=True)]
            of = f"the {what} of level {made.path} along {made.axes[axis]}"
            return f"{of} is {said[0]}, and must be {said[1]}"
    return ""


def _unit(axis: str, unit: str | None) -> str | None:
    """Return a unit by the name that OME-Zarr has for it, where it has one."""
    canonical = canonical_time if axis == "t" else canonical_unit
    return unit and (canonical(unit) or unit)


def _converted(value: float, unit: str | None, other: str | None) -> float | None:
    """Return a value in another unit, or None where they are not both lengths, or both times."""
    if unit == other:
        return value
    table = next((table for table in (METERS, SECONDS) if unit in table and other in table), None)
    return None if table is None else value * float(table[str(unit)] / table[str(other)])


def _of_array(output: Place, level: int, recipe: Recipe) -> Iterator[str]:
    """Yield what the metadata of a level's array say otherwise."""
    home = output / str(level)
    if kind_of_node(home) is None:
        yield f"the array of level {level} is not there"
        return
    node = open_path(home, str(home))
    axes = (*(axis for axis, _ in recipe.series), *AXES)
    shape = (*(n for _, n in recipe.series), *recipe.grid.shape)
    names = tuple(node.axis_names)
    for what, is_, must in (
        ("shape", node.shape, shape),
        ("data type", node.dtype.name, recipe.dtype),
        ("fill value", node.fill, 0),
        ("axes", names if any(names) else axes, axes),
    ):
        if is_ != must:
            yield f"level {level} has the {what} {is_}, and must have {must}"
