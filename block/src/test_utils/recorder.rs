//! Storage that writes down what is done to it.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::CrashStates;
use crate::{FileId, HostExtent, MemStorage, Result, Storage, ZeroMode};

/// What was done to a storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Bytes were written, growing the storage where they had to.
    Write {
        /// Where the first of them went.
        offset: u64,
        /// What was written.
        bytes: Vec<u8>,
    },
    /// A range was made to read as zeros.
    Zero {
        /// Its first byte.
        offset: u64,
        /// Its length in bytes.
        len: u64,
        /// What became of the room.
        mode: ZeroMode,
    },
    /// A range was discarded.
    Discard {
        /// Its first byte.
        offset: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// Room was reserved for a range.
    Allocate {
        /// Its first byte.
        offset: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// The length was changed.
    SetLen {
        /// Length in bytes before.
        from: u64,
        /// And after.
        to: u64,
    },
    /// Everything before, in this storage, became durable.
    Sync,
}

/// One line of a [`Recorder`]'s log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which storage: their number in the order in which they were [added](Recorder::storage).
    pub storage: usize,
    /// What was done to it.
    pub change: Change,
}

/// A log of everything that is done to one or several storages, in one order.
///
/// Several storages share a log where the order between them matters: an image and its data file, an overlay and
/// the base that it is committed to. See [`CrashStates`] for what the log is good for.
///
/// ```
/// use block::test_utils::{Change, Recorder};
/// use block::{MemStorage, Storage};
///
/// let recorder = Recorder::new();
/// let storage = recorder.storage(MemStorage::new());
/// storage.write_all_at(b"hello", 0)?;
/// storage.sync_data()?;
/// assert_eq!(recorder.position(), 2);
/// assert_eq!(recorder.entries()[1].change, Change::Sync);
/// # Ok::<(), block::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Recorder(Arc<Mutex<Log>>);

#[derive(Debug, Default)]
struct Log {
    /// What each storage held when it was added, all of it durable.
    initial: Vec<MemStorage>,
    entries: Vec<Entry>,
}

impl Recorder {
    /// An empty log.
    pub fn new() -> Self {
        Self::default()
    }

    /// A storage that starts as `initial`, all of it durable, and whose changes are logged here.
    pub fn storage(&self, initial: MemStorage) -> Arc<RecordingStorage> {
        let mut log = self.log();
        log.initial.push(initial.clone());
        Arc::new(RecordingStorage {
            live: initial,
            index: log.initial.len() - 1,
            recorder: self.clone(),
        })
    }

    /// Entries so far. Taken when a flush has returned, it is the point from which on a crash must keep what was
    /// flushed.
    pub fn position(&self) -> usize {
        self.log().entries.len()
    }

    /// A copy of the log.
    pub fn entries(&self) -> Vec<Entry> {
        self.log().entries.clone()
    }

    /// The states that a power cut anywhere in the log so far can leave.
    pub fn crash_states(&self) -> CrashStates {
        let log = self.log();
        CrashStates::new(&log.initial, log.entries.clone())
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A [`MemStorage`] that a [`Recorder`] watches.
#[derive(Debug)]
pub struct RecordingStorage {
    live: MemStorage,
    index: usize,
    recorder: Recorder,
}

impl RecordingStorage {
    /// What the storage holds now, as a storage of its own: what a process killed with the power on leaves.
    pub fn snapshot(&self) -> MemStorage {
        self.live.clone()
    }

    /// Makes a change and logs it, in one step, so that the log's order is the order in which they took effect.
    fn record(&self, change: impl FnOnce(&MemStorage) -> Result<Change>) -> Result<()> {
        let mut log = self.recorder.log();
        let change = change(&self.live)?;
        log.entries.push(Entry {
            storage: self.index,
            change,
        });
        Ok(())
    }
}

impl Storage for RecordingStorage {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.live.read_exact_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.record(|live| {
            live.write_all_at(buf, offset)?;
            Ok(Change::Write {
                offset,
                bytes: buf.to_vec(),
            })
        })
    }

    fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.record(|live| {
            live.zero(offset, len, mode)?;
            Ok(Change::Zero { offset, len, mode })
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.record(|live| {
            live.discard(offset, len)?;
            // What lies past the end is nothing to remember.
            let len = len.min(live.len()?.saturating_sub(offset));
            Ok(Change::Discard { offset, len })
        })
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.record(|live| {
            live.allocate(offset, len)?;
            Ok(Change::Allocate { offset, len })
        })
    }

    fn host_extent(&self, offset: u64, len: u64) -> Result<HostExtent> {
        self.live.host_extent(offset, len)
    }

    fn sync_data(&self) -> Result<()> {
        self.record(|_| Ok(Change::Sync))
    }

    fn len(&self) -> Result<u64> {
        self.live.len()
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.record(|live| {
            let from = live.len()?;
            live.set_len(len)?;
            Ok(Change::SetLen { from, to: len })
        })
    }

    fn path(&self) -> Option<&Path> {
        self.live.path()
    }

    fn file_id(&self) -> Option<FileId> {
        self.live.file_id()
    }

    fn allocated(&self) -> Result<Option<u64>> {
        self.live.allocated()
    }
}
