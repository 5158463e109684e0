//! Damage that a repair can set right without losing anything.

use block::test_utils::Rng;
use block::{MemStorage, Storage};
use qcow2::Header;

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Harms some of it, and says what.
pub(crate) fn harm(storage: &MemStorage, data_file: bool, rng: &mut Rng) -> Vec<String> {
    let header = Header::read(storage).expect("a header");
    let cluster = header.geometry.cluster_size();
    let mut harmed = Vec::new();
    for _ in 0..=rng.below(3) {
        let table = header.refcount_table_offset.0;
        let l1 = header.l1_offset.0 + 8 * rng.below(u64::from(header.l1_entries.max(1)));
        match rng.below(4) {
            // The first block always is there. What it counts past the end of the file, no check looks at.
            0 => {
                let counted = (storage.len().expect("memory") / cluster) << header.geometry.refcount_order;
                if counted < 8 {
                    continue;
                }
                let at = (word(storage, table) & OFFSET) + rng.below((counted / 8).min(cluster));
                let byte = rng.below(256) as u8;
                storage.write_all_at(&[byte], at).expect("memory");
                harmed.push(format!("refcounts at {at:#x}"));
            }
            1 => {
                storage.write_all_at(&[0; 8], table).expect("memory");
                harmed.push("the first refcount block".to_owned());
                // Nothing below it can be harmed now.
                return harmed;
            }
            2 if word(storage, l1) & OFFSET != 0 => {
                flip(storage, l1);
                harmed.push(format!("COPIED at {l1:#x}"));
            }
            3 if word(storage, l1) & OFFSET != 0 && !data_file => {
                let stride = if header.geometry.extended_l2 { 16 } else { 8 };
                let at = (word(storage, l1) & OFFSET) + rng.below(cluster / stride) * stride;
                let entry = word(storage, at);
                if entry & COMPRESSED == 0 && entry & OFFSET != 0 {
                    flip(storage, at);
                    harmed.push(format!("COPIED at {at:#x}"));
                }
            }
            _ => {}
        }
    }
    harmed
}

fn word(storage: &MemStorage, at: u64) -> u64 {
    let mut bytes = [0; 8];
    storage.read_exact_at(&mut bytes, at).expect("memory");
    u64::from_be_bytes(bytes)
}

fn flip(storage: &MemStorage, at: u64) {
    let entry = word(storage, at) ^ COPIED;
    storage.write_all_at(&entry.to_be_bytes(), at).expect("memory");
}
