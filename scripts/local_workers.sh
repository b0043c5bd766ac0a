#!/bin/bash
# Simulates several machines on one: starts N workers that train together, each
# with its own TF_CONFIG, on free ports of localhost. On real machines, start
# SCRIPT itself, with the TF_CONFIG shown in supcon/compute/README.md.
#
# Usage: scripts/local_workers.sh N SCRIPT [FLAGS]
#   scripts/local_workers.sh 2 scripts/supcon_cifar10_resnet50.sh \
#     --use_tpu=False --mode=train_then_eval --data_dir=... --model_dir=...
#
# Each line of output has the number of its worker. The script ends when all
# workers have ended, with status 1 if one has failed, or 75 if they were
# interrupted: it forwards Ctrl-C and kill to all of them. The workers run on
# CPU unless CUDA_VISIBLE_DEVICES is set.
set -euo pipefail

if [[ $# -lt 2 || ! "$1" =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: scripts/${0##*/} N SCRIPT [FLAGS], such as ${0##*/} 2" \
    'scripts/supcon_cifar10_resnet50.sh --use_tpu=False' >&2
  exit 2
fi
count="$1"
shift
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-}"

# Prints an unused port, below the range that the system assigns.
free_port() {
  local port
  while true; do
    port=$((10000 + RANDOM % 22000))
    if ! (: > "/dev/tcp/127.0.0.1/$port") 2> /dev/null; then
      echo "$port"
      return
    fi
  done
}

ports=()
while [[ ${#ports[@]} -lt $count ]]; do
  port="$(free_port)"
  if [[ " ${ports[*]-} " != *" $port "* ]]; then
    ports+=("$port")
  fi
done
addresses="$(printf ', "localhost:%s"' "${ports[@]}")"
addresses="[${addresses:2}]"

workers=()
writers=()
# As SIGTERM, because bash makes background processes ignore SIGINT.
forward() {
  signalled=1
  kill -TERM "${workers[@]}" 2> /dev/null || true
}
trap forward TERM INT

for ((index = 0; index < count; index++)); do
  exec {out}> >(exec sed -u "s/^/[$index] /")
  writers+=($!)
  exec {err}> >(exec sed -u "s/^/[$index] /" >&2)
  writers+=($!)
  TF_CONFIG="{\"cluster\": {\"worker\": $addresses}, \"task\": {\"type\": \
\"worker\", \"index\": $index}}" "$@" >&"$out" 2>&"$err" &
  workers+=($!)
  exec {out}>&- {err}>&-
done

status=0
for index in "${!workers[@]}"; do
  # A signal also ends wait; its result is then not the worker's status.
  while true; do
    signalled=''
    ended=0
    wait "${workers[$index]}" || ended=$?
    [[ -n "$signalled" ]] || break
  done
  if [[ $ended != 0 ]]; then
    echo "[local_workers] worker $index ended with status $ended" >&2
    if [[ $ended != 75 ]]; then
      status=1
    elif [[ $status == 0 ]]; then
      status=75
    fi
  fi
done
wait "${writers[@]}" || true
exit "$status"
