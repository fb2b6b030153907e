"""Questions that a process of its own answers, since what is asked may crash or hang: drivers, and libraries in C.

The process calls a function of `isovoxel.doctor.trials` and writes lines of JSON among whatever drivers print: what it
is about to try, and at last what the function returned or raised. It has the module path of the process that asks.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

PATIENCE = 120.0
"""Seconds after which a process is taken to hang; the slowest that is known compiles kernels for 10."""
MARK = "\x1eisovoxel "
"""How lines begin that are meant for the process that asks."""

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from isovoxel.doctor.children import reply; reply(*sys.argv[2:])"
)


@dataclass(frozen=True)
class Answer:
    """What a process answered."""

    value: Any = None
    """What the function returned, or None."""
    reason: str = ""
    """Why it returned nothing, a clause, or nothing where it did."""
    known: bool = False
    """Whether the reason is an error of isovoxel's, which says what to do behind its last semicolon."""
    ended: bool = False
    """Whether the process crashed, hung, or ended in another way before it answered."""
    told: Sequence[Any] = field(default_factory=list)
    """What it told on its way."""


class Ask(Protocol):
    """What asks a process."""

    def __call__(self, trial: str, *args: Any, **variables: str) -> Answer:
        """Return what a trial of some name found, given arguments, and variables of its environment."""
        ...


@dataclass(frozen=True)
class Asker:
    """Asks processes that have a limited time."""

    patience: float = PATIENCE
    """Seconds that each may take."""

    def __call__(self, trial: str, *args: Any, **variables: str) -> Answer:
        """Call a function in a process of its own.

        Parameters
        ----------
        trial
            A function of `isovoxel.doctor.trials`, or of another module, as "module:name".
        args
            Its arguments, which JSON can hold; what it returns must be such too.
        variables
            Environment variables that it gets.
        """
        words = [sys.executable, "-P", "-c", _START, json.dumps(sys.path), trial, json.dumps(args)]
        try:
            child = subprocess.Popen(
                words,
                env=os.environ | variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except (OSError, ValueError) as error:
            return Answer(reason=f"no process can be started ({error})", ended=True)
        try:
            out, err = child.communicate(timeout=self.patience)
        except subprocess.TimeoutExpired:
            child.kill()
            out = b""
            with contextlib.suppress(subprocess.TimeoutExpired):  # one that waits for hardware cannot be killed
                out, _ = child.communicate(timeout=self.patience)
            return Answer(reason=f"it did not answer within {self.patience:g} s", ended=True, told=_told(out))
        told = _told(out)
        last = told.pop() if told and isinstance(told[-1], dict) else {}
        if "value" in last or "reason" in last:
            return Answer(told=told, **last)
        complaint = (err.decode(errors="replace").strip().splitlines() or [""])[-1].strip()
        if child.returncode == 0:
            return Answer(reason="its process ended without an answer", ended=True, told=told)
        said = f" ({complaint})" if complaint else ""
        return Answer(reason=f"its process {_end_of(child.returncode)}{said}", ended=True, told=told)


def _told(out: bytes) -> list[Any]:
    lines = out.decode(errors="replace").split("\n")  # not splitlines, for which the mark ends a line
    found = []
    for line in lines:
        _, mark, text = line.partition(MARK)  # a driver may leave a line without an end
        if mark:
            with contextlib.suppress(ValueError):  # cut off
                found.append(json.loads(text))
    return found


def _end_of(code: int) -> str:
    """Return how a process ended."""
    if code < 0:
        try:
            return f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"was ended by signal {-code}"
    return f"crashed with code 0x{code:08X}" if code > 0xFF else f"ended with exit code {code}"


# ---- in the process that is asked --------------------------------------------------------------------------------


def tell(what: Any) -> None:
    """Tell the process that asks, in case this one comes to no end."""
    sys.stdout.flush()
    os.write(1, f"\n{MARK}{json.dumps(what)}\n".encode())


def reply(trial: str, args: str) -> None:
    """Call a function and tell what it returned or raised, whatever it raises."""
    module, _, name = trial.rpartition(":")
    try:
        found = getattr(import_module(module or "isovoxel.doctor.trials"), name)(*json.loads(args))
    except BaseException as error:  # noqa: BLE001 - an import may raise anything
        from isovoxel.errors import IsovoxelError

        tell({"reason": why(error), "known": isinstance(error, IsovoxelError)})
    else:
        tell({"value": found})
    sys.stdout.flush()
    os._exit(0)  # drivers may crash at the end, which is of no interest


def why(error: BaseException) -> str:
    """Return an error as a clause, in one line."""
    from isovoxel.errors import IsovoxelError

    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - an error that cannot even be printed
        text = ""
    name = type(error).__name__
    if isinstance(error, IsovoxelError) and text:
        return text
    return f"{name}: {text[:300]}" if text else name
