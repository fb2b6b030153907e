"""Kubernetes, through dask-kubernetes (``pip install dask-kubernetes``) and its operator: a pod with a GPU per worker.

    python kube.py s3://bucket/stack.zarr s3://bucket/out.zarr --zoom 8 --workers 4 --image IMAGE --secret s3-keys
    python kube.py --image IMAGE --print | kubectl apply -f -

IMAGE holds isovoxel[cluster,cloud], in the versions that this process has, and for NVIDIA's OpenCL the file
/etc/OpenCL/vendors/nvidia.icd with the line libnvidia-opencl.so.1. Input and output lie in an object store, whose
credentials workers find in a secret (AWS_ACCESS_KEY_ID, ...) or by their service account, and this process in its own
environment; or on a volume (--claim) that is mounted at /data in workers, and where this process runs.

It is not called kubernetes.py, for then Python would take it for the package that dask-kubernetes needs.
"""

import argparse
from typing import Any


def cluster_spec(said: argparse.Namespace) -> dict[str, Any]:
    """Return the cluster as a resource of the kind DaskCluster."""
    from dask_kubernetes.operator import make_cluster_spec

    # Four blocks in flight: while the GPU has one, others are read and written. A nanny is the default: it starts a
    # worker whose GPU is lost again in its pod.
    command = ["dask", "worker", "--nthreads", "4", "--memory-limit", "$(MEMORY)", "--preload", "isovoxel.worker"]
    spec: dict[str, Any] = make_cluster_spec(
        said.name, image=said.image, n_workers=said.workers, worker_command=command, resources={}, env=[]
    )
    pod = spec["spec"]["worker"]["spec"]
    (worker,) = pod["containers"]
    # Only workers ask for a GPU: given to make_cluster_spec, the scheduler would take one too.
    worker["resources"] = {
        "limits": {"nvidia.com/gpu": "1", "cpu": "8", "memory": said.memory},
        "requests": {"cpu": "4", "memory": said.memory},
    }
    # The list is the scheduler's too, so another one takes its place.
    worker["env"] = [
        # By default a worker with four threads on eight cores would count on half; the plan takes six tenths of this.
        {"name": "MEMORY", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}},
        # A worker that sees no GPU is refused: it would compute on the processor, and all others wait for it.
        {"name": "ISOVOXEL_DEVICE", "value": "gpu"},
        # OpenCL comes with "compute", NVML, which proves who holds which GPU, with "utility".
        {"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "compute,utility"},
    ]
    if said.secret:
        worker["envFrom"] = [{"secretRef": {"name": said.secret}}]
    if said.claim:
        worker["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
        pod["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": said.claim}}]
    return spec


def main() -> None:
    """Scale a volume on GPUs of a Kubernetes cluster, or print the resource."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("source", nargs="?")
    options.add_argument("output", nargs="?")
    options.add_argument("--print", action="store_true", help="print the resource, and make nothing")
    options.add_argument("--image", required=True)
    options.add_argument("--zoom", type=float, help="factor per axis = voxel size x ZOOM; default: isotropic voxels")
    options.add_argument("--name", default="isovoxel")
    options.add_argument("--workers", type=int, default=2, help="how many (2)")
    options.add_argument("--memory", default="64Gi", help="memory of each (64Gi)")
    options.add_argument("--secret", help="a secret whose entries go to the workers' environment")
    options.add_argument("--claim", help="a claim of a persistent volume, ReadWriteMany")
    said = options.parse_args()
    if not said.print and said.output is None:
        options.error("give a source and an output, or --print")

    spec = cluster_spec(said)
    if said.print:
        import yaml

        print(yaml.safe_dump(spec, sort_keys=False), end="")
        return

    from dask.distributed import Client
    from dask_kubernetes.operator import KubeCluster

    import isovoxel

    with KubeCluster(custom_cluster_spec=spec) as cluster, Client(cluster) as client:
        client.wait_for_workers(1)  # for as long as pods take; those that start later take part from then on
        result = isovoxel.scale(said.source, said.output, client=client, zoom=said.zoom)
    print(f"{result.path}: {result.plan.n_blocks} blocks in {result.seconds:.0f} s by {len(result.workers)} workers")


if __name__ == "__main__":
    main()
