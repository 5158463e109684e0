//! Templates that leave a store and come back in every form, with the programs that these forms are of as judges: skopeo, umoci, LXD,
//! tar and qemu-img; and what is hostile in such files.

use std::fs;
use std::process::Child;

use crate::common::{Done, Lab};
use serde_json::Value;

const FORMS: [&str; 5] = ["qcow2", "raw", "tar", "oci", "incus"];

/// What is said of all templates here.
const SAID: &[&str] = &[
    "--cpus",
    "3",
    "--memory",
    "300M",
    "--user",
    "me",
    "--notes",
    "some \"notes\"\n# and: more",
];

fn shell(lab: &Lab, script: &str) -> String {
    let done = lab.command("bash").args(["-ec", script]).output().unwrap();
    assert!(done.status.success(), "{script}: {done:?}");
    String::from_utf8(done.stdout).unwrap()
}

/// A lab with a root filesystem in `root`, which boots by UEFI as far as anybody looks.
fn lab() -> Lab {
    let lab = Lab::new();
    shell(
        &lab,
        "mkdir -p root/etc root/boot root/usr/lib/systemd/boot/efi root/bin
         printf 'PRETTY_NAME=\"Tiny Linux 7\"\\nID=tiny\\n' >root/etc/os-release; printf 'content' >root/etc/file; truncate -s 20M root/etc/holes
         efi=usr/lib/systemd/boot/efi; cp /$efi/systemd-bootx64.efi root/$efi/; cp /$efi/systemd-bootx64.efi root/boot/vmlinuz-6.1
         printf '#!/bin/sh' >root/bin/init; chmod 4755 root/bin/init; ln root/bin/init root/bin/sh; ln -s bin root/sbin; chown 1000:50 root/etc/file
         setfattr -n user.a -v b root/etc/file; touch -d '2001-02-03 04:05:06' root/etc/file",
    );
    lab
}

/// Makes the template `uefi`, with an EFI system partition.
fn uefi(lab: &Lab) {
    lab.imgtool("mkdisk -q --esp-size 64M -O qcow2 root disk.qcow2");
    import(lab, "disk.qcow2 --alias uefi", SAID).ok();
}

fn import(lab: &Lab, what: &str, more: &[&str]) -> Done {
    let mut words: Vec<&str> = "imgtool template import --store store".split(' ').collect();
    words.extend(what.split(' '));
    words.extend(more);
    lab.run_words(&words)
}

fn export(lab: &Lab, template: &str, form: &str) -> Done {
    lab.run(&format!(
        "imgtool template export --store store --format {form} {template} -o {template}.{form}"
    ))
}

/// What a template is, but for its files and when it was made.
fn known(lab: &Lab, template: &str) -> Value {
    let shown = lab.imgtool(&format!("template show --store store --output json {template}"));
    let mut shown: Value = serde_json::from_str(&shown).unwrap();
    let machine = shown["machine"].as_object_mut().unwrap();
    machine.entry("architecture").or_insert("x86_64".into());
    let kept = [
        "os",
        "user",
        "notes",
        "machine",
        "provenance",
        "kernel",
        "initrd",
        "parent",
    ];
    shown
        .as_object_mut()
        .unwrap()
        .retain(|key, _| kept.contains(&&**key));
    shown
}

fn stored(lab: &Lab) -> String {
    shell(lab, "find store -type f ! -name .lock | sort")
}

/// A tar archive of members as Python has them: `(name, type, content, link)`.
fn archive(lab: &Lab, name: &str, members: &str) {
    let script = format!(
        "import io, tarfile\nwith tarfile.open('{name}', 'w') as archive:\n  for name, kind, content, link in [{members}]:\n    \
         info = tarfile.TarInfo(name); info.type = kind; info.size = len(content); info.linkname = link; archive.addfile(info, io.BytesIO(content))"
    );
    lab.run_words(&["python3", "-c", &script]).ok();
}

