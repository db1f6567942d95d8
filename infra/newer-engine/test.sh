#!/usr/bin/env bash
# A part of `make test`: what an engine has to do for the agent, cells, and a part of the end-to-end tests, on a newer engine
# than the machine's own (run.sh). Those are chosen that another engine could break; all tests run on the machine's own.
# Needs what the parts before it made: test binaries, EPSILON_BIN, and the runtime base on the machine's engine.
#
#   infra/newer-engine/test.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=infra/newer-engine/say.sh
. infra/newer-engine/say.sh

# Of vm-agent/tests/cells.
cells=(
    closed::it_is_hardened_as_an_instance_from_an_image
    closed::cells_do_not_see_other_code
    faults::ready_cell_that_dies_is_replaced
    faults::engine_that_does_not_see_mounts_starts_from_images
    faults::load_failure_is_reported_and_removes_its_cell
    isolation::calls_that_no_function_needs_are_refused
    isolation::each_instance_has_its_own_named_user
    isolation::only_dns_of_the_machine_is_reached
    isolation::the_socket_directory_is_small_and_closed_to_code
    restart::adopted_cells_serve_on_and_dead_are_removed
    serve::a_first_call_finds_a_booted_container
    serve::limits_of_the_function_are_set_beside_the_load
)
# Of tests/e2e/tests/platform.
platform=(
    calls::crash_is_502_and_next_call_succeeds
    calls::a_timeout_is_504_and_the_instance_is_killed
    cold::cell_serves_one_version_and_is_never_reused
    cold::a_platform_that_ends_leaves_nothing_of_its_cells
    cold::without_cells_functions_come_from_their_images
    command_line::init_deploy_invoke_logs_change_deploy_again
    containers::a_folder_with_a_dockerfile_is_built_and_served
    images::docker_run_serves_the_function_on_8080
    images_own::volume_is_bounded_memory_and_healthcheck_never_runs
    isolation::instance_cannot_reach_instances_or_control_api
    isolation::memory_over_the_limit_kills_only_the_instance
    isolation::network_none_has_nothing_but_loopback
    isolation::the_container_is_hardened
    lifecycle::idle_instance_is_removed_next_call_starts_one
    logs::each_level_and_stream_becomes_a_record
    logs::logs_follow_shows_lines_as_they_come
    versions::deleted_function_never_reuses_version_numbers
    versions::deployment_loses_no_call_and_switches_at_once
    versions::rollback_goes_to_previous_or_named_version
)

# run_all LIMIT TEST-BINARY CARGO-FLAG… -- [NAME…]: with the flags of the part that compiled them, so that nothing is
# compiled again. A name that no test has is a failure.
run_all() {
    local limit=$1 binary=$2 flags=() found
    shift 2
    while [ "$1" != -- ]; do
        flags+=("$1")
        shift
    done
    shift
    local run=(cargo test "${flags[@]}" --offline --locked --test "$binary" -- --exact "$@")
    found=$("${run[@]}" --list 2>/dev/null | grep -c ': test$') || found=0
    if [ "$found" -eq 0 ] || { [ $# -gt 0 ] && [ "$found" -ne $# ]; }; then
        say "error: of $# tests of \`$binary\`, $found exist"
        return 1
    fi
    timeout --foreground --kill-after=30 "$limit" "${run[@]}" || {
        say "error: \`$binary\` failed, or did not end within $limit"
        return 1
    }
}

if [ "${1:-}" = --inside ]; then
    failed=0
    agent=(--workspace --exclude epsilon-e2e)
    run_all 2m contract "${agent[@]}" -- || failed=1
    run_all 4m cells "${agent[@]}" -- "${cells[@]}" || failed=1
    run_all 4m platform --package epsilon-e2e -- "${platform[@]}" || failed=1
    exit "$failed"
fi

# The base is not made again: all names of the two images that it is.
tags=$(docker image inspect -f '{{join .RepoTags "\n"}}' epsilon/runtime-node:current epsilon/inspector-node:current) ||
    die "the machine's engine has no runtime base" "run: infra/test-wrapper.sh"
images=()
while IFS= read -r tag; do images+=(--image "$tag"); done < <(sort -u <<<"$tags")
infra/newer-engine/fetch.sh >/dev/null # has its own limits; the next two find it there
infra/newer-engine/test-killed.sh
exec infra/newer-engine/run.sh "${images[@]}" infra/newer-engine/test.sh --inside
