"""Slurm, through dask-jobqueue (``pip install dask-jobqueue``): each worker is a job with one GPU.

    python slurm.py stack.tif out.zarr --zoom 8 --jobs 4 --queue gpu
    python slurm.py --print

The scheduler runs in this process, which nodes must reach: start it on a login node, or in a job without a GPU. Input,
output and this Python environment must have the same paths on all nodes. Started again, it goes on where it ended.
"""

import argparse

from dask.distributed import Client
from dask_jobqueue import SLURMCluster

import isovoxel


def cluster_of(said: argparse.Namespace) -> SLURMCluster:
    """Return a cluster without a worker yet."""
    return SLURMCluster(
        job_name="isovoxel",
        queue=said.queue,
        account=said.account,
        walltime=said.walltime,
        interface=said.interface,
        cores=said.cores,  # blocks in flight: while the GPU has one, others are read and written
        memory=said.memory,  # the plan takes six tenths of it
        processes=1,  # one worker for each job, and so for each GPU
        # Slurm tells the job which GPU it has (CUDA_VISIBLE_DEVICES), and the worker takes the only one that it sees.
        job_extra_directives=["--gres=gpu:1"],
        # A worker that sees no GPU is refused: it would compute on the processor, and all others wait for it.
        job_script_prologue=["export ISOVOXEL_DEVICE=${ISOVOXEL_DEVICE:-gpu}"],
        worker_extra_args=["--preload", "isovoxel.worker", "--no-dashboard"],
        scheduler_options={"dashboard_address": ":0"},  # any port, for others use the login node too
    )


def main() -> None:
    """Scale a volume on GPUs of a Slurm cluster, or print the script of a worker's job."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("source", nargs="?")
    options.add_argument("output", nargs="?")
    options.add_argument("--print", action="store_true", help="print the job script, and submit nothing")
    options.add_argument("--zoom", type=float, help="factor per axis = voxel size x ZOOM; default: isotropic voxels")
    options.add_argument("--jobs", type=int, default=2, help="how many workers (2)")
    options.add_argument("--cores", type=int, default=8, help="cores of each (8)")
    options.add_argument("--memory", default="64GiB", help="memory of each (64GiB)")
    options.add_argument("--walltime", default="04:00:00", help="after which Slurm ends them (04:00:00)")
    options.add_argument("--queue", help="partition")
    options.add_argument("--account")
    options.add_argument("--interface", help="network that nodes reach this host by, such as ib0")
    said = options.parse_args()
    if not said.print and said.output is None:
        options.error("give a source and an output, or --print")

    with cluster_of(said) as cluster:
        if said.print:
            print(cluster.job_script())
            return
        with Client(cluster) as client:
            print(f"dashboard: {cluster.dashboard_link}")
            cluster.scale(jobs=said.jobs)
            client.wait_for_workers(1)  # for as long as the queue takes; those that start later take part from then on
            result = isovoxel.scale(said.source, said.output, client=client, zoom=said.zoom)
    print(f"{result.path}: {result.plan.n_blocks} blocks in {result.seconds:.0f} s")
    for name, share in result.workers.items():
        print(f"{name} on {share.host}: {share.blocks} blocks on {share.device}")


if __name__ == "__main__":
    main()
