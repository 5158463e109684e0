//! What of its sources the command takes, and what it leaves out and refuses.

use std::fs;

use crate::common::filesystems::{UUID, assert_good, lab, tool};
use crate::common::{Lab, copy_program};

#[test]
fn two_runs_of_whoever_may_read_the_tree_make_the_same_bytes() {
    let (lab, _mounted) = Lab::on("ext4", 400);
    lab.run("mkdir -p tree/below out").ok();
    fs::write(lab.path("tree/file"), "read").unwrap();
    fs::write(lab.path("tree/below/large"), vec![7; 1 << 20]).unwrap();
    lab.run("ln -s file tree/link").ok();
    lab.run("chown -R 65534:65534 out tree/below/large").ok();
    let program = lab.path("imgtool");
    copy_program(&program);
    let dir = lab.dir().to_str().unwrap();
    lab.run_words(&["chmod", "755", dir]).ok();
    let nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    for (option, before) in [
        ("strictatime", "2001-01-01"),
        ("relatime", "2001-01-01"),
        ("noatime", "2020-01-01"),
    ] {
        lab.run_words(&["mount", "-o", &format!("remount,{option}"), dir])
            .ok();
        for name in ["tree", "tree/file", "tree/below", "tree/below/large"] {
            lab.run(&format!("touch -d 2010-02-03 {name}")).ok();
            lab.run(&format!("touch -a -d {before} {name}")).ok();
        }
        for (user, inline) in [("env", ""), (nobody, ""), (nobody, "--inline-data")] {
            let make = |name: &str| {
                let program = program.to_str().unwrap();
                fs::remove_file(lab.path(&format!("out/{name}"))).unwrap_or_default();
                lab.run(&format!(
                    "{user} {program} mkfs -q {inline} --uuid {UUID} tree out/{name}"
                ))
                .ok();
                fs::read(lab.path(&format!("out/{name}"))).unwrap()
            };
            let first = make("first");
            assert!(first == make("second"), "{option} {user} {inline}");
            // What may be read without a trace has its own time, and what may not that of modification.
            let stat = tool(&lab, &["debugfs", "-R", "stat /file", "out/first"]).ok();
            let year = if user == "env" { &before[..4] } else { "2010" };
            let atime = stat.lines().find(|line| line.contains("atime:")).unwrap();
            assert!(atime.ends_with(year), "{option} {user}: {atime}");
            let own = tool(&lab, &["debugfs", "-R", "stat /below/large", "out/first"]).ok();
            let atime = own.lines().find(|line| line.contains("atime:")).unwrap();
            assert!(atime.ends_with(&before[..4]), "{option} {user}: {atime}");
        }
    }
}

#[test]
fn an_archive_without_an_end_is_taken_only_if_that_is_asked_for() {
    let lab = lab();
    let whole = fs::read(lab.path("tree.tar")).unwrap();
    let end = whole.iter().rposition(|byte| *byte != 0).unwrap() / 512 * 512 + 512;
    fs::write(lab.path("marked"), &whole[..end + 512]).unwrap();
    fs::write(lab.path("unmarked"), &whole[..end]).unwrap();
    fs::write(lab.path("cut"), &whole[..end - 512]).unwrap();
    lab.imgtool("mkfs -q marked new");
    assert_good(&lab, "new");
    lab.run("imgtool mkfs unmarked other")
        .fails(1, &["unmarked", "ends early", "--allow-missing-end"]);
    lab.imgtool("mkfs -q --allow-missing-end unmarked new");
    assert_good(&lab, "new");
    lab.run("imgtool mkfs --allow-missing-end cut other")
        .fails(1, &["cut", "ends early"]);
    assert!(!lab.path("other").exists());
}

