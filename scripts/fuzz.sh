#!/usr/bin/env bash
# Runs every fuzz target for a while, starting from small images that QEMU made, and archives of GNU tar.
#
#   scripts/fuzz.sh [TARGET...]        FUZZ_SECONDS=60 for each
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-60}

fail() { echo "fuzz: $*" >&2; exit 1; }
scripts/setup.sh test
cargo +nightly --version >/dev/null 2>&1 || fail "no nightly toolchain: 'rustup toolchain install nightly'"
cargo fuzz --version >/dev/null 2>&1 || fail "no cargo-fuzz: 'cargo install cargo-fuzz'"

# image NAME OPTIONS: a seed of 32 KiB with data, zeros and something compressed.
seeds=fuzz/corpus/open_and_read
image() {
    local path="$seeds/$1.qcow2"
    [ -e "$path" ] && return
    qemu-img create -q -f qcow2 -o "$2" "$path" 32k
    qemu-io -f qcow2 -c "write -q -P 7 0 3k" -c "write -q -z 4k 2k" -c "write -q -P 9 20k 600" \
        ${3:+-c "write -q -c -P 5 8k 4k"} "$path" >/dev/null
}
mkdir -p "$seeds" fuzz/corpus/header
image v2 compat=0.10,cluster_size=512
image v3 cluster_size=512
image zlib cluster_size=4k compressed
image zstd cluster_size=4k,compression_type=zstd compressed
image narrow cluster_size=512,refcount_bits=1
image wide cluster_size=512,refcount_bits=64
image extended cluster_size=16k,extended_l2=on
if [ ! -e "$seeds/snapshot.qcow2" ]; then
    image snapshot cluster_size=512
    qemu-img snapshot -c one "$seeds/snapshot.qcow2"
    qemu-io -f qcow2 -c "write -q -P 8 1k 1k" "$seeds/snapshot.qcow2" >/dev/null
fi
if [ ! -e "$seeds/bitmap.qcow2" ]; then
    image bitmap cluster_size=512
    qemu-img bitmap --add "$seeds/bitmap.qcow2" one
fi
[ -e "$seeds/overlay.qcow2" ] || qemu-img create -q -f qcow2 -u -b base.qcow2 -F qcow2 -o cluster_size=512 "$seeds/overlay.qcow2" 32k

cp -n "$seeds"/*.qcow2 fuzz/corpus/header/

# archive NAME OPTIONS: an archive of a few small entries, after the byte that says how to read it.
mkdir -p fuzz/corpus/tar
archive() {
    local path="fuzz/corpus/tar/$1"
    [ -e "$path" ] && return
    { printf '\0'; tar -c --sort=name "${@:2}" -C "$tree" .; } >"$path"
}
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
echo data >"$tree/file"
ln -s file "$tree/symlink"
ln "$tree/file" "$tree/hard link"
touch "$tree/$(printf 'n%.0s' {1..150})"
truncate -s 20M "$tree/sparse"
echo end >>"$tree/sparse"
archive gnu --format=gnu --sparse
archive pax00 --format=posix --sparse --sparse-version=0.0
archive pax01 --format=posix --sparse --sparse-version=0.1
archive pax10 --format=posix --sparse --sparse-version=1.0
archive v7 --format=v7 --exclude=nnn*

targets=("$@")
[ $# -gt 0 ] || mapfile -t targets < <(cargo +nightly fuzz list)
for target in "${targets[@]}"; do
    echo "== $target for $seconds s"
    dict=fuzz/$target.dict
    [ -e "$dict" ] || dict=fuzz/qcow2.dict
    cargo +nightly fuzz run "$target" -- -max_total_time="$seconds" -dict="$dict" -timeout=10 -rss_limit_mb=2048
done
