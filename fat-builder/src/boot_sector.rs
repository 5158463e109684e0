//! The boot sector ("Boot Sector and BPB"): what says that this is a FAT32 filesystem, and how it is laid out.

use crate::label::Label;
use crate::layout::{FIRST_CLUSTER, Layout, TABLES};
use crate::options::Options;

/// Sectors that make up the boot record: this one, the one with [free counts](crate::fs_info), and a third that has
/// boot code on some systems. A copy of all three follows at [`BACKUP`].
pub(crate) const BOOT_RECORD: u32 = 3;

/// Where the copy is, as the specification recommends.
pub(crate) const BACKUP: u32 = 6;

/// The label of a volume that has none.
const NO_LABEL: Label = *b"NO NAME    ";

/// A jump over the fields.
const JUMP: [u8; 3] = [0xEB, 0x58, 0x90];

/// Where the jump leads: `int 18h`, by which a BIOS goes on to its next device, and a loop should it come back.
pub(crate) const BOOT_CODE: [u8; 4] = [0xCD, 0x18, 0xEB, 0xFE];

/// A disk that does not change, in the descriptor's byte and the first entry of the table.
pub(crate) const MEDIA: u8 = 0xF8;

/// Marks the end of the 512 bytes that firmware looks at.
const SIGNATURE: [u8; 2] = [0x55, 0xAA];

/// The first 512 bytes of the boot sector.
pub(crate) fn encode(layout: &Layout, options: &Options, label: Option<Label>) -> [u8; 512] {
    let mut bytes = third_sector();
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &JUMP);
    // The specification recommends this name, whoever made it: some readers want to see it.
    put(3, b"MSWIN4.1");
    put(11, &(layout.sector_size as u16).to_le_bytes());
    put(13, &[layout.cluster_sectors as u8]);
    put(14, &(layout.reserved as u16).to_le_bytes());
    put(16, &[TABLES as u8]);
    put(21, &[MEDIA]);
    // Sectors per track and heads, by which nobody counts any more.
    put(24, &63_u16.to_le_bytes());
    put(26, &255_u16.to_le_bytes());
    put(28, &options.hidden_sectors.to_le_bytes());
    put(32, &layout.sectors.to_le_bytes());
    put(36, &layout.table_sectors.to_le_bytes());
    put(44, &FIRST_CLUSTER.to_le_bytes());
    // The sector with the free counts.
    put(48, &1_u16.to_le_bytes());
    put(50, &(BACKUP as u16).to_le_bytes());
    // The first hard disk of a BIOS; volume id, label and name of the type follow.
    put(64, &[0x80, 0, 0x29]);
    put(67, &options.volume_id.to_le_bytes());
    put(71, &label.unwrap_or(NO_LABEL));
    put(82, b"FAT32   ");
    put(90, &BOOT_CODE);
    bytes
}

/// The first 512 bytes of the third sector: nothing but the signature.
pub(crate) fn third_sector() -> [u8; 512] {
    let mut bytes = [0; 512];
    bytes[510..].copy_from_slice(&SIGNATURE);
    bytes
}
