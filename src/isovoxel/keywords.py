"""Names that a caller gives: those that are unknown are refused, with the nearest one that is known."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return a clause that names what is most like an unknown name, or nothing; a prefix of all names does not count.

    Examples
    --------
    >>> did_you_mean("zom", ["zoom", "unit"]), did_you_mean("x", ["zoom"])
    ('; did you mean zoom?', '')
    """
    from difflib import get_close_matches

    names = {each.removeprefix(prefix).lower(): each for each in known}
    nearest = get_close_matches(name.removeprefix(prefix).lower(), names, n=1)
    return f"; did you mean {names[nearest[0]]}?" if nearest else ""


def checked_keywords(options: type | None = None) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a function refuse keywords that it does not have, by a TypeError that names the nearest.

    Parameters
    ----------
    options
        A TypedDict of those that its ``**options`` takes, which Python does not look at.
    """

    def check(function: Callable[P, T]) -> Callable[P, T]:
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        known = [
            p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds and p.name != "self"
        ]
        known += getattr(options, "__annotations__", {})
        name = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            for given in kwargs:
                if given not in known:
                    hint = did_you_mean(given, known)
                    raise TypeError(f"{name}() got an unexpected keyword argument {given!r}{hint}")
            return function(*args, **kwargs)

        return checked

    return check
