//! Stores from the command line that somebody has broken, shares, or puts strangers' images into.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::common::{Lab, copy_program};
use serde_json::Value;

/// A store with a template `tiny`, which has a password hash in it.
pub(crate) fn lab() -> Lab {
    let lab = Lab::new();
    for directory in ["root/etc/iscsi", "root/boot"] {
        fs::create_dir_all(lab.path(directory)).unwrap();
    }
    for (name, text) in [
        ("etc/os-release", "PRETTY_NAME='Tiny 1'\n"),
        ("etc/shadow", "root:$6$abc:1::::::\n"),
        ("etc/hostid", "same"),
        (
            "etc/iscsi/initiatorname.iscsi",
            "InitiatorName=iqn.1993-08.org.debian:01:same\n",
        ),
        ("boot/vmlinuz-6", "the kernel"),
    ] {
        fs::write(lab.path("root").join(name), text).unwrap();
    }
    lab.imgtool("mkfs -q --size 16M -O qcow2 root root.qcow2");
    lab.imgtool("template import -q --store store root.qcow2 --alias tiny");
    lab
}

pub(crate) fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_machine_whose_description_is_broken_is_listed_with_the_reason_and_can_be_removed() {
    let lab = lab();
    lab.imgtool("clone -q --store store web --from tiny --count 2");
    fs::write(lab.path("store/instances/web-1.toml"), "uuid = 1\n").unwrap();
    let listed = lab.run("imgtool ls --store store");
    assert_eq!(listed.code(), 1);
    assert!(
        listed.stdout().contains("web-1            (broken)"),
        "{}",
        listed.stdout()
    );
    assert!(
        listed.stderr().contains("line 1, column 8"),
        "{}",
        listed.stderr()
    );
    let listed = json(&lab.run("imgtool ls --store store --output json").stdout());
    assert_eq!(listed[0]["name"], "web-2");
    assert_eq!(listed[1]["name"], "web-1");
    assert!(listed[1]["broken"].as_str().unwrap().contains("line 1"));
    // Its disk may be dear to somebody who can mend a line.
    lab.run("imgtool rm --store store web-1")
        .fails(1, &["line 1, column 8", "imgtool rm --force web-1"]);
    lab.run("imgtool rm --store store --force web-1 nothing")
        .fails(1, &["there is no machine \"nothing\""]);
    assert!(lab.path("store/instances/web-1.qcow2").exists());
    lab.imgtool("rm --store store --force web-1");
    fs::remove_file(lab.path("store/instances/web-2.toml")).unwrap();
    lab.run("imgtool rm --store store web-2")
        .fails(1, &["without the description", "--force"]);
    lab.imgtool("rm --store store --force web-2");
    assert_eq!(lab.imgtool("ls --store store"), "");
    assert_eq!(fs::read_dir(lab.path("store/instances")).unwrap().count(), 0);
}

#[test]
fn templates_are_used_by_their_fingerprints_while_aliases_cannot_be_read() {
    let lab = lab();
    let sum = lab.run("sha256sum root.qcow2").ok();
    let aliases = lab.path("store/aliases.toml");
    let broken = "tiny = \"x\n";
    fs::write(&aliases, broken).unwrap();
    let listed = lab.run("imgtool template ls --store store");
    assert_eq!(listed.code(), 1);
    assert!(listed.stdout().contains(&sum[..12]), "{}", listed.stdout());
    assert!(
        listed.stderr().contains("line 1, column 10") && listed.stderr().contains("aliases.toml"),
        "{}",
        listed.stderr()
    );
    lab.run(&format!(
        "imgtool template tag --store store {} other",
        &sum[..12]
    ))
    .fails(1, &["line 1, column 10", "mend that line"]);
    lab.run("imgtool clone --store store web --from tiny")
        .fails(1, &["line 1, column 10"]);
    lab.imgtool(&format!("clone -q --store store web --from {}", &sum[..12]));
    lab.imgtool("show --store store web");
    lab.run("imgtool template verify --store store")
        .fails(1, &["line 1, column 10"]);
    lab.imgtool("template gc --store store");
    lab.imgtool("rm --store store web");
    lab.imgtool(&format!("template rm --store store {}", &sum[..12]));
    assert_eq!(
        fs::read_to_string(&aliases).unwrap(),
        broken,
        "it is left to people"
    );
    assert_eq!(fs::read_dir(lab.path("store/templates")).unwrap().count(), 0);
}

