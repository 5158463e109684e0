//! Files that are longer, deeper or more than anybody needs: each is refused by its limit, which is said.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::process::Command;

use serde_json::{Value, json};

use crate::common::{Done, Lab};

const MIB: u64 = 1 << 20;

/// A file that is all hole.
fn hole(lab: &Lab, name: &str, len: u64) {
    File::create(lab.path(name)).unwrap().set_len(len).unwrap();
}

#[test]
fn what_is_kept_in_memory_whole_is_short() {
    let lab = Lab::new();
    fs::create_dir(lab.path("tree")).unwrap();
    lab.imgtool("create -q -f qcow2 image.qcow2 1M");
    for name in ["key", "recipe.toml", "image.qcow2.toml"] {
        hole(&lab, name, MIB + 1);
    }
    for (line, says) in [
        (
            "convert --key key -O raw image.qcow2 copy",
            "longer than 1048576 bytes",
        ),
        (
            "template build --store store recipe.toml",
            "at most 1048576 bytes",
        ),
        (
            "template import --store store image.qcow2 --alias a",
            "at most 1048576 bytes",
        ),
    ] {
        lab.run(&format!("imgtool {line}")).fails(1, &[says]);
    }
    hole(&lab, "tree/large", 64 * MIB + 1);
    lab.imgtool("mkfs -q tree filesystem");
    let edit = format!(
        "env EDITOR=true {} fs edit filesystem /large",
        env!("CARGO_BIN_EXE_imgtool")
    );
    lab.run(&edit)
        .fails(1, &["67108865 bytes is too large to be edited"]);
}

#[test]
fn texts_of_the_command_line_are_short() {
    let lab = Lab::new();
    fs::create_dir_all(lab.path("root")).unwrap();
    lab.imgtool("mkfs -q --size 4M root root.img");
    lab.imgtool("template import -q --store store root.img --alias tiny");
    lab.imgtool("clone -q web --store store --from tiny --as-is");
    hole(&lab, "long", MIB + 1);
    for line in [
        "clone --store store db --from tiny --ssh-key",
        "clone --store store db --from tiny --credential a=@",
        "config set --store store web --credential a=@",
    ] {
        let line = format!("imgtool {line}");
        let line = if line.ends_with('@') { line } else { line + " " };
        lab.run(&format!("{line}long"))
            .fails(1, &["long", "at most 1048576 bytes"]);
        lab.run(&format!("{line}/dev/zero"))
            .fails(1, &["/dev/zero", "at most 1048576 bytes"]);
    }
    hole(&lab, "list", (64 << 20) + 1);
    for line in [
        "mkfs --size 4M root new.img --manifest",
        "mkfs --size 4M root new.img --file-contexts",
    ] {
        for file in ["list", "/dev/zero"] {
            lab.run(&format!("imgtool {line} {file}"))
                .fails(1, &[file, "at most 67108864 bytes"]);
        }
    }
    let done = lab.run("imgtool qemu-img info --object secret,id=s,file=/dev/zero root.img");
    assert_eq!(done.code(), 1);
    assert!(
        done.stderr().contains("a secret has at most 1048576 bytes"),
        "{}",
        done.stderr()
    );
    assert!(!lab.path("new.img").exists());
    assert!(!lab.path("store/instances/db.toml").exists());
    // A pipe says something in the end, too.
    let piped = format!(
        "printf hello | {} config set --store store web --credential a=@/dev/stdin",
        env!("CARGO_BIN_EXE_imgtool")
    );
    lab.run_words(&["sh", "-c", &piped]).ok();
    let kept = fs::read_to_string(lab.path("store/instances/web.toml")).unwrap();
    assert!(kept.contains("hello"), "{kept}");
}

