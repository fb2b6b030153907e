"""The command ``isovoxel doctor``: what is looked at becomes a table for people, a record for bug reports, and faults.

1. Packages are compared with isovoxel's metadata.
2. Beside each other, processes import them, load the command line, look at folders and memory, list the devices, and do
   a small job with each engine and each clEsperanto, which is verified.
3. What fails because of something else that is missing is no fault of its own.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from isovoxel.doctor.machine import (
    NAME,
    Fault,
    Machine,
    Packages,
    Section,
    broken_packages,
    installed,
    look_at_packages,
    python_facts,
    system_facts,
)
from isovoxel.doctor.opencl import NOT_TRIED, TRIED, look_at_opencl
from isovoxel.doctor.trials import Answer, Ask, Asker
from isovoxel.engines.registry import GENERATIONS
from isovoxel.terminal import DEBUG, columns, put, say, switched_on
from isovoxel.version import __version__

REPORT = "isovoxel doctor --json > doctor.json, and report it with that file"
CHOICE = "ISOVOXEL_CLE"
NO_LINKER = "Final linking of kernel"
"""What PoCL prints before it aborts where the system has no linker, or not the libraries that it links."""
SPARE = 2**30
"""Free bytes of a disk, or of memory, below which it is said that they are few."""
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "HIP_VISIBLE_DEVICES",
    "ISOVOXEL_CLE",
    "ISOVOXEL_DEVICE",
    "NVIDIA_DRIVER_CAPABILITIES",
    "NVIDIA_VISIBLE_DEVICES",
    "OCL_ICD_FILENAMES",
    "OCL_ICD_VENDORS",
    "POCL_CACHE_DIR",
    "POCL_DEVICES",
    "POCL_MEMORY_LIMIT",
    "PYOPENCL_NO_CACHE",
    "ROCR_VISIBLE_DEVICES",
    "TMPDIR",
    "XDG_CACHE_HOME",
)
"""Variables whose values are told; of the others that are isovoxel's the names are."""
TEMPORARY, WORKING = "temporary files", "working folder"


class Diagnosis(Section):
    """What was found about everything; of the faults those come first without which no job runs."""

    @property
    def jobs_run(self) -> bool:
        """Whether jobs can run here."""
        return not self.is_fatal


def diagnose(machine: Machine | None = None, question: Ask | None = None) -> Diagnosis:
    """Look at everything.

    Parameters
    ----------
    machine
        The machine; by default this one.
    question
        What asks other processes; by default processes that have two minutes each.
    """
    machine, question = machine or Machine(), question or Asker()
    needed = look_at_packages(machine)
    places = {TEMPORARY: _folder(tempfile.gettempdir), WORKING: _folder(os.getcwd)}
    with ThreadPoolExecutor(8) as pool:
        devices = pool.submit(question, "opencl_devices")
        broken = pool.submit(broken_packages, needed.core, question, machine)
        commands = pool.submit(question, "command_line")
        host = question("host", {name: place for name, place in places.items() if place})
        where = _writable(host, places)
        exact = pool.submit(_job, question, "exact", where)
        cle = {name: pool.submit(_job, question, "cle", where, **{CHOICE: name}) for name in GENERATIONS}
    if not needed.core and any(each.result().reason.startswith("ModuleNotFoundError") for each in (devices, commands)):
        needed.faults = [fault._replace(fatal=True) for fault in needed.faults]
    of_packages = _of_packages(needed, broken.result())
    if not exact.result().reason and not commands.result().reason:  # a job was done, without what is missing
        of_packages.faults = [fault._replace(fatal=False) for fault in of_packages.faults]
    opencl = look_at_opencl(devices.result(), machine, question)
    engines = look_at_engines(
        exact.result(), {name: each.result() for name, each in cle.items()}, machine, needed, opencl.record["opencl"]
    )
    sections = [_about(machine, needed), of_packages, opencl, engines, _of_host(host, places, machine)]
    # What fails because of what has been told already is not told again.
    hidden: list[Section] = [opencl, engines] if of_packages.is_fatal else [engines] if opencl.is_fatal else []
    faults = [fault for each in sections if each not in hidden for fault in each.faults]
    if not of_packages.is_fatal:
        faults += _of_commands(commands.result())
    found = Diagnosis(faults=sorted(faults, key=lambda fault: not fault.fatal))
    for section in sections:
        found.rows += section.rows
        found.record |= section.record
    found.rows.append(("tried on", f"{', '.join(TRIED)}; never on GPUs of {', '.join(NOT_TRIED)}"))
    found.record |= {
        "tried_on": list(TRIED),
        "not_tried_on": list(NOT_TRIED),
        "environment": {name: machine.environment[name] for name in VARIABLES if name in machine.environment},
        "other_variables": sorted(n for n in machine.environment if n.startswith("ISOVOXEL_") and n not in VARIABLES),
        "faults": [fault._asdict() for fault in found.faults],
        "jobs_run": found.jobs_run,
    }
    return found


