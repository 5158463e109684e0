//! An open image.
//!
//! # Locks
//!
//! A thread takes them in this order, and does no I/O under those marked with a star, but for refcount blocks that
//! have to be read and room that is given back:
//!
//! 1. `bitmaps`: shared by every change of the disk, exclusive while its size, its bitmaps or its snapshots change;
//! 2. `ranges`: guest clusters that an allocating write or a discard is busy with;
//! 3. `flush`: one write-back at a time;
//! 4. `header`;
//! 5. `meta`*: the allocator, and what of the cache waits to be written back;
//! 6. `metadata`*: which host clusters hold metadata;
//! 7. a cache set*;
//! 8. in an encrypted image, `partial`, held while data is moved: see [`encryption`].
//!
//! Reads and writes in place take none of these exclusively. They count themselves in ([`crate::epoch`]), look up
//! where the data lies, and move it.
//!
//! # Order
//!
//! See [`flush`].

mod amend;
mod bitmap;
mod cow;
mod cut;
mod data_file;
mod device;
mod encryption;
mod extent;
mod file;
mod flush;
mod header;
mod keys;
mod mapping;
mod offload;
mod plan;
mod read;
mod resize;
mod snapshot;
mod undo_growth;
mod write;
mod zero;

pub use amend::{AmendProgress, Amendment, NewBacking};
pub use snapshot::{SnapshotPart, SnapshotProgress};

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, OnceLock, PoisonError};

use block::slice_cache::SliceCache;
use block::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use block::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use block::{Access, Backing, BlockDevice, Error, Keys, Result, SnapshotSelector, Storage};

use crate::address::HostOffset;
use crate::allocator::Allocator;
use crate::bitmap::table;
use crate::compression::CompressionType;
use crate::corruption::Corruption;
use crate::entry::{L1Entry, L2Entry};
use crate::epoch::Epoch;
use crate::feature::IncompatibleFeatures;
use crate::geometry::Geometry;
use crate::header::Header;
use crate::l1_table::L1Table;
use crate::metadata_map::MetadataMap;
use crate::range_lock::RangeLocks;
use crate::refcount_table::RefcountTable;
use crate::snapshot::{SnapshotTable, find};

pub use bitmap::BitmapEdit;
use bitmap::Bitmaps;
use encryption::Encryption;
pub use encryption::read_luks;
use file::ImageFile;
pub use plan::{Mapped, Place, PlannedRun, WritePlan};

/// Bytes of L2 entries cached where none is asked for: the whole map of 32 GiB in clusters of 64 KiB.
const DEFAULT_L2_CACHE: usize = 4 << 20;

/// How to open an image.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Whether writes are allowed.
    pub access: Access,
    /// What lies below.
    pub backing: Backing,
    /// The file that holds the guest's data, for an image that names one. For others, the image's own file may be given by
    /// another way, which then only the guest's data takes.
    pub data_file: Option<Arc<dyn Storage>>,
    /// Bytes of L2 entries to cache at most. 8 bytes map a cluster, 16 with extended L2 entries.
    pub l2_cache: usize,
    /// Level for clusters written compressed; see [`CompressionType::levels`].
    pub compression_level: Option<i32>,
    /// What an encrypted image is opened with.
    pub keys: Keys,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            access: Access::READ,
            backing: Backing::None,
            data_file: None,
            l2_cache: DEFAULT_L2_CACHE,
            compression_level: None,
            keys: Keys::None,
        }
    }
}

/// An open image: a disk, made of what its file holds and of its backing device.
///
/// Share it between threads by reference or in an [`Arc`]. Dropping it writes back what waits, and can't report a
/// failure: call [`close`](Self::close) or [`settle`](BlockDevice::settle), or [`flush`](BlockDevice::flush) at least.
#[derive(Debug)]
pub struct Image {
    storage: ImageFile,
    /// Where guest data lies: `storage`, or a [data file](data_file).
    data: ImageFile,
    /// How long `data` is at least.
    data_len: AtomicU64,
    /// The data file is a raw image of the whole disk.
    raw_data: bool,
    geometry: Geometry,
    /// Bit 0 of an L2 entry means "zeros".
    zero_flag: bool,
    compression: CompressionType,
    compression_level: Option<i32>,
    encryption: Option<Encryption>,
    size: AtomicU64,
    header: Mutex<Header>,
    l1: L1Table,
    cache: SliceCache,
    backing: Option<Arc<dyn BlockDevice>>,
    /// What writing needs; `None` in an image that is open for reading, which then needs no locks at all.
    writer: Option<Writer>,
}

