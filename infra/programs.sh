# shellcheck shell=bash
# Epsilon's programs as the demos and the tests use them: sourced, never run. They are built in the profile `quick`
# (Cargo.toml): a third of a release build's time, the same code. Packages, `make install` and `make bench` have release
# builds.
#
# All callers name the same packages, whichever programs they want: cargo chooses the features of a library by the packages
# that it is asked for, and would compile it once more for each other choice.

# build_programs CARGO_FLAG…: which programs, `--bin epsilon` or `--bins`, and `--no-default-features` for programs without AWS.
build_programs() {
    cargo build --profile quick --locked --package epsilon-cli --package epsilon-gateway --package epsilon-vm-agent \
        --package epsilon-builder --package epsilon-e2e "$@"
}

# programs_folder: where they are then.
programs_folder() {
    local metadata
    metadata=$(cargo metadata --format-version 1 --no-deps --offline --locked) || return
    echo "$(grep -o '"target_directory":"[^"]*"' <<<"$metadata" | cut -d'"' -f4)/quick"
}
