//! Extended attributes ("Extended Attributes"): entries from the front and values from the back, in the room that an
//! inode has left, and in one block more. Many inodes may share a block. A value too large for that may be the
//! contents of an inode of its own (`ea_inode`, "Large Extended Attribute Values").
//!
//! What goes where is planned for a set of attributes and the room there is, so that the same set always gets the
//! same bytes and can be shared: what fits the inode in the order of the disk, and the rest in the block. Values
//! that no block could hold become inodes, and then the largest, until the block holds the rest.

use block::{Error, Result};
use byteorder::{ByteOrder, LittleEndian};

use crate::acl;
use crate::checksum::Checksum;
use crate::inode::{FLAG_EA_INODE, FLAG_EXTENTS, FileType, Inode, MAP_SIZE};
use crate::time::Time;

const MAGIC: u32 = 0xEA02_0000;
/// Bytes before the entries in an inode, and in a block.
const INODE_HEADER: usize = 4;
const BLOCK_HEADER: usize = 32;
/// An entry's bytes before its name.
const ENTRY_HEADER: usize = 16;
/// Zeros that end the entries.
const END: usize = 4;
/// An entry with a name of one to four bytes. The kernel takes a value that leaves no room for it as too large.
const LARGE_NAME: usize = 20;
/// Entries and values start at multiples of this.
const ALIGNMENT: usize = 4;

/// Inodes that can share a block.
pub const MAX_REFERENCES: u32 = 1024;
/// What the kernel accepts of a name with its prefix, and of a value.
const MAX_NAME: usize = 255;
pub(crate) const MAX_VALUE: usize = 65_536;

/// Prefixes of names and the numbers that stand for them.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (acl::ACCESS, ACL_ACCESS),
    (acl::DEFAULT, ACL_DEFAULT),
    (b"trusted.", 4),
    (b"security.", 6),
];
const ACL_ACCESS: u8 = 2;
const ACL_DEFAULT: u8 = 3;
const SYSTEM: u8 = 7;

/// An attribute with its name and value as they are on disk: access control lists are converted. Sorts as the disk
/// has to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Xattr {
    /// Stands for the name's prefix.
    index: u8,
    /// The name after its prefix.
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Xattr {
    /// The attribute with a full name, and a value as system calls have it; `None` for an empty access control list,
    /// which is none.
    ///
    /// # Errors
    /// `InvalidInput` for a name or value that ext4 cannot hold.
    pub fn new(name: &[u8], value: &[u8]) -> Result<Option<Self>> {
        let (index, rest) = split_name(name)?;
        let shown = String::from_utf8_lossy(name);
        let is_list = is_list(index);
        if value.len() > MAX_VALUE {
            let message = format!(
                "the extended attribute {shown:?} of {} bytes is too large",
                value.len()
            );
            return Err(Error::invalid(message).with_hint("64 KiB is the most that Linux accepts"));
        }
        let value = if is_list {
            match acl::to_disk(value)? {
                Some(list) => list,
                None => return Ok(None),
            }
        } else {
            value.to_vec()
        };
        let name = rest.to_vec();
        Ok(Some(Self { index, name, value }))
    }

    /// What holds a small file's contents behind its first bytes.
    pub fn inline_data(value: Vec<u8>) -> Self {
        Self {
            index: SYSTEM,
            name: b"data".to_vec(),
            value,
        }
    }

    /// Its value, as on disk.
    pub fn value(&self) -> &[u8] {
        &self.value
    }

    /// Bytes of its name and its value.
    pub(crate) fn bytes(&self) -> usize {
        self.name.len() + self.value.len()
    }

    /// Whether a full name, in the parts that [`split_name`] gives, is its own.
    pub fn has_name(&self, (index, name): (u8, &[u8])) -> bool {
        self.index == index && self.name == name
    }

    /// Sets what a list of those who have access says of a file's permissions; any other attribute stays as it is.
    pub fn set_permissions(&mut self, permissions: u16) {
        if self.index == ACL_ACCESS {
            acl::set_permissions(&mut self.value, permissions);
        }
    }

    /// The order on disk, which look-ups in a block rely on.
    fn key(&self) -> (u8, usize, &[u8]) {
        (self.index, self.name.len(), &self.name)
    }

    fn entry_size(&self) -> usize {
        (ENTRY_HEADER + self.name.len()).next_multiple_of(ALIGNMENT)
    }

    fn value_size(&self) -> usize {
        self.value.len().next_multiple_of(ALIGNMENT)
    }
}

