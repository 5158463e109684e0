//! Trees that filesystems are made of, and who judges those.

use std::fs::{self, File};

use super::{Done, Lab};

pub(crate) const UUID: &str = "0a6d0b5c-9c5f-4d0a-8a6e-2f3b1c9d7e41";

/// A lab with a small tree in `tree`, and the tree in archives.
pub(crate) fn lab() -> Lab {
    let lab = Lab::new();
    fs::create_dir_all(lab.path("tree/etc/init.d")).unwrap();
    fs::write(lab.path("tree/etc/hostname"), "guest\n").unwrap();
    fs::write(lab.path("tree/large"), vec![7; 3_000_000]).unwrap();
    lab.run("ln -s hostname tree/etc/link").ok();
    lab.run("tar -C tree -cf tree.tar .").ok();
    for (program, suffix) in [("gzip", "gz"), ("zstd", "zst"), ("xz", "xz")] {
        let output = File::create(lab.path(&format!("tree.tar.{suffix}"))).unwrap();
        let mut command = lab.command(program);
        command.arg("-c").stdin(File::open(lab.path("tree.tar")).unwrap());
        assert!(command.stdout(output).status().unwrap().success());
    }
    lab
}

/// Runs with `PATH` as root has it.
pub(crate) fn tool(lab: &Lab, words: &[&str]) -> Done {
    let mut all = vec!["env", "PATH=/usr/sbin:/sbin:/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"];
    all.extend(words);
    lab.run_words(&all)
}

/// e2fsck says nothing but its summary, and the tree is there.
pub(crate) fn assert_good(lab: &Lab, image: &str) {
    let text = tool(lab, &["e2fsck", "-fn", image]).ok();
    let strange: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with("Pass ") && !line.contains("% non-contiguous), "))
        .collect();
    assert!(strange.is_empty(), "{image}: {strange:?}");
    assert_eq!(
        tool(lab, &["debugfs", "-R", "cat /etc/hostname", image]).ok(),
        "guest\n"
    );
    let large = tool(lab, &["debugfs", "-R", "stat /large", image]).ok();
    assert!(large.contains("Size: 3000000"), "{image}: {large}");
}

pub(crate) fn field(lab: &Lab, image: &str, name: &str) -> String {
    let text = tool(lab, &["dumpe2fs", "-h", image]).ok();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{name}: {text}")).trim().to_owned()
}

/// With one space between words.
pub(crate) fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
