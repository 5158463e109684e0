//! libvirt and virt-install notice no difference: their daemon, run twice, finds another `qemu-img` first in its PATH each time, our
//! link or QEMU's own program, and does the same. It must say the same, and the disks must hold the same.

#[path = "../../machines/tests/common/libvirt.rs"]
#[allow(dead_code, reason = "tests of machines use the rest")]
mod libvirt;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use libvirt::Libvirt;

/// A daemon, and what a `qemu-img` of its own is asked.
struct Side {
    libvirt: Libvirt,
    /// Where the lab is in texts.
    lab: String,
}

impl Side {
    fn new(program: &Path) -> Self {
        let libvirt = Libvirt::start_with(|bin| {
            let asked = bin.join("asked");
            let (asked, program) = (asked.display(), program.display());
            let script = format!("#!/bin/sh\nprintf '%s\\n' \"$*\" >>'{asked}'\nexec '{program}' \"$@\"\n");
            let wrapper = bin.join("qemu-img");
            fs::write(&wrapper, script).unwrap();
            fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
        });
        let lab = libvirt.lab().to_str().unwrap().to_owned();
        Self { libvirt, lab }
    }

    /// Ours, by a link that the program has made itself.
    fn ours(links: &Path) -> Self {
        // The user of the daemon may not come to where it is.
        let program = links.join("imgtool");
        crate::common::copy_program(&program);
        let done = Command::new(&program).arg("install-links").arg(links).output();
        assert!(done.as_ref().unwrap().status.success(), "{done:?}");
        fs::set_permissions(links, fs::Permissions::from_mode(0o755)).unwrap();
        Self::new(&links.join("qemu-img"))
    }

    /// QEMU's, as it is installed.
    fn theirs() -> Self {
        Self::new(&stock())
    }

    /// What the daemon asked of `qemu-img` so far: how often each command, and all of it.
    fn asked(&self) -> (BTreeMap<String, usize>, String) {
        let all = fs::read_to_string(self.libvirt.bin().join("asked")).unwrap_or_default();
        let mut commands = BTreeMap::new();
        for line in all.lines() {
            let command = line.split(' ').next().unwrap();
            *commands.entry(command.to_owned()).or_default() += 1;
        }
        (commands, all)
    }

    /// Without what differs from one directory and moment to another.
    fn plain(&self, text: &str) -> String {
        let volatile = |line: &&str| {
            let line = line.trim();
            ![
                "<atime>",
                "<mtime>",
                "<ctime>",
                "<physical",
                "<allocation",
                "Allocation",
                "Physical",
            ]
            .iter()
            .any(|start| line.starts_with(start))
        };
        text.replace(&self.lab, "LAB")
            .split_inclusive('\n')
            .filter(volatile)
            .collect()
    }
}

/// The first `qemu-img` in PATH.
fn stock() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    let mut programs = std::env::split_paths(&path).map(|directory| directory.join("qemu-img"));
    programs
        .find(|program| program.exists())
        .expect("scripts/setup.sh test installs it")
}

/// Both daemons.
struct Sides {
    ours: Side,
    theirs: Side,
    _links: tempfile::TempDir,
}

impl Sides {
    fn start() -> Self {
        let links = tempfile::tempdir().unwrap();
        Self {
            ours: Side::ours(links.path()),
            theirs: Side::theirs(),
            _links: links,
        }
    }

    fn each(&self) -> [&Side; 2] {
        [&self.ours, &self.theirs]
    }

    /// A text in both labs, each with its own directory for `LAB`.
    fn write(&self, name: &str, text: &str) {
        for side in self.each() {
            fs::write(side.libvirt.lab().join(name), text.replace("LAB", &side.lab)).unwrap();
            side.libvirt.give();
        }
    }

    /// Both say the same, and succeed or not; gives what they say.
    fn virsh(&self, line: &str, succeeds: bool) -> String {
        let [ours, theirs] = self.each().map(|side| {
            let output = side.libvirt.try_virsh(&line.replace("LAB", &side.lab));
            assert_eq!(output.status.success(), succeeds, "virsh {line}: {output:?}");
            let said =
                [output.stdout, output.stderr].map(|text| side.plain(&String::from_utf8(text).unwrap()));
            said.concat()
        });
        assert_eq!(ours, theirs, "virsh {line}");
        ours
    }

    fn ok(&self, line: &str) -> String {
        self.virsh(line, true)
    }

