"""Which workers a job gets, those that come late, hosts that are cut off, and what is said where it gets none."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import isovoxel
from command_line import Isovoxel, check_refused
from execution.distributed.clusters import OPTIONS, VOXELS, Foreign, gpus, stack
from isovoxel.engines.devices import Device
from isovoxel.errors import ClusterError, DeviceError, IsovoxelError, OptionError
from isovoxel.execution.distributed import connect, local_workers, submission, worker_info
from isovoxel.execution.distributed.local_workers import QuietNanny, environments
from isovoxel.execution.events import BlockDone, Event, WorkerJoined, WorkerLeft
from isovoxel.execution.output import OutputState, output_state


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"workers": "auto", "scheduler": "tcp://a:1"}, "workers and scheduler each say which workers there are"),
        ({"workers": "many"}, "workers must be auto, a number of GPUs, or cpu: and a number such as cpu:4, not 'many'"),
        ({"workers": "cpu:0"}, "not 'cpu:0'"),
        ({"workers": 0}, "not '0'"),
        ({"workers": "cpu:2", "device": "0"}, "each worker holds a device of its own; leave it out"),
        ({"workers": "cpu:2", "isolate": True}, "isolate and workers do not go together"),
        ({"scheduler": "no such file"}, "there is no file 'no such file'"),
        ({"scheduler": "tcp://127.0.0.1:1"}, "the scheduler at tcp://127.0.0.1:1 does not answer"),
        ({"client": "mine"}, "client must be a distributed.Client that is synchronous"),
        ({"workers": "cpu:1", "threads": 0}, "threads must be at least 1, not 0"),
        ({"workers": "cpu:1", "memory": "much"}, "memory must be a size"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], why: str
) -> None:
    """In a sentence, soon, and with nothing written."""
    monkeypatch.setattr(connect, "CONNECT_SECONDS", 1)
    with pytest.raises(IsovoxelError) as error:
        isovoxel.scale(stack(tmp_path), out, **OPTIONS | given)
    assert why in str(error.value)
    assert error.value.exit_code == 2
    assert not list(tmp_path.glob("out*"))


def test_an_array_in_memory_is_refused(out: Path) -> None:
    """Workers do not have it; what to do about that is said."""
    with pytest.raises(OptionError, match=r"array in this process' memory .* write it to a file"):
        isovoxel.scale(VOXELS, out, workers="cpu:2", **OPTIONS)


@pytest.mark.slow
def test_a_large_graph_is_refused(out: Path, client: Any) -> None:
    """A dask array that holds its voxels would be sent to each worker."""
    import dask.array as da

    array = da.from_array(np.zeros((300, 300, 300), np.uint8), chunks=100)
    with pytest.raises(OptionError, match=r"the input takes 25\.\d MiB to be sent to each worker"):
        isovoxel.scale(array, out, client=client, input_voxel_size=(1, 1, 1), factor=(1, 1, 1), halo="direct")
    assert not list(out.parent.glob("out*"))


def test_each_gpu_gets_a_worker_that_sees_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what NVML calls it, which no order of devices changes."""
    monkeypatch.setattr(local_workers, "nvidia_gpus", tuple)
    monkeypatch.setattr(local_workers, "list_devices", lambda: gpus(3))
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environments("auto")] == ["GPU-0", "GPU-1", "GPU-2"]
    assert [e["ISOVOXEL_DEVICE"] for e in environments("2")] == ["GPU-0", "GPU-1"]
    monkeypatch.setattr(local_workers, "nvidia_gpus", lambda: ("GPU-4", "GPU-5"))
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environments("auto")] == ["GPU-4", "GPU-5"]
    monkeypatch.setattr(local_workers, "nvidia_gpus", tuple)
    with pytest.raises(OptionError, match=r"workers 4 means as many GPUs, and only 3 are here; use --workers auto"):
        environments("4")
    monkeypatch.setattr(local_workers, "list_devices", lambda: gpus(0))
    with pytest.raises(OptionError, match=r"workers auto means GPUs, and none is here; use --workers cpu:\d"):
        environments("auto")


