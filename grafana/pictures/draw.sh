#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Records a few runs of the demo with a Prometheus, and draws pictures of the dashboards from them.
#
#   grafana/pictures/draw.sh [FOLDER]    the folder is docs/images unless given
#
# It takes some ten minutes and needs prometheus, npm and chromium (CHROMIUM names another one) on PATH. Nothing but the pictures is
# left.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
port=${PORT:-19090}
CHROMIUM=${CHROMIUM:-$(command -v chromium)}
export CHROMIUM
children=
tidy() {
  # The demo would take the first request to end as one to end the training only.
  # shellcheck disable=SC2086  # one word for each child
  kill -9 $children 2>/dev/null || true
  rm -rf "$work"
}
trap tidy EXIT
trap 'exit 130' INT TERM

start() { # LOG COMMAND...
  log=$work/$1.log
  shift
  "$@" >"$log" 2>&1 &
  children="$children $!"
}
demo() { # RUN OPTIONS...
  run=$1
  shift
  start "$run" "$root/.venv/bin/training-exporter" demo --run "$run" --port 0 "$@"
}

# The libraries stay outside of the repository: half a gigabyte, which is only run here.
cp "$root"/grafana/pictures/package.json "$root"/grafana/pictures/*.mjs "$root"/grafana/pictures/*.jsx "$work"
(cd "$work" && npm install --legacy-peer-deps --no-audit --no-fund --loglevel error)

mkdir -p "$work/prometheus/targets"
cp -r "$root/alertmanager" "$work"
cp "$root/prometheus/prometheus.yml" "$work/prometheus"
start prometheus prometheus --config.file="$work/prometheus/prometheus.yml" --storage.tsdb.path="$work/data" \
  --web.listen-address="127.0.0.1:$port"

export TRAINING_EXPORTER_SD_DIR="$work/prometheus/targets" TRAINING_EXPORTER_SD_ADDRESS=127.0.0.1 TMPDIR="$work"
demo low-rate --seed 3 --healthy --steps 80 --fake-gpus 1
demo bad-token --seed 2 --fake-gpus 2 --fault explosion@40 --fault crash@70
wait "$!" || true # a crash is what it is there for
demo long --seed 1 --healthy --steps 100000 --fake-gpus 4
demo baseline --steps 1500 --fake-gpus 2 --linger 3600 \
  --fault nan@150 --fault plateau@400 --fault explosion@900 --fault slow-data@1200 --fault nan@1500
until grep -q 'Serving for another' "$work/baseline.log"; do
  kill -0 "$!" || exit 1
  sleep 2
done
sleep 25 # the pictures show some seconds after the last step

node "$work/draw.mjs" "http://127.0.0.1:$port" "$root/grafana/dashboards" "${1:-$root/docs/images}"
