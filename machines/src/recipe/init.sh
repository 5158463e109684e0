#!/bin/busybox sh
# The first program of an initrd: loads what the disk needs, finds the root, and goes on with what is there.
/bin/busybox mkdir -p /bin
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
while read -r module; do
    insmod "/modules/$module.ko" || echo "initrd: the module $module cannot be loaded"
done </modules/order

root= options=ro init=/sbin/init
for word in $(cat /proc/cmdline); do
    case $word in
        root=*) root=${word#root=} ;;
        ro | rw) options=$word ;;
        init=*) init=${word#init=} ;;
    esac
done

# The GUID of a partition, as it is in the GUID partition table, the entries of which follow two sectors.
guid() { # disk, number, bytes of a sector
    local skip=$((2 * $3 + 128 * ($2 - 1) + 16))
    set -- $(dd if="$1" bs=16 skip=$((skip / 16)) count=1 2>/dev/null | od -An -tx1)
    echo "$4$3$2$1-$6$5-$8$7-$9${10}-${11}${12}${13}${14}${15}${16}"
}

find_root() {
    case $root in
        PARTUUID=*)
            local wanted number disk
            wanted=$(echo "${root#PARTUUID=}" | tr A-F a-f)
            for number in /sys/class/block/*/partition; do
                [ -e "$number" ] || continue
                disk=$(readlink -f "${number%/*}/..")
                if [ "$(guid "/dev/${disk##*/}" "$(cat "$number")" "$(cat "$disk/queue/logical_block_size")")" = "$wanted" ]; then
                    number=${number%/*}
                    echo "/dev/${number##*/}"
                    return
                fi
            done
            ;;
        UUID=* | LABEL=*) findfs "$root" 2>/dev/null ;;
        *) [ ! -b "$root" ] || echo "$root" ;;
    esac
}

# Disks may take a moment to be found.
tries=0
until device=$(find_root) && [ -n "$device" ]; do
    tries=$((tries + 1))
    if [ $tries -gt 100 ]; then
        echo "initrd: there is no root $root; what there is: $(ls /sys/class/block)"
        exec sh
    fi
    sleep 0.1
done
if ! mount -t ext4 -o "$options" "$device" /root; then
    echo "initrd: the root $device cannot be mounted"
    exec sh
fi
for mounted in dev proc sys; do
    mount --move "/$mounted" "/root/$mounted" || umount -l "/$mounted"
done
exec switch_root /root "$init"
