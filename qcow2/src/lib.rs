//! The qcow2 disk-image format: copy-on-write images with backing chains.
//!
//! [`create`] makes an image on any [`Storage`](block::Storage), [`Image::open`] makes a
//! [`BlockDevice`](block::BlockDevice) of it, [`check`] judges one that may be damaged and [`repair`] mends it, and [`Header`] says what an
//! image is without opening it. [`Qcow2`] is the format as a link of a [chain](block::chain).
//!
//! ```
//! use std::sync::Arc;
//!
//! use block::{Access, BlockDevice, MemStorage};
//! use qcow2::{CreateOptions, Image, OpenOptions};
//!
//! let storage = Arc::new(MemStorage::new());
//! qcow2::create(&*storage, &CreateOptions { size: 1 << 30, ..CreateOptions::default() })?;
//!
//! let image = Image::open(storage, OpenOptions { access: Access::WRITE, ..OpenOptions::default() })?;
//! image.write_at(b"hello", 4096)?;
//! image.flush()?;
//!
//! let mut buf = [0; 5];
//! image.read_at(&mut buf, 4096)?;
//! assert_eq!(&buf, b"hello");
//! image.close()?;
//! # Ok::<(), block::Error>(())
//! ```
//!
//! # Threads
//!
//! All of [`Image`] works through `&self`. Reads and writes in place wait for nobody; see `image` for the locks, and
//! for the order in which a flush writes. Power may fail at any time: what was flushed stays, and the worst that
//! [`check`] finds afterwards are leaks.
//!
//! # Map-then-I/O
//!
//! A VMM whose queue threads do their own I/O asks [`Image::map`] where to read, and [`Image::plan_write`] where to write.
//!
//! # Encryption
//!
//! Images are encrypted with LUKS or, for old ones, AES. [`OpenOptions::keys`] has what opens one; what an image says of its
//! encryption needs none ([`read_luks`]).

mod address;
mod allocator;
mod bitmap;
mod check;
mod compression;
mod corruption;
mod create;
mod entry;
mod epoch;
mod extension;
mod feature;
mod format;
mod geometry;
mod header;
mod image;
mod l1_table;
mod limit;
mod measure;
mod metadata_map;
mod range_lock;
mod refcount;
mod refcount_table;
mod snapshot;

pub use address::{ClusterIndex, GuestOffset, HostOffset};
pub use bitmap::Bitmap;
pub use bitmap::bits::DirtyBits;
pub use check::{
    CheckOptions, CheckPhase, CheckProgress, CheckReport, Finding, RepairChange, RepairKind, RepairOptions,
    RepairProgress, RepairReport, RestoreReport, Severity, SharedCluster, TableKind, check, find_shared,
    recover, repair, restore,
};
pub use compression::CompressionType;
pub use corruption::Damage;
pub use create::{CreateOptions, EncryptionMethod, NewEncryption, Streamed, create};
pub use entry::{CompressedCluster, L1Entry, L2Entry, L2Mapping, Subclusters};
pub use extension::{BitmapsExtension, EncryptionHeader, Extensions, UnknownExtension};
pub use feature::{AutoclearFeatures, CompatibleFeatures, FeatureKind, FeatureNames, IncompatibleFeatures};
pub use format::Qcow2;
pub use geometry::Geometry;
pub use header::{Encryption, Header, Version};
pub use image::{
    AmendProgress, Amendment, BitmapEdit, Image, Mapped, NewBacking, OpenOptions, Place, PlannedRun,
    SnapshotPart, SnapshotProgress, WritePlan, read_luks,
};
pub use limit::Limit;
pub use measure::{Measure, measure, measure_bitmaps};
pub use snapshot::{Snapshot, SnapshotTable};