#[test]
fn every_form_brings_a_template_back_as_it_was() {
    let lab = lab();
    uefi(&lab);
    // One whose kernel and initrd are not on the disk.
    shell(
        &lab,
        "rm root/boot/vmlinuz-6.1; echo kernel >kernel; echo initrd >initrd",
    );
    lab.imgtool("mkfs -q --size 64M root root.img");
    let with = [
        "--kernel",
        "kernel",
        "--initrd",
        "initrd",
        "--append",
        "quiet root=\"/dev/vda\"",
    ];
    import(&lab, "root.img --alias direct", &[SAID, &with].concat()).ok();
    for (template, forms) in [("uefi", &FORMS[..]), ("direct", &FORMS[..4])] {
        let wanted = known(&lab, template);
        assert_eq!(
            (&wanted["user"], &wanted["machine"]["cpus"]),
            (&"me".into(), &3.into())
        );
        assert_eq!(wanted["kernel"].is_string(), template == "direct", "{wanted}");
        for form in forms {
            export(&lab, template, form).ok();
            import(&lab, &format!("{template}.{form} --alias {template}-{form}"), &[]).ok();
            assert_eq!(known(&lab, &format!("{template}-{form}")), wanted, "{form}");
            let own = lab.names();
            let own: Vec<&String> = own
                .iter()
                .filter(|name| name.starts_with(&format!("{template}.{form}")))
                .collect();
            let beside =
                usize::from(!matches!(*form, "oci" | "incus")) + 2 * usize::from(template == "direct");
            assert_eq!(own.len(), 1 + beside, "{own:?}");
        }
    }
    // The same bytes are the same template; options win over what comes along.
    let shown = lab.imgtool("template ls --store store");
    assert!(shown.contains("uefi, uefi-incus, uefi-qcow2"), "{shown}");
    import(
        &lab,
        "uefi.tar --alias other --boot direct --cpus 1 --user you",
        &[],
    )
    .ok();
    let other = known(&lab, "other");
    assert_eq!(
        (
            &other["user"],
            &other["machine"]["cpus"],
            &other["machine"]["boot"]["kind"]
        ),
        (&"you".into(), &1.into(), &"direct".into())
    );
    assert!(other["kernel"].is_string(), "it is on the disk");
}

#[test]
fn a_container_image_is_one_to_skopeo_and_umoci_and_comes_back_from_them() {
    let lab = lab();
    uefi(&lab);
    export(&lab, "uefi", "oci").ok();
    let seen: Value = serde_json::from_str(&lab.run("skopeo inspect oci-archive:uefi.oci").ok()).unwrap();
    assert_eq!(
        (&seen["Architecture"], &seen["Os"]),
        (&"amd64".into(), &"linux".into())
    );
    let config: Value =
        serde_json::from_str(&lab.run("skopeo inspect --config oci-archive:uefi.oci:uefi").ok()).unwrap();
    assert_eq!(config["history"].as_array().unwrap().len(), 1);
    lab.run("skopeo copy -q oci-archive:uefi.oci:uefi oci:layout:uefi")
        .ok();
    lab.run("umoci unpack --image layout:uefi unpacked").ok();
    let list = |place: &str| {
        shell(
            &lab,
            &format!(
                "cd {place}; find . -mindepth 1 ! -name lost+found -printf '%p %y %m %U %G %n %l' \\( -type f -printf ' %s %T@' -o -true \\) -printf '\\n' | sort; find . -type f | sort | xargs sha256sum; getfattr -Rdhm user. ."
            ),
        )
    };
    assert_eq!(list("unpacked/rootfs"), list("root"));
    let wanted = known(&lab, "uefi");
    lab.run("skopeo copy -q --dest-compress-format zstd oci:layout:uefi oci-archive:zstd.tar:v2")
        .ok();
    for (number, name) in ["layout", "oci:layout:uefi", "oci-archive:zstd.tar:v2", "zstd.tar"]
        .iter()
        .enumerate()
    {
        import(&lab, &format!("{name} --alias back-{number}"), &[]).ok();
        assert_eq!(known(&lab, &format!("back-{number}")), wanted, "{name}");
    }
    // A stranger's image of another machine.
    shell(
        &lab,
        "cp -r layout other; umoci config --image other:uefi --architecture arm64 --clear config.labels",
    );
    // A layer that ends with the last byte of its last file.
    lab.run("umoci insert --image other:uefi root/etc/file /etc/more")
        .ok();
    import(&lab, "other --alias arm", &[]).ok();
    assert_eq!(known(&lab, "arm")["machine"]["architecture"], "aarch64");
    assert_eq!(known(&lab, "arm")["os"], "Tiny Linux 7");
}

/// LXD, for a while, with a directory of its own.
struct Lxd<'l>(&'l Lab, Child);

impl<'l> Lxd<'l> {
    fn start(lab: &'l Lab) -> Self {
        fs::create_dir(lab.path("lxd")).unwrap();
        let log = fs::File::create(lab.path("lxd.log")).unwrap();
        let daemon = lab
            .command("lxd")
            .args(["--group", "root"])
            .env("LXD_DIR", lab.path("lxd"))
            .stderr(log)
            .spawn();
        let lxd = Self(lab, daemon.unwrap());
        let ready = lab
            .command("lxd")
            .args(["waitready", "--timeout", "60"])
            .env("LXD_DIR", lab.path("lxd"))
            .output();
        assert!(
            ready.unwrap().status.success(),
            "{}",
            fs::read_to_string(lab.path("lxd.log")).unwrap()
        );
        lxd
    }

