//! A device in memory for this crate's tests: pages with states, a log of what was written, faults on request.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;

use block::{
    BlockDevice, CompressedWrite, DeviceInfo, Error, ErrorKind, Extent, ExtentState, HostCopy,
    OffloadedWrite, Result, Storage, ZeroMode,
};

pub(crate) const PAGE: u64 = 4096;

/// What was done to a [`Toy`], in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Write(u64, u64),
    Compressed(u64),
    Zero(u64, u64),
    /// The host was asked to put so many bytes there, and has put so many.
    Host(u64, u64, u64),
}

#[derive(Debug)]
pub(crate) struct Toy {
    size: u64,
    cluster_size: Option<u64>,
    compress: bool,
    depth_of_holes: u32,
    fail_extents_from: u64,
    fail_reads_from: u64,
    fail_writes_from: u64,
    /// How much of a run, by its number, the host takes over.
    host: Option<fn(usize, u64) -> u64>,
    pages: Mutex<BTreeMap<u64, Page>>,
    log: Mutex<Vec<Step>>,
}

#[derive(Clone, Debug)]
struct Page {
    state: ExtentState,
    depth: u32,
    bytes: Vec<u8>,
}

impl Toy {
    pub(crate) fn new(size: u64) -> Self {
        Self {
            size,
            cluster_size: None,
            compress: false,
            depth_of_holes: 0,
            fail_extents_from: u64::MAX,
            fail_reads_from: u64::MAX,
            fail_writes_from: u64::MAX,
            host: None,
            pages: Mutex::default(),
            log: Mutex::default(),
        }
    }

    /// Clusters of `size` bytes, which it can compress.
    pub(crate) fn clustered(mut self, size: u64) -> Self {
        self.cluster_size = Some(size);
        self.compress = true;
        self
    }

    pub(crate) fn failing_extents_from(mut self, offset: u64) -> Self {
        self.fail_extents_from = offset;
        self
    }

    pub(crate) fn failing_reads_from(mut self, offset: u64) -> Self {
        self.fail_reads_from = offset;
        self
    }

    pub(crate) fn failing_writes_from(mut self, offset: u64) -> Self {
        self.fail_writes_from = offset;
        self
    }

    /// Leaves writing to a host, which takes so much of each run.
    pub(crate) fn offloaded(mut self, host: fn(usize, u64) -> u64) -> Self {
        self.host = Some(host);
        self
    }

    /// Says that the pages in a range, and no others, lie in layer `depth`; holes in the layer below all.
    pub(crate) fn layered(mut self, first: u64, pages: u64, depth: u32, below: u32) -> Self {
        self.depth_of_holes = below;
        for (_, page) in self.pages.get_mut().unwrap().range_mut(first..first + pages) {
            page.depth = depth;
        }
        self
    }

    /// Data that differs from page to page and thread to thread, with whole pages and clusters of zeros in it.
    pub(crate) fn filled(self, seed: u64) -> Self {
        let mut x = seed | 1;
        for page in 0..self.size.div_ceil(PAGE) {
            x = x
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let len = PAGE.min(self.size - page * PAGE) as usize;
            match x >> 61 {
                0..=2 => {}
                3 => self.zero_at(page * PAGE, len as u64, ZeroMode::Unmap).unwrap(),
                4 => self.write_at(&vec![0; len], page * PAGE).unwrap(),
                _ => self
                    .write_at(&vec![(x >> 40) as u8 | 1; len], page * PAGE)
                    .unwrap(),
            }
        }
        self.log.lock().unwrap().clear();
        self
    }

    pub(crate) fn contents(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.size as usize];
        self.read_at(&mut bytes, 0).unwrap();
        bytes
    }

    pub(crate) fn log(&self) -> Vec<Step> {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn data_pages(&self) -> usize {
        let pages = self.pages.lock().unwrap();
        pages
            .values()
            .filter(|page| page.state == ExtentState::Data)
            .count()
    }

    fn put(&self, buf: &[u8], offset: u64) -> Result<()> {
        if offset + buf.len() as u64 > self.size {
            return Err(Error::out_of_bounds("write", offset, buf.len() as u64, self.size));
        }
        if offset >= self.fail_writes_from {
            return Err(Error::new(ErrorKind::NoSpace, "full"));
        }
        let mut pages = self.pages.lock().unwrap();
        for (page, within, here) in pieces(offset, buf.len()) {
            let page = pages.entry(page).or_insert_with(|| Page {
                state: ExtentState::Data,
                depth: 0,
                bytes: vec![0; PAGE as usize],
            });
            page.state = ExtentState::Data;
            page.bytes[within].copy_from_slice(&buf[here]);
        }
        Ok(())
    }
}