#[test]
fn a_tree_that_no_path_leads_through_is_not_walked() {
    let lab = Lab::new();
    // Each directory is made in the one before: no path is as long as they are deep.
    for (image, parts) in [("deep.img", 2047), ("deeper.img", 2048)] {
        let script = format!(
            "import os, subprocess, tempfile
with tempfile.TemporaryDirectory() as point:
    subprocess.run('truncate -s 16M {image}; mkfs.ext4 -q -N 4096 -b 1024 {image}; mount -o loop {image} ' + point, shell=True, check=True)
    try:
        here = os.open(point, os.O_RDONLY)
        for part in range({parts}):
            os.mkdir('a', dir_fd=here)
            below = os.open('a', os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(here)
    finally:
        subprocess.run(['umount', point], check=True)"
        );
        lab.run_words(&["python3", "-c", &script]).ok();
        for command in ["fs tree {} /a", "fs ls -R {} /a", "fs cp -r {} /a copy"] {
            let done = lab.run(&format!("imgtool {}", command.replace("{}", image)));
            if parts == 2047 {
                assert_eq!(done.code(), 0, "{command}: {}", done.stderr());
            } else {
                done.fails(1, &["it is more than 2047 directories deep"]);
            }
            lab.run("rm -rf copy").ok();
        }
    }
}

#[test]
fn recipes_are_not_deep_and_not_many() {
    let lab = Lab::new();
    let recipe = |name: &str, text: &str| fs::write(lab.path(name), text).unwrap();
    recipe("last.toml", "[source]\ndirectory = \"tree\"\n");
    let mut below = "last".to_owned();
    for level in 0..16 {
        recipe(
            &format!("{level}.toml"),
            &format!("extends = [\"{below}.toml\"]\n"),
        );
        below = level.to_string();
    }
    recipe(
        "wide.toml",
        &format!("extends = [{}]\n", "\"last.toml\",".repeat(256)),
    );
    recipe("nested.toml", &format!("a = {}", "[".repeat(100_000)));
    for (name, says) in [
        ("15", "more than 16 levels deep"),
        ("wide", "more than 256 recipes"),
        ("nested", "recurs"),
    ] {
        lab.run(&format!("imgtool template build --store store {name}.toml"))
            .fails(1, &[says]);
    }
}

/// What stands behind `json:`, which an image may name too where imgtool answers as qemu-img.
#[test]
fn names_in_json_are_not_deep() {
    let lab = Lab::new();
    lab.imgtool("create -q -f raw image 1M");
    let nested = |levels: usize| {
        let inner = r#"{"driver":"file","filename":"image"}"#;
        format!(
            "json:{}{inner}{}",
            r#"{"driver":"raw","file":"#.repeat(levels),
            "}".repeat(levels)
        )
    };
    lab.run_words(&["imgtool", "qemu-img", "info", &nested(100)]).ok();
    let done = lab.run_words(&["imgtool", "qemu-img", "info", &nested(4000)]);
    assert_eq!(done.code(), 1);
    let dotted = format!("driver=raw,{}filename=image", "file.".repeat(20_000));
    let done = lab.run_words(&["imgtool", "qemu-img", "info", "--image-opts", &dotted]);
    assert_eq!(done.code(), 1);
}

/// A container image in a directory.
struct Layout<'a>(&'a Lab);

