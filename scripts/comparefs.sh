#!/usr/bin/env bash
# imgtool mkfs beside mke2fs -d and the crate mkext4, in turns, on the same trees.
#
#   scripts/comparefs.sh [WHAT]     only rows whose name contains WHAT
#
# RUNS=3 of each, of which the one with the least processor time counts; a run is stopped after LIMIT=200 seconds. Each row
# has processor time (user and system) and peak memory of each. The trees are made once, under target/comparefs.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/debian.sh
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C
what=${1:-}
runs=${RUNS:-3}
limit=${LIMIT:-200}
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
imgtool=${IMGTOOL:-$target/release/imgtool}
dir=$target/comparefs

fail() { printf 'comparefs: %s\n' "$*" >&2; exit 1; }
command -v "$imgtool" >/dev/null || fail "no $imgtool: run 'make comparefs', or 'cargo build --release --package imgtool'"
mkext4=${MKEXT4:-$target/release/examples/mkext4}
command -v "$mkext4" >/dev/null || fail "no $mkext4: run 'make comparefs', or 'cargo build --release --package benches --example mkext4'"
command -v mke2fs >/dev/null || fail "no mke2fs"
mkdir -p "$dir"
cd "$dir"

# tree NAME: makes a tree, once, under another name until it is whole; what has a slash is there already.
tree() {
    if [[ $1 == */* || -e $1 ]]; then return; fi
    rm -rf new
    mkdir new
    case $1 in
    sparse) truncate -s 8G new/file ;;
    flat) (cd new && seq -f file-%.0f 100000 | xargs touch) ;;
    minbase) debian_rootfs "$PWD/new" ;;
    million) for d in $(seq 1000); do (mkdir "new/$d" && cd "new/$d" && seq -f file-%.0f 1000 | xargs touch); done ;;
    esac
    mv new "$1"
}

# measured COMMAND: seconds of processor time and MiB of memory at most, or that it was not done in time.
measured() {
    rm -f out.img
    python3 - "$limit" "$@" <<'PYTHON'
import resource, subprocess, sys
try:
    done = subprocess.run(sys.argv[2:], timeout=float(sys.argv[1]), capture_output=True)
except subprocess.TimeoutExpired:
    print("inf 0")
    sys.exit()
if done.returncode:
    sys.exit(done.stderr.decode())
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(f"{used.ru_utime + used.ru_stime:.2f} {used.ru_maxrss / 1024:.0f}")
PYTHON
}

# peer FILE COMMAND: what it takes, into FILE; what does not end in time need not be tried again.
peer() {
    local file=$1
    shift
    if grep -q inf "$file" 2>/dev/null; then return; fi
    measured "$@" >>"$file" || fail "$*"
}

# best FILE: the run with the least processor time.
best() {
    local run
    run=$(sort -g "$1" | head -n1)
    [ "${run%% *}" = inf ] && run="> $limit s"
    printf %s "$run"
}

# row NAME TREE [MIB]: all on a tree; the others are told how large the filesystem is to be.
row() {
    [[ $1 == *"$what"* ]] || return 0
    local run mib
    tree "$2"
    mib=${3:-$(($(du -sxm "$2" | cut -f 1) * 3 / 2 + 500))}
    rm -f ours mke2fs mkext4
    for ((run = 0; run < runs; run++)); do
        peer ours "$imgtool" mkfs -q -x "$2" out.img
        peer mke2fs mke2fs -q -t ext4 -N 1200000 -d "$2" out.img "${mib}M"
        peer mkext4 "$mkext4" "$2" out.img $((mib << 20)) 1200000
    done
    rm -f out.img
    printf '%-38s %12s %12s %12s\n' "$1" "$(best ours)" "$(best mke2fs)" "$(best mkext4)"
}

printf '%-38s %12s %12s %12s\n' 's of CPU and MiB of memory' imgtool 'mke2fs -d' mkext4
row 'a sparse file of 8 GiB' sparse 1024
row '100,000 files in one directory' flat 1024
row 'a million files in 1,000 directories' million 8192
row 'Debian minbase' minbase
row '/usr/share of this machine' /usr/share
row '/usr of this machine' /usr
