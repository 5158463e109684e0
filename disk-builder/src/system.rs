//! What of a system is needed to boot it: kernels, initrds, and what it is called.

use std::cmp::Ordering;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use block::{Error, ErrorKind, Result, escape};
use ext4_reader::{FileKind, Filesystem, Inode, LastLink};

use crate::arch::Arch;
use crate::loader::{self, BootLoader};

/// Bytes of a file that describes a system at most.
const MAX_RELEASE: u64 = 64 << 10;

/// A system in a filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    /// The newest last.
    pub kernels: Vec<Kernel>,
    /// What its files are called after: `debian`.
    pub id: String,
    /// What it is called: `Debian GNU/Linux 12 (bookworm)`.
    pub title: String,
}

/// A kernel in a system, by its path there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// As its file or its directory says: `6.1.0-18-amd64`.
    pub version: String,
    /// From the root on.
    pub path: String,
    /// One that has all it needs is started without.
    pub initrd: Option<String>,
}

impl System {
    /// Looks for what is there.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn look(filesystem: &Filesystem) -> Result<Self> {
        let mut kernels = kernels_in_boot(filesystem)?;
        if kernels.is_empty() {
            kernels = kernels_with_modules(filesystem)?;
        }
        kernels.sort_by(|a, b| compare_versions(&a.version, &b.version));
        let release = release(filesystem)?;
        let id = value(&release, "ID").filter(|id| is_file_name(id));
        Ok(Self {
            kernels,
            id: id.unwrap_or_else(|| "linux".to_owned()),
            title: value(&release, "PRETTY_NAME").unwrap_or_else(|| "Linux".to_owned()),
        })
    }

    /// Looks for what firmware can boot.
    ///
    /// # Errors
    /// `InvalidInput` if there is no kernel that can be booted; `Corrupt`, `Io`.
    pub(crate) fn find(filesystem: &Filesystem, arch: Arch) -> Result<Self> {
        let system = Self::look(filesystem)?;
        if system.kernels.is_empty() {
            return Err(no_kernel());
        }
        for kernel in &system.kernels {
            let inode = find(filesystem, &kernel.path)?;
            let is_program = match inode {
                Some(inode) => loader::is_program(filesystem.reader(&inode)?, arch)?,
                None => false,
            };
            if !is_program {
                let message = format!(
                    "{} is no kernel that firmware for {} can start",
                    escape(&kernel.path),
                    arch.name()
                );
                let hint = "it has to have an EFI stub (CONFIG_EFI_STUB), as those of all distributions have";
                return Err(Error::invalid(message).with_hint(hint));
            }
        }
        Ok(system)
    }
}

/// Fails for a directory of this machine that certainly has no kernel for a disk that is made of all of it, or no boot
/// loader where there is none elsewhere either. Where links are on the way, that is not certain.
pub(crate) fn check_directory(root: &Path, boot_loader: &BootLoader, arch: Arch) -> Result<()> {
    let in_boot = |names: &[String]| names.iter().any(|name| name.starts_with("vmlinuz-"));
    let boot = Listing::of(root, "boot");
    let modules = Listing::of(root, "usr/lib/modules");
    let with_modules = |versions: &[String]| {
        let directory = root.join("usr/lib/modules");
        let is_there =
            |version: &String| fs::symlink_metadata(directory.join(version).join("vmlinuz")).is_ok();
        versions.iter().any(is_there)
    };
    if boot.lacks(in_boot) && modules.lacks(with_modules) {
        return Err(no_kernel().with_path(root));
    }
    let names = loader::names(arch);
    let has_loader = |there: &[String]| there.iter().any(|name| names.contains(name));
    if Listing::of(root, BootLoader::DIRECTORY.trim_start_matches('/')).lacks(has_loader) {
        boot_loader
            .check_elsewhere(arch)
            .map_err(|error| error.with_path(root))?;
    }
    Ok(())
}

/// What is in a directory of this machine.
enum Listing {
    Names(Vec<String>),
    /// There are links on the way, or it cannot be read.
    Unknown,
}

impl Listing {
    fn of(root: &Path, path: &str) -> Self {
        let mut directory = PathBuf::from(root);
        for name in path.split('/') {
            directory.push(name);
            match fs::symlink_metadata(&directory) {
                Ok(found) if found.is_dir() => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Self::Names(Vec::new()),
                _ => return Self::Unknown,
            }
        }
        let names = fs::read_dir(directory).and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect()
        });
        names.map_or(Self::Unknown, Self::Names)
    }

    /// Whether it is certain that `has` is not so.
    fn lacks(&self, has: impl Fn(&[String]) -> bool) -> bool {
        matches!(self, Self::Names(names) if !has(names))
    }
}

fn no_kernel() -> Error {
    let message = "there is no kernel in the source: neither boot/vmlinuz-* nor usr/lib/modules/*/vmlinuz";
    let hint =
        "install one in it, such as Debian's linux-image-cloud-amd64; imgtool mkfs makes filesystems without";
    Error::invalid(message).with_hint(hint)
}

/// The error of a reader of files, which has one of ours inside.
pub(crate) fn inside(error: std::io::Error) -> Error {
    error
        .downcast::<Error>()
        .unwrap_or_else(|error| Error::io("read", error))
}

/// The regular file at a path, links followed.
pub(crate) fn find(filesystem: &Filesystem, path: &str) -> Result<Option<Inode>> {
    match filesystem.resolve(path.as_bytes(), LastLink::Follow) {
        Ok(inode) => Ok(Some(inode).filter(|inode| inode.kind() == FileKind::Regular)),
        Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(None),
        Err(error) => Err(error),
    }
}