@pytest.mark.parametrize(
    "workers", ["cpu:99999999", f"cpu:{'9' * 5000}", "99999999", "9" * 5000, "cpu:0", "cpu:-1", "-3"]
)
def test_absurd_numbers_of_workers_are_refused_before_any_is_started(
    monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    """In one short sentence, with what to say in place of it."""
    monkeypatch.setattr(local_workers, "nvidia_gpus", tuple)
    monkeypatch.setattr(local_workers, "list_devices", lambda: gpus(2))
    with pytest.raises(OptionError, match=r"workers .* (cpu:\d|--workers auto)") as error:
        environments(workers)
    assert len(str(error.value)) < 5200 if workers.startswith("-") else len(str(error.value)) < 200


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES], ids=errno.errorcode.get)
def test_without_semaphores_no_worker_is_started(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A folder /dev/shm that is full, or cannot be written, is said, and nothing is begun."""

    class Context:
        def Lock(self) -> None:  # noqa: N802 - multiprocessing's
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(local_workers, "get_context", lambda _: Context())
    with pytest.raises(ClusterError, match=rf"cannot be made \({os.strerror(number)}\): on Linux they lie in /dev/shm"):
        isovoxel.scale(stack(tmp_path), out, workers="cpu:1", **OPTIONS)
    assert not list(tmp_path.glob("out*"))


def test_workers_that_do_not_start_say_the_first_cause(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the last of the errors that were made of it on its way."""

    async def fail(_: Any) -> None:
        raise OSError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr(QuietNanny, "instantiate", fail)
    with pytest.raises(ClusterError, match=r"do not start: BlockingIOError: \[Errno 11\] no more processes"):
        isovoxel.scale(stack(tmp_path), out, workers="cpu:1", **OPTIONS)
    assert not list(tmp_path.glob("out*"))


class Dies(local_workers.QuietWorker):
    """A worker whose process is killed before it joins, as often as DIES names."""

    def __init__(self, *words: Any, **options: Any) -> None:
        times = Path(os.environ["DIES"])
        if left := int(times.read_text()):
            times.write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        super().__init__(*words, **options)


@pytest.mark.parametrize("times", [1, 2])
def test_a_worker_whose_process_dies_before_it_joins_is_started_once_more(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """A second death is said, with what ended it, and nothing is written."""
    (tmp_path / "dies").write_text(str(times))
    monkeypatch.setenv("DIES", str(tmp_path / "dies"))
    monkeypatch.setattr(local_workers, "QuietWorker", Dies)
    job = functools.partial(isovoxel.scale, stack(tmp_path), out, workers="cpu:1", **OPTIONS)
    if times == 1:
        job()
        assert output_state(out) == OutputState(complete=True)
    else:
        with pytest.raises(ClusterError, match="the process of worker 0 was killed by signal 9, twice, before it had"):
            job()
        assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("wanted", "worker", "index"),
    [
        ("gpu", "x", 0),
        ("cpu", "x", 3),
        ("GPU-1", "x", 1),
        ("0000:02:00.0", "x", 2),
        ("2", "x", 2),
        ("", "gpu-1", 1),
        ("", "slurm-5", 2),
        ("Processor", "gpu-1", 3),
    ],
)
def test_a_worker_holds_the_device_that_it_is_told_to(
    monkeypatch: pytest.MonkeyPatch, wanted: str, worker: str, index: int
) -> None:
    """By kind, UUID, PCI bus id, number or name in its environment, or by the number in its own name."""
    monkeypatch.setattr(worker_info, "list_devices", lambda: gpus(3))
    monkeypatch.setattr(worker_info, "_held", {})
    monkeypatch.setenv("ISOVOXEL_DEVICE", wanted)
    assert worker_info.held_device(worker).index == index
    monkeypatch.setenv("ISOVOXEL_DEVICE", "GPU-9")
    assert worker_info.held_device(worker).index == index  # as long as the process lives
    with pytest.raises(
        DeviceError,
        match=r"no OpenCL device is called 'GPU-9'; known .* 3 = 'Processor' \(ISOVOXEL_DEVICE asks for it\)",
    ):
        worker_info.held_device("another")


@pytest.mark.parametrize("name", ["{}", "host-{}", "tcp://10.0.0.1:400{}"])
def test_workers_of_dask_cuda_hold_one_gpu_each(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """It shows each of them all, its own first, and NVIDIA's OpenCL keeps that order; one list for all says less."""
    visible: list[int] = []

    def listed() -> list[Device]:
        found = gpus(4)
        order = [*(found[i] for i in visible), found[-1]]
        return [dataclasses.replace(device, index=i) for i, device in enumerate(order)]

    monkeypatch.setattr(worker_info, "list_devices", listed)
    monkeypatch.delenv("ISOVOXEL_DEVICE", raising=False)

    def held(rotated: bool) -> list[str]:
        monkeypatch.setattr(worker_info, "_held", {})
        uuids = []
        for worker in range(4):
            visible[:] = [(i + worker * rotated) % 4 for i in range(4)]
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, visible)))
            uuids.append(worker_info.held_device(name.format(worker)).uuid)
        return uuids

    each = ["GPU-0", "GPU-1", "GPU-2", "GPU-3"]
    monkeypatch.setitem(sys.modules, "dask_cuda.initialize", ModuleType("dask_cuda.initialize"))
    assert held(rotated=True) == each
    monkeypatch.delitem(sys.modules, "dask_cuda.initialize")
    if "://" not in name:
        assert held(rotated=False) == each


