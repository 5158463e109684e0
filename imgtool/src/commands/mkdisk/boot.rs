//! What of a system is needed to boot it: kernels, initrds, and what it is called.

use std::io::Read;

use block::{Error, ErrorKind, Result, escape};
use ext4_reader::{FileKind, Filesystem, Inode, LastLink};

use super::loader;

/// Bytes of a file that describes a system at most.
const MAX_RELEASE: u64 = 64 << 10;

/// A system in a filesystem.
pub(super) struct System<'f> {
    pub(super) filesystem: &'f Filesystem,
    /// At least one, by version.
    pub(super) kernels: Vec<Kernel>,
    /// `debian`: what its files are called after.
    pub(super) id: String,
    /// `Debian GNU/Linux 12 (bookworm)`
    pub(super) title: String,
}

/// A kernel in a system, by its path there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kernel {
    pub(super) version: String,
    pub(super) path: String,
    /// One that has all it needs is started without.
    pub(super) initrd: Option<String>,
}

impl<'f> System<'f> {
    /// Looks for what is there.
    ///
    /// # Errors
    /// `InvalidInput` if there is no kernel that can be booted; `Corrupt`, `Io`.
    pub(super) fn find(filesystem: &'f Filesystem) -> Result<Self> {
        let mut kernels = kernels_in_boot(filesystem)?;
        if kernels.is_empty() {
            kernels = kernels_with_modules(filesystem)?;
        }
        if kernels.is_empty() {
            let message =
                "there is no kernel in the source: neither boot/vmlinuz-* nor usr/lib/modules/*/vmlinuz";
            return Err(Error::invalid(message).with_hint(
                "install one in it, such as Debian's linux-image-cloud-amd64; imgtool mkfs makes filesystems without",
            ));
        }
        for kernel in &kernels {
            let mut start = Vec::new();
            if let Some(inode) = find(filesystem, &kernel.path)? {
                let reader = filesystem.reader(&inode)?;
                reader
                    .take(loader::HEADERS)
                    .read_to_end(&mut start)
                    .map_err(inside)?;
            }
            if !loader::is_efi_program(&start) {
                let message = format!(
                    "{} is no kernel that firmware for x86-64 can start",
                    escape(&kernel.path)
                );
                let hint = "it has to have an EFI stub (CONFIG_EFI_STUB), as those of all distributions have";
                return Err(Error::invalid(message).with_hint(hint));
            }
        }
        kernels.sort_by(|a, b| a.version.cmp(&b.version));
        let release = release(filesystem)?;
        let id = value(&release, "ID").filter(|id| is_file_name(id));
        Ok(Self {
            filesystem,
            kernels,
            id: id.unwrap_or_else(|| "linux".to_owned()),
            title: value(&release, "PRETTY_NAME").unwrap_or_else(|| "Linux".to_owned()),
        })
    }
}

/// The error of a reader of files, which has one of ours inside.
pub(super) fn inside(error: std::io::Error) -> Error {
    error
        .downcast::<Error>()
        .unwrap_or_else(|error| Error::io("read", error))
}

/// The regular file at a path, links followed.
pub(super) fn find(filesystem: &Filesystem, path: &str) -> Result<Option<Inode>> {
    match filesystem.resolve(path.as_bytes(), LastLink::Follow) {
        Ok(inode) => Ok(Some(inode).filter(|inode| inode.kind() == FileKind::Regular)),
        Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(None),
        Err(error) => Err(error),
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