    fn lxc(&self, line: &str) -> String {
        let mut command = self.0.command("lxc");
        command
            .args(line.split(' '))
            .env("LXD_DIR", self.0.path("lxd"))
            .env("HOME", self.0.dir());
        let done = command.stdin(std::process::Stdio::null()).output().unwrap();
        assert!(done.status.success(), "{line}: {done:?}");
        String::from_utf8(done.stdout).unwrap()
    }
}

impl Drop for Lxd<'_> {
    fn drop(&mut self) {
        // It holds nothing that is to outlive it.
        let _ = self.1.kill();
        let _ = self.1.wait();
        let _ = self
            .0
            .command("bash")
            .args(["-c", "umount lxd/shmounts lxd/devlxd 2>/dev/null"])
            .status();
    }
}

#[test]
fn lxd_takes_a_virtual_machine_and_gives_back_what_it_was() {
    let lab = lab();
    uefi(&lab);
    export(&lab, "uefi", "incus").ok();
    let lxd = Lxd::start(&lab);
    lxd.lxc("image import uefi.incus --alias whole");
    let images: Value = serde_json::from_str(&lxd.lxc("image list --format json")).unwrap();
    let image = &images[0];
    assert_eq!(
        (&image["type"], &image["architecture"]),
        (&"virtual-machine".into(), &"x86_64".into())
    );
    let properties = &image["properties"];
    assert_eq!(properties["description"], "some \"notes\"\n# and: more");
    assert_eq!(
        (&properties["os"], &properties["release"]),
        (&"Tiny".into(), &"7".into())
    );
    assert_eq!(properties["requirements.secureboot"], "false");
    fs::create_dir(lab.path("given")).unwrap();
    lxd.lxc("image export whole given/whole");
    import(&lab, "given/whole.tar --alias whole", &[]).ok();
    assert_eq!(known(&lab, "whole"), known(&lab, "uefi"));
    // In two parts, and with nothing of ours: what LXD itself knows comes along.
    shell(
        &lab,
        "mkdir parts; tar -C parts -xf uefi.incus; tar -C parts -cJf meta.tar.xz metadata.yaml; rm uefi.incus",
    );
    lab.qemu_img("check parts/rootfs.img");
    lab.qemu_img("compare -f qcow2 parts/rootfs.img disk.qcow2");
    lxd.lxc("image delete whole");
    lxd.lxc("image import meta.tar.xz parts/rootfs.img --alias split");
    lxd.lxc("image export split given/split");
    let names = shell(&lab, "ls given");
    assert!(
        names.contains("split.root") || names.contains("split.qcow2"),
        "{names}"
    );
    let disk = if names.contains("split.root") {
        "split.root"
    } else {
        "split.qcow2"
    };
    let is_meta = |name: &&str| name.starts_with("split") && *name != disk;
    let meta = names.lines().find(is_meta).unwrap();
    let import = format!("template import --store other given/{meta} given/{disk} --alias split");
    lab.imgtool(&format!("{import} --output json"));
    let show = |store| {
        let shown = lab.imgtool(&format!("template ls --store {store} --output json"));
        let shown: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(
            shown.as_array().unwrap().len(),
            1,
            "all are the same image: {shown}"
        );
        shown[0].clone()
    };
    let split = show("other");
    assert_eq!(split["fingerprint"], show("store")["fingerprint"]);
    assert_eq!(
        (&split["os"], &split["notes"]),
        (&"Tiny 7".into(), &properties["description"])
    );
    assert_eq!(
        split["machine"],
        serde_json::json!({ "architecture": "x86_64", "boot": { "kind": "uefi" } })
    );
}

