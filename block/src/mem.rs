//! Storage in memory: for tests, scratch images, and whatever needs no file.
//!
//! Bytes live in pages of 4 KiB in a map ordered by offset, and a page that was never written to is not there: a
//! write at 1 TiB costs one page, and a hole is found by one look in the map. Pages are shared between clones
//! until one of them writes, so a clone costs its map and not its bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use crate::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use crate::{Error, FileId, HostExtent, Result, Storage, ZeroMode};

/// Bytes in a page.
const PAGE: u64 = 4096;

/// The longest a storage can be, as for a file on Linux.
const MAX_LEN: u64 = i64::MAX as u64;

/// Growable, sparse [`Storage`] in memory.
///
/// A clone is a storage of its own with the same contents. Syncing does nothing: memory forgets at once.
///
/// ```
/// use block::{MemStorage, Storage};
///
/// let storage = MemStorage::new();
/// storage.write_all_at(b"far out", 1 << 40)?;
/// assert_eq!(storage.len()?, (1 << 40) + 7);
/// assert_eq!(storage.allocated()?, Some(4096));
/// assert!(!storage.host_extent(0, 1 << 40)?.data);
/// # Ok::<(), block::Error>(())
/// ```
pub struct MemStorage {
    content: RwLock<Content>,
    path: Option<PathBuf>,
    id: FileId,
}

#[derive(Clone, Default)]
struct Content {
    /// By page number. No page lies wholly past `len`, and a page's bytes past `len` are zero.
    pages: BTreeMap<u64, Arc<[u8]>>,
    len: u64,
}

impl MemStorage {
    /// An empty storage.
    pub fn new() -> Self {
        Self::of(Content::default(), None)
    }

    /// The same storage, with a name for messages. No file of that name is touched.
    #[must_use]
    pub fn with_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.path = Some(path.into());
        self
    }

    /// A copy of all bytes, holes included: only for what is known to be small.
    pub fn to_vec(&self) -> Vec<u8> {
        let content = self.read();
        let mut bytes = vec![0; content.len as usize];
        content.read(&mut bytes, 0);
        bytes
    }

    fn of(content: Content, path: Option<PathBuf>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // A device number that no host gives out, and an inode for each storage of this process.
        let id = FileId {
            device: u64::MAX,
            inode: NEXT.fetch_add(1, Ordering::Relaxed),
        };
        Self {
            content: RwLock::new(content),
            path,
            id,
        }
    }

    // A panic under the lock (out of memory) leaves every page whole.
    fn read(&self) -> RwLockReadGuard<'_, Content> {
        self.content.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Content> {
        self.content.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// One past the last byte of a range that something is to be stored in.
    fn end(&self, op: &'static str, offset: u64, len: u64) -> Result<u64> {
        offset
            .checked_add(len)
            .filter(|end| *end <= MAX_LEN)
            .ok_or_else(|| {
                Error::io(op, io::ErrorKind::FileTooLarge.into())
                    .with_path_of(self.path())
                    .with_offset(offset)
            })
    }
}

impl Content {
    fn read(&self, buf: &mut [u8], offset: u64) {
        buf.fill(0);
        let end = offset.saturating_add(buf.len() as u64);
        for (number, page) in self.pages.range(offset / PAGE..end.div_ceil(PAGE)) {
            let start = number * PAGE;
            let (from, to) = (offset.max(start), end.min(start + PAGE));
            buf[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&page[(from - start) as usize..(to - start) as usize]);
        }
    }

    fn write(&mut self, mut buf: &[u8], mut offset: u64) {
        self.len = self.len.max(offset + buf.len() as u64);
        while !buf.is_empty() {
            let at = (offset % PAGE) as usize;
            let (now, later) = buf.split_at(buf.len().min(PAGE as usize - at));
            let page = self
                .pages
                .entry(offset / PAGE)
                .or_insert_with(|| [0; PAGE as usize].into());
            Arc::make_mut(page)[at..at + now.len()].copy_from_slice(now);
            offset += now.len() as u64;
            buf = later;
        }
    }