    /// A program other than virsh, whose words are given.
    fn run(&self, words: &[&str]) -> String {
        let [ours, theirs] = self.each().map(|side| {
            let words: Vec<String> = words.iter().map(|word| word.replace("LAB", &side.lab)).collect();
            let mut command = side.libvirt.command(&words[0]);
            let output = command.args(&words[1..]).output();
            let output = output
                .unwrap_or_else(|error| panic!("{words:?}: {error}: scripts/setup.sh test installs it"));
            assert!(output.status.success(), "{words:?}: {output:?}");
            side.plain(&String::from_utf8(output.stdout).unwrap())
        });
        assert_eq!(ours, theirs, "{words:?}");
        ours
    }

    /// Both images hold the same, and QEMU finds no fault with ours, of which it says the same as of its own.
    fn assert_same(&self, name: &str, format: &str) {
        let paths = self.each().map(|side| format!("{}/{name}", side.lab));
        qemu_img(&["compare", "-f", format, "-F", format, &paths[0], &paths[1]]);
        let described = self.each().map(|side| {
            let info = qemu_img(&["info", "-f", format, &format!("{}/{name}", side.lab)]);
            let fixed = |line: &&str| {
                !["disk size", "file length"]
                    .iter()
                    .any(|start| line.trim().starts_with(start))
            };
            let lines: Vec<String> = info.lines().filter(fixed).map(|line| side.plain(line)).collect();
            lines
        });
        assert_eq!(described[0], described[1], "{name}");
        if format == "qcow2" {
            qemu_img(&["check", "-q", &paths[0]]);
        }
    }

    /// Each was asked the same, and so often; what ours was asked.
    fn assert_asked(&self, commands: &[&str]) -> String {
        let [ours, theirs] = self.each().map(Side::asked);
        assert_eq!(ours.0, theirs.0, "{}", ours.1);
        for command in commands {
            assert!(ours.0.contains_key(*command), "no {command}: {}", ours.1);
        }
        ours.1
    }
}

