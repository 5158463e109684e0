//! Tables of `qemu-img` command lines, by our link and by QEMU's own program: the same exit codes, texts and disks.
//!
//! Where a file's length would be printed the images are compared instead: QEMU copies in parallel, so that lengths and places in the file
//! are not the same from run to run, and ours leaves zeros out.

use std::fs;

use crate::common::twins::Twins;

/// What is done in each test: see [`crate::common::twins`].
fn both(script: &str) {
    Twins::new().script(script);
}

#[test]
fn options_are_amended_alike() {
    both(
        "0 create -q -f qcow2 a 1M
         io a write -P 1 0 128k
         0 amend -o compat=0.10 a
         same a
         same a
         0 amend -q -o compat=1.1,lazy_refcounts=on a
         0 amend -f qcow2 -o refcount_bits=8 a
         same a
         same a
         0 amend -o size=2M a
         0 amend -o refcount_bits=64,lazy_refcounts=off a
         same a
         same a
         1 amend a
         1 amend -o foo=1 a
         1 amend -o cluster_size=4k a
         1 amend -o compat=0.42 a
         1 amend -o compat=0.10 a
         1 amend -o refcount_bits=7 a
         1 amend -o backing_file=x a
         1 amend -o data_file=x a
         1 amend -o data_file_raw=on a
         1 amend -o size=1000 a
         1 amend -o lazy_refcounts=foo a
         1 amend -t foo -o size=2M a
         1 amend -o size=2M nope
         0 create -q -f raw r 1M
         1 amend -f raw -o size=2M r
         0 create -q -f qcow2 -b a -F qcow2 over
         0 amend -o backing_file=a,backing_fmt=qcow2 over
         1 amend -o backing_file=b over",
    );
}

#[test]
fn bitmaps_are_changed_alike() {
    both(
        "0 create -q -f qcow2 a 8M
         0 bitmap --add a one
         0 bitmap --add -g 4k --disable a two
         same a
         io a write -P 1 1M 128k
         0 bitmap --enable a two
         io a write -P 1 3M 128k
         same a
         0 bitmap --add --merge one --merge two a three
         0 bitmap --disable --clear a one
         same a
         0 bitmap --remove a two
         same a
         same a
         1 bitmap --add a one
         1 bitmap --remove a gone
         1 bitmap --clear a gone
         1 bitmap --enable a gone
         1 bitmap --merge gone a one
         1 bitmap --merge one a gone
         1 bitmap --add -g 1000 a four
         1 bitmap --add -g 256 a four
         1 bitmap -g 64k --remove a one
         1 bitmap a one
         1 bitmap --add a
         1 bitmap --add
         1 bitmap -F qcow2 --add a five
         1 bitmap -b a --add a five
         0 create -q -f qcow2 b 8M
         0 bitmap --add b other
         0 bitmap --merge three -b a -F qcow2 b other
         same b
         1 bitmap --merge none -b a -F qcow2 b other
         1 bitmap --merge three -b nope b other
         0 measure -O qcow2 a
         0 convert -O qcow2 --bitmaps a c
         same c",
    );
}

#[test]
fn blocks_are_copied_alike() {
    both(
        "0 create -q -f qcow2 a 1M
         io a write -P 1 0 128k
         io a write -P 2 512k 100k
         0 dd -f qcow2 -O raw if=a of=r1
         file r1
         0 dd -f qcow2 -O raw bs=1k count=200 if=a of=r2
         file r2
         0 dd -f qcow2 -O qcow2 bs=64k skip=7 if=a of=q1
         same q1
         same q1
         0 dd bs=100 count=77 skip=3 if=a of=r3
         file r3
         0 dd -U -O raw skip=1 count=1 if=a of=r4
         file r4
         0 dd count=99999 bs=1k if=a of=r5
         file r5
         0 dd skip=99999 bs=1k if=a of=r6
         file r6
         0 dd --image-opts if=driver=qcow2,file.filename=a of=r7
         file r7
         1 dd if=a
         1 dd of=a
         1 dd
         1 dd foo if=a of=x
         1 dd foo=1 if=a of=x
         1 dd isize=1 if=a of=x
         1 dd bs=0 if=a of=x
         1 dd count=-1 if=a of=x
         1 dd if=nope of=x
         1 dd -f foo if=a of=x
         1 dd -O foo if=a of=x
         1 dd -f raw --image-opts if=a of=x",
    );
}

