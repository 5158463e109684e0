//! `imgtool fs put -r`: directories of the host in ext4 filesystems, as the kernel and e2fsck see them.
//!
//! Loop mounts, owners and devices need root.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::common::{Lab, Mounted, interrupted_by};
use serde_json::{Value, json};

/// A tree with all kinds of files in `tree`.
const TREE: &str = r#"
    mkdir -p tree/etc/deep/er tree/empty tree/bin
    echo one >tree/etc/one; head -c 300000 /dev/urandom >tree/etc/large; : >tree/etc/nothing
    printf 'odd' >"tree/etc/a name
with $(printf '\377') bytes"
    ln -s ../etc/one tree/bin/link; ln -s /nowhere/at/all/but/very/long/$(seq -s/ 60) tree/bin/dangling
    ln tree/etc/one tree/etc/two; ln tree/etc/one tree/etc/deep/three; ln -P tree/bin/link tree/bin/other
    mknod tree/empty/null c 1 3; mknod tree/empty/disk b 8 1; mkfifo tree/empty/pipe
    python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("tree/empty/socket")'
    chmod 4711 tree/etc/large; chmod 1777 tree/empty; chmod 2750 tree/etc/deep; chmod 640 tree/etc/one
    chown 1000:1001 tree/etc/one tree/etc/deep; chown -h 7:8 tree/bin/link; chown 70000:80000 tree/empty/pipe
    setfattr -n user.note -v kept tree/etc/large; setfacl -m u:1234:r tree/etc/nothing; setfacl -d -m g:55:rx tree/etc
    setcap cap_net_raw+ep tree/etc/large
    seq 2000 | (mkdir tree/many; cd tree/many; xargs touch)
    find tree -print0 | xargs -0 touch -h -d '2001-02-03 04:05:06.789012345'
"#;

/// What there is to know of each file of a tree, but for times of access.
const LOOK: &str = r#"
    cd "$1"
    {
        find . -printf '%y %p %m %U %G %n %s %T@ %l\n' | grep -v 'lost+found' | sed -E "s/^(d.*) [0-9]+ [0-9]+ ([0-9.]+ )/\1 \2/" | LC_ALL=C sort
        find . -print0 | LC_ALL=C sort -z | xargs -0 getfattr -hd -m - 2>/dev/null
        find . ! -type l -print0 | LC_ALL=C sort -z | xargs -0 getfacl -np; find . -type b -o -type c | LC_ALL=C sort | xargs stat -c '%n %t %T'
        find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
    } | LC_ALL=C tr '\377' '?'
"#;

fn script(lab: &Lab, script: &str, argument: &str) -> String {
    lab.run_words(&["bash", "-ec", script, "bash", argument]).ok()
}

fn mount(lab: &Lab, image: &str) -> (Mounted, PathBuf) {
    let point = lab.path("mnt");
    fs::create_dir_all(&point).unwrap();
    let words = ["mount", "-o", "loop,ro", image, point.to_str().unwrap()];
    lab.run_words(&words).ok();
    (Mounted::at(&point), point)
}

/// e2fsck says nothing but its summary.
fn judge(lab: &Lab, image: &str) {
    let text = lab.run(&format!("e2fsck -fn {image}")).ok();
    let quiet = |line: &&str| line.starts_with("Pass ") || line.contains(" files (");
    let findings: Vec<&str> = text.lines().filter(|line| !quiet(line)).collect();
    assert!(findings.is_empty(), "{findings:?}");
}

