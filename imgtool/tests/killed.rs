//! kill -9, or an error, at any system call that changes something, for every command that writes.
//!
//! Each [`case`] is a command, what it is given, and what is promised of each file whatever happens. It is run once to the end, under
//! strace, which tells the calls that change something ([`calls`]). Then it is run again in a fresh copy of the same directory for
//! each of these calls, and killed as it makes it, or the call fails with EIO or ENOSPC; the promises ([`promise`]) are judged by our readers and by QEMU's or e2fsck, and a
//! second run must finish the job and tidy up.
//!
//! A run of the tests takes some of the calls of each command, the first and the last among them; with `TORTURE` in the environment,
//! as `make torture` sets it, it takes all of them. Clones of several machines at once, and imports of templates, are killed at all of their
//! names in `templates.rs`.

mod calls;
mod case;
mod full;
mod memory;
mod promise;

use case::{case, kill_all, once};
use promise::Promise::{
    Files, FilesOrNone, Filesystem, Kept, Keys, Longer, Machines, OldOrNew, Repairable, Replaced, SameDisk,
    Sectors, Store, Table, Text, Unlocked, Unsure,
};

/// A disk, images of it with snapshots and bitmaps, and other images to be replaced.
const IMAGES: &str = "
    head -c 1500000 /dev/urandom >a.raw; truncate -s 3M a.raw; printf tail >>a.raw; truncate -s 3148288 a.raw
    $0 convert -q -O qcow2 -o cluster_size=4k a.raw a.qcow2; $0 snapshot create -q a.qcow2 first
    qemu-io -f qcow2 -c 'write -q -P 7 1M 300k' -c 'write -q -z 100k 64k' a.qcow2
    $0 bitmap --add a.qcow2 all; $0 bitmap --add a.qcow2 some; $0 bitmap --disable a.qcow2 some
    qemu-io -f qcow2 -c 'write -q -P 8 2M 100k' a.qcow2
    qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 -o cluster_size=4k top.qcow2
    qemu-io -f qcow2 -c 'write -q -P 9 500k 200k' top.qcow2
    head -c 100000 /dev/urandom >old.raw; qemu-img create -q -f qcow2 old.qcow2 1M";

#[test]
fn new_images() {
    kill_all(
        &[IMAGES],
        &[
            case("create -q -f raw new.raw 1M", &[("new.raw", OldOrNew)]),
            case(
                "create -q -f qcow2 -o preallocation=metadata old.qcow2 4M",
                &[("old.qcow2", OldOrNew)],
            ),
            case(
                "create -q -f qcow2 -b a.qcow2 -F qcow2 new.qcow2",
                &[("new.qcow2", OldOrNew), ("a.qcow2", Kept)],
            ),
            case(
                "create -q -f raw -o preallocation=full old.raw 1M",
                &[("old.raw", OldOrNew)],
            ),
            // A data file that is there is never replaced.
            once(
                "create -q -f qcow2 -o data_file=data.raw new.qcow2 1M",
                &[("new.qcow2", OldOrNew), ("data.raw", OldOrNew)],
            ),
            once(
                "convert -q -O qcow2 -o data_file=data.raw,data_file_raw=on a.raw new.qcow2",
                &[("new.qcow2", OldOrNew), ("data.raw", OldOrNew), ("a.raw", Kept)],
            ),
            case(
                "convert -q -O raw top.qcow2 old.raw",
                &[("old.raw", OldOrNew), ("top.qcow2", Kept), ("a.qcow2", Kept)],
            ),
            case(
                "convert -q -O qcow2 -o cluster_size=4k top.qcow2 old.qcow2",
                &[("old.qcow2", OldOrNew), ("top.qcow2", Kept), ("a.qcow2", Kept)],
            ),
            case(
                "convert -q -c -t writeback --bitmaps -O qcow2 a.qcow2 old.qcow2",
                &[("old.qcow2", OldOrNew), ("a.qcow2", Kept)],
            ),
            case(
                "convert -q -B a.qcow2 -F qcow2 -O qcow2 top.qcow2 new.qcow2",
                &[("new.qcow2", OldOrNew), ("top.qcow2", Kept), ("a.qcow2", Kept)],
            ),
            case(
                "dd -q -f qcow2 -O qcow2 bs=64k skip=3 if=a.qcow2 of=old.qcow2",
                &[("old.qcow2", OldOrNew), ("a.qcow2", Kept)],
            ),
            case(
                "qemu-img dd -f qcow2 -O raw bs=64k count=20 if=a.qcow2 of=old.raw",
                &[("old.raw", OldOrNew), ("a.qcow2", Kept)],
            ),
            case(
                "qemu-img convert -O qcow2 a.qcow2 old.qcow2",
                &[("old.qcow2", OldOrNew), ("a.qcow2", Kept)],
            ),
            case(
                "snapshot export -q -O qcow2 a.qcow2 first old.qcow2",
                &[("old.qcow2", OldOrNew), ("a.qcow2", Kept)],
            ),
        ],
    );
}

