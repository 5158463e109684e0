//! Storage whose calls fail on command.

use std::io::{self, IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Alignment, Error, FileId, HostExtent, Result, Storage, ZeroMode};

/// A kind of call to a [`Storage`]. Vectored calls count as one call of the plain kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IoOp {
    /// `read_exact_at`, `read_vectored_at`.
    Read,
    /// `write_all_at`, `write_vectored_at`.
    Write,
    /// `zero`.
    Zero,
    /// `discard`.
    Discard,
    /// `allocate`.
    Allocate,
    /// `sync_data`.
    Sync,
    /// `set_len`.
    SetLen,
}

impl IoOp {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Read,
        Self::Write,
        Self::Zero,
        Self::Discard,
        Self::Allocate,
        Self::Sync,
        Self::SetLen,
    ];

    /// The kinds that change what is stored or make it durable.
    pub const CHANGES: [Self; 6] = [
        Self::Write,
        Self::Zero,
        Self::Discard,
        Self::Allocate,
        Self::Sync,
        Self::SetLen,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Zero => "zero",
            Self::Discard => "discard",
            Self::Allocate => "allocate",
            Self::Sync => "sync",
            Self::SetLen => "set length",
        }
    }
}

/// Which calls fail, and how.
#[derive(Clone, Debug)]
pub struct Fault {
    ops: Vec<IoOp>,
    error: io::ErrorKind,
    /// Calls of the kinds to let through before the first that fails.
    spare: u64,
    /// Fail every call after that one too.
    lasting: bool,
}

impl Fault {
    /// The `n`-th call fails (the first is 1), counted from when the fault is injected; later ones work again.
    pub fn nth(n: u64, error: io::ErrorKind) -> Self {
        Self {
            ops: IoOp::ALL.to_vec(),
            error,
            spare: n.saturating_sub(1),
            lasting: false,
        }
    }

    /// The `n`-th call and every later one fail.
    pub fn from_nth(n: u64, error: io::ErrorKind) -> Self {
        Self {
            lasting: true,
            ..Self::nth(n, error)
        }
    }

    /// Only calls of these kinds count and fail.
    #[must_use]
    pub fn on(mut self, ops: &[IoOp]) -> Self {
        self.ops = ops.to_vec();
        self
    }
}

/// A storage that hands every call on to another, but for those that a [`Fault`] picks: they fail, and nothing of
/// them reaches the storage behind.
///
/// Calls are counted in the order in which they arrive, so that with one thread the n-th I/O of a test is the
/// same every time it runs.
///
/// ```
/// use std::io::ErrorKind;
/// use std::sync::Arc;
/// use block::test_utils::{Fault, FaultStorage, IoOp};
/// use block::{MemStorage, Storage};
///
/// let storage = FaultStorage::new(Arc::new(MemStorage::new()));
/// storage.inject(Fault::nth(2, ErrorKind::StorageFull).on(&[IoOp::Write]));
/// assert!(storage.write_all_at(b"one", 0).is_ok());
/// assert_eq!(storage.write_all_at(b"two", 0).unwrap_err().kind(), block::ErrorKind::NoSpace);
/// assert!(storage.write_all_at(b"three", 0).is_ok());
/// assert_eq!(storage.calls(&[IoOp::Write]), 3);
/// ```
#[derive(Debug)]
pub struct FaultStorage {
    inner: Arc<dyn Storage>,
    plan: Mutex<Plan>,
}

#[derive(Debug, Default)]
struct Plan {
    faults: Vec<Fault>,
    calls: [u64; IoOp::ALL.len()],
    failed: u64,
}