#[test]
fn room_is_measured_alike() {
    both(
        "0 create -q -f qcow2 a 8M
         io a write -P 1 0 1M
         io a write -P 2 5M 100k
         0 create -q -f raw r 8M
         0 create -q -f qcow2 -b a -F qcow2 over
         io over write -P 3 2M 64k
         0 measure a
         0 measure -O qcow2 a
         0 measure -O raw a
         0 measure -O qcow2 --output json a
         0 measure -O qcow2 over
         0 measure -f raw -O qcow2 r
         0 measure --size 1G
         0 measure --size 1G -O qcow2
         0 measure --size 2T -O qcow2 -o cluster_size=4k
         0 measure --size 1G -O qcow2 -o preallocation=full
         0 measure --size 1G -O qcow2 -o preallocation=metadata,refcount_bits=1
         0 measure --size 1G -O qcow2 -o extended_l2=on
         0 measure --size 1G -O qcow2 -o compat=0.10,cluster_size=2M
         0 measure --object secret,id=s,data=x --size 1G -O qcow2 -o encrypt.format=luks,encrypt.key-secret=s
         0 measure --object secret,id=s,data=x --size 1G -O luks -o key-secret=s
         0 measure --size 0 -O qcow2
         0 measure --size 1000 -O qcow2
         0 snapshot -c one a
         io a write -P 1 6M 1M
         0 measure -O qcow2 -l one a
         0 measure -O qcow2 -l snapshot.name=one a
         1 measure -O qcow2 -l two a
         1 measure
         1 measure --size 1G a
         1 measure a r
         1 measure -O foo --size 1G
         1 measure -O qcow2 --size 1G -o cluster_size=3
         1 measure -O qcow2 --size 1G -o foo=1
         1 measure nope",
    );
}

#[test]
fn snapshots_are_kept_alike() {
    both(
        "0 create -q -f qcow2 a 1M
         0 snapshot a
         0 snapshot -l a
         io a write -P 1 0 64k
         0 snapshot -c one a
         0 snapshot -c two a
         0 snapshot -a one a
         same a
         1 snapshot -d 1 a
         0 snapshot -d one a
         0 snapshot -d two a
         same a
         0 snapshot -l a
         1 snapshot -a gone a
         1 snapshot -d gone a
         1 snapshot -l nope
         1 snapshot
         1 snapshot a a
         1 snapshot -c x nope
         0 create -q -f raw r 1M
         0 snapshot -l r",
    );
}

#[test]
fn images_are_based_on_others_alike() {
    both(
        "0 create -q -f qcow2 one 1M
         0 create -q -f qcow2 two 2M
         io one write -P 1 0 512k
         io two write -P 1 0 256k
         io two write -P 2 256k 1M
         0 create -q -f qcow2 -b one -F qcow2 top 2M
         io top write -P 3 128k 64k
         0 rebase -b two -F qcow2 top
         same top
         same top
         0 rebase -u -b one -F qcow2 top
         same top
         0 rebase -b one -F qcow2 top
         0 rebase -c -b two -F qcow2 top
         same top
         0 rebase -b '' top
         same top
         same top
         0 rebase -b one -F qcow2 top
         same top
         1 rebase top
         1 rebase -b one top
         1 rebase -b nope -F qcow2 top
         1 rebase -b one -F foo top
         1 rebase -b one -F qcow2 nope
         1 rebase -t foo -b one -F qcow2 top
         1 rebase -T foo -b one -F qcow2 top
         0 create -q -f raw r 1M
         1 rebase -f raw -b one -F qcow2 r
         1 rebase -f raw -b '' r
         0 rebase -u -b '' top
         same top",
    );
}

#[test]
fn images_are_committed_alike() {
    both(
        "0 create -q -f qcow2 base 1M
         0 create -q -f qcow2 -b base -F qcow2 mid
         0 create -q -f qcow2 -b mid -F qcow2 top 2M
         io base write -P 1 0 256k
         io mid write -P 2 64k 64k
         io top write -P 3 128k 64k
         io top write -P 4 1M 64k
         0 commit -d top
         same mid
         same top
         layers top
         0 commit -q top
         same mid
         same top
         layers top
         io top write -P 5 512k 64k
         0 commit -b base top
         same base
         0 commit -r 100M top
         1 commit base
         1 commit -b gone top
         1 commit -t foo top
         1 commit nope
         0 commit -r 0 top
         1 commit",
    );
}

