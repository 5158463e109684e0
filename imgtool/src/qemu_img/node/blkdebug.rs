//! `blkdebug`: a node that fails on command, for tests of what a program does then.
//!
//! # How it works
//!
//! Rules come from a file of `[inject-error]` and `[set-state]` sections, or from options of those names. An error is injected into
//! requests of the kinds that its rule names, at the sector that it names or at all, while the node is in the state that it
//! names or in any; one that is to come `once` goes away with it. Of QEMU's events there are `none`, which is always, and `read_aio` and
//! `write_aio`, which are requests for guest data: a format sends these another way ([`Node::data`]). And `cluster_free`, when room is
//! given back.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use block::{Alignment, Error, FileId, HostExtent, Result, Storage, ZeroMode};

use super::super::refusal::{EIO, Refusal, host_text};
use super::{Flags, Node, NodeOptions, no_node};

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    Read,
    Write,
    WriteZeroes,
    Discard,
    Flush,
    BlockStatus,
}

impl Request {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Read, "read"),
        (Self::Write, "write"),
        (Self::WriteZeroes, "write-zeroes"),
        (Self::Discard, "discard"),
        (Self::Flush, "flush"),
        (Self::BlockStatus, "block-status"),
    ];

    /// What a rule without an `iotype` is about.
    fn is_usual(self) -> bool {
        self != Self::BlockStatus
    }

    /// The event that guest data of this kind is, or any discard.
    fn event(self) -> &'static str {
        match self {
            Self::Read => "read_aio",
            Self::Write | Self::WriteZeroes => "write_aio",
            Self::Discard => "cluster_free",
            _ => "none",
        }
    }
}

/// An error that is to come.
#[derive(Clone, Debug)]
struct Inject {
    event: String,
    request: Option<Request>,
    errno: i32,
    sector: Option<u64>,
    once: bool,
}

/// See the [module](self).
#[derive(Debug)]
struct Failing {
    below: Arc<dyn Storage>,
    rules: Arc<Mutex<Vec<Inject>>>,
    /// The guest's data comes this way, and nothing else does.
    data: bool,
}

/// Opens the node and the one below it.
pub(super) fn open(
    mut options: NodeOptions,
    written: &NodeOptions,
    flags: Flags,
) -> std::result::Result<Node, Refusal> {
    let config = options.take("config");
    let image_name = options.take("x-image");
    let image_options = options.take_node("image");
    if let Some(reference) = options.take_text("image") {
        return Err(no_node(&reference));
    }
    if image_name.is_none() && image_options.is_empty() {
        return Err(Refusal::new("A block device must be specified for \"image\""));
    }
    let mut rules = match &config {
        Some(path) => read_config(path)?,
        None => Vec::new(),
    };
    let mut number = 0;
    let mut injects = options.take_node("inject-error");
    while !injects.is_empty() {
        let rule = injects.take_node(&number.to_string());
        if !rule.is_empty() {
            rules.push(rule_of(rule)?);
        }
        number += 1;
        if number > 1000 {
            return Err(Refusal::new("Invalid parameter 'inject-error'"));
        }
    }
    options.take_node("set-state");
    for limit in [
        "align",
        "max-transfer",
        "opt-write-zero",
        "max-write-zero",
        "opt-discard",
        "max-discard",
    ] {
        options.take(limit);
    }
    super::nothing_left("blkdebug", &options)?;
    let child = super::open(image_name.as_deref(), image_options, flags)?;
    let told =
        |key: &str| matches!(key, "config" | "driver" | "image" | "x-image") || key.starts_with("image.");
    let exact = child.plain_name().filter(|_| written.keys().all(told));
    let exact = exact.map(|image| format!("blkdebug:{}:{image}", config.as_deref().unwrap_or_default()));
    let mut shown = written.to_json();
    if image_name.is_none() {
        shown.insert("image", child.to_json());
    }
    let rules = Arc::new(Mutex::new(rules));
    let failing = |data| -> Arc<dyn Storage> {
        Arc::new(Failing {
            below: child.storage.clone(),
            rules: rules.clone(),
            data,
        })
    };
    Ok(Node {
        storage: failing(false),
        data: Some(failing(true)),
        driver: "blkdebug",
        exact,
        options: shown,
        directory: child.directory.clone(),
        child: Some(("image", Box::new(child))),
        disk: None,
        _name: None,
    })
}

