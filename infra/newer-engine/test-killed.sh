#!/usr/bin/env bash
# Kills run.sh in the middle with SIGKILL, and checks that nothing of it is left on this machine: its guard process has to
# clean up everything. Called by test.sh.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=infra/newer-engine/say.sh
. "$here/say.sh"
readonly START_LIMIT=120 GONE_LIMIT=60

work=$(mktemp -d "${TMPDIR:-/tmp}/epsilon-killed.XXXXXX")
run=''
# The process may have ended already.
trap '[ -z "$run" ] || kill "$run" 2>/dev/null || true; rm -rf "$work"' EXIT
# shellcheck disable=SC2016 # that shell's variables
"$here/run.sh" sh -c 'echo "${DOCKER_HOST#unix://}" >"$0/socket"; sleep 1000' "$work" 2>"$work/log" &
run=$!
for _ in $(seq $((START_LIMIT * 10))); do
    if [ -s "$work/socket" ] || ! kill -0 "$run" 2>/dev/null; then break; fi
    sleep 0.1
done
[ -s "$work/socket" ] || die "the engine did not start within $START_LIMIT s:" "$(cat "$work/log")"
folder=$(dirname "$(cat "$work/socket")")
link=newer$run

# What is there of the run, a word each.
left() {
    if [ -d "$folder" ]; then echo folder; fi
    if ip link show "$link" >/dev/null 2>&1; then echo link; fi
    # Read to the end: who is cut off by `grep -q` counts as failed.
    if [[ "$({ iptables -w 30 -S && iptables -w 30 -t nat -S; } 2>/dev/null)" == *" $link "* ]]; then echo rules; fi
    if grep -qsF "$folder" /proc/[0-9]*/cmdline; then echo processes; fi
    if [ -n "$(find /sys/fs/cgroup -type d -name "$link" 2>/dev/null)" ]; then echo control-group; fi
}
[ "$(left | grep -cxE 'folder|link|rules|processes')" -eq 4 ] || die "a run has a folder, a link, rules and processes; this one:" "$(left | paste -sd' ')"
kill -KILL "$run"
for _ in $(seq $((GONE_LIMIT * 10))); do
    [ -n "$(left)" ] || break
    sleep 0.1
done
[ -z "$(left)" ] || die "a run that was killed has left, after $GONE_LIMIT s:" "$(left | paste -sd' ')"
say "a run that was killed has left nothing"
echo '# pass 1'
