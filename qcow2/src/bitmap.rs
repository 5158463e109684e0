//! Persistent dirty bitmaps, as far as listing them needs ("Bitmaps").

use block::{Error, Result, Storage};
use byteorder::{BE, ByteOrder};

use crate::address::HostOffset;
use crate::corruption::Corruption;
use crate::extension::BitmapsExtension;
use crate::feature::AutoclearFeatures;
use crate::geometry::Geometry;
use crate::header::Header;

/// Most bitmaps in an image (QEMU's limit, kept).
pub(crate) const MAX_BITMAPS: u32 = 65_535;
/// Longest bitmap directory in bytes: 1 KiB for each bitmap (QEMU's limit, kept).
const MAX_DIRECTORY: u64 = MAX_BITMAPS as u64 * 1024;
/// Longest name of a bitmap in bytes (QEMU's limit, kept).
const MAX_NAME: usize = 1023;
/// Bytes of a directory entry in front of extra data and name.
const FIXED: usize = 24;
/// The only type of bitmap that there is.
const DIRTY_TRACKING: u8 = 1;

const IN_USE: u32 = 1 << 0;
const AUTO: u32 = 1 << 1;
const EXTRA_DATA_COMPATIBLE: u32 = 1 << 2;

/// A dirty bitmap, as the bitmap directory describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// Its name, unique in the image. From the file: escape it before it is printed.
    pub name: String,
    /// log2 of the bytes of the disk that a bit stands for, 9..=31.
    pub granularity_bits: u32,
    /// It was not saved: its contents may be anything.
    pub in_use: bool,
    /// It records writes whenever the image is open for them.
    pub auto: bool,
    /// Its extra data may be ignored.
    pub extra_data_compatible: bool,
    /// Where its table starts.
    pub table_offset: HostOffset,
    /// Entries of its table.
    pub table_entries: u32,
    /// Bytes of extra data, which have no meaning yet.
    pub extra_data_len: u32,
}

impl Bitmap {
    /// Bytes of the disk that a bit stands for.
    pub fn granularity(&self) -> u64 {
        1 << self.granularity_bits
    }

    /// Lists the bitmaps of an image: none if its bitmaps are not marked consistent. Tables are checked for their
    /// place, and not read.
    ///
    /// # Errors
    /// `Corrupt` for a directory that contradicts the format or exceeds a limit, `Unsupported` for a name that is
    /// not UTF-8 and for a type that is unknown, `Io`; each with the storage's path.
    pub fn list(storage: &dyn Storage, header: &Header) -> Result<Vec<Self>> {
        let consistent = header.autoclear.contains(AutoclearFeatures::BITMAPS);
        let Some(extension) = header.extensions.bitmaps.filter(|_| consistent) else {
            return Ok(Vec::new());
        };
        let file_len = storage.len()?;
        read_directory(storage, &extension, file_len)
            .and_then(|directory| parse_directory(&directory, extension.count, header.geometry, file_len))
            .map_err(|error| error.with_path_of(storage.path()))
    }
}

fn read_directory(storage: &dyn Storage, extension: &BitmapsExtension, file_len: u64) -> Result<Vec<u8>> {
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

/// `count` bitmaps, of a directory that must end with the last.
fn parse_directory(directory: &[u8], count: u32, geometry: Geometry, file_len: u64) -> Result<Vec<Bitmap>> {
    let mut bitmaps: Vec<Bitmap> = Vec::new();
    let mut rest = directory;
    for number in 0..count {
        let entry = Entry { number, geometry };
        let (bitmap, len) = entry.parse(rest, file_len)?;
        rest = rest.get(len..).unwrap_or_default();
        bitmaps.push(bitmap);
    }
    if rest.is_empty() {
        return Ok(bitmaps);
    }
    Err(Error::from(Corruption::HeaderField {
        field: "bitmap_directory_size",
        value: directory.len() as u64,
        rule: "the bitmaps take less",
    }))
}

fn check_inside(what: &'static str, start: HostOffset, len: u64, file_len: u64) -> Result<(), Corruption> {
    if start.0.checked_add(len).is_some_and(|end| end <= file_len) {
        return Ok(());
    }
    Err(Corruption::BeyondEnd {
        what,
        start,
        len,
        file_len,
    })
}

struct Entry {
    number: u32,
    geometry: Geometry,
}

impl Entry {
    /// Parses the entry at the start of `bytes`. Returns it with its padded length.
    fn parse(&self, bytes: &[u8], file_len: u64) -> Result<(Bitmap, usize)> {
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
        let flags = BE::read_u32(&fixed[12..]);
        let bitmap = Bitmap {
            name: String::from_utf8(name.to_vec()).map_err(|_| {
                let number = self.number;
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
        self.check(&bitmap, fixed[16], flags)?;
        let table_len = u64::from(bitmap.table_entries) * 8;
        check_inside("a bitmap table", bitmap.table_offset, table_len, file_len)?;
        Ok((bitmap, end.next_multiple_of(8)))
    }

    fn check(&self, bitmap: &Bitmap, kind: u8, flags: u32) -> Result<()> {
        let reserved = flags & !(IN_USE | AUTO | EXTRA_DATA_COMPATIBLE);
        let table = bitmap.table_offset.0;
        let problem = |field, value, rule| {
            Err(Error::from(Corruption::Entry {
                what: "bitmap",
                index: self.number.into(),
                field,
                value,
                rule,
            }))
        };
        if kind != DIRTY_TRACKING {
            return Err(Error::unsupported(format!(
                "bitmap {} (from 0) is of type {kind}, which is unknown",
                self.number
            )));
        }
        if bitmap.name.is_empty() || bitmap.name.len() > MAX_NAME {
            let len = bitmap.name.len() as u64;
            return problem("name length", len, "it must be from 1 to 1023 bytes");
        }
        if !(9..=31).contains(&bitmap.granularity_bits) {
            let bits = bitmap.granularity_bits.into();
            return problem("granularity bits", bits, "they must be from 9 to 31");
        }
        if reserved != 0 {
            return problem("flags", flags.into(), "bits 3 to 31 are reserved");
        }
        if bitmap.table_entries > 0 && (table == 0 || !self.geometry.is_aligned(table)) {
            return problem(
                "table offset",
                table,
                "it must be a multiple of the cluster size, and not 0",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::OnceLock;

    use block::{ErrorKind, MemStorage};
    use proptest::prelude::*;

    use super::*;

    /// An image of 1 MiB with bitmaps `every write` (64 KiB) and `stopped` (512 bytes).
    fn image() -> MemStorage {
        static IMAGE: OnceLock<MemStorage> = OnceLock::new();
        let make = || {
            let directory = tempfile::tempdir().unwrap();
            for args in [
                "create -q -f qcow2 image 1M",
                "bitmap --add -g 64k image every_write",
                "bitmap --add --disable -g 512 image stopped",
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

    fn list(storage: &MemStorage) -> Result<Vec<Bitmap>> {
        Bitmap::list(storage, &Header::read(storage)?)
    }

    fn directory(storage: &MemStorage) -> u64 {
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
                ("stopped", 512, false, false)
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
        let start = directory(&image());
        let hazards: [(u64, &[u8], ErrorKind, &str); 8] = [
            (7, &[1], ErrorKind::Corrupt, "multiple of the cluster size"),
            (0, &[0x7f], ErrorKind::Corrupt, "past the end of the file"),
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
            let start = directory(&storage);
            for (at, byte) in changes {
                storage.write_all_at(&[byte], start + at).unwrap();
            }
            let _ = list(&storage);
        }
    }
}
