#!/usr/bin/env bash
# `make demo`: the whole platform, from nothing to answers, on this machine.
#
# Sets up what is missing, compiles `epsilon` (EPSILON_BIN: uses that one instead) and makes the runtime base meanwhile,
# starts `epsilon up` on a data folder of its own,
# deploys each of examples/, calls each, once more without an instance, with the receipt of its start, pushes a change
# of one with git while it is called, then stays up until Ctrl-C. Removes everything at its end, however it ends, and looks whether that is true. DEMO_EXIT=1:
# ends by itself after the tour, with status 0.
#
# What is called is written in infra/demo-calls.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=infra/engine.sh
. infra/engine.sh
# shellcheck source=infra/programs.sh
. infra/programs.sh

# The first start makes the runtime base: minutes on a slow mirror.
READY_LIMIT=${DEMO_READY_LIMIT:-1500}
# Draining and removing the containers.
STOP_LIMIT=90
# One call of an example.
CALL_LIMIT=60
# From a push that ended to the new version's answers.
NEW_LIMIT=30
# Until instances have gone, or cells are ready.
REST_LIMIT=60
# Those who call while git pushes.
CALLERS=4

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'; else bold='' dim='' green='' red='' plain=''; fi
title() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
note() { printf '%s%s%s\n' "$dim" "$*" "$plain"; }
wrong() {
    fail "$*"
    failures=$((failures + 1))
}
fail() { printf '%sdemo: %s%s\n' "$red" "$*" "$plain" >&2; }

work=''     # the demo's folder: data, logs
platform='' # the process of `epsilon up`
base=''     # the process that makes the runtime base
shown=''    # the process that shows a log
failures=0
cleaned=''
exec 3>&1 # a signal may come while the output of a command is redirected

# ---------------------------------------------------------------------------------------------------- end

stop_platform() {
    [ -n "$platform" ] || return 0
    kill -TERM "$platform" 2>/dev/null || true
    local waited=0 status=0
    while kill -0 "$platform" 2>/dev/null; do
        if [ "$waited" -ge $((STOP_LIMIT * 5)) ]; then
            fail "\`epsilon up\` did not end within $STOP_LIMIT s; killing it"
            kill -KILL "$platform" 2>/dev/null || true
            failures=$((failures + 1))
            break
        fi
        sleep 0.2
        waited=$((waited + 1))
    done
    wait "$platform" || status=$?
    platform=''
    if [ "$status" -ne 0 ]; then
        wrong "\`epsilon up\` ended with status $status; the end of its log:"
        tail -n 20 "$work/up.log" >&2
    fi
}

