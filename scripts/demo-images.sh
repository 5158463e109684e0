#!/usr/bin/env bash
# The main job on real input: a Debian system in an archive becomes an ext4 disk, the disk a compressed qcow2 base,
# three copy-on-write clones are made of it and each is changed, and each is flattened to a raw disk again. After
# every step somebody else's tool says whether it is right: qemu-img, e2fsck, debugfs, tar.
#
#   scripts/demo-images.sh            with the imgtool just built (make demo-images builds it first)
#   IMGTOOL=qemu-img scripts/demo-images.sh    the same images with another program of the same command line
#
# Everything stays under target/demo. The archive of the system there is made once, the rest anew each time.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/debian.sh
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
built=$target/release/imgtool
imgtool=${IMGTOOL:-$built}
demo=$target/demo
clones=(web db mail)

heading() { if [ -t 1 ]; then printf '\n\e[1m%s\e[0m\n' "$*"; else printf '\n%s\n' "$*"; fi; }
say() { printf '  %s\n' "$*"; }
fail() { printf 'demo: %s\n' "$*" >&2; exit 1; }
command -v "$imgtool" >/dev/null || fail "no $imgtool: run 'make demo-images', or 'cargo build --release --package imgtool'"

# timed ROW PROGRAM ARGS: runs the command, and notes its time under the row, in the program's column.
declare -A seconds=()
rows=()
timed() {
    local row=$1 column=ours begin=$EPOCHREALTIME
    [ "$2" = qemu-img ] && column=theirs
    shift
    local shown="${*:2}"
    [ "$1" = qemu-img ] || say "imgtool ${shown//"$demo/"/}"
    "$@" >"$demo/out" || fail "'$*' failed (exit $?)"
    seconds[$row/$column]=$(awk -v a="$begin" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.2f", b - a }')
    [[ " ${rows[*]-} " == *" $row "* ]] || rows+=("$row")
}
ours() { timed "$1" "$imgtool" "${@:2}"; }
theirs() { timed "$1" qemu-img "${@:2}"; }

# verified WHAT COMMAND: somebody else's judgement.
checks=0
verified() {
    "${@:2}" >"$demo/verdict" 2>&1 || { cat "$demo/verdict"; fail "verification failed: $1"; }
    checks=$((checks + 1))
    say "  verified: $1"
}

size() { numfmt --to=iec-i --suffix=B "$1"; }
room() { size $(($(stat -c %b "$1") * 512)); }

# host_rootfs TAR: with no network, programs and data of this machine in the shape of a root filesystem.
host_rootfs() {
    local tree=$demo/host
    rm -rf "$tree"
    mkdir -p "$tree"/{etc,root,usr/share,var,tmp}
    cp -a /usr/bin /usr/sbin "$tree/usr/"
    cp -a /usr/share/zoneinfo "$tree/usr/share/" 2>/dev/null || true
    hostname >"$tree/etc/hostname"
    tar -C "$tree" --owner=0 --group=0 --numeric-owner -cf "$1" .
    rm -rf "$tree"
}

make_rootfs() {
    say "making a Debian root filesystem, once (about a minute)"
    if ! debian_rootfs "$demo/rootfs.new.tar" 2>"$demo/mmdebstrap.log"; then
        say "that failed (see $demo/mmdebstrap.log): taking this machine's own programs instead"
        host_rootfs "$demo/rootfs.new.tar"
    fi
    mv "$demo/rootfs.new.tar" "$demo/rootfs.tar"
}

# same_tree TAR DISK: debugfs takes the same files out of the disk as tar out of the archive, but for devices.
same_tree() {
    rm -rf "$demo/by-tar" "$demo/by-debugfs"
    mkdir "$demo/by-tar" "$demo/by-debugfs"
    tar -C "$demo/by-tar" --exclude='./dev/*' -xf "$1" &&
        debugfs -R "rdump / $demo/by-debugfs" "$2" >/dev/null 2>&1 &&
        diff -r --no-dereference -x dev -x lost+found "$demo/by-tar" "$demo/by-debugfs" || return
    rm -rf "$demo/by-tar" "$demo/by-debugfs"
}

# change NAME BYTES: stands in for the guest, which gives itself a hostname, and a file that no other clone has.
# QEMU offers the overlay as a raw file (a FUSE export), and debugfs writes to the filesystem in it.
change() {
    echo "$1" >"$demo/hostname"
    head -c "$2" /dev/urandom >"$demo/$1.payload"
    : >"$demo/$1.fuse"
    if qemu-storage-daemon --daemonize --pidfile "$demo/qemu.pid" \
        --blockdev driver=file,node-name=file,filename="$demo/$1.qcow2" \
        --blockdev driver=qcow2,node-name=disk,file=file \
        --export type=fuse,id=fuse,node-name=disk,mountpoint="$demo/$1.fuse",writable=on 2>"$demo/qemu.log"; then
        printf '%s\n' "rm /etc/hostname" "write $demo/hostname /etc/hostname" "write $demo/$1.payload /root/$1.data" |
            debugfs -w -f - "$demo/$1.fuse" >"$demo/debugfs.log" 2>&1
        stop_daemon
    else
        no_fuse=1
        qemu-io -f qcow2 -c "write -q -s $demo/$1.payload $free_room $2" "$demo/$1.qcow2" >/dev/null
    fi
    rm -f "$demo/$1.fuse"
}

stop_daemon() {
    [ -s "$demo/qemu.pid" ] || return 0
    local pid
    pid=$(cat "$demo/qemu.pid")
    kill "$pid" && tail --pid="$pid" -f /dev/null
    rm -f "$demo/qemu.pid"
}
trap stop_daemon EXIT

# Without FUSE the payload goes straight to a free place of the disk, where it disturbs no file.
no_fuse=
free_room=$((3 << 30))

# contents NAME: the flattened disk holds what was written to its clone.
contents() {
    if [ -n "$no_fuse" ]; then
        cmp "$demo/$1.payload" <(tail -c +$((free_room + 1)) "$demo/$1.raw" | head -c "$(stat -c %s "$demo/$1.payload")")
        return
    fi
    debugfs -R "cat /etc/hostname" "$demo/$1.raw" 2>/dev/null | grep -qx "$1" &&
        debugfs -R "dump /root/$1.data $demo/$1.found" "$demo/$1.raw" 2>/dev/null &&
        cmp "$demo/$1.payload" "$demo/$1.found"
}

# e2fsck's exit code is not enough: it only prints some findings. A clean filesystem gives these lines alone.
fsck() {
    e2fsck -fn "$1" >"$demo/fsck" 2>/dev/null &&
        ! grep -v -e '^Pass [1-5]' -e ' files (.*% non-contiguous), ' "$demo/fsck"
}

# same_map FILE: both programs say the same of every byte. Neighbouring rows of one state are one row.
same_map() {
    local merge='reduce .[] as $r ([]; if length > 0 and .[-1].depth == $r.depth and .[-1].zero == $r.zero
        and .[-1].data == $r.data and .[-1].start + .[-1].length == $r.start
        then .[-1].length += $r.length else . + [$r | {start, length, depth, zero, data}] end)'
    diff <("$imgtool" map --output=json "$1" | jq "$merge") <(qemu-img map --output=json "$1" | jq "$merge")
}

