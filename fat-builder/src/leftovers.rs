//! What deleted files have left in a filesystem that somebody has made.
//!
//! A file that is deleted loses the first byte of its name and its clusters in the table, and nothing else. So the whole tree is
//! walked, and what no file needs is: clusters that are in no file, whatever the table says of them, the rest of a file's last cluster,
//! entries of directories that are marked as deleted, all behind the entry that says that there are no more, the sectors behind the last cluster,
//! and [room before the first](crate::spare).
//!
//! Nothing is said of a filesystem that contradicts itself, since what is free by the one may be a file by the other: a
//! cluster in two files, or free and in one; a file that has fewer clusters than bytes; entries behind the last one, which some
//! readers see. Clusters that are taken, or bad, and in no file stay so in the table, and their content is nobody's.

use std::ops::Range;

use block::{BlockDevice, Result};

use crate::directory_entry::{ATTR_DIRECTORY, ATTR_LONG_NAME, ATTR_VOLUME_ID, Entry};
use crate::volume::{Root, Use, Volume, wrong};

/// The first byte of an entry that is deleted, and of one behind which there are no more.
const DELETED: u8 = 0xE5;
const END: u8 = 0;

/// What is in none of the files of a FAT12, FAT16 or FAT32 filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftovers {
    /// Bytes that are in none of its structures either, in order. They may become zeros; the filesystem is as before.
    pub free: Vec<Range<u64>>,
    /// Bytes that would be free too if the boot sector had no code that may load them.
    pub loader: Vec<Range<u64>>,
    /// The byte behind the filesystem's last one: what follows on the disk is not looked at.
    pub end: u64,
}

/// Finds what is in no file of a filesystem.
///
/// # Errors
/// `Corrupt` for one that contradicts itself; `Unsupported` for one that is too large; `Io`.
pub fn leftovers(disk: &dyn BlockDevice) -> Result<Leftovers> {
    let volume = Volume::read(disk)?;
    let mut walk = Walk {
        disk,
        taken: vec![false; volume.clusters as usize],
        volume: &volume,
        left: Vec::new(),
        directories: Vec::new(),
    };
    match &volume.root {
        Root::Region(region) => walk.directory(std::slice::from_ref(region))?,
        Root::Chain(first) => walk.directories.push(*first),
    }
    while let Some(first) = walk.directories.pop() {
        let places = walk.chain(first)?;
        walk.directory(&places)?;
    }
    for cluster in volume.numbers() {
        // An entry that means nothing is an error, of a file's cluster or not.
        volume.used(cluster)?;
        if !walk.taken[(cluster - volume.numbers().start) as usize] {
            walk.left.push(volume.place(cluster));
        }
    }
    walk.left.push(volume.rest());
    walk.left.extend_from_slice(&volume.spare.free);
    walk.left.retain(|range| !range.is_empty());
    walk.left.sort_unstable_by_key(|range| range.start);
    walk.left.dedup_by(|next, range| {
        let follows = next.start == range.end;
        if follows {
            range.end = next.end;
        }
        follows
    });
    Ok(Leftovers {
        free: walk.left,
        loader: volume.spare.loader.clone(),
        end: volume.end,
    })
}

struct Walk<'v> {
    disk: &'v dyn BlockDevice,
    volume: &'v Volume,
    /// Of each cluster, whether it is in a file or a directory that was seen.
    taken: Vec<bool>,
    left: Vec<Range<u64>>,
    /// Those that are to be looked at, by their first clusters.
    directories: Vec<u32>,
}