#[test]
fn archives_are_refused_for_what_is_hostile_in_them_and_leave_nothing() {
    let lab = lab();
    lab.imgtool("mkfs -q --size 32M root root.img");
    lab.qemu_img("convert -O qcow2 root.img root.qcow2");
    lab.qemu_img("create -q -f qcow2 -b /etc/passwd -F raw backed.qcow2 32M");
    import(&lab, "root.qcow2 --alias kept", &[]).ok();
    let before = stored(&lab);
    let yaml = "('metadata.yaml', b'0', b'architecture: x86_64\\n', '')";
    let disk = "('rootfs.img', b'0', open('root.qcow2', 'rb').read(), '')";
    for (name, members, says) in [
        (
            "link",
            &*format!("{yaml}, ('rootfs.img', b'2', b'', '/etc/shadow')"),
            "no file",
        ),
        (
            "up",
            &format!("{yaml}, {disk}, ('../../escaped', b'0', b'x', '')"),
            "..",
        ),
        ("twice", &format!("{yaml}, {disk}, {disk}"), "two files"),
        (
            "backed",
            &format!("{yaml}, ('rootfs.img', b'0', open('backed.qcow2', 'rb').read(), '')"),
            "/etc/passwd",
        ),
        (
            "raw",
            &format!("{yaml}, ('rootfs.img', b'0', b'x' * 4096, '')"),
            "qcow2",
        ),
        ("none", yaml, "no disk"),
        (
            "container",
            &format!("{yaml}, ('rootfs/etc/passwd', b'0', b'', '')"),
            "container",
        ),
        ("no-metadata", disk, "metadata.yaml"),
        (
            "long",
            &format!("('metadata.yaml', b'0', b' ' * (1 << 20) + b'x', ''), {disk}"),
            "1048576",
        ),
        (
            "alias",
            &format!("('metadata.yaml', b'0', b'a: &a [x]\\nb: *a\\n', ''), {disk}"),
            "aliases",
        ),
        (
            "sparc",
            &format!("('metadata.yaml', b'0', b'architecture: sparc64\\n', ''), {disk}"),
            "sparc64",
        ),
        (
            "notes",
            &format!("{yaml}, ('template.toml', b'0', b'oops', ''), {disk}"),
            "template.toml",
        ),
        (
            "layout",
            "('oci-layout', b'0', b'{\"imageLayoutVersion\": \"1.0.0\"}', ''), ('index.json', b'0', b'{', '')",
            "index.json",
        ),
        (
            "tree",
            "('etc/passwd', b'0', b'', ''), ('../etc/passwd', b'0', b'', '')",
            "..",
        ),
    ] {
        archive(&lab, name, members);
        import(&lab, &format!("{name} --alias hostile"), &[]).fails(1, &[says]);
        assert_eq!(stored(&lab), before, "{name}");
    }
    assert!(!lab.path("escaped").exists());
    // What claims to be large and is not there.
    shell(
        &lab,
        "archive=large; python3 -c \"import tarfile; i = tarfile.TarInfo('metadata.yaml'); i.size = 1 << 60; open('large', 'wb').write(i.tobuf(tarfile.GNU_FORMAT))\"",
    );
    import(&lab, "large --alias hostile", &[]).fails(1, &["large"]);
    shell(&lab, "echo oops >root.img.toml");
    import(&lab, "root.img --alias hostile", &[]).fails(1, &["root.img.toml", "line 1"]);
    assert_eq!(stored(&lab), before);
}

#[test]
fn what_does_not_go_together_is_told_and_nothing_is_replaced_by_notes() {
    let lab = lab();
    uefi(&lab);
    lab.imgtool("mkfs -q --size 64M root root.img");
    shell(
        &lab,
        "echo kernel >kernel; echo 'extends = []' >recipe.qcow2.toml; cp recipe.qcow2.toml before",
    );
    import(&lab, "root.img --alias direct --kernel kernel", &[]).ok();
    export(&lab, "direct", "incus").fails(1, &["no EFI system partition", "--boot uefi"]);
    assert!(!lab.path("direct.incus").exists());
    lab.run("imgtool template export --store store uefi -o recipe.qcow2")
        .fails(1, &["recipe.qcow2.toml"]);
    assert!(!lab.path("recipe.qcow2").exists());
    shell(&lab, "cmp recipe.qcow2.toml before");
    export(&lab, "direct", "raw").ok();
    shell(&lab, "echo another >direct.raw.kernel");
    let before = stored(&lab);
    import(&lab, "direct.raw --alias again", &[]).fails(
        1,
        &[
            "direct.raw.kernel",
            "SHA-256",
            "what is known of the template says that it is",
        ],
    );
    import(&lab, "uefi.none disk.qcow2", &[]).fails(1, &["Incus"]);
    fs::create_dir(lab.path("empty")).unwrap();
    import(&lab, "empty", &[]).fails(1, &["oci-layout"]);
    assert_eq!(stored(&lab), before);
}

