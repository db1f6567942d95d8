#!/usr/bin/env bash
# Makes sure that a Docker Engine answers on this machine, and says what it does.
#
#   1. An engine that answers is used as it is. DOCKER_HOST is honoured.
#   2. Else, as root: installs the distribution's package where there is none, and starts the engine:
#      by systemd where systemd runs, as a detached process where it does not.
#   3. Else says exactly what to do.
#
# Safe to run again at any time. Never replaces, restarts or reconfigures an engine that answers.
set -euo pipefail

# How long an engine may take to answer after its start: a slow disk with many images takes a minute.
START_LIMIT=${ENSURE_DOCKER_START_LIMIT:-90}
LOG=${ENSURE_DOCKER_LOG:-/var/log/epsilon-dockerd.log}

say() { printf 'ensure-docker: %s\n' "$*"; }
die() {
    printf 'ensure-docker: error: %s\n' "$1" >&2
    shift
    [ $# -eq 0 ] || printf '  %s\n' "$@" >&2
    exit 1
}

socket=/var/run/docker.sock
case "${DOCKER_HOST:-}" in
    unix://*) socket=${DOCKER_HOST#unix://} ;;
esac

# Whether the engine answers. A fresh machine may have neither curl nor the docker command; perl is
# part of every Debian and Ubuntu.
answers() {
    case "${DOCKER_HOST:-}" in
        '' | unix://*)
            [ -S "$socket" ] || return 1
            if command -v curl >/dev/null; then
                [ "$(curl -fsS --noproxy '*' --max-time 10 --unix-socket "$socket" http://engine/_ping 2>/dev/null)" = OK ]
            elif command -v perl >/dev/null; then
                # shellcheck disable=SC2016 # perl's variables
                perl -MIO::Socket::UNIX -e '
                    alarm 10;
                    my $engine = IO::Socket::UNIX->new(Peer => $ARGV[0]) or exit 1;
                    print $engine "GET /_ping HTTP/1.0\r\n\r\n";
                    exit((<$engine> // "") =~ m{^HTTP/1\.. 200} ? 0 : 1);
                ' "$socket"
            else
                docker version >/dev/null 2>&1
            fi
            ;;
        tcp://*) curl -fsS --noproxy '*' --max-time 10 -o /dev/null "http://${DOCKER_HOST#tcp://}/_ping" 2>/dev/null ;;
        *) docker version >/dev/null 2>&1 ;;
    esac
}

is_root() { [ "$(id -u)" -eq 0 ]; }
runs_systemd() { [ -d /run/systemd/system ]; }

# The engine needs memory and pids limits; some machines without systemd mount no control groups at all.
ensure_cgroups() {
    if mountpoint -q /sys/fs/cgroup; then
        # In a container with a cgroup of its own: no group below a group that has processes gets
        # controllers, so they move out of the way.
        if [ -f /sys/fs/cgroup/cgroup.controllers ] && [ -f /sys/fs/cgroup/cgroup.type ]; then
            mkdir -p /sys/fs/cgroup/init
            local pid
            while read -r pid; do
                echo "$pid" >/sys/fs/cgroup/init/cgroup.procs 2>/dev/null || true
            done </sys/fs/cgroup/cgroup.procs
            local controllers
            controllers=$(sed -e 's/^/+/' -e 's/ / +/g' /sys/fs/cgroup/cgroup.controllers)
            echo "$controllers" >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null ||
                say "the control groups of this container cannot be handed on; limits may not hold"
        fi
        return
    fi
    say "no control groups are mounted: mounting them at /sys/fs/cgroup"
    if mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null; then
        if grep -qw memory /sys/fs/cgroup/cgroup.controllers; then
            return
        fi
        umount /sys/fs/cgroup # the controllers are with version 1
    fi
    mount -t tmpfs -o uid=0,gid=0,mode=0755 cgroup /sys/fs/cgroup
    local controller
    awk '!/^#/ && $4 == 1 { print $1 }' /proc/cgroups | while read -r controller; do
        mkdir -p "/sys/fs/cgroup/$controller"
        mount -t cgroup -o "$controller" cgroup "/sys/fs/cgroup/$controller" ||
            rmdir "/sys/fs/cgroup/$controller"
    done
}

# Kernels without nf_tables refuse Debian's default iptables. The older kind serves, for this engine
# alone: the machine's own choice stays as it is.
legacy_iptables() {
    [ -x /usr/sbin/xtables-legacy-multi ] || return 1
    iptables -w 5 -t nat -L -n >/dev/null 2>&1 && return 1
    /usr/sbin/xtables-legacy-multi iptables -w 5 -t nat -L -n >/dev/null 2>&1
}

start_detached() {
    ensure_cgroups
    local path=$PATH
    if legacy_iptables; then
        say "this kernel has no nf_tables: the engine gets the legacy iptables"
        mkdir -p /run/epsilon-iptables
        ln -sfn /usr/sbin/xtables-legacy-multi /run/epsilon-iptables/iptables
        ln -sfn /usr/sbin/xtables-legacy-multi /run/epsilon-iptables/ip6tables
        path=/run/epsilon-iptables:$path
    fi
    # What a killed engine left; no process owns it.
    local old
    if old=$(cat /var/run/docker.pid 2>/dev/null) && [ "$(cat "/proc/$old/comm" 2>/dev/null)" != dockerd ]; then
        rm -f /var/run/docker.pid
    fi
    say "starting dockerd without systemd; its log is $LOG"
    PATH=$path setsid nohup dockerd >"$LOG" 2>&1 </dev/null &
    local pid=$! waited=0
    until answers; do
        if ! kill -0 "$pid" 2>/dev/null; then
            die "dockerd ended before it answered; the end of $LOG:" "$(tail -n 15 "$LOG")"
        fi
        if [ "$waited" -ge $((START_LIMIT * 2)) ]; then
            kill "$pid" 2>/dev/null || true
            die "dockerd did not answer within ${START_LIMIT} s; the end of $LOG:" "$(tail -n 15 "$LOG")"
        fi
        sleep 0.5
        waited=$((waited + 1))
    done
}

start_by_systemd() {
    say "starting docker.service"
    systemctl start docker.service ||
        die "systemd cannot start Docker; its last words:" "$(journalctl -u docker.service -n 15 --no-pager 2>&1)"
    local waited=0
    until answers; do
        [ "$waited" -lt $((START_LIMIT * 2)) ] ||
            die "docker.service runs, but does not answer at $socket" "see: journalctl -u docker.service"
        sleep 0.5
        waited=$((waited + 1))
    done
}

install_engine() {
    if ! command -v apt-get >/dev/null; then
        die "there is no Docker Engine here, and this script only knows Debian and Ubuntu" \
            "install Docker with this distribution's package manager (dnf install moby-engine," \
            "apk add docker, pacman -S docker, zypper install docker), start it, and run this again"
    fi
    say "installing the distribution's Docker Engine (package docker.io)"
    export DEBIAN_FRONTEND=noninteractive
    local get=(apt-get -q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
    "${get[@]}" update >/dev/null || say "apt-get update did not succeed; going on with the lists that are there"
    local packages=(docker.io iptables ca-certificates)
    # Newer releases keep the command in a package of its own.
    if apt-cache show docker-cli >/dev/null 2>&1; then packages+=(docker-cli); fi
    "${get[@]}" install --no-install-recommends "${packages[@]}" >/dev/null ||
        die "apt-get could not install docker.io" "see above why; then run this again"
}

if answers; then
    say "an engine answers at ${DOCKER_HOST:-unix://$socket}"
    exit 0
fi
if [ -n "${DOCKER_HOST:-}" ]; then
    die "DOCKER_HOST is $DOCKER_HOST, and no engine answers there" \
        "start that engine, or unset DOCKER_HOST to use this machine's own"
fi
if ! is_root; then
    if [ -S "$socket" ] && [ ! -w "$socket" ]; then
        die "this user may not use $socket" \
            "run: sudo usermod -aG docker $(id -un)   then log out and in again" \
            "or run the same command with sudo"
    elif command -v dockerd >/dev/null || [ -S "$socket" ]; then
        die "Docker is installed, but does not answer" "run: sudo systemctl start docker" \
            "or, without systemd: sudo $0"
    fi
    die "there is no Docker Engine on this machine" "run: sudo $0" \
        "then: sudo usermod -aG docker $(id -un)   and log out and in again"
fi

command -v dockerd >/dev/null || install_engine
if ! answers; then # installing the package may have started it
    if runs_systemd; then start_by_systemd; else start_detached; fi
fi
say "an engine answers at unix://$socket"