#[test]
fn what_fails_in_the_middle_takes_no_room_in_an_overlay() {
    let lab = Lab::new();
    lab.run("mke2fs -q -t ext4 root.ext4 128M").ok();
    lab.qemu_img("create -q -f qcow2 -b root.ext4 -F raw root.qcow2");
    script(
        &lab,
        "head -c 20000000 /dev/urandom >large; mkdir many; cd many; for n in $(seq 300); do head -c 9000 /dev/urandom >$n; done",
        "",
    );
    let room = || {
        let info: Value = serde_json::from_str(&lab.qemu_img("info --output json root.qcow2")).unwrap();
        info["actual-size"].as_u64().unwrap()
    };
    let before = room();
    for words in ["root.qcow2 large missing /", "-r root.qcow2 many large missing /"] {
        lab.run(&format!("imgtool fs put {words}"))
            .fails(1, &["missing: ", "No such file"]);
        // Clusters that are shared with what is in use, and tables.
        assert!(room() < before + (1 << 20), "{words}: {before} {}", room());
        lab.qemu_img("check -q root.qcow2");
    }
    assert_eq!(
        lab.imgtool("fs ls root.qcow2 /"),
        lab.imgtool("fs ls root.ext4 /")
    );
    // What an image holds already is not taken from it.
    lab.qemu_img("create -q -f qcow2 -o preallocation=full full.qcow2 128M");
    lab.qemu_img("convert -n -f raw -O qcow2 --target-is-zero root.ext4 full.qcow2");
    let taken = || lab.path("full.qcow2").metadata().unwrap().blocks();
    let reserved = taken();
    lab.run("imgtool fs put full.qcow2 large missing /")
        .fails(1, &["missing: "]);
    assert_eq!(taken(), reserved);
    lab.imgtool("fs put -r root.qcow2 many large /");
    assert!(room() > before + 20_000_000);
    lab.qemu_img("convert -O raw root.qcow2 after.ext4");
    judge(&lab, "after.ext4");
    lab.imgtool("fs cp root.qcow2 /large copy");
    lab.run("cmp large copy").ok();
}

/// strace sends the signal as a piece of the files is written, and the thread that writes it gets it before it goes on.
#[test]
fn an_interrupt_leaves_the_filesystem_as_it_was_and_gives_back_the_room() {
    let lab = Lab::new();
    let files = "
        mkdir -p base/etc tree/many; echo old >base/etc/conf; head -c 50000000 /dev/urandom >tree/large
        for n in $(seq 100); do head -c 9000 /dev/urandom >tree/many/$n; done";
    script(&lab, files, "");
    lab.imgtool("mkfs -q --size 128M base root.ext4");
    lab.qemu_img("create -q -f qcow2 -b root.ext4 -F raw root.qcow2");
    let list = |image: &str| lab.imgtool(&format!("fs ls -lR --output json {image}"));
    let room = || lab.path("root.qcow2").metadata().unwrap().blocks() * 512;
    let (tree, before) = (list("root.ext4"), room());
    for image in ["root.qcow2", "root.ext4"] {
        for (signal, number) in [("INT", 2), ("TERM", 25), ("HUP", 40)] {
            let inject = format!("inject=pwrite64:signal={signal}:when={number}");
            let strace = [
                "strace",
                "-f",
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                "trace=pwrite64",
                "-e",
                &inject,
            ];
            let put = [
                env!("CARGO_BIN_EXE_imgtool"),
                "fs",
                "put",
                "-r",
                image,
                "tree",
                "/",
            ];
            let done = lab.run_words(&[&strace[..], &put].concat());
            let told = done.stderr();
            assert_eq!(done.code(), interrupted_by(signal), "{image}, {number}: {told}");
            assert!(
                told.contains("interrupted; the filesystem is as it was"),
                "{told}"
            );
            assert!(list(image) == tree, "{image}, {number}");
            // Tables, and clusters that are shared with what is in use.
            assert!(room() < before + (1 << 20), "{number}: {before} {}", room());
            lab.qemu_img("check -q root.qcow2");
            lab.qemu_img(&format!("convert -O raw {image} flat"));
            judge(&lab, "flat");
        }
    }
    for image in ["root.qcow2", "root.ext4"] {
        lab.imgtool(&format!("fs put -r {image} tree /"));
        lab.imgtool(&format!("fs cp {image} /tree/large copy"));
        lab.run("cmp tree/large copy").ok();
        lab.run("rm copy").ok();
    }
    judge(&lab, "root.ext4");
}

