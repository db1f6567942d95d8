#!/usr/bin/env bash
# Runs the tests of infra/ that need no engine: release package, units, AWS template, machines' scripts, Prometheus
# rules, dashboard, costs. infra/ensure-tools.sh brings what they need.
#
#   infra/test-infra.sh [NAME…]        (of infra/tests/test_NAME.py; default: all)
set -euo pipefail
cd "$(dirname "$0")/tests"

tools=${EPSILON_TOOLS_DIR:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/epsilon-tools}
names=("${@/#/test_}")
[ $# -gt 0 ] || mapfile -t names < <(printf '%s\n' test_*.py | sed 's/\.py$//')
# Whatever account the caller is logged in to, these tests speak to moto only.
export AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_DEFAULT_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true
unset AWS_PROFILE AWS_SESSION_TOKEN AWS_ENDPOINT_URL
export PYTHONDONTWRITEBYTECODE=1
exec "$tools/moto/bin/python" run.py "${names[@]}"
