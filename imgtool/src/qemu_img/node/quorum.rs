//! `quorum`: copies of one file, of which as many as are asked for must agree. All are written to.

use std::sync::Arc;

use block::{Error, ErrorKind, HostExtent, Result, Storage, ZeroMode};

use super::super::refusal::Refusal;
use super::common::number;
use super::{Flags, Node, NodeOptions, no_node};

/// See the [module](self).
#[derive(Debug)]
struct Quorum {
    children: Vec<Arc<dyn Storage>>,
    threshold: usize,
}

/// Opens all copies.
pub(super) fn open(
    mut options: NodeOptions,
    written: &NodeOptions,
    flags: Flags,
) -> std::result::Result<Node, Refusal> {
    let threshold = number(&mut options, "vote-threshold")?.unwrap_or_default();
    let mut listed = options.take_node("children");
    let mut children = Vec::new();
    while !listed.is_empty() {
        let name = children.len().to_string();
        if let Some(reference) = listed.take_text(&name) {
            return Err(no_node(&reference));
        }
        let child = listed.take_node(&name);
        if child.is_empty() {
            return Err(Refusal::new("Option children is not a valid array"));
        }
        children.push(super::open(None, child, flags)?.storage);
    }
    super::nothing_left("quorum", &options)?;
    if children.is_empty() {
        return Err(Refusal::new("Number of provided children must be 1 or more"));
    }
    if threshold == 0 {
        return Err(Refusal::new("Parameter 'vote-threshold' expects a value >= 1"));
    }
    if threshold > children.len() as u64 {
        return Err(Refusal::new("threshold may not exceed children count"));
    }
    let threshold = threshold as usize;
    Ok(Node {
        storage: Arc::new(Quorum { children, threshold }),
        data: None,
        driver: "quorum",
        exact: None,
        options: written.to_json(),
        // Each copy may have one of its own.
        directory: None,
        child: None,
        disk: None,
        _name: None,
    })
}

impl Quorum {
    fn each(&self, act: impl Fn(&dyn Storage) -> Result<()>) -> Result<()> {
        self.children.iter().try_for_each(|child| act(&**child))
    }
}

fn no_majority(offset: u64) -> Error {
    Error::new(ErrorKind::Io, "too few of the copies agree").with_offset(offset)
}

impl Storage for Quorum {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut versions: Vec<(Vec<u8>, usize)> = Vec::new();
        for child in &self.children {
            let mut bytes = vec![0; buf.len()];
            if child.read_exact_at(&mut bytes, offset).is_err() {
                continue;
            }
            match versions.iter_mut().find(|version| version.0 == bytes) {
                Some(version) => version.1 += 1,
                None => versions.push((bytes, 1)),
            }
        }
        // Of as many votes, the first copy's counts.
        let most = versions.iter().rev().max_by_key(|version| version.1);
        let agreed = most.filter(|version| version.1 >= self.threshold);
        let (bytes, _) = agreed.ok_or_else(|| no_majority(offset))?;
        buf.copy_from_slice(bytes);
        Ok(())
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.each(|child| child.write_all_at(buf, offset))
    }

    fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.each(|child| child.zero(offset, len, mode))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.each(|child| child.discard(offset, len))
    }

    fn host_extent(&self, _: u64, len: u64) -> Result<HostExtent> {
        Ok(HostExtent { len, data: true })
    }

    fn sync_data(&self) -> Result<()> {
        self.each(|child| child.sync_data())
    }

    fn len(&self) -> Result<u64> {
        let len = self.children[0].len()?;
        self.each(|child| {
            if child.len()? == len {
                return Ok(());
            }
            Err(Error::new(
                ErrorKind::Io,
                "the copies are not as long as each other",
            ))
        })?;
        Ok(len)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.each(|child| child.set_len(len))
    }
}
