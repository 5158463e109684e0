#!/usr/bin/env bash
# Cuts the power of everything that writes an image, at every point of every operation that the tests make up, and says how many
# states of a disk were looked at; kills every command that writes.
#
#   TORTURE=10 TORTURE_SEED=0 scripts/torture.sh        ten times as many operations as in the tests, and of cuts at each point
#
# What fails names its seed: the same TORTURE and TORTURE_SEED find it again.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh test
export TORTURE=${TORTURE:-10} TORTURE_SEED=${TORTURE_SEED:-0}
TORTURE_LOG=$(mktemp)
export TORTURE_LOG
trap 'rm -f "$TORTURE_LOG"' EXIT

# As fast as a release, and as strict as a test.
export CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true
targets=(--lib)
packages=()
for path in $(git grep -lE 'crash_states|test_utils::.*seeds' -- '*/src/*.rs' '*/tests/*.rs'); do
    package=${path%%/*}
    [[ " ${packages[*]} " == *" $package "* ]] || packages+=("$package")
    case $path in
        "$package"/tests/*) targets+=(--test "$(basename -s .rs "$path")") ;;
    esac
done
cargo test --release --all-features "${packages[@]/#/--package=}" "${targets[@]}"
# Threads beside each other, and commands that are killed at every system call that changes something.
cargo test --release --all-features --package=tests --test stress
cargo test --release --all-features --package=imgtool --test imgtool killed::
awk '{ sum += $1 } END { printf "%d states of disks after a power cut, and none was wrong\n", sum }' "$TORTURE_LOG"