#[test]
fn names_in_access_control_lists_are_looked_up_where_one_says() {
    let lab = lab();
    lab.run("setfacl -m u:daemon:rw tree/etc/hostname").ok();
    lab.run("tar --format=posix --acls -C tree -cf lists.tar .").ok();
    lab.run("imgtool mkfs lists.tar out")
        .fails(1, &["etc/hostname", "daemon", "--names DIR"]);
    lab.run("imgtool mkfs --names none lists.tar out")
        .fails(1, &["none/passwd: read: No such file"]);
    fs::create_dir(lab.path("names")).unwrap();
    fs::write(lab.path("names/passwd"), "daemon:x:4321:1::/:/bin/sh\n").unwrap();
    fs::write(lab.path("names/group"), "").unwrap();
    lab.imgtool("mkfs -q --names names lists.tar out");
    assert_good(&lab, "out");
    let list = tool(
        &lab,
        &[
            "debugfs",
            "-R",
            "ea_get /etc/hostname system.posix_acl_access",
            "out",
        ],
    )
    .ok();
    assert!(list.contains("e1 10 00 00"), "{list}");
}

#[test]
fn attributes_of_other_file_systems_are_left_out_of_every_source_and_told() {
    let (lab, _mounted) = Lab::on("btrfs", 200);
    fs::create_dir_all(lab.path("tree/etc")).unwrap();
    fs::write(lab.path("tree/etc/hostname"), "guest\n").unwrap();
    fs::write(lab.path("tree/large"), vec![7; 3_000_000]).unwrap();
    lab.run("setfattr -n user.kept -v yes tree/large").ok();
    lab.run("setfattr -n btrfs.compression -v zstd tree/large").ok();
    lab.run("tar --format=posix --xattrs --xattrs-include=* -C tree -cf tree.tar .")
        .ok();
    for source in ["tree", "tree.tar"] {
        let done = lab.run(&format!("imgtool mkfs -q {source} out"));
        assert_eq!(
            done.stderr(),
            "imgtool: warning: extended attributes that ext4 cannot have are left out: 1, such as btrfs.compression\n"
        );
        done.ok();
        assert_good(&lab, "out");
        let kept = tool(&lab, &["debugfs", "-R", "ea_list /large", "out"]).ok();
        assert!(kept.contains("user.kept") && !kept.contains("btrfs"), "{kept}");
    }
}

#[test]
fn neither_files_that_a_kernel_makes_up_nor_names_of_no_device_are_taken() {
    let lab = Lab::new();
    lab.run("imgtool mkfs /proc/sys/kernel x.img")
        .fails(1, &["made up by the kernel", "--one-file-system"]);
    fs::create_dir(lab.path("tree")).unwrap();
    for command in [
        "mkfs tree",
        "create -f raw -o size=1M",
        "convert -O raw tree/../empty",
    ] {
        fs::write(lab.path("empty"), vec![0; 512]).unwrap();
        lab.run(&format!("imgtool {command} /dev/no-such-device"))
            .fails(1, &["no device of this name", "lsblk"]);
    }
    assert!(!std::path::Path::new("/dev/no-such-device").exists());
    lab.run("imgtool mkfs docker://debian x.img")
        .fails(1, &["skopeo copy"]);
    assert!(!lab.path("x.img").exists());
}

#[test]
fn what_is_no_archive_is_said_to_be_what_it_is() {
    let lab = Lab::new();
    let script = "printf 'PK\\003\\004\\024\\0' | cat - /proc/self/exe | head -c 9000 >zip; seq 9999 >text; echo short >short; gzip -k text; \
                  printf '\\377\\376%0600d' 0 >other";
    lab.run_words(&["sh", "-ec", script]).ok();
    for (file, says) in [
        ("zip", "it is a zip archive"),
        ("text", "it is a text"),
        ("short", "it is a text"),
        ("text.gz", "it is a text"),
        ("other", "its first 512 bytes are not a header"),
    ] {
        lab.run(&format!("imgtool mkfs --size 16M {file} out.img"))
            .fails(1, &[file, "this is no tar archive", says, "give a tar archive"]);
    }
    lab.run("imgtool template import --store store --format tar zip")
        .fails(1, &["it is a zip archive"]);
    assert!(!lab.path("out.img").exists());
}
