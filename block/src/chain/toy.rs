//! Formats for the tests of chains: a line of text for each thing that an image says, and raw.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::gate::Permit;
use crate::{
    Access, Backing, BackingReference, BlockDevice, DataFileReference, DeviceInfo, Error, Extent,
    ExtentState, FileOpener, Format, Keys, MemStorage, Overlay, References, Result, Storage, ZeroMode,
};

/// What a data cluster with this `fill` holds at a guest offset: never zero, and never the same for long.
pub(crate) fn byte_at(fill: u8, offset: u64) -> u8 {
    ((u64::from(fill) * 31 + offset * 7 + (offset >> 9) * 3) as u8) | 1
}

/// A layer that holds only a map; its data is made up. Over a backing device it reads through, as a format would.
#[derive(Debug)]
pub(crate) struct ToyImage {
    size: u64,
    bits: u32,
    /// Fill by cluster; 1 is zero. What is not there is a hole.
    clusters: BTreeMap<u64, u8>,
    storage: Arc<dyn Storage>,
    reference: Option<BackingReference>,
    backing: Option<Arc<dyn BlockDevice>>,
    lookups: AtomicU64,
    reads: AtomicU64,
}

impl ToyImage {
    /// A layer that stands alone. Fill 0 is a hole.
    pub(crate) fn new(size: u64, bits: u32, clusters: impl IntoIterator<Item = (usize, u8)>) -> Self {
        let clusters = clusters.into_iter().filter(|(_, fill)| *fill != 0);
        Self {
            size,
            bits,
            clusters: clusters.map(|(cluster, fill)| (cluster as u64, fill)).collect(),
            storage: Arc::new(MemStorage::new()),
            reference: None,
            backing: None,
            lookups: AtomicU64::new(0),
            reads: AtomicU64::new(0),
        }
    }

    /// Calls of `own_extent_at` from outside.
    pub(super) fn lookups(&self) -> u64 {
        self.lookups.load(Ordering::Relaxed)
    }

    /// Calls of `read_at`.
    pub(super) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    fn own(&self, offset: u64, len: u64) -> Result<Extent> {
        if len == 0 || offset >= self.size {
            return Err(Error::out_of_bounds("extent", offset, len, self.size));
        }
        let cluster = offset >> self.bits;
        let (end, state) = match self.clusters.range(cluster..).next() {
            Some((next, fill)) if *next == cluster && *fill == 1 => (cluster + 1, ExtentState::Zero),
            Some((next, _)) if *next == cluster => (cluster + 1, ExtentState::Data),
            Some((next, _)) => (*next, ExtentState::Hole),
            None => (u64::MAX >> self.bits, ExtentState::Hole),
        };
        let end = (end << self.bits).min(self.size).min(offset.saturating_add(len));
        Ok(Extent {
            offset,
            len: end - offset,
            state,
            depth: 0,
            host: (state == ExtentState::Data).then_some(offset),
        })
    }
}

impl BlockDevice for ToyImage {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            cluster_size: Some(1 << self.bits),
            ..DeviceInfo::new("toy")
        }
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if offset + buf.len() as u64 > self.size {
            return Err(Error::out_of_bounds("read", offset, buf.len() as u64, self.size));
        }
        for (at, byte) in (offset..).zip(buf) {
            *byte = match (self.clusters.get(&(at >> self.bits)), &self.backing) {
                (Some(1), _) => 0,
                (Some(fill), _) => byte_at(*fill, at),
                (None, Some(backing)) if at < backing.size() => {
                    let mut below = [0];
                    backing.read_at(&mut below, at)?;
                    below[0]
                }
                (None, _) => 0,
            };
        }
        Ok(())
    }

    fn write_at(&self, _: &[u8], _: u64) -> Result<()> {
        Err(Error::read_only("write"))
    }

    fn zero_at(&self, _: u64, _: u64, _: ZeroMode) -> Result<()> {
        Err(Error::read_only("write zeros"))
    }

    fn discard_at(&self, _: u64, _: u64) -> Result<()> {
        Err(Error::read_only("discard"))
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        self.own(offset, len)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

impl Overlay for ToyImage {
    fn backing(&self) -> Option<Arc<dyn BlockDevice>> {
        self.backing.clone()
    }

    fn backing_reference(&self) -> Option<BackingReference> {
        self.reference.clone()
    }

    fn own_extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        self.lookups.fetch_add(1, Ordering::Relaxed);
        self.own(offset, len)
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }
}

/// What an image of the toy format says, as a builder.
#[derive(Clone, Debug, Default)]
pub(super) struct Toy(String);

impl Toy {
    pub(super) fn new(size: u64) -> Self {
        Self(format!("toy\nsize {size}\n"))
    }

    pub(super) fn cluster(mut self, number: u64, fill: u8) -> Self {
        writeln!(self.0, "cluster {number} {fill}").unwrap();
        self
    }

    pub(super) fn backing(mut self, name: &str, format: Option<&str>) -> Self {
        writeln!(self.0, "backing {} {name}", format.unwrap_or("-")).unwrap();
        self
    }

