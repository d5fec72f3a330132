#!/usr/bin/env bash
# A Ray cluster on a list of hosts by ssh, a run on it, and the end of both.
#   examples/launch/ray-hosts.sh "10.0.0.1 10.0.0.2 10.0.0.3" pretrain --run-dir runs/a --workers 12
# The first host has the coordinator and the run folder. Ray and eggroll must be installed on all of them, under the same
# Python version, and the data must be on each. LAUNCH replaces ssh, for a try on one machine.
set -euo pipefail
read -ra hosts <<<"$1"
job=$2
shift 2
launch=${LAUNCH:-ssh}
port=${RAY_PORT:-6379}
token=$(openssl rand -hex 32)
environment="RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$token"

stop() {
  for host in "${hosts[@]}"; do $launch "$host" "ray stop --grace-period 5" || true; done
}
trap stop EXIT

head=${hosts[0]}
$launch "$head" "$environment ray start --head --node-ip-address $head --port $port --include-dashboard false"
for host in "${hosts[@]:1}"; do
  $launch "$host" "$environment ray start --address $head:$port --node-ip-address $host"
done
$launch "$head" "$environment eggroll $job --ray $head:$port --listen $head:${EGGROLL_PORT:-7070} $*"