/// For every page that a buffer for the disk from `offset` on touches: the page, where in it, where in the buffer.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
    let end = offset + len as u64;
    (offset / PAGE..end.div_ceil(PAGE)).map(move |page| {
        let (first, last) = (offset.max(page * PAGE), end.min((page + 1) * PAGE));
        let within = (first - page * PAGE) as usize..(last - page * PAGE) as usize;
        (page, within, (first - offset) as usize..(last - offset) as usize)
    })
}

impl BlockDevice for Toy {
    fn info(&self) -> DeviceInfo {
        let mut info = DeviceInfo::new("toy");
        info.cluster_size = self.cluster_size;
        info.zero_init = true;
        info
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        if offset + buf.len() as u64 > self.size {
            return Err(Error::out_of_bounds("read", offset, buf.len() as u64, self.size));
        }
        if offset + buf.len() as u64 > self.fail_reads_from {
            return Err(Error::new(ErrorKind::Io, "unreadable"));
        }
        let pages = self.pages.lock().unwrap();
        for (page, within, here) in pieces(offset, buf.len()) {
            match pages.get(&page) {
                Some(page) => buf[here].copy_from_slice(&page.bytes[within]),
                None => buf[here].fill(0),
            }
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.log
            .lock()
            .unwrap()
            .push(Step::Write(offset, buf.len() as u64));
        self.put(buf, offset)
    }

    fn zero_at(&self, offset: u64, len: u64, _mode: ZeroMode) -> Result<()> {
        self.log.lock().unwrap().push(Step::Zero(offset, len));
        self.put(&vec![0; len as usize], offset)?;
        let mut pages = self.pages.lock().unwrap();
        for (_, page) in pages.range_mut(offset.div_ceil(PAGE)..(offset + len).div_ceil(PAGE)) {
            page.state = ExtentState::Zero;
        }
        Ok(())
    }

    fn discard_at(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        if offset >= self.fail_extents_from {
            return Err(Error::new(ErrorKind::Corrupt, "no map"));
        }
        let pages = self.pages.lock().unwrap();
        let page = pages.get(&(offset / PAGE));
        let state = page.map_or(ExtentState::Hole, |page| page.state);
        Ok(Extent {
            offset,
            len: len.min(PAGE - offset % PAGE),
            state,
            depth: page.map_or(self.depth_of_holes, |page| page.depth),
            host: (state == ExtentState::Data).then_some(offset),
        })
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn compressed(&self) -> Option<&dyn CompressedWrite> {
        self.compress.then_some(self)
    }

    fn offloaded(&self) -> Option<&dyn OffloadedWrite> {
        self.host.map(|_| self as _)
    }
}

impl OffloadedWrite for Toy {
    fn may_copy_from(&self, _: &dyn Storage, _: HostCopy) -> bool {
        true
    }

    fn copy_from(&self, offset: u64, source: &dyn Storage, from: u64, len: u64, _: HostCopy) -> Result<u64> {
        let mut log = self.log.lock().unwrap();
        let asked = log.iter().filter(|step| matches!(step, Step::Host(..))).count();
        let copied = self.host.unwrap()(asked, len);
        log.push(Step::Host(offset, len, copied));
        drop(log);
        let mut bytes = vec![0; copied as usize];
        source.read_exact_at(&mut bytes, from)?;
        self.put(&bytes, offset)?;
        Ok(copied)
    }
}

/// A cluster of one byte repeated compresses to that byte; others do not.
impl CompressedWrite for Toy {
    fn compress(&self, cluster: &[u8]) -> Result<Option<Vec<u8>>> {
        if cluster.len() as u64 != self.cluster_size.unwrap() {
            return Err(Error::invalid("not a cluster"));
        }
        let same = cluster.iter().all(|byte| *byte == cluster[0]);
        Ok(same.then(|| vec![cluster[0]]))
    }

    fn write_compressed_at(&self, compressed: &[u8], offset: u64) -> Result<()> {
        self.log.lock().unwrap().push(Step::Compressed(offset));
        let len = self.cluster_size.unwrap().min(self.size - offset);
        self.put(&vec![compressed[0]; len as usize], offset)
    }
}
