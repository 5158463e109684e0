//! What of a system is needed to boot it: kernels, initrds, and what it is called.

use std::cmp::Ordering;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use block::{Error, ErrorKind, Result, escape};
use ext4_builder::Builder;
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

/// Fails for a tree that certainly has no kernel, or no boot loader where there is none elsewhere either. `list` says what is
/// in a directory of it.
pub(crate) fn check(list: impl Fn(&str) -> Listing, boot_loader: &BootLoader, arch: Arch) -> Result<()> {
    let is_kernel = |name: &str| name.starts_with("vmlinuz-");
    let without =
        |version: &String| list(&format!("usr/lib/modules/{version}")).lacks(|name| name == "vmlinuz");
    let no_modules = || match list("usr/lib/modules") {
        Listing::Names(versions) => versions.iter().all(without),
        Listing::Unknown => false,
    };
    if list("boot").lacks(is_kernel) && no_modules() {
        return Err(no_kernel());
    }
    let names = loader::names(arch);
    if list(&BootLoader::DIRECTORY[1..]).lacks(|name| names.iter().any(|loader| loader == name)) {
        boot_loader.check_elsewhere(arch)?;
    }
    Ok(())
}

/// What is in a directory.
pub(crate) enum Listing {
    Names(Vec<String>),
    /// There are links on the way, or it cannot be read.
    Unknown,
}

impl Listing {
    const NOTHING: Self = Self::Names(Vec::new());

    /// Of a path in a directory of this machine.
    pub(crate) fn on_host(root: &Path, path: &str) -> Self {
        let mut directory = PathBuf::from(root);
        for name in path.split('/') {
            directory.push(name);
            match fs::symlink_metadata(&directory) {
                Ok(found) if found.is_dir() => {}
                Ok(found) if found.is_file() => return Self::NOTHING,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Self::NOTHING,
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

    /// Of a path in a filesystem that is being made.
    pub(crate) fn in_builder(builder: &Builder<'_>, path: &str) -> Self {
        let mut directory = builder.root();
        for name in path.split('/') {
            match builder.lookup(directory, name.as_bytes()) {
                Some(found) if builder.is_directory(found) => directory = found,
                Some(found) if builder.target(found).is_some() => return Self::Unknown,
                _ => return Self::NOTHING,
            }
        }
        let entries = builder.entries(directory);
        Self::Names(
            entries
                .map(|(name, _)| String::from_utf8_lossy(name).into_owned())
                .collect(),
        )
    }

    /// Whether it is certain that there is nothing like this.
    fn lacks(&self, like: impl Fn(&str) -> bool) -> bool {
        matches!(self, Self::Names(names) if !names.iter().any(|name| like(name)))
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

    /// A tree of directories and what is in them.
    fn check_tree(tree: &[(&str, &[&str])]) -> Result<()> {
        let list = |path: &str| match tree.iter().find(|(directory, _)| *directory == path) {
            Some((_, ["?"])) => Listing::Unknown,
            Some((_, names)) => Listing::Names(names.iter().map(|&name| name.to_owned()).collect()),
            None => Listing::NOTHING,
        };
        check(list, &BootLoader::default(), Arch::Arm64)
    }

    #[test]
    fn a_tree_is_refused_only_if_it_certainly_lacks_something() {
        let efi: (&str, &[&str]) = ("usr/lib/systemd/boot/efi", &["systemd-bootaa64.efi"]);
        let modules: (&str, &[&str]) = ("usr/lib/modules", &["6.1"]);
        for good in [
            &[("boot", &["config", "vmlinuz-6.1"][..]), efi][..],
            &[modules, ("usr/lib/modules/6.1", &["vmlinuz"]), efi],
            &[modules, ("usr/lib/modules/6.1", &["?"]), efi],
            &[("usr/lib/modules", &["?"]), efi],
            &[("boot", &["?"]), ("usr/lib/systemd/boot/efi", &["?"])],
        ] {
            check_tree(good).unwrap();
        }
        for bad in [
            &[][..],
            &[efi],
            &[("boot", &["vmlinuz", "initrd.img-6.1"]), modules, efi],
            &[("boot", &["vmlinuz-6.1"])],
            &[
                ("boot", &["vmlinuz-6.1"]),
                ("usr/lib/systemd/boot/efi", &["systemd-bootx64.efi"]),
            ],
        ] {
            assert_eq!(
                check_tree(bad).unwrap_err().kind(),
                ErrorKind::InvalidInput,
                "{bad:?}"
            );
        }
    }

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
