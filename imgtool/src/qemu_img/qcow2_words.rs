//! Why a qcow2 image is not opened, in QEMU's words and in the order in which it looks.
//!
//! The engine has checks and sentences of its own, and looks closer. What both refuse is refused here first, because scripts compare
//! the text; what only the engine refuses comes in its words.

use std::io;

use block::{Result, Storage};
use qcow2::{FeatureKind, FeatureNames, Header};

use super::refusal::{EFBIG, EINVAL, Refusal, host_text, reason};

/// Bytes of an image that are looked at: the largest first cluster.
const HEAD: u64 = 2 << 20;
const KNOWN_INCOMPATIBLE: u64 = 0x1f;

/// The fixed fields of a header, however wrong they are.
struct Fields {
    bytes: Vec<u8>,
}

impl Fields {
    fn u32(&self, at: usize) -> u32 {
        let bytes = self.bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        u32::from_be_bytes(bytes.unwrap_or_default())
    }

    fn u64(&self, at: usize) -> u64 {
        let bytes = self.bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        u64::from_be_bytes(bytes.unwrap_or_default())
    }
}

/// Fails for an image that QEMU would not open, for writing or at all. A check opens what has a damaged snapshot table or is marked
/// as corrupt.
pub(super) fn refuse(storage: &dyn Storage, write: bool, check: bool) -> std::result::Result<(), Refusal> {
    let bytes = head(storage)
        .map_err(|error| Refusal::new(format!("Could not read qcow2 header: {}", reason(&error))))?;
    match wrong(&Fields { bytes }, storage, write, check) {
        Some(text) => Err(Refusal::new(text)),
        None => Ok(()),
    }
}

fn head(storage: &dyn Storage) -> Result<Vec<u8>> {
    let len = storage.len()?;
    let mut bytes = vec![0; len.min(512) as usize];
    storage.read_exact_at(&mut bytes, 0)?;
    let bits = Fields { bytes: bytes.clone() }.u32(20).min(21);
    let cluster = (1u64 << bits).min(len).min(HEAD);
    if cluster > bytes.len() as u64 {
        bytes.resize(cluster as usize, 0);
        storage.read_exact_at(&mut bytes, 0)?;
    }
    Ok(bytes)
}

