//! The files of templates stay as they are, whatever command is told to write to them and by whatever name, as root too.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use crate::common::{Done, Lab};

/// systemd-boot, as distributions have it.
const LOADER: &str = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi";

/// A store with a template `tiny`, a machine `web` of it, and images beside it.
struct Store {
    lab: Lab,
    /// The template's image, without its ending.
    template: String,
    before: Vec<(PathBuf, Vec<u8>)>,
}

impl Store {
    fn new() -> Self {
        let lab = Lab::new();
        fs::create_dir_all(lab.path("root/boot")).unwrap();
        fs::write(lab.path("root/boot/vmlinuz-6"), "the kernel").unwrap();
        fs::write(lab.path("root/boot/initrd.img-6"), "the initrd").unwrap();
        lab.imgtool("mkfs -q --size 16M -O qcow2 root root.qcow2");
        lab.imgtool("template import -q --store store root.qcow2 --alias tiny");
        lab.imgtool("clone -q --store store web --from tiny");
        lab.qemu_img("create -q -f qcow2 other.qcow2 1M");
        lab.qemu_img("snapshot -c a other.qcow2");
        let sum = lab.run("sha256sum root.qcow2").ok();
        let template = format!("store/templates/{}", &sum[..64]);
        let mut store = Self {
            lab,
            template,
            before: Vec::new(),
        };
        store.before = store.files();
        assert_eq!(store.before.len(), 4, "image, description, kernel and initrd");
        store
    }

    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let entries = fs::read_dir(self.lab.path("store/templates")).unwrap();
        let mut files: Vec<_> = entries
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect();
        files.sort();
        files
    }

    fn run(&self, line: &str) -> Done {
        let program = env!("CARGO_BIN_EXE_imgtool");
        self.lab.run(&format!("env IMGTOOL_STORE=store {program} {line}"))
    }

    /// Fails in one line, and a hint, and has changed nothing.
    fn refuses(&self, line: &str) {
        self.run(line).fails(1, &["a template is not changed"]);
        assert!(self.files() == self.before, "{line}");
    }
}

#[test]
fn nothing_that_makes_a_file_replaces_one_of_a_template() {
    let store = Store::new();
    let base = &store.template;
    symlink(format!("{base}.qcow2"), store.lab.path("link.qcow2")).unwrap();
    for line in [
        format!("convert -O qcow2 other.qcow2 {base}.qcow2"),
        format!("convert -O raw other.qcow2 {base}.kernel"),
        format!("convert -O raw other.qcow2 {base}.initrd"),
        format!("convert -O raw other.qcow2 {base}.toml"),
        "convert -O qcow2 other.qcow2 link.qcow2".to_owned(),
        format!("convert -O raw -n other.qcow2 {base}.kernel"),
        format!("create -f qcow2 {base}.qcow2 1G"),
        format!("dd if=other.qcow2 of={base}.qcow2"),
        format!("mkfs -q -O qcow2 root {base}.qcow2"),
        format!("mkdisk -q -O qcow2 --boot-efi {LOADER} root {base}.qcow2"),
        format!("snapshot export other.qcow2 a {base}.qcow2"),
        format!("template export tiny -o {base}.qcow2 --format raw"),
        format!("template export tiny -o {base}"),
        format!("launch web --format qemu -o {base}.toml"),
        format!("fs cp --force root.qcow2 /boot/vmlinuz-6 {base}.kernel"),
    ] {
        store.refuses(&line);
    }
}

#[test]
fn nothing_that_makes_a_file_replaces_one_of_the_store_but_for_disks() {
    let store = Store::new();
    let lab = &store.lab;
    let link = lab.path("link.raw");
    symlink(lab.path("store/instances/web.toml"), &link).unwrap();
    let files = || {
        ["store/aliases.toml", "store/instances/web.toml"]
            .map(|name| fs::read_to_string(lab.path(name)).unwrap())
    };
    let names = || {
        ["store", "store/instances"].map(|name| {
            let names = fs::read_dir(lab.path(name)).unwrap();
            let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        })
    };
    let before = (files(), names());
    for line in [
        "convert -O raw other.qcow2 store/aliases.toml",
        "convert -O raw other.qcow2 store/instances/x.kernel",
        "convert -O raw other.qcow2 link.raw",
        "convert --in-place -O raw other.qcow2 store/instances/web.toml",
        "create -f qcow2 store/instances/new.qcow2 1M",
        "dd if=other.qcow2 of=store/instances/web.toml",
        "mkfs -q root store/aliases.toml",
        "mkfs -q root store/keys",
        "man store/instances",
        "launch web --format firecracker --net none --files store/instances",
        "fs cp --force root.qcow2 /boot/vmlinuz-6 store/instances/web.toml",
        "fs cp root.qcow2 /boot/vmlinuz-6 store/instances",
    ] {
        store.run(line).fails(1, &["it is a file of the store"]);
        assert_eq!((files(), names()), before, "{line}");
    }
    // Whichever store is in use, and even where none can be.
    let program = env!("CARGO_BIN_EXE_imgtool");
    for line in [
        "convert -O raw other.qcow2 store/aliases.toml",
        "create -f qcow2 store/instances/new.qcow2 1M",
        "mkfs -q root store/keys",
    ] {
        for other in [
            "IMGTOOL_STORE=elsewhere",
            "-u IMGTOOL_STORE -u HOME -u XDG_DATA_HOME",
        ] {
            let done = lab.run(&format!("env {other} {program} {line}"));
            done.fails(1, &["it is a file of the store"]);
            assert_eq!((files(), names()), before, "{line}");
        }
    }
    for line in [
        "convert -O raw other.qcow2 store/aliases.toml",
        "create -f raw store/instances/x.initrd 1M",
        "dd if=other.qcow2 of=store/instances/web.toml",
    ] {
        let done = store.run(&format!("qemu-img {line}"));
        assert_eq!(done.code(), 1, "{line}");
        assert_eq!((files(), names()), before, "{line}");
    }
    // The disk of a machine is an image like any other.
    store
        .run("convert -O qcow2 other.qcow2 store/instances/web.qcow2")
        .ok();
    lab.qemu_img("compare -q other.qcow2 store/instances/web.qcow2");
}