mkdir -p "$demo"
heading "A Debian system on an ext4 disk"
[ -e "$demo/rootfs.tar" ] || make_rootfs
SECONDS=0
rm -f "$demo"/*.{raw,qcow2,payload,found,fuse,pid}
timed mkfs "$built" mkfs --size 4G --label demo "$demo/rootfs.tar" "$demo/disk.raw"
say "disk.raw: 4 GiB, made of an archive of $(size "$(stat -c %s "$demo/rootfs.tar")"), $(room "$demo/disk.raw") on the host"
verified "e2fsck finds nothing wrong" fsck "$demo/disk.raw"
verified "debugfs finds the files of the archive, as tar does" same_tree "$demo/rootfs.tar" "$demo/disk.raw"

heading "Raw to a compressed qcow2 base"
ours compress convert -c -f raw -O qcow2 "$demo/disk.raw" "$demo/base.qcow2"
theirs compress convert -c -f raw -O qcow2 "$demo/disk.raw" "$demo/qemu.qcow2"
say "base.qcow2: $(room "$demo/base.qcow2") on the host (qemu-img: $(room "$demo/qemu.qcow2"))"
rm "$demo/qemu.qcow2"
verified "qemu-img check" qemu-img check -q "$demo/base.qcow2"
verified "qemu-img compare with disk.raw" qemu-img compare -q -f raw -F qcow2 "$demo/disk.raw" "$demo/base.qcow2"
chmod a-w "$demo/base.qcow2"

heading "Three copy-on-write clones"
for name in "${clones[@]}"; do
    ours create create -q -f qcow2 -b base.qcow2 -F qcow2 "$demo/$name.qcow2"
    say "$name.qcow2: $(room "$demo/$name.qcow2") on the host"
    verified "qemu-img check" qemu-img check -q "$demo/$name.qcow2"
done
theirs create create -q -f qcow2 -b base.qcow2 -F qcow2 "$demo/qemu.qcow2"
rm "$demo/qemu.qcow2"

heading "Different writes to each"
mib=0
for name in "${clones[@]}"; do
    mib=$((mib * 2 + 1))
    change "$name" $((mib << 20))
    wrote="its hostname and a file of $mib MiB"
    [ -z "$no_fuse" ] || wrote="$mib MiB with qemu-io (there is no FUSE here)"
    say "$name.qcow2: $wrote; now $(room "$demo/$name.qcow2") on the host"
done

heading "Looking at the clones"
for name in "${clones[@]}"; do
    ours info info --backing-chain --output=json "$demo/$name.qcow2"
    [ "$(jq -r '.[0]["backing-filename"]' "$demo/out")" = base.qcow2 ] || fail "info names another backing file"
    ours check check "$demo/$name.qcow2"
    ours map map --output=json "$demo/$name.qcow2"
    verified "qemu-img map says the same of every byte" same_map "$demo/$name.qcow2"
done
theirs info info --backing-chain --output=json "$demo/$name.qcow2"
theirs check check "$demo/$name.qcow2"
theirs map map --output=json "$demo/$name.qcow2"

heading "Flattened to raw disks again"
for name in "${clones[@]}"; do
    ours flatten convert -f qcow2 -O raw "$demo/$name.qcow2" "$demo/$name.raw"
    ours compare compare -f qcow2 -F raw "$demo/$name.qcow2" "$demo/$name.raw"
    say "$name.raw: $(room "$demo/$name.raw") on the host"
    verified "qemu-img compare with $name.qcow2" \
        qemu-img compare -q -f qcow2 -F raw "$demo/$name.qcow2" "$demo/$name.raw"
    verified "e2fsck finds nothing wrong" fsck "$demo/$name.raw"
    verified "what was written to $name is there" contents "$name"
done
theirs flatten convert -f qcow2 -O raw "$demo/$name.qcow2" "$demo/qemu.raw"
theirs compare compare -f qcow2 -F raw "$demo/$name.qcow2" "$demo/$name.raw"
rm "$demo/qemu.raw"
verified "qemu-img compare: the base is what it was" \
    qemu-img compare -q -f raw -F qcow2 "$demo/disk.raw" "$demo/base.qcow2"

heading "Room on the host, of 4 GiB disks"
for file in disk.raw base.qcow2 {web,db,mail}.{qcow2,raw}; do
    printf '  %-10s %10s\n' "$file" "$(room "$demo/$file")"
done
heading "Seconds, of the last of each kind"
printf '  %-10s %10s %10s\n' "" imgtool qemu-img
for row in "${rows[@]}"; do
    printf '  %-10s %10s %10s\n' "$row" "${seconds[$row/ours]-}" "${seconds[$row/theirs]-}"
done
heading "Done: $checks verifications passed in $SECONDS s. The images are in $demo."
