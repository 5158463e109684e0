//! Sealed disks and templates made of machines: nothing that was taken away is found in them any more, by any means.

mod fat;
mod links;
mod lint;
mod swap;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use block::chain::Chain;
use block::gate::Permissive;
use block::{Access, BlockDevice, ErrorKind};
use machines::Root;
use machines::seal::{OPERATIONS, Selection, lint, named, not_looked_into, seal};
use machines::store::{Instance, Leftovers, NewInstances, NewTemplate, Store};
use ops::Control;
use raw::HostOpener;
use regex::bytes::Regex;
use tempfile::TempDir;

/// What a guest has that a template must not: each holds a secret of its own.
const PRIVATE: [&str; 83] = [
    "etc/machine-id",
    "var/lib/dbus/machine-id",
    "etc/ssh/ssh_host_rsa_key",
    "etc/ssh/ssh_host_rsa_key.pub",
    "root/.ssh/authorized_keys",
    "home/ann/.ssh/known_hosts.old",
    "home/ann/.ssh/id_ed25519",
    "root/.bash_history",
    "home/ann/.python_history",
    "srv/data/.lesshst",
    "root/.viminfo",
    "var/log/syslog",
    "var/log/app/app.log.1",
    "var/log/journal/0123/system.journal",
    "var/log/wtmp",
    "var/lib/dhcp/dhclient.eth0.leases",
    "var/lib/NetworkManager/secret_key",
    "etc/udev/rules.d/70-persistent-net.rules",
    "var/lib/systemd/random-seed",
    "var/lib/systemd/credential.secret",
    "etc/krb5.keytab",
    "etc/hostid",
    "var/cache/apt/archives/a.deb",
    "var/lib/apt/lists/partial/list",
    "var/cache/apk/a.apk",
    "var/lib/cloud/instance/user-data.txt",
    "etc/netplan/50-cloud-init.yaml",
    "tmp/deep/down/file",
    "var/tmp/file",
    "var/spool/mail/ann",
    "var/spool/cron/crontabs/ann",
    "var/crash/core",
    "etc/shadow-",
    "etc/passwd-",
    "etc/hostname",
    "etc/passwd~",
    "etc/shadow.bak",
    "var/backups/shadow.bak",
    "var/cache/debconf/passwords.dat",
    "root/anaconda-ks.cfg",
    "var/lib/sss/db/cache_example.ldb",
    "var/lib/samba/private/secrets.tdb",
    "etc/ipa/default.conf",
    "etc/pki/consumer/key.pem",
    "etc/sysconfig/rhn/systemid",
    "var/lib/ubuntu-advantage/private/machine-token.json",
    "var/lib/yum/uuid",
    "etc/puppetlabs/puppet/ssl/private_keys/web.pem",
    "var/lib/tailscale/tailscaled.state",
    "var/lib/bluetooth/00/info",
    "etc/docker/key.json",
    "root/.bash_history-00123.tmp",
    "home/ann/.zsh_sessions/1.history",
    "home/ann/.local/share/recently-used.xbel",
    "home/ann/.viminfo.tmp",
    "home/ann/.local/share/mc/history",
    "home/ann/.Xauthority",
    "home/ann/.notes.swp",
    "root/.ansible/tmp/ansible-1/x.py",
    "var/lib/dhcpd/dhcpd.leases",
    "var/db/dhcpcd/eth0.lease",
    "var/account/pacct",
    "var/spool/cups/d00001-001",
    "var/lib/plocate/plocate.db",
    "run/user/1000/token",
    "etc/lvm/devices/system.devices",
    "etc/wireguard/wg0.conf",
    "etc/ppp/chap-secrets",
    "etc/munge/munge.key",
    "etc/corosync/authkey",
    "etc/apt/auth.conf.d/internal.conf",
    "etc/samba/smbpasswd",
    "var/kerberos/krb5kdc/principal",
    "home/ann/.gnupg/private-keys-v1.d/A.key",
    "home/ann/.local/share/keyrings/login.keyring",
    "home/ann/.vault-token",
    "home/ann/.cargo/credentials.toml",
    "home/ann/.config/containers/auth.json",
    "etc/credstore/database.password",
    "var/lib/snapd/device/private-keys-v1/key",
    "var/lib/tor/web/hs_ed25519_secret_key",
    "home/ann/.config/rclone/rclone.conf",
    "home/ann/.subversion/auth/svn.simple/x",
];