impl Layout<'_> {
    /// Stores what another document then names, as being of a kind.
    fn blob(&self, kind: &str, bytes: &[u8]) -> Value {
        let blobs = self.0.path("oci/blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let file = blobs.join("new");
        fs::write(&file, bytes).unwrap();
        let sum = Command::new("sha256sum").arg(&file).output().unwrap();
        let digest = String::from_utf8(sum.stdout).unwrap()[..64].to_owned();
        fs::rename(&file, blobs.join(&digest)).unwrap();
        json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": format!("sha256:{digest}"),
            "size": bytes.len(),
        })
    }

    fn document(&self, kind: &str, document: &Value) -> Value {
        self.blob(kind, document.to_string().as_bytes())
    }

    fn index(&self, manifests: &[Value]) -> Value {
        self.document(
            "index.v1+json",
            &json!({"schemaVersion": 2, "manifests": manifests}),
        )
    }

    /// Builds a filesystem of what these documents are, which fails.
    fn refused(&self, manifests: &[Value], says: &str) {
        let at = |name: &str| self.0.path("oci").join(name);
        fs::write(at("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        fs::write(at("index.json"), index.to_string()).unwrap();
        self.0.run("imgtool mkfs -q oci:oci new").fails(1, &[says]);
    }
}

#[test]
fn container_images_are_not_deep_and_their_documents_not_long() {
    let lab = Lab::new();
    let layout = Layout(&lab);
    let long = layout.blob("manifest.v1+json", &vec![b' '; (16 << 20) + 1]);
    layout.refused(&[long], "16777217 bytes, and 16777216 at most");
    let mut index = layout.index(&[]);
    for _ in 0..9 {
        index = layout.index(&[index]);
    }
    layout.refused(&[index], "indexes name each other more than 8 times");
    let empty = layout.index(&[]);
    layout.refused(&vec![empty; 1001], "more than 1000 documents");
    let layer = layout.blob("layer.v1.tar", b"");
    let ids = vec![layer["digest"].clone(); 10_001];
    let config =
        json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ids}});
    let config = layout.document("config.v1+json", &config);
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": vec![layer; 10_001]});
    let manifest = layout.document("manifest.v1+json", &manifest);
    layout.refused(&[manifest], "more than 10000 layers");
}

