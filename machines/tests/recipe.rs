//! Templates that are built by recipes: judged by e2fsck, qemu-img, the kernel, and by booting what was built.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use block::{BlockDevice, ErrorKind};
use common::run as run_line;
use machines::export::Form;
use machines::personalise::{Identity, personalise};
use machines::recipe::{BuildOptions, Recipe};
use machines::run::{RunOptions, WaitFor, run};
use machines::store::{Instance, NewInstances, Store, Template};
use machines::{Accel, Machine, Settings};
use ops::{Cancel, Control};

/// Far more than it takes.
const LIMIT: Duration = Duration::from_secs(400);

/// A recipe in a directory, built into a store beside it.
struct Lab {
    directory: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    fn store(&self) -> Store {
        Store::at(self.path("store"))
    }

    fn load(&self, text: &str) -> block::Result<Recipe> {
        Recipe::load(&self.write("recipe.toml", text))
    }

    fn build(&self, text: &str) -> block::Result<Template> {
        let recipe = self.load(text)?;
        self.store()
            .build(&recipe, &BuildOptions::default(), &Control::unwatched())
    }

    /// A shell in the directory; gives what it writes.
    fn shell(&self, script: &str) -> String {
        let script = format!("PATH=$PATH:/usr/sbin:/sbin; {script}");
        let mut command = Command::new("sh");
        let output = command
            .args(["-ec", &script])
            .current_dir(self.directory.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Has others judge an image, and gives what is in it as the kernel sees it.
    fn look(&self, template: &Template) -> String {
        let image = template.image();
        self.shell(&format!(
            "qemu-img check -q {image}; qemu-img convert -O raw {image} root.img; e2fsck -fn root.img >/dev/null 2>&1
             mkdir -p mnt; mount -o loop,ro root.img mnt; trap 'umount mnt' EXIT
             (cd mnt; find . -mindepth 1 ! -name lost+found -printf '%P %m %U:%G %l\n' | sort; cat etc/motd 2>/dev/null || true)",
            image = image.display()
        ))
    }
}

const TREE: &str = "mkdir -p tree/etc tree/usr/bin; echo from the tree >tree/etc/motd; echo x >tree/usr/bin/x; \
                    echo y >tree/usr/bin/y; chmod 4755 tree/usr/bin/x";

#[test]
fn a_directory_an_archive_and_a_container_image_make_the_same_filesystem() {
    let lab = Lab::new();
    lab.shell(TREE);
    lab.shell("tar -C tree -czf tree.tar.gz .; printf '{}' >config");
    // A layout of one layer, by hand.
    lab.shell(
        "mkdir -p layout/blobs/sha256; sum() { sha256sum $1 | cut -d' ' -f1; }
         put() { cp $1 layout/blobs/sha256/$(sum $1); }
         tar -C tree -cf layer .; put layer
         printf '{\"architecture\":\"amd64\",\"os\":\"linux\",\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"sha256:%s\"]}}' $(sum layer) >config; put config
         printf '{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"config\":{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"sha256:%s\",\"size\":%d},\"layers\":[{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar\",\"digest\":\"sha256:%s\",\"size\":%d}]}' \
             $(sum config) $(stat -c %s config) $(sum layer) $(stat -c %s layer) >manifest; put manifest
         printf '{\"schemaVersion\":2,\"manifests\":[{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"digest\":\"sha256:%s\",\"size\":%d}]}' $(sum manifest) $(stat -c %s manifest) >layout/index.json
         printf '{\"imageLayoutVersion\":\"1.0.0\"}' >layout/oci-layout",
    );
    let rest = "exclude = [\"/usr/bin/y\"]\n[disk]\nlabel = \"root\"\nfree = \"10%\"\n\
                [[files]]\npath = \"/opt/new\"\nmode = 0o600\nuid = 7\ncontents = \"new\\n\"\n";
    let mut seen = Vec::new();
    for source in [
        "directory = \"tree\"",
        "tar = \"tree.tar.gz\"",
        "oci = \"oci:layout\"",
    ] {
        let template = lab.build(&format!("[source]\n{source}\n{rest}")).unwrap();
        seen.push(lab.look(&template));
        assert_eq!(lab.shell("e2label root.img"), "root\n");
    }
    for line in ["usr/bin/x 4755 0:0", "opt/new 600 7:0", "from the tree"] {
        assert!(seen[0].contains(line), "{}", seen[0]);
    }
    assert!(!seen[0].contains("usr/bin/y"), "{}", seen[0]);
    assert!(seen[0] == seen[1] && seen[1] == seen[2], "{seen:#?}");
}

const SYSTEM: &str = "mkdir -p tree/etc/sudoers.d tree/etc/ssh tree/lib/systemd/system tree/home; \
    printf 'root:x:0:0:root:/root:/bin/sh\\n' >tree/etc/passwd; printf 'root:x:0:\\nadm:x:4:\\n' >tree/etc/group; \
    printf 'root:*:19700:0:99999:7:::\\n' >tree/etc/shadow; chmod 600 tree/etc/shadow; echo key >tree/etc/ssh/ssh_host_rsa_key; \
    echo 0123456789abcdef0123456789abcdef >tree/etc/machine-id; \
    printf '[Install]\\nWantedBy=multi-user.target\\nAlias=sshd.service\\n' >tree/lib/systemd/system/ssh.service; \
    printf '[Install]\\nWantedBy=getty.target\\nDefaultInstance=tty1\\n' >tree/lib/systemd/system/serial-getty@.service; \
    printf '[Install]\\nWantedBy=timers.target\\n' >tree/lib/systemd/system/old.timer";

#[test]
fn files_are_taken_out_of_other_images() {
    let lab = Lab::new();
    lab.shell(TREE);
    lab.shell(
        "mkdir -p old/etc/ssh old/srv/data; echo key >old/etc/ssh/key; chmod 600 old/etc/ssh/key; chown -R 3:4 old/srv/data
         echo kept >old/srv/data/kept; ln old/srv/data/kept old/srv/data/same; ln -s kept old/srv/data/link
         truncate -s 4M part; mke2fs -q -F -t ext4 -d old part; qemu-img convert -f raw -O qcow2 -c part whole.qcow2
         truncate -s 8M disk; printf 'label: gpt\\nstart=2048,size=2048\\nstart=4096,size=8192,name=data\\n' | sfdisk -q disk
         dd if=part of=disk bs=512 seek=4096 conv=notrunc status=none; qemu-img convert -f raw -O qcow2 disk disk.qcow2
         qemu-img create -q -f qcow2 -b whole.qcow2 -F qcow2 overlay.qcow2",
    );
    let start = "[source]\ndirectory = \"tree\"\n[[files]]\npath = \"/srv/data\"\n";
    let mut seen = Vec::new();
    for image in [
        "whole.qcow2",
        "disk.qcow2",
        "disk.qcow2#2",
        "disk.qcow2#name:data",
        "part",
    ] {
        let rest = format!(
            "[[files]]\npath = \"/root/key\"\nimage = \"{image}\"\nsource = \"/etc/ssh/key\"\nuid = 9\n"
        );
        let template = lab.build(&format!("{start}image = \"{image}\"\n{rest}")).unwrap();
        seen.push(lab.look(&template));
        assert_eq!(
            lab.shell("debugfs -R 'cat /srv/data/same' root.img 2>/dev/null"),
            "kept\n"
        );
        assert_eq!(
            lab.shell("debugfs -R 'stat /srv/data/kept' root.img 2>/dev/null | grep -c 'Links: 2'"),
            "1\n"
        );
    }
    for line in [
        "root/key 600 9:0 ",
        "srv/data 755 3:4 ",
        "srv/data/kept 644 0:0 ",
        "srv/data/link 777 0:0 kept",
    ] {
        assert!(seen[0].lines().any(|found| found == line), "{line}: {}", seen[0]);
    }
    assert!(seen.iter().all(|one| *one == seen[0]), "{seen:#?}");
    for (image, words) in [
        ("none", "none: "),
        ("disk.qcow2#1", "disk.qcow2#1: "),
        ("disk.qcow2#3", "there is no partition 3"),
        ("overlay.qcow2", "overlay.qcow2: "),
        ("tree/etc/motd", "tree/etc/motd: "),
    ] {
        let error = lab.build(&format!("{start}image = \"{image}\"\n")).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.path(), Some(&*lab.path("recipe.toml")), "{image}: {text}");
        assert!(
            text.contains("line 4, column 8: ") && text.contains(words),
            "{image}: {text}"
        );
    }
}

#[test]
fn users_and_services_are_those_of_the_recipe_and_identities_are_gone() {
    let lab = Lab::new();
    lab.shell(SYSTEM);
    lab.shell("mkdir -p tree/etc/systemd/system/timers.target.wants; ln -s /lib/systemd/system/old.timer tree/etc/systemd/system/timers.target.wants/");
    lab.shell("ssh-keygen -q -t ed25519 -N '' -f id; echo unused >tree/etc/motd");
    let key = fs::read_to_string(lab.path("id.pub")).unwrap();
    let recipe = format!(
        "hostname = \"base\"\n[source]\ndirectory = \"tree\"\n\
         [services]\nenable = [\"ssh\", \"serial-getty@ttyS0\"]\ndisable = [\"old.timer\"]\nmask = [\"never\"]\n\
         [[users]]\nname = \"ada\"\nuid = 1500\nshell = \"/bin/sh\"\ngroups = [\"adm\"]\npassword = \"$6$salt$hash\"\n\
         ssh-keys = [\"{}\"]\nsudo = true\n\
         [[users]]\nname = \"bob\"\nssh-key-files = [\"id.pub\"]\n",
        key.trim()
    );
    let template = lab.build(&recipe).unwrap();
    let seen = lab.look(&template);
    for line in [
        "etc/systemd/system/multi-user.target.wants/ssh.service 777 0:0 /lib/systemd/system/ssh.service",
        "etc/systemd/system/sshd.service 777 0:0 /lib/systemd/system/ssh.service",
        "etc/systemd/system/getty.target.wants/serial-getty@ttyS0.service 777 0:0 /lib/systemd/system/serial-getty@.service",
        "etc/systemd/system/never.service 777 0:0 /dev/null",
        "home/ada/.ssh/authorized_keys 600 1500:1500 ",
        "home/bob/.ssh 700 1000:1000 ",
        "etc/sudoers.d/90-ada 440 0:0 ",
        "etc/shadow 600 0:0 ",
    ] {
        assert!(seen.lines().any(|found| found == line), "{line}: {seen}");
    }
    assert!(
        !seen.contains("old.timer 777") && !seen.contains("ssh_host_rsa_key"),
        "{seen}"
    );
    let said = lab.shell(
        "mount -o loop,ro root.img mnt; trap 'umount mnt' EXIT; cd mnt/etc; cat hostname machine-id passwd shadow group; \
         cat ../home/bob/.ssh/authorized_keys; cd ../..",
    );
    let expected = format!(
        "base\nroot:x:0:0:root:/root:/bin/sh\nada:x:1500:1500::/home/ada:/bin/sh\nbob:x:1000:1000::/home/bob:/bin/sh\n\
         root:*:19700:0:99999:7:::\nada:$6$salt$hash:19700:0:99999:7:::\nbob:*:19700:0:99999:7:::\n\
         root:x:0:\nadm:x:4:ada\nada:x:1500:\nbob:x:1000:\n{key}"
    );
    assert_eq!(said, expected);

    // Another template, of that one's disk.
    let image = template.image();
    let resized = format!(
        "[source]\nimage = \"{}\"\n[disk]\nsize = \"1G\"\nlabel = \"x\"\ncompress = true\n",
        image.display()
    );
    let error = lab.build(&resized).unwrap_err();
    assert!(
        error.to_string().contains("[disk] has size, label, which only"),
        "{error}"
    );
    let again = format!(
        "[source]\nimage = \"{}\"\n[[users]]\nname = \"eve\"\n[disk]\ncompress = true\n",
        image.display()
    );
    let derived = lab.build(&again).unwrap();
    assert!(lab.look(&derived).contains("home/eve 700 1001:1001"));
    assert_ne!(derived.fingerprint, template.fingerprint);
    assert!(fs::metadata(derived.image()).unwrap().len() < fs::metadata(image).unwrap().len());
}

#[test]
fn a_file_that_a_container_image_would_lose_is_named_and_not_exported() {
    let lab = Lab::new();
    lab.shell(TREE);
    let export = |form| {
        let template = lab.build("[source]\ndirectory = \"tree\"\n").unwrap();
        let options = raw::OpenOptions::new().write(true).create_new(true);
        let path = lab.path("exported");
        fs::remove_file(&path).ok();
        let to: Arc<dyn block::Storage> = Arc::new(options.open(&path).unwrap());
        template.export(form, &to, &Control::unwatched())
    };
    lab.shell("echo a >tree/usr/x.wh.a");
    export(Form::Oci).unwrap();
    for name in ["usr/bin/.wh.x", ".wh..wh..opq"] {
        lab.shell(&format!("echo a >tree/{name}"));
        let error = export(Form::Oci).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(
            error.to_string().contains(&format!("cannot have /{name}:")),
            "{error}"
        );
        // An archive is no layer.
        export(Form::Tar).unwrap();
        assert!(lab.shell("tar -tf exported").contains(&format!("./{name}\n")));
        lab.shell(&format!("rm tree/{name}"));
    }
}

#[test]
fn a_build_that_fails_leaves_nothing() {
    let lab = Lab::new();
    lab.shell(SYSTEM);
    lab.write(
        "base.toml",
        "[source]\ndirectory = \"tree\"\n[services]\nenable = [\"none\"]\n",
    );
    lab.shell("qemu-img create -q -f qcow2 empty.qcow2 1M; rmdir tree/etc/sudoers.d");
    let tree = "[source]\ndirectory = \"tree\"\n";
    for (text, file, words) in [
        (
            "[source]\ntar = \"none.tar\"\n",
            "recipe.toml",
            &["line 2, column 7: ", "/none.tar: ", "No such file"][..],
        ),
        (
            "[source]\ndirectory = \"none\"\n",
            "recipe.toml",
            &["line 2, column 13: ", "/none: ", "No such file"],
        ),
        (
            "[source]\nimage = \"none.qcow2\"\n",
            "recipe.toml",
            &["line 2, column 9: ", "/none.qcow2: ", "No such file"],
        ),
        (
            "[source]\noci = \"oci:none\"\n",
            "recipe.toml",
            &["line 2, column 7: ", "/none", "No such file"],
        ),
        (
            "[source]\ntar = \"tree\"\n",
            "recipe.toml",
            &[
                "line 2, column 7: ",
                "/tree: the source is a directory, and no archive",
            ],
        ),
        (
            "[source]\ndirectory = \"empty.qcow2\"\n",
            "recipe.toml",
            &[
                "line 2, column 13: ",
                "/empty.qcow2: the source is a file, and no directory",
            ],
        ),
        (
            "[source]\ntar = \"empty.qcow2\"\n",
            "recipe.toml",
            &["line 2, column 7: ", "/empty.qcow2: this is no tar archive"],
        ),
        (
            "[source]\nimage = \"empty.qcow2\"\n",
            "recipe.toml",
            &["line 2, column 9: the disk has no root filesystem"],
        ),
        (
            "[source]\nimage = \"empty.qcow2\"\n[initrd]\n",
            "recipe.toml",
            &["line 2, column 9: files, exclude and an initrd"],
        ),
        (
            &format!("{tree}[services]\ndisable = [\"none\"]\nenable = [\"ssh\", \"none\"]\n"),
            "recipe.toml",
            &["line 5, column 18: ", "no service \"none.service\""],
        ),
        (
            "extends = [\"base.toml\"]\n",
            "base.toml",
            &["line 4, column 11: ", "no service \"none.service\""],
        ),
        (
            &format!("{tree}[[users]]\nname = \"a\"\ngroups = [\"adm\",\n  \"admm\"]\n"),
            "recipe.toml",
            &["line 6, column 3: the system has no group \"admm\""],
        ),
        (
            &format!("{tree}[[users]]\nname = \"a\"\nuid = 4\n"),
            "recipe.toml",
            &["line 5, column 7: the user a is to have the number 4, which is that of adm already"],
        ),
        (
            &format!("{tree}[[users]]\nname = \"root\"\nuid = 4\n"),
            "recipe.toml",
            &["line 5, column 7: the user root is there already, with the number 0"],
        ),
        (
            &format!("{tree}[[users]]\nname = \"a\"\nsudo = true\n"),
            "recipe.toml",
            &["line 5, column 8: a is to use sudo"],
        ),
        (
            &format!("{tree}[initrd]\nmodules = []\n"),
            "recipe.toml",
            &["line 3, column 1: an initrd is for one kernel"],
        ),
        (
            &format!("{tree}[disk]\nsize = \"8M\"\ninodes = 1\n"),
            "recipe.toml",
            &["line 3, column 1: the tree needs", "inodes"],
        ),
        (
            &format!("{tree}[disk]\ninodes = 1\n"),
            "recipe.toml",
            &["line 4, column 10: the tree needs", "inodes"],
        ),
        (
            &format!("{tree}[disk]\nsize = \"1M\"\n[machine.boot]\nkind = \"uefi\"\n"),
            "recipe.toml",
            &["line 4, column 8: a disk of 1048576 bytes"],
        ),
        (
            &format!("{tree}[disk]\nlabel = \"x\"\nsize = \"64k\"\n"),
            "recipe.toml",
            &["line 5, column 8: ", "too small"],
        ),
        (
            &format!("{tree}[disk]\nsize = 100\n"),
            "recipe.toml",
            &["line 4, column 8: cannot make an ext4 filesystem of 512 bytes"],
        ),
        (
            &format!("{tree}[machine]\nboot = {{ kind = \"direct\" }}\n"),
            "recipe.toml",
            &["line 4, column 17: there is no kernel on the disk"],
        ),
        (
            &format!("{tree}[machine.boot]\nkind = \"uefi\"\n"),
            "recipe.toml",
            &["line 4, column 8: ", "no kernel"],
        ),
    ] {
        let error = lab.build(text).unwrap_err();
        let said = error.to_string();
        assert_eq!(error.path(), Some(&*lab.path(file)), "{text}: {error}");
        assert!(words.iter().all(|words| said.contains(words)), "{text}: {error}");
        assert_eq!(
            said.matches("line ").count(),
            usize::from(said.contains("column")),
            "{text}: {error}"
        );
    }
    let cancel = Cancel::new();
    cancel.cancel();
    let recipe = lab.load("[source]\ndirectory = \"tree\"\n").unwrap();
    let stopped = Control::new(cancel, &|_| {});
    let error = lab
        .store()
        .build(&recipe, &BuildOptions::default(), &stopped)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    assert_eq!(
        lab.shell("find store -type f ! -name .lock; find store/.work -mindepth 1"),
        ""
    );
}

#[test]
fn what_is_wrong_in_a_recipe_is_told_with_file_line_and_column() {
    let lab = Lab::new();
    for (text, words) in [
        (
            "[source]\n\nfolder = \"a\"\n",
            "line 3, column 1: unknown field `folder`",
        ),
        ("colour = 1\n", "line 1, column 1: unknown field `colour`"),
        (
            "[source]\ntar = \"a\"\ndirectory = \"b\"\n",
            "one source, and not tar and directory",
        ),
        ("[[users]]\nname = \"A b\"\n", "line 2, column 8: "),
        (
            "[[users]]\nname = \"a\"\npassword = \"secret\"\n",
            "line 3, column 12: ",
        ),
        (
            "[[users]]\nname = \"a\"\nssh-keys = [\"x\"]\n",
            "line 3, column 12: ",
        ),
        ("[disk]\nfree = \"91%\"\n", "line 2, column 8: "),
        ("[disk]\nsize = \"1X\"\n", "line 2, column 8: "),
        (
            "[disk]\nsize = -5\n",
            "line 2, column 8: a size is a number of bytes",
        ),
        (
            "[disk]\nblock-size = 3000\n",
            "line 2, column 14: blocks of 3000 bytes",
        ),
        (
            "[disk]\njournal = \"1K\"\n",
            "line 2, column 11: a journal of 1024 bytes",
        ),
        ("[disk]\nreserved = 51\n", "line 2, column 12: "),
        ("[disk]\nlabel = \"12345678901234567\"\n", "line 2, column 9: "),
        ("[source]\nexclude = [\"[\"]\n", "line 2, column 11: "),
        (
            "[[users]]\nname = \"a\"\nshell = \"sh\"\n",
            "line 3, column 9: \"sh\" is no shell",
        ),
        (
            "[[users]]\nname = \"a\"\nuid = 4294967295\n",
            "line 3, column 7: 4294967295 is no number of a user",
        ),
        (
            "os = \"a\"\nextends = [\"none\"]\n",
            "line 2, column 11: what it extends: ",
        ),
        (
            "extends = [\"recipe.toml\"]\n",
            "line 1, column 11: recipes extend each other",
        ),
        ("[machine]\nmemory = \"1M\"\nram = 2\n", "line 3, column 1: "),
        ("[machine]\ncpus = 0\n", "line 2, column 8: a machine has 1 to"),
        (
            "[machine]\nboot = \"uefi\"\n",
            "line 2, column 8: invalid type: string \"uefi\", expected a table",
        ),
        (
            "[machine]\nmemory = \"1500K\"\n",
            "line 2, column 10: memory comes in whole MiB",
        ),
        (
            "[machine]\nnetwork = { kind = \"bridge\", bridge = \"a b\" }\n",
            "line 2, column 39: \"a b\" cannot be the name of a bridge",
        ),
        (
            "[machine.boot]\nappend = \"\"\"a\nb\"\"\"\n",
            "line 2, column 10: \"a\\nb\" cannot be on a kernel's",
        ),
        ("hostname = \"_\"\n", "line 1, column 12: "),
        (
            "[services]\nmask = [\"a\", \"../../x\"]\n",
            "line 2, column 8: \"../../x\" cannot be the name of a service",
        ),
        ("[services]\nenable = [\"\"]\n", "line 2, column 10: "),
        ("[services]\ndisable = [\"..\"]\n", "line 2, column 11: "),
        (
            "[[files]]\npath = \"/a\"\ntype = \"pipe\"\n",
            "line 3, column 8: there is no type \"pipe\"",
        ),
        ("[source.mmdebstrap]\nsuites = \"x\"\n", "line 2, column 1: "),
        (
            "os = \"a\"\n[source.mmdebstrap]\npackages = []\n",
            "line 2, column 1: [source.mmdebstrap] has no suite",
        ),
        ("os = \"a\"\n", "line 1, column 1: the recipe has no source"),
        (
            "os = \"a\"\n[source]\nexclude = []\n",
            "line 2, column 1: the recipe has no source",
        ),
        (
            "[[users]]\nname = \"a\"\nssh-key-files = [\"none.pub\"]\n",
            "line 3, column 18: ",
        ),
        (
            "[disk]\nblock-size = 4096\njournal = \"2M\"\n",
            "line 1, column 1: a journal of 2097152 bytes",
        ),
        (
            "[source.mmdebstrap]\nsuite = \"book worm\"\n",
            "line 2, column 9: \"book worm\" is no name of a release",
        ),
        (
            "[source.mmdebstrap]\npackages = []\nsuite = \"-x\"\n",
            "line 3, column 9: \"-x\" is no name",
        ),
        (
            "[source.debootstrap]\nsuite = \"../sid\"\n",
            "line 2, column 9: \"../sid\" is no name",
        ),
        (
            "[source.debootstrap]\nsuite = \"\"\n",
            "line 2, column 9: \"\" is no name",
        ),
        (
            "[source.debs]\npackages = [\"a\",\n  \"-o\"]\n",
            "line 3, column 3: \"-o\" is no name of a package",
        ),
        (
            "[source.debs]\nkernel = \"a b\"\n",
            "line 2, column 10: \"a b\" is no name of a package",
        ),
        ("a = ", "line 1, column 5: "),
    ] {
        let error = lab.load(text).unwrap_err();
        assert!(error.to_string().contains(words), "{text}: {error}");
        assert_eq!(error.path(), Some(&*lab.path("recipe.toml")), "{text}");
    }
}

#[test]
fn what_extends_another_says_more_and_the_later_wins() {
    let lab = Lab::new();
    lab.write("base.toml", "os = \"Base\"\nnotes = \"kept\"\n[source.mmdebstrap]\nsuite = \"a\"\npackages = [\"one\"]\n[machine]\ncpus = 1\nmemory = \"1G\"\n[services]\nenable = [\"x\", \"y\"]\n[disk]\nsize = \"4G\"\n[[users]]\nname = \"u\"\nuid = 5\n");
    let text = "extends = [\"base.toml\"]\nos = \"Own\"\n[source.mmdebstrap]\npackages = [\"two\", \"one\"]\n[machine]\ncpus = 4\n\
                [services]\ndisable = [\"x\"]\n[disk]\nfree = \"50%\"\n[[users]]\nname = \"u\"\nshell = \"/bin/s\"\n";
    let recipe = lab.load(text).unwrap();
    assert_eq!(
        (recipe.os.as_deref(), recipe.notes.as_deref()),
        (Some("Own"), Some("kept"))
    );
    assert_eq!(recipe.packages(), ["one", "two"]);
    assert_eq!(
        (recipe.machine.cpus, recipe.machine.memory),
        (Some(4), Some(1 << 30))
    );
    let [enabled] = &*recipe.services.enable else {
        panic!("{:?}", recipe.services)
    };
    let [disabled] = &*recipe.services.disable else {
        panic!("{:?}", recipe.services)
    };
    assert_eq!((enabled.as_str(), disabled.as_str()), ("y", "x"));
    assert!(recipe.disk.size.is_none() && recipe.disk.free.is_some());
    let [user] = recipe.users.as_slice() else {
        panic!("{:?}", recipe.users)
    };
    assert_eq!((user.uid, user.shell.as_deref()), (Some(5), Some("/bin/s")));
    // One that comes with the program.
    let tiny = lab.load("extends = [\"tiny\"]\n[machine]\ncpus = 2\n").unwrap();
    assert_eq!(
        (tiny.machine.cpus, tiny.machine.memory),
        (Some(2), Some(256 << 20))
    );

    lab.write("a.toml", "extends = [\"b.toml\"]\n");
    lab.write("b.toml", "extends = [\"./a.toml\"]\n");
    let error = Recipe::load(&lab.path("a.toml")).unwrap_err();
    assert!(error.to_string().contains("extend each other"), "{error}");
    let twice = |name: &str| format!("extends = [\"{name}\", \"{name}\"]\n");
    for level in 1..12 {
        lab.write(&format!("{level}.toml"), &twice(&format!("{}.toml", level + 1)));
    }
    lab.write("12.toml", "");
    let error = lab.load(&twice("1.toml")).unwrap_err();
    assert!(error.to_string().contains("more than 256 recipes"), "{error}");
    let error = lab.load("extends = [\"none\"]\n").unwrap_err();
    assert!(error.hint().unwrap().contains("tiny"), "{error:?}");
}

#[test]
fn the_examples_of_the_documentation_are_recipes() {
    let text = include_str!("../../docs/recipes.md");
    let examples = text.split("```toml\n").skip(1);
    let examples: Vec<&str> = examples.map(|text| text.split("```").next().unwrap()).collect();
    assert_eq!(examples.len(), 3);
    let recipe = Lab::new().load(examples[0]).unwrap();
    assert_eq!(recipe.packages().last().map(String::as_str), Some("nginx"));
    assert_eq!((recipe.files.len(), recipe.users.len()), (2, 1));

    // Of an archive as Alpine's minirootfs is: one busybox, to which all else is a link, and no kernel.
    let lab = Lab::new();
    lab.shell(
        "mkdir -p root/bin root/etc root/sbin root/dev root/proc root/sys root/run root/tmp root/var/empty; chmod 1777 root/tmp
         chmod 555 root/proc root/sys root/var/empty; cp /bin/busybox root/bin; ln -s /bin/busybox root/bin/sh
         ln -s /bin/busybox root/sbin/init; echo 3.22.0 >root/etc/alpine-release; echo 'root:x:0:0:root:/root:/bin/sh' >root/etc/passwd
         printf 'NAME=\"Alpine Linux\"\\nID=alpine\\nPRETTY_NAME=\"Alpine Linux v3.22\"\\n' >root/etc/os-release
         tar --owner=0 --group=0 --numeric-owner -C root -czf alpine-minirootfs.tar.gz .",
    );
    let files = lab.load(&format!("[source]\ndirectory = \"root\"\n{}", examples[2]));
    assert_eq!(files.unwrap().files.len(), 1);
    let template = lab.build(examples[1]).unwrap();
    assert_eq!(template.document.os.as_deref(), Some("Alpine Linux v3.22"));
    assert!(template.kernel().is_none());
    let seen = lab.look(&template);
    for line in [
        "bin/busybox 755 0:0 ",
        "sbin/init 777 0:0 /bin/busybox",
        "tmp 1777 0:0 ",
        "var/empty 555 0:0 ",
        "etc/network/interfaces 644 0:0 ",
    ] {
        assert!(seen.lines().any(|found| found == line), "{line}: {seen}");
    }
    assert_eq!(
        lab.shell("debugfs -R 'cat /etc/hostname' root.img 2>/dev/null"),
        "alpine\n"
    );
}

/// The tiny system, of the kernel that `scripts/setup.sh test` fetches and this host's busybox.
fn tiny(lab: &Lab, name: &str) -> Template {
    let kernel = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest-kernel");
    let recipe = lab.load(&format!(
        "extends = [\"{name}\"]\n[source]\ndirectory = \"{}\"\n\
         [[files]]\npath = \"/bin/busybox\"\nsource = \"/bin/busybox\"\nmode = 0o755\n",
        kernel.display()
    ));
    let options = BuildOptions::default();
    let recipe = recipe.unwrap_or_else(|error| panic!("{error}"));
    lab.store()
        .build(&recipe, &options, &Control::unwatched())
        .unwrap()
}

/// Clones that are machines of their own.
fn clones(store: &Store, template: &Template, names: &[&str]) -> Vec<Instance> {
    let new = NewInstances {
        names: names.iter().map(|name| name.parse().unwrap()).collect(),
        ..NewInstances::default()
    };
    let own = |instance: &Instance, disk: &Arc<dyn BlockDevice>| {
        personalise(disk, &Identity::new(instance.name.as_str())?, true)
    };
    store
        .clone_template(template, &new, &own, &Control::unwatched())
        .unwrap()
}

/// Runs a machine until it says that it is ready, and then has turned itself off, as its power button was pressed; gives its
/// machine-id.
fn boot(machine: &Machine) -> String {
    let options = RunOptions {
        accel: Accel::Tcg,
        ephemeral: None,
        wait_for: Some(WaitFor::new("^imgtool: .* ready", LIMIT, LIMIT).unwrap()),
    };
    let mut said = Vec::new();
    let result = run(machine, &options, &mut said, &Cancel::new());
    let said = String::from_utf8_lossy(&said);
    result.unwrap_or_else(|error| panic!("{error}: {said}"));
    let line = said
        .lines()
        .find_map(|line| line.trim_end().strip_prefix("imgtool: "));
    let words: Vec<&str> = line.unwrap().split(' ').collect();
    assert_eq!((words[0], words[2]), (&*machine.name, "ready"), "{said}");
    words[1].to_owned()
}

#[test]
fn clones_of_the_tiny_system_boot_as_themselves_and_turn_off_by_their_button() {
    let lab = Lab::new();
    let template = tiny(&lab, "tiny");
    assert_eq!(template.document.os.as_deref(), Some("Tiny busybox system"));
    lab.look(&template);
    let store = lab.store();
    let mut ids = Vec::new();
    for instance in clones(&store, &template, &["one", "two"]) {
        let machine = store
            .machine(&instance, Settings::default(), &Control::unwatched())
            .unwrap();
        ids.push(boot(&machine));
        run_line(
            lab.directory.path(),
            &format!("qemu-img check -q {}", instance.image().display()),
        );
    }
    assert!(ids[0] != ids[1] && ids.iter().all(|id| id.len() == 32), "{ids:?}");
}

#[test]
fn the_tiny_system_boots_from_its_own_disk_by_firmware() {
    let lab = Lab::new();
    let template = tiny(&lab, "tiny-uefi");
    assert!(template.kernel().is_none());
    let store = lab.store();
    let instances = clones(&store, &template, &["uefi"]);
    let machine = store
        .machine(&instances[0], Settings::default(), &Control::unwatched())
        .unwrap();
    boot(&machine);
}

#[test]
fn what_this_hosts_programs_do_not_do_is_told() {
    let lab = Lab::new();
    let recipe = lab
        .load("[source.debs]\npackages = [\"no-such-package-at-all\"]\n")
        .unwrap();
    let error = lab
        .store()
        .build(&recipe, &BuildOptions::default(), &Control::unwatched())
        .unwrap_err();
    assert!(error.to_string().contains("no-such-package-at-all"), "{error}");
    assert!(
        error.to_string().contains("recipe.toml: line 2, column 13: "),
        "{error}"
    );
    let error = lab
        .build("[source.debs]\npackages = []\nkernel = \"no-such-kernel\"\n")
        .unwrap_err();
    assert!(
        error.to_string().contains("recipe.toml: line 3, column 10: "),
        "{error}"
    );
    let nowhere = lab.path("nowhere");
    let error = lab
        .build(&format!(
            "[source.mmdebstrap]\nsuite = \"none\"\nmirror = [\"copy://{}\"]\n",
            nowhere.display()
        ))
        .unwrap_err();
    assert!(error.to_string().contains("mmdebstrap failed"), "{error}");
    assert_eq!(lab.shell("find store/.work -mindepth 1"), "");
}