/// QEMU's own program, which must succeed.
fn qemu_img(words: &[&str]) -> String {
    let output = Command::new(stock()).args(words).output().unwrap();
    assert!(output.status.success(), "qemu-img {words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn volumes_are_made_cloned_filled_resized_and_told_of() {
    let sides = Sides::start();
    let text: Vec<u8> = (0..3_u32 << 18).flat_map(u32::to_le_bytes).collect();
    for side in sides.each() {
        let lab = &side.lab;
        fs::write(format!("{lab}/content"), &text).unwrap();
        qemu_img(&[
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            &format!("{lab}/content"),
            &format!("{lab}/content.qcow2"),
        ]);
        fs::create_dir(format!("{lab}/pool")).unwrap();
        side.libvirt.give();
    }
    sides.ok("pool-create-as pool dir --target LAB/pool");

    let volumes = [
        ("raw", "raw", "8M --format raw"),
        ("full", "raw", "8M --format raw --allocation 8M"),
        ("base", "qcow2", "8M --format qcow2"),
        ("none", "qcow2", "8M --format qcow2 --allocation 0"),
        ("tables", "qcow2", "8M --format qcow2 --prealloc-metadata"),
        ("reserved", "qcow2", "8M --format qcow2 --allocation 8M"),
        (
            "over",
            "qcow2",
            "8M --format qcow2 --backing-vol base --backing-vol-format qcow2",
        ),
        (
            "larger",
            "qcow2",
            "16M --format qcow2 --backing-vol raw --backing-vol-format raw",
        ),
    ];
    for (name, _, options) in volumes {
        sides.ok(&format!("vol-create-as pool {name} {options}"));
    }
    sides.ok("vol-upload --pool pool raw LAB/content");
    sides.ok("vol-upload --pool pool base LAB/content.qcow2");
    sides.ok("vol-upload --pool pool full LAB/content --offset 4096");
    for (name, format, _) in volumes {
        sides.assert_same(&format!("pool/{name}"), format);
        sides.ok(&format!("vol-dumpxml --pool pool {name}"));
        sides.ok(&format!("vol-info --pool pool {name}"));
    }
    sides.ok("vol-list pool");

    for (source, format, options) in [
        ("raw", "raw", ""),
        ("base", "qcow2", ""),
        ("over", "qcow2", ""),
        ("larger", "qcow2", ""),
        ("tables", "qcow2", " --prealloc-metadata"),
    ] {
        sides.ok(&format!(
            "vol-clone --pool pool {source} copy-of-{source}{options}"
        ));
        sides.assert_same(&format!("pool/copy-of-{source}"), format);
        sides.ok(&format!("vol-dumpxml --pool pool copy-of-{source}"));
    }
    // Not above a larger one, which QEMU refuses.
    sides.ok("vol-resize --pool pool over 8M --delta");
    sides.ok("vol-resize --pool pool base 32M");
    sides.ok("vol-resize --pool pool none 4M --shrink");
    sides.ok("vol-resize --pool pool full 16M --allocate");
    sides.ok("vol-resize --pool pool raw 16M");
    sides.virsh("vol-resize --pool pool base 1M", false);
    for (name, format) in [
        ("base", "qcow2"),
        ("over", "qcow2"),
        ("none", "qcow2"),
        ("full", "raw"),
        ("raw", "raw"),
    ] {
        sides.assert_same(&format!("pool/{name}"), format);
        sides.ok(&format!("vol-dumpxml --pool pool {name}"));
    }
    sides.ok("vol-download --pool pool copy-of-base LAB/down.qcow2");
    for side in sides.each() {
        let [down, content] = ["down.qcow2", "content"].map(|name| format!("{}/{name}", side.lab));
        qemu_img(&["compare", "-f", "qcow2", "-F", "raw", &down, &content]);
    }
    sides.ok("vol-wipe --pool pool copy-of-raw");
    sides.ok("vol-wipe --pool pool copy-of-over");
    sides.ok("vol-delete --pool pool copy-of-over");
    sides.virsh("vol-create-as pool base 8M --format qcow2", false);
    sides.ok("pool-refresh pool");
    sides.ok("vol-list pool");
    sides.assert_asked(&["create", "convert", "resize"]);
}

#[test]
fn volumes_described_in_xml_are_what_it_says() {
    let sides = Sides::start();
    for side in sides.each() {
        fs::create_dir(format!("{}/pool", side.lab)).unwrap();
        side.libvirt.give();
    }
    sides.ok("pool-create-as pool dir --target LAB/pool");
    let secret = "b2b5a4c6-0d5f-4d59-9a52-2b0f6b1d9c11";
    sides.write("secret.xml", &format!("<secret ephemeral='no' private='no'><uuid>{secret}</uuid><usage type='volume'><volume>v</volume></usage></secret>"),
    );
    sides.ok("secret-define LAB/secret.xml");
    sides.ok(&format!("secret-set-value {secret} c2VjcmV0"));
    let volume = |name: &str, target: &str| {
        sides.write("volume.xml", &format!("<volume><name>{name}</name><capacity unit='MiB'>4</capacity><target>{target}</target></volume>"),
        );
    };
    let encryption =
        format!("<encryption format='luks'><secret type='passphrase' uuid='{secret}'/></encryption>");
    for (name, target) in [
        ("old", "<format type='qcow2'/><compat>0.10</compat>".to_owned()),
        ("lazy", "<format type='qcow2'/><compat>1.1</compat><features><lazy_refcounts/></features>".to_owned()),
        ("extended", "<format type='qcow2'/><clusterSize unit='KiB'>128</clusterSize><features><extended_l2/></features>".to_owned()),
        ("wide", "<format type='qcow2'/><clusterSize unit='KiB'>1024</clusterSize>".to_owned()),
        ("locked", format!("<format type='qcow2'/>{encryption}")),
        ("luks", format!("<format type='raw'/>{encryption}")),
    ] {
        volume(name, &target);
        sides.ok("vol-create pool LAB/volume.xml");
        sides.ok(&format!("vol-dumpxml --pool pool {name}"));
        if !target.contains("encryption") {
            sides.assert_same(&format!("pool/{name}"), "qcow2");
        }
    }
    for (name, opened) in [
        ("locked", "driver=qcow2,encrypt.key-secret=s"),
        ("luks", "driver=luks,key-secret=s"),
    ] {
        let object = "secret,id=s,data=secret";
        for side in sides.each() {
            let options = format!("{opened},file.filename={}/pool/{name}", side.lab);
            let map = qemu_img(&[
                "map",
                "--output=json",
                "--object",
                object,
                "--image-opts",
                &options,
            ]);
            assert!(map.contains("\"length\": 4194304"), "{name}: {map}");
        }
    }
    // Seven key slots of it hold nothing.
    let luks = fs::metadata(sides.ours.libvirt.lab().join("pool/luks")).unwrap();
    assert!(luks.blocks() * 512 < 1 << 20, "{luks:?}");

    // From one format to another, and from one that is encrypted.
    let from = |name: &str, target: &str, source: &str| {
        volume(name, target);
        sides.ok(&format!(
            "vol-create-from pool LAB/volume.xml {source} --inputpool pool"
        ));
    };
    from("flat", "<format type='raw'/>", "wide");
    sides.assert_same("pool/flat", "raw");
    from("back", "<format type='qcow2'/><compat>0.10</compat>", "flat");
    sides.assert_same("pool/back", "qcow2");
    sides.ok("vol-list pool");
    sides.assert_asked(&["create", "convert"]);
}

#[test]
fn snapshots_of_machines_that_do_not_run_are_taken_and_gone_back_to() {
    let sides = Sides::start();
    sides.write(
        "domain.xml",
        "<domain type='qemu'><name>web</name><uuid>6a6fa1d8-0f49-4f2e-9f63-0f6f5a0a9b3c</uuid><memory unit='MiB'>64</memory><os><type arch='x86_64'>hvm</type></os>\
         <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='LAB/disk'/><target dev='vda'/></disk>\
         </devices></domain>",
    );
    for side in sides.each() {
        qemu_img(&["create", "-q", "-f", "qcow2", &format!("{}/disk", side.lab), "8M"]);
    }
    let fill = |pattern: u8| {
        for side in sides.each() {
            let write = format!("write -q -P {pattern} 1M 1M");
            let output = Command::new("qemu-io")
                .args(["-f", "qcow2", "-c", &write, &format!("{}/disk", side.lab)])
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            side.libvirt.give();
        }
    };
    fill(1);
    sides.ok("define LAB/domain.xml");
    sides.ok("snapshot-create-as web first --description first");
    fill(2);
    sides.ok("snapshot-create-as web second");
    fill(3);
    sides.ok("snapshot-revert web first");
    for side in sides.each() {
        qemu_img(&["check", "-q", &format!("{}/disk", side.lab)]);
        let output = Command::new("qemu-io")
            .args([
                "-r",
                "-f",
                "qcow2",
                "-c",
                "read -P 1 1M 1M",
                &format!("{}/disk", side.lab),
            ])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    sides.ok("snapshot-delete web second");
    sides.ok("snapshot-delete web first");
    sides.assert_same("disk", "qcow2");
    sides.ok("snapshot-create-as web outside --disk-only --atomic");
    sides.assert_same("disk.outside", "qcow2");
    sides.ok("snapshot-delete web outside --metadata");
    sides.assert_asked(&["snapshot", "create"]);
}

#[test]
fn virt_install_makes_the_disks_of_machines() {
    let sides = Sides::start();
    for side in sides.each() {
        let base = format!("{}/base.qcow2", side.lab);
        qemu_img(&["create", "-q", "-f", "qcow2", &base, "64M"]);
        side.libvirt.give();
    }
    let install = |more: &str| {
        let line = format!(
            "virt-install -q --connect qemu:///session --name web --uuid 6a6fa1d8-0f49-4f2e-9f63-0f6f5a0a9b3c --virt-type qemu --memory 64 \
             --osinfo detect=off,require=off --import --graphics none --network none --noautoconsole --noreboot {more}"
        );
        let words: Vec<&str> = line.split_whitespace().collect();
        sides.run(&words)
    };
    let disks = "--disk path=LAB/new.qcow2,size=1,format=qcow2 --disk path=LAB/full.raw,size=0.01,format=raw,sparse=no \
                 --disk path=LAB/over.qcow2,size=1,format=qcow2,backing_store=LAB/base.qcow2,backing_format=qcow2";
    let xml = install(&format!("{disks} --print-xml --dry-run"));
    assert!(xml.contains("LAB/over.qcow2"), "{xml}");
    for side in sides.each() {
        assert!(!side.libvirt.lab().join("new.qcow2").exists());
    }
    install(disks);
    sides.ok("domblklist web");
    // It finds nothing to boot, and may have ended by itself.
    for side in sides.each() {
        side.libvirt.try_virsh("destroy web");
    }
    for (name, format) in [
        ("new.qcow2", "qcow2"),
        ("over.qcow2", "qcow2"),
        ("full.raw", "raw"),
    ] {
        sides.assert_same(name, format);
    }
    sides.ok("undefine web --remove-all-storage");
    sides.assert_asked(&["create"]);
}