#[test]
fn sizes_are_changed_alike() {
    both(
        "0 create -q -f qcow2 a 1M
         0 create -q -f raw r 1M
         0 create -q -f qcow2 -o compat=0.10 v2 1M
         io a write -P 1 0 1M
         0 resize a 3M
         0 resize a +1M
         0 resize --shrink a 512k
         same a
         0 map --output json a
         0 resize --preallocation metadata a 4M
         0 resize --preallocation falloc a 5M
         0 resize --preallocation full a 6M
         same a
         same a
         0 resize -f raw r 2M
         0 resize -f raw --preallocation falloc r 3M
         0 resize -f raw --preallocation full r 4M
         0 resize -f raw --shrink r 1M
         file r
         0 resize r 2M
         0 resize v2 2M
         0 resize -q a +0
         1 resize --preallocation metadata -f raw r 3M
         1 resize -f raw r 1M
         1 resize -f foo r 1M
         1 resize nope 1M
         1 resize a 7000001
         1 resize --preallocation foo a 9M
         0 snapshot -c one a
         0 resize a +1M
         0 resize --shrink a 1M
         0 create -q -f qcow2 -b a -F qcow2 over 1M
         0 resize over 3M
         same over",
    );
}

#[test]
fn images_are_compared_alike() {
    both(
        "0 create -q -f qcow2 a 1M
         0 create -q -f qcow2 b 1M
         0 create -q -f raw r 1M
         0 create -q -f qcow2 long 2M
         0 compare a b
         0 compare -s a b
         0 compare -f qcow2 -F raw a r
         1 compare -s -f qcow2 -F raw a r
         0 compare a long
         1 compare -s a long
         io b write -P 1 300k 4k
         io a write -z 0 64k
         1 compare a b
         1 compare -q a b
         1 compare -s a b
         io a write -P 1 300k 4k
         0 compare a b
         2 compare a nope
         2 compare -f foo a b
         2 compare -T foo a b
         1 compare a
         1 compare a b r
         io long write -P 1 300k 4k
         0 compare a long
         0 compare long a
         io long write -P 2 1M 4k
         1 compare a long
         1 compare long a
         io long write -P 9 0 4k
         1 compare a long
         1 compare long a",
    );
}

#[test]
fn images_are_checked_alike() {
    both(
        "0 create -q -f qcow2 a 1M
         io a write -P 1 0 256k
         0 check a
         0 check --output json a
         0 check -q a
         0 check -r leaks a
         0 check -r all a
         0 check -f qcow2 -U -T none a
         1 check nope
         1 check
         1 check -f foo a
         63 check -f raw a
         63 check -q -f raw a",
    );
}

#[test]
fn disks_are_mapped_alike() {
    both(
        "0 create -q -f qcow2 base 1M
         0 create -q -f qcow2 -b base -F qcow2 top 2M
         io base write -P 1 0 256k
         io top write -P 2 64k 64k
         io top write -z 128k 64k
         io top write -P 2 1M 64k
         0 map top
         0 map --output json top
         0 map --output json base
         0 map -s 100k -l 300k --output json top
         0 map --start-offset 100k --max-length 10k top
         0 map -f raw top
         0 map --output json -f raw top
         0 map -U top
         0 convert -O qcow2 -c top packed
         1 map packed
         0 map --output json packed
         1 map nope
         1 map -f foo top
         1 map -s -1 top
         1 map top top
         0 map -s 5M top",
    );
}

/// Both find the same and make the same of it.
#[test]
fn damage_is_found_and_repaired_alike() {
    let twins = Twins::new();
    twins.script(
        "0 create -q -f qcow2 a 1M
         io a write -P 1 0 256k
         io a write -P 2 512k 64k",
    );
    // A cluster that nothing refers to counts as one that is in use.
    twins.in_both(|directory| {
        use std::os::unix::fs::FileExt;
        let file = fs::File::options().write(true).open(directory.join("a")).unwrap();
        file.set_len(2 << 20).unwrap();
        file.write_all_at(&1u16.to_be_bytes(), 0x20000 + 2 * 20).unwrap();
    });
    twins.script(
        "3 check a
         3 check --output json a
         0 check -r leaks a
         0 check a
         same a",
    );
}