    pub(super) fn data_file(mut self, name: &str) -> Self {
        writeln!(self.0, "data-file {name}").unwrap();
        self
    }
}

/// The format `toy`: 4 KiB clusters.
#[derive(Debug)]
pub(super) struct ToyFormat;

/// The format `raw`, of which only the size counts.
#[derive(Debug)]
pub(super) struct RawFormat;

fn lines(storage: &dyn Storage) -> Vec<(String, String)> {
    let mut text = vec![0; storage.len().unwrap() as usize];
    storage.read_exact_at(&mut text, 0).unwrap();
    let text = String::from_utf8(text).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

impl Format for ToyFormat {
    fn name(&self) -> &'static str {
        "toy"
    }

    fn probe(&self, head: &[u8]) -> bool {
        head.starts_with(b"toy\n")
    }

    fn references(&self, storage: &dyn Storage) -> Result<References> {
        let mut references = References::default();
        for (key, value) in lines(storage) {
            match (key.as_str(), value.split_once(' ')) {
                ("backing", Some((format, name))) => {
                    references.backing = Some(BackingReference {
                        name: name.to_owned(),
                        format: (format != "-").then(|| format.to_owned()),
                    });
                }
                ("data-file", _) => {
                    references.data_file = Some(DataFileReference {
                        name: Some(value),
                        raw: true,
                    });
                }
                _ => {}
            }
        }
        Ok(references)
    }

    fn open(
        &self,
        storage: Arc<dyn Storage>,
        _: Option<Arc<dyn Storage>>,
        _: Access,
        backing: Backing,
        _: Keys,
    ) -> Result<Arc<dyn Overlay>> {
        let reference = self.references(&*storage)?.backing;
        let (mut size, mut clusters) = (0, Vec::new());
        for (key, value) in lines(&*storage) {
            match (key.as_str(), value.split_once(' ')) {
                ("size", _) => size = value.parse().unwrap(),
                ("cluster", Some((number, fill))) => {
                    clusters.push((number.parse().unwrap(), fill.parse().unwrap()));
                }
                _ => {}
            }
        }
        let backing = match (backing, &reference) {
            (Backing::None, Some(_)) => {
                return Err(Error::invalid("a backing file is named and was not given"));
            }
            (Backing::Device(_), None) => return Err(Error::invalid("no backing file is named")),
            (Backing::None | Backing::Detached, _) => None,
            (Backing::Device(device), _) => Some(device),
        };
        Ok(Arc::new(ToyImage {
            storage,
            reference,
            backing,
            ..ToyImage::new(size, 12, clusters)
        }))
    }
}

impl Format for RawFormat {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn probe(&self, _: &[u8]) -> bool {
        false
    }

    fn references(&self, _: &dyn Storage) -> Result<References> {
        Ok(References::default())
    }

    fn open(
        &self,
        storage: Arc<dyn Storage>,
        _: Option<Arc<dyn Storage>>,
        _: Access,
        _: Backing,
        _: Keys,
    ) -> Result<Arc<dyn Overlay>> {
        let size = storage.len()?;
        Ok(Arc::new(ToyImage {
            storage,
            ..ToyImage::new(size, 12, (0..size as usize >> 12).map(|cluster| (cluster, 1)))
        }))
    }
}

/// Files in memory, and who opened them for what.
#[derive(Debug, Default)]
pub(super) struct MemFiles {
    files: HashMap<PathBuf, Arc<dyn Storage>>,
    opened: Mutex<Vec<(PathBuf, Access)>>,
}

impl MemFiles {
    #[must_use]
    pub(super) fn with(mut self, path: &str, toy: &Toy) -> Self {
        let storage = MemStorage::from(toy.0.as_bytes()).with_path(path);
        self.files.insert(path.into(), Arc::new(storage));
        self
    }

    #[must_use]
    pub(super) fn with_bytes(mut self, path: &str, bytes: &[u8]) -> Self {
        let storage = MemStorage::from(bytes).with_path(path);
        self.files.insert(path.into(), Arc::new(storage));
        self
    }

    /// Another name for a file that is there.
    #[must_use]
    pub(super) fn with_link(mut self, path: &str, to: &str) -> Self {
        let storage = self.files[Path::new(to)].clone();
        self.files.insert(path.into(), storage);
        self
    }

    pub(super) fn opened(&self) -> Vec<(PathBuf, Access)> {
        self.opened.lock().unwrap().clone()
    }
}

impl FileOpener for MemFiles {
    fn open(&self, path: &Path, access: Access) -> Result<Arc<dyn Storage>> {
        self.opened.lock().unwrap().push((path.to_owned(), access));
        self.files.get(path).cloned().ok_or_else(|| {
            Error::io("open", std::io::ErrorKind::NotFound.into())
                .with_path(path)
                .with_hint("check the name")
        })
    }

    fn open_nested(&self, permit: &Permit, access: Access) -> Result<Arc<dyn Storage>> {
        self.open(&permit.path, access)
    }
}
