"""What workers have: a plan is made from their devices and memory, not from the client's.

1. A worker holds one device, which it finds once and keeps for as long as its process lives: the one that
   ``ISOVOXEL_DEVICE`` names, as ``--device`` does ("gpu" or "cpu", a GPU's UUID or PCI bus id, a number of `isovoxel
   devices`, or a name). Without it, where several GPUs are seen, the number that the worker's name ends with chooses:
   workers of one host that are called "gpu-0" and "gpu-1" take the first and the second.
2. Every worker is asked which device it holds, what that and its host have, and which versions it runs.
3. Of each limit the smallest binds: any block must fit any worker.
4. What a host has is shared by the workers on it.

dask-cuda shows each of its workers all GPUs, in ``CUDA_VISIBLE_DEVICES``, and its own one first ("1,2,3,0" for the
second of four); NVIDIA's OpenCL lists them in that order. There the first counts, whatever the worker is called.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import os
import platform
import re
import socket
import sys
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isovoxel.engines.clesperanto import scales_with
from isovoxel.engines.devices import Device, choose, list_devices
from isovoxel.errors import ClusterError, DeviceError, OptionError, clause
from isovoxel.execution.distributed.rpc import ask_workers
from isovoxel.execution.executor import Task
from isovoxel.execution.resources import cores, host_limits
from isovoxel.geometry.grid import triple
from isovoxel.object_store.objects import Place, absolute, write_small
from isovoxel.output.ledger import ledger_of
from isovoxel.planning.model import DeviceLimits, HostLimits
from isovoxel.readers.files import CHUNKS
from isovoxel.version import __version__

DEVICE = "ISOVOXEL_DEVICE"
"""The variable of the environment that says which device a worker holds."""
ENGINE = "ISOVOXEL_ENGINE"
"""The variable that says which engine is used, of which a worker loads ahead what it needs."""
DASK_CUDA = "dask_cuda.initialize"
"""The module that dask-cuda lets its workers load before anything of them is set up."""
ANSWER_SECONDS = 120.0
"""How long workers may take to load OpenCL and answer."""
LIMIT_SHARE = 0.6
"""How much of the memory that distributed gives a worker is planned with: from there on it would write to the disk."""
PROBE = "probe"
"""Prefix of the files by which workers check that a folder is the same everywhere."""

_held: dict[str, Device] = {}
"""The device of this process' worker, by the worker's name."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What the user requests of each worker; None where nothing is requested."""

    memory: int | None = None
    """Bytes that the workers of one host may hold together."""
    device_memory: int | None = None
    """Bytes that may be held on each device."""
    threads: int | None = None
    """Blocks in flight on each worker."""
    flushing: int = 0
    """How many threads a worker has beside each that holds a block in flight, to wait for the disk."""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One worker, as it describes itself."""

    address: str
    """Where the scheduler reaches it."""
    name: str
    """Its name at the scheduler."""
    host: str
    """The machine that it runs on."""
    pid: int
    """Its process there."""
    cores: int
    """How many cores it may use."""
    index: int
    """The number that its device has in its process."""
    pci: str
    """PCI bus id of its device, or nothing where it has none."""
    uuid: str
    """UUID by NVML of the GPU with that PCI bus id, which proves which one it is."""
    device: DeviceLimits
    """Limits of its device."""
    limits: HostLimits
    """What its host lets all its workers use together, and how many blocks this one may have in flight."""
    memory_limit: int | None
    """Where distributed stops it, if it does."""
    versions: tuple[tuple[str, str], ...]
    """Packages that must be the same on client and workers, with versions."""


@dataclass(frozen=True)
class WorkerPool:
    """All workers of a job."""

    members: tuple[WorkerInfo, ...]
    """The workers."""

    def device(self, engine: str) -> DeviceLimits:
        """Return the limits that every worker's device keeps.

        Raises
        ------
        DeviceError
            If the engine's result would depend on who computes what.
        """
        devices = [m.device for m in self.members]
        kinds = {d.kind for d in devices}
        if len(kinds) > 1 and engine == "cle":
            cpus = ", ".join(m.name for m in self.members if m.device.kind == "cpu")
            raise DeviceError(
                f"some workers compute on GPUs and some on CPUs ({cpus}), and engine cle gives other bits on each; "
                "use --engine exact, or workers of one kind"
            )
        names = ("memory", "allowed", "largest_allocation", "buffer_voxels", "encoders")
        return DeviceLimits(
            name=" and ".join(sorted({d.name for d in devices})),
            kind="cpu" if "cpu" in kinds else "gpu",
            image_shape=triple(min(d.image_shape[axis] for d in devices) for axis in range(3)),
            shares_host_memory=any(d.shares_host_memory for d in devices),
            context=max(d.context for d in devices),
            **{name: min(getattr(d, name) for d in devices) for name in names},
        )

    @property
    def host(self) -> HostLimits:
        """The limits that every worker's process keeps."""
        shares = [self.share(m) for m in self.members]
        return HostLimits(
            allowed=min(s.allowed for s in shares),
            baseline=max(s.baseline for s in shares),
            threads=min(s.threads for s in shares),
            helpers=min(s.helpers for s in shares),
            workers=len(shares),
        )

    def share(self, member: WorkerInfo) -> HostLimits:
        """Return what one worker may use of its host."""
        beside = sum(m.host == member.host for m in self.members)
        allowed = member.limits.allowed // beside
        if member.memory_limit is not None:
            allowed = min(allowed, int(LIMIT_SHARE * member.memory_limit))
        return replace(member.limits, allowed=allowed, helpers=max(0, member.cores // beside - 1))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the workers."""
        count = Counter(m.device.name for m in self.members)
        if len(count) == 1:
            return ()
        return (f"devices differ ({', '.join(f'{n} x {name}' for name, n in sorted(count.items()))}); the least binds",)


def held_device(worker: str) -> Device:
    """Return the device that this process holds as the worker of that name.

    Raises
    ------
    DeviceError
        If there is none, or not the one that is asked for.
    """
    if worker not in _held:
        _held[worker] = _choose(worker, os.environ.get(DEVICE, ""))
    return _held[worker]


def _choose(worker: str, wanted: str) -> Device:
    found = list_devices()
    if wanted:
        try:
            return choose(found, wanted)
        except DeviceError as error:
            raise DeviceError(f"{error} ({DEVICE} asks for it)") from error
    gpus = [d for d in found if d.kind == "gpu"]
    if gpus and DASK_CUDA in sys.modules:
        return gpus[0]
    number = re.search(r"\d+$", worker)
    if len(gpus) > 1 and number and "://" not in worker:  # an address ends with its port
        return gpus[int(number[0]) % len(gpus)]
    return choose(found, "auto")


def versions() -> tuple[tuple[str, str], ...]:
    """Return packages and versions that must be the same on client and workers."""
    packages = tuple((name, importlib.metadata.version(name)) for name in ("numpy", "dask", "distributed"))
    return (("isovoxel", __version__), ("python", ".".join(platform.python_version_tuple()[:2])), *packages)


async def describe(requested: WorkerOptions, dask_worker: Any = None) -> WorkerInfo | str:
    """Return what a worker has, or why it cannot serve; runs on the worker, beside its event loop."""
    try:
        return await asyncio.to_thread(_describe, requested, dask_worker)
    except Exception as error:  # noqa: BLE001 - the client says so; not every error of a driver can be sent
        return str(error) if isinstance(error, DeviceError | ValueError) else clause(error)


def _describe(requested: WorkerOptions, worker: Any) -> WorkerInfo:
    device = held_device(str(worker.name))
    limits = host_limits(requested.memory, device_kind=device.kind)
    threads = max(1, worker.state.nthreads // (1 + requested.flushing))
    return WorkerInfo(
        address=worker.address,
        name=str(worker.name),
        host=socket.gethostname(),
        pid=os.getpid(),
        cores=cores(),
        index=device.index,
        pci=device.pci,
        uuid=device.uuid,
        device=device.limits(requested.device_memory),
        limits=replace(limits, threads=min(threads, requested.threads or threads)),
        memory_limit=worker.memory_manager.memory_limit,
        versions=versions(),
    )


def survey(client: Any, requested: WorkerOptions, workers: Sequence[str] | None = None) -> WorkerPool:
    """Ask workers what they have.

    Parameters
    ----------
    client
        A ``distributed.Client``.
    requested
        What the user requests of each worker.
    workers
        Their addresses; by default all.

    Raises
    ------
    ClusterError
        If a worker does not answer, runs something else than the client, or holds the GPU that another one holds.
    DeviceError
        If a worker has no device.
    """
    return pool_of(ask_workers(client, describe, requested, workers=workers, seconds=ANSWER_SECONDS))


def pool_of(found: dict[str, Any]) -> WorkerPool:
    """Return the pool that workers' answers, by their addresses, make; see `survey`."""
    for address, answer in found.items():
        if isinstance(answer, ModuleNotFoundError):
            raise ClusterError(
                f"the worker at {address} has no module {answer.name}; install isovoxel {__version__} there"
            )
        if isinstance(answer, str):
            raise DeviceError(f"the worker at {address} cannot serve: {answer}")
        if not isinstance(answer, WorkerInfo):
            raise ClusterError(f"the worker at {address} does not say what it has: {clause(answer)}")
    # Names that are numbers by their number.
    members = tuple(sorted(found.values(), key=lambda m: (int(m.name) if m.name.isdecimal() else 0, m.name, m.address)))
    _check_versions(members)
    _check_devices(members)
    return WorkerPool(members)


def same_clesperanto(client: Any, pool: WorkerPool) -> tuple[str, str]:
    """Return package and version of the clEsperanto that all workers have, or nothing and why it is none.

    Parameters
    ----------
    client
        A ``distributed.Client``.
    pool
        The workers.

    Raises
    ------
    ClusterError
        If a worker does not answer.
    """
    addresses = [member.address for member in pool.members]
    answers = ask_workers(client, _clesperanto, workers=addresses, seconds=ANSWER_SECONDS)
    found: dict[str, WorkerInfo] = {}
    for member in pool.members:
        answer = answers.get(member.address)
        if not isinstance(answer, tuple):
            why = "it is gone" if answer is None else clause(answer)
            raise ClusterError(
                f"the worker {member.name} on {member.host} does not say which clEsperanto it has: {why}"
            )
        library, why_not = answer
        if not library:
            return "", f"on {member.host}, at the worker {member.name}, {why_not}"
        found.setdefault(library, member)
    if len(found) > 1:
        named = " and ".join(f"{library} at {member.name} on {member.host}" for library, member in found.items())
        return "", f"workers have different ones, whose bits differ: {named}; install the same for all"
    return next(iter(found)), ""


async def _clesperanto() -> tuple[str, str]:
    """Return the clEsperanto of this worker, imported beside its event loop, because that takes seconds."""
    try:
        return await asyncio.to_thread(scales_with)
    except OptionError as error:
        return "", str(error)


def _check_versions(members: Iterable[WorkerInfo]) -> None:
    own = versions()
    for member in members:
        for (name, here), (_, there) in zip(own, member.versions, strict=True):
            if here != there:
                raise ClusterError(
                    f"the worker {member.name} on {member.host} runs {name} {there}, and this process {here}; "
                    "install the same in both"
                )


def _check_devices(members: Iterable[WorkerInfo]) -> None:
    holders: dict[str, WorkerInfo] = {}
    for member in members:
        if member.device.kind == "cpu":
            continue
        key = member.uuid or f"{member.host} {member.pci or member.index}"
        if (other := holders.setdefault(key, member)) is not member:
            raise ClusterError(
                f"the workers {other.name} and {member.name} on {member.host} hold the same GPU, {member.device.name} "
                f"({member.pci or member.index}); set {DEVICE}, or CUDA_VISIBLE_DEVICES, to another one for each"
            )


# ---- whether they see the same files -------------------------------------------------------------------------------


@contextlib.contextmanager
def probe_file(folder: Place) -> Iterator[tuple[Place, str]]:
    """Write a file into the ledger's folder while workers look for it; yield its path and content."""
    token = uuid.uuid4().hex
    path = absolute(folder) / f"{PROBE}-{token}"
    write_small(path, token.encode())
    try:
        yield path, token
    finally:
        for left in folder.iterdir():
            if left.name.startswith(PROBE):
                with contextlib.suppress(FileNotFoundError):  # its worker deleted it just now
                    left.unlink()


async def file_fault(task: Task, identity: Mapping[str, Any], path: Place, token: str) -> str:
    """Return why a worker does not share the files of input and output, or nothing; runs on the worker."""
    return await asyncio.to_thread(_file_fault, task, identity, path, token)


def _file_fault(task: Task, identity: Mapping[str, Any], path: Place, token: str) -> str:
    try:
        volume = task.open().identified()
    except Exception as error:  # noqa: BLE001 - whatever it is, the worker cannot read it
        return f"cannot open the input: {clause(error)}"
    if changed := [key for key, value in identity.items() if key != CHUNKS and volume.identity.get(key) != value]:
        return f"sees another input: its {' and '.join(changed)} differ"
    where = f"the output's folder {path.parent.parent}" if isinstance(path, Path) else f"the output {task.output}"
    try:
        if path.read_text() != token:
            return f"sees another one where {where} is"
        own = path.with_name(f"{path.name}-{os.getpid()}")
        write_small(own, token.encode())
        own.unlink()
    except FileNotFoundError:
        return f"does not see {where}"
    except OSError as error:
        return f"cannot write to {where}: {error.strerror}"
    return ""


def file_faults(client: Any, task: Task, identity: Mapping[str, Any], members: Sequence[WorkerInfo]) -> dict[str, str]:
    """Return why workers do not share the files of input and output, by their addresses; empty where all do.

    Raises
    ------
    ClusterError
        If workers do not answer.
    """
    with probe_file(ledger_of(task.output)) as (path, token):
        addresses = [member.address for member in members]
        found = ask_workers(client, file_fault, task, identity, path, token, workers=addresses, seconds=ANSWER_SECONDS)
    return {
        address: said if isinstance(said, str) else f"does not say what it sees: {clause(said)}"
        for address, said in found.items()
        if said
    }