    /// Zeros what is there of `offset..end`; whole pages are dropped unless they are to be kept.
    fn clear(&mut self, offset: u64, end: u64, keep: bool) {
        let numbers: Vec<u64> = self
            .pages
            .range(offset / PAGE..end.div_ceil(PAGE))
            .map(|(number, _)| *number)
            .collect();
        for number in numbers {
            let start = number * PAGE;
            let (from, to) = (offset.max(start), end.min(start + PAGE));
            if !keep && to - from == PAGE {
                self.pages.remove(&number);
            } else if let Some(page) = self.pages.get_mut(&number) {
                Arc::make_mut(page)[(from - start) as usize..(to - start) as usize].fill(0);
            }
        }
    }

    fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.pages.split_off(&len.div_ceil(PAGE));
            self.clear(len, len.next_multiple_of(PAGE), true);
        }
        self.len = len;
    }
}

impl Storage for MemStorage {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.read().read(buf, offset);
        Ok(())
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        if !buf.is_empty() {
            self.end("write", offset, buf.len() as u64)?;
            self.write().write(buf, offset);
        }
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        if len > 0 {
            let end = self.end("zero", offset, len)?;
            let mut content = self.write();
            content.clear(offset, end, mode == ZeroMode::Allocate);
            content.len = content.len.max(end);
        }
        Ok(())
    }

    /// Whole pages inside the range read as zeros afterwards, the rest as before.
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let mut content = self.write();
        let end = offset.saturating_add(len).min(content.len);
        let (first, last) = (offset.div_ceil(PAGE), end / PAGE);
        if first < last {
            content.clear(first * PAGE, last * PAGE, false);
        }
        Ok(())
    }

    /// Grows the storage where it must; memory has nothing to reserve.
    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        if len > 0 {
            let end = self.end("allocate", offset, len)?;
            let mut content = self.write();
            content.len = content.len.max(end);
        }
        Ok(())
    }

    fn host_extent(&self, offset: u64, len: u64) -> Result<HostExtent> {
        let content = self.read();
        let end = offset.saturating_add(len).min(content.len);
        if offset >= end {
            return Ok(HostExtent { len, data: false });
        }
        let first = offset / PAGE;
        let mut pages = content.pages.range(first..end.div_ceil(PAGE)).map(|(n, _)| *n);
        let next = match pages.next() {
            None => end,
            Some(number) if number > first => number * PAGE,
            Some(_) => {
                let run = pages.zip(first + 1..).take_while(|(page, next)| page == next);
                (first + 1 + run.count() as u64) * PAGE
            }
        };
        let data = content.pages.contains_key(&first);
        Ok(HostExtent {
            len: next.min(end) - offset,
            data,
        })
    }

    fn sync_data(&self) -> Result<()> {
        Ok(())
    }

    fn len(&self) -> Result<u64> {
        Ok(self.read().len)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.end("set length", len, 0)?;
        self.write().set_len(len);
        Ok(())
    }

    fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    fn file_id(&self) -> Option<FileId> {
        Some(self.id)
    }

    fn allocated(&self) -> Result<Option<u64>> {
        Ok(Some(self.read().pages.len() as u64 * PAGE))
    }
}

impl Default for MemStorage {
    fn default() -> Self {
        Self::new()
    }
}

impl Clone for MemStorage {
    fn clone(&self) -> Self {
        Self::of(self.read().clone(), self.path.clone())
    }
}

impl From<&[u8]> for MemStorage {
    fn from(bytes: &[u8]) -> Self {
        let mut content = Content::default();
        content.write(bytes, 0);
        Self::of(content, None)
    }
}

impl From<Vec<u8>> for MemStorage {
    fn from(bytes: Vec<u8>) -> Self {
        Self::from(bytes.as_slice())
    }
}

