#!/usr/bin/env bash
# Runs every fuzz target for a while, starting from small images that QEMU made, archives of GNU tar, and filesystems of
# mke2fs and of imgtool.
#
#   scripts/fuzz.sh [TARGET...]        FUZZ_SECONDS=60 for each, as many at once as there are processors;
#                                      FUZZ_SEED=1 draws the same numbers each time
#
# Any toolchain will do: what cargo-fuzz adds to a build, but for sanitizers of memory, are options of a stable compiler.
# Whoever has it and a nightly toolchain can run the same targets with it.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-60}

scripts/setup.sh fuzz

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
if [ ! -e fuzz/corpus/luks/header ]; then
    mkdir -p fuzz/corpus/luks
    qemu-img create -q -f luks --object secret,id=key,data=key -o key-secret=key,iter-time=10 fuzz/corpus/luks/header 0
    truncate -s 592 fuzz/corpus/luks/header
fi
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

# The same archives, with one of attributes and lists, after the two bytes that say what is made of them.
mkdir -p fuzz/corpus/archive
setfattr -n user.attribute -v value "$tree/file"
setfacl -m u:daemon:rw,g:adm:r "$tree/file"
mkdir "$tree/etc"
echo daemon:x:5:5::/: >"$tree/etc/passwd"
archive lists --format=posix --acls --xattrs --sparse
for path in fuzz/corpus/tar/{gnu,pax00,pax01,pax10,lists}; do
    copy=fuzz/corpus/archive/${path##*/}
    [ -e "$copy" ] || { printf '\0\0'; tail -c +2 "$path"; } >"$copy"
done

# filesystem NAME OPTIONS: one of 200 to 400 KiB with a bit of everything. Without checksums, damage is not found at once.
mkdir -p fuzz/corpus/filesystem "$tree/many"
for i in {1..60}; do touch "$tree/many/an entry of a directory, number $i"; done
ln -s "$(printf 't%.0s' {1..100})" "$tree/long symlink"
mkfifo "$tree/fifo"
for i in 0 4 9 14 30 50; do dd if=/etc/passwd of="$tree/pieces" bs=1k count=1 seek="$i" conv=notrunc status=none; done
filesystem() {
    local path="fuzz/corpus/filesystem/$1"
    [ -e "$path" ] && return
    truncate -s 0 "$path"
    mke2fs -q -F -b 1024 -N 96 -m 0 "${@:2}" -d "$tree" "$path" "${size:-400k}"
}
export PATH=$PATH:/usr/sbin:/sbin
filesystem ext2 -t ext2 -I 128
filesystem ext3 -t ext3 -O ^has_journal,dir_index
filesystem ext4 -t ext4 -I 256 -O ^has_journal,^metadata_csum,^resize_inode
filesystem inline -t ext4 -I 256 -O ^has_journal,^metadata_csum,^resize_inode,inline_data
filesystem sums -t ext4 -I 256 -O ^has_journal,^resize_inode
filesystem bigalloc -t ext4 -I 256 -O ^has_journal,^metadata_csum,^resize_inode,bigalloc -C 2048
# One whose journal is yet to be replayed: blocks of the inode table, and a block that is revoked.
if [ ! -e fuzz/corpus/filesystem/journal ]; then
    path=fuzz/corpus/filesystem/journal
    size=3M filesystem journal -t ext4 -I 256 -J size=1 -O ^metadata_csum,^resize_inode
    table=$(dumpe2fs "$path" 2>/dev/null | sed -n 's/.*Inode table at \([0-9]*\).*/\1/p')
    dd if="$path" of="$tree/blocks" bs=1k skip="$table" count=2 status=none
    printf 'jo\njw -b %s %s\njw -r 2900\njc\n' "$table,$((table + 1))" "$tree/blocks" | debugfs -w "$path" >/dev/null 2>&1
fi
built() {
    local path="fuzz/corpus/filesystem/$1"
    [ -e "$path" ] && return
    [ -x target/debug/imgtool ] || cargo build -q --package imgtool
    target/debug/imgtool mkfs -q --shrink --block-size 1k "${@:2}" "$tree" "$path"
}
built built
built built-inline --inline-data
built built-old --compat linux-3.10

# The fuzzer puts zeros behind them.
python3 - fuzz/corpus/filesystem/* <<'END'
import sys
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        image = file.read().rstrip(b"\0")
    with open(path, "wb") as file:
        file.write(image)
END

# The same with changes behind them: a directory, a file in it, a symlink, a rename, a removal, and what is small.
mkdir -p fuzz/corpus/editor
for name in ext2 ext3 ext4 inline sums journal built built-inline built-old; do
    copy=fuzz/corpus/editor/$name
    [ -e "$copy" ] || { cat "fuzz/corpus/filesystem/$name"; printf '\0\2\14\0\0\0\15\7\144\10\10\0\120\6\5\16\0\5\7\0\0\12\1\3\40\1\2\7\7\14\0\0\0'; } >"$copy"
done

# said NAME BYTES: what a server of NBD says, after the byte that says when.
said() {
    mkdir -p fuzz/corpus/nbd
    [ -e "fuzz/corpus/nbd/$1" ] || printf '%b' "$2" >"fuzz/corpus/nbd/$1"
}
chunk='\x66\x8e\x33\xef\0\x01'
cookie='\0\0\0\0\0\0\0\x01'
said new '\x01NBDMAGICIHAVEOPT\0\x03\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x08\0\0\0\x01\0\0\0\0'
said old '\x01NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53\0\0\0\0\0\x10\0\0'
said hole "\\0$chunk\\0\\x02$cookie\\0\\0\\0\\x0c\\0\\0\\0\\0\\0\\0\\x10\\0\\0\\0\\x02\\0"
said status "\\0$chunk\\0\\x05$cookie\\0\\0\\0\\x0c\\0\\0\\0\\x01\\0\\x10\\0\\0\\0\\0\\0\\x01"
said error "\\0$chunk\\x80\\x01$cookie\\0\\0\\0\\x0a\\0\\0\\0\\x05\\0\\x04text"

# text TARGET NAME TEXT: a text, where there is one after the byte that says what it is laid over.
text() {
    mkdir -p "fuzz/corpus/$1"
    [ -e "fuzz/corpus/$1/$2" ] || printf '%b' "$3" >"fuzz/corpus/$1/$2"
}
text manifest entries '\0[[entry]]\npath = "/etc/hostname"\ntype = "file"\ncontents = "a"\nmode = 0o644\n[[entry]]\nmatch = "/home/**"\nuid = 5\n'
text manifest types '\4[[entry]]\npath = "a/b"\ntype = "link"\ntarget = "etc/null"\n[[entry]]\npath = "/etc"\ntype = "remove"\n'
text manifest xattrs '\1[[entry]]\npath = "home"\nxattrs = { "user.a" = "0x00", "security.b" = "0sAP8=", "user.c" = false }\n'
text recipes extends 'extends = ["b", "tiny"]\n[source]\ntar = "x"\nexclude = ["/a"]\n[[files]]\npath = "/a"\nimage = "i#1"\n\0extends = ["c"]\n[disk]\nsize = "1G"\n[[users]]\nname = "ada"\nuid = 5\nssh-keys = []\n\0[source.mmdebstrap]\nsuite = "x"\n[services]\nenable = ["ssh"]\n[machine]\nboot = { append = "a" }\n'
text documents template 'created = "2024-01-02T03:04:05Z"\ndisk-size = 1\nimage-size = 2\nimage-modified = 3\nuser = "ada"\n[machine]\ncpus = 2\nmemory = "1G"\n[provenance]\nsource = "x"\npackages = ["a"]\n'
text documents aliases 'debian-12 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"\n'
text file_contexts rules '\0/.*\tu:all\n/etc(/.*)?\t--\tu:etc\n/home/[^/]+/.*\tu:home\n/etc/null -c <<none>>\n/link -l u:link\n'

targets=("$@")
[ $# -gt 0 ] || mapfile -t targets < <(basename -s .rs fuzz/fuzz_targets/*.rs)

host=$(rustc -vV | sed -n 's/^host: //p')
flags=(--cfg fuzzing -Cpasses=sancov-module -Cdebug-assertions -Ccodegen-units=1)
for flag in level=4 inline-8bit-counters pc-table trace-compares; do
    flags+=("-Cllvm-args=-sanitizer-coverage-$flag")
done
# With --target these flags are not for what runs while building.
RUSTFLAGS="${flags[*]}" cargo build --release --manifest-path fuzz/Cargo.toml --target "$host" "${targets[@]/#/--bin=}"
fuzz() { # target: what it says is shown whole where it found something, and in a line where it did not
    local target=$1 log="fuzz/artifacts/$1.log" dict lengths
    dict=fuzz/$target.dict
    [ -e "$dict" ] || dict=fuzz/qcow2.dict
    mkdir -p "fuzz/corpus/$target" "fuzz/artifacts/$target"
    # Inputs that are lists of things to do are best long from the start.
    case $target in
        operations | partitions | layers) lengths=(-len_control=0 -max_len=600) ;;
        filesystem | editor) lengths=(-len_control=0 -max_len=1200000) ;;
        *) lengths=() ;;
    esac
    # What it finds lies in artifacts, and is tried again with the same program and the file's name.
    if "fuzz/target/$host/release/$target" "fuzz/corpus/$target" -artifact_prefix="fuzz/artifacts/$target/" \
        -max_total_time="$seconds" -dict="$dict" -timeout=30 -rss_limit_mb=2048 ${FUZZ_SEED:+-seed="$FUZZ_SEED"} \
        "${lengths[@]}" >"$log" 2>&1; then
        echo "fuzz: $target: $(tail -n 1 "$log")"
    else
        tail -n 200 "$log"
        echo "fuzz: $target FAILED"
        return 1
    fi
}
export -f fuzz
export host seconds
# One of them takes one processor.
printf '%s\0' "${targets[@]}" | xargs -0 -n 1 -P "$(nproc)" bash -c 'set -euo pipefail; fuzz "$1"' fuzz
