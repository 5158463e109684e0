//! Bitmaps.
/// Most bitmaps in an image (QEMU's limit, kept).
pub const MAX_BITMAPS: u32 = 65_535;
