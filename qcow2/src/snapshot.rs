//! Internal snapshots.
/// Bytes that an entry of the snapshot table takes at least.
pub(crate) const MIN_SNAPSHOT_LEN: u64 = 40;