#[test]
fn a_tree_is_put_with_all_that_is_known_of_it() {
    let lab = Lab::new();
    script(&lab, TREE, "");
    lab.run("mke2fs -q -t ext4 root.ext4 64M").ok();
    let text = lab.imgtool("fs put -r -p --output json root.ext4 tree /");
    let put: Value = serde_json::from_str(&text).unwrap();
    let counts = json!({"files": 2004, "directories": 7, "symlinks": 2, "others": 4, "links": 3, "bytes": 300_007,
        "left-out": {"xattrs": 0}});
    assert_eq!(put, counts);
    judge(&lab, "root.ext4");
    let (_mounted, point) = mount(&lab, "root.ext4");
    let (theirs, ours) = (script(&lab, LOOK, "tree"), point.join("tree"));
    let ours = script(&lab, LOOK, ours.to_str().unwrap());
    assert!(
        theirs.lines().count() > 4000 && theirs.contains("cap_net_raw")
            || theirs.contains("security.capability")
    );
    let mut both = theirs.lines().zip(ours.lines());
    assert!(theirs == ours, "{:?}", both.find(|(theirs, ours)| theirs != ours));
}

#[test]
fn a_tree_goes_into_one_that_is_there_and_belongs_to_root_unless_it_is_to_keep_its_owners() {
    let lab = Lab::new();
    script(
        &lab,
        "mkdir -p base/usr/lib base/etc; ln -s usr/lib base/lib; echo old >base/etc/conf; chmod 600 base/etc/conf; chown 5:6 base/etc/conf base/etc
         chmod 700 base/etc; echo stays >base/etc/stays; echo target >base/etc/real; ln -s real base/etc/to; echo gone >base/etc/link
         mkdir -p over/lib/x over/etc; echo lib >over/lib/x/file; echo new >over/etc/conf; echo through >over/etc/to
         ln -s conf over/etc/link; chmod 4755 over/lib/x/file; chown -R 1000:1000 over; ln over/etc/to over/etc/too",
        "",
    );
    lab.imgtool("mkfs -q --size 32M base root.ext4");
    for _ in 0..2 {
        lab.imgtool("fs put -r root.ext4 over/. /");
    }
    judge(&lab, "root.ext4");
    let (_mounted, point) = mount(&lab, "root.ext4");
    let look = "cd \"$1\"; find . -path ./lost+found -prune -o -printf '%p %y %m %U:%G %l\\n' | LC_ALL=C sort; cd etc; cat conf stays real to too link";
    let expected = "\
. d 755 0:0 
./etc d 700 5:6 
./etc/conf f 600 5:6 
./etc/link l 777 0:0 conf
./etc/real f 644 0:0 
./etc/stays f 644 0:0 
./etc/to l 777 0:0 real
./etc/too f 644 0:0 
./lib l 777 0:0 usr/lib
./usr d 755 0:0 
./usr/lib d 755 0:0 
./usr/lib/x d 755 0:0 
./usr/lib/x/file f 755 0:0 
new
stays
through
through
through
new
";
    assert_eq!(script(&lab, look, point.to_str().unwrap()), expected);
}

#[test]
fn a_tree_that_cannot_be_put_whole_changes_nothing_and_is_told_why() {
    let lab = Lab::new();
    lab.run("mke2fs -q -t ext4 root.ext4 16M").ok();
    script(
        &lab,
        "mkdir -p base/etc/dir over/etc; echo x >base/etc/file; mkdir big; head -c 30M /dev/zero >big/b; echo 1 >big/a
         mkdir -p one/etc/file two/etc three/etc loop; echo 1 >two/etc/dir; ln -s x three/etc/dir; mkdir mine",
        "",
    );
    lab.imgtool("fs put -r root.ext4 base/. /");
    lab.run("cp root.ext4 mine/root.ext4").ok();
    let tree = lab.imgtool("fs ls -lR --output json root.ext4");
    for (line, says) in [
        ("-r root.ext4 big /", &["no room", "root.ext4"][..]),
        ("-r root.ext4 one/. /", &["/etc/file", "no directory"]),
        ("-r root.ext4 two/. /", &["/etc/dir", "no regular file"]),
        ("-r root.ext4 three/. /", &["/etc/dir", "is a directory"]),
        ("-r root.ext4 base none /", &["none"]),
        ("-r root.ext4 /proc/sys/kernel /", &["made up by the kernel"]),
        ("root.ext4 base /", &["this is a directory", "base", "hint: -r"]),
        (
            "-r mine/root.ext4 mine /",
            &["cannot be put into itself", "mine/root.ext4"],
        ),
        (
            "root.ext4 root.ext4 /",
            &["cannot be put into itself", "root.ext4"],
        ),
    ] {
        lab.run(&format!("imgtool fs put {line}")).fails(1, says);
    }
    assert_eq!(lab.imgtool("fs ls -lR --output json root.ext4"), tree);
    assert_eq!(lab.imgtool("fs ls -lR --output json mine/root.ext4"), tree);
    judge(&lab, "root.ext4");
    let both = lab.run("imgtool fs put -r -p --mode 600 root.ext4 base /");
    both.fails(1, &["--preserve", "--mode"]);
}

