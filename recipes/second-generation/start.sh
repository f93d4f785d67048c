#!/bin/sh
# Begin or go on with the run, in the background, on one thread and behind other work.
#   sh start.sh [train.py's options …]
# Environment: FROZEN the frozen copy of the package (commit b340ec6) with its environment in .venv,
# START the weights to begin with, RUN the run's folder, PACK the pack, AUTOGROUP how far behind.
set -eu
HERE=$(cd "$(dirname "$0")" && pwd)
: "${FROZEN:=$PWD/../frozen}" "${START:=$PWD/recipes/state/limner-2d.safetensors}" "${AUTOGROUP:=6}"
: "${RUN:=$FROZEN/build/second}" "${PACK:=$FROZEN/build/pack}"
[ -e "$START" ] || START=$PWD/../shared/probe2d/weights.safetensors
mkdir -p "$RUN"
OMP_NUM_THREADS=1 setsid nice -n 5 "$FROZEN/.venv/bin/python" "$HERE/train.py" "$RUN" \
  --pack "$PACK" --start "$START" "$@" >>"$RUN/run.log" 2>&1 &
echo $! >"$RUN/pid"
sleep 1
echo "$AUTOGROUP" >"/proc/$(cat "$RUN/pid")/autogroup" || true
