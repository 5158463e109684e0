//! Sealing, linting and publishing from the command line, with grep and the kernel's mount as judges of what is left.

use std::fs;

use crate::common::Lab;
use serde_json::Value;

/// A store with a machine `web` of a template `tiny`, whose system has a secret in several places.
fn lab() -> Lab {
    let lab = Lab::new();
    for directory in ["etc/ssh", "boot", "root", "var/log", "home/ann/.aws"] {
        fs::create_dir_all(lab.path("root").join(directory)).unwrap();
    }
    for (name, text) in [
        ("etc/os-release", "PRETTY_NAME='Tiny 1'\n"),
        ("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
        ("etc/ssh/ssh_host_rsa_key", "SECRET-HOST-KEY\n"),
        ("etc/ssh/sshd_config", "# kept\n"),
        ("root/.bash_history", "login SECRET-WORD\n"),
        ("home/ann/.aws/credentials", "SECRET-CREDENTIAL\n"),
        ("boot/vmlinuz-6.1.0-9", "the kernel"),
    ] {
        fs::write(lab.path("root").join(name), text).unwrap();
    }
    lab.imgtool("mkfs -q --size 16M root root.img");
    // And one that a kernel deletes.
    fs::create_dir(lab.path("mnt")).unwrap();
    lab.run("mount -o loop root.img mnt").ok();
    fs::write(lab.path("mnt/deleted"), "SECRET-DELETED\n".repeat(1000)).unwrap();
    lab.run("sync -f mnt").ok();
    fs::remove_file(lab.path("mnt/deleted")).unwrap();
    lab.unmount(&lab.path("mnt"));
    lab.imgtool("template import -q --store store root.img --alias tiny");
    lab.imgtool("clone -q web --store store --from tiny --as-is");
    lab
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// How many lines of a file have a secret.
fn secrets(lab: &Lab, file: &str) -> usize {
    let done = lab.run(&format!("grep -ac SECRET- {file}"));
    done.stdout().trim().parse().unwrap()
}

#[test]
fn a_published_template_has_no_secret_and_the_machine_keeps_its_own() {
    let lab = lab();
    let raw = |name: &str| {
        let shown = json(&lab.imgtool(&format!("template show --store store --output json {name}")));
        let image = shown["image"].as_str().unwrap().to_owned();
        lab.qemu_img(&format!("convert -O raw {image} out.raw"));
        secrets(&lab, "out.raw") + secrets(&lab, &image)
    };
    assert!(raw("tiny") > 1000);
    let before = fs::read(lab.path("store/instances/web.qcow2")).unwrap();
    let made = lab.imgtool(
        "template publish web --store store --alias clean --enable credentials --notes noted --output json",
    );
    let made = json(&made);
    assert_eq!(raw("clean"), 0);
    assert_eq!(made["notes"], "noted");
    assert_eq!(made["provenance"]["source"], "machine web");
    assert_eq!(
        made["parent"],
        json(&lab.imgtool("template show --store store --output json tiny"))["fingerprint"]
    );
    let sealed: Vec<&str> = made["sealed"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| change["path"].as_str().unwrap())
        .collect();
    assert!(sealed.contains(&"/etc/ssh/ssh_host_rsa_key"), "{sealed:?}");
    assert!(fs::read(lab.path("store/instances/web.qcow2")).unwrap() == before);
    // It is a template like any other.
    lab.imgtool("template verify -q --store store");
    lab.imgtool("clone -q again --store store --from clean");
    assert_eq!(lab.run("imgtool template lint --store store clean").code(), 0);
    lab.run("imgtool template publish web --store store --alias clean")
        .fails(1, &["\"clean\" is the name of a template", "--move"]);
    lab.imgtool("template publish -q web --store store --alias clean --move --no-seal");
    assert!(raw("clean") > 1000);
}

#[test]
fn a_template_with_what_sealing_leaves_is_only_made_when_that_is_said() {
    let lab = lab();
    fs::write(
        lab.path("notes"),
        "the key:\n-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n",
    )
    .unwrap();
    lab.imgtool("fs put store/instances/web.qcow2 notes /root/notes.txt");
    let publish = |words: &str| lab.run(&format!("imgtool template publish -q web --store store {words}"));
    publish("--alias one").fails(
        1,
        &["/home/ann/.aws", ", credentials)", "/root/notes.txt", "--no-lint"],
    );
    publish("--alias one --disable credentials").fails(1, &["/root/notes.txt (a private key)"]);
    assert_eq!(
        lab.imgtool("template ls --store store").lines().count(),
        2,
        "tiny alone"
    );
    publish("--alias one --no-lint").ok();
    lab.imgtool("fs rm store/instances/web.qcow2 /root/notes.txt");
    publish("--alias two --disable credentials").ok();
    publish("--alias three --enable credentials").ok();
}

#[test]
fn lint_names_what_seal_takes_away_and_seal_takes_it_away_in_place() {
    let lab = lab();
    let lint = lab.run("imgtool template lint --store store web");
    assert_eq!(lint.code(), 1);
    for part in [
        "/etc/ssh/ssh_host_rsa_key: ",
        "(ssh-hostkeys)",
        "/root/.bash_history: ",
        "/home/ann/.aws: ",
        "(credentials)",
    ] {
        assert!(lint.stdout().contains(part), "{part}: {}", lint.stdout());
    }
    let found = lab.run("imgtool template lint --store store tiny --output json");
    assert_eq!(
        (found.code(), json(&found.stdout()).as_array().unwrap().len()),
        (1, 4)
    );
    let done = lab.imgtool("template seal --store store web --enable credentials");
    assert!(
        done.contains("/etc/machine-id") && done.contains("emptied"),
        "{done}"
    );
    assert_eq!(lab.imgtool("template lint --store store web"), "");
    lab.qemu_img("check -q store/instances/web.qcow2");
    lab.qemu_img("convert -O raw store/instances/web.qcow2 web.raw");
    assert_eq!(secrets(&lab, "web.raw"), 0);
    // What is not chosen stays.
    lab.imgtool("template seal -q root.img --disable ssh-hostkeys");
    assert_eq!(
        lab.imgtool("fs cat root.img /etc/ssh/ssh_host_rsa_key"),
        "SECRET-HOST-KEY\n"
    );
    assert_eq!(
        lab.run("imgtool template lint root.img --disable ssh-hostkeys,credentials")
            .code(),
        0
    );
}

#[test]
fn templates_images_in_use_and_wrong_operations_are_refused() {
    let lab = lab();
    let image = json(&lab.imgtool("template show --store store --output json tiny"))["image"]
        .as_str()
        .unwrap()
        .to_owned();
    let before = fs::read(lab.path(&image)).unwrap();
    lab.run(&format!("imgtool template seal {image}"))
        .fails(1, &["a template is not changed", "imgtool template publish"]);
    assert!(fs::read(lab.path(&image)).unwrap() == before);
    let lock = raw::OpenOptions::new()
        .write(true)
        .open(lab.path("store/instances/web.qcow2"))
        .unwrap();
    for line in [
        "template seal --store store web",
        "template publish --store store web --alias x",
    ] {
        lab.run(&format!("imgtool {line}")).fails(1, &["web.qcow2"]);
    }
    drop(lock);
    lab.run("imgtool template seal --store store web --disable tpm")
        .fails(1, &["no operation \"tpm\"", "tmp"]);
    lab.imgtool("create -q -f raw empty.img 1M");
    for command in ["seal", "lint"] {
        lab.run(&format!("imgtool template {command} empty.img"))
            .fails(1, &["no root filesystem", "empty.img"]);
    }
    let list = lab.imgtool("template seal --list");
    assert!(
        list.contains("machine-id") && list.contains("WHAT IT TAKES AWAY"),
        "{list}"
    );
    let list = json(&lab.imgtool("template seal --list --output json"));
    assert_eq!(list[0]["paths"][0]["path"], "/etc/machine-id");
}
