#!/usr/bin/env bash
# Runs the Node wrapper's tests where the wrapper runs: in a container of the runtime base, with the Node
# and the Express of that image, as the user that functions run as: those of the contract that every language's wrapper
# keeps (wrapper-image/contract), and Node's own. Then the tests of the builder's module graphs
# in the inspector's image, with the esbuild of that one. The base is made as every start of
# Epsilon makes it: by `epsilon up` (EPSILON_BIN, default: the one that `make test` builds).
set -euo pipefail
cd "$(dirname "$0")/.."

# Making the base on a slow mirror takes minutes.
READY_LIMIT=${WRAPPER_READY_LIMIT:-1500}
IMAGE=epsilon/runtime-node:current
binary=${EPSILON_BIN:-target/quick/epsilon}

work=$(mktemp -d "${TMPDIR:-/tmp}/epsilon-wrapper.XXXXXX")
container=epsilon-wrapper-tests-$$
platform=''
stop() {
    [ -n "$platform" ] || return 0
    kill -TERM "$platform" 2>/dev/null || true
    wait "$platform" || true
    platform=''
}
# `docker rm` complains when the container is gone already, as it is after a run that was not cut.
trap 'stop; docker rm -f "$container" >/dev/null 2>&1 || true; rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

echo "making sure that $IMAGE is there"
"$binary" up --listen 127.0.0.1:0 --control 127.0.0.1:0 --data-dir "$work/data" --log-format compact \
    >"$work/ready" 2>"$work/log" </dev/null &
platform=$!
waited=0
until grep -q '^ready' "$work/ready"; do
    if ! kill -0 "$platform" 2>/dev/null || [ "$waited" -ge $((READY_LIMIT * 5)) ]; then
        echo "\`epsilon up\` did not become ready; its log:" >&2
        cat "$work/log" >&2
        exit 1
    fi
    sleep 0.2
    waited=$((waited + 1))
done
stop

# Only the tests come from this checkout; what they test is what the image ships.
run_tests() { # image, working folder, then further arguments of docker
    local image=$1 folder=$2
    shift 2
    docker run --rm --init --name "$container" --network none --read-only --tmpfs /tmp:exec,mode=1777 --cap-drop ALL \
        --user 65532:65532 --env HOME=/tmp --env NODE_ENV=production \
        "$@" --workdir "$folder" --entrypoint node "$image" \
        --test --test-reporter=spec 'test/**/*.test.js'
}
contract=(--volume "$PWD/wrapper-image/contract:/epsilon/contract:ro")
run_tests "$IMAGE" /epsilon/contract "${contract[@]}" \
    --env EPSILON_LANGUAGE=node --env 'EPSILON_WRAPPER=["node","/epsilon/wrapper/main.js"]'
run_tests "$IMAGE" /epsilon/wrapper "${contract[@]}" --volume "$PWD/wrapper-image/node/test:/epsilon/wrapper/test:ro"
run_tests epsilon/inspector-node:current /epsilon/graph \
    --volume "$PWD/builder/src/language/node/graph/test:/epsilon/graph/test:ro"
