//! The same promises where the disk is full: every command that takes room, on a file system that has none left or soon will.

use super::case::{case, fill_all, once};
use super::promise::Promise::{
    Files, Filesystem, Kept, Machines, OldOrNew, Replaced, SameDisk, Sectors, Store, Unlocked,
};
use super::{FILESYSTEMS, IMAGES, STORE};

#[test]
fn images_without_room() {
    let others = "
        printf old >old.key; qemu-img create -q -f qcow2 -o cluster_size=4k v3.qcow2 1M
        qemu-io -f qcow2 -c 'write -q -P 5 100k 300k' v3.qcow2";
    fill_all(
        &[IMAGES, others],
        &[
            case(
                "create -q -f qcow2 -o preallocation=full old.qcow2 4M",
                &[("old.qcow2", OldOrNew)],
            ),
            case(
                "create -q -f raw -o preallocation=falloc old.raw 4M",
                &[("old.raw", OldOrNew)],
            ),
            case(
                "convert -q -O raw top.qcow2 old.raw",
                &[("old.raw", OldOrNew), ("top.qcow2", Kept), ("a.qcow2", Kept)],
            ),
            case(
                "convert -q -c -O qcow2 top.qcow2 old.qcow2",
                &[("old.qcow2", OldOrNew), ("top.qcow2", Kept), ("a.qcow2", Kept)],
            ),
            case(
                "convert -q --key old.key -O luks -o iter-time=10 a.raw new.luks",
                &[("new.luks", Unlocked), ("a.raw", Kept)],
            ),
            case(
                "dd -q -f qcow2 -O qcow2 bs=64k if=a.qcow2 of=old.qcow2",
                &[("old.qcow2", OldOrNew), ("a.qcow2", Kept)],
            ),
            case(
                "resize -q --preallocation full v3.qcow2 5M",
                &[("v3.qcow2", OldOrNew)],
            ),
            case(
                "snapshot export -q -O qcow2 a.qcow2 first old.qcow2",
                &[("old.qcow2", OldOrNew), ("a.qcow2", Kept)],
            ),
            case(
                "commit -q top.qcow2",
                &[("top.qcow2", SameDisk), ("a.qcow2", Sectors)],
            ),
            case(
                "rebase -q -b old.raw -F raw top.qcow2",
                &[("top.qcow2", SameDisk), ("a.qcow2", Kept), ("old.raw", Kept)],
            ),
            case(
                "stream -q top.qcow2",
                &[("top.qcow2", SameDisk), ("a.qcow2", Kept)],
            ),
        ],
    );
}

#[test]
fn filesystems_without_room() {
    fill_all(
        &[FILESYSTEMS],
        &[
            case("mkfs -q other new.img", &[("new.img", Files)]),
            case(
                "mkfs -q --size 16M -O qcow2 other root.qcow2",
                &[("root.qcow2", Files)],
            ),
            case("fs put root.img other/new /etc/new", &[("root.img", Files)]),
            case("fs put root.qcow2 other/new /etc/new", &[("root.qcow2", Files)]),
            once(
                "fs cp root.img /var/log/syslog copy",
                &[("copy", Replaced), ("root.img", Kept)],
            ),
            case("template seal -q root.qcow2", &[("root.qcow2", Filesystem)]),
        ],
    );
}

#[test]
fn stores_without_room() {
    fill_all(
        &[FILESYSTEMS, STORE],
        &[
            case("clone -q --store store --from tiny new", &[("store", Machines)]),
            case(
                "template import -q --store store more.img --alias more",
                &[("store", Store), ("more.img", Kept)],
            ),
            case("template build -q --store store built.toml", &[("store", Store)]),
            case(
                "template publish -q --store store web --alias mine",
                &[("store", Store)],
            ),
            case(
                "template export -q --store store tiny -o old.qcow2",
                &[
                    ("old.qcow2", OldOrNew),
                    ("old.qcow2.toml", Replaced),
                    ("store", Store),
                ],
            ),
        ],
    );
}