#[test]
fn what_is_not_recursive_keeps_what_is_known_too() {
    let lab = Lab::new();
    lab.run("mke2fs -q -t ext4 root.ext4 16M").ok();
    script(
        &lab,
        "echo x >file; chown 1:2 file; chmod 4750 file; setfattr -n user.a -v b file; touch -d @1000000000 file; ln -s file link",
        "",
    );
    lab.imgtool("fs put -p root.ext4 link /kept");
    lab.imgtool("fs put -p --owner :9 root.ext4 link /other");
    let debugfs = lab.run_words(&["debugfs", "-R", "stat /kept", "root.ext4"]).ok();
    for part in [
        "Mode:  04750",
        "User:     1   Group:     2",
        "mtime: 0x3b9aca00",
        "user.a (1) = \"b\"",
    ] {
        assert!(debugfs.contains(part), "{part}: {debugfs}");
    }
    let debugfs = lab.run_words(&["debugfs", "-R", "stat /other", "root.ext4"]).ok();
    assert!(debugfs.contains("User:     1   Group:     9"), "{debugfs}");
    judge(&lab, "root.ext4");
}

#[test]
fn two_files_are_never_put_into_one() {
    let lab = Lab::new();
    script(
        &lab,
        "mkdir -p base/etc base/dir S1 S2 S5 S6/d S6/by S7 P Q; echo one >S1/a; ln S1/a S1/c; echo two >S2/a; ln S1/a S2/b
         echo both >base/a; ln base/a base/b; echo kept >base/etc/passwd; ln -s /d base/by; ln -s etc/passwd base/to
         echo AAA >S7/a; echo BBB >S7/b; echo p >P/f; echo q >Q/f; ln -s /etc S5/d; echo bad >S6/d/passwd; echo bad >S6/by/passwd
         mkdir S8 S8/etc; echo to >S8/to; echo passwd >S8/etc/passwd; mkdir S9; ln -s x S9/a",
        "",
    );
    lab.imgtool("mkfs -q --size 32M base root.ext4");
    let tree = lab.imgtool("fs ls -lR --output json root.ext4");
    for (line, says) in [
        ("-r root.ext4 S1/. S2/. /", &["S1/./", "S2/./a", "/a"][..]),
        ("-r -p root.ext4 S7/. /", &["S7/./a", "S7/./b"]),
        ("-r root.ext4 S8/. /", &["S8/./to", "S8/./etc/passwd"]),
        ("root.ext4 P/f Q/f /dir/", &["P/f", "Q/f", "/dir/f"]),
        ("-r root.ext4 S5/. S6/d /", &["S5/./d", "S6/d"]),
        ("-r root.ext4 S5/. S6/by /", &["S5/./d", "S6/by"]),
        ("-r root.ext4 S1/. S9/. /", &["S1/./", "S9/./a"]),
    ] {
        lab.run(&format!("imgtool fs put {line}")).fails(1, says);
    }
    assert_eq!(lab.imgtool("fs ls -lR --output json root.ext4"), tree);
    judge(&lab, "root.ext4");
    lab.imgtool("fs put -r root.ext4 S1/. /");
    lab.imgtool("fs rm root.ext4 /a");
    lab.imgtool("fs put -r root.ext4 S2/. S1/c /");
    judge(&lab, "root.ext4");
    let (_mounted, point) = mount(&lab, "root.ext4");
    let look = "cd \"$1\"; cat a b c etc/passwd; stat -c %h a b c";
    assert_eq!(
        script(&lab, look, point.to_str().unwrap()),
        "two\none\none\nkept\n1\n2\n2\n"
    );
}

