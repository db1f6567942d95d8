#!/usr/bin/env bash
# Runs a command on a newer Docker Engine than the machine's own (fetch.sh), which is there for this command alone.
#
#   infra/newer-engine/run.sh [--image REFERENCE]… COMMAND…
#
# The command finds the engine in DOCKER_HOST, and on it each --image, copied from the engine that answers outside. Its exit
# code is this script's; what it leaves on the engine is a failure, too. Needs root.
#
# Engine and command live in namespaces of their own for processes, mounts and the network (inside.sh); files, control groups
# and users are the machine's. What they make ends with the namespaces. What is made outside (a link, three rules of the
# firewall, a folder, a control group) is removed by a process that waits for the end of this one, however it ends.
#
#   machine's network ── link, address translation ── eth0 ─┬─ the command
#                                                           └─ dockerd ── its bridges ── containers
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=infra/newer-engine/say.sh
. "$here/say.sh"

images=()
while [ "${1:-}" = --image ]; do
    images+=("${2:?}")
    shift 2
done
[ $# -gt 0 ] || die "no command" "usage: $0 [--image REFERENCE]… COMMAND…"
[ "$(id -u)" -eq 0 ] || die "an engine needs root" "run: sudo $0 …"
PATH=$PATH:/usr/sbin:/sbin
# Kernels without nf_tables refuse Debian's default iptables; ensure-docker.sh has put the older kind here then.
if [ -d /run/epsilon-iptables ]; then PATH=/run/epsilon-iptables:$PATH; fi
for program in runc ip iptables unshare docker; do
    command -v "$program" >/dev/null || die "there is no \`$program\` here" "run: infra/ensure-tools.sh && infra/ensure-docker.sh"
done
[ "$(cat /proc/sys/net/ipv4/ip_forward)" = 1 ] || die "this machine forwards no packets" "run: sysctl -w net.ipv4.ip_forward=1"
packages=$("$here/fetch.sh")/root

# Layers cannot lie on a container's own layers.
base=${TMPDIR:-/tmp}
if [ "$(stat -f -c %T "$base")" = overlayfs ]; then base=$(docker info -f '{{.DockerRootDir}}'); fi
# Of this run alone: what names things outside, short enough for a link, and four addresses that this machine does not
# have, of those that are set aside for measurements (RFC 2544).
name=newer$$
subnet=''
for number in $(seq $$ $(($$ + 999))); do
    block=$((number % 32768 * 4))
    subnet=198.$((18 + block / 65536)).$((block / 256 % 256))
    outside=$subnet.$((block % 256 + 1)) inside=$subnet.$((block % 256 + 2))
    ip -o -4 addr show | grep -qF " $outside/" || break
    subnet=''
done
[ -n "$subnet" ] || die "no addresses are free for the engine"

rules() { # -I or -D
    iptables -w 30 "$1" FORWARD -i "$name" -j ACCEPT
    iptables -w 30 "$1" FORWARD -o "$name" -j ACCEPT
    iptables -w 30 -t nat "$1" POSTROUTING -s "$inside/32" ! -o "$name" -j MASQUERADE
}
is_ours() { [ "$(cat "/proc/${1:-none}/comm" 2>/dev/null)" = unshare ]; }

# Waits for the end of its input, a pipe from this process, and removes everything.
guard() {
    trap '' INT TERM HUP
    set +e
    cat >/dev/null
    local pid first _
    pid=$(cat "$run/unshare" 2>/dev/null)
    if is_ours "$pid"; then
        first=$(cat "/proc/$pid/task/$pid/children")
        kill -KILL "$pid" ${first:+$first}
        # With the first process of their namespace, all others end.
        for _ in $(seq 300); do
            [ -d "/proc/$pid" ] || { [ -n "$first" ] && [ -d "/proc/${first% }" ]; } || break
            sleep 0.1
        done
    fi
    rules -D
    ip link del "$name"
    for _ in $(seq 50); do
        find /sys/fs/cgroup -depth -type d \( -name "$name" -o -path "*/$name/*" \) -exec rmdir {} +
        rm -rf "$run"
        [ -n "$(find /sys/fs/cgroup -type d -name "$name")" ] || [ -d "$run" ] || break
        sleep 0.1
    done
} 2>/dev/null

run=$(mktemp -d "$base/epsilon-engine.XXXXXX")
exec 9> >(guard)
guard=$!
trap 'exec 9>&-; wait "$guard" || true' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

route=$(ip -4 route show default | sed -nE 's/.* dev ([^ ]+).*/\1/p' | head -n 1)
mtu=$(cat "/sys/class/net/${route:-lo}/mtu")
[ "$mtu" -le 1500 ] || mtu=1500
printf '%s\n' "${images[@]}" >"$run/images"
began=$SECONDS
# The number is written before anything is unshared: the guard knows it in time.
# shellcheck disable=SC2016 # that shell's variables
sh -c 'echo $$ >"$1/unshare"; shift; exec unshare --mount --propagation slave --pid --fork --kill-child --mount-proc --net "$@"' \
    sh "$run" "$here/inside.sh" "$run" "$name" "$packages" "$outside" "$inside" "$mtu" "$@" </dev/null 9>&- &
child=$!
own=$(readlink /proc/self/ns/net)
until is_ours "$child" && [ "$(readlink "/proc/$child/ns/net")" != "$own" ]; do
    if ! kill -0 "$child" 2>/dev/null || [ $((SECONDS - began)) -ge 10 ]; then die "this machine gives no namespaces"; fi
    sleep 0.05
done
ip link add "$name" type veth peer name eth0 netns "$child"
ip addr add "$outside/30" dev "$name"
ip link set "$name" mtu "$mtu" up
rules -I
status=0
wait "$child" || status=$?
exit "$status"
