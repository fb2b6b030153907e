"""Engines: whether each scales here, which clEsperanto engine `cle` takes, and why not the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isovoxel.doctor.children import Answer
from isovoxel.doctor.faults import Fault, Section
from isovoxel.doctor.machine import Machine
from isovoxel.doctor.packages import Packages, installed
from isovoxel.planning.model import GENERATIONS

CHOICE = "ISOVOXEL_CLE"


def look_at_engines(
    exact: Answer, cle: Mapping[str, Answer], machine: Machine, needed: Packages, opencl: Mapping[str, Any]
) -> Section:
    """Return whether trial jobs succeeded.

    Parameters
    ----------
    exact, cle
        What processes found that did a job: with engine exact, and with each generation of clEsperanto.
    machine, needed, opencl
        Where, what isovoxel needs, and what OpenCL shows.
    """
    found = Section()
    scales = any(not answer.reason for answer in cle.values())
    found.rows.append(("engine exact", _how(exact)))
    chosen = machine.environment.get(CHOICE, "")
    order = [chosen] if chosen in GENERATIONS else list(GENERATIONS)
    # A process that crashes tries no other; one that cannot import it does.
    used = next((name for name in order if not cle[name].reason or _opened(cle[name]) or cle[name].ended), None)
    found.rows.append(("engine cle", _cle(used, cle)))
    told = [f"{package}: {_generation(name, cle[name], used, chosen)}" for name, package in GENERATIONS.items()]
    found.rows += [("clEsperanto" if i == 0 else "", text) for i, text in enumerate(told)]
    if exact.reason:
        found.faults.append(_exact_fault(exact, machine, opencl, fatal=not scales))
    if chosen and chosen not in GENERATIONS:
        what = f"{CHOICE} is {chosen!r}, but must be {' or '.join(GENERATIONS)}"
        found.faults.append(Fault(what, machine.unset(CHOICE)))
    else:
        found.faults += _cle_faults(used, cle, machine, needed)
    found.record["engines"] = {"exact": _record(exact)} | {
        "cle": {"generation": used, "chosen": chosen}
        | {name: _record(answer) | {"installed": installed(GENERATIONS[name])} for name, answer in cle.items()}
    }
    return found


def _opened(answer: Answer) -> str:
    """Return the version of the clEsperanto that was imported, or nothing."""
    return next((told[2] for told in answer.told if told[0] == "opened"), "")


def _how(answer: Answer) -> str:
    if answer.reason:
        return f"does not scale: {answer.reason}"
    return f"scales: a trial job on {answer.value['device']} was verified"


def _cle(used: str | None, cle: Mapping[str, Answer]) -> str:
    if used is None:
        return "does not scale, because no clEsperanto can be imported; exact scales in its place"
    version = _opened(cle[used])
    return f"{_how(cle[used])} ({GENERATIONS[used]}{f' {version}' if version else ''})"


def _generation(name: str, answer: Answer, used: str | None, chosen: str) -> str:
    """Return whether a generation of clEsperanto is used, or why not."""
    have, version = installed(GENERATIONS[name]), _opened(answer)
    if name == used:
        why = f"{CHOICE} chooses it" if chosen else "it is the first that can be imported"
        return f"{version or have or ''}, used, since {why}".removeprefix(", ")
    if answer.reason and not version:
        return f"not used, since it {'cannot be imported: ' + answer.reason if have else 'is not installed'}"
    if answer.reason:
        return f"{version}, not used; it does not scale: {answer.reason}"
    why = f"{CHOICE} chooses the other one" if chosen else "the other one comes first"
    return f"{version}, not used, since {why}; it scales too"


def _exact_fault(answer: Answer, machine: Machine, opencl: Mapping[str, Any], *, fatal: bool) -> Fault:
    what, _, mend = answer.reason.rpartition("; ") if answer.known else ("", "", "")
    if what:
        return Fault(f"a trial job failed: {what}", mend, fatal)
    what = f"a trial job with engine exact failed: {answer.reason}"
    devices = opencl["devices"]
    if any(device["kind"] == "gpu" for device in devices) and any(device["kind"] == "cpu" for device in devices):
        mend = "isovoxel scale ... --device cpu, and install the graphics card's driver anew"
    elif machine.has_pocl_wheel and answer.ended:
        mend = machine.pip("--force-reinstall", "pyopencl[pocl]")
    else:
        mend = "isovoxel doctor --json > doctor.json, and report it with that file"
    return Fault(what, mend, fatal)


def _cle_faults(used: str | None, cle: Mapping[str, Answer], machine: Machine, needed: Packages) -> list[Fault]:
    """Return why engine cle does not scale, where it could."""
    if used is not None and not cle[used].reason:
        return []
    other = next((name for name, answer in cle.items() if name != used and not answer.reason), None)
    if used is not None:
        what = f"engine cle does not scale with {GENERATIONS[used]}: {cle[used].reason}"
        return [Fault(what, machine.export(CHOICE, other) if other else "isovoxel scale ... --engine exact")]
    offered = [*needed.core, *(package for extra in needed.extras.values() for package in extra)]
    names = {p.name.lower().replace("_", "-"): p.needed for p in offered}
    wanted = next((names[package] for package in reversed(GENERATIONS.values()) if package in names), None)
    if wanted is None:
        return []  # there is none for this Python or machine
    there = [package for package in GENERATIONS.values() if installed(package)]
    if there:
        what = f"{there[0]} is installed, but cannot be imported: {_reason(there[0], cle)}"
        return [Fault(what, machine.pip("--force-reinstall", "--no-deps", there[0]))]
    return [Fault("no clEsperanto is installed, so that engine cle does not scale", machine.pip(wanted))]


def _reason(package: str, cle: Mapping[str, Answer]) -> str:
    return next(cle[name].reason for name, each in GENERATIONS.items() if each == package)


def _record(answer: Answer) -> dict[str, Any]:
    return {"scales": not answer.reason, "reason": answer.reason, "version": _opened(answer)} | (answer.value or {})
