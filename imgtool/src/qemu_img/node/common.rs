//! Options that every node has. Those of caches and of discarding change nothing that is read or written here; what they say has to be
//! something that QEMU takes all the same.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use super::super::format_options;
use super::super::object::is_id;
use super::super::refusal::Refusal;
use super::{Flags, NodeOptions};

/// Takes the options of every node but its name, and gives how it is to be opened.
pub(in super::super) fn take(options: &mut NodeOptions, flags: Flags) -> Result<Flags, Refusal> {
    let direct = switch(options, "cache.direct")?;
    switch(options, "cache.no-flush")?;
    switch(options, "auto-read-only")?;
    let read_only = switch(options, "read-only")?;
    let force_share = switch(options, "force-share")?;
    let discard = options.take("discard");
    if discard
        .as_deref()
        .is_some_and(|discard| !["ignore", "off", "unmap", "on"].contains(&discard))
    {
        return Err(Refusal::new("Invalid discard option"));
    }
    let zeroes = choice(options, "detect-zeroes", &["off", "on", "unmap"])?;
    let unmaps = matches!(discard.as_deref(), Some("unmap" | "on"));
    if zeroes.is_some_and(|zeroes| zeroes == "unmap") && !unmaps {
        return Err(Refusal::new(
            "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
        ));
    }
    if flags.write && read_only {
        return Err(Refusal::new("Block node is read-only"));
    }
    if flags.write && force_share {
        return Err(Refusal::new(
            "force-share=on can only be used with read-only images",
        ));
    }
    Ok(Flags {
        direct: flags.direct || direct,
        force_share: flags.force_share || force_share,
        ..flags
    })
}

/// Takes the options of a file of the host.
pub(super) fn take_of_file(options: &mut NodeOptions, flags: Flags) -> Result<Flags, Refusal> {
    switch(options, "drop-cache")?;
    switch(options, "x-check-cache-dropped")?;
    number(options, "aio-max-batch")?;
    let aio = choice(options, "aio", &["threads", "native", "io_uring"])?;
    let locking = choice(options, "locking", &["auto", "on", "off"])?;
    if let Some(id) = options.take("pr-manager") {
        return Err(Refusal::new(format!(
            "No persistent reservation manager with id '{id}'"
        )));
    }
    if aio.is_some_and(|aio| aio == "native") && !flags.direct {
        return Err(Refusal::new(
            "aio=native was specified, but it requires cache.direct=on, which was not specified.",
        ));
    }
    let unlocked = locking.is_some_and(|locking| locking == "off");
    Ok(Flags {
        force_share: flags.force_share || unlocked,
        ..flags
    })
}

/// The name of a node. As long as it is open no other has it.
#[derive(Debug)]
pub(in super::super) struct NodeName(String);

/// The names of all nodes that are open.
static NAMES: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Bytes of a name, at most.
const MAX_NAME: usize = 31;

impl NodeName {
    /// Takes a name that a node may have.
    pub(in super::super) fn claim(name: String) -> Result<Self, Refusal> {
        if !is_id(&name) {
            return Err(Refusal::new(format!("Invalid node-name: '{name}'")));
        }
        if name.len() > MAX_NAME {
            return Err(Refusal::new("Node name too long"));
        }
        let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        if names.insert(name.clone()) {
            Ok(Self(name))
        } else {
            Err(Refusal::new(format!("Duplicate nodes with node-name='{name}'")))
        }
    }
}

impl Drop for NodeName {
    fn drop(&mut self) {
        let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        names.remove(&self.0);
    }
}

/// Takes an option that is on or off, and is off if nothing is said.
pub(super) fn switch(options: &mut NodeOptions, name: &str) -> Result<bool, Refusal> {
    let Some(value) = options.take(name) else {
        return Ok(false);
    };
    format_options::switch(&value)
        .ok_or_else(|| Refusal::new(format!("Parameter '{name}' expects 'on' or 'off'")))
}

/// Takes an option that is a number.
pub(super) fn number(options: &mut NodeOptions, name: &str) -> Result<Option<u64>, Refusal> {
    let value = options.take(name);
    let parse = |text: String| {
        format_options::parse_number(&text)
            .ok_or_else(|| Refusal::new(format!("Parameter '{name}' expects a number")))
    };
    value.map(parse).transpose()
}

/// Takes an option that is a size.
pub(super) fn size(options: &mut NodeOptions, name: &str) -> Result<Option<u64>, Refusal> {
    let value = options.take(name);
    value
        .map(|text| format_options::parse_size(name, &text))
        .transpose()
}

/// Takes an option that is one of these words.
fn choice(options: &mut NodeOptions, name: &str, words: &[&str]) -> Result<Option<String>, Refusal> {
    let value = options.take(name);
    match &value {
        Some(value) if !words.contains(&&**value) => {
            Err(Refusal::new(format!("invalid parameter value: {value}")))
        }
        _ => Ok(value),
    }
}