fn wrong(header: &Fields, storage: &dyn Storage, write: bool, check: bool) -> Option<String> {
    if !header.bytes.starts_with(b"QFI\xfb") {
        return Some("Image is not in qcow2 format".to_owned());
    }
    let version = header.u32(4);
    if !(2..=3).contains(&version) {
        return Some(format!("Unsupported qcow2 version {version}"));
    }
    let bits = header.u32(20);
    if !(9..=21).contains(&bits) {
        return Some(format!("Unsupported cluster size: 2^{bits}"));
    }
    let cluster = 1u64 << bits;
    let v3 = version == 3;
    let length = if v3 { u64::from(header.u32(100)) } else { 72 };
    if v3 && length < 104 {
        return Some("qcow2 header too short".to_owned());
    }
    if length > cluster {
        return Some("qcow2 header exceeds cluster size".to_owned());
    }
    let backing = header.u64(8);
    if backing > cluster {
        return Some("Invalid backing file offset".to_owned());
    }
    if backing != 0 && backing < length {
        return Some("Invalid backing file offset".to_owned());
    }
    let extensions_end = if backing == 0 { cluster } else { backing };
    let extensions = Extensions::read(header, length, extensions_end);
    let incompatible = if v3 { header.u64(72) } else { 0 };
    if incompatible & !KNOWN_INCOMPATIBLE != 0 {
        return Some(unknown_features(
            incompatible & !KNOWN_INCOMPATIBLE,
            extensions.names.as_ref(),
        ));
    }
    if incompatible & 2 != 0 && write && !check {
        return Some("qcow2: Image is corrupt; cannot be opened read/write".to_owned());
    }
    let extended_l2 = incompatible & 16 != 0;
    if v3 && header.u32(96) > 6 {
        return Some("Reference count entry width too large; may not exceed 64 bits".to_owned());
    }
    let method = header.u32(32);
    if method > 2 {
        return Some(format!("Unsupported encryption method {method}"));
    }
    let entry_bits = if extended_l2 { 4 } else { 3 };
    let l2_bits = bits - entry_bits;
    let table_bytes = u64::from(header.u32(56)) << bits;
    if table_bytes > 8 << 20 {
        return Some("Reference count table too large".to_owned());
    }
    if header.u32(56) == 0 && !check {
        return Some("Image does not contain a reference count table".to_owned());
    }
    let bad_offset = |offset: u64, bytes: u64| {
        !offset.is_multiple_of(cluster) || offset.checked_add(bytes).is_none_or(|end| end > i64::MAX as u64)
    };
    if bad_offset(header.u64(48), table_bytes) {
        return Some("Reference count table offset invalid".to_owned());
    }
    let snapshots = u64::from(header.u32(60));
    // A check looks at it by itself.
    if !check && snapshots > 65_536 {
        return Some("Snapshot table too large".to_owned());
    }
    if snapshots <= 65_536 && bad_offset(header.u64(64), snapshots * 40) {
        return Some("Snapshot table offset invalid".to_owned());
    }
    let l1 = u64::from(header.u32(36));
    if l1 * 8 > 32 << 20 {
        return Some("Active L1 table too large".to_owned());
    }
    if bad_offset(header.u64(40), l1 * 8) {
        return Some("Active L1 table offset invalid".to_owned());
    }
    let size = header.u64(24);
    let needed = (size >> (l2_bits + bits)) + u64::from(!size.is_multiple_of(1 << (l2_bits + bits)));
    if needed > i32::MAX as u64 {
        return Some("Image is too big".to_owned());
    }
    if l1 < needed {
        return Some("L1 table is too small".to_owned());
    }
    if let Some(problem) = extensions.problem {
        return Some(problem);
    }
    if method == 2 && !extensions.crypto {
        return Some("Missing CRYPTO header for crypt method 2".to_owned());
    }
    if backing != 0 {
        let len = u64::from(header.u32(16));
        if len > 1023.min(cluster - backing) {
            return Some("Backing file name too long".to_owned());
        }
    }
    if check {
        None
    } else {
        snapshot_table(header, storage, snapshots)
    }
}

/// What the area behind the header holds.
#[derive(Default)]
struct Extensions {
    names: Option<FeatureNames>,
    crypto: bool,
    problem: Option<String>,
}

impl Extensions {
    fn read(header: &Fields, start: u64, end: u64) -> Self {
        let mut found = Self::default();
        let mut at = start;
        while at + 8 <= end {
            let (kind, len) = (header.u32(at as usize), u64::from(header.u32(at as usize + 4)));
            at += 8;
            if kind == 0 {
                break;
            }
            if at > end || len > end - at {
                found.problem = Some("Header extension too large".to_owned());
                break;
            }
            let data = header
                .bytes
                .get(at as usize..(at + len) as usize)
                .unwrap_or_default();
            match kind {
                0x6803_f857 => {
                    // An entry may end where its name does.
                    let mut table = data.to_vec();
                    table.resize(data.len().next_multiple_of(48), 0);
                    found.names = Some(FeatureNames::of_table(&table));
                }
                0x0537_be77 => found.crypto = true,
                _ => {}
            }
            at += len.next_multiple_of(8);
        }
        found
    }
}

