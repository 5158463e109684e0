//! The same promises where there is hardly any memory: a command says so or ends itself, and what it was writing to is as promised.

use super::case::{case, starve_all};
use super::promise::Promise::{Files, Kept, Machines, OldOrNew, SameDisk, Sectors, Store};
use super::{FILESYSTEMS, IMAGES, STORE};

#[test]
fn images_without_memory() {
    starve_all(
        &[IMAGES],
        &[
            case(
                "convert -q -c -O qcow2 top.qcow2 old.qcow2",
                &[("old.qcow2", OldOrNew), ("top.qcow2", Kept), ("a.qcow2", Kept)],
            ),
            case(
                "resize -q --preallocation metadata old.qcow2 40M",
                &[("old.qcow2", OldOrNew)],
            ),
            case("snapshot apply -q a.qcow2 first", &[("a.qcow2", OldOrNew)]),
            case(
                "bitmap --merge all --enable a.qcow2 some",
                &[("a.qcow2", OldOrNew)],
            ),
            case("amend -q -o refcount_bits=64 a.qcow2", &[("a.qcow2", OldOrNew)]),
            case(
                "commit -q top.qcow2",
                &[("top.qcow2", SameDisk), ("a.qcow2", Sectors)],
            ),
        ],
    );
}

#[test]
fn filesystems_and_stores_without_memory() {
    starve_all(
        &[FILESYSTEMS, STORE],
        &[
            case("mkfs -q --size 16M other old.img", &[("old.img", Files)]),
            case("fs put root.img other/new /etc/new", &[("root.img", Files)]),
            case("clone -q --store store --from tiny new", &[("store", Machines)]),
            case(
                "template import -q --store store more.img --alias more",
                &[("store", Store), ("more.img", Kept)],
            ),
            case("template build -q --store store built.toml", &[("store", Store)]),
        ],
    );
}