impl fmt::Debug for MemStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let content = self.read();
        f.debug_struct("MemStorage")
            .field("path", &self.path)
            .field("len", &content.len)
            .field("pages", &content.pages.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        Write(u64, u64, u8),
        Zero(u64, u64, ZeroMode),
        Discard(u64, u64),
        SetLen(u64),
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let range = || (0..5 * PAGE, 0..2 * PAGE);
        let mode = prop_oneof![Just(ZeroMode::Unmap), Just(ZeroMode::Allocate)];
        proptest::collection::vec(
            prop_oneof![
                (range(), 1..=255u8).prop_map(|((o, l), b)| Op::Write(o, l, b)),
                (range(), mode).prop_map(|((o, l), m)| Op::Zero(o, l, m)),
                range().prop_map(|(o, l)| Op::Discard(o, l)),
                (0..6 * PAGE).prop_map(Op::SetLen),
            ],
            0..20,
        )
    }

    fn grow(model: &mut Vec<u8>, end: u64) {
        if model.len() < end as usize {
            model.resize(end as usize, 0);
        }
    }

    /// Applies `op` to both; what a discard leaves is taken from the storage where it is allowed to be there.
    fn apply(op: &Op, storage: &MemStorage, model: &mut Vec<u8>) {
        match *op {
            Op::Write(_, 0, _) | Op::Zero(_, 0, _) => {}
            Op::Write(offset, len, byte) => {
                storage.write_all_at(&vec![byte; len as usize], offset).unwrap();
                grow(model, offset + len);
                model[offset as usize..(offset + len) as usize].fill(byte);
            }
            Op::Zero(offset, len, mode) => {
                storage.zero(offset, len, mode).unwrap();
                grow(model, offset + len);
                model[offset as usize..(offset + len) as usize].fill(0);
            }
            Op::Discard(offset, len) => {
                storage.discard(offset, len).unwrap();
                let after = storage.to_vec();
                assert_eq!(after.len(), model.len());
                for (at, byte) in after.iter().enumerate() {
                    let inside = (offset..offset + len).contains(&(at as u64));
                    assert!(*byte == model[at] || (inside && *byte == 0), "byte {at}");
                }
                *model = after;
            }
            Op::SetLen(len) => {
                storage.set_len(len).unwrap();
                model.resize(len as usize, 0);
            }
        }
    }

    proptest! {
        #[test]
        fn behaves_as_a_vector_of_bytes(ops in ops()) {
            let storage = MemStorage::new();
            let mut model = Vec::new();
            for op in &ops {
                apply(op, &storage, &mut model);
            }
            prop_assert_eq!(storage.to_vec(), &model[..]);
            // Extents cover the storage, and holes are zero.
            let mut at = 0;
            while at < model.len() as u64 {
                let run = storage.host_extent(at, u64::MAX).unwrap();
                prop_assert!(run.len > 0 && at + run.len <= model.len() as u64);
                let bytes = &model[at as usize..(at + run.len) as usize];
                prop_assert!(run.data || bytes.iter().all(|byte| *byte == 0));
                at += run.len;
            }
        }
    }

    #[test]
    fn past_the_end_lies_a_hole_of_zeros() {
        let storage = MemStorage::from(vec![7; 10]);
        let mut buf = [1; 4];
        storage.read_exact_at(&mut buf, 8).unwrap();
        assert_eq!(buf, [7, 7, 0, 0]);
        storage.read_exact_at(&mut buf, u64::MAX - 1).unwrap();
        assert_eq!(buf, [0; 4]);
        let hole = storage.host_extent(10, 99).unwrap();
        assert_eq!((hole.len, hole.data), (99, false));
    }

    #[test]
    fn what_no_file_could_hold_is_refused() {
        let storage = MemStorage::new();
        for error in [
            storage.write_all_at(&[1], u64::MAX).unwrap_err(),
            storage.zero(1, u64::MAX, ZeroMode::Unmap).unwrap_err(),
            storage.set_len(MAX_LEN + 1).unwrap_err(),
        ] {
            assert_eq!(error.io_kind(), Some(io::ErrorKind::FileTooLarge));
        }
        assert!(storage.is_empty().unwrap());
    }

    #[test]
    fn huge_and_empty_costs_nothing() {
        let storage = MemStorage::new();
        storage.zero(0, 1 << 60, ZeroMode::Allocate).unwrap();
        storage.write_all_at(&[1], 1 << 50).unwrap();
        assert_eq!(storage.host_extent(0, u64::MAX).unwrap().len, 1 << 50);
        storage.set_len(1 << 49).unwrap();
        assert_eq!(storage.allocated().unwrap(), Some(0));
    }

    #[test]
    fn clones_part_ways() {
        let one = MemStorage::from(vec![1; 5000]);
        let two = one.clone();
        two.write_all_at(&[2], 0).unwrap();
        assert_eq!((one.to_vec()[0], two.to_vec()[0]), (1, 2));
        assert_ne!(one.file_id(), two.file_id());
    }
}