/// The other words for commands that are elsewhere here, where they do something else with their files.
#[test]
fn images_as_qemu_img() {
    // QEMU goes back to no snapshot of an image with bitmaps.
    let plain = "cp a.qcow2 plain.qcow2; for name in all some; do $0 bitmap --remove plain.qcow2 $name; done";
    kill_all(
        &[IMAGES, plain],
        &[
            case(
                "qemu-img create -q -f qcow2 old.qcow2 3M",
                &[("old.qcow2", OldOrNew)],
            ),
            case("qemu-img snapshot -c second a.qcow2", &[("a.qcow2", OldOrNew)]),
            case(
                "qemu-img snapshot -a first plain.qcow2",
                &[("plain.qcow2", OldOrNew)],
            ),
            case("qemu-img snapshot -d first a.qcow2", &[("a.qcow2", OldOrNew)]),
            case(
                "qemu-img resize -q --preallocation=metadata old.qcow2 9M",
                &[("old.qcow2", OldOrNew)],
            ),
            case(
                "qemu-img commit -q top.qcow2",
                &[("top.qcow2", SameDisk), ("a.qcow2", Sectors)],
            ),
            case(
                "qemu-img rebase -b a.raw -F raw top.qcow2",
                &[("top.qcow2", SameDisk), ("a.qcow2", Kept), ("a.raw", Kept)],
            ),
            case(
                "qemu-img amend -o compat=0.10 old.qcow2",
                &[("old.qcow2", SameDisk)],
            ),
            once("qemu-img bitmap --add a.qcow2 new", &[("a.qcow2", OldOrNew)]),
        ],
    );
}

/// Of what is written under its own name, the source alone is safe.
#[test]
fn images_that_are_written_in_place() {
    kill_all(
        &[IMAGES],
        &[
            case(
                "convert -q --in-place -O qcow2 a.raw old.qcow2",
                &[("old.qcow2", Unsure), ("a.raw", Kept)],
            ),
            case(
                "convert -q -n -O qcow2 a.raw a.qcow2",
                &[("a.qcow2", Sectors), ("a.raw", Kept)],
            ),
            case(
                "convert -q -n -O raw a.qcow2 a.raw",
                &[("a.raw", Sectors), ("a.qcow2", Kept)],
            ),
        ],
    );
}

#[test]
fn sizes_and_options() {
    let others = "
        qemu-img create -q -f qcow2 -o compat=0.10,cluster_size=4k v2.qcow2 1M
        qemu-io -f qcow2 -c 'write -q -P 5 100k 300k' v2.qcow2; $0 snapshot create -q v2.qcow2 s
        qemu-img create -q -f qcow2 -o cluster_size=4k v3.qcow2 1M
        qemu-io -f qcow2 -c 'write -q -P 5 100k 300k' -c 'write -q -z 200k 100k' v3.qcow2
        cp a.qcow2 b.qcow2; cp a.raw other.raw
        qemu-img create -q -f qcow2 -o data_file=d.raw named.qcow2 1M; cp d.raw e.raw
        for key in old new; do printf $key >$key.key; done
        qemu-img create -q -f qcow2 --object secret,id=s,file=old.key \
            -o encrypt.format=luks,encrypt.iter-time=10,encrypt.key-secret=s encrypted.qcow2 1M
        head -c 300032 /dev/urandom >plain; $0 convert -q --key old.key -O luks -o iter-time=10 plain disk.luks
        $0 create -q -f qcow2 -u -b disk.luks -F luks longer.qcow2 2M";
    kill_all(
        &[IMAGES, others],
        &[
            case("resize -q v3.qcow2 9M", &[("v3.qcow2", OldOrNew)]),
            case(
                "resize -q --preallocation full v3.qcow2 2M",
                &[("v3.qcow2", OldOrNew)],
            ),
            case(
                "resize -q -f luks --key old.key --preallocation full disk.luks 2M",
                &[("disk.luks", Longer)],
            ),
            case(
                "convert -q --key old.key -O luks -o iter-time=10 a.raw disk.luks",
                &[("disk.luks", Unlocked), ("a.raw", Kept)],
            ),
            case(
                "commit -q -d --key old.key longer.qcow2",
                &[("disk.luks", Longer)],
            ),
            case("resize -q --shrink v3.qcow2 256k", &[("v3.qcow2", Sectors)]),
            case("resize -q -f raw --shrink a.raw 1M", &[("a.raw", OldOrNew)]),
            case(
                "amend -q -o compat=1.1,lazy_refcounts=on v2.qcow2",
                &[("v2.qcow2", SameDisk)],
            ),
            case("amend -q -o compat=0.10 v3.qcow2", &[("v3.qcow2", SameDisk)]),
            case("amend -q -o refcount_bits=64 a.qcow2", &[("a.qcow2", OldOrNew)]),
            case(
                "amend -q -o backing_file=b.qcow2,backing_fmt=qcow2 top.qcow2",
                &[("top.qcow2", OldOrNew)],
            ),
            case(
                "amend -q -o data_file=e.raw named.qcow2",
                &[("named.qcow2", OldOrNew)],
            ),
            once(
                "amend -q --key old.key -o encrypt.new-key=new.key,encrypt.iter-time=10 encrypted.qcow2",
                &[("encrypted.qcow2", Keys)],
            ),
            once(
                "amend -q --key old.key -o encrypt.new-key=new.key,encrypt.old-key=old.key,encrypt.iter-time=10 encrypted.qcow2",
                &[("encrypted.qcow2", Keys)],
            ),
        ],
    );
}

