//! The bitmap directory: entries of variable length, one for each bitmap ("Bitmap directory").

use std::collections::HashSet;

use block::{Error, Result, Storage, escape};
use byteorder::{BE, ByteOrder};

use super::table::check_inside;
use super::{Bitmap, GRANULARITY_BITS, MAX_BITMAPS, MAX_DATA, MAX_NAME};
use crate::address::HostOffset;
use crate::corruption::Corruption;
use crate::extension::BitmapsExtension;
use crate::feature::AutoclearFeatures;
use crate::geometry::Geometry;
use crate::header::Header;

/// Longest bitmap directory in bytes: 1 KiB for each bitmap (QEMU's limit, kept).
pub(crate) const MAX_DIRECTORY: u64 = MAX_BITMAPS as u64 * 1024;
/// Bytes of a directory entry in front of extra data and name.
const FIXED: usize = 24;
/// Where an entry's flags are.
const FLAGS: usize = 12;
/// The only type of bitmap that there is.
const DIRTY_TRACKING: u8 = 1;

const IN_USE: u32 = 1 << 0;
const AUTO: u32 = 1 << 1;
const EXTRA_DATA_COMPATIBLE: u32 = 1 << 2;

/// An entry of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) bitmap: Bitmap,
    /// Kept as it is.
    pub(crate) extra_data: Vec<u8>,
}

impl Entry {
    /// Bytes of the entry, with its padding.
    pub(crate) fn len(&self) -> u64 {
        entry_len(self.extra_data.len(), self.bitmap.name.len())
    }

    fn flags(&self) -> u32 {
        let bitmap = &self.bitmap;
        let flags = [
            (bitmap.in_use, IN_USE),
            (bitmap.auto, AUTO),
            (bitmap.extra_data_compatible, EXTRA_DATA_COMPATIBLE),
        ];
        flags
            .into_iter()
            .filter(|(set, _)| *set)
            .map(|(_, flag)| flag)
            .sum()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let bitmap = &self.bitmap;
        let mut fixed = [0; FIXED];
        BE::write_u64(&mut fixed[0..], bitmap.table_offset.0);
        BE::write_u32(&mut fixed[8..], bitmap.table_entries);
        BE::write_u32(&mut fixed[FLAGS..], self.flags());
        fixed[16] = DIRTY_TRACKING;
        fixed[17] = bitmap.granularity_bits as u8;
        BE::write_u16(&mut fixed[18..], bitmap.name.len() as u16);
        BE::write_u32(&mut fixed[20..], bitmap.extra_data_len);
        out.extend_from_slice(&fixed);
        out.extend_from_slice(&self.extra_data);
        out.extend_from_slice(bitmap.name.as_bytes());
        out.resize(out.len().next_multiple_of(8), 0);
    }
}

/// Bytes of an entry with so many of extra data and name, and its padding.
pub(crate) fn entry_len(extra_data: usize, name: usize) -> u64 {
    ((FIXED + extra_data + name) as u64).next_multiple_of(8)
}

/// The whole directory, as it is stored.
pub(crate) fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        entry.encode(&mut bytes);
    }
    bytes
}

/// For each entry, its flags with `in_use` set, and where they lie in the directory: to be written in place, which no
/// tear can split.
pub(crate) fn flags_in_use(entries: &[Entry]) -> impl Iterator<Item = (u64, [u8; 4])> {
    let mut at = 0;
    entries.iter().map(move |entry| {
        let start = at;
        at += entry.len();
        (start + FLAGS as u64, (entry.flags() | IN_USE).to_be_bytes())
    })
}

/// Reads the directory of an image: empty if its bitmaps are not marked consistent.
///
/// # Errors
/// As [`Bitmap::list`].
pub(crate) fn read(storage: &dyn Storage, header: &Header) -> Result<Vec<Entry>> {
    let consistent = header.autoclear.contains(AutoclearFeatures::BITMAPS);
    let Some(extension) = header.extensions.bitmaps.filter(|_| consistent) else {
        return Ok(Vec::new());
    };
    let file_len = storage.len()?;
    let parser = Parser {
        geometry: header.geometry,
        size: header.size,
        file_len,
    };
    read_bytes(storage, &extension, file_len)
        .and_then(|directory| parser.parse(&directory, extension.count))
        .map_err(|error| error.with_path_of(storage.path()))
}

fn read_bytes(storage: &dyn Storage, extension: &BitmapsExtension, file_len: u64) -> Result<Vec<u8>> {
    let (start, len) = (extension.directory_offset, extension.directory_size);
    let what = "the bitmap directory";
    if len > MAX_DIRECTORY {
        let limit = MAX_DIRECTORY;
        return Err(Corruption::TooLong { what, len, limit }.into());
    }
    check_inside(what, start, len, file_len)?;
    let mut directory = vec![0; len as usize];
    storage.read_exact_at(&mut directory, start.0)?;
    Ok(directory)
}