/// Which of two versions is older: numbers in them count as numbers.
fn compare_versions(a: &str, b: &str) -> Ordering {
    let number = |text: &str| {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        // More digits than fit are none of a kernel's.
        (digits > 0).then(|| (text[..digits].parse().unwrap_or(u64::MAX), digits))
    };
    let (mut rest_a, mut rest_b) = (a, b);
    loop {
        let ((Some(first_a), Some(first_b)), both) = (
            (rest_a.chars().next(), rest_b.chars().next()),
            (number(rest_a), number(rest_b)),
        ) else {
            return rest_a.len().cmp(&rest_b.len()).then_with(|| a.cmp(b));
        };
        let (order, len_a, len_b) = match both {
            (Some((a, len_a)), Some((b, len_b))) => (a.cmp(&b), len_a, len_b),
            _ => (first_a.cmp(&first_b), first_a.len_utf8(), first_b.len_utf8()),
        };
        if order != Ordering::Equal {
            return order;
        }
        (rest_a, rest_b) = (&rest_a[len_a..], &rest_b[len_b..]);
    }
}

/// The names in a directory, if there is one.
fn names(filesystem: &Filesystem, path: &str) -> Result<Vec<String>> {
    let directory = match filesystem.resolve(path.as_bytes(), LastLink::Follow) {
        Ok(inode) if inode.kind() == FileKind::Directory => inode,
        Ok(_) => return Ok(Vec::new()),
        Err(error) if error.kind() == ErrorKind::InvalidInput => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let entries = filesystem.read_dir(&directory)?.into_iter();
    Ok(entries
        .filter_map(|entry| String::from_utf8(entry.name).ok())
        .collect())
}

/// Kernels as most distributions have them.
fn kernels_in_boot(filesystem: &Filesystem) -> Result<Vec<Kernel>> {
    let mut kernels = Vec::new();
    for name in names(filesystem, "/boot")? {
        let Some(version) = name.strip_prefix("vmlinuz-") else {
            continue;
        };
        let path = format!("/boot/{name}");
        if find(filesystem, &path)?.is_some() {
            kernels.push(Kernel {
                version: version.to_owned(),
                initrd: initrd(filesystem, version)?,
                path,
            });
        }
    }
    Ok(kernels)
}

/// Kernels that lie with their modules.
fn kernels_with_modules(filesystem: &Filesystem) -> Result<Vec<Kernel>> {
    let mut kernels = Vec::new();
    for version in names(filesystem, "/usr/lib/modules")? {
        let path = format!("/usr/lib/modules/{version}/vmlinuz");
        if find(filesystem, &path)?.is_some() {
            let initrd = initrd(filesystem, &version)?;
            kernels.push(Kernel {
                version,
                path,
                initrd,
            });
        }
    }
    Ok(kernels)
}

/// The initrd for a kernel, as Debian, Fedora, Arch and SUSE name it.
fn initrd(filesystem: &Filesystem, version: &str) -> Result<Option<String>> {
    for name in [
        format!("initrd.img-{version}"),
        format!("initramfs-{version}.img"),
        format!("initrd-{version}"),
    ] {
        let path = format!("/boot/{name}");
        if find(filesystem, &path)?.is_some() {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// What the system says of itself (`man os-release`).
fn release(filesystem: &Filesystem) -> Result<String> {
    for path in ["/etc/os-release", "/usr/lib/os-release"] {
        if let Some(inode) = find(filesystem, path)? {
            let mut bytes = Vec::new();
            let reader = filesystem.reader(&inode)?;
            reader.take(MAX_RELEASE).read_to_end(&mut bytes).map_err(inside)?;
            return Ok(String::from_utf8_lossy(&bytes).into_owned());
        }
    }
    Ok(String::new())
}

/// The value of a variable, which is quoted as for a shell. One that is empty, or would not fit a line, is none.
fn value(release: &str, name: &str) -> Option<String> {
    let lines = release.lines();
    let value = lines
        .filter_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='))
        .next_back()?;
    let quoted = |quote| {
        value
            .strip_prefix(quote)
            .and_then(|value| value.strip_suffix(quote))
    };
    let value = match (quoted('"'), quoted('\'')) {
        (Some(text), _) => unescaped(text),
        (None, Some(text)) => text.to_owned(),
        (None, None) => value.to_owned(),
    };
    Some(value).filter(|value| !value.is_empty() && !value.contains(char::is_control))
}

fn unescaped(text: &str) -> String {
    let mut chars = text.chars();
    let mut plain = String::new();
    while let Some(c) = chars.next() {
        plain.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    plain
}

fn is_file_name(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_comes_last() {
        let mut versions = [
            "6.10.0",
            "6.1.0-18-amd64",
            "6.1.0-9-amd64",
            "6.1.0",
            "6.1.0-18",
            "5.19",
        ];
        versions.sort_by(|a, b| compare_versions(a, b));
        assert_eq!(
            versions,
            [
                "5.19",
                "6.1.0",
                "6.1.0-9-amd64",
                "6.1.0-18",
                "6.1.0-18-amd64",
                "6.10.0"
            ]
        );
    }

    #[test]
    fn variables_are_read_as_a_shell_reads_them() {
        let text = "ID=debian\n PRETTY_NAME=\"Debian \\\"GNU\\\"/Linux 12\"\nEMPTY=\nNAME='a b'\nID_LIKE=x\nID=last\n#V=1";
        for (name, expected) in [
            ("ID", Some("last")),
            ("PRETTY_NAME", Some("Debian \"GNU\"/Linux 12")),
            ("NAME", Some("a b")),
            ("EMPTY", None),
            ("V", None),
            ("MISSING", None),
        ] {
            assert_eq!(value(text, name).as_deref(), expected, "{name}");
        }
        assert!(is_file_name("debian-12_x") && !is_file_name("../x") && !is_file_name("a b"));
    }
}
