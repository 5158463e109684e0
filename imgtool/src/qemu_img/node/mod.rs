//! Nodes: what an image is stored in, as a name or a tree of options says. A node is a file or a device of the host, and for
//! tests one that fails on command ([`blkdebug`]) or holds nothing ([`null`]), or copies that must agree ([`quorum`]).
//!
//! Only what the user named gets here, or what an image names that the user named: where the native commands ask a gate, this
//! personality opens what QEMU opens. See docs/qemu-img.md.

mod blkdebug;
mod disk;
mod exports;
pub(super) mod name;
mod null;
mod options;
mod quorum;

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;

use block::{Error, ErrorKind, Storage};
use raw::Io;

pub(super) use self::options::NodeOptions;
use super::image::Image;
use super::json::{Json, Object};
use super::refusal::{Refusal, reason};

/// How files are opened.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Flags {
    pub(super) write: bool,
    /// Take no locks.
    pub(super) force_share: bool,
    /// Past the page cache.
    pub(super) direct: bool,
    /// By requests that the kernel queues.
    pub(super) uring: bool,
    /// What the disk holds is not read: encrypted images need no key.
    pub(super) locked: bool,
    /// Only the image itself is opened.
    pub(super) no_backing: bool,
}

/// An open node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) storage: Arc<dyn Storage>,
    /// The way that guest data takes to the same place, if that is another.
    pub(super) data: Option<Arc<dyn Storage>>,
    /// The driver.
    pub(super) driver: &'static str,
    /// The name that says everything about the node, if there is one.
    exact: Option<String>,
    /// All options, for nodes without such a name.
    options: Object,
    /// Where relative names that are found in it are looked up.
    pub(super) directory: Option<String>,
    /// The node below, and what it is called.
    pub(super) child: Option<(&'static str, Box<Node>)>,
    /// The image whose disk it is.
    disk: Option<Box<Image>>,
}

impl Node {
    /// The name that is shown.
    pub(super) fn filename(&self) -> String {
        match &self.exact {
            Some(name) => name.clone(),
            None => format!("json:{}", Json::from(self.options.clone()).compact()),
        }
    }

    /// The name that says everything, if there is one.
    pub(super) fn exact(&self) -> Option<&str> {
        self.exact.as_deref()
    }

    /// All options.
    pub(super) fn to_json(&self) -> Object {
        self.options.clone()
    }

    /// Bytes that it takes on the host, as far as that is known.
    pub(super) fn allocated(&self) -> Option<u64> {
        match self.driver {
            "blkdebug" => None,
            _ => self.storage.allocated().ok().flatten(),
        }
    }

    /// What it says of being dirty: never that it is, and nothing where there is nothing.
    pub(super) fn dirty_flag(&self) -> Option<bool> {
        match &self.child {
            Some((_, child)) => child.dirty_flag(),
            None => (!self.driver.starts_with("null") && self.driver != "nbd").then_some(false),
        }
    }

    /// The image whose disk is at the bottom of it.
    pub(super) fn disk(&self) -> Option<&Image> {
        match &self.child {
            Some((_, child)) => child.disk(),
            None => self.disk.as_deref(),
        }
    }

    /// The files of the host that it is.
    pub(super) fn file(&self) -> &Arc<dyn Storage> {
        match &self.child {
            Some((_, child)) => child.file(),
            None => &self.storage,
        }
    }
}

/// Whether a driver is one of nodes, and not of formats.
pub(super) fn is_node_driver(driver: &str) -> bool {
    matches!(
        driver,
        "file" | "host_device" | "blkdebug" | "null-co" | "null-aio" | "quorum"
    ) || name::is_nbd(driver)
}

/// Opens what `name` and `options` say together.
pub(super) fn open(name: Option<&str>, mut options: NodeOptions, flags: Flags) -> Result<Node, Refusal> {
    if let Some(text) = name.and_then(|name| name.strip_prefix("json:")) {
        options.add(NodeOptions::of_json(text)?);
        return open(None, options, flags);
    }
    if let Some(name) = name {
        parse_name(name, &mut options)?;
    }
    let written = options.clone();
    let driver = match options.take("driver") {
        Some(driver) => driver,
        None if options.get("filename").is_some() => "file".to_owned(),
        None => return Err(Refusal::new("Must specify either driver or file")),
    };
    match &*driver {
        "file" | "host_device" => open_file(options, flags),
        "null-co" | "null-aio" => open_null(name, options, &written),
        "blkdebug" => blkdebug::open(options, &written, flags),
        "quorum" => quorum::open(options, &written, flags),
        driver if name::is_nbd(driver) => exports::open(options, flags),
        "qcow2" | "raw" => {
            options.set_default("driver", &driver);
            open_disk(options, &written, flags)
        }
        driver => Err(Refusal::new(format!("Unknown driver '{driver}'"))),
    }
}