/// What an image needs for writing.
#[derive(Debug)]
struct Writer {
    /// Held shared by whoever changes the disk, exclusively by whoever changes its size or its bitmaps.
    bitmaps: RwLock<Bitmaps>,
    ranges: RangeLocks,
    plans: plan::LivePlans,
    flush: Mutex<()>,
    meta: Mutex<Meta>,
    metadata: Arc<RwLock<MetadataMap>>,
    epoch: Epoch,
    /// The file says that somebody is writing: autoclear bits are gone, and enabled bitmaps in use. Until then, nothing that the
    /// guest has written waits for a sync.
    begun: AtomicBool,
    /// The failure after which no write is taken any more.
    failed: OnceLock<Error>,
    /// The image in the file has another shape than this one in memory: it must be opened again for writing.
    outdated: AtomicBool,
}

/// What is changed in memory and waits to be written back.
#[derive(Debug)]
struct Meta {
    allocator: Allocator,
    /// Slices that differ from the file's; each is pinned once for being here.
    dirty_slices: BTreeSet<u64>,
    /// L1 entries that differ from the file's.
    dirty_l1: BTreeSet<usize>,
    /// Any of these name data or tables that nothing in the file names, and that must be durable before they are.
    names_new: bool,
}

impl Image {
    /// Opens the image in `storage`. One that is marked dirty (lazy refcounts, and not closed) has its refcounts
    /// rebuilt before it is written to, as by [`recover`](crate::recover); reading it changes nothing.
    ///
    /// # Errors
    /// `InvalidInput` for what is no qcow2 image, and for a backing that the image does not name or one missing
    /// that it does; `Key` for an encrypted image that its keys do not open; `Unsupported` for what this version does
    /// not do, by name; `Corrupt`, `Io`.
    pub fn open(storage: Arc<dyn Storage>, options: OpenOptions) -> Result<Self> {
        let path = storage.path().map(std::path::Path::to_owned);
        Self::open_in(storage, options, None).map_err(|error| error.with_path_of(path.as_deref()))
    }

    fn open_in(
        storage: Arc<dyn Storage>,
        options: OpenOptions,
        snapshot: Option<&SnapshotSelector>,
    ) -> Result<Self> {
        let mut header = Header::read(&*storage)?;
        if let Some(error) = header.unsupported(options.access.write) {
            return Err(error);
        }
        if let Some(which) = snapshot {
            let mut snapshots = SnapshotTable::read(&*storage, &header)?.snapshots;
            let index = find(&snapshots, which)?;
            header.show(&snapshots.swap_remove(index));
        }
        let encryption = Encryption::open(&*storage, &header, &options.keys)?;
        let backing = Self::backing_for(&header, options.backing)?;
        let file = ImageFile::new(storage, false);
        let data = data_file::open(&file, &header, options.data_file)?;
        if options.access.write && header.incompatible.contains(IncompatibleFeatures::DIRTY) {
            // Whoever postponed the refcounts did not come to write them.
            crate::check::recover(&file)?;
            header = Header::read(&file)?;
        }
        let geometry = header.geometry;
        let slices = header
            .size
            .div_ceil(geometry.cluster_size())
            .div_ceil(1 << geometry.slice_bits());
        let mut image = Self {
            data_len: AtomicU64::new(data.len()?),
            data,
            raw_data: header.data_file().is_some_and(|file| file.raw),
            geometry,
            zero_flag: header.has_zero_flag(),
            compression: header.compression,
            compression_level: options.compression_level,
            encryption,
            size: AtomicU64::new(header.size),
            l1: L1Table::new(header.l1_entries as usize),
            cache: SliceCache::new(geometry.slice_words(), slices, options.l2_cache),
            backing,
            writer: None,
            header: Mutex::new(header),
            storage: file,
        };
        image.read_l1()?;
        if options.access.write {
            image.writer = Some(image.open_writer()?);
        }
        Ok(image)
    }

    fn backing_for(header: &Header, backing: Backing) -> Result<Option<Arc<dyn BlockDevice>>> {
        match (header.backing(), backing) {
            (None, Backing::None | Backing::Detached) | (Some(_), Backing::Detached) => Ok(None),
            (Some(_), Backing::Device(device)) => Ok(Some(device)),
            (Some(reference), Backing::None) => Err(Error::invalid(format!(
                "the image has the backing file '{}', and none was given",
                block::escape(&reference.name)
            ))
            .with_hint("open it as a chain, or say that its backing is to be left out")),
            (None, Backing::Device(_)) => Err(Error::invalid(
                "a backing device was given, and the image has none",
            )),
        }
    }