fn is_list(index: u8) -> bool {
    index == ACL_ACCESS || index == ACL_DEFAULT
}

/// A full name in parts: the number of its prefix, and what follows that.
///
/// # Errors
/// `InvalidInput` for a name that ext4 cannot hold.
pub fn split_name(name: &[u8]) -> Result<(u8, &[u8])> {
    let found = PREFIXES
        .iter()
        .find_map(|&(prefix, index)| Some((index, name.strip_prefix(prefix)?)));
    let shown = String::from_utf8_lossy(name);
    let Some((index, rest)) = found else {
        return Err(
            Error::invalid(format!("ext4 cannot store an extended attribute named {shown:?}")).with_hint(
                "names start with user., trusted. or security., or are those of access control lists",
            ),
        );
    };
    // A list is named by its prefix alone; all others need something behind it.
    if rest.is_empty() != is_list(index) || name.len() > MAX_NAME || rest.contains(&0) {
        return Err(
            Error::invalid(format!("{shown:?} cannot be the name of an extended attribute"))
                .with_hint("it takes at most 255 bytes, one at least behind the first dot, without NUL"),
        );
    }
    Ok((index, rest))
}

/// Whether a full name is one that ext4 has a number for.
pub(crate) fn is_known(name: &[u8]) -> bool {
    PREFIXES.iter().any(|&(prefix, _)| name.starts_with(prefix))
}

/// Whether an inode's `room` holds all of these attributes.
pub fn fits_inode<'a>(xattrs: impl IntoIterator<Item = &'a Xattr>, room: usize) -> bool {
    let sizes = xattrs
        .into_iter()
        .map(|xattr| xattr.entry_size() + xattr.value_size());
    INODE_HEADER + END + sizes.sum::<usize>() <= room
}

/// Where a set's attributes go. Numbers are places in the sorted set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    set: Vec<Xattr>,
    in_inode: Vec<usize>,
    in_block: Vec<usize>,
    /// Those whose values become inodes.
    large: Vec<usize>,
}

impl Plan {
    /// Plans for attributes, for a `room` in the inode and a block of `block_size` bytes, and for values in inodes
    /// where `ea_inode` allows them. Of two by one name, the last counts.
    ///
    /// # Errors
    /// `InvalidInput` where they do not fit.
    pub fn new(mut set: Vec<Xattr>, room: usize, block_size: usize, ea_inode: bool) -> Result<Self> {
        set.reverse();
        set.sort_by(|a, b| a.key().cmp(&b.key()));
        set.dedup_by(|b, a| a.key() == b.key());
        let block_room = block_size - BLOCK_HEADER - END;
        // What no block could hold gets an inode in any case, and its entry may well fit the inode.
        let too_large = |xattr: &Xattr| ea_inode && xattr.value.len() > block_room - LARGE_NAME;
        let mut plan = Self {
            in_inode: Vec::new(),
            in_block: Vec::new(),
            large: (0..set.len()).filter(|&place| too_large(&set[place])).collect(),
            set,
        };
        let mut left = room.saturating_sub(INODE_HEADER + END);
        for place in 0..plan.set.len() {
            let size = plan.size(place);
            if size <= left {
                left -= size;
                plan.in_inode.push(place);
            } else {
                plan.in_block.push(place);
            }
        }

        let mut needed: usize = plan.in_block.iter().map(|&place| plan.size(place)).sum();
        let mut by_size = plan.in_block.clone();
        by_size.retain(|place| ea_inode && !plan.large.contains(place) && !plan.set[*place].value.is_empty());
        by_size.sort_by_key(|&place| plan.set[place].value.len());
        while needed > block_room {
            let Some(place) = by_size.pop() else {
                let message = format!(
                    "the extended attributes ({}) do not fit an inode and a block of {block_size} bytes",
                    plan.set.len()
                );
                let hint = match block_size {
                    _ if !ea_inode => {
                        "leave some out, or make it for Linux 4.19 and later, which know values in inodes"
                    }
                    ..4096 => "leave some out, or make blocks of 4096 bytes",
                    _ => "leave some out",
                };
                return Err(Error::invalid(message).with_hint(hint));
            };
            needed -= plan.set[place].value_size();
            plan.large.push(place);
        }
        plan.large.sort_unstable();
        Ok(plan)
    }

    /// Bytes that an attribute takes in inode or block.
    fn size(&self, place: usize) -> usize {
        let xattr = &self.set[place];
        if self.large.contains(&place) {
            xattr.entry_size()
        } else {
            xattr.entry_size() + xattr.value_size()
        }
    }