def test_a_scheduler_without_workers_is_waited_for(
    tmp_path: Path, out: Path, foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And when none comes, the command that starts one is given."""
    monkeypatch.setattr(connect, "FIRST_WORKER_SECONDS", 0.3)
    events: list[Any] = []
    with pytest.raises(ClusterError, match=r"has no worker after 0.3 s; start one: dask worker tcp://.* --preload"):
        isovoxel.scale(stack(tmp_path), out, scheduler=foreign.address, listeners=[events.append], **OPTIONS)
    assert [type(event).__name__ for event in events] == ["Waiting"]


def test_own_workers_are_listed_and_plan(
    tmp_path: Path, isovoxel: Isovoxel, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan is made from their limits; two share the memory of the host."""
    monkeypatch.setattr(local_workers, "start", lambda *_: contextlib.nullcontext(client.cluster))  # started before
    said = isovoxel("devices", "--workers", "cpu:2", "--json")
    first, second = said.json["workers"]
    assert [first["name"], second["name"]] == ["0", "1"]
    assert first["pid"] != second["pid"]
    assert first["device"]["kind"] == "cpu"
    words = ["--workers", "cpu:2", "--memory", "2GiB", "--input-voxel-size", "2,1,1", "--json"]
    said = isovoxel("plan", stack(tmp_path), *words)
    assert said.json["allowed"]["host_bytes"] == 2**30
    check_refused(isovoxel("devices", "--scheduler", "nowhere"), "there is no file 'nowhere'")


def test_a_scheduler_is_found_by_its_file(tmp_path: Path, isovoxel: Isovoxel, foreign: Foreign) -> None:
    """Where a batch system starts it, nobody knows its address before."""
    foreign.worker("node-7")
    assert foreign.address
    said = isovoxel("devices", "--scheduler", foreign.file)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("worker node-7  on ")
    assert "2 blocks in flight" in said.out
    (tmp_path / "windows.json").write_text(json.dumps({"address": foreign.address}), "utf-8-sig")
    assert isovoxel("devices", "--scheduler", tmp_path / "windows.json").out == said.out
    (tmp_path / "torn.json").write_text(json.dumps({}))
    check_refused(isovoxel("devices", "--scheduler", tmp_path / "torn.json"), "is no scheduler file")


# ---- a worker that comes late ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("late", ["prototype", "pyclesperanto"])
def test_a_late_worker_takes_part_only_with_the_same_clesperanto(
    tmp_path: Path, out: Path, foreign: Foreign, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    """One with the other generation is named, with what it has and what the job has; the first worker goes on."""
    for package in ("pyclesperanto_prototype", "pyclesperanto"):
        pytest.importorskip(package)
    from distributed import Client

    monkeypatch.setattr(submission, "WATCH_SECONDS", 0.0)
    events = list[Event]()
    foreign.worker("first", ISOVOXEL_CLE="prototype")

    def add_worker(event: Event) -> None:
        """Hold the job up at its first block until the second worker is there."""
        events.append(event)
        if isinstance(event, BlockDone) and len(foreign.processes) == 2:
            foreign.worker("second", ISOVOXEL_CLE=late)
            client.wait_for_workers(2, timeout=600)

    with Client(foreign.address, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=600)
        isovoxel.scale(stack(tmp_path), out, client=client, listeners=[add_worker], engine="cle", levels=0, **OPTIONS)
    assert output_state(out) == OutputState(complete=True)
    joined = [event.name for event in events if isinstance(event, WorkerJoined)]
    left = {event.name: event.reason for event in events if isinstance(event, WorkerLeft)}
    if late == "prototype":
        assert (joined, left) == (["first", "second"], {})
    else:
        assert joined == ["first"]
        assert list(left) == ["second"]
        assert left["second"].startswith("it cannot take part: its clEsperanto is not pyclesperanto-prototype 0.24.")
        assert ": pyclesperanto 0.25." in left["second"]


# ---- hosts -----------------------------------------------------------------------------------------------------------


SCRIPT = Path(__file__).parents[3] / "examples" / "cluster" / "namespaces.sh"


def hosts_can_be_made() -> bool:
    """Tell whether this process may make network namespaces."""
    if shutil.which("ip") is None:
        return False
    made = subprocess.run(["ip", "netns", "add", "isovoxel-try"], capture_output=True, check=False)
    if made.returncode == 0:
        subprocess.run(["ip", "netns", "del", "isovoxel-try"], capture_output=True, check=False)
    return made.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not hosts_can_be_made(), reason="network namespaces cannot be made here: that takes ip and root")
def test_a_host_that_is_cut_off_is_done_without(tmp_path: Path) -> None:
    """Its blocks go to the other one, and the bits are those of one process."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["sh", str(SCRIPT), str(tmp_path / "hosts"), "56", "3"]
    said = subprocess.run(
        command, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False, timeout=240
    )
    assert said.returncode == 0, said.stdout + said.stderr
    assert "cut off host-a after" in said.stdout
    assert "worker a" in said.stdout
    assert "the bits are those of one process" in said.stdout