#[test]
fn what_an_imported_image_names_is_copied_only_where_that_is_asked_for() {
    let lab = lab();
    fs::write(lab.path("private"), "PRIVATE".repeat(10_000)).unwrap();
    lab.qemu_img("create -q -f qcow2 -F raw -b private strange.qcow2");
    let refused = lab.run("imgtool template import --store store strange.qcow2 --alias strange");
    refused.fails(1, &["private", "--nested any"]);
    lab.qemu_img("create -q -f qcow2 -o data_file=data,data_file_raw=on outside.qcow2 1M");
    let refused = lab.run("imgtool template import --store store outside.qcow2 --alias outside");
    refused.fails(1, &["data", "--nested any"]);
    lab.imgtool("template import -q --store store strange.qcow2 --alias strange --nested beside");
    lab.imgtool("template import -q --store store outside.qcow2 --alias outside --nested any");
    lab.imgtool("template export -q --store store strange -o taken.raw --format raw");
    assert!(
        fs::read(lab.path("taken.raw"))
            .unwrap()
            .starts_with(b"PRIVATEPRIVATE")
    );
}

#[test]
fn what_is_private_in_an_imported_image_is_told_and_so_is_what_is_kept_of_one_that_is_there() {
    let lab = lab();
    let done = lab.run("imgtool template import --store store root.qcow2 --alias again --notes new");
    assert_eq!(done.code(), 0);
    let said = done.stderr();
    for part in [
        "already, whose notes are kept",
        "note: /etc/shadow: it has passwords",
        "note: /etc/iscsi/initiatorname.iscsi: ",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(
        lab.run("imgtool template import -q --store store root.qcow2")
            .stderr(),
        ""
    );
    // What was asked for and does not hold is told in any case.
    fs::write(lab.path("vmlinuz"), "another kernel").unwrap();
    let kept = lab.run("imgtool template import -q --store store root.qcow2 --memory 2G --kernel vmlinuz");
    assert!(
        kept.stderr()
            .contains("whose kernel, settings of machines are kept"),
        "{}",
        kept.stderr()
    );
}

#[test]
fn a_network_address_is_that_of_one_machine() {
    let lab = lab();
    lab.imgtool("clone -q --store store web --from tiny --mac 52:54:00:00:00:01");
    lab.run("imgtool clone --store store other --from tiny --mac 52:54:00:00:00:01")
        .fails(1, &["52:54:00:00:00:01 is the address of machine web", "--mac"]);
    lab.run("imgtool clone --store store other --from tiny --count 2 --mac 52:54:00:00:00:02")
        .fails(1, &["several machines cannot share an address"]);
    lab.imgtool("clone -q --store store free --from tiny");
    let derived = json(&lab.imgtool("show --store store free --output json"));
    let derived = derived["mac"].as_str().unwrap().to_owned();
    lab.run(&format!(
        "imgtool clone --store store other --from tiny --mac {derived}"
    ))
    .fails(1, &["machine free"]);
}

#[test]
fn a_clone_can_have_a_domain_and_has_ids_of_its_own() {
    let lab = lab();
    lab.imgtool("clone -q --store store web --from tiny --hostname www.example.org");
    let cat = |path: &str| lab.imgtool(&format!("fs cat store/instances/web.qcow2 {path}"));
    assert_eq!(cat("/etc/hostname"), "www\n");
    let hosts = cat("/etc/hosts");
    assert!(hosts.contains("127.0.1.1\twww.example.org www\n"), "{hosts}");
    assert_eq!(cat("/etc/iscsi/initiatorname.iscsi"), "GenerateName=yes\n");
    lab.imgtool("fs cp store/instances/web.qcow2 /etc/hostid hostid");
    let id = fs::read(lab.path("hostid")).unwrap();
    assert!(id.len() == 4 && id != b"same", "{id:?}");
    lab.run("imgtool clone --store store other --from tiny --hostname www..org")
        .fails(1, &["\"www..org\" cannot be a hostname"]);
}

#[test]
fn clones_with_larger_roots_take_no_room_for_zeros() {
    let lab = lab();
    lab.imgtool("clone -q --store store web --from tiny --size 1G --count 3");
    for number in 1..=3 {
        let name = format!("store/instances/web-{number}.qcow2");
        lab.qemu_img(&format!("check -q {name}"));
        lab.qemu_img(&format!("convert -O raw {name} disk.raw"));
        lab.run("e2fsck -fn disk.raw").ok();
        let size = lab.run("dumpe2fs -h disk.raw").ok();
        assert!(size.contains("Block count:              262144"), "{size}");
        let bytes = fs::read(lab.path(&name)).unwrap();
        let pages = bytes
            .chunks(4096)
            .filter(|page| page.iter().any(|byte| *byte != 0));
        let (needed, takes) = (pages.count() * 8, fs::metadata(lab.path(&name)).unwrap().blocks());
        assert!(takes <= needed as u64 + 16, "{takes} blocks for {needed}");
    }
}

#[test]
fn who_may_write_to_a_store_may_lock_it_and_nobody_else() {
    let lab = lab();
    let mode = |path: &str| fs::metadata(lab.path(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("store"), mode("store/.lock")), (0o700, 0o600));
    fs::create_dir(lab.path("shared")).unwrap();
    fs::set_permissions(lab.path("shared"), fs::Permissions::from_mode(0o2775)).unwrap();
    lab.imgtool("template import -q --store shared root.qcow2 --alias tiny");
    assert_eq!(mode("shared/.lock"), 0o660);
    // Whoever can read a file can lock it.
    fs::set_permissions(lab.path("store"), fs::Permissions::from_mode(0o755)).unwrap();
    lab.imgtool("template tag --store store tiny other");
    assert_eq!(mode("store/.lock"), 0o600);
}

#[test]
fn credentials_of_machines_are_named_and_not_printed() {
    let lab = lab();
    fs::create_dir_all(lab.path("store/profiles")).unwrap();
    let profile = "[credentials]\nprofiled = \"SECRET-1\"\n";
    fs::write(lab.path("store/profiles/own.toml"), profile).unwrap();
    lab.imgtool("clone -q --store store web --from tiny --profile own --credential given=SECRET-2");
    let shown = lab.imgtool("show --store store --output json web");
    let listed = lab.imgtool("ls --store store --output json");
    let plain = lab.imgtool("show --store store web");
    for said in [&shown, &listed, &plain] {
        assert!(!said.contains("SECRET"), "{said}");
    }
    let (shown, listed) = (json(&shown), json(&listed));
    let hidden = "(not shown)";
    assert_eq!(shown["expanded"]["credentials"]["profiled"], hidden);
    assert_eq!(shown["expanded"]["credentials"]["given"], hidden);
    assert_eq!(shown["machine"]["credentials"]["given"], hidden);
    assert_eq!(listed[0]["machine"]["credentials"]["given"], hidden);
    // Whoever asks for the settings gets them.
    let settings = lab.imgtool("config show --store store web");
    assert!(settings.contains("SECRET-2"), "{settings}");
}

#[test]
fn a_machine_of_another_user_is_listed_as_that_and_is_nothing_to_mend_or_remove() {
    let lab = lab();
    lab.imgtool("clone -q --store store web --from tiny");
    lab.imgtool("clone -q --store store secret --from tiny --credential a=b");
    for path in [lab.dir().to_owned(), lab.path("store")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    copy_program(&lab.path("program"));
    let as_member = |line: &str| {
        let user = "setpriv --reuid 54321 --regid 54321 --clear-groups ./program";
        lab.run(&format!("{user} {line}"))
    };
    let listed = as_member("ls --store store").ok();
    assert!(listed.contains("secret            (another user's)"), "{listed}");
    // Its disk is its owner's alone, too.
    assert!(listed.contains("web     tiny      disk unreadable"), "{listed}");
    let listed = json(&as_member("ls --store store --output json").ok());
    assert_eq!(listed[1]["name"], "secret");
    assert_eq!(listed[1]["others"], true);
    // Of the other one the disk is not for everybody either.
    let verified = as_member("template verify --store store");
    assert_eq!(verified.code(), 0, "{}", verified.stderr());
    assert!(
        verified.stderr().contains("2 are other users'"),
        "{}",
        verified.stderr()
    );
    let shown = as_member("show --store store secret");
    shown.fails(1, &["Permission denied", "another user's"]);
    assert!(!shown.stderr().contains("--force"), "{}", shown.stderr());
}

#[test]
fn a_bridge_of_a_profile_has_a_name_that_a_bridge_can_have() {
    let lab = lab();
    fs::create_dir_all(lab.path("store/profiles")).unwrap();
    let profile = |bridge: &str| {
        let text = format!("[network]\nkind = \"bridge\"\nbridge = \"{bridge}\"\n");
        fs::write(lab.path("store/profiles/net.toml"), text).unwrap();
    };
    profile("br0");
    lab.imgtool("clone -q --store store web --from tiny --profile net");
    profile("br0,script=/tmp/x");
    for line in [
        "imgtool run --store store web --print",
        "imgtool clone --store store second --from tiny --profile net",
    ] {
        lab.run(line).fails(
            1,
            &[
                "net.toml: line 3, column 10: ",
                "\"br0,script=/tmp/x\" cannot be the name of a bridge",
            ],
        );
    }
    lab.run("imgtool clone --store store other --from tiny --net bridge=a;b")
        .fails(1, &["\"a;b\" cannot be the name of a bridge"]);
}
