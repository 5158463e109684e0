//! Initrds that do the least: load some modules, mount the root, and go on with what is there: `[initrd]`.
//!
//! What it takes is in the tree: busybox, which has to be static, and the kernel's modules. A module says itself which others
//! it needs, in its section `.modinfo` (modinfo(8)), so nothing that depmod makes is needed; those come first.

use std::collections::BTreeMap;
use std::io::Read;

use block::{Error, Result, escape};
use ext4_builder::Builder;
use ext4_builder::source::single;
use serde::Deserialize;

use super::cpio::Archive;
use super::origins::Origins;
use super::origins::Step::{Key, Text};
use super::source::joined;

/// Runs in it.
const INIT: &[u8] = include_bytes!("init.sh");

/// Bytes of a module or of busybox at most, unpacked.
const MAX_FILE: u64 = 64 << 20;

/// Directories of a tree that are looked through for modules at most.
const MAX_DIRECTORIES: usize = 100_000;

/// Where busybox may be.
const BUSYBOX: [&str; 3] = ["bin/busybox", "usr/bin/busybox", "bin/busybox.static"];

/// What an initrd is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(
    default,
    deny_unknown_fields,
    rename_all = "kebab-case",
    expecting = "a table"
)]
pub struct Initrd {
    /// Modules of the kernel that are loaded, by name; what they need follows. What the kernel has built in is no module, and not
    /// missed.
    pub modules: Vec<String>,
}

impl Initrd {
    pub(super) fn then(self, later: Self) -> Self {
        Self {
            modules: joined(self.modules, later.modules),
        }
    }

    /// Makes one for the kernel of a tree, beside it.
    pub(super) fn make(&self, builder: &mut Builder<'_>, origins: &Origins) -> Result<()> {
        self.make_of(builder, origins)
            .map_err(|error| origins.tell(error, &[Key("initrd")]))
    }

    fn make_of(&self, builder: &mut Builder<'_>, origins: &Origins) -> Result<()> {
        let names = single::names(builder, "boot")?.unwrap_or_default();
        let versions: Vec<&str> = names
            .iter()
            .filter_map(|name| name.strip_prefix("vmlinuz-"))
            .collect();
        let [version] = versions.as_slice() else {
            let error = Error::invalid(format!(
                "an initrd is for one kernel, boot/vmlinuz-*, and there are {}",
                versions.len()
            ));
            return Err(error.with_hint("install one, or leave [initrd] to the system itself"));
        };
        let mut archive = Archive::new();
        for directory in ["bin", "dev", "modules", "proc", "root", "sys"] {
            archive.directory(directory)?;
        }
        archive.file("bin/busybox", &busybox(builder)?, 0o755)?;
        archive.file("init", INIT, 0o755)?;
        let mut modules = Modules::find(builder, version)?;
        for name in &self.modules {
            let way = [Key("initrd"), Key("modules"), Text(name)];
            let loaded = modules.load(builder, name);
            loaded.map_err(|error| origins.tell(error, &way))?;
        }
        let mut order = String::new();
        for (name, bytes) in &modules.loaded {
            order.push_str(name);
            order.push('\n');
            archive.file(&format!("modules/{name}.ko"), bytes, 0o644)?;
        }
        archive.file("modules/order", order.as_bytes(), 0o644)?;
        let path = format!("boot/initrd.img-{version}");
        single::put(builder, &path, &archive.finish()?, 0o644)
    }
}

fn busybox(builder: &mut Builder<'_>) -> Result<Vec<u8>> {
    for path in BUSYBOX {
        if let Some(bytes) = single::read(builder, path, MAX_FILE)? {
            return Ok(bytes);
        }
    }
    Err(
        Error::invalid("an initrd is made of busybox, and the system has no bin/busybox")
            .with_hint("install one that is static, such as Debian's busybox-static"),
    )
}

/// Modules of a kernel.
struct Modules {
    version: String,
    /// Where each is.
    paths: BTreeMap<String, String>,
    /// Those that are to be loaded, and what is in them, in order.
    loaded: Vec<(String, Vec<u8>)>,
    /// What the kernel has without a module.
    built_in: Vec<String>,
}

impl Modules {
    fn find(builder: &mut Builder<'_>, version: &str) -> Result<Self> {
        let mut modules = Self {
            version: version.to_owned(),
            paths: BTreeMap::new(),
            loaded: Vec::new(),
            built_in: Vec::new(),
        };
        for top in ["lib/modules", "usr/lib/modules"] {
            let top = format!("{top}/{version}");
            let list =
                single::read(builder, &format!("{top}/modules.builtin"), MAX_FILE)?.unwrap_or_default();
            modules
                .built_in
                .extend(String::from_utf8_lossy(&list).lines().filter_map(name_of));
            modules.add_below(builder, top)?;
        }
        Ok(modules)
    }