def _about(machine: Machine, needed: Packages) -> Section:
    """Return which isovoxel, Python and system these are."""
    folder, python, system = Path(__file__).parents[1], python_facts(), system_facts(machine)
    in_ = f" in a {python['environment']} environment" if python["environment"] else ""
    where = [system["distribution"], f"{system['container']} container" if system["container"] else ""]
    more = "".join(f", {what}" for what in where if what)
    cores = f", {system['cores']} cores" if system["cores"] else ""
    return Section(
        rows=[
            ("isovoxel", f"{__version__}, {folder}"),
            ("Python", f"{python['version']}{in_}, {python['executable']}"),
            ("system", f"{system['system']} {system['release']} on {system['processor']}{more}{cores}"),
        ],
        record={
            "isovoxel": {"version": __version__, "installed": installed(NAME), "path": str(folder)},
            "python": python | {"needed": needed.python},
            "system": system,
        },
    )


def _of_packages(needed: Packages, broken: Sequence[Fault]) -> Section:
    """Return what isovoxel needs, and what of that is there."""
    faults = [*needed.faults, *broken]
    fit = [p for p in needed.core if p.fits]
    text = f"all {len(fit)} that isovoxel needs are installed, in versions that will do"
    if not needed.core:
        text = "what isovoxel needs is not known, since it is not installed"
    elif len(fit) < len(needed.core):
        text = f"{len(fit)} of {len(needed.core)} that isovoxel needs are installed, in versions that will do"
    elif broken:
        text += f", but {len(broken)} cannot be imported"
    rows = [("packages", text)]
    extras = {name: extra for name, extra in needed.extras.items() if extra}
    complete = [name for name, extra in extras.items() if all(p.fits for p in extra)]
    partly = [name for name in extras if name not in complete]
    if extras:
        lacking = f"; not installed: {', '.join(partly)}" if partly else ""
        rows.append(("extras", f"{', '.join(complete) or 'none'}{lacking}"))
    record = {
        "packages": list(map(asdict, needed.core)),
        "extras": {name: list(map(asdict, extra)) for name, extra in needed.extras.items()},
    }
    return Section(rows, record, faults)


def _of_commands(answer: Answer) -> list[Fault]:
    """Return why the command line cannot be used."""
    if not answer.reason:
        return []
    what, _, mend = answer.reason.rpartition("; ") if answer.known else (answer.reason, "", "")
    if answer.known:
        return [Fault(what or answer.reason, mend, fatal=True)]
    return [Fault(f"the command line cannot be loaded: {what}", REPORT, fatal=True)]


# ---- folders and memory ------------------------------------------------------------------------------------------


def _folder(find: Callable[[], str]) -> str:
    """Return a folder, or nothing where none can be written, or it was deleted."""
    try:
        return find()
    except OSError:
        return ""


def _writable(host: Answer, places: Mapping[str, str]) -> str:
    """Return a folder in which trial jobs can be done, or nothing."""
    if host.reason:
        return places[TEMPORARY]
    bad = {folder["name"] for folder in host.value["folders"] if folder["problem"]}
    return next((place for name, place in places.items() if place and name not in bad), "")


def _job(question: Ask, engine: str, folder: str, **variables: str) -> Answer:
    """Let a process do a job with an engine."""
    if not folder:
        return Answer(reason="no folder can be written in which it could be tried")
    return question("job", engine, folder, **variables)