impl FaultStorage {
    /// `inner`, with no faults so far.
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        Self {
            inner,
            plan: Mutex::default(),
        }
    }

    /// Adds a fault; several may be waiting at once, each with its own count.
    pub fn inject(&self, fault: Fault) {
        self.plan().faults.push(fault);
    }

    /// Takes all faults away: the storage works again.
    pub fn heal(&self) {
        self.plan().faults.clear();
    }

    /// Calls of the kinds `ops` so far, failed ones included.
    pub fn calls(&self, ops: &[IoOp]) -> u64 {
        let plan = self.plan();
        ops.iter().map(|op| plan.calls[*op as usize]).sum()
    }

    /// Calls that have been made to fail.
    pub fn failed(&self) -> u64 {
        self.plan().failed
    }

    /// The storage behind.
    pub fn inner(&self) -> &Arc<dyn Storage> {
        &self.inner
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call, and fails it if it is its turn.
    fn call(&self, op: IoOp, offset: Option<u64>) -> Result<()> {
        let mut plan = self.plan();
        plan.calls[op as usize] += 1;
        let mut error = None;
        plan.faults.retain_mut(|fault| {
            if !fault.ops.contains(&op) {
                return true;
            }
            if fault.spare > 0 {
                fault.spare -= 1;
                return true;
            }
            error.get_or_insert(fault.error);
            fault.lasting
        });
        let Some(kind) = error else {
            return Ok(());
        };
        plan.failed += 1;
        let error = Error::io(op.name(), io::Error::new(kind, "injected fault")).with_path_of(self.path());
        Err(match offset {
            Some(offset) => error.with_offset(offset),
            None => error,
        })
    }
}

impl Storage for FaultStorage {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.call(IoOp::Read, Some(offset))?;
        self.inner.read_exact_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.call(IoOp::Write, Some(offset))?;
        self.inner.write_all_at(buf, offset)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<()> {
        self.call(IoOp::Read, Some(offset))?;
        self.inner.read_vectored_at(bufs, offset)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> Result<()> {
        self.call(IoOp::Write, Some(offset))?;
        self.inner.write_vectored_at(bufs, offset)
    }

    fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.call(IoOp::Zero, Some(offset))?;
        self.inner.zero(offset, len, mode)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.call(IoOp::Discard, Some(offset))?;
        self.inner.discard(offset, len)
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.call(IoOp::Allocate, Some(offset))?;
        self.inner.allocate(offset, len)
    }

    fn host_extent(&self, offset: u64, len: u64) -> Result<HostExtent> {
        self.inner.host_extent(offset, len)
    }

    fn sync_data(&self) -> Result<()> {
        self.call(IoOp::Sync, None)?;
        self.inner.sync_data()
    }

    fn len(&self) -> Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.call(IoOp::SetLen, None)?;
        self.inner.set_len(len)
    }

    fn alignment(&self) -> Alignment {
        self.inner.alignment()
    }

    fn path(&self) -> Option<&Path> {
        self.inner.path()
    }

    fn file_id(&self) -> Option<FileId> {
        self.inner.file_id()
    }

    fn allocated(&self) -> Result<Option<u64>> {
        self.inner.allocated()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemStorage;

    fn storage() -> FaultStorage {
        FaultStorage::new(Arc::new(MemStorage::new()))
    }

    #[test]
    fn a_failed_write_changes_nothing() {
        let storage = storage();
        storage.inject(Fault::nth(1, io::ErrorKind::BrokenPipe));
        let error = storage.write_all_at(&[1], 5).unwrap_err();
        assert_eq!(
            (error.io_kind(), error.offset()),
            (Some(io::ErrorKind::BrokenPipe), Some(5))
        );
        assert!(storage.is_empty().unwrap());
        storage.write_all_at(&[1], 5).unwrap();
    }

    #[test]
    fn a_lasting_fault_lasts_until_healed() {
        let storage = storage();
        storage.inject(Fault::from_nth(2, io::ErrorKind::Other).on(&[IoOp::Sync]));
        storage.sync_data().unwrap();
        for _ in 0..3 {
            storage.sync_data().unwrap_err();
            storage.set_len(1).unwrap();
        }
        storage.heal();
        storage.sync_data().unwrap();
        assert_eq!((storage.calls(&[IoOp::Sync]), storage.failed()), (5, 3));
    }

    #[test]
    fn faults_count_apart_from_each_other() {
        let storage = storage();
        storage.inject(Fault::nth(1, io::ErrorKind::Other).on(&[IoOp::Zero]));
        storage.inject(Fault::nth(2, io::ErrorKind::Other).on(&[IoOp::Zero, IoOp::Write]));
        storage.zero(0, 1, ZeroMode::Unmap).unwrap_err();
        storage.write_all_at(&[1], 0).unwrap_err();
        storage.write_all_at(&[1], 0).unwrap();
    }
}