fn unknown_features(mut unknown: u64, names: Option<&FeatureNames>) -> String {
    let mut known = Vec::new();
    for bit in 0..64 {
        let name = names.and_then(|names| names.name(FeatureKind::Incompatible, bit));
        if let Some(name) = name.filter(|_| unknown >> bit & 1 == 1) {
            known.push((names_order(names, bit), name.into_owned()));
            unknown &= !(1 << bit);
        }
    }
    known.sort();
    let mut list: Vec<String> = known.into_iter().map(|(_, name)| name).collect();
    if unknown != 0 {
        list.push(format!("Unknown incompatible feature: {unknown:x}"));
    }
    format!("Unsupported qcow2 feature(s): {}", list.join(", "))
}

/// Names come in the order of the table.
fn names_order(names: Option<&FeatureNames>, bit: u32) -> usize {
    names
        .and_then(|names| names.position(FeatureKind::Incompatible, bit))
        .unwrap_or_default()
}

/// What opening an image says of its snapshot table.
fn snapshot_table(header: &Fields, storage: &dyn Storage, snapshots: u64) -> Option<String> {
    let start = header.u64(64);
    let mut at = 0u64;
    for number in 0..snapshots {
        let mut fixed = [0; 40];
        if storage.read_exact_at(&mut fixed, start + at).is_err() {
            return Some("Failed to read snapshot table".to_owned());
        }
        let fields = Fields {
            bytes: fixed.to_vec(),
        };
        let extra = u64::from(fields.u32(36));
        if extra > 1024 {
            return Some(format!(
                "Too much extra metadata in snapshot table entry {number}"
            ));
        }
        let names = u64::from(fields.u32(12) >> 16) + u64::from(fields.u32(12) & 0xffff);
        at = (at + 40 + extra + names).next_multiple_of(8);
        if at > 64 << 20 {
            return Some("Snapshot table is too big".to_owned());
        }
    }
    None
}

/// How many snapshots the header of a qcow2 image counts, whether they are there or not.
pub(super) fn snapshot_count(storage: &dyn Storage) -> Option<u32> {
    Some(
        Fields {
            bytes: head(storage).ok()?,
        }
        .u32(60),
    )
}

/// What is wrong with the L1 table of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadL1 {
    TooLarge,
    Offset,
}

impl BadL1 {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::TooLarge => "Snapshot L1 table too large",
            Self::Offset => "Snapshot L1 table offset invalid",
        }
    }

    /// The number of the error that it is.
    pub(super) fn reason(self) -> String {
        let number = match self {
            Self::TooLarge => EFBIG,
            Self::Offset => EINVAL,
        };
        host_text(&io::Error::from_raw_os_error(number))
    }
}

/// An entry of the snapshot table, as far as words are made of it.
#[derive(Clone, Debug, Default)]
pub(super) struct SnapshotWords {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) wrong: Option<BadL1>,
}

/// The entries of the snapshot table, up to the first that cannot be read.
pub(super) fn snapshots(header: &Header, storage: &dyn Storage) -> Vec<SnapshotWords> {
    let mut found = Vec::new();
    let mut at = header.snapshots_offset.0;
    for _ in 0..header.snapshot_count.min(65_536) {
        let mut fixed = vec![0; 40];
        if storage.read_exact_at(&mut fixed, at).is_err() {
            break;
        }
        let fields = Fields { bytes: fixed };
        let extra = u64::from(fields.u32(36));
        let (id, name) = (fields.u32(12) as usize >> 16, fields.u32(12) as usize & 0xffff);
        let mut names = vec![0; id + name];
        if extra > 1024 || storage.read_exact_at(&mut names, at + 40 + extra).is_err() {
            break;
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (offset, bytes) = (fields.u64(0), u64::from(fields.u32(8)) * 8);
        found.push(SnapshotWords {
            id: text(&names[..id]),
            name: text(&names[id..]),
            wrong: if bytes > 32 << 20 {
                Some(BadL1::TooLarge)
            } else if offset.is_multiple_of(header.geometry.cluster_size()) {
                None
            } else {
                Some(BadL1::Offset)
            },
        });
        at = (at + 40 + extra + (id + name) as u64).next_multiple_of(8);
    }
    found
}
