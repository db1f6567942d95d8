#!/usr/bin/env bash
# The first process of run.sh's namespaces, which calls it: brings up the network, starts the engine, copies images, runs
# the command, and says what it left. Each wait has a limit; whatever is left when it ends, the kernel ends with it.
#
#   inside.sh RUN NAME PACKAGES OUTSIDE INSIDE MTU COMMAND…
# shellcheck disable=SC2317 # until_true calls functions
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=infra/newer-engine/say.sh
. "$here/say.sh"
# shellcheck source=infra/engine.sh
. "$here/../engine.sh"

run=$1 name=$2 packages=$3 outside=$4 inside=$5 mtu=$6
shift 6
readonly START_LIMIT=60 COPY_LIMIT=180 STOP_LIMIT=30 SETTLE_LIMIT=60

# until_true SECONDS COMMAND…
until_true() {
    local limit=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$limit" ] || return 1
        sleep 0.1
    done
}

# Engine and agent see each other's mounts; the machine does not.
mount --make-rshared /
has_link() { ip link show eth0 >/dev/null 2>&1; }
until_true 30 has_link || die "no link to the machine's network came"
ip link set lo up
ip addr add "$inside/30" dev eth0
ip link set eth0 mtu "$mtu" up
ip route add default via "$outside"
# A resolver that listens on the machine's loopback is not here.
if grep -q '^nameserver 127\.' /etc/resolv.conf && [ -f /run/systemd/resolve/resolv.conf ]; then
    mount --bind /run/systemd/resolve/resolv.conf /etc/resolv.conf
fi

machines=$(engine_socket)
# Not the machine's settings; and no systemd, which would take our process numbers for its own.
echo '{}' >"$run/daemon.json"
PATH=$packages/usr/bin:$packages/usr/sbin:$PATH dockerd --config-file "$run/daemon.json" --data-root "$run/data" \
    --exec-root "$run/exec" --pidfile "$run/pid" --host "unix://$run/docker.sock" --mtu "$mtu" --cgroup-parent "$name" \
    --exec-opt native.cgroupdriver=cgroupfs >"$run/log" 2>&1 &
engine=$!
export DOCKER_HOST=unix://$run/docker.sock
has_ended() { ! kill -0 "$engine" 2>/dev/null; }
answers_or_ended() { has_ended || [ "$(engine_ask /_ping 2>/dev/null)" = OK ]; }
if ! until_true "$START_LIMIT" answers_or_ended || has_ended; then
    die "dockerd ended, or did not answer within $START_LIMIT s; the end of its log:" "$(tail -n 15 "$run/log")"
fi
say "engine $(docker version -f '{{.Server.Version}}') answers after $SECONDS s: $(docker info -f \
    'control groups {{.CgroupVersion}}, {{.Driver}}, containerd {{.ContainerdCommit.ID}}, runc {{.RuncCommit.ID}}')"

mapfile -t images < <(grep . "$run/images" || true)
if [ ${#images[@]} -gt 0 ]; then
    began=$SECONDS
    DOCKER_HOST=unix://$machines timeout "$COPY_LIMIT" docker save "${images[@]}" | timeout "$COPY_LIMIT" docker load -q >&2 ||
        die "the images of the machine's engine could not be copied within $COPY_LIMIT s"
    say "${#images[@]} images copied in $((SECONDS - began)) s"
fi
# Nothing here may use the other engine by mistake.
if [ -n "$machines" ] && [ -e "$machines" ]; then mount --bind /dev/null "$machines"; fi

status=0
"$@" || status=$?
ended=$SECONDS

# What cleans up after a test process outlives it by seconds; it knows the engine, too.
has_settled() { ! grep -qsF "DOCKER_HOST=$DOCKER_HOST" /proc/[0-9]*/environ; }
until_true "$SETTLE_LIMIT" has_settled || say "processes of the command are still there after $SETTLE_LIMIT s"
is_clean() { [ -z "$(engine_platforms)" ]; }
if ! until_true 5 is_clean; then
    say "left on the engine: $(engine_platforms | paste -sd' ')"
    [ "$status" -ne 0 ] || status=1
fi
settled=$SECONDS
kill "$engine"
until_true "$STOP_LIMIT" has_ended || {
    say "dockerd did not end within $STOP_LIMIT s"
    [ "$status" -ne 0 ] || status=1
}
say "ends with $status; $ended s until the command had ended, $((settled - ended)) s until all that it started had, $((SECONDS - settled)) s until the engine had"
exit "$status"
