//! Whether the user that libvirt runs QEMU as can reach a machine's files.
//!
//! root's libvirt gives that user the files themselves. The directories on the way to them stay as they are, and that of a store is its
//! owner's alone: libvirt defines such a machine, and fails to start it.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use block::{Error, escape};

use super::quoted;
use crate::machine::{Boot, Machine};

/// Who QEMU runs as in packages of distributions: Debian's and Arch's, then Fedora's.
const USERS: [&str; 2] = ["libvirt-qemu", "qemu"];

/// Where libvirt is told another one.
const CONFIGURATION: &str = "/etc/libvirt/qemu.conf";

/// A user, as far as permissions go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    name: String,
    uid: u32,
    groups: Vec<u32>,
}

/// Says which directories keep root's libvirt from a machine's files, and what to do; `None` where none does, and where libvirt runs QEMU as
/// who calls this.
pub fn libvirt_is_kept_out(machine: &Machine) -> Option<Error> {
    let layers = machine.disks.iter().flat_map(|disk| &disk.chain);
    let mut files: Vec<&Path> = layers.map(|layer| layer.path.as_path()).collect();
    match &machine.boot {
        Boot::Direct { kernel, initrd, .. } => {
            files.push(kernel);
            files.extend(initrd.as_deref());
        }
        Boot::Uefi { variables, .. } => files.push(variables),
    }
    let user = User::of_libvirt()?;
    let (message, hint) = user.told(&user.kept_out(files))?;
    Some(Error::invalid(message).with_hint(hint))
}

impl User {
    /// Who the libvirt that this user calls by default runs QEMU as, if that is another user: so does root's.
    pub(crate) fn of_libvirt() -> Option<Self> {
        let uri = env::var("LIBVIRT_DEFAULT_URI").unwrap_or_default();
        let is_roots = uri.ends_with("/system") || (uri.is_empty() && rustix::process::geteuid().is_root());
        if !is_roots {
            return None;
        }
        let [passwd, group] = ["/etc/passwd", "/etc/group"].map(|path| fs::read_to_string(path).ok());
        let (passwd, group) = (passwd?, group.unwrap_or_default());
        // Only root may read it, as a rule.
        let configured = fs::read_to_string(CONFIGURATION).ok();
        match configured.as_deref().and_then(configured_user) {
            Some(name) => Self::named(name, &passwd, &group),
            None => USERS.iter().find_map(|name| Self::named(name, &passwd, &group)),
        }
    }

    /// The user of a name, by the files that list users and groups.
    fn named(name: &str, passwd: &str, group: &str) -> Option<Self> {
        let fields = |line: &'_ str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
        let user = passwd.lines().map(fields).find(|user| user[0] == name)?;
        let mut groups: Vec<u32> = user.get(3)?.parse().ok().into_iter().collect();
        for group in group.lines().map(fields) {
            let members = group.get(3).map(String::as_str).unwrap_or_default();
            if members.split(',').any(|member| member == name) {
                groups.extend(group[2].parse::<u32>());
            }
        }
        Some(Self {
            name: name.to_owned(),
            uid: user.get(2)?.parse().ok()?,
            groups,
        })
    }

    /// Directories on the way to files, or among them, that this user may not enter, the outermost first.
    pub(crate) fn kept_out<'p>(&self, paths: impl IntoIterator<Item = &'p Path>) -> Vec<PathBuf> {
        let mut closed = Vec::new();
        for path in paths {
            let ways = [std::path::absolute(path).ok(), fs::canonicalize(path).ok()];
            for way in ways.into_iter().flatten() {
                closed.extend(
                    way.ancestors()
                        .filter(|on_way| !self.may_enter(on_way))
                        .map(Path::to_owned),
                );
            }
        }
        closed.sort_unstable();
        closed.dedup();
        closed
    }

    /// What is wrong with such directories, and what to do about them.
    pub(crate) fn told(&self, closed: &[PathBuf]) -> Option<(String, String)> {
        if closed.is_empty() {
            return None;
        }
        let list = |show: &dyn Fn(&str) -> String, between: &str| {
            let each = closed.iter().map(|path| show(&path.to_string_lossy()));
            each.collect::<Vec<_>>().join(between)
        };
        let message = format!(
            "libvirt runs QEMU as {}, who may not enter {}",
            self.name,
            list(&|path: &str| escape(path).into_owned(), ", ")
        );
        let directories = list(&quoted, " ");
        Some((message, format!("setfacl -m u:{}:x {directories}", self.name)))
    }

    /// Whether a directory is none, or can be gone through.
    fn may_enter(&self, directory: &Path) -> bool {
        const ENTER: u32 = 1;
        let Ok(found) = fs::metadata(directory) else {
            return true;
        };
        if !found.is_dir() || self.uid == 0 {
            return true;
        }
        let bits = if found.uid() == self.uid {
            found.mode() >> 6
        } else if let Some(list) = AccessList::of(directory) {
            list.granted(self, found.gid())
        } else if self.groups.contains(&found.gid()) {
            found.mode() >> 3
        } else {
            found.mode()
        };
        bits & ENTER != 0
    }
}

/// The name in the line `user = "NAME"` of libvirt's configuration.
fn configured_user(text: &str) -> Option<&str> {
    let mut values = text.lines().filter_map(|line| {
        let value = line.trim().strip_prefix("user")?.trim_start().strip_prefix('=')?;
        value.trim().strip_prefix('"')?.strip_suffix('"')
    });
    values.next_back()
}

/// A POSIX access control list (acl(5)): tag, permissions and number of each entry.
struct AccessList(Vec<(u16, u32, u32)>);