#[test]
fn a_template_that_is_named_where_a_machine_is_taken_is_told_what_to_make_of_it() {
    let store = Store::new();
    fs::write(store.lab.path("k.pub"), "key").unwrap();
    for line in ["fs put tiny k.pub /x", "fs ls tiny", "resize tiny +1M"] {
        store.run(line).fails(
            1,
            &["there is no machine \"tiny\"", "imgtool clone NAME --from tiny"],
        );
    }
}

#[test]
fn nothing_changes_a_template_in_place_nor_by_a_hard_link() {
    let store = Store::new();
    let lab = &store.lab;
    let base = &store.template;
    fs::hard_link(lab.path(&format!("{base}.qcow2")), lab.path("hard.qcow2")).unwrap();
    fs::hard_link(lab.path(&format!("{base}.kernel")), lab.path("kernel")).unwrap();
    for line in [
        "resize hard.qcow2 200M".to_owned(),
        "snapshot -c a hard.qcow2".to_owned(),
        "amend -o lazy_refcounts=on hard.qcow2".to_owned(),
        "convert -O qcow2 other.qcow2 hard.qcow2".to_owned(),
        "convert -O raw other.qcow2 kernel".to_owned(),
        "template seal hard.qcow2".to_owned(),
        "fs rm hard.qcow2 /boot/vmlinuz-6".to_owned(),
        format!("bitmap --add {base}.qcow2 a"),
        format!("rebase -u -b other.qcow2 -F qcow2 {base}.qcow2"),
        "commit store/instances/web.qcow2".to_owned(),
    ] {
        store.refuses(&line);
    }
}

#[test]
fn an_image_that_a_link_in_the_store_leads_to_is_a_template_too() {
    let mut store = Store::new();
    let lab = &store.lab;
    let image = lab.path(&format!("{}.qcow2", store.template));
    fs::rename(&image, lab.path("elsewhere.qcow2")).unwrap();
    symlink(lab.path("elsewhere.qcow2"), &image).unwrap();
    store.before = store.files();
    store.refuses("resize elsewhere.qcow2 200M");
    store.refuses("create -f qcow2 elsewhere.qcow2 1G");
}

#[test]
fn nothing_is_put_where_the_image_of_a_template_is_missing() {
    let mut store = Store::new();
    let image = store.lab.path(&format!("{}.qcow2", store.template));
    fs::rename(&image, store.lab.path("away.qcow2")).unwrap();
    store.before = store.files();
    store.refuses(&format!("create -f qcow2 {}.qcow2 1G", store.template));
    // And what only has the name of an image is nobody's.
    let name = store.template.rsplit('/').next().unwrap();
    store.run(&format!("create -q -f qcow2 {name}.qcow2 1M")).ok();
}

#[test]
fn a_machine_and_a_copy_of_a_template_are_changed() {
    let store = Store::new();
    fs::copy(
        store.lab.path(&format!("{}.qcow2", store.template)),
        store.lab.path("copy.qcow2"),
    )
    .unwrap();
    store.run("resize copy.qcow2 200M").ok();
    store.run("convert -O qcow2 other.qcow2 copy.qcow2").ok();
    store.run("resize web 200M").ok();
    store.run("snapshot -c a web").ok();
    assert!(store.files() == store.before);
}

