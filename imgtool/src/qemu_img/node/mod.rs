//! Nodes: what an image is stored in, as a name or a tree of options says. A node is a file or a device of the host, and for
//! tests one that fails on command ([`blkdebug`]) or holds nothing ([`null`]), or copies that must agree ([`quorum`]).
//!
//! Only what the user named gets here, or what an image names that the user named: where the native commands ask a gate, this
//! personality opens what QEMU opens. See docs/qemu-img.md.

mod blkdebug;
pub(super) mod common;
mod disk;
pub(super) mod exports;
pub(super) mod json_text;
pub(super) mod name;
mod null;
mod options;
mod quorum;
pub(super) mod tuning;

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use block::{Error, ErrorKind, Storage};
use raw::Io;
use rustix::fs::{Mode, OFlags};

use self::common::NodeName;
pub(super) use self::options::NodeOptions;
use super::image::Image;
use super::json::{Json, Object};
use super::refusal::{ENXIO, Refusal, host_text, reason};
use crate::stores::refuse_template;

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
    /// Which is taken as long as it is open.
    _name: Option<NodeName>,
}

impl Node {
    /// The name that is shown.
    pub(super) fn filename(&self) -> String {
        match (&self.exact, &self.disk) {
            (Some(name), _) => name.clone(),
            (None, Some(image)) => image.filename().to_owned(),
            (None, None) => format!("json:{}", Json::from(self.options.clone()).compact()),
        }
    }

    /// The name that says everything, if there is one.
    pub(super) fn exact(&self) -> Option<&str> {
        self.exact.as_deref()
    }

    /// The name that is shown, if it is no list of all options.
    pub(super) fn plain_name(&self) -> Option<String> {
        Some(self.filename()).filter(|name| !name.starts_with("json:"))
    }

    /// All options.
    pub(super) fn to_json(&self) -> Object {
        self.options.clone()
    }

