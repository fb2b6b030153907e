"""Check what callers give: names that a function does not have, and values of another type than its annotations.

Both are driven by what the code says anyway: keywords by signatures, types by the annotations of parameters and of the
fields of `isovoxel.options.Options`. Annotations that are not in `_KINDS` have parsers of their own.
"""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, ParamSpec, TypeVar

from isovoxel.errors import OptionError, did_you_mean, shown_value

P = ParamSpec("P")
T = TypeVar("T")


# ---- names ---------------------------------------------------------------------------------------------------------


def check_keywords(function: Callable[..., Any], given: Iterable[str], options: type | None = None) -> None:
    """Raise a TypeError for a keyword that a function does not have; it names the nearest that it has.

    Parameters
    ----------
    function, given
        The function, and keywords that it was given.
    options
        A TypedDict of those that its ``**options`` takes, which Python does not look at.
    """
    known = _keywords(function, options)
    for name in given:
        if name not in known:
            called, hint = function.__qualname__.removesuffix(".__init__"), did_you_mean(name, known)
            raise TypeError(f"{called}() got an unexpected keyword argument {name!r}{hint}")


@functools.cache
def _keywords(function: Callable[..., Any], options: type | None) -> tuple[str, ...]:
    import inspect  # only here: it takes its time

    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = [p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds and p.name != "self"]
    return (*known, *getattr(options, "__annotations__", {}))


def checked_arguments(options: type | None = None) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a function refuse keywords that it does not have, and values of another type than its annotations.

    Parameters
    ----------
    options
        A TypedDict of what its ``**options`` takes, if it has them; their values are checked by who holds them.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        kinds = function.__annotations__
        code: Any = getattr(function, "__code__")  # noqa: B009 - which a Callable need not have
        positional = code.co_varnames[: code.co_argcount]

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            check_keywords(function, kwargs, options)
            first = [checked_value(name, kinds.get(name, ""), value) for name, value in zip(positional, args)]  # noqa: B905 - Python says what is too much
            named = {name: checked_value(name, kinds.get(name, ""), value) for name, value in kwargs.items()}
            call: Callable[..., T] = function
            return call(*first, *args[len(first) :], **named)

        return checked

    return decorate


# ---- values --------------------------------------------------------------------------------------------------------


def checked_value(name: str, annotation: str, value: Any) -> Any:
    """Return a value as Python has it: numbers of NumPy and arrays of one number are its own.

    Parameters
    ----------
    name
        What the caller calls it.
    annotation
        Of the parameter or field, as the code has it.
    value
        What the caller gives.

    Raises
    ------
    OptionError
        If it is of another type than the annotation says.

    Examples
    --------
    >>> import numpy as np
    >>> checked_value("threads", "int | None", np.int64(4))
    4
    >>> checked_value("zoom", "float | None", "2")
    Traceback (most recent call last):
        ...
    isovoxel.errors.OptionError: zoom must be a number, not '2'
    """
    kind = annotation.removesuffix(" | None")
    if kind in _UNCHECKED:
        return value
    value = _plain(value)
    if kind not in _KINDS or (value is None and kind != annotation):
        return value
    take, called = _KINDS[kind]
    try:
        return take(value)
    except (TypeError, ValueError, OverflowError):
        raise OptionError(f"{name} must be {called}, not {shown_value(value)}") from None


def number(value: Any) -> float:
    """Return a number that is real, as a float unless it is an int; raise a TypeError or OverflowError for others."""
    value = _plain(value)
    if isinstance(value, bool | str | bytes | bytearray):
        raise TypeError(value)
    as_float = float(value)
    return value if type(value) is int else as_float


def _plain(value: Any) -> Any:
    """Return a scalar of NumPy, or an array of no axes, as Python has it."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _whole(value: Any) -> int:
    value = _plain(value)
    if isinstance(value, bool):
        raise TypeError(value)
    return operator.index(value)


def _exactly(kind: type) -> Callable[[Any], Any]:
    def take(value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError(value)
        return value

    return take


def _path(value: Any) -> Any:
    _exactly(str)(os.fspath(value))
    return value


def _three(take: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, Any, Any]]:
    def taken(values: Any) -> tuple[Any, Any, Any]:
        if isinstance(values, str | bytes | bytearray | AbstractSet | Mapping):  # of no order, or numbers of letters
            raise TypeError(values)
        z, y, x = map(take, values)
        return (z, y, x)

    return taken


def _callables(values: Any) -> list[Any]:
    found = list(values)
    if not all(map(callable, found)):
        raise TypeError(values)
    return found


_KINDS: Mapping[str, tuple[Callable[[Any], Any], str]] = {
    "bool": (_exactly(bool), "True or False"),
    "int": (_whole, "a whole number"),
    "float": (number, "a number"),
    "str": (_exactly(str), "text"),
    "str | Path": (_path, "a path or an address"),
    "Float3": (_three(number), "three numbers z, y, x such as (1, 0.2, 0.2)"),
    "Index3": (_three(_whole), "three whole numbers z, y, x such as (64, 128, 128)"),
    "Sequence[Listener]": (_callables, "a list of functions"),
}
"""What takes values of annotations, and what these are for people."""
_UNCHECKED = ("Any", "CropLike")
"""Annotations of what may be an array, too."""