/// Turns a name into options.
fn parse_name(text: &str, options: &mut NodeOptions) -> Result<(), Refusal> {
    let protocol = match options.get("driver") {
        // The name is one of that driver's.
        Some(driver) => name::protocol(text)
            .filter(|protocol| *protocol == driver)
            .map(ToOwned::to_owned),
        None => name::protocol(text).map(ToOwned::to_owned),
    };
    let Some(protocol) = protocol else {
        options.set_default("filename", text);
        return Ok(());
    };
    let rest = &text[protocol.len() + 1..];
    match &*protocol {
        "file" => options.set_default("filename", rest),
        "null-co" | "null-aio" => {}
        "blkdebug" => {
            let Some((config, image)) = rest.split_once(':') else {
                return Err(Refusal::new("blkdebug requires both config file and image path"));
            };
            if !config.is_empty() {
                options.set_default("config", config);
            }
            options.set_default("x-image", image);
        }
        protocol if name::is_nbd(protocol) => {
            options.set_default("filename", text);
        }
        protocol => return Err(Refusal::new(format!("Unknown protocol '{protocol}'"))),
    }
    options.set_default("driver", &protocol);
    Ok(())
}

/// Takes the options out that change nothing that is read or written here: those of every node, and `own` ones.
pub(super) fn ignore(options: &mut NodeOptions, own: &[&str]) {
    let common = [
        "cache.direct",
        "cache.no-flush",
        "read-only",
        "auto-read-only",
        "node-name",
        "discard",
        "detect-zeroes",
        "force-share",
    ];
    for name in common.iter().chain(own) {
        options.take(name);
    }
}

fn open_file(mut options: NodeOptions, flags: Flags) -> Result<Node, Refusal> {
    let path = options.take("filename").unwrap_or_default();
    ignore(&mut options, &["locking", "aio"]);
    if path.is_empty() {
        return Err(Refusal::new("The 'file' block driver requires a file name"));
    }
    if let Some(left) = options.first() {
        return Err(Refusal::new(format!(
            "Block protocol 'file' doesn't support the option '{left}'"
        )));
    }
    let metadata = fs::metadata(&path);
    let device = metadata
        .as_ref()
        .is_ok_and(|file| file.file_type().is_block_device());
    if metadata.is_ok_and(|file| !file.is_file() && !file.file_type().is_block_device()) {
        return Err(Refusal::new(format!(
            "'file' driver requires '{path}' to be a regular file"
        )));
    }
    let opened = raw::OpenOptions::new()
        .write(flags.write)
        .force_share(flags.force_share && !flags.write)
        .direct(flags.direct)
        .io(if flags.uring { Io::Uring } else { Io::Auto })
        .open(&path);
    let storage = opened.map_err(|error| explain(&error, &path, flags))?;
    let exact = name::of_path(&path);
    let driver = if device { "host_device" } else { "file" };
    let mut shown = Object::default();
    shown.insert("driver", driver);
    shown.insert("filename", &*path);
    Ok(Node {
        storage: Arc::new(storage),
        data: None,
        driver,
        directory: Some(name::directory(&exact).to_owned()),
        exact: Some(exact),
        options: shown,
        child: None,
        disk: None,
    })
}

/// Why a file of the host was not opened.
fn explain(error: &Error, path: &str, flags: Flags) -> Refusal {
    if error.kind() == ErrorKind::Locked {
        let lock = if flags.write {
            "Failed to get \"write\" lock"
        } else {
            "Failed to get shared \"write\" lock"
        };
        return Refusal::new(lock).with_hint(&format!("Is another process using the image [{path}]?"));
    }
    Refusal::new(format!("Could not open '{path}': {}", reason(error)))
}

fn open_null(name: Option<&str>, mut options: NodeOptions, written: &NodeOptions) -> Result<Node, Refusal> {
    let driver = if written.get("driver").as_deref() == Some("null-aio") {
        "null-aio"
    } else {
        "null-co"
    };
    let size = options.take("size");
    let len = match &size {
        None => 1 << 30,
        Some(text) => super::number::size(text)
            .map_err(|_| Refusal::new("Parameter 'size' expects a non-negative number below 2^64"))?,
    };
    let zeros = options.take("read-zeroes").is_some_and(|value| value == "on");
    options.take("latency-ns");
    if let Some(left) = options.first() {
        return Err(Refusal::new(format!(
            "Block protocol '{driver}' doesn't support the option '{left}'"
        )));
    }
    Ok(Node {
        storage: Arc::new(null::Null { len, zeros }),
        data: None,
        driver,
        exact: name.filter(|_| size.is_none()).map(|_| format!("{driver}://")),
        options: written.to_json(),
        directory: None,
        child: None,
        disk: None,
    })
}

/// An image as a node.
fn open_disk(options: NodeOptions, written: &NodeOptions, flags: Flags) -> Result<Node, Refusal> {
    let image = super::image::open_options(options, flags)?;
    Ok(Node {
        driver: image.layers[0].format,
        storage: Arc::new(disk::Disk(image.chain.device())),
        data: None,
        exact: None,
        options: written.to_json(),
        directory: image.layers[0].node.directory.clone(),
        child: None,
        disk: Some(Box::new(image)),
    })
}
