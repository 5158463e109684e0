#!/usr/bin/env bash
# Whole commands of imgtool beside qemu-img's that do the same, in turns, on the same files.
#
#   scripts/compare.sh [WHAT]     only rows whose name contains WHAT; RUNS=5 of each, of which the median counts
#   scripts/compare.sh qemu-img   the same lines, by the link called qemu-img and by QEMU's own program; or some of these rows
#
# Each row says how much of qemu-img's processor time (user and system) and of its time on the clock imgtool takes. The
# first hardly depends on who else uses the machine. Everything stays under target/compare; what is worked on is made once.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts=$PWD/scripts
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C
what=${1:-}
runs=${RUNS:-5}
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
imgtool=${IMGTOOL:-$target/release/imgtool}
dir=$target/compare

fail() { printf 'compare: %s\n' "$*" >&2; exit 1; }
command -v "$imgtool" >/dev/null || fail "no $imgtool: run 'make compare', or 'cargo build --release --package imgtool'"
command -v qemu-img >/dev/null || fail "no qemu-img"
mkdir -p "$dir"
cd "$dir"

# made NAME COMMAND: makes a file, once, under another name until it is whole.
made() {
    [ -e "$1" ] && return
    rm -f new
    eval "$2" >/dev/null
    mv new "$1"
}
# number FILE OFFSET: the 64-bit number there, without the flags of a table's entry.
number() {
    local hex
    hex=$(od -A n -t x1 -j "$2" -N 8 "$1" | tr -d ' \n')
    echo $((16#$hex & 0x00fffffffffffe00))
}
erase() { dd if=/dev/zero of="$1" bs=4096 seek=$(($2 / 4096)) count="$3" conv=notrunc status=none; }

# median: of the numbers on the lines of standard input.
median() { sort -n | sed -n "$(((runs + 1) / 2))p"; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { if (b > 0) printf "%.2f", a / b; else print "-" }'; }

# once PROGRAM COMMAND: its processor time and its time on the clock, in seconds.
once() {
    local TIMEFORMAT='%3U %3S %3R' times
    times=$({ time eval "$1 $2" >out 2>err; } 2>&1) || [ $? -le 3 ] || { cat err >&2; fail "'$1 $2' failed"; }
    awk '{ print $1 + $2, $3 }' <<<"$times"
}

# row NAME READY OURS THEIRS: makes ready and runs both, in turns. Without THEIRS it is the same command line.
row() {
    [[ $1 == *"$what"* ]] || return 0
    local name=$1 ready=$2 ours=$3 theirs=${4:-$3} run
    rm -f ours theirs
    for ((run = 0; run < runs; run++)); do
        eval "$ready"
        once "$imgtool" "$ours" >>ours
        eval "$ready"
        once qemu-img "$theirs" >>theirs
    done
    local cpu wall their_cpu their_wall
    cpu=$(cut -d ' ' -f 1 ours | median) their_cpu=$(cut -d ' ' -f 1 theirs | median)
    wall=$(cut -d ' ' -f 2 ours | median) their_wall=$(cut -d ' ' -f 2 theirs | median)
    printf '%-44s %9.3f %9.3f %7s %9.3f %9.3f %7s\n' "$name" "$cpu" "$their_cpu" "$(ratio "$cpu" "$their_cpu")" \
        "$wall" "$their_wall" "$(ratio "$wall" "$their_wall")"
}

header() { printf '%-44s %9s %9s %7s %9s %9s %7s\n' 'medians, in seconds' 'CPU ours' 'theirs' 'ratio' 'all ours' 'theirs' 'ratio'; }
if [[ $what == qemu-img* ]]; then
    header
    # shellcheck source=scripts/compare-qemu-img.sh
    . "$scripts/compare-qemu-img.sh"
    rm -f out err ours theirs
    exit
fi

# 1 TiB in clusters of 64 KiB, all mapped and none with data; and 64 GiB.
made tib.qcow2 'qemu-img create -q -f qcow2 -o preallocation=metadata new 1T'
# 64 TiB, a cluster of zeros in every 8 GiB, and so 8192 L2 tables.
sparse() {
    qemu-img create -q -f qcow2 new 64T
    for ((at = 0; at < 65536; at += 8)); do echo "write -q -z ${at}G 64k"; done | qemu-io -f qcow2 new
}
made wide.qcow2 sparse
made snapped.qcow2 'cp --sparse=always tib.qcow2 new; qemu-img snapshot -c s new'
made gib.qcow2 'qemu-img create -q -f qcow2 -o preallocation=metadata new 64G'
# Half of the refcounts of the first block are gone, and so is an L2 table.
damage() {
    cp --sparse=always gib.qcow2 new
    erase new $(($(number new "$(number new 48)") + 32768)) 8
    erase new "$(number new "$(($(number new 40) + 24))")" 16
}
made damaged.qcow2 damage
# Programs and data of this machine; the same with some of it changed, and some more.
made disk.raw '{ tar cf - /usr 2>/dev/null || true; } | head -c 512M >new; truncate -s 1G new'
changed() {
    cp --sparse=always disk.raw new
    local at
    for at in {16..480..16}; do dd if=disk.raw of=new bs=1M skip="$at" seek=$((at + 8)) count=$1 conv=notrunc status=none; done
}
made second.raw 'changed 4'
made third.raw 'changed 6'
made base.qcow2 'qemu-img convert -f raw -O qcow2 disk.raw new'
made other.qcow2 'qemu-img convert -f raw -O qcow2 third.raw new'
# Only what differs: a rebase finds it.
made top.qcow2 'qemu-img create -q -f qcow2 -b second.raw -F raw new; qemu-img rebase -b base.qcow2 -F qcow2 new'

header
row 'snapshot create, 1 TiB mapped' 'cp --sparse=always tib.qcow2 w' 'snapshot -c s w'
row 'snapshot delete, 1 TiB mapped' 'cp --sparse=always snapped.qcow2 w' 'snapshot -d s w'
row 'snapshot apply, 1 TiB mapped' 'cp --sparse=always snapped.qcow2 w' 'snapshot -a s w'
for image in 'tib.qcow2, 1 TiB mapped' 'wide.qcow2, 64 TiB with 8192 tables'; do
    file=${image%%,*} is=${image#*, }
    row "info, $is" : "info $file"
    row "map, $is" : "map --output json $file"
    row "check, $is" : "check $file"
    row "measure, $is" : "measure -O qcow2 $file"
    row "compare, $is" : "compare $file $file"
done
row 'repair, 64 GiB mapped' 'cp --sparse=always damaged.qcow2 w' 'check -r all w'
row 'amend refcount_bits, 64 GiB mapped' 'cp --sparse=always gib.qcow2 w' 'amend -o refcount_bits=32 w'
row 'amend compat, 64 GiB mapped' 'cp --sparse=always gib.qcow2 w' 'amend -o compat=0.10 w'
overlay='cp base.qcow2 b; cp top.qcow2 w; qemu-img rebase -u -b b -F qcow2 w; sync b w'
row 'commit' "$overlay" 'commit w'
row 'rebase onto another base' "$overlay" 'rebase -b other.qcow2 -F qcow2 w'
row 'stream, or rebase onto nothing' "$overlay" 'stream w' 'rebase -b "" w'
row 'convert raw to qcow2' 'rm -f w' 'convert -f raw -O qcow2 disk.raw w'
row 'convert qcow2 to raw' 'rm -f w' 'convert -f qcow2 -O raw base.qcow2 w'
row 'convert a chain to raw' 'rm -f w' 'convert -f qcow2 -O raw top.qcow2 w'
row 'convert to zlib clusters' 'rm -f w' 'convert -c -f raw -O qcow2 disk.raw w' 'convert -c -W -m 8 -f raw -O qcow2 disk.raw w'
row 'convert to zstd clusters' 'rm -f w' 'convert -c -f raw -O qcow2 -o compression_type=zstd disk.raw w' \
    'convert -c -W -m 8 -f raw -O qcow2 -o compression_type=zstd disk.raw w'

# Ours have names, IDs, host keys and a grown filesystem; theirs are empty overlays.
if [[ '1 clone 100 clones' == *"$what"* ]]; then
    rm -rf store clones
    mkdir -p system/etc/ssh clones
    printf 'PRETTY_NAME=Test\n' >system/etc/os-release
    made root.raw 'mke2fs -q -F -t ext4 -d system new 1G'
    "$imgtool" template import -q --store store --alias test root.raw
    clean='rm -rf clones/* store/instances'
    row '1 clone' "$clean" 'clone -q --store store --from test --size 8G a' \
        'create -q -f qcow2 -b ../root.raw -F raw clones/a 8G'
    row '100 clones' "$clean" 'clone -q --store store --from test --size 8G --count 100 a' \
        'create -q -f qcow2 -b ../root.raw -F raw clones/1 8G; for n in {2..100}; do
            qemu-img create -q -f qcow2 -b ../root.raw -F raw clones/$n 8G; done'
fi

# Sharing needs a file system that can, and making one needs root.
if [[ 'convert with reflinks to raw convert with reflinks to qcow2' == *"$what"* ]]; then
    if [ "$(id -u)" = 0 ] && command -v mkfs.xfs >/dev/null; then
        rm -f xfs
        truncate -s 4G xfs
        mkfs.xfs -q xfs
        mkdir -p shared
        mount -o loop xfs shared
        trap 'cd "$dir" && umount shared && rm -f xfs' EXIT
        cp --sparse=always disk.raw shared/
        row 'convert with reflinks to raw' 'rm -f shared/w' 'convert -C -f raw -O raw shared/disk.raw shared/w'
        row 'convert with reflinks to qcow2' 'rm -f shared/w' 'convert -C -f raw -O qcow2 shared/disk.raw shared/w'
    else
        echo 'compare: conversions with reflinks are left out: they need root, and mkfs.xfs' >&2
    fi
fi
rm -f w b out err ours theirs