/// What entries are checked against.
struct Parser {
    geometry: Geometry,
    /// Of the disk, in bytes.
    size: u64,
    file_len: u64,
}

impl Parser {
    /// `count` bitmaps, of a directory that must end with the last.
    fn parse(&self, directory: &[u8], count: u32) -> Result<Vec<Entry>> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut names = HashSet::new();
        let mut rest = directory;
        for number in 0..count {
            let entry = self.entry(number, rest)?;
            if !names.insert(entry.bitmap.name.clone()) {
                let name = escape(&entry.bitmap.name).into_owned();
                return Err(Error::from(Corruption::BitmapNamedTwice { name }));
            }
            rest = rest.get(entry.len() as usize..).unwrap_or_default();
            entries.push(entry);
        }
        if rest.is_empty() {
            return Ok(entries);
        }
        Err(Error::from(Corruption::HeaderField {
            field: "bitmap_directory_size",
            value: directory.len() as u64,
            rule: "the bitmaps take less",
        }))
    }

    /// Parses the entry at the start of `bytes`.
    fn entry(&self, number: u32, bytes: &[u8]) -> Result<Entry> {
        let cut_off = |need: usize| Corruption::CutOff {
            what: "an entry of the bitmap directory",
            need: need as u64,
            have: bytes.len() as u64,
        };
        let fixed = bytes.get(..FIXED).ok_or_else(|| cut_off(FIXED))?;
        let extra_data_len = BE::read_u32(&fixed[20..]);
        let name_len = usize::from(BE::read_u16(&fixed[18..]));
        let name_start = FIXED + extra_data_len as usize;
        let end = name_start + name_len;
        let name = bytes.get(name_start..end).ok_or_else(|| cut_off(end))?;
        let flags = BE::read_u32(&fixed[FLAGS..]);
        let bitmap = Bitmap {
            name: String::from_utf8(name.to_vec()).map_err(|_| {
                Error::unsupported(format!("the name of bitmap {number} (from 0) is not UTF-8"))
            })?,
            granularity_bits: fixed[17].into(),
            in_use: flags & IN_USE != 0,
            auto: flags & AUTO != 0,
            extra_data_compatible: flags & EXTRA_DATA_COMPATIBLE != 0,
            table_offset: HostOffset(BE::read_u64(&fixed[0..])),
            table_entries: BE::read_u32(&fixed[8..]),
            extra_data_len,
        };
        if fixed[16] != DIRTY_TRACKING {
            return Err(Error::unsupported(format!(
                "bitmap {number} (from 0) is of type {}, which is unknown",
                fixed[16]
            )));
        }
        self.check(number, &bitmap, flags)?;
        let table_len = u64::from(bitmap.table_entries) * 8;
        check_inside("a bitmap table", bitmap.table_offset, table_len, self.file_len)?;
        let extra_data = bytes[FIXED..name_start].to_vec();
        Ok(Entry { bitmap, extra_data })
    }

    fn check(&self, number: u32, bitmap: &Bitmap, flags: u32) -> Result<(), Corruption> {
        let problem = |field, value, rule| {
            Err(Corruption::Entry {
                what: "bitmap",
                index: number.into(),
                field,
                value,
                rule,
            })
        };
        if bitmap.name.is_empty() || bitmap.name.len() > MAX_NAME {
            let len = bitmap.name.len() as u64;
            return problem("name length", len, "it must be from 1 to 1023 bytes");
        }
        if !GRANULARITY_BITS.contains(&bitmap.granularity_bits) {
            let bits = bitmap.granularity_bits.into();
            return problem("granularity bits", bits, "they must be from 9 to 31");
        }
        if flags & !(IN_USE | AUTO | EXTRA_DATA_COMPATIBLE) != 0 {
            return problem("flags", flags.into(), "bits 3 to 31 are reserved");
        }
        let (table, entries) = (bitmap.table_offset.0, u64::from(bitmap.table_entries));
        if entries > 0 && (table == 0 || !self.geometry.is_aligned(table)) {
            let rule = "it must be a multiple of the cluster size, and not 0";
            return problem("table offset", table, rule);
        }
        if entries > MAX_DATA >> self.geometry.cluster_bits {
            return problem("table size", entries, "a bitmap takes 512 MiB at most");
        }
        // One that was not saved may be of an older size of the disk.
        let bits = super::bits(self.size, bitmap.granularity_bits);
        if !bitmap.in_use && entries << (self.geometry.cluster_bits + 3) < bits {
            return problem("table size", entries, "the disk needs more entries");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::{Arc, OnceLock};

    use block::{Access, ErrorKind, MemStorage};
    use proptest::prelude::*;

    use super::*;

    /// An image of 1 MiB with bitmaps `every write` (64 KiB) and `stopped_now` (512 bytes).
    fn image() -> MemStorage {
        static IMAGE: OnceLock<MemStorage> = OnceLock::new();
        let make = || {
            if cfg!(miri) {
                return ours();
            }
            let directory = tempfile::tempdir().unwrap();
            for args in [
                "create -q -f qcow2 image 1M",
                "bitmap --add -g 64k image every_write",
                "bitmap --add --disable -g 512 image stopped_now",
            ] {
                let output = Command::new("qemu-img")
                    .args(args.split(' '))
                    .current_dir(directory.path())
                    .output()
                    .expect("qemu-img must be installed");
                assert!(output.status.success(), "{args}: {output:?}");
            }
            MemStorage::from(std::fs::read(directory.path().join("image")).unwrap())
        };
        IMAGE.get_or_init(make).clone()
    }

    /// What Miri has instead, which runs no other programs.
    fn ours() -> MemStorage {
        let storage = Arc::new(MemStorage::new());
        let options = crate::CreateOptions {
            size: 1 << 20,
            // Smaller refcount blocks than usual take less time.
            cluster_bits: 14,
            ..crate::CreateOptions::default()
        };
        crate::create(&*storage, &options).unwrap();
        let options = crate::OpenOptions {
            access: Access::WRITE,
            ..crate::OpenOptions::default()
        };
        let image = crate::Image::open(storage.clone(), options).unwrap();
        let added = image.edit_bitmaps(|bitmaps| {
            bitmaps.add("every_write", Some(65_536), true)?;
            bitmaps.add("stopped_now", Some(512), false)
        });
        added.unwrap();
        image.close().unwrap();
        MemStorage::clone(&storage)
    }

    fn list(storage: &MemStorage) -> Result<Vec<Bitmap>> {
        Bitmap::list(storage, &Header::read(storage)?)
    }

    fn directory_start(storage: &MemStorage) -> u64 {
        let header = Header::read(storage).unwrap();
        header.extensions.bitmaps.unwrap().directory_offset.0
    }

    #[test]
    fn lists_what_qemu_img_added() {
        let bitmaps = list(&image()).unwrap();
        let seen: Vec<_> = bitmaps
            .iter()
            .map(|bitmap| (&*bitmap.name, bitmap.granularity(), bitmap.auto, bitmap.in_use))
            .collect();
        assert_eq!(
            seen,
            [
                ("every_write", 65_536, true, false),
                ("stopped_now", 512, false, false)
            ]
        );
    }

    #[test]
    fn lists_none_that_are_not_consistent() {
        let storage = image();
        storage.write_all_at(&[0; 8], 88).unwrap();
        assert_eq!(list(&storage).unwrap(), []);
    }

    #[test]
    fn refuses_each_contradiction_by_name() {
        let start = directory_start(&image());
        let hazards: [(u64, &[u8], ErrorKind, &str); 11] = [
            (7, &[1], ErrorKind::Corrupt, "multiple of the cluster size"),
            (0, &[0x7f], ErrorKind::Corrupt, "past the end of the file"),
            (8, &[0; 4], ErrorKind::Corrupt, "needs more entries"),
            (8, &[0, 1, 0, 0], ErrorKind::Corrupt, "512 MiB"),
            (40 + 24, b"every_write", ErrorKind::Corrupt, "named 'every_write'"),
            (15, &[8], ErrorKind::Corrupt, "bits 3 to 31 are reserved"),
            (16, &[2], ErrorKind::Unsupported, "type 2"),
            (17, &[8], ErrorKind::Corrupt, "from 9 to 31"),
            (18, &[0, 0], ErrorKind::Corrupt, "name length 0"),
            (20, &[0xff; 4], ErrorKind::Corrupt, "cut off"),
            (24, &[0xff], ErrorKind::Unsupported, "not UTF-8"),
        ];
        for (at, bytes, kind, words) in hazards {
            let storage = image();
            storage.write_all_at(bytes, start + at).unwrap();
            let error = list(&storage).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    proptest! {
        #[test]
        fn a_damaged_directory_is_never_more_than_an_error(
            changes in prop::collection::vec((0u64..80, any::<u8>()), 1..8),
        ) {
            let storage = image();
            let start = directory_start(&storage);
            for (at, byte) in changes {
                storage.write_all_at(&[byte], start + at).unwrap();
            }
            let _ = list(&storage);
        }
    }
}
