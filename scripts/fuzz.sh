#!/usr/bin/env bash
# Runs every fuzz target for a while, starting from small images that QEMU made, and archives of GNU tar.
#
#   scripts/fuzz.sh [TARGET...]        FUZZ_SECONDS=60 for each
#
# Any toolchain will do: what cargo-fuzz adds to a build, but for sanitizers of memory, are options of a stable compiler.
# Whoever has it and a nightly toolchain can run the same targets with it.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-60}

fail() { echo "fuzz: $*" >&2; exit 1; }
scripts/setup.sh test
command -v c++ >/dev/null || fail "no C++ compiler, which libFuzzer is built with: 'apt-get install g++'"

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
# Damage is what a repair is for: some of each image is missing, or written over.
mkdir -p fuzz/corpus/repair
for path in "$seeds"/*.qcow2; do
    copy=fuzz/corpus/repair/${path##*/}
    [ -e "$copy" ] && continue
    cp "$path" "$copy"
    for at in 1024 2048 4096 9000; do
        cp "$path" "$copy.$at"
        dd if=/dev/zero of="$copy.$at" bs=1 seek="$at" count=16 conv=notrunc status=none
    done
    head -c 6000 "$path" >"$copy.cut"
done

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
[ $# -gt 0 ] || mapfile -t targets < <(basename -s .rs fuzz/fuzz_targets/*.rs)

host=$(rustc -vV | sed -n 's/^host: //p')
flags=(--cfg fuzzing -Cpasses=sancov-module -Cdebug-assertions -Ccodegen-units=1)
for flag in level=4 inline-8bit-counters pc-table trace-compares; do
    flags+=("-Cllvm-args=-sanitizer-coverage-$flag")
done
# With --target these flags are not for what runs while building.
RUSTFLAGS="${flags[*]}" cargo build --release --manifest-path fuzz/Cargo.toml --target "$host" "${targets[@]/#/--bin=}"
for target in "${targets[@]}"; do
    echo "== $target for $seconds s"
    dict=fuzz/$target.dict
    [ -e "$dict" ] || dict=fuzz/qcow2.dict
    mkdir -p "fuzz/corpus/$target" "fuzz/artifacts/$target"
    # Inputs that are lists of things to do are best long from the start.
    case $target in operations | partitions) lengths=(-len_control=0 -max_len=600) ;; *) lengths=() ;; esac
    # What it finds lies in artifacts, and is tried again with the same program and the file's name.
    "fuzz/target/$host/release/$target" "fuzz/corpus/$target" -artifact_prefix="fuzz/artifacts/$target/" \
        -max_total_time="$seconds" -dict="$dict" -timeout=10 -rss_limit_mb=2048 "${lengths[@]}"
done