    /// Reads the active L1 table, a piece at a time: an empty one, however long, takes no memory. One that names more L2 tables than the file has
    /// clusters has parts of the disk share them, which nobody makes, and which would take the time of a disk that no file of this length holds.
    fn read_l1(&self) -> Result<()> {
        let (start, entries) = {
            let header = self.locked_header();
            (header.l1_offset, header.l1_entries as usize)
        };
        self.check_inside(
            "L1 table",
            start,
            if entries == 0 { 0 } else { entries as u64 * 8 },
        )?;
        let clusters = self.geometry.clusters(self.storage.len()?);
        let mut tables = 0;
        let mut bytes = vec![0; (entries * 8).min(32 << 10)];
        for first in (0..entries).step_by(4096) {
            let piece = &mut bytes[..(entries - first).min(4096) * 8];
            self.storage.read_exact_at(piece, (start + first as u64 * 8).0)?;
            for (i, entry) in piece.chunks_exact(8).enumerate() {
                let entry = u64::from_be_bytes(entry.try_into().unwrap_or_default());
                tables += u64::from(entry != 0);
                self.l1.store(first + i, entry);
            }
        }
        if tables > clusters {
            return Err(self.corrupt(Corruption::Shared {
                what: "entries of the L1 table",
                file: clusters,
            }));
        }
        Ok(())
    }

    fn open_writer(&self) -> Result<Writer> {
        let header = self.locked_header();
        let mut refcounts = RefcountTable::open(
            Arc::clone(self.storage.inner()),
            self.geometry,
            header.refcount_table_offset,
            header.refcount_table_clusters,
        )?;
        self.refuse_cut(&mut refcounts)?;
        let snapshots = SnapshotTable::read(&self.storage, &header)?;
        let bitmaps = Bitmaps::read(&self.storage, &header)?;
        let metadata = self.map_metadata(&header, &snapshots, &bitmaps, &refcounts)?;
        let metadata = Arc::new(RwLock::new(metadata));
        let allocator = Allocator::new(
            refcounts,
            // It gives room back to the host and does nothing else, which need not be durable.
            Arc::clone(self.storage.inner()),
            self.geometry,
            Arc::clone(&metadata),
        )?;
        Ok(Writer {
            bitmaps: RwLock::new(bitmaps),
            ranges: RangeLocks::default(),
            plans: plan::LivePlans::default(),
            flush: Mutex::default(),
            meta: Mutex::new(Meta {
                allocator,
                dirty_slices: BTreeSet::new(),
                dirty_l1: BTreeSet::new(),
                names_new: false,
            }),
            metadata,
            epoch: Epoch::default(),
            begun: AtomicBool::new(false),
            failed: OnceLock::new(),
            outdated: AtomicBool::new(false),
        })
    }

    /// Everything that the header, the snapshot table, the bitmap directory, the L1 table and the refcount table name.
    /// What is named twice would be changed as one thing and read as another: such an image is not written to.
    fn map_metadata(
        &self,
        header: &Header,
        snapshots: &SnapshotTable,
        bitmaps: &Bitmaps,
        refcounts: &RefcountTable,
    ) -> Result<MetadataMap> {
        let mut map = MetadataMap::default();
        let mut insert = |what, clusters: Range<u64>| {
            if let Some(cluster) = map.first_in(clusters.clone()) {
                return Err(self
                    .corrupt(Corruption::MetadataShared { what, cluster })
                    .with_hint("the image must be repaired before it is written to"));
            }
            map.insert(clusters);
            Ok(())
        };
        let clusters = |start: HostOffset, len: u64| {
            let first = self.geometry.cluster_of(start).0;
            first..first + self.geometry.clusters(len)
        };
        let l1_len = |entries: u32| u64::from(entries) * 8;
        insert("the header", 0..1)?;
        if let Some(header) = header.extensions.encryption_header {
            insert("the encryption header", clusters(header.offset, header.len))?;
        }
        insert(
            "the L1 table",
            clusters(header.l1_offset, l1_len(header.l1_entries)),
        )?;
        insert(
            "the snapshot table",
            clusters(header.snapshots_offset, snapshots.len),
        )?;
        for snapshot in &snapshots.snapshots {
            insert(
                "a snapshot's L1 table",
                clusters(snapshot.l1_offset, l1_len(snapshot.l1_entries)),
            )?;
        }
        insert("the bitmap directory", bitmaps.directory())?;
        for bitmap in bitmaps.list() {
            for clusters in table::clusters(&self.storage, bitmap, self.geometry)? {
                insert("a bitmap's table or its data", clusters)?;
            }
        }
        for clusters in refcounts.metadata() {
            insert("the refcount table or a block of it", clusters)?;
        }
        for index in 0..self.l1.entries() {
            if let Ok(L1Entry::Table { host, .. }) = self.decode_l1(self.l1.load(index), index) {
                insert("an L2 table", clusters(host, 1))?;
            }
        }
        Ok(map)
    }

