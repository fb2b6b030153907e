#!/bin/sh
# Three hosts on one machine: a scheduler and two workers, each in a network namespace, joined by a bridge. While they
# scale a volume, one of them is cut off and comes back; the result is compared with that of one process.
#
#     sudo sh examples/cluster/namespaces.sh FOLDER [SIDE] [SECONDS]
#
# FOLDER takes the volume and the results; SIDE is how many voxels the volume has along each axis (96), SECONDS how long
# the host is cut off (15). It needs root, for namespaces, and isovoxel[cluster] in the Python that `python` is.
set -eu
folder=$1
side=${2:-96}
seconds=${3:-15}
tag=iv$$
mkdir -p "$folder"
cd "$folder"

# How soon a host that was cut off counts as gone, on its side and on the scheduler's: by default 30 s and 5 minutes, at least 11 s.
export DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP=12s
export DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL=10s

clean() {
    rm -f running
    for host in s a b; do
        ip netns pids "$tag-$host" 2>/dev/null | xargs -r kill -9 2>/dev/null || true
        ip netns del "$tag-$host" 2>/dev/null || true
    done
    ip link del "$tag" 2>/dev/null || true
}
trap clean EXIT
trap 'exit 130' INT TERM

host() { # name, last part of its address
    ip netns add "$tag-$1"
    ip link add "$tag-$1" type veth peer name eth0 netns "$tag-$1"
    ip link set "$tag-$1" master "$tag" up
    ip -n "$tag-$1" addr add "10.77.0.$2/24" dev eth0
    ip -n "$tag-$1" link set eth0 up
    ip -n "$tag-$1" link set lo up
}
on() { # name, command: what runs there is on a host of that name
    name=$1
    shift
    ip netns exec "$tag-$name" unshare --uts sh -c "hostname host-$name && exec \"\$@\"" - "$@"
}

count() { # how many blocks are done
    cat out.zarr.isovoxel/blocks 2>/dev/null | wc -l
}

ip link add "$tag" type bridge
ip link set "$tag" up
host s 1
host a 2
host b 3

python - "$side" <<'PYTHON'
import sys
import numpy as np
side = int(sys.argv[1])
np.save("in.npy", np.random.default_rng(0).integers(0, 65536, (side, side, side)).astype(np.uint16))
PYTHON
options="--engine exact --factor 8,8,8 --shard 128,128,128 --chunk 128,128,128 --device-memory 8MB"
options="$options --input-voxel-size 1,1,1"

touch running
on s python -m distributed.cli.dask_scheduler --host 10.77.0.1 --no-dashboard >scheduler.log 2>&1 &
for name in a b; do
    # A worker that lost its scheduler ends; here, as under a batch system, another one is started.
    (while [ -e running ]; do
        on "$name" python -m distributed.cli.dask_worker tcp://10.77.0.1:8786 --name "$name" --nthreads 2 \
            --no-nanny --no-dashboard --death-timeout 20 --preload isovoxel.worker >>"worker-$name.log" 2>&1 || sleep 1
    done) &
done

until on s python -m isovoxel devices --scheduler tcp://10.77.0.1:8786 >devices.out 2>&1 &&
    [ "$(wc -l <devices.out)" -eq 2 ]; do sleep 0.5; done
cat devices.out

# shellcheck disable=SC2086 # options are words
on s python -m isovoxel scale in.npy out.zarr $options --scheduler tcp://10.77.0.1:8786 --overwrite >job.out 2>job.err &
job=$!
until [ "$(count)" -ge 4 ]; do
    kill -0 $job || { cat job.err; exit 1; }
    sleep 0.1
done
echo "cut off host-a after $(count) blocks"
ip link set "$tag-a" down
sleep "$seconds"
if [ -e out.zarr.isovoxel ]; then echo "join host-a again after $(count) blocks"; fi
ip link set "$tag-a" up
wait $job || { cat job.err; exit 1; }
cat job.err job.out

# shellcheck disable=SC2086
python -m isovoxel scale in.npy whole.zarr $options --overwrite --quiet
diff -r out.zarr/0 whole.zarr/0 && echo "the bits are those of one process"
