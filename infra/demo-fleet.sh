#!/usr/bin/env bash
# `make demo-fleet`: the second act. A gateway, a builder and three agents as processes of their own on this
# machine: functions that keep to their VMs, one agent killed under load, and an autoscaler that asks moto for VMs.
# Stays up until Ctrl-C, then removes everything; DEMO_EXIT=1: ends by itself after the tour.
set -euo pipefail
cd "$(dirname "$0")/.."

infra/ensure-tools.sh build run demo
infra/ensure-docker.sh
cargo build --release --locked --package epsilon-cli --package epsilon-gateway --package epsilon-vm-agent --package epsilon-builder --bins
# By itself: what its tests need of the parts must not get into the programs.
cargo build --locked --package epsilon-e2e --bin demo-fleet
target=$(cargo metadata --format-version 1 --no-deps --offline | grep -o '"target_directory":"[^"]*"' | cut -d'"' -f4)
EPSILON_BIN="$target/release/epsilon" exec "$target/debug/demo-fleet"
