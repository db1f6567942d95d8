#!/usr/bin/env bash
# Puts a release package of Epsilon into place: programs, systemd units, the gateway's user, /etc/epsilon. Runs
# from the unpacked package, as root. Safe to run again, also with another version: that is upgrade and rollback.
#
#   ./install.sh [--root DIR] [--prefix DIR]
#
# It starts, stops and enables nothing, never touches a settings file that is there, and says at its end what to do
# next. The engine is ensure-docker.sh's business. --root installs into a tree (an image of a machine), not here.
set -euo pipefail

say() { printf 'install: %s\n' "$*"; }
die() {
    printf 'install: error: %s\n' "$1" >&2
    shift
    [ $# -eq 0 ] || printf '  %s\n' "$@" >&2
    exit 1
}

root='' prefix=/usr/local
while [ $# -gt 0 ]; do
    case "$1" in
        --root | --prefix)
            [ -n "${2:-}" ] || die "$1 needs a folder"
            if [ "$1" = --root ]; then root=${2%/}; else prefix=${2%/}; fi
            shift 2
            ;;
        *) die "\`$1\` is not known" "usage: ./install.sh [--root DIR] [--prefix DIR]" ;;
    esac
done
case "$prefix" in /*) ;; *) die "--prefix must be an absolute path, not \`$prefix\`" ;; esac

here=$(cd "$(dirname "$0")" && pwd)
version=$(cat "$here/VERSION") || die "this is not an unpacked release package: there is no VERSION in $here"
programs=(epsilon epsilon-gateway epsilon-vm-agent epsilon-builder)
units=(epsilon.service epsilon-gateway.service epsilon-vm-agent.service epsilon-builder.service
    epsilon-calls.socket epsilon-control.socket epsilon-gateway-calls.socket epsilon-gateway-control.socket)

# All checks come before the first change.
(cd "$here" && sha256sum --check --quiet SHA256SUMS) || die "the package is damaged" "unpack it again"
if [ -z "$root" ]; then
    [ "$(id -u)" -eq 0 ] || die "this needs root" "run: sudo $here/install.sh"
    "$here/bin/epsilon" --version >/dev/null ||
        die "the programs do not run on this machine" \
            "they were built for $(cat "$here/PLATFORM"); this is $(uname -sm)"
fi
command -v systemd-sysusers >/dev/null || die "there is no systemd-sysusers" \
    "the units need systemd 245 or newer; without systemd, copy the programs from $here/bin"

# Renamed into place, so that a running program continues with its old file.
put() {
    local mode=$1 from=$2 to=$root$3
    mkdir -p "$(dirname "$to")"
    install -m "$mode" "$from" "$to.new"
    mv -f "$to.new" "$to"
}

for program in "${programs[@]}"; do put 755 "$here/bin/$program" "$prefix/bin/$program"; done
put 755 "$here/ensure-docker.sh" "$prefix/lib/epsilon/ensure-docker.sh"
for script in "$here"/aws/*.sh; do put 755 "$script" "$prefix/lib/epsilon/aws/${script##*/}"; done
put 644 "$here/LICENSE" "$prefix/share/doc/epsilon/LICENSE"
put 644 "$here/VERSION" "$prefix/share/doc/epsilon/VERSION"

units_dir=$prefix/lib/systemd/system
mkdir -p "$root$units_dir"
for unit in "${units[@]}"; do
    sed "s|/usr/local/bin/|$prefix/bin/|g" "$here/systemd/$unit" >"$root$units_dir/$unit.new"
    chmod 644 "$root$units_dir/$unit.new"
    mv -f "$root$units_dir/$unit.new" "$root$units_dir/$unit"
done
put 644 "$here/systemd/sysusers.conf" "/usr/lib/sysusers.d/epsilon.conf"

# Settings and the token belong to root: systemd reads them and hands on what a unit may see.
mkdir -p "$root/etc/epsilon"
chmod 755 "$root/etc/epsilon"
if [ ! -e "$root/etc/epsilon/epsilon.yaml" ]; then
    put 644 "$here/epsilon.yaml" /etc/epsilon/epsilon.yaml
fi

# As systemd does at each boot; a tree without /etc/passwd gets one.
systemd-sysusers --root="${root:-/}" "$root/usr/lib/sysusers.d/epsilon.conf"
if [ -z "$root" ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi

say "Epsilon $version is in ${root:-}$prefix/bin"
say "one machine:  $prefix/lib/epsilon/ensure-docker.sh && systemctl enable --now epsilon"
say "a fleet:      see the heads of $units_dir/epsilon-*.service"
if [ -z "$root" ] && [ -d /run/systemd/system ]; then
    running=$(systemctl list-units --plain --no-legend --state=active 'epsilon*.service' | cut -d' ' -f1 | paste -sd' ')
    [ -z "$running" ] || say "still running the version before: $running   (systemctl restart drains them)"
fi