/// What is a leak cannot be told where refcounts are lost: nothing is changed then.
#[test]
fn leaks_are_left_where_a_cluster_in_use_counts_as_free() {
    let twins = Twins::new();
    twins.script(
        "0 create -q -f qcow2 a 1M
         io a write -P 1 0 256k",
    );
    twins.in_both(|directory| {
        use std::os::unix::fs::FileExt;
        let file = fs::File::options().write(true).open(directory.join("a")).unwrap();
        file.set_len(2 << 20).unwrap();
        file.write_all_at(&1u16.to_be_bytes(), 0x20000 + 2 * 20).unwrap();
        file.write_all_at(&0u16.to_be_bytes(), 0x20000 + 2 * 6).unwrap();
        fs::copy(directory.join("a"), directory.join("before")).unwrap();
    });
    twins.script(
        "1 check -r leaks a
         1 check -r leaks --output json a
         1 check -q -r leaks a
         2 check a
         2 check --output json a",
    );
    twins.in_both(|directory| {
        let read = |name| fs::read(directory.join(name)).unwrap();
        assert!(read("a") == read("before"), "{}", directory.display());
    });
}

#[test]
fn snapshot_tables_that_lack_sizes_are_repaired_alike() {
    let twins = Twins::new();
    twins.script(
        "0 create -q -f qcow2 a 1M
         io a write -P 1 0 64k
         0 snapshot -c abc a",
    );
    twins.in_both(|directory| {
        let image = directory.join("a");
        let mut bytes = fs::read(&image).unwrap();
        let number = |at: usize, len: usize| {
            bytes[at..at + len]
                .iter()
                .fold(0, |n, &b| n << 8 | usize::from(b))
        };
        let table = number(64, 8);
        let (extra, names) = (
            number(table + 36, 4),
            number(table + 12, 2) + number(table + 14, 2),
        );
        let (from, to) = (table + 40 + extra, table + 48);
        bytes.copy_within(from..from + names, to);
        bytes[table + 39] = 8;
        fs::write(&image, bytes).unwrap();
    });
    twins.script(
        "2 check a
         2 check -r leaks a
         0 check -r all a
         0 check a
         0 snapshot -a abc a
         same a",
    );
}

/// Who writes takes locks.
#[test]
fn nothing_is_written_to_what_may_be_in_use() {
    both(
        "0 create -q -f qcow2 a 1M
         0 snapshot -c abc a
         1 check -r all -U a
         1 check -r leaks -U a
         1 snapshot -U -c x a
         1 snapshot -U -d abc a
         1 snapshot -U -a abc a
         0 rebase -U -u -b '' a
         1 bench -U -w -c 1 a",
    );
}

/// What stands for an ID or a name is an ID first, but where a snapshot is deleted.
#[test]
fn a_snapshot_that_is_named_as_another_is_numbered_is_found_alike() {
    both(
        "0 create -q -f qcow2 a 1M
         io a write -P 1 0 64k
         0 snapshot -c s1 a
         io a write -P 2 0 64k
         0 snapshot -c s2 a
         io a write -P 3 0 64k
         0 snapshot -c 2 a
         0 snapshot -c 1 a
         io a write -P 4 0 64k
         0 convert -l 1 -O raw a one
         file one
         0 convert -l 2 -O raw a two
         file two
         0 convert -l snapshot.name=2 -O raw a named
         file named
         0 convert -l snapshot.id=2 -O raw a numbered
         file numbered
         0 convert -l 4 -O raw a four
         file four
         0 convert -l s2 -O raw a s2
         file s2
         1 convert -l s5 -O raw a s5
         1 convert -l snapshot.id=s2 -O raw a s5
         0 measure -l 1 -O qcow2 a
         0 snapshot -a 2 a
         same a
         0 snapshot -d 2 a
         1 snapshot -d 2 a
         0 snapshot -a 1 a
         same a",
    );
}

/// Texts end at the first NUL, as C's do.
#[test]
fn names_with_a_nul_are_cut_there() {
    let twins = Twins::new();
    twins.script(
        "0 create -q -f qcow2 a 1M
         0 bitmap --add a abcdefghij",
    );
    twins.in_both(|directory| {
        let image = directory.join("a");
        let mut bytes = fs::read(&image).unwrap();
        let at = bytes
            .windows(10)
            .position(|window| window == b"abcdefghij")
            .unwrap();
        bytes[at + 3..at + 5].copy_from_slice(b"\0\x1b");
        fs::write(&image, bytes).unwrap();
    });
    for line in ["info a", "info --output json a"] {
        assert!(twins.ok(line).contains("abc"));
    }
}
