//! The qcow2 disk-image format: copy-on-write images with backing chains.

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
mod measure;
mod metadata_map;
mod range_lock;
mod refcount;
mod refcount_table;
mod scratch;
mod snapshot;

pub use address::{ClusterIndex, GuestOffset, HostOffset};
pub use check::{CheckOptions, CheckPhase, CheckProgress, CheckReport, Finding, Severity, Table, check};
pub use compression::CompressionType;
pub use create::{CreateOptions, create};
pub use entry::{CompressedCluster, L1Entry, L2Mapping};
pub use extension::{BitmapsExtension, EncryptionHeader, Extensions, UnknownExtension};
pub use feature::{AutoclearFeatures, CompatibleFeatures, FeatureKind, FeatureNames, IncompatibleFeatures};
pub use format::Qcow2;
pub use geometry::Geometry;
pub use header::{Encryption, Header, Version};
pub use image::{Image, OpenOptions};
pub use measure::{Measure, measure};
