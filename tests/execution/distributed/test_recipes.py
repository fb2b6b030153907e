"""The recipes for clusters: run as far as a machine without one goes, and checked against what their systems take."""

from __future__ import annotations

import importlib.resources
import itertools
import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import isovoxel
from command_line import Isovoxel
from execution.distributed.clusters import gpus
from outputs import shards_of
from polling import wait_until

RECIPES = Path(__file__).parents[3] / "examples" / "cluster"
SLURM_DIRECTIVES = {
    "-J isovoxel",
    "-p gpus",
    "-A lab",
    "-n 1",
    "--cpus-per-task=2",
    "--mem=2G",
    "-t 00:10:00",
    "--gres=gpu:1",
}


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """Return the path of labels with a voxel size: their bits are the same on any device."""
    path = tmp_path / "in.zarr"
    voxels = np.random.default_rng(0).integers(0, 65536, (64, 256, 256)).astype(np.uint16)
    isovoxel.convert(voxels, path, input_voxel_size=(2.0, 1.0, 1.0), labels=True)
    return path


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    """Return an environment where commands of this Python are found, after those that a test made."""
    path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PATH": path} | more


def check_bits(stack: Path, out: Path) -> None:
    """Check that a result is that of one process."""
    whole = out.with_name("whole.zarr")
    isovoxel.scale(stack, whole)
    assert shards_of(out) == shards_of(whole)
    assert shards_of(out)


@pytest.mark.slow
def test_plain_dask(tmp_path: Path, stack: Path, isovoxel: Isovoxel) -> None:
    """The script starts a scheduler, and a worker for each device; both end when they are told to."""
    script = RECIPES / "plain.sh"
    processes = []
    with (tmp_path / "log").open("wb") as log:
        for what in ("scheduler", "workers"):
            words = ["sh", str(script), what, str(tmp_path)]
            processes.append(subprocess.Popen(words, cwd=tmp_path, env=environment(tmp_path), stdout=log, stderr=log))
    try:
        file = tmp_path / "scheduler.json"
        wait_until(file.exists)
        said = isovoxel("scale", stack, tmp_path / "out.zarr", "--scheduler", file, "--json")
        assert sum(share["blocks"] for share in said.json["workers"].values()) == said.json["blocks"]["count"]
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    assert "isovoxel.worker" in (tmp_path / "log").read_text()
    check_bits(stack, tmp_path / "out.zarr")


PYTHON = """#!/bin/sh
case "$*" in
    *"isovoxel devices"*) cat devices.json ;;
    *dask_worker*) echo "$ISOVOXEL_DEVICE $CUDA_VISIBLE_DEVICES $*" >>started ;;
    *) exec {python} "$@" ;;
esac
"""


def test_plain_dask_on_a_host_with_gpus(tmp_path: Path) -> None:
    """Each of them gets a worker that sees no other; here devices are made up, and workers say what they got."""
    found = [asdict(device) for device in gpus(2)]
    (tmp_path / "devices.json").write_text(json.dumps({"devices": found}))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(PYTHON.format(python=shlex.quote(sys.executable)))
    (tmp_path / "bin" / "python").chmod(stat.S_IRWXU)
    words = ["sh", str(RECIPES / "plain.sh"), "workers", str(tmp_path)]
    subprocess.run(words, cwd=tmp_path, env=environment(tmp_path), check=True, timeout=60)
    started = sorted(line.split() for line in (tmp_path / "started").read_text().splitlines())
    assert [line[:2] for line in started] == [["GPU-0", "GPU-0"], ["GPU-1", "GPU-1"]]
    assert [line[line.index("--name") + 1].endswith(f"-GPU-{i}") for i, line in enumerate(started)] == [True, True]