#[test]
fn snapshots_and_bitmaps() {
    kill_all(
        &[IMAGES],
        &[
            case("snapshot create -q a.qcow2 second", &[("a.qcow2", OldOrNew)]),
            case("snapshot apply -q a.qcow2 first", &[("a.qcow2", OldOrNew)]),
            case("snapshot delete -q a.qcow2 first", &[("a.qcow2", OldOrNew)]),
            case("snapshot rename -q a.qcow2 first 1st", &[("a.qcow2", OldOrNew)]),
            case("bitmap --add a.qcow2 new", &[("a.qcow2", OldOrNew)]),
            case("bitmap --remove a.qcow2 all", &[("a.qcow2", OldOrNew)]),
            case("bitmap --clear --disable a.qcow2 all", &[("a.qcow2", OldOrNew)]),
            case(
                "bitmap --merge all --enable a.qcow2 some",
                &[("a.qcow2", OldOrNew)],
            ),
        ],
    );
}

#[test]
fn repairs() {
    // The refcounts are wrong: one cluster that is used counts as free, others are used by nobody.
    let damage = "
        cp a.qcow2 damaged.qcow2
        number() { od -An -t u8 --endian=big -j $1 -N 8 a.qcow2 | tr -d ' '; }
        block=$(number $(number 48))
        printf '\\0\\0' | dd of=damaged.qcow2 bs=1 seek=$((block + 2 * 40)) conv=notrunc status=none
        cp a.qcow2 leaky.qcow2; printf '\\0\\3' | dd of=leaky.qcow2 bs=1 seek=$((block + 2 * 50)) conv=notrunc status=none
        printf '\\0\\3' | dd of=damaged.qcow2 bs=1 seek=$((block + 2 * 50)) conv=notrunc status=none
        cp damaged.qcow2 taken.qcow2; $0 check -q -r all --backup taken.metadata taken.qcow2";
    kill_all(
        &[IMAGES, damage],
        &[
            case("check -q -r leaks leaky.qcow2", &[("leaky.qcow2", Repairable)]),
            case("check -q -r all damaged.qcow2", &[("damaged.qcow2", Repairable)]),
            once(
                "check -q -r all --backup metadata damaged.qcow2",
                &[("damaged.qcow2", Repairable)],
            ),
            case(
                "check -q --restore taken.metadata taken.qcow2",
                &[("taken.qcow2", Repairable), ("taken.metadata", Kept)],
            ),
        ],
    );
}