impl AccessList {
    const USER: u16 = 2;
    const OWNING_GROUP: u16 = 4;
    const GROUP: u16 = 8;
    const MASK: u16 = 16;
    const OTHERS: u16 = 32;

    /// That of a directory, if it has one.
    fn of(directory: &Path) -> Option<Self> {
        // Four bytes of version, then eight for each entry, little-endian.
        let mut bytes = vec![0; 1 << 16];
        let len = rustix::fs::getxattr(directory, "system.posix_acl_access", &mut bytes).ok()?;
        let entries = bytes.get(4..len)?.chunks_exact(8);
        let entry = |entry: &[u8]| {
            let half = |at: usize| u16::from_le_bytes([entry[at], entry[at + 1]]);
            let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
            (half(0), u32::from(half(2)), id)
        };
        Some(Self(entries.map(entry).collect()))
    }

    /// The permissions of a user who does not own the directory, which is of a group.
    fn granted(&self, user: &User, group: u32) -> u32 {
        let find = |tag, id: Option<u32>| {
            let is = move |entry: &&(u16, u32, u32)| entry.0 == tag && id.is_none_or(|id| entry.2 == id);
            self.0.iter().find(is).map(|entry| entry.1)
        };
        let mask = find(Self::MASK, None).unwrap_or(7);
        if let Some(own) = find(Self::USER, Some(user.uid)) {
            return own & mask;
        }
        let is_of = |(tag, _, id): &&(u16, u32, u32)| match *tag {
            Self::OWNING_GROUP => user.groups.contains(&group),
            Self::GROUP => user.groups.contains(id),
            _ => false,
        };
        let of_groups: Vec<u32> = self.0.iter().filter(is_of).map(|entry| entry.1).collect();
        if of_groups.is_empty() {
            return find(Self::OTHERS, None).unwrap_or(0);
        }
        // Whichever of them grants it.
        of_groups.into_iter().fold(0, |all, one| all | one) & mask
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    use std::process::Command;

    use super::*;

    #[test]
    fn users_and_their_groups_are_found_in_the_files_that_list_them() {
        let passwd = "root:x:0:0::/root:/bin/sh\nodd\nlibvirt-qemu:x:64055:107:,,,:/:/bin/false\n";
        let group = "kvm:x:104:other,libvirt-qemu\nlibvirt-qemu:x:64055:libvirt-qemu\nodd\nother:x:9:not-libvirt-qemu\n";
        let user = User::named("libvirt-qemu", passwd, group).unwrap();
        assert_eq!((user.uid, user.groups), (64055, vec![107, 104, 64055]));
        assert_eq!(User::named("qemu", passwd, group), None);
        let text = "#user = \"qemu\"\nuser = \"root\"\n  user=\"+64055\"\nusers = \"x\"\n";
        assert_eq!(configured_user(text), Some("+64055"));
        assert_eq!(configured_user("#user = \"qemu\"\n"), None);
    }

    /// The kernel says who may go through a directory: a process of that user is asked.
    #[test]
    fn who_is_kept_out_is_who_the_kernel_keeps_out() {
        let (uid, gid) = (54321, 54322);
        let user = User {
            name: "54321".to_owned(),
            uid,
            groups: vec![gid, 54323],
        };
        let lab = tempfile::tempdir().unwrap();
        fs::set_permissions(lab.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let cases = [
            (0o700, None, ""),
            (0o711, None, ""),
            (0o750, Some((0, gid)), ""),
            (0o701, Some((0, gid)), ""),
            (0o710, Some((0, 54323)), ""),
            (0o077, Some((uid, 0)), ""),
            (0o700, None, "u:54321:x"),
            (0o700, None, "u:54321:x,m:r"),
            (0o755, None, "u:54321:-"),
            (0o700, None, "g:54323:x"),
            (0o755, None, "g:54323:r"),
            (0o750, Some((0, gid)), "g:54323:-"),
            (0o701, Some((0, gid)), "u:1:rwx"),
        ];
        let mut seen = (0, 0);
        for (number, (mode, owner, list)) in cases.into_iter().enumerate() {
            let directory = lab.path().join(number.to_string());
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("file"), "").unwrap();
            fs::set_permissions(&directory, fs::Permissions::from_mode(mode)).unwrap();
            if let Some((uid, gid)) = owner {
                chown(&directory, Some(uid), Some(gid)).unwrap();
            }
            if !list.is_empty() {
                let set = Command::new("setfacl")
                    .args(["-m", list])
                    .arg(&directory)
                    .status();
                assert!(set.unwrap().success(), "{list}");
            }
            let enters = Command::new("setpriv")
                .args([
                    "--reuid", "54321", "--regid", "54322", "--groups", "54323", "stat",
                ])
                .arg(directory.join("file"))
                .output()
                .unwrap();
            let enters = enters.status.success();
            let link = lab.path().join(format!("link-{number}"));
            symlink(&directory, &link).unwrap();
            for way in [&directory, &link] {
                let closed = user.kept_out([&*way.join("file")]);
                assert_eq!(closed.is_empty(), enters, "{mode:o} {owner:?} {list}: {closed:?}");
            }
            *(if enters { &mut seen.0 } else { &mut seen.1 }) += 1;
        }
        assert!(seen.0 > 3 && seen.1 > 3, "{seen:?}");
        let (message, hint) = user.told(&user.kept_out([&*lab.path().join("0/file")])).unwrap();
        assert!(message.contains("54321, who may not enter"), "{message}");
        assert!(hint.starts_with("setfacl -m u:54321:x /"), "{hint}");
    }
}
