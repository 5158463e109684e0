//! The qcow2 disk-image format: copy-on-write images with backing chains.

mod address;
mod bitmap;
mod compression;
mod corruption;
mod entry;
mod extension;
mod feature;
mod geometry;
mod header;
mod snapshot;

pub use address::{ClusterIndex, GuestOffset, HostOffset};
pub use compression::CompressionType;
pub use entry::{CompressedCluster, L1Entry, L2Mapping};
pub use extension::{BitmapsExtension, EncryptionHeader, Extensions, UnknownExtension};
pub use feature::{AutoclearFeatures, CompatibleFeatures, FeatureKind, FeatureNames, IncompatibleFeatures};
pub use geometry::Geometry;
pub use header::{Encryption, Header, Version};
