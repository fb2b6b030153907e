#!/bin/sh
# Plain dask, on any number of hosts that share a folder, which takes the scheduler's address.
#
#     sh examples/cluster/plain.sh scheduler FOLDER       on one host
#     sh examples/cluster/plain.sh workers FOLDER         on every host that computes
#     isovoxel scale IN OUT --zoom 8 --scheduler FOLDER/scheduler.json
#
# Input and output must have the same paths on all of them. Ctrl-C, or SIGTERM, ends scheduler and workers.
set -eu
what=$1
file=$2/scheduler.json

if [ "$what" = scheduler ]; then
    # Any ports, for the file tells them; where a firewall lets few through, name one of those.
    exec python -m distributed.cli.dask_scheduler --scheduler-file "$file" --port 0 --dashboard-address :0
fi

# One worker for each GPU, which it is told by a name that no order of devices changes; one on the processor where there
# is none. It sees no other GPU, so nothing of it can be on one.
devices=$(python -m isovoxel devices --json | python -c '
import json, sys
found = json.load(sys.stdin)["devices"]
print(*[device["uuid"] or device["index"] for device in found if device["kind"] == "gpu"] or ["cpu"])')

workers=
trap 'kill $workers 2>/dev/null || true; wait' EXIT
trap 'exit 143' INT TERM
for device in $devices; do
    case $device in cpu | GPU-*) export CUDA_VISIBLE_DEVICES="${device#cpu}" ;; esac
    # Four blocks in flight: while the device has one, others are read and written. With a nanny, a worker whose device
    # is lost is started again. No limit of memory, for the plan keeps one, and workers of a host share what it has.
    ISOVOXEL_DEVICE=$device python -m distributed.cli.dask_worker --scheduler-file "$file" \
        --name "$(hostname)-$device" --nthreads 4 --memory-limit 0 --nanny --no-dashboard \
        --preload isovoxel.worker &
    workers="$workers $!"
done
wait
