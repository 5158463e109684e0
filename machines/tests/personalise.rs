//! Clones that are machines of their own, with e2fsck, debugfs and the kernel as judges of what was changed on their disks.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use block::chain::Chain;
use block::gate::Permissive;
use block::{Access, BlockDevice};
use machines::personalise::{AuthorizedKeys, Identity, grow, personalise};
use machines::store::{Instance, NewInstances, NewTemplate, Store, Template};
use ops::Control;
use raw::HostOpener;
use tempfile::TempDir;

struct Lab {
    directory: TempDir,
    store: Store,
}

impl Lab {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::at(directory.path().join("store"));
        Self { directory, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A root filesystem with all that is personal in it, somebody else's.
    fn tree(&self) -> PathBuf {
        let tree = self.path("tree");
        for directory in [
            "etc/ssh",
            "etc/systemd/network",
            "var/lib/dbus",
            "var/lib/systemd",
            "root",
            "bin",
            "home",
        ] {
            fs::create_dir_all(tree.join(directory)).unwrap();
        }
        for (name, text, mode) in [
            ("etc/hostname", "template\n", 0o644),
            ("etc/hosts", "127.0.0.1 localhost\n127.0.1.1 template\n", 0o644),
            ("etc/machine-id", "11111111111111111111111111111111\n", 0o444),
            (
                "var/lib/dbus/machine-id",
                "11111111111111111111111111111111\n",
                0o444,
            ),
            ("etc/ssh/ssh_host_rsa_key", "somebody's key", 0o600),
            ("etc/ssh/ssh_host_rsa_key-cert.pub", "of that key", 0o644),
            ("var/lib/systemd/random-seed", "a seed", 0o600),
            ("etc/ssh/ssh_host_ed25519_key", "somebody's key", 0o600),
            ("etc/ssh/sshd_config", "# as it is\n", 0o644),
            (
                "etc/passwd",
                "root:x:0:0:root:/root:/bin/sh\nold:x:1000:1000::/home/old:/bin/sh\n",
                0o644,
            ),
            ("etc/group", "root:x:0:\nold:x:1000:\n", 0o644),
            (
                "etc/shadow",
                "root:*:19000:0:99999:7:::\nold:*:19000:0:99999:7:::\n",
                0o640,
            ),
            ("bin/sh", "a shell", 0o755),
        ] {
            fs::write(tree.join(name), text).unwrap();
            fs::set_permissions(tree.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        tree
    }

    /// A template of a tree, made by mke2fs.
    fn template(&self, tree: &Path, options: &[&str]) -> Template {
        let image = self.path("image");
        let shown = image.to_str().unwrap();
        let mut words = vec!["mke2fs", "-q", "-F", "-t", "ext4", "-d", tree.to_str().unwrap()];
        words.extend(options);
        words.extend([shown, "64M"]);
        run(&words);
        self.import(&image)
    }

    fn import(&self, image: &Path) -> Template {
        let formats: [&dyn block::Format; 2] = [&qcow2::Qcow2, &raw::Raw];
        let gate = Permissive::default();
        let chain = Chain::open(
            &HostOpener::new(),
            &formats,
            &gate,
            image,
            Some("raw"),
            Access::READ,
        )
        .unwrap();
        self.store
            .import(&chain, &NewTemplate::default(), &Control::unwatched())
            .unwrap()
    }

    /// A clone whose disk is changed.
    fn clone(&self, template: &Template, name: &str, identity: &Identity) -> block::Result<Instance> {
        self.clone_of(template, name, None, &|disk| personalise(disk, identity, true))
    }

    fn clone_of(
        &self,
        template: &Template,
        name: &str,
        size: Option<u64>,
        change: &(dyn Fn(&Arc<dyn BlockDevice>) -> block::Result<()> + Sync),
    ) -> block::Result<Instance> {
        let new = NewInstances {
            names: vec![name.parse().unwrap()],
            size,
            ..NewInstances::default()
        };
        let own = |_: &Instance, disk: &Arc<dyn BlockDevice>| change(disk);
        let mut made = self
            .store
            .clone_template(template, &new, &own, &Control::unwatched())?;
        Ok(made.remove(0))
    }

    /// Mounts the disk of a machine, after e2fsck found nothing wrong with it.
    fn mounted(&self, instance: &Instance, look: impl FnOnce(&Path)) {
        let (raw, at) = (self.path("raw"), self.path("mounted"));
        let (raw, shown) = (raw.to_str().unwrap(), at.to_str().unwrap());
        run(&["qemu-img", "check", "-q", instance.image().to_str().unwrap()]);
        run(&[
            "qemu-img",
            "convert",
            "-O",
            "raw",
            instance.image().to_str().unwrap(),
            raw,
        ]);
        let checked = run(&["e2fsck", "-fn", raw]);
        assert_eq!(checked.lines().count(), 6, "{checked}");
        fs::create_dir_all(&at).unwrap();
        run(&["mount", "-o", "loop", raw, shown]);
        let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| look(&at)));
        // A program that another thread is starting has this one's open files for a moment, and keeps the mount busy.
        let again =
            "for n in $(seq 100); do umount \"$0\" 2>/dev/null && exit; sleep 0.05; done; umount \"$0\"";
        run(&["sh", "-c", again, shown]);
        if let Err(panic) = looked {
            std::panic::resume_unwind(panic);
        }
    }
}

fn run(words: &[&str]) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let output = Command::new(words[0])
        .args(&words[1..])
        .env("PATH", path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn key() -> AuthorizedKeys {
    // A public key of nobody.
    AuthorizedKeys::parse(
        &machines::personalise::HostKey::generate()
            .unwrap()
            .public_line("me"),
    )
    .unwrap()
}

#[test]
fn a_clone_has_names_ids_and_keys_of_its_own() {
    let lab = Lab::new();
    let template = lab.template(&lab.tree(), &[]);
    let before = fs::read(template.image()).unwrap();
    let mut ids = Vec::new();
    for name in ["web-1", "web-2"] {
        let identity = Identity::new(name).unwrap();
        let instance = lab.clone(&template, name, &identity).unwrap();
        lab.mounted(&instance, |root| {
            let read = |name: &str| fs::read_to_string(root.join(name)).unwrap();
            assert_eq!(read("etc/hostname"), format!("{name}\n"));
            assert_eq!(
                read("etc/hosts"),
                format!("127.0.0.1 localhost\n127.0.1.1\t{name}\n")
            );
            let id = read("etc/machine-id");
            assert_eq!((id.len(), &id), (33, &read("var/lib/dbus/machine-id")));
            assert_eq!(
                fs::metadata(root.join("etc/machine-id")).unwrap().mode() & 0o777,
                0o444
            );
            for gone in [
                "etc/ssh/ssh_host_rsa_key",
                "etc/ssh/ssh_host_rsa_key-cert.pub",
                "var/lib/systemd/random-seed",
            ] {
                assert!(!root.join(gone).exists(), "{gone}");
            }
            let private = root.join("etc/ssh/ssh_host_ed25519_key");
            assert_eq!(fs::metadata(&private).unwrap().mode() & 0o777, 0o600);
            let public = run(&["ssh-keygen", "-y", "-f", private.to_str().unwrap()]);
            assert_eq!(public, read("etc/ssh/ssh_host_ed25519_key.pub"));
            assert_eq!(read("etc/ssh/sshd_config"), "# as it is\n");
            ids.push((id, public));
        });
    }
    assert_ne!(ids[0].0, ids[1].0);
    assert_ne!(ids[0].1, ids[1].1);
    assert!(
        fs::read(template.image()).unwrap() == before,
        "the template has changed"
    );
}

#[test]
fn who_may_log_in_is_made_with_a_home_and_keys() {
    let lab = Lab::new();
    let tree = lab.tree();
    for directory in ["etc/sudoers.d", "etc/skel/.config/app"] {
        fs::create_dir_all(tree.join(directory)).unwrap();
    }
    fs::write(tree.join("etc/skel/.profile"), "# profile\n").unwrap();
    fs::write(tree.join("etc/skel/.config/app/rc"), "rc\n").unwrap();
    symlink(".profile", tree.join("etc/skel/link")).unwrap();
    fs::write(tree.join("etc/group"), "root:x:0:\nold:x:1000:\nsudo:x:27:\n").unwrap();
    fs::write(tree.join("etc/gshadow"), "root:*::\nold:!::\nsudo:*::\n").unwrap();
    fs::set_permissions(tree.join("etc/gshadow"), fs::Permissions::from_mode(0o640)).unwrap();
    let template = lab.template(&tree, &[]);
    for (user, home, id) in [
        ("root", "root", 0),
        ("old", "home/old", 1000),
        ("new", "home/new", 1001),
    ] {
        let mut identity = Identity::new("web").unwrap();
        identity.login = Some((user.to_owned(), key()));
        let instance = lab.clone(&template, user, &identity).unwrap();
        lab.mounted(&instance, |root| {
            let keys = root.join(home).join(".ssh/authorized_keys");
            assert!(fs::read_to_string(&keys).unwrap().starts_with("ssh-ed25519 AAAA"));
            for (path, mode) in [(keys.as_path(), 0o600), (keys.parent().unwrap(), 0o700)] {
                let file = fs::metadata(path).unwrap();
                assert_eq!((file.uid(), file.gid(), file.mode() & 0o777), (id, id, mode));
            }
            // Who is made has what new users have, and may do everything; others stay as they are.
            let is_made = user == "new";
            let rule = root.join("etc/sudoers.d").join(format!("90-{user}"));
            assert_eq!(rule.exists(), is_made, "{user}");
            for path in ["etc/group", "etc/gshadow"] {
                let groups = fs::read_to_string(root.join(path)).unwrap();
                let line = groups.lines().find(|line| line.starts_with("sudo:")).unwrap();
                assert_eq!(line.ends_with(":new"), is_made, "{path}: {line}");
            }
            if is_made {
                assert_eq!(
                    fs::read_to_string(&rule).unwrap(),
                    "new ALL=(ALL:ALL) NOPASSWD: ALL\n"
                );
                assert_eq!(fs::metadata(&rule).unwrap().mode() & 0o777, 0o440);
                let home = root.join(home);
                assert_eq!(fs::read_to_string(home.join(".profile")).unwrap(), "# profile\n");
                let deep = fs::metadata(home.join(".config/app/rc")).unwrap();
                assert_eq!((deep.uid(), deep.gid(), deep.mode() & 0o777), (id, id, 0o644));
                assert_eq!(fs::read_link(home.join("link")).unwrap(), Path::new(".profile"));
            }
            // The programs that read these files are the judges of them.
            let chroot = root.to_str().unwrap();
            run(&["pwck", "-q", "-r", "-R", chroot]);
            run(&["grpck", "-r", "-R", chroot]);
        });
    }
    let mut identity = Identity::new("web").unwrap();
    identity.login = Some(("no name".to_owned(), key()));
    let error = lab.clone(&template, "wrong", &identity).unwrap_err();
    assert!(
        error.to_string().contains("cannot be the name of a user"),
        "{error}"
    );
    assert!(lab.store.instance("wrong").is_err());
}

#[test]
fn who_is_made_has_the_group_of_the_same_name_that_is_there() {
    let lab = Lab::new();
    let tree = lab.tree();
    let groups = "root:x:0:\nold:x:1000:\ngames:x:60:\nada:x:1007:\n";
    fs::write(tree.join("etc/group"), groups).unwrap();
    // One of the two has a line there.
    fs::write(tree.join("etc/gshadow"), "root:*::\nold:!::\ngames:*::\n").unwrap();
    let template = lab.template(&tree, &[]);
    for (user, uid, gid) in [("ada", 1007, 1007), ("games", 1001, 60)] {
        let mut identity = Identity::new("web").unwrap();
        identity.login = Some((user.to_owned(), key()));
        let instance = lab.clone(&template, user, &identity).unwrap();
        lab.mounted(&instance, |root| {
            assert_eq!(fs::read_to_string(root.join("etc/group")).unwrap(), groups);
            let users = fs::read_to_string(root.join("etc/passwd")).unwrap();
            let line = format!("{user}:x:{uid}:{gid}:");
            assert!(users.lines().any(|found| found.starts_with(&line)), "{users}");
            let shadow = fs::read_to_string(root.join("etc/gshadow")).unwrap();
            let lines = shadow
                .lines()
                .filter(|line| line.starts_with(&format!("{user}:")));
            assert_eq!(lines.count(), 1, "{shadow}");
            let keys = fs::metadata(root.join("home").join(user).join(".ssh/authorized_keys")).unwrap();
            assert_eq!((keys.uid(), keys.gid()), (uid, gid));
            run(&["pwck", "-q", "-r", "-R", root.to_str().unwrap()]);
            if user == "ada" {
                run(&["grpck", "-r", "-R", root.to_str().unwrap()]);
            }
        });
    }
}

#[test]
fn links_and_what_is_missing_are_treated_as_the_guest_would() {
    let lab = Lab::new();
    let tree = lab.tree();
    for name in [
        "etc/hosts",
        "etc/machine-id",
        "var/lib/dbus/machine-id",
        "etc/hostname",
    ] {
        fs::remove_file(tree.join(name)).unwrap();
    }
    fs::remove_dir_all(tree.join("etc/ssh")).unwrap();
    symlink("/etc/machine-id", tree.join("var/lib/dbus/machine-id")).unwrap();
    symlink("../nowhere/hostname", tree.join("etc/hostname")).unwrap();
    let template = lab.template(&tree, &["-O", "^has_journal", "-b", "1024"]);
    let mut identity = Identity::new("web").unwrap();
    identity.network = Some(([2, 0, 0, 0, 0, 1], "10.0.0.5/24,gw=10.0.0.1".parse().unwrap()));
    let instance = lab.clone(&template, "web", &identity).unwrap();
    lab.mounted(&instance, |root| {
        assert_eq!(fs::read_to_string(root.join("etc/hostname")).unwrap(), "web\n");
        assert!(
            fs::read_to_string(root.join("etc/hosts"))
                .unwrap()
                .contains("127.0.1.1\tweb")
        );
        assert!(
            fs::symlink_metadata(root.join("var/lib/dbus/machine-id"))
                .unwrap()
                .is_symlink()
        );
        assert!(!root.join("etc/ssh").exists());
        let network = fs::read_to_string(root.join("etc/systemd/network/10-imgtool.network")).unwrap();
        assert!(network.contains("MACAddress=02:00:00:00:00:01") && network.contains("Gateway=10.0.0.1"));
    });
}

#[test]
fn a_disk_of_no_system_is_refused_and_nothing_is_left() {
    let lab = Lab::new();
    let tree = lab.path("tree");
    fs::create_dir_all(tree.join("data")).unwrap();
    let template = lab.template(&tree, &[]);
    let identity = Identity::new("web").unwrap();
    let error = lab.clone(&template, "web", &identity).unwrap_err();
    assert!(error.to_string().contains("no /etc"), "{error}");
    assert!(error.hint().unwrap().contains("--as-is"), "{error}");
    assert!(lab.store.instances().unwrap().found.is_empty());
}

#[test]
fn a_longer_disk_has_a_larger_root() {
    let lab = Lab::new();
    let template = lab.template(&lab.tree(), &[]);
    let identity = Identity::new("web").unwrap();
    let both =
        |disk: &Arc<dyn BlockDevice>| grow(disk, true).and_then(|()| personalise(disk, &identity, true));
    let instance = lab.clone_of(&template, "web", Some(4 << 30), &both).unwrap();
    // Of the 4 GiB, next to nothing is written.
    assert!(
        instance.allocated().unwrap() < 4 << 20,
        "{:?}",
        instance.allocated()
    );
    lab.mounted(&instance, |root| {
        let blocks = run(&["stat", "-f", "-c", "%b %S", root.to_str().unwrap()]);
        let numbers: Vec<u64> = blocks
            .split_whitespace()
            .map(|word| word.parse().unwrap())
            .collect();
        assert!(numbers[0] * numbers[1] > (4 << 30) / 100 * 90, "{blocks}");
        fs::write(root.join("filled"), vec![1; 100 << 20]).unwrap();
    });
    let most = lab.clone_of(&template, "most", Some(1 << 50), &both).unwrap_err();
    assert!(most.to_string().contains("can grow to"), "{most}");
}

#[test]
fn a_root_partition_grows_with_its_disk_where_it_lies_last() {
    let lab = Lab::new();
    for (name, partitions) in [
        ("last", &["1:1M:+8M", "2:9M:+64M"][..]),
        ("first", &["1:1M:+64M", "2:65M:+8M"]),
    ] {
        let (disk, part) = (lab.path("disk"), lab.path("part"));
        let (shown, part) = (disk.to_str().unwrap(), part.to_str().unwrap());
        let _ = fs::remove_file(&disk);
        run(&["truncate", "-s", "80M", shown]);
        let mut words = vec!["sgdisk"];
        words.extend(partitions.iter().flat_map(|new| ["-n", new]));
        words.push(shown);
        run(&words);
        let start = if name == "last" { 9 } else { 1 };
        run(&[
            "mke2fs",
            "-q",
            "-F",
            "-t",
            "ext4",
            "-d",
            lab.tree().to_str().unwrap(),
            part,
            "64M",
        ]);
        let seek = format!("seek={start}M");
        let (from, to) = (format!("if={part}"), format!("of={shown}"));
        run(&[
            "dd",
            "status=none",
            "bs=1M",
            "oflag=seek_bytes",
            "conv=notrunc",
            &seek,
            &from,
            &to,
        ]);
        let template = lab.import(&disk);
        let made = lab.clone_of(&template, name, Some(1 << 30), &|disk| grow(disk, true));
        if name == "first" {
            let error = made.unwrap_err();
            assert!(
                error.to_string().contains("another partition behind it"),
                "{error}"
            );
            continue;
        }
        let instance = made.unwrap();
        run(&[
            "qemu-img",
            "convert",
            "-O",
            "raw",
            instance.image().to_str().unwrap(),
            shown,
        ]);
        let checked = run(&["sgdisk", "-v", shown]);
        assert!(checked.contains("No problems found"), "{checked}");
        run(&[
            "dd",
            "status=none",
            "bs=1M",
            "skip=9",
            &to.replace("of=", "if="),
            &format!("of={part}"),
        ]);
        let checked = run(&["e2fsck", "-fn", part]);
        assert_eq!(checked.lines().count(), 6, "{checked}");
        let size = run(&["dumpe2fs", "-h", part]);
        let blocks = size
            .lines()
            .find_map(|line| line.strip_prefix("Block count:"))
            .unwrap();
        assert!(
            blocks.trim().parse::<u64>().unwrap() * 4096 > 950 << 20,
            "{blocks}"
        );
    }
}