    /// Takes note of the modules below a directory.
    fn add_below(&mut self, builder: &mut Builder<'_>, top: String) -> Result<()> {
        let mut left = vec![top];
        let mut seen = 0;
        while let Some(directory) = left.pop().filter(|_| seen < MAX_DIRECTORIES) {
            seen += 1;
            for name in single::names(builder, &directory)?.unwrap_or_default() {
                let path = format!("{directory}/{name}");
                if let Some(module) = name_of(&name) {
                    self.paths.entry(module).or_insert(path);
                } else if is_directory(builder, &path) {
                    left.push(path);
                }
            }
        }
        Ok(())
    }

    /// Loads a module behind those that it needs.
    fn load(&mut self, builder: &mut Builder<'_>, name: &str) -> Result<()> {
        let mut left = vec![(plain(name), false)];
        while let Some((name, is_ready)) = left.pop() {
            if self.loaded.iter().any(|(other, _)| *other == name) || self.built_in.contains(&name) {
                continue;
            }
            let bytes = self.read(builder, &name)?;
            let needs: Vec<String> = needs(&bytes)
                .into_iter()
                .filter(|other| !self.has(other))
                .collect();
            if is_ready || needs.is_empty() {
                self.loaded.push((name, bytes));
                continue;
            }
            left.push((name, true));
            left.extend(needs.into_iter().map(|other| (other, false)));
            if left.len() > self.paths.len() * 2 + 2 {
                return Err(Error::invalid(
                    "modules of the kernel need each other in a circle",
                ));
            }
        }
        Ok(())
    }

    fn has(&self, name: &str) -> bool {
        self.loaded.iter().any(|(other, _)| other == name) || self.built_in.iter().any(|other| other == name)
    }

    fn read(&self, builder: &mut Builder<'_>, name: &str) -> Result<Vec<u8>> {
        let missing = || {
            let message = format!("the kernel {} has no module \"{}\"", self.version, escape(name));
            Error::invalid(message)
                .with_hint("name one that is in its lib/modules, and not left out by exclude")
        };
        let path = self.paths.get(name).ok_or_else(missing)?;
        // It is there: what is not read is a link that leads nowhere, or longer.
        let bytes = single::read(builder, path, MAX_FILE)?.ok_or_else(|| too_long(path))?;
        unpacked(path, bytes)
    }
}

fn is_directory(builder: &mut Builder<'_>, path: &str) -> bool {
    matches!(single::names(builder, path), Ok(Some(_)))
}

/// The module that a file has by its name; kernels call those with `-` and with `_` the same.
fn name_of(path: &str) -> Option<String> {
    let name = path.rsplit('/').next()?;
    let (name, rest) = name.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".zst" | ".gz").then(|| plain(name))
}

fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// What a module needs: the value of `depends` in `.modinfo`, a string among others that end with NUL.
fn needs(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|bytes| bytes == KEY) else {
        return Vec::new();
    };
    let value = module[at + KEY.len()..]
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    let names = value.split(|byte| *byte == b',').filter(|name| !name.is_empty());
    names.map(|name| plain(&String::from_utf8_lossy(name))).collect()
}

/// What is in a file of a module: busybox loads only those that are not compressed.
fn unpacked(path: &str, bytes: Vec<u8>) -> Result<Vec<u8>> {
    let mut reader: Box<dyn Read + '_> = match path.rsplit('.').next() {
        Some("xz") => Box::new(liblzma::read::XzDecoder::new(&*bytes)),
        Some("gz") => Box::new(flate2::read::MultiGzDecoder::new(&*bytes)),
        Some("zst") => Box::new(
            zstd::stream::read::Decoder::new(&*bytes)
                .map_err(|error| Error::io("unpack", error).with_path(path))?,
        ),
        _ => return Ok(bytes),
    };
    let mut plain = Vec::new();
    let failed = |error| Error::io("unpack the module", error).with_path(path);
    reader
        .by_ref()
        .take(MAX_FILE + 1)
        .read_to_end(&mut plain)
        .map_err(failed)?;
    if plain.len() as u64 > MAX_FILE {
        return Err(too_long(path));
    }
    drop(reader);
    Ok(plain)
}

fn too_long(path: &str) -> Error {
    Error::invalid(format!(
        "it is no file, or too long for a module ({MAX_FILE} bytes)"
    ))
    .with_path(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_told_by_their_files_and_say_what_they_need() {
        for (path, name) in [
            ("kernel/drivers/block/virtio_blk.ko", Some("virtio_blk")),
            ("virtio-rng.ko.xz", Some("virtio_rng")),
            ("a.ko.zst", Some("a")),
            ("modules.dep", None),
            ("a.ko.bak", None),
        ] {
            assert_eq!(name_of(path).as_deref(), name, "{path}");
        }
        assert_eq!(
            needs(b"\x7fELF\0license=GPL\0depends=virtio-ring,virtio\0name=x\0"),
            ["virtio_ring", "virtio"]
        );
        assert!(needs(b"\0depends=\0").is_empty() && needs(b"x").is_empty());
    }
}
