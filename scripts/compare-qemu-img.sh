# Rows of compare.sh, which reads this: every subcommand of `imgtool qemu-img` beside qemu-img's own, with the same line, on a disk of
# 10 GiB that has 1 GiB of data. It takes 6 GB under target/compare.
# shellcheck shell=bash

# twin NAME READY LINE
twin() { row "qemu-img $1" "$2" "qemu-img $3" "$3"; }

# Programs and data of this machine, in pieces all over the disk.
pieces() {
    { tar cf - /usr 2>/dev/null || true; } | head -c 1G >new.data
    truncate -s 10G new
    local at
    for at in {0..15}; do dd if=new.data of=new bs=64M skip="$at" seek=$((at * 10)) count=1 conv=notrunc status=none; done
    rm new.data
}
made ten.raw pieces
made ten.qcow2 'qemu-img convert -f raw -O qcow2 ten.raw new'
# A quarter of its data, over the disk.
over() {
    qemu-img create -q -f qcow2 -b ten.qcow2 -F qcow2 new
    local at
    for at in {0..3}; do qemu-io -f qcow2 -c "write -q -P $((at + 1)) $((at * 2500))M 64M" new; done
}
made ten.over over
gone='rm -f w'
fresh='cp --sparse=always ten.qcow2 w'
overlay='cp ten.over w'

twin 'version' : '--version'
twin 'info of a small image' 'qemu-img create -q -f qcow2 w 1G' 'info w'
for format in raw qcow2; do
    twin "info, $format" : "info -f $format ten.$format"
    twin "map, $format" : "map --output=json -f $format ten.$format"
done
twin 'check' : 'check ten.qcow2'
twin 'measure' : 'measure -O qcow2 -f raw ten.raw'
twin 'compare' : 'compare -f raw -F qcow2 ten.raw ten.qcow2'
twin 'convert raw to qcow2' "$gone" 'convert -f raw -O qcow2 ten.raw w'
twin 'convert raw to qcow2, -W' "$gone" 'convert -W -f raw -O qcow2 ten.raw w'
twin 'convert raw to qcow2, -m 16 -W' "$gone" 'convert -m 16 -W -f raw -O qcow2 ten.raw w'
twin 'convert raw to qcow2, -t none' "$gone" 'convert -t none -f raw -O qcow2 ten.raw w'
twin 'convert raw to qcow2, -T none -t none' "$gone" 'convert -T none -t none -f raw -O qcow2 ten.raw w'
twin 'convert qcow2 to raw' "$gone" 'convert -f qcow2 -O raw ten.qcow2 w'
twin 'convert qcow2 to raw, -n' 'rm -f w; truncate -s 10G w' 'convert -n -f qcow2 -O raw ten.qcow2 w'
twin 'convert qcow2 to raw, -t none' "$gone" 'convert -t none -f qcow2 -O raw ten.qcow2 w'
twin 'convert an overlay to qcow2' "$gone" 'convert -f qcow2 -O qcow2 ten.over w'
twin 'convert -c' "$gone" 'convert -c -f raw -O qcow2 ten.raw w'
twin 'convert -c, -m 8 -W' "$gone" 'convert -c -m 8 -W -f raw -O qcow2 ten.raw w'
twin 'convert -c, zstd' "$gone" 'convert -c -o compression_type=zstd -f raw -O qcow2 ten.raw w'
twin 'convert from -c' "rm -f w w.zlib; qemu-img convert -c -m 8 -W -f raw -O qcow2 ten.raw w.zlib" 'convert -f qcow2 -O raw w.zlib w'
rm -f w.zlib
twin 'create' "$gone" 'create -f qcow2 w 10G'
twin 'create, metadata' "$gone" 'create -f qcow2 -o preallocation=metadata w 10G'
twin 'create, falloc' "$gone" 'create -f qcow2 -o preallocation=falloc w 3G'
twin 'create, full' "$gone" 'create -f qcow2 -o preallocation=full w 1G'
twin 'create raw, falloc' "$gone" 'create -f raw -o preallocation=falloc w 3G'
twin 'create raw, full' "$gone" 'create -f raw -o preallocation=full w 1G'
twin 'commit' "$fresh; cp ten.over o; qemu-img rebase -u -b w -F qcow2 o; sync w o" 'commit o'
twin 'rebase onto the same in raw' "$overlay; sync w" 'rebase -b ten.raw -F raw w'
twin 'rebase onto nothing' "$overlay; sync w" "rebase -b '' w"
rm -f o
twin 'resize' "$fresh; sync w" 'resize w 20G'
twin 'resize --shrink' "$fresh; sync w" 'resize --shrink w 5G'
twin 'resize, metadata' "$fresh; sync w" 'resize --preallocation=metadata w 20G'
twin 'snapshot -c' "$fresh; sync w" 'snapshot -c s w'
taken="$fresh; qemu-img snapshot -c s w; sync w"
twin 'snapshot -l' "$taken" 'snapshot -l w'
twin 'snapshot -a' "$taken" 'snapshot -a s w'
twin 'snapshot -d' "$taken" 'snapshot -d s w'
twin 'dd' "$gone" 'dd -f raw -O raw bs=1M count=1024 if=ten.raw of=w'
twin 'dd, bs=4k' "$gone" 'dd -f raw -O qcow2 bs=4k count=65536 if=ten.raw of=w'
twin 'bitmap --add' "$fresh; sync w" 'bitmap --add w b'
twin 'bitmap --remove' "$fresh; qemu-img bitmap --add w b; sync w" 'bitmap --remove w b'
twin 'amend compat' "$fresh; sync w" 'amend -o compat=0.10 w'
twin 'amend refcount_bits' "$fresh; sync w" 'amend -o refcount_bits=64 w'
# Each request a MiB and a page behind the one before.
apart='-s 4k -S 1052672 -f qcow2'
twin 'bench, reads of 4 KiB' : "bench -c 100000 -d 1 $apart ten.qcow2"
twin 'bench, 32 reads at once' : "bench -c 100000 -d 32 $apart ten.qcow2"
twin 'bench, writes of 4 KiB' "$fresh" "bench -w -c 50000 -d 1 $apart w"
twin 'bench, copies on write' 'rm -f w; qemu-img create -q -f qcow2 -b ten.raw -F raw w' "bench -w -c 10000 -d 1 $apart w"
rm -f w