    /// Bytes that it takes on the host, as far as that is known.
    pub(super) fn allocated(&self) -> Option<u64> {
        match self.driver {
            "blkdebug" => None,
            // What the file system that the node is in keeps for it, which callers of stock expect as a number.
            "host_device" => Some(0),
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

    /// The image whose disk it is itself.
    pub(super) fn own_disk(&self) -> Option<&Image> {
        self.disk.as_deref()
    }

    /// The image whose disk is at the bottom of it.
    pub(super) fn disk(&self) -> Option<&Image> {
        match &self.child {
            Some((_, child)) => child.disk(),
            None => self.disk.as_deref(),
        }
    }

    /// The name of what is at the bottom of it.
    pub(super) fn bottom(&self) -> String {
        match (&self.child, &self.disk) {
            (Some((_, child)), _) => child.bottom(),
            (None, Some(image)) => image.layers[0].node.bottom(),
            (None, None) => self.filename(),
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
        "file" | "host_device" | "blkdebug" | "null-co" | "null-aio" | "quorum" | "nbd"
    )
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
    let stated = options.take_text("driver");
    // What a plain name means may be a device, and what is said to be a file may not.
    let devices = stated.as_deref() != Some("file");
    let driver = match stated {
        Some(driver) => driver,
        None if options.text("filename").is_some() => "file".to_owned(),
        None => return Err(Refusal::new("Must specify either driver or file")),
    };
    if matches!(&*driver, "qcow2" | "raw" | "luks") {
        options.set("driver", &driver);
        return open_disk(options, flags);
    }
    if !is_node_driver(&driver) {
        return Err(Refusal::new(format!("Unknown driver '{driver}'")));
    }
    let mut path = String::new();
    if matches!(&*driver, "file" | "host_device") {
        path = options.take_text("filename").unwrap_or_default();
        if path.is_empty() {
            return Err(Refusal::new(format!(
                "The '{driver}' block driver requires a file name"
            )));
        }
    }
    let flags = common::take(&mut options, flags)?;
    let node_name = options.take("node-name").map(NodeName::claim).transpose()?;
    // As it is shown: what every node can be told is left out.
    let mut written = options.clone();
    written.set("driver", &driver);
    let node = match &*driver {
        "null-co" | "null-aio" => open_null(options, &written),
        "blkdebug" => blkdebug::open(options, &written, flags),
        "quorum" => quorum::open(options, &written, flags),
        "nbd" => exports::open(name, options, flags),
        _ => open_file(&driver, &path, devices, options, flags),
    };
    Ok(Node {
        _name: node_name,
        ..node?
    })
}

/// A name that is no node's: none has a name here that another could refer to.
pub(super) fn no_node(reference: &str) -> Refusal {
    Refusal::new(format!(
        "Cannot find device='{reference}' nor node-name='{reference}'"
    ))
}

/// Turns a name into options.
fn parse_name(text: &str, options: &mut NodeOptions) -> Result<(), Refusal> {
    let protocol = name::protocol(text);
    let protocol = match options.text("driver") {
        // Names of its own are all that it takes.
        Some("nbd") => return Ok(()),
        Some(driver @ ("null-co" | "null-aio")) if protocol.is_none() => return Err(only_name(driver)),
        // The name is one of that driver's.
        Some(driver) => protocol.filter(|protocol| *protocol == driver),
        None => protocol,
    };
    let Some(protocol) = protocol else {
        options.set_default("filename", text);
        return Ok(());
    };
    let rest = &text[protocol.len() + 1..];
    match protocol {
        "file" => options.set_default("filename", rest),
        "null-co" | "null-aio" if rest != "//" => return Err(only_name(protocol)),
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
            options.set_default("driver", "nbd");
        }
        protocol => return Err(Refusal::new(format!("Unknown protocol '{protocol}'"))),
    }
    options.set_default("driver", protocol);
    Ok(())
}

fn only_name(driver: &str) -> Refusal {
    Refusal::new(format!(
        "The only allowed filename for this driver is '{driver}://'"
    ))
}

fn open_file(
    driver: &str,
    path: &str,
    devices: bool,
    mut options: NodeOptions,
    flags: Flags,
) -> Result<Node, Refusal> {
    let flags = common::take_of_file(&mut options, flags)?;
    if flags.write {
        // QEMU would write to it, and change all machines that are based on it.
        refuse_template(Path::new(path))
            .map_err(|error| Refusal::new(format!("Could not open '{path}': {}", error.message())))?;
    }
    let kind = fs::metadata(path).map(|file| file.file_type()).ok();
    let device = kind.is_some_and(|kind| kind.is_block_device());
    if devices && kind.is_some_and(|kind| kind.is_char_device()) {
        nothing_left(driver, &options)?;
        return open_character_device(path, flags);
    }
    if kind.is_some_and(|kind| kind.is_socket()) {
        let why = host_text(&io::Error::from_raw_os_error(ENXIO));
        return Err(Refusal::new(format!("Could not open '{path}': {why}")));
    }
    if kind.is_some_and(|kind| !kind.is_file() && !device) {
        return Err(Refusal::new(format!(
            "'file' driver requires '{path}' to be a regular file"
        )));
    }
    if driver == "host_device" && kind.is_some() && !device {
        return Err(Refusal::new(format!(
            "'host_device' driver requires '{path}' to be either a character or block device"
        )));
    }
    let opened = raw::OpenOptions::new()
        .write(flags.write)
        .force_share(flags.force_share && !flags.write)
        .direct(flags.direct)
        .io(if flags.uring { Io::Uring } else { Io::Auto })
        .open(path);
    let storage = opened.map_err(|error| explain(&error, path, flags))?;
    let exact = name::of_path(path);
    let driver = if device { "host_device" } else { "file" };
    nothing_left(driver, &options)?;
    let mut shown = Object::default();
    shown.insert("driver", driver);
    shown.insert("filename", path);
    Ok(Node {
        storage: Arc::new(storage),
        data: None,
        driver,
        directory: Some(name::directory(&exact).to_owned()),
        exact: Some(exact),
        options: shown,
        child: None,
        disk: None,
        _name: None,
    })
}

/// Fails for an option that a node has no use for.
fn nothing_left(driver: &str, options: &NodeOptions) -> Result<(), Refusal> {
    match options.first() {
        None => Ok(()),
        Some(left) => Err(Refusal::new(format!(
            "Block protocol '{driver}' doesn't support the option '{left}'"
        ))),
    }
}

/// Whether a path is that of a device.
pub(super) fn is_device(path: &str) -> bool {
    is_block_device(path) || is_kind(path, FileTypeExt::is_char_device)
}

pub(super) fn is_block_device(path: &str) -> bool {
    is_kind(path, FileTypeExt::is_block_device)
}

fn is_kind(path: &str, which: impl Fn(&fs::FileType) -> bool) -> bool {
    fs::metadata(path).is_ok_and(|file| which(&file.file_type()))
}

/// A character device such as /dev/null is a disk of no length: what it gives and takes is at no place.
fn open_character_device(path: &str, flags: Flags) -> Result<Node, Refusal> {
    let access = if flags.write { OFlags::RDWR } else { OFlags::RDONLY };
    // Nothing is waited for, and a terminal does not become this process's own.
    let how = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, how, Mode::empty())
        .map_err(|error| Refusal::new(format!("Could not open '{path}': {}", host_text(&error.into()))))?;
    let mut shown = Object::default();
    shown.insert("driver", "host_device");
    shown.insert("filename", path);
    let exact = name::of_path(path);
    Ok(Node {
        storage: Arc::new(null::Null { len: 0, zeros: true }),
        data: None,
        driver: "host_device",
        directory: Some(name::directory(&exact).to_owned()),
        exact: Some(exact),
        options: shown,
        child: None,
        disk: None,
        _name: None,
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

/// Bytes that any disk of QEMU has at most: whole GiB that C can count.
const MAX_LEN: u64 = i64::MAX as u64 >> 30 << 30;

fn open_null(mut options: NodeOptions, written: &NodeOptions) -> Result<Node, Refusal> {
    let driver = if written.text("driver") == Some("null-aio") {
        "null-aio"
    } else {
        "null-co"
    };
    let stated = common::size(&mut options, "size")?;
    let len = stated.unwrap_or(1 << 30);
    if len > MAX_LEN {
        return Err(Refusal::new(
            "Could not refresh total sector count: File too large",
        ));
    }
    let zeros = common::switch(&mut options, "read-zeroes")?;
    let latency = common::number(&mut options, "latency-ns")?;
    if latency.is_some_and(|latency| i64::try_from(latency).is_err()) {
        return Err(Refusal::new("latency-ns is invalid"));
    }
    nothing_left(driver, &options)?;
    Ok(Node {
        storage: Arc::new(null::Null { len, zeros }),
        data: None,
        driver,
        exact: written
            .keys()
            .all(|key| key == "driver")
            .then(|| format!("{driver}://")),
        options: written.to_json(),
        directory: None,
        child: None,
        disk: None,
        _name: None,
    })
}

/// An image as a node.
fn open_disk(options: NodeOptions, flags: Flags) -> Result<Node, Refusal> {
    let image = super::image::open_options(options, flags)?;
    Ok(Node {
        driver: image.layers[0].format,
        storage: Arc::new(disk::Disk(image.chain.device())),
        data: None,
        exact: None,
        options: image.layers[0].shown.clone(),
        directory: image.layers[0].node.directory.clone(),
        child: None,
        disk: Some(Box::new(image)),
        _name: None,
    })
}