#[test]
fn new_contents_may_not_do_what_the_old_ones_might() {
    let lab = Lab::new();
    script(
        &lab,
        "mkdir base dir; for name in secret kept tool piped lock; do echo old >base/$name; done
         setfacl -m u:1234:rw base/secret base/kept; setcap cap_net_raw+ep base/secret; setfattr -n user.old -v x base/secret
         mkdir base/dir; setfacl -m u:1234:rwx -d -m u:1234:rwx base/dir; setfattr -n user.stays -v x base/dir
         chmod 6755 base/tool base/piped; setcap cap_net_raw+ep base/tool; setcap cap_net_raw+ep base/piped; chmod 2644 base/lock
         for name in secret tool kept lock; do echo new >$name; chmod 600 $name; done; chmod 700 dir",
        "",
    );
    lab.imgtool("mkfs -q --size 32M base root.ext4");
    lab.imgtool("fs put -p root.ext4 secret /");
    lab.imgtool("fs put -r -p root.ext4 dir /");
    lab.imgtool("fs put root.ext4 tool kept lock /");
    let imgtool = env!("CARGO_BIN_EXE_imgtool");
    script(&lab, "echo new | \"$1\" fs put root.ext4 - /piped", imgtool);
    judge(&lab, "root.ext4");
    let (_mounted, point) = mount(&lab, "root.ext4");
    let look = "cd \"$1\"; stat -c '%n %a' secret tool piped kept lock dir; cat secret tool piped kept lock
        getfattr -d -m - secret tool piped kept lock dir | grep -o '^[^=]*'";
    let expected = "\
secret 600
tool 755
piped 755
kept 664
lock 2644
dir 700
new
new
new
new
new
# file: kept
system.posix_acl_access
# file: dir
user.stays
";
    assert_eq!(script(&lab, look, point.to_str().unwrap()), expected);
}

#[test]
fn holes_of_a_file_take_no_room_in_an_image() {
    let lab = Lab::new();
    let files = "
        mkdir tree; truncate -s 10G tree/sparse; truncate -s 1G tree/hole
        for at in 0 7 4096 9000000; do printf data | dd of=tree/sparse bs=1000 seek=$at conv=notrunc status=none; done";
    script(&lab, files, "");
    lab.run("mke2fs -q -t ext4 root.ext4 32M").ok();
    lab.imgtool("fs put -r root.ext4 tree /");
    lab.imgtool("fs put root.ext4 tree/sparse /alone");
    judge(&lab, "root.ext4");
    let (_mounted, point) = mount(&lab, "root.ext4");
    for (from, to) in [
        ("sparse", "tree/sparse"),
        ("hole", "tree/hole"),
        ("sparse", "alone"),
    ] {
        let (from, to) = (lab.path("tree").join(from), point.join(to));
        let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
        for part in ["-n 5M", "-i 8999MB -n 2MB"] {
            lab.run(&format!("cmp {part} {from} {to}")).ok();
        }
        let look = "stat -c %s $1";
        assert_eq!(script(&lab, look, from), script(&lab, look, to));
        let taken = lab.run_words(&["du", "--block-size=1", to]).ok();
        let taken: u64 = taken.split_whitespace().next().unwrap().parse().unwrap();
        assert!(taken <= 16 * 4096, "{to} takes {taken} bytes");
    }
}

#[test]
fn what_is_known_of_a_directory_goes_to_where_it_was_put_though_a_link_on_the_way_is_replaced() {
    let lab = Lab::new();
    let trees = "
        mkdir -p image/y image/z one/x two; ln -s y image/x; chmod 755 image/y image/z
        chmod 700 one/x; touch -d 2001-02-03 one/x; ln -s z two/x
        mke2fs -q -t ext4 -d image root.ext4 32M";
    script(&lab, trees, "");
    lab.imgtool("fs put -r -p root.ext4 one/. two/. /");
    judge(&lab, "root.ext4");
    let (_mounted, point) = mount(&lab, "root.ext4");
    let look = "cd $1; readlink x; stat -c '%a %y' y | cut -c 1-14; stat -c %a z";
    let seen = script(&lab, look, point.to_str().unwrap());
    assert_eq!(seen, "z\n700 2001-02-03\n755\n");
}
