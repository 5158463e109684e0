//! What has changed on a machine's disk, when a kernel has changed it.

use std::fs;
use std::process::Command;

use crate::common::Lab;
use serde_json::Value;

#[test]
fn changes_of_a_kernel_are_listed_and_nothing_else() {
    let lab = Lab::new();
    for directory in ["root/etc", "root/many/deep"] {
        fs::create_dir_all(lab.path(directory)).unwrap();
    }
    for name in [
        "etc/content",
        "etc/same-size",
        "etc/mode",
        "etc/gone",
        "etc/rewritten",
        "etc/owner",
        "many/deep/a",
    ] {
        fs::write(lab.path("root").join(name), "before\n".repeat(1000)).unwrap();
    }
    std::os::unix::fs::symlink("content", lab.path("root/etc/link")).unwrap();
    lab.imgtool("mkfs -q --size 16M root root.img");
    lab.imgtool("template import -q --store store root.img --alias tiny");
    lab.imgtool("clone -q web --store store --from tiny --as-is");
    assert_eq!(lab.imgtool("diff --store store web"), "");
    // A kernel changes the same disk, and the clone has all of what it made of it.
    fs::create_dir(lab.path("mnt")).unwrap();
    lab.run("mount -o loop root.img mnt").ok();
    let script = "echo more >>etc/content; printf after | dd of=etc/same-size conv=notrunc status=none; chmod 600 etc/mode; \
        rm -r etc/gone many; chown 7 etc/owner; cp -p etc/rewritten x; mv x etc/rewritten; ln -sf else etc/link; \
        mkdir -p new/dir; echo new >new/dir/file; cat etc/mode >/dev/null";
    let done = Command::new("bash")
        .args(["-ec", script])
        .current_dir(lab.path("mnt"))
        .output();
    lab.run("umount mnt").ok();
    let done = done.unwrap();
    assert!(done.status.success(), "{done:?}");
    lab.imgtool("convert -q -n -f raw -O qcow2 root.img store/instances/web.qcow2");
    assert_eq!(
        lab.imgtool("diff --store store web"),
        "C /etc/content\nR /etc/gone\nC /etc/link\nM /etc/mode\nM /etc/owner\nC /etc/same-size\n\
         R /many\nR /many/deep\nR /many/deep/a\nA /new\nA /new/dir\nA /new/dir/file\n"
    );
    let json: Value = serde_json::from_str(&lab.imgtool("diff --store store web --output json")).unwrap();
    assert_eq!(json[1]["path"], "/etc/gone");
    assert_eq!(json[1]["change"], "removed");
    lab.run("imgtool diff --store store tiny")
        .fails(1, &["it is a template"]);
}