#[test]
fn chains() {
    let chain = "
        head -c 2000000 /dev/urandom >base.raw; truncate -s 3M base.raw; cp base.raw other.raw
        printf else | dd of=other.raw bs=1 seek=400000 conv=notrunc status=none
        qemu-img create -q -f qcow2 -b base.raw -F raw -o cluster_size=4k mid.qcow2
        qemu-io -f qcow2 -c 'write -q -P 1 1M 200k' -c 'write -q -z 300k 50k' mid.qcow2
        qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 -o cluster_size=4k top.qcow2
        qemu-io -f qcow2 -c 'write -q -P 2 1100k 300k' -c 'write -q -z 2M 100k' top.qcow2";
    kill_all(
        &[chain],
        &[
            case(
                "commit -q top.qcow2",
                &[
                    ("top.qcow2", SameDisk),
                    ("mid.qcow2", Sectors),
                    ("base.raw", Kept),
                ],
            ),
            case(
                "commit -q -d -b base.raw top.qcow2",
                &[("top.qcow2", SameDisk), ("base.raw", Sectors)],
            ),
            case(
                "commit -q mid.qcow2",
                &[("mid.qcow2", SameDisk), ("base.raw", Sectors)],
            ),
            case(
                "rebase -q -b other.raw -F raw top.qcow2",
                &[("top.qcow2", SameDisk), ("mid.qcow2", Kept), ("other.raw", Kept)],
            ),
            case(
                "rebase -q -u -b other.raw -F raw top.qcow2",
                &[("top.qcow2", OldOrNew)],
            ),
            case(
                "stream -q top.qcow2",
                &[("top.qcow2", SameDisk), ("mid.qcow2", Kept), ("base.raw", Kept)],
            ),
            case(
                "stream -q -c -b base.raw top.qcow2",
                &[("top.qcow2", SameDisk), ("mid.qcow2", Kept), ("base.raw", Kept)],
            ),
        ],
    );
}

/// A tree, filesystems of it in files and in a partition, and the tree as a system.
const FILESYSTEMS: &str = "
    mkdir -p tree/etc/ssh tree/boot tree/var/log; echo guest >tree/etc/hostname; head -c 200000 /dev/urandom >tree/var/log/syslog
    printf 'PRETTY_NAME=Tiny\\n' >tree/etc/os-release; echo 0123456789abcdef0123456789abcdef >tree/etc/machine-id
    echo secret >tree/etc/ssh/ssh_host_rsa_key; echo a kernel >tree/boot/vmlinuz-6.1.0-9
    $0 mkfs -q --size 16M tree root.img; $0 mkfs -q --size 16M -O qcow2 tree root.qcow2
    $0 create -q disk.raw 24M; $0 partition create -q --seed 1 disk.raw name=root
    cp disk.raw blank.raw; $0 mkfs -q tree 'disk.raw#1'
    mkdir other; head -c 500000 /dev/urandom >other/new; cp root.img old.img
    cp disk.raw grown.raw; truncate -s 40M grown.raw; cp root.img longer.img; truncate -s 20M longer.img
    echo edited >edited; cp disk.raw torn.raw; dd if=/dev/zero of=torn.raw bs=512 seek=1 count=1 conv=notrunc status=none";