fn read_config(path: &str) -> std::result::Result<Vec<Inject>, Refusal> {
    let text = fs::read_to_string(path).map_err(|error| {
        Refusal::new(format!(
            "Could not read blkdebug config file: {}",
            host_text(&error)
        ))
    })?;
    let mut rules = Vec::new();
    let mut section: Option<(bool, String)> = None;
    let mut finish = |section: Option<(bool, String)>| -> std::result::Result<(), Refusal> {
        if let Some((true, list)) = section {
            rules.push(rule_of(NodeOptions::of_list(&list))?);
        }
        Ok(())
    };
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            finish(section.take())?;
            section = Some((name.trim_end_matches(']') == "inject-error", String::new()));
        } else if let (Some((key, value)), Some((_, list))) = (line.split_once('='), &mut section) {
            let value = value.trim().trim_matches('"').replace(',', ",,");
            list.push_str(&format!("{}={value},", key.trim()));
        }
    }
    finish(section)?;
    Ok(rules)
}

fn rule_of(mut options: NodeOptions) -> std::result::Result<Inject, Refusal> {
    let number = |text: Option<String>| text.and_then(|text| text.parse::<i64>().ok());
    let request = match options.take("iotype") {
        None => None,
        Some(name) => {
            let found = Request::ALL.iter().find(|(_, known)| *known == name);
            let invalid = || Refusal::new(format!("Invalid parameter '{name}'"));
            Some(found.ok_or_else(invalid)?.0)
        }
    };
    Ok(Inject {
        event: options.take("event").unwrap_or_default(),
        request,
        errno: number(options.take("errno")).map_or(EIO, |errno| errno as i32),
        sector: number(options.take("sector")).and_then(|sector| u64::try_from(sector).ok()),
        once: options.take("once").is_some_and(|once| once == "on"),
    })
}

impl Failing {
    /// Fails if a rule says so.
    fn ask(&self, request: Request, offset: u64, len: u64) -> Result<()> {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |rule: &Inject| {
            let kind = match rule.request {
                Some(kind) => kind == request,
                None => request.is_usual(),
            };
            let known = self.data || request == Request::Discard;
            let event = rule.event == "none" || (known && rule.event == request.event());
            let sector = rule.sector.is_none_or(|sector| {
                let at = sector.saturating_mul(512);
                at < offset.saturating_add(len) && offset < at.saturating_add(512)
            });
            kind && event && sector
        };
        let Some(at) = rules.iter().position(fits) else {
            return Ok(());
        };
        let errno = rules[at].errno;
        if rules[at].once {
            rules.remove(at);
        }
        Err(Error::io("an injected error", io::Error::from_raw_os_error(errno)).with_offset(offset))
    }
}

impl Storage for Failing {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.ask(Request::Read, offset, buf.len() as u64)?;
        self.below.read_exact_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.ask(Request::Write, offset, buf.len() as u64)?;
        self.below.write_all_at(buf, offset)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<()> {
        self.ask(
            Request::Read,
            offset,
            bufs.iter().map(|buf| buf.len() as u64).sum(),
        )?;
        self.below.read_vectored_at(bufs, offset)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> Result<()> {
        self.ask(
            Request::Write,
            offset,
            bufs.iter().map(|buf| buf.len() as u64).sum(),
        )?;
        self.below.write_vectored_at(bufs, offset)
    }

    fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.ask(Request::WriteZeroes, offset, len)?;
        self.below.zero(offset, len, mode)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.ask(Request::Discard, offset, len)?;
        self.below.discard(offset, len)
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.below.allocate(offset, len)
    }

    fn host_extent(&self, offset: u64, len: u64) -> Result<HostExtent> {
        self.ask(Request::BlockStatus, offset, len)?;
        self.below.host_extent(offset, len)
    }

    fn sync_data(&self) -> Result<()> {
        self.ask(Request::Flush, 0, 0)?;
        self.below.sync_data()
    }

    fn len(&self) -> Result<u64> {
        self.below.len()
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.below.set_len(len)
    }

    fn alignment(&self) -> Alignment {
        self.below.alignment()
    }

    fn path(&self) -> Option<&Path> {
        self.below.path()
    }

    fn file_id(&self) -> Option<FileId> {
        self.below.file_id()
    }

    fn allocated(&self) -> Result<Option<u64>> {
        self.below.allocated()
    }
}