# Looks for all that could be left: containers, networks, mounts, processes, the data folder.
look_for_leftovers() {
    local left=() label='' vm
    if vm=$(cat "$work/data/vm/id" 2>/dev/null); then
        label="epsilon.vm=$vm"
        if engine_holds containers "$label"; then left+=("containers with the label $label"); fi
        if engine_holds networks "$label"; then left+=("a network with the label $label"); fi
    fi
    if grep -qF " $work" /proc/mounts; then left+=("mounts below $work"); fi
    local process
    for process in /proc/[0-9]*; do
        # This script and its children name the folder only in variables. Processes may end meanwhile.
        if { tr '\0' ' ' <"$process/cmdline" | grep -qF -e "$work/data" -e "$work/base"; } 2>/dev/null; then
            left+=("process ${process#/proc/}")
        fi
    done
    rm -rf "$work" 2>/dev/null || true
    if [ -e "$work" ]; then left+=("the folder $work"); fi
    if [ ${#left[@]} -gt 0 ]; then
        wrong "left: $(printf '%s; ' "${left[@]}")"
    else
        note "nothing is left: no container, no network, no mount, no process, no data"
    fi
}

finish() {
    local status=$?
    trap - EXIT
    trap '' INT TERM HUP # the end is not to be interrupted; each of its waits has a limit
    [ -z "$cleaned" ] || exit "$status"
    cleaned=yes
    exec >&3
    if [ -n "$shown" ]; then kill "$shown" 2>/dev/null || true; fi
    if [ -n "$work" ]; then rm -f "$work/calling"; fi # callers end
    if [ -n "$work" ]; then
        title "The end"
        note "draining, removing containers…"
        stop_platform
        stop_base
        look_for_leftovers
    fi
    if [ "$failures" -gt 0 ]; then
        fail "$failures things went wrong"
        exit 1
    fi
    exit "$status"
}
trap finish EXIT
trap 'exit 0' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

# --------------------------------------------------------------------------------------------------- parts

# Runs a command and shows it as a person would type it.
run() {
    printf '\n%s$ %s%s\n' "$green" "$(printf '%s ' "$@" | sed 's/ $//')" "$plain"
    "$@"
}

epsilon() { "$binary" "$@"; }

is_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# What the platform logs until it is ready: on a terminal, the newest line in place.
show_log() {
    local line
    while IFS= read -r line; do
        if [ -t 1 ]; then
            printf '\r\e[K%s  %s%s' "$dim" "${line:0:$((${COLUMNS:-80} - 4))}" "$plain"
        else
            printf '  | %s\n' "$line"
        fi
    done
}

# show LOG: from now on, until end_show.
show() {
    tail -n +1 -F "$1" > >(show_log) 2>/dev/null &
    shown=$!
}
end_show() {
    kill "$shown" 2>/dev/null || true
    wait "$shown" 2>/dev/null || true
    shown=''
    [ ! -t 1 ] || printf '\r\e[K'
}

# Makes the runtime base while cargo compiles the rest, with a builder that no gateway answers. `epsilon up` finds it in the
# engine; where this failed, it makes the base itself, and says what is wrong.
start_base() {
    od -An -N16 -tx1 /dev/urandom | tr -d ' \n' >"$work/fleet.token"
    setsid "$1" --gateway http://127.0.0.1:9 --token-file "$work/fleet.token" --listen 127.0.0.1:0 \
        --data-dir "$work/base" --log-format compact >"$work/base.log" 2>&1 </dev/null &
    base=$!
}

base_is_made() { grep -q 'runtime base is ready' "$work/base.log"; }

await_base() {
    [ -n "$base" ] || return 0
    local waited=0
    base_is_made || {
        note "Waiting for the runtime base, Debian and Node: a minute or two, once on a machine."
        show "$work/base.log"
        while kill -0 "$base" 2>/dev/null && ! base_is_made && [ "$waited" -lt $((READY_LIMIT * 5)) ]; do
            sleep 0.2
            waited=$((waited + 1))
        done
        end_show
    }
    stop_base
}

# On SIGTERM it removes its containers.
stop_base() {
    [ -n "$base" ] || return 0
    local waited=0
    kill -TERM "$base" 2>/dev/null || true
    while kill -0 "$base" 2>/dev/null && [ "$waited" -lt $((STOP_LIMIT * 5)) ]; do
        sleep 0.2
        waited=$((waited + 1))
    done
    kill -KILL "$base" 2>/dev/null || true
    wait "$base" 2>/dev/null || true
    base=''
}

compile() {
    local folder
    note "Compiling Epsilon: about five minutes on two cores the first time, seconds from then on. (Without AWS, which packages have.)"
    build_programs --no-default-features --bin epsilon-builder
    folder=$(programs_folder)
    note "The builder is there: it makes the runtime base while the rest is compiled."
    start_base "$folder/epsilon-builder"
    build_programs --no-default-features --bin epsilon
    binary=$folder/epsilon
}

start_platform() {
    local listen=127.0.0.1:8080 control=127.0.0.1:8081
    if is_taken 8080 || is_taken 8081; then
        note "port 8080 or 8081 is taken: using free ones"
        listen=127.0.0.1:0 control=127.0.0.1:0
    fi
    printf '\n%s$ epsilon up%s\n' "$green" "$plain"
    # In a session of its own: Ctrl-C is for this script, which then ends it in order.
    setsid "$binary" up --listen "$listen" --control "$control" --data-dir "$work/data" \
        --log-format compact >"$work/ready" 2>"$work/up.log" </dev/null &
    platform=$!
    show "$work/up.log"

    local waited=0
    until grep -q '^ready' "$work/ready"; do
        if ! kill -0 "$platform" 2>/dev/null; then
            fail "\`epsilon up\` ended before it was ready; its log:"
            tail -n 40 "$work/up.log" >&2
            exit 1
        fi
        if [ "$waited" -ge $((READY_LIMIT * 5)) ]; then
            fail "\`epsilon up\` was not ready within $READY_LIMIT s"
            exit 1
        fi
        sleep 0.2
        waited=$((waited + 1))
    done
    end_show
    cat "$work/ready"
    calls_url=$(grep -o 'http://[^ ]*' "$work/ready" | sed -n 1p)
    control_url=$(grep -o 'http://[^ ]*' "$work/ready" | sed -n 2p)
}

# One call, as a line of infra/demo-calls has it: the command, the answer, the timing.
call() {
    local status=0 words
    # Quotes in the line group words as in a shell.
    mapfile -t words < <(xargs -n1 printf '%s\n' <<<"$1")
    if [ "${words[0]}" = websocket ]; then
        shake_hands "${words[1]}"
        return
    fi
    printf '\n%s$ epsilon invoke %s%s\n' "$green" "$1" "$plain"
    timeout "$CALL_LIMIT" "$binary" invoke "${words[@]}" --timing >"$work/answer" 2>"$work/timing" || status=$?
    head -c 2000 "$work/answer"
    [ -z "$(tail -c1 "$work/answer")" ] || echo
    note "$(cat "$work/timing")"
    [ "$status" -eq 0 ] || wrong "that call ended with status $status"
}

# Upgrades to WebSocket and shows what the function says first.
shake_hands() {
    local ask=(curl -isN --noproxy '*' --http1.1 --max-time 3 -H 'Connection: Upgrade' -H 'Upgrade: websocket'
        -H 'Sec-WebSocket-Version: 13' -H 'Sec-WebSocket-Key: ZXBzaWxvbi1kZW1vLWtleQ==' "$calls_url/$1")
    printf '\n%s$ curl -iN -H "Connection: Upgrade" -H "Upgrade: websocket" … %s/%s%s\n' "$green" "$calls_url" "$1" "$plain"
    # The connection stays open: curl ends by its time limit, which is no failure here.
    { "${ask[@]}" || true; } | tr -d '\r' | tr -cd '[:print:]\n' >"$work/answer"
    head -n 12 "$work/answer"
    echo
    grep -q '^HTTP/1.1 101' "$work/answer" || wrong "the handshake was not answered with 101"
}

tour() {
    local folder functions='' line lines name
    for folder in examples/*/; do
        folder=${folder%/}
        title "$folder"
        printf '\n%s$ epsilon deploy %s%s\n' "$green" "$folder" "$plain"
        if ! epsilon deploy "$folder" >"$work/deployed"; then
            wrong "$folder was not deployed"
            continue
        fi
        cat "$work/deployed"
        functions=$(awk 'NR > 1 { print $1 }' "$work/deployed")
        lines=$(awk -v folder="${folder##*/}" '$1 == folder { sub(/^[^ ]+ +/, ""); print }' infra/demo-calls)
        while IFS= read -r line; do call "$line"; done <<<"${lines:-$functions}"
    done
    # The first of the list is the one to look at.
    read -r folder name _ < <(grep -v -e '^#' -e '^$' infra/demo-calls)

    title "A look around"
    run epsilon functions
    run epsilon versions "$name"
    run epsilon logs "$name" --tail 5
    run epsilon vms
    title "Pushing the same again makes no new version"
    run epsilon deploy "examples/$folder"
}

# --------------------------------------------------------------------------------------------- first calls

# What the VM holds, without blanks, for grep.
vm_holds() { epsilon vms --json | tr -d ' \n'; }

# wait_for WHAT COMMAND…: looks until the command succeeds; fails after REST_LIMIT.
wait_for() {
    local what=$1 waited=0
    shift
    until "$@"; do
        if [ "$waited" -ge $((REST_LIMIT * 5)) ]; then
            note "not within $REST_LIMIT s: $what"
            return 1
        fi
        sleep 0.2
        waited=$((waited + 1))
    done
}

no_instance_is_left() { vm_holds | grep -q '"instances":\[\]'; }
cells_are_ready() { vm_holds | grep -qE '"cells":\{"ready":[1-9][0-9]*,"booting":0'; }

# The first line of each example, without an instance.
first_calls() {
    local vm line words status
    title "First calls: nothing of these functions runs"
    note "Draining the VM sends all instances away, as an hour without a call does. Then cells get ready: booted containers"
    note "that wait for a function's code. What a call's start was made of is its receipt."
    vm=$(cat "$work/data/vm/id")
    run epsilon drain "$vm"
    wait_for "no instance is left" no_instance_is_left || wrong "instances stayed after a drain"
    run epsilon undrain "$vm"
    while IFS= read -r line; do
        # Each call takes one.
        wait_for "cells are ready" cells_are_ready || true
        mapfile -t words < <(xargs -n1 printf '%s\n' <<<"$line")
        printf '\n%s$ epsilon invoke %s --timing%s\n' "$green" "$line" "$plain"
        status=0
        # Its errors go where ours go: on a terminal the receipt is a table.
        timeout "$CALL_LIMIT" "$binary" invoke "${words[@]}" --timing >"$work/answer" || status=$?
        head -c 300 "$work/answer" | head -n 3 >"$work/shown"
        cat "$work/shown"
        [ -z "$(tail -c1 "$work/shown")" ] || echo
        [ "$status" -eq 0 ] || wrong "that call ended with status $status"
    done < <(awk '!/^#/ && NF && !seen[$1]++ && $2 != "websocket" { sub(/^[^ ]+ +/, ""); print }' infra/demo-calls)
}

# ------------------------------------------------------------------------------------------------- git push

# git as on a new machine: no settings, no prompts; the key comes from a helper.
dev_git() {
    GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 GIT_TERMINAL_PROMPT=0 git -C "$work/hello" \
        -c user.name=Demo -c user.email=demo@localhost -c commit.gpgSign=false -c init.defaultBranch=main \
        -c credential.helper= -c credential.helper="!f() { echo username=demo; echo password=\$(cat '$work/data/admin.key'); }; f" \
        "$@"
}

# Runs it and shows it as its developer types it.
type_git() {
    printf '\n%s$ git %s%s\n' "$green" "$*" "$plain"
    dev_git "$@"
}

# Calls one after another until "calling" is removed; a line for each: the answer and its status, 000 for none.
call_on() {
    while [ -e "$work/calling" ]; do
        curl -s --noproxy '*' --max-time "$CALL_LIMIT" -w ' %{http_code}\n' "$calls_url/hello" || true
    done >"$work/calls.$1"
}

# How many lines of all callers match.
calls_that() { cat "$work"/calls.* | grep -c -e "$1" || true; }

push_with_git() {
    title "git push deploys, and no call is lost"
    cp -r examples/hello "$work/hello"
    dev_git init --quiet
    type_git remote add epsilon "$control_url/git/hello"
    dev_git add --all
    type_git commit --quiet --message "As in examples/"
    type_git push epsilon main || wrong "the first push failed"

    local caller callers=() waited=0 total lost
    : >"$work/calling"
    for caller in $(seq "$CALLERS"); do
        call_on "$caller" &
        callers+=("$!")
    done
    until [ "$(calls_that '^Hello.* 200$')" -ge 20 ] || [ "$waited" -ge $((CALL_LIMIT * 10)) ]; do
        sleep 0.1
        waited=$((waited + 1))
    done
    note "$CALLERS callers are at work. Now a change:"
    printf "\n%s$ sed -i 's/Hello/Good morning/' index.js%s\n" "$green" "$plain"
    sed -i 's/Hello/Good morning/' "$work/hello/index.js"
    type_git commit --quiet --all --message "Good morning"
    type_git push epsilon main || wrong "the push failed"
    waited=0
    until [ "$(calls_that '^Good morning.* 200$')" -ge 20 ] || [ "$waited" -ge $((NEW_LIMIT * 10)) ]; do
        sleep 0.1
        waited=$((waited + 1))
    done
    rm -f "$work/calling"
    wait "${callers[@]}" || true

    total=$(calls_that '') lost=$(cat "$work"/calls.* | grep -v -c ' 200$' || true)
    printf '\n%s calls meanwhile: %s by the old version, %s by the new one, %s%s lost%s\n' "$total" \
        "$(calls_that '^Hello.* 200$')" "$(calls_that '^Good morning.* 200$')" "$bold" "$lost" "$plain"
    [ "$lost" -eq 0 ] || wrong "$lost calls were lost during a push"
    [ "$(calls_that '^Good morning.* 200$')" -gt 0 ] || wrong "the pushed version does not answer"
    run epsilon versions hello
}

# -------------------------------------------------------------------------------------------------- script

title "What this machine needs"
infra/ensure-tools.sh build run
infra/ensure-docker.sh

work=$(mktemp -d "${TMPDIR:-/tmp}/epsilon-demo.XXXXXX")
binary=${EPSILON_BIN:-}
[ -z "$binary" ] || binary=$(realpath "$binary")
# Whatever the caller's environment says, this is a platform of its own.
while IFS= read -r name; do unset "$name"; done < <(compgen -e | grep '^EPSILON_' || true)
if [ -z "$binary" ]; then
    title "The programs"
    compile
elif [ -x "${binary%/*}/epsilon-builder" ]; then
    start_base "${binary%/*}/epsilon-builder"
fi
await_base

title "The platform"
export EPSILON_DATA_DIR="$work/data"
start_platform
tour
first_calls
push_with_git

if [ "${DEMO_EXIT:-}" = 1 ]; then
    exit 0
fi

title "It stays up until Ctrl-C. Try in another terminal:"
cat <<END

  export PATH=${binary%/*}:\$PATH EPSILON_DATA_DIR=$EPSILON_DATA_DIR
  epsilon init shop && epsilon deploy shop
  epsilon invoke hello --timing
  curl -i '$calls_url/hello?name=you'
  epsilon logs hello --follow
  curl -s $control_url/metrics | grep ^epsilon_

END
# Ends with Ctrl-C, or when the platform ends by itself.
wait "$platform" || true
wrong "\`epsilon up\` ended by itself"