/// The header of an empty file in a tar archive, or of a directory, whose name ends with a slash.
fn tar_header(name: &str) -> [u8; 512] {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000755\0");
    header[124..136].copy_from_slice(b"00000000000\0");
    header[148..156].fill(b' ');
    header[156] = if name.ends_with('/') { b'5' } else { b'0' };
    header[157..165].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

#[test]
fn an_archive_of_a_container_image_has_not_too_many_files() {
    let lab = Lab::new();
    let mut archive = BufWriter::new(File::create(lab.path("many.tar")).unwrap());
    for number in 0..=1 << 20 {
        archive.write_all(&tar_header(&format!("{number:08}"))).unwrap();
    }
    archive.write_all(&[0; 1024]).unwrap();
    archive.into_inner().unwrap();
    lab.run("imgtool mkfs -q oci-archive:many.tar new")
        .fails(1, &["more than 1048576 files"]);
}

/// Runs a command that has not the memory for what is too long, and refuses it.
fn refused_unread(lab: &Lab, arguments: &str, says: &str) {
    let line = format!(
        "ulimit -v 400000; exec {} {arguments}",
        env!("CARGO_BIN_EXE_imgtool")
    );
    lab.run_words(&["sh", "-c", &line]).fails(1, &[says]);
}

/// What firmware takes for a program for x86-64, with a hole behind it.
fn program(lab: &Lab, name: &str, len: u64) {
    let path = lab.path(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut bytes = [0; 512];
    bytes[..2].copy_from_slice(b"MZ");
    bytes[0x3C] = 0x80;
    bytes[0x80..0x86].copy_from_slice(b"PE\0\0\x64\x86");
    fs::write(&path, bytes).unwrap();
    File::options()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_len(len))
        .unwrap();
}

#[test]
fn kernels_and_boot_loaders_are_not_longer_than_any_is() {
    let lab = Lab::new();
    program(&lab, "tree/boot/vmlinuz-1", 4096);
    program(&lab, "loader", (1 << 30) + 1);
    let too_large = "larger than any boot loader (1073741824 bytes)";
    refused_unread(&lab, "mkdisk -q --boot-efi loader tree disk", too_large);
    program(
        &lab,
        "tree/usr/lib/systemd/boot/efi/systemd-bootx64.efi",
        (1 << 30) + 1,
    );
    refused_unread(&lab, "mkdisk -q tree disk", too_large);
    assert!(!lab.path("disk").exists());
    program(&lab, "root/boot/vmlinuz-2", (1 << 30) + 1);
    lab.imgtool("mkfs -q --size 64M root image");
    refused_unread(
        &lab,
        "template import -q --store store image",
        "vmlinuz-2 is too long",
    );
}

#[test]
fn modules_are_not_longer_than_any_is_compressed_or_not() {
    let lab = Lab::new();
    for directory in ["bin", "boot", "lib/modules/1"] {
        fs::create_dir_all(lab.path("tree").join(directory)).unwrap();
    }
    for name in ["bin/busybox", "boot/vmlinuz-1"] {
        fs::write(lab.path("tree").join(name), name).unwrap();
    }
    let modules = lab.path("tree/lib/modules/1");
    hole(&lab, "tree/lib/modules/1/plain.ko", 64 * MIB + 1);
    for (packer, suffix) in [("gzip", "gz"), ("xz", "xz"), ("zstd", "zst")] {
        let pack = format!(
            "head -c {} /dev/zero | {packer} -1c >{}/{packer}.ko.{suffix}",
            64 * MIB + 1,
            modules.display()
        );
        lab.run_words(&["sh", "-ec", &pack]).ok();
    }
    for module in ["plain", "gzip", "xz", "zstd"] {
        let recipe = format!("[source]\ndirectory = \"tree\"\n[initrd]\nmodules = [\"{module}\"]\n");
        fs::write(lab.path("recipe.toml"), recipe).unwrap();
        let done = lab.run("imgtool template build -q --store store recipe.toml");
        done.fails(1, &[module, "too long for a module (67108864 bytes)"]);
    }
}

#[test]
fn keys_and_signatures_are_short() {
    let lab = Lab::new();
    lab.imgtool("create -q -f qcow2 image.qcow2 1M");
    fs::create_dir_all(lab.path("store/keys")).unwrap();
    lab.run("minisign -G -W -p store/keys/ours.pub -s ours.sec").ok();
    hole(&lab, "image.qcow2.minisig", (64 << 10) + 1);
    let import = || lab.run("imgtool template import -q --store store image.qcow2");
    import().fails(1, &["image.qcow2.minisig", "a file of more than 65536 bytes"]);
    hole(&lab, "store/keys/theirs.pub", (64 << 10) + 1);
    let said = import().stderr();
    assert!(
        said.contains("theirs.pub: a file of more than 65536 bytes"),
        "{said}"
    );
}

#[test]
fn of_what_is_wrong_with_an_upload_the_first_hundred_are_told() {
    let lab = Lab::new();
    lab.qemu_img("create -q -f vmdk image 1M");
    let text = "what=1\n".repeat(1000);
    let file = File::options().write(true).open(lab.path("image")).unwrap();
    file.write_all_at(text.as_bytes(), 512).unwrap();
    let done = lab.run("imgtool inspect --safe --output json image");
    assert_eq!(done.code(), 2, "{}", done.stderr());
    let report: Value = serde_json::from_str(&done.stdout()).unwrap();
    let problems = report["problems"].as_object().unwrap().values();
    let told: usize = problems
        .map(|of_a_check| of_a_check.as_array().unwrap().len())
        .sum();
    assert_eq!(told, 100, "{report:#}");
}

#[test]
fn of_what_a_check_finds_the_first_are_listed_and_all_are_counted() {
    const BLOCK: u64 = 64 << 10;
    const BLOCKS: u64 = 3;
    let lab = Lab::new();
    lab.qemu_img("create -q -f qcow2 -o refcount_bits=1 image 1M");
    let file = File::options()
        .read(true)
        .write(true)
        .open(lab.path("image"))
        .unwrap();
    let mut table = [0; 8];
    file.read_exact_at(&mut table, 48).unwrap();
    let table = u64::from_be_bytes(table);
    // Each of the blocks counts 2^19 clusters, of which all are in the file and hardly any is used.
    let len = (BLOCKS << 19) * BLOCK;
    for block in 0..BLOCKS {
        let at = (16 + block) * BLOCK;
        file.write_all_at(&at.to_be_bytes(), table + 8 * block).unwrap();
        file.write_all_at(&vec![0xff; BLOCK as usize], at).unwrap();
    }
    file.set_len(len).unwrap();
    for (command, most) in [("check", 1000), ("qemu-img check", 1 << 20)] {
        let done = lab.run(&format!("imgtool {command} image"));
        assert_eq!(done.code(), 3);
        let (stdout, stderr) = (done.stdout(), done.stderr());
        let listed = stderr.lines().filter(|line| line.starts_with("Leaked cluster"));
        assert_eq!(listed.count(), most, "{command}");
        // All but the header, two tables, and the blocks themselves.
        let leaks = (BLOCKS << 19) - 3 - BLOCKS;
        assert!(stdout.contains(&leaks.to_string()), "{command}: {stdout}");
    }
}

#[test]
fn modules_are_looked_for_in_100000_directories() {
    let lab = Lab::new();
    let mut archive = BufWriter::new(File::create(lab.path("tree.tar")).unwrap());
    let mut put = |name: &str| archive.write_all(&tar_header(name)).unwrap();
    for name in [
        "bin/busybox",
        "boot/vmlinuz-1",
        "lib/modules/1/000000/first.ko",
        "lib/modules/1/099999/last.ko",
    ] {
        put(name);
    }
    // With the one that they are in one more than that, of which the first in the order of names comes last.
    for number in 1..99_999 {
        put(&format!("lib/modules/1/{number:06}/"));
    }
    archive.write_all(&[0; 1024]).unwrap();
    archive.into_inner().unwrap();
    let recipe = "[source]\ntar = \"tree.tar\"\n[initrd]\nmodules = [\"last\", \"first\"]\n";
    fs::write(lab.path("recipe.toml"), recipe).unwrap();
    lab.run("imgtool template build -q --store store recipe.toml")
        .fails(1, &["has no module \"first\""]);
}

#[test]
fn units_enable_64_others_at_most() {
    let lab = Lab::new();
    let units = lab.path("tree/etc/systemd/system");
    fs::create_dir_all(&units).unwrap();
    for number in 0..66 {
        let unit = format!(
            "[Service]\nExecStart=/x\n[Install]\nWantedBy=a.target\nAlso=u{}.service\n",
            number + 1
        );
        fs::write(units.join(format!("u{number}.service")), unit).unwrap();
    }
    fs::write(units.join("u66.service"), "[Install]\nWantedBy=a.target\n").unwrap();
    let build = |enable: &str, alias: &str| {
        let recipe = format!("[source]\ndirectory = \"tree\"\n[services]\nenable = [{enable}]\n");
        fs::write(lab.path("recipe.toml"), recipe).unwrap();
        lab.run(&format!(
            "imgtool template build -q --store store --alias {alias} recipe.toml"
        ))
    };
    build("\"u1\"", "none").fails(1, &["line 4", "more than 64 other units"]);
    // Those that are named are as many as they are.
    let all: Vec<String> = (0..67).map(|number| format!("\"u{number}\"")).collect();
    build(&all.join(", "), "all").ok();
    build("\"u2\"", "fewer").ok();
    for (alias, enabled) in [("all", 67), ("fewer", 65)] {
        lab.imgtool(&format!(
            "template export -q --store store --format tar {alias} -o {alias}.tar"
        ));
        let listed = lab.run(&format!("tar tf {alias}.tar")).ok();
        let wanted = listed.lines().filter(|name| name.contains("a.target.wants/u"));
        assert_eq!(wanted.count(), enabled, "{alias}: {listed}");
    }
}

/// An image of a system, and what cloning it for a user says.
fn clone_for_ann(lab: &Lab) -> Done {
    lab.imgtool("mkfs -q --size 64M tree image");
    let _ = fs::remove_dir_all(lab.path("store"));
    lab.imgtool("template import -q --store store image --alias a");
    fs::write(
        lab.path("key.pub"),
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE0cNcl6Z8mOZ1FsdY0Y1Hk4FlkOSbBmBmKGvDB9rKgC ann\n",
    )
    .unwrap();
    lab.run("imgtool clone -q --store store --from a --user ann --ssh-key key.pub web")
}

#[test]
fn the_skeleton_of_a_home_has_1000_files_at_most() {
    let lab = Lab::new();
    fs::create_dir_all(lab.path("tree/etc/skel")).unwrap();
    fs::write(lab.path("tree/etc/os-release"), "PRETTY_NAME=Tiny\n").unwrap();
    for (name, text) in [
        ("passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        ("group", "root:x:0:\n"),
        ("shadow", "root:*:19000:0:99999:7:::\n"),
    ] {
        fs::write(lab.path("tree/etc").join(name), text).unwrap();
    }
    for number in 0..1000 {
        fs::write(lab.path(&format!("tree/etc/skel/{number}")), "").unwrap();
    }
    clone_for_ann(&lab).ok();
    let home = lab.imgtool("fs ls store/instances/web.qcow2 /home/ann");
    assert!(home.lines().any(|name| name == "999"), "{home}");
    fs::write(lab.path("tree/etc/skel/more"), "").unwrap();
    clone_for_ann(&lab).fails(1, &["/etc/skel has more than 1000 files"]);
    assert!(!lab.path("store/instances/web.qcow2").exists());
}

#[test]
fn what_a_clone_changes_is_no_longer_than_a_mib() {
    let lab = Lab::new();
    fs::create_dir_all(lab.path("tree/etc")).unwrap();
    fs::write(lab.path("tree/etc/os-release"), "PRETTY_NAME=Tiny\n").unwrap();
    let line = "old:x:1000:1000:nobody:/home/old:/bin/sh\n";
    let long = line.repeat(MIB as usize / line.len() + 1);
    fs::write(lab.path("tree/etc/passwd"), long).unwrap();
    clone_for_ann(&lab).fails(1, &["/etc/passwd is too long"]);
    assert!(!lab.path("store/instances/web.qcow2").exists());
}

/// A text that is too long to be one cannot be looked into, and so there is no sealing; what goes whatever it says may be of any length.
#[test]
fn what_sealing_reads_is_no_longer_than_16_mib() {
    let lab = Lab::new();
    fs::create_dir_all(lab.path("tree/etc/ssh")).unwrap();
    fs::write(lab.path("tree/etc/os-release"), "PRETTY_NAME=Tiny\n").unwrap();
    hole(&lab, "tree/etc/machine-id", (1 << 40) + 1);
    let seal = |image: &str| {
        let line = format!(
            "ulimit -v 400000; exec {} template seal -q {image}",
            env!("CARGO_BIN_EXE_imgtool")
        );
        lab.run_words(&["sh", "-c", &line])
    };
    for private in ["tree/etc/passwd", "tree/etc/hosts"] {
        hole(&lab, private, (1 << 40) + 1);
        lab.imgtool("mkfs -q --size 64M tree image");
        let before = fs::read(lab.path("image")).unwrap();
        seal("image").fails(
            1,
            &[
                private.strip_prefix("tree").unwrap(),
                "no text of more than 16777216",
            ],
        );
        assert!(fs::read(lab.path("image")).unwrap() == before);
        fs::remove_file(lab.path(private)).unwrap();
    }
    fs::write(lab.path("tree/etc/hosts"), "127.0.1.1 tiny\n".repeat(1_000_000)).unwrap();
    lab.imgtool("mkfs -q --size 64M tree image");
    seal("image").ok();
    let id = lab.imgtool("fs stat image /etc/machine-id");
    assert!(!id.contains(&((1u64 << 40) + 1).to_string()), "{id}");
    assert!(!lab.imgtool("fs cat image /etc/hosts").contains("tiny"));
}
