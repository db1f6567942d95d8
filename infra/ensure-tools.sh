#!/usr/bin/env bash
# Installs what is missing of the tools that building, running and testing Epsilon need, on a Debian or
# Ubuntu that has Rust and make. Says what it did. Needs root only when something is missing.
#
#   infra/ensure-tools.sh [build] [run] [test]      (default: all three)
set -euo pipefail

say() { printf 'ensure-tools: %s\n' "$*"; }
die() {
    printf 'ensure-tools: error: %s\n' "$1" >&2
    shift
    [ $# -eq 0 ] || printf '  %s\n' "$@" >&2
    exit 1
}

# command:package, by what needs it.
build_tools=(cc:gcc ld:binutils git:git) # SQLite and mimalloc are C
run_tools=(curl:curl tar:tar unshare:util-linux debootstrap:debootstrap iptables:iptables)
test_tools=(docker:docker-cli docker-registry:docker-registry haproxy:haproxy python3:python3
    busybox:busybox-static shellcheck:shellcheck jq:jq mkfifo:coreutils xargs:findutils ps:procps)
# Files that no command shows.
build_files=(/usr/include/stdio.h:libc6-dev)
run_files=(/etc/ssl/certs/ca-certificates.crt:ca-certificates)

groups=("$@")
[ $# -gt 0 ] || groups=(build run test)

packages=()
missing=()
want_command() {
    # Root's tools are not on everybody's PATH.
    PATH=$PATH:/usr/sbin:/sbin command -v "${1%%:*}" >/dev/null || {
        missing+=("${1%%:*}")
        packages+=("${1#*:}")
    }
}
want_file() {
    [ -e "${1%%:*}" ] || {
        missing+=("${1%%:*}")
        packages+=("${1#*:}")
    }
}
for group in "${groups[@]}"; do
    case "$group" in
        build)
            command -v cargo >/dev/null || die "there is no cargo on PATH" "install Rust 1.95 or newer, then run this again"
            for tool in "${build_tools[@]}"; do want_command "$tool"; done
            for file in "${build_files[@]}"; do want_file "$file"; done
            ;;
        run)
            for tool in "${run_tools[@]}"; do want_command "$tool"; done
            for file in "${run_files[@]}"; do want_file "$file"; done
            ;;
        test) for tool in "${test_tools[@]}"; do want_command "$tool"; done ;;
        *) die "\`$group\` is not one of: build, run, test" ;;
    esac
done

if [ ${#packages[@]} -eq 0 ]; then
    say "nothing is missing for: ${groups[*]}"
    exit 0
fi
say "missing: ${missing[*]}"
if ! command -v apt-get >/dev/null; then
    die "this script only knows Debian and Ubuntu" \
        "install with this distribution's package manager what provides: ${missing[*]}"
fi
if [ "$(id -u)" -ne 0 ]; then
    die "installing needs root" "run: sudo apt-get install ${packages[*]}"
fi

export DEBIAN_FRONTEND=noninteractive
get=(apt-get -q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
"${get[@]}" update >/dev/null || say "apt-get update did not succeed; going on with the lists that are there"
# Before Debian 13 and Ubuntu 25.04, the docker command was part of docker.io.
for index in "${!packages[@]}"; do
    if [ "${packages[index]}" = docker-cli ] && ! apt-cache show docker-cli >/dev/null 2>&1; then
        packages[index]=docker.io
    fi
done
"${get[@]}" install --no-install-recommends "${packages[@]}" >/dev/null ||
    die "apt-get could not install: ${packages[*]}" "see above why; then run this again"
say "installed: ${packages[*]}"
