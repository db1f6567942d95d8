#!/usr/bin/env bash
# `make demo-fleet`: the second act. A gateway, a builder and three agents as processes of their own on this
# machine: functions that keep to their VMs, one agent killed under load, and an autoscaler that orders VMs.
# Stays up until Ctrl-C, then removes everything; DEMO_EXIT=1: ends by itself after the tour.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=infra/programs.sh
. infra/programs.sh

infra/ensure-tools.sh build run
infra/ensure-docker.sh
echo "Compiling the separate programs: a minute after \`make demo\`, about five minutes without; seconds from then on."
build_programs --no-default-features --bins
folder=$(programs_folder)
EPSILON_BIN="$folder/epsilon" exec "$folder/demo-fleet"
