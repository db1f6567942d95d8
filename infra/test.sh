#!/usr/bin/env bash
# `make test`: sets up what the tests need and runs them all. A part that cannot run has failed; nothing is
# skipped. Ends with a table of the parts and one line `N passed, N failed`.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=infra/engine.sh
. infra/engine.sh
# shellcheck source=infra/programs.sh
. infra/programs.sh

logs=$(mktemp -d "${TMPDIR:-/tmp}/epsilon-test.XXXXXX")
stop_beside() {
    local pid
    for pid in "$logs"/*.pid; do
        # `timeout` passes the signal on to all that it runs.
        if [ -e "$pid" ]; then kill -TERM "$(cat "$pid")" 2>/dev/null || true; fi
    done
    wait 2>/dev/null || true # its tests clean up after themselves
}
trap 'stop_beside; rm -rf "$logs"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

rows=()
passed=0
failed=0

# Adds up what a part's output says of single tests (Rust's, Node's). A part without such lines is one test.
count() {
    local log=$1 status=$2 good bad
    good=$(sed -nE 's/^test result: .* ([0-9]+) passed;.*/\1/p; s/^(#|ℹ) pass ([0-9]+)$/\2/p' "$log" | paste -sd+ | bc_or_zero)
    bad=$(sed -nE 's/^test result: .* ([0-9]+) failed;.*/\1/p; s/^(#|ℹ) fail ([0-9]+)$/\2/p' "$log" | paste -sd+ | bc_or_zero)
    if [ "$status" -ne 0 ] && [ "$bad" -eq 0 ]; then bad=1; fi
    if [ "$status" -eq 0 ] && [ "$good" -eq 0 ]; then good=1; fi
    passed=$((passed + good))
    failed=$((failed + bad))
    counted="$good passed, $bad failed"
}
bc_or_zero() {
    local sum
    read -r sum || true
    echo $((${sum:-0}))
}

# record NAME STATUS SECONDS LOG: a row of the table.
record() {
    local word=ok
    [ "$2" -ne 124 ] || echo "=== $1 did not end within its limit"
    count "$4" "$2"
    [ "$2" -eq 0 ] || word=FAILED
    rows+=("$(printf '%-10s %-7s %6s s   %s' "$1" "$word" "$3" "$counted")")
}

# part NAME LIMIT COMMAND…: runs one part with a time limit and remembers how it went.
part() {
    local name=$1 limit=$2 status=0 began=$SECONDS
    shift 2
    printf '\n=== %s: %s\n' "$name" "$*"
    # In the foreground, so that Ctrl-C reaches it.
    timeout --foreground --kill-after=60 "$limit" "$@" 2>&1 | tee "$logs/part" || status=$?
    record "$name" "$status" $((SECONDS - began)) "$logs/part"
}

# beside NAME LIMIT COMMAND…: the same beside the parts that follow, until `join NAME`, which shows its output.
declare -A running=()
beside() {
    local name=$1 limit=$2
    shift 2
    printf '\n=== %s, beside the next: %s\n' "$name" "$*"
    {
        began=$SECONDS status=0
        timeout --kill-after=60 "$limit" "$@" >"$logs/$name" 2>&1 </dev/null &
        echo "$!" >"$logs/$name.pid"
        wait "$!" || status=$?
        echo "$status $((SECONDS - began))" >"$logs/$name.end"
    } &
    running[$name]=$!
}
join() {
    local name=$1 status took
    printf '\n=== %s, which began earlier\n' "$name"
    wait "${running[$name]}" || true
    rm -f "$logs/$name.pid"
    read -r status took <"$logs/$name.end"
    cat "$logs/$name"
    record "$name" "$status" "$took" "$logs/$name"
}

# Names and states of what has this label.
traces() {
    {
        engine_get '/containers/json?all=true' "{\"label\":[\"$1\"]}"
        engine_get /networks "{\"label\":[\"$1\"]}"
    } | grep -oE '"(Names|Name|State|Status|Created)":("[^"]*"|\[[^]]*\])' | paste -sd' '
}

# Mounts of the tests' platforms: those in temporary folders, and those that were noted by who cleans up after a platform that
# ended in order (tests/e2e/src/program.rs).
mounts() {
    {
        grep -oE " ${TMPDIR:-/tmp}/[^ ]*/vm/[^ ]*" /proc/mounts || true
        sed 's/^/left by a platform that ended in order:/' "$noted" 2>/dev/null || true
    } | sort -u
}

# What was there before the tests may stay: it is the person's own.
no_leftovers() {
    local left waited line label ours=''
    # What cleans up after a test process outlives it by seconds.
    for waited in $(seq 0 60); do
        left=$(comm -13 "$logs/before" <(engine_platforms))
        if [ -z "$left" ] || [ "$waited" -eq 60 ]; then break; fi
        sleep 1
    done
    while IFS= read -r line; do
        if [ -z "$line" ]; then continue; fi
        label=$(tr -d '"' <<<"${line/\":\"/=}")
        if engine_miscounts "$label"; then
            echo "the engine keeps an empty network that it believes in use, until its next start: $label"
        else
            ours+="$label: $(traces "$label")"$'\n'
        fi
    done <<<"$left"
    left=$(comm -13 "$logs/mounts" <(mounts))
    [ -z "$ours$left" ] || {
        printf 'left on the engine, by label:\n%smounts left:\n%s\n' "$ours" "$left"
        return 1
    }
}

# Whatever the caller's environment says, the tests make platforms of their own.
while IFS= read -r name; do unset "$name"; done < <(compgen -e | grep -E '^(EPSILON_|DEMO_|INSTA_)' || true)

part tools 15m infra/ensure-tools.sh
part docker 10m infra/ensure-docker.sh
engine_platforms >"$logs/before" || true # none, or no engine: then the parts that need it fail
programs=$(programs_folder)
noted=${programs%/*}/tmp/left-behind
rm -f "$noted"
mounts >"$logs/mounts"
part format 2m cargo fmt --all --check
mapfile -t scripts < <(git ls-files .ci/run 'infra/*.sh')
part scripts 2m shellcheck --external-sources "${scripts[@]}"
part infra 10m infra/test-infra.sh
part lints 30m cargo clippy --workspace --all-targets --locked -- --deny warnings
part crates 5m "${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/epsilon-tools/cargo-deny/bin/cargo-deny" --locked --log-level error check bans licenses sources
# `make demo` has programs without AWS.
part no-aws 10m cargo clippy --locked --no-default-features --package epsilon-cli --package epsilon-gateway --package epsilon-vm-agent --package epsilon-builder -- --deny warnings
part build 30m bash -euc '. infra/programs.sh; build_programs --bins'
# Makes the runtime base, which the tests of builder and vm-agent use.
part wrapper 40m env EPSILON_BIN="$programs/epsilon" infra/test-wrapper.sh
# By themselves: what tests need of the parts must not get into the programs.
rust=(--workspace --exclude epsilon-e2e --locked --no-fail-fast)
e2e=(--package epsilon-e2e --locked --no-fail-fast)
part compile 30m bash -euc "cargo test ${rust[*]} --no-run; cargo test ${e2e[*]} --no-run"
part rust 40m cargo test "${rust[@]}"
part fleet 40m env EPSILON_BIN="$programs/epsilon" cargo test "${e2e[@]}" --test fleet
# Two at a time of those that mostly wait: for engines, for npm, for time to pass. None needs the whole machine. Beside
# `rust` they do not go: its tests of the agent kill containers, and an engine with so much to do miscounts networks.
beside own 30m env EPSILON_BIN="$programs/epsilon" cargo test "${e2e[@]}" --test own
part platform 40m env EPSILON_BIN="$programs/epsilon" cargo test "${e2e[@]}" --lib --bins --test platform
join own
part alone 15m env EPSILON_BIN="$programs/epsilon" cargo test "${e2e[@]}" --test under_attack --test with_engine_restarted
part e2e-doc 5m cargo test "${e2e[@]}" --doc
part engine 15m env EPSILON_BIN="$programs/epsilon" infra/newer-engine/test.sh
part demo 10m env DEMO_EXIT=1 EPSILON_BIN="$programs/epsilon" infra/demo.sh

printf '\n=== leftovers\n'
status=0
no_leftovers 2>&1 | tee "$logs/part" || status=$?
count "$logs/part" "$status"
rows+=("$(printf '%-10s %-7s %6s s   %s' leftovers "$([ "$status" -eq 0 ] && echo ok || echo FAILED)" 0 "$counted")")

printf '\n=== summary\n'
printf '%s\n' "${rows[@]}"
printf '%s s in all\n\n%s passed, %s failed\n' "$SECONDS" "$passed" "$failed"
[ "$failed" -eq 0 ]
