#!/usr/bin/env bash
# One process on each host of a list, by ssh:  hosts.sh "10.0.0.1 10.0.0.2" pretrain --run-dir runs/a
# Every host has eggroll, and the data, under the same paths; the first host is process 0. PORT, COMMAND (default eggroll)
# and LAUNCH (what runs a line on a host; default ssh, to which the host is added) may be set. Ctrl-C here cuts the
# connections, which ends the processes at once: go on with --resume. For a snapshot first, SIGTERM one of them.
set -euo pipefail
read -ra hosts <<<"$1"
shift
port=${PORT:-4321}
command=${COMMAND:-eggroll}
here=$(pwd)
started=()
trap 'kill -TERM "${started[@]}" 2>/dev/null || true' INT TERM

for process in "${!hosts[@]}"; do
  words=("$@" --coordinator "${hosts[0]}:$port" --processes "${#hosts[@]}" --process "$process")
  line="cd $(printf %q "$here") && exec $command $(printf '%q ' "${words[@]}")"
  ${LAUNCH:-ssh -o BatchMode=yes -tt ${hosts[$process]}} "$line" </dev/null &
  started+=($!)
done

status=0
for process in "${started[@]}"; do
  wait "$process" || status=$?
done
exit "$status"
