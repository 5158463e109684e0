//! The qcow2 disk-image format: copy-on-write images with backing chains.

mod address;
mod corruption;
mod entry;
mod geometry;

pub use address::{ClusterIndex, GuestOffset, HostOffset};
pub use entry::{CompressedCluster, L1Entry, L2Mapping};
pub use geometry::Geometry;