    /// Writes back everything that waits, saves the bitmaps and closes the image. Unlike dropping it, this reports
    /// failures.
    ///
    /// # Errors
    /// As [`flush`](BlockDevice::flush).
    pub fn close(self) -> Result<()> {
        self.settle()
    }

    /// Flushes, saves the bitmaps, and flushes until nothing waits: what a flush frees is counted as free by the next. Once
    /// all of it is done, doing it again costs nothing until something changes.
    fn settle(&self) -> Result<()> {
        let Some(writer) = self.current_writer() else {
            return Ok(());
        };
        let mut bitmaps = writer.bitmaps_mut();
        self.write_back()?;
        self.save_bitmaps(writer, &mut bitmaps)?;
        while writer.meta().allocator.is_dirty() {
            self.write_back()?;
        }
        // Nobody has changed anything since. Whoever does says so in the file again.
        writer.begun.store(false, Ordering::Release);
        Ok(())
    }

    /// What writing needs, if there can be anything that waits to be written.
    fn current_writer(&self) -> Option<&Writer> {
        let writer = self.writer.as_ref();
        writer.filter(|writer| !writer.outdated.load(Ordering::Acquire))
    }

    /// The header as it is now.
    pub fn header(&self) -> Header {
        self.locked_header().clone()
    }

    fn locked_header(&self) -> MutexGuard<'_, Header> {
        self.header.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cluster size, refcount width and kind of L2 entries.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    /// Before a change of the disk: sees to it that the file says so, and that the size stays while it lasts.
    fn begin_change<'a>(&self, writer: &'a Writer) -> Result<RwLockReadGuard<'a, Bitmaps>> {
        loop {
            let bitmaps = writer.bitmaps();
            if writer.has_begun() {
                return Ok(bitmaps);
            }
            drop(bitmaps);
            let mut bitmaps = writer.bitmaps.write().unwrap_or_else(PoisonError::into_inner);
            self.begin_writing(writer, &mut bitmaps)?;
        }
    }

    /// Before the first change of the disk since the image was opened or its bitmaps were saved.
    #[cold]
    fn begin_writing(&self, writer: &Writer, bitmaps: &mut Bitmaps) -> Result<()> {
        if !writer.has_begun() {
            self.clear_autoclear(writer)?;
            self.track_bitmaps(bitmaps)?;
            writer.begun.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Clears the autoclear bits whose promises writing breaks.
    fn clear_autoclear(&self, writer: &Writer) -> Result<()> {
        let _one_at_a_time = writer.flushing();
        if self.header().clear_autoclear() {
            self.update_header(|header| {
                header.clear_autoclear();
            })?;
        }
        Ok(())
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // A failure can't be told here; the image is as after a crash: whole, with leaks at worst.
            let _ = self.settle();
        }
    }
}

impl Writer {
    fn meta(&self) -> MutexGuard<'_, Meta> {
        self.meta.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn metadata_map(&self) -> RwLockReadGuard<'_, MetadataMap> {
        self.metadata.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn bitmaps(&self) -> RwLockReadGuard<'_, Bitmaps> {
        self.bitmaps.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Alone: no change of the disk is under way or planned.
    fn bitmaps_mut(&self) -> RwLockWriteGuard<'_, Bitmaps> {
        let bitmaps = self.bitmaps.write().unwrap_or_else(PoisonError::into_inner);
        self.plans.wait();
        bitmaps
    }

    fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    fn flushing(&self) -> MutexGuard<'_, ()> {
        self.flush.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn latch(&self, error: &Error) {
        let _ = self.failed.set(error.clone());
    }
}

impl Meta {
    /// Notes that the entry `new` waits to replace `old`, and takes back the host clusters that only `old` named.
    fn replace(&mut self, old: L2Entry, new: L2Entry, geometry: Geometry) {
        self.names_new |= new.names_more_than(old);
        self.take_back(old, new, geometry);
    }

    /// Takes back the host clusters that `old` named and `new` does not.
    fn take_back(&mut self, old: L2Entry, new: L2Entry, geometry: Geometry) {
        if geometry.data_file {
            // Nothing in a data file is counted.
            return;
        }
        let clusters = old.host_clusters(geometry);
        let compressed = matches!(old, L2Entry::Compressed(_));
        if !clusters.is_empty() && (compressed || clusters != new.host_clusters(geometry)) {
            self.allocator.free(clusters);
        }
    }
}
