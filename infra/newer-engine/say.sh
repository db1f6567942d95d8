# shellcheck shell=bash
# How these scripts speak: sourced, never run. To standard error, because fetch.sh answers on standard output.

say() { printf 'newer-engine: %s\n' "$*" >&2; }

# die WHAT [NEXT_STEP…]
die() {
    say "error: $1"
    shift
    [ $# -eq 0 ] || printf '  %s\n' "$@" >&2
    exit 1
}