struct Lab {
    directory: TempDir,
    store: Store,
}

fn run(words: &[&str]) -> String {
    let mut command = Command::new(words[0]);
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let output = command.args(&words[1..]).env("PATH", path).output();
    let output = output.unwrap_or_else(|error| panic!("{words:?}: {error}"));
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn secret(path: &str) -> String {
    format!("<secret of {path}>")
}

impl Lab {
    /// With a raw image `disk.raw` of a root filesystem with all that is private in it, of which a kernel has deleted more.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::at(directory.path().join("store"));
        let lab = Self { directory, store };
        let tree = lab.path("tree");
        for path in PRIVATE {
            lab.write(path, &secret(path).repeat(300));
        }
        for (path, text) in [
            ("etc/os-release", "PRETTY_NAME='Tiny 1'\n"),
            (
                "etc/passwd",
                "root:x:0:0::/root:/bin/sh\ndata:x:999:999::/srv/data:/bin/sh\n",
            ),
            (
                "etc/shadow",
                "root:$6$<secret of a password>:1::::::\ndata:*:1::::::\n",
            ),
            ("etc/hosts", "127.0.0.1 localhost\n127.0.1.1 <secret-name>\n"),
            ("etc/ssh/sshd_config", "kept\n"),
            (
                "etc/iscsi/initiatorname.iscsi",
                "InitiatorName=iqn.1994-05.com.redhat:<secret of iscsi>\n",
            ),
            (
                "etc/wpa_supplicant/wpa_supplicant-wlan0.conf",
                "network={\n\tpsk=\"<secret of wifi>\"\n}\n",
            ),
            ("etc/systemd/network/kept.netdev", "[NetDev]\nKind=bridge\n"),
            ("var/lib/apt/lists/lock", ""),
            ("var/log/README", "kept\n"),
            ("boot/vmlinuz-6.1.0-9", "the kernel of the template"),
            ("boot/initrd.img-6.1.0-9", "its initrd"),
            ("home/ann/work", "kept\n"),
        ] {
            lab.write(path, text);
        }
        let disk = lab.path("disk.raw");
        let (tree, shown) = (tree.to_str().unwrap(), disk.to_str().unwrap());
        run(&["mke2fs", "-q", "-t", "ext4", "-d", tree, shown, "64M"]);
        lab.mounted(
            "yes '<secret of a deleted file>' | head -c 3M >deleted; ln -s \"<secret of a link>$(printf %300s)\" link; \
             sync; rm deleted link; sync; fallocate -l 4M home/ann/reserved",
        );
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path("tree").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Runs a script in `disk.raw`, which the kernel has mounted.
    fn mounted(&self, script: &str) -> String {
        let point = self.text("mnt");
        fs::create_dir_all(&point).unwrap();
        run(&["mount", "-o", "loop", &self.text("disk.raw"), &point]);
        let done = Command::new("bash")
            .args(["-ec", script])
            .current_dir(&point)
            .output();
        // Somebody else's copy of all mounts would keep it from being written.
        run(&["sync", "-f", &point]);
        run(&["umount", &point]);
        let done = done.unwrap();
        assert!(done.status.success(), "{done:?}");
        String::from_utf8(done.stdout).unwrap()
    }

    /// A machine whose template is `disk.raw`.
    fn machine(&self) -> Instance {
        let new = NewTemplate {
            alias: Some("tiny".parse().unwrap()),
            user: Some("ann".to_owned()),
            ..NewTemplate::default()
        };
        let chain = open(&self.path("disk.raw"), Access::READ);
        let mut new = new;
        new.look_at(&chain.device()).unwrap();
        let template = self.store.import(&chain, &new, &Control::unwatched()).unwrap();
        let new = NewInstances {
            names: vec!["web".parse().unwrap()],
            ..NewInstances::default()
        };
        let as_it_is = |_: &Instance, _: &Arc<dyn BlockDevice>| Ok(());
        let made = self
            .store
            .clone_template(&template, &new, &as_it_is, &Control::unwatched());
        made.unwrap().remove(0)
    }
}

fn open(path: &Path, access: Access) -> Chain {
    let formats: [&dyn block::Format; 2] = [&qcow2::Qcow2, &raw::Raw];
    Chain::open(
        &HostOpener::new(),
        &formats,
        &Permissive::default(),
        path,
        None,
        access,
    )
    .unwrap()
}

/// The secrets in a file, each once.
fn secrets(path: &Path) -> Vec<String> {
    let output = Command::new("grep")
        .args(["-aoE", "<secret[^>]{0,100}>"])
        .arg(path)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut found: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
    found.sort();
    found.dedup();
    found
}

fn all() -> Selection {
    let names = [
        "passwords",
        "credentials",
        "ssl-keys",
        "network-keys",
        "service-keys",
    ];
    Selection::new(&names.map(str::to_owned), &[]).unwrap()
}

/// As it is by default.
fn sealed(selection: &Selection) -> (&Selection, Leftovers) {
    (selection, Leftovers::Refused)
}

#[test]
fn nothing_that_sealing_takes_away_is_left_on_the_disk() {
    let lab = Lab::new();
    let disk = lab.path("disk.raw");
    lab.mounted("mkdir names; touch names/kept 'names/<secret in a name>'; mkdir home/ann/empty; touch 'home/ann/empty/<secret name>'");
    let shown = disk.to_str().unwrap();
    run(&["debugfs", "-w", "-R", "rm \"names/<secret in a name>\"", shown]);
    run(&[
        "debugfs",
        "-w",
        "-R",
        "rm \"home/ann/empty/<secret name>\"",
        shown,
    ]);
    let before = secrets(&disk);
    for text in [
        &secret(PRIVATE[0]),
        "<secret of a deleted file>",
        "<secret of a link>",
        "<secret of iscsi>",
        "<secret in a name>",
        "<secret name>",
    ] {
        assert!(before.iter().any(|found| found == text), "{text}: {before:?}");
    }
    let chain = open(&disk, Access::WRITE);
    let root = Root::find(&chain.device()).unwrap().unwrap();
    let found = lint(&root, &[]).unwrap();
    for path in PRIVATE {
        let covers = |finding: &machines::seal::Finding| format!("/{path}").starts_with(&finding.path);
        assert!(found.iter().any(covers), "{path}: {found:#?}");
    }
    let changes = seal(&chain.device(), &all(), false, &Control::unwatched()).unwrap();
    let done: Vec<&str> = changes.iter().map(|change| change.path.as_str()).collect();
    let mut named: Vec<&str> = found.iter().map(|finding| finding.path.as_str()).collect();
    named.retain(|path| !done.contains(path));
    assert_eq!(named, [""; 0], "what is found is what is taken away");
    assert_eq!(lint(&root, &[]).unwrap(), []);
    // There is nothing to do a second time.
    assert_eq!(
        seal(&chain.device(), &all(), false, &Control::unwatched()).unwrap(),
        []
    );
    drop((root, chain));
    assert_eq!(secrets(&disk), [""; 0]);
    let check = run(&["e2fsck", "-fn", disk.to_str().unwrap()]);
    assert!(!check.contains("Fix") && !check.contains("WARNING"), "{check}");
    let listed = lab.mounted(
        "stat -c '%n %F' etc/machine-id var/log/wtmp var/log/app tmp var/lib/apt/lists/partial \
             var/lib/apt/lists/lock var/lib/dhcpd/dhcpd.leases; cat var/log/README; \
         cat etc/ssh/sshd_config home/ann/work etc/shadow etc/hosts; stat -c %s home/ann/reserved; \
         ls -a root/.ssh home/ann/.ssh tmp etc/ssh",
    );
    assert_eq!(
        listed,
        "etc/machine-id regular empty file\nvar/log/wtmp regular empty file\nvar/log/app directory\n\
         tmp directory\nvar/lib/apt/lists/partial directory\nvar/lib/apt/lists/lock regular empty file\n\
         var/lib/dhcpd/dhcpd.leases regular empty file\nkept\nkept\nkept\n\
         root:*:1::::::\ndata:*:1::::::\n127.0.0.1 localhost\n4194304\n\
         etc/ssh:\n.\n..\nsshd_config\n\nhome/ann/.ssh:\n.\n..\n\nroot/.ssh:\n.\n..\n\ntmp:\n.\n..\n"
    );
}

#[test]
fn a_template_made_of_a_machine_has_nothing_that_was_taken_away_and_the_machine_has_all_of_it() {
    let lab = Lab::new();
    let machine = lab.machine();
    let before = fs::read(machine.image()).unwrap();
    for compress in [false, true] {
        let new = NewTemplate {
            alias: Some(format!("published-{}", u8::from(compress)).parse().unwrap()),
            notes: Some("noted".to_owned()),
            compress,
            ..NewTemplate::default()
        };
        let made = lab
            .store
            .publish(&machine, new, Some(sealed(&all())), &Control::unwatched());
        let made = made.unwrap();
        assert!(made.changes.iter().any(|change| change.path == "/etc/hostname"));
        let image = made.template.image();
        assert_eq!(secrets(&image), [""; 0]);
        let raw = lab.text("published.raw");
        run(&["qemu-img", "convert", "-O", "raw", image.to_str().unwrap(), &raw]);
        assert_eq!(secrets(Path::new(&raw)), [""; 0]);
        run(&["qemu-img", "check", "-q", image.to_str().unwrap()]);
        run(&["e2fsck", "-fn", &raw]);
        assert!(!run(&["qemu-img", "info", image.to_str().unwrap()]).contains("backing"));
        let document = &made.template.document;
        assert_eq!(document.parent, Some(machine.document.template));
        assert_eq!(document.user.as_deref(), Some("ann"));
        assert_eq!(document.os.as_deref(), Some("Tiny 1"));
        let source = document
            .provenance
            .as_ref()
            .and_then(|made| made.source.as_deref());
        assert_eq!(source, Some("machine web"));
        let kernel = fs::read(made.template.kernel().unwrap()).unwrap();
        assert_eq!(kernel, b"the kernel of the template");
        assert_eq!(
            document.machine.boot.append.as_deref(),
            Some("root=/dev/vda rw console=ttyS0")
        );
    }
    assert!(fs::read(machine.image()).unwrap() == before);
    // As it is, with all that it has.
    let new = NewTemplate::default();
    let made = lab
        .store
        .publish(&machine, new, None, &Control::unwatched())
        .unwrap();
    assert!(made.changes.is_empty() && !secrets(&made.template.image()).is_empty());
    run(&[
        "qemu-img",
        "compare",
        "-s",
        made.template.image().to_str().unwrap(),
        machine.image().to_str().unwrap(),
    ]);
}

#[test]
fn all_filesystems_of_a_partitioned_disk_lose_what_is_free() {
    let lab = Lab::new();
    let (disk, whole) = (lab.text("disk.raw"), lab.text("whole.raw"));
    let other = lab.text("other.raw");
    run(&["mke2fs", "-q", "-t", "ext2", &other, "8M"]);
    // The last partition but one is swap, and there is room before, between and behind them.
    let script = "truncate -s 110M whole.raw; \
        printf 'label: gpt\\nstart=2048,size=16384\\nstart=20480,size=131072,name=root\\nstart=155648,size=16384,type=swap\\nstart=174080,size=16384,type=uefi\\n' | sfdisk -q whole.raw; \
        yes '<secret behind>' | dd of=whole.raw bs=1M seek=94 count=1 iflag=fullblock conv=notrunc status=none; \
        yes '<secret between>' | dd of=whole.raw bs=1M seek=74 count=1 iflag=fullblock conv=notrunc status=none; \
        yes '<secret between>' | dd of=whole.raw bs=512 seek=18432 count=64 iflag=fullblock conv=notrunc status=none; \
        yes '<secret in swap>' | head -c 64k >swap.raw || :; truncate -s 8M swap.raw; mkswap -q -L paging -U 6a0f3d30-98ab-4ac9-9e1b-5c8ab3fd6ba1 swap.raw; \
        dd if=swap.raw of=whole.raw bs=1M seek=76 conv=notrunc status=none; \
        truncate -s 8M esp.raw; mkfs.vfat esp.raw >/dev/null; dd if=esp.raw of=whole.raw bs=1M seek=85 conv=notrunc status=none; \
        mkdir -p m; mount -o loop other.raw m; yes '<secret of another>' | head -c 1M >m/a || :; sync; rm m/a; umount m; \
        e2fsck -fy other.raw >/dev/null; resize2fs other.raw 6M 2>/dev/null >/dev/null; truncate -s 8M other.raw; \
        yes '<secret behind ext2>' | dd of=other.raw bs=512 seek=15000 count=9 iflag=fullblock conv=notrunc status=none; \
        dd if=other.raw of=whole.raw bs=1M seek=1 conv=notrunc status=none; \
        dd if=disk.raw of=whole.raw bs=1M seek=10 conv=notrunc status=none";
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let done = Command::new("bash")
        .args(["-ec", script])
        .env("PATH", path)
        .current_dir(lab.directory.path())
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    fs::remove_file(disk).unwrap();
    let before = secrets(Path::new(&whole));
    for text in ["of another", "behind", "behind ext2", "between", "in swap"] {
        assert!(before.contains(&format!("<secret {text}>")), "{text}");
    }
    let table = run(&["sfdisk", "--dump", &whole]);
    let chain = open(Path::new(&whole), Access::WRITE);
    let changes = seal(&chain.device(), &all(), true, &Control::unwatched()).unwrap();
    assert!(changes.len() > 30);
    let not_looked_into = |sealed| {
        let found = not_looked_into(&chain.device(), sealed).unwrap();
        found.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        not_looked_into(true),
        [
            "files of partition 1 (ext4) are not looked into; what is free there is wiped",
            "files of partition 4 (vfat) are not looked into; what is free there is wiped"
        ]
    );
    for part in ["1 (ext4)", "3 (swap)", "4 (vfat)"] {
        assert!(not_looked_into(false).contains(&format!("partition {part} is not looked into")));
    }
    drop(chain);
    // Tables and swap are found as before, and swap is used.
    assert_eq!(run(&["sfdisk", "--dump", &whole]), table);
    run(&["sfdisk", "--verify", &whole]);
    let probed = run(&["blkid", "-p", "-O", "79691776", "-o", "export", &whole]);
    assert!(
        probed.contains("TYPE=swap")
            && probed.contains("LABEL=paging")
            && probed.contains("UUID=6a0f3d30-98ab-4ac9-9e1b-5c8ab3fd6ba1"),
        "{probed}"
    );
    assert_eq!(secrets(Path::new(&whole)), [""; 0]);
    run(&["e2fsck", "-fn", &format!("{whole}?offset=10485760")]);
    run(&["e2fsck", "-fn", &format!("{whole}?offset=1048576")]);
}

#[test]
fn a_disk_that_is_a_filesystem_and_something_else_is_not_changed() {
    let lab = Lab::new();
    let disk = lab.path("disk.raw");
    // What mdadm writes at 4096 is in the room that ext4 has for descriptors of groups to come.
    for (at, magic, name) in [
        (0x1000, &b"\xfc\x4e\x2b\xa9"[..], "raid"),
        (0, b"LUKS\xba\xbe", "luks"),
        (0x200, b"LABELONE", "lvm"),
    ] {
        let mut bytes = fs::read(&disk).unwrap();
        bytes[at..at + magic.len()].copy_from_slice(magic);
        let both = lab.path(name);
        fs::write(&both, &bytes).unwrap();
        let chain = open(&both, Access::WRITE);
        let error = seal(&chain.device(), &all(), false, &Control::unwatched()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("the disk says that it is ext4, and that it is {name}")
        );
        assert!(not_looked_into(&chain.device(), false).is_err());
        drop(chain);
        assert!(fs::read(&both).unwrap() == bytes, "{name}");
    }
}

#[test]
fn room_behind_the_filesystem_of_a_disk_without_partitions_is_wiped_or_told() {
    let lab = Lab::new();
    let disk = lab.path("disk.raw");
    let told = |sealed| -> Vec<String> {
        let found = not_looked_into(&open(&disk, Access::WRITE).device(), sealed).unwrap();
        found.iter().map(ToString::to_string).collect()
    };
    assert_eq!(told(true), [""; 0]);
    // As mdadm's version 1.0 has it, at the end of a device that is larger than the filesystem.
    let script = "cd LAB; truncate -s 65M disk.raw; \
        printf '<secret behind>' | dd of=disk.raw bs=1M seek=64 conv=notrunc status=none; \
        printf '\\xfc\\x4e\\x2b\\xa9' | dd of=disk.raw bs=1k seek=$((65 * 1024 - 8)) conv=notrunc status=none";
    run(&[
        "bash",
        "-ec",
        &script.replace("LAB", lab.directory.path().to_str().unwrap()),
    ]);
    let says = "room behind the filesystem of the disk, which is raid's, stays as it is";
    assert_eq!(told(true), [says]);
    assert_eq!(told(false), [""; 0]);
    seal(
        &open(&disk, Access::WRITE).device(),
        &all(),
        false,
        &Control::unwatched(),
    )
    .unwrap();
    assert_eq!(secrets(&disk), ["<secret behind>"]);
    run(&["truncate", "-s", "-4K", disk.to_str().unwrap()]);
    assert_eq!(told(true), [""; 0]);
    seal(
        &open(&disk, Access::WRITE).device(),
        &all(),
        false,
        &Control::unwatched(),
    )
    .unwrap();
    assert_eq!(secrets(&disk), [""; 0]);
}

#[test]
fn an_array_where_a_filesystem_was_before_is_not_taken_for_that() {
    let lab = Lab::new();
    let whole = lab.path("whole.raw");
    let script = "truncate -s 82M whole.raw; \
        printf 'label: dos\nstart=2048,size=131072,type=83\nstart=133120,size=32768,type=fd\n' | sfdisk -q whole.raw; \
        dd if=disk.raw of=whole.raw bs=1M seek=1 conv=notrunc status=none; \
        truncate -s 16M array.raw; mke2fs -q -F -b 1024 -O ^metadata_csum,^uninit_bg array.raw; \
        printf '\\xfc\\x4e\\x2b\\xa9\\x01' | dd of=array.raw bs=1 seek=4096 conv=notrunc status=none; \
        yes 'of the array' | dd of=array.raw bs=1M seek=8 count=2 iflag=fullblock conv=notrunc status=none; \
        dd if=array.raw of=whole.raw bs=1M seek=65 conv=notrunc status=none";
    let script = format!("cd {}; {script}", lab.directory.path().to_str().unwrap());
    run(&["bash", "-ec", &script]);
    let before = fs::read(&whole).unwrap();
    let chain = open(&whole, Access::WRITE);
    let error = seal(&chain.device(), &all(), false, &Control::unwatched()).unwrap_err();
    assert!(error.to_string().contains("ext4, and that it is raid"), "{error}");
    drop(chain);
    assert!(fs::read(&whole).unwrap() == before, "nothing is half done");
}

#[test]
fn a_machine_that_runs_is_not_published_and_unknown_operations_are_refused() {
    let lab = Lab::new();
    let machine = lab.machine();
    let lock = raw::OpenOptions::new().write(true).open(machine.image()).unwrap();
    let refused = lab
        .store
        .publish(&machine, NewTemplate::default(), None, &Control::unwatched())
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Locked);
    drop(lock);
    let taken = NewTemplate {
        alias: Some("tiny".parse().unwrap()),
        ..NewTemplate::default()
    };
    let refused = lab
        .store
        .publish(&machine, taken, None, &Control::unwatched())
        .unwrap_err();
    assert!(
        refused.to_string().contains("\"tiny\" is the name of a template"),
        "{refused}"
    );
    let wrong = Selection::new(&[], &["machineid".to_owned()]).unwrap_err();
    assert!(wrong.hint().unwrap().contains("machine-id"), "{wrong}");
    assert!(Selection::new(&["tmp".to_owned()], &["tmp".to_owned()]).is_err());
    assert!(OPERATIONS.len() > 20);
}