#[test]
fn what_has_rotted_is_neither_exported_nor_imported() {
    let lab = lab();
    // What nothing has a checksum of, in a disk.
    fs::write(lab.path("root/etc/text"), "this is what rots").unwrap();
    uefi(&lab);
    export(&lab, "uefi", "qcow2").ok();
    // One byte, at the time and of the size that were.
    let rot = |file: &str| {
        shell(
            &lab,
            &format!(
                "f=$(echo {file}); m=$(stat -c %y $f); at=$(grep -abo 'this is what' $f | cut -d : -f 1); printf T | dd of=$f bs=1 seek=$at conv=notrunc status=none; touch -d \"$m\" $f"
            ),
        );
    };
    rot("uefi.qcow2");
    let before = stored(&lab);
    import(&lab, "uefi.qcow2 --alias rotten", &[])
        .fails(1, &["uefi.qcow2.toml", "SHA-256", "take that line out"]);
    assert_eq!(stored(&lab), before);
    // Where that is meant to be.
    shell(&lab, "sed -i '/^describes/d' uefi.qcow2.toml");
    import(&lab, "uefi.qcow2 --alias changed", &[]).ok();
    lab.imgtool("template rm --store store changed");
    rot("store/templates/*.qcow2");
    for form in ["qcow2", "raw", "tar", "oci", "incus"] {
        let _ = fs::remove_file(lab.path(&format!("uefi.{form}")));
        export(&lab, "uefi", form).fails(1, &["the file has changed", "SHA-256"]);
        assert!(!lab.path(&format!("uefi.{form}")).exists(), "{form}");
    }
}

#[test]
fn an_image_in_a_format_that_is_not_read_here_is_no_raw_disk_unless_that_is_said() {
    let lab = Lab::new();
    fs::write(lab.path("disk.raw"), vec![7; 1 << 20]).unwrap();
    // As QEMU calls them, and as we do.
    for (theirs, ours) in [
        ("vmdk", "vmdk"),
        ("vdi", "vdi"),
        ("vhdx", "vhdx"),
        ("qed", "qed"),
        ("vpc", "vhd"),
        ("qcow", "qcow"),
        ("parallels", "parallels"),
    ] {
        lab.qemu_img(&format!("convert -f raw -O {theirs} disk.raw disk.{ours}"));
        let refused = import(&lab, &format!("disk.{ours} --alias {ours}"), &[]);
        refused.fails(
            1,
            &[
                &format!("it is a {ours} image"),
                &format!("qemu-img convert -f {theirs} -O qcow2 disk.{ours}"),
                "--format raw",
            ],
        );
    }
    assert_eq!(lab.imgtool("template ls --store store"), "");
    import(&lab, "disk.vdi --alias bytes --format raw", &[]).ok();
    lab.qemu_img("convert -f vdi -O raw disk.vdi converted.raw");
    import(&lab, "converted.raw --alias converted", &[]).ok();
}

#[test]
fn credentials_neither_come_nor_go_with_a_template() {
    let lab = Lab::new();
    fs::write(lab.path("disk.raw"), vec![0; 1 << 20]).unwrap();
    import(&lab, "disk.raw --alias plain --credential a.b=secret", &[])
        .fails(1, &["takes no credentials", "imgtool clone NAME"]);
    assert!(!lab.path("store").exists());
    import(&lab, "disk.raw --alias plain", &[]).ok();
    export(&lab, "plain", "qcow2").ok();
    // A stranger's notes would let the stranger into all machines.
    let (notes, exported) = (lab.path("plain.qcow2.toml"), "plain.qcow2");
    let mut text = fs::read_to_string(&notes).unwrap();
    text.push_str("[machine.credentials]\n\"ssh.authorized_keys.root\" = \"theirs-0\"\n");
    fs::write(&notes, &text).unwrap();
    lab.imgtool("template rm --store store plain");
    import(&lab, exported, &[]).ok();
    let kept = shell(&lab, "cat store/templates/*.toml");
    assert!(!kept.contains("theirs-0"), "{kept}");

    // Those of a recipe are in the template, for its owner to read, and stay there.
    let description = shell(&lab, "echo store/templates/*.toml");
    let description = lab.path(description.trim());
    fs::write(&description, text.replace("theirs-0", "ours-0")).unwrap();
    let fingerprint = description.file_stem().unwrap().to_str().unwrap().to_owned();
    for output in ["human", "json"] {
        let shown = lab.imgtool(&format!(
            "template show --store store {fingerprint} --output {output}"
        ));
        assert!(
            shown.contains("ssh.authorized_keys.root") && !shown.contains("ours-0"),
            "{shown}"
        );
    }
    for form in ["qcow2", "raw"] {
        export(&lab, &fingerprint, form).ok();
        let told = fs::read_to_string(lab.path(&format!("{fingerprint}.{form}.toml"))).unwrap();
        assert!(told.contains("disk-size") && !told.contains("ours-0"), "{told}");
    }
}
