#!/usr/bin/env bash
# imgtool mkfs beside mke2fs -d, in turns, on the same trees.
#
#   scripts/comparefs.sh [WHAT]     only rows whose name contains WHAT
#
# RUNS=3 of each, of which the one with the least processor time counts; a run is stopped after LIMIT=300 seconds. Each row
# has processor time (user and system) and peak memory of both. The trees are made once, under target/comparefs.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C
what=${1:-}
runs=${RUNS:-3}
limit=${LIMIT:-300}
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
imgtool=${IMGTOOL:-$target/release/imgtool}
dir=$target/comparefs

fail() { printf 'comparefs: %s\n' "$*" >&2; exit 1; }
command -v "$imgtool" >/dev/null || fail "no $imgtool: run 'make comparefs', or 'cargo build --release --package imgtool'"
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

# row NAME TREE SIZE: both on a tree; mke2fs is told how large the filesystem is to be.
row() {
    [[ $1 == *"$what"* ]] || return 0
    local run
    tree "$2"
    rm -f ours theirs
    for ((run = 0; run < runs; run++)); do
        measured "$imgtool" mkfs -q -x "$2" out.img >>ours || fail "imgtool mkfs $2"
        # What does not end in time need not be tried again.
        if [ "$run" = 0 ] || ! grep -q inf theirs; then
            measured mke2fs -q -t ext4 -N 1200000 -d "$2" out.img "$3" >>theirs || fail "mke2fs -d $2"
        fi
    done
    rm -f out.img
    local ours theirs
    ours=$(sort -g ours | head -n1) theirs=$(sort -g theirs | head -n1)
    [ "${theirs%% *}" = inf ] && theirs="more than $limit s"
    printf '%-36s %16s %20s\n' "$1" "$ours" "$theirs"
}

printf '%-36s %16s %20s\n' 's of CPU and MiB of memory' imgtool 'mke2fs -d'
row 'a sparse file of 8 GiB' sparse 1G
row '100,000 files in one directory' flat 1G
row 'a million files in 1,000 directories' million 8G
row '/usr/share of this machine' /usr/share "$(($(du -sxm /usr/share | cut -f 1) * 3 / 2 + 500))M"
row '/usr of this machine' /usr "$(($(du -sxm /usr | cut -f 1) * 3 / 2))M"