#[test]
fn new_filesystems_and_disks() {
    // What firmware takes for a kernel and a boot loader.
    let system = "
        mkdir -p system/boot system/etc system/usr/lib/systemd/boot/efi; printf 'PRETTY_NAME=Tiny\\n' >system/etc/os-release
        put() { printf \"$2\" | dd of=$1 bs=1 seek=$3 conv=notrunc status=none; }
        for file in boot/vmlinuz-6.1.0-9 usr/lib/systemd/boot/efi/systemd-bootx64.efi; do
            head -c 50000 /dev/zero >system/$file
            put system/$file MZ 0; put system/$file '\\200' 60; put system/$file 'PE\\0\\0\\144\\206' 128
        done";
    kill_all(
        &[FILESYSTEMS, system],
        &[
            case(
                "mkdisk -q --esp-size 40M --uuid 6a1e5bd0-0000-4000-8000-0123456789ab system new.raw",
                &[("new.raw", Table), ("new.raw#2", Files)],
            ),
            case(
                "mkdisk -q --esp-size 40M --uuid 6a1e5bd0-0000-4000-8000-0123456789ab -O qcow2 system root.qcow2",
                &[("root.qcow2", OldOrNew)],
            ),
            case("mkfs -q other new.img", &[("new.img", Files)]),
            case(
                "mkfs -q --size 16M -O qcow2 other root.qcow2",
                &[("root.qcow2", Files)],
            ),
            case("mkfs -q --size 16M other old.img", &[("old.img", Files)]),
            case(
                "mkfs -q other disk.raw#1",
                &[("disk.raw#1", FilesOrNone), ("disk.raw", Table)],
            ),
            case("mkfs -q other blank.raw#1", &[("blank.raw#1", FilesOrNone)]),
            case(
                "partition create -q --force --seed 2 disk.raw size=8M,name=a name=b",
                &[("disk.raw", Table)],
            ),
            case("partition grow -q --last grown.raw", &[("grown.raw", Table)]),
            case("partition repair -q torn.raw", &[("torn.raw", Table)]),
        ],
    );
}

#[test]
fn changes_of_filesystems() {
    kill_all(
        &[FILESYSTEMS],
        &[
            case("fs put root.img other/new /etc/new", &[("root.img", Files)]),
            case(
                "fs put root.qcow2 other/new /var/log/syslog",
                &[("root.qcow2", Files)],
            ),
            case("fs put disk.raw#1 other/new /", &[("disk.raw#1", Files)]),
            once("fs mkdir root.img /a /b", &[("root.img", Files)]),
            once("fs rm -r root.img /var /etc/ssh", &[("root.img", Files)]),
            once("fs mv root.img /etc /config", &[("root.img", Files)]),
            once("fs ln root.img /etc/hostname /name", &[("root.img", Files)]),
            once("fs edit root.img /etc/hostname", &[("root.img", Files)]),
            case("fs chmod root.img 600 /etc/hostname", &[("root.img", Files)]),
            case("fs chown root.img 7:8 /etc/hostname", &[("root.img", Files)]),
            case("fs grow longer.img", &[("longer.img", Files)]),
            // What a kill leaves has a name of its own.
            once(
                "fs cp root.img /var/log/syslog copy",
                &[("copy", Replaced), ("root.img", Kept)],
            ),
            case("template seal -q root.qcow2", &[("root.qcow2", Filesystem)]),
        ],
    );
}

/// Templates with aliases, machines and a profile, and what more templates can be made of.
const STORE: &str = "
    $0 template import -q --store store root.qcow2 --alias tiny --memory 256M
    $0 template import -q --store store root.img --alias other
    $0 template tag --store store tiny small
    for name in web db; do $0 clone -q --store store --from tiny $name; done
    printf '[source]\\ndirectory = \"tree\"\\n[disk]\\nuuid = \"6a1e5bd0-0000-4000-8000-0123456789ab\"\\n' >built.toml
    $0 template export -q --store store other -o old.qcow2
    $0 mkfs -q --size 18M tree more.img; mkdir -p store/profiles; printf 'memory = \"1G\"\\n' >store/profiles/small.toml";

#[test]
fn stores() {
    kill_all(
        &[FILESYSTEMS, STORE],
        &[
            case("rename --store store web www", &[("store", Store)]),
            case("rm --store store db", &[("store", Store)]),
            case("config set --store store web --memory 512M", &[("store", Store)]),
            case(
                "config set --store store web --profile small",
                &[("store", Store)],
            ),
            case("clone -q --store store --from tiny new", &[("store", Machines)]),
            case(
                "launch -q --store store --accel tcg --format libvirt -o web.xml web",
                &[("web.xml", Text), ("store", Store)],
            ),
            case(
                "launch -q --store store --format kvmtool -o web.sh web",
                &[("web.sh", Text), ("web-disk0.raw", OldOrNew), ("store", Store)],
            ),
            case("template tag --store store tiny first", &[("store", Store)]),
            case("template untag --store store small", &[("store", Store)]),
            once("template rm --store store other", &[("store", Store)]),
            case(
                "template import -q --store store disk.raw --alias disk",
                &[("store", Store)],
            ),
            case(
                "template import -q --store store disk.raw --alias small --move",
                &[("store", Store)],
            ),
            case("template build -q --store store built.toml", &[("store", Store)]),
            case(
                "template publish -q --store store web --alias mine",
                &[("store", Store)],
            ),
            case(
                "template publish -q --store store web --alias tiny --move --compress",
                &[("store", Store)],
            ),
            case(
                "template export -q --store store tiny -o new.qcow2",
                &[
                    ("new.qcow2", OldOrNew),
                    ("new.qcow2.toml", Replaced),
                    ("store", Store),
                ],
            ),
            case(
                "template export -q --store store tiny -o old.qcow2",
                &[("old.qcow2", OldOrNew), ("old.qcow2.toml", Replaced)],
            ),
            case(
                "template export -q --store store --format raw tiny -o new.raw",
                &[("new.raw", OldOrNew), ("new.raw.toml", Replaced)],
            ),
            case(
                "template export -q --store store --format tar tiny -o new.tar",
                &[("new.tar", Replaced)],
            ),
            case(
                "template export -q --store store --format oci tiny -o new.tar",
                &[("new.tar", Replaced)],
            ),
        ],
    );
}