impl Walk<'_> {
    /// Where a file's clusters are, from the first one on.
    fn chain(&mut self, first: u32) -> Result<Vec<Range<u64>>> {
        let (mut places, mut next) = (Vec::new(), first);
        loop {
            if !self.volume.numbers().contains(&next) {
                return Err(wrong(format!("there is no cluster {next:#x}")));
            }
            let taken = &mut self.taken[(next - self.volume.numbers().start) as usize];
            if std::mem::replace(taken, true) {
                return Err(wrong(format!("cluster {next} is in two files")));
            }
            places.push(self.volume.place(next));
            match self.volume.used(next)? {
                Use::Before(following) => next = following,
                Use::Last => return Ok(places),
                Use::Free | Use::Bad => {
                    return Err(wrong(format!("cluster {next} is in a file, and in none")));
                }
            }
        }
    }

    /// Looks at the entries of a directory that is at these places.
    fn directory(&mut self, places: &[Range<u64>]) -> Result<()> {
        let mut has_ended = false;
        let mut buffer = Vec::new();
        for place in places {
            buffer.resize((place.end - place.start) as usize, 0);
            self.disk.read_at(&mut buffer, place.start)?;
            let (entries, _) = buffer.as_chunks::<{ size_of::<Entry>() }>();
            for (at, entry) in (place.start..).step_by(size_of::<Entry>()).zip(entries) {
                let end = at + size_of::<Entry>() as u64;
                has_ended |= entry[0] == END;
                match entry[0] {
                    END => self.left.push(at..end),
                    DELETED if has_ended => self.left.push(at..end),
                    // The mark stays.
                    DELETED => self.left.push(at + 1..end),
                    _ if has_ended => return Err(wrong("a directory goes on behind its end")),
                    _ => self.entry(entry)?,
                }
            }
        }
        Ok(())
    }

    /// Looks at what an entry is of.
    fn entry(&mut self, entry: &Entry) -> Result<()> {
        let attributes = entry[11] & 0x3F;
        let is_self_or_parent = matches!(&entry[..11], b".          " | b"..         ");
        if attributes == ATTR_LONG_NAME || attributes & ATTR_VOLUME_ID != 0 || is_self_or_parent {
            return Ok(());
        }
        let two = |at: usize| u32::from(u16::from_le_bytes([entry[at], entry[at + 1]]));
        let first = match self.volume.root {
            Root::Chain(_) => two(20) << 16 | two(26),
            // The upper half is something else there.
            Root::Region(_) => two(26),
        };
        if attributes & ATTR_DIRECTORY != 0 {
            self.directories.push(first);
            return Ok(());
        }
        let size = u64::from(two(28) | two(30) << 16);
        let places = if first == 0 {
            Vec::new()
        } else {
            self.chain(first)?
        };
        if (places.len() as u64) * self.volume.cluster_size < size {
            return Err(wrong("a file has fewer clusters than bytes"));
        }
        let mut content = size;
        for place in places {
            let used = content.min(self.volume.cluster_size);
            content -= used;
            if place.start + used < place.end {
                self.left.push(place.start + used..place.end);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use block::{Access, DeviceInfo, Extent, ExtentState, MemStorage, Storage, ZeroMode, test_utils::Rng};

    use super::*;
    use crate::{Builder, Options, Time};

    const SIZE: u64 = 34 << 20;

    #[derive(Debug)]
    struct Disk(Vec<u8>);

    impl BlockDevice for Disk {
        fn info(&self) -> DeviceInfo {
            DeviceInfo::new("test")
        }
        fn size(&self) -> u64 {
            self.0.len() as u64
        }
        fn read_at(&self, bytes: &mut [u8], at: u64) -> Result<()> {
            bytes.copy_from_slice(&self.0[at as usize..][..bytes.len()]);
            Ok(())
        }
        fn write_at(&self, _: &[u8], _: u64) -> Result<()> {
            unreachable!("nothing is changed")
        }
        fn zero_at(&self, _: u64, _: u64, _: ZeroMode) -> Result<()> {
            unreachable!("nothing is changed")
        }
        fn discard_at(&self, _: u64, _: u64) -> Result<()> {
            unreachable!("nothing is changed")
        }
        fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
            let state = ExtentState::Data;
            Ok(Extent {
                offset,
                len,
                state,
                depth: 0,
                host: None,
            })
        }
        fn flush(&self) -> Result<()> {
            Ok(())
        }
    }

    /// A filesystem with a file of 700 bytes in a directory.
    fn made() -> Disk {
        let storage = MemStorage::new();
        let mut builder = Builder::new(&storage, Options::new(SIZE, 1)).unwrap();
        let time = Time { secs: 1_700_000_000 };
        let directory = builder.directory(builder.root(), b"directory", time).unwrap();
        builder
            .file(
                directory,
                b"file with a long name",
                time,
                700,
                &mut &[b'x'; 700][..],
            )
            .unwrap();
        builder.finish().unwrap();
        let mut bytes = vec![0; SIZE as usize];
        storage.read_exact_at(&mut bytes, 0).unwrap();
        Disk(bytes)
    }

    /// Where bytes are.
    fn find(disk: &Disk, what: &[u8]) -> usize {
        disk.0.windows(what.len()).position(|part| part == what).unwrap()
    }

    #[test]
    fn what_is_free_is_all_that_is_not_needed() {
        let disk = made();
        let Leftovers {
            free: left,
            loader,
            end,
        } = leftovers(&disk).unwrap();
        assert!(loader.is_empty() && end == SIZE);
        assert!(left.is_sorted_by(|a, b| a.end < b.start && a.start < a.end));
        let content = find(&disk, &[b'x'; 700]) as u64;
        let holds = |at: u64| left.iter().any(|range| range.contains(&at));
        assert!(!holds(content) && !holds(content + 699) && holds(content + 700));
        assert!(!holds(0) && holds(SIZE - 1));
        // All of it is zeros in a filesystem that is new.
        for range in &left {
            let bytes = &disk.0[range.start as usize..range.end as usize];
            assert!(bytes.iter().all(|byte| *byte == 0), "{range:?}");
        }
    }

    /// The boot sector of a FAT32 filesystem in clusters of a sector, so many that a table has 64 MiB and no more, or more.
    #[test]
    fn a_table_of_more_than_64_mib_is_not_read() {
        for (clusters, says) in [
            // What is there of the tables, nothing, says nothing of the first cluster.
            ((16 << 20) - 2, "FAT filesystem contradicts itself"),
            ((16 << 20) - 1, "a table of more than 67108864 bytes"),
        ] {
            let table_sectors = ((clusters + 2) * 4_u32).div_ceil(512);
            let sectors = 32 + table_sectors + clusters;
            let storage = MemStorage::new();
            let put = |at: u64, bytes: &[u8]| storage.write_all_at(bytes, at).unwrap();
            // Bytes of a sector, sectors of a cluster, reserved sectors, tables.
            put(11, &[0, 2, 1, 32, 0, 1]);
            put(32, &sectors.to_le_bytes());
            put(36, &table_sectors.to_le_bytes());
            put(44, &2_u32.to_le_bytes());
            put(510, &[0x55, 0xAA]);
            storage.set_len(u64::from(sectors) * 512).unwrap();
            let disk = raw::Image::open(Arc::new(storage), Access::READ).unwrap();
            let error = leftovers(&disk).unwrap_err();
            assert!(error.to_string().contains(says), "{clusters}: {error}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_an_error_and_nothing_of_it_is_free() {
        let Disk(whole) = made();
        let table = Volume::read(&Disk(whole.clone())).unwrap();
        let file = table
            .numbers()
            .find(|number| whole[table.place(*number).start as usize] == b'x');
        let file = file.unwrap();
        let reserved = usize::from(u16::from_le_bytes([whole[14], whole[15]])) * 512;
        let len = u32::from_le_bytes(whole[36..40].try_into().unwrap()) as usize * 512;
        let entry = |number: u32| [0, len].map(|at| reserved + at + number as usize * 4);
        // In both tables, what follows the file's first cluster.
        for (value, says) in [
            (0, "in none"),
            (1, "is followed by 0x1"),
            (0x0FFF_FFF7, "in none"),
            (0x0FFF_FFFF, "fewer clusters than bytes"),
            (file, "in two files"),
            (2, "in two files"),
            (0x0FFF_FFF0, "is followed by"),
        ] {
            let mut bytes = whole.clone();
            for at in entry(file) {
                bytes[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
            }
            let error = leftovers(&Disk(bytes)).unwrap_err();
            assert!(error.to_string().contains(says), "{value:#x}: {error}");
        }
        let mut bytes = whole.clone();
        bytes[entry(file)[1]] ^= 1;
        let error = leftovers(&Disk(bytes)).unwrap_err();
        assert!(error.to_string().contains("tables differ"), "{error}");
        // Behind the last entry of the directory, but for one.
        let mut bytes = whole.clone();
        let name = find(&Disk(whole.clone()), b"FILEWI~1");
        bytes[name + 64..name + 96].copy_from_slice(&whole[name..name + 32]);
        let error = leftovers(&Disk(bytes)).unwrap_err();
        assert!(error.to_string().contains("behind its end"), "{error}");
    }

    #[test]
    fn no_damage_is_a_panic_or_makes_room_past_the_end() {
        let Disk(mut bytes) = made();
        let data = Volume::read(&Disk(bytes.clone())).unwrap().place(2).start;
        let mut random = Rng::new(11);
        let name = find(&Disk(bytes.clone()), b"FILEWI~1") as u64;
        for _ in 0..3000 {
            let at = match random.below(3) {
                0 => random.below(96),
                1 => random.below(data),
                _ => name - 128 + random.below(256),
            } as usize;
            let before = bytes[at];
            bytes[at] = random.next_u64() as u8;
            let disk = Disk(bytes);
            if let Ok(left) = leftovers(&disk) {
                assert!(
                    left.free
                        .iter()
                        .chain(&left.loader)
                        .all(|range| range.end <= disk.size() && range.start < range.end)
                );
            }
            bytes = disk.0;
            bytes[at] = before;
        }
    }
}