    /// The attributes, in the order of the disk.
    pub fn set(&self) -> &[Xattr] {
        &self.set
    }

    /// Which of the [`large_values`](Self::large_values) are stated in the inode; the others are in the block.
    pub(crate) fn large_in_inode(&self) -> impl Iterator<Item = bool> {
        self.large
            .iter()
            .map(|place| self.in_inode.binary_search(place).is_ok())
    }

    /// Values that need an inode of their own, in the order of the disk.
    pub fn large_values(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.large.iter().map(|&place| self.set[place].value())
    }

    /// Whether there is a block.
    pub fn has_block(&self) -> bool {
        !self.in_block.is_empty()
    }

    /// What goes into the inode's room, from its start; nothing where nothing does. `large` has for each of the
    /// [`large_values`](Self::large_values) the number of its inode and its [`value_hash`].
    pub fn put_inode(&self, room: &mut [u8], large: &[(u32, u32)]) {
        if self.in_inode.is_empty() {
            return;
        }
        LittleEndian::write_u32(room, MAGIC);
        let entries = self.in_inode.iter().map(|&place| {
            let stored = self.stored(place, large);
            // Nothing is hashed but what is elsewhere.
            let hash = if stored.inode == 0 { 0 } else { stored.hash };
            Stored { hash, ..stored }
        });
        // Values are counted from the first entry.
        put(&mut room[INODE_HEADER..], 0, entries);
    }

    /// The block, but for how many share it and its checksum; `large` as with [`put_inode`](Self::put_inode).
    pub fn block(&self, block_size: usize, large: &[(u32, u32)]) -> XattrBlock {
        let mut bytes = vec![0; block_size];
        LittleEndian::write_u32(&mut bytes[0..], MAGIC);
        LittleEndian::write_u32(&mut bytes[8..], 1); // blocks
        // An entry without a hash makes the block one that is not to be shared.
        let mut all = Some(0u32);
        let entries = self.in_block.iter().map(|&place| {
            let stored = self.stored(place, large);
            all = all
                .filter(|_| stored.hash != 0)
                .map(|all| all.rotate_left(16) ^ stored.hash);
            stored
        });
        put(&mut bytes, BLOCK_HEADER, entries);
        LittleEndian::write_u32(&mut bytes[12..], all.unwrap_or(0));
        XattrBlock { bytes }
    }

    fn stored(&self, place: usize, large: &[(u32, u32)]) -> Stored<'_> {
        let xattr = &self.set[place];
        let inode = self.large.binary_search(&place).ok().map(|index| large[index]);
        let hash = match inode {
            Some((_, value)) => entry_hash(&xattr.name, &value.to_le_bytes()),
            None => entry_hash(&xattr.name, &xattr.value),
        };
        let inode = inode.map_or(0, |(number, _)| number);
        Stored { xattr, inode, hash }
    }
}

/// A block of extended attributes that does not know its place yet.
#[derive(Debug)]
pub struct XattrBlock {
    bytes: Vec<u8>,
}

impl XattrBlock {
    /// The block as it is on disk, at block `number`, for so many inodes, at most [`MAX_REFERENCES`].
    pub fn to_bytes(&self, number: u64, references: u32, filesystem: Option<Checksum>) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        LittleEndian::write_u32(&mut bytes[4..], references);
        if let Some(filesystem) = filesystem {
            // Its own field counts as zero, which it still is.
            let checksum = filesystem.with(&number.to_le_bytes()).with(&bytes);
            LittleEndian::write_u32(&mut bytes[16..], checksum.value());
        }
        bytes
    }
}

/// What entries are hashed by instead of a value that has an inode, and what that inode has for time of access.
pub fn value_hash(value: &[u8], filesystem: Checksum) -> u32 {
    filesystem.with(value).value()
}

/// The inode that holds a value, whose blocks are found by `map` and take so many `sectors`. How many entries refer
/// to it stands in the version and the time of change.
pub(crate) fn value_inode(
    value: &[u8],
    references: u64,
    filesystem: Checksum,
    map: [u8; MAP_SIZE],
    sectors: u64,
) -> Inode {
    let seconds = |field: u32| Time {
        secs: i64::from(field.cast_signed()),
        nanos: 0,
    };
    Inode {
        mode: FileType::Regular.mode() | 0o600,
        size: value.len() as u64,
        sectors,
        links: 1,
        flags: FLAG_EA_INODE | FLAG_EXTENTS,
        version: references & u64::from(u32::MAX),
        accessed: seconds(value_hash(value, filesystem)),
        changed: seconds((references >> 32) as u32),
        map,
        ..Inode::default()
    }
}