def _of_host(answer: Answer, places: Mapping[str, str], machine: Machine) -> Section:
    """Return which folders can be written, and what of disks and memory is free."""
    elsewhere = "FOLDER, a folder that can be written"
    temporary = machine.export("TEMP" if machine.is_windows else "TMPDIR", elsewhere)
    found = Section(faults=_of_temporary(places[TEMPORARY], machine, temporary))
    if answer.reason:
        found.rows.append(("folders", f"not looked at, because {answer.reason}"))
        found.record = {"folders": [], "memory": {}}
        return found
    found.record = dict(answer.value)
    from isovoxel.planning.memory import human_bytes  # which a process has loaded before

    caches = []
    for folder in answer.value["folders"]:
        name, path, free, problem = folder["name"], folder["path"], folder["free"], folder["problem"]
        room = "" if free is None else f", {human_bytes(free)} free"
        found.rows.append((name, f"{path} cannot be used ({problem})" if problem else f"{path}{room}"))
        if problem and name == TEMPORARY:
            found.faults.append(Fault(f"{name} cannot be written into {path} ({problem})", temporary))
        elif problem and name not in places:
            caches.append(f"{path} ({problem})")
        elif name in places and not problem and free is not None and free < SPARE:
            found.faults.append(Fault(f"only {human_bytes(free)} are free in {path}", f"make room in {path}"))
    if caches:
        what = f"kernels cannot be kept in {' and '.join(caches)}, so that each job builds them anew"
        found.faults.append(Fault(what, machine.export("XDG_CACHE_HOME", elsewhere)))
    memory = answer.value["memory"]
    free = human_bytes(memory["available"])
    found.rows.append(("memory", f"{free} free; a job takes up to {human_bytes(memory['allowed'])} (--memory)"))
    if memory["allowed"] < SPARE:
        what = f"only {free} of memory are free, of which a job takes half"
        found.faults.append(Fault(what, "close other programs, or ask the batch system for more"))
    return found


def _of_temporary(place: str, machine: Machine, mend: str) -> list[Fault]:
    """Return what is wrong with the folder for temporary files, before anything is written into it."""
    if not place:
        return [Fault("no folder for temporary files can be written", mend)]
    wanted = machine.environment.get("TMPDIR")
    if wanted and os.path.realpath(wanted) != os.path.realpath(place):
        return [Fault(f"TMPDIR is {wanted}, which cannot be written, so that {place} is used", mend)]
    return []


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
    elif NO_LINKER in answer.reason:
        mend = "apt install gcc libc6-dev, or your system's packages with ld, libc and libgcc"
    elif machine.has_pocl_wheel and answer.ended:
        mend = machine.pip("--force-reinstall", "pyopencl[pocl]")
    else:
        mend = REPORT
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
        reason = next(cle[name].reason for name, package in GENERATIONS.items() if package == there[0])
        what = f"{there[0]} is installed, but cannot be imported: {reason}"
        return [Fault(what, machine.pip("--force-reinstall", "--no-deps", there[0]))]
    return [Fault("no clEsperanto is installed, so that engine cle does not scale", machine.pip(wanted))]


def _record(answer: Answer) -> dict[str, Any]:
    return {"scales": not answer.reason, "reason": answer.reason, "version": _opened(answer)} | (answer.value or {})


def run(words: Sequence[str]) -> int:
    """Run the command without the command line's parser, which may be what is broken."""
    if "--debug" in words:
        os.environ[DEBUG] = "1"
    return print_diagnosis(as_json="--json" in words or switched_on("ISOVOXEL_JSON"))


def print_diagnosis(*, as_json: bool) -> int:
    """Print a diagnosis, and return the exit code: 2 where no job can run."""
    if not as_json:
        say("trying packages, drivers and engines, which takes some seconds")
    found = diagnose()
    put([json.dumps(found.record)] if as_json else lines(found))
    return 0 if found.jobs_run else 2


def lines(found: Diagnosis) -> list[str]:
    """Return a diagnosis as lines: the table, each fault with what mends it, and what that means."""
    told: list[tuple[str, str]] = []
    for fault in found.faults:
        told += [("", ""), ("fault" if fault.fatal else "warning", fault.what), ("to mend it", fault.mend)]
    verdict = "jobs run here" if found.jobs_run else "no job can run here before the faults are mended"
    if found.jobs_run and found.faults:
        verdict += ", but see the warnings" if len(found.faults) > 1 else ", but see the warning"
    return columns([*found.rows, *told, ("", ""), ("verdict", verdict)])