#[test]
fn qemu_imgs_commands_change_no_template() {
    let store = Store::new();
    let base = &store.template;
    let name = base.rsplit('/').next().unwrap();
    fs::hard_link(
        store.lab.path(&format!("{base}.qcow2")),
        store.lab.path("hard.qcow2"),
    )
    .unwrap();
    for line in [
        "commit store/instances/web.qcow2".to_owned(),
        format!("commit -b ../templates/{name}.qcow2 store/instances/web.qcow2"),
        format!("create -f qcow2 -o data_file={base}.kernel new.qcow2 1M"),
        format!("resize {base}.qcow2 200M"),
        "resize hard.qcow2 200M".to_owned(),
        format!("snapshot -c a {base}.qcow2"),
        format!("amend -o lazy_refcounts=on {base}.qcow2"),
        format!("rebase -u -b other.qcow2 -F qcow2 {base}.qcow2"),
        format!("bitmap --add {base}.qcow2 a"),
        format!("create -f qcow2 {base}.qcow2 1G"),
        format!("create -f raw {base}.kernel 1M"),
        format!("dd if=other.qcow2 of={base}.qcow2"),
        format!("convert -O qcow2 other.qcow2 {base}.qcow2"),
        format!("convert -n -O qcow2 other.qcow2 {base}.qcow2"),
        format!("check -r all {base}.qcow2"),
        format!("bench -w -c 1 -f qcow2 {base}.qcow2"),
        format!("resize --image-opts driver=qcow2,file.driver=file,file.filename={base}.qcow2 200M"),
    ] {
        let done = store.run(&format!("qemu-img {line}"));
        let said = done.stderr();
        assert_eq!(done.code(), 1, "{line}: {said}");
        assert_eq!(said.lines().count(), 1, "{line}: {said}");
        assert!(said.contains("a template is not changed"), "{line}: {said}");
        assert!(store.files() == store.before, "{line}");
    }
    store.run(&format!("qemu-img check {base}.qcow2")).ok();
    store.run("qemu-img resize store/instances/web.qcow2 200M").ok();
    store.run("qemu-img snapshot -c a store/instances/web.qcow2").ok();
}

#[test]
fn nothing_changes_a_disk_that_another_in_the_store_is_based_on() {
    let store = Store::new();
    let lab = &store.lab;
    let disk = "store/instances/web.qcow2";
    lab.qemu_img("snapshot -c a store/instances/web.qcow2");
    fs::create_dir(lab.path("store/sub")).unwrap();
    // From where its base is found, too.
    fs::create_dir(lab.path("beside")).unwrap();
    symlink("store/templates", lab.path("templates")).unwrap();
    fs::hard_link(lab.path(disk), lab.path("beside/hard.qcow2")).unwrap();
    lab.qemu_img("create -q -f qcow2 -b ../instances/web.qcow2 -F qcow2 store/sub/web.snap");
    lab.qemu_img("create -q -f qcow2 -b web.snap -F qcow2 store/sub/other.img");
    let chain = lab.qemu_img("info --backing-chain store/sub/other.img");
    assert!(chain.contains("instances/web.qcow2"), "{chain}");
    fs::write(lab.path("file"), "a file").unwrap();
    let before = fs::read(lab.path(disk)).unwrap();
    let refuses = |line: &str| {
        store.run(line).fails(1, &["based on it", "store/sub/"]);
        assert!(fs::read(lab.path(disk)).unwrap() == before, "{line}");
    };
    for name in ["web", disk, "beside/hard.qcow2"] {
        refuses(&format!("fs put {name} file /boot/file"));
        refuses(&format!("fs rm {name} /boot/vmlinuz-6"));
        refuses(&format!("fs mkdir {name} /directory"));
        refuses(&format!("fs chmod {name} 600 /boot/vmlinuz-6"));
        refuses(&format!("resize {name} 200M"));
        refuses(&format!("snapshot apply {name} a"));
        refuses(&format!("template seal {name}"));
    }
    refuses("run web");
    // What is committed reads the same afterwards, and what else is based on that does not.
    refuses("commit store/sub/web.snap");
    refuses(&format!("convert -n -O qcow2 other.qcow2 {disk}"));
    refuses(&format!("create -q -f qcow2 {disk} 1M"));
    for line in [
        format!("resize {disk} 200M"),
        format!("resize -f qcow2 json:{{\"file.filename\":\"{disk}\"}} 200M"),
        format!("snapshot -a a {disk}"),
        format!("convert -n -O qcow2 other.qcow2 {disk}"),
        format!("bench -w -c 1 -f qcow2 {disk}"),
        format!("create -q -f qcow2 {disk} 1M"),
        format!("dd if=other.qcow2 of={disk}"),
        "commit store/sub/web.snap".to_owned(),
        "commit -b ../instances/web.qcow2 store/sub/web.snap".to_owned(),
    ] {
        let done = store.run(&format!("qemu-img {line}"));
        let said = done.stderr();
        assert_eq!(done.code(), 1, "{line}: {said}");
        assert_eq!(said.lines().count(), 1, "{line}: {said}");
        assert!(
            said.contains("store/sub/") && said.contains("is based on it"),
            "{line}: {said}"
        );
        assert!(fs::read(lab.path(disk)).unwrap() == before, "{line}");
    }
    fs::remove_file(lab.path("store/sub/other.img")).unwrap();
    store.run("commit -q store/sub/web.snap").ok();
    fs::remove_file(lab.path("store/sub/web.snap")).unwrap();
    store.run("fs put web file /boot/file").ok();
}