/// An entry to write.
struct Stored<'a> {
    xattr: &'a Xattr,
    /// The inode that holds the value, or 0.
    inode: u32,
    hash: u32,
}

/// Writes entries from `first` on, and values from the end.
fn put<'a>(bytes: &mut [u8], first: usize, entries: impl Iterator<Item = Stored<'a>>) {
    let mut start = first;
    let mut end = bytes.len();
    for Stored { xattr, inode, hash } in entries {
        let mut offset = 0;
        if inode == 0 && !xattr.value.is_empty() {
            end -= xattr.value_size();
            offset = end;
            bytes[end..end + xattr.value.len()].copy_from_slice(&xattr.value);
        }
        let entry = &mut bytes[start..start + xattr.entry_size()];
        entry[0] = xattr.name.len() as u8;
        entry[1] = xattr.index;
        LittleEndian::write_u16(&mut entry[2..], offset as u16);
        LittleEndian::write_u32(&mut entry[4..], inode);
        LittleEndian::write_u32(&mut entry[8..], xattr.value.len() as u32);
        LittleEndian::write_u32(&mut entry[12..], hash);
        entry[ENTRY_HEADER..ENTRY_HEADER + xattr.name.len()].copy_from_slice(&xattr.name);
        start += entry.len();
    }
}

/// An entry's hash: of the name, byte by byte, and of the value in words, the last one filled with zeros.
fn entry_hash(name: &[u8], value: &[u8]) -> u32 {
    let name = name
        .iter()
        .fold(0u32, |hash, &byte| hash.rotate_left(5) ^ u32::from(byte));
    value.chunks(4).fold(name, |hash, bytes| {
        let mut word = [0; 4];
        word[..bytes.len()].copy_from_slice(bytes);
        hash.rotate_left(16) ^ u32::from_le_bytes(word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use block::ErrorKind;

    fn user(name: &str, len: usize) -> Xattr {
        Xattr::new(format!("user.{name}").as_bytes(), &vec![b'v'; len])
            .unwrap()
            .unwrap()
    }

    #[test]
    fn names_that_cannot_be_are_refused() {
        let long = [b"user.".to_vec(), vec![b'n'; 251]].concat();
        for name in [
            &b"user."[..],
            b"user",
            b"other.x",
            b"",
            b"system.posix_acl_access.x",
            b"user.a\0b",
            &long,
        ] {
            let error = Xattr::new(name, b"").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name:?}");
            assert!(error.hint().is_some());
        }
        assert!(Xattr::new(b"user.x", &vec![0; MAX_VALUE + 1]).is_err());
    }

    #[test]
    fn the_last_of_equal_names_counts() {
        let plan = Plan::new(vec![user("a", 1), user("b", 2), user("a", 3)], 96, 4096, false).unwrap();
        let sizes: Vec<usize> = plan.set().iter().map(|xattr| xattr.value().len()).collect();
        assert_eq!(sizes, [3, 2]);
    }

    #[test]
    fn rooms_are_filled_to_the_last_byte() {
        // 8 bytes around 20 of entry and 68 of value in the inode; 36 around 20 and 968 in the block.
        let plan = Plan::new(vec![user("a", 68)], 96, 1024, false).unwrap();
        assert!(!plan.has_block());
        let plan = Plan::new(vec![user("a", 69)], 96, 1024, false).unwrap();
        assert!(plan.has_block());
        let plan = Plan::new(vec![user("a", 968)], 96, 1024, false).unwrap();
        plan.block(1024, &[]);
        let error = Plan::new(vec![user("a", 969)], 96, 1024, false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn the_largest_values_become_inodes() {
        let set = vec![user("a", 2000), user("b", 700), user("c", 5000), user("d", 200)];
        let plan = Plan::new(set, 96, 1024, true).unwrap();
        let sizes: Vec<usize> = plan.large_values().map(<[u8]>::len).collect();
        assert_eq!(sizes, [2000, 5000]);
    }

    #[test]
    fn too_many_names_are_refused_even_so() {
        let set = (0..100).map(|index| user(&format!("{index:050}"), 100)).collect();
        assert_eq!(
            Plan::new(set, 96, 4096, true).unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
    }
}