def slurm(*words: object, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the recipe for Slurm, for small workers."""
    pytest.importorskip("dask_jobqueue")
    command = [sys.executable, str(RECIPES / "slurm.py"), *map(str, words), "--interface", "lo"]
    command += ["--queue", "gpus", "--account", "lab", "--cores", "2", "--memory", "2GiB", "--walltime", "00:10:00"]
    return subprocess.run(
        command, cwd=cwd, env=environment(cwd, **more), capture_output=True, text=True, check=False, timeout=180
    )


def test_the_job_script_of_slurm(tmp_path: Path) -> None:
    """Every directive and word of it, and a shell takes it."""
    said = slurm("--print", cwd=tmp_path)
    assert (said.returncode, said.stderr) == (0, "")
    lines = said.stdout.splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")} == SLURM_DIRECTIVES
    assert "export ISOVOXEL_DEVICE=${ISOVOXEL_DEVICE:-gpu}" in lines
    (command,) = (shlex.split(line) for line in lines if "dask_worker" in line)
    assert command[:3] == [sys.executable, "-m", "distributed.cli.dask_worker"]
    assert command[3].startswith("tcp://")
    options = dict(itertools.pairwise(command))
    assert options["--nthreads"] == "2"
    assert options["--memory-limit"] == "2.00GiB"
    assert options["--preload"] == "isovoxel.worker"
    assert {"--nanny", "--no-dashboard", "--death-timeout"} <= set(command)
    assert "--nworkers" not in command
    subprocess.run(["bash", "-n"], input=said.stdout, text=True, check=True)


SBATCH = """#!/bin/sh
# Starts a job at once, on this machine. Slurm would tell it of its GPU; here it hears that there is none.
export SLURM_JOB_ID=$$ CUDA_VISIBLE_DEVICES=
setsid bash "$1" >>"$JOBS/$$.log" 2>&1 &
echo $! >"$JOBS/$$.pid"
cp "$1" "$JOBS/$$.sh"
until grep -q . "$JOBS/$$.log"; do sleep 0.1; done  # dask-jobqueue removes the script
echo "Submitted batch job $$"
"""
SCANCEL = """#!/bin/sh
kill -- -"$(cat "$JOBS/$1.pid")"
mv "$JOBS/$1.pid" "$JOBS/$1.ended"
"""


@pytest.mark.slow
def test_slurm_with_a_shell_in_its_place(tmp_path: Path, stack: Path) -> None:
    """The whole recipe: its jobs are submitted, start workers that join, do the job, and are cancelled."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "jobs").mkdir()
    for name, text in {"sbatch": SBATCH, "scancel": SCANCEL}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(stat.S_IRWXU)
    out = tmp_path / "out.zarr"
    said = slurm(stack, out, "--jobs", 2, cwd=tmp_path, JOBS=str(tmp_path / "jobs"), ISOVOXEL_DEVICE="cpu")
    logs = "".join(path.read_text() for path in (tmp_path / "jobs").glob("*.log"))
    assert said.returncode == 0, said.stderr + logs
    assert "SLURMCluster-" in said.stdout
    assert len(list((tmp_path / "jobs").glob("*.ended"))) == len(list((tmp_path / "jobs").glob("*.sh"))) == 2
    assert 1 <= logs.count("the worker SLURMCluster-") <= 2  # one may be cancelled before it joins: the job was done
    check_bits(stack, out)


def test_a_slurm_worker_without_a_gpu_is_refused(tmp_path: Path) -> None:
    """The device that the job script asks for is a GPU, and nothing stands in for it."""
    said = slurm("--print", cwd=tmp_path)
    (line,) = (line for line in said.stdout.splitlines() if "ISOVOXEL_DEVICE" in line)
    held = "from isovoxel.execution.distributed.worker_info import held_device; held_device('x')"
    shell = f"{line}\n{shlex.join([sys.executable, '-c', held])}"
    hidden = environment(tmp_path, CUDA_VISIBLE_DEVICES="", ISOVOXEL_DEVICE="")
    done = subprocess.run(["bash", "-c", shell], env=hidden, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no OpenCL device is called 'gpu'; known devices: " in done.stderr


STEP = """
import os, signal, sys
from isovoxel.output.ledger import Ledger
number = {"0": signal.SIGTERM, "1": signal.SIGKILL}.get(os.environ.get("SLURM_RESTART_COUNT", "0"))
added, add = [], Ledger.add
def add_and_stop(self, *words, **options):
    add(self, *words, **options)
    added.append(self)
    if number and len(added) == 3:
        os.killpg(0, number)
Ledger.add = add_and_stop
from isovoxel.cli import main
if __name__ == "__main__":
    main()
"""
"""The command line; after three blocks Slurm ends its whole step: with a word at the first time, then without one."""


def job(
    folder: Path, *words: str | Path, srun: str, scontrol: str = "true", **more: str
) -> subprocess.CompletedProcess[str]:
    """Run the recipe's script as Slurm does, with commands in the place of Slurm's."""
    (folder / "bin").mkdir(exist_ok=True)
    for name, text in {"srun": srun, "scontrol": scontrol}.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / "bin" / name).chmod(stat.S_IRWXU)
    there = environment(folder, SLURM_JOB_ID="17", SLURM_CPUS_PER_TASK="6", **more)
    command = ["bash", str(RECIPES / "job.sbatch"), *map(str, words)]
    return subprocess.run(command, cwd=folder, env=there, capture_output=True, text=True, check=False, timeout=200)


@pytest.mark.slow
def test_a_slurm_job_that_is_preempted_goes_on_by_itself(tmp_path: Path, stack: Path) -> None:
    """Stopped in the middle, by a signal that it hears and by one that it does not, it resumes to the same bits."""
    (tmp_path / "step.py").write_text(STEP)
    options = ["--chunk", "64,64,64", "--shard", "64,64,64", "--device-memory", "2MB"]
    out = tmp_path / "out.zarr"
    step = f'shift; exec setsid --wait {shlex.quote(sys.executable)} step.py "$@"'
    more = {"ISOVOXEL_WORKERS": "cpu:1", "srun": step, "scontrol": 'echo "$@" >>queued'}
    ran = [job(tmp_path, stack, out, *options, **more, SLURM_RESTART_COUNT=str(restarts)) for restarts in range(3)]
    assert (ran[0].returncode, ran[2].returncode) == (143, 0), [each.stderr for each in ran]
    assert ran[1].returncode not in (0, 143)  # Slurm queues again what it killed itself
    assert (tmp_path / "queued").read_text() == "requeue 17\n"
    resumed = [re.search(r"resuming: (\d+) of \d+ blocks already done", each.stderr) for each in ran]
    assert [int(found[1]) >= 3 * run if found else None for run, found in enumerate(resumed)] == [None, True, True], ran
    isovoxel.scale(stack, tmp_path / "whole.zarr", chunk=(64, 64, 64), shard=(64, 64, 64))
    assert shards_of(out) == shards_of(tmp_path / "whole.zarr")


def test_the_slurm_job_has_one_node_and_hears_of_its_end() -> None:
    """GPUs of one node, a signal to the step before the time is up, a log that grows, and a place in the queue."""
    lines = (RECIPES / "job.sbatch").read_text().splitlines()
    directives = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")}
    assert directives >= {"--nodes=1", "--ntasks=1", "--requeue", "--open-mode=append", "--signal=TERM@120"}


@pytest.mark.parametrize("code", [0, 1, 2, 130, 137, 143])
def test_a_slurm_job_ends_with_the_code_of_its_step(tmp_path: Path, code: int) -> None:
    """It is queued again where the step was told to end, and nowhere else; srun gets words and cores of the job."""
    step = f'echo "$SRUN_CPUS_PER_TASK $ISOVOXEL_WORKERS" "$@"; exit {code}'
    done = job(tmp_path, "a stack.tif", "out.zarr", srun=step, scontrol='echo "$@" >queued')
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout == "6 auto isovoxel scale a stack.tif out.zarr\n"
    assert (tmp_path / "queued").exists() is (code == 143)


@pytest.mark.parametrize(
    ("more", "scontrol", "said"),
    [({"SLURM_RESTART_COUNT": "100"}, "touch queued", "after 100 restarts"), ({}, "exit 1", "scontrol failed")],
)
def test_a_slurm_job_that_is_not_queued_again_says_so(
    tmp_path: Path, more: dict[str, str], scontrol: str, said: str
) -> None:
    """With the way on, and the code of its step."""
    done = job(tmp_path, "in.tif", "out.zarr", srun="exit 143", scontrol=scontrol, **more)
    assert done.returncode == 143
    assert said in done.stderr
    assert done.stderr.endswith("; to resume, submit the same command\n")
    assert not (tmp_path / "queued").exists()


@pytest.mark.parametrize("word", ["--overwrite", "--overwrite=now"])
def test_a_slurm_job_does_not_start_again_and_again(tmp_path: Path, word: str) -> None:
    """`--overwrite` would do that whenever the job is requeued: it is refused before the step."""
    done = job(tmp_path, "in.tif", "out.zarr", word, srun="touch ran")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --overwrite would start again after each requeue")
    assert not (tmp_path / "ran").exists()


def kubernetes(*words: str) -> dict[str, Any]:
    """Return the resource that the recipe for Kubernetes prints."""
    pytest.importorskip("dask_kubernetes", reason="dask-kubernetes is not installed; it brings 170 MB")
    command = [sys.executable, str(RECIPES / "kube.py"), "--image", "lab/isovoxel:1", "--print", *words]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert said.stderr == ""
    resource: dict[str, Any] = yaml.safe_load(said.stdout)
    return resource


def closed(schema: Any) -> Any:
    """Return a schema that takes no property which it does not name, as the API server would drop it."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    if "properties" in made and "x-kubernetes-preserve-unknown-fields" not in made:
        made.setdefault("additionalProperties", False)
    return made


def test_the_resource_of_kubernetes() -> None:
    """dask-kubernetes' own schema takes it, to the last word; GPUs, environment and volume are the workers' alone."""
    resource = kubernetes("--workers", "3", "--secret", "keys", "--claim", "microscopy")
    jsonschema = pytest.importorskip("jsonschema")
    definition = "operator/deployment/helm/dask-kubernetes-operator/crds/daskcluster.yaml"
    text = (importlib.resources.files("dask_kubernetes") / definition).read_text()
    schema = yaml.safe_load(text)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    jsonschema.validate({"spec": resource["spec"]}, closed(schema))
    broken = json.loads(json.dumps(resource["spec"]).replace("envFrom", "envFrm"))
    with pytest.raises(jsonschema.ValidationError, match="envFrm"):
        jsonschema.validate({"spec": broken}, closed(schema))

    worker, scheduler = resource["spec"]["worker"], resource["spec"]["scheduler"]
    (pod,), (other,) = worker["spec"]["containers"], scheduler["spec"]["containers"]
    assert worker["replicas"] == 3
    assert pod["args"][:2] == ["dask", "worker"]
    assert {"--preload", "isovoxel.worker", "--name", "$(DASK_WORKER_NAME)"} <= set(pod["args"])
    assert pod["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["envFrom"] == [{"secretRef": {"name": "keys"}}]
    assert {"name": "ISOVOXEL_DEVICE", "value": "gpu"} in pod["env"]
    assert pod["volumeMounts"][0]["name"] == worker["spec"]["volumes"][0]["name"]
    assert "gpu" not in json.dumps(scheduler)
    assert not other["env"]


def test_the_pod_that_the_operator_makes() -> None:
    """Names and addresses come from it; what the worker's command refers to is there, and the command parses."""
    resource = kubernetes()
    controller = pytest.importorskip("dask_kubernetes.operator.controller.controller")
    made = controller.build_worker_deployment_spec(
        "isovoxel-default", "lab", "isovoxel", "0a1b2c3d4e", resource["spec"]["worker"]["spec"], {}, {}
    )
    (pod,) = made["spec"]["template"]["spec"]["containers"]
    values = {entry["name"]: entry.get("value", "1Gi") for entry in pod["env"]}
    assert values["DASK_SCHEDULER_ADDRESS"] == "tcp://isovoxel-scheduler.lab.svc.cluster.local:8786"
    words = [values[word[2:-1]] if word.startswith("$(") else word for word in pod["args"]]
    from distributed.cli.dask_worker import main

    parsed = main.make_context("worker", words[2:]).params
    assert parsed["name"] == "isovoxel-default-worker-0a1b2c3d4e"
    assert (parsed["nthreads"], parsed["memory_limit"], parsed["preload"]) == (4, "1Gi", ("isovoxel.worker",))
